//! The relay, with an upstream that is nothing but bytes on a socket and behaves as badly as needed.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use crate::support::{
    ACCEPT, Frame, Gateway, HEAD, KEY, Peer, Upstream, header, masked, switching, to_upstream,
    upgrade,
};

fn in_front_of(upstream: &Upstream) -> Gateway {
    Gateway::start(&format!("{HEAD}{}", to_upstream(upstream.address())))
}

#[test]
fn the_request_goes_on_as_a_request_of_our_own() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let mut client = Peer::connect(gateway.address());
    // What a client nominates in `Connection` belongs to this hop; what says who it is does not.
    let more = "Sec-WebSocket-Protocol: a, b\r\nCookie: id=1\r\nCookie: second=2\r\n\
                X-Mine: kept\r\nX-Hop: dropped\r\nKeep-Alive: 5\r\n\
                X-Forwarded-For: 203.0.113.1\r\nX-Forwarded-For: 203.0.113.2\r\n\
                X-Forwarded-Proto: https\r\n";
    let request = upgrade("/a/b?c=d&e=%20", more)
        .replace("Connection: Upgrade", "Connection: keep-alive, Upgrade, X-Hop, Cookie");
    client.write(&request);
    let (mut server, head) = upstream.accept();
    assert!(head.starts_with("GET /a/b?c=d&e=%20 HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "host"), Some("test"));
    assert_eq!(header(&head, "x-mine"), Some("kept"));
    assert_eq!(header(&head, "x-hop"), None);
    assert_eq!(header(&head, "keep-alive"), None);
    assert_eq!(header(&head, "x-forwarded-proto"), Some("http"));
    assert_ne!(header(&head, "sec-websocket-key"), Some(KEY), "a key of our own");
    let all = |name: &str| -> Vec<String> {
        let start = format!("{name}:");
        head.lines()
            .filter(|line| line.to_ascii_lowercase().starts_with(&start))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(all("cookie").len(), 2, "a client cannot take these off: {head}");
    assert_eq!(all("x-forwarded-for").len(), 1, "{head}");
    assert_eq!(header(&head, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(all("upgrade").len(), 1, "{head}");
    server.write(switching(&head, "Sec-WebSocket-Protocol: b\r\nSet-Cookie: x=1\r\n"));
    let answer = client.head();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert_eq!(header(&answer, "sec-websocket-protocol"), Some("b"));
    assert_eq!(header(&answer, "set-cookie"), Some("x=1"));
    assert_eq!(header(&answer, "sec-websocket-accept"), Some(ACCEPT));
}

/// Frames pass as they are: fragments, Pings and Pongs included.
#[test]
fn frames_pass_unchanged() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let (mut client, mut server) = upstream.join(&gateway);
    let wire = [masked(0x01, b"frag"), masked(0x89, b"ping"), masked(0x80, b"ment")].concat();
    client.write(&wire);
    assert_eq!(server.bytes(wire.len()), wire, "the very bytes, mask included");
    let answers: &[u8] = b"\x8A\x04ping\x02\x02\0\xFF\x80\x00\x81\x03end";
    server.write(answers);
    assert_eq!(client.bytes(answers.len()), answers);
    // Cut everywhere.
    for byte in &wire {
        client.write([*byte]);
    }
    assert_eq!(server.bytes(wire.len()), wire);
    for byte in answers {
        server.write([*byte]);
    }
    assert_eq!(client.bytes(answers.len()), answers);
}

/// Bytes right behind the handshake, from either side, are not lost.
#[test]
fn early_bytes_are_passed_once_the_upstream_has_accepted() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let mut client = Peer::connect(gateway.address());
    let early = masked(0x81, b"early");
    client.write([upgrade("/", "").as_bytes(), &early].concat());
    let (mut server, head) = upstream.accept();
    assert_nothing_more(&mut server);
    server.write([switching(&head, "").as_bytes(), b"\x81\x05greet"].concat());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.frame(), Frame { first: 0x81, payload: b"greet".to_vec() });
    assert_eq!(server.bytes(early.len()), early);
}

/// What a client smuggles behind its request never reaches an upstream that has refused it.
#[test]
fn a_refused_upgrade_is_no_tunnel() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let second = "GET /admin HTTP/1.1\r\nHost: test\r\n\r\n";
    for refusal in [
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Why: rules\r\n\r\nno",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        "HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\n\r\nno",
    ] {
        let mut client = Peer::connect(gateway.address());
        client.write(format!("{}{second}", upgrade("/", "")));
        let (mut server, _) = upstream.accept();
        assert_nothing_more(&mut server);
        // The refusing upstream leaves its connection open, as keep-alive has it.
        server.write(refusal);
        if refusal.contains("Connection: close") {
            server.stream.shutdown(Shutdown::Write).expect("a socket");
        }
        let answer = client.answer();
        assert!(answer.starts_with(&refusal[..12]), "{answer:?}");
        assert!(answer.ends_with("no") || answer.contains("\r\n2\r\nno\r\n0\r\n"), "{answer:?}");
        if refusal.contains("X-Why") {
            assert_eq!(header(&answer, "x-why"), Some("rules"));
        }
        // Neither the second request nor anything else follows on it.
        drop(client);
        server.end();
    }
}

/// Nothing lies behind the head that was read, nor comes within a moment: what a gateway forwards too
/// early, it forwards with the request.
#[track_caller]
fn assert_nothing_more(server: &mut Peer) {
    server.stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
    let mut byte = [0];
    match server.stream.peek(&mut byte) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        other => panic!("{other:?} behind the request"),
    }
    server.stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("a socket");
}

#[test]
fn an_upstream_that_cannot_be_had_is_502_or_504() {
    // A port that nobody listens on: it was ours a moment ago.
    let nobody = Upstream::listen().address();
    expect_status(nobody, None, 502, "backend_gone 1");
    // One that takes the connection and says nothing.
    let upstream = Upstream::listen();
    expect_status(upstream.address(), None, 504, "backend_timeout 1");
    // Those that answer, but not to what was asked.
    let wrong_accept = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    let no_accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n";
    let other_protocol = "SSH-2.0-OpenSSH_9.2\r\n";
    let bad_line_end = "HTTP/1.1 101 A\nB: C\n\n";
    for answer in [&wrong_accept, no_accept, other_protocol, bad_line_end, "HTTP/1.1 101", ""] {
        let upstream = Upstream::listen();
        // What ends before it is a head breaks no rule.
        let is_cut = !answer.ends_with("\n\n") && !answer.ends_with("\r\n\r\n");
        let closed = if is_cut { "backend_gone 1" } else { "backend_protocol_error 1" };
        expect_status(upstream.address(), Some((&upstream, answer)), 502, closed);
    }
}

/// One client of an upstream at `address`, which may give one answer and end: it gets `status`.
#[track_caller]
fn expect_status(
    address: SocketAddr,
    answer: Option<(&Upstream, &str)>,
    status: u16,
    closed: &str,
) {
    let limits = "[limits]\nupgrade_timeout_ms = 400\n";
    let gateway = Gateway::start(&format!("{HEAD}{}{limits}", to_upstream(address)));
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/", ""));
    if let Some((upstream, answer)) = answer {
        upstream.accept().0.write(answer);
    }
    let got = client.answer();
    let start = format!("HTTP/1.1 {status} ");
    assert!(got.starts_with(&start), "{got:?} for {:?}", answer.map(|(_, answer)| answer));
    drop(client);
    gateway.stop().expect(closed);
}

/// A subprotocol that the client has not offered.
#[test]
fn an_upstream_may_choose_only_what_was_offered() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    for (offered, chosen) in [
        ("", "Sec-WebSocket-Protocol: a\r\n"),
        ("", "Sec-WebSocket-Extensions: permessage-deflate\r\n"),
        ("Sec-WebSocket-Protocol: a\r\n", "Sec-WebSocket-Protocol: b\r\n"),
    ] {
        let mut client = Peer::connect(gateway.address());
        client.write(upgrade("/", offered));
        let (mut server, head) = upstream.accept();
        server.write(switching(&head, chosen));
        let answer = client.answer();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer:?} to {chosen}");
    }
}

/// Messages have the bound of their route, else that of `[limits]`, else none.
#[test]
fn messages_have_the_bounds_of_their_route() {
    let upstream = Upstream::listen();
    let route = |path: &str, lines: &str| {
        format!("[[route]]\npath = \"{path}\"\nbackend = \"app\"\n{lines}")
    };
    let routes = route("/less", "message_bytes_max = 200\n")
        + &route("/more", "message_bytes_max = 80_000_000\n")
        + &route("/none", "message_bytes_max = 0\n")
        + &route("/*", "")
        + &format!("[backend.app]\nkind = \"websocket\"\nurl = \"ws://{}\"\n", upstream.address());
    let head = |bytes: u64| match u16::try_from(bytes) {
        Ok(bytes) => [&[0x82, 0xFE][..], &bytes.to_be_bytes(), b"mask"].concat(),
        Err(_) => [&[0x82, 0xFF][..], &bytes.to_be_bytes(), b"mask"].concat(),
    };
    const EIB: u64 = 1 << 60;
    for (limits, rows) in [
        ("[limits]\nmessage_bytes_max = 1000\n", &[("/", 1000, true), ("/", 1001, false)][..]),
        ("", &[("/", EIB, true)]),
    ] {
        let gateway = Gateway::start(&format!("{HEAD}{routes}{limits}"));
        let of_routes = [
            ("/less", 200, true),
            ("/less", 201, false),
            ("/more", 80_000_000, true),
            ("/more", 80_000_001, false),
            ("/none", EIB, true),
        ];
        for (target, bytes, passes) in rows.iter().chain(&of_routes) {
            let mut client = Peer::connect(gateway.address());
            client.write(upgrade(target, ""));
            let (mut server, request) = upstream.accept();
            server.write(switching(&request, ""));
            client.head();
            // The header says how much it will be, and is judged by that.
            client.write(head(*bytes));
            if *passes {
                let head = head(*bytes);
                assert_eq!(server.bytes(head.len()), head, "{target} {bytes}");
            } else {
                assert_eq!(client.close_frame().0, 1009, "{target} {bytes}");
            }
        }
    }
}

/// A client that breaks the protocol gets its code; the upstream is told too, or sees the end.
#[test]
fn mistakes_of_a_client_end_at_the_gateway() {
    let upstream = Upstream::listen();
    let gateway = Gateway::start(&format!(
        "{HEAD}{}[limits]\nmessage_bytes_max = 1000\n",
        to_upstream(upstream.address())
    ));
    for (code, bytes) in [
        (1002, b"\x81\x02hi".to_vec()),
        (1002, masked(0xC1, b"compressed without being negotiated")),
        (1002, masked(0x83, b"")),
        (1009, masked(0x82, &[0; 1001])),
    ] {
        let (mut client, mut server) = upstream.join(&gateway);
        client.write(masked(0x81, b"good"));
        client.write(&bytes);
        assert_eq!(client.close_frame().0, code);
        client.end();
        assert_eq!(server.frame().payload, b"good");
        server.answer_nothing();
    }
    // A server that masks, or whose frames make no sense.
    for bytes in [masked(0x81, b"masked"), b"\x83\x00".to_vec(), b"\x80\x00".to_vec()] {
        let (mut client, mut server) = upstream.join(&gateway);
        server.write(&bytes);
        assert_eq!(client.close_frame().0, 1011);
        client.end();
    }
    gateway.stop().expect("backend_protocol_error 3, protocol_error 3, too_big 1");
}

impl Peer {
    /// Nothing but a Close frame, if anything, before the end.
    #[track_caller]
    fn answer_nothing(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty() || rest[0] == 0x88, "{rest:?}");
    }
}

/// One side ends its stream, the other may still speak.
#[test]
fn a_half_closed_client_is_still_answered() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let (mut client, mut server) = upstream.join(&gateway);
    client.send(0x81, b"last question");
    client.stream.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(server.frame().payload, b"last question");
    server.end();
    server.write(b"\x81\x06answer\x88\x02\x03\xE8");
    assert_eq!(client.frame().payload, b"answer");
    assert_eq!(client.close_frame().0, 1000);
    drop(server);
    client.end();
}

/// A reset stays a reset: the upstream sees an abnormal end (1006), not a made-up Close frame.
#[test]
fn a_client_that_resets_is_reset_behind() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let (mut client, mut server) = upstream.join(&gateway);
    client.send(0x81, b"x");
    server.frame();
    client.reset();
    server.end();
    // And the other way: the client is told.
    let (mut client, server) = upstream.join(&gateway);
    server.reset();
    assert_eq!(client.close_frame().0, 1012);
    client.end();
    // An upstream that ends its stream without a word.
    let (mut client, server) = upstream.join(&gateway);
    drop(server);
    assert_eq!(client.close_frame().0, 1012);
    client.end();
    drop(client);
    gateway.stop().expect("backend_gone 2, client_gone 1");
}

/// An upstream that goes in the middle of a frame: no Close frame may stand there.
#[test]
fn nothing_is_made_up_in_the_middle_of_a_frame() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream);
    let (mut client, mut server) = upstream.join(&gateway);
    server.write(b"\x82\x0Ahalf");
    assert_eq!(client.bytes(6), b"\x82\x0Ahalf");
    drop(server);
    client.end();
}

/// The gateway does not wait for an upstream whose backlog is full longer than it may.
#[test]
fn many_clients_of_a_dead_upstream_are_all_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(address)));
    let mut clients: Vec<Peer> = (0..200).map(|_| Peer::connect(gateway.address())).collect();
    for client in &mut clients {
        client.stream.write_all(upgrade("/", "").as_bytes()).expect("it is read");
    }
    for client in &mut clients {
        assert!(client.answer().starts_with("HTTP/1.1 502 "));
    }
    drop(clients);
    gateway.stop().expect("backend_gone 200");
}
