//! Several upstreams behind one route.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::support::{Gateway, HEAD, Peer, Upstream, header, switching, upgrade};

/// An upstream that accepts everybody and says its name, in a frame or as a body.
pub(crate) struct Named {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Named {
    pub(crate) fn start(name: &'static str) -> Named {
        let upstream = Upstream::listen();
        let address = upstream.address();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut open = Vec::new();
            loop {
                let (stream, _) = upstream.0.accept().expect("a connection");
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let mut peer = Peer::new(stream);
                let head = peer.head();
                if header(&head, "upgrade").is_some() {
                    peer.write(switching(&head, ""));
                    peer.write([&[0x81, name.len() as u8], name.as_bytes()].concat());
                } else {
                    let len = name.len();
                    peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{name}"));
                }
                open.push(peer);
            }
        });
        Named { address, stop, thread: Some(thread) }
    }

    /// Ends it, and all its connections.
    fn kill(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("an upstream");
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.kill();
        }
    }
}

/// A route to a group of these upstreams, with more lines for the backend. One shard, so that what
/// it has counted is all there is.
fn group(upstreams: &[SocketAddr], lines: &str) -> String {
    let list = upstreams
        .iter()
        .map(|address| format!("[[backend.app.upstream]]\nurl = \"ws://{address}\"\n"));
    let (head, list) = (HEAD.replace("shards = 2", "shards = 1"), list.collect::<String>());
    format!(
        "{head}[[route]]\nbackend = \"app\"\n[backend.app]\nkind = \"websocket\"\n{lines}{list}"
    )
}

/// A client that is open, and the name of its upstream.
#[track_caller]
fn join(gateway: &Gateway, target: &str, more: &str) -> (Peer, String, String) {
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade(target, more));
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let name = String::from_utf8(client.frame().payload).expect("a name");
    (client, name, head)
}

#[test]
fn clients_take_turns_and_pass_over_an_upstream_that_is_gone() {
    let mut servers = ["a", "b", "c"].map(Named::start);
    let lines = "balance = \"round-robin\"\neject_failures = 2\n";
    let gateway = Gateway::start(&group(&servers.each_ref().map(|it| it.address), lines));
    let mut seen = BTreeMap::<String, u32>::new();
    let mut open = Vec::new();
    for _ in 0..6 {
        let (client, name, _) = join(&gateway, "/", "");
        *seen.entry(name.clone()).or_default() += 1;
        open.push((client, name));
    }
    assert!(["a", "b", "c"].iter().all(|name| seen[*name] == 2), "{seen:?}");
    servers[2].kill();
    // Its clients are told; those of the others notice nothing.
    for (client, name) in &mut open {
        if name == "c" {
            assert_eq!(client.close_frame().0, 1012);
        }
    }
    for _ in 0..10 {
        let (client, name, _) = join(&gateway, "/", "");
        assert_ne!(name, "c");
        open.push((client, name));
    }
    for (client, _) in open.iter_mut().filter(|(_, name)| name != "c") {
        client.stream.set_nonblocking(true).expect("a socket");
        let read = std::io::Read::read(&mut client.stream, &mut [0; 16]);
        let error = read.expect_err("nothing was sent, and nothing has ended");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// Three ways to fail a handshake; the client sees none of them.
#[test]
fn an_upstream_that_breaks_off_is_passed_over() {
    for (way, answer) in ["", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "no HTTP at all\r\n\r\n"]
        .into_iter()
        .enumerate()
    {
        let (broken, good) = (Upstream::listen(), Named::start("good"));
        let lines = "balance = \"hash\"\nhash_key = \"query:to\"\n";
        let gateway = Gateway::start(&group(&[broken.address(), good.address], lines));
        // Some key leads to the broken one.
        let server = std::thread::spawn(move || {
            let (mut peer, head) = broken.accept();
            peer.write(answer);
            head
        });
        let mut asked = 0;
        while !server.is_finished() && asked < 64 {
            asked += 1;
            let (_, name, _) = join(&gateway, &format!("/?to={asked}"), "");
            assert_eq!(name, "good", "way {way}");
        }
        let head = server.join().expect("an upstream");
        assert!(head.contains("Sec-WebSocket-Key: "), "{head}");
    }
}

/// A request that makes servers break off gets to two of them, and counts against none: clients whose
/// requests are good still find all four.
#[test]
fn a_bad_request_is_not_the_fault_of_all_servers() {
    let servers = [(); 4].map(|()| Upstream::listen());
    let lines = "balance = \"round-robin\"\neject_failures = 1\n";
    let addresses = servers.each_ref().map(Upstream::address);
    let gateway = Gateway::start(&group(&addresses, lines));
    let counts: Vec<Arc<std::sync::Mutex<[u32; 2]>>> = servers
        .into_iter()
        .map(|upstream| {
            let count = Arc::new(std::sync::Mutex::new([0, 0]));
            let counted = Arc::clone(&count);
            // It goes with the process.
            std::thread::spawn(move || {
                let mut open = Vec::new();
                loop {
                    let (mut peer, head) = upstream.accept();
                    let is_bad = head.starts_with("GET /bad ");
                    counted.lock().expect("nobody panics")[usize::from(is_bad)] += 1;
                    if !is_bad {
                        peer.write(switching(&head, ""));
                        open.push(peer);
                    }
                }
            });
            count
        })
        .collect();
    for _ in 0..12 {
        let mut client = Peer::connect(gateway.address());
        client.write(upgrade("/bad", ""));
        let answer = client.answer();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
    let open: Vec<Peer> = (0..12).map(|_| Peer::open(gateway.address(), "/good")).collect();
    let counts: Vec<[u32; 2]> = counts.iter().map(|it| *it.lock().expect("no panic")).collect();
    assert_eq!(counts.iter().map(|it| it[1]).sum::<u32>(), 24, "{counts:?}");
    assert!(counts.iter().all(|it| it[0] == 3), "{counts:?}");
    drop(open);
}

/// A request that is with a server is not repeated because that is slow.
#[test]
fn a_slow_server_is_waited_for() {
    let servers = [(); 2].map(|()| Upstream::listen());
    let addresses = servers.each_ref().map(Upstream::address);
    let limits = "[limits]\nattempt_timeout_ms = 200\nconnect_timeout_ms = 400\n";
    let gateway = Gateway::start(&(group(&addresses, "balance = \"hash\"\n") + limits));
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/", ""));
    let (sender, asked) = std::sync::mpsc::channel();
    for upstream in servers {
        let sender = sender.clone();
        std::thread::spawn(move || while sender.send(upstream.accept()).is_ok() {});
    }
    let (mut server, head) = asked.recv().expect("an upstream");
    let again = asked.recv_timeout(std::time::Duration::from_millis(600));
    assert!(again.is_err(), "both have been asked");
    server.write(switching(&head, ""));
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[test]
fn when_nobody_is_left_the_client_is_told() {
    let gone = [(); 2].map(|()| Upstream::listen().address());
    let gateway = Gateway::start(&group(&gone, "panic_percent = 0\neject_failures = 1\n"));
    let ask = || {
        let mut client = Peer::connect(gateway.address());
        client.write(upgrade("/", ""));
        client.answer()
    };
    // Both were tried, and then one is out: half of them stay in.
    for _ in 0..3 {
        let answer = ask();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
    let gateway = Gateway::start(&group(&gone, "").replace("\nurl", "\nmode = \"disabled\"\nurl"));
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/", ""));
    let answer = client.answer();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "),
        "{answer}"
    );
}

#[test]
fn a_full_upstream_makes_clients_wait() {
    let server = Named::start("only");
    let config = group(&[server.address], "");
    let config = config + "connections_max = 1\n[limits]\nconnect_timeout_ms = 400\n";
    let gateway = Gateway::start(&config);
    let (mut first, ..) = join(&gateway, "/", "");
    // One waits in vain.
    let mut late = Peer::connect(gateway.address());
    late.write(upgrade("/", ""));
    let answer = late.answer();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("connections"), "{answer}");
    // The next gets its turn when the first has gone.
    let mut next = Peer::connect(gateway.address());
    next.write(upgrade("/", ""));
    first.send(0x88, &[]);
    drop(first);
    let head = next.head();
    assert!(head.starts_with("HTTP/1.1 101 ") || head.starts_with("HTTP/1.1 503 "), "{head}");
}

/// Many leave at once, and as many have waited: each of these gets a place, in one turn or more.
#[test]
fn room_for_many_is_given_to_many() {
    const COUNT: usize = 300;
    let server = Named::start("only");
    let config = group(&[server.address], "") + &format!("connections_max = {COUNT}\n");
    // Longer than anything here takes: nobody is let in by a deadline of another's.
    let gateway = Gateway::start(&(config + "[limits]\nconnect_timeout_ms = 60_000\n"));
    let first: Vec<Peer> = (0..COUNT).map(|_| join(&gateway, "/", "").0).collect();
    let mut next: Vec<Peer> = (0..COUNT).map(|_| Peer::connect(gateway.address())).collect();
    next.iter_mut().for_each(|peer| peer.write(upgrade("/", "")));
    // The one shard reads what came first, so all of them wait once this has its answer.
    let mut probe = Peer::connect(gateway.address());
    probe.write("nonsense\r\n\r\n");
    assert!(probe.head().starts_with("HTTP/1.1 400 "));
    // The ends of the first all lie in one turn.
    gateway.signal(Signal::STOP);
    first.into_iter().for_each(Peer::reset);
    gateway.signal(Signal::CONT);
    for peer in &mut next {
        let head = peer.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }
}

#[test]
fn a_cookie_brings_a_client_back() {
    let servers = ["a", "b", "c"].map(Named::start);
    let lines = "balance = \"round-robin\"\nsticky_cookie = true\nsticky_cookie_secret = \"s\"\n";
    let gateway = Gateway::start(&group(&servers.each_ref().map(|it| it.address), lines));
    // By ordinary requests, as a polling transport begins.
    let mut client = Peer::connect(gateway.address());
    client.write("GET /poll HTTP/1.1\r\nHost: t\r\n\r\n");
    let head = client.head();
    let first = String::from_utf8(client.bytes(1)).expect("a name");
    let cookie = header(&head, "set-cookie").expect("a cookie");
    assert!(cookie.starts_with("penstock_upstream="), "{cookie}");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair").to_owned();
    for _ in 0..7 {
        let (_client, name, head) = join(&gateway, "/", &format!("Cookie: x=y; {pair}\r\n"));
        assert_eq!(name, first);
        // It has it already.
        assert_eq!(header(&head, "set-cookie"), None, "{head}");
    }
    let (_client, _, head) = join(&gateway, "/", "Cookie: penstock_upstream=0123456789abcdef\r\n");
    assert!(header(&head, "set-cookie").is_some(), "{head}");
}

/// Whoever came by https, as a trusted proxy says, gets a cookie for https only, by HTTP and WebSocket.
#[test]
fn a_cookie_is_for_https_where_a_trusted_proxy_says_so() {
    let servers = ["a", "b"].map(Named::start);
    let lines = "sticky_cookie = true\nsticky_cookie_secret = \"s\"\n";
    let file = group(&servers.each_ref().map(|it| it.address), lines);
    let trusting = file.replacen("[[route]]", "trusted_proxies = [\"127.0.0.1\"]\n[[route]]", 1);
    assert_ne!(file, trusting, "a listener's table stands before the routes");
    for (file, says, is_secure) in [
        (&trusting, "X-Forwarded-Proto: https\r\n", true),
        (&trusting, "X-Forwarded-Proto: wss\r\n", true),
        (&trusting, "Forwarded: for=203.0.113.7;proto=https\r\n", true),
        (&trusting, "X-Forwarded-Proto: http\r\n", false),
        (&trusting, "", false),
        (&file, "X-Forwarded-Proto: https\r\n", false),
    ] {
        let gateway = Gateway::start(file);
        let (_client, _, upgraded) = join(&gateway, "/", says);
        let mut client = Peer::connect(gateway.address());
        client.write(format!("GET /poll HTTP/1.1\r\nHost: t\r\n{says}\r\n"));
        for head in [upgraded, client.head()] {
            let cookie = header(&head, "set-cookie").expect("a cookie");
            assert_eq!(cookie.ends_with("; Secure"), is_secure, "{says}: {cookie}");
        }
    }
}

/// Clients of one key share an upstream, over HTTP and WebSocket alike.
#[test]
fn a_key_leads_to_one_upstream() {
    let servers = ["a", "b", "c"].map(Named::start);
    let lines = "balance = \"hash\"\nhash_key = \"header:X-Room\"\nhash_load_percent = 0\n";
    let gateway = Gateway::start(&group(&servers.each_ref().map(|it| it.address), lines));
    let mut names = std::collections::BTreeSet::new();
    for room in 0..16 {
        let header = format!("X-Room: {room}\r\n");
        let (_client, name, _) = join(&gateway, "/", &header);
        let mut client = Peer::connect(gateway.address());
        client.write(format!("GET / HTTP/1.1\r\nHost: t\r\n{header}\r\n"));
        client.head();
        assert_eq!(client.bytes(1), name.as_bytes());
        names.insert(name);
    }
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn an_upstream_may_be_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("penstock-e2e-{}.sock", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let head = HEAD.replace("shards = 2", "shards = 1");
    let url = format!("unix:{}:/inner", path.display());
    let gateway = Gateway::start(&format!(
        "{head}[[route]]\nbackend = \"app\"\n[backend.app]\nkind = \"websocket\"\nurl = \"{url}\"\n\
         host = \"upstream\"\n"
    ));
    let mut client = Peer::connect(gateway.address());
    client.write("GET /outer?q HTTP/1.1\r\nHost: t\r\n\r\n");
    let (mut server, _) = listener.accept().expect("a connection");
    std::fs::remove_file(&path).expect("it was made above");
    let mut request = [0; 4096];
    let len = std::io::Read::read(&mut server, &mut request).expect("a request");
    let request = String::from_utf8_lossy(&request[..len]).into_owned();
    assert!(request.starts_with("GET /inner?q HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(&request, "host"), Some("localhost"));
    std::io::Write::write_all(&mut server, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .expect("it is read");
    client.head();
    assert_eq!(client.bytes(2), b"ok");
}

/// Connections are made from the addresses that the file lists; with one that is not this machine's the
/// client gets 503 and a time, the upstream is named in no failure, and the shortage is counted.
#[test]
fn connections_are_made_from_the_listed_addresses() {
    let upstream = Upstream::listen();
    let lines = "source_addresses = [\"127.0.0.7\", \"127.0.0.8\"]\n";
    let gateway = Gateway::start(&group(&[upstream.address()], lines));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..24 {
        let mut client = Peer::connect(gateway.address());
        client.write(upgrade("/", ""));
        let (mut server, head) = upstream.accept();
        seen.insert(server.stream.peer_addr().expect("it is connected").ip().to_string());
        server.write(switching(&head, ""));
        client.head();
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["127.0.0.7", "127.0.0.8"]);
    let lines = "source_addresses = [\"192.0.2.77\"]\n";
    let mut gateway = Gateway::start(&group(&[upstream.address()], lines));
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/", ""));
    let answer = client.answer();
    let is_told = answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: ");
    assert!(is_told && answer.contains("the log has more of"), "{answer}");
    gateway.log_line_containing("no local port is left");
    drop(client);
    let stopped = gateway.stop();
    stopped.expect("memory_pressure 1");
    let counts = stopped.lines.iter().find(|line| line.contains("failures of upstreams"));
    assert!(counts.is_some_and(|line| line.contains("failures of upstreams 0,")), "{counts:?}");
}
