//! The opening handshake, by the sections of RFC 6455 and by what peers try.

use super::end_to_end::encode_header;
use super::*;

#[test]
fn section_1_3_accept() {
    assert_eq!(&accept_value("dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn an_answer_without_a_body_says_nothing_of_one() {
    for (status, stays) in [(204, false), (103, false), (200, true), (304, true)] {
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: 5\r\nETag: a\r\n\r\n");
        let response = parse_response(head.as_bytes(), &LIMITS).unwrap();
        let mut out = Vec::new();
        encode_forwarded_response(&mut out, &response, true, None);
        let out = String::from_utf8(out).expect("text");
        assert_eq!(out.contains("Content-Length: 5"), stays, "{out}");
        assert!(out.contains("ETag: a"), "{out}");
    }
}

#[test]
fn a_header_cannot_be_split() {
    let mut out = Vec::new();
    encode_header(&mut out, "X-A", b"a\r\nX-B: b");
    encode_header(&mut out, "X-A\r\nX-B", b"b");
    assert!(out.is_empty());
}

use crate::http::{HeadLimits, parse_request, parse_response};

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 4096, headers_max: 64, target_bytes_max: 1024 };
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A client that nobody speaks for.
fn ours(client: &str) -> Forwarded<'static> {
    Forwarded { client: client.parse().unwrap(), proto: "http", proxy: None }
}

fn client(more: &str) -> String {
    format!(
        "GET /chat?a=b HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

#[test]
fn a_client_cannot_forge_its_address_or_nominate_what_it_is() {
    let head = client(
        "Connection: keep-alive, Upgrade, Cookie, X-Mine\r\nCookie: c\r\nX-Mine: 1\r\n\
         X_Forwarded_For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nOrigin: http://x\r\n",
    );
    let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
    assert_eq!(upgrade_of(&request).unwrap().unwrap().key, KEY);
    let mut out = Vec::new();
    let forwarded = ours("10.0.0.1");
    encode_upstream_request(&mut out, &request, KEY, None, None, &forwarded);
    let sent = parse_request(&out, &LIMITS).unwrap();
    let names: Vec<&str> = sent.headers.iter().map(|header| header.name).collect();
    let want = "Host Upgrade Connection Sec-WebSocket-Key X-Forwarded-For X-Real-IP \
                X-Forwarded-Proto X-Forwarded-Host Sec-WebSocket-Version Cookie Origin";
    assert_eq!(names.join(" "), want);
    assert_eq!(sent.headers.get("x-forwarded-for"), Some("10.0.0.1"));
    assert_eq!((sent.path, sent.query), ("/chat", Some("a=b")));
}

#[test]
fn a_trusted_proxy_joins_the_chain() {
    let sent = |lines: &str, forwarded: &Forwarded<'_>| {
        let head = client(&format!("Connection: Upgrade\r\n{lines}"));
        let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
        let mut out = Vec::new();
        encode_upstream_request(&mut out, &request, KEY, None, None, forwarded);
        let sent = parse_request(&out, &LIMITS).unwrap();
        let all = |name| sent.headers.all(name).collect::<Vec<_>>().join("|");
        let claims = ["x-forwarded-for", "x-real-ip", "x-forwarded-proto", "forwarded"];
        claims.map(all).join("; ")
    };
    let behind = |client: &str| Forwarded {
        client: client.parse().unwrap(),
        proto: "https",
        proxy: Some("::ffff:10.0.0.1".parse().unwrap()),
    };
    let lines = "X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-Proto: wss\r\n\
                 x-forwarded-for: 10.0.0.7\r\nX_Forwarded_For: 7.7.7.7\r\nForwarded: for=8.8.8.8\r\n";
    let want = "6.6.6.6, 203.0.113.9, 10.0.0.7, 10.0.0.1; 203.0.113.9; https; for=8.8.8.8";
    assert_eq!(sent(lines, &behind("203.0.113.9")), want);
    assert_eq!(sent(lines, &ours("192.0.2.1")), "192.0.2.1; 192.0.2.1; http; ");
    // Without that header: the client that was named another way, or the proxy itself.
    let want = "203.0.113.9, 10.0.0.1; 203.0.113.9; https; for=203.0.113.9";
    assert_eq!(sent("Forwarded: for=203.0.113.9\r\n", &behind("203.0.113.9")), want);
    assert_eq!(sent("", &behind("::ffff:10.0.0.1")), "10.0.0.1; 10.0.0.1; https; ");
}

#[test]
fn what_a_trusted_proxy_says_goes_on() {
    let sent = |lines: &str, proxy: Option<&str>, name: &str| {
        let head = client(&format!("Connection: Upgrade\r\n{lines}"));
        let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
        let proxy = proxy.map(|proxy| proxy.parse().unwrap());
        let forwarded = Forwarded { client: "203.0.113.9".parse().unwrap(), proto: "https", proxy };
        let (mut upgrade, mut plain) = (Vec::new(), Vec::new());
        encode_upstream_request(&mut upgrade, &request, KEY, None, None, &forwarded);
        encode_forwarded_request(&mut plain, &request, None, None, false, &forwarded);
        let all = |wire: &[u8]| {
            let sent = parse_request(wire, &LIMITS).unwrap();
            sent.headers.all(name).collect::<Vec<_>>().join("|")
        };
        assert_eq!(all(&upgrade), all(&plain));
        all(&plain)
    };
    let trusted = Some("10.0.0.1");
    for name in [
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Ssl",
        "X-Forwarded-Server",
        "X-Forwarded-User",
        "X-Forwarded-Email",
        "X-Forwarded-Access-Token",
        "X-Forwarded-Client-Cert",
        "Forwarded",
    ] {
        for spelt in [name.to_owned(), name.replace('-', "_")] {
            let line = format!("{spelt}: for=a\r\n");
            assert_eq!(sent(&line, trusted, &spelt), "for=a", "{spelt}");
            assert_eq!(sent(&line, None, &spelt), "", "{spelt}");
        }
    }
    let host = "X-Forwarded-Host: chat.example.org\r\n";
    assert_eq!(sent(host, trusted, "x-forwarded-host"), "chat.example.org");
    assert_eq!(sent("", trusted, "x-forwarded-host"), "x");
    assert_eq!(sent(host, None, "x-forwarded-host"), "x");
    for (line, name, want) in [
        ("X-Real-IP: 6.6.6.6\r\n", "x-real-ip", "203.0.113.9"),
        ("X_Real_IP: 6.6.6.6\r\n", "x_real_ip", ""),
        ("X_Forwarded_Proto: ws\r\n", "x_forwarded_proto", ""),
        ("X-Forwarded-Proto: ws\r\n", "x-forwarded-proto", "https"),
    ] {
        assert_eq!(sent(line, trusted, name), want, "{line}");
    }
}

#[test]
fn requests_of_no_host_and_of_the_server_itself() {
    let sent = |line: &str, path: Option<&str>| {
        let head = format!("{line}\r\n\r\n");
        let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
        text(|out| {
            encode_forwarded_request(out, &request, None, path, false, &ours("10.0.0.1"));
        })
    };
    let old = sent("GET /health HTTP/1.0", None);
    assert!(old.starts_with("GET /health HTTP/1.0\r\nConnection: close\r\n"), "{old}");
    assert!(!old.to_ascii_lowercase().contains("host"), "{old}");
    let all = sent("OPTIONS * HTTP/1.1\r\nHost: x", Some("/socket"));
    assert!(all.starts_with("OPTIONS * HTTP/1.1\r\nHost: x\r\n"), "{all}");
    let listed = sent("POST / HTTP/1.1\r\nHost:\r\nTransfer-Encoding: ,chunked", None);
    assert!(listed.contains("\r\nTransfer-Encoding: chunked\r\n"), "{listed}");
    assert!(!listed.contains(",chunked") && listed.contains("\r\nHost: \r\n"), "{listed}");
}

#[test]
fn only_a_verified_101_opens_the_tunnel() {
    let head = client("Connection: Upgrade\r\nSec-WebSocket-Protocol: a, b\r\n");
    let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
    let offer = Offer::new(&upgrade_of(&request).unwrap().unwrap(), KEY);
    let answer = |status: &str, accept: &str, more: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
        );
        let response = parse_response(head.as_bytes(), &LIMITS).unwrap();
        format!("{:?}", check_upstream_response(&response, &offer))
    };
    let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    assert_eq!(answer("101 S", accept, ""), "Ok(Accepted { protocol: None, rsv1: false })");
    assert_eq!(answer("101 S", "wrong", ""), "Err(WrongAccept)");
    assert_eq!(answer("200 OK", accept, ""), "Ok(Refused)");
    assert_eq!(answer("103 E", accept, ""), "Ok(Interim)");
    let more = "Sec-WebSocket-Protocol: c\r\n";
    assert_eq!(answer("101 S", accept, more), "Err(ProtocolNotOffered)");
    let more = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    assert_eq!(answer("101 S", accept, more), "Err(ExtensionNotOffered)");
}

/// `Ok`: the key, the subprotocols and the extensions. `request_line` and `lines` are a request
/// with everything that these two leave out: a Host.
fn read(request_line: &str, lines: &[&str]) -> Result<String, HttpError> {
    let head = format!("{request_line}\r\nHost: x\r\n{}\r\n\r\n", lines.join("\r\n"));
    let request = parse_request(head.as_bytes(), &LIMITS)?;
    let upgrade = upgrade_of(&request)?;
    Ok(upgrade.map_or("no upgrade".into(), |upgrade| {
        format!("{}|{}", upgrade.protocols.join(" "), upgrade.extensions.unwrap_or_default())
    }))
}

/// A good upgrade with the lines named `name` replaced by `lines`.
fn with(name: &str, lines: &[&str]) -> Result<String, HttpError> {
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let good = ["Upgrade: websocket", "Connection: Upgrade", &key, "Sec-WebSocket-Version: 13"];
    let others = good.into_iter().filter(|line| name.is_empty() || !line.starts_with(name));
    let lines: Vec<&str> = others.chain(lines.iter().copied()).collect();
    read("GET / HTTP/1.1", &lines)
}

#[test]
fn section_4_2_1_what_is_an_upgrade() {
    let ok = || Ok("|".to_owned());
    assert_eq!(with("", &[]), ok());
    assert_eq!(with("Connection", &["Connection: keep-alive", "connection: x , UPGRADE"]), ok());
    assert_eq!(with("Upgrade", &["Upgrade: h2c, WebSocket"]), ok());
    assert_eq!(with("Upgrade", &["Upgrade: h2c", "Upgrade: websocket"]), ok());
    assert_eq!(with("", &["Content-Length: 0"]), ok());
    let both = ["Sec-WebSocket-Protocol: b, a", "Sec-WebSocket-Protocol: c"];
    assert_eq!(with("", &both), Ok("b a c|".to_owned()));
    let both = ["Sec-WebSocket-Extensions: a; x=\"1,2\"", "Sec-WebSocket-Extensions: b"];
    assert_eq!(with("", &both), Ok("|a; x=\"1,2\", b".to_owned()));
    assert_eq!(read("GET / HTTP/1.1", &["Connection: Upgrade"]), Ok("no upgrade".to_owned()));
    assert_eq!(read("GET / HTTP/1.1", &["Upgrade: h2c"]), Ok("no upgrade".to_owned()));
}

#[test]
fn section_4_2_1_every_refusal() {
    use HttpError::*;
    let key = |value: &str| with("Sec-WebSocket-Key", &[&format!("Sec-WebSocket-Key: {value}")]);
    assert_eq!(with("Sec-WebSocket-Key", &[]), Err(BadKey));
    assert_eq!(with("", &[&format!("Sec-WebSocket-Key: {KEY}")]), Err(BadKey));
    for bad in [
        "",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZQ===",
        "dGhlIHNhbXBsZSBub25jZQ= =",
        "dGhlIHNhbXBsZSBub25jZQAA",
        "dGhlIHNhbXBsZSBub25=ZQ==",
        "dGhlIHNhbXBsZS-ub25jZQ==",
        "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25jZ\u{e9}==",
    ] {
        assert_eq!(key(bad), Err(BadKey), "{bad:?}");
    }
    for bad in ["12", "14", "13, 8", "013", "", "13 13"] {
        let line = format!("Sec-WebSocket-Version: {bad}");
        assert_eq!(with("Sec-WebSocket-Version", &[&line]), Err(BadWebSocketVersion), "{bad:?}");
    }
    assert_eq!(with("Sec-WebSocket-Version", &[]), Err(BadWebSocketVersion));
    assert_eq!(with("", &["Sec-WebSocket-Version: 13"]), Err(BadWebSocketVersion));
    assert_eq!(with("Connection", &[]), Err(ConnectionWithoutUpgrade));
    let lines = ["Connection: keep-alive, xUpgrade, \"Upgrade\""];
    assert_eq!(with("Connection", &lines), Err(ConnectionWithoutUpgrade));
    assert_eq!(with("Upgrade", &["Upgrade: websockets"]), Err(UpgradeRequired));
    for body in ["Content-Length: 1", "Transfer-Encoding: chunked"] {
        assert_eq!(with("", &[body]), Err(BodyWithUpgrade));
    }
    for bad in ["a, a", "a b", "a/b", "\"a\"", "\u{e9}"] {
        let line = format!("Sec-WebSocket-Protocol: {bad}");
        assert_eq!(with("", &[&line]), Err(BadProtocols), "{bad:?}");
    }
    let twice = ["Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: a"];
    assert_eq!(with("", &twice), Err(BadProtocols));
    let list = |count| (0..count).map(|i| format!("p{i}")).collect::<Vec<_>>().join(",");
    let protocols = |count| with("", &[&format!("Sec-WebSocket-Protocol: {}", list(count))]);
    assert!(protocols(PROTOCOLS_MAX).is_ok());
    assert_eq!(protocols(PROTOCOLS_MAX + 1), Err(BadProtocols));
    assert_eq!(read("POST / HTTP/1.1", &["Upgrade: websocket"]), Err(MethodNotAllowed));
    assert_eq!(read("get / HTTP/1.1", &["Upgrade: websocket"]), Err(MethodNotAllowed));
    assert_eq!(read("GET / HTTP/1.0", &["Upgrade: websocket"]), Err(UpgradeInHttp10));
}

fn text(encode: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    encode(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn responses_of_our_own() {
    let switching = text(|out| {
        encode_switching(out, &accept_value(KEY), Some("a"), Some("e; x=1"), &[("X-A", "b")]);
    });
    let want = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Extensions: e; x=1\r\nX-A: b\r\n\r\n";
    assert_eq!(switching, want);
    let busy = text(|out| encode_response(out, 503, &[], "text/plain", b"later"));
    let want = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: text/plain\
                \r\nContent-Length: 5\r\nConnection: close\r\n\r\nlater";
    assert_eq!(busy, want);
    let headers = [("retry-after", "9")];
    let busy = text(|out| encode_response(out, 503, &headers, "text/plain", b""));
    assert_eq!(busy.to_ascii_lowercase().matches("retry-after").count(), 1);
    let version = text(|out| encode_error(out, HttpError::BadWebSocketVersion));
    for line in ["426 Upgrade Required", "Sec-WebSocket-Version: 13", "close, Upgrade"] {
        assert!(version.contains(line), "{version}");
    }
    assert!(text(|out| encode_error(out, HttpError::MethodNotAllowed)).contains("Allow: GET"));
}

const HOP_LINES: &str = "Connection: X-Hop, Set-Cookie\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
                         Proxy-Authenticate: x\r\nTrailer: T\r\nSet-Cookie: a=b\r\n\
                         Set-Cookie: c=d\r\nX-End: e\r\n";

fn names(wire: &[u8]) -> String {
    let response = parse_response(wire, &LIMITS).unwrap();
    response.headers.iter().map(|header| header.name).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_refusal_keeps_what_is_for_the_client() {
    let head = format!(
        "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 3\r\n{HOP_LINES}\r\n"
    );
    let response = parse_response(head.as_bytes(), &LIMITS).unwrap();
    let sent = text(|out| encode_refusal(out, &response));
    let want = "WWW-Authenticate Content-Length Set-Cookie Set-Cookie X-End Connection";
    assert_eq!(names(sent.as_bytes()), want);
    assert!(sent.starts_with("HTTP/1.1 401 Unauthorized\r\n"));
    assert!(sent.ends_with("Connection: close\r\n\r\n"));
    let response = parse_response(b"HTTP/1.1 426 U\r\nUpgrade: h9\r\n\r\n", &LIMITS).unwrap();
    let sent = text(|out| encode_refusal(out, &response));
    assert!(sent.ends_with("Upgrade: websocket\r\nConnection: close, Upgrade\r\n\r\n"));
}

#[test]
fn a_101_of_the_upstream_passes_but_for_one_hop() {
    let head = format!(
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\
         Sec-WebSocket-Accept: theirs\r\nSec-WebSocket-Protocol: a\r\n{HOP_LINES}\
         Sec-WebSocket-Extensions: e; x=\"1,2\"\r\nSec-WebSocket-Extensions: f\r\n\r\n"
    );
    let response = parse_response(head.as_bytes(), &LIMITS).unwrap();
    let accept = accept_value(KEY);
    let sent = text(|out| encode_switching_from_upstream(out, &response, &accept, None));
    let want = "Upgrade Connection Sec-WebSocket-Accept Sec-WebSocket-Extensions \
                Sec-WebSocket-Protocol Set-Cookie Set-Cookie X-End";
    assert_eq!(names(sent.as_bytes()), want);
    assert!(sent.contains("Sec-WebSocket-Extensions: e; x=\"1,2\", f\r\n"));
    assert!(!sent.contains("theirs"));
}

/// A generator that is the same in every run.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 33
}

#[test]
fn whatever_is_nominated_only_ordinary_headers_go() {
    let protected = ["Cookie", "Authorization", "Origin", "Sec-WebSocket-Version", "Sec-X"];
    let ordinary = ["X-A", "X-B", "Accept", "User-Agent", "Cookie2", "X-User-Id"];
    let claims = ["X-Forwarded-For", "X_Forwarded_For", "Forwarded", "X-Real-IP", "x-real_ip"];
    let mut seed = 1;
    for _ in 0..500 {
        let all = protected.iter().chain(&ordinary).chain(&claims).copied();
        let mut nominated: Vec<&str> =
            all.clone().filter(|_| next(&mut seed).is_multiple_of(2)).collect();
        nominated.push("Upgrade");
        let lower = |name: &str| name.to_ascii_lowercase();
        let separator = ["\r\nConnection: ", ", ", " ,,\t"][next(&mut seed) as usize % 3];
        let connection: Vec<String> = nominated.iter().map(|name| lower(name)).collect();
        let head = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: {}\r\n{}\r\n",
            connection.join(separator),
            all.clone().map(|name| format!("{name}: 6.6.6.6\r\n")).collect::<String>()
        );
        let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
        let forwarded = ours("::ffff:10.0.0.1");
        let mut out = Vec::new();
        encode_upstream_request(&mut out, &request, KEY, None, None, &forwarded);
        let sent = parse_request(&out, &LIMITS).unwrap();
        let passed = |name: &str| sent.headers.all(name).any(|value| value == "6.6.6.6");
        assert!(protected.iter().all(|name| passed(name)), "{head}");
        assert!(ordinary.iter().all(|name| passed(name) != nominated.contains(name)), "{head}");
        assert!(!claims.iter().any(|name| passed(name)), "{head}");
        assert_eq!(sent.headers.get("x-forwarded-for"), Some("10.0.0.1"));
    }
}

#[test]
fn no_bytes_split_a_header() {
    let mut seed = 7;
    let alphabet = b"aZ-_ \t:;,\"\r\n\0\x01\x7f\xe9\xff/";
    for _ in 0..5_000 {
        let mut bytes = |max: u64| -> Vec<u8> {
            let length = next(&mut seed) % max;
            let letter = |_| alphabet[next(&mut seed) as usize % alphabet.len()];
            (0..length).map(letter).collect()
        };
        let (mut out, mut want) = (b"HTTP/1.1 200 OK\r\n".to_vec(), Vec::new());
        for _ in 0..4 {
            let name = String::from_utf8_lossy(&bytes(4)).into_owned();
            let value = bytes(8);
            encode_header(&mut out, &name, &value);
            let is_control = |b: &u8| (*b < 0x20 && *b != b'\t') || *b == 0x7F;
            if is_token(&name) && !value.iter().any(is_control) {
                let is_space = |b: &&u8| matches!(**b, b' ' | b'\t');
                let start = value.iter().take_while(is_space).count();
                let end = value.iter().rev().take_while(is_space).count();
                let value = value.get(start..value.len() - end).unwrap_or_default();
                want.push((name, value.to_vec()));
            }
        }
        out.extend_from_slice(b"\r\n");
        let owned = |header: &httparse::Header<'_>| (header.name.to_owned(), header.value.to_vec());
        // Transfer-Encoding and Content-Length cannot be made of these letters.
        let ours = parse_response(&out, &LIMITS).unwrap();
        assert_eq!(ours.headers.iter().map(owned).collect::<Vec<_>>(), want, "{out:?}");
        let mut slots = [httparse::EMPTY_HEADER; 8];
        let mut plain = httparse::Response::new(&mut slots);
        assert_eq!(plain.parse(&out), Ok(httparse::Status::Complete(out.len())));
        assert_eq!(plain.headers.iter().map(owned).collect::<Vec<_>>(), want);
    }
}

#[test]
fn an_extension_in_quotes_is_not_offered() {
    let lines = "Connection: Upgrade\r\n\
                 Sec-WebSocket-Extensions: x; a=\"b,permessage-deflate\"\r\n";
    let head = client(lines);
    let request = parse_request(head.as_bytes(), &LIMITS).unwrap();
    let offer = Offer::new(&upgrade_of(&request).unwrap().unwrap(), KEY);
    let answer = |extensions: &str| {
        let head = format!(
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             Sec-WebSocket-Extensions: {extensions}\r\n\r\n"
        );
        let response = parse_response(head.as_bytes(), &LIMITS).unwrap();
        check_upstream_response(&response, &offer).map(|_| ())
    };
    assert_eq!(answer("permessage-deflate"), Err(UpstreamFault::ExtensionNotOffered));
    assert_eq!(answer("X; a=\"c,permessage-deflate\""), Ok(()));
}
