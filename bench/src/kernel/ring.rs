//! One io_uring, as safe calls: memory that the kernel reads is handed over and comes back with
//! the completion, memory that it writes is the pool's.
//!
//! Connections are direct descriptors and go by their slot. A slot has at most one receive, one
//! send, and one of each other operation outstanding, so that the pair of operation and slot is
//! the token. There are no generations: the users of a ring close a slot only when nothing is
//! outstanding on it.

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use super::pool::{BUFFER_GROUP, Chunk, Pool};

/// What a ring is set up with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Direct descriptors; at most RLIMIT_NOFILE.
    pub(crate) slots: u32,
    /// Receive buffers, a power of two.
    pub(crate) buffers: u16,
    pub(crate) buffer_bytes: u32,
    /// Where `connect` may go.
    pub(crate) targets: Vec<SocketAddr>,
    /// The local addresses that `connect` may come from; empty for "the kernel chooses".
    pub(crate) sources: Vec<SocketAddrV4>,
    /// The congestion control of connecting sockets, when not the system's.
    pub(crate) congestion: Option<CString>,
}

/// Bytes to send, owned until they are sent.
#[derive(Debug)]
pub(crate) enum Payload {
    Bytes(Vec<u8>),
    Chunk(Chunk),
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A connection came in, or the accept failed. Without `more`, it has to be armed again.
    Accepted { result: io::Result<u32>, more: bool },
    /// Bytes, the end of the stream (`None`), or an error. Without `more`, it has to be armed
    /// again.
    Received { slot: u32, result: io::Result<Option<Chunk>>, more: bool },
    /// A send is over; an error includes one that sent less than all.
    Sent { slot: u32, result: io::Result<()>, payload: Payload },
    /// A socket that no slot was asked for.
    SocketOpened { owner: u32, result: io::Result<u32> },
    /// `connect` is over; on failure, with the step that failed.
    Connected { slot: u32, result: Result<(), (&'static str, io::Error)> },
    /// A shutdown is over, whatever it said: the peer may have gone first.
    ShutDown { slot: u32 },
    /// A slot is free.
    Closed { slot: u32 },
    /// A cancel has been heard, and the operation itself answers too; or an option is set before a
    /// close, which answers too.
    Cancelled,
}

/// Operations as they are coded into the token: `op` 8 bits | zero 24 bits | `slot` 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept,
    Recv,
    Send,
    OpenSocket,
    Socket,
    Option,
    Bind,
    Connect,
    Shutdown,
    Close,
    Cancel,
}

const OPS: [Op; 11] = [
    Op::Accept,
    Op::Recv,
    Op::Send,
    Op::OpenSocket,
    Op::Socket,
    Op::Option,
    Op::Bind,
    Op::Connect,
    Op::Shutdown,
    Op::Close,
    Op::Cancel,
];

fn token(op: Op, slot: u32) -> u64 {
    (op as u64) << 56 | u64::from(slot)
}

/// A ring, its buffers, and what it has borrowed for the kernel.
pub(crate) struct Ring {
    uring: IoUring,
    pool: Pool,
    /// What each slot is sending. It stays where it is while the kernel reads it, for a `Vec`'s
    /// bytes do not move with the `Vec`, and a chunk's lie in the pool.
    sending: Vec<Option<Payload>>,
    targets: Vec<Address>,
    sources: Vec<Address>,
    congestion: Option<CString>,
    receive_buffer: Option<Box<libc::c_int>>,
}

/// A socket address as the kernel reads it.
struct Address(socket2::SockAddr);

/// Room for the operations of two turns; a full queue is submitted and gone on with.
const SUBMISSIONS: u32 = 1024;
/// An overflow loses nothing but is slow; this covers a burst on all slots of a full ring.
const COMPLETIONS: u32 = 16_384;
/// The most operations that are linked into one chain.
const CHAIN_MAX: usize = 7;

/// Turned on, as an option's value; static, for the kernel reads it when the operation runs.
static ON: libc::c_int = 1;

/// On, with no time to linger: a close sends a reset instead of an end of stream (tcp(7)).
static LINGER_NOT: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

impl Ring {
    /// Sets the ring up; it belongs to the calling thread from here on.
    pub(crate) fn new(setup: &Setup) -> io::Result<Ring> {
        let uring = IoUring::builder()
            // Only this thread submits, which spares the kernel a lock and is what the next needs.
            .setup_single_issuer()
            // Completions are worked off when we wait, not by interrupting us anywhere.
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            // One bad submission must not keep those behind it from being submitted.
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
            .map_err(|error| {
                let text = format!("cannot set up an io_uring: {error} (Linux 6.12 is needed)");
                io::Error::new(error.kind(), text)
            })?;
        uring.submitter().register_files_sparse(setup.slots).map_err(|error| {
            let text = format!("no table of {} direct descriptors: {error}", setup.slots);
            io::Error::new(error.kind(), text)
        })?;
        let pool = Pool::register(&uring, setup.buffers, setup.buffer_bytes)?;
        let sending = (0..setup.slots).map(|_| None).collect();
        let targets = setup.targets.iter().map(|a| Address((*a).into())).collect();
        let sources = setup.sources.iter().map(|a| Address(SocketAddr::V4(*a).into())).collect();
        let congestion = setup.congestion.clone();
        let receive_buffer = None;
        Ok(Ring { uring, pool, sending, targets, sources, congestion, receive_buffer })
    }

    pub(super) fn register_eventfd(&self, eventfd: RawFd) -> io::Result<()> {
        self.uring.submitter().register_eventfd(eventfd)
    }

    /// Hands everything queued to the kernel and takes up what is ready, without waiting.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        let queued = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed; what the queued entries point to was seen to by `push`.
        let result =
            unsafe { self.uring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) };
        tolerate(result)
    }

    /// Hands everything queued to the kernel; returns when completions are there, a signal has
    /// arrived, or `timeout` has passed; zero is not to wait.
    pub(crate) fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()> {
        if timeout.is_zero() {
            return self.submit();
        }
        let timespec = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timespec);
        tolerate(self.uring.submitter().submit_with_args(1, &args))
    }

    /// Whether `next_completion` has something, or the next `submit` has something to do: the
    /// kernel works a bounded number of events off in one call, and the links of a chain are
    /// events that complete nothing.
    pub(super) fn has_work(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    /// The next completion that has arrived.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        let entry = self.uring.completion().next()?;
        let slot = entry.user_data() as u32;
        let more = cqueue::more(entry.flags());
        let result = match entry.result() {
            value @ 0.. => Ok(value as u32),
            negative => Err(io::Error::from_raw_os_error(-negative)),
        };
        Some(match OPS[(entry.user_data() >> 56) as usize] {
            Op::Accept => Completion::Accepted { result, more },
            Op::Recv => {
                let buffer = cqueue::buffer_select(entry.flags());
                let result = match (result, buffer) {
                    (Ok(len @ 1..), Some(id)) => {
                        let more = cqueue::buffer_more(entry.flags());
                        Ok(Some(self.pool.filled(id, len, more)))
                    }
                    (Ok(_), Some(id)) => {
                        // The end of the stream may still name a buffer; nothing is in it.
                        let more = cqueue::buffer_more(entry.flags());
                        let empty = self.pool.filled(id, 0, more);
                        self.pool.release(empty);
                        Ok(None)
                    }
                    (Ok(_), None) => Ok(None),
                    (Err(error), _) => Err(error),
                };
                Completion::Received { slot, result, more }
            }
            Op::Send => {
                let payload = self.sending[slot as usize].take().expect("a send that was made");
                let len = match &payload {
                    Payload::Bytes(bytes) => bytes.len(),
                    Payload::Chunk(chunk) => chunk.len(),
                };
                let result = match result {
                    Ok(sent) if sent as usize == len => Ok(()),
                    Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                    Err(error) => Err(error),
                };
                Completion::Sent { slot, result, payload }
            }
            Op::OpenSocket => Completion::SocketOpened { owner: slot, result },
            Op::Socket => Completion::Connected { slot, result: failed("socket", result) },
            Op::Option => Completion::Connected { slot, result: failed("setsockopt", result) },
            Op::Bind => Completion::Connected { slot, result: failed("bind", result) },
            Op::Connect => Completion::Connected { slot, result: failed("connect", result) },
            Op::Shutdown => Completion::ShutDown { slot },
            Op::Close => Completion::Closed { slot },
            Op::Cancel => Completion::Cancelled,
        })
    }

    /// The bytes of a received chunk.
    pub(crate) fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.pool.bytes(chunk)
    }

    /// The bytes of a received chunk, to be changed in place.
    pub(crate) fn bytes_mut(&mut self, chunk: &mut Chunk) -> &mut [u8] {
        self.pool.bytes_mut(chunk)
    }

    /// Gives a received chunk back.
    pub(crate) fn release(&mut self, chunk: Chunk) {
        self.pool.release(chunk);
    }

    /// Arms the multishot accept of a listener; connections land in slots of the kernel's choice.
    pub(crate) fn arm_accept(&mut self, listener: RawFd) {
        let entry = opcode::AcceptMulti::new(Fd(listener)).allocate_file_index(true).build();
        self.push(&[entry.user_data(token(Op::Accept, 0))]);
    }

    /// Arms the multishot receive of a slot.
    pub(crate) fn arm_recv(&mut self, slot: u32) {
        let entry = opcode::RecvMulti::new(Fixed(slot), BUFFER_GROUP).build();
        self.push(&[entry.user_data(token(Op::Recv, slot))]);
    }

    /// Sends all of `payload`.
    ///
    /// # Panics
    ///
    /// When the slot has a send outstanding.
    pub(crate) fn send(&mut self, slot: u32, payload: Payload) {
        let sending = &mut self.sending[slot as usize];
        assert!(sending.is_none(), "slot {slot} is sending already");
        let (address, len) = match &payload {
            Payload::Bytes(bytes) => (bytes.as_ptr(), bytes.len()),
            Payload::Chunk(chunk) => (self.pool.address(chunk).cast_const(), chunk.len()),
        };
        *sending = Some(payload);
        // WAITALL: the kernel goes on after a short send, so that one completion is enough.
        let entry = opcode::Send::new(Fixed(slot), address, len as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(&[entry.user_data(token(Op::Send, slot))]);
    }

    /// Opens a socket in a slot of the kernel's choice, to reach `target`. Answers `SocketOpened`.
    pub(crate) fn open_socket(&mut self, owner: u32, target: usize) {
        let entry = self.socket_entry(target, DestinationSlot::auto_target());
        self.push(&[entry.user_data(token(Op::OpenSocket, owner))]);
    }

    /// Connects the socket in `slot` to a target. Answers `Connected`.
    pub(crate) fn connect(&mut self, slot: u32, target: usize) {
        let mut chain = Vec::with_capacity(CHAIN_MAX);
        self.chain_options(&mut chain, slot);
        chain.push(self.connect_entry(slot, target));
        self.push(&chain);
    }

    /// Opens a socket in a given free slot and connects it, from the source of that index (modulo
    /// their number). Answers `Connected`, once.
    pub(crate) fn open_and_connect(&mut self, slot: u32, target: usize, source: usize) {
        let mut chain = Vec::with_capacity(CHAIN_MAX);
        let place = DestinationSlot::try_from_slot_target(slot).expect("a slot of the table");
        chain.push(link(self.socket_entry(target, place), Op::Socket, slot));
        self.chain_options(&mut chain, slot);
        if !self.sources.is_empty() {
            // The port is chosen when connecting, by the pair of both addresses: each source
            // then has the whole range of ports for each target.
            let level = libc::IPPROTO_IP;
            let option = option_on(slot, level, libc::IP_BIND_ADDRESS_NO_PORT);
            chain.push(link(option, Op::Option, slot));
            let source = &self.sources[source % self.sources.len()].0;
            let bind = opcode::Bind::new(Fixed(slot), source.as_ptr().cast(), source.len());
            chain.push(link(bind.build(), Op::Bind, slot));
        }
        chain.push(self.connect_entry(slot, target));
        self.push(&chain);
    }

    /// Ends a receive; it answers itself, without `more`.
    pub(crate) fn cancel_recv(&mut self, slot: u32) {
        self.cancel(token(Op::Recv, slot));
    }

    /// Ends a send; it answers itself.
    pub(crate) fn cancel_send(&mut self, slot: u32) {
        self.cancel(token(Op::Send, slot));
    }

    /// Ends a connect; it answers itself.
    pub(crate) fn cancel_connect(&mut self, slot: u32) {
        self.cancel(token(Op::Connect, slot));
    }

    /// Shuts a socket down; `how` as in shutdown(2).
    pub(crate) fn shutdown(&mut self, slot: u32, how: std::net::Shutdown) {
        let how = match how {
            std::net::Shutdown::Read => libc::SHUT_RD,
            std::net::Shutdown::Write => libc::SHUT_WR,
            std::net::Shutdown::Both => libc::SHUT_RDWR,
        };
        let entry = opcode::Shutdown::new(Fixed(slot), how).build();
        self.push(&[entry.user_data(token(Op::Shutdown, slot))]);
    }

    /// Closes a slot on which nothing is outstanding. An armed receive would keep the socket
    /// open, and its next completion would belong to the slot's next owner. A shutdown is run by a
    /// thread of the kernel's, which looks the slot up when it gets there: that may be too late.
    pub(crate) fn close(&mut self, slot: u32) {
        let entry = opcode::Close::new(Fixed(slot)).build();
        self.push(&[entry.user_data(token(Op::Close, slot))]);
    }

    /// The same, with a reset: the peer sees an error instead of an end, what was not sent is gone,
    /// and no port is kept in TIME_WAIT.
    pub(crate) fn close_abruptly(&mut self, slot: u32) {
        let option = opcode::SetSockOpt::new(
            Fixed(slot),
            libc::SOL_SOCKET as u32,
            libc::SO_LINGER as u32,
            (&raw const LINGER_NOT).cast(),
            size_of_val(&LINGER_NOT) as u32,
        );
        // A hard link: the close is done even when the option cannot be set.
        let option = option.build().flags(Flags::IO_HARDLINK).user_data(token(Op::Cancel, 0));
        let close = opcode::Close::new(Fixed(slot)).build();
        self.push(&[option, close.user_data(token(Op::Close, slot))]);
    }

    /// Bounds the kernel's receive buffer of the sockets that are opened from here on, in bytes (it
    /// takes twice as many, for its own books: socket(7)). Once only: sockets under way have the
    /// address of the number.
    pub(crate) fn limit_receive_buffers(&mut self, bytes: u32) {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        assert!(self.receive_buffer.is_none(), "the bound is set already");
        self.receive_buffer = Some(Box::new(bytes));
    }

    /// Cancels by exact token; by descriptor would walk every operation of the ring.
    fn cancel(&mut self, operation: u64) {
        let entry = opcode::AsyncCancel::new(operation).build();
        self.push(&[entry.user_data(token(Op::Cancel, 0))]);
    }

    fn socket_entry(&self, target: usize, place: DestinationSlot) -> Entry {
        let domain = i32::from(self.targets[target].0.family());
        opcode::Socket::new(domain, libc::SOCK_STREAM, 0).file_index(Some(place)).build()
    }

    fn connect_entry(&self, slot: u32, target: usize) -> Entry {
        let address = &self.targets[target].0;
        let entry = opcode::Connect::new(Fixed(slot), address.as_ptr().cast(), address.len());
        entry.build().user_data(token(Op::Connect, slot))
    }

    fn chain_options(&self, chain: &mut Vec<Entry>, slot: u32) {
        let no_delay = option_on(slot, libc::IPPROTO_TCP, libc::TCP_NODELAY);
        chain.push(link(no_delay, Op::Option, slot));
        if let Some(name) = &self.congestion {
            let congestion = opcode::SetSockOpt::new(
                Fixed(slot),
                libc::IPPROTO_TCP as u32,
                libc::TCP_CONGESTION as u32,
                name.as_ptr().cast(),
                name.as_bytes().len() as u32,
            );
            chain.push(link(congestion.build(), Op::Option, slot));
        }
        if let Some(bytes) = &self.receive_buffer {
            let limit = opcode::SetSockOpt::new(
                Fixed(slot),
                libc::SOL_SOCKET as u32,
                libc::SO_RCVBUF as u32,
                (&raw const **bytes).cast(),
                size_of::<libc::c_int>() as u32,
            );
            chain.push(link(limit.build(), Op::Option, slot));
        }
    }

    /// Queues entries that belong together: a chain must not be cut by a submission.
    fn push(&mut self, entries: &[Entry]) {
        let queue = self.uring.submission();
        let free = queue.capacity() - queue.len();
        drop(queue);
        if free < entries.len() {
            self.submit().expect("submitting a full queue");
        }
        // SAFETY: what an entry points to outlives it. Payloads are kept in `sending` until their
        // completion and leaked with the ring; receive memory is never freed; addresses,
        // options and names are static or are fields that never change, and the kernel has
        // copied them when the ring goes: it reads them while submitting or, in a chain, before
        // its connect, and `drop` leaks all of them.
        unsafe { self.uring.submission().push_multiple(entries) }
            .expect("the queue was just emptied");
    }
}

impl Drop for Ring {
    /// The kernel ends a ring's operations some time after its descriptor is closed, so what they
    /// may point to is left where it is. A ring lives as long as its process.
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.sending));
        std::mem::forget(std::mem::take(&mut self.targets));
        std::mem::forget(std::mem::take(&mut self.sources));
        std::mem::forget(self.congestion.take());
        std::mem::forget(self.receive_buffer.take());
    }
}

fn option_on(slot: u32, level: libc::c_int, name: libc::c_int) -> Entry {
    let len = size_of_val(&ON) as u32;
    let value = (&raw const ON).cast();
    opcode::SetSockOpt::new(Fixed(slot), level as u32, name as u32, value, len).build()
}

/// A link of a chain that is silent when it succeeds. When it fails, it answers, and those after
/// it are dropped without an answer: the flag's rule for links.
fn link(entry: Entry, op: Op, slot: u32) -> Entry {
    entry.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS).user_data(token(op, slot))
}

fn failed(step: &'static str, result: io::Result<u32>) -> Result<(), (&'static str, io::Error)> {
    result.map(drop).map_err(|error| (step, error))
}

/// A wait that ended by a signal or its timeout is a wait that ended; a kernel short of memory or
/// with completions backed up is asked again after these have been taken.
fn tolerate(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}
