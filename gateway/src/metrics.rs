//! What one shard counts. Nobody else writes it, and whoever reads it does not ask the shard.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::ShardMemory;
use crate::recorder::Recorder;
use crate::rooms::{self, Gauges};

/// Why a connection was closed. Every close has exactly one cause, the first that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cause {
    /// The client sent a Close frame.
    ClientClose,
    /// The client's transport ended or was reset without a Close frame.
    ClientGone,
    /// No answer to a ping within `ping_timeout_ms`.
    ClientTimeoutPing,
    /// Nothing but control frames within `idle_timeout_ms`.
    ClientTimeoutIdle,
    /// `duration_max_ms` is over.
    DurationLimit,
    /// The request head did not arrive within `handshake_timeout_ms`.
    ClientTimeoutHandshake,
    /// The request was refused before an upgrade: an HTTP status was the answer.
    HandshakeRejected,
    /// Ordinary HTTP requests were answered, and the connection ended after the last.
    HttpDone,
    /// The client broke a rule of RFC 6455.
    ProtocolError,
    /// A text message or a close reason was not UTF-8.
    BadUtf8,
    /// A message was larger than `message_bytes_max`, or a frame than `frame_bytes_max`.
    TooBig,
    /// More messages, bytes, control frames or connections than its limits allow.
    RateLimited,
    /// The page that it came from is not on the route's list.
    OriginDenied,
    /// Its address may not come in, or did not say on whose behalf it comes.
    IpDenied,
    /// The client did not read what was sent: `outbox_bytes_max` or `outbox_age_max_ms`.
    SlowConsumer,
    /// The upstream sent a Close frame or ended its stream in order.
    BackendClose,
    /// The upstream could not be reached, refused, or was lost.
    BackendGone,
    /// The upstream broke a rule of HTTP or of RFC 6455.
    BackendProtocolError,
    /// The upstream did not connect within `connect_timeout_ms`, or answer within `upgrade_timeout_ms`
    /// or `response_timeout_ms`, or no Ping within `ping_timeout_ms`.
    BackendTimeout,
    /// The gateway, or the upstream that it was at, is being emptied.
    Drain,
    /// The operator closed it.
    AdminClose,
    /// A bound of the process, the shard or the route was met: `connections_max`, the table.
    MemoryPressure,
    /// Memory was short (`memory_bytes_max`): it was new, or held most.
    MemoryShort,
    /// The socket failed in a way that has no other name here.
    InternalError,
}

impl Cause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Cause; 24] = [
        Cause::ClientClose,
        Cause::ClientGone,
        Cause::ClientTimeoutPing,
        Cause::ClientTimeoutIdle,
        Cause::DurationLimit,
        Cause::ClientTimeoutHandshake,
        Cause::HandshakeRejected,
        Cause::HttpDone,
        Cause::ProtocolError,
        Cause::BadUtf8,
        Cause::TooBig,
        Cause::RateLimited,
        Cause::OriginDenied,
        Cause::IpDenied,
        Cause::SlowConsumer,
        Cause::BackendClose,
        Cause::BackendGone,
        Cause::BackendProtocolError,
        Cause::BackendTimeout,
        Cause::Drain,
        Cause::AdminClose,
        Cause::MemoryPressure,
        Cause::MemoryShort,
        Cause::InternalError,
    ];

    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Cause::ClientClose => "client_close",
            Cause::ClientGone => "client_gone",
            Cause::ClientTimeoutPing => "client_timeout_ping",
            Cause::ClientTimeoutIdle => "client_timeout_idle",
            Cause::DurationLimit => "duration_limit",
            Cause::ClientTimeoutHandshake => "client_timeout_handshake",
            Cause::HandshakeRejected => "handshake_rejected",
            Cause::HttpDone => "http_done",
            Cause::ProtocolError => "protocol_error",
            Cause::BadUtf8 => "bad_utf8",
            Cause::TooBig => "too_big",
            Cause::RateLimited => "rate_limited",
            Cause::OriginDenied => "origin_denied",
            Cause::IpDenied => "ip_denied",
            Cause::SlowConsumer => "slow_consumer",
            Cause::BackendClose => "backend_close",
            Cause::BackendGone => "backend_gone",
            Cause::BackendProtocolError => "backend_protocol_error",
            Cause::BackendTimeout => "backend_timeout",
            Cause::AdminClose => "admin_close",
            Cause::Drain => "drain",
            Cause::MemoryPressure => "memory_pressure",
            Cause::MemoryShort => "memory_short",
            Cause::InternalError => "internal_error",
        }
    }
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The client, in order or not.
    Client,
    /// The gateway: a limit, a rule or its operator.
    Gateway,
    /// The upstream.
    Backend,
}

impl Initiator {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Initiator::Client => "client",
            Initiator::Gateway => "gateway",
            Initiator::Backend => "backend",
        }
    }
}

impl Cause {
    /// Who ended a connection that was closed for this.
    pub fn initiator(self) -> Initiator {
        match self {
            Cause::ClientClose | Cause::ClientGone | Cause::HttpDone => Initiator::Client,
            Cause::BackendClose | Cause::BackendGone | Cause::BackendProtocolError => {
                Initiator::Backend
            }
            Cause::ClientTimeoutPing
            | Cause::ClientTimeoutIdle
            | Cause::DurationLimit
            | Cause::ClientTimeoutHandshake
            | Cause::HandshakeRejected
            | Cause::ProtocolError
            | Cause::BadUtf8
            | Cause::TooBig
            | Cause::RateLimited
            | Cause::OriginDenied
            | Cause::IpDenied
            | Cause::SlowConsumer
            | Cause::BackendTimeout
            | Cause::Drain
            | Cause::AdminClose
            | Cause::MemoryPressure
            | Cause::MemoryShort
            | Cause::InternalError => Initiator::Gateway,
        }
    }
}

/// Declares the counters once, and of them the shard's own form and the form that is read.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The counters of one shard. It alone counts; anyone may read, without its help.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $name: Counter,)*
            closed: [Counter; Cause::ALL.len()],
            /// Clients in the table.
            pub clients: Counter,
            /// Connections to upstreams in the table.
            pub upstreams: Counter,
            /// Peers that do not keep up: those for whose sake another is not read, and members of
            /// rooms with a backlog.
            pub slow_consumers: Counter,
            /// Peers that have messages waiting in an outbox.
            pub waiting: Counter,
            /// Rooms whose home is this shard.
            pub rooms: Counter,
            /// Memberships of clients of this shard.
            pub subscriptions: Counter,
            /// The configuration that it goes by.
            pub config_generation: Counter,
            /// How long things take, and how large they are.
            pub recorder: Recorder,
            /// The memory of the shard.
            pub memory: ShardMemory,
        }

        /// What was counted, by one shard or by all.
        #[derive(Clone, Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: u64,)*
            closed: [u64; Cause::ALL.len()],
        }

        impl Counters {
            /// What has been counted so far.
            pub fn read(&self) -> Metrics {
                Metrics {
                    $($name: self.$name.get(),)*
                    closed: self.closed.each_ref().map(Counter::get),
                }
            }
        }

        impl Metrics {
            /// Every counter but the causes: its name here, what it means, and what it has come to.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc,)*), self.$name),)*].into_iter()
            }

            /// Adds another shard's counters.
            pub fn merge(&mut self, other: &Metrics) {
                $(self.$name += other.$name;)*
                for (mine, theirs) in self.closed.iter_mut().zip(other.closed) {
                    *mine += theirs;
                }
            }
        }
    };
}

counters! {
    /// Clients accepted.
    accepted,
    /// Accepts that failed, mostly for want of descriptors; a listener tries again after 100 ms.
    accept_failures,
    /// Clients that got their 101.
    upgraded,
    /// Bytes received, from clients and upstreams.
    received_bytes,
    /// Messages of clients of `echo` and `local` backends.
    messages_received,
    /// Frames made for single clients.
    frames_sent,
    /// Messages relayed, both ways.
    messages_relayed,
    /// Attempts that upstreams failed before an answer, not for a lack of ours; the client may have got another.
    upstream_failures,
    /// Clients that got 503 as there was no local port, descriptor or memory for an upstream connection.
    upstream_shortages,
    /// Ordinary HTTP requests that upstreams have answered.
    requests_forwarded,
    /// Sessions of Engine.IO that upstreams have opened by polling.
    sids_learnt,
    /// Answers that open such a session and name none that is understood: it cannot be kept at its server.
    sids_missed,
    /// Requests of such a session whose upstream was not known (any more): placed like a new client.
    sids_unknown,
    /// Times that a client was read no further because it had sent more than its rates allow.
    throttled,
    /// Peers that were cut off because they went on sending after their last word, or ours.
    cut_off,
    /// Requests of clients of rooms, refused ones included.
    room_requests,
    /// Those refused by the client's shard.
    room_errors,
    /// Messages published into rooms.
    messages_published,
    /// Messages of rooms given to members, slow ones included.
    messages_delivered,
    /// Receives that found no buffer.
    starved,
    /// Messages of rooms that slow members did not get, conflated ones not included.
    messages_dropped,
    /// Messages of rooms whose place was taken by newer ones with the same key, per slow member.
    messages_conflated,
    /// Gap events queued to be sent to slow members.
    gap_markers_sent,
    /// Clients that got 503 because memory was short.
    memory_refused,
    /// Clients that were closed because memory was short and a large part of a message was here.
    memory_ended_assemblies,
    /// Peers that were closed because memory was short and much was waiting for them.
    memory_ended_consumers,
}

/// A number that one thread counts and any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One at zero.
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Counts `more`. Only the thread that owns the counter may: there is no read-modify-write here,
    /// which is what makes it cost as little as a plain integer.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Counts `fewer` off, of what has been added before.
    pub fn sub(&self, fewer: u64) {
        self.add(fewer.wrapping_neg());
    }

    /// The number is this from here on.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number, as it was a moment ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Counts one closed client.
    pub fn count_close(&self, cause: Cause) {
        self.closed[cause as usize].add(1);
    }

    /// A member of rooms had a backlog or not, and has one now or not.
    pub fn count_backlogged(&self, before: bool, now: bool) {
        match (before, now) {
            (false, true) => self.slow_consumers.add(1),
            (true, false) => self.slow_consumers.sub(1),
            _ => {}
        }
    }

    /// What the room engine of a backend has counted and holds, from one look to the next.
    pub fn count_rooms(&self, before: &(rooms::Counters, Gauges), now: &(rooms::Counters, Gauges)) {
        let ((counted, held), (counts, holds)) = (before, now);
        self.room_requests.add(counts.requests - counted.requests);
        self.room_errors.add(counts.errors - counted.errors);
        self.messages_published.add(counts.published - counted.published);
        self.messages_delivered.add(counts.delivered - counted.delivered);
        let difference = |before: usize, now: usize| (now as u64).wrapping_sub(before as u64);
        self.rooms.add(difference(held.home_rooms, holds.home_rooms));
        self.subscriptions.add(difference(held.memberships, holds.memberships));
    }
}

impl Metrics {
    /// Clients closed for this cause.
    pub fn closed(&self, cause: Cause) -> u64 {
        self.closed[cause as usize]
    }
}
