use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::native::{MetricFamily, MetricType};
use super::*;
use crate::families::{Kind, Value, tests::Scene};
use crate::histogram::{Durations, Sizes};

/// Families by name: kind, and samples by their full name and labels.
type Read = BTreeMap<String, (String, BTreeMap<String, f64>)>;

/// Reads either text form, and is strict: every family's lines are together, comments before samples,
/// names as their kind has it, no sample twice, nothing behind the end.
fn read(text: &str, open: bool) -> Read {
    let mut families = Read::new();
    let (mut current, mut ended) = (String::new(), false);
    for line in text.lines() {
        assert!(!ended, "{line}");
        assert!(!line.is_empty() && !line.ends_with(' '));
        if line == "# EOF" {
            ended = true;
        } else if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            let [what, name, rest] = words[..] else { panic!("{line}") };
            match what {
                "TYPE" => {
                    let before =
                        families.insert(name.to_owned(), (rest.to_owned(), BTreeMap::new()));
                    assert!(before.is_none(), "{name} twice");
                    current = name.to_owned();
                }
                "UNIT" => assert!(open && name.ends_with(&format!("_{rest}")), "{line}"),
                "HELP" => assert!(!rest.is_empty(), "{line}"),
                _ => panic!("{line}"),
            }
            assert_eq!(name, current, "{line}");
            assert!(families[name].1.is_empty(), "a comment after samples: {line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect("a brace")),
                None => (series, ""),
            };
            let (kind, samples) = families.get_mut(&current).expect("a TYPE before samples");
            let suffix = name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{line}"));
            let suffixes: &[&str] = match (kind.as_str(), open) {
                ("counter", true) => &["_total"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{line}");
            if kind == "counter" {
                assert!(name.ends_with("_total"), "{line}");
            }
            let mut rest = labels;
            while !rest.is_empty() {
                let (label, tail) = rest.split_once("=\"").expect("a label");
                assert!(label.chars().all(|c| c.is_ascii_lowercase()), "{line}");
                let mut escaped = false;
                let end = tail.find(|c| match c {
                    '"' if !escaped => true,
                    _ => {
                        escaped = c == '\\' && !escaped;
                        false
                    }
                });
                rest = &tail[end.expect("a quote") + 1..];
                assert!(rest.is_empty() || rest.starts_with(','), "{line}");
                rest = rest.trim_start_matches(',');
            }
            let value = match value {
                "+Inf" => f64::INFINITY,
                value => value.parse().unwrap_or_else(|_| panic!("{line}")),
            };
            assert!(samples.insert(series.to_owned(), value).is_none(), "{line} twice");
        }
    }
    assert_eq!(ended, open);
    families
}

fn scene() -> Scene {
    let scene = Scene::new(2, 3);
    scene.record();
    scene
}

#[test]
fn both_texts_say_the_same() {
    let families = scene().everything();
    let (old, new) = (text::prometheus(&families), text::open_metrics(&families));
    let (old, new) = (read(&old, false), read(&new, true));
    assert_eq!((old.len(), new.len()), (families.len(), families.len()));
    for (name, (kind, samples)) in &new {
        let total = if kind == "counter" { "_total" } else { "" };
        assert_eq!(&old[&format!("{name}{total}")], &(kind.clone(), samples.clone()));
    }
    let up = "penstock_forward_seconds_bucket{route=\"*/r000\",direction=\"to_upstream\",le=";
    let (_, forward) = &new["penstock_forward_seconds"];
    assert_eq!(forward[&format!("{up}\"+Inf\"}}")], 92.0);
    assert_eq!(forward[&format!("{up}\"5e-06\"}}")], 8.0, "1.28 and 2.56 µs");
    let bounds: Vec<f64> =
        forward.iter().filter(|it| it.0.starts_with(up)).map(|it| *it.1).collect();
    assert_eq!(bounds.len(), SECONDS.len() + 1);
}

#[test]
fn what_a_label_holds_does_not_get_out() {
    let mut family = scene().families().remove(0);
    family.samples.truncate(1);
    family.samples[0].labels[0].1 = "a\"},\\\nb".to_owned();
    let text = text::prometheus(std::slice::from_ref(&family));
    assert!(text.contains("{shard=\"a\\\"},\\\\\\nb\"} 3\n"), "{text}");
    assert_eq!(read(&text, false).len(), 1);
    assert_eq!(decode(&native::encode(&[family]))[0].metric[0].label[0].value(), "a\"},\\\nb");
}

#[test]
fn numbers_as_go_writes_them() {
    for (value, want) in [
        (5e-6, "5e-06"),
        (2.5e-5, "2.5e-05"),
        (1e-4, "0.0001"),
        (0.25, "0.25"),
        (1.0, "1.0"),
        (60.0, "60.0"),
        (262_144.0, "262144.0"),
        (1_048_576.0, "1.048576e+06"),
        (1e21, "1e+21"),
        (0.0, "0.0"),
        (f64::INFINITY, "+Inf"),
    ] {
        assert_eq!(number(value), want);
    }
}

fn decode(mut bytes: &[u8]) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    while !bytes.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut bytes).expect("a family"));
    }
    families
}

/// Counts by the index of their bucket.
fn buckets(histogram: &native::Histogram) -> Vec<(i32, i64)> {
    let mut deltas = histogram.positive_delta.iter();
    let (mut index, mut count, mut buckets) = (0, 0, Vec::new());
    for span in &histogram.positive_span {
        index += span.offset();
        for _ in 0..span.length() {
            count += deltas.next().expect("one for each bucket");
            assert!(count > 0);
            buckets.push((index, count));
            index += 1;
        }
    }
    assert_eq!(deltas.next(), None);
    buckets
}

#[test]
fn protobuf_has_what_the_text_has() {
    let families = scene().everything();
    let text = read(&text::prometheus(&families), false);
    let decoded = decode(&native::encode(&families));
    assert_eq!(decoded.len(), families.len());
    for (family, from) in decoded.iter().zip(&families) {
        let (kind, samples) = &text[family.name()];
        let want = match family.kind() {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        };
        assert_eq!(kind, want);
        assert_eq!(family.metric.len(), from.samples.len());
        for (metric, sample) in family.metric.iter().zip(&from.samples) {
            let labels: Vec<_> =
                metric.label.iter().map(|label| (label.name(), label.value().to_owned())).collect();
            assert_eq!(labels, sample.labels);
            let Value::Histogram(snapshot) = &sample.value else {
                let number = metric.counter.as_ref().or(metric.gauge.as_ref()).expect("a number");
                assert_eq!(metric.counter.is_some(), from.kind == Kind::Counter);
                match &sample.value {
                    Value::Count(count) => assert_eq!(number.value(), *count as f64),
                    Value::Number(value) => assert_eq!(number.value(), *value),
                    Value::Histogram(_) => unreachable!("it is none"),
                }
                continue;
            };
            let histogram = metric.histogram.as_ref().expect("a histogram");
            assert_eq!(histogram.sample_count(), snapshot.count());
            assert_eq!(histogram.bucket.len(), bounds(from.unit).len() + 1);
            assert_eq!(histogram.bucket.last().expect("some").cumulative_count(), snapshot.count());
            let of_buckets: i64 = buckets(histogram).iter().map(|(_, count)| count).sum();
            assert_eq!(of_buckets as u64 + histogram.zero_count(), snapshot.count());
        }
        let lines: BTreeSet<&String> = samples.keys().collect();
        assert!(lines.len() >= family.metric.len());
    }
}

fn native_of(snapshot: &Snapshot, unit: Unit) -> native::Histogram {
    let mut family = scene().families().remove(0);
    family.kind = Kind::Histogram;
    family.unit = unit;
    family.samples.truncate(1);
    family.samples[0].value = Value::Histogram(snapshot.clone());
    decode(&native::encode(&[family]))[0].metric[0].histogram.clone().expect("a histogram")
}

/// Every value is in the bucket where it belongs, or so near its bounds that it may be in the next.
#[test]
fn native_buckets_hold_what_is_theirs() {
    for exponent in 6..36 {
        for step in 0..64_u64 {
            let value = (1 << exponent) + step * (1 << exponent) / 64;
            let durations = Durations::default();
            durations.record(value, 3);
            let mut snapshot = Snapshot::default();
            durations.add_to(&mut snapshot);
            let histogram = native_of(&snapshot, Unit::Seconds);
            let [(index, 3)] = buckets(&histogram)[..] else { panic!("{value}") };
            assert_eq!(histogram.schema(), 3);
            let bound = |index: i32| (f64::from(index) / 8.0).exp2();
            let (low, high) = (bound(index - 1), bound(index));
            let seconds = value as f64 / 1e9;
            // Half a bucket of ours: 1/64, or 16 ns where they are all alike.
            let near = (seconds / 64.0).max(16e-9);
            assert!(seconds > low - near && seconds <= high + near, "{seconds}: {low} to {high}");
        }
    }
}

#[test]
fn powers_of_two_belong_to_the_bucket_that_they_bound() {
    for exponent in 0..26 {
        let sizes = Sizes::default();
        sizes.record(1 << exponent, 1);
        let mut snapshot = Snapshot::default();
        sizes.add_to(&mut snapshot);
        assert_eq!(buckets(&native_of(&snapshot, Unit::Bytes)), [(8 * exponent, 1)]);
        let classic = classic(&snapshot, Unit::Bytes);
        let first = classic.iter().find(|(_, count)| *count == 1).expect("the last has all").0;
        let want = BYTES.iter().copied().find(|bound| *bound >= f64::from(1 << exponent));
        assert_eq!(first, want.unwrap_or(f64::INFINITY));
    }
}

#[test]
fn nothing_and_zeros() {
    let durations = Durations::default();
    let mut none = Snapshot::default();
    durations.add_to(&mut none);
    for snapshot in [Snapshot::default(), none] {
        let histogram = native_of(&snapshot, Unit::Seconds);
        assert_eq!((histogram.sample_count(), buckets(&histogram).len()), (0, 0));
        // By this it is known as a native one though it has no buckets.
        assert!(histogram.zero_threshold() > 0.0);
        assert_eq!(histogram.bucket.len(), SECONDS.len() + 1);
    }
    durations.record(0, 2);
    durations.record(31, 2);
    durations.record(32, 1);
    let mut snapshot = Snapshot::default();
    durations.add_to(&mut snapshot);
    let histogram = native_of(&snapshot, Unit::Seconds);
    assert_eq!((histogram.zero_count(), buckets(&histogram).len()), (4, 1));
}

/// Not run by itself: it says what a scrape costs, which is in docs/monitoring/README.md.
/// `cargo test --release -p gateway --lib what_a_scrape_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn what_a_scrape_costs() {
    let scene = Scene::new(16, 64);
    scene.record();
    type Encode = fn(&[crate::families::Family]) -> Vec<u8>;
    let forms: [(&str, Encode); 3] = [
        ("text", |families| text::prometheus(families).into_bytes()),
        ("OpenMetrics", |families| text::open_metrics(families).into_bytes()),
        ("protobuf", native::encode),
    ];
    for (name, encode) in forms {
        let mut times: Vec<_> = (0..21)
            .map(|_| {
                let start = std::time::Instant::now();
                let families = scene.everything();
                let listed = start.elapsed();
                let bytes = encode(&families).len();
                (start.elapsed(), listed, bytes)
            })
            .collect();
        times.sort();
        let (whole, listed, bytes) = times[10];
        println!("{name}: {whole:?}, of which the list {listed:?}; {bytes} bytes");
    }
}
