//! What is written down of each client when its connection is over, on its way to the log.
//!
//! A shard leaves a [`Closed`] and goes on; the control thread makes a line of it. The journal of a
//! shard is bounded: what finds it full is counted and not written (the counters of close causes miss
//! nothing).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use serde::Serialize;

use crate::conn::ConnId;
use crate::metrics::Cause;
use crate::ring::Failure;
use crate::time::Time;
use crate::upstream::UpstreamName;

/// Clients that one shard may close before the control thread looks, ten times a second.
const ENTRIES_MAX: usize = 1024;

/// Failures of upstreams that one shard may note before the control thread looks.
const TROUBLES_MAX: usize = 256;

/// Accepts of one shard that failed, before the control thread looks. A listener has one in that time.
const ACCEPT_FAILURES_MAX: usize = 16;

/// A client's connection that is over.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Which one it was in the table of its shard.
    pub id: ConnId,
    /// Where the connection came from.
    pub peer: SocketAddr,
    /// On whose behalf: its address, or what a trusted proxy said last.
    pub client: IpAddr,
    /// The state that the connection was in: see [`Record::state`](crate::conn::record::Record::state).
    pub state: &'static str,
    /// The number of the route of its last request, if that has one.
    pub route: Option<u16>,
    /// Its requests.
    pub requests: u16,
    /// The last code that the client was told: see [`Conn::code`](crate::conn::Conn::code).
    pub code: u16,
    /// The backend and upstream that it was at last.
    pub upstream: Option<(u16, UpstreamName)>,
    /// Why it ended.
    pub cause: Cause,
    /// The key of the limit that it was over, if something of it was too big, and its bytes.
    pub limit: Option<(&'static str, u64)>,
    /// When it was accepted; of a WebSocket, when that was open.
    pub opened_at: Time,
    /// When its descriptor was closed.
    pub closed_at: Time,
    /// The bytes and messages of the connection.
    pub traffic: Traffic,
}

/// An upstream has failed a client.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The backend, and which of its upstreams.
    pub upstream: (u16, UpstreamName),
    /// It gets no clients for a while, because of this and others before it.
    pub is_ejection: bool,
    /// The reason, in words.
    pub why: Box<str>,
}

/// What went through a connection. Messages are counted up to four billion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes that its peer sent, framing included.
    pub received_bytes: u64,
    /// Bytes that its peer was sent, framing included.
    pub sent_bytes: u64,
    /// Whole messages among the former.
    pub received_messages: u32,
    /// Whole messages among the latter.
    pub sent_messages: u32,
}

impl Traffic {
    /// Counts messages of the peer.
    pub fn received(&mut self, messages: u32) {
        self.received_messages = self.received_messages.saturating_add(messages);
    }

    /// Counts messages to the peer.
    pub fn sent(&mut self, messages: u32) {
        self.sent_messages = self.sent_messages.saturating_add(messages);
    }
}

/// What the control thread has not yet looked at.
pub struct Journal {
    closed: ArrayQueue<Closed>,
    troubles: ArrayQueue<Trouble>,
    accept_failures: ArrayQueue<(usize, Failure)>,
    troubles_lost: AtomicU64,
    lost: AtomicU64,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            closed: ArrayQueue::new(ENTRIES_MAX),
            troubles: ArrayQueue::new(TROUBLES_MAX),
            accept_failures: ArrayQueue::new(ACCEPT_FAILURES_MAX),
            troubles_lost: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }
}

impl Journal {
    /// Bytes of the journal, full or empty. For the memory ledger.
    pub fn held_bytes(&self) -> usize {
        // Each place has a stamp beside the entry.
        self.closed.capacity() * (size_of::<Closed>() + size_of::<usize>())
            + self.troubles.capacity() * (size_of::<Trouble>() + size_of::<usize>())
            + self.accept_failures.capacity() * (size_of::<(usize, Failure)>() + size_of::<usize>())
    }

    /// Writes an entry down, or counts it as lost.
    pub fn push(&self, entry: Closed) {
        if self.closed.push(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that an upstream has failed a client, or counts that as lost.
    pub fn note_trouble(&self, upstream: (u16, UpstreamName), is_ejection: bool, why: &str) {
        if self.troubles.is_full() {
            self.troubles_lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The shard is the only one who writes, so there is still room.
        drop(self.troubles.push(Trouble { upstream, is_ejection, why: why.into() }));
    }

    /// The oldest trouble that nobody has taken.
    pub fn pop_trouble(&self) -> Option<Trouble> {
        self.troubles.pop()
    }

    /// Notes that a listener, by its number, could not accept. What finds no room is left out: the counter
    /// has it.
    pub fn note_accept_failure(&self, listener: usize, failure: Failure) {
        let _ = self.accept_failures.push((listener, failure));
    }

    /// The oldest failure of an accept that nobody has taken.
    pub fn pop_accept_failure(&self) -> Option<(usize, Failure)> {
        self.accept_failures.pop()
    }

    /// Troubles that were not written since this was asked last.
    pub fn take_troubles_lost(&self) -> u64 {
        self.troubles_lost.swap(0, Ordering::Relaxed)
    }

    /// The oldest entry that nobody has taken.
    pub fn pop(&self) -> Option<Closed> {
        self.closed.pop()
    }

    /// Entries that were not written since this was asked last.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
impl Closed {
    /// A client that went before it had said anything.
    pub(crate) fn of_test(id: ConnId, closed_at: Time) -> Closed {
        Closed {
            id,
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            client: IpAddr::from([127, 0, 0, 1]),
            state: "head",
            route: None,
            requests: 0,
            code: 0,
            upstream: None,
            cause: Cause::ClientGone,
            limit: None,
            opened_at: Time(0),
            closed_at,
            traffic: Traffic::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(number: u64) -> Closed {
        Closed::of_test(ConnId { slot: 0, generation: 0 }, Time(number))
    }

    #[test]
    fn a_full_journal_keeps_what_it_has_and_counts_the_rest() {
        let journal = Journal::default();
        let many = ENTRIES_MAX as u64 + 7;
        (0..many).for_each(|number| journal.push(closed(number)));
        assert_eq!((journal.take_lost(), journal.take_lost()), (7, 0));
        let kept = std::iter::from_fn(|| journal.pop());
        assert!(kept.map(|closed| closed.closed_at.0).eq(0..ENTRIES_MAX as u64));
        // And there is room again.
        journal.push(closed(0));
        assert!(journal.pop().is_some() && journal.pop().is_none());
        assert_eq!(journal.take_lost(), 0);
    }
}
