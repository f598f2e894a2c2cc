//! Finds the session that an Engine.IO server opens: the `sid` in the first packet of its first
//! answer, `0{"sid":"…","upgrades":…}`.
//!
//! That packet begins the body of the first polling response, or is the first text message of a
//! WebSocket. In a body, version 3 of the protocol puts its length in front: `97:0{"sid":…`, or to
//! clients that take binary the bytes 0 (a text), 9, 7 (the digits) and 255. Clients of JSONP get any
//! of these as a string of JavaScript: `___eio[0]("0{\"sid\":…");`. The bytes are only watched as they
//! pass: nothing is held up, and whatever is no such packet goes on all the same. A body that is
//! compressed or in chunks has to be undone before; a server is asked not to compress this one.

/// The longest `sid` that is understood. Those of the reference server have 20 bytes, those of
/// other servers up to 36.
pub const SID_BYTES_MAX: usize = 64;

/// How far into an answer its `sid` may be. The packet has about 110 bytes, and every server we
/// know names the `sid` first.
pub const OPEN_PACKET_BYTES_MAX: u16 = 1024;

/// Deeper than this no open packet is nested; `upgrades` is a list of words.
const DEPTH_MAX: u8 = 16;

/// What an answer's beginning holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenScan<'a> {
    /// It may still be an open packet: go on with the bytes that follow. At the end of the answer
    /// this means that it was none.
    More,
    /// The session that was opened.
    Sid(&'a str),
    /// It opens no session, or one that is not understood.
    NotAnOpen,
}

/// Reads the beginning of one answer, in whatever pieces it comes.
#[derive(Clone, Debug)]
pub struct OpenScanner {
    state: State,
    bytes_seen: u16,
    /// In a string of JavaScript.
    in_string: bool,
    /// Behind a backslash of that.
    escaped: bool,
    /// Letters of the key that agree with `sid`, or `OTHER_KEY`.
    key_matches: u8,
    sid_bytes: u8,
    sid: [u8; SID_BYTES_MAX],
}

/// What begins a script of JSONP.
const SCRIPT: &[u8] = b"___eio[";

/// In `key_matches`: it is another key.
const OTHER_KEY: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the first byte.
    Start,
    /// In the length that version 3 puts in front, behind so many digits.
    Length(u8),
    /// In the same of its binary form, whose digits are their own values.
    BinaryLength(u8),
    /// In what begins a script of JSONP, behind so many bytes of it.
    Script(u8),
    /// In the number of that script, behind so many digits.
    ScriptIndex(u8),
    /// Behind that number, before the bracket.
    ScriptCall,
    /// Before the string that is handed over.
    ScriptString,
    /// Before the type of the packet.
    Packet,
    /// Before the object.
    Brace,
    BeforeKey,
    Key,
    KeyEscape,
    Colon,
    Value,
    /// In a text that is the value of another key.
    Text,
    TextEscape,
    /// In so many lists and objects.
    Nested(u8),
    NestedText(u8),
    NestedEscape(u8),
    /// In a number or a word.
    Scalar,
    AfterValue,
    /// In the value of `sid`.
    Sid,
    Found,
    Failed,
}

impl Default for OpenScanner {
    fn default() -> OpenScanner {
        OpenScanner {
            state: State::Start,
            bytes_seen: 0,
            in_string: false,
            escaped: false,
            key_matches: 0,
            sid_bytes: 0,
            sid: [0; SID_BYTES_MAX],
        }
    }
}

impl OpenScanner {
    /// Reads on. Once it has answered anything but [`OpenScan::More`], that is all it answers.
    pub fn scan(&mut self, bytes: &[u8]) -> OpenScan<'_> {
        for byte in bytes {
            if matches!(self.state, State::Found | State::Failed) {
                break;
            }
            self.bytes_seen += 1;
            self.state = match self.in_string {
                false => self.step(*byte),
                true => self.step_in_string(*byte),
            };
            if self.bytes_seen >= OPEN_PACKET_BYTES_MAX && !matches!(self.state, State::Found) {
                self.state = State::Failed;
            }
        }
        match self.state {
            State::Found => {
                let sid = &self.sid[..usize::from(self.sid_bytes)];
                OpenScan::Sid(std::str::from_utf8(sid).expect("only ASCII is kept"))
            }
            State::Failed => OpenScan::NotAnOpen,
            _ => OpenScan::More,
        }
    }

    /// The same behind the escapes of JavaScript. What is written as `\u` is in no server's.
    fn step_in_string(&mut self, byte: u8) -> State {
        match (std::mem::take(&mut self.escaped), byte) {
            (false, b'\\') => {
                self.escaped = true;
                self.state
            }
            (true, b'"' | b'\\' | b'/') => self.step(byte),
            (true, b'n' | b'r' | b't') => self.step(b' '),
            // The end of the string, or an escape that is not understood.
            (false, b'"') | (true, _) => State::Failed,
            (false, _) => self.step(byte),
        }
    }

    fn step(&mut self, byte: u8) -> State {
        let state = self.state;
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match (state, byte) {
            (State::Start | State::Packet, b'0') => State::Brace,
            (State::Start, b'1'..=b'9') => State::Length(1),
            (State::Length(digits), b'0'..=b'9') if digits < 4 => State::Length(digits + 1),
            (State::Length(_), b':') => State::Packet,
            (State::Start, 0) => State::BinaryLength(0),
            (State::BinaryLength(digits), 0..=9) if digits < 4 => State::BinaryLength(digits + 1),
            (State::BinaryLength(1..), 255) => State::Packet,
            (State::Start, b'_') if !self.in_string => State::Script(1),
            (State::Script(seen), _) => match SCRIPT.get(usize::from(seen)) {
                Some(wanted) if *wanted != byte => State::Failed,
                _ if usize::from(seen) + 1 == SCRIPT.len() => State::ScriptIndex(0),
                _ => State::Script(seen + 1),
            },
            (State::ScriptIndex(digits), b'0'..=b'9') if digits < 10 => {
                State::ScriptIndex(digits + 1)
            }
            (State::ScriptIndex(_), b']') => State::ScriptCall,
            (State::ScriptCall, b'(') => State::ScriptString,
            (State::ScriptString, b'"') => {
                self.in_string = true;
                State::Start
            }
            (State::Brace, b'{') => State::BeforeKey,
            (State::BeforeKey | State::Colon | State::Value | State::AfterValue, _) if is_space => {
                state
            }
            (State::BeforeKey, b'"') => {
                self.key_matches = 0;
                State::Key
            }
            (State::Key, b'"') => State::Colon,
            (State::Key, b'\\') => {
                // A key that spells `sid` in escapes is no server's.
                self.key_matches = OTHER_KEY;
                State::KeyEscape
            }
            (State::Key, _) => {
                let wanted = b"sid".get(usize::from(self.key_matches));
                self.key_matches =
                    if wanted == Some(&byte) { self.key_matches + 1 } else { OTHER_KEY };
                State::Key
            }
            (State::KeyEscape, _) => State::Key,
            (State::Colon, b':') => State::Value,
            (State::Value, b'"') if self.key_matches == 3 => State::Sid,
            (State::Value, _) if self.key_matches == 3 => State::Failed,
            (State::Value, b'"') => State::Text,
            (State::Value, b'{' | b'[') => State::Nested(1),
            (State::Value | State::Scalar, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9') => {
                State::Scalar
            }
            (State::Value | State::Scalar, b'-' | b'+' | b'.') => State::Scalar,
            (State::Scalar, _) if is_space => State::AfterValue,
            (State::Scalar | State::AfterValue, b',') => State::BeforeKey,
            (State::Text, b'"') => State::AfterValue,
            (State::Text, b'\\') => State::TextEscape,
            (State::Text | State::TextEscape, _) => State::Text,
            (State::Nested(depth), b'"') => State::NestedText(depth),
            (State::Nested(depth), b'{' | b'[') if depth < DEPTH_MAX => State::Nested(depth + 1),
            (State::Nested(1), b'}' | b']') => State::AfterValue,
            (State::Nested(depth), b'}' | b']') => State::Nested(depth - 1),
            (State::Nested(_), b'{' | b'[') => State::Failed,
            (State::Nested(depth), _) => State::Nested(depth),
            (State::NestedText(depth), b'"') => State::Nested(depth),
            (State::NestedText(depth), b'\\') => State::NestedEscape(depth),
            (State::NestedText(depth) | State::NestedEscape(depth), _) => State::NestedText(depth),
            (State::Sid, b'"') if self.sid_bytes > 0 => State::Found,
            // What has to be escaped, or is no ASCII, is in no server's.
            (State::Sid, 0x21..=0x7E)
                if byte != b'\\' && byte != b'"' && usize::from(self.sid_bytes) < SID_BYTES_MAX =>
            {
                self.sid[usize::from(self.sid_bytes)] = byte;
                self.sid_bytes += 1;
                State::Sid
            }
            _ => State::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every cut in two, and every byte alone.
    #[track_caller]
    fn check(wire: &[u8], want: Option<&str>) {
        let want = want.map_or(OpenScan::NotAnOpen, OpenScan::Sid);
        for cut in 0..=wire.len() {
            let mut scanner = OpenScanner::default();
            let first = scanner.scan(&wire[..cut]);
            assert!(first == OpenScan::More || first == want, "cut at {cut}: {first:?}");
            assert_eq!(scanner.scan(&wire[cut..]), want, "cut at {cut}");
            assert_eq!(scanner.scan(b"0{\"sid\":\"late\"}"), want, "cut at {cut}: it changes");
        }
        let mut scanner = OpenScanner::default();
        for byte in wire {
            scanner.scan(&[*byte]);
        }
        assert_eq!(scanner.scan(b""), want, "byte by byte");
    }

    #[test]
    fn open_packets_of_servers() {
        let sid = Some("fumNReNIqJoBfu99AAAA");
        for wire in [
            r#"0{"sid":"fumNReNIqJoBfu99AAAA","upgrades":[],"pingInterval":25000}"#,
            r#"0{"sid":"fumNReNIqJoBfu99AAAA","upgrades":["websocket"]}"#,
            "0{\"sid\":\"fumNReNIqJoBfu99AAAA\"}\u{1e}40",
            r#"97:0{"sid":"fumNReNIqJoBfu99AAAA","upgrades":["websocket"]}2:40"#,
            r#"0{"sid": "fumNReNIqJoBfu99AAAA", "upgrades": []}"#,
            "0{ \r\n\t\"sid\" : \"fumNReNIqJoBfu99AAAA\" }",
            r#"0{"pingInterval":25000,"upgrades":["a\"]}",{"sid":"x"}],"sid":"fumNReNIqJoBfu99AAAA"}"#,
            r#"0{"a":-1.5e+3 ,"b":true,"c":{"d":[[],{}]},"e":"\\","sid":"fumNReNIqJoBfu99AAAA"}"#,
            r#"0{"s":1,"si":2,"sidx":3,"xsid":4,"s\u0069d":"no","":5,"sid":"fumNReNIqJoBfu99AAAA"}"#,
        ] {
            check(wire.as_bytes(), sid);
        }
        for wire in [
            &b"\x00\x09\x07\xff0{\"sid\":\"fumNReNIqJoBfu99AAAA\",\"upgrades\":[\"websocket\"]}"[..],
            b"\x00\x01\x00\x09\xff0{\"sid\":\"fumNReNIqJoBfu99AAAA\"}\x00\x02\xff40",
            br#"___eio[0]("97:0{\"sid\":\"fumNReNIqJoBfu99AAAA\",\"upgrades\":[]}");"#,
            br#"___eio[12]("0{\"sid\":\"fumNReNIqJoBfu99AAAA\"}");"#,
            br#"___eio[]("0{\n\t\"a\":\"\\\"\/\",\"sid\":\"fumNReNIqJoBfu99AAAA\"}");"#,
        ] {
            check(wire, sid);
        }
        // As python-engineio 3.14.2 sends them, without and with `j`.
        check(
            b"\x00\x09\x08\xff0{\"sid\":\"ea2d8d7008e14535a31c8f891884c00a\",\"upgrades\":[],\
              \"pingTimeout\":60000,\"pingInterval\":25000}",
            Some("ea2d8d7008e14535a31c8f891884c00a"),
        );
        check(
            b"___eio[12](\"\x00\x09\x08\xff0{\\\"sid\\\":\\\"6e18a0e707694d00b4120a40fe8544dd\\\",\
              \\\"upgrades\\\":[],\\\"pingTimeout\\\":60000,\\\"pingInterval\\\":25000}\");",
            Some("6e18a0e707694d00b4120a40fe8544dd"),
        );
        let longest = "a".repeat(SID_BYTES_MAX);
        check(format!("0{{\"sid\":\"{longest}\"").as_bytes(), Some(&longest));
    }

    #[test]
    fn whatever_is_none() {
        for wire in [
            "2probe",
            r#"40{"sid":"x"}"#,
            r#"4{"sid":"x"}"#,
            "ok",
            "<html>",
            r#"{"code":1,"message":"Session ID unknown"}"#,
            // A binary packet, a length without digits, one with too many, one that is written out.
            "\x01\x09\x07\u{ff}0{\"sid\":\"x\"}",
            "\0\u{ff}0{\"sid\":\"x\"}",
            "\0\x01\x02\x03\x04\x05",
            "\x0097:0{\"sid\":\"x\"}",
            // In UTF-8 that is no 255.
            "\0\x09\x07\u{ff}0{\"sid\":\"x\"}",
            r#"___eio[0]("0{"sid":"x"}");"#,
            r#"___eio[0]("0{\"sid\":\"x");"#,
            r#"___eio[0]("0{\"\u0073id\":\"x\"}");"#,
            r#"___eio[0](0{\"sid\":\"x\"}"#,
            r#"___eio[0]("___eio[0]("#,
            "___eio[a](",
            "___eio[12345678901](",
            "___eip[0](",
            "__e",
            "00{",
            "0 {",
            "0{}",
            r#"0{"sid":""}"#,
            r#"0{"sid":null}"#,
            r#"0{"sid":7}"#,
            r#"0{"sid":"a b"}"#,
            r#"0{"sid":"a\u0062"}"#,
            "0{\"sid\":\"\u{e9}\"}",
            "0{\"sid\":\"a\n\"}",
            r#"0{sid:"x"}"#,
            r#"0{"sid""x"}"#,
            r#"0{"a":1}"#,
            r#"0{"a":1;"sid":"x"}"#,
            r#"0{"a":}"#,
            r#"0{"a":"b"}"#,
            r#"0{"a":[1]"sid":"x"}"#,
            r#"0{"a":{"sid":"x"}}"#,
            "12345:0{",
            ":0{",
            "3:4",
        ] {
            check(wire.as_bytes(), None);
        }
        check(format!("0{{\"sid\":\"{}\"", "a".repeat(SID_BYTES_MAX + 1)).as_bytes(), None);
        check(format!("0{{\"a\":{}", "[".repeat(DEPTH_MAX as usize + 1)).as_bytes(), None);
    }

    #[test]
    fn the_bound_holds_exactly() {
        let wire = |filler: usize| format!("0{{\"a\":\"{}\",\"sid\":\"b\"", "f".repeat(filler));
        let others = wire(0).len();
        check(wire(usize::from(OPEN_PACKET_BYTES_MAX) - others).as_bytes(), Some("b"));
        check(wire(usize::from(OPEN_PACKET_BYTES_MAX) - others + 1).as_bytes(), None);
    }

    #[test]
    fn what_is_not_over_asks_for_more() {
        let wire = br#"0{"sid":"fumNReNIqJoBfu99AAAA"#;
        for cut in 0..=wire.len() {
            assert_eq!(OpenScanner::default().scan(&wire[..cut]), OpenScan::More, "cut at {cut}");
        }
        // A packet of another type, or the length of one.
        assert_eq!(OpenScanner::default().scan(b"40"), OpenScan::More);
    }

    /// Objects of random keys and values, against a JSON reader that takes its time.
    #[test]
    fn a_json_reader_finds_the_same() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = super::super::hash::mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
            (state % below) as usize
        };
        let keys = ["sid", "sid", "s", "upgrades", "a\\\"b", "\\\\"];
        let values =
            ["\"x1\"", "\"\"", "\"a\\\"sid\\\":\\\"q\"", "7", "null", "[\"sid\",\"]\"]", "{}"];
        let mut found = 0;
        for _ in 0..5000 {
            let mut members = Vec::new();
            for _ in 0..next(5) {
                members.push(format!("\"{}\":{}", keys[next(6)], values[next(7)]));
            }
            let object = format!("{{{}}}", members.join(","));
            // The first `sid` counts here, the last for the library: at most one is compared.
            if members.iter().filter(|member| member.starts_with("\"sid\"")).count() > 1 {
                continue;
            }
            let read: serde_json::Value = serde_json::from_str(&object).expect("JSON");
            let want = read.get("sid").and_then(|sid| sid.as_str());
            let want = want.filter(|sid| !sid.is_empty() && !sid.contains('"'));
            found += usize::from(want.is_some());
            let mut scanner = OpenScanner::default();
            let got = scanner.scan(format!("0{object}").as_bytes());
            assert_eq!(got, want.map_or(OpenScan::NotAnOpen, OpenScan::Sid), "{object}");
        }
        assert!(found > 100);
    }
}
