//! Everything that is counted and measured, as one list: each form in which it is served is made of it.
//!
//! Nobody is asked for it: shards count where anyone may read, and the rest is the control thread's own
//! or the kernel's. A label has few values, which the operator chooses (routes, shards) or we do
//! (causes, stages): never a client, a user or a room. The help texts are the documentation;
//! `docs/monitoring/README.md` repeats them, under a test.

mod process;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use process::{Process, memory_limit, shard_cpu_seconds};

use crate::config::Config;
use crate::control::{Control, Phase};
use crate::histogram::Snapshot;
use crate::memory::{self, Ledger};
use crate::metrics::{Cause, Counters, Metrics};
use crate::route::RouteIndex;
use crate::shared::Shared;
use crate::totals::{Series, Totals, name_of_place};

/// Names and values.
type Labels = Vec<(&'static str, String)>;

/// A metric, with its value for each set of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// With prefix and unit. A counter's is without `_total`, which its samples have.
    pub name: Cow<'static, str>,
    /// One sentence or two, in one line.
    pub help: Cow<'static, str>,
    /// The kind of metric.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
    /// No two have the same labels.
    pub samples: Vec<Sample>,
}

/// The kinds of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by their size.
    Histogram,
}

/// The unit of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of something.
    Count,
    /// Seconds. A [`Snapshot`] has nanoseconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values.
    pub labels: Labels,
    /// The value of the series.
    pub value: Value,
}

/// What a series has come to.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Something that is counted, exactly.
    Count(u64),
    /// Something that is not.
    Number(f64),
    /// Of a [`Kind::Histogram`].
    Histogram(Snapshot),
}

impl Unit {
    /// How many of what a [`Snapshot`] has are one of this.
    pub fn scale(self) -> f64 {
        match self {
            Unit::Seconds => 1e9,
            Unit::Count | Unit::Bytes => 1.0,
        }
    }
}

impl Family {
    fn new(kind: Kind, unit: Unit, name: &'static str, help: &'static str) -> Family {
        Family {
            name: Cow::Borrowed(name),
            help: Cow::Borrowed(help),
            kind,
            unit,
            samples: Vec::new(),
        }
    }

    fn with(mut self, labels: Labels, value: Value) -> Family {
        self.samples.push(Sample { labels, value });
        self
    }

    fn of(self, value: Value) -> Family {
        self.with(Vec::new(), value)
    }

    /// A sample for each, all with one label.
    fn by<L: ToString>(
        mut self,
        label: &'static str,
        samples: impl IntoIterator<Item = (L, Value)>,
    ) -> Family {
        let samples = samples.into_iter();
        self.samples.extend(
            samples.map(|(text, value)| Sample { labels: vec![(label, text.to_string())], value }),
        );
        self
    }
}

/// What the list is made from.
pub struct View<'a> {
    /// The configuration that new requests go by.
    pub config: &'a Config,
    /// What each shard counts.
    pub shards: &'a [Arc<Counters>],
    /// What they count together.
    pub shared: &'a Shared,
    /// The phase in the life of the gateway.
    pub phase: Phase,
    /// The memory, by holder.
    pub memory: &'a Ledger,
    /// The process as the kernel sees it.
    pub process: Process,
}

/// Everything that is served but the aliases.
pub fn of(control: &Control) -> Vec<Family> {
    View {
        config: &control.config(),
        shards: control.gateway.counters(),
        shared: control.gateway.shared(),
        phase: control.phase(),
        memory: &memory::ledger(control),
        process: Process::read(),
    }
    .families()
}

impl View<'_> {
    /// Everything but the aliases.
    pub fn families(&self) -> Vec<Family> {
        let mut metrics = Metrics::default();
        self.shards.iter().for_each(|counters| metrics.merge(&counters.read()));
        let mut families = self.connections();
        families.extend(counters(&metrics));
        families.push(closed(&metrics));
        families.extend(self.of_histograms(&Totals::read(self.shards)));
        families.extend(self.of_shards());
        families.extend(self.of_control());
        families.extend(self.of_memory());
        families.extend(self.of_process());
        families
    }

    fn sum(&self, of: fn(&Counters) -> u64) -> Value {
        Value::Count(self.shards.iter().map(|counters| of(counters)).sum())
    }

    fn by_shard(&self, family: Family, of: impl Fn(&Counters) -> Value) -> Family {
        let shards = self.shards.iter().enumerate();
        family.by("shard", shards.map(|(shard, counters)| (shard, of(counters))))
    }

    fn connections(&self) -> Vec<Family> {
        let gauge = |name, help| Family::new(Kind::Gauge, Unit::Count, name, help);
        let routes = self.on_routes();
        let clients = routes.iter().map(|(route, on_it)| (route, Value::Count(on_it.0)));
        let upstreams = routes.iter().map(|(route, on_it)| (route, Value::Count(on_it.1)));
        vec![
            self.by_shard(
                gauge("penstock_connections", "Clients, from the accept on."),
                |counters| Value::Count(counters.clients.get()),
            ),
            gauge(
                "penstock_connections_max",
                "Clients that are let in at most (limits.connections_max).",
            )
            .of(Value::Count(self.config.limits.connections_max.into())),
            gauge("penstock_route_connections", "Clients that were admitted to a route.")
                .by("route", clients),
            self.by_shard(
                gauge("penstock_upstream_connections", "Connections to upstreams."),
                |counters| Value::Count(counters.upstreams.get()),
            ),
            gauge(
                "penstock_route_upstream_connections",
                "Connections to upstreams on behalf of a route's clients.",
            )
            .by("route", upstreams),
            gauge(
                "penstock_slow_consumers",
                "Peers that do not keep up: those for whose sake another is not read, and \
                 members of rooms with a backlog.",
            )
            .of(self.sum(|it| it.slow_consumers.get())),
            gauge("penstock_peers_waiting", "Peers that have messages waiting in an outbox.")
                .of(self.sum(|it| it.waiting.get())),
            gauge("penstock_rooms", "Rooms that there are.").of(self.sum(|it| it.rooms.get())),
            gauge("penstock_subscriptions", "Memberships of clients in rooms.")
                .of(self.sum(|it| it.subscriptions.get())),
        ]
    }

    /// Clients and connections to upstreams, by route.
    fn on_routes(&self) -> BTreeMap<String, (u64, u64)> {
        let mut routes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        // There are at most `ROUTE_NUMBERS_MAX`.
        for (number, place) in (0..=u16::MAX).zip(0..self.config.routes.numbers()) {
            let on_route = self.shared.route(number);
            let (clients, upstreams) = (on_route.clients.taken(), on_route.upstreams.taken());
            if clients == 0 && upstreams == 0 && self.config.routes.is_retired(RouteIndex(number)) {
                continue;
            }
            let sum = routes.entry(name_of_place(self.config, place)).or_default();
            *sum = (sum.0 + u64::from(clients), sum.1 + u64::from(upstreams));
        }
        routes
    }

    /// Everything that has a histogram: those, and what their counts and sums are besides.
    fn of_histograms(&self, totals: &Totals) -> Vec<Family> {
        let mut messages = Family::new(
            Kind::Counter,
            Unit::Count,
            "penstock_messages",
            "Messages from clients (to_upstream), and for clients: from an upstream, a room or \
             the echo (to_client).",
        );
        let mut payload = Family::new(
            Kind::Counter,
            Unit::Bytes,
            "penstock_payload_bytes",
            "Payload of those messages, as it was on the wire.",
        );
        // By name, in the order in which they come. Routes that differ in nothing but the backend that
        // they lead, or led, to have the same labels.
        let mut families: Vec<(Family, BTreeMap<Labels, Snapshot>)> = HISTOGRAMS
            .iter()
            .map(|(name, help)| (histogram(name, help), BTreeMap::new()))
            .collect();
        for Series { name, labels, snapshot, .. } in totals.series(self.config) {
            let family =
                families.iter_mut().find(|(family, _)| &family.name["penstock_".len()..] == name);
            if let Some((_, series)) = family {
                series.entry(labels).or_default().add(snapshot);
            }
        }
        for (family, series) in &mut families {
            for (labels, snapshot) in std::mem::take(series) {
                if family.name == "penstock_message_size_bytes" {
                    messages = messages.with(labels.clone(), Value::Count(snapshot.count()));
                    payload = payload.with(labels.clone(), Value::Count(snapshot.sum()));
                }
                family.samples.push(Sample { labels, value: Value::Histogram(snapshot) });
            }
        }
        let families = families.into_iter().map(|(family, _)| family);
        [messages, payload].into_iter().chain(families).collect()
    }

    fn of_shards(&self) -> Vec<Family> {
        let stalls = Family::new(
            Kind::Counter,
            Unit::Count,
            "penstock_loop_stalls",
            "Turns of a shard's loop that took longer than 10 ms.",
        );
        let cpu = Family::new(
            Kind::Counter,
            Unit::Seconds,
            "penstock_shard_cpu_seconds",
            "Processor time of a shard's thread: its rate is how busy the core is with it, from \
             0 to 1.",
        );
        let times = self.process.shards.iter();
        vec![
            self.by_shard(stalls, |counters| Value::Count(counters.recorder.stalls.get())),
            cpu.by("shard", times.map(|(shard, seconds)| (shard, Value::Number(*seconds)))),
            Family::new(
                Kind::Counter,
                Unit::Count,
                "penstock_fanout_behind",
                "Deliveries of rooms to members that had not taken everything before.",
            )
            .of(self.sum(|it| it.recorder.fanout_behind.get())),
        ]
    }

    fn of_control(&self) -> Vec<Family> {
        let gauge = |name, help| Family::new(Kind::Gauge, Unit::Count, name, help);
        let is = |fact: bool| Value::Count(fact.into());
        let draining = matches!(self.phase, Phase::Draining { .. });
        let clients: u64 = self.shards.iter().map(|counters| counters.clients.get()).sum();
        vec![
            gauge("penstock_ready", "1 while new clients are wanted, 0 once it is about to stop.")
                .of(is(self.phase == Phase::Serving)),
            gauge("penstock_draining", "1 while clients are asked to leave.").of(is(draining)),
            gauge("penstock_drain_remaining", "Clients that have not left yet, while it drains.")
                .of(Value::Count(if draining { clients } else { 0 })),
            gauge(
                "penstock_config_generation",
                "How often the configuration has changed since the start.",
            )
            .of(Value::Count(self.config.generation)),
            gauge("penstock_build_info", "What runs; always 1.")
                .with(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], Value::Count(1)),
        ]
    }

    /// What memory is used for, beside what may be.
    fn of_memory(&self) -> Vec<Family> {
        let bytes = |name, help| Family::new(Kind::Gauge, Unit::Bytes, name, help);
        let ledger = self.memory;
        let components = ledger.components.iter();
        let limit = bytes(
            "penstock_memory_limit_bytes",
            "Memory that the process can use: the limit of its control groups or, without one, \
             all of the machine.",
        );
        vec![
            bytes(
                "penstock_memory_bytes",
                "What holds resident memory, by the memory ledger, which is made every few seconds.",
            )
            .by("component", components.map(|(name, bytes)| (name, Value::Count(*bytes)))),
            bytes(
                "penstock_memory_unaccounted_bytes",
                "Resident memory that the ledger knows no holder of; negative when it knows of more.",
            )
            .of(Value::Number(ledger.unaccounted_bytes as f64)),
            bytes(
                "penstock_memory_kernel_bytes",
                "Kernel memory for sockets, which is not resident memory; in part an estimate.",
            )
            .of(Value::Count(ledger.kernel_bytes)),
            bytes(
                "penstock_memory_bound_bytes",
                "Memory that the gateway would use if every client used all it may.",
            )
            .of(Value::Count(ledger.bound_bytes)),
            bytes(
                "penstock_memory_used_bytes",
                "Memory that counts against the budget: what shards have on the heap.",
            )
            .of(Value::Count(self.shared.budget.used_bytes())),
            bytes(
                "penstock_memory_budget_bytes",
                "What that may come to before something gives way (server.memory_bytes_max).",
            )
            .of(Value::Count(self.shared.budget.bytes_max())),
            match self.process.memory_limit_bytes {
                Some(limit_bytes) => limit.of(Value::Count(limit_bytes)),
                None => limit,
            },
        ]
    }

    /// Under the names that Prometheus client libraries use.
    fn of_process(&self) -> Vec<Family> {
        let Process { cpu_seconds, resident_bytes, virtual_bytes, .. } = &self.process;
        let Process { start_seconds, open_fds, max_fds, .. } = &self.process;
        let some = |kind, unit, name, help, value: Option<Value>| {
            let family = Family::new(kind, unit, name, help);
            match value {
                Some(value) => family.of(value),
                None => family,
            }
        };
        let (gauge, count, number) = (Kind::Gauge, Value::Count, Value::Number);
        vec![
            some(
                Kind::Counter,
                Unit::Seconds,
                "process_cpu_seconds",
                "Processor time of all threads, user and system.",
                cpu_seconds.map(number),
            ),
            some(
                gauge,
                Unit::Bytes,
                "process_resident_memory_bytes",
                "Memory that the process occupies.",
                resident_bytes.map(count),
            ),
            some(
                gauge,
                Unit::Bytes,
                "process_virtual_memory_bytes",
                "Addresses that the process has taken.",
                virtual_bytes.map(count),
            ),
            some(
                gauge,
                Unit::Seconds,
                "process_start_time_seconds",
                "When the process started, since 1970.",
                start_seconds.map(number),
            ),
            some(
                gauge,
                Unit::Count,
                "process_open_fds",
                "Descriptors that are open. Connections are not among them: they have a table of \
                 their own.",
                open_fds.map(count),
            ),
            some(
                gauge,
                Unit::Count,
                "process_max_fds",
                "Descriptors that may be open.",
                max_fds.map(count),
            ),
        ]
    }
}

/// Every histogram of `totals.rs`, and what it holds.
const HISTOGRAMS: [(&str, &str); 13] = [
    (
        "penstock_forward_seconds",
        "From the receive of a message (of a publication; of the message that is echoed) until \
         the socket of whom it is for took it.",
    ),
    (
        "penstock_reply_seconds",
        "From a client's message until the next of its upstream: what an upstream takes to \
         answer, where it answers. Of ordinary HTTP, until the head of the answer.",
    ),
    ("penstock_message_size_bytes", "Payload of a message, as it was on the wire."),
    (
        "penstock_handshake_seconds",
        "Handshakes of clients, from the accept: until the head of the first request was read \
         (head), until the 101 was queued (total).",
    ),
    (
        "penstock_upstream_handshake_seconds",
        "Handshakes with upstreams: of one attempt until it was connected (connect), from then \
         until it accepted the upgrade (answer); from the client's request, with all attempts \
         (total).",
    ),
    (
        "penstock_rtt_seconds",
        "From a Ping to a client of echo or rooms until the next that came from it.",
    ),
    (
        "penstock_fanout_seconds",
        "From a publication until the first, and the last, member in a shard that had nothing \
         waiting was sent it.",
    ),
    (
        "penstock_fanout_recipients",
        "Members in a shard that were sent a publication and had nothing waiting.",
    ),
    (
        "penstock_queue_age_seconds",
        "How old the oldest message of an outbox was when the socket took it, once for all that \
         was queued together.",
    ),
    ("penstock_loop_iteration_seconds", "Work of one turn of a shard's loop."),
    ("penstock_backend_connect_seconds", "From trying an upstream until it was connected."),
    ("penstock_backend_answer_seconds", "From then until the upstream accepted the upgrade."),
    (
        "penstock_backend_reply_seconds",
        "What penstock_reply_seconds has, by upstream instead of route.",
    ),
];

fn histogram(name: &'static str, help: &'static str) -> Family {
    let unit = match name {
        name if name.ends_with("_seconds") => Unit::Seconds,
        name if name.ends_with("_bytes") => Unit::Bytes,
        _ => Unit::Count,
    };
    Family::new(Kind::Histogram, unit, name, help)
}

/// A counter's name in code is its name here, but for a few that others call otherwise.
fn counters(metrics: &Metrics) -> impl Iterator<Item = Family> {
    metrics.each().map(|(name, help, count)| {
        let name = match name {
            "accepted" => "connections_opened",
            "messages_dropped" => "dropped_messages",
            "messages_conflated" => "conflated",
            "gap_markers_sent" => "gaps_sent",
            name => name,
        };
        let unit = if name.ends_with("_bytes") { Unit::Bytes } else { Unit::Count };
        Family {
            name: Cow::Owned(format!("penstock_{name}")),
            help: Cow::Borrowed(help.trim()),
            kind: Kind::Counter,
            unit,
            samples: vec![Sample { labels: Vec::new(), value: Value::Count(count) }],
        }
    })
}

fn closed(metrics: &Metrics) -> Family {
    let name = "penstock_connections_closed";
    let help = "Clients whose connection is over, by why and by who ended it.";
    Cause::ALL.iter().fold(Family::new(Kind::Counter, Unit::Count, name, help), |family, cause| {
        let (name, initiator) = (cause.name().to_owned(), cause.initiator().name().to_owned());
        family.with(
            vec![("cause", name), ("initiator", initiator)],
            Value::Count(metrics.closed(*cause)),
        )
    })
}

/// Whether a connection that was closed for this counts as an error for those who count no causes: it
/// was refused, broke a rule, or was failed by us or by an upstream. Who leaves, with or without a
/// word, is none.
fn is_error(cause: Cause) -> bool {
    match cause {
        Cause::ClientTimeoutHandshake
        | Cause::HandshakeRejected
        | Cause::ProtocolError
        | Cause::BadUtf8
        | Cause::TooBig
        | Cause::RateLimited
        | Cause::OriginDenied
        | Cause::IpDenied
        | Cause::SlowConsumer
        | Cause::BackendGone
        | Cause::BackendProtocolError
        | Cause::BackendTimeout
        | Cause::MemoryPressure
        | Cause::MemoryShort
        | Cause::InternalError => true,
        Cause::ClientClose
        | Cause::ClientGone
        | Cause::ClientTimeoutPing
        | Cause::ClientTimeoutIdle
        | Cause::DurationLimit
        | Cause::HttpDone
        | Cause::BackendClose
        | Cause::Drain
        | Cause::AdminClose => false,
    }
}

/// The names that common guides use, so that their dashboards and autoscalers work as they are.
/// `families`: what [`of`] has; `rate`: messages in a second, lately.
pub fn aliases(families: &[Family], rate: f64) -> Vec<Family> {
    let sum = |name: &str, counts: &dyn Fn(&Labels) -> bool| {
        let samples = families.iter().filter(|family| family.name == name);
        let samples = samples.flat_map(|family| &family.samples);
        let counts =
            samples.filter(|sample| counts(&sample.labels)).map(|sample| match &sample.value {
                Value::Count(count) => *count,
                Value::Number(_) | Value::Histogram(_) => 0,
            });
        Value::Count(counts.sum())
    };
    let every = |_: &Labels| true;
    let is_error = |labels: &Labels| {
        let mut errors = Cause::ALL.into_iter().filter(|cause| is_error(*cause));
        errors.any(|cause| labels.iter().any(|(_, value)| value == cause.name()))
    };
    let clients = sum("penstock_connections", &every);
    let one = |kind, name, help, value| Family::new(kind, Unit::Count, name, help).of(value);
    let same = "The sum of penstock_connections.";
    vec![
        one(Kind::Gauge, "websocket_connections", same, clients.clone()),
        one(Kind::Gauge, "websocket_connections_active", same, clients.clone()),
        one(Kind::Gauge, "websocket_active_connections", same, clients.clone()),
        one(
            Kind::Counter,
            "ws_connections",
            "The same as penstock_upgraded_total.",
            sum("penstock_upgraded", &every),
        ),
        one(
            Kind::Counter,
            "ws_messages",
            "The sum of penstock_messages_total.",
            sum("penstock_messages", &every),
        ),
        one(
            Kind::Counter,
            "ws_connection_errors",
            "Of penstock_connections_closed_total, those that were refused, broke a rule, or \
             were failed by the gateway or an upstream.",
            sum("penstock_connections_closed", &is_error),
        ),
        one(
            Kind::Gauge,
            "messages_per_second",
            "How fast ws_messages_total grew in the last interval of 5 seconds.",
            Value::Number(rate),
        ),
    ]
}

#[cfg(test)]
pub(crate) mod tests;
