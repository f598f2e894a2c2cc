//! The WebSocket echo as one writes it with tokio and `fastwebsockets`: one thread, one task for
//! each connection, epoll beneath.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::fast_echo::{self, Counts};
use super::{Options, TURN, Turns};

/// Serves until told to stop or out of time. Clients are bounded by RLIMIT_NOFILE.
pub(super) fn run(
    options: &Options,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Value> {
    let (listener, address) = options.listen_alone()?;
    listener.set_nonblocking(true)?;
    let counts = Arc::new(Counts::default());
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener.into())?;
        tokio::spawn(accept(listener, Arc::clone(&counts)));
        on_listening(address);
        while turns.next(true) {
            sleep(TURN).await;
        }
        Ok(counts.report())
    })
}

async fn accept(listener: TcpListener, counts: Arc<Counts>) {
    loop {
        match counts.on_accepted(listener.accept().await) {
            Some((stream, _)) => {
                tokio::spawn(fast_echo::serve(stream));
            }
            None => sleep(TURN).await,
        }
    }
}
