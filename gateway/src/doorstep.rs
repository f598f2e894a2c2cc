//! Connections that have not asked for anything yet, counted by listener and address, over all shards,
//! from the accept to the first whole head of a request.
//!
//! A request tells which client it is of, so a connection that says nothing counts against no limit per
//! client. This table goes by the other end of the socket, or by its PROXY header. An
//! address that has its share gets no place among those who are served until it has asked for
//! something (`shard/accept.rs`).

use std::collections::HashMap;
use std::net::IpAddr;

use crate::addresses::AddressKey;
use crate::heap::map_bytes;
use crate::striped::Striped;

/// An address may always have so many, however few clients there may be in all.
const SILENT_MIN: u32 = 64;

/// Connections that one address may have at one listener without having asked for anything, where
/// all clients together may be `connections_max`.
pub fn silent_max(connections_max: u32) -> u32 {
    (connections_max / 8).max(SILENT_MIN)
}

/// Counts by listener and address. An entry is there while it counts somebody, so slots bound them.
#[derive(Debug, Default)]
pub struct Doorstep {
    stripes: Striped<Stripe>,
}

type Key = (u8, AddressKey);
type Stripe = HashMap<Key, u32>;

impl Doorstep {
    /// Counts one more, unless there are `max`.
    pub fn enter(&self, listener: usize, ip: IpAddr, max: u32) -> bool {
        let key = (listener as u8, AddressKey::of(ip));
        let mut stripe = self.stripes.of(key);
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
        let mut stripe = self.stripes.of(key);
        let count = stripe.get_mut(&key).expect("it was counted");
        *count -= 1;
        if *count == 0 {
            stripe.remove(&key);
        }
    }

    /// Connections that are counted. Takes every lock.
    pub fn count(&self) -> u64 {
        self.stripes.all().map(|it| it.values().map(|count| u64::from(*count)).sum::<u64>()).sum()
    }

    /// Bytes of the table, for the memory ledger. Takes every lock.
    pub fn held_bytes(&self) -> usize {
        self.stripes.all().map(|it| map_bytes(&*it)).sum::<usize>() + self.stripes.held_bytes()
    }
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
        assert!(doorstep.stripes.all().all(|stripe| stripe.is_empty()));
    }

    #[test]
    fn the_share_of_an_address() {
        assert_eq!([0, 200, 512, 520, 8000].map(silent_max), [64, 64, 64, 65, 1000]);
    }
}
