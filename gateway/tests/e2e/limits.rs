//! Every limit on what a client may do, exceeded: what the client is told, that others go on, and
//! that what was counted is given back.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use crate::support::{
    ECHO_AND_ROOMS, Frame, Gateway, HEAD, PATIENCE, Peer, Upstream, header, masked, switching,
    to_upstream, upgrade,
};

fn with_limits(limits: &str) -> Gateway {
    Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}[limits]\n{limits}"))
}

/// A client that comes from another address of this host.
fn connect_from(last: u8, address: SocketAddr) -> Peer {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
    socket.bind(&from.into()).expect("all of 127/8 is ours");
    socket.connect(&address.into()).expect("it listens");
    Peer::new(socket.into())
}

/// Asks for an upgrade; the answer's head.
#[track_caller]
fn ask(peer: &mut Peer, target: &str) -> String {
    peer.write(upgrade(target, ""));
    peer.head()
}

#[track_caller]
pub(crate) fn open_from(last: u8, address: SocketAddr, target: &str) -> Peer {
    let mut peer = connect_from(last, address);
    let head = ask(&mut peer, target);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    peer
}

/// A refusal for the moment: its status, a time to come back, and the limit by its name.
#[track_caller]
fn expect_refusal(mut peer: Peer, head: &str, status: u16, limit: &str) {
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    let seconds: u64 = header(head, "retry-after").expect("when").parse().expect("seconds");
    assert!((1..=10).contains(&seconds), "{head}");
    let body = peer.answer();
    assert!(body.starts_with(limit), "{body}");
}

/// Sends `count` messages in one write and takes the echoes up to the Close frame.
#[track_caller]
fn flood(peer: &mut Peer, first: u8, payload: &[u8], count: usize) -> (usize, (u16, String)) {
    peer.write(masked(first, payload).repeat(count));
    let mut echoes = 0;
    loop {
        let frame = peer.frame();
        if frame.first == 0x88 {
            let code = u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
            let reason = String::from_utf8(frame.payload[2..].to_vec()).expect("UTF-8");
            return (echoes, (code, reason));
        }
        echoes += 1;
    }
}

/// Messages, bytes and control frames, each over its burst: what is within is served, and whoever
/// keeps within goes on.
#[test]
fn a_connection_over_its_rate_is_closed() {
    for (limits, first, payload, within) in [
        ("messages", 0x82, &b"hello"[..], 5),
        ("control_frames", 0x89, b"", 5),
        ("bytes", 0x82, &[0; 100], 0),
    ] {
        let burst = if limits == "bytes" { 530 } else { 5 };
        let gateway = with_limits(&format!("{limits}_per_second = 1\n{limits}_burst = {burst}\n"));
        let mut other = Peer::open(gateway.address(), "/echo");
        let mut client = Peer::open(gateway.address(), "/echo");
        let (echoes, (code, reason)) = flood(&mut client, first, payload, 40);
        // A token a second may come back while it is read.
        assert!((within..40).contains(&echoes), "{limits}: {echoes}");
        assert_eq!((code, reason), (1008, format!("over {limits}_per_second")));
        client.send(0x88, &1008_u16.to_be_bytes());
        client.end();
        for _ in 0..4 {
            other.send(first, payload);
            other.frame();
        }
        other.send(0x88, b"");
        assert_eq!(other.frame(), Frame { first: 0x88, payload: Vec::new() });
        other.end();
        drop((client, other));
        gateway.stop().expect("client_close 1, rate_limited 1");
    }
}

/// Without any configuration a flood of Pings is no way to keep a shard busy.
#[test]
fn a_flood_of_pings_is_cut_off() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let mut client = Peer::open(gateway.address(), "/echo");
    // Fewer bytes than are read behind a failure: beyond those the end is a reset, which may take the
    // Close frame with it.
    let (_, close) = flood(&mut client, 0x89, b"", 20_000);
    assert_eq!(close, (1008, "over control_frames_per_second".to_owned()));
    drop(client);
    gateway.stop().expect("rate_limited 1");
}

#[test]
fn rooms_count_like_everybody() {
    let gateway = with_limits("messages_per_second = 1\nmessages_burst = 3\n");
    let mut client = Peer::open(gateway.address(), "/rooms?user=ann");
    let publish = br#"{"op":"publish","room":"r","data":"x"}"#;
    client.write(masked(0x81, publish).repeat(20));
    assert_eq!(client.close_frame(), (1008, "over messages_per_second".to_owned()));
    drop(client);
    gateway.stop().expect("rate_limited 1");
}

/// In a relay, nothing of the batch that goes over a limit passes, and the upstream is told 1001.
#[test]
fn a_relayed_client_over_its_rate_is_closed_between_frames() {
    let upstream = Upstream::listen();
    let limits = "[limits]\nmessages_per_second = 1\nmessages_burst = 5\n";
    let gateway = Gateway::start(&format!("{HEAD}{}{limits}", to_upstream(upstream.address())));
    let (mut other, mut other_behind) = upstream.join(&gateway);
    let (mut client, mut behind) = upstream.join(&gateway);
    for _ in 0..3 {
        client.send(0x82, b"ok");
        assert_eq!(behind.frame(), Frame { first: 0x82, payload: b"ok".to_vec() });
    }
    client.write(masked(0x82, b"flood").repeat(40));
    assert_eq!(client.close_frame(), (1008, "over messages_per_second".to_owned()));
    assert_eq!(behind.close_frame(), (1001, String::new()));
    behind.write(b"\x88\x02\x03\xE9");
    behind.end();
    client.send(0x88, &1008_u16.to_be_bytes());
    client.end();
    other.send(0x82, b"still here");
    assert_eq!(other_behind.frame().payload, b"still here");
    drop((other, other_behind, client, behind));
    let stopped = gateway.stop();
    assert_eq!(stopped.closed.get("rate_limited"), Some(&1), "{:?}", stopped.closed);
}

/// A Close frame cannot stand inside a frame that the upstream has half of: it sees the end alone.
#[test]
fn a_relayed_client_over_its_rate_in_the_middle_of_a_frame() {
    let upstream = Upstream::listen();
    let limits = "[limits]\nmessages_per_second = 1\nmessages_burst = 5\n";
    let gateway = Gateway::start(&format!("{HEAD}{}{limits}", to_upstream(upstream.address())));
    let (mut client, mut behind) = upstream.join(&gateway);
    let message = masked(0x82, &[7; 1000]);
    client.write(&message[..500]);
    assert_eq!(behind.bytes(500), message[..500]);
    client.write([&message[500..], &masked(0x82, b"flood").repeat(40)].concat());
    assert_eq!(client.close_frame().0, 1008);
    behind.end();
    drop((client, behind));
    gateway.stop().expect("rate_limited 1");
}

/// A throttled client is served in full: what it sends waits in its socket.
#[test]
fn throttling_loses_nothing() {
    let upstream = Upstream::listen();
    let config = format!(
        "{HEAD}[[route]]\npath = \"/echo\"\nbackend = \"echo\"\n[backend.echo]\nkind = \"echo\"\n\
         {}[limits]\nrate_action = \"throttle\"\nmessages_per_second = 200\nmessages_burst = 5\n",
        to_upstream(upstream.address())
    );
    let gateway = Gateway::start(&config);
    let mut echo = Peer::open(gateway.address(), "/echo");
    let (mut client, mut behind) = upstream.join(&gateway);
    for number in 0..300_u32 {
        echo.send(0x82, &number.to_be_bytes());
        client.send(0x82, &number.to_be_bytes());
    }
    for number in 0..300_u32 {
        assert_eq!(echo.frame().payload, number.to_be_bytes());
        assert_eq!(behind.frame().payload, number.to_be_bytes());
    }
    // Whoever is throttled can be stopped all the same.
    echo.write(masked(0x82, b"more").repeat(2000));
    echo.frame();
    gateway.terminate();
    assert_eq!(echo.close_frame().0, 1012);
    drop((echo, client, behind));
    assert_eq!(gateway.stopped().status.code(), Some(0));
}

/// `address_connections_max`, over both shards: exact, and given back.
#[test]
fn an_address_has_its_share_of_connections() {
    const MAX: usize = 10;
    let gateway = with_limits(&format!("address_connections_max = {MAX}\n"));
    let address = gateway.address();
    for _ in 0..2 {
        let mut inside: Vec<Peer> = Vec::new();
        let mut refused = 0;
        let deadline = Instant::now() + PATIENCE;
        // Those of the round before may take a moment to be gone.
        while inside.len() < MAX {
            assert!(Instant::now() < deadline, "{} of {MAX}", inside.len());
            let mut peer = Peer::connect(address);
            let head = ask(&mut peer, "/echo");
            match head.starts_with("HTTP/1.1 101 ") {
                true => inside.push(peer),
                false => refused += 1,
            }
        }
        for _ in 0..2 * MAX {
            let mut peer = Peer::connect(address);
            let head = ask(&mut peer, "/echo");
            expect_refusal(peer, &head, 429, "address_connections_max: ");
            refused += 1;
        }
        assert!(refused >= 2 * MAX);
        // Another address has a share of its own, and those inside go on.
        let mut others: Vec<Peer> = (0..MAX).map(|_| open_from(2, address, "/echo")).collect();
        for peer in inside.iter_mut().chain(&mut others) {
            peer.send(0x82, b"x");
            assert_eq!(peer.frame().payload, b"x");
        }
    }
    let stopped = gateway.stop();
    assert!(stopped.closed.get("rate_limited") >= Some(&(4 * MAX as u64)), "{:?}", stopped.closed);
}

#[test]
fn an_address_asks_for_so_many_upgrades() {
    let gateway = with_limits("address_handshakes_per_second = 1\naddress_handshakes_burst = 3\n");
    let (mut opened, mut refused) = (0, 0);
    while refused < 5 {
        let mut peer = Peer::connect(gateway.address());
        let head = ask(&mut peer, "/echo");
        if head.starts_with("HTTP/1.1 101 ") {
            opened += 1;
        } else {
            expect_refusal(peer, &head, 429, "address_handshakes_per_second: ");
            refused += 1;
        }
    }
    assert!(opened >= 3, "{opened}");
    open_from(2, gateway.address(), "/echo");
    let stopped = gateway.stop();
    assert_eq!(stopped.closed.get("rate_limited"), Some(&5), "{:?}", stopped.closed);
}

/// All connections of an address share its rates, and coming back does not make it forget.
#[test]
fn an_address_shares_its_rates() {
    for (limits, first) in [("messages", 0x82), ("control_frames", 0x89), ("bytes", 0x82)] {
        let burst = if limits == "bytes" { 12 * 7 } else { 12 };
        let gateway = with_limits(&format!(
            "address_{limits}_per_second = 1\naddress_{limits}_burst = {burst}\n"
        ));
        let mut one = Peer::open(gateway.address(), "/echo");
        let mut two = Peer::open(gateway.address(), "/echo");
        for _ in 0..4 {
            for peer in [&mut one, &mut two] {
                peer.send(first, b"x");
                peer.frame();
            }
        }
        let over = (1008, format!("over address_{limits}_per_second"));
        assert_eq!(flood(&mut one, first, b"x", 400).1, over);
        let mut again = Peer::open(gateway.address(), "/echo");
        assert_eq!(flood(&mut again, first, b"x", 400).1, over);
        let mut other = open_from(2, gateway.address(), "/echo");
        other.send(first, b"x");
        other.frame();
        drop((one, two, again, other));
        let stopped = gateway.stop();
        assert_eq!(stopped.closed.get("rate_limited"), Some(&2), "{:?}", stopped.closed);
    }
}

/// `connections_max` of a route, over both shards: others have none, and a place is given back.
#[test]
fn a_route_has_so_many_clients() {
    let route = "[[route]]\npath = \"/few\"\nbackend = \"echo\"\nconnections_max = 3\n";
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{route}"));
    let address = gateway.address();
    let mut inside: Vec<Peer> = (0..3).map(|_| Peer::open(address, "/few")).collect();
    for _ in 0..6 {
        let mut peer = Peer::connect(address);
        let head = ask(&mut peer, "/few");
        expect_refusal(peer, &head, 503, "connections_max: this route");
    }
    Peer::open(address, "/echo");
    inside.pop();
    wait_for_a_place(address, "/few");
    for peer in &mut inside {
        peer.send(0x82, b"x");
        assert_eq!(peer.frame().payload, b"x");
    }
    let stopped = gateway.stop();
    assert!(stopped.closed.get("memory_pressure") >= Some(&6), "{:?}", stopped.closed);
}

/// Connections that say nothing, renewed all the time, against clients that speak: of other addresses,
/// and of the same.
#[test]
fn who_asks_for_nothing_keeps_nobody_out() {
    let gateway = with_limits("connections_max = 200\n");
    let address = gateway.address();
    let mut silent: VecDeque<Peer> = (0..264).map(|_| connect_from(2, address)).collect();
    let mut served = Vec::new();
    for round in 0..60 {
        for _ in 0..8 {
            silent.pop_front();
            silent.push_back(connect_from(2, address));
        }
        served.push(open_from(if round % 4 == 0 { 2 } else { 3 }, address, "/echo"));
    }
    for client in &mut served {
        client.send(0x82, b"x");
        assert_eq!(client.frame().payload, b"x");
    }
}

/// More clients at once than the tables have slots: each is served or told to come back, at once or
/// when others have left; none is cut off.
#[test]
fn a_burst_beyond_the_table_is_not_reset() {
    let head = HEAD.replace("slots_per_shard = 4096", "slots_per_shard = 256");
    let gateway = Gateway::start(&format!("{head}{ECHO_AND_ROOMS}"));
    let address = gateway.address();
    let mut clients = Vec::new();
    for _ in 0..1500 {
        let mut peer = Peer::connect(address);
        peer.write(upgrade("/echo", ""));
        clients.push(peer);
    }
    let mut served = 0;
    for mut peer in clients {
        let head = peer.head();
        served += u32::from(head.starts_with("HTTP/1.1 101 "));
        assert!(head.starts_with("HTTP/1.1 101 ") || head.starts_with("HTTP/1.1 503 "), "{head}");
    }
    assert!(served > 256, "{served}");
}

/// Asks again and again until a place is free; the client that got it.
#[track_caller]
fn wait_for_a_place(address: SocketAddr, target: &str) -> Peer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut peer = Peer::connect(address);
        let head = ask(&mut peer, target);
        if head.starts_with("HTTP/1.1 101 ") {
            return peer;
        }
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(Instant::now() < deadline, "no place became free");
    }
}

/// `limits.connections_max` is about clients (their upstreams do not count) of all shards together.
/// Above it they are told to come back, and those who wait in the reserve are served when they can be.
#[test]
fn above_the_limit_clients_are_told_to_come_back() {
    let upstream = Upstream::listen();
    let limits = "[limits]\nconnections_max = 2\n";
    let gateway = Gateway::start(&format!("{HEAD}{}{limits}", to_upstream(upstream.address())));
    let address = gateway.address();
    let (first, first_behind) = upstream.join(&gateway);
    let (mut second, mut second_behind) = upstream.join(&gateway);
    for _ in 0..10 {
        let mut peer = Peer::connect(address);
        let head = ask(&mut peer, "/");
        expect_refusal(peer, &head, 503, "connections_max: the gateway");
    }
    // More silent ones than any reserve holds; behind them somebody waits to be accepted.
    let silent: Vec<Peer> = (0..200).map(|_| Peer::connect(address)).collect();
    let mut waits = Peer::connect(address);
    waits.write(upgrade("/", ""));
    drop(silent);
    let head = waits.head();
    expect_refusal(waits, &head, 503, "connections_max: the gateway");
    second.send(0x82, b"x");
    assert_eq!(second_behind.frame().payload, b"x");

    drop((first, first_behind));
    let deadline = Instant::now() + PATIENCE;
    upstream.0.set_nonblocking(true).expect("a socket");
    loop {
        let mut peer = Peer::connect(address);
        peer.write(upgrade("/", ""));
        // An upstream is asked for nobody but a client that is served.
        let behind = loop {
            match upstream.0.accept() {
                Ok((stream, _)) => break Some(stream),
                Err(_) if peer.has_bytes() => break None,
                Err(_) => std::thread::yield_now(),
            }
        };
        if let Some(stream) = behind {
            stream.set_nonblocking(false).expect("a socket");
            let mut behind = Peer::new(stream);
            let request = behind.head();
            behind.write(switching(&request, ""));
            assert!(peer.head().starts_with("HTTP/1.1 101 "));
            break;
        }
        let head = peer.head();
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(Instant::now() < deadline, "no place became free");
    }
    let stopped = gateway.stop();
    assert!(stopped.closed.get("memory_pressure") >= Some(&11), "{:?}", stopped.closed);
}
