//! Ordinary HTTP on the route of a WebSocket upstream, byte by byte on both sides.

use crate::support::{Gateway, HEAD, Peer, Upstream, header, switching, to_upstream, upgrade};

fn in_front_of(upstream: &Upstream, limits: &str) -> Gateway {
    Gateway::start(&format!("{HEAD}{}[limits]\n{limits}", to_upstream(upstream.address())))
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: chat.test\r\n\r\n")
}

#[test]
fn a_request_and_its_answer_pass_with_the_headers_of_their_ends() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "");
    let mut client = Peer::connect(gateway.address());
    client.write(
        "POST /socket.io/?EIO=4&sid=x HTTP/1.1\r\nHost: chat.test\r\nContent-Length: 5\r\n\
         Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
         Cookie: a=b\r\nOrigin: http://elsewhere\r\nX-Forwarded-For: 6.6.6.6\r\n\
         Upgrade: h2c\r\n\r\nhello",
    );
    let (mut server, head) = upstream.accept();
    assert!(head.starts_with("POST /socket.io/?EIO=4&sid=x HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("Host", Some("chat.test")),
        ("Content-Length", Some("5")),
        ("Connection", Some("close")),
        ("Cookie", Some("a=b")),
        ("Origin", Some("http://elsewhere")),
        ("X-Forwarded-For", Some("127.0.0.1")),
        ("X-Forwarded-Host", Some("chat.test")),
        ("X-Forwarded-Proto", Some("http")),
        ("X-Hop", None),
        ("Keep-Alive", None),
        ("TE", None),
        ("Upgrade", None),
    ] {
        assert_eq!(header(&head, name), value, "{name} in {head}");
    }
    assert_eq!(server.bytes(5), b"hello");
    server.write(
        "HTTP/1.1 207 As The App Says\r\nSet-Cookie: c=d\r\nSet-Cookie: e=f\r\nConnection: close\r\n\
         Access-Control-Allow-Origin: *\r\nContent-Length: 3\r\n\r\nyes",
    );
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 207 As The App Says\r\n"), "{head}");
    assert!(head.contains("Set-Cookie: c=d\r\nSet-Cookie: e=f\r\n"), "{head}");
    assert_eq!(header(&head, "access-control-allow-origin"), Some("*"));
    // That connection ends; the client's goes on.
    assert_eq!(header(&head, "connection"), None, "{head}");
    assert_eq!(client.bytes(3), b"yes");
    server.end();
    client.write(get("/next"));
    let (mut server, head) = upstream.accept();
    assert!(head.starts_with("GET /next HTTP/1.1\r\n"), "{head}");
    server.write("HTTP/1.1 204 No Content\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 204 "));
    client.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    client.end();
    gateway.stop().expect("http_done 1");
}

/// What a connection was used for before does not matter to an upgrade.
#[test]
fn an_upgrade_follows_ordinary_requests_on_the_same_connection() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "");
    let mut client = Peer::connect(gateway.address());
    client.write(get("/poll"));
    let (mut server, _) = upstream.accept();
    server.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    client.head();
    client.write(upgrade("/socket", ""));
    let (mut server, head) = upstream.accept();
    server.write(switching(&head, ""));
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client.send(0x81, b"frame");
    assert_eq!(server.frame().payload, b"frame");
}

/// A length that another parser may read otherwise passes neither way.
#[test]
fn lengths_that_can_be_read_in_two_ways_do_not_pass() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "");
    for length in ["9223372036854775808", "18446744073709551615", "05"] {
        let mut client = Peer::connect(gateway.address());
        client
            .write(format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\nhello"));
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        let mut client = Peer::connect(gateway.address());
        client.write(get("/poll"));
        // The first that it hears: nothing of the other request has come.
        let (mut server, head) = upstream.accept();
        assert!(head.starts_with("GET /poll "), "{head}");
        server.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhello"));
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    }
}

#[test]
fn bodies_pass_as_they_are_framed() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "");
    let chunked = "4;a=b\r\nwiki\r\n0\r\nX-Sum: x\r\n\r\n";
    let with = |framing: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{framing}\r\n{body}");
    // The request's body, the answer, and what of the answer's body the client is to get.
    for (request, answer, body, stays) in [
        ("", with("Content-Length: 4\r\n", "four"), "four", true),
        ("", with("Transfer-Encoding: chunked\r\n", chunked), chunked, true),
        ("", with("", "until the end"), "until the end", false),
        (chunked, with("Content-Length: 0\r\n", ""), "", true),
        // What stands behind an answer is nobody's.
        ("", with("Content-Length: 2\r\n", "okHTTP/1.1 200 OK\r\n\r\n"), "ok", true),
    ] {
        let mut client = Peer::connect(gateway.address());
        let framing = if request.is_empty() { "" } else { "Transfer-Encoding: chunked\r\n" };
        client.write(format!("POST / HTTP/1.1\r\nHost: t\r\n{framing}\r\n{request}"));
        let (mut server, _) = upstream.accept();
        assert_eq!(server.bytes(request.len()), request.as_bytes());
        // TCP may cut anywhere.
        for byte in answer.bytes() {
            server.write([byte]);
        }
        let head = client.head();
        assert_eq!(header(&head, "connection"), (!stays).then_some("close"), "{head}");
        assert_eq!(client.bytes(body.len()), body.as_bytes());
        drop(server);
        if stays {
            client.write(get("/again"));
            let (mut server, _) = upstream.accept();
            server.write("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!");
            assert!(client.head().starts_with("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"));
            assert_eq!(client.bytes(1), b"!");
        } else {
            client.end();
        }
    }
}

#[test]
fn head_and_interim_responses() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "");
    let mut client = Peer::connect(gateway.address());
    client.write("HEAD / HTTP/1.1\r\nHost: t\r\n\r\n");
    let (mut server, _) = upstream.accept();
    server.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    assert_eq!(header(&client.head(), "content-length"), Some("1000"));
    client.write("POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let (mut server, head) = upstream.accept();
    assert_eq!(header(&head, "expect"), Some("100-continue"));
    server.write("HTTP/1.1 100 Continue\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 100 "));
    client.write("ok");
    assert_eq!(server.bytes(2), b"ok");
    server.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 103 "));
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    // HTTP/1.0 knows neither interim responses nor connections that stay.
    let mut old = Peer::connect(gateway.address());
    old.write("GET /old HTTP/1.0\r\nHost: t\r\n\r\n");
    let (mut server, head) = upstream.accept();
    assert!(head.starts_with("GET /old HTTP/1.0\r\n"), "{head}");
    server.write("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let answer = old.answer();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[test]
fn requests_behind_each_other_are_answered_in_their_order() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "");
    let mut client = Peer::connect(gateway.address());
    let post = "POST /1 HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nGET /no H";
    client.write(format!("{}{post}{}", get("/0"), get("/2")));
    for number in 0..3 {
        let (mut server, head) = upstream.accept();
        assert!(head.contains(&format!(" /{number} ")), "{head}");
        if number == 1 {
            assert_eq!(server.bytes(9), b"GET /no H");
        }
        server.write(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}"));
        client.head();
        assert_eq!(client.bytes(1), number.to_string().as_bytes());
        // Nothing of the next request came to this server.
        server.end();
    }
}

#[test]
fn large_bodies_are_streamed() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(&upstream, "request_body_bytes_max = 67_108_864\n");
    let size = 24 << 20;
    let body: Vec<u8> = (0..size as u32).map(|n| (n / 251) as u8).collect();
    let before = gateway.resident_bytes();
    let mut client = Peer::connect(gateway.address());
    client.write(format!("PUT / HTTP/1.1\r\nHost: t\r\nContent-Length: {size}\r\n\r\n"));
    let (mut server, _) = upstream.accept();
    std::thread::scope(|scope| {
        scope.spawn(|| client.write(&body));
        assert!(server.bytes(size) == body);
    });
    server.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
    client.head();
    std::thread::scope(|scope| {
        scope.spawn(|| server.write(&body));
        assert!(client.bytes(size) == body);
    });
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for bodies of {size}");
}

/// The status of a body of `bytes`: 204, if it reaches the upstream as a whole.
fn status_of_body(upstream: &Upstream, gateway: &Gateway, target: &str, bytes: usize) -> String {
    let mut client = Peer::connect(gateway.address());
    client.write(format!("POST {target} HTTP/1.1\r\nHost: t\r\nContent-Length: {bytes}\r\n\r\n"));
    let mut buffer = [0; 1];
    client.write(vec![7; bytes]);
    client.stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("not zero");
    // Who is refused hears of it before anybody is connected.
    if client.stream.peek(&mut buffer).is_err() {
        let (mut server, _) = upstream.accept();
        assert!(server.bytes(bytes) == vec![7; bytes]);
        server.write("HTTP/1.1 204 No Content\r\n\r\n");
    }
    client.stream.set_read_timeout(None).expect("it is open");
    client.head().split(' ').nth(1).expect("a status").to_owned()
}

/// Bodies have the bound of their route, else that of `[limits]`, else none.
#[test]
fn bodies_and_answers_have_the_bounds_of_their_route() {
    let upstream = Upstream::listen();
    let route = |path: &str, lines: &str| {
        format!("[[route]]\npath = \"{path}\"\nbackend = \"app\"\n{lines}")
    };
    let routes = route("/less", "request_body_bytes_max = 10\nresponse_timeout_ms = 1000\n")
        + &route("/more", "request_body_bytes_max = 3_000\n")
        + &route("/none", "request_body_bytes_max = 0\n")
        + &route("/*", "")
        + &format!("[backend.app]\nkind = \"websocket\"\nurl = \"ws://{}\"\n", upstream.address());
    let limited = format!("{HEAD}{routes}[limits]\nrequest_body_bytes_max = 1000\n");
    for (config, rows) in [
        (limited, &[("/", 1000, "204"), ("/", 1001, "413")][..]),
        (format!("{HEAD}{routes}"), &[("/", 200_000, "204")]),
    ] {
        let gateway = Gateway::start(&config);
        let of_routes = [
            ("/less", 10, "204"),
            ("/less", 11, "413"),
            ("/more", 3_000, "204"),
            ("/more", 3_001, "413"),
            ("/none", 200_000, "204"),
        ];
        for (target, bytes, status) in rows.iter().chain(&of_routes) {
            let got = status_of_body(&upstream, &gateway, target, *bytes);
            assert_eq!(got, *status, "{target} {bytes}");
        }
        // The time for an answer is the route's as well: 60 s elsewhere.
        let mut client = Peer::connect(gateway.address());
        client.write(get("/less"));
        let _silent = upstream.accept();
        assert!(client.head().starts_with("HTTP/1.1 504 "));
    }
}

#[test]
fn what_goes_wrong_has_a_status_while_there_is_room_for_one() {
    let upstream = Upstream::listen();
    let gateway = in_front_of(
        &upstream,
        "request_body_bytes_max = 10\nresponse_timeout_ms = 300\nconnect_timeout_ms = 300\n",
    );
    let ask = |request: &str| {
        let mut client = Peer::connect(gateway.address());
        client.write(request);
        client
    };
    let is = |client: &mut Peer, status: u16| {
        let answer = client.answer();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    };
    // Too large, by its head and by its chunks: neither upstream gets the whole of it.
    is(&mut ask("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 11\r\n\r\n"), 413);
    let chunked = "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = ask(&format!("{chunked}5\r\nhello\r\n"));
    let (mut server, _) = upstream.accept();
    assert_eq!(server.bytes(10), b"5\r\nhello\r\n");
    client.write("5\r\n");
    is(&mut client, 413);
    server.end();
    // A body of another framing than its head's.
    let mut client = ask(&format!("{chunked}5\r\nhelloX"));
    is(&mut client, 400);
    // No answer, an unfinished request, garbage, a switch that nobody asked for, the end.
    let mut client = ask(&get("/"));
    let (silent, _) = upstream.accept();
    is(&mut client, 504);
    drop(silent);
    let mut client = ask("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n");
    let (waiting, _) = upstream.accept();
    is(&mut client, 408);
    drop(waiting);
    for answer in ["garbage\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n", ""] {
        let mut client = ask(&get("/"));
        let (mut server, _) = upstream.accept();
        server.write(answer);
        drop(server);
        is(&mut client, 502);
    }
    // Where the answer has begun, it can only end too early.
    for (framing, begun) in
        [("Content-Length: 9\r\n", "cut"), ("Transfer-Encoding: chunked\r\n", "9\r\ncut")]
    {
        let mut client = ask(&get("/"));
        let (mut server, _) = upstream.accept();
        server.write(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{begun}"));
        drop(server);
        assert!(client.answer().ends_with(begun));
    }
    is(&mut ask("TRACE / HTTP/1.1\r\nHost: t\r\n\r\n"), 405);
    // A client that leaves takes its request with it.
    let mut client = ask(&get("/"));
    let (mut server, _) = upstream.accept();
    client.stream.shutdown(std::net::Shutdown::Both).expect("it is open");
    server.end();
    client.end();
}

/// A client that gave a poll up by the end of its stream looks like one that waits. It is kept as long as
/// the answer may take, and found out by the first part of it.
#[test]
fn who_ends_its_stream_behind_a_request_is_kept_for_the_answer_and_no_longer() {
    let upstream = Upstream::listen();
    let timeout = std::time::Duration::from_millis(600);
    let gateway = in_front_of(&upstream, "response_timeout_ms = 600\n");
    let ask = || {
        let mut client = Peer::connect(gateway.address());
        client.write(get("/poll"));
        let (server, _) = upstream.accept();
        (client, server)
    };
    // It waits: no answer comes, so it is told that none will.
    let (mut client, mut server) = ask();
    let asked = std::time::Instant::now();
    client.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    let answer = client.answer();
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(asked.elapsed() >= timeout * 9 / 10, "{:?}", asked.elapsed());
    server.end();
    // It is gone: the request is given up at what it is sent, and the upstream is not read to its end.
    let (client, mut server) = ask();
    drop(client);
    server.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    for _ in 0..200 {
        if std::io::Write::write_all(&mut server.stream, b"data: x\n\n").is_err() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let sent = std::time::Instant::now();
    server.end();
    assert!(sent.elapsed() < timeout / 2, "{:?}", sent.elapsed());
    // A reset is no such end: the request is given up at once.
    let (client, mut server) = ask();
    let reset = std::time::Instant::now();
    client.reset();
    server.end();
    assert!(reset.elapsed() < timeout / 2, "{:?}", reset.elapsed());
}

#[test]
fn an_upstream_that_is_not_there_is_502_and_http_can_be_switched_off() {
    let upstream = Upstream::listen();
    let route = to_upstream(upstream.address());
    let off = Gateway::start(&format!("{HEAD}{route}http = false\n"));
    let mut client = Peer::connect(off.address());
    client.write(get("/"));
    assert!(client.answer().starts_with("HTTP/1.1 426 "));
    let gateway = Gateway::start(&format!("{HEAD}{route}"));
    drop(upstream);
    let mut client = Peer::connect(gateway.address());
    client.write(get("/"));
    assert!(client.answer().starts_with("HTTP/1.1 502 "));
    drop(client);
    gateway.stop().expect("backend_gone 1");
}

#[test]
fn a_stop_refuses_what_is_not_answered_and_finishes_what_is() {
    let upstream = Upstream::listen();
    // One shard: when it has refused the one, it has heard of the stop for the other, too.
    let config = format!("{HEAD}{}", to_upstream(upstream.address()));
    let gateway = Gateway::start_with(&config, &["--shards", "1"]);
    let mut waits = Peer::connect(gateway.address());
    waits.write(get("/poll"));
    let (poll, _) = upstream.accept();
    let mut begun = Peer::connect(gateway.address());
    begun.write(get("/file"));
    let (mut file, _) = upstream.accept();
    file.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    begun.head();
    assert_eq!(begun.bytes(2), b"ab");
    gateway.terminate();
    assert!(waits.answer().starts_with("HTTP/1.1 503 "));
    file.write("cd");
    assert_eq!(begun.rest(), b"cd");
    drop(poll);
    drop((waits, begun));
    gateway.stopped().expect("drain 1, http_done 1");
}
