//! A client's request head: read, routed, upgraded or refused.

use super::Shard;
use crate::config::BackendKind;
use crate::conn::{ConnId, State};
use crate::handshake::{self, Upgrade};
use crate::http::{self, HeadLimits, HttpError, Request};
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::rooms;

impl<R: Ring> Shard<R> {
    /// Bytes of a request head. It is read where it lies; only a head that comes in pieces is
    /// gathered.
    pub(super) fn read_head(&mut self, id: ConnId, bytes: &mut [u8]) {
        let limits = self.head_limits();
        let State::Head(head) = &mut self.table[id].state else { return };
        if head.bytes.is_empty() {
            match head.scanner.scan(bytes, &limits) {
                Ok(Some(len)) => {
                    let (head, rest) = bytes.split_at_mut(len);
                    self.on_request(id, head, rest);
                }
                Ok(None) => {
                    head.bytes = self.stores.spares.take(bytes.len());
                    head.bytes.extend_from_slice(bytes);
                    // A first head has had its deadline since the accept.
                    if self.table[id].flags.served {
                        let deadline = self.now + self.config.limits.handshake_timeout;
                        self.table[id].deadline = deadline;
                        self.timers.set(id.slot, deadline);
                    }
                }
                Err(error) => self.refuse_head(id, error),
            }
            return;
        }
        // What cannot belong to a head within its limits is not kept: the scanner refuses it.
        head.bytes.extend_from_slice(bytes);
        let mut gathered = std::mem::take(&mut head.bytes);
        match head.scanner.scan(&gathered, &limits) {
            Ok(Some(len)) => {
                let (head, rest) = gathered.split_at_mut(len);
                self.on_request(id, head, rest);
                self.stores.spares.give(gathered);
            }
            Ok(None) => head.bytes = gathered,
            Err(error) => {
                self.stores.spares.give(gathered);
                self.refuse_head(id, error);
            }
        }
    }

    pub(super) fn head_limits(&self) -> HeadLimits {
        let limits = &self.config.limits;
        HeadLimits {
            head_bytes_max: limits.head_bytes_max,
            headers_max: limits.headers_max,
            target_bytes_max: limits.target_bytes_max,
        }
    }

    /// A whole request head, and what came behind it in the same segment.
    fn on_request(&mut self, id: ConnId, head: &[u8], rest: &mut [u8]) {
        let request = match http::parse_request(head, &self.head_limits()) {
            Ok(request) => request,
            Err(error) => return self.refuse_head(id, error),
        };
        let conn = &mut self.table[id];
        conn.requests = conn.requests.saturating_add(1);
        conn.flags.routed = false;
        conn.code = 0;
        self.record_head(id);
        self.leave_door(id);
        if self.access(id).strict_paths && !http::is_plain_path(request.path) {
            return self.refuse_head(id, HttpError::LoosePath);
        }
        if !self.admit_client(id) || !self.identify(id, &request) {
            return;
        }
        let upgrade = match handshake::upgrade_of(&request) {
            Ok(Some(upgrade)) => upgrade,
            Ok(None) => return self.on_plain_request(id, &request, head, rest),
            Err(error) => return self.refuse_head(id, error),
        };
        let config = std::sync::Arc::clone(&self.config);
        let offered = upgrade.protocols.iter().copied();
        let Some(route) = config.routes.find(request.host, request.path, offered) else {
            return self.refuse_unrouted(id);
        };
        self.set_route(id, route.index);
        if !self.admit_origin(id, route, &request) || !self.admit_to_route(id, route, true) {
            return;
        }
        match &config.backend(route).kind {
            BackendKind::Refuse { status } => self.refuse_as_told(id, *status),
            BackendKind::Echo => {
                // It understands whatever the client does.
                let protocol = upgrade.protocols.first().copied();
                self.accept_upgrade(id, &upgrade, protocol, State::Echo(Default::default()));
                self.read_messages(id, rest);
            }
            BackendKind::Local(local) => {
                let backend = &config.backend(route).name;
                let Ok(user) = self.name_user(id, backend, local, &request) else { return };
                let ours = |name: &&str| *name == rooms::SUBPROTOCOL;
                let protocol = upgrade.protocols.iter().copied().find(ours);
                self.accept_upgrade(id, &upgrade, protocol, State::Rooms(Default::default()));
                let (now, backend) = (self.now, route.backend);
                self.with_rooms(backend, |rooms, post| {
                    rooms.opened(id, user.as_deref(), now, post);
                });
                self.read_messages(id, rest);
            }
            BackendKind::Websocket(_) => {
                self.start_upstream(id, route.backend, &request, head, rest);
            }
        }
    }

    fn accept_upgrade(
        &mut self,
        id: ConnId,
        upgrade: &Upgrade<'_>,
        protocol: Option<&str>,
        state: State,
    ) {
        let accept = handshake::accept_value(upgrade.key);
        let Shard { table, stores, now, .. } = self;
        let conn = &mut table[id];
        conn.state = state;
        conn.code = 101;
        conn.outbox.write(stores, *now, |out| {
            handshake::encode_switching(out, &accept, protocol, None, &[]);
        });
        self.metrics.upgraded.add(1);
        self.mark_dirty(id);
        self.record_upgrade(id, None);
        self.start_timeouts(id);
    }

    /// A request without an upgrade: an upstream's, or for the demo page where it is switched on.
    fn on_plain_request(&mut self, id: ConnId, request: &Request<'_>, head: &[u8], rest: &[u8]) {
        let config = std::sync::Arc::clone(&self.config);
        let route = config.routes.find(request.host, request.path, std::iter::empty());
        if let Some(route) = route {
            self.set_route(id, route.index);
            if !self.admit_to_route(id, route, false) {
                return;
            }
        }
        let kind = route.map(|route| &config.backend(route).kind);
        match kind {
            None => self.refuse_unrouted(id),
            Some(BackendKind::Refuse { status }) => self.refuse_as_told(id, *status),
            // What browsers ask for beside every page.
            Some(BackendKind::Local(_)) if request.path == "/favicon.ico" => {
                self.refuse_unrouted(id);
            }
            Some(BackendKind::Local(local)) if local.demo_page => match request.method {
                "GET" => self.answer_with_page(id, rooms::DEMO_PAGE.as_bytes(), true),
                "HEAD" => self.answer_with_page(id, rooms::DEMO_PAGE.as_bytes(), false),
                _ => self.refuse_head(id, HttpError::MethodNotAllowed),
            },
            Some(BackendKind::Websocket(websocket)) if websocket.http => {
                match super::forward::check_method(request.method) {
                    Ok(()) => {
                        let backend = route.map_or(0, |route| route.backend);
                        self.start_forward(id, backend, request, head, rest);
                    }
                    Err(error) => self.refuse_head(id, error),
                }
            }
            Some(_) => self.refuse_head(id, HttpError::UpgradeRequired),
        }
    }

    fn answer_with_page(&mut self, id: ConnId, page: &[u8], with_body: bool) {
        let headers = [("Cache-Control", "no-cache"), ("X-Content-Type-Options", "nosniff")];
        self.answer(id, 200, Cause::HttpDone, |out| {
            handshake::encode_response(out, 200, &headers, "text/html; charset=utf-8", page);
            if !with_body {
                out.truncate(out.len() - page.len());
            }
        });
    }

    fn refuse_unrouted(&mut self, id: ConnId) {
        self.refuse(id, 404, Cause::HandshakeRejected, "no route leads from this host and path");
    }

    /// The operator has it that what this route is for gets `status`.
    fn refuse_as_told(&mut self, id: ConnId, status: u16) {
        let why = match handshake::reason_phrase(status) {
            "" => "this path is not served",
            phrase => phrase,
        };
        self.refuse(id, status, Cause::HandshakeRejected, why);
    }

    fn refuse_head(&mut self, id: ConnId, error: HttpError) {
        self.answer(id, error.status(), Cause::HandshakeRejected, |out| {
            handshake::encode_error(out, error);
        });
    }

    /// Refuses a client that has no WebSocket yet with an HTTP status. One that may come back is told
    /// when: not all at the same time.
    pub(super) fn refuse(&mut self, id: ConnId, status: u16, cause: Cause, why: &str) {
        let most = self.config.limits.retry_after_max.as_millis().div_ceil(1000).max(1) as u64;
        let seconds = (1 + self.random.next_u64() % most).to_string();
        let retry_after = [("Retry-After", seconds.as_str())];
        let headers = if matches!(status, 429 | 503) { &retry_after[..] } else { &[] };
        self.answer(id, status, cause, |out| {
            handshake::encode_response(
                out,
                status,
                headers,
                "text/plain",
                format!("{why}\n").as_bytes(),
            );
        });
    }

    /// Refuses a request in words that tell nothing of the upstream.
    pub(super) fn refuse_neutrally(&mut self, id: ConnId, status: u16, cause: Cause) {
        let why = self.neutral_words(id, status);
        self.refuse(id, status, cause, &why);
    }

    /// What a client is told when the upstream is why it is not served: what went wrong there is the
    /// operator's to know, who finds it in the log.
    pub(super) fn neutral_words(&self, client: ConnId, status: u16) -> String {
        let phrase = handshake::reason_phrase(status);
        let ConnId { slot, generation } = client;
        format!(
            "{status} {phrase}: not served now; the log has more of {}-{slot}-{generation}",
            self.index
        )
    }

    /// Answers with HTTP and ends the stream. Whatever else the client has sent is not looked at:
    /// behind a refused upgrade it could be taken for anything.
    fn answer(&mut self, id: ConnId, status: u16, cause: Cause, encode: impl FnOnce(&mut Vec<u8>)) {
        let Shard { table, stores, now, .. } = self;
        table[id].code = status;
        table[id].outbox.write(stores, *now, encode);
        self.mark_dirty(id);
        self.start_finish(id, cause);
    }
}
