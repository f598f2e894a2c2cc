//! `penstock-bench`: puts WebSocket servers under load and says what it cost them.
//!
//! `engine.rs` is many clients in one thread; `hold.rs`, `echo.rs`, `load.rs` and `fanout.rs` are
//! what they can be made to do; `serve.rs` is the bare servers that others are measured against. The protocol is in
//! `websocket.rs`, the rings in `kernel.rs`, and nothing is shared with the gateway.

mod echo;
mod engine;
mod environment;
mod fanout;
mod histogram;
mod hold;
mod kernel;
mod load;
mod open_loop;
mod options;
mod outcome;
mod proc;
mod progress;
mod report;
// Nothing but its tests reads a file yet.
#[cfg_attr(not(test), allow(dead_code))]
mod result_file;
mod serve;
mod target;
#[cfg(test)]
mod tests;
mod websocket;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value;

use options::Files;
use outcome::{Outcome, Watch};
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
}

#[derive(Subcommand)]
enum Command {
    Hold(hold::Options),
    Echo(echo::Options),
    CompareEcho(echo::CompareOptions),
    Load(load::Options),
    Fanout(fanout::Options),
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
    match run(cli.command, &request, &cli.files, &stop) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("penstock-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and tells what it found; whether all is well with the server.
fn run(command: Command, request: &Request, files: &Files, stop: &AtomicBool) -> io::Result<bool> {
    // A file that cannot be written is told at the beginning, not after the run.
    histogram::create_files(files.paths())?;
    let watch = match files.quiet {
        true => Watch::new(stop),
        false => Watch::with_progress(stop),
    };
    let mut outcome = match command {
        Command::Hold(options) => hold::run(&options, &watch)?,
        Command::Echo(options) => echo::run(&options, &watch)?,
        Command::CompareEcho(options) => echo::compare(&options, &watch)?,
        Command::Load(options) => load::run(&options, &watch)?,
        Command::Fanout(options) => fanout::run(&options, &watch)?,
        Command::Serve(options) => serve::run(&options, &watch)?,
    };
    let recording = watch.finish();
    if let Some(Value::Object(server)) = outcome.figures.get_mut("server") {
        for (key, value) in &recording.server_memory {
            server.entry(key).or_insert_with(|| value.clone());
        }
    }
    outcome.write_files(files)?;
    if let Some(path) = &files.json {
        ResultFile::new(request, &outcome, &recording).write(path)?;
    }
    let Outcome { figures, .. } = outcome;
    let report = Value::Object(figures);
    eprint!("{}", report::text(&report, io::stderr().is_terminal()));
    println!("{report}");
    // A scenario that finds the server at fault says that it is not `ok`.
    Ok(report["ok"] != false)
}

#[cfg(test)]
mod cli_tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
