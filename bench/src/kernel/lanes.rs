//! Several rings served by one thread.
//!
//! The table of direct descriptors of a ring is bounded by RLIMIT_NOFILE, so that more connections
//! than that need more rings. With one ring, the wait is the ring's own. With several, one eventfd
//! hears of all of them: the thread asks each ring without waiting (165 ns apiece) and sleeps on
//! the eventfd when none had anything.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::ring::{Ring, Setup};

/// The rings of one thread.
pub(crate) struct Lanes {
    pub(crate) rings: Vec<Ring>,
    eventfd: Option<OwnedFd>,
}

impl Lanes {
    /// Sets up `count` rings that are all alike.
    pub(crate) fn new(count: usize, setup: &Setup) -> io::Result<Lanes> {
        let rings = (0..count).map(|_| Ring::new(setup)).collect::<io::Result<Vec<_>>>()?;
        let eventfd = if count > 1 { Some(new_eventfd()?) } else { None };
        if let Some(eventfd) = &eventfd {
            for ring in &rings {
                ring.register_eventfd(eventfd.as_raw_fd())?;
            }
        }
        Ok(Lanes { rings, eventfd })
    }

    /// Hands everything queued to the kernel; returns when completions are there, a signal has
    /// arrived, or `timeout` has passed. With several rings it may return for nothing.
    pub(crate) fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()> {
        let Some(eventfd) = &self.eventfd else {
            return self.rings[0].submit_and_wait(timeout);
        };
        // Cleared before the rings are asked: what comes afterwards raises it again.
        clear(eventfd);
        for ring in &mut self.rings {
            ring.submit()?;
        }
        // The eventfd is not raised again for what a ring has put off.
        if timeout.is_zero() || self.rings.iter_mut().any(Ring::has_work) {
            return Ok(());
        }
        poll(eventfd, timeout);
        for ring in &mut self.rings {
            ring.submit()?;
        }
        Ok(())
    }
}

fn new_eventfd() -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Failing means that it was clear already.
fn clear(eventfd: &OwnedFd) {
    let mut count = [0u8; 8];
    // SAFETY: an eventfd read writes eight bytes, to a local of eight.
    unsafe { libc::read(eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// Being interrupted is as good as the timeout: the caller looks at its stop flag either way.
fn poll(eventfd: &OwnedFd, timeout: Duration) {
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = timeout.min(Duration::from_secs(60));
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: one pollfd and one timespec, both locals; no signal mask.
    unsafe { libc::ppoll(&mut poll, 1, &timeout, std::ptr::null()) };
}
