//! The gateway's own protocol, `penstock.rooms.v1`: JSON in text messages.

use std::borrow::Cow;

use serde_json::Value;

use super::dialect::{Dialect, Event, Form, Names, Next};
use crate::websocket::TEXT;

/// Rooms of this protocol.
pub(crate) struct Rooms {
    names: Names,
}

impl Rooms {
    pub(crate) fn new(names: Names) -> Rooms {
        Rooms { names }
    }

    /// Reads a message event in the form in which the gateway writes it. Most of what the tool
    /// receives is that, and a JSON parser would take more time than all the rest.
    fn read_message<'a>(&self, payload: &'a [u8]) -> Option<Event<'a>> {
        let rest = payload.strip_prefix(br#"{"event":"message","room":""#)?;
        let (room, rest) = self.names.read_front(rest)?;
        let rest = rest.strip_prefix(br#"","offset":"#)?;
        // Our data is letters, so the last quote but one is where it begins.
        let rest = rest.strip_suffix(br#""}"#)?;
        let start = rest.iter().rposition(|byte| *byte == b'"')? + 1;
        let data = &rest[start..];
        let is_data = rest[..start].ends_with(br#","data":""#) && !data.contains(&b'\\');
        is_data.then_some(Event::message(Some(room), data))
    }

    /// Reads any message.
    fn read_json(&self, payload: &[u8]) -> Option<Event<'static>> {
        let json: Value = serde_json::from_slice(payload).ok()?;
        if let Some(error) = json.get("error") {
            return Some(Event::Refused(error["code"].as_str()?.to_owned()));
        }
        if json.get("ack").is_some() {
            return Some(if json["op"] == "join" { Event::Joined } else { Event::Other });
        }
        if json["event"].as_str()? != "message" {
            return Some(Event::Other);
        }
        let room = self.names.read(json["room"].as_str()?.as_bytes())?;
        let data = json["data"].as_str()?.as_bytes().to_vec();
        Some(Event::Message { room: Some(room), data: Cow::Owned(data) })
    }
}

impl Dialect for Rooms {
    fn form(&self) -> Form {
        Form::of(TEXT)
    }

    fn join(&self, room: u32, _session: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"op":"join","room":""#);
        self.names.write(room, out);
        out.extend_from_slice(br#""}"#);
    }

    fn publish(&self, room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"op":"publish","room":""#);
        self.names.write(room, out);
        out.extend_from_slice(br#"","data":""#);
        out.extend_from_slice(data);
        out.extend_from_slice(br#""}"#);
    }

    fn next<'a>(&self, input: &'a [u8], _answer: &mut Vec<u8>) -> Next<'a> {
        self.read_message(input)
            .or_else(|| self.read_json(input))
            .map(|event| Some((event, input.len())))
            .ok_or_else(|| "a message that docs/ROOMS.md does not know".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::fanout::dialect::tests::{check_message, said};

    fn rooms() -> Rooms {
        Rooms::new(Names::new("b-"))
    }

    #[test]
    fn requests() {
        let rooms = rooms();
        assert_eq!(said(|out| rooms.join(7, b"", out)), r#"{"op":"join","room":"b-7"}"#);
        let publish = said(|out| rooms.publish(4_000_000_000, 0, b"abc", out));
        assert_eq!(publish, r#"{"op":"publish","room":"b-4000000000","data":"abc"}"#);
    }

    #[test]
    fn answers_and_events() {
        let check = |text: &str, want: &str| check_message(&rooms(), text, &[want], "");
        check(r#"{"event":"welcome","protocol":"penstock.rooms.v1"}"#, "other");
        check(r#"{"event":"ping"}"#, "other");
        check(r#"{"ack":null,"op":"join","room":"b-1","epoch":"0","offset":0}"#, "joined");
        check(r#"{"ack":null,"op":"leave","room":"b-1"}"#, "other");
        check(r#"{"error":{"code":"busy","message":"later"}}"#, "refused busy");
        // The last is what a server that echoes would answer.
        for strange in ["{", "[]", r#"{"event":"message"}"#, r#"{"op":"join","room":"b-1"}"#] {
            assert!(rooms().next(strange.as_bytes(), &mut Vec::new()).is_err(), "{strange}");
        }
    }

    #[test]
    fn the_short_way_and_json_agree() {
        let rooms = rooms();
        let usual =
            r#"{"event":"message","room":"b-12","offset":3,"user":"g","time":9,"data":"abc"}"#;
        let short = rooms.read_message(usual.as_bytes());
        assert_eq!(short, Some(Event::message(Some(12), b"abc")));
        assert_eq!(short, rooms.read_json(usual.as_bytes()));
        // Cut anywhere it is neither; the short way must not see more in it than there is.
        for cut in 0..usual.len() {
            assert_eq!(rooms.read_message(&usual.as_bytes()[..cut]), None, "cut at {cut}");
        }
        for unusual in [
            r#"{"room":"b-12","event":"message","data":"abc"}"#,
            r#"{"event":"message","room":"b-12","offset":3,"data":"abc","more":1}"#,
            r#"{"event":"message","room":"b-12","offset":3,"data":"ab\u0063"}"#,
        ] {
            assert_eq!(rooms.read_message(unusual.as_bytes()), None, "{unusual}");
            check_message(&rooms, unusual, &["12 abc"], "");
        }
    }
}
