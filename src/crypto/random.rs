//! Where random bytes come from: the caller decides, so that tests can repeat themselves.

/// A source of cryptographically secure random bytes.
pub trait Random {
    /// Fills `bytes`.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// The operating system's generator (`getrandom(2)`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Os;

impl Random for Os {
    /// # Panics
    /// If the system has no random bytes to give, which it does not survive either.
    fn fill(&mut self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the system's random generator answers");
    }
}
