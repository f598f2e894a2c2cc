//! Bytes arrive, and messages of the clients that we talk to ourselves.

use std::collections::VecDeque;
use std::time::Duration;

use super::meter::{Allowance, REST, Used, is_counted};
use super::send::PAUSE_AT_BYTES;
use super::{RECORDS, Shard};
use crate::conn::{ConnId, Phase, Side, State};
use crate::metrics::Cause;
use crate::policy::Policy;
use crate::ring::{Buffer, Failure, Ring};
use crate::rooms::Served;
use crate::ws::frame::{Opcode, encode_server_header};
use crate::ws::{Event, MessageKind, ProtocolError};

/// Receives that are armed again in one turn for connections that were starved of buffers.
const REARM_PER_TURN: usize = 64;

/// Buffers that have to be back, in percent, before a starved connection tries again: with the
/// first one that comes home the next receive would fail like the last.
const REARM_FREE_PERCENT: u32 = 25;

/// Bytes that a peer may send after its last word, or ours: what is on its way then, on all but the
/// longest and fastest lines. What it may be in the middle of comes on top (`Shard::discard`).
const DISCARD_BYTES_MAX: u64 = 256 * 1024;

/// Bytes of the body of a request that was refused for its head, beyond those, where no limit is set:
/// enough for what a page sends, which reads its answer behind the whole of it.
const REFUSED_BODY_BYTES_MAX: u64 = 1 << 20;

/// How long a client is not read before it is watched for a reset. Those who are read again sooner, as all
/// are whose bytes are taken, cost no watch.
const UNWATCHED: Duration = Duration::from_secs(1);

/// Bytes in an outbox beyond which no second Pong joins one that waits there.
const PONG_BYTES_MAX: usize = 4096;

/// Connections whose receive ended because no buffer was free, each here once.
///
/// A receive that is armed takes all that its socket has before the next one's turn comes. So whoever
/// got nothing goes first: a peer that always has more to send would otherwise take every buffer that
/// comes back, and the others would never have one.
#[derive(Default)]
pub(super) struct Starved {
    unfed: VecDeque<ConnId>,
    fed: VecDeque<ConnId>,
}

impl Starved {
    fn push(&mut self, id: ConnId, fed: bool) {
        if fed { &mut self.fed } else { &mut self.unfed }.push_back(id);
    }

    fn pop(&mut self) -> Option<ConnId> {
        self.unfed.pop_front().or_else(|| self.fed.pop_front())
    }

    fn is_empty(&self) -> bool {
        self.unfed.is_empty() && self.fed.is_empty()
    }

    /// Bytes on the heap.
    pub(super) fn held_bytes(&self) -> usize {
        (self.unfed.capacity() + self.fed.capacity()) * size_of::<ConnId>()
    }
}

impl<R: Ring> Shard<R> {
    pub(super) fn on_received(
        &mut self,
        id: ConnId,
        result: Result<Option<Buffer>, Failure>,
        more: bool,
    ) {
        if !more {
            self.table[id].flags.recv_armed = false;
        }
        match result {
            Ok(Some(buffer)) => {
                let conn = &mut self.table[id];
                self.rested = self.now.since(conn.received_at) >= REST;
                conn.received_at = self.now;
                conn.flags.fed = true;
                if conn.flags.ping_pending {
                    conn.flags.ping_pending = false;
                    let pinged_at = self.now.back_to(conn.pinged_us);
                    self.metrics.recorder.ping.record_since(pinged_at, self.now);
                }
                conn.traffic.received_bytes += buffer.len() as u64;
                self.on_bytes(id, buffer);
            }
            Ok(None) => return self.on_read_done(id),
            Err(Failure::NoBuffers) => {
                let conn = &mut self.table[id];
                if conn.phase != Phase::Closing && !conn.flags.starved {
                    conn.flags.starved = true;
                    self.metrics.starved.add(1);
                    let fed = conn.flags.fed;
                    self.starved.push(id, fed);
                }
            }
            Err(Failure::Cancelled) => {}
            Err(_) => return self.on_transport_lost(id),
        }
        if more {
            return;
        }
        // A multishot may end for no reason that concerns us, even with bytes in hand.
        if self.table[id].phase < Phase::Closing {
            self.arm_recv(id);
        } else {
            self.close_join(id);
        }
    }

    /// Arms the receive, unless it is, or is not wanted.
    pub(super) fn arm_recv(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        let flags = conn.flags;
        if flags.recv_armed || flags.paused || flags.read_done || flags.starved {
            return;
        }
        if conn.is_throttled() {
            return;
        }
        conn.flags.recv_armed = true;
        conn.flags.fed = false;
        self.ring.arm_recv(id);
    }

    /// Connections that were starved try again once buffers are back.
    pub(super) fn rearm_starved(&mut self) {
        if !self.may_rearm_starved() {
            return;
        }
        for _ in 0..REARM_PER_TURN {
            let Some(id) = self.starved.pop() else { return };
            let Some(conn) = self.table.get_mut(id) else { continue };
            conn.flags.starved = false;
            if conn.phase < Phase::Closing {
                self.arm_recv(id);
            }
        }
    }

    pub(super) fn may_rearm_starved(&self) -> bool {
        !self.starved.is_empty() && self.ring.buffers_free_percent() >= REARM_FREE_PERCENT
    }

    /// Stops reading from a peer, because whoever takes its bytes does not keep up. What has been
    /// received already still comes: up to a few buffers more.
    pub(super) fn pause(&mut self, id: ConnId) {
        let flags = &mut self.table[id].flags;
        if !flags.paused {
            flags.paused = true;
            self.metrics.slow_consumers.add(1);
            if flags.recv_armed {
                self.ring.cancel_recv(id);
            }
            if self.table[id].side == Side::Client {
                self.timers.set(id.slot, self.now + UNWATCHED);
            }
        }
    }

    /// A client that has not been read for a while: nothing else would tell that it is gone, and what it
    /// has filled would be kept for it until that is too old.
    pub(super) fn watch_unread(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        let is_read = !conn.flags.paused || conn.side == Side::Upstream;
        if is_read || conn.flags.watch_armed || conn.phase >= Phase::Closing {
            return;
        }
        conn.flags.watch_armed = true;
        self.ring.arm_watch(id);
    }

    /// A client that is not read was reset, or its watch has ended.
    pub(super) fn on_watched(&mut self, id: ConnId, gone: bool, more: bool) {
        let conn = &mut self.table[id];
        conn.flags.watch_armed = more;
        if conn.phase >= Phase::Closing {
            return self.close_join(id);
        }
        if !conn.flags.paused {
            // It is read again: what it had sent comes first, and behind it the reset.
            return;
        }
        if gone {
            return self.on_transport_lost(id);
        }
        if !more {
            self.timers.set(id.slot, self.now + UNWATCHED);
        }
    }

    pub(super) fn resume(&mut self, id: ConnId) {
        if self.unread.has(id) {
            return self.unread.look_at(id); // What it has sent already comes first.
        }
        let flags = &mut self.table[id].flags;
        // There is nobody to read an orphan for.
        if flags.paused && !flags.orphan {
            flags.paused = false;
            self.metrics.slow_consumers.sub(1);
            if flags.watch_armed {
                self.ring.cancel_watch(id);
            }
            // The answer to a Ping may be among what waits to be read.
            flags.ping_pending = false;
            // When the cancelled receive has not ended yet, its end arms it again.
            self.arm_recv(id);
        }
    }

    /// Reads a peer that is leaving, whatever kept us from it: its own goodbye is what we wait for.
    pub(super) fn hear_out(&mut self, id: ConnId) {
        self.table[id].flags.orphan = false;
        self.unthrottle(id);
        self.resume(id);
    }

    /// The outbox of `id` has room again: whoever fills it may read on.
    pub(super) fn resume_feeder(&mut self, id: ConnId) {
        match &self.table[id].state {
            State::Relay(relay) => {
                let other = relay.other;
                if self.table.get_mut(other).is_some() {
                    self.resume(other);
                }
            }
            // Its own bytes wait for the upstream to accept; a refusal's body waits for it.
            State::Connecting(_) => {
                if let Some(upstream) = self.refusing_upstream_of(id) {
                    self.resume(upstream);
                }
            }
            // A request's answer waits for its client, its body for the upstream.
            State::Forwarding(forwarding) => {
                let upstream = forwarding.attempt.upstream;
                if let Some(upstream) = upstream.filter(|id| self.table.get_mut(*id).is_some()) {
                    self.resume(upstream);
                }
            }
            State::Answering(answering) => {
                if let Some(client) = answering.waiting_client() {
                    self.resume_body(client);
                }
            }
            _ => self.resume(id),
        }
    }

    fn on_bytes(&mut self, id: ConnId, mut buffer: Buffer) {
        let conn = &mut self.table[id];
        self.metrics.received_bytes.add(buffer.len() as u64);
        match conn.phase {
            Phase::Open | Phase::Leaving => {}
            // Nobody looks at it any more.
            Phase::Finishing => return self.discard(id, buffer.len()),
            Phase::Closing | Phase::Free => return,
        }
        match &conn.state {
            State::Echo(_) | State::Rooms(_) => self.read_messages(id, &mut buffer),
            State::Relay(_) => self.relay_buffer(id, buffer),
            State::Head(_) => self.read_head(id, &mut buffer),
            State::ProxyHeader(_) => self.read_proxy_header(id, &mut buffer),
            State::Connecting(_) => self.hold_early(id, &buffer),
            State::Handshaking(_) => self.read_answer(id, buffer),
            State::Refusing(_) => self.pass_body(id, &buffer),
            State::Forwarding(_) => self.forward_body(id, &buffer),
            State::Answering(_) => self.forward_answer(id, &buffer),
            State::None => {}
        }
    }

    /// Counts what a peer sends that nobody looks at any more: after we have failed it, or said
    /// goodbye, or it has. It is read at all so that the socket's end is no reset, which could take our
    /// last frame away from the peer (RFC 9112 §9.6 has the same of HTTP). Above the bound it is closed
    /// all the same.
    pub(super) fn discard(&mut self, id: ConnId, bytes: usize) {
        let conn = &mut self.table[id];
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        conn.discarded_bytes = conn.discarded_bytes.saturating_add(bytes);
        let conn = &self.table[id];
        let unfinished = match (&conn.state, conn.cause) {
            _ if conn.flags.close_received => 0,
            // A body that breaks a rule has no end to wait for.
            (State::Connecting(_) | State::Forwarding(_), Some(Cause::ProtocolError)) => 0,
            // Clients of HTTP read an early answer when their whole body is on its way.
            // Without a limit it is `close_timeout` alone that ends it.
            (State::Connecting(_) | State::Forwarding(_), _) => self.policy_of(id).body_bound(),
            (State::Head(_), _) => match self.config.limits.request_body_bytes_max {
                0 => REFUSED_BODY_BYTES_MAX,
                bytes => bytes,
            },
            (
                _,
                Some(Cause::ProtocolError | Cause::BadUtf8 | Cause::TooBig | Cause::RateLimited),
            ) => 0,
            // It has done nothing wrong, and may be in the middle of a message.
            _ => self.policy_of(id).frame_limits().message_bytes_max as u64,
        };
        let bound = DISCARD_BYTES_MAX.saturating_add(unfinished);
        if conn.phase >= Phase::Closing || u64::from(conn.discarded_bytes) <= bound {
            return;
        }
        self.metrics.cut_off.add(1);
        match (conn.phase, &conn.state) {
            // Only one side of a relay has said its last.
            (Phase::Open, State::Relay(_)) => self.relay_lost(id),
            _ => self.start_close(id, Cause::ClientGone),
        }
    }

    /// Decodes what a client has sent us and acts on each message.
    pub(super) fn read_messages(&mut self, id: ConnId, bytes: &mut [u8]) {
        if self.table[id].phase == Phase::Leaving {
            // Only its Close frame is still wanted of it.
            self.discard(id, bytes.len());
            if self.table[id].phase != Phase::Leaving {
                return;
            }
        }
        let is_member = matches!(self.table[id].state, State::Rooms(_));
        if is_member && (self.unread.has(id) || self.has_to_wait(id)) {
            return self.keep_unread(id, bytes);
        }
        let served = self.serve_messages(id, bytes);
        let is_open = self.table.get_mut(id).is_some_and(|conn| conn.phase <= Phase::Leaving);
        if is_open && (served < bytes.len() || self.unread.has(id)) {
            self.keep_unread(id, &bytes[served..]);
        }
    }

    /// Acts on messages until the bytes are used up or, in rooms, the client has to wait. Returns how
    /// many bytes are done with; all of them when the client is about to go.
    pub(super) fn serve_messages(&mut self, id: ConnId, bytes: &mut [u8]) -> usize {
        let policy = self.config.routes.policy(self.table[id].route);
        let limits = policy.frame_limits();
        let conn = &self.table[id];
        let counts = is_counted(conn);
        let allowance = match counts {
            true => Allowance::of(&policy.rates, conn, self.now),
            false => Allowance::ALL,
        };
        let mut used = Used::bytes(bytes.len());
        let mut over = used.over(&allowance);
        if over.is_some() {
            used = Used::default(); // Nothing of it is served.
        }
        // The decoder is taken out of its connection meanwhile: its events borrow from it, and
        // those who act on them may look at any connection.
        let (mut decoder, rooms) = match &mut self.table[id].state {
            State::Echo(decoder) => (std::mem::take(decoder), false),
            State::Rooms(decoder) => (std::mem::take(decoder), true),
            _ => return bytes.len(),
        };
        let (partial_bytes, held_bytes) = (decoder.partial_bytes(), decoder.assembly_bytes());
        let (mut consumed, mut waits) = (0, false);
        while over.is_none() {
            let event = decoder.next(bytes, &mut consumed, &limits, &mut self.stores.spares);
            match event {
                Ok(None) => break,
                Ok(Some(event)) => {
                    let next = used.and(&event);
                    over = next.over(&allowance);
                    if over.is_none() {
                        used = next;
                        self.on_event(id, event, rooms);
                    }
                }
                Err(error) => {
                    self.on_protocol_error(id, error);
                    break;
                }
            }
            if !matches!(self.table[id].phase, Phase::Open | Phase::Leaving) {
                break;
            }
            if rooms && consumed < bytes.len() && self.has_to_wait(id) {
                waits = true;
                break;
            }
        }
        if !waits {
            consumed = bytes.len();
        }
        // What waits is counted when it is served.
        used.bytes = consumed as u64;
        let conn = &mut self.table[id];
        if decoder.partial_bytes() != partial_bytes {
            conn.data_at = self.now;
        }
        let mut held_now_bytes = decoder.assembly_bytes();
        match &mut conn.state {
            State::Echo(place) | State::Rooms(place) => *place = decoder,
            _ => {
                held_now_bytes = 0;
                decoder.release(&mut self.stores.spares);
            }
        }
        if conn.outbox.owed_bytes() > PAUSE_AT_BYTES {
            self.pause(id);
        }
        if counts {
            self.charge(id, &used);
        }
        if let Some(limit) = over {
            self.start_fail(id, Cause::RateLimited, 1008, limit);
        }
        if held_now_bytes != held_bytes {
            self.assembly_changed(id, held_bytes, held_now_bytes);
        }
        consumed
    }

    fn on_event(&mut self, id: ConnId, event: Event<'_>, rooms: bool) {
        match event {
            Event::Message { kind, payload } => {
                self.table[id].data_at = self.now;
                self.metrics.messages_received.add(1);
                self.table[id].traffic.received(1);
                if RECORDS {
                    let route = self.metrics.recorder.route(self.table[id].route);
                    route.from_client_sizes.record(payload.len() as u64, 1);
                }
                if self.table[id].phase != Phase::Open || self.table[id].cause.is_some() {
                    // We have said goodbye, or will; what was on its way is no longer served.
                } else if rooms {
                    self.on_room_message(id, kind, payload);
                } else {
                    let opcode = match kind {
                        MessageKind::Text => Opcode::Text,
                        MessageKind::Binary => Opcode::Binary,
                    };
                    self.send_frame(id, opcode, payload);
                }
            }
            Event::Ping(payload) => self.on_ping(id, payload),
            Event::Pong(_) => {}
            Event::Close(frame) => {
                let code = frame.map(|frame| frame.code);
                self.on_client_close(id, code);
            }
        }
    }

    fn on_room_message(&mut self, id: ConnId, kind: MessageKind, payload: &[u8]) {
        match kind {
            MessageKind::Text => self.on_room_text(id, payload),
            MessageKind::Binary => {
                let reason = "rooms speak JSON in text messages";
                self.start_leave(id, Cause::ProtocolError, 1003, reason);
            }
        }
    }

    /// Hands a text message to the rooms. It may have to wait.
    pub(super) fn on_room_text(&mut self, id: ConnId, payload: &[u8]) {
        let now = self.now;
        let backend = self.backend_of(id);
        match self.with_rooms(backend, |rooms, post| rooms.on_message(id, payload, now, post)) {
            Served::Request => self.charge_room_request(id),
            Served::Message => {}
            Served::Waits(home) => self.unread.stand_in_line(id, home, payload),
        }
    }

    /// A Pong for a Ping. While Pongs wait behind a slow reader, or a flood of Pings has filled the
    /// outbox with them, another is not answered (RFC 6455 §5.5.3: the latest would be enough).
    fn on_ping(&mut self, id: ConnId, payload: &[u8]) {
        let conn = &mut self.table[id];
        if conn.phase != Phase::Open {
            return;
        }
        let many = conn.flags.congested || conn.outbox.bytes() > PONG_BYTES_MAX;
        if !(many && conn.flags.pong_waits) {
            conn.flags.pong_waits = true;
            self.send_frame(id, Opcode::Pong, payload);
        }
    }

    /// Queues one unfragmented frame for a client.
    pub(super) fn send_frame(&mut self, id: ConnId, opcode: Opcode, payload: &[u8]) {
        let Shard { table, stores, delays, now, dirty, metrics, .. } = self;
        let conn = &mut table[id];
        conn.outbox.write(stores, *now, |out| {
            encode_server_header(out, opcode, payload.len());
            out.extend_from_slice(payload);
        });
        if RECORDS && !opcode.is_control() {
            delays.queued(&mut conn.mark, 1, conn.outbox.bytes(), *now);
            let sizes = &metrics.recorder.route(conn.route).to_client_sizes;
            sizes.record(payload.len() as u64, 1);
        }
        metrics.frames_sent.add(1);
        conn.traffic.sent(u32::from(!opcode.is_control()));
        super::mark_dirty(conn, id.slot, dirty);
    }

    fn on_protocol_error(&mut self, id: ConnId, error: ProtocolError) {
        self.table[id].flags.frame_too_big = error == ProtocolError::FrameTooBig;
        self.start_fail(id, error.cause(), error.close_code(), &error.to_string());
    }

    /// What holds for the route of a connection.
    pub(super) fn policy_of(&self, id: ConnId) -> &Policy {
        self.config.routes.policy(self.table[id].route)
    }

    /// The backend that a client's route leads to.
    pub(super) fn backend_of(&self, id: ConnId) -> u16 {
        let route = crate::route::RouteIndex(self.table[id].route);
        self.config.routes.get(route).backend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two that found no buffer, one has had all of them.
    #[test]
    fn who_got_nothing_is_armed_before_who_got_some() {
        let [greedy, waiting, last] = [1, 2, 3].map(|slot| ConnId { slot, generation: 0 });
        let mut starved = Starved::default();
        for (id, fed) in [(greedy, true), (waiting, false), (last, false)] {
            starved.push(id, fed);
        }
        let order: Vec<_> = std::iter::from_fn(|| starved.pop()).collect();
        assert_eq!(order, [waiting, last, greedy]);
        assert!(starved.is_empty());
    }
}
