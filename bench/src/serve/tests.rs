//! What every server that echoes does alike, as raw bytes of a client, and which options are
//! refused.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Options, Turns};
use crate::load;
use crate::options::tests::{parse, try_parse};
use crate::outcome::Watch;
use crate::tests::with_server;
use crate::websocket::{
    BINARY, CLOSE, CONTINUATION, Offer, PING, PONG, Request, TEXT, accept, decode_frame,
    decode_response, encode_frame, encode_request, key,
};

/// A client on an ordinary socket.
struct Client {
    stream: TcpStream,
    /// What has come and was not looked at.
    received: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        // Only a server that hangs is so late.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut client = Client { stream, received: Vec::new() };
        let mut request = Vec::new();
        let asked = Request {
            host: &address.to_string(),
            path: "/",
            key: &key(1),
            subprotocols: "",
            deflate: false,
            headers: &[],
        };
        encode_request(&mut request, &asked);
        let (first, second) = request.split_at(request.len() / 2);
        client.write(first);
        client.write(second);
        loop {
            let offer = Offer { accept: &accept(&key(1)), subprotocols: "", deflate: false };
            if let Some(answer) = decode_response(&client.received, &offer).unwrap() {
                client.received.drain(..answer.head_bytes);
                return client;
            }
            assert!(client.read() > 0, "the end instead of an answer");
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Receives something; 0 at the end of the stream.
    fn read(&mut self) -> usize {
        let mut bytes = [0; 65_536];
        let len = self.stream.read(&mut bytes).unwrap();
        self.received.extend_from_slice(&bytes[..len]);
        len
    }

    /// The next frame: its opcode, whether it is the last of its message, its payload.
    fn frame(&mut self) -> (u8, bool, Vec<u8>) {
        loop {
            if let Some((frame, len)) = decode_frame(&self.received).unwrap() {
                let frame = (frame.opcode, frame.fin, frame.payload.to_vec());
                self.received.drain(..len);
                return frame;
            }
            assert!(self.read() > 0, "the end instead of a frame");
        }
    }

    #[track_caller]
    fn assert_echoes(&mut self, opcode: u8, payload: &[u8]) {
        self.write(&frame(opcode, payload));
        // No assert_eq: nobody wants to read 300 kB.
        let same = self.frame() == (opcode, true, payload.to_vec());
        assert!(same, "opcode {opcode}, {} bytes", payload.len());
    }
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    encode_frame(&mut wire, opcode, payload, 0x1234_5678);
    wire
}

/// The same with another that belongs to its message to follow.
fn first_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut wire = frame(opcode, payload);
    wire[0] &= 0x7F;
    wire
}

/// Clients that `assert_is_an_echo` has connected.
const CLIENTS: u64 = 6;

#[track_caller]
fn assert_is_an_echo(address: SocketAddr) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..300_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
    let mut client = Client::connect(address);
    for len in [0, 1, 125, 126, 1024, 1025, 8191, 8192, 20_000, 65_535, 65_536] {
        client.assert_echoes(TEXT, &vec![b'x'; len]);
    }
    client.assert_echoes(TEXT, "Grüße, 世界".as_bytes());
    client.assert_echoes(BINARY, &all_bytes);
    client.assert_echoes(BINARY, b"");
    client.assert_echoes(BINARY, &large);
    client.assert_echoes(TEXT, b"small again");

    // Several in one piece, the last of them with its end to come.
    let mut wire = [frame(TEXT, b"one"), frame(BINARY, &all_bytes), frame(TEXT, b"")].concat();
    let last = frame(TEXT, b"two");
    wire.extend_from_slice(&last[..5]);
    client.write(&wire);
    for (opcode, payload) in [(TEXT, &b"one"[..]), (BINARY, &all_bytes), (TEXT, b"")] {
        assert_eq!(client.frame(), (opcode, true, payload.to_vec()));
    }
    client.write(&last[5..]);
    assert_eq!(client.frame(), (TEXT, true, b"two".to_vec()));

    // TCP may cut anywhere.
    let wire = [frame(TEXT, b"here and there"), frame(PING, b"?")].concat();
    for cut in 0..=wire.len() {
        client.write(&wire[..cut]);
        client.write(&wire[cut..]);
        assert_eq!(client.frame(), (TEXT, true, b"here and there".to_vec()), "cut at {cut}");
        assert_eq!(client.frame(), (PONG, true, b"?".to_vec()), "cut at {cut}");
    }

    // RFC 6455 §5.4: fragments, with a Ping between them. Whether they come back one by one or
    // as one message is the server's choice.
    client.write(&first_frame(TEXT, b"in three "));
    client.write(&frame(PING, b"are you there"));
    client.write(&first_frame(CONTINUATION, b""));
    client.write(&frame(CONTINUATION, b"fragments"));
    let (mut message, mut pongs) = (Vec::new(), Vec::new());
    let mut expected = TEXT;
    loop {
        let (opcode, fin, payload) = client.frame();
        if opcode == PONG {
            pongs.push(payload);
            continue;
        }
        assert_eq!(opcode, expected);
        expected = CONTINUATION;
        message.extend_from_slice(&payload);
        if fin {
            break;
        }
    }
    assert_eq!(message, b"in three fragments");
    assert_eq!(pongs, [b"are you there"]);
    client.assert_echoes(TEXT, b"and on it goes");

    // §5.5.1, §7.4: the client's code comes back, and then the end; every code on a connection of
    // its own, for a Close frame is the last.
    let mut clients = vec![client];
    clients.resize_with(CLIENTS as usize, || Client::connect(address));
    let payloads: [&[u8]; CLIENTS as usize] =
        [b"\x03\xE8", b"\x03\xE9leaving", b"\x10\xE1", b"\x0B\xB8", b"\x03\xF3", b""];
    for (mut client, payload) in clients.into_iter().zip(payloads) {
        client.write(&frame(CLOSE, payload));
        let (opcode, fin, answer) = client.frame();
        assert_eq!((opcode, fin), (CLOSE, true));
        // A reason need not come back.
        assert_eq!(answer.get(..2), payload.get(..2));
        assert_eq!((client.read(), client.received.len()), (0, 0), "the end");
    }
}

/// What is behind `address`, a client that stays and one that goes in the middle of a frame: a
/// server that is told to stop does not wait for either.
fn leave_open(address: SocketAddr) -> Client {
    let mut client = Client::connect(address);
    client.write(&first_frame(TEXT, b"gone before the end"));
    drop(client);
    let mut client = Client::connect(address);
    client.assert_echoes(TEXT, b"still here");
    client
}

#[track_caller]
fn check(runtime: &str) {
    let line = format!("--runtime {runtime}");
    let ((), report) = with_server(&line, assert_is_an_echo);
    assert_eq!(report["server"], runtime);
    assert_eq!(report["accepted_count"], CLIENTS, "{report:#}");
    assert_eq!(report["accept_errors_count"], 0, "{report:#}");
    let (_client, report) = with_server(&line, leave_open);
    assert_eq!(report["accepted_count"], 2, "{report:#}");
}

#[test]
fn ring_echo_is_an_echo() {
    check("ring-echo");
}

#[test]
fn tokio_is_an_echo() {
    check("tokio");
}

#[test]
fn monoio_is_an_echo() {
    check("monoio");
}

#[test]
fn tokio_uring_is_an_echo() {
    check("tokio-uring");
}

#[test]
fn ring_relay_passes_an_echo_on() {
    let ((), report) = with_server("--runtime ring-echo", |upstream| {
        let line = format!("--runtime ring-relay --upstream {upstream}");
        let ((), report) = with_server(&line, assert_is_an_echo);
        assert_eq!(report["relayed_count"], CLIENTS, "{report:#}");
        let (_client, report) = with_server(&line, leave_open);
        assert_eq!(report["relayed_count"], 2, "{report:#}");
    });
    assert_eq!(report["accepted_count"], CLIENTS + 2, "{report:#}");
}

/// In a second there is always a whole stall of 0.2 s every 0.7 s, which is a fifth of all
/// messages at a fixed rate: those that come due in it wait for its end.
#[test]
fn a_stall_shows_in_the_corrected_latency_whatever_the_runtime() {
    for runtime in ["ring-echo", "tokio", "monoio", "tokio-uring"] {
        let line = format!("--runtime {runtime} --stall-every 0.7s --stall-for 0.2s");
        let (load, server) = with_server(&line, |address| {
            let line = format!(
                "--url ws://{address}/ --connections 5 --rate 500/s --seconds 1 --in-flight-max 1"
            );
            let options = parse(&format!("{line} --warm-up-seconds 0"));
            let stop = AtomicBool::new(false);
            Value::Object(load::run(&options, &Watch::new(&stop)).unwrap().figures)
        });
        assert_eq!(load["back_count"], 500, "{runtime}: {load:#}");
        let p99_us = load["latency_us"]["p99"].as_f64().unwrap();
        assert!(p99_us >= 150_000.0, "{runtime}: {load:#}");
        assert!(server["stalls_count"].as_u64() >= Some(1), "{runtime}: {server:#}");
    }
}

#[test]
fn a_server_in_a_stall_can_be_stopped() {
    let line = "--runtime ring-echo --stall-every 3601s --stall-for 3600s --seconds 86400";
    let options = parse::<Options>(line);
    let stop = AtomicBool::new(false);
    let watch = Watch::new(&stop);
    let mut turns = Turns::new(&options, &watch);
    turns.stall.as_mut().unwrap().next = Instant::now();
    thread::scope(|scope| {
        // Whether before the stall or in it.
        scope.spawn(|| stop.store(true, Ordering::Relaxed));
        turns.next(false);
    });
    assert!(!turns.next(false));
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    for (line, why) in [
        ("--runtime send-loop --rings 2", "only ring-echo and ring-relay have --rings"),
        ("--runtime ring-echo --upstream 127.0.0.1:1", "only ring-relay has an --upstream"),
        (
            "--runtime ring-echo --stall-every 1s --stall-for 1s",
            "--stall-for should be shorter than --stall-every",
        ),
        ("--runtime ring-echo --address 192.0.2.1:1", "192.0.2.1:1 is not on loopback"),
        ("--runtime ring-relay --upstream 192.0.2.1:1", "192.0.2.1:1 is not on loopback"),
    ] {
        let stop = AtomicBool::new(true);
        let options = parse::<Options>(line);
        let error = super::serve(&options, &Watch::new(&stop), |_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{line}: {error}");
    }
    for (line, why) in [
        ("--runtime ring-relay", "--upstream <ADDRESS>"),
        ("--runtime nonesuch", "possible values: ring-echo, ring-relay, send-loop"),
        ("--runtime ring-echo --stall-every 1s", "--stall-for <SECONDS>"),
        ("--runtime ring-echo --stall-for 1s", "--stall-every <SECONDS>"),
        ("", "--runtime <RUNTIME>"),
    ] {
        let error = try_parse::<Options>(line).unwrap_err();
        assert!(error.contains(why), "{line}: {error}");
    }
}
