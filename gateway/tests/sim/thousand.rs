//! Everything that a peer can order, a thousand times in one write, while it reads nothing: what that
//! holds is bounded, and another client of the shard is served meanwhile.

use std::time::Duration;

use gateway::memory::Holder;
use gateway::rate::Rate;
use gateway::ring::sim::{Faults, Peer, Random};
use gateway::rooms::OPERATIONS;

use crate::client::{CONTINUATION, KEY, PING, TEXT, masked};
use crate::world::{Plan, World};

/// How often each is ordered.
const TIMES: usize = 1000;

/// Turns in which the peer reads nothing.
const STALLED_TURNS: usize = 300;

/// Turns that another client's echo may take longer than when it is alone.
const DELAY_TURNS_MAX: usize = 4;

/// What an outbox may hold: reading stops at 256 KiB, and the answer on the way, of 1 MiB at most by
/// `answer_bytes_max` and with what is around its messages, still comes.
const OUTBOX_BYTES_MAX: u64 = (256 << 10) + (1 << 20) + (64 << 10);

/// What of a shard's letters may wait: 4 MiB, one answer, and the lists.
const LETTER_BYTES_MAX: u64 = (4 << 20) + (1 << 20) + (1 << 20);

/// A thing to order: its name, the bytes of the `n`-th, and how many answers a thousand of it have at
/// least.
type Row = (&'static str, fn(&mut Random, usize) -> Vec<u8>, usize);

/// One row for each operation, by its name, and then what is no operation.
const ROWS: [Row; 12] = [
    ("join", |dice, n| text(dice, &format!(r#"{{"op":"join","id":{n},"room":"r{n}"}}"#)), TIMES),
    ("leave", |dice, n| text(dice, &format!(r#"{{"op":"leave","id":{n},"room":"r{n}"}}"#)), TIMES),
    (
        "publish",
        |dice, n| text(dice, &format!(r#"{{"op":"publish","id":{n},"room":"lobby","data":{n}}}"#)),
        TIMES,
    ),
    (
        "history",
        |dice, n| text(dice, &format!(r#"{{"op":"history","id":{n},"room":"lobby","after":0}}"#)),
        TIMES,
    ),
    (
        "presence",
        |dice, n| text(dice, &format!(r#"{{"op":"presence","id":{n},"room":"lobby"}}"#)),
        TIMES,
    ),
    (
        "direct",
        |dice, n| text(dice, &format!(r#"{{"op":"direct","id":{n},"to":"nobody","data":{n}}}"#)),
        TIMES,
    ),
    ("ping", |dice, n| text(dice, &format!(r#"{{"op":"ping","id":{n}}}"#)), TIMES),
    ("an unknown op", |dice, n| text(dice, &format!(r#"{{"op":"dance","id":{n}}}"#)), TIMES),
    ("what is not JSON", |dice, _| text(dice, "{[}"), TIMES),
    // The latest is enough to answer.
    ("Ping frames", |dice, _| masked(dice, true, PING, &[b'p'; 125]), 0),
    (
        "empty fragments",
        |dice, n| masked(dice, n + 1 == TIMES, if n == 0 { TEXT } else { CONTINUATION }, b""),
        1,
    ),
    ("requests", |_, _| b"GET /rooms HTTP/1.1\r\nHost: sim\r\n\r\n".to_vec(), 0),
];

fn text(dice: &mut Random, json: &str) -> Vec<u8> {
    masked(dice, true, TEXT, json.as_bytes())
}

#[test]
fn there_is_a_row_for_every_operation() {
    let rows = ROWS.map(|row| row.0);
    assert_eq!(OPERATIONS.map(|operation| operation.0), rows[..OPERATIONS.len()]);
}

#[test]
fn thousand() {
    for row in ROWS {
        play(row);
    }
}

fn upgrade(target: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes()
}

/// A turn of everybody; what a socket cannot take is left in `queue`.
fn turn(world: &mut World, peer: &mut Peer, queue: &mut Vec<u8>) {
    let took = peer.send(queue);
    queue.drain(..took);
    world.shards.iter_mut().for_each(|shard| shard.turn());
    world.network.advance(Duration::from_micros(50));
}

/// How often the needle is in it.
fn count(hay: &[u8], needle: &[u8]) -> usize {
    hay.windows(needle.len()).filter(|it| it == &needle).count()
}

fn play((name, order, answers_least): Row) {
    let mut dice = Random::new(7);
    let mut plan = Plan::pick(7, &mut dice, 8, 1);
    (plan.faults, plan.shards, plan.slots) = (Faults::none(), 2, 64);
    (plan.buffers, plan.buffer_bytes) = (16, 64 * 1024);
    // As fast as a peer likes: the rates are another bound.
    plan.limits.rates.connection.control_frames = Rate::NONE;
    let mut world = World::new(7, plan, Random::new(7));
    let (mut bad, mut good) = (world.connect(0), world.connect(0));
    let (mut queue, mut heard, mut echoed) = (Vec::new(), Vec::new(), Vec::new());
    if name != "requests" {
        queue.extend(upgrade("/rooms"));
        queue.extend(text(&mut dice, r#"{"op":"join","room":"lobby"}"#));
        let message = format!(r#"{{"op":"publish","room":"lobby","data":"{}"}}"#, "x".repeat(1000));
        (0..500).for_each(|_| queue.extend(text(&mut dice, &message)));
    }
    let mut hello = upgrade("/echo");
    for _ in 0..400 {
        let took = good.send(&hello);
        hello.drain(..took);
        turn(&mut world, &mut bad, &mut queue);
        bad.receive(&mut heard, 1 << 20);
        good.receive(&mut echoed, 1 << 20);
    }
    assert!(queue.is_empty() && echoed.starts_with(b"HTTP/1.1 101 "), "{name}: not ready");
    let before = count(&heard, b"\"ack\":");
    heard.clear();
    echoed.clear();
    let hi = masked(&mut dice, true, TEXT, b"hi");
    assert_eq!(good.send(&hi), hi.len());
    let mut alone = 0;
    while good.receive(&mut echoed, 1 << 20) == 0 {
        turn(&mut world, &mut bad, &mut queue);
        alone += 1;
        assert!(alone < 100, "no echo");
    }
    let turns_max = alone + DELAY_TURNS_MAX;

    for n in 0..TIMES {
        queue.extend(order(&mut dice, n));
    }
    let (mut waited, mut slowest) = (0, 0);
    let mut served = 0;
    for round in 0..STALLED_TURNS {
        if waited == 0 {
            assert_eq!(good.send(&hi), hi.len());
        }
        turn(&mut world, &mut bad, &mut queue);
        waited += 1;
        if good.receive(&mut echoed, 1 << 20) > 0 {
            (slowest, waited, served) = (slowest.max(waited), 0, served + 1);
        }
        assert!(waited <= turns_max, "{name}: no echo for {waited} turns in round {round}");
        for shard in &world.shards {
            let held = shard.held();
            let outboxes = shard.records().map(|record| record.outbox_bytes as u64).max();
            let outboxes = outboxes.unwrap_or(0);
            assert!(outboxes <= OUTBOX_BYTES_MAX, "{name}: {outboxes} bytes in an outbox");
            let letters = held.get(Holder::Mailboxes);
            assert!(letters <= LETTER_BYTES_MAX, "{name}: {letters} bytes of letters");
            // The lists of what waits may be twice as long.
            let outboxes = held.get(Holder::Outboxes);
            assert!(outboxes <= 2 * OUTBOX_BYTES_MAX, "{name}: {outboxes} bytes of outboxes");
        }
    }
    assert!(served >= STALLED_TURNS / turns_max, "{name}: {served} echoes");
    // Then it reads, and has an answer for each.
    let mut quiet = 0;
    while quiet < 100 {
        turn(&mut world, &mut bad, &mut queue);
        let came = bad.receive(&mut heard, 1 << 20);
        quiet = if came == 0 { quiet + 1 } else { 0 };
    }
    let answers = count(&heard, b"\"ack\":") + count(&heard, b"\"error\":");
    println!(
        "{name}: slowest echo {slowest} turns, {served} echoes, {answers} answers, {before} before"
    );
    assert!(answers >= answers_least, "{name}: {answers} answers");
    assert!(!heard.is_empty(), "{name}: nothing came");
    drop((bad, good));
    world.finish();
}

/// Clients that order without end.
const CROWD: usize = 40;

/// Turns that a request may take beside them.
const CROWDED_TURNS_MAX: usize = 8;

/// Where a shard has more to do than it can, each client has its turn: who publishes once beside many that
/// publish as fast as they can comes up with the first of their requests, and is not refused.
#[test]
fn who_publishes_beside_a_crowd_waits_for_one_request_of_each() {
    let mut dice = Random::new(7);
    let mut plan = Plan::pick(7, &mut dice, 8, 1);
    (plan.faults, plan.shards, plan.slots) = (Faults::none(), 2, 64);
    (plan.buffers, plan.buffer_bytes) = (64, 64 * 1024);
    let mut world = World::new(7, plan, Random::new(7));
    let (mut good, mut queue, mut heard) = (world.connect(0), Vec::new(), Vec::new());
    let mut crowd: Vec<_> = (0..CROWD).map(|_| (world.connect(0), Vec::new())).collect();
    for (queue, room) in crowd.iter_mut().map(|(_, queue)| queue).chain([&mut queue]).zip(0..) {
        queue.extend(upgrade("/rooms"));
        queue.extend(text(&mut dice, &format!(r#"{{"op":"join","room":"r{room}"}}"#)));
    }
    let mut turn_of_all = |crowd: &mut [(Peer, Vec<u8>)], queue: &mut Vec<u8>| {
        for (peer, queue) in crowd {
            let took = peer.send(queue);
            queue.drain(..took);
            peer.receive(&mut Vec::new(), 1 << 20);
        }
        turn(&mut world, &mut good, queue);
        good.receive(&mut heard, 1 << 20);
        let answered = count(&heard, b"\"ack\":") + count(&heard, b"\"error\":");
        (answered > 0).then(|| std::mem::take(&mut heard))
    };
    assert!((0..400).any(|_| turn_of_all(&mut crowd, &mut queue).is_some()), "not a member");
    (0..400).for_each(|_| assert!(turn_of_all(&mut crowd, &mut queue).is_none()));

    for ((_, queue), room) in crowd.iter_mut().zip(0..) {
        let publish = format!(r#"{{"op":"publish","room":"r{room}","data":0}}"#);
        (0..5 * TIMES).for_each(|_| queue.extend(text(&mut dice, &publish)));
    }
    let mut longest = 0;
    for n in 0..20 {
        let publish = format!(r#"{{"op":"publish","id":{n},"room":"r{CROWD}","data":0}}"#);
        queue.extend(text(&mut dice, &publish));
        let answer =
            (1..1000).find_map(|turns| Some((turns, turn_of_all(&mut crowd, &mut queue)?)));
        let (turns, heard) = answer.expect("an answer");
        assert_eq!(count(&heard, b"\"error\":"), 0, "{}", String::from_utf8_lossy(&heard));
        longest = longest.max(turns);
    }
    println!("{longest} turns");
    assert!(longest <= CROWDED_TURNS_MAX, "{longest} turns");
    assert!(crowd.iter().any(|(_, queue)| !queue.is_empty()), "the crowd was done before");
}
