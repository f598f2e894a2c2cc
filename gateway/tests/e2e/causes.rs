//! Every cause that a connection can be closed for, provoked: what the line in the log says of it, and
//! that there is one line and one count for each connection.

use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use axum::http::Method;
use gateway::admin::client::ask;
use gateway::metrics::Cause;
use serde_json::Value;

use crate::support::{Gateway, HEAD, PATIENCE, Peer, Scratch, Upstream, masked, upgrade};

/// A way to have a connection closed.
struct Case {
    cause: Cause,
    /// Has one connection closed; what its line has to agree with.
    provoke: fn(&Bench) -> Seen,
    /// What its line says, but for addresses, bytes and the time it took.
    line: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ConfigOf {
    Plain,
    Impatient,
}

/// Causes that no client, upstream or signal can bring about.
const NOT_PROVOKED: [(Cause, &str); 2] = [
    (Cause::InternalError, "what the code takes when it has no cause, which is a bug"),
    (Cause::MemoryShort, "memory has to be filled for it: shortage.rs"),
];

impl ConfigOf {
    fn cases(self) -> &'static [Case] {
        match self {
            ConfigOf::Plain => PLAIN,
            ConfigOf::Impatient => IMPATIENT,
        }
    }

    fn text(self, upstream: &Upstream) -> String {
        let url = upstream.address();
        match self {
            ConfigOf::Plain => format!(
                "deny = [\"127.0.0.9\"]\ntrusted_proxies = [\"127.0.0.3\"]\n\
                 [[listener]]\nname = \"proxied\"\naddress = \"127.0.0.1:0\"\nproxy_protocol = \"required\"\n\
                 [[route]]\npath = \"/echo\"\nbackend = \"echo\"\n\
                 [[route]]\npath = \"/rooms\"\nbackend = \"rooms\"\n\
                 [[route]]\npath = \"/app\"\nbackend = \"app\"\n\
                 [[route]]\npath = \"/more\"\nbackend = \"app\"\n\
                 [[route]]\npath = \"/nobody\"\nbackend = \"nobody\"\n\
                 [[route]]\npath = \"/ours\"\nbackend = \"echo\"\norigins = [\"https://our.example\"]\n\
                 [[route]]\npath = \"/few\"\nbackend = \"echo\"\nmessages_per_second = 1\n\
                 messages_burst = 2\nconnections_max = 1\n\
                 [[route]]\npath = \"/seldom\"\nbackend = \"echo\"\naddress_handshakes_per_second = 1\n\
                 address_handshakes_burst = 1\n\
                 [backend.echo]\nkind = \"echo\"\n\
                 [backend.rooms]\nkind = \"local\"\ndemo_page = true\n\
                 [backend.app]\nkind = \"websocket\"\nurl = \"ws://{url}\"\n\
                 [backend.nobody]\nkind = \"websocket\"\nurl = \"unix:/nobody/is.there\"\n\
                 [limits]\nmessage_bytes_max = 1000\nrequest_body_bytes_max = 10\n"
            ),
            ConfigOf::Impatient => format!(
                "[[route]]\npath = \"/echo\"\nbackend = \"echo\"\n\
                 [[route]]\npath = \"/ping\"\nbackend = \"echo\"\nping_interval_ms = 100\n\
                 ping_timeout_ms = 200\n\
                 [[route]]\npath = \"/idle\"\nbackend = \"echo\"\nidle_timeout_ms = 300\n\
                 [[route]]\npath = \"/old\"\nbackend = \"echo\"\nduration_max_ms = 300\n\
                 [[route]]\npath = \"/app\"\nbackend = \"app\"\n\
                 [[route]]\npath = \"/app/ping\"\nbackend = \"app\"\nping_timeout_ms = 200\n\
                 upstream_ping_interval_ms = 100\n\
                 [backend.echo]\nkind = \"echo\"\n\
                 [backend.app]\nkind = \"websocket\"\nurl = \"ws://{url}\"\n\
                 [limits]\nhandshake_timeout_ms = 1000\nconnect_timeout_ms = 1000\n\
                 attempt_timeout_ms = 500\nupgrade_timeout_ms = 1000\noutbox_age_max_ms = 500\n"
            ),
        }
    }
}

/// What a case has to work with.
struct Bench {
    gateway: Gateway,
    /// Where a PROXY header is required.
    proxied: Option<SocketAddr>,
    upstream: Upstream,
    socket: PathBuf,
    _scratch: Scratch,
}

/// What the test knows of a connection.
struct Seen {
    peer: SocketAddr,
    /// Bytes written and read, where the gateway has read and written as much.
    bytes: Option<(u64, u64)>,
}

impl Seen {
    fn of(peer: &Peer) -> Seen {
        let bytes = Some((peer.wrote, peer.got));
        Seen { bytes, ..Seen::without_bytes(peer) }
    }

    fn without_bytes(peer: &Peer) -> Seen {
        Seen { peer: peer.stream.local_addr().expect("it is bound"), bytes: None }
    }
}

impl Bench {
    fn start(config: ConfigOf) -> Bench {
        let (scratch, upstream) = (Scratch::new("causes"), Upstream::listen());
        let socket = scratch.path().join("admin.sock");
        let text = format!(
            "{HEAD}{}[log]\nformat = \"json\"\n[admin]\nsocket = \"{}\"\n",
            config.text(&upstream),
            socket.display()
        );
        // One shard, so that lines come in the order of the closes.
        let mut gateway = Gateway::start_with(&text, &["--shards", "1"]);
        let proxied = (config == ConfigOf::Plain).then(|| gateway.next_address());
        Bench { gateway, proxied, upstream, socket, _scratch: scratch }
    }

    fn connect(&self) -> Peer {
        Peer::connect(self.gateway.address())
    }

    fn open(&self, target: &str) -> Peer {
        Peer::open(self.gateway.address(), target)
    }

    /// A client that comes from another address of this host.
    fn connect_from(&self, last: u8) -> Peer {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
        socket.bind(&from.into()).expect("all of 127/8 is ours");
        socket.connect(&self.gateway.address().into()).expect("it listens");
        Peer::new(socket.into())
    }

    /// A client and its upstream, joined.
    fn join(&self, target: &str) -> (Peer, Peer) {
        self.upstream.join_by(self.gateway.address(), target)
    }

    /// One request, answered and over.
    fn refused(&self, mut peer: Peer, request: impl AsRef<[u8]>) -> Seen {
        peer.write(request);
        peer.rest();
        Seen::of(&peer)
    }

    /// Clients closed so far, by cause.
    fn closed(&self) -> Vec<(String, u64)> {
        let (status, body) =
            ask(&self.socket, Method::GET, "/api/v1/status").expect("it is there to be asked");
        assert_eq!(status, 200);
        let status: Value = serde_json::from_slice(&body).expect("JSON");
        let closed = status["closed"].as_object().expect("counts").iter();
        closed.map(|(cause, count)| (cause.clone(), count.as_u64().expect("a count"))).collect()
    }

    /// Waits until so many clients have been closed.
    #[track_caller]
    fn wait_for(&self, count: u64) -> Vec<(String, u64)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let closed = self.closed();
            let sum: u64 = closed.iter().map(|(_, count)| count).sum();
            assert!(sum <= count, "{closed:?} instead of {count}");
            if sum == count {
                return closed;
            }
            assert!(Instant::now() < deadline, "{closed:?} instead of {count}");
            std::thread::yield_now();
        }
    }
}

/// Has the client say that it goes, with this code, and hear it back.
fn say_goodbye(client: &mut Peer, code: &[u8]) {
    client.send(0x88, code);
    assert_eq!(client.frame().payload, code);
    client.end();
}

/// A frame, and its end.
fn told(mut client: Peer, frame: &[u8], code: u16) -> Seen {
    client.write(frame);
    assert_eq!(client.close_frame().0, code);
    client.end();
    Seen::of(&client)
}

const PLAIN: &[Case] = &[
    Case {
        cause: Cause::ClientClose,
        provoke: |bench| {
            let mut client = bench.open("/echo?token=secret");
            client.send(0x81, b"hi");
            client.frame();
            say_goodbye(&mut client, b"\x03\xE8");
            Seen::of(&client)
        },
        line: "state=echo status=101 close_code=1000 route=*/echo backend=echo messages=1/1 requests=1",
    },
    Case {
        cause: Cause::ClientClose,
        provoke: |bench| {
            let mut client = bench.open("/rooms");
            client.send(0x81, br#"{"op":"ping","id":1}"#);
            // The welcome, and the answer.
            client.frame();
            client.frame();
            say_goodbye(&mut client, b"");
            Seen::of(&client)
        },
        line: "state=rooms status=101 close_code=1005 route=*/rooms backend=rooms messages=1/2 requests=1",
    },
    Case {
        cause: Cause::ClientClose,
        provoke: |bench| {
            let (mut client, mut upstream) = bench.join("/app");
            client.write([masked(0x82, b"one"), masked(0x82, b"two")].concat());
            client.send(0x88, b"\x0F\xA1");
            upstream.frame();
            upstream.frame();
            upstream.close_frame();
            upstream.write(b"\x88\x02\x0F\xA1");
            client.close_frame();
            client.end();
            Seen::of(&client)
        },
        line: "state=relay status=101 close_code=4001 route=*/app backend=app upstream messages=2/0 requests=1",
    },
    Case {
        cause: Cause::ClientGone,
        provoke: |bench| {
            let mut client = bench.open("/echo");
            client.send(0x82, &[7; 500]);
            client.frame();
            Seen::of(&client)
        },
        line: "state=echo status=101 route=*/echo backend=echo messages=1/1 requests=1",
    },
    Case {
        cause: Cause::ClientGone,
        provoke: |bench| {
            let (client, mut upstream) = bench.join("/app");
            let seen = Seen::of(&client);
            client.reset();
            upstream.end();
            seen
        },
        line: "state=relay status=101 route=*/app backend=app upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::ClientGone,
        provoke: |bench| {
            let mut client = bench.connect();
            client.write("GET / HT");
            client.stream.shutdown(Shutdown::Write).expect("a socket");
            client.end();
            Seen::of(&client)
        },
        line: "state=head messages=0/0 requests=0",
    },
    Case {
        cause: Cause::HandshakeRejected,
        provoke: |bench| bench.refused(bench.connect(), upgrade("/nowhere", "")),
        line: "state=head status=404 messages=0/0 requests=1",
    },
    Case {
        cause: Cause::HandshakeRejected,
        provoke: |bench| bench.refused(bench.connect(), "GET /echo HTTP/1.1\r\nHost: test\r\n\r\n"),
        line: "state=head status=426 route=*/echo backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::HandshakeRejected,
        provoke: |bench| bench.refused(bench.connect(), "GET / HTTP/1.1\r\nHost : test\r\n\r\n"),
        line: "state=head status=400 messages=0/0 requests=0",
    },
    Case {
        cause: Cause::HandshakeRejected,
        provoke: |bench| {
            let mut client = bench.connect();
            client.write(upgrade("/app", ""));
            let (mut upstream, _) = bench.upstream.accept();
            upstream.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
            client.rest();
            Seen::of(&client)
        },
        // The upstream that refused it is named.
        line: "state=connecting status=401 route=*/app backend=app upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::HttpDone,
        provoke: |bench| {
            bench.refused(bench.connect(), "GET /rooms HTTP/1.1\r\nHost: test\r\n\r\n")
        },
        line: "state=head status=200 route=*/rooms backend=rooms messages=0/0 requests=1",
    },
    // One connection, several requests: the line is about the last one.
    Case {
        cause: Cause::HttpDone,
        provoke: |bench| {
            let mut client = bench.connect();
            for (target, status) in [("/app", "200 OK"), ("/more", "404 Not Found")] {
                client.write(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
                let (mut upstream, _) = bench.upstream.accept();
                upstream.write(format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nyes"));
                client.head();
                assert_eq!(client.bytes(3), b"yes");
            }
            Seen::of(&client)
        },
        line: "state=head status=404 route=*/more backend=app upstream messages=0/0 requests=2",
    },
    // What a WebSocket came behind is counted, and nothing else is left of it.
    Case {
        cause: Cause::ClientClose,
        provoke: |bench| {
            let mut client = bench.connect();
            client.write("GET /app HTTP/1.1\r\nHost: test\r\n\r\n");
            let (mut upstream, _) = bench.upstream.accept();
            upstream.write("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes");
            client.head();
            client.bytes(3);
            client.write(upgrade("/echo", ""));
            client.head();
            say_goodbye(&mut client, b"\x03\xE9");
            Seen::of(&client)
        },
        line: "state=echo status=101 close_code=1001 route=*/echo backend=echo messages=0/0 requests=2",
    },
    Case {
        cause: Cause::ProtocolError,
        // Not masked.
        provoke: |bench| told(bench.open("/echo"), b"\x81\x02hi", 1002),
        line: "state=echo status=101 close_code=1002 route=*/echo backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::BadUtf8,
        provoke: |bench| told(bench.open("/echo"), &masked(0x81, b"\xFF"), 1007),
        line: "state=echo status=101 close_code=1007 route=*/echo backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::TooBig,
        provoke: |bench| told(bench.open("/echo"), &masked(0x82, &[7; 1001]), 1009),
        line: "state=echo status=101 close_code=1009 route=*/echo backend=echo limit=message_bytes_max bound=1000 messages=0/0 requests=1",
    },
    Case {
        cause: Cause::TooBig,
        provoke: |bench| {
            let request = "POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\n";
            bench.refused(bench.connect(), request)
        },
        line: "state=head status=413 route=*/app backend=app limit=request_body_bytes_max bound=10 messages=0/0 requests=1",
    },
    Case {
        cause: Cause::RateLimited,
        provoke: |bench| {
            let mut client = bench.open("/few");
            client.write(masked(0x82, b"x").repeat(40));
            assert_eq!(client.close_frame().0, 1008);
            client.end();
            Seen::of(&client)
        },
        line: "state=echo status=101 close_code=1008 route=*/few backend=echo requests=1",
    },
    Case {
        cause: Cause::RateLimited,
        provoke: |bench| {
            let refusal = loop {
                let mut client = bench.connect_from(4);
                client.write(upgrade("/seldom", "Connection: close\r\n"));
                let head = client.head();
                if head.starts_with("HTTP/1.1 429 ") {
                    client.rest();
                    break client;
                }
                // The first is let in, and stays until the end.
                std::mem::forget(client);
            };
            Seen::of(&refusal)
        },
        line: "state=head status=429 route=*/seldom backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::OriginDenied,
        provoke: |bench| {
            let request = upgrade("/ours", "Origin: https://evil.example\r\n");
            bench.refused(bench.connect(), request)
        },
        line: "state=head status=403 route=*/ours backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::IpDenied,
        provoke: |bench| bench.refused(bench.connect_from(9), upgrade("/echo", "")),
        line: "state=head status=403 client=127.0.0.9 messages=0/0 requests=1",
    },
    Case {
        cause: Cause::IpDenied,
        provoke: |bench| {
            let proxied = Peer::connect(bench.proxied.expect("a second listener"));
            bench.refused(proxied, "not a PROXY header\r\n")
        },
        line: "state=proxy_header messages=0/0 requests=0",
    },
    // On whose behalf a proxy came.
    Case {
        cause: Cause::HandshakeRejected,
        provoke: |bench| {
            let request = upgrade("/nowhere", "X-Forwarded-For: 203.0.113.7\r\n");
            bench.refused(bench.connect_from(3), request)
        },
        line: "state=head status=404 client=203.0.113.7 messages=0/0 requests=1",
    },
    Case {
        cause: Cause::BackendClose,
        provoke: |bench| {
            let (mut client, mut upstream) = bench.join("/app");
            upstream.write(b"\x82\x01x\x88\x02\x0F\xA7");
            assert_eq!(client.frame().payload, b"x");
            assert_eq!(client.close_frame().0, 4007);
            client.send(0x88, b"\x03\xE8");
            upstream.close_frame();
            client.end();
            Seen::of(&client)
        },
        line: "state=relay status=101 close_code=4007 route=*/app backend=app upstream messages=0/1 requests=1",
    },
    Case {
        cause: Cause::BackendGone,
        provoke: |bench| {
            let (mut client, upstream) = bench.join("/app");
            drop(upstream);
            assert_eq!(client.close_frame().0, 1012);
            client.end();
            Seen::of(&client)
        },
        line: "state=relay status=101 close_code=1012 route=*/app backend=app upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::BackendGone,
        provoke: |bench| bench.refused(bench.connect(), upgrade("/nobody", "")),
        line: "state=connecting status=502 route=*/nobody backend=nobody upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::BackendProtocolError,
        provoke: |bench| {
            let (mut client, mut upstream) = bench.join("/app");
            // A reserved opcode.
            upstream.write(b"\x83\x00");
            assert_eq!(client.close_frame().0, 1011);
            client.send(0x88, b"\x03\xF3");
            client.end();
            Seen::of(&client)
        },
        line: "state=relay status=101 close_code=1011 route=*/app backend=app upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::AdminClose,
        provoke: |bench| {
            let mut client = bench.open("/echo");
            let close = "/api/v1/connections/close?route=/echo&code=4002&reason=out";
            assert_eq!(ask(&bench.socket, Method::POST, close).expect("an answer").0, 200);
            assert_eq!(client.close_frame(), (4002, "out".to_owned()));
            client.send(0x88, b"\x03\xE8");
            client.end();
            Seen::of(&client)
        },
        line: "state=echo status=101 close_code=4002 route=*/echo backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::MemoryPressure,
        provoke: |bench| {
            // The route has one place, and the clients before this one may still have it.
            loop {
                let mut client = bench.connect();
                client.write(upgrade("/few", ""));
                if client.head().starts_with("HTTP/1.1 503 ") {
                    client.rest();
                    return Seen::of(&client);
                }
                // It stays until the end.
                std::mem::forget(client);
            }
        },
        line: "state=head status=503 route=*/few backend=echo messages=0/0 requests=1",
    },
];

/// Where patience is short.
const IMPATIENT: &[Case] = &[
    Case {
        cause: Cause::ClientTimeoutPing,
        provoke: |bench| {
            let mut client = bench.open("/ping");
            client.frame();
            client.end();
            Seen::of(&client)
        },
        line: "state=echo status=101 route=*/ping backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::ClientTimeoutIdle,
        provoke: |bench| {
            let mut client = bench.open("/idle");
            let close = client.close_frame();
            assert_eq!(close.0, 1001);
            client.send(0x88, b"\x03\xE9");
            client.end();
            Seen::of(&client)
        },
        line: "state=echo status=101 close_code=1001 route=*/idle backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::DurationLimit,
        provoke: |bench| {
            let mut client = bench.open("/old");
            assert_eq!(client.close_frame().0, 1012);
            client.send(0x88, b"\x03\xE8");
            client.end();
            Seen::of(&client)
        },
        line: "state=echo status=101 close_code=1012 route=*/old backend=echo messages=0/0 requests=1",
    },
    Case {
        cause: Cause::ClientTimeoutHandshake,
        provoke: |bench| {
            let mut client = bench.connect();
            client.end();
            Seen::of(&client)
        },
        line: "state=head messages=0/0 requests=0",
    },
    Case {
        cause: Cause::ClientTimeoutHandshake,
        provoke: |bench| bench.refused(bench.connect(), "GET /echo HTTP/1.1\r\nHo"),
        line: "state=head status=408 messages=0/0 requests=0",
    },
    Case {
        cause: Cause::BackendTimeout,
        provoke: |bench| {
            let mut client = bench.connect();
            client.write(upgrade("/app", ""));
            let (_upstream, _) = bench.upstream.accept();
            client.rest();
            Seen::of(&client)
        },
        line: "state=connecting status=504 route=*/app backend=app upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::BackendTimeout,
        provoke: |bench| {
            let (mut client, _upstream) = bench.join("/app/ping");
            assert_eq!(client.close_frame().0, 1012);
            client.end();
            Seen::of(&client)
        },
        line: "state=relay status=101 close_code=1012 route=*/app/ping backend=app upstream messages=0/0 requests=1",
    },
    Case {
        cause: Cause::SlowConsumer,
        provoke: |bench| {
            let client = bench.open("/echo");
            let seen = Seen::without_bytes(&client);
            let mut stream = client.stream.try_clone().expect("a socket");
            // It writes until it is cut off, and reads nothing.
            let frame = masked(0x82, &[0; 65_536]);
            while std::io::Write::write_all(&mut stream, &frame).is_ok() {}
            seen
        },
        line: "state=echo status=101 route=*/echo backend=echo requests=1",
    },
];

/// The line as the cases tell it; counts of messages where they are known.
fn told_of(line: &Value, with_messages: bool) -> String {
    let mut words = Vec::new();
    for key in ["state", "status", "close_code", "client", "route", "backend", "limit", "bound"] {
        let value = match &line[key] {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if key != "client" || !["127.0.0.1", "127.0.0.4"].contains(&value.as_str()) {
            words.push(format!("{key}={value}"));
        }
    }
    if !line["upstream"].is_null() {
        words.push("upstream".to_owned());
    }
    if with_messages {
        words.push(format!("messages={}/{}", line["received_messages"], line["sent_messages"]));
    }
    words.push(format!("requests={}", line["requests"]));
    words.join(" ")
}

/// The lines of the access log among those that the gateway has written.
fn access_lines(errors: &str) -> Vec<Value> {
    let lines = errors.lines().filter(|line| line.starts_with('{'));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["target"] == "access").collect()
}

fn run(config: ConfigOf) {
    let bench = Bench::start(config);
    let cases = config.cases();
    let mut seen = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let began = Instant::now();
        let known = (case.provoke)(&bench);
        *counts.entry(case.cause.name().to_owned()).or_insert(0) += 1;
        let closed = bench.wait_for(index as u64 + 1);
        assert!(closed.into_iter().eq(counts.clone()), "{}: not {counts:?}", case.line);
        seen.push((known, began.elapsed()));
    }
    let upstream = format!("ws://{}", bench.upstream.address());
    let stopped = bench.gateway.stop();
    // Two that had to be let in before others could be refused.
    counts.retain(|cause, count| stopped.closed.get(cause) != Some(count));
    assert!(counts.is_empty(), "{:?}, but {counts:?} before", stopped.closed);
    assert!(!stopped.errors.contains("secret"), "{}", stopped.errors);
    let lines = access_lines(&stopped.errors);
    assert_eq!(lines.len() as u64, stopped.closed.values().sum::<u64>(), "{}", stopped.errors);
    for (index, (case, (known, took))) in cases.iter().zip(&seen).enumerate() {
        let line = &lines[index];
        let cause = case.cause;
        let why = format!("line {index}, {}: {line}", cause.name());
        assert_eq!(line["message"], "closed", "{why}");
        assert_eq!(line["cause"], cause.name(), "{why}");
        assert_eq!(line["initiator"], cause.initiator().name(), "{why}");
        assert_eq!(told_of(line, case.line.contains("messages=")), case.line, "{why}");
        assert_eq!(line["peer"], known.peer.to_string(), "{why}");
        if let Some((wrote, got)) = known.bytes {
            assert_eq!(line["received_bytes"], wrote, "{why}");
            assert_eq!(line["sent_bytes"], got, "{why}");
        }
        if !line["upstream"].is_null() {
            let is_nobody = line["backend"] == "nobody";
            let upstream = if is_nobody { "unix:/nobody/is.there" } else { &upstream };
            assert_eq!(line["upstream"], upstream, "{why}");
        }
        let duration_ms = line["duration_ms"].as_u64().expect("milliseconds");
        assert!(u128::from(duration_ms) <= took.as_millis() + 1, "{took:?}: {why}");
    }
}

#[test]
fn what_clients_upstreams_and_limits_end() {
    run(ConfigOf::Plain);
}

#[test]
fn what_runs_out_of_time() {
    run(ConfigOf::Impatient);
}

/// Those that are left when the gateway stops.
#[test]
fn a_stop_is_in_the_log() {
    let bench = Bench::start(ConfigOf::Plain);
    let mut client = bench.open("/echo");
    let peer = client.stream.local_addr().expect("it is bound");
    bench.gateway.terminate();
    assert_eq!(client.close_frame().0, 1012);
    client.send(0x88, b"\x03\xE8");
    client.end();
    let stopped = bench.gateway.stopped();
    stopped.expect("drain 1");
    let lines = access_lines(&stopped.errors);
    assert_eq!(lines.len(), 1, "{}", stopped.errors);
    let line = &lines[0];
    assert_eq!((&line["cause"], &line["initiator"]), (&"drain".into(), &"gateway".into()));
    assert_eq!(line["peer"], peer.to_string());
    assert_eq!((line["close_code"].as_u64(), line["status"].as_u64()), (Some(1012), Some(101)));
    assert_eq!(line["received_bytes"], client.wrote);
    assert_eq!(line["sent_bytes"], client.got);
}

/// A cause without a test is found here.
#[test]
fn every_cause_is_provoked() {
    for cause in Cause::ALL {
        let mut cases = PLAIN.iter().chain(IMPATIENT);
        let provoked = cases.any(|case| case.cause == cause) || cause == Cause::Drain;
        let excused = NOT_PROVOKED.iter().any(|(other, why)| *other == cause && !why.is_empty());
        assert!(provoked != excused, "{}: a case, or a reason why there is none", cause.name());
    }
}

/// More connections end than lines are allowed: the lines and what they leave out are all there were.
#[test]
fn a_storm_is_counted_to_the_last_connection() {
    const CLIENTS: u64 = 3000;
    let limits = "[log]\nformat = \"json\"\naccess_lines_per_second = 20\n";
    let routes = "[[route]]\nbackend = \"echo\"\n[backend.echo]\nkind = \"echo\"\n";
    let gateway = Gateway::start(&format!("{HEAD}{routes}{limits}"));
    for _ in 0..CLIENTS {
        drop(Peer::connect(gateway.address()));
    }
    // However many of them were accepted before it stops: the counts have to agree.
    let stopped = gateway.stop();
    let lines = access_lines(&stopped.errors);
    let is_close = |line: &&Value| line["message"] == "closed";
    let written = lines.iter().filter(is_close).count() as u64;
    let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    let counted: u64 = stopped.closed.values().sum();
    assert!(written >= 20 && left_out > 0, "{written} lines, {left_out} left out");
    assert_eq!(written + left_out, counted, "{:?}", stopped.closed);
}
