//! The home of a room: the one place that numbers its messages, keeps its history, and knows
//! which shards have members and which users are present.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::heap::{list_bytes, map_bytes, set_bytes, shrink_map};
use crate::keyed_hash::HashKey;
use crate::makers::Made;
use crate::random::Random;
use crate::time::Time;

use super::limits::RoomLimits;
use super::mail::{Ask, Join, Joined, Leave, Letter, Mail, Publish, Question, Requester};
use super::members::Names;
use super::protocol::{ErrorCode, Object, Position, error_frame, payload};
use super::{Counters, Outlet};

/// How many rooms, and how many users of them whose grace has ended, one `on_deadline` handles.
/// What is left over keeps its deadline in the past, so the next turn goes on with it.
const STEPS_PER_DEADLINE: usize = 256;

/// The rooms whose home is this shard.
pub(super) struct Homes {
    rooms: Names<Home>,
    /// When each room next has something to do; at most one entry per room.
    wakes: BTreeSet<(Time, Arc<str>)>,
    /// All histories together. Equals the sum of every room's `history_bytes`.
    history_bytes: usize,
    /// What all rooms hold beside the frames. Equals the sum of every room's `held`.
    held: HomeBytes,
    /// The key of each room's map of users.
    present_key: HashKey,
    /// Where epochs come from.
    random: Random,
}

/// What a room has on the heap, for the memory ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HomeBytes {
    /// The room itself: who is present, and where its members are.
    room: usize,
    /// Its history, without the bytes of the frames.
    history: usize,
}

impl HomeBytes {
    /// One room held `before`, and holds `after` now.
    fn change(&mut self, before: HomeBytes, after: HomeBytes) {
        self.room = self.room + after.room - before.room;
        self.history = self.history + after.history - before.history;
    }
}

/// What `Bytes` has beside a frame that was handed on.
const FRAME_COUNT_BYTES: usize = 24;

struct Home {
    epoch: u64,
    /// The number of the last message; 0 before the first.
    offset: u64,
    /// The last messages without a gap, the newest of them being `offset`; may be empty.
    history: VecDeque<Kept>,
    history_bytes: usize,
    /// The shards with members. Few, so a list; empty when nobody is in the room.
    reach: Vec<Reach>,
    /// Users with a connection in the room, and those in their grace.
    present: Names<Present>,
    /// Users in their grace, by its end.
    leaving: BTreeSet<(Time, Arc<str>)>,
    /// When the last member left. Means something only while `reach` is empty.
    emptied_at: Time,
    /// Its entry in `Homes::wakes`; `NEVER` without one.
    wake_at: Time,
    /// Its place with who made it, until it is forgotten.
    _made: Made,
}

struct Kept {
    at: Time,
    /// The frame that was sent, and a comma: see [`Object::into_kept`].
    frame: Bytes,
}

/// Members in one shard. `0 < members`, `watchers <= members`
struct Reach {
    shard: u16,
    members: u32,
    /// Those that asked for presence events.
    watchers: u32,
}

/// A user in a room. `connections == 0` exactly while `leaving_at` is in `Home::leaving`.
struct Present {
    connections: u32,
    leaving_at: Time,
}

impl Homes {
    pub(super) fn new(mut random: Random) -> Homes {
        Homes {
            rooms: HashMap::with_hasher(HashKey::draw(&mut random)),
            wakes: BTreeSet::new(),
            history_bytes: 0,
            held: HomeBytes::default(),
            present_key: HashKey::draw(&mut random),
            random,
        }
    }

    /// Bytes on the heap, of the rooms and of their histories. For the memory ledger.
    pub(super) fn held_bytes(&self) -> (usize, usize) {
        let rooms = map_bytes(&self.rooms) + set_bytes(&self.wakes) + self.held.room;
        (rooms, self.history_bytes + self.held.history)
    }

    /// Whether what is counted is what there is.
    #[cfg(test)]
    pub(super) fn is_counted_right(&self) -> bool {
        let mut sum = HomeBytes::default();
        self.rooms.values().for_each(|home| sum.change(HomeBytes::default(), home.held()));
        sum == self.held
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// Adds the member, then answers: the answer is in the same queue as the messages, so the
    /// member's shard sees it after every message up to the answered offset and before the rest.
    pub(super) fn on_join(
        &mut self,
        join: Join,
        now: Time,
        limits: &RoomLimits,
        out: &mut impl Outlet,
    ) {
        let Join { from, room, ticket, presence, resume, maker } = join;
        let answer = |user, room, outcome, answer| {
            let (conn, weight) = (from.conn, from.weight);
            let joined = Joined { conn, user, room, ticket, presence, weight, outcome, answer };
            Mail(Letter::Joined(Box::new(joined)))
        };
        if !self.rooms.contains_key(&*room) {
            let (client_max, address_max) =
                (limits.rooms_made_per_client_max, limits.rooms_made_per_address_max);
            let made = match self.rooms.len() < limits.rooms_max {
                true => maker.make(client_max, address_max).ok_or(ErrorCode::TooManyMade),
                false => Err(ErrorCode::TooManyRooms),
            };
            let made = match made {
                Ok(made) => made,
                Err(code) => {
                    let frame = error_frame(code, code.sentence(), from.id.as_deref());
                    out.post(from.shard, answer(from.user, room, Err(code), frame.into()));
                    return;
                }
            };
            let home = Home::new(self.next_epoch(), self.present_key, made, now);
            self.rooms.insert(Arc::clone(&room), home);
        }
        let home = self.rooms.get_mut(&*room).expect("inserted above");
        let held = home.held();

        // Before the answer, so that the newcomer is in the list and is not told of itself.
        if home.add_present(&from.user) {
            home.notify(&room, "join", &from.user, limits, out);
        }
        home.add_member(from.shard, presence);
        self.history_bytes -= home.forget_old(now, limits);
        self.held.change(held, home.held());

        let position = Position { epoch: home.epoch, offset: home.offset };
        let mut object = Object::ack(from.id.as_deref(), "join")
            .text("room", &room)
            .epoch(home.epoch)
            .number("offset", home.offset);
        if let Some(seen) = resume {
            let missed = home.missed_since(seen, limits);
            object =
                object.flag("recovered", missed.is_some()).messages(missed.into_iter().flatten());
        }
        if presence {
            object = home.list_users(object, limits);
        }
        let (shard, user) = (from.shard, from.user);
        out.post(shard, answer(user, Arc::clone(&room), Ok(position), object.into_answer()));
        self.schedule(&room, limits);
    }

    pub(super) fn on_leave(&mut self, leave: &Leave, now: Time, limits: &RoomLimits) {
        // A leave follows a join that was done, and a room with members stays.
        let home = self.rooms.get_mut(&*leave.room).expect("a room with a member exists");
        let held = home.held();
        home.remove_member(leave.shard, leave.presence);
        if home.reach.is_empty() {
            home.emptied_at = now;
        }
        home.remove_present(&leave.user, now + limits.leave_grace);
        self.held.change(held, home.held());
        self.schedule(&leave.room, limits);
    }

    /// Numbers a message, encodes it once, and sends it to every shard with members. The
    /// publisher's answer follows the message in the same queue.
    pub(super) fn on_publish(
        &mut self,
        publish: &Publish,
        now: Time,
        time_unix_ms: u64,
        limits: &RoomLimits,
        counters: &mut Counters,
        out: &mut impl Outlet,
    ) {
        let Publish { from, room, at_us, key, data } = publish;
        // The publisher is a member, or is about to hear that its join was refused.
        let Some(home) = self.rooms.get_mut(&**room).filter(|home| !home.reach.is_empty()) else {
            answer_error(from, ErrorCode::NotMember, out);
            return;
        };
        // All shards or none: an offset that some members never see would be a gap to them.
        if home.reach.iter().any(|reach| !out.has_room(reach.shard)) {
            answer_error(from, ErrorCode::Busy, out);
            return;
        }
        home.offset += 1;
        let object = Object::event("message").text("room", room).number("offset", home.offset);
        let object = match key {
            Some(key) => object.text("key", key),
            None => object,
        };
        let kept = object
            .text("user", &from.user)
            .number("time", time_unix_ms)
            .raw("data", data.as_bytes())
            .into_kept();
        let frame = kept.slice(..kept.len() - 1);
        for reach in &home.reach {
            let (room, frame) = (Arc::clone(room), frame.clone());
            let letter = Letter::Deliver { room, offset: home.offset, at_us: *at_us, frame };
            out.post(reach.shard, Mail(letter));
        }
        if from.id.is_some() {
            let frame = Object::ack(from.id.as_deref(), "publish")
                .text("room", room)
                .number("offset", home.offset)
                .number("time", time_unix_ms)
                .into_frame();
            answer(from, frame, out);
        }
        counters.published += 1;

        let held = home.held();
        self.history_bytes += kept.len();
        self.history_bytes -= home.keep(Kept { at: now, frame: kept }, limits);
        while self.history_bytes > limits.history_bytes_per_shard_max {
            // Nothing of its own left to pay with: others were there first.
            let Some(freed) = home.forget_oldest() else { break };
            self.history_bytes -= freed;
        }
        self.held.change(held, home.held());
        if home.wake_at == Time::NEVER {
            self.schedule(room, limits);
        }
    }

    pub(super) fn on_ask(
        &mut self,
        ask: &Ask,
        now: Time,
        limits: &RoomLimits,
        out: &mut impl Outlet,
    ) {
        let Ask { from, room, question } = ask;
        let Some(home) = self.rooms.get_mut(&**room).filter(|home| !home.reach.is_empty()) else {
            answer_error(from, ErrorCode::NotMember, out);
            return;
        };
        let id = from.id.as_deref();
        let object = match *question {
            Question::Presence => {
                home.list_users(Object::ack(id, "presence").text("room", room), limits)
            }
            Question::History { after, limit } => {
                let held = home.held();
                self.history_bytes -= home.forget_old(now, limits);
                self.held.change(held, home.held());
                let object = Object::ack(id, "history").text("room", room);
                home.list_history(object, after, limit, limits)
            }
        };
        let (conn, answer) = (from.conn, object.into_answer());
        out.post(from.shard, Mail(Letter::LongAnswer { conn, answer, weight: from.weight }));
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Ends graces, forgets old messages, drops rooms; bounded, see `STEPS_PER_DEADLINE`.
    pub(super) fn on_deadline(&mut self, now: Time, limits: &RoomLimits, out: &mut impl Outlet) {
        let mut steps = STEPS_PER_DEADLINE;
        while steps > 0 && self.next_deadline().is_some_and(|at| at <= now) {
            let (_, name) = self.wakes.pop_first().expect("looked at above");
            let home = self.rooms.get_mut(&*name).expect("a dropped room has no wake");
            let held = home.held();
            home.wake_at = Time::NEVER;
            steps -= 1;
            while steps > 0 && home.leaving.first().is_some_and(|(at, _)| *at <= now) {
                let (_, user) = home.leaving.pop_first().expect("looked at above");
                home.present.remove(&*user);
                shrink_map(&mut home.present);
                home.notify(&name, "leave", &user, limits, out);
                steps -= 1;
            }
            self.history_bytes -= home.forget_old(now, limits);
            if home.dropped_at(limits).is_some_and(|at| at <= now) {
                self.held.change(held, HomeBytes::default());
                self.history_bytes -= home.history_bytes;
                self.rooms.remove(&*name);
                shrink_map(&mut self.rooms);
            } else {
                self.held.change(held, home.held());
                self.schedule(&name, limits);
            }
        }
    }

    /// Sets the room's wake to when it next has something to do.
    fn schedule(&mut self, name: &Arc<str>, limits: &RoomLimits) {
        let home = self.rooms.get_mut(&**name).expect("called for rooms that exist");
        let due = home.next_deadline(limits);
        if due == home.wake_at {
            return;
        }
        if home.wake_at != Time::NEVER {
            self.wakes.remove(&(home.wake_at, Arc::clone(name)));
        }
        home.wake_at = due;
        if due != Time::NEVER {
            self.wakes.insert((due, Arc::clone(name)));
        }
    }

    /// Clients see it, so it is drawn and tells nothing else. Never 0; the same twice, in this process
    /// or after an earlier one, as seldom as two of 2^64 are the same.
    fn next_epoch(&mut self) -> u64 {
        self.random.next_u64().max(1)
    }
}

impl Home {
    fn new(epoch: u64, key: HashKey, made: Made, now: Time) -> Home {
        Home {
            epoch,
            offset: 0,
            history: VecDeque::new(),
            history_bytes: 0,
            reach: Vec::new(),
            present: HashMap::with_hasher(key),
            leaving: BTreeSet::new(),
            emptied_at: now,
            wake_at: Time::NEVER,
            _made: made,
        }
    }

    /// What it has on the heap, without the bytes of the frames. Costs a handful of additions.
    fn held(&self) -> HomeBytes {
        HomeBytes {
            room: list_bytes(&self.reach) + map_bytes(&self.present) + set_bytes(&self.leaving),
            history: self.history.capacity() * size_of::<Kept>()
                + self.history.len() * FRAME_COUNT_BYTES,
        }
    }

    fn add_member(&mut self, shard: u16, watches: bool) {
        let index = self.reach.iter().position(|reach| reach.shard == shard);
        let index = index.unwrap_or_else(|| {
            self.reach.push(Reach { shard, members: 0, watchers: 0 });
            self.reach.len() - 1
        });
        self.reach[index].members += 1;
        self.reach[index].watchers += u32::from(watches);
    }

    fn remove_member(&mut self, shard: u16, watched: bool) {
        let index = self.reach.iter().position(|reach| reach.shard == shard);
        let index = index.expect("the shard of a member is in reach");
        let reach = &mut self.reach[index];
        reach.members -= 1;
        reach.watchers -= u32::from(watched);
        if reach.members == 0 {
            self.reach.swap_remove(index);
        }
    }

    /// Counts a connection of the user; true when the user was not present before.
    fn add_present(&mut self, user: &Arc<str>) -> bool {
        if let Some(present) = self.present.get_mut(&**user) {
            if present.connections == 0 {
                self.leaving.remove(&(present.leaving_at, Arc::clone(user)));
            }
            present.connections += 1;
            return false;
        }
        let present = Present { connections: 1, leaving_at: Time::NEVER };
        self.present.insert(Arc::clone(user), present);
        true
    }

    fn remove_present(&mut self, user: &Arc<str>, leaving_at: Time) {
        let present = self.present.get_mut(&**user).expect("a member's user is present");
        present.connections -= 1;
        if present.connections == 0 {
            present.leaving_at = leaving_at;
            self.leaving.insert((leaving_at, Arc::clone(user)));
        }
    }

    /// Tells those who asked for presence that a user came or went. Not in a room with more users
    /// than a list names: a thousand events to a thousand clients is where this has to stop
    /// growing, and whoever sees a part of the users has no use for the news of the others.
    fn notify(
        &self,
        room: &Arc<str>,
        event: &str,
        user: &str,
        limits: &RoomLimits,
        out: &mut impl Outlet,
    ) {
        let watched = self.reach.iter().any(|reach| reach.watchers > 0);
        if !watched || self.present.len() > limits.presence_users_listed_max {
            return;
        }
        let frame = Object::event(event)
            .text("room", room)
            .text("user", user)
            .number("user_count", self.present.len() as u64)
            .into_frame();
        for reach in self.reach.iter().filter(|reach| reach.watchers > 0) {
            let (room, frame) = (Arc::clone(room), frame.clone());
            out.post(reach.shard, Mail(Letter::Notify { room, frame }));
        }
    }

    /// Keeps a message that has been sent; returns how many bytes were forgotten for it.
    fn keep(&mut self, kept: Kept, limits: &RoomLimits) -> usize {
        let now = kept.at;
        self.history_bytes += kept.frame.len();
        self.history.push_back(kept);
        let mut freed = self.forget_old(now, limits);
        while self.history.len() > limits.history_messages_max
            || self.history_bytes > limits.history_bytes_max
        {
            freed += self.forget_oldest().expect("a history beyond its bounds is not empty");
        }
        freed
    }

    fn forget_old(&mut self, now: Time, limits: &RoomLimits) -> usize {
        let mut freed = 0;
        while self.history.front().is_some_and(|kept| kept.at + limits.history_age <= now) {
            freed += self.forget_oldest().unwrap_or(0);
        }
        freed
    }

    fn forget_oldest(&mut self) -> Option<usize> {
        let bytes = self.history.pop_front()?.frame.len();
        self.history_bytes -= bytes;
        if self.history.is_empty() {
            // A quiet room should not keep the room for a thousand messages.
            self.history = VecDeque::new();
        }
        Some(bytes)
    }

    /// The messages after `seen`: all of them, or `None` when that is not possible.
    fn missed_since(
        &self,
        seen: Position,
        limits: &RoomLimits,
    ) -> Option<impl Iterator<Item = &Bytes>> {
        if seen.epoch != self.epoch || seen.offset > self.offset {
            return None;
        }
        let missed = self.offset - seen.offset;
        if missed > self.history.len().min(limits.recovery_messages_max) as u64 {
            return None;
        }
        let first = self.history.len() - missed as usize;
        let bytes: usize = self.history.range(first..).map(|kept| payload(&kept.frame).len()).sum();
        (bytes <= limits.answer_bytes_max)
            .then(|| self.history.range(first..).map(|kept| &kept.frame))
    }

    /// The number of the message at the front of the history, or of the next one to come.
    fn oldest_offset(&self) -> u64 {
        self.offset + 1 - self.history.len() as u64
    }

    fn list_history(
        &self,
        object: Object,
        after: Option<u64>,
        limit: usize,
        limits: &RoomLimits,
    ) -> Object {
        let oldest = self.oldest_offset();
        let bytes_of = |index: usize| payload(&self.history[index].frame).len();
        let mut bytes = 0;
        let mut fits = |index: &usize| {
            bytes += bytes_of(*index);
            bytes <= limits.answer_bytes_max
        };
        let range = match after {
            Some(after) => {
                let first = after.saturating_add(1).clamp(oldest, self.offset + 1) - oldest;
                let first = first as usize;
                let count = (first..self.history.len()).take(limit).take_while(&mut fits).count();
                first..first + count
            }
            None => {
                let len = self.history.len();
                len - (0..len).rev().take(limit).take_while(&mut fits).count()..len
            }
        };
        let more = match after {
            Some(_) => range.end < self.history.len(),
            None => range.start > 0,
        };
        object
            .epoch(self.epoch)
            .number("offset", self.offset)
            .flag("gap", after.is_some_and(|after| after.saturating_add(1) < oldest))
            .flag("more", more)
            .messages(self.history.range(range).map(|kept| &kept.frame))
    }

    fn list_users(&self, object: Object, limits: &RoomLimits) -> Object {
        let listed = limits.presence_users_listed_max;
        let mut users: Vec<&str> = self.present.keys().take(listed).map(|user| &**user).collect();
        users.sort_unstable();
        let connections: u64 = self.reach.iter().map(|reach| u64::from(reach.members)).sum();
        object
            .texts("users", users.into_iter())
            .number("user_count", self.present.len() as u64)
            .number("connection_count", connections)
            .flag("truncated", self.present.len() > listed)
    }

    fn next_deadline(&self, limits: &RoomLimits) -> Time {
        let grace = self.leaving.first().map_or(Time::NEVER, |(at, _)| *at);
        // Readers forget what is too old themselves, so this is only about memory, and may be
        // late: one visit then forgets many.
        let slack = limits.history_age / 8;
        let oldest =
            self.history.front().map_or(Time::NEVER, |kept| kept.at + limits.history_age + slack);
        grace.min(oldest).min(self.dropped_at(limits).unwrap_or(Time::NEVER))
    }

    /// When the room may be forgotten. Not before a client that went with the last member could
    /// no longer resume; at once if there never was anything to miss.
    fn dropped_at(&self, limits: &RoomLimits) -> Option<Time> {
        let idle = self.reach.is_empty() && self.leaving.is_empty();
        let remembered = if self.offset == 0 { 0 } else { 1 };
        idle.then(|| self.emptied_at + limits.history_age * remembered)
    }
}

pub(super) fn answer(to: &Requester, frame: Bytes, out: &mut impl Outlet) {
    out.post(to.shard, Mail(Letter::Answer { conn: to.conn, frame, weight: to.weight }));
}

pub(super) fn answer_error(to: &Requester, code: ErrorCode, out: &mut impl Outlet) {
    answer(to, error_frame(code, code.sentence(), to.id.as_deref()), out);
}
