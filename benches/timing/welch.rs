//! Welch's t-test as dudect has it (Reparaz, Balasch, Verbauwhede: *Dude, is my code constant time?*, 2017): do two classes of timings have
//! one mean?
//!
//! Interrupts and the like lengthen some timings without regard to their class, and their variance hides small differences. So the test
//! is repeated on the timings below each of many percentiles of both classes together, as well as on all; the greatest |t| counts.

/// dudect's limits: beyond the first, time certainly depends on the class; beyond the second, probably.
pub(crate) const CERTAIN: f64 = 10.0;
pub(crate) const PROBABLE: f64 = 5.0;

/// Crops beside that which leaves everything.
const CROPS: i32 = 100;
/// A crop that leaves fewer timings of a class is not tested: their mean is not distributed normally.
const FEWEST: u64 = 5_000;

/// Returns the t of greatest magnitude over all crops of the timings of two classes; positive if those of the first are longer.
///
/// Without [`FEWEST`] timings of each class it is not a number.
pub(crate) fn t(classes: &[Vec<f64>; 2]) -> f64 {
    let mut all: Vec<f64> = classes.iter().flatten().copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    let mut greatest = f64::NAN;
    for limit in (0..CROPS).map(|crop| quantile(&all, crop)).chain([f64::INFINITY]) {
        let [a, b] = classes.each_ref().map(|timings| moments(timings, limit));
        if a.count < FEWEST || b.count < FEWEST {
            continue;
        }
        let t = welch(&a, &b);
        if greatest.is_nan() || t.abs() > f64::abs(greatest) {
            greatest = t;
        }
    }
    greatest
}

/// dudect's percentiles: close together where timings are long, 0.5^10 of all from the end at last.
fn quantile(sorted: &[f64], crop: i32) -> f64 {
    let share = 1.0 - 0.5_f64.powf(10.0 * f64::from(crop + 1) / f64::from(CROPS));
    sorted.get(index(share, sorted.len())).copied().unwrap_or(f64::INFINITY)
}

#[expect(clippy::cast_possible_truncation, reason = "a share of a length is one")]
fn index(share: f64, len: usize) -> usize {
    (share * len as f64) as usize
}

/// What the test needs to know of timings.
pub(crate) struct Moments {
    count: u64,
    mean: f64,
    /// Of one timing.
    variance: f64,
}

/// Returns the moments of the timings below `limit`, in one pass (Welford).
pub(crate) fn moments(timings: &[f64], limit: f64) -> Moments {
    let (mut count, mut mean, mut squares) = (0_u64, 0.0, 0.0);
    for timing in timings.iter().filter(|timing| **timing < limit) {
        count += 1;
        let distance = timing - mean;
        mean += distance / count as f64;
        squares += distance * (timing - mean);
    }
    Moments { count, mean, variance: squares / (count.max(2) - 1) as f64 }
}

/// Returns t: how many standard errors the mean of `a` is above that of `b`.
pub(crate) fn welch(a: &Moments, b: &Moments) -> f64 {
    let error = (a.variance / a.count as f64 + b.variance / b.count as f64).sqrt();
    // Timings that are all alike: no error, and a difference of means, if there is one, is beyond doubt.
    if error == 0.0 && a.mean == b.mean { 0.0 } else { (a.mean - b.mean) / error }
}
