//! Clients appear: accepting, and when not to.
//!
//! Above `connections_max`, and when the table has few slots left, clients are still accepted, as far
//! as a small reserve goes: to answer their requests with 503 (`admit.rs`). Only when that is used up
//! they wait in the listener's backlog, which tells them nothing.

use std::net::SocketAddr;

use super::Shard;
use crate::conn::Side;
use crate::conn::table::Table;
use crate::metrics::Cause;
use crate::ring::{Failure, Ring};

/// Slots kept free of clients: for a burst that was on its way when we stopped accepting.
const SLOTS_RESERVED: u32 = 64;

/// Clients above the limit that a shard has at once, to tell them so.
const SURPLUS_MAX: u32 = 64;

/// The accept of one listener.
#[derive(Clone, Copy, Default)]
pub(super) struct Accepting {
    armed: bool,
    cancelling: bool,
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
        let below = |max: u32| max - 1 - max / 64;
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
        let surplus = !self.take_place();
        self.surplus += u32::from(surplus);
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
        self.metrics.count_close(Cause::MemoryPressure);
        // Who it was, the ring has not told.
        self.journal.leave_out();
        self.stop_accepting_when_full();
    }

    /// A multishot accept ends for many reasons, with and without an error, and never by itself
    /// for good: it is armed again whenever there is room.
    pub(super) fn on_accept_ended(&mut self, listener: usize, failure: Option<Failure>) {
        let accepting = &mut self.accepting[listener];
        accepting.armed = false;
        accepting.cancelling = false;
        if failure == Some(Failure::TableFull) {
            self.metrics.accept_failures.add(1);
            // Without descriptors an accept armed at once would fail at once. `on_closed` tries
            // again, and so does the clock.
            return self.timers_retry_accept();
        }
        self.accept_again_when_room();
    }

    /// Called when a slot has become free, or the clock says so.
    pub(super) fn accept_again_when_room(&mut self) {
        if self.stop_deadline.is_some() {
            return;
        }
        if !self.accept_limits.leave_room(&self.table, self.surplus) {
            return;
        }
        for listener in 0..self.accepting.len() {
            if !self.accepting[listener].armed {
                self.arm_accept(listener);
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

    fn stop_accepting_when_full(&mut self) {
        if self.accept_limits.are_met(&self.table, self.surplus) {
            self.stop_accepting();
        }
    }
}
