//! WebSocket clients by the hundred thousand, in one thread.
//!
//! The engine opens connections, speaks the handshake, takes frames apart, answers Pings, and
//! closes; what is said on an open connection is the [`Scenario`]'s. A client is known by its
//! index: `client / slots_per_ring` is its ring, the rest its slot there.
//!
//! A client may be opened again after its connection has ended, in the same slot. Completions do
//! not say of which connection they are, so a slot is closed only when nothing is outstanding on
//! it, is closed once, and is opened again only when the close has answered: then no completion
//! can be of an earlier connection.
//!
//! Start reading at `turn`; `engine/client.rs` is one connection, `engine/counts.rs` the figures.

mod client;
mod counts;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::deflate::Codec;
use crate::histogram;
use crate::kernel::descriptors_max;
use crate::kernel::lanes::Lanes;
use crate::kernel::pool::Chunk;
use crate::kernel::ring::{Completion, Payload, Setup};
use crate::options::Common;
use crate::outcome::Watch;
use crate::proc::per;
use crate::progress::Sample;
use crate::target::Target;
use crate::websocket::{self, CLOSE, Frame};
use client::{Client, Opening, Phase, Session, Shared};

pub(crate) use client::close_reason;
pub(crate) use counts::{Counts, Reasons, Times};

/// What is said on open connections. Whatever a handler appends to `out` is sent, in order; frames
/// are made by [`websocket::encode_frame`].
pub(crate) trait Scenario {
    /// What a client asks for in its handshake, where that is not what its target says. Asked
    /// twice for one connection, when the request is made and when the answer is read, and has to
    /// say the same.
    fn request(&self, _client: u32) -> Request<'_> {
        Request::default()
    }

    /// The handshake is done.
    fn on_open(&mut self, client: u32, now: Instant, out: &mut Vec<u8>);

    /// A whole message or a Pong has come; of a message that came in fragments, the frame is what
    /// they add up to. An error is a fault of the server: the connection is
    /// ended, and the text is counted.
    fn on_frame(
        &mut self,
        client: u32,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), String>;

    /// The connection is over, or was never opened. Not called twice for one connection.
    fn on_end(&mut self, client: u32, ending: &Ending);

    /// What was outstanding has answered and the slot is closed: the client may be opened again.
    fn on_free(&mut self, _client: u32) {}
}

/// What one client asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    /// Put behind the target's path and before its query, such as "/sub/7"; see
    /// [`websocket::join_path`]. What cannot stand in a path ends the connection as failed.
    pub(crate) path_suffix: Cow<'a, str>,
    /// The subprotocols to offer, as the header lists them ("a, b"), instead of the target's;
    /// `Some("")` for none.
    pub(crate) subprotocols: Option<Cow<'a, str>>,
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It could not be opened.
    Failed(String),
    /// The server ended it, or broke the protocol, without being asked.
    Early(String),
    /// We asked, and the server answered in order.
    Closed,
    /// We broke it off, with a reset.
    Aborted,
}

/// How a client behaves. The odd ones try a server's patience.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manners {
    #[default]
    Proper,
    /// Begins its request head, and never sends the rest.
    HalfRequest,
    /// Never answers anything once it is open, neither a Ping nor a Close frame. Its Close frame
    /// goes to the scenario, and the connection counts as open until the server ends it.
    Mute,
}

/// How an engine is set up.
pub(crate) struct Settings {
    pub(crate) targets: Vec<Target>,
    /// Clients of each target.
    pub(crate) clients_per_target: u32,
    /// Connects and handshakes under way at once.
    pub(crate) opening_max: u32,
    /// The most that are begun each second; `None` for as fast as the server answers.
    pub(crate) opens_per_second_max: Option<u32>,
    /// For one connect and handshake.
    pub(crate) open_timeout: Duration,
    /// Keep a send buffer per client between messages: for clients that are never quiet.
    pub(crate) keep_buffers: bool,
    pub(crate) buffer_bytes: u32,
    /// Fewer slots in a ring than RLIMIT_NOFILE allows; for trying several rings on few clients.
    pub(crate) slots_per_ring_max: u32,
    pub(crate) congestion: Option<CString>,
}

/// Connects and handshakes under way at once, where nothing else is asked for.
pub(crate) const OPENING_MAX: u32 = 256;

impl Settings {
    /// What most scenarios want: all open as fast as the server answers, and then are quiet.
    pub(crate) fn new(targets: Vec<Target>, clients_per_target: u32, common: &Common) -> Settings {
        Settings {
            targets,
            clients_per_target,
            opening_max: OPENING_MAX,
            opens_per_second_max: None,
            open_timeout: Duration::from_secs(10),
            keep_buffers: false,
            buffer_bytes: 64 * 1024,
            slots_per_ring_max: u32::MAX,
            congestion: common.congestion.clone(),
        }
    }
}

/// The clients and their rings.
pub(crate) struct Engine {
    lanes: Lanes,
    slots_per_ring: u32,
    settings: Settings,
    clients: Vec<Client>,
    /// The next client to be opened, in the order of `opening_order`.
    next_to_open: u32,
    opening: u32,
    opening_started: Option<Instant>,
    /// Open attempts in the order of their deadlines: when, who, and the number of the connection.
    /// One that is over stays until it comes to the front, so there are at most as many as are
    /// begun within `open_timeout`.
    open_deadlines: VecDeque<(Instant, u32, u32)>,
    /// Clients that have something to send.
    to_flush: Vec<u32>,
    /// Where received records are decrypted to; at most what one receive brings.
    plain: Vec<u8>,
    /// What makes messages smaller and larger.
    codec: Codec,
    /// Clients whose receive has to be armed again, once buffers are back.
    to_arm: Vec<u32>,
    pub(crate) counts: Counts,
    pub(crate) times: Times,
}

/// Clients per source address: half of the default range of ports, so that one is found quickly.
const CLIENTS_PER_SOURCE: u32 = 12_500;

/// Few clients that are opened again and again leave many ports in TIME_WAIT, for 60 s.
const SOURCES_MIN: u32 = 32;

/// Close handshakes under way at once: more would overrun the server's buffers and prove nothing.
const CLOSING_MAX: u64 = 1024;

impl Engine {
    /// Sets up the rings; nothing is opened yet.
    pub(crate) fn new(settings: Settings) -> io::Result<Engine> {
        let count = settings.clients_per_target * settings.targets.len() as u32;
        if count == 0 {
            return Err(io::Error::other("no connections to open"));
        }
        let slots_max =
            descriptors_max().saturating_sub(32).min(settings.slots_per_ring_max).max(1);
        let rings = count.div_ceil(slots_max);
        let slots_per_ring = count.div_ceil(rings);
        // Each address of 127.0.0.0/8 has the whole range of ports for itself. 127.0.1.1 upwards.
        let sources = count.div_ceil(CLIENTS_PER_SOURCE).clamp(SOURCES_MIN, 60_000);
        let all_on_loopback = settings.targets.iter().all(|t| t.is_loopback_v4());
        let sources = if all_on_loopback { 0..sources } else { 0..0 };
        let source = |i: u32| Ipv4Addr::from(0x7F00_0101 + (i / 250) * 256 + i % 250);
        let lanes = Lanes::new(
            rings as usize,
            &Setup {
                slots: slots_per_ring,
                buffers: 16,
                buffer_bytes: settings.buffer_bytes,
                targets: settings.targets.iter().map(|t| t.address).collect(),
                sources: sources.map(|i| SocketAddrV4::new(source(i), 0)).collect(),
                congestion: settings.congestion.clone(),
            },
        )?;
        Ok(Engine {
            lanes,
            slots_per_ring,
            settings,
            clients: (0..count).map(|_| Client::default()).collect(),
            next_to_open: 0,
            opening: 0,
            opening_started: None,
            open_deadlines: VecDeque::new(),
            to_flush: Vec::new(),
            plain: Vec::new(),
            codec: Codec::default(),
            to_arm: Vec::new(),
            counts: Counts::default(),
            times: Times::new(),
        })
    }

    /// Number of clients, open or not.
    pub(crate) fn len(&self) -> u32 {
        self.clients.len() as u32
    }

    /// Rings in use.
    pub(crate) fn ring_count(&self) -> usize {
        self.lanes.rings.len()
    }

    /// Puts what TLS and compression did among the figures of a run: nothing when neither was asked
    /// for.
    pub(crate) fn put_transport(&self, report: &mut Map<String, Value>) {
        let targets = &self.settings.targets;
        if targets.iter().any(|target| target.is_secure) {
            report.insert("tls".into(), json!({ "resumed_count": self.counts.tls_resumed }));
        }
        if targets.iter().any(|target| target.deflate) {
            let volume = &self.codec.volume;
            let ratio = |wire: u64, payload: u64| per(wire as f64, payload);
            let (sent, received) = (volume.sent_wire_bytes, volume.received_wire_bytes);
            report.insert(
                "deflate".into(),
                json!({
                    "agreed_count": self.counts.deflated,
                    "sent_payload_bytes": volume.sent_payload_bytes,
                    "sent_wire_bytes": sent,
                    "sent_ratio": ratio(sent, volume.sent_payload_bytes),
                    "received_payload_bytes": volume.received_payload_bytes,
                    "received_wire_bytes": received,
                    "received_ratio": ratio(received, volume.received_payload_bytes),
                }),
            );
        }
    }

    /// Which target a client is one of. They alternate, so that all are opened alike.
    pub(crate) fn target_of(&self, client: u32) -> usize {
        client as usize % self.settings.targets.len()
    }

    /// Whether a client's connection is open.
    pub(crate) fn is_open(&self, client: u32) -> bool {
        self.clients[client as usize].phase == Phase::Open
    }

    /// Whether every connection has been tried.
    pub(crate) fn opening_is_over(&self) -> bool {
        self.next_to_open == self.len() && self.opening == 0
    }

    /// Sends, waits until something happens or `timeout` has passed, and handles what happened.
    pub(crate) fn turn(
        &mut self,
        scenario: &mut impl Scenario,
        timeout: Duration,
    ) -> io::Result<()> {
        self.flush(scenario);
        self.lanes.submit_and_wait(timeout)?;
        let now = Instant::now(); // The only clock read of the turn.
        for ring in 0..self.lanes.rings.len() {
            let first = ring as u32 * self.slots_per_ring;
            while let Some(completion) = self.lanes.rings[ring].next_completion() {
                self.dispatch(scenario, first, completion, now);
            }
        }
        self.expire_opens(scenario, now);
        for client in std::mem::take(&mut self.to_arm) {
            self.arm_recv(client);
        }
        Ok(())
    }

    /// Opens all connections. Without every one of them there is nothing to measure, so the error
    /// says why; being stopped is none.
    pub(crate) fn open_all(
        &mut self,
        scenario: &mut impl Scenario,
        timeout: Duration,
        watch: &Watch<'_>,
    ) -> io::Result<()> {
        let started = Instant::now();
        while !self.opening_is_over() && !watch.stopped() && started.elapsed() < timeout {
            self.open_more(Instant::now());
            self.turn(scenario, Duration::from_millis(50))?;
            watch.tick(&Sample::of("opening", &self.counts));
        }
        if self.counts.opened < u64::from(self.len()) && !watch.stopped() {
            let text = format!("opened {} of {} connections", self.counts.opened, self.len());
            return Err(io::Error::other(format!("{text}: {}", self.counts.failed.report())));
        }
        watch.ready()
    }

    /// Begins as many opens as the bounds allow. Call it once a turn while opening.
    pub(crate) fn open_more(&mut self, now: Instant) {
        let started = *self.opening_started.get_or_insert(now);
        let due = match self.settings.opens_per_second_max {
            Some(rate) => {
                let due = now.duration_since(started).as_secs_f64() * f64::from(rate);
                (due as u64).min(u64::from(self.len())) as u32
            }
            None => self.len(),
        };
        while self.next_to_open < due && self.opening < self.settings.opening_max {
            let client = self.next_to_open;
            self.next_to_open += 1;
            self.open(client, now);
        }
    }

    /// Begins to open a client that is free: never opened, or `on_free` was called since. Not to be
    /// mixed with `open_more` before that has begun all. Says whether it was free.
    pub(crate) fn open(&mut self, client: u32, now: Instant) -> bool {
        let (ring, slot) = self.place(client);
        let target = self.target_of(client);
        let state = &mut self.clients[client as usize];
        if state.phase != Phase::Unopened {
            return false;
        }
        self.opening_started.get_or_insert(now);
        self.opening += 1;
        state.phase = Phase::Connecting;
        state.connecting = true;
        state.connection = state.connection.wrapping_add(1);
        state.session = Some(Box::new(Session {
            opening: Some(Opening { begun: now, connected: now, secured: now }),
            ..Session::default()
        }));
        let connection = state.connection;
        self.open_deadlines.push_back((now + self.settings.open_timeout, client, connection));
        // From another source each time: the port of the last connection may be in TIME_WAIT.
        let source = client.wrapping_add(connection - 1) as usize;
        self.lanes.rings[ring].open_and_connect(slot, target, source);
        true
    }

    /// Has a client behave so, from its next connection on.
    pub(crate) fn set_manners(&mut self, client: u32, manners: Manners) {
        self.clients[client as usize].manners = manners;
    }

    /// Bounds the kernel's receive buffer of every client, in bytes. Once, before any is opened.
    pub(crate) fn limit_receive_buffers(&mut self, bytes: u32) {
        self.lanes.rings.iter_mut().for_each(|ring| ring.limit_receive_buffers(bytes));
    }

    /// Opens under way.
    pub(crate) fn opening(&self) -> u32 {
        self.opening
    }

    /// Which of a client's connections this is, counted from 1; 0 before the first.
    pub(crate) fn connection(&self, client: u32) -> u32 {
        self.clients[client as usize].connection
    }

    /// Breaks a client's connection off, with a reset and no word. Does nothing when it has ended
    /// already.
    pub(crate) fn abort(&mut self, scenario: &mut impl Scenario, client: u32) {
        let state = &mut self.clients[client as usize];
        if !matches!(state.phase, Phase::Unopened | Phase::Ended) {
            state.abrupt = true;
            self.end(scenario, client, &Ending::Aborted);
        }
    }

    /// Reads nothing from a client any more, so that what the server sends it piles up: what has
    /// completed already is still handed over. An end is not noticed until reading is resumed.
    pub(crate) fn pause_reading(&mut self, client: u32) {
        let (ring, slot) = self.place(client);
        let state = &mut self.clients[client as usize];
        if matches!(state.phase, Phase::Unopened | Phase::Ended) {
            return;
        }
        state.reading_paused = true;
        if state.recv_armed {
            self.lanes.rings[ring].cancel_recv(slot);
        }
    }

    /// Reads again. Does nothing when it was not paused, or its connection has ended since.
    pub(crate) fn resume_reading(&mut self, client: u32) {
        let state = &mut self.clients[client as usize];
        if state.reading_paused {
            state.reading_paused = false;
            // While the cancelled receive has not answered, its answer arms the next.
            self.arm_recv(client);
        }
    }

    /// Whether a client has something to send that the kernel has not taken, the send that is under
    /// way not counted. It has none when the server takes what it sends.
    pub(crate) fn unsent_bytes(&self, client: u32) -> usize {
        let state = &self.clients[client as usize];
        let tls = state.session.as_ref().and_then(|session| session.tls.as_ref());
        state.outgoing.len() + tls.map_or(0, |tls| tls.outgoing.len())
    }

    /// Queues what `write` appends, if the client's connection is open; says whether it is.
    pub(crate) fn say(&mut self, client: u32, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if !self.is_open(client) || self.clients[client as usize].send_failed {
            return false;
        }
        write(&mut self.clients[client as usize].outgoing);
        self.flush_later(client);
        true
    }

    /// Sends a Close frame on an open connection; the end comes by `on_end`.
    pub(crate) fn start_close(&mut self, client: u32) {
        const NORMAL: [u8; 2] = 1000u16.to_be_bytes();
        let mask = websocket::scramble(u64::from(client)) as u32;
        if self.say(client, |out| websocket::encode_frame(out, CLOSE, &NORMAL, mask)) {
            self.clients[client as usize].phase = Phase::Closing;
        }
    }

    /// Closes what is open, with a Close frame each way, until all is closed or `timeout` has
    /// passed.
    pub(crate) fn close_all(
        &mut self,
        scenario: &mut impl Scenario,
        timeout: Duration,
    ) -> io::Result<()> {
        let started = Instant::now();
        let open_before = self.counts.open;
        let (mut next, mut asked) = (0, 0);
        while self.counts.open > 0 && started.elapsed() < timeout {
            // One that was opening may have become open.
            let ended = open_before.saturating_sub(self.counts.open);
            while next < self.len() && asked < ended + CLOSING_MAX {
                if self.is_open(next) {
                    self.start_close(next);
                    asked += 1;
                }
                next += 1;
            }
            self.turn(scenario, Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn dispatch(
        &mut self,
        scenario: &mut impl Scenario,
        first: u32,
        completion: Completion,
        now: Instant,
    ) {
        match completion {
            Completion::Connected { slot, result } => {
                self.on_connected(scenario, first + slot, result, now);
            }
            Completion::Received { slot, result, more } => {
                self.on_received(scenario, first + slot, result, more, now);
            }
            Completion::Sent { slot, result, payload } => {
                self.on_sent(scenario, first + slot, result, payload);
            }
            Completion::Closed { slot } => {
                let state = &mut self.clients[(first + slot) as usize];
                let Client { manners, connection, flush_due, .. } = *state;
                *state = Client { manners, connection, flush_due, ..Client::default() };
                scenario.on_free(first + slot);
            }
            Completion::Cancelled => {}
            Completion::Accepted { .. }
            | Completion::SocketOpened { .. }
            | Completion::ShutDown { .. } => unreachable!("a client asks for none of these"),
        }
    }

    fn on_connected(
        &mut self,
        scenario: &mut impl Scenario,
        client: u32,
        result: Result<(), (&'static str, io::Error)>,
        now: Instant,
    ) {
        let state = &mut self.clients[client as usize];
        state.connecting = false;
        if state.phase == Phase::Ended {
            return self.end_join(client);
        }
        if let Err((step, error)) = result {
            return self.end(scenario, client, &Ending::Failed(format!("{step}: {error}")));
        }
        if let Some(opening) = state.opening() {
            (opening.connected, opening.secured) = (now, now);
        }
        let target = &self.settings.targets[client as usize % self.settings.targets.len()];
        let started = match &target.security {
            Some(security) => state.start_tls(security),
            None => state.start_upgrade(target, scenario, client),
        };
        if let Err(reason) = started {
            return self.end(scenario, client, &Ending::Failed(reason));
        }
        if state.manners == Manners::HalfRequest {
            let head = state.outgoing_to_the_wire();
            head.truncate(head.len() / 2);
            state.phase = Phase::Stalled;
            self.opening -= 1;
        }
        self.flush_later(client);
        self.arm_recv(client);
    }

    fn on_received(
        &mut self,
        scenario: &mut impl Scenario,
        client: u32,
        result: io::Result<Option<Chunk>>,
        more: bool,
        now: Instant,
    ) {
        self.clients[client as usize].recv_armed = more;
        match result {
            Ok(Some(chunk)) => {
                let ending = self.on_chunk(scenario, client, chunk, now);
                if let Err(ending) = ending {
                    self.end(scenario, client, &ending);
                }
                let state = &self.clients[client as usize];
                if state.phase == Phase::Ended {
                    self.end_join(client);
                } else if !more {
                    self.arm_recv(client);
                }
            }
            // Every chunk is released within its turn, so buffers are back at its end.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                if self.clients[client as usize].phase == Phase::Ended {
                    self.end_join(client);
                } else {
                    self.to_arm.push(client);
                }
            }
            // Reading was paused, and perhaps resumed since.
            Err(error)
                if error.raw_os_error() == Some(libc::ECANCELED)
                    && self.clients[client as usize].phase != Phase::Ended =>
            {
                self.arm_recv(client);
            }
            Ok(None) => {
                let ending = match self.clients[client as usize].phase {
                    Phase::CloseAnswered => Ending::Closed,
                    Phase::Securing => Ending::Failed("closed during the TLS handshake".into()),
                    Phase::Upgrading | Phase::Stalled => {
                        Ending::Failed("closed during the handshake".into())
                    }
                    _ => Ending::Early("end of stream without a Close frame".into()),
                };
                self.end(scenario, client, &ending);
            }
            Err(error) => {
                let ending = match self.clients[client as usize].phase {
                    Phase::Securing | Phase::Upgrading | Phase::Stalled => {
                        Ending::Failed(format!("receive: {error}"))
                    }
                    _ => Ending::Early(format!("receive: {error}")),
                };
                self.end(scenario, client, &ending);
            }
        }
    }

    /// Takes received bytes apart, and keeps what is not whole.
    fn on_chunk(
        &mut self,
        scenario: &mut impl Scenario,
        client: u32,
        mut chunk: Chunk,
        now: Instant,
    ) -> Result<(), Ending> {
        let (ring, _) = self.place(client);
        let Engine { lanes, clients, counts, settings, plain, codec, .. } = self;
        let target = &settings.targets[client as usize % settings.targets.len()];
        let state = &mut clients[client as usize];
        if state.phase == Phase::Ended {
            lanes.rings[ring].release(chunk);
            return Ok(());
        }
        if state.phase == Phase::Stalled {
            // Only a refusal can answer half a request.
            let offer = websocket::Offer { accept: "", subprotocols: "", deflate: false };
            let refusal = websocket::decode_response(lanes.rings[ring].bytes(&chunk), &offer).err();
            lanes.rings[ring].release(chunk);
            return match refusal {
                Some(reason) => Err(Ending::Failed(format!("handshake: {reason}"))),
                None => Ok(()),
            };
        }
        let was_opening = state.phase.is_opening();
        let bytes = lanes.rings[ring].bytes_mut(&mut chunk);
        let shared = &mut Shared { counts, codec, target };
        let result = state.on_bytes(shared, plain, scenario, client, bytes, now);
        lanes.rings[ring].release(chunk);
        if was_opening && !self.clients[client as usize].phase.is_opening() {
            self.on_opened(client, now);
        }
        if self.clients[client as usize].has_outgoing() {
            self.flush_later(client);
        }
        result
    }

    fn on_opened(&mut self, client: u32, now: Instant) {
        let state = &mut self.clients[client as usize];
        if let Some(session) = &mut state.session {
            if let Some(Opening { begun, connected, secured }) = session.opening.take() {
                let ns = |from: Instant, to: Instant| {
                    to.saturating_duration_since(from).as_nanos() as u64
                };
                histogram::record(&mut self.times.open, ns(begun, now));
                histogram::record(&mut self.times.connect, ns(begun, connected));
                self.counts.deflated += u64::from(session.deflate.is_some());
                if let Some(tls) = &session.tls {
                    histogram::record(&mut self.times.tls, ns(connected, secured));
                    self.counts.tls_resumed += u64::from(tls.is_resumed());
                }
                histogram::record(&mut self.times.upgrade, ns(secured, now));
            }
            if session.is_empty() {
                state.session = None;
            }
        }
        self.opening -= 1;
        self.counts.opened += 1;
        self.counts.open += 1;
        let started = self.opening_started.expect("opening was begun");
        let second = now.duration_since(started).as_secs() as usize;
        // A run is bounded in time, and so is this: a day of seconds.
        if second < 86_400 {
            let by_second = &mut self.counts.opened_by_second;
            by_second.resize(by_second.len().max(second + 1), 0);
            by_second[second] += 1;
        }
    }

    fn on_sent(
        &mut self,
        scenario: &mut impl Scenario,
        client: u32,
        result: io::Result<()>,
        payload: Payload,
    ) {
        let keep_buffers = self.settings.keep_buffers;
        let state = &mut self.clients[client as usize];
        state.send_in_flight = false;
        if state.phase == Phase::Ended {
            return self.end_join(client);
        }
        if result.is_err() && state.reading_paused {
            // Why is in what was not read yet.
            state.send_failed = true;
            state.outgoing = Vec::new();
            return;
        }
        if let Err(error) = result {
            // A reset peer shows here or in the receive, whichever comes first.
            let ending = match state.phase {
                Phase::CloseAnswered => Ending::Closed,
                Phase::Securing | Phase::Upgrading | Phase::Stalled => {
                    Ending::Failed(format!("send: {error}"))
                }
                _ => Ending::Early(format!("send: {error}")),
            };
            return self.end(scenario, client, &ending);
        }
        if state.has_outgoing() {
            self.flush_later(client);
        } else if let (true, Payload::Bytes(mut bytes)) = (keep_buffers, payload) {
            bytes.clear();
            match &mut state.session {
                Some(session) => {
                    if let Some(tls) = &mut session.tls {
                        tls.outgoing = bytes;
                    }
                }
                None => state.outgoing = bytes,
            }
        }
    }

    fn expire_opens(&mut self, scenario: &mut impl Scenario, now: Instant) {
        while let Some((deadline, client, connection)) = self.open_deadlines.front().copied() {
            let Client { phase, connection: now_open, .. } = self.clients[client as usize];
            let pending = phase.is_opening() && connection == now_open;
            if pending && deadline > now {
                break;
            }
            self.open_deadlines.pop_front();
            if pending {
                let step = match phase {
                    Phase::Connecting => "connect",
                    Phase::Securing => "TLS handshake",
                    _ => "handshake",
                };
                self.end(scenario, client, &Ending::Failed(format!("{step}: timed out")));
            }
        }
    }

    /// Counts the end of a connection and asks for the end of what is outstanding on it.
    fn end(&mut self, scenario: &mut impl Scenario, client: u32, ending: &Ending) {
        let (ring, slot) = self.place(client);
        let state = &mut self.clients[client as usize];
        match state.phase {
            Phase::Ended => return self.end_join(client),
            phase if phase.is_opening() => self.opening -= 1,
            Phase::Stalled => {}
            _ => self.counts.open -= 1,
        }
        state.phase = Phase::Ended;
        state.outgoing = Vec::new();
        state.session = None;
        match ending {
            Ending::Failed(reason) => self.counts.failed.add(reason),
            Ending::Early(reason) => self.counts.early.add(reason),
            Ending::Closed => self.counts.closed_in_order += 1,
            Ending::Aborted => self.counts.aborted += 1,
        }
        scenario.on_end(client, ending);
        let ring = &mut self.lanes.rings[ring];
        if state.recv_armed {
            ring.cancel_recv(slot);
        }
        if state.send_in_flight {
            ring.cancel_send(slot);
        }
        if state.connecting {
            ring.cancel_connect(slot);
        }
        self.end_join(client);
    }

    /// Closes the slot when the last operation on it has answered; until then, its answer brings
    /// us back here.
    fn end_join(&mut self, client: u32) {
        let (ring, slot) = self.place(client);
        let state = &mut self.clients[client as usize];
        let outstanding = state.recv_armed || state.send_in_flight || state.connecting;
        if outstanding || state.slot_closing {
            return;
        }
        state.slot_closing = true;
        if state.abrupt {
            self.lanes.rings[ring].close_abruptly(slot);
        } else {
            self.lanes.rings[ring].close(slot);
        }
    }

    fn arm_recv(&mut self, client: u32) {
        let (ring, slot) = self.place(client);
        let state = &mut self.clients[client as usize];
        // It may have ended, or been paused, while it waited for buffers; or been resumed, which
        // has armed it, or will when the cancelled receive answers.
        if state.phase == Phase::Ended || state.reading_paused || state.recv_armed {
            return;
        }
        state.recv_armed = true;
        self.lanes.rings[ring].arm_recv(slot);
    }

    fn flush_later(&mut self, client: u32) {
        let state = &mut self.clients[client as usize];
        if !state.flush_due {
            state.flush_due = true;
            self.to_flush.push(client);
        }
    }

    /// One send per client that has something to say and is not sending.
    fn flush(&mut self, scenario: &mut impl Scenario) {
        let mut to_flush = std::mem::take(&mut self.to_flush);
        for client in to_flush.drain(..) {
            let (ring, slot) = self.place(client);
            let state = &mut self.clients[client as usize];
            state.flush_due = false;
            // While sending, the completion of the send comes back for the rest.
            if state.send_in_flight || state.send_failed || !state.has_outgoing() {
                continue;
            }
            let bytes = match state.take_outgoing(&mut self.codec, self.settings.keep_buffers) {
                Ok(bytes) => bytes,
                Err(reason) => {
                    self.end(scenario, client, &Ending::Early(reason));
                    continue;
                }
            };
            if bytes.is_empty() {
                continue;
            }
            state.send_in_flight = true;
            self.lanes.rings[ring].send(slot, Payload::Bytes(bytes));
        }
        self.to_flush = to_flush; // Keeps its memory.
    }

    fn place(&self, client: u32) -> (usize, u32) {
        ((client / self.slots_per_ring) as usize, client % self.slots_per_ring)
    }
}
