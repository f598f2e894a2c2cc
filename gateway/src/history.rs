//! The last fifteen minutes in intervals of five seconds, for who comes to look after it has happened.
//!
//! An interval is what was counted in it, so that whoever shows it has nothing to subtract. The
//! control thread takes one every [`INTERVAL`] and keeps [`INTERVALS_MAX`]; shards take no part.
//!
//! An interval holds a line for each shard and for each route that had messages in it. With 16 shards
//! and 64 busy routes the whole is 2.5 MB; with 2 and a few it is 0.2. Beside it stands what was read
//! last: see `totals.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use tokio::time::MissedTickBehavior;

use crate::config::Config;
use crate::control::Control;
use crate::families::shard_cpu_seconds;
use crate::histogram::Snapshot;
use crate::metrics::{Cause, Counters, Metrics};
use crate::totals::{RouteTotals, Totals, name_of_place};

/// How often one is taken.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// How many are kept: fifteen minutes.
pub const INTERVALS_MAX: usize = 180;

/// Rows of the heat map: four for each power of ten.
const ROWS: usize = 25;

/// The longest delays that count in each row, in microseconds, from 10 µs to 10 s; the last row has
/// what is longer, too.
pub const LATENCY_ROWS_US: [u64; ROWS] = [
    10, 18, 32, 56, 100, 178, 316, 562, 1000, 1778, 3162, 5623, 10_000, 17_783, 31_623, 56_234,
    100_000, 177_828, 316_228, 562_341, 1_000_000, 1_778_279, 3_162_278, 5_623_413, 10_000_000,
];

/// What was counted in one interval, and what there was at its end.
#[derive(Clone, Debug, Serialize)]
pub struct Interval {
    /// Its end, in milliseconds since 1970: later than that of the one before.
    pub unix_ms: u64,
    /// How long it was: more than [`INTERVAL`] where the control thread was held up.
    pub length_ms: u64,
    /// Clients at its end.
    pub clients: u64,
    /// Connections to upstreams at its end.
    pub upstreams: u64,
    /// Peers at its end that do not keep up.
    pub slow_consumers: u64,
    /// Clients accepted.
    pub opened: u64,
    /// Clients closed, by cause, where there were any.
    #[serde(serialize_with = "as_map")]
    pub closed: Vec<(&'static str, u64)>,
    /// Messages that clients sent.
    pub messages_in: u64,
    /// Messages for clients.
    pub messages_out: u64,
    /// Bytes received from clients and upstreams.
    pub received_bytes: u64,
    /// By number.
    pub shards: Vec<ShardInterval>,
    /// Those that had messages.
    pub routes: Vec<RouteInterval>,
    /// Round trips to clients of echo and rooms, by our Pings.
    pub rtt: Delays,
    /// How many messages were delayed so long, of all routes and both directions: a number for each of
    /// [`LATENCY_ROWS_US`].
    pub latency: [u64; ROWS],
    /// Bytes by component at its end.
    #[serde(serialize_with = "as_map")]
    pub memory: Vec<(&'static str, u64)>,
    /// What the kernel says that the process has in memory, at its end; 0: it does not say.
    pub rss_bytes: u64,
}

/// What one shard did.
#[derive(Clone, Debug, Serialize)]
pub struct ShardInterval {
    /// Clients at the end.
    pub clients: u64,
    /// The part of the time that its thread had a processor, 0 to 1; 0 where the kernel does not tell.
    pub busy: f64,
    /// 99 of 100 turns of the loop took no longer, in microseconds.
    pub turn_p99_us: f64,
    /// Turns that took longer than [`STALL_MS`](crate::recorder::STALL_MS).
    pub stalls: u64,
}

/// What went over one route.
#[derive(Clone, Debug, Serialize)]
pub struct RouteInterval {
    /// Its name; `other` are all that have no histograms of their own.
    pub route: Arc<str>,
    /// Messages that clients sent.
    pub messages_to_upstream: u64,
    /// Messages for clients.
    pub messages_to_client: u64,
    /// How long the former were with us.
    pub to_upstream: Delays,
    /// How long the latter were with us.
    pub to_client: Delays,
    /// How long upstreams took to answer.
    pub reply: Delays,
}

/// Percentiles in microseconds; all 0 when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Delays {
    /// Of how many.
    pub count: u64,
    /// Half of them were no longer.
    pub p50_us: f64,
    /// 99 of 100 were no longer.
    pub p99_us: f64,
    /// 999 of 1000 were no longer.
    pub p999_us: f64,
    /// None was longer.
    pub max_us: f64,
}

impl Delays {
    /// Of what a histogram of nanoseconds has counted.
    pub fn of(snapshot: &Snapshot) -> Delays {
        let us = |part: f64| us(snapshot.quantile(part));
        Delays {
            count: snapshot.count(),
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: us(1.0),
        }
    }
}

/// To a tenth of a microsecond.
fn us(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 100.0).round() / 10.0
}

fn as_map<S: Serializer>(list: &[(&'static str, u64)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(list.iter().map(|(name, number)| (name, number)))
}

/// Everything that an interval is the difference of.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    metrics: Metrics,
    stalls: Vec<u64>,
    /// Processor time of each shard, in seconds.
    cpu: Vec<f64>,
    totals: Totals,
}

impl Reading {
    /// What these shards have counted until now.
    pub fn take(counters: &[Arc<Counters>]) -> Reading {
        let mut metrics = Metrics::default();
        counters.iter().for_each(|counters| metrics.merge(&counters.read()));
        let stalls = counters.iter().map(|counters| counters.recorder.stalls.get()).collect();
        Reading { metrics, stalls, cpu: Vec::new(), totals: Totals::read(counters) }
    }
}

/// The intervals that are kept.
#[derive(Debug, Default)]
pub struct History {
    last: Reading,
    /// The oldest first; at most [`INTERVALS_MAX`].
    intervals: VecDeque<Interval>,
}

/// What there is at the end of an interval beside the shards' counters.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Resident memory; 0: not known.
    pub rss_bytes: u64,
    /// By component.
    pub memory: Vec<(&'static str, u64)>,
    /// Processor time of shards since the start in seconds, with their numbers.
    pub cpu: Vec<(u16, f64)>,
}

impl History {
    /// Keeps what these shards have counted since the last time, which was `length` ago. At
    /// [`INTERVALS_MAX`], the oldest is forgotten.
    pub fn take(
        &mut self,
        counters: &[Arc<Counters>],
        config: &Config,
        length: Duration,
        surroundings: Surroundings,
    ) {
        let mut now = Reading::take(counters);
        let cpu = |shard: usize| surroundings.cpu.iter().find(|(it, _)| usize::from(*it) == shard);
        now.cpu =
            (0..counters.len()).map(|shard| cpu(shard).map_or(0.0, |(_, cpu)| *cpu)).collect();
        let since = now.totals.since(&self.last.totals);
        let gauge = |of: fn(&Counters) -> u64| counters.iter().map(|counters| of(counters)).sum();
        let (metrics, before) = (&now.metrics, &self.last.metrics);
        let closed = Cause::ALL.iter().map(|cause| {
            (cause.name(), metrics.closed(*cause).saturating_sub(before.closed(*cause)))
        });
        let shards = counters.iter().enumerate().map(|(shard, counters)| {
            let turns = &since.turns[shard];
            let stalls = self.last.stalls.get(shard).copied().unwrap_or(0);
            let cpu = now.cpu[shard] - self.last.cpu.get(shard).copied().unwrap_or(0.0);
            let busy = cpu / length.as_secs_f64().max(1e-9);
            ShardInterval {
                clients: counters.clients.get(),
                busy: (busy.clamp(0.0, 1.0) * 1e4).round() / 1e4,
                turn_p99_us: us(turns.quantile(0.99)),
                stalls: now.stalls[shard].saturating_sub(stalls),
            }
        });
        let mut names = self.names();
        let routes: Vec<RouteInterval> =
            since.routes.iter().filter_map(|route| of_route(config, route, &mut names)).collect();
        let mut latency = [0; ROWS];
        for route in &since.routes {
            count_delays(route.to_upstream(), &mut latency);
            count_delays(route.to_client(), &mut latency);
        }
        // A clock that is set back must not hide intervals from who asks for what is new.
        let unix_ms = match self.intervals.back() {
            Some(last) => surroundings.unix_ms.max(last.unix_ms + 1),
            None => surroundings.unix_ms,
        };
        let interval = Interval {
            unix_ms,
            length_ms: length.as_millis() as u64,
            clients: gauge(|counters| counters.clients.get()),
            upstreams: gauge(|counters| counters.upstreams.get()),
            slow_consumers: gauge(|counters| counters.slow_consumers.get()),
            opened: metrics.accepted.saturating_sub(before.accepted),
            closed: closed.filter(|(_, count)| *count > 0).collect(),
            messages_in: routes.iter().map(|route| route.messages_to_upstream).sum(),
            messages_out: routes.iter().map(|route| route.messages_to_client).sum(),
            received_bytes: metrics.received_bytes.saturating_sub(before.received_bytes),
            shards: shards.collect(),
            routes,
            rtt: Delays::of(since.rtt()),
            latency,
            memory: surroundings.memory,
            rss_bytes: surroundings.rss_bytes,
        };
        if self.intervals.len() == INTERVALS_MAX {
            self.intervals.pop_front();
        }
        self.intervals.push_back(interval);
        self.last = now;
    }

    /// Those that ended after `unix_ms`, the oldest first.
    pub fn since(&self, unix_ms: u64) -> impl Iterator<Item = &Interval> {
        self.intervals.iter().filter(move |interval| interval.unix_ms > unix_ms)
    }

    /// The names that the last interval has: what one that follows calls the same shares them.
    fn names(&self) -> Vec<Arc<str>> {
        let last = self.intervals.back().into_iter();
        last.flat_map(|last| last.routes.iter().map(|route| Arc::clone(&route.route))).collect()
    }
}

/// What went over a route; `None` when nothing did.
fn of_route(
    config: &Config,
    route: &RouteTotals,
    names: &mut Vec<Arc<str>>,
) -> Option<RouteInterval> {
    let (to_upstream, to_client) = (Delays::of(route.to_upstream()), Delays::of(route.to_client()));
    let messages_to_upstream = route.messages_to_upstream();
    let messages_to_client = route.messages_to_client();
    let reply = Delays::of(route.reply());
    if [messages_to_upstream, messages_to_client, to_upstream.count, to_client.count] == [0; 4] {
        return None;
    }
    let name = name_of_place(config, route.place);
    let route = match names.iter().find(|known| ***known == *name) {
        Some(known) => Arc::clone(known),
        None => {
            names.push(name.into());
            Arc::clone(names.last()?)
        }
    };
    Some(RouteInterval {
        route,
        messages_to_upstream,
        messages_to_client,
        to_upstream,
        to_client,
        reply,
    })
}

fn count_delays(snapshot: &Snapshot, rows: &mut [u64; ROWS]) {
    for (nanoseconds, count) in snapshot.iter() {
        let row = LATENCY_ROWS_US.partition_point(|longest| longest * 1000 < nanoseconds);
        rows[row.min(ROWS - 1)] += count;
    }
}

/// Takes intervals as long as the process lives.
pub async fn keep(control: Arc<Control>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once.
    ticks.tick().await;
    let mut last = control.started;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let surroundings = Surroundings {
            unix_ms: unix_now.as_millis() as u64,
            rss_bytes: resident_bytes(),
            memory: crate::memory::ledger(&control).components,
            cpu: shard_cpu_seconds(),
        };
        let config = control.config();
        control.history().take(control.gateway.counters(), &config, now - last, surroundings);
        last = now;
    }
}

/// What the process has in memory, by /proc; 0: it cannot be read.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::STALL_MS;
    use crate::time::Time;

    const START_MS: u64 = 1_800_000_000_000;

    /// A gateway of two shards, and what is kept of it.
    struct World {
        config: Config,
        counters: Vec<Arc<Counters>>,
        history: History,
        unix_ms: u64,
        /// Processor time of the first shard, in seconds.
        cpu: f64,
    }

    impl World {
        fn new() -> World {
            World {
                config: Config::embedded(),
                counters: (0..2).map(|_| Arc::default()).collect(),
                history: History::default(),
                unix_ms: START_MS,
                cpu: 0.0,
            }
        }

        fn take(&mut self) -> &Interval {
            self.unix_ms += 5000;
            let memory = vec![("table", 3)];
            let cpu = vec![(0, self.cpu)];
            let surroundings = Surroundings { unix_ms: self.unix_ms, rss_bytes: 7, memory, cpu };
            self.history.take(&self.counters, &self.config, INTERVAL, surroundings);
            self.history.intervals.back().expect("one was taken")
        }
    }

    #[test]
    fn an_interval_is_what_was_counted_in_it() {
        let mut world = World::new();
        let [first, second] = [0, 1].map(|shard| Arc::clone(&world.counters[shard]));
        first.accepted.add(3);
        first.clients.add(3);
        second.clients.add(2);
        second.upstreams.add(1);
        second.count_close(Cause::ClientClose);
        second.received_bytes.add(100);
        first.recorder.record_turn(Time(0), Time(2_500_000_000));
        let route = first.recorder.route(0);
        route.from_client_sizes.record(10, 4);
        route.to_client_sizes.record(10, 6);
        route.to_upstream.record(12_000, 4);
        second.recorder.route(0).to_client.record(1_000_000, 6);
        first.recorder.ping.record(5_000_000, 1);

        world.cpu += 2.5;
        let interval = world.take().clone();
        assert_eq!((interval.clients, interval.upstreams, interval.opened), (5, 1, 3));
        assert_eq!(interval.closed, [("client_close", 1)]);
        assert_eq!((interval.messages_in, interval.messages_out), (4, 6));
        assert_eq!((interval.received_bytes, interval.length_ms), (100, 5000));
        let shards: Vec<_> =
            interval.shards.iter().map(|shard| (shard.clients, shard.busy, shard.stalls)).collect();
        assert_eq!(shards, [(3, 0.5, 1), (2, 0.0, 0)]);
        assert_eq!(interval.routes.len(), 1);
        let route = &interval.routes[0];
        assert_eq!((route.messages_to_upstream, route.messages_to_client), (4, 6));
        assert_eq!((route.to_upstream.count, route.to_client.count), (4, 6));
        assert!((route.to_client.p50_us / 1000.0 - 1.0).abs() < 0.02, "{route:?}");
        assert_eq!(route.to_client.p50_us, route.to_client.max_us);
        assert_eq!(interval.rtt.count, 1);
        // 12 µs is beyond 10 and within 18; 1 ms is the last of its row.
        let rows: Vec<_> = interval.latency.iter().enumerate().filter(|(_, n)| **n > 0).collect();
        assert_eq!(rows[0], (1, &4));
        assert!(rows[1] == (8, &6) || rows[1] == (9, &6), "{rows:?}");

        // Nothing happens: gauges stay, counts are of this interval.
        let interval = world.take();
        assert_eq!((interval.clients, interval.opened, interval.rtt.count), (5, 0, 0));
        assert!(interval.closed.is_empty() && interval.routes.is_empty());
        assert_eq!(interval.latency, [0; ROWS]);
        assert_eq!((interval.shards[0].busy, interval.shards[0].stalls), (0.0, 0));
    }

    #[test]
    fn so_many_are_kept() {
        let mut world = World::new();
        for _ in 0..INTERVALS_MAX + 3 {
            world.take();
        }
        let ends: Vec<u64> = world.history.since(0).map(|interval| interval.unix_ms).collect();
        assert_eq!(ends.len(), INTERVALS_MAX);
        assert_eq!(ends[0], START_MS + 4 * 5000);
        assert!(ends.is_sorted());
        let last = world.unix_ms;
        assert_eq!(world.history.since(last - 5000).count(), 1);
        assert_eq!(world.history.since(last).count(), 0);
        // The clock is set back by an hour.
        world.unix_ms -= 3_600_000;
        assert_eq!(world.take().unix_ms, last + 1);
        assert_eq!(world.history.since(last).count(), 1);
    }

    #[test]
    fn rows_are_log_spaced_and_hold_everything() {
        for (row, us) in LATENCY_ROWS_US.iter().enumerate() {
            let exact = 10.0 * 10_f64.powf(row as f64 / 4.0);
            assert!((*us as f64 - exact).abs() < 0.6, "{us} instead of {exact}");
        }
        let histogram = crate::histogram::Durations::default();
        for ns in [0, 9_000, 10_500, 500_000_000, 9_000_000_000, 60_000_000_000] {
            histogram.record(ns, 1);
        }
        let mut snapshot = Snapshot::default();
        histogram.add_to(&mut snapshot);
        let mut rows = [0; ROWS];
        count_delays(&snapshot, &mut rows);
        let found: Vec<_> =
            (0..ROWS).filter(|row| rows[*row] > 0).map(|row| (row, rows[row])).collect();
        assert_eq!(found, [(0, 2), (1, 1), (19, 1), (24, 2)]);
    }

    #[test]
    fn names_are_kept_once() {
        let mut world = World::new();
        let counters = Arc::clone(&world.counters[0]);
        for _ in 0..3 {
            counters.recorder.route(0).to_client.record(1, 1);
            counters.recorder.route(1).to_client.record(1, 1);
            world.take();
        }
        let names = |interval: &Interval| -> Vec<Arc<str>> {
            interval.routes.iter().map(|route| Arc::clone(&route.route)).collect()
        };
        let all: Vec<_> = world.history.since(0).map(names).collect();
        assert_eq!(all[0].len(), 2);
        for later in &all[1..] {
            assert!(later.iter().zip(&all[0]).all(|(one, other)| Arc::ptr_eq(one, other)));
        }
    }

    /// The form that pages and scripts read.
    #[test]
    fn an_interval_as_json() {
        let mut world = World::new();
        let counters = Arc::clone(&world.counters[1]);
        counters.count_close(Cause::Drain);
        counters.recorder.record_turn(Time(0), Time((STALL_MS + 10) * 1_000_000));
        counters.recorder.route(0).to_client.record(20_000, 1);
        counters.recorder.route(0).to_client_sizes.record(5, 1);
        world.cpu += 2.5;
        let json = serde_json::to_value(world.take()).expect("plain numbers");
        assert_eq!(json["closed"], serde_json::json!({ "drain": 1 }));
        assert_eq!(json["memory"], serde_json::json!({ "table": 3 }));
        assert_eq!(json["rss_bytes"], 7);
        assert_eq!(json["shards"][1]["stalls"], 1);
        assert_eq!(json["shards"][0]["busy"], 0.5);
        let route = &json["routes"][0];
        assert_eq!(route["messages_to_client"], 1);
        assert!(route["to_client"]["p999_us"].as_f64().is_some_and(|us| (us - 20.0).abs() < 0.5));
        assert_eq!(json["latency"].as_array().map(Vec::len), Some(ROWS));
    }
}
