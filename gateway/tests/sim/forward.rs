//! Ordinary HTTP through the gateway: requests behind each other on one connection, upstreams of
//! all kinds.
//!
//! Each upstream connection gets one request, byte for byte, and nothing else; each client gets the
//! answers to its own requests, in order, each of them whole or the last one.

use std::time::Duration;

use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{End, Farewell, Line, Manners};
use crate::world::{Plan, UPSTREAM, World, for_seeds};

#[test]
fn forward() {
    for_seeds("forward", play);
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    /// Of answers only.
    UntilEnd,
}

/// A head's framing lines, and the body as it goes over the wire.
fn frame(dice: &mut Random, framing: Framing, body: &[u8]) -> (String, Vec<u8>) {
    match framing {
        Framing::Length => (format!("Content-Length: {}\r\n", body.len()), body.to_vec()),
        Framing::UntilEnd => (String::new(), body.to_vec()),
        Framing::Chunked => {
            let mut wire = Vec::new();
            let mut rest = body;
            while !rest.is_empty() {
                let (chunk, behind) = rest.split_at(1 + dice.below(rest.len() as u64) as usize);
                wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
                rest = behind;
            }
            wire.extend(b"0\r\n\r\n");
            ("Transfer-Encoding: chunked\r\n".to_owned(), wire)
        }
    }
}

fn body(dice: &mut Random, mark: char) -> Vec<u8> {
    let most = if dice.below(4) == 0 { 60_000 } else { 400 };
    vec![mark as u8; dice.below(most) as usize]
}

/// What an upstream does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Whole(Framing),
    /// Before it has read the request's body.
    Early,
    Cut,
    CloseAtOnce,
    Never,
    Reset,
    Garbage,
    Switch,
}

struct Asked {
    /// The body as it is on the wire.
    body: Vec<u8>,
    /// The answer that the upstream began, as a client may see it: the body on the wire.
    answered: Option<Vec<u8>>,
    whole: bool,
}

struct Caller {
    line: Line,
    asked: Vec<Asked>,
}

struct Server {
    line: Line,
    answer: Answer,
    /// Client and number of the request, once its head is here, and the head's length.
    of: Option<(usize, usize, usize)>,
    done: bool,
}

fn caller(world: &World, number: usize) -> Caller {
    let dice = &mut *world.dice.borrow_mut();
    let manners = Manners::pick(dice);
    let mut line = Line::new(world.connect(number as u64), manners, Farewell::Wait);
    let mut asked = Vec::new();
    for request in 0..1 + dice.below(5) {
        let framing = if dice.below(2) == 0 { Framing::Length } else { Framing::Chunked };
        let body = if line.slow { vec![b'r'; dice.below(200) as usize] } else { body(dice, 'r') };
        let (lines, wire) = frame(dice, framing, &body);
        let head = format!(
            "POST /relay/{number}-{request} HTTP/1.1\r\nHost: t\r\n{lines}X-Number: {number}\r\n\r\n"
        );
        line.queue.push_back(head.into_bytes());
        line.queue.push_back(wire.clone());
        asked.push(Asked { body: wire, answered: None, whole: false });
    }
    line.queue.retain(|piece| !piece.is_empty());
    let all: usize = line.queue.iter().map(Vec::len).sum();
    match dice.below(8) {
        0 => line.farewell = Farewell::Reset,
        1 => line.farewell = Farewell::Drop,
        2 => line.farewell = Farewell::HalfClose,
        _ => {}
    }
    if line.farewell != Farewell::Wait {
        line.cut_at = dice.below(all as u64 + 1) as usize;
        line.patient = true;
    }
    Caller { line, asked }
}

impl Server {
    fn play(&mut self, callers: &mut [Caller], now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        let received = &self.line.received;
        if self.of.is_none() {
            let Some(end) = received.windows(4).position(|it| it == b"\r\n\r\n") else {
                return wake;
            };
            let head = std::str::from_utf8(&received[..end + 2]).expect("ASCII");
            let of = head.split("/relay/").nth(1).and_then(|rest| rest.split(' ').next());
            let (client, number) = of.and_then(|of| of.split_once('-')).expect("client-number");
            assert!(head.contains(&format!("X-Number: {client}\r")), "{head}");
            assert!(head.contains("Connection: close\r"), "{head}");
            self.of =
                Some((client.parse().expect("a number"), number.parse().expect("one"), end + 4));
        }
        let Some((client, number, head_bytes)) = self.of else { return wake };
        let asked = &mut callers[client].asked[number];
        let body_len = received.len() - head_bytes;
        assert_eq!(received[head_bytes..], asked.body[..body_len], "not the body that was sent");
        if self.done || !(body_len == asked.body.len() || self.answer == Answer::Early) {
            return wake;
        }
        self.done = true;
        assert!(asked.answered.is_none(), "request {client}-{number} was sent twice");
        let framing = match self.answer {
            Answer::Whole(framing) => framing,
            _ => Framing::Length,
        };
        let content = if self.line.slow { vec![b'a'; 100] } else { body(dice, 'a') };
        let (lines, wire) = frame(dice, framing, &content);
        let head = format!("HTTP/1.1 200 OK\r\n{lines}X-Answer: {client}-{number}\r\n\r\n");
        match self.answer {
            Answer::Whole(_) | Answer::Early => {
                if dice.below(4) == 0 {
                    self.line.queue.push_back(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
                }
                self.line.queue.push_back(head.into_bytes());
                self.line.queue.push_back(wire.clone());
                (asked.answered, asked.whole) = (Some(wire), true);
                if framing == Framing::UntilEnd || dice.below(2) == 0 {
                    self.line.farewell = Farewell::Drop;
                }
            }
            Answer::Cut => {
                self.line.queue.push_back(head.into_bytes());
                let cut = dice.below(wire.len() as u64 + 1) as usize;
                self.line.queue.push_back(wire[..cut].to_vec());
                asked.whole = cut == wire.len();
                asked.answered = Some(wire);
                self.line.farewell = Farewell::Drop;
            }
            Answer::CloseAtOnce => self.line.farewell = Farewell::Drop,
            Answer::Never => {}
            Answer::Reset => self.line.farewell = Farewell::Reset,
            Answer::Garbage => {
                self.line.queue.push_back(b"\0garbage".to_vec());
                self.line.farewell = Farewell::Drop;
            }
            Answer::Switch => {
                let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\r\n";
                self.line.queue.push_back(head.as_bytes().to_vec());
            }
        }
        self.line.queue.retain(|piece| !piece.is_empty());
        now
    }
}

/// Reads the answers that a client got: how many are whole, and whether a refusal of the gateway
/// came last.
#[track_caller]
fn read_answers(who: usize, caller: &Caller) -> (usize, Option<String>) {
    let mut rest = &caller.line.received[..];
    let mut number = 0;
    while let Some(end) = rest.windows(4).position(|it| it == b"\r\n\r\n") {
        let head = std::str::from_utf8(&rest[..end + 2]).expect("ASCII");
        rest = &rest[end + 4..];
        if head.starts_with("HTTP/1.1 100 ") {
            continue;
        }
        if !head.starts_with("HTTP/1.1 200 ") {
            assert!(head.contains("Connection: close"), "client {who}: {head}");
            let body = String::from_utf8_lossy(&rest[..rest.len().min(200)]);
            return (number, Some(format!("{head}{body}")));
        }
        assert!(head.contains(&format!("X-Answer: {who}-{number}\r")), "client {who}: {head}");
        let asked = &caller.asked[number];
        let wire = asked.answered.as_ref().expect("somebody answered");
        let len = rest.len().min(wire.len());
        assert_eq!(rest[..len], wire[..len], "client {who}: another answer");
        if rest.len() < wire.len() {
            return (number, None);
        }
        rest = &rest[len..];
        number += 1;
    }
    assert!(rest.len() < 2000, "client {who}: {} bytes behind the answers", rest.len());
    (number, None)
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0xf04d);
    let count = 1 + dice.below(8) as usize;
    let mut plan = Plan::pick(seed, &mut dice, count as u64, 3);
    if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0).with(Fault::ConnectTimeout, 0);
    }
    plan.limits.early_bytes_max = 1 + dice.below(20_000) as usize;
    plan.limits.response_timeout = Duration::from_secs(20);
    plan.limits.keepalive_timeout = Duration::from_secs(10);
    let kind = dice.below(3);
    let roomy = plan.slots as usize >= count * 6;
    let mut world = World::new(seed, plan, dice);
    let mut callers: Vec<Caller> = (0..count).map(|number| caller(&world, number)).collect();
    let mut servers: Vec<Server> = Vec::new();
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        while let Some(peer) = world.network.accept(UPSTREAM) {
            let framing = [Framing::Length, Framing::Chunked, Framing::UntilEnd];
            let answer = match if kind == 0 { 0 } else { dice.below(20) } {
                1 => Answer::Early,
                2 => Answer::Cut,
                3 => Answer::CloseAtOnce,
                4 => Answer::Never,
                5 => Answer::Reset,
                6 => Answer::Garbage,
                7 => Answer::Switch,
                8 => Answer::Whole(framing[2]),
                _ => Answer::Whole(framing[dice.below(2) as usize]),
            };
            let line = Line::new(peer, Manners::pick(dice), Farewell::Wait);
            servers.push(Server { line, answer, of: None, done: false });
        }
        let mut wake = Time::NEVER;
        for caller in &mut callers {
            wake = wake.min(caller.line.play(now, dice));
        }
        for server in &mut servers {
            wake = wake.min(server.play(&mut callers, now, dice));
        }
        // Clients that wait are let go by the gateway, after their last answer or for want of one.
        let open = callers.iter().any(|caller| caller.line.is_open());
        open.then_some(wake)
    });
    println!("{:?}\n{:?}", world.plan, world.metrics());
    if !done {
        let records: Vec<_> = world.shards.iter().flat_map(|shard| shard.records()).collect();
        panic!("stuck, {records:#?}");
    }
    let resets = world.network.fired(Fault::Reset) > 0;
    for (who, caller) in callers.iter().enumerate() {
        let (whole, refused) = read_answers(who, caller);
        let of_caller = servers.iter().filter(|server| server.of.is_none_or(|of| of.0 == who));
        let calm = kind == 0
            && roomy
            && !resets
            && world.network.fired(Fault::TableFull) + world.network.fired(Fault::NoLocalPort) == 0
            && caller.line.farewell == Farewell::Wait
            && !caller.line.slow
            && !caller.line.manners.rude
            && of_caller.clone().all(|server| !server.line.slow && !server.line.manners.rude)
            && world.plan.faults.per_mille(Fault::Delay) == 0
            && world.plan.faults.per_mille(Fault::ConnectTimeout) == 0
            && world.plan.faults.per_mille(Fault::ConnectRefused) == 0;
        if calm {
            assert_eq!(refused, None, "client {who} was refused after {whole}");
            assert_eq!(whole, caller.asked.len(), "client {who}");
            assert_eq!(caller.line.end, End::Finished, "client {who}");
        }
        for (number, asked) in caller.asked.iter().enumerate().take(whole) {
            assert!(asked.answered.is_some(), "client {who} has an answer {number} of nobody");
            assert!(asked.whole, "client {who}: answer {number} was cut, and seems whole");
        }
    }
    drop(callers);
    let digest = world.finish();
    drop(servers);
    digest
}
