//! The file a run leaves behind (`--json`): what it found, second by second too, and where and how
//! it was found. `compare`, `merge` and `html` read it again. docs/BENCH.md describes each key.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::environment;
use crate::histogram;
use crate::html;
use crate::options::Files;
use crate::outcome::Outcome;
use crate::proc::round;
use crate::progress::Recording;

/// What `format` says in each of our files.
const FORMAT: &str = "penstock-bench result";
/// Counted up when a reader of the last one would misunderstand.
const FORMAT_VERSION: u64 = 1;
/// A file of a day's intervals has some ten megabytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What was asked for, to be told in the result.
pub(crate) struct Request {
    scenario: String,
    label: Option<String>,
    command_line: Vec<String>,
    parameters: Map<String, Value>,
    /// Options of the command as they were given, by name, each as one word.
    given: Vec<(String, String)>,
    started_at: SystemTime,
}

impl Request {
    /// From a command line as it was read: `matches` are those of the whole of `command`.
    pub(crate) fn new(command: &Command, matches: &ArgMatches, label: Option<&str>) -> Request {
        let (scenario, matches) = matches.subcommand().unwrap_or(("", matches));
        let text = |value: &OsStr| value.to_string_lossy().into_owned();
        let mut parameters = Map::new();
        let mut given = Vec::new();
        let options =
            command.find_subcommand(scenario).into_iter().flat_map(Command::get_arguments);
        for option in options {
            let (id, Some(name)) = (option.get_id().as_str(), option.get_long()) else { continue };
            let Some(values) = matches.get_raw(id) else { continue };
            let values: Vec<String> = values.map(text).collect();
            parameters.insert(name.to_owned(), json!(values.join(",")));
            if matches.value_source(id) == Some(ValueSource::CommandLine) {
                let takes_value = option.get_action().takes_values();
                given.extend(values.iter().map(|value| {
                    let word =
                        if takes_value { format!("--{name}={value}") } else { format!("--{name}") };
                    (name.to_owned(), word)
                }));
            }
        }
        Request {
            scenario: scenario.to_owned(),
            label: label.map(str::to_owned),
            command_line: std::env::args_os().map(|word| text(&word)).collect(),
            parameters,
            given,
            started_at: SystemTime::now(),
        }
    }

    /// The command, such as "load".
    pub(crate) fn scenario(&self) -> &str {
        &self.scenario
    }

    /// The value of an option, given or default.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name)?.as_str()
    }

    /// The options that were given, by name, each as a word of a command line.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&str, &String)> {
        self.given.iter().map(|(name, word)| (name.as_str(), word))
    }

    /// Makes a result that was put together of parts one of this command line.
    pub(crate) fn name(&self, result: &mut ResultFile) {
        result.set("label", json!(self.label));
        result.set("command_line", json!(self.command_line));
        let started_at = humantime::format_rfc3339_millis(self.started_at).to_string();
        result.set("started_at", json!(started_at));
        result.set("parameters", Value::Object(self.parameters.clone()));
    }
}

/// A result, as it is written and read. Whoever holds one that was read has a document of the form
/// that docs/BENCH.md describes, with histograms that can be decoded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResultFile {
    document: Map<String, Value>,
}

impl ResultFile {
    /// Puts together what a run has found.
    pub(crate) fn new(request: &Request, outcome: &Outcome, recording: &Recording) -> ResultFile {
        let figures = &outcome.figures;
        let histograms = outcome.histograms.iter().map(|(name, histogram)| {
            let encoded = json!({ "unit": "ns", "hdr": histogram::encode(histogram) });
            (name.to_string(), encoded)
        });
        let document = json!({
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "penstock_bench": {
                "version": env!("CARGO_PKG_VERSION"),
                "commit": env!("PENSTOCK_BENCH_COMMIT"),
            },
            "scenario": request.scenario,
            "label": request.label,
            "command_line": request.command_line,
            "parameters": request.parameters,
            "started_at": humantime::format_rfc3339_millis(request.started_at).to_string(),
            "measured_at": humantime::format_rfc3339_millis(outcome.started_at).to_string(),
            "measured_seconds": round(outcome.measured.as_secs_f64()),
            "complete": figures.get("complete").unwrap_or(&Value::Bool(true)),
            "saturated": figures.get("saturated").unwrap_or(&Value::Bool(false)),
            "machine": environment::machine(),
            "server": recording.processes,
            "figures": figures,
            "histograms": Map::from_iter(histograms),
            "intervals": recording.intervals.iter().map(|i| i.report()).collect::<Vec<_>>(),
        });
        let Value::Object(document) = document else { unreachable!("it was written as an object") };
        ResultFile { document }
    }

    /// Reads a file. An error names it, and says what is wrong.
    pub(crate) fn read(path: &Path) -> io::Result<ResultFile> {
        let name = path.display();
        let refuse = |error: &dyn std::fmt::Display| io::Error::other(format!("{name}: {error}"));
        let bytes_count = fs::metadata(path).map_err(|error| refuse(&error))?.len();
        if bytes_count > FILE_BYTES_MAX {
            return Err(refuse(&format!("{bytes_count} bytes are more than a result has")));
        }
        let text = fs::read_to_string(path).map_err(|error| refuse(&error))?;
        ResultFile::parse(&text).map_err(|error| refuse(&error))
    }

    /// Reads the text of a file.
    pub(crate) fn parse(text: &str) -> Result<ResultFile, String> {
        let document =
            serde_json::from_str(text).map_err(|error| format!("not JSON, or cut off: {error}"))?;
        let Value::Object(document) = document else {
            return Err("not a result of penstock-bench: JSON, but no object".into());
        };
        ResultFile::check(document)
    }

    /// Takes a document that has what a result has.
    pub(crate) fn check(document: Map<String, Value>) -> Result<ResultFile, String> {
        if document.get("format").and_then(Value::as_str) != Some(FORMAT) {
            let what = "the JSON on standard output is not enough, `--json FILE` writes one";
            return Err(format!("not a result file of penstock-bench ({what})"));
        }
        match document.get("format_version").and_then(Value::as_u64) {
            Some(FORMAT_VERSION) => {}
            Some(other) => {
                let text = format!("format {other}, and this program reads {FORMAT_VERSION}");
                return Err(format!("{text}: use the one that wrote it"));
            }
            None => return Err("`format_version` is missing".into()),
        }
        let is_object = Value::is_object as fn(&Value) -> bool;
        for (key, is_right, kind) in [
            ("scenario", Value::is_string as fn(&Value) -> bool, "a text"),
            ("parameters", is_object, "an object"),
            ("machine", is_object, "an object"),
            ("figures", is_object, "an object"),
            ("histograms", is_object, "an object"),
            ("intervals", Value::is_array, "a list"),
        ] {
            if !document.get(key).is_some_and(is_right) {
                return Err(format!("`{key}` is missing, or is not {kind}"));
            }
        }
        let result = ResultFile { document };
        result.decode_histograms()?;
        let broken = result.intervals().iter().position(|interval| !interval.is_object());
        match broken {
            Some(number) => Err(format!("interval {number} is not an object")),
            None => Ok(result),
        }
    }

    /// Writes it, a key on a line: such a file can be read and kept under version control.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.document).map_err(io::Error::other)?;
        histogram::write(path, text + "\n")
    }

    /// Writes the files that were asked for; those of histograms where there are any.
    pub(crate) fn write_files(&self, files: &Files) -> io::Result<()> {
        if let Some(path) = &files.json {
            self.write(path)?;
        }
        if let Some(path) = &files.html {
            let name = self.label().unwrap_or_else(|| self.scenario()).to_owned();
            histogram::write(path, html::page(&[(name, self.clone())]))?;
        }
        let histograms = self.histograms();
        let Some((_, main)) = histograms.first() else { return Ok(()) };
        if let Some(path) = &files.hgrm {
            histogram::write_percentiles(path, main)?;
        }
        if let Some(path) = &files.hlog {
            let tagged = histograms.iter().enumerate();
            let tagged: Vec<_> =
                tagged.map(|(i, (name, h))| (if i == 0 { "" } else { name.as_str() }, h)).collect();
            let start = self.get("measured_at").as_str().map(humantime::parse_rfc3339);
            let start = start.and_then(Result::ok).unwrap_or(SystemTime::UNIX_EPOCH);
            let seconds = self.get("measured_seconds").as_f64().unwrap_or(0.0);
            let length = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            histogram::write_log(path, &tagged, start, length)?;
        }
        Ok(())
    }

    /// As JSON on one line.
    pub(crate) fn to_line(&self) -> String {
        serde_json::to_string(&self.document).expect("maps with text keys")
    }

    /// The command, such as "load".
    pub(crate) fn scenario(&self) -> &str {
        self.document["scenario"].as_str().unwrap_or_default()
    }

    /// What `--label` said.
    pub(crate) fn label(&self) -> Option<&str> {
        self.document.get("label")?.as_str()
    }

    /// The options of the command by name, defaults included, as they were written.
    pub(crate) fn parameters(&self) -> &Map<String, Value> {
        self.object("parameters")
    }

    /// What was found.
    pub(crate) fn figures(&self) -> &Map<String, Value> {
        self.object("figures")
    }

    /// The seconds of the run.
    pub(crate) fn intervals(&self) -> &[Value] {
        self.document["intervals"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Nanoseconds, by name; the first is the one to quote.
    pub(crate) fn histograms(&self) -> Vec<(String, Histogram<u64>)> {
        self.decode_histograms().expect("they were decoded when it was read, or are our own")
    }

    /// A figure about the run itself, such as "started_at".
    pub(crate) fn get(&self, key: &str) -> &Value {
        self.document.get(key).unwrap_or(&Value::Null)
    }

    /// The same, to be changed.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.document.insert(key.to_owned(), value);
    }

    /// Whether the figures are about the tool rather than the server.
    pub(crate) fn is_saturated(&self) -> bool {
        *self.get("saturated") == true || self.figures().get("saturated") == Some(&json!(true))
    }

    /// Whether the run went on to its end.
    pub(crate) fn is_complete(&self) -> bool {
        *self.get("complete") != false
    }

    fn object(&self, key: &str) -> &Map<String, Value> {
        self.document[key].as_object().expect("checked when it was read")
    }

    fn decode_histograms(&self) -> Result<Vec<(String, Histogram<u64>)>, String> {
        let decode = |(name, value): (&String, &Value)| {
            let refuse = |error: String| format!("histogram `{name}`: {error}");
            let hdr = value["hdr"].as_str().filter(|_| value["unit"] == "ns");
            let hdr =
                hdr.ok_or_else(|| refuse("`unit` is not \"ns\", or `hdr` is missing".into()))?;
            Ok((name.clone(), histogram::decode(hdr).map_err(refuse)?))
        };
        self.object("histograms").iter().map(decode).collect()
    }
}
