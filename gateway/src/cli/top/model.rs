//! What `penstock top` shows, made of two looks at a gateway: no I/O, no clock.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cli::reading::{Reading, Series};

/// One look at a gateway.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) reading: Reading,
    pub(super) shards: Vec<Shard>,
}

/// `GET /api/v1/status`; what a gateway does not tell is 0.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) uptime_ms: u64,
    state: State,
    pub(super) config_generation: u64,
    pub(super) clients: u64,
    pub(super) upstreams: u64,
    pub(super) accepted: u64,
    pub(super) received_bytes: u64,
    pub(super) slow_consumers: u64,
    memory: Memory,
    closed: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    rss_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    phase: String,
}

/// `GET /api/v1/shards`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Shards {
    pub(super) shards: Vec<Shard>,
}

/// One of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Shard {
    shard: usize,
    clients: u64,
    stalls: u64,
    #[serde(default)]
    cpu_ms: u64,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) uptime_ms: u64,
    pub(super) phase: String,
    pub(super) config_generation: u64,
    pub(super) clients: u64,
    pub(super) upstreams: u64,
    pub(super) slow_consumers: u64,
    pub(super) rss_bytes: u64,
    pub(super) opened_per_second: f64,
    pub(super) in_per_second: f64,
    pub(super) out_per_second: f64,
    pub(super) received_bytes_per_second: f64,
    pub(super) routes: Vec<Route>,
    pub(super) shards: Vec<ShardView>,
    /// Those that there ever were.
    pub(super) closes: Vec<Close>,
}

/// One route in the interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Route {
    pub(super) name: String,
    /// From clients, and to clients.
    pub(super) up: Way,
    pub(super) down: Way,
    /// 99 of 100 answers of upstreams to messages came as soon, in nanoseconds.
    pub(super) reply_p99_ns: Option<u64>,
    /// 99 of 100 connects to upstreams were as quick, in nanoseconds.
    pub(super) connect_p99_ns: Option<u64>,
}

/// One direction of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Way {
    pub(super) per_second: f64,
    /// Bytes of payload.
    pub(super) mean_bytes: f64,
    /// p50, p99, p99.9 and the longest, in nanoseconds; `None`: nothing was forwarded.
    pub(super) delays_ns: Option<[u64; 4]>,
}

/// One shard in the interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ShardView {
    pub(super) shard: usize,
    pub(super) clients: u64,
    /// 0 to 1.
    pub(super) busy: f64,
    pub(super) turn_p99_ns: u64,
    /// In the interval.
    pub(super) stalls: u64,
}

/// One cause.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Close {
    pub(super) cause: String,
    pub(super) per_second: f64,
    pub(super) total: u64,
}

/// By what routes are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// The most messages first.
    #[default]
    Messages,
    /// The longest p99 first.
    Slowest,
    /// By name.
    Name,
}

impl Sort {
    pub(super) fn next(self) -> Sort {
        match self {
            Sort::Messages => Sort::Slowest,
            Sort::Slowest => Sort::Name,
            Sort::Name => Sort::Messages,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Messages => "messages",
            Sort::Slowest => "p99",
            Sort::Name => "name",
        }
    }
}

impl View {
    /// What came between two looks, `seconds` apart. Of another gateway than `before`'s, or of one that
    /// was started again, it is what came since its start.
    pub(super) fn new(before: &Sample, now: &Sample, seconds: f64) -> View {
        let first = Sample::default();
        let same = before.status.pid == now.status.pid
            && before.status.uptime_ms <= now.status.uptime_ms
            && before.status.accepted <= now.status.accepted;
        let (before, seconds) = match same {
            true => (before, seconds.max(0.001)),
            false => (&first, (now.status.uptime_ms as f64 / 1000.0).max(0.001)),
        };
        let since = now.reading.since(&before.reading);
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let Status { closed, .. } = &now.status;
        let closes = closed.iter().map(|(cause, total)| Close {
            cause: cause.clone(),
            per_second: per_second(*total, before.status.closed.get(cause).copied().unwrap_or(0)),
            total: *total,
        });
        let mut closes: Vec<Close> = closes.collect();
        closes.sort_by(|one, other| {
            let key = |close: &Close| (close.per_second, close.total as f64);
            key(other).partial_cmp(&key(one)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let routes = routes(&since, seconds);
        let status = now.status.clone();
        View {
            opened_per_second: per_second(status.accepted, before.status.accepted),
            in_per_second: routes.iter().map(|route| route.up.per_second).sum(),
            out_per_second: routes.iter().map(|route| route.down.per_second).sum(),
            received_bytes_per_second: per_second(
                status.received_bytes,
                before.status.received_bytes,
            ),
            routes,
            shards: shards(before, now, &since, seconds),
            closes,
            version: status.version,
            pid: status.pid,
            uptime_ms: status.uptime_ms,
            phase: status.state.phase,
            config_generation: status.config_generation,
            clients: status.clients,
            upstreams: status.upstreams,
            slow_consumers: status.slow_consumers,
            rss_bytes: status.memory.rss_bytes,
        }
    }

    /// Brings the routes in this order.
    pub(super) fn sort(&mut self, by: Sort) {
        let messages = |route: &Route| route.up.per_second + route.down.per_second;
        let slowest = |route: &Route| {
            let p99 = |way: &Way| way.delays_ns.map_or(0, |delays| delays[1]);
            p99(&route.up).max(p99(&route.down))
        };
        self.routes.sort_by(|one, other| {
            let order = match by {
                Sort::Messages => messages(other).total_cmp(&messages(one)),
                Sort::Slowest => slowest(other).cmp(&slowest(one)),
                Sort::Name => std::cmp::Ordering::Equal,
            };
            order.then_with(|| one.name.cmp(&other.name))
        });
    }
}

/// Every route that ever had a client, with what it had in the interval.
fn routes(since: &Reading, seconds: f64) -> Vec<Route> {
    let mut routes: BTreeMap<&str, Route> = BTreeMap::new();
    for series in &since.histograms {
        let Some(name) = series.label("route") else { continue };
        let route = routes
            .entry(name)
            .or_insert_with(|| Route { name: name.to_owned(), ..Route::default() });
        let p99 = (series.count > 0).then(|| series.quantile(0.99));
        match (&*series.name, series.label("direction"), series.label("stage")) {
            (name, Some("to_upstream"), _) => route.up.add(name, series, seconds),
            (name, Some("to_client"), _) => route.down.add(name, series, seconds),
            ("upstream_handshake_seconds", _, Some("connect")) => route.connect_p99_ns = p99,
            ("reply_seconds", ..) => route.reply_p99_ns = p99,
            _ => {}
        }
    }
    routes.into_values().collect()
}

impl Way {
    fn add(&mut self, name: &str, series: &Series, seconds: f64) {
        match name {
            "message_size_bytes" if series.count > 0 => {
                self.per_second = series.count as f64 / seconds;
                self.mean_bytes = series.mean();
            }
            "forward_seconds" if series.count > 0 => {
                self.delays_ns = Some([0.5, 0.99, 0.999, 1.0].map(|part| series.quantile(part)));
            }
            _ => {}
        }
    }
}

fn shards(before: &Sample, now: &Sample, since: &Reading, seconds: f64) -> Vec<ShardView> {
    let of = |shards: &[Shard], number: usize| shards.iter().find(|it| it.shard == number).cloned();
    now.shards
        .iter()
        .map(|shard| {
            let before = of(&before.shards, shard.shard);
            let (stalls, cpu_ms) = before.map_or((0, shard.cpu_ms), |it| (it.stalls, it.cpu_ms));
            let number = shard.shard.to_string();
            let turns = since.find("loop_iteration_seconds", &[("shard", &number)]);
            let busy = shard.cpu_ms.saturating_sub(cpu_ms) as f64 / 1e3 / seconds;
            ShardView {
                shard: shard.shard,
                clients: shard.clients,
                busy: busy.min(1.0),
                turn_p99_ns: turns.map_or(0, |turns| turns.quantile(0.99)),
                stalls: shard.stalls.saturating_sub(stalls),
            }
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn series(name: &str, labels: &Value, bucket: u64, count: u64) -> Value {
        json!({
            "name": name, "labels": labels, "unit": "ns", "count": count, "sum": bucket * count,
            "buckets": if count > 0 { json!([[bucket, bucket, count]]) } else { json!([]) },
        })
    }

    /// A gateway that was asked `step` seconds after its start.
    pub(in crate::cli::top) fn sample(step: u64) -> Sample {
        let up = |route: &str| json!({ "route": route, "direction": "to_upstream" });
        let down = |route: &str| json!({ "route": route, "direction": "to_client" });
        let (forward, size) = ("forward_seconds", "message_size_bytes");
        let histograms = json!([
            series(forward, &up("*/chat"), 12_000, 1000 * step),
            series(forward, &down("*/chat"), 85_000, 3000 * step),
            series(size, &up("*/chat"), 120, 1000 * step),
            series(size, &down("*/chat"), 300, 3000 * step),
            series(
                "upstream_handshake_seconds",
                &json!({"route": "*/chat", "stage": "connect"}),
                95_000,
                step
            ),
            series("reply_seconds", &json!({ "route": "*/chat" }), 7_000_000, step),
            series(forward, &down("*/echo"), 2_500_000, 50 * step),
            series(size, &down("*/echo"), 10, 50 * step),
            series(size, &up("*/echo"), 10, 50 * step),
            // It had a client once.
            series(forward, &down("h.example.org/idle"), 1, 7),
            series("loop_iteration_seconds", &json!({"shard": "0"}), 500_000, 1000 * step),
            series("loop_iteration_seconds", &json!({"shard": "1"}), 250_000, 1000 * step),
        ]);
        let status = json!({
            "version": "0.1.0", "pid": 7, "uptime_ms": 1000 * step, "state": { "phase": "serving" },
            "config_generation": 2, "clients": 1200, "upstreams": 1000, "accepted": 20 * step,
            "received_bytes": 2_000_000 * step, "slow_consumers": 3, "memory": { "rss_bytes": 150 << 20 },
            "closed": { "client_close": 15 * step, "slow_consumer": step, "drain": 4 },
            "something": "new",
        });
        let shards = json!([
            { "shard": 0, "clients": 700, "stalls": 2 * step, "cpu_ms": 500 * step },
            { "shard": 1, "clients": 500, "stalls": 0, "cpu_ms": 250 * step, "turn": { "count": 1 } },
        ]);
        let of = |value| serde_json::from_value(value).expect("in order");
        Sample {
            status: of(status),
            reading: serde_json::from_value(json!({ "unix_ms": 1, "histograms": histograms }))
                .expect("in order"),
            shards: serde_json::from_value(shards).expect("in order"),
        }
    }

    #[test]
    fn rates_are_of_the_interval() {
        let view = View::new(&sample(10), &sample(12), 2.0);
        assert_eq!((view.opened_per_second, view.in_per_second), (20.0, 1050.0));
        assert_eq!((view.out_per_second, view.received_bytes_per_second), (3050.0, 2e6));
        assert_eq!((view.clients, view.slow_consumers, &*view.phase), (1200, 3, "serving"));
        let [chat, echo, idle] = &view.routes[..] else { panic!("{:?}", view.routes) };
        assert_eq!((chat.up.per_second, chat.down.per_second), (1000.0, 3000.0));
        assert_eq!((chat.up.mean_bytes, chat.down.mean_bytes), (120.0, 300.0));
        assert_eq!(chat.down.delays_ns, Some([85_000; 4]));
        assert_eq!(chat.connect_p99_ns, Some(95_000));
        assert_eq!((chat.reply_p99_ns, echo.reply_p99_ns), (Some(7_000_000), None));
        assert_eq!((echo.up.delays_ns, echo.down.per_second), (None, 50.0));
        assert_eq!((idle.down.per_second, idle.down.delays_ns), (0.0, None));
        let shard = &view.shards[0];
        assert_eq!((shard.clients, shard.stalls, shard.busy), (700, 4, 0.5));
        assert_eq!(view.shards[1].turn_p99_ns, 250_000);
        let closes: Vec<_> =
            view.closes.iter().map(|it| (&*it.cause, it.per_second, it.total)).collect();
        assert_eq!(
            closes,
            [("client_close", 15.0, 180), ("slow_consumer", 1.0, 12), ("drain", 0.0, 4)]
        );
    }

    #[test]
    fn another_gateway_is_told_since_its_start() {
        let mut later = sample(4);
        later.status.pid = 8;
        let view = View::new(&sample(100), &later, 1.0);
        assert_eq!((view.opened_per_second, view.in_per_second), (20.0, 1050.0));
        // The same process number, started again.
        let view = View::new(&sample(100), &sample(4), 1.0);
        assert_eq!(view.opened_per_second, 20.0);
        // Nothing to compare with.
        assert_eq!(View::new(&Sample::default(), &sample(4), 1.0).opened_per_second, 20.0);
    }

    #[test]
    fn routes_are_sorted_as_wanted() {
        let mut view = View::new(&sample(10), &sample(12), 2.0);
        let mut order = |by: Sort| {
            view.sort(by);
            view.routes.iter().map(|route| route.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(order(Sort::Slowest), ["*/echo", "*/chat", "h.example.org/idle"]);
        assert_eq!(order(Sort::Name), ["*/chat", "*/echo", "h.example.org/idle"]);
        assert_eq!(order(Sort::Messages), ["*/chat", "*/echo", "h.example.org/idle"]);
        let mut sort = Sort::default();
        for name in ["messages", "p99", "name", "messages"] {
            assert_eq!(sort.name(), name);
            sort = sort.next();
        }
    }
}
