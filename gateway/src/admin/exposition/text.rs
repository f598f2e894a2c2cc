//! The two text forms: Prometheus' (0.0.4), and OpenMetrics (1.0). They differ in what a counter's
//! family is called, in units, and in the end.

use std::fmt::Write as _;

use super::{bounds, classic, number};
use crate::families::{Family, Kind, Sample, Unit, Value};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Prometheus,
    OpenMetrics,
}

pub(super) fn prometheus(families: &[Family]) -> String {
    render(families, Dialect::Prometheus)
}

pub(super) fn open_metrics(families: &[Family]) -> String {
    let mut out = render(families, Dialect::OpenMetrics);
    out.push_str("# EOF\n");
    out
}

// Writing into a `String` cannot fail.
fn render(families: &[Family], dialect: Dialect) -> String {
    let mut out = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        let total = if family.kind == Kind::Counter { "_total" } else { "" };
        let of_family = if dialect == Dialect::Prometheus { total } else { "" };
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(out, "# TYPE {}{of_family} {kind}", family.name);
        if let (Dialect::OpenMetrics, Some(unit)) = (dialect, unit(family.unit)) {
            let _ = writeln!(out, "# UNIT {} {unit}", family.name);
        }
        let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
        // OpenMetrics has quotes escaped here, Prometheus does not.
        let help = if dialect == Dialect::OpenMetrics { help.replace('"', "\\\"") } else { help };
        let _ = writeln!(out, "# HELP {}{of_family} {help}", family.name);
        let spelt: Vec<String> =
            bounds(family.unit).iter().copied().chain([f64::INFINITY]).map(number).collect();
        for sample in &family.samples {
            write_sample(&mut out, family, total, &spelt, sample);
        }
    }
    out
}

fn unit(unit: Unit) -> Option<&'static str> {
    match unit {
        Unit::Seconds => Some("seconds"),
        Unit::Bytes => Some("bytes"),
        Unit::Count => None,
    }
}

/// `spelt`: the bounds of the classic buckets.
fn write_sample(
    out: &mut String,
    family: &Family,
    suffix: &str,
    spelt: &[String],
    sample: &Sample,
) {
    let name = family.name.as_ref();
    let labels = labels(sample);
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    match &sample.value {
        Value::Count(count) => drop(writeln!(out, "{name}{suffix}{braced} {count}")),
        Value::Number(value) => drop(writeln!(out, "{name}{suffix}{braced} {}", number(*value))),
        Value::Histogram(snapshot) => {
            let comma = if labels.is_empty() { "" } else { "," };
            let mut count = 0;
            for ((_, below), bound) in classic(snapshot, family.unit).into_iter().zip(spelt) {
                let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
                count = below;
            }
            let sum = snapshot.sum() as f64 / family.unit.scale();
            let _ = writeln!(out, "{name}_sum{braced} {}", number(sum));
            let _ = writeln!(out, "{name}_count{braced} {count}");
        }
    }
}

fn labels(sample: &Sample) -> String {
    let escaped =
        |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels = sample.labels.iter();
    let labels: Vec<String> =
        labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    labels.join(",")
}
