//! One direction of a relay, read by its frame headers alone.
//!
//! Payload passes as it is, masked or not, and is neither touched nor copied. What the caller may
//! send on is always a prefix of what came, and ends before the first header that breaks a rule.
//!
//! The payload of a Close frame is the exception: it is read (RFC 6455 §5.5.1, §7.4), and nothing of
//! the frame is sent on before it is here as a whole and known to be allowed. Cut over buffers, its
//! 131 bytes at most are kept on the heap meanwhile.

use std::mem;
use std::ops::Deref;

use super::close::decode_close;
pub use super::frame::Direction;
use super::frame::{Header, Opcode, SHORT_BYTES_MAX, Sequence, decode_header};
use super::mask::apply_mask;
use super::{Limits, ProtocolError, next_header};

/// Reads the headers of one direction.
#[derive(Debug)]
pub struct Scanner {
    step: Step,
    sequence: Sequence,
    direction: Direction,
    rsv1_allowed: bool,
}

/// What is to be done with the bytes that were scanned.
#[derive(Debug)]
pub struct Scanned {
    /// To be forwarded first: the beginning of a header, or of a Close frame, that an earlier buffer
    /// ended with.
    pub carried: Carried,
    /// Then this many bytes of the front of the buffer. The rest is kept by the scanner (a header, or
    /// a Close frame, that is not whole) or is not to be forwarded at all.
    pub forward: usize,
    /// So many bytes at the end of the buffer are not to be forwarded: they begin with what breaks a
    /// rule, or follow the last that this side may say.
    pub dropped: usize,
    /// Data messages whose last byte is among those forwarded.
    pub messages: u32,
    /// Something of a data frame is among those forwarded.
    pub data: bool,
    /// Pings whose header is among them.
    pub pings: u32,
    /// Pongs whose header is among them.
    pub pongs: u32,
    /// A whole Close frame is among those forwarded, with this code. Nothing follows it.
    pub close: Option<Option<u16>>,
    /// The rule that the next frame breaks. Nothing of it, or after it, is forwarded.
    pub error: Option<ProtocolError>,
}

/// The beginning of what an earlier buffer ended with. Dereferences to its bytes.
#[derive(Debug)]
pub enum Carried {
    /// Of a header, or nothing.
    Header(CutHeader),
    /// Of a Close frame.
    Close(Box<CutClose>),
}

impl Deref for Carried {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Carried::Header(cut) => &cut.bytes[..usize::from(cut.count)],
            Carried::Close(cut) => &cut.bytes[..usize::from(cut.count)],
        }
    }
}

/// At most 13 bytes of a header.
#[derive(Clone, Copy, Debug, Default)]
pub struct CutHeader {
    bytes: [u8; 13],
    count: u8,
}

/// The longest Close frame: header, mask, payload (RFC 6455 §5.5).
const CLOSE_FRAME_BYTES_MAX: usize = 2 + 4 + SHORT_BYTES_MAX;

/// The beginning of a Close frame whose header is whole.
#[derive(Debug)]
pub struct CutClose {
    bytes: [u8; CLOSE_FRAME_BYTES_MAX],
    /// Bytes that are here.
    count: u8,
    header: Header,
}

#[derive(Debug)]
enum Step {
    Header(CutHeader),
    /// `left` bytes of the payload of a Ping, a Pong or a data frame.
    Payload {
        left: u64,
        is_data: bool,
        ends_message: bool,
    },
    /// In a Close frame, of which nothing is forwarded yet.
    Close(Box<CutClose>),
    /// A Close frame has passed.
    Closed,
    Failed(ProtocolError),
}

impl Scanner {
    /// A scanner that stands before the first frame. `rsv1_allowed`: compression was negotiated.
    pub fn new(direction: Direction, rsv1_allowed: bool) -> Scanner {
        let step = Step::Header(CutHeader::default());
        Scanner { step, sequence: Sequence::default(), direction, rsv1_allowed }
    }

    /// Reads on. All of `bytes` counts as read afterwards, whatever is to be forwarded of it.
    pub fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Scanned {
        self.scan_sizes(bytes, limits, |_| {})
    }

    /// The same; `on_size` is told the size of each message, in bytes of payload as they are on the wire,
    /// when the header of its last frame is read.
    pub fn scan_sizes(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        mut on_size: impl FnMut(usize),
    ) -> Scanned {
        let mut scanned = Scanned {
            carried: Carried::Header(CutHeader::default()),
            forward: 0,
            dropped: 0,
            messages: 0,
            data: false,
            pings: 0,
            pongs: 0,
            close: None,
            error: None,
        };
        // Each turn of the loop consumes a header or reaches the end of `bytes`.
        loop {
            self.skip_small(bytes, &mut scanned, limits, &mut on_size);
            let rest = &bytes[scanned.forward..];
            match &mut self.step {
                Step::Failed(error) => {
                    scanned.error = Some(*error);
                    scanned.dropped = rest.len();
                    return scanned;
                }
                // Nothing after a Close counts (§5.5.1).
                Step::Closed => {
                    scanned.dropped = rest.len();
                    return scanned;
                }
                Step::Header(cut) => {
                    let held = usize::from(cut.count);
                    let before = *cut;
                    match next_header(&mut cut.bytes, held, bytes, &mut scanned.forward) {
                        Ok(None) => {
                            cut.count = (held + rest.len()) as u8;
                            return scanned;
                        }
                        Ok(Some(header)) if header.opcode == Opcode::Close => {
                            scanned.forward -= header.header_bytes - held;
                            match self.sequence.admit(
                                &header,
                                self.direction,
                                self.rsv1_allowed,
                                limits,
                            ) {
                                Ok(_) => self.step = Step::Close(CutClose::begin(&before, header)),
                                Err(error) => self.step = Step::Failed(error),
                            }
                        }
                        Ok(Some(header)) => match self.start_frame(&header, limits, &mut on_size) {
                            Ok(step) => {
                                scanned.pings += u32::from(header.opcode == Opcode::Ping);
                                scanned.pongs += u32::from(header.opcode == Opcode::Pong);
                                // Only a header at the very front was begun in an earlier buffer.
                                if held > 0 {
                                    scanned.carried = Carried::Header(before);
                                }
                                self.step = step;
                            }
                            Err(error) => {
                                scanned.forward -= header.header_bytes - held;
                                self.step = Step::Failed(error);
                            }
                        },
                        Err(error) => self.step = Step::Failed(error),
                    }
                }
                Step::Payload { left, is_data, ends_message } => {
                    scanned.data |= *is_data;
                    let here = (*left).min(rest.len() as u64);
                    scanned.forward += here as usize;
                    *left -= here;
                    if *left > 0 {
                        return scanned;
                    }
                    scanned.messages += u32::from(*ends_message);
                    self.step = Step::Header(CutHeader::default());
                }
                Step::Close(cut) => {
                    let missing = cut.frame_bytes() - usize::from(cut.count);
                    if rest.len() < missing {
                        cut.push(rest);
                        return scanned;
                    }
                    match cut.code_with(&rest[..missing]) {
                        Ok(code) => {
                            scanned.forward += missing;
                            scanned.close = Some(code);
                            let Step::Close(cut) = mem::replace(&mut self.step, Step::Closed)
                            else {
                                unreachable!("matched above");
                            };
                            // Only what begins the buffer was begun in an earlier one.
                            if cut.count > 0 {
                                scanned.carried = Carried::Close(cut);
                            }
                        }
                        Err(error) => self.step = Step::Failed(error),
                    }
                }
            }
        }
    }

    /// Whether all that was forwarded so far ends with a whole frame, so that a Close frame of our
    /// own may follow it.
    pub fn at_frame_boundary(&self) -> bool {
        match self.step {
            // Nothing of a Close frame that is not whole has been forwarded.
            Step::Header(_) | Step::Close(_) | Step::Closed | Step::Failed(_) => true,
            Step::Payload { .. } => false,
        }
    }

    /// Bytes on the heap: of a Close frame that is not whole.
    pub fn held_bytes(&self) -> usize {
        match self.step {
            Step::Close(_) => size_of::<CutClose>(),
            _ => 0,
        }
    }

    /// Whether all that was forwarded so far ends with a whole message, so that a message of our own
    /// may follow it.
    pub fn at_message_boundary(&self) -> bool {
        self.at_frame_boundary() && self.sequence.is_between_messages()
    }

    /// The length of the Pong that `bytes` begin with, if it carries `payload`, is whole, and the
    /// scanner has read everything before it: the answer to a Ping of ours, of which the other side
    /// knows nothing. Whoever takes it out does not show it to [`Scanner::scan`].
    pub fn pong_in_front(&self, bytes: &[u8], payload: &[u8; 8]) -> Option<usize> {
        if !matches!(self.step, Step::Header(CutHeader { count: 0, .. })) {
            return None;
        }
        let header = decode_header(bytes).ok()??;
        let is_masked = self.direction == Direction::ClientToUpstream;
        if header.opcode != Opcode::Pong || header.rsv1 || header.mask.is_some() != is_masked {
            return None;
        }
        let end = header.header_bytes + payload.len();
        let found = bytes.get(header.header_bytes..end)?;
        let mut found: [u8; 8] = found.try_into().ok()?;
        apply_mask(&mut found, header.mask.unwrap_or_default(), 0);
        (header.payload_bytes == 8 && found == *payload).then_some(end)
    }

    /// What nearly everybody sends: messages in one frame of at most 125 bytes, which are here as a
    /// whole. They leave no trace in the state. The loop reads them too; the tests cut every wire,
    /// so that both do.
    fn skip_small(
        &self,
        bytes: &[u8],
        scanned: &mut Scanned,
        limits: &Limits,
        on_size: &mut impl FnMut(usize),
    ) {
        let between_frames = matches!(self.step, Step::Header(CutHeader { count: 0, .. }));
        if !between_frames || !self.sequence.is_between_messages() {
            return;
        }
        let (mask_bit, header_bytes) = match self.direction {
            Direction::ClientToUpstream => (0x80, 6),
            Direction::UpstreamToClient => (0, 2),
        };
        while let Some(&[0x81 | 0x82, second]) = bytes.get(scanned.forward..scanned.forward + 2) {
            let len = usize::from(second ^ mask_bit);
            let end = scanned.forward + header_bytes + len;
            if len > SHORT_BYTES_MAX || len > limits.message_bytes_max || end > bytes.len() {
                return;
            }
            scanned.forward = end;
            scanned.messages += 1;
            scanned.data = true;
            on_size(len);
        }
    }

    fn start_frame(
        &mut self,
        header: &Header,
        limits: &Limits,
        on_size: &mut impl FnMut(usize),
    ) -> Result<Step, ProtocolError> {
        let before = self.sequence.message_bytes();
        let kind = self.sequence.admit(header, self.direction, self.rsv1_allowed, limits)?;
        let is_data = kind.is_some();
        let ends_message = is_data && header.fin;
        if ends_message {
            on_size(before.saturating_add(header.payload_bytes) as usize);
        }
        Ok(Step::Payload { left: header.payload_bytes, is_data, ends_message })
    }
}

impl CutClose {
    /// The frame that begins with `header`, of which earlier buffers had `before`.
    fn begin(before: &CutHeader, header: Header) -> Box<CutClose> {
        let mut bytes = [0; CLOSE_FRAME_BYTES_MAX];
        bytes[..before.bytes.len()].copy_from_slice(&before.bytes);
        Box::new(CutClose { bytes, count: before.count, header })
    }

    /// Bytes of the whole frame: at most [`CLOSE_FRAME_BYTES_MAX`], as `decode_header` allows a
    /// control frame no more than 125 of payload.
    fn frame_bytes(&self) -> usize {
        self.header.header_bytes + self.header.payload_bytes as usize
    }

    /// `more` follows, and is not the end of the frame.
    fn push(&mut self, more: &[u8]) {
        let count = usize::from(self.count);
        self.bytes[count..count + more.len()].copy_from_slice(more);
        self.count += more.len() as u8;
    }

    /// The code of the frame whose end is `end`, if it is one that may be sent.
    fn code_with(&self, end: &[u8]) -> Result<Option<u16>, ProtocolError> {
        let mut frame = self.bytes;
        let count = usize::from(self.count);
        frame[count..count + end.len()].copy_from_slice(end);
        let payload = &mut frame[self.header.header_bytes..self.frame_bytes()];
        apply_mask(payload, self.header.mask.unwrap_or_default(), 0);
        Ok(decode_close(payload)?.map(|close| close.code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 70_000, frame_bytes_max: 70_000 };

    /// What comes of `wire` when it is cut at `cuts`: the forwarded bytes and a line of facts.
    fn run(scanner: &mut Scanner, wire: &[u8], cuts: &[usize]) -> (Vec<u8>, String) {
        let (mut out, mut messages, mut close, mut error) = (Vec::new(), 0, None, None);
        let mut start = 0;
        for &end in cuts.iter().chain([&wire.len()]) {
            let bytes = &wire[start..end];
            let scanned = scanner.scan(bytes, &LIMITS);
            out.extend_from_slice(&scanned.carried);
            out.extend_from_slice(&bytes[..scanned.forward]);
            messages += scanned.messages;
            assert!(close.is_none() || scanned.close.is_none(), "a Close is told once");
            close = close.or(scanned.close);
            error = error.or(scanned.error);
            start = end;
        }
        (out, format!("{messages} messages, close {close:?}, error {error:?}"))
    }

    /// For any cut the forwarded bytes are `wire[..legal]`.
    #[track_caller]
    fn check(direction: Direction, rsv1: bool, wire: &[u8], legal: usize, want: &str) {
        for first in 0..=wire.len().min(40) {
            for second in (first..=wire.len()).step_by(1 + wire.len() / 200) {
                let mut scanner = Scanner::new(direction, rsv1);
                let (out, facts) = run(&mut scanner, wire, &[first, second]);
                assert_eq!(out, wire[..legal], "cut at {first} and {second}");
                assert_eq!(facts, want, "cut at {first} and {second}");
            }
        }
        let every: Vec<usize> = (0..wire.len()).collect();
        let (out, facts) = run(&mut Scanner::new(direction, rsv1), wire, &every);
        assert_eq!((&out[..], &facts[..]), (&wire[..legal], want), "byte by byte");
    }

    #[track_caller]
    fn check_client(wire: &[u8], legal: usize, want: &str) {
        check(Direction::ClientToUpstream, false, wire, legal, want);
    }

    #[track_caller]
    fn check_server(wire: &[u8], legal: usize, want: &str) {
        check(Direction::UpstreamToClient, false, wire, legal, want);
    }

    #[test]
    fn a_scanner_is_small() {
        assert!(size_of::<Scanner>() <= 48, "{}", size_of::<Scanner>());
    }

    #[test]
    fn messages_pass_as_they_are() {
        let wire =
            b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x02\x82abcdxx\x89\x80efgh\x80\x80ijkl";
        check_client(wire, wire.len(), "2 messages, close None, error None");
        let wire = b"\x81\x05Hello\x01\x03Hel\x8a\x00\x80\x02lo";
        check_server(wire, wire.len(), "2 messages, close None, error None");
        let mut wire = b"\x82\x7f\0\0\0\0\0\x01\0\0".to_vec();
        wire.resize(10 + 65536, b'x');
        wire.extend_from_slice(b"\x82\x7e\x01\x00");
        wire.resize(wire.len() + 256, b'y');
        let mut scanner = Scanner::new(Direction::UpstreamToClient, false);
        let (out, facts) = run(&mut scanner, &wire, &[3, 9, 4000, 10 + 65536 + 3]);
        assert_eq!(out, wire);
        assert_eq!(facts, "2 messages, close None, error None");
    }

    #[test]
    fn nothing_follows_a_close() {
        let wire = b"\x88\x82\x01\x02\x03\x04\x02\xea\x81\x80abcd";
        check_client(wire, 8, "0 messages, close Some(Some(1000)), error None");
        check_server(b"\x88\x00\x81\x00", 2, "0 messages, close Some(None), error None");
        check_server(b"\x88\x05\x0f\xa0bye", 7, "0 messages, close Some(Some(4000)), error None");
    }

    #[test]
    fn sections_5_5_1_and_7_4_a_close_that_may_not_be_sent_goes_nowhere() {
        let check = |code: u16, reason: &[u8], error: &str| {
            let payload = [&code.to_be_bytes()[..], reason].concat();
            let length = payload.len() as u8;
            let facts = format!("1 messages, close None, error Some({error})");
            let wire = [b"\x81\x02ok\x88", &[length][..], &payload, b"\x81\x02no"].concat();
            check_server(&wire, 4, &facts);
            let mask = [7, 0, 0xFF, 0x55];
            let masked: Vec<u8> =
                payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            let close = [&[0x88, 0x80 | length], &mask[..], &masked].concat();
            check_client(&[b"\x81\x80abcd", &close[..], b"\x81\x80abcd"].concat(), 6, &facts);
        };
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535] {
            check(code, b"", &format!("CloseCode({code})"));
        }
        check(1005, &[b'x'; 123], "CloseCode(1005)");
        check(1000, b"\xce\xba\xe1", "CloseReasonNotUtf8");
        check(4000, &[0xFF; 123], "CloseReasonNotUtf8");
    }

    #[test]
    fn the_longest_close_passes_whatever_the_cut() {
        let reason = "\u{20ac}".repeat(41);
        let wire = [b"\x88\x7d\x0b\xb8", reason.as_bytes()].concat();
        check_server(&wire, wire.len(), "0 messages, close Some(Some(3000)), error None");
        let header = [0x88, 0xFD, 1, 2, 3, 4];
        let payload = [&3000u16.to_be_bytes()[..], reason.as_bytes()].concat();
        let masked = payload.iter().zip(header[2..].iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let wire: Vec<u8> = header.iter().copied().chain(masked).collect();
        check_client(&wire, wire.len(), "0 messages, close Some(Some(3000)), error None");
    }

    #[test]
    fn nothing_of_a_close_passes_before_it_is_whole() {
        let wire = b"\x88\x05\x0f\xa0bye";
        for cut in 0..wire.len() {
            let mut scanner = Scanner::new(Direction::UpstreamToClient, false);
            let scanned = scanner.scan(&wire[..cut], &LIMITS);
            assert_eq!((scanned.forward, scanned.carried.len()), (0, 0), "cut at {cut}");
            assert!(scanner.at_frame_boundary() && scanned.dropped == 0, "cut at {cut}");
            let scanned = scanner.scan(&[&wire[cut..], b"more"].concat(), &LIMITS);
            assert_eq!((scanned.close, scanned.dropped), (Some(Some(4000)), 4), "cut at {cut}");
            assert_eq!(scanner.scan(b"more", &LIMITS).dropped, 4, "cut at {cut}");
        }
    }

    #[test]
    fn nothing_of_a_bad_frame_is_forwarded() {
        let check = |wire: &[u8], error: &str| {
            let wire = [b"\x81\x02ok", wire].concat();
            check_server(&wire, 4, &format!("1 messages, close None, error Some({error})"));
        };
        check(b"\x81\x80abcd", "ServerMasked");
        check(b"\xc1\x00", "ReservedBits");
        check(b"\x83\x00", "ReservedOpcode(3)");
        check(b"\x80\x00", "ContinuationOfNothing");
        check(b"\x82\x7e\x00\x05abcde", "LengthNotMinimal");
        check(b"\x82\x7f\xff\0\0\0\0\0\0\0", "LengthTopBit");
        check(b"\x82\x7f\0\0\0\0\0\x01\x11\x71", "MessageTooBig");
        check(b"\x89\x7e\x01\x00", "ControlTooLong");
        check(b"\x08\x00", "ControlFragmented");
        check(b"\x88\x01x", "ClosePayloadOfOneByte");
        check_client(b"\x81\x02ok", 0, "0 messages, close None, error Some(ClientUnmasked)");
    }

    #[test]
    fn rfc_7692_section_6_rsv1_only_on_the_first_frame_of_a_message() {
        let check = |wire: &[u8], legal: usize, want: &str| {
            check(Direction::UpstreamToClient, true, wire, legal, want);
        };
        check(b"\x41\x01a\x80\x01b\x81\x00", 8, "2 messages, close None, error None");
        check(b"\x41\x01a\xc0\x01b", 3, "0 messages, close None, error Some(ReservedBits)");
        check(b"\xc9\x00", 0, "0 messages, close None, error Some(ReservedBits)");
    }

    #[test]
    fn a_clients_frame_has_a_limit_of_its_own() {
        let limits = Limits { message_bytes_max: 1000, frame_bytes_max: 200 };
        for (direction, payload, want) in [
            (Direction::ClientToUpstream, 200, None),
            (Direction::ClientToUpstream, 201, Some(ProtocolError::FrameTooBig)),
            (Direction::UpstreamToClient, 201, None),
            (Direction::UpstreamToClient, 1001, Some(ProtocolError::MessageTooBig)),
        ] {
            let mask = if direction == Direction::ClientToUpstream { 0x80 } else { 0 };
            let mut wire = vec![0x01, mask | 126];
            wire.extend_from_slice(&u16::to_be_bytes(payload));
            if mask != 0 {
                wire.extend_from_slice(b"mask");
            }
            let mut scanner = Scanner::new(direction, false);
            let scanned = scanner.scan(&wire, &limits);
            assert_eq!(scanned.error, want, "{payload} {direction:?}");
        }
    }

    /// The sizes of frames that follow one another, up to the first that breaks a rule.
    fn admitted(frames: &[u64], message_bytes_max: usize) -> Result<u64, ProtocolError> {
        let limits = Limits { message_bytes_max, frame_bytes_max: usize::MAX };
        let mut sequence = Sequence::default();
        for (index, payload_bytes) in frames.iter().enumerate() {
            let opcode = if index == 0 { Opcode::Binary } else { Opcode::Continuation };
            let mut wire = vec![opcode as u8];
            match *payload_bytes {
                short @ 0..126 => wire.push(short as u8),
                medium @ 126..0x1_0000 => {
                    wire.push(126);
                    wire.extend_from_slice(&(medium as u16).to_be_bytes());
                }
                long => {
                    wire.push(127);
                    wire.extend_from_slice(&long.to_be_bytes());
                }
            }
            let header = decode_header(&wire).expect("no rule").expect("a whole header");
            sequence.admit(&header, Direction::UpstreamToClient, false, &limits)?;
        }
        Ok(sequence.message_bytes())
    }

    #[test]
    fn messages_beyond_32_bits_are_counted_and_no_count_wraps() {
        const GIB: u64 = 1 << 30;
        let bound = 5 * GIB as usize;
        assert_eq!(admitted(&[3 * GIB, 2 * GIB], bound), Ok(5 * GIB));
        assert_eq!(admitted(&[3 * GIB, 2 * GIB + 1], bound), Err(ProtocolError::MessageTooBig));
        assert_eq!(admitted(&[3 * GIB, 2 * GIB, 0, 1], bound), Err(ProtocolError::MessageTooBig));
        let largest = (1 << 63) - 1;
        assert_eq!(admitted(&[largest; 4], usize::MAX), Ok((1 << 56) - 1));
        assert_eq!(admitted(&[largest; 4], 1 << 50), Err(ProtocolError::MessageTooBig));
    }

    #[test]
    fn what_counts_as_data() {
        for (wire, want) in [
            (&b"\x81\x02hi"[..], true),
            (b"\x81\x00", true),
            (b"\x01\x02hi", true),
            (b"\x82\x7e\x01\x00", true),
            (b"\x82\x7e\x01", false), // Not a whole header.
            (b"\x89\x02hi\x8a\x00", false),
            (b"\x8a\x00\x81\x02h", true),
            (b"\x88\x02\x03\xe8", false),
        ] {
            let mut scanner = Scanner::new(Direction::UpstreamToClient, false);
            assert_eq!(scanner.scan(wire, &LIMITS).data, want, "{wire:x?}");
            // A control frame in the middle of a message is none.
            scanner = Scanner::new(Direction::UpstreamToClient, false);
            scanner.scan(b"\x01\x02hi", &LIMITS);
            assert!(!scanner.scan(b"\x8a\x00", &LIMITS).data);
        }
    }

    #[test]
    fn our_own_pong_is_found_in_front_only() {
        let payload = b"12345678";
        let server = b"\x8a\x0812345678";
        let client = b"\x8a\x88\x01\x01\x01\x0103254769";
        let found = |before: &[u8], bytes: &[u8], direction| {
            let mut scanner = Scanner::new(direction, true);
            scanner.scan(before, &LIMITS);
            scanner.pong_in_front(bytes, payload)
        };
        let (up, down) = (Direction::ClientToUpstream, Direction::UpstreamToClient);
        assert_eq!(found(b"", client, up), Some(14));
        assert_eq!(found(b"", &[client, &b"\x81"[..]].concat(), up), Some(14));
        assert_eq!(found(b"", server, down), Some(10));
        assert_eq!(found(b"\x01\x01a", server, down), Some(10), "inside a message");
        assert_eq!(found(b"\x01\x0ba", server, down), None, "inside a frame");
        assert_eq!(found(b"\x81", server, down), None, "behind the beginning of a header");
        assert_eq!(found(b"", server, up), None, "without a mask");
        assert_eq!(found(b"", client, down), None, "with a mask");
        assert_eq!(found(b"", b"\x89\x0812345678", down), None, "a Ping");
        assert_eq!(found(b"", b"\x8a\x0812345679", down), None, "another's");
        assert_eq!(found(b"", b"\x8a\x09123456789", down), None, "a longer one");
        assert_eq!(found(b"", b"\x8a\x00", down), None, "an empty one");
        for end in 0..client.len() {
            assert_eq!(found(b"", &client[..end], up), None, "{end} bytes of it");
        }
    }

    #[test]
    fn control_frames_are_counted() {
        let wire = b"\x89\x01a\x01\x01b\x8a\x00\x80\x01c\x82\x00\x89\x00\x88\x00";
        for cut in 0..=wire.len() {
            let mut scanner = Scanner::new(Direction::UpstreamToClient, false);
            let parts = [&wire[..cut], &wire[cut..]].map(|part| scanner.scan(part, &LIMITS));
            let control: u32 = parts.iter().map(|scanned| scanned.pings + scanned.pongs).sum();
            let pongs: u32 = parts.iter().map(|scanned| scanned.pongs).sum();
            let messages: u32 = parts.iter().map(|scanned| scanned.messages).sum();
            assert_eq!((control, pongs, messages), (3, 1, 2), "cut at {cut}");
        }
    }

    #[test]
    fn a_close_of_our_own_fits_between_frames_only() {
        let mut scanner = Scanner::new(Direction::UpstreamToClient, false);
        for (bytes, want) in [
            (&b"\x82"[..], true), // The cut header has not been forwarded.
            (b"\x03", false),
            (b"ab", false),
            (b"c\x01\x01x", true),
            (b"\x80\x7e\x01", true),
            (b"\x00", false),
        ] {
            scanner.scan(bytes, &LIMITS);
            assert_eq!(scanner.at_frame_boundary(), want, "after {bytes:x?}");
        }
    }
}
