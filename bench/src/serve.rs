//! Servers to measure others against, all of one thread. `ring_echo.rs`, `ring_relay.rs` (both on
//! `rings.rs`) and `send_loop.rs` do the least that such a server can do: the floor. `on_tokio.rs`,
//! `on_monoio.rs` and `on_tokio_uring.rs` are what one writes with ready-made parts (the echo in
//! `fast_echo.rs`): the natural alternatives. None is a server to be used.

mod fast_echo;
mod on_monoio;
mod on_tokio;
mod on_tokio_uring;
mod ring_echo;
mod ring_relay;
mod rings;
mod send_loop;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use socket2::{Domain, Protocol, Socket, Type};

use crate::kernel::descriptors_max;
use crate::kernel::ring::Setup;
use crate::options::{Common, seconds};
use crate::outcome::{Outcome, Watch};

/// A bare server to measure others against.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What the server does, and on what.
    #[arg(long, value_enum)]
    runtime: Runtime,
    /// Where to listen; port 0 for any. The port is best outside of ip_local_port_range.
    #[arg(long, default_value = "127.0.0.1:9001")]
    address: SocketAddr,
    /// Where ring-relay relays to.
    #[arg(long, required_if_eq("runtime", "ring-relay"), value_name = "ADDRESS")]
    upstream: Option<SocketAddr>,
    /// Rings of the one thread, of ring-echo and ring-relay; each holds as many sockets as
    /// RLIMIT_NOFILE allows.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    rings: u32,
    /// Ends by itself after this time.
    #[arg(long = "seconds", default_value = "3600", value_parser = seconds, value_name = "SECONDS")]
    time: Duration,
    /// Serves nobody every so many seconds, such as "5s": a load tool has to show it.
    #[arg(long, requires = "stall_for", value_parser = seconds, value_name = "SECONDS")]
    stall_every: Option<Duration>,
    /// How long it then serves nobody; shorter than --stall-every.
    #[arg(long, requires = "stall_every", value_parser = seconds, value_name = "SECONDS")]
    stall_for: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

/// What there is to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// Echoes WebSocket messages, on io_uring.
    RingEcho,
    /// Relays bytes to an upstream, on io_uring.
    RingRelay,
    /// Sends each message of a client to every client, with a plain send() to each.
    SendLoop,
    /// Echoes WebSocket messages, with fastwebsockets on tokio.
    Tokio,
    /// The same on monoio.
    Monoio,
    /// The same on tokio-uring.
    TokioUring,
}

/// Serves until it is told to stop or out of time.
pub(crate) fn run(options: &Options, watch: &Watch<'_>) -> io::Result<Outcome> {
    options.common.pin()?;
    let figures = serve(options, watch, |address| {
        eprintln!("listening on {address}, process {}", std::process::id());
    })?;
    Ok(Outcome::of_figures(figures))
}

/// The same, on whatever CPU the thread is; `on_listening` is told the address.
pub(crate) fn serve(
    options: &Options,
    watch: &Watch<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Map<String, Value>> {
    options.check()?;
    let mut turns = Turns::new(options, watch);
    let found = match (options.runtime, options.upstream) {
        (Runtime::RingEcho, _) => ring_echo::run(options, &mut turns, on_listening)?,
        (Runtime::RingRelay, Some(upstream)) => {
            ring_relay::run(options, upstream, &mut turns, on_listening)?
        }
        (Runtime::RingRelay, None) => return Err(io::Error::other("ring-relay has no --upstream")),
        (Runtime::SendLoop, _) => send_loop::run(options, &mut turns, on_listening)?,
        (Runtime::Tokio, _) => on_tokio::run(options, &mut turns, on_listening)?,
        (Runtime::Monoio, _) => on_monoio::run(options, &mut turns, on_listening)?,
        (Runtime::TokioUring, _) => on_tokio_uring::run(options, &mut turns, on_listening)?,
    };
    let Value::Object(found) = found else { unreachable!("each writes it as an object") };
    let runtime = options.runtime.to_possible_value().expect("none is hidden");
    let mut figures = Map::new();
    figures.insert("server".into(), runtime.get_name().into());
    figures.extend(found);
    if turns.stall.is_some() {
        figures.insert("stalls_count".into(), turns.stalls.into());
    }
    Ok(figures)
}

/// How long a wait may keep us from looking at the stop flag.
const TURN: Duration = Duration::from_millis(100);

impl Options {
    /// Refuses what goes with no or another runtime.
    fn check(&self) -> io::Result<()> {
        let error = |text: String| Err(io::Error::other(text));
        let is_on_rings = matches!(self.runtime, Runtime::RingEcho | Runtime::RingRelay);
        if self.rings > 1 && !is_on_rings {
            return error("only ring-echo and ring-relay have --rings".into());
        }
        if self.upstream.is_some() && self.runtime != Runtime::RingRelay {
            return error("only ring-relay has an --upstream".into());
        }
        if let Some((every, pause)) = self.stall()
            && pause >= every
        {
            return error("--stall-for should be shorter than --stall-every".into());
        }
        let mut addresses = [Some(self.address), self.upstream].into_iter().flatten();
        match addresses.find(|address| !address.ip().is_loopback()) {
            Some(address) if !self.common.allow_remote => {
                error(format!("{address} is not on loopback (--allow-remote to insist)"))
            }
            _ => Ok(()),
        }
    }

    /// How often to serve nobody, and how long.
    fn stall(&self) -> Option<(Duration, Duration)> {
        self.stall_every.zip(self.stall_for)
    }

    fn setup(&self, targets: Vec<SocketAddr>) -> Setup {
        Setup {
            slots: descriptors_max().saturating_sub(32).max(1),
            buffers: 16,
            buffer_bytes: 64 * 1024,
            targets,
            sources: Vec::new(),
            congestion: self.common.congestion.clone(),
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
            if let Some(name) = &self.common.congestion {
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

    /// The one listener of a server that has no rings.
    fn listen_alone(&self) -> io::Result<(Socket, SocketAddr)> {
        let (mut listeners, address) = self.listen()?;
        Ok((listeners.pop().expect("one for each ring, of which there is one"), address))
    }
}

/// The turns of a server's loop: whether there is another one, and when it may begin.
struct Turns<'a> {
    watch: &'a Watch<'a>,
    deadline: Instant,
    count: u32,
    stall: Option<Stall>,
    /// How many there were.
    stalls: u64,
}

/// What to do to clients now and then.
struct Stall {
    every: Duration,
    pause: Duration,
    next: Instant,
}

impl<'a> Turns<'a> {
    fn new(options: &Options, watch: &'a Watch<'a>) -> Turns<'a> {
        let now = Instant::now();
        let stall = options.stall().map(|(every, pause)| Stall { every, pause, next: now + every });
        Turns { watch, deadline: now + options.time, count: 0, stall, stalls: 0 }
    }

    /// False when told to stop or out of time. Looks at the clock every 1024th turn only; after
    /// `idle` turns, which are slow, each time, and with stalls too. Those pass in here: nothing
    /// else runs on the thread, whatever the runtime.
    fn next(&mut self, idle: bool) -> bool {
        self.count = self.count.wrapping_add(1);
        if self.watch.stopped() {
            return false;
        }
        let look = idle || self.count.is_multiple_of(1024) || self.stall.is_some();
        if !look {
            return true;
        }
        let mut now = Instant::now();
        if let Some(stall) = &mut self.stall
            && now >= stall.next
        {
            // A runtime of ready-made parts gets here every `TURN` only, so it may begin late;
            // it is as long as it should be, and the next is not the later for it.
            let end = (now + stall.pause).min(self.deadline);
            stall.next = (stall.next + stall.every).max(end);
            self.stalls += 1;
            while now < end && !self.watch.stopped() {
                thread::sleep(TURN.min(end - now));
                now = Instant::now();
            }
        }
        now < self.deadline
    }
}
