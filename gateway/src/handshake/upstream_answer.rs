//! Answers of upstreams, held against what they were offered, and as they go on to the client.

use std::fmt;

use super::end_to_end::{encode_end_to_end, encode_header, is_one_of};
use super::own_answers::reason_phrase;
use super::{EXTENSIONS_MAX, Upgrade, accept_value};
use crate::http::{Response, split_outside_quotes};

/// What the relay keeps between its request to the upstream and the answer.
#[derive(Clone, Debug)]
pub struct Offer {
    /// For our answer to the client.
    pub client_accept: [u8; 28],
    upstream_accept: [u8; 28],
    protocols: Box<str>,
    extensions: Box<str>,
}

impl Offer {
    /// Bytes on the heap, for the memory ledger.
    pub fn held_bytes(&self) -> usize {
        self.protocols.len() + self.extensions.len()
    }

    /// What `upgrade` offers, sent on under `fresh_key`.
    pub fn new(upgrade: &Upgrade<'_>, fresh_key: &str) -> Offer {
        Offer {
            client_accept: accept_value(upgrade.key),
            upstream_accept: accept_value(fresh_key),
            protocols: upgrade.protocols.join(",").into(),
            extensions: upgrade.extensions.as_deref().unwrap_or_default().into(),
        }
    }
}

/// What an upstream answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamAnswer<'a> {
    /// The tunnel is open.
    Accepted {
        /// The subprotocol it chose.
        protocol: Option<&'a str>,
        /// Compression was agreed: RSV1 has a meaning.
        rsv1: bool,
    },
    /// An interim response (RFC 9110 §15.2): skip the head, another follows.
    Interim,
    /// No tunnel; the response is the client's.
    Refused,
}

/// Why a 101 is none. The client gets a 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamFault {
    /// HTTP/1.0, or Upgrade and Connection do not say websocket (§4.1).
    NotAnUpgrade,
    /// Sec-WebSocket-Accept does not prove that our key was read (§4.1).
    WrongAccept,
    /// A subprotocol that the client did not offer, or several (§4.1).
    ProtocolNotOffered,
    /// An extension that the client did not offer (§4.1).
    ExtensionNotOffered,
}

impl fmt::Display for UpstreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UpstreamFault::NotAnUpgrade => "its 101 does not upgrade to websocket",
            UpstreamFault::WrongAccept => "its Sec-WebSocket-Accept is not that of our key",
            UpstreamFault::ProtocolNotOffered => "it chose a subprotocol that was not offered",
            UpstreamFault::ExtensionNotOffered => "it chose an extension that was not offered",
        })
    }
}

/// Judges an upstream's answer (§4.1). Only [`UpstreamAnswer::Accepted`] opens a tunnel.
pub fn check_upstream_response<'a>(
    response: &Response<'a>,
    offer: &Offer,
) -> Result<UpstreamAnswer<'a>, UpstreamFault> {
    let headers = &response.headers;
    match response.status {
        101 => {}
        100..=199 => return Ok(UpstreamAnswer::Interim),
        _ => return Ok(UpstreamAnswer::Refused),
    }
    if response.minor_version == 0
        || !headers.has_token("upgrade", "websocket")
        || !headers.has_token("connection", "upgrade")
    {
        return Err(UpstreamFault::NotAnUpgrade);
    }
    let mut accepts = headers.all("sec-websocket-accept");
    match (accepts.next(), accepts.next()) {
        (Some(accept), None) if accept.as_bytes() == offer.upstream_accept => {}
        _ => return Err(UpstreamFault::WrongAccept),
    }
    let mut protocols = headers.all("sec-websocket-protocol");
    let protocol = protocols.next();
    let is_offered =
        |chosen| !offer.protocols.is_empty() && offer.protocols.split(',').any(|p| p == chosen);
    if protocols.next().is_some() || protocol.is_some_and(|chosen| !is_offered(chosen)) {
        return Err(UpstreamFault::ProtocolNotOffered);
    }
    fn name(extension: &str) -> &str {
        extension.split(';').next().unwrap_or_default().trim()
    }
    let mut rsv1 = false;
    if headers.quoted_list("sec-websocket-extensions").nth(EXTENSIONS_MAX).is_some() {
        return Err(UpstreamFault::ExtensionNotOffered);
    }
    for extension in headers.quoted_list("sec-websocket-extensions").map(name) {
        let mut offered = split_outside_quotes(&offer.extensions);
        if !offered.any(|offer| name(offer).eq_ignore_ascii_case(extension)) {
            return Err(UpstreamFault::ExtensionNotOffered);
        }
        rsv1 |= extension.eq_ignore_ascii_case("permessage-deflate");
    }
    Ok(UpstreamAnswer::Accepted { protocol, rsv1 })
}

/// Appends the 101 for the client out of an accepted one of the upstream, with its other headers,
/// and with a cookie of ours.
pub fn encode_switching_from_upstream(
    out: &mut Vec<u8>,
    response: &Response<'_>,
    client_accept: &[u8; 28],
    cookie: Option<&str>,
) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    encode_header(out, "Upgrade", b"websocket");
    encode_header(out, "Connection", b"Upgrade");
    encode_header(out, "Sec-WebSocket-Accept", client_accept);
    // Browsers refuse a second line of these.
    let extensions: Vec<&str> = response.headers.all("sec-websocket-extensions").collect();
    if !extensions.is_empty() {
        encode_header(out, "Sec-WebSocket-Extensions", extensions.join(", ").as_bytes());
    }
    let ours =
        ["sec-websocket-accept", "sec-websocket-extensions", "content-length", "transfer-encoding"];
    encode_end_to_end(out, &response.headers, |name| is_one_of(name, &ours));
    if let Some(cookie) = cookie {
        encode_header(out, "Set-Cookie", cookie.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of an upstream's refusal. The body follows as the upstream frames it, so its
/// framing headers stay; then both connections close.
pub fn encode_refusal(out: &mut Vec<u8>, response: &Response<'_>) {
    let phrase = reason_phrase(response.status);
    out.extend_from_slice(format!("HTTP/1.1 {} {phrase}\r\n", response.status).as_bytes());
    encode_end_to_end(out, &response.headers, |_| false);
    if response.status == 426 {
        encode_header(out, "Upgrade", b"websocket"); // Obligatory (RFC 9110 §15.5.22).
        encode_header(out, "Connection", b"close, Upgrade");
    } else {
        encode_header(out, "Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of an upstream's answer to an ordinary request, final or interim. The body of a
/// final one follows as the upstream frames it. `cookie` is one of ours.
pub fn encode_forwarded_response(
    out: &mut Vec<u8>,
    response: &Response<'_>,
    keep_alive: bool,
    cookie: Option<&str>,
) {
    out.extend_from_slice(format!("HTTP/1.1 {} ", response.status).as_bytes());
    out.extend_from_slice(response.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    // Neither has a body or may say so (RFC 9110 §8.6, RFC 9112 §6.1): a reader that believed it would
    // take the next answer for that.
    let is_bare = response.status < 200 || response.status == 204;
    encode_end_to_end(out, &response.headers, |name| {
        is_bare
            && ["content-length", "transfer-encoding"]
                .iter()
                .any(|it| name.eq_ignore_ascii_case(it))
    });
    if let Some(cookie) = cookie {
        encode_header(out, "Set-Cookie", cookie.as_bytes());
    }
    if !keep_alive {
        encode_header(out, "Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}
