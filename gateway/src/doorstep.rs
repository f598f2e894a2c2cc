//! Connections that have not asked for anything yet, counted by listener and address, over all shards,
//! from the accept to the first whole head of a request.
//!
//! A request tells which client it is of, so a connection that says nothing counts against no limit per
//! client. This table goes by the other end of the socket, or by its PROXY header. An
//! address that has its share gets no place among those who are served until it has asked for
//! something (`shard/accept.rs`).

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addresses::AddressKey;
use crate::memory::map_bytes;

/// Parts of the table, each under a lock of its own.
const STRIPES: usize = 64;

/// An address may always have so many, however few clients there may be in all.
const SILENT_MIN: u32 = 64;

/// Connections that one address may have at one listener without having asked for anything, where
/// all clients together may be `connections_max`.
pub fn silent_max(connections_max: u32) -> u32 {
    (connections_max / 8).max(SILENT_MIN)
}

/// Counts by listener and address. An entry is there while it counts somebody, so slots bound them.
#[derive(Debug)]
pub struct Doorstep {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
}

type Key = (u8, AddressKey);
type Stripe = HashMap<Key, u32>;

impl Default for Doorstep {
    fn default() -> Doorstep {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Doorstep { stripes, hasher: RandomState::new() }
    }
}

impl Doorstep {
    /// Counts one more, unless there are `max`.
    pub fn enter(&self, listener: usize, ip: IpAddr, max: u32) -> bool {
        let key = (listener as u8, AddressKey::of(ip));
        let mut stripe = self.stripe(&key);
        let count = stripe.entry(key).or_default();
        let may = *count < max;
        if may {
            *count += 1;
        } else if *count == 0 {
            stripe.remove(&key);
        }
        may
    }

    /// One that was counted has asked for something, or is gone.
    pub fn leave(&self, listener: usize, ip: IpAddr) {
        let key = (listener as u8, AddressKey::of(ip));
        let mut stripe = self.stripe(&key);
        let count = stripe.get_mut(&key).expect("it was counted");
        *count -= 1;
        if *count == 0 {
            stripe.remove(&key);
        }
    }

    /// Connections that are counted. Takes every lock.
    pub fn count(&self) -> u64 {
        let counts = |it: &Mutex<Stripe>| lock(it).values().map(|it| u64::from(*it)).sum::<u64>();
        self.stripes.iter().map(counts).sum()
    }

    /// Bytes of the table, for the memory ledger. Takes every lock.
    pub fn held_bytes(&self) -> usize {
        let maps = self.stripes.iter().map(|stripe| map_bytes(&lock(stripe)));
        maps.sum::<usize>() + size_of_val(&*self.stripes)
    }

    fn stripe(&self, key: &Key) -> MutexGuard<'_, Stripe> {
        lock(&self.stripes[self.hasher.hash_one(key) as usize % STRIPES])
    }
}

/// A thread that panicked has ended the process, or a test.
fn lock(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_has_its_share_at_each_listener() {
        let [first, second] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last)));
        let doorstep = Doorstep::default();
        assert!(doorstep.enter(0, first, 2) && doorstep.enter(0, first, 2));
        assert!(!doorstep.enter(0, first, 2));
        assert!(doorstep.enter(1, first, 2) && doorstep.enter(0, second, 2));
        doorstep.leave(0, first);
        assert!(doorstep.enter(0, first, 2) && !doorstep.enter(0, first, 2));
        for (listener, ip) in [(0, first), (0, first), (1, first), (0, second)] {
            doorstep.leave(listener, ip);
        }
        assert_eq!(doorstep.count(), 0);
        assert!(doorstep.stripes.iter().all(|stripe| lock(stripe).is_empty()));
    }

    #[test]
    fn the_share_of_an_address() {
        assert_eq!([0, 200, 512, 520, 8000].map(silent_max), [64, 64, 64, 65, 1000]);
    }
}
