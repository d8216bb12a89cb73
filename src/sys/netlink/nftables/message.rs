//! Messages of nftables. Numbers are in network byte order, other than elsewhere in netlink.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_REQUEST};

pub(super) use crate::sys::netlink::raw::{
    Attributes, Message, Reply, attributes, be32, be64, nested, replies, text,
};

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
pub(super) const DELETE_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const DELETE_RULE: u16 = 8;
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
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

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

/// Returns the kind of a message about objects of a family, and what stands before its attributes.
pub(super) fn head(kind: u16, family: u8) -> (u16, [u8; 4]) {
    (u16::from_be_bytes([SUBSYSTEM, kind.to_be_bytes()[1]]), [family, 0, 0, 0])
}

/// Returns a message about objects of a family.
pub(super) fn message(kind: u16, flags: u16, family: u8, attributes: &Attributes) -> Message {
    let (kind, general) = head(kind, family);
    Message::new(kind, flags, general, attributes)
}

/// Returns the message that begins or ends a batch.
pub(super) fn bound(kind: u16) -> Message {
    Message::new(kind, NLM_F_REQUEST, [FAMILY_UNSPEC, 0, 0, SUBSYSTEM], &Attributes::new())
}
