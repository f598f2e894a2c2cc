//! Which pages may open a WebSocket: the Origin of an upgrade (RFC 6455 §4.2.2, §10.2) against the
//! list of its route.
//!
//! A browser lets a page of any site open a WebSocket to any server and sends the user's cookies
//! with it; only the server can tell by the Origin that the page is not its own. Clients other than
//! browsers send whatever they like, or nothing.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::http::Headers;
use crate::route::HostPattern;
use crate::steps;

/// The origins of one route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Any of these; `None`: any at all, however it is written.
    pub allowed: Option<Vec<OriginPattern>>,
    /// Whether an upgrade without an Origin is refused.
    pub required: bool,
}

impl Origins {
    /// Whether a request with these headers may be upgraded.
    pub fn admit(&self, headers: &Headers<'_>) -> bool {
        let mut lines = headers.all("origin");
        match (lines.next(), lines.next(), &self.allowed) {
            (None, _, _) => !self.required,
            (Some(_), _, None) => true,
            (Some(origin), None, Some(allowed)) => match Origin::parse(origin) {
                Some(origin) => allowed.iter().any(|pattern| {
                    steps::took(1);
                    pattern.matches(&origin)
                }),
                None => false,
            },
            // Two lines are two stories about where the page came from.
            (Some(_), Some(_), Some(_)) => false,
        }
    }
}

/// One entry of the list: `https://chat.example.org`, `https://*.example.org:8443` (any depth below
/// it, not itself), or `null`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// The origin of pages without one: sandboxed frames, files, some redirects. Anybody can make
    /// such a page.
    Null,
    /// A scheme, the hosts and a port.
    Tuple {
        /// In lower case.
        scheme: String,
        /// `None`: no host at all, as in `file://`.
        host: Option<HostPattern>,
        /// `None`: the scheme has no port, and none is named.
        port: Option<u16>,
    },
}

/// An Origin header, taken apart (RFC 6454 §6.2, §7.1).
enum Origin<'a> {
    Null,
    Tuple { scheme: &'a str, host: &'a str, port: Option<u16> },
}

impl<'a> Origin<'a> {
    /// `None`: no origin, or a list of several, which no browser sends.
    fn parse(text: &'a str) -> Option<Origin<'a>> {
        if text == "null" {
            return Some(Origin::Null);
        }
        let (scheme, host, port) = split(text)?;
        let is_host = match host.strip_prefix('[') {
            Some(_) => ipv6(host).is_some(),
            // With a final dot it is another origin, and no pattern is written with one.
            None => {
                host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
                    && (host.is_empty() || host.split('.').all(|label| !label.is_empty()))
            }
        };
        is_host.then_some(Origin::Tuple { scheme, host, port })
    }
}

/// Scheme, host and port, the port being the scheme's where none is written. The host is as it
/// stands.
fn split(text: &str) -> Option<(&str, &str, Option<u16>)> {
    let (scheme, rest) = text.split_once("://")?;
    let mut letters = scheme.bytes();
    let is_scheme = letters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && letters.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !is_scheme {
        return None;
    }
    // Behind the bracket of an IPv6 address, or else anywhere, a colon begins the port.
    let name_end = rest.rfind(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match rest[name_end..].split_once(':') {
        Some((name, port)) => (&rest[..name_end + name.len()], Some(number(port)?)),
        None => (rest, default_port(scheme)),
    };
    if host.is_empty() && !scheme.eq_ignore_ascii_case("file") {
        return None;
    }
    Some((scheme, host, port))
}

/// A port as it is serialised: without zeros in front.
fn number(text: &str) -> Option<u16> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// The port that a page's scheme implies, which is left out of its origin (RFC 6454 §6.2).
fn default_port(scheme: &str) -> Option<u16> {
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    match () {
        () if is("http") || is("ws") => Some(80),
        () if is("https") || is("wss") => Some(443),
        () => None,
    }
}

fn ipv6(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

impl OriginPattern {
    fn matches(&self, origin: &Origin<'_>) -> bool {
        match (self, origin) {
            (OriginPattern::Null, Origin::Null) => true,
            (
                OriginPattern::Tuple { scheme, host: pattern, port },
                Origin::Tuple { scheme: its_scheme, host, port: its_port },
            ) => {
                scheme.eq_ignore_ascii_case(its_scheme)
                    && port == its_port
                    && host_matches(pattern.as_ref(), host)
            }
            _ => false,
        }
    }
}

fn host_matches(pattern: Option<&HostPattern>, host: &str) -> bool {
    match pattern {
        None => host.is_empty(),
        Some(HostPattern::Any) => true,
        Some(HostPattern::Exact(name)) => name.eq_ignore_ascii_case(host),
        Some(HostPattern::Ipv6(address)) => ipv6(host) == Some(*address),
        // The suffix begins with the dot, and labels are not empty: something stands in front.
        Some(HostPattern::Wildcard(suffix)) => {
            host.len() > suffix.len()
                && host
                    .get(host.len() - suffix.len()..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }
    }
}

impl FromStr for OriginPattern {
    type Err = &'static str;

    /// The error says what to write instead.
    fn from_str(text: &str) -> Result<OriginPattern, &'static str> {
        const FORM: &str = "not an origin; write it as the browser sends it, like \
                            \"https://chat.example.org\", \"https://*.example.org:8443\" or \"null\"";
        match text {
            "null" => return Ok(OriginPattern::Null),
            "*" => return Err("any origin is what leaving `origins` out means; leave it out"),
            _ => {}
        }
        if let Some((_, rest)) = text.split_once("://")
            && rest.contains(['/', '?', '#', '@'])
        {
            return Err(
                "an origin is scheme, host and port only; leave out the user, the path and \
                        a final `/`",
            );
        }
        let (scheme, host, port) = split(text).ok_or(FORM)?;
        if host.ends_with('.') {
            return Err(
                "a browser takes a host with a final dot for another one; leave the dot out",
            );
        }
        // A wildcard over addresses would match names that look like one.
        let is_partial_address = host
            .strip_prefix("*.")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        let is_broken_address = host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            && host.parse::<Ipv4Addr>().is_err();
        if is_partial_address || (is_broken_address && !host.is_empty()) {
            return Err("not a whole IPv4 address; write all of its four numbers");
        }
        let host = match host {
            "" => None,
            host => Some(
                host.parse::<HostPattern>().map_err(|why| if host == "*" { FORM } else { why })?,
            ),
        };
        Ok(OriginPattern::Tuple { scheme: scheme.to_ascii_lowercase(), host, port })
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginPattern::Null => f.write_str("null"),
            OriginPattern::Tuple { scheme, host, port } => {
                write!(f, "{scheme}://")?;
                if let Some(host) = host {
                    write!(f, "{host}")?;
                }
                match port.filter(|port| default_port(scheme) != Some(*port)) {
                    Some(port) => write!(f, ":{port}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, parse_request};

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 4096, headers_max: 64, target_bytes_max: 1024 };

    fn origins(list: &str, required: bool) -> Origins {
        let allowed = (!list.is_empty())
            .then(|| list.split(' ').map(|text| text.parse().expect(text)).collect());
        Origins { allowed, required }
    }

    fn admit(origins: &Origins, lines: &str) -> bool {
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        origins.admit(&parse_request(head.as_bytes(), &LIMITS).expect("a request").headers)
    }

    #[track_caller]
    fn check(list: &str, good: &[&str], bad: &[&str]) {
        let origins = origins(list, false);
        for (origin, want) in
            good.iter().map(|origin| (origin, true)).chain(bad.iter().map(|origin| (origin, false)))
        {
            let got = admit(&origins, &format!("Origin: {origin}\r\n"));
            assert_eq!(got, want, "{origin} of {list}");
        }
    }

    #[test]
    fn one_host() {
        check(
            "https://example.org",
            &[
                "https://example.org",
                "https://example.org:443",
                "HTTPS://EXAMPLE.org",
                "https://example.ORG:443",
            ],
            &[
                "http://example.org",
                "http://example.org:443",
                "https://example.org:80",
                "https://example.org:4430",
                "https://example.org:0443",
                "https://example.org:",
                "https://example.org:443:443",
                "https://example.org:+443",
                "https://example.org:66000",
                // Names that begin or end alike.
                "https://example.org.evil.com",
                "https://example.orgevil.com",
                "https://example.org-evil.com",
                "https://evilexample.org",
                "https://evil.com/example.org",
                "https://evil.com?https://example.org",
                "https://evil.com#https://example.org",
                "https://sub.example.org",
                // What a reader of URLs could take for it.
                "https://example.org@evil.com",
                "https://evil.com@example.org",
                "https://user:example.org@evil.com",
                "https://example.org:443@evil.com",
                "https://evil.com\\@example.org",
                "https://evil.com\\.example.org",
                "https://example.org/",
                "https://example.org/path",
                "https:///example.org",
                "https:/example.org",
                "https:example.org",
                "//example.org",
                "example.org",
                "xhttps://example.org",
                "https://example.org.",
                "https://example.org..",
                "https://.example.org",
                "https://example..org",
                "https://example%2eorg",
                "https://ex\u{e4}mple.org",
                "https://example.org\u{3002}",
                "https://\u{ff45}xample.org",
                "https://example.or\u{212a}",
                "null",
                "NULL",
                "",
                "*",
                "https://*",
                "https://example.org https://evil.com",
                "https://evil.com https://example.org",
                "https://example.org,https://evil.com",
                "https://[example.org]",
                "https://",
            ],
        );
    }

    #[test]
    fn hosts_below() {
        check(
            "https://*.example.org",
            &[
                "https://a.example.org",
                "https://a.b.example.org",
                "https://A.Example.Org:443",
                "https://xn--bcher-kva.example.org",
                "https://_a.example.org",
            ],
            &[
                "https://example.org",
                "https://.example.org",
                "https://..example.org",
                "https://a..example.org",
                "https://a.example.org.",
                "https://evilexample.org",
                "https://evil-example.org",
                "https://a.example.org.evil.com",
                "https://evil.com/.example.org",
                "https://evil.com#.example.org",
                "https://evil.com?.example.org",
                "https://evil.com:443.example.org",
                "https://evil.com@a.example.org",
                "https://a b.example.org",
                "https://*.example.org",
                "https://b\u{fc}cher.example.org",
                "https://\u{212a}.example.org",
                "http://a.example.org",
                "https://a.example.org:8443",
                "null",
            ],
        );
    }

    #[test]
    fn ports_addresses_and_other_schemes() {
        check(
            "https://a.example:8443 http://b.example:80 http://127.0.0.1:3000 http://[::1]:3000 \
             HTTPS://*.C.example:9 capacitor://localhost chrome-extension://abcdef file:// null",
            &[
                "https://a.example:8443",
                "http://b.example",
                "http://b.example:80",
                "http://127.0.0.1:3000",
                "http://[::1]:3000",
                "http://[0:0::1]:3000",
                "https://x.c.example:9",
                "capacitor://localhost",
                "chrome-extension://abcdef",
                "file://",
                "null",
            ],
            &[
                "https://a.example",
                "https://b.example",
                "http://127.0.0.1",
                "http://127.0.0.2:3000",
                "http://127.1:3000",
                "http://2130706433:3000",
                "http://[::1]",
                "http://[::2]:3000",
                "http://[::1:3000",
                "http://::1:3000",
                "http://[::1]evil.com:3000",
                "http://[::1].evil.com:3000",
                "http://[::ffff:127.0.0.1]:3000",
                "https://x.c.example",
                "capacitor://localhost:80",
                "chrome-extension://abcdefg",
                "file://evil",
                "file:///etc",
            ],
        );
    }

    #[test]
    fn the_default_is_any_and_none() {
        let any = Origins::default();
        for lines in
            ["", "Origin: https://evil.com\r\n", "Origin: \r\n", "Origin: a\r\nOrigin: b\r\n"]
        {
            assert!(admit(&any, lines), "{lines}");
        }
        let some = origins("https://a.example", false);
        assert!(admit(&some, ""));
        assert!(admit(&some, "X-Origin: b\r\nSec-WebSocket-Origin: b\r\n"));
        let good = "Origin: https://a.example\r\n";
        for lines in [
            format!("{good}{good}"),
            format!("{good}Origin: https://evil.com\r\n"),
            format!("Origin: https://evil.com\r\n{good}"),
        ] {
            assert!(!admit(&some, &lines), "{lines}");
        }
        let required = origins("https://a.example", true);
        assert!(admit(&required, good));
        assert!(!admit(&required, ""));
        assert!(!admit(&required, "Origin: \r\n"));
        let whatever = origins("", true);
        assert!(admit(&whatever, "Origin: https://evil.com\r\n"));
        assert!(!admit(&whatever, ""));
    }

    #[test]
    fn what_cannot_be_an_entry() {
        for (text, why) in [
            ("", "not an origin"),
            ("chat.example.org", "not an origin"),
            ("https:", "not an origin"),
            ("https://", "not an origin"),
            ("https://*", "not an origin"),
            ("://a.example", "not an origin"),
            ("1x://a.example", "not an origin"),
            ("https://a.example:x", "not an origin"),
            ("https://a.example:0443", "not an origin"),
            ("https://a.example:*", "not an origin"),
            ("*", "any origin is what"),
            ("https://a.example/", "an origin is scheme, host and port only"),
            ("https://a.example/chat", "an origin is scheme, host and port only"),
            ("https://u@a.example", "an origin is scheme, host and port only"),
            ("https://a.example.", "a browser takes"),
            ("https://a.*.example", "a `*` may only stand"),
            ("https://*a.example", "a `*` may only stand"),
            ("https://b\u{fc}cher.example", "not a host name"),
            ("https://a..example", "not a host name"),
            ("https://a b", "not a host name"),
            ("https://[::1", "not an origin"),
            ("https://[::x]", "not an IPv6 address"),
            ("http://127.1", "not a whole IPv4 address"),
            ("http://*.0.0.1", "not a whole IPv4 address"),
        ] {
            let error = text.parse::<OriginPattern>().expect_err(text);
            assert!(error.starts_with(why), "{text}: {error}");
        }
        for (text, shown) in [
            ("HTTPS://*.Example.org:443", "https://*.example.org"),
            ("http://a.example:8080", "http://a.example:8080"),
            ("http://[::1]", "http://[::1]"),
            ("null", "null"),
            ("file://", "file://"),
        ] {
            assert_eq!(text.parse::<OriginPattern>().expect(text).to_string(), shown);
        }
    }
}
