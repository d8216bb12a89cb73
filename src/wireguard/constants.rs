//! The constants of [W] §6.1 and those that the kernel adds, in the paper's spelling.

use std::time::Duration;

/// [W] §5.4: the Noise protocol name.
pub const CONSTRUCTION: &[u8; 37] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// [W] §5.4: the prologue.
pub const IDENTIFIER: &[u8; 34] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// [W] §5.4: separates the key of mac1.
pub const LABEL_MAC1: &[u8; 8] = b"mac1----";
/// [W] §5.4: separates the key of the cookie reply.
pub const LABEL_COOKIE: &[u8; 8] = b"cookie--";

/// [W] §6.1: messages after which a sender asks for a new session.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// [W] §6.1: messages after which a session is dead.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// [W] §6.1: age at which the initiator asks for a new session.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// [W] §6.1: age at which a session is dead.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// [W] §6.1: how long handshakes are tried without an answer.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// [W] §6.1: how long one handshake waits for its answer.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// [W] §6.1: silence after which received data is confirmed by an empty packet.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// [W] §6.1: the uniform jitter on retransmissions is below this.
pub const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_millis(333);
/// Kernel `messages.h`, `MAX_TIMER_HANDSHAKES`: retransmissions in REKEY_ATTEMPT_TIME.
pub const MAX_TIMER_HANDSHAKES: u32 = 18;
/// Kernel `messages.h`, `INITIATIONS_PER_SECOND` 50: the least time between two initiations consumed from one peer.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// [W] §6.3: keys are wiped after 3 · REJECT_AFTER_TIME without a new session.
pub const ZERO_KEY_MATERIAL_AFTER: Duration = Duration::from_secs(540);
/// [W] §5.4.7: the life of a cookie and of the secret behind it.
pub const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// Kernel `messages.h`, `COOKIE_SECRET_LATENCY`: a cookie about to expire is not used.
pub const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);

/// Kernel `queueing.h`, `MAX_QUEUED_INCOMING_HANDSHAKES`.
pub const MAX_QUEUED_INCOMING_HANDSHAKES: usize = 4096;
/// Kernel `receive.c`, `wg_receive_handshake_packet`: under load from this queue length on…
pub const UNDER_LOAD_QUEUE: usize = MAX_QUEUED_INCOMING_HANDSHAKES / 8;
/// … or when in [`UNDER_LOAD_STICKY`] this many led to nothing, which take a fifth of a core to open. Who has to show the address first waits
/// for five seconds, the initiator's retry: fewer are not worth that. The kernel has no such rule …
pub const UNDER_LOAD_IN_VAIN: usize = MAX_QUEUED_INCOMING_HANDSHAKES;
/// … and for this long after.
pub const UNDER_LOAD_STICKY: Duration = Duration::from_secs(1);
/// Kernel `queueing.h`, `MAX_STAGED_PACKETS`: packets of a peer that wait for a session.
pub const MAX_STAGED_PACKETS: usize = 128;
/// What the packets of all peers take that wait for a session, in bytes, before each peer may keep but one; the kernel knows no such bound, and 10,000 peers that do
/// not answer could make it keep 1.8 GB.
pub const MAX_STAGED_BYTES: usize = 8 << 20;
/// Kernel `device.h`, `MAX_PEERS_PER_DEVICE`.
pub const MAX_PEERS: usize = 1 << 20;

/// [W] §5.4.6: plaintext is padded to a multiple of this.
pub const PADDING_MULTIPLE: usize = 16;
/// Kernel `messages.h`, `HANDSHAKE_DSCP` 0x88: AF41, not ECN-capable.
pub const HANDSHAKE_DS: u8 = 0x88;
