//! Publishes into rooms at a fixed rate and sees that each message reaches each member once and in
//! order, and when.
//!
//! `dialect.rs` is how a server's rooms are spoken to, with a file for each kind of server beside
//! it; `ledger.rs` is who is to get what and who got it, `slow.rs` those who stop reading. Here are
//! the run and its connections.

mod centrifuge;
mod dialect;
mod ledger;
mod mqtt;
mod nats;
mod plain;
mod pusher;
mod rooms;
mod slow;
mod socketio;
mod topics;

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value, json};

use crate::engine::{Ending, Engine, Reasons, Request, Scenario, Settings};
use crate::histogram;
use crate::kernel;
use crate::open_loop::{self, BATCH, Course, Schedule};
use crate::options::{self, Common};
use crate::outcome::{Outcome, Watch};
use crate::proc::{self, round};
use crate::progress::{CLOSING, Sample};
use crate::websocket::{self, Frame, PONG};
use dialect::{Dialect, DialectOptions, Event, Form, Names};
use ledger::{Delivered, Ledger, MESSAGE_BYTES_MIN, Shape};
use slow::{Reading, Slow, SlowOptions};

/// Publishes into rooms at a fixed rate and sees that every member gets every message, once and in
/// order; exits with 1 when not.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Of a server with rooms, such as ws://127.0.0.1:8080/. Without a path it is the dialect's own.
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
    /// Publishers of each room, which take turns. They are its first members.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) publishers: u32,
    /// Publishers are no members and have connections of their own. Always so with `topics`.
    #[arg(long)]
    pub(crate) publishers_apart: bool,
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
    #[command(flatten)]
    pub(crate) dialect: DialectOptions,
    #[command(flatten)]
    pub(crate) slow: SlowOptions,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Memberships in all, each with a place for each publisher of its room: four bytes each.
const STREAMS_MAX: u64 = 10_000_000;

const OPENING_TIMEOUT: Duration = Duration::from_secs(60);
const JOINING_TIMEOUT: Duration = Duration::from_secs(60);
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(50);
/// What is held of an event that is not whole, beside the data of a message.
const PARTIAL_BYTES_MAX: usize = 64 * 1024;

/// Runs it. Ends early, with what there is, when the watch says so.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    let stopped = || watch.stopped();
    let fresh = || {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("bench-{}-{}-", std::process::id(), started.as_millis())
    };
    let prefix = options.room_prefix.clone().unwrap_or_else(fresh);
    let dialect = options.dialect.dialect(Names::new(&prefix)).map_err(io::Error::other)?;
    let shape = shape(options, dialect.form()).map_err(io::Error::other)?;
    let slow = Slow::new(&options.slow, &shape, options.warm_up, options.measured);
    let slow = slow.map_err(io::Error::other)?;
    let pids = watch.begin(&options.common)?;
    let mut target = options.common.target(&options.url)?;
    if target.path == "/" {
        target.path = dialect.path();
    }
    kernel::wake_on_time();
    let mut engine =
        Engine::new(Settings::new(vec![target.clone()], shape.clients(), &options.common))?;
    let schedule = || Schedule::new(options.rate, options.warm_up, options.measured);
    let mut fanout = Fanout::new(dialect, Ledger::new(shape, schedule(), options.size, slow));
    engine.open_all(&mut fanout, OPENING_TIMEOUT, watch)?;
    join_all(&mut engine, &mut fanout, &stopped)?;

    let started_at = SystemTime::now();
    fanout.ledger.schedule = schedule();
    let mut course = Course::new(options.common.cpu, &pids);
    let mut fell_behind = false;
    loop {
        let stop = stopped() || fell_behind;
        pause_slow(&mut engine, &mut fanout, stop, &pids);
        let ledger = &fanout.ledger;
        // The slow ones are looked at when nothing else is left to wait for.
        let is_even = ledger.is_even()
            && !(ledger.schedule.not_handed_out().is_empty() && ledger.slow_are_behind());
        if !course.goes_on(&mut fanout.ledger.schedule, stop, is_even) {
            break;
        }
        publish_due(&mut engine, &mut fanout);
        keep_alive(&mut engine, &mut fanout);
        fell_behind |= fanout.ledger.fell_behind();
        let wait = course.wait(&fanout.ledger.schedule);
        engine.turn(&mut fanout, wait)?;
        watch.tick(&fanout.sample(course.phase(&fanout.ledger.schedule), &engine));
    }
    watch.tick(&fanout.sample((CLOSING, None), &engine));
    fanout.ledger.count_missing();
    pause_slow(&mut engine, &mut fanout, true, &[]);

    // Ends that come from here on are ours.
    fanout.is_closing = true;
    engine.close_all(&mut fanout, CLOSING_TIMEOUT)?;

    let complete = course.complete;
    let usage = course.usage();
    let Fanout { mut ledger, refused, early, .. } = fanout;
    let slow = ledger.slow.take();
    let slow_report = slow.as_ref().map(|slow| slow.report(&shape, |m| ledger.is_behind(m)));
    let Ledger { counts, times, schedule, .. } = ledger;
    let per_second = |count: u64| round(count as f64 / usage.seconds.max(1e-9));
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| {
        report.insert(key.to_owned(), value);
    };
    put("scenario", json!("fan-out, open loop: times count from when a publish was due"));
    put("address", json!(target.address.to_string()));
    put("dialect", json!(options.dialect.name()));
    put("complete", json!(complete));
    put("fell_behind", json!(fell_behind));
    put("rooms", json!(shape.rooms));
    put("members_per_room", json!(shape.members));
    put("connections", json!(shape.clients()));
    put("publishers_per_room", json!(shape.publishers));
    put("publishers_apart", json!(shape.apart));
    put("deliveries_per_publish", json!(shape.deliveries()));
    put("message_bytes", json!(options.size));
    put("measured_seconds", round(usage.seconds));
    put("offered_publishes_per_second", json!(options.rate));
    put("publishes_per_second", per_second(counts.published_in_time));
    put("deliveries_per_second", per_second(counts.delivered_in_time));
    put("delivered_count", json!(counts.delivered));
    put("ok", json!(counts.is_ok()));
    put("missing_count", json!(counts.missing));
    put("duplicates_count", json!(counts.duplicates));
    put("reordered_count", json!(counts.reordered));
    put("faults_count", json!(counts.faults));
    put("never_published_count", json!(counts.never_published));
    put("refused_by_reason", refused.report());
    put("ended_early_count", json!(early.total()));
    put("ended_early_by_reason", early.report());
    put("first_member_us", histogram::report(&times.first));
    put("median_member_us", histogram::report(&times.median));
    put("last_member_us", histogram::report(&times.last));
    put("each_delivery_us", histogram::report(&times.each));
    if let Some(report) = slow_report {
        put("slow", report);
    }
    put("server", usage.server_report("delivery", counts.delivered_in_time));
    put("tool", usage.tool_report(&times.lag, "delivery", counts.delivered_in_time));
    let saturation = usage.saturation(&times.lag, times.last.value_at_quantile(0.99));
    open_loop::put_saturation(&mut report, saturation.as_deref());
    let measured = schedule.measured();
    let mut histograms = vec![
        ("last".into(), times.last),
        ("each".into(), times.each),
        ("first".into(), times.first),
        ("median".into(), times.median),
        ("lag".into(), times.lag),
    ];
    histograms.extend(slow.into_iter().flat_map(Slow::into_histograms));
    let started_at = started_at + options.warm_up;
    Ok(Outcome { figures: report, histograms, started_at, measured })
}

/// Who is where, with what is asked for checked against what there can be.
fn shape(options: &Options, form: Form) -> Result<Shape, String> {
    let &Options { rooms, members, publishers, .. } = options;
    let all = u64::from(rooms) * u64::from(members);
    let apart = options.publishers_apart || form.room_in_path;
    if all * u64::from(publishers) > STREAMS_MAX {
        return Err(format!(
            "{rooms} rooms of {members} are more than {STREAMS_MAX} members (times publishers)"
        ));
    }
    if rooms > form.rooms_max {
        return Err(format!("{rooms} rooms: this dialect has {} (--rooms)", form.rooms_max));
    }
    if options.publishers_apart && form.publishers_are_members {
        return Err("this dialect's publishers have to be members".into());
    }
    if !apart && publishers > members {
        return Err(format!("{publishers} publishers of {members} members (--publishers)"));
    }
    if !apart && !form.hears_itself && members < 2 {
        return Err("a room of one, who does not hear itself: nothing to deliver".into());
    }
    // It fits: it is below the bound above.
    let connections = options.connections.unwrap_or(rooms * members);
    if connections < members || u64::from(connections) > all {
        return Err(format!(
            "{connections} connections: should be {members} (a connection joins a room once) to \
             {all} (each is in a room)"
        ));
    }
    if form.room_in_path && u64::from(connections) != all {
        return Err(format!("{connections} connections: each is in one room here, so {all}"));
    }
    let seconds = (options.warm_up + options.measured).as_secs() + 1;
    if u64::from(options.rate) * seconds / u64::from(rooms) >= u64::from(u32::MAX) {
        return Err("more messages to a room than are counted: take less time".into());
    }
    let hears_itself = form.hears_itself;
    Ok(Shape { rooms, members, connections, publishers, apart, hears_itself })
}

/// Waits until all have joined. What a server does not confirm is found out by messages: a member
/// that gets one has joined.
fn join_all(
    engine: &mut Engine,
    fanout: &mut Fanout,
    stopped: &impl Fn() -> bool,
) -> io::Result<()> {
    let shape = fanout.ledger.shape;
    let (all, started) = (u64::from(shape.memberships()), Instant::now());
    let (mut probe_at, mut probe_again) = (started, Duration::from_secs(1));
    while (fanout.ready < shape.clients() || fanout.joined < all) && !stopped() {
        let failed = fanout.refused.total() + engine.counts.early.total() > 0;
        if failed || started.elapsed() > JOINING_TIMEOUT {
            let (refused, ended) = (fanout.refused.report(), engine.counts.early.report());
            let text = format!("{} of {all} joined; refused: {refused}", fanout.joined);
            return Err(io::Error::other(format!("{text}, connections ended: {ended}")));
        }
        let is_to_probe = !fanout.form.confirms_joins && fanout.ready == shape.clients();
        if is_to_probe && Instant::now() >= probe_at {
            probe(engine, fanout);
            probe_at = Instant::now() + probe_again;
            probe_again *= 2;
        }
        keep_alive(engine, fanout);
        engine.turn(fanout, TURN)?;
    }
    Ok(())
}

/// Publishes in each room that not all have joined. Where a publisher does not hear itself, a
/// second one asks for it.
fn probe(engine: &mut Engine, fanout: &mut Fanout) {
    let shape = fanout.ledger.shape;
    for room in 0..shape.rooms {
        let first = (room * shape.members) as usize;
        if fanout.has_joined[first..first + shape.members as usize].iter().all(|joined| *joined) {
            continue;
        }
        for publisher in 0..shape.publishers.min(2) {
            let client = shape.publisher(room, publisher);
            engine.say(client, |out| fanout.write_probe(room, out));
        }
    }
}

/// Publishes what has come due.
fn publish_due(engine: &mut Engine, fanout: &mut Fanout) {
    let now_ns = fanout.ledger.schedule.now_ns();
    for _ in 0..BATCH {
        let Some(number) = fanout.ledger.schedule.next_due(now_ns) else { return };
        let (room, publisher) = fanout.ledger.publish(number);
        let due_ns = fanout.ledger.schedule.due_ns(number);
        // The clock once more: those before it in the batch took their time.
        let sent_ns = fanout.ledger.schedule.now_ns();
        let said = engine.say(publisher, |out| fanout.write_message(room, number, out));
        let Ledger { schedule, counts, times, .. } = &mut fanout.ledger;
        if !said {
            counts.never_published += 1;
        } else if schedule.is_measured(due_ns) {
            histogram::record(&mut times.lag, sent_ns - due_ns);
            counts.published_in_time += u64::from(schedule.is_in_time(sent_ns));
        }
    }
}

/// Gives a sign of life on each connection in turn, all of them once in the time that the dialect
/// names.
fn keep_alive(engine: &mut Engine, fanout: &mut Fanout) {
    let Some((every, text)) = fanout.form.keep_alive else { return };
    let clients = u64::from(fanout.ledger.shape.clients());
    let rounds = fanout.opened_at.elapsed().as_secs_f64() / every.as_secs_f64();
    let due = (rounds * clients as f64) as u64;
    for _ in 0..BATCH {
        if fanout.kept_alive >= due {
            return;
        }
        let client = (fanout.kept_alive % clients) as u32;
        let (opcode, mask) = (fanout.form.opcode, fanout.next_mask());
        engine.say(client, |out| websocket::encode_frame(out, opcode, text, mask));
        fanout.kept_alive += 1;
    }
}

/// Has the slow members stop reading when it is time, and read again later, or at once when the run
/// is over; watches the server's memory from then on.
fn pause_slow(engine: &mut Engine, fanout: &mut Fanout, is_over: bool, pids: &[u32]) {
    let now_ns = fanout.ledger.schedule.now_ns();
    let Some(slow) = &mut fanout.ledger.slow else { return };
    match slow.reading {
        Reading::NotYetPaused if now_ns >= slow.window_ns.start && !is_over => {
            slow.reading = Reading::Paused;
            slow.connections.iter().for_each(|client| engine.pause_reading(*client));
        }
        Reading::Paused if now_ns >= slow.window_ns.end || is_over => {
            slow.reading = Reading::Resumed;
            slow.connections.iter().for_each(|client| engine.resume_reading(*client));
        }
        _ => {}
    }
    if slow.reading != Reading::NotYetPaused && fanout.rss_read_at.elapsed() >= TURN {
        slow.on_rss(proc::rss_bytes(pids));
        fanout.rss_read_at = Instant::now();
    }
}

struct Fanout {
    dialect: Box<dyn Dialect>,
    form: Form,
    ledger: Ledger,
    links: Vec<Link>,
    /// Connections that may join.
    ready: u32,
    /// Memberships that have begun.
    joined: u64,
    /// By membership, where joins are not confirmed.
    has_joined: Vec<bool>,
    opened_at: Instant,
    /// Signs of life.
    kept_alive: u64,
    /// Frames that were made.
    frames: u64,
    /// Where a message is put together.
    data: Vec<u8>,
    message: Vec<u8>,
    refused: Reasons,
    /// Connections that the server ended, but those of slow members.
    early: Reasons,
    /// Ends are ours.
    is_closing: bool,
    rss_read_at: Instant,
}

/// One connection: 32 bytes.
#[derive(Default)]
struct Link {
    is_ready: bool,
    /// Joins that the server has not confirmed.
    joins_pending: u32,
    /// The beginning of an event that is not whole.
    partial: Vec<u8>,
}

impl Fanout {
    fn new(dialect: Box<dyn Dialect>, ledger: Ledger) -> Fanout {
        let form = dialect.form();
        let shape = ledger.shape;
        let to_probe = if form.confirms_joins { 0 } else { shape.memberships() };
        Fanout {
            dialect,
            form,
            ledger,
            links: (0..shape.clients()).map(|_| Link::default()).collect(),
            ready: 0,
            joined: 0,
            has_joined: vec![false; to_probe as usize],
            opened_at: Instant::now(),
            kept_alive: 0,
            frames: 0,
            data: Vec::new(),
            message: Vec::new(),
            refused: Reasons::default(),
            early: Reasons::default(),
            is_closing: false,
            rss_read_at: Instant::now(),
        }
    }

    fn sample(&self, phase: (&'static str, Option<Duration>), engine: &Engine) -> Sample<'_> {
        let counts = &self.ledger.counts;
        let (sent, received) = (counts.published_in_time, counts.delivered_in_time);
        let (phase, left, latency) = (phase.0, phase.1, Some(&self.ledger.times.each));
        Sample { sent, received, latency, left, ..Sample::of(phase, &engine.counts) }
    }

    fn write_message(&mut self, room: u32, number: u64, out: &mut Vec<u8>) {
        self.data.clear();
        self.ledger.write(number, &mut self.data);
        self.write_published(room, number, out);
    }

    fn write_probe(&mut self, room: u32, out: &mut Vec<u8>) {
        self.data.clear();
        self.ledger.write_probe(room, &mut self.data);
        self.write_published(room, u64::from(u32::MAX), out);
    }

    fn write_published(&mut self, room: u32, number: u64, out: &mut Vec<u8>) {
        self.message.clear();
        self.dialect.publish(room, number, &self.data, &mut self.message);
        self.write_frame(out);
    }

    /// Appends a frame with the message, if there is something in it.
    fn write_frame(&mut self, out: &mut Vec<u8>) {
        if !self.message.is_empty() {
            let mask = self.next_mask();
            websocket::encode_frame(out, self.form.opcode, &self.message, mask);
        }
    }

    fn next_mask(&mut self) -> u32 {
        self.frames += 1;
        websocket::scramble(self.frames) as u32
    }

    /// Takes events off the front of what a connection has received; says how many bytes.
    fn read(
        &mut self,
        client: u32,
        input: &[u8],
        now_ns: u64,
        out: &mut Vec<u8>,
    ) -> Result<usize, String> {
        let mut taken = 0;
        while taken < input.len() {
            self.message.clear();
            let event = match self.dialect.next(&input[taken..], &mut self.message) {
                Ok(None) => break,
                Ok(Some((event, event_bytes))) => {
                    taken += event_bytes;
                    event
                }
                Err(reason) => {
                    self.ledger.counts.faults += 1;
                    return Err(reason);
                }
            };
            // What the server wants to hear at once; its greeting is answered once.
            if !(matches!(event, Event::Ready(_)) && self.links[client as usize].is_ready) {
                self.write_frame(out);
            }
            match event {
                Event::Message { room, data } => {
                    let delivered = self.ledger.on_message(client, room, &data, now_ns)?;
                    if let Delivered::Probe { membership } = delivered {
                        self.on_probe(membership);
                    }
                }
                Event::Ready(session) => self.on_ready(client, &session, out),
                Event::Joined => {
                    let link = &mut self.links[client as usize];
                    if link.joins_pending == 0 {
                        return Ok(self.ledger.fault("a join confirmed that nobody asked for")?);
                    }
                    link.joins_pending -= 1;
                    self.joined += 1;
                }
                Event::Refused(reason) => self.refused.add(&reason),
                Event::Other => {}
            }
        }
        Ok(taken)
    }

    /// Joins a connection's rooms. A server that greets again, as NATS does with news, changes
    /// nothing.
    fn on_ready(&mut self, client: u32, session: &[u8], out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.links[client as usize].is_ready, true) {
            return;
        }
        self.ready += 1;
        let shape = self.ledger.shape;
        for membership in shape.memberships_of(client) {
            self.message.clear();
            self.dialect.join(membership / shape.members, session, &mut self.message);
            self.write_frame(out);
            if self.form.confirms_joins {
                self.links[client as usize].joins_pending += 1;
            } else if shape.publishers == 1 && !shape.is_for(membership, 0) {
                // Its room hears nobody but itself: there is nothing for it to get.
                self.on_probe(membership);
            }
        }
    }

    /// A member has got something, so it has joined.
    fn on_probe(&mut self, membership: u32) {
        let Some(has_joined) = self.has_joined.get_mut(membership as usize) else { return };
        self.joined += u64::from(!std::mem::replace(has_joined, true));
    }
}

impl Scenario for Fanout {
    fn request(&self, client: u32) -> Request<'_> {
        let path_suffix = self.dialect.path_suffix(self.ledger.shape.role(client)).into();
        Request { path_suffix, subprotocols: self.form.subprotocol.map(Into::into) }
    }

    fn on_open(&mut self, client: u32, _now: Instant, out: &mut Vec<u8>) {
        self.message.clear();
        self.dialect.open(client, &mut self.message);
        self.write_frame(out);
        if !self.form.greets {
            self.on_ready(client, b"", out);
        }
    }

    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        // A path to publish at may answer whatever it likes.
        let is_of_no_interest = self.form.room_in_path && client >= self.ledger.shape.connections;
        if frame.opcode == PONG || is_of_no_interest {
            return Ok(());
        }
        if frame.opcode != self.form.opcode {
            return Ok(self.ledger.fault("a binary message for text, or text for binary")?);
        }
        let now_ns = self.ledger.schedule.ns_of(now);
        let mut held = std::mem::take(&mut self.links[client as usize].partial);
        if held.is_empty() {
            let taken = self.read(client, frame.payload, now_ns, out)?;
            held.extend_from_slice(&frame.payload[taken..]);
        } else {
            held.extend_from_slice(frame.payload);
            let taken = self.read(client, &held, now_ns, out)?;
            held.drain(..taken);
        }
        if held.len() > PARTIAL_BYTES_MAX + self.ledger.message_bytes() {
            return Ok(self.ledger.fault("an event that is longer than any should be")?);
        }
        self.links[client as usize].partial = held;
        Ok(())
    }

    fn on_end(&mut self, client: u32, ending: &Ending) {
        let Ending::Early(reason) = ending else { return };
        if self.is_closing {
            return;
        }
        match self.ledger.slow.as_mut().filter(|slow| slow.has(client)) {
            Some(slow) => slow.on_end(client, reason),
            None => self.early.add(reason),
        }
    }
}
