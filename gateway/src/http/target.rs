//! Request targets: path, query and authority (RFC 9112 §3.2, RFC 3986).

use super::HttpError;
use crate::steps;

/// Whether a segment of `path` is `.` or `..` for a server that decodes it, or would be without the
/// parameters behind a `;`. Slashes and backslashes part segments, `%2f` and `%5c` as well.
///
/// Routes compare the path as it was sent. A server that resolves such segments would serve another
/// path than the one that the route was chosen by (RFC 3986 §5.2.4, §6.2.2.3).
pub(super) fn has_dot_segment(path: &str) -> bool {
    steps::took(path.len());
    let bytes = path.as_bytes();
    // Of the segment: its dots so far, and whether it is made of nothing else up to its parameters.
    let (mut dots, mut only_dots, mut ended) = (0, true, false);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let decoded = match escaped {
            Some([b'2', b'e' | b'E']) => b'.',
            Some([b'2', b'f' | b'F']) => b'/',
            Some([b'5', b'c' | b'C']) => b'\\',
            Some([b'3', b'b' | b'B']) => b';',
            _ => byte,
        };
        at += if decoded == byte { 1 } else { 3 };
        match decoded {
            b'/' | b'\\' => {
                if only_dots && (1..=2).contains(&dots) {
                    return true;
                }
                (dots, only_dots, ended) = (0, true, false);
            }
            b';' => ended = true,
            _ if ended => {}
            b'.' => dots += 1,
            _ => only_dots = false,
        }
    }
    only_dots && (1..=2).contains(&dots)
}

/// Whether `path` is written in the one way that has nothing to normalise (RFC 3986 §6.2.2.2): no
/// empty segment but the last, no letter, digit, `-`, `.`, `_` or `~` as `%xx`, no `%` that begins no
/// such pair, no backslash. The case of letters is part of the path, and so not looked at.
pub fn is_plain_path(path: &str) -> bool {
    steps::took(path.len());
    let bytes = path.as_bytes();
    let mut before = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let is_plain = match byte {
            b'/' => before != b'/',
            b'\\' => false,
            b'%' => {
                let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
                match (digit(at + 1), digit(at + 2)) {
                    (Some(high), Some(low)) => {
                        let byte = (high << 4 | low) as u8;
                        !byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte)
                    }
                    _ => false,
                }
            }
            _ => true,
        };
        if !is_plain {
            return false;
        }
        before = byte;
    }
    true
}

/// A name or address with an optional port, of which only the colon may be there (RFC 3986 §3.2.3);
/// no user, no list, nothing else.
pub(super) fn is_authority(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match port.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None if port.is_empty() => ("v6", None),
                None => return false,
            }
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !name.is_empty()
        && name.bytes().all(is_name)
        && port.is_none_or(|port| {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            digits && (port.is_empty() || port.parse::<u16>().is_ok())
        })
}

pub(super) fn split_target<'a>(
    target: &'a str,
    host: &str,
) -> Result<(&'a str, Option<&'a str>), HttpError> {
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(HttpError::BadTarget);
    }
    let mut origin_form = target;
    if let Some((scheme, rest)) = target.split_once("://").filter(|_| !target.starts_with('/')) {
        // Absolute form (RFC 9112 §3.2.2), which must not contradict Host.
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let known = ["http", "https", "ws", "wss"].iter().any(|s| s.eq_ignore_ascii_case(scheme));
        if !known || !rest[..end].eq_ignore_ascii_case(host) {
            return Err(HttpError::BadTarget);
        }
        origin_form = &rest[end..];
        if origin_form.is_empty() {
            return Ok(("/", None));
        }
        if let Some(query) = origin_form.strip_prefix('?') {
            return Ok(("/", Some(query)));
        }
    }
    if !origin_form.starts_with('/') {
        return Err(HttpError::BadTarget);
    }
    Ok(match origin_form.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin_form, None),
    })
}

/// The value of `name` in a query, decoded. `None`: absent, badly escaped or not UTF-8.
pub fn query_param(query: &str, name: &str) -> Option<String> {
    query_values(query, name).next().flatten()
}

/// Every value of `name` in a query, decoded; `None` for one that is badly escaped or not UTF-8.
pub fn query_values<'a>(
    query: &'a str,
    name: &'a str,
) -> impl Iterator<Item = Option<String>> + 'a {
    steps::took(query.len());
    query.split('&').filter_map(move |pair| {
        steps::took(pair.len());
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(key)? == name).then(|| percent_decode(value))
    })
}

pub(super) fn percent_decode(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(digits[0])? << 4 | digit(digits[1])?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}
