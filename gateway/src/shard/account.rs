//! What a shard holds, for the memory ledger.
//!
//! Most of it is known at once. What connections have on the heap is not counted message by message
//! but looked at: the table is walked a stretch at a time, each at the control thread's word, and what
//! comes and goes meanwhile is seen or not. At the end the sums are published (`Counters::memory`).

use tokio::sync::oneshot;

use super::Shard;
use crate::memory::{Held, Holder};
use crate::ring::Ring;
use crate::rooms::{Mail, Rooms};

/// Slots, and segments of outboxes, looked at in one stretch; a slot counts twice if it is in use. A stretch
/// of idle connections was measured at 21 µs, with the wake that it takes.
const STEPS_PER_ORDER: usize = 512;

/// A question about one stretch.
pub struct Account {
    /// The slot to begin with.
    pub from: u32,
    /// What the stretches before this one came to.
    pub held: Held,
    /// Where the answer goes. Nobody may be there any more.
    pub reply: oneshot::Sender<Stretch>,
}

/// The answer.
pub enum Stretch {
    /// To be asked on: from this slot, with what was found so far.
    More(u32, Held),
    /// All was looked at; the sums are published.
    Done,
}

impl<R: Ring> Shard<R> {
    pub(super) fn on_account(&mut self, account: Account) {
        let Account { from, mut held, reply } = account;
        // Whoever asked may have given up.
        if let Some(next) = self.add_held_from(from, &mut held) {
            let _ = reply.send(Stretch::More(next, held));
            return;
        }
        self.add_held(&mut held);
        self.metrics.memory.publish(&held);
        let _ = reply.send(Stretch::Done);
    }

    /// What it holds, looked at in one go: for tests.
    pub fn held(&self) -> Held {
        let mut held = Held::default();
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.add_held_from(from, &mut held);
        }
        self.add_held(&mut held);
        held
    }

    /// Looks at a stretch of the table. Returns where the next begins.
    fn add_held_from(&self, from: u32, held: &mut Held) -> Option<u32> {
        let (mut slot, mut steps) = (from, 0);
        while slot < self.table.slots_used() && steps < STEPS_PER_ORDER {
            steps += 1;
            if let Some(id) = self.table.id_at(slot) {
                steps += self.table[id].add_held(held);
            }
            slot += 1;
        }
        (slot < self.table.slots_used()).then_some(slot)
    }

    /// Bytes of the list of requests that wait to be served, without what a few of them have in boxes.
    pub(super) fn asked_bytes(&self) -> usize {
        self.asked.capacity() * size_of::<(u16, Mail)>()
    }

    /// What is known without a walk.
    fn add_held(&self, held: &mut Held) {
        let (table, table_reserved) = self.table.held_bytes();
        let (timers, timers_reserved) = self.timers.held_bytes();
        held.add(Holder::Table, table);
        held.add(Holder::Timers, timers);
        held.reserved_bytes = (table_reserved + timers_reserved) as u64;
        let lists = (self.dirty.capacity() + self.bulky.capacity()) * size_of::<u32>()
            + self.starved.held_bytes();
        held.add(Holder::Spares, lists + self.stores.held_bytes());
        for (rooms, history) in self.rooms.iter().flatten().map(Rooms::held_bytes) {
            held.add(Holder::Rooms, rooms);
            held.add(Holder::RoomsHistory, history);
        }
        held.add(Holder::Sessions, self.sessions.held_bytes());
        held.add(Holder::Mailboxes, self.mail.held_bytes() + self.asked_bytes());
        held.add(Holder::Assembly, self.unread.held_bytes());
        held.add(Holder::Delays, self.delays.held_bytes());
    }
}
