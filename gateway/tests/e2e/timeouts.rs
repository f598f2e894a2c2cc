//! Silence and age on a real kernel, with clients and servers that people use. When exactly, and
//! between which frames, is what the simulation is about.

use crate::support::{
    ECHO_AND_ROOMS, Frame, Gateway, HEAD, Peer, Program, Upstream, masked, retry_after_ms,
    to_upstream,
};

/// The test waits for each of these to happen, so short times make nothing flaky.
fn start(routes: &str, limits: &str) -> Gateway {
    Gateway::start(&format!("{HEAD}{routes}[limits]\n{limits}"))
}

/// A client and its upstream, joined by a gateway with these limits.
fn start_joined(limits: &str) -> (Gateway, Peer, Peer) {
    let upstream = Upstream::listen();
    let gateway = start(&to_upstream(upstream.address()), limits);
    let (client, server) = upstream.join(&gateway);
    (gateway, client, server)
}

#[track_caller]
fn expect_retry_after((code, reason): (u16, String)) {
    assert_eq!(code, 1012);
    retry_after_ms(&reason);
}

/// One of the gateway's own.
#[track_caller]
fn expect_ping(peer: &mut Peer) {
    let ping = peer.frame();
    assert_eq!((ping.first, ping.payload.len()), (0x89, 8));
}

#[test]
fn idle_clients_are_closed() {
    let upstream = Upstream::listen();
    let relay = to_upstream(upstream.address());
    let limits = "idle_timeout_ms = 300\nping_interval_ms = 100\n";
    let gateway = start(&format!("{ECHO_AND_ROOMS}{relay}"), limits);
    for path in ["/echo", "/rooms"] {
        let mut client = Peer::open(gateway.address(), path);
        assert_eq!(client.close_frame(), (1001, "idle timeout".to_owned()));
    }
    let (mut client, mut server) = upstream.join(&gateway);
    assert_eq!(client.close_frame(), (1001, "idle timeout".to_owned()));
    client.end();
    assert_eq!(server.close_frame().0, 1001);
    gateway.stop().expect("client_timeout_idle 3");
}

#[test]
fn clients_are_sent_away_after_their_time() {
    let upstream = Upstream::listen();
    let relay = to_upstream(upstream.address());
    let gateway = start(&format!("{ECHO_AND_ROOMS}{relay}"), "duration_max_ms = 500\n");
    for path in ["/echo", "/rooms"] {
        expect_retry_after(Peer::open(gateway.address(), path).close_frame());
    }
    let (mut client, mut server) = upstream.join(&gateway);
    expect_retry_after(client.close_frame());
    client.end();
    assert_eq!(server.close_frame().0, 1001);
    gateway.stop().expect("duration_limit 3");
}

#[test]
fn one_frame_has_a_limit_on_either_way() {
    let upstream = Upstream::listen();
    let relay = to_upstream(upstream.address());
    let gateway = start(&format!("{ECHO_AND_ROOMS}{relay}"), "frame_bytes_max = 1000\n");
    let mut client = Peer::open(gateway.address(), "/echo");
    client.write([masked(0x02, &[7; 1000]), masked(0x80, &[7; 1000])].concat());
    assert_eq!(client.frame(), Frame { first: 0x82, payload: vec![7; 2000] });
    client.send(0x82, &[7; 1001]);
    assert_eq!(client.close_frame().0, 1009);
    let (mut client, mut server) = upstream.join(&gateway);
    client.write([masked(0x02, &[7; 1000]), masked(0x80, &[7; 1001])].concat());
    assert_eq!(client.close_frame().0, 1009);
    assert_eq!(server.frame(), Frame { first: 0x02, payload: vec![7; 1000] });
    // What an upstream sends is not the client's.
    let (mut client, mut server) = upstream.join(&gateway);
    server.write([&[0x82, 126, 0x07, 0xD0][..], &[7; 2000]].concat());
    assert_eq!(client.frame(), Frame { first: 0x82, payload: vec![7; 2000] });
    drop(client);
    server.end();
    gateway.stop().expect("client_gone 1, too_big 2");
}

/// A route may say something else than the limits.
#[test]
fn a_route_has_its_own_times() {
    let routes = ECHO_AND_ROOMS.replacen(
        "backend = \"echo\"\n",
        "backend = \"echo\"\nidle_timeout_ms = 200\n",
        1,
    );
    let gateway = start(&routes, "");
    let _rooms = Peer::open(gateway.address(), "/rooms");
    assert_eq!(Peer::open(gateway.address(), "/echo").close_frame().0, 1001);
    gateway.stop().expect("client_timeout_idle 1, drain 1");
}

#[test]
fn a_client_of_a_relay_that_does_not_answer_is_closed() {
    let limits = "ping_interval_ms = 100\nping_timeout_ms = 200\n";
    let (gateway, mut client, mut server) = start_joined(limits);
    expect_ping(&mut client);
    client.end();
    server.end();
    gateway.stop().expect("client_timeout_ping 1");
}

#[test]
fn an_upstream_that_does_not_answer_is_left() {
    let limits = "upstream_ping_interval_ms = 100\nping_timeout_ms = 200\n";
    let (gateway, mut client, mut server) = start_joined(limits);
    expect_ping(&mut server);
    expect_retry_after(client.close_frame());
    client.end();
    server.end();
    gateway.stop().expect("backend_timeout 1");
}

/// Clients answer, and stay; what is behind hears nothing of it.
#[test]
fn clients_that_people_use_answer() {
    let upstream = Upstream::listen();
    let limits = "ping_interval_ms = 300\nupstream_ping_interval_ms = 300\n";
    let gateway = start(&to_upstream(upstream.address()), limits);
    let url = gateway.url("/");
    let starts: [fn(&str) -> Program; 2] = [
        |url| Program::node("client.js", &["crash", url]),
        |url| Program::python("websockets_client.py", &["crash", url]),
    ];
    for start in starts {
        let client = start(&url);
        let (mut server, head) = upstream.accept();
        server.write(crate::support::switching(&head, ""));
        // Meanwhile the client is silent, but for the Pongs that must not come through.
        let mut pings = 0;
        while pings < 4 {
            let Frame { first, payload } = server.frame();
            match first {
                0x81 => server.write([&[0x81, payload.len() as u8][..], &payload].concat()),
                0x89 => {
                    pings += 1;
                    server.write([&[0x8A, 8][..], &payload].concat());
                }
                other => panic!("{other:#x} {payload:?}"),
            }
        }
        drop(server);
        client.success();
    }
    gateway.stop().expect("backend_gone 2");
}

/// Servers answer, get no Pong that they have not asked for while the client is silent, and take
/// one that comes behind data.
#[test]
fn servers_that_people_use_are_not_disturbed() {
    let limits = "ping_interval_ms = 50\nupstream_ping_interval_ms = 50\n";
    let mut ws = Program::node("server.js", &[]);
    let gateway = start(&to_upstream(ws.listening()), limits);
    let mut client = Peer::open(gateway.address(), "/pings");
    let ours = answer_pings(&mut client, 10);
    // The second was sent because the first was answered.
    assert_eq!([ws.line(), ws.line(), ws.line()], ["pinged", "pinged", "pinged"]);
    client.write([masked(0x81, b"hello"), masked(0x8A, &ours)].concat());
    expect_data(&mut client, b"hello");
    // There was none before that.
    let last = ws.line_with("ponged");
    assert_eq!(last, "ponged behind 1");
    say_goodbye(client);
    gateway.stop().expect("client_close 1");

    let mut websockets = Program::python("websockets_server.py", &[]);
    let mut socket_io = Program::node("socketio_server.js", &["a"]);
    for (address, target, says, hears) in [
        (websockets.listening(), "/", "hello", "hello"),
        (socket_io.listening(), "/socket.io/?EIO=4&transport=websocket", "40", "40{"),
    ] {
        let gateway = start(&to_upstream(address), limits);
        let mut client = Peer::open(gateway.address(), target);
        if says == "40" {
            expect_data(&mut client, b"0{");
        }
        let ours = answer_pings(&mut client, 10);
        client.write([masked(0x81, says.as_bytes()), masked(0x8A, &ours)].concat());
        expect_data(&mut client, hears.as_bytes());
        answer_pings(&mut client, 3);
        say_goodbye(client);
        gateway.stop().expect("client_close 1");
    }
}

/// Answers so many Pings; returns what they carry.
#[track_caller]
fn answer_pings(client: &mut Peer, count: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut answered = 0;
    while answered < count {
        let frame = client.frame();
        assert_ne!(frame.first & 0x0F, 8, "{frame:?}");
        // A room of Socket.IO may have something to say.
        if frame.first == 0x89 {
            client.send(0x8A, &frame.payload);
            payload = frame.payload;
            answered += 1;
        }
    }
    payload
}

#[track_caller]
fn say_goodbye(mut client: Peer) {
    client.send(0x88, &1000_u16.to_be_bytes());
    assert_eq!(client.close_frame().0, 1000);
    client.end();
}

/// The next message begins so.
#[track_caller]
fn expect_data(client: &mut Peer, start: &[u8]) {
    loop {
        let frame = client.frame();
        match frame.first {
            0x89 => client.send(0x8A, &frame.payload),
            _ => return assert!(frame.payload.starts_with(start), "{frame:?}"),
        }
    }
}
