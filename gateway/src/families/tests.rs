use std::collections::BTreeSet;

use super::*;
use crate::config::BackendKind;
use crate::upstream::UpstreamName;

/// What is served once everything has happened: a route to an upstream, one to rooms, one that is beyond
/// those with histograms of their own; `shards` shards that have recorded the same.
pub(crate) struct Scene {
    pub(crate) config: Config,
    pub(crate) shards: Vec<Arc<Counters>>,
    shared: Shared,
}

impl Scene {
    pub(crate) fn new(shards: usize, routes: usize) -> Scene {
        let mut text = String::from("[[listener]]\naddress = \"127.0.0.1:0\"\n");
        for route in 0..routes {
            let backend = ["app", "rooms"][route % 2];
            text += &format!("[[route]]\npath = \"/r{route:03}\"\nbackend = \"{backend}\"\n");
        }
        text += "[backend.app]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:9\"\n\
                 [backend.rooms]\nkind = \"local\"\n";
        let config = Config::parse("test", &text).unwrap_or_else(|faults| panic!("{faults}"));
        let shards: Vec<Arc<Counters>> = (0..shards).map(|_| Arc::default()).collect();
        let shared = Shared::default();
        Scene { config, shards, shared }
    }

    /// Something of everything in every shard and route; values from 1 µs to 10 s, so that the buckets are
    /// as many as they can be in earnest.
    pub(crate) fn record(&self) {
        for counters in &self.shards {
            counters.clients.add(3);
            counters.upgraded.add(3);
            counters.messages_relayed.add(5);
            counters.count_close(Cause::BackendGone);
            counters.count_close(Cause::ClientClose);
            let recorder = &counters.recorder;
            let BackendKind::Websocket(app) = &self.config.backends[0].kind else { unreachable!() };
            let app = &app.upstreams[0];
            recorder.upstream(0, UpstreamName::new(&app.url, &app.address));
            let (_, app) = recorder.upstreams().remove(0);
            for exponent in 10..33 {
                let value = (1 << exponent) + (1 << (exponent - 2));
                for durations in [&recorder.head, &recorder.upgrade, &recorder.ping, &recorder.turn]
                {
                    durations.record(value, 1);
                }
                for durations in
                    [&recorder.fanout_first, &recorder.fanout_last, &recorder.outbox_age]
                {
                    durations.record(value, 1);
                }
                recorder.fanout_members.record(value >> 10, 1);
                for durations in [&app.connect, &app.answer, &app.reply] {
                    durations.record(value, 1);
                }
                for route in self.config.routes.iter() {
                    let route = recorder.route(route.index.0);
                    for durations in [
                        &route.connect,
                        &route.answer,
                        &route.upstream,
                        &route.reply,
                        &route.to_upstream,
                        &route.to_client,
                    ] {
                        durations.record(value, 2);
                    }
                    route.from_client_sizes.record(64, 1);
                    route.to_client_sizes.record(value >> 8, 1);
                }
            }
        }
        for route in self.config.routes.iter() {
            self.shared.route(route.index.0).clients.take();
        }
    }

    pub(crate) fn families(&self) -> Vec<Family> {
        View {
            config: &self.config,
            shards: &self.shards,
            shared: &self.shared,
            phase: Phase::Serving,
            memory: &crate::memory::Ledger {
                components: vec![("table", 5), ("timers", 3)],
                ..Default::default()
            },
            process: Process { shards: vec![(0, 1.5)], ..Process::read() },
        }
        .families()
    }

    /// With the aliases.
    pub(crate) fn everything(&self) -> Vec<Family> {
        let mut families = self.families();
        let aliases = aliases(&families, 1.5);
        families.extend(aliases);
        families
    }
}

#[test]
fn names_are_names_and_no_series_is_there_twice() {
    let scene = Scene::new(2, 70);
    scene.record();
    let mut names = BTreeSet::new();
    for family in scene.everything() {
        let name = family.name.as_ref();
        let ours = ["penstock_", "process_", "websocket_", "ws_"];
        let is_ours = ours.iter().any(|prefix| name.starts_with(prefix));
        assert!(is_ours || name == "messages_per_second", "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(names.insert(name.to_owned()), "{name} twice");
        for suffix in ["_total", "_count", "_sum", "_bucket"] {
            assert!(!name.ends_with(suffix), "{name}");
        }
        let unit = match family.unit {
            Unit::Seconds => "_seconds",
            Unit::Bytes => "_bytes",
            Unit::Count => "",
        };
        assert!(name.ends_with(unit), "{name}");
        assert!(family.help.ends_with('.') && !family.help.contains('\n'), "{name}");
        let labels: BTreeSet<_> = family.samples.iter().map(|sample| &sample.labels).collect();
        assert_eq!(labels.len(), family.samples.len(), "{name}");
        assert!(!family.samples.is_empty(), "{name} has no samples");
        for sample in &family.samples {
            let is_histogram = matches!(sample.value, Value::Histogram(_));
            assert_eq!(is_histogram, family.kind == Kind::Histogram, "{name}");
            for (label, value) in &sample.labels {
                let known = [
                    "route",
                    "direction",
                    "stage",
                    "cause",
                    "initiator",
                    "shard",
                    "delivery",
                    "component",
                    "backend",
                    "upstream",
                    "version",
                ];
                assert!(known.contains(label), "{name}: {label}={value}");
            }
        }
    }
}

fn find<'a>(families: &'a [Family], name: &str, labels: &[(&str, &str)]) -> &'a Value {
    let family = families.iter().find(|family| family.name == name).expect("it is there");
    let is = |sample: &&Sample| {
        let got = sample.labels.iter().map(|(label, value)| (*label, value.as_str()));
        got.eq(labels.iter().copied())
    };
    &family.samples.iter().find(is).unwrap_or_else(|| panic!("{name} {labels:?}")).value
}

#[test]
fn shards_are_added_up_and_routes_beyond_the_bound_share() {
    let scene = Scene::new(2, 70);
    scene.record();
    let families = scene.families();
    let count = |name, labels: &[(&str, &str)]| match find(&families, name, labels) {
        Value::Count(count) => *count,
        Value::Histogram(snapshot) => snapshot.count(),
        Value::Number(number) => panic!("{name} is {number}"),
    };
    assert_eq!(count("penstock_connections", &[("shard", "1")]), 3);
    assert_eq!(count("penstock_upgraded", &[]), 6);
    let gone = [("cause", "backend_gone"), ("initiator", "backend")];
    assert_eq!(count("penstock_connections_closed", &gone), 2);
    let up = |route| [("route", route), ("direction", "to_upstream")];
    assert_eq!(count("penstock_forward_seconds", &up("*/r000")), 2 * 23 * 2);
    assert_eq!(count("penstock_messages", &up("*/r063")), 2 * 23);
    assert_eq!(count("penstock_payload_bytes", &up("*/r063")), 2 * 23 * 64);
    assert_eq!(count("penstock_forward_seconds", &up("other")), 6 * 2 * 23 * 2);
    assert_eq!(count("penstock_route_connections", &[("route", "*/r001")]), 1);
    assert_eq!(count("penstock_route_connections", &[("route", "other")]), 6);
    assert_eq!(count("penstock_loop_iteration_seconds", &[("shard", "0")]), 23);
}

#[test]
fn who_leaves_is_no_error() {
    let scene = Scene::new(1, 1);
    scene.record();
    let families = scene.everything();
    assert_eq!(find(&families, "ws_connection_errors", &[]), &Value::Count(1));
    assert_eq!(find(&families, "ws_messages", &[]), &Value::Count(46));
    assert_eq!(find(&families, "websocket_connections", &[]), &Value::Count(3));
}

/// The table of docs/monitoring/README.md, as it should be.
fn table(families: &[Family]) -> String {
    let mut table = String::from("| Metric | Type | Labels | |\n| --- | --- | --- | --- |\n");
    for family in families {
        let (kind, total) = match family.kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram => ("histogram", ""),
        };
        let labels = family.samples.first().map_or(&[][..], |sample| &sample.labels);
        let labels: Vec<_> = labels.iter().map(|(label, _)| format!("`{label}`")).collect();
        let (name, labels, help) = (&family.name, labels.join(", "), &family.help);
        table += &format!("| `{name}{total}` | {kind} | {labels} | {help} |\n");
    }
    table
}

#[test]
fn the_documentation_lists_what_there_is() {
    let scene = Scene::new(1, 2);
    scene.record();
    let table = table(&scene.everything());
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring/README.md");
    let docs = std::fs::read_to_string(docs).expect("a file");
    assert!(docs.contains(&table), "docs/monitoring/README.md has to have this table:\n{table}");
}
