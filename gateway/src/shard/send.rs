//! Outboxes are flushed: one send in flight per connection, whatever was queued in a turn in one.

use std::io::IoSlice;

use super::{RECORDS, Shard};
use crate::budget::LISTED_BYTES_MIN;
use crate::conn::delays::MarkId;
use crate::conn::{ConnId, Phase, Side, State};
use crate::ring::linux::SEND_PARTS_MAX;
use crate::ring::{Failure, Ring, SendMode};

/// Sends handed to the kernel in one turn. Larger batches are measurably slower (their requests and
/// completions fall out of the cache), and completions wait meanwhile; the rest goes next turn.
const SENDS_PER_TURN: usize = 256;

/// Bytes of one waiting send: its completion is how we notice that a slow peer makes progress.
const SEND_BYTES_MAX: usize = 256 * 1024;

/// Bytes in an outbox from which on its send counts as a large one.
const BULKY_BYTES_MIN: usize = 64 * 1024;

/// Bytes of large sends handed to the kernel in one turn. It copies them while we wait: a millisecond or
/// two for this much. The others, which have little to send, do not wait for more.
const BULKY_BYTES_PER_TURN: usize = 4 << 20;

pub(super) use crate::limits::PAUSE_AT_BYTES;

/// Bytes in an outbox at which reading goes on from whoever fills it.
const RESUME_AT_BYTES: usize = 64 * 1024;

impl<R: Ring> Shard<R> {
    pub(super) fn flush_outboxes(&mut self) {
        for _ in 0..SENDS_PER_TURN {
            let Some(slot) = self.dirty.pop_front() else { break };
            let Some(id) = self.table.id_at(slot) else { continue };
            if self.table[id].outbox.bytes() >= BULKY_BYTES_MIN {
                self.bulky.push_back(slot); // Still dirty: it is on this list now.
            } else {
                self.table[id].flags.dirty = false;
                self.submit_send(id);
            }
        }
        let mut bytes_left = BULKY_BYTES_PER_TURN;
        while bytes_left > 0 {
            let Some(slot) = self.bulky.pop_front() else { return };
            let Some(id) = self.table.id_at(slot) else { continue };
            let conn = &mut self.table[id];
            conn.flags.dirty = false;
            if conn.flags.sending.is_none() {
                bytes_left = bytes_left.saturating_sub(conn.outbox.bytes().min(SEND_BYTES_MAX));
            }
            self.submit_send(id);
        }
    }

    fn submit_send(&mut self, id: ConnId) {
        let Shard { table, ring, stores, timers, config, now, .. } = self;
        let conn = &mut table[id];
        if conn.outbox.is_empty() || conn.phase == Phase::Closing {
            return;
        }
        let lent = conn.outbox.is_lent();
        // What is lent and tried is over at once.
        let waits = conn.flags.sending.is_some() || conn.flags.congested || !lent;
        if waits && conn.outbox.bytes() >= LISTED_BYTES_MIN {
            stores.account.outboxes.set(id.slot, conn.outbox.bytes());
        }
        if conn.flags.sending.is_some() {
            return;
        }
        // Receive buffers are everybody's. They are lent for a send that is over at once; what the
        // socket does not take is copied out of them (`on_sent`) before we wait for it.
        let (mode, bytes_max) = if lent && !conn.flags.congested {
            (SendMode::TryNow, usize::MAX)
        } else {
            if lent {
                conn.outbox.unlend(stores);
            }
            (SendMode::All, SEND_BYTES_MAX)
        };
        let (only, mut many);
        let parts: &[IoSlice<'_>] = match conn.outbox.only_part() {
            Some(part) => {
                only = [part];
                &only
            }
            None => {
                many = [IoSlice::new(&[]); SEND_PARTS_MAX];
                let count = conn.outbox.take_parts(&mut many, bytes_max);
                &many[..count]
            }
        };
        let count = parts.len();
        // SAFETY: the parts lie on the heap or in receive buffers that the outbox holds. It is told
        // below that they are in flight, and from then on neither changes, moves nor drops them
        // until `Outbox::sent`, which only `on_sent` calls.
        #[allow(unsafe_code)]
        unsafe {
            ring.submit_send(id, parts, mode);
        }
        conn.outbox.mark_in_flight(count);
        conn.flags.sending = Some(mode);
        if mode == SendMode::All {
            timers.set(id.slot, *now + config.limits.outbox_age_max);
        }
    }

    pub(super) fn on_sent(&mut self, id: ConnId, result: Result<usize, Failure>) {
        let Shard { table, stores, delays, metrics, now, .. } = self;
        let conn = &mut table[id];
        let tried = conn.flags.sending.take() == Some(SendMode::TryNow);
        conn.traffic.sent_bytes += result.unwrap_or(0) as u64;
        let before = conn.outbox.bytes();
        let whole = conn.outbox.sent(result.unwrap_or(0), stores, *now);
        if before >= LISTED_BYTES_MIN && conn.outbox.bytes() < before {
            stores.account.outboxes.set(id.slot, conn.outbox.bytes());
        }
        if RECORDS && conn.mark != MarkId::NONE {
            let route = metrics.recorder.route(conn.route);
            let to = match conn.side {
                Side::Client => &route.to_client,
                Side::Upstream => &route.to_upstream,
            };
            let left = conn.outbox.bytes();
            let count = result.unwrap_or(0);
            delays.sent(&mut conn.mark, count, left, *now, to, &metrics.recorder);
        }
        if conn.phase == Phase::Closing {
            return self.close_join(id);
        }
        match result {
            Ok(_) | Err(Failure::Full) => {}
            Err(_) => return self.on_send_failed(id),
        }
        if conn.outbox.is_empty() {
            conn.flags.congested = false;
        } else {
            if tried && !whole && !conn.flags.congested {
                conn.flags.congested = true;
                conn.outbox.unlend(stores);
            }
            self.refill_backlogged(id);
            self.mark_dirty(id);
        }
        if self.table[id].outbox.owed_bytes() <= RESUME_AT_BYTES {
            self.resume_feeder(id);
        }
        if self.table[id].outbox.is_empty() {
            self.flushed(id);
        }
    }

    /// What a member that does not keep up is sent next, and what it does not get any more.
    fn refill_backlogged(&mut self, id: ConnId) {
        if matches!(self.table[id].state, State::Rooms(_)) {
            let backend = self.backend_of(id);
            let Shard { table, stores, delays, rooms, metrics, now, .. } = self;
            let Some(rooms) = &rooms[usize::from(backend)] else { return };
            let conn = &mut table[id];
            let was_backlogged = conn.outbox.is_backlogged();
            if conn.outbox.refill(&rooms.slow_limits(), stores, metrics, *now) {
                // The outbox may never be empty again, and every Ping deserves its Pong.
                conn.flags.pong_waits = false;
            }
            if conn.outbox.is_backlogged() {
                delays.forget(&mut conn.mark, &metrics.recorder);
            }
            metrics.count_backlogged(was_backlogged, conn.outbox.is_backlogged());
        }
    }
}
