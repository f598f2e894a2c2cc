//! The bytes that wait to be sent to one peer, in order.
//!
//! ```text
//!   first ── rest ──────────────────────── tail
//!   │ in_flight of them: lent to the ring │ still open for more bytes
//! ```
//!
//! An empty outbox owns no memory. What is in flight neither moves nor changes until the send has
//! completed: only whole segments behind it are touched, and the bytes of a segment live on the
//! heap or in a receive buffer, so that moving the segment itself moves none of them.
//!
//! A member of rooms that does not keep up has a backlog (`slow.rs`) behind these segments, out of
//! which messages are dropped under its room's policy. Control frames go ahead of it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::slow::Backlog;
use crate::budget::{Drawer, ShardAccount};
use crate::metrics::Counters;
use crate::ring::Buffer;
use crate::rooms::{Answer, Heading, SlowLimits, SlowPolicy, gap_frame_bytes, heading};
use crate::spares::Spares;
use crate::time::Time;

/// What one shard keeps so that its outboxes need not allocate.
#[derive(Default)]
pub struct Stores {
    /// Byte vectors.
    pub spares: Spares,
    /// What outboxes draw on, and everybody else of the shard.
    pub account: ShardAccount,
    // Boxed, so that an outbox with one segment, which nearly all are, has eight bytes for more.
    #[allow(clippy::vec_box)]
    queues: Vec<Box<VecDeque<Segment>>>,
}

/// Queues kept for the next outbox that needs one; more are freed.
const QUEUES_KEPT: usize = 1024;

/// A segment is closed for more bytes at this size, so that a vector taken from [`Spares`] can go
/// back there.
const SEGMENT_BYTES: usize = 16 * 1024;

/// Segments of one outbox, and nodes of its backlog, that are looked at to find out what it holds.
pub(super) const SEGMENTS_MEASURED: usize = 512;

/// Bytes that a congested member is given at once: what is given to a send cannot be dropped any
/// more, and each send that is taken counts as progress.
const REFILL_BYTES: usize = 32 * 1024;

/// Segments of one refill: as many as a send takes.
const REFILL_SEGMENTS: usize = crate::ring::linux::SEND_PARTS_MAX;

impl Stores {
    /// None are kept yet; outboxes draw on `account`.
    pub fn new(account: ShardAccount) -> Stores {
        Stores { account, ..Stores::default() }
    }

    /// Frees what is kept for later.
    pub fn trim(&mut self) {
        self.spares.trim();
        self.queues = Vec::new();
    }

    /// Bytes that are kept, for the memory ledger.
    pub fn held_bytes(&self) -> usize {
        self.spares.held_bytes()
            + self.queues.capacity() * size_of::<Box<VecDeque<Segment>>>()
            + self.queues.iter().map(|queue| queue_bytes(queue)).sum::<usize>()
    }
}

/// What a boxed queue takes.
fn queue_bytes(queue: &VecDeque<Segment>) -> usize {
    size_of::<VecDeque<Segment>>() + queue.capacity() * size_of::<Segment>()
}

/// What long answers are counted in. All that an outbox may have of them fits into 16 bits: less than
/// [`OUTBOX_BYTES_MAX`](crate::limits::OUTBOX_BYTES_MAX) twice.
const ANSWER_UNIT_BYTES: usize = 32 * 1024;

/// Bytes owed to one peer.
#[derive(Default)]
pub struct Outbox {
    first: Segment,
    #[allow(clippy::box_collection)]
    rest: Option<Box<VecDeque<Segment>>>,
    /// In 32 bits: [`OUTBOX_BYTES_MAX`](crate::limits::OUTBOX_BYTES_MAX) is a quarter of what they
    /// count.
    bytes: u32,
    /// Segments at the front that the ring is sending.
    in_flight: u8,
    /// Whether part of a receive buffer may be among the segments.
    lent: bool,
    /// Long answers among the segments and in the backlog, in units of [`ANSWER_UNIT_BYTES`]; of each what
    /// it was when it was queued, rounded down.
    answers: u16,
    /// When the peer last took something, or when the first byte was queued.
    progress: Time,
    /// Of a member that does not keep up: what waits behind the segments. Its bytes are counted in
    /// `bytes`. With a backlog there is at least one segment.
    backlog: Option<Box<Backlog>>,
}

/// A frame has no room in the outbox, and nothing can be dropped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Default)]
pub(super) struct Segment {
    pub(super) data: Data,
    /// How much of the data has been sent. `Data::Owned` still holds it, the others were cut.
    pub(super) start: u32,
    /// When it was queued, in milliseconds that wrap; known of `Data::Shared` alone.
    pub(super) queued_ms: u32,
}

#[derive(Default)]
pub(super) enum Data {
    #[default]
    Empty,
    Owned(Vec<u8>),
    Shared(Bytes),
    Lent(Buffer),
    /// One frame in pieces.
    Answer(Answer),
}

impl Outbox {
    /// Bytes that have not been taken by the socket.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// When the peer last took something; meaningful while the outbox is not empty.
    pub fn progress(&self) -> Time {
        self.progress
    }

    /// Bytes on the heap, for the memory ledger, and how many segments it took to find out: no more
    /// than [`SEGMENTS_MEASURED`], the others counting as much as those on average. What is lent or
    /// shared is not the outbox's: see [`Segment::held_bytes`].
    pub fn held_bytes(&self) -> (usize, usize) {
        let (mut bytes, mut measured) = (0, 0);
        for segment in self.segments().take(SEGMENTS_MEASURED) {
            bytes += segment.held_bytes();
            measured += 1;
        }
        let count = 1 + self.rest.as_ref().map_or(0, |rest| rest.len());
        if count > measured && measured == SEGMENTS_MEASURED {
            bytes = bytes / measured * count;
        }
        bytes += self.rest.as_ref().map_or(0, |rest| queue_bytes(rest));
        if let Some(backlog) = &self.backlog {
            let (held, nodes) = backlog.held_bytes();
            bytes += size_of::<Backlog>() + held;
            measured += nodes;
        }
        (bytes, measured)
    }

    /// Appends bytes of our own: `write` adds them to the vector that it is given and leaves what
    /// is there alone.
    pub fn write(&mut self, stores: &mut Stores, now: Time, write: impl FnOnce(&mut Vec<u8>)) {
        if self.bytes == 0 {
            self.progress = now;
        }
        if !self.tail_is_open() {
            let vector = stores.spares.take(512);
            self.push(Segment { data: Data::Owned(vector), start: 0, queued_ms: 0 }, stores);
        }
        let Data::Owned(vector) = &mut self.tail().data else { unreachable!("opened above") };
        let (before, capacity) = (vector.len(), vector.capacity());
        write(vector);
        let added = vector.len() - before;
        if vector.capacity() != capacity {
            stores.account.change(Drawer::Outboxes, capacity, vector.capacity());
        }
        self.bytes += added as u32;
        if added == 0 {
            self.drop_empty_tail(stores);
        }
    }

    /// Appends a frame that goes to others as well.
    pub fn push_shared(&mut self, bytes: &Bytes, stores: &mut Stores, now: Time) {
        if bytes.is_empty() {
            return;
        }
        if self.bytes == 0 {
            self.progress = now;
        }
        self.bytes += bytes.len() as u32;
        let segment = Segment::shared(bytes, now);
        match &mut self.backlog {
            None => self.push(segment, stores),
            Some(backlog) => backlog.push(segment),
        }
    }

    /// Appends an answer to a member of rooms, whatever is queued already: the member has one long one at
    /// a time.
    pub fn push_answer(&mut self, answer: Answer, stores: &mut Stores, now: Time) {
        if self.bytes == 0 {
            self.progress = now;
        }
        self.bytes += answer.bytes() as u32;
        self.answers = self.answers.saturating_add(answer_units(&answer));
        let segment = Segment { data: Data::Answer(answer), start: 0, queued_ms: 0 };
        match &mut self.backlog {
            None => self.push(segment, stores),
            Some(backlog) => backlog.push(segment),
        }
    }

    /// Bytes of long answers that are queued, to within [`ANSWER_UNIT_BYTES`] each; until the last byte of
    /// one is sent, all of it. What else may wait is on top of them: an answer was asked for, and holds
    /// little of its own.
    pub fn answer_bytes(&self) -> usize {
        usize::from(self.answers) * ANSWER_UNIT_BYTES
    }

    /// Whether there is a backlog: the peer is a member of rooms that does not keep up.
    pub fn is_backlogged(&self) -> bool {
        self.backlog.is_some()
    }

    /// Bytes that have not been taken and that nobody may drop.
    pub fn owed_bytes(&self) -> usize {
        self.bytes() - self.backlog.as_ref().map_or(0, |backlog| backlog.message_bytes())
    }

    /// Appends a room's frame for a member that has a backlog, or would pass its soft bound with
    /// it: makes room by dropping messages, as its policy has it.
    ///
    /// Until then the outbox may grow to `bytes_max` while no send waits: what is queued is the
    /// burst of one turn, and says nothing about the peer.
    ///
    /// # Errors
    ///
    /// [`Full`]: `bytes_max` would be passed all the same, and nothing was queued.
    pub fn push_backlogged(
        &mut self,
        frame: &Bytes,
        bytes_max: usize,
        slow: &SlowLimits,
        stores: &mut Stores,
        metrics: &Counters,
        now: Time,
    ) -> Result<(), Full> {
        // Messages do not give way to an answer.
        let bytes_max = bytes_max + self.answer_bytes();
        let soft = (slow.outbox_bytes + self.answer_bytes()).min(bytes_max);
        if self.backlog.is_none() {
            let waits = self.in_flight > 0;
            let bytes = self.bytes() + frame.len();
            if bytes <= soft || (!waits && bytes <= bytes_max) {
                self.push_shared(frame, stores, now);
                return Ok(());
            }
            self.make_backlog(slow, stores, metrics);
        }
        if self.bytes == 0 {
            self.progress = now;
        }
        let bytes = self.bytes();
        let backlog = self.backlog.as_mut().expect("made above");
        let ahead_bytes = bytes - backlog.bytes();
        drop_stale(backlog, slow, now, metrics);
        backlog.conflate(frame, metrics);
        while ahead_bytes + backlog.bytes() + frame.len() > soft && backlog.drop_oldest(metrics) {}
        let bytes = ahead_bytes + backlog.bytes();
        self.bytes = bytes as u32;
        // The newest message is the one that everybody wants: it stays while the hard bound allows.
        if bytes + frame.len() <= bytes_max {
            backlog.push(Segment::shared(frame, now));
        } else {
            let Heading::Message { room, offset, .. } = heading(frame) else { return Err(Full) };
            if bytes + gap_frame_bytes(room.len(), offset, offset) > bytes_max {
                return Err(Full);
            }
            backlog.push(Segment::shared(frame, now));
            backlog.drop_oldest(metrics);
        }
        self.bytes = (ahead_bytes + backlog.bytes()) as u32;
        if matches!(self.first.data, Data::Empty) {
            self.refill(slow, stores, metrics, now);
        }
        Ok(())
    }

    /// Takes from the backlog what is sent next, after dropping what has become too old. To be
    /// called when a send is over and something is left. Returns whether all that was ahead of the
    /// backlog has been sent, control frames too.
    pub fn refill(
        &mut self,
        slow: &SlowLimits,
        stores: &mut Stores,
        metrics: &Counters,
        now: Time,
    ) -> bool {
        assert!(self.in_flight == 0, "a send is over");
        if self.backlog.is_none() && self.is_stale(slow, now) {
            self.make_backlog(slow, stores, metrics);
        }
        let Some(mut backlog) = self.backlog.take() else { return false };
        let ahead_bytes = self.bytes() - backlog.bytes();
        drop_stale(&mut backlog, slow, now, metrics);
        self.bytes = (ahead_bytes + backlog.bytes()) as u32;
        let mut segments = self.segments().count();
        let mut bytes = ahead_bytes;
        while segments < REFILL_SEGMENTS && bytes < REFILL_BYTES {
            let Some(segment) = backlog.pop(metrics) else { break };
            bytes += segment.len();
            segments += 1;
            self.push(segment, stores);
        }
        if !backlog.is_empty() {
            self.backlog = Some(backlog);
        }
        ahead_bytes == 0
    }

    /// Gives up dropping: all of the backlog is to be sent, before whatever comes now.
    pub fn settle(&mut self, stores: &mut Stores, metrics: &Counters) {
        let Some(mut backlog) = self.backlog.take() else { return };
        while let Some(segment) = backlog.pop(metrics) {
            self.push(segment, stores);
        }
    }

    /// Makes a backlog of everything that is neither in flight nor sent in part.
    #[cold]
    fn make_backlog(&mut self, slow: &SlowLimits, stores: &mut Stores, metrics: &Counters) {
        let mut backlog = Box::new(Backlog::new(slow.policy == SlowPolicy::Conflate));
        let mut ahead_bytes = self.bytes();
        // Frames of a backlog are the rooms' but for a few.
        let mut given_back = 0;
        let mut hold_back = |segment: Segment| {
            ahead_bytes -= segment.len();
            given_back += segment.owned_bytes();
            if let Data::Shared(frame) = &segment.data {
                backlog.conflate(frame, metrics);
            }
            backlog.push(segment);
        };
        let partial = usize::from(self.first.start > 0 || matches!(self.first.data, Data::Empty));
        let kept = usize::from(self.in_flight).max(partial);
        if kept == 0 {
            hold_back(std::mem::take(&mut self.first));
        }
        if let Some(queue) = &mut self.rest {
            queue.drain(kept.saturating_sub(1).min(queue.len())..).for_each(hold_back);
        }
        stores.account.give_back(Drawer::Outboxes, given_back);
        self.keep_no_empty_queue(stores);
        self.bytes = (ahead_bytes + backlog.bytes()) as u32;
        self.backlog = Some(backlog);
    }

    /// Whether what goes next has waited longer than the policy lets a message wait.
    fn is_stale(&self, slow: &SlowLimits, now: Time) -> bool {
        let drops = slow.policy != SlowPolicy::Disconnect && !slow.age.is_zero();
        let is_frame =
            |segment: &&Segment| segment.start == 0 && matches!(segment.data, Data::Shared(_));
        let next = self.segments().find(is_frame);
        drops && next.is_some_and(|segment| segment.waited(now) >= slow.age)
    }

    /// Appends part of a receive buffer. Only for a peer that keeps up: see [`Outbox::unlend`].
    pub fn push_lent(&mut self, buffer: Buffer, stores: &mut Stores, now: Time) {
        if buffer.is_empty() {
            return;
        }
        if self.bytes == 0 {
            self.progress = now;
        }
        self.bytes += buffer.len() as u32;
        self.lent = true;
        assert!(self.backlog.is_none(), "members of rooms are not lent buffers");
        self.push(Segment { data: Data::Lent(buffer), start: 0, queued_ms: 0 }, stores);
    }

    /// Whether part of a receive buffer may be queued: it was, since the outbox was last empty.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// All that is to be sent next, when it is in one piece, as it nearly always is.
    pub fn only_part(&self) -> Option<IoSlice<'_>> {
        self.first.whole().filter(|_| self.rest.is_none()).map(IoSlice::new)
    }

    /// Copies what is queued out of receive buffers, so that they go home: the peer does not keep
    /// up, and the buffers belong to everybody.
    pub fn unlend(&mut self, stores: &mut Stores) {
        assert!(self.in_flight == 0, "the ring still reads the buffers");
        self.lent = false;
        let Stores { spares, account, .. } = stores;
        let rest = self.rest.iter_mut().flat_map(|rest| rest.iter_mut());
        for segment in std::iter::once(&mut self.first).chain(rest) {
            if let Data::Lent(buffer) = &segment.data {
                let mut vector = spares.take(buffer.len());
                vector.extend_from_slice(buffer);
                account.draw(Drawer::Outboxes, vector.capacity());
                *segment = Segment { data: Data::Owned(vector), start: 0, queued_ms: 0 };
            }
        }
    }

    /// Fills `parts` with what is to be sent next, up to its length and `bytes_max`. Returns how many
    /// parts.
    pub fn take_parts<'a>(&'a self, parts: &mut [IoSlice<'a>], bytes_max: usize) -> usize {
        assert!(self.in_flight == 0, "one send at a time");
        let mut count = 0;
        let mut bytes = 0;
        for (bytes_of_part, part) in self.segments().flat_map(Segment::parts).zip(parts) {
            if bytes >= bytes_max {
                break;
            }
            *part = IoSlice::new(bytes_of_part);
            bytes += part.len();
            count += 1;
        }
        count
    }

    /// Marks the first `count` parts as in flight, and with them the segments that they belong to.
    pub fn mark_in_flight(&mut self, count: usize) {
        let mut parts = 0;
        let reached = |segment: &&Segment| {
            let before = parts;
            parts += segment.parts().take(count).count();
            before < count
        };
        self.in_flight = self.segments().take_while(reached).count() as u8;
    }

    /// The send in flight is over and the socket took `count` bytes. Returns whether that was all
    /// of the segments in flight.
    pub fn sent(&mut self, mut count: usize, stores: &mut Stores, now: Time) -> bool {
        let in_flight = self.segments().take(usize::from(self.in_flight));
        let whole = in_flight.map(Segment::len).sum::<usize>() == count;
        self.in_flight = 0;
        if count == 0 {
            return whole;
        }
        self.progress = now;
        assert!(count <= self.bytes(), "the socket took more than was queued");
        self.bytes -= count as u32;
        self.lent &= self.bytes > 0;
        while count > 0 {
            let len = self.first.len();
            if count < len {
                self.first.advance(count);
                break;
            }
            count -= len;
            self.pop(stores);
        }
        whole
    }

    /// Forgets everything.
    ///
    /// # Panics
    ///
    /// When a send is in flight: the ring still reads the bytes.
    pub fn clear(&mut self, stores: &mut Stores) {
        assert!(self.in_flight == 0, "the ring still reads the bytes");
        while !matches!(self.first.data, Data::Empty) {
            self.pop(stores);
        }
        self.backlog = None;
        self.answers = 0;
        self.lent = false;
        self.bytes = 0;
    }

    fn segments(&self) -> impl Iterator<Item = &Segment> {
        std::iter::once(&self.first)
            .filter(|first| !matches!(first.data, Data::Empty))
            .chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    fn tail(&mut self) -> &mut Segment {
        match &mut self.rest {
            Some(rest) => rest.back_mut().expect("a queue that is kept is not empty"),
            None => &mut self.first,
        }
    }

    /// Whether more bytes may be added to the last segment.
    fn tail_is_open(&mut self) -> bool {
        let count = 1 + self.rest.as_ref().map_or(0, |rest| rest.len());
        if usize::from(self.in_flight) >= count {
            return false;
        }
        matches!(&self.tail().data, Data::Owned(vector) if vector.len() < SEGMENT_BYTES)
    }

    /// A `write` that wrote nothing leaves no segment behind.
    fn drop_empty_tail(&mut self, stores: &mut Stores) {
        if !matches!(&self.tail().data, Data::Owned(vector) if vector.is_empty()) {
            return;
        }
        let segment = match &mut self.rest {
            Some(rest) => rest.pop_back().expect("not empty"),
            None => std::mem::take(&mut self.first),
        };
        segment.recycle(stores);
        self.keep_no_empty_queue(stores);
    }

    fn push(&mut self, segment: Segment, stores: &mut Stores) {
        stores.account.draw(Drawer::Outboxes, segment.owned_bytes());
        if matches!(self.first.data, Data::Empty) {
            self.first = segment;
            return;
        }
        self.rest.get_or_insert_with(|| stores.queues.pop().unwrap_or_default()).push_back(segment);
    }

    fn pop(&mut self, stores: &mut Stores) {
        let next = self.rest.as_mut().and_then(|rest| rest.pop_front()).unwrap_or_default();
        let segment = std::mem::replace(&mut self.first, next);
        if let Data::Answer(answer) = &segment.data {
            self.answers = self.answers.saturating_sub(answer_units(answer));
        }
        segment.recycle(stores);
        self.keep_no_empty_queue(stores);
    }

    fn keep_no_empty_queue(&mut self, stores: &mut Stores) {
        if self.rest.as_ref().is_some_and(|rest| rest.is_empty()) {
            let queue = self.rest.take().expect("looked at above");
            if stores.queues.len() < QUEUES_KEPT && queue.capacity() <= 64 {
                stores.queues.push(queue);
            }
        }
    }
}

/// Bytes of a frame that nobody else holds; 0 when somebody does.
pub(super) fn frame_bytes(frame: &Bytes) -> usize {
    if frame.is_unique() { frame.len() } else { 0 }
}

fn answer_units(answer: &Answer) -> u16 {
    u16::try_from(answer.bytes() / ANSWER_UNIT_BYTES).unwrap_or(u16::MAX)
}

fn drop_stale(backlog: &mut Backlog, slow: &SlowLimits, now: Time, metrics: &Counters) {
    if !slow.age.is_zero() {
        backlog.drop_stale(milliseconds(now), slow.age.as_millis() as u32, metrics);
    }
}

/// Wraps after 49 days, longer than anything waits in an outbox.
fn milliseconds(now: Time) -> u32 {
    (now.0 / 1_000_000) as u32
}

impl Segment {
    fn shared(bytes: &Bytes, now: Time) -> Segment {
        Segment { data: Data::Shared(bytes.clone()), start: 0, queued_ms: milliseconds(now) }
    }

    fn waited(&self, now: Time) -> Duration {
        Duration::from_millis(milliseconds(now).wrapping_sub(self.queued_ms).into())
    }

    /// Its bytes; `None` of an answer, which is in several parts.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Empty => Some(&[]),
            Data::Owned(vector) => Some(&vector[self.start as usize..]),
            Data::Shared(bytes) => Some(bytes),
            Data::Lent(buffer) => Some(buffer),
            Data::Answer(_) => None,
        }
    }

    /// Its bytes, part by part.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let answer = match &self.data {
            Data::Answer(answer) => Some(answer),
            _ => None,
        };
        self.whole().into_iter().chain(answer.into_iter().flat_map(Answer::parts))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        self.whole().expect("an answer is in several parts")
    }

    /// Bytes that have not been sent.
    pub(super) fn len(&self) -> usize {
        match &self.data {
            Data::Empty => 0,
            Data::Owned(vector) => vector.len() - self.start as usize,
            Data::Shared(bytes) => bytes.len(),
            Data::Lent(buffer) => buffer.len(),
            Data::Answer(answer) => answer.bytes() - self.start as usize,
        }
    }

    /// Bytes on the heap that are this segment's alone. A frame that others hold as well is its
    /// room's, whose history counts it; where it is nobody's any more but of several slow members, it
    /// is not counted.
    pub(super) fn held_bytes(&self) -> usize {
        match &self.data {
            Data::Owned(vector) => vector.capacity(),
            Data::Shared(bytes) => frame_bytes(bytes),
            // Of the pieces that it shares it cannot say cheaply whose they are.
            Data::Answer(answer) => answer.held_bytes(),
            Data::Empty | Data::Lent(_) => 0,
        }
    }

    fn advance(&mut self, count: usize) {
        self.start += count as u32;
        match &mut self.data {
            Data::Empty | Data::Owned(_) => {}
            Data::Shared(bytes) => bytes.advance(count),
            Data::Lent(buffer) => drop(buffer.split_to(count)),
            Data::Answer(answer) => answer.advance(count),
        }
    }

    /// Bytes that were drawn for it: of its own vector, or of an answer what nobody shares.
    fn owned_bytes(&self) -> usize {
        match &self.data {
            Data::Owned(vector) => vector.capacity(),
            Data::Answer(answer) => answer.held_bytes(),
            Data::Empty | Data::Shared(_) | Data::Lent(_) => 0,
        }
    }

    fn recycle(self, stores: &mut Stores) {
        stores.account.give_back(Drawer::Outboxes, self.owned_bytes());
        if let Data::Owned(vector) = self.data {
            stores.spares.give(vector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::buffers::Pool;
    use crate::ring::sim::Random;

    const NOW: Time = Time(1);

    fn bytes_of(outbox: &Outbox) -> Vec<u8> {
        outbox.segments().flat_map(Segment::parts).flatten().copied().collect()
    }

    #[test]
    fn what_is_held_is_counted_and_what_is_shared_is_not() {
        let pool = Pool::new(1, 1024);
        let mut stores = Stores::default();
        let mut outbox = Outbox::default();
        assert_eq!(outbox.held_bytes(), (0, 0));

        outbox.write(&mut stores, NOW, |out| out.extend_from_slice(&[1; 100]));
        let (owned, _) = outbox.held_bytes();
        assert!((100..=512).contains(&owned), "{owned}");
        outbox.push_lent(pool.fill(0, &[2; 300], false), &mut stores, NOW);
        let queue = queue_bytes(outbox.rest.as_ref().expect("two segments"));
        assert_eq!(outbox.held_bytes(), (owned + queue, 2), "the buffer is the shard's");

        let frame = Bytes::from(vec![3; 1000]);
        outbox.push_shared(&frame, &mut stores, NOW);
        assert_eq!(outbox.held_bytes(), (owned + queue, 3), "the frame is the room's");
        drop(frame);
        assert_eq!(outbox.held_bytes(), (owned + queue + 1000, 3));

        outbox.clear(&mut stores);
        assert_eq!(outbox.held_bytes(), (0, 0));
        let list = stores.queues.capacity() * size_of::<Box<VecDeque<Segment>>>();
        assert_eq!(stores.held_bytes(), owned + queue + list);
    }

    #[test]
    fn of_many_segments_the_first_stand_for_all() {
        let mut stores = Stores::default();
        let mut outbox = Outbox::default();
        let count = 3 * SEGMENTS_MEASURED;
        for _ in 0..count {
            outbox.push_shared(&Bytes::from(vec![3; 1000]), &mut stores, NOW);
        }
        let queue = queue_bytes(outbox.rest.as_ref().expect("many segments"));
        assert_eq!(outbox.held_bytes(), (count * 1000 + queue, SEGMENTS_MEASURED));
        assert!(queue >= count * size_of::<Segment>());
    }

    /// Random operations against a plain vector of bytes.
    #[test]
    fn behaves_as_a_queue_of_bytes() {
        let mut random = Random::new(7);
        let mut next = |below: u64| random.below(below);
        let pool = Pool::new(64, 64 * 1024);
        let mut stores = Stores::default();
        let mut outbox = Outbox::default();
        let mut model: Vec<u8> = Vec::new();
        let mut in_flight: Option<usize> = None;
        for step in 0..3_000u64 {
            let fill = vec![step as u8; 1 + next(300) as usize];
            match next(8) {
                0 | 1 => {
                    outbox.write(&mut stores, NOW, |out| out.extend_from_slice(&fill));
                    model.extend_from_slice(&fill);
                }
                2 => {
                    outbox.push_shared(&Bytes::from(fill.clone()), &mut stores, NOW);
                    model.extend_from_slice(&fill);
                }
                3 if pool.free_percent() > 0 => {
                    let id = (0..64).find(|id| pool.room(*id) >= fill.len()).unwrap_or(0);
                    if pool.room(id) < fill.len() {
                        continue;
                    }
                    outbox.push_lent(pool.fill(id, &fill, true), &mut stores, NOW);
                    model.extend_from_slice(&fill);
                }
                4 if in_flight.is_none() && !outbox.is_empty() => {
                    let mut parts = [IoSlice::new(&[]); 8];
                    let count = outbox.take_parts(&mut parts, 4000);
                    let bytes: Vec<u8> = parts[..count].iter().flat_map(|p| p.to_vec()).collect();
                    assert_eq!(bytes, model[..bytes.len()]);
                    in_flight = Some(bytes.len());
                    outbox.mark_in_flight(count);
                }
                5 => {
                    if let Some(len) = in_flight.take() {
                        // Mostly all of it, so that the queue stays short.
                        let took = if next(4) > 0 { len } else { next(len as u64 + 1) as usize };
                        outbox.sent(took, &mut stores, NOW);
                        model.drain(..took);
                    }
                }
                6 => {
                    let frame = Bytes::from(fill.clone());
                    let cuts = [next(frame.len() as u64 + 1) as usize, frame.len()];
                    let pieces = [frame.slice(..cuts[0]), frame.slice(cuts[0]..cuts[1])];
                    let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
                    outbox.push_answer(Answer::new(pieces, 0), &mut stores, NOW);
                    model.extend_from_slice(&fill);
                }
                _ if in_flight.is_none() => outbox.unlend(&mut stores),
                _ => {}
            }
            assert_eq!(outbox.bytes(), model.len());
            assert_eq!(bytes_of(&outbox), model);
        }
        if in_flight.take().is_some() {
            outbox.sent(0, &mut stores, NOW);
        }
        outbox.clear(&mut stores);
        assert!(outbox.is_empty() && outbox.rest.is_none());
        assert_eq!(pool.loans(), 0);
    }

    /// An answer is on top of what may wait besides, until it is sent, and only its own bytes are drawn.
    #[test]
    fn an_answer_is_on_top_of_the_bound_until_it_is_sent() {
        let mut stores = Stores::default();
        let mut outbox = Outbox::default();
        let (own, kept) = (Bytes::from(vec![1; 100]), Bytes::from(vec![2; 1 << 20]));
        let answer = Answer::new(vec![own, kept.clone()], 100);
        let held = answer.held_bytes();
        assert!(held < 200, "{held}");
        outbox.push_answer(answer, &mut stores, NOW);
        assert_eq!(outbox.bytes(), 100 + (1 << 20));
        assert_eq!(outbox.answer_bytes(), 1 << 20);
        assert_eq!(stores.account.held_bytes(Drawer::Outboxes), held as u64);
        assert_eq!(outbox.held_bytes().0, held);

        let mut parts = [IoSlice::new(&[]); 4];
        assert_eq!(outbox.take_parts(&mut parts, usize::MAX), 2);
        assert_eq!(parts[1].as_ptr(), kept.as_ptr());
        outbox.mark_in_flight(2);
        outbox.write(&mut stores, NOW, |out| out.extend_from_slice(b"behind"));
        outbox.sent(1000, &mut stores, NOW);
        assert_eq!(outbox.answer_bytes(), 1 << 20);
        outbox.mark_in_flight(1);
        outbox.sent(100 + (1 << 20) - 1000, &mut stores, NOW);
        assert_eq!((outbox.answer_bytes(), bytes_of(&outbox)), (0, b"behind".to_vec()));
    }

    #[test]
    fn bytes_in_flight_stay_where_they_are() {
        let mut stores = Stores::default();
        let mut outbox = Outbox::default();
        outbox.write(&mut stores, NOW, |out| out.extend_from_slice(b"first"));
        let mut parts = [IoSlice::new(&[]); 4];
        assert_eq!(outbox.take_parts(&mut parts, usize::MAX), 1);
        let address = parts[0].as_ptr();
        outbox.mark_in_flight(1);
        for _ in 0..100 {
            outbox.write(&mut stores, NOW, |out| out.extend_from_slice(&[0; 4000]));
        }
        assert_eq!(outbox.first.bytes().as_ptr(), address);
        assert_eq!(outbox.first.bytes(), b"first");
    }

    #[test]
    fn an_empty_outbox_owns_nothing() {
        let mut stores = Stores::default();
        let mut outbox = Outbox::default();
        outbox.write(&mut stores, NOW, |_| {});
        assert!(matches!(outbox.first.data, Data::Empty));
        assert!(size_of::<Outbox>() <= 80, "{}", size_of::<Outbox>());
    }
}
