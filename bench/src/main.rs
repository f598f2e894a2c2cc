//! `penstock-bench`: puts WebSocket servers under load and says what it cost them.
//!
//! `engine.rs` is many clients in one thread; `hold.rs`, `echo.rs`, `load.rs` and `fanout.rs` are
//! what they can be made to do; `serve.rs` is the bare servers that others are measured against. The protocol is in
//! `websocket.rs`, the rings in `kernel.rs`, and nothing is shared with the gateway.

mod echo;
mod engine;
mod fanout;
mod histogram;
mod hold;
mod kernel;
mod load;
mod open_loop;
mod proc;
mod report;
mod serve;
mod target;
#[cfg(test)]
mod tests;
mod websocket;

use std::ffi::CString;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use fanout::{plain::Plain, rooms::Rooms};
use target::Target;

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
}

#[derive(Subcommand)]
enum Command {
    /// Opens many connections, holds them, asks a sample whether they live, closes them in order.
    Hold(Hold),
    /// Sends messages and waits for each to come back (closed loop).
    Echo(Echo),
    /// The same on several servers by turns, for figures that can be compared.
    CompareEcho(CompareEcho),
    /// Sends messages at a fixed rate and measures from when each was due (open loop).
    Load(Load),
    /// Publishes into rooms at a fixed rate and sees that every member gets every message, once and
    /// in order; exits with 1 when not.
    Fanout(Fanout),
    /// A bare server to measure others against.
    #[command(subcommand)]
    Serve(Serve),
}

#[derive(Args)]
struct Common {
    /// Take targets that are not on this machine.
    #[arg(long)]
    allow_remote: bool,
    /// Run on this CPU only.
    #[arg(long)]
    cpu: Option<usize>,
    /// The congestion control of our own sockets, such as "cubic"; the system's when not given.
    #[arg(long)]
    congestion: Option<CString>,
}

#[derive(Args)]
struct Hold {
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    connections: u32,
    /// How long to hold once all are open.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// Opens per second, such as "5000/s"; as fast as the server answers when not given.
    #[arg(long, value_parser = rate)]
    rate: Option<u32>,
    /// Opens under way at once.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    opening_max: u32,
    /// For one connect and handshake.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    open_timeout_seconds: f64,
    /// For opening all.
    #[arg(long, default_value_t = 120.0, value_parser = seconds)]
    opening_seconds_max: f64,
    /// For closing all.
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    closing_seconds_max: f64,
    /// Connections, picked at random, that are pinged before closing.
    #[arg(long, default_value_t = 1000)]
    sample: u32,
    /// Use more rings than RLIMIT_NOFILE asks for: no ring holds more than this.
    #[arg(long, default_value_t = u32::MAX, value_parser = clap::value_parser!(u32).range(64..))]
    slots_per_ring_max: u32,
    /// The server's process, for its memory and processor time.
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Messages {
    /// Connections to each server.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    size: u32,
    /// Messages under way on each connection.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,
    /// Binary messages instead of text.
    #[arg(long)]
    binary: bool,
    /// Unmeasured time before, on each server.
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    warm_up_seconds: f64,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Echo {
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// The server's process, for its processor time.
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    messages: Messages,
}

#[derive(Args)]
struct CompareEcho {
    /// NAME=URL or NAME=URL@PID; give it once for each server. Ratios are to the first.
    #[arg(long = "target", required = true)]
    targets: Vec<String>,
    /// Slices for each server.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    slices: u32,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    slice_ms: u32,
    #[command(flatten)]
    messages: Messages,
}

#[derive(Args)]
struct Load {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    url: String,
    /// The messages are spread over them evenly.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Messages per second of all connections together, such as "20000/s".
    #[arg(long, value_parser = rate)]
    rate: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// The same, unmeasured, before.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warm_up_seconds: f64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(load::MESSAGE_BYTES_MIN)..=16_777_216))]
    size: u32,
    /// Binary messages instead of text.
    #[arg(long)]
    binary: bool,
    /// Messages under way on one connection; what comes due beyond is held back until one returns,
    /// and its latency counts on. 1 is a client that waits for each answer.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight_max: u32,
    /// Write the percentile distribution to this file, as HdrHistogram's plotter reads it.
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write the histograms to this file, as an HdrHistogram log (V2, compressed).
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
    /// The server's process, for its processor time.
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Fanout {
    /// Of a server with rooms, such as ws://127.0.0.1:8080/.
    #[arg(long)]
    url: String,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rooms: u32,
    /// Members of each room.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    members: u32,
    /// What the members are spread over; one for each when not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: Option<u32>,
    /// Messages published per second in all rooms together, such as "20/s".
    #[arg(long, value_parser = rate)]
    rate: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// The same, unmeasured, before.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warm_up_seconds: f64,
    /// Bytes of what is published; the frame around it is the dialect's.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(fanout::MESSAGE_BYTES_MIN)..=1_048_576))]
    size: u32,
    /// The protocol that the server speaks.
    #[arg(long, value_enum, default_value_t = Dialect::Rooms)]
    dialect: Dialect,
    /// Write the percentile distribution of the time to the last member to this file.
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write the histograms to this file, as an HdrHistogram log (V2, compressed).
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
    /// The server's process, for its processor time.
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dialect {
    /// Penstock's own (docs/ROOMS.md).
    Rooms,
    /// One room with everybody in it, of `serve send-loop`.
    Plain,
}

#[derive(Subcommand)]
enum Serve {
    /// Echoes WebSocket messages, checking next to nothing.
    RingEcho(ServeOptions),
    /// Relays bytes to an upstream.
    RingRelay {
        /// Where to.
        #[arg(long)]
        upstream: SocketAddr,
        #[command(flatten)]
        options: ServeOptions,
    },
    /// Sends each message of a client to every client, with a plain send() to each.
    SendLoop(ServeOptions),
}

#[derive(Args)]
struct ServeOptions {
    /// Where to listen; port 0 for any. The port is best outside of ip_local_port_range.
    #[arg(long, default_value = "127.0.0.1:9001")]
    address: SocketAddr,
    /// Rings of the one thread; each holds as many sockets as RLIMIT_NOFILE allows.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    rings: u32,
    /// Ends by itself after this time.
    #[arg(long, default_value_t = 3600.0, value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    common: Common,
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
    match run(cli.command, &stop) {
        Ok(report) => {
            eprint!("{}", report::text(&report, io::stderr().is_terminal()));
            println!("{report}");
            // A scenario that finds the server at fault says that it is not `ok`.
            if report["ok"] == false { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("penstock-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, stop: &AtomicBool) -> io::Result<Value> {
    match command {
        Command::Hold(hold) => {
            pin(&hold.common)?;
            let options = hold::Options {
                target: target(&hold.url, &hold.common)?,
                connections: hold.connections,
                hold: Duration::from_secs_f64(hold.seconds),
                opens_per_second_max: hold.rate,
                opening_max: hold.opening_max,
                open_timeout: Duration::from_secs_f64(hold.open_timeout_seconds),
                opening_timeout: Duration::from_secs_f64(hold.opening_seconds_max),
                closing_timeout: Duration::from_secs_f64(hold.closing_seconds_max),
                sample: hold.sample,
                slots_per_ring_max: hold.slots_per_ring_max,
                pid: hold.pid,
                congestion: hold.common.congestion,
            };
            hold::run(&options, stop)
        }
        Command::Echo(echo) => {
            let target = target(&echo.url, &echo.messages.common)?;
            let server = echo::Server { name: "server".into(), target, pid: echo.pid };
            let seconds = Duration::from_secs_f64(echo.seconds);
            run_echo(vec![server], 1, seconds, echo.messages, stop)
        }
        Command::CompareEcho(compare) => {
            let common = &compare.messages.common;
            let servers = compare.targets.iter().map(|text| server(text, common));
            let servers = servers.collect::<io::Result<Vec<_>>>()?;
            let slice = Duration::from_millis(u64::from(compare.slice_ms));
            run_echo(servers, compare.slices, slice, compare.messages, stop)
        }
        Command::Load(load) => {
            pin(&load.common)?;
            let options = load::Options {
                target: target(&load.url, &load.common)?,
                connections: load.connections,
                rate: load.rate,
                warm_up: Duration::from_secs_f64(load.warm_up_seconds),
                measured: Duration::from_secs_f64(load.seconds),
                message_bytes: load.size as usize,
                binary: load.binary,
                in_flight_max: load.in_flight_max,
                pid: load.pid,
                core: load.common.cpu,
                congestion: load.common.congestion,
                percentiles_file: load.hgrm,
                log_file: load.hlog,
                slow_down: Duration::ZERO,
            };
            load::run(&options, stop)
        }
        Command::Fanout(fanout) => {
            pin(&fanout.common)?;
            let options = fanout::Options {
                target: target(&fanout.url, &fanout.common)?,
                rooms: fanout.rooms,
                members: fanout.members,
                connections: fanout
                    .connections
                    .unwrap_or_else(|| fanout.rooms.saturating_mul(fanout.members)),
                rate: fanout.rate,
                warm_up: Duration::from_secs_f64(fanout.warm_up_seconds),
                measured: Duration::from_secs_f64(fanout.seconds),
                message_bytes: fanout.size as usize,
                pid: fanout.pid,
                core: fanout.common.cpu,
                congestion: fanout.common.congestion,
                percentiles_file: fanout.hgrm,
                log_file: fanout.hlog,
            };
            match fanout.dialect {
                Dialect::Plain if options.rooms > 1 => {
                    Err(io::Error::other("the plain dialect has one room (--rooms 1)"))
                }
                Dialect::Plain => fanout::run(Plain, &options, stop),
                Dialect::Rooms => {
                    // Other rooms in every run.
                    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let prefix = format!("bench-{}-{}-", std::process::id(), started.as_millis());
                    fanout::run(Rooms::new(&prefix), &options, stop)
                }
            }
        }
        Command::Serve(serve) => {
            let (options, upstream, is_send_loop) = match serve {
                Serve::RingEcho(options) => (options, None, false),
                Serve::RingRelay { upstream, options } => (options, Some(upstream), false),
                Serve::SendLoop(options) => (options, None, true),
            };
            pin(&options.common)?;
            let remote = [Some(options.address), upstream]
                .into_iter()
                .flatten()
                .find(|address| !address.ip().is_loopback());
            if let (Some(address), false) = (remote, options.common.allow_remote) {
                let text = format!("{address} is not on loopback (--allow-remote to insist)");
                return Err(io::Error::other(text));
            }
            let options = serve::Options {
                address: options.address,
                rings: options.rings,
                time: Duration::from_secs_f64(options.seconds),
                congestion: options.common.congestion,
            };
            let on_listening = |address| {
                eprintln!("listening on {address}, process {}", std::process::id());
            };
            match upstream {
                None if is_send_loop => serve::send_loop::run(&options, stop, on_listening),
                None => serve::ring_echo::run(&options, stop, on_listening),
                Some(upstream) => serve::ring_relay::run(&options, upstream, stop, on_listening),
            }
        }
    }
}

fn run_echo(
    servers: Vec<echo::Server>,
    slices: u32,
    slice: Duration,
    messages: Messages,
    stop: &AtomicBool,
) -> io::Result<Value> {
    pin(&messages.common)?;
    let options = echo::Options {
        servers,
        connections: messages.connections,
        message_bytes: messages.size as usize,
        depth: messages.depth,
        binary: messages.binary,
        warm_up: Duration::from_secs_f64(messages.warm_up_seconds),
        slices,
        slice,
        congestion: messages.common.congestion,
    };
    echo::run(&options, stop)
}

fn pin(common: &Common) -> io::Result<()> {
    common.cpu.map_or(Ok(()), kernel::pin_to_cpu)
}

fn target(url: &str, common: &Common) -> io::Result<Target> {
    Target::parse(url, common.allow_remote).map_err(io::Error::other)
}

/// Reads NAME=URL or NAME=URL@PID.
fn server(text: &str, common: &Common) -> io::Result<echo::Server> {
    let (name, url) = text
        .split_once('=')
        .ok_or_else(|| io::Error::other(format!("{text}: should be NAME=URL or NAME=URL@PID")))?;
    let (url, pid) = match url.rsplit_once('@') {
        None => (url, None),
        Some((url, pid)) => match pid.parse() {
            Ok(pid) => (url, Some(pid)),
            Err(_) => return Err(io::Error::other(format!("{text}: {pid} is not a process id"))),
        },
    };
    Ok(echo::Server { name: name.to_owned(), target: target(url, common)?, pid })
}

/// Reads a time, up to a day.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if (0.0..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("0 to 86400".into()) }
}

/// Reads "5000/s" or "5000".
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(0) | Err(_) => Err("a number per second, such as 5000/s".into()),
        Ok(rate) => Ok(rate),
    }
}
