//! Messages and attributes of nftables as bytes. Numbers are in network byte order, other than elsewhere in netlink.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_REQUEST};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u8 = 10;

/// `NFNLGRP_NFTABLES`, the seventh group.
pub(super) const GROUP_NFTABLES: u32 = 1 << 6;

pub(super) const FAMILY_UNSPEC: u8 = 0;
pub(super) const FAMILY_INET: u8 = 1;
pub(super) const FAMILY_IP: u8 = 2;
pub(super) const FAMILY_IP6: u8 = 10;

pub(super) const APPEND: u16 = NLM_F_APPEND;

// linux/netfilter/nfnetlink.h: NFNL_MSG_BATCH_*
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

// enum nf_tables_msg_types
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const NEW_SET: u16 = 9;
pub(super) const NEW_ELEMENTS: u16 = 12;
pub(super) const GET_ELEMENTS: u16 = 13;
pub(super) const DELETE_ELEMENTS: u16 = 14;
pub(super) const NEW_OBJECT: u16 = 18;
pub(super) const GET_OBJECT: u16 = 19;

// enum nft_table_attributes
pub(super) const TABLE_NAME: u16 = 1;

// enum nft_chain_attributes, enum nft_hook_attributes
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

// enum nft_rule_attributes
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;

// enum nft_set_attributes, enum nft_set_flags; types as `nft` prints them
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_INTERVAL: u32 = 0x4;
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;

// enum nft_set_elem_list_attributes, enum nft_set_elem_attributes, enum nft_set_elem_flags
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS_LIST: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_FLAGS: u16 = 3;
pub(super) const ELEMENT_INTERVAL_END: u32 = 0x1;

// enum nft_object_attributes, enum nft_counter_attributes
pub(super) const OBJECT_TABLE: u16 = 1;
pub(super) const OBJECT_NAME: u16 = 2;
pub(super) const OBJECT_TYPE: u16 = 3;
pub(super) const OBJECT_DATA: u16 = 4;
pub(super) const OBJECT_TYPE_COUNTER: u32 = 1;
pub(super) const COUNTER_BYTES: u16 = 1;
pub(super) const COUNTER_PACKETS: u16 = 2;

// enum nft_data_attributes, enum nft_list_attributes; verdicts of linux/netfilter.h
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const VERDICT_DROP: u32 = 0;
pub(super) const VERDICT_ACCEPT: u32 = 1;

/// `NLMSG_ERROR`, which is an acknowledgement if its code is 0.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEADER_LEN: usize = 16;
const GENERAL_LEN: usize = 4;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// A list of attributes.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("values are shorter than 64 KiB");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// A message to the kernel, without its sequence number.
#[derive(Debug)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: u16, family: u8, attributes: &Attributes) -> Self {
        let kind = u16::from_be_bytes([SUBSYSTEM, kind.to_be_bytes()[1]]);
        Self { kind, flags, body: [&[family, 0, 0, 0], &attributes.0[..]].concat() }
    }

    /// Returns the message that begins or ends a batch.
    pub(super) fn bound(kind: u16) -> Self {
        Self { kind, flags: NLM_F_REQUEST, body: vec![FAMILY_UNSPEC, 0, 0, SUBSYSTEM] }
    }

    pub(super) fn append_to(&self, bytes: &mut Vec<u8>, sequence: u32, flags: u16) {
        let len = u32::try_from(HEADER_LEN + self.body.len()).expect("messages are shorter than 4 GiB");
        bytes.extend(len.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.body);
    }
}

/// A message from the kernel.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The negative errno of a refusal; 0 for an acknowledgement and at the end of a list.
    pub(super) error: Option<i32>,
    pub(super) attributes: &'a [u8],
}

/// Splits what one call received.
pub(super) fn replies(received: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_LEN] = rest.first_chunk()?;
        let len = usize::try_from(u32::from_ne_bytes(*header.first_chunk()?)).ok()?;
        let body = rest.get(HEADER_LEN..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (kind, flags) = (number(4), number(6));
        let sequence = u32::from_ne_bytes(*header[8..].first_chunk()?);
        let error = [ERROR, DONE]
            .contains(&kind)
            .then(|| body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)));
        Some(Reply { flags, sequence, error, attributes: body.get(GENERAL_LEN..).unwrap_or_default() })
    })
}

/// Splits a list of attributes into their kinds and values.
pub(super) fn attributes(list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_MASK, value))
    })
}

/// Returns the value of the first attribute of this kind.
pub(super) fn nested(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find_map(|(found, value)| (found == kind).then_some(value))
}

pub(super) fn be32(list: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(*nested(list, kind)?.first_chunk()?))
}

pub(super) fn be64(list: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(*nested(list, kind)?.first_chunk()?))
}

pub(super) fn text(list: &[u8], kind: u16) -> Option<String> {
    let value = nested(list, kind)?;
    let value = value.split(|byte| *byte == 0).next()?;
    String::from_utf8(value.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_written() {
        let inner = Attributes::new().be64(5, 1 << 40).text(6, "name");
        let list = Attributes::new().be32(1, 7).nest(2, inner).bytes(3, &[9]);
        assert_eq!(list.0.len() % 4, 0);
        assert_eq!(be32(&list.0, 1), Some(7));
        let inner = nested(&list.0, 2).unwrap();
        assert_eq!((be64(inner, 5), text(inner, 6).as_deref()), (Some(1 << 40), Some("name")));
        assert_eq!(nested(&list.0, 3), Some(&[9][..]));
        assert_eq!(nested(&list.0, 4), None);
    }

    #[test]
    fn broken_lengths_end_lists() {
        for bytes in [&[0; 3][..], &[0; 4], &[3, 0, 1, 0], &[9, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        let mut message = Vec::new();
        Message::bound(BATCH_BEGIN).append_to(&mut message, 1, 0);
        assert_eq!(replies(&message).count(), 1);
        for len in [0_u32, 15, 21, u32::MAX] {
            message[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(replies(&message).count(), 0, "{len}");
        }
    }
}
