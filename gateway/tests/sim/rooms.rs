//! Rooms over several shards: each message reaches each member once and in order, from the offset
//! of its join on, or its connection ends. Under the policies that drop messages, it is told of each
//! that it does not get.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use gateway::metrics::{Cause, Metrics};
use gateway::ring::sim::{Fault, Random};
use gateway::rooms::{SlowLimits, SlowPolicy};
use gateway::time::Time;
use serde_json::Value;

use crate::client::{
    CLOSE, Client, End, Farewell, Line, Manners, PING, TEXT, close_payload, masked,
};
use crate::world::{Plan, World, for_seeds};

#[test]
fn rooms() {
    for_seeds("rooms", |seed| play(seed, None).0);
}

#[test]
fn slow_members() {
    let policies = [SlowPolicy::Disconnect, SlowPolicy::DropOldest, SlowPolicy::Conflate];
    let sums = RefCell::new([const { Vec::<Metrics>::new() }; 3]);
    for_seeds("slow_members", |seed| {
        let policy = (seed % 3) as usize;
        let (digest, metrics) = play(seed, Some(policies[policy]));
        sums.borrow_mut()[policy].push(metrics);
        digest
    });
    if std::env::var_os("PENSTOCK_SIM_SEED").is_some() {
        // In a single one there may be nobody who is slow.
        return;
    }
    let sum = |policy: usize, count: fn(&Metrics) -> u64| {
        sums.borrow()[policy].iter().map(count).sum::<u64>()
    };
    let any = |count: fn(&Metrics) -> u64| [0, 1, 2].map(|policy| sum(policy, count) > 0);
    assert_eq!(any(|metrics| metrics.messages_dropped), [false, true, true]);
    assert_eq!(any(|metrics| metrics.messages_conflated), [false, false, true]);
    assert_eq!(any(|metrics| metrics.gap_markers_sent), [false, true, true]);
    assert!(any(|metrics| metrics.closed(Cause::SlowConsumer))[0]);
}

/// A client that joins, publishes and leaves.
struct Member {
    client: Client,
    number: usize,
    /// Frames that have been looked at.
    looked: usize,
    asked: u64,
    requests_left: u64,
    /// Asked for and not acknowledged: what for, the room, and the data.
    pending: HashMap<u64, (&'static str, String, String)>,
    /// By room: the last offset that it was given.
    joined: HashMap<String, u64>,
    /// The epoch of each room that it was in last.
    epochs: HashMap<String, String>,
    /// Rooms that it has asked to join and not asked to leave.
    wanted: Vec<String>,
    refusals: u64,
    /// Messages that it was told it does not get, and how often it was told.
    missed: u64,
    gaps: u64,
}

/// What was published, by room, epoch and offset: all members have to agree on it.
/// A room that was forgotten begins anew under another epoch.
type Log = HashMap<(String, String, u64), String>;

impl Member {
    fn play(&mut self, now: Time, dice: &mut Random, log: &mut Log) -> Time {
        let wake = self.client.play(now, dice);
        while self.looked < self.client.frames.len() {
            let frame = self.client.frames[self.looked].clone();
            self.looked += 1;
            if frame.opcode == TEXT {
                let value = serde_json::from_slice(&frame.payload).expect("JSON");
                self.hear(&value, log);
            } else {
                assert!(matches!(frame.opcode, PING | CLOSE), "{frame:?}");
            }
        }
        let may = self.client.line.is_open()
            && self.client.close().is_none()
            && self.client.line.queue.is_empty()
            && self.pending.len() < 4;
        if may && self.requests_left > 0 {
            self.requests_left -= 1;
            self.ask(dice);
            return now;
        }
        let leaves = self.client.line.farewell != Farewell::Stay && !self.client.line.half_closed;
        if may && leaves && self.pending.is_empty() {
            let line = &mut self.client.line;
            match line.farewell {
                Farewell::Wait => {
                    line.queue.push_back(masked(dice, true, CLOSE, &close_payload(1000, "")));
                    line.farewell = Farewell::Stay;
                    self.client.says_close();
                    return now;
                }
                // A last word, behind which it goes.
                _ => line.cut_at = line.sent,
            }
            return now;
        }
        wake
    }

    fn ask(&mut self, dice: &mut Random) {
        self.asked += 1;
        let id = self.asked;
        let room = format!("room-{}", dice.below(3));
        let joined = self.wanted.contains(&room);
        let (op, data) = match (joined, dice.below(8)) {
            (false, _) => ("join", String::new()),
            (true, 0) => ("leave", String::new()),
            (true, _) => {
                let len = match dice.below(10) {
                    0 => dice.below(20_000),
                    1 => 100 + dice.below(60),
                    _ => dice.below(100),
                };
                let filler = "x".repeat(len as usize);
                ("publish", format!("{}/{id}/{filler}", self.number))
            }
        };
        match op {
            "join" => self.wanted.push(room.clone()),
            "leave" => self.wanted.retain(|other| *other != room),
            _ => {}
        }
        let mut request = serde_json::json!({"op": op, "id": id, "room": room});
        if op == "publish" {
            request["data"] = Value::String(data.clone());
            if dice.below(3) > 0 {
                request["key"] = Value::String(format!("key \"{}", dice.below(3)));
            }
        }
        let request = request.to_string();
        self.client.line.queue.push_back(masked(dice, true, TEXT, request.as_bytes()));
        self.pending.insert(id, (op, room, data));
    }

    fn hear(&mut self, value: &Value, log: &mut Log) {
        let who = self.number;
        let room = value["room"].as_str().unwrap_or_default().to_owned();
        if let Some(event) = value["event"].as_str() {
            if event == "gap" {
                let (from, to) = (value["from"].as_u64(), value["to"].as_u64());
                let (from, to) = (from.expect("an offset"), to.expect("an offset"));
                let last = self.joined.get_mut(&room);
                let last = last.unwrap_or_else(|| panic!("client {who} is not in it: {value}"));
                assert_eq!(from, *last + 1, "client {who}: {value}");
                assert!(to >= from, "client {who}: {value}");
                *last = to;
                self.missed += to + 1 - from;
                self.gaps += 1;
                return;
            }
            if event != "message" {
                assert!(matches!(event, "welcome" | "ping"), "{value}");
                return;
            }
            let offset = value["offset"].as_u64().expect("an offset");
            let last = self.joined.get_mut(&room);
            let last = last.unwrap_or_else(|| panic!("client {who} is not in it: {value}"));
            assert_eq!(offset, *last + 1, "client {who}, {room}");
            *last = offset;
            let data = value["data"].as_str().expect("text").to_owned();
            let at = (room.clone(), self.epochs[&room].clone(), offset);
            let known = log.entry(at).or_insert_with(|| data.clone());
            assert_eq!(*known, data, "client {who}, {room} {offset}");
            return;
        }
        let id = value["ack"].as_u64().or(value["id"].as_u64()).expect("an answer");
        let (op, asked_room, data) = self.pending.remove(&id).expect("asked once");
        if value["error"].is_string() {
            self.refusals += 1;
            panic!("client {who}: {op} {asked_room}: {value}");
        }
        assert_eq!((value["op"].as_str(), &room), (Some(op), &asked_room), "{value}");
        match op {
            "join" => {
                let offset = value["offset"].as_u64().expect("an offset");
                let epoch = value["epoch"].as_str().expect("an epoch").to_owned();
                self.epochs.insert(room.clone(), epoch);
                assert!(self.joined.insert(room, offset).is_none());
            }
            "leave" => {
                self.joined.remove(&room);
                // A join that was still on its way is answered by this, too.
                self.pending
                    .retain(|other, (op, of, _)| (*op, &**of) != ("join", &*room) || *other > id);
            }
            _ => {
                let offset = value["offset"].as_u64().expect("an offset");
                // Who has left meanwhile need not know which life of the room it was.
                let Some(last) = self.joined.get(&room) else { return };
                // Its own copy, or the gap event that stands for it, came before.
                assert!(*last >= offset, "client {who}: {value}");
                let at = (room.clone(), self.epochs[&room].clone(), offset);
                let known = log.entry(at).or_insert_with(|| data.clone());
                assert_eq!(*known, data, "client {who}, {room} {offset}");
            }
        }
    }

    /// It has said and heard all that it will, except for messages of others.
    fn is_settled(&self) -> bool {
        let line = &self.client.line;
        let silent = self.requests_left == 0 && self.pending.is_empty() && line.queue.is_empty();
        !line.is_open()
            || (line.farewell == Farewell::Stay && silent && self.client.close().is_none())
    }
}

/// `policy`: under which many are slow, and outboxes are small.
fn play(seed: u64, policy: Option<SlowPolicy>) -> (u64, Metrics) {
    let mut dice = Random::new(seed ^ 0x2003);
    let count = 2 + dice.below(12) as usize;
    let mut plan = Plan::pick(seed, &mut dice, count as u64, 1);
    // Members that stay must not keep others out for ever.
    plan.slots = plan.slots.max(2 * count as u32 + 4);
    if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0);
    }
    if dice.below(3) == 0 {
        plan.limits.message_bytes_max = 30_000;
        plan.limits.outbox_bytes_max = 31_024 + dice.below(100_000) as usize;
    }
    if let Some(policy) = policy {
        plan.limits.message_bytes_max = 30_000;
        plan.limits.outbox_bytes_max = 31_024 + dice.below(60_000) as usize;
        plan.limits.ping_interval = Duration::ZERO;
        let age = [0, 0, 20, 2000][dice.below(4) as usize];
        plan.slow = SlowLimits {
            policy,
            outbox_bytes: 1024 + dice.below(20_000) as usize,
            age: Duration::from_millis(if policy == SlowPolicy::Disconnect { 0 } else { age }),
        };
    }
    let tight = plan.limits.outbox_bytes_max < 1_000_000;
    let mut world = World::new(seed, plan, dice);
    let mut members: Vec<Member> = Vec::new();
    for number in 0..count {
        let dice = &mut *world.dice.borrow_mut();
        let mut manners = Manners::pick(dice);
        if policy.is_some() && number > 0 && dice.below(2) == 0 {
            manners.read_max = 200 + dice.below(2000) as usize;
            manners.read_pause = Duration::from_micros(1 + dice.below(20_000));
        }
        let farewell = match dice.below(8) {
            0 => Farewell::HalfClose,
            1 => Farewell::Reset,
            2 => Farewell::Drop,
            3 => Farewell::Wait,
            _ => Farewell::Stay,
        };
        // It leaves when it says so, not when its queue is empty.
        let line = Line::new(world.connect(number as u64), manners, Farewell::Stay);
        let mut client = Client::new(line, "/rooms");
        client.line.patient = true;
        client.line.farewell = farewell;
        members.push(Member {
            client,
            number,
            looked: 0,
            asked: 0,
            requests_left: dice.below(if policy.is_some() { 60 } else { 40 }),
            pending: HashMap::new(),
            joined: HashMap::new(),
            epochs: HashMap::new(),
            wanted: Vec::new(),
            refusals: 0,
            missed: 0,
            gaps: 0,
        });
    }
    let mut log = Log::new();
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        let mut wake = Time::NEVER;
        for member in &mut members {
            wake = wake.min(member.play(now, dice, &mut log));
        }
        let settled = members.iter().all(Member::is_settled);
        let up_to_date = |member: &Member| {
            let last = |room: &str| {
                let epoch = &member.epochs[room];
                let offsets = log.keys().filter(|(other, at, _)| other == room && at == epoch);
                offsets.map(|(_, _, offset)| *offset).max().unwrap_or(0)
            };
            !member.client.line.is_open()
                || member.joined.iter().all(|(room, at)| *at >= last(room))
        };
        (!(settled && members.iter().all(up_to_date))).then_some(wake)
    });
    println!("{:?}\n{:?}", world.plan, world.metrics());
    let state = |member: &Member| {
        let line = &member.client.line;
        format!(
            "member {} {:?} {:?} left {} pending {:?} joined {:?} close {:?} received {} {:?}",
            member.number,
            line.end,
            line.farewell,
            member.requests_left,
            member
                .pending
                .iter()
                .map(|(id, (op, room, data))| (id, op, room, data.len()))
                .collect::<Vec<_>>(),
            member.joined,
            member.client.close_code(),
            line.received.len(),
            line.manners
        )
    };
    if !done {
        members.iter().for_each(|member| eprintln!("{}", state(member)));
        let records: Vec<_> = world.shards.iter().flat_map(|shard| shard.records()).collect();
        panic!("stuck, {records:#?}");
    }
    let resets = world.network.fired(Fault::Reset) > 0;
    for member in &members {
        let line = &member.client.line;
        let refused = line.is_refused();
        let excused = line.manners.rude
            || refused
            || (resets && line.end == End::Reset)
            || (tight && member.client.close_code() == Some(1008))
            || line.slow;
        if member.client.close_code() == Some(1008) {
            let reason = &member.client.close().expect("it has come").payload[2..];
            assert!(reason.ends_with(b"resume from your last offset"), "{}", state(member));
        }
        if line.farewell == Farewell::Stay && !excused && member.client.close_code() != Some(1000) {
            assert_eq!(line.end, End::Open, "{}", state(member));
        }
    }
    // No message twice: offsets are unique in the log, and so is what was said.
    let mut said: Vec<_> = log.iter().map(|((room, _, _), data)| (room, data)).collect();
    said.sort_unstable();
    assert!(said.windows(2).all(|pair| pair[0] != pair[1]), "a message has two offsets");
    let metrics = world.metrics();
    let sum = |count: fn(&Member) -> u64| members.iter().map(count).sum::<u64>();
    // Who has gone does not hear of what it misses.
    assert!(sum(|member| member.gaps) <= metrics.gap_markers_sent);
    let lost = metrics.messages_dropped + metrics.messages_conflated;
    assert!(sum(|member| member.missed) <= lost);
    if members.iter().all(|member| member.client.line.is_open()) {
        assert_eq!(sum(|member| member.gaps), metrics.gap_markers_sent);
        assert_eq!(sum(|member| member.missed), lost);
    }
    drop(members);
    (world.finish(), metrics)
}
