//! Results from the outside: the program itself, its children, and its files read by a reader that
//! shares nothing with it but the published formats.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use base64::Engine as _;
use serde_json::Value;

fn bench<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-bench"));
    command.args(arguments);
    command
}

/// Runs the program with the words of this line.
fn run(line: &str) -> Output {
    bench(line.split_whitespace()).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A reference server, and a directory, for one test; both are gone at its end.
struct Scene {
    server: Child,
    address: String,
    directory: PathBuf,
}

impl Scene {
    fn new(test: &str) -> Scene {
        let mut server = bench(
            "serve --runtime ring-echo --quiet --address 127.0.0.1:0 --seconds 120".split(' '),
        )
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let mut line = String::new();
        BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("listening on ").nth(1).unwrap().split(',').next().unwrap();
        let directory =
            std::env::temp_dir().join(format!("penstock-bench-{}-{test}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Scene { address: address.to_owned(), directory, server }
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// A short run of `load`, with these options too.
    fn load(&self, options: &str) -> Output {
        let pid = self.server.id();
        run(&format!("load --url ws://{} --pid {pid} {LOAD} {options}", self.address))
    }
}

const LOAD: &str = "--connections 5 --rate 401/s --seconds 0.5 --warm-up-seconds 0.1";

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn workers_make_one_result() {
    let scene = Scene::new("workers");
    let path = scene.file("a.json");
    let output = scene.load(&format!("--workers 2 --label A --json {path}"));
    assert!(output.status.success(), "{}", error_of(&output));
    let result = json(&path);
    let figures = &result["figures"];
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), *figures);
    assert_eq!((&figures["workers_count"], &figures["workers_lost_count"]), (&2.into(), &0.into()));
    assert_eq!((&figures["connections"], &figures["offered_per_second"]), (&5.into(), &401.into()));
    assert_eq!((&result["complete"], &result["label"]), (&true.into(), &"A".into()));
    assert_eq!(result["parameters"]["rate"], "401/s");
    // Half a second of 201 and of 200 messages a second.
    let due = figures["due_count"].as_u64().unwrap();
    assert!((200..=202).contains(&due), "{due}");
    assert_eq!(figures["latency_us"]["count"], due);
    let (count, _) = second_reader(result["histograms"]["latency"]["hdr"].as_str().unwrap(), 1.0);
    assert_eq!(count, due);
    let connections = |part: usize| result["parts"][part]["figures"]["connections"].clone();
    assert_eq!((connections(0), connections(1)), (3.into(), 2.into()));
    assert!(figures["server"]["cpu_us_per_message"].as_f64() > Some(0.0), "{figures:#}");

    // The parts of one run may come from several hosts.
    let merged = scene.file("merged.json");
    let output = run(&format!("merge {path} {path} --json {merged}"));
    assert!(output.status.success(), "{}", error_of(&output));
    assert_eq!(json(&merged)["figures"]["latency_us"]["count"], 2 * due);
}

#[test]
fn a_worker_that_dies_makes_the_result_incomplete() {
    let scene = Scene::new("dead-worker");
    let path = scene.file("a.json");
    let output = scene.load(&format!("--workers 2 --worker-cpus 0,1000000 --json {path}"));
    let result = json(&path);
    let figures = &result["figures"];
    assert_eq!((&result["complete"], &figures["complete"]), (&false.into(), &false.into()));
    assert_eq!(figures["workers_lost_count"], 1, "{}", error_of(&output));
    assert!(figures["workers_lost"][0].as_str().unwrap().starts_with("worker 1: "), "{figures:#}");
    assert!(error_of(&output).contains("there is no CPU 1000000"), "{}", error_of(&output));
}

#[test]
fn runs_are_repeated_and_compared() {
    let scene = Scene::new("repeat");
    let command = format!("load --url ws://{} {LOAD}", scene.address);
    let out = scene.file("out");
    let output =
        bench(["repeat", "--times", "2", "--seed", "7", "--pause-seconds", "0", "--out", &out])
            .args(["--run", &format!("A={command}"), "--run", &format!("B={command}")])
            // Nobody listens there, and a port that is taken by nobody is not given to others meanwhile.
            .args(["--run", "C=load --url ws://127.0.0.1:1/ --rate 1/s --connections 1"])
            .output()
            .unwrap();
    let text = error_of(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("2 runs failed") && text.contains("C-1.txt"), "{text}");
    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(comparison, json(format!("{out}/comparison.json")));
    let groups: Vec<_> =
        comparison["groups"].as_array().unwrap().iter().map(|g| &g["name"]).collect();
    assert_eq!(groups, ["A", "B"]);
    assert_eq!(comparison["groups"][1]["runs_count"], 2);
    assert_eq!(comparison["figures"]["connections"][1]["ratio"], 1.0);
    assert_eq!(json(format!("{out}/B-2.json"))["label"], "B");

    // The same once more, by files; and as a page.
    let files = ["A-1", "A-2", "B-1", "B-2"].map(|name| format!("{out}/{name}.json")).join(" ");
    let output = run(&format!("compare {files} --markdown"));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| A (2 runs) | B (2 runs) | ratio |"), "{table}");
    let page = scene.file("page.html");
    let output = run(&format!("html {files} -o {page}"));
    assert!(output.status.success(), "{}", error_of(&output));
    assert!(fs::read_to_string(page).unwrap().contains("<figcaption>Latency by percentile"));
}

#[test]
fn repeating_can_be_stopped() {
    let scene = Scene::new("repeat-stopped");
    let command =
        format!("A=load --url ws://{} --connections 1 --rate 9/s --seconds 60", scene.address);
    let mut child = bench(["repeat", "--out", &scene.file("out"), "--run", &command])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("run 1 of 5") {
        assert!(lines.read_line(&mut text).unwrap() > 0, "{text}");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    lines.read_to_string(&mut text).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(text.contains("there is nothing to compare") && !text.contains("run 2 of 5"), "{text}");
}

#[test]
fn foreign_files_are_refused_with_their_names() {
    let scene = Scene::new("foreign");
    let (good, other, bad) =
        (scene.file("good.json"), scene.file("other.json"), scene.file("bad.json"));
    assert!(scene.load(&format!("--json {good}")).status.success());
    assert!(scene.load(&format!("--size 99 --json {other}")).status.success());
    fs::write(&bad, "{\"name\": \"package\"}").unwrap();
    for (line, want) in [
        (format!("compare {good} {bad}"), "bad.json: not a result file of penstock-bench"),
        (format!("merge {good} /no/such"), "/no/such: No such file"),
        (format!("html {bad} -o {good}.html"), "bad.json: not a result file"),
        (format!("compare {good} {other}"), "--size is 64 in good and 99 in other"),
    ] {
        let output = run(&line);
        assert!(
            !output.status.success() && error_of(&output).contains(want),
            "{}",
            error_of(&output)
        );
    }
    assert!(run(&format!("compare {good} {other} --force")).status.success());
}

#[test]
fn public_formats_are_what_is_published() {
    let scene = Scene::new("formats");
    let (hgrm, hlog, path) = (scene.file("a.hgrm"), scene.file("a.hlog"), scene.file("a.json"));
    let output = scene.load(&format!("--hgrm {hgrm} --hlog {hlog} --json {path}"));
    assert!(output.status.success(), "{}", error_of(&output));
    let latency = &json(&path)["figures"]["latency_us"];
    let count = latency["count"].as_u64().unwrap();

    // A line of a log: [tag,] start, length, maximum, histogram.
    let log = fs::read_to_string(hlog).unwrap();
    let main = log.lines().find(|line| line.contains("HISTFAAA") && !line.starts_with("Tag="));
    let encoded = main.unwrap().split(',').next_back().unwrap();
    for (quantile, key) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
        let (total, ns) = second_reader(encoded, quantile);
        assert_eq!(total, count);
        let want = latency[key].as_f64().unwrap() * 1e3;
        assert!((ns as f64 / want - 1.0).abs() < 0.002, "{key}: {ns} and {want}");
    }

    // A line of a distribution: value, quantile, count, 1/(1-quantile).
    let text = fs::read_to_string(hgrm).unwrap();
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(2)
        .take_while(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
        .collect();
    assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]));
    assert_eq!(rows.last().unwrap()[2], count as f64);
    assert!((rows.last().unwrap()[0] / latency["max"].as_f64().unwrap() - 1.0).abs() < 0.002);
}

/// Reads HdrHistogram's compressed V2 encoding as it is published: how many values there are, and
/// the least one that no less than this share of them does not exceed, as the lower end of its bucket.
fn second_reader(text: &str, quantile: f64) -> (u64, u64) {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let long = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(word(&bytes, 0), 0x1C84_9314, "compressed V2");
    assert_eq!(word(&bytes, 4) as usize, bytes.len() - 8);
    let mut plain = Vec::new();
    flate2::read::ZlibDecoder::new(&bytes[8..]).read_to_end(&mut plain).unwrap();
    assert_eq!(word(&plain, 0), 0x1C84_9313, "V2");
    assert_eq!((word(&plain, 8), word(&plain, 12), long(&plain, 16)), (0, 3, 1));
    let mut counts = Vec::new();
    let mut rest = &plain[40..];
    assert_eq!(word(&plain, 4) as usize, rest.len());
    while !rest.is_empty() {
        // ZigZag LEB128, of nine bytes at most; a negative number is a run of zeros.
        let (mut raw, mut length) = (0, 0);
        loop {
            let byte = rest[length];
            raw |= u64::from(if length == 8 { byte } else { byte & 0x7F }) << (7 * length);
            length += 1;
            if byte < 0x80 || length == 9 {
                break;
            }
        }
        rest = &rest[length..];
        let value = (raw >> 1) as i64 ^ -((raw & 1) as i64);
        match value {
            ..0 => counts.resize(counts.len() + value.unsigned_abs() as usize, 0),
            _ => counts.push(value as u64),
        }
    }
    let total: u64 = counts.iter().sum();
    let wanted = (quantile * total as f64).ceil() as u64;
    let mut sum = 0;
    let index = counts.iter().position(|count| {
        sum += count;
        sum >= wanted
    });
    // 2048 buckets of 1, then 1024 each of 2, 4, 8.
    let index = index.unwrap() as u64;
    let value = match index {
        ..2048 => index,
        _ => (1024 + (index - 2048) % 1024) << (1 + (index - 2048) / 1024),
    };
    (total, value)
}
