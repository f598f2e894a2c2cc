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
use std::ffi::CString;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::proc::{CpuTime, per, round};
use crate::target::Target;
use crate::websocket::{self, BINARY, Frame, PONG, TEXT};

/// What to do.
pub(crate) struct Options {
    pub(crate) servers: Vec<Server>,
    /// Connections to each server.
    pub(crate) connections: u32,
    /// Payload of a message.
    pub(crate) message_bytes: usize,
    /// Messages under way on each connection.
    pub(crate) depth: u32,
    pub(crate) binary: bool,
    /// Before anything is measured, on each server.
    pub(crate) warm_up: Duration,
    /// Slices for each server.
    pub(crate) slices: u32,
    pub(crate) slice: Duration,
    pub(crate) congestion: Option<CString>,
}

/// One that is measured.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) pid: Option<u32>,
}

const OPENING_MAX: u32 = 256;
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long messages under way may take to come back at the end of a slice.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);
const TURN: Duration = Duration::from_millis(50);

/// Runs it. Ends early, with what there is, when `stop` becomes true.
pub(crate) fn run(options: &Options, stop: &AtomicBool) -> io::Result<Value> {
    let stopped = || stop.load(Ordering::Relaxed);
    let mut engine = Engine::new(Settings {
        targets: options.servers.iter().map(|server| server.target.clone()).collect(),
        clients_per_target: options.connections,
        opening_max: OPENING_MAX,
        opens_per_second_max: None,
        open_timeout: Duration::from_secs(10),
        keep_buffers: true,
        buffer_bytes: 64 * 1024,
        slots_per_ring_max: u32::MAX,
        congestion: options.congestion.clone(),
    })?;
    let mut echo = Echo::new(options, engine.len());
    engine.open_all(&mut echo, OPENING_TIMEOUT, &stopped)?;

    let mut slices: Vec<Vec<Slice>> = options.servers.iter().map(|_| Vec::new()).collect();
    let rounds = if options.warm_up.is_zero() { 0..options.slices } else { 0..options.slices + 1 };
    let warm_up_rounds = rounds.end - options.slices;
    for round in rounds {
        let warm_up = round < warm_up_rounds;
        // In another order each round: what follows a busy server, or precedes one, is not always
        // the same one.
        for index in shuffled(options.servers.len(), u64::from(round)) {
            if stopped() {
                break;
            }
            let server = &options.servers[index];
            let length = if warm_up { options.warm_up } else { options.slice };
            let slice = run_slice(&mut engine, &mut echo, index, server, length, &stopped)?;
            if warm_up {
                echo.latencies[index].reset();
            } else {
                slices[index].push(slice);
            }
        }
    }

    // Ends that come from here on are ours.
    let early = engine.counts.early.clone();
    engine.close_all(&mut echo, CLOSING_TIMEOUT)?;

    let first_us = median(slices[0].iter().filter_map(Slice::server_us_per_message).collect());
    let servers = options.servers.iter().zip(&slices).enumerate();
    let servers: Vec<Value> = servers
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
    Ok(json!({
        "scenario": "echo, closed loop: a connection sends the next message when the last is back",
        "complete": !stopped(),
        "connections_per_server": options.connections,
        "message_bytes": options.message_bytes,
        "depth": options.depth,
        "slices": options.slices,
        "slice_seconds": round(options.slice.as_secs_f64()),
        "congestion_control":
            options.congestion.as_ref().map_or("the system's".into(), |c| c.to_string_lossy()),
        "faults_count": faults,
        "ended_early_count": early.total(),
        "ended_early_by_reason": early.report(),
        "servers": servers,
    }))
}

/// The indices below `count` in an order that `seed` decides.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
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
    server: &Server,
    length: Duration,
    stopped: &impl Fn() -> bool,
) -> io::Result<Slice> {
    let read_cpu = || server.pid.and_then(CpuTime::read);
    let (messages, client) = (echo.messages, kernel::own_cpu_time());
    let before = read_cpu();
    let started = Instant::now();
    echo.talking = Some(index);
    let clients = (0..engine.len()).skip(index).step_by(echo.server_count);
    for client in clients {
        engine.say(client, |out| echo.start(client, started, out));
    }
    while started.elapsed() < length && !stopped() {
        engine.turn(echo, TURN.min(length))?;
    }
    echo.talking = None;
    let drain = Instant::now();
    while echo.in_flight > 0 && drain.elapsed() < DRAIN_TIMEOUT {
        engine.turn(echo, TURN)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let server = before.zip(read_cpu());
    Ok(Slice {
        messages: echo.messages - messages,
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

fn median(mut values: Vec<f64>) -> Option<f64> {
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
    /// Letters, so that it is text; each message is stamped over its beginning.
    filler: Vec<u8>,
    /// Where a message is put together.
    message: Vec<u8>,
    opcode: u8,
    depth: u32,
    /// The server whose answers are answered with the next message.
    talking: Option<usize>,
    in_flight: u64,
    messages: u64,
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
    fn new(options: &Options, clients: u32) -> Echo {
        Echo {
            server_count: options.servers.len(),
            clients: (0..clients).map(|_| Talker::default()).collect(),
            filler: (0..options.message_bytes).map(|i| b'a' + (i % 26) as u8).collect(),
            message: Vec::with_capacity(options.message_bytes),
            opcode: if options.binary { BINARY } else { TEXT },
            depth: options.depth,
            talking: None,
            in_flight: 0,
            messages: 0,
            faults: 0,
            latencies: options.servers.iter().map(|_| histogram::new()).collect(),
        }
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
        write_message(&mut self.message, &self.filler, client, talker.sequence);
        let mask = talker.sequence.wrapping_mul(0x9E37_79B9) ^ client;
        websocket::encode_frame(out, self.opcode, &self.message, mask);
        self.in_flight += 1;
    }
}

/// The message of a number: the filler, with the number in letters over its beginning.
pub(crate) fn write_message(message: &mut Vec<u8>, filler: &[u8], client: u32, sequence: u32) {
    message.clear();
    message.extend_from_slice(filler);
    let number = u64::from(sequence) << 32 | u64::from(client);
    for (i, byte) in message.iter_mut().take(16).enumerate() {
        *byte = b'A' + (number >> (4 * i) & 0xF) as u8;
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
        write_message(&mut self.message, &self.filler, client, sequence);
        if frame.opcode != self.opcode || frame.payload != self.message {
            self.faults += 1;
            return Err("an echo that is not what was sent".into());
        }
        self.messages += 1;
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
