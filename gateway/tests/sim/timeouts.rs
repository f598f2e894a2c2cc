//! Silence and age: who is asked for a sign of life, who is closed, when, and with what code.
//!
//! The network is a good one here; what is tested is the clock.

use std::time::Duration;

use gateway::metrics::Cause;
use gateway::ring::sim::{Faults, Random};
use gateway::time::Time;

use crate::client::{
    BINARY, CLOSE, CONTINUATION, Client, End, Farewell, Frame, Line, Manners, PING, PONG, TEXT,
    head_of, masked, read_frame, switching, unmasked,
};
use crate::world::{Plan, UPSTREAM, World};

const SECOND: Duration = Duration::from_secs(1);

/// When an act wants to be called again that does not.
const NEVER: Duration = Duration::MAX;

/// How late a deadline may be met: the wheel's tick, the network, the turns of the test.
const SLACK: Duration = Duration::from_millis(350);

/// An upstream server that accepts whoever comes, and notes when it got which frame.
pub(crate) struct Server {
    pub(crate) line: Line,
    parsed: usize,
    pub(crate) frames: Vec<(Time, Frame)>,
    ponging: bool,
}

impl Server {
    fn play(&mut self, now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        if self.parsed == 0 {
            let Some(head) = head_of(&self.line.received) else { return wake };
            self.parsed = head.len();
            self.line.queue.push_front(switching(&head));
            return now;
        }
        let mut wake = wake;
        while let Some((frame, len)) = read_frame(&self.line.received[self.parsed..], true) {
            self.parsed += len;
            if frame.opcode == PING && self.ponging {
                self.line.squeeze_in(unmasked(true, PONG, &frame.payload));
                wake = now;
            }
            self.frames.push((now, frame));
        }
        wake
    }

    pub(crate) fn count(&self, opcode: u8) -> usize {
        self.frames.iter().filter(|(_, frame)| frame.opcode == opcode).count()
    }
}

/// A gateway, its clients with their upstreams in the same order, and when each client was closed.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) clients: Vec<Client>,
    pub(crate) servers: Vec<Server>,
    closed_at: Vec<Option<Duration>>,
    start: Time,
}

impl Scene {
    /// `count` clients of `target`, all of them upgraded.
    pub(crate) fn open(
        target: &str,
        count: usize,
        limits: impl FnOnce(&mut gateway::limits::Limits),
    ) -> Scene {
        let mut plan = Plan::pick(1, &mut Random::new(1), count as u64, 2);
        plan.faults = Faults::none();
        (plan.shards, plan.slots, plan.buffers, plan.buffer_bytes) = (1, 1000, 16, 16 * 1024);
        plan.limits =
            gateway::limits::Limits { ping_interval: Duration::ZERO, ..Default::default() };
        limits(&mut plan.limits);
        let world = World::new(1, plan, Random::new(1));
        let line = || Line::new(world.connect(0), Manners::PROMPT, Farewell::Wait);
        let clients: Vec<Client> = (0..count).map(|_| Client::new(line(), target)).collect();
        let closed_at = vec![None; count];
        let mut scene =
            Scene { start: world.now(), world, clients, servers: Vec::new(), closed_at };
        let relayed = target.starts_with("/relay");
        while !scene.clients.iter().all(Client::is_upgraded)
            || (relayed && scene.servers.len() < count)
        {
            scene.run(Duration::from_millis(10));
            assert!(scene.time() < SECOND, "not upgraded");
        }
        scene.start = scene.world.now();
        scene
    }

    /// Since all were upgraded.
    fn time(&self) -> Duration {
        self.world.now().since(self.start)
    }

    pub(crate) fn run(&mut self, time: Duration) {
        self.run_with(time, |_, _, _| NEVER);
    }

    /// Plays on for a while. `act` may have clients and servers say something, and says when (since
    /// all were upgraded) it wants to be asked again.
    fn run_with(
        &mut self,
        time: Duration,
        mut act: impl FnMut(Duration, &mut [Client], &mut [Server]) -> Duration,
    ) {
        let Scene { world, clients, servers, closed_at, start } = self;
        world.run(time, |world| {
            let now = world.now();
            let dice = &mut *world.dice.borrow_mut();
            while let Some(peer) = world.network.accept(UPSTREAM) {
                let line = Line::new(peer, Manners::PROMPT, Farewell::Wait);
                servers.push(Server { line, parsed: 0, frames: Vec::new(), ponging: true });
            }
            let mut wake = *start + act(now.since(*start), clients, servers);
            for (client, closed_at) in clients.iter_mut().zip(closed_at.iter_mut()) {
                wake = wake.min(client.play(now, dice));
                let over = client.close().is_some() || !client.line.is_open();
                if over && closed_at.is_none() {
                    *closed_at = Some(now.since(*start));
                }
            }
            for server in servers.iter_mut() {
                wake = wake.min(server.play(now, dice));
            }
            Some(wake)
        });
    }

    /// All were closed with this code, for this reason, in this time.
    #[track_caller]
    fn check_closed(&self, cause: Cause, code: Option<u16>, from: Duration, to: Duration) {
        let closed = self.world.metrics().closed(cause);
        assert_eq!(closed, self.clients.len() as u64, "{:?}", self.world.metrics());
        for (client, closed_at) in self.clients.iter().zip(&self.closed_at) {
            assert_eq!(client.close_code(), code);
            let at = closed_at.expect("it was closed");
            assert!(at >= from && at <= to + SLACK, "{at:?}, wanted from {from:?} to {to:?}");
            if code == Some(1012) {
                let reason = &client.close().expect("with a code").payload[2..];
                let reason = std::str::from_utf8(reason).expect("UTF-8");
                let ms = reason.strip_prefix("retry-after=").expect("when to come back");
                assert!(ms.parse::<u64>().expect("milliseconds") < 5000, "{reason}");
            }
        }
    }

    #[track_caller]
    pub(crate) fn check_all_open(&self) {
        let metrics = self.world.metrics();
        let closed: u64 = Cause::ALL.iter().map(|cause| metrics.closed(*cause)).sum();
        assert_eq!(closed, 0, "{metrics:?}");
        assert!(self.closed_at.iter().all(Option::is_none), "{:?}", self.closed_at);
    }

    pub(crate) fn finish(self) {
        let Scene { world, clients, servers, .. } = self;
        drop((clients, servers));
        world.finish();
    }
}

fn pings(client: &Client) -> usize {
    client.frames.iter().filter(|frame| frame.opcode == PING).count()
}

/// Has somebody say something every four seconds, up to second 40.
fn every_four_seconds(
    mut say: impl FnMut(&mut [Client], &mut [Server]),
) -> impl FnMut(Duration, &mut [Client], &mut [Server]) -> Duration {
    let mut said = 0;
    move |time, clients, servers| {
        if said <= 10 && time >= 4 * SECOND * said {
            said += 1;
            say(clients, servers);
        }
        if said <= 10 { 4 * SECOND * said } else { NEVER }
    }
}

/// Has the servers say something at a certain time.
fn at(
    when: Duration,
    mut say: impl FnMut(&mut [Server]),
) -> impl FnMut(Duration, &mut [Client], &mut [Server]) -> Duration {
    let mut done = false;
    move |time, _, servers| {
        if time < when {
            return when;
        }
        if !std::mem::replace(&mut done, true) {
            say(servers);
        }
        NEVER
    }
}

/// Pongs, and Pings of its own, do not keep a client alive; whatever it is connected to.
#[test]
fn who_says_nothing_is_closed() {
    for target in ["/echo", "/rooms", "/relay/0"] {
        let mut scene = Scene::open(target, 3, |limits| {
            limits.idle_timeout = 10 * SECOND;
            limits.ping_interval = SECOND;
        });
        scene.run(20 * SECOND);
        scene.check_closed(Cause::ClientTimeoutIdle, Some(1001), 10 * SECOND - SLACK, 10 * SECOND);
        assert!(scene.clients.iter().all(|client| pings(client) >= 8), "{target}");
        for server in &scene.servers {
            let codes: Vec<u8> = server.frames.iter().map(|(_, frame)| frame.opcode).collect();
            assert_eq!(codes, [CLOSE], "{target}");
        }
        scene.finish();
    }
}

#[test]
fn data_in_either_direction_keeps_a_connection() {
    let idle = |limits: &mut gateway::limits::Limits| limits.idle_timeout = 10 * SECOND;
    let dice = &mut Random::new(7);
    // A message; and parts of one that takes long.
    for (fin, opcodes) in [(true, [TEXT; 2]), (false, [BINARY, CONTINUATION])] {
        for target in ["/echo", "/relay/0"] {
            let mut scene = Scene::open(target, 1, idle);
            let mut opcodes = opcodes.into_iter().chain(std::iter::repeat(opcodes[1]));
            scene.run_with(
                60 * SECOND,
                every_four_seconds(|clients, _| {
                    let opcode = opcodes.next().expect("it repeats");
                    clients[0].line.queue.push_back(masked(dice, fin, opcode, b"still here"));
                }),
            );
            let end = 50 * SECOND;
            scene.check_closed(Cause::ClientTimeoutIdle, Some(1001), end - SLACK, end);
            scene.finish();
        }
    }
    // What the upstream says counts as much.
    let mut scene = Scene::open("/relay/0", 1, idle);
    scene.run_with(
        60 * SECOND,
        every_four_seconds(|_, servers| {
            servers[0].line.queue.push_back(unmasked(true, TEXT, b"news"));
        }),
    );
    let end = 50 * SECOND;
    scene.check_closed(Cause::ClientTimeoutIdle, Some(1001), end - SLACK, end);
    scene.finish();
}

/// A message that somebody else publishes.
#[test]
fn what_a_room_sends_keeps_its_member() {
    let mut scene = Scene::open("/rooms", 2, |limits| limits.idle_timeout = 10 * SECOND);
    let dice = &mut Random::new(7);
    for client in &mut scene.clients {
        let join = masked(dice, true, TEXT, br#"{"op":"join","room":"r"}"#);
        client.line.queue.push_back(join);
    }
    let publish = br#"{"op":"publish","room":"r","data":1}"#;
    scene.run_with(
        60 * SECOND,
        every_four_seconds(|clients, _| {
            clients[0].line.queue.push_back(masked(dice, true, TEXT, publish));
        }),
    );
    let end = 50 * SECOND;
    scene.check_closed(Cause::ClientTimeoutIdle, Some(1001), end - SLACK, end);
    scene.finish();
}

/// Neither data nor Pings move it, and who came together does not go together.
#[test]
fn nobody_stays_longer_than_the_limit() {
    for target in ["/echo", "/rooms", "/relay/0"] {
        let mut scene = Scene::open(target, 20, |limits| {
            limits.duration_max = 100 * SECOND;
            limits.ping_interval = 7 * SECOND;
        });
        scene.run(120 * SECOND);
        scene.check_closed(Cause::DurationLimit, Some(1012), 90 * SECOND - SLACK, 100 * SECOND);
        let mut seconds: Vec<u64> =
            scene.closed_at.iter().flatten().map(Duration::as_secs).collect();
        seconds.dedup();
        assert!(seconds.len() >= 4, "{target}: {seconds:?}");
        let mut reasons: Vec<_> = scene.clients.iter().map(|it| it.close().cloned()).collect();
        reasons.dedup();
        assert!(reasons.len() > 10, "{target}: {reasons:?}");
        scene.finish();
    }
}

/// The head of a frame of 256 bytes, and a part of it; and the rest.
fn long_frame() -> (Vec<u8>, Vec<u8>) {
    let mut frame = unmasked(true, BINARY, &[b'x'; 256]);
    let rest = frame.split_off(100);
    (frame, rest)
}

#[test]
fn the_end_of_a_relay_waits_for_a_frame_that_passes() {
    let limited = |limits: &mut gateway::limits::Limits| {
        limits.duration_max = 10 * SECOND;
        limits.close_timeout = 5 * SECOND;
    };
    let mut scene = Scene::open("/relay/0", 1, limited);
    let (begin, rest) = long_frame();
    scene.servers[0].line.queue.push_back(begin.clone());
    scene.run_with(
        20 * SECOND,
        at(12 * SECOND, |servers| servers[0].line.queue.push_back(rest.clone())),
    );
    let codes: Vec<u8> = scene.clients[0].frames.iter().map(|frame| frame.opcode).collect();
    assert_eq!(codes, [BINARY, CLOSE]);
    scene.check_closed(Cause::DurationLimit, Some(1012), 12 * SECOND, 12 * SECOND);
    scene.finish();
    // But not for ever, and then nothing may stand there.
    let mut scene = Scene::open("/relay/0", 1, limited);
    scene.servers[0].line.queue.push_back(begin);
    scene.run(20 * SECOND);
    scene.check_closed(Cause::DurationLimit, None, 14 * SECOND, 15 * SECOND);
    assert_eq!(scene.clients[0].line.end, End::Finished);
    scene.finish();
}

fn with_pings(limits: &mut gateway::limits::Limits) {
    limits.ping_interval = 5 * SECOND;
    limits.ping_timeout = 3 * SECOND;
}

/// Its upstream sees what it sees when a client goes: the end, and no frame that nobody sent.
#[test]
fn a_client_of_a_relay_that_never_answers_is_given_up() {
    let mut scene = Scene::open("/relay/0", 5, with_pings);
    scene.clients.iter_mut().for_each(|client| client.ponging = false);
    scene.run(20 * SECOND);
    scene.check_closed(Cause::ClientTimeoutPing, None, 7 * SECOND - SLACK, 8 * SECOND);
    for (client, server) in scene.clients.iter().zip(&scene.servers) {
        assert_eq!(pings(client), 1);
        assert_eq!(server.frames, []);
        assert!(!server.line.is_open());
    }
    scene.finish();
}

/// The Pongs do not reach the upstream, which has not asked.
#[test]
fn a_client_of_a_relay_that_answers_late_but_in_time_stays() {
    let mut scene = Scene::open("/relay/0", 1, with_pings);
    scene.clients[0].ponging = false;
    let (mut seen, mut answer_at) = (0, NEVER);
    let dice = &mut Random::new(7);
    scene.run_with(60 * SECOND, |time, clients, _| {
        if pings(&clients[0]) > seen {
            seen += 1;
            answer_at = time + Duration::from_millis(2900);
        }
        if time >= answer_at {
            let ping = clients[0].frames.last().expect("a Ping");
            let pong = masked(dice, true, PONG, &ping.payload);
            clients[0].line.queue.push_back(pong);
            answer_at = NEVER;
        }
        answer_at
    });
    scene.check_all_open();
    assert!(pings(&scene.clients[0]) >= 7, "{}", pings(&scene.clients[0]));
    assert_eq!(scene.servers[0].frames, []);
    scene.finish();
}

#[test]
fn data_of_a_client_of_a_relay_is_answer_enough() {
    let mut scene = Scene::open("/relay/0", 1, with_pings);
    scene.clients[0].ponging = false;
    let dice = &mut Random::new(7);
    scene.run_with(
        45 * SECOND,
        every_four_seconds(|clients, _| {
            clients[0].line.queue.push_back(masked(dice, true, TEXT, b"still here"));
        }),
    );
    scene.check_all_open();
    assert!(pings(&scene.clients[0]) <= 1, "only the first, which comes early");
    assert_eq!(scene.servers[0].count(TEXT), 11);
    scene.finish();
}

/// A Pong behind a message passes, and so do those that answer the upstream's own Pings.
#[test]
fn only_our_own_pongs_are_kept_back() {
    let mut scene = Scene::open("/relay/0", 1, with_pings);
    scene.clients[0].ponging = false;
    scene.run(6 * SECOND);
    assert_eq!(pings(&scene.clients[0]), 1);
    let dice = &mut Random::new(7);
    let ours = scene.clients[0].frames[0].payload.clone();
    let both = [masked(dice, true, TEXT, b"first"), masked(dice, true, PONG, &ours)].concat();
    scene.clients[0].line.queue.push_back(both);
    scene.clients[0].line.queue.push_back(masked(dice, true, PONG, b""));
    scene.run(SECOND);
    scene.clients[0].ponging = true;
    scene.run_with(
        30 * SECOND,
        at(10 * SECOND, |servers| {
            servers[0].line.queue.push_back(unmasked(true, PING, b"theirs"));
        }),
    );
    scene.check_all_open();
    assert!(pings(&scene.clients[0]) >= 5);
    let got: Vec<_> = scene.servers[0].frames.iter().map(|(_, it)| &it.payload[..]).collect();
    assert_eq!(got, [b"first", &ours[..], b"", b"theirs"]);
    scene.finish();
}

#[test]
fn a_ping_waits_for_a_frame_that_passes() {
    let mut scene = Scene::open("/relay/0", 1, with_pings);
    let (begin, rest) = long_frame();
    scene.servers[0].line.queue.push_back(begin);
    scene.run(20 * SECOND);
    assert_eq!(scene.clients[0].frames, []);
    scene.servers[0].line.queue.push_back(rest);
    scene.run(Duration::from_millis(50));
    let codes: Vec<u8> = scene.clients[0].frames.iter().map(|frame| frame.opcode).collect();
    assert_eq!(codes, [BINARY, PING], "at once behind the frame");
    scene.run(20 * SECOND);
    scene.check_all_open();
    scene.finish();
}

/// And the other way: an upstream that hangs is found out, and its client told to come back.
#[test]
fn an_upstream_that_never_answers_is_given_up() {
    for answers in [true, false] {
        let mut scene = Scene::open("/relay/0", 3, |limits| {
            limits.upstream_ping_interval = 5 * SECOND;
            limits.ping_timeout = 3 * SECOND;
        });
        scene.servers.iter_mut().for_each(|server| server.ponging = answers);
        scene.run(30 * SECOND);
        if answers {
            scene.check_all_open();
            assert!(scene.servers.iter().all(|server| server.count(PING) >= 5));
            assert!(scene.clients.iter().all(|client| client.frames.is_empty()));
        } else {
            scene.check_closed(Cause::BackendTimeout, Some(1012), 7 * SECOND - SLACK, 8 * SECOND);
            for server in &scene.servers {
                assert_eq!((server.count(PING), server.line.is_open()), (1, false));
            }
        }
        scene.finish();
    }
}
