//! The bare references: the least that a single-threaded server can do, with io_uring or with plain
//! `send()`. They are the floor that the gateway is measured against, not servers to be used: they
//! check next to nothing.

pub(crate) mod ring_echo;
pub(crate) mod ring_relay;
mod rings;
pub(crate) mod send_loop;

use std::ffi::CString;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::kernel::descriptors_max;
use crate::kernel::ring::Setup;

/// What all need to know.
pub(crate) struct Options {
    /// Port 0 for one of the kernel's choice.
    pub(crate) address: SocketAddr,
    /// Rings of the one thread; each holds at most RLIMIT_NOFILE sockets.
    pub(crate) rings: u32,
    /// Until it ends by itself.
    pub(crate) time: Duration,
    pub(crate) congestion: Option<CString>,
}

/// How long a wait may keep us from looking at the stop flag.
const TURN: Duration = Duration::from_millis(100);

impl Options {
    fn setup(&self, targets: Vec<SocketAddr>) -> Setup {
        Setup {
            slots: descriptors_max().saturating_sub(32).max(1),
            buffers: 16,
            buffer_bytes: 64 * 1024,
            targets,
            sources: Vec::new(),
            congestion: self.congestion.clone(),
        }
    }

    /// One listener for each ring on one address: the kernel spreads connections over them. (With
    /// one listener for all, every connection would go to the same ring.)
    fn listen(&self) -> io::Result<(Vec<Socket>, SocketAddr)> {
        let mut address = self.address;
        let mut listeners = Vec::new();
        for _ in 0..self.rings {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(self.rings > 1)?;
            // Accepted sockets inherit both.
            socket.set_tcp_nodelay(true)?;
            if let Some(name) = &self.congestion {
                socket.set_tcp_congestion(name.as_bytes())?;
            }
            socket.bind(&address.into()).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
            })?;
            socket.listen(65_535)?;
            // With port 0, those that follow have to share what the first was given.
            address = socket.local_addr()?.as_socket().expect("an internet address");
            listeners.push(socket);
        }
        Ok((listeners, address))
    }
}

/// When a server ends: told to, or after its time.
struct Until<'a> {
    stop: &'a AtomicBool,
    deadline: Instant,
    turns: u32,
}

impl<'a> Until<'a> {
    fn new(stop: &'a AtomicBool, time: Duration) -> Until<'a> {
        // An instant beyond the clock's range is a century away from mattering.
        let now = Instant::now();
        let deadline = now.checked_add(time).unwrap_or(now + Duration::from_secs(86_400 * 365));
        Until { stop, deadline, turns: 0 }
    }

    /// Looks at the clock every 1024th turn only; `idle` turns are slow enough to look each time.
    fn over(&mut self, idle: bool) -> bool {
        self.turns = self.turns.wrapping_add(1);
        let look = idle || self.turns.is_multiple_of(1024);
        self.stop.load(Ordering::Relaxed) || (look && Instant::now() >= self.deadline)
    }
}
