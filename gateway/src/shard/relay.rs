//! The 1:1 relay: a client, its upstream, and the frames between them.
//!
//! ```text
//!   client                    shard                         upstream
//!     | request head            |                               |
//!     | ----------------------> | start_upstream; attempt.rs:   |
//!     | early bytes: held       | on_connected: request ----->  |
//!     |                         |  <----- 101: read_answer      |
//!     |  <----------------- 101 | relay                         |
//!     | frame                   | relay_buffer        frame ->  |
//! ```
//!
//! Both ends are connections of this shard. Once they are joined, payload is never touched: the
//! scanner reads the headers, and the receive buffer itself becomes a segment of the other end's
//! outbox.
//!
//! How an end of one side is carried over to the other: a Close frame as it is; the end of a stream
//! as the end of a stream; a client's reset as a reset. An upstream that goes without a Close frame
//! is told to the client as 1012 with a hint when to come back (`drain.rs`), where a frame of ours may
//! stand. Toward the upstream we never
//! make up a Close frame for a client that has gone: it sees 1006, as it would without us.

use super::answer::NOT_ANSWERED;
use super::attempt::{Failing, note_trouble};
use super::meter::{Allowance, Used, is_counted};
use super::send::PAUSE_AT_BYTES;
use super::{RECORDS, Shard};
use crate::conn::{Conn, ConnId, Connecting, Phase, PongsOwed, Refusing, Relay, Side, State};
use crate::handshake::{self, UpstreamAnswer};
use crate::http::{BodyReader, Request, Response};
use crate::metrics::Cause;
use crate::ring::{Buffer, Ring};
use crate::time::Time;
use crate::ws::ProtocolError;
use crate::ws::frame::{self, Direction};
use crate::ws::scan::{Scanned, Scanner};

impl<R: Ring> Shard<R> {
    /// Looks for an upstream for a client that wants to upgrade.
    pub(super) fn start_upstream(
        &mut self,
        id: ConnId,
        backend: u16,
        request: &Request<'_>,
        head: &[u8],
        early: &[u8],
    ) {
        let attempt = self.start_attempt(id, backend, request, head);
        let conn = &mut self.table[id];
        conn.state =
            State::Connecting(Box::new(Connecting { attempt, offer: None, early: Vec::new() }));
        conn.deadline = self.now + self.config.limits.connect_timeout;
        self.timers.set(id.slot, conn.deadline);
        if !early.is_empty() {
            self.hold_early(id, early);
        }
        self.begin_attempt(id);
    }

    /// Bytes behind the request. They wait until the upstream has accepted, up to a small bound at
    /// which the client is not read on.
    pub(super) fn hold_early(&mut self, id: ConnId, bytes: &[u8]) {
        let early_bytes_max = self.config.limits.early_bytes_max;
        let State::Connecting(connecting) = &mut self.table[id].state else { return };
        connecting.early.extend_from_slice(bytes);
        if connecting.early.len() >= early_bytes_max {
            self.pause(id);
        }
    }

    /// Bytes of an upstream's answer to our request.
    pub(super) fn read_answer(&mut self, id: ConnId, mut buffer: Buffer) {
        while let Some(behind_interim) = self.read_answer_head(id, buffer) {
            buffer = behind_interim;
        }
    }

    /// Reads one head. Returns what came behind it when another has to follow.
    fn read_answer_head(&mut self, id: ConnId, mut buffer: Buffer) -> Option<Buffer> {
        let (client, head, taken) = self.gather_answer_head(id, &buffer)?;
        let response = self.parse_answer(id, client, &head)?;
        // What is behind the head stays in the receive buffer.
        drop(buffer.split_to(taken));
        self.on_answer(id, client, &response, buffer)
    }

    fn on_answer(
        &mut self,
        id: ConnId,
        client: ConnId,
        response: &Response<'_>,
        rest: Buffer,
    ) -> Option<Buffer> {
        let State::Connecting(connecting) = &mut self.table[client].state else {
            self.start_close(id, Cause::ClientGone);
            return None;
        };
        let Some(offer) = &connecting.offer else { return None };
        match handshake::check_upstream_response(response, offer) {
            Ok(UpstreamAnswer::Accepted { rsv1, .. }) => {
                let accept = offer.client_accept;
                let early = std::mem::take(&mut connecting.early);
                let head = std::mem::take(&mut connecting.attempt.head);
                self.stores.spares.give(head);
                self.record_upgrade(client, Some(id));
                let cookie = self.attempt_opened(id, client);
                let Shard { table, stores, now, .. } = self;
                table[client].code = 101;
                table[client].outbox.write(stores, *now, |out| {
                    handshake::encode_switching_from_upstream(
                        out,
                        response,
                        &accept,
                        cookie.as_deref(),
                    );
                });
                self.metrics.upgraded.add(1);
                self.mark_dirty(client);
                self.join(client, id, rsv1);
                self.relay_bytes(client, &early);
                self.resume(client);
                if self.table[client].flags.read_done && self.table[client].phase == Phase::Open {
                    // It ended its stream behind its request, while there was no relay yet.
                    self.relay_read_done(client);
                }
                if self.table.get_mut(id).is_some_and(|conn| conn.phase == Phase::Open) {
                    self.relay_buffer(id, rest);
                }
                self.leave_emptied(client);
            }
            Ok(UpstreamAnswer::Refused) => {
                self.attempt_answered(client, response.status);
                let body = BodyReader::new(response, "GET");
                let Shard { table, stores, now, .. } = self;
                table[client].code = response.status;
                table[client].outbox.write(stores, *now, |out| {
                    handshake::encode_refusal(out, response);
                });
                table[id].state = State::Refusing(Box::new(Refusing { client, body }));
                // It was answered in time; from here on it is the body that has to come.
                table[client].deadline = Time::NEVER;
                table[id].deadline = *now + self.config.limits.connect_timeout;
                self.timers.set(id.slot, table[id].deadline);
                self.mark_dirty(client);
                self.pass_body(id, &rest);
            }
            // Another head follows. Nothing in an interim one is for a client that asked for a
            // WebSocket.
            Ok(UpstreamAnswer::Interim) => {
                self.count_interim(id, client)?;
                return (!rest.is_empty()).then_some(rest);
            }
            Err(fault) => self.bad_answer(id, client, &fault.to_string()),
        }
        None
    }

    /// Makes two connections the two sides of a relay.
    fn join(&mut self, client: ConnId, upstream: ConnId, rsv1: bool) {
        let place = self.recorded_place(self.table[upstream].counted);
        let side = |other, direction| {
            let scanner = Scanner::new(direction, rsv1);
            State::Relay(Relay {
                other,
                scanner,
                asked_at: Time::NEVER,
                pongs_owed: PongsOwed::default(),
                place,
                pong_awaited: false,
                frame_awaited: false,
                goodbye: None,
            })
        };
        self.table[client].state = side(upstream, Direction::ClientToUpstream);
        self.table[upstream].state = side(client, Direction::UpstreamToClient);
        self.start_timeouts(client);
        self.start_timeouts(upstream);
    }

    /// An upstream takes too long over the handshake, or a connect.
    pub(super) fn upstream_late(&mut self, id: ConnId) {
        let State::Handshaking(head) = &self.table[id].state else { return };
        let client = head.client;
        let (failing, why) = match self.table[id].flags.connect_in_flight {
            true => {
                (Failing::ConnectLate, "the upstream did not connect within attempt_timeout_ms")
            }
            false => (Failing::Late, "the upstream did not answer within upgrade_timeout_ms"),
        };
        self.attempt_failed(id, client, failing, why);
    }

    /// An upstream went before it had answered.
    pub(super) fn upstream_lost(&mut self, id: ConnId) {
        let State::Handshaking(head) = &self.table[id].state else { return };
        self.attempt_failed(id, head.client, Failing::BrokeOff, NOT_ANSWERED);
    }

    // A refusal on its way to the client.

    /// Bytes of the body of an upstream's refusal.
    pub(super) fn pass_body(&mut self, id: ConnId, bytes: &[u8]) {
        let Shard { table, stores, now, dirty, .. } = self;
        let State::Refusing(refusing) = &mut table[id].state else { return };
        let client = refusing.client;
        let scanned = refusing.body.scan(bytes);
        let (forward, done) = scanned.unwrap_or((0, true));
        let Some(conn) = table.get_mut(client).filter(|conn| conn.phase == Phase::Open) else {
            return self.start_close(id, Cause::ClientGone);
        };
        conn.outbox.write(stores, *now, |out| out.extend_from_slice(&bytes[..forward]));
        super::mark_dirty(conn, client.slot, dirty);
        let full = conn.outbox.bytes() > PAUSE_AT_BYTES;
        if done {
            self.body_read_done(id);
        } else if full {
            self.pause(id);
        }
    }

    /// The refusal is over, one way or another.
    pub(super) fn body_read_done(&mut self, id: ConnId) {
        let State::Refusing(refusing) = &self.table[id].state else { return };
        let client = refusing.client;
        if self.table.get_mut(client).is_some_and(|conn| conn.phase == Phase::Open) {
            if let State::Connecting(connecting) = &mut self.table[client].state {
                connecting.attempt.upstream = None;
            }
            self.start_finish(client, Cause::HandshakeRejected);
        }
        self.start_close(id, Cause::BackendClose);
    }

    /// The upstream whose refusal goes to `client`.
    pub(super) fn refusing_upstream_of(&self, client: ConnId) -> Option<ConnId> {
        match &self.table[client].state {
            State::Connecting(connecting) => connecting.attempt.upstream.filter(|upstream| {
                let conn = self.table.get(*upstream);
                conn.is_some_and(|conn| matches!(conn.state, State::Refusing(_)))
            }),
            _ => None,
        }
    }

    // Frames.

    /// Forwards what one side has sent, out of the buffer it came in.
    pub(super) fn relay_buffer(&mut self, id: ConnId, mut buffer: Buffer) {
        self.take_pong(id, &mut buffer);
        let Some((scanned, other)) = self.scan(id, &buffer) else { return };
        let Shard { table, stores, now, dirty, .. } = self;
        if let Some(conn) = table.get_mut(other).filter(|conn| conn.phase == Phase::Open) {
            if !scanned.carried.is_empty() {
                conn.outbox.write(stores, *now, |out| out.extend_from_slice(&scanned.carried));
            }
            if scanned.forward > 0 {
                // A peer that does not keep up must not hold a buffer that is everybody's.
                if conn.flags.congested || conn.has_waiting_send() {
                    let bytes = &buffer[..scanned.forward];
                    conn.outbox.write(stores, *now, |out| out.extend_from_slice(bytes));
                } else {
                    let front = buffer.split_to(scanned.forward);
                    conn.outbox.push_lent(front, stores, *now);
                }
            }
            super::mark_dirty(conn, other.slot, dirty);
        }
        self.relayed(id, other, &scanned);
    }

    /// Forwards bytes that are not in a receive buffer.
    fn relay_bytes(&mut self, id: ConnId, bytes: &[u8]) {
        let Some((scanned, other)) = self.scan(id, bytes) else { return };
        let Shard { table, stores, now, dirty, .. } = self;
        if let Some(conn) = table.get_mut(other).filter(|conn| conn.phase == Phase::Open) {
            conn.outbox.write(stores, *now, |out| {
                out.extend_from_slice(&scanned.carried);
                out.extend_from_slice(&bytes[..scanned.forward]);
            });
            super::mark_dirty(conn, other.slot, dirty);
        }
        self.relayed(id, other, &scanned);
    }

    fn scan(&mut self, id: ConnId, bytes: &[u8]) -> Option<(Scanned, ConnId)> {
        let conn = &mut self.table[id];
        let policy = self.config.routes.policy(conn.route);
        let limits = policy.frame_limits();
        let State::Relay(relay) = &mut conn.state else { return None };
        let (other, between_frames) = (relay.other, relay.scanner.at_frame_boundary());
        let route = self.metrics.recorder.route(conn.route);
        let sizes = match conn.side {
            Side::Client => &route.from_client_sizes,
            Side::Upstream => &route.to_client_sizes,
        };
        let scanned = relay.scanner.scan_sizes(bytes, &limits, |size| {
            if RECORDS {
                sizes.record(size as u64, 1);
            }
        });
        // The upstream's Pings are the upstream's doing, and so are the answers to them.
        let owed = relay.pongs_owed.take(scanned.pongs);
        let control_frames = scanned.pings + (scanned.pongs - owed);
        let counts = policy.rates.limit_data() || control_frames > 0;
        if counts && conn.side == Side::Client && is_counted(conn) {
            let used = Used {
                messages: scanned.messages.into(),
                bytes: bytes.len() as u64,
                control_frames: control_frames.into(),
            };
            let allowance = Allowance::of(&policy.rates, conn, self.now);
            if let Some(limit) = used.over(&allowance) {
                self.fail_relay_over_limit(id, other, between_frames, limit);
                return None;
            }
            self.charge(id, &used);
        }
        Some((scanned, other))
    }

    /// A client is over a limit: of the batch that takes it there nothing passes. The upstream is
    /// told 1001, as our client is going away before its time: 1008 would accuse the upstream, and
    /// 1000 would call the conversation done. `between_frames`: what passed before ends with a whole
    /// frame.
    fn fail_relay_over_limit(
        &mut self,
        client: ConnId,
        upstream: ConnId,
        between_frames: bool,
        limit: &str,
    ) {
        self.fail_client(client, upstream, Cause::RateLimited, 1008, limit);
        self.end_upstream(upstream, between_frames, 1001);
    }

    /// What was seen in the frames of one side decides how both go on.
    fn relayed(&mut self, id: ConnId, other: ConnId, scanned: &Scanned) {
        if scanned.data {
            self.table[id].data_at = self.now;
        }
        self.metrics.messages_relayed.add(u64::from(scanned.messages));
        self.table[id].traffic.received(scanned.messages);
        if scanned.pings > 0 {
            self.owe_pongs(other, scanned.pings);
        }
        if let Some(conn) = self.table.get_mut(other) {
            conn.traffic.sent(scanned.messages);
            if RECORDS && scanned.messages > 0 && conn.phase == Phase::Open {
                let bytes = conn.outbox.bytes();
                self.delays.queued(&mut conn.mark, scanned.messages, bytes, self.now);
            }
        }
        if RECORDS && scanned.messages > 0 {
            self.record_turn_of_talk(id, other);
        }
        if let Some(code) = scanned.close {
            for end in [id, other] {
                if let Some(conn) = self.table.get_mut(end) {
                    conn.note_close(code);
                }
            }
            self.relay_close_passed(id, other);
        } else if let Some(error) = scanned.error {
            match self.table[id].side {
                Side::Client => {
                    self.table[id].flags.frame_too_big = error == ProtocolError::FrameTooBig;
                    self.fail_client(
                        id,
                        other,
                        error.cause(),
                        error.close_code(),
                        &error.to_string(),
                    );
                    self.finish(other, error.cause());
                }
                Side::Upstream => {
                    let why = format!("it broke the protocol: {error}");
                    note_trouble(&self.groups, &self.journal, self.table[id].counted, &why);
                    let (cause, code, why) = match error.cause() {
                        Cause::TooBig => {
                            (Cause::TooBig, 1009, "message of the backend above message_bytes_max")
                        }
                        _ => (Cause::BackendProtocolError, 1011, "the backend broke the protocol"),
                    };
                    self.fail_client(other, id, cause, code, why);
                    self.fail_upstream(id, other, error.close_code());
                }
            }
        } else if self.table[id].flags.evicted
            && self.table[id].phase == Phase::Open
            && let Some((client, upstream)) = self.sides_of(id)
        {
            self.evict_join(client, upstream);
        }
        for end in [id, other] {
            if self.table.get(end).is_some_and(awaits_frame) {
                self.frame_passed(end);
            }
        }
        if let Some(conn) = self.table.get_mut(other)
            && conn.outbox.bytes() > PAUSE_AT_BYTES
        {
            self.pause(id);
        }
        if scanned.dropped > 0 {
            self.discard(id, scanned.dropped);
        }
    }

    /// A client was sent Pings: so many Pongs of it are answers. Only a client's are ever counted.
    fn owe_pongs(&mut self, id: ConnId, pings: u32) {
        let Some(conn) = self.table.get_mut(id).filter(|conn| conn.side == Side::Client) else {
            return;
        };
        if let State::Relay(relay) = &mut conn.state {
            relay.pongs_owed.add(pings);
        }
    }

    /// One side's Close frame has been passed on whole.
    fn relay_close_passed(&mut self, id: ConnId, other: ConnId) {
        let cause = match self.table[id].side {
            Side::Client => Cause::ClientClose,
            Side::Upstream => Cause::BackendClose,
        };
        let patience = self.now + self.config.limits.close_timeout;
        let conn = &mut self.table[id];
        conn.flags.close_received = true;
        let both = conn.flags.close_sent;
        conn.cause.get_or_insert(cause);
        let Some(peer) = self.table.get_mut(other) else {
            return self.start_finish(id, cause);
        };
        peer.flags.close_sent = true;
        peer.cause.get_or_insert(cause);
        if both {
            // The closing handshake is complete. The streams end when the outboxes are flushed.
            self.start_finish(id, cause);
            self.finish(other, cause);
        } else {
            // The other side may still have much to say before its own Close frame.
            for id in [id, other] {
                self.unthrottle(id);
                if let Some(conn) = self.table.get_mut(id) {
                    conn.deadline = patience;
                    self.timers.set(id.slot, patience);
                }
            }
        }
    }

    /// One side of a relay has ended its stream.
    pub(super) fn relay_read_done(&mut self, id: ConnId) {
        let conn = &self.table[id];
        let State::Relay(relay) = &conn.state else { return };
        let other = relay.other;
        match conn.side {
            Side::Upstream if conn.flags.close_received => {
                self.start_finish(id, Cause::BackendClose);
                self.finish(other, Cause::BackendClose);
            }
            Side::Upstream => {
                self.orphan(other, id);
                self.start_finish(id, Cause::BackendGone);
            }
            Side::Client => {
                // A half-closed client can still be answered, so only the stream's end goes on.
                let cause =
                    if conn.flags.close_received { Cause::ClientClose } else { Cause::ClientGone };
                let patience = self.now + self.config.limits.close_timeout;
                let conn = &mut self.table[id];
                conn.cause.get_or_insert(cause);
                conn.deadline = patience;
                self.timers.set(id.slot, patience);
                match self.table.get_mut(other) {
                    Some(conn) if conn.phase == Phase::Open => {
                        conn.flags.shut_wanted = true;
                        self.flushed(other);
                    }
                    _ => self.start_finish(id, cause),
                }
            }
        }
    }

    /// One side's socket has failed.
    pub(super) fn relay_lost(&mut self, id: ConnId) {
        let conn = &self.table[id];
        let State::Relay(relay) = &conn.state else { return };
        let other = relay.other;
        match conn.side {
            Side::Client => {
                self.start_close(id, Cause::ClientGone);
                if self.table.get_mut(other).is_some_and(|conn| conn.phase == Phase::Open) {
                    // An upstream's socket is closed by a reset unless its stream was ended.
                    self.start_close(other, Cause::ClientGone);
                }
            }
            Side::Upstream => {
                let closed = conn.flags.close_received;
                if closed {
                    self.finish(other, Cause::BackendClose);
                } else {
                    self.orphan(other, id);
                }
                self.start_close(id, Cause::BackendGone);
            }
        }
    }

    /// One side does not take what the other sends: it is closed, and the other is told.
    pub(super) fn relay_lost_slow(&mut self, id: ConnId) {
        match self.table[id].side {
            Side::Client => {
                self.table[id].cause.get_or_insert(Cause::SlowConsumer);
            }
            Side::Upstream => {
                let State::Relay(relay) = &self.table[id].state else { return };
                let client = relay.other;
                if let Some(conn) = self.table.get_mut(client) {
                    conn.cause.get_or_insert(Cause::BackendTimeout);
                }
            }
        }
        self.relay_lost(id);
    }

    /// A sign of life is due; or a closing handshake, or a half-closed client, took too long without
    /// a byte from the other side.
    pub(super) fn relay_deadline(&mut self, id: ConnId) {
        if self.table[id].is_talking() {
            return self.heartbeat(id);
        }
        let State::Relay(relay) = &self.table[id].state else { return };
        let other = relay.other;
        if self.table[id].flags.orphan {
            return self.fail_orphan(id, other);
        }
        let evicted = self.table[id].flags.evicted;
        // A side that has said goodbye keeps nothing open by going on to send.
        let talking = [id, other].into_iter().filter_map(|id| self.table.get(id));
        let talking = talking.filter(|conn| !conn.flags.close_received);
        let heard = talking.map(|conn| conn.received_at).max().unwrap_or(Time(0));
        let patience = heard + self.config.limits.close_timeout;
        if patience > self.now {
            self.table[id].deadline = patience;
            return;
        }
        if evicted && let Some((client, upstream)) = self.sides_of(id) {
            return self.end_evicted(client, upstream);
        }
        let cause = self.table[id].cause.unwrap_or(Cause::InternalError);
        self.start_close(id, cause);
        if self.table.get_mut(other).is_some() {
            self.start_close(other, cause);
        }
    }

    /// Tells both sides that the relay ends, if a frame of ours may stand there, and ends it.
    pub(super) fn end_relay(&mut self, id: ConnId, cause: Cause, code: u16, why: &str) {
        let Some((client, upstream)) = self.sides_of(id) else { return };
        self.fail_client(client, upstream, cause, code, why);
        self.fail_upstream(upstream, client, 1001);
    }

    /// Whether both sides may be told something; if not, `frame_passed` is called when that may be.
    pub(super) fn relay_is_between_frames(&mut self, id: ConnId) -> bool {
        let Some((client, upstream)) = self.sides_of(id) else { return true };
        let is_between = self.may_inject(upstream) && self.may_inject(client);
        if let State::Relay(relay) = &mut self.table[id].state {
            relay.frame_awaited = !is_between;
        }
        is_between
    }

    /// The client and the upstream of a relay.
    fn sides_of(&self, id: ConnId) -> Option<(ConnId, ConnId)> {
        let State::Relay(relay) = &self.table[id].state else { return None };
        Some(match self.table[id].side {
            Side::Client => (id, relay.other),
            Side::Upstream => (relay.other, id),
        })
    }

    // Pings of ours among the frames of others.

    /// Asks one side for a sign of life, unless a frame from the other is on its way to it: then
    /// `frame_passed` is called behind that. Returns whether it was asked.
    pub(super) fn send_relay_ping(&mut self, id: ConnId) -> bool {
        let State::Relay(relay) = &self.table[id].state else { return false };
        let may = self.may_inject(relay.other);
        let mask = (self.random.next_u64() as u32).to_ne_bytes();
        let Shard { table, stores, now, ping_payload, .. } = self;
        let conn = &mut table[id];
        let State::Relay(relay) = &mut conn.state else { return false };
        relay.frame_awaited = !may;
        if !may {
            return false;
        }
        relay.pong_awaited = true;
        let side = conn.side;
        relay.pongs_owed.add(u32::from(side == Side::Client));
        conn.outbox.write(stores, *now, |out| match side {
            Side::Client => frame::encode_ping(out, ping_payload),
            Side::Upstream => frame::encode_client_ping(out, *ping_payload, mask),
        });
        self.mark_dirty(id);
        true
    }

    /// The Pong to a Ping of ours is not passed on where it stands in front of what has come, as it
    /// does when the peer was silent before: the other side, which may close whom it has not heard
    /// of, hears of nothing that it would not without us. A Pong that stands elsewhere, or in pieces,
    /// passes: an unsolicited Pong is allowed (RFC 6455 §5.5.3).
    fn take_pong(&mut self, id: ConnId, buffer: &mut Buffer) {
        let State::Relay(relay) = &mut self.table[id].state else { return };
        if relay.pong_awaited
            && let Some(len) = relay.scanner.pong_in_front(buffer, &self.ping_payload)
        {
            relay.pong_awaited = false;
            relay.pongs_owed.take(1);
            drop(buffer.split_to(len));
        }
    }

    /// One side has not answered a Ping: it is gone.
    pub(super) fn relay_silent(&mut self, id: ConnId) {
        let Some((client, upstream)) = self.sides_of(id) else { return };
        match self.table[id].side {
            Side::Client => {
                self.table[id].cause.get_or_insert(Cause::ClientTimeoutPing);
                self.relay_lost(id);
            }
            Side::Upstream => {
                let why = self.retry_hint();
                self.start_close(id, Cause::BackendTimeout);
                self.fail_client(client, upstream, Cause::BackendTimeout, 1012, &why);
            }
        }
    }

    /// Tells a client why its connection ends, if a frame of ours may stand where its stream from
    /// `upstream` is, and ends it.
    pub(super) fn fail_client(
        &mut self,
        client: ConnId,
        upstream: ConnId,
        cause: Cause,
        code: u16,
        why: &str,
    ) {
        let between_frames = self.may_inject(upstream);
        let Some(conn) = self.table.get_mut(client).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        conn.cause.get_or_insert(cause);
        if between_frames && !conn.flags.close_sent {
            self.queue_close(client, Some(code), why);
        }
        self.start_finish(client, cause);
    }

    /// The same toward an upstream.
    pub(super) fn fail_upstream(&mut self, upstream: ConnId, client: ConnId, code: u16) {
        self.end_upstream(upstream, self.may_inject(client), code);
    }

    /// Ends the stream to an upstream, with a Close frame where one may stand.
    fn end_upstream(&mut self, upstream: ConnId, between_frames: bool, code: u16) {
        let mask = (self.random.next_u64() as u32).to_ne_bytes();
        let Shard { table, stores, now, .. } = self;
        let Some(conn) = table.get_mut(upstream).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        if between_frames && !conn.flags.close_sent {
            conn.flags.close_sent = true;
            conn.outbox
                .write(stores, *now, |out| frame::encode_client_close(out, Some(code), "", mask));
            self.mark_dirty(upstream);
        }
        self.finish(upstream, Cause::BackendClose);
    }

    /// Whether what `source` has sent so far ends with a whole frame.
    pub(super) fn may_inject(&self, source: ConnId) -> bool {
        match self.table.get(source).map(|conn| &conn.state) {
            Some(State::Relay(relay)) => relay.scanner.at_frame_boundary(),
            _ => true,
        }
    }

    /// Whether what `source` has sent so far ends with a whole message.
    pub(super) fn is_between_messages(&self, source: ConnId) -> bool {
        match self.table.get(source).map(|conn| &conn.state) {
            Some(State::Relay(relay)) => relay.scanner.at_message_boundary(),
            _ => true,
        }
    }

    /// `start_finish` of a side that may have gone already.
    fn finish(&mut self, id: ConnId, cause: Cause) {
        if self.table.get_mut(id).is_some() {
            self.start_finish(id, cause);
        }
    }
}

/// Whether a frame of ours is due to this side of a relay, and waits for one that passes.
pub(super) fn awaits_frame(conn: &Conn) -> bool {
    matches!(&conn.state, State::Relay(relay) if relay.frame_awaited)
}
