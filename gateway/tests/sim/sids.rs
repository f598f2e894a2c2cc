//! Sessions of Engine.IO: each request on a connection of its own, to whichever shard.
//!
//! Every request of a session comes to the upstream that issued its `sid`.

use std::net::SocketAddr;
use std::time::Duration;

use gateway::ring::sim::{Fault, Random};
use gateway::time::Time;

use crate::client::{End, Farewell, Line, Manners};
use crate::world::{Plan, World, for_seeds};

#[test]
fn sids() {
    for_seeds("sids", play);
}

/// Where the upstreams of the route `/sids/*` listen.
pub(crate) const UPSTREAMS: [SocketAddr; 3] = [upstream(9001), upstream(9002), upstream(9003)];

const fn upstream(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

/// A client with a session.
struct Caller {
    number: usize,
    line: Line,
    /// The upstream that issued its `sid`.
    issuer: Option<usize>,
    /// Requests still to be made.
    left: u64,
    asked: u64,
    answered: u64,
}

/// A connection to an upstream.
struct Server {
    line: Line,
    at: usize,
    done: bool,
}

/// The next request of a session; the first opens it.
fn request(world: &World, dice: &mut Random, number: usize, opened: bool) -> Line {
    let peer = world.connect(dice.below(3));
    let mut line = Line::new(peer, Manners::pick_polite(dice), Farewell::Wait);
    let sid = if opened { format!("&sid=session-{number}") } else { String::new() };
    let head = format!(
        "GET /sids/{number}?EIO=4&transport=polling{sid} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    );
    line.queue.push_back(head.into_bytes());
    line
}

impl Server {
    fn play(&mut self, callers: &mut [Caller], now: Time, dice: &mut Random) -> Time {
        let wake = self.line.play(now, dice);
        if self.done || !self.line.received.ends_with(b"\r\n\r\n") {
            return wake;
        }
        self.done = true;
        let head = std::str::from_utf8(&self.line.received).expect("ASCII");
        let (_, rest) = head.split_once("/sids/").expect("a path");
        let (number, _) = rest.split_once('?').expect("a query");
        let caller = &mut callers[number.parse::<usize>().expect("a number")];
        caller.asked += 1;
        let body = match caller.issuer {
            Some(issuer) => {
                assert_eq!(self.at, issuer, "session {number} at another's");
                assert!(head.contains(&format!("sid=session-{number} ")), "{head}");
                "6".to_owned()
            }
            None => {
                caller.issuer = Some(self.at);
                format!("0{{\"sid\":\"session-{number}\",\"upgrades\":[]}}")
            }
        };
        let answer = if dice.below(2) == 0 {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        } else {
            let (a, b) = body.split_at(1 + dice.below(body.len() as u64) as usize);
            let chunk = |part: &str| match part.len() {
                0 => String::new(),
                len => format!("{len:x}\r\n{part}\r\n"),
            };
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}{}0\r\n\r\n",
                chunk(a),
                chunk(b)
            )
        };
        self.line.queue.push_back(answer.into_bytes());
        now
    }
}

fn play(seed: u64) -> u64 {
    let mut dice = Random::new(seed ^ 0x51d5);
    let count = 1 + dice.below(8) as usize;
    let mut plan = Plan::pick(seed, &mut dice, count as u64, 8);
    // What makes an upstream fail, or a table full, leads a session elsewhere by right.
    for fault in [
        Fault::Reset,
        Fault::ConnectTimeout,
        Fault::ConnectRefused,
        Fault::NoLocalPort,
        Fault::TableFull,
    ] {
        plan.faults = plan.faults.with(fault, 0);
    }
    plan.slots = plan.slots.max(200);
    plan.limits.connect_timeout = Duration::from_secs(60);
    plan.limits.attempt_timeout = Duration::from_secs(60);
    let mut world = World::new(seed, plan, dice);
    UPSTREAMS.into_iter().for_each(|address| world.network.listen(address));
    let mut callers: Vec<Caller> = (0..count)
        .map(|number| {
            let dice = &mut *world.dice.borrow_mut();
            let line = request(&world, dice, number, false);
            Caller { number, line, issuer: None, left: dice.below(5), asked: 0, answered: 0 }
        })
        .collect();
    let mut servers: Vec<Server> = Vec::new();
    let done = world.run(Duration::from_secs(3600), |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        for (at, address) in UPSTREAMS.into_iter().enumerate() {
            while let Some(peer) = world.network.accept(address) {
                let line = Line::new(peer, Manners::pick_polite(dice), Farewell::Wait);
                servers.push(Server { line, at, done: false });
            }
        }
        let mut wake = Time::NEVER;
        for caller in &mut callers {
            wake = wake.min(caller.line.play(now, dice));
            if caller.line.end != End::Finished || caller.answered == caller.asked {
                continue;
            }
            caller.answered += 1;
            assert!(caller.line.received.starts_with(b"HTTP/1.1 200 "), "{}", caller.number);
            if caller.left > 0 {
                caller.left -= 1;
                caller.line = request(world, dice, caller.number, true);
                wake = now;
            }
        }
        for server in &mut servers {
            wake = wake.min(server.play(&mut callers, now, dice));
        }
        callers.iter().any(|caller| caller.line.is_open()).then_some(wake)
    });
    assert!(done, "stuck");
    let metrics = world.metrics();
    let polls: u64 = callers.iter().map(|caller| caller.asked - 1).sum();
    assert!(callers.iter().all(|caller| caller.left == 0), "some were refused");
    assert_eq!((metrics.sids_learnt, metrics.sids_unknown), (count as u64, 0), "{polls} polls");
    drop(callers);
    let digest = world.finish();
    drop(servers);
    digest
}
