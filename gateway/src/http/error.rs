//! Why a head is refused, and with what.

use std::fmt;

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
    /// Above [`NOMINATIONS_MAX`](super::NOMINATIONS_MAX).
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
