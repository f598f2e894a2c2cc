//! What the histograms of all shards hold together at one moment, and what came between two moments.
//!
//! `history.rs`, `GET /api/v1/histograms` and the interval logs are made of this. To read costs a walk
//! over the buckets of every route that had a client, in each shard, and no shard notices: some
//! milliseconds where 16 shards have 64 routes each. It takes 54 KiB for each such route, 21 for each
//! upstream, 7 for each shard, and no more than [`totals_bytes_max`].

use std::sync::Arc;

use crate::access::{name_of, url_of};
use crate::config::Config;
use crate::histogram::{Durations, Sizes, Snapshot};
use crate::metrics::Counters;
use crate::recorder::{
    ROUTES_RECORDED, Recorder, RouteRecorder, UPSTREAMS_RECORDED, UpstreamRecorder,
};
use crate::route::RouteIndex;
use crate::upstream::UpstreamName;

/// The `route` of all routes that have no histograms of their own.
const OTHER: &str = "other";

/// The unit of a histogram's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Durations.
    Nanoseconds,
    /// Sizes.
    Bytes,
    /// Members of rooms.
    Members,
}

impl Unit {
    /// How it is written.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Nanoseconds => "ns",
            Unit::Bytes => "bytes",
            Unit::Members => "members",
        }
    }
}

/// A histogram of a shard, or of a route in a shard.
struct Source<R> {
    name: &'static str,
    label: Option<(&'static str, &'static str)>,
    unit: Unit,
    add: fn(&R, &mut Snapshot),
}

const fn source<R>(
    name: &'static str,
    label: Option<(&'static str, &'static str)>,
    unit: Unit,
    add: fn(&R, &mut Snapshot),
) -> Source<R> {
    Source { name, label, unit, add }
}

/// Those of a shard, but its turns.
const WHOLE: [Source<Recorder>; 7] = {
    use Unit::{Members, Nanoseconds};
    [
        source("handshake_seconds", Some(("stage", "head")), Nanoseconds, |r, to| {
            r.head.add_to(to);
        }),
        source("handshake_seconds", Some(("stage", "total")), Nanoseconds, |r, to| {
            r.upgrade.add_to(to);
        }),
        source("rtt_seconds", None, Nanoseconds, |r, to| r.ping.add_to(to)),
        source("fanout_seconds", Some(("delivery", "first")), Nanoseconds, |r, to| {
            r.fanout_first.add_to(to);
        }),
        source("fanout_seconds", Some(("delivery", "last")), Nanoseconds, |r, to| {
            r.fanout_last.add_to(to);
        }),
        source("fanout_recipients", None, Members, |r, to| r.fanout_members.add_to(to)),
        source("queue_age_seconds", None, Nanoseconds, |r, to| r.outbox_age.add_to(to)),
    ]
};

/// Those of a route.
const ROUTE: [Source<RouteRecorder>; 8] = {
    use Unit::{Bytes, Nanoseconds};
    const UP: Option<(&str, &str)> = Some(("direction", "to_upstream"));
    const DOWN: Option<(&str, &str)> = Some(("direction", "to_client"));
    [
        source("forward_seconds", UP, Nanoseconds, |r, to| r.to_upstream.add_to(to)),
        source("forward_seconds", DOWN, Nanoseconds, |r, to| r.to_client.add_to(to)),
        source("message_size_bytes", UP, Bytes, |r, to| r.from_client_sizes.add_to(to)),
        source("message_size_bytes", DOWN, Bytes, |r, to| r.to_client_sizes.add_to(to)),
        source("reply_seconds", None, Nanoseconds, |r, to| r.reply.add_to(to)),
        source("upstream_handshake_seconds", Some(("stage", "connect")), Nanoseconds, |r, to| {
            r.connect.add_to(to);
        }),
        source("upstream_handshake_seconds", Some(("stage", "answer")), Nanoseconds, |r, to| {
            r.answer.add_to(to);
        }),
        source("upstream_handshake_seconds", Some(("stage", "total")), Nanoseconds, |r, to| {
            r.upstream.add_to(to);
        }),
    ]
};

/// Those of an upstream. None is part of a route's: the same is counted in both.
const UPSTREAM: [Source<UpstreamRecorder>; 3] = {
    use Unit::Nanoseconds;
    [
        source("backend_connect_seconds", None, Nanoseconds, |r, to| r.connect.add_to(to)),
        source("backend_answer_seconds", None, Nanoseconds, |r, to| r.answer.add_to(to)),
        source("backend_reply_seconds", None, Nanoseconds, |r, to| r.reply.add_to(to)),
    ]
};

/// The histograms of all shards, added up.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// As [`WHOLE`] has them.
    whole: [Snapshot; WHOLE.len()],
    /// Loop turns, by shard.
    pub turns: Vec<Snapshot>,
    /// Those that had a client, in the order of their numbers.
    pub routes: Vec<RouteTotals>,
    /// Those that had a client, the earliest first.
    upstreams: Vec<UpstreamTotals>,
}

/// The histograms of one upstream.
#[derive(Clone, Debug, Default)]
struct UpstreamTotals {
    /// Its backend's number and its own; `None`: of all that have none of their own.
    which: Option<(u16, UpstreamName)>,
    /// As [`UPSTREAM`] has them.
    snapshots: [Snapshot; UPSTREAM.len()],
}

/// The histograms of one route.
#[derive(Clone, Debug, Default)]
pub struct RouteTotals {
    /// Its number; [`ROUTES_RECORDED`]: of all routes from there on.
    pub place: usize,
    /// As [`ROUTE`] has them.
    snapshots: [Snapshot; ROUTE.len()],
}

/// One histogram and what tells it from others.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// As in the metrics, without their prefix.
    pub name: &'static str,
    /// The labels that tell the histogram from others of its name.
    pub labels: Vec<(&'static str, String)>,
    /// The unit of its values.
    pub unit: Unit,
    /// The counts.
    pub snapshot: &'a Snapshot,
}

impl Totals {
    /// What these shards have counted until now.
    pub fn read(counters: &[Arc<Counters>]) -> Totals {
        let mut totals = Totals::default();
        let mut places: [Option<RouteTotals>; ROUTES_RECORDED + 1] = [const { None }; _];
        for counters in counters {
            let recorder = &counters.recorder;
            let mut turns = Snapshot::default();
            recorder.turn.add_to(&mut turns);
            totals.turns.push(turns);
            for (source, to) in WHOLE.iter().zip(&mut totals.whole) {
                (source.add)(recorder, to);
            }
            for (place, route) in recorder.routes() {
                let to = places[place].get_or_insert_default();
                to.place = place;
                for (source, to) in ROUTE.iter().zip(&mut to.snapshots) {
                    (source.add)(route, to);
                }
            }
        }
        totals.routes = places.into_iter().flatten().collect();
        for (which, upstream) in counters.iter().flat_map(|counters| counters.recorder.upstreams())
        {
            let known = totals.upstreams.iter().position(|it| it.which == which);
            let place = known.unwrap_or_else(|| {
                totals.upstreams.push(UpstreamTotals { which, ..UpstreamTotals::default() });
                totals.upstreams.len() - 1
            });
            for (source, to) in UPSTREAM.iter().zip(&mut totals.upstreams[place].snapshots) {
                (source.add)(&upstream, to);
            }
        }
        totals
    }

    /// What came since `earlier`, an earlier reading of the same shards.
    pub fn since(&self, earlier: &Totals) -> Totals {
        let none = RouteTotals::default();
        let before =
            |place: usize| earlier.routes.binary_search_by_key(&place, |route| route.place).ok();
        Totals {
            whole: std::array::from_fn(|index| self.whole[index].since(&earlier.whole[index])),
            turns: (self.turns.iter().enumerate())
                .map(|(shard, turns)| match earlier.turns.get(shard) {
                    Some(before) => turns.since(before),
                    None => turns.clone(),
                })
                .collect(),
            routes: (self.routes.iter())
                .map(|route| {
                    let before = before(route.place).map_or(&none, |index| &earlier.routes[index]);
                    let since =
                        |index: usize| route.snapshots[index].since(&before.snapshots[index]);
                    RouteTotals { place: route.place, snapshots: std::array::from_fn(since) }
                })
                .collect(),
            upstreams: (self.upstreams.iter())
                .map(|upstream| {
                    let none = UpstreamTotals::default();
                    let before = earlier.upstreams.iter().find(|it| it.which == upstream.which);
                    let before = before.unwrap_or(&none);
                    let since =
                        |index: usize| upstream.snapshots[index].since(&before.snapshots[index]);
                    UpstreamTotals { which: upstream.which, snapshots: std::array::from_fn(since) }
                })
                .collect(),
        }
    }

    /// From a Ping of ours to a client until the next that came from it, in nanoseconds.
    pub fn rtt(&self) -> &Snapshot {
        &self.whole[2]
    }

    /// Every histogram, those that are empty too.
    pub fn series<'a>(&'a self, config: &'a Config) -> impl Iterator<Item = Series<'a>> {
        let whole = WHOLE.iter().zip(&self.whole).map(|(source, snapshot)| Series {
            name: source.name,
            labels: source.label.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            unit: source.unit,
            snapshot,
        });
        let turns = self.turns.iter().enumerate().map(|(shard, snapshot)| Series {
            name: "loop_iteration_seconds",
            labels: vec![("shard", shard.to_string())],
            unit: Unit::Nanoseconds,
            snapshot,
        });
        let routes = self.routes.iter().flat_map(|route| {
            let name = name_of_place(config, route.place);
            ROUTE.iter().zip(&route.snapshots).map(move |(source, snapshot)| {
                let mut labels = vec![("route", name.clone())];
                labels.extend(source.label.map(|(key, value)| (key, value.to_owned())));
                Series { name: source.name, labels, unit: source.unit, snapshot }
            })
        });
        // One that has left the list has no name any more.
        let upstreams = self.upstreams.iter().filter_map(|upstream| {
            let labels = match upstream.which {
                None => [OTHER.to_owned(), OTHER.to_owned()],
                Some((backend, name)) => {
                    let url = url_of(config, backend, name)?;
                    [config.backends[usize::from(backend)].name.clone(), url]
                }
            };
            Some((upstream, labels))
        });
        let upstreams = upstreams.flat_map(|(upstream, [backend, url])| {
            UPSTREAM.iter().zip(&upstream.snapshots).map(move |(source, snapshot)| {
                let labels = vec![("backend", backend.clone()), ("upstream", url.clone())];
                Series { name: source.name, labels, unit: source.unit, snapshot }
            })
        });
        whole.chain(turns).chain(routes).chain(upstreams)
    }
}

impl RouteTotals {
    /// From the receive of a client's message until the upstream's socket took it, in nanoseconds.
    pub fn to_upstream(&self) -> &Snapshot {
        &self.snapshots[0]
    }

    /// From the receive of a message for a client until its socket took it, in nanoseconds.
    pub fn to_client(&self) -> &Snapshot {
        &self.snapshots[1]
    }

    /// Messages that clients sent.
    pub fn messages_to_upstream(&self) -> u64 {
        self.snapshots[2].count()
    }

    /// Messages for clients.
    pub fn messages_to_client(&self) -> u64 {
        self.snapshots[3].count()
    }

    /// From a client's message until the next of its upstream, in nanoseconds.
    pub fn reply(&self) -> &Snapshot {
        &self.snapshots[4]
    }
}

/// The name of the route in this place of a recorder.
pub fn name_of_place(config: &Config, place: usize) -> String {
    match u16::try_from(place) {
        // A configuration has all numbers of those before it.
        Ok(number) if place < ROUTES_RECORDED.min(config.routes.numbers()) => {
            name_of(config.routes.get(RouteIndex(number)))
        }
        _ => OTHER.to_owned(),
    }
}

/// The most that one [`Totals`] takes.
pub const fn totals_bytes_max(shards: usize) -> usize {
    let route = size_of::<RouteTotals>() + 6 * size_of::<Durations>() + 2 * size_of::<Sizes>();
    let upstream = size_of::<UpstreamTotals>() + 3 * size_of::<Durations>();
    size_of::<Totals>()
        + (ROUTES_RECORDED + 1) * route
        // A shard may have met others than the next.
        + (UPSTREAMS_RECORDED + 1) * shards * upstream
        + (WHOLE.len() + shards) * (size_of::<Durations>() + size_of::<Snapshot>())
}

const _: () = assert!(totals_bytes_max(16) <= 26 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(count: usize) -> Vec<Arc<Counters>> {
        (0..count).map(|_| Arc::default()).collect()
    }

    /// `name{key=value,…} count` of each that is not empty.
    fn told(totals: &Totals, config: &Config) -> Vec<String> {
        let series = totals.series(config).filter(|series| series.snapshot.count() > 0);
        let told = series.map(|Series { name, labels, unit, snapshot }| {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{name}{{{}}} {} {}", labels.join(","), snapshot.count(), unit.name())
        });
        told.collect()
    }

    #[test]
    fn what_shards_have_counted_is_added_up_by_route() {
        let config = Config::embedded();
        let shards = shards(2);
        shards[0].recorder.route(0).to_client.record(1000, 2);
        shards[1].recorder.route(0).to_client.record(2000, 1);
        shards[1].recorder.route(1).from_client_sizes.record(50, 4);
        shards[1].recorder.route(999).upstream.record(50, 1);
        shards[0].recorder.ping.record(7000, 1);
        shards[1].recorder.turn.record(7000, 5);
        let first = Totals::read(&shards);
        let name = |number: u16| name_of(config.routes.get(RouteIndex(number)));
        let want = |to_client: u64| {
            vec![
                "rtt_seconds{} 1 ns".to_owned(),
                "loop_iteration_seconds{shard=1} 5 ns".to_owned(),
                format!("forward_seconds{{route={},direction=to_client}} {to_client} ns", name(0)),
                format!("message_size_bytes{{route={},direction=to_upstream}} 4 bytes", name(1)),
                "upstream_handshake_seconds{route=other,stage=total} 1 ns".to_owned(),
            ]
        };
        assert_eq!(told(&first, &config), want(3));
        assert_eq!(first.routes[0].messages_to_client(), 0, "sizes count them");

        // A route that gets its first client, and one that goes on.
        shards[0].recorder.route(0).to_client.record(1000, 7);
        shards[0].recorder.route(5).to_client_sizes.record(10, 2);
        shards[0].recorder.turn.record(1, 1);
        let second = Totals::read(&shards);
        let since = second.since(&first);
        assert_eq!(
            told(&since, &config),
            [
                "loop_iteration_seconds{shard=0} 1 ns".to_owned(),
                format!("forward_seconds{{route={},direction=to_client}} 7 ns", name(0)),
                // No route of this configuration.
                "message_size_bytes{route=other,direction=to_client} 2 bytes".to_owned(),
            ]
        );
        assert_eq!(told(&second.since(&Totals::default()), &config), told(&second, &config));
        assert_eq!(since.routes[1].place, 1);
        assert_eq!(since.routes[2].messages_to_client(), 2);
    }

    #[test]
    fn what_is_asked_for_by_name_is_that() {
        let shards = shards(1);
        shards[0].recorder.ping.record(5, 1);
        let route = shards[0].recorder.route(0);
        route.to_upstream.record(1, 1);
        route.to_client.record(1, 2);
        route.from_client_sizes.record(1, 3);
        route.to_client_sizes.record(1, 4);
        route.reply.record(1, 5);
        let totals = Totals::read(&shards);
        let route = &totals.routes[0];
        assert_eq!((totals.rtt().count(), totals.rtt().sum()), (1, 5));
        assert_eq!((route.to_upstream().count(), route.to_client().count()), (1, 2));
        assert_eq!((route.messages_to_upstream(), route.messages_to_client()), (3, 4));
        assert_eq!(route.reply().count(), 5);
    }
}
