//! The embedded rooms of a shard, and what they reach of it: the outboxes of its clients, and the
//! post. `rooms.rs` knows them as [`Outlet`].

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::mailbox::{Letter, Mailroom};
use super::unread::Unread;
use super::{RECORDS, Shard};
use crate::addresses::AddressKey;
use crate::config::{BackendKind, Config, Local};
use crate::conn::delays::Delays;
use crate::conn::outbox::{Full, Stores};
use crate::conn::table::Table;
use crate::conn::{ConnId, Phase};
use crate::keyed_hash::HashKey;
use crate::makers::Maker;
use crate::metrics::{Cause, Counters};
use crate::random::Random;
use crate::ring::Ring;
use crate::rooms::{Answer, Mail, Outlet, RoomLimits, Rooms, SlowLimits, SlowPolicy};
use crate::shared::Shared;
use crate::time::Time;
use crate::ws::frame::server_payload_bytes;

impl<R: Ring> Shard<R> {
    /// Lends the rooms of one backend together with what they reach of the shard.
    pub(super) fn with_rooms<T>(
        &mut self,
        backend: u16,
        act: impl FnOnce(&mut Rooms, &mut Post<'_>) -> T,
    ) -> T {
        let index = usize::from(backend);
        let Some(rooms) = &mut self.rooms[index] else {
            unreachable!("backend {backend} has no rooms");
        };
        let outbox_bytes_max = self.config.limits.outbox_bytes_max;
        let slow = rooms.slow_limits();
        let fast_bytes_max = match slow.policy {
            SlowPolicy::Disconnect => outbox_bytes_max,
            SlowPolicy::DropOldest | SlowPolicy::Conflate => slow.outbox_bytes,
        };
        let bounds = Bounds { fast_bytes_max, outbox_bytes_max, slow };
        let mut post = Post {
            table: &mut self.table,
            stores: &mut self.stores,
            delays: &mut self.delays,
            dirty: &mut self.dirty,
            doomed: &mut self.doomed,
            unread: &mut self.unread,
            mail: &mut self.mail,
            metrics: &self.metrics,
            shared: &self.shared,
            now: self.now,
            published: None,
            bounds,
            backend,
        };
        let before = (*rooms.counters(), rooms.gauges());
        let result = act(rooms, &mut post);
        self.metrics.count_rooms(&before, &(*rooms.counters(), rooms.gauges()));
        let has_rooms = !rooms.is_empty();
        if has_rooms != self.has_rooms[index] {
            self.count_rooms(index, has_rooms);
        }
        result
    }

    /// This shard has rooms of a backend from now on, or none any more.
    #[cold]
    pub(super) fn count_rooms(&mut self, backend: usize, has_rooms: bool) {
        self.has_rooms[backend] = has_rooms;
        match has_rooms {
            true => self.shared.rooms[backend].take(),
            false => self.shared.rooms[backend].give_back(),
        }
    }
}

/// What rooms reach of a shard: the outboxes of its clients, and the post.
pub(super) struct Post<'a> {
    table: &'a mut Table,
    stores: &'a mut Stores,
    delays: &'a mut Delays,
    dirty: &'a mut VecDeque<u32>,
    doomed: &'a mut Vec<Doomed>,
    unread: &'a mut Unread,
    mail: &'a mut Mailroom,
    metrics: &'a Counters,
    shared: &'a Shared,
    now: Time,
    /// When what is delivered was published, if it is a publication.
    published: Option<Time>,
    bounds: Bounds,
    backend: u16,
}

/// What an outbox may hold of what rooms put into it.
struct Bounds {
    /// Up to here a frame is queued without another look.
    fast_bytes_max: usize,
    outbox_bytes_max: usize,
    slow: SlowLimits,
}

/// To a member that is closed because it does not read.
const SLOW_CONSUMER: &str = "slow consumer: connect again and resume from your last offset";

impl Outlet for Post<'_> {
    fn published(&mut self, at_us: u32) {
        self.published = Some(self.now.back_to(at_us));
    }

    fn deliver(&mut self, to: ConnId, frame: &Bytes) {
        let Some(conn) = self.table.get_mut(to) else { return };
        // Nothing comes behind a message that had no room: the member would resume after the gap.
        if conn.phase != Phase::Open || conn.cause.is_some() {
            return;
        }
        let bytes = conn.outbox.bytes() + frame.len();
        let fast_bytes_max = self.bounds.fast_bytes_max + conn.outbox.answer_bytes();
        if bytes > fast_bytes_max || conn.outbox.is_backlogged() {
            self.delays.forget(&mut conn.mark, &self.metrics.recorder);
            let was_backlogged = conn.outbox.is_backlogged();
            let Bounds { outbox_bytes_max, slow, .. } = &self.bounds;
            let pushed = match slow.policy {
                SlowPolicy::Disconnect => Err(Full),
                SlowPolicy::DropOldest | SlowPolicy::Conflate => conn.outbox.push_backlogged(
                    frame,
                    *outbox_bytes_max,
                    slow,
                    self.stores,
                    self.metrics,
                    self.now,
                ),
            };
            self.metrics.count_backlogged(was_backlogged, conn.outbox.is_backlogged());
            if pushed == Err(Full) {
                // A member cannot be waited for: the room goes on without it, and it may come back
                // and resume from the offset that it has seen.
                conn.cause = Some(Cause::SlowConsumer);
                let (cause, code, reason) = (Cause::SlowConsumer, 1008, SLOW_CONSUMER);
                self.doomed.push(Doomed { id: to, cause, code, reason });
                return;
            }
        } else {
            conn.outbox.push_shared(frame, self.stores, self.now);
            if RECORDS {
                match self.published {
                    Some(at) => self.delays.published(
                        &mut conn.mark,
                        bytes,
                        at,
                        self.now,
                        &self.metrics.recorder,
                    ),
                    None => self.delays.queued(&mut conn.mark, 1, bytes, self.now),
                }
            }
        }
        if RECORDS {
            let sizes = &self.metrics.recorder.route(conn.route).to_client_sizes;
            sizes.record(server_payload_bytes(frame) as u64, 1);
        }
        conn.data_at = self.now;
        conn.traffic.sent(1);
        super::mark_dirty(conn, to.slot, self.dirty);
    }

    fn deliver_answer(&mut self, to: ConnId, answer: Answer) {
        let Some(conn) = self.table.get_mut(to) else { return };
        if conn.phase != Phase::Open || conn.cause.is_some() {
            return;
        }
        let frame_bytes = answer.bytes();
        conn.outbox.push_answer(answer, self.stores, self.now);
        if RECORDS {
            if conn.outbox.is_backlogged() {
                self.delays.forget(&mut conn.mark, &self.metrics.recorder);
            } else {
                self.delays.queued(&mut conn.mark, 1, conn.outbox.bytes(), self.now);
            }
            let sizes = &self.metrics.recorder.route(conn.route).to_client_sizes;
            sizes.record(frame_bytes as u64, 1);
        }
        conn.data_at = self.now;
        conn.traffic.sent(1);
        super::mark_dirty(conn, to.slot, self.dirty);
    }

    fn post(&mut self, shard: u16, mail: Mail) {
        self.mail.post(shard, Letter::Rooms { backend: self.backend, mail });
    }

    fn has_room(&self, shard: u16) -> bool {
        self.mail.has_room(shard)
    }

    fn maker(&mut self, conn: ConnId) -> Arc<Maker> {
        let address = AddressKey::of(self.table[conn].client_ip());
        self.shared.makers.maker(self.backend, address)
    }

    fn takes_requests(&self, shard: u16) -> bool {
        self.unread.is_open(shard) && self.mail.takes_requests(shard)
    }

    fn answered(&mut self, conn: ConnId) {
        self.unread.look_at(conn);
    }
}

/// A client that is closed once the rooms that found it out are given back: why, and what the Close
/// frame says.
pub(super) struct Doomed {
    pub(super) id: ConnId,
    pub(super) cause: Cause,
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

/// The rooms of a configuration, by backend, as shard `index` begins with them.
pub(super) fn all_rooms(
    config: &Config,
    index: u16,
    unix_origin_ms: u64,
    homes: HashKey,
    random: &mut Random,
) -> Vec<Option<Rooms>> {
    let numbers = 0..=u16::MAX;
    let rooms = numbers.zip(&config.backends).map(|(number, backend)| match &backend.kind {
        BackendKind::Local(local) => {
            let limits = room_limits(config, number, local);
            Some(new_rooms(config, limits, index, unix_origin_ms, homes, random))
        }
        _ => None,
    });
    rooms.collect()
}

/// The rooms of a backend, as shard `index` begins with them.
pub(super) fn new_rooms(
    config: &Config,
    limits: RoomLimits,
    index: u16,
    unix_origin_ms: u64,
    homes: HashKey,
    random: &mut Random,
) -> Rooms {
    Rooms::new(index, config.server.shards, limits, unix_origin_ms, homes, random.split())
}

/// What the backend of this number says of its rooms, and what everybody's limits do. The largest message
/// is that of the route to it that allows least: whoever keeps to it is within its own.
pub(super) fn room_limits(config: &Config, backend: u16, local: &Local) -> RoomLimits {
    let routes = config.routes.iter().filter(|route| route.backend == backend);
    let least = routes.map(|route| route.policy.message_bytes_max).min();
    RoomLimits {
        ping_interval: config.limits.ping_interval,
        message_bytes_max: least.unwrap_or(config.limits.message_bytes_max),
        answer_bytes_max: local.rooms.answer_bytes_max.min(config.limits.outbox_bytes_max),
        ..local.rooms.clone()
    }
}
