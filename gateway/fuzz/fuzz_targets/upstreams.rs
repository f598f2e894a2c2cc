//! What is read to find an upstream: a URL means the same in its one spelling; an open packet is found at the
//! same byte wherever it is cut; a cookie is found or not, whatever stands around it.
#![no_main]

use std::time::Duration;

use gateway::http::{HeadLimits, parse_request};
use gateway::upstream::{
    OpenScan, OpenScanner, SID_BYTES_MAX, SameSite, StickyCookie, UpstreamAddress, UpstreamName,
    UpstreamUrl, cookie_value, is_engine_io, sid_of,
};

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 8192, headers_max: 64, target_bytes_max: 4096 };

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&cut, wire)) = input.split_first() else { return };
    open_packet(usize::from(cut).min(wire.len()), wire);
    let Ok(text) = std::str::from_utf8(wire) else { return };
    url(text);
    cookie(text);
    target(text);
});

fn open_packet(cut: usize, wire: &[u8]) {
    let mut whole = OpenScanner::default();
    let whole = whole.scan(wire);
    let mut scanner = OpenScanner::default();
    scanner.scan(&wire[..cut]);
    assert_eq!(scanner.scan(&wire[cut..]), whole);
    if let OpenScan::Sid(sid) = whole {
        assert!((1..=SID_BYTES_MAX).contains(&sid.len()));
        assert!(wire.windows(sid.len()).any(|bytes| bytes == sid.as_bytes()) || sid.contains('/'));
    }
}

fn url(text: &str) {
    let Ok(url) = text.parse::<UpstreamUrl>() else { return };
    assert_eq!(url.to_string().parse(), Ok(url.clone()));
    assert_eq!(url.host_and_port().is_none(), url.unix_path().is_some());
    let head = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", url.host_header());
    assert!(parse_request(head.as_bytes(), &LIMITS).is_ok(), "{head}");
}

fn cookie(text: &str) {
    let url: UpstreamUrl = "ws://a".parse().expect("a URL");
    let address = UpstreamAddress::Tcp(([10, 0, 0, 1], 80).into());
    let sticky = StickyCookie {
        name: "at".to_owned(),
        secret: b"s".to_vec(),
        max_age: Duration::ZERO,
        same_site: SameSite::Lax,
        secure: false,
    };
    let token = sticky.token(UpstreamName::new(&url, &address));
    // Ours stands in front, and is found whatever follows.
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: at={token}; {text}\r\n\r\n");
    if let Ok(request) = parse_request(head.as_bytes(), &LIMITS) {
        assert_eq!(sticky.read(&request.headers), Some(token));
    }
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {text}\r\n\r\n");
    if let Ok(request) = parse_request(head.as_bytes(), &LIMITS)
        && let Some(value) = cookie_value(&request.headers, "at")
    {
        assert!(text.contains(value));
    }
}

fn target(text: &str) {
    let head = format!("GET /?{text} HTTP/1.1\r\nHost: a\r\n\r\n");
    if let Ok(request) = parse_request(head.as_bytes(), &LIMITS) {
        is_engine_io(&request);
        assert!(sid_of(&request).is_none_or(|sid| !sid.is_empty()));
    }
}
