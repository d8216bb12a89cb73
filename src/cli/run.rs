//! `adit -f IFNAME`: an interface until its end.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::args::InterfaceArgs;
use super::turn::{Refused, await_turn};
use super::{daemon, log};
use crate::config::Configure;
use crate::crypto::aead;
use crate::device::Device;
use crate::sys::clock;
use crate::sys::netlink::Netlink;
use crate::sys::poll::{Waits, poll};
use crate::sys::process;
use crate::sys::service::{self, Watchdog};
use crate::sys::signal::Signals;
use crate::sys::tun::Tun;
use crate::sys::wake::Wake;
use crate::sys::watch::Watch;
use crate::uapi::serve::Server;
use crate::uapi::socket::Socket;

/// Ethernet's 1500 bytes without IPv6 and UDP headers and those of a data message (kernel `device.c`, `wg_setup`).
const DEFAULT_MTU: u32 = 1420;

/// The time between two looks for a reason to leave, where the system does not let us wait for one, or cannot tell.
const PAUSE: Duration = Duration::from_millis(100);

/// Has everything encrypted by what was asked for. To be called before anything is.
///
/// # Errors
/// Says what this CPU lacks.
pub(super) fn choose_crypto(args: &InterfaceArgs) -> Result<(), String> {
    aead::force(args.crypto.tier()).map_err(|refused| format!("--crypto {}: {refused}", args.crypto.name()))
}

/// Opens device and socket, or takes over those of the parent, and serves them until the end.
///
/// # Errors
/// Names what cannot be set up, and why.
pub(super) fn run(args: &InterfaceArgs) -> Result<(), String> {
    process::keep_one_heap();
    process::forbid_dumps();
    process::raise_open_files();
    log::start(args.level(), args.logging.log_format, args.log.as_deref())
        .map_err(|error| format!("the log file: {error}"))?;
    // Before the first thread, so that all of them block these signals.
    let signals = Signals::new().map_err(|error| format!("signals: {error}"))?;
    let Some((tun, socket)) = open(args, Some(&signals))? else { return Ok(()) };
    let name = tun.name().to_owned();
    let closed = Arc::new(Wake::new().map_err(|error| format!("eventfd: {error}"))?);
    let on_close = {
        let closed = Arc::clone(&closed);
        move || closed.wake()
    };
    let workers = tun.queues().len();
    let device = Device::start(tun, args.offload(), args.spill(), on_close)
        .map_err(|error| format!("{name}: {error}"))?;
    // One that was handed over without a name cannot be removed.
    let directory = socket.path().parent().filter(|_| socket.has_name());
    let watch = directory.map(Watch::new).transpose();
    let watch = watch.map_err(|error| format!("{}: {error}", socket.path().display()))?;
    let device = Arc::new(device);
    let server = Server::start(socket.listener(), Arc::<Device>::clone(&device));
    let server = server.map_err(|error| format!("{}: {error}", socket.path().display()))?;
    daemon::tell_parent(args);
    process::forget_code();
    tracing::info!(interface = name, workers, crypto = aead::tier(), socket = %socket.path().display(), "ready");
    service::ready();
    let reason = wait(&signals, &closed, watch.as_ref(), &socket, &device);
    tracing::info!(interface = name, reason, "leaving");
    service::stopping();
    drop(server);
    Ok(())
}

/// Opens device and socket, or takes over those of the parent. While another process has them, it waits for its turn if asked to; `None` if
/// one of `signals` comes first.
///
/// # Errors
/// Names what cannot be set up, and why.
pub(super) fn open(args: &InterfaceArgs, signals: Option<&Signals>) -> Result<Option<(Tun, Socket)>, String> {
    await_turn(args.wait, signals, || {
        open_once(args).map_err(|(error, text)| {
            let is_taken =
                error.raw_os_error() == Some(libc::EBUSY) || error.kind() == io::ErrorKind::AddrInUse;
            if is_taken { Refused::Taken(text) } else { Refused::ForGood(text) }
        })
    })
}

/// Opens device and socket, or takes over those of the parent. Of an error there is also the text for people.
fn open_once(args: &InterfaceArgs) -> Result<(Tun, Socket), (io::Error, String)> {
    let given = args.name.as_deref().unwrap_or_default();
    let tun = match args.tun_fd.and_then(|fd| fd.0) {
        Some(fd) => inherited(fd).and_then(|fd| Tun::from_fd(fd, args.workers(), &args.offload())),
        None => {
            Tun::create(given, args.workers(), &args.offload()).and_then(|tun| set_mtu(&tun).map(|()| tun))
        }
    };
    let tun = tun.map_err(|error| {
        let text = format!("{given}: cannot open the TUN device: {}", explained(&error));
        (error, text)
    })?;
    let socket = match args.uapi_fd.and_then(|fd| fd.0) {
        Some(fd) => inherited(fd).and_then(|fd| Socket::from_fd(fd, tun.name())),
        None => Socket::open(tun.name()),
    };
    let socket = socket.map_err(|error| {
        let text = format!("{}: the configuration socket: {error}", tun.name());
        (error, text)
    })?;
    Ok((tun, socket))
}

/// Gives the interface the MTU that it has unless somebody knows a better one.
///
/// # Errors
/// If it has gone.
pub(super) fn set_mtu(tun: &Tun) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link(tun.name())?.index;
    netlink.set_mtu(index, DEFAULT_MTU)
}

/// Takes over a descriptor that the parent has left open for us.
fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let explained = |error: io::Error| io::Error::new(error.kind(), format!("descriptor {fd}: {error}"));
    process::inherited(fd).map_err(explained)
}

fn explained(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (this needs root, or CAP_NET_ADMIN and access to /dev/net/tun)",
        Some(libc::EBUSY) => " (an interface of that name exists and is in use)",
        Some(libc::ENOENT) => " (the kernel lacks the tun module, or /dev/net/tun was not made)",
        Some(libc::EINVAL) => " (an interface of that name exists and is no TUN device of this kind)",
        Some(_) | None => "",
    };
    format!("{error}{hint}")
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// Waits for a reason to leave.
fn wait(
    signals: &Signals,
    closed: &Wake,
    watch: Option<&Watch>,
    socket: &Socket,
    device: &Device,
) -> &'static str {
    let mut waits = Waits::default();
    let mut watchdog = Watchdog::of_environment();
    loop {
        // Also before the first wait: it may have gone before it was watched.
        let lost = watch.map_or(Ok(false), |_| socket.has_lost_name());
        if lost.as_ref().is_ok_and(|is_lost| *is_lost) {
            return "the configuration socket was removed";
        }
        let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(closed, PollFlags::IN)];
        fds.extend(watch.map(|watch| PollFd::new(watch, PollFlags::IN)));
        if let Some(watchdog) = &mut watchdog {
            // Nothing is changed; the thread that changes things has to answer.
            watchdog.tell(|| device.apply(Vec::new()).is_ok());
        }
        let until = watchdog.as_ref().map(|watchdog| watchdog.next().saturating_sub(clock::boottime()));
        // What could not be looked up is again.
        let until = until.into_iter().chain(lost.is_err().then_some(PAUSE)).min();
        waits.have_told(poll(&mut fds, until.map(timespec).as_ref()), PAUSE);
        // Told or not, each is asked.
        if signals.take() {
            return "a signal";
        }
        if closed.take() {
            return "the device was deleted";
        }
        if let Some(watch) = watch {
            watch.clear();
        }
    }
}
