//! What members of rooms have sent that is not served yet.
//!
//! A request is charged to its client when it is made: while answers to a client are on their way, or
//! lie in its outbox unread, its next request waits. A receive brings many requests at once, so what
//! is behind the one that has to be waited for is kept here as it came, and the client is not read
//! meanwhile. So a client orders no more than [`Rooms::is_busy`](crate::rooms::Rooms::is_busy) allows,
//! and holds here what one receive, and those that were under way with it, have brought.
//!
//! Where a shard has more to do than it can, clients whose requests would go to it wait in a line, each with
//! one request, and come up in turn: a client that orders a thousand things waits a thousand times, and
//! who orders one thing behind it waits once. It waits shorter than they, as there are two lines: those whose
//! request has just been read stand in a line of their own, which moves faster (fq_codel, RFC 8290 §3.2, does
//! so with sparse flows).

use std::collections::{HashMap, VecDeque};

use super::Shard;
use super::send::PAUSE_AT_BYTES;
use crate::conn::{ConnId, Phase, State};
use crate::heap::{list_bytes, map_bytes};
use crate::metrics::Cause;
use crate::ring::Ring;

/// Clients whose kept bytes are looked at in one turn; the others come in the next.
const CLIENTS_PER_TURN: usize = 64;

/// Requests taken from lines in one turn.
const REQUESTS_PER_TURN: usize = 128;

/// Of so many requests that are taken from the two lines to a shard, one is of those that had been kept.
const FRESH_TO_KEPT: u8 = 4;

/// Bytes that wait, by client. A client is here only while it has to wait.
#[derive(Default)]
pub(super) struct Unread {
    waiting: HashMap<ConnId, Kept>,
    /// The sum of their `Kept::held_bytes`.
    kept_bytes: usize,
    /// Clients that may go on, each once (`Kept::is_ready`), and some that are gone.
    ready: VecDeque<ConnId>,
    /// By shard: clients that have a request for it (`Kept::request`), each once, and some that are gone.
    lines: Vec<Line>,
    /// Whose line is looked at first in the next turn.
    first_line: usize,
    /// The shard whose line has come up: the request that is served is not to stand in it again.
    serving: Option<u16>,
    /// What is served has been kept: what of it has to wait stands in the slower line.
    serving_kept: bool,
}

/// Those who wait for one shard.
#[derive(Default)]
struct Line {
    /// Whose request has just been read.
    fresh: VecDeque<ConnId>,
    /// Whose request had been kept behind another.
    kept: VecDeque<ConnId>,
    /// How many were taken from `fresh` since one was from `kept`.
    taken: u8,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.kept.is_empty()
    }

    fn pop(&mut self) -> Option<ConnId> {
        let first = if self.taken + 1 < FRESH_TO_KEPT { self.fresh.pop_front() } else { None };
        self.taken = if first.is_some() { self.taken + 1 } else { 0 };
        first.or_else(|| self.kept.pop_front()).or_else(|| self.fresh.pop_front())
    }
}

/// What a client has sent, of which the first `served` bytes are done with.
/// `served < bytes.len() || !request.is_empty()`
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    served: usize,
    /// The text of the message before `bytes`, while the client stands in line with it; or empty.
    request: Vec<u8>,
    /// It is in `ready`.
    is_ready: bool,
}

impl Kept {
    fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.request.capacity()
    }
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

    /// Whether this client stands in a line.
    fn is_in_line(&self, id: ConnId) -> bool {
        !self.waiting.is_empty()
            && self.waiting.get(&id).is_some_and(|kept| !kept.request.is_empty())
    }

    /// Whether nobody stands in the line of `shard`, or the request at hand is that of the first in it.
    pub(super) fn is_open(&self, shard: u16) -> bool {
        self.serving == Some(shard) || self.lines.get(usize::from(shard)).is_none_or(Line::is_empty)
    }

    /// Puts a client that stands in no line at the end of that of `shard`, with the text of a request.
    pub(super) fn stand_in_line(&mut self, id: ConnId, shard: u16, request: &[u8]) {
        debug_assert!(!request.is_empty(), "an empty text is no request");
        let kept = self.waiting.entry(id).or_default();
        debug_assert!(kept.request.is_empty(), "a client in line is not served");
        kept.request = request.to_vec();
        self.kept_bytes += kept.request.capacity();
        let shard = usize::from(shard);
        if self.lines.len() <= shard {
            self.lines.resize_with(shard + 1, Line::default);
        }
        let Line { fresh, kept, .. } = &mut self.lines[shard];
        if self.serving_kept { kept.push_back(id) } else { fresh.push_back(id) }
    }

    /// Takes the first client off the line of a shard, and its request. `None`: nobody is in it.
    fn next_in_line(&mut self, shard: usize) -> Option<(ConnId, Vec<u8>)> {
        loop {
            let id = self.lines[shard].pop()?;
            // Without an entry it is gone.
            if let Some(kept) = self.waiting.get_mut(&id) {
                self.kept_bytes -= kept.request.capacity();
                return Some((id, std::mem::take(&mut kept.request)));
            }
        }
    }

    fn take(&mut self, id: ConnId) -> Option<Kept> {
        let kept = self.waiting.remove(&id)?;
        self.kept_bytes -= kept.held_bytes();
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

    /// Keeps what is left of what was taken. Meanwhile the client may have come to stand in a line.
    fn put_back(&mut self, id: ConnId, mut kept: Kept) {
        if let Some(meanwhile) = self.take(id) {
            kept.request = meanwhile.request;
        }
        if kept.served >= kept.bytes.len() / 2 {
            kept.bytes.drain(..kept.served);
            kept.bytes.shrink_to(2 * kept.bytes.len());
            kept.served = 0;
        }
        self.kept_bytes += kept.held_bytes();
        self.waiting.insert(id, kept);
    }

    /// Bytes on the heap.
    pub(super) fn held_bytes(&self) -> usize {
        let in_lines = self.lines.iter().map(|line| line.fresh.capacity() + line.kept.capacity());
        let listed = self.ready.capacity() + in_lines.sum::<usize>();
        map_bytes(&self.waiting)
            + self.kept_bytes
            + listed * size_of::<ConnId>()
            + list_bytes(&self.lines)
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
        if self.unread.is_in_line(id) {
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
        for _ in 0..CLIENTS_PER_TURN {
            let Some(id) = self.unread.next_ready() else { break };
            self.serve_kept(id);
        }
        self.serve_lines();
        self.unread.rest();
    }

    /// Whether somebody stands in a line that can go on.
    pub(super) fn may_serve_lines(&mut self) -> bool {
        let Shard { unread, mail, .. } = self;
        (0..)
            .zip(&unread.lines)
            .any(|(shard, line)| !line.is_empty() && mail.takes_requests_by_now(shard))
    }

    /// Whether somebody stands in a line.
    pub(super) fn has_lines(&self) -> bool {
        self.unread.lines.iter().any(|line| !line.is_empty())
    }

    /// Serves requests of clients that stand in lines: one each, as far as their homes take them.
    fn serve_lines(&mut self) {
        let mut steps = REQUESTS_PER_TURN;
        let (lines, first) = (self.unread.lines.len(), self.unread.first_line);
        self.unread.first_line = first.wrapping_add(1);
        for step in 0..lines {
            let shard = first.wrapping_add(step) % lines;
            let home = shard as u16;
            if self.unread.is_open(home) || !self.mail.takes_requests_by_now(home) {
                continue;
            }
            while steps > 0 && self.mail.takes_requests(home) {
                let Some((id, request)) = self.unread.next_in_line(shard) else { break };
                steps -= 1;
                let Some(conn) = self.table.get(id) else { continue };
                if conn.phase == Phase::Open && conn.cause.is_none() {
                    self.unread.serving = Some(home);
                    self.on_room_text(id, &request);
                    self.unread.serving = None;
                }
                self.unread.look_at(id);
            }
        }
    }

    /// Serves what a client has sent, until it has to wait again.
    fn serve_kept(&mut self, id: ConnId) {
        let Some(conn) = self.table.get(id) else { return };
        let serves = matches!(conn.phase, Phase::Open | Phase::Leaving);
        if serves && self.has_to_wait(id) {
            return; // Its answer, its outbox, its rate or its line brings it here again.
        }
        let Some(mut kept) = self.unread.take(id) else { return };
        if serves {
            self.unread.serving_kept = true;
            kept.served += self.serve_messages(id, &mut kept.bytes[kept.served..]);
            self.unread.serving_kept = false;
        }
        let conn = &self.table[id];
        if conn.phase <= Phase::Leaving && kept.served < kept.bytes.len() {
            self.unread.put_back(id, kept);
            if !self.has_to_wait(id) {
                self.unread.look_at(id);
            }
        } else if conn.phase <= Phase::Leaving && self.unread.has(id) {
            // It stands in a line with the last of it.
        } else if conn.flags.read_done && conn.phase <= Phase::Leaving {
            self.start_finish(id, Cause::ClientGone);
        } else if conn.outbox.owed_bytes() <= PAUSE_AT_BYTES || conn.phase > Phase::Open {
            self.resume(id);
        }
    }

    /// What a member of rooms sent waits, though it has ended its stream: that is served first.
    pub(super) fn ends_later(&self, id: ConnId) -> bool {
        let conn = &self.table[id];
        conn.phase <= Phase::Leaving && matches!(conn.state, State::Rooms(_)) && self.unread.has(id)
    }
}
