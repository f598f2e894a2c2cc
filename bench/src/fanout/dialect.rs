//! What a dialect is: how the rooms of one kind of server are spoken to. A dialect is bytes and
//! values alone; the connections, the counting and the clock are its user's (`fanout.rs`).

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::centrifuge::Centrifuge;
use super::mqtt::Mqtt;
use super::nats::Nats;
use super::plain::Plain;
use super::pusher::Pusher;
use super::rooms::Rooms;
use super::socketio::SocketIo;
use super::topics::Topics;

/// How the rooms of a server are spoken to.
pub(crate) trait Dialect {
    /// What is the same for all connections.
    fn form(&self) -> Form;

    /// Path and query of the server's entrance, for a URL that has neither.
    fn path(&self) -> String {
        "/".into()
    }

    /// What a connection asks for behind the path of the URL.
    fn path_suffix(&self, _role: Role) -> String {
        String::new()
    }

    /// Appends the first message of a connection, or nothing. `client` tells connections apart.
    fn open(&self, _client: u32, _out: &mut Vec<u8>) {}

    /// Appends the message that joins a room, or nothing, when being connected is enough.
    /// `session` is what [`Event::Ready`] brought.
    fn join(&self, room: u32, session: &[u8], out: &mut Vec<u8>);

    /// Appends the message that publishes `data`, which is letters only; `number` is another for
    /// each.
    fn publish(&self, room: u32, number: u64, data: &[u8], out: &mut Vec<u8>);

    /// Takes one event off the front of what a connection has received, and says how many bytes it
    /// was. `None`: it is not whole; call again with what has arrived since behind it. What the
    /// server wants to hear at once is appended to `answer`; to an [`Event::Ready`] it is said the
    /// first time only. An error is what cannot be understood.
    fn next<'a>(&self, input: &'a [u8], answer: &mut Vec<u8>) -> Next<'a>;
}

/// An event and its length.
pub(crate) type Next<'a> = Result<Option<(Event<'a>, usize)>, String>;

/// What is the same for all connections of a dialect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Of the messages of both sides.
    pub(crate) opcode: u8,
    pub(crate) subprotocol: Option<&'static str>,
    /// The server begins or answers with an [`Event::Ready`], before which nothing is joined.
    pub(crate) greets: bool,
    /// The server says when a member has joined. One that does not is asked by a message to it.
    pub(crate) confirms_joins: bool,
    /// A member that publishes gets its own messages.
    pub(crate) hears_itself: bool,
    /// Only a member may publish.
    pub(crate) publishers_are_members: bool,
    /// A connection is in the room that its path names, and publishes there or listens there.
    pub(crate) room_in_path: bool,
    /// Rooms that there are.
    pub(crate) rooms_max: u32,
    /// What is said on every connection, at least so often.
    pub(crate) keep_alive: Option<(Duration, &'static [u8])>,
}

impl Form {
    /// What most have in common.
    pub(crate) const fn of(opcode: u8) -> Form {
        Form {
            opcode,
            subprotocol: None,
            greets: false,
            confirms_joins: true,
            hears_itself: true,
            publishers_are_members: false,
            room_in_path: false,
            rooms_max: u32::MAX,
            keep_alive: None,
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Is in this room, and perhaps in others.
    Member { room: u32 },
    /// Publishes into a room that it is not in.
    Publisher { room: u32 },
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Rooms can be joined. Holds what the joins need of it.
    Ready(Cow<'a, [u8]>),
    Joined,
    /// A message of a room. Without a number it is in the message.
    Message {
        room: Option<u32>,
        data: Cow<'a, [u8]>,
    },
    /// A request was not done.
    Refused(String),
    /// Of no interest here.
    Other,
}

impl<'a> Event<'a> {
    /// A message that is borrowed from what was received.
    pub(crate) fn message(room: Option<u32>, data: &'a [u8]) -> Event<'a> {
        Event::Message { room, data: Cow::Borrowed(data) }
    }
}

/// The names of rooms: a prefix and their number.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    /// `prefix` is letters, digits and `-`, and differs from one run to the next: what is published
    /// in a room by others would be in our way.
    pub(crate) fn new(prefix: &str) -> Names {
        Names { prefix: prefix.to_owned() }
    }

    /// The prefix, behind another.
    pub(crate) fn prefix_with(&self, first: &str) -> String {
        format!("{first}{}", self.prefix)
    }

    /// Appends the name of a room.
    pub(crate) fn write(&self, room: u32, out: &mut Vec<u8>) {
        write!(out, "{}{room}", self.prefix).expect("memory takes what is written");
    }

    /// The name of a room.
    pub(crate) fn of(&self, room: u32) -> String {
        format!("{}{room}", self.prefix)
    }

    /// The room of this name, if it is one of ours.
    pub(crate) fn read(&self, name: &[u8]) -> Option<u32> {
        self.read_front(name).and_then(|(room, rest)| rest.is_empty().then_some(room))
    }

    /// The same at the front of a text, and what follows.
    pub(crate) fn read_front<'a>(&self, text: &'a [u8]) -> Option<(u32, &'a [u8])> {
        let digits = text.strip_prefix(self.prefix.as_bytes())?;
        let end = digits.iter().take(11).take_while(|byte| byte.is_ascii_digit()).count();
        let room = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        Some((room, &digits[end..]))
    }
}

/// The letters at the front of a text, up to a quote, and what follows the quote. `None` when
/// another character is among them: then it takes a real parser.
pub(crate) fn letters_to_quote(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_alphabetic())?;
    Some((&text[..end], text[end..].strip_prefix(b"\"")?))
}

/// The dialects by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DialectName {
    /// Penstock's own (docs/ROOMS.md).
    Rooms,
    /// One room with everybody in it, of `serve --runtime send-loop`.
    Plain,
    /// A path for each room to listen at, and one to publish at.
    Topics,
    /// Core NATS.
    Nats,
    /// MQTT 3.1.1, QoS 0.
    Mqtt,
    /// Socket.IO 5 on Engine.IO 4, without long polling.
    Socketio,
    /// Pusher Channels, protocol 7, with client events.
    Pusher,
    /// Centrifugal's, in JSON.
    Centrifuge,
}

/// Which dialect, and what it wants to know.
#[derive(Args, Clone, Debug)]
pub(crate) struct DialectOptions {
    /// The protocol that the server speaks.
    #[arg(long, value_enum, default_value_t = DialectName::Rooms)]
    pub(crate) dialect: DialectName,
    /// Of `topics`: where a room's members connect.
    #[arg(long, default_value = "/sub/{room}", value_name = "PATH")]
    subscribe_path: String,
    /// Of `topics`: where its publishers connect.
    #[arg(long, default_value = "/pub/{room}", value_name = "PATH")]
    publish_path: String,
    /// Of `socketio`: emitted with a room's name to join it.
    #[arg(long, default_value = "sub", value_name = "EVENT")]
    join_event: String,
    /// Of `socketio`: emitted with a room's name and the data to publish it.
    #[arg(long, default_value = "pub", value_name = "EVENT")]
    publish_event: String,
    /// Of `socketio`: what the members get, with the data, or with the room's name and the data.
    #[arg(long, default_value = "m", value_name = "EVENT")]
    message_event: String,
    /// Of `socketio`: the server acknowledges joins.
    #[arg(long)]
    join_ack: bool,
    /// Of `socketio`: a member does not get what it publishes itself.
    #[arg(long)]
    except_publisher: bool,
    /// Of `pusher`: the key of the application.
    #[arg(long, default_value = "app-key", value_name = "KEY")]
    pusher_key: String,
    /// Of `pusher`: its secret, which private channels are signed with.
    #[arg(long, default_value = "app-secret", value_name = "SECRET")]
    pusher_secret: String,
    /// Of `pusher`: channels that need no signature. Not every server lets clients publish there.
    #[arg(long)]
    pusher_public: bool,
}

impl DialectOptions {
    /// As it is named on the command line.
    pub(crate) fn name(&self) -> String {
        let value = self.dialect.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The dialect, with rooms of these names.
    pub(crate) fn dialect(&self, names: Names) -> Result<Box<dyn Dialect>, String> {
        Ok(match self.dialect {
            DialectName::Rooms => Box::new(Rooms::new(names)),
            DialectName::Plain => Box::new(Plain),
            DialectName::Topics => {
                Box::new(Topics::new(names, &self.subscribe_path, &self.publish_path)?)
            }
            DialectName::Nats => Box::new(Nats::new(names)),
            DialectName::Mqtt => Box::new(Mqtt::new(names)),
            DialectName::Socketio => {
                let events = [&self.join_event, &self.publish_event, &self.message_event];
                let events = events.map(String::as_str);
                Box::new(SocketIo::new(names, events, self.join_ack, !self.except_publisher)?)
            }
            DialectName::Pusher => {
                let secret = (!self.pusher_public).then_some(self.pusher_secret.as_str());
                Box::new(Pusher::new(names, &self.pusher_key, secret)?)
            }
            DialectName::Centrifuge => Box::new(Centrifuge::new(names)),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reads a stream as one connection would that receives it in two parts, for every cut, and
    /// compares the events, a line each, and what was answered.
    #[track_caller]
    pub(crate) fn check_stream(dialect: &impl Dialect, wire: &[u8], want: &[&str], answers: &[u8]) {
        for cut in 0..=wire.len() {
            let (mut got, mut said) = (Vec::new(), Vec::new());
            let mut held = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                held.extend_from_slice(part);
                let taken = read_all(dialect, &held, &mut got, &mut said);
                held.drain(..taken);
            }
            assert_eq!(got, want, "cut at {cut}");
            assert_eq!(said, answers, "cut at {cut}");
            assert!(held.is_empty(), "cut at {cut}: {held:?}");
        }
    }

    /// Reads a message that comes whole.
    #[track_caller]
    pub(crate) fn check_message(dialect: &impl Dialect, text: &str, want: &[&str], answers: &str) {
        let (mut got, mut said) = (Vec::new(), Vec::new());
        let taken = read_all(dialect, text.as_bytes(), &mut got, &mut said);
        assert_eq!(
            (taken, got),
            (text.len(), want.iter().map(|w| (*w).to_owned()).collect()),
            "{text}"
        );
        assert_eq!(String::from_utf8(said).unwrap(), answers, "{text}");
    }

    fn read_all(
        dialect: &impl Dialect,
        input: &[u8],
        got: &mut Vec<String>,
        said: &mut Vec<u8>,
    ) -> usize {
        let mut taken = 0;
        while taken < input.len() {
            match dialect.next(&input[taken..], said) {
                Ok(None) => break,
                Ok(Some((event, len))) => {
                    assert!(len > 0 && taken + len <= input.len(), "{len} bytes of an event");
                    taken += len;
                    got.push(line(&event));
                }
                Err(error) => {
                    got.push(format!("error {error}"));
                    return input.len();
                }
            }
        }
        taken
    }

    fn line(event: &Event<'_>) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match event {
            Event::Ready(session) => format!("ready {}", text(session)),
            Event::Joined => "joined".into(),
            Event::Message { room: Some(room), data } => format!("{room} {}", text(data)),
            Event::Message { room: None, data } => format!("? {}", text(data)),
            Event::Refused(reason) => format!("refused {reason}"),
            Event::Other => "other".into(),
        }
    }

    /// What a dialect says, as text.
    pub(crate) fn said(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_are_read_back() {
        let names = Names::new("b-");
        for room in [0, 7, 4_294_967_295] {
            assert_eq!(names.read(names.of(room).as_bytes()), Some(room));
        }
        for strange in ["", "b-", "b-x", "c-1", "b-1x", "b-4294967296", "b-+1", "b-99999999999999"]
        {
            assert_eq!(names.read(strange.as_bytes()), None, "{strange}");
        }
        assert_eq!(names.read_front(b"b-12\",x"), Some((12, &b"\",x"[..])));
        assert_eq!(letters_to_quote(b"aZ\",1"), Some((&b"aZ"[..], &b",1"[..])));
        for strange in ["", "ab", "a\\u0062\"", "a1\""] {
            assert_eq!(letters_to_quote(strange.as_bytes()), None, "{strange}");
        }
    }
}
