//! The same echo on tokio-uring: tokio's scheduler, with a ring that its epoll watches.
//!
//! Its streams take a buffer and give it back when the operation is over, which `fastwebsockets`
//! knows nothing of, and nobody keeps a bridge between the two. The one below copies everything
//! through a buffer for each direction and allocates nothing per message. What this measures is
//! therefore tokio-uring with such a bridge, and not the least that tokio-uring could do.
//!
//! tokio-uring has had no release since May 2024.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;
use tokio_uring::net::{TcpListener, TcpStream};

use super::fast_echo::{self, Counts};
use super::{Options, TURN, Turns};

/// What is read at once, as much as `fastwebsockets` would by itself.
const READ_BYTES: usize = 8 * 1024;
/// What is written at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// Submissions before the kernel has to be called, as many as monoio has; the default is 256.
const SUBMISSIONS: u32 = 1024;

/// Serves until told to stop or out of time. Clients are bounded by RLIMIT_NOFILE.
pub(super) fn run(
    options: &Options,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Value> {
    let (listener, address) = options.listen_alone()?;
    let counts = Rc::new(Counts::default());
    let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(SUBMISSIONS))?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener.into());
        tokio_uring::spawn(accept(listener, Rc::clone(&counts)));
        on_listening(address);
        while turns.next(true) {
            sleep(TURN).await;
        }
        Ok(counts.report())
    })
}

async fn accept(listener: TcpListener, counts: Rc<Counts>) {
    loop {
        match counts.on_accepted(listener.accept().await) {
            Some((stream, _)) => {
                tokio_uring::spawn(fast_echo::serve(bridge(stream)));
            }
            None => sleep(TURN).await,
        }
    }
}

/// Lets a stream of owned buffers be read and written with borrowed ones.
fn bridge(stream: TcpStream) -> impl AsyncRead + AsyncWrite + Unpin {
    Bridge {
        stream: Rc::new(stream),
        read: Operation::new(read, Vec::with_capacity(READ_BYTES)),
        taken: 0,
        write: Operation::new(write, Vec::new()),
    }
}

async fn read(stream: Rc<TcpStream>, bytes: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
    stream.read(bytes).await
}

async fn write(stream: Rc<TcpStream>, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
    stream.write_all(bytes).await
}

struct Bridge<R, W> {
    stream: Rc<TcpStream>,
    read: Operation<R>,
    /// Bytes of the read buffer that have been handed on: taken <= the buffer's length.
    taken: usize,
    write: Operation<W>,
}

/// A read or a write, with the buffer for it.
struct Operation<F> {
    new_future: fn(Rc<TcpStream>, Vec<u8>) -> F,
    /// The operation that is under way. One box for all of them, one after the other.
    future: Pin<Box<Option<F>>>,
    /// Empty while an operation is under way.
    bytes: Vec<u8>,
}

impl<F, T> Operation<F>
where
    F: Future<Output = (io::Result<T>, Vec<u8>)>,
{
    fn new(new_future: fn(Rc<TcpStream>, Vec<u8>) -> F, bytes: Vec<u8>) -> Operation<F> {
        Operation { new_future, future: Box::pin(None), bytes }
    }

    fn is_under_way(&self) -> bool {
        self.future.is_some()
    }

    /// Begins one with what is in `bytes`. It is the ring's from the first `poll` on.
    fn start(&mut self, stream: &Rc<TcpStream>) {
        let bytes = std::mem::take(&mut self.bytes);
        self.future.set(Some((self.new_future)(Rc::clone(stream), bytes)));
    }

    /// The result of the one under way; `None` when none is.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<T>>> {
        let Some(future) = self.future.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let (result, bytes) = ready!(future.poll(cx));
        self.future.set(None);
        self.bytes = bytes;
        Poll::Ready(Some(result))
    }
}

impl<R, W> AsyncRead for Bridge<R, W>
where
    R: Future<Output = (io::Result<usize>, Vec<u8>)>,
    W: Future<Output = (io::Result<()>, Vec<u8>)>,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Bridge { stream, read, taken, .. } = self.get_mut();
        if *taken == read.bytes.len() {
            if !read.is_under_way() {
                read.bytes.clear();
                read.start(stream);
            }
            *taken = 0;
            if let Some(result) = ready!(read.poll(cx)) {
                result?;
            }
        }
        // Nothing at the end of the stream.
        let rest = &read.bytes[*taken..];
        let len = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..len]);
        *taken += len;
        Poll::Ready(Ok(()))
    }
}

impl<R, W> AsyncWrite for Bridge<R, W>
where
    R: Future<Output = (io::Result<usize>, Vec<u8>)>,
    W: Future<Output = (io::Result<()>, Vec<u8>)>,
{
    /// Takes a copy and says that it was written; whether it was, the next write or flush tells.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let Bridge { stream, write, .. } = self.get_mut();
        let len = buf.len().min(WRITE_BYTES_MAX);
        write.bytes.clear();
        write.bytes.extend_from_slice(&buf[..len]);
        write.start(stream);
        if let Poll::Ready(Some(result)) = write.poll(cx) {
            result?;
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(self.get_mut().write.poll(cx)).unwrap_or(Ok(())))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Poll::Ready(self.stream.shutdown(Shutdown::Write))
    }
}
