//! HTTP/1.1 heads (RFC 9112), read strictly: what two readers could take for two different things
//! is refused. `httparse` knows the tokens; this file is the strictness. `target.rs` is that of a
//! request's target, `error.rs` says what is answered; `body.rs` finds the end of a response's body.

pub mod body;
mod error;
mod target;
#[cfg(test)]
mod tests;

use httparse::Header;

pub use body::BodyReader;
pub use error::HttpError;
pub use target::{is_plain_path, query_param, query_values};

use crate::steps;
use target::{has_dot_segment, is_authority, split_target};

/// The most header lines that a head can have, whatever is configured.
pub const HEADERS_MAX: usize = 128;

/// The most headers that Connection can nominate for one hop (RFC 9110 §7.6.1): each header of a
/// head is held against each of them.
pub const NOMINATIONS_MAX: usize = 32;

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// All of it, with the empty line.
    pub head_bytes_max: usize,
    /// Header lines; above [`HEADERS_MAX`] means that.
    pub headers_max: usize,
    /// The request target.
    pub target_bytes_max: usize,
}

/// Finds the end of a head as its bytes arrive and reads none of them twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    // In 32 bits, of which `head_bytes_max` uses few: each client has one at first.
    scanned: u32,
    line_start: u32,
    lines: u32,
    failed: Option<HttpError>,
}

impl HeadScanner {
    /// `head` is all bytes since the first of the head. Answers the head's length once its empty
    /// line is there. Line ends are CRLF only, and control characters are refused (RFC 9112 §2.2).
    /// After an `Err` the same error is all that comes.
    pub fn scan(&mut self, head: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HttpError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.scan_on(head, limits).inspect_err(|&error| self.failed = Some(error))
    }

    fn scan_on(&mut self, head: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HttpError> {
        // A TLS record: a client's handshake, or the alert of a server that expected one.
        if matches!(head.first(), Some(0x15 | 0x16)) {
            return Err(HttpError::TlsOnPlainPort);
        }
        // A balancer that says whom it speaks for. Version 2 fails by its first line end.
        if head.starts_with(b"PROXY ") {
            return Err(HttpError::ProxyHeaderOnPlainPort);
        }
        while let Some(&byte) = head.get(self.scanned as usize) {
            steps::took(1);
            let scanned = self.scanned as usize;
            if scanned >= limits.head_bytes_max {
                return Err(HttpError::HeadTooLarge);
            }
            let after_return = scanned > 0 && head[scanned - 1] == b'\r';
            if after_return != (byte == b'\n') {
                return Err(HttpError::BadLineEnd);
            }
            self.scanned += 1;
            match byte {
                b'\n' => {
                    let is_empty = self.scanned - self.line_start == 2;
                    if is_empty && self.lines == 0 {
                        return Err(HttpError::BadHead);
                    }
                    if is_empty {
                        return Ok(Some(self.scanned as usize));
                    }
                    self.lines += 1;
                    self.line_start = self.scanned;
                    // The first line is not a header.
                    if self.lines as usize > limits.headers_max.min(HEADERS_MAX) + 1 {
                        return Err(HttpError::TooManyHeaders);
                    }
                }
                b'\t' | b'\r' => {}
                0..0x20 | 0x7F => return Err(HttpError::ControlByte),
                _ => {}
            }
            // Longest method we know, two spaces and the version around the target.
            if self.lines == 0 && scanned > limits.target_bytes_max + 19 {
                return Err(HttpError::TargetTooLong);
            }
        }
        Ok(None)
    }
}

/// The header lines of a head, in order and in the sender's spelling. Of several kibibytes, so it
/// is handed on by reference.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    slots: [Header<'a>; HEADERS_MAX],
    count: usize,
}

impl<'a> Headers<'a> {
    /// Every line.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Header<'a>> {
        steps::took(self.count);
        self.slots[..self.count].iter()
    }

    /// The values of all lines of this name.
    pub fn all(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| {
            steps::took(header.value.len());
            // What is not UTF-8 is present, and equals nothing that anybody compares it with.
            std::str::from_utf8(header.value).unwrap_or("\u{FFFD}")
        })
    }

    /// The value of the first line of this name.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// The members of a comma-separated list that may span lines (RFC 9110 §5.6.1).
    pub fn list(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .flat_map(|value| value.split(','))
            .map(|member| member.trim_matches([' ', '\t']))
            .filter(|member| !member.is_empty())
    }

    /// The members of a list whose parameters may be quoted strings with commas of their own, as
    /// those of Sec-WebSocket-Extensions are (RFC 6455 §9.1). A quote that never ends takes all
    /// that follows it.
    pub fn quoted_list(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name).flat_map(split_outside_quotes)
    }

    /// Whether the list has `token`, in whatever case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|member| member.eq_ignore_ascii_case(token))
    }
}

/// Splits a list at the commas that are in no quoted string (RFC 9110 §5.6.4).
pub(crate) fn split_outside_quotes(value: &str) -> impl Iterator<Item = &str> {
    steps::took(value.len());
    let (mut quoted, mut escaped) = (false, false);
    value
        .split(move |letter| {
            match letter {
                _ if escaped => escaped = false,
                '\\' => escaped = quoted,
                '"' => quoted = !quoted,
                ',' => return !quoted,
                _ => {}
            }
            false
        })
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
}

/// A request head that was understood.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// As sent: case matters.
    pub method: &'a str,
    /// As sent.
    pub target: &'a str,
    /// Begins with a slash, or is the `*` of OPTIONS; not decoded. No segment of it is `.` or `..`.
    pub path: &'a str,
    /// What follows the first question mark.
    pub query: Option<&'a str>,
    /// 0 or 1: the minor of HTTP/1.
    pub minor_version: u8,
    /// The one Host, with its port. Empty where the request names none, which HTTP/1.0 need not.
    pub host: &'a str,
    /// All header lines.
    pub headers: Headers<'a>,
}

/// Reads the head that a [`HeadScanner`] has found: `head` is exactly that.
pub fn parse_request<'a>(head: &'a [u8], limits: &HeadLimits) -> Result<Request<'a>, HttpError> {
    check_whole(head, limits)?;
    if head.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Err(HttpError::Http2OnPlainPort);
    }
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut slots);
    parsed.parse(head)?;
    let (Some(method), Some(target), Some(minor_version)) =
        (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HttpError::BadHead);
    };
    let count = parsed.headers.len();
    let headers = Headers { slots, count };
    if target.len() > limits.target_bytes_max {
        return Err(HttpError::TargetTooLong);
    }
    let hosts = {
        let mut hosts = headers.all("host");
        (hosts.next(), hosts.next())
    };
    let host = match hosts {
        // What has no authority has an empty Host (RFC 9110 §7.2).
        (Some(host), None) if host.is_empty() || is_authority(host) => host,
        (None, _) if minor_version == 0 => "",
        _ => return Err(HttpError::BadHost), // RFC 9112 §3.2
    };
    let (path, query) = match target {
        "*" if method == "OPTIONS" => ("*", None), // RFC 9112 §3.2.4
        _ => split_target(target, host)?,
    };
    if has_dot_segment(path) {
        return Err(HttpError::DotSegment);
    }
    check_nominations(&headers)?;
    check_body_headers(&headers, minor_version)?;
    // A body whose end we could not find (RFC 9112 §6.1).
    if headers.list("transfer-encoding").any(|coding| !coding.eq_ignore_ascii_case("chunked")) {
        return Err(HttpError::BadLength);
    }
    Ok(Request { method, target, path, query, minor_version, host, headers })
}

/// A response head that was understood.
#[derive(Clone, Debug)]
pub struct Response<'a> {
    /// 100 to 599.
    pub status: u16,
    /// May be empty.
    pub reason: &'a str,
    /// 0 or 1: the minor of HTTP/1.
    pub minor_version: u8,
    /// All header lines.
    pub headers: Headers<'a>,
}

/// Reads the head of an upstream's response.
pub fn parse_response<'a>(head: &'a [u8], limits: &HeadLimits) -> Result<Response<'a>, HttpError> {
    check_whole(head, limits)?;
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut slots);
    // Strict by default, but for the obsolete folding and spaces, which stay off.
    parsed.parse(head)?;
    let (Some(status @ 100..=599), Some(minor_version)) = (parsed.code, parsed.version) else {
        return Err(HttpError::BadHead);
    };
    let (reason, count) = (parsed.reason.unwrap_or_default(), parsed.headers.len());
    let headers = Headers { slots, count };
    check_nominations(&headers)?;
    check_body_headers(&headers, minor_version)?;
    Ok(Response { status, reason, minor_version, headers })
}

fn check_whole(head: &[u8], limits: &HeadLimits) -> Result<(), HttpError> {
    match HeadScanner::default().scan(head, limits)? {
        Some(length) if length == head.len() => Ok(()),
        _ => Err(HttpError::BadHead),
    }
}

fn check_nominations(headers: &Headers<'_>) -> Result<(), HttpError> {
    let few = headers.list("connection").nth(NOMINATIONS_MAX).is_none();
    few.then_some(()).ok_or(HttpError::TooManyNominations)
}

/// One framing for a body, or none: what smuggling is made of is refused (RFC 9112 §6.3).
fn check_body_headers(headers: &Headers<'_>, minor_version: u8) -> Result<(), HttpError> {
    let mut lengths = headers.all("content-length");
    let length_is_fine = match (lengths.next(), lengths.next()) {
        (None, _) => true,
        (Some(length), None) => content_length(length).is_some(),
        (Some(_), Some(_)) => false,
    };
    let has_length = headers.get("content-length").is_some();
    let coding_is_fine = headers.get("transfer-encoding").is_none()
        || (!has_length && minor_version == 1 && is_coding_list(headers));
    (length_is_fine && coding_is_fine).then_some(()).ok_or(HttpError::BadLength)
}

/// Whether Transfer-Encoding names something, and chunked only as the last (RFC 9112 §6.1).
fn is_coding_list(headers: &Headers<'_>) -> bool {
    let codings = headers.list("transfer-encoding");
    let mut names = codings.map(|coding| coding.split(';').next().unwrap_or_default().trim());
    let Some(mut last) = names.next() else { return false };
    for name in names {
        if last.eq_ignore_ascii_case("chunked") {
            return false;
        }
        last = name;
    }
    // Chunked takes no parameters (RFC 9112 §7).
    !last.eq_ignore_ascii_case("chunked") || headers.list("transfer-encoding").last() == Some(last)
}

/// Whether a token may have this byte (RFC 9110 §5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A length as every reader takes it: digits alone, as `parse` would take a plus sign; no leading zero, by
/// which some read octal; at most 2^63 - 1, as others count in signed 64 bits (RFC 9112 §6.3, RFC 9110
/// §8.6, which has any number of digits). It passes as it was sent, so who is behind has to read the same.
pub(crate) fn content_length(value: &str) -> Option<u64> {
    let is_plain = value == "0" || !value.starts_with('0');
    let digits = is_plain && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten().filter(|length| *length <= CONTENT_LENGTH_MAX)
}

const CONTENT_LENGTH_MAX: u64 = i64::MAX as u64;
