//! Who made the rooms that there are, over all shards.
//!
//! A room may outlive the connection that made it, so it counts against its maker until it is
//! forgotten, both with the connection and with its address: a client that leaves its rooms, or comes
//! again for more, cannot take the places of everybody.
//!
//! A connection has a [`Maker`] from its first join of a room on. The home of a room asks it for a place
//! when it makes the room, and holds the [`Made`] with the room; dropping that gives the place back. Rooms
//! are made and forgotten far less often than messages come, so addresses stand behind locks, one
//! for each part of the table. An address is known while a room of it is: there are never more of them than
//! rooms, which `rooms_max` bounds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::addresses::AddressKey;
use crate::heap::{ARC_BYTES, map_bytes};
use crate::striped::Striped;

/// What a room costs here at most: its maker, when no other room has the same, and its address.
pub const MADE_BYTES: usize = size_of::<Maker>() + ARC_BYTES + 2 * size_of::<(Whose, usize)>();

/// All addresses that made rooms.
#[derive(Debug, Default)]
pub struct Makers {
    stripes: Striped<Stripe>,
    /// Makers in memory, of connections and of rooms that outlived theirs.
    known: AtomicUsize,
}

/// Rooms of each address. `0 < rooms`
type Stripe = HashMap<Whose, usize>;

/// An address in the rooms of one backend, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Whose {
    backend: u16,
    address: AddressKey,
}

/// A connection as one that makes rooms. Lives as long as the connection or a room that it made.
#[derive(Debug)]
pub struct Maker {
    whose: Whose,
    /// Rooms that it made and that are not forgotten.
    rooms: AtomicUsize,
    makers: Arc<Makers>,
}

/// A room's place with its maker, which is given back when this is dropped.
#[derive(Debug)]
pub struct Made(Arc<Maker>);

impl Makers {
    /// A connection of `address` that may make rooms of this backend, and has made none.
    pub fn maker(self: &Arc<Self>, backend: u16, address: AddressKey) -> Arc<Maker> {
        self.known.fetch_add(1, Ordering::Relaxed);
        let whose = Whose { backend, address };
        Arc::new(Maker { whose, rooms: AtomicUsize::new(0), makers: Arc::clone(self) })
    }

    /// Rooms that count, of all addresses. Takes every lock: for tests.
    pub fn rooms(&self) -> usize {
        self.stripes.all().map(|stripe| stripe.values().sum::<usize>()).sum()
    }

    /// Bytes of the makers and the addresses, for the memory ledger. Takes every lock, each for a moment.
    pub fn held_bytes(&self) -> usize {
        let makers = self.known.load(Ordering::Relaxed) * (size_of::<Maker>() + ARC_BYTES);
        let addresses: usize = self.stripes.all().map(|stripe| map_bytes(&*stripe)).sum();
        makers + addresses + self.stripes.held_bytes()
    }
}

impl Maker {
    /// A place for one more room, unless the connection has `client_max` already, or its address, with
    /// all of its connections, `address_max`. Both are at least 1, and exact.
    pub fn make(self: &Arc<Self>, client_max: usize, address_max: usize) -> Option<Made> {
        let one_more = |rooms| (rooms < client_max).then_some(rooms + 1);
        self.rooms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let mut stripe = self.makers.stripes.of(self.whose);
        let of_address = stripe.get(&self.whose).copied().unwrap_or(0);
        if of_address >= address_max {
            self.rooms.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        stripe.insert(self.whose, of_address + 1);
        Some(Made(Arc::clone(self)))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Made(maker) = self;
        maker.rooms.fetch_sub(1, Ordering::Relaxed);
        let mut stripe = maker.makers.stripes.of(maker.whose);
        let of_address = stripe.get_mut(&maker.whose).expect("an address with a room is known");
        *of_address -= 1;
        if *of_address == 0 {
            stripe.remove(&maker.whose);
            if stripe.is_empty() {
                // What has grown under many addresses goes with the last of them.
                *stripe = HashMap::new();
            }
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.makers.known.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: AddressKey = AddressKey::V4(1);

    #[test]
    fn a_place_is_given_back_with_its_room() {
        let makers = Arc::new(Makers::default());
        let nothing = makers.held_bytes();
        let one = makers.maker(0, ADDRESS);
        let other = makers.maker(0, ADDRESS);
        let mut rooms: Vec<Made> = (0..2).map(|_| one.make(2, 3).expect("a place")).collect();
        assert!(one.make(2, 3).is_none(), "the connection has two");
        rooms.push(other.make(2, 3).expect("a place"));
        assert!(other.make(2, 3).is_none(), "the address has three");
        assert!(makers.maker(0, AddressKey::V4(2)).make(2, 3).is_some(), "another address");
        assert!(makers.maker(1, ADDRESS).make(2, 3).is_some(), "another backend");
        assert_eq!(makers.rooms(), 3);
        // A refusal has taken nothing, and a room outlives its maker's connection.
        drop(one);
        rooms.remove(0);
        rooms.push(other.make(2, 3).expect("a place again"));
        assert!(makers.held_bytes() > nothing);
        drop((rooms, other));
        assert_eq!((makers.rooms(), makers.held_bytes()), (0, nothing));
    }

    /// Threads that make rooms of one address never go over its bound, and leave nothing behind.
    #[test]
    fn threads_never_exceed_a_bound() {
        const MAX: usize = 10;
        let makers = Arc::new(Makers::default());
        let inside = AtomicUsize::new(0);
        let play = || {
            let maker = makers.maker(0, ADDRESS);
            let (mut rooms, mut refused) = (Vec::new(), 0_u32);
            for _ in 0..20_000 {
                match maker.make(6, MAX) {
                    Some(made) => {
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < MAX);
                        rooms.push(made);
                    }
                    None => {
                        refused += 1;
                        inside.fetch_sub(rooms.len(), Ordering::SeqCst);
                        rooms.clear();
                    }
                }
            }
            inside.fetch_sub(rooms.len(), Ordering::SeqCst);
            refused
        };
        let refused: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(play)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert!(refused > 0, "the bound was met");
        assert_eq!(makers.rooms(), 0);
    }
}
