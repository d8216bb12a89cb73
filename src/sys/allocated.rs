//! What is allocated, by the thread that allocates it: only in unit tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

/// Runs `act` and returns, beside its result, how many bytes this thread has allocated in it and not given back.
pub(crate) fn allocated<T>(act: impl FnOnce() -> T) -> (T, isize) {
    let before = BYTES.get();
    let result = act();
    (result, BYTES.get() - before)
}

fn count(bytes: usize, sign: isize) {
    // A thread that ends has no counter any more.
    let _ = BYTES.try_with(|count| count.set(count.get() + sign * bytes.cast_signed()));
}

// SAFETY: memory is the system allocator's, and so is every promise about it. Counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller keeps what `System` asks for, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: likewise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(new, 1);
        // SAFETY: likewise.
        unsafe { System.realloc(at, layout, new) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: likewise.
        unsafe { System.dealloc(at, layout) }
    }
}
