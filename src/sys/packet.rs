//! What an interface sends and receives, read and written beside the kernel (packet(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// A capture of all frames of one interface.
#[derive(Debug)]
pub struct Capture(Socket);

impl Capture {
    /// Starts to capture on the interface with this index in the calling thread's network namespace.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`; `ENXIO` if there is no such interface.
    pub fn open(interface: u32) -> io::Result<Self> {
        let every = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
        // Without a protocol nothing is captured before the socket is bound to the one interface.
        let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), None::<Protocol>)?;
        // Losing frames would make a search of the capture prove less.
        let _ = socket.set_recv_buffer_size(64 << 20);
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: a sockaddr_ll is plain numbers that fit into the storage.
        let addr: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
        addr.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        addr.sll_protocol = every;
        addr.sll_ifindex = i32::try_from(interface).unwrap_or_default();
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        // SAFETY: the storage holds a sockaddr_ll of this length.
        let addr = unsafe { SockAddr::new(storage, len) };
        socket.bind(&addr)?;
        Ok(Self(socket))
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        let mut reader = &self.0;
        io::Read::read(&mut reader, frame)
    }

    /// Sends one frame, whatever it holds, out of the interface.
    ///
    /// # Errors
    /// `ENETDOWN` while the interface is down; `EMSGSIZE` for more than its MTU.
    pub fn write(&self, frame: &[u8]) -> io::Result<usize> {
        self.0.send(frame)
    }

    /// Returns how many frames were lost since the last call because they were not read in time.
    ///
    /// # Errors
    /// Never for an open socket.
    pub fn take_lost(&self) -> io::Result<u32> {
        use std::os::fd::AsRawFd;
        let mut stats = MaybeUninit::<libc::tpacket_stats>::zeroed();
        let mut len = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).unwrap_or_default();
        let fd = self.0.as_raw_fd();
        let into = stats.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `len` bytes, the size of `stats`.
        let result =
            unsafe { libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, into, &raw mut len) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was zeroed, and any numbers the kernel wrote are values.
        Ok(unsafe { stats.assume_init() }.tp_drops)
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
