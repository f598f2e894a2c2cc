//! Memory is short: what gives way, and who does not notice.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use gateway::admin::client::ask;
use serde_json::Value;

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, PATIENCE, Peer, upgrade};

const BUDGET: u64 = 64 << 20;

/// What a process has that is not on the heap, and what its allocator keeps beside what was asked for:
/// 45 to 49 MiB were seen, where all that is asked for would be 640 MB.
const BESIDE: u64 = 64 << 20;

/// Those who together ask for five times the budget.
const HOSTILE: usize = 320;

struct Scene {
    gateway: Gateway,
    socket: PathBuf,
}

impl Scene {
    fn start(name: &str) -> Scene {
        let name = format!("shortage-{name}-{}.sock", std::process::id());
        let socket = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let head = HEAD.replace("[server]\n", &format!("[server]\nmemory_bytes_max = {BUDGET}\n"));
        let admin = format!("[admin]\nsocket = \"{}\"\n", socket.display());
        let gateway = Gateway::start(&format!("{head}{ECHO_AND_ROOMS}{admin}"));
        Scene { gateway, socket }
    }

    /// The line of `memory` in the status.
    fn memory(&self) -> Memory {
        let (status, body) = ask(&self.socket, Method::GET, "/api/v1/status").expect("an answer");
        assert_eq!(status, StatusCode::OK);
        let status: Value = serde_json::from_slice(&body).expect("JSON");
        let number = |key: &str| status["memory"][key].as_u64().expect("a number");
        assert_eq!(number("budget_bytes"), BUDGET);
        assert!(number("used_bytes") <= BUDGET, "{status}");
        Memory { assemblies: number("ended_assemblies"), consumers: number("ended_consumers") }
    }

    /// A client that is let in, as soon as there is memory for it.
    fn newcomer(&self) -> Peer {
        let began = Instant::now();
        loop {
            let mut client = Peer::connect(self.gateway.address());
            client.write(upgrade("/echo", ""));
            if client.head().starts_with("HTTP/1.1 101 ") {
                return client;
            }
            assert!(began.elapsed() < PATIENCE, "clients are still refused");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Hostile clients pour `bytes` each, while a good one is answered and the process stays within its
    /// budget. Returns them.
    fn pours(&self, bytes: &[u8], good: &mut Peer, before: u64) -> Vec<TcpStream> {
        let mut hostile: Vec<TcpStream> = (0..HOSTILE).map(|_| opened(self)).collect();
        for client in &mut hostile {
            pour(client, bytes);
            says(good);
            let resident = self.gateway.resident_bytes();
            assert!(resident < before + BUDGET + BESIDE, "{resident}");
        }
        hostile
    }

    /// Memory goes back to the kernel once those who asked for it are gone.
    fn is_back_at(&self, before: u64) {
        let began = Instant::now();
        while self.gateway.resident_bytes() > before + (20 << 20) {
            assert!(began.elapsed() < PATIENCE, "{} of {before}", self.gateway.resident_bytes());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[derive(Debug)]
struct Memory {
    assemblies: u64,
    consumers: u64,
}

/// Writes what a peer takes that may close meanwhile.
fn pour(client: &mut TcpStream, bytes: &[u8]) {
    client.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let _ = client.write_all(bytes);
}

fn opened(scene: &Scene) -> TcpStream {
    let mut client = TcpStream::connect(scene.gateway.address()).expect("a connection");
    client.write_all(upgrade("/echo", "").as_bytes()).expect("it is read");
    client
}

#[track_caller]
fn says(client: &mut Peer) {
    client.send(0x81, b"still here");
    assert_eq!(client.frame().payload, b"still here");
}

#[test]
fn unfinished_messages_hold_no_more_than_the_budget() {
    let scene = Scene::start("assemblies");
    let mut good = scene.newcomer();
    says(&mut good);
    let before = scene.gateway.resident_bytes();
    // A frame of a mebibyte, of which the last bytes never come.
    let mut part = vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0];
    part.resize(1_000_000, 7);
    let hostile = scene.pours(&part, &mut good, before);
    // What was written last may not have been read yet.
    let began = Instant::now();
    let memory = loop {
        let memory = scene.memory();
        if memory.assemblies as usize >= HOSTILE - 64 {
            break memory;
        }
        assert!(began.elapsed() < PATIENCE, "{memory:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(memory.consumers, 0, "those were not needed");
    says(&mut scene.newcomer());
    drop(hostile);
    scene.is_back_at(before);
    says(&mut good);
    let stopped = scene.gateway.stop();
    assert!(stopped.closed.get("memory_short") >= Some(&memory.assemblies), "{:?}", stopped.closed);
}

#[test]
fn readers_that_stop_hold_no_more_than_the_budget() {
    let scene = Scene::start("consumers");
    let mut good = scene.newcomer();
    says(&mut good);
    let before = scene.gateway.resident_bytes();
    // A message of a megabyte, whose echo nobody reads.
    let mut message = vec![0x82, 0xff, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x40, 0, 0, 0, 0];
    message.resize(14 + 1_000_000, 7);
    let hostile = scene.pours(&message, &mut good, before);
    let memory = scene.memory();
    assert!(memory.consumers > 0, "{memory:?}");
    drop(hostile);
    scene.is_back_at(before);
    says(&mut scene.newcomer());
    says(&mut good);
}
