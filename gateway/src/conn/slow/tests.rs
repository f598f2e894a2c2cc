//! A backlog against a plain list, and an outbox with one against what a client must be able to
//! tell.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::outbox::{Full, Outbox, Stores};
use super::*;
use crate::ring::sim::Random;
use crate::rooms::{SlowLimits, SlowPolicy};
use crate::time::Time;
use crate::ws::frame::{Opcode, encode_server_header};

fn text_frame(payload: &str) -> Bytes {
    let mut frame = Vec::new();
    encode_server_header(&mut frame, Opcode::Text, payload.len());
    frame.extend_from_slice(payload.as_bytes());
    frame.into()
}

fn message(room: &str, offset: u64, key: Option<&str>, filler: usize) -> Bytes {
    let room = json!(room);
    let key = key.map_or(String::new(), |key| format!(",\"key\":{}", json!(key)));
    let data = "x".repeat(filler);
    text_frame(&format!(
        "{{\"event\":\"message\",\"room\":{room},\"offset\":{offset}{key},\"user\":\"a\",\"time\":1,\"data\":\"{data}\"}}"
    ))
}

fn join_answer(room: &str, offset: u64) -> Bytes {
    let room = json!(room);
    text_frame(&format!(
        "{{\"ack\":\"a\\\",\",\"op\":\"join\",\"room\":{room},\"offset\":{offset}}}"
    ))
}

fn shared(frame: &Bytes, queued_ms: u32) -> Segment {
    Segment { data: Data::Shared(frame.clone()), start: 0, queued_ms }
}

/// The JSON of the frames in `bytes`, which hold whole frames.
fn read_frames(mut bytes: &[u8]) -> Vec<Value> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (len, at) = match bytes[1] {
            126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
            127 => (u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize, 10),
            len => (usize::from(len), 2),
        };
        let (frame, rest) = bytes[at..].split_at(len);
        frames.push(match bytes[0] {
            0x81 => serde_json::from_slice(frame).expect("JSON"),
            first => json!({ "control": first }),
        });
        bytes = rest;
    }
    frames
}

/// A frame in the naive list.
#[derive(Clone, Debug)]
enum Thing {
    Message { room: usize, offset: u64, key: Option<usize>, frame: Bytes, queued_ms: u32 },
    Gap { room: usize, from: u64, to: u64 },
    Join { room: usize, frame: Bytes },
    Other(Bytes),
}

const ROOMS: [&str; 3] = ["a", "room \"b\"", "\\"];
const KEYS: [&str; 4] = ["k", "\"", "key three", "é\n"];

impl Thing {
    fn room(&self) -> Option<usize> {
        match self {
            Thing::Message { room, .. } | Thing::Gap { room, .. } | Thing::Join { room, .. } => {
                Some(*room)
            }
            Thing::Other(_) => None,
        }
    }

    fn frame(&self) -> Bytes {
        match self {
            Thing::Message { frame, .. } | Thing::Join { frame, .. } | Thing::Other(frame) => {
                frame.clone()
            }
            Thing::Gap { room, from, to } => {
                gap_frame(json!(ROOMS[*room]).to_string().as_bytes(), *from, *to)
            }
        }
    }
}

fn lose(list: &mut Vec<Thing>, at: usize) {
    let Thing::Message { room, offset, .. } = list[at] else { panic!("no message") };
    list[at] = Thing::Gap { room, from: offset, to: offset };
    // Joins with its neighbours in the room, in the place of the first.
    let of_room: Vec<usize> =
        (0..list.len()).filter(|index| list[*index].room() == Some(room)).collect();
    for pair in of_room.windows(2).rev() {
        if let (Thing::Gap { from, to, .. }, Thing::Gap { from: next, to: end, .. }) =
            (&list[pair[0]], &list[pair[1]])
            && to + 1 == *next
        {
            list[pair[0]] = Thing::Gap { room, from: *from, to: *end };
            list.remove(pair[1]);
        }
    }
}

fn oldest(list: &[Thing]) -> Option<usize> {
    list.iter().position(|thing| matches!(thing, Thing::Message { .. }))
}

#[test]
fn behaves_as_a_list() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut next = |below: u64| random.below(below);
        let conflates = seed % 2 == 0;
        let mut backlog = Backlog::new(conflates);
        let metrics = Counters::default();
        let mut list: Vec<Thing> = Vec::new();
        let mut offsets = [7, 97, 0];
        let mut now_ms = u32::MAX - 300;
        for _ in 0..1500 {
            now_ms = now_ms.wrapping_add(next(3) as u32);
            match next(12) {
                0..5 => {
                    let room = next(3) as usize;
                    offsets[room] += 1;
                    let offset = offsets[room];
                    let key = (next(3) > 0).then(|| next(4) as usize);
                    let frame =
                        message(ROOMS[room], offset, key.map(|key| KEYS[key]), next(300) as usize);
                    backlog.conflate(&frame, &metrics);
                    backlog.push(shared(&frame, now_ms));
                    let same = |thing: &Thing| {
                        matches!(thing, Thing::Message { room: r, key: k, .. }
                            if *r == room && *k == key)
                    };
                    if let (true, true, Some(at)) =
                        (conflates, key.is_some(), list.iter().position(same))
                    {
                        lose(&mut list, at);
                    }
                    list.push(Thing::Message { room, offset, key, frame, queued_ms: now_ms });
                }
                5 => {
                    let frame = text_frame("{\"event\":\"ping\"}");
                    backlog.push(shared(&frame, now_ms));
                    list.push(Thing::Other(frame));
                }
                6 if next(4) == 0 => {
                    let room = next(3) as usize;
                    let frame = join_answer(ROOMS[room], offsets[room]);
                    backlog.push(shared(&frame, now_ms));
                    list.push(Thing::Join { room, frame });
                }
                7 | 8 => {
                    let at = oldest(&list);
                    assert_eq!(backlog.drop_oldest(&metrics), at.is_some());
                    if let Some(at) = at {
                        lose(&mut list, at);
                    }
                }
                9 if next(4) == 0 => {
                    backlog.drop_stale(now_ms, 20, &metrics);
                    while let Some(at) = oldest(&list)
                        && let Thing::Message { queued_ms, .. } = list[at]
                        && now_ms.wrapping_sub(queued_ms) >= 20
                    {
                        lose(&mut list, at);
                    }
                }
                _ => {
                    let want = (!list.is_empty()).then(|| list.remove(0).frame());
                    let got = backlog.pop(&metrics);
                    assert_eq!(got.as_ref().map(Segment::bytes), want.as_deref(), "seed {seed}");
                }
            }
            let bytes: usize = list.iter().map(|thing| thing.frame().len()).sum();
            assert_eq!(backlog.bytes(), bytes, "seed {seed}");
            assert_eq!(backlog.is_empty(), list.is_empty());
            let of_messages = list.iter().filter(|thing| matches!(thing, Thing::Message { .. }));
            let bytes: usize = of_messages.map(|thing| thing.frame().len()).sum();
            assert_eq!(backlog.message_bytes(), bytes);
        }
        while let Some(segment) = backlog.pop(&metrics) {
            assert_eq!(segment.bytes(), &list.remove(0).frame()[..], "seed {seed}");
        }
        assert!(list.is_empty() && backlog.rooms.is_empty() && backlog.keys.is_empty());
        assert!(metrics.messages_dropped.get() > 0 && metrics.gap_markers_sent.get() > 0);
        assert_eq!(metrics.messages_conflated.get() > 0, conflates);
    }
}

/// What a client knows of its rooms, from the frames alone.
#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    last: BTreeMap<String, u64>,
    missing: u64,
    gaps: u64,
    others: u64,
    messages: u64,
}

impl Reader {
    /// Reads the whole frames that have come.
    fn read(&mut self) {
        let mut at = 0;
        while let Some(len) = frame_bytes(&self.bytes[at..]) {
            let value = read_frames(&self.bytes[at..at + len]).remove(0);
            at += len;
            self.hear(&value);
        }
        self.bytes.drain(..at);
    }

    fn hear(&mut self, value: &Value) {
        let room = value["room"].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{value}"));
        if value["event"] == "message" {
            let last = self.last.get_mut(&room).expect("joined");
            assert_eq!(number("offset"), *last + 1, "neither skipped nor said before");
            *last += 1;
            self.messages += 1;
        } else if value["event"] == "gap" {
            let last = self.last.get_mut(&room).expect("joined");
            assert_eq!(number("from"), *last + 1, "{value}");
            assert!(number("to") >= number("from"), "{value}");
            self.missing += number("to") + 1 - number("from");
            self.gaps += 1;
            *last = number("to");
        } else if value["op"] == "join" {
            self.last.insert(room, number("offset"));
        } else if value["op"] == "publish" {
            assert!(self.last[&room] >= number("offset"), "the answer comes after the message");
            assert_eq!(number("number"), self.others, "none lost, in order");
            self.others += 1;
        } else {
            assert_eq!(value["control"], 0x89, "{value}");
        }
    }
}

fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let len = match *bytes.get(1)? {
        126 => 4 + usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        127 => 10 + u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        len => 2 + usize::from(len),
    };
    (bytes.len() >= len).then_some(len)
}

/// An outbox, the socket that it is sent to, and the client behind it.
struct Member {
    outbox: Outbox,
    stores: Stores,
    metrics: Counters,
    in_flight: Option<Vec<u8>>,
    reader: Reader,
    now: Time,
}

impl Member {
    fn new() -> Member {
        Member {
            outbox: Outbox::default(),
            stores: Stores::default(),
            metrics: Counters::default(),
            in_flight: None,
            reader: Reader::default(),
            now: Time(0),
        }
    }

    fn send(&mut self) {
        if self.in_flight.is_some() || self.outbox.is_empty() {
            return;
        }
        let mut parts = [IoSlice::new(&[]); 64];
        let count = self.outbox.take_parts(&mut parts, 256 * 1024);
        assert!(count > 0, "bytes are queued and none is sent");
        self.in_flight = Some(parts[..count].iter().flat_map(|part| part.to_vec()).collect());
        self.outbox.mark_in_flight(count);
    }

    /// The socket takes `count` bytes of what is in flight.
    fn sent(&mut self, count: usize, slow: &SlowLimits) {
        let Member { outbox, stores, metrics, in_flight, reader, now } = self;
        let Some(bytes) = in_flight.take() else { return };
        // What was in flight has not been touched meanwhile.
        let mut parts = [IoSlice::new(&[]); 64];
        outbox.sent(0, stores, *now);
        let parts_count = outbox.take_parts(&mut parts, 256 * 1024);
        let still: Vec<u8> = parts[..parts_count].iter().flat_map(|part| part.to_vec()).collect();
        assert!(still.starts_with(&bytes), "bytes in flight have changed");
        reader.bytes.extend(&bytes[..count]);
        reader.read();
        outbox.mark_in_flight(parts_count.max(1));
        outbox.sent(count, stores, *now);
        if !outbox.is_empty() {
            outbox.refill(slow, stores, metrics, *now);
        }
    }

    fn drain(&mut self, slow: &SlowLimits) {
        loop {
            self.send();
            let Some(bytes) = &self.in_flight else { break };
            self.sent(bytes.len(), slow);
        }
        assert!(self.reader.bytes.is_empty() && !self.outbox.is_backlogged());
    }
}

#[test]
fn a_client_can_tell_everything_that_it_misses() {
    for seed in 0..200 {
        play(seed);
    }
}

fn play(seed: u64) {
    let mut random = Random::new(seed);
    let mut next = |below: u64| random.below(below);
    let policy = if seed.is_multiple_of(2) { SlowPolicy::DropOldest } else { SlowPolicy::Conflate };
    let outbox_bytes = 1024 + next(20_000) as usize;
    let age = Duration::from_millis([0, 0, 50, 400][next(4) as usize]);
    let slow = SlowLimits { policy, outbox_bytes, age };
    let bytes_max = outbox_bytes + next(30_000) as usize;
    let large = next(3) == 0;
    let mut member = Member::new();
    let mut offsets = [0; 3];
    for (room, offset) in ROOMS.iter().zip(offsets) {
        member.outbox.push_shared(&join_answer(room, offset), &mut member.stores, member.now);
    }
    let (mut others, mut pushed) = (0, 0);
    let mut closed = false;
    for _ in 0..1500 {
        member.now = member.now + Duration::from_micros(next(5000));
        let now = member.now;
        let push = |member: &mut Member, frame: &Bytes| {
            let Member { outbox, stores, metrics, in_flight, .. } = member;
            let result = outbox.push_backlogged(frame, bytes_max, &slow, stores, metrics, now);
            assert!(outbox.bytes() <= bytes_max, "seed {seed}: {} bytes", outbox.bytes());
            let least = outbox.owed_bytes() + frame.len();
            assert!(
                in_flight.is_none() || outbox.bytes() <= outbox_bytes.max(least),
                "seed {seed}: {} bytes of {outbox_bytes}, {} owed, {} new",
                outbox.bytes(),
                outbox.owed_bytes(),
                frame.len()
            );
            result == Err(Full)
        };
        match next(10) {
            0..5 => {
                let room = next(3) as usize;
                let filler = if large { next(9000) } else { next(400) } as usize;
                let key = (next(4) > 0).then(|| KEYS[next(4) as usize]);
                let frame = message(ROOMS[room], offsets[room] + 1, key, filler);
                closed = push(&mut member, &frame);
                if !closed {
                    offsets[room] += 1;
                    pushed += 1;
                    if next(3) == 0 {
                        let (room, offset) = (json!(ROOMS[room]), offsets[room]);
                        let answer = text_frame(&format!(
                            "{{\"ack\":1,\"op\":\"publish\",\"room\":{room},\"offset\":{offset},\"number\":{others}}}"
                        ));
                        closed = push(&mut member, &answer);
                        others += u64::from(!closed);
                    }
                }
            }
            5 if member.outbox.bytes() + 2 <= bytes_max => {
                member.outbox.write(&mut member.stores, now, |out| out.extend([0x89, 0]));
            }
            6 if next(10) == 0 => {
                // It has left and comes again, and the room may have begun anew.
                let room = next(3) as usize;
                let offset = if next(2) == 0 { 0 } else { offsets[room] };
                closed = push(&mut member, &join_answer(ROOMS[room], offset));
                if !closed {
                    offsets[room] = offset;
                }
            }
            7 => member.send(),
            _ => {
                if let Some(bytes) = &member.in_flight {
                    let count = next(bytes.len() as u64 + 1) as usize;
                    member.sent(count, &slow);
                }
            }
        }
        if closed {
            break;
        }
    }
    if closed || next(4) == 0 {
        // A Close frame would come now.
        if let Some(bytes) = &member.in_flight {
            member.sent(bytes.len(), &slow);
        }
        member.outbox.settle(&mut member.stores, &member.metrics);
        assert!(!member.outbox.is_backlogged());
    }
    member.drain(&SlowLimits { age: Duration::ZERO, ..slow });
    let Member { reader, metrics, .. } = &member;
    let metrics = metrics.read();
    for (room, offset) in ROOMS.iter().zip(offsets) {
        assert_eq!(reader.last[*room], offset, "seed {seed}: all of {room} was told");
    }
    assert_eq!(reader.others, others);
    assert_eq!(reader.messages + reader.missing, pushed);
    assert_eq!(reader.missing, metrics.messages_dropped + metrics.messages_conflated);
    assert_eq!(reader.gaps, metrics.gap_markers_sent);
    assert!(policy == SlowPolicy::Conflate || metrics.messages_conflated == 0);
}

#[test]
fn who_keeps_up_misses_nothing_and_has_no_backlog() {
    let slow = SlowLimits {
        policy: SlowPolicy::Conflate,
        outbox_bytes: 2000,
        age: Duration::from_millis(10),
    };
    let mut member = Member::new();
    member.outbox.push_shared(&join_answer("a", 0), &mut member.stores, member.now);
    for offset in 1..=300 {
        member.now = member.now + Duration::from_millis(1);
        let frame = message("a", offset, Some("k"), 900);
        let Member { outbox, stores, metrics, now, .. } = &mut member;
        outbox.push_backlogged(&frame, 10_000, &slow, stores, metrics, *now).unwrap();
        assert!(!outbox.is_backlogged());
        // Bursts of five pass the soft bound before anything could be sent.
        if offset % 5 == 0 {
            member.drain(&slow);
        }
    }
    assert_eq!((member.reader.messages, member.reader.gaps), (300, 0));
}

/// The frames that a member gets whose socket takes nothing while these messages come.
fn stalled(policy: SlowPolicy, age: Duration, messages: &[(&str, u64, Option<&str>)]) -> String {
    let slow = SlowLimits { policy, outbox_bytes: 1500, age };
    let mut member = Member::new();
    member.outbox.push_shared(&join_answer("a", 0), &mut member.stores, member.now);
    member.outbox.push_shared(&join_answer("b", 0), &mut member.stores, member.now);
    member.send();
    for (room, offset, key) in messages {
        member.now = member.now + Duration::from_millis(10);
        let Member { outbox, stores, metrics, now, .. } = &mut member;
        let frame = message(room, *offset, *key, 200);
        outbox.push_backlogged(&frame, 2000, &slow, stores, metrics, *now).unwrap();
    }
    let mut got = Vec::new();
    let mut first = true;
    while !member.outbox.is_empty() {
        member.send();
        let bytes = member.in_flight.clone().expect("sent above");
        let frames = read_frames(&bytes);
        got.extend(frames.into_iter().skip(if first { 2 } else { 0 }));
        first = false;
        member.sent(bytes.len(), &slow);
    }
    let line = |value: &Value| match value["event"].as_str() {
        Some("gap") => format!("{}[{}-{}]", value["room"], value["from"], value["to"]),
        _ => format!("{}{}", value["room"], value["offset"]),
    };
    got.iter().map(line).collect::<Vec<_>>().join(" ").replace('"', "")
}

#[test]
fn what_a_stalled_member_gets() {
    // Each message takes about 285 bytes of the 1500, the answers to the joins about 80.
    let many: Vec<_> = (1..=8).map(|offset| ("a", offset, None)).collect();
    let drop_oldest = SlowPolicy::DropOldest;
    assert_eq!(stalled(drop_oldest, Duration::ZERO, &many), "a[1-4] a5 a6 a7 a8");
    assert_eq!(stalled(drop_oldest, Duration::from_millis(25), &many), "a[1-5] a6 a7 a8");
    let two: Vec<_> =
        (1..=4).flat_map(|offset| [("a", offset, None), ("b", offset, None)]).collect();
    assert_eq!(stalled(drop_oldest, Duration::ZERO, &two), "a[1-2] b[1-2] a3 b3 a4 b4");
    let keyed = [
        ("a", 1, Some("x")),
        ("a", 2, Some("y")),
        ("b", 1, Some("x")),
        ("a", 3, Some("x")),
        ("a", 4, None),
        ("a", 5, Some("x")),
    ];
    // The soft bound is passed with the fifth: from there on the first is superseded.
    assert_eq!(stalled(SlowPolicy::Conflate, Duration::ZERO, &keyed), "a[1-1] a2 b1 a[3-3] a4 a5");
    assert_eq!(
        stalled(SlowPolicy::Conflate, Duration::ZERO, &keyed[..4]),
        "a1 a2 b1 a3",
        "nothing happens below the soft bound"
    );
}

#[test]
fn what_a_backlog_holds_is_counted() {
    let mut backlog = Backlog::new(true);
    assert_eq!(backlog.held_bytes(), (0, 0));
    let lone = message("a", 1, Some("k"), 1000);
    let len = lone.len();
    backlog.push(shared(&lone, 0));
    drop(lone);
    // A key is part of its frame, and so holds it: then it is not one segment's alone.
    let (bytes, nodes) = backlog.held_bytes();
    assert_eq!(nodes, 1);
    let lists = backlog.nodes.capacity() * size_of::<Node>();
    assert!((lists..lists + 300).contains(&bytes), "{bytes} with {lists}");

    let mut backlog = Backlog::new(false);
    let others = message("a", 2, None, 1000);
    backlog.push(shared(&message("a", 1, None, 1000), 0));
    backlog.push(shared(&others, 0));
    let (bytes, nodes) = backlog.held_bytes();
    assert_eq!(nodes, 2);
    let lists = backlog.nodes.capacity() * size_of::<Node>();
    assert!((lists + len - 50..lists + len + 300).contains(&bytes), "{bytes} with {lists}, {len}");
}

#[test]
fn a_message_without_room_even_alone_is_a_gap_and_an_answer_closes() {
    let slow =
        SlowLimits { policy: SlowPolicy::DropOldest, outbox_bytes: 1024, age: Duration::ZERO };
    let mut member = Member::new();
    member.outbox.push_shared(&join_answer("a", 0), &mut member.stores, member.now);
    member.send();
    let Member { outbox, stores, metrics, now, .. } = &mut member;
    let mut push =
        |frame: &Bytes| outbox.push_backlogged(frame, 2048, &slow, stores, metrics, *now);
    push(&message("a", 1, None, 1500)).expect("above the soft bound, but the only one");
    push(&message("a", 2, None, 5000)).expect("told as missing");
    assert_eq!(push(&text_frame(&format!("{{\"x\":\"{}\"}}", "x".repeat(2000)))), Err(Full));
    member.drain(&slow);
    assert_eq!((member.reader.messages, member.reader.missing, member.reader.gaps), (0, 2, 1));
}
