//! What `GET /api/v1/histograms` answers, for the commands that show it.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Deserialize;

/// All histograms at one moment.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Reading {
    pub(super) unix_ms: u64,
    pub(super) histograms: Vec<Series>,
}

/// One of them, since the gateway's start or in an interval.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    /// `ns`, or what else is counted.
    pub(super) unit: String,
    pub(super) count: u64,
    pub(super) sum: u64,
    /// The lowest and highest value of each that is not empty, and how many; in order.
    pub(super) buckets: Vec<(u64, u64, u64)>,
}

impl Reading {
    /// What came since `earlier`.
    pub(super) fn since(&self, earlier: &Reading) -> Reading {
        let before: BTreeMap<_, _> =
            earlier.histograms.iter().map(|series| (series.identity(), series)).collect();
        let since = |series: &Series| match before.get(&series.identity()) {
            Some(before) => series.since(before),
            None => series.clone(),
        };
        Reading { unix_ms: self.unix_ms, histograms: self.histograms.iter().map(since).collect() }
    }

    /// The one with this name and these labels.
    pub(super) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Series> {
        self.histograms.iter().find(|series| {
            series.name == name
                && labels.iter().all(|(key, value)| series.label(key) == Some(value))
        })
    }
}

impl Series {
    fn identity(&self) -> (&str, &BTreeMap<String, String>) {
        (&self.name, &self.labels)
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// What came since `earlier`; all of it where that is another gateway's, which had counted more.
    fn since(&self, earlier: &Series) -> Series {
        if earlier.count > self.count {
            return self.clone();
        }
        let before: BTreeMap<u64, u64> =
            earlier.buckets.iter().map(|(lowest, _, count)| (*lowest, *count)).collect();
        let buckets: Vec<_> = (self.buckets.iter())
            .map(|(lowest, highest, count)| {
                let before = before.get(lowest).copied().unwrap_or(0);
                (*lowest, *highest, count.saturating_sub(before))
            })
            .filter(|(_, _, count)| *count > 0)
            .collect();
        Series {
            name: self.name.clone(),
            labels: self.labels.clone(),
            unit: self.unit.clone(),
            count: buckets.iter().map(|(_, _, count)| count).sum(),
            sum: self.sum.wrapping_sub(earlier.sum),
            buckets,
        }
    }

    pub(super) fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The value that this part of all values (0 to 1) does not exceed, as the middle of its bucket;
    /// 0 when there are none.
    pub(super) fn quantile(&self, part: f64) -> u64 {
        let rank = ((self.count as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = self.buckets.iter().find(|(_, _, count)| {
            seen += count;
            seen >= rank
        });
        reached.or(self.buckets.last()).map_or(0, |(lowest, highest, _)| middle(*lowest, *highest))
    }

    /// As HdrHistogram has it, to three digits.
    pub(super) fn to_hdr(&self) -> Histogram<u64> {
        let highest = self.buckets.last().map_or(2, |(_, highest, _)| (*highest).max(2));
        let mut histogram =
            Histogram::new_with_bounds(1, highest, 3).expect("a range above its lowest");
        for (lowest, highest, count) in &self.buckets {
            histogram.saturating_record_n(middle(*lowest, *highest), *count);
        }
        histogram
    }
}

fn middle(lowest: u64, highest: u64) -> u64 {
    lowest + highest.saturating_sub(lowest) / 2
}

/// A number of nanoseconds in at most six characters.
pub(super) fn duration(ns: f64) -> String {
    let digits = |value: f64, unit: &str| match value {
        ..9.95 => format!("{value:.2}{unit}"),
        ..99.5 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    };
    match ns {
        ..999.5 => format!("{ns:.0}ns"),
        ..999_500.0 => digits(ns / 1e3, "us"),
        ..999_500_000.0 => digits(ns / 1e6, "ms"),
        _ => digits(ns / 1e9, "s"),
    }
}

/// A number in at most six characters, up to 999 billion.
pub(super) fn number(value: f64) -> String {
    let digits = |value: f64, unit: &str| match value {
        ..9.95 => format!("{value:.2}{unit}"),
        ..99.5 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    };
    match value {
        0.0 => "0".to_owned(),
        ..9.95 if value.fract() != 0.0 => format!("{value:.1}"),
        ..9_999.5 => format!("{value:.0}"),
        ..999_500.0 => digits(value / 1e3, "k"),
        ..999_500_000.0 => digits(value / 1e6, "M"),
        _ => digits(value / 1e9, "G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(buckets: &[(u64, u64, u64)]) -> Series {
        let count = buckets.iter().map(|(_, _, count)| count).sum();
        let sum = buckets.iter().map(|(lowest, _, count)| lowest * count).sum();
        Series { name: "n".to_owned(), count, sum, buckets: buckets.to_vec(), ..Series::default() }
    }

    fn reading(series: Series) -> Reading {
        Reading { unix_ms: 0, histograms: vec![series] }
    }

    #[test]
    fn an_interval_is_the_difference_of_two_readings() {
        let before = reading(series(&[(10, 19, 5), (20, 29, 1)]));
        let now = reading(series(&[(10, 19, 7), (20, 29, 1), (30, 39, 2)]));
        let since = now.since(&before);
        assert_eq!(since.histograms[0].buckets, [(10, 19, 2), (30, 39, 2)]);
        assert_eq!((since.histograms[0].count, since.histograms[0].sum), (4, 80));
        // Another gateway, which has counted less.
        assert_eq!(before.since(&now).histograms[0].buckets, before.histograms[0].buckets);
        assert_eq!(now.since(&Reading::default()).histograms[0].count, 10);
    }

    #[test]
    fn percentiles_are_the_middles_of_buckets() {
        let series = series(&[(100, 101, 90), (200, 203, 9), (300, 303, 1)]);
        for (part, want) in [(0.0, 100), (0.5, 100), (0.9, 100), (0.91, 201), (0.99, 201)] {
            assert_eq!(series.quantile(part), want, "{part}");
        }
        assert_eq!((series.quantile(0.999), series.quantile(1.0)), (301, 301));
        assert_eq!(Series::default().quantile(0.5), 0);
        let hdr = series.to_hdr();
        assert_eq!((hdr.len(), hdr.value_at_quantile(0.99)), (100, 201));
    }

    #[test]
    fn numbers_are_short() {
        for (ns, want) in [
            (0.0, "0ns"),
            (999.0, "999ns"),
            (1000.0, "1.00us"),
            (99_400.0, "99.4us"),
            (999_400.0, "999us"),
            (1_500_000.0, "1.50ms"),
            (999_900_000.0, "1.00s"),
            (68_000_000_000.0, "68.0s"),
        ] {
            assert_eq!(duration(ns), want);
        }
        for (value, want) in [
            (0.0, "0"),
            (0.4, "0.4"),
            (3.0, "3"),
            (1234.0, "1234"),
            (12_345.0, "12.3k"),
            (999_600.0, "1.00M"),
            (12_345_678.0, "12.3M"),
            (5e9, "5.00G"),
        ] {
            assert_eq!(number(value), want);
        }
    }
}
