//! Clients appear: accepting, and when not to.

use std::net::SocketAddr;

use super::Shard;
use crate::config::Config;
use crate::conn::Side;
use crate::conn::table::Table;
use crate::metrics::Cause;
use crate::ring::{Failure, Ring};

/// Slots kept free of clients: for a burst that was on its way when we stopped accepting.
const SLOTS_RESERVED: u32 = 64;

/// The accept of one listener.
#[derive(Clone, Copy, Default)]
pub(super) struct Accepting {
    armed: bool,
    cancelling: bool,
}

/// Where a shard stops accepting.
#[derive(Clone, Copy)]
pub(super) struct AcceptLimits {
    /// This shard's share of `connections_max`.
    clients_max: u32,
    /// Slots in use, those of upstreams included.
    open_max: u32,
}

impl AcceptLimits {
    pub(super) fn new(config: &Config, slots: u32) -> AcceptLimits {
        let share = config.limits.connections_max.div_ceil(u32::from(config.server.shards));
        let open_max = slots.saturating_sub(SLOTS_RESERVED.min(slots / 4));
        AcceptLimits { clients_max: share.max(1), open_max: open_max.max(1) }
    }

    fn are_met(&self, table: &Table) -> bool {
        table.clients() >= self.clients_max || table.open() >= self.open_max
    }

    /// Accepting starts again a little below where it stops, so that it does not flip with every
    /// client.
    fn leave_room(&self, table: &Table) -> bool {
        let below = |max: u32| max - 1 - max / 64;
        table.clients() <= below(self.clients_max) && table.open() <= below(self.open_max)
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
        let conn = &mut self.table[id];
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
        if !self.accept_limits.leave_room(&self.table) {
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
        if self.accept_limits.are_met(&self.table) {
            self.stop_accepting();
        }
    }
}
