//! `penstock-bench`: puts WebSocket servers under load and says what it cost them.
//!
//! `engine.rs` is many clients in one thread, `traffic.rs` what they send, `rig.rs` how they send it
//! at a fixed rate, `standing.rs` those that do so beside something else; `hold.rs`, `connect.rs`,
//! `storm.rs`, `slow.rs`, `echo.rs`, `load.rs` and `fanout.rs` are what they can be made to do;
//! `serve.rs` is the servers that others are measured against. The protocol is in
//! `websocket.rs`, the rings in `kernel.rs`, and nothing is shared with the gateway.

mod connect;
mod deflate;
mod echo;
mod engine;
mod fanout;
mod histogram;
mod hold;
mod kernel;
mod load;
mod open_loop;
mod options;
mod outcome;
mod proc;
mod relay;
mod report;
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

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};

use options::Files;
use outcome::{Outcome, Watch};

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
    Relay(relay::Options),
    Search(search::Options),
    Sweep(sweep::Options),
    Fanout(fanout::Options),
    Connect(connect::Options),
    Storm(storm::Options),
    Slow(slow::Options),
    Serve(serve::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
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
    match run(cli.command, &cli.files, &stop) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("penstock-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and tells what it found; whether all is well with the server.
fn run(command: Command, files: &Files, stop: &AtomicBool) -> io::Result<bool> {
    // A file that cannot be written is told at the beginning, not after the run.
    histogram::create_files(files.hgrm.iter().chain(&files.hlog))?;
    let watch = Watch::new(stop);
    let outcome = match command {
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
        Command::Serve(options) => serve::run(&options, &watch)?,
    };
    outcome.write_files(files)?;
    let Outcome { figures, .. } = outcome;
    let report = serde_json::Value::Object(figures);
    eprint!("{}", report::text(&report, io::stderr().is_terminal()));
    println!("{report}");
    // A scenario that finds the server at fault says that it is not `ok`.
    Ok(report["ok"] != false)
}

#[cfg(test)]
mod cli_tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
