//! What a client is placed by: one number out of its request, the same in every gateway.

use std::net::IpAddr;

use crate::http::{Headers, Request, query_param};
use crate::steps;

use super::hash::stable_hash;

/// What tells clients apart for [`Balance::Hash`](super::Balance::Hash). A client that does not
/// bring it is placed by its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// Its address: all of IPv4, the /64 of IPv6, of which one household or machine has at least
    /// one and may use any part.
    ClientIp,
    /// The first header of this name.
    Header(String),
    /// The cookie of this name.
    Cookie(String),
    /// The query parameter of this name.
    QueryParameter(String),
    /// The segment of the path at this index: 0 is `chat` in `/chat/42`. Not decoded, as routes do
    /// not decode either.
    PathSegment(u16),
    /// The Engine.IO session. The upstream that issued it is known to [`Sids`](super::Sids) alone:
    /// no hash of a `sid` leads there, as it was issued after its client had been placed. So a
    /// request without one, or with one that is not known there, is placed by the client's address,
    /// as the request was that opened it.
    SocketIoSid,
}

impl HashKey {
    /// The number a client is placed by. What is absent or empty falls back to `client`, the
    /// address it came from (or that a trusted proxy names).
    pub fn of(&self, request: &Request<'_>, client: IpAddr) -> u64 {
        let found = |bytes: Option<&[u8]>| bytes.filter(|bytes| !bytes.is_empty()).map(stable_hash);
        let hash = match self {
            HashKey::ClientIp | HashKey::SocketIoSid => None,
            HashKey::Header(name) => {
                let mut headers = request.headers.iter();
                // As bytes: a value need not be UTF-8 to tell clients apart.
                found(headers.find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value))
            }
            HashKey::Cookie(name) => found(cookie_value(&request.headers, name).map(str::as_bytes)),
            HashKey::QueryParameter(name) => {
                let value = request.query.and_then(|query| query_param(query, name));
                found(value.as_deref().map(str::as_bytes))
            }
            HashKey::PathSegment(index) => {
                // The path begins with a slash: what precedes it is no segment.
                let mut segments = request.path.split('/').skip(1);
                found(segments.nth(usize::from(*index)).map(str::as_bytes))
            }
        };
        hash.unwrap_or_else(|| address_hash(client))
    }
}

/// Whether a request is one of Engine.IO, of whatever version: its query names that.
pub fn is_engine_io(request: &Request<'_>) -> bool {
    let query = request.query.unwrap_or_default();
    query.split('&').any(|pair| pair.starts_with("EIO="))
}

/// The `sid` of a request of an Engine.IO session; `None` when it opens one, or is none.
pub fn sid_of(request: &Request<'_>) -> Option<String> {
    request.query.and_then(|query| query_param(query, "sid")).filter(|sid| !sid.is_empty())
}

fn address_hash(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => stable_hash(&address.octets()),
        IpAddr::V6(address) => stable_hash(&address.octets()[..8]),
    }
}

/// The value of a cookie, without the quotes it may stand in; the first, where several have the
/// name (RFC 6265 §5.4 sends that of the longest path first). What is no `name=value`, or not
/// UTF-8, is passed over, as servers do. Names are compared byte for byte.
pub fn cookie_value<'a>(headers: &Headers<'a>, name: &str) -> Option<&'a str> {
    // One line by RFC 6265 §5.4; several by RFC 9113 §8.2.3, before a proxy joined them.
    let lines = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("cookie"));
    let mut pairs = lines.flat_map(|line| line.value.split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        steps::took(pair.len());
        let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        let value = value.trim_matches([' ', '\t']);
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (key.trim_matches([' ', '\t']) == name).then_some(unquoted.unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, parse_request};

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 2000, headers_max: 20, target_bytes_max: 200 };

    fn with_request<T>(target: &str, headers: &str, read: impl FnOnce(&Request<'_>) -> T) -> T {
        let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        read(&parse_request(head.as_bytes(), &LIMITS).expect("a request"))
    }

    #[test]
    fn cookies_well_formed_and_not() {
        for (headers, want) in [
            ("", None),
            ("Cookie: a=1\r\n", Some("1")),
            ("Cookie: b=2; a=1; c=3\r\n", Some("1")),
            ("cookie: b=2;a=1\r\n", Some("1")),
            ("Cookie: \t a \t=\t 1 \t;\r\n", Some("1")),
            ("Cookie: b=2\r\nCookie: a=1\r\n", Some("1")),
            ("Cookie: a=1; a=2\r\n", Some("1")),
            ("Cookie: a=\"1\"\r\n", Some("1")),
            ("Cookie: a=\"1\r\n", Some("\"1")),
            ("Cookie: a=\"\r\n", Some("\"")),
            ("Cookie: a=\"\"\r\n", Some("")),
            ("Cookie: a=\r\n", Some("")),
            ("Cookie: a=b=c\r\n", Some("b=c")),
            ("Cookie: a\r\n", None),
            ("Cookie: A=1\r\n", None),
            ("Cookie: aa=1; xa=2\r\n", None),
            ("Cookie: =1; ; ;;= ;a; a=2\r\n", Some("2")),
            ("Cookie: b=\"x; a=1; y\"\r\n", Some("1")),
            ("Cookie:\r\n", None),
            ("Cookie: \u{e9}=1; a=\u{e9}\r\n", Some("\u{e9}")),
            ("X-Cookie: a=1\r\n", None),
        ] {
            let got = with_request("/", headers, |request| {
                cookie_value(&request.headers, "a").map(str::to_owned)
            });
            assert_eq!(got.as_deref(), want, "{headers:?}");
        }
    }

    #[test]
    fn a_cookie_that_is_not_utf8_is_nobodys() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: a=\xFF; b=\xFF; a=1\r\n\r\n";
        let request = parse_request(head, &LIMITS).expect("a request");
        assert_eq!(cookie_value(&request.headers, "a"), Some("1"));
        assert_eq!(cookie_value(&request.headers, "b"), None);
    }

    #[test]
    fn a_header_need_not_be_utf8() {
        let client: IpAddr = "192.0.2.1".parse().expect("an address");
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nX-User: \xFF\xFE\r\n\r\n";
        let request = parse_request(head, &LIMITS).expect("a request");
        let key = HashKey::Header("x-user".to_owned());
        assert_eq!(key.of(&request, client), stable_hash(b"\xFF\xFE"));
    }

    #[test]
    fn keys_of_requests_and_what_they_fall_back_to() {
        use HashKey::*;
        let client: IpAddr = "192.0.2.1".parse().expect("an address");
        let named = |text: &str| text.to_owned();
        for (key, target, headers, want) in [
            (ClientIp, "/", "", None),
            (Header(named("X-User")), "/", "x-user: ann\r\nX-User: bob\r\n", Some("ann")),
            (Header(named("X-User")), "/", "X-User:\r\n", None),
            (Header(named("X-User")), "/", "", None),
            (Cookie(named("id")), "/", "Cookie: x=1; id=ann\r\n", Some("ann")),
            (Cookie(named("id")), "/", "Cookie: id=\r\n", None),
            (Cookie(named("id")), "/", "Cookie: id\r\n", None),
            (QueryParameter(named("u")), "/?a=1&u=a%6En", "", Some("ann")),
            (QueryParameter(named("u")), "/?u=", "", None),
            (QueryParameter(named("u")), "/?u=%zz", "", None),
            (QueryParameter(named("u")), "/", "", None),
            (PathSegment(0), "/chat/42?x/y", "", Some("chat")),
            (PathSegment(1), "/chat/42?x/y", "", Some("42")),
            (PathSegment(2), "/chat/42?x/y", "", None),
            (PathSegment(1), "/chat/", "", None),
            (PathSegment(1), "/chat//42", "", None),
            (PathSegment(u16::MAX), "/", "", None),
            (SocketIoSid, "/?EIO=4&sid=abc", "", None),
        ] {
            let got = with_request(target, headers, |request| key.of(request, client));
            let want = want.map_or(address_hash(client), |text: &str| stable_hash(text.as_bytes()));
            assert_eq!(got, want, "{key:?} {target} {headers:?}");
        }
    }

    #[test]
    fn addresses_by_household() {
        let hash = |text: &str| address_hash(text.parse().expect("an address"));
        assert_eq!(hash("2001:db8:1:2::1"), hash("2001:db8:1:2:ffff::9"));
        assert_ne!(hash("2001:db8:1:2::1"), hash("2001:db8:1:3::1"));
        assert_eq!(hash("::ffff:192.0.2.1"), hash("192.0.2.1"));
        assert_ne!(hash("192.0.2.1"), hash("192.0.2.2"));
        // For ever: gateways of different releases stand side by side.
        assert_eq!(hash("192.0.2.1"), stable_hash(&[192, 0, 2, 1]));
        assert_eq!(hash("2001:db8::1"), stable_hash(&[0x20, 1, 0x0D, 0xB8, 0, 0, 0, 0]));
    }

    #[test]
    fn requests_of_engine_io() {
        for (target, want) in [
            ("/socket.io/?EIO=4&transport=polling&t=x", true),
            ("/socket.io/?transport=polling&EIO=3", true),
            ("/x?EIO=", true),
            ("/socket.io/?transport=polling&sid=EIO=4", false),
            ("/socket.io/?eio=4", false),
            ("/socket.io/?xEIO=4", false),
            ("/EIO=4", false),
        ] {
            assert_eq!(with_request(target, "", is_engine_io), want, "{target}");
        }
    }

    #[test]
    fn sids_of_requests() {
        for (target, want) in [
            ("/socket.io/?EIO=4&transport=polling&t=x", None),
            ("/socket.io/?EIO=4&transport=polling&sid=a-b_C1", Some("a-b_C1")),
            ("/socket.io/?sid=a%2Db", Some("a-b")),
            ("/socket.io/?sid=", None),
            ("/socket.io/?sid=%f", None),
            ("/socket.io/", None),
        ] {
            assert_eq!(with_request(target, "", sid_of).as_deref(), want, "{target}");
        }
    }
}
