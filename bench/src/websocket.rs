//! The WebSocket client's side of RFC 6455, as bytes and values: no sockets, no clock.
//!
//! It shares no code with the gateway on purpose. A mistake that both made alike would be
//! invisible to every measurement and test made with this tool.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

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

/// Appends the opening handshake.
pub(crate) fn encode_request(out: &mut Vec<u8>, host: &str, path: &str, key: &str) {
    out.extend_from_slice(
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        .as_bytes(),
    );
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

/// Reads the answer to an opening handshake and holds it against §4.1. `None`: more has to arrive.
/// Otherwise the length of the head; the first frame may follow right behind.
pub(crate) fn decode_response(buf: &[u8], accept: &str) -> Result<Option<usize>, String> {
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
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "upgrade" => upgrade = value.eq_ignore_ascii_case("websocket"),
            "connection" => {
                connection |= value.split(',').any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
            }
            "sec-websocket-accept" => accepted = value == accept,
            // Nothing was offered, so nothing may be agreed to.
            "sec-websocket-extensions" | "sec-websocket-protocol" if !value.is_empty() => {
                return Err(format!("{name} was not offered"));
            }
            _ => {}
        }
    }
    match (upgrade, connection, accepted) {
        (false, ..) => Err("no Upgrade: websocket".into()),
        (_, false, _) => Err("no Connection: Upgrade".into()),
        (.., false) => Err("wrong Sec-WebSocket-Accept".into()),
        _ => Ok(Some(end + 4)),
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

/// Takes the frame at the front of `buf` and says how long it is. `None`: more has to arrive.
pub(crate) fn decode_frame(buf: &[u8]) -> Result<Option<(Frame<'_>, usize)>, String> {
    let &[first, second, ref rest @ ..] = buf else { return Ok(None) };
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
    if first & 0x70 != 0 {
        return Err("reserved bit set without an extension (RFC 6455 §5.2)".into());
    }
    if second & 0x80 != 0 {
        return Err("masked frame from the server (RFC 6455 §5.1)".into());
    }
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(format!("reserved opcode {opcode} (RFC 6455 §5.2)"));
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

    #[test]
    fn a_response_is_read_once_it_is_whole() {
        let wire = format!("{RESPONSE}\u{1}\u{0}");
        for cut in 0..=wire.len() {
            let want = (cut >= RESPONSE.len()).then_some(RESPONSE.len());
            assert_eq!(decode_response(&wire.as_bytes()[..cut], "right"), Ok(want), "cut at {cut}");
        }
    }

    #[test]
    fn a_wrong_response_is_refused() {
        let check = |from: &str, to: &str, want: &str| {
            let wire = RESPONSE.replace(from, to);
            assert_ne!(wire, RESPONSE);
            let error = decode_response(wire.as_bytes(), "right").unwrap_err();
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
        assert!(decode_response(&endless, "right").is_err());
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
