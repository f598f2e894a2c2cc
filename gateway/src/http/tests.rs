//! Heads and targets, good and bad.

use super::*;

const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 300, headers_max: 6, target_bytes_max: 40 };

fn read(wire: &str) -> Result<String, HttpError> {
    for cut in 0..wire.len() {
        let mut scanner = HeadScanner::default();
        let _ = scanner.scan(&wire.as_bytes()[..cut], &LIMITS);
        let once = HeadScanner::default().scan(wire.as_bytes(), &LIMITS);
        assert_eq!(scanner.scan(wire.as_bytes(), &LIMITS), once, "cut at {cut}");
    }
    let request = parse_request(wire.as_bytes(), &LIMITS)?;
    Ok(format!("{} {} {:?} {}", request.method, request.path, request.query, request.host))
}

#[test]
fn requests() {
    let want = |wire: &str, want| assert_eq!(read(wire), want, "{wire:?}");
    want("GET /a?b HTTP/1.1\r\nHost: x:1\r\n\r\n", Ok("GET /a Some(\"b\") x:1".into()));
    want("GET ws://x HTTP/1.1\r\nHost: X\r\n\r\n", Ok("GET / None X".into()));
    want("GET ws://y/ HTTP/1.1\r\nHost: x\r\n\r\n", Err(HttpError::BadTarget));
    want("GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", Err(HttpError::BadTarget));
    want("GET / HTTP/1.1\r\n\r\n", Err(HttpError::BadHost));
    want("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", Err(HttpError::BadHost));
    want("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", Err(HttpError::BadHost));
    want("GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n", Err(HttpError::BadHost));
    want("GET /health HTTP/1.0\r\n\r\n", Ok("GET /health None ".into()));
    want("GET / HTTP/1.1\r\nHost:\r\n\r\n", Ok("GET / None ".into()));
    want("GET / HTTP/1.1\r\nHost: x:\r\n\r\n", Ok("GET / None x:".into()));
    want("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", Ok("OPTIONS * None x".into()));
    want("OPTIONS * HTTP/1.0\r\n\r\n", Ok("OPTIONS * None ".into()));
    want("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Err(HttpError::BadHost));
    want("GET / HTTP/1.1\nHost: x\r\n\r\n", Err(HttpError::BadLineEnd));
    want("GET / HTTP/1.1\r\nHost: x\ry\r\n\r\n", Err(HttpError::BadLineEnd));
    want("GET / HTTP/1.1\r\nHost: x\0\r\n\r\n", Err(HttpError::ControlByte));
    want("GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", Err(HttpError::BadHead));
    want("GET / HTTP/1.1\r\nHost : x\r\n\r\n", Err(HttpError::BadHead));
    want("\u{16}\u{3}\u{1}", Err(HttpError::TlsOnPlainPort));
    want("PROXY UNKNOWN\r\n", Err(HttpError::ProxyHeaderOnPlainPort));
    want("GET / HTTP/2.0\r\nHost: x\r\n\r\n", Err(HttpError::BadVersion));
    want("PRI * HTTP/2.0\r\n\r\n", Err(HttpError::Http2OnPlainPort));
    let te = "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
    want(te, Err(HttpError::BadLength));
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(60));
    want(&long, Err(HttpError::TargetTooLong));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(7));
    want(&many, Err(HttpError::TooManyHeaders));
}

#[test]
fn targets_and_hosts() {
    let target = |target: &str| read(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
    for bad in ["*", "x:443", "http://y", "ftp://x/", "http://a@x/", "/a#b", "/\u{e9}", "http:x"] {
        assert_eq!(target(bad), Err(HttpError::BadTarget), "{bad}");
    }
    assert_eq!(target("//y/z"), Ok("GET //y/z None x".into()));
    assert_eq!(target("WS://x?a"), Ok("GET / Some(\"a\") x".into()));
    let connect = "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n";
    assert_eq!(read(connect), Err(HttpError::BadTarget));
    let host = |host: &str| read(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for good in [
        "",
        "x:",
        "[::1]:",
        "x",
        "x:0",
        "x:65535",
        "[::1]",
        "[::1]:80",
        "a_b.c-d~",
        "127.0.0.1:9",
        "X.",
    ] {
        assert_eq!(host(good), Ok(format!("GET / None {good}")), "{good}");
    }
    for bad in [
        ":", ":80", "x:65536", "x:+1", "x:1:2", "::1", "[::1", "[::1]x", "[x]", "[::1]::", "[]",
        "x, y", "x y", "x/", "x?", "a@x", "\u{e9}", "%41", "x\\y",
    ] {
        assert_eq!(host(bad), Err(HttpError::BadHost), "{bad}");
    }
}

/// Each path as it stands, and as the URL of its host.
#[test]
fn rfc_3986_a_path_says_where_it_leads() {
    let read = |path: &str, host: &str| {
        let head = format!("GET {host}{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let limits = HeadLimits { target_bytes_max: 90, ..LIMITS };
        parse_request(head.as_bytes(), &limits).map(|request| request.path.to_owned())
    };
    for bad in [
        "/utils/../x",
        "/utils/%2e%2e/x",
        "/utils/..%2fx",
        "/utils/..%2Fx",
        "/utils%2f..%2fx",
        "/utils/%2E./x",
        "/utils/..\\x",
        "/utils/..%5cx",
        "/utils%5C..",
        "/./x",
        "/x/.",
        "/x/..",
        "/..",
        "/%2e",
        "/x/..;a=b/y",
        "/x/..%3ba/y",
        "/x/.?a",
        "//../x",
    ] {
        for host in ["", "http://x", "WS://X"] {
            assert_eq!(read(bad, host), Err(HttpError::DotSegment), "{host}{bad}");
        }
    }
    for good in [
        "/...",
        "/..a",
        "/a..",
        "/.a/b",
        "/%2ea",
        "/a%2e%2e",
        "/a/%252e%252e/b",
        "//x",
        "/x//",
        "/a;..",
        "/%2e%2e%2e",
        "/.%2",
        "/.%",
        "/%",
    ] {
        for host in ["", "http://x"] {
            assert_eq!(read(good, host).as_deref(), Ok(good), "{host}{good}");
        }
    }
    // Of a query nobody makes a path.
    assert_eq!(read("/x?../y", "").as_deref(), Ok("/x"));
}

#[test]
fn plain_paths() {
    for plain in ["/", "/a/b", "/a/", "/A", "/%2F", "/%c3%A9", "/a%20b", "*", "/a;b=c", "/a@b:c"] {
        assert!(is_plain_path(plain), "{plain}");
    }
    for loose in ["//", "/a//b", "/%61dmin", "/%41", "/%7e", "/a%2Eb", "/%", "/%2", "/%zz", "/a\\b"]
    {
        assert!(!is_plain_path(loose), "{loose}");
    }
}

#[test]
fn nominations_are_bounded() {
    let connection = |count: usize| {
        let list = (0..count).map(|n| format!("h{n}")).collect::<Vec<_>>().join(",,");
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: {list}\r\n\r\n");
        parse_request(head.as_bytes(), &LIMITS).map(|_| ())
    };
    assert_eq!(connection(NOMINATIONS_MAX), Ok(()));
    assert_eq!(connection(NOMINATIONS_MAX + 1), Err(HttpError::TooManyNominations));
}

#[test]
fn section_6_bodies_of_requests() {
    let body = |version: u8, headers: &str| {
        read(&format!("POST / HTTP/1.{version}\r\nHost: x\r\n{headers}\r\n")).map(|_| ())
    };
    assert_eq!(body(1, "Transfer-Encoding: Chunked\r\n"), Ok(()));
    assert_eq!(body(1, "Content-Length: 9223372036854775807\r\n"), Ok(()));
    assert_eq!(body(1, "Content-Length: 0\r\n"), Ok(()));
    for bad in [
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding:\r\n",
        "Content-Length: 1, 1\r\n",
        "Content-Length: 1\r\nContent-Length: 1\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: 0x1\r\n",
        "Content-Length:\r\n",
        // Others count in signed 64 bits, or read octal.
        "Content-Length: 9223372036854775808\r\n",
        "Content-Length: 18446744073709551615\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 00\r\n",
        "Content-Length: 010\r\n",
    ] {
        assert_eq!(body(1, bad), Err(HttpError::BadLength), "{bad:?}");
    }
    assert_eq!(body(0, "Transfer-Encoding: chunked\r\n"), Err(HttpError::BadLength));
}

#[test]
fn limits_hold_exactly() {
    let head = |target: usize, headers: usize, filler: usize| {
        let (target, headers) = ("a".repeat(target - 1), "A: b\r\n".repeat(headers - 2));
        let filler = "f".repeat(filler);
        read(&format!("GET /{target} HTTP/1.1\r\nHost: x\r\n{headers}F: {filler}\r\n\r\n"))
    };
    assert!(head(40, 6, 0).is_ok());
    assert_eq!(head(41, 6, 0), Err(HttpError::TargetTooLong));
    assert_eq!(head(40, 7, 0), Err(HttpError::TooManyHeaders));
    // Everything but target, headers and filler is 31 bytes.
    assert!(head(4, 2, 300 - 35).is_ok());
    assert_eq!(head(4, 2, 300 - 34), Err(HttpError::HeadTooLarge));
}

#[test]
fn no_byte_is_looked_at_twice() {
    let wire = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n";
    let (mut scanner, mut seen) = (HeadScanner::default(), Vec::new());
    for (index, &byte) in wire.iter().enumerate() {
        seen.push(byte);
        let want = (index + 1 == wire.len()).then_some(wire.len());
        assert_eq!(scanner.scan(&seen, &LIMITS), Ok(want));
        // What was scanned may turn into anything, but for the byte before the next.
        let scanned = seen.len().saturating_sub(1);
        seen[..scanned].fill(b'\n');
    }
}

#[test]
fn commas_in_quotes_do_not_split() {
    let split = |value| split_outside_quotes(value).collect::<Vec<_>>();
    assert_eq!(split(r#"a; b="c,d", ,e"#), [r#"a; b="c,d""#, "e"]);
    assert_eq!(split(r#"a; b="\",c", d"#), [r#"a; b="\",c""#, "d"]);
    assert_eq!(split(r#"a; b="c, d"#), [r#"a; b="c, d"#]);
}

#[test]
fn an_error_of_an_upstream_does_not_speak_of_the_client() {
    let answer = parse_response(b"HTTP/1.1 200 OK\nA: b\r\n\r\n", &LIMITS).unwrap_err();
    assert_eq!(
        format!("the upstream's answer: {answer}"),
        "the upstream's answer: a line does not end with CRLF"
    );
}

#[test]
fn query_parameters() {
    assert_eq!(query_param("a=1&b%20c=d%2Be+f", "b c").as_deref(), Some("d+e f"));
    assert_eq!(query_param("a=%ff", "a"), None);
    assert_eq!(query_param("a=%2", "a"), None);
    let values = |query| query_values(query, "a").collect::<Vec<_>>();
    assert_eq!(values("a=1&b=2&%61=3"), [Some("1".to_owned()), Some("3".to_owned())]);
    assert_eq!(values("a&ab=1&a=%ff&%=&=a"), [Some(String::new()), None]);
    assert_eq!(values(""), []);
}
