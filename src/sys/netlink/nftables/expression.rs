//! What rules are made of: comparisons that end a rule where they do not hold, and what is done to the packets that are left.
//!
//! A rule loads into register 1 and compares, again and again. Names of interfaces are compared rather than indices: a rule goes on to hold
//! for an interface that is made anew.

use crate::sys::fault;

use super::message::{
    Attributes, DATA_VALUE, LIST_ELEMENT, VERDICT_ACCEPT, VERDICT_DROP, attributes, be32, nested, text,
};

/// Which of a packet's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A part of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression<'a> {
    /// The packet came in by this interface, or leaves by it.
    Interface(Side, &'a str),
    /// It came in by another one, or leaves by another one.
    OtherInterface(Side, &'a str),
    /// Its mark is another one.
    OtherMark(u32),
    /// It is of this family, and the address is in the set.
    In {
        /// Which address.
        side: Side,
        /// The family.
        is_ipv6: bool,
        /// The set, of the rule's own table.
        set: &'a str,
    },
    /// It is a UDP datagram to this port.
    UdpTo(u16),
    /// It opens a TCP connection: SYN is set, RST is not.
    TcpOpening,
    /// Counts the packet.
    Count(&'a str),
    /// Lowers the MSS that the sender of a TCP segment announces to what fits into the MTU of the routes there and back. From Linux 4.14 on.
    ClampMss,
    /// Replaces the source of a connection that begins by the address of the interface that it leaves by, and a port at random. In a chain
    /// made by [`super::Batch::add_nat_chain`] only.
    Masquerade,
    /// The table has no objection; others may.
    Accept,
    /// The packet is gone.
    Drop,
}

// enum nft_registers: the verdict, and the first register of 16 bytes.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

// enum nft_expr_attributes, nft_data_attributes, nft_verdict_attributes
const NAME: u16 = 1;
const DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

// enum nft_cmp_ops
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

// enum nft_payload_bases
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

// enum nft_meta_keys
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const RANDOM_FULLY: u32 = 0x10;
/// `NFT_RT_TCPMSS`.
const RT_TCPMSS: u32 = 3;
/// `NFT_BYTEORDER_HTON`.
const HTON: u32 = 1;
/// `NFT_EXTHDR_OP_TCPOPT`.
const TCP_OPTION: u32 = 1;
/// `TCPOPT_MAXSEG`: kind, length, and the number behind them.
const MAXSEG: u8 = 2;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// `IFNAMSIZ`.
const IFNAME_LEN: usize = 16;

impl Expression<'_> {
    /// Appends the kernel's expressions for this one.
    pub(super) fn encode(&self, list: Attributes) -> Attributes {
        match *self {
            Self::Interface(side, name) => interface(list, side, EQUAL, name),
            Self::OtherInterface(side, name) => interface(list, side, NOT_EQUAL, name),
            Self::OtherMark(mark) => compare(meta(list, META_MARK), NOT_EQUAL, &mark.to_ne_bytes()),
            Self::In { side, is_ipv6, set } => {
                let (family, offset, len) = match (is_ipv6, side) {
                    (false, Side::Source) => (NFPROTO_IPV4, 12, 4),
                    (false, Side::Destination) => (NFPROTO_IPV4, 16, 4),
                    (true, Side::Source) => (NFPROTO_IPV6, 8, 16),
                    (true, Side::Destination) => (NFPROTO_IPV6, 24, 16),
                };
                let list = compare(meta(list, META_NFPROTO), EQUAL, &[family]);
                let lookup = Attributes::new().text(1, set).be32(2, REGISTER);
                push(payload(list, NETWORK, offset, len), "lookup", lookup)
            }
            Self::UdpTo(port) => {
                let list = compare(meta(list, META_L4PROTO), EQUAL, &[UDP]);
                compare(payload(list, TRANSPORT, 2, 2), EQUAL, &port.to_be_bytes())
            }
            Self::TcpOpening => {
                let list = compare(meta(list, META_L4PROTO), EQUAL, &[TCP]);
                let mask = Attributes::new()
                    .be32(1, REGISTER)
                    .be32(2, REGISTER)
                    .be32(3, 1)
                    .nest(4, Attributes::new().bytes(DATA_VALUE, &[SYN | RST]))
                    .nest(5, Attributes::new().bytes(DATA_VALUE, &[0]));
                compare(push(payload(list, TRANSPORT, 13, 1), "bitwise", mask), EQUAL, &[SYN])
            }
            Self::Count(counter) => push(list, "objref", Attributes::new().be32(1, COUNTER).text(2, counter)),
            Self::ClampMss => {
                // Where it is to fail the kernel is asked for what none has.
                let key = if fault::is_due(fault::Call::TcpMss) { u32::MAX } else { RT_TCPMSS };
                let list = push(list, "rt", Attributes::new().be32(1, REGISTER).be32(2, key));
                let swap =
                    Attributes::new().be32(1, REGISTER).be32(2, REGISTER).be32(3, HTON).be32(4, 2).be32(5, 2);
                let write = Attributes::new()
                    .bytes(2, &[MAXSEG])
                    .be32(3, 2)
                    .be32(4, 2)
                    .be32(6, TCP_OPTION)
                    .be32(7, REGISTER);
                push(push(list, "byteorder", swap), "exthdr", write)
            }
            Self::Masquerade => push(list, "masq", Attributes::new().be32(1, RANDOM_FULLY)),
            Self::Accept => verdict(list, VERDICT_ACCEPT),
            Self::Drop => verdict(list, VERDICT_DROP),
        }
    }
}

/// Tells whether a rule, by its list of expressions, drops or refuses every packet that comes to it.
pub(super) fn refuses_all(expressions: &[u8]) -> bool {
    let parts = attributes(expressions).filter_map(|(_, part)| Some((text(part, NAME)?, nested(part, DATA))));
    let mut parts = parts.peekable();
    while let Some((name, data)) = parts.next() {
        let is_last = parts.peek().is_none();
        let data = data.unwrap_or_default();
        let is_good = match name.as_str() {
            "counter" | "log" => !is_last,
            "reject" => true,
            "immediate" => {
                let verdict = nested(data, 2).and_then(|data| nested(data, DATA_VERDICT));
                verdict.and_then(|verdict| be32(verdict, VERDICT_CODE)) == Some(VERDICT_DROP)
            }
            // As iptables has it (`enum nft_target_attributes`).
            "target" => text(data, 1).is_some_and(|name| name == "REJECT"),
            _ => false,
        };
        if !is_good || is_last {
            return is_good;
        }
    }
    false
}

fn push(list: Attributes, name: &str, data: Attributes) -> Attributes {
    list.nest(LIST_ELEMENT, Attributes::new().text(NAME, name).nest(DATA, data))
}

fn meta(list: Attributes, key: u32) -> Attributes {
    push(list, "meta", Attributes::new().be32(1, REGISTER).be32(2, key))
}

fn payload(list: Attributes, base: u32, offset: u32, len: u32) -> Attributes {
    let load = Attributes::new().be32(1, REGISTER).be32(2, base).be32(3, offset).be32(4, len);
    push(list, "payload", load)
}

fn compare(list: Attributes, operator: u32, value: &[u8]) -> Attributes {
    let value = Attributes::new().bytes(DATA_VALUE, value);
    push(list, "cmp", Attributes::new().be32(1, REGISTER).be32(2, operator).nest(3, value))
}

fn interface(list: Attributes, side: Side, operator: u32, name: &str) -> Attributes {
    let key = match side {
        Side::Source => META_IIFNAME,
        Side::Destination => META_OIFNAME,
    };
    let mut padded = [0; IFNAME_LEN];
    let len = name.len().min(IFNAME_LEN - 1);
    padded[..len].copy_from_slice(&name.as_bytes()[..len]);
    compare(meta(list, key), operator, &padded)
}

fn verdict(list: Attributes, code: u32) -> Attributes {
    let code = Attributes::new().be32(VERDICT_CODE, code);
    let data = Attributes::new().nest(DATA_VERDICT, code);
    push(list, "immediate", Attributes::new().be32(1, VERDICT).nest(2, data))
}
