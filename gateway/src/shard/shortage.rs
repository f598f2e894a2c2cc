//! Memory is short: what gives way, in the order that `budget.rs` writes down.
//!
//! A message that is gathered is looked at where it grows, so that clients who fill memory with such
//! are stopped before the next buffer is read; all else at the end of a turn. What is ended is
//! found in the account's lists, and at most [`ENDED_PER_TURN`] are in one go. A shard that has something
//! to give looks every [`LOOK_WAIT`], as nobody wakes it when others are what there is too much of.

use std::time::Duration;

use super::Shard;
use crate::allocator;
use crate::budget::{Drawer, LISTED_BYTES_MIN, Level};
use crate::conn::{ConnId, Phase, Side, State};
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::rooms::Rooms;
use crate::time::Time;

/// What a client is told.
pub(super) const MEMORY_SHORT: &str = "memory_bytes_max: the gateway is short of memory";

/// Connections that are ended in one go; the next turn goes on.
const ENDED_PER_TURN: usize = 64;

/// How long new clients are refused before others give way for them.
const REFUSING_MAX: Duration = Duration::from_secs(1);

/// How long a shard sleeps at most while it has something that may have to give way.
const LOOK_WAIT: Duration = Duration::from_millis(100);

/// What the heap of a shard has to fall by before its pages are given back to the kernel, and when.
const FALL_BYTES: i64 = 8 << 20;
const FALL_WAIT: Duration = Duration::from_secs(2);

/// What memory that is short has led to in one shard.
#[derive(Debug)]
pub(super) struct Shortage {
    /// When clients began to be refused; never while they are not.
    since: Time,
    /// Peers that were closed and whose outboxes are not free yet, with what those hold.
    going: Vec<(ConnId, u64)>,
    /// More has to be ended in the next turn.
    goes_on: bool,
    /// The most that the heap has had since pages were given back.
    peak_bytes: i64,
    /// When pages are given back; never while there is nothing to give.
    trim_at: Time,
}

impl Default for Shortage {
    fn default() -> Shortage {
        Shortage {
            since: Time::NEVER,
            going: Vec::new(),
            goes_on: false,
            peak_bytes: 0,
            trim_at: Time::NEVER,
        }
    }
}

impl Shortage {
    /// When something is due.
    pub(super) fn next_deadline(&self) -> Time {
        let patience = match self.since {
            Time::NEVER => Time::NEVER,
            since => since + REFUSING_MAX,
        };
        patience.min(self.trim_at)
    }

    /// Whether a turn is due at once.
    pub(super) fn goes_on(&self) -> bool {
        self.goes_on
    }
}

impl<R: Ring> Shard<R> {
    /// Whether new clients are to be refused.
    pub(super) fn is_memory_short(&self) -> bool {
        self.stores.account.level() > Level::Ample
    }

    /// When to look next at what all shards hold together.
    pub(super) fn next_look(&self) -> Time {
        let account = &self.stores.account;
        if account.assemblies.is_empty() && account.outboxes.is_empty() {
            return self.shortage.next_deadline();
        }
        self.shortage.next_deadline().min(self.now + LOOK_WAIT)
    }

    /// What a client's message takes that is not whole yet has changed.
    pub(super) fn assembly_changed(&mut self, id: ConnId, before: usize, after: usize) {
        let account = &mut self.stores.account;
        account.change(Drawer::Assemblies, before, after);
        if before.max(after) >= LISTED_BYTES_MIN {
            account.assemblies.set(id.slot, after);
        }
        if after > before && account.level() == Level::Short {
            self.shed();
        }
    }

    /// The end of a turn: says what the shard has, and has something given way if that is too much.
    pub(super) fn keep_budget(&mut self) {
        let letters = self.mail.waiting_bytes() + self.asked_bytes();
        let unread = self.unread.held_bytes();
        let (mut rooms, mut histories) = (0, 0);
        for (held, history) in self.rooms.iter().flatten().map(Rooms::held_bytes) {
            rooms += held;
            histories += history;
        }
        let account = &mut self.stores.account;
        account.set(Drawer::Letters, letters);
        account.set(Drawer::Unread, unread);
        account.set(Drawer::Rooms, rooms);
        account.set(Drawer::Histories, histories);
        let heap = self.measure_heap();
        let level = self.stores.account.look();
        self.shortage.goes_on = false;
        if level > Level::Ample {
            if self.shortage.since == Time::NEVER {
                self.shortage.since = self.now;
            }
            if level == Level::Short || self.now >= self.shortage.since + REFUSING_MAX {
                self.shed();
                // Others may be what there is too much of: looks again, but not at once.
                self.shortage.since = self.now;
            }
        } else {
            self.shortage.since = Time::NEVER;
        }
        self.give_memory_back(heap);
    }

    /// Ends what holds most until enough is left.
    #[cold]
    pub(super) fn shed(&mut self) {
        let table = &self.table;
        self.shortage.going.retain(|(id, _)| table.get(*id).is_some());
        for _ in 0..ENDED_PER_TURN {
            self.measure_heap();
            let going: u64 = self.shortage.going.iter().map(|(_, bytes)| bytes).sum();
            if self.stores.account.budget().excess_bytes() <= going {
                break;
            }
            if let Some(slot) = self.stores.account.assemblies.first() {
                self.stores.account.assemblies.remove(slot);
                if let Some(id) = self.table.id_at(slot) {
                    self.end_assembly(id);
                }
            } else if let Some(slot) = self.stores.account.outboxes.first() {
                self.stores.account.outboxes.remove(slot);
                if let Some(id) = self.table.id_at(slot) {
                    self.end_consumer(id);
                }
            } else {
                self.stores.account.look();
                return;
            }
            self.shortage.goes_on = true;
        }
        self.stores.account.look();
    }

    /// A client is closed for the part of a message that is here.
    fn end_assembly(&mut self, id: ConnId) {
        let Shard { table, stores, metrics, .. } = self;
        let (State::Echo(decoder) | State::Rooms(decoder)) = &mut table[id].state else { return };
        stores.account.give_back(Drawer::Assemblies, decoder.assembly_bytes());
        decoder.release(&mut stores.spares);
        metrics.memory_ended_assemblies.add(1);
        self.start_fail(id, Cause::MemoryShort, 1013, MEMORY_SHORT);
    }

    /// A peer is closed for what waits for it. Who is behind it is told, where it is.
    fn end_consumer(&mut self, id: ConnId) {
        let cause = Cause::MemoryShort;
        let conn = &mut self.table[id];
        if conn.phase >= Phase::Closing {
            return;
        }
        self.shortage.going.push((id, conn.outbox.bytes() as u64));
        self.metrics.memory_ended_consumers.add(1);
        match (&conn.state, conn.side) {
            (State::Relay(_), Side::Client) => {
                conn.cause.get_or_insert(cause);
                self.relay_lost(id);
            }
            (State::Relay(relay), Side::Upstream) => {
                let client = relay.other;
                self.start_close(id, cause);
                self.fail_client(client, id, cause, 1013, MEMORY_SHORT);
            }
            (State::Answering(answering), _) => {
                let client = answering.waiting_client();
                self.start_close(id, cause);
                if let Some(client) = client {
                    self.fail_request(client, 503, cause, MEMORY_SHORT);
                }
            }
            _ => self.start_close(id, cause),
        }
    }

    /// Tells the account what connections have in tables, and what the allocator says of this thread. Of
    /// tables that were reserved whole it is what was touched.
    fn measure_heap(&mut self) -> i64 {
        let (slots, reserved_slots) = self.table.held_bytes();
        let (timers, reserved_timers) = self.timers.held_bytes();
        let heap = allocator::own_bytes() as i64 - (reserved_slots + reserved_timers) as i64;
        self.stores.account.set(Drawer::Connections, slots + timers);
        self.stores.account.set_heap(heap);
        heap
    }

    /// After a burst, free pages go back to the kernel: mimalloc keeps them while a thread is idle.
    fn give_memory_back(&mut self, heap: i64) {
        let Shard { shortage, stores, now, .. } = self;
        shortage.peak_bytes = shortage.peak_bytes.max(heap);
        if shortage.trim_at <= *now {
            shortage.trim_at = Time::NEVER;
            shortage.peak_bytes = heap;
            stores.trim();
            allocator::give_pages_back();
        } else if shortage.trim_at == Time::NEVER && heap < shortage.peak_bytes - FALL_BYTES {
            shortage.trim_at = *now + FALL_WAIT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[server]
memory_bytes_max = 67_108_864
[[listener]]
address = "127.0.0.1:0"
[[route]]
backend = "echo"
[backend.echo]
kind = "echo"
"#;

    /// Another shard may come to take what there is while this one sleeps.
    #[test]
    fn a_shard_that_has_something_to_give_looks_again_soon() {
        let mut shard = Shard::of_test(CONFIG, 64);
        assert_eq!(shard.next_look(), Time::NEVER);
        let id = shard.table.occupy(3, Side::Client, ([192, 0, 2, 1], 5).into(), shard.now);
        shard.assembly_changed(id, 0, LISTED_BYTES_MIN);
        assert_eq!(shard.next_look(), shard.now + LOOK_WAIT);
        shard.assembly_changed(id, LISTED_BYTES_MIN, 0);
        assert_eq!(shard.next_look(), Time::NEVER);
    }
}
