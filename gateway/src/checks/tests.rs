//! Checks against real servers, good and bad, on the runtime that the checks run on.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::probe::{Failure, not_connected};
use super::*;
use crate::handshake::accept_value;

/// For checks that must not fail for lack of time.
const PATIENCE: Duration = Duration::from_secs(60);

/// For checks that must. The servers' part is over at once, also on a busy machine.
const SHORT: Duration = Duration::from_millis(300);

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let whole = async { timeout(2 * PATIENCE, future).await.expect("an end") };
    runtime.expect("a runtime").block_on(whole)
}

fn http() -> CheckKind {
    CheckKind::Http { expected: StatusSet::default() }
}

fn target(kind: CheckKind, address: UpstreamAddress, timeout: Duration) -> Target {
    let url: UpstreamUrl = match &address {
        UpstreamAddress::Tcp(address) => format!("ws://{address}").parse().expect("a URL"),
        UpstreamAddress::Unix(path) => format!("unix:{}", path.display()).parse().expect("a URL"),
    };
    let interval = Duration::from_millis(10);
    Target {
        backend: 0,
        backend_name: "b".to_owned(),
        upstream: UpstreamName::new(&url, &address),
        path: "/health?full=1".to_owned(),
        host: url.host_header(),
        url,
        address,
        other: None,
        options: CheckOptions { kind, path: None, host: None, interval, timeout },
        health: HealthOptions::default(),
    }
}

/// Listens, and has `handle` see to each connection.
async fn serve<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> UpstreamAddress
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(handle(stream));
        }
    });
    UpstreamAddress::Tcp(address)
}

/// The request's head; nothing comes behind it before the answer.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.expect("bytes") > 0, "a whole head");
    }
    String::from_utf8(head).expect("ASCII")
}

/// Reads what the other side has to say until it is gone.
async fn until_gone(stream: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
}

/// A server that answers each request with these bytes and waits for the client to go.
async fn saying(answer: impl Into<Vec<u8>>) -> UpstreamAddress {
    let answer: Vec<u8> = answer.into();
    serve(move |mut stream| {
        let answer = answer.clone();
        async move {
            head(&mut stream).await;
            // It may have heard enough before the end.
            let _ = stream.write_all(&answer).await;
            until_gone(&mut stream).await;
        }
    })
    .await
}

fn switching(head: &str) -> String {
    let line = head.lines().find_map(|line| line.strip_prefix("Sec-Websocket-Key: "));
    let accept = accept_value(line.expect("a key"));
    let accept = String::from_utf8_lossy(&accept);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, \
         Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// A server that accepts a WebSocket, sends these bytes and waits for the client to go.
async fn accepting(frames: impl Into<Vec<u8>>) -> UpstreamAddress {
    let frames: Vec<u8> = frames.into();
    serve(move |mut stream| {
        let frames = frames.clone();
        async move {
            let answer = switching(&head(&mut stream).await);
            // In one piece, as the frames may lie behind the head in one read.
            let _ = stream.write_all(&[answer.as_bytes(), &frames].concat()).await;
            until_gone(&mut stream).await;
        }
    })
    .await
}

async fn check(kind: CheckKind, address: UpstreamAddress, timeout: Duration) -> Finding {
    let target = target(kind, address, timeout);
    probe::check(&target, &mut Random::new([1, 2])).await
}

/// A check that fails, for a reason that begins like this.
#[track_caller]
fn bad(
    kind: CheckKind,
    timeout: Duration,
    server: impl Future<Output = UpstreamAddress>,
    why: &str,
) {
    let finding = block_on(async { check(kind, server.await, timeout).await });
    let Finding::Bad(got) = &finding else { panic!("{finding:?}, want {why}") };
    assert!(got.starts_with(why), "{got}, want {why}");
}

#[track_caller]
fn good(kind: CheckKind, server: impl Future<Output = UpstreamAddress>) {
    let finding = block_on(async { check(kind, server.await, PATIENCE).await });
    assert!(matches!(finding, Finding::Good(after) if after < PATIENCE), "{finding:?}");
}

/// A path in the machine's directory for temporary files, which no other test has.
fn socket_path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("penstock-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

#[test]
fn nobody_there() {
    let refused = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        UpstreamAddress::Tcp(listener.local_addr().expect("it is bound"))
    };
    bad(CheckKind::Connect, PATIENCE, refused, "cannot connect: Connection refused");
    let missing = socket_path("missing");
    let missing = async { UpstreamAddress::Unix(missing) };
    bad(http(), PATIENCE, missing, "cannot connect: No such file");
}

/// A listener with room for one connection, which is taken, and what was tried beside it.
fn full(socket: socket2::Domain, address: &socket2::SockAddr) -> Vec<socket2::Socket> {
    let open = || socket2::Socket::new(socket, socket2::Type::STREAM, None).expect("a socket");
    let listener = open();
    listener.bind(address).expect("an address");
    listener.listen(0).expect("a listener");
    let address = listener.local_addr().expect("it is bound");
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let socket = open();
        socket.set_nonblocking(true).expect("a flag");
        // All but the first are in progress, or told to come again.
        let _ = socket.connect(&address);
        sockets.push(socket);
    }
    sockets
}

#[test]
fn nobody_accepts() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let sockets = full(socket2::Domain::IPV4, &any.into());
    let address = sockets[0].local_addr().expect("it is bound").as_socket().expect("TCP");
    let server = async { UpstreamAddress::Tcp(address) };
    bad(CheckKind::Connect, SHORT, server, "no connection within 300 ms");

    let path = socket_path("full");
    let _sockets =
        full(socket2::Domain::UNIX, &socket2::SockAddr::unix(&path).expect("a short path"));
    let server = async { UpstreamAddress::Unix(path.clone()) };
    bad(CheckKind::Connect, PATIENCE, server, "cannot connect: its queue of connections is full");
    std::fs::remove_file(&path).expect("it was bound");
}

#[test]
fn somebody_accepts() {
    good(CheckKind::Connect, saying(""));
}

#[test]
fn no_answer() {
    bad(http(), SHORT, saying(""), "no answer within 300 ms");
    bad(CheckKind::Websocket, SHORT, saying(""), "no answer within 300 ms");
    bad(http(), SHORT, saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"), "no answer within");
    let dribble = serve(async move |mut stream| {
        head(&mut stream).await;
        for byte in OK.bytes().chain(std::iter::repeat(b' ')) {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(SHORT / 10).await;
        }
    });
    bad(http(), SHORT, dribble, "no answer within 300 ms");
    let closing = || {
        serve(async move |mut stream| {
            head(&mut stream).await;
        })
    };
    bad(http(), PATIENCE, closing(), "it closed the connection without an answer");
    bad(CheckKind::Websocket, PATIENCE, closing(), "it closed the connection without an answer");
    let resetting = serve(async move |stream: TcpStream| {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    });
    bad(http(), PATIENCE, resetting, "the connection broke: Connection reset by peer");
}

#[test]
fn wrong_answers() {
    let status = |status: &str| saying(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"));
    bad(http(), PATIENCE, status("503 Busy"), "status 503, expected 200-399");
    bad(http(), PATIENCE, status("404 None"), "status 404, expected 200-399");
    bad(CheckKind::Websocket, PATIENCE, status("403 No"), "status 403, expected 101");
    bad(CheckKind::Websocket, PATIENCE, saying(OK), "status 200, expected 101");
    let set = CheckKind::Http { expected: "204, 401".parse().expect("a set") };
    bad(set, PATIENCE, saying(OK), "status 200, expected 204, 401");

    for garbage in [&b"\x15\x03\x01\x00\x02\x02\x46"[..], b"SSH-2.0-x\r\n", b"+OK\r\n", b"\0\0\0\0"]
    {
        bad(http(), PATIENCE, saying(garbage), "its answer cannot be read: ");
        bad(CheckKind::Websocket, PATIENCE, saying(garbage), "its answer cannot be read: ");
    }
    let eager = || {
        serve(async move |mut stream| {
            stream.write_all(b"SSH-2.0-x\r\n").await.expect("room");
            until_gone(&mut stream).await;
        })
    };
    bad(http(), PATIENCE, eager(), "its answer cannot be read: ");
    bad(CheckKind::Websocket, PATIENCE, eager(), "its answer cannot be read: ");
    let huge =
        |line: &str, count: usize| saying(format!("HTTP/1.1 200 OK\r\n{}", line.repeat(count)));
    let long = format!("a: {}\r\n", "b".repeat(2000));
    bad(http(), PATIENCE, huge(&long, 40), "its answer cannot be read: message head is too large");
    bad(http(), PATIENCE, huge("a: b", 40_000), "its answer cannot be read: message head is too");
    bad(http(), PATIENCE, huge("a: b\r\n", 101), "its answer cannot be read: message head is too");
    let interim = saying("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50_000));
    bad(http(), PATIENCE, interim, "the connection broke: more than 1048576 bytes of an answer");
}

#[test]
fn good_answers() {
    good(http(), saying(OK));
    // The body is not judged, whatever it is.
    good(http(), saying(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(2 << 20))));
    good(http(), saying("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"));
    good(http(), saying(format!("HTTP/1.1 103 Early Hints\r\n\r\n{OK}")));
    let never_ending = saying("HTTP/1.1 302 Found\r\ncontent-length: 9\r\n\r\n");
    let finding = block_on(async { check(http(), never_ending.await, SHORT).await });
    assert!(matches!(finding, Finding::Good(_)), "{finding:?}");

    let unusual = CheckKind::Http { expected: "500-599".parse().expect("a set") };
    good(unusual, saying("HTTP/1.0 501 No\r\ncontent-length: 0\r\n\r\n"));

    let path = socket_path("good");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    listener.set_nonblocking(true).expect("a flag");
    good(http(), async {
        let listener = UnixListener::from_std(listener).expect("a listener");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let request = head(&mut stream).await;
            assert!(request.contains("\r\nHost: localhost\r\n"), "{request}");
            stream.write_all(OK.as_bytes()).await.expect("room");
            until_gone(&mut stream).await;
        });
        UpstreamAddress::Unix(path.clone())
    });
    std::fs::remove_file(&path).expect("it was bound");
}

#[test]
fn what_is_asked() {
    let (said, mut heard) = channel(2);
    let ask = async |kind| {
        let said = said.clone();
        let server = serve(move |mut stream| {
            let said = said.clone();
            async move { said.send(head(&mut stream).await).await.expect("a listener") }
        });
        let mut target = target(kind, server.await, PATIENCE);
        "app.example:81".clone_into(&mut target.host);
        probe::check(&target, &mut Random::new([1, 2])).await
    };
    let mut lines = |kind| -> Vec<String> {
        let head = block_on(async {
            ask(kind).await;
            heard.recv().await.expect("a request")
        });
        let mut lines: Vec<_> = head.trim_end().lines().map(str::to_owned).collect();
        lines[1..].sort();
        lines
    };
    let agent = concat!("User-Agent: penstock/", env!("CARGO_PKG_VERSION"), " (check)");
    assert_eq!(
        lines(http()),
        [
            "GET /health?full=1 HTTP/1.1",
            "Accept: */*",
            "Connection: close",
            "Host: app.example:81",
            agent
        ]
    );
    let lines = lines(CheckKind::Websocket);
    assert_eq!(lines[1..3], ["Connection: Upgrade", "Host: app.example:81"]);
    assert!(lines[3].starts_with("Sec-Websocket-Key: ") && lines[3].len() == 19 + 24, "{lines:?}");
    assert_eq!(lines[4..], ["Sec-Websocket-Version: 13", "Upgrade: websocket", agent]);
}

#[test]
fn a_websocket_that_is_none() {
    let answer = |upgrade: &str, connection: &str, accept: &str| {
        saying(format!(
            "HTTP/1.1 101 X\r\nUpgrade: {upgrade}\r\nConnection: {connection}\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        ))
    };
    let websocket = || CheckKind::Websocket;
    let other = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let why = "the Sec-WebSocket-Accept of its 101 does not fit our key";
    bad(websocket(), PATIENCE, answer("websocket", "upgrade", other), why);
    bad(websocket(), PATIENCE, answer("websocket", "upgrade", ""), why);
    let why = "its 101 does not upgrade to websocket";
    bad(websocket(), PATIENCE, answer("h2c", "upgrade", other), why);
    bad(websocket(), PATIENCE, answer("websocket", "keep-alive", other), why);

    bad(websocket(), SHORT, accepting(""), "no Pong within 300 ms");
    // A Pong, but not ours; and a message that goes on.
    bad(websocket(), SHORT, accepting(b"\x8a\x00\x8a\x0812345678\x01\x01x"), "no Pong within");
    bad(websocket(), PATIENCE, accepting(b"\x88\x02\x03\xf3"), "it closed with 1011 instead of");
    bad(websocket(), PATIENCE, accepting(b"\x88\x00"), "it closed with 1005 instead of a Pong");
    bad(websocket(), PATIENCE, accepting(b"\xf1\x00"), "its frames are not WebSocket: ");
    bad(
        websocket(),
        PATIENCE,
        accepting(b"\x82\x7f\0\0\0\0\xff\xff\xff\xff"),
        "its frames are not",
    );
    let flood = [&[0x82, 126, 0xff, 0xff][..], &[0; 0xffff]].concat().repeat(17);
    bad(websocket(), PATIENCE, accepting(flood), "the connection broke: more than 1048576 bytes");
    let closing = serve(async move |mut stream| {
        let answer = switching(&head(&mut stream).await);
        stream.write_all(answer.as_bytes()).await.expect("room");
        stream.shutdown().await.expect("an open connection");
        until_gone(&mut stream).await;
    });
    bad(websocket(), PATIENCE, closing, "it closed the connection instead of a Pong");
}

#[test]
fn a_websocket_that_answers() {
    let (said, mut heard) = channel(1);
    good(
        CheckKind::Websocket,
        serve(move |mut stream| {
            let said = said.clone();
            async move {
                let answer = switching(&head(&mut stream).await);
                stream.write_all(answer.as_bytes()).await.expect("room");
                // Pongs by itself, answers a Close, and says what it has seen.
                let mut socket = WebSocket::after_handshake(stream, Role::Server);
                let greeting = Payload::Owned(vec![b'x'; 100_000]);
                socket.write_frame(Frame::text(greeting)).await.expect("room");
                let ping = Frame::new(true, OpCode::Ping, None, Payload::Borrowed(b"you"));
                socket.write_frame(ping).await.expect("room");
                let mut seen = Vec::new();
                loop {
                    let frame = socket.read_frame().await.expect("a frame");
                    seen.push(format!("{:?} {:?}", frame.opcode, &*frame.payload));
                    if frame.opcode == OpCode::Close {
                        break;
                    }
                }
                said.send(seen).await.expect("a listener");
            }
        }),
    );
    // The Ping was answered by the library and is not told; the Close is an orderly one.
    let want = ["Pong [121, 111, 117]", "Close [3, 232]"];
    assert_eq!(heard.try_recv().expect("it was told"), want);
}

#[test]
fn what_is_our_own_fault_says_nothing_of_the_upstream() {
    for (errno, hindered) in [
        (libc::EMFILE, true),
        (libc::ENFILE, true),
        (libc::ENOMEM, true),
        (libc::ENOBUFS, true),
        (libc::ENOSPC, true),
        (libc::ECONNREFUSED, false),
        (libc::EHOSTUNREACH, false),
        (libc::ENETUNREACH, false),
        (libc::EACCES, false),
    ] {
        let failure = not_connected(&std::io::Error::from_raw_os_error(errno));
        assert_eq!(matches!(failure, Failure::Hindered(_)), hindered, "{failure:?}");
    }
    // A path of a URL that hyper does not send.
    block_on(async {
        let mut target = target(http(), saying(OK).await, PATIENCE);
        "/<a>".clone_into(&mut target.path);
        let finding = probe::check(&target, &mut Random::new([1, 2])).await;
        assert!(matches!(finding, Finding::Hindered(_)), "{finding:?}");
    });
}

/// Counts when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// However it ends, a check leaves no connection behind: the server sees the end of every one.
#[test]
fn no_descriptor_is_left() {
    const CHECKS: usize = 200;
    let ended = Arc::new(AtomicUsize::new(0));
    block_on(async {
        // Every other answer is a good one, but no WebSocket gets its Pong.
        let (count, seen) = (AtomicUsize::new(0), Arc::clone(&ended));
        let server = serve(move |mut stream| {
            let (turn, seen) = (count.fetch_add(1, Ordering::Relaxed), Arc::clone(&seen));
            async move {
                // Also where the check had no time left for its request.
                let _counted = Counted(seen);
                let head = head(&mut stream).await;
                let answer = match turn % 4 {
                    1 => "nonsense\r\n\r\n".to_owned(),
                    3 => String::new(),
                    _ if turn >= CHECKS => switching(&head),
                    _ => OK.to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
                until_gone(&mut stream).await;
            }
        });
        let server = server.await;
        let short = Duration::from_millis(10);
        for kind in [http(), CheckKind::Websocket] {
            for _ in 0..CHECKS {
                check(kind.clone(), server.clone(), short).await;
            }
        }
        while ended.load(Ordering::Relaxed) < 2 * CHECKS {
            yield_now().await;
        }
    });
}

/// A Checker and where its outcomes go.
fn checker(capacity: usize) -> (Checker, Receiver<Outcome>) {
    let (outcomes, received) = channel(capacity);
    (Checker::new(outcomes, Random::new([3, 4])), received)
}

/// The next outcome of this target, past those of others.
async fn next_of(received: &mut Receiver<Outcome>, target: &Target) -> Finding {
    loop {
        let outcome = received.recv().await.expect("a checker");
        if (outcome.backend, outcome.upstream) == (target.backend, target.upstream) {
            return outcome.finding;
        }
    }
}

#[test]
fn a_reload_keeps_stops_and_starts() {
    block_on(async {
        let (mut checker, mut received) = checker(8);
        let mut kept = target(http(), saying(OK).await, PATIENCE);
        let changed = target(http(), saying(OK).await, PATIENCE);
        let gone = target(http(), saying("").await, PATIENCE);
        checker.set(vec![kept.clone(), changed.clone(), gone.clone()]);
        for target in [&kept, &changed, &kept, &changed] {
            assert!(matches!(next_of(&mut received, target).await, Finding::Good(_)));
        }
        let before: Vec<_> = checker.running.iter().map(|it| it.task.abort_handle()).collect();

        let other = Target { path: "/other".to_owned(), ..changed };
        let new = target(http(), saying("HTTP/1.1 500 No\r\n\r\n").await, PATIENCE);
        checker.set(vec![new.clone(), kept.clone(), other.clone()]);
        let of = |checker: &Checker, target: &Target| {
            let running = checker.running.iter().find(|it| it.target == *target);
            running.expect("it runs").task.id()
        };
        assert_eq!(of(&checker, &kept), before[0].id());
        assert_ne!(of(&checker, &other), before[1].id());
        while !(before[1].is_finished() && before[2].is_finished()) {
            yield_now().await;
        }
        for target in [&kept, &other] {
            assert!(matches!(next_of(&mut received, target).await, Finding::Good(_)));
        }
        let why = "status 500, expected 200-399".to_owned();
        assert_eq!(next_of(&mut received, &new).await, Finding::Bad(why));

        // Another number for its backend is another target, so that outcomes name the right one.
        kept.backend = 1;
        checker.set(vec![kept.clone()]);
        assert_eq!(checker.targets().collect::<Vec<_>>(), [&kept]);
        assert!(matches!(next_of(&mut received, &kept).await, Finding::Good(_)));

        let last = checker.running[0].task.abort_handle();
        drop(checker);
        while !last.is_finished() {
            yield_now().await;
        }
        // Nobody else holds a sender: the channel ends.
        while received.recv().await.is_some() {}
    });
}

#[test]
fn a_target_that_goes_in_the_middle_of_its_check() {
    block_on(async {
        let (said, mut heard) = channel(1);
        let server = serve(move |mut stream| {
            let said = said.clone();
            async move {
                head(&mut stream).await;
                said.send("asked").await.expect("a listener");
                until_gone(&mut stream).await;
                said.send("left").await.expect("a listener");
            }
        });
        let (mut checker, mut received) = checker(1);
        checker.set(vec![target(http(), server.await, PATIENCE)]);
        assert_eq!(heard.recv().await, Some("asked"));
        checker.set(Vec::new());
        assert_eq!(heard.recv().await, Some("left"));
        assert!(received.try_recv().is_err(), "an outcome of nothing");
    });
}

#[test]
fn checks_wait_for_whoever_wants_to_know() {
    block_on(async {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let server = serve(move |mut stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { until_gone(&mut stream).await }
        });
        let (mut waiting, mut received) = checker(1);
        waiting.set(vec![target(CheckKind::Connect, server.await, PATIENCE)]);
        let (mut quick, mut others) = checker(1);
        let target = target(CheckKind::Connect, saying(OK).await, PATIENCE);
        quick.set(vec![target.clone()]);
        for _ in 0..20 {
            next_of(&mut others, &target).await;
        }
        // One outcome is in the channel, one waits to be.
        assert!(asked.load(Ordering::Relaxed) <= 2);
        let task = waiting.running[0].task.abort_handle();
        received.recv().await.expect("the first");
        received.recv().await.expect("the second");
        drop(received);
        while !task.is_finished() {
            yield_now().await;
        }
    });
}

#[test]
fn so_many_checks_at_a_time() {
    block_on(async {
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (mut checker, mut received) = checker(1);
        checker.turns = Arc::new(Semaphore::new(2));
        let mut targets = Vec::new();
        for _ in 0..6 {
            let (open, most) = (Arc::clone(&open), Arc::clone(&most));
            let server = serve(move |mut stream| {
                let (open, most) = (Arc::clone(&open), Arc::clone(&most));
                async move {
                    head(&mut stream).await;
                    most.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    // Everybody else gets a turn, so that whoever may come is here.
                    sleep(Duration::from_millis(5)).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                    stream.write_all(OK.as_bytes()).await.expect("room");
                }
            });
            targets.push(target(http(), server.await, PATIENCE));
        }
        checker.set(targets.clone());
        for _ in 0..3 {
            for target in &targets {
                assert!(matches!(next_of(&mut received, target).await, Finding::Good(_)));
            }
        }
        assert_eq!(most.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn one_that_comes_later_goes_and_returns() {
    block_on(async {
        let path = socket_path("later");
        let target = target(http(), UpstreamAddress::Unix(path.clone()), PATIENCE);
        let (mut checker, mut received) = checker(1);
        let mut changes = Changes::default();
        changes.set(std::slice::from_ref(&target));
        checker.set(vec![target]);
        let mut next_line = async || loop {
            let outcome = received.recv().await.expect("a checker");
            if let Some(line) = changes.on_outcome(&outcome) {
                return line;
            }
        };
        let url = format!("unix:{}", path.display());
        let down = format!(
            "backend b: {url} is down: 3 checks in a row failed, the last: cannot connect: "
        );
        let line = next_line().await;
        assert!(line.starts_with(&format!("{down}No such file")), "{line}");
        for _ in 0..2 {
            let listener = UnixListener::bind(&path).expect("a socket");
            let server = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.expect("a connection");
                    head(&mut stream).await;
                    stream.write_all(OK.as_bytes()).await.expect("room");
                    until_gone(&mut stream).await;
                }
            });
            let up = format!("backend b: {url} is up again: 2 checks in a row passed");
            assert_eq!(next_line().await, up);
            server.abort();
            assert!(server.await.is_err_and(|error| error.is_cancelled()));
            let line = next_line().await;
            assert!(line.starts_with("backend b: unix:"), "{line}");
            assert!(line.contains(" is down: 3 checks in a row failed, the last: "), "{line}");
            std::fs::remove_file(&path).expect("it was bound");
        }
    });
}

#[test]
fn first_checks_are_spread() {
    let ms = Duration::from_millis;
    for (index, count, interval, want) in [
        (0, 1, ms(5000), ms(0)),
        (1, 2, ms(5000), ms(10)),
        (499, 500, ms(5000), ms(4990)),
        (1000, 5000, ms(5000), ms(1000)),
        (4999, 5000, ms(5000), ms(4999)),
        (3, 10, ms(10), ms(3)),
    ] {
        assert_eq!(first_delay(index, count, interval), want, "{index} of {count}");
    }
}

#[test]
fn intervals_are_a_tenth_shorter_or_longer() {
    let ms = Duration::from_millis;
    assert_eq!(jittered(ms(1000), 0), ms(900));
    assert_eq!(jittered(ms(1000), 1 << 63), ms(1000));
    assert!(jittered(ms(1000), u64::MAX) > Duration::from_micros(1_099_999));
    assert!(jittered(ms(1000), u64::MAX) < ms(1100));
    assert_eq!(jittered(Duration::ZERO, 7), Duration::ZERO);
    let day = Duration::from_secs(86_400);
    assert!(jittered(day, u64::MAX) < day * 11 / 10);
}

#[test]
fn who_is_checked() {
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nbackend = \"e\"\n\
                [backend.e]\nkind = \"echo\"\n\
                [backend.off]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:1\"\n\
                [backend.h]\nkind = \"websocket\"\npath = \"/socket\"\ncheck = \"http\"\n\
                check_host = \"x\"\ncheck_fall = 7\n\
                [[backend.h.upstream]]\nurl = \"ws://127.0.0.1:1/a\"\n\
                [[backend.h.upstream]]\nurl = \"ws://127.0.0.1:2\"\nmode = \"disabled\"\n\
                [[backend.h.upstream]]\nurl = \"unix:/run/a\"\nmode = \"draining\"\n\
                [backend.w]\nkind = \"websocket\"\npath = \"/socket\"\ncheck = \"websocket\"\n\
                [[backend.w.upstream]]\nurl = \"ws://127.0.0.1:1/a\"\n\
                [[backend.w.upstream]]\nurl = \"ws://127.0.0.1:2\"\n\
                [backend.v]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:1\"\n\
                check = \"websocket\"\n\
                [backend.c]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:1/a\"\n\
                check = \"connect\"\ncheck_path = \"/b\"\n";
    let config = Config::parse("f", text).unwrap_or_else(|faults| panic!("{faults}"));
    let targets = targets(&config);
    let seen: Vec<_> = targets
        .iter()
        .map(|it| (it.backend, &*it.backend_name, &*it.path, &*it.host, it.address.to_string()))
        .collect();
    let want = [
        (2, "h", "/", "x", "127.0.0.1:1"),
        (2, "h", "/", "x", "unix:/run/a"),
        (3, "w", "/a", "127.0.0.1:1", "127.0.0.1:1"),
        (3, "w", "/socket", "127.0.0.1:2", "127.0.0.1:2"),
        (4, "v", "/", "127.0.0.1:1", "127.0.0.1:1"),
        (5, "c", "/b", "127.0.0.1:1", "127.0.0.1:1"),
    ];
    assert_eq!(
        seen,
        want.map(|(index, name, path, host, at)| (index, name, path, host, at.to_owned()))
    );
    assert_eq!((targets[0].health.rise, targets[0].health.fall), (2, 7));
    assert_eq!(targets[2].upstream, UpstreamName::new(&targets[2].url, &targets[2].address));
}
