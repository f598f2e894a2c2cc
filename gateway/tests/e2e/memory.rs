//! The memory ledger against what the kernel says.

use std::path::PathBuf;
use std::time::Instant;

use axum::http::{Method, StatusCode};
use gateway::admin::client::ask;
use serde_json::Value;

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, PATIENCE, Peer};

/// Clients of echo, and as many of rooms.
const CLIENTS: usize = 1500;

/// How far the ledger may be from the resident memory.
const TOLERANCE: f64 = 0.10;

struct Measured {
    gateway: Gateway,
    socket: PathBuf,
}

/// The ledger at one moment.
#[derive(Debug)]
struct Ledger(Value);

impl Ledger {
    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("`{key}` in {self:?}"))
    }

    fn component(&self, name: &str) -> u64 {
        let components = self.0["components"].as_array().expect("a list");
        let found = components.iter().find(|it| it["name"] == name);
        found.and_then(|it| it["bytes"].as_u64()).unwrap_or_else(|| panic!("{name} in {self:?}"))
    }

    /// Asserts that it adds up, and agrees with the kernel.
    #[track_caller]
    fn check(&self, gateway: &Gateway) {
        let components = self.0["components"].as_array().expect("a list");
        let sum: u64 = components.iter().map(|it| it["bytes"].as_u64().expect("a number")).sum();
        let (ledger, rss) = (self.number("ledger_bytes"), self.number("rss_bytes"));
        assert_eq!(sum, ledger);
        assert_eq!(self.0["unaccounted_bytes"].as_i64(), Some(rss as i64 - ledger as i64));
        let off = (ledger as f64 - rss as f64).abs() / rss as f64;
        assert!(off <= TOLERANCE, "{:.1} % off: {self:?}", off * 100.0);
        // What the ledger compares itself with is what everybody sees.
        let seen = gateway.resident_bytes();
        assert!(rss.abs_diff(seen) as f64 <= TOLERANCE * seen as f64, "{rss} is not {seen}");
    }
}

impl Measured {
    fn start() -> Measured {
        let name = format!("memory-{}.sock", std::process::id());
        let socket = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let config = format!(
            "{HEAD}{ECHO_AND_ROOMS}[admin]\nsocket = \"{}\"\n[limits]\nping_interval_ms = 0\n",
            socket.display()
        );
        Measured { gateway: Gateway::start(&config), socket }
    }

    fn ask(&self, path: &str) -> Value {
        let (status, body) = ask(&self.socket, Method::GET, path).expect("it answers");
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).expect("JSON")
    }

    /// Waits until the ledger is as it should be, twice in a row: then it was measured while nothing
    /// changed.
    #[track_caller]
    fn ledger_with(&self, what: &str, is_right: impl Fn(&Ledger) -> bool) -> Ledger {
        let began = Instant::now();
        let (mut right, mut measured_at) = (0, 0);
        loop {
            let ledger = Ledger(self.ask("/api/v1/memory"));
            let at = ledger.number("unix_ms");
            if at != measured_at {
                measured_at = at;
                right = if is_right(&ledger) { right + 1 } else { 0 };
                if right == 2 {
                    return ledger;
                }
            }
            assert!(began.elapsed() < PATIENCE, "never {what}: {ledger:?}");
            std::thread::yield_now();
        }
    }
}

/// A gateway whose clients come, hold messages that are not whole, messages that they do not read,
/// and rooms with a history, and go.
#[test]
fn the_ledger_agrees_with_the_kernel() {
    gateway::config::raise_descriptor_limit().expect("thousands of sockets");
    let measured = Measured::start();
    let address = measured.gateway.address();

    let empty = measured.ledger_with("empty", |ledger| ledger.component("table") == 0);
    empty.check(&measured.gateway);
    let sockets = empty.0["kernel"]["sockets_bytes"].as_u64();
    assert_eq!(sockets, Some(0));

    // The first half of a message, from each.
    let mut echoes: Vec<Peer> = (0..CLIENTS).map(|_| Peer::open(address, "/echo")).collect();
    for peer in &mut echoes {
        peer.write([&[0x82, 0xfe, 0x0f, 0xa0, 0, 0, 0, 0][..], &[7; 3000]].concat());
    }
    let half = (CLIENTS * 3000) as u64;
    let halves = measured.ledger_with("halves", |it| it.component("assembly") >= half);
    halves.check(&measured.gateway);
    assert!(halves.component("assembly") < 2 * half, "{halves:?}");
    assert!(halves.component("table") >= CLIENTS as u64 * 200, "{halves:?}");
    assert!(halves.component("timers") > empty.component("timers"));
    assert!(halves.number("kernel_bytes") >= CLIENTS as u64 * 4000, "{halves:?}");
    assert!(halves.number("rss_bytes") >= empty.number("rss_bytes") + half);

    // Members of rooms, each of which keeps what was said in it.
    let mut members: Vec<Peer> =
        (0..CLIENTS).map(|user| Peer::open(address, &format!("/rooms?user=user{user}"))).collect();
    let data = "x".repeat(900);
    for (index, peer) in members.iter_mut().enumerate() {
        let room = index % 100;
        peer.send(0x81, format!(r#"{{"op":"join","room":"{room}"}}"#).as_bytes());
        peer.send(
            0x81,
            format!(r#"{{"op":"publish","room":"{room}","data":"{data}"}}"#).as_bytes(),
        );
    }
    let kept = (CLIENTS * 900) as u64;
    let rooms = measured.ledger_with("rooms", |it| it.component("rooms history") >= kept);
    rooms.check(&measured.gateway);
    assert!(rooms.component("rooms") >= CLIENTS as u64 * 100, "{rooms:?}");
    assert_eq!(rooms.component("assembly"), halves.component("assembly"));

    // One that does not read what comes back to it.
    let mut slow = Peer::open(address, "/echo");
    slow.stream.set_nonblocking(true).expect("a socket");
    let message = [&[0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0][..], &[7; 65_535]].concat();
    let began = Instant::now();
    let outboxes = rooms.component("outboxes");
    // Once it is not read any more, all that there is room for is full.
    let mut offset = 0;
    let full = loop {
        use std::io::Write;
        match slow.stream.write(&message[offset..]) {
            Ok(count) => offset = (offset + count) % message.len(),
            Err(_) => {
                let ledger = Ledger(measured.ask("/api/v1/memory"));
                if ledger.component("outboxes") >= outboxes + (200 << 10) {
                    break measured.ledger_with("slow", |it| it.component("outboxes") > outboxes);
                }
            }
        }
        assert!(began.elapsed() < PATIENCE, "the outbox is never full");
    };
    full.check(&measured.gateway);

    // And all of them go.
    drop((echoes, members, slow));
    let gone = measured.ledger_with("gone", |it| {
        ["assembly", "outboxes", "rates", "request heads", "handshakes", "early bytes"]
            .iter()
            .all(|name| it.component(name) <= empty.component(name))
            && it.0["kernel"]["sockets_bytes"] == 0
    });
    gone.check(&measured.gateway);
    assert!(gone.component("rooms") < rooms.component("rooms"), "{gone:?}");
    assert_eq!(gone.component("table"), full.component("table"), "slots that were used stay");
    assert!(gone.number("heap_in_use_bytes") + half < full.number("heap_in_use_bytes"));
    measured.gateway.stop().expect(&format!("client_gone {}", 2 * CLIENTS + 1));
}
