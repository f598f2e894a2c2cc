//! Every key that is a number, at the least and at the greatest value that the reader takes.
//!
//! The keys and their ranges are those that the reader was asked for, so a new key takes part. What
//! else a file has to say at such a value stands in [`BESIDE`].

use std::collections::BTreeMap;

use super::check::check;
use super::keys::Keys;
use super::reader::Asked;
use super::tests::machine;
use super::warnings::Warnings;
use super::*;
use crate::limits::{MESSAGE_BYTES_LEAST, MESSAGE_BYTES_MAX};
use crate::memory_bound::{ItemSizes, memory_bound, memory_bound_total};
use crate::ring::sim::{self, Network, Peer, SimRing};
use crate::shard::mailbox::Inbox;
use crate::shard::{Setup, Shard};

/// The tables of the file with all scopes: what the reader knows it by, its heading, and what it says.
const TABLES: [(&str, &str, &str); 10] = [
    ("server", "[server]", ""),
    ("admin", "[admin]", ""),
    ("log", "[log]", "histograms = \"/histograms\""),
    ("limits", "[limits]", ""),
    ("listener", "[[listener]]", "address = \"127.0.0.1:0\""),
    (
        "route",
        "[[route]]",
        "path = \"/echo/*\"\nbackend = \"echo\"\n[backend.echo]\nkind = \"echo\"",
    ),
    ("backend.local", "[backend.rooms]", "kind = \"local\""),
    ("backend.refuse", "[backend.closed]", "kind = \"refuse\""),
    ("backend.websocket", "[backend.app]", "kind = \"websocket\""),
    ("backend.websocket.upstream", "[[backend.app.upstream]]", "url = \"ws://127.0.0.1:9\""),
];

/// What has to stand beside a key (one end of its range, or both): by itself the value contradicts a
/// default, or says nothing.
const BESIDE: [(&str, &str, &str); 22] = [
    ("server.slots_per_shard", "server", "shards = 1"),
    ("limits.target_bytes_max", "limits", "head_bytes_max = 1_048_576"),
    ("limits.outbox_bytes_max", "limits", "message_bytes_max = 125"),
    ("limits.close_timeout_ms", "server", "stop_timeout_ms = 600_000"),
    ("limits.connections_max", "server", "shards = 1024\nslots_per_shard = 1_048_576"),
    ("limits.messages_burst", "limits", "messages_per_second = 1"),
    ("limits.bytes_burst", "limits", "bytes_per_second = 1"),
    ("limits.control_frames_burst", "limits", "control_frames_per_second = 1"),
    ("limits.address_messages_burst", "limits", "address_messages_per_second = 1"),
    ("limits.address_bytes_burst", "limits", "address_bytes_per_second = 1"),
    ("limits.address_control_frames_burst", "limits", "address_control_frames_per_second = 1"),
    ("limits.address_handshakes_burst", "limits", "address_handshakes_per_second = 1"),
    (
        "backend.local.history_bytes_max",
        "backend.local",
        "history_bytes_per_shard_max = 4_294_967_296",
    ),
    ("backend.local.history_bytes_per_shard_max", "backend.local", "history_bytes_max = 0"),
    ("backend.local.slow_outbox_bytes", "limits", "outbox_bytes_max = 1_073_741_824"),
    ("backend.local.slow_age_ms", "backend.local", "slow_policy = \"conflate\""),
    ("backend.websocket.hash_load_percent", "backend.websocket", "balance = \"hash\""),
    ("backend.websocket.eject_ms", "backend.websocket", "eject_max_ms = 86_400_000"),
    ("backend.websocket.eject_max_ms", "backend.websocket", "eject_ms = 1"),
    (
        "backend.websocket.check_interval_ms",
        "backend.websocket",
        "check = \"http\"\ncheck_timeout_ms = 1",
    ),
    (
        "backend.websocket.check_timeout_ms",
        "backend.websocket",
        "check = \"http\"\ncheck_interval_ms = 600_000",
    ),
    (
        "backend.websocket.sticky_cookie_age_ms",
        "backend.websocket",
        "sticky_cookie = true\nsticky_cookie_secret = \"0123456789abcdef0123456789abcdef\"",
    ),
];

/// The file that sets `key` of the table `scope` to `value`, and the line of that.
fn file(scope: &str, key: &str, value: &str) -> (String, usize) {
    let full = format!("{scope}.{key}");
    let mut said: BTreeMap<&str, String> = BTreeMap::new();
    for (at, table, text) in BESIDE {
        // A burst of a route needs its rate in the route.
        let (at, table) = match at.strip_prefix("limits.") {
            Some(of_limits) if scope == "route" && key == of_limits && key.ends_with("_burst") => {
                (full.as_str(), "route")
            }
            _ => (at, table),
        };
        if at == full {
            said.entry(table).or_default().push_str(text);
        }
    }
    let (mut text, mut line) = (String::new(), 0);
    for (name, heading, always) in TABLES {
        text += &format!("{heading}\n");
        if name == scope {
            text += &format!("{key} = {value}\n");
            line = text.lines().count();
        }
        text += &format!("{}\n{always}\n", said.remove(name).unwrap_or_default());
    }
    assert!(said.is_empty() && line > 0, "{full}: {said:?}");
    (text, line)
}

/// A machine on which every table may be had.
fn large() -> Machine {
    Machine { descriptors: 1 << 30, ..machine() }
}

fn read(text: &str) -> (Result<Config, Faults>, Asked) {
    check("f", text, &large(), &Overrides::default())
}

/// Every key that is a number: its table, its name, and its range.
fn numbers() -> Vec<(String, String, u64, u64)> {
    let (plain, _) = file("server", "shards", "2");
    let (config, asked) = read(&plain);
    config.unwrap_or_else(|faults| panic!("{faults}\nin\n{plain}"));
    let numbers = asked.into_iter().filter_map(|(full, range)| {
        let (scope, key) = full.rsplit_once('.').expect("a table and a key");
        let (low, high) = match key {
            // The file has routes to backends that assemble messages, for which the range is narrower.
            "message_bytes_max" => (MESSAGE_BYTES_LEAST as u64, MESSAGE_BYTES_MAX as u64),
            _ => range?.into_inner(),
        };
        Some((scope.to_owned(), key.to_owned(), low, high))
    });
    numbers.collect()
}

/// The config without what it remembers of its file.
fn meaning(text: &str) -> Config {
    let config = read(text).0.unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"));
    Config { keys: Keys::default(), warnings: Warnings::default(), ..config }
}

#[test]
fn both_ends_of_every_range_are_taken_and_mean_something_else() {
    let mut tried = 0;
    for (scope, key, low, high) in numbers() {
        let of = |value: u64| meaning(&file(&scope, &key, &value.to_string()).0);
        let (least, most) = (of(low), of(high));
        assert_ne!(least, most, "{scope}.{key} at {low} is as at {high}");
        for config in [least, most] {
            let bound = memory_bound_total(&memory_bound(&config, &ItemSizes::default()));
            assert!(bound < u64::MAX, "{scope}.{key}: the bound of memory is not known");
        }
        tried += 1;
    }
    assert!(tried > 80, "only {tried} keys");
}

#[test]
fn one_beyond_every_range_is_refused_with_key_range_and_line() {
    // What a message may have is told in words of its own (`what_is_assembled_has_a_bound`).
    for (scope, key, low, high) in numbers().into_iter().filter(|it| it.1 != "message_bytes_max") {
        for value in [i128::from(low) - 1, i128::from(high) + 1] {
            let (text, line) = file(&scope, &key, &value.to_string());
            let faults = read(&text).0.expect_err(&format!("{scope}.{key} = {value}"));
            let want =
                format!("`{key}` is {value}: out of range; choose a number from {low} to {high}");
            let said = |fault: &Fault| fault.line == line && fault.message == want;
            assert!(faults.list.iter().any(said), "{scope}.{key}: {faults}\nin\n{text}");
        }
    }
}

/// A shard of this configuration and one client of it.
struct Play {
    network: Network,
    shard: Shard<SimRing>,
    peer: Peer,
    heard: Vec<u8>,
}

impl Play {
    fn new(text: &str) -> Play {
        let network = Network::new(1, sim::Faults::none());
        let setup = Setup::of_test(text, &[Inbox::default()].into());
        let server = &setup.config.server;
        let (slots, buffers) = (server.slots_per_shard, server.receive_buffers);
        let ring = network.ring(slots, buffers, server.receive_buffer_bytes, 1);
        let mut shard = Shard::new(ring, setup);
        shard.start();
        let peer = network.connect(0, 0);
        Play { network, shard, peer, heard: Vec::new() }
    }

    /// Sends `bytes`, and turns until nothing more comes.
    fn say(&mut self, bytes: &[u8]) -> &[u8] {
        let (mut sent, mut quiet) = (0, 0);
        while quiet < 8 {
            sent += self.peer.send(&bytes[sent..]);
            self.shard.turn();
            let came = self.peer.receive(&mut self.heard, 1 << 20);
            quiet = if came == 0 && sent == bytes.len() || self.peer.is_reset() {
                quiet + 1
            } else {
                0
            };
            let now = self.network.now();
            self.network.jump(now + Duration::from_micros(100));
        }
        &self.heard
    }

    fn head(target: &str, more: &str) -> String {
        format!(
            "GET {target} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        )
    }
}

/// What a client of `text` hears of a handshake with this target and these further headers.
fn status(text: &str, target: &str, more: &str) -> String {
    let mut play = Play::new(text);
    let heard = play.say(Play::head(target, more).as_bytes());
    String::from_utf8_lossy(&heard[..heard.len().min(12)]).into_owned()
}

/// A binary frame of a client, of `len` zeros under a key of zeros.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | 127];
    frame.extend((len as u64).to_be_bytes());
    match len {
        0..126 => frame = vec![0x82, 0x80 | len as u8],
        126..65536 => {
            frame = vec![0x82, 0x80 | 126];
            frame.extend((len as u16).to_be_bytes());
        }
        _ => {}
    }
    frame.extend(vec![0; 4 + len]);
    frame
}

#[test]
fn a_shard_serves_at_both_ends_of_every_range() {
    for (scope, key, low, high) in numbers() {
        for value in [low, high] {
            let full = format!("{scope}.{key}");
            // A million slots are more than this machine may have.
            let is_huge = (full == "server.slots_per_shard" && value == high)
                || full == "limits.connections_max";
            if is_huge {
                continue;
            }
            let (text, _) = file(&scope, &key, &value.to_string());
            let text = match text.contains("slots_per_shard") {
                true => text,
                false => text.replace("[server]\n", "[server]\nslots_per_shard = 64\n"),
            };
            let mut play = Play::new(&text);
            let heard = play.say(Play::head("/echo/", "").as_bytes());
            let heard = String::from_utf8_lossy(&heard[..heard.len().min(12)]).into_owned();
            let want = match (full.as_str(), value) {
                ("limits.target_bytes_max", 1) => "HTTP/1.1 414",
                _ => "HTTP/1.1 101",
            };
            assert_eq!(heard, want, "{full} = {value}");
        }
    }
}

#[test]
fn a_head_is_held_to_both_ends_of_its_ranges() {
    let (least, most) = ("HTTP/1.1 101", "HTTP/1.1 431");
    // Five headers are in every handshake.
    let headers = |count: u64| "A: b\r\n".repeat(count as usize - 5);
    for (_, key, low, high) in numbers().into_iter().filter(|it| it.0 == "limits") {
        for value in [low, high] {
            let text = file("limits", &key, &value.to_string())
                .0
                .replace("[server]\n", "[server]\nslots_per_shard = 64\n");
            match key.as_str() {
                "headers_max" => {
                    let text = text.replace("[limits]\n", "[limits]\nhead_bytes_max = 100_000\n");
                    assert_eq!(status(&text, "/echo/", &headers(value)), least, "{value} headers");
                    assert_eq!(
                        status(&text, "/echo/", &headers(value + 1)),
                        most,
                        "{value} headers"
                    );
                }
                "head_bytes_max" => {
                    let room = value as usize - Play::head("/echo/", "A: \r\n").len();
                    let header = |len: usize| format!("A: {}\r\n", "b".repeat(len));
                    assert_eq!(status(&text, "/echo/", &header(room)), least, "{value} bytes");
                    assert_eq!(status(&text, "/echo/", &header(room + 1)), most, "{value} bytes");
                }
                "message_bytes_max" | "frame_bytes_max" if value <= 125 && value > 0 => {
                    let echo = |len: usize| {
                        let mut play = Play::new(&text);
                        play.say(Play::head("/echo/", "").as_bytes());
                        play.heard.clear();
                        play.say(&frame(len)).to_vec()
                    };
                    assert_eq!(echo(125)[..2], [0x82, 125]);
                    // 1009: too big.
                    let refused = echo(126);
                    assert_eq!((refused[0], &refused[2..4]), (0x88, &[0x03, 0xF1][..]));
                }
                "target_bytes_max" if value > 1 => {
                    let target = |len: usize| format!("/echo/{}", "t".repeat(len - 6));
                    let room = 900_000;
                    assert_eq!(status(&text, &target(room), ""), least);
                }
                _ => {}
            }
        }
    }
}
