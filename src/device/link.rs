//! The TUN link as the system sees it: up or down, its MTU, its routes; also after it has moved to another network namespace.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::shared::{Mtu, now};
use crate::sys::netlink::{Event, Monitor, Netlink};
use crate::sys::netns;
use crate::sys::tun::Queue;
use crate::wireguard::time::Instant;

/// How often a link is looked at of which nothing is told.
const LOOK: Duration = Duration::from_secs(1);

/// What of a link matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) up: bool,
    pub(super) mtu: u32,
}

/// What the link's news amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing that matters.
    None,
    /// State or routes may have changed.
    Changed,
    /// It is in another namespace: the descriptor to poll is another one.
    Moved,
    /// It was deleted.
    Gone,
}

type Found = (Monitor, Option<Netlink>, u32, State);

/// Follows one link.
pub(super) struct Follower {
    queue: Arc<Queue>,
    monitor: Monitor,
    /// A socket where the link is; none if that is another namespace, which it would keep from going away.
    netlink: Option<Netlink>,
    index: u32,
    state: State,
    /// It was down at some time since that was asked for.
    was_down: bool,
    /// Nothing is told of it where it is: when it is to be looked at.
    look_at: Option<Instant>,
}

impl Follower {
    /// Starts to follow the link of `queue`, wherever it is.
    pub(super) fn new(queue: Arc<Queue>) -> io::Result<Self> {
        // It may have been handed to us from another namespace, and its name may be another link's here. Where the kernel does not say where
        // it is (before Linux 5.3, and not to everyone), it is here.
        let home = queue.netns().and_then(netns::is_current);
        let found = if home.unwrap_or(true) { Self::find(&queue) } else { Self::find_elsewhere(&queue) };
        let (monitor, netlink, index, state) = found?;
        Ok(Self { queue, monitor, netlink, index, state, was_down: false, look_at: None })
    }

    fn find(queue: &Queue) -> io::Result<Found> {
        // The monitor first, so that no change falls between the two.
        let monitor = Monitor::open()?;
        let mut netlink = Netlink::open()?;
        let link = netlink.link(&queue.ifname()?)?;
        Ok((monitor, Some(netlink), link.index, State { up: link.up, mtu: link.mtu }))
    }

    fn find_elsewhere(queue: &Queue) -> io::Result<Found> {
        let namespace = queue.netns()?;
        if netns::is_current(&namespace)? {
            return Self::find(queue);
        }
        let Ok(monitor) = Monitor::open_outside(&namespace) else {
            // Without CAP_NET_BROADCAST. Better followed by a socket inside, which keeps the namespace, than not at all.
            return netns::run_in(&namespace, || Self::find(queue));
        };
        let link = netns::run_in(&namespace, || Netlink::open()?.link(&queue.ifname()?))?;
        Ok((monitor, None, link.index, State { up: link.up, mtu: link.mtu }))
    }

    /// Returns the state as of the last news.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Tells whether the link was down since the last call: it may have come up again before anybody looked.
    pub(super) fn take_was_down(&mut self) -> bool {
        std::mem::take(&mut self.was_down)
    }

    /// Returns the descriptor that becomes readable when there are news.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.monitor.as_raw_fd()
    }

    /// Returns when news are to be asked for that nobody tells.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Has news asked for a while from now, and so on: nobody tells when there are any.
    pub(super) fn look_later(&mut self) {
        self.look_at = Some(now() + LOOK);
    }

    /// Takes in the news.
    pub(super) fn news(&mut self) -> News {
        let mut news = News::None;
        if self.look_at.is_some() {
            self.look_later();
            if !self.queue.is_attached() {
                return News::Gone;
            }
            let up = self.queue.seems_up();
            if up != self.state.up {
                self.state.up = up;
                self.was_down |= !up;
                news = News::Changed;
            }
        }
        for event in self.monitor.take() {
            match event {
                Event::Link(link) if link.index == self.index => {
                    self.state = State { up: link.up, mtu: link.mtu };
                    self.was_down |= !link.up;
                    news = News::Changed;
                }
                Event::LinkGone(index) if index == self.index => return self.look_again(),
                Event::Lost => return self.look_again(),
                // Only routes over this link bear on its MTU: on a router that learns routes all day, the others are not worth a look.
                Event::Route { interface, .. } if interface == Some(self.index) => news = News::Changed,
                Event::Address(index) if index == self.index => news = News::Changed,
                Event::Route { .. }
                | Event::Address(_)
                | Event::Rule
                | Event::Link(_)
                | Event::LinkGone(_) => {}
            }
        }
        news
    }

    /// The link has left this namespace, or news were lost.
    pub(super) fn look_again(&mut self) -> News {
        if !self.queue.is_attached() {
            return News::Gone;
        }
        match Self::find_elsewhere(&self.queue) {
            Ok((monitor, netlink, index, state)) => {
                (self.monitor, self.netlink, self.index, self.state) = (monitor, netlink, index, state);
                self.look_at = None;
                News::Moved
            }
            Err(error) if !self.queue.is_attached() => {
                tracing::debug!(%error, "the link was deleted while it was looked for");
                News::Gone
            }
            Err(error) => {
                // Before Linux 5.3, or without CAP_SYS_ADMIN there.
                tracing::warn!(%error, "cannot follow the link to its new network namespace; its MTU is taken to stay");
                self.look_later();
                self.state.up = self.queue.seems_up();
                News::Changed
            }
        }
    }

    /// Returns link and route MTUs.
    pub(super) fn mtu(&mut self) -> Mtu {
        let routes = match &mut self.netlink {
            Some(netlink) => netlink.routes(),
            None => self.queue.netns().and_then(|netns| netns::run_in(netns, || Netlink::open()?.routes())),
        };
        let own = routes.unwrap_or_default().into_iter().filter(|route| route.interface == self.index);
        Mtu::new(self.state.mtu, own.filter_map(|route| Some((route.destination, route.mtu?))))
    }
}
