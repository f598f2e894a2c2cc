//! Pusher Channels, protocol 7 (pusher.com/docs/channels/library_auth_reference): JSON in text
//! messages. Members publish by client events, which a server passes to all others in the channel;
//! such channels are private, and joined with a signature over the number of the connection.

use std::borrow::Cow;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::dialect::{Dialect, Event, Form, Names, Next, letters_to_quote};
use crate::websocket::TEXT;

/// Channels of a Pusher server.
pub(crate) struct Pusher {
    /// Of channels: what makes them private is part of the prefix.
    names: Names,
    key: String,
    secret: Option<String>,
}

/// What is published as.
const EVENT: &str = "client-m";

/// What a usual message begins with, up to the name of its channel.
const MESSAGE_HEAD: &[u8] = br#"{"event":"client-m","channel":""#;

/// Servers end a connection after two minutes without a sign of life, or as long as they say.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

impl Pusher {
    /// Without a `secret` the channels are public.
    pub(crate) fn new(names: Names, key: &str, secret: Option<&str>) -> Result<Pusher, String> {
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err(format!("{key}: not a key that could stand in a path"));
        }
        let names =
            if secret.is_some() { Names::new(&names.prefix_with("private-")) } else { names };
        Ok(Pusher { names, key: key.to_owned(), secret: secret.map(str::to_owned) })
    }

    /// `key:hex(HMAC-SHA256(secret, socket_id:channel))`; nothing for a public channel.
    fn auth(&self, socket_id: &str, channel: &str) -> String {
        let Some(secret) = &self.secret else { return String::new() };
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length will do");
        mac.update(format!("{socket_id}:{channel}").as_bytes());
        let code = mac.finalize().into_bytes();
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}:{hex}", self.key)
    }

    /// A client event in the form in which servers write it, `data` last.
    fn read_message<'a>(&self, input: &'a [u8]) -> Option<Event<'a>> {
        let (room, rest) = self.names.read_front(input.strip_prefix(MESSAGE_HEAD)?)?;
        let (data, rest) = letters_to_quote(rest.strip_prefix(br#"","data":""#)?)?;
        (rest == b"}").then(|| Event::message(Some(room), data))
    }

    fn read_json(&self, input: &[u8], answer: &mut Vec<u8>) -> Option<Event<'static>> {
        let json: Value = serde_json::from_slice(input).ok()?;
        // `data` is JSON in a string; some servers leave the string out.
        let data = || match &json["data"] {
            Value::String(text) => serde_json::from_str(text).ok(),
            other => Some(other.clone()),
        };
        Some(match json["event"].as_str()? {
            "pusher:connection_established" => {
                let socket_id = data()?["socket_id"].as_str()?.as_bytes().to_vec();
                Event::Ready(Cow::Owned(socket_id))
            }
            "pusher_internal:subscription_succeeded" => Event::Joined,
            "pusher:ping" => {
                answer.extend_from_slice(br#"{"event":"pusher:pong","data":{}}"#);
                Event::Other
            }
            name @ ("pusher:error" | "pusher:subscription_error") => {
                let data = data().unwrap_or_default();
                let text = ["code", "status", "message", "error"]
                    .iter()
                    .filter(|key| !data[**key].is_null())
                    .fold(name.to_owned(), |text, key| format!("{text} {}", data[*key]));
                Event::Refused(text.chars().take(100).collect())
            }
            EVENT => {
                let room = self.names.read(json["channel"].as_str()?.as_bytes())?;
                let data = json["data"].as_str()?.as_bytes().to_vec();
                Event::Message { room: Some(room), data: Cow::Owned(data) }
            }
            _ => Event::Other,
        })
    }
}

impl Dialect for Pusher {
    fn form(&self) -> Form {
        Form {
            greets: true,
            hears_itself: false,
            publishers_are_members: true,
            keep_alive: Some((KEEP_ALIVE, br#"{"event":"pusher:ping","data":{}}"#)),
            ..Form::of(TEXT)
        }
    }

    fn path(&self) -> String {
        format!("/app/{}?protocol=7&client=penstock-bench&version=1.0", self.key)
    }

    fn join(&self, room: u32, session: &[u8], out: &mut Vec<u8>) {
        let channel = self.names.of(room);
        let auth = self.auth(&String::from_utf8_lossy(session), &channel);
        let data = json!({ "auth": auth, "channel": channel });
        let join = json!({ "event": "pusher:subscribe", "data": data });
        out.extend_from_slice(join.to_string().as_bytes());
    }

    fn publish(&self, room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(MESSAGE_HEAD);
        self.names.write(room, out);
        out.extend_from_slice(br#"","data":""#);
        out.extend_from_slice(data);
        out.extend_from_slice(br#""}"#);
    }

    fn next<'a>(&self, input: &'a [u8], answer: &mut Vec<u8>) -> Next<'a> {
        self.read_message(input)
            .or_else(|| self.read_json(input, answer))
            .map(|event| Some((event, input.len())))
            .ok_or_else(|| "a message that is none of Pusher Channels".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::dialect::tests::{check_message, said};

    fn pusher(secret: Option<&str>) -> Pusher {
        Pusher::new(Names::new("b-"), "app-key", secret).unwrap()
    }

    #[test]
    fn signatures_are_those_of_the_reference() {
        // The worked example of the protocol's documentation.
        let key = "278d425bdf160c739803";
        let pusher = Pusher::new(Names::new(""), key, Some("7ad3773142a6692b25b8")).unwrap();
        let want = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4";
        assert_eq!(pusher.auth("1234.1234", "private-foobar"), format!("{key}:{want}"));
    }

    #[test]
    fn requests() {
        let private = pusher(Some("s"));
        let auth = private.auth("1.2", "private-b-7");
        let want = format!(
            r#"{{"event":"pusher:subscribe","data":{{"auth":"{auth}","channel":"private-b-7"}}}}"#
        );
        assert_eq!(said(|out| private.join(7, b"1.2", out)), want);
        assert_eq!(
            said(|out| private.publish(7, 0, b"abc", out)),
            r#"{"event":"client-m","channel":"private-b-7","data":"abc"}"#
        );
        assert_eq!(
            said(|out| pusher(None).join(7, b"1.2", out)),
            r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"b-7"}}"#
        );
        assert_eq!(private.path(), "/app/app-key?protocol=7&client=penstock-bench&version=1.0");
        for bad in ["", "a/b", "a b", "a?b"] {
            assert!(Pusher::new(Names::new("b-"), bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn events() {
        let dialect = pusher(Some("s"));
        let check = |text: &str, want: &str, answer: &str| {
            check_message(&dialect, text, &[want], answer);
        };
        check(
            r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"12.34\",\"activity_timeout\":120}"}"#,
            "ready 12.34",
            "",
        );
        check(
            r#"{"event":"pusher_internal:subscription_succeeded","channel":"private-b-7","data":"{}"}"#,
            "joined",
            "",
        );
        check(
            r#"{"event":"pusher:ping","data":{}}"#,
            "other",
            r#"{"event":"pusher:pong","data":{}}"#,
        );
        check(r#"{"event":"pusher:pong","data":{}}"#, "other", "");
        check(
            r#"{"event":"pusher:error","data":{"code":4009,"message":"no"}}"#,
            r#"refused pusher:error 4009 "no""#,
            "",
        );
        check(
            r#"{"event":"pusher:subscription_error","channel":"private-b-7","data":{"type":"AuthError","error":"bad","status":401}}"#,
            r#"refused pusher:subscription_error 401 "bad""#,
            "",
        );
        check(r#"{"event":"client-m","channel":"private-b-7","data":"abc"}"#, "7 abc", "");
        // Not the short way.
        check(r#"{"event":"client-m","data":"abc","channel":"private-b-7"}"#, "7 abc", "");
        check(
            r#"{"event":"client-m","channel":"private-b-7","data":"abc","user_id":"1"}"#,
            "7 abc",
            "",
        );
        check(r#"{"event":"client-m","channel":"private-b-7","data":"\u0061bc"}"#, "7 abc", "");
        check(r#"{"event":"client-other","channel":"private-b-7","data":"abc"}"#, "other", "");
        let whole = r#"{"event":"client-m","channel":"private-b-7","data":"abc"}"#;
        for cut in 0..whole.len() {
            let part = &whole.as_bytes()[..cut];
            assert!(dialect.next(part, &mut Vec::new()).is_err(), "cut at {cut}");
        }
        let others = whole.replace("b-7", "c-7");
        assert!(dialect.next(others.as_bytes(), &mut Vec::new()).is_err());
    }
}
