//! Bytes that must not be seen: wiped on drop, redacted when printed, compared in constant time.

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{Ordering, compiler_fence};

use subtle::ConstantTimeEq;

/// `N` secret bytes.
#[derive(Clone)]
pub struct Secret<const N: usize>([u8; N]);

impl<const N: usize> Secret<N> {
    /// Takes over `bytes`. The caller's own copy stays the caller's to wipe.
    pub fn new(bytes: [u8; N]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Tells in constant time whether all bytes are zero.
    pub fn is_zero(&self) -> bool {
        self.0.ct_eq(&[0; N]).into()
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl<const N: usize> Default for Secret<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Overwrites bytes that are not looked at again; the compiler is made to believe that they may be.
///
/// Faster than `zeroize`, which writes each byte by itself: a handshake wipes some thirty secrets.
pub(super) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(&mut *bytes);
    compiler_fence(Ordering::SeqCst);
}

/// Compares in constant time; slices of different lengths differ.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::ManuallyDrop;

    #[test]
    fn a_dropped_secret_is_wiped() {
        let mut secret = ManuallyDrop::new(Secret::new([0xa7; 32]));
        let bytes = std::ptr::from_ref(secret.as_bytes()).cast::<u8>();
        // SAFETY: inside the object, whose memory stays ours after the drop.
        let read = || (0..32).map(|at| unsafe { std::ptr::read_volatile(bytes.wrapping_add(at)) });
        assert!(read().all(|byte| byte == 0xa7));
        // SAFETY: dropped once, and only its bytes are looked at afterwards.
        unsafe { ManuallyDrop::drop(&mut secret) };
        assert!(read().all(|byte| byte == 0));
    }

    #[test]
    fn a_secret_is_not_printed_and_compared_whole() {
        let secret = Secret::new([7; 16]);
        assert_eq!(format!("{secret:?}"), "[redacted]");
        let mut other = [7; 16];
        other[15] = 8;
        assert!(secret != Secret::new(other) && secret == secret.clone());
        assert!(!equal(&[1, 2], &[1, 2, 3]) && equal(&[1, 2], &[1, 2]) && !equal(&[1, 2], &[1, 3]));
        assert!(Secret::<16>::default().is_zero() && !secret.is_zero());
    }
}
