//! Clients are asked to leave: all of them because the gateway stops, or those of an upstream that is
//! taken out of service or found to be ill.

use std::fmt::Write as _;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::Method;
use gateway::admin::client::ask;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    ECHO_AND_ROOMS, Frame, HEAD, Peer, Program, Scratch, Upstream, binary, header, retry_after_ms,
    switching,
};

/// A gateway whose log and admin interface are read. One shard, so that what it has done for a later
/// client it has done for an earlier one.
struct Daemon {
    program: Program,
    address: SocketAddr,
    scratch: Scratch,
    socket: PathBuf,
    seen: Vec<String>,
}

impl Daemon {
    #[track_caller]
    fn start(config: &str) -> Daemon {
        let scratch = Scratch::new("drain");
        let socket = scratch.path().join("admin.sock");
        let mut daemon = Daemon {
            program: Program::daemon("true", |command| command),
            address: SocketAddr::from(([0; 4], 0)),
            scratch,
            socket,
            seen: Vec::new(),
        };
        let file = daemon.write(config);
        daemon.program = Program::daemon(binary(), |command| command.arg("run").arg(&file));
        let line = daemon.line("listening on ");
        let (_, address) = line.split_once("listening on ").expect("it is in it");
        let address = address.split(' ').next().expect("an address");
        daemon.address = address.parse().expect("an address");
        daemon
    }

    /// Writes its file.
    fn write(&self, config: &str) -> PathBuf {
        let config = config.replace("shards = 2", "shards = 1");
        let admin = format!("[admin]\nsocket = \"{}\"\n", self.socket.display());
        self.scratch.write("penstock.toml", &(config + &admin))
    }

    /// Has it go by another file.
    #[track_caller]
    fn reload(&mut self, config: &str) {
        self.write(config);
        self.program.signal(Signal::HUP);
        self.line("reload: the configuration has changed");
    }

    /// The next line with this in it.
    #[track_caller]
    fn line(&mut self, words: &str) -> String {
        loop {
            let line = self.program.line();
            self.seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Asks the admin interface: the status, and the body.
    #[track_caller]
    fn ask(&self, path: &str) -> (u16, String) {
        let (status, body) = ask(&self.socket, Method::GET, path).expect("it listens");
        (status.as_u16(), String::from_utf8(body).expect("UTF-8"))
    }

    /// 200 or 503.
    #[track_caller]
    fn ready(&self) -> u16 {
        self.ask("/api/v1/health/ready").0
    }

    #[track_caller]
    fn status(&self) -> Value {
        serde_json::from_str(&self.ask("/api/v1/status").1).expect("JSON")
    }

    /// Waits for its end; everything that it has printed.
    #[track_caller]
    fn ended(self) -> Vec<String> {
        let Daemon { program, mut seen, .. } = self;
        seen.extend(program.success());
        seen
    }

    #[track_caller]
    fn stop(self) -> Vec<String> {
        self.program.signal(Signal::TERM);
        self.ended()
    }
}

/// A client is asked to leave: 1012, and a hint up to `most` milliseconds. It answers.
#[track_caller]
fn expect_restart(peer: &mut Peer, most: u64) {
    let Frame { first, payload } = peer.frame();
    assert_eq!(first, 0x88, "{payload:?}");
    assert_eq!(payload[..2], 1012_u16.to_be_bytes());
    assert!(retry_after_ms(std::str::from_utf8(&payload[2..]).expect("UTF-8")) <= most);
    peer.send(0x88, &payload);
}

#[track_caller]
fn expect_echo(peer: &mut Peer) {
    peer.send(0x81, b"still here?");
    let frame = peer.frame();
    assert_eq!((frame.first, &frame.payload[..]), (0x81, &b"still here?"[..]));
}

// Everybody.

const BYE: &str = r#"{"event":"bye"}"#;

fn stopping(upstream: SocketAddr, server: &str) -> String {
    let head =
        HEAD.replace("pin = false", &format!("pin = false\ndrain_message = '{BYE}'\n{server}"));
    format!(
        "{head}{ECHO_AND_ROOMS}[[route]]\npath = \"/app\"\nbackend = \"app\"\n[backend.app]\n\
         kind = \"websocket\"\nurl = \"ws://{upstream}\"\n"
    )
}

#[test]
fn sigterm_says_not_ready_first_and_then_lets_everybody_go() {
    drain(|gateway| gateway.program.signal(Signal::TERM));
}

#[test]
fn penstock_drain_does_the_same() {
    drain(|gateway| {
        let mut command = Command::new(binary());
        let command = command.arg("drain").arg("--socket").arg(&gateway.socket);
        Program::start("penstock drain", command).success();
    });
}

fn drain(ask: impl Fn(&Daemon)) {
    let upstream = Upstream::listen();
    let server = "drain_delay_ms = 3000\ndrain_window_ms = 5000";
    let config = stopping(upstream.address(), server);
    let mut gateway = Daemon::start(&(config + "[limits]\nretry_after_max_ms = 700\n"));
    let mut echo = Peer::open(gateway.address, "/echo");
    let mut room = Peer::open(gateway.address, "/rooms?user=ann");
    room.send(0x81, br#"{"op":"join","room":"r"}"#);
    room.frame();
    room.frame();
    let (mut relayed, mut server) = upstream.join_by(gateway.address, "/app");
    assert_eq!(gateway.ready(), 200);

    ask(&gateway);
    let begin =
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    // Readiness says no, and everybody is served as before.
    while gateway.ready() == 200 {}
    assert_eq!(gateway.ask("/api/v1/health/live").0, 200);
    assert_eq!(gateway.status()["state"], serde_json::json!({ "phase": "not-ready" }));
    let mut late = Peer::open(gateway.address, "/echo");
    expect_echo(&mut late);
    assert!(!echo.has_bytes() && !room.has_bytes() && !relayed.has_bytes());

    // Then they are asked to leave.
    for peer in [&mut echo, &mut room, &mut relayed] {
        let frame = peer.frame();
        assert_eq!((frame.first, &frame.payload[..]), (0x81, BYE.as_bytes()));
        expect_restart(peer, 700);
    }
    assert_eq!(server.close_frame().0, 1001);
    server.send(0x88, &1001_u16.to_be_bytes());
    drop(server);
    for peer in [echo, room, relayed] {
        { peer }.end();
    }
    // One has not answered yet, so that there is still somebody to ask.
    assert_eq!(late.frame().payload, BYE.as_bytes());
    let status = gateway.status();
    let state = &status["state"];
    assert_eq!((&state["phase"], &state["clients"]), (&"draining".into(), &4.into()), "{state}");
    let until = state["until_unix_ms"].as_u64().expect("the predicted end");
    // Four clients take no more than 8 ms of the window.
    assert!(until >= begin && until <= begin + 120_000, "{until}, asked at {begin}");
    assert_eq!(gateway.ready(), 503);
    // Nobody is left to wait in the backlog.
    while TcpStream::connect(gateway.address).is_ok() {}
    expect_restart(&mut late, 700);
    late.end();
    let line = gateway.line("asked to stop: readiness answers no from now on");
    assert!(line.contains("accepted and served for another 3s (server.drain_delay_ms)"), "{line}");
    let line = gateway.line("stopping: ");
    assert!(line.contains("4 connected clients are sent a Close frame within 8.0ms"), "{line}");
    assert!(line.contains("those that are still connected 10.0s later"), "{line}");
    let lines = gateway.ended();
    let has = |words: &str| lines.iter().any(|line| line.ends_with(words));
    assert!(has("connections closed, by cause: drain 4"), "{}", lines.join("\n"));
    assert!(has("stopped: every connection is closed"), "{}", lines.join("\n"));
}

/// Each gets its Close frame, whatever it is doing.
#[test]
fn six_hundred_leave() {
    let upstream = Upstream::listen();
    let gateway = Daemon::start(&stopping(upstream.address(), "drain_window_ms = 3000"));
    let mut peers: Vec<Peer> = (0..600).map(|_| Peer::open(gateway.address, "/echo")).collect();
    peers.iter_mut().step_by(2).for_each(expect_echo);
    gateway.program.signal(Signal::TERM);
    for peer in &mut peers {
        assert_eq!(peer.frame().payload, BYE.as_bytes());
        expect_restart(peer, 5000);
        peer.end();
    }
    let lines = gateway.ended();
    let said = |words: &str| lines.iter().any(|line| line.contains(words));
    assert!(
        said("600 connected clients are sent a Close frame within 1.2s"),
        "{}",
        lines.join("\n")
    );
    assert!(said("connections closed, by cause: drain 600"), "{}", lines.join("\n"));
}

/// A Close frame stands behind a whole frame, a message of ours behind a whole message; a frame that
/// does not go on is waited for as long as for any goodbye.
#[test]
fn what_an_upstream_has_begun_is_ended_first() {
    let upstream = Upstream::listen();
    let config = stopping(upstream.address(), "") + "[limits]\nclose_timeout_ms = 1000\n";
    let gateway = Daemon::start(&config);
    let (mut in_frame, mut frame_server) = upstream.join_by(gateway.address, "/app");
    frame_server.write(b"\x82\x0Aabcd");
    assert_eq!(in_frame.bytes(6), b"\x82\x0Aabcd");
    let (mut in_message, mut message_server) = upstream.join_by(gateway.address, "/app");
    message_server.write(b"\x01\x02ab");
    assert_eq!(in_message.bytes(4), b"\x01\x02ab");
    let (mut stuck, mut stuck_server) = upstream.join_by(gateway.address, "/app");
    stuck_server.write(b"\x82\x0Aabcd");
    assert_eq!(stuck.bytes(6), b"\x82\x0Aabcd");
    // It has the highest slot: when it has been asked, all have.
    let mut last = Peer::open(gateway.address, "/echo");
    gateway.program.signal(Signal::TERM);
    assert_eq!(last.frame().payload, BYE.as_bytes());
    expect_restart(&mut last, 5000);

    expect_restart(&mut in_message, 5000);
    assert_eq!(message_server.close_frame().0, 1001);
    assert!(!in_frame.has_bytes() && !frame_server.has_bytes());
    frame_server.write(b"efghij");
    assert_eq!(in_frame.bytes(6), b"efghij");
    assert_eq!(in_frame.frame().payload, BYE.as_bytes());
    expect_restart(&mut in_frame, 5000);
    assert_eq!(frame_server.close_frame().0, 1001);
    stuck.end();
    assert_eq!(stuck_server.close_frame().0, 1001);
    drop((frame_server, message_server, stuck_server));
    gateway.ended();
}

// The clients of one upstream.

/// A server with a name: it tells it to whoever comes, and echoes. `/health` is 200 or 503.
struct Server {
    name: &'static str,
    address: SocketAddr,
    is_well: Arc<AtomicBool>,
    listening: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Server {
    fn start(name: &'static str) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        let mut server =
            Server { name, address, is_well: Arc::new(AtomicBool::new(true)), listening: None };
        server.listen(listener);
        server
    }

    fn listen(&mut self, listener: TcpListener) {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name, is_well) = (Arc::clone(&stop), self.name, Arc::clone(&self.is_well));
        let thread = std::thread::spawn(move || {
            loop {
                let (stream, _) = listener.accept().expect("a connection");
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let is_well = Arc::clone(&is_well);
                std::thread::spawn(move || serve(Peer::new(stream), name, &is_well));
            }
        });
        self.listening = Some((stop, thread));
    }

    /// Takes nobody more; who is there stays.
    fn stop_listening(&mut self) {
        if let Some((stop, thread)) = self.listening.take() {
            stop.store(true, Ordering::Release);
            drop(TcpStream::connect(self.address));
            thread.join().expect("it ends");
        }
    }

    fn set_well(&mut self, is_well: bool, check: &str) {
        self.is_well.store(is_well, Ordering::Release);
        match (check, is_well) {
            ("connect", false) => self.stop_listening(),
            ("connect", true) => self.listen(TcpListener::bind(self.address).expect("its address")),
            _ => {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

fn serve(mut peer: Peer, name: &str, is_well: &AtomicBool) {
    if !peer.has(4) {
        return;
    }
    let head = peer.head();
    let is_check = head.starts_with("GET /health ");
    let is_well = is_well.load(Ordering::Acquire);
    let send = |peer: &mut Peer, bytes: &[u8]| peer.stream.write_all(bytes).is_ok();
    if is_check && !is_well {
        send(&mut peer, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    if header(&head, "upgrade").is_none() {
        send(&mut peer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        return;
    }
    send(&mut peer, switching(&head, "").as_bytes());
    let frame = |first: u8, payload: &[u8]| [&[first, payload.len() as u8], payload].concat();
    if !is_check {
        send(&mut peer, &frame(0x81, name.as_bytes()));
    }
    while peer.has(2) {
        let Frame { first, payload } = peer.frame();
        let answer = if first == 0x89 { 0x8A } else { first };
        if !send(&mut peer, &frame(answer, &payload)) || first == 0x88 {
            return;
        }
    }
}

/// A route to servers, each with its mode.
fn group(servers: &[(&Server, &str)], lines: &str) -> String {
    let mut text = format!(
        "{HEAD}[[route]]\nbackend = \"app\"\n[backend.app]\nkind = \"websocket\"\n\
         balance = \"round-robin\"\n{lines}"
    );
    for (server, mode) in servers {
        let address = server.address;
        write!(text, "[[backend.app.upstream]]\nurl = \"ws://{address}\"\nmode = \"{mode}\"\n")
            .expect("a string");
    }
    text
}

/// A client, and the server that it is at.
#[track_caller]
fn join(gateway: &Daemon) -> (Peer, String) {
    let mut client = Peer::open(gateway.address, "/");
    let name = String::from_utf8(client.frame().payload).expect("a name");
    (client, name)
}

/// Four clients, two at each of two servers.
#[track_caller]
fn two_each(gateway: &Daemon) -> [Vec<Peer>; 2] {
    let mut peers = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        let (peer, name) = join(gateway);
        peers[usize::from(name == "b")].push(peer);
    }
    assert_eq!(peers.each_ref().map(Vec::len), [2, 2]);
    peers
}

#[test]
fn an_upstream_that_is_taken_out_of_service_keeps_its_clients_or_moves_them() {
    for change in ["draining", "disabled", "removed"] {
        for policy in ["stay", "move"] {
            let [a, b] = ["a", "b"].map(Server::start);
            let lines = format!("drained_clients = \"{policy}\"\n");
            let mut gateway = Daemon::start(&group(&[(&a, "active"), (&b, "active")], &lines));
            let [mut of_a, mut of_b] = two_each(&gateway);
            let after = match change {
                "removed" => group(&[(&b, "active")], &lines),
                mode => group(&[(&a, mode), (&b, "active")], &lines),
            };
            gateway.reload(&after);
            for _ in 0..6 {
                assert_eq!(join(&gateway).1, "b", "{change}");
            }
            for peer in &mut of_a {
                match policy {
                    "stay" => expect_echo(peer),
                    _ => expect_restart(peer, 5000),
                }
            }
            of_b.iter_mut().for_each(expect_echo);
            if policy == "stay" {
                // Whoever stayed moves when the operator changes his mind.
                gateway.reload(&after.replace("\"stay\"", "\"move\""));
                of_a.iter_mut().for_each(|peer| expect_restart(peer, 5000));
                of_b.iter_mut().for_each(expect_echo);
            }
            // Back in service, it is like any other.
            gateway.reload(&group(&[(&a, "active"), (&b, "active")], &lines));
            let mut back = Vec::new();
            while !back.iter().any(|(_, name)| name == "a") {
                back.push(join(&gateway));
                assert!(back.len() < 100, "{change} {policy}");
            }
            back.iter_mut().for_each(|(peer, _)| expect_echo(peer));
        }
    }
}

#[test]
fn an_upstream_whose_checks_fail_gets_no_clients() {
    for (check, policy) in [("http", "stay"), ("websocket", "move"), ("connect", "stay")] {
        let [mut a, b] = ["a", "b"].map(Server::start);
        let path = if check == "connect" { "" } else { "check_path = \"/health\"\n" };
        let lines = format!(
            "check = \"{check}\"\n{path}check_interval_ms = 300\ncheck_rise = 2\n\
             check_fall = 3\ndown_clients = \"{policy}\"\n"
        );
        let mut gateway = Daemon::start(&group(&[(&a, "active"), (&b, "active")], &lines));
        let [mut of_a, mut of_b] = two_each(&gateway);
        a.set_well(false, check);
        let line = gateway.line(" is down: 3 checks in a row failed");
        assert!(line.contains(&format!("backend app: ws://{}", a.address)), "{line}");
        // The shard has it in its inbox before the control thread does anything else.
        gateway.ready();
        for _ in 0..6 {
            assert_eq!(join(&gateway).1, "b", "{check}");
        }
        for peer in &mut of_a {
            match policy {
                "stay" => expect_echo(peer),
                _ => expect_restart(peer, 5000),
            }
        }
        of_b.iter_mut().for_each(expect_echo);
        a.set_well(true, check);
        gateway.line(" is up again: 2 checks in a row passed");
        gateway.ready();
        let names = [(); 4].map(|()| join(&gateway)).map(|(_, name)| name);
        assert!(names.contains(&"a".to_owned()), "{names:?}");
        let lines = gateway.stop();
        // Once each, whatever was found by all the checks between.
        for words in [" is down: ", " is up again: "] {
            let count = lines.iter().filter(|line| line.contains(words)).count();
            assert_eq!(count, 1, "{check}: {}", lines.join("\n"));
        }
    }
}

/// Where all are ill, health says nothing, and nobody is moved to where it is no better.
#[test]
fn clients_are_not_moved_when_there_is_nowhere_to_go() {
    let mut a = Server::start("a");
    let lines = "check = \"http\"\ncheck_path = \"/health\"\ncheck_interval_ms = 300\n\
                 down_clients = \"move\"\n";
    let mut gateway = Daemon::start(&group(&[(&a, "active")], lines));
    let (mut client, _) = join(&gateway);
    a.set_well(false, "http");
    gateway.line(" is down: ");
    gateway.ready();
    let (mut next, name) = join(&gateway);
    assert_eq!(name, "a");
    expect_echo(&mut next);
    expect_echo(&mut client);
}

/// An upstream that hangs up without a Close frame, whose client has said goodbye: nobody asks that
/// client to come back.
#[test]
fn a_client_that_has_said_goodbye_is_no_orphan() {
    let upstream = Upstream::listen();
    let gateway = Daemon::start(&stopping(upstream.address(), ""));
    let (mut client, mut server) = upstream.join_by(gateway.address, "/app");
    client.send(0x88, &1000_u16.to_be_bytes());
    assert_eq!(server.close_frame().0, 1000);
    drop(server);
    client.end();
    gateway.stop();
}
