//! The WebSocket client's side of RFC 6455, as bytes and values: no sockets, no clock.
//!
//! It shares no code with the gateway on purpose. A mistake that both made alike would be
//! invisible to every measurement and test made with this tool.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::deflate::{self, Agreement};

/// The key of an opening handshake, 16 bytes in base64 (RFC 6455 §4.1). A load tool needs them to
/// differ, not to be secret: they follow from the number.
pub(crate) fn key(number: u64) -> String {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&scramble(number).to_be_bytes());
    nonce[8..].copy_from_slice(&scramble(!number).to_be_bytes());
    STANDARD.encode(nonce)
}

/// What a server has to answer to a key (§4.2.2, item 5.4).
pub(crate) fn accept(key: &str) -> String {
    let mut sha1 = sha1_smol::Sha1::new();
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha1.digest().bytes())
}

/// A well-mixed function of a number (the finalizer of splitmix64).
pub(crate) fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What an opening handshake asks for. Everything in it stands in the request as it is: what is in
/// `path` has passed [`is_path`], and so on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) host: &'a str,
    /// Path and query.
    pub(crate) path: &'a str,
    pub(crate) key: &'a str,
    /// As the header lists them, "a, b"; empty for none (RFC 6455 §4.1, item 10).
    pub(crate) subprotocols: &'a str,
    /// permessage-deflate is offered.
    pub(crate) deflate: bool,
    /// Further headers, "Name: value" each, as [`header`] has read them.
    pub(crate) headers: &'a [String],
}

/// Appends the opening handshake.
pub(crate) fn encode_request(out: &mut Vec<u8>, request: &Request<'_>) {
    let Request { host, path, key, subprotocols, deflate, headers } = request;
    out.extend_from_slice(
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        )
        .as_bytes(),
    );
    if !subprotocols.is_empty() {
        out.extend_from_slice(b"Sec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocols.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if *deflate {
        out.extend_from_slice(b"Sec-WebSocket-Extensions: ");
        out.extend_from_slice(deflate::OFFER.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    for header in *headers {
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a text may stand as path and query in a request line (RFC 9112 §3.2): nothing that ends
/// the line or the path, no fragment.
pub(crate) fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// Puts `suffix` behind a path and before its query. "/a" and "/b" become "/a/b", and so do "/a/"
/// and "/b"; a query of the suffix's own follows the other.
pub(crate) fn join_path(path: &str, suffix: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (suffix, own_query) = suffix.split_once('?').unwrap_or((suffix, ""));
    let path = if suffix.starts_with('/') { path.strip_suffix('/').unwrap_or(path) } else { path };
    let question = if query.is_empty() && own_query.is_empty() { "" } else { "?" };
    let and = if query.is_empty() || own_query.is_empty() { "" } else { "&" };
    format!("{path}{suffix}{question}{query}{and}{own_query}")
}

/// Whether a text is an HTTP token (RFC 9110 §5.6.2), as names of headers and subprotocols are.
pub(crate) fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

/// Reads the names of subprotocols, divided by commas, into what the header lists.
pub(crate) fn subprotocols(text: &str) -> Result<String, String> {
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    match names.iter().find(|name| !is_token(name)) {
        Some(name) => Err(format!("\"{name}\" is not the name of a subprotocol")),
        None => Ok(names.join(", ")),
    }
}

/// Reads "Name: value", a header to be sent along, into the line that stands in the request.
/// Refused are lines that would be several, and names that the handshake itself answers for.
pub(crate) fn header(text: &str) -> Result<String, String> {
    let Some((name, value)) = text.split_once(':') else {
        return Err("should be 'Name: value'".into());
    };
    if !is_token(name) {
        return Err(format!("\"{name}\" is not the name of a header"));
    }
    let lower = name.to_ascii_lowercase();
    // A body would be read as the first frames.
    let owned = ["host", "upgrade", "connection", "content-length", "transfer-encoding"];
    if owned.contains(&lower.as_str()) || lower.starts_with("sec-websocket-") {
        return Err(format!("{name} is the handshake's own"));
    }
    let value = value.trim_matches([' ', '\t']);
    // RFC 9110 §5.5; bytes above ASCII are let through, as servers do.
    if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7F) {
        return Err(format!("{name}: a control character in the value"));
    }
    Ok(format!("{name}: {value}"))
}

/// Appends a server's answer to it.
pub(crate) fn encode_upgrade(out: &mut Vec<u8>, accept: &str) {
    out.extend_from_slice(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .as_bytes(),
    );
}

/// The largest response head that is waited for.
pub(crate) const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// What was offered in an opening handshake, to hold the answer against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    /// What has to be in Sec-WebSocket-Accept.
    pub(crate) accept: &'a str,
    /// The subprotocols, as in [`Request`].
    pub(crate) subprotocols: &'a str,
    /// permessage-deflate was.
    pub(crate) deflate: bool,
}

/// An answer that accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The length of the head; the first frame may follow right behind.
    pub(crate) head_bytes: usize,
    /// What was agreed to, if it was offered and accepted.
    pub(crate) deflate: Option<Agreement>,
}

/// Reads the answer to an opening handshake and holds it against §4.1. `None`: more has to arrive.
pub(crate) fn decode_response(buf: &[u8], offer: &Offer<'_>) -> Result<Option<Answer>, String> {
    let Some(end) = buf.windows(4).position(|four| four == b"\r\n\r\n") else {
        if buf.len() > RESPONSE_BYTES_MAX {
            return Err(format!("response head above {RESPONSE_BYTES_MAX} bytes"));
        }
        return Ok(None);
    };
    let head = std::str::from_utf8(&buf[..end]).map_err(|_| "response head is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !(status.starts_with("HTTP/1.1 101 ") || status == "HTTP/1.1 101") {
        let status: String = status.chars().take(60).collect();
        return Err(format!("refused: {status}"));
    }
    let (mut upgrade, mut connection, mut accepted) = (false, false, false);
    let (mut subprotocol, mut several, mut deflate) = (None, false, None);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "upgrade" => upgrade = value.eq_ignore_ascii_case("websocket"),
            "connection" => {
                connection |= value.split(',').any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
            }
            "sec-websocket-accept" => accepted = value == offer.accept,
            "sec-websocket-protocol" if !value.is_empty() => {
                several |= subprotocol.replace(value).is_some();
            }
            // Only one was offered, so two cannot be agreed to.
            "sec-websocket-extensions" if !value.is_empty() => {
                if !offer.deflate || deflate.is_some() {
                    return Err(format!("{name} was not offered"));
                }
                deflate = Some(deflate::decode_answer(value)?);
            }
            _ => {}
        }
    }
    match (upgrade, connection, accepted) {
        (false, ..) => return Err("no Upgrade: websocket".into()),
        (_, false, _) => return Err("no Connection: Upgrade".into()),
        (.., false) => return Err("wrong Sec-WebSocket-Accept".into()),
        _ => {}
    }
    match subprotocol {
        // §11.3.4: it appears at most once in an answer.
        _ if several => Err("two subprotocols in one answer".into()),
        // Browsers end such a connection too: whoever names a subprotocol means to speak it.
        None if !offer.subprotocols.is_empty() => {
            Err(format!("none of the subprotocols {} was accepted", offer.subprotocols))
        }
        Some(name) if !offer.subprotocols.split(", ").any(|offered| offered == name) => {
            let name: String = name.chars().take(60).collect();
            Err(format!("subprotocol {name} was not offered"))
        }
        _ => Ok(Some(Answer { head_bytes: end + 4, deflate })),
    }
}

/// Opcodes that the tool tells apart (§5.2).
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) fin: bool,
    pub(crate) payload: &'a [u8],
}

/// The largest payload that is taken from a server.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 64 << 20;

/// The reserved bit that says of a message's first frame that it is compressed (RFC 7692 §6).
pub(crate) const RSV1: u8 = 0x40;

/// Takes the frame at the front of `buf` and says how long it is. `None`: more has to arrive.
pub(crate) fn decode_frame(buf: &[u8]) -> Result<Option<(Frame<'_>, usize)>, String> {
    decode_extended_frame(buf, 0)
}

/// The same, on a connection where an extension has given a meaning to some reserved bits.
pub(crate) fn decode_extended_frame(
    buf: &[u8],
    allowed: u8,
) -> Result<Option<(Frame<'_>, usize)>, String> {
    let &[first, second, ref rest @ ..] = buf else { return Ok(None) };
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
    if first & 0x70 & !allowed != 0 {
        return Err("reserved bit set without an extension (RFC 6455 §5.2)".into());
    }
    if second & 0x80 != 0 {
        return Err("masked frame from the server (RFC 6455 §5.1)".into());
    }
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(format!("reserved opcode {opcode} (RFC 6455 §5.2)"));
    }
    // RFC 7692 §6: of a message it is the first frame that says so, and control frames never do.
    if first & RSV1 != 0 && !matches!(opcode, TEXT | BINARY) {
        return Err("reserved bit set on a frame that begins no message (RFC 7692 §6)".into());
    }
    if opcode >= CLOSE && (!fin || second > 125) {
        return Err("long or fragmented control frame (RFC 6455 §5.5)".into());
    }
    let (payload_bytes, header_bytes) = match second {
        126 => match rest.first_chunk() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(format!("frame of {payload_bytes} bytes, above {PAYLOAD_BYTES_MAX}"));
    }
    let end = header_bytes + payload_bytes as usize;
    let Some(frame) = buf.get(header_bytes..end) else { return Ok(None) };
    Ok(Some((Frame { opcode, fin, payload: frame }, end)))
}

/// How long the header and the whole of the masked frame at the front of `buf` are, of frames that
/// were written here. `None`: it is not there as a whole.
pub(crate) fn frame_of_client(buf: &[u8]) -> Option<(usize, usize)> {
    let &[_, second, ref rest @ ..] = buf else { return None };
    let (payload_bytes, header_bytes) = match second & 0x7F {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 8),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), 14),
        short => (u64::from(short), 6),
    };
    let end = usize::try_from(payload_bytes).ok()?.checked_add(header_bytes)?;
    (end <= buf.len()).then_some((header_bytes, end))
}

/// Appends a whole message as one frame, masked as a client must (§5.1).
pub(crate) fn encode_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: u32) {
    out.push(0x80 | opcode);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let mask = mask.to_ne_bytes();
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask);
}

/// Masks or unmasks in place (§5.3).
pub(crate) fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001;
    let (chunks, tail) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_1_3_accept() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(STANDARD.decode(key(7)).unwrap().len(), 16);
        assert_ne!(key(7), key(8));
    }

    const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUPGRADE: WebSocket\r\n\
        connection: keep-alive, upgrade\r\nSec-WebSocket-Accept: right\r\n\r\n";

    const OFFER: Offer<'_> = Offer { accept: "right", subprotocols: "", deflate: false };

    #[test]
    fn a_request_as_it_goes_out() {
        let mut wire = Vec::new();
        let headers = [header("X-Id:  7 ").unwrap(), header("Empty:").unwrap()];
        let request = Request {
            host: "h:1",
            path: "/a?b",
            key: "k",
            subprotocols: &subprotocols("mqtt,x.v1").unwrap(),
            deflate: true,
            headers: &headers,
        };
        encode_request(&mut wire, &request);
        let want = "GET /a?b HTTP/1.1\r\nHost: h:1\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Protocol: mqtt, x.v1\r\nSec-WebSocket-Extensions: permessage-deflate; \
            client_no_context_takeover; server_no_context_takeover; client_max_window_bits\r\n\
            X-Id: 7\r\nEmpty: \r\n\r\n";
        assert_eq!(String::from_utf8(wire).unwrap(), want);
    }

    #[test]
    fn what_may_not_stand_in_a_request() {
        for text in [
            "no colon",
            ": nameless",
            "a b: c",
            "X: a\r\nY: b",
            "X: a\nb",
            "X: \0",
            "X\r\nY: b",
            "Host: other",
            "upgrade: h2c",
            "Connection: close",
            "Sec-WebSocket-Key: mine",
            "SEC-WEBSOCKET-ANYTHING: x",
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
        ] {
            assert!(header(text).is_err(), "{text:?}");
        }
        assert_eq!(header("Cookie: a=b; c=d:e").unwrap(), "Cookie: a=b; c=d:e");
        for text in ["", "a b", "a,,b", "a;b", "a\r\nb"] {
            assert!(subprotocols(text).is_err(), "{text:?}");
        }
        for text in ["", "a", "/a b", "/a\r\n", "/a#b", "/\u{e4}"] {
            assert!(!is_path(text), "{text:?}");
        }
    }

    #[test]
    fn a_suffix_goes_between_path_and_query() {
        let check = |path: &str, suffix: &str, want: &str| {
            assert_eq!(join_path(path, suffix), want);
        };
        check("/", "", "/");
        check("/a?b", "", "/a?b");
        check("/", "/sub/T", "/sub/T");
        check("/", "sub/T", "/sub/T");
        check("/a/", "/b", "/a/b");
        check("/a", "/b", "/a/b");
        check("/a?q", "/b", "/a/b?q");
        check("/a?q", "/b?r=?", "/a/b?q&r=?");
        check("/a", "?r", "/a?r");
    }

    #[test]
    fn section_4_1_the_subprotocol_is_one_that_was_offered() {
        let check = |offered: &str, answered: &str, want: Result<(), &str>| {
            let line = format!("upgrade\r\nSec-WebSocket-Protocol: {answered}");
            let wire = RESPONSE.replace("upgrade", &line);
            let offer = Offer { accept: "right", subprotocols: offered, deflate: false };
            match (decode_response(wire.as_bytes(), &offer), want) {
                (Ok(answer), Ok(())) => assert_eq!(answer.unwrap().head_bytes, wire.len()),
                (Err(error), Err(want)) => assert!(error.contains(want), "{error}"),
                (got, _) => panic!("{offered}, {answered}: {got:?}"),
            }
        };
        check("", "", Ok(()));
        check("mqtt", "mqtt", Ok(()));
        check("a, b, c", "b", Ok(()));
        check("a, b, c", "c", Ok(()));
        check("", "mqtt", Err("not offered"));
        check("mqtt", "MQTT", Err("not offered"));
        check("a, b", "a, b", Err("not offered"));
        check("mqtt", "", Err("none of the subprotocols mqtt"));
        check("a, b", "a\r\nSec-WebSocket-Protocol: b", Err("two subprotocols"));
    }

    #[test]
    fn a_response_is_read_once_it_is_whole() {
        let wire = format!("{RESPONSE}\u{1}\u{0}");
        for cut in 0..=wire.len() {
            let whole = Answer { head_bytes: RESPONSE.len(), deflate: None };
            let want = (cut >= RESPONSE.len()).then_some(whole);
            assert_eq!(decode_response(&wire.as_bytes()[..cut], &OFFER), Ok(want), "cut at {cut}");
        }
    }

    #[test]
    fn a_wrong_response_is_refused() {
        let check = |from: &str, to: &str, want: &str| {
            let wire = RESPONSE.replace(from, to);
            assert_ne!(wire, RESPONSE);
            let error = decode_response(wire.as_bytes(), &OFFER).unwrap_err();
            assert!(error.contains(want), "{error}");
        };
        check("101 Switching Protocols", "404 Not Found", "refused: HTTP/1.1 404 Not Found");
        check("1.1 101 ", "1.1 1010 ", "refused");
        check("right", "wrong", "Sec-WebSocket-Accept");
        check("WebSocket", "h2c", "no Upgrade");
        check("upgrade", "close", "no Connection");
        check("Accept: right", "Accept: right\r\nSec-WebSocket-Protocol: chat", "not offered");
        check("UPGRADE:", "UPGRADE", "colon");
        let endless = vec![b'a'; RESPONSE_BYTES_MAX + 1];
        assert!(decode_response(&endless, &OFFER).is_err());
    }

    #[test]
    fn extensions_are_agreed_to_only_when_offered() {
        let check = |deflate: bool, lines: &str, want: Result<bool, &str>| {
            let wire = RESPONSE.replace("upgrade\r\n", &format!("upgrade\r\n{lines}"));
            let offer = Offer { deflate, ..OFFER };
            match (decode_response(wire.as_bytes(), &offer), want) {
                (Ok(answer), Ok(want)) => {
                    assert_eq!(answer.unwrap().deflate.is_some(), want, "{lines}");
                }
                (Err(error), Err(want)) => assert!(error.contains(want), "{lines}: {error}"),
                (got, _) => panic!("{lines}: {got:?}"),
            }
        };
        let line = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        check(false, "", Ok(false));
        check(true, "", Ok(false));
        check(true, line, Ok(true));
        check(false, line, Err("was not offered"));
        check(true, &line.repeat(2), Err("was not offered"));
        check(true, "Sec-WebSocket-Extensions: other\r\n", Err("other was not offered"));
    }

    #[test]
    fn rfc_7692_section_6_the_bit_of_compressed_messages() {
        let frame = decode_extended_frame(b"\xC1\x00", RSV1).unwrap();
        assert_eq!(frame, Some((Frame { opcode: TEXT, fin: true, payload: b"" }, 2)));
        for wire in [b"\xC0\x00", b"\xC9\x00", b"\xC8\x00", b"\xA1\x00", b"\x91\x00"] {
            let error = decode_extended_frame(wire, RSV1).unwrap_err();
            assert!(error.contains("reserved bit"), "{error}");
        }
    }

    #[test]
    fn section_5_2_frames_of_every_length_form() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload: Vec<u8> = (0..len).map(|i| scramble(i) as u8).collect();
            let mut masked = Vec::new();
            encode_frame(&mut masked, BINARY, &payload, 0xDEAD_BEEF);
            let header = masked.len() - payload.len() - 4;
            // The frame as a server would send it back.
            let mut wire = masked[..header].to_vec();
            wire[1] &= 0x7F;
            let mut body = masked[header + 4..].to_vec();
            assert!(len < 8 || body != payload, "not masked");
            // The naive twin of `apply_mask`.
            for (i, byte) in body.iter_mut().enumerate() {
                *byte ^= masked[header + i % 4];
            }
            wire.extend_from_slice(&body);
            let cuts = (0..header.min(20)).chain([wire.len() - 1]);
            for cut in cuts.filter(|cut| *cut < wire.len()) {
                assert_eq!(decode_frame(&wire[..cut]), Ok(None), "cut at {cut} of {len}");
            }
            let want = Frame { opcode: BINARY, fin: true, payload: &payload };
            assert_eq!(decode_frame(&wire), Ok(Some((want, wire.len()))));
        }
    }

    #[test]
    fn section_5_mistakes_of_a_server() {
        let check = |wire: &[u8], want: &str| {
            let error = decode_frame(wire).unwrap_err();
            assert!(error.contains(want), "{error}");
        };
        check(b"\x81\x80\0\0\0\0", "masked");
        check(b"\xC1\x00", "reserved bit");
        check(b"\x83\x00", "reserved opcode 3");
        check(b"\x09\x00", "control frame");
        check(b"\x89\x7E", "control frame");
        check(b"\x82\x7F\x80\0\0\0\0\0\0\0", "above");
    }
}
