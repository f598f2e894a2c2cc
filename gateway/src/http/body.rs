//! The body of a request or a response, of which only the end matters here: its bytes pass as they
//! are (RFC 9112 §6, §7.1).

use super::{HttpError, Request, Response, content_length};
use crate::steps;

/// Finds the end of a body (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug)]
pub enum BodyReader {
    /// So many bytes; none when there is no body.
    Length(u64),
    /// In chunks (§7.1), and what may stand behind them.
    Chunked(Chunk, Trailers),
    /// Until the upstream ends its stream.
    UntilEnd,
}

/// The fields that trailers of a chunked body may have (RFC 9112 §7.1.2). They pass as they are, so a
/// server that adds them to the headers has to be able to rely on what this file has let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailers {
    /// Of a request: header lines, but none of framing, routing, identity or control, as those were
    /// judged when the head was (RFC 9110 §6.5.1).
    OfRequest,
    /// Of an answer: header lines.
    OfAnswer,
}

/// Where a chunked body stands.
#[derive(Clone, Copy, Debug)]
pub enum Chunk {
    /// In the line of a size, read so far, of which `line_bytes` have passed.
    #[allow(missing_docs)]
    Size { size: u64, digits: u8, line_bytes: u16, in_extension: bool, after_return: bool },
    /// In data.
    Data(u64),
    /// In the CRLF behind data, of which this many bytes have passed.
    DataEnd(u8),
    /// In the trailers: bytes of all lines, and where in this one.
    #[allow(missing_docs)]
    Trailer { all_bytes: u16, line: TrailerLine },
    /// Behind the last chunk.
    Done,
}

/// Where a trailer's line stands.
#[derive(Clone, Copy, Debug)]
pub enum TrailerLine {
    /// In its name, of which `bytes` have come; the first are kept, in lower case and with `-` for
    /// `_`, as many backends read them.
    #[allow(missing_docs)]
    Name { kept: [u8; NAME_BYTES_KEPT], bytes: u16 },
    /// In its value.
    Value,
    /// Behind the CR that ends it.
    Return,
    /// Behind the CR of the empty line.
    LastReturn,
}

/// Bytes of a trailer's name that are looked at: enough for each of [`FORBIDDEN`].
const NAME_BYTES_KEPT: usize = 20;

impl TrailerLine {
    const START: TrailerLine = TrailerLine::Name { kept: [0; NAME_BYTES_KEPT], bytes: 0 };
}

/// What a request's trailers may not bring, and what begins so: framing, routing, modifiers of the
/// request, authentication, how the content is to be read (RFC 9110 §6.5.1), and who the client is.
const FORBIDDEN: [&str; 28] = [
    "content-length",
    "content-encoding",
    "content-type",
    "content-range",
    "transfer-encoding",
    "trailer",
    "te",
    "connection",
    "keep-alive",
    "upgrade",
    "host",
    "cache-control",
    "pragma",
    "expect",
    "max-forwards",
    "range",
    "authorization",
    "cookie",
    "set-cookie",
    "origin",
    "referer",
    "forwarded",
    "via",
    "http2-settings",
    "x-real-ip",
    "x-client-ip",
    "x-original-url",
    "x-rewrite-url",
];
const FORBIDDEN_STARTS: [&str; 5] = ["x-forwarded-", "x-http-method", "proxy-", "sec-", "if-"];

fn is_forbidden(name: &[u8]) -> bool {
    steps::took(FORBIDDEN.len() + FORBIDDEN_STARTS.len());
    FORBIDDEN.iter().any(|known| known.as_bytes() == name)
        || FORBIDDEN_STARTS.iter().any(|start| name.starts_with(start.as_bytes()))
}

/// Lines of a chunked body, all trailers together, are refused above this.
const CHUNK_LINE_BYTES_MAX: u16 = 4096;

impl Chunk {
    const START: Chunk =
        Chunk::Size { size: 0, digits: 0, line_bytes: 0, in_extension: false, after_return: false };
}

impl BodyReader {
    /// How the body of `request` is framed: its head was parsed, so it is in one way at most.
    pub fn of_request(request: &Request<'_>) -> BodyReader {
        let headers = &request.headers;
        if headers.get("transfer-encoding").is_some() {
            return BodyReader::Chunked(Chunk::START, Trailers::OfRequest);
        }
        let length = headers.get("content-length").and_then(content_length);
        BodyReader::Length(length.unwrap_or(0))
    }

    /// How the body of `response` to a request of this method is framed.
    pub fn new(response: &Response<'_>, method: &str) -> BodyReader {
        let headers = &response.headers;
        if method == "HEAD" || matches!(response.status, 100..=199 | 204 | 304) {
            return BodyReader::Length(0);
        }
        if let Some(last) = headers.list("transfer-encoding").last() {
            return match last.eq_ignore_ascii_case("chunked") {
                true => BodyReader::Chunked(Chunk::START, Trailers::OfAnswer),
                false => BodyReader::UntilEnd,
            };
        }
        match headers.get("content-length").and_then(content_length) {
            Some(length) => BodyReader::Length(length),
            None => BodyReader::UntilEnd,
        }
    }

    /// Reads on: how many bytes of the front to forward, and whether the body ends with them.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<(usize, bool), HttpError> {
        self.scan_payload(bytes, |_| {})
    }

    /// The same, for those who want to see what of the bytes is payload: `payload` gets it in
    /// order and in pieces, without the framing of chunks.
    pub fn scan_payload(
        &mut self,
        bytes: &[u8],
        mut payload: impl FnMut(&[u8]),
    ) -> Result<(usize, bool), HttpError> {
        match self {
            BodyReader::UntilEnd => {
                payload(bytes);
                Ok((bytes.len(), false))
            }
            BodyReader::Length(left) => {
                let here = (*left).min(bytes.len() as u64);
                *left -= here;
                payload(&bytes[..here as usize]);
                Ok((here as usize, *left == 0))
            }
            BodyReader::Chunked(chunk, trailers) => {
                let mut at = 0;
                while at < bytes.len() && !matches!(chunk, Chunk::Done) {
                    let is_data = matches!(chunk, Chunk::Data(_));
                    let here = chunk.advance(&bytes[at..], *trailers)?;
                    if is_data {
                        payload(&bytes[at..at + here]);
                    }
                    at += here;
                }
                Ok((at, matches!(chunk, Chunk::Done)))
            }
        }
    }
}

impl Chunk {
    /// Reads at least one byte of `bytes`, which has one, and says how many.
    fn advance(&mut self, bytes: &[u8], trailers: Trailers) -> Result<usize, HttpError> {
        steps::took(1);
        let byte = bytes[0];
        match self {
            Chunk::Data(left) => {
                let here = (*left).min(bytes.len() as u64);
                *left -= here;
                if *left == 0 {
                    *self = Chunk::DataEnd(0);
                }
                return Ok(here as usize);
            }
            Chunk::DataEnd(seen) => {
                if byte != b"\r\n"[usize::from(*seen)] {
                    return Err(HttpError::BadLength);
                }
                *self = if *seen == 0 { Chunk::DataEnd(1) } else { Chunk::START };
            }
            Chunk::Size { size, digits, line_bytes, in_extension, after_return } => {
                *line_bytes += 1;
                let digit = char::from(byte).to_digit(16);
                match (byte, digit) {
                    _ if *line_bytes > CHUNK_LINE_BYTES_MAX => return Err(HttpError::BadLength),
                    (b'\n', _) if *after_return && *size > 0 => *self = Chunk::Data(*size),
                    (b'\n', _) if *after_return => {
                        *self = Chunk::Trailer { all_bytes: 0, line: TrailerLine::START };
                    }
                    _ if *after_return => return Err(HttpError::BadLength),
                    (b'\r', _) if *digits > 0 => *after_return = true,
                    (0x20..0x7F | b'\t', _) if *in_extension => {}
                    (b';', _) if *digits > 0 => *in_extension = true,
                    // Fifteen digits are below 2^60.
                    (_, Some(digit)) if *digits < 15 => {
                        *size = *size << 4 | u64::from(digit);
                        *digits += 1;
                    }
                    _ => return Err(HttpError::BadLength),
                }
            }
            Chunk::Trailer { all_bytes, line } => {
                *all_bytes += 1;
                if *all_bytes > CHUNK_LINE_BYTES_MAX {
                    return Err(HttpError::BadLength);
                }
                match line.advance(byte, trailers)? {
                    Some(next) => *line = next,
                    None => *self = Chunk::Done,
                }
            }
            Chunk::Done => {}
        }
        Ok(1)
    }
}

impl TrailerLine {
    /// Reads one byte. `None`: it was the last of the empty line.
    fn advance(&mut self, byte: u8, trailers: Trailers) -> Result<Option<TrailerLine>, HttpError> {
        Ok(Some(match self {
            TrailerLine::Name { bytes: 0, .. } if byte == b'\r' => TrailerLine::LastReturn,
            TrailerLine::Name { kept, bytes } if byte == b':' && *bytes > 0 => {
                let name = &kept[..NAME_BYTES_KEPT.min(usize::from(*bytes))];
                // A name that goes on behind what is kept is none of the exact ones.
                let is_cut = usize::from(*bytes) > NAME_BYTES_KEPT;
                debug_assert!(!is_cut || FORBIDDEN.iter().all(|it| it.len() < NAME_BYTES_KEPT));
                if trailers == Trailers::OfRequest && is_forbidden(name) {
                    return Err(HttpError::BadTrailer);
                }
                TrailerLine::Value
            }
            TrailerLine::Name { kept, bytes } if super::is_token_byte(byte) => {
                if let Some(place) = kept.get_mut(usize::from(*bytes)) {
                    *place = if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
                }
                TrailerLine::Name { kept: *kept, bytes: *bytes + 1 }
            }
            TrailerLine::Value if byte == b'\r' => TrailerLine::Return,
            TrailerLine::Value if byte == b'\t' || (byte >= 0x20 && byte != 0x7F) => {
                TrailerLine::Value
            }
            TrailerLine::Return if byte == b'\n' => TrailerLine::START,
            TrailerLine::LastReturn if byte == b'\n' => return Ok(None),
            _ => return Err(HttpError::BadTrailer),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, parse_response};

    /// For any cut, `body` bytes of `wire` are forwarded and `end` is how it goes.
    #[track_caller]
    fn check(reader: BodyReader, wire: &[u8], body: usize, end: &str) {
        for cut in 0..=wire.len() {
            let (mut reader, mut total, mut how) = (reader, 0, "more");
            for part in [&wire[..cut], &wire[cut..]] {
                match reader.scan(part) {
                    Ok((here, done)) => {
                        total += here;
                        how = if done { "done" } else { "more" };
                        if done {
                            break;
                        }
                    }
                    Err(_) => {
                        (total, how) = (0, "failed");
                        break;
                    }
                }
            }
            assert_eq!((total, how), (body, end), "cut at {cut}");
        }
    }

    #[track_caller]
    fn check_chunked(wire: &[u8], body: usize, end: &str) {
        check(BodyReader::Chunked(Chunk::START, Trailers::OfRequest), wire, body, end);
    }

    #[test]
    fn section_7_1_chunks_end_where_they_end() {
        check_chunked(b"0\r\n\r\nnext", 5, "done");
        check_chunked(b"5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\nnext", 25, "done");
        check_chunked(b"A;q=\"a b\"\r\n0123456789\r\n0;last\r\nA: b\r\nB:\r\n\r\n", 43, "done");
        check_chunked(b"000\r\n\r\n", 7, "done");
        check_chunked(b"5\r\nhello\r\n", 10, "more");
        check_chunked(b"5\r\nhel", 6, "more");
        // Data that looks like an end is data.
        check_chunked(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\nx", 17, "done");
    }

    #[test]
    fn chunks_of_another_grammar_are_refused() {
        for wire in [
            &b"\r\n"[..],
            b";x\r\n",
            b"5\nhello",
            b"5\rhello",
            b"5;a\nhello",
            b"5;a\0\r\nhello",
            b"1\r\nab",
            b"1\r\na\n",
            b"1\r\na\r1",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"g\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\n\n",
            b"0\r\nA: \0b\r\n\r\n",
            b"0\r\n\rA",
        ] {
            check_chunked(wire, 0, "failed");
        }
    }

    #[test]
    fn rfc_9110_6_5_1_trailers() {
        let read = |trailers: Trailers, line: &str| {
            let wire = format!("1\r\na\r\n0\r\nX-A: b\r\n{line}\r\n\r\n");
            let mut reader = BodyReader::Chunked(Chunk::START, trailers);
            reader.scan(wire.as_bytes()).map(|(taken, done)| done && taken == wire.len())
        };
        // More than is kept of a name.
        const LONG: [&str; 2] = ["X-Forwarded-For-And-So-On", "X-HTTP-Method-Override"];
        let starts = FORBIDDEN_STARTS.map(|start| format!("{start}x"));
        let names = FORBIDDEN.iter().map(|name| name.to_string()).chain(starts);
        for name in names.chain(LONG.map(str::to_owned)) {
            for name in [name.clone(), name.to_ascii_uppercase(), name.replace('-', "_")] {
                let line = format!("{name}: 1");
                assert_eq!(read(Trailers::OfRequest, &line), Err(HttpError::BadTrailer), "{line}");
                assert_eq!(read(Trailers::OfAnswer, &line), Ok(true), "{line}");
            }
        }
        for fine in
            ["ETag: x", "Server-Timing: a;dur=1", "X-Checksum:", "Hostx: 1", "Xhost: \u{e9}"]
        {
            for trailers in [Trailers::OfRequest, Trailers::OfAnswer] {
                assert_eq!(read(trailers, fine), Ok(true), "{fine}");
            }
        }
        for bad in
            ["no colon", "nocolon", " ", " A: b", "A : b", ": b", "A\u{e9}: b", "A: \0", "\t"]
        {
            for trailers in [Trailers::OfRequest, Trailers::OfAnswer] {
                assert_eq!(read(trailers, bad), Err(HttpError::BadTrailer), "{bad:?}");
            }
        }
    }

    #[test]
    fn huge_sizes_and_lines_are_refused() {
        check_chunked(b"fffffffffffffff\r\nx", 18, "more"); // Just below 2^60.
        check_chunked(b"1000000000000000\r\nx", 0, "failed");
        check_chunked(b"ffffffffffffffff\r\nx", 0, "failed");
        check_chunked(b"10000000000000001\r\nx", 0, "failed");
        let fails = |wire: &str| {
            BodyReader::Chunked(Chunk::START, Trailers::OfRequest).scan(wire.as_bytes()).is_err()
        };
        let line_bytes_max = usize::from(CHUNK_LINE_BYTES_MAX);
        // With its CRLF a line is as long as the bound, and then by one longer.
        for (more, refused) in [(0, false), (1, true)] {
            let filler = "x".repeat(line_bytes_max - 4 + more);
            assert_eq!(fails(&format!("5;{filler}\r\n")), refused, "an extension");
            assert_eq!(fails(&format!("0\r\nA:{filler}\r\n")), refused, "a trailer");
        }
        // Many short trailers are as long as one.
        assert!(fails(&format!("0\r\n{}", "A: b\r\n".repeat(700))));
    }

    /// Payload is what is left when the framing is taken off, wherever the wire is cut.
    #[test]
    fn payload_without_its_framing() {
        let chunked = BodyReader::Chunked(Chunk::START, Trailers::OfRequest);
        for (reader, wire, want) in [
            (BodyReader::Length(5), &b"hellonext"[..], &b"hello"[..]),
            (BodyReader::Length(0), b"next", b""),
            (BodyReader::UntilEnd, b"hello", b"hello"),
            (chunked, b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\nnext", b"hello"),
            (chunked, b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\nx", b"\r\n0\r\n\r\n"),
        ] {
            for cut in 0..=wire.len() {
                let (mut reader, mut got) = (reader, Vec::<u8>::new());
                for part in [&wire[..cut], &wire[cut..]] {
                    let scanned = reader.scan_payload(part, |bytes| got.extend(bytes));
                    if scanned.expect("it is in order").1 {
                        break;
                    }
                }
                assert_eq!(got, want, "{:?} cut at {cut}", String::from_utf8_lossy(wire));
            }
        }
    }

    #[test]
    fn lengths_and_the_end_of_the_stream() {
        check(BodyReader::Length(0), b"next", 0, "done");
        check(BodyReader::Length(3), b"abcnext", 3, "done");
        check(BodyReader::Length(u64::MAX), b"abc", 3, "more");
        check(BodyReader::UntilEnd, b"abc", 3, "more");
    }

    #[test]
    fn section_6_3_how_a_body_is_framed() {
        let framing = |status: u16, headers: &str, method: &str| {
            let head = format!("HTTP/1.1 {status} X\r\n{headers}\r\n");
            let limits = HeadLimits { head_bytes_max: 999, headers_max: 9, target_bytes_max: 99 };
            match parse_response(head.as_bytes(), &limits) {
                Ok(response) => match BodyReader::new(&response, method) {
                    BodyReader::Length(length) => length.to_string(),
                    BodyReader::Chunked(..) => "chunked".into(),
                    BodyReader::UntilEnd => "until end".into(),
                },
                Err(error) => format!("{error:?}"),
            }
        };
        let five = "Content-Length: 5\r\n";
        for (status, headers, method, want) in [
            (200, five, "GET", "5"),
            (200, five, "HEAD", "0"),
            (204, five, "GET", "0"),
            (304, five, "GET", "0"),
            (101, "", "GET", "0"),
            (200, "", "GET", "until end"),
            (403, "Transfer-Encoding: chunked\r\n", "GET", "chunked"),
            (403, "Transfer-Encoding: gzip, Chunked\r\n", "GET", "chunked"),
            (403, "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "GET", "chunked"),
            (403, "Transfer-Encoding: chunked\r\n", "HEAD", "0"),
            (403, "Transfer-Encoding: gzip\r\n", "GET", "until end"),
            (403, "Transfer-Encoding: chunked, gzip\r\n", "GET", "BadLength"),
            (403, "Transfer-Encoding: chunked, chunked\r\n", "GET", "BadLength"),
            (403, "Transfer-Encoding: chunked;a=b\r\n", "GET", "BadLength"),
            (403, "Transfer-Encoding:\r\n", "GET", "BadLength"),
            (200, "Content-Length: 5\r\nContent-Length: 5\r\n", "GET", "BadLength"),
            (200, "Content-Length: 5, 5\r\n", "GET", "BadLength"),
            (200, "Content-Length: 9223372036854775807\r\n", "GET", "9223372036854775807"),
            (200, "Content-Length: 9223372036854775808\r\n", "GET", "BadLength"),
            (200, "Content-Length: 18446744073709551615\r\n", "HEAD", "BadLength"),
            (200, "Content-Length: 18446744073709551616\r\n", "GET", "BadLength"),
            (200, "Content-Length: 05\r\n", "GET", "BadLength"),
            (304, "Content-Length: 05\r\n", "GET", "BadLength"),
        ] {
            assert_eq!(framing(status, headers, method), want, "{status} {headers:?} {method}");
        }
    }
}
