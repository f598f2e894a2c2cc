//! A connection written down: what an operator is shown, what tests compare, and what a process
//! that takes connections over would be handed.

use serde::Serialize;

use super::{Conn, ConnId, Phase, Side, State};
use crate::time::Time;

/// The layout of [`Record`]; it goes up with every change that a reader of an older one would
/// misread.
pub const VERSION: u16 = 1;

/// One connection at the boundary of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u16,
    /// Its slot and generation.
    pub slot: u32,
    /// See `slot`.
    pub generation: u32,
    /// `client` or `upstream`.
    pub side: &'static str,
    /// How far it is on its way out.
    pub phase: &'static str,
    /// Which conversation it is in.
    pub state: &'static str,
    /// The route, by its place in the order of matching.
    pub route: u16,
    /// The other end's address.
    pub peer: String,
    /// Of a client: whom the other end speaks for.
    pub client: Option<String>,
    /// Milliseconds since the last byte came.
    pub idle_ms: u64,
    /// Bytes of a head, or of a message, that is not complete.
    pub partial_bytes: usize,
    /// Bytes that wait to be sent.
    pub outbox_bytes: usize,
    /// The slot of the other side: of a relay, or of a request and its answer.
    pub other: Option<u32>,
    /// Why it is being closed.
    pub cause: Option<&'static str>,
    /// Whether reading is stopped because whoever takes its bytes does not keep up.
    pub paused: bool,
}

impl Record {
    /// Writes a connection down.
    pub fn of(id: ConnId, conn: &Conn, now: Time) -> Record {
        let (partial_bytes, other) = match &conn.state {
            State::None => (0, None),
            State::ProxyHeader(bytes) => (bytes.len(), None),
            State::Head(head) => (head.bytes.len(), None),
            State::Echo(decoder) => (decoder.assembly_bytes(), None),
            State::Rooms(decoder) => (decoder.assembly_bytes(), None),
            State::Connecting(connecting) => (connecting.early.len(), connecting.attempt.upstream),
            State::Handshaking(head) => (head.gathered_bytes(), Some(head.client)),
            State::Refusing(refusing) => (0, Some(refusing.client)),
            State::Forwarding(forwarding) => {
                let bytes = forwarding.request.len() + forwarding.next.len();
                (bytes, forwarding.attempt.upstream)
            }
            State::Answering(answering) => {
                (answering.head.gathered_bytes(), Some(answering.head.client))
            }
            State::Relay(relay) => (0, Some(relay.other)),
        };
        Record {
            version: VERSION,
            slot: id.slot,
            generation: id.generation,
            side: match conn.side {
                Side::Client => "client",
                Side::Upstream => "upstream",
            },
            phase: match conn.phase {
                Phase::Free => "free",
                Phase::Open => "open",
                Phase::Leaving => "leaving",
                Phase::Finishing => "finishing",
                Phase::Closing => "closing",
            },
            state: conn.state.name(),
            route: conn.route,
            peer: conn.addresses.peer().to_string(),
            client: (conn.side == Side::Client).then(|| conn.client_ip().to_string()),
            idle_ms: now.since(conn.received_at).as_millis() as u64,
            partial_bytes,
            outbox_bytes: conn.outbox.bytes(),
            other: other.map(|id| id.slot),
            cause: conn.cause.map(|cause| cause.name()),
            paused: conn.flags.paused,
        }
    }
}
