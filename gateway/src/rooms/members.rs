//! The clients of this shard as the room engine sees them, and who of them is in which room.
//!
//! ```text
//!   by_slot[slot] -> clients[client].rooms[position] -> rooms[room].members[member_index]
//!                                  ^                                          |
//!                                  +----------- Member { client, position } --+
//! ```
//!
//! Both ends know their place at the other, so joining and leaving move one entry on each side,
//! and a delivery walks `members` from front to back without looking anything up.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::conn::ConnId;
use crate::heap::{ARC_BYTES, list_bytes, map_bytes, shrink_map};
use crate::keyed_hash::HashKey;
use crate::makers::Maker;

use super::Outlet;
use super::protocol::{ErrorCode, Position};

/// A map by name. Names come from clients, so the hash is keyed.
pub(super) type Names<T> = HashMap<Arc<str>, T, HashKey>;

/// No index: not a member yet, or not a watcher.
const NONE: u32 = u32::MAX;

/// What a client's requests may weigh together while their answers are on the way; at this weight the
/// next request waits. A join weighs one; a request whose answer may be long (history, presence, a
/// join that brings either) weighs all of it, so that there is one such answer per client at a time.
pub(super) const WEIGHT_MAX: u8 = 32;

// The last request that is charged comes on top of less than `WEIGHT_MAX`.
const _: () = assert!(WEIGHT_MAX <= u8::MAX / 2);

/// Clients and local member lists of one shard.
pub(super) struct Members {
    /// The index of a slot's client, or `NONE`. Four bytes are all that a connection costs here
    /// before it says something.
    by_slot: Vec<u32>,
    clients: Slab<Client>,
    rooms: Slab<LocalRoom>,
    room_by_name: Names<u32>,
    next_ticket: u32,
    /// Of all clients.
    memberships: usize,
    /// Bytes of the lists that clients and rooms have, and of names: kept where they grow and go.
    lists_bytes: usize,
}

pub(super) struct Client {
    pub(super) conn: ConnId,
    pub(super) user: Arc<str>,
    /// Whether the name is the client's own, so that the user directory knows it.
    pub(super) named: bool,
    /// What its requests weigh whose answers are on the way. Below `2 * WEIGHT_MAX`: only
    /// `Members::charge` adds to it.
    weight: u8,
    rooms: Vec<Membership>,
    /// What its rooms count with; from its first join on.
    maker: Option<Arc<Maker>>,
}

struct Membership {
    room: u32,
    /// `NONE` until the home has answered.
    member_index: u32,
    watcher_index: u32,
    ticket: u32,
    presence: bool,
}

struct LocalRoom {
    name: Arc<str>,
    /// The last message that was delivered here. Means something only with members.
    position: Position,
    members: Vec<Member>,
    /// Those of the members that asked for presence events.
    watchers: Vec<Member>,
    /// Memberships that point here, members or not yet. `members.len() <= memberships`
    memberships: u32,
}

#[derive(Clone, Copy)]
struct Member {
    conn: ConnId,
    client: u32,
    /// Index into the client's `rooms`.
    position: u32,
}

/// A membership that has ended.
pub(super) struct Ended {
    pub(super) room: Arc<str>,
    pub(super) presence: bool,
    /// The home had answered, and so has to hear of the end.
    pub(super) joined: bool,
}

impl Members {
    pub(super) fn new(key: HashKey) -> Members {
        Members {
            by_slot: Vec::new(),
            clients: Slab::default(),
            rooms: Slab::default(),
            room_by_name: HashMap::with_hasher(key),
            next_ticket: 0,
            memberships: 0,
            lists_bytes: 0,
        }
    }

    /// Bytes on the heap, for the memory ledger.
    pub(super) fn held_bytes(&self) -> usize {
        list_bytes(&self.by_slot)
            + self.clients.held_bytes()
            + self.rooms.held_bytes()
            + map_bytes(&self.room_by_name)
            + self.lists_bytes
    }

    /// What `held_bytes` has to say, added up anew.
    #[cfg(test)]
    pub(super) fn recounted_bytes(&self) -> usize {
        let clients = self.clients.places.iter().flatten().map(Client::held_bytes);
        let rooms = self.rooms.places.iter().flatten().map(LocalRoom::held_bytes);
        self.held_bytes() - self.lists_bytes + clients.chain(rooms).sum::<usize>()
    }

    pub(super) fn client_count(&self) -> usize {
        self.clients.len()
    }

    pub(super) fn room_count(&self) -> usize {
        self.rooms.len()
    }

    /// All memberships, those that wait for their home's answer included.
    pub(super) fn memberships(&self) -> usize {
        self.memberships
    }

    /// The client behind `conn`, if it has a name or has said something.
    pub(super) fn find(&self, conn: ConnId) -> Option<u32> {
        let client = *self.by_slot.get(conn.slot as usize)?;
        (client != NONE && self.clients.get(client).conn == conn).then_some(client)
    }

    pub(super) fn client(&self, client: u32) -> &Client {
        self.clients.get(client)
    }

    pub(super) fn add_client(&mut self, conn: ConnId, user: Arc<str>, named: bool) -> u32 {
        let slot = conn.slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, NONE);
        }
        assert!(self.by_slot[slot] == NONE, "the slot's last client was not closed");
        let client = Client { conn, user, named, weight: 0, rooms: Vec::new(), maker: None };
        self.lists_bytes += client.held_bytes();
        let client = self.clients.insert(client);
        self.by_slot[slot] = client;
        client
    }

    /// Charges a client for a request whose answer is to come, and returns what it weighs.
    /// `is_long`: the answer may be.
    ///
    /// # Errors
    ///
    /// `Busy`: its next request has to wait, as [`Members::is_busy`] says. Nothing is charged then.
    pub(super) fn charge(&mut self, client: u32, is_long: bool) -> Result<u8, ErrorCode> {
        let charged = &mut self.clients.get_mut(client).weight;
        if *charged >= WEIGHT_MAX {
            return Err(ErrorCode::Busy);
        }
        let weight = if is_long { WEIGHT_MAX } else { 1 };
        *charged += weight;
        Ok(weight)
    }

    /// The answer has come; `weight` is what `charge` returned. False when nobody waits for it any more.
    pub(super) fn discharge(&mut self, conn: ConnId, weight: u8) -> bool {
        let Some(client) = self.find(conn) else { return false };
        self.clients.get_mut(client).weight -= weight;
        true
    }

    /// Whether the client's next request has to wait for answers to those before it.
    pub(super) fn is_busy(&self, conn: ConnId) -> bool {
        self.find(conn).is_some_and(|client| self.clients.get(client).weight >= WEIGHT_MAX)
    }

    /// Removes a client whose memberships have all ended.
    pub(super) fn remove_client(&mut self, client: u32) -> Client {
        let removed = self.clients.remove(client);
        assert!(removed.rooms.is_empty(), "a closed client is in no room");
        self.lists_bytes -= removed.held_bytes();
        self.by_slot[removed.conn.slot as usize] = NONE;
        removed
    }

    pub(super) fn membership_count(&self, client: u32) -> usize {
        self.clients.get(client).rooms.len()
    }

    /// What the client's rooms count with.
    pub(super) fn maker(&mut self, client: u32, out: &mut impl Outlet) -> Arc<Maker> {
        let Client { conn, maker, .. } = self.clients.get_mut(client);
        Arc::clone(maker.get_or_insert_with(|| out.maker(*conn)))
    }

    /// The room's name, shared, if the client has joined it or asked to.
    pub(super) fn membership(&self, client: u32, room: &str) -> Option<&Arc<str>> {
        let (index, _) = self.position(client, room)?;
        Some(&self.rooms.get(index).name)
    }

    /// Remembers a join that was asked for; the ticket goes with the question.
    pub(super) fn start_join(
        &mut self,
        client: u32,
        room: &str,
        presence: bool,
    ) -> (Arc<str>, u32) {
        let index = self.room_by_name.get(room).copied().unwrap_or_else(|| {
            let name: Arc<str> = room.into();
            let local = LocalRoom {
                name: Arc::clone(&name),
                position: Position { epoch: 0, offset: 0 },
                members: Vec::new(),
                watchers: Vec::new(),
                memberships: 0,
            };
            self.lists_bytes += local.held_bytes();
            let index = self.rooms.insert(local);
            self.room_by_name.insert(name, index);
            index
        });
        self.next_ticket = self.next_ticket.wrapping_add(1);
        let ticket = self.next_ticket;
        let (member_index, watcher_index) = (NONE, NONE);
        let membership = Membership { room: index, member_index, watcher_index, ticket, presence };
        push_counted(&mut self.clients.get_mut(client).rooms, membership, &mut self.lists_bytes);
        let local = self.rooms.get_mut(index);
        local.memberships += 1;
        self.memberships += 1;
        (Arc::clone(&local.name), ticket)
    }

    /// The home has added the member, and so do we. False when the client no longer waits for
    /// this: then the home has to hear that it left.
    pub(super) fn finish_join(
        &mut self,
        conn: ConnId,
        room: &str,
        ticket: u32,
        at: Position,
    ) -> bool {
        let Some((client, index, position)) = self.waiting(conn, room, ticket) else {
            return false;
        };
        let membership = &mut self.clients.get_mut(client).rooms[position as usize];
        let local = self.rooms.get_mut(index);
        let member = Member { conn, client, position };
        membership.member_index = local.members.len() as u32;
        push_counted(&mut local.members, member, &mut self.lists_bytes);
        if membership.presence {
            membership.watcher_index = local.watchers.len() as u32;
            push_counted(&mut local.watchers, member, &mut self.lists_bytes);
        }
        local.position = at;
        true
    }

    /// The home has refused. False when the client no longer waits for this.
    pub(super) fn cancel_join(&mut self, conn: ConnId, room: &str, ticket: u32) -> bool {
        let Some((client, _, position)) = self.waiting(conn, room, ticket) else { return false };
        self.end(client, position);
        true
    }

    pub(super) fn leave(&mut self, client: u32, room: &str) -> Option<Ended> {
        let (_, position) = self.position(client, room)?;
        Some(self.end(client, position))
    }

    /// Ends one membership of a client that is closing; `None` when there is none left.
    pub(super) fn leave_any(&mut self, client: u32) -> Option<Ended> {
        let last = self.clients.get(client).rooms.len().checked_sub(1)?;
        Some(self.end(client, last as u32))
    }

    /// Gives a frame to each member of the room here; returns to how many.
    pub(super) fn deliver(
        &mut self,
        room: &str,
        offset: u64,
        frame: &Bytes,
        out: &mut impl Outlet,
    ) -> usize {
        // The last member may have left while the message was on its way.
        let Some(&index) = self.room_by_name.get(room) else { return 0 };
        let local = self.rooms.get_mut(index);
        local.position.offset = offset;
        for member in &local.members {
            out.deliver(member.conn, frame);
        }
        local.members.len()
    }

    /// Gives a frame to each member of the room here that asked for presence events.
    pub(super) fn notify(&self, room: &str, frame: &Bytes, out: &mut impl Outlet) {
        let Some(&index) = self.room_by_name.get(room) else { return };
        for watcher in &self.rooms.get(index).watchers {
            out.deliver(watcher.conn, frame);
        }
    }

    /// The rooms of a client, in no particular order: name, presence, and the last message
    /// delivered to it (`None` while it waits to become a member).
    pub(super) fn rooms_of(
        &self,
        client: u32,
    ) -> impl Iterator<Item = (&Arc<str>, bool, Option<Position>)> {
        self.clients.get(client).rooms.iter().map(|membership| {
            let local = self.rooms.get(membership.room);
            let joined = membership.member_index != NONE;
            (&local.name, membership.presence, joined.then_some(local.position))
        })
    }

    /// (room, position in the client's list)
    fn position(&self, client: u32, room: &str) -> Option<(u32, u32)> {
        let &index = self.room_by_name.get(room)?;
        let rooms = &self.clients.get(client).rooms;
        let position = rooms.iter().position(|membership| membership.room == index)?;
        Some((index, position as u32))
    }

    /// (client, room, position) of the membership that waits for the answer with this ticket.
    fn waiting(&self, conn: ConnId, room: &str, ticket: u32) -> Option<(u32, u32, u32)> {
        let client = self.find(conn)?;
        let (index, position) = self.position(client, room)?;
        let membership = &self.clients.get(client).rooms[position as usize];
        let waits = membership.member_index == NONE && membership.ticket == ticket;
        waits.then_some((client, index, position))
    }

    fn end(&mut self, client: u32, position: u32) -> Ended {
        let Members { clients, rooms, room_by_name, lists_bytes, .. } = self;
        let memberships = &mut clients.get_mut(client).rooms;
        let ended = memberships.swap_remove(position as usize);
        // The membership that took its place has a new position, which its members must know.
        if let Some(moved) = memberships.get(position as usize) {
            let local = rooms.get_mut(moved.room);
            if moved.member_index != NONE {
                local.members[moved.member_index as usize].position = position;
            }
            if moved.watcher_index != NONE {
                local.watchers[moved.watcher_index as usize].position = position;
            }
        }

        // And the other way round: the members that took the places have new indices.
        let local = rooms.get_mut(ended.room);
        if ended.member_index != NONE {
            local.members.swap_remove(ended.member_index as usize);
            if let Some(moved) = local.members.get(ended.member_index as usize) {
                let memberships = &mut clients.get_mut(moved.client).rooms;
                memberships[moved.position as usize].member_index = ended.member_index;
            }
        }
        if ended.watcher_index != NONE {
            local.watchers.swap_remove(ended.watcher_index as usize);
            if let Some(moved) = local.watchers.get(ended.watcher_index as usize) {
                let memberships = &mut clients.get_mut(moved.client).rooms;
                memberships[moved.position as usize].watcher_index = ended.watcher_index;
            }
        }

        local.memberships -= 1;
        self.memberships -= 1;
        let name = Arc::clone(&local.name);
        if local.memberships == 0 {
            *lists_bytes -= rooms.remove(ended.room).held_bytes();
            room_by_name.remove(&*name);
            shrink_map(room_by_name);
        }
        let joined = ended.member_index != NONE;
        Ended { room: name, presence: ended.presence, joined }
    }
}

impl Client {
    /// Bytes on the heap, its name among them.
    fn held_bytes(&self) -> usize {
        ARC_BYTES + self.user.len() + list_bytes(&self.rooms)
    }
}

impl LocalRoom {
    /// Bytes on the heap, its name among them.
    fn held_bytes(&self) -> usize {
        ARC_BYTES + self.name.len() + list_bytes(&self.members) + list_bytes(&self.watchers)
    }
}

/// Appends to a list; `bytes` grows as it does.
pub(super) fn push_counted<T>(list: &mut Vec<T>, value: T, bytes: &mut usize) {
    let before = list_bytes(list);
    list.push(value);
    *bytes += list_bytes(list) - before;
}

/// Values at indices that stay, and are used again.
struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn held_bytes(&self) -> usize {
        list_bytes(&self.places) + list_bytes(&self.free)
    }

    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn insert(&mut self, value: T) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.places[index as usize] = Some(value);
                index
            }
            None => {
                self.places.push(Some(value));
                self.places.len() as u32 - 1
            }
        }
    }

    fn get(&self, index: u32) -> &T {
        self.places[index as usize].as_ref().expect("indices are kept only while in use")
    }

    fn get_mut(&mut self, index: u32) -> &mut T {
        self.places[index as usize].as_mut().expect("indices are kept only while in use")
    }

    fn remove(&mut self, index: u32) -> T {
        let removed = self.places[index as usize].take();
        self.free.push(index);
        if self.free.len() == self.places.len() {
            *self = Slab::default(); // What it has grown to goes with the last.
        }
        removed.expect("indices are kept only while in use")
    }
}
