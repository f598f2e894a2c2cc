//! What a check asks and what it takes for good, as the operator wrote it.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;

/// How the upstreams of a backend are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// The kind of check.
    pub kind: CheckKind,
    /// The path, with its query, that they are asked for. `None`: with [`CheckKind::Websocket`] the
    /// one that replaces the client's, if one does; else `/`.
    pub path: Option<String>,
    /// The `Host` that they see. `None`: that of their URL.
    pub host: Option<String>,
    /// From the beginning of a check to that of the next, give or take a tenth.
    pub interval: Duration,
    /// From the beginning of a check to its end: connecting and the answer. At most `interval`.
    pub timeout: Duration,
}

/// What is asked of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// To accept a connection.
    Connect,
    /// To answer a GET.
    Http {
        /// The good answers.
        expected: StatusSet,
    },
    /// To accept a WebSocket and answer a Ping.
    Websocket,
}

/// Statuses that are good answers: `200-399`, or `200, 204, 301-308`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(Vec<RangeInclusive<u16>>);

/// Parts of one [`StatusSet`]; each check looks at all of them.
const STATUS_RANGES_MAX: usize = 16;

impl StatusSet {
    /// Whether an answer with this status is a good one.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for StatusSet {
    fn default() -> StatusSet {
        StatusSet(vec![200..=399])
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let (low, high) = (range.start(), range.end());
            if low == high {
                write!(f, "{comma}{low}")?;
            } else {
                write!(f, "{comma}{low}-{high}")?;
            }
        }
        Ok(())
    }
}

/// The error says what is wrong and what to write instead.
impl FromStr for StatusSet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<StatusSet, &'static str> {
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let (low, high) = (status(low.trim())?, status(high.trim())?);
            if low > high {
                return Err("a range begins with its lower end; write it like \"200-399\"");
            }
            ranges.push(low..=high);
        }
        if ranges.len() > STATUS_RANGES_MAX {
            return Err("at most 16 statuses and ranges; write neighbours as a range");
        }
        Ok(StatusSet(ranges))
    }
}

fn status(text: &str) -> Result<u16, &'static str> {
    // Digits only: `parse` alone would take a plus sign. What is below 200 is no final answer.
    let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(status @ 200..=599) if digits => Ok(status),
        _ => Err("a status is a number from 200 to 599; write \"200-399\" or \"200, 204\""),
    }
}

/// Whether an upstream can be asked for this path, which may have a query. The error says what to
/// write instead.
pub fn check_path(text: &str) -> Result<(), &'static str> {
    if !text.starts_with('/') {
        return Err("a path begins with `/`; write it like \"/health\"");
    }
    if text.contains('#') {
        return Err("a path has no fragment; leave out `#` and what follows");
    }
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || text.parse::<PathAndQuery>().is_err() {
        return Err("a path on the wire has no spaces, no angle brackets and is ASCII; write the \
                    rest as %xx");
    }
    Ok(())
}

/// Whether this can be sent as a `Host`. The error says what to write instead.
pub fn check_host(text: &str) -> Result<(), &'static str> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_name) || HeaderValue::from_str(text).is_err() {
        return Err("it is a name or an address, with a port or without; write it like \
                    \"app.example.org\"");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_their_one_spelling() {
        for (text, spelling, good, bad) in [
            ("200", "200", &[200][..], &[199, 201, 0, 65_535][..]),
            ("200-399", "200-399", &[200, 302, 399], &[101, 199, 400, 503]),
            (" 204 ,301 - 308,401", "204, 301-308, 401", &[204, 301, 308, 401], &[200, 300, 309]),
            ("599-599", "599", &[599], &[598]),
        ] {
            let set: StatusSet = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(set.to_string(), spelling);
            assert!(good.iter().all(|status| set.contains(*status)), "{text}");
            assert!(!bad.iter().any(|status| set.contains(*status)), "{text}");
        }
        assert_eq!("200-399".parse(), Ok(StatusSet::default()));
        let most = vec!["200"; STATUS_RANGES_MAX].join(",");
        assert!(most.parse::<StatusSet>().is_ok());
    }

    #[test]
    fn refused_statuses_say_what_to_write() {
        let many = vec!["200"; STATUS_RANGES_MAX + 1].join(",");
        for (text, why) in [
            ("", "a status is"),
            ("ok", "a status is"),
            ("20", "a status is"),
            ("+20", "a status is"),
            ("0200", "a status is"),
            ("199", "a status is"),
            ("600", "a status is"),
            ("200,", "a status is"),
            ("200-", "a status is"),
            ("-200", "a status is"),
            ("200-300-400", "a status is"),
            ("2xx", "a status is"),
            ("399-200", "a range begins"),
            (&many, "at most 16"),
        ] {
            let error = text.parse::<StatusSet>().expect_err(text);
            assert!(error.contains(why) && error.contains("; "), "{text}: {error}");
        }
    }

    #[test]
    fn paths_and_hosts() {
        for path in ["/", "/health?full=1&x", "/a%20b", "//a", "/a\"b", "/~*"] {
            assert_eq!(check_path(path), Ok(()), "{path}");
        }
        for path in ["", "health", "*", "http://a/b", "/a b", "/a\r\nb", "/é", "/a#b", "/<a>"] {
            assert!(check_path(path).expect_err(path).contains("; "), "{path}");
        }
        for host in ["a", "a.example.org:81", "192.0.2.1", "[::1]:80"] {
            assert_eq!(check_host(host), Ok(()), "{host}");
        }
        for host in ["", "a b", "a/b", "u@a", "a\n", "é"] {
            assert!(check_host(host).expect_err(host).contains("; "), "{host}");
        }
    }
}
