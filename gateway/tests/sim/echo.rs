//! Echo: what comes back is what was sent, message by message, in order, once.

use std::time::Duration;

use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{
    BINARY, CLOSE, CONTINUATION, Client, End, Farewell, Line, Manners, PING, PONG, TEXT,
    close_payload, masked,
};
use crate::world::{Plan, World, for_seeds};

#[test]
fn echo() {
    for_seeds("echo", play);
}

/// A client, and what it says.
pub(crate) struct Talker {
    pub(crate) client: Client,
    pub(crate) messages: Vec<(u8, Vec<u8>)>,
    pub(crate) pings: Vec<Vec<u8>>,
    pub(crate) close: Option<u16>,
}

/// A size, the edges of the length forms among them.
pub(crate) fn size(dice: &mut Random) -> usize {
    match dice.below(40) {
        0 => 0,
        1 => 1,
        2..=4 => 125 + dice.below(3) as usize,
        5 => 65_535 + dice.below(3) as usize,
        6 => dice.below(100_000) as usize,
        7..=15 => dice.below(5000) as usize,
        _ => dice.below(200) as usize,
    }
}

/// A message of a size: binary, or text in which some characters take two bytes.
pub(crate) fn message(dice: &mut Random, number: usize) -> (u8, Vec<u8>) {
    let len = size(dice);
    if dice.below(2) == 0 {
        let mut payload = vec![number as u8; len];
        payload.iter_mut().step_by(7).for_each(|byte| *byte = dice.next_u64() as u8);
        (BINARY, payload)
    } else {
        let text: String = "aé".chars().cycle().skip(number % 2).take(len).collect();
        let mut payload = text.into_bytes();
        if let Some(last) = payload.last_mut().filter(|last| last.is_ascii()) {
            *last = b'0' + (number % 10) as u8;
        }
        (TEXT, payload)
    }
}

/// The message as one to five frames, with Pings in between.
pub(crate) fn push_message(
    dice: &mut Random,
    (opcode, payload): &(u8, Vec<u8>),
    pings: &mut Vec<Vec<u8>>,
    queue: &mut impl Extend<Vec<u8>>,
) {
    let cuts = if dice.below(3) == 0 { dice.below(5) as usize } else { 0 };
    let mut rest = &payload[..];
    for left in (0..=cuts).rev() {
        let first = left == cuts;
        let opcode = if first { *opcode } else { CONTINUATION };
        let len = if left == 0 { rest.len() } else { dice.below(rest.len() as u64 + 1) as usize };
        let (part, behind) = rest.split_at(len);
        rest = behind;
        queue.extend([masked(dice, left == 0, opcode, part)]);
        if dice.below(6) == 0 {
            let payload = vec![pings.len() as u8; dice.below(126) as usize];
            queue.extend([masked(dice, true, PING, &payload)]);
            pings.push(payload);
        }
    }
}

pub(crate) fn talker(world: &World, shard: u64, target: &str) -> Talker {
    let dice = &mut *world.dice.borrow_mut();
    let manners = Manners::pick(dice);
    let line = Line::new(world.connect(shard), manners, Farewell::Wait);
    let mut client = Client::new(line, target);
    let mut talker_messages = Vec::new();
    let mut pings = Vec::new();
    // The gateway gives up who takes less than 256 KiB in `outbox_age_max`.
    let small = client.line.slow;
    for number in 0..dice.below(if small { 5 } else { 30 }) {
        let message = message(dice, number as usize);
        if small && message.1.len() > 2000 {
            continue;
        }
        push_message(dice, &message, &mut pings, &mut client.line.queue);
        talker_messages.push(message);
    }
    let mut close = None;
    match dice.below(8) {
        0 => client.line.farewell = Farewell::HalfClose,
        1 => client.line.farewell = Farewell::Reset,
        2 => client.line.farewell = Farewell::Drop,
        3 => client.line.farewell = Farewell::Stay,
        _ => {
            let code = [1000, 1001, 3000, 4999][dice.below(4) as usize];
            client.line.queue.push_back(masked(dice, true, CLOSE, &close_payload(code, "bye")));
            client.says_close();
            close = Some(code);
        }
    }
    if close.is_none() && client.line.farewell != Farewell::Stay && dice.below(2) == 0 {
        let all: usize = client.line.queue.iter().map(Vec::len).sum();
        client.line.cut_at = dice.below(all as u64) as usize;
    }
    Talker { client, messages: talker_messages, pings, close }
}

impl Talker {
    pub(crate) fn echoed(&self) -> Vec<(u8, Vec<u8>)> {
        let data = self.client.frames.iter().filter(|frame| frame.opcode < CLOSE);
        data.map(|frame| {
            assert!(frame.fin, "an echo is one frame");
            (frame.opcode, frame.payload.clone())
        })
        .collect()
    }

    /// Who would stay goes once all of it has come back, to make room for those who wait.
    pub(crate) fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.client.play(now, dice);
        let upgraded = self.client.is_upgraded();
        let line = &mut self.client.line;
        if line.is_open() && line.farewell == Farewell::Stay && upgraded {
            let echoed = self.client.frames.iter().filter(|frame| frame.opcode < CLOSE).count();
            if echoed == self.messages.len() {
                line.end = End::Gone;
                line.peer = None;
            }
        }
        wake
    }

    /// What came is a prefix of what was promised, whatever happened.
    pub(crate) fn check_prefix(&self, who: usize) {
        let echoed = self.echoed();
        assert!(echoed.len() <= self.messages.len(), "client {who} got more than it sent");
        for (number, (got, sent)) in echoed.iter().zip(&self.messages).enumerate() {
            assert!(
                got == sent,
                "client {who}, message {number}: {} {}",
                got.1.len(),
                sent.1.len()
            );
        }
        // The latest Ping is enough to answer, so Pongs may be missing.
        let mut pings = self.pings.iter();
        for pong in self.client.frames.iter().filter(|frame| frame.opcode == PONG) {
            assert!(pings.any(|ping| *ping == pong.payload), "client {who}: a Pong for nothing");
        }
    }

    /// Nobody has ended the connection before its time.
    pub(crate) fn check_complete(&self, who: usize) {
        let line = &self.client.line;
        let state = || {
            let (left, received, parsed) =
                (line.queue.len(), line.received.len(), self.client.parsed);
            let Line { manners, end, farewell, sent, .. } = line;
            format!(
                "client {who}: {end:?} {farewell:?} sent {sent}, left {left}, \
                 received {received}, parsed {parsed}, close {:?}, {manners:?}",
                self.client.close()
            )
        };
        match line.farewell {
            Farewell::Stay => assert_eq!(self.echoed().len(), self.messages.len(), "{}", state()),
            Farewell::Wait => {
                assert_eq!(line.end, End::Finished, "{}", state());
                assert_eq!(self.echoed().len(), self.messages.len(), "{}", state());
                assert_eq!(self.client.close_code(), self.close, "{}", state());
            }
            _ => {}
        }
    }
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0xec40);
    let count = 1 + dice.below(24);
    let mut plan = Plan::pick(seed, &mut dice, count, 1);
    if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0);
    }
    let mut world = World::new(seed, plan, dice);
    let mut talkers: Vec<Talker> = Vec::new();
    let mut next_at = world.now();
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        let mut wake = Time::NEVER;
        if talkers.len() < count as usize {
            if next_at <= now {
                talkers.push(talker(world, talkers.len() as u64, "/echo"));
                let dice = &mut *world.dice.borrow_mut();
                if dice.below(2) == 0 {
                    next_at = now + Duration::from_micros(dice.below(2000));
                }
            }
            wake = next_at.max(now);
        }
        let dice = &mut *world.dice.borrow_mut();
        for talker in &mut talkers {
            wake = wake.min(talker.play(now, dice));
        }
        let all = talkers.len() == count as usize;
        if all && talkers.iter().all(|talker| !talker.client.line.is_open()) {
            return None;
        }
        Some(wake)
    });
    check(&world, &talkers, done);
    drop(talkers);
    world.finish()
}

fn check(world: &World, talkers: &[Talker], done: bool) {
    let metrics = world.metrics();
    let resets = world.network.fired(Fault::Reset) > 0;
    // Shown when something below fails.
    println!("{:?}\n{metrics:?}", world.plan);
    for (who, talker) in talkers.iter().enumerate() {
        talker.check_prefix(who);
        let line = &talker.client.line;
        let refused = line.is_refused();
        let excused = line.manners.rude || refused || (resets && line.end == End::Reset);
        if done && !excused {
            talker.check_complete(who);
        }
    }
    if !done {
        let open = talkers.iter().enumerate().filter(|(_, talker)| talker.client.line.is_open());
        for (who, talker) in open {
            let line = &talker.client.line;
            eprintln!(
                "client {who} waits: {:?} {:?} sent {} left {} received {} echoed {}/{}",
                line.farewell,
                line.manners,
                line.sent,
                line.queue.len(),
                line.received.len(),
                talker.echoed().len(),
                talker.messages.len()
            );
        }
        let records: Vec<_> = world.shards.iter().flat_map(|shard| shard.records()).collect();
        panic!("stuck, {metrics:?} {records:#?}");
    }
}
