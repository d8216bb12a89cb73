//! ChaCha20-Poly1305 (RFC 8439) over many packets at once: the lanes of a vector are filled with blocks of *several packets*.
//!
//! A library that seals one message at a time wastes most of a vector on a short packet, and needs powers of the Poly1305 key to fill
//! the rest. A batch of packets needs neither: every packet has a nonce and a one-time key of its own, and one lane for each.
//!
//! ```text
//! batch                                   generic over the kernel, no vector in it
//!   flatten: [the one-time key block of every packet][every block of text of packet 0][… of packet 1] …
//!   for each pass of LANES blocks of that list:
//!     opening in place: kernel.tags for every group of packets that the pass will overwrite
//!     kernel.pass: keystream; key blocks go to a table, the others are XORed onto the text
//!     else: kernel.tags for every group of packets that the pass before has finished
//! chacha     what the passes of all kernels have in common
//! lanes      the tables that batch and kernel share, and all of their pointers
//! avx512     a kernel: 32 blocks a pass, 8 packets a group
//! avx2       a kernel: 16 blocks a pass, 4 packets a group
//! emulated   a kernel in plain Rust with any number of lanes, for tests: the batch's order, masks and tails on any machine
//! ```
//!
//! **Constant time.** Only lengths, counts and counters drive branches and addresses. Key bits and text never do; whether a packet
//! is authentic is public, and is looked at only after all of its tag was compared. `cargo bench --bench timing` tests it statistically.
//!
//! **Wiping.** One-time keys, and the tables of key words of a batch under several keys, are overwritten at the end of a batch.
//! What the compiler spills of a vector to the stack within a kernel is not.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod batch;
#[cfg(target_arch = "x86_64")]
mod chacha;
#[cfg(test)]
pub(super) mod emulated;
mod lanes;
#[cfg(test)]
mod tests;

pub(super) use batch::{Batch, Way};
pub(super) use lanes::{BATCH_MAX, Packet};

use batch::Scratch;
use lanes::{GROUP_MAX, Group, Lanes, PolyKeys};

/// What a CPU does for a batch. A value is the proof that this CPU can: it is made by detection only.
pub(super) trait Kernel: Copy {
    /// Blocks in a pass.
    const LANES: usize;
    /// A pass costs the same for every number of blocks up to a multiple of this.
    const STEP: usize;
    /// Packets that are authenticated together.
    const GROUP: usize;
    /// With fewer packets a library is faster.
    const FEWEST: usize;
    /// With a longer packet a library is faster, or the tables have no room for its length.
    const LONGEST: usize;

    /// Runs [`batch::run`], compiled for this CPU.
    fn run(self, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64;

    /// Encrypts the blocks of `lanes`, under one `key` or each under its own; one-time keys are put in `keys`.
    fn pass(self, lanes: &Lanes, key: Option<&[u32; 8]>, keys: &mut PolyKeys);

    /// Computes the tags of a group whose one-time keys are those from `first` on, low half and high half.
    fn tags(self, keys: &PolyKeys, first: usize, group: &Group) -> [[u64; 2]; GROUP_MAX];
}

/// Makes a proof a kernel, whose `chacha::pass` and `poly::tags` are beside it and compiled for `$features`.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($proof:ident, $features:literal, { $($constants:item)+ }) => {
        impl $crate::crypto::arch::Kernel for $proof {
            $($constants)+

            fn run(self, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64 {
                // SAFETY: `self` is the proof that this CPU has what `run` is compiled for.
                unsafe { run(self, packets, way, scratch) }
            }

            #[inline(always)]
            fn pass(self, lanes: &Lanes, key: Option<&[u32; 8]>, keys: &mut PolyKeys) {
                match key {
                    // SAFETY: as in `run`.
                    Some(key) => unsafe { chacha::pass::<false>(lanes, key, keys) },
                    // SAFETY: as in `run`.
                    None => unsafe { chacha::pass::<true>(lanes, &[0; 8], keys) },
                }
            }

            #[inline(always)]
            fn tags(self, keys: &PolyKeys, first: usize, group: &Group) -> [[u64; 2]; GROUP_MAX] {
                // SAFETY: as in `run`.
                unsafe { poly::tags(keys, first, group) }
            }
        }

        #[target_feature(enable = $features)]
        fn run(kernel: $proof, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64 {
            batch::run(kernel, packets, way, scratch)
        }
    };
}
#[cfg(target_arch = "x86_64")]
use kernel;
