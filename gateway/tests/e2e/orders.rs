//! A member of a room that orders much and reads nothing pays for it alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Gateway, HEAD, Peer, masked};

const ROOMS: &str = "[[route]]\nbackend = \"rooms\"\n[backend.rooms]\nkind = \"local\"\n";

/// Nearly all of an answer waits in the gateway.
const SMALL_BUFFERS: &str = "[limits]\nsend_buffer_bytes = 4096\n";

/// Orders in one write; each asks for a history of 1 MiB.
const ORDERS: usize = 1800;

/// What the gateway may grow by: the history, one answer in the outbox and one on its way, and what
/// allocators keep.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

fn hear(peer: &mut Peer) -> Value {
    let frame = peer.frame();
    assert_eq!(frame.first, 0x81, "{:?}", String::from_utf8_lossy(&frame.payload));
    serde_json::from_slice(&frame.payload).expect("JSON")
}

/// A member of `r`, and what the answer to its join was.
fn member(gateway: &Gateway) -> Peer {
    let mut peer = Peer::open(gateway.address(), "/");
    peer.send(0x81, json!({"op": "join", "room": "r", "id": "join"}).to_string().as_bytes());
    assert_eq!(hear(&mut peer)["event"], "welcome");
    assert_eq!(hear(&mut peer)["ack"], "join");
    peer
}

/// Publishes `count` messages of 26 kB, one after the other.
fn publish(writer: &mut Peer, count: usize) {
    let data = "x".repeat(26_000);
    for number in 0..count {
        let request = json!({"op": "publish", "room": "r", "id": number, "data": data});
        writer.send(0x81, request.to_string().as_bytes());
        let mut heard = [hear(writer), hear(writer)];
        heard.sort_by_key(|value| value["ack"].is_null());
        assert_eq!(heard[0]["ack"], number);
    }
}

#[test]
fn orders_are_served_as_their_answers_are_read() {
    let gateway = Gateway::start(&format!("{HEAD}{ROOMS}"));
    let mut writer = member(&gateway);
    publish(&mut writer, 40);
    let before = gateway.resident_bytes();

    let mut hostile = member(&gateway);
    let orders: Vec<u8> = (0..ORDERS)
        .flat_map(|id| {
            let order = json!({"op": "history", "room": "r", "id": id, "limit": 1000});
            masked(0x81, order.to_string().as_bytes())
        })
        .collect();
    hostile.write(&orders);
    // The writer is answered beside it, again and again, while the gateway has all of the orders.
    for number in 0..200 {
        writer.send(0x81, json!({"op": "ping", "id": number}).to_string().as_bytes());
        assert_eq!(hear(&mut writer)["ack"], number);
        std::thread::sleep(Duration::from_millis(5));
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "grew by {grown} bytes");

    // A client that reads gets each of its answers, whole and in order.
    for id in 0..100 {
        let answer = hear(&mut hostile);
        assert_eq!(answer["ack"], id);
        assert!(answer["messages"].as_array().is_some_and(|messages| messages.len() > 30));
    }
    drop(hostile);
    gateway.stop();
}

/// A client may join all the rooms that it may be in, and ask each for its history, at once. Beyond the
/// burst it is read as its rate allows: it is not closed, and each request is answered, in its order.
#[test]
fn requests_beyond_the_burst_are_served_at_their_rate() {
    let gateway = Gateway::start(&format!("{HEAD}{ROOMS}"));
    let mut peer = Peer::open(gateway.address(), "/");
    assert_eq!(hear(&mut peer)["event"], "welcome");
    let (burst, more) = (1024, 400);
    let mut requests = Vec::new();
    for id in 0..burst + more {
        let (op, room) = (["join", "history", "leave"][id / 512], format!("room-{}", id % 512));
        let request = json!({"op": op, "room": room, "id": id});
        requests.extend(masked(0x81, request.to_string().as_bytes()));
        // Publishes do not count.
        let publish = json!({"op": "publish", "room": "none", "data": 1, "id": "publish"});
        requests.extend(masked(0x81, publish.to_string().as_bytes()));
    }
    peer.write(&requests);
    let started = Instant::now();
    let mut answers: Vec<u64> = Vec::new();
    while answers.len() < burst + more {
        let answer = hear(&mut peer);
        match answer["ack"].as_u64() {
            Some(id) => answers.push(id),
            None => assert_eq!(answer["error"]["code"], "not_member", "{answer}"),
        }
    }
    // Answers of homes may overtake those of the client's shard.
    answers.sort_unstable();
    assert!(answers.into_iter().eq(0..(burst + more) as u64));
    let least = Duration::from_millis(1000 * more as u64 / 200 - 100);
    assert!(started.elapsed() >= least, "{:?}", started.elapsed());
    drop(peer);
    gateway.stop();
}

/// What the gateway may grow by for a hundred clients that wait for the same history of 1 MiB: their
/// connections, the pages that send to them, and what allocators keep. A copy for each would be 104 MB.
const SHARED_GROWTH_BYTES_MAX: u64 = 16 << 20;

#[test]
fn answers_share_the_messages_of_the_history() {
    let gateway = Gateway::start(&format!("{HEAD}{ROOMS}{SMALL_BUFFERS}"));
    let mut writer = member(&gateway);
    publish(&mut writer, 40);
    let mut readers: Vec<Peer> = (0..100).map(|_| member(&gateway)).collect();
    let before = gateway.resident_bytes();
    for reader in &mut readers {
        reader.send(0x81, br#"{"op":"history","room":"r","id":"all"}"#);
        reader.send(0x81, br#"{"op":"ping","id":"behind"}"#);
    }
    // Each has its answer when the next one's first byte is there.
    for reader in &mut readers {
        assert!(reader.has(1000));
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < SHARED_GROWTH_BYTES_MAX, "grew by {grown} bytes");

    // The history forgets half of them before they are sent.
    publish(&mut writer, 20);
    for mut reader in readers.drain(..10) {
        let answer = hear(&mut reader);
        assert_eq!(answer["ack"], "all");
        let messages = answer["messages"].as_array().expect("a list");
        let offsets: Vec<_> = messages.iter().map(|message| message["offset"].as_u64()).collect();
        assert!(offsets.into_iter().eq((1..=40).map(Some)));
        assert!(
            messages.iter().all(|message| message["data"].as_str().map(str::len) == Some(26_000))
        );
    }
    drop(readers);
    gateway.stop();
}

/// An answer of 1 MiB fills an outbox of 1 MiB. What the room says meanwhile comes behind it.
#[test]
fn a_long_answer_makes_nobody_a_slow_consumer() {
    let gateway = Gateway::start(&format!("{HEAD}{ROOMS}{SMALL_BUFFERS}"));
    let mut writer = member(&gateway);
    publish(&mut writer, 39);
    let mut reader = member(&gateway);
    reader.send(0x81, br#"{"op":"history","room":"r","id":1}"#);
    assert!(reader.has(1000));
    publish(&mut writer, 20);
    let answer = hear(&mut reader);
    assert_eq!((&answer["ack"], &answer["offset"]), (&json!(1), &json!(39)));
    for offset in 40..60 {
        assert_eq!(hear(&mut reader)["offset"], offset);
    }
    drop((reader, writer));
    gateway.stop();
}
