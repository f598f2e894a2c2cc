//! The JSON subprotocol: text to requests, and answers and events to WebSocket frames.
//!
//! The first key of what the server sends tells what it is: `event`, `ack` or `error`.
//! docs/ROOMS.md describes all of it for the authors of clients.

use std::borrow::Cow;
use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::names;
use crate::ws::frame::{Opcode, encode_server_header};

use super::answer::Answer;
use super::limits::{NAME_BYTES_MOST, RoomLimits};

/// The name of the subprotocol on the wire (`Sec-WebSocket-Protocol`). To offer it is optional.
pub const SUBPROTOCOL: &str = "penstock.rooms.v1";

/// The longest `id` of a request, as JSON text: a string's quotes and escapes count.
const ID_BYTES_MAX: usize = 64;

/// How deep arrays and objects may nest in `data`. Many receivers parse recursively.
const DATA_DEPTH_MAX: usize = 128;

/// The longest `key` of a publish.
const KEY_BYTES_MAX: usize = 128;

/// How much is sent of what the JSON parser says about a bad request.
const ERROR_TEXT_CHARS_MAX: usize = 240;

/// Every operation, and the fields that belong to it beside `op` and `id`.
pub const OPERATIONS: [(&str, &[&str]); 7] = [
    ("join", &["room", "presence", "resume"]),
    ("leave", &["room"]),
    ("publish", &["room", "key", "data"]),
    ("history", &["room", "after", "limit"]),
    ("presence", &["room"]),
    ("direct", &["to", "data"]),
    ("ping", &[]),
];

/// A place in a room's sequence of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Changes when the room has forgotten its history and counts from 1 again.
    pub(super) epoch: u64,
    /// The last message that was seen; 0 before the first.
    pub(super) offset: u64,
}

/// Why a request was refused. The connection stays open, whatever happens here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The message is not JSON.
    BadJson,
    /// The message is JSON, but not a request: a field is missing, unknown, or of a wrong type.
    BadRequest,
    /// There is no such operation.
    UnknownOp,
    /// The room's name is empty, too long, or has a character that no name may have.
    BadRoom,
    /// The `data` nests deeper than 128 levels.
    TooDeep,
    /// A join of a room the client has joined already.
    AlreadyMember,
    /// An operation on a room the client has not joined.
    NotMember,
    /// `rooms_per_client_max` is reached.
    TooManyMemberships,
    /// `rooms_max` is reached.
    TooManyRooms,
    /// `rooms_made_per_client_max` or `rooms_made_per_address_max` is reached.
    TooManyMade,
    /// Nobody of that name is connected.
    NoSuchUser,
    /// A mailbox on the way is full. Nothing was done.
    Busy,
}

impl ErrorCode {
    /// All codes, for tables.
    pub const ALL: [ErrorCode; 12] = [
        ErrorCode::BadJson,
        ErrorCode::BadRequest,
        ErrorCode::UnknownOp,
        ErrorCode::BadRoom,
        ErrorCode::TooDeep,
        ErrorCode::AlreadyMember,
        ErrorCode::NotMember,
        ErrorCode::TooManyMemberships,
        ErrorCode::TooManyRooms,
        ErrorCode::TooManyMade,
        ErrorCode::NoSuchUser,
        ErrorCode::Busy,
    ];

    /// The code on the wire; it never changes.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::BadJson => "bad_json",
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::UnknownOp => "unknown_op",
            ErrorCode::BadRoom => "bad_room",
            ErrorCode::TooDeep => "too_deep",
            ErrorCode::AlreadyMember => "already_member",
            ErrorCode::NotMember => "not_member",
            ErrorCode::TooManyMemberships => "too_many_memberships",
            ErrorCode::TooManyRooms => "too_many_rooms",
            ErrorCode::TooManyMade => "too_many_made",
            ErrorCode::NoSuchUser => "no_such_user",
            ErrorCode::Busy => "busy",
        }
    }

    /// What is wrong and what to do, where no better sentence is at hand.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            ErrorCode::BadJson => "The message is not JSON; send one JSON object per text message.",
            ErrorCode::BadRequest => {
                "The request has a wrong field; see the protocol's description."
            }
            ErrorCode::UnknownOp => {
                "There is no such op; use join, leave, publish, history, presence, direct or ping."
            }
            ErrorCode::BadRoom => {
                "The room's name is empty, too long or has hidden characters; choose another."
            }
            ErrorCode::TooDeep => "The data nests deeper than 128 levels; send it flatter.",
            ErrorCode::AlreadyMember => {
                "This connection has joined the room already; leave it first."
            }
            ErrorCode::NotMember => "This connection is not in the room; join it first.",
            ErrorCode::TooManyMemberships => {
                "This connection is in as many rooms as it may; leave one first."
            }
            ErrorCode::TooManyRooms => "The server holds as many rooms as it may; try again later.",
            ErrorCode::TooManyMade => {
                "This connection or its address has made as many rooms as it may; each counts until \
                 it is empty and forgotten."
            }
            ErrorCode::NoSuchUser => "Nobody of that name is connected; nothing was sent.",
            ErrorCode::Busy => "The server is busy and did nothing; try again in a moment.",
        }
    }
}

/// A request that may be relied on: names are clean, names and depth within bounds.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// As JSON text, to be echoed.
    pub(super) id: Option<&'a str>,
    pub(super) operation: Operation<'a>,
}

#[derive(Debug)]
pub(super) enum Operation<'a> {
    Join { room: Cow<'a, str>, presence: bool, resume: Option<Position> },
    Leave { room: Cow<'a, str> },
    Publish { room: Cow<'a, str>, key: Option<Cow<'a, str>>, data: &'a str },
    Presence { room: Cow<'a, str> },
    History { room: Cow<'a, str>, after: Option<u64>, limit: usize },
    Direct { to: Cow<'a, str>, data: &'a str },
    Ping,
}

/// What `decode` found wrong.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    pub(super) code: ErrorCode,
    pub(super) sentence: Cow<'static, str>,
    pub(super) id: Option<&'a str>,
}

/// Every field of every operation; which of them belong together is checked by `decode`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    op: Text<'a>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    room: Option<Text<'a>>,
    #[serde(borrow, default)]
    to: Option<Text<'a>>,
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    data: Option<&'a RawValue>,
    #[serde(default)]
    presence: Option<bool>,
    #[serde(borrow, default)]
    resume: Option<&'a RawValue>,
    #[serde(default)]
    after: Option<u64>,
    #[serde(default)]
    limit: Option<u64>,
}

/// Text that is only copied when it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resume<'a> {
    #[serde(borrow)]
    epoch: Text<'a>,
    offset: u64,
}

/// The one field that an error should still echo when the others are wrong.
#[derive(Deserialize)]
struct OnlyId<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// A `null` in `data` is a value like any other, not the absence of one.
fn even_null<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads one text message.
pub(super) fn decode<'a>(
    payload: &'a [u8],
    limits: &RoomLimits,
) -> Result<Request<'a>, Refusal<'a>> {
    let refuse = |code: ErrorCode, sentence: Cow<'static, str>, id| Refusal { code, sentence, id };
    let Ok(text) = std::str::from_utf8(payload) else {
        return Err(refuse(ErrorCode::BadJson, ErrorCode::BadJson.sentence().into(), None));
    };
    let fields: Fields = match serde_json::from_str(text) {
        // The fields in an array, in their order, would be read as well.
        Ok(_) if !is_object(text) => {
            return Err(refuse(ErrorCode::BadRequest, NOT_AN_OBJECT.into(), None));
        }
        Ok(fields) => fields,
        Err(error) => {
            let only: Option<OnlyId> = serde_json::from_str(text).ok();
            let id = only.and_then(|only| checked_id(only.id).ok().flatten());
            let (code, hint) = match error.classify() {
                Category::Data => (ErrorCode::BadRequest, "mend the request"),
                _ => (ErrorCode::BadJson, "send one JSON object per text message"),
            };
            let found = found(&error);
            return Err(refuse(code, format!("{found}; {hint}.").into(), id));
        }
    };
    let id = checked_id(fields.id)
        .map_err(|sentence| refuse(ErrorCode::BadRequest, sentence.into(), None))?;
    decode_fields(fields, limits)
        .map(|operation| Request { id, operation })
        .map_err(|(code, sentence)| refuse(code, sentence, id))
}

/// What the parser found, cut short: it may quote a name as long as the message.
fn found(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.char_indices().map(|(index, _)| index).nth(ERROR_TEXT_CHARS_MAX);
    text[..end.unwrap_or(text.len())].to_string()
}

const NOT_AN_OBJECT: &str = "A request and its `resume` are JSON objects; send {...}.";

fn is_object(json: &str) -> bool {
    json.trim_ascii_start().starts_with('{')
}

fn checked_id(id: Option<&RawValue>) -> Result<Option<&str>, &'static str> {
    let Some(id) = id.map(RawValue::get) else { return Ok(None) };
    if !id.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit()) {
        return Err("The id must be a number or a string.");
    }
    if id.len() > ID_BYTES_MAX {
        return Err("The id is longer than 64 bytes; choose a shorter one.");
    }
    Ok(Some(id))
}

type FieldError = (ErrorCode, Cow<'static, str>);

fn decode_fields<'a>(fields: Fields<'a>, limits: &RoomLimits) -> Result<Operation<'a>, FieldError> {
    let op = fields.op.0;
    let Some((_, allowed)) = OPERATIONS.iter().find(|(name, _)| *name == op) else {
        return Err((ErrorCode::UnknownOp, ErrorCode::UnknownOp.sentence().into()));
    };
    let given = [
        ("room", fields.room.is_some()),
        ("to", fields.to.is_some()),
        ("key", fields.key.is_some()),
        ("data", fields.data.is_some()),
        ("presence", fields.presence.is_some()),
        ("resume", fields.resume.is_some()),
        ("after", fields.after.is_some()),
        ("limit", fields.limit.is_some()),
    ];
    for (name, given) in given {
        if given && !allowed.contains(&name) {
            return Err(bad(format!("The field `{name}` does not belong to op `{op}`; omit it.")));
        }
    }
    let missing = |name: &str| bad(format!("The op `{op}` needs the field `{name}`."));

    let room = |text: Option<Text<'a>>| {
        let name = text.ok_or_else(|| missing("room"))?.0;
        names::clean(name, limits.room_name_bytes_max).map_err(|error| {
            let sentence = format!("The room's name {error}; choose another.");
            (ErrorCode::BadRoom, sentence.into())
        })
    };
    let data = |value: Option<&'a RawValue>| {
        let text = value.ok_or_else(|| missing("data"))?.get();
        match depth(text.as_bytes()) > DATA_DEPTH_MAX {
            true => Err((ErrorCode::TooDeep, ErrorCode::TooDeep.sentence().into())),
            false => Ok(text),
        }
    };
    Ok(match &*op {
        "join" => Operation::Join {
            room: room(fields.room)?,
            presence: fields.presence.unwrap_or(false),
            resume: fields.resume.map(decode_resume).transpose()?,
        },
        "leave" => Operation::Leave { room: room(fields.room)? },
        "presence" => Operation::Presence { room: room(fields.room)? },
        "publish" => Operation::Publish {
            room: room(fields.room)?,
            key: fields.key.map(decode_key).transpose()?,
            data: data(fields.data)?,
        },
        "history" => Operation::History {
            room: room(fields.room)?,
            after: fields.after,
            // More than is kept is the same as all.
            limit: fields
                .limit
                .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        },
        "direct" => {
            let to = fields.to.ok_or_else(|| missing("to"))?.0;
            let data = data(fields.data)?;
            // Nobody has a name that is not clean. How long they may be can have been lowered since.
            let to = names::clean(to, NAME_BYTES_MOST)
                .map_err(|_| (ErrorCode::NoSuchUser, ErrorCode::NoSuchUser.sentence().into()))?;
            Operation::Direct { to, data }
        }
        _ => Operation::Ping,
    })
}

fn bad(sentence: String) -> FieldError {
    (ErrorCode::BadRequest, sentence.into())
}

fn decode_key(key: Text<'_>) -> Result<Cow<'_, str>, FieldError> {
    match key.0.len() {
        1..=KEY_BYTES_MAX => Ok(key.0),
        _ => Err(bad("The `key` must be 1 to 128 bytes; choose another, or omit it.".into())),
    }
}

/// An epoch is opaque to clients: any text is a legal one, and text that we never issued is an
/// epoch that has passed (0 is never issued).
fn decode_resume(json: &RawValue) -> Result<Position, FieldError> {
    if !is_object(json.get()) {
        return Err((ErrorCode::BadRequest, NOT_AN_OBJECT.into()));
    }
    let resume: Resume = serde_json::from_str(json.get())
        .map_err(|error| bad(format!("In `resume`: {}; mend the request.", found(&error))))?;
    let epoch = u64::from_str_radix(&resume.epoch.0, 16).unwrap_or(0);
    Ok(Position { epoch, offset: resume.offset })
}

/// How deep arrays and objects nest in valid JSON.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth -= 1,
            b'"' => loop {
                match bytes.next() {
                    Some(b'\\') => drop(bytes.next()),
                    Some(b'"') | None => break,
                    Some(_) => {}
                }
            },
            _ => {}
        }
    }
    deepest
}

/// What a frame is to a member that does not keep up.
#[derive(Debug, PartialEq, Eq)]
pub enum Heading<'a> {
    /// A message of a room: it may be dropped, if a gap event tells.
    Message {
        /// The room's name as JSON text.
        room: &'a [u8],
        /// Its number in the room.
        offset: u64,
        /// Where in the frame its key stands, as JSON text.
        key: Option<Range<usize>>,
    },
    /// The answer to a join: from here on offsets may begin anew.
    Join {
        /// The room's name as JSON text.
        room: &'a [u8],
    },
    /// Anything else that a client is sent.
    Other,
}

/// Tells what a frame is that [`Object`] made. Frames carry it in the order in which they are
/// written here (`home.rs`), so nothing needs to be kept beside them for members that keep up.
pub fn heading(frame: &[u8]) -> Heading<'_> {
    // The longest header, so that `payload` finds its way.
    if frame.len() < 10 {
        return Heading::Other;
    }
    message_heading(frame).or_else(|| join_heading(frame)).unwrap_or(Heading::Other)
}

fn message_heading(frame: &[u8]) -> Option<Heading<'_>> {
    let rest = payload(frame).strip_prefix(br#"{"event":"message","room":"#)?;
    let (room, rest) = rest.split_at(string_bytes(rest)?);
    let rest = rest.strip_prefix(br#","offset":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (offset, rest) = rest.split_at(digits);
    let offset = std::str::from_utf8(offset).ok()?.parse().ok()?;
    let key = rest.strip_prefix(br#","key":"#).and_then(|rest| {
        let start = frame.len() - rest.len();
        Some(start..start + string_bytes(rest)?)
    });
    Some(Heading::Message { room, offset, key })
}

fn join_heading(frame: &[u8]) -> Option<Heading<'_>> {
    let rest = payload(frame).strip_prefix(br#"{"ack":"#)?;
    // The id is a string, a number or null.
    let id_bytes = string_bytes(rest).or_else(|| rest.iter().position(|byte| *byte == b','))?;
    let rest = rest[id_bytes..].strip_prefix(br#","op":"join","room":"#)?;
    Some(Heading::Join { room: &rest[..string_bytes(rest)?] })
}

/// The length of the JSON string at the front of `json`, quotes included.
fn string_bytes(json: &[u8]) -> Option<usize> {
    let mut bytes = json.iter().enumerate();
    bytes.next().filter(|(_, byte)| **byte == b'"')?;
    while let Some((index, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// The event that stands for the messages `from` to `to` of a room, both included, which its member
/// does not get. `room` is the name as JSON text.
pub fn gap_frame(room: &[u8], from: u64, to: u64) -> Bytes {
    Object::event("gap").raw("room", room).number("from", from).number("to", to).into_frame()
}

/// The length of that frame, for a name of `room_bytes` as JSON text.
pub fn gap_frame_bytes(room_bytes: usize, from: u64, to: u64) -> usize {
    let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 1;
    let fixed = br#"{"event":"gap","room":,"from":,"to":}"#.len();
    let payload_bytes = fixed + room_bytes + digits(from) + digits(to);
    header_bytes(payload_bytes) + payload_bytes
}

/// The text frame `{"event":"ping"}`: sent with the protocol's own ping, which a page in a
/// browser cannot see, so that it can tell a silent link from a dead one.
pub fn ping_frame() -> Bytes {
    // FIN and text, then the length: 16 bytes.
    Bytes::from_static(b"\x81\x10{\"event\":\"ping\"}")
}

/// A server message under construction: one JSON object.
pub(super) struct Object {
    /// The pieces before `tail`, as an [`Answer`] has them.
    pieces: Vec<Bytes>,
    /// Bytes of those that nobody else holds.
    own_bytes: usize,
    /// What is being written.
    tail: Vec<u8>,
}

/// A message of this size is shared by the answers that bring it, a smaller one is copied: a piece costs
/// [`size_of::<Bytes>()`], its count of holders and a part in a send.
const SHARED_BYTES_MIN: usize = 256;

impl Object {
    fn with_capacity(bytes: usize) -> Object {
        Object { pieces: Vec::new(), own_bytes: 0, tail: Vec::with_capacity(bytes) }
    }

    /// `{"event":"name"`
    pub(super) fn event(name: &str) -> Object {
        let mut object = Object::with_capacity(128);
        object.tail.extend_from_slice(b"{\"event\":");
        object.push_text(name);
        object
    }

    /// `{"ack":id,"op":"name"`
    pub(super) fn ack(id: Option<&str>, op: &str) -> Object {
        let mut object = Object::with_capacity(128);
        object.tail.extend_from_slice(b"{\"ack\":");
        object.tail.extend_from_slice(id.unwrap_or("null").as_bytes());
        object.text("op", op)
    }

    pub(super) fn text(mut self, key: &str, value: &str) -> Object {
        self.key(key);
        self.push_text(value);
        self
    }

    pub(super) fn number(mut self, key: &str, value: u64) -> Object {
        self.key(key);
        write!(self.tail, "{value}").expect("a vector takes all that is written");
        self
    }

    pub(super) fn flag(mut self, key: &str, value: bool) -> Object {
        self.key(key);
        self.tail.extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// Text, because numbers above 2^53 do not survive JavaScript.
    pub(super) fn epoch(mut self, epoch: u64) -> Object {
        self.key("epoch");
        write!(self.tail, "\"{epoch:016x}\"").expect("a vector takes all that is written");
        self
    }

    /// `json` is one JSON value.
    pub(super) fn raw(mut self, key: &str, json: &[u8]) -> Object {
        self.key(key);
        self.tail.extend_from_slice(json);
        self
    }

    /// Messages as [`Object::into_kept`] made them. The large ones are shared.
    pub(super) fn messages<'k>(mut self, kept: impl Iterator<Item = &'k Bytes>) -> Object {
        self.key("messages");
        self.tail.push(b'[');
        let mut kept = kept.peekable();
        while let Some(message) = kept.next() {
            let start = message.len() - payload(message).len();
            let end = message.len() - usize::from(kept.peek().is_none());
            if end - start < SHARED_BYTES_MIN {
                self.tail.extend_from_slice(&message[start..end]);
            } else {
                self.end_piece();
                self.pieces.push(message.slice(start..end));
            }
        }
        self.tail.push(b']');
        self
    }

    /// What has been written is a piece.
    fn end_piece(&mut self) {
        if !self.tail.is_empty() {
            let piece = std::mem::take(&mut self.tail).into_boxed_slice();
            self.own_bytes += piece.len();
            self.pieces.push(piece.into());
        }
    }

    pub(super) fn texts<'i>(mut self, key: &str, items: impl Iterator<Item = &'i str>) -> Object {
        self.key(key);
        self.tail.push(b'[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.tail.push(b',');
            }
            self.push_text(item);
        }
        self.tail.push(b']');
        self
    }

    /// The finished frame, header included, in an allocation of exactly its size: history keeps
    /// frames, and slack would be kept with them.
    pub(super) fn into_frame(self) -> Bytes {
        self.into_whole(b"")
    }

    /// The finished frame with a comma behind it, as histories keep it: an answer lists it with the comma.
    pub(super) fn into_kept(self) -> Bytes {
        self.into_whole(b",")
    }

    fn into_whole(mut self, behind: &[u8]) -> Bytes {
        debug_assert!(self.pieces.is_empty(), "an object with messages is an answer");
        self.tail.push(b'}');
        let header_bytes = header_bytes(self.tail.len());
        let mut frame = Vec::with_capacity(header_bytes + self.tail.len() + behind.len());
        encode_server_header(&mut frame, Opcode::Text, self.tail.len());
        frame.extend_from_slice(&self.tail);
        frame.extend_from_slice(behind);
        Bytes::from(frame)
    }

    /// The finished frame as it goes to one client alone.
    pub(super) fn into_answer(mut self) -> Answer {
        if self.pieces.is_empty() {
            return self.into_frame().into();
        }
        self.tail.push(b'}');
        self.end_piece();
        let payload_bytes: usize = self.pieces.iter().map(Bytes::len).sum();
        // The first is what the object begins with, so it is our own.
        let first = &mut self.pieces[0];
        let header_bytes = header_bytes(payload_bytes);
        let mut headed = Vec::with_capacity(header_bytes + first.len());
        encode_server_header(&mut headed, Opcode::Text, payload_bytes);
        headed.extend_from_slice(first);
        *first = headed.into();
        Answer::new(self.pieces, self.own_bytes + header_bytes)
    }

    fn key(&mut self, key: &str) {
        self.tail.push(b',');
        self.push_text(key);
        self.tail.push(b':');
    }

    fn push_text(&mut self, text: &str) {
        serde_json::to_writer(&mut self.tail, text).expect("a vector takes all that is written");
    }
}

/// An error frame.
pub(super) fn error_frame(code: ErrorCode, sentence: &str, id: Option<&str>) -> Bytes {
    let mut inner = Vec::with_capacity(128);
    inner.extend_from_slice(b"{\"code\":\"");
    inner.extend_from_slice(code.name().as_bytes());
    inner.extend_from_slice(b"\",\"message\":");
    serde_json::to_writer(&mut inner, sentence).expect("a vector takes all that is written");
    inner.push(b'}');
    let mut object = Object::with_capacity(inner.len() + 32);
    object.tail.extend_from_slice(b"{\"error\":");
    object.tail.extend_from_slice(&inner);
    object.raw("id", id.unwrap_or("null").as_bytes()).into_frame()
}

/// The JSON inside a frame that `into_frame` made.
pub(super) fn payload(frame: &[u8]) -> &[u8] {
    // The 7-bit length tells how the length is encoded, and so where the payload begins (§5.2).
    match frame[1] {
        126 => &frame[4..],
        127 => &frame[10..],
        _ => &frame[2..],
    }
}

fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}
