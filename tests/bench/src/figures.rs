//! What is made of the bursts of a contender.

use serde::Serialize;

/// A contender's bursts, in the order in which they ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(Vec<f64>);

/// A series in three figures. Nanoseconds per operation, or a ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// The least.
    pub min: f64,
    /// A quarter is below.
    pub p25: f64,
    /// Half is below.
    pub median: f64,
}

impl Series {
    /// Adds a burst.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many bursts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the bursts of another time.
    pub fn extend(&mut self, later: &Series) {
        self.0.extend_from_slice(&later.0);
    }

    /// Whether these bursts leave open on which side of `limit` the median of
    /// all that there might have been is: whether it lies between the two bursts
    /// that hold that median in 95 cases of 100 (the sign test's interval; of 21
    /// the sixth from below and the sixth from above). Of no bursts everything is
    /// open.
    pub fn leaves_open(&self, limit: f64) -> bool {
        let below = self.0.iter().filter(|&&value| value < limit).count();
        let above = self.0.iter().filter(|&&value| value > limit).count();
        let count = self.0.len() as f64;
        let outer = ((count + 1.0) / 2.0 - 0.98 * count.sqrt()).floor().max(1.0);
        below as f64 >= outer && above as f64 >= outer || self.0.is_empty()
    }

    /// Burst by burst divided by those of another series, which ran beside
    /// them.
    pub fn over(&self, other: &Series) -> Series {
        self.with(other, |a, b| a / b)
    }

    /// Burst by burst added.
    pub fn plus(&self, other: &Series) -> Series {
        self.with(other, |a, b| a + b)
    }

    /// All multiplied.
    pub fn times(&self, factor: f64) -> Series {
        Series(self.0.iter().map(|value| value * factor).collect())
    }

    /// One divided by each.
    pub fn inverse(&self) -> Series {
        Series(self.0.iter().map(|value| 1.0 / value).collect())
    }

    /// A constant added to all.
    pub fn and(&self, more: f64) -> Series {
        Series(self.0.iter().map(|value| value + more).collect())
    }

    fn with(&self, other: &Series, f: impl Fn(f64, f64) -> f64) -> Series {
        let pairs = self.0.iter().zip(&other.0);
        Series(pairs.map(|(&a, &b)| f(a, b)).collect())
    }

    /// The three figures; of no bursts, not numbers: they pass no comparison.
    pub fn figures(&self) -> Figures {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Figures {
            min: at(0),
            p25: at(last / 4),
            median: match sorted.len() % 2 {
                1 => at(last / 2),
                _ => (at(last / 2) + at(sorted.len() / 2)) / 2.0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series(values.to_vec())
    }

    #[test]
    fn figures_of_an_odd_and_an_even_number_of_bursts() {
        let odd = series(&[5.0, 1.0, 4.0, 2.0, 3.0]).figures();
        assert_eq!((odd.min, odd.p25, odd.median), (1.0, 2.0, 3.0));
        let even = series(&[4.0, 1.0, 3.0, 2.0]).figures();
        assert_eq!((even.min, even.p25, even.median), (1.0, 1.0, 2.5));
    }

    #[test]
    fn no_bursts_pass_no_comparison() {
        let none = Series::default().figures().median;
        assert_eq!(none.partial_cmp(&1.0), None);
    }

    #[test]
    fn a_limit_is_open_where_enough_bursts_are_on_both_sides_of_it() {
        let all: Vec<f64> = (1..=21).map(f64::from).collect();
        let all = series(&all);
        assert!(!all.leaves_open(5.5) && !all.leaves_open(16.5));
        assert!(all.leaves_open(6.5) && all.leaves_open(15.5));
        assert!(Series::default().leaves_open(1.0));
    }

    #[test]
    fn bursts_of_another_time_count_as_much() {
        let mut all = series(&[9.0, 9.0]);
        all.extend(&series(&[1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!((all.len(), all.figures().median), (7, 4.0));
    }

    #[test]
    fn ratios_are_of_bursts_that_ran_side_by_side() {
        // the machine became slower by ten; the ratio did not
        let ours = series(&[2.0, 20.0, 20.0]);
        let theirs = series(&[1.0, 10.0, 10.0]);
        assert_eq!(ours.over(&theirs).figures().median, 2.0);
    }

    #[test]
    fn limits_are_made_burst_by_burst() {
        let limit = series(&[10.0, 20.0])
            .times(2.0)
            .plus(&series(&[1.0, 2.0]))
            .and(30.0);
        assert_eq!(limit, series(&[51.0, 72.0]));
    }
}
