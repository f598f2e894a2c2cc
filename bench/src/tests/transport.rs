//! How connections are made and what they carry, whatever is said on them.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::echo::run as echo;
use crate::engine::{Ending, Engine, Request, Scenario, Settings};
use crate::hold::run as hold;
use crate::options::Common;
use crate::target::Target;
use crate::websocket::Frame;

fn settings(targets: Vec<Target>, clients_per_target: u32) -> Settings {
    Settings {
        opening_max: 64,
        open_timeout: FOREVER,
        buffer_bytes: 8 * 1024,
        ..Settings::new(targets, clients_per_target, &Common::default())
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

/// `server.js`, an echo on the npm package `ws`; ended when dropped.
struct Node {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Node {
    #[track_caller]
    fn start(options: &Value) -> Node {
        let home = std::env::var_os("PENSTOCK_TEST_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/penstock-test"),
            PathBuf::from,
        );
        let modules = home.join("node_modules");
        assert!(modules.exists(), "{} is not there; run scripts/test-tools", modules.display());
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/server.js");
        let mut command = Command::new("node");
        command.arg(program).arg(options.to_string()).env("NODE_PATH", modules);
        // Its input ends with us, whatever becomes of us, and that ends it.
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("node runs");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().expect("a line").unwrap();
        let port = line.strip_prefix("listening ").and_then(|port| port.parse().ok()).unwrap();
        Node { child, lines, port }
    }

    /// What it says of the next connection.
    fn connection(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("a line").unwrap()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A certificate for this machine and a file that it is in, removed when dropped.
struct Certificate {
    key: String,
    cert: String,
    path: PathBuf,
}

impl Certificate {
    fn new(test: &str) -> Certificate {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let name = format!("penstock-bench-{}-{test}.pem", std::process::id());
        let path = std::env::temp_dir().join(name);
        let cert = made.cert.pem();
        std::fs::write(&path, &cert).unwrap();
        Certificate { key: made.signing_key.serialize_pem(), cert, path }
    }

    fn server(&self, tls: &Value) -> Node {
        Node::start(&json!({ "key": self.key, "cert": self.cert, "tls": tls }))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens connections one after the other and holds them for no time.
fn hold_secured(host: &str, port: u16, connections: u32, more: &str) -> Value {
    let line = format!("--url wss://{host}:{port}/ --connections {connections} --opening-max 1");
    run(hold, &format!("{line} --seconds 0 {more}"))
}

#[test]
fn connections_are_secured_and_nobody_is_believed_unchecked() {
    let certificate = Certificate::new("secured");
    let mut server = certificate.server(&json!({}));
    let ca = format!("--tls-ca {}", certificate.path.display());
    let report = hold_secured("localhost", server.port, 3, &ca);
    assert_eq!((&report["opened_count"], &report["tls"]["resumed_count"]), (&3.into(), &0.into()));
    assert_eq!(report["sample"]["asked_count"], report["sample"]["answered_count"]);
    assert_eq!(report["closing"]["closed_in_order_count"], 3, "{report:#}");
    for histogram in ["open_us", "connect_us", "tls_us", "upgrade_us"] {
        assert_eq!(report[histogram]["count"], 3, "{report:#}");
    }
    assert!(figure(&report, "tls_us", "max") <= figure(&report, "open_us", "max"));
    let connection = server.connection();
    assert_eq!(
        (&connection["alpn"], &connection["name"]),
        (&"http/1.1".into(), &"localhost".into())
    );

    // An address is in the certificate as well, and is no name to be sent (RFC 6066 §3).
    assert_eq!(hold_secured("127.0.0.1", server.port, 1, &ca)["opened_count"], 1);
    assert_eq!(hold_secured("127.0.0.1", server.port, 1, "--tls-insecure")["opened_count"], 1);

    let stranger = Certificate::new("stranger");
    let ca = format!("--tls-ca {}", stranger.path.display());
    let report = hold_secured("localhost", server.port, 2, &ca);
    let reasons = report["failed_by_reason"].as_object().unwrap();
    assert_eq!(report["failed_count"], 2, "{report:#}");
    let is_ours = |reason: &String| reason.starts_with("TLS handshake: invalid peer certificate");
    assert!(reasons.keys().all(is_ours), "{report:#}");
    // Another address than the certificate is for.
    let ca = format!("--tls-ca {}", certificate.path.display());
    let target = target(&ca, &format!("wss://127.0.0.2:{}/", server.port));
    assert!(target.security.is_some());
}

#[test]
fn sessions_are_resumed_when_asked_for() {
    let certificate = Certificate::new("resumed");
    for version in ["1.2", "1.3"] {
        let mut server = certificate.server(&json!({
            "minVersion": format!("TLSv{version}"), "maxVersion": format!("TLSv{version}"),
        }));
        let more = format!("--tls-ca {} --tls-version {version}", certificate.path.display());
        let report = hold_secured("localhost", server.port, 4, &format!("{more} --tls-resume on"));
        assert_eq!(report["opened_count"], 4, "{report:#}");
        let resumed = [0; 4].map(|_| server.connection()["resumed"].as_bool().unwrap());
        // This server gives two tickets of TLS 1.3 after a full handshake, none after a resumed one.
        assert_eq!(resumed, [false, true, true, version == "1.2"], "TLS {version}");
        let count = resumed.iter().filter(|resumed| **resumed).count();
        assert_eq!(report["tls"]["resumed_count"], count, "TLS {version}: {report:#}");
        let report = hold_secured("localhost", server.port, 2, &more);
        assert_eq!(report["tls"]["resumed_count"], 0, "TLS {version}: {report:#}");
        // The other version is not spoken.
        let other = if version == "1.2" { "1.3" } else { "1.2" };
        let more = more.replace(&format!("version {version}"), &format!("version {other}"));
        assert_eq!(hold_secured("localhost", server.port, 1, &more)["failed_count"], 1);
    }
}

#[test]
fn messages_of_every_size_pass_through_tls() {
    let certificate = Certificate::new("messages");
    let server = certificate.server(&json!({}));
    for version in ["1.2", "1.3"] {
        for (size, depth) in [(0, 1), (5, 3), (126, 16), (16_384, 1), (70_000, 2), (300_000, 4)] {
            let line = format!(
                "--url wss://localhost:{}/ --tls-insecure --tls-version {version} --connections 4 \
                 --size {size} --depth {depth} --warm-up-seconds 0 --seconds 0.05",
                server.port
            );
            let report = run(echo, &line);
            let server = &report["servers"][0];
            assert!(server["messages_count"].as_u64() > Some(0), "{report:#}");
            assert_eq!((&report["faults_count"], &server["missing_count"]), (&0.into(), &0.into()));
            assert_eq!(report["ended_early_count"], 0, "{report:#}");
        }
    }
}

#[test]
fn what_is_no_tls_fails_its_client() {
    let check = |answer: &'static [u8], want: &str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).unwrap();
                assert_eq!(hello[0], 22, "a handshake record (RFC 8446 §5.1)");
                stream.write_all(answer).unwrap();
            });
            let report = hold_secured("127.0.0.1", port, 1, "--tls-insecure");
            let reasons = report["failed_by_reason"].as_object().unwrap();
            let reason = reasons.keys().next().unwrap();
            assert!(reason.contains(want), "{reason}");
        });
    };
    check(b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS handshake: ");
    // An alert: handshake_failure.
    check(b"\x15\x03\x03\0\x02\x02\x28", "TLS handshake: ");
}

#[test]
fn authorities_that_cannot_be_read_are_told() {
    let refused = |line: &str| {
        let common = parse::<crate::options::Common>(line);
        common.target("wss://127.0.0.1:1/").unwrap_err().to_string()
    };
    assert!(refused("--tls-ca /nonexistent").contains("/nonexistent: No such file"));
    assert!(refused("--tls-ca /dev/null").contains("no certificate of an authority"));
}

#[test]
fn messages_are_compressed_where_both_sides_want_it() {
    let echoes = |deflate: &Value, secured: bool, more: &str| {
        let certificate = Certificate::new(&format!("deflate-{secured}-{}", more.len()));
        let mut options = json!({ "deflate": deflate });
        if secured {
            options["key"] = json!(certificate.key);
            options["cert"] = json!(certificate.cert);
        }
        let mut server = Node::start(&options);
        let scheme = if secured { "wss" } else { "ws" };
        let mut report = Value::Null;
        for (size, depth) in [(0, 1), (5, 3), (126, 16), (70_000, 2), (300_000, 1)] {
            let line = format!(
                "--url {scheme}://localhost:{}/ --tls-insecure --connections 3 --size {size} \
                 --depth {depth} --warm-up-seconds 0 --seconds 0.05 {more}",
                server.port
            );
            report = run(echo, &line);
            assert!(report["servers"][0]["messages_count"].as_u64() > Some(0), "{report:#}");
            assert_eq!(
                (&report["faults_count"], &report["ended_early_count"]),
                (&0.into(), &0.into()),
                "{report:#}"
            );
        }
        (server.connection()["extensions"].as_str().unwrap().to_owned(), report)
    };
    for secured in [false, true] {
        let (extensions, report) = echoes(&json!({ "threshold": 0 }), secured, "--deflate");
        assert!(extensions.contains("permessage-deflate"), "{extensions}");
        let deflate = &report["deflate"];
        assert_eq!(deflate["agreed_count"], 3, "{report:#}");
        // The alphabet over and over.
        for ratio in ["sent_ratio", "received_ratio"] {
            assert!(figure(&report, "deflate", ratio) < 0.1, "{report:#}");
        }
        assert_eq!(deflate["sent_payload_bytes"], deflate["received_payload_bytes"]);
    }
    let small = json!({ "threshold": 0, "clientMaxWindowBits": 9, "serverMaxWindowBits": 10 });
    let (_, report) = echoes(&small, false, "--deflate ");
    assert_eq!(report["deflate"]["agreed_count"], 3, "{report:#}");
    // What the server leaves as it is.
    let (_, report) = echoes(&json!({ "threshold": 1 << 30 }), false, "--deflate");
    assert_eq!(figure(&report, "deflate", "received_ratio"), 1.0, "{report:#}");
    // A server without, and a client without.
    let (extensions, report) = echoes(&Value::Null, false, "--deflate");
    assert_eq!((&*extensions, &report["deflate"]["agreed_count"]), ("", &0.into()));
    let (extensions, report) = echoes(&json!({ "threshold": 0 }), false, "");
    assert_eq!((&*extensions, &report["deflate"]), ("", &Value::Null));
}

#[test]
fn rfc_7692_section_7_2_3_messages_in_fragments_and_on_each_other() {
    // "Hello" in two fragments around a Ping, as it is, and by what the first said (§7.2.3.2).
    let wire: &[u8] = b"\x41\x03\xf2\x48\xcd\x89\x00\x80\x04\xc9\xc9\x07\x00\x81\x05Hello\
                        \xc1\x05\xf2\x00\x11\x00\x00\x88\x02\x03\xe8";
    for cut in 0..=wire.len() {
        let answer =
            |head: &str| accept_with(head, "Sec-WebSocket-Extensions: permessage-deflate\r\n");
        let notes = with_wire(answer, &[&wire[..cut], &wire[cut..]]);
        let hello = || (1, b"Hello".to_vec());
        assert_eq!(notes.heard, [hello(), hello(), hello()], "cut at {cut}");
        assert_eq!(notes.ended, [Ending::Early("Close frame 1000".into())], "cut at {cut}");
    }
    // A server that said it would not refer to the first.
    let answer = |head: &str| {
        let line = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
        accept_with(head, line)
    };
    let notes = with_wire(answer, &[wire]);
    let [Ending::Early(reason)] = &notes.ended[..] else { panic!("{:?}", notes.ended) };
    assert!(reason.contains("cannot be inflated"), "{reason}");
    // One that did not agree to compress.
    let notes = with_wire(|head| accept_with(head, ""), &[b"\xc1\x00"]);
    let [Ending::Early(reason)] = &notes.ended[..] else { panic!("{:?}", notes.ended) };
    assert!(reason.contains("reserved bit"), "{reason}");
}

/// Plays one connection that offers to compress: the server sends its answer, then these bytes.
fn with_wire(answer: impl FnOnce(&str) -> String + Send, wire: &[&[u8]]) -> Notes {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let mut notes = Notes::default();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let answer = answer(&String::from_utf8(head).unwrap());
            stream.write_all(answer.as_bytes()).unwrap();
            for piece in wire {
                // A client that has found a fault may be gone.
                let _ = stream.write_all(piece);
            }
            while stream.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
        });
        notes.play(target("--deflate", &url));
    });
    notes
}
