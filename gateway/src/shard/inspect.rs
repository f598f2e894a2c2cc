//! What the operator asks about clients, and does to them.
//!
//! A shard may hold a million connections, so it is asked for a stretch of its table at a time: each
//! answer says where the next question should begin, and what a client does meanwhile is between the
//! two of them.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;

use super::Shard;
use super::close::upstream_of;
use crate::client_address::CidrSet;
use crate::conn::record::Record;
use crate::conn::{Conn, ConnId, Goodbye, Phase, Side, State};
use crate::journal::Traffic;
use crate::metrics::Cause;
use crate::ring::Ring;
use crate::rooms::ClientRecord;
use crate::upstream::{Standing, UpstreamName};

/// Slots looked at for one question.
const SLOTS_PER_ORDER: u32 = 4096;

/// Clients described, or closed, for one question.
pub const CLIENTS_PER_ORDER: usize = 256;

/// A question about the clients of one shard.
pub struct Inspect {
    /// The slot to begin with.
    pub from: u32,
    /// Whom it is about.
    pub filter: Filter,
    /// Clients wanted, at most; above [`CLIENTS_PER_ORDER`] the next question has to ask for the rest.
    pub limit: usize,
    /// What is done to them: nothing, or each is closed.
    pub close: Option<Close>,
    /// Where the answer goes. Nobody may be there any more.
    pub reply: oneshot::Sender<Page>,
}

/// Which clients; a field that is `None`, zero or empty says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// This one alone.
    pub id: Option<ConnId>,
    /// On one of these routes.
    pub routes: Vec<u16>,
    /// From one of these addresses; `None`: from any.
    pub address: Option<CidrSet>,
    /// With this name, in the embedded rooms.
    pub user: Option<String>,
    /// In this room.
    pub room: Option<String>,
    /// At this upstream.
    pub upstream: Option<UpstreamName>,
    /// In this state, as [`State::name`] has it.
    pub state: Option<String>,
    /// Open for so long at least.
    pub age_min: Duration,
    /// Silent for so long at least.
    pub idle_min: Duration,
    /// With so many bytes that wait to be sent at least.
    pub outbox_bytes_min: usize,
}

/// How a client is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code of its Close frame.
    pub code: u16,
    /// The reason, up to 123 bytes; empty with the code 1012: when to come back.
    pub reason: String,
}

/// The answer.
#[derive(Debug)]
pub struct Page {
    /// The clients that match, in the order of the slots.
    pub clients: Vec<Found>,
    /// Where the next question begins; `None`: the table is through.
    pub next: Option<u32>,
}

/// A client that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The connection itself.
    #[serde(flatten)]
    pub record: Record,
    /// Milliseconds since it was accepted; of a WebSocket since its upgrade.
    pub age_ms: u64,
    /// The bytes and messages of the connection.
    pub traffic: Traffic,
    /// Where it is at, or was last: the number of the backend, and the upstream.
    #[serde(skip)]
    pub upstream: Option<(u16, UpstreamName)>,
    /// The client as a member of the embedded rooms.
    pub rooms: Option<ClientRecord>,
    /// Its connection to the upstream, where there is one and this client alone was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_side: Option<UpstreamSide>,
}

/// A client's connection to its upstream.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamSide {
    /// The connection itself.
    #[serde(flatten)]
    pub record: Record,
    /// The bytes and messages of the connection.
    pub traffic: Traffic,
}

/// An upstream as one shard sees it.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamView {
    /// Which.
    pub name: UpstreamName,
    /// Connections of this shard, those being opened included.
    pub connections: u32,
    /// How it is.
    pub standing: Standing,
}

impl<R: Ring> Shard<R> {
    pub(super) fn on_inspect(&mut self, inspect: Inspect) {
        let Inspect { from, filter, limit, close, reply } = inspect;
        let goodbye = close.map(|Close { code, reason }| {
            let cause = Cause::AdminClose;
            Goodbye { cause, code, reason }
        });
        let limit = limit.min(CLIENTS_PER_ORDER);
        let end = self.table.slots_used().min(from.saturating_add(SLOTS_PER_ORDER));
        let mut slot = match filter.id {
            Some(id) => id.slot,
            None => from,
        };
        let end = filter.id.map_or(end, |id| (id.slot + 1).min(self.table.slots_used()));
        let mut clients = Vec::new();
        while slot < end && clients.len() < limit {
            // Who is on its way out already is not closed again.
            let stays = |conn: &Conn| conn.phase == Phase::Open && !conn.flags.evicted;
            let concerned = |id: &ConnId| goodbye.is_none() || stays(&self.table[*id]);
            if let Some(id) = self.table.id_at(slot).filter(concerned)
                && let Some(found) = self.look_at(id, &filter)
            {
                clients.push(found);
                if let Some(goodbye) = &goodbye {
                    self.evict(id, goodbye);
                }
            }
            slot += 1;
        }
        let is_through = slot >= self.table.slots_used() || filter.id.is_some();
        // Whoever asked may have given up.
        let _ = reply.send(Page { clients, next: (!is_through).then_some(slot) });
    }

    /// The upstreams of a backend; none where it has left the configuration.
    pub(super) fn on_ask_upstreams(&self, backend: u16, reply: oneshot::Sender<Vec<UpstreamView>>) {
        let group = self.groups.get(usize::from(backend)).and_then(Option::as_ref);
        let views = group.map(|group| {
            let upstreams = group.upstreams().iter().map(|upstream| UpstreamView {
                name: upstream.name(),
                connections: upstream.connections(),
                standing: upstream.standing(group.options().slow_start, self.now),
            });
            upstreams.collect()
        });
        // Whoever asked may have given up.
        let _ = reply.send(views.unwrap_or_default());
    }

    /// The client, if the filter lets it pass.
    fn look_at(&self, id: ConnId, filter: &Filter) -> Option<Found> {
        let conn = &self.table[id];
        let age = self.now.since(conn.opened_at);
        let upstream = upstream_of(&self.groups, conn.counted);
        let plain = conn.side == Side::Client
            && filter.id.is_none_or(|wanted| wanted == id)
            && (filter.routes.is_empty() || filter.routes.contains(&conn.route))
            && filter.address.as_ref().is_none_or(|range| range.contains(conn.client_ip()))
            && filter.upstream.is_none_or(|name| upstream.is_some_and(|(_, it)| it == name))
            && filter.state.as_ref().is_none_or(|state| *state == conn.state.name())
            && age >= filter.age_min
            && self.now.since(conn.received_at) >= filter.idle_min
            && conn.outbox.bytes() >= filter.outbox_bytes_min;
        if !plain {
            return None;
        }
        let rooms = match conn.state {
            State::Rooms(_) => {
                self.rooms[usize::from(self.backend_of(id))].as_ref().and_then(|it| it.describe(id))
            }
            _ => None,
        };
        let is_user = |name: &String| rooms.as_ref().is_some_and(|it| it.user == *name);
        let is_in = |name: &String| {
            rooms.as_ref().is_some_and(|it| it.rooms.iter().any(|room| room.room == *name))
        };
        let passes =
            filter.user.as_ref().is_none_or(is_user) && filter.room.as_ref().is_none_or(is_in);
        let record = Record::of(id, conn, self.now);
        let other = record.other.filter(|_| filter.id.is_some());
        let other = other.and_then(|slot| self.table.id_at(slot));
        passes.then(|| Found {
            upstream_side: other.map(|id| {
                let conn = &self.table[id];
                UpstreamSide { record: Record::of(id, conn, self.now), traffic: conn.traffic }
            }),
            record,
            age_ms: age.as_millis() as u64,
            traffic: conn.traffic,
            upstream,
            rooms,
        })
    }
}
