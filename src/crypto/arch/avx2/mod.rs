//! The kernel for AVX2: ChaCha20 with 16 blocks a pass, Poly1305 with four packets a group.

mod chacha;
mod poly;

use super::batch::{self, Scratch};
use super::lanes::{GROUP_MAX, Group, Lanes, PolyKeys};
use super::{Packet, Way, kernel};

/// The proof that this CPU has AVX2.
#[derive(Clone, Copy, Debug)]
pub(in crate::crypto) struct Avx2(());

impl Avx2 {
    /// Detects.
    pub(in crate::crypto) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

kernel!(Avx2, "avx2", {
    const LANES: usize = 16;
    const STEP: usize = 8;
    const GROUP: usize = 4;
    const FEWEST: usize = 4;
    /// Measured on Zen 5: a fifth faster than ring at 1440 bytes, a fifteenth at 8900. CPUs with shorter latencies gain less.
    const LONGEST: usize = 2048;
});
