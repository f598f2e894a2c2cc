//! Connections of the interface: how many there may be, and how long a request may take to come.
//!
//! | Bound | At it |
//! | --- | --- |
//! | connections, and those of one address over TCP | the oldest that has asked for nothing makes room for the next; where all have asked, the next waits until one has ended, or is closed if it is of that address |
//! | time for a request's head, silence between two requests included | closed |
//! | bytes of a head | 431 |
//! | a request's body | no request has one; it is not read, and the connection ends after the answer |
//! | time in which a client over TCP takes nothing of its answer | cut off (`TCP_USER_TIMEOUT`) |

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::serve::{Listener, ListenerExt};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, Semaphore};

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
    /// Connections at a time.
    pub(super) connections: usize,
    /// Those of one address among them, over TCP.
    pub(super) of_address: usize,
    /// For the head of a request, from the end of the one before.
    pub(super) head: Duration,
    /// For the next bytes of an answer to be taken.
    pub(super) stall: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        let seconds = Duration::from_secs;
        Bounds { connections: 64, of_address: 16, head: seconds(10), stall: seconds(30) }
    }
}

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
    let places = Arc::new(Semaphore::new(bounds.connections));
    let guests = Arc::new(Guests::default());
    loop {
        // It waits for a moment when there is no descriptor.
        let (stream, address) = listener.accept().await;
        let peer = peer_of(&address);
        let ip = match peer {
            Peer::Unix => None,
            Peer::Tcp(address) => Some(address.ip()),
        };
        if ip.is_some() && guests.count(ip) >= bounds.of_address && !guests.dismiss_silent(ip) {
            continue;
        }
        if places.available_permits() == 0 {
            guests.dismiss_silent(None);
        }
        // They are never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let guest = guests.add(ip);
        let guests = Arc::clone(&guests);
        let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                guest.has_asked.store(true, Ordering::Relaxed);
                service.call(request)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(bounds.head)
                .max_header_size(HEAD_BYTES_MAX)
                .max_buf_size(4 * HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // Whatever a client did wrong is its own affair.
                _ = connection => {}
                () = guest.dismissed.notified() => {}
            }
            guests.remove(&guest);
            drop(place);
        });
    }
}

/// Who is connected, in the order in which they came.
#[derive(Default)]
struct Guests(Mutex<VecDeque<Arc<Guest>>>);

struct Guest {
    /// `None`: it came over the Unix socket.
    ip: Option<IpAddr>,
    /// A request of it was whole.
    has_asked: AtomicBool,
    dismissed: Notify,
}

impl Guests {
    fn add(&self, ip: Option<IpAddr>) -> Arc<Guest> {
        let guest = Guest { ip, has_asked: AtomicBool::new(false), dismissed: Notify::new() };
        let guest = Arc::new(guest);
        self.with(|guests| guests.push_back(Arc::clone(&guest)));
        guest
    }

    fn remove(&self, guest: &Arc<Guest>) {
        self.with(|guests| guests.retain(|it| !Arc::ptr_eq(it, guest)));
    }

    fn count(&self, ip: Option<IpAddr>) -> usize {
        self.with(|guests| guests.iter().filter(|guest| guest.ip == ip).count())
    }

    /// Sends away the one that has been there for the longest without having asked for anything: of
    /// this address, or of all. `false`: all have asked.
    fn dismiss_silent(&self, ip: Option<IpAddr>) -> bool {
        self.with(|guests| {
            let oldest = guests.iter().position(|guest| {
                (ip.is_none() || guest.ip == ip) && !guest.has_asked.load(Ordering::Relaxed)
            });
            let Some(guest) = oldest.and_then(|at| guests.remove(at)) else { return false };
            guest.dismissed.notify_one();
            true
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut VecDeque<Arc<Guest>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n";

    /// A server that tells where a request comes from.
    async fn start(bounds: Bounds) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let large = || async { vec![b'x'; 64 << 20] };
        let router = Router::new()
            .route("/", get(|Extension(peer): Extension<Peer>| async move { peer.to_string() }))
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

    #[tokio::test]
    async fn one_connection_too_many_waits_for_another_to_end() {
        let address = start(Bounds { connections: 2, ..Bounds::default() }).await;
        let [mut first, mut second] = [connect(address).await, connect(address).await];
        for client in [&mut first, &mut second] {
            client.write_all(GET).await.expect("it is read");
            assert_eq!(client.read(&mut [0]).await.expect("an answer"), 1);
        }
        let mut third = connect(address).await;
        third.write_all(GET).await.expect("the kernel takes it");
        let mut byte = [0];
        let early = tokio::time::timeout(Duration::from_millis(50), third.read(&mut byte)).await;
        assert!(early.is_err(), "it was served beside the two");
        drop(first);
        assert_eq!(third.read(&mut byte).await.expect("an answer"), 1);
        drop(second);
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
        deaf.write_all(b"GET /large HTTP/1.1\r\nhost: t\r\n\r\n").await.expect("it is read");
        let mut next = connect(address).await;
        next.write_all(GET).await.expect("the kernel takes it");
        let mut byte = [0];
        assert_eq!(next.read(&mut byte).await.expect("an answer"), 1);
        drop(deaf);
    }
}
