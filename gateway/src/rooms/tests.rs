//! The engine, told what clients say: what it answers, and what it holds.

mod model;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::addresses::AddressKey;
use crate::makers::Makers;
use crate::ring::sim::Random;

/// What one shard has said in one call.
#[derive(Default)]
struct Said {
    frames: Vec<(ConnId, Bytes)>,
    mail: Vec<(u16, Mail)>,
    full: BTreeSet<u16>,
    crowded: BTreeSet<u16>,
    makers: Arc<Makers>,
}

impl Outlet for Said {
    fn published(&mut self, _at_us: u32) {}

    fn deliver(&mut self, to: ConnId, frame: &Bytes) {
        self.frames.push((to, frame.clone()));
    }
    fn deliver_answer(&mut self, to: ConnId, answer: Answer) {
        self.frames.push((to, answer.parts().collect::<Vec<_>>().concat().into()));
    }
    fn post(&mut self, shard: u16, mail: Mail) {
        self.mail.push((shard, mail));
    }
    fn has_room(&self, shard: u16) -> bool {
        !self.full.contains(&shard)
    }
    /// A hundred slots are one address.
    fn maker(&mut self, conn: ConnId) -> Arc<Maker> {
        self.makers.maker(0, AddressKey::V4(conn.slot / 100))
    }
    fn takes_requests(&self, shard: u16) -> bool {
        !self.crowded.contains(&shard)
    }
    fn answered(&mut self, _conn: ConnId) {}
}

/// A client's address in the test: shard and connection.
type Address = (u16, ConnId);

/// Some shards, the mail between them, and what each open client has received.
struct World {
    shards: Vec<Rooms>,
    mail: BTreeMap<(u16, u16), VecDeque<Mail>>,
    received: BTreeMap<Address, VecDeque<Value>>,
    full: BTreeSet<u16>,
    crowded: BTreeSet<u16>,
    makers: Arc<Makers>,
    now: Time,
}

impl World {
    fn new(shards: u16, limits: &RoomLimits) -> World {
        let homes = HashKey::draw(&mut crate::random::Random::new([7, 7]));
        World {
            shards: (0..shards)
                .map(|shard| {
                    let random = crate::random::Random::new([7, u64::from(shard)]);
                    Rooms::new(shard, shards, limits.clone(), 1_000_000, homes, random)
                })
                .collect(),
            mail: BTreeMap::new(),
            received: BTreeMap::new(),
            full: BTreeSet::new(),
            crowded: BTreeSet::new(),
            makers: Arc::default(),
            now: Time::default(),
        }
    }

    fn call<T>(&mut self, shard: u16, call: impl FnOnce(&mut Rooms, Time, &mut Said) -> T) -> T {
        let (full, crowded) = (self.full.clone(), self.crowded.clone());
        let makers = Arc::clone(&self.makers);
        let mut said = Said { full, crowded, makers, ..Said::default() };
        let rooms = &mut self.shards[usize::from(shard)];
        let result = call(rooms, self.now, &mut said);
        assert_eq!(rooms.members.held_bytes(), rooms.members.recounted_bytes());
        assert_eq!(rooms.directory.held_bytes(), rooms.directory.recounted_bytes());
        assert!(rooms.homes.is_counted_right());
        let rooms: usize = self.shards.iter().map(|rooms| rooms.homes.len()).sum();
        assert_eq!(rooms, self.makers.rooms(), "each room counts with its maker");
        for (conn, frame) in said.frames {
            // Nothing may be delivered to a client that has closed.
            let received = self.received.get_mut(&(shard, conn)).expect("an open client");
            received.push_back(decode_frame(&frame));
        }
        for (to, mail) in said.mail {
            self.mail.entry((shard, to)).or_default().push_back(mail);
        }
        result
    }

    fn open(&mut self, shard: u16, slot: u32, generation: u32, user: Option<&str>) -> Address {
        let conn = ConnId { slot, generation };
        self.received.insert((shard, conn), VecDeque::new());
        self.call(shard, |rooms, now, out| rooms.opened(conn, user, now, out));
        (shard, conn)
    }

    fn close(&mut self, (shard, conn): Address) {
        self.received.remove(&(shard, conn));
        self.call(shard, |rooms, now, out| rooms.closed(conn, now, out));
    }

    fn say(&mut self, (shard, conn): Address, text: &str) {
        self.call(shard, |rooms, now, out| rooms.on_message(conn, text.as_bytes(), now, out));
    }

    /// Brings one letter of some queue; false when there is none.
    fn step(&mut self, pick: impl FnOnce(usize) -> usize) -> bool {
        self.mail.retain(|_, queue| !queue.is_empty());
        if self.mail.is_empty() {
            return false;
        }
        let key = *self.mail.keys().nth(pick(self.mail.len())).unwrap();
        let mail = self.mail.get_mut(&key).unwrap().pop_front().unwrap();
        self.call(key.1, |rooms, now, out| rooms.on_mail(mail, now, out));
        true
    }

    fn settle(&mut self) {
        while self.step(|_| 0) {}
    }

    /// Lets time pass with everything that falls due on the way, and brings the mail.
    fn pass(&mut self, time: Duration) {
        self.settle();
        let end = self.now + time;
        loop {
            let due = self.shards.iter().filter_map(Rooms::next_deadline).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            for shard in 0..self.shards.len() as u16 {
                self.call(shard, |rooms, now, out| rooms.on_deadline(now, out));
            }
            self.settle();
        }
        self.now = end;
    }

    fn take(&mut self, client: Address) -> Vec<Value> {
        self.received.get_mut(&client).unwrap().drain(..).collect()
    }

    /// Says one thing, and returns what the client has then received.
    fn ask(&mut self, client: Address, text: &str) -> Vec<Value> {
        self.take(client);
        self.say(client, text);
        self.settle();
        self.take(client)
    }
}

/// The JSON in a frame, after a look at its header.
fn decode_frame(frame: &Bytes) -> Value {
    let payload = protocol::payload(frame);
    let mut header = Vec::new();
    crate::ws::frame::encode_server_header(
        &mut header,
        crate::ws::frame::Opcode::Text,
        payload.len(),
    );
    assert_eq!(&frame[..frame.len() - payload.len()], &header[..]);
    serde_json::from_slice(payload).expect("a server message is JSON")
}

#[track_caller]
fn check_error(text: &str, code: &str) {
    let mut world = World::new(1, &RoomLimits::default());
    let client = world.open(0, 0, 0, None);
    let got = world.ask(client, text);
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(got[0]["error"]["code"], code, "{got:?}");
    assert!(got[0]["error"]["message"].as_str().unwrap().ends_with('.'), "{got:?}");
}

#[test]
fn requests_that_are_refused() {
    let long = "r".repeat(257);
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    for (text, code) in [
        ("", "bad_json"),
        ("{", "bad_json"),
        (r#"{"op":"ping"}x"#, "bad_json"),
        ("[]", "bad_request"),
        (r#"["ping"]"#, "bad_request"),
        ("{}", "bad_request"),
        (r#"{"op":1}"#, "bad_request"),
        (r#"{"op":"fly"}"#, "unknown_op"),
        (r#"{"op":"ping","colour":1}"#, "bad_request"),
        (r#"{"op":"ping","op":"ping"}"#, "bad_request"),
        (r#"{"op":"ping","room":"a"}"#, "bad_request"),
        (r#"{"op":"ping","id":[1]}"#, "bad_request"),
        (r#"{"op":"join"}"#, "bad_request"),
        (r#"{"op":"join","room":7}"#, "bad_request"),
        (r#"{"op":"join","room":""}"#, "bad_room"),
        (r#"{"op":"join","room":"a\nb"}"#, "bad_room"),
        (&format!(r#"{{"op":"join","room":"{long}"}}"#), "bad_room"),
        (r#"{"op":"join","room":"a","resume":{"epoch":"1"}}"#, "bad_request"),
        (r#"{"op":"join","room":"a","resume":["1",1]}"#, "bad_request"),
        (r#"{"op":"join","room":"a","resume":{"epoch":"1","offset":-1}}"#, "bad_request"),
        (r#"{"op":"leave","room":"a"}"#, "not_member"),
        (r#"{"op":"publish","room":"a"}"#, "bad_request"),
        (r#"{"op":"publish","room":"a","data":1}"#, "not_member"),
        (r#"{"op":"publish","room":"a","key":1,"data":1}"#, "bad_request"),
        (r#"{"op":"publish","room":"a","key":"","data":1}"#, "bad_request"),
        (
            &format!(r#"{{"op":"publish","room":"a","key":"{}","data":1}}"#, &long[..129]),
            "bad_request",
        ),
        (
            &format!(r#"{{"op":"publish","room":"a","key":"{}","data":1}}"#, &long[..128]),
            "not_member",
        ),
        (r#"{"op":"join","room":"a","key":"k"}"#, "bad_request"),
        (&format!(r#"{{"op":"publish","room":"a","data":{deep}}}"#), "too_deep"),
        (r#"{"op":"history","room":"a"}"#, "not_member"),
        (r#"{"op":"presence","room":"a"}"#, "not_member"),
        (r#"{"op":"direct","to":"nobody","data":1}"#, "no_such_user"),
        (r#"{"op":"direct","to":"guest-zz","data":1}"#, "no_such_user"),
        (r#"{"op":"direct","data":1}"#, "bad_request"),
    ] {
        check_error(text, code);
    }
    let long_id = "1".repeat(65);
    check_error(&format!(r#"{{"op":"ping","id":{long_id}}}"#), "bad_request");
}

#[test]
fn an_error_echoes_the_id_even_when_another_field_is_wrong() {
    let mut world = World::new(1, &RoomLimits::default());
    let client = world.open(0, 0, 0, None);
    assert_eq!(world.ask(client, r#"{"op":"ping","id":"x","colour":1}"#)[0]["id"], "x");
    assert_eq!(world.ask(client, r#"{"op":"leave","id":5,"room":"a"}"#)[0]["id"], 5);
    assert_eq!(world.ask(client, r#"{"id":5"#)[0]["id"], Value::Null);
}

#[test]
fn bounds_that_are_reached() {
    let limits = RoomLimits { rooms_per_client_max: 2, rooms_max: 2, ..RoomLimits::default() };
    let mut world = World::new(1, &limits);
    let a = world.open(0, 0, 0, Some("ann"));
    let b = world.open(0, 1, 0, Some("bob"));
    let code = |got: Vec<Value>| got[0]["error"]["code"].as_str().unwrap_or("").to_string();
    assert_eq!(code(world.ask(a, r#"{"op":"join","room":"1"}"#)), "");
    assert_eq!(code(world.ask(a, r#"{"op":"join","room":"1"}"#)), "already_member");
    assert_eq!(code(world.ask(a, r#"{"op":"join","room":"2"}"#)), "");
    assert_eq!(code(world.ask(a, r#"{"op":"join","room":"3"}"#)), "too_many_memberships");
    assert_eq!(code(world.ask(b, r#"{"op":"join","room":"3"}"#)), "too_many_rooms");
    assert_eq!(code(world.ask(b, r#"{"op":"publish","room":"3","data":1}"#)), "not_member");
    world.full.insert(0);
    assert_eq!(code(world.ask(a, r#"{"op":"publish","room":"1","data":1}"#)), "busy");
    assert_eq!(code(world.ask(a, r#"{"op":"direct","to":"bob","data":1}"#)), "busy");
    assert_eq!(code(world.ask(b, r#"{"op":"join","room":"1"}"#)), "", "one letter to one client");
    assert_eq!(code(world.ask(a, r#"{"op":"leave","room":"1"}"#)), "", "leaving always works");
}

/// A shard does not serve a client that is busy (`Rooms::is_busy`); where one did, nothing would be
/// charged beyond what can be counted.
#[test]
fn no_request_is_charged_to_a_busy_client() {
    let limits = RoomLimits { rooms_per_client_max: 100, ..RoomLimits::default() };
    let mut world = World::new(1, &limits);
    let client = world.open(0, 0, 0, None);
    world.ask(client, r#"{"op":"join","room":"r"}"#);
    let busy = |world: &mut World| {
        let errors = world.take(client);
        errors.iter().filter(|it| it["error"]["code"] == "busy").count()
    };
    // Joins weigh one each.
    for number in 1..u32::from(members::WEIGHT_MAX) {
        assert!(!world.shards[0].is_busy(client.1));
        world.say(client, &format!(r#"{{"op":"join","room":"{number}"}}"#));
    }
    for _ in 0..10 {
        world.say(client, r#"{"op":"history","room":"r"}"#);
        assert!(world.shards[0].is_busy(client.1));
    }
    assert_eq!(busy(&mut world), 9, "the first came on top of less than is allowed");
    world.say(client, r#"{"op":"join","room":"late"}"#);
    assert_eq!(busy(&mut world), 1);
    world.settle();
    assert!(!world.shards[0].is_busy(client.1));
    assert_eq!(busy(&mut world), 0);
    let joined = world.ask(client, r#"{"op":"join","room":"late"}"#);
    assert_eq!(joined.len(), 1, "the join that was refused left nothing behind");
    assert_eq!(joined[0]["op"], "join");
}

/// A client that joins, publishes, leaves and goes on to the next name.
fn wander(world: &mut World, client: Address, names: std::ops::Range<usize>) -> usize {
    let mut made = 0;
    for name in names {
        let got = world.ask(client, &json!({"op": "join", "room": name.to_string()}).to_string());
        if !got[0]["error"].is_null() {
            assert_eq!(got[0]["error"]["code"], "too_many_made", "{got:?}");
            continue;
        }
        made += 1;
        world.say(client, &format!(r#"{{"op":"publish","room":"{name}","data":1}}"#));
        world.ask(client, &format!(r#"{{"op":"leave","room":"{name}"}}"#));
    }
    made
}

#[test]
fn a_room_counts_against_its_maker_until_it_is_forgotten() {
    let mut world = World::new(3, &RoomLimits::default());
    let client = world.open(1, 0, 0, None);
    assert_eq!(wander(&mut world, client, 0..600), 512);
    // Whoever joins a room that there is has made none.
    let other = world.open(2, 1, 0, None);
    assert_eq!(world.ask(other, r#"{"op":"join","room":"511"}"#)[0]["op"], "join");
    assert_eq!(world.ask(client, r#"{"op":"join","room":"511"}"#)[0]["op"], "join");
    assert_eq!(wander(&mut world, other, 600..601), 1, "the other may make rooms");
    world.pass(Duration::from_secs(200));
    assert_eq!(world.makers.rooms(), 1, "all but one are forgotten");
    assert_eq!(wander(&mut world, client, 1000..1600), 511, "it made the one that there is");
    // A room that had no message is forgotten at once.
    world.pass(Duration::from_secs(200));
    for name in 0..600 {
        let name = format!("quiet {name}");
        let got = world.ask(client, &json!({"op": "join", "room": name}).to_string());
        assert_eq!(got[0]["op"], "join", "{got:?}");
        world.say(client, &json!({"op": "leave", "room": name}).to_string());
        world.pass(Duration::from_secs(6));
    }
}

#[test]
fn an_address_has_its_rooms_in_common() {
    let limits = RoomLimits {
        rooms_made_per_client_max: 8,
        rooms_made_per_address_max: 10,
        ..RoomLimits::default()
    };
    let mut world = World::new(2, &limits);
    let one = world.open(0, 0, 0, None);
    assert_eq!(wander(&mut world, one, 0..20), 8);
    let other = world.open(1, 1, 0, None);
    assert_eq!(wander(&mut world, other, 100..120), 2);
    // Who goes and comes again is the same address.
    world.close(one);
    let again = world.open(0, 0, 1, None);
    assert_eq!(wander(&mut world, again, 200..220), 0);
    let elsewhere = world.open(0, 100, 0, None);
    assert_eq!(wander(&mut world, elsewhere, 300..320), 8);
    // Other limits are for the rooms made from then on.
    let wider = RoomLimits { rooms_made_per_address_max: 13, ..limits };
    world.shards.iter_mut().for_each(|rooms| rooms.set_limits(wider.clone()));
    assert_eq!(wander(&mut world, again, 400..420), 3);
    world.pass(Duration::from_secs(200));
    assert_eq!(wander(&mut world, again, 500..520), 8);
    world.pass(Duration::from_secs(200));
    assert_eq!(world.makers.rooms(), 0);
}

#[test]
fn a_shard_without_room_refuses_the_publish_for_all() {
    let mut world = World::new(2, &RoomLimits::default());
    let a = world.open(0, 0, 0, None);
    let b = world.open(1, 0, 0, None);
    let room = (0..).map(|n| format!("r{n}")).find(|r| world.shards[0].home_of(r) == 0).unwrap();
    for client in [a, b] {
        world.ask(client, &json!({"op": "join", "room": room}).to_string());
    }
    world.full.insert(1);
    let publish = json!({"op": "publish", "room": room, "data": 1, "id": 1}).to_string();
    assert_eq!(world.ask(a, &publish)[0]["error"]["code"], "busy");
    assert!(world.take(b).is_empty());
    world.full.clear();
    let got = world.ask(a, &publish);
    assert_eq!((&got[0]["offset"], &got[1]["offset"]), (&json!(1), &json!(1)), "{got:?}");
    assert_eq!(got[1]["ack"], 1, "the answer follows the message");
}

#[test]
fn a_request_to_a_crowded_home_waits_and_leaves_no_trace() {
    let mut world = World::new(1, &RoomLimits::default());
    let (shard, conn) = world.open(0, 0, 0, Some("ann"));
    world.ask((shard, conn), r#"{"op":"join","room":"old"}"#);
    let serve = |world: &mut World, text: &str| {
        world.call(0, |rooms, now, out| rooms.on_message(conn, text.as_bytes(), now, out))
    };
    let before = (*world.shards[0].counters(), world.shards[0].gauges());
    world.crowded.insert(0);
    let requests = [
        r#"{"op":"join","room":"new"}"#,
        r#"{"op":"join","room":"new","presence":true}"#,
        r#"{"op":"publish","room":"old","data":1}"#,
        r#"{"op":"history","room":"old"}"#,
        r#"{"op":"presence","room":"old"}"#,
        r#"{"op":"direct","to":"bob","data":1}"#,
    ];
    for request in requests {
        assert_eq!(serve(&mut world, request), Served::Waits(0), "{request}");
        assert!(world.mail.values().all(VecDeque::is_empty), "{request}");
        assert!(world.take((shard, conn)).is_empty(), "{request}");
    }
    assert_eq!((*world.shards[0].counters(), world.shards[0].gauges()), before);
    // What needs no home, or is refused here, waits for nobody.
    assert_eq!(serve(&mut world, r#"{"op":"ping"}"#), Served::Message);
    assert_eq!(serve(&mut world, r#"{"op":"join","room":"old"}"#), Served::Request);
    assert_eq!(serve(&mut world, r#"{"op":"publish","room":"no","data":1}"#), Served::Message);
    assert_eq!(serve(&mut world, r#"{"op":"leave","room":"old"}"#), Served::Request);
    world.crowded.clear();
    assert_eq!(serve(&mut world, r#"{"op":"join","room":"new"}"#), Served::Request);
    assert_eq!(world.shards[0].counters().requests, before.0.requests + 5);
}

#[test]
fn data_passes_byte_for_byte() {
    let mut world = World::new(1, &RoomLimits::default());
    let a = world.open(0, 0, 0, None);
    world.ask(a, r#"{"op":"join","room":"é\u0041\""}"#);
    for data in [r#"{ "b" : 1.0e+5, "a":["\u00e9\ud800", null ] }"#, "null", "\"]]\\\"\"", "1"] {
        let text = format!(r#"{{"op":"publish","room":"éA\"","data":{data}}}"#);
        let mut said = Said::default();
        let rooms = &mut world.shards[0];
        rooms.on_message(a.1, text.as_bytes(), Time(0), &mut said);
        let (_, mail) = said.mail.pop().unwrap();
        rooms.on_mail(mail, Time(0), &mut said);
        let (_, mail) = said.mail.pop().unwrap();
        rooms.on_mail(mail, Time(0), &mut said);
        let frame = &said.frames[0].1;
        let end = format!(r#","data":{data}}}"#);
        assert!(frame.ends_with(end.as_bytes()), "{frame:?}");
        let start = r#"{"event":"message","room":"éA\"","offset":"#;
        assert!(protocol::payload(frame).starts_with(start.as_bytes()), "{frame:?}");
    }
}

#[test]
fn direct_messages_reach_every_connection_of_a_user() {
    let mut world = World::new(3, &RoomLimits::default());
    let ann = world.open(0, 0, 0, Some("ann"));
    let bobs = [world.open(1, 5, 2, Some("bob")), world.open(2, 0, 0, Some("bob"))];
    let guest = world.open(2, 9, 3, None);
    let name = world.take(guest)[0]["user"].as_str().unwrap().to_string();
    world.settle();
    world.take(bobs[0]);
    world.take(bobs[1]);
    let got = world.ask(ann, r#"{"op":"direct","to":"bob","data":{"x":1},"id":1}"#);
    assert_eq!(got, [json!({"ack": 1, "op": "direct", "to": "bob", "reached": 2})]);
    for bob in bobs {
        let got = world.take(bob);
        assert_eq!((&got[0]["user"], &got[0]["data"]), (&json!("ann"), &json!({"x": 1})));
    }
    // A guest can be found once it has said something.
    let direct = json!({"op": "direct", "to": name, "data": 2, "id": 2}).to_string();
    assert_eq!(world.ask(ann, &direct)[0]["error"]["code"], "no_such_user");
    world.ask(guest, r#"{"op":"leave","room":"a"}"#);
    assert_eq!(world.ask(ann, &direct)[0]["reached"], 1);
    assert_eq!(world.take(guest)[0]["event"], "direct");
    for client in [ann, bobs[0], bobs[1], guest] {
        world.close(client);
    }
    world.settle();
    assert!(world.shards.iter().all(|rooms| rooms.gauges() == Gauges::default()));
}

#[test]
fn what_rooms_hold_is_counted_and_goes_with_them() {
    let mut world = World::new(1, &RoomLimits::default());
    let held = |world: &World| world.shards[0].held_bytes();
    assert_eq!(held(&world), (0, 0));
    let ann = world.open(0, 0, 0, Some("ann"));
    let (named, _) = held(&world);
    assert!(named > 100, "a client, its name, and the user: {named}");
    world.ask(ann, r#"{"op":"join","room":"a"}"#);
    let (joined, _) = held(&world);
    assert!(joined > named + 300, "a room at home and here: {joined}");
    let data = "x".repeat(5000);
    world.ask(ann, &json!({"op": "publish", "room": "a", "data": data}).to_string());
    let (_, history) = held(&world);
    assert!((5000..6000).contains(&history), "{history}");
    world.close(ann);
    world.settle();
    world.pass(Duration::from_secs(1000));
    assert!(world.shards[0].is_empty());
    let (left, history) = held(&world);
    assert_eq!(history, 0);
    assert!(left < joined, "lists stay, what was in them does not: {left}");
}

#[test]
fn presence_counts_users_and_waits_for_the_grace() {
    let mut world = World::new(2, &RoomLimits::default());
    let ann = world.open(0, 0, 0, Some("ann"));
    world.ask(ann, r#"{"op":"join","room":"a","presence":true}"#);
    let tabs = [world.open(1, 0, 0, Some("bob")), world.open(0, 1, 0, Some("bob"))];
    for tab in tabs {
        world.ask(tab, r#"{"op":"join","room":"a"}"#);
    }
    let joined = json!({"event": "join", "room": "a", "user": "bob", "user_count": 2});
    assert_eq!(world.take(ann), [joined], "two tabs are one user");
    world.close(tabs[0]);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.take(ann).len(), 0, "the other tab is still there");
    world.close(tabs[1]);
    world.pass(Duration::from_secs(4));
    let again = world.open(1, 0, 1, Some("bob"));
    world.ask(again, r#"{"op":"join","room":"a"}"#);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.take(ann).len(), 0, "a reload is not a leave");
    world.close(again);
    world.pass(Duration::from_secs(5));
    let left = json!({"event": "leave", "room": "a", "user": "bob", "user_count": 1});
    assert_eq!(world.take(ann), [left]);
}

#[test]
fn a_room_with_more_users_than_a_list_names_sends_no_presence_events() {
    let limits = RoomLimits { presence_users_listed_max: 2, ..RoomLimits::default() };
    let mut world = World::new(1, &limits);
    let users = ["ann", "bob", "cid"].iter().enumerate();
    let [ann, bob, cid] =
        users.map(|(slot, user)| world.open(0, slot as u32, 0, Some(user))).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    let join = r#"{"op":"join","room":"a","presence":true}"#;
    world.ask(ann, join);
    assert_eq!(world.ask(bob, join)[0]["truncated"], false);
    assert_eq!(world.take(ann).len(), 1);
    let got = world.ask(cid, join).remove(0);
    assert_eq!((&got["truncated"], &got["user_count"]), (&json!(true), &json!(3)));
    assert_eq!(got["users"].as_array().unwrap().len(), 2);
    assert_eq!(world.take(ann).len(), 0);
}

#[test]
fn history_pages_and_recovery() {
    let limits = RoomLimits { history_messages_max: 10, ..RoomLimits::default() };
    let mut world = World::new(1, &limits);
    let a = world.open(0, 0, 0, None);
    let joined = world.ask(a, r#"{"op":"join","room":"a"}"#);
    let epoch = joined[0]["epoch"].as_str().unwrap().to_string();
    for n in 1..=15 {
        world.ask(a, &json!({"op": "publish", "room": "a", "data": n}).to_string());
    }
    let mut check = |fields: &str, offsets: &[u64], gap: bool, more: bool| {
        let got = &world.ask(a, &format!(r#"{{"op":"history","room":"a"{fields}}}"#))[0];
        let messages = got["messages"].as_array().unwrap();
        let got_offsets: Vec<u64> =
            messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
        assert_eq!(got_offsets, offsets, "{fields}");
        assert_eq!((&got["gap"], &got["more"]), (&json!(gap), &json!(more)), "{fields}");
    };
    check("", &[6, 7, 8, 9, 10, 11, 12, 13, 14, 15], false, false);
    check(r#","limit":2"#, &[14, 15], false, true);
    check(r#","after":12"#, &[13, 14, 15], false, false);
    check(r#","after":5,"limit":1"#, &[6], false, true);
    check(r#","after":4,"limit":1"#, &[6], true, true);
    check(r#","after":15"#, &[], false, false);
    check(r#","after":18446744073709551615"#, &[], false, false);
    check(r#","limit":0"#, &[], false, true);

    let mut resume = |epoch: &str, offset: u64| {
        world.ask(a, r#"{"op":"leave","room":"a"}"#);
        let resume = json!({"op": "join", "room": "a",
            "resume": {"epoch": epoch, "offset": offset}});
        let got = world.ask(a, &resume.to_string()).remove(0);
        got["recovered"].as_bool().unwrap().then(|| got["messages"].as_array().unwrap().len())
    };
    assert_eq!(resume(&epoch, 15), Some(0));
    assert_eq!(resume(&epoch, 12), Some(3));
    assert_eq!(resume(&epoch, 5), Some(10));
    assert_eq!(resume(&epoch, 4), None, "one is gone");
    assert_eq!(resume(&epoch, 16), None, "never was");
    assert_eq!(resume("another", 15), None);
    world.pass(Duration::from_secs(121));
    let got = world.ask(a, r#"{"op":"history","room":"a"}"#);
    assert_eq!(got[0]["messages"], json!([]), "too old");
}

#[test]
fn histories_are_bounded_in_bytes() {
    let limits = RoomLimits {
        history_bytes_max: 3_000,
        history_bytes_per_shard_max: 5_000,
        answer_bytes_max: 2_500,
        ..RoomLimits::default()
    };
    let mut world = World::new(1, &limits);
    let a = world.open(0, 0, 0, None);
    let kept = |world: &mut World, room: &str, fields: &str| {
        let text = format!(r#"{{"op":"history","room":"{room}"{fields}}}"#);
        let got = world.ask(a, &text).remove(0);
        let messages = got["messages"].as_array().unwrap();
        let offsets = messages.iter().map(|message| message["offset"].as_u64().unwrap());
        (offsets.collect::<Vec<_>>(), got["more"].as_bool().unwrap())
    };
    let publish = |world: &mut World, room: &str, bytes: usize| {
        let data = "x".repeat(bytes);
        world.ask(a, &json!({"op": "publish", "room": room, "data": data}).to_string())
    };
    for room in ["a", "b"] {
        world.ask(a, &json!({"op": "join", "room": room}).to_string());
    }
    // Frames of about 940 bytes: a room keeps three, an answer carries two.
    for _ in 0..5 {
        publish(&mut world, "a", 850);
    }
    assert_eq!(kept(&mut world, "a", ""), (vec![4, 5], true));
    assert_eq!(kept(&mut world, "a", r#","after":0"#), (vec![3, 4], true));
    // The second room finds room for two, and then pays itself.
    for _ in 0..4 {
        publish(&mut world, "b", 850);
    }
    assert_eq!(kept(&mut world, "b", ""), (vec![3, 4], false));
    assert_eq!(kept(&mut world, "a", r#","after":2,"limit":1"#), (vec![3], true));
    let held = world.shards[0].gauges().history_bytes;
    assert!((4_000..=5_000).contains(&held), "{held}");
    // What is larger than a history is delivered, and leaves a gap nobody can recover.
    assert_eq!(publish(&mut world, "b", 4_000)[0]["offset"], 5);
    assert_eq!(kept(&mut world, "b", ""), (vec![], false));
}

#[test]
fn guests_are_found_by_name() {
    for (slot, generation, shard) in [(0, 0, 0), (35, 1, 2), (u32::MAX, 0xFF_FFFF, 6)] {
        let conn = ConnId { slot, generation };
        let name = guest_name(conn, shard, 7);
        assert_eq!(find_guest(&name, 7), Some((shard, conn)), "{name}");
    }
    for name in ["guest-", "guest-0-0", "guest-00", "guest-A", "guest-+1", "ann", "guest-é"] {
        assert_eq!(find_guest(name, 7), None, "{name}");
    }
}

#[test]
fn nobody_takes_the_name_of_a_guest() {
    let mut world = World::new(1, &RoomLimits::default());
    let client = world.open(0, 7, 0, Some("guest-1"));
    assert_eq!(world.take(client)[0]["user"], "guest-7");
}

/// A room and a user are found by any spelling of their names.
#[test]
fn a_name_has_one_spelling() {
    let limits = RoomLimits { room_name_bytes_max: 6, ..RoomLimits::default() };
    let mut world = World::new(3, &limits);
    let zoe = world.open(0, 0, 0, Some("zo\u{eb}"));
    let ann = world.open(1, 0, 0, Some("ann"));
    world.settle();
    let answer = world.ask(zoe, r#"{"op":"join","room":"caf\u00e9"}"#);
    assert_eq!(answer[0]["room"], "caf\u{e9}");
    // Six bytes as they are, and seven as they may come.
    let answer = world.ask(ann, r#"{"op":"join","room":"cafe\u0301"}"#);
    assert_eq!(answer[0]["room"], "caf\u{e9}");
    world.take(zoe);
    world.ask(ann, "{\"op\":\"publish\",\"room\":\"cafe\u{301}\",\"data\":1}");
    let heard = world.take(zoe);
    assert_eq!((&heard[0]["room"], &heard[0]["data"]), (&json!("caf\u{e9}"), &json!(1)));
    let answer = world.ask(ann, r#"{"op":"direct","to":"zoe\u0308","data":2,"id":1}"#);
    assert_eq!((&answer[0]["to"], &answer[0]["reached"]), (&json!("zo\u{eb}"), &json!(1)));
    assert_eq!(world.take(zoe)[0]["data"], 2);
    for (request, code, why) in [
        (r#"{"op":"join","room":"a\u202eb"}"#, "bad_room", "has U+202E, which turns"),
        (r#"{"op":"join","room":"a\u200db"}"#, "bad_room", "has U+200D, which is invisible"),
        (r#"{"op":"join","room":" lobby"}"#, "bad_room", "begins or ends with a space"),
        (r#"{"op":"join","room":"\u2800"}"#, "bad_room", "has U+2800, which looks like a space"),
        (r#"{"op":"join","room":"\u2764\ufe0f"}"#, "bad_room", "has U+FE0F, which is invisible"),
        (r#"{"op":"join","room":"a\u0000b"}"#, "bad_room", "has U+0000, a control character"),
        (r#"{"op":"join","room":"1234567"}"#, "bad_room", "is longer than 6 bytes"),
        (r#"{"op":"direct","to":"zo\u00eb\u200b","data":1}"#, "no_such_user", "Nobody"),
    ] {
        let answer = world.ask(ann, request);
        let error = &answer[0]["error"];
        assert_eq!(error["code"], code, "{request}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(why), "{request}: {message}");
    }
}

/// What a backlog reads off a frame is what the engine wrote there.
#[test]
fn frames_tell_what_they_are() {
    let mut world = World::new(1, &RoomLimits::default());
    let a = world.open(0, 0, 0, Some("ann"));
    let room = "l\"\\,é";
    let as_json = json!(room).to_string();
    let mut check = |text: String, want: &[Heading<'_>]| {
        world.say(a, &text);
        let mut frames: Vec<Bytes> = Vec::new();
        while let Some(mail) = world.mail.get_mut(&(0, 0)).and_then(VecDeque::pop_front) {
            let mut said = Said::default();
            world.shards[0].on_mail(mail, Time(0), &mut said);
            frames.extend(said.frames.into_iter().map(|(_, frame)| frame));
            world.mail.get_mut(&(0, 0)).unwrap().extend(said.mail.into_iter().map(|(_, it)| it));
        }
        let got: Vec<Heading<'_>> = frames.iter().map(|frame| heading(frame)).collect();
        assert_eq!(got, want, "{text}");
        frames
    };
    let join = Heading::Join { room: as_json.as_bytes() };
    for id in [json!(null), json!(-12.5), json!("a\"b\\,")] {
        let mut request = json!({"op": "join", "room": room, "presence": true});
        if !id.is_null() {
            request["id"] = id;
        }
        check(request.to_string(), std::slice::from_ref(&join));
        let leave = json!({"op": "leave", "room": room});
        check(leave.to_string(), &[]);
    }
    check(json!({"op": "join", "room": room}).to_string(), &[join]);
    for (offset, key) in [(1, None), (2, Some("k\"\\é")), (3, Some("\u{1}"))] {
        let mut request = json!({"op": "publish", "room": room, "data": {"key": 1}, "id": 1});
        let mut range = None;
        if let Some(key) = key {
            request["key"] = json!(key);
            // Behind a header of two bytes, the room and the offset.
            let start = 2 + r#"{"event":"message","room":,"offset":2,"key":"#.len() + as_json.len();
            range = Some(start..start + json!(key).to_string().len());
        }
        let message = Heading::Message { room: as_json.as_bytes(), offset, key: range };
        let frames = check(request.to_string(), &[message, Heading::Other]);
        assert_eq!(decode_frame(&frames[0])["key"], json!(key));
    }
    for bytes in [
        &b""[..],
        b"\x81",
        b"\x81\x10{\"event\":\"message\",\"room\":\"",
        b"\x81\x7E\0\x80{\"ack\":1",
    ] {
        assert_eq!(heading(bytes), Heading::Other);
    }
    for (from, to) in [(1, 1), (9, 10), (99, 100), (1, u64::MAX)] {
        for room in
            [r#""a""#, &format!("\"{}\"", "r".repeat(90)), &format!("\"{}\"", "r".repeat(65_536))]
        {
            let frame = gap_frame(room.as_bytes(), from, to);
            assert_eq!(frame.len(), gap_frame_bytes(room.len(), from, to));
            let name: String = serde_json::from_str(room).unwrap();
            let want = json!({"event": "gap", "room": name, "from": from, "to": to});
            assert_eq!(decode_frame(&frame), want);
        }
    }
}

#[test]
fn the_ping_frame_is_what_it_says() {
    assert_eq!(decode_frame(&ping_frame()), json!({"event": "ping"}));
}
