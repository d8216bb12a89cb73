//! The atomics and the queue of what threads share, which loom may replace by its own.
//!
//! loom runs a model in every order of the threads' steps and with every outcome of a load that the memory model allows. The models are
//! the tests called `loom_…` beside [`replay`](super::replay), [`timers`](super::timers) and [`peer`](super::peer); no other test runs
//! in such a build:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib loom_
//! ```

#[cfg(not(all(loom, test)))]
pub(super) use crossbeam_queue::SegQueue;
#[cfg(not(all(loom, test)))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

#[cfg(all(loom, test))]
pub(super) use modelled::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, SegQueue};

#[cfg(all(loom, test))]
pub(super) use modelled::model;

#[cfg(all(loom, test))]
mod modelled {
    use std::collections::VecDeque;
    use std::sync::atomic::Ordering;

    use loom::sync::Mutex;
    use loom::sync::atomic::fence;

    /// Searches every run of `f`; in one run, a thread is interrupted at most three times where it could go on.
    pub(in crate::wireguard) fn model(f: impl Fn() + Sync + Send + 'static) {
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
            pub(in crate::wireguard) struct $name(loom::sync::atomic::$name);

            impl $name {
                pub(in crate::wireguard) fn new(value: $type) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                $(pub(in crate::wireguard) fn $method(&self, $($arg: $arg_type,)* order: Ordering) -> $result {
                    fenced(order, || self.0.$method($($arg,)* order))
                })*
            }
        };
    }

    atomic!(AtomicBool, bool,
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
        pub(in crate::wireguard) fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            fenced(success, || self.0.compare_exchange(old, new, success, failure))
        }

        pub(in crate::wireguard) fn compare_exchange_weak(
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
    pub(in crate::wireguard) struct SegQueue<T>(Mutex<VecDeque<T>>);

    impl<T> SegQueue<T> {
        pub(in crate::wireguard) fn new() -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        pub(in crate::wireguard) fn push(&self, value: T) {
            self.0.lock().unwrap().push_back(value);
        }

        pub(in crate::wireguard) fn pop(&self) -> Option<T> {
            self.0.lock().unwrap().pop_front()
        }

        pub(in crate::wireguard) fn len(&self) -> usize {
            self.0.lock().unwrap().len()
        }

        pub(in crate::wireguard) fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }
}
