//! The WebSocket protocol (RFC 6455) between bytes and messages. No I/O, no clock.
//!
//! Read `frame.rs` first: a header, and the rules for where one may stand. [`Decoder`] here turns
//! the bytes of a client into messages; `scan.rs` reads headers only, for a relay. `mask.rs`,
//! `utf8.rs` and `close.rs` are what their names say.

pub mod close;
pub mod frame;
pub mod mask;
pub mod scan;
pub mod utf8;

use std::fmt;
use std::ops::Range;

use crate::metrics::Cause;
use crate::spares::Spares;
use close::{CloseFrame, decode_close};
use frame::{Direction, Header, Opcode, SHORT_BYTES_MAX, Sequence, decode_header};
use mask::apply_mask;
use utf8::Utf8;

/// Reads the frames of a client whose connection ends here.
///
/// A frame that lies whole in the received bytes is unmasked and handed out where it is. Only what
/// spans two buffers or two frames is copied, once, into the assembly:
///
/// ```text
///   | message so far: frames of a fragmented message | control frame that was cut |
///   0                                       message_bytes                  assembly.len()
/// ```
///
/// The assembly comes out of the shard's spares and goes back when it is empty, so a connection
/// between messages owns nothing on the heap.
#[derive(Debug, Default)]
pub struct Decoder {
    assembly: Vec<u8>,
    /// `message_bytes <= assembly.len()`. In 32 bits, as the lengths that are admitted.
    message_bytes: u32,
    step: Step,
    sequence: Sequence,
    utf8: Utf8,
}

/// What a [`Decoder`] accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest message, all its frames together. More than 4 GiB is never accepted.
    pub message_bytes_max: usize,
    /// The largest payload of one frame of a client. No less than a control frame has (125).
    pub frame_bytes_max: usize,
}

/// The two kinds of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8, and checked to be.
    Text,
    /// Any bytes.
    Binary,
}

/// An event of the stream: a message, a control frame, a Close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// All of it, unmasked; UTF-8 when it is text.
        payload: &'a [u8],
    },
    /// To be answered with a Pong that carries the same bytes (§5.5.3).
    Ping(&'a [u8]),
    /// An answer to a Ping, or a sign of life.
    Pong(&'a [u8]),
    /// The client will send nothing more; what it sends all the same is discarded.
    Close(Option<CloseFrame<'a>>),
}

/// Where the decoder stands.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Between frames, with the beginning of a header that was cut.
    Header { bytes: [u8; 13], count: u8 },
    /// In the payload of an admitted frame.
    /// `left` has 32 bits, as longer ones are not admitted (`Sequence::admit`).
    Payload { left: u32, mask: [u8; 4], phase: u8, fin: bool, belongs_to: Frame },
    /// A Close frame has been read.
    Closed,
    /// A rule was broken (§7.1.7).
    Failed(ProtocolError),
}

/// What the payload in hand belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Data(MessageKind),
    Control(Control),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Close,
    Ping,
    Pong,
}

impl Default for Step {
    fn default() -> Step {
        Step::Header { bytes: [0; 13], count: 0 }
    }
}

/// A frame that ended an event, and where its payload lies.
struct Found {
    what: Frame,
    place: Place,
}

enum Place {
    Buffer(Range<usize>),
    Assembly(Range<usize>),
}

impl Decoder {
    /// Reads on from `buffer[*consumed..]`, unmasking in place.
    ///
    /// `None`: everything is consumed, and the buffer can go home. After an `Err` the same error is
    /// all that comes.
    pub fn next<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
        consumed: &mut usize,
        limits: &Limits,
        spares: &mut Spares,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        self.drop_last_event(spares);
        if let Some((kind, range)) = self.next_small(buffer, consumed, limits) {
            return Ok(Some(Event::Message { kind, payload: &buffer[range] }));
        }
        let found = match self.advance(buffer, consumed, limits, spares) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.fail(error, buffer, consumed)),
        };
        let payload = match found.place {
            Place::Buffer(range) => &buffer[range],
            Place::Assembly(range) => &self.assembly[range],
        };
        Ok(Some(match found.what {
            Frame::Data(kind) => Event::Message { kind, payload },
            Frame::Control(Control::Ping) => Event::Ping(payload),
            Frame::Control(Control::Pong) => Event::Pong(payload),
            Frame::Control(Control::Close) => match decode_close(payload) {
                Ok(close) => {
                    self.step = Step::Closed;
                    Event::Close(close)
                }
                Err(error) => {
                    self.step = Step::Failed(error);
                    *consumed = buffer.len();
                    return Err(error);
                }
            },
        }))
    }

    /// Bytes that this connection's assembly takes, for the memory ledger.
    pub fn assembly_bytes(&self) -> usize {
        self.assembly.capacity()
    }

    /// Bytes here of a message that is not complete.
    pub fn partial_bytes(&self) -> usize {
        self.message_bytes as usize
    }

    /// Gives the assembly back. For a connection that closes: the decoder reads no more.
    pub fn release(&mut self, spares: &mut Spares) {
        spares.give(std::mem::take(&mut self.assembly));
        self.message_bytes = 0;
        if !matches!(self.step, Step::Failed(_)) {
            self.step = Step::Closed;
        }
    }

    /// What the last event borrowed is no longer needed: a control frame behind the message, or
    /// the message itself, for which `message_bytes` is zero by now.
    fn drop_last_event(&mut self, spares: &mut Spares) {
        let between_frames = matches!(self.step, Step::Header { .. });
        if between_frames || matches!(self.step, Step::Closed) {
            self.assembly.truncate(self.message_bytes as usize);
            if self.assembly.is_empty() && self.assembly.capacity() > 0 {
                spares.give(std::mem::take(&mut self.assembly));
            }
        }
    }

    fn fail(&mut self, error: ProtocolError, buffer: &[u8], consumed: &mut usize) -> ProtocolError {
        self.step = Step::Failed(error);
        *consumed = buffer.len();
        error
    }

    /// Reads frame after frame until one completes an event. Each turn of the loop consumes a
    /// header or reaches the end of the buffer.
    /// What nearly everybody sends: a message in one frame of at most 125 bytes, all of it here. For
    /// anything else nothing happens, and `advance`, which reads these too, has the word; the tests
    /// cut every wire, so that both read it.
    fn next_small(
        &mut self,
        buffer: &mut [u8],
        consumed: &mut usize,
        limits: &Limits,
    ) -> Option<(MessageKind, Range<usize>)> {
        let between_frames = matches!(self.step, Step::Header { count: 0, .. });
        if !between_frames || !self.sequence.is_between_messages() {
            return None;
        }
        let (header, rest) = buffer.get_mut(*consumed..)?.split_at_mut_checked(6)?;
        let kind = match header[0] {
            0x81 => MessageKind::Text,
            0x82 => MessageKind::Binary,
            _ => return None,
        };
        let len = usize::from(header[1].checked_sub(0x80)?);
        if len > SHORT_BYTES_MAX || len > limits.message_bytes_max {
            return None;
        }
        let payload = rest.get_mut(..len)?;
        let mask = [header[2], header[3], header[4], header[5]];
        apply_mask(payload, mask, 0);
        if kind == MessageKind::Text && simdutf8::basic::from_utf8(payload).is_err() {
            apply_mask(payload, mask, 0); // As it was: `advance` says what is wrong.
            return None;
        }
        let start = *consumed + 6;
        *consumed = start + len;
        Some((kind, start..start + len))
    }

    fn advance(
        &mut self,
        buffer: &mut [u8],
        consumed: &mut usize,
        limits: &Limits,
        spares: &mut Spares,
    ) -> Result<Option<Found>, ProtocolError> {
        loop {
            match self.step {
                Step::Failed(error) => return Err(error),
                Step::Closed => {
                    *consumed = buffer.len(); // Nothing after a Close counts (§5.5.1).
                    return Ok(None);
                }
                Step::Header { mut bytes, count } => {
                    let held = usize::from(count);
                    let Some(header) = next_header(&mut bytes, held, buffer, consumed)? else {
                        let count = (held + (buffer.len() - *consumed)) as u8;
                        *consumed = buffer.len();
                        self.step = Step::Header { bytes, count };
                        return Ok(None);
                    };
                    self.start_frame(&header, limits)?;
                }
                Step::Payload { left, mask, phase, fin, belongs_to } => {
                    let start = *consumed;
                    let here = (left as usize).min(buffer.len() - start);
                    let end = start + here;
                    *consumed = end;
                    let part = &mut buffer[start..end];
                    apply_mask(part, mask, usize::from(phase));
                    if belongs_to == Frame::Data(MessageKind::Text) {
                        self.utf8.push(part).map_err(|_| ProtocolError::TextNotUtf8)?;
                    }
                    let left = left - here as u32;
                    let phase = (usize::from(phase) + here) as u8 % 4;
                    self.step = Step::Payload { left, mask, phase, fin, belongs_to };
                    let range = if left == 0 && self.is_whole_in_buffer(belongs_to, fin) {
                        Place::Buffer(start..end)
                    } else {
                        let begin = match belongs_to {
                            Frame::Data(_) => 0,
                            Frame::Control(_) => self.message_bytes as usize,
                        };
                        self.assemble(&buffer[start..end], belongs_to, limits, spares);
                        Place::Assembly(begin..self.assembly.len())
                    };
                    if left > 0 {
                        return Ok(None);
                    }
                    self.step = Step::default();
                    if !fin {
                        continue;
                    }
                    if let Frame::Data(_) = belongs_to {
                        self.message_bytes = 0;
                        if !std::mem::take(&mut self.utf8).is_complete() {
                            return Err(ProtocolError::TextNotUtf8);
                        }
                    }
                    return Ok(Some(Found { what: belongs_to, place: range }));
                }
            }
        }
    }

    fn start_frame(&mut self, header: &Header, limits: &Limits) -> Result<(), ProtocolError> {
        let kind = self.sequence.admit(header, Direction::ClientToUpstream, false, limits)?;
        let belongs_to = match (kind, header.opcode) {
            (Some(kind), _) => Frame::Data(kind),
            (None, Opcode::Close) => Frame::Control(Control::Close),
            (None, Opcode::Ping) => Frame::Control(Control::Ping),
            (None, _) => Frame::Control(Control::Pong),
        };
        self.step = Step::Payload {
            left: u32::try_from(header.payload_bytes).expect("`admit` refuses longer ones"),
            mask: header.mask.expect("`admit` refuses a client's frame without one"),
            phase: 0,
            fin: header.fin,
            belongs_to,
        };
        Ok(())
    }

    /// Whether the frame that ends here can be handed out in place: nothing of it was copied.
    fn is_whole_in_buffer(&self, belongs_to: Frame, fin: bool) -> bool {
        match belongs_to {
            Frame::Data(_) => fin && self.assembly.is_empty(),
            Frame::Control(_) => self.assembly.len() == self.message_bytes as usize,
        }
    }

    /// Copies what must outlive the buffer. The assembly grows with what has arrived, doubling,
    /// and never by a length that was only declared, nor beyond what it can ever have to hold.
    fn assemble(&mut self, part: &[u8], belongs_to: Frame, limits: &Limits, spares: &mut Spares) {
        if part.is_empty() {
            return;
        }
        if self.assembly.capacity() == 0 {
            self.assembly = spares.take(part.len());
        }
        let (length, capacity) = (self.assembly.len(), self.assembly.capacity());
        let needed = length + part.len();
        if needed > capacity {
            // A message, and a control frame that was cut behind it.
            let bytes_max = limits.message_bytes_max.saturating_add(frame::CONTROL_BYTES_MAX);
            let wanted = capacity.saturating_mul(2).min(bytes_max).max(needed);
            self.assembly.reserve_exact(wanted - length);
        }
        self.assembly.extend_from_slice(part);
        if let Frame::Data(_) = belongs_to {
            self.message_bytes = self.assembly.len() as u32;
        }
    }
}

/// The next header, of which the first `held` bytes came in an earlier buffer. `None`: it is still
/// not whole, and `bytes` holds all there is of it.
fn next_header(
    bytes: &mut [u8; 13],
    held: usize,
    buffer: &[u8],
    consumed: &mut usize,
) -> Result<Option<Header>, ProtocolError> {
    let fresh = &buffer[*consumed..];
    if held == 0 {
        let header = decode_header(fresh)?;
        match header {
            Some(header) => *consumed += header.header_bytes,
            // A header of which 14 bytes are here is whole, so at most 13 remain.
            None => bytes[..fresh.len()].copy_from_slice(fresh),
        }
        return Ok(header);
    }
    let mut whole = [0; frame::FRAME_HEADER_BYTES_MAX];
    whole[..held].copy_from_slice(&bytes[..held]);
    let taken = fresh.len().min(whole.len() - held);
    whole[held..held + taken].copy_from_slice(&fresh[..taken]);
    let header = decode_header(&whole[..held + taken])?;
    match header {
        // It was not whole with `held` bytes, so it is longer than that.
        Some(header) => *consumed += header.header_bytes - held,
        None => bytes[..held + taken].copy_from_slice(&whole[..held + taken]),
    }
    Ok(header)
}

/// A rule that a peer broke: the list of everything that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// A reserved bit is set that no extension has given a meaning here (§5.2).
    ReservedBits,
    /// An opcode that nobody has defined (§5.2).
    ReservedOpcode(u8),
    /// A length that would have fitted a shorter form (§5.2).
    LengthNotMinimal,
    /// A 64-bit length with its top bit set (§5.2).
    LengthTopBit,
    /// A client's frame without a mask (§5.1).
    ClientUnmasked,
    /// A server's frame with a mask (§5.1).
    ServerMasked,
    /// A continuation when no message is open (§5.4).
    ContinuationOfNothing,
    /// A new message before the last frame of the one that is open (§5.4).
    MessageInterrupted,
    /// A control frame without FIN (§5.5).
    ControlFragmented,
    /// A control frame of more than 125 bytes (§5.5).
    ControlTooLong,
    /// A Close frame with half a code (§5.5.1).
    ClosePayloadOfOneByte,
    /// A Close frame with a code that may not be sent (§7.4).
    CloseCode(u16),
    /// A Close frame whose reason is not UTF-8 (§5.5.1, §8.1).
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8 (§8.1).
    TextNotUtf8,
    /// A message above the limit (§10.4).
    MessageTooBig,
    /// A client's frame above the limit (§10.4).
    FrameTooBig,
}

impl ProtocolError {
    /// What the Close frame says that answers it (§7.4.1).
    pub fn close_code(self) -> u16 {
        match self.cause() {
            Cause::BadUtf8 => 1007,
            Cause::TooBig => 1009,
            _ => 1002,
        }
    }

    /// The cause that the close is counted under.
    pub fn cause(self) -> Cause {
        match self {
            ProtocolError::CloseReasonNotUtf8 | ProtocolError::TextNotUtf8 => Cause::BadUtf8,
            ProtocolError::MessageTooBig | ProtocolError::FrameTooBig => Cause::TooBig,
            _ => Cause::ProtocolError,
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProtocolError::ReservedBits => "a reserved bit is set (RFC 6455 section 5.2)",
            ProtocolError::ReservedOpcode(opcode) => {
                return write!(f, "opcode {opcode:#x} is reserved (RFC 6455 section 5.2)");
            }
            ProtocolError::LengthNotMinimal => "length not in its shortest form (section 5.2)",
            ProtocolError::LengthTopBit => "length above 2^63 (RFC 6455 section 5.2)",
            ProtocolError::ClientUnmasked => "frame of a client without mask (section 5.1)",
            ProtocolError::ServerMasked => "frame of a server with mask (section 5.1)",
            ProtocolError::ContinuationOfNothing => "continuation of no message (section 5.4)",
            ProtocolError::MessageInterrupted => "new message inside a message (section 5.4)",
            ProtocolError::ControlFragmented => "fragmented control frame (section 5.5)",
            ProtocolError::ControlTooLong => "control frame above 125 bytes (section 5.5)",
            ProtocolError::ClosePayloadOfOneByte => "close payload of one byte (section 5.5.1)",
            ProtocolError::CloseCode(code) => {
                return write!(f, "close code {code} may not be sent (RFC 6455 section 7.4)");
            }
            ProtocolError::CloseReasonNotUtf8 => "close reason is not UTF-8 (section 5.5.1)",
            ProtocolError::TextNotUtf8 => "text is not UTF-8 (RFC 6455 section 8.1)",
            ProtocolError::MessageTooBig => "message above message_bytes_max",
            ProtocolError::FrameTooBig => "frame above frame_bytes_max",
        })
    }
}

impl std::error::Error for ProtocolError {}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 1000, frame_bytes_max: 2000 };

    /// Drains `next`, one line per event, and an error once.
    fn read(decoder: &mut Decoder, spares: &mut Spares, bytes: &[u8]) -> Vec<String> {
        let (mut buffer, mut consumed, mut lines) = (bytes.to_vec(), 0, Vec::new());
        let was_failed = matches!(decoder.step, Step::Failed(_));
        loop {
            match decoder.next(&mut buffer, &mut consumed, &LIMITS, spares) {
                Ok(Some(event)) => lines.push(line(&event)),
                Ok(None) => break,
                Err(error) => {
                    if !was_failed {
                        lines.push(format!("error {error:?} {}", error.close_code()));
                    }
                    break;
                }
            }
        }
        assert_eq!(consumed, buffer.len());
        lines
    }

    fn line(event: &Event<'_>) -> String {
        let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) if text.len() > 20 => format!("{} bytes", text.len()),
            Ok(text) => format!("'{text}'"),
            Err(_) => format!("{bytes:x?}"),
        };
        match event {
            Event::Message { kind: MessageKind::Text, payload } => {
                format!("text {}", text(payload))
            }
            Event::Message { payload, .. } => format!("binary {}", text(payload)),
            Event::Ping(payload) => format!("ping {}", text(payload)),
            Event::Pong(payload) => format!("pong {}", text(payload)),
            Event::Close(None) => "close".to_string(),
            Event::Close(Some(close)) => format!("close {} '{}'", close.code, close.reason),
        }
    }

    #[track_caller]
    fn check(wire: &[u8], want: &[&str]) {
        let mut spares = Spares::default();
        for cut in 0..=wire.len() {
            let mut decoder = Decoder::default();
            let mut got = read(&mut decoder, &mut spares, &wire[..cut]);
            got.extend(read(&mut decoder, &mut spares, &wire[cut..]));
            assert_eq!(got, want, "cut at {cut}");
        }
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for byte in wire {
            got.extend(read(&mut decoder, &mut spares, std::slice::from_ref(byte)));
        }
        got.extend(read(&mut decoder, &mut spares, b""));
        assert_eq!(got, want, "byte by byte");
        let cut_header = !matches!(decoder.step, Step::Header { count: 0, .. });
        if !cut_header && decoder.message_bytes == 0 {
            assert_eq!(decoder.assembly_bytes(), 0, "an idle decoder owns no memory");
        }
    }

    /// A client's frame, masked with a key that is not zero.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_first(&mut bytes, first, payload.len());
        let key = [0x37, 0xfa, 0x21, 0x3d];
        bytes.extend_from_slice(&key);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        apply_mask(&mut bytes[start..], key, 0);
        bytes
    }

    fn encode_first(bytes: &mut Vec<u8>, first: u8, length: usize) {
        frame::encode_server_header(bytes, Opcode::Binary, length);
        bytes[0] = first;
        bytes[1] |= 0x80;
    }

    #[test]
    fn an_idle_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 72, "{}", size_of::<Decoder>());
    }

    #[test]
    fn section_5_7_masked_hello() {
        check(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", &["text 'Hello'"]);
    }

    #[test]
    fn section_5_4_ping_between_fragments() {
        let wire = b"\x01\x82\0\0\0\0He\x89\x80\0\0\0\0\x80\x83\0\0\0\0llo";
        check(wire, &["ping ''", "text 'Hello'"]);
        let wire = [frame(0x01, b"He"), frame(0x89, b"are you?"), frame(0x80, b"llo")].concat();
        check(&wire, &["ping 'are you?'", "text 'Hello'"]);
    }

    #[test]
    fn section_5_4_empty_fragments_and_messages() {
        let wire = [frame(0x02, b""), frame(0x00, b""), frame(0x8A, b"alive"), frame(0x80, b"")];
        check(&wire.concat(), &["pong 'alive'", "binary ''"]);
        let wire = [frame(0x81, b""), frame(0x01, b""), frame(0x80, b"x"), frame(0x82, b"y")];
        check(&wire.concat(), &["text ''", "text 'x'", "binary 'y'"]);
    }

    #[test]
    fn section_5_4_order_of_fragments() {
        check(&frame(0x80, b"x"), &["error ContinuationOfNothing 1002"]);
        let wire = [frame(0x81, b"x"), frame(0x80, b"y")].concat();
        check(&wire, &["text 'x'", "error ContinuationOfNothing 1002"]);
        let wire = [frame(0x01, b"x"), frame(0x81, b"y")].concat();
        check(&wire, &["error MessageInterrupted 1002"]);
    }

    #[test]
    fn section_5_1_a_client_masks() {
        check(b"\x81\x05Hello", &["error ClientUnmasked 1002"]);
        check(b"\x89\x00", &["error ClientUnmasked 1002"]);
    }

    #[test]
    fn section_5_2_reserved_bits_without_an_extension() {
        check(&frame(0xC1, b"x"), &["error ReservedBits 1002"]);
        check(&frame(0xA1, b"x"), &["error ReservedBits 1002"]);
        check(&frame(0x83, b"x"), &["error ReservedOpcode(3) 1002"]);
    }

    #[test]
    fn section_5_5_1_close_and_nothing_after_it() {
        check(&frame(0x88, b""), &["close"]);
        let wire = [frame(0x88, b"\x03\xe8bye"), frame(0x81, b"late")].concat();
        check(&wire, &["close 1000 'bye'"]);
        check(&frame(0x88, b"\x03\xed"), &["error CloseCode(1005) 1002"]);
        check(&frame(0x88, b"\x03\xe8\xff"), &["error CloseReasonNotUtf8 1007"]);
        check(&frame(0x88, b"x"), &["error ClosePayloadOfOneByte 1002"]);
    }

    #[test]
    fn section_8_1_text_across_fragments() {
        let text = "κόσμε😀".as_bytes();
        for at in 0..=text.len() {
            let wire = [frame(0x01, &text[..at]), frame(0x80, &text[at..])].concat();
            check(&wire, &["text 'κόσμε😀'"]);
        }
        check(&frame(0x81, b"a\xff"), &["error TextNotUtf8 1007"]);
        check(&frame(0x81, &text[..text.len() - 1]), &["error TextNotUtf8 1007"]);
        check(&frame(0x82, b"a\xff"), &["binary [61, ff]"]);
    }

    #[test]
    fn section_8_1_fails_before_the_frame_is_whole() {
        let mut wire = frame(0x01, b"abc\xf4\x90 and far more to come");
        wire.truncate(6 + 5);
        check(&wire, &["error TextNotUtf8 1007"]);
    }

    #[test]
    fn sizes_are_judged_by_the_header() {
        check(&frame(0x82, &[b'x'; 1000]), &["binary 1000 bytes"]);
        let mut wire = Vec::new();
        encode_first(&mut wire, 0x82, 1001);
        wire.extend_from_slice(b"\0\0\0\0");
        check(&wire, &["error MessageTooBig 1009"]);
        // All fragments count together.
        let wire = [frame(0x02, &[b'x'; 600]), frame(0x80, &[b'x'; 401])].concat();
        check(&wire, &["error MessageTooBig 1009"]);
        let wire = [frame(0x02, &[b'x'; 600]), frame(0x80, &[b'x'; 400])].concat();
        check(&wire, &["binary 1000 bytes"]);
    }

    /// Each frame for itself, and from its header; what all of them may have is another limit.
    #[test]
    fn a_frame_has_a_limit_of_its_own() {
        let limits = Limits { message_bytes_max: 1000, frame_bytes_max: 200 };
        let mut spares = Spares::default();
        let mut next = |wire: &[u8]| {
            let (mut decoder, mut buffer) = (Decoder::default(), wire.to_vec());
            let event = decoder.next(&mut buffer, &mut 0, &limits, &mut spares);
            event.map(|event| event.map(|event| line(&event)))
        };
        let fits = frame(0x82, &[b'x'; 200]);
        assert_eq!(next(&fits), Ok(Some("binary 200 bytes".to_owned())));
        let many = [frame(0x02, &[b'x'; 200]), frame(0x80, &[b'x'; 200])].concat();
        assert_eq!(next(&many), Ok(Some("binary 400 bytes".to_owned())));
        let error = next(&frame(0x82, &[b'x'; 201])[..8]).expect_err("too big");
        assert_eq!((error, error.close_code()), (ProtocolError::FrameTooBig, 1009));
        assert_eq!(error.cause(), Cause::TooBig);
        let second = [frame(0x02, b"x"), frame(0x80, &[b'x'; 201])].concat();
        assert_eq!(next(&second), Err(ProtocolError::FrameTooBig));
    }

    #[test]
    fn a_declared_length_reserves_nothing() {
        let (mut decoder, mut spares) = (Decoder::default(), Spares::default());
        let limits = Limits { message_bytes_max: usize::MAX, frame_bytes_max: usize::MAX };
        let mut buffer = b"\x82\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\0abc".to_vec();
        let mut consumed = 0;
        assert_eq!(decoder.next(&mut buffer, &mut consumed, &limits, &mut spares), Ok(None));
        assert!((3..=64).contains(&decoder.assembly_bytes()));
        decoder.release(&mut spares);
        assert_eq!(decoder.assembly_bytes(), 0);
    }

    #[test]
    fn a_million_empty_continuations_hold_nothing() {
        let (mut decoder, mut spares) = (Decoder::default(), Spares::default());
        let mut buffer = frame(0x00, b"").repeat(1000);
        let mut start = frame(0x02, b"");
        assert_eq!(decoder.next(&mut start, &mut 0, &LIMITS, &mut spares), Ok(None));
        for _ in 0..1000 {
            assert_eq!(decoder.next(&mut buffer, &mut 0, &LIMITS, &mut spares), Ok(None));
        }
        assert_eq!(decoder.assembly_bytes(), 0);
    }

    #[test]
    fn a_whole_message_is_handed_out_in_place() {
        let (mut decoder, mut spares) = (Decoder::default(), Spares::default());
        let mut buffer = [frame(0x81, b"here"), frame(0x82, b"and here")].concat();
        let range = buffer.as_ptr_range();
        let mut consumed = 0;
        for want in [&b"here"[..], b"and here"] {
            let event = decoder.next(&mut buffer, &mut consumed, &LIMITS, &mut spares);
            let Ok(Some(Event::Message { payload, .. })) = event else { panic!("{event:?}") };
            assert_eq!(payload, want);
            assert!(range.contains(&payload.as_ptr()));
        }
    }

    #[test]
    fn the_assembly_is_never_larger_than_what_it_may_have_to_hold() {
        let limits = Limits { message_bytes_max: 150_000, frame_bytes_max: usize::MAX };
        let (mut decoder, mut spares) = (Decoder::default(), Spares::default());
        let (mut grown, mut last) = (0, 0);
        for index in 0..150_000u32 {
            let first = if index == 0 { 0x02 } else { 0x00 };
            let (mut buffer, mut consumed) = ([first, 0x81, 0, 0, 0, 0, b'x'], 0);
            let got = decoder.next(&mut buffer, &mut consumed, &limits, &mut spares);
            assert_eq!(got, Ok(None));
            grown += u32::from(decoder.assembly_bytes() != last);
            last = decoder.assembly_bytes();
        }
        assert!(last <= 150_000 + 125, "{last}");
        assert!(grown <= 18, "{grown} allocations are not amortised");
    }
}
