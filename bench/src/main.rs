//! `penstock-bench`: puts WebSocket servers under load and says what it cost them.
//!
//! `engine.rs` is many clients in one thread, `traffic.rs` what they send, `rig.rs` how they send it
//! at a fixed rate, `standing.rs` those that do so beside something else; `hold.rs`, `connect.rs`,
//! `storm.rs`, `slow.rs`, `attack.rs`, `echo.rs`, `load.rs` and `fanout.rs` are what they can be made to do;
//! `serve.rs` is the servers that others are measured against. The protocol is in
//! `websocket.rs`, the rings in `kernel.rs`, and nothing is shared with the gateway.

mod attack;
mod children;
mod compare;
mod connect;
mod deflate;
mod echo;
mod engine;
mod environment;
mod fanout;
mod histogram;
mod hold;
mod html;
mod kernel;
mod load;
mod merge;
mod open_loop;
mod options;
mod outcome;
mod proc;
mod progress;
mod relay;
mod repeat;
mod report;
mod result_file;
mod rig;
mod search;
mod serve;
mod slow;
mod standing;
mod storm;
mod sweep;
mod target;
#[cfg(test)]
mod tests;
mod tls;
mod traffic;
mod websocket;
mod workers;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value;

use compare::Comparison;
use options::Files;
use outcome::Watch;
use result_file::{Request, ResultFile};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Puts WebSocket servers under load and says what it cost them.
///
/// The result goes to standard error as text and to standard output as JSON. Ctrl-C ends a run
/// early and prints what there is.
#[derive(Parser)]
#[command(name = "penstock-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    workers: workers::Options,
}

#[derive(Subcommand)]
enum Command {
    Hold(hold::Options),
    Echo(echo::Options),
    CompareEcho(echo::CompareOptions),
    Load(load::Options),
    Relay(relay::Options),
    Search(search::Options),
    Sweep(sweep::Options),
    Fanout(fanout::Options),
    Connect(connect::Options),
    Storm(storm::Options),
    Slow(slow::Options),
    Attack(attack::Options),
    Compare(compare::Options),
    Repeat(repeat::Options),
    Merge(merge::Options),
    Html(html::Options),
    Serve(serve::Options),
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let request = Request::new(&Cli::command(), &matches, cli.files.label.as_deref());
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second one ends the process as if nobody listened: a run that hangs can be ended.
        let twice = signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop));
        let once = signal_hook::flag::register(signal, Arc::clone(&stop));
        if let Err(error) = twice.and(once) {
            eprintln!("penstock-bench: cannot listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    }
    match run(cli, &request, &stop) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("penstock-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and tells what it found; whether all is well with the server.
fn run(cli: Cli, request: &Request, stop: &AtomicBool) -> io::Result<bool> {
    let Cli { command, files, workers } = cli;
    if workers.child {
        children::end_with_parent()?;
    }
    let result = match command {
        Command::Compare(options) => {
            let comparison = compare::run(&options)?;
            tell_comparison(&comparison, options.markdown, options.all, &files)?;
            return Ok(true);
        }
        Command::Repeat(options) => {
            let comparison = repeat::run(&options, stop)?;
            tell_comparison(&comparison, options.markdown, options.all, &files)?;
            return Ok(true);
        }
        Command::Html(options) => return html::run(&options).map(|()| true),
        Command::Merge(options) => merge::run(&options)?,
        command => {
            // A file that cannot be written is told at the beginning, not after the run.
            histogram::create_files(files.paths())?;
            match workers.workers {
                Some(count) => workers::run(count, &workers, request, stop)?,
                None => run_scenario(command, request, &files, &workers, stop)?,
            }
        }
    };
    result.write_files(&files)?;
    if workers.worker {
        writeln!(io::stdout(), "{}", result.to_line())?;
        return Ok(true);
    }
    let report = Value::Object(result.figures().clone());
    eprint!("{}", report::text(&report, io::stderr().is_terminal()));
    writeln!(io::stdout(), "{report}")?;
    // A scenario that finds the server at fault says that it is not `ok`.
    Ok(report["ok"] != false)
}

/// Runs a scenario in this process.
fn run_scenario(
    command: Command,
    request: &Request,
    files: &Files,
    workers: &workers::Options,
    stop: &AtomicBool,
) -> io::Result<ResultFile> {
    let watch = match (workers.worker, files.quiet) {
        (true, _) => Watch::of_worker(stop),
        (false, true) => Watch::new(stop),
        (false, false) => Watch::with_progress(stop),
    };
    let mut outcome = match command {
        Command::Hold(options) => hold::run(&options, &watch)?,
        Command::Echo(options) => echo::run(&options, &watch)?,
        Command::CompareEcho(options) => echo::compare(&options, &watch)?,
        Command::Load(options) => load::run(&options, &watch)?,
        Command::Relay(options) => relay::run(&options, &watch)?,
        Command::Sweep(options) => sweep::run(&options, &watch)?,
        Command::Search(options) => search::run(&options, &watch)?,
        Command::Fanout(options) => fanout::run(&options, &watch)?,
        Command::Connect(options) => connect::run(&options, &watch)?,
        Command::Storm(options) => storm::run(&options, &watch)?,
        Command::Slow(options) => slow::run(&options, &watch)?,
        Command::Attack(options) => attack::run(&options, &watch)?,
        Command::Serve(options) => serve::run(&options, &watch)?,
        Command::Compare(_) | Command::Repeat(_) | Command::Merge(_) | Command::Html(_) => {
            unreachable!("these are no scenarios, and were run before")
        }
    };
    let recording = watch.finish();
    outcome.add_server_memory(&recording);
    Ok(ResultFile::new(request, &outcome, &recording))
}

fn tell_comparison(
    comparison: &Comparison,
    markdown: bool,
    all: bool,
    files: &Files,
) -> io::Result<()> {
    let report = comparison.report();
    if let Some(path) = &files.json {
        histogram::write(path, format!("{report:#}\n"))?;
    }
    eprint!("{}", comparison.text(all, io::stderr().is_terminal()));
    match markdown {
        true => io::stdout().write_all(comparison.markdown(all).as_bytes()),
        false => writeln!(io::stdout(), "{report}"),
    }
}

#[cfg(test)]
mod cli_tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
