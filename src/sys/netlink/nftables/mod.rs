//! nftables over netlink (`linux/netfilter/nf_tables.h`), without the `nft` program: one table, its chains, rules, counters and sets of
//! addresses, changed by batches that are carried out whole or not at all.

mod expression;
mod message;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::str::FromStr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

pub use expression::{Expression, Side};
use message::{Attributes, FAMILY_INET, Message, Reply, attributes, be32, be64, nested, text};

use super::RECEIVE_LEN;
use super::raw::Requests;
use crate::sys::fault;

/// A range of addresses of one family, both ends included.
pub type Range = (IpAddr, IpAddr);

/// Ranges in one message: the length of an attribute has 16 bits, and a range of IPv6 addresses takes 72 bytes.
const RANGES_MAX: usize = 800;

/// The longest name of a table or chain (`NFT_NAME_MAXLEN`, with its end).
const NAME_MAX: usize = 255;

/// `NFTNL_UDATA_RULE_COMMENT` of libnftnl: what follows in a rule's user data is a comment.
const COMMENT: u8 = 0;

/// A hook in a packet's way, for all of which there is one numbering in the families `inet`, `ip` and `ip6` (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets for this host.
    Input,
    /// Packets for others.
    Forward,
    /// All packets that leave, with their way out known.
    Postrouting,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Self::Input => 1,
            Self::Forward => 2,
            Self::Postrouting => 4,
        }
    }
}

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A family of tables whose chains see packets for this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    const ALL: [Self; 3] = [Self::Inet, Self::Ip, Self::Ip6];

    /// Returns its name as `nft` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Inet => FAMILY_INET,
            Self::Ip => message::FAMILY_IP,
            Self::Ip6 => message::FAMILY_IP6,
        }
    }
}

/// A chain of any table, written as `nft` wants it: `inet filter input`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The chain.
    pub name: String,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family.name(), self.table, self.name)
    }
}

impl FromStr for Chain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str =
            "family, table and chain are needed, as inet filter input; families are inet, ip and ip6";
        let mut words = text.split_whitespace();
        let (family, table, name) = (words.next(), words.next(), words.next());
        let family = Family::ALL.into_iter().find(|known| Some(known.name()) == family).ok_or(RULE)?;
        let is_name = |name: &&str| name.len() <= NAME_MAX;
        match (table.filter(is_name), name.filter(is_name), words.next()) {
            (Some(table), Some(name), None) => {
                Ok(Self { family, table: table.to_owned(), name: name.to_owned() })
            }
            _ => Err(RULE),
        }
    }
}

/// A rule that bears a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The chain that it is in.
    pub chain: Chain,
    /// The number that the kernel gave it.
    pub handle: u64,
    /// The comment.
    pub comment: String,
}

/// Why a batch was not carried out: what in it was refused, and the kernel's reason.
#[derive(Debug)]
pub struct Refused {
    what: String,
    source: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Changes of one table that take effect at one moment.
#[derive(Debug)]
pub struct Batch<'a> {
    family: Family,
    table: &'a str,
    messages: Vec<(String, Message)>,
}

impl<'a> Batch<'a> {
    /// Returns a batch without changes for a table of the family `inet`.
    pub fn new(table: &'a str) -> Self {
        Self::of(Family::Inet, table)
    }

    /// Returns a batch without changes.
    pub fn of(family: Family, table: &'a str) -> Self {
        Self { family, table, messages: Vec::new() }
    }

    /// Tells whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes the table if it is not there.
    pub fn add_table(&mut self) {
        let table = Attributes::new().text(message::TABLE_NAME, self.table);
        self.push(format!("table inet {}", self.table), message::NEW_TABLE, NLM_F_CREATE, table);
    }

    /// Removes the table and all that is in it. It must be there.
    pub fn remove_table(&mut self) {
        let table = Attributes::new().text(message::TABLE_NAME, self.table);
        self.push(format!("removing table inet {}", self.table), message::DELETE_TABLE, 0, table);
    }

    /// Makes a counter that begins at `count`.
    pub fn add_counter(&mut self, name: &str, count: Count) {
        let counter = Attributes::new()
            .text(message::OBJECT_TABLE, self.table)
            .text(message::OBJECT_NAME, name)
            .be32(message::OBJECT_TYPE, message::OBJECT_TYPE_COUNTER)
            .nest(
                message::OBJECT_DATA,
                Attributes::new()
                    .be64(message::COUNTER_BYTES, count.bytes)
                    .be64(message::COUNTER_PACKETS, count.packets),
            );
        self.push(format!("counter {name}"), message::NEW_OBJECT, NLM_F_CREATE, counter);
    }

    /// Makes a set of address ranges.
    pub fn add_set(&mut self, name: &str, is_ipv6: bool) {
        let (key_type, len) = if is_ipv6 { (message::TYPE_IPV6, 16) } else { (message::TYPE_IPV4, 4) };
        let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let set = Attributes::new()
            .text(message::SET_TABLE, self.table)
            .text(message::SET_NAME, name)
            .be32(message::SET_FLAGS, message::SET_INTERVAL)
            .be32(message::SET_KEY_TYPE, key_type)
            .be32(message::SET_KEY_LEN, len)
            .be32(message::SET_ID, id);
        self.push(format!("set {name}"), message::NEW_SET, NLM_F_CREATE, set);
    }

    /// Adds ranges to a set; none may touch another.
    pub fn add_ranges(&mut self, set: &str, ranges: &[Range]) {
        self.push_ranges(message::NEW_ELEMENTS, NLM_F_CREATE, set, ranges);
    }

    /// Removes ranges from a set. They must be there, each as it was added.
    pub fn remove_ranges(&mut self, set: &str, ranges: &[Range]) {
        self.push_ranges(message::DELETE_ELEMENTS, 0, set, ranges);
    }

    fn push_ranges(&mut self, kind: u16, flags: u16, set: &str, ranges: &[Range]) {
        for part in ranges.chunks(RANGES_MAX) {
            let mut elements = Attributes::new();
            for &(first, last) in part {
                elements = elements.nest(message::LIST_ELEMENT, element(first, false));
                // A range without an end reaches to the last address of the family.
                if let Some(end) = successor(last) {
                    elements = elements.nest(message::LIST_ELEMENT, element(end, true));
                }
            }
            let list = Attributes::new()
                .text(message::ELEMENTS_TABLE, self.table)
                .text(message::ELEMENTS_SET, set)
                .nest(message::ELEMENTS_LIST, elements);
            self.push(format!("addresses of set {set}"), kind, flags, list);
        }
    }

    /// Makes a chain that sees the packets of `hook`, before other chains of a higher `priority`, and accepts what no rule decides about.
    pub fn add_chain(&mut self, name: &str, hook: Hook, priority: i32) {
        self.push_chain(name, "filter", hook, priority);
    }

    /// Makes a chain that sees the first packet of each connection at `hook`, and may translate its addresses. From Linux 5.2 on.
    pub fn add_nat_chain(&mut self, name: &str, hook: Hook, priority: i32) {
        self.push_chain(name, "nat", hook, priority);
    }

    fn push_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        let place = Attributes::new()
            .be32(message::HOOK_NUMBER, hook.number())
            .be32(message::HOOK_PRIORITY, priority.cast_unsigned());
        let chain = Attributes::new()
            .text(message::CHAIN_TABLE, self.table)
            .text(message::CHAIN_NAME, name)
            .nest(message::CHAIN_HOOK, place)
            .be32(message::CHAIN_POLICY, message::VERDICT_ACCEPT)
            .text(message::CHAIN_TYPE, kind);
        self.push(format!("chain {name}"), message::NEW_CHAIN, NLM_F_CREATE, chain);
    }

    /// Appends a rule to a chain: expressions from left to right, until one does not match. `what` names it where it is refused.
    pub fn add_rule(&mut self, chain: &str, what: &str, expressions: &[Expression<'_>]) {
        let list = expressions.iter().fold(Attributes::new(), |list, expression| expression.encode(list));
        let rule = Attributes::new()
            .text(message::RULE_TABLE, self.table)
            .text(message::RULE_CHAIN, chain)
            .nest(message::RULE_EXPRESSIONS, list);
        let what = format!("rule of chain {chain} ({what})");
        self.push(what, message::NEW_RULE, NLM_F_CREATE | message::APPEND, rule);
    }

    /// Puts a rule at the head of a chain, with a comment as `nft` shows it.
    pub fn insert_rule(&mut self, chain: &str, comment: &str, expressions: &[Expression<'_>]) {
        let list = expressions.iter().fold(Attributes::new(), |list, expression| expression.encode(list));
        let len = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
        let data = [&[COMMENT, len], comment.as_bytes(), &[0]].concat();
        let rule = Attributes::new()
            .text(message::RULE_TABLE, self.table)
            .text(message::RULE_CHAIN, chain)
            .nest(message::RULE_EXPRESSIONS, list)
            .bytes(message::RULE_USERDATA, &data);
        self.push(format!("rule of chain {chain} ({comment})"), message::NEW_RULE, NLM_F_CREATE, rule);
    }

    /// Removes a rule by the number that the kernel gave it. It must be there.
    pub fn remove_rule(&mut self, chain: &str, handle: u64) {
        let rule = Attributes::new()
            .text(message::RULE_TABLE, self.table)
            .text(message::RULE_CHAIN, chain)
            .be64(message::RULE_HANDLE, handle);
        self.push(format!("removing a rule of chain {chain}"), message::DELETE_RULE, 0, rule);
    }

    fn push(&mut self, what: String, kind: u16, flags: u16, attributes: Attributes) {
        let message = message::message(kind, NLM_F_REQUEST | flags, self.family.number(), &attributes);
        self.messages.push((what, message));
    }
}

/// A socket for requests.
pub struct Nftables(Requests);

impl Nftables {
    /// Opens a socket.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` if the kernel has no netfilter; if no descriptor is left.
    pub fn open() -> io::Result<Self> {
        fault::check(fault::Call::Netfilter)?;
        let mut requests = Requests::open(NETLINK_NETFILTER)?;
        // A refusal need not repeat what it refuses.
        let _ = requests.socket().set_cap_ack(true);
        Ok(Self(requests))
    }

    /// Returns the socket's number, which the kernel names in notices of what this socket has changed.
    pub fn port(&self) -> u32 {
        self.0.port()
    }

    /// Carries out all of a batch or nothing.
    ///
    /// # Errors
    /// Names what was refused. `EPERM` without `CAP_NET_ADMIN`; `EOPNOTSUPP` if the kernel has no nftables; `ENOENT` for what is not there, or
    /// for an expression that the kernel does not know.
    pub fn commit(&mut self, batch: &Batch<'_>) -> Result<(), Refused> {
        let Some(last) = batch.messages.len().checked_sub(1) else { return Ok(()) };
        let Self(requests) = self;
        let first = requests.next();
        let mut bytes = Vec::new();
        message::bound(message::BATCH_BEGIN).append_to(&mut bytes, first, 0);
        let mut acknowledged = first;
        for (at, (_, message)) in batch.messages.iter().enumerate() {
            acknowledged = requests.next();
            message.append_to(&mut bytes, acknowledged, if at == last { NLM_F_ACK } else { 0 });
        }
        let end = requests.next();
        message::bound(message::BATCH_END).append_to(&mut bytes, end, 0);
        let refused = |sequence: u32, source: io::Error| {
            let at = usize::try_from(sequence.wrapping_sub(first).wrapping_sub(1)).ok();
            let named = at.and_then(|at| batch.messages.get(at)).map(|(what, _)| what.clone());
            Refused {
                what: named.unwrap_or_else(|| format!("table {} {}", batch.family.name(), batch.table)),
                source,
            }
        };
        // The kernel takes a batch in one piece.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&*requests.socket(), bytes.len() * 2);
        requests.socket().send(&bytes, 0).map_err(|error| refused(first, error))?;

        let mut outcome = Ok(());
        loop {
            let mut received = Vec::with_capacity(RECEIVE_LEN);
            requests.socket().recv(&mut received, 0).map_err(|error| refused(first, error))?;
            for reply in message::replies(&received) {
                let is_ours = reply.sequence.wrapping_sub(first) <= end.wrapping_sub(first);
                let Some(code) = reply.error.filter(|_| is_ours) else { continue };
                if code != 0 && outcome.is_ok() {
                    outcome = Err(refused(reply.sequence, io::Error::from_raw_os_error(-code)));
                }
                // What is refused as a whole is answered at its beginning, alone.
                if [first, acknowledged].contains(&reply.sequence) {
                    return outcome;
                }
            }
        }
    }

    /// Returns table, chains and rules as the kernel tells of them, with the handles that it numbers them by: equal as long as nobody has
    /// changed anything. Sets' elements and counters are not among it. `None` if there is no such table.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn fingerprint(&mut self, table: &str) -> io::Result<Option<Vec<Vec<u8>>>> {
        let name = Attributes::new().text(message::TABLE_NAME, table);
        let mut all = match self.request(message::GET_TABLE, 0, &name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            found => found?,
        };
        for kind in [message::GET_CHAIN, message::GET_RULE] {
            let listed = self.request(kind, NLM_F_DUMP, &name)?;
            all.extend(listed.into_iter().filter(|message| is_of(message, table)));
        }
        Ok(Some(all))
    }

    /// Returns the counters of a table by their names; none if there is no such table.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn counters(&mut self, table: &str) -> io::Result<BTreeMap<String, Count>> {
        let filter = Attributes::new().text(message::OBJECT_TABLE, table);
        let listed = self.request(message::GET_OBJECT, NLM_F_DUMP, &filter)?;
        let counter = |message: &Vec<u8>| {
            let data = |kind| nested(message, message::OBJECT_DATA).and_then(|data| be64(data, kind));
            let count =
                Count { packets: data(message::COUNTER_PACKETS)?, bytes: data(message::COUNTER_BYTES)? };
            Some((text(message, message::OBJECT_NAME)?, count))
        };
        Ok(listed.iter().filter(|message| is_of(message, table)).filter_map(counter).collect())
    }

    /// Returns the ranges of a set in ascending order.
    ///
    /// # Errors
    /// `ENOENT` if there is no such set.
    pub fn ranges(&mut self, table: &str, set: &str) -> io::Result<Vec<Range>> {
        let which = Attributes::new().text(message::ELEMENTS_TABLE, table).text(message::ELEMENTS_SET, set);
        let listed = self.request(message::GET_ELEMENTS, NLM_F_DUMP, &which)?;
        let mut bounds = Vec::new();
        for message in &listed {
            let elements = nested(message, message::ELEMENTS_LIST).unwrap_or_default();
            bounds.extend(attributes(elements).filter_map(|(_, element)| bound(element)));
        }
        Ok(ranges_of(bounds))
    }

    /// Returns the chains of all tables that see packets for this host and drop or refuse what they do not accept, by default or by their last
    /// rule. Another table cannot overrule them.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn dropping_input_chains(&mut self) -> io::Result<Vec<Chain>> {
        let mut found = Vec::new();
        for family in Family::ALL {
            let number = family.number();
            for chain in self.request_of(number, message::GET_CHAIN, NLM_F_DUMP, &Attributes::new())? {
                let hook = nested(&chain, message::CHAIN_HOOK).unwrap_or_default();
                if be32(hook, message::HOOK_NUMBER) != Some(Hook::Input.number()) {
                    continue;
                }
                let names = (text(&chain, message::CHAIN_TABLE), text(&chain, message::CHAIN_NAME));
                let (Some(table), Some(name)) = names else { continue };
                let by_default = be32(&chain, message::CHAIN_POLICY) == Some(message::VERDICT_DROP);
                let chain = Chain { family, table, name };
                if by_default || self.ends_in_refusal(&chain)? {
                    found.push(chain);
                }
            }
        }
        Ok(found)
    }

    fn ends_in_refusal(&mut self, chain: &Chain) -> io::Result<bool> {
        let rules = self.rules(chain.family, Some(chain))?;
        let last = rules.last().and_then(|rule| nested(rule, message::RULE_EXPRESSIONS));
        Ok(last.is_some_and(expression::refuses_all))
    }

    /// Returns the rules with comments that begin like this, of a chain or of all.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn marked(&mut self, mark: &str, chain: Option<&Chain>) -> io::Result<Vec<Marked>> {
        let mut found = Vec::new();
        for family in Family::ALL {
            if chain.is_some_and(|chain| chain.family != family) {
                continue;
            }
            for rule in self.rules(family, chain)? {
                let comment = nested(&rule, message::RULE_USERDATA).and_then(comment);
                let names = (text(&rule, message::RULE_TABLE), text(&rule, message::RULE_CHAIN));
                let handle = be64(&rule, message::RULE_HANDLE);
                let (Some(comment), (Some(table), Some(name)), Some(handle)) = (comment, names, handle)
                else {
                    continue;
                };
                if comment.starts_with(mark) {
                    found.push(Marked { chain: Chain { family, table, name }, handle, comment });
                }
            }
        }
        Ok(found)
    }

    /// Returns the rules of a chain in their order, or those of all of a family.
    fn rules(&mut self, family: Family, chain: Option<&Chain>) -> io::Result<Vec<Vec<u8>>> {
        let mut which = Attributes::new();
        if let Some(chain) = chain {
            which = which.text(message::RULE_TABLE, &chain.table).text(message::RULE_CHAIN, &chain.name);
        }
        let mut rules = self.request_of(family.number(), message::GET_RULE, NLM_F_DUMP, &which)?;
        // Before Linux 4.12 the kernel does not choose.
        rules.retain(|rule| {
            chain.is_none_or(|chain| {
                text(rule, message::RULE_TABLE).is_some_and(|table| table == chain.table)
                    && text(rule, message::RULE_CHAIN).is_some_and(|name| name == chain.name)
            })
        });
        Ok(rules)
    }

    fn request(&mut self, kind: u16, flags: u16, attributes: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        self.request_of(FAMILY_INET, kind, flags, attributes)
    }

    /// Asks for one thing, or for a list by `NLM_F_DUMP`, and returns the attributes of each reply.
    fn request_of(
        &mut self,
        family: u8,
        kind: u16,
        flags: u16,
        attributes: &Attributes,
    ) -> io::Result<Vec<Vec<u8>>> {
        let (kind, general) = message::head(kind, family);
        let replies = self.0.ask(kind, flags, general, attributes)?;
        Ok(replies.into_iter().map(|mut reply| std::mem::take(&mut *reply)).collect())
    }
}

/// A socket that tells of changes of tables.
pub struct Changes {
    socket: Socket,
    /// The socket of whose changes it does not tell.
    ignored: u32,
}

impl Changes {
    /// Opens a socket that tells of changes from now on, but for those that the socket of the number `ignored` makes, see
    /// [`Nftables::port`].
    ///
    /// # Errors
    /// As [`Nftables::open`].
    pub fn open(ignored: u32) -> io::Result<Self> {
        let mut socket = open()?;
        socket.bind(&SocketAddr::new(0, message::GROUP_NFTABLES))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, ignored })
    }

    /// Tells whether a table of this name, or one of these chains, may have changed since the last call.
    pub fn take(&mut self, table: &str, chains: &[Chain]) -> bool {
        let concerns_us = |told: &Reply<'_>| {
            is_of(told.attributes, table) || chains.iter().any(|chain| is_about(told, chain))
        };
        let mut has_changed = false;
        let mut buffer = Vec::with_capacity(RECEIVE_LEN);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) if fault::check(fault::Call::Notices).is_err() => {}
                Ok(_) => {
                    has_changed |=
                        message::replies(&buffer).any(|told| told.port != self.ignored && concerns_us(&told));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return has_changed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: the kernel had more to tell than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn open() -> io::Result<Socket> {
    fault::check(fault::Call::Netfilter)?;
    Socket::new(NETLINK_NETFILTER)
}

/// Tells whether a message is about this table or something in it. The first attribute of each kind names the table.
fn is_of(message: &[u8], table: &str) -> bool {
    text(message, message::TABLE_NAME).is_some_and(|name| name == table)
}

/// Tells whether a notice is about a chain, a rule in it, or its table.
fn is_about(told: &Reply<'_>, chain: &Chain) -> bool {
    let name = |kind| text(told.attributes, kind).is_some_and(|name| name == chain.name);
    let [_, kind] = told.kind.to_be_bytes();
    let is_named = match u16::from(kind) {
        message::NEW_RULE | message::DELETE_RULE => name(message::RULE_CHAIN),
        message::NEW_CHAIN | message::DELETE_CHAIN => name(message::CHAIN_NAME),
        kind => [message::NEW_TABLE, message::DELETE_TABLE].contains(&kind),
    };
    is_named && is_of(told.attributes, &chain.table)
}

/// Returns the comment in a rule's user data: kind, length and value of each of its parts (libnftnl, `udata.c`).
fn comment(data: &[u8]) -> Option<String> {
    let mut rest = data;
    loop {
        let (&[kind, len], behind) = rest.split_first_chunk()?;
        let (value, behind) = behind.split_at_checked(len.into())?;
        if kind == COMMENT {
            let text = value.split(|byte| *byte == 0).next()?;
            return String::from_utf8(text.to_vec()).ok();
        }
        rest = behind;
    }
}

fn element(key: IpAddr, is_end: bool) -> Attributes {
    let value = match key {
        IpAddr::V4(addr) => Attributes::new().bytes(message::DATA_VALUE, &addr.octets()),
        IpAddr::V6(addr) => Attributes::new().bytes(message::DATA_VALUE, &addr.octets()),
    };
    let element = Attributes::new().nest(message::ELEMENT_KEY, value);
    if is_end { element.be32(message::ELEMENT_FLAGS, message::ELEMENT_INTERVAL_END) } else { element }
}

/// Returns where a range begins or ends (`true`): the first address, or the one behind the last.
fn bound(element: &[u8]) -> Option<(IpAddr, bool)> {
    let (_, key) = attributes(nested(element, message::ELEMENT_KEY)?).next()?;
    let addr = match key.len() {
        4 => IpAddr::from(*key.first_chunk::<4>()?),
        _ => IpAddr::from(*key.first_chunk::<16>()?),
    };
    let flags = be32(element, message::ELEMENT_FLAGS).unwrap_or_default();
    Some((addr, flags & message::ELEMENT_INTERVAL_END != 0))
}

/// Puts bounds together. An end without a beginning, which `nft` adds before the first range, means nothing.
fn ranges_of(mut bounds: Vec<(IpAddr, bool)>) -> Vec<Range> {
    // Where one range ends and the next begins, the end comes first.
    bounds.sort_by_key(|&(addr, is_end)| (addr, !is_end));
    let mut ranges = Vec::new();
    let mut open = None;
    for (addr, is_end) in bounds {
        match open.take() {
            Some(first) if is_end => ranges.extend(predecessor(addr).map(|last| (first, last))),
            first => open = if is_end { None } else { first.or(Some(addr)) },
        }
    }
    ranges.extend(open.map(|first| match first {
        IpAddr::V4(_) => (first, IpAddr::from([u8::MAX; 4])),
        IpAddr::V6(_) => (first, IpAddr::from([u8::MAX; 16])),
    }));
    ranges
}

fn successor(addr: IpAddr) -> Option<IpAddr> {
    Some(match addr {
        IpAddr::V4(addr) => IpAddr::V4(u32::from(addr).checked_add(1)?.into()),
        IpAddr::V6(addr) => IpAddr::V6(u128::from(addr).checked_add(1)?.into()),
    })
}

fn predecessor(addr: IpAddr) -> Option<IpAddr> {
    Some(match addr {
        IpAddr::V4(addr) => IpAddr::V4(u32::from(addr).checked_sub(1)?.into()),
        IpAddr::V6(addr) => IpAddr::V6(u128::from(addr).checked_sub(1)?.into()),
    })
}

#[cfg(test)]
mod tests;
