//! How connections are made and what they carry, whatever is said on them.

use std::borrow::Cow;
use std::time::Instant;

use super::*;
use crate::engine::{Ending, Engine, Request, Scenario, Settings};
use crate::hold::run as hold;
use crate::target::Target;
use crate::websocket::Frame;

fn settings(targets: Vec<Target>, clients_per_target: u32) -> Settings {
    Settings {
        targets,
        clients_per_target,
        opening_max: 64,
        opens_per_second_max: None,
        open_timeout: FOREVER,
        keep_buffers: false,
        buffer_bytes: 8 * 1024,
        slots_per_ring_max: u32::MAX,
        congestion: None,
    }
}

/// Plays an engine's clients and notes what they hear.
#[derive(Default)]
struct Notes {
    suffix: &'static str,
    subprotocols: Option<&'static str>,
    heard: Vec<(u8, Vec<u8>)>,
    ended: Vec<Ending>,
}

impl Scenario for Notes {
    fn request(&self, client: u32) -> Request<'_> {
        let path_suffix = if self.suffix.is_empty() {
            Cow::Borrowed("")
        } else {
            Cow::Owned(format!("{}{client}", self.suffix))
        };
        Request { path_suffix, subprotocols: self.subprotocols.map(Cow::Borrowed) }
    }

    fn on_open(&mut self, _client: u32, _now: Instant, _out: &mut Vec<u8>) {}

    fn on_frame(
        &mut self,
        _client: u32,
        frame: &Frame<'_>,
        _now: Instant,
        _out: &mut Vec<u8>,
    ) -> Result<(), String> {
        self.heard.push((frame.opcode, frame.payload.to_vec()));
        Ok(())
    }

    fn on_end(&mut self, _client: u32, ending: &Ending) {
        self.ended.push(ending.clone());
    }
}

impl Notes {
    /// Opens an engine's one client and turns until its connection is over.
    fn play(&mut self, target: Target) {
        let mut engine = Engine::new(settings(vec![target], 1)).unwrap();
        while self.ended.is_empty() {
            engine.open_more(Instant::now());
            engine.turn(self, FOREVER).unwrap();
        }
    }
}

/// Answers one handshake with what `answer` makes of the request's head, and hangs up.
fn with_answer<T>(
    answer: impl FnOnce(&str) -> String + Send,
    body: impl FnOnce(SocketAddr) -> T,
) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    return;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            stream.write_all(answer(&head).as_bytes()).unwrap();
        });
        body(address)
    })
}

/// The head that accepts a request, with more lines.
fn accept_with(head: &str, lines: &str) -> String {
    let key = head.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
    let accept = websocket::accept(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
    )
}

fn target(line: &str, url: &str) -> Target {
    parse::<crate::options::Common>(line).target(url).unwrap()
}

#[test]
fn headers_and_subprotocols_of_the_command_line_are_sent() {
    let (sender, receiver) = mpsc::channel();
    let answer = move |head: &str| {
        sender.send(head.to_owned()).unwrap();
        accept_with(head, "Sec-WebSocket-Protocol: b\r\n")
    };
    with_answer(answer, |address| {
        let line = format!(
            "--url ws://{address}/x?y --connections 1 --seconds 0 --sample 0 --subprotocol a,b \
             --header X-One:1 --header Cookie:a=b"
        );
        let report = run(hold, &line);
        assert_eq!(report["opened_count"], 1, "{report:#}");
    });
    let head = receiver.recv().unwrap();
    assert!(head.starts_with("GET /x?y HTTP/1.1\r\n"), "{head}");
    let ending = "Sec-WebSocket-Protocol: a, b\r\nX-One: 1\r\nCookie: a=b\r\n\r\n";
    assert!(head.ends_with(ending), "{head}");
}

#[test]
fn a_scenario_names_path_and_subprotocol_of_each_client() {
    let (sender, receiver) = mpsc::channel();
    let answer = move |head: &str| {
        sender.send(head.to_owned()).unwrap();
        accept_with(head, "Sec-WebSocket-Protocol: mqtt\r\n") + "\u{1}\u{0}"
    };
    with_answer(answer, |address| {
        let target = target("--subprotocol other", &format!("ws://{address}/base?q"));
        let mut notes = Notes { suffix: "/sub/", subprotocols: Some("mqtt"), ..Notes::default() };
        notes.play(target);
        assert!(matches!(&notes.ended[..], [Ending::Early(_)]), "{:?}", notes.ended);
    });
    let head = receiver.recv().unwrap();
    assert!(head.starts_with("GET /base/sub/0?q HTTP/1.1\r\n"), "{head}");
    assert!(head.ends_with("Sec-WebSocket-Protocol: mqtt\r\n\r\n"), "{head}");
}

#[test]
fn a_request_that_cannot_be_sent_fails_its_client() {
    for (suffix, subprotocols) in [("/a b", None), ("/a\r\nX: ", None), ("", Some("a b"))] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = target("", &format!("ws://{}/", listener.local_addr().unwrap()));
        let mut notes = Notes { suffix, subprotocols, ..Notes::default() };
        notes.play(target);
        let [Ending::Failed(reason)] = &notes.ended[..] else { panic!("{:?}", notes.ended) };
        assert!(reason.starts_with("request: "), "{reason}");
    }
}

#[test]
fn a_subprotocol_that_was_not_offered_is_refused() {
    let answer = |head: &str| accept_with(head, "Sec-WebSocket-Protocol: x\r\n");
    with_answer(answer, |address| {
        let line = format!("--url ws://{address}/ --connections 1 --seconds 0");
        let report = run(hold, &line);
        let reasons = &report["failed_by_reason"];
        assert_eq!(reasons["handshake: subprotocol x was not offered"], 1, "{report:#}");
    });
}

/// Plays one connection on which the server sends `wire`, in two pieces cut at `cut`, then closes.
fn hears(wire: &[u8], cut: usize) -> Notes {
    let serve = |mut stream: TcpStream| {
        stream.set_nodelay(true).unwrap();
        for piece in [&wire[..cut], &wire[cut..], &[0x88, 2, 3, 0xE8]] {
            // A client that has found a fault may be gone.
            let _ = stream.write_all(piece);
        }
        while stream.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
    };
    let mut notes = Notes::default();
    with_odd_server(serve, |address| notes.play(target("", &format!("ws://{address}/"))));
    notes
}

#[test]
fn section_5_4_fragments_are_one_message() {
    let wire = b"\x01\x03Hel\x89\x01p\x80\x02lo\x82\x01x\x02\x00\x00\x01a\x8A\x01q\x80\x00";
    let want: [(u8, &[u8]); 4] = [(1, b"Hello"), (2, b"x"), (10, b"q"), (2, b"a")];
    for cut in 0..=wire.len() {
        let notes = hears(wire, cut);
        let heard: Vec<_> = notes.heard.iter().map(|(code, bytes)| (*code, &bytes[..])).collect();
        assert_eq!(heard, want, "cut at {cut}");
        assert_eq!(notes.ended, [Ending::Early("Close frame 1000".into())], "cut at {cut}");
    }
}

#[test]
fn section_5_4_mistakes_of_a_server() {
    let check = |wire: &[u8], want: &str| {
        let notes = hears(wire, wire.len());
        let [Ending::Early(reason)] = &notes.ended[..] else { panic!("{:?}", notes.ended) };
        assert!(reason.contains(want), "{reason}");
    };
    check(b"\x80\x01x", "continuation of no message");
    check(b"\x00\x01x", "continuation of no message");
    check(b"\x01\x01x\x81\x01y", "a message within a message");
    check(b"\x01\x01x\x01\x01y", "a message within a message");
    check(b"\x01\x01x\x80\x01y\x80\x01z", "continuation of no message");
}

#[test]
fn section_5_4_a_message_has_a_bound_however_it_is_cut() {
    // As much as may be in one message, and a byte more.
    let serve = |mut stream: TcpStream| {
        let half = vec![b'x'; (websocket::PAYLOAD_BYTES_MAX / 2) as usize];
        for first in [0x02, 0x00] {
            let mut header = vec![first, 127];
            header.extend_from_slice(&(half.len() as u64).to_be_bytes());
            stream.write_all(&header).unwrap();
            stream.write_all(&half).unwrap();
        }
        let _ = stream.write_all(b"\x80\x01x");
        while stream.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
    };
    let mut notes = Notes::default();
    with_odd_server(serve, |address| notes.play(target("", &format!("ws://{address}/"))));
    assert_eq!(notes.ended, [Ending::Early("message above 67108864 bytes".into())]);
}

#[test]
fn the_steps_of_opening_are_timed() {
    with_echo(1, |address| {
        let line = format!("--url ws://{address}/ --connections 20 --seconds 0 --sample 0");
        let outcome = hold(&parse(&line), &Watch::new(&NEVER)).unwrap();
        let names: Vec<_> = outcome.histograms.iter().map(|(name, h)| (&**name, h.len())).collect();
        assert_eq!(names, [("open", 20), ("connect", 20), ("upgrade", 20)]);
        let [open, connect, upgrade] = [0, 1, 2].map(|i| outcome.histograms[i].1.max());
        // Each value is within a thousandth of what was measured.
        assert!(open <= (connect + upgrade) * 1002 / 1000 + 1, "{open} {connect} {upgrade}");
        assert!(open * 1002 / 1000 + 1 >= connect.max(upgrade), "{open} {connect} {upgrade}");
        assert_eq!(outcome.figures["open_us"]["count"], 20);
    });
}
