//! Many clients lose their connections at once and all come back: how long until they are up, and
//! what do those see of it that stood by?
//!
//! A client's time counts from the instant at which it means to connect (the cut, and its share of
//! `--spread`), through refusals, back-off and waiting for its turn, until the handshake is done.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Reasons, Scenario, Settings, Times};
use crate::histogram;
use crate::kernel;
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{per, round};
use crate::progress::{CLOSING, MEASURING, Sample};
use crate::standing::Standing;
use crate::traffic::Traffic;
use crate::websocket::{self, Frame};

/// Cuts many connections at once and lets them reconnect, beside others that echo all the while.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// Connections that stay, and echo all the while.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) standing: u32,
    /// Messages per second of the standing ones together, such as "1000/s".
    #[arg(long, default_value = "1000/s", value_parser = options::rate)]
    pub(crate) rate: u32,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    /// Connections that are cut and come back.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: u32,
    /// Who cuts them.
    #[arg(long, default_value = "tool")]
    pub(crate) cut_by: CutBy,
    /// With --cut-by server: how long to wait for the first connection to end.
    #[arg(long = "cut-seconds-max", default_value = "60", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) cut_timeout: Duration,
    /// They come back spread over this time evenly, instead of all at once.
    #[arg(long = "spread", default_value = "0", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) spread: Duration,
    /// After a failed attempt, wait so long (and up to half of it more), twice as long each time.
    #[arg(long = "back-off-seconds", default_value = "0.1", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) back_off: Duration,
    /// But no longer than this.
    #[arg(long = "back-off-seconds-max", default_value = "5", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) back_off_max: Duration,
    /// Attempts of one client; then it is given up.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) attempts_max: u32,
    /// Connects and handshakes under way at once.
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) opening_max: u32,
    /// For one connect and handshake.
    #[arg(long = "open-timeout-seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) open_timeout: Duration,
    /// Echo alone, measured, before the cut; a second more goes before, unmeasured.
    #[arg(long = "before-seconds", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) before: Duration,
    /// For all to be up again.
    #[arg(long = "storm-seconds-max", default_value = "60", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) storm_max: Duration,
    /// Echo, with all up again.
    #[arg(long = "after-seconds", default_value = "3", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) after: Duration,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Who ends the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CutBy {
    /// The tool resets them; the standing ones stay.
    Tool,
    /// The server, which you restart when the tool says so. The standing ones come back too.
    Server,
}

const WARM_UP: Duration = Duration::from_secs(1);
const OPENING_TIMEOUT: Duration = Duration::from_secs(120);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long what is under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a wait may keep us from looking at the stop flag.
const TURN: Duration = Duration::from_millis(50);
/// Cuts, and opens begun, in one turn: a connect on loopback does the server's half of the work as
/// well, about 20 µs, and the standing ones must not wait for thousands.
const PER_TURN: usize = 64;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    let mut options = options.clone();
    options.common.pids = watch.begin(&options.common)?;
    let options = &options;
    let target = options.common.target(&options.url)?;
    kernel::wake_on_time();
    let mut engine = Engine::new(Settings {
        open_timeout: options.open_timeout,
        ..Settings::new(
            vec![target.clone()],
            options.standing + options.connections,
            &options.common,
        )
    })?;
    let mut storm = Storm::new(options);
    engine.open_all(&mut storm, OPENING_TIMEOUT, watch)?;

    let started_at = SystemTime::now() + WARM_UP;
    storm.standing.start("warm-up");
    let mut step = Step::WarmUp;
    let mut next_to_cut = options.standing;
    let mut complete = true;
    loop {
        if stopped() && complete && step != Step::Drain {
            complete = false;
            storm.standing.stop();
            step = Step::Drain;
        }
        let now_ns = storm.standing.now_ns();
        let in_step = Duration::from_nanos(now_ns - storm.standing.period_began_ns());
        match step {
            Step::WarmUp if in_step >= WARM_UP => {
                storm.standing.enter("before");
                step = Step::Before;
            }
            Step::Before if in_step >= options.before => {
                storm.standing.enter("during");
                storm.is_cutting = true;
                engine.times = Times::new();
                step = Step::Cut;
                if options.cut_by == CutBy::Server {
                    eprintln!("penstock-bench: restart the server now");
                }
            }
            Step::Cut if options.cut_by == CutBy::Tool => {
                for client in (next_to_cut..engine.len()).take(PER_TURN) {
                    engine.abort(&mut storm, client);
                    next_to_cut += 1;
                }
                if next_to_cut == engine.len() {
                    storm.start(options);
                    step = Step::Reconnect;
                }
            }
            Step::Cut if storm.start_ns.is_some() => step = Step::Reconnect,
            Step::Cut if in_step >= options.cut_timeout => {
                let text = "no connection was ended by the server: was it restarted?";
                return Err(io::Error::other(text));
            }
            Step::Reconnect => {
                let all_up = storm.all_are_up(&engine);
                if all_up || storm.all_are_settled(&engine) || in_step >= options.storm_max {
                    storm.all_up_ns = all_up.then_some(storm.last_up_ns);
                    (storm.is_cutting, storm.is_storming) = (false, false);
                    storm.standing.enter("after");
                    step = Step::After;
                }
            }
            Step::After if in_step >= options.after => {
                storm.standing.stop();
                step = Step::Drain;
            }
            Step::Drain if storm.standing.all_back() || in_step >= DRAIN => break,
            _ => {}
        }
        if matches!(step, Step::Cut | Step::Reconnect) {
            storm.open_due(&mut engine, options);
        }
        storm.standing.send_due(&mut engine);
        let wait = match step {
            // There is more to do than fits into a turn.
            Step::Cut if options.cut_by == CutBy::Tool => Duration::ZERO,
            _ => storm.wait(&engine, options).min(storm.standing.wait()).min(TURN),
        };
        engine.turn(&mut storm, wait)?;
        watch.tick(&Sample::of(MEASURING, &engine.counts));
    }
    watch.tick(&Sample::of(CLOSING, &engine.counts));
    storm.standing.count_lost();
    // Ends that come from here on are ours.
    let ended_early = engine.counts.early.clone();
    let open_at_end = storm.comers.iter().filter(|comer| comer.is_up).count();
    storm.is_storming = false;
    engine.close_all(&mut storm, CLOSING_TIMEOUT)?;

    let counts = &storm.counts;
    let seconds = |ns: u64| ns as f64 / 1e9;
    let start_ns = storm.start_ns.unwrap_or_default();
    let all_up_ms = storm.all_up_ns.map(|ns| ns.saturating_sub(start_ns) as f64 / 1e6);
    let last_up_seconds = seconds(storm.last_up_ns.saturating_sub(start_ns));
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("storm: times count from when a client meant to connect"));
    put("address", json!(target.address.to_string()));
    put("complete", json!(complete));
    let standing_are_well = storm.standing.faults == 0
        && (options.cut_by == CutBy::Server || storm.standing_ended.total() == 0);
    put("ok", json!(!complete || (storm.all_up_ns.is_some() && standing_are_well)));
    put("standing_count", json!(options.standing));
    put("storm_count", json!(storm.coming));
    put("cut_by", json!(if options.cut_by == CutBy::Tool { "tool" } else { "server" }));
    put("spread_seconds", round(options.spread.as_secs_f64()));
    put("up_again_count", json!(counts.up));
    put("given_up_count", json!(counts.given_up));
    put("open_at_end_count", json!(open_at_end));
    put("all_up_ms", all_up_ms.map_or(Value::Null, round));
    put("opens_per_second", round(counts.up as f64 / last_up_seconds.max(1e-9)));
    put("up_us", histogram::report(&storm.up));
    let mut steps = Map::new();
    engine.times.put(&mut steps);
    put("successful_attempts", Value::Object(steps));
    engine.put_transport(&mut report);
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("attempts_count", json!(counts.attempts));
    put("failed_attempts_count", json!(storm.failed.total()));
    put("failed_attempts_by_reason", storm.failed.report());
    put("standing_ended_count", json!(storm.standing_ended.total()));
    put("standing_ended_by_reason", storm.standing_ended.report());
    put("ended_early_by_reason", ended_early.report());
    put("faults_count", json!(storm.standing.faults));
    put("standing_lost_count", json!(storm.standing.lost()));
    if let Some(usage) = storm.standing.usage("during") {
        // The echo of the standing ones is in it; `before` says what that costs.
        let server = usage.server_report("open", counts.up);
        put("server_cpu_us_per_open", server.get("cpu_us_per_open").cloned().unwrap_or_default());
        let tool_us = usage.tool_seconds() * 1e6;
        put("tool_cpu_us_per_open", per(tool_us, counts.up));
    }
    storm.standing.put_periods(&mut report, &["before", "during", "after"]);
    let Storm { standing, up, .. } = storm;
    let mut histograms = vec![("up".into(), up)];
    histograms.extend(engine.times.histograms());
    let periods = ["before", "during", "after"];
    let standing = standing.into_histograms().filter(|(name, _)| periods.contains(name));
    histograms.extend(standing.map(|(name, histogram)| (name.into(), histogram)));
    let measured = options.before + Duration::from_secs_f64(last_up_seconds) + options.after;
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    WarmUp,
    Before,
    Cut,
    Reconnect,
    After,
    Drain,
}

struct Storm {
    standing: Standing,
    standing_count: u32,
    cut_by: CutBy,
    spread_ns: u64,
    back_off_ns: u64,
    back_off_ns_max: u64,
    attempts_max: u32,
    comers: Vec<Comer>,
    /// Those of them that are to be cut.
    coming: u64,
    /// Who is to be opened, and when: at most one entry for each client.
    to_open: BinaryHeap<Reverse<(u64, u32)>>,
    /// Connections may end now because they are cut.
    is_cutting: bool,
    /// Who ends now, or cannot be opened, comes back.
    is_storming: bool,
    /// When the first meant to connect.
    start_ns: Option<u64>,
    last_up_ns: u64,
    all_up_ns: Option<u64>,
    failed: Reasons,
    standing_ended: Reasons,
    counts: Counts,
    up: Histogram<u64>,
}

#[derive(Default)]
struct Counts {
    /// Came back; each client counts once.
    up: u64,
    attempts: u64,
    given_up: u64,
}

/// A client that comes back.
#[derive(Clone, Default)]
struct Comer {
    /// When it meant to connect.
    intended_ns: u64,
    attempts: u32,
    is_up: bool,
    /// It has been up since the storm.
    is_counted: bool,
}

impl Storm {
    fn new(options: &Options) -> Storm {
        let Options { standing, rate, traffic, common, .. } = options;
        let all = (options.standing + options.connections) as usize;
        Storm {
            standing: Standing::new(*standing, 0, *rate, traffic, common),
            standing_count: *standing,
            cut_by: options.cut_by,
            spread_ns: options.spread.as_nanos() as u64,
            back_off_ns: options.back_off.as_nanos() as u64,
            back_off_ns_max: options.back_off_max.as_nanos() as u64,
            attempts_max: options.attempts_max,
            comers: vec![Comer::default(); all],
            coming: match options.cut_by {
                CutBy::Tool => u64::from(options.connections),
                CutBy::Server => all as u64,
            },
            to_open: BinaryHeap::new(),
            is_cutting: false,
            is_storming: false,
            start_ns: None,
            last_up_ns: 0,
            all_up_ns: None,
            failed: Reasons::default(),
            standing_ended: Reasons::default(),
            counts: Counts::default(),
            up: histogram::new(),
        }
    }

    /// All are cut, by us: those of the storm mean to connect from now on.
    fn start(&mut self, options: &Options) {
        let now_ns = self.standing.now_ns();
        self.start_ns = Some(now_ns);
        self.is_cutting = false;
        self.is_storming = true;
        for client in options.standing..self.comers.len() as u32 {
            self.intend(client, now_ns);
        }
    }

    /// A client was cut: it means to come back after its share of the spread.
    fn intend(&mut self, client: u32, now_ns: u64) {
        // A fixed sequence, so that a run can be repeated.
        let share = websocket::scramble(u64::from(client)) as u32;
        let delay_ns = ((u128::from(self.spread_ns) * u128::from(share)) >> 32) as u64;
        let comer = &mut self.comers[client as usize];
        *comer = Comer { intended_ns: now_ns + delay_ns, ..Comer::default() };
        self.to_open.push(Reverse((now_ns + delay_ns, client)));
    }

    /// Whether all that were to be cut are up again.
    fn all_are_up(&self, engine: &Engine) -> bool {
        self.counts.given_up == 0
            && self.all_are_settled(engine)
            && self.comers.iter().all(|comer| comer.is_up)
    }

    /// Whether each that was to be cut is up again, or given up.
    fn all_are_settled(&self, engine: &Engine) -> bool {
        self.to_open.is_empty()
            && engine.opening() == 0
            && self.counts.up + self.counts.given_up >= self.coming
    }

    /// Begins the opens that are due, as far as the bounds allow.
    fn open_due(&mut self, engine: &mut Engine, options: &Options) {
        let now = Instant::now();
        let now_ns = self.standing.ns_of(now);
        for _ in 0..PER_TURN {
            let Some(Reverse((at_ns, client))) = self.to_open.peek().copied() else { return };
            if at_ns > now_ns || engine.opening() >= options.opening_max {
                return;
            }
            self.to_open.pop();
            if engine.open(client, now) {
                let comer = &mut self.comers[client as usize];
                comer.attempts += 1;
                self.counts.attempts += 1;
            } else {
                // Its slot is not closed yet: that takes a turn or two.
                self.to_open.push(Reverse((now_ns + SLOT_WAIT_NS, client)));
            }
        }
    }

    /// How long until the next open is due; for ever, while no more may be under way.
    fn wait(&self, engine: &Engine, options: &Options) -> Duration {
        match self.to_open.peek() {
            Some(Reverse((at_ns, _))) if engine.opening() < options.opening_max => {
                Duration::from_nanos(at_ns.saturating_sub(self.standing.now_ns()))
            }
            _ => Duration::MAX,
        }
    }

    /// A client could not be opened, or has ended again: it tries once more, later.
    fn retry(&mut self, client: u32, reason: &str) {
        self.failed.add(reason);
        let now_ns = self.standing.now_ns();
        let comer = &mut self.comers[client as usize];
        if comer.attempts >= self.attempts_max {
            self.counts.given_up += 1;
            return;
        }
        let doublings = comer.attempts.saturating_sub(1).min(32);
        let back_off_ns = (self.back_off_ns << doublings.min(20)).min(self.back_off_ns_max);
        let number = u64::from(client) << 32 | u64::from(comer.attempts);
        let jitter_ns = websocket::scramble(number) % (back_off_ns / 2 + 1);
        self.to_open.push(Reverse((now_ns + back_off_ns + jitter_ns, client)));
    }
}

/// Until the slot of a client that has ended is looked at again.
const SLOT_WAIT_NS: u64 = 200_000;

impl Scenario for Storm {
    fn on_open(&mut self, client: u32, now: Instant, _out: &mut Vec<u8>) {
        if self.standing.has(client) {
            self.standing.on_open(client);
        }
        let now_ns = self.standing.ns_of(now);
        let comer = &mut self.comers[client as usize];
        comer.is_up = true;
        if self.is_storming && !comer.is_counted {
            comer.is_counted = true;
            self.counts.up += 1;
            self.last_up_ns = now_ns;
            histogram::record(&mut self.up, now_ns.saturating_sub(comer.intended_ns));
        }
    }

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        // A server that greets the others is welcome to.
        if self.standing.has(client) { self.standing.on_frame(client, frame, now) } else { Ok(()) }
    }

    fn on_end(&mut self, client: u32, ending: &Ending) {
        let comer = &mut self.comers[client as usize];
        let was_up = std::mem::replace(&mut comer.is_up, false);
        let was_counted = comer.is_counted;
        if self.standing.has(client) && was_up {
            self.standing.on_end(client);
        }
        let reason = match ending {
            Ending::Failed(reason) => reason.clone(),
            Ending::Early(reason) => format!("up, then: {reason}"),
            Ending::Closed | Ending::Aborted => return,
        };
        let comes_back = client >= self.standing_count || self.cut_by == CutBy::Server;
        if client < self.standing_count && was_up {
            self.standing_ended.add(reason.trim_start_matches("up, then: "));
        }
        if !comes_back {
            return;
        }
        if self.is_storming && (!was_up || was_counted) {
            self.retry(client, &reason);
        } else if self.cut_by == CutBy::Server && (self.is_cutting || self.is_storming) {
            // The first of them begins the storm.
            let now_ns = self.standing.now_ns();
            self.start_ns.get_or_insert(now_ns);
            self.is_storming = true;
            self.intend(client, now_ns);
        }
    }
}
