//! What a peer sends after its last word, or ours; last words that may not be said; and answers that
//! nobody chose to give.

use std::time::Duration;

use gateway::metrics::Cause;
use gateway::ring::sim::Random;

use crate::client::{
    BINARY, CLOSE, End, Farewell, Line, PING, PONG, close_payload, masked, unmasked,
};
use crate::timeouts::Scene;

const SECOND: Duration = Duration::from_secs(1);

/// What a peer pours in all, if it is let.
const POURED_BYTES: usize = 16 << 20;

/// The bound, and what had been received when it was met: at most all buffers that there are.
const TAKEN_BYTES_MAX: u64 = (256 + 16 * 16) * 1024;

/// Bytes that have no end, of a peer that reads nothing: not the end of our stream either.
fn pour(line: &mut Line) {
    line.farewell = Farewell::Wait;
    line.manners.read_max = 0;
    for _ in 0..POURED_BYTES / (1 << 16) {
        line.queue.push_back(vec![0x55; 1 << 16]);
    }
}

/// Who has been failed, or has said goodbye, is read for 256 KiB and no more; what it may still be in
/// the middle of comes on top where it has done nothing wrong.
#[test]
fn who_pours_after_the_end_is_cut_off() {
    let dice = &mut Random::new(1);
    let close = close_payload(1000, "");
    let nonsense = unmasked(true, BINARY, b"without a mask");
    let cases = [
        ("/echo", false, nonsense.clone(), "fails at the echo"),
        ("/rooms", false, nonsense.clone(), "fails in a room"),
        ("/rooms", false, masked(dice, true, BINARY, b"a room asks it to leave"), "leaves"),
        ("/relay/0", false, nonsense, "fails in a relay"),
        ("/relay/0", false, masked(dice, true, CLOSE, &close), "said goodbye in a relay"),
        ("/relay/0", true, masked(dice, true, BINARY, b"with a mask"), "an upstream fails"),
        ("/relay/0", true, unmasked(true, CLOSE, &close), "an upstream said goodbye"),
    ];
    for (target, by_upstream, last, what) in cases {
        let mut scene = Scene::open(target, 1, |limits| {
            limits.message_bytes_max = 64 * 1024;
            limits.close_timeout = 60 * SECOND;
            limits.outbox_age_max = 600 * SECOND;
        });
        scene.clients[0].ponging = false;
        let Scene { clients, servers, .. } = &mut scene;
        let line = if by_upstream { &mut servers[0].line } else { &mut clients[0].line };
        line.queue.push_back(last);
        pour(line);
        let before = scene.world.metrics().received_bytes;
        scene.run(30 * SECOND);
        let line = if by_upstream { &scene.servers[0].line } else { &scene.clients[0].line };
        let taken = scene.world.metrics().received_bytes - before;
        let unfinished = if what == "leaves" { 64 * 1024 } else { 0 };
        assert!(taken <= TAKEN_BYTES_MAX + unfinished, "{what}: {taken} bytes taken");
        assert!(taken > 256 * 1024, "{what}: {taken} bytes taken");
        assert!(!line.is_open(), "{what}");
        assert_eq!(scene.world.metrics().cut_off, 1, "{what}");
        scene.finish();
    }
}

/// Nor is a relay kept open by a trickle behind a Close frame.
#[test]
fn a_trickle_behind_a_close_frame_keeps_nothing_open() {
    let mut scene = Scene::open("/relay/0", 1, |_| {});
    scene.clients[0].ponging = false;
    let close = masked(&mut Random::new(1), true, CLOSE, &close_payload(1000, ""));
    scene.clients[0].line.queue.push_back(close);
    for _ in 0..20 {
        scene.run(SECOND);
        if scene.clients[0].line.is_open() {
            scene.clients[0].line.queue.push_back(vec![0]);
        }
    }
    assert!(!scene.clients[0].line.is_open());
    assert_eq!(scene.world.metrics().closed(Cause::ClientClose), 1);
    scene.finish();
}

/// RFC 6455 §5.5.1, §7.4: a Close frame that may not be is nobody's but its sender's.
#[test]
fn a_bad_close_frame_is_not_passed_on() {
    let dice = &mut Random::new(1);
    let code = |code: u16| close_payload(code, "");
    let mut payloads: Vec<(Vec<u8>, u16)> =
        [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535]
            .map(|it| (code(it), 1002))
            .into();
    payloads.push((vec![3], 1002));
    payloads.push((b"\x03\xe8caf\xe9".to_vec(), 1007));
    for (payload, answer) in payloads {
        for by_upstream in [false, true] {
            let what = format!("{payload:?}, by the upstream: {by_upstream}");
            let mut scene = Scene::open("/relay/0", 1, |_| {});
            scene.clients[0].ponging = false;
            let Scene { clients, servers, .. } = &mut scene;
            let frame = match by_upstream {
                true => unmasked(true, CLOSE, &payload),
                false => masked(dice, true, CLOSE, &payload),
            };
            // In two pieces, so that it is not whole when its header is read.
            let (front, back) = frame.split_at(frame.len() - 1);
            let line = if by_upstream { &mut servers[0].line } else { &mut clients[0].line };
            line.queue.push_back(front.to_vec());
            scene.run(SECOND);
            // Half a code is wrong by its length alone.
            if payload.len() > 1 {
                assert_eq!(scene.servers[0].frames, [], "{what}");
                assert_eq!(scene.clients[0].frames, [], "{what}");
            }
            let Scene { clients, servers, .. } = &mut scene;
            let line = if by_upstream { &mut servers[0].line } else { &mut clients[0].line };
            line.queue.push_back(back.to_vec());
            scene.run(SECOND);
            let server = &scene.servers[0];
            let to_upstream: Vec<_> = server.frames.iter().map(|(_, it)| &it.payload[..]).collect();
            if by_upstream {
                assert_eq!(to_upstream, [&code(answer)[..]], "{what}");
                assert_eq!(scene.clients[0].close_code(), Some(1011), "{what}");
            } else {
                assert!(to_upstream.is_empty(), "{what}: {to_upstream:?}");
                assert_eq!(scene.clients[0].close_code(), Some(answer), "{what}");
                let cause = if answer == 1007 { Cause::BadUtf8 } else { Cause::ProtocolError };
                scene.run(10 * SECOND);
                assert_eq!(scene.world.metrics().closed(cause), 1, "{what}");
            }
            let Scene { clients, servers, .. } = &mut scene;
            for line in [&mut clients[0].line, &mut servers[0].line] {
                assert!(matches!(line.end, End::Finished), "{what}: {:?}", line.end);
            }
            scene.finish();
        }
    }
}

/// A Pong for each Ping of the upstream is no client's own idea; one more is.
#[test]
fn pongs_for_an_upstreams_pings_are_free() {
    let mut scene = Scene::open("/relay/0", 1, |limits| {
        limits.rates.connection.control_frames = gateway::rate::Rate::new(1, 5);
    });
    for round in 0..10 {
        for _ in 0..100 {
            scene.servers[0].line.queue.push_back(unmasked(true, PING, b"there?"));
        }
        scene.run(Duration::from_millis(100));
        assert_eq!(scene.servers[0].count(PONG), 100 * (round + 1));
    }
    scene.check_all_open();
    for _ in 0..10 {
        let pong = masked(&mut Random::new(1), true, PONG, b"unasked");
        scene.clients[0].line.queue.push_back(pong);
    }
    scene.run(SECOND);
    assert_eq!(scene.clients[0].close_code(), Some(1008));
    assert!(scene.servers[0].count(PONG) <= 1000 + 6);
    scene.finish();
}

/// A client whose upstream reads nothing, which is not read itself for that.
fn unread_client(target: &str) -> Scene {
    let mut scene = Scene::open(target, 1, |_| {});
    scene.clients[0].ponging = false;
    scene.servers[0].line.manners.read_max = 0;
    for _ in 0..64 {
        let frame = masked(&mut Random::new(1), true, BINARY, &[7; 16 * 1024]);
        scene.clients[0].line.queue.push_back(frame);
    }
    scene.run(Duration::from_millis(100));
    assert_eq!(scene.world.counters[0].slow_consumers.get(), 1, "it is not read");
    scene
}

/// What a client has filled is not kept for it once it was reset, and that is its own doing. Whether it is
/// so before the watch begins or in the middle of it: either is told within two seconds.
#[test]
fn a_reset_of_a_client_that_is_not_read_is_heard_soon() {
    for before in [Duration::ZERO, 5 * SECOND] {
        let mut scene = unread_client("/relay/0");
        scene.run(before);
        scene.check_all_open();
        scene.clients[0].line.peer.take().expect("it is connected").reset();
        scene.clients[0].line.end = End::Gone;
        scene.run(2 * SECOND);
        let metrics = scene.world.metrics();
        assert_eq!(metrics.closed(Cause::ClientGone), 1, "after {before:?}: {metrics:?}");
        assert_eq!(scene.world.shards[0].open(), 0, "after {before:?}: its upstream went with it");
        scene.finish();
    }
}

/// The end of its stream alone says nothing: it may still be answered, and it is its upstream that takes
/// nothing.
#[test]
fn the_end_of_a_stream_that_is_not_read_waits() {
    let mut scene = unread_client("/relay/0");
    scene.clients[0].line.peer.as_mut().expect("it is connected").finish();
    scene.clients[0].line.half_closed = true;
    scene.run(25 * SECOND);
    scene.check_all_open();
    scene.run(10 * SECOND);
    assert_eq!(scene.world.metrics().closed(Cause::BackendTimeout), 1);
    scene.finish();
}

/// Who is read again loses nothing of what came before a reset.
#[test]
fn a_client_that_is_read_again_is_read_to_its_reset() {
    let mut scene = unread_client("/relay/0");
    scene.run(5 * SECOND);
    scene.servers[0].line.manners.read_max = 100_000;
    scene.run(SECOND);
    assert_eq!(scene.world.counters[0].slow_consumers.get(), 0, "it is read again");
    assert_eq!(scene.servers[0].count(BINARY), 64);
    scene.clients[0].line.queue.push_back(masked(&mut Random::new(1), true, BINARY, b"last"));
    scene.run(Duration::from_millis(10));
    scene.clients[0].line.peer.take().expect("it is connected").reset();
    scene.clients[0].line.end = End::Gone;
    scene.run(SECOND);
    assert_eq!(scene.servers[0].count(BINARY), 65);
    assert_eq!(scene.world.metrics().closed(Cause::ClientGone), 1);
    scene.finish();
}
