//! Runs commands several times in random order, and compares what they found: what the machine did
//! meanwhile, and what a run leaves behind for the next one, falls on all of them alike.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::children;
use crate::compare::{self, Comparison};
use crate::histogram;
use crate::result_file::ResultFile;
use crate::websocket;

/// Runs commands several times in random order, and compares their results.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// NAME=COMMAND, such as "A=load --url ws://127.0.0.1:8080/ --rate 1000/s"; once for each.
    #[arg(long = "run", required = true, value_name = "NAME=COMMAND")]
    pub(crate) runs: Vec<String>,
    /// How often each of them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) times: u32,
    /// Decides the order; another in each run when not given.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The directory for the results: NAME-1.json and so on, and the comparison.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) out: PathBuf,
    /// Waits this long between two runs.
    #[arg(long = "pause-seconds", default_value = "1", value_parser = crate::options::seconds, value_name = "SECONDS")]
    pub(crate) pause: Duration,
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

/// What is run under one name.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    name: String,
    words: Vec<String>,
}

/// Runs them. When it is stopped, the run that goes on is left out and the others are compared.
pub(crate) fn run(options: &Options, stop: &AtomicBool) -> io::Result<Comparison> {
    let runs = options.runs.iter().map(|text| read_run(text)).collect::<Result<Vec<_>, _>>();
    let runs = runs.map_err(io::Error::other)?;
    if let Some(twice) =
        runs.iter().enumerate().find(|(i, run)| runs[..*i].iter().any(|r| r.name == run.name))
    {
        return Err(io::Error::other(format!("--run: {} is there twice", twice.1.name)));
    }
    fs::create_dir_all(&options.out).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot create {}: {error}", options.out.display()))
    })?;
    let seed = options.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
    });
    eprintln!("{} runs, --seed {seed}", runs.len() * options.times as usize);
    let mut results = Vec::new();
    let mut failed = 0;
    for (index, (run, time)) in order(runs.len(), options.times, seed).into_iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if index > 0 {
            pause(options.pause, stop);
        }
        let run = &runs[run];
        eprintln!("run {} of {}: {}", index + 1, runs.len() * options.times as usize, run.name);
        let path = options.out.join(format!("{}-{}.json", run.name, time + 1));
        match run_once(run, &path, stop) {
            Ok(_) if stop.load(Ordering::Relaxed) => eprintln!("stopped: this run is left out"),
            Ok(result) => results.push((run.name.clone(), result)),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error}", run.name);
            }
        }
    }
    if failed > 0 {
        eprintln!("{failed} runs failed; the comparison is without them");
    }
    if results.is_empty() {
        return Err(io::Error::other("no run has left a result: there is nothing to compare"));
    }
    // In the order in which they were given, not in the one in which they ran.
    results.sort_by_key(|(name, _)| runs.iter().position(|run| run.name == *name));
    let comparison = compare::compare(results, options.force).map_err(io::Error::other)?;
    let path = options.out.join("comparison.json");
    histogram::write(&path, format!("{:#}\n", comparison.report()))?;
    Ok(comparison)
}

/// Reads NAME=COMMAND. The name becomes that of a file.
fn read_run(text: &str) -> Result<Run, String> {
    let refuse = |what: &str| Err(format!("--run {text}: {what}"));
    let Some((name, command)) = text.split_once('=') else {
        return refuse("should be NAME=COMMAND");
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return refuse("a name is of letters, digits and -_.+");
    }
    match shlex::split(command) {
        Some(words) if !words.is_empty() => Ok(Run { name: name.to_owned(), words }),
        Some(_) => refuse("there is no command"),
        None => refuse("a quote is not closed"),
    }
}

/// Which run and its how manieth time, all of one time before the next; their order is random.
fn order(runs: usize, times: u32, seed: u64) -> Vec<(usize, u32)> {
    let round = |time: u32| {
        let mut order: Vec<usize> = (0..runs).collect();
        let salt = websocket::scramble(seed ^ u64::from(time) << 32);
        order.sort_by_key(|run| websocket::scramble(salt ^ *run as u64));
        order.into_iter().map(move |run| (run, time))
    };
    (0..times).flat_map(round).collect()
}

fn pause(length: Duration, stop: &AtomicBool) {
    let started = std::time::Instant::now();
    while started.elapsed() < length && !stop.load(Ordering::Relaxed) {
        thread::sleep(children::LOOK_INTERVAL.min(length));
    }
}

/// Runs it as a child, whose words go into a file beside its result.
fn run_once(run: &Run, path: &Path, stop: &AtomicBool) -> io::Result<ResultFile> {
    let log = path.with_extension("txt");
    // A result of an earlier time must not be taken for this one's.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut command = children::command(&run.words)?;
    command.arg("--quiet").arg("--label").arg(&run.name).arg("--json").arg(path);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let mut asked = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stop.load(Ordering::Relaxed) && !asked {
            children::ask_to_end(&child);
            asked = true;
        }
        thread::sleep(children::LOOK_INTERVAL);
    };
    // A scenario that finds the server at fault ends with 1, and has a result.
    ResultFile::read(path).map_err(|error| {
        let words = fs::read_to_string(&log).unwrap_or_default();
        let last = words.lines().last().unwrap_or_default();
        io::Error::other(format!("{status}, no result ({error}); {}: {last}", log.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_a_shell_would() {
        let read = |text: &str| read_run(text);
        let run = read("A=load --url 'ws://h/a b' --x=\"1 2\"").unwrap();
        assert_eq!(
            (run.name.as_str(), &*run.words),
            ("A", &["load", "--url", "ws://h/a b", "--x=1 2"].map(String::from)[..])
        );
        for (text, want) in [
            ("load", "NAME=COMMAND"),
            ("=load", "a name is of"),
            ("a/b=load", "a name is of"),
            ("..=load", "a name is of"),
            ("A=", "no command"),
            ("A=load 'x", "quote"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn each_round_has_all_runs_and_orders_differ_by_round_and_seed() {
        let order_of = |seed| order(3, 50, seed);
        assert_eq!(order_of(7), order_of(7), "a run can be repeated");
        assert_ne!(order_of(7), order_of(8));
        let mut first = [0; 3];
        for (time, round) in order_of(7).chunks(3).enumerate() {
            first[round[0].0] += 1;
            let mut runs: Vec<usize> = round.iter().map(|(run, _)| *run).collect();
            runs.sort_unstable();
            assert_eq!(runs, [0, 1, 2]);
            assert!(round.iter().all(|(_, of)| *of == time as u32));
        }
        assert!(first.iter().all(|count| *count >= 5), "{first:?}");
    }
}
