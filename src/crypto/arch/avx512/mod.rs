//! The kernel for AVX-512 with IFMA: ChaCha20 with 32 blocks a pass, Poly1305 with eight packets a group.

mod chacha;
mod poly;

use super::batch::{self, Scratch};
use super::lanes::{GROUP_MAX, Group, Lanes, PolyKeys};
use super::{Kernel, Packet, Way};

/// The proof that this CPU has AVX-512 F, BW, VL, DQ, IFMA and VBMI2.
#[derive(Clone, Copy, Debug)]
pub(in crate::crypto) struct Avx512(());

impl Avx512 {
    /// Detects.
    pub(in crate::crypto) fn new() -> Option<Self> {
        let is_fit = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512vbmi2");
        is_fit.then_some(Self(()))
    }
}

impl Kernel for Avx512 {
    const LANES: usize = 32;
    const STEP: usize = 16;
    const GROUP: usize = 8;
    const FEWEST: usize = 4;
    const LONGEST: usize = 1 << 20;

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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2")]
fn run(kernel: Avx512, packets: &[Packet<'_>], way: Way, scratch: &mut Scratch) -> u64 {
    batch::run(kernel, packets, way, scratch)
}
