//! Every bound an operator can move, and what ties one to another.
//! What they add up to in bytes is in [`memory_bound`](crate::memory_bound).
//!
//! The defaults stand in [`Limits::default`] and nowhere else; `docs/penstock.toml` repeats them
//! under a test. What happens at a bound (wait, shed, close) is written where the bound is met.

use std::time::Duration;

use crate::rate::{Action, Flow, Rate, Rates};
use crate::ws::frame::{CONTROL_BYTES_MAX, FRAME_HEADER_BYTES_MAX};

/// The largest message that can be configured where messages are assembled. Each is in one piece, so
/// this is also the largest single allocation that a client can cause. A relay assembles nothing, and
/// has no such bound.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The least `message_bytes_max` that can be configured: control frames carry as much and are never too
/// big.
pub const MESSAGE_BYTES_LEAST: usize = CONTROL_BYTES_MAX;

/// The longest control frame: a header and 125 bytes of payload (RFC 6455 §5.5).
pub const CONTROL_FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES_MAX + 125;

/// What an outbox must hold beyond one message of the largest size: the message's own header, and
/// a Ping, a Pong and a Close that must not wait for it.
pub const OUTBOX_SPARE_BYTES: usize = 1024;

/// The least `outbox_bytes_max` that can be configured.
pub const OUTBOX_BYTES_LEAST: usize = MESSAGE_BYTES_LEAST + OUTBOX_SPARE_BYTES;

/// The largest `outbox_bytes_max` that can be configured.
pub const OUTBOX_BYTES_MAX: usize = 1 << 30;

/// The least `memory_bytes_max` that can be configured: one message of the largest size, and what a
/// shard has before anybody comes.
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// The largest: a petabyte.
pub const MEMORY_BYTES_MOST: u64 = 1 << 50;

/// Slots of one shard's table: the kernel takes no larger table of direct descriptors.
pub const SLOTS_PER_SHARD_MAX: u32 = 1 << 20;

/// Slots that all shards together get when the file does not say: a million relayed pairs.
pub const SLOTS_DEFAULT_TOTAL: u32 = 2 << 20;

/// Shards in one process. More than one per CPU is allowed, because each brings a table of its own.
pub const SHARDS_MAX: u16 = 1024;

/// Listeners in one file; each is a socket in every shard.
pub const LISTENERS_MAX: usize = 64;

/// Routes in one file. A handshake looks at them one after the other.
pub const ROUTES_MAX: usize = 4096;

/// Backends in one file.
pub const BACKENDS_MAX: usize = 1024;

/// Numbers of routes, those of routes included that have left the file and still have connections,
/// which keep the number of their route in 16 bits. A reload that needs more is refused.
pub const ROUTE_NUMBERS_MAX: usize = 1 << 16;

/// Numbers of backends, those of backends included that have left the file and are still in use.
/// Shards have tables by that number. A reload that needs more is refused.
pub const BACKEND_NUMBERS_MAX: usize = 4 * BACKENDS_MAX;

/// Limits that hold for every connection of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line and headers of one request, and of an upstream's answer.
    pub head_bytes_max: usize,
    /// Header fields in one head.
    pub headers_max: usize,
    /// The request target (path and query). Less than `head_bytes_max`.
    pub target_bytes_max: usize,
    /// From the accept to the last byte of the request head: one deadline, however it trickles.
    pub handshake_timeout: Duration,
    /// From the request until an upstream is connected, waiting for room included.
    pub connect_timeout: Duration,
    /// From trying one of several upstreams until it is connected; then the next is tried.
    pub attempt_timeout: Duration,
    /// From a handshake on its way to an upstream that is connected until its answer.
    pub upgrade_timeout: Duration,
    /// From an ordinary HTTP request to an upstream until its answer, and between two parts of either.
    pub response_timeout: Duration,
    /// From an answer to the client's next request on the same connection.
    pub keepalive_timeout: Duration,
    /// The body of an ordinary HTTP request; larger ones are refused. Zero: no limit.
    pub request_body_bytes_max: u64,
    /// Bytes that the body of an ordinary HTTP request has to bring a second, over each time of
    /// `body_grace` in which the client is read; zero: any.
    pub body_bytes_per_second_min: u32,
    /// From the request's way to the upstream until its rate counts, and from then to the next time.
    pub body_grace: Duration,
    /// One message of a client, all its fragments together; zero: no limit. What a route comes to,
    /// and whether this is enough for it, its policy says.
    pub message_bytes_max: usize,
    /// The payload of one frame of a client; zero: as much as its message may have.
    pub frame_bytes_max: usize,
    /// Bytes queued for one peer. At least the largest message that a route assembles, and
    /// [`OUTBOX_SPARE_BYTES`].
    pub outbox_bytes_max: usize,
    /// How long the oldest of those bytes may have waited.
    pub outbox_age_max: Duration,
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
    /// From our Close frame to closing the socket without the peer's.
    pub close_timeout: Duration,
    /// In this time the clients of an upstream that has died are told; few clients take less.
    pub lost_window: Duration,
    /// Clients that are asked to come back are told to wait a time drawn up to this.
    pub retry_after_max: Duration,
    /// What a client may send before the upstream has accepted.
    pub early_bytes_max: usize,
    /// Sessions of Engine.IO of which one shard remembers the upstream; at least 1.
    pub sids_max: usize,
    /// From the last request of such a session until it is forgotten.
    pub sid_idle: Duration,
    /// Clients in the whole process. At most what the tables hold; a relayed client takes two slots.
    pub connections_max: u32,
    /// `SO_SNDBUF` of every client, inherited from the listener; zero: the kernel decides.
    pub send_buffer_bytes: u32,
    /// `SO_RCVBUF` of every client, inherited from the listener; zero: the kernel decides.
    pub receive_buffer_bytes: u32,
    /// How much a client may do.
    pub rates: Rates,
}

impl Default for Limits {
    fn default() -> Limits {
        DEFAULTS
    }
}

const DEFAULTS: Limits = Limits {
    head_bytes_max: 16_384,
    headers_max: 64,
    target_bytes_max: 8192,
    handshake_timeout: Duration::from_millis(5000),
    connect_timeout: Duration::from_millis(5000),
    attempt_timeout: Duration::from_millis(2000),
    upgrade_timeout: Duration::from_millis(10_000),
    response_timeout: Duration::from_millis(60_000),
    keepalive_timeout: Duration::from_millis(60_000),
    request_body_bytes_max: 0,
    body_bytes_per_second_min: 500,
    body_grace: Duration::from_millis(30_000),
    message_bytes_max: 1 << 20,
    frame_bytes_max: 0,
    outbox_bytes_max: outbox_bytes_default(1 << 20),
    outbox_age_max: Duration::from_millis(30_000),
    ping_interval: Duration::from_millis(25_000),
    ping_timeout: Duration::from_millis(20_000),
    upstream_ping_interval: Duration::ZERO,
    idle_timeout: Duration::ZERO,
    duration_max: Duration::ZERO,
    close_timeout: Duration::from_millis(5000),
    lost_window: Duration::from_millis(2000),
    retry_after_max: Duration::from_millis(5000),
    early_bytes_max: 16_384,
    sids_max: 262_144,
    sid_idle: Duration::from_millis(120_000),
    // Cut to what the tables hold when the file is checked.
    connections_max: u32::MAX,
    send_buffer_bytes: 262_144,
    receive_buffer_bytes: 0,
    rates: Rates {
        connection: Flow {
            messages: Rate::NONE,
            bytes: Rate::NONE,
            // Ten times what a client needs that measures its latency. A stall of a minute or two
            // lets what was sent once a second arrive at once.
            control_frames: Rate::new(100, 200),
        },
        address: Flow { messages: Rate::NONE, bytes: Rate::NONE, control_frames: Rate::NONE },
        address_handshakes: Rate::NONE,
        address_connections_max: 0,
        action: Action::Close,
    },
};

// A client that keeps up can always be sent one more message of the largest size.
const _: () = assert!(DEFAULTS.outbox_bytes_max >= DEFAULTS.message_bytes_max + OUTBOX_SPARE_BYTES);
// A message does not shut out the control frames that keep the connection alive.
const _: () = assert!(OUTBOX_SPARE_BYTES >= FRAME_HEADER_BYTES_MAX + 3 * CONTROL_FRAME_BYTES_MAX);
// The longest allowed target leaves room for the headers of an upgrade.
const _: () = assert!(DEFAULTS.target_bytes_max + 1024 <= DEFAULTS.head_bytes_max);
// A frame header and its mask are counted in 64 bits, lengths in memory in `usize`.
const _: () = assert!(MESSAGE_BYTES_MAX < u32::MAX as usize);
// A silent client is found out before a balancer in between forgets it after a minute.
const _: () =
    assert!(DEFAULTS.ping_interval.as_millis() + DEFAULTS.ping_timeout.as_millis() < 60_000);
// A client that wakes up in time answers all that an upstream may have asked meanwhile.
const _: () = assert!(
    PONGS_OWED_MAX as u128 * 1000
        == DEFAULTS.rates.connection.control_frames.per_second() as u128
            * (DEFAULTS.ping_interval.as_millis() + DEFAULTS.ping_timeout.as_millis())
);
// An outbox counts in 32 bits. Beyond its bound it holds a message that was assembled and what
// was received until reading stopped, which is far less than the bound once more.
const _: () = assert!(2 * OUTBOX_BYTES_MAX + MESSAGE_BYTES_MAX < u32::MAX as usize);
// Route and backend numbers are kept in 16 bits per connection.
const _: () = assert!(ROUTES_MAX <= u16::MAX as usize);
const _: () = assert!(BACKEND_NUMBERS_MAX <= u16::MAX as usize);
// All tables together can be counted in 32 bits.
const _: () = assert!((SHARDS_MAX as u64) * (SLOTS_PER_SHARD_MAX as u64) <= u32::MAX as u64);

/// Addresses that may be remembered beyond those that have a connection: they left and owe.
pub(crate) const ADDRESSES_SPARE: usize = 4096;

/// Addresses of clients that are known at once, where any limit is per address.
pub fn addresses_max(limits: &Limits) -> usize {
    limits.connections_max as usize + ADDRESSES_SPARE
}

/// `outbox_bytes_max` when the file does not say: it follows the largest message that is assembled.
pub const fn outbox_bytes_default(assembled_bytes_max: usize) -> usize {
    let least = assembled_bytes_max + OUTBOX_SPARE_BYTES;
    if least > 1 << 20 { least } else { 1 << 20 }
}

/// Pongs that a relayed client may owe its upstream: the answers to as many Pings as a client may send
/// us (`connection.control_frames`), for as long as one that answers none is kept (`ping_interval` and
/// `ping_timeout`). An upstream that asks for more has its client pay for the answers.
pub const PONGS_OWED_MAX: u16 = 4500;

/// Bytes in an outbox at which reading stops from whoever fills it.
pub const PAUSE_AT_BYTES: usize = 256 * 1024;

/// `bytes` for a human: three digits and a unit.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    let decimals = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_humans() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (16_384, "16.0 KiB"),
            (262_144, "256 KiB"),
            (3 << 29, "1.50 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), want);
        }
    }
}
