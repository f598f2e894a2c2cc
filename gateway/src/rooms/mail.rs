//! What shards write to each other about rooms and users.
//!
//! ```text
//!   client's shard                    home of the room              every shard with members
//!        | -- Join, Publish, Ask, Leave --> |                                  |
//!        |                                  | -- Deliver, Notify ------------> |
//!        | <-- Joined, Answer ------------- |                                  |
//! ```
//!
//! Everything the engine promises about order rests on one property: mail from one shard to
//! another arrives in the order in which it was posted.

use std::sync::Arc;

use bytes::Bytes;

use crate::conn::ConnId;
use crate::makers::Maker;

use super::answer::Answer;
use super::members::WEIGHT_MAX;
use super::protocol::{ErrorCode, Position};

/// A letter from one shard's `Rooms` to another's, to be handed to `Rooms::on_mail` there.
#[derive(Debug)]
pub struct Mail(pub(super) Letter);

// A mailbox holds thousands of these; what is rare or large is boxed.
const _: () = assert!(size_of::<Mail>() <= 64);

impl Mail {
    /// Bytes on the heap that this letter alone holds. A frame that goes to several shards is counted
    /// with each of them.
    pub fn held_bytes(&self) -> usize {
        match &self.0 {
            Letter::Answer { frame, .. }
            | Letter::Deliver { frame, .. }
            | Letter::Notify { frame, .. }
            | Letter::DeliverDirect { frame, .. } => frame.len(),
            Letter::LongAnswer { answer, .. } => answer.held_bytes(),
            Letter::Joined(joined) => size_of::<Joined>() + joined.answer.held_bytes(),
            Letter::Publish(publish) => size_of::<Publish>() + publish.data.len(),
            Letter::Direct(direct) => size_of::<Direct>() + direct.frame.len(),
            Letter::Join(_) => size_of::<Join>(),
            Letter::Ask(_) => size_of::<Ask>(),
            Letter::Leave(_) => size_of::<Leave>(),
            Letter::UserOpened { .. } | Letter::UserClosed { .. } => 0,
        }
    }

    /// Whether it may be handled behind later letters: a request whose answer may be long. Its client says
    /// nothing more before it has the answer, and to the others it changes nothing.
    pub fn can_wait(&self) -> bool {
        match &self.0 {
            Letter::Ask(_) => true,
            Letter::Join(join) => join.from.weight == WEIGHT_MAX,
            _ => false,
        }
    }

    /// Bytes that were written for one client alone, to answer it; zero for every other letter.
    pub fn answer_bytes(&self) -> usize {
        match &self.0 {
            Letter::Answer { frame, .. } => frame.len(),
            Letter::LongAnswer { answer, .. } => answer.held_bytes(),
            Letter::Joined(joined) => joined.answer.held_bytes(),
            _ => 0,
        }
    }
}

#[derive(Debug)]
pub(super) enum Letter {
    /// To the home: a client wants to become a member. Answered with `Joined`.
    Join(Box<Join>),
    /// To the home: a member is one no more. Follows each successful `Joined` exactly once.
    Leave(Box<Leave>),
    /// To the home: a message for everybody in the room.
    Publish(Box<Publish>),
    /// To the home: history or presence, answered with `Answer`.
    Ask(Box<Ask>),
    /// To the client's shard: the join was done or refused.
    Joined(Box<Joined>),
    /// To a shard with members: one message, already encoded.
    Deliver { room: Arc<str>, offset: u64, at_us: u32, frame: Bytes },
    /// To a shard with members that asked for presence: somebody came or went.
    Notify { room: Arc<str>, frame: Bytes },
    /// To the client's shard: a finished answer, and what the client is charged for it no longer.
    Answer { conn: ConnId, frame: Bytes, weight: u8 },
    /// As `Answer`, one that may be long.
    LongAnswer { conn: ConnId, answer: Answer, weight: u8 },
    /// To the home of the user: a connection of theirs opened in `shard`.
    UserOpened { user: Arc<str>, shard: u16 },
    /// To the home of the user: a connection of theirs in `shard` closed.
    UserClosed { user: Arc<str>, shard: u16 },
    /// To the home of the user: a message for all their connections.
    Direct(Box<Direct>),
    /// To a shard where the user has connections.
    DeliverDirect { user: Arc<str>, frame: Bytes },
}

/// Who asked, and where the answer goes.
#[derive(Debug)]
pub(super) struct Requester {
    pub(super) shard: u16,
    pub(super) conn: ConnId,
    pub(super) user: Arc<str>,
    /// The request's `id`, as JSON text.
    pub(super) id: Option<Box<str>>,
    /// What the client is charged until the answer is there: see `Members::charge`.
    pub(super) weight: u8,
}

#[derive(Debug)]
pub(super) struct Join {
    pub(super) from: Requester,
    pub(super) room: Arc<str>,
    /// Tells this attempt from an earlier one of the same connection; comes back in `Joined`.
    pub(super) ticket: u32,
    pub(super) presence: bool,
    pub(super) resume: Option<Position>,
    /// Who makes the room, if there is none.
    pub(super) maker: Arc<Maker>,
}

#[derive(Debug)]
pub(super) struct Joined {
    pub(super) conn: ConnId,
    pub(super) user: Arc<str>,
    pub(super) room: Arc<str>,
    pub(super) ticket: u32,
    pub(super) presence: bool,
    /// What the client is charged for it no longer.
    pub(super) weight: u8,
    /// Where the room stood: the member gets everything after it.
    pub(super) outcome: Result<Position, ErrorCode>,
    /// The answer, or the error.
    pub(super) answer: Answer,
}

#[derive(Debug)]
pub(super) struct Leave {
    pub(super) shard: u16,
    pub(super) room: Arc<str>,
    pub(super) user: Arc<str>,
    pub(super) presence: bool,
}

#[derive(Debug)]
pub(super) struct Publish {
    pub(super) from: Requester,
    pub(super) room: Arc<str>,
    /// When it came from the client: see [`Time::wrapping_us`](crate::time::Time::wrapping_us).
    pub(super) at_us: u32,
    /// What a newer message has to share with this one to take its place; see docs/ROOMS.md.
    pub(super) key: Option<Box<str>>,
    /// Any JSON value, as it came.
    pub(super) data: Box<str>,
}

#[derive(Debug)]
pub(super) struct Ask {
    pub(super) from: Requester,
    pub(super) room: Arc<str>,
    pub(super) question: Question,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Question {
    Presence,
    /// At most `limit` messages: those next after `after`, or without it the last ones.
    History {
        after: Option<u64>,
        limit: usize,
    },
}

#[derive(Debug)]
pub(super) struct Direct {
    pub(super) from: Requester,
    pub(super) to: Arc<str>,
    /// The event, encoded.
    pub(super) frame: Bytes,
}
