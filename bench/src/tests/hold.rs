//! Many connections, held.

use super::*;
use crate::hold::run as hold;

fn line(address: SocketAddr, connections: u32) -> String {
    format!(
        "--url ws://{address}/echo --connections {connections} --seconds 0.005 --opening-max 64 \
         --sample 50 --pid {}",
        std::process::id()
    )
}

#[test]
fn hold_opens_asks_and_closes_all() {
    with_echo(3, |address| {
        let report = run(hold, &line(address, 200));
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
        // All at once: the links of so many chains are more than one call to the kernel works off.
        let line = format!(
            "--url ws://{address}/echo --connections 1000 --seconds 0.005 --opening-max 1000 \
             --slots-per-ring-max 300"
        );
        let report = run(hold, &line);
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
            let report = run(hold, &line(relay, 50));
            assert_eq!(report["closing"]["closed_in_order_count"], 50, "{report:#}");
        });
    });
}

#[test]
fn slots_are_used_again_at_once() {
    with_echo(1, |upstream| {
        with_relay(upstream, |relay| {
            for _ in 0..20 {
                let line = format!(
                    "--url ws://{relay}/echo --connections 60 --seconds 0 --opening-max 64 --sample 0"
                );
                let report = run(hold, &line);
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
        let report = run(hold, &line(relay, 3));
        assert_eq!(report["failed_count"], 3, "{report:#}");
    });
    let report = run(hold, &line(refusing, 3));
    let reasons = report["failed_by_reason"].as_object().unwrap();
    assert!(reasons.keys().all(|reason| reason.starts_with("connect: ")), "{report:#}");
    assert_eq!(report["failed_count"], 3, "{report:#}");
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
        // With less, the client would leave before the server has said its word.
        let line = format!("--url ws://{address}/ --connections 1 --seconds 1 --sample 50");
        let report = run(hold, &line);
        assert_eq!(report["pings_answered_count"], 1, "{report:#}");
        assert_eq!(report["ended_early_by_reason"]["Close frame 1001"], 1, "{report:#}");
    });
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let line = format!("--url ws://{address}/ --connections 2 --open-timeout-seconds 0.02");
    let report = run(hold, &line);
    assert_eq!(report["failed_by_reason"]["handshake: timed out"], 2, "{report:#}");
}

#[test]
fn a_run_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(true);
        let report = try_run(hold, &line(address, 10), &stopped).unwrap();
        assert_eq!((&report["complete"], &report["opened_count"]), (&false.into(), &0.into()));
        let line = format!("--url ws://{address}/ --connections 10 --rate 1000");
        let report = try_run(crate::load::run, &line, &stopped).unwrap();
        assert_eq!((&report["complete"], &report["back_count"]), (&false.into(), &0.into()));
    });
}

#[test]
fn connections_are_closed_and_opened_again_while_holding() {
    with_echo(1, |address| {
        let line = format!("--url ws://{address}/ --connections 30 --seconds 0.5 --churn 200/s");
        let report = run(hold, &line);
        let churn = &report["churn"];
        let of = |name: &str| churn[name].as_u64().unwrap();
        // Each of the thirty several times.
        assert!(of("back_count") > 40, "{report:#}");
        assert_eq!(of("due_count"), of("back_count") + of("skipped_count"), "{report:#}");
        assert_eq!(of("unfinished_count"), 0, "{report:#}");
        assert_eq!(churn["close_and_open_us"]["count"], churn["back_count"], "{report:#}");
        assert_eq!(churn["opens"]["open_us"]["count"], churn["back_count"], "{report:#}");
        // The ramp's figures are the ramp's.
        assert_eq!(
            (&report["opened_count"], &report["open_us"]["count"]),
            (&30.into(), &30.into())
        );
        assert_eq!(report["open_count_at_end_of_hold"], 30, "{report:#}");
        assert_eq!(report["ended_early_by_server_count"], 0, "{report:#}");
        assert_eq!(report["closing"]["closed_in_order_count"], 30, "{report:#}");
    });
}

#[test]
fn pings_go_round_while_holding() {
    with_gateway(|address| {
        let line = format!(
            "--url ws://{address}/ --connections 20 --sample 10 --seconds 0.5 --ping-every 0.1"
        );
        // At one pace with the churn, too: who is being closed would answer none.
        for churn in ["", "--churn 100/s"] {
            let report = run(hold, &format!("{line} {churn}"));
            let of = |name: &str| report["pings"][name].as_u64().unwrap();
            assert!(of("answered_count") > 20, "{report:#}");
            assert_eq!(report["pings"]["rtt_us"]["count"], of("answered_count"), "{report:#}");
            // The last ones may be on their way.
            assert!(of("asked_count") - of("answered_count") <= 10, "{report:#}");
            assert_eq!(report["ended_early_by_server_count"], 0, "{report:#}");
        }
    });
}

#[test]
fn a_ramp_keeps_its_rate() {
    with_echo(1, |address| {
        let line = format!("--url ws://{address}/ --connections 100 --rate 250/s --seconds 0");
        let report = run(hold, &line);
        assert_eq!(report["opened_count"], 100, "{report:#}");
        // The last of them is due after 396 ms.
        assert!(report["opening_seconds"].as_f64() >= Some(0.39), "{report:#}");
    });
}
