//! Compares results: runs of one kind in groups, by their labels, each figure with its median, its
//! range and its ratio to the first group. What lies within the ranges is called noise.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::proc::round;
use crate::result_file::ResultFile;
use crate::websocket;

/// Compares result files (`--json`) of the same command with the same options.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Result files; those of one `--label` are repeats of one another. Ratios are to the first.
    #[arg(required = true, value_name = "RESULT.json")]
    pub(crate) files: Vec<PathBuf>,
    /// Compare different commands and options too.
    #[arg(long)]
    pub(crate) force: bool,
    /// Write a Markdown table to standard output instead of JSON.
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Show all figures instead of those that mostly matter.
    #[arg(long)]
    pub(crate) all: bool,
}

/// Options that say which server it was and where the result went, not what was done to it.
const NOT_PARAMETERS: [&str; 20] = [
    "url",
    "target",
    "pid",
    "unit",
    "with-children",
    "dialect",
    "room-prefix",
    "upstream",
    "allow-remote",
    "header",
    "host",
    "token",
    "tls-ca",
    "tls-insecure",
    "json",
    "html",
    "hgrm",
    "hlog",
    "label",
    "quiet",
];

/// Resamplings of a bootstrap.
const RESAMPLES: u64 = 1000;

/// Runs of one label.
struct Group {
    name: String,
    runs: Vec<ResultFile>,
}

/// One figure of all groups.
struct Row {
    /// Such as "latency_us.p99".
    name: String,
    /// By group; empty where it has no such figure. Ascending.
    values: Vec<Vec<f64>>,
}

/// A comparison, ready to be told.
pub(crate) struct Comparison {
    groups: Vec<Group>,
    rows: Vec<Row>,
}

/// Reads the files and compares them.
pub(crate) fn run(options: &Options) -> io::Result<Comparison> {
    let read = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, ResultFile::read(path)?))
    };
    let named = options.files.iter().map(read).collect::<io::Result<Vec<_>>>()?;
    compare(named, options.force).map_err(io::Error::other)
}

/// Compares results, which go by these names where they have no label.
pub(crate) fn compare(
    results: Vec<(String, ResultFile)>,
    force: bool,
) -> Result<Comparison, String> {
    let differences = differences(&results);
    if !force && !differences.is_empty() {
        let list = differences.join("; ");
        return Err(format!("these are not runs of one kind: {list} (--force to insist)"));
    }
    let mut groups: Vec<Group> = Vec::new();
    for (name, run) in results {
        let name = run.label().map_or(name, str::to_owned);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { name, runs: vec![run] }),
        }
    }
    let rows = rows(&groups);
    Ok(Comparison { groups, rows })
}

/// What makes runs incomparable, one sentence each.
fn differences(results: &[(String, ResultFile)]) -> Vec<String> {
    let Some(((first_name, first), others)) = results.split_first() else { return Vec::new() };
    let mut found = BTreeSet::new();
    for (name, other) in others {
        if other.scenario() != first.scenario() {
            let (a, b) = (first.scenario(), other.scenario());
            found.insert(format!("{first_name} is of `{a}`, {name} of `{b}`"));
            continue;
        }
        let keys: BTreeSet<&String> =
            first.parameters().keys().chain(other.parameters().keys()).collect();
        for key in keys.into_iter().filter(|key| !NOT_PARAMETERS.contains(&key.as_str())) {
            let text = |result: &ResultFile| match result.parameters().get(key) {
                Some(Value::String(text)) => text.clone(),
                _ => "nothing".into(),
            };
            let (a, b) = (text(first), text(other));
            if a != b {
                found.insert(format!("--{key} is {a} in {first_name} and {b} in {name}"));
            }
        }
    }
    found.into_iter().collect()
}

/// Every figure that is a number, in the order in which the results tell them.
fn rows(groups: &[Group]) -> Vec<Row> {
    let mut names: Vec<String> = Vec::new();
    let mut known = BTreeSet::new();
    let mut numbers = Vec::new();
    for group in groups {
        let mut of_group = Vec::new();
        for run in &group.runs {
            let mut of_run = Vec::new();
            flatten("", &Value::Object(run.figures().clone()), &mut of_run);
            for (name, _) in &of_run {
                if known.insert(name.clone()) {
                    names.push(name.clone());
                }
            }
            of_group.push(of_run);
        }
        numbers.push(of_group);
    }
    let row = |name: String| {
        let of_group = |runs: &Vec<Vec<(String, f64)>>| {
            let found = runs.iter().filter_map(|run| run.iter().find(|(key, _)| *key == name));
            let mut values: Vec<f64> = found.map(|(_, value)| *value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let values = numbers.iter().map(of_group).collect();
        Row { name, values }
    };
    names.into_iter().map(row).collect()
}

/// The numbers in a value, by their paths.
fn flatten(path: &str, value: &Value, out: &mut Vec<(String, f64)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&below(key), value, out)),
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(i, value)| flatten(&below(&i.to_string()), value, out));
        }
        Value::Number(number) => {
            out.extend(number.as_f64().map(|number| (path.to_owned(), number)));
        }
        _ => {}
    }
}

impl Row {
    /// The ratio of a group's median to the first group's.
    fn ratio(&self, group: usize) -> Option<f64> {
        let (first, this) = (median(&self.values[0])?, median(&self.values[group])?);
        (first != 0.0).then(|| this / first)
    }

    /// Whether its range and the first group's overlap; unknown from a single run.
    fn is_noise(&self, group: usize) -> Option<bool> {
        let (first, this) = (&self.values[0], &self.values[group]);
        let ([low, .., high], [this_low, .., this_high]) = (&first[..], &this[..]) else {
            return None;
        };
        Some(this_low <= high && low <= this_high)
    }

    /// What 95 % of the ratios are within when runs are drawn again from those that there are;
    /// nothing from fewer than three.
    fn ratio_range(&self, group: usize) -> Option<(f64, f64)> {
        let (first, this) = (&self.values[0], &self.values[group]);
        if first.len() < 3 || this.len() < 3 || first[0] <= 0.0 {
            return None;
        }
        let mut ratios: Vec<f64> = (0..RESAMPLES)
            .filter_map(|number| {
                let draw = |values: &[f64], salt: u64| {
                    let pick = |i: usize| {
                        let random = websocket::scramble(number << 20 | salt << 16 | i as u64);
                        values[(random % values.len() as u64) as usize]
                    };
                    let mut drawn: Vec<f64> = (0..values.len()).map(pick).collect();
                    drawn.sort_by(f64::total_cmp);
                    median(&drawn)
                };
                Some(draw(this, 1)? / draw(first, 2)?)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share) as usize];
        Some((at(0.025), at(0.975)))
    }
}

/// Whether a figure of these values is one of those to look at first.
pub(crate) fn matters(name: &str, values: &[f64]) -> bool {
    // Of "latency_us.p99.9": the name of what it is in, and its own.
    let is_percentile = [".p50", ".p99", ".p99.9", ".max"].iter().any(|end| name.ends_with(end));
    let last = name.rsplit('.').next().unwrap_or(name);
    let starts =
        ["lost_", "missing_", "duplicates_", "reordered_", "faults_", "failed_", "ended_early_"];
    let is_trouble = last.ends_with("_count") && starts.iter().any(|start| last.starts_with(start));
    let is_of_server = name.starts_with("server.") || name.starts_with("servers.");
    (is_percentile && !name.contains("lag_us"))
        || (last.ends_with("_per_second") && !last.starts_with("offered_"))
        || last.contains("cpu_us_per_")
        || (is_of_server && last.ends_with("_bytes_per_connection"))
        || (is_trouble && values.iter().any(|value| *value != 0.0))
}

/// A figure's name as people read it.
pub(crate) fn spoken(name: &str) -> String {
    let name = name.replace('_', " ").replace('.', " › ");
    name.replace("p99 › 99", "p99.99").replace("p99 › 9", "p99.9")
}

/// The middle of ascending values.
fn median(values: &[f64]) -> Option<f64> {
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl Comparison {
    /// As JSON: all figures.
    pub(crate) fn report(&self) -> Value {
        let group = |group: &Group| {
            json!({
                "name": group.name,
                "runs_count": group.runs.len(),
                "saturated_count": group.runs.iter().filter(|run| run.is_saturated()).count(),
                "incomplete_count": group.runs.iter().filter(|run| !run.is_complete()).count(),
            })
        };
        let figure = |row: &Row| {
            let of_group = |index: usize| {
                let values = &row.values[index];
                let mut report = Map::new();
                report.insert("median".into(), median(values).map_or(Value::Null, round));
                report.insert("min".into(), json!(values.first()));
                report.insert("max".into(), json!(values.last()));
                if index > 0 {
                    report.insert("ratio".into(), row.ratio(index).map_or(Value::Null, round));
                    let range = row.ratio_range(index);
                    let range = range.map(|(low, high)| json!([round(low), round(high)]));
                    report.insert("ratio_95_percent".into(), json!(range));
                    report.insert("within_noise".into(), json!(row.is_noise(index)));
                }
                Value::Object(report)
            };
            let groups: Vec<Value> = (0..self.groups.len()).map(of_group).collect();
            (row.name.clone(), Value::Array(groups))
        };
        json!({
            "scenario": self.groups.first().map(|group| group.runs[0].scenario()),
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
            "figures": Map::from_iter(self.rows.iter().map(figure)),
        })
    }

    /// As lines with columns.
    pub(crate) fn text(&self, all: bool, colour: bool) -> String {
        let table = self.table(all);
        let columns = table[0].len();
        let width =
            |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &table {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        for warning in self.warnings() {
            out.push_str(&match colour {
                true => format!("\x1B[1;31m{warning}\x1B[0m\n"),
                false => warning + "\n",
            });
        }
        out
    }

    /// As a table in Markdown.
    pub(crate) fn markdown(&self, all: bool) -> String {
        let mut out = String::new();
        for (number, row) in self.table(all).iter().enumerate() {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            out.push_str(&format!("| {} |\n", cells.join(" | ")));
            if number == 0 {
                out.push_str(&format!("| --- |{}\n", " ---: |".repeat(row.len() - 1)));
            }
        }
        for warning in self.warnings() {
            out.push_str(&format!("\n**{warning}**\n"));
        }
        out
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for Group { name, runs } in &self.groups {
            let count = |is: fn(&ResultFile) -> bool| runs.iter().filter(|run| is(run)).count();
            let all = runs.len();
            match count(ResultFile::is_saturated) {
                0 => {}
                some => warnings.push(format!(
                    "SATURATED: {some} of {all} runs of {name}: these figures are about the tool"
                )),
            }
            match count(|run| !run.is_complete()) {
                0 => {}
                some => warnings.push(format!("INCOMPLETE: {some} of {all} runs of {name}")),
            }
        }
        warnings
    }

    /// The heading and a row for each figure.
    fn table(&self, all: bool) -> Vec<Vec<String>> {
        let mut heading = vec![String::new()];
        for (index, Group { name, runs }) in self.groups.iter().enumerate() {
            let runs = match runs.len() {
                1 => "1 run".to_owned(),
                count => format!("{count} runs"),
            };
            heading.push(format!("{name} ({runs})"));
            if index > 0 {
                heading.push("ratio".into());
            }
        }
        let mut table = vec![heading];
        let is_shown = |row: &&Row| all || matters(&row.name, &row.values.concat());
        for row in self.rows.iter().filter(is_shown) {
            let mut cells = vec![spoken(&row.name)];
            for index in 0..self.groups.len() {
                cells.push(spread(&row.values[index]));
                if index > 0 {
                    cells.push(row.ratio_text(index));
                }
            }
            table.push(cells);
        }
        table
    }
}

impl Row {
    fn ratio_text(&self, group: usize) -> String {
        let Some(ratio) = self.ratio(group) else { return "-".into() };
        let note = match self.is_noise(group) {
            Some(true) => ", within noise",
            Some(false) => "",
            None => ", one run",
        };
        match self.ratio_range(group) {
            Some((low, high)) => format!("{ratio:.2} ({low:.2}–{high:.2}{note})"),
            None => format!("{ratio:.2}{note}"),
        }
    }
}

/// A median and its range.
fn spread(values: &[f64]) -> String {
    match values {
        [] => "-".into(),
        [value] => number(*value),
        [low, .., high] if low == high => number(*low),
        [low, .., high] => {
            let middle = median(values).unwrap_or(*low);
            format!("{} ({}–{})", number(middle), number(*low), number(*high))
        }
    }
}

/// A number with as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    let text = match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(label: &str, rate: &str, p99: f64, saturated: bool) -> (String, ResultFile) {
        let document = json!({
            "format": "penstock-bench result", "format_version": 1, "scenario": "load",
            "label": label, "parameters": { "url": label, "rate": rate }, "machine": {},
            "saturated": saturated, "histograms": {}, "intervals": [],
            "figures": {
                "latency_us": { "p99": p99, "p99.9": 2.0 * p99 }, "lost_count": 0, "ok": true,
                "tool": { "lag_us": { "p99": 1.0 } }, "achieved_per_second": 1000.5,
            },
        });
        let Value::Object(document) = document else { unreachable!() };
        ("file".into(), ResultFile::check(document).unwrap())
    }

    fn five(label: &str, from: f64) -> Vec<(String, ResultFile)> {
        (0..5).map(|i| result(label, "9/s", from + f64::from(i), false)).collect()
    }

    #[test]
    fn medians_ranges_and_ratios() {
        let mut runs = five("A", 100.0);
        runs.extend(five("B", 201.0));
        runs.extend(five("C", 103.0));
        let comparison = compare(runs, false).unwrap();
        let report = comparison.report();
        let p99 = &report["figures"]["latency_us.p99"];
        assert_eq!(p99[0], json!({ "median": 102.0, "min": 100.0, "max": 104.0 }));
        assert_eq!((&p99[1]["ratio"], &p99[1]["within_noise"]), (&json!(1.99), &json!(false)));
        assert_eq!((&p99[2]["ratio"], &p99[2]["within_noise"]), (&json!(1.029), &json!(true)));
        let range: Vec<f64> = p99[1]["ratio_95_percent"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap())
            .collect();
        assert!(
            201.0 / 104.0 <= range[0] && range[0] <= 1.99 && 1.99 <= range[1] && range[1] <= 2.05,
            "{range:?}"
        );

        let text = comparison.text(false, false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("A (5 runs)") && lines[0].contains("ratio"), "{text}");
        assert!(lines[1].starts_with("latency us › p99  "), "{text}");
        assert!(lines[1].contains("102 (100–104)") && lines[1].contains("within noise"), "{text}");
        assert!(lines[2].starts_with("latency us › p99.9  "), "{text}");
        assert!(!text.contains("lag") && !text.contains("lost"), "{text}");
        assert!(comparison.text(true, false).contains("tool › lag us › p99"));
        let markdown = comparison.markdown(false);
        assert!(markdown.lines().nth(1).unwrap().starts_with("| --- | ---: |"), "{markdown}");
        assert_eq!(markdown.lines().count(), 2 + 3);
    }

    #[test]
    fn one_run_says_nothing_about_noise() {
        let comparison =
            compare(vec![result("A", "9/s", 1.0, false), result("B", "9/s", 3.0, true)], false)
                .unwrap();
        assert!(comparison.text(false, false).contains("3.00, one run"));
        assert_eq!(
            comparison.report()["figures"]["latency_us.p99"][1]["within_noise"],
            Value::Null
        );
        let red = "\x1B[1;31mSATURATED: 1 of 1 runs of B: these figures are about the tool\x1B[0m";
        assert_eq!(comparison.text(false, true).lines().last(), Some(red));
        assert_eq!(comparison.report()["groups"][1]["saturated_count"], 1);
    }

    #[test]
    fn what_differs_is_named() {
        let runs = || vec![result("A", "9/s", 1.0, false), result("B", "8/s", 3.0, false)];
        let error = compare(runs(), false).err().unwrap();
        assert!(error.contains("--rate is 9/s in file and 8/s in file"), "{error}");
        assert!(!error.contains("url"), "another server is what it is for: {error}");
        assert!(compare(runs(), true).is_ok());
        let mut runs = runs();
        runs[1].1.set("scenario", json!("echo"));
        let error = compare(runs, false).err().unwrap();
        assert!(error.contains("`load`") && error.contains("`echo`"), "{error}");
    }

    #[test]
    fn numbers_have_few_digits() {
        let cases = [
            (0.0, "0"),
            (1.5, "1.5"),
            (0.1234, "0.123"),
            (123.456, "123.5"),
            (100_000.0, "100000"),
            (120.0, "120"),
        ];
        for (value, want) in cases {
            assert_eq!(number(value), want);
        }
    }
}
