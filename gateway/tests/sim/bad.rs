//! Bad input on some connections, of which the others notice nothing.

use std::time::Duration;

use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{
    BINARY, CLOSE, CONTINUATION, Client, End, Farewell, Line, Manners, PING, TEXT, close_payload,
    masked, unmasked,
};
use crate::echo::{Talker, talker};
use crate::world::{Plan, World, for_seeds};

#[test]
fn bad() {
    for_seeds("bad", play);
}

/// What a vandal sends behind a good request, and the close code that it earns.
const CRIMES: [(&str, u16); 10] = [
    ("unmasked", 1002),
    ("reserved bits", 1002),
    ("reserved opcode", 1002),
    ("continuation of nothing", 1002),
    ("interrupted message", 1002),
    ("long control frame", 1002),
    ("close of one byte", 1002),
    ("close code 1005", 1002),
    ("text that is not UTF-8", 1007),
    ("too big", 1009),
];

fn crime(dice: &mut Random, crime: &str, message_bytes_max: usize) -> Vec<u8> {
    match crime {
        "unmasked" => unmasked(true, TEXT, b"hello"),
        "reserved bits" => {
            let mut frame = masked(dice, true, TEXT, b"hello");
            frame[0] |= [0x10, 0x20, 0x40][dice.below(3) as usize];
            frame
        }
        "reserved opcode" => {
            let opcode = [3, 4, 7, 11, 15][dice.below(5) as usize];
            masked(dice, true, opcode, b"")
        }
        "continuation of nothing" => masked(dice, true, CONTINUATION, b"lo"),
        "interrupted message" => {
            let first = masked(dice, false, TEXT, b"hel");
            [first, masked(dice, true, BINARY, b"lo")].concat()
        }
        "long control frame" => masked(dice, true, PING, &[0; 126]),
        "close of one byte" => masked(dice, true, CLOSE, &[3]),
        "close code 1005" => masked(dice, true, CLOSE, &close_payload(1005, "")),
        "text that is not UTF-8" => masked(dice, true, TEXT, b"caf\xe9!"),
        _ => {
            // The header alone is enough.
            let mut frame = masked(dice, true, BINARY, &[0; 0x10000])[..14].to_vec();
            frame[2..10].copy_from_slice(&(message_bytes_max as u64 + 1).to_be_bytes());
            frame
        }
    }
}

/// What came before a request was refused, or instead of one.
fn garbage(dice: &mut Random) -> Vec<u8> {
    let mut bytes = match dice.below(4) {
        0 => b"GET /echo HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\n".to_vec(),
        1 => b"GET /nowhere HTTP/1.1\r\nHost: sim\r\n\r\n".to_vec(),
        2 => b"GET /echo HTTP/1.1\r\nHost: sim\r\n\r\n".to_vec(),
        _ => Vec::new(),
    };
    let most = if dice.below(8) == 0 { 40_000 } else { 300 };
    let noise = dice.below(most);
    bytes.extend((0..noise).map(|_| dice.next_u64() as u8));
    bytes
}

/// A client that breaks a rule, and what it may hear.
struct Vandal {
    client: Client,
    earns: Option<u16>,
    farewell: Farewell,
}

fn vandal(world: &World, number: u64) -> Vandal {
    let dice = &mut *world.dice.borrow_mut();
    let mut manners = Manners::pick(dice);
    manners.rude = false;
    let farewell = match dice.below(6) {
        0 => Farewell::HalfClose,
        1 => Farewell::Reset,
        2 => Farewell::Drop,
        _ => Farewell::Wait,
    };
    let line = Line::new(world.connect(number), manners, farewell);
    let mut client = Client::new(line, "/echo");
    client.ponging = false;
    let mut earns = None;
    if dice.below(3) == 0 {
        client.line.queue.clear();
        let bytes = garbage(dice);
        client.line.queue.push_back(bytes);
    } else {
        for _ in 0..dice.below(4) {
            client.line.queue.push_back(masked(dice, true, TEXT, b"so far so good"));
        }
        let (name, code) = CRIMES[dice.below(CRIMES.len() as u64) as usize];
        client.line.queue.push_back(crime(dice, name, world.plan.limits.message_bytes_max));
        earns = Some(code);
        // More of what nobody should look at.
        if dice.below(2) == 0 {
            let bytes = garbage(dice);
            client.line.queue.push_back(bytes);
        }
    }
    Vandal { client, earns, farewell }
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0xbad);
    let good = 1 + dice.below(6);
    let bad = 1 + dice.below(12);
    let mut plan = Plan::pick(seed, &mut dice, good + bad, 1);
    // They stay until the gateway gives them up, so there has to be room for all.
    plan.slots = plan.slots.max(2 * (good + bad) as u32 + 4);
    if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0);
    }
    plan.limits.message_bytes_max = 256 * 1024;
    plan.limits.ping_interval = Duration::from_secs(25);
    let mut world = World::new(seed, plan, dice);
    let mut vandals: Vec<Vandal> = (0..bad).map(|number| vandal(&world, number)).collect();
    let mut talkers: Vec<Talker> = (0..good).map(|who| talker(&world, who, "/echo")).collect();
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        let mut wake = Time::NEVER;
        for vandal in &mut vandals {
            wake = wake.min(vandal.client.play(now, dice));
        }
        for talker in &mut talkers {
            wake = wake.min(talker.play(now, dice));
        }
        let open = vandals.iter().any(|vandal| vandal.client.line.is_open())
            || talkers.iter().any(|talker| talker.client.line.is_open());
        open.then_some(wake)
    });
    println!("{:?}\n{:?}", world.plan, world.metrics());
    let resets = world.network.fired(Fault::Reset) > 0;
    for (who, vandal) in vandals.iter().enumerate() {
        let Vandal { client, earns, farewell } = vandal;
        let what = format!("vandal {who}: {:?} {farewell:?} {:?}", client.line.end, client.head);
        assert!(done || !client.line.is_open(), "{what} stays");
        // Nobody may be given back more than the good messages.
        let echoed = client.frames.iter().filter(|frame| frame.opcode < CLOSE);
        assert!(echoed.clone().all(|frame| frame.payload == b"so far so good"), "{what}");
        if let Some(code) = client.close_code() {
            assert_eq!(Some(code), *earns, "{what}");
        }
        let calm = *farewell == Farewell::Wait && !resets && !client.line.slow;
        let heard = client.line.end == End::Finished && !client.line.is_refused();
        if calm && heard && earns.is_some() {
            assert_eq!(client.close_code(), *earns, "{what}");
        }
    }
    for (who, talker) in talkers.iter().enumerate() {
        talker.check_prefix(who);
        let line = &talker.client.line;
        let refused = line.is_refused();
        let excused = line.manners.rude || refused || (resets && line.end == End::Reset);
        if !excused {
            talker.check_complete(who);
        }
    }
    drop((vandals, talkers));
    world.finish()
}
