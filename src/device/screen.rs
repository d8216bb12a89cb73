//! Handshake messages on their way to the control thread. Under load a flood of them is turned away here, by whichever thread it arrives at.

use arrayvec::ArrayVec;

use super::shared::{HandshakeDatagram, Shared};
use super::sockets::{Patience, send_all};
use crate::crypto::random::{Os, Random};
use crate::sys::udp::{Datagram, SendBatch, UdpSocket};
use crate::wireguard::constants::HANDSHAKE_DS;
use crate::wireguard::dropped::Dropped;
use crate::wireguard::endpoint::Endpoint;
use crate::wireguard::interface::View;
use crate::wireguard::load::{RATE_LIMITER_ENTRIES, Screened, screen};
use crate::wireguard::messages::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};
use crate::wireguard::ratelimiter::RateLimiter;
use crate::wireguard::time::Instant;

/// Cookie replies that are sent at once.
const BATCH: usize = 64;

pub(super) struct Screen {
    limiter: RateLimiter,
    /// Cookie replies that are to be sent.
    replies: ArrayVec<(Endpoint, [u8; COOKIE_REPLY_LEN]), BATCH>,
    batch: SendBatch,
}

impl Screen {
    pub(super) fn new() -> Self {
        let mut seed = [0; 16];
        Os.fill(&mut seed);
        Self {
            limiter: RateLimiter::new(seed, RATE_LIMITER_ENTRIES),
            replies: ArrayVec::new(),
            batch: SendBatch::new(BATCH),
        }
    }

    /// Hands a handshake message to the control thread, unless it can be seen here that it leads nowhere.
    pub(super) fn pass(
        &mut self,
        shared: &Shared,
        view: &View,
        message: &[u8],
        from: Endpoint,
        socket: &UdpSocket,
        now: Instant,
    ) -> Result<(), Dropped> {
        let index = |at: usize| message.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let is_known = |at: usize| index(at).is_some_and(|index| view.knows(index));
        match message.len() {
            RESPONSE_LEN if !is_known(8) => return Err(Dropped::BadResponse),
            COOKIE_REPLY_LEN if !is_known(4) => return Err(Dropped::BadCookieReply),
            COOKIE_REPLY_LEN => {}
            _ if view.load().is_heavy(shared.handshakes.len(), now) => {
                let checker = view.checker().ok_or(Dropped::NoPrivateKey)?;
                match screen(checker, &mut self.limiter, message, from.addr, now, &mut Os) {
                    Screened::Admitted => {}
                    Screened::Dropped(reason) => return Err(reason),
                    Screened::Answered(reply) => {
                        if self.replies.is_full() {
                            self.reply(shared, socket);
                        }
                        self.replies.push((from, reply));
                        view.load().note_in_vain(now);
                        return Err(Dropped::CookieSent);
                    }
                }
            }
            _ => {}
        }
        let mut bytes = [0; INITIATION_LEN];
        bytes[..message.len()].copy_from_slice(message);
        let datagram = HandshakeDatagram { bytes, len: message.len(), from };
        shared.handshakes.push(datagram).map_err(|_| Dropped::HandshakeQueueFull)?;
        shared.wake_control();
        Ok(())
    }

    /// Sends the cookie replies that are due.
    pub(super) fn reply(&mut self, shared: &Shared, socket: &UdpSocket) {
        let Self { replies, batch, .. } = self;
        if replies.is_empty() {
            return;
        }
        let mut datagrams: ArrayVec<Datagram<'_>, BATCH> = replies
            .iter()
            .map(|(to, reply)| Datagram {
                to: to.addr,
                from: to.source.map(|source| source.ip),
                ds: HANDSHAKE_DS,
                hop_limit: None,
                payload: reply,
                segment: 0,
            })
            .collect();
        send_all(batch, socket, &mut datagrams, &shared.drops, Patience::NONE, |_, _| {});
        drop(datagrams);
        replies.clear();
    }
}
