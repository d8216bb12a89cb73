//! Buffers between pages that must not be touched.

use std::ops::{Deref, DerefMut};
use std::{ptr, slice};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;

/// Bytes that begin right behind such a page, or end right before one.
pub(super) struct Guarded {
    map: *mut u8,
    map_len: usize,
    begin: usize,
    len: usize,
}

impl Guarded {
    /// Maps `len` bytes which end where the page begins, or, if `is_front`, begin where it ends; all are `fill`.
    pub(super) fn new(len: usize, is_front: bool, fill: u8) -> Self {
        let inner = len.next_multiple_of(PAGE);
        let map_len = inner + 2 * PAGE;
        // SAFETY: a new mapping of private memory, which is nobody's.
        let map = unsafe {
            mmap_anonymous(ptr::null_mut(), map_len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let map = map.unwrap().cast::<u8>();
        for guard in [0, PAGE + inner] {
            // SAFETY: a page of our mapping, to which there is no reference.
            unsafe { mprotect(map.wrapping_add(guard).cast(), PAGE, MprotectFlags::empty()) }.unwrap();
        }
        let begin = if is_front { PAGE } else { PAGE + inner - len };
        let mut buffer = Self { map, map_len, begin, len };
        buffer.fill(fill);
        buffer
    }

    /// Maps bytes that are a copy of these.
    pub(super) fn of(bytes: &[u8], is_front: bool) -> Self {
        let mut buffer = Self::new(bytes.len(), is_front, 0);
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Deref for Guarded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: between the guard pages of a mapping that lives as long as `self`.
        unsafe { slice::from_raw_parts(self.map.wrapping_add(self.begin), self.len) }
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; it is ours alone.
        unsafe { slice::from_raw_parts_mut(self.map.wrapping_add(self.begin), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: all of the mapping, to which there is no reference any more.
        unsafe { munmap(self.map.cast(), self.map_len) }.unwrap();
    }
}
