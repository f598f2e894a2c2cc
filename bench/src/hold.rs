//! Opens many connections, holds them, sees that they still live, and closes them in order.
//!
//! What it tells: how fast a server opens, what an idle connection costs in its memory and the
//! kernel's, and whether any was lost on the way.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Scenario, Settings};
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{self, CpuTime, KernelMemory, ProcessMemory, per, round};
use crate::websocket::{self, Frame, PING, PONG};

/// Opens many connections, holds them, asks a sample whether they live, closes them in order.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    pub(crate) connections: u32,
    /// How long to hold once all are open.
    #[arg(long = "seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) hold: Duration,
    /// Opens per second, such as "5000/s"; as fast as the server answers when not given.
    #[arg(long, value_parser = options::rate)]
    pub(crate) rate: Option<u32>,
    /// Opens under way at once.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) opening_max: u32,
    /// For one connect and handshake.
    #[arg(long = "open-timeout-seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) open_timeout: Duration,
    /// For opening all.
    #[arg(long = "opening-seconds-max", default_value = "120", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) opening_timeout: Duration,
    /// For closing all.
    #[arg(long = "closing-seconds-max", default_value = "60", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) closing_timeout: Duration,
    /// Connections, picked at random, that are pinged before closing.
    #[arg(long, default_value_t = 1000)]
    pub(crate) sample: u32,
    /// Use more rings than RLIMIT_NOFILE asks for: no ring holds more than this.
    #[arg(long, default_value_t = u32::MAX, value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) slots_per_ring_max: u32,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// How long the sample may take to answer.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(50);

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    options.common.pin()?;
    let target = options.common.target(&options.url)?;
    let pids = &options.common.pids;
    let own = std::process::id();
    let read_cpu = || CpuTime::read_all(pids);
    // Before the engine: its tables are part of what a client costs us.
    let own_before = ProcessMemory::read(own);
    let mut engine = Engine::new(Settings {
        targets: vec![target.clone()],
        clients_per_target: options.connections,
        opening_max: options.opening_max,
        opens_per_second_max: options.rate,
        open_timeout: options.open_timeout,
        keep_buffers: false,
        // Small: what idle clients receive is Pings, and each ring has its own.
        buffer_bytes: 8 * 1024,
        slots_per_ring_max: options.slots_per_ring_max,
        congestion: options.common.congestion.clone(),
    })?;
    let mut hold = Hold::default();
    let server_before = ProcessMemory::read_all(pids);
    let kernel_before = KernelMemory::read();
    let sockets_before = proc::socket_counts();
    let cpu_before = read_cpu();

    let started_at = SystemTime::now();
    let started = Instant::now();
    while !engine.opening_is_over() && !stopped() && started.elapsed() < options.opening_timeout {
        engine.open_more(Instant::now());
        // At a fixed rate, the next open may be due before anything happens.
        let wait = if options.rate.is_some() { 2 } else { 50 };
        engine.turn(&mut hold, Duration::from_millis(wait))?;
    }
    let opening = started.elapsed();
    let cpu_opened = read_cpu();

    let holding = Instant::now();
    while holding.elapsed() < options.hold && !stopped() {
        engine.turn(&mut hold, TURN.min(options.hold))?;
    }
    let held = holding.elapsed();
    let open_count = engine.counts.open;
    let server_after = ProcessMemory::read_all(pids);
    let own_after = ProcessMemory::read(own);
    let kernel_after = KernelMemory::read();
    let sockets_after = proc::socket_counts();
    let cpu_held = read_cpu();

    ask_sample(&mut engine, &mut hold, options.sample, &stopped)?;
    let early = engine.counts.early.clone();
    let closing = Instant::now();
    let close_asked = engine.counts.open;
    // After an interrupt too: closing in order is the polite way out, and it is bounded.
    engine.close_all(&mut hold, options.closing_timeout)?;
    let closing = closing.elapsed();

    let counts = &engine.counts;
    let peak = counts.opened_by_second.iter().max().copied().unwrap_or(0);
    let overall = counts.opened as f64 / opening.as_secs_f64();
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("hold"));
    put("url_path", json!(target.path));
    put("address", json!(target.address.to_string()));
    put("complete", json!(!stopped()));
    put("asked_count", json!(options.connections));
    put("opened_count", json!(counts.opened));
    put("failed_count", json!(counts.failed.total()));
    put("failed_by_reason", counts.failed.report());
    put(
        "not_tried_or_pending_count",
        json!(u64::from(options.connections) - counts.opened - counts.failed.total()),
    );
    put("opening_seconds", round(opening.as_secs_f64()));
    put("opens_per_second", round(overall));
    // A run below a second has no full second to look at.
    put("opens_per_second_peak", round(overall.max(f64::from(peak))));
    put("held_seconds", round(held.as_secs_f64()));
    put("open_count_at_end_of_hold", json!(open_count));
    put("pings_answered_count", json!(counts.pings_answered));
    put("ended_early_by_server_count", json!(early.total()));
    put("ended_early_by_reason", early.report());
    put(
        "sample",
        json!({
            "asked_count": hold.asked,
            "answered_count": hold.answered,
            "kind": "Ping with a payload, Pong with the same",
        }),
    );
    put(
        "closing",
        json!({
            "asked_count": close_asked,
            "closed_in_order_count": counts.closed_in_order,
            "failed_count": counts.early.total() - early.total(),
            "not_closed_in_time_count": counts.open,
            "seconds": round(closing.as_secs_f64()),
        }),
    );
    if let (Some(before), Some(after)) = (&server_before, &server_after) {
        let mut server = Map::new();
        server.insert("memory".into(), after.report_growth(before, open_count));
        if let (Some(before), Some(opened), Some(held)) = (cpu_before, cpu_opened, cpu_held) {
            let per_open = (opened.total_ns - before.total_ns) as f64 / 1e3;
            server.insert("cpu_us_per_open".into(), per(per_open, counts.opened));
            server.insert("cpu_while_opening".into(), opened.report_since(&before));
            server.insert("cpu_while_holding".into(), held.report_since(&opened));
        }
        put("server", Value::Object(server));
    }
    put(
        "client",
        json!({
            "rings": engine.ring_count(),
            "memory": own_after.report_growth(&own_before, open_count),
            "cpu_seconds": round(crate::kernel::own_cpu_time().as_secs_f64()),
        }),
    );
    put("kernel_memory", kernel_after.report_growth(&kernel_before, open_count));
    put("tcp_sockets", json!({ "before": sockets_before, "held": sockets_after }));
    engine.times.put(&mut report);
    engine.put_transport(&mut report);
    let histograms = engine.times.histograms();
    Ok(Outcome { figures: report, histograms, started_at, measured: opening })
}

/// Sends a Ping with a number on connections picked at random, and waits for the same number back.
fn ask_sample(
    engine: &mut Engine,
    hold: &mut Hold,
    sample: u32,
    stopped: &impl Fn() -> bool,
) -> io::Result<()> {
    let count = u64::from(engine.len());
    for pick in 0..u64::from(sample.min(engine.len())) {
        // A fixed sequence, so that a run can be repeated; a client picked twice is asked once.
        let client = (websocket::scramble(pick) % count) as u32;
        if hold.expected.contains_key(&client) {
            continue;
        }
        let number = websocket::scramble(pick ^ 0x5A5A_5A5A).to_be_bytes();
        let mask = websocket::scramble(pick) as u32;
        if engine.say(client, |out| websocket::encode_frame(out, PING, &number, mask)) {
            hold.expected.insert(client, number);
        }
    }
    hold.asked = hold.expected.len() as u64;
    let started = Instant::now();
    while !hold.expected.is_empty() && started.elapsed() < SAMPLE_TIMEOUT && !stopped() {
        engine.turn(hold, TURN)?;
    }
    Ok(())
}

#[derive(Default)]
struct Hold {
    /// The Pongs that are awaited.
    expected: HashMap<u32, [u8; 8]>,
    asked: u64,
    answered: u64,
}

impl Scenario for Hold {
    fn on_open(&mut self, _client: u32, _now: Instant, _out: &mut Vec<u8>) {}

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        _now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if frame.opcode != PONG {
            // A server that greets is welcome to.
            return Ok(());
        }
        // A Pong that was not asked for is legal (RFC 6455 §5.5.3).
        if let Some(number) = self.expected.get(&client) {
            if frame.payload != number {
                return Err("Pong with another payload than the Ping's".into());
            }
            self.expected.remove(&client);
            self.answered += 1;
        }
        Ok(())
    }

    fn on_end(&mut self, client: u32, _ending: &Ending) {
        self.expected.remove(&client);
    }
}
