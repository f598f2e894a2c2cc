//! Times in histograms: three significant digits, nanoseconds, up to a day.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde_json::{Value, json};

use crate::proc::round;

/// A day, the longest run; what is above is counted as that.
const NS_MAX: u64 = 86_400_000_000_000;

/// An empty histogram.
pub(crate) fn new() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NS_MAX, 3).expect("bounds in range")
}

/// Counts a time.
pub(crate) fn record(histogram: &mut Histogram<u64>, ns: u64) {
    // Cannot fail within the bounds.
    histogram.saturating_record(ns.clamp(1, NS_MAX));
}

/// The figures of a report, in microseconds.
pub(crate) fn report(histogram: &Histogram<u64>) -> Value {
    let us = |ns: u64| round(ns as f64 / 1e3);
    if histogram.is_empty() {
        return json!({ "count": 0 });
    }
    json!({
        "count": histogram.len(),
        "mean": round(histogram.mean() / 1e3),
        "p50": us(histogram.value_at_quantile(0.50)),
        "p90": us(histogram.value_at_quantile(0.90)),
        "p99": us(histogram.value_at_quantile(0.99)),
        "p99.9": us(histogram.value_at_quantile(0.999)),
        "p99.99": us(histogram.value_at_quantile(0.9999)),
        "max": us(histogram.max()),
    })
}

/// The figures of an interval, in microseconds.
pub(crate) fn report_short(histogram: &Histogram<u64>) -> Value {
    let us = |ns: u64| round(ns as f64 / 1e3);
    if histogram.is_empty() {
        return json!({ "count": 0 });
    }
    json!({
        "count": histogram.len(),
        "p50": us(histogram.value_at_quantile(0.50)),
        "p99": us(histogram.value_at_quantile(0.99)),
        "max": us(histogram.max()),
    })
}

/// A histogram as text: HdrHistogram's V2 encoding, compressed, in base64.
pub(crate) fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    let written = V2DeflateSerializer::new().serialize(histogram, &mut bytes);
    written.expect("counts of one run are far below 2^63, and memory takes what is written");
    STANDARD.encode(bytes)
}

/// Reads what `encode` wrote, or another tool. One of other bounds is taken over into ours.
pub(crate) fn decode(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = STANDARD.decode(text.trim()).map_err(|error| format!("not base64: {error}"))?;
    let read: Histogram<u64> = Deserializer::new()
        .deserialize(&mut &bytes[..])
        .map_err(|error| format!("not an HdrHistogram: {error:?}"))?;
    let mut histogram = new();
    for step in read.iter_recorded() {
        histogram
            .saturating_record_n(step.value_iterated_to().clamp(1, NS_MAX), step.count_at_value());
    }
    Ok(histogram)
}

/// Creates the files that will be written, so that a run does not end in an error that could have
/// been told at its beginning.
pub(crate) fn create_files<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> io::Result<()> {
    for path in paths {
        fs::File::create(path).map_err(|error| cannot_write(path, &error))?;
    }
    Ok(())
}

/// Writes the percentile distribution, in microseconds.
pub(crate) fn write_percentiles(path: &Path, histogram: &Histogram<u64>) -> io::Result<()> {
    write(path, hgrm::percentiles(histogram, 1e3))
}

/// Writes an HdrHistogram log with one interval, the whole run; the histograms are told apart by
/// their tags, the empty one being none. Values are nanoseconds.
pub(crate) fn write_log(
    path: &Path,
    histograms: &[(&str, &Histogram<u64>)],
    start: SystemTime,
    length: Duration,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut bytes, &mut serializer)?;
    for (tag, histogram) in histograms {
        let tag = if tag.is_empty() { None } else { Tag::new(tag) };
        log.write_histogram(histogram, Duration::ZERO, length, tag)
            .map_err(|error| io::Error::other(format!("the histogram log: {error}")))?;
    }
    write(path, bytes)
}

/// Writes a file; an error names it.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    fs::write(path, bytes).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn thousand() -> Histogram<u64> {
        let mut histogram = new();
        (1..=1000).for_each(|us| record(&mut histogram, us * 1000));
        histogram
    }

    #[test]
    fn figures_are_within_three_digits() {
        let report = report(&thousand());
        for (key, want) in [("p50", 500.0), ("p99", 990.0), ("p99.99", 1000.0), ("max", 1000.0)] {
            let got = report[key].as_f64().unwrap();
            assert!((got / want - 1.0f64).abs() < 0.001, "{key}: {got}");
        }
        let mut bounds = new();
        record(&mut bounds, 0);
        record(&mut bounds, u64::MAX);
        assert_eq!(bounds.len(), 2);
    }

    #[test]
    fn a_log_holds_what_was_written() {
        let path = std::env::temp_dir().join(format!("penstock-bench-{}.hlog", std::process::id()));
        let histogram = thousand();
        let both = [("", &histogram), ("lag", &histogram)];
        write_log(&path, &both, SystemTime::now(), Duration::from_secs(3)).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let intervals = IntervalLogIterator::new(&bytes).filter_map(|entry| match entry.unwrap() {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let mut tags = Vec::new();
        for interval in intervals {
            tags.push(interval.tag().map(|tag| tag.as_str().to_owned()));
            assert_eq!(decode(interval.encoded_histogram()).unwrap(), histogram);
        }
        assert_eq!(tags, [None, Some("lag".to_owned())]);
    }
}
