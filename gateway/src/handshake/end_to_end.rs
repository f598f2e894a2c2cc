//! Header lines that go on to the next hop, and those that do not (RFC 9110 §7.6.1).

use super::is_token;
use crate::http::{Headers, NOMINATIONS_MAX};
use crate::steps;

/// Appends a header line, unless name or value would end the line early or are no name and value.
/// Everything that we send goes through here, so nothing can split a header.
pub(super) fn encode_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if is_token(name) && value.iter().all(|&b| b == b'\t' || (b >= 0x20 && b != 0x7F)) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the headers of one end for the other: all but those of one hop, and those that are ours
/// to say.
pub(super) fn encode_end_to_end(
    out: &mut Vec<u8>,
    headers: &Headers<'_>,
    is_ours: impl Fn(&str) -> bool,
) {
    let nominations = Nominations::of(headers);
    for header in headers.iter() {
        if !is_ours(header.name) && !is_hop(&nominations, header.name) {
            encode_header(out, header.name, header.value);
        }
    }
}

/// The headers that Connection names, collected once for all lines of a head.
pub(super) struct Nominations<'a> {
    names: [&'a str; NOMINATIONS_MAX],
    count: usize,
}

impl<'a> Nominations<'a> {
    /// A head with more of them than there is room for was refused when it was parsed.
    pub(super) fn of(headers: &Headers<'a>) -> Nominations<'a> {
        let mut nominations = Nominations { names: [""; NOMINATIONS_MAX], count: 0 };
        for (place, name) in nominations.names.iter_mut().zip(headers.list("connection")) {
            *place = name;
            nominations.count += 1;
        }
        nominations
    }

    pub(super) fn have(&self, name: &str) -> bool {
        steps::took(self.count);
        is_one_of(name, &self.names[..self.count])
    }
}

pub(super) fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether `name` is `known`, which is in lower case with `-`, in whatever case and with `_` as well.
pub(super) fn is_name(name: &str, known: &str) -> bool {
    without_prefix(name, known) == Some("")
}

/// Whether a header is for one hop (RFC 9110 §7.6.1). Its sender nominates more of them in
/// Connection, but not those that say who it is or what is agreed.
pub(super) fn is_hop(nominations: &Nominations<'_>, name: &str) -> bool {
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

/// Many backends read `_` and `-` in a name as the same, so we do too.
pub(super) fn is_address_claim(name: &str) -> bool {
    let rest = without_prefix(name, "x-forwarded-");
    rest.is_some() || is_name(name, "x-real-ip") || is_name(name, "forwarded")
}

/// What of `name` stands behind `prefix`, which is read as in [`is_name`].
pub(super) fn without_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    start.bytes().map(fold).eq(prefix.bytes()).then_some(rest)
}
