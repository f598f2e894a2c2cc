//! The operator looks at clients, and closes some of them.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{
    ECHO_AND_ROOMS, Gateway, HEAD, Peer, Scratch, Upstream, binary, masked, retry_after_ms,
};

/// A gateway with echo, rooms and an upstream, and its admin socket.
struct Operated {
    gateway: Gateway,
    upstream: Upstream,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Operated {
    fn start() -> Operated {
        let scratch = Scratch::new("operator");
        let socket = scratch.path().join("admin.sock");
        let upstream = Upstream::listen();
        let gateway = Gateway::start(&format!(
            "{HEAD}{ECHO_AND_ROOMS}[[route]]\npath = \"/app\"\nbackend = \"app\"\n[backend.app]\n\
             kind = \"websocket\"\nurl = \"ws://{}\"\n[admin]\nsocket = \"{}\"\n",
            upstream.address(),
            socket.display()
        ));
        Operated { gateway, upstream, socket, _scratch: scratch }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        let command = command.args(&arguments[..1]).arg("--socket").arg(&self.socket);
        command.args(&arguments[1..]).output().expect("it runs")
    }

    /// What `penstock conns --json` lists under these options.
    #[track_caller]
    fn list(&self, options: &[&str]) -> Vec<Value> {
        let answer = self.page(options);
        answer["connections"].as_array().expect("a list").clone()
    }

    #[track_caller]
    fn page(&self, options: &[&str]) -> Value {
        let output = self.ask(&[&["conns", "--json"], options].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// How many `penstock close` closed.
    #[track_caller]
    fn close(&self, options: &[&str]) -> u64 {
        let output = self.ask(&[&["close"], options].concat());
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        answer["closed"].as_u64().expect("a number")
    }

    /// A client in a room.
    fn member(&self, user: &str, room: &str) -> Peer {
        let mut peer = Peer::open(self.gateway.address(), &format!("/rooms?user={user}"));
        peer.send(0x81, format!(r#"{{"op":"join","room":"{room}"}}"#).as_bytes());
        // Who it is, and that it is in.
        peer.frame();
        peer.frame();
        peer
    }

    /// A client of the upstream, and the upstream's end.
    fn relayed(&self) -> (Peer, Peer) {
        self.upstream.join_by(self.gateway.address(), "/app")
    }
}

#[test]
fn clients_are_found_by_what_they_are() {
    let gateway = Operated::start();
    let _members = [("ann", "a"), ("ann", "b"), ("bob", "b")].map(|(u, r)| gateway.member(u, r));
    let (mut client, mut server) = gateway.relayed();
    client.send(0x81, b"12345");
    server.frame();
    server.write(b"\x82\x03abc\x82\x03def");
    client.frame();
    client.frame();

    for (options, want) in [
        (&[][..], 4),
        (&["--state", "rooms"], 3),
        (&["--user", "ann"], 2),
        (&["--room", "b"], 2),
        (&["--user", "ann", "--room", "b"], 1),
        (&["--user", "nobody"], 0),
        (&["--address", "127.0.0.0/8"], 4),
        (&["--address", "10.0.0.0/8"], 0),
        (&["--route", "/rooms"], 3),
        (&["--backend", "app"], 1),
        (&["--backend", "echo"], 0),
        (&["--outbox-bytes-min", "1"], 0),
        (&["--age-min-ms", "3600000"], 0),
    ] {
        assert_eq!(gateway.list(options).len(), want, "{options:?}");
    }
    let url = format!("ws://{}", gateway.upstream.address());
    let found = gateway.list(&["--upstream", &url]);
    let [relayed] = &found[..] else { panic!("{found:?}") };
    assert_eq!(relayed["upstream"], url.as_str());
    assert_eq!(relayed["state"], "relay");
    assert_eq!(relayed["traffic"]["received_messages"], 1);
    assert_eq!(relayed["traffic"]["sent_messages"], 2);
    let id = relayed["id"].as_str().expect("an id");
    let again = gateway.list(&["--id", id]);
    assert!(again.len() == 1 && again[0]["peer"] == relayed["peer"], "{again:?}");

    // In pages, everybody comes once.
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let from = if after.is_empty() { vec![] } else { vec!["--after", after.as_str()] };
        let page = gateway.page(&[&["--limit", "1"][..], &from].concat());
        let ids = page["connections"].as_array().expect("a list").iter();
        seen.extend(ids.map(|it| it["id"].as_str().expect("an id").to_owned()));
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    let (count, mut distinct) = (seen.len(), seen);
    distinct.sort();
    distinct.dedup();
    assert_eq!((count, distinct.len()), (4, 4));
}

#[test]
fn clients_are_closed_by_what_they_are() {
    let gateway = Operated::start();
    let mut ann = gateway.member("ann", "a");
    let mut bob = gateway.member("bob", "a");
    let (mut client, mut server) = gateway.relayed();
    let mut echo = Peer::open(gateway.gateway.address(), "/echo");

    assert_eq!(gateway.close(&["--user", "ann", "--code", "4001", "--reason", "moved"]), 1);
    assert_eq!(ann.close_frame(), (4001, "moved".to_owned()));
    assert_eq!(gateway.close(&["--backend", "app"]), 1);
    let (code, reason) = client.close_frame();
    retry_after_ms(&reason);
    assert_eq!(code, 1012);
    assert_eq!(server.close_frame().0, 1001);
    // The others are as they were.
    echo.send(0x81, b"still here");
    assert_eq!(echo.frame().payload, b"still here");
    assert_eq!(gateway.close(&["--all"]), 2);
    for peer in [&mut bob, &mut echo] {
        assert_eq!(peer.close_frame().0, 1012);
        peer.send(0x88, b"");
        peer.end();
    }
    drop((ann, bob, client, server, echo));
    gateway.gateway.stop().expect("admin_close 4");
}

/// The frame that passes ends first, whichever way it goes; both sides are told behind it.
#[test]
fn a_relay_is_closed_behind_the_frame_that_passes() {
    let gateway = Operated::start();
    for from_server in [true, false] {
        let (mut client, mut server) = gateway.relayed();
        let (frame, begin) = match from_server {
            true => (b"\x82\x06abcdef".to_vec(), 5),
            false => (masked(0x82, b"abcdef"), 9),
        };
        let (from, to) = match from_server {
            true => (&mut server, &mut client),
            false => (&mut client, &mut server),
        };
        from.write(&frame[..begin]);
        assert_eq!(to.bytes(begin), frame[..begin]);
        let close = ["--state", "relay", "--code", "4001", "--reason", "moved"];
        assert_eq!(gateway.close(&close), 1);
        assert_eq!(gateway.close(&close), 0, "it leaves already");
        from.write(&frame[begin..]);
        assert_eq!(to.bytes(frame.len() - begin), frame[begin..]);
        assert_eq!(client.close_frame(), (4001, "moved".to_owned()));
        assert_eq!(server.close_frame().0, 1001);
        client.end();
    }
    gateway.gateway.stop().expect("admin_close 2");
}

#[test]
fn who_waits_for_an_answer_is_told_who_closed() {
    let gateway = Operated::start();
    for request in
        [crate::support::upgrade("/app", ""), "GET /app HTTP/1.1\r\nHost: test\r\n\r\n".into()]
    {
        let mut client = Peer::connect(gateway.gateway.address());
        client.write(request);
        let _server = gateway.upstream.accept();
        assert_eq!(gateway.close(&["--all"]), 1);
        let answer = client.rest();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("the operator has closed this connection"), "{answer}");
    }
    gateway.gateway.stop().expect("admin_close 2");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let gateway = Operated::start();
    for (arguments, why) in [
        (&["close"][..], "who is to be closed?"),
        (&["close", "--all", "--code", "1005"], "`code` is 1005: a Close frame may carry"),
        (&["close", "--all", "--code", "5000"], "`code` is 5000"),
        (
            &["conns", "--address", "10.0.0.1/8"],
            "`address` is \"10.0.0.1/8\": the address has bits",
        ),
        (&["conns", "--route", "/nowhere"], "no route has this"),
        (&["conns", "--upstream", "ws://x"], "`upstream` is \"ws://x\": no backend has it"),
        (&["conns", "--state", "relayed"], "`state` is \"relayed\": no client is in that"),
        (&["conns", "--id", "7"], "`id` is \"7\": not of the form"),
        (&["conns", "--after", "x"], "`after` is not the `next` of an answer"),
        (&["conns", "--limit", "0"], "`limit` is 0: choose"),
    ] {
        let output = gateway.ask(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(errors.contains(why), "{arguments:?}: {errors}");
    }
    let reason = "x".repeat(124);
    let output = gateway.ask(&["close", "--all", "--reason", &reason]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("`reason` has 124 bytes"));
}
