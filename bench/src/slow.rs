//! Clients that try a server's patience, beside others that want to be served.
//!
//! Slow ones stop reading for a while and go on sending, as a consumer does that does not keep up:
//! what the server owes them piles up in the kernel's buffers, then in the server. Half-open ones
//! never finish their request head, and mute ones never answer anything once they are open: how
//! long are they kept?

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{self, Ending, Engine, Manners, Reasons, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{KernelMemory, ProcessMemory, round};
use crate::progress::{CLOSING, MEASURING, Sample};
use crate::standing::Standing;
use crate::traffic::Traffic;
use crate::websocket::{CLOSE, Frame};

/// Some clients stop reading for a while, or never answer; the others are measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// Connections that echo, the slow ones included.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: u32,
    /// Messages per second of all connections together, such as "10000/s".
    #[arg(long, default_value = "10000/s", value_parser = options::rate)]
    pub(crate) rate: u32,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    /// How many of the connections are slow, in percent.
    #[arg(long, default_value_t = 1.0, value_parser = percent)]
    pub(crate) slow_percent: f64,
    /// How long these read nothing.
    #[arg(long = "slow-seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) slow: Duration,
    /// Echo before that, measured; a second more goes before, unmeasured.
    #[arg(long = "before-seconds", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) before: Duration,
    /// Echo afterwards, when all read again.
    #[arg(long = "after-seconds", default_value = "5", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) after: Duration,
    /// The kernel's receive buffer of our connections. It is the first to fill when a client does
    /// not read; left to the kernel it grows to megabytes, and the server hears nothing for long.
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(2048..=16_777_216))]
    pub(crate) receive_buffer_bytes: u32,
    /// More peers, which never finish their request head.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) half_open: u32,
    /// More peers, which open and then never answer anything.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) mute: u32,
    /// At the end, wait up to this long more for the server to end those.
    #[arg(long = "patience-seconds-max", default_value = "0", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) patience_max: Duration,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("0 to 100".into()),
    }
}

const WARM_UP: Duration = Duration::from_secs(1);
const OPENING_TIMEOUT: Duration = Duration::from_secs(60);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what is under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a wait may keep us from looking at the stop flag.
const TURN: Duration = Duration::from_millis(50);
/// How often the memory is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    let mut options = options.clone();
    options.common.pids = watch.begin(&options.common)?;
    let options = &options;
    let target = options.common.target(&options.url)?;
    kernel::wake_on_time();
    let mut engine = Engine::new(Settings::new(
        vec![target.clone()],
        options.connections + options.half_open + options.mute,
        &options.common,
    ))?;
    engine.limit_receive_buffers(options.receive_buffer_bytes);
    let mut slow = Slow::new(options);
    for client in options.connections..engine.len() {
        engine.set_manners(client, slow.kind(client).manners());
    }
    // Only those that are to be open are waited for.
    let opening = Instant::now();
    while !engine.opening_is_over() && !stopped() && opening.elapsed() < OPENING_TIMEOUT {
        engine.open_more(Instant::now());
        engine.turn(&mut slow, TURN)?;
        watch.tick(&Sample::of("opening", &engine.counts));
    }
    if engine.counts.opened < u64::from(options.connections + options.mute) && !stopped() {
        let failed = engine.counts.failed.report();
        return Err(io::Error::other(format!("not all connections could be opened: {failed}")));
    }

    let started_at = SystemTime::now() + WARM_UP;
    slow.standing.start("warm-up");
    let mut step = Step::WarmUp;
    let mut complete = true;
    let mut memory = Memory::new(&options.common.pids);
    loop {
        if stopped() && complete && !matches!(step, Step::Drain | Step::Patience) {
            complete = false;
            slow.standing.stop();
            step = Step::Drain;
        }
        let now_ns = slow.standing.now_ns();
        let in_step = Duration::from_nanos(now_ns - slow.standing.period_began_ns());
        match step {
            Step::WarmUp if in_step >= WARM_UP => {
                slow.standing.enter("before");
                step = Step::Before;
            }
            Step::Before if in_step >= options.before => {
                memory.start();
                slow.standing.enter("during");
                (0..slow.slow_count).for_each(|client| engine.pause_reading(client));
                step = Step::During;
            }
            Step::During if in_step >= options.slow => {
                memory.sample();
                slow.standing.enter("after");
                (0..slow.slow_count).for_each(|client| engine.resume_reading(client));
                step = Step::After;
            }
            Step::After if in_step >= options.after => {
                slow.standing.stop();
                step = Step::Drain;
            }
            Step::Drain if slow.is_quiet() || in_step >= DRAIN || !complete => {
                step = Step::Patience;
            }
            Step::Patience => {
                let is_over = slow.waiting_for_end == 0 || in_step >= DRAIN + options.patience_max;
                if is_over || options.patience_max.is_zero() || stopped() {
                    break;
                }
            }
            _ => {}
        }
        memory.sample_now_and_then();
        slow.standing.send_due(&mut engine);
        let wait = slow.standing.wait().min(TURN);
        engine.turn(&mut slow, wait)?;
        watch.tick(&Sample::of(MEASURING, &engine.counts));
    }
    watch.tick(&Sample::of(CLOSING, &engine.counts));
    // One that was stopped is not left unread: its end, if there was one, is told below.
    (0..slow.slow_count).for_each(|client| engine.resume_reading(client));
    slow.standing.count_lost();
    let caught_up = (0..slow.slow_count)
        .map(|client| (engine.is_open(client), slow.standing.talker(client)))
        .filter(|(is_open, talker)| *is_open && talker.back == talker.sent)
        .count();
    let held_back: u64 =
        (0..slow.slow_count).map(|client| u64::from(slow.standing.talker(client).held_back)).sum();
    let others_ended = slow.others_ended.clone();
    let slow_ended = slow.slow_ended.clone();
    let half_open = slow.half_open.report(options.half_open);
    let mute = slow.mute.report(options.mute);
    for client in options.connections..engine.len() {
        engine.abort(&mut slow, client);
    }
    engine.close_all(&mut slow, CLOSING_TIMEOUT)?;

    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("slow, open loop: latency is that of those that are not slow"));
    put("address", json!(target.address.to_string()));
    put("complete", json!(complete));
    let ok = slow.standing.faults == 0 && others_ended.total() == 0;
    put("ok", json!(ok));
    put("connections", json!(options.connections));
    put("offered_per_second", json!(options.rate));
    put("messages", slow.standing.messages_report());
    put("receive_buffer_bytes", json!(options.receive_buffer_bytes));
    put("slow_count", json!(slow.slow_count));
    put("slow_seconds", round(options.slow.as_secs_f64()));
    put("slow_all_in_order_count", json!(caught_up));
    put("slow_ended_count", json!(slow_ended.total()));
    put("slow_ended_by_reason", slow_ended.report());
    let neither = u64::from(slow.slow_count) - (caught_up as u64 + slow_ended.total());
    put("slow_still_behind_count", json!(neither));
    put("slow_held_back_messages_count", json!(held_back));
    put("others_ended_count", json!(others_ended.total()));
    put("others_ended_by_reason", others_ended.report());
    put("others_lost_count", json!(slow.standing.lost()));
    put("faults_count", json!(slow.standing.faults));
    put("memory", memory.report(u64::from(slow.slow_count)));
    put("half_open", half_open);
    put("mute", mute);
    engine.put_transport(&mut report);
    const PERIODS: [&str; 3] = ["before", "during", "after"];
    slow.standing.put_periods(&mut report, &PERIODS);
    let mut histograms: Vec<(Cow<'static, str>, _)> = slow
        .standing
        .into_histograms()
        .filter(|(name, _)| PERIODS.contains(name))
        .map(|(name, histogram)| (name.into(), histogram))
        .collect();
    // The one to quote is of the time when some were slow.
    histograms.sort_by_key(|(name, _)| name != "during");
    let measured = options.before + options.slow + options.after;
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    WarmUp,
    Before,
    During,
    After,
    Drain,
    Patience,
}

/// Clients in the order of their indices: slow ones, others, half-open ones, mute ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Slow,
    Other,
    HalfOpen,
    Mute,
}

impl Kind {
    fn manners(self) -> Manners {
        match self {
            Kind::Slow | Kind::Other => Manners::Proper,
            Kind::HalfOpen => Manners::HalfRequest,
            Kind::Mute => Manners::Mute,
        }
    }
}

struct Slow {
    standing: Standing,
    slow_count: u32,
    connections: u32,
    first_mute: u32,
    slow_ended: Reasons,
    others_ended: Reasons,
    half_open: Peers,
    mute: Peers,
    /// Close frames that mute peers have had, until their connection ends.
    close_frames: VecDeque<(u32, String)>,
    /// Half-open and mute ones that the server has not ended.
    waiting_for_end: u32,
}

/// What became of half-open or mute peers.
struct Peers {
    /// When opening was begun: their times count from then.
    since: Instant,
    ended: Reasons,
    kept: Histogram<u64>,
}

impl Peers {
    fn new() -> Peers {
        Peers { since: Instant::now(), ended: Reasons::default(), kept: histogram::new() }
    }

    fn on_end(&mut self, reason: &str) {
        self.ended.add(reason);
        histogram::record(&mut self.kept, self.since.elapsed().as_nanos() as u64);
    }

    fn report(&self, count: u32) -> Value {
        json!({
            "count": count,
            "ended_by_server_count": self.ended.total(),
            "ended_by_reason": self.ended.report(),
            "still_there_at_end_count": u64::from(count) - self.ended.total(),
            "kept_us": histogram::report(&self.kept),
        })
    }
}

impl Slow {
    fn new(options: &Options) -> Slow {
        let Options { connections, rate, traffic, common, .. } = options;
        let share = f64::from(*connections) * options.slow_percent / 100.0;
        // Asked for any, there is one.
        let slow_count = share.ceil() as u32;
        Slow {
            standing: Standing::new(*connections, slow_count, *rate, traffic, common),
            slow_count,
            connections: *connections,
            first_mute: connections + options.half_open,
            slow_ended: Reasons::default(),
            others_ended: Reasons::default(),
            half_open: Peers::new(),
            mute: Peers::new(),
            close_frames: VecDeque::new(),
            waiting_for_end: options.half_open + options.mute,
        }
    }

    fn kind(&self, client: u32) -> Kind {
        match client {
            _ if client < self.slow_count => Kind::Slow,
            _ if client < self.connections => Kind::Other,
            _ if client < self.first_mute => Kind::HalfOpen,
            _ => Kind::Mute,
        }
    }

    /// Whether everything that was sent is back.
    fn is_quiet(&self) -> bool {
        self.standing.all_back() && self.standing.apart_pending == 0
    }
}

impl Scenario for Slow {
    fn on_open(&mut self, client: u32, _now: Instant, _out: &mut Vec<u8>) {
        if self.standing.has(client) {
            self.standing.on_open(client);
        }
    }

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if self.standing.has(client) {
            return self.standing.on_frame(client, frame, now);
        }
        if frame.opcode == CLOSE {
            self.close_frames.push_back((client, engine::close_reason(frame.payload)));
        }
        Ok(())
    }

    fn on_end(&mut self, client: u32, ending: &Ending) {
        let kind = self.kind(client);
        if matches!(kind, Kind::Slow | Kind::Other) && !matches!(ending, Ending::Failed(_)) {
            self.standing.on_end(client);
        }
        let (Ending::Failed(reason) | Ending::Early(reason)) = ending else { return };
        match kind {
            Kind::Slow => self.slow_ended.add(reason),
            Kind::Other => self.others_ended.add(reason),
            Kind::HalfOpen => {
                self.waiting_for_end -= 1;
                self.half_open.on_end(reason);
            }
            Kind::Mute => {
                self.waiting_for_end -= 1;
                let said = self.close_frames.iter().position(|(whose, _)| *whose == client);
                let said = said.and_then(|index| self.close_frames.remove(index));
                match said {
                    Some((_, close)) => self.mute.on_end(&format!("{close}, then: {reason}")),
                    None => self.mute.on_end(reason),
                }
            }
        }
    }
}

/// The memory of the server and of the kernel's TCP, while some do not read.
struct Memory {
    pids: Vec<u32>,
    started: bool,
    sampled: Instant,
    rss_before: Option<u64>,
    rss_max: Option<u64>,
    tcp_before: Option<u64>,
    tcp_max: Option<u64>,
    kernel_before: KernelMemory,
    kernel_largest: Option<KernelMemory>,
    samples: u64,
}

impl Memory {
    fn new(pids: &[u32]) -> Memory {
        Memory {
            pids: pids.to_vec(),
            started: false,
            sampled: Instant::now(),
            rss_before: None,
            rss_max: None,
            tcp_before: None,
            tcp_max: None,
            kernel_before: KernelMemory::read(),
            kernel_largest: None,
            samples: 0,
        }
    }

    /// What is used now is what growth counts from.
    fn start(&mut self) {
        self.started = true;
        self.kernel_before = KernelMemory::read();
        self.rss_before = rss_bytes(&self.pids);
        self.tcp_before = tcp_bytes();
        self.sample();
    }

    fn sample_now_and_then(&mut self) {
        if self.started && self.sampled.elapsed() >= SAMPLE {
            self.sample();
        }
    }

    fn sample(&mut self) {
        self.sampled = Instant::now();
        self.samples += 1;
        self.rss_max = self.rss_max.max(rss_bytes(&self.pids));
        let tcp = tcp_bytes();
        if tcp >= self.tcp_max {
            self.tcp_max = tcp;
            // A longer look, at the height of it; seldom, for it takes a millisecond.
            if self.kernel_largest.is_none() || self.samples.is_multiple_of(10) {
                self.kernel_largest = Some(KernelMemory::read());
            }
        }
    }

    fn report(&self, slow_count: u64) -> Value {
        let growth = |before: Option<u64>, max: Option<u64>| {
            before.zip(max).map(|(before, max)| max.saturating_sub(before))
        };
        let kernel = self.kernel_largest.as_ref();
        json!({
            "samples_count": self.samples,
            "server_rss_before_bytes": self.rss_before,
            "server_rss_max_bytes": self.rss_max,
            "server_rss_growth_max_bytes": growth(self.rss_before, self.rss_max),
            "tcp_buffers_before_bytes": self.tcp_before,
            "tcp_buffers_max_bytes": self.tcp_max,
            "tcp_buffers_growth_max_bytes": growth(self.tcp_before, self.tcp_max),
            "kernel_by_slow_connection":
                kernel.map(|kernel| kernel.report_growth(&self.kernel_before, slow_count)),
        })
    }
}

/// Resident memory of the processes together.
fn rss_bytes(pids: &[u32]) -> Option<u64> {
    if pids.is_empty() {
        return None;
    }
    pids.iter().map(|pid| ProcessMemory::read_resident(*pid)).sum()
}

/// What TCP has in its buffers, of both ends of each connection on this machine.
fn tcp_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = text.lines().find(|line| line.starts_with("TCP:"))?;
    let pages: u64 = line.rsplit_once("mem ")?.1.trim().parse().ok()?;
    Some(pages * 4096)
}
