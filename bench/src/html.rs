//! Results as a page: charts and tables in one file without anything from elsewhere, for light and
//! dark, a wide screen and a phone.

mod chart;

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::compare::{self, number};
use crate::histogram;
use crate::progress::MEASURING;
use crate::result_file::ResultFile;
use chart::{COLOURS, Chart, Scale, Series, escape};

/// Draws results (`--json`) as a page of HTML, several of them one over the other.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Result files.
    #[arg(required = true, value_name = "RESULT.json")]
    pub(crate) files: Vec<PathBuf>,
    /// The page.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// Results in one page; more could not be told apart.
const RESULTS_MAX: usize = 12;

/// Reads the files and writes the page.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    if options.files.len() > RESULTS_MAX {
        let text =
            format!("{} results are more than the {RESULTS_MAX} of a page", options.files.len());
        return Err(io::Error::other(text));
    }
    let read = |path: &PathBuf| {
        let result = ResultFile::read(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = result.label().map_or(stem, str::to_owned);
        Ok((name, result))
    };
    let results = options.files.iter().map(read).collect::<io::Result<Vec<_>>>()?;
    histogram::write(&options.out, page(&results))
}

/// The page of results that go by these names. Two of one name are numbered.
pub(crate) fn page(results: &[(String, ResultFile)]) -> String {
    let names = results.iter().enumerate().map(|(index, (name, _))| {
        let same = |range: &[(String, ResultFile)]| range.iter().filter(|(n, _)| n == name).count();
        match same(results) {
            1 => name.clone(),
            _ => format!("{name} {}", same(&results[..=index])),
        }
    });
    let runs: Vec<Run<'_>> = names
        .zip(results)
        .enumerate()
        .map(|(index, (name, (_, result)))| Run {
            index,
            name,
            result,
            histograms: result.histograms(),
        })
        .collect();
    let scenarios: Vec<&str> = runs.iter().map(|run| run.result.scenario()).collect();
    let mut title = scenarios.clone();
    title.dedup();
    let title = format!("penstock-bench {}", title.join(", "));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{0}</title>\n\
         <style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    for run in &runs {
        out.push_str(&heading(run));
    }
    out.push_str("<h2>Figures</h2>\n");
    out.push_str(&figures_table(&runs, compare::matters));
    let charts = [
        percentiles(&runs),
        over_time(&runs),
        messages(&runs),
        connections(&runs),
        opens(&runs),
        processor(&runs),
        memory(&runs),
    ];
    let charts = charts.concat();
    if !charts.is_empty() {
        let _ = write!(out, "<h2>Charts</h2>\n<div class=\"charts\">\n{charts}</div>\n");
    }
    out.push_str("<h2>Where and how</h2>\n");
    out.push_str(&environment_table(&runs));
    out.push_str("<details><summary>All figures</summary>\n");
    out.push_str(&figures_table(&runs, |_, _| true));
    out.push_str("</details>\n</body></html>\n");
    out
}

struct Run<'a> {
    index: usize,
    name: String,
    result: &'a ResultFile,
    histograms: Vec<(String, Histogram<u64>)>,
}

impl Run<'_> {
    /// One key of each interval over time, at the middle of it.
    fn series(&self, name: &str, colour: usize, value: impl Fn(&Value) -> Option<f64>) -> Series {
        let point = |interval: &Value| {
            let start = interval["start_seconds"].as_f64()?;
            let half = interval["seconds"].as_f64()? / 2.0;
            Some((start + half, value(interval).unwrap_or(f64::NAN)))
        };
        let points = self.result.intervals().iter().filter_map(point).collect();
        Series { name: name.to_owned(), colour, dashed: false, points }
    }
}

/// Name, command line and, in red, what is wrong with a run.
fn heading(run: &Run<'_>) -> String {
    let result = run.result;
    let words = result.get("command_line").as_array().map_or(&[][..], Vec::as_slice);
    let words: Vec<&str> = words.iter().skip(1).filter_map(Value::as_str).collect();
    let mut out = format!(
        "<p class=\"run\"><span class=\"swatch\" style=\"background:var(--c{})\"></span>\
         <strong>{}</strong> <span class=\"quiet\">{}</span><br><code>{}</code></p>\n",
        run.index % COLOURS,
        escape(&run.name),
        escape(result.get("started_at").as_str().unwrap_or_default()),
        escape(&words.join(" "))
    );
    if result.is_saturated() {
        let reason = result.figures().get("saturated_reason").and_then(Value::as_str);
        let _ = writeln!(
            out,
            "<p class=\"red\"><strong>Saturated.</strong> The figures of {} are about the tool: {}</p>",
            escape(&run.name),
            escape(reason.unwrap_or("no reason is given"))
        );
    }
    if !result.is_complete() {
        let name = escape(&run.name);
        let _ = writeln!(
            out,
            "<p class=\"red\"><strong>Incomplete.</strong> {name} was ended early, or a part of it is missing.</p>"
        );
    }
    out
}

/// Rows of figures, a column for each run.
fn figures_table(runs: &[Run<'_>], wanted: impl Fn(&str, &[f64]) -> bool) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (column, run) in runs.iter().enumerate() {
        let mut leaves = Vec::new();
        leaves_of("", &Value::Object(run.result.figures().clone()), &mut leaves);
        for (name, value) in leaves {
            let row = match rows.iter().position(|(known, _)| *known == name) {
                Some(row) => row,
                None => {
                    rows.push((name, vec![String::new(); runs.len()]));
                    rows.len() - 1
                }
            };
            rows[row].1[column] = value;
        }
    }
    let numbers = |cells: &[String]| -> Vec<f64> {
        cells.iter().filter_map(|cell| cell.parse().ok()).collect()
    };
    rows.retain(|(name, cells)| wanted(name, &numbers(cells)));
    let rows = rows.into_iter().map(|(name, cells)| (compare::spoken(&name), cells));
    table(runs, rows, grouped)
}

/// What is known of the machine, the server and the options.
fn environment_table(runs: &[Run<'_>]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let cells =
        |of: &dyn Fn(&ResultFile) -> String| runs.iter().map(|run| of(run.result)).collect();
    rows.push((
        "tool".into(),
        cells(&|result| {
            let tool = result.get("penstock_bench");
            format!("{} ({})", text(&tool["version"]), text(&tool["commit"]))
        }),
    ));
    rows.push((
        "server".into(),
        cells(&|result| {
            let servers = result.get("server").as_array().map_or(&[][..], Vec::as_slice);
            let words = |server: &Value| {
                let words = server["command_line"].as_array().map_or(&[][..], Vec::as_slice);
                words.iter().map(text).collect::<Vec<_>>().join(" ")
            };
            servers.iter().map(words).collect::<Vec<_>>().join("; ")
        }),
    ));
    let mut names: Vec<String> = Vec::new();
    for run in runs {
        let mut leaves = Vec::new();
        leaves_of("", run.result.get("machine"), &mut leaves);
        leaves.retain(|(name, _)| !names.contains(name));
        names.extend(leaves.into_iter().map(|(name, _)| name));
    }
    for name in names {
        let pointer = |result: &ResultFile| {
            let mut leaves = Vec::new();
            leaves_of("", result.get("machine"), &mut leaves);
            leaves.into_iter().find(|(key, _)| *key == name).map_or(String::new(), |(_, v)| v)
        };
        let spoken =
            name.strip_prefix("sysctls.").map_or_else(|| compare::spoken(&name), str::to_owned);
        rows.push((spoken, cells(&pointer)));
    }
    for run in runs {
        for key in run.result.parameters().keys() {
            let name = format!("--{key}");
            if !rows.iter().any(|(known, _)| *known == name) {
                let of =
                    |result: &ResultFile| result.parameters().get(key).map_or(String::new(), text);
                rows.push((name, cells(&of)));
            }
        }
    }
    table(runs, rows.into_iter(), str::to_owned)
}

/// A row each, a column for each run; `spell` is how its cells are written.
fn table(
    runs: &[Run<'_>],
    rows: impl Iterator<Item = (String, Vec<String>)>,
    spell: fn(&str) -> String,
) -> String {
    let mut out = String::from("<div class=\"wide\"><table><thead><tr><th></th>");
    for run in runs {
        let _ = write!(out, "<th>{}</th>", escape(&run.name));
    }
    out.push_str("</tr></thead><tbody>\n");
    for (name, cells) in rows {
        let _ = write!(out, "<tr><th>{}</th>", escape(&name));
        for cell in cells {
            let _ = write!(out, "<td>{}</td>", escape(&spell(&cell)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// A number with few digits and its thousands apart; another text as it is.
fn grouped(text: &str) -> String {
    let Ok(value) = text.parse::<f64>() else { return text.to_owned() };
    let text = number(value);
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<&str> =
        groups.map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    let dot = if rest.is_empty() { "" } else { "." };
    format!("{sign}{}{dot}{rest}", groups.join("\u{202F}"))
}

/// All values that are no objects or lists, by their paths.
fn leaves_of(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves_of(&below(key), value, out));
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(i, value)| leaves_of(&below(&i.to_string()), value, out));
        }
        Value::Null => out.push((path.to_owned(), String::new())),
        Value::String(text) => out.push((path.to_owned(), text.clone())),
        other => out.push((path.to_owned(), other.to_string())),
    }
}

fn percentiles(runs: &[Run<'_>]) -> String {
    let mut series = Vec::new();
    for run in runs {
        for (position, (name, histogram)) in run.histograms.iter().enumerate() {
            let is_uncorrected = name == "from-actual-send";
            if histogram.is_empty() || (position > 0 && !is_uncorrected) {
                continue;
            }
            let points = histogram.iter_quantiles(10).filter_map(|step| {
                // The last step is the maximum, at 1: it stands where the last of all would.
                let left = (1.0 - step.quantile_iterated_to()).max(1.0 / histogram.len() as f64);
                let us = step.value_iterated_to() as f64 / 1e3;
                left.is_finite().then_some((1.0 / left, us))
            });
            let mut points: Vec<(f64, f64)> = points.collect();
            points.dedup_by(|later, kept| later.0 <= kept.0);
            let suffix = if is_uncorrected { ", from the actual send" } else { "" };
            let name = format!("{}{suffix}", run.name);
            series.push(Series { name, colour: run.index, dashed: is_uncorrected, points });
        }
    }
    let nines = |value: f64| match value {
        ..1.5 => "0".into(),
        _ => format!("{}%", number_of_nines(value)),
    };
    Chart {
        title: "Latency by percentile",
        x: Scale::Nines,
        y: Scale::Log,
        x_text: &nines,
        y_text: &time,
        x_name: "percentile",
        series,
    }
    .html()
}

/// 10 is 90, 1000 is 99.9.
fn number_of_nines(value: f64) -> String {
    let digits = "9".repeat(value.log10().round() as usize);
    match digits.len() {
        1 => "90".into(),
        2 => digits,
        _ => format!("{}.{}", &digits[..2], &digits[2..]),
    }
}

fn over_time(runs: &[Run<'_>]) -> String {
    let measured = |key: &'static str| {
        move |interval: &Value| {
            (interval["phase"] == MEASURING).then(|| interval["latency_us"][key].as_f64()).flatten()
        }
    };
    let series = match runs {
        [run] => ["p50", "p99", "max"]
            .iter()
            .enumerate()
            .map(|(colour, key)| run.series(key, colour, measured(key)))
            .collect(),
        _ => runs.iter().map(|run| run.series(&run.name, run.index, measured("p99"))).collect(),
    };
    let title = if runs.len() == 1 { "Latency of each second" } else { "p99 of each second" };
    seconds_chart(title, Scale::Log, &time, series)
}

fn messages(runs: &[Run<'_>]) -> String {
    let rate = |interval: &Value| per_second(interval, "received_count");
    let series = runs.iter().map(|run| run.series(&run.name, run.index, rate)).collect();
    busy_chart("Messages received per second", &count, series)
}

fn connections(runs: &[Run<'_>]) -> String {
    let series = runs
        .iter()
        .map(|run| run.series(&run.name, run.index, |interval| interval["connections"].as_f64()));
    busy_chart("Open connections", &count, series.collect())
}

fn opens(runs: &[Run<'_>]) -> String {
    let rate = |interval: &Value| per_second(interval, "opened_count");
    let series = runs.iter().map(|run| run.series(&run.name, run.index, rate)).collect();
    busy_chart("Connections opened per second", &count, series)
}

fn processor(runs: &[Run<'_>]) -> String {
    let percent = |value: f64| format!("{value:.0}%");
    busy_chart(
        "Processor time, 100% is one core",
        &percent,
        both(runs, "server_cpu_percent", "tool_cpu_percent"),
    )
}

fn memory(runs: &[Run<'_>]) -> String {
    busy_chart("Resident memory", &bytes, both(runs, "server_rss_bytes", "tool_rss_bytes"))
}

/// A figure of the server, and the same of the tool, dashed.
fn both(runs: &[Run<'_>], server: &str, tool: &str) -> Vec<Series> {
    let mut series = Vec::new();
    for run in runs {
        let prefix = if runs.len() == 1 { String::new() } else { format!("{}, ", run.name) };
        series.push(run.series(&format!("{prefix}server"), run.index, |i| i[server].as_f64()));
        let of_tool = run.series(&format!("{prefix}tool"), run.index, |i| i[tool].as_f64());
        series.push(Series { dashed: true, ..of_tool });
    }
    series.retain(|series| series.points.iter().any(|(_, value)| value.is_finite()));
    series
}

/// A chart over time, unless all of it is zero.
fn busy_chart(title: &str, text: &dyn Fn(f64) -> String, series: Vec<Series>) -> String {
    let is_busy = series.iter().flat_map(|s| &s.points).any(|(_, value)| *value > 0.0);
    if is_busy { seconds_chart(title, Scale::Linear, text, series) } else { String::new() }
}

fn seconds_chart(
    title: &str,
    y: Scale,
    y_text: &dyn Fn(f64) -> String,
    series: Vec<Series>,
) -> String {
    let x_text = |value: f64| number(value);
    Chart { title, x: Scale::Linear, y, x_text: &x_text, y_text, x_name: "seconds", series }.html()
}

fn per_second(interval: &Value, key: &str) -> Option<f64> {
    let seconds = interval["seconds"].as_f64().filter(|seconds| *seconds > 0.0)?;
    Some(interval[key].as_f64()? / seconds)
}

/// Microseconds, in the unit that suits them.
fn time(us: f64) -> String {
    match us {
        1e6.. => format!("{} s", number(us / 1e6)),
        1e3.. => format!("{} ms", number(us / 1e3)),
        _ => format!("{} µs", number(us)),
    }
}

fn count(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", number(value / 1e6)),
        1e4.. => format!("{} k", number(value / 1e3)),
        _ => number(value),
    }
}

fn bytes(value: f64) -> String {
    match value {
        1e9.. => format!("{} GB", number(value / 1e9)),
        1e6.. => format!("{} MB", number(value / 1e6)),
        1e3.. => format!("{} kB", number(value / 1e3)),
        _ => number(value),
    }
}

/// Blue, orange, green, purple, pink, grey: told apart on light and dark paper, and by most who do
/// not see all colours.
const STYLE: &str = "
:root{--paper:#fff;--ink:#1b1f24;--soft:#5b6570;--edge:#dfe3e8;--red:#b3261e;--redpaper:#fdecea;\
--c0:#1769c5;--c1:#c45a00;--c2:#1d7f4e;--c3:#7b4bb5;--c4:#b8327a;--c5:#6b7280}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--soft:#9aa4af;\
--edge:#30363d;--red:#ff8a80;--redpaper:#3a1d1b;\
--c0:#6cb2ff;--c1:#ff9d4d;--c2:#5fd39a;--c3:#c39bff;--c4:#ff85c0;--c5:#a8b0ba}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1240px;background:var(--paper);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}
h1{font-size:22px;margin:8px 0 16px}h2{font-size:17px;margin:28px 0 8px}
.run{margin:8px 0}.quiet{color:var(--soft)}code{font-size:13px;overflow-wrap:anywhere}
.swatch{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px}
.red{color:var(--red);background:var(--redpaper);border-left:4px solid var(--red);padding:8px 12px;\
margin:8px 0}
.charts{display:grid;gap:20px;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
figure{margin:0;min-width:0;max-width:720px}figcaption{font-weight:600}
svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--edge);stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:5 4}
figure ul{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px}
figure li{display:flex;align-items:center}figure li span{width:20px;margin-right:6px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px}
th,td{text-align:left;padding:3px 14px 3px 0;border-bottom:1px solid var(--edge);vertical-align:top}
tbody th{font-weight:400;color:var(--soft)}td{overflow-wrap:anywhere;min-width:90px}
thead th{border-bottom:2px solid var(--edge)}
td{font-variant-numeric:tabular-nums}
@media(max-width:560px){svg text{font-size:15px}}
details{margin-top:20px}summary{cursor:pointer;font-weight:600}
";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(saturated: bool) -> ResultFile {
        let mut latency = histogram::new();
        (1..=2000).for_each(|us| histogram::record(&mut latency, us * 1000));
        let hdr = json!({ "unit": "ns", "hdr": histogram::encode(&latency) });
        let interval = |start: f64| {
            json!({
                "start_seconds": start, "seconds": 1.0, "phase": "measuring", "connections": 3,
                "opened_count": 1, "received_count": 50, "latency_us": { "p50": 1.0, "p99": 9.0, "max": 70.0 },
                "server_cpu_percent": 50.0, "tool_cpu_percent": 20.0, "server_rss_bytes": 1e6, "tool_rss_bytes": null,
            })
        };
        let document = json!({
            "format": "penstock-bench result", "format_version": 1, "scenario": "load",
            "label": "<script>", "machine": { "kernel": "6.1", "sysctls": { "net.core.somaxconn": "4096" } },
            "parameters": { "rate": "7/s" }, "command_line": ["x", "load", "\"&"], "saturated": saturated,
            "histograms": { "latency": hdr, "from-actual-send": hdr, "lag": hdr },
            "intervals": [interval(0.0), interval(1.0)],
            "figures": { "saturated_reason": "its <thread>", "latency_us": histogram::report(&latency) },
        });
        let Value::Object(document) = document else { unreachable!() };
        ResultFile::check(document).unwrap()
    }

    #[test]
    fn a_page_has_its_charts_and_tables_and_nothing_from_elsewhere() {
        let page = page(&[("A".into(), result(false))]);
        for title in [
            "Latency by percentile",
            "Latency of each second",
            "Messages received per second",
            "Open connections",
            "Connections opened per second",
            "Processor time",
            "Resident memory",
        ] {
            assert_eq!(page.matches(&format!("<figcaption>{title}")).count(), 1, "{title}");
        }
        assert!(page.contains("99.9%") && page.contains("somaxconn") && page.contains("--rate"));
        for foreign in ["http:", "https:", "src=", "url(", "@import", "<script", "NaN"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(!page.contains("class=\"red\""), "nothing is wrong with it");
        for tag in ["table", "figure", "svg", "div", "ul", "p", "tr", "details"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn a_saturated_result_is_red_and_several_are_told_apart() {
        let page = page(&[("A".into(), result(true)), ("A".into(), result(false))]);
        assert_eq!(page.matches("<p class=\"red\"><strong>Saturated.").count(), 1);
        assert!(page.contains("about the tool: its &lt;thread&gt;"), "{page}");
        assert!(page.contains(">A 1<") && page.contains(">A 2<"), "names are numbered");
        assert!(page.contains("A 2, from the actual send") && page.contains("p99 of each second"));
    }

    #[test]
    fn numbers_are_told_in_their_units() {
        assert_eq!([time(250.0), time(2500.0), time(3e6)], ["250 µs", "2.5 ms", "3 s"]);
        assert_eq!([count(9000.0), count(20_000.0), count(2.5e6)], ["9000", "20 k", "2.5 M"]);
        assert_eq!([bytes(500.0), bytes(5e6)], ["500", "5 MB"]);
        assert_eq!([10.0, 100.0, 10_000.0].map(number_of_nines), ["90", "99", "99.99"]);
        assert_eq!(
            ["1234567", "-999", "12.5", "ab"].map(grouped),
            ["1\u{202F}234\u{202F}567", "-999", "12.5", "ab"]
        );
    }
}
