//! Where objects come from. Everything that waits is here; what follows from the objects is decided elsewhere.
//!
//! - [`directory`]: YAML files, for machines without a cluster.

pub mod directory;

use std::os::fd::BorrowedFd;

use super::objects::Objects;

/// A place that objects come from.
pub trait Source {
    /// Returns a descriptor that is readable when [`Self::take`] has something to do.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Takes in what has changed, and tells whether the objects may be others since.
    fn take(&mut self) -> bool;

    /// Looks at everything again, whether or not anything was told, and tells whether the objects may be others since.
    fn look_again(&mut self) -> bool;

    /// Returns the objects; `None` until every list was read to its end for the first time.
    fn objects(&self) -> Option<Objects>;
}
