//! What holds for the connections of one route: the process's limits, or the route's own.

use std::time::Duration;

use crate::conn::Side;
use crate::limits::Limits;
use crate::rate::Rates;
use crate::ws;

/// The policy of one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// One message, all its fragments together; zero: no limit. Where messages are assembled there
    /// is one, of at most [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX).
    pub message_bytes_max: usize,
    /// The body of an ordinary HTTP request, in bytes; zero: no limit.
    pub request_body_bytes_max: u64,
    /// From an ordinary HTTP request to an upstream until its answer, and between two parts of either.
    pub response_timeout: Duration,
    /// The payload of one frame of a client; zero: as much as its message may have.
    pub frame_bytes_max: usize,
    /// From the last sign of life to a Ping; zero: no Pings.
    pub ping_interval: Duration,
    /// From a Ping to the end of patience.
    pub ping_timeout: Duration,
    /// As `ping_interval`, toward the upstream of a relayed client; zero: no Pings.
    pub upstream_ping_interval: Duration,
    /// From the last data frame in either direction to the end; zero: never.
    pub idle_timeout: Duration,
    /// From the upgrade to the end, of which up to a tenth is taken off; zero: never.
    pub duration_max: Duration,
    /// How much its clients may do.
    pub rates: Rates,
    /// Its clients in the whole process; zero: no limit but that of the process.
    pub connections_max: u32,
}

impl Policy {
    /// That of a route which says nothing of its own.
    pub fn of(limits: &Limits) -> Policy {
        Policy {
            message_bytes_max: limits.message_bytes_max,
            request_body_bytes_max: limits.request_body_bytes_max,
            response_timeout: limits.response_timeout,
            frame_bytes_max: limits.frame_bytes_max,
            ping_interval: limits.ping_interval,
            ping_timeout: limits.ping_timeout,
            upstream_ping_interval: limits.upstream_ping_interval,
            idle_timeout: limits.idle_timeout,
            duration_max: limits.duration_max,
            rates: limits.rates,
            connections_max: 0,
        }
    }

    /// From the last sign of life of the peer on this side to a Ping; zero: no Pings.
    pub fn ping_interval_of(&self, side: Side) -> Duration {
        match side {
            Side::Client => self.ping_interval,
            Side::Upstream => self.upstream_ping_interval,
        }
    }

    /// The limits that frames are held against.
    pub fn frame_limits(&self) -> ws::Limits {
        let bound = |bytes: usize| if bytes == 0 { usize::MAX } else { bytes };
        ws::Limits {
            message_bytes_max: bound(self.message_bytes_max),
            frame_bytes_max: bound(self.frame_bytes_max),
        }
    }

    /// Which limit a client was over that was closed as too big, and what it is at the moment, in bytes.
    /// `code`: [`Conn::code`](crate::conn::Conn::code).
    pub fn limit_of(&self, code: u16, is_frame: bool) -> (&'static str, u64) {
        match code {
            413 => ("request_body_bytes_max", self.request_body_bytes_max),
            _ if is_frame => ("frame_bytes_max", self.frame_bytes_max as u64),
            _ => ("message_bytes_max", self.message_bytes_max as u64),
        }
    }

    /// The largest body of an ordinary HTTP request, in bytes.
    pub fn body_bound(&self) -> u64 {
        if self.request_body_bytes_max == 0 { u64::MAX } else { self.request_body_bytes_max }
    }
}
