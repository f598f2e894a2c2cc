//! The bounds of the room engine, and what happens at each.

use std::time::Duration;

/// What becomes of a member that does not keep up with its rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPolicy {
    /// It is closed (1008) at `outbox_bytes_max`; it may connect again and resume from its offset.
    Disconnect,
    /// Messages that wait for it are dropped, the oldest first; a gap event stands in their place.
    DropOldest,
    /// A newer message with the same key takes the place of a waiting one of the same room. What
    /// that does not save is dropped as under `DropOldest`.
    Conflate,
}

/// When a slow member's policy acts. What is never dropped (answers, other events) still meets
/// `outbox_bytes_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowLimits {
    /// The policy for slow members.
    pub policy: SlowPolicy,
    /// Bytes in an outbox at which messages begin to be dropped, while the socket takes none. At
    /// most `outbox_bytes_max`. Means nothing under `Disconnect`.
    pub outbox_bytes: usize,
    /// How long a message may wait before it is dropped instead of sent; zero: as long as it
    /// takes. Means nothing under `Disconnect`.
    pub age: Duration,
}

impl Default for SlowLimits {
    fn default() -> SlowLimits {
        SlowLimits { policy: SlowPolicy::Disconnect, outbox_bytes: 256 * 1024, age: Duration::ZERO }
    }
}

/// No name is longer than this, whatever the file allows: bytes of UTF-8.
pub const NAME_BYTES_MOST: usize = 4096;

/// What one shard's part of the room engine may hold, and what its clients may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// The longest room name, in bytes of UTF-8 and in its one spelling. A longer one is refused with
    /// `bad_room`.
    pub room_name_bytes_max: usize,
    /// The longest user name, likewise. A handshake with a longer one is refused with 400.
    pub user_name_bytes_max: usize,
    /// How many rooms one client may be in; one more is refused with `too_many_memberships`.
    pub rooms_per_client_max: usize,
    /// How many rooms may have their home in one shard; one more is refused with
    /// `too_many_rooms`. Rooms that everybody left count until their history has aged out.
    pub rooms_max: usize,
    /// How many rooms one connection may have made that are not forgotten; a join that would make
    /// one more is refused with `too_many_made`.
    pub rooms_made_per_client_max: usize,
    /// The same for all connections of an address together, those that are gone among them.
    pub rooms_made_per_address_max: usize,
    /// How many messages the history of a room keeps; the oldest go first.
    pub history_messages_max: usize,
    /// How many bytes (of encoded frames) the history of a room keeps; the oldest go first, and
    /// a message larger than this is delivered but not kept.
    pub history_bytes_max: usize,
    /// How many bytes the histories of one shard keep together. A room that publishes while they
    /// are full pays with its own oldest messages.
    pub history_bytes_per_shard_max: usize,
    /// How long a message stays in the history, and how long a room is remembered after
    /// everybody left it.
    pub history_age: Duration,
    /// How many missed messages the answer to a join brings; a client that missed more is told
    /// `recovered: false` and asks for history.
    pub recovery_messages_max: usize,
    /// How many bytes of messages one answer carries: a recovery that needs more is
    /// `recovered: false`, a history answer stops there and says `more`.
    pub answer_bytes_max: usize,
    /// How many users a presence answer lists; the counts are exact all the same. While a room
    /// has more, it sends no presence events.
    pub presence_users_listed_max: usize,
    /// How long a user whose last connection left a room still counts as present, so that the
    /// reload of a page is not a leave and a join.
    pub leave_grace: Duration,
    /// How often the gateway pings. Only told to clients (in `welcome`); the shard does it.
    pub ping_interval: Duration,
    /// The largest message a client may send. Only told to clients; the shard enforces it.
    pub message_bytes_max: usize,
    /// What becomes of members that do not keep up. The shard sees to it, in their outboxes.
    pub slow: SlowLimits,
}

impl Default for RoomLimits {
    fn default() -> RoomLimits {
        RoomLimits {
            room_name_bytes_max: 256,
            user_name_bytes_max: 128,
            rooms_per_client_max: 512,
            rooms_max: 100_000,
            rooms_made_per_client_max: 512,
            rooms_made_per_address_max: 10_000,
            history_messages_max: 1_000,
            history_bytes_max: 1 << 20,
            history_bytes_per_shard_max: 256 << 20,
            history_age: Duration::from_secs(120),
            recovery_messages_max: 1_000,
            answer_bytes_max: 1 << 20,
            presence_users_listed_max: 1_000,
            leave_grace: Duration::from_secs(5),
            ping_interval: Duration::from_secs(25),
            message_bytes_max: 1 << 20,
            slow: SlowLimits::default(),
        }
    }
}
