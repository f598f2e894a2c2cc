//! Opens connections at a fixed rate, or as fast as the server answers, and closes each in order
//! after its stay: what does an open take, and what does it cost?
//!
//! With a rate it is an open loop: open k is due k/rate after the start, and its time counts from
//! then, also while it has to wait because too many are under way.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, OPENING_MAX, Reasons, Scenario, Settings, Times};
use crate::histogram;
use crate::kernel;
use crate::open_loop::{self, Course, Schedule};
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::round;
use crate::progress::{CLOSING, Sample};
use crate::websocket::Frame;

/// Opens connections at a fixed rate, or as fast as it goes, and closes each after its stay.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[arg(long)]
    pub(crate) url: String,
    /// Opens per second, such as "2000/s" (open loop); as fast as the server answers when not given.
    #[arg(long, value_parser = options::rate)]
    pub(crate) rate: Option<u32>,
    /// How long a connection stays before it is closed.
    #[arg(long, default_value = "0", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) stay: Duration,
    /// Close with a reset instead of a Close frame each way.
    #[arg(long)]
    pub(crate) abrupt: bool,
    /// How long to measure.
    #[arg(long = "seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "1", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    /// Opens under way at once; what comes due beyond waits, and its time counts on. When not
    /// given, 256, or with a rate as many as there may be connections.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) opening_max: Option<u32>,
    /// Connections at once, those that are being closed included; what comes due beyond waits, and
    /// its time counts on. When not given, 20000, or what the rate and the stay ask for, and two
    /// seconds of it more.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    pub(crate) connections_max: Option<u32>,
    /// For one connect and handshake.
    #[arg(long = "open-timeout-seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) open_timeout: Duration,
    #[command(flatten)]
    pub(crate) common: Common,
}

const CONNECTIONS_MAX: u32 = 20_000;
/// For one close handshake; then it is reset.
const CLOSE_NS_MAX: u64 = 5_000_000_000;
const CLOSING_TIMEOUT: Duration = Duration::from_secs(20);
/// Opens begun in one turn: a connect on loopback does the server's half of the work as well, about
/// 20 µs, and those before it in the turn must not wait for hundreds.
const PER_TURN: usize = 16;

impl Options {
    fn connections(&self) -> io::Result<u32> {
        let Some(rate) = self.rate else {
            return Ok(self.connections_max.unwrap_or(CONNECTIONS_MAX));
        };
        let staying = (f64::from(rate) * self.stay.as_secs_f64()).ceil() as u64;
        let wanted = staying + 2 * u64::from(rate);
        let connections = u64::from(self.connections_max.unwrap_or(u32::MAX)).min(wanted.max(256));
        if connections <= staying || connections > 2_000_000 {
            let text = format!(
                "--rate {rate} with --stay {} is {staying} connections at once: more than \
                 --connections-max, or the 2000000 there can be",
                self.stay.as_secs_f64()
            );
            return Err(io::Error::other(text));
        }
        Ok(connections as u32)
    }
}

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let mut options = options.clone();
    options.common.pids = watch.begin(&options.common)?;
    let options = &options;
    let target = options.common.target(&options.url)?;
    let connections = options.connections()?;
    kernel::wake_on_time();
    let default_max = if options.rate.is_some() { connections } else { OPENING_MAX };
    let opening_max = options.opening_max.unwrap_or(default_max);
    let mut engine = Engine::new(Settings {
        opening_max,
        open_timeout: options.open_timeout,
        ..Settings::new(vec![target.clone()], connections, &options.common)
    })?;
    let mut connect = Connect::new(options, connections, opening_max);
    watch.ready()?;
    let started_at = SystemTime::now() + options.warm_up;
    connect.schedule = Schedule::new(connect.ticks, options.warm_up, options.measured);
    let mut course = Course::new(options.common.cpu, &options.common.pids);
    let mut is_warm = false;
    loop {
        if !is_warm && connect.schedule.is_measured(connect.schedule.now_ns()) {
            is_warm = true;
            engine.times = Times::new();
        }
        let settled = connect.waiting.is_empty() && engine.opening() == 0;
        if !course.goes_on(&mut connect.schedule, watch.stopped(), settled) {
            break;
        }
        connect.take_due();
        let end = options.warm_up + options.measured;
        let is_over = !course.complete || connect.schedule.now_ns() >= end.as_nanos() as u64;
        connect.open_due(&mut engine, is_over);
        connect.close_due(&mut engine);
        let wait = course.wait(&connect.schedule);
        let wait = if connect.may_open(&engine, is_over) { Duration::ZERO } else { wait };
        let wait = wait.min(connect.wait());
        engine.turn(&mut connect, wait)?;
        let (phase, left) = course.phase(&connect.schedule);
        watch.tick(&Sample { left, ..Sample::of(phase, &engine.counts) });
    }
    watch.tick(&Sample::of(CLOSING, &engine.counts));
    connect.count_unfinished();
    // Ends that come from here on are ours, and not of the measured time.
    let early = engine.counts.early.clone();
    let closed_in_order = engine.counts.closed_in_order;
    let close = connect.close.clone();
    let complete = course.complete;
    engine.close_all(&mut connect, CLOSING_TIMEOUT)?;

    let usage = course.usage();
    let counts = &connect.counts;
    let per_second = |count: u64| round(count as f64 / usage.seconds.max(1e-9));
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    let scenario = match options.rate {
        Some(_) => "connect, open loop: times count from when an open was due",
        None => "connect, as fast as it goes: times count from when an open was begun",
    };
    put("scenario", json!(scenario));
    put("address", json!(target.address.to_string()));
    put("complete", json!(complete));
    put("stay_seconds", round(options.stay.as_secs_f64()));
    put("opening_max", json!(opening_max));
    put("connections_max", json!(connections));
    put("measured_seconds", round(usage.seconds));
    put("offered_per_second", json!(options.rate));
    put("opens_per_second", per_second(counts.opened_in_time));
    put("due_count", json!(counts.due));
    put("opened_count", json!(counts.opened));
    put("failed_count", json!(connect.failed.total()));
    put("failed_by_reason", connect.failed.report());
    put("unfinished_count", json!(counts.unfinished));
    put("held_back_count", json!(counts.held_back));
    put("open_at_once_max_count", json!(counts.open_max));
    put("ended_early_count", json!(early.total()));
    put("ended_early_by_reason", early.report());
    put("closed_in_order_count", json!(closed_in_order));
    put("not_closed_in_time_count", json!(counts.close_timeouts));
    // The steps, of the opens that ended in the measured time; the whole we tell ourselves.
    engine.times.put(&mut report);
    engine.put_transport(&mut report);
    report.insert("open_from_actual_begin_us".into(), histogram::report(&connect.attempt));
    report.insert("open_us".into(), histogram::report(&connect.open));
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("close_us", histogram::report(&close));
    put("server", usage.server_report("open", counts.opened_in_time));
    put("tool", usage.tool_report(&connect.lag, "open", counts.opened_in_time));
    let saturation = usage.saturation(&connect.lag, connect.open.value_at_quantile(0.99));
    open_loop::put_saturation(&mut report, saturation.as_deref());
    let measured = connect.schedule.measured();
    let Connect { open, attempt, lag, .. } = connect;
    let mut histograms = vec![("open".into(), open), ("from-actual-begin".into(), attempt)];
    histograms.extend(engine.times.histograms().into_iter().filter(|(name, _)| *name != "open"));
    histograms.extend([("close".into(), close), ("lag".into(), lag)]);
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

struct Connect {
    schedule: Schedule,
    /// The rate of the schedule. Without a rate it says only when the run is over.
    ticks: u32,
    is_paced: bool,
    stay_ns: u64,
    is_abrupt: bool,
    opening_max: u32,
    /// Opens that are due and not begun: when they were due. At most as many as `WAITING_MAX`;
    /// beyond, the schedule is not asked, and goes on later.
    waiting: VecDeque<u64>,
    /// Clients that may be opened, the one that was closed longest ago first.
    free: VecDeque<u32>,
    attempts: Vec<Attempt>,
    /// When open connections are to be closed: when, who, and the number of its connection.
    to_close: VecDeque<(u64, u32, u32)>,
    /// When those that are being closed are given up.
    closing: VecDeque<(u64, u32, u32)>,
    /// Open now.
    open_now: u64,
    /// What was due until then and is still waiting has had to, for want of room.
    held_back_until_ns: u64,
    counts: Counts,
    failed: Reasons,
    open: Histogram<u64>,
    attempt: Histogram<u64>,
    close: Histogram<u64>,
    lag: Histogram<u64>,
}

/// More that wait than this are not looked at one by one; they wait in the schedule.
const WAITING_MAX: usize = 1_000_000;

/// The last open of a client; times of the schedule.
#[derive(Clone, Default)]
struct Attempt {
    due_ns: u64,
    begun_ns: u64,
    close_ns: u64,
    /// Which connection of the client this is.
    connection: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Over,
    Opening,
    Open,
    Closing,
}

/// Opens due in the measured time: `due = opened + failed + unfinished`.
#[derive(Default)]
struct Counts {
    due: u64,
    opened: u64,
    unfinished: u64,
    /// Begun late, or never, because too many were under way or all slots taken.
    held_back: u64,
    opened_in_time: u64,
    open_max: u64,
    close_timeouts: u64,
}

impl Connect {
    fn new(options: &Options, connections: u32, opening_max: u32) -> Connect {
        let ticks = options.rate.unwrap_or(1);
        Connect {
            schedule: Schedule::new(ticks, options.warm_up, options.measured),
            ticks,
            is_paced: options.rate.is_some(),
            stay_ns: options.stay.as_nanos() as u64,
            is_abrupt: options.abrupt,
            opening_max,
            waiting: VecDeque::new(),
            free: (0..connections).collect(),
            attempts: vec![Attempt::default(); connections as usize],
            to_close: VecDeque::new(),
            closing: VecDeque::new(),
            open_now: 0,
            held_back_until_ns: 0,
            counts: Counts::default(),
            failed: Reasons::default(),
            open: histogram::new(),
            attempt: histogram::new(),
            close: histogram::new(),
            lag: histogram::new(),
        }
    }

    /// Takes from the schedule what has come due.
    fn take_due(&mut self) {
        let now_ns = self.schedule.now_ns();
        while self.waiting.len() < WAITING_MAX {
            let Some(number) = self.schedule.next_due(now_ns) else { return };
            if self.is_paced {
                let due_ns = self.schedule.due_ns(number);
                self.counts.due += u64::from(self.schedule.is_measured(due_ns));
                self.waiting.push_back(due_ns);
            }
        }
    }

    fn has_room(&self, engine: &Engine) -> bool {
        engine.opening() < self.opening_max && !self.free.is_empty()
    }

    /// Whether an open could be begun at once. Without a rate, one is always due until the end.
    fn may_open(&self, engine: &Engine, is_over: bool) -> bool {
        let is_due = if self.is_paced { !self.waiting.is_empty() } else { !is_over };
        is_due && self.has_room(engine)
    }

    /// Begins what is due, as far as the bounds allow.
    fn open_due(&mut self, engine: &mut Engine, is_over: bool) {
        for _ in 0..PER_TURN {
            if !self.may_open(engine, is_over) {
                break;
            }
            // The clock once more: those before it in the turn took their time.
            let now = Instant::now();
            let now_ns = self.schedule.ns_of(now);
            let due_ns = if self.is_paced { self.waiting.pop_front() } else { Some(now_ns) };
            let (Some(due_ns), Some(client)) = (due_ns, self.free.pop_front()) else { return };
            assert!(engine.open(client, now), "a client that is free can be opened");
            self.attempts[client as usize] = Attempt {
                due_ns,
                begun_ns: now_ns,
                close_ns: 0,
                connection: engine.connection(client),
                state: State::Opening,
            };
            let was_held_back = due_ns < self.held_back_until_ns;
            if self.schedule.is_measured(due_ns) {
                self.counts.due += u64::from(!self.is_paced);
                self.counts.held_back += u64::from(was_held_back);
                if !was_held_back {
                    histogram::record(&mut self.lag, now_ns - due_ns);
                }
            }
        }
        // What is due by now, and has not been begun for want of room, is held back.
        if !self.waiting.is_empty() && !self.has_room(engine) {
            self.held_back_until_ns = self.schedule.now_ns();
        }
    }

    /// Closes those whose stay is over, and gives up those that do not come to a close.
    fn close_due(&mut self, engine: &mut Engine) {
        let now_ns = self.schedule.now_ns();
        while let Some((at_ns, client, connection)) = self.to_close.front().copied() {
            if at_ns > now_ns {
                break;
            }
            self.to_close.pop_front();
            if !self.is(client, connection, State::Open) {
                continue; // It has ended already.
            }
            let attempt = &mut self.attempts[client as usize];
            (attempt.close_ns, attempt.state) = (now_ns, State::Closing);
            if self.is_abrupt {
                engine.abort(self, client);
            } else {
                engine.start_close(client);
                self.closing.push_back((now_ns + CLOSE_NS_MAX, client, connection));
            }
        }
        while let Some((at_ns, client, connection)) = self.closing.front().copied() {
            let is_current = self.is(client, connection, State::Closing);
            if is_current && at_ns > now_ns {
                break;
            }
            self.closing.pop_front();
            if is_current {
                self.counts.close_timeouts += 1;
                engine.abort(self, client);
            }
        }
    }

    fn is(&self, client: u32, connection: u32, state: State) -> bool {
        let attempt = &self.attempts[client as usize];
        attempt.connection == connection && attempt.state == state
    }

    /// How long until a stay is over.
    fn wait(&self) -> Duration {
        let now_ns = self.schedule.now_ns();
        let next = self.to_close.front().map(|(at_ns, ..)| at_ns.saturating_sub(now_ns));
        next.map_or(Duration::MAX, Duration::from_nanos)
    }

    /// Counts what was due and has not come to an end, with the time that it has been out: it would
    /// have taken at least so long.
    fn count_unfinished(&mut self) {
        let now_ns = self.schedule.now_ns();
        let opening = self.attempts.iter().filter(|attempt| attempt.state == State::Opening);
        let opening = opening.map(|attempt| attempt.due_ns);
        let handed_out = opening.chain(self.waiting.iter().copied());
        let never: Vec<u64> = if self.is_paced {
            self.schedule.not_handed_out().map(|number| self.schedule.due_ns(number)).collect()
        } else {
            Vec::new()
        };
        let never = never.into_iter().filter(|due_ns| self.schedule.is_measured(*due_ns));
        let never: Vec<u64> = never.collect();
        self.counts.due += never.len() as u64;
        let handed_out = handed_out.filter(|due_ns| self.schedule.is_measured(*due_ns));
        let unfinished: Vec<u64> = handed_out.chain(never).collect();
        for due_ns in unfinished {
            self.counts.unfinished += 1;
            histogram::record(&mut self.open, now_ns.saturating_sub(due_ns));
        }
    }
}

impl Scenario for Connect {
    fn on_open(&mut self, client: u32, now: Instant, _out: &mut Vec<u8>) {
        let now_ns = self.schedule.ns_of(now);
        let attempt = &mut self.attempts[client as usize];
        attempt.state = State::Open;
        let Attempt { due_ns, begun_ns, connection, .. } = *attempt;
        if self.schedule.is_measured(due_ns) {
            self.counts.opened += 1;
            histogram::record(&mut self.open, now_ns.saturating_sub(due_ns));
            histogram::record(&mut self.attempt, now_ns.saturating_sub(begun_ns));
        }
        self.counts.opened_in_time += u64::from(self.schedule.is_in_time(now_ns));
        self.open_now += 1;
        self.counts.open_max = self.counts.open_max.max(self.open_now);
        self.to_close.push_back((now_ns + self.stay_ns, client, connection));
    }

    fn on_frame(
        &mut self,
        _client: u32,
        _frame: &Frame<'_>,
        _now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        // A server that greets is welcome to.
        Ok(())
    }

    fn on_end(&mut self, client: u32, ending: &Ending) {
        let attempt = &mut self.attempts[client as usize];
        attempt.state = State::Over;
        let Attempt { due_ns, close_ns, .. } = *attempt;
        if let Ending::Failed(reason) = ending {
            if self.schedule.is_measured(due_ns) {
                self.failed.add(reason);
            }
            return;
        }
        self.open_now -= 1;
        if *ending == Ending::Closed && self.schedule.is_measured(close_ns) {
            let now_ns = self.schedule.now_ns();
            histogram::record(&mut self.close, now_ns.saturating_sub(close_ns));
        }
    }

    fn on_free(&mut self, client: u32) {
        self.free.push_back(client);
    }
}
