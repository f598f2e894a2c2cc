//! permessage-deflate (RFC 7692), the client's side: what is offered, what an answer may say, and
//! messages made smaller and larger. No sockets, no clock.
//!
//! A compressor weighs a quarter of a megabyte and an inflater 40 KiB, so clients have none of
//! their own: what they send never refers to earlier messages, which is a client's choice (§7.1.1),
//! and one compressor serves them all. Only a server that insists on referring to earlier messages
//! costs each client an inflater.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::websocket::{self, BINARY, TEXT};

/// What is offered. The server may take less of it.
pub(crate) const OFFER: &str = "permessage-deflate; client_no_context_takeover; \
                                server_no_context_takeover; client_max_window_bits";

/// What was agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// The largest window that we may use, as its logarithm: 8 to 15.
    pub(crate) client_window_bits: u8,
    /// The server's messages may refer to its earlier ones.
    pub(crate) server_takes_over: bool,
}

/// Reads the header that answers [`OFFER`] (§7.1).
pub(crate) fn decode_answer(value: &str) -> Result<Agreement, String> {
    let mut parts = value.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    if name != "permessage-deflate" {
        let name: String = name.chars().take(60).collect();
        return Err(format!("extension {name} was not offered"));
    }
    let mut agreement = Agreement { client_window_bits: 15, server_takes_over: true };
    let mut seen = Vec::new();
    for part in parts {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        // §7.1: a parameter that appears twice, is unknown, or has a wrong value fails it.
        if seen.contains(&key) {
            return Err(format!("permessage-deflate: {key} appears twice"));
        }
        seen.push(key);
        let bits = value.and_then(window_bits);
        match (key, value, bits) {
            ("server_no_context_takeover", None, _) => agreement.server_takes_over = false,
            // We do as if it always were there.
            ("client_no_context_takeover", None, _) => {}
            // Ours is the largest window, so whatever it uses fits.
            ("server_max_window_bits", _, Some(_)) => {}
            ("client_max_window_bits", _, Some(bits)) => agreement.client_window_bits = bits,
            _ => {
                let part: String = part.chars().take(60).collect();
                return Err(format!("permessage-deflate: \"{part}\" may not be in an answer"));
            }
        }
    }
    Ok(agreement)
}

/// A number from 8 to 15, without leading zeros (§7.1.2).
fn window_bits(text: &str) -> Option<u8> {
    ["8", "9", "10", "11", "12", "13", "14", "15"]
        .iter()
        .position(|t| *t == text)
        .map(|i| i as u8 + 8)
}

/// Messages and bytes of connections with the extension, control frames left out. `wire` is the
/// payload as it travels, without the frames' headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) sent_payload_bytes: u64,
    pub(crate) sent_wire_bytes: u64,
    pub(crate) received_payload_bytes: u64,
    pub(crate) received_wire_bytes: u64,
}

/// What all clients of a thread compress and inflate with.
#[derive(Default)]
pub(crate) struct Codec {
    /// By the logarithm of the window; made when first needed.
    compressors: [Option<Box<Compress>>; 16],
    inflater: Option<Inflater>,
    /// A message as it was before it was compressed.
    payload: Vec<u8>,
    compressed: Vec<u8>,
    pub(crate) volume: Volume,
}

/// What a Z_SYNC_FLUSH ends with, and messages go without (§7.2.1).
const FLUSH_TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

impl Codec {
    /// Compresses the whole messages among the masked frames in `plain`, which a scenario has
    /// written, and appends everything to `out`. What is not a whole frame yet stays in `plain`.
    /// Fragments and control frames pass as they are.
    pub(crate) fn compress_frames(
        &mut self,
        agreement: Agreement,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        let mut taken = 0;
        while let Some((header_bytes, frame_bytes)) = websocket::frame_of_client(&plain[taken..]) {
            let frame = &plain[taken..taken + frame_bytes];
            taken += frame_bytes;
            let opcode = frame[0] & 0x0F;
            let is_whole_message = frame[0] & 0x80 != 0 && matches!(opcode, TEXT | BINARY);
            if opcode < websocket::CLOSE {
                self.volume.sent_payload_bytes += (frame_bytes - header_bytes) as u64;
            }
            // zlib has no window of 2^8; sending as it is, is always allowed (§6.1).
            if !is_whole_message || agreement.client_window_bits == 8 {
                if opcode < websocket::CLOSE {
                    self.volume.sent_wire_bytes += (frame_bytes - header_bytes) as u64;
                }
                out.extend_from_slice(frame);
                continue;
            }
            let mask: [u8; 4] = frame[header_bytes - 4..header_bytes].try_into().expect("four");
            self.payload.clear();
            self.payload.extend_from_slice(&frame[header_bytes..]);
            websocket::apply_mask(&mut self.payload, mask);
            self.compress(agreement.client_window_bits);
            self.volume.sent_wire_bytes += self.compressed.len() as u64;
            let start = out.len();
            websocket::encode_frame(out, opcode, &self.compressed, u32::from_ne_bytes(mask));
            out[start] |= websocket::RSV1;
        }
        plain.drain(..taken);
    }

    /// `payload` to `compressed`, referring to nothing before it.
    fn compress(&mut self, window_bits: u8) {
        let compressor = self.compressors[usize::from(window_bits)].get_or_insert_with(|| {
            // The fastest level: the load is to come from the server's work, not from ours.
            Box::new(Compress::new_with_window_bits(Compression::fast(), false, window_bits))
        });
        compressor.reset();
        let out = &mut self.compressed;
        out.clear();
        loop {
            let consumed = compressor.total_in() as usize;
            out.reserve((self.payload.len() - consumed) / 2 + 64);
            compressor
                .compress_vec(&self.payload[consumed..], out, FlushCompress::Sync)
                .expect("a stream that was just begun");
            // A flush is complete when there is room left (zlib's manual, deflate).
            if out.len() < out.capacity() && compressor.total_in() as usize == self.payload.len() {
                break;
            }
        }
        assert!(out.ends_with(&FLUSH_TAIL), "a flush ends in an empty block");
        out.truncate(out.len() - FLUSH_TAIL.len());
    }

    /// Inflates a message that refers to no other, appending to `out`.
    pub(crate) fn inflate(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let inflater = self.inflater.get_or_insert_default();
        inflater.0.reset(false);
        inflater.inflate(message, out)
    }
}

/// Makes messages larger that may refer to earlier ones.
pub(crate) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater(Decompress::new_with_window_bits(false, 15))
    }
}

/// What a message may grow to: as large as one that was not compressed.
const INFLATED_BYTES_MAX: usize = websocket::PAYLOAD_BYTES_MAX as usize;

impl Inflater {
    /// Appends what a message says to `out` (§7.2.2).
    pub(crate) fn inflate(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let start = out.len();
        for mut input in [message, &FLUSH_TAIL] {
            loop {
                let room = (input.len() * 3 + 64).min(1 << 20);
                if out.len() == out.capacity() {
                    out.reserve(room);
                }
                let (consumed, filled) = (self.0.total_in(), out.len());
                let status = self
                    .0
                    .decompress_vec(input, out, FlushDecompress::Sync)
                    .map_err(|_| "compressed message that cannot be inflated (RFC 7692 §7.2.2)")?;
                if out.len() - start > INFLATED_BYTES_MAX {
                    return Err(format!("message above {INFLATED_BYTES_MAX} bytes once inflated"));
                }
                let consumed = (self.0.total_in() - consumed) as usize;
                input = &input[consumed..];
                let is_stuck = consumed == 0 && out.len() == filled && out.len() < out.capacity();
                match status {
                    // A block may say that it is the last, and others follow (§7.2.3.4). What is
                    // behind it cannot refer to what is before it: none is known to do that.
                    Status::StreamEnd => self.0.reset(false),
                    _ if is_stuck && !input.is_empty() => {
                        return Err("compressed message that goes nowhere (RFC 7692)".into());
                    }
                    _ => {}
                }
                if input.is_empty() && out.len() < out.capacity() {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::{PING, encode_frame, scramble};

    #[test]
    fn section_7_1_answers() {
        let check = |text: &str, want: Result<(u8, bool), &str>| match (decode_answer(text), want) {
            (Ok(Agreement { client_window_bits, server_takes_over }), Ok(want)) => {
                assert_eq!((client_window_bits, server_takes_over), want, "{text}");
            }
            (Err(error), Err(want)) => assert!(error.contains(want), "{text}: {error}"),
            (got, _) => panic!("{text}: {got:?}"),
        };
        check("permessage-deflate", Ok((15, true)));
        check("permessage-deflate; server_no_context_takeover", Ok((15, false)));
        check("permessage-deflate;client_no_context_takeover", Ok((15, true)));
        check("permessage-deflate; client_max_window_bits=9", Ok((9, true)));
        check("permessage-deflate; client_max_window_bits=\"8\"", Ok((8, true)));
        check("permessage-deflate; server_max_window_bits=8", Ok((15, true)));
        check(
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
             server_max_window_bits=10; client_max_window_bits=12",
            Ok((12, false)),
        );
        check("x-webkit-deflate-frame", Err("not offered"));
        check("permessage-deflate, permessage-deflate", Err("not offered"));
        check("permessage-deflate; client_max_window_bits", Err("may not be"));
        for bits in ["7", "16", "08", "", "x", "+9"] {
            let text = format!("permessage-deflate; server_max_window_bits={bits}");
            check(&text, Err("may not be"));
        }
        check("permessage-deflate; server_no_context_takeover=1", Err("may not be"));
        check("permessage-deflate; unknown", Err("may not be"));
        let twice = "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9";
        check(twice, Err("twice"));
    }

    #[test]
    fn section_7_2_3_the_examples_of_the_rfc() {
        let check = |wire: &[u8]| {
            let mut out = b"before".to_vec();
            Codec::default().inflate(wire, &mut out).unwrap();
            assert_eq!(out, b"beforeHello");
        };
        check(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
        // Uncompressed, as a block that says it is the last, in two blocks.
        check(&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]);
        check(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]);
        check(&[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]);
        // §7.2.3.2: the second message refers to the first.
        let mut inflater = Inflater::default();
        for wire in [&[0xf2u8, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &[0xf2, 0x00, 0x11, 0, 0]] {
            let mut out = Vec::new();
            inflater.inflate(wire, &mut out).unwrap();
            assert_eq!(out, b"Hello");
        }
        assert!(Codec::default().inflate(&[0xf2, 0x00, 0x11, 0, 0], &mut Vec::new()).is_err());
        assert!(Codec::default().inflate(b"\xFF\xFF\xFF", &mut Vec::new()).is_err());
    }

    #[test]
    fn what_is_compressed_is_inflated_to_the_same() {
        let sizes = [0usize, 1, 5, 125, 126, 1000, 65_535, 70_000, 3_000_000];
        for window_bits in [8, 9, 12, 15] {
            let agreement = Agreement { client_window_bits: window_bits, server_takes_over: false };
            let mut codec = Codec::default();
            for size in sizes {
                for is_noise in [false, true] {
                    let byte = |i: usize| if is_noise { scramble(i as u64) as u8 } else { b'a' };
                    let payload: Vec<u8> = (0..size).map(byte).collect();
                    let mut plain = Vec::new();
                    encode_frame(&mut plain, TEXT, &payload, 0x0102_0304);
                    encode_frame(&mut plain, PING, b"ping", 0x0506_0708);
                    plain.extend_from_slice(b"\x82\x85"); // A frame that is not whole.
                    let mut wire = Vec::new();
                    codec.compress_frames(agreement, &mut plain, &mut wire);
                    assert_eq!(plain, b"\x82\x85");

                    let (header, frame) = websocket::frame_of_client(&wire).unwrap();
                    let mut body = wire[header..frame].to_vec();
                    websocket::apply_mask(&mut body, wire[header - 4..header].try_into().unwrap());
                    let mut got = Vec::new();
                    if window_bits == 8 {
                        assert_eq!(wire[0], 0x81);
                        got = body;
                    } else {
                        assert_eq!(wire[0], 0xC1);
                        codec.inflate(&body, &mut got).unwrap();
                    }
                    assert!(got == payload, "{size} bytes, window 2^{window_bits}");
                    let mut ping = Vec::new();
                    encode_frame(&mut ping, PING, b"ping", 0x0506_0708);
                    assert_eq!(wire[frame..], ping);
                }
            }
            assert_eq!(codec.volume.sent_payload_bytes, 2 * sizes.iter().sum::<usize>() as u64);
        }
    }

    #[test]
    fn a_bomb_is_put_out() {
        let mut codec = Codec { payload: vec![0; INFLATED_BYTES_MAX], ..Codec::default() };
        codec.compress(15);
        let largest = codec.compressed.clone();
        let mut out = Vec::new();
        codec.inflate(&largest, &mut out).unwrap();
        assert_eq!(out.len(), INFLATED_BYTES_MAX);
        codec.payload.push(0);
        codec.compress(15);
        let bomb = codec.compressed.clone();
        let error = codec.inflate(&bomb, &mut Vec::new()).unwrap_err();
        assert!(error.contains("once inflated"), "{error}");
    }
}
