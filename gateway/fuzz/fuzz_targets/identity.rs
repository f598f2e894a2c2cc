//! Who a client says it is: a PROXY header is read the same wherever it is cut, nothing behind it is
//! taken for part of it, and whatever a chain of addresses holds, only a trusted proxy names others.
#![no_main]

use std::net::IpAddr;

use gateway::client_address::{CidrSet, ClientHeader, client_of};
use gateway::http::{HeadLimits, parse_request};
use gateway::origin::{OriginPattern, Origins};
use gateway::proxy_protocol::{HEADER_BYTES_MAX, parse};

const LIMITS: HeadLimits =
    HeadLimits { head_bytes_max: 8192, headers_max: 64, target_bytes_max: 512 };

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&cut, wire)) = input.split_first() else { return };
    proxy_header(usize::from(cut).min(wire.len()), wire);
    chain(wire);
    origin(wire);
});

fn proxy_header(cut: usize, wire: &[u8]) {
    let whole = parse(wire);
    // What is decided stays decided, whatever follows.
    match parse(&wire[..cut]) {
        Ok(None) => {}
        decided => assert_eq!(decided, whole),
    }
    match whole {
        Ok(Some(header)) => {
            assert!(header.len <= wire.len().min(HEADER_BYTES_MAX));
            assert_eq!(parse(&wire[..header.len]), whole);
            assert_eq!(parse(&wire[..header.len - 1]), Ok(None));
        }
        Ok(None) => assert!(wire.len() < HEADER_BYTES_MAX),
        Err(_) => {}
    }
}

fn chain(wire: &[u8]) {
    // What may stand in a header, split at the first `|` into two of them.
    let value: Vec<u8> = wire.iter().copied().filter(|byte| (0x20..0x7F).contains(byte)).collect();
    let (name, value) = match value.split_first() {
        Some((b'f', rest)) => ("Forwarded", rest),
        _ => ("X-Forwarded-For", &value[..]),
    };
    let text = String::from_utf8_lossy(value).replace('|', &format!("\r\n{name}: "));
    let client: IpAddr = [203, 0, 113, 9].into();
    // The last proxy's own words stand behind whatever a client has sent.
    let last = if name == "Forwarded" { "for=203.0.113.9" } else { "203.0.113.9" };
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {text}\r\n{name}: {last}\r\n\r\n");
    let Ok(request) = parse_request(head.as_bytes(), &LIMITS) else { return };
    let trusted = CidrSet::new(&["10.0.0.0/8".parse().expect("a range")]);
    let either = ClientHeader::Either;
    assert_eq!(client_of(&request.headers, [10, 0, 0, 1].into(), &trusted, either).0, client);
    let stranger: IpAddr = [192, 0, 2, 1].into();
    assert_eq!(client_of(&request.headers, stranger, &trusted, either), (stranger, None));
    let all = CidrSet::new(&["0.0.0.0/0".parse().expect("a range")]);
    for header in [either, ClientHeader::ForwardedFor, ClientHeader::Forwarded] {
        client_of(&request.headers, stranger, &all, header);
    }
}

fn origin(wire: &[u8]) {
    let Ok(text) = std::str::from_utf8(wire) else { return };
    let Ok(pattern) = text.parse::<OriginPattern>() else { return };
    // What is shown to operators means the same when it is read again.
    assert_eq!(pattern.to_string().parse(), Ok(pattern.clone()));
    let is_plain = !text.contains('*') && text.bytes().all(|byte| (0x21..0x7F).contains(&byte));
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nOrigin: {text}\r\n\r\n");
    if let Ok(request) = parse_request(head.as_bytes(), &LIMITS) {
        let origins = Origins { allowed: Some(vec![pattern]), required: true };
        assert!(origins.admit(&request.headers) || !is_plain, "{text} is itself");
    }
}
