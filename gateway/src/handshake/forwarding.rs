//! Requests to upstreams: what a client asked for, and on whose behalf.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::end_to_end::{encode_end_to_end, encode_header, is_address_claim, is_name, is_one_of};
use crate::http::Request;

/// Who the client is, for the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// Its address.
    pub client: IpAddr,
    /// The scheme it came by: `http` or `https`.
    pub proto: &'a str,
    /// The other end of the connection, if it is a trusted proxy that speaks for the client: then
    /// the addresses in its X-Forwarded-For go on with its own behind them.
    pub proxy: Option<IpAddr>,
}

/// A Sec-WebSocket-Key (§4.1) of 16 bytes that were drawn for it alone.
pub fn fresh_key(nonce: [u64; 2]) -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&nonce[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&nonce[1].to_ne_bytes());
    STANDARD.encode(bytes)
}

/// Appends our request to an upstream: the client's, with the headers of one hop made anew. The
/// client's own claims about its address are dropped, since nobody is trusted to make them.
/// `host` and `path` go instead of the client's; the query is always the client's.
pub fn encode_upstream_request(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    fresh_key: &str,
    host: Option<&str>,
    path: Option<&str>,
    forwarded: &Forwarded<'_>,
) {
    encode_request_line(out, request, path, 1);
    encode_header(out, "Host", host.unwrap_or(request.host).as_bytes());
    encode_header(out, "Upgrade", b"websocket");
    encode_header(out, "Connection", b"Upgrade");
    encode_header(out, "Sec-WebSocket-Key", fresh_key.as_bytes());
    encode_forwarded(out, request, forwarded);
    let ours = ["host", "sec-websocket-key", "content-length", "transfer-encoding", "expect"];
    encode_end_to_end(out, &request.headers, |name| {
        is_one_of(name, &ours) || is_replaced_claim(name, forwarded)
    });
    out.extend_from_slice(b"\r\n");
}

/// Appends an ordinary request to an upstream: the client's, with the headers of one hop made anew.
/// Its body follows as the client frames it, so the framing headers stay. The connection is not
/// used again. `is_read`: we have to read the answer, so it is not to be compressed (RFC 9110 §12.5.3).
pub fn encode_forwarded_request(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    host: Option<&str>,
    path: Option<&str>,
    is_read: bool,
    forwarded: &Forwarded<'_>,
) {
    // As old as the client's: the answer must be one that it understands (RFC 9112 §2.3).
    encode_request_line(out, request, path, request.minor_version);
    let host = host.unwrap_or(request.host);
    // HTTP/1.0 knows requests without (RFC 9112 §3.2).
    if !host.is_empty() || request.minor_version > 0 {
        encode_header(out, "Host", host.as_bytes());
    }
    encode_header(out, "Connection", b"close");
    encode_forwarded(out, request, forwarded);
    // However the list was written, this is what it says: a request's only coding.
    if request.headers.get("transfer-encoding").is_some() {
        encode_header(out, "Transfer-Encoding", b"chunked");
    }
    if is_read {
        encode_header(out, "Accept-Encoding", b"identity");
    }
    let is_ours = |name: &str| {
        is_one_of(name, &["host", "transfer-encoding"])
            || is_replaced_claim(name, forwarded)
            || (is_read && is_one_of(name, &["accept-encoding"]))
    };
    encode_end_to_end(out, &request.headers, is_ours);
    out.extend_from_slice(b"\r\n");
}

/// Appends the first line of a request in HTTP/1.`minor_version`. `path` goes instead of the client's.
pub(super) fn encode_request_line(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    path: Option<&str>,
    minor_version: u8,
) {
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    // `*` is the server itself, of which there is no part (RFC 9112 §3.2.4).
    let path = path.filter(|_| request.path != "*").unwrap_or(request.path);
    out.extend_from_slice(path.as_bytes());
    if let Some(query) = request.query {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(format!(" HTTP/1.{minor_version}\r\n").as_bytes());
}

/// Appends who the client is. Its own claims about that are dropped elsewhere.
pub(super) fn encode_forwarded(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    forwarded: &Forwarded<'_>,
) {
    let client = forwarded.client.to_canonical().to_string();
    let mut chain = Vec::new();
    if let Some(proxy) = forwarded.proxy {
        let lines = request.headers.iter();
        for line in lines.filter(|line| line.name.eq_ignore_ascii_case("x-forwarded-for")) {
            chain.extend_from_slice(line.value);
            chain.extend_from_slice(b", ");
        }
        // It has named the client another way (RFC 7239), or is the client.
        if chain.is_empty() && proxy.to_canonical() != forwarded.client.to_canonical() {
            chain.extend_from_slice(client.as_bytes());
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(proxy.to_canonical().to_string().as_bytes());
    } else {
        chain.extend_from_slice(client.as_bytes());
    }
    encode_header(out, "X-Forwarded-For", &chain);
    encode_header(out, "X-Real-IP", client.as_bytes());
    encode_header(out, "X-Forwarded-Proto", forwarded.proto.as_bytes());
    let names_host = |line: &httparse::Header<'_>| is_name(line.name, "x-forwarded-host");
    let is_said = forwarded.proxy.is_some() && request.headers.iter().any(names_host);
    if !is_said && !request.host.is_empty() {
        encode_header(out, "X-Forwarded-Host", request.host.as_bytes());
    }
}

/// Whether a header says who the client is in a way that is made anew here. A trusted proxy's other
/// claims go on: what it was asked for (X-Forwarded-Host, -Port, -Prefix), who has logged in at it,
/// and Forwarded.
pub(super) fn is_replaced_claim(name: &str, forwarded: &Forwarded<'_>) -> bool {
    match forwarded.proxy {
        None => is_address_claim(name),
        Some(_) => {
            ["x-forwarded-for", "x-forwarded-proto", "x-real-ip"].iter().any(|it| is_name(name, it))
        }
    }
}
