//! The connections of one shard, by the slot of their direct descriptor.

use std::net::SocketAddr;
use std::ops::{Index, IndexMut};

use super::addresses::Addresses;
use super::delays::MarkId;
use super::outbox::Outbox;
use super::{Conn, ConnId, Flags, Phase, Side, State};
use crate::journal::Traffic;
use crate::time::Time;

/// Slots and generations. The kernel picks the slot; the table counts whose turn it is there.
pub struct Table {
    // Reserved whole and grown slot by slot: memory is touched only as far as it is used, and a
    // connection never moves.
    conns: Vec<Conn>,
    slots: u32,
    open: u32,
    clients: u32,
}

impl Table {
    /// A table with room for `slots` connections.
    pub fn new(slots: u32) -> Table {
        Table { conns: Vec::with_capacity(slots as usize), slots, open: 0, clients: 0 }
    }

    /// Slots there are.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Slots in use.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Those of them that are clients.
    pub fn clients(&self) -> u32 {
        self.clients
    }

    /// Starts a new turn in `slot`.
    ///
    /// # Panics
    ///
    /// When the slot is in use or outside the table: the kernel and we would disagree about who
    /// owns it.
    pub fn occupy(&mut self, slot: u32, side: Side, peer: SocketAddr, now: Time) -> ConnId {
        assert!(slot < self.slots, "slot {slot} of a table of {}", self.slots);
        while self.conns.len() <= slot as usize {
            self.conns.push(Conn::free(0));
        }
        let conn = &mut self.conns[slot as usize];
        assert!(conn.phase == Phase::Free, "slot {slot} was handed out twice");
        let generation = (conn.generation + 1) & 0xFF_FFFF;
        *conn = Conn::free(generation);
        conn.phase = Phase::Open;
        conn.side = side;
        conn.addresses = Addresses::of(peer);
        conn.opened_at = now;
        conn.received_at = now;
        conn.data_at = now;
        self.open += 1;
        self.clients += u32::from(side == Side::Client);
        ConnId { slot, generation }
    }

    /// Ends the turn.
    pub fn vacate(&mut self, id: ConnId) {
        self.clients -= u32::from(self[id].side == Side::Client);
        self[id] = Conn::free(id.generation);
        self.open -= 1;
    }

    /// The connection, if its turn is not over.
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.conns
            .get(id.slot as usize)
            .filter(|conn| conn.generation == id.generation && conn.phase != Phase::Free)
    }

    /// The connection, if its turn is not over.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns
            .get_mut(id.slot as usize)
            .filter(|conn| conn.generation == id.generation && conn.phase != Phase::Free)
    }

    /// The connection that is in `slot` now.
    pub fn id_at(&self, slot: u32) -> Option<ConnId> {
        let conn = self.conns.get(slot as usize).filter(|conn| conn.phase != Phase::Free)?;
        Some(ConnId { slot, generation: conn.generation })
    }

    /// Bytes of the slots that have ever been used, which stay in memory; and of those that were only
    /// reserved. For the memory ledger.
    pub fn held_bytes(&self) -> (usize, usize) {
        let reserved = self.conns.capacity() - self.conns.len();
        (self.conns.len() * size_of::<Conn>(), reserved * size_of::<Conn>())
    }

    /// Slots that have ever been used; those in use are among them.
    pub fn slots_used(&self) -> u32 {
        self.conns.len() as u32
    }
}

/// For ids that come from a completion: their turn cannot be over, because a slot is vacated only
/// when nothing is outstanding.
impl Index<ConnId> for Table {
    type Output = Conn;
    fn index(&self, id: ConnId) -> &Conn {
        let conn = &self.conns[id.slot as usize];
        assert!(conn.generation == id.generation, "{id:?} is over");
        conn
    }
}

impl IndexMut<ConnId> for Table {
    fn index_mut(&mut self, id: ConnId) -> &mut Conn {
        let conn = &mut self.conns[id.slot as usize];
        assert!(conn.generation == id.generation, "{id:?} is over");
        conn
    }
}

impl Conn {
    fn free(generation: u32) -> Conn {
        Conn {
            generation,
            phase: Phase::Free,
            side: Side::Client,
            cause: None,
            flags: Flags::default(),
            route: 0,
            requests: 0,
            code: 0,
            counted: None,
            state: State::None,
            meter: None,
            outbox: Outbox::default(),
            mark: MarkId::NONE,
            pinged_us: 0,
            discarded_bytes: 0,
            addresses: Addresses::NOWHERE,
            opened_at: Time(0),
            traffic: Traffic::default(),
            received_at: Time(0),
            data_at: Time(0),
            deadline: Time::NEVER,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::ring::sim::Random;

    /// Random turns against a map from slot to the id that is in it.
    #[test]
    fn behaves_as_a_map() {
        let mut random = Random::new(11);
        let mut next = |below: u64| random.below(below);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut table = Table::new(64);
        let mut model: HashMap<u32, ConnId> = HashMap::new();
        let mut over: Vec<ConnId> = Vec::new();
        for _ in 0..20_000 {
            let slot = next(64) as u32;
            match model.get(&slot).copied() {
                None => {
                    let side = if slot.is_multiple_of(3) { Side::Upstream } else { Side::Client };
                    let id = table.occupy(slot, side, peer, Time(1));
                    assert!(!over.contains(&id), "{id:?} came back");
                    model.insert(slot, id);
                }
                Some(id) => {
                    table.vacate(id);
                    model.remove(&slot);
                    over.push(id);
                    over.drain(..over.len().saturating_sub(500));
                }
            }
            assert_eq!(table.open() as usize, model.len());
            let clients = model.keys().filter(|slot| !slot.is_multiple_of(3)).count();
            assert_eq!(table.clients() as usize, clients);
            for id in &over {
                assert!(table.get_mut(*id).is_none());
            }
            for (slot, id) in &model {
                assert_eq!(table.id_at(*slot), Some(*id));
                assert!(table.get_mut(*id).is_some());
            }
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        // Three quarters of what is promised per idle connection; the timer's node and the allocator's
        // rounding are the rest.
        assert!(size_of::<Conn>() <= 304, "{}", size_of::<Conn>());
    }
}
