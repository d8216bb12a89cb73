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
//! handshakes_us_500=0        handshakes from the first initiation to the confirmed session that took at most so many microseconds,
//! handshakes_us_1000=3       and more than in the line before
//! …
//! handshakes_us_inf=0        those that took longer
//! handshakes_us_sum=2107     the time of all together in microseconds
//! errno=0
//!
//! ```
//!
//! Counters begin at 0 with the process and only grow. A client passes over keys that it does not know. Nothing here is secret, but the
//! socket is the same, and so is who may open it.

use std::fmt::Write;

use crate::config::{Durations, Statistics};

/// What stands before the name of a reason.
const DROPPED: &str = "dropped_";

/// What stands before a bound of how long handshakes took.
const HANDSHAKES: &str = "handshakes_us_";

/// Returns the lines of the reply, without `errno=0`.
pub fn print(statistics: &Statistics) -> String {
    let Statistics { version, crypto, workers, dropped, handshakes } = statistics;
    let mut text = format!("version={version}\ncrypto={crypto}\nworkers={workers}\n");
    for (reason, packets) in dropped {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{DROPPED}{reason}={packets}");
    }
    let Durations { within, longer, sum } = handshakes;
    for (bound, count) in within {
        let _ = writeln!(text, "{HANDSHAKES}{}={count}", bound.as_micros());
    }
    let _ = writeln!(text, "{HANDSHAKES}inf={longer}\n{HANDSHAKES}sum={}", sum.as_micros());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_value_has_a_line() {
        let dropped = [("no_peer", 0), ("replayed", u64::MAX)];
        let statistics = Statistics {
            version: "1.2.3".to_owned(),
            crypto: "avx2".to_owned(),
            workers: 2,
            dropped: dropped.map(|(reason, packets)| (reason.to_owned(), packets)).into(),
            handshakes: Durations {
                within: [(500, 1), (1_000, 0)]
                    .map(|(micros, count)| (Duration::from_micros(micros), count))
                    .into(),
                longer: 2,
                sum: Duration::from_nanos(2_107_999),
            },
        };
        let expected = "version=1.2.3\ncrypto=avx2\nworkers=2\ndropped_no_peer=0\ndropped_replayed=18446744073709551615\n\
            handshakes_us_500=1\nhandshakes_us_1000=0\nhandshakes_us_inf=2\nhandshakes_us_sum=2107\n";
        assert_eq!(print(&statistics), expected);
    }
}
