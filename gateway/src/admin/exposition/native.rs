//! The protobuf form, which alone has native histograms: messages of the package
//! `io.prometheus.client` (its metrics.proto has the numbers of the fields), each behind its length.

use prost::Message;

use super::{classic, values};
use crate::families::{self, Kind, Sample, Unit, Value};
use crate::histogram::Snapshot;

/// Two to this many buckets to a power of two.
const SCHEMA: i32 = 3;

/// Durations up to this count as none: the first bucket of ours, in seconds.
const ZERO_SECONDS: f64 = 32e-9;

/// Sizes and counts up to this do: smaller than any that is not zero.
const ZERO_COUNT: f64 = 0.5;

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) help: Option<String>,
    #[prost(enumeration = "MetricType", optional, tag = "3")]
    pub(super) kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) metric: Vec<Metric>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum MetricType {
    Counter = 0,
    Gauge = 1,
    Histogram = 4,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    pub(super) gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    pub(super) counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    pub(super) histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LabelPair {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) value: Option<String>,
}

/// `Gauge` and `Counter`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Number {
    #[prost(double, optional, tag = "1")]
    pub(super) value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    pub(super) zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) zero_count: Option<u64>,
    /// Runs of buckets that have something.
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    /// Their counts, each as the difference to the one before.
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    pub(super) cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) upper_bound: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BucketSpan {
    /// The index of the first run's first bucket; then how many are skipped between two runs.
    #[prost(sint32, optional, tag = "1")]
    pub(super) offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) length: Option<u32>,
}

pub(super) fn encode(families: &[families::Family]) -> Vec<u8> {
    let mut out = Vec::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        let total = if family.kind == Kind::Counter { "_total" } else { "" };
        let kind = match family.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let message = MetricFamily {
            name: Some(format!("{}{total}", family.name)),
            help: Some(family.help.to_string()),
            kind: Some(kind as i32),
            metric: family.samples.iter().map(|sample| metric(family, sample)).collect(),
        };
        // Into a `Vec`, which has room.
        let _ = message.encode_length_delimited(&mut out);
    }
    out
}

fn metric(family: &families::Family, sample: &Sample) -> Metric {
    let label = sample.labels.iter().map(|(name, value)| LabelPair {
        name: Some((*name).to_owned()),
        value: Some(value.clone()),
    });
    let mut metric = Metric { label: label.collect(), ..Metric::default() };
    let value = match &sample.value {
        Value::Count(count) => *count as f64,
        Value::Number(value) => *value,
        Value::Histogram(snapshot) => {
            metric.histogram = Some(histogram(snapshot, family.unit));
            return metric;
        }
    };
    let number = Some(Number { value: Some(value) });
    match family.kind {
        Kind::Counter => metric.counter = number,
        Kind::Gauge | Kind::Histogram => metric.gauge = number,
    }
    metric
}

fn histogram(snapshot: &Snapshot, unit: Unit) -> Histogram {
    let zero = match unit {
        Unit::Seconds => ZERO_SECONDS,
        Unit::Bytes | Unit::Count => ZERO_COUNT,
    };
    let (mut count, mut zero_count) = (0, 0);
    // Counts by the index of their bucket, which grows with the value.
    let mut buckets: Vec<(i32, u64)> = Vec::new();
    for (value, more) in values(snapshot, unit) {
        count += more;
        if value <= zero {
            zero_count += more;
            continue;
        }
        let index = index(value);
        match buckets.last_mut() {
            Some((last, sum)) if *last == index => *sum += more,
            _ => buckets.push((index, more)),
        }
    }
    let mut spans: Vec<BucketSpan> = Vec::new();
    let mut deltas = Vec::with_capacity(buckets.len());
    let (mut next, mut before) = (0, 0_i64);
    for (index, count) in buckets {
        match spans.last_mut() {
            Some(BucketSpan { length: Some(length), .. }) if index == next => *length += 1,
            _ => spans.push(BucketSpan { offset: Some(index - next), length: Some(1) }),
        }
        next = index + 1;
        deltas.push(count as i64 - before);
        before = count as i64;
    }
    let classic = classic(snapshot, unit).into_iter();
    Histogram {
        sample_count: Some(count),
        sample_sum: Some(snapshot.sum() as f64 / unit.scale()),
        bucket: classic
            .map(|(bound, below)| Bucket {
                cumulative_count: Some(below),
                upper_bound: Some(bound),
            })
            .collect(),
        schema: Some(SCHEMA),
        zero_threshold: Some(zero),
        zero_count: Some(zero_count),
        positive_span: spans,
        positive_delta: deltas,
    }
}

/// The bucket of a value above zero: number `index` has what is more than 2^((index - 1) / 2^SCHEMA)
/// and at most 2^(index / 2^SCHEMA).
fn index(value: f64) -> i32 {
    // Exact for powers of two, whose bucket it is about.
    (value.log2() * f64::from(1 << SCHEMA)).ceil() as i32
}
