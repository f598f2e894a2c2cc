//! Which upstream issued which Engine.IO session, for clients without cookies.
//!
//! A session of long-polling is many requests, and the upgrade to a WebSocket is one more. They
//! come over several TCP connections, which the kernel spreads over the shards, and only the
//! upstream that issued the `sid` knows it. So the shards share the knowledge, each a part: the
//! home of a `sid` is a shard by its hash ([`Sid::home`]), and keeps a [`Sids`].
//!
//! ```text
//!   shard a: answer of an upstream      home of the sid            shard b: request with a sid
//!     | OpenScanner finds the sid        |                                   |
//!     | -- learn (sid, upstream) ------> | insert                            |
//!     | then the answer to the client    |  <---------------- ask (sid) ---- | client is held
//!     |                                  | find -- answer (upstream) ------> | Sticky::Session
//! ```
//!
//! The mail of the first shard is in the home's inbox before the answer is on its way to the client
//! (`shard/sids.rs` says how); so a client that has read its `sid` cannot ask before the home has
//! learnt it, unless the inbox was full.
//!
//! A `sid` that is not known (forgotten, learnt by another gateway, mail refused by a full mailbox)
//! places its client like a new one. With `Hash(HashKey::ClientIp)` or `SocketIoSid` that is where
//! its first request went, in every shard and gateway, unless the client has changed its address
//! or the upstream was at its bound.
//!
//! What was rejected: placing by the address alone, which breaks for clients behind several
//! addresses and puts an office behind one address on one upstream; a copy of the table in every
//! shard, which needs no question but costs the memory as many times and can be late; and writing
//! the upstream into the `sid`, which means changing payload.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use crate::heap::map_bytes;
use crate::time::Time;

use super::address::UpstreamName;
use super::hash::{mix, stable_hash};

/// A session, by its hash. That two of a million share one happens once in 30 million times; the
/// later of the two would be known then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sid(u64);

impl Sid {
    /// The session `sid` of the backend at this index.
    pub fn new(backend: u16, sid: &str) -> Sid {
        Sid(mix(stable_hash(sid.as_bytes()) ^ u64::from(backend)))
    }

    /// The shard that knows it, of `shards` (at least 1).
    pub fn home(self, shards: u16) -> u16 {
        ((u128::from(self.0) * u128::from(shards)) >> 64) as u16
    }
}

/// The sessions that one shard is the home of. At its bound the one that was silent for the
/// longest goes. Costs up to 100 bytes for each that there was at a time; what has grown does not
/// shrink.
#[derive(Debug)]
pub struct Sids {
    entries_max: usize,
    idle_timeout: Duration,
    places: HashMap<Sid, u32, BuildHasherDefault<Turned>>,
    /// A ring of all entries through `next` and `previous`, in the order they were last seen.
    entries: Vec<Entry>,
    /// Places in `entries` that are free, one behind the other through `next`.
    free: u32,
    /// The one that was seen longest ago, and the one seen last.
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
struct Entry {
    sid: Sid,
    upstream: UpstreamName,
    seen: Time,
    next: u32,
    previous: u32,
}

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Entries that an insertion looks at to find expired ones: more than it adds, so that the table
/// shrinks when its sessions end.
const EXPIRED_PER_INSERT: usize = 2;

impl Sids {
    /// Room for `entries_max` sessions (at least 1, below 2^32), each forgotten when nobody asked
    /// for it within `idle_timeout`. A client that polls asks at least once per `pingInterval`.
    pub fn new(entries_max: usize, idle_timeout: Duration) -> Sids {
        assert!((1..NONE as usize).contains(&entries_max), "entries_max is {entries_max}");
        Sids {
            entries_max,
            idle_timeout,
            places: HashMap::default(),
            entries: Vec::new(),
            free: NONE,
            oldest: NONE,
            newest: NONE,
        }
    }

    /// Goes by other limits from here on; they are as for [`Sids::new`]. What is beyond a smaller
    /// bound goes with the insertions that follow, oldest first.
    pub fn set_limits(&mut self, entries_max: usize, idle_timeout: Duration) {
        assert!((1..NONE as usize).contains(&entries_max), "entries_max is {entries_max}");
        self.entries_max = entries_max;
        self.idle_timeout = idle_timeout;
    }

    /// Sessions that are known; some of them may have expired.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of the table, for the memory ledger.
    pub fn held_bytes(&self) -> usize {
        map_bytes(&self.places) + self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// `upstream` has issued `sid`. What was known of it before is replaced.
    pub fn insert(&mut self, sid: Sid, upstream: UpstreamName, now: Time) {
        self.expire(now, EXPIRED_PER_INSERT);
        self.remove(sid);
        // More than one where the bound was lowered.
        for _ in 0..EXPIRED_PER_INSERT {
            if self.places.len() >= self.entries_max {
                self.remove(self.entries[self.oldest as usize].sid);
            }
        }
        let entry = Entry { sid, upstream, seen: now, next: NONE, previous: NONE };
        let place = match self.free {
            NONE => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
            place => {
                self.free = self.entries[place as usize].next;
                self.entries[place as usize] = entry;
                place
            }
        };
        self.places.insert(sid, place);
        self.link(place);
    }

    /// The upstream that issued `sid`, which is thereby seen. `None`: not known, or not any more.
    pub fn find(&mut self, sid: Sid, now: Time) -> Option<UpstreamName> {
        let place = *self.places.get(&sid)?;
        if self.is_expired(place, now) {
            self.remove(sid);
            return None;
        }
        self.unlink(place);
        self.entries[place as usize].seen = now;
        self.link(place);
        Some(self.entries[place as usize].upstream)
    }

    /// Forgets a session; one that is not known is none to forget.
    pub fn remove(&mut self, sid: Sid) {
        let Some(place) = self.places.remove(&sid) else { return };
        self.unlink(place);
        self.entries[place as usize].next = self.free;
        self.free = place;
    }

    /// Forgets what has expired, `count_max` of them at most, and says how many that were.
    pub fn expire(&mut self, now: Time, count_max: usize) -> usize {
        let mut count = 0;
        while count < count_max && self.oldest != NONE && self.is_expired(self.oldest, now) {
            self.remove(self.entries[self.oldest as usize].sid);
            count += 1;
        }
        count
    }

    fn is_expired(&self, place: u32, now: Time) -> bool {
        now.since(self.entries[place as usize].seen) >= self.idle_timeout
    }

    fn link(&mut self, place: u32) {
        let previous = self.newest;
        let entry = &mut self.entries[place as usize];
        (entry.previous, entry.next) = (previous, NONE);
        match previous {
            NONE => self.oldest = place,
            previous => self.entries[previous as usize].next = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Entry { next, previous, .. } = self.entries[place as usize];
        match previous {
            NONE => self.oldest = next,
            previous => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => self.newest = previous,
            next => self.entries[next as usize].previous = previous,
        }
    }
}

/// A [`Sid`] is a hash already, and is only turned. Nobody can fill one bucket with it: only upstreams issue sessions,
/// and draw them at random.
#[derive(Default)]
struct Turned(u64);

impl Hasher for Turned {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a sid is one number");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    /// The top bits are the same for all sessions of one home, and the map marks entries by them.
    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn a_session_lives_as_long_as_somebody_asks() {
        let mut sids = Sids::new(10, 30 * SECOND);
        let (a, b) = (Sid::new(0, "a"), Sid::new(0, "b"));
        sids.insert(a, UpstreamName(1), at(0));
        sids.insert(b, UpstreamName(2), at(0));
        assert_eq!(sids.find(a, at(29)), Some(UpstreamName(1)));
        assert_eq!(sids.find(a, at(58)), Some(UpstreamName(1)));
        assert_eq!(sids.find(b, at(30)), None);
        assert_eq!(sids.len(), 1);
        assert_eq!(sids.find(Sid::new(1, "a"), at(58)), None, "of another backend");
        assert_eq!(sids.expire(at(87), 9), 0);
        assert_eq!(sids.expire(at(88), 9), 1);
        assert!(sids.is_empty());
    }

    #[test]
    fn other_limits_hold_from_then_on() {
        let mut sids = Sids::new(10, 30 * SECOND);
        let names = ["a", "b", "c", "d", "e", "f", "g"].map(|sid| Sid::new(0, sid));
        for (second, sid) in (0..5).zip(names) {
            sids.insert(sid, UpstreamName(1), at(second));
        }
        sids.set_limits(2, 100 * SECOND);
        assert_eq!(sids.find(names[0], at(60)), Some(UpstreamName(1)), "its time is longer now");
        let mut lens = names[5..].iter().map(|sid| {
            sids.insert(*sid, UpstreamName(1), at(61));
            sids.len()
        });
        assert_eq!([lens.next(), lens.next()], [Some(4), Some(3)], "one less each time");
        sids.insert(names[6], UpstreamName(2), at(62));
        sids.insert(Sid::new(0, "h"), UpstreamName(2), at(62));
        assert_eq!(sids.len(), 2);
        assert_eq!(sids.find(names[6], at(62)), Some(UpstreamName(2)));
        sids.set_limits(3, 10 * SECOND);
        assert_eq!(sids.find(names[6], at(73)), None, "its time is shorter now");
    }

    #[test]
    fn at_the_bound_the_most_silent_goes() {
        let mut sids = Sids::new(2, 30 * SECOND);
        let [a, b, c] = ["a", "b", "c"].map(|sid| Sid::new(0, sid));
        sids.insert(a, UpstreamName(1), at(0));
        sids.insert(b, UpstreamName(2), at(1));
        sids.find(a, at(2));
        sids.insert(c, UpstreamName(3), at(3));
        assert_eq!(sids.find(b, at(3)), None);
        // One that is issued again needs no room.
        sids.insert(a, UpstreamName(4), at(4));
        assert_eq!(sids.find(c, at(4)), Some(UpstreamName(3)));
        assert_eq!(sids.find(a, at(4)), Some(UpstreamName(4)));
    }

    #[test]
    fn homes_are_even() {
        for shards in [1, 2, 7, 64] {
            let mut counts = vec![0_u32; usize::from(shards)];
            for number in 0..64_000 {
                counts[usize::from(Sid::new(3, &number.to_string()).home(shards))] += 1;
            }
            let mean = 64_000.0 / f64::from(shards);
            // Six deviations of a binomial distribution.
            let most = 6.0 * mean.sqrt();
            assert!(
                counts.iter().all(|count| (f64::from(*count) - mean).abs() <= most),
                "{counts:?}"
            );
        }
    }

    /// A list of all that is known, the most silent first.
    struct Twin(Vec<(Sid, UpstreamName, Time)>);

    #[test]
    fn a_list_knows_the_same() {
        let mut state = 1_u64;
        let mut next = |below: u64| {
            state = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
            state % below
        };
        let (mut hits, mut expired) = (0, 0);
        for entries_max in [1, 2, 5, 40] {
            let mut sids = Sids::new(entries_max, 20 * SECOND);
            let mut twin = Twin(Vec::new());
            let mut now = at(5);
            for step in 0..20_000 {
                now = now + Duration::from_millis(next(if step % 100 == 0 { 30_000 } else { 500 }));
                let sid = Sid::new(0, &next(60).to_string());
                match next(10) {
                    0..4 => {
                        let upstream = UpstreamName(next(8));
                        sids.insert(sid, upstream, now);
                        let gone = twin.0.iter().take(EXPIRED_PER_INSERT);
                        let gone = gone.take_while(|known| now.since(known.2) >= 20 * SECOND);
                        twin.0.drain(..gone.count());
                        twin.0.retain(|known| known.0 != sid);
                        if twin.0.len() == entries_max {
                            twin.0.remove(0);
                        }
                        twin.0.push((sid, upstream, now));
                    }
                    4..8 => {
                        let index = twin.0.iter().position(|known| known.0 == sid);
                        let known = index.map(|index| twin.0.remove(index));
                        let known = known.filter(|known| now.since(known.2) < 20 * SECOND);
                        if let Some((_, upstream, _)) = known {
                            twin.0.push((sid, upstream, now));
                            hits += 1;
                        }
                        assert_eq!(sids.find(sid, now), known.map(|known| known.1));
                    }
                    8 => {
                        sids.remove(sid);
                        twin.0.retain(|known| known.0 != sid);
                    }
                    _ => {
                        let most = next(4) as usize;
                        let gone = twin.0.iter().take(most);
                        let gone = gone.take_while(|known| now.since(known.2) >= 20 * SECOND);
                        let gone = gone.count();
                        twin.0.drain(..gone);
                        assert_eq!(sids.expire(now, most), gone);
                        expired += gone;
                    }
                }
                assert_eq!(sids.len(), twin.0.len());
                assert!(sids.entries.len() <= entries_max, "places are used again");
            }
            let mut place = sids.oldest;
            for known in &twin.0 {
                let entry = &sids.entries[place as usize];
                assert_eq!((entry.sid, entry.upstream, entry.seen), *known);
                place = entry.next;
            }
            assert_eq!(place, NONE);
        }
        assert!(hits > 1000 && expired > 100, "{hits} {expired}");
    }
}
