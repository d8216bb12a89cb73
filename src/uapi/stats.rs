//! Statistics as the reply to `stats=1`: an extension, for who wants to know more than `wg` can show.
//!
//! ```text
//! stats=1
//!
//! version=0.1.0              the data plane's version
//! crypto=avx512              the code that encrypts
//! workers=8                  worker threads
//! dropped_malformed=0        packets that went no further, one line for each reason: those of wireguard/dropped.rs
//! dropped_truncated=0
//! …
//! errno=0
//!
//! ```
//!
//! Counters begin at 0 with the process and only grow. A client passes over keys that it does not know. Nothing here is secret, but the
//! socket is the same, and so is who may open it.

use std::fmt::Write;

use crate::config::Statistics;

/// What stands before the name of a reason.
const DROPPED: &str = "dropped_";

/// Returns the lines of the reply, without `errno=0`.
pub fn print(statistics: &Statistics) -> String {
    let Statistics { version, crypto, workers, dropped } = statistics;
    let mut text = format!("version={version}\ncrypto={crypto}\nworkers={workers}\n");
    for (reason, packets) in dropped {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{DROPPED}{reason}={packets}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_line() {
        let dropped = [("no_peer", 0), ("replayed", u64::MAX)];
        let statistics = Statistics {
            version: "1.2.3".to_owned(),
            crypto: "avx2".to_owned(),
            workers: 2,
            dropped: dropped.map(|(reason, packets)| (reason.to_owned(), packets)).into(),
        };
        let expected = "version=1.2.3\ncrypto=avx2\nworkers=2\ndropped_no_peer=0\ndropped_replayed=18446744073709551615\n";
        assert_eq!(print(&statistics), expected);
    }
}
