//! What a handshake took is recorded, stage by stage.

use super::{RECORDS, Shard};
use crate::conn::{ConnId, Side, State};
use crate::ring::Ring;
use crate::time::Time;

impl<R: Ring> Shard<R> {
    /// A client's request head has been read. Of a later one on the same connection nobody knows how
    /// long the client took its time.
    pub(super) fn record_head(&mut self, client: ConnId) {
        let conn = &self.table[client];
        if RECORDS && !conn.flags.served {
            self.metrics.recorder.head.record_since(conn.opened_at, self.now);
        }
    }

    /// An upstream is connected: its time for the answer begins.
    pub(super) fn record_connected(&mut self, upstream: ConnId) {
        let conn = &mut self.table[upstream];
        if RECORDS {
            let route = self.metrics.recorder.route(conn.route);
            route.connect.record_since(conn.opened_at, self.now);
        }
        conn.opened_at = self.now;
    }

    /// `from` has sent messages to `to`: a client asks, or an upstream answers.
    pub(super) fn record_turn_of_talk(&mut self, from: ConnId, to: ConnId) {
        let Shard { table, metrics, now, .. } = self;
        let is_answer = table[from].side == Side::Upstream;
        let upstream = if is_answer { from } else { to };
        let Some(conn) = table.get_mut(upstream) else { return };
        let State::Relay(relay) = &mut conn.state else { return };
        if !is_answer {
            relay.asked_at = relay.asked_at.min(*now);
        } else if relay.asked_at != Time::NEVER {
            metrics.recorder.route(conn.route).reply.record_since(relay.asked_at, *now);
            relay.asked_at = Time::NEVER;
        }
    }

    /// The head of an upstream's answer to an ordinary request is here.
    pub(super) fn record_answer(&self, upstream: ConnId) {
        let conn = &self.table[upstream];
        if RECORDS {
            // Since it was connected: see `record_connected`.
            self.metrics.recorder.route(conn.route).reply.record_since(conn.opened_at, self.now);
        }
    }

    /// A client's 101 is queued, and `upstream`, if it is for one, has just accepted.
    pub(super) fn record_upgrade(&mut self, client: ConnId, upstream: Option<ConnId>) {
        let conn = &self.table[client];
        if !RECORDS {
            return;
        }
        let recorder = &self.metrics.recorder;
        if !conn.flags.served {
            recorder.upgrade.record_since(conn.opened_at, self.now);
        }
        let (Some(upstream), State::Connecting(connecting)) = (upstream, &conn.state) else {
            return;
        };
        let route = recorder.route(conn.route);
        route.upstream.record_since(connecting.attempt.began_at, self.now);
        // Since it was connected: see `record_connected`.
        route.answer.record_since(self.table[upstream].opened_at, self.now);
    }
}
