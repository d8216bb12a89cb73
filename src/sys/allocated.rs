//! What is allocated, by the thread that allocates it, and what lies in memory that it gives back: only in unit tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
    /// What is looked for in memory that is given back, and how often it was found.
    static SOUGHT: Cell<Option<([u8; 32], usize)>> = const { Cell::new(None) };
}

/// Runs `act` and returns, beside its result, how many bytes this thread has allocated in it and not given back.
pub(crate) fn allocated<T>(act: impl FnOnce() -> T) -> (T, isize) {
    let before = BYTES.get();
    let result = act();
    (result, BYTES.get() - before)
}

/// Runs `act` and returns, beside its result, how many pieces of memory this thread has given back in it that held `secret`.
pub(crate) fn left_behind<T>(secret: [u8; 32], act: impl FnOnce() -> T) -> (T, usize) {
    SOUGHT.set(Some((secret, 0)));
    let result = act();
    (result, SOUGHT.take().map_or(0, |(_, found)| found))
}

/// Looks into memory that is about to be given back, or to be moved.
fn look(at: *const u8, len: usize) {
    let sought = SOUGHT.try_with(Cell::get).ok().flatten();
    let Some((secret, found)) = sought else { return };
    // SAFETY: inside the allocation, which is still there. What was never written may be anything.
    let byte = |index: usize| unsafe { std::ptr::read_volatile(at.wrapping_add(index)) };
    let holds = |start: usize| secret.iter().zip(start..).all(|(&expected, index)| byte(index) == expected);
    if (0..(len + 1).saturating_sub(secret.len())).any(holds) {
        SOUGHT.set(Some((secret, found + 1)));
    }
}

fn count(bytes: usize, sign: isize) {
    // A thread that ends has no counter any more.
    let _ = BYTES.try_with(|count| count.set(count.get() + sign * bytes.cast_signed()));
}

// SAFETY: memory is the system allocator's, and so is every promise about it. Counting and looking allocate nothing.
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
        look(at, layout.size());
        count(layout.size(), -1);
        count(new, 1);
        // SAFETY: likewise.
        unsafe { System.realloc(at, layout, new) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        look(at, layout.size());
        count(layout.size(), -1);
        // SAFETY: likewise.
        unsafe { System.dealloc(at, layout) }
    }
}
