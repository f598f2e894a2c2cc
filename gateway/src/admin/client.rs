//! The other end of the admin interface: what `penstock reload`, `drain` and `status` ask.

use std::io;
use std::path::Path;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::foreign::ORDER;

/// An answer that is larger is not ours.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks the gateway behind `socket`. Blocks until it has answered.
///
/// # Errors
///
/// A sentence that says what is wrong and what to do.
pub fn ask(socket: &Path, method: Method, path: &str) -> Result<(StatusCode, Vec<u8>), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(ask_later(socket, method, path))
}

async fn ask_later(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Vec<u8>), String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "does it run? --socket names another path (admin.socket)",
            io::ErrorKind::PermissionDenied => {
                "only its user and root may, unless admin.socket_mode allows more"
            }
            io::ErrorKind::ConnectionRefused => "the gateway that made it runs no more",
            _ => "--socket names another path (admin.socket)",
        };
        format!("no gateway at {}: {error}; {advice}", socket.display())
    })?;
    let lost = |error: &dyn std::error::Error| format!("the gateway gave no answer: {error}");
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "penstock");
    let request = request.header(ORDER, "yes");
    let request = request.body(Body::empty()).map_err(|error| lost(&error))?;
    let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await;
    connection.abort();
    Ok((status, body.map_err(|error| lost(&error))?.to_vec()))
}
