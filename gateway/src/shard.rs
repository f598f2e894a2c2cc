//! The loop: one thread, one ring, one table of connections, and everything that happens to them.
//!
//! This file is the table of contents. A frame's life is a step a file:
//!
//! - `accept.rs`: a client appears; `identity.rs`: who it is; `request.rs`: its request head and the
//!   upgrade; `admit.rs`: whether it is let in.
//! - `recv.rs`: bytes arrive, messages of echo and rooms; `meter.rs`: how many it may send;
//!   `outlet.rs`: rooms, and what they reach of a shard.
//! - `attempt.rs`: which upstream takes it; `answer.rs`: the head of what that answers; `relay.rs`:
//!   the frames between the two; `forward.rs`: ordinary HTTP to an upstream and back; `sids.rs`:
//!   sessions that have to find their upstream again.
//! - `send.rs`: outboxes are flushed; `timer.rs`: deadlines; `close.rs`: closing is a join;
//!   `drain.rs`: asking clients to leave.
//! - `shortage.rs`: what gives way when memory is short.
//! - `mailbox.rs`: other shards; `orders.rs` and `inspect.rs`: what the control
//!   thread asks.
//!
//! Handlers react by queueing: into an outbox, the wheel, the mail. The kernel hears of it once a
//! turn, when the outboxes are flushed and the next wait submits what was queued.

mod accept;
pub mod account;
mod admit;
mod answer;
mod attempt;
mod close;
pub mod drain;
mod forward;
mod identity;
pub mod inspect;
pub mod mailbox;
mod meter;
mod orders;
mod outlet;
mod record;
mod recv;
mod relay;
mod request;
mod send;
mod shortage;
mod sids;
mod timer;
mod unread;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::budget::ShardAccount;
use crate::config::Config;
use crate::conn::delays::Delays;
use crate::conn::outbox::Stores;
use crate::conn::record::Record;
use crate::conn::table::Table;
use crate::conn::{Conn, ConnId};
use crate::journal::Journal;
use crate::metrics::{Counters, Metrics};
use crate::random::Random;
use crate::recorder::UpstreamRecorder;
use crate::ring::{Completion, Ring, Wait};
use crate::rooms::{self, Rooms};
use crate::shared::Shared;
use crate::time::Time;
use crate::timers::Wheel;
use crate::upstream::Group;
use accept::{AcceptLimits, Accepting, Silent};
use drain::{Cutting, Loss, Sweep};
use mailbox::{Letter, Mailroom};

/// Completions taken in one turn. More are left to the next, so that outboxes are flushed, timers
/// kept and mail read however much arrives.
const COMPLETIONS_PER_TURN: usize = 256;

/// Whether messages are timed and measured: false is for finding out what that costs.
const RECORDS: bool = !cfg!(feature = "no-record");

/// How long a shard sleeps at most while mail of its own waits for another's full inbox, or clients for
/// another shard that has much to do.
const STUCK_MAIL_WAIT: Duration = Duration::from_millis(1);

/// Requests with a long answer that a shard serves in one turn before it goes on with everybody else, and
/// the bytes that it writes for them: a millisecond or two. What else asks waits in `Shard::asked`.
const ASKED_PER_TURN: usize = 256;
const ANSWER_BYTES_PER_TURN: usize = 4 << 20;

/// One thread's share of the gateway.
pub struct Shard<R: Ring> {
    ring: R,
    /// Its number, from 0.
    index: u16,
    config: Arc<Config>,
    /// What all shards count together.
    shared: Arc<Shared>,
    /// The time of this turn.
    now: Time,
    /// The wall clock at `Time(0)`, in milliseconds since 1970.
    unix_origin_ms: u64,
    random: Random,

    // Connections, and what each of them needs.
    table: Table,
    timers: Wheel,
    stores: Stores,
    /// When messages were queued that have not been taken.
    delays: Delays,
    mail: Mailroom,
    metrics: Arc<Counters>,
    /// The histograms of upstreams, by their places.
    upstream_recorders: Vec<Arc<UpstreamRecorder>>,
    journal: Arc<Journal>,

    // Clients that come.
    accepting: Vec<Accepting>,
    accept_limits: AcceptLimits,
    /// When to look again whether clients can be accepted.
    accept_retry_at: Time,
    /// Clients above `connections_max` that are here to be told so (`Flags::surplus`).
    surplus: u32,
    /// Clients that have not asked for anything yet.
    silent: Silent,

    // What a turn leaves for its end, or for the next.
    /// Whose bytes are looked at had been silent for a while (`meter::REST`).
    rested: bool,
    /// Slots that have something to send; each is here once (`Flags::dirty`).
    dirty: VecDeque<u32>,
    /// Those of them that have much to send and come behind the others (`send.rs`).
    bulky: VecDeque<u32>,
    /// Connections whose receive ended because no buffer was free.
    starved: recv::Starved,
    /// Clients to be closed when the borrow that found them is over.
    doomed: Vec<outlet::Doomed>,
    /// Requests with a long answer that have come, by backend: they are served behind all other mail. A
    /// client of whichever shard has one here at most, as it is not served before it has its answer.
    asked: VecDeque<(u16, rooms::Mail)>,
    /// What members of rooms have sent that is not served before answers to them have come.
    unread: unread::Unread,

    // What clients are brought to.
    /// The rooms of each `local` backend, by backend.
    rooms: Vec<Option<Rooms>>,
    /// Whether this shard counts as one that has rooms of a backend (`shared.rs`), by backend.
    has_rooms: Vec<bool>,
    /// The upstreams of each `websocket` backend, by backend.
    groups: Vec<Option<Group>>,
    /// Clients that wait until an upstream has room, by backend.
    waiting: Vec<attempt::Waiting>,
    /// A connection to an upstream has ended since `waiting` was looked at.
    room_made: bool,
    /// Which upstream issued which session of Engine.IO.
    sessions: sids::Sessions,
    /// `{"event":"ping"}` as a frame, for pages.
    ping_frame: bytes::Bytes,
    /// What our Pings in a relay carry, so that we know the Pongs: nobody else's Pings do.
    ping_payload: [u8; 8],

    // Clients that are to go.
    /// Those that are asked to leave at a pace, and when that goes on.
    sweeps: Vec<Sweep>,
    /// See `sweeps`.
    sweep_at: Time,
    /// Upstreams that lost connections just now.
    losses: Vec<Loss>,
    /// What memory that is short has led to.
    shortage: shortage::Shortage,
    /// Set once we are stopping: when the last connection is closed whatever it still owes.
    stop_deadline: Option<Time>,
    /// How far the stop has got.
    cutting: Cutting,
}

/// What a shard is made of.
pub struct Setup {
    /// Its number, from 0.
    pub index: u16,
    /// The configuration, shared by all.
    pub config: Arc<Config>,
    /// What all shards count together.
    pub shared: Arc<Shared>,
    /// The post, shared by all.
    pub mail: Mailroom,
    /// Where keys and jitter come from.
    pub random: Random,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Where it writes down what has ended.
    pub journal: Arc<Journal>,
    /// The wall clock at `Time(0)`, in milliseconds since 1970.
    pub unix_origin_ms: u64,
}

#[cfg(test)]
impl Setup {
    /// Of shard 0 of those that share `inboxes`, which go by this configuration file.
    pub(crate) fn of_test(config: &str, inboxes: &Arc<[mailbox::Inbox]>) -> Setup {
        let config = Config::parse("test", config).unwrap_or_else(|faults| panic!("{faults}"));
        Setup {
            index: 0,
            config: Arc::new(config),
            shared: Arc::default(),
            mail: Mailroom::new(0, Arc::clone(inboxes)),
            random: Random::new([1, 2]),
            counters: Arc::default(),
            journal: Arc::default(),
            unix_origin_ms: 0,
        }
    }
}

#[cfg(test)]
impl Shard<crate::ring::sim::SimRing> {
    /// Shard 0, alone in a network of its own, of a table of `slots`, which goes by this configuration file.
    fn of_test(config: &str, slots: u32) -> Self {
        let network = crate::ring::sim::Network::new(1, crate::ring::sim::Faults::none());
        let setup = Setup::of_test(config, &[mailbox::Inbox::default()].into());
        Shard::new(network.ring(slots, 8, 4096, 1), setup)
    }
}

impl<R: Ring> Shard<R> {
    /// A shard that listens once [`Shard::start`] has been called.
    pub fn new(ring: R, setup: Setup) -> Shard<R> {
        let Setup { index, config, shared, mail, mut random, counters, journal, unix_origin_ms } =
            setup;
        let now = ring.now();
        let slots = config.server.slots_per_shard;
        let rooms = outlet::all_rooms(&config, index, unix_origin_ms, shared.homes, &mut random);
        let groups = attempt::new_groups(&config, index, &mut random);
        let ping_payload = random.next_u64().to_ne_bytes();
        Shard {
            ring,
            index,
            now,
            unix_origin_ms,
            random,
            table: Table::new(slots),
            timers: Wheel::new(now, slots),
            stores: Stores::new(ShardAccount::new(&shared.budget)),
            delays: Delays::default(),
            mail,
            metrics: counters,
            upstream_recorders: Vec::new(),
            journal,
            accepting: vec![Accepting::default(); config.listeners.len()],
            accept_limits: AcceptLimits::new(slots),
            accept_retry_at: Time::NEVER,
            surplus: 0,
            silent: Silent::default(),
            rested: false,
            dirty: VecDeque::new(),
            starved: recv::Starved::default(),
            doomed: Vec::new(),
            asked: VecDeque::new(),
            bulky: VecDeque::new(),
            unread: unread::Unread::default(),
            has_rooms: vec![false; rooms.len()],
            rooms,
            waiting: groups.iter().map(|_| attempt::Waiting::default()).collect(),
            groups,
            room_made: false,
            sessions: sids::Sessions::default(),
            ping_frame: rooms::ping_frame(),
            ping_payload,
            sweeps: Vec::new(),
            sweep_at: Time(0),
            losses: Vec::new(),
            shortage: shortage::Shortage::default(),
            stop_deadline: None,
            cutting: Cutting::default(),
            config,
            shared,
        }
    }

    /// Serves until it has been asked to stop and every connection is closed.
    pub fn run(mut self) {
        self.start();
        while !self.is_drained() {
            self.turn();
        }
    }

    /// Starts listening.
    pub fn start(&mut self) {
        for listener in 0..self.accepting.len() {
            self.arm_accept(listener);
        }
    }

    /// Everything the gateway ever does starts on one of these lines.
    pub fn turn(&mut self) {
        let wait = self.next_wait();
        self.ring.allow_accepts(self.accepts_allowed());
        self.ring.submit_and_wait(wait);
        self.mail.awake();
        self.now = self.ring.now(); // The time of all that happens in this turn.
        for _ in 0..COMPLETIONS_PER_TURN {
            let Some(completion) = self.ring.next_completion() else { break };
            self.dispatch(completion);
        }
        self.read_mail();
        self.serve_asked();
        self.serve_unread();
        self.expire_timers();
        self.sweep();
        self.close_doomed();
        self.serve_waiting();
        self.rearm_starved();
        self.mail.dispatch(); // Before the answers: what they lead to must find it (`sids.rs`).
        self.keep_budget();
        self.flush_outboxes(); // One send per connection that has something to say.
        if self.mail.stop_asked() {
            self.stop_join();
        }
        let (open, clients) = (self.table.open(), self.table.clients());
        self.metrics.clients.set(clients.into());
        self.metrics.upstreams.set((open - clients).into());
        self.metrics.waiting.set(self.delays.waiting() as u64);
        if RECORDS {
            self.metrics.recorder.record_turn(self.now, self.ring.now());
        }
    }

    fn dispatch(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { listener, slot, peer } => self.on_accepted(listener, slot, peer),
            Completion::AcceptRefused { .. } => self.on_accept_refused(),
            Completion::AcceptEnded { listener, failure } => {
                self.on_accept_ended(listener, failure);
            }
            Completion::Received { id, result, more } => self.on_received(id, result, more),
            Completion::Watched { id, gone, more } => self.on_watched(id, gone, more),
            Completion::Sent { id, result } => self.on_sent(id, result),
            Completion::SocketOpened { owner, result } => self.on_socket_opened(owner, result),
            Completion::Connected { id, result } => self.on_connected(id, result),
            Completion::ShutDown { id } => self.on_shut_down(id),
            Completion::Closed { id } => self.on_closed(id),
        }
    }

    /// How long the ring may wait before the next turn.
    fn next_wait(&mut self) -> Wait {
        let ready = !self.dirty.is_empty()
            || !self.bulky.is_empty()
            || !self.asked.is_empty()
            || self.mail.has_own()
            || self.unread.has_ready()
            || self.may_serve_lines()
            || self.may_rearm_starved()
            || self.may_serve_waiting()
            || self.may_cut_off()
            || self.shortage.goes_on();
        if ready || !self.mail.may_sleep(self.stop_deadline.is_some()) {
            return Wait::No;
        }
        let rooms = self.rooms.iter().flatten().filter_map(Rooms::next_deadline).min();
        let mut deadline = self.timers.next_deadline().min(rooms.unwrap_or(Time::NEVER));
        deadline = deadline.min(self.accept_retry_at).min(self.next_sweep());
        deadline = deadline.min(self.next_look());
        if self.mail.is_stuck() || self.has_lines() {
            deadline = deadline.min(self.now + STUCK_MAIL_WAIT);
        }
        // Once it has passed everything is being closed, and completions are all there is to come.
        if let Some(stop) = self.stop_deadline.filter(|stop| *stop > self.now) {
            deadline = deadline.min(stop);
        }
        Wait::Until(deadline)
    }

    fn read_mail(&mut self) {
        let mut taken = 0;
        while let Some(letter) = self.mail.next_letter(&mut taken) {
            match letter {
                // Of a backend that is gone, and has nobody any more.
                Letter::Rooms { backend, .. } if self.rooms[usize::from(backend)].is_none() => {}
                Letter::Rooms { backend, mail } if mail.can_wait() => {
                    self.asked.push_back((backend, mail));
                }
                Letter::Rooms { backend, mail } => {
                    let now = self.now;
                    self.with_rooms(backend, |rooms, post| rooms.on_mail(mail, now, post));
                }
                Letter::Sids(mail) => self.on_sid_mail(mail),
                Letter::Order(order) => self.on_order(order),
            }
        }
    }

    /// Serves requests with a long answer, a bounded number of them.
    fn serve_asked(&mut self) {
        self.mail.begin_answers();
        for _ in 0..ASKED_PER_TURN {
            if self.mail.answer_bytes() >= ANSWER_BYTES_PER_TURN {
                return;
            }
            let Some((backend, mail)) = self.asked.pop_front() else { return };
            if self.rooms[usize::from(backend)].is_some() {
                let now = self.now;
                self.with_rooms(backend, |rooms, post| rooms.on_mail(mail, now, post));
            }
        }
    }

    fn close_doomed(&mut self) {
        while let Some(outlet::Doomed { id, cause, code, reason }) = self.doomed.pop() {
            if self.table.get_mut(id).is_some() {
                self.start_leave(id, cause, code, reason);
            }
        }
    }

    /// Puts a connection on the list of those with something to send.
    fn mark_dirty(&mut self, id: ConnId) {
        mark_dirty(&mut self.table[id], id.slot, &mut self.dirty);
    }

    /// What this shard has counted so far.
    pub fn metrics(&self) -> Metrics {
        self.metrics.read()
    }

    /// Every connection, written down.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        (0..self.table.slots_used()).filter_map(|slot| {
            let id = self.table.id_at(slot)?;
            Some(Record::of(id, &self.table[id], self.now))
        })
    }

    /// The ring, for inspection by tests.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// Slots in use.
    pub fn open(&self) -> u32 {
        self.table.open()
    }
}

fn mark_dirty(conn: &mut Conn, slot: u32, dirty: &mut VecDeque<u32>) {
    if !conn.flags.dirty {
        conn.flags.dirty = true;
        dirty.push_back(slot);
    }
}
