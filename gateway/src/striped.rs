//! A table that all shards use, in parts, each under a lock of its own: two keys are seldom in each
//! other's way.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Parts of a table.
const STRIPES: usize = 64;

/// Parts of a table, by the hash of a key. A thread holds the lock of one part at a time, so that nobody
/// waits in a circle.
#[derive(Debug)]
pub struct Striped<T> {
    stripes: Box<[Mutex<T>]>,
    hasher: RandomState,
}

impl<T: Default> Default for Striped<T> {
    fn default() -> Striped<T> {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Striped { stripes, hasher: RandomState::new() }
    }
}

impl<T> Striped<T> {
    /// The part that `key` is in.
    pub fn of(&self, key: impl Hash) -> MutexGuard<'_, T> {
        lock(&self.stripes[self.index_of(key)])
    }

    /// All parts, one after the other, beginning with the one that `key` is in.
    pub fn all_from(&self, key: impl Hash) -> impl Iterator<Item = MutexGuard<'_, T>> {
        let (before, first) = self.stripes.split_at(self.index_of(key));
        first.iter().chain(before).map(lock)
    }

    /// All parts, one after the other.
    pub fn all(&self) -> impl Iterator<Item = MutexGuard<'_, T>> {
        self.stripes.iter().map(lock)
    }

    /// Bytes on the heap, without what the parts have there.
    pub fn held_bytes(&self) -> usize {
        size_of_val(&*self.stripes)
    }

    fn index_of(&self, key: impl Hash) -> usize {
        self.hasher.hash_one(key) as usize % STRIPES
    }
}

/// A thread that panicked has ended the process, or a test.
fn lock<T>(stripe: &Mutex<T>) -> MutexGuard<'_, T> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}
