//! A relay that knows bytes only: what a client sends goes out to the upstream from the buffer it
//! was received in, and the other way round.
//!
//! A side that does not take what is sent to it stops the other side's receive. What has been
//! received by then stays in its buffers, which are shared by all connections of a ring: a dozen
//! clients that do not read can stop a ring. A reference may be so simple; a gateway may not.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};

use serde_json::{Value, json};

use super::rings::{self, Connections};
use super::{Options, Turns};
use crate::kernel::pool::Chunk;
use crate::kernel::ring::{Payload, Ring};

/// Chunks that may wait for one side before the other side is not read any more.
const QUEUE_MAX: usize = 4;

/// Serves until told to stop or out of time.
pub(super) fn run(
    options: &Options,
    upstream: SocketAddr,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Value> {
    let relay = |slots| Relay {
        sides: (0..slots).map(|_| Side::default()).collect(),
        relayed: 0,
        upstream_failed: 0,
    };
    let shards = rings::run(options, vec![upstream], turns, on_listening, relay)?;
    let relays = || shards.iter().map(|shard| &shard.connections);
    Ok(json!({
        "relayed_count": relays().map(|relay| relay.relayed).sum::<u64>(),
        "accept_errors_count": shards.iter().map(|shard| shard.accept_errors).sum::<u64>(),
        "upstream_failed_count": relays().map(|relay| relay.upstream_failed).sum::<u64>(),
    }))
}

struct Relay {
    /// By slot.
    sides: Vec<Side>,
    relayed: u64,
    upstream_failed: u64,
}

/// One socket of a pair.
#[derive(Default)]
struct Side {
    /// The slot of the other.
    peer: u32,
    recv_armed: bool,
    sending: bool,
    /// Shutdowns under way.
    shutdowns: u8,
    /// Its receive was ended because the peer has too much to send already.
    paused: bool,
    /// It will send nothing more.
    ended: bool,
    /// It was told that its peer will send nothing more.
    told: bool,
    /// The pair is being ended.
    dead: bool,
    /// What waits to be sent to it. Empty when it is not sending.
    queue: VecDeque<Chunk>,
}

impl Connections for Relay {
    fn on_accepted(&mut self, ring: &mut Ring, slot: u32) {
        // Nothing is read from it before the upstream is there to take it.
        ring.open_socket(slot, 0);
    }

    fn on_socket_opened(&mut self, ring: &mut Ring, owner: u32, result: io::Result<u32>) {
        match result {
            Ok(slot) => {
                self.sides[owner as usize] = Side { peer: slot, ..Side::default() };
                self.sides[slot as usize] = Side { peer: owner, ..Side::default() };
                ring.connect(slot, 0);
            }
            Err(_) => {
                self.upstream_failed += 1;
                ring.close(owner);
            }
        }
    }

    fn on_connected(&mut self, ring: &mut Ring, slot: u32, connected: bool) {
        let peer = self.sides[slot as usize].peer;
        if connected {
            self.relayed += 1;
        } else {
            self.upstream_failed += 1;
        }
        for slot in [slot, peer] {
            if connected {
                self.sides[slot as usize].recv_armed = true;
                ring.arm_recv(slot);
            } else {
                ring.close(slot);
            }
        }
    }

    fn on_received(
        &mut self,
        ring: &mut Ring,
        slot: u32,
        result: io::Result<Option<Chunk>>,
        more: bool,
    ) {
        let side = &mut self.sides[slot as usize];
        side.recv_armed = more;
        let peer_slot = side.peer;
        match result {
            Ok(Some(chunk)) if side.dead => {
                ring.release(chunk);
                self.pair_join(ring, slot);
            }
            Ok(Some(chunk)) => {
                let peer = &mut self.sides[peer_slot as usize];
                if peer.sending {
                    peer.queue.push_back(chunk);
                    let full = peer.queue.len() >= QUEUE_MAX;
                    let side = &mut self.sides[slot as usize];
                    if full && !side.paused {
                        side.paused = true;
                        if more {
                            ring.cancel_recv(slot);
                        }
                    }
                } else {
                    peer.sending = true;
                    ring.send(peer_slot, Payload::Chunk(chunk));
                }
                self.arm_recv_unless_paused(ring, slot);
            }
            Ok(None) => {
                side.ended = true;
                // When both have ended, closing says so to both.
                if !self.pair_join(ring, slot) {
                    self.tell_ended(ring, peer_slot);
                }
            }
            // The pause has begun; it may be over already.
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) && !side.dead => {
                self.arm_recv_unless_paused(ring, slot);
            }
            Err(_) => self.abort(ring, slot),
        }
    }

    fn on_buffers_back(&mut self, ring: &mut Ring, slot: u32) {
        self.sides[slot as usize].recv_armed = false;
        self.arm_recv_unless_paused(ring, slot);
        self.pair_join(ring, slot);
    }

    fn on_sent(&mut self, ring: &mut Ring, slot: u32, result: &io::Result<()>) {
        let side = &mut self.sides[slot as usize];
        side.sending = false;
        if result.is_err() {
            return self.abort(ring, slot);
        }
        if side.dead {
            self.pair_join(ring, slot);
            return;
        }
        if let Some(chunk) = side.queue.pop_front() {
            side.sending = true;
            ring.send(slot, Payload::Chunk(chunk));
            return;
        }
        let peer_slot = side.peer;
        let peer = &mut self.sides[peer_slot as usize];
        if peer.paused {
            peer.paused = false;
            self.arm_recv_unless_paused(ring, peer_slot);
        }
        if !self.pair_join(ring, slot) {
            self.tell_ended(ring, slot);
        }
    }

    fn on_shut_down(&mut self, ring: &mut Ring, slot: u32) {
        self.sides[slot as usize].shutdowns -= 1;
        self.pair_join(ring, slot);
    }
}

impl Relay {
    fn arm_recv_unless_paused(&mut self, ring: &mut Ring, slot: u32) {
        let side = &mut self.sides[slot as usize];
        if !(side.recv_armed || side.paused || side.ended || side.dead) {
            side.recv_armed = true;
            ring.arm_recv(slot);
        }
    }

    /// Passes the end of a stream on, behind everything that came before it.
    fn tell_ended(&mut self, ring: &mut Ring, slot: u32) {
        let peer_ended = self.sides[self.sides[slot as usize].peer as usize].ended;
        let side = &mut self.sides[slot as usize];
        if peer_ended && !side.sending && !side.told && !side.dead {
            side.told = true;
            side.shutdowns += 1;
            ring.shutdown(slot, Shutdown::Write);
        }
    }

    /// Ends a pair that cannot go on. What is outstanding comes back by the shutdown.
    fn abort(&mut self, ring: &mut Ring, slot: u32) {
        let peer_slot = self.sides[slot as usize].peer;
        for slot in [slot, peer_slot] {
            let side = &mut self.sides[slot as usize];
            if !side.dead {
                side.dead = true;
                side.shutdowns += 1;
                ring.shutdown(slot, Shutdown::Both);
            }
            for chunk in side.queue.drain(..) {
                ring.release(chunk);
            }
        }
        self.pair_join(ring, slot);
    }

    /// Closes both once nothing is outstanding on either; says whether it has.
    fn pair_join(&mut self, ring: &mut Ring, slot: u32) -> bool {
        let peer_slot = self.sides[slot as usize].peer;
        let over = [slot, peer_slot].iter().all(|slot| {
            let side = &self.sides[*slot as usize];
            let outstanding = side.recv_armed || side.sending || side.shutdowns > 0;
            !outstanding && (side.dead || side.ended)
        });
        if over {
            for slot in [slot, peer_slot] {
                ring.close(slot);
            }
        }
        over
    }
}
