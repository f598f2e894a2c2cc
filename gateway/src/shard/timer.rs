//! Deadlines come up.

use std::time::Duration;

use super::Shard;
use crate::conn::{ConnId, Phase, State};
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::time::Time;
use crate::ws::frame::Opcode;

/// Deadlines looked at in one turn; more are late by a turn.
const TIMERS_PER_TURN: usize = 2048;

impl<R: Ring> Shard<R> {
    pub(super) fn expire_timers(&mut self) {
        for _ in 0..TIMERS_PER_TURN {
            let Some(slot) = self.timers.pop(self.now) else { break };
            if let Some(id) = self.table.id_at(slot) {
                self.on_deadline(id);
                if let Some(conn) = self.table.get_mut(id) {
                    let mut deadline = conn.deadline;
                    if conn.phase == Phase::Open {
                        deadline = deadline.min(outbox_deadline(conn, &self.config.limits));
                        deadline = deadline.min(conn.read_at());
                    }
                    self.timers.set(slot, deadline);
                }
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
        let limits = &self.config.limits;
        let conn = &mut self.table[id];
        if outbox_deadline(conn, limits) <= self.now && conn.phase == Phase::Open {
            return self.on_slow_peer(id);
        }
        if conn.deadline > self.now {
            return;
        }
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

    /// A sign of life is due from a client of ours: asks for one, or gives it up.
    fn heartbeat(&mut self, id: ConnId) {
        let policy = self.config.routes.policy(self.table[id].route);
        let conn = &mut self.table[id];
        if policy.ping_interval.is_zero() {
            return;
        }
        if conn.is_throttled() {
            // Its answer would not be read.
            conn.deadline = self.now + policy.ping_interval;
            return;
        }
        if conn.flags.ping_pending {
            // It is gone; a Close frame would only wait in the socket.
            return self.start_close(id, Cause::ClientTimeoutPing);
        }
        let due = conn.received_at + policy.ping_interval;
        if due > self.now {
            // It has spoken meanwhile.
            conn.deadline = due;
            return;
        }
        conn.flags.ping_pending = true;
        conn.deadline = self.now + policy.ping_timeout;
        let rooms = matches!(conn.state, State::Rooms(_));
        self.send_frame(id, Opcode::Ping, b"");
        if rooms {
            // Pages cannot see a protocol ping.
            let Shard { table, stores, now, ping_frame, .. } = self;
            table[id].outbox.push_shared(ping_frame, stores, *now);
        }
    }

    /// Sets the first heartbeat of a client. Spread by up to a fifth of the interval, so that
    /// clients that came together do not all have to answer together.
    pub(super) fn start_heartbeat(&mut self, id: ConnId) {
        let interval = self.config.routes.policy(self.table[id].route).ping_interval;
        let conn = &mut self.table[id];
        conn.deadline = Time::NEVER;
        if interval.is_zero() {
            return;
        }
        let spread = interval.as_nanos() as u64 / 5;
        let jitter = Duration::from_nanos(self.random.next_u64() % spread.max(1));
        conn.deadline = self.now + interval - jitter;
        self.timers.set(id.slot, conn.deadline);
    }

    /// Nothing of what is queued has been taken for `outbox_age_max_ms`.
    fn on_slow_peer(&mut self, id: ConnId) {
        if let State::Relay(_) = self.table[id].state {
            return self.relay_lost_slow(id);
        }
        // What is queued ahead of a Close frame would have to be read first, so none is sent.
        self.start_close(id, Cause::SlowConsumer);
    }

    /// Tries to accept again soon, after the system had no descriptor to give.
    pub(super) fn timers_retry_accept(&mut self) {
        self.accept_retry_at = self.now + Duration::from_millis(100);
    }
}

fn outbox_deadline(conn: &crate::conn::Conn, limits: &crate::limits::Limits) -> Time {
    if conn.outbox.is_empty() {
        Time::NEVER
    } else {
        conn.outbox.progress() + limits.outbox_age_max
    }
}
