//! The embedded room engine: members, fan-out, history, presence and direct messages.
//!
//! One `Rooms` per shard. Each room has a home shard, by a hash of its name, which numbers the
//! messages; each user name has one too, which knows where the user's connections are. Shards
//! write to each other by `Mail`, which keeps its order between any two of them. The state is
//! plain values and there is no I/O: the shard hands in messages, mail and `now`, and is told
//! through `Outlet` what to send.
//!
//! What is deliberately absent: a lock, a message that is encoded twice, and a member list in
//! more than one place (the home counts members per shard, the shard lists them).
//!
//! Read on in `rooms/protocol.rs` (what clients say), `mail.rs` (what shards say), `home.rs`,
//! `answer.rs`, `members.rs`, `directory.rs`. docs/ROOMS.md is the description for authors of clients.

mod answer;
mod directory;
mod home;
mod limits;
mod mail;
mod members;
mod protocol;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::conn::ConnId;
use crate::keyed_hash::HashKey;
use crate::makers::Maker;
use crate::random::Random;
use crate::time::Time;

use directory::{Directory, GUEST_PREFIX, find_guest, guest_name};
use home::{Homes, answer, answer_error};
use mail::{Ask, Direct, Join, Joined, Leave, Letter, Publish, Question, Requester};
use members::{Ended, Members};
use protocol::{Object, Operation, error_frame};

pub use answer::Answer;
pub use limits::{NAME_BYTES_MOST, RoomLimits, SlowLimits, SlowPolicy};
pub use mail::Mail;
pub use protocol::{
    ErrorCode, Heading, OPERATIONS, SUBPROTOCOL, gap_frame, gap_frame_bytes, heading, ping_frame,
};

/// The page that the gateway serves to browsers which come without an upgrade: a chat.
pub const DEMO_PAGE: &str = include_str!("rooms/demo.html");

/// What the room engine asks of its shard.
pub trait Outlet {
    /// What is delivered from here on, until this call of the engine is over, was published by a
    /// client at `at_us` ([`Time::wrapping_us`]).
    fn published(&mut self, at_us: u32);
    /// Queues a finished server WebSocket frame (header and payload, encoded once, shared) for a
    /// client of this shard.
    fn deliver(&mut self, to: ConnId, frame: &Bytes);
    /// Queues an answer for the client that asked for it. A long answer is more than the client may have
    /// waiting otherwise, and no reason to close it: it has one at a time.
    fn deliver_answer(&mut self, to: ConnId, answer: Answer);
    /// Queues mail for another shard, or for this one. Never fails, and keeps the order between
    /// any two shards.
    fn post(&mut self, shard: u16, mail: Mail);
    /// Whether the mailbox of `shard` has room for what is fanned out to its members. A publish is
    /// refused with `busy` when it has not; what follows from what was done already is posted all the
    /// same.
    fn has_room(&self, shard: u16) -> bool;
    /// Whether a client's request may go to its home `shard` now. When it may not, the client has to wait.
    fn takes_requests(&self, shard: u16) -> bool;
    /// What the rooms that this client makes count with. Asked once per client, at its first join.
    fn maker(&mut self, conn: ConnId) -> Arc<Maker>;
    /// An answer has reached a client: a request of it that had to wait may be served.
    fn answered(&mut self, conn: ConnId);
}

/// What has become of a message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// A request is done or refused: it counts towards `room_requests_per_second`.
    Request,
    /// As `Request`, but a publish or a ping, which are messages like those of any client
    /// (`messages_per_second`).
    Message,
    /// Nothing: its home, this shard, takes no requests now ([`Outlet::takes_requests`]). It is to be handed
    /// in again, and nothing of this client before it.
    Waits(u16),
}

/// Why a request was not passed on.
enum Refusal {
    Error(ErrorCode),
    /// As [`Served::Waits`].
    Waits(u16),
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Refusal {
        Refusal::Error(code)
    }
}

/// The room engine of one shard.
pub struct Rooms {
    shard: u16,
    shards: u16,
    limits: RoomLimits,
    /// Wall clock at `Time(0)`.
    unix_origin_ms: u64,
    /// Which shard is the home of a name: the same key in every shard of the process.
    homes_key: HashKey,
    members: Members,
    homes: Homes,
    directory: Directory,
    counters: Counters,
}

/// What the room engine of one shard has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests read, refused ones included.
    pub requests: u64,
    /// Requests refused by the client's shard.
    pub errors: u64,
    /// Messages published into rooms whose home is this shard.
    pub published: u64,
    /// Messages of rooms given to members in this shard.
    pub delivered: u64,
}

/// What the room engine of one shard holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gauges {
    /// Clients that have a name or have said something.
    pub clients: usize,
    /// Memberships of clients of this shard, those that wait for an answer included.
    pub memberships: usize,
    /// Rooms with members in this shard.
    pub local_rooms: usize,
    /// Rooms whose home is this shard.
    pub home_rooms: usize,
    /// Frames in the histories of those.
    pub history_bytes: usize,
    /// Entries for named users: those connected here, and those whose home this shard is.
    pub users: usize,
}

/// A client as the room engine knows it: what the admin API prints and a hand-over needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientRecord {
    /// The name others see.
    pub user: String,
    /// By name.
    pub rooms: Vec<RoomRecord>,
}

/// A client in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomRecord {
    /// The room's name.
    pub room: String,
    /// Whether the client gets presence events.
    pub presence: bool,
    /// The room's epoch and the last message given to the client; `None` while it waits for the
    /// answer to its join.
    pub position: Option<(u64, u64)>,
}

impl Rooms {
    /// The engine of shard number `shard` of `shards`. `unix_origin_ms` is the wall clock at
    /// `Time(0)`; `homes_key` is the same in all shards; `random` is for this engine alone, which draws
    /// the keys of its maps and the epochs of its rooms from it.
    pub fn new(
        shard: u16,
        shards: u16,
        limits: RoomLimits,
        unix_origin_ms: u64,
        homes_key: HashKey,
        mut random: Random,
    ) -> Rooms {
        assert!(shard < shards, "shard {shard} of {shards}");
        let [members, local, users] = std::array::from_fn(|_| HashKey::draw(&mut random));
        Rooms {
            shard,
            shards,
            limits,
            unix_origin_ms,
            homes_key,
            members: Members::new(members),
            homes: Homes::new(random),
            directory: Directory::new(local, users),
            counters: Counters::default(),
        }
    }

    /// Goes by other limits from here on. What is beyond them already goes when it is next looked
    /// at: histories at a publish or when they age, memberships never.
    pub fn set_limits(&mut self, limits: RoomLimits) {
        self.limits = limits;
    }

    /// A client has its 101. It is told who it is; without a name it is a guest. `user`: as
    /// [`names::clean`](crate::names::clean) gave it.
    pub fn opened(&mut self, conn: ConnId, user: Option<&str>, _now: Time, out: &mut impl Outlet) {
        // A name that looks like a guest's would take that guest's messages.
        let Some(user) = user.filter(|user| !user.starts_with(GUEST_PREFIX)) else {
            let user = guest_name(conn, self.shard, self.shards);
            out.deliver(conn, &self.welcome(&user));
            return;
        };
        let name: Arc<str> = user.into();
        self.members.add_client(conn, Arc::clone(&name), true);
        self.directory.add_local(&name, conn);
        out.deliver(conn, &self.welcome(&name));
        let home = self.home_of(&name);
        out.post(home, Mail(Letter::UserOpened { user: name, shard: self.shard }));
    }

    /// A text message has come from a client.
    pub fn on_message(
        &mut self,
        conn: ConnId,
        payload: &[u8],
        now: Time,
        out: &mut impl Outlet,
    ) -> Served {
        let request = match protocol::decode(payload, &self.limits) {
            Ok(request) => request,
            Err(refusal) => {
                self.counters.requests += 1;
                self.counters.errors += 1;
                let frame = error_frame(refusal.code, &refusal.sentence, refusal.id);
                out.deliver(conn, &frame);
                return Served::Request;
            }
        };
        let served = match request.operation {
            Operation::Publish { .. } | Operation::Ping => Served::Message,
            _ => Served::Request,
        };
        match self.on_request(conn, request.id, request.operation, now, out) {
            Ok(()) => {}
            Err(Refusal::Waits(home)) => return Served::Waits(home),
            Err(Refusal::Error(code)) => {
                self.counters.errors += 1;
                out.deliver(conn, &error_frame(code, code.sentence(), request.id));
            }
        }
        self.counters.requests += 1;
        served
    }

    /// Whether a client's next message has to wait until answers to those before it have come. What
    /// a client orders is charged to it when it orders it, so its orders are served a few at a time.
    pub fn is_busy(&self, conn: ConnId) -> bool {
        self.members.is_busy(conn)
    }

    /// A client is gone. Once per `opened`.
    pub fn closed(&mut self, conn: ConnId, _now: Time, out: &mut impl Outlet) {
        let Some(client) = self.members.find(conn) else { return };
        let user = Arc::clone(&self.members.client(client).user);
        while let Some(ended) = self.members.leave_any(client) {
            self.tell_home(ended, &user, out);
        }
        let removed = self.members.remove_client(client);
        if removed.named {
            self.directory.remove_local(&user, conn);
            let home = self.home_of(&user);
            out.post(home, Mail(Letter::UserClosed { user, shard: self.shard }));
        }
    }

    /// Mail from a shard has come, in the order in which that shard posted it.
    pub fn on_mail(&mut self, mail: Mail, now: Time, out: &mut impl Outlet) {
        let time_unix_ms = self.unix_ms(now);
        let Rooms { members, homes, directory, limits, counters, .. } = self;
        match mail.0 {
            Letter::Join(join) => homes.on_join(*join, now, limits, out),
            Letter::Leave(leave) => homes.on_leave(&leave, now, limits),
            Letter::Publish(publish) => {
                homes.on_publish(&publish, now, time_unix_ms, limits, counters, out);
            }
            Letter::Ask(ask) => homes.on_ask(&ask, now, limits, out),
            Letter::Joined(joined) => self.on_joined(*joined, out),
            Letter::Deliver { room, offset, at_us, frame } => {
                out.published(at_us);
                counters.delivered += members.deliver(&room, offset, &frame, out) as u64;
            }
            Letter::Notify { room, frame } => members.notify(&room, &frame, out),
            Letter::Answer { conn, frame, weight } => {
                // The client that asked may be gone.
                if members.discharge(conn, weight) {
                    out.deliver(conn, &frame);
                    out.answered(conn);
                }
            }
            Letter::LongAnswer { conn, answer, weight } => {
                if members.discharge(conn, weight) {
                    out.deliver_answer(conn, answer);
                    out.answered(conn);
                }
            }
            Letter::UserOpened { user, shard } => directory.on_opened(user, shard),
            Letter::UserClosed { user, shard } => directory.on_closed(&user, shard),
            Letter::Direct(direct) => self.on_direct(&direct, out),
            Letter::DeliverDirect { user, frame } => directory.deliver(&user, &frame, out),
        }
    }

    /// When `on_deadline` has to be called next. In the past when the last call left work over.
    pub fn next_deadline(&self) -> Option<Time> {
        self.homes.next_deadline()
    }

    /// Does what has become due: graces that end, history that is too old, rooms to forget. The
    /// work per call is bounded.
    pub fn on_deadline(&mut self, now: Time, out: &mut impl Outlet) {
        self.homes.on_deadline(now, &self.limits, out);
    }

    /// The client as a record; `None` for one that has no name and never said anything.
    pub fn describe(&self, conn: ConnId) -> Option<ClientRecord> {
        let client = self.members.find(conn)?;
        let mut rooms: Vec<RoomRecord> = self
            .members
            .rooms_of(client)
            .map(|(room, presence, position)| RoomRecord {
                room: room.to_string(),
                presence,
                position: position.map(|position| (position.epoch, position.offset)),
            })
            .collect();
        rooms.sort_unstable_by(|a, b| a.room.cmp(&b.room));
        Some(ClientRecord { user: self.members.client(client).user.to_string(), rooms })
    }

    /// What becomes of members that do not keep up.
    pub fn slow_limits(&self) -> SlowLimits {
        self.limits.slow
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether there are no rooms here, no members of rooms, and no users.
    pub fn is_empty(&self) -> bool {
        let Rooms { members, homes, directory, .. } = self;
        homes.len() == 0 && members.room_count() == 0 && directory.len() == 0
    }

    /// Bytes on the heap: of members, rooms and users, and of histories. For the memory ledger.
    pub fn held_bytes(&self) -> (usize, usize) {
        let (homes, history) = self.homes.held_bytes();
        (self.members.held_bytes() + homes + self.directory.held_bytes(), history)
    }

    /// What is held now.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            clients: self.members.client_count(),
            memberships: self.members.memberships(),
            local_rooms: self.members.room_count(),
            home_rooms: self.homes.len(),
            history_bytes: self.homes.history_bytes(),
            users: self.directory.len(),
        }
    }

    fn on_request(
        &mut self,
        conn: ConnId,
        id: Option<&str>,
        operation: Operation,
        now: Time,
        out: &mut impl Outlet,
    ) -> Result<(), Refusal> {
        if matches!(operation, Operation::Ping) {
            let object = Object::event("pong");
            let object = match id {
                Some(id) => object.raw("ack", id.as_bytes()),
                None => object,
            };
            out.deliver(conn, &object.into_frame());
            return Ok(());
        }
        let client = self.client(conn);
        match operation {
            Operation::Ping => {}
            Operation::Join { room, presence, resume } => {
                if self.members.membership(client, &room).is_some() {
                    return Err(ErrorCode::AlreadyMember.into());
                }
                if self.members.membership_count(client) >= self.limits.rooms_per_client_max {
                    return Err(ErrorCode::TooManyMemberships.into());
                }
                let home = self.open_home_of(&room, out)?;
                let weight = self.members.charge(client, presence || resume.is_some())?;
                let maker = self.members.maker(client, out);
                let (room, ticket) = self.members.start_join(client, &room, presence);
                let from = Requester { weight, ..self.requester(client, id) };
                let join = Join { from, room, ticket, presence, resume, maker };
                out.post(home, Mail(Letter::Join(Box::new(join))));
            }
            Operation::Leave { room } => {
                let ended = self.members.leave(client, &room).ok_or(ErrorCode::NotMember)?;
                let user = Arc::clone(&self.members.client(client).user);
                self.tell_home(ended, &user, out);
                out.deliver(conn, &Object::ack(id, "leave").text("room", &room).into_frame());
            }
            Operation::Publish { room, key, data } => {
                let room = self.joined_room(client, &room)?;
                let home = self.open_home_of(&room, out)?;
                let from = self.requester(client, id);
                // The one copy that the data needs to outlive the receive buffer.
                let key = key.as_deref().map(Into::into);
                let at_us = now.wrapping_us();
                let publish = Publish { from, room, at_us, key, data: data.into() };
                out.post(home, Mail(Letter::Publish(Box::new(publish))));
            }
            Operation::Presence { room } => {
                self.ask(client, id, &room, Question::Presence, out)?;
            }
            Operation::History { room, after, limit } => {
                self.ask(client, id, &room, Question::History { after, limit }, out)?;
            }
            Operation::Direct { to, data } => {
                let home = match find_guest(&to, self.shards) {
                    Some((shard, _)) => shard,
                    None => self.home_of(&to),
                };
                if !out.takes_requests(home) {
                    return Err(Refusal::Waits(home));
                }
                let from = self.requester(client, id);
                let frame = Object::event("direct")
                    .text("user", &from.user)
                    .number("time", self.unix_ms(now))
                    .raw("data", data.as_bytes())
                    .into_frame();
                let direct = Direct { from, to: (&*to).into(), frame };
                out.post(home, Mail(Letter::Direct(Box::new(direct))));
            }
        }
        Ok(())
    }

    fn ask(
        &mut self,
        client: u32,
        id: Option<&str>,
        room: &str,
        question: Question,
        out: &mut impl Outlet,
    ) -> Result<(), Refusal> {
        let room = self.joined_room(client, room)?;
        let home = self.open_home_of(&room, out)?;
        let weight = self.members.charge(client, true)?;
        let from = Requester { weight, ..self.requester(client, id) };
        out.post(home, Mail(Letter::Ask(Box::new(Ask { from, room, question }))));
        Ok(())
    }

    fn on_joined(&mut self, joined: Joined, out: &mut impl Outlet) {
        let Joined { conn, user, room, ticket, presence, weight, outcome, answer } = joined;
        if self.members.discharge(conn, weight) {
            out.answered(conn);
        }
        match outcome {
            Ok(at) if self.members.finish_join(conn, &room, ticket, at) => {
                out.deliver_answer(conn, answer);
            }
            Ok(_) => self.tell_home(Ended { room, presence, joined: true }, &user, out),
            Err(_) => {
                if self.members.cancel_join(conn, &room, ticket) {
                    out.deliver_answer(conn, answer);
                }
            }
        }
    }

    fn on_direct(&mut self, direct: &Direct, out: &mut impl Outlet) {
        let Direct { from, to, frame } = direct;
        let reached = match find_guest(to, self.shards) {
            Some((_, guest)) => match self.members.find(guest) {
                Some(_) => {
                    out.deliver(guest, frame);
                    Ok(1)
                }
                None => Ok(0),
            },
            None => self.directory.on_direct(to, frame, out),
        };
        match reached {
            Ok(0) => answer_error(from, ErrorCode::NoSuchUser, out),
            Err(()) => answer_error(from, ErrorCode::Busy, out),
            Ok(reached) if from.id.is_some() => {
                let object = Object::ack(from.id.as_deref(), "direct").text("to", to);
                answer(from, object.number("reached", reached).into_frame(), out);
            }
            Ok(_) => {}
        }
    }

    /// Tells the home that a member left. While its answer to the join is still on the way there
    /// is nothing to tell: `on_joined` will find nobody waiting, and tell it then.
    fn tell_home(&self, ended: Ended, user: &Arc<str>, out: &mut impl Outlet) {
        if ended.joined {
            let Ended { room, presence, .. } = ended;
            let home = self.home_of(&room);
            let leave = Leave { shard: self.shard, room, user: Arc::clone(user), presence };
            out.post(home, Mail(Letter::Leave(Box::new(leave))));
        }
    }

    /// The client behind a connection that says something; a guest gets its entry here.
    fn client(&mut self, conn: ConnId) -> u32 {
        self.members.find(conn).unwrap_or_else(|| {
            let name = guest_name(conn, self.shard, self.shards);
            self.members.add_client(conn, name.into(), false)
        })
    }

    fn requester(&self, client: u32, id: Option<&str>) -> Requester {
        let client = self.members.client(client);
        Requester {
            shard: self.shard,
            conn: client.conn,
            user: Arc::clone(&client.user),
            id: id.map(Into::into),
            weight: 0,
        }
    }

    /// A client need not wait for the answer to its join: the home sees requests in their order.
    fn joined_room(&self, client: u32, room: &str) -> Result<Arc<str>, ErrorCode> {
        self.members.membership(client, room).cloned().ok_or(ErrorCode::NotMember)
    }

    /// The home of a room, if it takes requests now.
    fn open_home_of(&self, room: &str, out: &impl Outlet) -> Result<u16, Refusal> {
        let home = self.home_of(room);
        if out.takes_requests(home) { Ok(home) } else { Err(Refusal::Waits(home)) }
    }

    /// The home of a room or a user: the same in every shard, and another one in every process, so
    /// that names cannot be aimed at a shard.
    fn home_of(&self, name: &str) -> u16 {
        self.homes_key.place_of(name, self.shards)
    }

    fn unix_ms(&self, now: Time) -> u64 {
        self.unix_origin_ms + now.0 / 1_000_000
    }

    fn welcome(&self, user: &str) -> Bytes {
        let limits = &self.limits;
        Object::event("welcome")
            .text("protocol", SUBPROTOCOL)
            .text("user", user)
            .number("ping_interval_ms", limits.ping_interval.as_millis() as u64)
            .number("message_bytes_max", limits.message_bytes_max as u64)
            .number("rooms_per_client_max", limits.rooms_per_client_max as u64)
            .number("recovery_messages_max", limits.recovery_messages_max as u64)
            .number("history_age_ms", limits.history_age.as_millis() as u64)
            .into_frame()
    }
}
