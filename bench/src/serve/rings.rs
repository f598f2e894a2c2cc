//! What the servers on io_uring have in common: a listener for each ring, the loop, and arming
//! again what has ended for want of slots or buffers. What happens to a connection is said by
//! `ring_echo.rs` and `ring_relay.rs`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::Socket;

use super::{Options, TURN, Turns};
use crate::kernel::lanes::Lanes;
use crate::kernel::pool::Chunk;
use crate::kernel::ring::{Completion, Payload, Ring};

/// One ring's connections, by slot. They are told what has completed and answer with the next
/// operations.
pub(super) trait Connections {
    /// A client is there; nothing is armed on it yet.
    fn on_accepted(&mut self, ring: &mut Ring, slot: u32);

    /// Bytes, the end of the stream (`None`), or an error. Without `more` the receive is over.
    fn on_received(
        &mut self,
        ring: &mut Ring,
        slot: u32,
        result: io::Result<Option<Chunk>>,
        more: bool,
    );

    /// A receive had found no buffer, and now there may be one: time to arm it, if it is still
    /// wanted. Until this call it counts as armed, so that its slot is not closed.
    fn on_buffers_back(&mut self, ring: &mut Ring, slot: u32);

    /// A send is over. Its chunk has been released.
    fn on_sent(&mut self, ring: &mut Ring, slot: u32, result: &io::Result<()>);

    /// A shutdown is over.
    fn on_shut_down(&mut self, ring: &mut Ring, slot: u32);

    /// The socket that was opened on behalf of `owner`.
    fn on_socket_opened(&mut self, _ring: &mut Ring, _owner: u32, _result: io::Result<u32>) {
        unreachable!("it opens no sockets")
    }

    /// A connect is over.
    fn on_connected(&mut self, _ring: &mut Ring, _slot: u32, _connected: bool) {
        unreachable!("it connects to nobody")
    }
}

/// A ring's listener and connections.
pub(super) struct Shard<C> {
    pub(super) connections: C,
    pub(super) accepted: u64,
    /// Accepts that failed, mostly for want of slots.
    pub(super) accept_errors: u64,
    listener: Socket,
    accept_armed: bool,
    /// Slots whose receive found no buffer; each at most once.
    starved: Vec<u32>,
    /// Since the starved were last armed.
    buffers_came_back: bool,
}

/// Serves until told to stop or out of time. `connections` makes those of one ring of so many slots.
pub(super) fn run<C: Connections>(
    options: &Options,
    targets: Vec<SocketAddr>,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
    connections: impl Fn(u32) -> C,
) -> io::Result<Vec<Shard<C>>> {
    let setup = options.setup(targets);
    let mut lanes = Lanes::new(options.rings as usize, &setup)?;
    let (listeners, address) = options.listen()?;
    let mut shards: Vec<Shard<C>> = listeners
        .into_iter()
        .map(|listener| Shard {
            connections: connections(setup.slots),
            accepted: 0,
            accept_errors: 0,
            listener,
            accept_armed: false,
            starved: Vec::new(),
            buffers_came_back: false,
        })
        .collect();
    on_listening(address);
    let mut idle = true;
    while turns.next(idle) {
        for (shard, ring) in shards.iter_mut().zip(&mut lanes.rings) {
            shard.arm(ring, idle);
        }
        lanes.submit_and_wait(TURN)?;
        idle = true;
        for (shard, ring) in shards.iter_mut().zip(&mut lanes.rings) {
            while let Some(completion) = ring.next_completion() {
                idle = false;
                shard.dispatch(ring, completion);
            }
        }
    }
    Ok(shards)
}

impl<C: Connections> Shard<C> {
    /// Arms what has ended. An accept that failed for want of slots is tried again when one was
    /// closed or nothing else happens; a receive without a buffer would fail at once, and again
    /// without end, when none came back.
    fn arm(&mut self, ring: &mut Ring, idle: bool) {
        if !self.accept_armed && idle {
            self.arm_accept(ring);
        }
        if idle || std::mem::take(&mut self.buffers_came_back) {
            for slot in self.starved.drain(..) {
                self.connections.on_buffers_back(ring, slot);
            }
        }
    }

    fn arm_accept(&mut self, ring: &mut Ring) {
        self.accept_armed = true;
        ring.arm_accept(self.listener.as_raw_fd());
    }

    fn dispatch(&mut self, ring: &mut Ring, completion: Completion) {
        match completion {
            Completion::Received { slot, result, more } => match result {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.starved.push(slot);
                }
                result => {
                    // What is received is mostly released before the turn is over.
                    self.buffers_came_back = true;
                    self.connections.on_received(ring, slot, result, more);
                }
            },
            Completion::Sent { slot, result, payload } => {
                if let Payload::Chunk(chunk) = payload {
                    ring.release(chunk);
                    self.buffers_came_back = true;
                }
                self.connections.on_sent(ring, slot, &result);
            }
            Completion::Accepted { result, more } => self.on_accepted(ring, &result, more),
            Completion::SocketOpened { owner, result } => {
                self.connections.on_socket_opened(ring, owner, result);
            }
            Completion::Connected { slot, result } => {
                self.connections.on_connected(ring, slot, result.is_ok());
            }
            Completion::ShutDown { slot } => self.connections.on_shut_down(ring, slot),
            Completion::Closed { .. } => {
                if !self.accept_armed {
                    self.arm_accept(ring);
                }
            }
            Completion::Cancelled => {}
        }
    }

    fn on_accepted(&mut self, ring: &mut Ring, result: &io::Result<u32>, more: bool) {
        match *result {
            Ok(slot) => {
                self.accepted += 1;
                self.connections.on_accepted(ring, slot);
                if !more {
                    self.arm_accept(ring);
                }
            }
            Err(_) => {
                self.accept_errors += 1;
                self.accept_armed = more;
            }
        }
    }
}
