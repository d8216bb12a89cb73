//! The kernel for AVX2: ChaCha20 with 16 blocks a pass, Poly1305 with four packets a group.

mod chacha;
mod poly;

use super::batch::{self, Scratch};
use super::lanes::{GROUP_MAX, Group, Lanes, PolyKeys};
use super::{Kernel, Packet, Way};

/// The proof that this CPU has AVX2.
#[derive(Clone, Copy, Debug)]
pub(in crate::crypto) struct Avx2(());

impl Avx2 {
    /// Detects.
    pub(in crate::crypto) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl Kernel for Avx2 {
    const LANES: usize = 16;
    const STEP: usize = 8;
    const GROUP: usize = 4;
    const FEWEST: usize = 4;
    /// Measured on Zen 5: a fifth faster than ring at 1440 bytes, a fifteenth at 8900. CPUs with shorter latencies gain less.
    const LONGEST: usize = 2048;

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

#[target_feature(enable = "avx2")]
fn run(kernel: Avx2, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64 {
    batch::run(kernel, packets, way, scratch)
}
