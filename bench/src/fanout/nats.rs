//! Core NATS: a stream of lines, and of payloads with their length in the line before
//! (docs.nats.io, "Client Protocol"). In WebSocket messages, which need not end where a line or a
//! payload does.
//!
//! A subscription has a number that the client chooses, and every message of it begins with that:
//! it is the room.

use std::borrow::Cow;
use std::io::Write;

use super::dialect::{Dialect, Event, Form, Names, Next};
use crate::websocket::BINARY;

/// Subjects of a NATS server.
pub(crate) struct Nats {
    names: Names,
}

/// Of a line; INFO is the longest, with the addresses of a cluster.
const LINE_BYTES_MAX: usize = 32 * 1024;

impl Nats {
    pub(crate) fn new(names: Names) -> Nats {
        Nats { names }
    }
}

impl Dialect for Nats {
    fn form(&self) -> Form {
        Form { greets: true, ..Form::of(BINARY) }
    }

    /// The server says nothing to a SUB. Its PONG comes when the SUB has been done.
    fn join(&self, room: u32, _session: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"SUB ");
        self.names.write(room, out);
        write!(out, " {room}\r\nPING\r\n").expect("memory takes what is written");
    }

    fn publish(&self, room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"PUB ");
        self.names.write(room, out);
        write!(out, " {}\r\n", data.len()).expect("memory takes what is written");
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }

    fn next<'a>(&self, input: &'a [u8], answer: &mut Vec<u8>) -> Next<'a> {
        let Some(line_bytes) = input.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n')
        else {
            return match input.len() {
                0..LINE_BYTES_MAX => Ok(None),
                _ => Err(format!("a line above {LINE_BYTES_MAX} bytes")),
            };
        };
        let line = input[..line_bytes].strip_suffix(b"\r").ok_or("a line that ends without CR")?;
        let taken = line_bytes + 1;
        if let Some(arguments) = line.strip_prefix(b"MSG ") {
            return message(arguments, input, taken);
        }
        let event = match line {
            b"PING" => {
                answer.extend_from_slice(b"PONG\r\n");
                Event::Other
            }
            b"PONG" => Event::Joined,
            b"+OK" => Event::Other,
            _ if line.starts_with(b"INFO ") => {
                answer.extend_from_slice(
                    br#"CONNECT {"verbose":false,"pedantic":false,"echo":true,"lang":"rust","version":"1","protocol":1,"name":"penstock-bench"}"#,
                );
                answer.extend_from_slice(b"\r\n");
                Event::Ready(Cow::Borrowed(b""))
            }
            _ if line.starts_with(b"-ERR") => {
                let reason = String::from_utf8_lossy(&line[4..]);
                Event::Refused(reason.trim().trim_matches('\'').to_owned())
            }
            _ => return Err("a line that is none of NATS".into()),
        };
        Ok(Some((event, taken)))
    }
}

/// `MSG subject sid [reply-to] #bytes`, and so many bytes.
fn message<'a>(arguments: &[u8], input: &'a [u8], line_bytes: usize) -> Next<'a> {
    let mut words = arguments.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok();
    let _subject = words.next();
    let room: Option<u32> = words.next().and_then(number);
    let payload_bytes: Option<u32> = words.next_back().and_then(number);
    let (Some(room), Some(payload_bytes)) = (room, payload_bytes) else {
        return Err("a MSG without a number of its subscription and a length".into());
    };
    let end = line_bytes + payload_bytes as usize;
    let Some(behind) = input.get(end..end + 2) else { return Ok(None) };
    if behind != b"\r\n" {
        return Err("a payload that does not end where its MSG says".into());
    }
    Ok(Some((Event::message(Some(room), &input[line_bytes..end]), end + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::dialect::tests::{check_stream, said};

    fn nats() -> Nats {
        Nats::new(Names::new("b-"))
    }

    #[test]
    fn requests() {
        let nats = nats();
        assert_eq!(said(|out| nats.join(7, b"", out)), "SUB b-7 7\r\nPING\r\n");
        assert_eq!(said(|out| nats.publish(12, 0, b"abc", out)), "PUB b-12 3\r\nabc\r\n");
    }

    #[test]
    fn several_events_and_cuts_anywhere() {
        let wire = b"INFO {\"server_id\":\"x\"}\r\nPONG\r\nMSG b-7 7 3\r\nabc\r\n\
            MSG  b-7  7 reply.to 5\r\n\r\nMSG\r\nPING\r\n+OK\r\nMSG b-0 0 0\r\n\r\n\
            -ERR 'Unknown Protocol Operation'\r\n";
        let want = [
            "ready ",
            "joined",
            "7 abc",
            // What a payload looks like does not matter.
            "7 \r\nMSG",
            "other",
            "other",
            "0 ",
            "refused Unknown Protocol Operation",
        ];
        let answers =
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":true,\"lang\":\"rust\",\
            \"version\":\"1\",\"protocol\":1,\"name\":\"penstock-bench\"}\r\nPONG\r\n";
        check_stream(&nats(), wire, &want, answers);
    }

    #[test]
    fn what_is_not_understood() {
        let error = |wire: &[u8]| nats().next(wire, &mut Vec::new()).unwrap_err();
        assert!(error(b"HELLO\r\n").contains("none of NATS"));
        assert!(error(b"PONG\n").contains("without CR"));
        for arguments in ["b-7", "b-7 7", "b-7 x 3", "b-7 7 -3", "b-7 7 99999999999"] {
            assert!(
                error(format!("MSG {arguments}\r\n").as_bytes()).contains("MSG"),
                "{arguments}"
            );
        }
        assert!(error(b"MSG b-7 7 3\r\nabcd\r\n").contains("does not end"));
        assert!(error(&vec![b'a'; LINE_BYTES_MAX]).contains("above"));
        assert_eq!(nats().next(&vec![b'a'; LINE_BYTES_MAX - 1], &mut Vec::new()), Ok(None));
    }
}
