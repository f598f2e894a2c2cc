//! The budget for memory: what the holders of a shard draw, what the process may have in all, and how
//! short it is.
//!
//! ```text
//!   ShardAccount   plain numbers, of one thread: bytes by Drawer     64 KiB at a time
//!   Budget         two sums of the process, atomic                <- ───────────────
//! ```
//!
//! A holder says what it takes and gives back ([`ShardAccount::draw`], [`ShardAccount::give_back`],
//! [`ShardAccount::change`], [`ShardAccount::set`]). Beside what is drawn stands what the allocator says
//! was asked for ([`ShardAccount::set_heap`]), so that a holder that draws nothing counts as well: the
//! larger of both is what is used. A shard hands on what has moved by [`STEP_BYTES`], so the sums of the
//! process are behind by less than that for each shard.
//!
//! # What gives way
//!
//! 1. From 7/8 of the budget on, new clients get 503.
//! 2. From 15/16 on, or once clients were refused for a second, what is held is ended until 7/8 are
//!    left: first the largest messages of which only a part is here, of equal ones the oldest.
//! 3. Then the peers for which most is waiting, of equal ones those that were slow first.
//!
//! The second and the third are found without a walk: [`Largest`] keeps them by size.

mod largest;

pub use largest::{LISTED_BYTES_MIN, Largest};

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The holders that draw on a shard's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Drawer {
    /// Slots that were ever used, with their timers.
    Connections,
    /// Messages of which only a part is here.
    Assemblies,
    /// Bytes of outboxes that no other outbox shares.
    Outboxes,
    /// Letters to other shards that were not posted yet, and those that wait to be served.
    Letters,
    /// What members of rooms have sent that is not served yet.
    Unread,
    /// Rooms, their members, and users.
    Rooms,
    /// Messages that rooms keep.
    Histories,
}

impl Drawer {
    /// All of them, in the order of their numbers.
    pub const ALL: [Drawer; 7] = [
        Drawer::Connections,
        Drawer::Assemblies,
        Drawer::Outboxes,
        Drawer::Letters,
        Drawer::Unread,
        Drawer::Rooms,
        Drawer::Histories,
    ];
}

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is enough.
    #[default]
    Ample,
    /// New clients are refused.
    Refusing,
    /// Messages and outboxes that are held have to be ended.
    Short,
}

/// A shard's account moves by less than this before the process hears of it, in bytes.
pub const STEP_BYTES: u64 = 64 * 1024;

/// The budget of one process. Without a bound it only counts.
#[derive(Debug)]
pub struct Budget {
    bytes_max: AtomicU64,
    drawn: AtomicI64,
    heap: AtomicI64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            bytes_max: AtomicU64::new(u64::MAX),
            drawn: AtomicI64::new(0),
            heap: AtomicI64::new(0),
        }
    }
}

impl Budget {
    /// From here on the process may have so many bytes (`server.memory_bytes_max`).
    pub fn set_bytes_max(&self, bytes: u64) {
        self.bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// The bound of the process, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    /// The use of the process, in bytes: the sum that was drawn, or the heap if that is larger.
    pub fn used_bytes(&self) -> u64 {
        let (drawn, heap) = (self.drawn.load(Ordering::Relaxed), self.heap.load(Ordering::Relaxed));
        drawn.max(heap).max(0) as u64
    }

    /// How short it is.
    pub fn level(&self) -> Level {
        let (used, max) = (self.used_bytes(), self.bytes_max());
        if used <= low(max) {
            Level::Ample
        } else if used <= max - max / 16 {
            Level::Refusing
        } else {
            Level::Short
        }
    }

    /// Bytes above those at which nothing has to give way.
    pub fn excess_bytes(&self) -> u64 {
        self.used_bytes().saturating_sub(low(self.bytes_max()))
    }
}

/// Seven eighths.
fn low(bytes_max: u64) -> u64 {
    bytes_max - bytes_max / 8
}

/// The sums that the holders of one shard have drawn, and the connections that hold most.
#[derive(Debug, Default)]
pub struct ShardAccount {
    budget: Arc<Budget>,
    held: [u64; Drawer::ALL.len()],
    drawn: u64,
    /// The part of `drawn` that the process knows.
    published: u64,
    heap: i64,
    heap_published: i64,
    level: Level,
    /// Connections by the size of their assembly.
    pub assemblies: Largest,
    /// Connections by what waits for their peer.
    pub outboxes: Largest,
}

impl ShardAccount {
    /// An account on which nothing is drawn.
    pub fn new(budget: &Arc<Budget>) -> ShardAccount {
        let mut account = ShardAccount::default();
        account.budget = Arc::clone(budget);
        account
    }

    /// The budget that it draws on.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes that `drawer` has.
    pub fn held_bytes(&self, drawer: Drawer) -> u64 {
        self.held[drawer as usize]
    }

    /// `drawer` takes so many bytes more.
    pub fn draw(&mut self, drawer: Drawer, bytes: usize) {
        self.held[drawer as usize] += bytes as u64;
        self.drawn += bytes as u64;
        self.publish_steps();
    }

    /// `drawer` gives so many bytes back.
    ///
    /// # Panics
    ///
    /// When it has not drawn them, in a debug build.
    pub fn give_back(&mut self, drawer: Drawer, bytes: usize) {
        let held = &mut self.held[drawer as usize];
        debug_assert!(*held >= bytes as u64, "{drawer:?} gives back {bytes} of {held}");
        let bytes = (bytes as u64).min(*held);
        *held -= bytes;
        self.drawn -= bytes;
        self.publish_steps();
    }

    /// A part of `drawer` had `before` bytes and has `after`.
    pub fn change(&mut self, drawer: Drawer, before: usize, after: usize) {
        match after >= before {
            true => self.draw(drawer, after - before),
            false => self.give_back(drawer, before - after),
        }
    }

    /// All of `drawer` is this: for holders that know their sum.
    pub fn set(&mut self, drawer: Drawer, bytes: usize) {
        let held = std::mem::replace(&mut self.held[drawer as usize], bytes as u64);
        self.drawn = self.drawn - held + bytes as u64;
        self.publish_steps();
    }

    /// The heap that this thread has asked for and not given back, in bytes, without what it never
    /// touched. A thread that frees what others asked for has less than nothing.
    pub fn set_heap(&mut self, bytes: i64) {
        self.heap = bytes;
        if (self.heap - self.heap_published).unsigned_abs() >= STEP_BYTES {
            self.budget.heap.fetch_add(self.heap - self.heap_published, Ordering::Relaxed);
            self.heap_published = self.heap;
        }
    }

    /// How short the process was when this was last looked at: at [`ShardAccount::look`], and whenever
    /// the account has moved by [`STEP_BYTES`].
    pub fn level(&self) -> Level {
        self.level
    }

    /// Looks how short the process is.
    pub fn look(&mut self) -> Level {
        self.level = self.budget.level();
        self.level
    }

    fn publish_steps(&mut self) {
        if self.drawn.abs_diff(self.published) >= STEP_BYTES {
            self.publish();
        }
    }

    #[cold]
    fn publish(&mut self) {
        let moved = self.drawn as i64 - self.published as i64;
        self.budget.drawn.fetch_add(moved, Ordering::Relaxed);
        self.published = self.drawn;
        self.look();
    }
}

impl Drop for ShardAccount {
    fn drop(&mut self) {
        self.budget.drawn.fetch_sub(self.published as i64, Ordering::Relaxed);
        self.budget.heap.fetch_sub(self.heap_published, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 100 * STEP_BYTES;

    fn shards() -> (Arc<Budget>, ShardAccount, ShardAccount) {
        let budget: Arc<Budget> = Arc::default();
        budget.set_bytes_max(MAX);
        let account = || ShardAccount::new(&budget);
        let (a, b) = (account(), account());
        (budget, a, b)
    }

    #[test]
    fn the_process_has_what_its_shards_drew_but_for_a_step_each() {
        let (budget, mut a, mut b) = shards();
        let step = STEP_BYTES as usize;
        a.draw(Drawer::Assemblies, step - 1);
        assert_eq!(budget.used_bytes(), 0);
        a.draw(Drawer::Outboxes, 1);
        b.set(Drawer::Rooms, 2 * step);
        assert_eq!(budget.used_bytes(), 3 * STEP_BYTES);
        a.change(Drawer::Assemblies, step - 1, 0);
        b.set(Drawer::Rooms, 0);
        assert_eq!(budget.used_bytes(), STEP_BYTES);
        assert_eq!(a.held_bytes(Drawer::Outboxes), 1);
        drop(a);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_holder_that_draws_nothing_counts_by_the_allocator() {
        let (budget, mut a, mut b) = shards();
        a.draw(Drawer::Assemblies, 3 * STEP_BYTES as usize);
        // One shard has asked for bytes that the other gave back.
        a.set_heap(10 * STEP_BYTES as i64);
        b.set_heap(-2 * STEP_BYTES as i64);
        assert_eq!(budget.used_bytes(), 8 * STEP_BYTES);
        a.set_heap(0);
        assert_eq!(budget.used_bytes(), 3 * STEP_BYTES);
    }

    #[test]
    fn the_levels_come_in_order() {
        let (budget, mut a, _) = shards();
        for (percent, want) in [
            (80, Level::Ample),
            (87, Level::Ample),
            (88, Level::Refusing),
            (93, Level::Refusing),
            (94, Level::Short),
            (150, Level::Short),
        ] {
            a.set(Drawer::Outboxes, (MAX / 100 * percent) as usize);
            assert_eq!((a.look(), budget.level()), (want, want), "{percent}");
        }
        assert_eq!(budget.excess_bytes(), MAX / 2 * 3 - MAX / 8 * 7);
        budget.set_bytes_max(u64::MAX);
        assert_eq!((a.look(), budget.excess_bytes()), (Level::Ample, 0));
    }
}
