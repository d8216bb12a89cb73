//! The text format of Prometheus, version 0.0.4: families of samples, each with its help and its type. Pure.
//!
//! It is a page of rules (<https://prometheus.io/docs/instrumenting/exposition_formats/>), and all values here are whole numbers or seconds,
//! which is why there is no library.

use std::fmt::{Display, Write};
use std::time::Duration;

/// What [`Exposition::text`] is to be served as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The upper bounds of a histogram's buckets in seconds, but for the last one, which has none.
pub const BOUNDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

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
        let seconds = duration.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[at] += 1;
        self.sum += duration;
    }

    /// Returns how many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
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
    pub fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut within = 0;
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(histogram.counts) {
            within += count;
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {within}"));
        }
        self.line(format_args!("{name}_sum {}", histogram.sum.as_secs_f64()));
        self.line(format_args!("{name}_count {within}"));
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
        exposition.histogram("a_seconds", "What it is.", &histogram);
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
