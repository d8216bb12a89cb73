//! The atomics and the queue of what threads share, which loom may replace by its own.
//!
//! loom runs a model in every order of the threads' steps and with every outcome of a load that the memory model allows. The models are
//! the tests called `loom_…` beside [`replay`](super::replay), [`timers`](super::timers), [`peer`](super::peer) and the device's lanes;
//! no other test runs in such a build:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib loom_
//! ```

#[cfg(all(feature = "device", not(all(loom, test))))]
pub(crate) use crossbeam_queue::ArrayQueue;
#[cfg(not(all(loom, test)))]
pub(super) use crossbeam_queue::SegQueue;
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32};
#[cfg(not(all(loom, test)))]
pub(super) use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64};

#[cfg(all(loom, test))]
pub(super) use modelled::{AtomicU8, AtomicU16, AtomicU64, SegQueue};

#[cfg(all(loom, test))]
pub(crate) use modelled::{ArrayQueue, AtomicBool, AtomicU32, model};

#[cfg(all(loom, test))]
mod modelled {
    use std::collections::VecDeque;
    use std::sync::atomic::Ordering;

    use loom::sync::Mutex;
    use loom::sync::atomic::fence;

    /// Searches every run of `f`; in one run, a thread is interrupted at most three times where it could go on.
    pub(crate) fn model(f: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(f);
    }

    /// loom takes a sequentially consistent access for an acquiring and releasing one. Fences on both sides make it what it is.
    fn fenced<R>(order: Ordering, access: impl FnOnce() -> R) -> R {
        let is_seq_cst = order == Ordering::SeqCst;
        if is_seq_cst {
            fence(Ordering::SeqCst);
        }
        let result = access();
        if is_seq_cst {
            fence(Ordering::SeqCst);
        }
        result
    }

    macro_rules! atomic {
        ($name:ident, $type:ty, $($method:ident($($arg:ident: $arg_type:ty),*) -> $result:ty;)*) => {
            #[derive(Debug)]
            pub(crate) struct $name(loom::sync::atomic::$name);

            impl $name {
                pub(crate) fn new(value: $type) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                $(pub(crate) fn $method(&self, $($arg: $arg_type,)* order: Ordering) -> $result {
                    fenced(order, || self.0.$method($($arg,)* order))
                })*
            }
        };
    }

    atomic!(AtomicBool, bool,
        load() -> bool;
        store(value: bool) -> ();
        swap(value: bool) -> bool;
    );
    atomic!(AtomicU8, u8,
        swap(value: u8) -> u8;
        fetch_or(value: u8) -> u8;
    );
    atomic!(AtomicU16, u16,
        load() -> u16;
        swap(value: u16) -> u16;
    );
    atomic!(AtomicU32, u32,
        load() -> u32;
        store(value: u32) -> ();
        fetch_add(value: u32) -> u32;
        fetch_sub(value: u32) -> u32;
    );
    atomic!(AtomicU64, u64,
        load() -> u64;
        store(value: u64) -> ();
        fetch_add(value: u64) -> u64;
        fetch_max(value: u64) -> u64;
    );

    impl AtomicU64 {
        pub(crate) fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            fenced(success, || self.0.compare_exchange(old, new, success, failure))
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            old: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.compare_exchange(old, new, success, failure)
        }
    }

    /// A queue whose operations are atomic, as those of the real one are.
    #[derive(Debug)]
    pub(crate) struct SegQueue<T>(Mutex<VecDeque<T>>);

    impl<T> SegQueue<T> {
        pub(crate) fn new() -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        pub(crate) fn push(&self, value: T) {
            self.0.lock().unwrap().push_back(value);
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.0.lock().unwrap().pop_front()
        }

        pub(crate) fn len(&self) -> usize {
            self.0.lock().unwrap().len()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    /// A queue with an end, likewise.
    #[derive(Debug)]
    pub(crate) struct ArrayQueue<T>(Mutex<VecDeque<T>>, usize);

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(room: usize) -> Self {
            Self(Mutex::new(VecDeque::new()), room)
        }

        pub(crate) fn push(&self, value: T) -> Result<(), T> {
            let mut queue = self.0.lock().unwrap();
            if queue.len() == self.1 {
                return Err(value);
            }
            queue.push_back(value);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.0.lock().unwrap().pop_front()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.0.lock().unwrap().is_empty()
        }
    }
}
