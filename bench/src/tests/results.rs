//! Result files: what is written is what was found, and it can be read again.

use std::path::PathBuf;

use clap::CommandFactory;
use serde_json::json;

use super::*;
use crate::result_file::{Request, ResultFile};

/// A place for the files of one test.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let name = format!("penstock-bench-{}-{test}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What was asked for by a whole command line.
pub(crate) fn request(line: &str) -> Request {
    let command = crate::Cli::command();
    let words = std::iter::once("penstock-bench").chain(line.split_whitespace());
    let matches = command.clone().try_get_matches_from(words).unwrap();
    Request::new(&command, &matches, Some("a label"))
}

/// A run of `load` against the reference, and its result.
fn load_result(options: &str) -> (Outcome, ResultFile) {
    with_echo(1, |address| {
        let line = format!("--url ws://{address}/ --pid {} {options}", std::process::id());
        let request = request(&format!("load {line}"));
        let watch = Watch::new(&NEVER);
        let outcome = crate::load::run(&parse(&line), &watch).unwrap();
        let result = ResultFile::new(&request, &outcome, &watch.finish());
        (outcome, result)
    })
}

#[test]
fn a_result_reads_back_as_it_was_written() {
    let directory = Directory::new("read-back");
    let options = "--connections 3 --rate 500/s --seconds 0.4 --warm-up-seconds 0.1";
    let (outcome, result) = load_result(options);
    let path = directory.file("a.json");
    result.write(&path).unwrap();
    let read = ResultFile::read(&path).unwrap();
    assert_eq!(read, result);

    assert_eq!((read.scenario(), read.label()), ("load", Some("a label")));
    assert_eq!(read.figures(), &outcome.figures);
    assert_eq!(
        (read.is_complete(), read.is_saturated()),
        (true, outcome.figures["saturated"] == true)
    );
    let parameters = read.parameters();
    assert_eq!((&parameters["rate"], &parameters["connections"]), (&json!("500/s"), &json!("3")));
    assert_eq!(parameters["in-flight-max"], json!("1024"), "defaults are told too");
    for ((name, got), (want_name, want)) in read.histograms().iter().zip(&outcome.histograms) {
        assert_eq!((name.as_str(), got), (&**want_name, want));
    }
    assert_eq!(read.histograms().len(), 3);
    assert_eq!(read.get("server")[0]["pid"], json!(std::process::id()));
    assert!(read.get("started_at").as_str().unwrap().ends_with('Z'));
    assert!(read.get("machine")["kernel"].is_string());
}

#[test]
fn intervals_add_up_to_the_run() {
    let options = "--connections 3 --rate 500/s --seconds 1.2 --warm-up-seconds 0.1";
    let (outcome, result) = load_result(options);
    let count = |key: &str| -> u64 {
        result.intervals().iter().map(|interval| interval[key].as_u64().unwrap()).sum()
    };
    assert_eq!(count("opened_count"), 3);
    let mut sum = crate::histogram::new();
    for text in result.intervals().iter().filter_map(|i| i["latency_hdr"].as_str()) {
        sum.add(crate::histogram::decode(text).unwrap()).unwrap();
    }
    let (_, latency) = &outcome.histograms[0];
    let lost = outcome.figures["lost_count"].as_u64().unwrap();
    assert_eq!(sum.len() + lost, latency.len());
    let phases: Vec<_> = result.intervals().iter().map(|i| i["phase"].as_str().unwrap()).collect();
    assert!(phases.starts_with(&["opening"]) && phases.contains(&"warm-up"), "{phases:?}");
    assert!(phases.contains(&"measuring"), "{phases:?}");
}

#[test]
fn what_is_not_a_result_is_refused_with_what_is_wrong() {
    let (_, result) = load_result("--connections 1 --rate 100/s --seconds 0.1 --warm-up-seconds 0");
    let good = result.to_line();
    assert!(ResultFile::parse(&good).is_ok());
    let check = |text: &str, want: &str| {
        let error = ResultFile::parse(text).unwrap_err();
        assert!(error.contains(want), "{error}");
    };
    check("", "not JSON, or cut off");
    check(&good[..good.len() / 2], "not JSON, or cut off");
    check("[1]", "no object");
    check("{\"scenario\":\"load\"}", "`--json FILE` writes one");
    let changed = |key: &str, value: Value| {
        let mut result = result.clone();
        result.set(key, value);
        result.to_line()
    };
    check(&changed("format_version", json!(2)), "format 2, and this program reads 1");
    check(&changed("format_version", Value::Null), "`format_version` is missing");
    check(&changed("figures", json!([])), "`figures` is missing, or is not an object");
    check(&changed("intervals", json!([3])), "interval 0 is not an object");
    check(&changed("histograms", json!({"x": {"unit": "us", "hdr": ""}})), "histogram `x`: `unit`");
    check(&changed("histograms", json!({"x": {"unit": "ns", "hdr": "?"}})), "not base64");
    check(
        &changed("histograms", json!({"x": {"unit": "ns", "hdr": "AAAA"}})),
        "not an HdrHistogram",
    );

    let missing = ResultFile::read(&PathBuf::from("/no/such.json")).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such.json: "), "{missing}");
}
