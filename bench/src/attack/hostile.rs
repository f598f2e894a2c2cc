//! Hostile clients: plain sockets and epoll in a thread of their own, bounded in bytes, opens and
//! time. They end with a reset, so that nothing of them stays in TIME_WAIT.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use socket2::{Domain, Protocol, Socket, Type};

use super::kinds::{Ground, Kind, Mind, Next};
use crate::engine::Reasons;

/// What bounds the attack.
pub(super) struct Bounds {
    pub(super) connections: u32,
    pub(super) addresses: u32,
    pub(super) bytes_per_second: u64,
    pub(super) opens_per_second: f64,
}

/// What the attack has done.
#[derive(Default)]
pub(super) struct Done {
    /// Read by the other thread meanwhile.
    pub(super) bytes: AtomicU64,
    pub(super) stop: AtomicBool,
}

/// What became of it.
#[derive(Default)]
pub(super) struct Found {
    pub(super) opened: u64,
    pub(super) endings: Reasons,
    /// Ended with a reset before any answer.
    pub(super) resets: u64,
    pub(super) open_max: u64,
}

struct Foe {
    socket: Option<Socket>,
    /// Not to be confused with an earlier connection in the same place.
    generation: u32,
    is_connected: bool,
    is_waiting: bool,
    is_blocked: bool,
    next: Next,
    out: Vec<u8>,
    written: usize,
    head: Vec<u8>,
    mind: Mind,
}

struct Attack<'a> {
    kind: &'a Kind,
    ground: &'a Ground,
    done: &'a Done,
    bounds: &'a Bounds,
    address: SocketAddr,
    epoll: OwnedFd,
    foes: Vec<Foe>,
    /// When a client goes on, which, and of which connection.
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Clients that are to be opened, as opens allow.
    to_open: std::collections::VecDeque<u32>,
    started: Instant,
    opens_begun: u64,
    open: u64,
    found: Found,
    buffer: Vec<u8>,
}

/// Written by one client before others get their turn.
const TURN_BYTES: usize = 256 * 1024;

/// Attacks until `done.stop`.
pub(super) fn run(
    kind: &Kind,
    ground: &Ground,
    address: SocketAddr,
    bounds: &Bounds,
    done: &Done,
) -> io::Result<Found> {
    // Of the processor time of one machine, the server and the good ones come first.
    let _ = rustix::process::nice(5);
    let foe = |index| Foe {
        socket: None,
        generation: 0,
        is_connected: false,
        is_waiting: false,
        is_blocked: false,
        next: Next::Again,
        out: Vec::new(),
        written: 0,
        head: Vec::new(),
        mind: Mind { index, ..Mind::default() },
    };
    let mut attack = Attack {
        kind,
        ground,
        done,
        bounds,
        address,
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        foes: (0..bounds.connections).map(foe).collect(),
        timers: BinaryHeap::new(),
        to_open: (0..bounds.connections).collect(),
        started: Instant::now(),
        opens_begun: 0,
        open: 0,
        found: Found::default(),
        buffer: vec![0; 256 * 1024],
    };
    attack.play()?;
    for foe in &attack.foes {
        if let Some(socket) = &foe.socket {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
    Ok(attack.found)
}

impl Attack<'_> {
    fn play(&mut self) -> io::Result<()> {
        let mut events = [const { MaybeUninit::uninit() }; 1024];
        let timeout = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        while !self.done.stop.load(Ordering::Relaxed) {
            self.open_due();
            let now = Instant::now();
            while let Some(Reverse((at, index, generation))) = self.timers.peek().copied() {
                if at > now || self.done.stop.load(Ordering::Relaxed) {
                    break;
                }
                self.timers.pop();
                if self.foes[index as usize].generation != generation {
                    continue;
                }
                match self.foes[index as usize].socket {
                    Some(_) => self.go_on(index),
                    None => self.to_open.push_back(index),
                }
            }
            let ready = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
                Ok((ready, _)) => ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in ready {
                let (data, flags) = (event.data.u64(), event.flags);
                self.on_ready(data as u32, (data >> 32) as u32, flags);
            }
        }
        Ok(())
    }

    fn open_due(&mut self) {
        let due = self.started.elapsed().as_secs_f64() * self.bounds.opens_per_second + 1.0;
        for _ in 0..512 {
            if self.opens_begun as f64 >= due {
                return;
            }
            let Some(index) = self.to_open.pop_front() else { return };
            self.opens_begun += 1;
            if let Err(error) = self.open(index) {
                self.end(index, &format!("connect: {}", error.kind()));
            }
        }
    }

    fn open(&mut self, index: u32) -> io::Result<()> {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if self.address.is_ipv4() {
            let source = 0x7F42_0001 + index % self.bounds.addresses.max(1);
            socket.bind(&SocketAddrV4::new(Ipv4Addr::from(source), 0).into())?;
        }
        let foe = &mut self.foes[index as usize];
        foe.mind = Mind { index, round: foe.mind.round, ..Mind::default() };
        (foe.is_connected, foe.is_waiting, foe.is_blocked) = (false, false, false);
        foe.next = Next::Again;
        foe.written = 0;
        foe.out.clear();
        foe.head.clear();
        match socket.connect(&self.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let data = epoll::EventData::new_u64(u64::from(foe.generation) << 32 | u64::from(index));
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, data, flags)?;
        foe.socket = Some(socket);
        self.open += 1;
        self.found.open_max = self.found.open_max.max(self.open);
        Ok(())
    }

    fn on_ready(&mut self, index: u32, generation: u32, flags: epoll::EventFlags) {
        let foe = &mut self.foes[index as usize];
        let Some(socket) = foe.socket.as_ref().filter(|_| foe.generation == generation) else {
            return;
        };
        if flags.intersects(epoll::EventFlags::ERR) {
            let error = socket.take_error().ok().flatten();
            let text = error.map_or("error".into(), |error| error.kind().to_string());
            return self.end(index, &text);
        }
        let is_stubborn = self.kind.is_stubborn;
        let mut is_over = flags.intersects(epoll::EventFlags::HUP)
            || (flags.intersects(epoll::EventFlags::RDHUP) && !is_stubborn);
        if flags.intersects(epoll::EventFlags::IN) && (self.kind.reads || !foe.mind.answered) {
            // A bound for a server that never stops: edges come again with more data.
            for _ in 0..64 {
                match (&*socket).read(&mut self.buffer) {
                    Ok(0) => {
                        is_over |= !is_stubborn;
                        break;
                    }
                    Ok(len) if !foe.mind.answered => {
                        foe.head.extend_from_slice(&self.buffer[..len]);
                        foe.mind.answered = foe.head.windows(4).any(|four| four == b"\r\n\r\n");
                        if !self.kind.reads && foe.mind.answered {
                            break;
                        }
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return self.end(index, &error.kind().to_string()),
                }
            }
        }
        if !foe.is_connected && flags.intersects(epoll::EventFlags::OUT) {
            foe.is_connected = true;
            self.found.opened += 1;
            self.go_on(index);
        } else if foe.is_blocked && flags.intersects(epoll::EventFlags::OUT) {
            foe.is_blocked = false;
            self.go_on(index);
        } else if foe.is_waiting && foe.mind.answered {
            foe.is_waiting = false;
            foe.next = Next::Again;
            self.go_on(index);
        }
        if is_over && self.foes[index as usize].generation == generation {
            self.end(index, "closed");
        }
    }

    /// Writes what is to be written, and takes steps until one has to wait.
    fn go_on(&mut self, index: u32) {
        let mut turn_bytes = 0;
        loop {
            let spent = self.done.bytes.load(Ordering::Relaxed) as f64;
            let allowed =
                (self.started.elapsed().as_secs_f64() + 0.02) * self.bounds.bytes_per_second as f64;
            let foe = &mut self.foes[index as usize];
            let Some(socket) = &foe.socket else { return };
            let wake = |after: Duration| Reverse((Instant::now() + after, index, foe.generation));
            if foe.written < foe.out.len() {
                if spent >= allowed || turn_bytes >= TURN_BYTES {
                    self.timers.push(wake(Duration::from_millis(5)));
                    return;
                }
                match (&*socket).write(&foe.out[foe.written..]) {
                    Ok(len) => {
                        foe.written += len;
                        turn_bytes += len;
                        self.done.bytes.fetch_add(len as u64, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        foe.is_blocked = true;
                        return;
                    }
                    Err(error) => return self.end(index, &error.kind().to_string()),
                }
                continue;
            }
            if foe.out.capacity() > 128 * 1024 {
                foe.out = Vec::new();
            }
            foe.out.clear();
            foe.written = 0;
            match foe.next {
                Next::Again => {
                    foe.mind.step += 1;
                    foe.next = (self.kind.step)(&mut foe.mind, self.ground, &mut foe.out);
                }
                Next::After(time) => {
                    self.timers.push(wake(time));
                    foe.next = Next::Again;
                    return;
                }
                Next::Answer if foe.mind.answered => foe.next = Next::Again,
                Next::Answer => {
                    foe.is_waiting = true;
                    return;
                }
                Next::Fin => {
                    let _ = socket.shutdown(Shutdown::Write);
                    foe.next = Next::Stay;
                    return;
                }
                Next::Leave => {
                    let _ = socket.set_linger(Some(Duration::ZERO));
                    return self.end(index, "left");
                }
                Next::Stay => return,
            }
        }
    }

    fn end(&mut self, index: u32, reason: &str) {
        let foe = &mut self.foes[index as usize];
        if foe.socket.take().is_some() {
            self.open -= 1;
        }
        // "HTTP/1.1 503 …"
        let status = foe.head.get(9..12).filter(|_| foe.head.starts_with(b"HTTP/1."));
        let status = status.map(|code| String::from_utf8_lossy(code).into_owned());
        if status.is_none() && (reason.contains("reset") || reason == "broken pipe") {
            self.found.resets += 1;
        }
        let after = status.unwrap_or_else(|| "no answer".into());
        self.found.endings.add(&format!("{reason} after {after}"));
        foe.mind.round += 1;
        // Whatever waits for the connection that is over waits in vain.
        foe.generation += 1;
        foe.out = Vec::new();
        self.timers.push(Reverse((Instant::now() + self.kind.pause, index, foe.generation)));
    }
}
