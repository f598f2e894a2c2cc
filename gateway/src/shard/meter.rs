//! What clients send is counted against their rates, a received batch at a time.
//!
//! Where going over a limit closes a connection (`Allowance`), nothing above the limit is served.
//! Where it throttles, all is served, the buckets go into debt, and the client is read no further
//! until there is a token again: its own socket holds back what it sends meanwhile.
//!
//! A client that keeps within its rates, and is silent, owns nothing here: `Conn::meter` is made by
//! the first thing that is counted and dropped when all is full again (`meter_due`).

use std::time::Duration;

use super::Shard;
use crate::config::BackendKind;
use crate::conn::{Conn, ConnId, Meter, Phase};
use crate::rate::{Action, Bucket, Rate, Rates, SharedBucket};
use crate::ring::Ring;
use crate::time::Time;
use crate::ws::Event;

/// A rate is at least one a second, so a single frame after such a silence is within every rate.
pub(super) const REST: Duration = Duration::from_secs(1);

/// What a client has sent.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) control_frames: u64,
}

/// What a client may send before it is closed.
pub(super) struct Allowance {
    messages: Left,
    bytes: Left,
    control_frames: Left,
}

/// Tokens that are left, and the key of the limit that says so.
#[derive(Clone, Copy)]
struct Left {
    tokens: u64,
    limit: &'static str,
}

impl Left {
    const ALL: Left = Left { tokens: u64::MAX, limit: "" };

    fn of(
        [own, of_address]: [(&Rate, &'static str); 2],
        bucket: Option<&Bucket>,
        shared: Option<&SharedBucket>,
        now: Time,
    ) -> Left {
        let mut left = Left::ALL;
        let (rate, limit) = own;
        if rate.is_limit() {
            let tokens = bucket.map_or(rate.burst(), |bucket| bucket.tokens(now, rate));
            left = Left { tokens, limit };
        }
        let (rate, limit) = of_address;
        if let Some(bucket) = shared.filter(|_| rate.is_limit()) {
            let tokens = bucket.tokens(now, rate);
            if tokens < left.tokens {
                left = Left { tokens, limit };
            }
        }
        left
    }
}

impl Allowance {
    /// Anything.
    pub(super) const ALL: Allowance =
        Allowance { messages: Left::ALL, bytes: Left::ALL, control_frames: Left::ALL };

    /// What `conn` may send now. Other shards may take of what its address has meanwhile: together
    /// they may go over that by what they read at the same moment.
    pub(super) fn of(rates: &Rates, conn: &Conn, now: Time) -> Allowance {
        if rates.action == Action::Throttle {
            return Allowance::ALL;
        }
        let (own, of_address) = (&rates.connection, &rates.address);
        let meter = conn.meter.as_deref();
        let address = meter.and_then(|meter| meter.address.as_deref());
        Allowance {
            messages: Left::of(
                [
                    (&own.messages, "over messages_per_second"),
                    (&of_address.messages, "over address_messages_per_second"),
                ],
                meter.map(|meter| &meter.messages),
                address.map(|address| &address.messages),
                now,
            ),
            bytes: Left::of(
                [
                    (&own.bytes, "over bytes_per_second"),
                    (&of_address.bytes, "over address_bytes_per_second"),
                ],
                meter.map(|meter| &meter.bytes),
                address.map(|address| &address.bytes),
                now,
            ),
            control_frames: Left::of(
                [
                    (&own.control_frames, "over control_frames_per_second"),
                    (&of_address.control_frames, "over address_control_frames_per_second"),
                ],
                meter.map(|meter| &meter.control_frames),
                address.map(|address| &address.control_frames),
                now,
            ),
        }
    }
}

impl Used {
    /// A batch of bytes, before anything is known of what is in it.
    pub(super) fn bytes(count: usize) -> Used {
        Used { bytes: count as u64, ..Used::default() }
    }

    /// This and what a client says next.
    pub(super) fn and(mut self, event: &Event<'_>) -> Used {
        match event {
            Event::Message { .. } => self.messages += 1,
            Event::Ping(_) | Event::Pong(_) => self.control_frames += 1,
            Event::Close(_) => {} // The last that it says.
        }
        self
    }

    /// The limit that this goes over, as a Close frame names it.
    pub(super) fn over(&self, allowance: &Allowance) -> Option<&'static str> {
        let Allowance { messages, bytes, control_frames } = allowance;
        [(self.messages, messages), (self.bytes, bytes), (self.control_frames, control_frames)]
            .into_iter()
            .find_map(|(used, left)| (used > left.tokens).then_some(left.limit))
    }
}

/// Whether what a connection sends is held against its rates: not once we have said goodbye, or will
/// when its frame is over.
pub(super) fn is_counted(conn: &Conn) -> bool {
    conn.phase == Phase::Open && !conn.flags.close_sent && !conn.flags.evicted
}

impl<R: Ring> Shard<R> {
    /// Counts what a client has sent, whether it was there to be taken or not, and whether or not it
    /// has said goodbye in the same batch: its address may come back.
    pub(super) fn charge(&mut self, id: ConnId, used: &Used) {
        let now = self.now;
        let conn = &mut self.table[id];
        let rates = &self.config.routes.policy(conn.route).rates;
        if used.control_frames == 0 && !rates.limit_data() {
            return;
        }
        let mut read_at = Time(0);
        if let Some(address) = conn.meter.as_deref().and_then(|meter| meter.address.as_deref()) {
            for (tokens, bucket, rate) in [
                (used.messages, &address.messages, &rates.address.messages),
                (used.bytes, &address.bytes, &rates.address.bytes),
                (used.control_frames, &address.control_frames, &rates.address.control_frames),
            ] {
                if tokens > 0 && rate.is_limit() {
                    read_at = read_at.max(bucket.take(now, tokens, rate));
                }
            }
        }
        let own = &rates.connection;
        // The Ping or Pong that is all an idle client says leaves no trace, so that it stays small.
        let at_rest = self.rested && conn.meter.is_none() && used.control_frames == 1;
        let is_trace = own.messages.is_limit() || own.bytes.is_limit() || !at_rest;
        if is_trace {
            let meter = conn.meter.get_or_insert_default();
            for (tokens, bucket, rate) in [
                (used.messages, &mut meter.messages, &own.messages),
                (used.bytes, &mut meter.bytes, &own.bytes),
                (used.control_frames, &mut meter.control_frames, &own.control_frames),
            ] {
                if tokens > 0 && rate.is_limit() {
                    read_at = read_at.max(bucket.take(now, tokens, rate));
                }
            }
        }
        // Stopping does not wait for anybody's rate.
        let throttles = rates.action == Action::Throttle && self.stop_deadline.is_none();
        if throttles && read_at > now && is_counted(&self.table[id]) {
            self.throttle(id, read_at);
        }
    }

    /// Counts what a client has asked of rooms. Above the rate the client is read no further, and what of
    /// it was received already waits (`unread.rs`), whatever `rate_action` says: a client that joins many
    /// rooms has done nothing wrong.
    pub(super) fn charge_room_request(&mut self, id: ConnId) {
        let backend = usize::from(self.backend_of(id));
        let BackendKind::Local(local) = &self.config.backends[backend].kind else { return };
        let rate = local.requests;
        if !rate.is_limit() || self.stop_deadline.is_some() || !is_counted(&self.table[id]) {
            return;
        }
        let meter = self.table[id].meter.get_or_insert_default();
        let read_at = meter.room_requests.take(self.now, 1, &rate);
        if read_at > self.now {
            self.throttle(id, read_at);
        }
    }

    /// Reads a client no further before `read_at`. What has been received already still comes, except to
    /// rooms.
    fn throttle(&mut self, id: ConnId, read_at: Time) {
        let conn = &mut self.table[id];
        let is_throttled = conn.is_throttled();
        let meter = conn.meter.get_or_insert_default();
        if is_throttled && meter.read_at >= read_at {
            return; // Another bucket is emptier.
        }
        meter.read_at = read_at;
        self.timers.set(id.slot, read_at);
        if !is_throttled {
            self.metrics.throttled.add(1);
            if conn.flags.recv_armed {
                self.ring.cancel_recv(id);
            }
        }
    }

    /// Reads a client again, if its rates are why it is not read.
    pub(super) fn unthrottle(&mut self, id: ConnId) {
        let now = self.now;
        let Some(conn) = self.table.get_mut(id).filter(|conn| conn.is_throttled()) else { return };
        if let Some(meter) = &mut conn.meter {
            meter.read_at = Time::NEVER;
        }
        // It may have been alive all the time that we did not listen.
        conn.received_at = now;
        conn.flags.ping_pending = false;
        self.unread.look_at(id);
        self.arm_recv(id);
    }

    /// The wheel gave this connection: goes on with a client whose time has come, and forgets what
    /// nothing is missing of.
    pub(super) fn meter_due(&mut self, id: ConnId) {
        let now = self.now;
        let Some(meter) = &self.table[id].meter else { return };
        if meter.read_at <= now {
            self.unthrottle(id);
        } else if meter.is_idle(now) {
            self.table[id].meter = None;
        }
    }
}

impl Meter {
    /// Whether it says no more than its absence would.
    fn is_idle(&self, now: Time) -> bool {
        let Meter { messages, bytes, control_frames, room_requests, read_at, address } = self;
        let full = [messages, bytes, control_frames, room_requests]
            .iter()
            .all(|bucket| bucket.is_full(now));
        full && *read_at == Time::NEVER && address.is_none()
    }
}
