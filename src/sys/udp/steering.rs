//! Steering: a program in the kernel that chooses among the sockets of one port.

use std::io;

use super::UdpSocket;
use crate::sys::fault::{self, Call};
use crate::sys::sockopt;

impl UdpSocket {
    /// Lets the kernel choose among this socket and its siblings, in the order of their opening, by what a datagram carries: the
    /// little-endian number at bytes 4 to 7, modulo `data`, if the first four bytes are 4; the socket behind those otherwise.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.5.
    pub fn steer(&self, data: u32) -> io::Result<()> {
        fault::check(Call::Steering)?;
        // Classic BPF; the program sees the datagram's payload, and numbers big-endian.
        let load_word = |at| filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
        let load_byte = |at| filter(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
        let shift = |bits| filter(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, 0, 0, bits);
        let or_x = filter(libc::BPF_ALU | libc::BPF_OR | libc::BPF_X, 0, 0, 0);
        let to_x = filter(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0);
        let answer = filter(libc::BPF_RET | libc::BPF_A, 0, 0, 0);
        let program = [
            // The type: 4, little-endian, is data.
            load_word(0),
            filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 0x0400_0000),
            filter(libc::BPF_RET | libc::BPF_K, 0, 0, data),
            // The receiver, byte by byte from the highest.
            load_byte(7),
            shift(8),
            to_x,
            load_byte(6),
            or_x,
            shift(8),
            to_x,
            load_byte(5),
            or_x,
            shift(8),
            to_x,
            load_byte(4),
            or_x,
            filter(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, data),
            answer,
        ];
        let program = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(0),
            filter: program.as_ptr().cast_mut(),
        };
        sockopt::set_struct(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
    }
}

fn filter(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}
