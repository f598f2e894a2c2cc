//! Upstreams are tried for a client, one after the other, until one takes it.
//!
//! ```text
//!   start_attempt --> try_upstream --> on_socket_opened --> on_connected --> an answer
//!                        ^   | nobody has room: waits          |               |
//!                        |   +----> serve_waiting              v               v
//!                        +------------------------------- attempt_failed    attempt_opened
//! ```
//!
//! A client that has heard nothing yet goes on to the next upstream when one cannot be reached. Once a
//! handshake has been sent, one more upstream gets it at most (`SENT_MAX`), and only where the first
//! broke off: a slow one is waited for. Where both break off it is the request's fault, and counts
//! against neither. An ordinary request is not sent twice: it moves on only while nothing of it has been
//! sent. What the group is told, and when, is the contract of `upstream.rs`: every pick has exactly one
//! outcome.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::Shard;
use super::close::upstream_of;
use crate::config::{BackendKind, Config, Websocket};
use crate::conn::table::Table;
use crate::conn::{
    AnswerHead, Answering, Attempt, ConnId, Counted, Phase, SENT_MAX, Session, Side, State,
};
use crate::handshake::{self, Offer};
use crate::http::{self, Request};
use crate::journal::Journal;
use crate::metrics::Cause;
use crate::random::Random;
use crate::ring::{Failure, Ring};
use crate::time::Time;
use crate::upstream::{
    Balance, Client, Evidence, Group, Health, Pick, Sticky, Tried, UpstreamAddress, UpstreamId,
    UpstreamSpec, connections_share,
};

/// Clients that wait for room at an upstream and are tried again in one turn.
const WAITING_PER_TURN: usize = 16;

/// Clients of one backend that wait until an upstream has room; each is here once.
#[derive(Default)]
pub(super) struct Waiting {
    /// One for each choice that some of them have: as many as upstreams, and two, at most.
    queues: Vec<Queue>,
}

struct Queue {
    choice: Choice,
    clients: VecDeque<ConnId>,
    /// How many of those are still to be looked at since there was last room.
    left: usize,
}

/// Where clients may go. What the first of one queue is not given, the others are not either, but
/// for those who have tried: each of them has been elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Any,
    NotTried,
    Session(UpstreamId),
}

impl Waiting {
    fn queue_of(&mut self, attempt: &Attempt) -> &mut VecDeque<ConnId> {
        let choice = match attempt.sticky {
            _ if attempt.tried.count() > 0 => Choice::NotTried,
            Sticky::Session(upstream) => Choice::Session(upstream),
            Sticky::Nowhere | Sticky::Cookie(_) => Choice::Any,
        };
        let at = self.queues.iter().position(|queue| queue.choice == choice);
        let at = at.unwrap_or_else(|| {
            self.queues.push(Queue { choice, clients: VecDeque::new(), left: 0 });
            self.queues.len() - 1
        });
        &mut self.queues[at].clients
    }
}

impl<R: Ring> Shard<R> {
    /// The search for an upstream for a request whose head this is. `begin_attempt` begins it.
    pub(super) fn start_attempt(
        &mut self,
        id: ConnId,
        backend: u16,
        request: &Request<'_>,
        head: &[u8],
    ) -> Attempt {
        let client = self.table[id].client_ip();
        let group = self.groups[usize::from(backend)].as_ref().expect("a websocket backend");
        let key = match &group.options().balance {
            Balance::Hash { key, .. } => key.of(request, client),
            _ => 0,
        };
        let sets_cookie = group.options().cookie.is_some();
        let cookie = group.find_cookie(&request.headers);
        let (session, issuer) = self.session_of(id, backend, request);
        let elsewhere = cookie.map_or(Sticky::Nowhere, Sticky::Cookie);
        let sticky = issuer.map_or(elsewhere, Sticky::Session);
        // It matters to a cookie alone.
        let is_https =
            sets_cookie && matches!(self.forwarded_of(id, request).proto, "https" | "wss");
        let mut copy = self.stores.spares.take(head.len());
        copy.extend_from_slice(head);
        Attempt {
            backend,
            head: copy,
            key,
            sticky,
            cookie,
            is_https,
            session,
            began_at: self.now,
            picked: None,
            picked_unfit: false,
            sent: 0,
            suspect: None,
            at_other: false,
            upstream: None,
            tried: Tried::default(),
            waits: false,
        }
    }

    /// Tries the first upstream, once it is known where the client belongs.
    pub(super) fn begin_attempt(&mut self, id: ConnId) {
        let attempt = attempt_of(&mut self.table[id].state);
        if attempt.is_some_and(|attempt| !matches!(attempt.session, Session::Asked(_))) {
            self.try_upstream(id, None);
        }
    }

    /// Asks for a connection to the next upstream. `failed` is what becomes of the client when there is
    /// none: how the last one failed.
    pub(super) fn try_upstream(&mut self, id: ConnId, failed: Option<(u16, Cause)>) {
        let Shard { table, ring, groups, waiting, random, now, config, .. } = self;
        let conn = &mut table[id];
        let Some(attempt) = attempt_of(&mut conn.state) else { return };
        let backend = usize::from(attempt.backend);
        let group = groups[backend].as_mut().expect("a websocket backend");
        let client = Client { key: attempt.key, sticky: attempt.sticky, random: random.next_u64() };
        match group.pick(&client, *now, &attempt.tried) {
            Pick::Upstream(upstream) => {
                group.on_picked(upstream);
                attempt.picked = Some(upstream);
                attempt.at_other = false;
                conn.flags.socket_in_flight = true;
                let upstream = group.get(upstream).expect("what was picked is in the list");
                attempt.picked_unfit = upstream.health(*now) != Health::Up;
                let address = &upstream.spec().address;
                let source = source_of(config, attempt.backend, address, random);
                ring.submit_socket(id, address, source);
            }
            Pick::Wait => {
                attempt.waits = true;
                let clients = waiting[backend].queue_of(attempt);
                clients.push_back(id);
                // Those that gave up stand in front. Without room nobody would ever remove them.
                while let Some(front) = clients.front()
                    && waiting_attempt(table, *front).is_none()
                {
                    clients.pop_front();
                }
            }
            Pick::None => {
                if let [only] = group.upstreams() {
                    let counted = Counted { backend: attempt.backend, upstream: only.id() };
                    conn.counted = Some(counted);
                }
                let (status, cause) = failed.unwrap_or((503, Cause::BackendGone));
                self.book_suspect(id);
                self.refuse_neutrally(id, status, cause);
            }
        }
    }

    /// Connections to upstreams have ended: clients that waited for that are tried again, those of
    /// one choice in the order in which they came, until one finds that there is still no room.
    pub(super) fn serve_waiting(&mut self) {
        if std::mem::take(&mut self.room_made) {
            for queue in self.waiting.iter_mut().flat_map(|waiting| &mut waiting.queues) {
                queue.left = queue.clients.len();
            }
        }
        for backend in 0..self.waiting.len() {
            // None comes or goes meanwhile: who still waits has the choice that it had.
            for at in 0..self.waiting[backend].queues.len() {
                self.serve_queue(backend, at);
            }
            self.waiting[backend].queues.retain(|queue| !queue.clients.is_empty());
        }
    }

    fn serve_queue(&mut self, backend: usize, at: usize) {
        // The rest is for the next turn.
        for _ in 0..self.waiting[backend].queues[at].left.min(WAITING_PER_TURN) {
            let queue = &mut self.waiting[backend].queues[at];
            queue.left -= 1;
            let Some(id) = queue.clients.pop_front() else { continue };
            let Some(attempt) = waiting_attempt(&mut self.table, id) else { continue };
            attempt.waits = false;
            self.try_upstream(id, None);
            let still_waits = waiting_attempt(&mut self.table, id).is_some();
            let queue = &mut self.waiting[backend].queues[at];
            if still_waits && queue.choice != Choice::NotTried {
                // Whatever has room, those behind it would not be given either.
                queue.clients.rotate_right(1);
                queue.left = 0;
                return;
            }
        }
    }

    /// Whether the next turn has something to do in `serve_waiting`.
    pub(super) fn may_serve_waiting(&self) -> bool {
        let mut queues = self.waiting.iter().flat_map(|waiting| &waiting.queues);
        queues.any(|queue| queue.left > 0 || (self.room_made && !queue.clients.is_empty()))
    }

    pub(super) fn on_socket_opened(&mut self, client: ConnId, result: Result<u32, Failure>) {
        let Shard { table, groups, .. } = self;
        let conn = &mut table[client];
        conn.flags.socket_in_flight = false;
        let is_open = conn.phase == Phase::Open;
        let attempt = attempt_of(&mut conn.state).filter(|_| is_open);
        let address = attempt.and_then(|attempt| {
            let group = groups[usize::from(attempt.backend)].as_ref()?;
            // It may have left the list meanwhile.
            let spec = group.get(attempt.picked?)?.spec();
            if attempt.at_other { spec.other.clone() } else { Some(spec.address.clone()) }
        });
        match (result, address) {
            (Ok(slot), Some(address)) => self.connect_upstream(client, slot, &address),
            // The client has gone meanwhile, or the upstream has: the socket has no use.
            (Ok(slot), None) => {
                let id = self.table.occupy(slot, Side::Upstream, NOWHERE, self.now);
                self.start_close(id, Cause::ClientGone);
                self.stop_accepting_when_full();
                if is_open {
                    self.book_suspect(client);
                    self.refuse_neutrally(client, 503, Cause::BackendGone);
                }
            }
            (Err(failure), _) if is_open => {
                self.metrics.upstream_shortages.add(1);
                let why = format!("no socket for the upstream: {failure}");
                let picked = picked_of(&mut self.table[client].state);
                note_trouble(&self.groups, &self.journal, picked, &why);
                self.book_suspect(client);
                self.refuse_neutrally(client, 503, Cause::MemoryPressure);
            }
            (Err(_), _) => {}
        }
        self.close_join(client);
    }

    fn connect_upstream(&mut self, client: ConnId, slot: u32, address: &UpstreamAddress) {
        let peer = match address {
            UpstreamAddress::Tcp(address) => *address,
            UpstreamAddress::Unix(_) => NOWHERE,
        };
        let id = self.table.occupy(slot, Side::Upstream, peer, self.now);
        let route = self.table[client].route;
        let is_request = matches!(self.table[client].state, State::Forwarding(_));
        let mut deadline = self.now + self.config.limits.attempt_timeout;
        if let Some(attempt) = attempt_of(&mut self.table[client].state) {
            attempt.upstream = Some(id);
            let group = self.groups[usize::from(attempt.backend)].as_ref();
            let upstreams = group.map_or(0, |group| group.upstreams().len());
            // The last there is has all the time that is left to the client.
            if attempt.tried.count() + 1 >= upstreams {
                deadline = Time::NEVER;
            }
        }
        let conn = &mut self.table[id];
        conn.route = route;
        conn.flags.on_route = true;
        self.shared.route(route).upstreams.take();
        conn.deadline = deadline;
        conn.state = if is_request {
            let head = AnswerHead::new(client);
            State::Answering(Box::new(Answering {
                head,
                body: None,
                is_done: false,
                opening: None,
            }))
        } else {
            State::Handshaking(Box::new(AnswerHead::new(client)))
        };
        self.timers.set(id.slot, deadline);
        self.table[id].flags.connect_in_flight = true;
        self.ring.submit_connect(id, address);
        self.stop_accepting_when_full();
    }

    pub(super) fn on_connected(&mut self, id: ConnId, result: Result<(), Failure>) {
        let conn = &mut self.table[id];
        conn.flags.connect_in_flight = false;
        if conn.phase != Phase::Open {
            return self.close_join(id);
        }
        let Some(AnswerHead { client, .. }) = conn.state.answer_head() else { return };
        let client = *client;
        if let Err(failure) = result {
            if self.try_other_address(id, client) {
                return;
            }
            let why = format!("the upstream could not be reached: {failure}");
            return match failure.is_shortage() {
                true => self.attempt_failed(id, client, Failing::Shortage, &why),
                false => self.attempt_failed(id, client, Failing::Connect, &why),
            };
        }
        self.record_connected(id, client);
        let Some(attempt) = attempt_of(&mut self.table[client].state) else {
            return self.start_close(id, Cause::ClientGone);
        };
        if std::mem::take(&mut attempt.at_other)
            && let Some(upstream) = attempt.picked
            && let Some(group) = &mut self.groups[usize::from(attempt.backend)]
        {
            group.on_other_address(upstream);
        }
        // Lent for the moment, since what is made of it goes into another connection's outbox.
        let head = std::mem::take(&mut attempt.head);
        let sent = self.send_request(id, client, &head);
        if let Some(attempt) = attempt_of(&mut self.table[client].state) {
            attempt.head = head;
        }
        match sent {
            Some(()) => self.arm_recv(id),
            // It was read in order when it came; the limits of a head have become narrower since.
            None => self.refuse(client, 431, Cause::HandshakeRejected, "the head is too large now"),
        }
    }

    /// Queues the client's request for the upstream that is connected.
    fn send_request(&mut self, id: ConnId, client: ConnId, head: &[u8]) -> Option<()> {
        let request = http::parse_request(head, &self.head_limits()).ok()?;
        let config = std::sync::Arc::clone(&self.config);
        let attempt = attempt_of(&mut self.table[client].state)?;
        let BackendKind::Websocket(websocket) = &config.backends[usize::from(attempt.backend)].kind
        else {
            return None;
        };
        let is_read = attempt.session == Session::Opens;
        let group = self.groups[usize::from(attempt.backend)].as_ref()?;
        let url = &group.get(attempt.picked?)?.spec().url;
        let host = (!websocket.preserve_host).then(|| url.host_header());
        let path = url.path().or(websocket.path.as_deref());
        let forwarded = self.forwarded_of(client, &request);
        let Shard { table, stores, now, random, .. } = self;
        let is_request = matches!(table[client].state, State::Forwarding(_));
        if is_request {
            table[id].outbox.write(stores, *now, |out| {
                handshake::encode_forwarded_request(
                    out,
                    &request,
                    host.as_deref(),
                    path,
                    is_read,
                    &forwarded,
                );
            });
            self.mark_dirty(id);
            self.forward_connected(id, client);
            return Some(());
        }
        let upgrade = handshake::upgrade_of(&request).ok()??;
        let key = handshake::fresh_key([random.next_u64(), random.next_u64()]);
        table[id].outbox.write(stores, *now, |out| {
            handshake::encode_upstream_request(
                out,
                &request,
                &key,
                host.as_deref(),
                path,
                &forwarded,
            );
        });
        if let State::Connecting(connecting) = &mut table[client].state {
            connecting.offer = Some(Offer::new(&upgrade, &key));
            connecting.attempt.sent += 1;
        }
        // From here on it is the upstream that has to move on.
        table[client].deadline = Time::NEVER;
        table[id].deadline = *now + config.limits.upgrade_timeout;
        self.timers.set(id.slot, table[id].deadline);
        self.mark_dirty(id);
        Some(())
    }

    /// A connect failed: the same server may have another address, where it is tried once.
    fn try_other_address(&mut self, id: ConnId, client: ConnId) -> bool {
        let Shard { table, ring, groups, config, random, .. } = self;
        let Some(conn) = table.get_mut(client).filter(|conn| conn.phase == Phase::Open) else {
            return false;
        };
        let Some(attempt) = attempt_of(&mut conn.state).filter(|attempt| !attempt.at_other) else {
            return false;
        };
        let group = groups[usize::from(attempt.backend)].as_ref();
        let upstream = group.and_then(|group| group.get(attempt.picked?));
        let Some(other) = upstream.and_then(|upstream| upstream.spec().other.as_ref()) else {
            return false;
        };
        attempt.at_other = true;
        attempt.upstream = None;
        conn.flags.socket_in_flight = true;
        let source = source_of(config, attempt.backend, other, random);
        ring.submit_socket(client, other, source);
        self.start_close(id, Cause::BackendGone);
        true
    }

    /// An upstream could not be reached, or broke off before it answered. The client goes on to the
    /// next, where that can be; else it is told.
    pub(super) fn attempt_failed(
        &mut self,
        id: ConnId,
        client: ConnId,
        failing: Failing,
        why: &str,
    ) {
        let (status, cause) = failing.answer();
        let counted = self.table[id].counted;
        self.start_close(id, cause);
        let open = self.table.get_mut(client).filter(|conn| conn.phase == Phase::Open);
        let Some(conn) = open else { return };
        let is_sent = matches!(&conn.state, State::Forwarding(forwarding) if forwarding.connected);
        let address = conn.client_ip();
        // Once an answer has begun, the upstream is not on trial any more, and counts for its connection.
        let upstream = picked_of(&mut conn.state).or(counted);
        note_trouble(&self.groups, &self.journal, upstream, why);
        let Some(attempt) = attempt_of(&mut conn.state) else { return };
        attempt.upstream = None;
        let is_first = attempt.suspect.is_none();
        let evidence = match failing {
            Failing::Connect | Failing::ConnectLate => Some(Evidence::Connect),
            Failing::Shortage | Failing::OurLimit => None,
            _ if !is_first => {
                // Two servers in a row, one request: it is the request.
                attempt.suspect = None;
                None
            }
            Failing::BrokeOff | Failing::BadAnswer if !is_sent && attempt.sent < SENT_MAX => {
                attempt.suspect = attempt.picked.filter(|_| !attempt.picked_unfit);
                None
            }
            Failing::BrokeOff | Failing::BadAnswer | Failing::Late => {
                Some(Evidence::Client(address))
            }
        };
        let was_picked = self.picked_failed(client, evidence);
        match failing {
            Failing::Shortage => self.metrics.upstream_shortages.add(1),
            Failing::OurLimit => {}
            _ => self.metrics.upstream_failures.add(u64::from(was_picked)),
        }
        let Some(attempt) = attempt_of(&mut self.table[client].state) else { return };
        let may_repeat = match failing {
            Failing::Connect | Failing::ConnectLate => !is_sent,
            Failing::BrokeOff | Failing::BadAnswer => !is_sent && attempt.sent < SENT_MAX,
            Failing::Late | Failing::Shortage | Failing::OurLimit => false,
        };
        if !may_repeat {
            self.book_suspect(client);
            let why = self.neutral_words(client, status);
            return self.fail_request(client, status, cause, &why);
        }
        if attempt.sent > 0 && self.table[client].deadline == Time::NEVER {
            // It looks for a connection again.
            let deadline = self.now + self.config.limits.connect_timeout;
            self.table[client].deadline = deadline;
            self.timers.set(client.slot, deadline);
        }
        self.try_upstream(client, Some((status, cause)));
    }

    /// The upstream that broke off first is at fault: the same request fared well at another, or there
    /// was no other that could have told.
    fn book_suspect(&mut self, client: ConnId) {
        let address = self.table[client].client_ip();
        let Some(attempt) = attempt_of(&mut self.table[client].state) else { return };
        let Some(upstream) = attempt.suspect.take() else { return };
        let counted = Counted { backend: attempt.backend, upstream };
        self.on_evidence(counted, Evidence::Client(address));
    }

    /// Something speaks against an upstream.
    fn on_evidence(&mut self, counted: Counted, evidence: Evidence) {
        let Shard { groups, random, now, journal, .. } = self;
        let Counted { backend, upstream } = counted;
        let group = groups[usize::from(backend)].as_mut().expect("a websocket backend");
        let health = group.on_evidence(upstream, evidence, *now, random.next_u64());
        if let Some(Health::Ejected { until }) = health
            && let Some(name) = group.get(upstream).map(|upstream| upstream.name())
        {
            let failures = group.options().health.eject_failures;
            let why = format!(
                "it gets no clients for {:.1?}: {failures} failures in a row (eject_failures), or one \
                 behind an ejection",
                until.since(*now)
            );
            journal.note_trouble((backend, name), true, &why);
        }
    }

    /// The client's time for connecting is over.
    pub(super) fn attempt_late(&mut self, client: ConnId) {
        let limits = &self.config.limits;
        let patience = limits.attempt_timeout.min(limits.connect_timeout);
        let Some(attempt) = attempt_of(&mut self.table[client].state) else { return };
        let upstream = attempt.upstream;
        let (status, why) = if attempt.waits {
            (503, "every upstream has as many connections as it may have")
        } else if matches!(attempt.session, Session::Asked(_)) {
            (503, "where this session belongs was not found out within connect_timeout_ms")
        } else {
            (504, "no upstream could be reached within connect_timeout_ms")
        };
        // The last one may have been tried a moment ago.
        let upstream = upstream.and_then(|upstream| self.table.get(upstream));
        let is_evident = upstream.is_some_and(|conn| conn.opened_at + patience <= self.now);
        let picked = picked_of(&mut self.table[client].state);
        note_trouble(&self.groups, &self.journal, picked, why);
        let was_picked = self.picked_failed(client, is_evident.then_some(Evidence::Connect));
        self.metrics.upstream_failures.add(u64::from(was_picked && is_evident));
        self.book_suspect(client);
        self.refuse(client, status, Cause::BackendTimeout, why);
    }

    /// Tells the group that the upstream which was picked for a client, if one was, did not take it;
    /// it is not picked for this client again. `evidence` is what speaks against it; what was sent to one
    /// that was ejected or down, because nobody else was left, does not. Returns whether one was picked.
    fn picked_failed(&mut self, client: ConnId, evidence: Option<Evidence>) -> bool {
        let Shard { table, groups, .. } = self;
        let Some(attempt) = attempt_of(&mut table[client].state) else { return false };
        let Some(upstream) = attempt.picked.take() else { return false };
        let counted = Counted { backend: attempt.backend, upstream };
        let group = groups[usize::from(attempt.backend)].as_mut().expect("a websocket backend");
        group.on_abandoned(upstream);
        let evidence = evidence.filter(|_| !attempt.picked_unfit);
        attempt.tried.push(upstream);
        // Of a client this only says where it was: see `Conn::counted`.
        table[client].counted = Some(counted);
        self.room_made = true;
        if let Some(evidence) = evidence {
            self.on_evidence(counted, evidence);
        }
        true
    }

    /// The upstream has taken the client: its connection counts until it is closed. Returns the
    /// cookie that brings the client back to it, where it has not brought that.
    pub(super) fn attempt_opened(&mut self, id: ConnId, client: ConnId) -> Option<String> {
        self.book_suspect(client);
        let Shard { table, groups, now, .. } = self;
        let attempt = attempt_of(&mut table[client].state)?;
        let upstream = attempt.picked.take()?;
        let (backend, named) = (attempt.backend, attempt.cookie);
        let is_https = attempt.is_https;
        let group = groups[usize::from(backend)].as_mut().expect("a websocket backend");
        group.on_opened(upstream, *now);
        table[id].counted = Some(Counted { backend, upstream });
        table[client].counted = table[id].counted;
        cookie(group, upstream, named, is_https)
    }

    /// The upstream has answered a handshake with something else than a WebSocket. A gateway's
    /// refusals and a 503 speak of it, others of the client.
    pub(super) fn attempt_answered(&mut self, client: ConnId, status: u16) {
        let is_bad = (502..=504).contains(&status);
        if !is_bad {
            self.book_suspect(client);
        }
        let address = self.table[client].client_ip();
        let Shard { table, groups, now, .. } = self;
        let Some(attempt) = attempt_of(&mut table[client].state) else { return };
        let Some(upstream) = attempt.picked.take() else { return };
        let counted = Counted { backend: attempt.backend, upstream };
        // Another has broken off over the same request, or nobody else was left.
        let is_doubtful = attempt.suspect.take().is_some() || attempt.picked_unfit;
        let group = groups[usize::from(counted.backend)].as_mut().expect("a websocket backend");
        // Of a client this only says where it was: see `Conn::counted`.
        table[client].counted = Some(counted);
        self.room_made = true;
        if !is_bad {
            return group.on_answered(upstream, *now);
        }
        group.on_abandoned(upstream);
        note_trouble(&self.groups, &self.journal, Some(counted), &format!("it answered {status}"));
        if !is_doubtful {
            self.on_evidence(counted, Evidence::Client(address));
        }
    }

    /// The client is going, or is told that it does not get an upstream. Where it goes by itself, nobody
    /// will say whose fault it was that the first upstream broke off, so that counts against nobody: a
    /// client could have others think ill of an upstream by not waiting.
    pub(super) fn abandon_attempt(&mut self, client: ConnId) {
        let Shard { table, groups, stores, .. } = self;
        let Some(attempt) = attempt_of(&mut table[client].state) else { return };
        stores.spares.give(std::mem::take(&mut attempt.head));
        attempt.waits = false;
        let upstream = attempt.upstream.take();
        if let Some(picked) = attempt.picked.take() {
            let group = groups[usize::from(attempt.backend)].as_mut();
            group.expect("a websocket backend").on_abandoned(picked);
            self.room_made = true;
        }
        if let Some(upstream) = upstream
            && let Some(conn) = self.table.get_mut(upstream)
            && matches!(
                conn.state,
                State::Handshaking(_) | State::Refusing(_) | State::Answering(_)
            )
            && conn.phase == Phase::Open
        {
            self.start_close(upstream, Cause::ClientGone);
        }
    }

    /// A connection to an upstream is no more.
    pub(super) fn uncount(&mut self, counted: Counted) {
        if let Some(group) = &mut self.groups[usize::from(counted.backend)] {
            group.on_closed(counted.upstream);
            self.room_made = true;
        }
    }
}

/// What the next connection to `address` is made from, where the operator has a list.
fn source_of(
    config: &Config,
    backend: u16,
    address: &UpstreamAddress,
    random: &mut Random,
) -> Option<IpAddr> {
    let BackendKind::Websocket(websocket) = &config.backends[usize::from(backend)].kind else {
        return None;
    };
    let mut sources = websocket.sources_of(address);
    match sources.clone().count() as u64 {
        0 => None,
        count => sources.nth((random.next_u64() % count) as usize),
    }
}

/// Leaves word that an upstream has failed a client, for the log.
pub(super) fn note_trouble(
    groups: &[Option<Group>],
    journal: &Journal,
    counted: Option<Counted>,
    why: &str,
) {
    if let Some(upstream) = upstream_of(groups, counted) {
        journal.note_trouble(upstream, false, why);
    }
}

/// How an attempt at an upstream has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    /// There is no connection.
    Connect,
    /// There is none within `attempt_timeout_ms`.
    ConnectLate,
    /// It has the request, and has ended the connection.
    BrokeOff,
    /// It has the request, and its answer breaks a rule.
    BadAnswer,
    /// It has the request, and has not answered in time.
    Late,
    /// We have no local port, descriptor or memory for a connection to it.
    Shortage,
    /// Its answer is in order, and larger than we take (`head_bytes_max`, `headers_max`).
    OurLimit,
}

impl Failing {
    /// The status that the client gets when no other upstream is tried, and the cause.
    fn answer(self) -> (u16, Cause) {
        match self {
            Failing::Connect | Failing::BrokeOff => (502, Cause::BackendGone),
            Failing::BadAnswer => (502, Cause::BackendProtocolError),
            Failing::ConnectLate | Failing::Late => (504, Cause::BackendTimeout),
            Failing::Shortage => (503, Cause::MemoryPressure),
            Failing::OurLimit => (502, Cause::TooBig),
        }
    }
}

/// The upstream that a client's search has picked.
pub(super) fn picked_of(state: &mut State) -> Option<Counted> {
    let attempt = attempt_of(state)?;
    Some(Counted { backend: attempt.backend, upstream: attempt.picked? })
}

/// The search that a client is in.
pub(super) fn attempt_of(state: &mut State) -> Option<&mut Attempt> {
    match state {
        State::Connecting(connecting) => Some(&mut connecting.attempt),
        State::Forwarding(forwarding) => Some(&mut forwarding.attempt),
        _ => None,
    }
}

/// The search of a client that waits for room, if it still does.
fn waiting_attempt(table: &mut Table, id: ConnId) -> Option<&mut Attempt> {
    let conn = table.get_mut(id).filter(|conn| conn.phase == Phase::Open)?;
    attempt_of(&mut conn.state).filter(|attempt| attempt.waits)
}

/// What `Set-Cookie` has to say to a client that is at `upstream` now and whose cookie named `named`.
fn cookie(
    group: &Group,
    upstream: UpstreamId,
    named: Option<UpstreamId>,
    is_https: bool,
) -> Option<String> {
    let options = group.options().cookie.as_ref()?;
    if named == Some(upstream) {
        return None;
    }
    let token = group.get(upstream)?.token()?;
    Some(options.encode(token, is_https))
}

/// The peer of what has no address of the internet.
const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// The groups of a configuration, by backend, as shard `index` begins with them.
pub(super) fn new_groups(config: &Config, index: u16, random: &mut Random) -> Vec<Option<Group>> {
    let groups = config.backends.iter().map(|backend| match &backend.kind {
        BackendKind::Websocket(websocket) => {
            Some(new_group(websocket, index, config.server.shards, random))
        }
        _ => None,
    });
    groups.collect()
}

/// The group of a backend, as shard `index` of `shards` begins with it.
pub(super) fn new_group(
    websocket: &Websocket,
    index: u16,
    shards: u16,
    random: &mut Random,
) -> Group {
    let list = upstreams_of(websocket, index, shards);
    let group = Group::new(websocket.options.clone(), list, random.next_u64());
    group.expect("the configuration has checked the list")
}

/// The upstreams of a backend, as shard `index` of `shards` is to have them: each with its share of
/// the connections.
pub(super) fn upstreams_of(websocket: &Websocket, index: u16, shards: u16) -> Vec<UpstreamSpec> {
    let mut list = websocket.upstreams.clone();
    for upstream in &mut list {
        upstream.connections_max = connections_share(upstream.connections_max, index, shards);
    }
    list
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::conn::Connecting;
    use crate::ring::sim::{Fault, Faults, Network};
    use crate::shard::Setup;
    use crate::shard::mailbox::Inbox;

    const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
[[route]]
backend = "app"
[backend.app]
kind = "websocket"
eject_failures = 2
[[backend.app.upstream]]
url = "ws://127.0.0.1:9001"
[[backend.app.upstream]]
url = "ws://127.0.0.1:9002"
"#;

    /// An upstream that broke off, and no other that could tell whose fault it was, as there is no socket
    /// for it or it has left the list: it was the upstream's.
    #[test]
    fn without_a_socket_for_the_next_the_first_is_at_fault() {
        let mut shard = Shard::of_test(CONFIG, 16);
        let group = shard.groups[0].as_mut().expect("a group");
        let [first, second] = [0, 1].map(|at: usize| group.upstreams()[at].id());
        for slot in 0..2 {
            let peer = SocketAddr::from(([192, 0, 2, slot as u8], 5));
            let client = shard.table.occupy(slot, Side::Client, peer, shard.now);
            let head = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n";
            let request = http::parse_request(head, &shard.head_limits()).expect("it is in order");
            let attempt = shard.start_attempt(client, 0, &request, head);
            let attempt = Attempt { suspect: Some(first), picked: Some(second), ..attempt };
            shard.groups[0].as_mut().expect("a group").on_picked(second);
            let conn = &mut shard.table[client];
            conn.state =
                State::Connecting(Box::new(Connecting { attempt, offer: None, early: Vec::new() }));
            conn.flags.socket_in_flight = true;
            // It is in no ring.
            conn.flags.read_done = true;
            shard.on_socket_opened(client, Err(Failure::TableFull));
        }
        let group = shard.groups[0].as_ref().expect("a group");
        let health = |upstream| group.get(upstream).expect("it is there").health(shard.now);
        assert!(matches!(health(first), Health::Ejected { .. }), "{:?}", health(first));
        assert_eq!(health(second), Health::Up, "it was not asked");
        let metrics = shard.metrics();
        assert_eq!((metrics.upstream_shortages, metrics.upstream_failures), (2, 0));
    }
    /// What a client of one upstream is answered, and what counts: failures of the upstream, and lacks of
    /// ours. The upstream says `answer` to the request.
    fn counts(faults: Faults, listens: bool, answer: &[u8]) -> (String, u64, u64) {
        let config =
            CONFIG.replace("[[backend.app.upstream]]\nurl = \"ws://127.0.0.1:9002\"\n", "");
        let address = SocketAddr::from(([127, 0, 0, 1], 9001));
        let network = Network::new(1, faults);
        if listens {
            network.listen(address);
        }
        let setup = Setup::of_test(&config, &[Inbox::default()].into());
        let mut shard = Shard::new(network.ring(16, 8, 4096, 1), setup);
        shard.start();
        let mut client = network.connect(0, 0);
        client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n");
        let (mut got, mut servers) = (Vec::new(), Vec::new());
        network.run(Duration::from_secs(1), || {
            shard.turn();
            while let Some(mut server) = network.accept(address) {
                server.send(answer);
                servers.push(server);
            }
            client.receive(&mut got, 4096);
            got.len() > 12
        });
        let metrics = shard.metrics();
        let status = String::from_utf8_lossy(&got[..12]).into_owned();
        (status, metrics.upstream_failures, metrics.upstream_shortages)
    }

    #[test]
    fn what_we_lack_is_no_failure_of_the_upstream() {
        let (calm, status) = (Faults::none(), |status: &str| format!("HTTP/1.1 {status}"));
        let no_port = calm.with(Fault::NoLocalPort, 1000);
        assert_eq!(counts(no_port, true, b""), (status("503"), 0, 1));
        let large = [b"HTTP/1.1 200 OK\r\nX: ", &[b'x'; 20_000][..]].concat();
        assert_eq!(counts(calm, true, &large), (status("502"), 0, 0));
        assert_eq!(counts(calm, true, b"nonsense\r\n\r\n"), (status("502"), 1, 0));
        assert_eq!(counts(calm, false, b""), (status("502"), 1, 0));
    }
}
