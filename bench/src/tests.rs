//! The scenarios against the references and against servers that do wrong, on real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::fanout::{self, plain::Plain, rooms::Rooms};
use crate::serve::{self, ring_echo, ring_relay, send_loop};
use crate::target::Target;
use crate::websocket;
use crate::{echo, hold, load};

/// Long enough that only a hang ends by it.
const FOREVER: Duration = Duration::from_secs(60);
static NEVER: AtomicBool = AtomicBool::new(false);

/// Runs `body` beside a reference server, with the server's address.
fn with_server<T>(
    rings: u32,
    run: impl FnOnce(&serve::Options, &AtomicBool, Box<dyn FnOnce(SocketAddr)>) + Send,
    body: impl FnOnce(SocketAddr) -> T,
) -> T {
    let stop = AtomicBool::new(false);
    let options = serve::Options {
        address: "127.0.0.1:0".parse().unwrap(),
        rings,
        time: FOREVER,
        congestion: None,
    };
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            run(&options, &stop, Box::new(move |address| sender.send(address).unwrap()));
        });
        // Stopped on a panic of the body too, or the scope would wait for the server.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        body(receiver.recv().expect("the server listens"))
    })
}

fn with_echo<T>(rings: u32, body: impl FnOnce(SocketAddr) -> T) -> T {
    let run = |options: &serve::Options, stop: &AtomicBool, ready: Box<dyn FnOnce(SocketAddr)>| {
        ring_echo::run(options, stop, ready).unwrap();
    };
    with_server(rings, run, body)
}

fn with_relay<T>(upstream: SocketAddr, body: impl FnOnce(SocketAddr) -> T) -> T {
    let run = |options: &serve::Options, stop: &AtomicBool, ready: Box<dyn FnOnce(SocketAddr)>| {
        ring_relay::run(options, upstream, stop, ready).unwrap();
    };
    with_server(1, run, body)
}

fn target(address: SocketAddr) -> Target {
    Target::parse(&format!("ws://{address}/echo"), false).unwrap()
}

fn echo_options(addresses: &[SocketAddr], connections: u32, bytes: usize) -> echo::Options {
    let servers = addresses.iter().map(|address| echo::Server {
        name: address.to_string(),
        target: target(*address),
        pid: Some(std::process::id()),
    });
    echo::Options {
        servers: servers.collect(),
        connections,
        message_bytes: bytes,
        depth: 1,
        binary: false,
        warm_up: Duration::ZERO,
        slices: 2,
        slice: Duration::from_millis(20),
        congestion: None,
    }
}

fn hold_options(address: SocketAddr, connections: u32) -> hold::Options {
    hold::Options {
        target: target(address),
        connections,
        hold: Duration::from_millis(5),
        opens_per_second_max: None,
        opening_max: 64,
        open_timeout: FOREVER,
        opening_timeout: FOREVER,
        closing_timeout: FOREVER,
        sample: 50,
        slots_per_ring_max: u32::MAX,
        pid: Some(std::process::id()),
        congestion: None,
    }
}

#[track_caller]
fn assert_all_came_back(report: &Value) {
    for server in report["servers"].as_array().unwrap() {
        assert!(server["messages_count"].as_u64() > Some(0), "{report:#}");
        assert_eq!(server["missing_count"], 0, "{report:#}");
        assert!(server["server_cpu_us_per_message_median"].as_f64() > Some(0.0), "{report:#}");
    }
    assert_eq!((&report["faults_count"], &report["ended_early_count"]), (&0.into(), &0.into()));
}

#[test]
fn echo_of_every_length_form_and_depth() {
    with_echo(1, |address| {
        for (bytes, depth) in [(0, 1), (5, 3), (125, 1), (126, 16), (65_536, 1), (300_000, 2)] {
            let mut options = echo_options(&[address], 8, bytes);
            options.depth = depth;
            options.binary = depth == 3;
            assert_all_came_back(&echo::run(&options, &NEVER).unwrap());
        }
    });
}

#[test]
fn echo_through_the_relay_beside_the_echo_itself() {
    with_echo(1, |upstream| {
        with_relay(upstream, |relay| {
            for (bytes, depth) in [(64, 1), (1_000, 8), (500_000, 4)] {
                let mut options = echo_options(&[upstream, relay], 4, bytes);
                options.depth = depth;
                assert_all_came_back(&echo::run(&options, &NEVER).unwrap());
            }
        });
    });
}

#[test]
fn hold_opens_asks_and_closes_all() {
    with_echo(3, |address| {
        let report = hold::run(&hold_options(address, 200), &NEVER).unwrap();
        assert_eq!(report["opened_count"], 200, "{report:#}");
        assert_eq!(report["failed_count"], 0, "{report:#}");
        assert_eq!(report["ended_early_by_server_count"], 0, "{report:#}");
        assert!(report["sample"]["asked_count"].as_u64() > Some(0), "{report:#}");
        assert_eq!(report["sample"]["asked_count"], report["sample"]["answered_count"]);
        assert_eq!(report["closing"]["closed_in_order_count"], 200, "{report:#}");
    });
}

#[test]
fn hold_with_several_rings_on_both_sides() {
    with_echo(3, |address| {
        let mut options = hold_options(address, 1000);
        options.slots_per_ring_max = 300;
        // All at once: the links of so many chains are more than one call to the kernel works off.
        options.opening_max = 1000;
        let report = hold::run(&options, &NEVER).unwrap();
        assert_eq!(report["client"]["rings"], 4, "{report:#}");
        assert_eq!(report["opened_count"], 1000, "{report:#}");
        assert_eq!(report["sample"]["asked_count"], report["sample"]["answered_count"]);
        assert_eq!(report["closing"]["closed_in_order_count"], 1000, "{report:#}");
    });
}

#[test]
fn hold_through_the_relay() {
    with_echo(1, |upstream| {
        with_relay(upstream, |relay| {
            let report = hold::run(&hold_options(relay, 50), &NEVER).unwrap();
            assert_eq!(report["closing"]["closed_in_order_count"], 50, "{report:#}");
        });
    });
}

#[test]
fn slots_are_used_again_at_once() {
    with_echo(1, |upstream| {
        with_relay(upstream, |relay| {
            for _ in 0..20 {
                let mut options = hold_options(relay, 60);
                options.hold = Duration::ZERO;
                options.sample = 0;
                let report = hold::run(&options, &NEVER).unwrap();
                assert_eq!(report["closing"]["closed_in_order_count"], 60, "{report:#}");
            }
        });
    });
}

#[test]
fn an_upstream_that_refuses_ends_the_client() {
    // A port that was free a moment ago, and is not taken while its socket is only bound.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let refusing = socket.local_addr().unwrap().as_socket().unwrap();
    with_relay(refusing, |relay| {
        let report = hold::run(&hold_options(relay, 3), &NEVER).unwrap();
        assert_eq!(report["failed_count"], 3, "{report:#}");
    });
    let report = hold::run(&hold_options(refusing, 3), &NEVER).unwrap();
    let reasons = report["failed_by_reason"].as_object().unwrap();
    assert!(reasons.keys().all(|reason| reason.starts_with("connect: ")), "{report:#}");
    assert_eq!(report["failed_count"], 3, "{report:#}");
}

/// A server of one connection, with ordinary sockets: upgrades, then does as told.
fn with_odd_server<T>(
    serve: impl FnOnce(TcpStream) + Send,
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
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let key = head.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
            let accept = websocket::accept(key);
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            // A byte at a time: what is cut has to be put together.
            for byte in head.bytes() {
                stream.write_all(&[byte]).unwrap();
            }
            serve(stream);
        });
        body(address)
    })
}

/// Reads the payload of the next small frame of a client.
fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 6];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; usize::from(header[1] & 0x7F)];
    stream.read_exact(&mut payload).unwrap();
    websocket::apply_mask(&mut payload, header[2..].try_into().unwrap());
    (header[0] & 0x0F, payload)
}

fn faults_with(change: impl FnOnce(&mut Vec<u8>) + Send) -> Value {
    let serve = |mut stream: TcpStream| {
        let (opcode, payload) = read_frame(&mut stream);
        let mut reply = vec![0x80 | opcode, payload.len() as u8];
        reply.extend_from_slice(&payload);
        change(&mut reply);
        stream.write_all(&reply).unwrap();
        // Until the client is gone; it may send more before.
        while stream.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
    };
    with_odd_server(serve, |address| {
        let mut options = echo_options(&[address], 1, 32);
        options.slices = 1;
        echo::run(&options, &NEVER).unwrap()
    })
}

#[test]
fn a_wrong_echo_is_found() {
    let reason = |report: &Value| {
        let reasons = report["ended_early_by_reason"].as_object().unwrap();
        assert_eq!(reasons.len(), 1, "{report:#}");
        reasons.keys().next().unwrap().clone()
    };
    for changed in [2, 20, 33] {
        let report = faults_with(|reply| reply[changed] ^= 0x01);
        assert_eq!(report["faults_count"], 1);
        assert_eq!(reason(&report), "an echo that is not what was sent");
    }
    let report = faults_with(|reply| reply[0] ^= 0x03); // Text becomes binary.
    assert_eq!(reason(&report), "an echo that is not what was sent");
    let report = faults_with(|reply| {
        reply[1] -= 1;
        reply.pop();
    });
    assert_eq!(reason(&report), "an echo that is not what was sent");
    let report = faults_with(|reply| reply[1] |= 0x80);
    assert_eq!(reason(&report), "masked frame from the server (RFC 6455 §5.1)");
}

#[test]
fn hold_answers_pings_and_tells_an_early_close() {
    let serve = |mut stream: TcpStream| {
        stream.write_all(b"\x89\x05hello").unwrap();
        assert_eq!(read_frame(&mut stream), (0xA, b"hello".to_vec()));
        stream.write_all(b"\x88\x02\x03\xE9").unwrap();
        while stream.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
    };
    with_odd_server(serve, |address| {
        let mut options = hold_options(address, 1);
        // The client would leave before the server has said its word.
        options.hold = Duration::from_secs(1);
        let report = hold::run(&options, &NEVER).unwrap();
        assert_eq!(report["pings_answered_count"], 1, "{report:#}");
        assert_eq!(report["ended_early_by_reason"]["Close frame 1001"], 1, "{report:#}");
    });
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = hold_options(listener.local_addr().unwrap(), 2);
    options.open_timeout = Duration::from_millis(20);
    let report = hold::run(&options, &NEVER).unwrap();
    assert_eq!(report["failed_by_reason"]["handshake: timed out"], 2, "{report:#}");
}

#[test]
fn a_run_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(true);
        let report = hold::run(&hold_options(address, 10), &stopped).unwrap();
        assert_eq!((&report["complete"], &report["opened_count"]), (&false.into(), &0.into()));
        let report = load::run(&load_options(address, 10, 1000), &stopped).unwrap();
        assert_eq!((&report["complete"], &report["back_count"]), (&false.into(), &0.into()));
    });
}

fn load_options(address: SocketAddr, connections: u32, rate: u32) -> load::Options {
    load::Options {
        target: target(address),
        connections,
        rate,
        warm_up: Duration::from_millis(100),
        measured: Duration::from_millis(400),
        message_bytes: 64,
        binary: false,
        in_flight_max: 1024,
        pid: Some(std::process::id()),
        core: Some(0),
        congestion: None,
        percentiles_file: None,
        log_file: None,
        slow_down: Duration::ZERO,
    }
}

fn figure(report: &Value, histogram: &str, name: &str) -> f64 {
    report[histogram][name].as_f64().unwrap_or_else(|| panic!("{histogram} {name} in {report:#}"))
}

#[test]
fn load_offers_its_rate_and_all_comes_back() {
    with_echo(1, |address| {
        for (connections, size, binary) in [(1, 16, true), (7, 64, false), (50, 70_000, false)] {
            let mut options = load_options(address, connections, 500);
            (options.message_bytes, options.binary) = (size, binary);
            let report = load::run(&options, &NEVER).unwrap();
            // 400 ms of 500 a second, whatever the warm-up.
            assert_eq!(report["due_count"], 200, "{report:#}");
            assert_eq!(report["back_count"], 200, "{report:#}");
            for none in ["lost_count", "never_sent_count", "faults_count", "ended_early_count"] {
                assert_eq!(report[none], 0, "{report:#}");
            }
            assert_eq!(report["latency_us"]["count"], 200, "{report:#}");
            assert_eq!(report["tool"]["lag_us"]["count"], 200, "{report:#}");
            // A message is due before it is sent.
            let max = |histogram| figure(&report, histogram, "max");
            assert!(max("latency_us") >= max("latency_from_actual_send_us"), "{report:#}");
            assert!(figure(&report, "server", "cpu_us_per_message") > 0.0);
        }
    });
}

#[test]
fn load_writes_its_histograms() {
    with_echo(1, |address| {
        let file = |name: &str| {
            std::env::temp_dir().join(format!("penstock-bench-{}-{name}", std::process::id()))
        };
        let mut options = load_options(address, 3, 500);
        options.percentiles_file = Some(file("load.hgrm"));
        options.log_file = Some(file("load.hlog"));
        load::run(&options, &NEVER).unwrap();
        let read = |path: Option<std::path::PathBuf>| {
            let text = std::fs::read_to_string(path.as_ref().unwrap()).unwrap();
            std::fs::remove_file(path.unwrap()).unwrap();
            text
        };
        let text = read(options.percentiles_file);
        assert!(text.contains("Total count    =          200]"), "{text}");
        let log = read(options.log_file);
        let tags = log.lines().filter(|line| line.starts_with("Tag=")).count();
        assert_eq!((tags, log.matches("HISTFAAA").count()), (2, 3), "{log}");
        // What cannot be written is told before the run.
        let mut options = load_options(address, 3, 500);
        options.measured = FOREVER;
        options.log_file = Some("/proc/no such directory/load.hlog".into());
        let error = load::run(&options, &NEVER).unwrap_err().to_string();
        assert!(error.starts_with("cannot write /proc/no such"), "{error}");
    });
}

/// Echoes small messages on one connection; at the message of that number it reads nothing for
/// 300 ms.
fn stalling_echo(stall_at: usize) -> impl FnOnce(TcpStream) + Send {
    move |mut stream: TcpStream| {
        stream.set_nodelay(true).unwrap();
        for number in 0.. {
            if number == stall_at {
                // The stall is what is tested, not a wait for something to happen.
                thread::sleep(STALL);
            }
            let (opcode, payload) = read_frame(&mut stream);
            let mut reply = vec![0x80 | opcode, payload.len() as u8];
            reply.extend_from_slice(&payload);
            stream.write_all(&reply).unwrap();
            if opcode == websocket::CLOSE {
                return;
            }
        }
    }
}

const STALL: Duration = Duration::from_millis(300);

#[test]
fn a_stalled_server_shows_in_the_corrected_histogram_and_not_in_the_uncorrected() {
    let run = |in_flight_max| {
        with_odd_server(stalling_echo(300), |address| {
            let mut options = load_options(address, 1, 1000);
            options.measured = Duration::from_secs(1);
            options.in_flight_max = in_flight_max;
            let report = load::run(&options, &NEVER).unwrap();
            assert_eq!((&report["back_count"], &report["lost_count"]), (&1000.into(), &0.into()));
            report
        })
    };
    // A client that waits for each answer sends nothing during the stall: one slow message of a
    // thousand, by its own clock.
    let report = run(1);
    assert!(figure(&report, "latency_us", "max") >= 299_000.0, "{report:#}");
    assert!(figure(&report, "latency_us", "p99") >= 250_000.0, "{report:#}");
    assert!(figure(&report, "latency_us", "p90") >= 100_000.0, "{report:#}");
    assert!(figure(&report, "latency_from_actual_send_us", "p99") < 150_000.0, "{report:#}");
    assert!(report["held_back_count"].as_u64() >= Some(250), "{report:#}");
    // One that does not wait has sent them, and knows.
    let report = run(1024);
    assert!(figure(&report, "latency_us", "p99") >= 250_000.0, "{report:#}");
    assert!(figure(&report, "latency_from_actual_send_us", "p99") >= 200_000.0, "{report:#}");
    assert_eq!(report["held_back_count"], 0, "{report:#}");
}

#[test]
fn messages_that_never_come_back_count_with_the_time_they_were_out() {
    let serve = |mut stream: TcpStream| {
        for _ in 0..10 {
            let (opcode, payload) = read_frame(&mut stream);
            let mut reply = vec![0x80 | opcode, payload.len() as u8];
            reply.extend_from_slice(&payload);
            stream.write_all(&reply).unwrap();
        }
    };
    with_odd_server(serve, |address| {
        let mut options = load_options(address, 1, 100);
        options.warm_up = Duration::ZERO;
        let report = load::run(&options, &NEVER).unwrap();
        assert_eq!(report["due_count"], 40, "{report:#}");
        assert_eq!((&report["back_count"], &report["lost_count"]), (&10.into(), &30.into()));
        assert_eq!(
            (&report["ended_early_count"], &report["latency_us"]["count"]),
            (&1.into(), &40.into())
        );
        // The eleventh was due at 100 ms; at 400 ms it is still out.
        assert!(figure(&report, "latency_us", "max") >= 299_000.0, "{report:#}");
        assert!(figure(&report, "latency_us", "p90") >= 200_000.0, "{report:#}");
    });
}

#[test]
fn a_tool_that_does_not_keep_up_flags_itself() {
    with_echo(1, |address| {
        let mut options = load_options(address, 4, 2000);
        options.slow_down = Duration::from_millis(50);
        let report = load::run(&options, &NEVER).unwrap();
        assert_eq!(report["saturated"], true, "{report:#}");
        let reason = report["saturated_reason"].as_str().unwrap();
        assert!(reason.contains("p99.9 of its own lag"), "{reason}");
        assert!(figure(&report["tool"], "lag_us", "p99.9") >= 50_000.0, "{report:#}");
        // What it sends late counts from when it was due.
        let p50 = |histogram| figure(&report, histogram, "p50");
        assert!(p50("latency_us") > p50("latency_from_actual_send_us") + 10_000.0, "{report:#}");
        assert_eq!(report["due_count"], 800, "{report:#}");
    });
}

#[test]
fn load_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(false);
        let options = load::Options { measured: FOREVER, ..load_options(address, 4, 1000) };
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(400));
                stopped.store(true, Ordering::Relaxed);
            });
            load::run(&options, &stopped).unwrap()
        });
        assert_eq!(report["complete"], false, "{report:#}");
        assert!(
            report["due_count"].as_u64().is_some_and(|due| due > 0 && due < 20_000),
            "{report:#}"
        );
        assert_eq!(report["due_count"], report["back_count"], "{report:#}");
    });
}

/// Runs `body` beside the gateway with its embedded rooms, on two shards.
fn with_gateway<T>(body: impl FnOnce(SocketAddr) -> T) -> T {
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let overrides = gateway::config::Overrides { shards: Some(2), listen };
    let config = gateway::config::Config::embedded_with(&overrides).unwrap();
    let gateway = gateway::server::Gateway::start(config).unwrap();
    let result = body(gateway.addresses()[0]);
    gateway.stop();
    result
}

fn fanout_options(address: SocketAddr, rooms: u32, members: u32) -> fanout::Options {
    fanout::Options {
        target: Target::parse(&format!("ws://{address}/"), false).unwrap(),
        rooms,
        members,
        connections: rooms * members,
        rate: 200,
        warm_up: Duration::from_millis(100),
        measured: Duration::from_millis(400),
        message_bytes: 64,
        pid: Some(std::process::id()),
        core: None,
        congestion: None,
        percentiles_file: None,
        log_file: None,
    }
}

#[test]
fn fanout_reaches_every_member_of_the_gateways_rooms_once_and_in_order() {
    with_gateway(|address| {
        for (run, (rooms, members, connections, size)) in
            [(1, 1, 1, 32), (1, 40, 40, 64), (10, 7, 70, 3000), (12, 5, 9, 64)]
                .into_iter()
                .enumerate()
        {
            let mut options = fanout_options(address, rooms, members);
            (options.connections, options.message_bytes) = (connections, size);
            let rooms = Rooms::new(&format!("run-{run}-"));
            let report = fanout::run(rooms, &options, &NEVER).unwrap();
            assert_eq!(report["ok"], true, "{report:#}");
            // 500 ms of 200 a second; 400 of them measured.
            assert_eq!(report["delivered_count"], 100 * members, "{report:#}");
            assert_eq!(report["last_member_us"]["count"], 80, "{report:#}");
            assert_eq!(report["each_delivery_us"]["count"], 80 * members, "{report:#}");
            let p50 = |histogram| figure(&report, histogram, "p50");
            assert!(p50("first_member_us") <= p50("median_member_us"), "{report:#}");
            assert!(p50("median_member_us") <= p50("last_member_us"), "{report:#}");
            assert!(figure(&report, "server", "cpu_us_per_delivery") > 0.0, "{report:#}");
            assert_eq!(report["refused_by_reason"].as_object().unwrap().len(), 0, "{report:#}");
        }
    });
}

#[test]
fn fanout_finds_what_a_server_does_wrong() {
    // A room of one: the server says that it joined, and sends what is published twice, or never.
    let run = |copies: usize| {
        let serve = move |mut stream: TcpStream| {
            read_frame(&mut stream);
            let say = |stream: &mut TcpStream, text: &[u8]| {
                let mut frame = vec![0x81, 126, (text.len() >> 8) as u8, text.len() as u8];
                frame.extend_from_slice(text);
                stream.write_all(&frame).unwrap();
            };
            say(&mut stream, br#"{"ack":null,"op":"join","room":"r0"}"#);
            loop {
                let (opcode, payload) = read_frame(&mut stream);
                if opcode == websocket::CLOSE {
                    stream.write_all(&[0x88, 0]).unwrap();
                    return;
                }
                let json: Value = serde_json::from_slice(&payload).unwrap();
                let data = json["data"].as_str().unwrap();
                let text =
                    format!(r#"{{"event":"message","room":"r0","offset":1,"data":"{data}"}}"#);
                for _ in 0..copies {
                    say(&mut stream, text.as_bytes());
                }
            }
        };
        with_odd_server(serve, |address| {
            let mut options = fanout_options(address, 1, 1);
            options.message_bytes = 40;
            options.measured = Duration::from_millis(100);
            options.warm_up = Duration::ZERO;
            fanout::run(Rooms::new("r"), &options, &NEVER).unwrap()
        })
    };
    assert_eq!(run(1)["ok"], true);
    let report = run(2);
    assert_eq!(report["ok"], false, "{report:#}");
    // The copy of the last may come after all is delivered.
    assert!(
        report["duplicates_count"].as_u64().is_some_and(|n| (19..=20).contains(&n)),
        "{report:#}"
    );
    let report = run(0);
    assert_eq!(
        (&report["ok"], &report["missing_count"]),
        (&false.into(), &20.into()),
        "{report:#}"
    );
    assert!(figure(&report, "last_member_us", "max") > 5e6, "{report:#}");
}

#[test]
fn fanout_tells_why_members_could_not_join() {
    with_gateway(|address| {
        // A control character is not allowed in a name, and has to be escaped besides.
        let options = fanout_options(address, 1, 3);
        let error = fanout::run(Rooms::new("\\u0007"), &options, &NEVER).unwrap_err();
        assert!(error.to_string().contains("bad_room"), "{error}");
        let mut options = fanout_options(address, 2, 3);
        for connections in [2, 7] {
            options.connections = connections;
            let error = fanout::run(Rooms::new("r"), &options, &NEVER).unwrap_err();
            assert!(error.to_string().contains("should be 3"), "{error}");
        }
    });
}

#[test]
fn fanout_through_the_send_loop() {
    let run = |options: &serve::Options, stop: &AtomicBool, ready: Box<dyn FnOnce(SocketAddr)>| {
        let report = send_loop::run(options, stop, ready).unwrap();
        assert_eq!(report["accepted_count"], 40 + 40 + 5, "{report:#}");
        assert_eq!(report["dropped_as_too_slow_count"], 0, "{report:#}");
    };
    with_server(1, run, |address| {
        for bytes in [32, 3000] {
            let mut options = fanout_options(address, 1, 40);
            options.message_bytes = bytes;
            let report = fanout::run(Plain, &options, &NEVER).unwrap();
            assert_eq!(report["ok"], true, "{report:#}");
            assert_eq!(report["delivered_count"], 4000, "{report:#}");
        }
        // It answers Pings and closes in order like any server.
        let report = hold::run(&hold_options(address, 5), &NEVER).unwrap();
        assert_eq!(report["sample"]["asked_count"], report["sample"]["answered_count"]);
        assert_eq!(report["closing"]["closed_in_order_count"], 5, "{report:#}");
    });
}
