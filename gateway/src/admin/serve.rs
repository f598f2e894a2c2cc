//! Connections of the interface: how many there may be, and how long a request may take to come and to
//! be answered.
//!
//! | Bound | At it |
//! | --- | --- |
//! | connections, and those of one address over TCP | the one that has been idle for the longest makes room: silent since it came, or since its last answer was taken; where all are being answered, the next gets a kept place |
//! | kept places, and those of one address over TCP | the same; where all are being answered, the next is closed |
//! | what is asked in a kept place | a health probe is answered; anything else where there is another place by now, or else it gets 503; the connection ends after the answer |
//! | time for a request's head, silence between two requests included | closed |
//! | bytes of a head | 431 |
//! | a request's body | no request has one; it is not read, and the connection ends after the answer |
//! | requests of one connection that are there already | one is answered, then everybody else has a turn; a health probe that is the first of its connection's goes before them |
//! | the same, in one read | the last that is answered ends the connection: whoever sends so many before it reads its answers |
//! | time from a whole request until its answer was taken | cut off |
//! | time in which a client over TCP takes nothing of its answer | cut off (`TCP_USER_TIMEOUT`) |
//!
//! Whoever was told to go is counted no more, and is gone when its task has run, which is before the next
//! but one is accepted.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Extension;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use axum::serve::{Listener, ListenerExt};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    /// The Unix socket.
    Unix,
    /// Elsewhere.
    Tcp(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Unix => f.write_str("the admin socket"),
            Peer::Tcp(address) => address.fmt(f),
        }
    }
}

/// See the head of this file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections at a time, without those in kept places.
    pub(super) connections: usize,
    /// Those of one address among them, over TCP.
    pub(super) of_address: usize,
    /// Places for health probes when there is no other.
    pub(super) kept: usize,
    /// Those of one address among them, over TCP.
    pub(super) kept_of_address: usize,
    /// For the head of a request, from the end of the one before.
    pub(super) head: Duration,
    /// For the answer to be made and taken, from the end of the head.
    pub(super) answer: Duration,
    /// For the next bytes of an answer to be taken.
    pub(super) stall: Duration,
    /// Requests that are answered of what one read has brought.
    pub(super) pipelined: u32,
}

impl Default for Bounds {
    fn default() -> Bounds {
        let seconds = Duration::from_secs;
        Bounds {
            connections: 64,
            of_address: 16,
            kept: 4,
            kept_of_address: 2,
            head: seconds(10),
            answer: seconds(60),
            stall: seconds(30),
            pipelined: 16,
        }
    }
}

/// What the path of a health probe begins with.
const HEALTH: &str = "/api/v1/health/";

/// Bytes of a request's head, at most.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Answers on the Unix socket for as long as the runtime is there.
pub(super) async fn unix(listener: UnixListener, router: Router, bounds: Bounds) {
    serve(listener, router, bounds, |_| Peer::Unix).await;
}

/// Answers over TCP for as long as the runtime is there.
pub(super) async fn tcp(listener: TcpListener, router: Router, bounds: Bounds) {
    let listener = listener.tap_io(move |stream: &mut TcpStream| {
        // A socket that takes neither is on its way out.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&*stream).set_tcp_user_timeout(Some(bounds.stall));
    });
    serve(listener, router, bounds, |address| Peer::Tcp(*address)).await;
}

async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    bounds: Bounds,
    peer_of: fn(&L::Addr) -> Peer,
) {
    let guests = Arc::new(Guests { bounds, present: Mutex::default() });
    loop {
        // It waits for a moment when there is no descriptor.
        let (stream, address) = listener.accept().await;
        let peer = peer_of(&address);
        let ip = match peer {
            Peer::Unix => None,
            Peer::Tcp(address) => Some(address.ip()),
        };
        let Some(place) = Guests::add(&guests, ip) else { continue };
        let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
        tokio::spawn(async move {
            let place = Arc::new(place);
            let service = service_fn(|request: hyper::Request<Incoming>| {
                let is_probe = request.uri().path().starts_with(HEALTH);
                let answer = place.ask(is_probe).then(|| service.call(request));
                let place = Arc::clone(&place);
                // Those that were read together, this one included.
                let count = place.unread.fetch_add(1, Ordering::Relaxed) + 1;
                async move {
                    // One request of each connection at a time. Otherwise hyper answers many that are
                    // there already before it lets go, and who has come meanwhile waits for all of them.
                    if !is_probe || count > 1 {
                        tokio::task::yield_now().await;
                    }
                    let mut response = match answer {
                        Some(answer) => answer.await?,
                        None => no_place(),
                    };
                    if place.is_kept() || count >= bounds.pipelined {
                        let last = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, last);
                    }
                    Ok::<_, Infallible>(response.map(|body| AnswerBody { body, place }))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                // Who ends its stream behind a request waits for the answer.
                .half_close(true)
                .header_read_timeout(bounds.head)
                .max_header_size(HEAD_BYTES_MAX)
                .max_buf_size(4 * HEAD_BYTES_MAX)
                .serve_connection(
                    TokioIo::new(Watched { stream, place: Arc::clone(&place) }),
                    service,
                );
            tokio::select! {
                // Whatever a client did wrong is its own affair.
                _ = connection => {}
                () = place.dismissed.notified() => {}
                () = place.is_late() => {}
            }
        });
        // A request that is there already is seen before the next one may ask its client to make room.
        tokio::task::yield_now().await;
    }
}

fn no_place() -> Response<Body> {
    let why =
        "all connections of the admin interface are in use; here only health probes are answered\n";
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], why).into_response()
}

/// Who is connected.
struct Guests {
    bounds: Bounds,
    /// `connections + kept` at most.
    present: Mutex<Vec<Guest>>,
}

struct Guest {
    /// Its place's own: see [`Place::dismissed`].
    dismissed: Arc<Notify>,
    /// `None`: it came over the Unix socket.
    ip: Option<IpAddr>,
    is_kept: bool,
    doing: Doing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing, since it came or took its last answer.
    Idle(Instant),
    /// Its request was whole then.
    Asking(Instant),
    /// The answer to the request of then is whole; it may not be taken yet.
    Answered(Instant),
}

/// A connection's place, until this is dropped.
struct Place {
    guests: Arc<Guests>,
    /// Tells it to go. Its address in memory is the place's name.
    dismissed: Arc<Notify>,
    /// Requests that have begun since its connection was read last.
    unread: AtomicU32,
}

impl Guests {
    /// `None`: there is no room for it, not even a kept place.
    fn add(guests: &Arc<Guests>, ip: Option<IpAddr>) -> Option<Place> {
        let mut present = guests.lock();
        let is_kept = !guests.make_room(&mut present, ip, false);
        if is_kept && !guests.make_room(&mut present, ip, true) {
            return None;
        }
        let dismissed = Arc::new(Notify::new());
        let doing = Doing::Idle(Instant::now());
        present.push(Guest { dismissed: Arc::clone(&dismissed), ip, is_kept, doing });
        drop(present);
        Some(Place { guests: Arc::clone(guests), dismissed, unread: AtomicU32::new(0) })
    }

    /// Sends away at most one of each sort that there would be too many of. `false`: all are being
    /// answered.
    fn make_room(&self, present: &mut Vec<Guest>, ip: Option<IpAddr>, kept: bool) -> bool {
        let Bounds { connections, of_address, kept: kept_max, kept_of_address, .. } = self.bounds;
        let (all, own) = if kept { (kept_max, kept_of_address) } else { (connections, of_address) };
        let of = |guest: &Guest| guest.is_kept == kept && guest.ip == ip;
        if ip.is_some() && present.iter().filter(|guest| of(guest)).count() >= own {
            return dismiss(present, of);
        }
        present.iter().filter(|guest| guest.is_kept == kept).count() < all
            || dismiss(present, |guest| guest.is_kept == kept)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Guest>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends away the one of these that has been idle for the longest. `false`: none is.
fn dismiss(present: &mut Vec<Guest>, among: impl Fn(&Guest) -> bool) -> bool {
    let idle = present.iter().enumerate().filter(|(_, guest)| among(guest));
    let oldest = idle.filter_map(|(at, guest)| match guest.doing {
        Doing::Idle(since) => Some((since, at)),
        Doing::Asking(_) | Doing::Answered(_) => None,
    });
    let Some((_, at)) = oldest.min() else { return false };
    present.remove(at).dismissed.notify_one();
    true
}

impl Place {
    /// A request is whole. Whether it is to be answered: not where nothing but a kept place was there for
    /// what is no health probe.
    fn ask(&self, is_probe: bool) -> bool {
        let mut present = self.guests.lock();
        // Once it was sent away nothing of its answer goes out.
        let Some(at) = self.at(&present) else { return false };
        present[at].doing = Doing::Asking(Instant::now());
        if !present[at].is_kept || is_probe {
            return true;
        }
        let ip = present[at].ip;
        let moved = self.guests.make_room(&mut present, ip, false);
        if moved && let Some(at) = self.at(&present) {
            present[at].is_kept = false;
        }
        moved
    }

    fn is_kept(&self) -> bool {
        let present = self.guests.lock();
        self.at(&present).is_some_and(|at| present[at].is_kept)
    }

    /// The whole answer is with hyper.
    fn answered(&self) {
        self.change(|doing| match doing {
            Doing::Asking(since) => Doing::Answered(since),
            other => other,
        });
    }

    /// All that hyper had is with the kernel.
    fn flushed(&self) {
        self.change(|doing| match doing {
            Doing::Answered(_) => Doing::Idle(Instant::now()),
            other => other,
        });
    }

    /// Returns when a request has not been answered in time.
    async fn is_late(&self) {
        let Bounds { answer, .. } = self.guests.bounds;
        loop {
            let doing = {
                let present = self.guests.lock();
                self.at(&present).map(|at| present[at].doing)
            };
            // A request that begins meanwhile ends later than this.
            let deadline = match doing {
                Some(Doing::Asking(since) | Doing::Answered(since)) => since + answer,
                Some(Doing::Idle(_)) | None => Instant::now() + answer,
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    fn change(&self, next: impl FnOnce(Doing) -> Doing) {
        let mut present = self.guests.lock();
        if let Some(at) = self.at(&present) {
            present[at].doing = next(present[at].doing);
        }
    }

    /// `None`: it was sent away.
    fn at(&self, present: &[Guest]) -> Option<usize> {
        present.iter().position(|guest| Arc::ptr_eq(&guest.dismissed, &self.dismissed))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = self.guests.lock();
        if let Some(at) = self.at(&present) {
            present.remove(at);
        }
    }
}

/// The body of an answer, which tells the place when hyper has all of it.
struct AnswerBody {
    body: Body,
    place: Arc<Place>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.place.answered();
    }
}

/// A connection, which tells the place when it was read, and when the kernel has all that was to be sent:
/// hyper flushes when it has nothing left itself.
struct Watched<S> {
    stream: S,
    place: Arc<Place>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (this, before) = (self.get_mut(), buffer.filled().len());
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.place.unread.store(0, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.place.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n";
    const PROBE: &[u8] = b"GET /api/v1/health/ready HTTP/1.1\r\nhost: t\r\n\r\n";
    const LARGE: &[u8] = b"GET /large HTTP/1.1\r\nhost: t\r\n\r\n";
    const LARGE_BYTES: usize = 64 << 20;

    /// A server that tells where a request comes from.
    async fn start(bounds: Bounds) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let large = || async { vec![b'x'; LARGE_BYTES] };
        let router = Router::new()
            .route("/", get(|Extension(peer): Extension<Peer>| async move { peer.to_string() }))
            .route("/api/v1/health/ready", get(async || "ready"))
            .route("/large", get(large));
        tokio::spawn(tcp(listener, router, bounds));
        address
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("it listens")
    }

    /// Everything up to the end.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn a_head_has_to_come_in_time_and_so_has_the_next() {
        let address = start(Bounds { head: Duration::from_millis(50), ..Bounds::default() }).await;
        for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nhost: t\r\n"] {
            let mut slow = connect(address).await;
            slow.write_all(begun).await.expect("it is read");
            assert!(!rest(&mut slow).await.contains("200 OK"), "{begun:?}");
        }
        let mut client = connect(address).await;
        let from = client.local_addr().expect("it is connected").to_string();
        client.write_all(GET).await.expect("it is read");
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(&from), "{answer}");
    }

    /// Asks, and waits for the whole head of the answer; what else came with it.
    async fn ask(client: &mut TcpStream, request: &[u8]) -> String {
        client.write_all(request).await.expect("the kernel takes it");
        let mut bytes = [0; 4096];
        let asked = tokio::time::timeout(Duration::from_secs(5), client.read(&mut bytes)).await;
        // A reset is no answer.
        let received = asked.expect("an answer in time").unwrap_or(0);
        String::from_utf8_lossy(&bytes[..received]).into_owned()
    }

    #[tokio::test]
    async fn who_has_its_answer_makes_room_the_longest_idle_first() {
        let address = start(Bounds { connections: 3, ..Bounds::default() }).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(connect(address).await);
        }
        // The one that came first has asked last, and one of them asks for nothing.
        for at in [1, 0] {
            assert!(ask(&mut clients[at], GET).await.starts_with("HTTP/1.1 200 "));
        }
        for gone in [2, 1] {
            let mut next = connect(address).await;
            assert!(ask(&mut next, GET).await.starts_with("HTTP/1.1 200 "));
            assert_eq!(rest(&mut clients[gone]).await, "", "{gone}");
            clients.push(next);
        }
        assert!(ask(&mut clients[0], GET).await.starts_with("HTTP/1.1 200 "), "it was sent away");
    }

    #[tokio::test]
    async fn a_health_probe_has_a_place_where_all_take_their_time() {
        let bounds = Bounds { connections: 2, kept: 2, kept_of_address: 1, ..Bounds::default() };
        let address = start(bounds).await;
        let mut deaf = Vec::new();
        for _ in 0..2 {
            let mut client = connect(address).await;
            assert!(ask(&mut client, LARGE).await.starts_with("HTTP/1.1 200 "));
            deaf.push(client);
        }
        // Silent ones of one address have one kept place between them.
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(connect(address).await);
        }
        let mut other = connect(address).await;
        let refused = ask(&mut other, GET).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert_eq!(rest(&mut other).await, "", "it is over after the answer");
        let mut probe = connect(address).await;
        let answer = ask(&mut probe, PROBE).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        // The two are served as before, and their places are free for whoever came to a kept one.
        let mut late = connect(address).await;
        drop(deaf);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(ask(&mut late, GET).await.starts_with("HTTP/1.1 200 "));
        assert!(ask(&mut late, GET).await.starts_with("HTTP/1.1 200 "), "it stays");
    }

    #[tokio::test]
    async fn whole_tables_of_answered_and_silent_ones_do_not_delay_a_probe() {
        let address = start(Bounds::default()).await;
        let connect_from = async |last: u8| {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("all of 127/8 is ours");
            socket.connect(address).await.expect("it listens")
        };
        let mut there = Vec::new();
        for last in 2..6 {
            for _ in 0..16 {
                let mut client = connect_from(last).await;
                assert!(ask(&mut client, GET).await.starts_with("HTTP/1.1 200 "));
                there.push(client);
            }
            for _ in 0..8 {
                there.push(connect_from(last).await);
            }
        }
        let started = Instant::now();
        let mut probe = connect_from(9).await;
        assert!(ask(&mut probe, PROBE).await.starts_with("HTTP/1.1 200 "));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn requests_behind_each_other_are_a_bounded_number() {
        let address = start(Bounds { pipelined: 5, ..Bounds::default() }).await;
        for (count, answers) in [(4, 4), (5, 5), (100, 5)] {
            let mut client = connect(address).await;
            client.write_all(&GET.repeat(count)).await.expect("the kernel takes it");
            if count < 5 {
                client.shutdown().await.expect("it is connected");
            }
            let got = rest(&mut client).await;
            assert_eq!(got.matches("HTTP/1.1 200 OK").count(), answers, "of {count}: {got}");
            assert_eq!(got.matches("connection: close").count(), usize::from(count >= 5), "{got}");
        }
        // One after the other they are as many as anybody likes.
        let mut client = connect(address).await;
        for _ in 0..20 {
            assert!(ask(&mut client, GET).await.starts_with("HTTP/1.1 200 OK"));
        }
    }

    /// Counts what is answered while a probe waits.
    #[tokio::test]
    async fn a_probe_does_not_wait_for_requests_behind_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let served = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&served);
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            async {}
        };
        let router = Router::new()
            .route("/", get(count))
            .route("/api/v1/health/ready", get(async || "ready"));
        let bounds = Bounds { pipelined: u32::MAX, ..Bounds::default() };
        tokio::spawn(tcp(listener, router, bounds));
        let mut probe = connect(address).await;
        assert!(ask(&mut probe, PROBE).await.starts_with("HTTP/1.1 200 OK"));
        let mut busy = connect(address).await;
        busy.write_all(&GET.repeat(1000)).await.expect("the kernel takes it");
        while served.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let before = served.load(Ordering::Relaxed);
        assert!(ask(&mut probe, PROBE).await.starts_with("HTTP/1.1 200 OK"));
        let meanwhile = served.load(Ordering::Relaxed) - before;
        assert!(meanwhile < 10, "{meanwhile} of the other's requests came first");
        assert!(served.load(Ordering::Relaxed) < 1000, "they were over");
    }

    #[tokio::test]
    async fn an_answer_has_a_deadline() {
        let answer = Duration::from_millis(100);
        let address = start(Bounds { answer, ..Bounds::default() }).await;
        let mut slow = connect(address).await;
        slow.write_all(LARGE).await.expect("it is read");
        tokio::time::sleep(2 * answer).await;
        assert!(rest(&mut slow).await.len() < LARGE_BYTES, "it got all of it");
        // Idle ones are not meant.
        let mut idle = connect(address).await;
        assert!(ask(&mut idle, GET).await.starts_with("HTTP/1.1 200 "));
        tokio::time::sleep(2 * answer).await;
        assert!(ask(&mut idle, GET).await.starts_with("HTTP/1.1 200 "), "it was cut off");
    }

    #[tokio::test]
    async fn who_asks_for_nothing_keeps_nobody_out() {
        for bounds in [
            Bounds { connections: 4, ..Bounds::default() },
            Bounds { of_address: 4, ..Bounds::default() },
        ] {
            let address = start(bounds).await;
            let mut silent = Vec::new();
            for _ in 0..20 {
                silent.push(connect(address).await);
            }
            let mut probe = connect(address).await;
            probe.write_all(GET).await.expect("the kernel takes it");
            assert_eq!(probe.read(&mut [0]).await.expect("an answer"), 1);
            assert_eq!(rest(&mut silent.remove(0)).await, "", "the oldest was sent away");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let address = start(Bounds::default()).await;
        let mut client = connect(address).await;
        let head = [&GET[..GET.len() - 2], b"x: ", &[b'x'; HEAD_BYTES_MAX]].concat();
        client.write_all(&head).await.expect("it is read, or lies in the socket");
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn a_body_is_not_read() {
        let address = start(Bounds::default()).await;
        let mut client = connect(address).await;
        let head = b"GET / HTTP/1.1\r\nhost: t\r\ncontent-length: 1000000000\r\n\r\nand so on";
        client.write_all(head).await.expect("it is read");
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_holds_no_place_for_ever() {
        let stall = Duration::from_millis(100);
        let address = start(Bounds { connections: 1, stall, ..Bounds::default() }).await;
        let mut deaf = connect(address).await;
        deaf.write_all(LARGE).await.expect("it is read");
        let mut next = connect(address).await;
        next.write_all(GET).await.expect("the kernel takes it");
        let mut byte = [0];
        assert_eq!(next.read(&mut byte).await.expect("an answer"), 1);
        drop(deaf);
    }
}
