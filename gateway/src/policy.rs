//! What holds for the connections of one route: the process's limits, or the route's own.

use std::time::Duration;

use crate::limits::Limits;
use crate::rate::Rates;

/// The policy of one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// One message of a client, all its fragments together. At most [`Limits::message_bytes_max`].
    pub message_bytes_max: usize,
    /// From the last sign of life to a Ping; zero: no Pings.
    pub ping_interval: Duration,
    /// From a Ping to the end of patience.
    pub ping_timeout: Duration,
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
            ping_interval: limits.ping_interval,
            ping_timeout: limits.ping_timeout,
            rates: limits.rates,
            connections_max: 0,
        }
    }
}
