//! Answers of our own.

use super::end_to_end::encode_header;
use crate::http::HttpError;

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
