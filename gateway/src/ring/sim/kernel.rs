//! The simulated kernel: what operations do to links, one ring at a time.
//!
//! A ring's operations move only inside its own `submit_and_wait`, as the kernel's do under
//! DEFER_TASKRUN. Submissions start in order; then every operation that waits is visited, in an
//! order that rotates or is shuffled, until nothing moves or the turn's share of events is used up.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::super::buffers::Pool;
use super::super::{Completion, Failure, SendMode, Wait};
use super::Leftovers;
use super::faults::{Fault, Faults, Random};
use super::link::{ACCEPTOR, CONNECTOR, Link};
use crate::conn::ConnId;
use crate::time::Time;

/// Everything there is: the clock, the dice, the network, the rings.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) fired: [u64; Fault::ALL.len()],
    pub(super) links: BTreeMap<u64, Link>,
    next_link: u64,
    /// Upstream servers, each with the connections that wait to be accepted.
    pub(super) servers: BTreeMap<SocketAddr, VecDeque<u64>>,
    pub(super) rings: Vec<Kernel>,
    /// Counts what the outside does, so that a ring that slept before knows to look again.
    pub(super) changes: u64,
    /// A running hash of all completions taken: equal for equal runs.
    pub(super) digest: u64,
    pub(super) narrated: bool,
}

/// The kernel's side of one ring.
pub(super) struct Kernel {
    slots: Vec<Slot>,
    /// Where the search for a free slot begins: the slot freed last, as in the kernel, so that it
    /// goes to the very next socket.
    hint: usize,
    listeners: Vec<Listener>,
    queue: Vec<Submission>,
    ready: VecDeque<Ready>,
    pub(super) pool: Pool,
    /// Buffers that the kernel may fill, the current one in front.
    offered: VecDeque<u16>,
    /// A buffer is filled by one receive after the other.
    incremental: bool,
    pub(super) eventfd: Arc<OwnedFd>,
    woken: bool,
    /// Until when the ring would sleep, and the count of changes that it has seen.
    asleep: Option<(Time, u64)>,
    /// When it last looked at anything.
    turned_at: Time,
    /// Its owner has dropped it.
    gone: bool,
}

#[derive(Default)]
struct Slot {
    descriptor: Option<Descriptor>,
    /// Whose turn it was before.
    last_generation: Option<u32>,
}

/// An open direct descriptor.
#[derive(Default)]
struct Descriptor {
    /// The link and our end of it; `None` before a connect.
    connection: Option<(u64, usize)>,
    /// The generation the shard chose, known from its first use.
    generation: Option<u32>,
    /// A bit per [`Op`], from the call until the last completion has been taken.
    outstanding: u8,
    recv: Option<Waiting>,
    send: Option<Send>,
    connect: Option<(Waiting, SocketAddr, Outcome)>,
    socket: Option<Waiting>,
    shutdown: Option<Waiting>,
    close: Option<Waiting>,
}

/// The kinds of operation on a connection, at most one of each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Recv,
    Send,
    Connect,
    Socket,
    Shutdown,
    Close,
}

const OPS: [Op; 6] = [Op::Recv, Op::Send, Op::Connect, Op::Socket, Op::Shutdown, Op::Close];

/// When an operation may move.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// It has not been looked at since it was armed.
    fresh: bool,
    not_before: Time,
    cancel_at: Option<Time>,
}

impl Waiting {
    fn until(not_before: Time) -> Waiting {
        Waiting { fresh: true, not_before, cancel_at: None }
    }

    fn is_cancelled(&self, now: Time) -> bool {
        self.cancel_at.is_some_and(|at| at <= now)
    }

    fn next_event(&self, now: Time) -> Time {
        let cancel_at = self.cancel_at.filter(|at| *at > now).unwrap_or(Time::NEVER);
        if self.not_before > now { self.not_before.min(cancel_at) } else { cancel_at }
    }
}

struct Send {
    waiting: Waiting,
    payload: Payload,
    done: usize,
    mode: SendMode,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Accepted,
    Failed(Failure),
}

#[derive(Default)]
struct Listener {
    accept: Option<Waiting>,
    /// From the call until the end of the accept has been taken.
    outstanding: bool,
    backlog: VecDeque<(Time, u64, SocketAddr)>,
}

/// The memory behind a send, and what it held when it was submitted.
#[derive(Debug)]
pub(super) struct Payload {
    parts: Vec<(*const u8, usize)>,
    bytes: usize,
    hash: u64,
}

impl Payload {
    /// # Safety
    ///
    /// As for [`super::super::Ring::submit_send`]: the memory stays as it is until the completion
    /// of the send has been taken. Nothing here reads it after that.
    pub(super) unsafe fn new(parts: Vec<(*const u8, usize)>) -> Payload {
        let bytes = parts.iter().map(|part| part.1).sum();
        let mut payload = Payload { parts, bytes, hash: 0 };
        payload.hash = hash(HASH_START, &payload.read(0, bytes));
        payload
    }

    /// Copies `count` bytes from `from` on, as the memory is now.
    fn read(&self, mut from: usize, mut count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        for &(start, len) in &self.parts {
            let skipped = from.min(len);
            let taken = count.min(len - skipped);
            // SAFETY: whoever made this payload promised that the part is readable until its
            // completion is taken, which is when the last read happens; the range is within it.
            bytes.extend(unsafe { std::slice::from_raw_parts(start.add(skipped), taken) });
            from -= skipped;
            count -= taken;
        }
        bytes
    }

    fn check(&self) {
        let unchanged = hash(HASH_START, &self.read(0, self.bytes)) == self.hash;
        assert!(unchanged, "the memory of a send changed before its completion was taken");
    }
}

/// What a call has queued for the next `submit_and_wait`.
#[derive(Debug)]
pub(super) enum Submission {
    Accept(usize),
    CancelAccept(usize),
    Recv(ConnId),
    Send(ConnId, Payload, SendMode),
    Socket(ConnId),
    Connect(ConnId, SocketAddr),
    Shutdown(ConnId),
    Close(ConnId),
    Cancel(ConnId, Op),
}

/// A completion that waits to be taken, and the memory that has to last until then.
struct Ready {
    completion: Completion,
    payload: Option<Payload>,
}

#[derive(Clone, Copy)]
enum Target {
    Accept(usize),
    Op(usize, Op),
}

/// Events that one turn brings at most: what a DEFER_TASKRUN enter of Linux 6.13 and later runs.
const EVENTS_MAX: usize = 40;
/// Bytes reach the other end after this long, and a random time up to as long again.
const LATENCY: Duration = Duration::from_micros(20);
/// The longest that [`Fault::Delay`] adds.
const DELAY_MAX: Duration = Duration::from_millis(400);
/// The kernel gives up a connect that nobody answers after about this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> World {
        World {
            now: Time(1_000_000_000),
            random: Random::new(seed),
            faults,
            fired: [0; Fault::ALL.len()],
            links: BTreeMap::new(),
            next_link: 0,
            servers: BTreeMap::new(),
            rings: Vec::new(),
            changes: 0,
            digest: HASH_START,
            narrated: false,
        }
    }

    /// Throws the dice for one fault.
    pub(super) fn fires(&mut self, fault: Fault) -> bool {
        let per_mille = u64::from(self.faults.per_mille(fault));
        let fires = per_mille > 0 && self.random.below(1000) < per_mille;
        self.fired[fault as usize] += u64::from(fires);
        fires
    }

    /// When something that is sent or started now takes effect.
    pub(super) fn arrival(&mut self) -> Time {
        let latency = LATENCY.as_nanos() as u64;
        let nanos = latency + self.random.below(latency);
        self.delayed(self.now + Duration::from_nanos(nanos))
    }

    /// `at`, or later on a bad day.
    fn delayed(&mut self, at: Time) -> Time {
        if !self.fires(Fault::Delay) {
            return at;
        }
        at + Duration::from_nanos(self.random.below(DELAY_MAX.as_nanos() as u64))
    }

    /// A number that no client has had.
    pub(super) fn next_client(&self) -> u32 {
        self.next_link as u32 + 1
    }

    pub(super) fn new_link(&mut self) -> u64 {
        let slow = self.fires(Fault::SlowReader);
        self.next_link += 1;
        self.links.insert(self.next_link, Link::new(slow));
        self.next_link
    }

    /// Closes one end of a link, and forgets the link when that was the last.
    pub(super) fn close_end(&mut self, link: u64, end: usize) {
        let arrival = self.arrival();
        let Some(state) = self.links.get_mut(&link) else { return };
        state.close(end, arrival);
        if state.is_over() {
            self.links.remove(&link);
        }
        self.changes += 1;
    }

    pub(super) fn new_ring(
        &mut self,
        slots: u32,
        buffers: u16,
        buffer_bytes: u32,
        listeners: usize,
        eventfd: Arc<OwnedFd>,
    ) -> usize {
        self.rings.push(Kernel {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            hint: 0,
            listeners: (0..listeners).map(|_| Listener::default()).collect(),
            queue: Vec::new(),
            ready: VecDeque::new(),
            pool: Pool::new(buffers, buffer_bytes),
            offered: (0..buffers).collect(),
            incremental: true,
            eventfd,
            woken: false,
            asleep: None,
            turned_at: Time(0),
            gone: false,
        });
        let ring = self.rings.len() - 1;
        self.rings[ring].incremental = !self.fires(Fault::WholeBuffers);
        ring
    }

    /// A client's connection reaches a listener.
    pub(super) fn enqueue(&mut self, ring: usize, listener: usize, link: u64, client: SocketAddr) {
        let arrival = self.arrival();
        if self.rings[ring].gone {
            return self.close_end(link, ACCEPTOR);
        }
        let backlog = &mut self.rings[ring].listeners[listener].backlog;
        let arrival = backlog.back().map_or(arrival, |last| last.0.max(arrival));
        backlog.push_back((arrival, link, client));
        self.changes += 1;
    }

    // --- One turn of a ring.

    pub(super) fn submit_and_wait(&mut self, ring: usize, wait: Wait) {
        self.now = self.now + Duration::from_micros(1 + self.random.below(10));
        self.rings[ring].collect_home();
        let queue = std::mem::take(&mut self.rings[ring].queue);
        for submission in queue {
            self.start(ring, submission);
        }
        self.run_events(ring);
        let kernel = &mut self.rings[ring];
        kernel.turned_at = self.now;
        kernel.notice_wake();
        let woken = std::mem::take(&mut kernel.woken);
        kernel.asleep = match wait {
            Wait::Until(deadline) if kernel.ready.is_empty() && !woken && deadline > self.now => {
                Some((deadline, self.changes))
            }
            _ => None,
        };
    }

    /// Every ring sleeps and nothing has happened since that it could wake for.
    pub(super) fn all_asleep(&mut self) -> bool {
        let (now, changes) = (self.now, self.changes);
        self.rings.iter_mut().all(|kernel| {
            kernel.notice_wake();
            let asleep = kernel.asleep.is_some_and(|(until, seen)| until > now && seen == changes);
            kernel.gone || asleep && !kernel.woken
        })
    }

    /// The next instant at which something can happen. It lies in the past when that has happened
    /// already, in the turn of one ring, to another that had had its turn.
    pub(super) fn next_event(&self) -> Time {
        let rings = || self.rings.iter().filter(|kernel| !kernel.gone);
        let seen = rings().map(|kernel| kernel.turned_at).min().unwrap_or(self.now);
        let links = self.links.values().map(|link| link.next_event(seen));
        let rings = rings().map(|kernel| kernel.next_event(kernel.turned_at));
        links.chain(rings).min().unwrap_or(Time::NEVER)
    }

    fn start(&mut self, ring: usize, submission: Submission) {
        let now = self.now;
        match submission {
            Submission::Accept(listener) => {
                let waiting = Waiting::until(self.delayed(now));
                self.rings[ring].listeners[listener].accept = Some(waiting);
            }
            Submission::CancelAccept(listener) => {
                let at = self.delayed(now);
                if let Some(waiting) = &mut self.rings[ring].listeners[listener].accept {
                    waiting.cancel_at.get_or_insert(at);
                }
            }
            Submission::Recv(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).recv = Some(waiting);
            }
            Submission::Send(id, payload, mode) => {
                let at = if mode == SendMode::TryNow { now } else { self.delayed(now) };
                let send = Send { waiting: Waiting::until(at), payload, done: 0, mode };
                self.descriptor(ring, id.slot as usize).send = Some(send);
                self.visit(ring, Target::Op(id.slot as usize, Op::Send));
            }
            Submission::Socket(owner) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, owner.slot as usize).socket = Some(waiting);
            }
            Submission::Connect(id, address) => {
                let (at, outcome) = if self.fires(Fault::ConnectTimeout) {
                    (now + CONNECT_TIMEOUT, Outcome::Failed(Failure::TimedOut))
                } else if !self.servers.contains_key(&address) || self.fires(Fault::ConnectRefused)
                {
                    (self.arrival(), Outcome::Failed(Failure::Refused))
                } else {
                    (self.arrival(), Outcome::Accepted)
                };
                let connect = Some((Waiting::until(at), address, outcome));
                self.descriptor(ring, id.slot as usize).connect = connect;
            }
            Submission::Shutdown(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).shutdown = Some(waiting);
            }
            Submission::Close(id) => {
                let waiting = Waiting::until(self.delayed(now));
                self.descriptor(ring, id.slot as usize).close = Some(waiting);
            }
            Submission::Cancel(id, op) => {
                let at = self.delayed(now);
                let descriptor = self.descriptor(ring, id.slot as usize);
                if let Some(waiting) = descriptor.waiting(op) {
                    waiting.cancel_at.get_or_insert(at);
                }
            }
        }
    }

    fn run_events(&mut self, ring: usize) {
        let limit = self.rings[ring].ready.len() + EVENTS_MAX;
        loop {
            let before = self.rings[ring].ready.len();
            let mut targets = self.rings[ring].targets();
            if targets.len() > 1 && self.fires(Fault::Reorder) {
                self.random.shuffle(&mut targets);
            } else {
                let first = self.random.below(targets.len() as u64) as usize;
                targets.rotate_left(first);
            }
            for target in targets {
                if self.rings[ring].ready.len() >= limit {
                    return;
                }
                self.visit(ring, target);
            }
            if self.rings[ring].ready.len() == before {
                return;
            }
        }
    }

    /// Lets one operation do what it can.
    fn visit(&mut self, ring: usize, target: Target) {
        let Some(waiting) = self.rings[ring].waiting(target) else { return };
        let waiting = *waiting;
        if waiting.is_cancelled(self.now) {
            if self.fires(Fault::CancelRace) {
                self.attempt(ring, target);
            }
            self.cancel(ring, target);
        } else if waiting.not_before <= self.now {
            self.attempt(ring, target);
        }
    }

    fn attempt(&mut self, ring: usize, target: Target) {
        match target {
            Target::Accept(listener) => self.attempt_accept(ring, listener),
            Target::Op(slot, Op::Recv) => self.attempt_recv(ring, slot),
            Target::Op(slot, Op::Send) => self.attempt_send(ring, slot),
            Target::Op(slot, Op::Connect) => self.attempt_connect(ring, slot),
            Target::Op(slot, Op::Socket) => self.attempt_socket(ring, slot),
            Target::Op(slot, Op::Shutdown) => self.attempt_shutdown(ring, slot),
            Target::Op(slot, Op::Close) => self.attempt_close(ring, slot),
        }
    }

    /// Ends an operation that is still there with what it has done.
    fn cancel(&mut self, ring: usize, target: Target) {
        if self.rings[ring].waiting(target).is_none() {
            return;
        }
        match target {
            Target::Accept(listener) => {
                self.rings[ring].end_accept(listener, Some(Failure::Cancelled));
            }
            Target::Op(slot, Op::Recv) => self.end_recv(ring, slot, Err(Failure::Cancelled)),
            Target::Op(slot, Op::Send) => self.end_send(ring, slot, Failure::Cancelled),
            Target::Op(slot, Op::Connect) => {
                self.end_connect(ring, slot, Err(Failure::Cancelled));
            }
            Target::Op(_, op) => unreachable!("the trait has no way to cancel {op:?}"),
        }
    }

    // --- What each operation does when its time has come.

    fn attempt_accept(&mut self, ring: usize, listener: usize) {
        let now = self.now;
        let backlog = &mut self.rings[ring].listeners[listener].backlog;
        if backlog.front().is_none_or(|next| next.0 > now) {
            return;
        }
        let (_, link, peer) = backlog.pop_front().expect("looked at above");
        // The connection has been accepted when the lack of a slot is noticed, and is closed.
        let slot = if self.fires(Fault::TableFull) { None } else { self.rings[ring].allocate() };
        let Some(slot) = slot else {
            self.close_end(link, ACCEPTOR);
            let failure = Failure::TableFull;
            self.rings[ring].push(Completion::AcceptRefused { listener, failure });
            // The system may lack descriptors as well, of which an accept ends.
            if self.fires(Fault::MultishotEnd) {
                self.rings[ring].end_accept(listener, Some(failure));
            }
            return;
        };
        self.descriptor(ring, slot).connection = Some((link, ACCEPTOR));
        let slot = slot as u32;
        self.rings[ring].push(Completion::Accepted { listener, slot, peer });
        if self.fires(Fault::MultishotEnd) {
            self.rings[ring].end_accept(listener, None);
        }
    }

    fn attempt_recv(&mut self, ring: usize, slot: usize) {
        let now = self.now;
        let descriptor = self.descriptor(ring, slot);
        let Some(waiting) = &mut descriptor.recv else { return };
        let fresh = std::mem::replace(&mut waiting.fresh, false);
        let Some((link, end)) = descriptor.connection else {
            return self.end_recv(ring, slot, Err(Failure::Reset));
        };
        if self.link(link).readable(end, now) > 0 {
            self.maybe_reset(link);
        }
        let state = self.link(link);
        let (readable, is_reset) = (state.readable(end, now), state.is_reset(end, now));
        let ready = readable > 0 || is_reset || state.at_end(end, now);
        // The kernel takes a buffer before it looks at the socket: without one even an idle
        // socket, or one at its end, answers so when the receive is armed.
        let no_buffers = self.rings[ring].offered.is_empty();
        if (fresh || ready) && no_buffers || ready && self.fires(Fault::NoBuffers) {
            return self.end_recv(ring, slot, Err(Failure::NoBuffers));
        }
        if readable > 0 {
            return self.receive(ring, slot, readable);
        }
        if is_reset {
            let first = self.link(link).take_error(end);
            let result = if first { Err(Failure::Reset) } else { Ok(None) };
            self.end_recv(ring, slot, result);
        } else if ready {
            self.end_recv(ring, slot, Ok(None));
        }
    }

    /// Moves bytes from the socket into a buffer. There are some, and there is one.
    fn receive(&mut self, ring: usize, slot: usize, readable: usize) {
        let (link, end) = self.descriptor(ring, slot).connection.expect("it has bytes");
        let buffer_id = self.rings[ring].offered[0];
        let mut count = readable.min(self.rings[ring].pool.room(buffer_id));
        if count > 1 && self.fires(Fault::ShortReceive) {
            count = 1 + self.random.below(count as u64 - 1) as usize;
        }
        let bytes = self.link(link).read(end, count);
        self.changes += 1; // The window has opened.
        let kernel = &mut self.rings[ring];
        let buffer = kernel.pool.fill(buffer_id, &bytes, kernel.incremental);
        if !kernel.incremental || kernel.pool.room(buffer_id) == 0 {
            kernel.offered.pop_front();
        }
        if self.fires(Fault::MultishotEnd) {
            return self.end_recv(ring, slot, Ok(Some(buffer)));
        }
        let not_before = self.delayed(self.now);
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).recv.as_mut().expect("armed").not_before = not_before;
        let received = Completion::Received { id, result: Ok(Some(buffer)), more: true };
        self.rings[ring].push(received);
    }

    fn attempt_send(&mut self, ring: usize, slot: usize) {
        let now = self.now;
        let Some((link, end)) = self.descriptor(ring, slot).connection else {
            return self.end_send(ring, slot, Failure::Reset);
        };
        self.maybe_reset(link);
        let state = self.link(link);
        if state.is_reset(end, now) || state.has_finished(end) {
            state.take_error(end);
            return self.end_send(ring, slot, Failure::Reset);
        }
        let room = state.room(end);
        let send = self.descriptor(ring, slot).send.as_ref().expect("visited");
        let (done, mode, left) = (send.done, send.mode, send.payload.bytes - send.done);
        let mut count = left.min(room);
        if count > 0 && self.fires(Fault::ShortSend) {
            count = self.random.below(count as u64) as usize;
        }
        let arrival = self.arrival();
        // A send that stops short of the room goes on of itself, a little later.
        let soon = now + Duration::from_micros(1);
        let again_at = if count < left.min(room) { self.delayed(soon) } else { now };
        let send = self.descriptor(ring, slot).send.as_mut().expect("visited");
        let bytes = send.payload.read(done, count);
        send.done += count;
        send.waiting.not_before = again_at;
        let taken = self.link(link).write(end, &bytes, arrival);
        assert_eq!(taken, count, "the link had room for it");
        if count == left || mode == SendMode::TryNow {
            self.end_send(ring, slot, Failure::Full);
        }
    }

    fn attempt_connect(&mut self, ring: usize, slot: usize) {
        let (_, address, outcome) = self.descriptor(ring, slot).connect.expect("visited");
        let result = match outcome {
            Outcome::Failed(failure) => Err(failure),
            // The server may have gone in the meantime.
            Outcome::Accepted if !self.servers.contains_key(&address) => Err(Failure::Refused),
            Outcome::Accepted => {
                let link = self.new_link();
                self.servers.entry(address).or_default().push_back(link);
                self.descriptor(ring, slot).connection = Some((link, CONNECTOR));
                Ok(())
            }
        };
        self.end_connect(ring, slot, result);
    }

    fn attempt_socket(&mut self, ring: usize, slot: usize) {
        let owner = self.id(ring, slot);
        self.descriptor(ring, slot).socket = None;
        let new = if self.fires(Fault::TableFull) { None } else { self.rings[ring].allocate() };
        let result = new.map(|slot| slot as u32).ok_or(Failure::TableFull);
        self.rings[ring].push(Completion::SocketOpened { owner, result });
    }

    fn attempt_shutdown(&mut self, ring: usize, slot: usize) {
        let arrival = self.arrival();
        self.descriptor(ring, slot).shutdown = None;
        if let Some((link, end)) = self.descriptor(ring, slot).connection {
            self.link(link).finish(end, arrival);
        }
        let id = self.id(ring, slot);
        self.rings[ring].push(Completion::ShutDown { id });
    }

    fn attempt_close(&mut self, ring: usize, slot: usize) {
        let id = self.id(ring, slot);
        if let Some((link, end)) = self.descriptor(ring, slot).connection {
            self.close_end(link, end);
        }
        let kernel = &mut self.rings[ring];
        kernel.slots[slot] = Slot { descriptor: None, last_generation: Some(id.generation) };
        kernel.hint = slot;
        kernel.push(Completion::Closed { id });
    }

    // --- How operations end.

    fn end_recv(
        &mut self,
        ring: usize,
        slot: usize,
        result: Result<Option<super::super::Buffer>, Failure>,
    ) {
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).recv = None;
        self.rings[ring].push(Completion::Received { id, result, more: false });
    }

    /// Answers with what was sent, or with `failure` where that is nothing.
    fn end_send(&mut self, ring: usize, slot: usize, failure: Failure) {
        let id = self.id(ring, slot);
        let send = self.descriptor(ring, slot).send.take().expect("visited");
        let nothing = send.done == 0 && send.payload.bytes > 0;
        let result = if nothing { Err(failure) } else { Ok(send.done) };
        let completion = Completion::Sent { id, result };
        self.rings[ring].ready.push_back(Ready { completion, payload: Some(send.payload) });
    }

    fn end_connect(&mut self, ring: usize, slot: usize, result: Result<(), Failure>) {
        let id = self.id(ring, slot);
        self.descriptor(ring, slot).connect = None;
        self.rings[ring].push(Completion::Connected { id, result });
    }

    fn maybe_reset(&mut self, link: u64) {
        if self.fires(Fault::Reset) {
            let now = self.now;
            for end in [CONNECTOR, ACCEPTOR] {
                self.link(link).reset(end, now);
            }
            self.changes += 1;
        }
    }

    fn descriptor(&mut self, ring: usize, slot: usize) -> &mut Descriptor {
        self.rings[ring].slots[slot].descriptor.as_mut().expect("an operation holds the slot open")
    }

    fn link(&mut self, link: u64) -> &mut Link {
        self.links.get_mut(&link).expect("our end is open")
    }

    fn id(&mut self, ring: usize, slot: usize) -> ConnId {
        let generation = self.descriptor(ring, slot).generation.expect("an operation named it");
        ConnId { slot: slot as u32, generation }
    }

    // --- What the shard calls.

    /// Notes that an operation begins and queues it.
    ///
    /// # Panics
    ///
    /// When the shard breaks the rules of [`super::super::Ring`].
    pub(super) fn submit(&mut self, ring: usize, submission: Submission) {
        if self.narrated {
            eprintln!("{:>12} ns  ring {ring}  {submission:?}", self.now.0);
        }
        let kernel = &mut self.rings[ring];
        match &submission {
            Submission::Accept(listener) => {
                let listener_state = &mut kernel.listeners[*listener];
                assert!(!listener_state.outstanding, "accept {listener} is armed already");
                listener_state.outstanding = true;
            }
            Submission::CancelAccept(_) => {}
            Submission::Recv(id) => kernel.begin(*id, Op::Recv),
            Submission::Send(id, ..) => kernel.begin(*id, Op::Send),
            Submission::Socket(owner) => kernel.begin(*owner, Op::Socket),
            Submission::Connect(id, _) => kernel.begin(*id, Op::Connect),
            Submission::Shutdown(id) => kernel.begin(*id, Op::Shutdown),
            Submission::Close(id) => kernel.begin(*id, Op::Close),
            Submission::Cancel(id, _) => {
                kernel.named(*id);
            }
        }
        kernel.queue.push(submission);
    }

    pub(super) fn next_completion(&mut self, ring: usize) -> Option<Completion> {
        let kernel = &mut self.rings[ring];
        let Ready { completion, payload } = kernel.ready.pop_front()?;
        if let Some(payload) = payload {
            payload.check();
        }
        match &completion {
            Completion::AcceptEnded { listener, .. } => {
                kernel.listeners[*listener].outstanding = false;
            }
            Completion::Received { id, more: false, .. } => kernel.end(*id, Op::Recv),
            Completion::Sent { id, .. } => kernel.end(*id, Op::Send),
            Completion::SocketOpened { owner, .. } => kernel.end(*owner, Op::Socket),
            Completion::Connected { id, .. } => kernel.end(*id, Op::Connect),
            Completion::ShutDown { id } => kernel.end(*id, Op::Shutdown),
            Completion::Accepted { .. }
            | Completion::AcceptRefused { .. }
            | Completion::Received { more: true, .. }
            | Completion::Closed { .. } => {}
        }
        let line = format!("{:>12} ns  ring {ring}  -> {completion:?}", self.now.0);
        if self.narrated {
            eprintln!("{line}");
        }
        self.digest = hash(self.digest, line.as_bytes());
        if let Completion::Received { result: Ok(Some(buffer)), .. } = &completion {
            self.digest = hash(self.digest, buffer);
        }
        Some(completion)
    }

    /// The process that owned a ring is gone: its sockets close.
    pub(super) fn drop_ring(&mut self, ring: usize) {
        let kernel = &mut self.rings[ring];
        let slots = std::mem::take(&mut kernel.slots);
        kernel.queue.clear();
        kernel.ready.clear();
        kernel.gone = true;
        kernel.asleep = Some((Time::NEVER, 0));
        let waiting: Vec<_> = kernel.listeners.drain(..).flat_map(|it| it.backlog).collect();
        let open = slots.into_iter().filter_map(|slot| slot.descriptor?.connection);
        for (link, end) in open.chain(waiting.into_iter().map(|(_, link, _)| (link, ACCEPTOR))) {
            self.close_end(link, end);
        }
    }

    pub(super) fn leftovers(&mut self, ring: usize) -> Leftovers {
        let kernel = &mut self.rings[ring];
        kernel.collect_home();
        let open = kernel.slots.iter().filter_map(|slot| slot.descriptor.as_ref());
        Leftovers {
            open_slots: open.clone().count(),
            operations: open.map(|it| it.outstanding.count_ones() as usize).sum(),
            completions: kernel.ready.len(),
            loans: kernel.pool.loans() as usize,
            buffers_away: usize::from(kernel.pool.count()) - kernel.offered.len(),
        }
    }
}

impl Kernel {
    /// Checks that `id` names the slot's present holder; the first use tells who that is.
    #[track_caller]
    fn named(&mut self, id: ConnId) -> &mut Descriptor {
        let slot = &mut self.slots[id.slot as usize];
        let last = slot.last_generation;
        let Some(descriptor) = &mut slot.descriptor else { panic!("{id:?}: the slot is closed") };
        let generation = *descriptor.generation.get_or_insert(id.generation);
        assert_eq!(generation, id.generation, "{id:?}: the slot is somebody else's");
        assert_ne!(last, Some(id.generation), "{id:?}: the generation of the holder before");
        descriptor
    }

    #[track_caller]
    fn begin(&mut self, id: ConnId, op: Op) {
        let outstanding = self.named(id).outstanding;
        let closing = 1 << Op::Close as u8;
        assert_eq!(outstanding & closing, 0, "{id:?}: {op:?} while it is being closed");
        assert_eq!(outstanding & (1 << op as u8), 0, "{id:?}: {op:?} is outstanding already");
        let others: Vec<Op> =
            OPS.into_iter().filter(|other| outstanding & (1 << *other as u8) != 0).collect();
        assert!(op != Op::Close || others.is_empty(), "{id:?}: closed during {others:?}");
        self.named(id).outstanding |= 1 << op as u8;
    }

    fn end(&mut self, id: ConnId, op: Op) {
        self.named(id).outstanding &= !(1 << op as u8);
    }

    fn push(&mut self, completion: Completion) {
        self.ready.push_back(Ready { completion, payload: None });
    }

    fn end_accept(&mut self, listener: usize, failure: Option<Failure>) {
        self.listeners[listener].accept = None;
        self.push(Completion::AcceptEnded { listener, failure });
    }

    /// Opens the first free slot from the hint on.
    fn allocate(&mut self) -> Option<usize> {
        let count = self.slots.len();
        let mut candidates = (self.hint..count).chain(0..self.hint.min(count));
        let slot = candidates.find(|slot| self.slots[*slot].descriptor.is_none())?;
        self.slots[slot].descriptor = Some(Descriptor::default());
        self.hint = slot + 1;
        Some(slot)
    }

    fn collect_home(&mut self) {
        while let Some(id) = self.pool.next_home() {
            self.offered.push_back(id);
        }
    }

    /// Empties the eventfd, as the ring's own read of it would.
    fn notice_wake(&mut self) {
        let mut count = [0u8; 8];
        // SAFETY: `count` is eight writable bytes, and the descriptor is open while the Arc lives.
        let read =
            unsafe { libc::read(self.eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        self.woken |= read == 8;
    }

    fn targets(&self) -> Vec<Target> {
        let accepts = self.listeners.iter().enumerate().filter(|(_, it)| it.accept.is_some());
        let mut targets: Vec<_> = accepts.map(|(index, _)| Target::Accept(index)).collect();
        for (slot, state) in self.slots.iter().enumerate() {
            if let Some(descriptor) = &state.descriptor {
                let ops = OPS.into_iter().filter(|op| descriptor.peek(*op).is_some());
                targets.extend(ops.map(|op| Target::Op(slot, op)));
            }
        }
        targets
    }

    fn waiting(&mut self, target: Target) -> Option<&mut Waiting> {
        match target {
            Target::Accept(listener) => self.listeners[listener].accept.as_mut(),
            Target::Op(slot, op) => self.slots[slot].descriptor.as_mut()?.waiting(op),
        }
    }

    fn next_event(&self, now: Time) -> Time {
        let asleep_until = self.asleep.map_or(now, |(until, _)| until);
        let accepts = self.listeners.iter().filter_map(|it| it.accept.as_ref());
        let open = self.slots.iter().filter_map(|slot| slot.descriptor.as_ref());
        let ops = open.flat_map(|it| OPS.into_iter().filter_map(|op| it.peek(op)));
        let operations = accepts.chain(ops).map(|waiting| waiting.next_event(now));
        let clients = self.listeners.iter().filter_map(|it| it.backlog.front().map(|next| next.0));
        let clients = clients.filter(|at| *at > now);
        operations.chain(clients).chain([asleep_until]).min().unwrap_or(Time::NEVER)
    }
}

impl Descriptor {
    fn peek(&self, op: Op) -> Option<&Waiting> {
        match op {
            Op::Recv => self.recv.as_ref(),
            Op::Send => self.send.as_ref().map(|send| &send.waiting),
            Op::Connect => self.connect.as_ref().map(|connect| &connect.0),
            Op::Socket => self.socket.as_ref(),
            Op::Shutdown => self.shutdown.as_ref(),
            Op::Close => self.close.as_ref(),
        }
    }

    fn waiting(&mut self, op: Op) -> Option<&mut Waiting> {
        match op {
            Op::Recv => self.recv.as_mut(),
            Op::Send => self.send.as_mut().map(|send| &mut send.waiting),
            Op::Connect => self.connect.as_mut().map(|connect| &mut connect.0),
            Op::Socket => self.socket.as_mut(),
            Op::Shutdown => self.shutdown.as_mut(),
            Op::Close => self.close.as_mut(),
        }
    }
}

/// FNV-1a.
fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;
