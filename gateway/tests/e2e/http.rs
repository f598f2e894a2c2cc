//! Requests that never become a WebSocket, byte by byte.

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, KEY, Peer, header, upgrade};

/// A status, and the request that it answers.
fn refusals() -> Vec<(u16, String)> {
    let get = |more: &str| format!("GET /echo HTTP/1.1\r\nHost: test\r\n{more}\r\n");
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: 1\r\n")).collect::<String>();
    vec![
        (404, upgrade("/nowhere", "")),
        (404, "GET /nowhere HTTP/1.1\r\nHost: test\r\n\r\n".to_owned()),
        // No upgrade where there is nothing else to be had.
        (426, get("")),
        (426, upgrade("/echo", "").replace("Version: 13", "Version: 8")),
        (405, upgrade("/echo", "").replace("GET ", "POST ")),
        // RFC 9112 §2.2: lines end with CRLF; no control characters.
        (400, get("").replace("\r\n", "\n")),
        (400, get("X: a\0b\r\n")),
        (400, "GARBAGE\r\n\r\n".to_owned()),
        (400, get("No colon\r\n")),
        (400, get("Space : before the colon\r\n")),
        (400, get(" folded\r\n")),
        // RFC 9112 §3.2: exactly one Host.
        (400, "GET /echo HTTP/1.1\r\n\r\n".to_owned()),
        (400, get("Host: other\r\n")),
        // RFC 6455 §4.2.1: one key of 16 bytes.
        (400, upgrade("/echo", "").replace(KEY, "c2hvcnQ=")),
        (400, upgrade("/echo", &format!("Sec-WebSocket-Key: {KEY}\r\n"))),
        (400, upgrade("/echo", "").replace("Sec-WebSocket-Key", "X-Key")),
        // Two ways to tell where a request ends are one too many.
        (400, upgrade("/echo", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n")),
        (400, upgrade("/echo", "Content-Length: 5\r\n")),
        (400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        (400, "\x16\x03\x01\x02\x00\x01\x00\x01\u{7c}\x03\x03".to_owned()),
        (505, upgrade("/echo", "").replace("HTTP/1.1", "HTTP/2.0")),
        (414, upgrade(&format!("/echo?{}", "x".repeat(1200)), "")),
        (431, upgrade("/echo", &format!("X: {}\r\n", "x".repeat(4096)))),
        (431, upgrade("/echo", &lines(40))),
    ]
}

#[test]
fn every_bad_request_gets_its_status_and_disturbs_nobody() {
    let limits = "[limits]\nhead_bytes_max = 4096\ntarget_bytes_max = 1024\nheaders_max = 32\n";
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{limits}"));
    let mut other = Peer::open(gateway.address(), "/echo");
    let refusals = refusals();
    for (status, request) in &refusals {
        let mut peer = Peer::connect(gateway.address());
        peer.write(request);
        let answer = peer.answer();
        let shown = request.chars().take(200).collect::<String>();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer:?} instead of {status} to {shown:?}"
        );
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
        assert_eq!(header(head, "connection").map(|value| value.contains("close")), Some(true));
        let length = header(head, "content-length").expect("a length").parse();
        assert_eq!(length, Ok(body.len()), "to {shown:?}");
        if *status == 426 && shown.contains("Version: 8") {
            assert_eq!(header(head, "sec-websocket-version"), Some("13"));
        }
        // Whoever is connected already does not notice.
        other.send(0x81, b"still here");
        assert_eq!(other.frame().payload, b"still here");
    }
    other.send(0x88, &[]);
    assert_eq!(other.frame().first, 0x88);
    other.end();
    let rejected = refusals.len();
    gateway.stop().expect(&format!("client_close 1, handshake_rejected {rejected}"));
}

/// TCP may cut a request anywhere.
#[test]
fn a_request_in_single_bytes_is_a_request() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let mut peer = Peer::connect(gateway.address());
    let mut bytes = upgrade("/echo", "").into_bytes();
    // The first frame right behind it.
    bytes.extend(crate::support::masked(0x81, b"early"));
    for byte in bytes {
        peer.write([byte]);
    }
    assert!(peer.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(peer.frame().payload, b"early");
}

#[test]
fn a_head_that_does_not_end_is_408_and_silence_is_closed() {
    let gateway =
        Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}[limits]\nhandshake_timeout_ms = 300\n"));
    let mut silent = Peer::connect(gateway.address());
    let mut slow = Peer::connect(gateway.address());
    slow.write("GET /echo HTTP/1.1\r\nHost: te");
    let answer = slow.answer();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    silent.end();
    drop((slow, silent));
    gateway.stop().expect("client_timeout_handshake 2");
}

/// Whoever asks over IPv6 is served like everybody else.
#[test]
fn ipv6_is_served() {
    let gateway = Gateway::run(&["run", "--listen", "[::1]:0"]);
    let mut peer = Peer::open(gateway.address(), "/echo");
    peer.send(0x82, b"six");
    assert_eq!(peer.frame().payload, b"six");
}

#[test]
fn the_default_serves_its_page() {
    let gateway = Gateway::run(&["run", "--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(gateway.address());
    peer.write("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let page = peer.answer();
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.contains("id=\"messages\""), "{page}");
    let mut peer = Peer::connect(gateway.address());
    peer.write("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n");
    let head = peer.answer();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    drop(peer);
    gateway.stop().expect("http_done 2");
}

/// A route is a fence for what is written plainly; the rest is refused before it.
#[test]
fn paths_that_lead_elsewhere_and_backends_that_refuse() {
    let routes = "[[route]]\nbackend = \"rooms\"\n[[route]]\npath = \"/admin/*\"\nbackend = \"closed\"\n\
                  [[route]]\npath = \"/gone\"\nbackend = \"gone\"\n\
                  [backend.rooms]\nkind = \"local\"\ndemo_page = true\n\
                  [backend.closed]\nkind = \"refuse\"\n\
                  [backend.gone]\nkind = \"refuse\"\nstatus = 403\n";
    for (paths, loose) in [("", 200), ("paths = \"strict\"\n", 400)] {
        let gateway = Gateway::start(&format!("{HEAD}{paths}{routes}"));
        let status = |request: String| {
            let mut peer = Peer::connect(gateway.address());
            peer.write(request);
            peer.answer()[9..12].parse::<u16>().expect("a status")
        };
        for (target, want) in [
            ("/", 200),
            ("/admin", 404),
            ("/admin/x", 404),
            ("/gone", 403),
            ("/x/../admin", 400),
            ("/x/%2e%2e/admin", 400),
            ("/x/..%2fadmin", 400),
            ("http://test/x/../admin", 400),
            ("//admin", loose),
            ("/%61dmin", loose),
            ("/ADMIN", 200),
        ] {
            let got = status(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
            assert_eq!(got, want, "{paths} {target}");
        }
        assert_eq!(status(upgrade("/admin/ws", "")), 404);
        // Probes of balancers name no host.
        for probe in [
            "GET / HTTP/1.0\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n",
            "GET / HTTP/1.1\r\nHost: test:\r\n",
        ] {
            assert_eq!(status(format!("{probe}\r\n")), 200, "{probe}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n".to_owned()), 400);
    }
}
