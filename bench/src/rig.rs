//! The connections of an open loop, to one or several servers that echo, and what is known of each
//! message on them.
//!
//! A message is due at its time whether or not those before it are back, as it is with clients
//! that do not know each other. Its latency counts from when it was due: when a server stalls, or
//! the tool is late, the messages that should have been sent meanwhile count with all the time
//! they waited. Counted from the actual send instead, a stall is one slow message and many that
//! nobody sent: that figure stands beside, to show the difference.
//!
//! A run is one part or several: a rate for some time, to one server (its side of the rig). Number k
//! of a part's schedule belongs to connection `k % connections` of the side: each has its share of
//! the rate, and they take turns evenly. Connections stay open from part to part, and so do their
//! sequence numbers go on: what comes back late is told from what is awaited.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Reasons, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::open_loop::{self, BATCH, Course, Pace, Schedule, Usage};
use crate::options::{self, Common};
use crate::outcome::Watch;
use crate::proc::round;
use crate::progress::{CLOSING, Sample};
use crate::target::Target;
use crate::traffic::{Messages, NUMBER_BYTES, Traffic, read_sequence};
use crate::websocket::{Frame, PONG};

/// Who talks, and how much at once.
#[derive(Args, Clone, Debug)]
pub(crate) struct Clients {
    /// Connections to each server; the messages are spread over them evenly.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: u32,
    /// Messages under way on one connection; what comes due beyond is held back until one returns,
    /// and its latency counts on. 1 is a client that waits for each answer.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight_max: u32,
    /// Wastes this time in each turn, to see a tool that does not keep up.
    #[arg(long = "slow-down-seconds", hide = true, default_value = "0", value_parser = options::seconds)]
    pub(crate) slow_down: Duration,
    #[command(flatten)]
    pub(crate) traffic: Traffic,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Open connections that messages are played on.
pub(crate) struct Rig {
    engine: Engine,
    load: Load,
    pids: Vec<u32>,
    slow_down: Duration,
    pace: Pace,
}

/// A rate for some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The server, by its place in the list that the rig was opened with.
    pub(crate) side: usize,
    /// Messages a second of all connections of the side together.
    pub(crate) rate: u32,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// How a part went, its messages apart: those are in the side's [`Tally`].
pub(crate) struct Played {
    pub(crate) usage: Usage,
    /// Nothing has ended it early.
    pub(crate) complete: bool,
    /// When the measured time began, and how long it was.
    pub(crate) started_at: SystemTime,
    pub(crate) measured: Duration,
    /// Messages that came back, warm-up included, until the last was back or given up.
    pub(crate) back_in_all: u64,
}

/// How the rig ended.
pub(crate) struct Closed {
    /// Connections that ended while messages were played.
    pub(crate) early: Reasons,
    pub(crate) messages: Value,
    pub(crate) in_flight_max: usize,
    /// The longest that the tool has slept between turns, to keep up.
    sleep_max: Duration,
}

const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take to answer what a part has left behind.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);
/// What may wait to be sent when a server takes nothing, of all connections together.
const OUTGOING_BYTES_MAX: u64 = 1 << 30;
/// How long a wait may keep us from looking at the stop flag.
const TURN: Duration = Duration::from_millis(50);

impl Rig {
    /// Opens all connections to all servers.
    pub(crate) fn open(
        targets: Vec<Target>,
        clients: &Clients,
        watch: &Watch<'_>,
    ) -> io::Result<Rig> {
        let smallest = clients.traffic.sizes.smallest();
        if smallest < NUMBER_BYTES {
            return Err(io::Error::other(format!(
                "--size: a message carries its number in {NUMBER_BYTES} bytes; {smallest} are too few"
            )));
        }
        let pids = watch.begin(&clients.common)?;
        kernel::wake_on_time();
        let mut load = Load::new(clients, targets.len());
        let mut engine = Engine::new(Settings {
            keep_buffers: true,
            ..Settings::new(targets, clients.connections, &clients.common)
        })?;
        engine.open_all(&mut load, OPENING_TIMEOUT, watch)?;
        Ok(Rig { engine, load, pids, slow_down: clients.slow_down, pace: Pace::new() })
    }

    /// The server's processes.
    pub(crate) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Plays a part, and waits until all of it is back or has been out for too long.
    pub(crate) fn play(
        &mut self,
        part: &Part,
        mut course: Course,
        watch: &Watch<'_>,
    ) -> io::Result<Played> {
        let Rig { engine, load, .. } = self;
        let started_at = SystemTime::now() + part.warm_up;
        let back_before = load.back_in_all;
        load.start(part)?;
        while course.goes_on(&mut load.schedule, watch.stopped(), load.pending == 0) {
            let is_behind = load.send_due(engine, course.now_ns);
            let sleep = self.pace.sleep();
            if sleep.is_zero() || is_behind {
                engine.turn(load, course.wait(&load.schedule))?;
            } else {
                engine.turn(load, Duration::ZERO)?;
                std::thread::sleep(sleep);
            }
            watch.tick(&load.sample(course.phase(&load.schedule), engine));
            if !self.slow_down.is_zero() {
                let wasted = Instant::now();
                while wasted.elapsed() < self.slow_down {
                    std::hint::spin_loop();
                }
            }
        }
        watch.tick(&load.sample((CLOSING, None), engine));
        load.finish();
        Ok(Played {
            complete: course.complete,
            usage: course.usage(),
            started_at,
            measured: load.schedule.measured(),
            back_in_all: load.back_in_all - back_before,
        })
    }

    /// Why no other part can follow, if so, after a wait for what parts have left under way.
    pub(crate) fn why_not_go_on(&mut self, watch: &Watch<'_>) -> io::Result<Option<String>> {
        let ended = self.ended_early();
        if ended > 0 {
            return Ok(Some(format!("{ended} connections ended")));
        }
        let is_settled = self.settle(watch)?;
        Ok(if watch.stopped() {
            Some("stopped".into())
        } else if !is_settled {
            Some("the server did not answer what was under way within 30 s".into())
        } else {
            None
        })
    }

    /// Waits for what parts have left under way and given up; says whether nothing is any more.
    pub(crate) fn settle(&mut self, watch: &Watch<'_>) -> io::Result<bool> {
        let started = Instant::now();
        while self.load.stale > 0 && !watch.stopped() && started.elapsed() < SETTLE_TIMEOUT {
            self.engine.turn(&mut self.load, TURN)?;
        }
        Ok(self.load.stale == 0)
    }

    /// Connections that have ended, though nobody asked for it.
    pub(crate) fn ended_early(&self) -> u64 {
        self.engine.counts.early.total()
    }

    /// Takes what has been counted on a side; counting begins anew.
    pub(crate) fn take_tally(&mut self, side: usize) -> Tally {
        std::mem::replace(&mut self.load.tallies[side], Tally::new())
    }

    /// Closes the connections in order.
    pub(crate) fn close(mut self) -> io::Result<Closed> {
        // Ends that come from here on are ours.
        let early = self.engine.counts.early.clone();
        self.engine.close_all(&mut self.load, CLOSING_TIMEOUT)?;
        let Load { messages, in_flight_max, .. } = self.load;
        let sleep_max = self.pace.longest();
        Ok(Closed { early, messages: messages.report(), in_flight_max, sleep_max })
    }
}

/// Messages due in measured time: `due = back + lost`, and those never sent are lost.
pub(crate) struct Tally {
    pub(crate) due: u64,
    pub(crate) back: u64,
    pub(crate) lost: u64,
    never_sent: u64,
    /// Sent late, or never, because the connection had `in_flight_max` messages under way.
    held_back: u64,
    faults: u64,
    /// Sent, and come back, within the measured time.
    sent_in_time: u64,
    pub(crate) back_in_time: u64,
    /// From when a message was due until it was back; nanoseconds, as all of these.
    pub(crate) latency: Histogram<u64>,
    /// From when it was sent.
    pub(crate) uncorrected: Histogram<u64>,
    /// From when it was due until it was sent, of those that were not held back.
    pub(crate) lag: Histogram<u64>,
}

impl Tally {
    /// Nothing so far.
    pub(crate) fn new() -> Tally {
        Tally {
            due: 0,
            back: 0,
            lost: 0,
            never_sent: 0,
            held_back: 0,
            faults: 0,
            sent_in_time: 0,
            back_in_time: 0,
            latency: histogram::new(),
            uncorrected: histogram::new(),
            lag: histogram::new(),
        }
    }

    /// Counts another part as one with this one.
    pub(crate) fn add(&mut self, other: &Tally) {
        self.due += other.due;
        self.back += other.back;
        self.lost += other.lost;
        self.never_sent += other.never_sent;
        self.held_back += other.held_back;
        self.faults += other.faults;
        self.sent_in_time += other.sent_in_time;
        self.back_in_time += other.back_in_time;
        for (own, other) in [
            (&mut self.latency, &other.latency),
            (&mut self.uncorrected, &other.uncorrected),
            (&mut self.lag, &other.lag),
        ] {
            own.add(other).expect("histograms of one make");
        }
    }

    /// By the names that they have in files.
    pub(crate) fn into_histograms(self) -> Vec<(Cow<'static, str>, Histogram<u64>)> {
        let Tally { latency, uncorrected, lag, .. } = self;
        vec![
            ("latency".into(), latency),
            ("from-actual-send".into(), uncorrected),
            ("lag".into(), lag),
        ]
    }

    /// Messages came back slower than they were due: for as long as it went on, ever more of them
    /// were under way. A twentieth is left to chance, and the one that was just due at the end.
    pub(crate) fn fell_behind(&self) -> bool {
        self.back_in_time + self.due / 20 + 1 < self.due
    }

    /// The counts, for a report.
    pub(crate) fn put_counts(&self, report: &mut Map<String, Value>) {
        let counts = [
            ("due_count", self.due),
            ("back_count", self.back),
            ("lost_count", self.lost),
            ("never_sent_count", self.never_sent),
            ("held_back_count", self.held_back),
            ("faults_count", self.faults),
        ];
        report.extend(counts.map(|(key, count)| (key.to_owned(), json!(count))));
    }

    /// Everything about a part that was played alone, at this rate.
    pub(crate) fn put_part(&self, report: &mut Map<String, Value>, rate: u32, usage: &Usage) {
        let per_second = |count: u64| round(count as f64 / usage.seconds.max(1e-9));
        report.insert("offered_per_second".into(), json!(rate));
        report.insert("sent_per_second".into(), per_second(self.sent_in_time));
        report.insert("achieved_per_second".into(), per_second(self.back_in_time));
        self.put_counts(report);
        report.insert("latency_us".into(), histogram::report(&self.latency));
        let uncorrected = histogram::report(&self.uncorrected);
        report.insert("latency_from_actual_send_us".into(), uncorrected);
        report.insert("server".into(), usage.server_report("message", self.back_in_time));
        let tool = usage.tool_report(&self.lag, "message", self.back_in_time);
        report.insert("tool".into(), tool);
        let saturation = usage.saturation(&self.lag, self.latency.value_at_quantile(0.99));
        open_loop::put_saturation(report, saturation.as_deref());
    }
}

impl Closed {
    /// What is said of the connections, for a report.
    pub(crate) fn put(&self, report: &mut Map<String, Value>) {
        report.insert("messages".into(), self.messages.clone());
        report.insert("in_flight_max_per_connection".into(), json!(self.in_flight_max));
        let sleep_us = round(self.sleep_max.as_secs_f64() * 1e6);
        report.insert("tool_sleep_max_us".into(), sleep_us);
        report.insert("ended_early_count".into(), json!(self.early.total()));
        report.insert("ended_early_by_reason".into(), self.early.report());
    }
}

/// What is known of the messages.
struct Load {
    schedule: Schedule,
    /// Connections of each side. Client `c` is on side `c % sides`.
    connections: u64,
    side: usize,
    in_flight_max: usize,
    talkers: Vec<Talker>,
    messages: Messages,
    /// Due in this part and not back, on open connections.
    pending: u64,
    /// Of earlier parts, given up, but still on their way.
    stale: u64,
    /// The most messages that one connection can have sent.
    sequences: u64,
    back_in_all: u64,
    /// By side.
    tallies: Vec<Tally>,
}

/// One connection: `first <= sent <= due`, and `awaited` ends with the message before `sent`.
#[derive(Default)]
struct Talker {
    open: bool,
    /// The sequence number that the part began with.
    first: u32,
    /// Messages of earlier parts that may still come; they are the last ones before `first`.
    stale: u32,
    /// The first number that has not come due.
    due: u32,
    /// The first number that is not sent.
    sent: u32,
    /// When each message under way was sent, oldest first.
    awaited: VecDeque<u64>,
}

impl Load {
    fn new(clients: &Clients, sides: usize) -> Load {
        let connections = u64::from(clients.connections);
        // 14 is the longest header of a client's frame (RFC 6455 §5.2).
        let wire_bytes = u64::from(clients.traffic.sizes.largest()) + 14;
        let affordable = (OUTGOING_BYTES_MAX / connections.max(1) / wire_bytes).max(1);
        Load {
            schedule: Schedule::new(1, Duration::ZERO, Duration::ZERO),
            connections,
            side: 0,
            in_flight_max: u64::from(clients.in_flight_max).min(affordable) as usize,
            talkers: (0..connections * sides as u64).map(|_| Talker::default()).collect(),
            messages: Messages::new(&clients.traffic),
            pending: 0,
            stale: 0,
            sequences: 0,
            back_in_all: 0,
            tallies: (0..sides).map(|_| Tally::new()).collect(),
        }
    }

    fn sample(&self, phase: (&'static str, Option<Duration>), engine: &Engine) -> Sample<'_> {
        let tally = &self.tallies[self.side];
        let (sent, received) = (tally.sent_in_time, tally.back_in_time);
        let (phase, left, latency) = (phase.0, phase.1, Some(&tally.latency));
        Sample { sent, received, latency, left, ..Sample::of(phase, &engine.counts) }
    }

    /// The schedule of a part begins now.
    fn start(&mut self, part: &Part) -> io::Result<()> {
        let seconds = (part.warm_up + part.measured).as_secs() + 1;
        let each = u64::from(part.rate) * seconds / self.connections + 1;
        self.sequences += each;
        if self.sequences >= u64::from(u32::MAX) {
            let text = format!("{} messages on each connection", self.sequences);
            let text = format!("{text} are more than are counted: take more connections");
            return Err(io::Error::other(format!("{text}, or less time")));
        }
        self.side = part.side;
        self.schedule = Schedule::new(part.rate, part.warm_up, part.measured);
        Ok(())
    }

    /// Gives up what has not come back.
    fn finish(&mut self) {
        self.count_lost();
        self.pending = 0;
        for talker in &mut self.talkers {
            talker.due = talker.sent;
            talker.first = talker.sent;
        }
    }

    /// Puts on the way what has come due; says whether there may be more of it than goes into a turn.
    fn send_due(&mut self, engine: &mut Engine, now_ns: u64) -> bool {
        for _ in 0..BATCH {
            let Some(number) = self.schedule.next_due(now_ns) else { return false };
            let client = self.on_due(number);
            if self.may_send(client) {
                engine.say(client, |out| self.send(client, now_ns, out));
                let due_ns = self.schedule.due_ns(number);
                if self.schedule.is_measured(due_ns) {
                    histogram::record(&mut self.tallies[self.side].lag, now_ns - due_ns);
                }
            }
        }
        true
    }

    /// Counts a message that has come due, and says whose it is.
    fn on_due(&mut self, number: u64) -> u32 {
        let sides = self.tallies.len();
        let client = (number % self.connections) as usize * sides + self.side;
        let talker = &mut self.talkers[client];
        talker.due += 1;
        self.pending += u64::from(talker.open);
        let is_full = talker.awaited.len() >= self.in_flight_max;
        if self.schedule.is_measured(self.schedule.due_ns(number)) {
            let tally = &mut self.tallies[self.side];
            tally.due += 1;
            tally.held_back += u64::from(is_full && talker.open);
        }
        client as u32
    }

    fn may_send(&self, client: u32) -> bool {
        let talker = &self.talkers[client as usize];
        talker.open && talker.sent < talker.due && talker.awaited.len() < self.in_flight_max
    }

    /// Sends the first message of a client that is due and not sent.
    fn send(&mut self, client: u32, now_ns: u64, out: &mut Vec<u8>) {
        let talker = &mut self.talkers[client as usize];
        let sequence = talker.sent;
        talker.sent += 1;
        talker.awaited.push_back(now_ns);
        self.messages.write(client, sequence, out);
        let in_time = self.schedule.is_in_time(now_ns);
        self.tallies[self.side].sent_in_time += u64::from(in_time);
    }

    fn due_ns(&self, client: u32, sequence: u32) -> u64 {
        let round = u64::from(sequence - self.talkers[client as usize].first);
        let place = u64::from(client) / self.tallies.len() as u64;
        self.schedule.due_ns(round * self.connections + place)
    }

    /// Takes the oldest message under way from the list; it is back, or lost.
    fn settle(&mut self, client: u32, now_ns: u64, back: bool) {
        let talker = &mut self.talkers[client as usize];
        let sequence = talker.sent - talker.awaited.len() as u32;
        let Some(sent_ns) = talker.awaited.pop_front() else { return };
        self.pending -= u64::from(talker.open);
        let due_ns = self.due_ns(client, sequence);
        if self.schedule.is_measured(due_ns) {
            let tally = &mut self.tallies[self.side];
            histogram::record(&mut tally.latency, now_ns.saturating_sub(due_ns));
            histogram::record(&mut tally.uncorrected, now_ns.saturating_sub(sent_ns));
            let count = if back { &mut tally.back } else { &mut tally.lost };
            *count += 1;
        }
    }

    /// Counts what has not come back, with the time that it has been out: it would have taken at
    /// least so long.
    fn count_lost(&mut self) {
        let now_ns = self.schedule.now_ns();
        for client in 0..self.talkers.len() as u32 {
            let talker = &mut self.talkers[client as usize];
            if talker.open {
                talker.stale += talker.awaited.len() as u32;
                self.stale += talker.awaited.len() as u64;
            }
            while !self.talkers[client as usize].awaited.is_empty() {
                self.settle(client, now_ns, false);
            }
            let Talker { sent, due, .. } = self.talkers[client as usize];
            for sequence in sent..due {
                self.count_never_sent(self.due_ns(client, sequence), now_ns);
            }
        }
        for number in self.schedule.not_handed_out() {
            let due_ns = self.schedule.due_ns(number);
            self.tallies[self.side].due += u64::from(self.schedule.is_measured(due_ns));
            self.count_never_sent(due_ns, now_ns);
        }
    }

    fn count_never_sent(&mut self, due_ns: u64, now_ns: u64) {
        if self.schedule.is_measured(due_ns) {
            let tally = &mut self.tallies[self.side];
            histogram::record(&mut tally.latency, now_ns.saturating_sub(due_ns));
            tally.lost += 1;
            tally.never_sent += 1;
        }
    }

    fn fault(&mut self, text: &str) -> Result<(), String> {
        self.tallies[self.side].faults += 1;
        Err(text.to_owned())
    }

    /// What was under way before `stale_left` others is lost for good.
    fn forget_stale(&mut self, client: u32, stale_left: u32) {
        let talker = &mut self.talkers[client as usize];
        self.stale -= u64::from(talker.stale - stale_left);
        talker.stale = stale_left;
    }
}

impl Scenario for Load {
    fn on_open(&mut self, client: u32, _now: Instant, _out: &mut Vec<u8>) {
        self.talkers[client as usize].open = true;
    }

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
        let talker = &self.talkers[client as usize];
        let (first, stale) = (talker.first, talker.stale);
        let oldest = talker.sent - talker.awaited.len() as u32;
        let Some(sequence) = read_sequence(frame.payload) else {
            return self.fault("an echo that is not what was sent");
        };
        let is_stale = (first - stale..first).contains(&sequence);
        if !is_stale && !(oldest..talker.sent).contains(&sequence) {
            return self.fault("a message that nobody sent, or that was back already");
        }
        if !self.messages.is_echo(frame, client, sequence) {
            return self.fault("an echo that is not what was sent");
        }
        if is_stale {
            self.forget_stale(client, first - 1 - sequence);
            return Ok(());
        }
        let now_ns = self.schedule.ns_of(now);
        self.forget_stale(client, 0);
        for _ in oldest..sequence {
            self.settle(client, now_ns, false);
        }
        self.settle(client, now_ns, true);
        self.back_in_all += 1;
        let in_time = self.schedule.is_in_time(now_ns);
        self.tallies[self.side].back_in_time += u64::from(in_time);
        while self.may_send(client) {
            self.send(client, now_ns, out);
        }
        Ok(())
    }

    fn on_end(&mut self, client: u32, _ending: &Ending) {
        self.forget_stale(client, 0);
        let talker = &mut self.talkers[client as usize];
        talker.open = false;
        // What was under way stays awaited, to be counted at the end of the part.
        self.pending -= u64::from(talker.due - talker.sent) + talker.awaited.len() as u64;
    }
}
