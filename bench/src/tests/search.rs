//! The highest rate within a bound of latency.

use std::time::Instant;

use super::*;
use crate::search::run as search;

/// Echoes one small message.
fn echo_one(stream: &mut TcpStream) -> u8 {
    let (opcode, payload) = read_frame(stream);
    let mut reply = vec![0x80 | opcode, payload.len() as u8];
    reply.extend_from_slice(&payload);
    stream.write_all(&reply).unwrap();
    opcode
}

/// Echoes at most so many messages a second: far below what any machine can do.
pub(super) fn throttled_echo(per_second: u32) -> impl FnOnce(TcpStream) + Send {
    move |mut stream: TcpStream| {
        stream.set_nodelay(true).unwrap();
        let period = Duration::from_secs(1) / per_second;
        let mut next = Instant::now();
        loop {
            // The pace is what is tested. What a sleep takes too long is made up for, but nothing
            // is saved up while there is little to do.
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if echo_one(&mut stream) == websocket::CLOSE {
                return;
            }
            let earliest = Instant::now() - Duration::from_millis(50);
            next = (next + period).max(earliest);
        }
    }
}

#[test]
fn search_finds_the_limit_of_a_throttled_server() {
    with_odd_server(throttled_echo(200), |address| {
        let line = format!(
            "--url ws://{address}/ --connections 1 --from 50 --percentile 90 --max-ms 50 \
             --tolerance 20 --confirm 1 --seconds 0.6 --warm-up-seconds 0.1 --pid {}",
            std::process::id()
        );
        let report = run(search, &line);
        let found = report["rate_found_per_second"].as_f64().unwrap();
        let high = report["rate_too_high_per_second"].as_f64().unwrap();
        // A twelfth above the limit, the queue reaches the bound within a probe.
        assert!((160.0..230.0).contains(&found), "{report:#}");
        assert!(high > 190.0 && high - found <= found * 0.2, "{report:#}");
        assert_eq!((&report["complete"], &report["confirmed_count"]), (&true.into(), &1.into()));
        let probes = report["probes"].as_array().unwrap();
        let rates: Vec<u64> =
            probes.iter().map(|probe| probe["rate_per_second"].as_u64().unwrap()).collect();
        assert_eq!(rates[..2], [50, 100], "{report:#}");
        for probe in probes {
            let is_within = probe["bounded_us"].as_f64() <= Some(50_000.0);
            let is_good = is_within && probe["lost_count"] == 0;
            assert_eq!(probe["good"], is_good, "{report:#}");
            assert_eq!(probe["limited_by"].is_null(), is_good, "{report:#}");
            assert!(probe["server_cpu_busy_percent"].is_number(), "{report:#}");
        }
        assert!(report["latency_at_rate_found_us"]["count"].as_u64() > Some(100), "{report:#}");
        assert_eq!(
            (&report["faults_count"], &report["ended_early_count"]),
            (&Value::Null, &0.into())
        );
    });
}

#[test]
fn a_tool_that_is_the_limit_says_so() {
    with_echo(1, |address| {
        let line = format!(
            "--url ws://{address}/ --connections 2 --from 400 --rate-min 400 --max-ms 5 --tries 1 --cpu 0 \
             --seconds 0.1 --warm-up-seconds 0 --slow-down-seconds 0.02"
        );
        let report = run(search, &line);
        assert_eq!(report["rate_found_per_second"], Value::Null, "{report:#}");
        assert_eq!(report["limited_by"], "tool", "{report:#}");
        assert_eq!(report["saturated"], true, "{report:#}");
        let reason = report["saturated_reason"].as_str().unwrap();
        assert!(reason.contains("thread was busy") || reason.contains("late"), "{reason}");
    });
}

#[test]
fn a_server_that_hangs_up_ends_the_search() {
    let serve = |mut stream: TcpStream| {
        for _ in 0..30 {
            echo_one(&mut stream);
        }
    };
    with_odd_server(serve, |address| {
        let line = format!(
            "--url ws://{address}/ --connections 1 --from 100 --max-ms 10000 --seconds 0.2 \
             --warm-up-seconds 0"
        );
        let report = run(search, &line);
        assert_eq!(report["ended_by"], "1 connections ended", "{report:#}");
        assert_eq!((&report["complete"], &report["ended_early_count"]), (&false.into(), &1.into()));
        assert_eq!(report["rate_found_per_second"], 100, "{report:#}");
        let probes = report["probes"].as_array().unwrap();
        assert_eq!(probes.len(), 2, "{report:#}");
        assert!(probes[1]["lost_count"].as_u64() > Some(0), "{report:#}");
        assert!(matches!(probes[1]["limited_by"].as_str(), Some("loss" | "tool")), "{report:#}");
    });
}

#[test]
fn search_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(false);
        let line = format!(
            "--url ws://{address}/ --connections 2 --from 100 --max-ms 60000 --seconds 0.1 \
             --warm-up-seconds 0 --rate-max 200 --confirm 100"
        );
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(1500));
                stopped.store(true, Ordering::Relaxed);
            });
            try_run(search, &line, &stopped).unwrap()
        });
        assert_eq!((&report["complete"], &report["ended_by"]), (&false.into(), &"stopped".into()));
        assert_eq!(report["rate_found_per_second"], 200, "{report:#}");
        assert_eq!(report["limited_by"], "rate_max", "{report:#}");
    });
}
