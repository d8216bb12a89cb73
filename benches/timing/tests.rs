//! The statistic of the timing bench, on numbers whose distribution is known.

mod welch;

use welch::{CERTAIN, PROBABLE, moments, t, welch};

/// A generator without secrets (xorshift64), to repeat itself.
struct Numbers(u64);

impl Numbers {
    /// Between 0 and 1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// With mean 0 and variance 1: the sum of twelve uniform ones.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    fn timings(&mut self, count: usize, mean: f64, deviation: f64) -> Vec<f64> {
        (0..count).map(|_| mean + deviation * self.normal()).collect()
    }
}

#[test]
fn t_is_that_of_a_worked_example() {
    // Means 3 and 6, variances 2.5 and 10, five of each: -3 / √(2.5/5 + 10/5).
    let [a, b] = [[1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]]
        .map(|timings| moments(&timings, f64::INFINITY));
    assert!((welch(&a, &b) + 3.0 / 2.5_f64.sqrt()).abs() < 1e-12);
}

#[test]
fn classes_of_one_distribution_are_not_told_apart() {
    for seed in 1..=20 {
        let mut numbers = Numbers(seed);
        let classes = [(); 2].map(|()| numbers.timings(10_000, 100.0, 10.0));
        assert!(t(&classes).abs() < PROBABLE, "seed {seed}: {}", t(&classes));
    }
}

#[test]
fn a_fifth_of_a_deviation_is_found_and_its_sign_told() {
    let mut numbers = Numbers(1);
    let classes = [numbers.timings(20_000, 102.0, 10.0), numbers.timings(20_000, 100.0, 10.0)];
    assert!(t(&classes) > CERTAIN, "{}", t(&classes));
    let [a, b] = classes;
    assert!(t(&[b, a]) < -CERTAIN);
}

#[test]
fn interrupts_do_not_hide_a_difference() {
    let mut numbers = Numbers(1);
    let classes = [100.5, 100.0].map(|mean| {
        let mut timings = numbers.timings(20_000, mean, 2.0);
        // One in fifty takes up to a hundred times as long.
        for timing in timings.iter_mut().step_by(50) {
            *timing *= 1.0 + 100.0 * numbers.uniform();
        }
        timings
    });
    let [a, b] = classes.each_ref().map(|timings| moments(timings, f64::INFINITY));
    assert!(welch(&a, &b).abs() < PROBABLE, "all timings show nothing");
    assert!(t(&classes) > CERTAIN, "{}", t(&classes));
}

#[test]
fn too_few_timings_give_no_number() {
    let mut numbers = Numbers(1);
    assert!(t(&[numbers.timings(100, 1.0, 1.0), numbers.timings(100, 9.0, 1.0)]).is_nan());
}
