//! MQTT 3.1.1 (OASIS standard, sections as given): packets in binary WebSocket messages, which
//! need not end where a packet does (§6). Everything at QoS 0.

use std::borrow::Cow;
use std::time::Duration;

use super::dialect::{Dialect, Event, Form, Names, Next};
use crate::websocket::BINARY;

/// Topics of an MQTT server.
pub(crate) struct Mqtt {
    names: Names,
}

/// Packet types with the flags that they have to have (§2.2.2).
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGREQ: u8 = 0xC0;
const PINGRESP: u8 = 0xD0;

/// The server may end a connection that says nothing for one and a half times as long (§3.1.2.10).
const KEEP_ALIVE_SECONDS: u16 = 60;

impl Mqtt {
    pub(crate) fn new(names: Names) -> Mqtt {
        Mqtt { names }
    }

    /// Appends a room's topic with its length (§1.5.3).
    fn topic(&self, room: u32, out: &mut Vec<u8>) {
        let name = self.names.of(room);
        string(name.as_bytes(), out);
    }
}

impl Dialect for Mqtt {
    fn form(&self) -> Form {
        let often = Duration::from_secs(u64::from(KEEP_ALIVE_SECONDS) / 2);
        Form {
            subprotocol: Some("mqtt"), // §6: MQTT-6.0.0-3
            greets: true,
            keep_alive: Some((often, &[PINGREQ, 0])),
            ..Form::of(BINARY)
        }
    }

    /// CONNECT (§3.1), with a clean session.
    fn open(&self, client: u32, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        string(b"MQTT", &mut body);
        body.extend_from_slice(&[4, 0x02]);
        body.extend_from_slice(&KEEP_ALIVE_SECONDS.to_be_bytes());
        string(format!("{}c{client}", self.names.of(0)).as_bytes(), &mut body);
        packet(CONNECT, &body, out);
    }

    /// SUBSCRIBE (§3.8). Its identifier may be that of another, in tens of thousands of rooms: the
    /// answers are counted, not matched.
    fn join(&self, room: u32, _session: &[u8], out: &mut Vec<u8>) {
        let identifier = (room % 0xFFFF) as u16 + 1;
        let mut body = identifier.to_be_bytes().to_vec();
        self.topic(room, &mut body);
        body.push(0);
        packet(SUBSCRIBE, &body, out);
    }

    fn publish(&self, room: u32, _number: u64, data: &[u8], out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(data.len() + 64);
        self.topic(room, &mut body);
        body.extend_from_slice(data);
        packet(PUBLISH, &body, out);
    }

    fn next<'a>(&self, input: &'a [u8], _answer: &mut Vec<u8>) -> Next<'a> {
        let Some((first, body, taken)) = split_packet(input)? else { return Ok(None) };
        let event = match (first, body) {
            (CONNACK, [_, 0]) => Event::Ready(Cow::Borrowed(b"")),
            (CONNACK, [_, code]) => Event::Refused(format!("CONNACK {code}")),
            (SUBACK, [_, _, 0]) => Event::Joined,
            (SUBACK, [_, _, code]) => Event::Refused(format!("SUBACK {code:#04x}")),
            (PINGRESP, []) => Event::Other,
            (first, [high, low, rest @ ..]) if first & 0xF0 == PUBLISH => {
                let topic_bytes = usize::from(u16::from_be_bytes([*high, *low]));
                let (topic, data) =
                    rest.split_at_checked(topic_bytes).ok_or("a PUBLISH without its topic")?;
                // The flags above QoS 0 are a copy (DUP) and a message from before (RETAIN); the
                // accounting finds out what is wrong with those.
                if first & 0x06 != 0 {
                    return Err("a PUBLISH above QoS 0 (§3.3.1.2)".into());
                }
                let room = self.names.read(topic).ok_or("a PUBLISH of a topic of others")?;
                Event::message(Some(room), data)
            }
            _ => return Err(format!("a packet that begins with {first:#04x}")),
        };
        Ok(Some((event, taken)))
    }
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Appends a packet (§2.2.3: seven bits of the length in a byte, the lowest first).
fn packet(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    let mut rest = body.len();
    while rest >= 128 {
        out.push(0x80 | (rest % 128) as u8);
        rest /= 128;
    }
    out.push(rest as u8);
    out.extend_from_slice(body);
}

/// A packet: its first byte, its body, and how long it was in all.
type Packet<'a> = (u8, &'a [u8], usize);

/// Takes a packet off the front.
fn split_packet(input: &[u8]) -> Result<Option<Packet<'_>>, String> {
    let Some((first, rest)) = input.split_first() else { return Ok(None) };
    let mut body_bytes = 0;
    for (i, byte) in rest.iter().take(4).enumerate() {
        body_bytes |= usize::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            let body = rest[i + 1..].get(..body_bytes);
            return Ok(body.map(|body| (*first, body, 2 + i + body_bytes)));
        }
    }
    if rest.len() >= 4 {
        return Err("a length of more than four bytes (§2.2.3)".into());
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::dialect::tests::check_stream;

    fn mqtt() -> Mqtt {
        Mqtt::new(Names::new("b-"))
    }

    #[test]
    fn requests() {
        let bytes = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out
        };
        let mqtt = mqtt();
        let connect = bytes(&|out| mqtt.open(17, out));
        assert_eq!(connect, b"\x10\x12\0\x04MQTT\x04\x02\0\x3C\0\x06b-0c17");
        assert_eq!(bytes(&|out| mqtt.join(7, b"", out)), b"\x82\x08\0\x08\0\x03b-7\0");
        assert_eq!(bytes(&|out| mqtt.join(65_535, b"", out))[2..4], [0, 1]);
        assert_eq!(bytes(&|out| mqtt.publish(7, 0, b"abc", out)), b"\x30\x08\0\x03b-7abc");
    }

    #[test]
    fn section_2_2_3_lengths_are_read_back() {
        // The first and the last of each form in the table of the standard.
        for (body_bytes, length) in [
            (0, &b"\x00"[..]),
            (127, b"\x7F"),
            (128, b"\x80\x01"),
            (16_383, b"\xFF\x7F"),
            (16_384, b"\x80\x80\x01"),
            (2_097_151, b"\xFF\xFF\x7F"),
            (2_097_152, b"\x80\x80\x80\x01"),
        ] {
            let body = vec![b'z'; body_bytes];
            let mut wire = Vec::new();
            packet(PUBLISH, &body, &mut wire);
            assert_eq!(wire[1..=length.len()], *length);
            let whole = split_packet(&wire).unwrap().unwrap();
            assert_eq!(whole, (PUBLISH, &body[..], wire.len()));
            for cut in (0..wire.len().min(6)).chain([wire.len() - 1]) {
                let cut = cut.min(wire.len() - 1);
                assert_eq!(split_packet(&wire[..cut]), Ok(None), "{body_bytes} cut at {cut}");
            }
        }
        assert!(split_packet(b"\x30\x80\x80\x80\x80").unwrap_err().contains("four bytes"));
        assert_eq!(split_packet(b"\x30\x80\x80\x80"), Ok(None));
    }

    #[test]
    fn several_packets_and_cuts_anywhere() {
        let wire = b"\x20\x02\0\0\x90\x03\0\x08\0\x30\x08\0\x03b-7abc\xD0\0\x31\x07\0\x04b-12z\
            \x90\x03\0\x08\x80\x20\x02\0\x05";
        let want = [
            "ready ",
            "joined",
            "7 abc",
            "other",
            "12 z",
            "refused SUBACK 0x80",
            "refused CONNACK 5",
        ];
        check_stream(&mqtt(), wire, &want, b"");
    }

    #[test]
    fn what_is_not_understood() {
        let error = |wire: &[u8]| mqtt().next(wire, &mut Vec::new()).unwrap_err();
        assert!(error(b"\x32\x0A\0\x03b-7\0\x01abc").contains("QoS"));
        assert!(error(b"\x30\x06\0\x03c-7a").contains("others"));
        assert!(error(b"\x30\x03\0\x09b").contains("without its topic"));
        assert!(error(b"\x30\x01\0").contains("0x30"));
        assert!(error(b"\x40\x02\0\x01").contains("0x40"));
    }
}
