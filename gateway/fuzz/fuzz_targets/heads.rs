//! Heads: the scanner finds the same end wherever the bytes are cut, what it accepts is parsed, and
//! what we make of it for the other leg is one head again. What follows a response is its body,
//! which ends at the same byte wherever it is cut.
#![no_main]

use gateway::handshake::{
    Forwarded, encode_refusal, encode_switching_from_upstream, encode_upstream_request, upgrade_of,
};
use gateway::http::{BodyReader, HeadLimits, HeadScanner, Request, Response};
use gateway::http::{parse_request, parse_response};

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 2048, headers_max: 64, target_bytes_max: 512 };
/// For heads of our own, which have a few headers more.
const OURS: HeadLimits =
    HeadLimits { head_bytes_max: 8192, headers_max: 128, target_bytes_max: 512 };

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&cut, wire)) = input.split_first() else { return };
    let once = HeadScanner::default().scan(wire, &LIMITS);
    let mut scanner = HeadScanner::default();
    let cut = usize::from(cut).min(wire.len());
    let first = scanner.scan(&wire[..cut], &LIMITS);
    let twice = if first == Ok(None) { scanner.scan(wire, &LIMITS) } else { first };
    assert_eq!(once, twice);
    let Ok(Some(end)) = once else { return };
    let (head, body) = wire.split_at(end);
    if let Ok(request) = parse_request(head, &LIMITS) {
        pass_on(&request);
    }
    if let Ok(response) = parse_response(head, &LIMITS) {
        pass_back(&response);
        let reader = BodyReader::new(&response, "GET");
        let cut = cut.min(body.len());
        assert_eq!(read(reader, &[body]), read(reader, &[&body[..cut], &body[cut..]]));
    }
});

fn pass_on(request: &Request<'_>) {
    if !matches!(upgrade_of(request), Ok(Some(_))) {
        return;
    }
    let mut out = Vec::new();
    let forwarded = Forwarded { client: [10, 0, 0, 1].into(), proto: "http", proxy: None };
    encode_upstream_request(&mut out, request, "AAAAAAAAAAAAAAAAAAAAAA==", None, None, &forwarded);
    let sent = parse_request(&out, &OURS).expect("a request of ours is well-formed");
    assert_eq!((sent.path, sent.query, sent.host), (request.path, request.query, request.host));
    assert_eq!(sent.headers.get("x-forwarded-for"), Some("10.0.0.1"));
    assert!(matches!(upgrade_of(&sent), Ok(Some(_))), "what we accepted, an upstream can accept");
}

fn pass_back(response: &Response<'_>) {
    let mut out = Vec::new();
    if response.status == 101 {
        encode_switching_from_upstream(&mut out, response, &[b'a'; 28], None);
    } else {
        encode_refusal(&mut out, response);
    }
    let sent = parse_response(&out, &OURS).expect("a response of ours is well-formed");
    assert_eq!(sent.status, response.status);
    assert!(sent.headers.iter().count() <= response.headers.iter().count() + 3);
}

/// How many bytes belong to the body, and how it went.
fn read(mut reader: BodyReader, parts: &[&[u8]]) -> (usize, &'static str) {
    let mut total = 0;
    for part in parts {
        match reader.scan(part) {
            Ok((here, done)) => {
                total += here;
                if done {
                    return (total, "done");
                }
            }
            Err(_) => return (0, "failed"),
        }
    }
    (total, "more")
}
