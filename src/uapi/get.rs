//! A snapshot as the reply to `get=1`, in wireguard-go's order (uapi.go:IpcGetOperation).
//!
//! There are deliberately no keys beyond wireguard-go's: `wg` would skip them, other clients need not.

use std::fmt::Write;

use zeroize::Zeroizing;

use crate::config::{PeerSnapshot, Snapshot};

/// Returns the lines of the reply, without `errno=0`. They hold secrets and are wiped when dropped.
pub fn print(snapshot: &Snapshot) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bound(snapshot)));
    // Writing to a string does not fail.
    let _ = write_snapshot(&mut text, snapshot);
    text
}

/// Returns a length that the text does not exceed: a string that grows would leave copies of keys behind.
fn bound(snapshot: &Snapshot) -> usize {
    const INTERFACE: usize = 256;
    const PEER: usize = 512;
    const ALLOWED_IP: usize = "allowed_ip=".len() + "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128\n".len();
    let peers = snapshot.peers.iter().map(|peer| PEER + peer.allowed_ips.len() * ALLOWED_IP);
    INTERFACE + peers.sum::<usize>()
}

fn write_snapshot(text: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    if let Some(key) = &snapshot.private_key {
        write_key(text, "private_key", key.as_bytes())?;
    }
    if snapshot.listen_port != 0 {
        writeln!(text, "listen_port={}", snapshot.listen_port)?;
    }
    if snapshot.fwmark != 0 {
        writeln!(text, "fwmark={}", snapshot.fwmark)?;
    }
    snapshot.peers.iter().try_for_each(|peer| write_peer(text, peer))
}

fn write_peer(text: &mut String, peer: &PeerSnapshot) -> std::fmt::Result {
    write_key(text, "public_key", peer.public_key.as_bytes())?;
    write_key(text, "preshared_key", peer.preshared_key.as_bytes())?;
    text.push_str("protocol_version=1\n");
    if let Some(endpoint) = peer.endpoint {
        // An IPv6 scope is printed as a number: `[fe80::1%2]:51820`.
        writeln!(text, "endpoint={endpoint}")?;
    }
    let last_handshake = peer.last_handshake.unwrap_or_default();
    writeln!(text, "last_handshake_time_sec={}", last_handshake.as_secs())?;
    writeln!(text, "last_handshake_time_nsec={}", last_handshake.subsec_nanos())?;
    writeln!(text, "tx_bytes={}", peer.tx_bytes)?;
    writeln!(text, "rx_bytes={}", peer.rx_bytes)?;
    writeln!(text, "persistent_keepalive_interval={}", peer.persistent_keepalive)?;
    peer.allowed_ips.iter().try_for_each(|prefix| writeln!(text, "allowed_ip={prefix}"))
}

fn write_key(text: &mut String, name: &str, key: &[u8; 32]) -> std::fmt::Result {
    text.push_str(name);
    text.push('=');
    key.iter().try_for_each(|byte| write!(text, "{byte:02x}"))?;
    text.push('\n');
    Ok(())
}
