//! The protocol of Centrifugo and Centrifuge, in JSON (centrifugal.dev/docs/transports/client_protocol):
//! one or several replies in a text message, a line each. The server pings with an empty reply.

use std::borrow::Cow;
use std::io::Write;

use serde_json::Value;

use super::dialect::{Dialect, Event, Form, Names, Next, letters_to_quote};
use crate::websocket::TEXT;

/// Channels of a Centrifuge server.
pub(crate) struct Centrifuge {
    names: Names,
}

/// What a usual publication begins with, up to the name of its channel.
const MESSAGE_HEAD: &[u8] = br#"{"push":{"channel":""#;

impl Centrifuge {
    pub(crate) fn new(names: Names) -> Centrifuge {
        Centrifuge { names }
    }

    /// A publication in the form in which the server writes it.
    fn read_message<'a>(&self, line: &'a [u8]) -> Option<Event<'a>> {
        let (room, rest) = self.names.read_front(line.strip_prefix(MESSAGE_HEAD)?)?;
        let (data, rest) = letters_to_quote(rest.strip_prefix(br#"","pub":{"data":""#)?)?;
        (rest == b"}}}").then(|| Event::message(Some(room), data))
    }

    fn read_json(&self, line: &[u8], answer: &mut Vec<u8>) -> Option<Event<'static>> {
        let json: Value = serde_json::from_slice(line).ok()?;
        let reply = json.as_object()?;
        if let Some(error) = reply.get("error") {
            return Some(Event::Refused(format!("error {} {}", error["code"], error["message"])));
        }
        if let Some(push) = reply.get("push") {
            if let Some(disconnect) = push.get("disconnect") {
                return Some(Event::Refused(format!("disconnect {}", disconnect["code"])));
            }
            let Some(publication) = push.get("pub") else { return Some(Event::Other) };
            let room = self.names.read(push["channel"].as_str()?.as_bytes())?;
            let data = publication["data"].as_str()?.as_bytes().to_vec();
            return Some(Event::Message { room: Some(room), data: Cow::Owned(data) });
        }
        if reply.is_empty() {
            answer.extend_from_slice(b"{}");
            return Some(Event::Other);
        }
        reply.get("id")?;
        Some(if reply.contains_key("connect") {
            Event::Ready(Cow::Borrowed(b""))
        } else if reply.contains_key("subscribe") {
            Event::Joined
        } else {
            Event::Other
        })
    }
}

impl Dialect for Centrifuge {
    fn form(&self) -> Form {
        Form { greets: true, ..Form::of(TEXT) }
    }

    fn path(&self) -> String {
        "/connection/websocket".into()
    }

    fn open(&self, _client: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"id":1,"connect":{"name":"penstock-bench"}}"#);
    }

    fn join(&self, room: u32, _session: &[u8], out: &mut Vec<u8>) {
        let id = u64::from(room) + 2;
        write!(out, r#"{{"id":{id},"subscribe":{{"channel":""#).expect("memory takes it");
        self.names.write(room, out);
        out.extend_from_slice(br#""}}"#);
    }

    fn publish(&self, room: u32, number: u64, data: &[u8], out: &mut Vec<u8>) {
        // Identifiers have 32 bits and are not 0; nothing waits for this one.
        let id = number as u32 | 1;
        write!(out, r#"{{"id":{id},"publish":{{"channel":""#).expect("memory takes it");
        self.names.write(room, out);
        out.extend_from_slice(br#"","data":""#);
        out.extend_from_slice(data);
        out.extend_from_slice(br#""}}"#);
    }

    fn next<'a>(&self, input: &'a [u8], answer: &mut Vec<u8>) -> Next<'a> {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let (line, taken) = (&input[..end], input.len().min(end + 1));
        self.read_message(line)
            .or_else(|| self.read_json(line, answer))
            .map(|event| Some((event, taken)))
            .ok_or_else(|| "a reply that is none of Centrifuge".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::dialect::tests::{check_message, said};

    fn centrifuge() -> Centrifuge {
        Centrifuge::new(Names::new("b-"))
    }

    #[test]
    fn requests() {
        let dialect = centrifuge();
        let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let id = |text: String| parse(text)["id"].as_u64().unwrap();
        assert_eq!(parse(said(|out| dialect.open(3, out)))["id"], 1);
        let join = said(|out| dialect.join(7, b"", out));
        assert_eq!(join, r#"{"id":9,"subscribe":{"channel":"b-7"}}"#);
        let publish = said(|out| dialect.publish(7, 3, b"abc", out));
        assert_eq!(publish, r#"{"id":3,"publish":{"channel":"b-7","data":"abc"}}"#);
        for number in [0, 1 << 32, u64::MAX] {
            let id = id(said(|out| dialect.publish(7, number, b"abc", out)));
            assert!(id > 0 && id <= u64::from(u32::MAX), "{id}");
        }
    }

    #[test]
    fn replies() {
        let check = |text: &str, want: &[&str], answer: &str| {
            check_message(&centrifuge(), text, want, answer);
        };
        check(r#"{"id":1,"connect":{"client":"x","ping":25,"pong":true}}"#, &["ready "], "");
        check(r#"{"id":9,"subscribe":{}}"#, &["joined"], "");
        check(r#"{"id":3,"publish":{}}"#, &["other"], "");
        check("{}", &["other"], "{}");
        check(
            r#"{"id":9,"error":{"code":103,"message":"permission denied"}}"#,
            &[r#"refused error 103 "permission denied""#],
            "",
        );
        check(r#"{"push":{"disconnect":{"code":3000}}}"#, &["refused disconnect 3000"], "");
        check(r#"{"push":{"channel":"b-7","join":{}}}"#, &["other"], "");
        let usual = r#"{"push":{"channel":"b-7","pub":{"data":"abc"}}}"#;
        check(usual, &["7 abc"], "");
        // Not the short way.
        check(r#"{"push":{"channel":"b-7","pub":{"data":"abc","offset":5}}}"#, &["7 abc"], "");
        check(r#"{"push":{"pub":{"data":"abc"},"channel":"b-7"}}"#, &["7 abc"], "");
        check(r#"{"push":{"channel":"b-7","pub":{"data":"\u0061bc"}}}"#, &["7 abc"], "");
        // Several in one message, with a newline at the end or without.
        check(&format!("{usual}\n{{}}\n{usual}"), &["7 abc", "other", "7 abc"], "{}");
        check(&format!("{usual}\n{usual}\n"), &["7 abc", "7 abc"], "");
    }

    #[test]
    fn what_is_not_understood() {
        let usual = r#"{"push":{"channel":"b-7","pub":{"data":"abc"}}}"#;
        let strange = ["[]", "{\"a\":1}", "\n", r#"{"push":{"channel":"c-7","pub":{"data":"a"}}}"#];
        for text in strange.into_iter().chain((1..usual.len()).map(|cut| &usual[..cut])) {
            assert!(centrifuge().next(text.as_bytes(), &mut Vec::new()).is_err(), "{text}");
        }
    }
}
