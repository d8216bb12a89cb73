//! Noise_IKpsk2 as [W] §5.4.2, §5.4.3 and §5.4.5 spell it out. Symbols only: no time, no peers, no retries.
//!
//! ```text
//! <- s
//! ...
//! -> e, es, s, ss, {t}
//! <- e, ee, se, psk, {}
//! ```
//!
//! Every function works on locals and hands out its result at the end, so that a forged message leaves no trace. A Diffie–Hellman result
//! of all zeros ends the handshake (kernel `noise.c`, `mix_dh`).

use std::fmt;

use super::constants::{CONSTRUCTION, IDENTIFIER};
use super::messages::{INITIATION_LEN, RESPONSE_LEN};
use super::tai64n::Timestamp;
use crate::crypto::aead;
use crate::crypto::blake2s::{HmacKey, hash, kdf1, kdf2, kdf3};
use crate::crypto::secret::Secret;
use crate::crypto::x25519::{PrivateKey, PublicKey, dh};

/// Our static key pair.
pub struct Static {
    private: PrivateKey,
    public: PublicKey,
    /// What a handshake with us as the responder begins with, and its chaining key once more.
    responder: Symmetric,
    construction: HmacKey,
}

impl Static {
    /// Computes the public half.
    pub fn new(private: PrivateKey) -> Self {
        let public = private.public();
        let responder = Symmetric::new(&public);
        let construction = HmacKey::new(responder.chaining_key.as_bytes());
        Self { private, public, responder, construction }
    }

    /// Returns the private half.
    pub fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// Returns the public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Returns `DH(S_priv, peer)`, which both messages of a handshake mix in, or `None` for a peer key of low order.
    pub fn static_static(&self, peer: &PublicKey) -> Option<Secret<32>> {
        dh(&self.private, peer)
    }
}

impl fmt::Debug for Static {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Static").field(&self.public).finish()
    }
}

/// The chaining key C and the running hash H.
#[derive(Clone)]
struct Symmetric {
    chaining_key: Secret<32>,
    hash: [u8; 32],
}

impl Symmetric {
    /// C := Hash(Construction), H := Hash(C ‖ Identifier), then the responder's static key.
    fn new(responder: &PublicKey) -> Self {
        let chaining_key = hash(&[CONSTRUCTION]);
        let identified = hash(&[&chaining_key, IDENTIFIER]);
        Self { chaining_key: Secret::new(chaining_key), hash: hash(&[&identified, responder.as_bytes()]) }
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = hash(&[&self.hash, bytes]);
    }

    /// Mixes an ephemeral public key into both.
    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.chaining_key = kdf1(self.chaining_key.as_bytes(), public);
        self.mix_hash(public);
    }

    /// (C, κ) := Kdf2(C, shared).
    fn mix_shared(&mut self, shared: &Secret<32>) -> aead::Key {
        let (chaining_key, key) = kdf2(self.chaining_key.as_bytes(), shared.as_bytes());
        self.chaining_key = chaining_key;
        aead::Key::new(&key)
    }

    fn mix_dh(&mut self, private: &PrivateKey, public: &PublicKey) -> Option<aead::Key> {
        Some(self.mix_shared(&dh(private, public)?))
    }

    /// C := Kdf1(C, DH): as [`Self::mix_dh`], where nothing is sealed before C changes again.
    fn chain_dh(&mut self, private: &PrivateKey, public: &PublicKey) -> Option<()> {
        self.chaining_key = kdf1(self.chaining_key.as_bytes(), dh(private, public)?.as_bytes());
        Some(())
    }

    /// (C, τ, κ) := Kdf3(C, Q), H := Hash(H ‖ τ).
    fn mix_psk(&mut self, psk: &Secret<32>) -> aead::Key {
        let (chaining_key, tau, key) = kdf3(self.chaining_key.as_bytes(), psk.as_bytes());
        self.chaining_key = chaining_key;
        self.mix_hash(tau.as_bytes());
        aead::Key::new(&key)
    }

    /// Seals `plaintext` into `into` with nonce 0 and mixes the ciphertext.
    fn seal(&mut self, key: &aead::Key, plaintext: &[u8], into: &mut [u8]) {
        key.seal_to(0, &self.hash, &[plaintext], into);
        self.mix_hash(into);
    }

    /// Opens `ciphertext` with nonce 0 and mixes it.
    fn open<const N: usize>(&mut self, key: &aead::Key, ciphertext: &[u8]) -> Option<[u8; N]> {
        let mut plaintext = [0; N];
        key.open_to(0, &self.hash, ciphertext, &mut plaintext).ok()?;
        self.mix_hash(ciphertext);
        Some(plaintext)
    }

    /// [W] §5.4.5: (T_send, T_recv) of the initiator := Kdf2(C, ε).
    fn split(&self) -> (Secret<32>, Secret<32>) {
        kdf2(self.chaining_key.as_bytes(), &[])
    }
}

/// The keys of a session, seen from one side.
#[derive(Debug)]
pub struct TransportKeys {
    /// Seals what we send.
    pub send: Secret<32>,
    /// Opens what we receive.
    pub receive: Secret<32>,
}

/// An initiation that was created and waits for its response.
pub struct CreatedInitiation {
    symmetric: Symmetric,
    ephemeral: PrivateKey,
}

/// Creates an initiation; its macs are still zero. `None` if a key is of low order.
pub fn create_initiation(
    own: &Static,
    peer: &PublicKey,
    static_static: &Secret<32>,
    ephemeral: PrivateKey,
    timestamp: Timestamp,
    sender: u32,
) -> Option<(CreatedInitiation, [u8; INITIATION_LEN])> {
    let mut message = [0; INITIATION_LEN];
    message[0] = 1;
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    let mut symmetric = Symmetric::new(peer);
    // e
    let public = ephemeral.public();
    message[8..40].copy_from_slice(public.as_bytes());
    symmetric.mix_ephemeral(public.as_bytes());
    // es
    let key = symmetric.mix_dh(&ephemeral, peer)?;
    // s
    symmetric.seal(&key, own.public.as_bytes(), &mut message[40..88]);
    // ss
    let key = symmetric.mix_shared(static_static);
    // {t}
    symmetric.seal(&key, timestamp.as_bytes(), &mut message[88..116]);
    Some((CreatedInitiation { symmetric, ephemeral }, message))
}

/// An initiation whose sender is named but not yet authenticated.
pub struct OpenedInitiation {
    symmetric: Symmetric,
    sender: u32,
    ephemeral: PublicKey,
    peer: PublicKey,
    sealed_timestamp: [u8; 28],
}

/// Opens an initiation as far as its sender's static key: `e, es, s`.
pub fn open_initiation(own: &Static, message: &[u8; INITIATION_LEN]) -> Option<OpenedInitiation> {
    let mut symmetric = own.responder.clone();
    let sender = u32::from_le_bytes(message[4..8].try_into().ok()?);
    // e
    let ephemeral: [u8; 32] = message[8..40].try_into().ok()?;
    symmetric.chaining_key = own.construction.kdf1(&ephemeral);
    symmetric.mix_hash(&ephemeral);
    let ephemeral = PublicKey::new(ephemeral);
    // es
    let key = symmetric.mix_dh(&own.private, &ephemeral)?;
    // s
    let peer = PublicKey::new(symmetric.open(&key, &message[40..88])?);
    let sealed_timestamp = message[88..116].try_into().ok()?;
    Some(OpenedInitiation { symmetric, sender, ephemeral, peer, sealed_timestamp })
}

impl OpenedInitiation {
    /// Returns the static key that the sender claims.
    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// Authenticates the sender: `ss, {t}`.
    pub fn authenticate(mut self, static_static: &Secret<32>) -> Option<ConsumedInitiation> {
        // ss
        let key = self.symmetric.mix_shared(static_static);
        // {t}
        let timestamp = Timestamp::from_bytes(self.symmetric.open(&key, &self.sealed_timestamp)?);
        Some(ConsumedInitiation {
            symmetric: self.symmetric,
            sender: self.sender,
            ephemeral: self.ephemeral,
            peer: self.peer,
            timestamp,
        })
    }
}

/// An authentic initiation that waits for our response.
pub struct ConsumedInitiation {
    symmetric: Symmetric,
    sender: u32,
    ephemeral: PublicKey,
    peer: PublicKey,
    timestamp: Timestamp,
}

impl ConsumedInitiation {
    /// Returns the sender's timestamp.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// Returns the index by which the sender knows this handshake.
    pub fn sender(&self) -> u32 {
        self.sender
    }

    /// Creates the response, its macs still zero, and the session's keys. `None` if a key is of low order.
    pub fn create_response(
        mut self,
        psk: &Secret<32>,
        ephemeral: &PrivateKey,
        sender: u32,
    ) -> Option<(TransportKeys, [u8; RESPONSE_LEN])> {
        let mut message = [0; RESPONSE_LEN];
        message[0] = 2;
        message[4..8].copy_from_slice(&sender.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.to_le_bytes());
        // e
        let public = ephemeral.public();
        message[12..44].copy_from_slice(public.as_bytes());
        self.symmetric.mix_ephemeral(public.as_bytes());
        // ee
        self.symmetric.chain_dh(ephemeral, &self.ephemeral)?;
        // se
        self.symmetric.chain_dh(ephemeral, &self.peer)?;
        // psk
        let key = self.symmetric.mix_psk(psk);
        // {}
        self.symmetric.seal(&key, &[], &mut message[44..60]);
        let (receive, send) = self.symmetric.split();
        Some((TransportKeys { send, receive }, message))
    }
}

impl CreatedInitiation {
    /// Consumes the response and returns the session's keys and the responder's index. `None` leaves everything as it was.
    pub fn consume_response(
        &self,
        own: &Static,
        psk: &Secret<32>,
        message: &[u8; RESPONSE_LEN],
    ) -> Option<(TransportKeys, u32)> {
        let mut symmetric = self.symmetric.clone();
        let responder = u32::from_le_bytes(message[4..8].try_into().ok()?);
        // e
        let ephemeral: [u8; 32] = message[12..44].try_into().ok()?;
        symmetric.mix_ephemeral(&ephemeral);
        let ephemeral = PublicKey::new(ephemeral);
        // ee
        symmetric.chain_dh(&self.ephemeral, &ephemeral)?;
        // se
        symmetric.chain_dh(&own.private, &ephemeral)?;
        // psk
        let key = symmetric.mix_psk(psk);
        // {}
        let [] = symmetric.open(&key, &message[44..60])?;
        // Success:
        let (send, receive) = symmetric.split();
        Some((TransportKeys { send, receive }, responder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::Os;
    use snow::Builder;

    const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

    struct Side {
        own: Static,
    }

    fn side() -> Side {
        Side { own: Static::new(PrivateKey::generate(&mut Os)) }
    }

    fn snow(own: &Static, peer: Option<&PublicKey>, psk: &[u8; 32], initiator: bool) -> snow::HandshakeState {
        let mut builder = Builder::new(PATTERN.parse().unwrap())
            .local_private_key(own.private.as_bytes())
            .unwrap()
            .prologue(PROLOGUE)
            .unwrap()
            .psk(2, psk)
            .unwrap();
        if let Some(peer) = peer {
            builder = builder.remote_public_key(peer.as_bytes()).unwrap();
        }
        if initiator { builder.build_initiator().unwrap() } else { builder.build_responder().unwrap() }
    }

    fn psks() -> [[u8; 32]; 2] {
        [[0; 32], [0x5a; 32]]
    }

    #[test]
    fn both_sides_derive_the_same_keys() {
        for psk in psks().map(Secret::new) {
            let (a, b) = (side().own, side().own);
            let ss = a.static_static(b.public()).unwrap();
            let time = Timestamp::from_bytes([7; 12]);
            let (created, initiation) =
                create_initiation(&a, b.public(), &ss, PrivateKey::generate(&mut Os), time, 11).unwrap();
            let opened = open_initiation(&b, &initiation).unwrap();
            assert_eq!(opened.peer(), a.public());
            let consumed = opened.authenticate(&b.static_static(a.public()).unwrap()).unwrap();
            assert_eq!((consumed.timestamp(), consumed.sender()), (time, 11));
            let (keys_b, response) =
                consumed.create_response(&psk, &PrivateKey::generate(&mut Os), 22).unwrap();
            let (keys_a, index) = created.consume_response(&a, &psk, &response).unwrap();
            assert_eq!(index, 22);
            assert_eq!(keys_a.send, keys_b.receive);
            assert_eq!(keys_a.receive, keys_b.send);
            assert!(created.consume_response(&a, &Secret::new([1; 32]), &response).is_none(), "another psk");
        }
    }

    #[test]
    fn our_initiation_is_answered_by_an_independent_noise() {
        for psk in psks() {
            let (a, b) = (side().own, side().own);
            let ss = a.static_static(b.public()).unwrap();
            let mut peer = snow(&b, None, &psk, false);
            let (created, message) = create_initiation(
                &a,
                b.public(),
                &ss,
                PrivateKey::generate(&mut Os),
                Timestamp::from_bytes([3; 12]),
                1,
            )
            .unwrap();
            let mut payload = [0; 64];
            assert_eq!(peer.read_message(&message[8..116], &mut payload).unwrap(), 12);
            assert_eq!(payload[..12], [3; 12]);
            let mut response = [0; RESPONSE_LEN];
            assert_eq!(peer.write_message(&[], &mut response[12..60]).unwrap(), 48);
            let (keys, _) = created.consume_response(&a, &Secret::new(psk), &response).unwrap();
            let mut transport = peer.into_stateless_transport_mode().unwrap();
            exchange(&keys, &mut transport);
        }
    }

    #[test]
    fn an_independent_initiation_is_answered_by_us() {
        for psk in psks() {
            let (a, b) = (side().own, side().own);
            let mut peer = snow(&a, Some(b.public()), &psk, true);
            let mut message = [0; INITIATION_LEN];
            assert_eq!(peer.write_message(&[9; 12], &mut message[8..116]).unwrap(), 108);
            let opened = open_initiation(&b, &message).unwrap();
            assert_eq!(opened.peer(), a.public());
            let consumed = opened.authenticate(&b.static_static(a.public()).unwrap()).unwrap();
            assert_eq!(consumed.timestamp(), Timestamp::from_bytes([9; 12]));
            let (keys, response) =
                consumed.create_response(&Secret::new(psk), &PrivateKey::generate(&mut Os), 5).unwrap();
            assert_eq!(peer.read_message(&response[12..60], &mut [0; 64]).unwrap(), 0);
            let mut transport = peer.into_stateless_transport_mode().unwrap();
            exchange(&keys, &mut transport);
        }
    }

    fn exchange(keys: &TransportKeys, peer: &mut snow::StatelessTransportState) {
        let mut sealed = [0; 21];
        aead::Key::new(&keys.send).seal_to(4, &[], &[b"hello"], &mut sealed);
        let mut opened = [0; 21];
        assert_eq!(peer.read_message(4, &sealed, &mut opened).unwrap(), 5);
        assert_eq!(&opened[..5], b"hello");
        let mut buffer = [0; 21];
        assert_eq!(peer.write_message(7, b"world", &mut buffer).unwrap(), 21);
        assert_eq!(aead::Key::new(&keys.receive).open_in_place(7, &[], &mut buffer).unwrap(), b"world");
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let (a, b) = (side().own, side().own);
        let ss = a.static_static(b.public()).unwrap();
        let time = Timestamp::from_bytes([0; 12]);
        let (_, message) =
            create_initiation(&a, b.public(), &ss, PrivateKey::generate(&mut Os), time, 1).unwrap();
        for byte in 8..116 {
            let mut forged = message;
            forged[byte] ^= 1;
            let authentic =
                open_initiation(&b, &forged).and_then(|opened| opened.authenticate(&ss)).is_some();
            assert!(!authentic, "byte {byte}");
        }
    }

    #[test]
    fn an_ephemeral_of_low_order_is_refused() {
        let b = side().own;
        let mut message = [0; INITIATION_LEN];
        message[0] = 1;
        assert!(open_initiation(&b, &message).is_none());
    }
}
