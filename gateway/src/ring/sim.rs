//! A simulated kernel and network: virtual time, and faults picked by a seed.
//!
//! A [`Network`] is the world. Each shard gets a [`SimRing`] out of it, the test plays the clients
//! and the upstream servers through [`Peer`]s, and [`Network::run`] turns the shards one after the
//! other in one thread. Nothing here reads a clock or any chance but the seed's, so a run that
//! failed fails again the same way; [`Network::narrate`] prints it, [`Network::digest`] compares
//! two of them.
//!
//! ```text
//! let network = Network::new(seed, Faults::from_seed(seed));
//! let mut shard = Shard::new(network.ring(64, 16, 4096, 1), ...);
//! let mut client = network.connect(0, 0);
//! let done = network.run(Duration::from_secs(60), || {
//!     shard.turn();
//!     client.send(...); client.receive(...);  // As far as they go; again in the next round.
//!     everything_was_said
//! });
//! assert!(done && network.leftovers(0) == Leftovers::default(), "seed {seed}");
//! ```
//!
//! It does what Linux was seen to do where that hurts: a freed slot goes to the very next socket;
//! a multishot ends without an error; no more clients are accepted than are allowed; without buffers a
//! receive fails even on an idle socket, and its data stays; a full table accepts a connection only to
//! close it; a reset is reported once,
//! to whoever asks first, and afterwards a receive reads the end of the stream; a close with bytes
//! unread resets the connection; a turn brings forty events at most. And it is strict where the
//! kernel would let a shard go wrong in silence: it panics when an operation names a slot's former
//! holder, when a second operation of a kind is begun, when a descriptor is closed under an
//! operation, and when the memory of a send changes before its completion is taken.
//!
//! Read `link.rs` (a connection) before `kernel.rs` and `kernel/turn.rs` (what operations do to it);
//! `faults.rs` names what can go wrong.

mod faults;
mod kernel;
mod link;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Completion, Ring, SendMode, Wait, Waker};
use crate::conn::ConnId;
use crate::time::Time;
use crate::upstream::UpstreamAddress;
pub use faults::{Fault, Faults, Random};
use kernel::{Op, Payload, Submission, World};
use link::{ACCEPTOR, CONNECTOR};

/// The simulated world, shared by the rings made from it and by the test. A clone is the same one.
#[derive(Clone)]
pub struct Network(Rc<RefCell<World>>);

/// What a ring still holds. All of it is zero once its connections are closed; armed accepts do
/// not count, for they outlive connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Direct descriptors that are open.
    pub open_slots: usize,
    /// Operations on them whose last completion has not been taken.
    pub operations: usize,
    /// Completions that have not been taken.
    pub completions: usize,
    /// Parts of receive buffers that are lent.
    pub loans: usize,
    /// Receive buffers that are not with the kernel.
    pub buffers_away: usize,
}

/// Rounds without any of them sleeping after which [`Network::run`] gives the rings up as spinning.
const AWAKE_ROUNDS_MAX: u32 = 200_000;

impl Network {
    /// An empty world, in which everything that is left to chance follows from `seed`.
    pub fn new(seed: u64, faults: Faults) -> Network {
        Network(Rc::new(RefCell::new(World::new(seed, faults))))
    }

    /// Makes the ring of one more shard: a table of `slots` descriptors, `buffers` receive buffers
    /// of `buffer_bytes` each, `listeners` listeners. Rings are numbered from 0 in order.
    ///
    /// # Panics
    ///
    /// When the system has no eventfd left, or the buffers are not what `Pool::new` accepts.
    pub fn ring(&self, slots: u32, buffers: u16, buffer_bytes: u32, listeners: usize) -> SimRing {
        // SAFETY: takes no pointers; the descriptor that it returns is nobody else's.
        let eventfd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        assert!(eventfd >= 0, "eventfd: {}", std::io::Error::last_os_error());
        // SAFETY: it is open (asserted) and owned by nobody yet.
        let eventfd = Arc::new(unsafe { OwnedFd::from_raw_fd(eventfd) });
        let mut world = self.0.borrow_mut();
        let index = world.new_ring(slots, buffers, buffer_bytes, listeners, eventfd);
        SimRing { world: Rc::clone(&self.0), index }
    }

    /// A client connects to a listener of a ring. Each has an address of its own in 10.0.0.0/8.
    pub fn connect(&self, ring: usize, listener: usize) -> Peer {
        let number = self.0.borrow().next_client();
        let address = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number);
        self.connect_from(ring, listener, SocketAddr::from((address, 40_000)))
    }

    /// A client connects from a given address.
    pub fn connect_from(&self, ring: usize, listener: usize, client: SocketAddr) -> Peer {
        let mut world = self.0.borrow_mut();
        let link = world.new_link();
        world.enqueue(ring, listener, link, client);
        Peer { world: Rc::clone(&self.0), link, end: CONNECTOR }
    }

    /// A server begins to listen at an address that shards may connect to. Elsewhere their
    /// connects are refused.
    pub fn listen(&self, address: SocketAddr) {
        self.0.borrow_mut().servers.entry(address).or_default();
    }

    /// The server at an address goes; what waited there to be accepted is reset.
    pub fn stop_listening(&self, address: SocketAddr) {
        let waiting = self.0.borrow_mut().servers.remove(&address).unwrap_or_default();
        for link in waiting {
            Peer { world: Rc::clone(&self.0), link, end: ACCEPTOR }.reset();
        }
    }

    /// Takes the next connection that a shard made to a server.
    pub fn accept(&self, address: SocketAddr) -> Option<Peer> {
        let link = self.0.borrow_mut().servers.get_mut(&address).and_then(VecDeque::pop_front)?;
        Some(Peer { world: Rc::clone(&self.0), link, end: ACCEPTOR })
    }

    /// Calls `round` again and again, which turns every shard once and lets the peers play, until
    /// it returns true or virtual time is up. Returns whether it did. Whenever all rings sleep,
    /// time jumps to the next instant at which something happens.
    ///
    /// # Panics
    ///
    /// When rings go on and on without ever sleeping: something spins.
    pub fn run(&self, limit: Duration, mut round: impl FnMut() -> bool) -> bool {
        let end = self.now() + limit;
        let mut awake_rounds = 0;
        while self.now() < end {
            if round() {
                return true;
            }
            awake_rounds = if self.jump(end) { 0 } else { awake_rounds + 1 };
            assert!(awake_rounds < AWAKE_ROUNDS_MAX, "no ring sleeps: something spins");
        }
        false
    }

    /// Moves time on to the next instant at which something happens, at most to `limit`; not at
    /// all, and false, while a ring has something to do. A ring that has had no turn since the
    /// outside did anything counts as having something to do.
    pub fn jump(&self, limit: Time) -> bool {
        let mut world = self.0.borrow_mut();
        let asleep = world.all_asleep();
        if asleep {
            world.now = world.next_event().min(limit).max(world.now);
        }
        asleep
    }

    /// Moves time on regardless.
    pub fn advance(&self, by: Duration) {
        let mut world = self.0.borrow_mut();
        world.now = world.now + by;
    }

    /// Virtual time.
    pub fn now(&self) -> Time {
        self.0.borrow().now
    }

    /// Changes the weather, for instance to let a test end on a calm day.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// How often a fault has happened.
    pub fn fired(&self, fault: Fault) -> u64 {
        self.0.borrow().fired[fault as usize]
    }

    /// A hash of every completion that was taken, when, by whom, and of every byte received.
    pub fn digest(&self) -> u64 {
        self.0.borrow().digest
    }

    /// From here on prints every submission and completion to standard error.
    pub fn narrate(&self) {
        self.0.borrow_mut().narrated = true;
    }

    /// What a ring still holds.
    pub fn leftovers(&self, ring: usize) -> Leftovers {
        self.0.borrow_mut().leftovers(ring)
    }
}

/// An end of a connection outside the gateway. Dropping it closes the socket: the gateway reads
/// the end of the stream, or a reset if bytes were left unread here.
#[must_use = "a peer that is dropped closes its connection"]
pub struct Peer {
    world: Rc<RefCell<World>>,
    link: u64,
    end: usize,
}

impl Peer {
    /// Sends as much as the window has room for, and says how much that was: nothing more after
    /// [`Peer::finish`] or a reset.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut world = self.world.borrow_mut();
        let (arrival, now) = (world.arrival(), world.now);
        let Some(link) = world.links.get_mut(&self.link) else { return 0 };
        if link.has_finished(self.end) || link.is_reset(self.end, now) {
            return 0;
        }
        let count = link.write(self.end, bytes, arrival);
        world.changes += u64::from(count > 0);
        count
    }

    /// Reads up to `max` bytes of what has arrived, and says how many; a slow reader takes a sip
    /// at a time. Who does not read stops the gateway's sends once the window is full.
    pub fn receive(&mut self, into: &mut Vec<u8>, max: usize) -> usize {
        let mut world = self.world.borrow_mut();
        let (now, sip) = (world.now, world.random.below(64) as usize);
        let Some(link) = world.links.get_mut(&self.link) else { return 0 };
        let most = if link.slow { max.min(sip) } else { max };
        let count = link.readable(self.end, now).min(most);
        if count > 0 {
            into.extend(link.read(self.end, count));
            world.changes += 1;
        }
        count
    }

    /// Ends the stream in this direction (FIN); what comes back can still be read.
    pub fn finish(&mut self) {
        let mut world = self.world.borrow_mut();
        let arrival = world.arrival();
        world.changes += 1;
        if let Some(link) = world.links.get_mut(&self.link) {
            link.finish(self.end, arrival);
        }
    }

    /// Goes away with a reset (RST).
    pub fn reset(self) {
        let mut world = self.world.borrow_mut();
        let arrival = world.arrival();
        if let Some(link) = world.links.get_mut(&self.link) {
            link.reset(1 - self.end, arrival);
        }
        // The socket itself goes when `self` is dropped.
    }

    /// A reset has arrived here.
    pub fn is_reset(&self) -> bool {
        let world = self.world.borrow();
        world.links.get(&self.link).is_some_and(|link| link.is_reset(self.end, world.now))
    }

    /// The gateway has ended its stream, and all of it has been read here.
    pub fn is_finished(&self) -> bool {
        let world = self.world.borrow();
        world.links.get(&self.link).is_some_and(|link| link.at_end(self.end, world.now))
    }

    /// Its window is small and it reads in sips ([`Fault::SlowReader`]).
    pub fn is_slow(&self) -> bool {
        self.world.borrow().links.get(&self.link).is_some_and(|link| link.slow)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It is borrowed only when the kernel panics, and then nothing matters any more.
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.close_end(self.link, self.end);
        }
    }
}

/// The ring of one shard. Dropping it closes its sockets, as the end of a process does.
pub struct SimRing {
    world: Rc<RefCell<World>>,
    index: usize,
}

impl SimRing {
    /// Its number among the rings of the network.
    pub fn index(&self) -> usize {
        self.index
    }

    fn submit(&mut self, submission: Submission) {
        self.world.borrow_mut().submit(self.index, submission);
    }
}

impl Ring for SimRing {
    fn now(&self) -> Time {
        self.world.borrow().now
    }

    /// Never sleeps: a thread that waited here would keep the other rings from moving. It notes
    /// that the ring would sleep, and [`Network::jump`] moves time once all of them would.
    fn submit_and_wait(&mut self, wait: Wait) {
        self.world.borrow_mut().submit_and_wait(self.index, wait);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.world.borrow_mut().next_completion(self.index)
    }

    fn arm_accept(&mut self, listener: usize) {
        self.submit(Submission::Accept(listener));
    }

    fn allow_accepts(&mut self, count: u32) {
        self.world.borrow_mut().rings[self.index].accepts_left = count;
    }

    fn stop_listening(&mut self) {
        // Who connects waits in vain, which a client cannot tell from a slow network.
    }

    fn cancel_accept(&mut self, listener: usize) {
        self.submit(Submission::CancelAccept(listener));
    }

    fn arm_recv(&mut self, id: ConnId) {
        self.submit(Submission::Recv(id));
    }

    fn cancel_recv(&mut self, id: ConnId) {
        self.submit(Submission::Cancel(id, Op::Recv));
    }

    fn arm_watch(&mut self, id: ConnId) {
        self.submit(Submission::Watch(id));
    }

    fn cancel_watch(&mut self, id: ConnId) {
        self.submit(Submission::Cancel(id, Op::Watch));
    }

    unsafe fn submit_send(&mut self, id: ConnId, parts: &[IoSlice<'_>], mode: SendMode) {
        let parts = parts.iter().map(|part| (part.as_ptr(), part.len())).collect();
        // SAFETY: the caller keeps the memory as it is until the completion has been taken, and
        // the payload is dropped when that happens.
        let payload = unsafe { Payload::new(parts) };
        self.submit(Submission::Send(id, payload, mode));
    }

    fn cancel_send(&mut self, id: ConnId) {
        self.submit(Submission::Cancel(id, Op::Send));
    }

    fn submit_socket(&mut self, owner: ConnId, _address: &UpstreamAddress, _: Option<IpAddr>) {
        self.submit(Submission::Socket(owner));
    }

    fn submit_connect(&mut self, id: ConnId, address: &UpstreamAddress) {
        // There are no Unix sockets here: nobody listens at this one.
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = match address {
            UpstreamAddress::Tcp(address) => *address,
            UpstreamAddress::Unix(_) => nobody,
        };
        self.submit(Submission::Connect(id, address));
    }

    fn cancel_connect(&mut self, id: ConnId) {
        self.submit(Submission::Cancel(id, Op::Connect));
    }

    fn submit_shutdown(&mut self, id: ConnId) {
        self.submit(Submission::Shutdown(id));
    }

    fn submit_close(&mut self, id: ConnId) {
        self.submit(Submission::Close(id));
    }

    fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.world.borrow().rings[self.index].eventfd))
    }

    fn buffers_free_percent(&self) -> u32 {
        self.world.borrow().rings[self.index].pool.free_percent()
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.drop_ring(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Buffer, Failure};
    use super::*;

    /// The smallest shard: echoes what clients send, and tells an upstream of each of them.
    struct Echo {
        ring: SimRing,
        generation: u32,
        open: BTreeMap<u32, Conn>,
        accepts: u32,
    }

    #[derive(Default)]
    struct Conn {
        id: Option<ConnId>,
        /// What is being sent; it stays where it is until the send is over.
        sending: Box<[u8]>,
        next: Vec<u8>,
        busy: u32,
        recv_armed: bool,
        send_armed: bool,
        over: bool,
        closing: bool,
    }

    const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

    impl Echo {
        fn new(network: &Network, slots: u32, buffers: u16) -> Echo {
            let mut ring = network.ring(slots, buffers, 64, 1);
            ring.arm_accept(0);
            Echo { ring, generation: 0, open: BTreeMap::new(), accepts: 0 }
        }

        fn opened(&mut self, slot: u32) -> ConnId {
            self.generation += 1;
            let id = ConnId { slot, generation: self.generation };
            let conn = Conn { id: Some(id), ..Conn::default() };
            assert!(self.open.insert(slot, conn).is_none(), "slot {slot} came twice");
            id
        }

        fn turn(&mut self) {
            let deadline = self.ring.now() + Duration::from_secs(10);
            self.ring.submit_and_wait(Wait::Until(deadline));
            while let Some(completion) = self.ring.next_completion() {
                self.dispatch(completion);
            }
            for conn in self.open.values_mut() {
                step(&mut self.ring, conn);
            }
        }

        fn conn(&mut self, id: ConnId) -> &mut Conn {
            let conn = self.open.get_mut(&id.slot).expect("open");
            assert_eq!(conn.id, Some(id));
            conn
        }

        fn dispatch(&mut self, completion: Completion) {
            match completion {
                Completion::Accepted { slot, .. } => {
                    self.accepts += 1;
                    let id = self.opened(slot);
                    self.conn(id).busy += 1;
                    self.ring.submit_socket(id, &UpstreamAddress::Tcp(UPSTREAM), None);
                }
                Completion::AcceptEnded { .. } => self.ring.arm_accept(0),
                Completion::AcceptRefused { .. } => {}
                Completion::Received { id, result, more } => {
                    let conn = self.conn(id);
                    conn.recv_armed = more;
                    match result {
                        Ok(Some(buffer)) => conn.next.extend_from_slice(&buffer),
                        Err(Failure::NoBuffers | Failure::Cancelled) => {}
                        Ok(None) | Err(_) => conn.over = true,
                    }
                    if more && id.generation.is_multiple_of(3) {
                        self.ring.cancel_recv(id);
                    }
                }
                Completion::Sent { id, result } => {
                    let conn = self.conn(id);
                    conn.send_armed = false;
                    let sending = std::mem::take(&mut conn.sending);
                    match result {
                        Ok(count) => {
                            conn.next.splice(0..0, sending[count..].iter().copied());
                        }
                        Err(_) => {
                            conn.over = true;
                            conn.next.clear();
                        }
                    }
                }
                Completion::SocketOpened { owner, result } => {
                    self.conn(owner).busy -= 1;
                    if let Ok(slot) = result {
                        let id = self.opened(slot);
                        self.conn(id).busy += 1;
                        self.ring.submit_connect(id, &UpstreamAddress::Tcp(UPSTREAM));
                    }
                }
                Completion::Connected { id, result } => {
                    let conn = self.conn(id);
                    conn.busy -= 1;
                    conn.over = true;
                    if result.is_ok() {
                        conn.next.extend_from_slice(b"one more");
                    }
                }
                Completion::ShutDown { id } => self.conn(id).busy -= 1,
                Completion::Watched { id, .. } => panic!("{id:?} is not watched"),
                Completion::Closed { id } => {
                    self.conn(id);
                    self.open.remove(&id.slot);
                }
            }
        }
    }

    fn step(ring: &mut SimRing, conn: &mut Conn) {
        let Some(id) = conn.id else { return };
        if conn.closing {
            return;
        }
        if !conn.send_armed && !conn.next.is_empty() {
            conn.sending = std::mem::take(&mut conn.next).into();
            // SAFETY: `sending` is replaced only when the completion has been taken.
            unsafe { ring.submit_send(id, &[IoSlice::new(&conn.sending)], SendMode::All) };
            conn.send_armed = true;
        }
        if !conn.over && !conn.recv_armed && conn.busy == 0 {
            ring.arm_recv(id);
            conn.recv_armed = true;
        }
        if conn.over && conn.busy == 0 && !conn.send_armed && !conn.recv_armed {
            ring.submit_close(id);
            conn.closing = true;
        }
    }

    /// Six clients say `MESSAGE` and want it back. Returns the network when all is over.
    fn play(seed: u64, faults: Faults) -> Network {
        let message: Vec<u8> = (0..3000u32).map(|index| index as u8).collect();
        let network = Network::new(seed, faults);
        network.listen(UPSTREAM);
        let mut shards = [Echo::new(&network, 8, 4), Echo::new(&network, 8, 4)];
        let mut clients: Vec<_> =
            (0..6).map(|index| (network.connect(index % 2, 0), 0, Vec::new(), false)).collect();
        let mut upstreams = Vec::new();
        let done = network.run(Duration::from_secs(600), || {
            shards.iter_mut().for_each(Echo::turn);
            while let Some(peer) = network.accept(UPSTREAM) {
                upstreams.push((peer, Vec::new()));
            }
            upstreams.iter_mut().for_each(|(peer, got)| {
                peer.receive(got, 100);
            });
            upstreams.retain(|(peer, _)| !peer.is_finished() && !peer.is_reset());
            for (peer, sent, got, over) in &mut clients {
                if *sent < message.len() {
                    *sent += peer.send(&message[*sent..]);
                    if *sent == message.len() {
                        peer.finish();
                    }
                }
                peer.receive(got, 500);
                assert!(message.starts_with(got), "seed {seed}: other bytes came back");
                *over = peer.is_reset() || peer.is_finished();
            }
            clients.iter().all(|client| client.3) && shards.iter().all(|it| it.open.is_empty())
        });
        assert!(done, "seed {seed}: not over");
        for ring in 0..2 {
            assert_eq!(network.leftovers(ring), Leftovers::default(), "seed {seed}");
        }
        let whole = clients.iter().filter(|client| client.2 == message).count();
        if network.fired(Fault::Reset) + network.fired(Fault::TableFull) == 0 {
            assert_eq!(whole, clients.len(), "seed {seed}");
        }
        network
    }

    #[test]
    fn a_calm_day() {
        play(1, Faults::none());
    }

    #[test]
    fn every_fault_happens_and_nothing_is_lost() {
        let mut fired = [0; Fault::ALL.len()];
        for seed in 0..200 {
            let network = play(seed, Faults::from_seed(seed));
            Fault::ALL.iter().for_each(|fault| fired[*fault as usize] += network.fired(*fault));
        }
        for fault in Fault::ALL {
            assert!(fired[fault as usize] > 0, "{fault:?} never happened");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let digests: Vec<_> =
            (0..20).map(|seed| play(seed, Faults::from_seed(seed)).digest()).collect();
        for (seed, digest) in (0..).zip(&digests) {
            assert_eq!(play(seed, Faults::from_seed(seed)).digest(), *digest, "seed {seed}");
        }
        assert_ne!(digests[0], digests[1]);
    }

    /// Turns a ring until it has brought something.
    fn completions(network: &Network, ring: &mut SimRing) -> Vec<Completion> {
        let mut taken = Vec::new();
        network.run(Duration::from_secs(1), || {
            ring.submit_and_wait(Wait::Until(Time::NEVER));
            taken.extend(std::iter::from_fn(|| ring.next_completion()));
            !taken.is_empty()
        });
        taken
    }

    const FIRST: ConnId = ConnId { slot: 0, generation: 1 };

    fn accepted(network: &Network, ring: &mut SimRing) -> Peer {
        let peer = network.connect(ring.index(), 0);
        ring.arm_accept(0);
        let taken = completions(network, ring);
        assert!(matches!(taken[..], [Completion::Accepted { slot: 0, .. }]), "{taken:?}");
        peer
    }

    #[test]
    fn without_buffers_the_data_stays_in_the_socket() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(2, 1, 4, 1);
        let mut peer = accepted(&network, &mut ring);
        peer.send(b"abcdef");
        ring.arm_recv(FIRST);
        let mut taken = completions(&network, &mut ring);
        let last = taken.pop();
        let no_buffers = Some(Err(Failure::NoBuffers));
        let result = |it: Option<Completion>| match it {
            Some(Completion::Received { result, more: false, .. }) => {
                Some(result.map(|buffer| buffer.map(|it| it.to_vec())))
            }
            _ => None,
        };
        assert_eq!(result(last), no_buffers);
        ring.arm_recv(FIRST); // The buffer is still lent: it fails again at once.
        assert_eq!(result(completions(&network, &mut ring).pop()), no_buffers);
        let [Completion::Received { result: Ok(Some(first)), more: true, .. }] = &taken[..] else {
            panic!("{taken:?}")
        };
        let first: &Buffer = first;
        assert_eq!(&first[..], b"abcd");
        drop(taken);
        ring.arm_recv(FIRST);
        let taken = completions(&network, &mut ring);
        let [Completion::Received { result: Ok(Some(rest)), .. }] = &taken[..] else {
            panic!("{taken:?}")
        };
        assert_eq!(&rest[..], b"ef");
    }

    #[test]
    fn a_freed_slot_goes_to_the_next_client() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(4, 1, 64, 1);
        let _first = accepted(&network, &mut ring);
        ring.submit_close(FIRST);
        assert!(matches!(completions(&network, &mut ring)[..], [Completion::Closed { .. }]));
        let _second = network.connect(0, 0);
        let taken = completions(&network, &mut ring);
        assert!(matches!(taken[..], [Completion::Accepted { slot: 0, .. }]), "{taken:?}");
    }

    #[test]
    #[should_panic(expected = "closed during [Recv]")]
    fn a_close_under_a_receive_is_a_bug() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(1, 1, 64, 1);
        let _peer = accepted(&network, &mut ring);
        ring.arm_recv(FIRST);
        ring.submit_close(FIRST);
    }

    #[test]
    #[should_panic(expected = "the memory of a send changed")]
    fn a_payload_that_moves_is_a_bug() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(1, 1, 64, 1);
        let _peer = accepted(&network, &mut ring);
        let mut payload = *b"hello";
        // SAFETY: it is not kept as promised, but it stays readable; that is what is tested.
        unsafe { ring.submit_send(FIRST, &[IoSlice::new(&payload)], SendMode::All) };
        std::hint::black_box(&mut payload)[0] = b'j';
        completions(&network, &mut ring);
    }

    /// Sends without a fault in the way; the payload outlives the network's interest in it.
    fn send(ring: &mut SimRing, payload: &'static [u8], mode: SendMode) {
        // SAFETY: it is static.
        unsafe { ring.submit_send(FIRST, &[IoSlice::new(payload)], mode) };
    }

    /// More than a link holds.
    static LARGE: [u8; 100_000] = [7; 100_000];

    #[test]
    fn a_send_that_may_not_wait_answers_at_once() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(1, 1, 64, 1);
        let mut peer = accepted(&network, &mut ring);
        send(&mut ring, &LARGE, SendMode::TryNow);
        let Some(Completion::Sent { result: Ok(count), .. }) =
            completions(&network, &mut ring).pop()
        else {
            panic!("not sent")
        };
        assert!(0 < count && count < LARGE.len(), "{count}");
        send(&mut ring, b"more", SendMode::TryNow);
        let taken = completions(&network, &mut ring).pop();
        assert!(
            matches!(taken, Some(Completion::Sent { result: Err(Failure::Full), .. })),
            "{taken:?}"
        );
        network.advance(Duration::from_millis(1));
        let mut got = Vec::new();
        assert_eq!(peer.receive(&mut got, usize::MAX), count);
        assert!(got == LARGE[..count]);
    }

    #[test]
    fn a_cancelled_send_tells_what_it_had_sent() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(1, 1, 64, 1);
        let _peer = accepted(&network, &mut ring);
        for want_some in [true, false] {
            send(&mut ring, &LARGE, SendMode::All);
            ring.submit_and_wait(Wait::No);
            assert!(ring.next_completion().is_none(), "it waits");
            ring.cancel_send(FIRST);
            let taken = completions(&network, &mut ring).pop();
            let Some(Completion::Sent { result, .. }) = taken else { panic!("{taken:?}") };
            // The second one finds a full socket.
            match result {
                Ok(count) => assert!(want_some && 0 < count && count < LARGE.len()),
                Err(failure) => assert_eq!((want_some, failure), (false, Failure::Cancelled)),
            }
        }
    }

    fn upstream(network: &Network, ring: &mut SimRing) -> ConnId {
        let _client = accepted(network, ring);
        ring.submit_socket(FIRST, &UpstreamAddress::Tcp(UPSTREAM), None);
        let taken = completions(network, ring);
        let [Completion::SocketOpened { owner: FIRST, result: Ok(slot) }] = taken[..] else {
            panic!("{taken:?}")
        };
        ConnId { slot, generation: 1 }
    }

    fn connected(network: &Network, ring: &mut SimRing) -> Result<(), Failure> {
        let taken = completions(network, ring).pop();
        let Some(Completion::Connected { result, .. }) = taken else { panic!("{taken:?}") };
        result
    }

    #[test]
    fn a_connect_that_nobody_answers_can_be_cancelled() {
        let network = Network::new(1, Faults::none().with(Fault::ConnectTimeout, 1000));
        let mut ring = network.ring(2, 1, 64, 1);
        network.listen(UPSTREAM);
        let id = upstream(&network, &mut ring);
        let start = network.now();
        ring.submit_connect(id, &UpstreamAddress::Tcp(UPSTREAM));
        ring.submit_and_wait(Wait::No);
        assert!(ring.next_completion().is_none());
        ring.cancel_connect(id);
        assert_eq!(connected(&network, &mut ring), Err(Failure::Cancelled));
        assert!(network.now().since(start) < Duration::from_secs(1));
        assert!(network.accept(UPSTREAM).is_none());
    }

    #[test]
    fn a_server_that_stops_listening_resets_who_waits_and_refuses_who_comes() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(3, 2, 64, 1);
        network.listen(UPSTREAM);
        let id = upstream(&network, &mut ring);
        ring.submit_connect(id, &UpstreamAddress::Tcp(UPSTREAM));
        assert_eq!(connected(&network, &mut ring), Ok(()));
        network.stop_listening(UPSTREAM);
        ring.arm_recv(id);
        let taken = completions(&network, &mut ring).pop();
        assert!(
            matches!(taken, Some(Completion::Received { result: Err(Failure::Reset), .. })),
            "{taken:?}"
        );
        ring.submit_close(id);
        completions(&network, &mut ring);
        ring.submit_socket(FIRST, &UpstreamAddress::Tcp(UPSTREAM), None);
        assert!(matches!(completions(&network, &mut ring)[..], [Completion::SocketOpened { .. }]));
        let id = ConnId { generation: 2, ..id };
        ring.submit_connect(id, &UpstreamAddress::Tcp(UPSTREAM));
        assert_eq!(connected(&network, &mut ring), Err(Failure::Refused));
    }

    #[test]
    fn a_cancelled_accept_leaves_clients_waiting() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(2, 1, 64, 1);
        ring.arm_accept(0);
        ring.cancel_accept(0);
        let taken = completions(&network, &mut ring);
        let failure = Some(Failure::Cancelled);
        assert!(
            matches!(taken[..], [Completion::AcceptEnded { listener: 0, failure: it }] if it == failure),
            "{taken:?}"
        );
        let _peer = accepted(&network, &mut ring);
    }

    #[test]
    fn a_shutdown_is_read_behind_what_was_sent() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(1, 1, 64, 1);
        let mut peer = accepted(&network, &mut ring);
        send(&mut ring, b"bye", SendMode::All);
        completions(&network, &mut ring);
        ring.submit_shutdown(FIRST);
        let taken = completions(&network, &mut ring);
        assert!(matches!(taken[..], [Completion::ShutDown { id: FIRST }]), "{taken:?}");
        network.advance(Duration::from_millis(1));
        assert!(!peer.is_finished(), "three bytes come first");
        assert_eq!(peer.receive(&mut Vec::new(), 10), 3);
        assert!(peer.is_finished() && !peer.is_reset());
        // The other direction goes on.
        assert_eq!(peer.send(b"well"), 4);
        ring.arm_recv(FIRST);
        let taken = completions(&network, &mut ring).pop();
        assert!(
            matches!(&taken, Some(Completion::Received { result: Ok(Some(it)), .. }) if **it == *b"well"),
            "{taken:?}"
        );
        send(&mut ring, b"too late", SendMode::All);
        let taken = completions(&network, &mut ring).pop();
        assert!(
            matches!(taken, Some(Completion::Sent { result: Err(Failure::Reset), .. })),
            "{taken:?}"
        );
    }

    #[test]
    fn a_reset_is_told_once() {
        let network = Network::new(1, Faults::none());
        let mut ring = network.ring(1, 1, 64, 1);
        let peer = accepted(&network, &mut ring);
        peer.reset();
        let mut told = |want: Result<(), Failure>| {
            ring.arm_recv(FIRST);
            let taken = completions(&network, &mut ring).pop();
            let Some(Completion::Received { result, more: false, .. }) = taken else {
                panic!("{taken:?}")
            };
            assert_eq!(result.map(|buffer| assert!(buffer.is_none())), want);
        };
        told(Err(Failure::Reset));
        told(Ok(()));
    }
}
