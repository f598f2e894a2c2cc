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

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::ring::Buffer;
use crate::spares::Spares;
use crate::time::Time;

/// What one shard keeps so that its outboxes need not allocate.
#[derive(Default)]
pub struct Stores {
    /// Byte vectors.
    pub spares: Spares,
    // Boxed, so that an outbox with one segment, which nearly all are, has eight bytes for more.
    #[allow(clippy::vec_box)]
    queues: Vec<Box<VecDeque<Segment>>>,
}

/// Queues kept for the next outbox that needs one; more are freed.
const QUEUES_KEPT: usize = 1024;

/// A segment is closed for more bytes at this size, so that a vector taken from [`Spares`] can go
/// back there.
const SEGMENT_BYTES: usize = 16 * 1024;

/// Bytes owed to one peer.
#[derive(Default)]
pub struct Outbox {
    first: Segment,
    #[allow(clippy::box_collection)]
    rest: Option<Box<VecDeque<Segment>>>,
    bytes: usize,
    /// Segments at the front that the ring is sending.
    in_flight: u8,
    /// Whether part of a receive buffer may be among the segments.
    lent: bool,
    /// When the peer last took something, or when the first byte was queued.
    progress: Time,
}

#[derive(Default)]
struct Segment {
    data: Data,
    /// Where the unsent part of `Data::Owned` begins; 0 for the others, which can be cut.
    start: u32,
}

#[derive(Default)]
enum Data {
    #[default]
    Empty,
    Owned(Vec<u8>),
    Shared(Bytes),
    Lent(Buffer),
}

impl Outbox {
    /// Bytes that have not been taken by the socket.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// When the peer last took something; meaningful while the outbox is not empty.
    pub fn progress(&self) -> Time {
        self.progress
    }

    /// Appends bytes of our own: `write` adds them to the vector that it is given and leaves what
    /// is there alone.
    pub fn write(&mut self, stores: &mut Stores, now: Time, write: impl FnOnce(&mut Vec<u8>)) {
        if self.bytes == 0 {
            self.progress = now;
        }
        if !self.tail_is_open() {
            let vector = stores.spares.take(512);
            self.push(Segment { data: Data::Owned(vector), start: 0 }, stores);
        }
        let Data::Owned(vector) = &mut self.tail().data else { unreachable!("opened above") };
        let before = vector.len();
        write(vector);
        let added = vector.len() - before;
        self.bytes += added;
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
        self.bytes += bytes.len();
        self.push(Segment { data: Data::Shared(bytes.clone()), start: 0 }, stores);
    }

    /// Appends part of a receive buffer. Only for a peer that keeps up: see [`Outbox::unlend`].
    pub fn push_lent(&mut self, buffer: Buffer, stores: &mut Stores, now: Time) {
        if buffer.is_empty() {
            return;
        }
        if self.bytes == 0 {
            self.progress = now;
        }
        self.bytes += buffer.len();
        self.lent = true;
        self.push(Segment { data: Data::Lent(buffer), start: 0 }, stores);
    }

    /// Whether part of a receive buffer may be queued: it was, since the outbox was last empty.
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// All that is queued, when it is in one piece, as it nearly always is.
    pub fn only_part(&self) -> Option<IoSlice<'_>> {
        self.rest.is_none().then(|| IoSlice::new(self.first.bytes()))
    }

    /// Copies what is queued out of receive buffers, so that they go home: the peer does not keep
    /// up, and the buffers belong to everybody.
    pub fn unlend(&mut self, stores: &mut Stores) {
        assert!(self.in_flight == 0, "the ring still reads the buffers");
        self.lent = false;
        let Stores { spares, .. } = stores;
        let rest = self.rest.iter_mut().flat_map(|rest| rest.iter_mut());
        for segment in std::iter::once(&mut self.first).chain(rest) {
            if let Data::Lent(buffer) = &segment.data {
                let mut vector = spares.take(buffer.len());
                vector.extend_from_slice(buffer);
                segment.data = Data::Owned(vector);
            }
        }
    }

    /// Fills `parts` with what is to be sent next, up to its length and `bytes_max`, and marks it
    /// as in flight. Returns how many parts.
    pub fn take_parts<'a>(&'a self, parts: &mut [IoSlice<'a>], bytes_max: usize) -> usize {
        assert!(self.in_flight == 0, "one send at a time");
        let mut count = 0;
        let mut bytes = 0;
        for (segment, part) in self.segments().zip(parts) {
            if bytes >= bytes_max {
                break;
            }
            *part = IoSlice::new(segment.bytes());
            bytes += part.len();
            count += 1;
        }
        count
    }

    /// Marks the first `count` segments as in flight.
    pub fn mark_in_flight(&mut self, count: usize) {
        self.in_flight = count as u8;
    }

    /// The send in flight is over and the socket took `count` bytes. Returns whether that was all
    /// of it.
    pub fn sent(&mut self, mut count: usize, stores: &mut Stores, now: Time) -> bool {
        let in_flight = self.segments().take(usize::from(self.in_flight));
        let whole = in_flight.map(|segment| segment.bytes().len()).sum::<usize>() == count;
        self.in_flight = 0;
        if count == 0 {
            return whole;
        }
        self.progress = now;
        assert!(count <= self.bytes, "the socket took more than was queued");
        self.bytes -= count;
        self.lent &= self.bytes > 0;
        while count > 0 {
            let len = self.first.bytes().len();
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
        if matches!(self.first.data, Data::Empty) {
            self.first = segment;
            return;
        }
        self.rest.get_or_insert_with(|| stores.queues.pop().unwrap_or_default()).push_back(segment);
    }

    fn pop(&mut self, stores: &mut Stores) {
        let next = self.rest.as_mut().and_then(|rest| rest.pop_front()).unwrap_or_default();
        std::mem::replace(&mut self.first, next).recycle(stores);
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

impl Segment {
    fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Empty => &[],
            Data::Owned(vector) => &vector[self.start as usize..],
            Data::Shared(bytes) => bytes,
            Data::Lent(buffer) => buffer,
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.data {
            Data::Empty => {}
            Data::Owned(_) => self.start += count as u32,
            Data::Shared(bytes) => bytes.advance(count),
            Data::Lent(buffer) => drop(buffer.split_to(count)),
        }
    }

    fn recycle(self, stores: &mut Stores) {
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
        outbox.segments().flat_map(|segment| segment.bytes().to_vec()).collect()
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
            match next(7) {
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
