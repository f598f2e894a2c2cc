//! `penstock hist`: the percentiles of what a running gateway has measured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use clap::Args;
use gateway::names::{Escaped, escape_json};
use serde_json::{Value, json};

use super::reading::{Reading, Series, duration, number};
use super::{Ask, fail, tell};

/// The longest interval: a day.
const INTERVAL_S_MAX: u64 = 86_400;

/// `penstock hist`.
#[derive(Args)]
pub(crate) struct Hist {
    #[command(flatten)]
    ask: Ask,
    /// Histograms of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Of this route: as the log has it (*/chat/*), or its path (/chat/*)
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// Of this direction: to_client or to_upstream
    #[arg(long, value_name = "DIRECTION")]
    direction: Option<String>,
    /// With this label, as stage=connect
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Of what comes in so many seconds from now, instead of all since the gateway's start
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=INTERVAL_S_MAX))]
    interval: Option<u64>,
    /// As JSON, in nanoseconds and bytes
    #[arg(long)]
    json: bool,
    /// Write each distribution into this directory, for HdrHistogram's plotter: durations in
    /// microseconds
    #[arg(long, value_name = "DIR")]
    hgrm: Option<PathBuf>,
}

impl Hist {
    pub(super) fn run(&self) -> ExitCode {
        let reading = match self.read() {
            Ok(reading) => reading,
            Err(code) => return code,
        };
        // Before the interval, so that a slip of the pen does not take as long.
        if let Err(why) = self.select(&reading) {
            return fail(&why);
        }
        let reading = match self.interval {
            None => reading,
            Some(seconds) => {
                std::thread::sleep(Duration::from_secs(seconds));
                match self.read() {
                    Ok(later) => later.since(&reading),
                    Err(code) => return code,
                }
            }
        };
        let selected = match self.select(&reading) {
            Ok(selected) => selected,
            Err(why) => return fail(&why),
        };
        let counted: Vec<&Series> =
            selected.into_iter().filter(|series| series.count > 0).collect();
        if let Some(directory) = &self.hgrm
            && let Err(why) = write_distributions(directory, &counted)
        {
            return fail(&why);
        }
        match (self.json, counted.is_empty()) {
            (true, _) => println!("{}", escape_json(&as_json(&reading, &counted).to_string())),
            (false, true) => println!("nothing was counted"),
            (false, false) => print!("{}", table(&counted)),
        }
        ExitCode::SUCCESS
    }

    fn read(&self) -> Result<Reading, ExitCode> {
        let (status, body) = self.ask.answer(Method::GET, "/api/v1/histograms")?;
        if !status.is_success() {
            return Err(tell(status, &body));
        }
        serde_json::from_slice(&body)
            .map_err(|error| fail(&format!("the answer is not one of this version: {error}")))
    }

    /// Those that are asked for.
    ///
    /// # Errors
    ///
    /// There are none: which there are.
    fn select<'a>(&self, reading: &'a Reading) -> Result<Vec<&'a Series>, String> {
        let mut selected: Vec<&Series> = reading.histograms.iter().collect();
        if let Some(name) = &self.name {
            let wanted = name.strip_prefix("penstock_").unwrap_or(name);
            let names: BTreeSet<&str> = selected.iter().map(|series| &*series.name).collect();
            if !names.contains(wanted) {
                return Err(none("histogram", name, &names));
            }
            selected.retain(|series| series.name == wanted);
        }
        let pair = |key: &str, value: &Option<String>| value.clone().map(|it| (key.to_owned(), it));
        let mut labels: Vec<(String, String)> =
            [pair("route", &self.route), pair("direction", &self.direction)]
                .into_iter()
                .flatten()
                .collect();
        for label in &self.label {
            let Some((key, value)) = label.split_once('=') else {
                return Err(format!("--label {label}: write KEY=VALUE, as stage=connect"));
            };
            labels.push((key.to_owned(), value.to_owned()));
        }
        for (key, wanted) in labels {
            let values: BTreeSet<&str> =
                selected.iter().filter_map(|series| series.label(&key)).collect();
            let is_wanted = |value: &str| {
                value == wanted || (key == "route" && value.strip_prefix('*') == Some(&wanted))
            };
            if !values.iter().any(|value| is_wanted(value)) {
                return Err(match values.is_empty() {
                    false => none(&key, &wanted, &values),
                    true => {
                        let keys: BTreeSet<&str> = (selected.iter())
                            .flat_map(|series| series.labels.keys().map(String::as_str))
                            .collect();
                        none("label", &key, &keys)
                    }
                });
            }
            selected.retain(|series| series.label(&key).is_some_and(is_wanted));
        }
        Ok(selected)
    }
}

fn none(what: &str, wanted: &str, there: &BTreeSet<&str>) -> String {
    if there.is_empty() {
        return format!("there is no {what} \"{wanted}\" here, nor any other");
    }
    let there: Vec<&str> = there.iter().copied().collect();
    format!("there is no {what} \"{wanted}\" here; there is {}", there.join(", "))
}

/// The percentiles, and how they are called.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

fn table(list: &[&Series]) -> String {
    use std::fmt::Write as _;
    let names = list.iter().map(|series| Escaped(&title(series)).to_string());
    let names: Vec<String> = names.collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    // Writing into a `String` cannot fail.
    let mut text = format!("{:<width$} {:>9} {:>8}", "HISTOGRAM", "COUNT", "MEAN");
    for (name, _) in PERCENTILES {
        let _ = write!(text, " {:>8}", name.to_uppercase());
    }
    let _ = writeln!(text, " {:>8}", "MAX");
    for (series, name) in list.iter().zip(names) {
        let told = |value: f64| match &*series.unit {
            "ns" => duration(value),
            _ => number(value),
        };
        let _ = write!(text, "{name:<width$} {:>9} {:>8}", series.count, told(series.mean()));
        for (_, part) in PERCENTILES {
            let _ = write!(text, " {:>8}", told(series.quantile(part) as f64));
        }
        let _ = writeln!(text, " {:>8}", told(series.quantile(1.0) as f64));
    }
    text
}

/// `forward_seconds{route=*/chat,direction=to_client}`.
fn title(series: &Series) -> String {
    // What is of one route stands together as the gateway has it; within, the route comes first.
    let mut labels: Vec<String> = Vec::new();
    let route = series.labels.iter().filter(|(key, _)| *key == "route");
    let others = series.labels.iter().filter(|(key, _)| *key != "route");
    for (key, value) in route.chain(others) {
        labels.push(format!("{key}={value}"));
    }
    match labels.is_empty() {
        true => series.name.clone(),
        false => format!("{}{{{}}}", series.name, labels.join(",")),
    }
}

fn as_json(reading: &Reading, list: &[&Series]) -> Value {
    let list = list.iter().map(|series| {
        let mut object = json!({
            "name": series.name,
            "labels": series.labels,
            "unit": series.unit,
            "count": series.count,
            "mean": (series.mean() * 10.0).round() / 10.0,
            "max": series.quantile(1.0),
        });
        for (name, part) in PERCENTILES {
            object[name] = series.quantile(part).into();
        }
        object
    });
    json!({ "unix_ms": reading.unix_ms, "histograms": list.collect::<Vec<_>>() })
}

/// A file for each, named after it.
fn write_distributions(directory: &Path, list: &[&Series]) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| {
        format!("cannot write {}: {error}; --hgrm names a directory", path.display())
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for series in list {
        let name = file_name(series);
        let number = taken.entry(name.clone()).and_modify(|number| *number += 1).or_insert(1);
        let path = directory.join(match number {
            1 => format!("{name}.hgrm"),
            number => format!("{name}.{number}.hgrm"),
        });
        let divisor = if series.unit == "ns" { 1e3 } else { 1.0 };
        std::fs::write(&path, hgrm::percentiles(&series.to_hdr(), divisor))
            .map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// The title, of what may stand in the name of a file anywhere.
fn file_name(series: &Series) -> String {
    let mut name = series.name.clone();
    for value in series.labels.values() {
        name.push('.');
        name.extend(value.chars().map(|it| match it {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' => it,
            _ => '_',
        }));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hist(name: Option<&str>, route: Option<&str>, label: &[&str]) -> Hist {
        Hist {
            ask: Ask { socket: PathBuf::new() },
            name: name.map(str::to_owned),
            route: route.map(str::to_owned),
            direction: None,
            label: label.iter().map(|&label| label.to_owned()).collect(),
            interval: None,
            json: false,
            hgrm: None,
        }
    }

    fn reading() -> Reading {
        let one = |name: &str, labels: Value, buckets: Value| {
            json!({
                "name": name, "labels": labels, "unit": "ns", "count": 3, "sum": 6000,
                "buckets": buckets,
            })
        };
        let some = || json!([[1000, 1031, 2], [4000, 4031, 1]]);
        serde_json::from_value(json!({ "unix_ms": 1, "histograms": [
            one("forward_seconds", json!({"route": "*/a", "direction": "to_client"}), some()),
            one("forward_seconds", json!({"route": "h/b", "direction": "to_client"}), some()),
            one("handshake_seconds", json!({"stage": "head"}), some()),
            one("rtt_seconds", json!({}), some()),
        ]}))
        .expect("in order")
    }

    #[test]
    fn a_selection_narrows() {
        let reading = reading();
        for (name, route, label, want) in [
            (None, None, &[][..], 4),
            (Some("forward_seconds"), None, &[], 2),
            (Some("penstock_rtt_seconds"), None, &[], 1),
            (None, Some("*/a"), &[], 1),
            (None, Some("/a"), &[], 1),
            (None, None, &["stage=head"], 1),
            (Some("forward_seconds"), None, &["route=h/b", "direction=to_client"], 1),
        ] {
            let selected = hist(name, route, label).select(&reading).map(|list| list.len());
            assert_eq!(selected, Ok(want), "{name:?} {route:?} {label:?}");
        }
    }

    #[test]
    fn a_selection_of_nothing_says_what_there_is() {
        let reading = reading();
        for (name, route, label, want) in [
            (
                Some("forward"),
                None,
                &[][..],
                "there is no histogram \"forward\" here; there is forward_seconds, \
                 handshake_seconds, rtt_seconds",
            ),
            (None, Some("/c"), &[], "there is no route \"/c\" here; there is */a, h/b"),
            (None, None, &["stage=x"], "there is no stage \"x\" here; there is head"),
            (
                None,
                None,
                &["core=1"],
                "there is no label \"core\" here; there is direction, route, stage",
            ),
            (
                Some("rtt_seconds"),
                None,
                &["core=1"],
                "there is no label \"core\" here, nor any other",
            ),
            (None, None, &["stage"], "--label stage: write KEY=VALUE, as stage=connect"),
        ] {
            let why = hist(name, route, label).select(&reading).map(|list| list.len());
            assert_eq!(why, Err(want.to_owned()));
        }
    }

    #[test]
    fn a_table_has_a_line_for_each() {
        let reading = reading();
        let list: Vec<&Series> = reading.histograms.iter().collect();
        let text = table(&list);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(lines[0]),
            ["HISTOGRAM", "COUNT", "MEAN", "P50", "P90", "P99", "P99.9", "P99.99", "MAX"]
        );
        assert_eq!(
            words(lines[1]),
            [
                "forward_seconds{route=*/a,direction=to_client}",
                "3",
                "2.00us",
                "1.01us",
                "4.01us",
                "4.01us",
                "4.01us",
                "4.01us",
                "4.01us"
            ]
        );
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].len()), "{text}");
        let json = as_json(&reading, &list);
        assert_eq!(json["histograms"][3]["p50"], 1015);
        assert_eq!(json["histograms"][3]["mean"], 2000.0);
    }

    #[test]
    fn each_distribution_has_a_file_of_its_own() {
        let directory =
            std::env::temp_dir().join(format!("penstock-hgrm-test-{}", std::process::id()));
        let mut reading = reading();
        // Two names that look the same in a file system.
        reading.histograms[1].labels.insert("route".to_owned(), "*_a".to_owned());
        let list: Vec<&Series> = reading.histograms.iter().collect();
        let written = write_distributions(&directory, &list);
        let mut names: Vec<String> = std::fs::read_dir(&directory)
            .expect("it was made")
            .map(|entry| entry.expect("a name").file_name().into_string().expect("ASCII"))
            .collect();
        names.sort();
        let text = std::fs::read_to_string(directory.join("rtt_seconds.hgrm"));
        std::fs::remove_dir_all(&directory).expect("it is ours");
        assert_eq!(written, Ok(()));
        assert_eq!(
            names,
            [
                "forward_seconds.to_client.__a.2.hgrm",
                "forward_seconds.to_client.__a.hgrm",
                "handshake_seconds.head.hgrm",
                "rtt_seconds.hgrm"
            ]
        );
        assert!(text.expect("it was written").contains("Total count    =            3]"));
        assert!(write_distributions(Path::new("/dev/null/x"), &list).is_err());
    }
}
