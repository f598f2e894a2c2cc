//! A member of a room that stops reading, under each policy, and one beside it that keeps up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::{Gateway, HEAD, Peer, Stopped, upgrade};

const MESSAGES: u64 = 4000;
const DATA_BYTES: usize = 16 * 1024;
const KEYS: u64 = 8;

/// Publishes that the sender's own copy has not come back of. All of them fit below the soft bound.
const WINDOW: u64 = 4;

/// What the gateway may grow by while 64 MiB are published: a history of 1 MiB, an outbox of as much,
/// and what allocators keep.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

fn config(policy: &str) -> String {
    format!(
        "{HEAD}[[route]]\nbackend = \"rooms\"\n[backend.rooms]\nkind = \"local\"\n{policy}\n\
         [limits]\noutbox_age_max_ms = 600_000\nping_interval_ms = 0\nsend_buffer_bytes = 65_536\n"
    )
}

/// A client whose kernel keeps little for it.
fn open(address: SocketAddr) -> Peer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(65_536).expect("a socket");
    socket.connect(&address.into()).expect("it listens");
    let mut peer = Peer::new(socket.into());
    peer.write(upgrade("/", ""));
    assert!(peer.head().starts_with("HTTP/1.1 101 "));
    peer
}

fn say(peer: &mut Peer, request: &Value) {
    peer.send(0x81, request.to_string().as_bytes());
}

#[track_caller]
fn hear(peer: &mut Peer) -> Value {
    let frame = peer.frame();
    assert_eq!(frame.first, 0x81, "{:?}", String::from_utf8_lossy(&frame.payload));
    serde_json::from_slice(&frame.payload).expect("JSON")
}

/// Joins the room, as the first thing it does; returns the answer.
#[track_caller]
fn join(peer: &mut Peer) -> Value {
    say(peer, &json!({"op": "join", "room": "r", "id": 1}));
    assert_eq!(hear(peer)["event"], "welcome");
    let answer = hear(peer);
    assert_eq!(answer["ack"], 1, "{answer}");
    answer
}

fn key(offset: u64) -> String {
    format!("key {}", offset % KEYS)
}

fn publish(peer: &mut Peer, offset: u64) {
    let data = format!("{offset} {}", "x".repeat(DATA_BYTES));
    say(peer, &json!({"op": "publish", "room": "r", "key": key(offset), "data": data}));
}

#[track_caller]
fn check_message(value: &Value, offset: u64) {
    assert_eq!((&value["event"], &value["offset"]), (&json!("message"), &json!(offset)));
    assert_eq!(value["key"], key(offset));
    let data = value["data"].as_str().expect("text");
    assert!(data.starts_with(&format!("{offset} x")) && data.len() > DATA_BYTES);
}

/// Has one member stop reading while another publishes so many and reads all of them. Returns both.
fn stall(gateway: &Gateway, messages: u64) -> (Peer, Peer) {
    let mut stopped = open(gateway.address());
    join(&mut stopped);
    let mut reader = open(gateway.address());
    join(&mut reader);
    let mut writer = Peer::new(reader.stream.try_clone().expect("a socket"));
    let (arrived, arrivals) = channel();
    let thread = std::thread::spawn(move || {
        for offset in 1..=messages {
            check_message(&hear(&mut reader), offset);
            arrived.send(()).expect("somebody waits");
        }
        reader
    });
    for offset in 1..=messages {
        if offset > WINDOW {
            arrivals.recv().expect("the member that reads sees every message");
        }
        publish(&mut writer, offset);
    }
    (stopped, thread.join().expect("the member that reads sees every message"))
}

/// The same with all messages, under a policy that drops them: memory does not grow.
fn stall_bounded(gateway: &Gateway) -> (Peer, Peer) {
    let resident = gateway.resident_bytes();
    let members = stall(gateway, MESSAGES);
    let growth = gateway.resident_bytes().saturating_sub(resident);
    assert!(growth <= GROWTH_BYTES_MAX, "{growth} bytes more, for one member that does not read");
    members
}

/// What a member has got that reads again.
#[derive(Default)]
struct Seen {
    messages: u64,
    missed: u64,
    gaps: u64,
    /// The last message of each key.
    last: BTreeMap<String, u64>,
}

/// Reads until it knows of all messages: each one comes, or a gap event names it.
fn catch_up(stopped: &mut Peer, messages: u64) -> Seen {
    let mut seen = Seen::default();
    let mut at = 0;
    while at < messages {
        let value = hear(stopped);
        if value["event"] == "gap" {
            assert_eq!((&value["room"], &value["from"]), (&json!("r"), &json!(at + 1)));
            let to = value["to"].as_u64().expect("an offset");
            assert!(to > at, "{value}");
            seen.missed += to - at;
            seen.gaps += 1;
            at = to;
        } else {
            at += 1;
            check_message(&value, at);
            seen.messages += 1;
            seen.last.insert(key(at), at);
        }
    }
    seen
}

/// It keeps up again: what is published now comes as if nothing had been.
fn go_on(stopped: &mut Peer, reader: &mut Peer, messages: u64) {
    for offset in messages + 1..messages + 10 {
        publish(reader, offset);
        check_message(&hear(stopped), offset);
        check_message(&hear(reader), offset);
    }
}

/// `slow members of rooms: messages dropped 1, messages conflated 2, gap markers sent 3, members closed 4`
fn counted(stopped: &Stopped) -> Vec<u64> {
    let line = stopped.lines.iter().find_map(|line| line.strip_prefix("slow members of rooms: "));
    let words = line.expect("a line of counts").split([' ', ',']);
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn drop_oldest_keeps_the_newest() {
    // A send that waits may hold 256 KiB, which is out of reach; some messages fit behind it.
    let gateway =
        Gateway::start(&config("slow_policy = \"drop-oldest\"\nslow_outbox_bytes = 600_000"));
    let (mut stopped, mut reader) = stall_bounded(&gateway);
    let seen = catch_up(&mut stopped, MESSAGES);
    // One, or a few: what the kernel takes while it looks for room it takes with what was missing by
    // then.
    assert!((1..20).contains(&seen.gaps), "{} gaps", seen.gaps);
    assert_eq!(seen.last.values().max(), Some(&MESSAGES));
    // Behind what was in flight, the last messages came without a hole.
    assert_eq!(seen.last.values().min(), Some(&(MESSAGES + 1 - KEYS)));
    go_on(&mut stopped, &mut reader, MESSAGES);
    drop((stopped, reader));
    assert_eq!(counted(&gateway.stop()), [seen.missed, 0, seen.gaps, 0]);
}

#[test]
fn conflation_keeps_the_newest_of_each_key() {
    // A send that waits may hold 256 KiB, which is out of reach; the newest of each key fit behind it.
    let gateway =
        Gateway::start(&config("slow_policy = \"conflate\"\nslow_outbox_bytes = 900_000"));
    let (mut stopped, mut reader) = stall_bounded(&gateway);
    let seen = catch_up(&mut stopped, MESSAGES);
    let newest: BTreeMap<_, _> =
        (MESSAGES + 1 - KEYS..=MESSAGES).map(|offset| (key(offset), offset)).collect();
    assert_eq!(seen.last, newest);
    go_on(&mut stopped, &mut reader, MESSAGES);
    drop((stopped, reader));
    assert_eq!(counted(&gateway.stop()), [0, seen.missed, seen.gaps, 0]);
}

#[test]
fn messages_that_are_too_old_are_not_sent() {
    // All of it fits below the soft bound: what is dropped is dropped for its age.
    let gateway = Gateway::start(&config(
        "slow_policy = \"drop-oldest\"\nslow_outbox_bytes = 1_000_000\nslow_age_ms = 20",
    ));
    const FEW: u64 = 50;
    let (mut stopped, mut reader) = stall(&gateway, FEW);
    let age = Duration::from_millis(20);
    let last = Instant::now();
    while last.elapsed() < 2 * age {
        say(&mut reader, &json!({"op": "ping"}));
        assert_eq!(hear(&mut reader)["event"], "pong");
    }
    let seen = catch_up(&mut stopped, FEW);
    assert!(seen.missed > 0 && seen.messages > 0, "{} missed", seen.missed);
    assert!(seen.gaps > 0);
    assert!(!seen.last.values().any(|offset| *offset == FEW), "the last one was too old, too");
    go_on(&mut stopped, &mut reader, FEW);
    drop((stopped, reader));
    assert_eq!(counted(&gateway.stop()), [seen.missed, 0, seen.gaps, 0]);
}

#[test]
fn who_is_disconnected_comes_back_to_where_it_was() {
    // Pages of a few messages: an answer has to fit into an outbox like everything else.
    let gateway = Gateway::start(&config(
        "slow_policy = \"disconnect\"\nhistory_bytes_max = 100_000_000\n\
         history_messages_max = 10_000",
    ));
    let (mut stopped, reader) = stall(&gateway, MESSAGES);
    let mut at = 0;
    let (code, reason) = loop {
        let frame = stopped.frame();
        if frame.first == 0x88 {
            let (code, reason) = frame.payload.split_at(2);
            break (u16::from_be_bytes([code[0], code[1]]), reason.to_vec());
        }
        at += 1;
        check_message(&serde_json::from_slice(&frame.payload).expect("JSON"), at);
    };
    let reason = String::from_utf8(reason).expect("UTF-8");
    assert_eq!(code, 1008);
    assert_eq!(reason, "slow consumer: connect again and resume from your last offset");
    assert!((1..MESSAGES / 2).contains(&at), "{at} messages came before the Close frame");
    drop(stopped);

    let mut again = open(gateway.address());
    assert_eq!(join(&mut again)["offset"], MESSAGES);
    while at < MESSAGES {
        say(&mut again, &json!({"op": "history", "room": "r", "after": at, "limit": 32}));
        let answer = hear(&mut again);
        assert_eq!(answer["gap"], false, "{answer}");
        for message in answer["messages"].as_array().expect("a list") {
            at += 1;
            check_message(message, at);
        }
    }
    drop((again, reader));
    assert_eq!(counted(&gateway.stop()), [0, 0, 0, 1]);
}
