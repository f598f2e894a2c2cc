//! The addresses that clients come from, over all shards: how many connections each has, and how much
//! they may still do together.
//!
//! Used only where a limit per address is configured. An address is looked up when a client asks for
//! something and when it leaves, under the lock of its part of the table; what is counted per
//! message are atomics in [`Address`], which the connection holds on to.
//!
//! An entry outlives the last connection until its buckets are full again, so that coming back does
//! not make a client forget what it owes. At the bound of the table an address that has no connection
//! gives way, oldest first, whatever it owes; when all have one, the newcomer is refused.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

use crate::heap::{ARC_BYTES, map_bytes};
use crate::rate::{Bucket, Rate, SharedBucket};
use crate::striped::Striped;
use crate::time::Time;

/// Addresses without a connection that are looked at when another comes or leaves.
const SWEPT_PER_CALL: usize = 4;

/// What an entry takes in memory, with its places in the map and the queue.
pub const ADDRESS_BYTES: usize =
    size_of::<Address>() + 16 + 2 * size_of::<(AddressKey, Entry)>() + 2 * size_of::<AddressKey>();

/// All addresses.
#[derive(Debug, Default)]
pub struct Addresses {
    stripes: Striped<Stripe>,
    /// Entries of all stripes.
    count: AtomicUsize,
}

/// What counts as one address: an IPv4 address, or the /64 that one customer has of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKey {
    /// The whole address.
    V4(u32),
    /// The upper half of one.
    V6(u64),
}

/// What all connections of one address share.
#[derive(Debug)]
pub struct Address {
    key: AddressKey,
    /// For messages.
    pub messages: SharedBucket,
    /// For bytes.
    pub bytes: SharedBucket,
    /// For control frames.
    pub control_frames: SharedBucket,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its address has `address_connections_max` connections.
    Connections,
    /// Its address asks for upgrades faster than `address_handshakes_per_second`.
    Handshakes,
    /// The table is full of addresses that have connections.
    TableFull,
}

#[derive(Debug, Default)]
struct Stripe {
    entries: HashMap<AddressKey, Entry>,
    /// Those that have been left by their last connection, each once, oldest first. Some of them may
    /// have been come back to.
    left: VecDeque<AddressKey>,
}

#[derive(Debug)]
struct Entry {
    address: Arc<Address>,
    connections: u32,
    handshakes: Bucket,
    /// It is in `left`.
    is_left: bool,
}

impl Address {
    /// The address that the entry is of.
    pub fn key(&self) -> AddressKey {
        self.key
    }
}

impl AddressKey {
    /// The key that `ip` counts under.
    pub fn of(ip: IpAddr) -> AddressKey {
        match ip.to_canonical() {
            IpAddr::V4(ip) => AddressKey::V4(ip.to_bits()),
            IpAddr::V6(ip) => AddressKey::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl Addresses {
    /// Counts an upgrade that `ip` asks for.
    ///
    /// `entries_max` bounds the table; it is at least the connections of the process and a few more.
    pub fn handshake(
        &self,
        ip: IpAddr,
        now: Time,
        rate: &Rate,
        entries_max: usize,
    ) -> Result<(), Refusal> {
        self.with_entry(AddressKey::of(ip), now, entries_max, |entry| {
            match entry.handshakes.try_take(now, 1, rate) {
                true => Ok(()),
                false => Err(Refusal::Handshakes),
            }
        })
    }

    /// Counts a connection of `ip`, until it is given to [`Addresses::close`]. `connections_max`:
    /// zero is no limit.
    pub fn open(
        &self,
        ip: IpAddr,
        now: Time,
        connections_max: u32,
        entries_max: usize,
    ) -> Result<Arc<Address>, Refusal> {
        self.with_entry(AddressKey::of(ip), now, entries_max, |entry| {
            if connections_max > 0 && entry.connections >= connections_max {
                return Err(Refusal::Connections);
            }
            entry.connections += 1;
            Ok(Arc::clone(&entry.address))
        })
    }

    /// A connection that [`Addresses::open`] has counted is no more.
    pub fn close(&self, address: &Address, now: Time) {
        let mut stripe = self.stripes.of(address.key);
        let entry = stripe.entries.get_mut(&address.key);
        let entry = entry.expect("an address with a connection stays in the table");
        entry.connections -= 1;
        stripe.has_been_left(address.key);
        self.sweep(&mut stripe, now);
    }

    /// Connections that are counted, of all addresses. Takes every lock: for tests and operators.
    pub fn connections(&self) -> u64 {
        let connections = |entry: &Entry| u64::from(entry.connections);
        self.stripes.all().map(|it| it.entries.values().map(connections).sum::<u64>()).sum()
    }

    /// Bytes of the table and of the addresses in it, for the memory ledger. Takes every lock, each
    /// for a moment.
    pub fn held_bytes(&self) -> usize {
        let of_stripe = |stripe: MutexGuard<'_, Stripe>| {
            let Stripe { entries, left } = &*stripe;
            map_bytes(entries)
                + left.capacity() * size_of::<AddressKey>()
                + entries.len() * (size_of::<Address>() + ARC_BYTES)
        };
        self.stripes.all().map(of_stripe).sum::<usize>() + self.stripes.held_bytes()
    }

    /// Addresses in the table.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Finds or makes the entry of `key` and lets `act` decide.
    fn with_entry<T>(
        &self,
        key: AddressKey,
        now: Time,
        entries_max: usize,
        act: impl FnOnce(&mut Entry) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut stripe = self.stripes.of(key);
        self.sweep(&mut stripe, now);
        if !stripe.entries.contains_key(&key) {
            // Counted before it is there, so that the bound holds over all stripes.
            if self.count.fetch_add(1, Ordering::Relaxed) >= entries_max {
                // Never two locks at once, so that nobody waits in a circle.
                drop(stripe);
                let made_room = self.evict_one(key);
                stripe = self.stripes.of(key);
                if !made_room {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    return Err(Refusal::TableFull);
                }
            }
            // Somebody may have been faster meanwhile.
            match stripe.entries.entry(key) {
                std::collections::hash_map::Entry::Occupied(_) => {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(Entry::new(key));
                }
            }
        }
        let entry = stripe.entries.get_mut(&key).expect("it was there or has been put there");
        let result = act(entry);
        if entry.connections == 0 {
            stripe.has_been_left(key);
        }
        result
    }

    /// Takes an address without a connection out of the table, beginning with the stripe of `key`.
    fn evict_one(&self, key: AddressKey) -> bool {
        self.stripes.all_from(key).any(|mut stripe| {
            let evicted = stripe.evict_one();
            self.count.fetch_sub(usize::from(evicted), Ordering::Relaxed);
            evicted
        })
    }

    /// Forgets addresses that owe nothing any more.
    fn sweep(&self, stripe: &mut Stripe, now: Time) {
        for _ in 0..SWEPT_PER_CALL.min(stripe.left.len()) {
            let Some(key) = stripe.left.pop_front() else { return };
            let Some(entry) = stripe.entries.get_mut(&key) else { continue };
            entry.is_left = false;
            if entry.connections > 0 {
                continue;
            }
            if entry.owes_nothing(now) {
                stripe.entries.remove(&key);
                self.count.fetch_sub(1, Ordering::Relaxed);
            } else {
                stripe.has_been_left(key);
            }
        }
    }
}

impl Stripe {
    /// Puts an address that has no connection into the queue of those that may be forgotten.
    fn has_been_left(&mut self, key: AddressKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.connections == 0 && !entry.is_left {
            entry.is_left = true;
            self.left.push_back(key);
        }
    }

    fn evict_one(&mut self) -> bool {
        while let Some(key) = self.left.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.is_left = false;
            if entry.connections == 0 {
                self.entries.remove(&key);
                return true;
            }
        }
        false
    }
}

impl Entry {
    fn new(key: AddressKey) -> Entry {
        let address = Address {
            key,
            messages: SharedBucket::default(),
            bytes: SharedBucket::default(),
            control_frames: SharedBucket::default(),
        };
        let handshakes = Bucket::default();
        Entry { address: Arc::new(address), connections: 0, handshakes, is_left: false }
    }

    fn owes_nothing(&self, now: Time) -> bool {
        let Address { messages, bytes, control_frames, .. } = &*self.address;
        self.handshakes.is_full(now)
            && [messages, bytes, control_frames].iter().all(|bucket| bucket.is_full(now))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap as Model;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::ring::sim::Random;

    const SECOND: u64 = 1_000_000_000;

    fn ip(number: u64) -> IpAddr {
        Ipv4Addr::from_bits(0x0A00_0000 + number as u32).into()
    }

    #[test]
    fn what_counts_as_one_address() {
        let key = |text: &str| AddressKey::of(text.parse().expect("an address"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8::1"), key("2001:db8:0:0:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8::1"));
        assert_ne!(AddressKey::of(Ipv6Addr::UNSPECIFIED.into()), key("0.0.0.0"));
    }

    #[test]
    fn connections_are_counted_and_forgotten() {
        let table = Addresses::default();
        let now = Time(SECOND);
        let first = table.open(ip(1), now, 2, 10).expect("the first");
        let second = table.open(ip(1), now, 2, 10).expect("the second");
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(table.open(ip(1), now, 2, 10).unwrap_err(), Refusal::Connections);
        table.open(ip(2), now, 2, 10).expect("another address");
        table.close(&first, now);
        let third = table.open(ip(1), now, 2, 10).expect("there is a place again");
        table.close(&second, now);
        table.close(&third, now);
        assert_eq!((table.connections(), table.count()), (1, 1), "who owes nothing is forgotten");
    }

    /// Coming back does not fill a bucket; time does, and then the entry goes.
    #[test]
    fn an_address_that_owes_is_remembered() {
        let table = Addresses::default();
        let rate = Rate::new(1, 3);
        let mut now = Time(SECOND);
        let address = table.open(ip(1), now, 0, 10).expect("a place");
        assert!(address.messages.try_take(now, 3, &rate));
        table.close(&address, now);
        drop(address);
        let again = table.open(ip(1), now, 0, 10).expect("a place");
        assert!(!again.messages.try_take(now, 1, &rate));
        table.close(&again, now);
        assert_eq!(table.count(), 1);
        now = Time(4 * SECOND);
        table.handshake(ip(1), now, &rate, 10).expect("one of three");
        let again = table.open(ip(1), now, 0, 10).expect("a place");
        assert!(again.messages.try_take(now, 3, &rate));
        table.close(&again, now);

        for _ in 0..2 {
            table.handshake(ip(1), now, &rate, 10).expect("one of three");
        }
        assert_eq!(table.handshake(ip(1), now, &rate, 10), Err(Refusal::Handshakes));
        assert_eq!(table.handshake(ip(2), now, &rate, 10), Ok(()));
        table.handshake(ip(1), Time(now.0 + SECOND), &rate, 10).expect("a second later");
    }

    #[test]
    fn at_the_bound_who_has_no_connection_gives_way() {
        let table = Addresses::default();
        let now = Time(SECOND);
        let rate = Rate::new(1, 1);
        let held: Vec<_> =
            (0..4).map(|number| table.open(ip(number), now, 0, 8).expect("a place")).collect();
        // These owe, and have left.
        for number in 4..8 {
            table.handshake(ip(number), now, &rate, 8).expect("a place");
        }
        assert_eq!(table.count(), 8);
        let more: Vec<_> =
            (10..14).map(|number| table.open(ip(number), now, 0, 8).expect("a place")).collect();
        assert_eq!((table.count(), table.connections()), (8, 8));
        assert_eq!(table.open(ip(20), now, 0, 8).unwrap_err(), Refusal::TableFull);
        assert_eq!(table.handshake(ip(20), now, &rate, 8), Err(Refusal::TableFull));
        assert_eq!(table.count(), 8);
        table.open(ip(0), now, 0, 8).map(|again| table.close(&again, now)).expect("it is known");
        for address in held.iter().chain(&more) {
            table.close(address, now);
        }
        assert_eq!((table.count(), table.connections()), (0, 0));
    }

    /// Random calls against a map of counts.
    #[test]
    fn behaves_as_a_map() {
        let mut random = Random::new(9);
        let table = Addresses::default();
        let mut model: Model<u64, Vec<Arc<Address>>> = Model::new();
        let mut now = Time(SECOND);
        for _ in 0..50_000 {
            now = Time(now.0 + random.below(SECOND / 100));
            let number = random.below(40);
            let held = model.entry(number).or_default();
            match random.below(3) {
                0 | 1 if held.len() < 5 => {
                    let address = table.open(ip(number), now, 5, 41).expect("a place");
                    address.bytes.take(now, random.below(10), &Rate::new(100, 5));
                    held.push(address);
                }
                0 | 1 => {
                    assert_eq!(
                        table.open(ip(number), now, 5, 41).unwrap_err(),
                        Refusal::Connections
                    );
                }
                _ => {
                    if let Some(address) = held.pop() {
                        table.close(&address, now);
                    }
                }
            }
            let count: usize = model.values().map(Vec::len).sum();
            assert_eq!(table.connections(), count as u64);
            assert!(table.count() <= 40);
        }
        for address in model.into_values().flatten() {
            table.close(&address, now);
        }
        // All are forgotten in time, by those who come and go.
        for _ in 0..10_000 {
            now = Time(now.0 + SECOND);
            let number = 1000 + random.below(100);
            let address = table.open(ip(number), now, 0, 100).expect("a place");
            table.close(&address, now);
        }
        assert_eq!(table.connections(), 0);
    }

    /// Threads that open and close at the same few addresses never go over the limit, and leave
    /// nothing behind.
    #[test]
    fn threads_never_exceed_a_limit() {
        const THREADS: u64 = 4;
        const MAX: u32 = 5;
        let table = Addresses::default();
        let inside: Vec<AtomicU32> = (0..8).map(|_| AtomicU32::new(0)).collect();
        let play = |seed: u64| {
            let mut random = Random::new(seed);
            let mut held: Vec<(usize, Arc<Address>)> = Vec::new();
            let (mut refused, rate) = (0_u64, Rate::new(1_000_000, 10));
            for turn in 0..30_000 {
                let now = Time(SECOND + turn * 1000);
                let number = random.below(inside.len() as u64) as usize;
                if random.below(2) == 0 {
                    // Strangers push at the bound, which there is room within.
                    let _ = table.handshake(ip(100 + random.below(50)), now, &rate, 12);
                    match table.open(ip(number as u64), now, MAX, 12) {
                        Ok(address) => {
                            let before = inside[number].fetch_add(1, Ordering::SeqCst);
                            assert!(before < MAX, "{before} were there before");
                            address.messages.take(now, 1, &rate);
                            held.push((number, address));
                        }
                        Err(_) => refused += 1,
                    }
                } else if !held.is_empty() {
                    let at = random.below(held.len() as u64) as usize;
                    let (number, address) = held.swap_remove(at);
                    inside[number].fetch_sub(1, Ordering::SeqCst);
                    table.close(&address, now);
                }
                assert!(table.count() <= 12 + THREADS as usize);
            }
            for (number, address) in held {
                inside[number].fetch_sub(1, Ordering::SeqCst);
                table.close(&address, Time(1 << 60));
            }
            refused
        };
        let refused: u64 = std::thread::scope(|scope| {
            let play = &play;
            let threads: Vec<_> =
                (0..THREADS).map(|seed| scope.spawn(move || play(seed))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert!(refused > 0, "the limit was met");
        assert_eq!(table.connections(), 0);
    }
}
