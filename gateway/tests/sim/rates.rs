//! Rates: whoever goes over one is closed at exactly that point, or read no further, in which case
//! every message still arrives, in order and no faster than its rate; places are taken and given back.

use std::net::SocketAddr;
use std::time::Duration;

use gateway::metrics::Cause;
use gateway::rate::{Action, Flow, Rate, Rates};
use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{
    BINARY, Client, Farewell, Frame, Line, Manners, PING, head_of, masked, read_frame, switching,
    unmasked,
};
use crate::echo::Talker;
use crate::world::{Plan, UPSTREAM, World, for_seeds};

#[test]
fn throttled_clients_lose_nothing() {
    for_seeds("throttled_clients_lose_nothing", throttled);
}

#[test]
fn clients_over_a_rate_are_closed() {
    for_seeds("clients_over_a_rate_are_closed", closed);
}

/// A plan in which nothing but rates ends a connection.
fn kind(seed: u64, dice: &mut Random, clients: u64) -> Plan {
    let mut plan = Plan::pick(seed, dice, clients, 2);
    plan.slots = plan.slots.max(clients as u32 * 4 + 16);
    for fault in [
        Fault::Reset,
        Fault::ConnectRefused,
        Fault::ConnectTimeout,
        Fault::NoLocalPort,
        Fault::TableFull,
    ] {
        plan.faults = plan.faults.with(fault, 0);
    }
    plan
}

/// A client that sends `messages` as fast as it may, to echo or through a relay. All of them come
/// from one address.
fn sender(world: &World, number: u64, messages: u64, pings: u64, path: &str) -> Talker {
    let dice = &mut *world.dice.borrow_mut();
    let manners = Manners::pick_polite(dice);
    let from = SocketAddr::from(([10, 9, 8, 7], 1000 + number as u16));
    let line = Line::new(world.connect_from(number, from), manners, Farewell::Stay);
    let target = if path == "/relay/" { format!("/relay/{number}") } else { path.to_owned() };
    let mut client = Client::new(line, &target);
    let mut sent = Vec::new();
    for number in 0..messages {
        let mut payload = vec![number as u8; 8 + dice.below(100) as usize];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        client.line.queue.push_back(masked(dice, true, BINARY, &payload));
        if number < pings {
            client.line.queue.push_back(masked(dice, true, PING, b"p"));
        }
        sent.push((BINARY, payload));
    }
    Talker { client, messages: sent, pings: vec![b"p".to_vec(); pings as usize], close: None }
}

/// An upstream that sends every message back.
struct Echo {
    line: Line,
    parsed: usize,
    seen: Vec<Frame>,
}

impl Echo {
    fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        if self.parsed == 0 {
            let Some(head) = head_of(&self.line.received) else { return wake };
            self.parsed = head.len();
            self.line.queue.push_back(switching(&head));
            return now;
        }
        let mut wake = wake;
        while let Some((frame, len)) = read_frame(&self.line.received[self.parsed..], true) {
            self.parsed += len;
            if frame.opcode == BINARY && self.line.is_open() {
                self.line.queue.push_back(unmasked(true, BINARY, &frame.payload));
                wake = now;
            }
            self.seen.push(frame);
        }
        wake
    }
}

/// Plays clients and upstreams until `over`.
fn play(
    world: &mut World,
    talkers: &mut [Talker],
    echoes: &mut Vec<Echo>,
    over: impl Fn(&Talker) -> bool,
) {
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        while let Some(peer) = world.network.accept(UPSTREAM) {
            let manners = Manners::pick_polite(&mut world.dice.borrow_mut());
            let line = Line::new(peer, manners, Farewell::Stay);
            echoes.push(Echo { line, parsed: 0, seen: Vec::new() });
        }
        let dice = &mut *world.dice.borrow_mut();
        let mut wake = Time::NEVER;
        for talker in talkers.iter_mut() {
            wake = wake.min(talker.client.play(now, dice));
        }
        for echo in echoes.iter_mut() {
            wake = wake.min(echo.play(now, dice));
        }
        if talkers.iter().all(&over) { None } else { Some(wake) }
    });
    if !done {
        for (who, talker) in talkers.iter().enumerate() {
            let line = &talker.client.line;
            eprintln!(
                "client {who}: {:?} left {} echoed {}/{} close {:?} {:?}",
                line.end,
                line.queue.len(),
                talker.echoed().len(),
                talker.messages.len(),
                talker.client.close(),
                talker.client.head,
            );
        }
        let records: Vec<_> = world.shards.iter().flat_map(|shard| shard.records()).collect();
        panic!("stuck, {:?} {records:#?}", world.metrics());
    }
}

fn throttled(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0x7407);
    let count = 1 + dice.below(6);
    let mut plan = kind(seed, &mut dice, count);
    let (per_second, burst) = (5 + dice.below(40), 1 + dice.below(20));
    let by_address = dice.below(3) == 0;
    let flow = match dice.below(3) {
        0 => Flow { bytes: Rate::new(per_second * 60, burst * 60), ..Flow::default() },
        _ => Flow { messages: Rate::new(per_second, burst), ..Flow::default() },
    };
    plan.limits.rates = Rates { action: Action::Throttle, ..Rates::default() };
    match by_address {
        true => plan.limits.rates.address = flow,
        false => plan.limits.rates.connection = flow,
    }
    if dice.below(2) == 0 {
        // More patience than the rate asks for is not needed.
        plan.limits.ping_interval = Duration::from_millis(300);
        plan.limits.ping_timeout = Duration::from_millis(300);
    }
    let mut world = World::new(seed, plan, dice);
    let start = world.now();
    let path = if seed.is_multiple_of(2) { "/echo" } else { "/relay/" };
    let messages = 40 + world.dice.borrow_mut().below(60);
    let mut talkers: Vec<Talker> =
        (0..count).map(|number| sender(&world, number, messages, 3, path)).collect();
    let mut echoes = Vec::new();
    play(&mut world, &mut talkers, &mut echoes, |talker| {
        talker.echoed().len() == talker.messages.len() || !talker.client.line.is_open()
    });
    for (who, talker) in talkers.iter().enumerate() {
        talker.check_prefix(who);
        assert_eq!(talker.echoed().len(), talker.messages.len(), "client {who}");
    }
    // What had been received when a client was paused is served at once, and paid for later.
    let took = world.now().since(start);
    // Through a relay that is what came before the upstream had accepted, too.
    let debt = 8 * u64::from(world.plan.buffer_bytes) / 14;
    if flow.messages.is_limit() && path == "/echo" {
        let (share, debt) =
            if by_address { (count * messages, count * debt) } else { (messages, debt) };
        let paid = share.saturating_sub(burst + debt);
        assert!(took >= Duration::from_millis(paid * 1000 / per_second), "{took:?}");
    }
    assert!(world.metrics().throttled > 0, "nobody was throttled");
    drop((talkers, echoes));
    let shared = std::sync::Arc::clone(&world.shared);
    let digest = world.finish();
    assert_eq!((shared.clients.taken(), shared.addresses.connections()), (0, 0));
    digest
}

fn closed(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0xc105);
    let count = 1 + dice.below(6);
    let mut plan = kind(seed, &mut dice, count);
    // Slow enough that no token comes back while the client sends.
    let burst = 1 + dice.below(30);
    plan.limits.rates = Rates::default();
    let rate = Rate::new(1, burst);
    let by_address = dice.below(3) == 0;
    let by_pings = dice.below(3) == 0;
    let flow = match by_pings {
        true => Flow { control_frames: rate, ..Flow::default() },
        false => Flow { messages: rate, ..Flow::default() },
    };
    match by_address {
        true => plan.limits.rates.address = flow,
        false => plan.limits.rates.connection = flow,
    }
    plan.limits.ping_interval = Duration::ZERO;
    let mut world = World::new(seed, plan, dice);
    let start = world.now();
    let path = if seed.is_multiple_of(2) { "/echo" } else { "/relay/" };
    let mut talkers: Vec<Talker> =
        (0..count).map(|number| sender(&world, number, 400, 400, path)).collect();
    talkers.iter_mut().for_each(|talker| talker.client.line.farewell = Farewell::Wait);
    let mut echoes = Vec::new();
    play(&mut world, &mut talkers, &mut echoes, |talker| !talker.client.line.is_open());
    let seconds = world.now().since(start).as_secs() + 1;
    let most = burst + seconds;
    let mut served = 0;
    for (who, talker) in talkers.iter().enumerate() {
        talker.check_prefix(who);
        let echoed = talker.echoed().len() as u64;
        // The Ping follows its message.
        assert!(echoed <= most + u64::from(by_pings), "client {who}: {echoed} of {most}");
        served += echoed;
        if let Some(close) = talker.client.close() {
            let reason = String::from_utf8_lossy(&close.payload[2..]).into_owned();
            let of_address = if by_address { "address_" } else { "" };
            let what = if by_pings { "control_frames" } else { "messages" };
            assert_eq!(reason, format!("over {of_address}{what}_per_second"), "client {who}");
            assert_eq!(talker.client.close_code(), Some(1008));
        }
    }
    if by_address {
        // Here shards take turns; threads that look at the same moment may each take what they see.
        assert!(served <= most + u64::from(by_pings) * count, "{served} of {most}");
    }
    // Nothing above the limit has reached an upstream either.
    for echo in &echoes {
        let count = |pings: bool| {
            let is = |frame: &&Frame| (frame.opcode == PING) == pings && frame.opcode != 8;
            echo.seen.iter().filter(is).count() as u64
        };
        assert!(count(by_pings) <= most, "{} at the upstream", count(by_pings));
        assert!(echo.seen.iter().all(|frame| frame.opcode != 8 || frame.payload == [3, 0xE9]));
    }
    drop((talkers, echoes));
    let limit = Duration::from_secs(60);
    world.run(limit, |world| {
        let closed = world.metrics().closed(Cause::RateLimited);
        (closed < count).then_some(Time::NEVER)
    });
    assert_eq!(world.metrics().closed(Cause::RateLimited), count);
    let shared = std::sync::Arc::clone(&world.shared);
    let digest = world.finish();
    assert_eq!((shared.clients.taken(), shared.addresses.connections()), (0, 0));
    digest
}
