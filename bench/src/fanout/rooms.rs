//! The gateway's own protocol, `penstock.rooms.v1`: JSON in text messages.

use std::borrow::Cow;

use serde_json::Value;

use super::{Dialect, Event};

/// Rooms of this protocol, whose names are a prefix and their number.
pub(crate) struct Rooms {
    prefix: String,
}

impl Rooms {
    /// `prefix` is letters, digits and `-`, and differs from one run to the next: what is published
    /// in a room by others would be in our way.
    pub(crate) fn new(prefix: &str) -> Rooms {
        Rooms { prefix: prefix.to_owned() }
    }

    /// Reads a message event in the form in which the gateway writes it. Most of what the tool
    /// receives is that, and a JSON parser would take more time than all the rest.
    fn read_message<'a>(&self, payload: &'a [u8]) -> Option<Event<'a>> {
        let rest = payload.strip_prefix(br#"{"event":"message","room":""#)?;
        let rest = rest.strip_prefix(self.prefix.as_bytes())?;
        let digits = rest.iter().take(11).position(|byte| !byte.is_ascii_digit())?;
        let room = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        let rest = rest[digits..].strip_prefix(br#"","offset":"#)?;
        // Our data is letters, so the last quote but one is where it begins.
        let rest = rest.strip_suffix(br#""}"#)?;
        let start = rest.iter().rposition(|byte| *byte == b'"')? + 1;
        let data = &rest[start..];
        let is_data = rest[..start].ends_with(br#","data":""#) && !data.contains(&b'\\');
        is_data.then_some(Event::Message { room, data: Cow::Borrowed(data) })
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
        let room = json["room"].as_str()?.strip_prefix(&self.prefix)?.parse().ok()?;
        let data = json["data"].as_str()?.as_bytes().to_vec();
        Some(Event::Message { room, data: Cow::Owned(data) })
    }
}

impl Dialect for Rooms {
    fn join(&self, room: u32, out: &mut Vec<u8>) {
        let prefix = &self.prefix;
        out.extend_from_slice(format!(r#"{{"op":"join","room":"{prefix}{room}"}}"#).as_bytes());
    }

    fn publish(&self, room: u32, data: &[u8], out: &mut Vec<u8>) {
        let prefix = &self.prefix;
        let head = format!(r#"{{"op":"publish","room":"{prefix}{room}","data":""#);
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(br#""}"#);
    }

    fn read<'a>(&self, payload: &'a [u8]) -> Result<Event<'a>, String> {
        self.read_message(payload)
            .or_else(|| self.read_json(payload))
            .ok_or_else(|| "a message that docs/ROOMS.md does not know".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_json() {
        let rooms = Rooms::new("bench-1-");
        let (mut join, mut publish) = (Vec::new(), Vec::new());
        rooms.join(7, &mut join);
        rooms.publish(4_000_000_000, b"abc", &mut publish);
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(parse(&join), serde_json::json!({ "op": "join", "room": "bench-1-7" }));
        let want = serde_json::json!({
            "op": "publish", "room": "bench-1-4000000000", "data": "abc"
        });
        assert_eq!(parse(&publish), want);
    }

    #[test]
    fn answers_and_events() {
        let rooms = Rooms::new("b-");
        let check = |text: &'static str, want: Event<'_>| {
            assert_eq!(rooms.read(text.as_bytes()), Ok(want), "{text}");
        };
        check(r#"{"event":"welcome","protocol":"penstock.rooms.v1"}"#, Event::Other);
        check(r#"{"event":"ping"}"#, Event::Other);
        check(r#"{"ack":null,"op":"join","room":"b-1","epoch":"0","offset":0}"#, Event::Joined);
        check(r#"{"ack":null,"op":"leave","room":"b-1"}"#, Event::Other);
        let refused = Event::Refused("busy".into());
        check(r#"{"error":{"code":"busy","message":"later"}}"#, refused);
        // The last is what a server that echoes would answer.
        for strange in ["{", "[]", r#"{"event":"message"}"#, r#"{"op":"join","room":"b-1"}"#] {
            assert!(rooms.read(strange.as_bytes()).is_err(), "{strange}");
        }
    }

    #[test]
    fn the_short_way_and_json_agree() {
        let rooms = Rooms::new("b-");
        let usual =
            r#"{"event":"message","room":"b-12","offset":3,"user":"g","time":9,"data":"abc"}"#;
        let short = rooms.read_message(usual.as_bytes());
        assert_eq!(short, Some(Event::Message { room: 12, data: Cow::Borrowed(b"abc") }));
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
            assert_eq!(rooms.read(unusual.as_bytes()).ok(), short, "{unusual}");
        }
    }
}
