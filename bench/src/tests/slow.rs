//! Clients that do not read, and peers that never answer.

use super::*;
use crate::slow::run as slow;

const SHORT: &str = "--before-seconds 0.2 --slow-seconds 0.5 --after-seconds 0.3";

#[test]
fn slow_ones_get_all_in_the_end_and_the_others_lose_nothing() {
    with_echo(1, |address| {
        let own = std::process::id();
        let line =
            format!("--url ws://{address}/ --connections 20 --rate 400/s --size 16000 {SHORT}");
        let report = run(slow, &format!("{line} --slow-percent 10 --pid {own}"));
        assert_eq!(report["ok"], true, "{report:#}");
        assert_eq!(
            (&report["slow_count"], &report["slow_all_in_order_count"]),
            (&2.into(), &2.into())
        );
        for none in ["slow_ended_count", "others_ended_count", "others_lost_count"] {
            assert_eq!(report[none], 0, "{report:#}");
        }
        for period in ["before", "during", "after"] {
            let period = &report[period];
            assert_eq!(period["due_count"], period["back_count"], "{report:#}");
            assert!(period["due_count"].as_u64() > Some(0), "{report:#}");
        }
        // TCP's buffers are the machine's, so that other tests move them, and the kernel counts them
        // in lots per CPU, so that few are none: only that they are read.
        let memory = &report["memory"];
        assert!(memory["samples_count"].as_u64() > Some(2), "{report:#}");
        assert!(memory["tcp_buffers_max_bytes"].is_u64(), "{report:#}");
        assert!(memory["server_rss_max_bytes"].as_u64() > Some(0), "{report:#}");
    });
}

#[test]
fn a_slow_one_does_not_read_and_goes_on_sending() {
    // Writes Pongs, which nobody has to answer, until they are not taken for 100 ms: with buffers of
    // some 10 kB only a client that does not read can make it so.
    let serve = |mut stream: TcpStream| {
        let buffer = socket2::SockRef::from(&stream);
        buffer.set_send_buffer_size(8192).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut last_taken = std::time::Instant::now();
        let mut rest: &[u8] = &[];
        let pong = [&[0x8A, 125][..], &[b'x'; 125]].concat();
        while last_taken.elapsed() < Duration::from_millis(100) {
            rest = if rest.is_empty() { &pong } else { rest };
            match stream.write(rest) {
                Ok(len) => {
                    rest = &rest[len..];
                    last_taken = std::time::Instant::now();
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let _ = stream.read(&mut [0; 4096]);
        }
        // It goes on sending, and later reads what there is.
        stream.set_nonblocking(false).unwrap();
        assert_eq!(read_frame(&mut stream).0, websocket::TEXT);
        stream.write_all(rest).unwrap();
        stream.write_all(b"\x88\x02\x03\xF0").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    };
    with_odd_server(serve, |address| {
        let line = format!("--url ws://{address}/ --connections 1 --slow-percent 100 --rate 100/s");
        let line = format!("{line} --size 64 --receive-buffer-bytes 4096 --before-seconds 0");
        let report = run(slow, &format!("{line} --slow-seconds 1.5 --after-seconds 1"));
        assert_eq!(report["slow_ended_by_reason"]["Close frame 1008"], 1, "{report:#}");
        assert_eq!(report["others_lost_count"], 0, "{report:#}");
    });
}

#[test]
fn a_slow_one_that_is_cut_off_is_told_with_the_code() {
    let serve = |mut stream: TcpStream| {
        for _ in 0..150 {
            read_frame(&mut stream);
        }
        // Messages of the client are unread: it is a reset as well.
        stream.write_all(b"\x88\x02\x03\xF0").unwrap();
    };
    with_odd_server(serve, |address| {
        let line = format!("--url ws://{address}/ --connections 1 --slow-percent 100 --rate 100/s");
        let line = format!("{line} --size 64 --before-seconds 0 --slow-seconds 2");
        let report = run(slow, &format!("{line} --after-seconds 0.1"));
        assert_eq!(report["slow_ended_count"], 1, "{report:#}");
        assert_eq!(report["slow_ended_by_reason"]["Close frame 1008"], 1, "{report:#}");
        assert_eq!(report["slow_all_in_order_count"], 0, "{report:#}");
    });
}

/// Serves one connection as a careful server would: half a head is refused after 200 ms, a Ping that
/// nobody answers ends in a Close frame and no more, and messages are echoed.
fn careful(mut stream: TcpStream) {
    let patience = Some(Duration::from_millis(200));
    stream.set_read_timeout(patience).unwrap();
    let mut head = [0; 2048];
    // A request in one piece.
    while stream.peek(&mut head).is_ok_and(|len| len == 0) {}
    let len = stream.peek(&mut head).unwrap();
    if !head[..len].ends_with(b"\r\n\r\n") {
        stream.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap();
        let _ = stream.read(&mut head);
        return;
    }
    stream.set_read_timeout(None).unwrap();
    upgrade(&mut stream);
    stream.write_all(b"\x89\x00").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut header = [0; 6];
    if !stream.peek(&mut header).is_ok_and(|len| len == 6) {
        stream.write_all(b"\x88\x02\x03\xF3").unwrap();
        return;
    }
    stream.set_read_timeout(None).unwrap();
    loop {
        let (opcode, payload) = read_frame(&mut stream);
        if opcode == websocket::PONG {
            continue;
        }
        let mut reply = vec![0x80 | opcode, payload.len() as u8];
        reply.extend_from_slice(&payload);
        stream.write_all(&reply).unwrap();
        if opcode == websocket::CLOSE {
            return;
        }
    }
}

#[test]
fn half_open_and_mute_peers_are_told_with_what_ended_them() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..5 {
                let (stream, _) = listener.accept().unwrap();
                scope.spawn(|| careful(stream));
            }
        });
        let line = format!("--url ws://{address}/ --connections 1 --slow-percent 0 --rate 50/s");
        let line = format!("{line} --size 64 {SHORT} --half-open 2 --mute 2");
        let report = run(slow, &format!("{line} --patience-seconds-max 10"));
        assert_eq!(report["ok"], true, "{report:#}");
        let half_open = &report["half_open"]["ended_by_reason"];
        assert_eq!(half_open["handshake: refused: HTTP/1.1 408 Request Timeout"], 2, "{report:#}");
        let mute = report["mute"]["ended_by_reason"].as_object().unwrap();
        assert!(
            mute.keys().all(|reason| reason.starts_with("Close frame 1011, then: ")),
            "{mute:?}"
        );
        for peers in ["half_open", "mute"] {
            assert_eq!(report[peers]["ended_by_server_count"], 2, "{report:#}");
            assert_eq!(report[peers]["kept_us"]["count"], 2, "{report:#}");
            assert_eq!(report[peers]["still_there_at_end_count"], 0, "{report:#}");
        }
        assert!(figure(&report["mute"], "kept_us", "p50") >= 1_000_000.0, "{report:#}");
    });
}

#[test]
fn peers_that_the_server_keeps_are_still_there_at_the_end() {
    with_echo(1, |address| {
        let line = format!("--url ws://{address}/ --connections 2 --rate 50/s {SHORT}");
        let report = run(slow, &format!("{line} --half-open 3 --mute 3"));
        assert_eq!(report["half_open"]["still_there_at_end_count"], 3, "{report:#}");
        assert_eq!(report["mute"]["still_there_at_end_count"], 3, "{report:#}");
        assert_eq!((&report["slow_count"], &report["ok"]), (&1.into(), &true.into()));
    });
}

#[test]
fn slow_on_the_gateway() {
    let stopped = AtomicBool::new(true);
    with_gateway(|address| {
        let line = format!("--url ws://{address}/ --connections 4 {SHORT}");
        let report = try_run(slow, &line, &stopped).unwrap();
        assert_eq!(report["complete"], false, "{report:#}");
    });
}
