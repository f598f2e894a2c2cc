//! One check: connects, asks, judges the answer, and takes its leave.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket, WebSocketError};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use crate::handshake::{accept_value, fresh_key};
use crate::random::Random;
use crate::upstream::UpstreamAddress;

use super::{CheckKind, Finding, StatusSet, Target};

/// The head of an answer. More than the relay takes by default, as it is not kept.
const HEAD_BYTES_MAX: usize = 65_536;

/// Everything that is read in one check. The body of an answer is not judged and may be longer;
/// the frames before a Pong may not.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a check did not end well; the variants of [`Finding`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Bad(String),
    Hindered(String),
}

/// Checks `target` once. Ends within its timeout. A good answer counts when it is known to be good;
/// what follows is courtesy.
pub(super) async fn check(target: &Target, random: &mut Random) -> Finding {
    let begin = Instant::now();
    let deadline = begin + target.options.timeout;
    let clock = Clock { begin, deadline, timeout: target.options.timeout };
    let result = match &target.address {
        UpstreamAddress::Tcp(address) => {
            let stream = clock.connect(connect(*address, target.other.as_ref())).await;
            ask(stream, target, random, &clock).await
        }
        UpstreamAddress::Unix(path) => {
            let stream = clock.connect(UnixStream::connect(path)).await;
            ask(stream, target, random, &clock).await
        }
    };
    match result {
        Ok(after) => Finding::Good(after),
        Err(Failure::Bad(why)) => Finding::Bad(why),
        Err(Failure::Hindered(why)) => Finding::Hindered(why),
    }
}

/// A connection to the address of a server, or to its other one.
async fn connect(address: SocketAddr, other: Option<&UpstreamAddress>) -> io::Result<TcpStream> {
    match (TcpStream::connect(address).await, other) {
        (Err(_), Some(UpstreamAddress::Tcp(other))) => TcpStream::connect(other).await,
        (result, _) => result,
    }
}

/// The time of one check.
struct Clock {
    begin: Instant,
    deadline: Instant,
    timeout: Duration,
}

impl Clock {
    /// What is `awaited`, or the failure that it did not come in time.
    async fn by_deadline<T>(
        &self,
        what: &str,
        awaited: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(self.deadline, awaited).await.unwrap_or_else(|_| {
            Err(Failure::Bad(format!("no {what} within {} ms", self.timeout.as_millis())))
        })
    }

    async fn connect<S>(
        &self,
        connecting: impl Future<Output = io::Result<S>>,
    ) -> Result<S, Failure> {
        self.by_deadline("connection", async {
            connecting.await.map_err(|error| not_connected(&error))
        })
        .await
    }

    /// What is polite, and changes nothing any more.
    async fn courtesy(&self, leaving: impl Future<Output = ()>) {
        let _ = timeout_at(self.deadline, leaving).await;
    }
}

/// A connection to an upstream.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

async fn ask(
    stream: Result<impl Stream, Failure>,
    target: &Target,
    random: &mut Random,
    clock: &Clock,
) -> Result<Duration, Failure> {
    let stream = Bounded { stream: stream?, left: ANSWER_BYTES_MAX };
    match &target.options.kind {
        CheckKind::Connect => Ok(clock.begin.elapsed()),
        CheckKind::Http { expected } => ask_http(stream, target, expected, clock).await,
        CheckKind::Websocket => ask_websocket(stream, target, random, clock).await,
    }
}

async fn ask_http(
    stream: impl Stream,
    target: &Target,
    expected: &StatusSet,
    clock: &Clock,
) -> Result<Duration, Failure> {
    let request = request(target, &[("connection", "close"), ("accept", "*/*")])?;
    exchange(stream, request, clock, async |mut response| {
        let status = response.status().as_u16();
        if !expected.contains(status) {
            return Err(Failure::Bad(format!("status {status}, expected {expected}")));
        }
        let after = clock.begin.elapsed();
        // A socket that is closed with bytes unread answers with a reset, which servers log.
        clock
            .courtesy(async {
                let body = response.body_mut();
                while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {}
            })
            .await;
        Ok(after)
    })
    .await
}

/// The handshake is judged here (RFC 6455 §4.1) and not by `fastwebsockets`, which does not look at
/// Sec-WebSocket-Accept.
async fn ask_websocket(
    stream: impl Stream,
    target: &Target,
    random: &mut Random,
    clock: &Clock,
) -> Result<Duration, Failure> {
    let key = fresh_key([random.next_u64(), random.next_u64()]);
    let ping = random.next_u64().to_ne_bytes();
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", &key),
    ];
    let request = request(target, &headers)?;
    exchange(stream, request, clock, async |response| {
        check_switching(&response, &key)?;
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| lost(&error))?;
        let mut socket = WebSocket::after_handshake(TokioIo::new(upgraded), Role::Client);
        socket.set_max_message_size(ANSWER_BYTES_MAX);
        clock.by_deadline("Pong", ping_pong(&mut socket, &ping)).await?;
        let after = clock.begin.elapsed();
        clock
            .courtesy(async {
                let mut result = socket.write_frame(Frame::close(1000, b"")).await;
                // Until its Close, and until it ends the stream, which is for the server to do first
                // (§7.1.1).
                while result.is_ok() {
                    result = socket.read_frame().await.map(|_| ());
                }
            })
            .await;
        Ok(after)
    })
    .await
}

fn check_switching(response: &Response<Incoming>, key: &str) -> Result<(), Failure> {
    let bad = |why: &str| Err(Failure::Bad(why.to_owned()));
    let names = |name: &hyper::header::HeaderName, token: &str| {
        let values = response.headers().get_all(name).iter();
        let mut tokens =
            values.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
        tokens.any(|it| it.trim().eq_ignore_ascii_case(token))
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return bad(&format!("status {}, expected 101", response.status().as_u16()));
    }
    if !names(&UPGRADE, "websocket") || !names(&CONNECTION, "upgrade") {
        return bad("its 101 does not upgrade to websocket");
    }
    let accept = response.headers().get("sec-websocket-accept");
    if accept.is_none_or(|accept| accept.as_bytes() != accept_value(key)) {
        return bad("the Sec-WebSocket-Accept of its 101 does not fit our key");
    }
    Ok(())
}

/// Sends a Ping and waits for its Pong. Whatever else the server has to say passes by.
async fn ping_pong<S>(socket: &mut WebSocket<S>, ping: &[u8]) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let frame = Frame::new(true, OpCode::Ping, None, Payload::Owned(ping.to_vec()));
    socket.write_frame(frame).await.map_err(|error| broken(&error))?;
    loop {
        let frame = socket.read_frame().await.map_err(|error| broken(&error))?;
        match frame.opcode {
            OpCode::Pong if *frame.payload == *ping => return Ok(()),
            OpCode::Close => {
                let code = match *frame.payload {
                    [high, low, ..] => u16::from_be_bytes([high, low]),
                    _ => 1005,
                };
                return Err(Failure::Bad(format!("it closed with {code} instead of a Pong")));
            }
            _ => {}
        }
    }
}

fn request(target: &Target, headers: &[(&str, &str)]) -> Result<Request<String>, Failure> {
    let mut request = Request::get(&*target.path)
        .header("host", &target.host)
        .header("user-agent", concat!("penstock/", env!("CARGO_PKG_VERSION"), " (check)"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // The path of a URL may hold what hyper does not send.
    request
        .body(String::new())
        .map_err(|error| Failure::Hindered(format!("{} has no request: {error}", target.url)))
}

/// Sends the request, and has `judge` look at the answer while the connection goes on.
async fn exchange(
    stream: impl Stream,
    request: Request<String>,
    clock: &Clock,
    judge: impl AsyncFnOnce(Response<Incoming>) -> Result<Duration, Failure>,
) -> Result<Duration, Failure> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES_MAX).max_header_size(HEAD_BYTES_MAX);
    // There are servers that know Sec-WebSocket-Key in one spelling only.
    builder.title_case_headers(true);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| lost(&error))?;
    let mut connection = pin!(connection.with_upgrades());
    let mut talk = pin!(async {
        let answer = sender.send_request(request);
        let answer = async { answer.await.map_err(|error| lost(&error)) };
        judge(clock.by_deadline("answer", answer).await?).await
    });
    let mut connection_ended = false;
    // The connection does not run by itself, and what goes wrong with it is told to `talk`.
    poll_fn(|cx| {
        if !connection_ended {
            connection_ended = connection.as_mut().poll(cx).is_ready();
        }
        talk.as_mut().poll(cx)
    })
    .await
}

/// Why there is no connection.
pub(super) fn not_connected(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        // The upstream has not even heard of us.
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC) => {
            Failure::Hindered(format!("no socket to be had: {error}"))
        }
        // A Unix socket whose backlog is full (connect(2)).
        Some(libc::EAGAIN) => {
            Failure::Bad("cannot connect: its queue of connections is full".to_owned())
        }
        _ => Failure::Bad(format!("cannot connect: {error}")),
    }
}

/// What went wrong before there was an answer.
fn lost(error: &hyper::Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return Failure::Bad(format!("the connection broke: {cause}"));
        }
        source = cause.source();
    }
    Failure::Bad(match error.source() {
        // It spoke before it was asked, as servers of other protocols do.
        Some(cause) if error.is_canceled() => format!("its answer cannot be read: {cause}"),
        _ if error.is_incomplete_message() || error.is_canceled() => {
            "it closed the connection without an answer".to_owned()
        }
        _ => format!("its answer cannot be read: {error}"),
    })
}

/// What went wrong before there was a Pong.
fn broken(error: &WebSocketError) -> Failure {
    Failure::Bad(match error {
        WebSocketError::IoError(error) => format!("the connection broke: {error}"),
        WebSocketError::UnexpectedEOF => "it closed the connection instead of a Pong".to_owned(),
        error => format!("its frames are not WebSocket: {error}"),
    })
}

/// A stream that breaks when more has been read than one answer may have.
struct Bounded<S> {
    stream: S,
    left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        match self.left.checked_sub(buffer.filled().len() - before) {
            Some(left) => self.left = left,
            None => {
                let message = format!("more than {ANSWER_BYTES_MAX} bytes of an answer");
                return Poll::Ready(Err(io::Error::other(message)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
