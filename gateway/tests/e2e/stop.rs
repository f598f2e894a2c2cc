//! SIGTERM: everybody is told, and the process ends in time.

use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{
    ECHO_AND_ROOMS, Gateway, HEAD, Peer, Program, Upstream, masked, retry_after_ms,
};

fn config(upstream: &Upstream) -> String {
    let app = format!(
        "[[route]]\npath = \"/app\"\nbackend = \"app\"\n[backend.app]\nkind = \"websocket\"\n\
         url = \"ws://{}\"\n[limits]\nclose_timeout_ms = 1000\n",
        upstream.address()
    );
    let head = HEAD.replace("pin = false", "pin = false\nstop_timeout_ms = 2000");
    format!("{head}{ECHO_AND_ROOMS}{app}")
}

#[test]
fn everybody_is_told_1012() {
    let upstream = Upstream::listen();
    // One shard, so that a later client's turn proves that an earlier one has been accepted.
    let gateway = Gateway::start_with(&config(&upstream), &["--shards", "1"]);
    let mut echo = Peer::open(gateway.address(), "/echo");
    echo.send(0x81, b"x");
    echo.frame();
    let mut room = Peer::open(gateway.address(), "/rooms?user=ann");
    room.send(0x81, br#"{"op":"join","room":"r"}"#);
    room.frame();
    room.frame();
    let (mut client, mut server) = upstream.join_by(gateway.address(), "/app");
    // Connected, and nothing asked yet.
    let mut silent = Peer::connect(gateway.address());
    // Its stream will simply end, once it has been accepted: a round trip later.
    let mut again = Peer::open(gateway.address(), "/echo");
    again.send(0x88, b"");
    again.frame();

    let asked = Instant::now();
    gateway.terminate();
    for peer in [&mut echo, &mut room, &mut client] {
        let (code, reason) = peer.close_frame();
        assert_eq!(code, 1012, "{reason}");
        retry_after_ms(&reason);
        peer.send(0x88, &1001_u16.to_be_bytes());
    }
    assert_eq!(server.close_frame().0, 1001, "the upstream is told, too");
    server.write(b"\x88\x02\x03\xE9");
    drop(server);
    for peer in [&mut echo, &mut room, &mut client] {
        peer.end();
    }
    silent.end();
    drop(silent);
    let stopped = gateway.stopped();
    assert_eq!(stopped.closed.get("drain"), Some(&4), "{:?}", stopped.closed);
    assert_eq!(stopped.status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

/// Clients that neither read nor answer hold it no longer than `stop_timeout_ms`.
#[test]
fn nobody_holds_it_up() {
    let upstream = Upstream::listen();
    let gateway = Gateway::start(&config(&upstream));
    let mut deaf = Peer::open(gateway.address(), "/echo");
    // More than the sockets hold: what comes back is stuck in its outbox.
    deaf.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a socket");
    let frame = masked(0x82, &[0; 1 << 20]);
    for _ in 0..64 {
        if deaf.stream.write_all(&frame).is_err() {
            break;
        }
    }
    let mut mute = Peer::open(gateway.address(), "/echo");
    mute.send(0x81, b"x");
    mute.frame();
    let asked = Instant::now();
    gateway.terminate();
    let stopped = gateway.stopped();
    let took = asked.elapsed();
    assert_eq!(stopped.status.code(), Some(0));
    assert_eq!(stopped.closed.get("drain"), Some(&2), "{:?}", stopped.closed);
    assert!(took < Duration::from_millis(3500), "{took:?}");
}

/// Whoever asks twice means it.
#[test]
fn a_second_signal_ends_it_at_once() {
    let head = HEAD.replace("pin = false", "pin = false\nstop_timeout_ms = 600_000");
    let limits = "[limits]\nclose_timeout_ms = 600_000\n";
    let config = format!("{head}{ECHO_AND_ROOMS}{limits}");
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("twice-{}.toml", std::process::id()));
    std::fs::write(&file, config).expect("a scratch file");
    let mut command = std::process::Command::new(crate::support::binary());
    let mut program = Program::start("penstock", command.arg("run").arg(&file));
    let line = program.line_with("listening on ");
    let address = line.split(' ').nth(2).expect("an address").parse().expect("an address");
    let mut mute = Peer::open(address, "/echo");
    program.signal(Signal::TERM);
    assert_eq!(mute.close_frame().0, 1012);
    program.signal(Signal::INT);
    assert_eq!(program.status().code(), Some(1));
    let said = program.errors();
    assert!(
        said.contains("penstock: SIGINT while stopping: 1 connected clients are cut off"),
        "{said}"
    );
    let _ = std::fs::remove_file(file);
}

/// SIGINT is what Ctrl-C sends.
#[test]
fn ctrl_c_stops_it() {
    let mut command = std::process::Command::new(crate::support::binary());
    let directory = std::env::temp_dir().join(format!("ctrl-c-{}", std::process::id()));
    let command = command.args(["run", "--listen", "127.0.0.1:0"]);
    let mut program = Program::start("penstock", command.env("RUNTIME_DIRECTORY", directory));
    program.line_with("listening on ");
    program.signal(Signal::INT);
    assert_eq!(program.status().code(), Some(0));
}
