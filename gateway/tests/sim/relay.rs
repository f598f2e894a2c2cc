//! Relay: upstream servers of all kinds behind the gateway, played by the test.
//!
//! Every byte comes out in order on the other side, or the connection ends; what an upstream that
//! has not accepted gets is the request and nothing else.

use std::time::Duration;

use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{
    CLOSE, Client, End, Farewell, Frame, Line, Manners, close_payload, head_of, masked, read_frame,
    switching, switching_with, unmasked,
};
use crate::echo::{message, push_message};
use crate::world::{Plan, UPSTREAM, World, for_seeds};

#[test]
fn relay() {
    for_seeds("relay", play);
}

/// What an upstream does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accept,
    WrongKey,
    Refuse,
    /// Refuses, and leaves the connection open.
    RefuseAndStay,
    CloseAtOnce,
    Never,
    Reset,
    Garbage,
}

/// An upstream server's end of one connection.
struct Server {
    line: Line,
    answer: Answer,
    head: Option<String>,
    head_bytes: usize,
    /// What it has sent behind its 101, as far as it was queued.
    script: Vec<u8>,
    boundaries: Vec<usize>,
    ends_with_close: bool,
    parsed: usize,
    close_seen: bool,
    /// The client that it is for.
    client: Option<usize>,
    is_done: bool,
}

impl Server {
    fn new(line: Line, answer: Answer) -> Server {
        Server {
            line,
            answer,
            head: None,
            head_bytes: 0,
            script: Vec::new(),
            boundaries: vec![0],
            ends_with_close: false,
            parsed: 0,
            close_seen: false,
            client: None,
            is_done: false,
        }
    }

    fn say(&mut self, frame: Vec<u8>) {
        self.script.extend(&frame);
        self.boundaries.push(self.script.len());
        self.line.queue.push_back(frame);
    }

    fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        if self.head.is_none() {
            let Some(head) = head_of(&self.line.received) else { return wake };
            (self.head_bytes, self.parsed) = (head.len(), head.len());
            let number = head.split("/relay/").nth(1).expect("its path");
            let number = number.split([' ', '?']).next().expect("a number");
            self.client = Some(number.parse().expect("a number"));
            self.respond(&head, dice);
            self.head = Some(head);
            return now;
        }
        if self.answer == Answer::Accept {
            while let Some((frame, len)) = read_frame(&self.line.received[self.parsed..], true) {
                self.parsed += len;
                self.on_frame(&frame);
            }
        }
        wake
    }

    /// The client's Close frame is answered, unless it is itself the answer.
    fn on_frame(&mut self, frame: &Frame) {
        assert!(!self.close_seen, "{frame:?} after a Close frame");
        if frame.opcode != CLOSE {
            return;
        }
        self.close_seen = true;
        if self.line.is_open() && !self.ends_with_close && !self.line.half_closed {
            self.ends_with_close = true;
            self.say(unmasked(true, CLOSE, &frame.payload));
        }
        // The server is who closes.
        if self.ends_with_close {
            self.line.farewell = Farewell::Drop;
        }
    }

    fn respond(&mut self, head: &str, dice: &mut Random) {
        match self.answer {
            Answer::Accept => {
                let head = switching(head);
                // In pieces that may leave apart from each other.
                let cut = dice.below(head.len() as u64) as usize;
                self.line.queue.push_back(head[..cut].to_vec());
                self.line.queue.push_back(head[cut..].to_vec());
                self.talk(dice);
            }
            Answer::WrongKey => {
                self.line.queue.push_back(switching_with("AAAAAAAAAAAAAAAAAAAAAAAAAAA="));
            }
            Answer::Refuse | Answer::RefuseAndStay => {
                let body = vec![b'n'; dice.below(3000) as usize];
                let head =
                    format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n", body.len());
                self.line.queue.push_back(head.into_bytes());
                self.line.queue.push_back(body);
                if self.answer == Answer::Refuse {
                    self.line.farewell = Farewell::Drop;
                }
            }
            Answer::CloseAtOnce => self.line.farewell = Farewell::Drop,
            Answer::Never => {}
            Answer::Reset => self.line.farewell = Farewell::Reset,
            Answer::Garbage => {
                let mut bytes = vec![0; 1 + dice.below(60) as usize];
                bytes.iter_mut().for_each(|byte| *byte = dice.next_u64() as u8);
                self.line.queue.push_back(bytes);
                self.line.farewell = Farewell::Drop;
            }
        }
    }

    fn talk(&mut self, dice: &mut Random) {
        for number in 0..dice.below(20) {
            let (opcode, payload) = message(dice, number as usize);
            if self.line.slow && payload.len() > 2000 {
                continue;
            }
            let cut = dice.below(payload.len() as u64 + 1) as usize;
            if dice.below(4) == 0 {
                self.say(unmasked(false, opcode, &payload[..cut]));
                self.say(unmasked(true, 0, &payload[cut..]));
            } else {
                self.say(unmasked(true, opcode, &payload));
            }
        }
        let queued: usize = self.line.queue.iter().map(Vec::len).sum();
        match dice.below(8) {
            0 => self.line.farewell = Farewell::HalfClose,
            1 => self.line.farewell = Farewell::Reset,
            2 => self.line.farewell = Farewell::Drop,
            3 | 4 => {
                self.ends_with_close = true;
                self.say(unmasked(true, CLOSE, &close_payload(1000, "done")));
            }
            _ => {}
        }
        if self.line.farewell != Farewell::Wait && dice.below(2) == 0 {
            self.line.cut_at = dice.below(queued as u64 + 1) as usize;
        }
    }
}

/// A client, and the frames that it has sent.
struct Caller {
    client: Client,
    script: Vec<u8>,
    boundaries: Vec<usize>,
    says_close: bool,
}

fn caller(world: &World, number: usize) -> Caller {
    let dice = &mut *world.dice.borrow_mut();
    let manners = Manners::pick(dice);
    let line = Line::new(world.connect(number as u64), manners, Farewell::Wait);
    let mut client = Client::new(line, &format!("/relay/{number}"));
    // Answers of its own would have to be part of the script.
    client.ponging = false;
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut pings = Vec::new();
    for number in 0..dice.below(20) {
        let message = message(dice, number as usize);
        if !client.line.slow || message.1.len() < 2000 {
            push_message(dice, &message, &mut pings, &mut frames);
        }
    }
    let mut says_close = false;
    match dice.below(10) {
        0 => client.line.farewell = Farewell::HalfClose,
        1 => client.line.farewell = Farewell::Reset,
        2 => client.line.farewell = Farewell::Drop,
        3..=7 => {
            says_close = true;
            frames.push(masked(dice, true, CLOSE, &close_payload(1000, "bye")));
        }
        // It has nothing to say, until the server closes.
        _ => {}
    }
    let mut script = Vec::new();
    let mut boundaries = vec![0];
    for frame in &frames {
        script.extend(frame);
        boundaries.push(script.len());
    }
    client.line.queue.extend(frames);
    let all: usize = client.line.queue.iter().map(Vec::len).sum();
    if client.line.farewell != Farewell::Wait && dice.below(2) == 0 {
        client.line.cut_at = dice.below(all as u64) as usize;
    }
    Caller { client, script, boundaries, says_close }
}

impl Caller {
    /// Answers a Close frame that came first with one of its own, once everything is said.
    fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.client.play(now, dice);
        let line = &mut self.client.line;
        let may = line.is_open() && !line.half_closed && line.has_said_all() && !self.says_close;
        if may && let Some(close) = self.client.frames.iter().find(|frame| frame.opcode == CLOSE) {
            self.says_close = true;
            let frame = masked(dice, true, CLOSE, &close.payload);
            self.script.extend(&frame);
            self.boundaries.push(self.script.len());
            line.queue.push_back(frame);
            return now;
        }
        wake
    }
}

/// What came is a prefix of what was sent, and behind it at most one Close frame of the gateway,
/// where a frame may stand. Returns whether all of it came.
#[track_caller]
fn check_stream(what: &str, got: &[u8], sent: &[u8], boundaries: &[usize], masked: bool) -> bool {
    let same = got.iter().zip(sent).take_while(|(got, sent)| got == sent).count();
    if same == got.len() {
        return got.len() == sent.len();
    }
    // The Close frame may begin as the frame does that was expected there.
    let boundary = boundaries.iter().rev().find(|boundary| **boundary <= same);
    let rest = &got[*boundary.expect("0 is one")..];
    assert_eq!(rest[0], 0x80 | CLOSE, "{what}: differs at {same} of {}", sent.len());
    match read_frame(rest, masked) {
        Some((frame, len)) => {
            assert!(frame.opcode == CLOSE && len == rest.len(), "{what}: {frame:?} at {same}");
        }
        None => assert!(rest.len() < 140, "{what}: {} bytes at {same}", rest.len()),
    }
    false
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0x4e1a);
    let count = 1 + dice.below(10) as usize;
    let mut plan = Plan::pick(seed, &mut dice, count as u64, 2);
    if dice.below(2) == 0 {
        plan.faults = plan.faults.with(Fault::Reset, 0).with(Fault::ConnectTimeout, 0);
    }
    // Pings of ours would have to be part of the scripts; `timeouts.rs` is about them.
    plan.limits.ping_interval = Duration::ZERO;
    plan.limits.early_bytes_max = 1 + dice.below(20_000) as usize;
    let mut world = World::new(seed, plan, dice);
    let mut callers: Vec<Caller> = (0..count).map(|number| caller(&world, number)).collect();
    let mut servers: Vec<Server> = Vec::new();
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        while let Some(peer) = world.network.accept(UPSTREAM) {
            let answer = match dice.below(16) {
                0 => Answer::WrongKey,
                1 => Answer::Refuse,
                2 => Answer::RefuseAndStay,
                3 => Answer::CloseAtOnce,
                4 => Answer::Never,
                5 => Answer::Reset,
                6 => Answer::Garbage,
                _ => Answer::Accept,
            };
            servers.push(Server::new(Line::new(peer, Manners::pick(dice), Farewell::Wait), answer));
        }
        let mut wake = Time::NEVER;
        for caller in &mut callers {
            wake = wake.min(caller.play(now, dice));
        }
        for server in &mut servers {
            wake = wake.min(server.play(now, dice));
            // A server that waits goes when its client has.
            if server.line.is_open()
                && server.answer == Answer::Accept
                && let Some(client) = server.client
                && !callers[client].client.line.is_open()
                && server.line.has_said_all()
            {
                server.is_done = true;
            }
        }
        // Two ends that both wait for the other's Close frame: the client goes first.
        for (number, caller) in callers.iter_mut().enumerate() {
            let line = &caller.client.line;
            let quiet = line.is_open() && line.has_said_all() && !caller.says_close;
            let server = servers.iter().find(|server| server.client == Some(number));
            let waits = |server: &Server| {
                server.answer == Answer::Accept
                    && server.line.is_open()
                    && server.line.has_said_all()
                    && !server.ends_with_close
                    && server.line.farewell == Farewell::Wait
            };
            let all_came = |server: &Server| {
                caller.client.line.received.len() == caller.client.head_bytes + server.script.len()
            };
            if quiet && server.is_some_and(|server| waits(server) && all_came(server)) {
                caller.says_close = true;
                let frame = masked(dice, true, CLOSE, &close_payload(1000, ""));
                caller.script.extend(&frame);
                caller.boundaries.push(caller.script.len());
                caller.client.line.queue.push_back(frame);
                wake = now;
            }
        }
        let open = callers.iter().any(|caller| caller.client.line.is_open());
        open.then_some(wake)
    });
    check(&world, &callers, &servers, done);
    drop(callers);
    // Upstreams that stay must not keep anything: the gateway has to give them up by itself.
    let servers_left = servers;
    let digest = world.finish();
    drop(servers_left);
    digest
}

fn check(world: &World, callers: &[Caller], servers: &[Server], done: bool) {
    println!("{:?}\n{:?}", world.plan, world.metrics());
    let resets = world.network.fired(Fault::Reset) > 0;
    for (number, caller) in callers.iter().enumerate() {
        let Caller { client, script, boundaries, .. } = caller;
        let of_client = servers.iter().filter(|server| server.client == Some(number));
        let of_client: Vec<_> = of_client.collect();
        assert!(of_client.len() <= 1, "client {number} has {} upstreams", of_client.len());
        let what = format!(
            "client {number} {:?} {:?} says_close {} left {} close {:?} head {:?}",
            client.line.end,
            client.line.farewell,
            caller.says_close,
            client.line.queue.len(),
            client.close_code(),
            client.head.as_ref().map(|head| head.lines().next()),
        );
        let Some(server) = of_client.first() else {
            assert!(!client.is_upgraded(), "{what}: upgraded by nobody");
            continue;
        };
        let what = format!("{what}, server {:?} {:?}", server.answer, server.line.end);
        let up = &server.line.received[server.head_bytes..];
        if server.answer != Answer::Accept {
            assert!(up.is_empty(), "{what}: got {} bytes behind the request", up.len());
            assert!(!client.is_upgraded(), "{what}: upgraded");
        }
        let all_up = check_stream(&format!("{what}, up"), up, script, boundaries, true);
        let mut all_down = true;
        if client.is_upgraded() {
            let down = &client.line.received[client.head_bytes..];
            let what = format!("{what}, down");
            all_down = check_stream(&what, down, &server.script, &server.boundaries, false);
        }
        // With a clean closing handshake nothing may be missing.
        let calm = client.line.farewell == Farewell::Wait
            && server.answer == Answer::Accept
            && !client.line.manners.rude
            && !server.line.manners.rude
            && server.line.cut_at == usize::MAX
            && !server.line.half_closed
            && !(resets && (client.line.end == End::Reset || server.line.end == End::Reset))
            && (server.ends_with_close || server.line.farewell == Farewell::Wait)
            && caller.says_close;
        // A closing handshake, and what is queued before it, has to be through in 5 s.
        let late =
            client.line.slow || server.line.slow || world.plan.faults.per_mille(Fault::Delay) > 0;
        if done && calm && !late && !resets {
            let (up, down) = (up.len(), client.line.received.len() - client.head_bytes);
            assert!(client.is_upgraded(), "{what}");
            assert!(
                all_up && all_down,
                "{what}: up {up}/{} down {down}/{}",
                script.len(),
                server.script.len()
            );
            assert_eq!(client.line.end, End::Finished, "{what}");
        }
    }
    if !done {
        for (number, caller) in callers.iter().enumerate() {
            if caller.client.line.is_open() {
                let line = &caller.client.line;
                let server = servers.iter().find(|server| server.client == Some(number));
                eprintln!(
                    "client {number} waits: {:?} sent {} left {} received {} head {:?}, says_close {}, {:?} {:?}",
                    line.farewell,
                    line.sent,
                    line.queue.len(),
                    line.received.len(),
                    caller.client.head,
                    caller.says_close,
                    line.manners,
                    server.map(|server| (
                        server.answer,
                        server.line.end,
                        server.line.farewell,
                        server.line.queue.len(),
                        server.script.len(),
                        server.line.received.len(),
                        server.ends_with_close,
                        server.close_seen
                    )),
                );
            }
        }
        let records: Vec<_> = world.shards.iter().flat_map(|shard| shard.records()).collect();
        panic!("stuck, {records:#?}");
    }
}
