//! The opening handshake of both legs (RFC 6455 §4): a client's request, our request to an
//! upstream, and the answers.

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::{
    Headers, HttpError, NOMINATIONS_MAX, Request, Response, content_length, is_token_byte,
    split_outside_quotes,
};
use crate::steps;

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

/// Appends the 101 of a connection that ends here.
pub fn encode_switching(
    out: &mut Vec<u8>,
    accept: &[u8; 28],
    protocol: Option<&str>,
    extensions: Option<&str>,
    more: &[(&str, &str)],
) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    encode_header(out, "Upgrade", b"websocket");
    encode_header(out, "Connection", b"Upgrade");
    encode_header(out, "Sec-WebSocket-Accept", accept);
    for (name, value) in
        [("Sec-WebSocket-Protocol", protocol), ("Sec-WebSocket-Extensions", extensions)]
    {
        if let Some(value) = value {
            encode_header(out, name, value.as_bytes());
        }
    }
    for (name, value) in more {
        encode_header(out, name, value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole response of our own, after which the connection closes.
pub fn encode_response(
    out: &mut Vec<u8>,
    status: u16,
    headers: &[(&str, &str)],
    content_type: &str,
    body: &[u8],
) {
    out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason_phrase(status)).as_bytes());
    let has = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    for (name, value) in headers {
        encode_header(out, name, value.as_bytes());
    }
    if status == 503 && !has("retry-after") {
        encode_header(out, "Retry-After", b"5");
    }
    encode_header(out, "Content-Type", content_type.as_bytes());
    encode_header(out, "Content-Length", body.len().to_string().as_bytes());
    // Who sends Upgrade names it in Connection (RFC 9110 §7.8).
    let connection = if has("upgrade") { &b"close, Upgrade"[..] } else { b"close" };
    encode_header(out, "Connection", connection);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// Appends the answer to a request that is refused.
pub fn encode_error(out: &mut Vec<u8>, error: HttpError) {
    let body = format!("{}\n", error.explanation());
    encode_response(out, error.status(), error.headers(), "text/plain", body.as_bytes());
}

/// Appends a header line, unless name or value would end the line early or are no name and value.
/// Everything that we send goes through here, so nothing can split a header.
fn encode_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if is_token(name) && value.iter().all(|&b| b == b'\t' || (b >= 0x20 && b != 0x7F)) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

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
fn encode_request_line(
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
fn encode_forwarded(out: &mut Vec<u8>, request: &Request<'_>, forwarded: &Forwarded<'_>) {
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
fn is_replaced_claim(name: &str, forwarded: &Forwarded<'_>) -> bool {
    match forwarded.proxy {
        None => is_address_claim(name),
        Some(_) => {
            ["x-forwarded-for", "x-forwarded-proto", "x-real-ip"].iter().any(|it| is_name(name, it))
        }
    }
}

/// Appends the headers of one end for the other: all but those of one hop, and those that are ours
/// to say.
fn encode_end_to_end(out: &mut Vec<u8>, headers: &Headers<'_>, is_ours: impl Fn(&str) -> bool) {
    let nominations = Nominations::of(headers);
    for header in headers.iter() {
        if !is_ours(header.name) && !is_hop(&nominations, header.name) {
            encode_header(out, header.name, header.value);
        }
    }
}

/// The headers that Connection names, collected once for all lines of a head.
struct Nominations<'a> {
    names: [&'a str; NOMINATIONS_MAX],
    count: usize,
}

impl<'a> Nominations<'a> {
    /// A head with more of them than there is room for was refused when it was parsed.
    fn of(headers: &Headers<'a>) -> Nominations<'a> {
        let mut nominations = Nominations { names: [""; NOMINATIONS_MAX], count: 0 };
        for (place, name) in nominations.names.iter_mut().zip(headers.list("connection")) {
            *place = name;
            nominations.count += 1;
        }
        nominations
    }

    fn have(&self, name: &str) -> bool {
        steps::took(self.count);
        is_one_of(name, &self.names[..self.count])
    }
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Many backends read `_` and `-` in a name as the same, so we do too.
fn is_address_claim(name: &str) -> bool {
    let rest = without_prefix(name, "x-forwarded-");
    rest.is_some() || is_name(name, "x-real-ip") || is_name(name, "forwarded")
}

/// Whether `name` is `known`, which is in lower case with `-`, in whatever case and with `_` as well.
fn is_name(name: &str, known: &str) -> bool {
    without_prefix(name, known) == Some("")
}

/// What of `name` stands behind `prefix`, which is read as in [`is_name`].
fn without_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    start.bytes().map(fold).eq(prefix.bytes()).then_some(rest)
}

/// Whether a header is for one hop (RFC 9110 §7.6.1). Its sender nominates more of them in
/// Connection, but not those that say who it is or what is agreed.
fn is_hop(nominations: &Nominations<'_>, name: &str) -> bool {
    let is = |names: &[&str]| is_one_of(name, names);
    let always = ["connection", "upgrade", "keep-alive", "proxy-connection", "te", "trailer"];
    if is(&always) || is(&["proxy-authorization", "proxy-authenticate", "http2-settings"]) {
        return true;
    }
    let framing = ["content-length", "transfer-encoding", "host"];
    let identity = ["authorization", "cookie", "set-cookie", "origin"];
    let is_sec = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("sec-"));
    let protected = is(&framing) || is(&identity) || is_sec || is_address_claim(name);
    !protected && nominations.have(name)
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

/// The phrase behind a status; empty, which is legal, for one we never send ourselves.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
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
            let forwarded =
                Forwarded { client: "203.0.113.9".parse().unwrap(), proto: "https", proxy };
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
        assert_eq!(
            with("Connection", &["Connection: keep-alive", "connection: x , UPGRADE"]),
            ok()
        );
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
        let key =
            |value: &str| with("Sec-WebSocket-Key", &[&format!("Sec-WebSocket-Key: {value}")]);
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
            assert_eq!(
                with("Sec-WebSocket-Version", &[&line]),
                Err(BadWebSocketVersion),
                "{bad:?}"
            );
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
            let owned =
                |header: &httparse::Header<'_>| (header.name.to_owned(), header.value.to_vec());
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
}
