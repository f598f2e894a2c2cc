//! One direction of a relay, read by its frame headers alone.
//!
//! Payload passes as it is, masked or not, and is neither touched nor copied. What the caller may
//! send on is always a prefix of what came, and ends before the first header that breaks a rule.

use std::ops::Deref;

pub use super::frame::Direction;
use super::frame::{Header, Opcode, SHORT_BYTES_MAX, Sequence};
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
#[derive(Clone, Copy, Debug)]
pub struct Scanned {
    /// To be forwarded first: the beginning of a header that an earlier buffer ended with.
    pub carried: Carried,
    /// Then this many bytes of the front of the buffer. The rest is kept by the scanner (a header
    /// that is not whole) or is not to be forwarded at all.
    pub forward: usize,
    /// Data messages whose last byte is among those forwarded.
    pub messages: u32,
    /// Pings and Pongs whose header is among them.
    pub control_frames: u32,
    /// A whole Close frame is among those forwarded, with this code. Nothing follows it.
    pub close: Option<Option<u16>>,
    /// The rule that the next frame breaks. Nothing of it, or after it, is forwarded.
    pub error: Option<ProtocolError>,
}

/// At most 13 bytes of a header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    bytes: [u8; 13],
    count: u8,
}

impl Deref for Carried {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.count)]
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Header(Carried),
    /// `left` bytes of the payload of a Ping, a Pong or a data frame.
    Payload {
        left: u64,
        ends_message: bool,
    },
    /// In a Close frame, of whose code `seen` bytes have passed.
    Close {
        left: u8,
        mask: [u8; 2],
        code: [u8; 2],
        seen: u8,
    },
    /// A Close frame has passed.
    Closed,
    Failed(ProtocolError),
}

impl Scanner {
    /// A scanner that stands before the first frame. `rsv1_allowed`: compression was negotiated.
    pub fn new(direction: Direction, rsv1_allowed: bool) -> Scanner {
        let step = Step::Header(Carried::default());
        Scanner { step, sequence: Sequence::default(), direction, rsv1_allowed }
    }

    /// Reads on. All of `bytes` counts as read afterwards, whatever is to be forwarded of it.
    pub fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Scanned {
        let mut scanned = Scanned {
            carried: Carried::default(),
            forward: 0,
            messages: 0,
            control_frames: 0,
            close: None,
            error: None,
        };
        // Each turn of the loop consumes a header or reaches the end of `bytes`.
        loop {
            self.skip_small(bytes, &mut scanned, limits);
            let rest = &bytes[scanned.forward..];
            match &mut self.step {
                Step::Failed(error) => {
                    scanned.error = Some(*error);
                    return scanned;
                }
                Step::Closed => return scanned, // Nothing after a Close counts (§5.5.1).
                Step::Header(cut) => {
                    let held = usize::from(cut.count);
                    let before = *cut;
                    match next_header(&mut cut.bytes, held, bytes, &mut scanned.forward) {
                        Ok(None) => {
                            cut.count = (held + rest.len()) as u8;
                            return scanned;
                        }
                        Ok(Some(header)) => match self.start_frame(&header, limits) {
                            Ok(step) => {
                                let counts = matches!(header.opcode, Opcode::Ping | Opcode::Pong);
                                scanned.control_frames += u32::from(counts);
                                // Only a header at the very front was begun in an earlier buffer.
                                if held > 0 {
                                    scanned.carried = before;
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
                Step::Payload { left, ends_message } => {
                    let here = (*left).min(rest.len() as u64);
                    scanned.forward += here as usize;
                    *left -= here;
                    if *left > 0 {
                        return scanned;
                    }
                    scanned.messages += u32::from(*ends_message);
                    self.step = Step::Header(Carried::default());
                }
                Step::Close { left, mask, code, seen } => {
                    let here = rest.len().min(usize::from(*left));
                    for &byte in &rest[..here.min(2 - usize::from(*seen))] {
                        code[usize::from(*seen)] = byte ^ mask[usize::from(*seen)];
                        *seen += 1;
                    }
                    scanned.forward += here;
                    *left -= here as u8;
                    if *left > 0 {
                        return scanned;
                    }
                    // A payload is empty or holds a whole code: `decode_header` has seen to it.
                    scanned.close = Some((*seen == 2).then(|| u16::from_be_bytes(*code)));
                    self.step = Step::Closed;
                }
            }
        }
    }

    /// Whether all that was forwarded so far ends with a whole frame, so that a Close frame of our
    /// own may follow it.
    pub fn at_frame_boundary(&self) -> bool {
        match self.step {
            Step::Header(_) | Step::Closed | Step::Failed(_) => true,
            Step::Payload { .. } | Step::Close { .. } => false,
        }
    }

    /// What nearly everybody sends: messages in one frame of at most 125 bytes, which are here as a
    /// whole. They leave no trace in the state. The loop reads them too; the tests cut every wire,
    /// so that both do.
    fn skip_small(&self, bytes: &[u8], scanned: &mut Scanned, limits: &Limits) {
        let between_frames = matches!(self.step, Step::Header(Carried { count: 0, .. }));
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
        }
    }

    fn start_frame(&mut self, header: &Header, limits: &Limits) -> Result<Step, ProtocolError> {
        let kind = self.sequence.admit(header, self.direction, self.rsv1_allowed, limits)?;
        if header.opcode == Opcode::Close {
            let [first, second, ..] = header.mask.unwrap_or_default();
            let left = header.payload_bytes as u8; // At most 125.
            return Ok(Step::Close { left, mask: [first, second], code: [0; 2], seen: 0 });
        }
        Ok(Step::Payload { left: header.payload_bytes, ends_message: kind.is_some() && header.fin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 70_000 };

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
    fn control_frames_are_counted() {
        let wire = b"\x89\x01a\x01\x01b\x8a\x00\x80\x01c\x82\x00\x89\x00\x88\x00";
        for cut in 0..=wire.len() {
            let mut scanner = Scanner::new(Direction::UpstreamToClient, false);
            let parts = [&wire[..cut], &wire[cut..]].map(|part| scanner.scan(part, &LIMITS));
            let control: u32 = parts.iter().map(|scanned| scanned.control_frames).sum();
            let messages: u32 = parts.iter().map(|scanned| scanned.messages).sum();
            assert_eq!((control, messages), (3, 2), "cut at {cut}");
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
