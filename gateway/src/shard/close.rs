//! Closing is a join.
//!
//! `start_*` asks, and says which way: `start_leave` says goodbye and waits for the peer's, so that
//! nothing on its way is lost; `start_fail` says why and hears no more; `start_finish` ends the
//! stream after what is queued; `start_close` is at once. Each ends in `close_join`, which comes
//! back until the ring owes nothing on this connection; only then is the descriptor closed and the
//! slot free.

use super::Shard;
use super::forward::awaits_answer;
use crate::budget::Drawer;
use crate::conn::{ConnId, Counted, Phase, Side, State};
use crate::journal::Closed;
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::upstream::{Group, UpstreamName};
use crate::ws::close;

impl<R: Ring> Shard<R> {
    /// The client has sent its Close frame: it gets one back, and then the end (RFC 6455 §5.5.1).
    pub(super) fn on_client_close(&mut self, id: ConnId, code: Option<u16>) {
        self.table[id].flags.close_received = true;
        self.table[id].note_close(code);
        if !self.table[id].flags.close_sent {
            self.queue_close(id, code, "");
        }
        self.start_finish(id, Cause::ClientClose);
    }

    /// Says goodbye to a client: a Close frame behind what is queued, and then we wait for its own.
    pub(super) fn start_leave(&mut self, id: ConnId, cause: Cause, code: u16, reason: &str) {
        let conn = &mut self.table[id];
        if conn.phase > Phase::Open {
            return;
        }
        conn.cause.get_or_insert(cause);
        self.detach(id);
        self.queue_close(id, Some(code), reason);
        let conn = &mut self.table[id];
        conn.phase = Phase::Leaving;
        conn.deadline = self.now + self.config.limits.close_timeout;
        self.timers.set(id.slot, conn.deadline);
        // Its own Close frame is what we wait for.
        self.hear_out(id);
    }

    /// Fails the connection (RFC 6455 §7.1.7): the peer is told why, and nothing more that it
    /// sends is looked at.
    pub(super) fn start_fail(&mut self, id: ConnId, cause: Cause, code: u16, reason: &str) {
        if self.table[id].phase > Phase::Leaving {
            return;
        }
        if !self.table[id].flags.close_sent {
            self.queue_close(id, Some(code), reason);
        }
        self.start_finish(id, cause);
    }

    /// Ends the stream once the outbox is flushed.
    pub(super) fn start_finish(&mut self, id: ConnId, cause: Cause) {
        let conn = &mut self.table[id];
        if conn.phase > Phase::Leaving {
            return;
        }
        conn.cause.get_or_insert(cause);
        self.detach(id);
        let conn = &mut self.table[id];
        conn.phase = Phase::Finishing;
        conn.deadline = self.now + self.config.limits.close_timeout;
        self.timers.set(id.slot, conn.deadline);
        self.flushed(id);
        // The end of the peer's stream is what we wait for.
        if self.table.get_mut(id).is_some_and(|conn| conn.phase == Phase::Finishing) {
            self.hear_out(id);
        }
    }

    /// The outbox is empty: goes on with whatever waited for that.
    pub(super) fn flushed(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        if !conn.outbox.is_empty() || conn.flags.sending.is_some() {
            return;
        }
        conn.flags.pong_waits = false;
        if matches!(conn.phase, Phase::Leaving | Phase::Finishing) {
            conn.deadline = self.now + self.config.limits.close_timeout;
            self.timers.set(id.slot, conn.deadline);
        }
        if conn.phase == Phase::Finishing {
            // After both Close frames it is the server who closes (§7.1.1), which we are to
            // clients. Toward an upstream we wait for its end, as a client does.
            let both = conn.flags.close_received && conn.side == Side::Client;
            if conn.flags.read_done || both {
                let cause = conn.cause.unwrap_or(Cause::InternalError);
                return self.start_close(id, cause);
            }
            // An upstream whose conversation is complete was asked to end it: the end that goes first
            // keeps the port for a minute (TIME_WAIT), and ours toward one upstream are few. One that
            // does not is reset at the deadline.
            conn.flags.shut_wanted |= !conn.awaits_end();
        }
        if conn.phase < Phase::Closing && conn.flags.shut_wanted && !conn.flags.shut {
            conn.flags.shut = true;
            conn.flags.shutdown_in_flight = true;
            self.ring.submit_shutdown(id);
        }
    }

    pub(super) fn on_shut_down(&mut self, id: ConnId) {
        self.table[id].flags.shutdown_in_flight = false;
        self.close_join(id);
    }

    /// The peer has ended its stream.
    pub(super) fn on_read_done(&mut self, id: ConnId) {
        self.table[id].flags.read_done = true;
        if self.ends_later(id) {
            return;
        }
        let conn = &self.table[id];
        match (conn.phase, &conn.state) {
            (Phase::Closing | Phase::Free, _) => self.close_join(id),
            (Phase::Finishing, _) => self.flushed(id),
            (_, State::Relay(_)) => self.relay_read_done(id),
            (_, State::Handshaking(_)) => self.upstream_lost(id),
            (_, State::Refusing(_)) => self.body_read_done(id),
            (_, State::Answering(_)) => self.answer_lost(id, true),
            // It has ended its stream behind a whole request, and waits (RFC 9112 §9.6): it is
            // answered first. One that is gone is found out by what it is sent.
            (Phase::Open, _) if awaits_answer(conn) => {}
            // Without a Close frame: what it was owed goes out, and then the end.
            (_, State::Echo(_) | State::Rooms(_)) => self.start_finish(id, Cause::ClientGone),
            // Between two requests, which is where a client of HTTP leaves.
            (_, State::Head(head)) if conn.flags.served && head.bytes.is_empty() => {
                self.start_close(id, Cause::HttpDone);
            }
            // In the middle of a request: nobody is there to talk to.
            _ => self.start_close(id, Cause::ClientGone),
        }
    }

    /// A send has failed. An upstream may have answered before it stopped to take the request: a
    /// server that answers early and closes sends its answer, and then a reset for what it has not
    /// read (RFC 9112 §9.6). The answer lies in our socket, and wins: the receive brings it, and
    /// behind it the end of the stream or the failure, which is decided upon then.
    pub(super) fn on_send_failed(&mut self, id: ConnId) {
        let Shard { table, stores, delays, metrics, .. } = self;
        let conn = &mut table[id];
        let may_have_answered = conn.phase == Phase::Open && !conn.flags.read_done;
        let Some(head) = conn.state.answer_head().filter(|_| may_have_answered) else {
            return self.on_transport_lost(id);
        };
        head.send_failed = true;
        conn.outbox.clear(stores);
        delays.forget(&mut conn.mark, &metrics.recorder);
        self.arm_recv(id);
    }

    /// The socket has failed: the peer, or the way to it, is gone.
    pub(super) fn on_transport_lost(&mut self, id: ConnId) {
        let conn = &self.table[id];
        match (conn.phase, &conn.state) {
            (Phase::Closing | Phase::Free, _) => self.close_join(id),
            (_, State::Relay(_)) => self.relay_lost(id),
            (_, State::Handshaking(_)) => self.upstream_lost(id),
            (_, State::Refusing(_)) => self.body_read_done(id),
            (_, State::Answering(_)) => self.answer_lost(id, false),
            _ => self.start_close(id, Cause::ClientGone),
        }
    }

    /// Closes at once. What is queued is lost.
    pub(super) fn start_close(&mut self, id: ConnId, cause: Cause) {
        let conn = &mut self.table[id];
        if conn.phase >= Phase::Closing {
            return;
        }
        conn.cause.get_or_insert(cause);
        self.detach(id);
        let conn = &mut self.table[id];
        conn.phase = Phase::Closing;
        conn.deadline = crate::time::Time::NEVER;
        self.timers.remove(id.slot);
        if conn.flags.recv_armed {
            self.ring.cancel_recv(id);
        }
        if conn.flags.watch_armed {
            self.ring.cancel_watch(id);
        }
        if conn.flags.sending.is_some() {
            self.ring.cancel_send(id);
        }
        if conn.flags.connect_in_flight {
            self.ring.cancel_connect(id);
        }
        self.close_join(id);
    }

    /// Goes on with a close when the ring owes nothing more.
    pub(super) fn close_join(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        if conn.phase != Phase::Closing || conn.is_busy() || conn.flags.close_in_flight {
            return;
        }
        conn.flags.close_in_flight = true;
        self.ring.submit_close(id);
    }

    /// The descriptor is closed: the slot is free, and may be taken again at once.
    pub(super) fn on_closed(&mut self, id: ConnId) {
        self.unread.forget(id);
        let Shard { table, stores, delays, metrics, journal, groups, config, now, .. } = self;
        let conn = &mut table[id];
        metrics.count_backlogged(conn.outbox.is_backlogged(), false);
        if conn.flags.paused {
            metrics.slow_consumers.sub(1);
        }
        stores.account.assemblies.remove(id.slot);
        stores.account.outboxes.remove(id.slot);
        conn.outbox.clear(stores);
        delays.forget(&mut conn.mark, &metrics.recorder);
        let state = std::mem::take(&mut conn.state);
        let name = state.name();
        match state {
            State::Echo(mut decoder) | State::Rooms(mut decoder) => {
                stores.account.give_back(Drawer::Assemblies, decoder.assembly_bytes());
                decoder.release(&mut stores.spares);
            }
            _ => {}
        }
        if conn.side == Side::Client {
            let cause = conn.cause.unwrap_or(Cause::InternalError);
            let limit = (cause == Cause::TooBig).then(|| {
                config.routes.policy(conn.route).limit_of(conn.code, conn.flags.frame_too_big)
            });
            metrics.count_close(cause);
            journal.push(Closed {
                id,
                peer: conn.addresses.peer(),
                client: conn.client_ip(),
                state: name,
                route: conn.flags.routed.then_some(conn.route),
                requests: conn.requests,
                code: conn.code,
                upstream: upstream_of(groups, conn.counted),
                cause,
                limit,
                opened_at: conn.opened_at,
                closed_at: *now,
                traffic: conn.traffic,
            });
        }
        let counted = conn.counted.filter(|_| conn.side == Side::Upstream);
        // Not before the journal has it: the number of a route that nobody is on may be given away.
        self.release_places(id);
        self.table.vacate(id);
        if let Some(counted) = counted {
            self.uncount(counted);
        }
        self.accept_again_when_room();
    }

    /// Tells those who knew an open connection that it is one no more. Called once per connection,
    /// when it leaves `Phase::Open`.
    fn detach(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        if conn.phase != Phase::Open {
            return;
        }
        match &conn.state {
            State::Rooms(_) => {
                let now = self.now;
                let backend = self.backend_of(id);
                self.with_rooms(backend, |rooms, post| rooms.closed(id, now, post));
            }
            State::Connecting(_) | State::Forwarding(_) => self.abandon_attempt(id),
            State::Handshaking(_) | State::Refusing(_) | State::Answering(_) => {}
            State::ProxyHeader(_) | State::Head(_) => {}
            State::Echo(_) | State::Relay(_) | State::None => {}
        }
    }

    /// Queues a Close frame to a client.
    pub(super) fn queue_close(&mut self, id: ConnId, code: Option<u16>, reason: &str) {
        let Shard { table, stores, now, metrics, .. } = self;
        let conn = &mut table[id];
        conn.flags.close_sent = true;
        conn.note_close(code);
        metrics.count_backlogged(conn.outbox.is_backlogged(), false);
        conn.outbox.settle(stores, metrics);
        conn.outbox.write(stores, *now, |out| {
            // A Close frame without a code is answered by one without (§7.1.5).
            crate::ws::frame::encode_close(
                out,
                code.filter(|code| close::is_sendable(*code)),
                reason,
            );
        });
        self.mark_dirty(id);
    }
}

/// The backend and the upstream that a connection counts with, if those are still there.
pub(super) fn upstream_of(
    groups: &[Option<Group>],
    counted: Option<Counted>,
) -> Option<(u16, UpstreamName)> {
    let Counted { backend, upstream } = counted?;
    let group = groups[usize::from(backend)].as_ref()?;
    Some((backend, group.get(upstream)?.name()))
}
