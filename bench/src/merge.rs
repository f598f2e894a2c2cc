//! Several results of one run as one: of workers on several CPUs, or of several hosts that played
//! together against one server.
//!
//! Histograms and counts are added, and what is derived from them is derived again. Figures of the
//! server are not added: each part has read the same one, over the same time.

use std::io;
use std::path::PathBuf;

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::histogram;
use crate::options;
use crate::proc::round;
use crate::result_file::ResultFile;

/// Adds up the results of tools that played against one server at the same time.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Result files (`--json`) of the same command.
    #[arg(required = true, value_name = "RESULT.json")]
    pub(crate) files: Vec<PathBuf>,
}

/// Reads the files and adds them up.
pub(crate) fn run(options: &Options) -> io::Result<ResultFile> {
    let read = options.files.iter().map(|path| ResultFile::read(path));
    let results = read.collect::<io::Result<Vec<_>>>()?;
    merge(&results).map_err(io::Error::other)
}

/// Adds results up; the first one says where it was.
pub(crate) fn merge(parts: &[ResultFile]) -> Result<ResultFile, String> {
    let Some(first) = parts.first() else { return Err("there are no results to add up".into()) };
    if let Some(other) = parts.iter().find(|part| part.scenario() != first.scenario()) {
        let (a, b) = (first.scenario(), other.scenario());
        return Err(format!("a result of `{a}` and one of `{b}` cannot be added up"));
    }
    let histograms = merge_histograms(parts);
    let mut merged = first.clone();
    let mut figures = figures(parts, &histograms);
    figures.insert("parts_count".into(), json!(parts.len()));
    merged.set("complete", json!(parts.iter().all(ResultFile::is_complete)));
    merged.set("saturated", json!(parts.iter().any(ResultFile::is_saturated)));
    merged.set("parameters", Value::Object(parameters(parts)));
    let encoded = histograms.iter().map(|(name, histogram)| {
        (name.clone(), json!({ "unit": "ns", "hdr": histogram::encode(histogram) }))
    });
    merged.set("histograms", Value::Object(encoded.collect()));
    merged.set("intervals", Value::Array(intervals(parts)));
    let part = |part: &ResultFile| {
        json!({
            "command_line": part.get("command_line"),
            "started_at": part.get("started_at"),
            "machine": part.get("machine"),
            "complete": part.is_complete(),
            "saturated": part.is_saturated(),
            "figures": part.figures(),
        })
    };
    merged.set("parts", Value::Array(parts.iter().map(part).collect()));
    merged.set("figures", Value::Object(figures));
    Ok(merged)
}

/// The histograms that all parts have, added.
fn merge_histograms(parts: &[ResultFile]) -> Vec<(String, Histogram<u64>)> {
    let mut sums = parts[0].histograms();
    for part in &parts[1..] {
        let histograms = part.histograms();
        sums.retain_mut(|(name, sum)| {
            let other = histograms.iter().find(|(other, _)| other == name);
            other.is_some_and(|(_, other)| sum.add(other).is_ok())
        });
    }
    sums
}

/// What each worker had a share of is the sum; the rest is as the first had it.
fn parameters(parts: &[ResultFile]) -> Map<String, Value> {
    let mut parameters = parts[0].parameters().clone();
    for key in SHARED {
        let number = |part: &ResultFile| {
            let text = part.parameters().get(key)?.as_str()?;
            options::rate(text).ok().map(u64::from)
        };
        if let Some(sum) = parts.iter().map(number).sum::<Option<u64>>() {
            let unit = if key == "rate" { "/s" } else { "" };
            parameters.insert(key.to_owned(), json!(format!("{sum}{unit}")));
        }
    }
    parameters
}

/// Options that are divided between workers.
pub(crate) const SHARED: [&str; 3] = ["connections", "rate", "sample"];

fn figures(parts: &[ResultFile], merged: &[(String, Histogram<u64>)]) -> Map<String, Value> {
    let own: Vec<_> = parts.iter().map(ResultFile::histograms).collect();
    let values: Vec<Value> =
        parts.iter().map(|part| Value::Object(part.figures().clone())).collect();
    let merger = Merger { own: &own, merged };
    match merger.value("", "", &values.iter().collect::<Vec<_>>()) {
        Value::Object(figures) => figures,
        _ => Map::new(),
    }
}

struct Merger<'a> {
    /// The histograms of each part, and their sums.
    own: &'a [Vec<(String, Histogram<u64>)>],
    merged: &'a [(String, Histogram<u64>)],
}

impl Merger<'_> {
    /// One value of all parts; `section` is the outermost key that it is under.
    fn value(&self, section: &str, key: &str, values: &[&Value]) -> Value {
        if let Some(maps) = all(values, Value::as_object) {
            return self
                .percentiles(values)
                .unwrap_or_else(|| Value::Object(self.object(section, key, &maps)));
        }
        if let Some(lists) = all(values, Value::as_array) {
            let length = lists.iter().map(|list| list.len()).min().unwrap_or(0);
            let at = |index: usize| lists.iter().map(|list| &list[index]).collect::<Vec<_>>();
            return (0..length).map(|index| self.value(section, key, &at(index))).collect();
        }
        if let Some(flags) = all(values, Value::as_bool) {
            // Trouble of one is trouble of all; `ok` and `complete` are the other way about.
            let is_trouble = key != "ok" && key != "complete";
            return json!(flags.contains(&is_trouble) == is_trouble);
        }
        if let Some(numbers) = all(values, Value::as_number) {
            let floats: Option<Vec<f64>> = numbers.iter().map(|number| number.as_f64()).collect();
            let sum = numbers.iter().map(|number| number.as_u64()).sum::<Option<u64>>();
            return number(section, key, &floats.unwrap_or_default(), sum);
        }
        let mut texts: Vec<&str> = values.iter().filter_map(|value| value.as_str()).collect();
        texts.dedup();
        // A reason that only some have is told; a number that only some have is not known.
        if texts.is_empty() { Value::Null } else { json!(texts.join("; ")) }
    }

    fn object(&self, section: &str, key: &str, maps: &[&Map<String, Value>]) -> Map<String, Value> {
        let mut out = Map::new();
        // Counts of kinds that not all parts have met.
        let is_by_reason = key.ends_with("_by_reason") || key.starts_with("count_by_");
        for map in maps {
            for name in map.keys().filter(|name| !name.is_empty()) {
                if out.contains_key(name) {
                    continue;
                }
                let values: Vec<&Value> = match is_by_reason {
                    true => maps.iter().filter_map(|map| map.get(name)).collect(),
                    false => maps.iter().map(|map| map.get(name).unwrap_or(&Value::Null)).collect(),
                };
                let section = if section.is_empty() { name } else { section };
                let section = if is_by_reason { "by_reason" } else { section };
                out.insert(name.clone(), self.value(section, name, &values));
            }
        }
        // Time of the tool by message: from the busy shares, all of one length of time.
        let busy = all_in(maps, "thread_busy_percent");
        let per = out.keys().find(|name| name.starts_with("cpu_us_per_")).cloned();
        if let (Some(busy), Some(per)) = (busy, per)
            && let Some(each) = all_in(maps, &per)
            && each.iter().all(|us| *us > 0.0)
        {
            let counts: f64 = busy.iter().zip(&each).map(|(busy, us)| busy / us).sum();
            let time: f64 = busy.iter().sum();
            out.insert(per, if counts > 0.0 { round(time / counts) } else { Value::Null });
        }
        out
    }

    /// The percentiles of the sum of the histograms that these are the percentiles of: which ones
    /// that is shows when they are taken again.
    fn percentiles(&self, values: &[&Value]) -> Option<Value> {
        values[0].get("count")?;
        let is_it = |name: &str| {
            values.iter().zip(self.own).all(|(value, own)| {
                let found = own.iter().find(|(own, _)| own == name);
                found.is_some_and(|(_, histogram)| histogram::report(histogram) == **value)
            })
        };
        let (_, sum) = self.merged.iter().find(|(name, _)| is_it(name))?;
        Some(histogram::report(sum))
    }
}

/// One number of all parts, by what its key says that it is. `sum` is theirs, if they are whole.
fn number(section: &str, key: &str, numbers: &[f64], sum: Option<u64>) -> Value {
    let add = || sum.map_or_else(|| round(numbers.iter().sum()), |sum| json!(sum));
    let largest = numbers.iter().copied().fold(f64::MIN, f64::max);
    let largest = || {
        if largest.fract() == 0.0 && sum.is_some() { json!(largest as u64) } else { round(largest) }
    };
    let is_of_server =
        section == "server" || section == "kernel_memory" || key.starts_with("server_");
    if is_of_server && key.contains("_per_") {
        // Each divided what the whole server used by its own count: T/a and T/b make T/(a+b).
        let inverse: f64 = numbers.iter().map(|number| 1.0 / number).sum();
        return match numbers.iter().all(|number| *number > 0.0) {
            true => round(1.0 / inverse),
            false => Value::Null,
        };
    }
    if is_of_server || section == "tcp_sockets" {
        return largest();
    }
    if key.contains("_per_second") || key.starts_with("connections") {
        return add();
    }
    if key.contains("_per_") {
        return match numbers {
            [first, others @ ..] if others.iter().all(|number| number == first) => largest(),
            _ => round(numbers.iter().sum::<f64>() / numbers.len().max(1) as f64),
        };
    }
    // A percentile without its histogram cannot be known; the worst one is no better than it.
    if key.ends_with("_count") || key == "count" || key == "cpu_seconds" || section == "by_reason" {
        return add();
    }
    largest()
}

/// The same kind from all, or nothing.
fn all<'a, T>(values: &[&'a Value], of: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
    values.iter().map(|value| of(value)).collect()
}

fn all_in(maps: &[&Map<String, Value>], key: &str) -> Option<Vec<f64>> {
    maps.iter().map(|map| map.get(key)?.as_f64()).collect()
}

/// The intervals of the parts side by side: the first of a phase with the first of the same phase,
/// for phases begin together while clocks and lengths differ a little.
fn intervals(parts: &[ResultFile]) -> Vec<Value> {
    let phase = |interval: &Value| interval["phase"].as_str().unwrap_or_default().to_owned();
    // By part: phases in their order, each with its intervals.
    let runs: Vec<Vec<(String, Vec<&Value>)>> = parts
        .iter()
        .map(|part| {
            let mut runs: Vec<(String, Vec<&Value>)> = Vec::new();
            for interval in part.intervals() {
                match runs.last_mut() {
                    Some((last, list)) if *last == phase(interval) => list.push(interval),
                    _ => runs.push((phase(interval), vec![interval])),
                }
            }
            runs
        })
        .collect();
    let mut out = Vec::new();
    for (number, (phase, _)) in runs[0].iter().enumerate() {
        let lists = runs.iter().filter_map(|runs| runs.get(number));
        let lists: Vec<_> =
            lists.filter(|(other, _)| other == phase).map(|(_, list)| list).collect();
        let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
        out.extend((0..longest).map(|index| join(phase, &lists, index)));
    }
    out
}

fn join(phase: &str, lists: &[&Vec<&Value>], index: usize) -> Value {
    let there: Vec<&Value> = lists.iter().filter_map(|list| list.get(index).copied()).collect();
    let numbers = |key: &str| -> Vec<f64> {
        there.iter().filter_map(|interval| interval[key].as_f64()).collect()
    };
    let sum = |key: &str| numbers(key).iter().sum::<f64>();
    let count = |key: &str| json!(sum(key) as u64);
    let largest = |key: &str| numbers(key).into_iter().reduce(f64::max);
    let bytes = |key: &str| json!(largest(key).map(|bytes| bytes as u64));
    // Who is through with the phase already holds its connections.
    let connections = lists.iter().filter_map(|list| list.get(index).or(list.last()));
    let connections: u64 = connections.filter_map(|i| i["connections"].as_u64()).sum();
    let mut latency = histogram::new();
    for hdr in there.iter().filter_map(|interval| interval["latency_hdr"].as_str()) {
        if let Ok(part) = histogram::decode(hdr) {
            // Both have our bounds.
            let _ = latency.add(part);
        }
    }
    json!({
        "start_seconds": numbers("start_seconds").into_iter().reduce(f64::min),
        "seconds": largest("seconds"),
        "phase": phase,
        "connections": connections,
        "opened_count": count("opened_count"),
        "sent_count": count("sent_count"),
        "received_count": count("received_count"),
        "latency_us": histogram::report_short(&latency),
        "latency_hdr": (!latency.is_empty()).then(|| histogram::encode(&latency)),
        "server_cpu_percent": largest("server_cpu_percent"),
        "tool_cpu_percent": round(sum("tool_cpu_percent")),
        "server_rss_bytes": bytes("server_rss_bytes"),
        "tool_rss_bytes": count("tool_rss_bytes"),
        "machine_socket_bytes": bytes("machine_socket_bytes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(from_us: u64, connections: u64, saturated: bool) -> ResultFile {
        let mut latency = histogram::new();
        (from_us..from_us + 100).for_each(|us| histogram::record(&mut latency, us * 1000));
        let hdr = histogram::encode(&latency);
        let interval = |phase: &str, count: u64, connections: u64| {
            json!({
                "start_seconds": 0.5, "seconds": 1.0, "phase": phase, "connections": connections,
                "opened_count": 1, "sent_count": count, "received_count": count,
                "latency_us": {}, "latency_hdr": hdr, "server_cpu_percent": 50.0,
                "tool_cpu_percent": 20.0, "server_rss_bytes": 1000, "tool_rss_bytes": 10,
                "machine_socket_bytes": null,
            })
        };
        let mut intervals = vec![interval("opening", 0, connections)];
        if saturated {
            intervals.push(interval("opening", 0, connections));
        }
        intervals.push(interval("measuring", 100, connections));
        let document = json!({
            "format": "penstock-bench result", "format_version": 1, "scenario": "load",
            "label": null, "machine": {}, "complete": true, "saturated": saturated,
            "parameters": { "connections": connections.to_string(), "rate": "7/s", "size": "64" },
            "histograms": { "latency": { "unit": "ns", "hdr": hdr } },
            "intervals": intervals,
            "figures": {
                "scenario": "load", "complete": true, "ok": !saturated, "saturated": saturated,
                "saturated_reason": saturated.then_some("busy"), "message_bytes": 64,
                "connections": connections, "achieved_per_second": 100.5, "back_count": 100,
                "connections_per_server": connections, "messages": { "count_by_bytes": { "64..127": 5 } },
                "ended_early_by_reason": { format!("reset {from_us}"): 2, "both": 1 },
                "latency_us": histogram::report(&latency),
                "server": { "cpu_us_per_message": 4.0, "cpu_busy_percent": 50.0, "cpu": { "cpu_seconds": 1.0 } },
                "tool": { "thread_busy_percent": from_us as f64, "cpu_us_per_message": 2.0 },
            },
        });
        let Value::Object(document) = document else { unreachable!() };
        ResultFile::check(document).unwrap()
    }

    #[test]
    fn counts_and_histograms_are_added_and_percentiles_taken_again() {
        let (a, b) = (part(1, 3, false), part(901, 4, true));
        let merged = merge(&[a.clone(), b.clone()]).unwrap();
        let figures = merged.figures();
        assert_eq!(figures["back_count"], 200);
        assert_eq!(
            (&figures["connections"], &figures["achieved_per_second"]),
            (&json!(7), &json!(201.0))
        );
        let mut sum = a.histograms()[0].1.clone();
        sum.add(&b.histograms()[0].1).unwrap();
        assert_eq!(merged.histograms(), [("latency".to_owned(), sum.clone())]);
        assert_eq!(figures["latency_us"], histogram::report(&sum));
        assert_eq!(figures["latency_us"]["count"], 200);
        assert_eq!(
            figures["ended_early_by_reason"],
            json!({ "reset 1": 2, "both": 2, "reset 901": 2 })
        );
        assert_eq!(figures["message_bytes"], 64);
        assert_eq!(figures["messages"]["count_by_bytes"], json!({ "64..127": 10 }));
        assert_eq!(figures["connections_per_server"], 7);
        let parameters = merged.parameters();
        assert_eq!(
            (&parameters["connections"], &parameters["rate"]),
            (&json!("7"), &json!("14/s"))
        );
        // Both have watched one server, which served both.
        let server = json!({ "cpu_us_per_message": 2.0, "cpu_busy_percent": 50.0, "cpu": { "cpu_seconds": 1.0 } });
        assert_eq!(figures["server"], server);
        assert_eq!(figures["tool"]["cpu_us_per_message"], 2.0);
        assert_eq!(ResultFile::parse(&merged.to_line()).unwrap(), merged);
    }

    #[test]
    fn trouble_of_one_is_trouble_of_all() {
        let mut stopped = part(1, 3, false);
        stopped.set("complete", json!(false));
        let merged = merge(&[part(1, 3, true), stopped]).unwrap();
        assert!(merged.is_saturated() && !merged.is_complete());
        assert_eq!(
            (&merged.figures()["ok"], &merged.figures()["saturated"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(merged.figures()["saturated_reason"], "busy");
        let mut other = part(1, 3, false);
        other.set("scenario", json!("hold"));
        assert!(merge(&[part(1, 3, false), other]).unwrap_err().contains("`hold`"));
        assert!(merge(&[]).is_err());
    }

    #[test]
    fn intervals_stand_side_by_side_by_phase() {
        let merged = merge(&[part(1, 3, false), part(901, 4, true)]).unwrap();
        let got: Vec<_> = merged
            .intervals()
            .iter()
            .map(|i| {
                (
                    i["phase"].as_str().unwrap(),
                    i["connections"].as_u64().unwrap(),
                    i["sent_count"].as_u64().unwrap(),
                )
            })
            .collect();
        assert_eq!(got, [("opening", 7, 0), ("opening", 7, 0), ("measuring", 7, 200)]);
        let last = &merged.intervals()[2];
        assert_eq!(
            (&last["latency_us"]["count"], &last["server_cpu_percent"]),
            (&json!(200), &json!(50.0))
        );
        assert_eq!(
            (&last["tool_cpu_percent"], &last["machine_socket_bytes"]),
            (&json!(40.0), &Value::Null)
        );
    }
}
