//! One run divided among several processes of this program (`--workers`), for servers that one
//! thread cannot keep busy.
//!
//! Each worker opens its share of the connections, says `ready`, and waits; when all are ready the
//! parent says `go` to all. A worker's result is the last line that it says. Results are added up
//! by `merge.rs`, as those of several hosts are.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use clap::Args;
use serde_json::{Value, json};

use crate::children;
use crate::merge::{self, SHARED};
use crate::options;
use crate::result_file::{Request, ResultFile};

/// How a run is divided.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Divide connections and rate among so many processes (load, echo, hold, connect).
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) workers: Option<u32>,
    /// The CPUs of the workers, such as "1,2"; they are taken in turn.
    #[arg(long, global = true, value_delimiter = ',', value_name = "CPU")]
    pub(crate) worker_cpus: Vec<usize>,
    /// This is a worker: waits for its parent before it measures.
    #[arg(long, global = true, hide = true)]
    pub(crate) worker: bool,
    /// This process ends with its parent.
    #[arg(long, global = true, hide = true)]
    pub(crate) child: bool,
}

/// Commands whose work can be divided: connections in them do not know of one another.
const DIVISIBLE: [&str; 4] = ["load", "echo", "hold", "connect"];

/// The longest a worker's result may be.
const RESULT_BYTES_MAX: u64 = 256 << 20;

/// What a worker has said.
enum Said {
    Ready,
    /// Its last words: a result, if it got so far.
    Ended(Result<ResultFile, String>),
}

/// Runs the workers and adds up what they found. One that dies, or has no result, makes the whole
/// incomplete.
pub(crate) fn run(
    count: u32,
    options: &Options,
    request: &Request,
    stop: &AtomicBool,
) -> io::Result<ResultFile> {
    let lines = command_lines(count, options, request).map_err(io::Error::other)?;
    let (sender, receiver) = mpsc::channel();
    let mut workers: Vec<(Child, Option<ChildStdin>)> = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let mut command = children::command(line)?;
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                end_all(&mut workers);
                return Err(io::Error::new(error.kind(), format!("worker {number}: {error}")));
            }
        };
        let stdout = child.stdout.take().expect("it is a pipe");
        let stdin = child.stdin.take();
        workers.push((child, stdin));
        let sender = sender.clone();
        thread::spawn(move || listen(number, stdout, |said| sender.send((number, said)).is_ok()));
    }
    drop(sender);
    let mut ready = vec![false; workers.len()];
    let mut results: Vec<Option<Result<ResultFile, String>>> =
        workers.iter().map(|_| None).collect();
    let (mut gone, mut asked) = (false, false);
    while results.iter().any(Option::is_none) {
        match receiver.recv_timeout(children::LOOK_INTERVAL) {
            Ok((number, Said::Ready)) => ready[number] = true,
            Ok((number, Said::Ended(result))) => {
                (ready[number], results[number]) = (true, Some(result));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if !gone && ready.iter().all(|ready| *ready) {
            gone = true;
            for stdin in workers.iter_mut().filter_map(|(_, stdin)| stdin.as_mut()) {
                // One that has ended meanwhile says so on its own.
                let _ = stdin.write_all(b"go\n");
            }
        }
        if stop.load(Ordering::Relaxed) && !asked {
            asked = true;
            for (child, stdin) in &mut workers {
                children::ask_to_end(child);
                // Who waits for `go` waits no longer.
                *stdin = None;
            }
        }
    }
    for (child, _) in &mut workers {
        child.wait()?;
    }
    add_up(results, request)
}

/// Reads what a worker says until its end.
fn listen(number: usize, stdout: impl Read, mut tell: impl FnMut(Said) -> bool) {
    let mut last = String::new();
    let mut lines = BufReader::new(stdout.take(RESULT_BYTES_MAX));
    loop {
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) if line == "ready\n" => {
                tell(Said::Ready);
            }
            Ok(_) => last = line,
        }
    }
    let result = match last.is_empty() {
        true => Err("it died without a result".to_owned()),
        false => ResultFile::parse(&last),
    };
    tell(Said::Ended(result.map_err(|error| format!("worker {number}: {error}"))));
}

fn end_all(workers: &mut [(Child, Option<ChildStdin>)]) {
    for (child, stdin) in workers {
        *stdin = None;
        children::ask_to_end(child);
        // Nothing more can be done about one that does not end.
        let _ = child.wait();
    }
}

/// One result of those of all workers, with what became of the others.
fn add_up(
    results: Vec<Option<Result<ResultFile, String>>>,
    request: &Request,
) -> io::Result<ResultFile> {
    let count = results.len();
    let mut found = Vec::new();
    let mut lost = Vec::new();
    for (number, result) in results.into_iter().enumerate() {
        match result.unwrap_or_else(|| Err(format!("worker {number}: it was never heard of"))) {
            Ok(result) => found.push(result),
            Err(error) => lost.push(error),
        }
    }
    let mut merged = match merge::merge(&found) {
        Ok(merged) => merged,
        Err(error) => return Err(io::Error::other(format!("{error}: {}", lost.join("; ")))),
    };
    request.name(&mut merged);
    let mut figures = merged.figures().clone();
    figures.insert("workers_count".into(), json!(count));
    figures.insert("workers_lost_count".into(), json!(lost.len()));
    if !lost.is_empty() {
        figures.insert("workers_lost".into(), json!(lost));
        figures.insert("complete".into(), json!(false));
        merged.set("complete", json!(false));
    }
    merged.set("figures", Value::Object(figures));
    Ok(merged)
}

/// The arguments of each worker: those that were given, and its share.
fn command_lines(
    count: u32,
    options: &Options,
    request: &Request,
) -> Result<Vec<Vec<String>>, String> {
    let scenario = request.scenario();
    if !DIVISIBLE.contains(&scenario) {
        return Err(format!(
            "--workers is for {}; {scenario} is one process",
            DIVISIBLE.join(", ")
        ));
    }
    let mut shares: Vec<(&str, u32)> = Vec::new();
    for key in SHARED {
        let Some(text) = request.parameter(key) else { continue };
        let whole = options::rate(text).map_err(|error| format!("--{key} {text}: {error}"))?;
        if whole < count {
            return Err(format!("--{key} {text} is not enough for {count} workers"));
        }
        shares.push((key, whole));
    }
    let is_ours = |key: &str| key == "cpu" || shares.iter().any(|(shared, _)| *shared == key);
    let line = |number: u32| {
        let mut line = vec![scenario.to_owned(), "--worker".into(), "--quiet".into()];
        line.extend(request.given().filter(|(key, _)| !is_ours(key)).map(|(_, word)| word.clone()));
        for (key, whole) in &shares {
            let share = whole / count + u32::from(number < whole % count);
            line.push(format!("--{key}={share}"));
        }
        let cpu = match options.worker_cpus.len() {
            0 => None,
            cpus => options.worker_cpus.get(number as usize % cpus),
        };
        line.extend(cpu.map(|cpu| format!("--cpu={cpu}")));
        line
    };
    Ok((0..count).map(line).collect())
}

/// In a worker: says that it is ready, and waits for the others. False when it is to end instead.
pub(crate) fn wait_for_others() -> io::Result<bool> {
    let mut stdout = io::stdout();
    stdout.write_all(b"ready\n")?;
    stdout.flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line == "go\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::results::request;

    fn lines(count: u32, cpus: &[usize], line: &str) -> Result<Vec<String>, String> {
        let options = Options { worker_cpus: cpus.to_vec(), ..Options::default() };
        let lines = command_lines(count, &options, &request(line))?;
        Ok(lines.into_iter().map(|line| line.join(" ")).collect())
    }

    #[test]
    fn shares_add_up_and_the_rest_is_passed_on() {
        let line = "load --url ws://127.0.0.1:1/ --connections 10 --rate 101/s --pid 1,2 --binary \
                    --cpu 0 --json /tmp/x.json --label A";
        let got = lines(3, &[1, 2], line).unwrap();
        let start = "load --worker --quiet --url=ws://127.0.0.1:1/ ";
        let rest = "--binary --pid=1 --pid=2 ";
        let shares = ["4 --rate=34 --cpu=1", "3 --rate=34 --cpu=2", "3 --rate=33 --cpu=1"];
        let want = shares.map(|share| format!("{start}{rest}--connections={share}"));
        assert_eq!(got, want);
        // The default is divided as well.
        let got = lines(2, &[], "hold --url ws://127.0.0.1:1/").unwrap();
        assert!(got[0].ends_with("--connections=5000 --sample=500"), "{got:?}");
    }

    #[test]
    fn what_cannot_be_divided_is_refused() {
        let error = lines(2, &[], "load --url ws://127.0.0.1:1/ --rate 1").unwrap_err();
        assert!(error.contains("--rate 1 is not enough for 2 workers"), "{error}");
        let error = lines(2, &[], "fanout --url ws://127.0.0.1:1/ --rate 9").unwrap_err();
        assert!(error.contains("fanout is one process"), "{error}");
    }

    #[test]
    fn a_worker_that_dies_is_told() {
        let mut said = Vec::new();
        listen(3, &b"ready\n{\"half"[..], |what| {
            said.push(what);
            true
        });
        assert!(matches!(said[0], Said::Ready));
        let Said::Ended(Err(error)) = &said[1] else { panic!("an end, with an error") };
        assert!(error.starts_with("worker 3: not JSON"), "{error}");
        listen(0, &b""[..], |what| {
            said.push(what);
            true
        });
        let Said::Ended(Err(error)) = &said[2] else { panic!("an end, with an error") };
        assert!(error.contains("died without a result"), "{error}");
    }
}
