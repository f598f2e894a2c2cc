//! The embedded rooms with real clients.

use serde_json::{Value, json};

use crate::limits::open_from;
use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Peer, Program};

#[test]
fn every_operation_as_the_description_has_it() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    Program::node("rooms.js", &["tour", &gateway.url("/rooms")]).success();
}

/// Members in six shards, on however many CPUs there are.
#[test]
fn a_room_across_shards_has_one_order() {
    let gateway = Gateway::start_with(&format!("{HEAD}{ECHO_AND_ROOMS}"), &["--shards", "6"]);
    Program::node("rooms.js", &["crowd", &gateway.url("/rooms"), "20"]).success();
    gateway.stop().expect("client_close 20");
}

/// The error code of the answer to a request, empty when it was done. Messages and the welcome are passed
/// over.
fn ask(peer: &mut Peer, request: &Value) -> String {
    peer.send(0x81, request.to_string().as_bytes());
    loop {
        let frame = peer.frame();
        let value: Value = serde_json::from_slice(&frame.payload).expect("JSON");
        let (answers, refuses) = (value["ack"] == request["id"], value["id"] == request["id"]);
        if answers || refuses {
            return value["error"]["code"].as_str().unwrap_or_default().to_owned();
        }
    }
}

/// Joins, publishes, leaves and goes on to the next name; how many rooms there were.
fn wander(peer: &mut Peer, prefix: &str) -> usize {
    let mut made = 0;
    for number in 0..60 {
        let room = format!("{prefix} {number}");
        match &*ask(peer, &json!({"op": "join", "room": room, "id": "j"})) {
            "too_many_made" => continue,
            code => assert_eq!(code, "", "{room}"),
        }
        made += 1;
        for (op, id) in [("publish", "p"), ("leave", "l")] {
            let mut request = json!({"op": op, "room": room, "id": id});
            if op == "publish" {
                request["data"] = json!(number);
            }
            assert_eq!(ask(peer, &request), "", "{op} {room}");
        }
    }
    made
}

/// What one client makes and leaves behind counts against it and its address; there are places for others.
#[test]
fn nobody_takes_the_rooms_of_everybody() {
    let keys = "rooms_max = 14\nrooms_made_per_client_max = 6\nrooms_made_per_address_max = 8\n";
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{keys}"));
    let mut hostile = open_from(1, gateway.address(), "/rooms");
    assert_eq!(wander(&mut hostile, "hostile"), 6);
    drop(hostile);
    let mut again = open_from(1, gateway.address(), "/rooms");
    assert_eq!(wander(&mut again, "again"), 2);
    let mut other = open_from(2, gateway.address(), "/rooms");
    assert_eq!(wander(&mut other, "other"), 6);
    // Rooms that there are may be joined by all.
    assert_eq!(ask(&mut again, &json!({"op": "join", "room": "other 0", "id": 1})), "");
    drop((again, other));
    gateway.stop();
}
