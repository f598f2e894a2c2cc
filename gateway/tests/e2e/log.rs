//! The log: its level, and a reader that has stopped reading.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gateway::admin::client::ask;
use serde_json::Value;

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Peer, Scratch, binary};

fn config(scratch: &Scratch, log: &str) -> String {
    let socket = scratch.path().join("admin.sock");
    format!("{HEAD}{ECHO_AND_ROOMS}[log]\n{log}\n[admin]\nsocket = \"{}\"\n", socket.display())
}

fn json(socket: &Path, path: &str) -> Value {
    let (status, body) = ask(socket, axum::http::Method::GET, path).expect("it answers");
    assert!(status.is_success(), "{status}");
    serde_json::from_slice(&body).expect("JSON")
}

/// What `penstock log-level` says, and how it ends.
fn log_level(socket: &Path, level: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    let output = command.arg("log-level").arg("--socket").arg(socket).args(level).output();
    let output = output.expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn the_level_changes_while_it_runs() {
    let scratch = Scratch::new("log");
    let socket = scratch.path().join("admin.sock");
    let mut gateway = Gateway::start(&config(&scratch, "level = \"info\""));
    let leave = |gateway: &Gateway, code: u16| {
        let mut peer = Peer::open(gateway.address(), "/echo");
        peer.send(0x88, &code.to_be_bytes());
        peer.close_frame();
        peer.end();
    };
    assert_eq!(log_level(&socket, &[]), (Some(0), "info".to_owned()));
    leave(&gateway, 4001);
    gateway.log_line_containing("close_code=4001");
    assert_eq!(log_level(&socket, &["warn"]), (Some(0), "warn".to_owned()));
    gateway.log_line_containing("log: level info -> warn");
    leave(&gateway, 4002);
    // It has been looked at when it is among those that are remembered, and was not written.
    while json(&socket, "/api/v1/closes")["closes"][0]["close_code"] != 4002 {
        std::thread::yield_now();
    }
    assert_eq!(log_level(&socket, &["info"]), (Some(0), "info".to_owned()));
    leave(&gateway, 4003);
    gateway.log_line_containing("close_code=4003");
    assert_eq!(log_level(&socket, &["loud"]).0, Some(2));
    let stopped = gateway.stop();
    assert!(!stopped.errors.contains("close_code=4002"), "{}", stopped.errors);
}

#[test]
fn a_reload_changes_the_level_and_leaves_an_ordered_one_otherwise() {
    let scratch = Scratch::new("log");
    let socket = scratch.path().join("admin.sock");
    let file = scratch.write("penstock.toml", &config(&scratch, "level = \"info\""));
    let gateway = Gateway::run(&["run", file.to_str().expect("UTF-8")]);
    let reload = |log: &str| {
        scratch.write("penstock.toml", &config(&scratch, log));
        let (status, body) =
            ask(&socket, axum::http::Method::POST, "/api/v1/reload").expect("it answers");
        assert!(status.is_success(), "{}", String::from_utf8_lossy(&body));
    };
    // It is taken on within a tenth of a second.
    let becomes = |level: &str| {
        while json(&socket, "/api/v1/log")["level"] != level {
            std::thread::yield_now();
        }
    };
    reload("level = \"error\"");
    becomes("error");
    assert_eq!(json(&socket, "/api/v1/log")["configured_level"], "error");
    assert_eq!(log_level(&socket, &["debug"]), (Some(0), "debug".to_owned()));
    reload("level = \"error\"\naccess = false");
    // What follows shows that this one has been taken on too.
    reload("level = \"error\"");
    assert_eq!(json(&socket, "/api/v1/log")["level"], "debug");
    reload("level = \"info\"");
    becomes("info");
    drop(gateway);
}

/// A gateway whose standard error nobody reads.
struct Unread {
    child: Child,
    address: SocketAddr,
}

impl Unread {
    fn start(scratch: &Scratch) -> Unread {
        let config = config(scratch, "access_lines_per_second = 1_000_000");
        let file = scratch.write("penstock.toml", &config);
        let mut command = Command::new(binary());
        let command = command.arg("run").arg(file).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = lines.find(|line| line.as_ref().is_ok_and(|it| it.starts_with("listening on ")));
        let line = line.expect("it listens").expect("UTF-8");
        let address = line.split(' ').nth(2).expect("an address").parse().expect("an address");
        // The rest of the few lines that it prints are taken, so that only the log is stuck.
        std::thread::spawn(move || lines.for_each(drop));
        Unread { child, address }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let scratch = Scratch::new("log");
    let socket = scratch.path().join("admin.sock");
    let mut gateway = Unread::start(&scratch);
    // More lines than the pipe and what waits for it hold: some 200 bytes each, and 64 KiB and 8,192
    // lines. Each of four threads has one connection after the other.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3000 {
                    let mut peer = Peer::connect(gateway.address);
                    peer.write("GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
                    peer.head();
                    peer.rest();
                }
            });
        }
    });
    // It answers, and has counted what it could not write.
    let rejected = || json(&socket, "/api/v1/status")["closed"]["handshake_rejected"].as_u64();
    while rejected() != Some(12_000) || json(&socket, "/api/v1/log")["dropped_lines"] == 0 {
        std::thread::yield_now();
    }
    // Once it is read again, what waited is written, and what was dropped is told.
    let mut lines = BufReader::new(gateway.child.stderr.take().expect("it is piped")).lines();
    let told = lines
        .find(|line| line.as_ref().is_ok_and(|it| it.contains("lines of the log were dropped")));
    let told = told.expect("a line").expect("UTF-8");
    assert!(told.contains(" dropped="), "{told}");
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_it_from_ending() {
    let scratch = Scratch::new("log");
    let socket = scratch.path().join("admin.sock");
    let mut gateway = Unread::start(&scratch);
    for _ in 0..1000 {
        let mut peer = Peer::connect(gateway.address);
        peer.write("GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        peer.head();
        peer.rest();
    }
    let (status, _) = ask(&socket, axum::http::Method::POST, "/api/v1/drain").expect("it answers");
    assert!(status.is_success());
    assert!(gateway.child.wait().expect("it is our child").success());
    // What is left of the log can still be read: at least what the pipe held.
    let mut text = String::new();
    let mut stderr = gateway.child.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut text).expect("UTF-8");
    assert!(text.lines().count() > 100);
}
