//! A member of a room that orders much and reads nothing pays for it alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Gateway, HEAD, Peer, masked};

const ROOMS: &str = "[[route]]\nbackend = \"rooms\"\n[backend.rooms]\nkind = \"local\"\n";

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

#[test]
fn orders_are_served_as_their_answers_are_read() {
    let gateway = Gateway::start(&format!("{HEAD}{ROOMS}"));
    let mut writer = member(&gateway);
    for number in 0..40 {
        let data = "x".repeat(26_000);
        let request = json!({"op": "publish", "room": "r", "id": number, "data": data});
        writer.send(0x81, request.to_string().as_bytes());
        let mut heard = [hear(&mut writer), hear(&mut writer)];
        heard.sort_by_key(|value| value["ack"].is_null());
        assert_eq!(heard[0]["ack"], number);
    }
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

/// A client may join all the rooms that it may be in, and leave them again, at once. Beyond the burst it
/// is read as its rate allows: it is not closed, and each request is answered, in its order.
#[test]
fn requests_beyond_the_burst_are_served_at_their_rate() {
    let gateway = Gateway::start(&format!("{HEAD}{ROOMS}"));
    let mut peer = Peer::open(gateway.address(), "/");
    assert_eq!(hear(&mut peer)["event"], "welcome");
    let (burst, more) = (1024, 100);
    let mut requests = Vec::new();
    for id in 0..burst + more {
        let (op, room) = (["join", "leave"][id / 512 % 2], format!("room-{}", id % 512));
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
