//! The kernel for AVX-512 with IFMA: ChaCha20 with 32 blocks a pass, Poly1305 with eight packets a group.

mod chacha;
mod poly;

use super::batch::{self, Scratch};
use super::lanes::{GROUP_MAX, Group, Lanes, PolyKeys};
use super::{Packet, Way, kernel};

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

kernel!(Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512ifma,avx512vbmi2", {
    const LANES: usize = 32;
    const STEP: usize = 16;
    const GROUP: usize = 8;
    const FEWEST: usize = 4;
    const LONGEST: usize = 1 << 20;
});
