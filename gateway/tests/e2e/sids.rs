//! Sessions of Engine.IO find the upstream again that issued them, with nothing but their `sid`.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::support::{Gateway, HEAD, PATIENCE, Peer, Program, Upstream, upgrade};

/// Everybody goes to the next upstream, whoever they are.
fn config(shards: u16, upstreams: &[SocketAddr], backend: &str, each: &str) -> String {
    let list = upstreams
        .iter()
        .map(|address| format!("[[backend.chat.upstream]]\nurl = \"ws://{address}\"\n{each}"));
    format!(
        "{}[[route]]\nbackend = \"chat\"\n[backend.chat]\nkind = \"websocket\"\n\
         balance = \"round-robin\"\n{backend}{}",
        HEAD.replace("shards = 2", &format!("shards = {shards}")),
        list.collect::<String>()
    )
}

/// Three servers, four shards, and clients whose every request is a connection of its own. Returns
/// what the clients said, and how many requests the servers did not know the session of.
fn socket_io(backend: &str, clients: u32) -> (Vec<String>, u64) {
    let mut servers = ["a", "b", "c"].map(|name| Program::node("socketio_server.js", &[name]));
    let addresses = servers.each_mut().map(Program::listening);
    // A busy machine is no reason to break anything off.
    let limits = "[limits]\nconnect_timeout_ms = 100_000\nattempt_timeout_ms = 100_000\n";
    let gateway = Gateway::start(&(config(4, &addresses, backend, "") + limits));
    let url = format!("http://{}", gateway.address());
    let lines = Program::node("sids_client.js", &[&url, &clients.to_string()]).success();
    let unknown = servers.map(|server| {
        server.signal(Signal::TERM);
        let lines = server.success();
        let last = lines.last().expect("what it served");
        let (_, unknown) = last.rsplit_once(" unknown ").expect("a count");
        unknown.parse::<u64>().expect("a number")
    });
    (lines, unknown.iter().sum())
}

#[test]
fn socket_io_needs_no_cookie() {
    let (lines, unknown) = socket_io("", 300);
    assert_eq!(lines, ["default 300 a b c", "polling 300 a b c"]);
    assert_eq!(unknown, 0);
}

/// The same without the table: what the test above sees is what the table does.
#[test]
fn socket_io_breaks_without_stickiness() {
    let (lines, unknown) = socket_io("sticky_sid = false\n", 20);
    assert!(lines.iter().all(|line| !line.contains(" 20 ")), "{lines:?}");
    assert!(unknown > 0);
}

/// Engine.IO 3 in all its forms, each request on a connection of its own: binary framing, base64 framing,
/// JSONP, and a server that compresses whatever it may.
#[test]
fn sessions_of_engine_io_3_are_kept() {
    let arguments: [&[&str]; 3] = [&[], &["compress"], &["compress"]];
    let mut servers = arguments.map(|it| Program::python("engineio3_server.py", it));
    let addresses = servers.each_mut().map(Program::listening);
    let gateway = Gateway::start(&config(2, &addresses, "", ""));
    let ask = |request: String| {
        let mut client = Peer::connect(gateway.address());
        client.write(request);
        String::from_utf8_lossy(&client.rest()).into_owned()
    };
    for round in 0..6 {
        for form in ["", "&b64=1", "&j=0"] {
            let path = format!("/engine.io/?EIO=3&transport=polling{form}");
            let opened = ask(format!(
                "GET {path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip, deflate\r\n\
                 Connection: close\r\n\r\n"
            ));
            assert!(opened.starts_with("HTTP/1.1 200 "), "{form}: {opened}");
            let (_, sid) = opened.split_once("sid").expect("a session");
            let sid: String = sid
                .chars()
                .skip_while(|it| !it.is_ascii_hexdigit())
                .take_while(char::is_ascii_hexdigit)
                .collect();
            // A ping of the client. Whoever does not know the session says 400.
            let told = ask(format!(
                "POST {path}&sid={sid} HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\n\
                 Content-Length: 3\r\nConnection: close\r\n\r\n1:2"
            ));
            assert!(told.starts_with("HTTP/1.1 200 "), "round {round} {form}: {told}");
        }
    }
    let lines = gateway.stop().lines.join("\n");
    assert!(lines.contains("sessions learnt 18,"), "{lines}");
}

/// A server that compresses although it was asked not to: counted, and said once.
#[test]
fn an_opening_that_cannot_be_read_is_told() {
    let servers = Servers::listen(2);
    let mut gateway = Gateway::start(&config(1, &servers.addresses, "", ""));
    for _ in 0..2 {
        let mut client = Peer::connect(gateway.address());
        client.write(
            "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: test\r\n\
             Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n\r\n",
        );
        let (_, mut upstream, head) = servers.accept_with_head();
        let head = head.to_ascii_lowercase();
        assert_eq!(head.matches("accept-encoding:").count(), 1, "{head}");
        assert!(head.contains("accept-encoding: identity\r\n"), "{head}");
        upstream.write("HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nxx");
        assert!(client.head().contains("Content-Encoding: br"));
    }
    gateway.log_line_containing("no session that is understood");
    let stopped = gateway.stop();
    assert_eq!(stopped.errors.matches("no session that is understood").count(), 1);
}

/// Upstreams that are listening sockets; whoever connects to any of them stands in one line.
struct Servers {
    addresses: Vec<SocketAddr>,
    incoming: Receiver<(usize, TcpStream)>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    fn listen(count: usize) -> Servers {
        let upstreams: Vec<Upstream> = (0..count).map(|_| Upstream::listen()).collect();
        let addresses = upstreams.iter().map(Upstream::address).collect();
        let (sender, incoming) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = upstreams.into_iter().enumerate().map(|(at, upstream)| {
            let (sender, stop) = (sender.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                loop {
                    let (stream, _) = upstream.0.accept().expect("a connection");
                    if stop.load(Ordering::Acquire) || sender.send((at, stream)).is_err() {
                        return;
                    }
                }
            })
        });
        let threads = threads.collect();
        Servers { addresses, incoming, stop, threads }
    }

    /// The next connection to any of these, and whose it is; its head is read.
    #[track_caller]
    fn accept(&self) -> (usize, Peer) {
        let (at, peer, _) = self.accept_with_head();
        (at, peer)
    }

    #[track_caller]
    fn accept_with_head(&self) -> (usize, Peer, String) {
        let (at, stream) = self.incoming.recv_timeout(PATIENCE).expect("a request");
        let mut peer = Peer::new(stream);
        let head = peer.head();
        (at, peer, head)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for address in &self.addresses {
            drop(TcpStream::connect(address));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Opens a session by polling, which `answer` (with its head) opens; returns which upstream it was.
#[track_caller]
fn open(gateway: &Gateway, servers: &Servers, answer: &str, cut: Option<usize>) -> usize {
    let mut client = Peer::connect(gateway.address());
    client.write("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: t\r\n\r\n");
    let (at, mut server) = servers.accept();
    let (first, second) = answer.split_at(cut.unwrap_or(0));
    server.write(first);
    if !first.is_empty() {
        // It has passed the gateway when it is here, so the rest comes alone.
        client.bytes(1);
    }
    server.write(second);
    // The end of the upstream's stream ends an answer of any framing.
    drop(server);
    client.stream.shutdown(std::net::Shutdown::Write).expect("a socket");
    client.rest();
    at
}

/// Which upstream a session's request comes to.
#[track_caller]
fn find(gateway: &Gateway, servers: &Servers, target: &str) -> usize {
    let mut client = Peer::connect(gateway.address());
    client.write(format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n"));
    let (at, mut server) = servers.accept();
    server.write("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n6");
    client.head();
    at
}

/// What any request may be answered with.
const REFUSAL: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";

const OPEN: &str = "0{\"sid\":\"SID\",\"upgrades\":[\"websocket\"],\"pingInterval\":25000}";

fn plain(sid: &str) -> String {
    let body = OPEN.replace("SID", sid);
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn chunked(sid: &str, piece: usize) -> String {
    let body = OPEN.replace("SID", sid);
    let mut wire = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for part in body.as_bytes().chunks(piece) {
        let part = std::str::from_utf8(part).expect("ASCII");
        wire += &format!("{:x}\r\n{part}\r\n", part.len());
    }
    wire + "0\r\n\r\n"
}

/// However the answer is framed and cut; and what does not open a session is none.
#[test]
fn answers_that_open_a_session() {
    let servers = Servers::listen(3);
    let gateway = Gateway::start(&config(4, &servers.addresses, "", ""));
    let until_end = format!("HTTP/1.1 200 OK\r\n\r\n{}", OPEN.replace("SID", "s4"));
    let interim = format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", plain("s5"));
    for (sid, answer, cut) in [
        ("s0", plain("s0"), None),
        ("s1", plain("s1"), Some(plain("s1").find("s1").expect("it is there") + 1)),
        ("s2", chunked("s2", 1000), None),
        ("s3", chunked("s3", 1), Some(80)),
        ("s4", until_end, None),
        ("s5", interim, None),
    ] {
        let at = open(&gateway, &servers, &answer, cut);
        for target in [
            format!("/socket.io/?EIO=4&transport=polling&sid={sid}"),
            format!("/socket.io/?sid={sid}&EIO=4"),
        ] {
            for _ in 0..4 {
                assert_eq!(find(&gateway, &servers, &target), at, "{target}");
            }
        }
        // The upgrade to a WebSocket is one more request of the session.
        let mut client = Peer::connect(gateway.address());
        client.write(upgrade(&format!("/socket.io/?EIO=4&transport=websocket&sid={sid}"), ""));
        let (found, mut server) = servers.accept();
        assert_eq!(found, at);
        server.write(REFUSAL);
        client.head();
    }
    // What is no session of this gateway goes to each in turn.
    for answer in [
        plain("n").replace("200 OK", "400 Bad Request"),
        plain("n").replace("\r\n\r\n", "\r\nContent-Encoding: x\r\n\r\n"),
        plain("n").replace("0{", "4{"),
    ] {
        open(&gateway, &servers, &answer, None);
        let mut seen = [0; 3];
        // A shard for each, at most, until one has had three.
        for _ in 0..24 {
            seen[find(&gateway, &servers, "/socket.io/?EIO=4&sid=n")] += 1;
        }
        assert!(seen.iter().all(|count| *count > 0), "{seen:?} after {answer}");
    }
    // Without EIO= a `sid` is anybody's word.
    let mut seen = [0; 3];
    for _ in 0..24 {
        seen[find(&gateway, &servers, "/?sid=s0")] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// Sessions that wait for their own upstream do not stand in the way of a client that would go
/// anywhere, nor it in theirs.
#[test]
fn a_full_upstream_holds_up_its_own_sessions_alone() {
    const MANY: usize = 40;
    let servers = Servers::listen(2);
    let config = config(1, &servers.addresses, "", "connections_max = 1\n");
    let gateway = Gateway::start(&(config + "[limits]\nconnect_timeout_ms = 60_000\n"));
    let home = open(&gateway, &servers, &plain("s"), None);
    let other = 1 - home;
    // Each has one client now, which is all that it may have.
    let mut guests = [None, None];
    for _ in 0..2 {
        let mut client = Peer::connect(gateway.address());
        client.write("GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        let (at, server) = servers.accept();
        guests[at] = Some((client, server));
    }
    let bound: Vec<Peer> = (0..MANY)
        .map(|_| {
            let mut client = Peer::connect(gateway.address());
            client.write(upgrade("/socket.io/?EIO=4&transport=websocket&sid=s", ""));
            client
        })
        .collect();
    let mut free = Peer::connect(gateway.address());
    free.write("GET /free HTTP/1.1\r\nHost: t\r\n\r\n");
    // The one shard has read all of them when it answers this.
    let mut probe = Peer::connect(gateway.address());
    probe.write("nonsense\r\n\r\n");
    assert!(probe.head().starts_with("HTTP/1.1 400 "));
    // Room at the other upstream is for the one who waited behind them.
    let (client, server) = guests[other].take().expect("a guest");
    leave(client, server);
    let (at, server) = servers.accept();
    assert_eq!(at, other);
    leave(free, server);
    // And room at the session's is for the sessions, one after the other.
    let (client, server) = guests[home].take().expect("a guest");
    leave(client, server);
    for client in bound {
        let (at, server) = servers.accept();
        assert_eq!(at, home);
        leave(client, server);
    }
}

/// A client is answered, and goes.
#[track_caller]
fn leave(mut client: Peer, mut server: Peer) {
    server.write(REFUSAL);
    assert!(client.head().starts_with("HTTP/1.1 403 "));
}
