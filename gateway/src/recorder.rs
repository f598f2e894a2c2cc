//! The histograms of one shard. It alone records; whoever reads them does not ask it.
//!
//! A bounded set: some of the shard, and some of each of the first [`ROUTES_RECORDED`] routes; the
//! others share one more set. A route's are made when a client is first let in to it, never for a
//! message.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::histogram::{Durations, Histogram, Sizes};
use crate::metrics::Counter;
use crate::time::Time;
use crate::upstream::UpstreamName;

/// Routes that have histograms of their own, by their number.
pub const ROUTES_RECORDED: usize = 64;

/// Upstreams that have histograms of their own, in the order in which they got their first client; the
/// others share one more set.
pub const UPSTREAMS_RECORDED: usize = 64;

/// A turn of the loop that takes longer than this counts as a stall: in milliseconds.
pub const STALL_MS: u64 = 10;

/// The histograms of one shard.
#[derive(Debug)]
pub struct Recorder {
    /// From the accept of a client until its (first) request head was read.
    pub head: Durations,
    /// From the accept of a client until its 101 was queued.
    pub upgrade: Durations,
    /// From a Ping of ours to a client of echo or rooms until the next that came from it.
    pub ping: Durations,
    /// From a publication until the first member in this shard that had nothing waiting was sent it;
    /// those of one turn count as one.
    pub fanout_first: Durations,
    /// The same, until the last such member was.
    pub fanout_last: Durations,
    /// Such members of each fan-out.
    pub fanout_members: Sizes,
    /// Deliveries to members that had not taken everything before.
    pub fanout_behind: Counter,
    /// How old the oldest message of an outbox was when the socket took it: once for all that was
    /// queued together, where a route's delays count each message.
    pub outbox_age: Durations,
    /// From the moment that the kernel gave back control until all that it brought was worked on.
    pub turn: Durations,
    /// Turns that took longer than [`STALL_MS`].
    pub stalls: Counter,
    routes: Box<[OnceLock<Box<RouteRecorder>>]>,
    /// Locked by the shard for a handshake, and by a reader for as long as it takes to copy the list.
    upstreams: Mutex<Vec<UpstreamEntry>>,
}

/// The histograms of an upstream, and whose they are; `None`: those of all that have none of their own.
pub type UpstreamEntry = (Option<(u16, UpstreamName)>, Arc<UpstreamRecorder>);

/// The histograms of one upstream, whatever route its clients came by, or of those that share them.
#[derive(Debug, Default)]
pub struct UpstreamRecorder {
    /// From trying it until it was connected.
    pub connect: Durations,
    /// From then until it has accepted the upgrade.
    pub answer: Durations,
    /// See [`RouteRecorder::reply`].
    pub reply: Durations,
}

/// The histograms of one route, or of those that share them.
#[derive(Debug, Default)]
pub struct RouteRecorder {
    /// From a request head until the upstream's 101: placing, all attempts, and their handshakes.
    pub upstream: Durations,
    /// From trying one upstream until it was connected.
    pub connect: Durations,
    /// From then until it has accepted the upgrade.
    pub answer: Durations,
    /// From a client's message until the next message that its upstream sent on that connection; of
    /// ordinary HTTP, from the request's way out until the head of the answer. What an upstream takes
    /// to answer, where it answers; where it speaks unasked as well, the shorter of the two.
    pub reply: Durations,
    /// From the receive of a client's message until the upstream's socket took it.
    pub to_upstream: Durations,
    /// From the receive of an upstream's message (of a publication; of the message that is echoed)
    /// until the client's socket took it.
    pub to_client: Durations,
    /// Sizes of messages that clients sent.
    pub from_client_sizes: Sizes,
    /// Sizes of messages for clients: from an upstream, a room, or the echo.
    pub to_client_sizes: Sizes,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            head: Histogram::default(),
            upgrade: Histogram::default(),
            ping: Histogram::default(),
            fanout_first: Histogram::default(),
            fanout_last: Histogram::default(),
            fanout_members: Histogram::default(),
            fanout_behind: Counter::default(),
            outbox_age: Histogram::default(),
            turn: Histogram::default(),
            stalls: Counter::default(),
            upstreams: Mutex::default(),
            routes: (0..=ROUTES_RECORDED).map(|_| OnceLock::new()).collect(),
        }
    }
}

impl Recorder {
    /// Bytes on the heap, for the memory ledger.
    pub fn held_bytes(&self) -> usize {
        let upstream = size_of::<UpstreamEntry>() + 16 + size_of::<UpstreamRecorder>();
        size_of_val(&*self.routes)
            + self.routes().count() * size_of::<RouteRecorder>()
            + self.upstreams().len() * upstream
    }

    /// Those of the route with this number.
    pub fn route(&self, number: u16) -> &RouteRecorder {
        let place = usize::from(number).min(ROUTES_RECORDED);
        self.routes[place].get_or_init(Box::default)
    }

    /// Those that have recorded something, by the place of their route; [`ROUTES_RECORDED`] is the
    /// place of all others.
    pub fn routes(&self) -> impl Iterator<Item = (usize, &RouteRecorder)> {
        let made = self.routes.iter().enumerate();
        made.filter_map(|(place, route)| Some((place, &**route.get()?)))
    }

    /// Where the histograms of this upstream are in [`Recorder::upstreams`]: a place that stays.
    pub fn upstream(&self, backend: u16, name: UpstreamName) -> u16 {
        let mut list = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        let which = Some((backend, name));
        if let Some(place) = list.iter().position(|(it, _)| *it == which) {
            return place as u16;
        }
        if list.len() <= UPSTREAMS_RECORDED {
            // The last place is everybody's.
            let which = which.filter(|_| list.len() < UPSTREAMS_RECORDED);
            list.push((which, Arc::default()));
        }
        list.len() as u16 - 1
    }

    /// The upstreams that had a client, by their places.
    pub fn upstreams(&self) -> Vec<UpstreamEntry> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A turn of the loop began at `from` and has ended.
    pub fn record_turn(&self, from: Time, now: Time) {
        let nanoseconds = now.0.saturating_sub(from.0);
        self.turn.record(nanoseconds, 1);
        if nanoseconds > STALL_MS * 1_000_000 {
            self.stalls.add(1);
        }
    }
}

impl<const SHIFT: u32, const BUCKETS: usize> Histogram<SHIFT, BUCKETS> {
    /// Counts the time from `from` to `now`, once.
    pub fn record_since(&self, from: Time, now: Time) {
        self.record(now.0.saturating_sub(from.0), 1);
    }
}

/// The most that the histograms of one shard take.
pub const RECORDER_BYTES_MAX: usize = size_of::<Recorder>()
    + (ROUTES_RECORDED + 1) * (size_of::<RouteRecorder>() + 16)
    + (UPSTREAMS_RECORDED + 1) * (size_of::<UpstreamRecorder>() + 64);

const _: () = assert!(RECORDER_BYTES_MAX <= 6 << 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Snapshot;

    #[test]
    fn routes_beyond_the_bound_share() {
        let recorder = Recorder::default();
        assert_eq!(recorder.routes().count(), 0, "made when they are needed");
        let before = recorder.held_bytes();
        for number in [0, 63, 64, 65, u16::MAX] {
            recorder.route(number).to_client.record(1, 1);
        }
        let places: Vec<_> = recorder.routes().map(|(place, _)| place).collect();
        assert_eq!(places, [0, 63, 64]);
        assert_eq!(recorder.held_bytes() - before, 3 * size_of::<RouteRecorder>());
        assert!(size_of::<Recorder>() + recorder.held_bytes() <= RECORDER_BYTES_MAX);
        let mut snapshot = Snapshot::default();
        recorder.route(1000).to_client.add_to(&mut snapshot);
        assert_eq!(snapshot.count(), 3);
    }

    #[test]
    fn upstreams_beyond_the_bound_share() {
        let recorder = Recorder::default();
        let name = UpstreamName;
        let places: Vec<u16> = (0..70).map(|number| recorder.upstream(0, name(number))).collect();
        let want: Vec<u16> = (0..70).map(|number: u16| number.min(64)).collect();
        assert_eq!(places, want);
        assert_eq!(recorder.upstream(0, name(7)), 7);
        let held = recorder.held_bytes() - Recorder::default().held_bytes();
        assert!(held >= 65 * size_of::<UpstreamRecorder>());
        assert!(size_of::<Recorder>() + recorder.held_bytes() <= RECORDER_BYTES_MAX);
        let list = recorder.upstreams();
        assert_eq!((list.len(), list[7].0, list[64].0), (65, Some((0, name(7))), None));
        // Of another backend it is another.
        let recorder = Recorder::default();
        assert_eq!([0, 1, 0].map(|backend| recorder.upstream(backend, name(1))), [0, 1, 0]);
    }

    #[test]
    fn a_stall_is_a_long_turn() {
        let recorder = Recorder::default();
        recorder.record_turn(Time(0), Time(STALL_MS * 1_000_000));
        assert_eq!(recorder.stalls.get(), 0);
        recorder.record_turn(Time(0), Time(STALL_MS * 1_000_000 + 1));
        assert_eq!(recorder.stalls.get(), 1);
    }
}
