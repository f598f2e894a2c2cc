//! Ordinary HTTP to an upstream and back: what chat servers speak beside WebSocket, such as
//! long-polling, negotiation and static files.
//!
//! ```text
//!   client                    shard                          upstream
//!     | request, body           |                               |
//!     | ----------------------> | start_forward; attempt.rs:    |
//!     |                         | on_connected: request ------> |
//!     | body ...                | forward_body          body -> |
//!     |                         |  <--- head: forward_answer    |
//!     |  <------- head and body |  <--- body                    |
//!     | next request            | answer_done                   |
//! ```
//!
//! Both bodies pass as they are framed; we only find where they end, so that nothing behind a
//! request can be taken for part of it, nor a part for another request. A client has one request
//! under way, each on an upstream connection of its own, which is not used again: no client can
//! leave anything on it for another.

use super::Shard;
use super::answer::NOT_ANSWERED;
use super::attempt::{Failing, note_trouble};
use super::send::PAUSE_AT_BYTES;
use crate::conn::{Conn, ConnId, Forwarding, Head, Phase, Session, State};
use crate::handshake;
use crate::http::{BodyReader, HttpError, Request};
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::time::Time;
use crate::upstream::OpenScanner;

impl<R: Ring> Shard<R> {
    /// Asks for an upstream connection for a client's ordinary request; `rest` is what came behind
    /// the head.
    pub(super) fn start_forward(
        &mut self,
        id: ConnId,
        backend: u16,
        request: &Request<'_>,
        head: &[u8],
        rest: &[u8],
    ) {
        let body = BodyReader::of_request(request);
        let body_bytes_left = self.policy_of(id).body_bound();
        if matches!(body, BodyReader::Length(length) if length > body_bytes_left) {
            return self.refuse(id, 413, Cause::TooBig, BODY_TOO_LARGE);
        }
        let connect_timeout = self.config.limits.connect_timeout;
        let attempt = self.start_attempt(id, backend, request, head);
        let is_http_10 = request.minor_version == 0;
        let conn = &mut self.table[id];
        conn.state = State::Forwarding(Box::new(Forwarding {
            attempt,
            request: Vec::new(),
            body,
            body_bytes_left,
            request_done: false,
            measured_from: (Time::NEVER, 0),
            is_head: request.method == "HEAD",
            is_http_10,
            keep_alive: !is_http_10 && !request.headers.has_token("connection", "close"),
            answered: false,
            connected: false,
            next: Vec::new(),
        }));
        conn.deadline = self.now + connect_timeout;
        self.timers.set(id.slot, conn.deadline);
        self.forward_body(id, rest);
        // Unless its body was refused already.
        if self.table[id].phase == Phase::Open {
            self.begin_attempt(id);
        }
    }

    /// Bytes of a client whose request is on its way: its body, or what comes behind it.
    pub(super) fn forward_body(&mut self, id: ConnId, bytes: &[u8]) {
        let Shard { table, stores, now, dirty, config, .. } = self;
        let State::Forwarding(forwarding) = &mut table[id].state else { return };
        let taken = match (forwarding.request_done, forwarding.body.scan(bytes)) {
            (true, _) => 0,
            (false, Ok((taken, done))) => {
                forwarding.request_done = done;
                taken
            }
            (false, Err(_)) => return self.fail_request(id, 400, Cause::ProtocolError, BAD_BODY),
        };
        let Some(left) = forwarding.body_bytes_left.checked_sub(taken as u64) else {
            return self.fail_request(id, 413, Cause::TooBig, BODY_TOO_LARGE);
        };
        forwarding.body_bytes_left = left;
        let (body, behind) = bytes.split_at(taken);
        // Nothing behind a request is read on before its answer.
        forwarding.next.extend_from_slice(behind);
        let mut full = !forwarding.next.is_empty();
        match forwarding.attempt.upstream.filter(|_| forwarding.connected) {
            None => {
                forwarding.request.extend_from_slice(body);
                full |= forwarding.request.len() > config.limits.early_bytes_max;
            }
            Some(upstream) => {
                let open = table.get_mut(upstream).filter(|conn| conn.phase == Phase::Open);
                let takes = |conn: &&mut Conn| match &conn.state {
                    State::Answering(answering) => !answering.head.send_failed,
                    _ => true,
                };
                if let Some(conn) = open.filter(takes).filter(|_| !body.is_empty()) {
                    conn.outbox.write(stores, *now, |out| out.extend_from_slice(body));
                    super::mark_dirty(conn, upstream.slot, dirty);
                    full |= conn.outbox.bytes() > PAUSE_AT_BYTES;
                }
            }
        }
        if full {
            self.pause(id);
        }
    }

    /// The upstream of a request is connected, and the request's head is queued for it.
    pub(super) fn forward_connected(&mut self, id: ConnId, client: ConnId) {
        let Shard { table, stores, now, config, timers, .. } = self;
        let received = table[client].traffic.received_bytes;
        let State::Forwarding(forwarding) = &mut table[client].state else { return };
        let body = std::mem::take(&mut forwarding.request);
        forwarding.connected = true;
        let behind = !forwarding.next.is_empty();
        // From here on it is this connection that has to move on, and a body that is not whole.
        let measured = !forwarding.request_done && config.limits.body_bytes_per_second_min > 0;
        forwarding.measured_from = (*now, received);
        let deadline = if measured { *now + config.limits.body_grace } else { Time::NEVER };
        table[client].deadline = deadline;
        timers.set(client.slot, deadline);
        let conn = &mut table[id];
        conn.deadline = *now + config.routes.policy(conn.route).response_timeout;
        timers.set(id.slot, conn.deadline);
        conn.outbox.write(stores, *now, |out| out.extend_from_slice(&body));
        if !behind {
            self.resume(client);
        }
    }

    /// Bytes of an upstream's answer.
    pub(super) fn forward_answer(&mut self, id: ConnId, mut bytes: &[u8]) {
        loop {
            let State::Answering(answering) = &mut self.table[id].state else { return };
            let client = answering.head.client;
            let Some(body) = &mut answering.body else {
                match self.forward_answer_head(id, bytes) {
                    Some(behind) => bytes = behind,
                    None => return,
                }
                continue;
            };
            let scanned = match &mut answering.opening {
                None => body.scan(bytes),
                Some(opening) => {
                    let scanned = body.scan_payload(bytes, |payload| _ = opening.scan(payload));
                    self.watch_opening(id);
                    scanned
                }
            };
            if scanned.is_err() {
                let why = "the body of its answer is not framed as its head says";
                note_trouble(&self.groups, &self.journal, self.table[id].counted, why);
            }
            let Shard { table, stores, now, dirty, .. } = self;
            let Some(conn) = table.get_mut(client).filter(|conn| conn.phase == Phase::Open) else {
                return self.start_close(id, Cause::ClientGone);
            };
            let Ok((forward, done)) = scanned else {
                self.start_close(id, Cause::BackendProtocolError);
                return self.fail_request(client, 502, Cause::BackendProtocolError, "");
            };
            conn.outbox.write(stores, *now, |out| out.extend_from_slice(&bytes[..forward]));
            super::mark_dirty(conn, client.slot, dirty);
            let full = conn.outbox.bytes() > PAUSE_AT_BYTES;
            if done {
                self.answer_done(id, client);
            } else if full {
                self.pause(id);
            }
            return;
        }
    }

    /// Reads a head, final or interim. Returns what came behind it, or `None` when more has to
    /// arrive first or the answer is over.
    fn forward_answer_head<'a>(&mut self, id: ConnId, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (client, head, taken) = self.gather_answer_head(id, bytes)?;
        let response = self.parse_answer(id, client, &head)?;
        if response.status == 101 {
            self.bad_answer(id, client, "the upstream switched protocols unasked");
            return None;
        }
        let Shard { table, stop_deadline, .. } = self;
        let is_half_closed = table[client].flags.read_done;
        let State::Forwarding(forwarding) = &mut table[client].state else {
            self.start_close(id, Cause::ClientGone);
            return None;
        };
        let is_interim = response.status < 200;
        let mut cookie = None;
        if !is_interim {
            let method = if forwarding.is_head { "HEAD" } else { "GET" };
            let body = BodyReader::new(&response, method);
            // Only where both ends can tell where this one stops may another request follow; and
            // what is left of a request that was answered early cannot be told from the next.
            forwarding.keep_alive &= !matches!(body, BodyReader::UntilEnd)
                && forwarding.request_done
                && !(is_half_closed && forwarding.next.is_empty())
                && stop_deadline.is_none();
            forwarding.answered = true;
            let opens = forwarding.attempt.session == Session::Opens
                && response.status == 200
                && forwarding.attempt.head.starts_with(b"GET ");
            let coding = response.headers.get("content-encoding");
            let is_legible = coding.is_none_or(|coding| coding.eq_ignore_ascii_case("identity"));
            self.metrics.sids_missed.add(u64::from(opens && !is_legible));
            let opens = opens && is_legible;
            if let State::Answering(answering) = &mut table[id].state {
                answering.body = Some(body);
                answering.opening = opens.then(OpenScanner::default);
            }
            table[client].code = response.status;
            self.record_answer(id, client);
            if (502..=504).contains(&response.status) {
                self.attempt_answered(client, response.status);
            } else {
                cookie = self.attempt_opened(id, client);
            }
        }
        let Shard { table, stores, now, .. } = self;
        let State::Forwarding(forwarding) = &table[client].state else { return None };
        let keep_alive = is_interim || forwarding.keep_alive;
        // HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
        if !(is_interim && forwarding.is_http_10) {
            table[client].outbox.write(stores, *now, |out| {
                handshake::encode_forwarded_response(out, &response, keep_alive, cookie.as_deref());
            });
            self.mark_dirty(client);
        }
        if is_interim {
            self.count_interim(id, client)?;
        }
        Some(&bytes[taken..])
    }

    /// The whole answer has been passed on.
    fn answer_done(&mut self, id: ConnId, client: ConnId) {
        if let State::Answering(answering) = &mut self.table[id].state {
            // It was to open a session, and ended without naming one.
            self.metrics.sids_missed.add(u64::from(answering.opening.is_some()));
            answering.is_done = true;
        }
        // It was asked to close, so its end follows.
        self.start_finish(id, Cause::BackendClose);
        self.metrics.requests_forwarded.add(1);
        let keepalive_timeout = self.config.limits.keepalive_timeout;
        let conn = &mut self.table[client];
        let State::Forwarding(forwarding) = &mut conn.state else { return };
        // Who asks without reading the answers is not given more of them.
        let keeps_up = conn.outbox.bytes() <= PAUSE_AT_BYTES;
        // Its stream has ended, so what it has asked for is all that it can ask for.
        let is_last = conn.flags.read_done && forwarding.next.is_empty();
        forwarding.keep_alive &= !is_last;
        if !(forwarding.keep_alive && keeps_up && self.stop_deadline.is_none()) {
            forwarding.attempt.upstream = None;
            return self.start_finish(client, Cause::HttpDone);
        }
        let mut next = std::mem::take(&mut forwarding.next);
        self.stores.spares.give(std::mem::take(&mut forwarding.attempt.head));
        conn.state = State::Head(Head::default());
        conn.flags.served = true;
        conn.deadline = self.now + keepalive_timeout;
        self.timers.set(client.slot, conn.deadline);
        self.resume(client);
        if !next.is_empty() {
            self.read_head(client, &mut next);
            self.end_half_closed(client);
        }
    }

    /// A client that has ended its stream is answered what it has asked for as a whole. What it
    /// would have to go on with can come no more.
    fn end_half_closed(&mut self, client: ConnId) {
        let Some(conn) = self.table.get(client) else { return };
        if conn.phase == Phase::Open && conn.flags.read_done && !awaits_answer(conn) {
            self.start_finish(client, Cause::ClientGone);
        }
    }

    /// An upstream went before its answer was whole; `in_order` by the end of its stream.
    pub(super) fn answer_lost(&mut self, id: ConnId, in_order: bool) {
        let State::Answering(answering) = &self.table[id].state else { return };
        let Some(client) = answering.waiting_client() else {
            return self.start_close(id, Cause::BackendClose);
        };
        // A socket tells of a reset once: the failed send has heard of it, and the receive ends as if
        // in order.
        let in_order = in_order && !answering.head.send_failed;
        match &answering.body {
            None => self.attempt_failed(id, client, Failing::BrokeOff, NOT_ANSWERED),
            Some(BodyReader::UntilEnd) if in_order => self.answer_done(id, client),
            Some(_) => {
                let why = "it went before its answer was whole";
                note_trouble(&self.groups, &self.journal, self.table[id].counted, why);
                self.start_close(id, Cause::BackendGone);
                self.fail_request(client, 502, Cause::BackendGone, "");
            }
        }
    }

    /// Refuses a request that is with an upstream. Once its answer has begun, it can only end too
    /// early: its framing tells the client so, unless the end of the stream was to be its end.
    pub(super) fn fail_request(&mut self, client: ConnId, status: u16, cause: Cause, why: &str) {
        let Some(conn) = self.table.get_mut(client).filter(|conn| conn.phase == Phase::Open) else {
            return;
        };
        match &conn.state {
            State::Forwarding(forwarding) if forwarding.answered => {
                self.start_finish(client, cause);
            }
            _ => self.refuse(client, status, cause, why),
        }
    }

    /// A client's request is in the way of time: it is not connected, or its body does not come.
    pub(super) fn forwarding_deadline(&mut self, id: ConnId) {
        let conn = &mut self.table[id];
        let State::Forwarding(forwarding) = &mut conn.state else { return };
        if !forwarding.connected {
            return self.attempt_late(id);
        }
        // An answer that has begun says how the exchange ends, and is waited for elsewhere.
        let least = u64::from(self.config.limits.body_bytes_per_second_min);
        if forwarding.request_done || forwarding.answered || least == 0 {
            return;
        }
        let (from, before) = forwarding.measured_from;
        let due = from + self.config.limits.body_grace;
        if due > self.now {
            // The upstream was what it waited for meanwhile.
            conn.deadline = due;
            return;
        }
        let received = conn.traffic.received_bytes;
        let elapsed_ms = self.now.since(from).as_millis() as u64;
        let is_slow = received.saturating_sub(before).saturating_mul(1000) < least * elapsed_ms;
        // While we do not read it, nobody knows how fast it would be.
        let is_read = !conn.flags.paused && !conn.flags.starved;
        if is_slow && is_read {
            let why = "the request's body comes slower than body_bytes_per_second_min";
            return self.fail_request(id, 408, Cause::ClientTimeoutHandshake, why);
        }
        forwarding.measured_from = (self.now, received);
        conn.deadline = self.now + self.config.limits.body_grace;
    }

    /// The upstream has room again for a body: from here on it is the client that is measured.
    pub(super) fn resume_body(&mut self, client: ConnId) {
        let now = self.now;
        let Some(conn) = self.table.get_mut(client) else { return };
        let received = conn.traffic.received_bytes;
        let State::Forwarding(forwarding) = &mut conn.state else { return };
        if forwarding.next.is_empty() {
            if conn.flags.paused {
                forwarding.measured_from = (now, received);
            }
            self.resume(client);
        }
    }

    /// An upstream takes nothing of a request's body for `outbox_age_max_ms`.
    pub(super) fn answering_slow(&mut self, id: ConnId) {
        let State::Answering(answering) = &self.table[id].state else { return };
        let client = answering.head.client;
        let why = "the upstream takes nothing of the request's body";
        self.attempt_failed(id, client, Failing::Late, why);
    }

    /// An upstream has been silent for a while: whether for too long.
    pub(super) fn answering_deadline(&mut self, id: ConnId) {
        let timeout = self.policy_of(id).response_timeout;
        let conn = &self.table[id];
        let State::Answering(answering) = &conn.state else { return };
        let client = answering.head.client;
        let (heard, paused) = (conn.received_at, conn.flags.paused);
        // While a request still comes in, the answer need not.
        let (heard, waits_for_client) = match self.table.get(client) {
            Some(conn) => match &conn.state {
                State::Forwarding(forwarding) if !forwarding.connected => {
                    let why = "the upstream did not connect within attempt_timeout_ms";
                    return self.attempt_failed(id, client, Failing::ConnectLate, why);
                }
                State::Forwarding(forwarding) => {
                    (heard.max(conn.received_at), !forwarding.request_done)
                }
                _ => (heard, false),
            },
            None => (heard, false),
        };
        let due = heard + timeout;
        if paused {
            // It is the client that is slow; its outbox has a deadline of its own.
            self.table[id].deadline = self.now + timeout;
        } else if due > self.now {
            self.table[id].deadline = due;
        } else if waits_for_client {
            self.start_close(id, Cause::ClientTimeoutHandshake);
            let why = "the request's body took longer than response_timeout_ms";
            self.fail_request(client, 408, Cause::ClientTimeoutHandshake, why);
        } else {
            let why = "the upstream did not answer within response_timeout_ms";
            self.attempt_failed(id, client, Failing::Late, why);
        }
    }

    /// The client has to leave: a request that is not answered yet is refused, an answer that has
    /// begun is the last one on its connection.
    pub(super) fn stop_forwarding(&mut self, id: ConnId, cause: Cause, why: &str) {
        let State::Forwarding(forwarding) = &mut self.table[id].state else { return };
        forwarding.keep_alive = false;
        if !forwarding.answered {
            self.refuse(id, 503, cause, why);
        }
    }
}

/// Whether a client that has ended its stream may still be answered: all of its request is here.
pub(super) fn awaits_answer(conn: &Conn) -> bool {
    match &conn.state {
        State::Forwarding(forwarding) => forwarding.request_done,
        State::Connecting(_) => true,
        _ => false,
    }
}

const BODY_TOO_LARGE: &str = "the request's body is larger than request_body_bytes_max";
const BAD_BODY: &str = "the request's body is not framed as its head says";

/// Whether a method may be forwarded. TRACE would show a client what we add for the upstream, and
/// CONNECT is for proxies of another kind (RFC 9110 §9.3.6, §9.3.8).
pub(super) fn check_method(method: &str) -> Result<(), HttpError> {
    match method {
        "TRACE" | "CONNECT" => Err(HttpError::MethodNotAllowed),
        _ => Ok(()),
    }
}
