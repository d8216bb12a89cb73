//! What the kernel answers to a request of rtnetlink(7): which messages belong to it, and which is the last.

use std::io;
use std::sync::Once;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;

/// What has come of the replies to a request.
pub(super) struct Replies {
    sequence: u32,
    /// A question ends with its answer; a list ends with a mark, a change with an acknowledgement.
    is_question: bool,
    /// `None` if they are a list that changed meanwhile.
    found: Option<Vec<RouteNetlinkMessage>>,
}

impl Replies {
    /// Returns the replies to the request of this number before any has come.
    pub(super) fn to(sequence: u32, is_question: bool) -> Self {
        Self { sequence, is_question, found: Some(Vec::new()) }
    }

    /// Takes what one call has received, and tells whether that was all.
    ///
    /// What cannot be read in a list is passed over: one odd route of somebody else's would hide all others. What says how the request
    /// went never is, nor the answer to a question, which nothing follows.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn take(&mut self, received: &[u8]) -> io::Result<bool> {
        static SAID: Once = Once::new();
        for (header, _, payload) in messages(received) {
            if header.sequence_number != self.sequence {
                continue;
            }
            if header.flags & NLM_F_DUMP_INTR != 0 {
                self.found = None;
            }
            let kind = header.message_type;
            match payload {
                Ok(NetlinkPayload::Done(done)) if done.code == 0 => return Ok(true),
                Ok(NetlinkPayload::Done(done)) => return Err(io::Error::from_raw_os_error(-done.code)),
                Ok(NetlinkPayload::Error(error)) => {
                    return match error.code {
                        None => Ok(true),
                        Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                    };
                }
                Ok(NetlinkPayload::InnerMessage(reply)) => {
                    if let Some(found) = &mut self.found {
                        found.push(reply);
                    }
                    if self.is_question {
                        return Ok(true);
                    }
                }
                Ok(_) => {}
                Err(error) if self.is_question || [NLMSG_DONE, NLMSG_ERROR].contains(&kind) => {
                    return Err(io::Error::other(error.to_string()));
                }
                Err(error) => SAID.call_once(|| {
                    tracing::debug!(kind, %error, "what the kernel lists cannot all be read, the rest is");
                }),
            }
        }
        Ok(false)
    }

    /// Returns what was taken; `None` if it is a list that changed meanwhile, so that something may lack in it.
    pub(super) fn found(self) -> Option<Vec<RouteNetlinkMessage>> {
        self.found
    }
}

/// A message: its header, the whole of it, and what it says.
pub(super) type Message<'a> =
    (NetlinkHeader, &'a [u8], Result<NetlinkPayload<RouteNetlinkMessage>, DecodeError>);

/// Splits what one call received into its messages.
pub(super) fn messages(received: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let bytes = rest.get(..length).filter(|bytes| bytes.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let header = NetlinkHeader::parse(&NetlinkBuffer::new(bytes)).ok()?;
        Some((header, bytes, NetlinkMessage::deserialize(bytes).map(|message| message.payload)))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, NLM_F_MULTIPART};
    use netlink_packet_route::route::{RouteAttribute, RouteMessage};

    use super::*;

    /// Returns a message to request 7.
    fn bytes(payload: NetlinkPayload<RouteNetlinkMessage>, flags: u16) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.header.flags = NLM_F_MULTIPART | flags;
        message.header.sequence_number = 7;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Returns a route of this metric, which takes an attribute of 8 bytes at its end.
    fn route(metric: u32, flags: u16) -> Vec<u8> {
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::Priority(metric));
        bytes(RouteNetlinkMessage::NewRoute(message).into(), flags)
    }

    /// Returns one whose metric is cut short, so that nothing of it can be read.
    fn odd(flags: u16) -> Vec<u8> {
        let mut bytes = route(0, flags);
        let at = bytes.len() - 8;
        bytes[at..at + 2].copy_from_slice(&6_u16.to_ne_bytes());
        bytes
    }

    fn done() -> Vec<u8> {
        bytes(NetlinkPayload::Done(DoneMessage::default()), 0)
    }

    fn metrics(replies: Replies) -> Vec<u32> {
        let metric = |reply| match reply {
            RouteNetlinkMessage::NewRoute(route) => match route.attributes[..] {
                [RouteAttribute::Priority(metric)] => Some(metric),
                _ => None,
            },
            _ => None,
        };
        replies.found().unwrap().into_iter().filter_map(metric).collect()
    }

    #[test]
    fn what_cannot_be_read_in_a_list_hides_nothing_else() {
        assert!(messages(&odd(0)).all(|(.., payload)| payload.is_err()));
        let mut replies = Replies::to(7, false);
        assert!(!replies.take(&[route(1, 0), odd(0), route(2, 0)].concat()).unwrap());
        assert!(replies.take(&[odd(0), route(3, 0), done()].concat()).unwrap());
        assert_eq!(metrics(replies), [1, 2, 3]);
        // What it says of the list itself counts.
        let mut replies = Replies::to(7, false);
        assert!(replies.take(&[route(1, 0), odd(NLM_F_DUMP_INTR), done()].concat()).unwrap());
        assert!(replies.found().is_none());
    }

    #[test]
    fn what_says_how_a_request_went_must_be_read() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let mut verdict = odd(0);
            verdict[4..6].copy_from_slice(&kind.to_ne_bytes());
            verdict[..4].copy_from_slice(&18_u32.to_ne_bytes());
            verdict.truncate(18);
            assert!(Replies::to(7, false).take(&verdict).is_err(), "{kind}");
            assert!(!Replies::to(8, false).take(&verdict).unwrap(), "another's");
        }
        assert!(Replies::to(7, true).take(&odd(0)).is_err(), "no other answer follows");
        assert!(Replies::to(7, true).take(&route(5, 0)).unwrap());
    }
}
