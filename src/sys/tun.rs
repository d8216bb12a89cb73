//! TUN devices: IP packets as a file (`Documentation/networking/tuntap.rst`).

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::fault::{self, Call};
use super::netlink::Netlink;
use super::netns;
use super::offload::{Active, Feature, Switch, Wanted};

/// The longest name of an interface.
const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// `_IO('T', 227)`, Linux 5.3.
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// Length of the virtio header (`struct virtio_net_hdr`) before each packet of a queue that has them.
const HEADER_LEN: usize = 10;
/// Length of its longer form (`struct virtio_net_hdr_v1_hash_tunnel`), which begins with the shorter one.
pub const HEADER_MAX: usize = 24;

/// `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;

/// Attempts to have a device whose holders leave as we come.
const ATTEMPTS: u32 = 16;

/// Packets that the kernel keeps for each queue.
const QUEUE_LENGTH: u32 = 1000;

/// So many times that number at most, however many queues there are.
const QUEUE_LENGTHS_MAX: usize = 16;

/// `linux/if_tun.h`.
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;
const TUN_F_UDP_TUNNEL_GSO: u32 = 0x080;
const TUN_F_UDP_TUNNEL_GSO_CSUM: u32 = 0x100;

/// A TUN device and its queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    queues: Vec<Queue>,
    offloads: Active,
}

impl Tun {
    /// Creates the device, or attaches to a persistent one that nobody uses. `%d` in the name is replaced by a free number.
    ///
    /// There are fewer queues than asked for where the kernel has only one a device.
    ///
    /// # Errors
    /// `EBUSY` if it is in use, `EPERM` without `CAP_NET_ADMIN`, `EINVAL` for a name that is no interface name or is not a TUN device's.
    pub fn create(name: &str, queues: usize, wanted: &Wanted) -> io::Result<Self> {
        check_name(name)?;
        let wants_queues = queues > 1 && wanted.tries(Feature::MultiQueue);
        let wants_header = wanted.tries(Feature::VnetHeader);
        // What the kernel does not know it ignores or refuses. One queue with super-packets is worth more than many without.
        let sets = [(true, true), (false, true), (true, false), (false, false)];
        let mut sets =
            sets.into_iter().filter(|&(many, header)| many <= wants_queues && header <= wants_header);
        let mut set = sets.next().unwrap_or_default();
        let (first, is_new) = loop {
            let (many, header) = set;
            let flags =
                if many { libc::IFF_MULTI_QUEUE } else { 0 } | if header { libc::IFF_VNET_HDR } else { 0 };
            match (attach_alone(name, flags), sets.next()) {
                (Err(error), Some(next)) if error.raw_os_error() == Some(libc::EINVAL) => set = next,
                (result, _) => break result?,
            }
        };
        let refused = |has: bool| if has { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) };
        let this = Self::with_first(first, queues, wanted)?;
        wanted.attempt(Feature::VnetHeader, || refused(this.offloads.has(Feature::VnetHeader)))?;
        if queues > 1 {
            wanted.attempt(Feature::MultiQueue, || refused(this.offloads.has(Feature::MultiQueue)))?;
        }
        if is_new {
            // The default is little for what a burst of single packets may be; who has no right to change it goes on with it.
            let _ = this.lengthen_queue();
        }
        Ok(this)
    }

    /// Lets the kernel keep more packets for us than the 500 that are its default (`tun_net_init`).
    fn lengthen_queue(&self) -> io::Result<()> {
        // Before Linux 4.8 all queues share the number.
        let queues = self.queues.len().min(QUEUE_LENGTHS_MAX);
        let len = u32::try_from(queues).unwrap_or(1) * QUEUE_LENGTH;
        let mut netlink = Netlink::open()?;
        let index = netlink.link(&self.name)?.index;
        netlink.set_queue_len(index, len)
    }

    /// Takes over a device that another process opened, and attaches more queues if it was opened for several.
    ///
    /// # Errors
    /// If the descriptor is not a TUN queue without packet information.
    pub fn from_fd(fd: OwnedFd, queues: usize, wanted: &Wanted) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        let first = Queue { file: File::from(fd), header_len: 0 };
        let flags = flags_of(&first.request()?);
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 {
            let text = "not a TUN device without packet information";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let header_len = if flags & libc::IFF_VNET_HDR != 0 { HEADER_LEN } else { 0 };
        Self::with_first(Queue { header_len, ..first }, queues, wanted)
    }

    fn with_first(mut first: Queue, queues: usize, wanted: &Wanted) -> io::Result<Self> {
        let request = first.request()?;
        let (name, flags) = (name_of(&request), flags_of(&request));
        let has = |flag| flags & flag != 0;
        let mut offloads = Active::default();
        offloads.set(Feature::VnetHeader, first.header_len > 0);
        if first.header_len > 0 {
            first.set_offloads(wanted, &mut offloads)?;
        } else {
            // A device that was there before may bring super-packets, which nothing tells from packets without a header.
            let _ = first.try_offloads(0);
            for feature in [Feature::Tso, Feature::Uso, Feature::Coalesce, Feature::CoalesceUdp] {
                wanted.attempt(feature, || Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)))?;
            }
        }
        let mut all = vec![first];
        if has(libc::IFF_MULTI_QUEUE) && queues > 1 {
            let flags = flags & (libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR);
            let more = || more_queues(&name, flags, queues - 1);
            // A name means something else in another network namespace.
            all.extend(match all[0].netns() {
                Ok(home) if !netns::is_current(&home)? => netns::run_in(home, more).unwrap_or_default(),
                Ok(_) => more()?,
                Err(_) if Netlink::open()?.link(&name).is_ok() => more()?,
                Err(_) => Vec::new(),
            });
        }
        // The length of the header is the device's.
        let header_len = all[0].header_len;
        all.iter_mut().for_each(|queue| queue.header_len = header_len);
        offloads.set(Feature::MultiQueue, all.len() > 1);
        Ok(Self { name, queues: all, offloads })
    }

    /// Returns what is in use of the features of TUN devices.
    pub fn offloads(&self) -> Active {
        self.offloads
    }

    /// Returns the device's name at this time; it can be renamed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the queues.
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// Returns the queues.
    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }
}

/// Kernel `dev.c`, `dev_valid_name`.
fn check_name(name: &str) -> io::Result<()> {
    let is_bad = |byte: u8| matches!(byte, 0 | b'/' | b':' | 0x0b) || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > NAME_MAX || matches!(name, "." | "..") || name.bytes().any(is_bad) {
        let text =
            format!("{name:?} is no interface name: 1 to {NAME_MAX} bytes without slash, colon and space");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// Makes the device with its first queue, or opens a queue of one that nobody holds. Tells whether it was made.
fn attach_alone(name: &str, flags: c_int) -> io::Result<(Queue, bool)> {
    let is = |error: &io::Error, errno| error.raw_os_error() == Some(errno);
    let mut attempts = 0;
    loop {
        let error = match attach(name, flags | libc::IFF_TUN_EXCL) {
            Err(error) if is(&error, libc::EBUSY) => error,
            made => return made.map(|queue| (queue, true)),
        };
        attempts += 1;
        // It exists. A device of many queues is open to whoever comes: its packets would be shared out among two programs.
        match Netlink::open()?.link(name) {
            Ok(link) if link.carrier => return Err(error),
            Ok(_) => break,
            // Whoever had it has just left.
            Err(gone) if is(&gone, libc::ENODEV) && attempts < ATTEMPTS => {}
            Err(gone) if is(&gone, libc::ENODEV) => return Err(error),
            Err(error) => return Err(error),
        }
    }
    let queue = attach(name, flags).or_else(|error| {
        if is(&error, libc::EINVAL) { attach(name, flags ^ libc::IFF_MULTI_QUEUE) } else { Err(error) }
    })?;
    Ok((queue, false))
}

/// Opens so many more queues of the device, or as many as the kernel has: from Linux 3.8 to 3.19 eight (`MAX_TAP_QUEUES`).
fn more_queues(name: &str, flags: c_int, count: usize) -> io::Result<Vec<Queue>> {
    let mut queues = Vec::new();
    for _ in 0..count {
        match fault::check(Call::MoreQueues).and_then(|()| attach(name, flags)) {
            Ok(queue) => queues.push(queue),
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(queues)
}

/// Opens a queue of the device; `flags` are added to those that every queue has.
fn attach(name: &str, flags: c_int) -> io::Result<Queue> {
    check_name(name)?;
    for (flag, call) in [(libc::IFF_MULTI_QUEUE, Call::MultiQueue), (libc::IFF_VNET_HDR, Call::VnetHeader)] {
        if flags & flag != 0 {
            fault::check(call)?;
        }
    }
    let flags = flags | libc::IFF_TUN | libc::IFF_NO_PI;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = new_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = u16::try_from(flags).unwrap_or_default().cast_signed();
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Queue { file, header_len: if flags & libc::IFF_VNET_HDR != 0 { HEADER_LEN } else { 0 } })
}

fn new_request() -> libc::ifreq {
    // SAFETY: an ifreq is plain numbers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn flags_of(request: &libc::ifreq) -> c_int {
    // SAFETY: every bit pattern is a number.
    c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & 0xffff
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> =
        request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One queue of a device: packets of one flow come out of the same queue.
#[derive(Debug)]
pub struct Queue {
    file: File,
    header_len: usize,
}

impl Queue {
    /// Returns the length of the virtio header that stands before each packet: at most [`HEADER_MAX`], 0 for none.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Reads one packet with its header.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `EBADFD` once the device is gone; `EINVAL` or `ENOMEM` for one that the kernel cannot hand out.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        fault::check(Call::TunRead)?;
        (&self.file).read(buf)
    }

    /// Writes one packet that is complete.
    ///
    /// # Errors
    /// `EIO` while the interface is down; `EINVAL` for what is no IP packet; `EBADFD` once the device is gone.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        fault::check(Call::TunWrite)?;
        if self.header_len > 0 {
            let header = &[0; HEADER_MAX][..self.header_len];
            return (&self.file).write_vectored(&[IoSlice::new(header), IoSlice::new(packet)]);
        }
        (&self.file).write(packet)
    }

    /// Writes one packet or super-packet; the first of `parts` is its virtio header.
    ///
    /// # Errors
    /// As [`Self::write`]; `EINVAL` also from kernels that refuse a super-packet.
    pub fn write_with_header(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // Where the header says that it is a super-packet: virtio's gso_type.
        match parts.first().and_then(|header| header.get(1)) {
            Some(1 | 4) => fault::check(Call::TunWriteTcp)?,
            Some(5) => fault::check(Call::TunWriteUdp)?,
            Some(_) | None => {}
        }
        (&self.file).write_vectored(parts)
    }

    /// Asks for super-packets; the kernel cuts them itself where it or the operator does not want that.
    fn set_offloads(&mut self, wanted: &Wanted, active: &mut Active) -> io::Result<()> {
        // Another program may have left a longer one. A kernel that does not know the call knows no other length.
        let _ = self.set_header_len(HEADER_LEN);
        let tcp = TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        // A device that was opened by somebody else may have any.
        let mut bits = if self.try_offloads(TUN_F_CSUM).is_ok() { TUN_F_CSUM } else { 0 };
        for (feature, call, more) in
            [(Feature::Tso, Call::Tso, tcp), (Feature::Uso, Call::Uso, TUN_F_USO4 | TUN_F_USO6)]
        {
            let attempt = || fault::check(call).and_then(|()| self.try_offloads(bits | more));
            if wanted.attempt(feature, attempt)? {
                active.set(feature, true);
                bits |= more;
            }
        }
        let tunnels = || {
            fault::check(Call::TunnelGso)?;
            self.set_header_len(HEADER_MAX)?;
            let attempt = self.try_offloads(bits | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM);
            if attempt.is_err() {
                self.set_header_len(HEADER_LEN)?;
            }
            attempt
        };
        active.set(
            Feature::TunnelGso,
            active.has(Feature::Tso) && wanted.attempt(Feature::TunnelGso, tunnels)?,
        );
        if active.has(Feature::TunnelGso) {
            bits |= TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM;
        }
        active.set(Feature::Coalesce, wanted.attempt(Feature::Coalesce, || Ok(()))?);
        // Kernels that know UDP super-packets take them as well; the older ones lose them in VXLAN and Geneve (tailscale #11026).
        let is_safe =
            wanted.switch(Feature::CoalesceUdp) == Switch::On || fault::kernel_version() >= [6, 8, 5];
        let knows_udp = || {
            fault::check(Call::Uso)?;
            self.try_offloads(TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6).and_then(|()| self.try_offloads(bits))
        };
        active.set(Feature::CoalesceUdp, is_safe && wanted.attempt(Feature::CoalesceUdp, knows_udp)?);
        Ok(())
    }

    /// Linux 2.6.31.
    fn set_header_len(&mut self, len: usize) -> io::Result<()> {
        fault::check(Call::VnetHeaderLen)?;
        let value = c_int::try_from(len).unwrap_or(0);
        // SAFETY: the kernel reads one int, which outlives the call.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), TUNSETVNETHDRSZ, &raw const value) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        self.header_len = len;
        Ok(())
    }

    fn try_offloads(&self, bits: u32) -> io::Result<()> {
        if bits & TUN_F_CSUM != 0 {
            fault::check(Call::Checksum)?;
        }
        // SAFETY: the argument of this request is a number.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(bits)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Tells whether the link is up, for who cannot ask for it: it may be in another namespace. Before Linux 4.6 it always seems so.
    pub fn seems_up(&self) -> bool {
        // Kernel `tun.c`, `tun_get_user`: EIO while it is down. Otherwise the stack throws away what is no more than IPv4's first byte.
        let answer = self.write(&[0x45]);
        !answer.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
    }

    /// Tells whether the device still exists.
    pub fn is_attached(&self) -> bool {
        self.request().is_ok()
    }

    /// Returns the device's name as it is now.
    ///
    /// # Errors
    /// `EBADFD` once the device is gone.
    pub fn ifname(&self) -> io::Result<String> {
        Ok(name_of(&self.request()?))
    }

    /// Returns the network namespace that the device is in now.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.3.
    pub fn netns(&self) -> io::Result<OwnedFd> {
        fault::check(Call::TunNetns)?;
        // SAFETY: this request has no argument and returns a new descriptor.
        let fd = unsafe { libc::ioctl(self.as_raw_fd(), TUNGETDEVNETNS) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: nobody else owns the descriptor, which was just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(fd)
    }

    fn request(&self) -> io::Result<libc::ifreq> {
        let mut request = new_request();
        // SAFETY: the kernel writes one ifreq, which outlives the call.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
