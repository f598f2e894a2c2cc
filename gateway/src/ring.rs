//! What a shard asks of the kernel, and what it hears back.
//!
//! The shard is written against `trait Ring`. `linux.rs` is the kernel's io_uring; `sim.rs` is a
//! simulated kernel with virtual time and faults picked by a seed. Both lend received bytes out of
//! the pool in `buffers.rs`.
//!
//! Operations are queued and reach the kernel together, in `submit_and_wait`. Every operation
//! answers with a [`Completion`]; what the kernel says in negative numbers has become a
//! [`Failure`] before it leaves this module.

#![allow(unsafe_code)]

pub mod buffers;
pub mod linux;
#[allow(missing_docs)]
pub mod sim;

use std::fmt;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::conn::ConnId;
use crate::time::Time;
use crate::upstream::UpstreamAddress;
pub use buffers::Buffer;

/// The kernel as one shard sees it: sockets in a table of direct descriptors, operations that are
/// submitted, completions that come back.
///
/// At most one receive, one send, and one of each other kind may be outstanding on a connection;
/// the pair of operation and [`ConnId`] is the token that the kernel carries for us.
pub trait Ring {
    /// The monotonic clock. Read it once a turn.
    fn now(&self) -> Time;

    /// Hands everything queued to the kernel, then waits as `wait` says.
    fn submit_and_wait(&mut self, wait: Wait);

    /// The next completion that has arrived, or `None` when all have been taken.
    fn next_completion(&mut self) -> Option<Completion>;

    /// Begins to accept at listener `listener`. Answers with any number of
    /// [`Completion::Accepted`] and, when it has ended, one [`Completion::AcceptEnded`].
    fn arm_accept(&mut self, listener: usize);

    /// So many clients of all listeners may enter the table until this is called again; the others
    /// wait in the backlog of their listener. A new ring is allowed any number.
    fn allow_accepts(&mut self, count: u32);

    /// Ends the accept of a listener; it answers [`Completion::AcceptEnded`].
    fn cancel_accept(&mut self, listener: usize);

    /// Closes the listeners, once no accept is armed: whoever connects is refused at once from here
    /// on, unless somebody else listens there. None may be armed again.
    fn stop_listening(&mut self);

    /// Arms the multishot receive of a connection. Answers with [`Completion::Received`]; it has
    /// to be armed again once one came without `more`.
    fn arm_recv(&mut self, id: ConnId);

    /// Ends an armed receive. Answers through the receive itself, whose last completion comes
    /// without `more`; what had arrived before is still delivered.
    fn cancel_recv(&mut self, id: ConnId);

    /// Watches a connection that is not read for its peer's reset. Answers with
    /// [`Completion::Watched`]; it has to be armed again once one came without `more`. The end of the
    /// peer's stream is no answer: it is read.
    fn arm_watch(&mut self, id: ConnId);

    /// Ends an armed watch; its last completion comes without `more`.
    fn cancel_watch(&mut self, id: ConnId);

    /// Sends `parts`, in order. Answers with one [`Completion::Sent`].
    ///
    /// # Safety
    ///
    /// The memory behind `parts` must stay where it is and unchanged until that completion has
    /// been taken. (The array of parts itself is copied.)
    unsafe fn submit_send(&mut self, id: ConnId, parts: &[IoSlice<'_>], mode: SendMode);

    /// Ends a [`SendMode::All`] send that waits; it answers [`Completion::Sent`] with what it had
    /// sent or [`Failure::Cancelled`].
    fn cancel_send(&mut self, id: ConnId);

    /// Opens a stream socket for an upstream connection on behalf of the connection `owner`. Answers
    /// with [`Completion::SocketOpened`]. It is bound to `source` where there is one, to a port of the
    /// kernel's choice.
    fn submit_socket(&mut self, owner: ConnId, address: &UpstreamAddress, source: Option<IpAddr>);

    /// Connects a socket that [`Completion::SocketOpened`] brought. Answers with
    /// [`Completion::Connected`].
    fn submit_connect(&mut self, id: ConnId, address: &UpstreamAddress);

    /// Ends a connect that has not been answered; it answers [`Completion::Connected`].
    fn cancel_connect(&mut self, id: ConnId);

    /// Shuts the sending half: the peer reads what was sent and then the end of the stream.
    /// Answers with [`Completion::ShutDown`].
    fn submit_shutdown(&mut self, id: ConnId);

    /// Closes the descriptor, after which the kernel may hand the slot out again at once. Only
    /// legal when nothing else is outstanding on the connection. Answers with
    /// [`Completion::Closed`].
    fn submit_close(&mut self, id: ConnId);

    /// What another thread uses to end this ring's wait.
    fn waker(&self) -> Waker;

    /// Receive buffers that the kernel may still fill, in percent of all.
    fn buffers_free_percent(&self) -> u32;
}

/// How long [`Ring::submit_and_wait`] may sleep when no completion is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until a completion or a wake arrives, or until this instant.
    Until(Time),
}

/// What a send does when the socket has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendMode {
    /// Send what fits now and answer at once: the payload may be memory that has to be given back
    /// soon. Answers a count below the whole, or [`Failure::Full`] when nothing fitted.
    TryNow,
    /// Wait until everything is sent.
    All,
}

/// The outcome of one operation.
#[derive(Debug)]
pub enum Completion {
    /// A client is connected and its socket sits in `slot` of the table.
    Accepted {
        /// Which listener it came through.
        listener: usize,
        /// The place of its direct descriptor.
        slot: u32,
        /// The client's address, as the socket has it.
        peer: SocketAddr,
    },
    /// An accept has ended and has to be armed again, or not.
    AcceptEnded {
        /// Which listener.
        listener: usize,
        /// Why, where the kernel said so.
        failure: Option<Failure>,
    },
    /// A client was accepted and closed at once, because the table had no place for it. The
    /// accept goes on.
    AcceptRefused {
        /// Which listener it came through.
        listener: usize,
        /// Why there was no place.
        failure: Failure,
    },
    /// Bytes, the end of the stream, or a failure.
    Received {
        /// On which connection.
        id: ConnId,
        /// `None` is the end of the stream.
        result: Result<Option<Buffer>, Failure>,
        /// Whether the receive is still armed.
        more: bool,
    },
    /// A watched connection was reset, or its watch has ended.
    Watched {
        /// On which connection.
        id: ConnId,
        /// The peer has reset the connection or is gone.
        gone: bool,
        /// Whether the watch is still armed.
        more: bool,
    },
    /// A send is over.
    Sent {
        /// On which connection.
        id: ConnId,
        /// Bytes that the socket took.
        result: Result<usize, Failure>,
    },
    /// A socket for an upstream is open.
    SocketOpened {
        /// On whose behalf.
        owner: ConnId,
        /// The slot of the new socket.
        result: Result<u32, Failure>,
    },
    /// A connect is over.
    Connected {
        /// On which connection.
        id: ConnId,
        /// Whether it succeeded.
        result: Result<(), Failure>,
    },
    /// A shutdown is over; its result does not matter, for the peer may have gone first.
    ShutDown {
        /// On which connection.
        id: ConnId,
    },
    /// A descriptor is closed and its slot is free.
    Closed {
        /// Which connection it was.
        id: ConnId,
    },
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No receive buffer was free (ENOBUFS). The data stays in the socket.
    NoBuffers,
    /// The socket had no room for a [`SendMode::TryNow`] (EAGAIN).
    Full,
    /// Cancelled by us (ECANCELED).
    Cancelled,
    /// The peer reset the connection or is gone (ECONNRESET, EPIPE, ENOTCONN).
    Reset,
    /// The peer did not answer in time (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH).
    TimedOut,
    /// Nobody listens there (ECONNREFUSED).
    Refused,
    /// The table of direct descriptors, or the system's, is full (ENFILE, EMFILE).
    TableFull,
    /// No local port is left toward this address (EADDRNOTAVAIL).
    NoLocalPort,
    /// Anything else, by its errno.
    Other(i32),
}

impl Failure {
    /// The failure behind an errno (a positive number).
    pub fn from_errno(errno: i32) -> Failure {
        match errno {
            libc::ENOBUFS => Failure::NoBuffers,
            libc::EAGAIN => Failure::Full,
            libc::ECANCELED => Failure::Cancelled,
            libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ECONNABORTED => Failure::Reset,
            libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH => Failure::TimedOut,
            libc::ECONNREFUSED => Failure::Refused,
            libc::ENFILE | libc::EMFILE => Failure::TableFull,
            libc::EADDRNOTAVAIL => Failure::NoLocalPort,
            other => Failure::Other(other),
        }
    }

    /// Whether it is a lack of ours, of which the peer knows nothing.
    pub fn is_shortage(self) -> bool {
        matches!(
            self,
            Failure::NoBuffers
                | Failure::Full
                | Failure::TableFull
                | Failure::NoLocalPort
                | Failure::Other(libc::ENOMEM)
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NoBuffers => f.write_str("no receive buffer free"),
            Failure::Full => f.write_str("socket buffer full"),
            Failure::Cancelled => f.write_str("cancelled"),
            Failure::Reset => f.write_str("connection reset"),
            Failure::TimedOut => f.write_str("timed out"),
            Failure::Refused => f.write_str("connection refused"),
            Failure::TableFull => f.write_str("descriptor table full"),
            Failure::NoLocalPort => f.write_str("no local port is left"),
            Failure::Other(errno) => std::io::Error::from_raw_os_error(*errno).fmt(f),
        }
    }
}

/// Ends the wait of one ring, from any thread. The caller decides whether a wake is needed
/// (`shard/mailbox.rs` does so by the receiver's "asleep" flag); each one is a system call.
#[derive(Clone, Debug, Default)]
pub struct Waker(Option<Arc<OwnedFd>>);

impl Waker {
    /// A waker that writes to the given eventfd.
    pub fn new(eventfd: Arc<OwnedFd>) -> Waker {
        Waker(Some(eventfd))
    }

    /// Wakes. Nothing can go wrong that the caller could mend: the counter is full only when a
    /// wake is already pending.
    #[allow(unsafe_code)]
    pub fn wake(&self) {
        if let Some(eventfd) = &self.0 {
            let one = 1u64.to_ne_bytes();
            // SAFETY: `one` is eight readable bytes, and the descriptor is open while the Arc lives.
            unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}
