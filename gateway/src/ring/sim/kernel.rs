//! The simulated kernel: what operations do to links, one ring at a time.
//!
//! A ring's operations move only inside its own `submit_and_wait`, as the kernel's do under
//! DEFER_TASKRUN. Submissions start in order; then every operation that waits is visited, in an
//! order that rotates or is shuffled, until nothing moves or the turn's share of events is used up.
//! That is `kernel/turn.rs`; here is what there is, what the shard calls, and when anything happens.

mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::super::buffers::Pool;
use super::super::{Completion, Failure, SendMode};
use super::Leftovers;
use super::faults::{Fault, Faults, Random};
use super::link::{ACCEPTOR, Link};
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
    /// Clients that may still be accepted.
    pub(super) accepts_left: u32,
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
    watch: Option<Waiting>,
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
    Watch,
    Send,
    Connect,
    Socket,
    Shutdown,
    Close,
}

const OPS: [Op; 7] =
    [Op::Recv, Op::Watch, Op::Send, Op::Connect, Op::Socket, Op::Shutdown, Op::Close];

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
    Watch(ConnId),
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

/// Bytes reach the other end after this long, and a random time up to as long again.
const LATENCY: Duration = Duration::from_micros(20);
/// The longest that [`Fault::Delay`] adds.
const DELAY_MAX: Duration = Duration::from_millis(400);

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
            accepts_left: u32::MAX,
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
            Submission::Watch(id) => kernel.begin(*id, Op::Watch),
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
            Completion::Watched { id, more: false, .. } => kernel.end(*id, Op::Watch),
            Completion::Sent { id, .. } => kernel.end(*id, Op::Send),
            Completion::SocketOpened { owner, .. } => kernel.end(*owner, Op::Socket),
            Completion::Connected { id, .. } => kernel.end(*id, Op::Connect),
            Completion::ShutDown { id } => kernel.end(*id, Op::Shutdown),
            Completion::Accepted { .. }
            | Completion::AcceptRefused { .. }
            | Completion::Received { more: true, .. }
            | Completion::Watched { more: true, .. }
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
            Op::Watch => self.watch.as_ref(),
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
            Op::Watch => self.watch.as_mut(),
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
