//! Rules that choose a routing table (ip-rule(8)), by the mark of a packet or by its source.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;
use super::route::protocol_of;

/// A rule by which some packets are looked up in `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Whether it is for IPv6 packets; for IPv4 packets otherwise.
    pub is_ipv6: bool,
    /// Where it stands: rules are obeyed in ascending order, 0 is the local table's, 32766 the main table's.
    pub priority: u32,
    /// Which packets it is for.
    pub packets: Packets,
    /// The routing table.
    pub table: u32,
    /// Who made it: a number below 256 of those in `/etc/iproute2/rt_protos`; `None` before Linux 4.17, which does not keep it.
    pub protocol: Option<u8>,
}

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packets {
    /// Those that carry another mark, of which all 32 bits count: `not fwmark MARK`.
    Unmarked(u32),
    /// Those that come from an address in a prefix, which has its length beside it: `from ADDRESS/LENGTH`.
    From(IpAddr, u8),
}

/// A rule of any form, by what tells whether it is in another one's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Whether it is for IPv6 packets; for IPv4 packets otherwise.
    pub is_ipv6: bool,
    /// Where it stands.
    pub priority: u32,
    /// The routing table that it leads to, if it leads to one.
    pub table: Option<u32>,
    /// The mark of the packets that it is for, and which bits of it count.
    pub mark: Option<(u32, u32)>,
    /// Whether it is for the packets that it does not describe.
    pub is_inverted: bool,
    /// Whether it is for every packet.
    pub is_unconditional: bool,
    /// Who made it; `None` before Linux 4.17.
    pub protocol: Option<u8>,
}

impl Netlink {
    /// Returns the rules of both families that are of this form; there may be others.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn rules(&mut self) -> io::Result<Vec<Rule>> {
        Ok(self.rule_messages()?.iter().filter_map(rule_of).collect())
    }

    /// Returns the rules of both families, whatever their form.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn policy_rules(&mut self) -> io::Result<Vec<PolicyRule>> {
        Ok(self.rule_messages()?.iter().filter_map(policy_rule_of).collect())
    }

    fn rule_messages(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut messages = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let replies = match self.request(RouteNetlinkMessage::GetRule(message), NLM_F_DUMP) {
                // A kernel without IPv6, or without rules for it.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                replies => replies?,
            };
            messages.extend(replies);
        }
        Ok(messages)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// `EEXIST` if there is one like it.
    pub fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRule(message_of(rule)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a rule, if it is of this protocol.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    pub fn remove_rule(&mut self, rule: &Rule) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelRule(message_of(rule)), 0)
    }
}

fn message_of(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.is_ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Priority(rule.priority), RuleAttribute::Table(rule.table)];
    match rule.packets {
        Packets::Unmarked(mark) => {
            message.header.flags = RuleFlags::Invert;
            message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(u32::MAX)]);
        }
        Packets::From(addr, len) => {
            message.header.src_len = len;
            message.attributes.push(RuleAttribute::Source(addr));
        }
    }
    message.attributes.extend(rule.protocol.map(|protocol| RuleAttribute::Protocol(protocol.into())));
    message
}

/// Returns the rule of a message, unless it has another form.
fn rule_of(message: &RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let header = &message.header;
    let is_ipv6 = header.family == AddressFamily::Inet6;
    let mut has_form = header.action == RuleAction::ToTable && [header.dst_len, header.tos] == [0; 2];
    let (mut priority, mut table, mut protocol) = (0, header.table.into(), None);
    let (mut marked, mut source) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::FwMark(number) => marked = *number,
            RuleAttribute::FwMask(mask) => has_form &= *mask == u32::MAX,
            RuleAttribute::Source(addr) => source = Some(*addr),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(number) => protocol = Some(protocol_of(*number)),
            RuleAttribute::SuppressPrefixLen(len) => has_form &= *len == u32::MAX,
            RuleAttribute::SuppressIfGroup(group) => has_form &= *group == u32::MAX,
            // What later kernels add they also tell where it is not used.
            RuleAttribute::Other(_) => {}
            _ => has_form = false,
        }
    }
    let packets = match (header.flags.contains(RuleFlags::Invert), marked, source) {
        (true, 1.., None) => Packets::Unmarked(marked),
        (false, 0, Some(addr)) => Packets::From(addr, header.src_len),
        _ => return None,
    };
    has_form.then_some(Rule { is_ipv6, priority, packets, table, protocol })
}

fn policy_rule_of(message: &RouteNetlinkMessage) -> Option<PolicyRule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let header = &message.header;
    let mut rule = PolicyRule {
        is_ipv6: header.family == AddressFamily::Inet6,
        priority: 0,
        table: (header.action == RuleAction::ToTable).then_some(header.table.into()),
        mark: None,
        is_inverted: header.flags.contains(RuleFlags::Invert),
        is_unconditional: [header.src_len, header.dst_len, header.tos] == [0; 3],
        protocol: None,
    };
    let mut bits = u32::MAX;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(mark) => rule.mark = Some((*mark, u32::MAX)),
            RuleAttribute::FwMask(mask) => bits = *mask,
            RuleAttribute::Table(table) => rule.table = rule.table.map(|_| *table),
            RuleAttribute::Protocol(protocol) => rule.protocol = Some(protocol_of(*protocol)),
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            // What later kernels add they also tell where it is not used.
            RuleAttribute::Other(_) => {}
            _ => rule.is_unconditional = false,
        }
    }
    rule.mark = rule.mark.map(|(mark, _)| (mark, bits));
    rule.is_unconditional &= rule.mark.is_none() && !rule.is_inverted;
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::{Event, Groups, Monitor};
    use crate::sys::netns;

    #[test]
    fn rules_are_made_listed_told_of_and_removed() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut monitor = Monitor::open_for(Groups::RULES)?;
            let mut netlink = Netlink::open()?;
            assert_eq!(netlink.rules()?, []);
            let rules = [
                (false, Packets::Unmarked(0xad17)),
                (true, Packets::Unmarked(0xad17)),
                (false, Packets::From([10, 244, 1, 0].into(), 24)),
                (true, Packets::From("fd00:1::".parse().unwrap(), 64)),
            ];
            for (is_ipv6, packets) in rules {
                let rule = Rule { is_ipv6, priority: 99, packets, table: 70_000, protocol: Some(173) };
                netlink.add_rule(&rule)?;
                assert_eq!(netlink.add_rule(&rule).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
                assert_eq!(monitor.take(), [Event::Rule]);
                assert_eq!(netlink.rules()?, [rule]);
                let not_ours = netlink.remove_rule(&Rule { protocol: Some(4), ..rule }).unwrap_err();
                assert_eq!(not_ours.raw_os_error(), Some(libc::ENOENT));
                netlink.remove_rule(&rule)?;
                assert_eq!(monitor.take(), [Event::Rule]);
                assert_eq!(netlink.rules()?, []);
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn rules_of_other_forms_are_listed_as_well() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut netlink = Netlink::open()?;
            let own = Rule {
                is_ipv6: false,
                priority: 99,
                packets: Packets::Unmarked(0xad17),
                table: 70_000,
                protocol: Some(173),
            };
            netlink.add_rule(&own)?;
            let rules = netlink.policy_rules()?;
            let at = |priority| rules.iter().find(|rule| !rule.is_ipv6 && rule.priority == priority).unwrap();
            let marked = PolicyRule {
                is_ipv6: false,
                priority: 99,
                table: Some(70_000),
                mark: Some((0xad17, u32::MAX)),
                is_inverted: true,
                is_unconditional: false,
                protocol: Some(173),
            };
            assert_eq!(*at(99), marked);
            let main = at(32_766);
            assert_eq!((main.table, main.mark, main.is_unconditional), (Some(254), None, true));
            assert_eq!(at(0).table, Some(255));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn notices_that_were_lost_are_told_of() {
        let Ok(own) = netns::create() else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        netns::run_in(&own, || {
            let mut monitor = Monitor::open_for(Groups::RULES)?;
            let mut netlink = Netlink::open()?;
            let rule = Rule {
                is_ipv6: false,
                priority: 99,
                packets: Packets::Unmarked(1),
                table: 7,
                protocol: Some(173),
            };
            // More than a socket holds by default.
            for _ in 0..1000 {
                netlink.add_rule(&rule)?;
                netlink.remove_rule(&rule)?;
            }
            assert!(monitor.take().contains(&Event::Lost));
            netlink.add_rule(&rule)?;
            assert_eq!(monitor.take(), [Event::Rule]);
            Ok(())
        })
        .unwrap();
    }
}
