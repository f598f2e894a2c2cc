//! Frame headers (RFC 6455 §5.2): their bytes, and whether one is allowed where it stands.

use super::close::encode_close_payload;
use super::mask::apply_mask;
use super::{Limits, MessageKind, ProtocolError};

/// The kind of a frame (RFC 6455 §5.2). Reserved numbers do not exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The next part of a fragmented message.
    Continuation = 0x0,
    /// A text message, or its first part.
    Text = 0x1,
    /// A binary message, or its first part.
    Binary = 0x2,
    /// The sender will send nothing more.
    Close = 0x8,
    /// Asks for a Pong with the same payload.
    Ping = 0x9,
    /// The answer to a Ping, or a sign of life.
    Pong = 0xA,
}

impl Opcode {
    /// Whether this is a control frame: never fragmented, 125 bytes at most (§5.5).
    pub fn is_control(self) -> bool {
        self as u8 >= 0x8
    }
}

/// The most that a header can take: 2 bytes, a 64-bit length, a mask key.
pub const FRAME_HEADER_BYTES_MAX: usize = 14;

/// The most that a control frame can carry (§5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// The largest payload whose length fits the second byte of a header (§5.2).
pub const SHORT_BYTES_MAX: usize = 125;

/// A frame header that is well-formed by itself. Whether it may stand where it stands is for
/// [`Sequence::admit`] to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The last frame of its message.
    pub fin: bool,
    /// The first reserved bit: "this message is compressed", where that was agreed (RFC 7692 §6).
    pub rsv1: bool,
    /// The kind of the frame.
    pub opcode: Opcode,
    /// The key that the payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Length of the payload. `payload_bytes < 2^63`
    pub payload_bytes: u64,
    /// Length of this header. `2 <= header_bytes <= FRAME_HEADER_BYTES_MAX`
    pub header_bytes: usize,
}

/// Decodes the frame header at the front of `buf` (RFC 6455 §5.2).
///
/// `None`: `buf` ends inside the header; call again when more has arrived. A header that is already
/// wrong in the bytes that are here fails at once.
pub fn decode_header(buf: &[u8]) -> Result<Option<Header>, ProtocolError> {
    let Some(&first) = buf.first() else { return Ok(None) };
    if first & 0x30 != 0 {
        return Err(ProtocolError::ReservedBits);
    }
    let opcode = match first & 0x0F {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xA => Opcode::Pong,
        reserved => return Err(ProtocolError::ReservedOpcode(reserved)),
    };
    let fin = first & 0x80 != 0;
    if opcode.is_control() && !fin {
        return Err(ProtocolError::ControlFragmented);
    }
    let Some(&second) = buf.get(1) else { return Ok(None) };
    let short = second & 0x7F;
    if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
        return Err(ProtocolError::ControlTooLong);
    }
    // A Close says nothing, or it begins with a code of two bytes (§5.5.1).
    if opcode == Opcode::Close && short == 1 {
        return Err(ProtocolError::ClosePayloadOfOneByte);
    }
    let (payload_bytes, length_end) = match short {
        126 => {
            let Some(length) = buf.get(2..4) else { return Ok(None) };
            let length = u16::from_be_bytes(length.try_into().expect("two bytes"));
            if length < 126 {
                return Err(ProtocolError::LengthNotMinimal);
            }
            (u64::from(length), 4)
        }
        127 => {
            // The sign bit is in the first of the eight bytes; no reason to wait for the others.
            if buf.get(2).is_some_and(|high| high & 0x80 != 0) {
                return Err(ProtocolError::LengthTopBit);
            }
            let Some(length) = buf.get(2..10) else { return Ok(None) };
            let length = u64::from_be_bytes(length.try_into().expect("eight bytes"));
            if length <= 0xFFFF {
                return Err(ProtocolError::LengthNotMinimal);
            }
            (length, 10)
        }
        short => (u64::from(short), 2),
    };
    let (mask, header_bytes) = if second & 0x80 != 0 {
        let Some(key) = buf.get(length_end..length_end + 4) else { return Ok(None) };
        (Some(key.try_into().expect("four bytes")), length_end + 4)
    } else {
        (None, length_end)
    };
    Ok(Some(Header { fin, rsv1: first & 0x40 != 0, opcode, mask, payload_bytes, header_bytes }))
}

/// Which way the frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a WebSocket client to a server: every frame is masked (§5.1).
    ClientToUpstream,
    /// From a server to a client: no frame is masked (§5.1).
    UpstreamToClient,
}

/// The message that the frames of one direction are in the middle of, if any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence {
    open: Option<MessageKind>,
    /// Payload of all its frames so far, as their headers declare it: seven bytes, the lowest first, for
    /// there is one of these in every connection. What would be more stays at the most, which takes a
    /// line of 100 Gbit/s two months, and is only seen where that much is allowed.
    message_bytes: [u8; 7],
}

impl Sequence {
    /// Whether no fragmented message has begun.
    pub fn is_between_messages(&self) -> bool {
        self.open.is_none()
    }

    /// Payload of the frames of a message that has begun; 0 between messages.
    pub fn message_bytes(&self) -> u64 {
        let [a, b, c, d, e, f, g] = self.message_bytes;
        u64::from_le_bytes([a, b, c, d, e, f, g, 0])
    }

    /// The one place that decides whether a header is allowed here: mask, RSV1, the rules of
    /// fragmentation (§5.4), the size of a client's frame and of the message, before a byte of it is stored.
    ///
    /// Answers the kind of message that a data frame belongs to; `None` for a control frame, which
    /// may stand between the frames of a message.
    pub fn admit(
        &mut self,
        header: &Header,
        direction: Direction,
        rsv1_allowed: bool,
        limits: &Limits,
    ) -> Result<Option<MessageKind>, ProtocolError> {
        match direction {
            Direction::ClientToUpstream if header.mask.is_none() => {
                return Err(ProtocolError::ClientUnmasked);
            }
            Direction::UpstreamToClient if header.mask.is_some() => {
                return Err(ProtocolError::ServerMasked);
            }
            Direction::ClientToUpstream if header.payload_bytes > limits.frame_bytes_max as u64 => {
                return Err(ProtocolError::FrameTooBig);
            }
            _ => {}
        }
        // Compression is a property of a message: the first frame says so for all (RFC 7692 §6.1).
        let may_be_compressed = matches!(header.opcode, Opcode::Text | Opcode::Binary);
        if header.rsv1 && !(rsv1_allowed && may_be_compressed) {
            return Err(ProtocolError::ReservedBits);
        }
        let kind = match (header.opcode, self.open) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(None),
            (Opcode::Continuation, None) => return Err(ProtocolError::ContinuationOfNothing),
            (Opcode::Continuation, Some(kind)) => kind,
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::MessageInterrupted);
            }
            (Opcode::Text, None) => MessageKind::Text,
            (Opcode::Binary, None) => MessageKind::Binary,
        };
        let message_bytes = self.message_bytes().saturating_add(header.payload_bytes);
        if message_bytes > limits.message_bytes_max as u64 {
            return Err(ProtocolError::MessageTooBig);
        }
        if header.fin {
            *self = Sequence::default();
        } else {
            let [a, b, c, d, e, f, g, _] = message_bytes.min((1 << 56) - 1).to_le_bytes();
            *self = Sequence { open: Some(kind), message_bytes: [a, b, c, d, e, f, g] };
        }
        Ok(Some(kind))
    }
}

/// Appends the header of an unfragmented frame from the server, which is never masked (§5.1).
pub fn encode_server_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    out.push(0x80 | opcode as u8);
    match payload_bytes {
        0..=125 => out.push(payload_bytes as u8),
        126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// The payload of a whole frame that [`encode_server_header`] began, in bytes.
pub fn server_payload_bytes(frame: &[u8]) -> usize {
    let header = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.len().saturating_sub(header)
}

/// Appends a Close frame from the server. [`encode_close_payload`] says what becomes of a code that
/// may not be sent and of a reason that is too long.
pub fn encode_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let mut payload = [0; CONTROL_BYTES_MAX];
    let length = encode_close_payload(&mut payload, code, reason);
    encode_server_header(out, Opcode::Close, length);
    out.extend_from_slice(&payload[..length]);
}

/// Appends a Close frame toward an upstream, where we are the client: masked with `key`, which has
/// to be unpredictable (§10.3).
pub fn encode_client_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str, key: [u8; 4]) {
    let mut payload = [0; CONTROL_BYTES_MAX];
    let length = encode_close_payload(&mut payload, code, reason);
    encode_client_control(out, Opcode::Close, &mut payload[..length], key);
}

/// Appends a Ping from the server.
pub fn encode_ping(out: &mut Vec<u8>, payload: &[u8; 8]) {
    encode_server_header(out, Opcode::Ping, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a Ping toward an upstream, masked with `key` as [`encode_client_close`] is.
pub fn encode_client_ping(out: &mut Vec<u8>, mut payload: [u8; 8], key: [u8; 4]) {
    encode_client_control(out, Opcode::Ping, &mut payload, key);
}

/// `payload` has 125 bytes at most.
fn encode_client_control(out: &mut Vec<u8>, opcode: Opcode, payload: &mut [u8], key: [u8; 4]) {
    apply_mask(payload, key, 0);
    out.extend_from_slice(&[0x80 | opcode as u8, 0x80 | payload.len() as u8]);
    out.extend_from_slice(&key);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `bytes` from every length of prefix: nothing until it is whole, then the same.
    #[track_caller]
    fn check(bytes: &[u8], want: Header) {
        assert_eq!(want.header_bytes, bytes.len());
        for end in 0..bytes.len() {
            assert_eq!(decode_header(&bytes[..end]), Ok(None), "{end} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(b"payload");
        assert_eq!(decode_header(bytes), Ok(Some(want)));
        assert_eq!(decode_header(&longer), Ok(Some(want)));
    }

    /// Fails with its `enough`-th byte and not before.
    #[track_caller]
    fn check_error(bytes: &[u8], enough: usize, want: ProtocolError) {
        assert_eq!(decode_header(&bytes[..enough - 1]), Ok(None));
        for end in enough..=bytes.len() {
            assert_eq!(decode_header(&bytes[..end]), Err(want), "{end} bytes");
        }
    }

    fn header(opcode: Opcode, payload_bytes: u64, header_bytes: usize) -> Header {
        Header { fin: true, rsv1: false, opcode, mask: None, payload_bytes, header_bytes }
    }

    #[test]
    fn a_frame_of_ours_tells_its_payload() {
        for bytes in [0, 1, 125, 126, 0xFFFF, 0x1_0000] {
            let mut frame = Vec::new();
            encode_server_header(&mut frame, Opcode::Text, bytes);
            frame.resize(frame.len() + bytes, 0);
            assert_eq!(server_payload_bytes(&frame), bytes);
        }
        assert_eq!(server_payload_bytes(&[]), 0);
    }

    #[test]
    fn section_5_7_examples() {
        check(b"\x81\x05", header(Opcode::Text, 5, 2));
        let mask = Some([0x37, 0xfa, 0x21, 0x3d]);
        check(b"\x81\x85\x37\xfa\x21\x3d", Header { mask, ..header(Opcode::Text, 5, 6) });
        check(b"\x01\x03", Header { fin: false, ..header(Opcode::Text, 3, 2) });
        check(b"\x80\x02", header(Opcode::Continuation, 2, 2));
        check(b"\x89\x05", header(Opcode::Ping, 5, 2));
        check(b"\x82\x7e\x01\x00", header(Opcode::Binary, 256, 4));
        check(b"\x82\x7f\0\0\0\0\0\x01\0\0", header(Opcode::Binary, 65536, 10));
    }

    #[test]
    fn section_5_2_lengths_are_minimal_and_63_bits() {
        check(b"\x82\x7e\x00\x7e", header(Opcode::Binary, 126, 4));
        check(b"\x82\x7e\xff\xff", header(Opcode::Binary, 0xFFFF, 4));
        check(
            b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
            header(Opcode::Binary, (1 << 63) - 1, 10),
        );
        check_error(b"\x82\x7e\x00\x7d", 4, ProtocolError::LengthNotMinimal);
        check_error(b"\x82\x7f\0\0\0\0\0\0\xff\xff", 10, ProtocolError::LengthNotMinimal);
        check_error(b"\x82\x7f\x80\0\0\0\0\0\0\0", 3, ProtocolError::LengthTopBit);
    }

    #[test]
    fn section_5_2_reserved() {
        check_error(b"\xa1\x00", 1, ProtocolError::ReservedBits);
        check_error(b"\x91\x00", 1, ProtocolError::ReservedBits);
        for opcode in (0x3..=0x7).chain(0xB..=0xF) {
            check_error(&[0x80 | opcode, 0], 1, ProtocolError::ReservedOpcode(opcode));
        }
    }

    #[test]
    fn section_5_5_control_frames() {
        check(b"\x8a\x7d", header(Opcode::Pong, 125, 2));
        check_error(b"\x09\x00", 1, ProtocolError::ControlFragmented);
        check_error(b"\x89\x7e\x00\x7e", 2, ProtocolError::ControlTooLong);
        check_error(b"\x88\x01", 2, ProtocolError::ClosePayloadOfOneByte);
    }

    #[test]
    fn server_headers_decode_to_what_was_asked() {
        for bytes in [0usize, 1, 125, 126, 127, 0xFFFF, 0x1_0000, 1 << 20] {
            let mut out = Vec::new();
            encode_server_header(&mut out, Opcode::Binary, bytes);
            check(&out, header(Opcode::Binary, bytes as u64, out.len()));
        }
    }

    #[test]
    fn close_frames_of_both_roles() {
        let mut out = Vec::new();
        encode_close(&mut out, Some(1001), "bye");
        assert_eq!(out, b"\x88\x05\x03\xe9bye");
        out.clear();
        encode_close(&mut out, None, "not sent without a code");
        assert_eq!(out, b"\x88\x00");
        out.clear();
        encode_client_close(&mut out, Some(1001), "bye", *b"\x01\x02\x03\x04");
        assert_eq!(out, b"\x88\x85\x01\x02\x03\x04\x02\xeb\x61\x7d\x64");
    }

    #[test]
    fn pings_of_both_roles() {
        let mut out = Vec::new();
        encode_ping(&mut out, b"abcdefgh");
        assert_eq!(out, b"\x89\x08abcdefgh");
        out.clear();
        encode_client_ping(&mut out, *b"abcdefgh", *b"\x01\x02\x03\x04");
        assert_eq!(out, b"\x89\x88\x01\x02\x03\x04\x60\x60\x60\x60\x64\x64\x64\x6c");
    }
}
