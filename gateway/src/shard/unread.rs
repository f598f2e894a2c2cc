//! What members of rooms have sent that is not served yet.
//!
//! A request is charged to its client when it is made: while answers to a client are on their way, or
//! lie in its outbox unread, its next request waits. A receive brings many requests at once, so what
//! is behind the one that has to be waited for is kept here as it came, and the client is not read
//! meanwhile. So a client orders no more than [`Rooms::is_busy`](crate::rooms::Rooms::is_busy) allows,
//! and holds here what one receive, and those that were under way with it, have brought.

use std::collections::{HashMap, VecDeque};

use super::Shard;
use super::send::PAUSE_AT_BYTES;
use crate::conn::{ConnId, Phase, State};
use crate::memory::map_bytes;
use crate::metrics::Cause;
use crate::ring::Ring;

/// Clients whose kept bytes are looked at in one turn; the others come in the next.
const CLIENTS_PER_TURN: usize = 64;

/// Bytes that wait, by client. A client is here only while it has to wait.
#[derive(Default)]
pub(super) struct Unread {
    waiting: HashMap<ConnId, Kept>,
    /// What the vectors of those have room for, in bytes.
    kept_bytes: usize,
    /// Clients that may go on, each once (`Kept::is_ready`), and some that are gone.
    ready: VecDeque<ConnId>,
}

/// What a client has sent, of which the first `served` bytes are done with. `served < bytes.len()`
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    served: usize,
    /// It is in `ready`.
    is_ready: bool,
}

impl Unread {
    /// Whether bytes of this client wait.
    pub(super) fn has(&self, id: ConnId) -> bool {
        !self.waiting.is_empty() && self.waiting.contains_key(&id)
    }

    /// Something that the client may have waited for has happened.
    pub(super) fn look_at(&mut self, id: ConnId) {
        if let Some(kept) = self.waiting.get_mut(&id)
            && !kept.is_ready
        {
            kept.is_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Whether there are clients to be looked at.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Keeps bytes behind those that wait already.
    fn keep(&mut self, id: ConnId, bytes: &[u8]) {
        let kept = &mut self.waiting.entry(id).or_default().bytes;
        let before = kept.capacity();
        kept.extend_from_slice(bytes);
        self.kept_bytes += kept.capacity() - before;
    }

    fn take(&mut self, id: ConnId) -> Option<Kept> {
        let kept = self.waiting.remove(&id)?;
        self.kept_bytes -= kept.bytes.capacity();
        Some(kept)
    }

    /// Takes the client that has been ready for the longest off that list.
    fn next_ready(&mut self) -> Option<ConnId> {
        let id = self.ready.pop_front()?;
        if let Some(kept) = self.waiting.get_mut(&id) {
            kept.is_ready = false;
        }
        Some(id)
    }

    /// Nobody waits any more: memory goes back.
    fn rest(&mut self) {
        if self.waiting.is_empty() && self.waiting.capacity() > 0 {
            *self = Unread::default();
        }
    }

    fn put_back(&mut self, id: ConnId, mut kept: Kept) {
        if kept.served >= kept.bytes.len() / 2 {
            kept.bytes.drain(..kept.served);
            kept.bytes.shrink_to(2 * kept.bytes.len());
            kept.served = 0;
        }
        self.kept_bytes += kept.bytes.capacity();
        self.waiting.insert(id, kept);
    }

    /// Bytes on the heap.
    pub(super) fn held_bytes(&self) -> usize {
        map_bytes(&self.waiting) + self.kept_bytes + self.ready.capacity() * size_of::<ConnId>()
    }

    /// The client is gone, and what it sent with it.
    pub(super) fn forget(&mut self, id: ConnId) {
        if !self.waiting.is_empty() {
            self.take(id);
            self.rest();
        }
    }
}

impl<R: Ring> Shard<R> {
    /// Whether a member of rooms has to wait before its next message is served.
    pub(super) fn has_to_wait(&self, id: ConnId) -> bool {
        let conn = &self.table[id];
        if conn.phase != Phase::Open || conn.cause.is_some() {
            return false; // Its messages are passed over: there is nothing to wait for.
        }
        if conn.outbox.owed_bytes() > PAUSE_AT_BYTES || conn.is_throttled() {
            return true;
        }
        let rooms = &self.rooms[usize::from(self.backend_of(id))];
        rooms.as_ref().is_some_and(|rooms| rooms.is_busy(id))
    }

    /// Keeps what a member of rooms has sent until it may be served, and reads it no further.
    pub(super) fn keep_unread(&mut self, id: ConnId, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.unread.keep(id, bytes);
        }
        self.pause(id);
    }

    /// Serves clients that have waited, a bounded number of them.
    pub(super) fn serve_unread(&mut self) {
        if !self.unread.has_ready() {
            return;
        }
        for _ in 0..CLIENTS_PER_TURN {
            let Some(id) = self.unread.next_ready() else { break };
            let Some(conn) = self.table.get(id) else { continue };
            let serves = matches!(conn.phase, Phase::Open | Phase::Leaving);
            if serves && self.has_to_wait(id) {
                continue; // Its answer, its outbox or its rate brings it here again.
            }
            let Some(mut kept) = self.unread.take(id) else { continue };
            if serves {
                kept.served += self.serve_messages(id, &mut kept.bytes[kept.served..]);
            }
            let conn = &self.table[id];
            if conn.phase <= Phase::Leaving && kept.served < kept.bytes.len() {
                self.unread.put_back(id, kept);
                if !self.has_to_wait(id) {
                    self.unread.look_at(id);
                }
            } else if conn.flags.read_done && conn.phase <= Phase::Leaving {
                self.start_finish(id, Cause::ClientGone);
            } else if conn.outbox.owed_bytes() <= PAUSE_AT_BYTES || conn.phase > Phase::Open {
                self.resume(id);
            }
        }
        self.unread.rest();
    }

    /// What a member of rooms sent waits, though it has ended its stream: that is served first.
    pub(super) fn ends_later(&self, id: ConnId) -> bool {
        let conn = &self.table[id];
        conn.phase <= Phase::Leaving && matches!(conn.state, State::Rooms(_)) && self.unread.has(id)
    }
}
