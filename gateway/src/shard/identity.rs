//! Who a client is, and whether it may come in: its PROXY header, whom its proxies name, and the
//! page that it comes from.
//!
//! ```text
//!   on_accepted --> read_proxy_header --> read_head --> identify --> a route --> admit_origin --> name_user
//!                   where one is required   (per request) 403       (upgrades only)   403    (rooms) 403, 400
//! ```

use super::Shard;
use crate::client_address::{Access, client_of};
use crate::config::{ClientNames, Local};
use crate::conn::addresses::Addresses;
use crate::conn::{ConnId, Head, State};
use crate::handshake::Forwarded;
use crate::http::{self, Request};
use crate::metrics::Cause;
use crate::names;
use crate::proxy_protocol::{self, ProxyHeader};
use crate::ring::Ring;
use crate::route::Route;

/// A client has been told that it may not.
pub(super) struct Refused;

impl<R: Ring> Shard<R> {
    /// Who may come in where this connection did.
    pub(super) fn access(&self, id: ConnId) -> &Access {
        &self.config.listeners[self.table[id].addresses.listener()].access
    }

    /// What a client's connection begins with. `false`: not with this one, it is being closed.
    pub(super) fn start_client(&mut self, id: ConnId, listener: usize) -> bool {
        let access = &self.config.listeners[listener].access;
        let needs_header = access.proxy_protocol;
        let may_send = access.may_send_proxy_header(self.table[id].client_ip());
        self.table[id].state = match needs_header {
            true => State::ProxyHeader(Vec::new()),
            false => State::Head(Head::default()),
        };
        if needs_header && !may_send {
            self.start_close(id, Cause::IpDenied);
            return false;
        }
        true
    }

    /// Bytes of a connection that has to begin with a PROXY header. Nobody is told what is wrong
    /// with it: who sends none speaks another protocol, or should not be here.
    pub(super) fn read_proxy_header(&mut self, id: ConnId, bytes: &mut [u8]) {
        let State::ProxyHeader(held) = &mut self.table[id].state else { return };
        if held.is_empty() {
            match proxy_protocol::parse(bytes) {
                Ok(Some(header)) => self.on_proxy_header(id, header, bytes),
                Ok(None) => {
                    *held = self.stores.spares.take(bytes.len());
                    held.extend_from_slice(bytes);
                }
                Err(_) => self.start_close(id, Cause::IpDenied),
            }
            return;
        }
        // With this a header is either whole, or within its bound still.
        held.extend_from_slice(bytes);
        let mut gathered = std::mem::take(held);
        match proxy_protocol::parse(&gathered) {
            Ok(Some(header)) => self.on_proxy_header(id, header, &mut gathered),
            Ok(None) => {
                *held = gathered;
                return;
            }
            Err(_) => self.start_close(id, Cause::IpDenied),
        }
        self.stores.spares.give(gathered);
    }

    /// `bytes` begin with this header; the client's own follow.
    fn on_proxy_header(&mut self, id: ConnId, header: ProxyHeader, bytes: &mut [u8]) {
        let conn = &mut self.table[id];
        conn.state = State::Head(Head::default());
        if let Some(source) = header.source {
            let listener = conn.addresses.listener();
            self.leave_door(id);
            let conn = &mut self.table[id];
            conn.addresses = Addresses::of(source);
            conn.addresses.set_listener(listener);
            if !self.come_to_door(id) {
                return self.start_close(id, Cause::RateLimited);
            }
        }
        let rest = &mut bytes[header.len..];
        if !rest.is_empty() {
            self.read_head(id, rest);
        }
    }

    /// Finds out for whom this request is, which on a proxy's connection may be somebody else each
    /// time. `false`: that client may not come in, and has been told.
    pub(super) fn identify(&mut self, id: ConnId, request: &Request<'_>) -> bool {
        let access = self.access(id);
        let peer = self.table[id].addresses.peer().ip();
        let (trusted, header) = (&access.trusted_proxies, access.client_header);
        let (client, _) = client_of(&request.headers, peer, trusted, header);
        let is_admitted = access.admits(client);
        self.table[id].addresses.set_client(client);
        if !is_admitted {
            self.refuse(id, 403, Cause::IpDenied, "this address may not come in here");
        }
        is_admitted
    }

    /// Whether the page that asks for this upgrade may. `false`: it may not, and has been told.
    pub(super) fn admit_origin(
        &mut self,
        id: ConnId,
        route: &Route,
        request: &Request<'_>,
    ) -> bool {
        let is_admitted = route.origins.admit(&request.headers);
        if !is_admitted {
            self.refuse(id, 403, Cause::OriginDenied, "pages of this origin may not connect here");
        }
        is_admitted
    }

    /// The name that a client of the rooms of `backend` has, if it gives itself one. `Err`: it may not, and
    /// has been told.
    pub(super) fn name_user(
        &mut self,
        id: ConnId,
        backend: &str,
        local: &Local,
        request: &Request<'_>,
    ) -> Result<Option<String>, Refused> {
        let mut values = http::query_values(request.query.unwrap_or_default(), "user");
        let Some(value) = values.next() else { return Ok(None) };
        let (status, why) = match (local.client_names, value, values.next()) {
            (ClientNames::Refused, ..) => (
                403,
                format!(
                    "client_names is \"refused\" in [backend.{backend}] of the gateway's file: it does not \
                     take a client's word for who it is; connect without user= and be a guest, or, if \
                     anybody may be anybody there, set client_names = \"trusted\""
                ),
            ),
            (ClientNames::Trusted, _, Some(_)) => {
                (400, "user= stands in the query more than once; send it once".to_owned())
            }
            (ClientNames::Trusted, None, None) => {
                (400, "user= is not UTF-8 in %xx; send what encodeURIComponent makes".to_owned())
            }
            (ClientNames::Trusted, Some(name), None) => {
                match names::clean(name, local.rooms.user_name_bytes_max) {
                    Ok(name) => return Ok(Some(name.into_owned())),
                    Err(error) => (400, format!("the name in user= {error}; choose another")),
                }
            }
        };
        self.refuse(id, status, Cause::HandshakeRejected, &why);
        Err(Refused)
    }

    /// What an upstream is told about the client of a request.
    pub(super) fn forwarded_of(&self, id: ConnId, request: &Request<'_>) -> Forwarded<'static> {
        let addresses = &self.table[id].addresses;
        let (client, peer) = (addresses.client(), addresses.peer().ip());
        let access = self.access(id);
        if access.trusted_proxies.contains(peer) {
            let (trusted, header) = (&access.trusted_proxies, access.client_header);
            let (_, proto) = client_of(&request.headers, peer, trusted, header);
            let proto = proto.unwrap_or("http");
            Forwarded { client, proto, proxy: Some(peer) }
        } else {
            Forwarded { client, proto: "http", proxy: None }
        }
    }
}
