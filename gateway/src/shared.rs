//! What the shards of one process share, and count together: at an open and a close, never per
//! message. The one exception, what all connections of an address may do, is in [`Address`].
//!
//! [`Address`]: crate::addresses::Address

use std::sync::atomic::{AtomicU32, Ordering};

use crate::addresses::Addresses;
use crate::limits::ROUTES_MAX;

/// The counts of one process.
#[derive(Debug)]
pub struct Shared {
    /// Clients that are served: at most `connections_max` of `[limits]`.
    pub clients: Places,
    /// Clients of each route that has a `connections_max`, by its place in the order of matching.
    pub routes: Box<[Places]>,
    /// Where clients come from, where that is limited.
    pub addresses: Addresses,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            clients: Places::default(),
            routes: (0..ROUTES_MAX).map(|_| Places::default()).collect(),
            addresses: Addresses::default(),
        }
    }
}

/// A number of places, of which each is taken by one client until it is given back.
#[derive(Debug, Default)]
pub struct Places {
    taken: AtomicU32,
}

impl Places {
    /// Takes one, unless `max` are taken. Exact: of several that ask for the last one, one gets it,
    /// and nobody is refused while there is one.
    pub fn try_take(&self, max: u32) -> bool {
        let one_more = |taken| (taken < max).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Gives one back.
    pub fn give_back(&self) {
        let before = self.taken.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a place was given back twice");
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_taken_once() {
        let places = Places::default();
        let taken = || (0..20_000).filter(|_| places.try_take(30_000)).count();
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(taken)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!((taken, places.taken()), (30_000, 30_000));
        assert!(!places.try_take(30_000));
        places.give_back();
        assert!(places.try_take(30_000));
    }
}
