//! The text format of Prometheus, version 0.0.4: families of samples, each with its help and its type. Pure.
//!
//! It is a page of rules (<https://prometheus.io/docs/instrumenting/exposition_formats/>), and all values here are whole numbers or seconds,
//! which is why there is no library.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::config::Durations;

/// What [`Exposition::text`] is to be served as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The upper bounds of a [`Histogram`]'s buckets in microseconds, but for the last one, which has none.
const BOUNDS: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// How a family's values behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// They only grow, until the process starts anew.
    Counter,
    /// They go up and down.
    Gauge,
}

/// Durations, counted by length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// How many were within each bound, and not within the one before.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, duration: Duration) {
        let at = BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < duration);
        self.counts[at] += 1;
        self.sum += duration;
    }

    /// Returns how many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns what was counted.
    pub fn durations(&self) -> Durations {
        Durations {
            within: BOUNDS.map(Duration::from_micros).into_iter().zip(self.counts).collect(),
            longer: self.counts[BOUNDS.len()],
            sum: self.sum,
        }
    }
}

/// A text that grows family by family.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family. Its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Type, help: &str) -> Family<'_> {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        self.head(name, kind, help);
        Family { text: &mut self.text, name }
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, name: &'static str, help: &str, durations: &Durations) {
        self.head(name, "histogram", help);
        let mut total = 0;
        for (bound, count) in &durations.within {
            total += count;
            self.line(format_args!("{name}_bucket{{le=\"{}\"}} {total}", bound.as_secs_f64()));
        }
        total += durations.longer;
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {total}"));
        self.line(format_args!("{name}_sum {}", durations.sum.as_secs_f64()));
        self.line(format_args!("{name}_count {total}"));
    }

    /// Returns the whole text.
    pub fn text(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// A family whose samples are added.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// Adds a sample with these labels, which no other of the family has.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for letter in text.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    letter => self.text.push(letter),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut exposition = Exposition::default();
        let mut family = exposition.family("a_total", Type::Counter, "What it is.");
        family.sample(&[], 1);
        family.sample(&[("b", "c\\d\"e\nf"), ("g", "")], u64::MAX);
        let expected = "# HELP a_total What it is.\n# TYPE a_total counter\na_total 1\n\
            a_total{b=\"c\\\\d\\\"e\\nf\",g=\"\"} 18446744073709551615\n";
        assert_eq!(exposition.text(), expected);
    }

    #[test]
    fn a_bucket_holds_what_is_within_its_bound() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 10_000, 10_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut exposition = Exposition::default();
        exposition.histogram("a_seconds", "What it is.", &histogram.durations());
        let text = exposition.text();
        for line in [
            "# TYPE a_seconds histogram",
            "a_seconds_bucket{le=\"0.001\"} 1",
            "a_seconds_bucket{le=\"0.0025\"} 2",
            "a_seconds_bucket{le=\"5\"} 2",
            "a_seconds_bucket{le=\"10\"} 3",
            "a_seconds_bucket{le=\"+Inf\"} 4",
            "a_seconds_sum 20.004",
            "a_seconds_count 4",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
        assert_eq!(histogram.count(), 4);
    }
}
