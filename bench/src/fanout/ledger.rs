//! Who is to get what, who got it, and when: the accounting of a fan-out. No connections, no clock.
//!
//! Number k of the schedule is published in room `k % rooms`; it is that room's message number
//! `k / rooms`, and the room's publishers take turns. The messages of one publisher are one stream:
//! they have an order, and each member has to get them in it. The stamp in a message says its room,
//! its number and when it was due.

use std::collections::{HashSet, VecDeque};

use hdrhistogram::Histogram;

use super::dialect::Role;
use super::slow::Slow;
use crate::histogram;
use crate::open_loop::Schedule;

/// Who is where.
///
/// Memberships are numbered through, `members` to a room, and dealt out to the connections in
/// turn: membership m is connection `m % connections`. With no fewer connections than a room has
/// members, no connection is in a room twice. Publishers with connections of their own come behind
/// those, `publishers` to a room; otherwise they are the first members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) rooms: u32,
    /// Of each room.
    pub(crate) members: u32,
    /// That the members are spread over.
    pub(crate) connections: u32,
    /// Of each room.
    pub(crate) publishers: u32,
    /// Publishers have connections of their own.
    pub(crate) apart: bool,
    /// A publisher that is a member gets its own messages.
    pub(crate) hears_itself: bool,
}

impl Shape {
    pub(crate) fn memberships(&self) -> u32 {
        self.rooms * self.members
    }

    /// Connections in all.
    pub(crate) fn clients(&self) -> u32 {
        self.connections + if self.apart { self.rooms * self.publishers } else { 0 }
    }

    pub(crate) fn connection_of(&self, membership: u32) -> u32 {
        membership % self.connections
    }

    /// The membership that a connection has in a room, if it has one.
    pub(crate) fn membership_of(&self, connection: u32, room: u32) -> Option<u32> {
        let first = room.checked_mul(self.members)?;
        let turns = (connection + self.connections - first % self.connections) % self.connections;
        let is_member = connection < self.connections && room < self.rooms && turns < self.members;
        is_member.then_some(first + turns)
    }

    /// The memberships of a connection.
    pub(crate) fn memberships_of(&self, connection: u32) -> impl Iterator<Item = u32> + use<> {
        let end = if connection < self.connections { self.memberships() } else { 0 };
        (connection..end).step_by(self.connections as usize)
    }

    /// The connection of a room's publisher.
    pub(crate) fn publisher(&self, room: u32, publisher: u32) -> u32 {
        if self.apart {
            self.connections + room * self.publishers + publisher
        } else {
            self.connection_of(room * self.members + publisher)
        }
    }

    pub(crate) fn role(&self, connection: u32) -> Role {
        match connection.checked_sub(self.connections) {
            None => Role::Member { room: connection / self.members },
            Some(publisher) => Role::Publisher { room: publisher / self.publishers },
        }
    }

    /// Whether a member is to get what a publisher of its room says.
    pub(crate) fn is_for(&self, membership: u32, publisher: u32) -> bool {
        self.apart || self.hears_itself || membership % self.members != publisher
    }

    /// Deliveries of one message, if nobody is slow.
    pub(crate) fn deliveries(&self) -> u32 {
        self.members - u32::from(!self.apart && !self.hears_itself)
    }

    /// The room of a message, and its number there.
    fn split(&self, number: u64) -> (u32, u32) {
        let rooms = u64::from(self.rooms);
        ((number % rooms) as u32, (number / rooms) as u32)
    }
}

/// What was published and how far it has come.
pub(crate) struct Ledger {
    pub(crate) shape: Shape,
    pub(crate) schedule: Schedule,
    /// By membership and publisher: the number of the message of that stream that comes next.
    next_sequence: Vec<u32>,
    /// Stream, as above, and number of messages that others overtook.
    skipped: HashSet<(u32, u32)>,
    /// The first message that has not reached every member, and whom it and those after it have
    /// reached: base + outstanding.len() is the next to be published.
    base: u64,
    outstanding: VecDeque<u32>,
    filler: Vec<u8>,
    /// Of all members but the slow ones.
    pub(crate) counts: Counts,
    pub(crate) times: Times,
    pub(crate) slow: Option<Slow>,
}

/// Of the whole run, warm-up included, where it does not say otherwise.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) delivered: u64,
    pub(crate) missing: u64,
    pub(crate) duplicates: u64,
    pub(crate) reordered: u64,
    pub(crate) faults: u64,
    pub(crate) never_published: u64,
    /// Within the measured time.
    pub(crate) published_in_time: u64,
    pub(crate) delivered_in_time: u64,
}

impl Counts {
    /// Whether every message reached every member once and in order.
    pub(crate) fn is_ok(&self) -> bool {
        self.missing + self.duplicates + self.reordered + self.faults == 0
    }
}

/// From when a message was due, in nanoseconds; of messages of the measured time.
pub(crate) struct Times {
    pub(crate) each: Histogram<u64>,
    pub(crate) first: Histogram<u64>,
    pub(crate) median: Histogram<u64>,
    pub(crate) last: Histogram<u64>,
    /// Until it was sent.
    pub(crate) lag: Histogram<u64>,
}

/// What a message was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// One of the schedule.
    Message,
    /// One that was to find out whether this membership has begun.
    Probe { membership: u32 },
}

/// The stamp takes so much of a message.
pub(crate) const MESSAGE_BYTES_MIN: u32 = 32;

/// The number of messages that are not of the schedule.
const PROBE: u32 = u32::MAX;

/// Messages, and bytes of them, that have not reached every member. Beyond, the run is ended.
const OUTSTANDING_MAX: usize = 1 << 20;
const OUTSTANDING_BYTES_MAX: usize = 256 << 20;
/// Deliveries that were skipped and may still come. Beyond, a late one counts as a duplicate.
const SKIPPED_MAX: usize = 1 << 20;

impl Ledger {
    /// Nothing is published yet. `size` is the bytes of a message.
    pub(crate) fn new(shape: Shape, schedule: Schedule, size: u32, slow: Option<Slow>) -> Ledger {
        let new = histogram::new;
        Ledger {
            shape,
            schedule,
            next_sequence: vec![0; (shape.memberships() * shape.publishers) as usize],
            skipped: HashSet::new(),
            base: 0,
            outstanding: VecDeque::new(),
            filler: (0..size).map(|i| b'a' + (i % 26) as u8).collect(),
            counts: Counts::default(),
            times: Times { each: new(), first: new(), median: new(), last: new(), lag: new() },
            slow,
        }
    }

    /// Of each message.
    pub(crate) fn message_bytes(&self) -> usize {
        self.filler.len()
    }

    /// Whether everything has reached everybody.
    pub(crate) fn is_even(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Whether so much is outstanding that the run makes no sense any more.
    pub(crate) fn fell_behind(&self) -> bool {
        let max = OUTSTANDING_MAX.min(OUTSTANDING_BYTES_MAX / self.filler.len()).max(1);
        self.outstanding.len() >= max
    }

    /// Whether a slow member, whose connection is open, has not got the last messages.
    pub(crate) fn slow_are_behind(&self) -> bool {
        self.slow.as_ref().is_some_and(|slow| {
            let open = slow.connections.iter().filter(|connection| !slow.has_ended(**connection));
            open.flat_map(|connection| self.shape.memberships_of(*connection))
                .any(|membership| self.is_behind(membership))
        })
    }

    /// Whether a member has not got the last messages.
    pub(crate) fn is_behind(&self, membership: u32) -> bool {
        let publishers = self.shape.publishers;
        (0..publishers).any(|publisher| {
            let next = self.next_sequence[(membership * publishers + publisher) as usize];
            u64::from(next) < self.in_stream(membership, publisher)
        })
    }

    /// How many messages a publisher has published for this member.
    fn in_stream(&self, membership: u32, publisher: u32) -> u64 {
        let shape = self.shape;
        if !shape.is_for(membership, publisher) {
            return 0;
        }
        let published = self.base + self.outstanding.len() as u64;
        // The room's first message, and the publisher's, are so many numbers behind.
        let behind =
            u64::from(membership / shape.members) + u64::from(publisher) * u64::from(shape.rooms);
        let of_each = u64::from(shape.rooms) * u64::from(shape.publishers);
        published.saturating_sub(behind).div_ceil(of_each)
    }

    /// Deliveries of a message in this room, to those who read.
    fn deliveries(&self, room: u32) -> u32 {
        self.shape.deliveries() - self.slow.as_ref().map_or(0, |slow| slow.in_room(room))
    }

    /// Takes note of a message to be published: its room and the connection that says it.
    pub(crate) fn publish(&mut self, number: u64) -> (u32, u32) {
        let (room, sequence) = self.shape.split(number);
        self.outstanding.push_back(0);
        (room, self.shape.publisher(room, sequence % self.shape.publishers))
    }

    /// Appends the data of a message.
    pub(crate) fn write(&self, number: u64, data: &mut Vec<u8>) {
        let (room, sequence) = self.shape.split(number);
        let stamp = Stamp { room, sequence, due_ns: self.schedule.due_ns(number) };
        write_stamped(&self.filler, stamp, data);
    }

    /// Appends the data of a message that finds out whether a room's members have joined.
    pub(crate) fn write_probe(&self, room: u32, data: &mut Vec<u8>) {
        write_stamped(&self.filler, Stamp { room, sequence: PROBE, due_ns: 0 }, data);
    }

    /// A connection has got a message, of this room if the server says so. An error is what no
    /// server may send.
    pub(crate) fn on_message(
        &mut self,
        connection: u32,
        room: Option<u32>,
        data: &[u8],
        now_ns: u64,
    ) -> Result<Delivered, &'static str> {
        let Some(stamp) = read_stamp(data) else {
            return self.fault("a message without a stamp");
        };
        let Some(membership) = self.shape.membership_of(connection, room.unwrap_or(stamp.room))
        else {
            return self.fault("a message of a room that this connection did not join");
        };
        let Stamp { sequence, due_ns, .. } = stamp;
        let number = u64::from(sequence) * u64::from(self.shape.rooms) + u64::from(stamp.room);
        let is_probe = sequence == PROBE && due_ns == 0;
        let is_published = number < self.base + self.outstanding.len() as u64
            && due_ns == self.schedule.due_ns(number);
        if stamp.room != room.unwrap_or(stamp.room) || !(is_probe || is_published) {
            return self.fault("a message that nobody published in this room");
        }
        if data.len() != self.filler.len()
            || data[MESSAGE_BYTES_MIN as usize..] != self.filler[MESSAGE_BYTES_MIN as usize..]
        {
            return self.fault("a message that is not what was published");
        }
        if is_probe {
            return Ok(Delivered::Probe { membership });
        }
        let publishers = self.shape.publishers;
        let (publisher, sequence) = (sequence % publishers, sequence / publishers);
        if !self.shape.is_for(membership, publisher) {
            return self.fault("a message that its publisher should not get");
        }
        let stream = membership * publishers + publisher;
        let slow = self.slow.as_mut().filter(|slow| slow.has(connection));
        let is_slow = slow.is_some();
        let counts = match slow {
            Some(slow) => &mut slow.counts,
            None => &mut self.counts,
        };
        let next = &mut self.next_sequence[stream as usize];
        let mut missed = 0;
        if sequence >= *next {
            for skipped in *next..sequence {
                missed += 1;
                if self.skipped.len() < SKIPPED_MAX {
                    self.skipped.insert((stream, skipped));
                }
            }
            *next = sequence + 1;
        } else if self.skipped.remove(&(stream, sequence)) {
            missed = -1;
            counts.reordered += 1;
        } else {
            counts.duplicates += 1;
            return Ok(Delivered::Message);
        }
        counts.missing = counts.missing.saturating_add_signed(missed);
        if is_slow {
            counts.delivered += 1;
            self.on_slow_missed(membership, missed);
        } else {
            self.on_delivered(number, stamp.room, now_ns);
        }
        Ok(Delivered::Message)
    }

    /// A slow member lacks so many more.
    fn on_slow_missed(&mut self, membership: u32, missed: i64) {
        let Some(slow) = self.slow.as_mut().filter(|_| missed != 0) else { return };
        let of_it = slow.missed.entry(membership).or_default();
        *of_it = of_it.saturating_add_signed(missed);
        if *of_it == 0 {
            slow.missed.remove(&membership);
        }
    }

    /// A message has reached one more member.
    fn on_delivered(&mut self, number: u64, room: u32, now_ns: u64) {
        self.counts.delivered += 1;
        self.counts.delivered_in_time += u64::from(self.schedule.is_in_time(now_ns));
        let deliveries = self.deliveries(room);
        // Not below the base: those have reached everybody, and a member counts once.
        let reached = &mut self.outstanding[(number - self.base) as usize];
        *reached += 1;
        let due_ns = self.schedule.due_ns(number);
        if self.schedule.is_measured(due_ns) {
            let ns = now_ns.saturating_sub(due_ns);
            histogram::record(&mut self.times.each, ns);
            if let Some(slow) = &mut self.slow {
                slow.record(due_ns, ns);
            }
            for (histogram, at) in self.times.milestones(deliveries) {
                if *reached == at {
                    histogram::record(histogram, ns);
                }
            }
        }
        while let Some(reached) = self.outstanding.front() {
            let (room, _) = self.shape.split(self.base);
            if *reached < self.deliveries(room) {
                break;
            }
            self.outstanding.pop_front();
            self.base += 1;
        }
    }

    /// Counts what has not been delivered, with the time that it has been out: it would have taken
    /// at least so long.
    pub(crate) fn count_missing(&mut self) {
        let now_ns = self.schedule.now_ns();
        let shape = self.shape;
        for membership in 0..shape.memberships() {
            let is_slow = |slow: &&mut Slow| slow.has(shape.connection_of(membership));
            for publisher in 0..shape.publishers {
                let stream = membership * shape.publishers + publisher;
                let next = self.next_sequence[stream as usize];
                let missed = self.in_stream(membership, publisher) - u64::from(next);
                match self.slow.as_mut().filter(is_slow) {
                    Some(slow) => slow.counts.missing += missed,
                    None => self.counts.missing += missed,
                }
            }
        }
        for (i, reached) in self.outstanding.iter().enumerate() {
            let number = self.base + i as u64;
            let deliveries = self.deliveries(shape.split(number).0);
            let due_ns = self.schedule.due_ns(number);
            if !self.schedule.is_measured(due_ns) {
                continue;
            }
            let ns = now_ns.saturating_sub(due_ns);
            for (histogram, at) in self.times.milestones(deliveries) {
                if *reached < at {
                    histogram::record(histogram, ns);
                }
            }
            for _ in *reached..deliveries {
                histogram::record(&mut self.times.each, ns);
                if let Some(slow) = &mut self.slow {
                    slow.record(due_ns, ns);
                }
            }
        }
    }

    /// Counts a thing that no server may send.
    pub(crate) fn fault<T>(&mut self, text: &'static str) -> Result<T, &'static str> {
        self.counts.faults += 1;
        Err(text)
    }
}

impl Times {
    /// The histograms of messages, and how many members they wait for.
    fn milestones(&mut self, deliveries: u32) -> [(&mut Histogram<u64>, u32); 3] {
        let Times { first, median, last, .. } = self;
        [(first, 1), (median, deliveries.div_ceil(2)), (last, deliveries)]
    }
}

/// What is written over the beginning of a message, in letters: 4 bits each, the highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    room: u32,
    sequence: u32,
    due_ns: u64,
}

/// Appends `filler` with the stamp over its beginning.
fn write_stamped(filler: &[u8], stamp: Stamp, data: &mut Vec<u8>) {
    let start = data.len();
    data.extend_from_slice(filler);
    let halves = [u64::from(stamp.room) << 32 | u64::from(stamp.sequence), stamp.due_ns];
    for (letters, number) in data[start..].chunks_exact_mut(16).zip(halves) {
        for (i, letter) in letters.iter_mut().enumerate() {
            *letter = b'A' + (number >> (60 - 4 * i) & 0xF) as u8;
        }
    }
}

fn read_stamp(data: &[u8]) -> Option<Stamp> {
    let letters: &[u8; MESSAGE_BYTES_MIN as usize] = data.first_chunk()?;
    let number = |letters: &[u8]| {
        letters.iter().try_fold(0u64, |number, letter| match letter {
            b'A'..=b'P' => Some(number << 4 | u64::from(letter - b'A')),
            _ => None,
        })
    };
    let (place, due_ns) = (number(&letters[..16])?, number(&letters[16..])?);
    Some(Stamp { room: (place >> 32) as u32, sequence: place as u32, due_ns })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SHAPE: Shape = Shape {
        rooms: 1,
        members: 2,
        connections: 2,
        publishers: 1,
        apart: false,
        hears_itself: true,
    };

    fn ledger(shape: Shape, published: u64) -> Ledger {
        let schedule = Schedule::new(1000, Duration::ZERO, Duration::from_secs(1));
        let mut ledger = Ledger::new(shape, schedule, 40, None);
        for _ in 0..published {
            let number = ledger.schedule.next_due(u64::MAX).unwrap();
            ledger.publish(number);
        }
        ledger
    }

    #[test]
    fn stamps_are_read_back() {
        let stamp = Stamp { room: 3, sequence: u32::MAX, due_ns: 0x0123_4567_89AB_CDEF };
        let mut data = Vec::new();
        write_stamped(&[b'z'; 40], stamp, &mut data);
        assert_eq!((read_stamp(&data), &data[32..]), (Some(stamp), &b"zzzzzzzz"[..]));
        assert_eq!(read_stamp(&data[..31]), None);
        data[31] = b'Q';
        assert_eq!(read_stamp(&data), None);
    }

    #[test]
    fn memberships_are_found_as_they_were_dealt() {
        for (rooms, members, connections) in
            [(1, 5, 5), (4, 5, 7), (6, 4, 4), (3, 4, 12), (2, 3, 5)]
        {
            let shape = Shape { rooms, members, connections, ..SHAPE };
            let mut found = vec![];
            for (room, connection) in
                (0..rooms + 2).flat_map(|room| (0..connections).map(move |c| (room, c)))
            {
                if let Some(membership) = shape.membership_of(connection, room) {
                    assert_eq!(shape.connection_of(membership), connection);
                    assert_eq!(membership / members, room);
                    assert!(shape.memberships_of(connection).any(|m| m == membership));
                    found.push(membership);
                }
            }
            found.sort_unstable();
            assert_eq!(found, (0..rooms * members).collect::<Vec<_>>());
            let dealt: usize = (0..connections).map(|c| shape.memberships_of(c).count()).sum();
            assert_eq!(dealt, found.len());
        }
    }

    #[test]
    fn publishers_are_the_first_members_or_apart() {
        let shape = Shape { rooms: 3, members: 4, connections: 12, publishers: 2, ..SHAPE };
        assert_eq!([shape.publisher(0, 0), shape.publisher(2, 1), shape.clients()], [0, 9, 12]);
        assert_eq!(shape.role(9), Role::Member { room: 2 });
        let shape = Shape { apart: true, ..shape };
        assert_eq!([shape.publisher(0, 0), shape.publisher(2, 1), shape.clients()], [12, 17, 18]);
        assert_eq!(shape.role(17), Role::Publisher { room: 2 });
        assert_eq!((shape.memberships_of(17).count(), shape.membership_of(17, 2)), (0, None));
    }

    /// Publishes so many messages, delivers what `deliveries` says (connection and number), and
    /// compares missing, duplicate, reordered, and faulty ones.
    #[track_caller]
    fn check_in(shape: Shape, published: u64, deliveries: &[(u32, u64)], want: [u64; 4]) {
        let mut ledger = ledger(shape, published);
        for (connection, number) in deliveries {
            let mut data = Vec::new();
            ledger.write(*number, &mut data);
            let _ = ledger.on_message(*connection, None, &data, number * 1_000_000 + 7);
        }
        ledger.count_missing();
        let Counts { missing, duplicates, reordered, faults, .. } = ledger.counts;
        assert_eq!([missing, duplicates, reordered, faults], want);
        // Nothing leaves the histograms.
        let all = published * u64::from(shape.deliveries());
        assert_eq!((ledger.times.last.len(), ledger.times.each.len()), (published, all));
    }

    #[test]
    fn what_is_not_once_and_in_order_is_counted() {
        let check = |deliveries: &[(u32, u64)], want| check_in(SHAPE, 3, deliveries, want);
        check(&[(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2)], [0, 0, 0, 0]);
        check(&[], [6, 0, 0, 0]);
        check(&[(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)], [1, 0, 0, 0]);
        check(&[(0, 0), (0, 2), (0, 1), (1, 0), (1, 1), (1, 2)], [0, 0, 1, 0]);
        check(&[(0, 0), (0, 1), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 0)], [0, 2, 0, 0]);
        check(&[(0, 2), (0, 1), (0, 1), (0, 0), (1, 0), (1, 1)], [1, 1, 2, 0]);
        check(&[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)], [0, 0, 0, 1]);
    }

    #[test]
    fn each_publisher_has_an_order_of_its_own() {
        // Two publishers in one room, which take turns: even numbers and odd ones.
        let shape = Shape { publishers: 2, ..SHAPE };
        let check = |deliveries: &[(u32, u64)], want| check_in(shape, 4, deliveries, want);
        let whole = |c: u32| [(c, 0), (c, 1), (c, 2), (c, 3)];
        check(&[whole(0), whole(1)].concat(), [0, 0, 0, 0]);
        // One publisher overtakes the other.
        check(&[&whole(0)[..], &[(1, 1), (1, 3), (1, 0), (1, 2)]].concat(), [0, 0, 0, 0]);
        check(&[&whole(0)[..], &[(1, 2), (1, 1), (1, 0), (1, 3)]].concat(), [0, 0, 1, 0]);
        check(&[&whole(0)[..], &[(1, 0), (1, 1), (1, 3)]].concat(), [1, 0, 0, 0]);
        check_in(shape, 3, &[], [6, 0, 0, 0]);
        // The second room's second publisher has had no turn yet.
        check_in(Shape { rooms: 2, connections: 4, ..shape }, 3, &[], [6, 0, 0, 0]);
    }

    #[test]
    fn publishers_that_do_not_hear_themselves() {
        let shape = Shape { members: 3, connections: 3, hears_itself: false, ..SHAPE };
        let others = [(1, 0), (2, 0), (1, 1), (2, 1)];
        check_in(shape, 2, &others, [0, 0, 0, 0]);
        check_in(shape, 2, &[&others[..], &[(0, 0)]].concat(), [0, 0, 0, 1]);
        check_in(shape, 2, &others[..3], [1, 0, 0, 0]);
        let two = Shape { publishers: 2, ..shape };
        check_in(two, 2, &[(1, 0), (2, 0), (0, 1), (2, 1)], [0, 0, 0, 0]);
        check_in(two, 2, &[], [4, 0, 0, 0]);
        check_in(Shape { apart: true, ..shape }, 1, &[(0, 0), (1, 0), (2, 0)], [0, 0, 0, 0]);
    }

    #[test]
    fn slow_members_are_counted_by_themselves() {
        let shape = Shape { members: 4, connections: 4, ..SHAPE };
        let options = crate::options::tests::parse("--slow-percent 50 --slow-seconds 0.5");
        let second = Duration::from_secs(1);
        let mut ledger = ledger(shape, 0);
        ledger.slow = Slow::new(&options, &shape, Duration::ZERO, second).unwrap();
        assert_eq!(ledger.slow.as_ref().unwrap().connections, [1, 2]);
        for _ in 0..3 {
            let number = ledger.schedule.next_due(u64::MAX).unwrap();
            ledger.publish(number);
        }
        let mut deliver = |connection: u32, number: u64| {
            let mut data = Vec::new();
            ledger.write(number, &mut data);
            ledger.on_message(connection, None, &data, number * 1_000_000 + 7).unwrap();
            (ledger.is_even(), ledger.slow_are_behind())
        };
        for (connection, number) in [(0, 0), (3, 0), (0, 1), (3, 1), (0, 2)] {
            assert_eq!(deliver(connection, number), (false, true));
        }
        assert_eq!(deliver(3, 2), (true, true));
        // One gets everything, twice the last and in another order; the other lacks the second.
        assert_eq!([(1, 1), (1, 0), (1, 2), (1, 2)].map(|(c, n)| deliver(c, n).1), [true; 4]);
        assert_eq!([(2, 0), (2, 2)].map(|(c, n)| deliver(c, n).1), [true, false]);
        ledger.count_missing();
        let slow = ledger.slow.as_ref().unwrap();
        let report = slow.report(&shape, |membership| ledger.is_behind(membership));
        for (name, want) in [
            ("members", 2),
            ("caught_up_members_count", 1),
            ("silent_gap_members_count", 1),
            ("behind_members_count", 0),
            ("cut_members_count", 0),
            ("delivered_count", 5),
            ("missing_count", 1),
            ("duplicates_count", 1),
            ("reordered_count", 1),
        ] {
            assert_eq!(report[name], want, "{name} in {report:#}");
        }
        assert!(ledger.counts.is_ok() && ledger.counts.delivered == 6);
        assert_eq!((ledger.times.last.len(), ledger.times.each.len()), (3, 6));
    }

    #[test]
    fn a_message_of_another_room_or_time_is_a_fault() {
        let mut ledger = ledger(Shape { rooms: 2, members: 1, ..SHAPE }, 2);
        let good = Stamp { room: 1, sequence: 0, due_ns: 1_000_000 };
        let mut deliver = |connection: u32, room: Option<u32>, stamp: Stamp, len: usize| {
            let mut data = Vec::new();
            write_stamped(&ledger.filler, stamp, &mut data);
            data.truncate(len);
            ledger.on_message(connection, room, &data, 0)
        };
        for room in [None, Some(1)] {
            assert!(deliver(0, room, good, 40).unwrap_err().contains("did not join"));
            assert!(
                deliver(1, room, Stamp { due_ns: 1, ..good }, 40).unwrap_err().contains("nobody")
            );
            assert!(deliver(1, room, Stamp { sequence: 1, ..good }, 40).is_err());
            assert!(deliver(1, room, good, 39).unwrap_err().contains("not what was published"));
            assert!(deliver(1, room, good, 31).unwrap_err().contains("stamp"));
        }
        assert!(deliver(1, Some(1), Stamp { room: 0, ..good }, 40).unwrap_err().contains("nobody"));
        assert_eq!(deliver(1, None, good, 40), Ok(Delivered::Message));
        let probe = Stamp { room: 1, sequence: PROBE, due_ns: 0 };
        assert_eq!(deliver(1, None, probe, 40), Ok(Delivered::Probe { membership: 1 }));
        assert!(deliver(1, None, Stamp { due_ns: 1, ..probe }, 40).is_err());
    }
}
