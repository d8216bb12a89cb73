//! Which code does the work: chosen once, at the first use.

use std::fmt;
use std::sync::OnceLock;

use super::Job;
use super::library::Library;
use crate::crypto::arch::{BATCH_MAX, Batch, Kernel};
#[cfg(target_arch = "x86_64")]
use crate::crypto::arch::{avx2::Avx2, avx512::Avx512};

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Tier {
    /// The fastest that this CPU has.
    #[default]
    Auto,
    /// Batches with AVX-512 F, BW, VL, DQ, IFMA and VBMI2; single packets by `ring`.
    Avx512,
    /// Batches with AVX2; single packets by `ring`.
    Avx2,
    /// All by `ring`, which is what CPUs without AVX2 have.
    Ring,
    /// All by `chacha20poly1305`, and key agreement by `x25519-dalek`.
    Portable,
}

/// Why a tier cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This CPU lacks what it needs.
    Unfit(Tier),
    /// Another one is in use.
    Late,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unfit(Tier::Avx512) => {
                "this CPU lacks AVX-512 with its parts F, BW, VL, DQ, IFMA and VBMI2, or the system does not let it be used"
            }
            Self::Unfit(Tier::Avx2) => "this CPU lacks AVX2, or the system does not let it be used",
            Self::Unfit(Tier::Auto | Tier::Ring | Tier::Portable) => "this CPU lacks what it needs",
            Self::Late => "another one is in use already",
        })
    }
}

impl std::error::Error for Refused {}

/// Has everything done by `tier` from the first use on.
///
/// # Errors
/// [`Refused`], if this CPU lacks the tier, or another one is in use.
pub fn force(tier: Tier) -> Result<(), Refused> {
    let core = Core::new(tier).ok_or(Refused::Unfit(tier))?;
    if CHOSEN.get_or_init(|| core).name() == core.name() { Ok(()) } else { Err(Refused::Late) }
}

/// Returns the name of what is in use, `avx512`, `avx2`, `ring` or `portable`, and chooses it if nothing is.
pub fn tier() -> &'static str {
    chosen().name()
}

/// Tells whether the portable tier was asked for.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(in crate::crypto) fn is_portable() -> bool {
    matches!(chosen(), Core::Library(Library::Portable))
}

static CHOSEN: OnceLock<Core> = OnceLock::new();

pub(super) fn chosen() -> Core {
    *CHOSEN.get_or_init(Core::best)
}

/// What does the work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Core {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Library(Library),
}

impl Core {
    /// Returns what `tier` stands for, if this CPU has it.
    pub(super) fn new(tier: Tier) -> Option<Self> {
        match tier {
            Tier::Auto => Some(Self::best()),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => Avx512::new().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => Avx2::new().map(Self::Avx2),
            #[cfg(not(target_arch = "x86_64"))]
            Tier::Avx512 | Tier::Avx2 => None,
            Tier::Ring => Some(Self::Library(Library::Ring)),
            Tier::Portable => Some(Self::Library(Library::Portable)),
        }
    }

    fn best() -> Self {
        let fastest_first = [Tier::Avx512, Tier::Avx2];
        fastest_first.into_iter().find_map(Self::new).unwrap_or(Self::Library(Library::Ring))
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Library(Library::Ring) => "ring",
            Self::Library(Library::Portable) => "portable",
        }
    }

    /// Returns who does single packets.
    pub(super) fn library(self) -> Library {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) | Self::Avx2(_) => Library::Ring,
            Self::Library(library) => library,
        }
    }

    pub(super) fn run<J: Job>(self, jobs: &mut [J]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernel) => run_with(kernel, jobs),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(kernel) => run_with(kernel, jobs),
            Self::Library(library) => jobs.iter_mut().for_each(|job| job.run_alone(library)),
        }
    }
}

/// Has a kernel do what it is good at, and `ring` the rest.
#[cfg_attr(
    all(not(target_arch = "x86_64"), not(test)),
    expect(dead_code, reason = "no kernel is for this CPU")
)]
pub(super) fn run_with<K: Kernel, J: Job>(kernel: K, jobs: &mut [J]) {
    let batches = jobs.len().div_ceil(BATCH_MAX).max(1);
    // Batches of one size: a small one at the end would cost as much as a larger one.
    for jobs in jobs.chunks_mut(jobs.len().div_ceil(batches).max(1)) {
        let is_fit = |job: &J| job.text_len().is_some_and(|len| len <= K::LONGEST);
        if jobs.iter().filter(|job| is_fit(job)).count() < K::FEWEST {
            jobs.iter_mut().for_each(|job| job.run_alone(Library::Ring));
            continue;
        }
        let mut batch = Batch::new();
        let mut taken = 0_u64;
        for (at, job) in jobs.iter_mut().enumerate() {
            if is_fit(job) {
                taken |= 1 << at;
                batch.push(job.packet());
            } else {
                job.run_alone(Library::Ring);
            }
        }
        let mut authentic = batch.run(kernel, J::WAY);
        for (at, job) in jobs.iter_mut().enumerate() {
            if taken >> at & 1 == 1 {
                job.settle(authentic & 1 == 1);
                authentic >>= 1;
            }
        }
    }
}
