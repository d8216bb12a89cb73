//! The MTU of the tunnel's interface, where the objects name none: what the ways to the peers leave for a packet inside. It is followed as
//! links and routes change, and laid into a file for whoever makes interfaces of pods.
//!
//! The smallest one counts, so that a packet that enters the tunnel fits the way to any node. A path that is narrower than its first link is
//! not looked for: what does not pass there is told by ICMP.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::plan::Routes;
use crate::sys::netlink::{Event, Groups, Link, LocalAddress, Monitor, Netlink};

/// What IPv4 asks of every link (RFC 791 §3.1).
const LEAST: u32 = 576;
/// What IPv6 asks of every link (RFC 8200 §5): one that is narrower has no IPv6.
const LEAST_IPV6: u32 = 1280;
/// What no IP packet is longer than.
const MOST: u32 = 65_535;

/// The headers of a packet in the tunnel, in bytes: the outer IP header, 8 of UDP and 32 of the data message ([W] §5.4.6).
const fn overhead(is_ipv6: bool) -> u32 {
    if is_ipv6 { 40 + 8 + 32 } else { 20 + 8 + 32 }
}

/// The ways to the peers, in the network namespace of the thread that opens it.
pub struct Ways {
    netlink: Netlink,
    monitor: Monitor,
    /// The links that they use, each with what was seen of it: its MTU, and whether it is switched on.
    links: BTreeMap<u32, (u32, bool)>,
    /// What was found, until something happens to it: a thousand ways need not be asked for because of one change of the objects.
    found: Option<Found>,
    /// The tunnel's interface, and its index as of the last look.
    followed: String,
    interface: Option<u32>,
}

/// Links and ways as of the last time that they were asked for.
struct Found {
    mark: u32,
    links: BTreeMap<u32, Link>,
    /// The interface by which a peer is reached, and the route's own MTU; `None` if nothing leads there.
    ways: BTreeMap<IpAddr, Option<(u32, Option<u32>)>>,
    /// The peers that were asked about last, as they were named, and the narrowest way: mostly they are the same the next time.
    last: Option<(Vec<IpAddr>, u32)>,
}

/// Leaves out what every link has. Each pod comes with a link whose addresses are the same as those of others, or its own alone: nothing
/// that depends on this node's addresses is to be looked at for that.
fn known_beyond(addresses: impl Iterator<Item = (IpAddr, u8)>) -> Vec<(IpAddr, u8)> {
    let is_local = |addr: IpAddr| matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
    addresses.filter(|(addr, _)| !is_local(*addr)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The ways, or this node's addresses.
    pub ways: bool,
    /// Whether the tunnel's interface is there.
    pub interface: bool,
}

impl Ways {
    /// Begins to listen for changes.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let monitor = Monitor::open_for(Groups::LINKS | Groups::ADDRESSES | Groups::ROUTES)?;
        Ok(Self {
            netlink: Netlink::open()?,
            monitor,
            links: BTreeMap::new(),
            found: None,
            followed: String::new(),
            interface: None,
        })
    }

    /// Says which interface is the tunnel's: whether it is there is told from the next look on.
    pub fn follow(&mut self, interface: &str) {
        interface.clone_into(&mut self.followed);
    }

    /// Takes in what has changed. What happens to our own routes does not count.
    pub fn take(&mut self, own: Option<&Routes>) -> News {
        let is_other = |seen: Option<&(u32, bool)>, mtu, up| seen.is_some_and(|seen| *seen != (mtu, up));
        let mut news = News::default();
        for event in self.monitor.take() {
            match event {
                Event::Link(link) => {
                    news.ways |= is_other(self.links.get(&link.index), link.mtu, link.up);
                    news.interface |=
                        self.followed == link.name && self.interface.replace(link.index) != Some(link.index);
                    if let Some(found) = &mut self.found {
                        found.links.insert(link.index, link);
                        found.last = None;
                    }
                }
                Event::LinkGone(index) => {
                    news.ways |= self.links.contains_key(&index);
                    news.interface |= self.interface.take_if(|interface| *interface == index).is_some();
                }
                Event::Route { table, .. } => {
                    let is_ours = own.is_some_and(|own| [own.table, own.pods_table()].contains(&table));
                    news.ways |= table != u32::from(libc::RT_TABLE_LOCAL) && !is_ours;
                }
                Event::Address(_) => news.ways = true,
                Event::Lost => news = News { ways: true, interface: true },
                Event::Rule => {}
            }
        }
        if news.ways {
            self.look_anew();
        }
        news
    }

    /// Has everything asked for again the next time, whether or not anything was told.
    pub fn look_anew(&mut self) {
        self.found = None;
    }

    /// Returns the addresses of all links, each with the length of its prefix, in order and once: those that are known beyond their link.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn addresses(&mut self) -> io::Result<Vec<(IpAddr, u8)>> {
        Ok(known_beyond(self.netlink.all_addresses()?.iter().map(|addr| addr.address)))
    }

    /// Returns the MTU in bytes that the ways to `peers` leave, for datagrams with this mark; where there are none, the links that have the
    /// node's `own` addresses. `None` if nothing leads anywhere.
    pub fn mtu(&mut self, peers: &[IpAddr], own: &[IpAddr], mark: u32, has_ipv6: bool) -> Option<u32> {
        let least = if has_ipv6 { LEAST_IPV6 } else { LEAST };
        let narrowest = self.narrowest(peers, own, mark);
        narrowest.map(|mtu| mtu.clamp(least, MOST))
    }

    fn narrowest(&mut self, peers: &[IpAddr], own: &[IpAddr], mark: u32) -> Option<u32> {
        if self.found.as_ref().is_none_or(|found| found.mark != mark) {
            let links = self.netlink.links().ok()?.into_iter().map(|link| (link.index, link)).collect();
            self.found = Some(Found { mark, links, ways: BTreeMap::new(), last: None });
        }
        let Some(Found { links, ways, last, .. }) = &mut self.found else { return None };
        self.interface = links.values().find(|link| link.name == self.followed).map(|link| link.index);
        if let Some((asked, narrowest)) = last
            && *asked == peers
        {
            return Some(*narrowest);
        }
        self.links.clear();
        let mut narrowest: Option<u32> = None;
        let mut see = |interface: u32, mtu: Option<u32>, is_ipv6: bool| {
            let Some(link) = links.get(&interface) else { return };
            self.links.insert(interface, (link.mtu, link.up));
            let outer = mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
            let inner = outer.saturating_sub(overhead(is_ipv6));
            narrowest = Some(narrowest.map_or(inner, |narrowest| narrowest.min(inner)));
        };
        let each: BTreeSet<_> = peers.iter().copied().collect();
        ways.retain(|peer, _| each.contains(peer));
        for peer in each {
            let ask = || self.netlink.way_towards(peer, mark).ok().map(|way| (way.interface, way.mtu));
            // A peer that nothing leads to has no say.
            if let Some((interface, mtu)) = *ways.entry(peer).or_insert_with(ask) {
                see(interface, mtu, peer.is_ipv6());
            }
        }
        if peers.is_empty() {
            let addresses = self.netlink.all_addresses().unwrap_or_default();
            for LocalAddress { interface, address: (addr, _) } in addresses {
                if own.contains(&addr) {
                    see(interface, None, addr.is_ipv6());
                }
            }
        }
        *last = narrowest.filter(|_| !peers.is_empty()).map(|narrowest| (peers.to_vec(), narrowest));
        narrowest
    }
}

impl AsFd for Ways {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

/// The file that tells the MTU: its decimal digits and a newline. Whoever reads it finds the old one or the new one whole.
#[derive(Debug)]
pub struct Note {
    directory: PathBuf,
    is_failing: bool,
}

impl Note {
    /// Returns a note in the file `mtu` of this directory, which is made when there is something to tell.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), is_failing: false }
    }

    /// Tells it, if the file says something else. What fails is tried again the next time, and logged once.
    pub fn tell(&mut self, mtu: u32) {
        let text = format!("{mtu}\n");
        if fs::read_to_string(self.directory.join("mtu")).is_ok_and(|told| told == text) {
            return;
        }
        match write(&self.directory, &text) {
            Ok(()) => {
                tracing::info!(mtu, "the MTU of packets in the tunnel");
                self.is_failing = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(directory = %self.directory.display(), %error, "the MTU cannot be told to others");
                }
            }
        }
    }
}

/// Removes the file from a directory, and the directory if nothing else is there.
///
/// # Errors
/// If the system refuses; that it is not there is none.
pub fn remove_note(directory: &Path) -> io::Result<()> {
    for path in files(directory) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    // Others have things there, or have mounted it.
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// Returns the file, and the one that it is written as.
fn files(directory: &Path) -> [PathBuf; 2] {
    ["mtu", "mtu.new"].map(|name| directory.join(name))
}

fn write(directory: &Path, text: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let [path, unfinished] = files(directory);
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o644).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    fs::rename(unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;

    #[test]
    fn a_pods_link_brings_no_address_that_is_news() {
        let addresses = |texts: &[&str]| -> Vec<(IpAddr, u8)> {
            let split =
                |text: &&str| text.split_once('/').map(|(addr, len)| (addr.to_owned(), len.to_owned()));
            let pairs = texts.iter().filter_map(split);
            pairs.map(|(addr, len)| (addr.parse().unwrap(), len.parse().unwrap())).collect()
        };
        let node = ["192.0.2.1/24", "2001:db8::1/64", "169.254.1.1/32"];
        let pods = ["169.254.1.1/32", "fe80::1/128", "fe80::5054:ff:fe00:1/64"];
        let known = |texts: &[&str]| known_beyond(addresses(texts).into_iter());
        assert_eq!(known(&[&node[..], &pods].concat()), known(&node));
        assert_ne!(known(&[&node[..], &["192.0.2.9/24"]].concat()), known(&node));
    }

    #[test]
    fn the_narrowest_way_counts_and_each_family_has_its_headers() {
        let (Ok(own), Ok(other)) = (netns::create(), netns::create()) else {
            eprintln!("skipped: CAP_SYS_ADMIN missing");
            return;
        };
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        netns::run_in(&own, || {
            let mut netlink = Netlink::open()?;
            for (name, peer, mtu, net) in
                [("wide", "w", 9000, ["10.1.0.1", "fd01::1"]), ("narrow", "n", 1500, ["10.2.0.1", "fd02::1"])]
            {
                netlink.add_veth(name, peer, &other)?;
                let index = netlink.link(name)?.index;
                netlink.set_up(index, Some(mtu))?;
                netlink.add_address(index, addr(net[0]), 24)?;
                netlink.add_address(index, addr(net[1]), 64)?;
            }
            netns::run_in(&other, || {
                let mut netlink = Netlink::open()?;
                for peer in ["w", "n"] {
                    let index = netlink.link(peer)?.index;
                    netlink.set_up(index, Some(9000))?;
                }
                Ok(())
            })?;
            let mut ways = Ways::open()?;
            let peers = |texts: &[&str]| texts.iter().map(|text| addr(text)).collect::<Vec<_>>();
            let mut mtu = |texts: &[&str]| ways.mtu(&peers(texts), &[], 7, false);
            assert_eq!(mtu(&["10.1.0.2"]), Some(9000 - 60));
            assert_eq!(mtu(&["fd01::2"]), Some(9000 - 80));
            assert_eq!(mtu(&["10.1.0.2", "fd01::2", "10.2.0.2"]), Some(1500 - 60));
            assert_eq!(mtu(&["10.1.0.2", "fd02::2"]), Some(1500 - 80));
            // Nobody can be reached there, and so nobody is asked.
            assert_eq!(mtu(&["10.99.0.2", "10.1.0.2"]), Some(9000 - 60));
            assert_eq!(mtu(&["10.99.0.2"]), None);
            assert_eq!(ways.mtu(&peers(&[]), &[addr("fd02::1")], 7, false), Some(1500 - 80));

            // The news that matter, and those that do not.
            assert_eq!(ways.mtu(&peers(&["10.2.0.2"]), &[], 7, false), Some(1440));
            ways.take(None);
            let [wide, narrow] = ["wide", "narrow"].map(|name| netlink.link(name).unwrap().index);
            // A while after links have come up, addresses of their own become usable, and that is news.
            let mut is_no_news = |_| {
                let [changed, _] = [8100, 8000].map(|mtu| netlink.set_mtu(wide, mtu));
                changed.is_ok() && !ways.take(None).ways
            };
            assert!((0..100).any(&mut is_no_news));
            assert_eq!(
                ways.mtu(&peers(&["10.1.0.2"]), &[], 7, false),
                Some(7940),
                "seen, though not in use then"
            );
            assert_eq!(ways.mtu(&peers(&["10.2.0.2"]), &[], 7, false), Some(1440));
            netlink.set_mtu(narrow, 1300)?;
            assert!(ways.take(None).ways);
            assert_eq!(ways.mtu(&peers(&["10.2.0.2"]), &[], 7, false), Some(1240));
            assert_eq!(ways.mtu(&peers(&["10.2.0.2"]), &[], 7, true), Some(1280), "IPv6 needs that much");
            netlink.add_route((addr("10.3.0.0"), 16), None, Some(wide))?;
            assert!(ways.take(None).ways);
            assert_eq!(ways.mtu(&peers(&["10.3.0.2"]), &[], 7, false), Some(7940));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_file_holds_the_number_and_is_replaced_whole() {
        let directory = std::env::temp_dir().join(format!("adit-mtu-{}", std::process::id()));
        let mut note = Note::new(&directory);
        let read = || fs::read_to_string(directory.join("mtu")).unwrap();
        note.tell(1440);
        assert_eq!(read(), "1440\n");
        fs::write(directory.join("mtu.new"), "half of what a killed process wrote").unwrap();
        note.tell(1380);
        assert_eq!(read(), "1380\n");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
        note.tell(1380);
        assert_eq!(read(), "1380\n", "what somebody removes comes back");
        fs::write(directory.join("cni.sock"), "another's").unwrap();
        remove_note(&directory).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "and it alone is removed");
        fs::remove_file(directory.join("cni.sock")).unwrap();
        remove_note(&directory).unwrap();
        assert!(!directory.exists());
        remove_note(&directory).unwrap();
    }
}
