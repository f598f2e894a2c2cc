//! Publishes into rooms at a fixed rate and sees that each message reaches each member once and in
//! order, and when.
//!
//! Number k of the schedule is published in room `k % rooms`; it is that room's message number
//! `k / rooms`. Each room has one publisher, its first member, so its messages have one order. The
//! stamp in a message says its room, its number and when it was due.
//!
//! Memberships are numbered through, `members` to a room, and dealt out to the connections in
//! turn: membership m is connection `m % connections`. With no fewer connections than a room has
//! members, no connection is in a room twice.

mod plain;
mod rooms;

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Reasons, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::open_loop::{self, BATCH, Course, Schedule};
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::round;
use crate::progress::{CLOSING, Sample};
use crate::websocket::{self, Frame, PONG, TEXT};
use plain::Plain;
use rooms::Rooms;

/// How a server's rooms are spoken to, in text messages. A publisher is a member of its room and
/// gets its own messages too.
pub(crate) trait Dialect {
    /// Appends the message that joins a room, or nothing, when being connected is enough.
    fn join(&self, room: u32, out: &mut Vec<u8>);

    /// Appends the message that publishes `data`, which is letters only.
    fn publish(&self, room: u32, data: &[u8], out: &mut Vec<u8>);

    /// What a message of the server says. An error is one that cannot be understood.
    fn read<'a>(&self, payload: &'a [u8]) -> Result<Event<'a>, String>;
}

/// What a message of a server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    Joined,
    Message {
        room: u32,
        data: Cow<'a, [u8]>,
    },
    /// A request was not done.
    Refused(String),
    /// Of no interest here.
    Other,
}

/// Publishes into rooms at a fixed rate and sees that every member gets every message, once and in
/// order; exits with 1 when not.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server with rooms, such as ws://127.0.0.1:8080/.
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rooms: u32,
    /// Members of each room.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) members: u32,
    /// What the members are spread over; one for each when not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: Option<u32>,
    /// Messages published per second in all rooms together, such as "20/s".
    #[arg(long, value_parser = options::rate)]
    pub(crate) rate: u32,
    /// How long to measure.
    #[arg(long = "seconds", default_value = "10", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) measured: Duration,
    /// The same, unmeasured, before.
    #[arg(long = "warm-up-seconds", default_value = "1", value_parser = options::seconds, value_name = "SECONDS")]
    pub(crate) warm_up: Duration,
    /// Bytes of what is published; the frame around it is the dialect's.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(MESSAGE_BYTES_MIN)..=1_048_576))]
    pub(crate) size: u32,
    /// What the names of rooms begin with, before their number: letters, digits and `-`. In every run
    /// another when not given, as what others publish in a room would be in the way.
    #[arg(long)]
    pub(crate) room_prefix: Option<String>,
    /// The protocol that the server speaks.
    #[arg(long, value_enum, default_value_t = DialectName::Rooms)]
    pub(crate) dialect: DialectName,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// The dialects by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DialectName {
    /// Penstock's own (docs/ROOMS.md).
    Rooms,
    /// One room with everybody in it, of `serve --runtime send-loop`.
    Plain,
}

/// The stamp takes so much of a message.
pub(crate) const MESSAGE_BYTES_MIN: u32 = 32;

/// Memberships in all: eight bytes each.
pub(crate) const MEMBERSHIPS_MAX: u32 = 10_000_000;

const OPENING_MAX: u32 = 256;
const OPENING_TIMEOUT: Duration = Duration::from_secs(60);
const JOINING_TIMEOUT: Duration = Duration::from_secs(60);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(50);
/// Messages, and bytes of them, that have not reached every member. Beyond, the run is ended.
const OUTSTANDING_MAX: usize = 1 << 20;
const OUTSTANDING_BYTES_MAX: usize = 256 << 20;
/// Deliveries that were skipped and may still come. Beyond, a late one counts as a duplicate.
const SKIPPED_MAX: usize = 1 << 20;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    match options.dialect {
        DialectName::Plain if options.rooms > 1 => {
            Err(io::Error::other("the plain dialect has one room (--rooms 1)"))
        }
        DialectName::Plain => run_in(Plain, options, watch),
        DialectName::Rooms => {
            let fresh = || {
                let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                format!("bench-{}-{}-", std::process::id(), started.as_millis())
            };
            let prefix = options.room_prefix.clone().unwrap_or_else(fresh);
            run_in(Rooms::new(&prefix), options, watch)
        }
    }
}

fn run_in<D: Dialect>(dialect: D, options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    let pids = watch.begin(&options.common)?;
    let target = options.common.target(&options.url)?;
    check(options)?;
    kernel::wake_on_time();
    let mut engine = Engine::new(Settings {
        targets: vec![target.clone()],
        clients_per_target: options.connections(),
        opening_max: OPENING_MAX,
        opens_per_second_max: None,
        open_timeout: Duration::from_secs(10),
        keep_buffers: false,
        buffer_bytes: 64 * 1024,
        slots_per_ring_max: u32::MAX,
        congestion: options.common.congestion.clone(),
    })?;
    let mut fanout = Fanout::new(dialect, options);
    engine.open_all(&mut fanout, OPENING_TIMEOUT, watch)?;
    join_all(&mut engine, &mut fanout, &stopped)?;

    let started_at = SystemTime::now();
    fanout.schedule = Schedule::new(options.rate, options.warm_up, options.measured);
    let mut course = Course::new(options.common.cpu, &pids);
    let mut fell_behind = false;
    let outstanding_max = OUTSTANDING_MAX.min(OUTSTANDING_BYTES_MAX / options.size as usize).max(1);
    while course.goes_on(
        &mut fanout.schedule,
        stopped() || fell_behind,
        fanout.outstanding.is_empty(),
    ) {
        publish_due(&mut engine, &mut fanout);
        fell_behind |= fanout.outstanding.len() >= outstanding_max;
        let wait = course.wait(&fanout.schedule);
        engine.turn(&mut fanout, wait)?;
        watch.tick(&fanout.sample(course.phase(&fanout.schedule), &engine));
    }
    watch.tick(&fanout.sample((CLOSING, None), &engine));
    fanout.count_missing();

    // Ends that come from here on are ours.
    let early = engine.counts.early.clone();
    engine.close_all(&mut fanout, CLOSING_TIMEOUT)?;

    let complete = course.complete;
    let usage = course.usage();
    let per_second = |count: u64| round(count as f64 / usage.seconds.max(1e-9));
    let counts = &fanout.counts;
    let wrong = counts.missing + counts.duplicates + counts.reordered + counts.faults;
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("fan-out, open loop: times count from when a publish was due"));
    put("address", json!(target.address.to_string()));
    put("complete", json!(complete));
    put("fell_behind", json!(fell_behind));
    put("rooms", json!(options.rooms));
    put("members_per_room", json!(options.members));
    put("connections", json!(options.connections()));
    put("message_bytes", json!(options.size));
    put("measured_seconds", round(usage.seconds));
    put("offered_publishes_per_second", json!(options.rate));
    put("publishes_per_second", per_second(counts.published_in_time));
    put("deliveries_per_second", per_second(counts.delivered_in_time));
    put("delivered_count", json!(counts.delivered));
    put("ok", json!(wrong == 0));
    put("missing_count", json!(counts.missing));
    put("duplicates_count", json!(counts.duplicates));
    put("reordered_count", json!(counts.reordered));
    put("faults_count", json!(counts.faults));
    put("never_published_count", json!(counts.never_published));
    put("refused_by_reason", fanout.refused.report());
    put("ended_early_count", json!(early.total()));
    put("ended_early_by_reason", early.report());
    put("first_member_us", histogram::report(&fanout.first));
    put("median_member_us", histogram::report(&fanout.median));
    put("last_member_us", histogram::report(&fanout.last));
    put("each_delivery_us", histogram::report(&fanout.each));
    put("server", usage.server_report("delivery", counts.delivered_in_time));
    put("tool", usage.tool_report(&fanout.lag, "delivery", counts.delivered_in_time));
    let saturation = usage.saturation(&fanout.lag, fanout.last.value_at_quantile(0.99));
    open_loop::put_saturation(&mut report, saturation.as_deref());
    let measured = fanout.schedule.measured();
    let Fanout { each, first, median, last, lag, .. } = fanout;
    let histograms = vec![
        ("last".into(), last),
        ("each".into(), each),
        ("first".into(), first),
        ("median".into(), median),
        ("lag".into(), lag),
    ];
    let started_at = started_at + options.warm_up;
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

impl Options {
    fn connections(&self) -> u32 {
        self.connections.unwrap_or_else(|| self.rooms.saturating_mul(self.members))
    }
}

fn check(options: &Options) -> io::Result<()> {
    let Options { rooms, members, .. } = *options;
    let connections = options.connections();
    let refuse = |text: String| Err(io::Error::other(text));
    if u64::from(rooms) * u64::from(members) > u64::from(MEMBERSHIPS_MAX) {
        return refuse(format!(
            "{rooms} rooms of {members} are more than {MEMBERSHIPS_MAX} members"
        ));
    }
    if connections < members || u64::from(connections) > u64::from(rooms) * u64::from(members) {
        return refuse(format!(
            "{connections} connections: should be {members} (a connection joins a room once) to {} \
             (each is in a room)",
            rooms * members
        ));
    }
    let seconds = (options.warm_up + options.measured).as_secs() + 1;
    if u64::from(options.rate) * seconds / u64::from(rooms) >= u64::from(u32::MAX) {
        return refuse("more messages to a room than are counted: take less time".into());
    }
    Ok(())
}

/// Waits until all have joined; the joins were said when the connections opened.
fn join_all<D: Dialect>(
    engine: &mut Engine,
    fanout: &mut Fanout<D>,
    stopped: &impl Fn() -> bool,
) -> io::Result<()> {
    let started = Instant::now();
    let all = fanout.next_sequence.len() as u64;
    while fanout.joined < all && !stopped() {
        let failed = fanout.refused.total() + engine.counts.early.total() > 0;
        if failed || started.elapsed() > JOINING_TIMEOUT {
            let (refused, ended) = (fanout.refused.report(), engine.counts.early.report());
            let text = format!("{} of {all} joined; refused: {refused}", fanout.joined);
            return Err(io::Error::other(format!("{text}, connections ended: {ended}")));
        }
        engine.turn(fanout, TURN)?;
    }
    Ok(())
}

/// Publishes what has come due.
fn publish_due<D: Dialect>(engine: &mut Engine, fanout: &mut Fanout<D>) {
    let now_ns = fanout.schedule.now_ns();
    for _ in 0..BATCH {
        let Some(number) = fanout.schedule.next_due(now_ns) else { return };
        fanout.outstanding.push_back(0);
        let room = (number % u64::from(fanout.rooms)) as u32;
        let publisher = fanout.connection_of(room * fanout.members);
        let due_ns = fanout.schedule.due_ns(number);
        // The clock once more: those before it in the batch took their time.
        let sent_ns = fanout.schedule.now_ns();
        if !engine.say(publisher, |out| fanout.publish(number, out)) {
            fanout.counts.never_published += 1;
        } else if fanout.schedule.is_measured(due_ns) {
            histogram::record(&mut fanout.lag, sent_ns - due_ns);
            fanout.counts.published_in_time += u64::from(fanout.schedule.is_in_time(sent_ns));
        }
    }
}

struct Fanout<D> {
    dialect: D,
    schedule: Schedule,
    rooms: u32,
    members: u32,
    connections: u32,
    joined: u64,
    /// By membership: the number of its room's message that comes next.
    next_sequence: Vec<u32>,
    /// Membership and number of messages that others overtook.
    skipped: HashSet<(u32, u32)>,
    /// The first message that has not reached every member, and whom it and those after it have
    /// reached: base + outstanding.len() is the next to be published.
    base: u64,
    outstanding: VecDeque<u32>,
    filler: Vec<u8>,
    /// Where a message is put together.
    data: Vec<u8>,
    message: Vec<u8>,
    counts: Counts,
    refused: Reasons,
    each: Histogram<u64>,
    first: Histogram<u64>,
    median: Histogram<u64>,
    last: Histogram<u64>,
    lag: Histogram<u64>,
}

/// Of the whole run, warm-up included, where it does not say otherwise.
#[derive(Default)]
struct Counts {
    delivered: u64,
    missing: u64,
    duplicates: u64,
    reordered: u64,
    faults: u64,
    never_published: u64,
    /// Within the measured time.
    published_in_time: u64,
    delivered_in_time: u64,
}

impl<D: Dialect> Fanout<D> {
    fn new(dialect: D, options: &Options) -> Fanout<D> {
        Fanout {
            dialect,
            schedule: Schedule::new(options.rate, options.warm_up, options.measured),
            rooms: options.rooms,
            members: options.members,
            connections: options.connections(),
            joined: 0,
            next_sequence: vec![0; (options.rooms * options.members) as usize],
            skipped: HashSet::new(),
            base: 0,
            outstanding: VecDeque::new(),
            filler: (0..options.size).map(|i| b'a' + (i % 26) as u8).collect(),
            data: Vec::with_capacity(options.size as usize),
            message: Vec::new(),
            counts: Counts::default(),
            refused: Reasons::default(),
            each: histogram::new(),
            first: histogram::new(),
            median: histogram::new(),
            last: histogram::new(),
            lag: histogram::new(),
        }
    }

    fn sample(&self, phase: (&'static str, Option<Duration>), engine: &Engine) -> Sample<'_> {
        let Counts { published_in_time: sent, delivered_in_time: received, .. } = self.counts;
        let (phase, left, latency) = (phase.0, phase.1, Some(&self.each));
        Sample { sent, received, latency, left, ..Sample::of(phase, &engine.counts) }
    }

    fn connection_of(&self, membership: u32) -> u32 {
        membership % self.connections
    }

    /// The membership that a connection has in a room, if it has one.
    fn membership_of(&self, connection: u32, room: u32) -> Option<u32> {
        let first = room.checked_mul(self.members)?;
        let turns = (connection + self.connections - first % self.connections) % self.connections;
        (room < self.rooms && turns < self.members).then_some(first + turns)
    }

    fn publish(&mut self, number: u64, out: &mut Vec<u8>) {
        let (room, sequence) = self.split(number);
        self.data.clear();
        self.data.extend_from_slice(&self.filler);
        write_stamp(&mut self.data, Stamp { room, sequence, due_ns: self.schedule.due_ns(number) });
        self.message.clear();
        self.dialect.publish(room, &self.data, &mut self.message);
        let mask = websocket::scramble(number) as u32;
        websocket::encode_frame(out, TEXT, &self.message, mask);
    }

    /// The room of a message, and its number there.
    fn split(&self, number: u64) -> (u32, u32) {
        let rooms = u64::from(self.rooms);
        ((number % rooms) as u32, (number / rooms) as u32)
    }

    fn on_message(
        &mut self,
        connection: u32,
        room: u32,
        data: &[u8],
        now_ns: u64,
    ) -> Result<(), String> {
        let Some(membership) = self.membership_of(connection, room) else {
            return self.fault("a message of a room that this connection did not join");
        };
        let Some(stamp) = read_stamp(data) else {
            return self.fault("a message without a stamp");
        };
        let number = u64::from(stamp.sequence) * u64::from(self.rooms) + u64::from(room);
        let is_published = number < self.base + self.outstanding.len() as u64;
        if stamp.room != room || !is_published || stamp.due_ns != self.schedule.due_ns(number) {
            return self.fault("a message that nobody published in this room");
        }
        if data.len() != self.filler.len()
            || data[MESSAGE_BYTES_MIN as usize..] != self.filler[MESSAGE_BYTES_MIN as usize..]
        {
            return self.fault("a message that is not what was published");
        }
        let next = &mut self.next_sequence[membership as usize];
        if stamp.sequence >= *next {
            for skipped in *next..stamp.sequence {
                self.counts.missing += 1;
                if self.skipped.len() < SKIPPED_MAX {
                    self.skipped.insert((membership, skipped));
                }
            }
            *next = stamp.sequence + 1;
        } else if self.skipped.remove(&(membership, stamp.sequence)) {
            self.counts.missing -= 1;
            self.counts.reordered += 1;
        } else {
            self.counts.duplicates += 1;
            return Ok(());
        }
        self.on_delivered(number, now_ns);
        Ok(())
    }

    /// A message has reached one more member.
    fn on_delivered(&mut self, number: u64, now_ns: u64) {
        self.counts.delivered += 1;
        self.counts.delivered_in_time += u64::from(self.schedule.is_in_time(now_ns));
        // Not below the base: those have reached everybody, and a member counts once.
        let reached = &mut self.outstanding[(number - self.base) as usize];
        *reached += 1;
        let due_ns = self.schedule.due_ns(number);
        if self.schedule.is_measured(due_ns) {
            let ns = now_ns.saturating_sub(due_ns);
            histogram::record(&mut self.each, ns);
            for (histogram, at) in [
                (&mut self.first, 1),
                (&mut self.median, self.members.div_ceil(2)),
                (&mut self.last, self.members),
            ] {
                if *reached == at {
                    histogram::record(histogram, ns);
                }
            }
        }
        while self.outstanding.front() == Some(&self.members) {
            self.outstanding.pop_front();
            self.base += 1;
        }
    }

    /// Counts what has not been delivered, with the time that it has been out: it would have taken
    /// at least so long.
    fn count_missing(&mut self) {
        let now_ns = self.schedule.now_ns();
        let published = self.base + self.outstanding.len() as u64;
        for (membership, next) in (0..).zip(&self.next_sequence) {
            let room: u32 = membership / self.members;
            let in_room = published.saturating_sub(u64::from(room)).div_ceil(u64::from(self.rooms));
            self.counts.missing += in_room - u64::from(*next);
        }
        for (number, reached) in (self.base..).zip(&self.outstanding) {
            let due_ns = self.schedule.due_ns(number);
            if !self.schedule.is_measured(due_ns) {
                continue;
            }
            let ns = now_ns.saturating_sub(due_ns);
            for (histogram, at) in [
                (&mut self.first, 1),
                (&mut self.median, self.members.div_ceil(2)),
                (&mut self.last, self.members),
            ] {
                if *reached < at {
                    histogram::record(histogram, ns);
                }
            }
            for _ in *reached..self.members {
                histogram::record(&mut self.each, ns);
            }
        }
    }

    fn fault(&mut self, text: &str) -> Result<(), String> {
        self.counts.faults += 1;
        Err(text.to_owned())
    }
}

impl<D: Dialect> Scenario for Fanout<D> {
    fn on_open(&mut self, client: u32, _now: Instant, out: &mut Vec<u8>) {
        let all = self.next_sequence.len() as u32;
        for membership in (client..all).step_by(self.connections as usize) {
            self.message.clear();
            self.dialect.join(membership / self.members, &mut self.message);
            if self.message.is_empty() {
                self.joined += 1;
            } else {
                let mask = websocket::scramble(u64::from(membership)) as u32;
                websocket::encode_frame(out, TEXT, &self.message, mask);
            }
        }
    }

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if frame.opcode == PONG {
            return Ok(());
        }
        match self.dialect.read(frame.payload) {
            Ok(Event::Message { room, data }) => {
                let now_ns = self.schedule.ns_of(now);
                self.on_message(client, room, &data, now_ns)?;
            }
            Ok(Event::Joined) => self.joined += 1,
            Ok(Event::Refused(reason)) => self.refused.add(&reason),
            Ok(Event::Other) => {}
            Err(reason) => return self.fault(&reason),
        }
        Ok(())
    }

    fn on_end(&mut self, _client: u32, _ending: &Ending) {}
}

/// What is written over the beginning of a message, in letters: 4 bits each, the highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    room: u32,
    sequence: u32,
    due_ns: u64,
}

fn write_stamp(data: &mut [u8], stamp: Stamp) {
    let halves = [u64::from(stamp.room) << 32 | u64::from(stamp.sequence), stamp.due_ns];
    for (letters, number) in data.chunks_exact_mut(16).zip(halves) {
        for (i, letter) in letters.iter_mut().enumerate() {
            *letter = b'A' + (number >> (60 - 4 * i) & 0xF) as u8;
        }
    }
}

fn read_stamp(data: &[u8]) -> Option<Stamp> {
    let letters: &[u8; MESSAGE_BYTES_MIN as usize] = data.first_chunk()?;
    let number = |letters: &[u8]| {
        letters.iter().try_fold(0u64, |number, letter| match letter {
            b'A'..=b'P' => Some(number << 4 | u64::from(letter - b'A')),
            _ => None,
        })
    };
    let (place, due_ns) = (number(&letters[..16])?, number(&letters[16..])?);
    Some(Stamp { room: (place >> 32) as u32, sequence: place as u32, due_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fanout(rooms: u32, members: u32, connections: u32) -> Fanout<Rooms> {
        let options: Options = crate::options::tests::parse(&format!(
            "--url ws://127.0.0.1:1/ --rooms {rooms} --members {members} \
             --connections {connections} --rate 1000 --warm-up-seconds 0 --seconds 1 --size 40"
        ));
        check(&options).unwrap();
        Fanout::new(Rooms::new("r"), &options)
    }

    #[test]
    fn stamps_are_read_back() {
        let stamp = Stamp { room: 3, sequence: u32::MAX, due_ns: 0x0123_4567_89AB_CDEF };
        let mut data = vec![b'z'; 40];
        write_stamp(&mut data, stamp);
        assert_eq!((read_stamp(&data), &data[32..]), (Some(stamp), &b"zzzzzzzz"[..]));
        assert_eq!(read_stamp(&data[..31]), None);
        data[31] = b'Q';
        assert_eq!(read_stamp(&data), None);
    }

    #[test]
    fn memberships_are_found_as_they_were_dealt() {
        for (rooms, members, connections) in
            [(1, 5, 5), (4, 5, 7), (6, 4, 4), (3, 4, 12), (2, 3, 5)]
        {
            let fanout = fanout(rooms, members, connections);
            let mut found = vec![];
            for (room, connection) in
                (0..rooms + 2).flat_map(|room| (0..connections).map(move |c| (room, c)))
            {
                if let Some(membership) = fanout.membership_of(connection, room) {
                    assert_eq!(fanout.connection_of(membership), connection);
                    assert_eq!(membership / members, room);
                    found.push(membership);
                }
            }
            found.sort_unstable();
            assert_eq!(found, (0..rooms * members).collect::<Vec<_>>());
        }
    }

    /// Publishes three messages to two members, delivers what `deliveries` says (connection and
    /// number), and compares missing, duplicate, reordered, and faulty ones.
    #[track_caller]
    fn check_order(deliveries: &[(u32, u64)], want: [u64; 4]) {
        let mut fanout = fanout(1, 2, 2);
        for _ in 0..3 {
            fanout.schedule.next_due(u64::MAX);
            fanout.outstanding.push_back(0);
        }
        for (connection, number) in deliveries {
            let mut data = fanout.filler.clone();
            let due_ns = number * 1_000_000;
            write_stamp(&mut data, Stamp { room: 0, sequence: *number as u32, due_ns });
            let _ = fanout.on_message(*connection, 0, &data, due_ns + 7);
        }
        fanout.count_missing();
        let Counts { missing, duplicates, reordered, faults, .. } = fanout.counts;
        assert_eq!([missing, duplicates, reordered, faults], want);
        // Nothing leaves the histograms.
        assert_eq!((fanout.last.len(), fanout.each.len()), (3, 6));
    }

    #[test]
    fn what_is_not_once_and_in_order_is_counted() {
        check_order(&[(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2)], [0, 0, 0, 0]);
        check_order(&[], [6, 0, 0, 0]);
        check_order(&[(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)], [1, 0, 0, 0]);
        check_order(&[(0, 0), (0, 2), (0, 1), (1, 0), (1, 1), (1, 2)], [0, 0, 1, 0]);
        check_order(
            &[(0, 0), (0, 1), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 0)],
            [0, 2, 0, 0],
        );
        check_order(&[(0, 2), (0, 1), (0, 1), (0, 0), (1, 0), (1, 1)], [1, 1, 2, 0]);
        check_order(&[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)], [0, 0, 0, 1]);
    }

    #[test]
    fn a_message_of_another_room_or_time_is_a_fault() {
        let mut fanout = fanout(2, 1, 2);
        for _ in 0..2 {
            fanout.schedule.next_due(u64::MAX);
            fanout.outstanding.push_back(0);
        }
        let good = Stamp { room: 1, sequence: 0, due_ns: 1_000_000 };
        let mut deliver = |connection: u32, room: u32, stamp: Stamp, len: usize| {
            let mut data = fanout.filler.clone();
            write_stamp(&mut data, stamp);
            data.truncate(len);
            fanout.on_message(connection, room, &data, 0)
        };
        assert!(deliver(0, 1, good, 40).unwrap_err().contains("did not join"));
        assert!(deliver(1, 1, Stamp { room: 0, ..good }, 40).unwrap_err().contains("nobody"));
        assert!(deliver(1, 1, Stamp { due_ns: 1, ..good }, 40).unwrap_err().contains("nobody"));
        assert!(deliver(1, 1, good, 39).unwrap_err().contains("not what was published"));
        assert!(deliver(1, 1, good, 31).unwrap_err().contains("stamp"));
        assert!(deliver(1, 1, good, 40).is_ok());
    }
}
