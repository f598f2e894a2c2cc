//! A WebSocket client: what it sends and when, what it has read, and how it ended.

use std::collections::VecDeque;
use std::time::Duration;

use gateway::ring::sim::{Peer, Random};
use gateway::time::Time;

pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// A frame as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) fin: bool,
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// How an end uses its socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// Bytes of one write at most.
    pub(crate) write_max: usize,
    /// Pauses between writes are at most this long.
    pub(crate) write_pause: Duration,
    /// Bytes of one read at most.
    pub(crate) read_max: usize,
    /// Pauses between reads are at most this long.
    pub(crate) read_pause: Duration,
    /// A client that may leave its socket alone for minutes.
    pub(crate) rude: bool,
}

impl Manners {
    /// Takes and gives all it can, at once.
    pub(crate) const PROMPT: Manners = Manners {
        write_max: 100_000,
        write_pause: Duration::ZERO,
        read_max: 100_000,
        read_pause: Duration::ZERO,
        rude: false,
    };

    /// Any but a rude one's.
    pub(crate) fn pick_polite(dice: &mut Random) -> Manners {
        Manners { rude: false, ..Manners::pick(dice) }
    }

    pub(crate) fn pick(dice: &mut Random) -> Manners {
        let size = |dice: &mut Random| match dice.below(4) {
            0 => 1 + dice.below(8) as usize,
            1 => 1 + dice.below(200) as usize,
            _ => 100_000,
        };
        let pause = |dice: &mut Random| match dice.below(5) {
            0 => Duration::from_micros(1 + dice.below(3000)),
            1 => Duration::from_micros(1 + dice.below(60)),
            _ => Duration::ZERO,
        };
        Manners {
            write_max: size(dice),
            write_pause: pause(dice),
            read_max: size(dice).max(16),
            read_pause: pause(dice),
            rude: dice.below(8) == 0,
        }
    }
}

/// How the stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Open,
    /// The other end has ended its stream in order.
    Finished,
    /// It was reset by the network or the other end.
    Reset,
    /// This end has gone.
    Gone,
}

/// What this end does once everything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// Nothing: it stays.
    Stay,
    /// It waits for the end of the other's stream.
    Wait,
    /// It ends its own stream.
    HalfClose,
    Reset,
    /// It closes its socket.
    Drop,
}

/// One end of a connection with the gateway.
pub(crate) struct Line {
    pub(crate) peer: Option<Peer>,
    pub(crate) manners: Manners,
    /// By its manners or by its link.
    pub(crate) slow: bool,
    /// Whole frames (or other pieces that nothing may be put into).
    pub(crate) queue: VecDeque<Vec<u8>>,
    cursor: usize,
    /// Bytes that the socket took, all in all.
    pub(crate) sent: usize,
    pub(crate) received: Vec<u8>,
    pub(crate) farewell: Farewell,
    pub(crate) end: End,
    /// It leaves, by its farewell, when this many bytes have been sent.
    pub(crate) cut_at: usize,
    pub(crate) half_closed: bool,
    /// It does not leave because it has said all; only `cut_at` makes it.
    pub(crate) patient: bool,
    write_at: Time,
    read_at: Time,
}

impl Line {
    /// Closed at once because there was no place, or told so.
    pub(crate) fn is_refused(&self) -> bool {
        let told = self.received.starts_with(b"HTTP/1.1 503 ");
        self.end != End::Open && (self.received.is_empty() || told)
    }

    pub(crate) fn new(peer: Peer, manners: Manners, farewell: Farewell) -> Line {
        Line {
            slow: peer.is_slow() || manners.read_max < 1000 || manners.write_max < 1000,
            peer: Some(peer),
            manners,
            queue: VecDeque::new(),
            cursor: 0,
            sent: 0,
            received: Vec::new(),
            farewell,
            end: End::Open,
            cut_at: usize::MAX,
            half_closed: false,
            patient: false,
            write_at: Time(0),
            read_at: Time(0),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.end == End::Open
    }

    /// Everything was written.
    pub(crate) fn has_said_all(&self) -> bool {
        self.queue.is_empty()
    }

    /// Puts a frame behind the one that is being sent.
    pub(crate) fn squeeze_in(&mut self, frame: Vec<u8>) {
        let place = usize::from(self.cursor > 0).min(self.queue.len());
        self.queue.insert(place, frame);
    }

    /// Sends and reads as far as it goes; says when it wants to be called again.
    pub(crate) fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        if !self.is_open() {
            return Time::NEVER;
        }
        let mut wake = Time::NEVER;
        if self.write_at <= now {
            self.write(now, dice);
        }
        if self.write_at > now && !self.queue.is_empty() {
            wake = wake.min(self.write_at);
        }
        if self.end == End::Gone {
            return Time::NEVER;
        }
        if self.read_at <= now {
            self.read(now, dice);
        }
        if self.is_open() && self.read_at > now {
            wake = wake.min(self.read_at);
        }
        wake
    }

    fn write(&mut self, now: Time, dice: &mut Random) {
        if self.half_closed {
            return;
        }
        let Some(peer) = &mut self.peer else { return };
        for _ in 0..8 {
            if self.sent >= self.cut_at {
                return self.leave();
            }
            let Some(chunk) = self.queue.front() else { break };
            let most = self.manners.write_max.min(self.cut_at - self.sent);
            let rest = &chunk[self.cursor..];
            let piece = &rest[..rest.len().min(most)];
            let wanted = piece.len();
            let took = peer.send(piece);
            self.cursor += took;
            self.sent += took;
            if self.cursor == chunk.len() {
                self.queue.pop_front();
                self.cursor = 0;
            }
            if took < wanted {
                return;
            }
            if !self.manners.write_pause.is_zero() && dice.below(4) == 0 {
                self.write_at = now + pause(dice, self.manners.write_pause);
                break;
            }
        }
        if self.queue.is_empty() && !self.patient {
            match self.farewell {
                Farewell::Stay | Farewell::Wait => {}
                _ => self.leave(),
            }
        }
    }

    fn leave(&mut self) {
        match self.farewell {
            Farewell::Stay | Farewell::Wait => {}
            Farewell::HalfClose => {
                if !self.half_closed {
                    self.half_closed = true;
                    self.queue.clear();
                    self.cursor = 0;
                    self.cut_at = usize::MAX;
                    self.peer.as_mut().expect("open").finish();
                }
            }
            Farewell::Reset => {
                self.end = End::Gone;
                self.peer.take().expect("open").reset();
            }
            Farewell::Drop => {
                self.end = End::Gone;
                self.peer = None;
            }
        }
    }

    fn read(&mut self, now: Time, dice: &mut Random) {
        let Some(peer) = &mut self.peer else { return };
        // A slow end may take a sip of nothing, which is no reason to stop.
        for _ in 0..32 {
            let count = peer.receive(&mut self.received, self.manners.read_max);
            if count > 0 && !self.manners.read_pause.is_zero() && dice.below(4) == 0 {
                self.read_at = now + pause(dice, self.manners.read_pause);
                break;
            }
        }
        if self.manners.rude && dice.below(100) == 0 {
            self.read_at = now + Duration::from_millis(dice.below(90_000));
        }
        if peer.is_finished() {
            self.end = End::Finished;
            self.peer = None;
        } else if peer.is_reset() {
            // What had arrived before is still there.
            loop {
                let before = self.received.len();
                for _ in 0..32 {
                    peer.receive(&mut self.received, 1 << 20);
                }
                if self.received.len() == before {
                    break;
                }
            }
            self.end = End::Reset;
            self.peer = None;
        }
    }
}

fn pause(dice: &mut Random, most: Duration) -> Duration {
    Duration::from_nanos(1 + dice.below(most.as_nanos() as u64))
}

/// A client's frame: masked, with a key of the dice.
pub(crate) fn masked(dice: &mut Random, fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let key = (dice.next_u64() as u32).to_ne_bytes();
    let mut frame = header(fin, opcode, payload.len(), 0x80);
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A server's frame.
pub(crate) fn unmasked(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(fin, opcode, payload.len(), 0);
    frame.extend(payload);
    frame
}

fn header(fin: bool, opcode: u8, len: usize, mask: u8) -> Vec<u8> {
    let mut header = vec![u8::from(fin) << 7 | opcode];
    match len {
        0..126 => header.push(mask | len as u8),
        126..65536 => {
            header.push(mask | 126);
            header.extend((len as u16).to_be_bytes());
        }
        _ => {
            header.push(mask | 127);
            header.extend((len as u64).to_be_bytes());
        }
    }
    header
}

pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// A frame at the front of `bytes`, and its length. Panics at what no server (or, `masked`, no
/// client) may send.
pub(crate) fn read_frame(bytes: &[u8], masked: bool) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert_eq!(first & 0x70, 0, "reserved bits in {:?}", &bytes[..bytes.len().min(16)]);
    assert_eq!(second & 0x80 != 0, masked, "mask in {:?}", &bytes[..bytes.len().min(16)]);
    let mut at = 2;
    let len = match second & 0x7F {
        126 => {
            let len = u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap());
            assert!(len >= 126);
            at = 4;
            usize::from(len)
        }
        127 => {
            let len = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap());
            assert!(len > 0xFFFF);
            at = 10;
            len as usize
        }
        short => usize::from(short),
    };
    let key: [u8; 4] = if masked {
        at += 4;
        bytes.get(at - 4..at)?.try_into().unwrap()
    } else {
        [0; 4]
    };
    let payload = bytes.get(at..at + len)?;
    let payload: Vec<u8> =
        payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
    assert!([0, 1, 2, 8, 9, 10].contains(&opcode), "opcode {opcode}");
    assert!(opcode < 8 || (fin && len <= 125), "control frame of {len} bytes");
    Some((Frame { fin, opcode, payload }, at + len))
}

/// The head at the front of `bytes`, once it is whole.
pub(crate) fn head_of(bytes: &[u8]) -> Option<String> {
    let end = bytes.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
    Some(String::from_utf8(bytes[..end].to_vec()).expect("ASCII"))
}

/// How a server accepts the WebSocket that is asked for with `head`.
pub(crate) fn switching(head: &str) -> Vec<u8> {
    let is_key = |line: &&str| line.to_ascii_lowercase().starts_with("sec-websocket-key:");
    let line = head.lines().find(is_key).expect("a key");
    let key = line.split_once(':').expect("a colon").1.trim();
    let accept = gateway::handshake::accept_value(key);
    switching_with(std::str::from_utf8(&accept).expect("base64"))
}

/// The same, with this `Sec-WebSocket-Accept`.
pub(crate) fn switching_with(accept: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

/// A client of the gateway.
pub(crate) struct Client {
    pub(crate) line: Line,
    /// The gateway's answer to the request, once it is whole.
    pub(crate) head: Option<String>,
    /// Where in `line.received` the first frame begins that has not been read.
    pub(crate) parsed: usize,
    pub(crate) head_bytes: usize,
    pub(crate) frames: Vec<Frame>,
    /// Answers pings.
    pub(crate) ponging: bool,
    close_sent: bool,
}

pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

impl Client {
    pub(crate) fn new(line: Line, target: &str) -> Client {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        let mut client = Client {
            line,
            head: None,
            parsed: 0,
            head_bytes: 0,
            frames: Vec::new(),
            ponging: true,
            close_sent: false,
        };
        client.line.queue.push_back(request.into_bytes());
        client
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.starts_with("HTTP/1.1 101 "))
    }

    /// The Close frame that has come.
    pub(crate) fn close(&self) -> Option<&Frame> {
        self.frames.iter().find(|frame| frame.opcode == CLOSE)
    }

    pub(crate) fn close_code(&self) -> Option<u16> {
        let payload = &self.close()?.payload;
        payload.get(..2).map(|code| u16::from_be_bytes(code.try_into().unwrap()))
    }

    /// It has put a Close frame into its queue.
    pub(crate) fn says_close(&mut self) {
        self.close_sent = true;
    }

    pub(crate) fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        if self.read_frames(dice) { now } else { wake }
    }

    /// Reads what has come; true when it made something to be sent.
    pub(crate) fn read_frames(&mut self, dice: &mut Random) -> bool {
        if self.head.is_none() {
            let Some(head) = head_of(&self.line.received) else { return false };
            if head.starts_with("HTTP/1.1 101 ") {
                assert!(head.contains(ACCEPT), "{head}");
            }
            self.head_bytes = head.len();
            self.parsed = head.len();
            self.head = Some(head);
        }
        if !self.is_upgraded() {
            return false;
        }
        let mut answers = Vec::new();
        while let Some((frame, len)) = read_frame(&self.line.received[self.parsed..], false) {
            assert!(self.close().is_none(), "{frame:?} after a Close frame");
            self.parsed += len;
            match frame.opcode {
                PING if self.ponging && !self.close_sent => {
                    answers.push(masked(dice, true, PONG, &frame.payload));
                }
                CLOSE if self.ponging && !self.close_sent => {
                    self.close_sent = true;
                    // What it still had to say is not said any more.
                    let begun = usize::from(self.line.cursor > 0).min(self.line.queue.len());
                    self.line.queue.truncate(begun);
                    self.line.farewell = Farewell::Wait;
                    answers.push(masked(dice, true, CLOSE, &frame.payload));
                }
                _ => {}
            }
            self.frames.push(frame);
        }
        let answered = !answers.is_empty() && self.line.is_open() && !self.line.half_closed;
        if answered {
            answers.into_iter().for_each(|answer| self.line.squeeze_in(answer));
        }
        answered
    }
}
