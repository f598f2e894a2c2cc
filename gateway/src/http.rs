//! HTTP/1.1 heads (RFC 9112), read strictly: what two readers could take for two different things
//! is refused. `httparse` knows the tokens; this file is the strictness. `body.rs` finds the end of
//! a response's body.

pub mod body;
pub(crate) mod steps;
#[cfg(test)]
mod worst;

use std::fmt;

use httparse::Header;

pub use body::BodyReader;

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

/// Whether a segment of `path` is `.` or `..` for a server that decodes it, or would be without the
/// parameters behind a `;`. Slashes and backslashes part segments, `%2f` and `%5c` as well.
///
/// Routes compare the path as it was sent. A server that resolves such segments would serve another
/// path than the one that the route was chosen by (RFC 3986 §5.2.4, §6.2.2.3).
fn has_dot_segment(path: &str) -> bool {
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
fn is_authority(text: &str) -> bool {
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

fn split_target<'a>(target: &'a str, host: &str) -> Result<(&'a str, Option<&'a str>), HttpError> {
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

/// Why a request is refused, or a response not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// The first byte of a TLS handshake.
    TlsOnPlainPort,
    /// A PROXY header, where none is expected.
    ProxyHeaderOnPlainPort,
    /// The preface of HTTP/2 (RFC 9113 §3.4).
    Http2OnPlainPort,
    /// A line that does not end with CRLF (RFC 9112 §2.2).
    BadLineEnd,
    /// NUL or another control character (RFC 9110 §5.5).
    ControlByte,
    /// Not a head, or a header line that is none (RFC 9112 §5).
    BadHead,
    /// Above `head_bytes_max` (RFC 6585 §5).
    HeadTooLarge,
    /// Above `headers_max` (RFC 6585 §5).
    TooManyHeaders,
    /// Above `target_bytes_max` (RFC 9110 §15.5.15).
    TargetTooLong,
    /// No Host, several, or none that names a host (RFC 9112 §3.2).
    BadHost,
    /// Neither a path nor a URL of the Host (RFC 9112 §3.2).
    BadTarget,
    /// A path that leads elsewhere once it is resolved (RFC 3986 §5.2.4).
    DotSegment,
    /// A path that is written another way than it has to be, where that is refused.
    LoosePath,
    /// Above [`NOMINATIONS_MAX`].
    TooManyNominations,
    /// A trailer that is no header line, or that may not stand there (RFC 9110 §6.5.1).
    BadTrailer,
    /// Content-Length that is repeated, garbled, written with leading zeros, above 2^63 - 1, or beside
    /// Transfer-Encoding (RFC 9112 §6.3).
    BadLength,
    /// Not HTTP/1.0 or 1.1.
    BadVersion,
    /// An upgrade with a body.
    BodyWithUpgrade,
    /// An upgrade by another method than GET (RFC 6455 §4.1).
    MethodNotAllowed,
    /// An upgrade in HTTP/1.0 (RFC 6455 §4.2.1).
    UpgradeInHttp10,
    /// A WebSocket route was asked for without an upgrade (RFC 9110 §15.5.22).
    UpgradeRequired,
    /// Connection does not name the upgrade (RFC 6455 §4.2.1).
    ConnectionWithoutUpgrade,
    /// Not exactly one key of 16 bytes (RFC 6455 §4.2.1).
    BadKey,
    /// Another version than 13 (RFC 6455 §4.4).
    BadWebSocketVersion,
    /// Subprotocols that are no tokens, repeated or too many (RFC 6455 §4.1).
    BadProtocols,
    /// More extensions than are looked at.
    TooManyExtensions,
}

impl HttpError {
    /// The status that answers it.
    pub fn status(self) -> u16 {
        match self {
            HttpError::HeadTooLarge | HttpError::TooManyHeaders => 431,
            HttpError::TargetTooLong => 414,
            HttpError::BadVersion => 505,
            HttpError::MethodNotAllowed => 405,
            HttpError::UpgradeRequired | HttpError::BadWebSocketVersion => 426,
            _ => 400,
        }
    }

    /// The headers that the status obliges to.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            HttpError::MethodNotAllowed => &[("Allow", "GET")],
            HttpError::UpgradeRequired => &[("Upgrade", "websocket")],
            HttpError::BadWebSocketVersion => {
                &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
            }
            _ => &[],
        }
    }

    /// What is wrong and what to do, for the client.
    pub fn explanation(self) -> &'static str {
        match self {
            HttpError::TlsOnPlainPort => "This port does not speak TLS: use http:// or ws://.",
            HttpError::ProxyHeaderOnPlainPort => "This port expects no PROXY header.",
            HttpError::Http2OnPlainPort => "This port does not speak HTTP/2: use HTTP/1.1.",
            HttpError::BadLineEnd => "A line does not end with CRLF.",
            HttpError::ControlByte => "The head holds a control character.",
            HttpError::BadHead => "This is not a well-formed HTTP/1.1 head.",
            HttpError::HeadTooLarge => "The head is too large: send fewer or shorter headers.",
            HttpError::TooManyHeaders => "Too many headers: send fewer.",
            HttpError::TargetTooLong => "The URL is too long.",
            HttpError::BadHost => "Exactly one Host header with a host name is needed.",
            HttpError::BadTarget => "The target must be a path, or a URL of the Host.",
            HttpError::DotSegment => "A segment of the path is `.` or `..`: resolve it first.",
            HttpError::LoosePath => {
                "The path has an empty segment, a needless %xx or a backslash: write it plainly."
            }
            HttpError::TooManyNominations => "Connection names too many headers.",
            HttpError::BadTrailer => "A trailer is no header line, or may not stand there.",
            HttpError::BadLength => {
                "Content-Length or Transfer-Encoding is garbled, repeated or contradicted; a length has no \
                 leading zero and is below 2^63."
            }
            HttpError::BadVersion => "Use HTTP/1.1.",
            HttpError::BodyWithUpgrade => "An upgrade request cannot have a body.",
            HttpError::MethodNotAllowed => "Only GET may upgrade to a WebSocket.",
            HttpError::UpgradeInHttp10 => {
                "HTTP/1.0 cannot upgrade: a proxy in front must speak HTTP/1.1."
            }
            HttpError::UpgradeRequired => "This is a WebSocket: send Upgrade: websocket.",
            HttpError::ConnectionWithoutUpgrade => {
                "Connection: Upgrade is missing: a proxy in front may have removed it."
            }
            HttpError::BadKey => "Exactly one Sec-WebSocket-Key of 16 bytes is needed.",
            HttpError::BadWebSocketVersion => "Only Sec-WebSocket-Version 13 is spoken here.",
            HttpError::BadProtocols => "Sec-WebSocket-Protocol must list distinct tokens.",
            HttpError::TooManyExtensions => "Sec-WebSocket-Extensions lists too many.",
        }
    }
}

impl From<httparse::Error> for HttpError {
    fn from(error: httparse::Error) -> HttpError {
        match error {
            httparse::Error::TooManyHeaders => HttpError::TooManyHeaders,
            httparse::Error::Version => HttpError::BadVersion,
            _ => HttpError::BadHead,
        }
    }
}

/// What is wrong, whoever said it: "the upstream's answer: a line does not end with CRLF".
impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HttpError::TlsOnPlainPort => "it is TLS, where plain HTTP is expected",
            HttpError::ProxyHeaderOnPlainPort => {
                "it is a PROXY header, which proxy_protocol is for"
            }
            HttpError::Http2OnPlainPort => "it is HTTP/2, where HTTP/1.1 is expected",
            HttpError::BadLineEnd => "a line does not end with CRLF",
            HttpError::ControlByte => "the head holds a control character",
            HttpError::BadHead => "it is not a well-formed HTTP/1.1 head",
            HttpError::HeadTooLarge => "the head is larger than head_bytes_max",
            HttpError::TooManyHeaders => "it has more headers than headers_max",
            HttpError::TargetTooLong => "the first line is longer than target_bytes_max allows",
            HttpError::BadHost => "it has not exactly one Host that names a host",
            HttpError::BadTarget => "the target is neither a path nor a URL of the Host",
            HttpError::DotSegment => "a segment of the path is `.` or `..`",
            HttpError::LoosePath => "the path is not written plainly",
            HttpError::TooManyNominations => "Connection names more than 32 headers",
            HttpError::BadTrailer => "a trailer is no header line, or may not stand there",
            HttpError::BadLength => "the length of the body is garbled, too large or said twice",
            HttpError::BadVersion => "it is not HTTP/1.0 or HTTP/1.1",
            HttpError::BodyWithUpgrade => "an upgrade request has a body",
            HttpError::MethodNotAllowed => "the method is not allowed",
            HttpError::UpgradeInHttp10 => "HTTP/1.0 cannot upgrade",
            HttpError::UpgradeRequired => "Upgrade: websocket is missing",
            HttpError::ConnectionWithoutUpgrade => "Connection: Upgrade is missing",
            HttpError::BadKey => "it has not exactly one Sec-WebSocket-Key of 16 bytes",
            HttpError::BadWebSocketVersion => "its Sec-WebSocket-Version is not 13",
            HttpError::BadProtocols => "Sec-WebSocket-Protocol is no list of distinct tokens",
            HttpError::TooManyExtensions => "Sec-WebSocket-Extensions lists more than 32",
        })
    }
}

impl std::error::Error for HttpError {}

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

fn percent_decode(text: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 300, headers_max: 6, target_bytes_max: 40 };

    fn read(wire: &str) -> Result<String, HttpError> {
        for cut in 0..wire.len() {
            let mut scanner = HeadScanner::default();
            let _ = scanner.scan(&wire.as_bytes()[..cut], &LIMITS);
            let once = HeadScanner::default().scan(wire.as_bytes(), &LIMITS);
            assert_eq!(scanner.scan(wire.as_bytes(), &LIMITS), once, "cut at {cut}");
        }
        let request = parse_request(wire.as_bytes(), &LIMITS)?;
        Ok(format!("{} {} {:?} {}", request.method, request.path, request.query, request.host))
    }

    #[test]
    fn requests() {
        let want = |wire: &str, want| assert_eq!(read(wire), want, "{wire:?}");
        want("GET /a?b HTTP/1.1\r\nHost: x:1\r\n\r\n", Ok("GET /a Some(\"b\") x:1".into()));
        want("GET ws://x HTTP/1.1\r\nHost: X\r\n\r\n", Ok("GET / None X".into()));
        want("GET ws://y/ HTTP/1.1\r\nHost: x\r\n\r\n", Err(HttpError::BadTarget));
        want("GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", Err(HttpError::BadTarget));
        want("GET / HTTP/1.1\r\n\r\n", Err(HttpError::BadHost));
        want("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", Err(HttpError::BadHost));
        want("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", Err(HttpError::BadHost));
        want("GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n", Err(HttpError::BadHost));
        want("GET /health HTTP/1.0\r\n\r\n", Ok("GET /health None ".into()));
        want("GET / HTTP/1.1\r\nHost:\r\n\r\n", Ok("GET / None ".into()));
        want("GET / HTTP/1.1\r\nHost: x:\r\n\r\n", Ok("GET / None x:".into()));
        want("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", Ok("OPTIONS * None x".into()));
        want("OPTIONS * HTTP/1.0\r\n\r\n", Ok("OPTIONS * None ".into()));
        want("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Err(HttpError::BadHost));
        want("GET / HTTP/1.1\nHost: x\r\n\r\n", Err(HttpError::BadLineEnd));
        want("GET / HTTP/1.1\r\nHost: x\ry\r\n\r\n", Err(HttpError::BadLineEnd));
        want("GET / HTTP/1.1\r\nHost: x\0\r\n\r\n", Err(HttpError::ControlByte));
        want("GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", Err(HttpError::BadHead));
        want("GET / HTTP/1.1\r\nHost : x\r\n\r\n", Err(HttpError::BadHead));
        want("\u{16}\u{3}\u{1}", Err(HttpError::TlsOnPlainPort));
        want("PROXY UNKNOWN\r\n", Err(HttpError::ProxyHeaderOnPlainPort));
        want("GET / HTTP/2.0\r\nHost: x\r\n\r\n", Err(HttpError::BadVersion));
        want("PRI * HTTP/2.0\r\n\r\n", Err(HttpError::Http2OnPlainPort));
        let te =
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
        want(te, Err(HttpError::BadLength));
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(60));
        want(&long, Err(HttpError::TargetTooLong));
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(7));
        want(&many, Err(HttpError::TooManyHeaders));
    }

    #[test]
    fn targets_and_hosts() {
        let target = |target: &str| read(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        for bad in
            ["*", "x:443", "http://y", "ftp://x/", "http://a@x/", "/a#b", "/\u{e9}", "http:x"]
        {
            assert_eq!(target(bad), Err(HttpError::BadTarget), "{bad}");
        }
        assert_eq!(target("//y/z"), Ok("GET //y/z None x".into()));
        assert_eq!(target("WS://x?a"), Ok("GET / Some(\"a\") x".into()));
        let connect = "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n";
        assert_eq!(read(connect), Err(HttpError::BadTarget));
        let host = |host: &str| read(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        for good in [
            "",
            "x:",
            "[::1]:",
            "x",
            "x:0",
            "x:65535",
            "[::1]",
            "[::1]:80",
            "a_b.c-d~",
            "127.0.0.1:9",
            "X.",
        ] {
            assert_eq!(host(good), Ok(format!("GET / None {good}")), "{good}");
        }
        for bad in [
            ":", ":80", "x:65536", "x:+1", "x:1:2", "::1", "[::1", "[::1]x", "[x]", "[::1]::",
            "[]", "x, y", "x y", "x/", "x?", "a@x", "\u{e9}", "%41", "x\\y",
        ] {
            assert_eq!(host(bad), Err(HttpError::BadHost), "{bad}");
        }
    }

    /// Each path as it stands, and as the URL of its host.
    #[test]
    fn rfc_3986_a_path_says_where_it_leads() {
        let read = |path: &str, host: &str| {
            let head = format!("GET {host}{path} HTTP/1.1\r\nHost: x\r\n\r\n");
            let limits = HeadLimits { target_bytes_max: 90, ..LIMITS };
            parse_request(head.as_bytes(), &limits).map(|request| request.path.to_owned())
        };
        for bad in [
            "/utils/../x",
            "/utils/%2e%2e/x",
            "/utils/..%2fx",
            "/utils/..%2Fx",
            "/utils%2f..%2fx",
            "/utils/%2E./x",
            "/utils/..\\x",
            "/utils/..%5cx",
            "/utils%5C..",
            "/./x",
            "/x/.",
            "/x/..",
            "/..",
            "/%2e",
            "/x/..;a=b/y",
            "/x/..%3ba/y",
            "/x/.?a",
            "//../x",
        ] {
            for host in ["", "http://x", "WS://X"] {
                assert_eq!(read(bad, host), Err(HttpError::DotSegment), "{host}{bad}");
            }
        }
        for good in [
            "/...",
            "/..a",
            "/a..",
            "/.a/b",
            "/%2ea",
            "/a%2e%2e",
            "/a/%252e%252e/b",
            "//x",
            "/x//",
            "/a;..",
            "/%2e%2e%2e",
            "/.%2",
            "/.%",
            "/%",
        ] {
            for host in ["", "http://x"] {
                assert_eq!(read(good, host).as_deref(), Ok(good), "{host}{good}");
            }
        }
        // Of a query nobody makes a path.
        assert_eq!(read("/x?../y", "").as_deref(), Ok("/x"));
    }

    #[test]
    fn plain_paths() {
        for plain in
            ["/", "/a/b", "/a/", "/A", "/%2F", "/%c3%A9", "/a%20b", "*", "/a;b=c", "/a@b:c"]
        {
            assert!(is_plain_path(plain), "{plain}");
        }
        for loose in
            ["//", "/a//b", "/%61dmin", "/%41", "/%7e", "/a%2Eb", "/%", "/%2", "/%zz", "/a\\b"]
        {
            assert!(!is_plain_path(loose), "{loose}");
        }
    }

    #[test]
    fn nominations_are_bounded() {
        let connection = |count: usize| {
            let list = (0..count).map(|n| format!("h{n}")).collect::<Vec<_>>().join(",,");
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: {list}\r\n\r\n");
            parse_request(head.as_bytes(), &LIMITS).map(|_| ())
        };
        assert_eq!(connection(NOMINATIONS_MAX), Ok(()));
        assert_eq!(connection(NOMINATIONS_MAX + 1), Err(HttpError::TooManyNominations));
    }

    #[test]
    fn section_6_bodies_of_requests() {
        let body = |version: u8, headers: &str| {
            read(&format!("POST / HTTP/1.{version}\r\nHost: x\r\n{headers}\r\n")).map(|_| ())
        };
        assert_eq!(body(1, "Transfer-Encoding: Chunked\r\n"), Ok(()));
        assert_eq!(body(1, "Content-Length: 9223372036854775807\r\n"), Ok(()));
        assert_eq!(body(1, "Content-Length: 0\r\n"), Ok(()));
        for bad in [
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length:\r\n",
            // Others count in signed 64 bits, or read octal.
            "Content-Length: 9223372036854775808\r\n",
            "Content-Length: 18446744073709551615\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 00\r\n",
            "Content-Length: 010\r\n",
        ] {
            assert_eq!(body(1, bad), Err(HttpError::BadLength), "{bad:?}");
        }
        assert_eq!(body(0, "Transfer-Encoding: chunked\r\n"), Err(HttpError::BadLength));
    }

    #[test]
    fn limits_hold_exactly() {
        let head = |target: usize, headers: usize, filler: usize| {
            let (target, headers) = ("a".repeat(target - 1), "A: b\r\n".repeat(headers - 2));
            let filler = "f".repeat(filler);
            read(&format!("GET /{target} HTTP/1.1\r\nHost: x\r\n{headers}F: {filler}\r\n\r\n"))
        };
        assert!(head(40, 6, 0).is_ok());
        assert_eq!(head(41, 6, 0), Err(HttpError::TargetTooLong));
        assert_eq!(head(40, 7, 0), Err(HttpError::TooManyHeaders));
        // Everything but target, headers and filler is 31 bytes.
        assert!(head(4, 2, 300 - 35).is_ok());
        assert_eq!(head(4, 2, 300 - 34), Err(HttpError::HeadTooLarge));
    }

    #[test]
    fn no_byte_is_looked_at_twice() {
        let wire = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n";
        let (mut scanner, mut seen) = (HeadScanner::default(), Vec::new());
        for (index, &byte) in wire.iter().enumerate() {
            seen.push(byte);
            let want = (index + 1 == wire.len()).then_some(wire.len());
            assert_eq!(scanner.scan(&seen, &LIMITS), Ok(want));
            // What was scanned may turn into anything, but for the byte before the next.
            let scanned = seen.len().saturating_sub(1);
            seen[..scanned].fill(b'\n');
        }
    }

    #[test]
    fn commas_in_quotes_do_not_split() {
        let split = |value| split_outside_quotes(value).collect::<Vec<_>>();
        assert_eq!(split(r#"a; b="c,d", ,e"#), [r#"a; b="c,d""#, "e"]);
        assert_eq!(split(r#"a; b="\",c", d"#), [r#"a; b="\",c""#, "d"]);
        assert_eq!(split(r#"a; b="c, d"#), [r#"a; b="c, d"#]);
    }

    #[test]
    fn an_error_of_an_upstream_does_not_speak_of_the_client() {
        let answer = parse_response(b"HTTP/1.1 200 OK\nA: b\r\n\r\n", &LIMITS).unwrap_err();
        assert_eq!(
            format!("the upstream's answer: {answer}"),
            "the upstream's answer: a line does not end with CRLF"
        );
    }

    #[test]
    fn query_parameters() {
        assert_eq!(query_param("a=1&b%20c=d%2Be+f", "b c").as_deref(), Some("d+e f"));
        assert_eq!(query_param("a=%ff", "a"), None);
        assert_eq!(query_param("a=%2", "a"), None);
        let values = |query| query_values(query, "a").collect::<Vec<_>>();
        assert_eq!(values("a=1&b=2&%61=3"), [Some("1".to_owned()), Some("3".to_owned())]);
        assert_eq!(values("a&ab=1&a=%ff&%=&=a"), [Some(String::new()), None]);
        assert_eq!(values(""), []);
    }
}
