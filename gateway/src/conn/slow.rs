//! What waits for a member that does not keep up with its rooms, and what of it can still be
//! dropped.
//!
//! ```text
//!   outbox: in flight, then what goes next │ backlog: m5 a m6 g7-9 m10 …
//!                                          └ first            last ┘
//! ```
//!
//! A backlog exists only while a member is congested: [`Outbox`](super::outbox::Outbox) makes it of
//! the whole segments that are not in flight, reading off each frame what it is, and takes from its
//! front again what it sends next. So members that keep up pay nothing for it.
//!
//! Everything leaves in the order in which it came. A message that is dropped leaves a gap in its
//! place, which is sent as a gap event; gaps of one room that touch are one, in the place of the
//! first of them, so that a member hears of a loss before anything that came behind it. A gap never
//! takes more bytes than the message it stands for: dropping always makes room.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::outbox::{Data, SEGMENTS_MEASURED, Segment, frame_bytes};
use crate::metrics::Counters;
use crate::rooms::{Heading, gap_frame, gap_frame_bytes, heading};

/// No node.
const NONE: u32 = u32::MAX;

/// Frames that wait, in order, for one congested member.
#[derive(Default)]
pub(super) struct Backlog {
    /// Whether keys are looked at.
    conflates: bool,
    /// The places that are in use are one list by `prev` and `next`, and those of each room are
    /// one by `room_prev` and `room_next`.
    nodes: Vec<Node>,
    free: Vec<u32>,
    ends: Option<Ends>,
    /// The last node of each room that has one. Names are JSON text.
    rooms: BTreeMap<Arc<[u8]>, u32>,
    /// The messages that have a key, where that counts.
    keys: BTreeMap<(Arc<[u8]>, Bytes), u32>,
    /// All frames together, gap events included.
    bytes: usize,
    /// Messages alone: what can be dropped. `message_bytes <= bytes`
    message_bytes: usize,
}

/// Both ends of the list of all nodes.
#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
    /// The first that is a message, or `NONE`. It only moves toward `last`, so finding the next one
    /// costs a step per node in its life.
    oldest: u32,
}

struct Node {
    item: Item,
    /// Of what may be dropped or stands between it; then it is in the room's list.
    room: Option<Arc<[u8]>>,
    queued_ms: u32,
    prev: u32,
    next: u32,
    room_prev: u32,
    room_next: u32,
}

enum Item {
    Message {
        frame: Bytes,
        offset: u64,
        key: Option<Bytes>,
    },
    /// Messages that were dropped: `from` to `to`, both included.
    Gap {
        from: u64,
        to: u64,
    },
    /// What is never dropped. With a room, it is the answer to a join: gaps before and behind it
    /// are never one, as offsets may begin anew.
    Other(Segment),
}

impl Backlog {
    /// An empty one; `conflates`: messages are dropped for newer ones with their key.
    pub(super) fn new(conflates: bool) -> Backlog {
        Backlog { conflates, ..Backlog::default() }
    }

    /// Bytes of all frames in it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the messages, which can be dropped.
    pub(super) fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// Bytes on the heap, and how many nodes it took to find out, as
    /// [`Outbox::held_bytes`](super::outbox::Outbox::held_bytes) says.
    pub(super) fn held_bytes(&self) -> (usize, usize) {
        let frame = |node: &Node| match &node.item {
            Item::Message { frame, .. } => frame_bytes(frame),
            Item::Other(segment) => segment.held_bytes(),
            Item::Gap { .. } => 0,
        };
        let measured = self.nodes.len().min(SEGMENTS_MEASURED);
        let mut bytes: usize = self.nodes[..measured].iter().map(frame).sum();
        if measured == SEGMENTS_MEASURED {
            bytes = bytes / measured * self.nodes.len();
        }
        bytes += self.nodes.capacity() * size_of::<Node>() + self.free.capacity() * 4;
        // A node of a map has room for eleven entries, and is two thirds full.
        bytes += (self.rooms.len() * size_of::<(Arc<[u8]>, u32)>()
            + self.keys.len() * size_of::<((Arc<[u8]>, Bytes), u32)>())
            * 3
            / 2;
        bytes += self.rooms.keys().map(|name| 16 + name.len()).sum::<usize>();
        (bytes, measured)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    /// Appends a segment.
    pub(super) fn push(&mut self, segment: Segment) {
        let queued_ms = segment.queued_ms;
        self.bytes += segment.len();
        let heading = match &segment.data {
            Data::Shared(frame) => heading(frame),
            Data::Answer(answer) => answer.heading(),
            _ => Heading::Other,
        };
        match (heading, &segment.data) {
            (Heading::Message { room, offset, key }, Data::Shared(frame)) => {
                let room = self.room(room);
                let key = key.filter(|_| self.conflates).map(|range| frame.slice(range));
                let frame = frame.clone();
                self.message_bytes += frame.len();
                let item = Item::Message { frame, offset, key: key.clone() };
                let at = self.append(item, Some(Arc::clone(&room)), queued_ms);
                if let Some(key) = key {
                    self.keys.insert((room, key), at);
                }
            }
            (Heading::Join { room }, _) => {
                let room = self.room(room);
                self.append(Item::Other(segment), Some(room), queued_ms);
            }
            _ => {
                self.append(Item::Other(segment), None, queued_ms);
            }
        }
    }

    /// Takes what is to be sent first; a gap as its event.
    pub(super) fn pop(&mut self, metrics: &Counters) -> Option<Segment> {
        let first = self.ends?.first;
        let queued_ms = self.node(first).queued_ms;
        let room = self.node(first).room.clone();
        self.forget_key(first);
        let segment = match self.remove(first) {
            Item::Message { frame, .. } => {
                self.message_bytes -= frame.len();
                Segment { data: Data::Shared(frame), start: 0, queued_ms }
            }
            Item::Gap { from, to } => {
                let room = room.expect("a gap is in a room");
                metrics.gap_markers_sent.add(1);
                Segment { data: Data::Shared(gap_frame(&room, from, to)), start: 0, queued_ms }
            }
            Item::Other(segment) => segment,
        };
        self.bytes -= segment.len();
        Some(segment)
    }

    /// Drops the oldest message; false when there is none.
    pub(super) fn drop_oldest(&mut self, metrics: &Counters) -> bool {
        let Some(oldest) = self.ends.map(|ends| ends.oldest).filter(|oldest| *oldest != NONE)
        else {
            return false;
        };
        self.lose(oldest);
        metrics.messages_dropped.add(1);
        true
    }

    /// Drops the messages that have waited for `age_ms` or longer.
    pub(super) fn drop_stale(&mut self, now_ms: u32, age_ms: u32, metrics: &Counters) {
        while let Some(Ends { oldest, .. }) = self.ends
            && oldest != NONE
            && now_ms.wrapping_sub(self.node(oldest).queued_ms) >= age_ms
        {
            self.drop_oldest(metrics);
        }
    }

    /// Drops the message whose place `frame` takes: one of the same room with the same key. To be
    /// called before `frame` is pushed; nothing happens unless the backlog conflates.
    pub(super) fn conflate(&mut self, frame: &Bytes, metrics: &Counters) {
        if !self.conflates {
            return;
        }
        let Heading::Message { room, key: Some(key), .. } = heading(frame) else { return };
        let Some((room, _)) = self.rooms.get_key_value(room) else { return };
        let Some(&at) = self.keys.get(&(Arc::clone(room), frame.slice(key))) else { return };
        self.lose(at);
        metrics.messages_conflated.add(1);
    }

    /// The room's name as the one that its other nodes share.
    fn room(&self, room: &[u8]) -> Arc<[u8]> {
        self.rooms.get_key_value(room).map_or_else(|| room.into(), |(room, _)| Arc::clone(room))
    }

    /// Makes a gap of a message.
    fn lose(&mut self, at: u32) {
        let before = self.bytes;
        self.forget_key(at);
        let Node { room_prev, room_next, .. } = *self.node(at);
        let node = self.node_mut(at);
        let room_bytes = node.room.as_ref().expect("a message is in a room").len();
        let Item::Message { frame, offset, .. } =
            std::mem::replace(&mut node.item, Item::Gap { from: 0, to: 0 })
        else {
            unreachable!("only messages are lost");
        };
        self.bytes -= frame.len();
        self.message_bytes -= frame.len();
        self.seek_oldest(at);

        let (mut from, mut to) = (offset, offset);
        if let Some((next_from, next_to)) = self.gap_at(room_next)
            && next_from == offset + 1
        {
            self.bytes -= gap_frame_bytes(room_bytes, next_from, next_to);
            to = next_to;
            self.remove(room_next);
        }
        let mut place = at;
        if let Some((prev_from, prev_to)) = self.gap_at(room_prev)
            && prev_to + 1 == offset
        {
            self.bytes -= gap_frame_bytes(room_bytes, prev_from, prev_to);
            from = prev_from;
            self.remove(at);
            place = room_prev;
        }
        self.node_mut(place).item = Item::Gap { from, to };
        self.bytes += gap_frame_bytes(room_bytes, from, to);
        debug_assert!(self.bytes <= before, "a gap is larger than what it stands for");
    }

    fn gap_at(&self, at: u32) -> Option<(u64, u64)> {
        if at == NONE {
            return None;
        }
        match self.node(at).item {
            Item::Gap { from, to } => Some((from, to)),
            _ => None,
        }
    }

    /// A newer message may have the key by now; then it keeps it.
    fn forget_key(&mut self, at: u32) {
        let node = self.node(at);
        let (Item::Message { key: Some(key), .. }, Some(room)) = (&node.item, &node.room) else {
            return;
        };
        let key = (Arc::clone(room), key.clone());
        if self.keys.get(&key) == Some(&at) {
            self.keys.remove(&key);
        }
    }

    /// The node `at` is no message any more, or is about to leave.
    fn seek_oldest(&mut self, at: u32) {
        let Some(Ends { mut oldest, .. }) = self.ends else { return };
        if oldest != at {
            return;
        }
        loop {
            oldest = self.node(oldest).next;
            if oldest == NONE || matches!(self.node(oldest).item, Item::Message { .. }) {
                break;
            }
        }
        if let Some(ends) = &mut self.ends {
            ends.oldest = oldest;
        }
    }

    fn append(&mut self, item: Item, room: Option<Arc<[u8]>>, queued_ms: u32) -> u32 {
        let is_message = matches!(item, Item::Message { .. });
        let prev = self.ends.map_or(NONE, |ends| ends.last);
        let room_prev =
            room.as_ref().and_then(|room| self.rooms.get(room).copied()).unwrap_or(NONE);
        let node = Node {
            item,
            room: room.clone(),
            queued_ms,
            prev,
            next: NONE,
            room_prev,
            room_next: NONE,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        if prev != NONE {
            self.node_mut(prev).next = at;
        }
        if room_prev != NONE {
            self.node_mut(room_prev).room_next = at;
        }
        if let Some(room) = room {
            self.rooms.insert(room, at);
        }
        let oldest = if is_message { at } else { NONE };
        let ends = self.ends.get_or_insert(Ends { first: at, last: at, oldest });
        ends.last = at;
        if ends.oldest == NONE {
            ends.oldest = oldest;
        }
        at
    }

    /// Takes a node out of both lists.
    fn remove(&mut self, at: u32) -> Item {
        self.seek_oldest(at);
        let node = self.node_mut(at);
        let (prev, next) = (node.prev, node.next);
        let (room_prev, room_next) = (node.room_prev, node.room_next);
        let room = node.room.take();
        // Nothing that it holds may stay behind.
        let item = std::mem::replace(&mut node.item, Item::Gap { from: 0, to: 0 });
        self.free.push(at);

        if prev != NONE {
            self.node_mut(prev).next = next;
        }
        if next != NONE {
            self.node_mut(next).prev = prev;
        }
        let ends = self.ends.as_mut().expect("it has a node");
        match (prev, next) {
            (NONE, NONE) => self.ends = None,
            (NONE, _) => ends.first = next,
            (_, NONE) => ends.last = prev,
            _ => {}
        }
        if room_prev != NONE {
            self.node_mut(room_prev).room_next = room_next;
        }
        if room_next != NONE {
            self.node_mut(room_next).room_prev = room_prev;
        } else if let Some(room) = room {
            if room_prev == NONE {
                self.rooms.remove(&room);
            } else {
                self.rooms.insert(room, room_prev);
            }
        }
        item
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }
}

#[cfg(test)]
mod tests;
