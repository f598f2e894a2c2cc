//! The percentile distribution of a histogram as text, as HdrHistogram writes it and its plotting
//! tools read it: a `.hgrm` file.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// Lines for each halving of what is beyond.
const TICKS: u32 = 5;

/// The distribution of `histogram`, its values divided by `divisor`: with 1000, nanoseconds are told as
/// microseconds.
pub fn percentiles(histogram: &Histogram<u64>, divisor: f64) -> String {
    let mut text = String::new();
    let told = |value: f64| value / divisor;
    // Writing into a `String` cannot fail.
    let _ = writeln!(text, "{:>12} {:>14} TotalCount 1/(1-Percentile)\n", "Value", "Percentile");
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let value = told(step.value_iterated_to() as f64);
        let quantile = step.quantile_iterated_to();
        let _ = write!(text, "{value:12.3} {quantile:14.12} {total:10}");
        let _ = match quantile {
            1.0.. => writeln!(text),
            _ => writeln!(text, " {:14.2}", 1.0 / (1.0 - quantile)),
        };
    }
    let (mean, deviation) = (told(histogram.mean()), told(histogram.stdev()));
    let max = told(histogram.max() as f64);
    let count = histogram.len();
    let _ = writeln!(text, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let _ = writeln!(text, "#[Max     = {max:12.3}, Total count    = {count:12}]");
    // How the values are stored: powers of two above the first `smallest`, as its digits need.
    let smallest = (2 * 10_u64.pow(u32::from(histogram.sigfig()))).next_power_of_two();
    let buckets = 2 + (histogram.high() / smallest).max(1).ilog2();
    let _ = writeln!(text, "#[Buckets = {buckets:12}, SubBuckets     = {smallest:12}]");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_as_hdrhistogram_writes_them() {
        let mut thousand = Histogram::new_with_bounds(1, 86_400_000_000_000, 3).expect("a range");
        (1..=1000).for_each(|us| thousand.record(us * 1000).expect("in range"));
        let text = percentiles(&thousand, 1e3);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "       1.000 0.000000000000          1           1.00");
        let median = lines.iter().find(|line| line.contains(" 0.500000000000 "));
        assert_eq!(median, Some(&"     500.223 0.500000000000        500           2.00"));
        let last = lines.iter().rfind(|line| !line.starts_with('#'));
        assert_eq!(last, Some(&"    1000.447 1.000000000000       1000"));
        assert!(text.contains("Total count    =         1000]"), "{text}");
        assert!(
            text.ends_with("#[Buckets =           37, SubBuckets     =         2048]\n"),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_told_as_nothing() {
        let none = Histogram::<u64>::new(3).expect("three digits");
        let text = percentiles(&none, 1.0);
        assert!(text.contains("Total count    =            0]"), "{text}");
    }
}
