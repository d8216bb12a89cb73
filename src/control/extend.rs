//! The routes until every list is read: what the topology wants is added to what is there. Pure.
//!
//! Whoever made what is there may have known more than the topology tells, since objects reach the disk up to a second after they have
//! changed the kernel; or less, since the kernel may have refused what the disk tells. Which of the two cannot be seen, so neither is taken
//! for the newer one. In each table it holds that
//!
//! 1. what is led into the tunnel still is: a peer of which nothing is known may be there, and hear;
//! 2. what the topology wants into the tunnel or nowhere does not go in clear: Strict counts from here on. For this alone a route goes, one
//!    past the tunnel to addresses of which the topology says otherwise;
//! 3. what went into the tunnel or nowhere does not go in clear, unless the topology says so of a narrower prefix: this node's pods in the
//!    blackhole of the whole cluster. Strict that the disk has missed is not undone.
//!
//! A way past the tunnel stays where the topology knows no more than that it is in the cluster: a pod of this node, published a moment
//! before the agent ended, is reached by it. The way to the API server is open whatever is there: without it the lists never become complete.
//!
//! 2 and 3 hold without the tunnel's interface as well, when what leads there is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::blocks::Blocks;
use super::plan::{Entry, FromPods, Kind, Routes};
use super::route::metric_of;
use crate::config::Prefix;

/// What is to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The routes that are wanted.
    pub routes: Routes,
    /// The prefixes of the whole cluster: their blackholes are there for want of anything better, and tell of no node.
    pub cluster: Vec<Prefix>,
    /// Where API servers are.
    pub api_servers: BTreeSet<IpAddr>,
}

impl Extension {
    /// Returns the routes that the kernel should have, where it has those `there`.
    pub fn onto(&self, there: &Routes) -> Routes {
        let Routes { entries, from_pods, .. } = &self.routes;
        let mut sources = [&from_pods.sources[..], &there.from_pods.sources].concat();
        sources.sort_unstable();
        sources.dedup();
        // What the topology knows may not hold an API server, and what is there may.
        let held = |past: &Entry| {
            let mut all = there.entries.iter().chain(entries);
            all.any(|entry| entry.kind != Kind::Throw && entry.prefix.covers(&past.prefix))
        };
        let past =
            self.api_servers.iter().map(|addr| Entry { prefix: Prefix::host(*addr), kind: Kind::Throw });
        let wanted: Vec<_> = past.filter(held).chain(entries.iter().copied()).collect();
        Routes {
            entries: self.table(&there.entries, &wanted),
            from_pods: FromPods {
                sources,
                entries: self.table(&there.from_pods.entries, &from_pods.entries),
            },
            ..self.routes.clone()
        }
    }

    /// Returns the entries of one table.
    fn table(&self, there: &[Entry], wanted: &[Entry]) -> Vec<Entry> {
        let strongest = strongest(there.iter());
        let led = there.iter().chain(wanted).filter(|entry| entry.kind == Kind::Unicast);
        let led: Blocks<()> = led.map(|entry| (entry.prefix, ())).collect();
        let added = wanted.iter().filter_map(|entry| {
            let Some((around, kind)) = strongest.around(&entry.prefix) else { return Some(*entry) };
            match (entry.kind, kind) {
                (Kind::Unicast, _) | (Kind::Throw, Kind::Throw) => Some(*entry),
                (Kind::Throw, _) if self.leads_to_api_server(entry) => Some(*entry),
                // It is obeyed before what is there, and opens it: 1 and 3.
                (Kind::Throw, Kind::Unicast) => None,
                (Kind::Throw, Kind::Blackhole) => (around != entry.prefix).then_some(*entry),
                // It would swallow what is led to a peer: 1. Beneath that it is there for when the interface is not: 2.
                (Kind::Blackhole, Kind::Unicast) => {
                    led.around(&entry.prefix).map(|(prefix, ())| Entry { prefix, ..*entry })
                }
                (Kind::Blackhole, Kind::Throw | Kind::Blackhole) => Some(*entry),
            }
        });
        let of_cluster =
            |entry: &&Entry| entry.kind == Kind::Blackhole && self.cluster.contains(&entry.prefix);
        let said = self::strongest(wanted.iter().filter(|entry| !of_cluster(entry)));
        let stays = |entry: &&Entry| {
            entry.kind != Kind::Throw
                || said.around(&entry.prefix).is_none_or(|(_, kind)| *kind == Kind::Throw)
        };
        let all: BTreeSet<_> = added.chain(there.iter().filter(stays).copied()).collect();
        all.into_iter().collect()
    }

    fn leads_to_api_server(&self, entry: &Entry) -> bool {
        entry.prefix == Prefix::host(entry.prefix.addr()) && self.api_servers.contains(&entry.prefix.addr())
    }
}

/// Returns what is obeyed of several entries to one prefix, by prefix.
fn strongest<'a>(entries: impl Iterator<Item = &'a Entry>) -> Blocks<Kind> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(metric_of(entry.kind)));
    entries.into_iter().map(|entry| (entry.prefix, entry.kind)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Every address of the block that the prefixes lie in.
    fn addresses() -> impl Iterator<Item = IpAddr> {
        (0..32).map(|last| IpAddr::from([10, 0, 0, last]))
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        (0..32_u8, 27..=32_u8).prop_map(|(last, len)| Prefix::new([10, 0, 0, last].into(), len).unwrap())
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Throw), Just(Kind::Unicast), Just(Kind::Blackhole)]
    }

    fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
        vec((any_prefix(), any_kind()), 0..10)
            .prop_map(|all| all.into_iter().map(|(prefix, kind)| Entry { prefix, kind }).collect())
    }

    /// As `topology` makes them: of each prefix one is said, and in Strict there is a blackhole beneath all that is led into the tunnel.
    fn any_extension() -> impl Strategy<Value = Extension> {
        let entries = (any_entries(), vec(any_prefix(), 0..3), any::<bool>());
        let api_servers = (vec(0..32_u8, 0..3), any::<bool>());
        (entries, api_servers).prop_map(|((mut entries, cluster, is_strict), (api_servers, is_said))| {
            let api_servers: BTreeSet<IpAddr> =
                api_servers.into_iter().map(|last| [10, 0, 0, last].into()).collect();
            let past =
                api_servers.iter().map(|addr| Entry { prefix: Prefix::host(*addr), kind: Kind::Throw });
            // Of one that nothing holds that is known, nothing need be said.
            let held = entries.iter().filter(|entry| entry.kind != Kind::Throw).map(|entry| entry.prefix);
            let held: Vec<_> = held.chain(cluster.iter().copied().filter(|_| is_strict)).collect();
            let is_held = |past: &Entry| held.iter().any(|prefix| prefix.covers(&past.prefix));
            entries.splice(0..0, past.filter(|past| is_said || is_held(past)));
            entries.sort_by_key(|entry| entry.prefix);
            entries.dedup_by_key(|entry| entry.prefix);
            let thrown: Vec<_> = entries.iter().filter(|entry| entry.kind == Kind::Throw).collect();
            let cluster: Vec<_> = cluster
                .into_iter()
                .filter(|prefix| is_strict && !thrown.iter().any(|entry| entry.prefix == *prefix))
                .collect();
            let led = entries.iter().filter(|entry| is_strict && entry.kind == Kind::Unicast);
            let beneath = led.map(|entry| entry.prefix).chain(cluster.iter().copied());
            let beneath: Vec<_> = beneath.map(|prefix| Entry { prefix, kind: Kind::Blackhole }).collect();
            entries.extend(beneath);
            entries.sort_unstable();
            entries.dedup();
            Extension { routes: routes(entries), cluster, api_servers }
        })
    }

    fn routes(entries: Vec<Entry>) -> Routes {
        Routes { entries, ..Routes::default() }
    }

    /// Returns what is obeyed: the slow twin asks every entry.
    fn obeyed(entries: &[Entry], addr: IpAddr, has_interface: bool) -> Option<&Entry> {
        let there = entries.iter().filter(|entry| entry.kind != Kind::Unicast || has_interface);
        let covering = there.filter(|entry| entry.prefix.contains(addr));
        covering.max_by_key(|entry| (entry.prefix.len(), std::cmp::Reverse(metric_of(entry.kind))))
    }

    fn way(entries: &[Entry], addr: IpAddr, has_interface: bool) -> Option<Kind> {
        obeyed(entries, addr, has_interface).map(|entry| entry.kind)
    }

    fn len(entries: &[Entry], addr: IpAddr, has_interface: bool) -> Option<u8> {
        obeyed(entries, addr, has_interface).map(|entry| entry.prefix.len())
    }

    fn is_in_clear(way: Option<Kind>) -> bool {
        way.is_none_or(|kind| kind == Kind::Throw)
    }

    proptest! {
        #[test]
        fn nothing_is_taken_from_the_tunnel_and_nothing_is_opened(
            there in any_entries(), wanted in any_extension(), has_interface: bool,
        ) {
            let all = wanted.onto(&routes(there.clone())).entries;
            let of_nodes: Vec<_> = wanted.routes.entries.iter().copied()
                .filter(|entry| entry.kind != Kind::Blackhole || !wanted.cluster.contains(&entry.prefix))
                .collect();
            for addr in addresses() {
                let before = way(&there, addr, has_interface);
                let now = way(&all, addr, has_interface);
                let said = way(&wanted.routes.entries, addr, has_interface);
                if wanted.api_servers.contains(&addr) {
                    prop_assert!(is_in_clear(now), "no way to the API server at {}", addr);
                    continue;
                }
                if before == Some(Kind::Unicast) {
                    prop_assert_eq!(now, before, "{} is not led to its peer any more", addr);
                }
                if !is_in_clear(said) {
                    let is_known = !is_in_clear(way(&of_nodes, addr, has_interface));
                    prop_assert!(
                        !is_in_clear(now) || before == Some(Kind::Throw) && !is_known,
                        "{} goes in clear, and should not", addr
                    );
                }
                if !is_in_clear(before) {
                    let is_narrower = len(&wanted.routes.entries, addr, has_interface) > len(&there, addr, has_interface);
                    prop_assert!(
                        !is_in_clear(now) || said == Some(Kind::Throw) && is_narrower,
                        "{} goes in clear, and did not", addr
                    );
                }
                // A pod of this node, of which only the disk does not know.
                let is_told = of_nodes.iter().any(|entry| entry.prefix.contains(addr))
                    || wanted.cluster.iter().any(|prefix| prefix.contains(addr) && Some(prefix.len()) > len(&there, addr, true));
                if has_interface && before == Some(Kind::Throw) && !is_told {
                    prop_assert!(is_in_clear(now), "{} does not go past the tunnel any more", addr);
                }
            }
            // A second look finds nothing to do.
            prop_assert_eq!(&wanted.onto(&routes(all.clone())).entries, &all);
            prop_assert_eq!(wanted.onto(&wanted.routes).entries, wanted.routes.entries);
        }
    }

    fn entry(prefix: &str, kind: Kind) -> Entry {
        Entry { prefix: prefix.parse().unwrap(), kind }
    }

    #[test]
    fn strict_takes_effect_though_the_routes_are_of_permissive_and_of_nodes_that_are_not_known() {
        let there = vec![
            entry("10.244.1.0/24", Kind::Throw),
            // A node without a key, a peer, and one that has come since.
            entry("10.244.2.0/24", Kind::Throw),
            entry("10.244.3.0/24", Kind::Unicast),
            entry("10.244.8.0/23", Kind::Unicast),
            // A pod of this node.
            entry("10.244.7.7/32", Kind::Throw),
        ];
        let wanted = vec![
            entry("10.244.0.0/16", Kind::Blackhole),
            entry("10.244.1.0/24", Kind::Throw),
            entry("10.244.2.0/24", Kind::Blackhole),
            entry("10.244.3.0/24", Kind::Unicast),
            entry("10.244.3.0/24", Kind::Blackhole),
            entry("10.244.9.0/24", Kind::Blackhole),
        ];
        let cluster = vec!["10.244.0.0/16".parse().unwrap()];
        let wanted = Extension { routes: routes(wanted), cluster, api_servers: BTreeSet::new() };
        let mut expected = vec![
            entry("10.244.0.0/16", Kind::Blackhole),
            entry("10.244.1.0/24", Kind::Throw),
            entry("10.244.2.0/24", Kind::Blackhole),
            entry("10.244.3.0/24", Kind::Unicast),
            entry("10.244.3.0/24", Kind::Blackhole),
            entry("10.244.7.7/32", Kind::Throw),
            entry("10.244.8.0/23", Kind::Unicast),
            // Beneath, and not over a half of it.
            entry("10.244.8.0/23", Kind::Blackhole),
        ];
        expected.sort_unstable();
        assert_eq!(wanted.onto(&routes(there)).entries, expected);
    }

    #[test]
    fn pods_have_a_table_of_their_own_and_go_on_having_it() {
        let table = |prefix: &str| FromPods {
            sources: vec![prefix.parse().unwrap()],
            entries: vec![entry(prefix, Kind::Unicast)],
        };
        let there = Routes { table: 7, fwmark: 7, from_pods: table("10.0.2.0/24"), ..Routes::default() };
        let routes = Routes { table: 8, fwmark: 8, from_pods: table("10.0.1.0/24"), ..Routes::default() };
        let wanted = Extension { routes: routes.clone(), cluster: Vec::new(), api_servers: BTreeSet::new() };
        let from_pods = FromPods {
            sources: ["10.0.1.0/24", "10.0.2.0/24"].map(|text| text.parse().unwrap()).into(),
            entries: ["10.0.1.0/24", "10.0.2.0/24"].map(|text| entry(text, Kind::Unicast)).into(),
        };
        assert_eq!(wanted.onto(&there), Routes { from_pods, ..routes });
    }
}
