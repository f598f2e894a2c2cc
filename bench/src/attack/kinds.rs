//! The table of attacks: how each hostile client behaves, as steps that `hostile.rs` plays.

use std::time::Duration;

use crate::websocket::{self, BINARY, PING, TEXT, encode_frame};

/// One kind of attack.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// One line for the report.
    pub(super) about: &'static str,
    /// Source addresses, where it takes other ones than `--hostile-addresses`.
    pub(super) addresses: Option<u32>,
    /// Connections for each hostile client.
    pub(super) factor: u32,
    /// Connects begun each second at most, for each hostile client.
    pub(super) opens_each: f64,
    /// But never fewer than this.
    pub(super) opens_min: f64,
    /// Connections at once at most, where fewer show more.
    pub(super) connections_max: u32,
    /// From an end to the next connection of the same client.
    pub(super) pause: Duration,
    /// Goes on although the server has ended its half of the connection.
    pub(super) is_stubborn: bool,
    /// Whether what the server sends is read once its answer to the handshake has come.
    pub(super) reads: bool,
    /// Whether clients that come meanwhile must all be served. Not where the table is full: there a
    /// 503 is right.
    pub(super) newcomers_judged: bool,
    /// Where it connects to: the listener, or the admin interface.
    pub(super) on_admin: bool,
    pub(super) step: fn(&mut Mind, &Ground, &mut Vec<u8>) -> Next,
}

/// What one hostile connection remembers.
#[derive(Default)]
pub(super) struct Mind {
    pub(super) index: u32,
    /// Connections that this client has had before.
    pub(super) round: u32,
    pub(super) step: u32,
    /// The head of an answer is complete.
    pub(super) answered: bool,
}

/// What a hostile client does next, after the bytes that its step has appended are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next step.
    Again,
    /// The next step, after so long.
    After(Duration),
    /// The next step once an answer's head has come.
    Answer,
    /// Ends its half of the connection, and waits for the server to end the other.
    Fin,
    /// Breaks off with a reset.
    Leave,
    /// Nothing more: stays until the server ends it.
    Stay,
}

/// The server as hostile clients know it.
pub(super) struct Ground {
    pub(super) host: String,
    pub(super) relay: String,
    pub(super) echo: String,
    pub(super) rooms: String,
    pub(super) sink: String,
    pub(super) hangup: String,
}

impl Ground {
    fn upgrade(&self, path: &str, mind: &Mind, more: &[u8], out: &mut Vec<u8>) {
        let key = websocket::key(u64::from(mind.index) << 32 | u64::from(mind.round));
        let request = websocket::Request {
            host: &self.host,
            path,
            key: &key,
            subprotocols: "",
            deflate: false,
            headers: &[],
        };
        encode_request(out, &request, more);
    }

    /// The path of the relay or of the echo, by turns.
    fn either(&self, mind: &Mind) -> &str {
        if (mind.index + mind.round).is_multiple_of(2) { &self.relay } else { &self.echo }
    }
}

/// The handshake with further header lines, each with its end, as raw bytes.
fn encode_request(out: &mut Vec<u8>, request: &websocket::Request<'_>, more: &[u8]) {
    websocket::encode_request(out, request);
    out.truncate(out.len() - 2);
    out.extend_from_slice(more);
    out.extend_from_slice(b"\r\n");
}

/// All kinds, in the order in which they are played.
pub(super) const KINDS: &[Kind] = &[
    Kind { step: silent, ..kind("silent", "connect and say nothing", 5.0) },
    Kind {
        on_admin: true,
        ..kind("silent-admin", "connect to the admin interface and say nothing", 5.0)
    },
    Kind { step: slow_head, ..kind("slow-heads", "a byte of the head every half second", 5.0) },
    Kind { step: slow_body, ..kind("slow-bodies", "a byte of a body every half second", 5.0) },
    Kind {
        step: head_bomb,
        opens_min: 400.0,
        ..kind("head-bombs", "16 kB heads: 58 fields and 7,500 nominations", 0.25)
    },
    Kind {
        step: history,
        reads: false,
        ..kind("history", "150 orders of a 1 MiB history in one write, not read", 2.0)
    },
    Kind {
        step: rooms,
        addresses: Some(2),
        ..kind("rooms", "join, publish, leave, the next name", 2.0)
    },
    Kind {
        step: half_close,
        // Twice the pace at which two shards tell clients that they lost an upstream, and more.
        opens_min: 3000.0,
        pause: Duration::from_millis(10),
        ..kind("half-closes", "FIN without a Close frame through the relay", 0.75)
    },
    Kind {
        step: pour,
        is_stubborn: true,
        connections_max: 8,
        ..kind("pouring", "a reserved bit, then bytes without end", 2.0)
    },
    Kind { step: poison, ..kind("poison", "a handshake that makes the upstream break off", 0.25) },
    Kind {
        step: burst,
        addresses: Some(64),
        factor: 6,
        pause: Duration::from_secs(1),
        newcomers_judged: false,
        ..kind("backlog", "all connect at once, six times as many", 1000.0)
    },
    Kind { step: pings, ..kind("pings", "Pings as fast as they are taken", 2.0) },
    Kind {
        step: fragments,
        ..kind("fragments", "one message of empty and tiny fragments without end", 2.0)
    },
    Kind {
        step: unfinished,
        // Where the memory is full, 503 is right as well.
        newcomers_judged: false,
        ..kind("unfinished", "a message of 1 MiB but for its last byte", 2.0)
    },
    Kind {
        step: stop_reading,
        reads: false,
        ..kind("stop-reading", "64 KiB messages to be echoed, not read", 2.0)
    },
];

const fn kind(name: &'static str, about: &'static str, opens_each: f64) -> Kind {
    Kind {
        name,
        about,
        addresses: None,
        factor: 1,
        opens_each,
        opens_min: 10.0,
        connections_max: u32::MAX,
        pause: Duration::from_millis(100),
        is_stubborn: false,
        reads: true,
        newcomers_judged: true,
        on_admin: false,
        step: silent,
    }
}

fn silent(_mind: &mut Mind, _ground: &Ground, _out: &mut Vec<u8>) -> Next {
    Next::Stay
}

const TRICKLE: Duration = Duration::from_millis(500);

fn slow_head(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    let mut head = Vec::new();
    ground.upgrade(ground.either(mind), mind, b"", &mut head);
    // Never the last bytes.
    let at = (mind.step as usize - 1).min(head.len() - 5);
    out.push(head[at]);
    Next::After(TRICKLE)
}

fn slow_body(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step == 1 {
        let (path, host) = (&ground.sink, &ground.host);
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\n\r\n");
        out.extend_from_slice(head.as_bytes());
    } else {
        out.push(b'x');
    }
    Next::After(TRICKLE)
}

fn head_bomb(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step > 1 {
        return Next::Leave;
    }
    let mut more = Vec::new();
    for number in 0..50 {
        more.extend_from_slice(format!("{}{number}: y\r\n", 'x').as_bytes());
    }
    more.extend_from_slice(b"Connection: upgrade");
    for _ in 0..7300 {
        more.extend_from_slice(b",a");
    }
    more.extend_from_slice(b"\r\n");
    ground.upgrade(&ground.relay, mind, &more, out);
    Next::Answer
}

fn text(out: &mut Vec<u8>, json: &str) {
    encode_frame(out, TEXT, json.as_bytes(), 0x5a5a_1234);
}

fn history(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    match mind.step {
        1 => {
            ground.upgrade(&ground.rooms, mind, b"", out);
            return Next::Answer;
        }
        2 => {
            text(out, r#"{"op":"join","room":"hostile"}"#);
            // One in a hundred fills the history that all of them ask for.
            if mind.index.is_multiple_of(100) && mind.round == 0 {
                let data = "h".repeat(26_000);
                for _ in 0..40 {
                    text(out, &format!(r#"{{"op":"publish","room":"hostile","data":"{data}"}}"#));
                }
            }
            return Next::After(Duration::from_secs(1));
        }
        3 => {
            for _ in 0..150 {
                text(out, r#"{"op":"history","room":"hostile"}"#);
            }
        }
        _ => {}
    }
    Next::Stay
}

fn rooms(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step == 1 {
        ground.upgrade(&ground.rooms, mind, b"", out);
        return Next::Answer;
    }
    for number in 0..100u32 {
        let room = format!("x{}-{}-{}-{number}", mind.index, mind.round, mind.step);
        text(out, &format!(r#"{{"op":"join","room":"{room}"}}"#));
        text(out, &format!(r#"{{"op":"publish","room":"{room}","data":0}}"#));
        text(out, &format!(r#"{{"op":"leave","room":"{room}"}}"#));
    }
    Next::After(Duration::from_millis(500))
}

fn half_close(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step > 1 {
        return Next::Fin;
    }
    let is_even = (mind.index + mind.round).is_multiple_of(2);
    let hangs_up = is_even && !ground.hangup.is_empty();
    ground.upgrade(if hangs_up { &ground.hangup } else { &ground.relay }, mind, b"", out);
    Next::Answer
}

fn pour(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    match mind.step {
        1 => {
            ground.upgrade(ground.either(mind), mind, b"", out);
            return Next::Answer;
        }
        // RFC 6455 §5.2: RSV1 without an extension is a failure.
        2 => out.extend_from_slice(b"\xC2\x80\0\0\0\0"),
        _ => out.resize(out.len() + 65_536, 0),
    }
    Next::Again
}

fn poison(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step > 1 {
        return Next::Leave;
    }
    // A byte of obs-text (RFC 9110 §5.5), over which the upstream hangs up.
    ground.upgrade(&ground.relay, mind, b"X-Poison: \xFF\r\n", out);
    Next::Answer
}

fn burst(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step == 1 {
        ground.upgrade(&ground.echo, mind, b"", out);
        return Next::Answer;
    }
    Next::Stay
}

fn pings(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step == 1 {
        ground.upgrade(ground.either(mind), mind, b"", out);
        return Next::Answer;
    }
    for _ in 0..100 {
        encode_frame(out, PING, b"", 7);
    }
    Next::Again
}

fn fragments(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    match mind.step {
        1 => {
            // To the echo: through the relay they would be a load on the upstream as well.
            ground.upgrade(&ground.echo, mind, b"", out);
            return Next::Answer;
        }
        2 => out.extend_from_slice(b"\x02\x80\0\0\0\0"),
        _ => {
            for number in 0..500 {
                // One in ten has a byte.
                let frame: &[u8] =
                    if number % 10 == 0 { b"\0\x81\0\0\0\0x" } else { b"\0\x80\0\0\0\0" };
                out.extend_from_slice(frame);
            }
        }
    }
    Next::Again
}

/// What is left out of the last message, in bytes.
const MISSING: usize = 1;

fn unfinished(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    match mind.step {
        1 => {
            ground.upgrade(&ground.echo, mind, b"", out);
            Next::Answer
        }
        2 => {
            encode_frame(out, BINARY, &vec![7; 1 << 20], 0x1234_5678);
            out.truncate(out.len() - MISSING);
            Next::Again
        }
        _ => Next::Stay,
    }
}

fn stop_reading(mind: &mut Mind, ground: &Ground, out: &mut Vec<u8>) -> Next {
    if mind.step == 1 {
        ground.upgrade(ground.either(mind), mind, b"", out);
        return Next::Answer;
    }
    encode_frame(out, BINARY, &[7; 65_536], 0x1234_5678);
    Next::Again
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground() -> Ground {
        let path = |name: &str| format!("/{name}");
        Ground {
            host: "h".into(),
            relay: path("relay"),
            echo: path("echo"),
            rooms: path("rooms"),
            sink: path("sink"),
            hangup: path("hangup"),
        }
    }

    #[test]
    fn names_are_told_apart_and_steps_write() {
        for (index, kind) in KINDS.iter().enumerate() {
            assert!(KINDS[..index].iter().all(|other| other.name != kind.name), "{}", kind.name);
            let mut mind = Mind { step: 1, ..Mind::default() };
            let mut out = Vec::new();
            let next = (kind.step)(&mut mind, &ground(), &mut out);
            assert_eq!(out.is_empty(), next == Next::Stay, "{}", kind.name);
        }
    }

    #[test]
    fn a_head_bomb_is_as_large_as_a_head_may_be() {
        let mut out = Vec::new();
        head_bomb(&mut Mind { step: 1, ..Mind::default() }, &ground(), &mut out);
        assert!((15_000..16_384).contains(&out.len()), "{}", out.len());
        assert!(out.ends_with(b"\r\n\r\n"));
    }
}
