//! The same echo on monoio's io_uring.
//!
//! monoio's own traits lend a buffer to each operation, which `fastwebsockets` knows nothing of.
//! Between them stands `monoio-compat`, made for that by monoio's authors: with 8 KiB for each
//! direction that everything is copied through, so that a message of more than 8 KiB leaves in
//! several sends. What this measures is therefore monoio with that bridge, as one would use it, and
//! not the least that monoio could do.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use monoio::net::TcpListener;
use monoio::time::sleep;
use monoio::{IoUringDriver, RuntimeBuilder};
use monoio_compat::TcpStreamCompat;
use serde_json::Value;

use super::fast_echo::{self, Counts};
use super::{Options, TURN, Turns};

/// Serves until told to stop or out of time. Clients are bounded by RLIMIT_NOFILE.
pub(super) fn run(
    options: &Options,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Value> {
    let (listener, address) = options.listen_alone()?;
    let counts = Rc::new(Counts::default());
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new().enable_timer().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener.into())?;
        monoio::spawn(accept(listener, Rc::clone(&counts)));
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
                monoio::spawn(fast_echo::serve(TcpStreamCompat::new(stream)));
            }
            None => sleep(TURN).await,
        }
    }
}
