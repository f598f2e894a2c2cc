//! What is said of two files, what is refused, and random files one after the other against a slow
//! reference.

use std::collections::HashSet;
use std::time::Instant;

use super::super::check::check;
use super::super::tests::{good, machine};
use super::super::{Machine, Overrides};
use super::*;
use crate::ring::sim::Random;

/// Files to be changed: a listener, and a route and a backend for each kind.
const FILE: &str = "\
[[listener]]
address = \"127.0.0.1:8080\"
[[route]]
host = \"chat.example.org\"
path = \"/chat/*\"
backend = \"app\"
[[route]]
backend = \"rooms\"
[backend.app]
kind = \"websocket\"
sticky_cookie = true
sticky_cookie_secret = \"hunter2\"
[[backend.app.upstream]]
url = \"ws://10.0.0.5:3000\"
[[backend.app.upstream]]
url = \"ws://10.0.0.6:3000\"
weight = 1
[backend.rooms]
kind = \"local\"
[limits]
ping_interval_ms = 25_000
";

/// [`FILE`] with `from` replaced.
#[track_caller]
fn with(from: &str, to: &str) -> String {
    assert_eq!(FILE.matches(from).count(), 1, "{from}");
    FILE.replace(from, to)
}

fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(Change::to_string).collect()
}

#[test]
fn changes_in_the_words_of_the_file() {
    let listed = "[[backend.app.upstream]]\nurl = \"ws://10.0.0.6:3000\"\nweight = 1\n";
    for (new, want) in [
        (FILE.to_owned(), vec![]),
        // What means the same.
        (with("ping_interval_ms = 25_000", "ping_interval_ms = 0x61A8\nheaders_max = 64"), vec![]),
        (with("host = \"chat.example.org\"", "host = \"CHAT.example.org.\""), vec![]),
        (with("ws://10.0.0.5:3000", "WS://10.0.0.5:3000"), vec![]),
        (with("weight = 1\n", ""), vec![]),
        (with("kind = \"local\"", "kind = \"local\"\nrooms_max = 100_000"), vec![]),
        // Values.
        (with("25_000", "20_000"), vec!["limits.ping_interval_ms 25000 -> 20000"]),
        (
            with("ping_interval_ms = 25_000", "message_bytes_max = 2_000_000"),
            // What follows from it is said once, but not for each of the routes.
            vec![
                "limits.message_bytes_max 1048576 (upstreams: 0) -> 2000000",
                "limits.outbox_bytes_max 1049600 -> 2001024",
            ],
        ),
        (
            with("backend = \"app\"", "backend = \"rooms\""),
            vec!["route chat.example.org/chat/*: backend \"app\" -> \"rooms\""],
        ),
        (
            with("backend = \"rooms\"", "backend = \"rooms\"\nping_interval_ms = 1000"),
            vec!["route /*: ping_interval_ms 25000 -> 1000"],
        ),
        (
            with("kind = \"local\"", "kind = \"local\"\nhistory_age_ms = 60_000"),
            vec!["backend \"rooms\": history_age_ms 120000 -> 60000"],
        ),
        (
            with("weight = 1", "weight = 5"),
            vec!["backend \"app\": upstream ws://10.0.0.6:3000 weight 1 -> 5"],
        ),
        (
            with("kind = \"local\"", "kind = \"echo\""),
            vec!["backend \"rooms\": kind \"local\" -> \"echo\""],
        ),
        // A secret is compared and not shown.
        (with("hunter2", "hunter3"), vec!["backend \"app\": sticky_cookie_secret changed"]),
        (
            with("sticky_cookie_secret = \"hunter2\"\n", ""),
            vec!["backend \"app\": sticky_cookie_secret changed"],
        ),
        // What comes and goes.
        (with(listed, ""), vec!["backend \"app\": upstream ws://10.0.0.6:3000 removed"]),
        (
            with("10.0.0.6", "10.0.0.7"),
            vec![
                "backend \"app\": upstream ws://10.0.0.7:3000 added",
                "backend \"app\": upstream ws://10.0.0.6:3000 removed",
            ],
        ),
        (
            with("path = \"/chat/*\"", "path = \"/chat\"\nsubprotocol = \"v2\""),
            vec![
                "route chat.example.org/chat with v2 added",
                "route chat.example.org/chat/* removed",
            ],
        ),
        (
            // Its upstreams come with it.
            format!(
                "{FILE}[backend.more]\nkind = \"websocket\"\n\
                 [[backend.more.upstream]]\nurl = \"ws://10.0.0.8\"\n"
            ),
            vec!["backend \"more\" added"],
        ),
        (
            format!("{FILE}[backend.one]\nkind = \"websocket\"\nurl = \"ws://10.0.0.8\"\n"),
            vec!["backend \"one\" added"],
        ),
        (
            format!("{FILE}[server]\nstop_timeout_ms = 20_000\n"),
            vec!["server.stop_timeout_ms 10000 -> 20000"],
        ),
        (
            format!("{FILE}[server]\ndrain_message = \"bye\"\n"),
            vec!["server.drain_message \"\" -> \"bye\""],
        ),
    ] {
        let (old, new) = (good(FILE), good(&new));
        let all = changes(&old, &new);
        assert_eq!(lines(&all), want);
        let done = succeed(&old, new, |_| true).unwrap_or_else(|refusal| panic!("{refusal}"));
        assert_eq!((done.changes, done.config.generation), (all, 1));
    }
}

#[test]
fn no_secret_is_shown() {
    let secretive = with("hunter2", "hunter3");
    let done = succeed(&good(FILE), good(&secretive), |_| true).expect("a reload");
    assert_eq!(done.changes.len(), 1);
    assert!(!format!("{done:?}").contains("hunter"), "{done:?}");
}

#[test]
fn a_name_that_means_another_address_is_a_change() {
    fn other(_: &str, port: u16) -> std::io::Result<Vec<std::net::SocketAddr>> {
        Ok(vec![([192, 0, 2, 8], port).into()])
    }
    let text = with("ws://10.0.0.5:3000", "ws://backend.test");
    let moved = Machine { resolve: other, ..machine() };
    let new = check("f", &text, &moved, &Overrides::default()).0.expect("in order");
    let got = lines(&changes(&good(&text), &new));
    let want = "backend \"app\": upstream ws://backend.test:80 url \
                \"ws://backend.test:80\" (192.0.2.7:80) -> \"ws://backend.test:80\" (192.0.2.8:80)";
    // The other one is an address, for which this resolver has another one, too.
    assert!(got.contains(&want.to_owned()), "{got:#?}");
}

#[test]
fn a_long_value_is_cut_in_the_log() {
    let cookie = |name: &str| format!("sticky_cookie = true\nsticky_cookie_name = \"{name}\"");
    let new = good(&with("sticky_cookie = true", &cookie(&"x".repeat(1000))));
    let old = good(&with("sticky_cookie = true", &cookie("a")));
    let line = &lines(&changes(&old, &new))[0];
    assert!(line.ends_with("xxx…") && line.chars().count() < 300, "{line}");
    let longer = good(&with("sticky_cookie = true", &cookie(&"x".repeat(1001))));
    assert_eq!(changes(&new, &longer).len(), 1);
}

#[test]
fn what_needs_a_restart_is_refused_at_once() {
    let old = good(FILE);
    for (new, want) in [
        (
            format!("{FILE}[server]\nshards = 3\nslots_per_shard = 100\n"),
            vec![
                "`server.shards` is 2 and would become 3: each shard is a thread with connections",
                "`server.slots_per_shard` is 20000 and would become 100: the tables",
            ],
        ),
        (
            format!(
                "{FILE}send_buffer_bytes = 1\nreceive_buffer_bytes = 2\n[server]\npin = false\n\
                 receive_buffers = 4\nreceive_buffer_bytes = 2048\nincremental = \"off\"\n"
            ),
            vec![
                "`server.pin` is true and would become false: threads",
                "`server.receive_buffers` is 16 and would become 4: the kernel",
                "`server.receive_buffer_bytes` is 65536 and would become 2048: the kernel",
                "`server.incremental` is \"auto\" and would become \"off\": the kernel",
                "`limits.send_buffer_bytes` is 262144 and would become 1: listeners",
                "`limits.receive_buffer_bytes` is 0 and would become 2: listeners",
            ],
        ),
        (
            with("address = \"127.0.0.1:8080\"", "address = \"127.0.0.1:8081\""),
            vec![
                "listener \"127.0.0.1:8081\" at 127.0.0.1:8081 is new: the sockets",
                "listener \"127.0.0.1:8080\" at 127.0.0.1:8080 would be gone: the sockets",
            ],
        ),
    ] {
        let refusal = succeed(&old, good(&new), |_| true).expect_err("a refusal");
        let same = refusal.list.len() == want.len()
            && refusal.list.iter().zip(&want).all(|(got, want)| got.starts_with(want));
        assert!(same, "got\n{refusal}\nwant\n{}", want.join("\n"));
        assert!(
            refusal.list.iter().all(|it| it.ends_with("restart for this change, or put it back"))
        );
        assert_eq!(refusal.to_string().lines().count(), want.len());
        // Back again is as much a change, and nothing is none.
        assert!(succeed(&good(&new), good(FILE), |_| true).is_err());
        assert!(succeed(&good(&new), good(&new), |_| true).is_ok());
    }
}

#[test]
fn a_listener_stays_where_it_is() {
    let named = |address: &str| {
        good(&with(
            "address = \"127.0.0.1:8080\"",
            &format!("name = \"a\"\naddress = \"{address}\""),
        ))
    };
    let old = named("127.0.0.1:8080");
    let refusal = succeed(&old, named("127.0.0.1:8081"), |_| true).expect_err("a refusal");
    let want = "`address` of listener \"a\" is 127.0.0.1:8080 and would become 127.0.0.1:8081: the";
    assert!(refusal.list[0].starts_with(want), "{refusal}");
    let change = changes(&old, &named("127.0.0.1:8081"));
    let want = "listener \"a\": address \"127.0.0.1:8080\" -> \"127.0.0.1:8081\"";
    assert_eq!(lines(&change), [want]);
}

#[test]
fn the_command_line_goes_first_at_a_reload_too() {
    let overrides = Overrides { shards: Some(1), listen: vec![([127, 0, 0, 1], 1).into()] };
    let read = |text: &str| check("f", text, &machine(), &overrides).0.expect("in order");
    let other = with("127.0.0.1:8080", "127.0.0.1:9090") + "[server]\nshards = 2\n";
    let done = succeed(&read(FILE), read(&other), |_| true).expect("a reload");
    assert_eq!(lines(&done.changes), Vec::<String>::new());
}

#[test]
fn listeners_keep_their_order() {
    let two = |first: &str, second: &str| {
        let listener = |port: &str| format!("[[listener]]\naddress = \"127.0.0.1:{port}\"\n");
        good(&format!(
            "{}{}[[route]]\nbackend = \"e\"\n[backend.e]\nkind = \"echo\"\n",
            listener(first),
            listener(second)
        ))
    };
    let done = succeed(&two("1", "2"), two("2", "1"), |_| true).expect("a reload");
    assert_eq!(done.changes, []);
    assert_eq!(done.config.listeners, two("1", "2").listeners);
}

/// A file with these routes, as `path backend`, and these backends, as `name kind`.
fn file(routes: &[(String, String)], backends: &[(String, &str)]) -> String {
    let mut text = "[[listener]]\naddress = \"127.0.0.1:8080\"\n".to_owned();
    for (requests, backend) in routes {
        text += &format!("[[route]]\n{requests}\nbackend = \"{backend}\"\n");
    }
    for (name, kind) in backends {
        text += &format!("[backend.{name}]\nkind = \"{kind}\"\n");
        if *kind == "websocket" {
            text += "url = \"ws://10.0.0.1\"\n";
        }
    }
    text
}

fn small(routes: &[(&str, &str)], backends: &[(&str, &'static str)]) -> Config {
    let routes: Vec<(String, String)> = routes
        .iter()
        .map(|(path, backend)| (format!("path = \"{path}\""), (*backend).to_owned()))
        .collect();
    let backends: Vec<(String, &str)> =
        backends.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    good(&file(&routes, &backends))
}

/// The number of the route for `path`.
fn route(config: &Config, path: &str) -> RouteIndex {
    config.routes.find("h", path, std::iter::empty()).expect("a route").index
}

fn follow(old: &Config, new: Config, in_use: impl Fn(Number) -> bool) -> Config {
    succeed(old, new, in_use).unwrap_or_else(|refusal| panic!("{refusal}")).config
}

#[test]
fn numbers_stay_while_they_are_in_use() {
    let one = small(&[("/a", "x"), ("/b", "y")], &[("x", "echo"), ("y", "local")]);
    let (a, b) = (route(&one, "/a"), route(&one, "/b"));

    // A route and its backend go, others come: numbers of their own.
    let two =
        follow(&one, small(&[("/b", "y"), ("/c", "z")], &[("z", "echo"), ("y", "local")]), |_| {
            unreachable!("nothing was retired before")
        });
    let c = route(&two, "/c");
    assert_eq!(route(&two, "/b"), b);
    assert!(c != a && c != b);
    assert!(two.routes.is_retired(a) && !two.routes.is_retired(b));
    assert!(two.routes.find("h", "/a", std::iter::empty()).is_none());
    let backend = two.backend(two.routes.get(a));
    assert_eq!((backend.name.as_str(), backend.retired), ("x", true));
    let live: Vec<(u16, &str)> =
        two.live_backends().map(|(number, backend)| (number, backend.name.as_str())).collect();
    assert_eq!(live, [(1, "y"), (2, "z")]);

    // Somebody is on the route that is gone: neither its number nor its backend's is given away.
    let wanted = || small(&[("/d", "w")], &[("w", "echo")]);
    let three = follow(&two, wanted(), |number| number == Number::Route(a));
    assert_eq!((route(&three, "/d").0, three.backends.len()), (3, 4));
    assert_eq!(three.backend(three.routes.get(a)).name, "x");
    // Nobody is.
    let three = follow(&two, wanted(), |_| false);
    assert_eq!((route(&three, "/d"), three.backends.len()), (a, 3));
    assert_eq!(three.backend(three.routes.get(a)).name, "w");

    // What comes back has its number again, and is as it is now.
    let back = follow(&two, small(&[("/a", "x")], &[("x", "echo")]), |_| true);
    assert_eq!(route(&back, "/a"), a);
    assert_eq!((back.routes.get(a).backend, back.backends[0].retired), (0, false));
    // The name alone is not enough.
    let other = follow(&two, small(&[("/a", "x")], &[("x", "local")]), |_| true);
    assert_eq!((route(&other, "/a").0, other.routes.get(route(&other, "/a")).backend), (3, 3));
    assert_eq!(other.backend(other.routes.get(a)).kind, super::super::BackendKind::Echo);
}

/// Who came by a route stays at its backend when the route leads elsewhere, under the limits that
/// hold for such requests now.
#[test]
fn a_route_that_leads_elsewhere_takes_nobody_along() {
    let backends = &[("x", "echo"), ("y", "local")];
    let one = small(&[("/a", "x"), ("/b", "y")], backends);
    let text = file(
        &[("path = \"/a\"\nmessage_bytes_max = 1000".into(), "y".into())],
        &[("y".into(), "local")],
    );
    let a = route(&one, "/a");
    let two = follow(&one, good(&text), |_| true);
    assert_ne!(route(&two, "/a"), a);
    assert_eq!(two.backend(two.routes.get(a)).name, "x");
    assert_eq!(two.routes.policy(a.0).message_bytes_max, 1000);
    let back = follow(&two, one.clone(), |_| true);
    assert_eq!(route(&back, "/a"), a);
    assert_eq!(back.routes.policy(a.0), one.routes.policy(a.0));
}

#[test]
fn too_many_backends_in_use_are_refused() {
    let file_of = |round: usize| {
        let backends: Vec<(String, &str)> =
            (0..1024).map(|index| (format!("b{round}-{index}"), "echo")).collect();
        good(&file(&[(String::new(), backends[0].0.clone())], &backends))
    };
    let mut config = file_of(0);
    for round in 1..4 {
        config = follow(&config, file_of(round), |_| true);
    }
    assert_eq!(config.backends.len(), BACKEND_NUMBERS_MAX);
    let refusal = succeed(&config, file_of(4), |_| true).expect_err("no number is left");
    assert!(refusal.list[0].starts_with("all 4096 numbers of backends are taken"), "{refusal}");
    // One that keeps its numbers needs none.
    assert!(succeed(&config, file_of(2), |_| true).is_ok());
    let config = follow(&config, file_of(4), |_| false);
    assert_eq!(config.backends.len(), BACKEND_NUMBERS_MAX);
    assert_eq!(config.live_backends().count(), 1024);
}

#[test]
fn ten_thousand_successions_take_no_more_room() {
    // Reading 10,000 files would be most of the time: one is read, and gets other names.
    let read = small(
        &[("/0", "x"), ("/1", "y"), ("/2", "x"), ("/3", "z"), ("/4", "y")],
        &[("x", "echo"), ("y", "local"), ("z", "websocket")],
    );
    let file_of = |round: usize| {
        let mut config = read.clone();
        let renamed = read.routes.iter().map(|route| Route {
            path: format!("/{round}/{}", route.index.0).parse().expect("a path"),
            ..route.clone()
        });
        config.routes = Routes::new(renamed.collect());
        for backend in &mut config.backends {
            backend.name = format!("{}{round}", backend.name);
        }
        config
    };
    let mut config = file_of(0);
    for round in 1..10_000 {
        config = follow(&config, file_of(round), |_| false);
        // Those of the file, and those that retired with it.
        assert!(config.routes.numbers() <= 10 && config.backends.len() <= 6);
    }
}

/// The text of any file.
fn any_file(random: &mut Random) -> String {
    let mut backends = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        if random.index(2) == 0 || (name == "e" && backends.is_empty()) {
            backends.push((name.to_owned(), ["echo", "local", "websocket"][random.index(3)]));
        }
    }
    let mut routes: Vec<(String, String)> = Vec::new();
    for _ in 0..=random.index(9) {
        let host = ["", "host = \"a.x\"\n", "host = \"*.x\"\n"][random.index(3)];
        let path = ["", "path = \"/p\"\n", "path = \"/p/*\"\n"][random.index(3)];
        let subprotocol = ["", "subprotocol = \"s\"\n"][random.index(2)];
        let requests = format!("{host}{path}{subprotocol}");
        let backend = backends[random.index(backends.len())].0.clone();
        if routes.iter().all(|(earlier, _)| !earlier.starts_with(&format!("{requests}#"))) {
            let bytes = 1000 + random.index(3);
            routes.push((format!("{requests}#\nmessage_bytes_max = {bytes}"), backend));
        }
    }
    file(&routes, &backends)
}

/// A connection as the reference sees it: what it came by, and whom it talks to.
struct Client {
    index: RouteIndex,
    came_by: Route,
    backend: Backend,
}

impl Client {
    fn new(config: &Config, index: RouteIndex) -> Client {
        let came_by = config.routes.get(index).clone();
        Client { index, backend: config.backend(&came_by).clone(), came_by }
    }

    fn check(&self, config: &Config) {
        let route = config.routes.get(self.index);
        assert!(route.same_requests(&self.came_by), "{route:?} {:?}", self.came_by);
        assert!(config.backend(route).is_same(&self.backend));
        if route.backend != self.came_by.backend {
            panic!("the number of a backend has moved");
        }
    }
}

#[test]
fn a_model_agrees_about_random_successions() {
    let mut random = Random::new(7);
    let mut config = good(&any_file(&mut random));
    let mut clients: Vec<Client> = Vec::new();
    let (mut reused, mut retired_seen) = (0, 0);
    for _ in 0..2000 {
        // Some leave, some come.
        while !clients.is_empty() && random.index(5) > 0 {
            clients.swap_remove(random.index(clients.len()));
        }
        let live: Vec<RouteIndex> = config.routes.iter().map(|route| route.index).collect();
        for _ in 0..random.index(4) {
            clients.push(Client::new(&config, live[random.index(live.len())]));
        }

        let fresh = good(&any_file(&mut random));
        let in_use = |number| {
            clients.iter().any(|client| match number {
                Number::Route(index) => client.index == index,
                Number::Backend(backend) => client.came_by.backend == backend,
            })
        };
        let next = follow(&config, fresh.clone(), in_use);
        // A client may come by a route of before until its shard has taken on the new ones.
        clients.push(Client::new(&config, live[random.index(live.len())]));

        for client in &clients {
            client.check(&next);
        }
        // Matching is as if there had been nothing before.
        assert_eq!(next.routes.len(), fresh.routes.len());
        let mut numbers = HashSet::new();
        for (got, want) in next.routes.iter().zip(fresh.routes.iter()) {
            assert!(got.same_requests(want) && got.policy == want.policy);
            assert_eq!(next.backend(got), fresh.backend(want));
            assert!(numbers.insert(got.index), "a number twice");
            assert!(!next.routes.is_retired(got.index) && !next.backend(got).retired);
        }
        for host in ["a.x", "b.x", "y"] {
            for path in ["/", "/p", "/p/q"] {
                for offered in [&[][..], &["s"]] {
                    let find = |config: &Config| {
                        let found = config.routes.find(host, path, offered.iter().copied())?;
                        assert!(!config.routes.is_retired(found.index));
                        Some((found.host.clone(), found.path.clone(), found.subprotocol.clone()))
                    };
                    assert_eq!(find(&next), find(&fresh), "{host} {path} {offered:?}");
                }
            }
        }
        // What could keep its number has done so, and no number was made while one was free.
        let slots = |config: &Config| -> Vec<Route> {
            let numbers = 0..config.routes.numbers() as u16;
            numbers.map(|number| config.routes.get(RouteIndex(number)).clone()).collect()
        };
        let before = slots(&config);
        let mut unnumbered = 0_usize;
        for route in next.routes.iter() {
            let known = before
                .iter()
                .find(|known| known.same_requests(route) && known.backend == route.backend);
            match known {
                Some(known) => assert_eq!(known.index, route.index),
                None => unnumbered += 1,
            }
        }
        let kept = |known: &Route| {
            next.routes
                .iter()
                .any(|route| known.same_requests(route) && known.backend == route.backend)
        };
        let free = before.iter().filter(|known| {
            config.routes.is_retired(known.index)
                && !kept(known)
                && !in_use_before(&clients, known.index)
        });
        let free = free.count();
        assert_eq!(next.routes.numbers(), before.len() + unnumbered.saturating_sub(free));
        reused += unnumbered.min(free);
        retired_seen += next.routes.retired().count();
        config = next;
    }
    assert!(reused > 500 && retired_seen > 2000, "{reused} {retired_seen}");
    // Requests, backends and who is on them: what can be in use at a time is little.
    assert!(config.routes.numbers() < 100, "{}", config.routes.numbers());
}

/// Whether one of `clients` but the last, who came later, has the number.
fn in_use_before(clients: &[Client], index: RouteIndex) -> bool {
    clients[..clients.len() - 1].iter().any(|client| client.index == index)
}

/// Printed, not asserted: a reload has to be a matter of milliseconds.
#[test]
fn a_large_file() {
    let text_of = |weight: u32| {
        let mut text = file(&[(String::new(), "big".to_owned())], &[("other".to_owned(), "echo")]);
        text += "[backend.big]\nkind = \"websocket\"\n";
        for index in 0..1000 {
            let (high, low) = (index / 250, index % 250 + 1);
            text += &format!(
                "[[backend.big.upstream]]\nurl = \"ws://10.0.{high}.{low}:3000\"\nweight = {weight}\n"
            );
        }
        text
    };
    let (old, text) = (good(&text_of(1)), text_of(2));
    let start = Instant::now();
    let new = good(&text);
    let parsed = start.elapsed();
    let done = succeed(&old, new, |_| true).expect("a reload");
    println!("1000 upstreams: read in {parsed:?}, both in {:?}", start.elapsed());
    assert_eq!(done.changes.len(), 1000);
}
