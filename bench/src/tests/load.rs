//! Messages at a fixed rate.

use super::*;
use crate::load::run as load;
use crate::options::Files;
use crate::result_file::ResultFile;

fn line(address: SocketAddr, connections: u32, rate: u32) -> String {
    format!(
        "--url ws://{address}/echo --connections {connections} --rate {rate} --cpu 0 --pid {}",
        std::process::id()
    )
}

/// Warm-up and measured time of most tests.
const SHORT: &str = "--warm-up-seconds 0.1 --seconds 0.4";

#[test]
fn load_offers_its_rate_and_all_comes_back() {
    with_echo(1, |address| {
        for (connections, size, binary) in [(1, 16, true), (7, 64, false), (50, 70_000, false)] {
            let line = line(address, connections, 500);
            let binary = if binary { "--binary" } else { "" };
            let report = run(load, &format!("{line} {SHORT} --size {size} {binary}"));
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
        let files = Files {
            hgrm: Some(file("load.hgrm")),
            hlog: Some(file("load.hlog")),
            ..Files::default()
        };
        let line = format!("{} {SHORT}", line(address, 3, 500));
        let watch = Watch::new(&NEVER);
        let outcome = load(&parse(&line), &watch).unwrap();
        let request = results::request(&format!("load {line}"));
        let result = ResultFile::new(&request, &outcome, &watch.finish());
        result.write_files(&files).unwrap();
        let read = |path: Option<std::path::PathBuf>| {
            let text = std::fs::read_to_string(path.as_ref().unwrap()).unwrap();
            std::fs::remove_file(path.unwrap()).unwrap();
            text
        };
        let text = read(files.hgrm);
        assert!(text.contains("Total count    =          200]"), "{text}");
        let log = read(files.hlog);
        let tags = log.lines().filter(|line| line.starts_with("Tag=")).count();
        assert_eq!((tags, log.matches("HISTFAAA").count()), (2, 3), "{log}");
        let files =
            Files { hlog: Some("/proc/no such directory/a.hlog".into()), ..Files::default() };
        let error = result.write_files(&files).unwrap_err().to_string();
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
            let line = line(address, 1, 1000);
            let line = format!("{line} --warm-up-seconds 0.1 --seconds 1");
            let report = super::run(load, &format!("{line} --in-flight-max {in_flight_max}"));
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
        let line = format!("{} --warm-up-seconds 0 --seconds 0.4", line(address, 1, 100));
        let report = run(load, &line);
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
        let line = line(address, 4, 2000);
        let report = run(load, &format!("{line} {SHORT} --slow-down-seconds 0.05"));
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
        let line = format!("{} --warm-up-seconds 0.1 --seconds 60", line(address, 4, 1000));
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(400));
                stopped.store(true, Ordering::Relaxed);
            });
            try_run(load, &line, &stopped).unwrap()
        });
        assert_eq!(report["complete"], false, "{report:#}");
        assert!(
            report["due_count"].as_u64().is_some_and(|due| due > 0 && due < 20_000),
            "{report:#}"
        );
        assert_eq!(report["due_count"], report["back_count"], "{report:#}");
    });
}
