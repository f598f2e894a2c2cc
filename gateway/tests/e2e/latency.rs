//! Histograms tell where the time goes: a delay shows in its hop and its route, and nowhere else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, PATIENCE, Peer, Scratch, Upstream};
use crate::support::{switching, upgrade};

/// What is slow here is slow for so long; what is not has to be faster, whatever else the machine
/// is doing.
const STALL: Duration = Duration::from_secs(2);

/// Echo, rooms, and two upstreams behind a route each.
struct Timed {
    gateway: Gateway,
    upstreams: [Upstream; 2],
    scratch: Scratch,
}

/// What histograms with these labels have counted: values in all, and those of [`STALL`] and more.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    all: u64,
    stalled: u64,
    sum: u64,
}

impl Timed {
    fn start() -> Timed {
        let scratch = Scratch::new("latency");
        let upstreams = [Upstream::listen(), Upstream::listen()];
        let routes = ["/a", "/b"].iter().zip(&upstreams).map(|(path, upstream)| {
            let (name, address) = (&path[1..], upstream.address());
            format!(
                "[[route]]\npath = \"{path}\"\nbackend = \"{name}\"\n[backend.{name}]\n\
                 kind = \"websocket\"\nurl = \"ws://{address}\"\n"
            )
        });
        let routes: String = routes.collect();
        let socket = scratch.path().join("admin.sock");
        let config =
            format!("{HEAD}{ECHO_AND_ROOMS}{routes}[admin]\nsocket = \"{}\"\n", socket.display());
        Timed { gateway: Gateway::start(&config), upstreams, scratch }
    }

    /// A client of a route, and its connection to the upstream there.
    fn join(&self, route: usize) -> (Peer, Peer) {
        let mut client = Peer::connect(self.gateway.address());
        client.write(upgrade(["/a", "/b"][route], ""));
        let (mut upstream, head) = self.upstreams[route].accept();
        upstream.write(switching(&head, ""));
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        (client, upstream)
    }

    /// Every histogram of this name, those with these labels added up.
    #[track_caller]
    fn counted(&self, name: &str, labels: &[(&str, &str)]) -> Counted {
        let mut stream =
            UnixStream::connect(self.scratch.path().join("admin.sock")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let request = "GET /api/v1/histograms HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it is read");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let answer: Value = serde_json::from_str(body).expect("JSON");
        let histograms = answer["histograms"].as_array().expect("a list");
        let wanted = histograms.iter().filter(|histogram| {
            histogram["name"] == name
                && labels.iter().all(|(key, value)| histogram["labels"][key] == *value)
        });
        let mut counted = Counted { all: 0, stalled: 0, sum: 0 };
        let mut found = false;
        for histogram in wanted {
            found = true;
            counted.all += histogram["count"].as_u64().expect("a number");
            counted.sum += histogram["sum"].as_u64().expect("a number");
            for bucket in histogram["buckets"].as_array().expect("a list") {
                if bucket[1].as_u64().expect("a number") >= STALL.as_nanos() as u64 {
                    counted.stalled += bucket[2].as_u64().expect("a number");
                }
            }
        }
        assert!(found, "no {name} {labels:?} in {answer}");
        counted
    }

    /// Of a hop of one route.
    #[track_caller]
    fn hop(&self, name: &str, route: &str, direction: &str) -> (u64, u64) {
        let route = ("route", route);
        let counted = match direction {
            "" => self.counted(name, &[route]),
            _ => self.counted(name, &[route, ("direction", direction)]),
        };
        (counted.all, counted.stalled)
    }

    /// Waits until the histogram of a hop has so many values: an upstream may have a message before
    /// the gateway has learnt that its socket took it.
    #[track_caller]
    fn until(&self, name: &str, route: &str, direction: &str, count: u64) -> (u64, u64) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let hop = self.hop(name, route, direction);
            if hop.0 >= count {
                return hop;
            }
            assert!(std::time::Instant::now() < deadline, "{hop:?} of {count}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_stall_of_an_upstream_shows_in_its_replies_alone() {
    let timed = Timed::start();
    let (mut slow_client, mut slow) = timed.join(0);
    let (mut quick_client, mut quick) = timed.join(1);
    let exchange = |client: &mut Peer, upstream: &mut Peer, stall: Duration| {
        client.send(0x81, b"hello");
        assert_eq!(upstream.frame().payload, b"hello");
        std::thread::sleep(stall);
        upstream.write(b"\x81\x02ok");
        assert_eq!(client.frame().payload, b"ok");
    };
    for _ in 0..20 {
        exchange(&mut slow_client, &mut slow, Duration::ZERO);
        exchange(&mut quick_client, &mut quick, Duration::ZERO);
    }
    exchange(&mut slow_client, &mut slow, STALL);
    assert_eq!(timed.until("reply_seconds", "*/a", "", 21), (21, 1));
    assert_eq!(timed.until("reply_seconds", "*/b", "", 20), (20, 0));
    for (upstream, want) in timed.upstreams.iter().zip([(21, 1), (20, 0)]) {
        let url = format!("ws://{}", upstream.address());
        let reply = timed.counted("backend_reply_seconds", &[("upstream", &url)]);
        assert_eq!((reply.all, reply.stalled), want, "{url}");
    }
    for (route, count) in [("*/a", 21), ("*/b", 20)] {
        for direction in ["to_upstream", "to_client"] {
            let hop = timed.until("forward_seconds", route, direction, count);
            assert_eq!(hop, (count, 0), "{route} {direction}");
        }
    }
    // What nobody has asked for is no answer.
    slow.write(b"\x81\x02ok");
    assert_eq!(slow_client.frame().payload, b"ok");
    assert_eq!(timed.until("forward_seconds", "*/a", "to_client", 22), (22, 0));
    assert_eq!(timed.hop("reply_seconds", "*/a", "").0, 21);
}

#[test]
fn a_reader_that_stops_shows_in_the_hop_toward_it_alone() {
    let timed = Timed::start();
    let (mut client, mut upstream) = timed.join(0);
    client.send(0x81, b"hello");
    assert_eq!(upstream.frame().payload, b"hello");
    // More than sockets hold; written by another thread, as it is not all taken at once.
    const MESSAGES: u64 = 400;
    let message = [&b"\x82\x7F\0\0\0\0\0\x01\0\0"[..], &[7; 0x10000]].concat();
    let writer = std::thread::spawn(move || {
        (0..MESSAGES).for_each(|_| upstream.write(&message));
        upstream
    });
    std::thread::sleep(STALL + STALL / 4);
    (0..MESSAGES).for_each(|_| assert_eq!(client.frame().payload.len(), 0x10000));
    let upstream = writer.join().expect("all was read");
    let (all, stalled) = timed.until("forward_seconds", "*/a", "to_client", MESSAGES);
    assert_eq!(all, MESSAGES);
    assert!(stalled > 0);
    assert_eq!(timed.hop("forward_seconds", "*/a", "to_upstream"), (1, 0));
    assert!(timed.counted("queue_age_seconds", &[]).stalled > 0);
    drop((client, upstream));
}

#[test]
fn every_message_is_counted_once_with_its_size() {
    let timed = Timed::start();
    let mut client = Peer::open(timed.gateway.address(), "/echo");
    let mut bytes = 0;
    for size in [0, 1, 125, 126, 5000, 70_000] {
        let payload = vec![b'x'; size];
        client.send(0x82, &payload);
        assert_eq!(client.frame().payload, payload);
        bytes += size as u64;
    }
    // A Ping is none.
    client.send(0x89, b"");
    assert_eq!(client.frame().first, 0x8A);
    assert_eq!(timed.until("forward_seconds", "*/echo", "to_client", 6).0, 6);
    for direction in ["to_upstream", "to_client"] {
        let labels = [("route", "*/echo"), ("direction", direction)];
        let sizes = timed.counted("message_size_bytes", &labels);
        assert_eq!((sizes.all, sizes.sum), (6, bytes), "{direction}");
    }

    let mut members: Vec<Peer> =
        (0..3).map(|_| Peer::open(timed.gateway.address(), "/rooms?user=a")).collect();
    for member in &mut members {
        member.frame(); // The welcome.
        member.send(0x81, br#"{"op":"join","room":"r"}"#);
        let answer = member.frame();
        assert!(answer.payload.windows(6).any(|text| text == b"\"join\""), "{answer:?}");
    }
    members[0].send(0x81, br#"{"op":"publish","room":"r","data":1}"#);
    for member in &mut members {
        let message = member.frame();
        assert!(message.payload.windows(9).any(|text| text == b"\"message\""), "{message:?}");
    }
    // Three welcomes, three answers and three deliveries.
    assert_eq!(timed.until("forward_seconds", "*/rooms", "to_client", 9).0, 9);
    let members = timed.counted("fanout_recipients", &[]);
    assert_eq!(members.sum, 3, "{members:?}");
    let first = timed.counted("fanout_seconds", &[("delivery", "first")]);
    let last = timed.counted("fanout_seconds", &[("delivery", "last")]);
    assert_eq!((first.all, last.all), (members.all, members.all));
    assert!(first.sum <= last.sum);

    let (client, upstream) = timed.join(1);
    for stage in ["connect", "answer", "total"] {
        let labels = [("route", "*/b"), ("stage", stage)];
        assert_eq!(timed.counted("upstream_handshake_seconds", &labels).all, 1, "{stage}");
    }
    for name in ["backend_connect_seconds", "backend_answer_seconds"] {
        assert_eq!(timed.counted(name, &[("backend", "b")]).all, 1, "{name}");
    }
    for stage in ["head", "total"] {
        assert_eq!(timed.counted("handshake_seconds", &[("stage", stage)]).all, 5, "{stage}");
    }
    drop((client, upstream));
}
