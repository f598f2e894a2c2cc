//! Clients that break RFC 6455, and what they are told; and why clients leave.

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Peer, Upstream, masked, to_upstream};

/// A close code, what the client sent, and which rule it broke.
fn mistakes() -> Vec<(u16, Vec<u8>, &'static str)> {
    let mut unmasked = vec![0x81, 2];
    unmasked.extend(b"hi");
    vec![
        (1002, unmasked, "5.1: a client masks"),
        (1002, masked(0xC1, b"x"), "5.2: RSV1 without an extension"),
        (1002, masked(0x91, b"x"), "5.2: RSV3"),
        (1002, masked(0x83, b"x"), "5.2: opcode 3"),
        (1002, masked(0x8B, b""), "5.2: opcode 11"),
        (1002, vec![0x82, 0xFE, 0, 125], "5.2: a length not in its shortest form"),
        (1002, vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], "5.2: the top bit of a length"),
        (1002, masked(0x80, b"x"), "5.4: a continuation of nothing"),
        (1002, [masked(0x01, b"a"), masked(0x81, b"b")].concat(), "5.4: interrupted"),
        (1002, masked(0x09, b"x"), "5.5: a fragmented Ping"),
        (1002, masked(0x89, &[0; 126]), "5.5: a Ping of 126 bytes"),
        (1002, masked(0x88, b"x"), "5.5.1: half a close code"),
        (1002, masked(0x88, &999_u16.to_be_bytes()), "7.4: a close code below 1000"),
        (1002, masked(0x88, &1005_u16.to_be_bytes()), "7.4.1: a code that is never sent"),
        (1007, masked(0x81, b"\xC3\x28"), "8.1: not UTF-8"),
        (1007, masked(0x81, b"\xED\xA0\x80"), "8.1: a surrogate"),
        (1007, [masked(0x01, b"\xF0\x9F"), masked(0x80, b"x")].concat(), "8.1: over a cut"),
        (1007, masked(0x88, b"\x03\xE8\xFF"), "5.5.1: a reason that is not UTF-8"),
        // Refused by the header: the payload is never sent.
        (1009, vec![0x82, 0xFF, 0, 0, 0, 0, 0, 2, 0, 1, 9, 9, 9, 9], "10.4: larger than it may be"),
        (1009, [masked(0x02, &[0; 70_000]), masked(0x80, &[0; 70_000])].concat(), "10.4: in parts"),
    ]
}

#[test]
fn each_mistake_gets_its_close_code_and_disturbs_nobody() {
    let limits = "[limits]\nmessage_bytes_max = 131_072\n";
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{limits}"));
    let mut other = Peer::open(gateway.address(), "/echo");
    for (code, bytes, what) in mistakes() {
        let mut peer = Peer::open(gateway.address(), "/echo");
        peer.send(0x81, b"first");
        assert_eq!(peer.frame().payload, b"first");
        peer.write(&bytes);
        let (got, reason) = peer.close_frame();
        assert_eq!(got, code, "{what}: {reason}");
        assert!(!reason.is_empty() && reason.len() <= 123, "{what}: {reason}");
        peer.end();
        other.send(0x82, b"still here");
        assert_eq!(other.frame().payload, b"still here");
    }
    let mut peer = Peer::open(gateway.address(), "/rooms");
    peer.send(0x82, b"{}");
    assert_eq!(peer.close_frame().0, 1003);
    peer.send(0x88, &1003_u16.to_be_bytes());
    peer.end();
    drop(other);
    // The counts come after the last client is gone, and its end may be seen before or after the
    // request to stop; a round trip of another client on a shard of its own proves nothing.
    let stopped = gateway.stop();
    let left = stopped.closed.get("client_gone").or(stopped.closed.get("drain"));
    assert_eq!(left, Some(&1), "{:?}", stopped.closed);
    for (cause, count) in [("protocol_error", 15), ("bad_utf8", 4), ("too_big", 2)] {
        assert_eq!(stopped.closed.get(cause), Some(&count), "{cause} in {:?}", stopped.closed);
    }
}

/// RFC 6455 §5.5.1: the same code comes back, behind whatever was to come before it.
#[test]
fn a_close_is_answered_behind_what_is_queued() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let mut peer = Peer::open(gateway.address(), "/echo");
    let last = vec![b'z'; 1 << 20];
    peer.write([masked(0x82, &last), masked(0x88, b"\x0F\xA0bye")].concat());
    assert_eq!(peer.frame().payload, last);
    assert_eq!(peer.close_frame().0, 4000);
    peer.end();
    let mut peer = Peer::open(gateway.address(), "/echo");
    peer.send(0x88, b"");
    let frame = peer.frame();
    assert_eq!((frame.first, frame.payload.len()), (0x88, 0), "no code to one without");
    peer.end();
    gateway.stop().expect("client_close 2");
}

/// A frame may come in single bytes, and many frames in one segment.
#[test]
fn cuts_mean_nothing() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let mut peer = Peer::open(gateway.address(), "/echo");
    for byte in masked(0x81, "zerstückelt".as_bytes()) {
        peer.write([byte]);
    }
    assert_eq!(peer.frame().payload, "zerstückelt".as_bytes());
    let many: Vec<u8> = (0..1000_u32).flat_map(|n| masked(0x82, &n.to_be_bytes())).collect();
    peer.write(many);
    for n in 0..1000_u32 {
        assert_eq!(peer.frame().payload, n.to_be_bytes());
    }
}

/// Kernels before 6.12 give a whole buffer to each receive. Here that is switched on by the file.
#[test]
fn whole_receive_buffers_do_too() {
    let head = HEAD.replace("[server]", "[server]\nincremental = \"off\"");
    let upstream = Upstream::listen();
    let gateway = Gateway::start(&format!("{head}{}", to_upstream(upstream.address())));
    let (mut client, mut server) = upstream.join(&gateway);
    let payload: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let frame = masked(0x82, &payload);
    std::thread::scope(|scope| {
        scope.spawn(|| client.write(&frame));
        assert!(server.bytes(frame.len()) == frame);
    });
    let mut answer = vec![0x82, 127];
    answer.extend(100_000_u64.to_be_bytes());
    answer.extend(&payload[..100_000]);
    server.write(&answer);
    assert!(client.frame().payload == payload[..100_000]);
}

/// Who does not answer a Ping is given up; who does is kept.
#[test]
fn silence_is_found_out_by_a_ping() {
    let limits = "[limits]\nping_interval_ms = 200\nping_timeout_ms = 200\n";
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{limits}"));
    let mut alive = Peer::open(gateway.address(), "/echo");
    let mut silent = Peer::open(gateway.address(), "/echo");
    for _ in 0..4 {
        let ping = alive.frame();
        assert_eq!(ping.first, 0x89);
        alive.send(0x8A, &ping.payload);
    }
    assert_eq!(silent.frame().first, 0x89);
    silent.end();
    alive.send(0x88, &1000_u16.to_be_bytes());
    assert_eq!(alive.close_frame().0, 1000);
    gateway.stop().expect("client_close 1, client_timeout_ping 1");
}

/// A client that resets, and one that ends its stream without a word.
#[test]
fn clients_that_vanish_are_counted_as_gone() {
    let gateway =
        Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}").replace("shards = 2", "shards = 1"));
    for _ in 0..3 {
        let mut peer = Peer::open(gateway.address(), "/echo");
        peer.send(0x81, b"x");
        peer.frame();
        peer.reset();
        let peer = Peer::open(gateway.address(), "/rooms");
        drop(peer);
    }
    // One shard takes events in order: when a later client has had its turn, so have these.
    let mut last = Peer::open(gateway.address(), "/echo");
    last.send(0x88, &[]);
    last.frame();
    last.end();
    gateway.stop().expect("client_close 1, client_gone 6");
}
