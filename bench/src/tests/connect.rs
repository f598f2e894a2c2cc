//! Opening and closing, at a rate and as fast as it goes.

use super::*;
use crate::connect::run as connect;

const SHORT: &str = "--warm-up-seconds 0.1 --seconds 0.4";

#[test]
fn opens_at_a_rate_and_closes_in_order() {
    with_echo(1, |address| {
        let own = std::process::id();
        let line = format!("--url ws://{address}/ --rate 200/s {SHORT} --cpu 0 --pid {own}");
        for stay in [0.0, 0.05] {
            let report = run(connect, &format!("{line} --stay {stay}"));
            // 400 ms of 200 a second, whatever the warm-up.
            assert_eq!(report["due_count"], 80, "{report:#}");
            assert_eq!(report["opened_count"], 80, "{report:#}");
            for none in ["failed_count", "unfinished_count", "held_back_count"] {
                assert_eq!(report[none], 0, "{report:#}");
            }
            assert_eq!(report["ended_early_count"], 0, "{report:#}");
            assert_eq!(report["open_us"]["count"], 80, "{report:#}");
            let max = |histogram| figure(&report, histogram, "max");
            assert!(max("open_us") >= max("open_from_actual_begin_us"), "{report:#}");
            assert!(figure(&report, "server", "cpu_us_per_open") > 0.0);
        }
    });
}

#[test]
fn slots_are_used_again_and_again() {
    with_echo(1, |address| {
        // Four slots, and many more connections: what belonged to an earlier one would end a later.
        for close in ["", "--abrupt"] {
            let line = format!("--url ws://{address}/ --connections-max 4 {close} {SHORT}");
            let report = run(connect, &line);
            assert!(report["opened_count"].as_u64() > Some(20), "{report:#}");
            assert_eq!(
                (&report["failed_count"], &report["ended_early_count"]),
                (&0.into(), &0.into())
            );
            assert_eq!(report["due_count"], report["opened_count"], "{report:#}");
            assert!(report["open_at_once_max_count"].as_u64() <= Some(4), "{report:#}");
            let in_order = report["closed_in_order_count"].as_u64();
            assert_eq!(in_order > Some(20), close.is_empty(), "{report:#}");
        }
    });
}

#[test]
fn an_open_that_has_to_wait_for_a_slot_counts_its_wait() {
    with_echo(1, |address| {
        // Each stays for 100 ms in one of 21 slots: 210 a second at most, of 400.
        let line = format!(
            "--url ws://{address}/ --rate 200/s --stay 0.1 --connections-max 21 --opening-max 1"
        );
        let report = run(connect, &format!("{line} {SHORT}"));
        assert_eq!(report["due_count"], 80, "{report:#}");
        assert_eq!(report["opened_count"], 80, "{report:#}");
        let error =
            try_run(connect, &format!("{line} --stay 1").replace("--stay 0.1 ", ""), &NEVER);
        assert!(error.unwrap_err().to_string().contains("200 connections at once"));
    });
}

#[test]
fn a_server_that_stalls_makes_the_opens_behind_it_slow() {
    // One connection at a time, and the first is answered after 300 ms.
    let stall = |mut stream: TcpStream| {
        thread::sleep(STALL);
        while stream.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let line = format!(
        "--url ws://{address}/ --rate 100/s --opening-max 1 --warm-up-seconds 0 --seconds 0.3 \
         --open-timeout-seconds 0.3"
    );
    thread::scope(|scope| {
        scope.spawn(|| stall(listener.accept().unwrap().0));
        let report = run(connect, &line);
        // None was answered: the first ones have timed out, the others were not begun.
        assert_eq!(report["due_count"], 30, "{report:#}");
        let of = |name: &str| report[name].as_u64().unwrap();
        assert!(of("held_back_count") > 0 || of("unfinished_count") > 0, "{report:#}");
        assert_eq!(of("failed_count") + of("unfinished_count"), 30, "{report:#}");
        assert!(report["failed_by_reason"]["handshake: timed out"].as_u64() > Some(0));
        assert_eq!(report["open_us"]["count"].as_u64(), Some(of("unfinished_count")));
    });
}

const STALL: Duration = Duration::from_millis(300);

#[test]
fn refusals_are_counted_by_reason() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let refusing = socket.local_addr().unwrap().as_socket().unwrap();
    let report = run(connect, &format!("--url ws://{refusing}/ --rate 100/s {SHORT}"));
    assert_eq!((&report["due_count"], &report["failed_count"]), (&40.into(), &40.into()));
    let reasons = report["failed_by_reason"].as_object().unwrap();
    assert!(reasons.keys().all(|reason| reason.starts_with("connect: ")), "{report:#}");
}

#[test]
fn connections_through_the_gateway() {
    with_gateway(|address| {
        let line = format!("--url ws://{address}/ --rate 100/s --stay 0.02 {SHORT}");
        let report = run(connect, &line);
        assert_eq!((&report["due_count"], &report["opened_count"]), (&40.into(), &40.into()));
        assert_eq!(report["ended_early_count"], 0, "{report:#}");
        assert_eq!(report["not_closed_in_time_count"], 0, "{report:#}");
    });
}

#[test]
fn connect_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(true);
        let line = format!("--url ws://{address}/ --connections-max 8");
        let report = try_run(connect, &line, &stopped).unwrap();
        assert_eq!(report["complete"], false, "{report:#}");
    });
}
