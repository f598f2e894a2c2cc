//! The opening handshake of both legs (RFC 6455 §4): a client's request, our request to an
//! upstream, and the answers. This file reads the client's request.

mod end_to_end;
mod forwarding;
mod own_answers;
#[cfg(test)]
mod tests;
mod upstream_answer;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::{HttpError, Request, content_length, is_token_byte};
pub use forwarding::{Forwarded, encode_forwarded_request, encode_upstream_request, fresh_key};
pub use own_answers::{encode_error, encode_response, encode_switching, reason_phrase};
pub use upstream_answer::{
    Offer, UpstreamAnswer, UpstreamFault, check_upstream_response, encode_forwarded_response,
    encode_refusal, encode_switching_from_upstream,
};

/// What a client asks for, once it is known to ask in order.
#[derive(Clone, Debug)]
pub struct Upgrade<'a> {
    /// Its Sec-WebSocket-Key.
    pub key: &'a str,
    /// The subprotocols it offers, the best first.
    pub protocols: Vec<&'a str>,
    /// The extensions it offers, all lines joined.
    pub extensions: Option<String>,
}

/// More subprotocols than this are refused: each is compared with the others.
pub const PROTOCOLS_MAX: usize = 32;

/// More extensions than this are refused: each that an upstream chooses is looked for among them.
pub const EXTENSIONS_MAX: usize = 32;

/// Reads an upgrade out of a request. `None`: it is an ordinary request; where only a WebSocket is
/// served, [`HttpError::UpgradeRequired`] is the answer.
pub fn upgrade_of<'a>(request: &Request<'a>) -> Result<Option<Upgrade<'a>>, HttpError> {
    let headers = &request.headers;
    if !headers.has_token("upgrade", "websocket") {
        // A key alone tells of a proxy that has removed the rest.
        return match headers.get("sec-websocket-key") {
            Some(_) => Err(HttpError::UpgradeRequired),
            None => Ok(None),
        };
    }
    if request.method != "GET" {
        return Err(HttpError::MethodNotAllowed);
    }
    if request.minor_version == 0 {
        return Err(HttpError::UpgradeInHttp10);
    }
    if !headers.has_token("connection", "upgrade") {
        return Err(HttpError::ConnectionWithoutUpgrade);
    }
    let length = headers.get("content-length").map(content_length);
    if headers.get("transfer-encoding").is_some() || length.is_some_and(|n| n != Some(0)) {
        return Err(HttpError::BodyWithUpgrade);
    }
    let mut versions = headers.all("sec-websocket-version");
    if (versions.next(), versions.next()) != (Some("13"), None) {
        return Err(HttpError::BadWebSocketVersion);
    }
    let mut keys = headers.all("sec-websocket-key");
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) if is_key(key) => key,
        _ => return Err(HttpError::BadKey),
    };
    let mut protocols = Vec::new();
    for protocol in headers.list("sec-websocket-protocol") {
        let known = protocols.len() == PROTOCOLS_MAX || protocols.contains(&protocol);
        if known || !is_token(protocol) {
            return Err(HttpError::BadProtocols);
        }
        protocols.push(protocol);
    }
    let extensions: Vec<&str> = headers.quoted_list("sec-websocket-extensions").collect();
    if extensions.len() > EXTENSIONS_MAX {
        return Err(HttpError::TooManyExtensions);
    }
    let extensions = (!extensions.is_empty()).then(|| extensions.join(", "));
    Ok(Some(Upgrade { key, protocols, extensions }))
}

/// Sixteen bytes in base64. The four bits that the last letter has to spare may be anything.
fn is_key(key: &str) -> bool {
    key.len() == 24
        && key.ends_with("==")
        && key.bytes().take(22).all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

/// A token (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// The Sec-WebSocket-Accept for a key (§4.2.2), in ASCII.
pub fn accept_value(key: &str) -> [u8; 28] {
    let mut sha1 = sha1_smol::Sha1::from(key);
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = [0; 28];
    let encoded = STANDARD.encode_slice(sha1.digest().bytes(), &mut accept);
    assert_eq!(encoded.ok(), Some(28), "20 bytes are 28 in base64");
    accept
}
