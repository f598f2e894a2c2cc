//! Socket.IO 5 over Engine.IO 4, by WebSocket alone (socket.io/docs: "The Engine.IO protocol",
//! "The Socket.IO protocol"), in the default namespace. Rooms are the application's own business:
//! the names of three events say how a client joins one, publishes, and gets what was published.
//!
//! A text message is an Engine.IO packet: one digit, and for a message (`4`) a Socket.IO packet,
//! which begins with a digit too.

use std::borrow::Cow;
use std::io::Write;

use serde_json::Value;

use super::dialect::{Dialect, Event, Form, Names, Next, letters_to_quote};
use crate::websocket::TEXT;

/// Rooms of a Socket.IO application.
pub(crate) struct SocketIo {
    names: Names,
    join_event: String,
    publish_event: String,
    message_event: String,
    /// What the usual message begins with.
    message_head: Vec<u8>,
    confirms_joins: bool,
    hears_itself: bool,
}

impl SocketIo {
    /// `events` are the names to join, to publish, and of what comes.
    pub(crate) fn new(
        names: Names,
        events: [&str; 3],
        confirms_joins: bool,
        hears_itself: bool,
    ) -> Result<SocketIo, String> {
        if let Some(bad) = events.iter().find(|event| event.contains(['"', '\\'])) {
            return Err(format!("{bad}: an event's name with quotes or backslashes"));
        }
        let [join_event, publish_event, message_event] = events.map(str::to_owned);
        let message_head = format!("42[\"{message_event}\",\"").into_bytes();
        Ok(SocketIo {
            names,
            join_event,
            publish_event,
            message_event,
            message_head,
            confirms_joins,
            hears_itself,
        })
    }

    /// `42["m","data"]`, and nothing that would take a JSON parser.
    fn read_message<'a>(&self, input: &'a [u8]) -> Option<Event<'a>> {
        let (data, rest) = letters_to_quote(input.strip_prefix(&self.message_head[..])?)?;
        (rest == b"]").then(|| Event::message(None, data))
    }

    /// Any event; `json` is its array.
    fn read_event(&self, json: &[u8]) -> Option<Event<'static>> {
        let json: Value = serde_json::from_slice(json).ok()?;
        let (name, arguments) = json.as_array()?.split_first()?;
        if name.as_str() != Some(&self.message_event) {
            return Some(Event::Other);
        }
        // Behind the data the server may put where to recover from.
        let text = |i: usize| arguments.get(i).and_then(Value::as_str);
        let room = text(0).and_then(|name| self.names.read(name.as_bytes()));
        let data = text(usize::from(room.is_some()))?.as_bytes().to_vec();
        Some(Event::Message { room, data: Cow::Owned(data) })
    }
}

impl Dialect for SocketIo {
    fn form(&self) -> Form {
        Form {
            greets: true,
            confirms_joins: self.confirms_joins,
            hears_itself: self.hears_itself,
            ..Form::of(TEXT)
        }
    }

    fn path(&self) -> String {
        "/socket.io/?EIO=4&transport=websocket".into()
    }

    fn join(&self, room: u32, _session: &[u8], out: &mut Vec<u8>) {
        let acknowledge = if self.confirms_joins { room.to_string() } else { String::new() };
        let name = self.names.of(room);
        write!(out, r#"42{acknowledge}["{}","{name}"]"#, self.join_event)
            .expect("memory takes what is written");
    }

    fn publish(&self, room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        let name = self.names.of(room);
        write!(out, r#"42["{}","{name}",""#, self.publish_event)
            .expect("memory takes what is written");
        out.extend_from_slice(data);
        out.extend_from_slice(b"\"]");
    }

    fn next<'a>(&self, input: &'a [u8], answer: &mut Vec<u8>) -> Next<'a> {
        if let Some(event) = self.read_message(input) {
            return Ok(Some((event, input.len())));
        }
        let event = match input {
            // Open: the default namespace is asked for.
            [b'0', ..] => {
                answer.extend_from_slice(b"40");
                Event::Other
            }
            b"2" => {
                answer.push(b'3');
                Event::Other
            }
            b"6" => Event::Other,
            b"1" | b"41" => Event::Refused("disconnected".into()),
            [b'4', b'0', ..] => Event::Ready(Cow::Borrowed(b"")),
            [b'4', b'2', rest @ ..] => {
                let id = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                self.read_event(&rest[id..]).ok_or("an event that is not as it should be")?
            }
            // Nothing but joins asks for one.
            [b'4', b'3', ..] => Event::Joined,
            [b'4', b'4', rest @ ..] => {
                Event::Refused(String::from_utf8_lossy(rest).chars().take(60).collect())
            }
            _ => return Err("a packet of no type that is expected".into()),
        };
        Ok(Some((event, input.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::dialect::tests::{check_message, said};

    fn socketio(confirms_joins: bool) -> SocketIo {
        SocketIo::new(Names::new("b-"), ["sub", "pub", "m"], confirms_joins, true).unwrap()
    }

    #[test]
    fn requests() {
        let dialect = socketio(false);
        assert_eq!(said(|out| dialect.join(7, b"", out)), r#"42["sub","b-7"]"#);
        assert_eq!(said(|out| dialect.publish(7, 0, b"abc", out)), r#"42["pub","b-7","abc"]"#);
        assert_eq!(said(|out| socketio(true).join(7, b"", out)), r#"427["sub","b-7"]"#);
        for bad in ["a\"b", "a\\b"] {
            let events = ["sub", bad, "m"];
            assert!(SocketIo::new(Names::new("b-"), events, false, true).is_err());
        }
    }

    #[test]
    fn packets() {
        let check = |text: &str, want: &str, answer: &str| {
            check_message(&socketio(true), text, &[want], answer);
        };
        check(r#"0{"sid":"x","upgrades":[],"pingInterval":25000}"#, "other", "40");
        check(r#"40{"sid":"y"}"#, "ready ", "");
        check("2", "other", "3");
        check("6", "other", "");
        check(r#"437["ok"]"#, "joined", "");
        check(r#"42["m","abc"]"#, "? abc", "");
        // Not the short way: a room, spaces, an escape, an offset, an identifier.
        check(r#"42["m","b-7","abc"]"#, "7 abc", "");
        check(r#"42["m", "abc"]"#, "? abc", "");
        check(r#"42["m","\u0061bc"]"#, "? abc", "");
        check(r#"42["m","abc","1795228450488-0"]"#, "? abc", "");
        check(r#"4212["m","abc"]"#, "? abc", "");
        check(r#"42["news",{"a":1}]"#, "other", "");
        check(r#"44{"message":"not authorized"}"#, r#"refused {"message":"not authorized"}"#, "");
        check("41", "refused disconnected", "");
        for strange in ["", "5", "3probe", "45", "4"] {
            assert!(socketio(true).next(strange.as_bytes(), &mut Vec::new()).is_err(), "{strange}");
        }
        for cut in ["42[\"m\",\"abc\"", "42[\"m\",\"abc", "42[\"m\"", "42[\"m\"]", "42", "42[]"] {
            assert!(socketio(true).next(cut.as_bytes(), &mut Vec::new()).is_err(), "{cut}");
        }
    }
}
