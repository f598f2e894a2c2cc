//! Every bound an operator can move, what ties one to another, and what they add up to in bytes.
//!
//! The defaults stand in [`Limits::default`] and nowhere else; `docs/penstock.toml` repeats them
//! under a test. What happens at a bound (wait, shed, close) is written where the bound is met.

use std::time::Duration;

use crate::addresses::ADDRESS_BYTES;
use crate::config::warnings::{Level, Warning};
use crate::config::{BackendKind, Config, Local};
use crate::conn::Meter;
use crate::memory::HISTOGRAMS;
use crate::rate::{Action, Flow, Rate, Rates};
use crate::recorder::RECORDER_BYTES_MAX;
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
// An outbox counts in 32 bits. Beyond its bound it holds a message that was assembled and what
// was received until reading stopped, which is far less than the bound once more.
const _: () = assert!(2 * OUTBOX_BYTES_MAX + MESSAGE_BYTES_MAX < u32::MAX as usize);
// Route and backend numbers are kept in 16 bits per connection.
const _: () = assert!(ROUTES_MAX <= u16::MAX as usize);
const _: () = assert!(BACKEND_NUMBERS_MAX <= u16::MAX as usize);
// All tables together can be counted in 32 bits.
const _: () = assert!((SHARDS_MAX as u64) * (SLOTS_PER_SHARD_MAX as u64) <= u32::MAX as u64);

/// Addresses that may be remembered beyond those that have a connection: they left and owe.
const ADDRESSES_SPARE: usize = 4096;

/// Addresses of clients that are known at once, where any limit is per address.
pub fn addresses_max(limits: &Limits) -> usize {
    limits.connections_max as usize + ADDRESSES_SPARE
}

/// `outbox_bytes_max` when the file does not say: it follows the largest message that is assembled.
pub const fn outbox_bytes_default(assembled_bytes_max: usize) -> usize {
    let least = assembled_bytes_max + OUTBOX_SPARE_BYTES;
    if least > 1 << 20 { least } else { 1 << 20 }
}

/// What one of a kind costs in memory: known to those who define the types.
#[derive(Clone, Copy, Debug)]
pub struct ItemSizes {
    /// A slot of the table, with all that is kept per connection beside it (timers, generation).
    pub slot_bytes: u64,
    /// A room without its history.
    pub room_bytes: u64,
    /// A membership: the room's entry for the client and the client's entry for the room.
    pub member_bytes: u64,
}

impl Default for ItemSizes {
    fn default() -> ItemSizes {
        ItemSizes { slot_bytes: 400, room_bytes: 512, member_bytes: 64 }
    }
}

/// Bytes in an outbox at which reading stops from whoever fills it.
pub const PAUSE_AT_BYTES: usize = 256 * 1024;

/// What an outbox that a relay fills holds at most: what comes before reading has stopped is little.
const RELAY_OUTBOX_BYTES: usize = 2 * PAUSE_AT_BYTES;

/// Bytes that one session costs in [`Sids`](crate::upstream::Sids) while its map grows.
const SID_BYTES: usize = 100;

/// What the process can use at most, a line per holder.
///
/// This is the sum of the bounds, as if every client were as bad as it is allowed to be at the same
/// time; what a host of idle clients needs is close to the first line. Saturates.
pub fn memory_bound(config: &Config, sizes: &ItemSizes) -> Vec<(&'static str, u64)> {
    let Config { server, limits, backends, .. } = config;
    let shards = u64::from(server.shards);
    let slots = shards * u64::from(server.slots_per_shard);
    let clients = u64::from(limits.connections_max).min(slots);
    let times = |count: u64, bytes: usize| count.saturating_mul(bytes as u64);

    let mut rooms = 0_u64;
    let mut history = 0_u64;
    let mut answer_bytes_max = 0;
    for backend in backends {
        if let BackendKind::Local(Local { rooms: local, .. }) = &backend.kind {
            let homes = shards.saturating_mul(local.rooms_max as u64);
            let members = times(clients, local.rooms_per_client_max);
            rooms = rooms
                .saturating_add(homes.saturating_mul(sizes.room_bytes))
                .saturating_add(members.saturating_mul(sizes.member_bytes));
            answer_bytes_max =
                answer_bytes_max.max(local.answer_bytes_max.min(limits.outbox_bytes_max));
            let of_rooms = times(homes, local.history_bytes_max);
            let of_shards = times(shards, local.history_bytes_per_shard_max);
            history = history.saturating_add(of_rooms.min(of_shards));
        }
    }
    // A relay assembles nothing and reads nobody on whose bytes wait beyond a small bound.
    let assembled = config.routes.iter().filter(|route| config.backend(route).kind.assembles());
    let assembled = assembled.map(|route| route.policy.message_bytes_max).max();
    // A client has one upstream at a time.
    let peers = clients.saturating_mul(2).min(slots);
    let relayed = limits.outbox_bytes_max.min(RELAY_OUTBOX_BYTES);
    let of_client = if assembled.is_some() { limits.outbox_bytes_max } else { relayed };
    let outboxes = times(clients, of_client).saturating_add(times(peers - clients, relayed));
    let sticky = backends.iter().any(|backend| match &backend.kind {
        BackendKind::Websocket(group) => group.options.sticky_sid && group.upstreams.len() > 1,
        _ => false,
    });
    let by_address = config.routes.iter().any(|route| route.policy.rates.limit_addresses());
    let addresses = if by_address { clients.saturating_add(ADDRESSES_SPARE as u64) } else { 0 };
    let addresses = times(addresses, ADDRESS_BYTES);
    vec![
        ("table", slots.saturating_mul(sizes.slot_bytes)),
        (
            "receive buffers",
            times(shards * u64::from(server.receive_buffers), server.receive_buffer_bytes as usize),
        ),
        ("request heads", times(slots, limits.head_bytes_max)),
        ("early bytes", times(clients, limits.early_bytes_max)),
        ("assembly", times(clients, assembled.unwrap_or(0))),
        // What an answer shares with a history may be forgotten there before it is sent.
        ("outboxes", outboxes.saturating_add(times(clients, answer_bytes_max))),
        ("rates", times(clients, size_of::<Meter>()).saturating_add(addresses)),
        ("rooms", rooms),
        ("rooms history", history),
        ("Engine.IO sessions", if sticky { times(shards, limits.sids_max * SID_BYTES) } else { 0 }),
        (HISTOGRAMS, times(shards, RECORDER_BYTES_MAX)),
    ]
}

/// The warning of a bound above the budget. `None`: it is within, or the file sets neither the budget nor
/// what clients may hold. The defaults allow more than most machines have, and the budget is there for that.
pub fn memory_warning(config: &Config, bound_bytes: u64) -> Option<Warning> {
    let line = config.warnings.memory_line()?;
    let budget_bytes = config.server.memory_bytes_max;
    (bound_bytes > budget_bytes).then(|| Warning {
        line,
        level: Level::Warning,
        text: format!(
            "clients may ask for {} together, and `server.memory_bytes_max` is {}: when that is \
             used, new clients get 503, and those that hold most are closed",
            human_bytes(bound_bytes),
            human_bytes(budget_bytes)
        ),
        cure: "lower `limits.connections_max`, `limits.message_bytes_max` or \
               `limits.outbox_bytes_max`, or raise `server.memory_bytes_max`"
            .to_owned(),
    })
}

/// The sum of [`memory_bound`].
pub fn memory_bound_total(bound: &[(&'static str, u64)]) -> u64 {
    bound.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
}

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
    fn the_bound_adds_up_what_the_file_says() {
        let config = Config::parse(
            "test",
            "[server]\nshards = 2\nslots_per_shard = 100\nreceive_buffers = 16\n\
             receive_buffer_bytes = 4096\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[route]]\nbackend = \"rooms\"\n\
             [backend.rooms]\nkind = \"local\"\nrooms_max = 10\nhistory_bytes_max = 1000\n\
             rooms_per_client_max = 3\n\
             [backend.few]\nkind = \"local\"\nrooms_max = 1\nrooms_per_client_max = 1\n\
             history_bytes_max = 300\nhistory_bytes_per_shard_max = 400\n\
             [backend.full]\nkind = \"local\"\nrooms_max = 2\nrooms_per_client_max = 1\n\
             history_bytes_max = 300\nhistory_bytes_per_shard_max = 400\n\
             [limits]\nconnections_max = 50\nmessage_bytes_max = 2000\noutbox_bytes_max = 4000\n\
             head_bytes_max = 4096\ntarget_bytes_max = 1024\nearly_bytes_max = 8\n",
        )
        .unwrap_or_else(|faults| panic!("{faults}"));
        let sizes = ItemSizes { slot_bytes: 7, room_bytes: 5, member_bytes: 2 };
        let bound = memory_bound(&config, &sizes);
        assert_eq!(
            bound,
            [
                ("table", 2 * 100 * 7),
                ("receive buffers", 2 * 16 * 4096),
                ("request heads", 200 * 4096),
                ("early bytes", 50 * 8),
                ("assembly", 50 * 2000),
                // Clients, and an upstream for each.
                // A client of rooms may have an answer on top.
                ("outboxes", 2 * 50 * 4000 + 50 * 4000),
                ("rates", 50 * size_of::<Meter>() as u64),
                ("rooms", 2 * (10 + 1 + 2) * 5 + 50 * (3 + 1 + 1) * 2),
                // Ten full rooms, one full room, and two that a shard does not let fill up.
                ("rooms history", 2 * (10 * 1000 + 300 + 400)),
                // No websocket backend.
                ("Engine.IO sessions", 0),
                (HISTOGRAMS, 2 * RECORDER_BYTES_MAX as u64),
            ]
        );
        assert_eq!(memory_bound_total(&bound), bound.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }

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
