//! Users and their connections: which of them are in this shard, and, at the home of a user's
//! name, in which shards they are.
//!
//! Guests are in neither list. Their name says where they are, so an idle guest costs nothing.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::conn::ConnId;
use crate::heap::{list_bytes, map_bytes, shrink_map};
use crate::keyed_hash::HashKey;

use super::Outlet;
use super::mail::{Letter, Mail};
use super::members::{Names, push_counted};

/// What the name of every guest begins with; nobody else's may.
pub(super) const GUEST_PREFIX: &str = "guest-";

/// The named users of one shard, and those whose home it is.
pub(super) struct Directory {
    /// The connections of a user in this shard.
    local: Names<Vec<ConnId>>,
    /// How many connections a user has in which shard, for users whose home this shard is.
    homes: Names<Vec<(u16, u32)>>,
    /// Bytes of the lists in both: kept where they grow and go.
    lists_bytes: usize,
}

impl Directory {
    pub(super) fn new(local: HashKey, homes: HashKey) -> Directory {
        Directory {
            local: HashMap::with_hasher(local),
            homes: HashMap::with_hasher(homes),
            lists_bytes: 0,
        }
    }

    /// Bytes on the heap, for the memory ledger. Names are counted where clients are.
    pub(super) fn held_bytes(&self) -> usize {
        map_bytes(&self.local) + map_bytes(&self.homes) + self.lists_bytes
    }

    /// What `held_bytes` has to say, added up anew.
    #[cfg(test)]
    pub(super) fn recounted_bytes(&self) -> usize {
        let local = self.local.values().map(list_bytes);
        let homes = self.homes.values().map(list_bytes);
        self.held_bytes() - self.lists_bytes + local.chain(homes).sum::<usize>()
    }

    pub(super) fn len(&self) -> usize {
        self.local.len() + self.homes.len()
    }

    pub(super) fn add_local(&mut self, user: &Arc<str>, conn: ConnId) {
        let conns = self.local.entry(Arc::clone(user)).or_default();
        push_counted(conns, conn, &mut self.lists_bytes);
    }

    pub(super) fn remove_local(&mut self, user: &str, conn: ConnId) {
        let conns = self.local.get_mut(user).expect("a named client is listed");
        conns.retain(|other| *other != conn);
        if conns.is_empty() {
            self.lists_bytes -= list_bytes(conns);
            self.local.remove(user);
            shrink_map(&mut self.local);
        }
    }

    pub(super) fn deliver(&self, user: &str, frame: &Bytes, out: &mut impl Outlet) {
        // The last connection may have closed while the message was on its way.
        for conn in self.local.get(user).into_iter().flatten() {
            out.deliver(*conn, frame);
        }
    }

    pub(super) fn on_opened(&mut self, user: Arc<str>, shard: u16) {
        let shards = self.homes.entry(user).or_default();
        match shards.iter_mut().find(|(other, _)| *other == shard) {
            Some((_, connections)) => *connections += 1,
            None => push_counted(shards, (shard, 1), &mut self.lists_bytes),
        }
    }

    pub(super) fn on_closed(&mut self, user: &str, shard: u16) {
        let shards = self.homes.get_mut(user).expect("a close follows its open");
        let index = shards.iter().position(|(other, _)| *other == shard);
        let index = index.expect("a close follows its open");
        shards[index].1 -= 1;
        if shards[index].1 == 0 {
            shards.swap_remove(index);
        }
        if shards.is_empty() {
            self.lists_bytes -= list_bytes(shards);
            self.homes.remove(user);
            shrink_map(&mut self.homes);
        }
    }

    /// Sends a direct message on to every shard where the user is. `Ok` is the number of
    /// connections, 0 when there is no such user; `Err` when a shard has no room for it.
    pub(super) fn on_direct(
        &self,
        user: &Arc<str>,
        frame: &Bytes,
        out: &mut impl Outlet,
    ) -> Result<u64, ()> {
        let Some(shards) = self.homes.get(user) else { return Ok(0) };
        if shards.iter().any(|(shard, _)| !out.has_room(*shard)) {
            return Err(());
        }
        for (shard, _) in shards {
            let (user, frame) = (Arc::clone(user), frame.clone());
            out.post(*shard, Mail(Letter::DeliverDirect { user, frame }));
        }
        Ok(shards.iter().map(|(_, connections)| u64::from(*connections)).sum())
    }
}

/// `guest-` and, in base 36, slot and shard in one number; then the generation unless it is 0.
pub(super) fn guest_name(conn: ConnId, shard: u16, shards: u16) -> String {
    let mut name = String::from(GUEST_PREFIX);
    push_base36(&mut name, u64::from(conn.slot) * u64::from(shards) + u64::from(shard));
    if conn.generation > 0 {
        name.push('-');
        push_base36(&mut name, u64::from(conn.generation));
    }
    name
}

/// The shard and the connection that `guest_name` made this name of.
pub(super) fn find_guest(name: &str, shards: u16) -> Option<(u16, ConnId)> {
    let rest = name.strip_prefix(GUEST_PREFIX)?;
    let (place, generation) = rest.split_once('-').unwrap_or((rest, "0"));
    let place = u64::from_str_radix(place, 36).ok()?;
    let slot = u32::try_from(place / u64::from(shards)).ok()?;
    let generation = u32::from_str_radix(generation, 36).ok()?;
    let shard = (place % u64::from(shards)) as u16;
    let conn = ConnId { slot, generation };
    // One spelling per guest.
    (guest_name(conn, shard, shards) == name).then_some((shard, conn))
}

fn push_base36(out: &mut String, mut value: u64) {
    let mut digits = [0_u8; 13];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(value % 36) as usize];
        value /= 36;
        if value == 0 {
            break;
        }
    }
    out.extend(digits[first..].iter().map(|digit| char::from(*digit)));
}
