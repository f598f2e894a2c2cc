//! Deadlines come up.

use std::time::Duration;

use super::Shard;
use super::relay::awaits_frame;
use crate::conn::{Conn, ConnId, Phase, Side, State};
use crate::limits::Limits;
use crate::metrics::Cause;
use crate::policy::Policy;
use crate::ring::Ring;
use crate::time::Time;
use crate::ws::frame::Opcode;

/// Deadlines looked at in one turn; more are late by a turn.
const TIMERS_PER_TURN: usize = 2048;

/// How long a Ping into a relay waits for the end of a frame before its peer is looked at again.
const FRAME_WAIT: Duration = Duration::from_secs(1);

impl<R: Ring> Shard<R> {
    pub(super) fn expire_timers(&mut self) {
        for _ in 0..TIMERS_PER_TURN {
            let Some(slot) = self.timers.pop(self.now) else { break };
            if let Some(id) = self.table.id_at(slot) {
                self.on_deadline(id);
                self.set_timer(id);
            }
        }
        for backend in 0..self.rooms.len() {
            let now = self.now;
            let due = |rooms: &crate::rooms::Rooms| rooms.next_deadline().is_some_and(|d| d <= now);
            if self.rooms[backend].as_ref().is_some_and(due) {
                self.with_rooms(backend as u16, |rooms, post| rooms.on_deadline(now, post));
            }
        }
        if self.accept_retry_at <= self.now {
            self.accept_retry_at = Time::NEVER;
            self.accept_again_when_room();
        }
    }

    /// The wheel gave this connection: looks at what it is really waiting for.
    fn on_deadline(&mut self, id: ConnId) {
        self.meter_due(id);
        self.watch_unread(id);
        let (deadline, due) = self.next_deadline(id);
        if deadline > self.now {
            return;
        }
        match due {
            Due::Outbox => self.on_slow_peer(id),
            Due::State => self.on_state_deadline(id),
            // `meter_due` has seen to it.
            Due::Rate => {}
            Due::Data => self.on_idle(id),
            Due::End => self.on_duration_over(id, deadline),
        }
    }

    /// When something is due of a connection first, and what.
    fn next_deadline(&self, id: ConnId) -> (Time, Due) {
        let conn = &self.table[id];
        let policy = self.config.routes.policy(conn.route);
        let data_at = match &conn.state {
            // Each side notes what it sends itself.
            State::Relay(relay) => {
                let other = self.table.get(relay.other);
                other.map_or(conn.data_at, |other| other.data_at.max(conn.data_at))
            }
            _ => conn.data_at,
        };
        next_deadline(conn, id.slot, data_at, policy, &self.config.limits)
    }

    /// `Conn::deadline` has come.
    fn on_state_deadline(&mut self, id: ConnId) {
        let limits = &self.config.limits;
        let conn = &mut self.table[id];
        conn.deadline = Time::NEVER;
        match (conn.phase, &conn.state) {
            (Phase::Leaving | Phase::Finishing, _) => {
                // `close_timeout` begins with the Close frame on the wire (`flushed`). What is
                // queued before it is given the time that it has while we serve, unless taking
                // too long over it is why we are closing.
                let patience = outbox_deadline(conn, limits);
                if patience != Time::NEVER
                    && patience > self.now
                    && conn.cause != Some(Cause::SlowConsumer)
                {
                    conn.deadline = patience;
                    return;
                }
                self.start_close(id, Cause::InternalError);
            }
            (Phase::Closing | Phase::Free, _) => {}
            (Phase::Open, State::ProxyHeader(_)) => self.start_close(id, Cause::IpDenied),
            (Phase::Open, State::Head(head)) => {
                // Who has said nothing gets no answer to it.
                if head.bytes.is_empty() && conn.flags.served {
                    self.start_close(id, Cause::HttpDone);
                } else if head.bytes.is_empty() {
                    self.start_close(id, Cause::ClientTimeoutHandshake);
                } else {
                    let cause = Cause::ClientTimeoutHandshake;
                    self.refuse(
                        id,
                        408,
                        cause,
                        "the request head took longer than handshake_timeout_ms",
                    );
                }
            }
            (Phase::Open, State::Echo(_) | State::Rooms(_)) => self.heartbeat(id),
            (Phase::Open, State::Connecting(_)) => self.attempt_late(id),
            (Phase::Open, State::Relay(_)) => self.relay_deadline(id),
            (Phase::Open, State::Forwarding(_)) => self.forwarding_deadline(id),
            (Phase::Open, State::Answering(_)) => self.answering_deadline(id),
            (Phase::Open, State::Refusing(_)) => {
                let due = conn.received_at + limits.connect_timeout;
                if conn.flags.paused {
                    // It is the client that is slow.
                    conn.deadline = self.now + limits.connect_timeout;
                } else if due > self.now {
                    conn.deadline = due;
                } else {
                    self.body_read_done(id);
                }
            }
            (Phase::Open, State::Handshaking(_)) => self.upstream_late(id),
            (Phase::Open, State::None) => {}
        }
    }

    /// The upgrade is done: from here on silence counts, and the connection's time runs. The first
    /// Ping comes up to a fifth of the interval early, so that those who came together do not all
    /// have to answer together.
    pub(super) fn start_timeouts(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        let interval = self.config.routes.policy(conn.route).ping_interval_of(conn.side);
        conn.opened_at = self.now;
        conn.data_at = self.now;
        conn.deadline = Time::NEVER;
        if !interval.is_zero() {
            conn.deadline = self.now + interval - spread(self.random.next_u64(), interval / 5);
        }
        self.set_timer(id);
    }

    /// Sees to it that this connection comes up in time, if it is still there.
    fn set_timer(&mut self, id: ConnId) {
        if self.table.get(id).is_some() {
            let (deadline, _) = self.next_deadline(id);
            self.timers.set(id.slot, deadline);
        }
    }

    /// A sign of life is due from the peer of an open WebSocket: asks for one, or gives it up.
    pub(super) fn heartbeat(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        let policy = self.config.routes.policy(conn.route);
        let (interval, ping_timeout) = (policy.ping_interval_of(conn.side), policy.ping_timeout);
        if interval.is_zero() {
            return;
        }
        if conn.flags.paused || conn.flags.starved {
            // It may have answered; it is we who do not listen.
            conn.deadline = self.now + ping_timeout;
            return;
        }
        if conn.is_throttled() {
            // Its answer would not be read.
            conn.deadline = self.now + interval;
            return;
        }
        if conn.flags.ping_pending {
            return self.on_silent_peer(id);
        }
        let due = conn.received_at + interval;
        if due > self.now {
            // It has spoken meanwhile.
            conn.deadline = due;
            return;
        }
        let rooms = matches!(conn.state, State::Rooms(_));
        if let State::Relay(_) = conn.state {
            if !self.send_relay_ping(id) {
                // `frame_awaited` brings us back sooner.
                self.table[id].deadline = self.now + FRAME_WAIT;
                return;
            }
        } else {
            self.send_frame(id, Opcode::Ping, b"");
        }
        let Shard { table, stores, now, timers, ping_frame, .. } = self;
        let conn = &mut table[id];
        conn.flags.ping_pending = true;
        conn.pinged_us = now.wrapping_us();
        conn.deadline = *now + ping_timeout;
        // Where Pings are close together, it may have answered long before that.
        timers.set(id.slot, *now + interval);
        if rooms {
            // Pages cannot see a protocol ping.
            conn.outbox.push_shared(ping_frame, stores, *now);
        }
    }

    /// A peer has not answered our Ping: it is gone; a Close frame would only wait in the socket.
    fn on_silent_peer(&mut self, id: ConnId) {
        match self.table[id].state {
            State::Relay(_) => self.relay_silent(id),
            _ => self.start_close(id, Cause::ClientTimeoutPing),
        }
    }

    /// No data in either direction for `idle_timeout_ms`. 1001 is what other servers say then; to
    /// 1000 some clients do not come back when they have something to say again, and 1008 would
    /// blame them.
    fn on_idle(&mut self, id: ConnId) {
        let (cause, code, why) = (Cause::ClientTimeoutIdle, 1001, "idle timeout");
        if let State::Relay(_) = self.table[id].state {
            return self.end_relay(id, cause, code, why);
        }
        self.start_leave(id, cause, code, why);
    }

    /// A client has been here for `duration_max_ms`, since `due`. A relayed one is told between two
    /// frames, for which there is some patience.
    fn on_duration_over(&mut self, id: ConnId, due: Time) {
        let why = self.retry_hint();
        let (cause, code) = (Cause::DurationLimit, 1012);
        if let State::Relay(_) = self.table[id].state {
            let patience = due + self.config.limits.close_timeout;
            if patience <= self.now || self.relay_is_between_frames(id) {
                self.end_relay(id, cause, code, &why);
            }
            return;
        }
        self.start_leave(id, cause, code, &why);
    }

    /// A frame of ours was due to this peer, and one that had to pass first may have passed.
    pub(super) fn frame_passed(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        let State::Relay(relay) = &mut conn.state else { return };
        relay.frame_awaited = false;
        if !conn.is_talking() {
            return;
        }
        if !conn.flags.ping_pending {
            conn.deadline = conn.deadline.min(self.now);
        }
        self.on_deadline(id);
        self.set_timer(id);
    }

    /// Nothing of what is queued has been taken for `outbox_age_max_ms`.
    fn on_slow_peer(&mut self, id: ConnId) {
        if let State::Relay(_) = self.table[id].state {
            return self.relay_lost_slow(id);
        }
        if let State::Answering(_) = self.table[id].state {
            return self.answering_slow(id);
        }
        // What is queued ahead of a Close frame would have to be read first, so none is sent.
        self.start_close(id, Cause::SlowConsumer);
    }
}

/// What may be due of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The peer has to take something of what is queued for it.
    Outbox,
    /// What its state waits for (`Conn::deadline`): a head, an answer, the end of a closing
    /// handshake; of an open WebSocket a sign of life.
    State,
    /// It may be read on: its rates allow it again.
    Rate,
    /// Data has to pass, either way.
    Data,
    /// The connection has to end.
    End,
}

/// When something is due of a connection first, and what; computed whenever its entry in the wheel
/// comes up. Whatever happens on the connection moves each of these instants away, or sets the wheel
/// itself, so that an entry never comes up late.
fn next_deadline(
    conn: &Conn,
    slot: u32,
    data_at: Time,
    policy: &Policy,
    limits: &Limits,
) -> (Time, Due) {
    let mut next = (conn.deadline, Due::State);
    let deaf = conn.flags.paused || conn.flags.starved || conn.is_throttled();
    let listens = !(deaf || awaits_frame(conn));
    if conn.is_talking() && !conn.flags.ping_pending && listens {
        let interval = policy.ping_interval_of(conn.side);
        if !interval.is_zero() {
            // `deadline` may still be the end of our patience with a Ping that has been answered.
            next.0 = next.0.min(conn.received_at + interval);
        }
    }
    if conn.phase == Phase::Open {
        next = next.min((outbox_deadline(conn, limits), Due::Outbox));
        next = next.min((conn.read_at(), Due::Rate));
    }
    if conn.side == Side::Client && conn.is_talking() {
        if !policy.idle_timeout.is_zero() {
            next = next.min((data_at + policy.idle_timeout, Due::Data));
        }
        if !policy.duration_max.is_zero() {
            // Drawn from the connection itself: the same whenever it is asked for.
            let seed = conn.opened_at.0 ^ u64::from(slot).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let early = spread(mixed(seed), policy.duration_max / 10);
            next = next.min((conn.opened_at + policy.duration_max - early, Due::End));
        }
    }
    next
}

/// A part of `most`, as a number that may be anything picks it.
fn spread(number: u64, most: Duration) -> Duration {
    Duration::from_nanos(((u128::from(number) * most.as_nanos()) >> 64) as u64)
}

/// Numbers that differ in little give numbers that differ in half of their bits (the finalizer of
/// splitmix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

fn outbox_deadline(conn: &Conn, limits: &Limits) -> Time {
    if conn.outbox.is_empty() {
        Time::NEVER
    } else {
        conn.outbox.progress() + limits.outbox_age_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::table::Table;

    const SECOND: Duration = Duration::from_secs(1);

    /// A client with an open echo since second 100, and a policy that bounds everything.
    fn client() -> (Table, ConnId, Policy, Limits) {
        let mut table = Table::new(1);
        let opened_at = Time(0) + 100 * SECOND;
        let peer = ([192, 0, 2, 1], 5).into();
        let id = table.occupy(0, Side::Client, peer, opened_at);
        table[id].state = State::Echo(Default::default());
        let limits = Limits {
            idle_timeout: 10 * SECOND,
            duration_max: 100 * SECOND,
            ping_interval: Duration::ZERO,
            ..Limits::default()
        };
        (table, id, Policy::of(&limits), limits)
    }

    #[test]
    fn the_first_of_all_deadlines_counts() {
        let (mut table, id, mut policy, limits) = client();
        let conn = &mut table[id];
        let at = |seconds: u32| Time(0) + seconds * SECOND;
        let next =
            |conn: &Conn, policy: &Policy| next_deadline(conn, 0, conn.data_at, policy, &limits);
        assert_eq!(next(conn, &policy), (at(110), Due::Data));
        conn.received_at = at(120);
        conn.deadline = at(105);
        assert_eq!(next(conn, &policy), (at(105), Due::State));
        conn.deadline = at(125);
        conn.data_at = at(120);
        assert_eq!(next(conn, &policy), (at(125), Due::State));
        // A Ping was sent, and the client has spoken since; or it has not; or is not listened to.
        conn.deadline = at(129);
        policy.ping_interval = 8 * SECOND;
        assert_eq!(next(conn, &policy), (at(128), Due::State));
        conn.flags.ping_pending = true;
        assert_eq!(next(conn, &policy), (at(129), Due::State));
        (conn.flags.ping_pending, conn.flags.paused) = (false, true);
        assert_eq!(next(conn, &policy), (at(129), Due::State));
        policy.ping_interval = Duration::ZERO;
        policy.idle_timeout = Duration::ZERO;
        conn.deadline = Time::NEVER;
        let (end, due) = next(conn, &policy);
        assert_eq!(due, Due::End);
        assert!(end > at(190) && end <= at(200), "{end:?}");
        assert_eq!(next(conn, &policy), (end, due), "the same whenever it is asked for");
        policy.duration_max = Duration::ZERO;
        assert_eq!(next(conn, &policy).0, Time::NEVER);
        let mut stores = crate::conn::outbox::Stores::default();
        conn.outbox.write(&mut stores, at(130), |out| out.push(1));
        assert_eq!(next(conn, &policy), (at(160), Due::Outbox));
    }

    /// What has begun to end does so by its own deadline.
    #[test]
    fn who_leaves_is_neither_idle_nor_too_long_here() {
        let ways: [fn(&mut Conn); 6] = [
            |conn| conn.phase = Phase::Leaving,
            |conn| conn.flags.close_sent = true,
            |conn| conn.flags.close_received = true,
            |conn| conn.flags.read_done = true,
            |conn| conn.cause = Some(Cause::SlowConsumer),
            |conn| conn.state = State::Head(Default::default()),
        ];
        for (number, leave) in ways.into_iter().enumerate() {
            let (mut table, id, policy, limits) = client();
            leave(&mut table[id]);
            let conn = &table[id];
            let next = next_deadline(conn, 0, conn.data_at, &policy, &limits);
            assert_eq!(next.0, Time::NEVER, "way {number}");
        }
    }

    #[test]
    fn those_who_came_together_do_not_go_together() {
        let (table, id, mut policy, limits) = client();
        policy.idle_timeout = Duration::ZERO;
        let ends: Vec<Time> = (0..1000)
            .map(|slot| next_deadline(&table[id], slot, table[id].data_at, &policy, &limits).0)
            .collect();
        for second in 190..200 {
            let (from, to) = (Time(0) + second * SECOND, Time(0) + (second + 1) * SECOND);
            let count = ends.iter().filter(|end| **end > from && **end <= to).count();
            assert!((50..200).contains(&count), "{count} of 1000 in second {second}");
        }
    }
}
