use crate::config::Upstream;
use crate::http::*;
use base64::Engine;
pub struct Upgrade<'a> {
    pub key: &'a str,
    pub protocols: Vec<&'a str>,
}
impl<'a> Upgrade<'a> {
    pub fn protocols(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.protocols.iter().copied()
    }
}
pub fn upgrade_of<'a>(r: &Request<'a>) -> Result<Option<Upgrade<'a>>, HttpError> {
    let get = |n: &str| r.headers.iter().find(|h| h.0.eq_ignore_ascii_case(n)).map(|h| h.1);
    Ok(get("sec-websocket-key").map(|key| Upgrade {
        key,
        protocols: get("sec-websocket-protocol").map_or(vec![], |p| p.split(", ").collect()),
    }))
}
pub fn accept_value(key: &str) -> String {
    let mut h = sha1_smol::Sha1::new();
    h.update(key.as_bytes());
    h.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::prelude::BASE64_STANDARD.encode(h.digest().bytes())
}
pub fn encode_switching(out: &mut Vec<u8>, accept: &str, protocol: Option<&str>, _e: Option<&str>) {
    out.extend_from_slice(format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n").as_bytes());
    if let Some(p) = protocol {
        out.extend_from_slice(format!("Sec-WebSocket-Protocol: {p}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}
pub fn encode_page(out: &mut Vec<u8>, ct: &str, body: &[u8], _h: bool) {
    out.extend_from_slice(format!("HTTP/1.1 200 OK\r\nContent-Type: {ct}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    out.extend_from_slice(body);
}
pub fn encode_response(out: &mut Vec<u8>, status: u16, why: &str) {
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{why}",
            why.len()
        )
        .as_bytes(),
    );
}
pub fn encode_error(out: &mut Vec<u8>, e: &HttpError) {
    encode_response(out, e.0, "no");
}
pub struct Forwarded {
    pub client: std::net::IpAddr,
    pub proto: &'static str,
}
pub fn fresh_key(a: u64, b: u64) -> String {
    let mut k = a.to_ne_bytes().to_vec();
    k.extend(b.to_ne_bytes());
    base64::prelude::BASE64_STANDARD.encode(k)
}
#[derive(Clone)]
pub struct Offer {
    client_accept: String,
    accept: String,
}
impl Offer {
    pub fn new(u: &Upgrade<'_>, key: &str) -> Offer {
        Offer { client_accept: accept_value(u.key), accept: accept_value(key) }
    }
}
pub fn encode_upstream_request(
    out: &mut Vec<u8>,
    r: &Request<'_>,
    key: &str,
    u: &Upstream,
    f: &Forwarded,
) {
    out.extend_from_slice(format!("GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nX-Forwarded-For: {}\r\n", r.path, u.host, f.client).as_bytes());
    for h in &r.headers {
        if h.0.to_lowercase().starts_with("sec-websocket-ext")
            || h.0.to_lowercase().starts_with("sec-websocket-prot")
        {
            out.extend_from_slice(format!("{}: {}\r\n", h.0, h.1).as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}
pub enum UpstreamAnswer {
    Accepted { rsv1: bool },
    Refused,
}
pub fn check_upstream_response(r: &Response<'_>, o: &Offer) -> Result<UpstreamAnswer, HttpError> {
    if r.status != 101 {
        return Ok(UpstreamAnswer::Refused);
    }
    let a =
        r.headers.iter().find(|h| h.0.eq_ignore_ascii_case("sec-websocket-accept")).map(|h| h.1);
    if a != Some(&o.accept[..]) {
        return Err(HttpError(502));
    }
    Ok(UpstreamAnswer::Accepted {
        rsv1: r.headers.iter().any(|h| h.0.eq_ignore_ascii_case("sec-websocket-extensions")),
    })
}
pub fn encode_switching_from_upstream(out: &mut Vec<u8>, r: &Response<'_>, o: &Offer) {
    encode_switching(out, &o.client_accept, None, None);
    out.truncate(out.len() - 2);
    for h in &r.headers {
        if h.0.to_lowercase().starts_with("sec-websocket-ext")
            || h.0.to_lowercase().starts_with("sec-websocket-prot")
        {
            out.extend_from_slice(format!("{}: {}\r\n", h.0, h.1).as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}
pub fn encode_refusal(out: &mut Vec<u8>, r: &Response<'_>) {
    out.extend_from_slice(
        format!("HTTP/1.1 {} X\r\nConnection: close\r\n\r\n", r.status).as_bytes(),
    );
}
