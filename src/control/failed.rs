//! Why something could not be programmed.

use std::fmt;
use std::io;

use crate::sys::netlink::nftables::Refused;

/// What was to be done, and why the kernel did not do it.
#[derive(Debug)]
pub struct Failed {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Failed {
    /// Says that `what` failed with `error`.
    pub fn new(what: impl Into<String>, error: io::Error) -> Self {
        Self { what: what.into(), source: error.into() }
    }
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self { what: "firewall".to_owned(), source: refused.into() }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_ref())
    }
}
