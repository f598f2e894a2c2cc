//! The kernel's io_uring behind [`Ring`]. One ring belongs to one thread, the one that made it.
//!
//! What is relied on, all of it in Linux 6.1: deferred task work, direct descriptors, multishot
//! receive, rings of provided buffers. `LinuxRing::new` tries each before it returns and
//! names what is missing. Two newer things are used where the kernel has them: incremental
//! buffers (6.12) and a submission queue without its index array (6.6).
//!
//! Sockets come into the table in one way, accepted and connecting ones alike: as an ordinary
//! descriptor, on which the peer's address is read and options are set, that is then moved into a
//! direct slot of the kernel's choice and closed. A direct accept saves half a microsecond of the
//! accept and needs Linux 6.8 to learn who has connected.
//!
//! A multishot accept takes all that waits in a backlog before it returns, thousands in a reconnect
//! storm, whether the table has room for them or not. So the ring polls its listeners and accepts by
//! itself, as many in a turn as the shard allows (`take_clients`); accept4 tells the address as well.

#![allow(unsafe_code)]

mod buffer_ring;
mod gather;
mod moves;
mod sockets;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{Domain, SockAddr, Socket, Type};

use super::buffers::Pool;
use super::{Completion, Failure, Ring, SendMode, Wait, Waker};
use crate::conn::ConnId;
use crate::limits::human_bytes;
use crate::time::Time;
use crate::upstream::UpstreamAddress;
use buffer_ring::BufferRing;
use gather::Gather;
use moves::{Move, Moves};
pub use sockets::{Claim, listen, local_port_range};
use sockets::{local_ports, upstream_socket};

/// How a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Direct descriptors, at most `RLIMIT_NOFILE`: so many connections the ring can hold.
    pub slots: u32,
    /// Receive buffers; a power of two.
    pub buffers: u16,
    /// Bytes in each receive buffer.
    pub buffer_bytes: u32,
    /// Fill buffers incrementally where the kernel can.
    pub incremental: bool,
}

/// Submissions that are gathered before the kernel is entered. A full queue is submitted at once,
/// so this bounds a batch, not a turn; above 256 batches cost more than they save.
const SUBMISSIONS: u32 = 256;

/// Completions that may wait. Beyond them the kernel keeps an overflow list and ends multishots,
/// which are armed again, so a burst costs time and loses nothing.
const COMPLETIONS: u32 = 16_384;

/// Completions that are copied out of the shared queue at a time.
const BATCH: usize = 128;

/// Parts of one gathered send (the kernel's own bound is 1,024).
pub const SEND_PARTS_MAX: usize = 64;

/// The group of the receive buffers.
const BUFFER_GROUP: u16 = 0;

/// What an operation is, in the top 8 bits of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    /// Polls a listener, once.
    Accept = 1,
    /// Moves an ordinary descriptor into a direct slot; the token's slot is an index of `moves`.
    Move,
    Recv,
    Send,
    Connect,
    Shutdown,
    Close,
    Wake,
    /// Its completion says nothing that its target's does not.
    Cancel,
    /// Polls a connection for a reset, until it is cancelled.
    Watch,
}

/// What a completion belongs to, packed into the 64 bits that the kernel carries for us:
/// `op` 8 bits | `generation` 24 bits | `slot` 32 bits.
#[derive(Clone, Copy)]
struct Token(u64);

impl Token {
    fn new(op: Op, generation: u32, slot: u32) -> Token {
        debug_assert!(generation < 1 << 24);
        Token((op as u64) << 56 | u64::from(generation) << 32 | u64::from(slot))
    }

    fn of(op: Op, id: ConnId) -> Token {
        Token::new(op, id.generation, id.slot)
    }

    fn op(self) -> Op {
        match self.0 >> 56 {
            1 => Op::Accept,
            2 => Op::Move,
            3 => Op::Recv,
            4 => Op::Send,
            5 => Op::Connect,
            6 => Op::Shutdown,
            7 => Op::Close,
            8 => Op::Wake,
            9 => Op::Cancel,
            10 => Op::Watch,
            other => unreachable!("a completion for operation {other}, which nobody submits"),
        }
    }

    fn id(self) -> ConnId {
        ConnId { slot: self.0 as u32, generation: (self.0 >> 32) as u32 & 0xFF_FFFF }
    }
}

/// One io_uring with its direct descriptors, listeners and receive buffers.
pub struct LinuxRing {
    // Dropped first: from then on the kernel writes into nothing below.
    ring: IoUring,
    batch: Vec<cqueue::Entry>,
    batch_next: usize,
    /// Answers that need no kernel.
    ready: VecDeque<Completion>,
    listeners: Vec<Listening>,
    /// The listener that is accepted at first in the next turn.
    next_listener: usize,
    /// Clients that may still be accepted in this turn.
    accepts_left: u32,
    /// Clients that were accepted when the table had no slot left; they get the next ones.
    held: VecDeque<(OwnedFd, usize, SocketAddr)>,
    moves: Moves,
    gather: Gather,
    local_ports: Option<u32>,
    buffer_ring: BufferRing,
    pool: Pool,
    eventfd: Arc<OwnedFd>,
    /// Where the kernel writes the eventfd's counter; boxed, so that it stays in place.
    eventfd_count: Box<u64>,
}

impl LinuxRing {
    /// Makes a ring for the calling thread, which is the only one that may use it.
    ///
    /// # Errors
    ///
    /// [`SetupError`] names what the kernel refused and what to do about it.
    pub fn new(options: &Options, listeners: Vec<TcpListener>) -> Result<LinuxRing, SetupError> {
        assert!(options.buffers.is_power_of_two(), "a buffer ring has a power of two of entries");
        let ring = build_ring()?;
        ring.submitter().register_files_sparse(options.slots).map_err(|error| SetupError {
            what: format!("a table of {} direct descriptors", options.slots),
            advice: "raise LimitNOFILE (RLIMIT_NOFILE), or set server.slots_per_shard lower",
            error,
        })?;
        let (pool, buffer_ring) = BufferRing::with_pool(&ring, options)?;
        // SAFETY: eventfd takes no pointers; a valid descriptor is ours alone.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(SetupError::new("an eventfd", io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(fd)
        };
        let mut this = LinuxRing {
            ring,
            batch: Vec::with_capacity(BATCH),
            batch_next: 0,
            ready: VecDeque::new(),
            listeners: Vec::with_capacity(listeners.len()),
            next_listener: 0,
            accepts_left: u32::MAX,
            held: VecDeque::new(),
            moves: Moves::default(),
            gather: Gather::new(),
            local_ports: local_ports(),
            buffer_ring,
            pool,
            eventfd: Arc::new(eventfd),
            eventfd_count: Box::new(0),
        };
        for socket in listeners {
            // What is polled has to say "nobody" at once: who was there may have gone meanwhile.
            socket.set_nonblocking(true).map_err(|e| SetupError::new("a listener", e))?;
            this.listeners.push(Listening { socket, state: AcceptState::No });
        }
        this.self_test()?;
        this.arm_wake();
        Ok(this)
    }

    /// The receive buffers that it got, for the operator's eye.
    pub fn describe_buffers(&self) -> String {
        let kind = if self.buffer_ring.incremental { "incremental" } else { "whole" };
        let size = human_bytes(u64::from(self.pool.buffer_bytes()));
        format!("{} {kind} receive buffers of {size}", self.pool.count())
    }

    /// Where its receive buffers lie, and how many bytes they are.
    pub fn receive_memory(&self) -> (usize, usize) {
        let bytes = usize::from(self.pool.count()) * self.pool.buffer_bytes() as usize;
        (self.pool.address(0).addr().get(), bytes)
    }

    /// Moves one byte through everything the data path relies on. A version number would not do:
    /// distributions carry fixes back and switch features off.
    fn self_test(&mut self) -> Result<(), SetupError> {
        let fail = |what: &str, why: String| {
            SetupError::new(&format!("the self-test ({what})"), io::Error::other(why))
        };
        let (ours, theirs) = UnixStream::pair().map_err(|e| SetupError::new("a socket pair", e))?;
        self.start_move(OwnedFd::from(ours), Move::SelfTest);
        let slot = match self.wait_for_one() {
            Some(Completion::Accepted { slot, .. }) => slot,
            other => return Err(fail("direct descriptors", format!("{other:?}"))),
        };
        let id = ConnId { slot, generation: 0 };
        self.arm_recv(id);
        io::Write::write_all(&mut &theirs, b"x").map_err(|e| SetupError::new("a write", e))?;
        match self.wait_for_one() {
            Some(Completion::Received { result: Ok(Some(byte)), more: true, .. })
                if &byte[..] == b"x" => {}
            other => return Err(fail("multishot receive", format!("{other:?}"))),
        }
        self.cancel_recv(id);
        match self.wait_for_one() {
            Some(Completion::Received { result: Err(Failure::Cancelled), more: false, .. }) => {}
            other => return Err(fail("cancelling a receive", format!("{other:?}"))),
        }
        self.submit_close(id);
        match self.wait_for_one() {
            Some(Completion::Closed { .. }) => Ok(()),
            other => Err(fail("closing a direct descriptor", format!("{other:?}"))),
        }
    }

    /// The next completion, waiting at most a second for it. For the self-test.
    fn wait_for_one(&mut self) -> Option<Completion> {
        let deadline = self.now() + Duration::from_secs(1);
        loop {
            self.submit_and_wait(Wait::Until(deadline));
            let completion = self.next_completion();
            if completion.is_some() || self.now() >= deadline {
                return completion;
            }
        }
    }

    /// Queues one submission. A full queue goes to the kernel first, without a wait.
    fn push(&mut self, entry: &squeue::Entry, token: Token) {
        let entry = entry.clone().user_data(token.0);
        loop {
            // SAFETY: whatever the entry points to stays in place until it is completed (`eventfd_count`,
            // `moves`, and by contract the bytes of a send).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter(0, None);
        }
    }

    /// Goes to the kernel until one more submission has room for itself and for what it points to in `gather`.
    /// To be called before that is gathered: going there gives all of it up.
    fn make_room_to_gather(&mut self) {
        while self.gather.is_full() || self.ring.submission().is_full() {
            self.enter(0, None);
        }
    }

    /// Queues a submission that points into `gather`.
    fn push_gathered(&mut self, entry: &squeue::Entry, token: Token) {
        let entry = entry.clone().user_data(token.0);
        // SAFETY: what it points to stays in place until it is submitted: `enter` alone clears it, when
        // nothing is queued.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("room was made before it was gathered");
    }

    /// Enters the kernel: submits what is queued and runs deferred work, of which receives are
    /// made, even when nothing is waited for.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) {
        self.buffer_ring.offer_home(&self.pool);
        let count = self.ring.submission().len();
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        const GETEVENTS: u32 = 1;
        const EXT_ARG: u32 = 8;
        // SAFETY: `args` and the timespec outlive the call; the flags say that `args` is one.
        let result = unsafe {
            self.ring.submitter().enter(count as u32, want as u32, GETEVENTS | EXT_ARG, Some(&args))
        };
        if let Err(error) = result {
            match error.raw_os_error() {
                // A timeout, a signal, or completions that have to be taken first: the loop that
                // called us does what is needed and comes back.
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => panic!("io_uring_enter failed, so no connection can be served: {error}"),
            }
        }
        if self.ring.submission().is_empty() {
            self.gather.clear();
        }
    }

    /// Starts moving a descriptor into a direct slot.
    fn start_move(&mut self, socket: OwnedFd, purpose: Move) {
        let (index, place) = self.moves.add(socket, purpose);
        // An offset of -1 is IORING_FILE_INDEX_ALLOC: the kernel picks the slot and writes it over
        // the descriptor.
        let entry = opcode::FilesUpdate::new(place.as_ptr(), 1).offset(-1).build();
        self.push(&entry, Token::new(Op::Move, 0, index));
    }

    fn arm_wake(&mut self) {
        let place: *mut u64 = &raw mut *self.eventfd_count;
        let fd = types::Fd(self.eventfd.as_raw_fd());
        self.push(&opcode::Read::new(fd, place.cast(), 8).build(), Token::new(Op::Wake, 0, 0));
    }

    /// What a completion of the kernel's means to a shard; `None` when it was for ourselves.
    fn translate(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let token = Token(entry.user_data());
        let result = match entry.result() {
            value @ 0.. => Ok(value as u32),
            errno => Err(Failure::from_errno(-errno)),
        };
        let more = cqueue::more(entry.flags());
        let id = token.id();
        Some(match token.op() {
            Op::Recv => {
                let result = result.map(|bytes| {
                    // The end of the stream comes without a buffer.
                    let buffer = cqueue::buffer_select(entry.flags())?;
                    let more_behind =
                        self.buffer_ring.incremental && cqueue::buffer_more(entry.flags());
                    Some(self.pool.filled(buffer, bytes, more_behind))
                });
                Completion::Received {
                    id,
                    result: result.map(|b| b.filter(|b| !b.is_empty())),
                    more,
                }
            }
            Op::Send => Completion::Sent { id, result: result.map(|bytes| bytes as usize) },
            Op::Watch => {
                // The end of the peer's stream wakes every poll (POLLRDHUP), and means nothing here.
                let gone = (libc::POLLERR | libc::POLLHUP) as u32;
                let gone = result.is_ok_and(|events| events & gone != 0);
                if more && !gone {
                    return None;
                }
                Completion::Watched { id, gone, more }
            }
            Op::Connect => Completion::Connected { id, result: result.map(drop) },
            Op::Shutdown => Completion::ShutDown { id },
            Op::Close => Completion::Closed { id },
            Op::Accept => return self.on_polled(id.slot as usize, result),
            Op::Move => return self.on_moved(id.slot, result),
            Op::Wake => {
                self.arm_wake();
                return None;
            }
            Op::Cancel => return None,
        })
    }

    /// Somebody waits at a listener, or its poll has failed or been cancelled.
    fn on_polled(&mut self, listener: usize, result: Result<u32, Failure>) -> Option<Completion> {
        // Closed since.
        let listening = self.listeners.get_mut(listener)?;
        let failure = match (result, listening.state) {
            (Ok(_), AcceptState::Polled) => {
                listening.state = AcceptState::Ready;
                return None;
            }
            (Ok(_), _) => None,
            (Err(failure), _) => Some(failure),
        };
        listening.state = AcceptState::No;
        Some(Completion::AcceptEnded { listener, failure })
    }

    fn poll_listener(&mut self, listener: usize) {
        let listening = &mut self.listeners[listener];
        listening.state = AcceptState::Polled;
        let fd = types::Fd(listening.socket.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        self.push(&entry, Token::new(Op::Accept, 0, listener as u32));
    }

    /// Accepts as many clients as are allowed, of those that wait. Returns whether the next turn may
    /// take more of them at once. Without allowance it may not: what makes room is a completion, and
    /// brings the next turn by itself.
    fn take_clients(&mut self) -> bool {
        // Those on their way into the table count, too.
        self.accepts_left = self.accepts_left.saturating_sub(self.moves.accepted);
        let is_allowed = self.accepts_left > 0;
        while self.accepts_left > 0
            && let Some((socket, listener, peer)) = self.held.pop_front()
        {
            self.accepts_left -= 1;
            self.start_move(socket, Move::Accepted { listener, peer });
        }
        let count = self.listeners.len();
        for offset in 0..count {
            self.accept_at((self.next_listener + offset) % count);
        }
        self.next_listener = (self.next_listener + 1) % count.max(1);
        is_allowed && self.listeners.iter().any(|it| it.state == AcceptState::Ready)
    }

    fn accept_at(&mut self, listener: usize) {
        while self.accepts_left > 0 && self.listeners[listener].state == AcceptState::Ready {
            match self.listeners[listener].socket.accept() {
                Ok((socket, peer)) => {
                    self.accepts_left -= 1;
                    self.start_move(OwnedFd::from(socket), Move::Accepted { listener, peer });
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => self.poll_listener(listener),
                    Some(errno) if is_of_one_client(errno) => self.accepts_left -= 1,
                    errno => {
                        self.listeners[listener].state = AcceptState::No;
                        let failure = Some(match errno {
                            Some(libc::EMFILE | libc::ENFILE) => Failure::TableFull,
                            errno => Failure::Other(errno.unwrap_or(libc::EIO)),
                        });
                        self.ready.push_back(Completion::AcceptEnded { listener, failure });
                    }
                },
            }
        }
    }

    fn on_moved(&mut self, index: u32, result: Result<u32, Failure>) -> Option<Completion> {
        let (slot, purpose, socket) = self.moves.finish(index);
        let result = result.map(|_| slot);
        match purpose {
            Move::Accepted { listener, peer } => Some(match (result, socket) {
                (Ok(slot), _) => Completion::Accepted { listener, slot, peer },
                (Err(Failure::TableFull), Some(socket)) => {
                    self.held.push_back((socket, listener, peer));
                    return None;
                }
                (Err(failure), _) => Completion::AcceptRefused { listener, failure },
            }),
            Move::Opened { owner } => Some(Completion::SocketOpened { owner, result }),
            Move::SelfTest => result.ok().map(|slot| Completion::Accepted {
                listener: 0,
                slot,
                peer: SocketAddr::from(([0, 0, 0, 0], 0)),
            }),
        }
    }
}

impl Ring for LinuxRing {
    fn now(&self) -> Time {
        monotonic_now()
    }

    fn submit_and_wait(&mut self, wait: Wait) {
        let more_wait = self.take_clients();
        if more_wait || !self.ready.is_empty() || self.batch_next < self.batch.len() {
            return self.enter(0, None);
        }
        match wait {
            Wait::No => self.enter(0, None),
            Wait::Until(Time::NEVER) => self.enter(1, None),
            Wait::Until(deadline) => {
                let timeout = deadline.since(self.now());
                // A wait of zero would still arm a timer, at a hundred times the cost of none.
                if timeout.is_zero() { self.enter(0, None) } else { self.enter(1, Some(timeout)) }
            }
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.ready.pop_front() {
                return Some(completion);
            }
            if self.batch_next == self.batch.len() {
                self.batch.clear();
                self.batch_next = 0;
                self.batch.extend(self.ring.completion().take(BATCH));
                if self.batch.is_empty() {
                    return None;
                }
            }
            let entry = self.batch[self.batch_next].clone();
            self.batch_next += 1;
            if let Some(completion) = self.translate(&entry) {
                return Some(completion);
            }
        }
    }

    fn arm_accept(&mut self, listener: usize) {
        self.poll_listener(listener);
    }

    fn allow_accepts(&mut self, count: u32) {
        self.accepts_left = count;
    }

    fn stop_listening(&mut self) {
        self.listeners.clear();
    }

    fn cancel_accept(&mut self, listener: usize) {
        let state = &mut self.listeners[listener].state;
        if *state == AcceptState::Ready {
            *state = AcceptState::No;
            return self.ready.push_back(Completion::AcceptEnded { listener, failure: None });
        }
        *state = AcceptState::Ending;
        let target = Token::new(Op::Accept, 0, listener as u32);
        self.push(&opcode::AsyncCancel::new(target.0).build(), Token::new(Op::Cancel, 0, 0));
    }

    fn arm_recv(&mut self, id: ConnId) {
        let entry = opcode::RecvMulti::new(Fixed(id.slot), BUFFER_GROUP).build();
        self.push(&entry, Token::of(Op::Recv, id));
    }

    fn cancel_recv(&mut self, id: ConnId) {
        // By exact token: the kernel finds it in a hash. By descriptor it would walk every armed
        // request of the ring.
        let target = Token::of(Op::Recv, id);
        self.push(&opcode::AsyncCancel::new(target.0).build(), Token::of(Op::Cancel, id));
    }

    fn arm_watch(&mut self, id: ConnId) {
        // No events are asked for: POLLERR and POLLHUP are always told (poll(2)). Multishot, which is by
        // edges: with one shot, a stream that has ended would complete every watch that is armed after it.
        let entry = opcode::PollAdd::new(Fixed(id.slot), 0).multi(true).build();
        self.push(&entry, Token::of(Op::Watch, id));
    }

    fn cancel_watch(&mut self, id: ConnId) {
        let target = Token::of(Op::Watch, id);
        self.push(&opcode::AsyncCancel::new(target.0).build(), Token::of(Op::Cancel, id));
    }

    unsafe fn submit_send(&mut self, id: ConnId, parts: &[IoSlice<'_>], mode: SendMode) {
        // NOSIGNAL: a peer that has gone is a failure of this send, not of the process.
        // WAITALL: a short send goes on in the kernel instead of coming back half done.
        // DONTWAIT beside it: what does not fit at once is reported at once, and no request that
        // points into the payload stays behind.
        let flags = libc::MSG_NOSIGNAL
            | libc::MSG_WAITALL
            | if mode == SendMode::TryNow { libc::MSG_DONTWAIT } else { 0 };
        let token = Token::of(Op::Send, id);
        if let [part] = parts {
            let send = opcode::Send::new(Fixed(id.slot), part.as_ptr(), part.len() as u32);
            return self.push(&send.flags(flags).build(), token);
        }
        self.make_room_to_gather();
        let message = self.gather.add(parts);
        let send = opcode::SendMsg::new(Fixed(id.slot), message).flags(flags as u32);
        self.push_gathered(&send.build(), token);
    }

    fn cancel_send(&mut self, id: ConnId) {
        let target = Token::of(Op::Send, id);
        self.push(&opcode::AsyncCancel::new(target.0).build(), Token::of(Op::Cancel, id));
    }

    fn submit_socket(&mut self, owner: ConnId, address: &UpstreamAddress, source: Option<IpAddr>) {
        let socket = match address {
            UpstreamAddress::Tcp(address) => upstream_socket(address, source, self.local_ports),
            UpstreamAddress::Unix(_) => Socket::new(Domain::UNIX, Type::STREAM, None),
        };
        match socket {
            Ok(socket) => self.start_move(OwnedFd::from(socket), Move::Opened { owner }),
            Err(error) => {
                let failure = Failure::from_errno(error.raw_os_error().unwrap_or(libc::EIO));
                self.ready.push_back(Completion::SocketOpened { owner, result: Err(failure) });
            }
        }
    }

    fn submit_connect(&mut self, id: ConnId, address: &UpstreamAddress) {
        let address = match address {
            UpstreamAddress::Tcp(address) => SockAddr::from(*address),
            UpstreamAddress::Unix(path) => match SockAddr::unix(path) {
                Ok(address) => address,
                // Longer than an address can be, which the configuration does not let pass.
                Err(_) => {
                    let result = Err(Failure::Refused);
                    return self.ready.push_back(Completion::Connected { id, result });
                }
            },
        };
        self.make_room_to_gather();
        let (address, length) = self.gather.add_address(address);
        let entry = opcode::Connect::new(Fixed(id.slot), address, length).build();
        self.push_gathered(&entry, Token::of(Op::Connect, id));
    }

    fn cancel_connect(&mut self, id: ConnId) {
        let target = Token::of(Op::Connect, id);
        self.push(&opcode::AsyncCancel::new(target.0).build(), Token::of(Op::Cancel, id));
    }

    fn submit_shutdown(&mut self, id: ConnId) {
        let entry = opcode::Shutdown::new(Fixed(id.slot), libc::SHUT_WR).build();
        self.push(&entry, Token::of(Op::Shutdown, id));
    }

    fn submit_close(&mut self, id: ConnId) {
        self.push(&opcode::Close::new(Fixed(id.slot)).build(), Token::of(Op::Close, id));
    }

    fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.eventfd))
    }

    fn buffers_free_percent(&self) -> u32 {
        self.pool.free_percent()
    }
}

/// Whether this error of an accept is that of the client which was next, and is gone: the listener may have
/// others (accept(2), "Error handling"; EPERM is a firewall's).
fn is_of_one_client(errno: i32) -> bool {
    matches!(
        errno,
        libc::EINTR
            | libc::ECONNABORTED
            | libc::EPERM
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::ETIMEDOUT
    )
}

/// The kernel's monotonic clock.
pub fn monotonic_now() -> Time {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call fills; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    Time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

fn build_ring() -> Result<IoUring, SetupError> {
    let build = |no_sqarray: bool| {
        let mut builder = IoUring::builder();
        builder
            // Only this thread submits, which is what lets the kernel skip its locks.
            .setup_single_issuer()
            // Work for completions runs when we enter, in one go, instead of interrupting us.
            .setup_defer_taskrun()
            // One bad submission does not hold up those behind it.
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS);
        if no_sqarray {
            // Submissions are taken in order; the array of indices is memory touched for nothing.
            builder.setup_no_sqarray();
        }
        builder.build(SUBMISSIONS)
    };
    build(true).or_else(|_| build(false)).map_err(|error| SetupError {
        what: "an io_uring with deferred task work".into(),
        advice: match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                "this kernel has no io_uring: Linux 6.1 or newer is needed, with CONFIG_IO_URING"
            }
            Some(libc::EPERM | libc::EACCES) => {
                "io_uring is switched off here. See `sysctl kernel.io_uring_disabled`: with 1, \
                 set kernel.io_uring_group to the group of this service; with 2 it is off for \
                 all. In a container or unit, let the system call filter pass io_uring_setup, \
                 io_uring_enter and io_uring_register"
            }
            Some(libc::EINVAL) => "Linux 6.1 or newer is needed (IORING_SETUP_DEFER_TASKRUN)",
            Some(libc::ENOMEM) => {
                "the limit on locked memory is too low: set LimitMEMLOCK=infinity (RLIMIT_MEMLOCK)"
            }
            _ => "Linux 6.1 or newer is needed",
        },
        error,
    })
}

/// A feature that the kernel did not give.
#[derive(Debug)]
pub struct SetupError {
    what: String,
    advice: &'static str,
    error: io::Error,
}

impl SetupError {
    fn new(what: &str, error: io::Error) -> SetupError {
        SetupError { what: what.into(), advice: "Linux 6.1 or newer is needed", error }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refused {}: {}; {}", self.what, self.error, self.advice)
    }
}

impl std::error::Error for SetupError {}

/// A listener, and how far its accept is.
struct Listening {
    socket: TcpListener,
    state: AcceptState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AcceptState {
    /// Nobody is accepted.
    No,
    /// A poll will say when somebody waits.
    Polled,
    /// That poll is cancelled.
    Ending,
    /// Somebody waits, or may.
    Ready,
}

#[cfg(test)]
mod tests;
