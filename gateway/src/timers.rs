//! One deadline per connection, in a hashed wheel.
//!
//! The wheel is lazy: activity on a connection does not touch it. An entry comes up at the instant
//! it was set to, its owner looks at what it is really waiting for, and sets it again when that
//! lies in the future. So an entry may come up early, never late by more than a tick.

use std::time::Duration;

use crate::time::Time;

/// The resolution: a deadline is met at most this much late.
pub const TICK: Duration = Duration::from_millis(100);

/// Buckets; what lies beyond `BUCKETS * TICK` (51 s) comes up there and is set again.
const BUCKETS: u64 = 512;

/// Marks the end of a list.
const NONE: u32 = u32::MAX;

/// What the wheel keeps per slot.
pub const NODE_BYTES: usize = size_of::<Node>();

/// The deadlines of a table of connections, by slot.
pub struct Wheel {
    /// The first node of each bucket.
    buckets: Box<[u32]>,
    /// A bit per bucket that is not empty.
    occupied: [u64; BUCKETS as usize / 64],
    nodes: Vec<Node>,
    /// All ticks up to this one have come up, but for what is left in its own bucket.
    tick: u64,
    count: usize,
}

#[derive(Clone, Copy)]
struct Node {
    next: u32,
    previous: u32,
    /// When it comes up, in ticks; 0 when it is not queued.
    tick: u64,
}

impl Wheel {
    /// A wheel without deadlines, for a table of `slots`.
    pub fn new(now: Time, slots: u32) -> Wheel {
        Wheel {
            buckets: vec![NONE; BUCKETS as usize].into(),
            occupied: [0; BUCKETS as usize / 64],
            // As the table: reserved whole, touched as far as it is used.
            nodes: Vec::with_capacity(slots as usize),
            tick: tick_of(now),
            count: 0,
        }
    }

    /// Bytes of the buckets and of the nodes that have ever been used, and of the nodes that were only
    /// reserved. For the memory ledger.
    pub fn held_bytes(&self) -> (usize, usize) {
        let reserved = self.nodes.capacity() - self.nodes.len();
        let buckets = self.buckets.len() * size_of::<u32>();
        (buckets + self.nodes.len() * NODE_BYTES, reserved * NODE_BYTES)
    }

    /// Makes sure that `slot` comes up at `deadline` or before: an earlier deadline that is set
    /// already stays.
    pub fn set(&mut self, slot: u32, deadline: Time) {
        if deadline == Time::NEVER {
            return;
        }
        if slot as usize >= self.nodes.len() {
            let empty = Node { next: NONE, previous: NONE, tick: 0 };
            self.nodes.resize(slot as usize + 1, empty);
        }
        // Rounded up: not before the deadline. The tick that is coming up now takes no more.
        let tick = (tick_of(deadline) + 1).clamp(self.tick + 1, self.tick + BUCKETS - 1);
        let queued = self.nodes[slot as usize].tick;
        if queued != 0 {
            if queued <= tick {
                return;
            }
            self.remove(slot);
        }
        let bucket = (tick % BUCKETS) as usize;
        let next = self.buckets[bucket];
        self.nodes[slot as usize] = Node { next, previous: NONE, tick };
        if next != NONE {
            self.nodes[next as usize].previous = slot;
        }
        self.buckets[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.count += 1;
    }

    /// Forgets the deadline of `slot`, if it has one.
    pub fn remove(&mut self, slot: u32) {
        let Some(node) = self.nodes.get(slot as usize).copied().filter(|node| node.tick != 0)
        else {
            return;
        };
        let bucket = (node.tick % BUCKETS) as usize;
        match node.previous {
            NONE => self.buckets[bucket] = node.next,
            previous => self.nodes[previous as usize].next = node.next,
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        if self.buckets[bucket] == NONE {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
        self.nodes[slot as usize].tick = 0;
        self.count -= 1;
    }

    /// Takes one slot whose deadline has come. The caller bounds how many it takes in a turn.
    pub fn pop(&mut self, now: Time) -> Option<u32> {
        if self.count == 0 {
            self.tick = self.tick.max(tick_of(now));
            return None;
        }
        loop {
            let bucket = (self.tick % BUCKETS) as usize;
            let slot = self.buckets[bucket];
            if slot != NONE && self.nodes[slot as usize].tick <= self.tick {
                self.remove(slot);
                return Some(slot);
            }
            if self.tick >= tick_of(now) {
                return None;
            }
            self.tick = (self.tick + self.ticks_to_next()).min(tick_of(now));
        }
    }

    /// When [`Wheel::pop`] has something to give next.
    pub fn next_deadline(&self) -> Time {
        if self.count == 0 {
            return Time::NEVER;
        }
        let bucket = (self.tick % BUCKETS) as usize;
        let ticks = if self.buckets[bucket] != NONE { 0 } else { self.ticks_to_next() };
        Time((self.tick + ticks) * TICK.as_nanos() as u64)
    }

    /// Ticks from the current one to the next bucket that is not empty, at least 1.
    fn ticks_to_next(&self) -> u64 {
        let start = self.tick + 1;
        let mut ticks = 0;
        while ticks < BUCKETS {
            let bucket = (start + ticks) % BUCKETS;
            let word = self.occupied[bucket as usize / 64] >> (bucket % 64);
            if word != 0 {
                return ticks + 1 + u64::from(word.trailing_zeros());
            }
            ticks += 64 - bucket % 64;
        }
        BUCKETS
    }
}

fn tick_of(time: Time) -> u64 {
    time.0 / TICK.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::ring::sim::Random;

    /// Random sets, removals and steps of time, against a map of deadlines.
    #[test]
    fn behaves_as_a_sorted_list() {
        let mut random = Random::new(3);
        let mut next = |below: u64| random.below(below);
        let mut now = Time(5_000_000_000);
        let mut wheel = Wheel::new(now, 200);
        let mut model: HashMap<u32, Time> = HashMap::new();
        for _ in 0..100_000 {
            let slot = next(200) as u32;
            match next(4) {
                0 | 1 => {
                    let deadline = now + Duration::from_millis(next(60_000));
                    wheel.set(slot, deadline);
                    let held = model.entry(slot).or_insert(deadline);
                    *held = deadline.min(*held);
                }
                2 => {
                    wheel.remove(slot);
                    model.remove(&slot);
                }
                _ => {
                    let long = next(50) == 0;
                    now = now + Duration::from_millis(next(if long { 120_000 } else { 300 }));
                    while let Some(slot) = wheel.pop(now) {
                        let deadline =
                            model.remove(&slot).expect("came up twice, or after removal");
                        // Early only because it lies beyond the horizon.
                        if deadline > now {
                            assert!(deadline.since(now) > Duration::ZERO);
                            wheel.set(slot, deadline);
                            model.insert(slot, deadline);
                        }
                    }
                    for deadline in model.values() {
                        assert!(*deadline + TICK + TICK > now, "late: {deadline:?} at {now:?}");
                    }
                }
            }
            assert_eq!(wheel.count, model.len());
            // The wait never sleeps past a deadline by more than two ticks.
            if let Some(first) = model.values().min() {
                assert!(wheel.next_deadline() <= *first + TICK + TICK);
            } else {
                assert_eq!(wheel.next_deadline(), Time::NEVER);
            }
        }
    }
}
