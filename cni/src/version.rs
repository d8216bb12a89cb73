//! Versions of the specification.

use std::fmt;

use serde_json::Value;

/// A version that is supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK came.
    V0_4_0,
    /// 1.0.0: addresses have lost their version.
    V1_0_0,
    /// 1.1.0: GC and STATUS came, and results tell more.
    V1_1_0,
}

impl Version {
    /// Every version, in their order.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The latest.
    pub const LATEST: Self = Self::V1_1_0;

    /// Returns the version of this name, if it is supported.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the version that `input` names, whether or not it is supported: what is answered is in the version of the question.
pub fn said(input: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(input).ok()?;
    value.get("cniVersion")?.as_str().map(str::to_owned)
}
