//! What a running gateway says about its delays: percentiles, intervals, logs, and the live view.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    ECHO_AND_ROOMS, Gateway, HEAD, PATIENCE, Peer, Scratch, binary, installed, programs,
};

/// A gateway with echo and rooms.
struct Measured {
    gateway: Gateway,
    scratch: Scratch,
    socket: PathBuf,
}

impl Measured {
    /// With this in `[log]`; `SCRATCH` is a directory of its own.
    #[track_caller]
    fn start(log: &str) -> Measured {
        let scratch = Scratch::new("latency");
        let socket = scratch.path().join("admin.sock");
        let log = log.replace("SCRATCH", &scratch.path().display().to_string());
        let gateway = Gateway::start(&format!(
            "{HEAD}{ECHO_AND_ROOMS}[admin]\nsocket = \"{}\"\n[log]\n{log}\n",
            socket.display()
        ));
        Measured { gateway, scratch, socket }
    }

    /// Sends so many messages and gets them back.
    fn echo(&self, client: &mut Peer, count: usize) {
        for _ in 0..count {
            client.send(0x81, b"twelve bytes");
            assert_eq!(client.frame().payload, b"twelve bytes");
        }
    }

    fn client(&self) -> Peer {
        Peer::open(self.gateway.address(), "/echo")
    }

    fn hist(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        let command = command.args(["hist", "--socket"]).arg(&self.socket).args(arguments);
        command.output().expect("it runs")
    }

    /// What `penstock hist --json` has to say.
    #[track_caller]
    fn histograms(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.hist(&[&["--json"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        answer["histograms"].as_array().expect("a list").clone()
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let ask = gateway::admin::client::ask;
        let (status, body) = ask(&self.socket, axum::http::Method::GET, path).expect("an answer");
        assert!(status.is_success(), "{status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("JSON")
    }
}

#[test]
fn percentiles_are_asked_for() {
    let measured = Measured::start("");
    let mut client = measured.client();
    measured.echo(&mut client, 50);

    let forward = measured.histograms(&["--name", "penstock_forward_seconds", "--route", "/echo"]);
    let [forward] = &forward[..] else { panic!("one direction has messages: {forward:?}") };
    assert_eq!(forward["labels"], json!({ "route": "*/echo", "direction": "to_client" }));
    assert_eq!((&forward["count"], &forward["unit"]), (&json!(50), &json!("ns")));
    let of = |key: &str| forward[key].as_u64().expect("a number");
    assert!(0 < of("p50") && of("p50") <= of("p99") && of("p99") <= of("max"), "{forward}");
    let sizes = measured.histograms(&["--name", "message_size_bytes"]);
    assert!(sizes.iter().all(|it| it["p50"] == 12 && it["count"] == 50), "{sizes:?}");

    let table = measured.hist(&["--label", "stage=total"]);
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(
        table.lines().count() == 2 && table.contains("handshake_seconds{stage=total}"),
        "{table}"
    );

    let directory = measured.scratch.path().join("plots");
    let path = directory.display().to_string();
    assert!(measured.hist(&["--hgrm", &path, "--name", "forward_seconds"]).status.success());
    let text = std::fs::read_to_string(directory.join("forward_seconds.to_client.__echo.hgrm"));
    assert!(text.expect("it was written").contains("Total count    =           50]"));

    // An interval that has nothing in it: the client is silent.
    let silent = measured.hist(&["--interval", "1", "--name", "forward_seconds"]);
    assert_eq!(String::from_utf8_lossy(&silent.stdout), "nothing was counted\n");

    for (wrong, why) in [
        (&["--name", "latency"][..], "there is no histogram \"latency\" here; there is "),
        (&["--route", "/nowhere"], "there is no route \"/nowhere\" here; there is */echo"),
        (&["--direction", "up"], "there is no direction \"up\" here; there is to_client, to_up"),
        (&["--hgrm", "/dev/null/x"], "cannot write /dev/null/x"),
    ] {
        let output = measured.hist(wrong);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why) && output.status.code() == Some(1), "{wrong:?}: {said}");
    }
}

#[test]
fn intervals_are_kept() {
    let measured = Measured::start("");
    let started = measured.get("/api/v1/histograms")["unix_ms"].as_u64().expect("a time");
    let mut client = measured.client();
    measured.echo(&mut client, 30);
    // The first ends five seconds after the start.
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while seen.iter().map(|it: &Value| it["messages_in"].as_u64().expect("a count")).sum::<u64>()
        < 30
    {
        assert!(Instant::now() < deadline, "{seen:?}");
        std::thread::sleep(Duration::from_millis(100));
        let answer = measured.get(&format!("/api/v1/history?since_ms={started}"));
        seen = answer["intervals"].as_array().expect("a list").clone();
        let rows = answer["latency_rows_us"].as_array().map(Vec::len);
        assert!(seen.iter().all(|it| it["latency"].as_array().map(Vec::len) == rows));
    }
    let sum = |of: &dyn Fn(&Value) -> u64| -> u64 { seen.iter().map(of).sum() };
    let number = |value: &Value| value.as_u64().expect("a count");
    assert_eq!(sum(&|it| number(&it["messages_out"])), 30);
    assert_eq!(sum(&|it| number(&it["opened"])), 1);
    let rows = |it: &Value| it["latency"].as_array().expect("rows").iter().map(number).sum();
    assert_eq!(sum(&rows), 30);
    let last = seen.last().expect("one");
    assert_eq!((&last["clients"], &last["shards"].as_array().map(Vec::len)), (&json!(1), &Some(2)));
    assert!(number(&last["rss_bytes"]) > 1 << 20, "{last}");
    let route = seen.iter().flat_map(|it| it["routes"].as_array().expect("routes")).next();
    assert_eq!(route.expect("a route")["route"], "*/echo");

    let newest = number(&last["unix_ms"]);
    let later = measured.get(&format!("/api/v1/history?since_ms={newest}"));
    let later = later["intervals"].as_array().expect("a list").clone();
    assert!(later.iter().all(|it| number(&it["unix_ms"]) > newest), "{later:?}");
}

/// How many values each tag has in a log, over all its intervals.
fn logged(path: &Path) -> Vec<(String, u64)> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let mut counts = std::collections::BTreeMap::new();
    for entry in IntervalLogIterator::new(&bytes) {
        let LogEntry::Interval(interval) = entry.expect("in order") else { continue };
        let bytes = STANDARD.decode(interval.encoded_histogram()).expect("base64");
        let histogram: Histogram<u64> =
            Deserializer::new().deserialize(&mut &bytes[..]).expect("a histogram");
        let tag = interval.tag().expect("all have one").as_str().to_owned();
        *counts.entry(tag).or_insert(0) += histogram.len();
    }
    counts.into_iter().collect()
}

#[test]
fn an_interval_log_has_all_that_was_counted() {
    let log = "histograms = \"SCRATCH/latency.hlog\"\nhistograms_interval_ms = 1000";
    let measured = Measured::start(log);
    let file = measured.scratch.path().join("latency.hlog");
    let moved = measured.scratch.path().join("latency.hlog.1");
    let mut client = measured.client();
    measured.echo(&mut client, 20);
    let echo = "forward_seconds;route=*/echo;direction=to_client";
    let count = |path: &Path| {
        let counts = logged(path);
        counts.into_iter().find(|(tag, _)| tag == echo).map_or(0, |(_, count)| count)
    };
    let deadline = Instant::now() + PATIENCE;
    while count(&file) < 20 {
        assert!(Instant::now() < deadline, "{:?}", logged(&file));
        std::thread::sleep(Duration::from_millis(20));
    }
    // As logrotate does it; nobody is told.
    std::fs::rename(&file, &moved).expect("it is there");
    measured.echo(&mut client, 5);
    drop(client);
    let Measured { gateway, scratch, .. } = measured;
    gateway.stop();
    assert_eq!((count(&moved), count(&file)), (20, 5), "the last interval is written at the end");
    let tags: Vec<String> = logged(&file).into_iter().map(|(tag, _)| tag).collect();
    assert!(tags.iter().any(|tag| tag == "loop_iteration_seconds"), "{tags:?}");
    assert!(logged(&moved).iter().any(|(tag, _)| tag == "handshake_seconds;stage=total"));
    drop(scratch);
}

#[test]
fn a_log_that_cannot_be_written_is_told_once_and_comes_back() {
    let log = "histograms = \"SCRATCH/there/latency.hlog\"\nhistograms_interval_ms = 1000";
    let mut measured = Measured::start(log);
    let said = measured.gateway.log_line_containing("log.histograms: ");
    assert!(said.contains("/there/latency.hlog: No such file") && said.contains("lost"), "{said}");
    let mut client = measured.client();
    measured.echo(&mut client, 5);
    std::fs::create_dir(measured.scratch.path().join("there")).expect("a directory");
    let said = measured.gateway.log_line_containing("log.histograms: ");
    assert!(said.contains("is written again"), "once, and nothing in between: {said}");
    drop(client);
    measured.gateway.stop();
}

/// A program in a terminal: see terminal.py.
struct Terminal {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Terminal {
    fn start(columns: u16, lines: u16, command: &[&str]) -> Terminal {
        let size = [columns.to_string(), lines.to_string()];
        let mut child = Command::new(installed("venv").join("bin/python"))
            .arg("-B")
            .arg(programs().join("terminal.py"))
            .args(size)
            .arg(binary())
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python");
        let to = child.stdin.take().expect("it is piped");
        let from = BufReader::new(child.stdout.take().expect("it is piped"));
        Terminal { child, to, from }
    }

    #[track_caller]
    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.to, "{command}").expect("it reads");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("it answers");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        assert!(answer["error"].is_null(), "{command}: {}\n{}", answer["error"], answer["screen"]);
        answer
    }

    /// Waits until this is on the screen, which is returned.
    #[track_caller]
    fn wait(&mut self, text: &str) -> String {
        self.ask(&format!("wait {text}"))["screen"].as_str().expect("text").to_owned()
    }

    /// The program has ended with this status, and the terminal is as it was.
    #[track_caller]
    fn ended(&mut self, status: i32) {
        let end = self.ask("end");
        let want = json!({
            "status": status, "restored": true, "left": true, "cursor": true, "modes": 2
        });
        assert_eq!(end, want);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_shows_what_goes_on_and_leaves_the_terminal_as_it_was() {
    let measured = Measured::start("");
    let socket = measured.socket.display().to_string();
    let mut client = measured.client();
    let mut member = Peer::open(measured.gateway.address(), "/rooms?user=ann");
    member.frame();
    let mut terminal = Terminal::start(80, 24, &["top", "--socket", &socket]);
    terminal.wait("clients 2");
    measured.echo(&mut client, 100);
    let screen = terminal.wait("*/echo");
    assert!(screen.contains("penstock 0") && screen.contains("serving"), "{screen}");
    assert!(screen.contains("q quit") && screen.contains("shards: busy"), "{screen}");

    terminal.ask("keys s");
    terminal.wait("routes, by p99");
    terminal.ask("keys p");
    terminal.wait("PAUSED");
    terminal.ask("keys \\x1b[B");
    terminal.ask("keys p");
    terminal.ask("gone PAUSED");
    terminal.ask("size 120 40");
    drop(client);
    terminal.wait("client_gone");
    terminal.wait("clients 1");
    terminal.ask("keys q");
    terminal.ended(0);

    // Told to end, and interrupted.
    for (command, ends) in [("signal SIGTERM", 0), ("signal SIGHUP", 0), ("keys \\x03", 0)] {
        let mut terminal = Terminal::start(80, 24, &["top", "--socket", &socket]);
        terminal.wait("clients 1");
        terminal.ask(command);
        terminal.ended(ends);
    }
}

#[test]
fn top_waits_for_a_gateway_that_is_gone() {
    let measured = Measured::start("");
    let socket = measured.socket.display().to_string();
    let mut terminal = Terminal::start(80, 24, &["top", "--socket", &socket]);
    terminal.wait("serving");
    let Measured { gateway, scratch, socket: path } = measured;
    gateway.signal(Signal::TERM);
    gateway.stopped();
    let screen = terminal.wait("NOT REACHED");
    assert!(screen.contains("no gateway at"), "{screen}");
    let again = Gateway::start(&format!(
        "{HEAD}{ECHO_AND_ROOMS}[admin]\nsocket = \"{}\"\n",
        path.display()
    ));
    terminal.wait("serving");
    terminal.ask("gone NOT REACHED");
    terminal.ask("keys q");
    terminal.ended(0);
    again.stop();
    drop(scratch);
}

#[test]
fn top_prints_one_picture() {
    let measured = Measured::start("");
    let client = measured.client();
    let top = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        let command = command.args(["top", "--socket"]).arg(&measured.socket).args(arguments);
        command.stdin(Stdio::null()).output().expect("it runs")
    };
    let output = top(&["--once", "--size", "100x30"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && text.contains("clients 1 "), "{text}");
    assert_eq!(text.lines().count(), 30);
    let output = top(&[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("--once") && output.status.code() == Some(1), "{said}");
    drop(client);
    measured.gateway.stop();
    let mut command = Command::new(binary());
    let gone = command.args(["top", "--once", "--socket"]).arg(&measured.socket).output();
    let gone = gone.expect("it runs");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no gateway at"), "{gone:?}");
}
