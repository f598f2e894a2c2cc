//! One TCP connection of the simulated network: two ends, a bounded stream of bytes each way.
//!
//! ```text
//!   written by one end ->  | arrived, not yet read | on the way, each with its hour |
//!                          0                       arrived                          bytes.len()
//! ```
//!
//! `bytes.len() <= capacity`: what is not read fills the window, and the sender waits.

use std::collections::VecDeque;

use crate::time::Time;

/// The end that connected.
pub(super) const CONNECTOR: usize = 0;
/// The end that was accepted.
pub(super) const ACCEPTOR: usize = 1;

pub(super) struct Link {
    /// By the end that writes.
    streams: [Stream; 2],
    ends: [End; 2],
    /// The end outside the gateway reads in sips.
    pub(super) slow: bool,
}

#[derive(Default)]
struct Stream {
    bytes: VecDeque<u8>,
    arrived: usize,
    on_the_way: VecDeque<(Time, usize)>,
    /// When the end of the stream arrives behind the last byte.
    finish_at: Option<Time>,
}

#[derive(Default)]
struct End {
    /// Its socket is gone.
    closed: bool,
    /// When a reset arrives here.
    reset_at: Option<Time>,
    /// The reset has been reported. The kernel does so once; whoever asks next reads the end of
    /// the stream, and whoever writes is told of a broken pipe.
    error_taken: bool,
}

/// Bytes that a link holds in one direction: socket buffers and the window between them.
const CAPACITY_BYTES: usize = 64 * 1024;
/// The same towards somebody slow.
const CAPACITY_SLOW_BYTES: usize = 512;

impl Link {
    pub(super) fn new(slow: bool) -> Link {
        Link { streams: Default::default(), ends: Default::default(), slow }
    }

    /// Bytes that `end` may write now.
    pub(super) fn room(&self, end: usize) -> usize {
        let capacity = if self.slow { CAPACITY_SLOW_BYTES } else { CAPACITY_BYTES };
        capacity - self.streams[end].bytes.len()
    }

    /// Writes as much as there is room for. Towards an end that is gone everything is taken, lost,
    /// and answered with a reset.
    pub(super) fn write(&mut self, end: usize, bytes: &[u8], arrival: Time) -> usize {
        if self.ends[1 - end].closed {
            self.ends[end].reset_at.get_or_insert(arrival);
            return bytes.len();
        }
        let count = bytes.len().min(self.room(end));
        let stream = &mut self.streams[end];
        stream.bytes.extend(&bytes[..count]);
        if count > 0 {
            // Bytes do not overtake each other.
            let arrival = stream.on_the_way.back().map_or(arrival, |last| last.0.max(arrival));
            stream.on_the_way.push_back((arrival, count));
        }
        count
    }

    /// Bytes that `end` may read now. A reset takes with it what had not arrived before.
    pub(super) fn readable(&mut self, end: usize, now: Time) -> usize {
        let now = self.ends[end].reset_at.unwrap_or(Time::NEVER).min(now);
        let stream = &mut self.streams[1 - end];
        while stream.on_the_way.front().is_some_and(|next| next.0 <= now) {
            stream.arrived += stream.on_the_way.pop_front().map_or(0, |next| next.1);
        }
        stream.arrived
    }

    /// Reads `count` bytes, which [`Link::readable`] has promised.
    pub(super) fn read(&mut self, end: usize, count: usize) -> Vec<u8> {
        let stream = &mut self.streams[1 - end];
        stream.arrived -= count;
        stream.bytes.drain(..count).collect()
    }

    /// Ends the stream that `end` writes, behind the bytes on their way.
    pub(super) fn finish(&mut self, end: usize, arrival: Time) {
        let stream = &mut self.streams[end];
        let arrival = stream.on_the_way.back().map_or(arrival, |last| last.0.max(arrival));
        stream.finish_at.get_or_insert(arrival);
    }

    /// `end` has ended its stream.
    pub(super) fn has_finished(&self, end: usize) -> bool {
        self.streams[end].finish_at.is_some()
    }

    /// Everything was read and the other end has finished.
    pub(super) fn at_end(&self, end: usize, now: Time) -> bool {
        let stream = &self.streams[1 - end];
        stream.bytes.is_empty() && stream.finish_at.is_some_and(|at| at <= now)
    }

    /// A reset has arrived at `end`.
    pub(super) fn is_reset(&self, end: usize, now: Time) -> bool {
        self.ends[end].reset_at.is_some_and(|at| at <= now)
    }

    /// Reports the reset: true the first time.
    pub(super) fn take_error(&mut self, end: usize) -> bool {
        !std::mem::replace(&mut self.ends[end].error_taken, true)
    }

    /// A reset arrives at `end`.
    pub(super) fn reset(&mut self, end: usize, arrival: Time) {
        self.ends[end].reset_at.get_or_insert(arrival);
    }

    /// `end` closes its socket: the other end reads the end of the stream, or a reset when `end`
    /// leaves bytes unread (RFC 2525 §2.17), which destroys what was on its way.
    pub(super) fn close(&mut self, end: usize, arrival: Time) {
        self.ends[end].closed = true;
        if self.ends[1 - end].reset_at.is_some() {
            // It hears of that, and of no end of the stream.
            return;
        }
        let unread = &mut self.streams[1 - end];
        if unread.bytes.is_empty() {
            self.finish(end, arrival);
        } else {
            *unread = Stream { finish_at: unread.finish_at, ..Stream::default() };
            self.reset(1 - end, arrival);
        }
    }

    /// Both sockets are gone.
    pub(super) fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.closed)
    }

    /// The next instant after `now` at which something arrives.
    pub(super) fn next_event(&self, now: Time) -> Time {
        let resets = self.ends.iter().filter_map(|end| end.reset_at);
        let finishes = self.streams.iter().filter_map(|stream| stream.finish_at);
        let bytes = self.streams.iter().flat_map(|stream| &stream.on_the_way).map(|next| next.0);
        resets.chain(finishes).chain(bytes).filter(|at| *at > now).min().unwrap_or(Time::NEVER)
    }
}
