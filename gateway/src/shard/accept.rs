//! Clients appear: accepting, and when not to.
//!
//! Above `connections_max`, and when the table has few slots left, clients are still accepted, as far
//! as a small reserve goes: to answer their requests with 503 (`admit.rs`). Only when that is used up
//! they wait in the listener's backlog, which tells them nothing.
//!
//! A turn accepts a few clients and no more, so that in a reconnect storm those who are served already
//! wait for a few opens and not for thousands. The others wait in the backlog meanwhile.
//!
//! A client that has connected and asks for nothing costs its sender next to nothing. So an address has
//! its share of those (`doorstep.rs`), above which they are only in the reserve; and where there is no
//! room, who has been silent for the longest goes first. A newcomer that speaks finds room by that.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::Shard;
use crate::conn::table::Table;
use crate::conn::{Conn, ConnId, Side};
use crate::metrics::Cause;
use crate::ring::{Failure, Ring};
use crate::time::Time;

/// Slots kept free of clients: for a burst that was on its way when we stopped accepting.
const SLOTS_RESERVED: u32 = 64;

/// Clients above the limit that a shard has at once, to tell them so.
const SURPLUS_MAX: u32 = 64;

/// Clients accepted in one turn. A relayed one takes 50 to 100 microseconds until it is open. With 16
/// those who stand by a reconnect storm waited half as long again as with 4 or 8, and the storm was
/// over no sooner.
const ACCEPTS_PER_TURN: u32 = 4;

/// How long a client may always be silent: its first bytes come a moment behind its connection. The
/// exception are those above the share of their address.
const SILENCE: Duration = Duration::from_millis(250);

/// How often a shard without room looks for clients that were silent for that long.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// How long a listener rests after an accept that failed: what it lacks is rarely there at once.
const FAILURE_WAIT: Duration = Duration::from_millis(100);

/// Silent clients that are sent away at a time.
const SENT_AWAY: usize = 4;

/// Clients that have not asked for anything yet, in the order in which they came, and some that have,
/// or are gone: those are taken out when they come to the front, or are half of all.
#[derive(Default)]
pub(super) struct Silent {
    /// Those that have a place.
    placed: VecDeque<ConnId>,
    /// Those in the reserve.
    surplus: VecDeque<ConnId>,
}

/// The accept of one listener.
#[derive(Clone, Copy, Default)]
pub(super) struct Accepting {
    armed: bool,
    cancelling: bool,
    /// It has failed, and rests until then.
    rests_until: Time,
}

/// Where a shard stops serving newcomers, and where it stops accepting them.
#[derive(Clone, Copy)]
pub(super) struct AcceptLimits {
    /// Slots in use, those of upstreams included, up to which a newcomer is served.
    served_max: u32,
    /// Slots in use at which accepting stops.
    open_max: u32,
    /// Clients above the limit at which accepting stops.
    surplus_max: u32,
}

impl AcceptLimits {
    pub(super) fn new(slots: u32) -> AcceptLimits {
        let open_max = slots.saturating_sub(SLOTS_RESERVED.min(slots / 4)).max(1);
        // A small table has better use for its slots.
        let surplus_max = SURPLUS_MAX.min(slots / 16);
        AcceptLimits {
            served_max: open_max - surplus_max,
            open_max,
            surplus_max: surplus_max.max(1),
        }
    }

    /// Whether the client that came last can be served.
    pub(super) fn has_room(&self, table: &Table) -> bool {
        table.open() <= self.served_max
    }

    fn are_met(&self, table: &Table, surplus: u32) -> bool {
        surplus >= self.surplus_max || table.open() >= self.open_max
    }

    /// Accepting starts again a little below where it stops, so that it does not flip with every
    /// client.
    fn leave_room(&self, table: &Table, surplus: u32) -> bool {
        let below = |max: u32| max - 1 - (max / 64).min(64);
        surplus <= below(self.surplus_max) && table.open() <= below(self.open_max)
    }
}

impl<R: Ring> Shard<R> {
    pub(super) fn arm_accept(&mut self, listener: usize) {
        self.accepting[listener].armed = true;
        self.ring.arm_accept(listener);
    }

    /// A client's socket is in the table. Its request head is due by the handshake deadline.
    pub(super) fn on_accepted(&mut self, listener: usize, slot: u32, peer: SocketAddr) {
        let id = self.table.occupy(slot, Side::Client, peer, self.now);
        self.metrics.accepted.add(1);
        self.table[id].addresses.set_listener(listener);
        let has_share_left = self.come_to_door(id);
        let surplus = !(has_share_left && self.take_place());
        self.surplus += u32::from(surplus);
        if surplus && has_share_left {
            // Its request is about to come: there may be room for it then.
            self.send_silent_away(false, SILENCE);
        } else if surplus && self.surplus > self.accept_limits.surplus_max / 2 {
            // Not for those of one address to fill: they make room for each other.
            self.send_silent_away(true, Duration::ZERO);
        }
        let queue = if surplus { &mut self.silent.surplus } else { &mut self.silent.placed };
        queue.push_back(id);
        if queue.len() > 2 * self.table.open() as usize + 64 {
            let table = &self.table;
            queue.retain(|id| is_silent(table, *id));
        }
        let conn = &mut self.table[id];
        conn.flags.surplus = surplus;
        conn.deadline = self.now + self.config.limits.handshake_timeout;
        self.timers.set(slot, conn.deadline);
        if self.stop_deadline.is_some() {
            return self.start_close(id, Cause::Drain);
        }
        if self.start_client(id, listener) {
            self.arm_recv(id);
        }
        self.stop_accepting_when_full();
    }

    pub(super) fn on_accept_refused(&mut self) {
        self.metrics.accepted.add(1);
        // Who it was, the ring has not told, so no line of the log does.
        self.metrics.count_close(Cause::MemoryPressure);
        self.stop_accepting_when_full();
    }

    /// How many clients the coming turn may accept: never more than there are slots for.
    pub(super) fn accepts_allowed(&self) -> u32 {
        ACCEPTS_PER_TURN.min(self.accept_limits.open_max.saturating_sub(self.table.open()))
    }

    /// An accept ends when it is cancelled, and when it fails: the system has no descriptor to give, or the
    /// listener is broken. It is armed again whenever there is room, after a failure when it has rested.
    pub(super) fn on_accept_ended(&mut self, listener: usize, failure: Option<Failure>) {
        let accepting = &mut self.accepting[listener];
        accepting.armed = false;
        accepting.cancelling = false;
        if let Some(failure) = failure.filter(|failure| *failure != Failure::Cancelled) {
            // Armed at once it would fail at once.
            accepting.rests_until = self.now + FAILURE_WAIT;
            self.accept_retry_at = self.accept_retry_at.min(self.now + FAILURE_WAIT);
            self.metrics.accept_failures.add(1);
            self.journal.note_accept_failure(listener, failure);
        }
        self.accept_again_when_room();
    }

    /// Called when a slot has become free, or the clock says so.
    pub(super) fn accept_again_when_room(&mut self) {
        if self.stop_deadline.is_some() {
            return;
        }
        if !self.accept_limits.leave_room(&self.table, self.surplus) {
            return self.make_room();
        }
        for listener in 0..self.accepting.len() {
            let Accepting { armed, rests_until, .. } = self.accepting[listener];
            if armed {
                continue;
            }
            if rests_until <= self.now {
                self.arm_accept(listener);
            } else {
                self.accept_retry_at = self.accept_retry_at.min(rests_until);
            }
        }
    }

    pub(super) fn stop_accepting(&mut self) {
        for listener in 0..self.accepting.len() {
            let accepting = &mut self.accepting[listener];
            if accepting.armed && !accepting.cancelling {
                accepting.cancelling = true;
                self.ring.cancel_accept(listener);
            }
        }
    }

    pub(super) fn is_accepting(&self) -> bool {
        self.accepting.iter().any(|accepting| accepting.armed)
    }

    /// Called when a slot has been taken, by a client or by an upstream.
    pub(super) fn stop_accepting_when_full(&mut self) {
        if self.accept_limits.are_met(&self.table, self.surplus) {
            self.stop_accepting();
            self.make_room();
        }
    }

    /// There is no room for newcomers: who has been silent for the longest goes.
    fn make_room(&mut self) {
        if self.is_accepting() && !self.accept_limits.are_met(&self.table, self.surplus) {
            return;
        }
        for _ in 0..SENT_AWAY {
            if !self.send_silent_away(true, SILENCE) && !self.send_silent_away(false, SILENCE) {
                break;
            }
        }
        if !self.silent.surplus.is_empty() || !self.silent.placed.is_empty() {
            self.accept_retry_at = self.accept_retry_at.min(self.now + ROOM_WAIT);
        }
    }

    /// Closes the client that has been silent for the longest, of those in the reserve or of those with
    /// a place. `false`: none has been silent for `least`.
    fn send_silent_away(&mut self, surplus: bool, least: Duration) -> bool {
        let queue = if surplus { &mut self.silent.surplus } else { &mut self.silent.placed };
        while queue.front().is_some_and(|id| !is_silent(&self.table, *id)) {
            queue.pop_front();
        }
        let Some(oldest) = queue.front().copied() else { return false };
        if self.now.since(self.table[oldest].opened_at) < least {
            return false;
        }
        queue.pop_front();
        self.start_close(oldest, Cause::ClientTimeoutHandshake);
        true
    }
}

fn is_silent(table: &Table, id: ConnId) -> bool {
    table.get(id).is_some_and(Conn::is_silent)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ring::sim::{Faults, Network};
    use crate::shard::Setup;
    use crate::shard::mailbox::Inbox;

    const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
[[route]]
backend = "app"
[backend.app]
kind = "websocket"
url = "ws://127.0.0.1:9000"
"#;

    fn shard(network: &Network, slots: u32) -> Shard<crate::ring::sim::SimRing> {
        let setup = Setup::of_test(CONFIG, &[Inbox::default()].into());
        let mut shard = Shard::new(network.ring(slots, 8, 4096, 1), setup);
        shard.accept_limits = AcceptLimits::new(slots);
        shard.start();
        shard
    }

    /// A table that upstreams have filled is as full as one that clients have: who says nothing makes room
    /// for the next, and does not keep it waiting for the deadline of its handshake.
    #[test]
    fn a_table_that_upstreams_fill_makes_room() {
        let network = Network::new(1, Faults::none());
        network.listen(([127, 0, 0, 1], 9000).into());
        let mut shard = shard(&network, 6); // Five of them, before accepting stops.
        let mut clients: Vec<_> = (0..3).map(|_| network.connect(0, 0)).collect();
        let run = |shard: &mut Shard<_>, time| {
            network.run(time, || {
                shard.turn();
                false
            });
        };
        run(&mut shard, Duration::from_millis(10));
        for client in &mut clients[1..] {
            client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        }
        run(&mut shard, Duration::from_millis(10));
        assert_eq!((shard.table.open(), shard.table.clients()), (5, 3));
        assert!(!shard.is_accepting());
        let _next = network.connect(0, 0);
        run(&mut shard, SILENCE + 2 * ROOM_WAIT);
        assert_eq!(shard.metrics().accepted, 4, "it still waits");
        assert_eq!(shard.metrics().closed(Cause::ClientTimeoutHandshake), 1);
        drop(clients);
    }

    /// An accept that goes on failing is tried ten times a second, counted each time, and noted.
    #[test]
    fn an_accept_that_failed_rests() {
        let network = Network::new(1, Faults::none());
        let mut shard = shard(&network, 16);
        let journal = Arc::clone(&shard.journal);
        for count in 1..=3 {
            shard.accepting[0].armed = false;
            shard.on_accept_ended(0, Some(Failure::Other(libc::EINVAL)));
            assert!(!shard.is_accepting(), "at once");
            // A slot that becomes free is nothing that it waits for.
            shard.accept_again_when_room();
            assert!(!shard.is_accepting(), "at once");
            assert_eq!(shard.metrics().accept_failures, count);
            assert_eq!(journal.pop_accept_failure(), Some((0, Failure::Other(libc::EINVAL))));
            assert_eq!(shard.accept_retry_at, shard.now + FAILURE_WAIT);
            shard.now = shard.now + FAILURE_WAIT;
            shard.accept_retry_at = Time::NEVER;
            shard.accepting[0].armed = true; // As `accept_again_when_room` would, of a ring.
        }
    }
}
