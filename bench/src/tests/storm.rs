//! Many that come back at once.

use super::*;
use crate::storm::run as storm;

const SHORT: &str = "--before-seconds 0.2 --after-seconds 0.2";

#[test]
fn all_come_back_and_the_standing_ones_lose_nothing() {
    with_echo(1, |address| {
        let own = std::process::id();
        let line = format!("--url ws://{address}/ --standing 10 --rate 200/s {SHORT} --pid {own}");
        for (connections, spread) in [(1, 0.0), (300, 0.0), (50, 0.2)] {
            let more = format!("--connections {connections} --spread {spread}");
            let report = run(storm, &format!("{line} {more}"));
            assert_eq!(report["ok"], true, "{report:#}");
            assert_eq!(report["up_again_count"], connections, "{report:#}");
            assert_eq!(report["attempts_count"], connections, "{report:#}");
            assert_eq!(report["up_us"]["count"], connections, "{report:#}");
            for none in ["given_up_count", "standing_lost_count", "standing_ended_count"] {
                assert_eq!(report[none], 0, "{report:#}");
            }
            // Nobody comes back before its time.
            let up_ms = report["all_up_ms"].as_f64().unwrap();
            assert!(up_ms > spread * 500.0, "{report:#}");
            for period in ["before", "during", "after"] {
                let period = &report[period];
                assert_eq!(period["due_count"], period["back_count"], "{report:#}");
                assert_eq!(period["due_count"], period["latency_us"]["count"], "{report:#}");
            }
            assert!(report["before"]["due_count"].as_u64() >= Some(30), "{report:#}");
            assert!(report["server_cpu_us_per_open"].as_f64() > Some(0.0), "{report:#}");
        }
    });
}

#[test]
fn a_storm_on_the_gateway_without_standing_ones() {
    with_gateway(|address| {
        let line = format!("--url ws://{address}/ --standing 0 --connections 200 {SHORT}");
        let report = run(storm, &line);
        assert_eq!((&report["ok"], &report["up_again_count"]), (&true.into(), &200.into()));
    });
}

/// A server by hand: upgrades the first `taken` connections, and closes those behind them until
/// `refused` were, then upgrades again.
fn refusing_server(listener: &TcpListener, taken: usize, refused: usize, all: usize) {
    let mut streams = Vec::new();
    for number in 0..all {
        let (mut stream, _) = listener.accept().unwrap();
        if (taken..taken + refused).contains(&number) {
            continue;
        }
        upgrade(&mut stream);
        streams.push(stream);
    }
    // Until they are gone.
    for mut stream in streams {
        let mut close = Vec::new();
        let _ = stream.write_all(b"\x88\x02\x03\xE8").and_then(|()| stream.read_to_end(&mut close));
    }
}

#[test]
fn who_is_refused_tries_again_and_counts_from_the_first_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        // Four, of which the storm's come back; each is refused once, on average.
        scope.spawn(|| refusing_server(&listener, 4, 4, 12));
        let line = format!(
            "--url ws://{address}/ --standing 0 --connections 4 {SHORT} --back-off-seconds 0.1"
        );
        let report = run(storm, &line);
        assert_eq!(report["up_again_count"], 4, "{report:#}");
        assert_eq!(
            (&report["attempts_count"], &report["failed_attempts_count"]),
            (&8.into(), &4.into())
        );
        assert!(figure(&report, "up_us", "max") >= 100_000.0, "{report:#}");
        assert!(
            figure(&report, "up_us", "max")
                > figure(&report["successful_attempts"], "open_us", "max"),
            "{report:#}"
        );
    });
}

#[test]
fn who_is_refused_too_often_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| refusing_server(&listener, 2, 6, 8));
        let line = format!(
            "--url ws://{address}/ --standing 0 --connections 2 {SHORT} --back-off-seconds 0.001 \
             --attempts-max 3"
        );
        let report = run(storm, &line);
        assert_eq!((&report["ok"], &report["given_up_count"]), (&false.into(), &2.into()));
        assert_eq!(report["failed_attempts_count"], 6, "{report:#}");
        assert_eq!(report["all_up_ms"], Value::Null, "{report:#}");
    });
}

#[test]
fn a_server_that_is_restarted_gets_all_of_them_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let upgraded = |_| {
                let (mut stream, _) = listener.accept().unwrap();
                upgrade(&mut stream);
                stream
            };
            let mut first: Vec<TcpStream> = (0..3).map(upgraded).collect();
            // The standing one is the first: some of its messages come back.
            let started = std::time::Instant::now();
            while started.elapsed() < Duration::from_secs(2) {
                for stream in &mut first {
                    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                    let mut header = [0; 6];
                    if stream.peek(&mut header).is_ok_and(|len| len == 6) {
                        let (opcode, payload) = read_frame(stream);
                        let mut reply = vec![0x80 | opcode, payload.len() as u8];
                        reply.extend_from_slice(&payload);
                        stream.write_all(&reply).unwrap();
                    }
                }
            }
            drop(first);
            let mut second: Vec<TcpStream> = (0..3).map(upgraded).collect();
            for stream in &mut second {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let line = format!(
            "--url ws://{address}/ --standing 1 --connections 2 --rate 20/s --cut-by server {SHORT}"
        );
        let report = run(storm, &line);
        assert_eq!(report["up_again_count"], 3, "{report:#}");
        assert_eq!(report["standing_ended_count"], 1, "{report:#}");
        assert!(report["before"]["back_count"].as_u64() > Some(0), "{report:#}");
    });
}

#[test]
fn a_storm_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(true);
        let line = format!("--url ws://{address}/ --standing 2 --connections 2");
        let report = try_run(storm, &line, &stopped).unwrap();
        assert_eq!(report["complete"], false, "{report:#}");
    });
}
