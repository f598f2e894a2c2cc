//! What handshakes and answers took is recorded, by route and by upstream.

use std::sync::Arc;

use super::attempt::picked_of;
use super::{RECORDS, Shard};
use crate::conn::{ConnId, Counted, Side, State};
use crate::recorder::UpstreamRecorder;
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

    /// Where the histograms of an upstream are: for a handshake, not for a message.
    pub(super) fn recorded_place(&mut self, counted: Option<Counted>) -> u16 {
        let Some(Counted { backend, upstream }) = counted.filter(|_| RECORDS) else { return 0 };
        let group = self.groups[usize::from(backend)].as_ref();
        let Some(upstream) = group.and_then(|group| group.get(upstream)) else { return 0 };
        let recorder = &self.metrics.recorder;
        let place = recorder.upstream(backend, upstream.name());
        if usize::from(place) >= self.upstream_recorders.len() {
            self.upstream_recorders = recorder.upstreams().into_iter().map(|(_, it)| it).collect();
        }
        place
    }

    /// The histograms of the upstream that is picked for a client.
    fn picked_recorder(&mut self, client: ConnId) -> Option<Arc<UpstreamRecorder>> {
        let picked = picked_of(&mut self.table[client].state)?;
        let place = self.recorded_place(Some(picked));
        self.upstream_recorders.get(usize::from(place)).cloned()
    }

    /// An upstream is connected: its time for the answer begins.
    pub(super) fn record_connected(&mut self, upstream: ConnId, client: ConnId) {
        if RECORDS {
            let picked = self.picked_recorder(client);
            let conn = &self.table[upstream];
            let route = self.metrics.recorder.route(conn.route);
            let picked = picked.as_ref().map(|it| &it.connect);
            for to in [Some(&route.connect), picked].into_iter().flatten() {
                to.record_since(conn.opened_at, self.now);
            }
        }
        self.table[upstream].opened_at = self.now;
    }

    /// `from` has sent messages to `to`: a client asks, or an upstream answers.
    pub(super) fn record_turn_of_talk(&mut self, from: ConnId, to: ConnId) {
        let Shard { table, metrics, upstream_recorders, now, .. } = self;
        let is_answer = table[from].side == Side::Upstream;
        let upstream = if is_answer { from } else { to };
        let Some(conn) = table.get_mut(upstream) else { return };
        let State::Relay(relay) = &mut conn.state else { return };
        if !is_answer {
            relay.asked_at = relay.asked_at.min(*now);
        } else if relay.asked_at != Time::NEVER {
            metrics.recorder.route(conn.route).reply.record_since(relay.asked_at, *now);
            if let Some(upstream) = upstream_recorders.get(usize::from(relay.place)) {
                upstream.reply.record_since(relay.asked_at, *now);
            }
            relay.asked_at = Time::NEVER;
        }
    }

    /// The head of an upstream's answer to an ordinary request is here.
    pub(super) fn record_answer(&mut self, upstream: ConnId, client: ConnId) {
        if !RECORDS {
            return;
        }
        let picked = self.picked_recorder(client);
        let conn = &self.table[upstream];
        let route = self.metrics.recorder.route(conn.route);
        // Since it was connected: see `record_connected`.
        let picked = picked.as_ref().map(|it| &it.reply);
        for to in [Some(&route.reply), picked].into_iter().flatten() {
            to.record_since(conn.opened_at, self.now);
        }
    }

    /// A client's 101 is queued, and `upstream`, if it is for one, has just accepted.
    pub(super) fn record_upgrade(&mut self, client: ConnId, upstream: Option<ConnId>) {
        if !RECORDS {
            return;
        }
        let picked = upstream.and_then(|_| self.picked_recorder(client));
        let conn = &self.table[client];
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
        let since = self.table[upstream].opened_at;
        let picked = picked.as_ref().map(|it| &it.answer);
        for to in [Some(&route.answer), picked].into_iter().flatten() {
            to.record_since(since, self.now);
        }
    }
}
