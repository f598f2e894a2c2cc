//! The echo that the servers on ready-made runtimes have in common: `fastwebsockets` on whatever
//! has tokio's `AsyncRead` and `AsyncWrite`, in the way of its own examples.
//!
//! In their favour, the handshake is ours: with hyper, as in those examples, each read would go
//! through a layer more. Frames are echoed as they come, without putting messages together. What
//! is ready-made stays as it is by default: 64 MiB for a message, 8 KiB to read at once.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use fastwebsockets::{Frame, OpCode, Role, WebSocket, WebSocketError};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ring_echo::find_key;
use crate::websocket::{RESPONSE_BYTES_MAX, accept, encode_upgrade};

/// Serves one client until it is gone. What it does wrong ends its connection and is of interest
/// to nobody.
pub(super) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let _: Result<(), WebSocketError> = echo(stream).await;
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), WebSocketError> {
    upgrade(&mut stream).await?;
    // To a stream that takes one buffer at a time, a header by itself would be a send by itself.
    let is_vectored = stream.is_write_vectored();
    let mut socket = WebSocket::after_handshake(stream, Role::Server);
    socket.set_writev(is_vectored);
    loop {
        // Pings and the Close frame are answered in there.
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => break,
            OpCode::Text | OpCode::Binary | OpCode::Continuation => {
                // A frame that was read remembers its mask, and would be written with one.
                let answer = Frame::new(frame.fin, frame.opcode, None, frame.payload);
                socket.write_frame(answer).await?;
                // Nothing for a socket of tokio's. The bridges to owned buffers have said "written"
                // before it was, and go on with what is left of a short write only here.
                socket.flush().await?;
            }
            OpCode::Ping | OpCode::Pong => {}
        }
    }
    let mut stream = socket.into_inner();
    stream.flush().await?;
    stream.shutdown().await?;
    Ok(())
}

async fn upgrade(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.ends_with(b"\r\n\r\n") {
        // A client has to wait for our answer (RFC 6455 §4.1), so that nothing follows the head.
        if stream.read_buf(&mut head).await? == 0 || head.len() > RESPONSE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let key = find_key(&head).ok_or(io::ErrorKind::InvalidData)?;
    let mut response = Vec::new();
    encode_upgrade(&mut response, &accept(key));
    stream.write_all(&response).await?;
    stream.flush().await
}

/// What a server has to report at its end. Shared with its accepting task.
#[derive(Debug, Default)]
pub(super) struct Counts {
    accepted: AtomicU64,
    accept_errors: AtomicU64,
}

impl Counts {
    /// Counts the result of an accept. After `None`, which is mostly that RLIMIT_NOFILE is reached,
    /// another try at once would fail as well.
    pub(super) fn on_accepted<T>(&self, result: io::Result<T>) -> Option<T> {
        let count = if result.is_ok() { &self.accepted } else { &self.accept_errors };
        count.fetch_add(1, Ordering::Relaxed);
        result.ok()
    }

    pub(super) fn report(&self) -> Value {
        json!({
            "accepted_count": self.accepted.load(Ordering::Relaxed),
            "accept_errors_count": self.accept_errors.load(Ordering::Relaxed),
        })
    }
}
