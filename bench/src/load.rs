//! Sends messages at a fixed rate and waits for nothing: open loop, against a server that echoes.
//!
//! A message is due at its time whether or not those before it are back, as it is with clients
//! that do not know each other. Its latency counts from when it was due: when a server stalls, or
//! the tool is late, the messages that should have been sent meanwhile count with all the time
//! they waited. Counted from the actual send instead, a stall is one slow message and many that
//! nobody sent: that figure stands beside, to show the difference.
//!
//! Number k of the schedule belongs to connection `k % connections`: each has its share of the
//! rate, and they take turns evenly. It is that connection's message number `k / connections`.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::echo::write_message;
use crate::engine::{Ending, Engine, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::open_loop::{self, BATCH, Course, Schedule};
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::round;
use crate::progress::{CLOSING, Sample};
use crate::websocket::{self, BINARY, Frame, PONG, TEXT};

/// Sends messages at a fixed rate and measures from when each was due (open loop).
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server that sends every message back, such as ws://127.0.0.1:8080/echo.
    #[arg(long)]
    pub(crate) url: String,
    /// The messages are spread over them evenly.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: u32,
    /// Messages per second of all connections together, such as "20000/s".
    #[arg(long, value_parser = options::rate)]
    pub(crate) rate: u32,
    /// How long to measure.
    #[arg(long = "seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "1", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(MESSAGE_BYTES_MIN)..=16_777_216))]
    pub(crate) size: u32,
    /// Binary messages instead of text.
    #[arg(long)]
    pub(crate) binary: bool,
    /// Messages under way on one connection; what comes due beyond is held back until one returns,
    /// and its latency counts on. 1 is a client that waits for each answer.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight_max: u32,
    /// Wastes this time in each turn, to see a tool that does not keep up.
    #[arg(long = "slow-down-seconds", hide = true, default_value = "0", value_parser = options::seconds)]
    pub(crate) slow_down: Duration,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// The number of a message takes so much of it.
pub(crate) const MESSAGE_BYTES_MIN: u32 = 16;

const OPENING_MAX: u32 = 256;
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);
/// What may wait to be sent when the server takes nothing, of all connections together.
const OUTGOING_BYTES_MAX: u64 = 1 << 30;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    let pids = watch.begin(&options.common)?;
    let target = options.common.target(&options.url)?;
    let seconds = (options.warm_up + options.measured).as_secs() + 1;
    let per_connection = u64::from(options.rate) * seconds / u64::from(options.connections.max(1));
    if per_connection >= u64::from(u32::MAX) {
        let text =
            format!("{per_connection} messages on each connection are more than are counted");
        return Err(io::Error::other(format!("{text}: take more connections, or less time")));
    }
    kernel::wake_on_time();
    let mut engine = Engine::new(Settings {
        targets: vec![target.clone()],
        clients_per_target: options.connections,
        opening_max: OPENING_MAX,
        opens_per_second_max: None,
        open_timeout: Duration::from_secs(10),
        keep_buffers: true,
        buffer_bytes: 64 * 1024,
        slots_per_ring_max: u32::MAX,
        congestion: options.common.congestion.clone(),
    })?;
    let mut load = Load::new(options);
    engine.open_all(&mut load, OPENING_TIMEOUT, watch)?;

    let started_at = SystemTime::now();
    load.schedule = Schedule::new(options.rate, options.warm_up, options.measured);
    let mut course = Course::new(options.common.cpu, &pids);
    while course.goes_on(&mut load.schedule, stopped(), load.pending == 0) {
        send_due(&mut engine, &mut load);
        let wait = course.wait(&load.schedule);
        engine.turn(&mut load, wait)?;
        watch.tick(&load.sample(course.phase(&load.schedule), &engine));
        if !options.slow_down.is_zero() {
            let wasted = Instant::now();
            while wasted.elapsed() < options.slow_down {
                std::hint::spin_loop();
            }
        }
    }
    watch.tick(&load.sample((CLOSING, None), &engine));
    load.count_lost();

    // Ends that come from here on are ours.
    let early = engine.counts.early.clone();
    engine.close_all(&mut load, CLOSING_TIMEOUT)?;

    let complete = course.complete;
    let usage = course.usage();
    let per_second = |count: u64| round(count as f64 / usage.seconds.max(1e-9));
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("load, open loop: latency counts from when a message was due"));
    put("address", json!(target.address.to_string()));
    put("complete", json!(complete));
    put("connections", json!(options.connections));
    put("message_bytes", json!(options.size));
    put("in_flight_max_per_connection", json!(load.in_flight_max));
    put("measured_seconds", round(usage.seconds));
    put("offered_per_second", json!(options.rate));
    put("sent_per_second", per_second(load.counts.sent_in_time));
    put("achieved_per_second", per_second(load.counts.back_in_time));
    put("due_count", json!(load.counts.due));
    put("back_count", json!(load.counts.back));
    put("lost_count", json!(load.counts.lost));
    put("never_sent_count", json!(load.counts.never_sent));
    put("held_back_count", json!(load.counts.held_back));
    put("faults_count", json!(load.counts.faults));
    put("ended_early_count", json!(early.total()));
    put("ended_early_by_reason", early.report());
    put("latency_us", histogram::report(&load.latency));
    put("latency_from_actual_send_us", histogram::report(&load.uncorrected));
    put("server", usage.server_report("message", load.counts.back_in_time));
    put("tool", usage.tool_report(&load.lag, "message", load.counts.back_in_time));
    let saturation = usage.saturation(&load.lag, load.latency.value_at_quantile(0.99));
    open_loop::put_saturation(&mut report, saturation.as_deref());
    let measured = load.schedule.measured();
    let Load { latency, uncorrected, lag, .. } = load;
    let histograms = vec![("latency", latency), ("from-actual-send", uncorrected), ("lag", lag)];
    let started_at = started_at + options.warm_up;
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

/// Puts on the way what has come due.
fn send_due(engine: &mut Engine, load: &mut Load) {
    let now_ns = load.schedule.now_ns();
    for _ in 0..BATCH {
        let Some(number) = load.schedule.next_due(now_ns) else { return };
        let client = load.on_due(number);
        if load.may_send(client) {
            // The clock once more: those before it in the batch took their time.
            let sent_ns = load.schedule.now_ns();
            engine.say(client, |out| load.send(client, sent_ns, out));
            let due_ns = load.schedule.due_ns(number);
            if load.schedule.is_measured(due_ns) {
                histogram::record(&mut load.lag, sent_ns - due_ns);
            }
        }
    }
}

struct Load {
    schedule: Schedule,
    connections: u64,
    in_flight_max: usize,
    talkers: Vec<Talker>,
    /// Letters, so that it is text; each message is stamped over its beginning.
    filler: Vec<u8>,
    /// Where a message is put together.
    message: Vec<u8>,
    opcode: u8,
    /// Due and not back, on open connections.
    pending: u64,
    counts: Counts,
    latency: Histogram<u64>,
    uncorrected: Histogram<u64>,
    lag: Histogram<u64>,
}

/// Messages due in the measured time: `due = back + lost`, and those never sent are lost.
#[derive(Default)]
struct Counts {
    due: u64,
    back: u64,
    lost: u64,
    never_sent: u64,
    /// Sent late, or never, because the connection had `in_flight_max` messages under way.
    held_back: u64,
    faults: u64,
    /// Sent, and come back, within the measured time.
    sent_in_time: u64,
    back_in_time: u64,
}

/// One connection: sent <= due, and `awaited` ends with the message before `sent`.
#[derive(Default)]
struct Talker {
    open: bool,
    /// Messages that have come due.
    due: u32,
    /// The first of them that is not sent.
    sent: u32,
    /// When each message under way was sent, oldest first.
    awaited: VecDeque<u64>,
}

impl Load {
    fn new(options: &Options) -> Load {
        let connections = u64::from(options.connections);
        // 14 is the longest header of a client's frame (RFC 6455 §5.2).
        let wire_bytes = u64::from(options.size) + 14;
        let affordable = (OUTGOING_BYTES_MAX / connections.max(1) / wire_bytes).max(1);
        Load {
            schedule: Schedule::new(options.rate, options.warm_up, options.measured),
            connections,
            in_flight_max: u64::from(options.in_flight_max).min(affordable) as usize,
            talkers: (0..connections).map(|_| Talker::default()).collect(),
            filler: (0..options.size).map(|i| b'a' + (i % 26) as u8).collect(),
            message: Vec::with_capacity(options.size as usize),
            opcode: if options.binary { BINARY } else { TEXT },
            pending: 0,
            counts: Counts::default(),
            latency: histogram::new(),
            uncorrected: histogram::new(),
            lag: histogram::new(),
        }
    }

    fn sample(&self, phase: (&'static str, Option<Duration>), engine: &Engine) -> Sample<'_> {
        let Counts { sent_in_time: sent, back_in_time: received, .. } = self.counts;
        let (phase, left, latency) = (phase.0, phase.1, Some(&self.latency));
        Sample { sent, received, latency, left, ..Sample::of(phase, &engine.counts) }
    }

    /// Counts a message that has come due, and says whose it is.
    fn on_due(&mut self, number: u64) -> u32 {
        let client = (number % self.connections) as u32;
        let talker = &mut self.talkers[client as usize];
        talker.due += 1;
        self.pending += u64::from(talker.open);
        let is_full = talker.awaited.len() >= self.in_flight_max;
        if self.schedule.is_measured(self.schedule.due_ns(number)) {
            self.counts.due += 1;
            self.counts.held_back += u64::from(is_full && talker.open);
        }
        client
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
        write_message(&mut self.message, &self.filler, client, sequence);
        let mask = sequence.wrapping_mul(0x9E37_79B9) ^ client;
        websocket::encode_frame(out, self.opcode, &self.message, mask);
        self.counts.sent_in_time += u64::from(self.schedule.is_in_time(now_ns));
    }

    fn due_ns(&self, client: u32, sequence: u32) -> u64 {
        self.schedule.due_ns(u64::from(sequence) * self.connections + u64::from(client))
    }

    /// Takes the oldest message under way from the list; it is back, or lost.
    fn settle(&mut self, client: u32, now_ns: u64, back: bool) {
        let talker = &mut self.talkers[client as usize];
        let sequence = talker.sent - talker.awaited.len() as u32;
        let Some(sent_ns) = talker.awaited.pop_front() else { return };
        self.pending -= u64::from(talker.open);
        let due_ns = self.due_ns(client, sequence);
        if self.schedule.is_measured(due_ns) {
            histogram::record(&mut self.latency, now_ns.saturating_sub(due_ns));
            histogram::record(&mut self.uncorrected, now_ns.saturating_sub(sent_ns));
            let count = if back { &mut self.counts.back } else { &mut self.counts.lost };
            *count += 1;
        }
    }

    /// Counts what has not come back, with the time that it has been out: it would have taken at
    /// least so long.
    fn count_lost(&mut self) {
        let now_ns = self.schedule.now_ns();
        for client in 0..self.talkers.len() as u32 {
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
            self.counts.due += u64::from(self.schedule.is_measured(due_ns));
            self.count_never_sent(due_ns, now_ns);
        }
    }

    fn count_never_sent(&mut self, due_ns: u64, now_ns: u64) {
        if self.schedule.is_measured(due_ns) {
            histogram::record(&mut self.latency, now_ns.saturating_sub(due_ns));
            self.counts.lost += 1;
            self.counts.never_sent += 1;
        }
    }

    fn fault(&mut self, text: &str) -> Result<(), String> {
        self.counts.faults += 1;
        Err(text.to_owned())
    }
}

/// The sequence number that `write_message` put into a message.
fn read_sequence(message: &[u8]) -> Option<u32> {
    let letters: &[u8; 16] = message.first_chunk()?;
    letters[8..].iter().rev().try_fold(0, |number: u32, letter| match letter {
        b'A'..=b'P' => Some(number << 4 | u32::from(letter - b'A')),
        _ => None,
    })
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
        let now_ns = self.schedule.ns_of(now);
        let talker = &self.talkers[client as usize];
        let oldest = talker.sent - talker.awaited.len() as u32;
        let Some(sequence) = read_sequence(frame.payload) else {
            return self.fault("an echo that is not what was sent");
        };
        if !(oldest..talker.sent).contains(&sequence) {
            return self.fault("a message that nobody sent, or that was back already");
        }
        write_message(&mut self.message, &self.filler, client, sequence);
        if frame.opcode != self.opcode || frame.payload != self.message {
            return self.fault("an echo that is not what was sent");
        }
        for _ in oldest..sequence {
            self.settle(client, now_ns, false);
        }
        self.settle(client, now_ns, true);
        self.counts.back_in_time += u64::from(self.schedule.is_in_time(now_ns));
        while self.may_send(client) {
            self.send(client, now_ns, out);
        }
        Ok(())
    }

    fn on_end(&mut self, client: u32, _ending: &Ending) {
        let talker = &mut self.talkers[client as usize];
        talker.open = false;
        // What was under way stays awaited, to be counted at the end of the run.
        self.pending -= u64::from(talker.due - talker.sent) + talker.awaited.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_message_is_read_back() {
        let filler = [b'z'; 20];
        let mut message = Vec::new();
        for sequence in [0, 1, 15, 16, 0x1234_5678, u32::MAX] {
            write_message(&mut message, &filler, 77, sequence);
            assert_eq!(read_sequence(&message), Some(sequence));
        }
        message[9] = b'Q';
        assert_eq!((read_sequence(&message), read_sequence(&message[..15])), (None, None));
    }
}
