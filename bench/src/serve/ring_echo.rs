//! A WebSocket echo that does the minimum: answers the upgrade, unmasks in place, and sends the
//! frames back out of the receive buffer.
//!
//! ```text
//!   received  | header | mask | payload ... |      the reply's header is 4 bytes shorter, so it
//!   reply            | header | payload ... |      ends where the payload begins
//! ```

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ops::Range;

use serde_json::{Value, json};

use super::rings::{self, Connections};
use super::{Options, Turns};
use crate::kernel::pool::Chunk;
use crate::kernel::ring::{Payload, Ring};
use crate::websocket::{CLOSE, PING, PONG, RESPONSE_BYTES_MAX, accept, apply_mask, encode_upgrade};

/// The largest frame that is put together when it comes in pieces; above, the connection is ended.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// What may wait to be sent on one connection; above, it is ended.
const PENDING_BYTES_MAX: usize = 128 << 20;

/// Serves until told to stop or out of time.
pub(super) fn run(
    options: &Options,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Value> {
    let echo = |slots| Echo((0..slots).map(|_| Connection::default()).collect());
    let shards = rings::run(options, Vec::new(), turns, on_listening, echo)?;
    let accepted: Vec<u64> = shards.iter().map(|shard| shard.accepted).collect();
    Ok(json!({
        "accepted_count": accepted.iter().sum::<u64>(),
        "accept_errors_count": shards.iter().map(|shard| shard.accept_errors).sum::<u64>(),
        "accepted_by_ring": accepted,
    }))
}

/// By slot.
struct Echo(Vec<Connection>);

#[derive(Default)]
struct Connection {
    upgraded: bool,
    recv_armed: bool,
    sending: bool,
    /// Shutdowns under way.
    shutdowns: u8,
    /// The Close frame is answered, or the connection is being ended: nothing is read any more.
    done: bool,
    /// A head or frame that has not arrived whole.
    partial: Vec<u8>,
    /// What waits for the send that is under way. Empty when none is.
    pending: Vec<u8>,
}

impl Connections for Echo {
    fn on_accepted(&mut self, ring: &mut Ring, slot: u32) {
        self.0[slot as usize] = Connection { recv_armed: true, ..Connection::default() };
        ring.arm_recv(slot);
    }

    fn on_received(
        &mut self,
        ring: &mut Ring,
        slot: u32,
        result: io::Result<Option<Chunk>>,
        more: bool,
    ) {
        let connection = &mut self.0[slot as usize];
        connection.recv_armed = more;
        match result {
            Ok(Some(chunk)) => {
                connection.on_chunk(ring, slot, chunk);
                if !more {
                    connection.recv_armed = true;
                    ring.arm_recv(slot);
                }
            }
            Ok(None) | Err(_) => {
                connection.done = true;
                connection.pending = Vec::new();
                connection.close_join(ring, slot);
            }
        }
    }

    fn on_buffers_back(&mut self, ring: &mut Ring, slot: u32) {
        // A connection that is being ended hears of its end there.
        ring.arm_recv(slot);
    }

    fn on_sent(&mut self, ring: &mut Ring, slot: u32, result: &io::Result<()>) {
        let connection = &mut self.0[slot as usize];
        connection.sending = false;
        if result.is_err() {
            // The receive hears of it too, and ends.
            connection.pending = Vec::new();
        }
        if !connection.pending.is_empty() {
            connection.sending = true;
            ring.send(slot, Payload::Bytes(std::mem::take(&mut connection.pending)));
        } else if connection.done && connection.recv_armed {
            // Our Close frame is out; the client's end of stream ends the receive.
            connection.shutdowns += 1;
            ring.shutdown(slot, Shutdown::Write);
        } else {
            connection.close_join(ring, slot);
        }
    }

    fn on_shut_down(&mut self, ring: &mut Ring, slot: u32) {
        let connection = &mut self.0[slot as usize];
        connection.shutdowns -= 1;
        connection.close_join(ring, slot);
    }
}

impl Connection {
    fn on_chunk(&mut self, ring: &mut Ring, slot: u32, mut chunk: Chunk) {
        if self.done {
            return ring.release(chunk);
        }
        if !self.upgraded || !self.partial.is_empty() {
            self.partial.extend_from_slice(ring.bytes(&chunk));
            ring.release(chunk);
            return self.on_partial(ring, slot);
        }
        let bytes = ring.bytes_mut(&mut chunk);
        let Ok(echoed) = echo_in_place(bytes) else {
            ring.release(chunk);
            return self.abort(ring, slot);
        };
        if echoed.taken < bytes.len() && !echoed.closed {
            self.partial.extend_from_slice(&bytes[echoed.taken..]);
        }
        self.done |= echoed.closed;
        if echoed.reply.is_empty() {
            ring.release(chunk);
        } else if self.sending {
            self.pending.extend_from_slice(&bytes[echoed.reply]);
            ring.release(chunk);
            if self.pending.len() > PENDING_BYTES_MAX {
                self.abort(ring, slot);
            }
        } else {
            self.sending = true;
            chunk.narrow(echoed.reply.start, echoed.reply.len());
            ring.send(slot, Payload::Chunk(chunk));
        }
    }

    /// The slow way, for the handshake and for frames that came in pieces: by copying.
    fn on_partial(&mut self, ring: &mut Ring, slot: u32) {
        let mut bytes = std::mem::take(&mut self.partial);
        if !self.upgraded {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                self.partial = bytes;
                if self.partial.len() > RESPONSE_BYTES_MAX {
                    self.abort(ring, slot);
                }
                return;
            };
            let Some(key) = find_key(&bytes[..end]) else { return self.abort(ring, slot) };
            encode_upgrade(&mut self.pending, &accept(key));
            self.upgraded = true;
            bytes.drain(..end + 4);
        }
        let Ok(echoed) = echo_in_place(&mut bytes) else { return self.abort(ring, slot) };
        self.pending.extend_from_slice(&bytes[echoed.reply]);
        self.done |= echoed.closed;
        // Emptied, it keeps no memory: an idle connection has to be small.
        if echoed.taken < bytes.len() && !echoed.closed {
            bytes.drain(..echoed.taken);
            self.partial = bytes;
        }
        if self.partial.len() > FRAME_BYTES_MAX || self.pending.len() > PENDING_BYTES_MAX {
            return self.abort(ring, slot);
        }
        if !self.sending && !self.pending.is_empty() {
            self.sending = true;
            ring.send(slot, Payload::Bytes(std::mem::take(&mut self.pending)));
        }
    }

    /// Ends a connection that cannot go on: both its receive and its send come back.
    fn abort(&mut self, ring: &mut Ring, slot: u32) {
        self.done = true;
        self.pending = Vec::new();
        self.shutdowns += 1;
        ring.shutdown(slot, Shutdown::Both);
    }

    /// Closes the slot once nothing is outstanding on it.
    fn close_join(&mut self, ring: &mut Ring, slot: u32) {
        if self.done && !self.recv_armed && !self.sending && self.shutdowns == 0 {
            *self = Connection::default();
            ring.close(slot);
        }
    }
}

pub(super) fn find_key(head: &[u8]) -> Option<&str> {
    let head = std::str::from_utf8(head).ok()?;
    head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })
}

/// What `echo_in_place` has made of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Echoed {
    /// Where the replies are, one behind the other.
    pub(super) reply: Range<usize>,
    /// Bytes of whole frames. What is behind them is untouched.
    pub(super) taken: usize,
    /// The last of them was a Close frame.
    closed: bool,
}

/// A client's frame that was not masked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unmasked;

/// Turns each whole frame into its reply.
pub(super) fn echo_in_place(buf: &mut [u8]) -> Result<Echoed, Unmasked> {
    // Each reply is 4 bytes shorter than its frame. The first begins 4 bytes in and is unmasked
    // where it lies; those behind it close up: write <= read + 4.
    let (mut read, mut write) = (0, 4);
    let mut closed = false;
    while !closed && read + 2 <= buf.len() {
        if buf[read + 1] & 0x80 == 0 {
            return Err(Unmasked);
        }
        let (len, header_bytes) = match buf[read + 1] & 0x7F {
            126 => match buf[read + 2..].first_chunk() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
                None => break,
            },
            127 => match buf[read + 2..].first_chunk() {
                Some(length) => (u64::from_be_bytes(*length), 10),
                None => break,
            },
            short => (u64::from(short), 2),
        };
        let payload = read + header_bytes + 4;
        let Some(end) = usize::try_from(len).ok().and_then(|len| payload.checked_add(len)) else {
            break;
        };
        if end > buf.len() {
            break;
        }
        let opcode = buf[read] & 0x0F;
        let mask: [u8; 4] = buf[payload - 4..payload].try_into().expect("four bytes");
        if opcode != PONG {
            buf.copy_within(read..read + header_bytes, write);
            if opcode == PING {
                buf[write] = 0x80 | PONG;
            }
            buf[write + 1] &= 0x7F;
            let target = write + header_bytes;
            if target != payload {
                buf.copy_within(payload..end, target);
            }
            apply_mask(&mut buf[target..target + (end - payload)], mask);
            write = target + (end - payload);
        }
        closed = opcode == CLOSE;
        read = end;
    }
    // Nothing to reply may also mean that there were not even 4 bytes.
    let reply = if write > 4 { 4..write } else { 0..0 };
    Ok(Echoed { reply, taken: read, closed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::{BINARY, Frame, TEXT, decode_frame, encode_frame};

    #[test]
    fn frames_come_back_whatever_the_cut() {
        let sizes = [0usize, 5, 125, 126, 300, 65_536, 3];
        let payloads: Vec<Vec<u8>> = sizes.map(|n| (0..n).map(|i| i as u8).collect()).into();
        let mut wire = Vec::new();
        let mut ends = Vec::new();
        for (i, payload) in payloads.iter().enumerate() {
            let opcode = if i % 2 == 0 { TEXT } else { BINARY };
            encode_frame(&mut wire, opcode, payload, 0x1234_5678 + i as u32);
            ends.push(wire.len());
        }
        let near = |cut: usize| ends.iter().any(|end| cut.abs_diff(*end) < 20) || cut < 20;
        for cut in (0..=wire.len()).filter(|cut| near(*cut)) {
            let mut buf = wire[..cut].to_vec();
            let echoed = echo_in_place(&mut buf).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(echoed.taken, if whole == 0 { 0 } else { ends[whole - 1] }, "cut at {cut}");
            assert_eq!(buf[echoed.taken..], wire[echoed.taken..cut], "the rest is untouched");
            let mut replies = &buf[echoed.reply];
            for (i, payload) in payloads[..whole].iter().enumerate() {
                let (frame, len) = decode_frame(replies).unwrap().unwrap();
                let opcode = if i % 2 == 0 { TEXT } else { BINARY };
                assert_eq!(frame, Frame { opcode, fin: true, payload });
                replies = &replies[len..];
            }
            assert!(replies.is_empty());
        }
    }

    #[test]
    fn control_frames() {
        let mut wire = Vec::new();
        encode_frame(&mut wire, PONG, b"unasked", 1);
        encode_frame(&mut wire, PING, b"hey", 2);
        encode_frame(&mut wire, CLOSE, &[3, 232], 3);
        let whole = wire.len();
        encode_frame(&mut wire, TEXT, b"too late", 4);
        let echoed = echo_in_place(&mut wire).unwrap();
        assert_eq!((echoed.taken, echoed.closed), (whole, true));
        assert_eq!(wire[echoed.reply], *b"\x8A\x03hey\x88\x02\x03\xE8");
        assert_eq!(echo_in_place(&mut [0x81, 0x00]), Err(Unmasked));
        // A length that no address space holds is a frame that never becomes whole.
        let mut endless = *b"\x82\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\0\0\0\0";
        assert_eq!(echo_in_place(&mut endless).unwrap().taken, 0);
    }
}
