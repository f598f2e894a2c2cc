//! The loop: one thread, one ring, one table of connections, and everything that happens to them.
//!
//! This file is the table of contents. A frame's life is a step a file: `accept.rs` (a client
//! appears), `identity.rs` (who it is), `request.rs` (its request head, the upgrade), `admit.rs` (whether
//! it is let in), `recv.rs` (bytes arrive; messages of echo and rooms), `meter.rs` (how many it may
//! send), `attempt.rs` (which upstream takes it), `answer.rs` (the head of what that answers), `relay.rs` (the frames between the two), `forward.rs`
//! (ordinary HTTP to an upstream and back), `send.rs`
//! (outboxes are flushed), `close.rs` (closing is a join), `drain.rs` (asking clients to leave),
//! `timer.rs` (deadlines), `mailbox.rs` (other shards), `sids.rs` (sessions that have to find their
//! upstream again), `orders.rs` and
//! `inspect.rs` (what the control thread asks).
//!
//! Handlers react by queueing: into an outbox, the wheel, the mail. The kernel hears of it once a
//! turn, when the outboxes are flushed and the next wait submits what was queued.

mod accept;
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
mod recv;
mod relay;
mod request;
mod send;
mod sids;
mod timer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{BackendKind, Config, Local};
use crate::conn::outbox::{Full, Stores};
use crate::conn::record::Record;
use crate::conn::table::Table;
use crate::conn::{Conn, ConnId};
use crate::journal::Journal;
use crate::metrics::{Cause, Counters, Metrics};
use crate::random::Random;
use crate::ring::{Completion, Ring, Wait};
use crate::rooms::{self, RoomLimits, Rooms, SlowLimits, SlowPolicy};
use crate::shared::Shared;
use crate::time::Time;
use crate::timers::Wheel;
use crate::upstream::Group;
use accept::{AcceptLimits, Accepting};
use drain::Sweep;
use mailbox::{Letter, Mailroom};

/// Completions taken in one turn. More are left to the next, so that outboxes are flushed, timers
/// kept and mail read however much arrives.
const COMPLETIONS_PER_TURN: usize = 256;

/// How long a shard sleeps at most while mail of its own waits for another's full inbox.
const STUCK_MAIL_WAIT: Duration = Duration::from_millis(1);

/// One thread's share of the gateway.
pub struct Shard<R: Ring> {
    ring: R,
    /// Its number, from 0.
    index: u16,
    config: Arc<Config>,
    shared: Arc<Shared>,
    /// The time of this turn.
    now: Time,
    table: Table,
    timers: Wheel,
    stores: Stores,
    accepting: Vec<Accepting>,
    accept_limits: AcceptLimits,
    /// Clients above `connections_max` that are here to be told so (`Head::surplus`).
    surplus: u32,
    /// Whose bytes are looked at had been silent for a while (`meter::REST`).
    rested: bool,
    /// Slots that have something to send; each is here once (`Flags::dirty`).
    dirty: VecDeque<u32>,
    /// Connections whose receive ended because no buffer was free.
    starved: VecDeque<ConnId>,
    /// Clients to be closed when the borrow that found them is over.
    doomed: Vec<(ConnId, Cause, u16, &'static str)>,
    mail: Mailroom,
    /// The rooms of each `local` backend, by backend.
    rooms: Vec<Option<Rooms>>,
    /// The upstreams of each `websocket` backend, by backend.
    groups: Vec<Option<Group>>,
    /// Clients that wait until an upstream has room, by backend.
    waiting: Vec<attempt::Waiting>,
    /// A connection to an upstream has ended since `waiting` was looked at.
    room_made: bool,
    /// Which upstream issued which session of Engine.IO.
    sessions: sids::Sessions,
    random: Random,
    /// The wall clock at `Time(0)`, in milliseconds since 1970.
    unix_origin_ms: u64,
    metrics: Arc<Counters>,
    journal: Arc<Journal>,
    /// `{"event":"ping"}` as a frame, for pages.
    ping_frame: bytes::Bytes,
    /// What our Pings in a relay carry, so that we know the Pongs: nobody else's Pings do.
    ping_payload: [u8; 8],
    /// When to accept again after the system had no descriptor to give.
    accept_retry_at: Time,
    /// Clients that are asked to leave at a pace, and when that went on last.
    sweeps: Vec<Sweep>,
    /// See `sweeps`.
    swept_at: Time,
    /// Set once we are stopping: when the last connection is closed whatever it still owes.
    stop_deadline: Option<Time>,
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
    /// Slots of the ring's table.
    pub slots: u32,
    /// Where keys and jitter come from.
    pub random: Random,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Where it writes down what has ended.
    pub journal: Arc<Journal>,
    /// The wall clock at `Time(0)`, in milliseconds since 1970.
    pub unix_origin_ms: u64,
}

impl<R: Ring> Shard<R> {
    /// A shard that listens once [`Shard::start`] has been called.
    pub fn new(ring: R, setup: Setup) -> Shard<R> {
        let Setup {
            index,
            config,
            shared,
            mail,
            slots,
            mut random,
            counters,
            journal,
            unix_origin_ms,
        } = setup;
        let now = ring.now();
        let rooms = config.backends.iter().map(|backend| match &backend.kind {
            BackendKind::Local(local) => {
                let epoch = random.next_u64();
                Some(new_rooms(&config, local, index, unix_origin_ms, epoch))
            }
            _ => None,
        });
        let rooms = rooms.collect();
        let groups = attempt::new_groups(&config, index, &mut random);
        Shard {
            index,
            unix_origin_ms,
            rooms,
            waiting: groups.iter().map(|_| attempt::Waiting::default()).collect(),
            groups,
            room_made: false,
            sessions: sids::Sessions::default(),
            now,
            table: Table::new(slots),
            timers: Wheel::new(now, slots),
            stores: Stores::default(),
            accepting: vec![Accepting::default(); config.listeners.len()],
            accept_limits: AcceptLimits::new(slots),
            surplus: 0,
            rested: false,
            dirty: VecDeque::new(),
            starved: VecDeque::new(),
            doomed: Vec::new(),
            mail,
            ping_payload: random.next_u64().to_ne_bytes(),
            random,
            metrics: counters,
            journal,
            ping_frame: rooms::ping_frame(),
            accept_retry_at: Time::NEVER,
            sweeps: Vec::new(),
            swept_at: Time(0),
            stop_deadline: None,
            ring,
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
        self.ring.submit_and_wait(wait);
        self.mail.awake();
        self.now = self.ring.now(); // The only clock read of the turn.
        for _ in 0..COMPLETIONS_PER_TURN {
            let Some(completion) = self.ring.next_completion() else { break };
            self.dispatch(completion);
        }
        self.read_mail();
        self.expire_timers();
        self.sweep();
        self.close_doomed();
        self.serve_waiting();
        self.rearm_starved();
        self.mail.dispatch(); // Before the answers: what they lead to must find it (`sids.rs`).
        self.flush_outboxes(); // One send per connection that has something to say.
        if self.mail.stop_asked() {
            self.stop_join();
        }
        let (open, clients) = (self.table.open(), self.table.clients());
        self.metrics.clients.set(clients.into());
        self.metrics.upstreams.set((open - clients).into());
    }

    fn dispatch(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { listener, slot, peer } => self.on_accepted(listener, slot, peer),
            Completion::AcceptRefused { .. } => self.on_accept_refused(),
            Completion::AcceptEnded { listener, failure } => {
                self.on_accept_ended(listener, failure);
            }
            Completion::Received { id, result, more } => self.on_received(id, result, more),
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
            || self.mail.has_own()
            || self.may_rearm_starved()
            || self.may_serve_waiting();
        if ready || !self.mail.may_sleep(self.stop_deadline.is_some()) {
            return Wait::No;
        }
        let rooms = self.rooms.iter().flatten().filter_map(Rooms::next_deadline).min();
        let mut deadline = self.timers.next_deadline().min(rooms.unwrap_or(Time::NEVER));
        deadline = deadline.min(self.accept_retry_at).min(self.next_sweep());
        if self.mail.is_stuck() {
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
                Letter::Rooms { backend, mail } => {
                    let now = self.now;
                    self.with_rooms(backend, |rooms, post| rooms.on_mail(mail, now, post));
                }
                Letter::Sids(mail) => self.on_sid_mail(mail),
                Letter::Order(order) => self.on_order(order),
            }
        }
    }

    /// Lends the rooms of one backend together with what they reach of the shard.
    fn with_rooms(&mut self, backend: u16, act: impl FnOnce(&mut Rooms, &mut Post<'_>)) {
        let Shard { rooms, table, stores, dirty, doomed, mail, now, config, metrics, .. } = self;
        let Some(rooms) = &mut rooms[usize::from(backend)] else {
            unreachable!("backend {backend} has no rooms");
        };
        let (now, outbox_bytes_max) = (*now, config.limits.outbox_bytes_max);
        let slow = rooms.slow_limits();
        let fast_bytes_max = match slow.policy {
            SlowPolicy::Disconnect => outbox_bytes_max,
            SlowPolicy::DropOldest | SlowPolicy::Conflate => slow.outbox_bytes,
        };
        let bounds = Bounds { fast_bytes_max, outbox_bytes_max, slow };
        let mut post = Post { table, stores, dirty, doomed, mail, metrics, now, bounds, backend };
        act(rooms, &mut post);
    }

    fn close_doomed(&mut self) {
        while let Some((id, cause, code, reason)) = self.doomed.pop() {
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

/// The rooms of a backend, as shard `index` begins with them.
fn new_rooms(config: &Config, local: &Local, index: u16, unix_origin_ms: u64, epoch: u64) -> Rooms {
    Rooms::new(index, config.server.shards, room_limits(config, local), unix_origin_ms, epoch)
}

/// What the backend says of its rooms, and what everybody's limits do.
fn room_limits(config: &Config, local: &Local) -> RoomLimits {
    RoomLimits {
        ping_interval: config.limits.ping_interval,
        message_bytes_max: config.limits.message_bytes_max,
        ..local.rooms.clone()
    }
}

fn mark_dirty(conn: &mut Conn, slot: u32, dirty: &mut VecDeque<u32>) {
    if !conn.flags.dirty {
        conn.flags.dirty = true;
        dirty.push_back(slot);
    }
}

/// What rooms reach of a shard: the outboxes of its clients, and the post.
struct Post<'a> {
    table: &'a mut Table,
    stores: &'a mut Stores,
    dirty: &'a mut VecDeque<u32>,
    doomed: &'a mut Vec<(ConnId, Cause, u16, &'static str)>,
    mail: &'a mut Mailroom,
    metrics: &'a Counters,
    now: Time,
    bounds: Bounds,
    backend: u16,
}

/// What an outbox may hold of what rooms put into it.
struct Bounds {
    /// Up to here a frame is queued without another look.
    fast_bytes_max: usize,
    outbox_bytes_max: usize,
    slow: SlowLimits,
}

/// To a member that is closed because it does not read.
const SLOW_CONSUMER: &str = "slow consumer: connect again and resume from your last offset";

impl rooms::Outlet for Post<'_> {
    fn deliver(&mut self, to: ConnId, frame: &bytes::Bytes) {
        let Some(conn) = self.table.get_mut(to) else { return };
        // Nothing comes behind a message that had no room: the member would resume after the gap.
        if conn.phase != crate::conn::Phase::Open || conn.cause.is_some() {
            return;
        }
        let bytes = conn.outbox.bytes() + frame.len();
        if bytes > self.bounds.fast_bytes_max || conn.outbox.is_backlogged() {
            let Bounds { outbox_bytes_max, slow, .. } = &self.bounds;
            let pushed = match slow.policy {
                SlowPolicy::Disconnect => Err(Full),
                SlowPolicy::DropOldest | SlowPolicy::Conflate => conn.outbox.push_backlogged(
                    frame,
                    *outbox_bytes_max,
                    slow,
                    self.stores,
                    self.metrics,
                    self.now,
                ),
            };
            if pushed == Err(Full) {
                // A member cannot be waited for: the room goes on without it, and it may come back
                // and resume from the offset that it has seen.
                conn.cause = Some(Cause::SlowConsumer);
                self.doomed.push((to, Cause::SlowConsumer, 1008, SLOW_CONSUMER));
                return;
            }
        } else {
            conn.outbox.push_shared(frame, self.stores, self.now);
        }
        conn.data_at = self.now;
        conn.traffic.sent(1);
        mark_dirty(conn, to.slot, self.dirty);
    }

    fn post(&mut self, shard: u16, mail: rooms::Mail) {
        self.mail.post(shard, Letter::Rooms { backend: self.backend, mail });
    }

    fn has_room(&self, shard: u16) -> bool {
        self.mail.has_room(shard)
    }

    fn close(&mut self, conn: ConnId, code: u16, reason: &'static str) {
        self.doomed.push((conn, Cause::ProtocolError, code, reason));
    }
}
