//! Bodies of ordinary requests that do not come, are not taken, or are answered before they are whole.

use std::time::Duration;

use gateway::metrics::Cause;
use gateway::ring::sim::{Faults, Random};
use gateway::time::Time;

use crate::client::{End, Farewell, Line, Manners};
use crate::world::{Plan, UPSTREAM, World};

const SECOND: Duration = Duration::from_secs(1);

fn world(seed: u64, faults: Faults, limits: impl FnOnce(&mut gateway::limits::Limits)) -> World {
    let mut plan = Plan::pick(1, &mut Random::new(1), 1, 2);
    plan.faults = faults;
    (plan.shards, plan.slots, plan.buffers, plan.buffer_bytes) = (1, 100, 16, 16 * 1024);
    plan.limits = gateway::limits::Limits { ping_interval: Duration::ZERO, ..Default::default() };
    limits(&mut plan.limits);
    World::new(seed, plan, Random::new(seed))
}

fn line(world: &World) -> Line {
    Line::new(world.connect(0), Manners::PROMPT, Farewell::Wait)
}

/// Plays one client and its upstream until the client's connection has ended, or for `most`. `act` sees
/// both after each step, and says when it wants to be asked again. Returns when the client's connection
/// ended.
fn play(
    world: &mut World,
    client: &mut Line,
    server: &mut Option<Line>,
    most: Duration,
    mut act: impl FnMut(Duration, &mut Line, Option<&mut Line>) -> Duration,
) -> Option<Duration> {
    let start = world.now();
    world.run(most, |world| {
        let now = world.now();
        let dice = &mut *world.dice.borrow_mut();
        while let Some(peer) = world.network.accept(UPSTREAM) {
            assert!(server.is_none(), "a second connection to the upstream");
            *server = Some(Line::new(peer, Manners::PROMPT, Farewell::Wait));
        }
        let again = act(now.since(start), client, server.as_mut());
        let mut wake = if again == Duration::MAX { Time::NEVER } else { start + again };
        wake = wake.min(client.play(now, dice));
        if let Some(server) = server {
            wake = wake.min(server.play(now, dice));
        }
        client.is_open().then_some(wake)
    });
    (!client.is_open()).then(|| world.now().since(start))
}

/// Until what the client has seen the end of has ended here as well.
fn settle(world: &mut World) {
    world.run(20 * SECOND, |_| Some(Time::NEVER));
}

fn post(length: usize) -> Vec<u8> {
    format!("POST /relay/a HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn text(line: &Line) -> String {
    String::from_utf8_lossy(&line.received).into_owned()
}

/// A body of a byte every two seconds, and one that is just fast enough.
#[test]
fn a_body_has_a_least_rate() {
    for (bytes_at_a_time, every, stays) in [(1, 2 * SECOND, false), (600, SECOND, true)] {
        let mut world = world(1, Faults::none(), |_| {});
        let (mut client, mut server) = (line(&world), None);
        client.queue.push_back(post(1 << 20));
        let mut next = every;
        let ended = play(&mut world, &mut client, &mut server, 100 * SECOND, |now, client, _| {
            if now >= next {
                client.queue.push_back(vec![b'x'; bytes_at_a_time]);
                next += every;
            }
            next
        });
        if stays {
            assert_eq!(ended, None, "{}", text(&client));
            let received = server.as_ref().map_or(0, |server| server.received.len());
            assert!(received > 95 * bytes_at_a_time, "{received} bytes passed");
        } else {
            assert!(text(&client).starts_with("HTTP/1.1 408 "), "{}", text(&client));
            assert!(text(&client).contains("body_bytes_per_second_min"), "{}", text(&client));
            let ended = ended.expect("it was closed");
            assert!((30 * SECOND..40 * SECOND).contains(&ended), "{ended:?}");
            settle(&mut world);
            let metrics = world.metrics();
            assert_eq!(metrics.closed(Cause::ClientTimeoutHandshake), 1);
            assert_eq!(metrics.upstream_failures, 0, "the upstream has done nothing");
        }
        drop((client, server));
        world.finish();
    }
}

/// With 0 as the rate, a body may take its time.
#[test]
fn a_rate_of_zero_is_none() {
    let mut world = world(1, Faults::none(), |limits| limits.body_bytes_per_second_min = 0);
    let (mut client, mut server) = (line(&world), None);
    client.queue.push_back(post(1000));
    let mut next = SECOND;
    let ended = play(&mut world, &mut client, &mut server, 300 * SECOND, |now, client, _| {
        if now >= next {
            client.queue.push_back(b"x".to_vec());
            next += 2 * SECOND;
        }
        next
    });
    assert_eq!(ended, None, "{}", text(&client));
    drop((client, server));
    world.finish();
}

/// An upstream that takes nothing of a body: it is its failure, and the client is told.
#[test]
fn an_upstream_that_takes_nothing_is_the_slow_one() {
    let mut world = world(1, Faults::none(), |_| {});
    let mut client = line(&world);
    let length = 900_000;
    client.queue.push_back(post(length));
    client.queue.push_back(vec![b'x'; length]);
    let start = world.now();
    let mut peer = None;
    world.run(200 * SECOND, |world| {
        let dice = &mut *world.dice.borrow_mut();
        if let Some(accepted) = world.network.accept(UPSTREAM) {
            peer = Some(accepted); // It never reads.
        }
        let wake = client.play(world.now(), dice);
        client.is_open().then_some(wake)
    });
    let ended = world.now().since(start);
    assert!(text(&client).starts_with("HTTP/1.1 504 "), "{}", text(&client));
    assert!((30 * SECOND..40 * SECOND).contains(&ended), "{ended:?}");
    settle(&mut world);
    assert_eq!(world.metrics().closed(Cause::BackendTimeout), 1);
    drop((client, peer));
    world.finish();
}

/// An answer that is silent for longer than a body may be is no fault of anybody's.
#[test]
fn an_answer_may_be_slow() {
    let mut world = world(1, Faults::none(), |_| {});
    let (mut client, mut server) = (line(&world), None);
    client.queue.push_back(b"GET /relay/events HTTP/1.1\r\nHost: t\r\n\r\n".to_vec());
    let mut next = SECOND;
    let ended = play(&mut world, &mut client, &mut server, 500 * SECOND, |now, _, server| {
        let Some(server) = server.filter(|_| now >= next) else { return next };
        let piece = if server.sent == 0 { "HTTP/1.1 200 OK\r\n\r\n" } else { ":\n\n" };
        server.queue.push_back(piece.as_bytes().to_vec());
        next += 50 * SECOND;
        next
    });
    assert_eq!(ended, None, "{}", text(&client));
    assert!(text(&client).ends_with(":\n\n:\n\n"), "{}", text(&client));
    drop((client, server));
    world.finish();
}

/// A server answers 413 at once and closes with the body unread, so that a reset follows its answer. The
/// gateway is busy meanwhile: when it looks, both are there, and its own send may meet the reset first.
#[test]
fn an_early_answer_wins_over_the_reset_behind_it() {
    const ANSWER: &[u8] = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno\n";
    for seed in 0..100 {
        let mut world = world(seed, Faults::none(), |_| {});
        let mut client = line(&world);
        let length = 900_000;
        client.queue.push_back(post(length));
        client.queue.push_back(vec![b'x'; length]);
        let mut peer = None;
        world.run(60 * SECOND, |world| {
            let now = world.now();
            let wake = client.play(now, &mut world.dice.borrow_mut());
            if let Some(mut accepted) = world.network.accept(UPSTREAM) {
                let mut received = Vec::new();
                accepted.receive(&mut received, 100);
                assert_eq!(accepted.send(ANSWER), ANSWER.len());
                peer = Some((accepted, now + Duration::from_millis(seed % 3)));
            }
            // By then a send waits for the server, which has stopped to read.
            if peer.as_ref().is_some_and(|(_, at)| *at <= now) {
                world.network.advance(Duration::from_millis(10));
                peer.take().expect("it is there").0.reset();
                world.network.advance(Duration::from_millis(10));
            }
            let wake = peer.as_ref().map_or(wake, |(_, at)| wake.min(*at));
            client.is_open().then_some(wake)
        });
        let got = text(&client);
        assert!(got.starts_with("HTTP/1.1 413 Too Large"), "seed {seed}: {got}");
        assert!(got.ends_with("no\n"), "seed {seed}: {got}");
        drop((client, peer));
        world.finish();
    }
}

/// A server answers a request whose body it has not read, and resets its connection when the client's next
/// request is with another already: that one is answered all the same.
#[test]
fn an_upstream_that_has_answered_fails_no_other_request() {
    const ANSWER: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nno\n";
    const NEXT: &[u8] = b"GET /relay/b HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut world = world(1, Faults::none(), |_| {});
    let mut client = line(&world);
    // It fits into the sockets and the outbox, so that the request is whole when it is answered.
    client.queue.push_back(post(100_000));
    client.queue.push_back(vec![b'x'; 100_000]);
    let (mut first, mut second) = (None, None::<Line>);
    let mut due = Time::NEVER;
    world.run(10 * SECOND, |world| {
        let now = world.now();
        let mut wake = client.play(now, &mut world.dice.borrow_mut());
        if let Some(accepted) = world.network.accept(UPSTREAM) {
            match first {
                None => first = Some(accepted),
                Some(_) => second = Some(Line::new(accepted, Manners::PROMPT, Farewell::Wait)),
            }
            due = now + SECOND;
        }
        if due <= now {
            due = Time::NEVER;
            match (&mut second, &mut first) {
                (None, Some(peer)) => {
                    assert_eq!(peer.send(ANSWER), ANSWER.len());
                    client.queue.push_back(NEXT.to_vec());
                    wake = now + SECOND / 10;
                }
                (Some(_), Some(_)) => {
                    first.take().expect("matched above").reset();
                    due = now + SECOND;
                }
                (Some(second), None) => second.queue.push_back(OK.to_vec()),
                (None, None) => {}
            }
        }
        if let Some(second) = &mut second {
            wake = wake.min(second.play(now, &mut world.dice.borrow_mut()));
        }
        client.is_open().then_some(wake.min(due))
    });
    let got = text(&client);
    assert!(got.starts_with("HTTP/1.1 401 ") && got.contains("HTTP/1.1 200 OK"), "{got}");
    assert_eq!(client.end, End::Finished);
    drop((client, first, second));
    world.finish();
}

/// A client ends its stream behind its requests and waits: it gets its answers, and then the end.
#[test]
fn who_half_closes_behind_a_request_is_answered() {
    for (requests, delay) in [(1, 0), (1, 3), (3, 2)] {
        let mut world = world(1, Faults::none(), |_| {});
        let mut client = line(&world);
        for number in 0..requests {
            let head = format!("GET /relay/{number} HTTP/1.1\r\nHost: t\r\n\r\n");
            client.queue.push_back(head.into_bytes());
        }
        client.farewell = Farewell::HalfClose;
        let mut servers: Vec<(Line, Time)> = Vec::new();
        world.run(100 * SECOND, |world| {
            let now = world.now();
            let dice = &mut *world.dice.borrow_mut();
            while let Some(peer) = world.network.accept(UPSTREAM) {
                let line = Line::new(peer, Manners::PROMPT, Farewell::Wait);
                servers.push((line, now + delay * SECOND));
            }
            let mut wake = client.play(now, dice);
            for (number, (server, answer_at)) in servers.iter_mut().enumerate() {
                wake = wake.min(server.play(now, dice));
                if *answer_at <= now && !server.received.is_empty() {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                    server.queue.push_back(head.into_bytes());
                    *answer_at = Time::NEVER;
                    wake = now;
                }
                wake = wake.min(*answer_at);
            }
            client.is_open().then_some(wake)
        });
        assert_eq!(client.end, End::Finished);
        let got = text(&client);
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), requests, "{got}");
        assert!(got.ends_with(&(requests - 1).to_string()), "{got}");
        settle(&mut world);
        assert_eq!(world.metrics().closed(Cause::HttpDone), 1);
        drop((client, servers));
        world.finish();
    }
}

/// In the middle of a request there is nothing to wait for.
#[test]
fn who_half_closes_within_a_body_is_gone() {
    let mut world = world(1, Faults::none(), |_| {});
    let (mut client, mut server) = (line(&world), None);
    client.queue.push_back(post(10));
    client.queue.push_back(b"half ".to_vec());
    client.farewell = Farewell::HalfClose;
    let ended = play(&mut world, &mut client, &mut server, SECOND, |_, _, _| Duration::MAX);
    assert!(ended.is_some() && client.received.is_empty(), "{}", text(&client));
    drop((client, server));
    world.finish();
}

/// A client that is reset while nothing of its body is taken leaves nothing behind.
#[test]
fn a_reset_of_a_client_whose_body_is_not_taken_is_heard_soon() {
    let mut world = world(1, Faults::none(), |_| {});
    let (mut client, mut server) = (line(&world), None);
    client.queue.push_back(post(1 << 20));
    client.queue.push_back(vec![b'x'; 1 << 20]);
    play(&mut world, &mut client, &mut server, 5 * SECOND, |_, _, server| {
        if let Some(server) = server {
            server.manners.read_max = 0;
        }
        Duration::MAX
    });
    assert_eq!(world.counters[0].slow_consumers.get(), 1, "it is not read");
    client.peer.take().expect("it is connected").reset();
    world.run(2 * SECOND, |_| Some(Time::NEVER));
    let metrics = world.metrics();
    assert_eq!(metrics.closed(Cause::ClientGone), 1, "{metrics:?}");
    assert_eq!((world.shards[0].open(), metrics.upstream_failures), (0, 0));
    drop(server);
    world.finish();
}
