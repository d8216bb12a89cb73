//! Errors as the specification has them, [CNI] §5.

use std::fmt;
use std::io;

use serde_json::{Value, json};

/// A kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that is not supported.
    IncompatibleVersion,
    /// There is no such container any more.
    UnknownContainer,
    /// An environment variable lacks or is invalid.
    Environment,
    /// The system refused.
    Io,
    /// What was read is no JSON, or of another form.
    Decode,
    /// The configuration says something that cannot be.
    Config,
    /// It may work later.
    TryAgain,
    /// An ADD would fail.
    Unavailable,
    /// An ADD would fail, and pods that are there may be cut off.
    UnavailableAndLimited,
    /// The attachment is there already.
    Exists,
    /// Something is not as the result of ADD said it would be.
    Changed,
    /// Another plugin's, or the agent's.
    Other(u32),
}

impl Code {
    /// Returns the number.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::TryAgain => 11,
            Self::Unavailable => 50,
            Self::UnavailableAndLimited => 51,
            Self::Exists => 100,
            Self::Changed => 101,
            Self::Other(number) => number,
        }
    }
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Its kind.
    pub code: Code,
    /// What is wrong.
    pub text: String,
}

impl Error {
    /// Says that something is wrong.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Says that the system refused `what`.
    pub fn io(what: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        Self::new(Code::Io, format!("{what}: {}", error.into()))
    }

    /// Returns the error as it is printed to who asked in the version `said`.
    pub fn print(&self, said: Option<&str>) -> Value {
        json!({ "cniVersion": said.unwrap_or("1.1.0"), "code": self.code.number(), "msg": self.text })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.text, self.code.number())
    }
}

impl std::error::Error for Error {}
