//! Every parser of what a peer sends, fed with its worst input: the work is bounded by the bytes.
//!
//! Work is counted ([`steps`]), not timed. For each parser, an input of `n` bytes and one of twice as
//! many: twice the bytes are about twice the work, and at the largest size there is, the work stays
//! below a number of steps per byte.

use crate::client_address::{Cidr, CidrSet, ClientHeader, client_of};
use crate::handshake::{self, Forwarded, Offer};
use crate::http::body::{BodyReader, Trailers};
use crate::http::*;
use crate::origin::Origins;
use crate::proxy_protocol;
use crate::steps;
use crate::upstream::cookie_value;

/// The largest head that a file can allow, so that nothing else cuts the input short.
const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 1 << 20, headers_max: HEADERS_MAX, target_bytes_max: 1 << 19 };

/// `work` is linear in the bytes of `input(size)`: between two sizes it grows as they do, and it is
/// at most `per_byte` steps for each.
#[track_caller]
fn check(what: &str, size: usize, per_byte: u64, input: fn(usize) -> String, work: fn(&str)) {
    let of = |size: usize| {
        let text = input(size);
        (steps::of(|| work(&text)), text.len() as u64)
    };
    let ((half, half_bytes), (all, all_bytes)) = (of(size / 2), of(size));
    assert!(all > 0, "{what}: nothing was counted");
    assert!(all <= per_byte * all_bytes, "{what}: {all} steps for {all_bytes} bytes");
    // A little more than the bytes, as what does not depend on them weighs less in the larger one.
    assert!(
        all * half_bytes <= half * all_bytes * 5 / 4,
        "{what}: {half} steps for {half_bytes} bytes, {all} for {all_bytes}"
    );
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn head(lines: &str) -> String {
    format!(
        "GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n{lines}\r\n"
    )
}

/// `unit` as often as fits.
fn many(unit: &str, size: usize) -> String {
    unit.repeat(size / unit.len())
}

/// All that a request goes through on its way to an upstream.
fn forward(text: &str) {
    let Ok(request) = parse_request(text.as_bytes(), &LIMITS) else { return };
    let peer = "10.0.0.1".parse().expect("an address");
    let trusted: Cidr = "10.0.0.0/8".parse().expect("a range");
    let trusted = CidrSet::new(&[trusted]);
    let (client, proto) = client_of(&request.headers, peer, &trusted, ClientHeader::Either);
    let proto = proto.unwrap_or("http");
    Origins::default().admit(&request.headers);
    cookie_value(&request.headers, "none");
    request.query.map(|query| query_param(query, "none"));
    let forwarded = Forwarded { client, proto, proxy: Some(peer) };
    let mut out = Vec::new();
    handshake::encode_forwarded_request(&mut out, &request, None, None, false, &forwarded);
    if let Ok(Some(_)) = handshake::upgrade_of(&request) {
        handshake::encode_upstream_request(&mut out, &request, KEY, None, None, &forwarded);
    }
}

#[test]
fn heads_of_requests() {
    let size = 200_000;
    for (what, input) in [
        ("a name", (|size| head(&format!("{}: b\r\n", many("a", size)))) as fn(usize) -> String),
        ("a value", |size| head(&format!("A: {}\r\n", many("b", size)))),
        ("nominations", |size| head(&format!("Connection: {}\r\n", many("a,", size)))),
        ("empty nominations", |size| head(&format!("Connection: Upgrade{}\r\n", many(",", size)))),
        ("subprotocols", |size| head(&format!("Sec-WebSocket-Protocol: {}\r\n", many("a,", size)))),
        ("extensions", |size| {
            head(&format!(
                "Connection: Upgrade\r\nSec-WebSocket-Extensions: {}\r\n",
                many("a,", size)
            ))
        }),
        ("a quote", |size| {
            head(&format!(
                "Connection: Upgrade\r\nSec-WebSocket-Extensions: \"{}\r\n",
                many(",", size)
            ))
        }),
        ("addresses", |size| head(&format!("X-Forwarded-For: {}\r\n", many("10.0.0.7,", size)))),
        ("elements", |size| head(&format!("Forwarded: {}\r\n", many("for=10.0.0.7,", size)))),
        ("pairs", |size| head(&format!("Forwarded: {}for=1.1.1.1\r\n", many("a=b;", size)))),
        ("schemes", |size| head(&format!("X-Forwarded-Proto: {}\r\n", many("https,", size)))),
        ("cookies", |size| head(&format!("Cookie: {}\r\n", many("a=b;", size)))),
        ("an origin", |size| head(&format!("Origin: http://{}\r\n", many("a.", size)))),
        ("codings", |size| head(&format!("Transfer-Encoding: {}chunked\r\n", many(",", size)))),
        ("a query", |size| format!("GET /?{} HTTP/1.1\r\nHost: x\r\n\r\n", many("%61=b&", size))),
        ("dots", |size| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", many("%2e%2e%2e/", size))),
    ] {
        check(what, size, 60, input, forward);
    }
}

/// The head that took 5.6 ms: as many headers as there may be beside as many nominations as fit.
#[test]
fn headers_beside_nominations() {
    let names: String = (0..58).map(|n| format!("X-{n}: 1\r\n")).collect();
    for count in [NOMINATIONS_MAX, 7_500] {
        let text = head(&format!("{names}Connection: {}\r\n", many("a,", 2 * count)));
        let took = steps::of(|| forward(&text));
        assert!(took < 60 * text.len() as u64, "{took} steps for {} bytes", text.len());
    }
}

/// Bytes one by one are the worst way for a head to come.
#[test]
fn heads_in_single_bytes() {
    check(
        "bytes",
        20_000,
        2,
        |size| head(&format!("A: {}\r\n", many("b", size))),
        |text| {
            let mut scanner = HeadScanner::default();
            for end in 1..=text.len() {
                let _ = scanner.scan(&text.as_bytes()[..end], &LIMITS);
            }
        },
    );
}

fn answer(lines: &str) -> String {
    format!(
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{lines}\r\n"
    )
}

#[test]
fn heads_of_answers() {
    fn pass(text: &str) {
        let offers =
            (0..handshake::EXTENSIONS_MAX - 1).map(|n| format!("e{n},")).collect::<String>();
        let request = head(&format!(
            "Connection: Upgrade\r\nSec-WebSocket-Protocol: a\r\nSec-WebSocket-Extensions: {offers}a\r\n"
        ));
        let request = parse_request(request.as_bytes(), &LIMITS).expect("a request");
        let upgrade = handshake::upgrade_of(&request).expect("an upgrade").expect("one");
        let offer = Offer::new(&upgrade, KEY);
        let Ok(response) = parse_response(text.as_bytes(), &LIMITS) else { return };
        let _ = handshake::check_upstream_response(&response, &offer);
        let mut out = Vec::new();
        handshake::encode_switching_from_upstream(&mut out, &response, &[b'a'; 28], None);
        handshake::encode_refusal(&mut out, &response);
        BodyReader::new(&response, "GET");
    }
    for (what, input) in [
        ("a value", (|size| answer(&format!("A: {}\r\n", many("b", size)))) as fn(usize) -> String),
        ("nominations", |size| answer(&format!("Connection: {}\r\n", many("a,", size)))),
        ("empty nominations", |size| answer(&format!("Connection: {}\r\n", many(",", size)))),
        ("extensions", |size| {
            answer(&format!("Sec-WebSocket-Extensions: {}\r\n", many("a,", size)))
        }),
        ("codings", |size| answer(&format!("Transfer-Encoding: {}\r\n", many("a,", size)))),
    ] {
        check(what, 200_000, 60, input, pass);
    }
}

#[test]
fn bodies_in_chunks() {
    fn read(text: &str) {
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = parse_request(chunked.as_bytes(), &LIMITS).expect("a request");
        let mut reader = BodyReader::of_request(&request);
        assert!(matches!(reader, BodyReader::Chunked(_, Trailers::OfRequest)));
        let _ = reader.scan(text.as_bytes());
    }
    check("small chunks", 600_000, 2, |size| many("1\r\na\r\n", size), read);
    check("an extension", 4_000, 30, |size| format!("1;{}\r\n", many("a", size)), read);
    check("trailers", 4_000, 30, |size| format!("0\r\n{}\r\n", many("a:\r\n", size)), read);
}

#[test]
fn proxy_headers() {
    for tlvs in [1_000, 4_000] {
        // Addresses, a checksum, and TLVs of no bytes each.
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0".to_vec();
        header.extend([0; 12]);
        header.extend(b"\x03\0\x040000");
        header.extend(b"\x04\0\0".repeat(tlvs / 3));
        let length = (header.len() as u16 - 16).to_be_bytes();
        header[14..16].copy_from_slice(&length);
        let took = steps::of(|| _ = proxy_protocol::parse(&header));
        let bytes = header.len() as u64;
        assert!((8 * bytes..12 * bytes).contains(&took), "{took} steps for {bytes} bytes");
    }
    let line = format!("PROXY {}", many("a", 200));
    let took = steps::of(|| {
        for end in 1..=line.len() {
            let _ = proxy_protocol::parse(&line.as_bytes()[..end]);
        }
    });
    // A line is read again with each piece: it is short.
    let most = proxy_protocol::LINE_BYTES_MAX as u64;
    assert!(took <= most * (line.len() as u64 + 1), "{took} steps");
}
