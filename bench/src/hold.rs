//! Opens many connections, holds them, sees that they still live, and closes them in order.
//!
//! What it tells: how fast a server opens, what an idle connection costs in its memory and the
//! kernel's, and whether any was lost on the way.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Scenario, Settings, Times};
use crate::histogram;
use crate::kernel;
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{self, CpuTime, KernelMemory, ProcessMemory, per, round};
use crate::progress::{CLOSING, Sample};
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
    /// For opening all; when not given, what the rate takes (or 5000/s), and two minutes.
    #[arg(long = "opening-seconds-max", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) opening_timeout: Option<Duration>,
    /// For closing all; when not given, what 5000/s takes, and a minute.
    #[arg(long = "closing-seconds-max", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) closing_timeout: Option<Duration>,
    /// While holding, close connections in order at this rate, one after the other, and open each
    /// again at once, such as "500/s".
    #[arg(long, value_parser = options::rate)]
    pub(crate) churn: Option<u32>,
    /// While holding, ping so many connections, other ones each time, within this time, evenly: as
    /// many as --sample says.
    #[arg(long = "ping-every", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) ping_every: Option<Duration>,
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
/// The least that is worth waiting for.
const TURN_MIN: Duration = Duration::from_micros(200);

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    let pids = &watch.begin(&options.common)?;
    let target = options.common.target(&options.url)?;
    let own = std::process::id();
    let read_cpu = || CpuTime::read_all(pids);
    // Before the engine: its tables are part of what a client costs us.
    let own_before = ProcessMemory::read(own);
    let mut engine = Engine::new(Settings {
        opening_max: options.opening_max,
        opens_per_second_max: options.rate,
        open_timeout: options.open_timeout,
        // Small: what idle clients receive is Pings, and each ring has its own.
        buffer_bytes: 8 * 1024,
        slots_per_ring_max: options.slots_per_ring_max,
        ..Settings::new(vec![target.clone()], options.connections, &options.common)
    })?;
    let mut hold = Hold::new();
    kernel::wake_on_time();
    // A million takes its time.
    let at_rate = |rate: u32| Duration::from_secs(u64::from(options.connections / rate));
    let opening_timeout = options
        .opening_timeout
        .unwrap_or_else(|| Duration::from_secs(120) + at_rate(options.rate.unwrap_or(5000)));
    let closing_timeout =
        options.closing_timeout.unwrap_or_else(|| Duration::from_secs(60) + at_rate(5000));
    // At a fixed rate, the next open may be due before anything happens.
    let opening_turn = match options.rate {
        Some(rate) => Duration::from_secs(1).div_f64(f64::from(rate)).clamp(TURN_MIN, TURN),
        None => TURN,
    };
    let server_before = ProcessMemory::read_all(pids);
    let kernel_before = KernelMemory::read();
    let sockets_before = proc::socket_counts();
    let cpu_before = read_cpu();

    let started_at = SystemTime::now();
    let started = Instant::now();
    while !engine.opening_is_over() && !stopped() && started.elapsed() < opening_timeout {
        engine.open_more(Instant::now());
        engine.turn(&mut hold, opening_turn)?;
        watch.tick(&Sample::of("opening", &engine.counts));
    }
    let opening = started.elapsed();
    let cpu_opened = read_cpu();
    watch.ready()?;
    let ramp = engine.counts.clone();
    let opening_times = std::mem::replace(&mut engine.times, Times::new());

    let holding = Instant::now();
    hold.begin(options, holding);
    while holding.elapsed() < options.hold && !stopped() {
        let wait = hold.keep_busy(&mut engine);
        engine.turn(&mut hold, wait.min(TURN).min(options.hold))?;
        let left = Some(options.hold.saturating_sub(holding.elapsed()));
        watch.tick(&Sample { left, ..Sample::of("holding", &engine.counts) });
    }
    watch.tick(&Sample::of(CLOSING, &engine.counts));
    let held = holding.elapsed();
    hold.finish_churn(&mut engine, options.open_timeout, &stopped)?;
    let churn_steps = std::mem::replace(&mut engine.times, Times::new());
    let open_count = engine.counts.open;
    let server_after = ProcessMemory::read_all(pids);
    let own_after = ProcessMemory::read(own);
    let kernel_after = KernelMemory::read();
    let sockets_after = proc::socket_counts();
    let cpu_held = read_cpu();

    ask_sample(&mut engine, &mut hold, options.sample, &stopped)?;
    let early = engine.counts.early.clone();
    let closing = Instant::now();
    let closed_before = engine.counts.closed_in_order;
    let close_asked = engine.counts.open;
    // After an interrupt too: closing in order is the polite way out, and it is bounded.
    engine.close_all(&mut hold, closing_timeout)?;
    let closing = closing.elapsed();

    let counts = &engine.counts;
    let peak = ramp.opened_by_second.iter().max().copied().unwrap_or(0);
    let overall = ramp.opened as f64 / opening.as_secs_f64();
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("hold"));
    put("url_path", json!(target.path));
    put("address", json!(target.address.to_string()));
    put("complete", json!(!stopped()));
    put("asked_count", json!(options.connections));
    put("opened_count", json!(ramp.opened));
    put("failed_count", json!(ramp.failed.total()));
    put("failed_by_reason", ramp.failed.report());
    put(
        "not_tried_or_pending_count",
        json!(u64::from(options.connections) - ramp.opened - ramp.failed.total()),
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
            "closed_in_order_count": counts.closed_in_order - closed_before,
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
            server.insert("cpu_us_per_open".into(), per(per_open, ramp.opened));
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
    opening_times.put(&mut report);
    engine.put_transport(&mut report);
    let mut histograms = opening_times.histograms();
    if let Some(rate) = options.churn {
        let mut steps = Map::new();
        churn_steps.put(&mut steps);
        let mut failed = engine.counts.failed.clone();
        failed.subtract(&ramp.failed);
        let churn = json!({
            "offered_per_second": rate,
            "due_count": hold.churned.due,
            "back_count": hold.churned.back,
            "skipped_count": hold.churned.skipped,
            "unfinished_count": hold.churned.unfinished,
            "failed_by_reason": failed.report(),
            "close_and_open_us": histogram::report(&hold.churn_times),
            "opens": steps,
        });
        report.insert("churn".into(), churn);
        histograms.push(("churn".into(), hold.churn_times));
    }
    if options.ping_every.is_some() {
        let pings = json!({
            "asked_count": hold.pinged.asked,
            "answered_count": hold.ping_rtt.len(),
            "skipped_count": hold.pinged.skipped,
            "rtt_us": histogram::report(&hold.ping_rtt),
        });
        report.insert("pings".into(), pings);
        histograms.push(("ping-rtt".into(), hold.ping_rtt));
    }
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
        let number = websocket::scramble(pick ^ 0x5A5A_5A5A);
        if hold.ping(engine, client, number, None) {
            hold.asked += 1;
        }
    }
    let started = Instant::now();
    while hold.answered < hold.asked - hold.sample_lost
        && started.elapsed() < SAMPLE_TIMEOUT
        && !stopped()
    {
        engine.turn(hold, TURN)?;
    }
    Ok(())
}

struct Hold {
    /// The Pongs that are awaited.
    expected: HashMap<u32, Awaited>,
    /// Of the sample before closing.
    asked: u64,
    answered: u64,
    /// Asked, and ended before it could answer.
    sample_lost: u64,
    pings: Option<Pace>,
    pinged: Pinged,
    ping_rtt: Histogram<u64>,
    churn: Option<Pace>,
    churned: Churned,
    /// Clients that are being closed and opened again, and when that was due.
    churning: HashMap<u32, Instant>,
    /// Those of them that can be opened.
    to_open: Vec<u32>,
    churn_times: Histogram<u64>,
}

struct Awaited {
    number: [u8; 8],
    /// When the Ping was due, of one that is sent while holding.
    due: Option<Instant>,
}

#[derive(Default)]
struct Pinged {
    asked: u64,
    /// Not open, or the last Ping is not answered.
    skipped: u64,
}

/// `due = back + skipped + unfinished`
#[derive(Default)]
struct Churned {
    due: u64,
    back: u64,
    /// Not open then, or too many were under way.
    skipped: u64,
    unfinished: u64,
}

/// Something that is due again and again, at equal distances.
struct Pace {
    start: Instant,
    every: Duration,
    next: u32,
}

impl Pace {
    fn due(&self) -> Instant {
        self.start + self.every * self.next
    }
}

/// Pings, or churning clients, under way at once. What comes due beyond is skipped.
const UNDER_WAY_MAX: usize = 65_536;
/// Of either, begun in one turn.
const PER_TURN: usize = 64;

impl Hold {
    fn new() -> Hold {
        Hold {
            expected: HashMap::new(),
            asked: 0,
            answered: 0,
            sample_lost: 0,
            pings: None,
            pinged: Pinged::default(),
            ping_rtt: histogram::new(),
            churn: None,
            churned: Churned::default(),
            churning: HashMap::new(),
            to_open: Vec::new(),
            churn_times: histogram::new(),
        }
    }

    /// All are open: what is to be done while holding begins.
    fn begin(&mut self, options: &Options, start: Instant) {
        let pace = |every| Pace { start, every, next: 0 };
        self.churn = options.churn.map(|rate| pace(Duration::from_secs(1) / rate));
        let sample = options.sample.clamp(1, options.connections);
        // A microsecond apart is as often as makes sense.
        self.pings =
            options.ping_every.map(|time| pace((time / sample).max(Duration::from_micros(1))));
    }

    /// Pings and churns what is due; says how long until more is.
    fn keep_busy(&mut self, engine: &mut Engine) -> Duration {
        let now = Instant::now();
        let mut wait = Duration::MAX;
        // Taken out, so that `self` can be used beside it; put back below.
        if let Some(mut pace) = self.pings.take() {
            for _ in 0..PER_TURN {
                if pace.due() > now {
                    break;
                }
                // Half the way round from where it churns: who is being closed answers no Ping.
                let client = (pace.next % engine.len() + engine.len() / 2) % engine.len();
                let number = websocket::scramble(u64::from(pace.next));
                if self.ping(engine, client, number, Some(pace.due())) {
                    self.pinged.asked += 1;
                } else {
                    self.pinged.skipped += 1;
                }
                pace.next += 1;
            }
            wait = wait.min(pace.due().saturating_duration_since(now));
            self.pings = Some(pace);
        }
        if let Some(mut pace) = self.churn.take() {
            for _ in 0..PER_TURN {
                if pace.due() > now {
                    break;
                }
                let client = pace.next % engine.len();
                self.churned.due += 1;
                if engine.is_open(client) && self.churning.len() < UNDER_WAY_MAX {
                    self.churning.insert(client, pace.due());
                    engine.start_close(client);
                } else {
                    self.churned.skipped += 1;
                }
                pace.next += 1;
            }
            wait = wait.min(pace.due().saturating_duration_since(now));
            self.churn = Some(pace);
        }
        self.open_again(engine);
        wait
    }

    fn open_again(&mut self, engine: &mut Engine) {
        let now = Instant::now();
        for client in self.to_open.drain(..) {
            engine.open(client, now);
        }
    }

    /// Waits until those that were closed are open again.
    fn finish_churn(
        &mut self,
        engine: &mut Engine,
        timeout: Duration,
        stopped: &impl Fn() -> bool,
    ) -> io::Result<()> {
        (self.churn, self.pings) = (None, None);
        let started = Instant::now();
        while !self.churning.is_empty() && started.elapsed() < timeout && !stopped() {
            self.open_again(engine);
            engine.turn(self, TURN_MIN)?;
        }
        self.churned.unfinished = self.churned.due - self.churned.back - self.churned.skipped;
        // Who comes back later does not count.
        self.churning.clear();
        Ok(())
    }

    /// Pings a client that is open and has answered its last Ping; says whether.
    fn ping(
        &mut self,
        engine: &mut Engine,
        client: u32,
        number: u64,
        due: Option<Instant>,
    ) -> bool {
        if self.expected.contains_key(&client) || self.expected.len() >= UNDER_WAY_MAX {
            return false;
        }
        let number = number.to_be_bytes();
        let mask = u32::from_be_bytes([number[0], number[1], number[2], number[3]]) ^ client;
        let is_said = engine.say(client, |out| websocket::encode_frame(out, PING, &number, mask));
        if is_said {
            self.expected.insert(client, Awaited { number, due });
        }
        is_said
    }
}

impl Scenario for Hold {
    fn on_open(&mut self, client: u32, now: Instant, _out: &mut Vec<u8>) {
        if let Some(due) = self.churning.remove(&client) {
            self.churned.back += 1;
            let time = now.saturating_duration_since(due);
            histogram::record(&mut self.churn_times, time.as_nanos() as u64);
        }
    }

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if frame.opcode != PONG {
            // A server that greets is welcome to.
            return Ok(());
        }
        // A Pong that was not asked for is legal (RFC 6455 §5.5.3).
        if let Some(Awaited { number, due }) = self.expected.get(&client) {
            if frame.payload != number {
                return Err("Pong with another payload than the Ping's".into());
            }
            match due {
                Some(due) => {
                    let time = now.saturating_duration_since(*due);
                    histogram::record(&mut self.ping_rtt, time.as_nanos() as u64);
                }
                None => self.answered += 1,
            }
            self.expected.remove(&client);
        }
        Ok(())
    }

    fn on_end(&mut self, client: u32, ending: &Ending) {
        // Not tried again: a server that refuses would be asked without end.
        if let Ending::Failed(_) = ending {
            self.churning.remove(&client);
        }
        if let Some(Awaited { due: None, .. }) = self.expected.remove(&client) {
            self.sample_lost += 1;
        }
    }

    fn on_free(&mut self, client: u32) {
        if self.churning.contains_key(&client) {
            self.to_open.push(client);
        }
    }
}
