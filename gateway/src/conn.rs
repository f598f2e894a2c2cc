//! A connection: who it is, where it stands, and what it still owes its peer.
//!
//! Clients and upstreams live in the same table and share this type; [`State`] says which
//! conversation it is in, [`Phase`] how far it is on its way out. All of it is data: nothing hides
//! in a closure or a future, so that a connection can be written down as a [`record::Record`].

pub mod addresses;
pub mod delays;
mod held;
pub mod outbox;
pub mod record;
mod slow;
pub mod table;

use std::sync::Arc;

use crate::addresses::Address;
use crate::handshake::Offer;
use crate::http::{BodyReader, HeadLimits, HeadScanner, HttpError};
use crate::journal::Traffic;
use crate::limits::PONGS_OWED_MAX;
use crate::metrics::Cause;
use crate::rate::Bucket;
use crate::ring::SendMode;
use crate::time::Time;
use crate::upstream::{OpenScanner, Sticky, Tried, UpstreamId};
use crate::ws::Decoder;
use crate::ws::scan::Scanner;
use addresses::Addresses;
use delays::MarkId;
use outbox::Outbox;

/// A connection of one shard: a place in its table, and whose turn it is in that place.
///
/// The slot is the index of the connection's direct descriptor. A slot is used again under the
/// next generation, so that an id kept by mistake names nobody instead of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Index into the shard's table and into its table of direct descriptors.
    pub slot: u32,
    /// 24 bits; wraps.
    pub generation: u32,
}

/// One slot of the table.
pub struct Conn {
    /// The generation of the slot's present user.
    pub generation: u32,
    /// How far the connection is on its way out.
    pub phase: Phase,
    /// Which end of the gateway it is at.
    pub side: Side,
    /// Why it is being closed; the first cause stays.
    pub cause: Option<Cause>,
    /// What is outstanding with the ring, and other facts.
    pub flags: Flags,
    /// The route it was given, an index into the configuration's.
    pub route: u16,
    /// Requests of a client that were whole, the upgrade among them; counted up to 65,535.
    pub requests: u16,
    /// What a client was told last: the status of an answer, or from the first Close frame on, whoever
    /// sent it, the code of that. 0: nothing yet.
    pub code: u16,
    /// Of an upstream that has accepted: where it counts as a connection. Of a client: where its
    /// last one did, or who refused it.
    pub counted: Option<Counted>,
    /// Which conversation it is in.
    pub state: State,
    /// Of a client: what it has done against its limits; `None` when that is nothing.
    pub meter: Option<Box<Meter>>,
    /// The bytes that wait to be sent.
    pub outbox: Outbox,
    /// When the messages among that were queued.
    pub mark: MarkId,
    /// When it was last sent a Ping, in microseconds that wrap.
    pub pinged_us: u32,
    /// Bytes that came when it had nothing more to say (`shard/recv.rs`).
    pub discarded_bytes: u32,
    /// Its other end, and the client that one speaks for.
    pub addresses: Addresses,
    /// The bytes and messages of the connection.
    pub traffic: Traffic,
    /// When the last byte came.
    pub received_at: Time,
    /// When it was accepted, or connected; from its upgrade on, when that was.
    pub opened_at: Time,
    /// Of a WebSocket: when it last sent data, or was sent some by a room.
    pub data_at: Time,
    /// When it has to have moved on; what that means depends on the state.
    pub deadline: Time,
}

/// What a client has done against its limits, and where it counts. The limits themselves are those
/// that its route has at the moment.
#[derive(Debug)]
pub struct Meter {
    /// Its messages.
    pub messages: Bucket,
    /// Its bytes.
    pub bytes: Bucket,
    /// Its control frames.
    pub control_frames: Bucket,
    /// The rate of its requests to rooms.
    pub room_requests: Bucket,
    /// It sent more than its rates allow, and is not read before this; else never.
    pub read_at: Time,
    /// It counts with this address.
    pub address: Option<Arc<Address>>,
}

impl Default for Meter {
    fn default() -> Meter {
        Meter {
            messages: Bucket::default(),
            bytes: Bucket::default(),
            control_frames: Bucket::default(),
            room_requests: Bucket::default(),
            read_at: Time::NEVER,
            address: None,
        }
    }
}

/// Where a connection to an upstream counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The backend whose group it is.
    pub backend: u16,
    /// The upstream in that group.
    pub upstream: UpstreamId,
}

/// How far a connection is on its way out. Each step leads to the next, none leads back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The slot is not in use.
    Free,
    /// Serving.
    Open,
    /// We have sent a Close frame and wait for the peer's. Until `deadline`.
    Leaving,
    /// Nothing new is queued and nothing received is looked at. Once the outbox is flushed the
    /// stream is ended; then we wait for the peer to end it too. Until `deadline`.
    Finishing,
    /// Waiting for the operations that are outstanding; then the descriptor is closed.
    Closing,
}

/// Which end of the gateway a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It was accepted.
    Client,
    /// We opened it.
    Upstream,
}

/// Facts about a connection, most of them about what the ring still has to answer.
#[derive(Clone, Copy, Default)]
pub struct Flags {
    /// A receive is armed. A slot is not free before it has ended.
    pub recv_armed: bool,
    /// A watch for the peer's reset is armed, as it is not read.
    pub watch_armed: bool,
    /// A send has been submitted and not answered: whether it waits for room in the socket.
    pub sending: Option<SendMode>,
    /// A connect has been submitted and not answered.
    pub connect_in_flight: bool,
    /// A socket is being opened on behalf of this connection.
    pub socket_in_flight: bool,
    /// A shutdown has been submitted and not answered.
    pub shutdown_in_flight: bool,
    /// The close has been submitted: the last thing that happens in a slot.
    pub close_in_flight: bool,
    /// Its slot is on the list of those with something to send.
    pub dirty: bool,
    /// Reading is stopped on purpose: whoever takes the bytes does not keep up.
    pub paused: bool,
    /// The socket had no room for the last send, so queued bytes may wait long.
    pub congested: bool,
    /// The peer has ended its stream.
    pub read_done: bool,
    /// Our half of the stream is to be ended once the outbox is flushed.
    pub shut_wanted: bool,
    /// Our half of the stream has been ended.
    pub shut: bool,
    /// The peer has sent a Close frame.
    pub close_received: bool,
    /// The Close frame that this peer is to get is in its outbox or beyond.
    pub close_sent: bool,
    /// A Ping has not been answered by anything yet.
    pub ping_pending: bool,
    /// A Pong may still be in the outbox.
    pub pong_waits: bool,
    /// Its last request has a route.
    pub routed: bool,
    /// A request on this connection has been answered: to end it now is no failure.
    pub served: bool,
    /// It has been asked to leave, or is as soon as a frame of ours may stand in its stream.
    pub evicted: bool,
    /// The upstream of this client has died; it is told at its deadline.
    pub orphan: bool,
    /// It counts with its route (`shared.rs`).
    pub on_route: bool,
    /// A client above `connections_max`, which is here to be told so.
    pub surplus: bool,
    /// It counts as one that has not asked for anything yet (`doorstep.rs`).
    pub at_door: bool,
    /// Its receive ended because no buffer was free; it is on the shard's list of the starved.
    pub starved: bool,
    /// Bytes have come since the receive was armed.
    pub fed: bool,
    /// What was too big of it is a frame, not a message.
    pub frame_too_big: bool,
}

/// Which conversation a connection is in.
#[derive(Default)]
pub enum State {
    /// None, or none any more.
    #[default]
    None,
    /// A client whose PROXY header is arriving, which is all that it may begin with; what has come.
    ProxyHeader(Vec<u8>),
    /// A client whose request head is arriving.
    Head(Head),
    /// A client whose messages come back to it.
    Echo(Decoder),
    /// A client of the embedded rooms.
    Rooms(Decoder),
    /// A client that waits for its upstream to accept.
    Connecting(Box<Connecting>),
    /// An upstream that has been asked for a WebSocket and has not accepted yet.
    Handshaking(Box<AnswerHead>),
    /// An upstream that answered with something else than a WebSocket, which goes to the client.
    Refusing(Box<Refusing>),
    /// A client whose HTTP request is with an upstream.
    Forwarding(Box<Forwarding>),
    /// An upstream that answers an HTTP request.
    Answering(Box<Answering>),
    /// One side of a relay.
    Relay(Relay),
}

impl State {
    /// The names of the states that a client can be in.
    pub const OF_CLIENTS: [&str; 8] =
        ["proxy_header", "head", "echo", "rooms", "connecting", "refusing", "forwarding", "relay"];

    /// The name of the state in logs and records.
    pub fn name(&self) -> &'static str {
        let [proxy_header, head, echo, rooms, connecting, refusing, forwarding, relay] =
            State::OF_CLIENTS;
        match self {
            State::None => "none",
            State::ProxyHeader(_) => proxy_header,
            State::Head(_) => head,
            State::Echo(_) => echo,
            State::Rooms(_) => rooms,
            State::Connecting(_) => connecting,
            State::Handshaking(_) => "handshaking",
            State::Refusing(_) => refusing,
            State::Forwarding(_) => forwarding,
            State::Answering(_) => "answering",
            State::Relay(_) => relay,
        }
    }

    /// Of an upstream that has been asked: the head of its answer.
    pub fn answer_head(&mut self) -> Option<&mut AnswerHead> {
        match self {
            State::Handshaking(head) => Some(head),
            State::Answering(answering) => Some(&mut answering.head),
            _ => None,
        }
    }
}

/// A request head on its way in.
#[derive(Default)]
pub struct Head {
    /// How far it has been looked at.
    pub scanner: HeadScanner,
    /// What has arrived; empty while the head may still be read in place.
    pub bytes: Vec<u8>,
}

/// A client that waits for its upstream.
pub struct Connecting {
    /// Which upstream is tried for it.
    pub attempt: Attempt,
    /// What this upstream was asked for, to hold its answer against; `None` before it is connected.
    pub offer: Option<Offer>,
    /// What the client sent behind its request. Nothing of it leaves before the upstream's 101.
    pub early: Vec<u8>,
}

/// A client's search for an upstream that takes it: one is tried after the other.
pub struct Attempt {
    /// The backend it was routed to.
    pub backend: u16,
    /// The client's request head; each upstream gets a request of its own made of it.
    pub head: Vec<u8>,
    /// What the client is placed by, and where it was before.
    pub key: u64,
    /// See `key`.
    pub sticky: Sticky,
    /// The upstream that its cookie names: it need not be told again.
    pub cookie: Option<UpstreamId>,
    /// It came by https, as a trusted proxy says: the cookie is for https only.
    pub is_https: bool,
    /// What it has to do with a session of Engine.IO.
    pub session: Session,
    /// When it began.
    pub began_at: Time,
    /// The upstream that is tried: picked, and the group has not heard how it went.
    pub picked: Option<UpstreamId>,
    /// That one is tried at its other address.
    pub at_other: bool,
    /// The connection to it, once its socket is open.
    pub upstream: Option<ConnId>,
    /// Those that were tried in vain.
    pub tried: Tried,
    /// What was picked was not fit: it was tried because nobody else was left.
    pub picked_unfit: bool,
    /// Upstreams that got the whole handshake; at most [`SENT_MAX`].
    pub sent: u8,
    /// The first of those, if it broke off. Another upstream's answer tells whose fault that was.
    pub suspect: Option<UpstreamId>,
    /// All that are left have as many connections as they may have: the client waits for one.
    pub waits: bool,
}

/// Upstreams that get one handshake whole. A request that makes servers break off would go through all
/// of a group otherwise.
pub const SENT_MAX: u8 = 2;

/// What a request has to do with a session of Engine.IO, where those stick to their upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// Nothing, or nothing any more.
    None,
    /// It opens one: an upstream's answer will say which.
    Opens,
    /// It belongs to one, whose home was asked, under this number, who issued it. No upstream is
    /// tried before the answer is here.
    Asked(u32),
}

/// The head of an upstream's answer on its way in, and those of interim responses before it.
pub struct AnswerHead {
    /// The client that has asked.
    pub client: ConnId,
    /// How far it has been looked at.
    scanner: HeadScanner,
    /// What has arrived.
    bytes: Vec<u8>,
    /// Interim responses (RFC 9110 §15.2) that came before it.
    interim_count: u8,
    /// The upstream takes nothing more of the request. What it had sent before counts still.
    pub send_failed: bool,
}

/// Interim responses that an upstream may send before its answer.
const INTERIM_MAX: u8 = 16;

impl AnswerHead {
    /// Nothing has come yet of what `client` waits for.
    pub fn new(client: ConnId) -> AnswerHead {
        AnswerHead {
            client,
            scanner: HeadScanner::default(),
            bytes: Vec::new(),
            interim_count: 0,
            send_failed: false,
        }
    }

    /// Takes what has come. Once a head is whole, returns it, and how many of `bytes` belong to it;
    /// then another may follow.
    pub fn gather(
        &mut self,
        bytes: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<(Vec<u8>, usize)>, HttpError> {
        self.bytes.extend_from_slice(bytes);
        let Some(len) = self.scanner.scan(&self.bytes, limits)? else { return Ok(None) };
        let behind = self.bytes.len() - len;
        let mut head = std::mem::take(&mut self.bytes);
        head.truncate(len);
        self.scanner = HeadScanner::default();
        Ok(Some((head, bytes.len() - behind)))
    }

    /// The head was that of an interim response. Returns whether there may be one more of them.
    pub fn count_interim(&mut self) -> bool {
        self.interim_count += 1;
        self.interim_count <= INTERIM_MAX
    }

    /// Bytes of a head that is not whole.
    pub fn gathered_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// An upstream whose refusal is passed on.
pub struct Refusing {
    /// To whom.
    pub client: ConnId,
    /// Where the answer's body ends.
    pub body: BodyReader,
}

/// A client whose HTTP request is with an upstream. One request at a time: what comes behind it waits
/// until it is answered.
pub struct Forwarding {
    /// Which upstream is tried for it, or answers.
    pub attempt: Attempt,
    /// What of the body has come; empty once the upstream is connected.
    pub request: Vec<u8>,
    /// Where the request's body ends.
    pub body: BodyReader,
    /// Bytes that the body may still have.
    pub body_bytes_left: u64,
    /// The request is whole.
    pub request_done: bool,
    /// Since when the client's rate is measured, and the bytes that it had sent by then.
    pub measured_from: (Time, u64),
    /// The method is HEAD: whatever the response's head says, no body follows.
    pub is_head: bool,
    /// The client speaks HTTP/1.0: no interim responses, no chunks.
    pub is_http_10: bool,
    /// Another request may follow on this connection.
    pub keep_alive: bool,
    /// The head of the final response has been passed on.
    pub answered: bool,
    /// The upstream is connected: the request goes straight on to it.
    pub connected: bool,
    /// What came behind the request.
    pub next: Vec<u8>,
}

/// An upstream that answers an HTTP request.
pub struct Answering {
    /// Whose request, and the head until it is passed on.
    pub head: AnswerHead,
    /// Where the body ends, once the head is passed on.
    pub body: Option<BodyReader>,
    /// The answer has been passed on whole.
    pub is_done: bool,
    /// Looks for the session in the body of an answer that opens one.
    pub opening: Option<OpenScanner>,
}

impl Answering {
    /// The client that waits for the answer. `None` once all of it is passed on: the client may be in its
    /// next request then, at another upstream, and what becomes of this connection is nothing to it.
    pub fn waiting_client(&self) -> Option<ConnId> {
        (!self.is_done).then_some(self.head.client)
    }
}

/// One side of a relay: what this peer sends goes to the other.
pub struct Relay {
    /// The other side.
    pub other: ConnId,
    /// Reads the headers of what this peer sends.
    pub scanner: Scanner,
    /// Of an upstream: when the oldest message that it has not answered by one of its own came from
    /// the client; else never.
    pub asked_at: Time,
    /// Of a client: the Pongs that are not its own idea.
    pub pongs_owed: PongsOwed,
    /// Of an upstream: where its histograms are ([`Recorder::upstream`](crate::recorder::Recorder)).
    pub place: u16,
    /// We have put a Ping into what this peer is sent, and its Pong has not been taken out of what
    /// comes from it.
    pub pong_awaited: bool,
    /// A frame of ours is due to this peer, and one that passes has to end first.
    pub frame_awaited: bool,
    /// Of a client that has been asked to leave: what it is told when a frame of ours may stand in
    /// its stream.
    pub goodbye: Option<Box<Goodbye>>,
}

/// Pings that were passed on to a client, or are ours, less the Pongs that came: so many Pongs do not
/// count against its rates. At most [`PONGS_OWED_MAX`], as a client need not answer each Ping
/// (RFC 6455 §5.5.3): who leaves many unanswered does not save up for a burst of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PongsOwed(u16);

impl PongsOwed {
    /// So many Pings are on their way to the client.
    pub fn add(&mut self, pings: u32) {
        let owed = u32::from(self.0).saturating_add(pings).min(u32::from(PONGS_OWED_MAX));
        self.0 = owed as u16;
    }

    /// So many Pongs came; returns how many of them were owed.
    pub fn take(&mut self, pongs: u32) -> u32 {
        let owed = pongs.min(u32::from(self.0));
        self.0 -= owed as u16;
        owed
    }
}

/// Why a client has to leave, and what its Close frame says.
#[derive(Clone, Debug)]
pub struct Goodbye {
    /// The cause that the leaving is counted under.
    pub cause: Cause,
    /// The code of the Close frame.
    pub code: u16,
    /// The reason, up to 123 bytes; empty with the code 1012: when to come back, drawn as it is sent.
    pub reason: String,
}

impl Conn {
    /// Whose connection it is: where it came from, or whom a trusted proxy names.
    pub fn client_ip(&self) -> std::net::IpAddr {
        self.addresses.client()
    }

    /// Notes the code of a Close frame, sent or received; the first one stays. No code is 1005
    /// (RFC 6455 §7.1.5).
    pub fn note_close(&mut self, code: Option<u16>) {
        if self.code < 1000 {
            self.code = code.unwrap_or(1005);
        }
    }

    /// Whether its WebSocket is open, and neither side has begun to end it.
    pub fn is_talking(&self) -> bool {
        let Flags { close_sent, close_received, read_done, shut_wanted, .. } = self.flags;
        let ends = close_sent || close_received || read_done || shut_wanted;
        let is_websocket = matches!(self.state, State::Echo(_) | State::Rooms(_) | State::Relay(_));
        self.phase == Phase::Open && is_websocket && self.cause.is_none() && !ends
    }

    /// Of a client: whether no whole head of a request has come yet.
    pub fn is_silent(&self) -> bool {
        let waits = matches!(self.state, State::ProxyHeader(_) | State::Head(_));
        self.phase == Phase::Open && waits && self.requests == 0 && !self.flags.served
    }

    /// Whether it is not read because it sent more than its rates allow.
    pub fn is_throttled(&self) -> bool {
        self.read_at() != Time::NEVER
    }

    /// When it is read again, if that is why it is not.
    pub fn read_at(&self) -> Time {
        self.meter.as_ref().map_or(Time::NEVER, |meter| meter.read_at)
    }

    /// Whether it is an upstream that has said and heard all, and ends its stream by itself: both Close
    /// frames have passed (RFC 6455 §7.1.1), or a whole answer to a request with `Connection: close`.
    pub fn awaits_end(&self) -> bool {
        let is_answered = matches!(&self.state, State::Answering(answering) if answering.is_done);
        let both = self.flags.close_sent && self.flags.close_received;
        self.side == Side::Upstream && (both || is_answered)
    }

    /// Whether a send is in flight that waits for the peer as long as it takes.
    pub fn has_waiting_send(&self) -> bool {
        self.flags.sending == Some(SendMode::All)
    }

    /// Whether the ring owes an answer, so that the slot cannot be closed yet.
    pub fn is_busy(&self) -> bool {
        let Flags {
            recv_armed,
            watch_armed,
            sending,
            connect_in_flight,
            socket_in_flight,
            shutdown_in_flight,
            ..
        } = self.flags;
        let is_read = recv_armed || watch_armed;
        is_read || sending.is_some() || connect_in_flight || socket_in_flight || shutdown_in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pongs_are_owed_for_so_many_pings_at_most() {
        let most = u32::from(PONGS_OWED_MAX);
        let mut owed = PongsOwed::default();
        assert_eq!(owed.take(1), 0);
        owed.add(3);
        assert_eq!((owed.take(2), owed.take(2), owed.take(2)), (2, 1, 0));
        // As many as may be are owed to the last.
        owed.add(most - 1);
        owed.add(1);
        assert_eq!((owed.take(most), owed.take(1)), (most, 0));
        // What is more is not.
        for pings in [most + 1, u32::MAX, 1] {
            owed.add(pings);
        }
        assert_eq!(owed.take(u32::MAX), most);
    }
}
