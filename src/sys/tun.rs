//! TUN devices: IP packets as a file (`Documentation/networking/tuntap.rst`).

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// The longest name of an interface.
const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// `_IO('T', 227)`, Linux 5.3.
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// A TUN device and its queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    queues: Vec<Queue>,
}

impl Tun {
    /// Creates the device, or attaches to a persistent one that nobody uses. `%d` in the name is replaced by a free number.
    ///
    /// # Errors
    /// `EBUSY` if it is in use, `EPERM` without `CAP_NET_ADMIN`, `EINVAL` for a name that is no interface name or is not a TUN device's.
    pub fn create(name: &str, queues: usize) -> io::Result<Self> {
        let queues = queues.max(1);
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let first = attach(name, flags)?;
        let name = first.ifname()?;
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(attach(&name, flags)?);
        }
        Ok(Self { name, queues: all })
    }

    /// Takes over a device that another process opened, and attaches more queues if it was opened for several.
    ///
    /// # Errors
    /// If the descriptor is not a TUN queue without packet information.
    pub fn from_fd(fd: OwnedFd, queues: usize) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        let first = Queue(File::from(fd));
        let request = first.request()?;
        let flags = flags_of(&request);
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 || flags & libc::IFF_VNET_HDR != 0 {
            let text = "not a TUN device without packet information and virtio header";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let name = name_of(&request);
        let mut all = vec![first];
        if flags & libc::IFF_MULTI_QUEUE != 0 {
            let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
            for _ in 1..queues {
                all.push(attach(&name, flags)?);
            }
        }
        Ok(Self { name, queues: all })
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

fn attach(name: &str, flags: c_int) -> io::Result<Queue> {
    if name.is_empty() || name.len() > NAME_MAX || name.bytes().any(|byte| byte == 0 || byte == b'/') {
        let text = format!("{name:?} is no interface name: 1 to {NAME_MAX} bytes without a slash");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = new_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Queue(file)) }
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
pub struct Queue(File);

impl Queue {
    /// Reads one packet.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `EBADFD` once the device is gone.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buf)
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// `EIO` while the interface is down; `EINVAL` for what is no IP packet; `EBADFD` once the device is gone.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        (&self.0).write(packet)
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
        self.0.as_fd()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
