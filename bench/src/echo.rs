//! Sends messages and waits for each to come back: closed loop, one or several servers.
//!
//! A connection sends its next message when the last is back, so a slow server is asked less: the
//! latencies say how the loop went round, not what a client at a fixed rate would see. What the
//! scenario measures well is processor time per message.
//!
//! With several servers, one process holds connections to all of them and lets one after the other
//! talk for a slice of time. Whatever the machine does meanwhile, it does to all alike: the median
//! of the slices can be compared on a machine that is not quiet.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{CpuTime, per, round};
use crate::progress::{CLOSING, MEASURING, Sample};
use crate::target::Target;
use crate::traffic::{Messages, Traffic};
use crate::websocket::{self, Frame, PONG};

/// Sends messages and waits for each to come back (closed loop).
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// How long to measure.
    #[arg(long = "seconds", default_value = "5", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    #[command(flatten)]
    pub(crate) clients: Clients,
}

/// The same on several servers by turns, for figures that can be compared.
#[derive(Args, Clone, Debug)]
pub(crate) struct CompareOptions {
    /// NAME=URL or NAME=URL@PID,PID; give it once for each server. Ratios are to the first.
    #[arg(long = "target", required = true)]
    pub(crate) targets: Vec<String>,
    /// Slices for each server.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) slices: u32,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) slice_ms: u32,
    #[command(flatten)]
    pub(crate) clients: Clients,
}

/// Who talks, and how much at once.
#[derive(Args, Clone, Debug)]
pub(crate) struct Clients {
    /// Connections to each server.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connections: u32,
    /// Messages under way on each connection.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) depth: u32,
    /// Unmeasured time before, on each server.
    #[arg(long = "warm-up-seconds", default_value = "0.5", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// One that is measured.
struct Server {
    name: String,
    target: Target,
    pids: Vec<u32>,
}

const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long messages under way may take to come back at the end of a slice.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);
const TURN: Duration = Duration::from_millis(50);

/// Runs it on one server. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let target = options.clients.common.target(&options.url)?;
    let server =
        Server { name: "server".into(), target, pids: options.clients.common.pids.clone() };
    run_slices(&[server], 1, options.measured, &options.clients, watch)
}

/// Runs it on several servers by turns.
pub(crate) fn compare(options: &CompareOptions, watch: &Watch<'_>) -> io::Result<Outcome> {
    if !options.clients.common.pids.is_empty() {
        return Err(io::Error::other("--pid: whose? Write it behind its target, as NAME=URL@PID"));
    }
    let servers = options.targets.iter().map(|text| read_server(text, &options.clients.common));
    let servers = servers.collect::<io::Result<Vec<_>>>()?;
    let slice = Duration::from_millis(u64::from(options.slice_ms));
    run_slices(&servers, options.slices, slice, &options.clients, watch)
}

/// Reads NAME=URL or NAME=URL@PID,PID.
fn read_server(text: &str, common: &Common) -> io::Result<Server> {
    let refuse = |what: String| Err(io::Error::other(format!("{text}: {what}")));
    let Some((name, url)) = text.split_once('=') else {
        return refuse("should be NAME=URL or NAME=URL@PID".into());
    };
    let (url, pids) = url.rsplit_once('@').unwrap_or((url, ""));
    let mut numbers = Vec::new();
    for pid in pids.split(',').filter(|pid| !pid.is_empty()) {
        match pid.parse() {
            Ok(pid) => numbers.push(pid),
            Err(_) => return refuse(format!("{pid} is not a process id")),
        }
    }
    Ok(Server { name: name.to_owned(), target: common.target(url)?, pids: numbers })
}

fn run_slices(
    servers: &[Server],
    slices_each: u32,
    slice: Duration,
    clients: &Clients,
    watch: &Watch<'_>,
) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    watch.begin(&clients.common)?;
    let mut engine = Engine::new(Settings {
        keep_buffers: true,
        ..Settings::new(
            servers.iter().map(|server| server.target.clone()).collect(),
            clients.connections,
            &clients.common,
        )
    })?;
    let mut echo = Echo::new(clients, servers.len(), engine.len());
    engine.open_all(&mut echo, OPENING_TIMEOUT, watch)?;

    let mut slices: Vec<Vec<Slice>> = servers.iter().map(|_| Vec::new()).collect();
    let warm_up_rounds = u32::from(!clients.warm_up.is_zero());
    for round in 0..slices_each + warm_up_rounds {
        let warm_up = round < warm_up_rounds;
        // In another order each round: what follows a busy server, or precedes one, is not always
        // the same one.
        for index in shuffled(servers.len(), u64::from(round)) {
            if stopped() {
                break;
            }
            let server = &servers[index];
            let length = if warm_up { clients.warm_up } else { slice };
            let phase = if warm_up { "warm-up" } else { MEASURING };
            let taken = run_slice(&mut engine, &mut echo, index, (server, phase), length, watch)?;
            if warm_up {
                echo.latencies[index].reset();
            } else {
                slices[index].push(taken);
            }
        }
    }

    // Ends that come from here on are ours.
    let early = engine.counts.early.clone();
    engine.close_all(&mut echo, CLOSING_TIMEOUT)?;

    let first_us = median(slices[0].iter().filter_map(Slice::server_us_per_message).collect());
    let reports = servers.iter().zip(&slices).enumerate();
    let reports: Vec<Value> = reports
        .map(|(index, (server, slices))| {
            let mut report = Map::new();
            report.insert("name".into(), json!(server.name));
            report.insert("address".into(), json!(server.target.address.to_string()));
            report_slices(&mut report, slices, first_us);
            let latency = &echo.latencies[index];
            report.insert("closed_loop_latency_us".into(), histogram::report(latency));
            Value::Object(report)
        })
        .collect();
    let faults = echo.faults;
    let figures = json!({
        "scenario": "echo, closed loop: a connection sends the next message when the last is back",
        "complete": !stopped(),
        "connections_per_server": clients.connections,
        "messages": echo.messages.report(),
        "depth": clients.depth,
        "slices": slices_each,
        "slice_seconds": round(slice.as_secs_f64()),
        "congestion_control":
            clients.common.congestion.as_ref().map_or("the system's".into(), |c| c.to_string_lossy()),
        "faults_count": faults,
        "ended_early_count": early.total(),
        "ended_early_by_reason": early.report(),
        "servers": reports,
    });
    let Value::Object(mut figures) = figures else { unreachable!("it was written as an object") };
    engine.put_transport(&mut figures);
    let mut outcome = Outcome::of_figures(figures);
    // Of several servers, which one would be quoted?
    if let [latency] = &echo.latencies[..] {
        outcome.histograms.push(("latency".into(), latency.clone()));
        outcome.measured = slice;
        outcome.started_at -= slice;
    }
    Ok(outcome)
}

/// The indices below `count` in an order that `seed` decides.
pub(crate) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|index| websocket::scramble(seed << 32 | *index as u64));
    order
}

/// One server's turn to talk.
struct Slice {
    messages: u64,
    seconds: f64,
    client_ns: u64,
    server: Option<(CpuTime, CpuTime)>,
    /// Messages that did not come back in time, on connections that are still open.
    missing: u64,
}

impl Slice {
    fn server_us_per_message(&self) -> Option<f64> {
        let (before, after) = self.server?;
        (self.messages > 0)
            .then(|| (after.total_ns - before.total_ns) as f64 / 1e3 / self.messages as f64)
    }
}

/// Starts all connections of a server, lets them talk, and waits until all is back: the server's
/// time is taken before the first and after the last message, so nothing falls between slices.
fn run_slice(
    engine: &mut Engine,
    echo: &mut Echo,
    index: usize,
    (server, phase): (&Server, &'static str),
    length: Duration,
    watch: &Watch<'_>,
) -> io::Result<Slice> {
    let read_cpu = || CpuTime::read_all(&server.pids);
    let (messages, client) = (echo.back, kernel::own_cpu_time());
    let before = read_cpu();
    let started = Instant::now();
    echo.talking = Some(index);
    let clients = (0..engine.len()).skip(index).step_by(echo.server_count);
    for client in clients {
        engine.say(client, |out| echo.start(client, started, out));
    }
    while started.elapsed() < length && !watch.stopped() {
        engine.turn(echo, TURN.min(length))?;
        let left = length.saturating_sub(started.elapsed());
        watch.tick(&Sample { left: Some(left), ..echo.sample(phase, index, engine) });
    }
    echo.talking = None;
    let drain = Instant::now();
    while echo.in_flight > 0 && drain.elapsed() < DRAIN_TIMEOUT {
        engine.turn(echo, TURN)?;
    }
    watch.tick(&echo.sample(CLOSING, index, engine));
    let seconds = started.elapsed().as_secs_f64();
    let server = before.zip(read_cpu());
    Ok(Slice {
        messages: echo.back - messages,
        seconds,
        client_ns: (kernel::own_cpu_time() - client).as_nanos() as u64,
        server,
        // They stay awaited: what comes late is still checked, in its order.
        missing: echo.in_flight,
    })
}

fn report_slices(report: &mut Map<String, Value>, slices: &[Slice], first_us: Option<f64>) {
    let messages: u64 = slices.iter().map(|slice| slice.messages).sum();
    let seconds: f64 = slices.iter().map(|slice| slice.seconds).sum();
    let client_ns: u64 = slices.iter().map(|slice| slice.client_ns).sum();
    let missing: u64 = slices.iter().map(|slice| slice.missing).sum();
    report.insert("messages_count".into(), json!(messages));
    report.insert("missing_count".into(), json!(missing));
    report.insert("messages_per_second".into(), round(messages as f64 / seconds.max(1e-9)));
    report.insert("client_cpu_us_per_message".into(), per(client_ns as f64 / 1e3, messages));
    let mut us: Vec<f64> = slices.iter().filter_map(Slice::server_us_per_message).collect();
    us.sort_by(f64::total_cmp);
    let Some(middle) = median(us.clone()) else { return };
    report.insert("server_cpu_us_per_message_median".into(), round(middle));
    report.insert("server_cpu_us_per_message_min".into(), round(us[0]));
    report.insert("server_cpu_us_per_message_max".into(), round(us[us.len() - 1]));
    if let Some(first_us) = first_us {
        report.insert("ratio_to_first".into(), round(middle / first_us));
    }
    if let (Some((before, _)), Some((_, after))) =
        (slices[0].server, slices[slices.len() - 1].server)
    {
        report.insert("server_cpu_first_to_last_slice".into(), after.report_since(&before));
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

struct Echo {
    server_count: usize,
    clients: Vec<Talker>,
    messages: Messages,
    depth: u32,
    /// The server whose answers are answered with the next message.
    talking: Option<usize>,
    in_flight: u64,
    back: u64,
    faults: u64,
    /// By server; nanoseconds.
    latencies: Vec<Histogram<u64>>,
}

#[derive(Default)]
struct Talker {
    sequence: u32,
    /// When each message that is under way was queued, oldest first.
    awaited: VecDeque<(u32, Instant)>,
}

impl Echo {
    fn new(clients: &Clients, server_count: usize, count: u32) -> Echo {
        Echo {
            server_count,
            clients: (0..count).map(|_| Talker::default()).collect(),
            messages: Messages::new(&clients.traffic),
            depth: clients.depth,
            talking: None,
            in_flight: 0,
            back: 0,
            faults: 0,
            latencies: (0..server_count).map(|_| histogram::new()).collect(),
        }
    }

    /// Latencies of several servers are not told apart by second, so there are none.
    fn sample(&self, phase: &'static str, server: usize, engine: &Engine) -> Sample<'_> {
        let latency = (self.server_count == 1).then(|| &self.latencies[server]);
        let (sent, received) = (self.back + self.in_flight, self.back);
        Sample { sent, received, latency, ..Sample::of(phase, &engine.counts) }
    }

    /// Puts messages on the way until they are `depth`.
    fn start(&mut self, client: u32, now: Instant, out: &mut Vec<u8>) {
        for _ in self.clients[client as usize].awaited.len()..self.depth as usize {
            self.say(client, now, out);
        }
    }

    fn say(&mut self, client: u32, now: Instant, out: &mut Vec<u8>) {
        let talker = &mut self.clients[client as usize];
        talker.sequence = talker.sequence.wrapping_add(1);
        talker.awaited.push_back((talker.sequence, now));
        self.messages.write(client, talker.sequence, out);
        self.in_flight += 1;
    }
}

impl Scenario for Echo {
    fn on_open(&mut self, _client: u32, _now: Instant, _out: &mut Vec<u8>) {}

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if frame.opcode == PONG {
            return Ok(());
        }
        let Some((sequence, sent)) = self.clients[client as usize].awaited.pop_front() else {
            self.faults += 1;
            return Err("a message that nobody sent".into());
        };
        self.in_flight -= 1;
        if !self.messages.is_echo(frame, client, sequence) {
            self.faults += 1;
            return Err("an echo that is not what was sent".into());
        }
        self.back += 1;
        let latency = now.saturating_duration_since(sent).as_nanos() as u64;
        histogram::record(&mut self.latencies[client as usize % self.server_count], latency);
        if self.talking == Some(client as usize % self.server_count) {
            self.say(client, now, out);
        }
        Ok(())
    }

    fn on_end(&mut self, client: u32, _ending: &Ending) {
        let awaited = std::mem::take(&mut self.clients[client as usize].awaited);
        self.in_flight -= awaited.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_comes_up_and_every_server_once_in_each() {
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..100 {
            let mut order = shuffled(3, round);
            assert_eq!(order, shuffled(3, round), "a run can be repeated");
            seen.insert(order.clone());
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
        assert_eq!(seen.len(), 6);
    }
}
