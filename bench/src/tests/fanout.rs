//! Rooms and those who listen in them.

use super::*;
use crate::fanout::run as fanout;
use crate::hold::run as hold;

fn line(address: SocketAddr, rooms: u32, members: u32) -> String {
    format!(
        "--url ws://{address}/ --rooms {rooms} --members {members} --rate 200 --pid {}",
        std::process::id()
    )
}

/// Warm-up and measured time of most tests.
const SHORT: &str = "--warm-up-seconds 0.1 --seconds 0.4";

#[test]
fn fanout_reaches_every_member_of_the_gateways_rooms_once_and_in_order() {
    with_gateway(|address| {
        for (number, (rooms, members, connections, size)) in
            [(1, 1, 1, 32), (1, 40, 40, 64), (10, 7, 70, 3000), (12, 5, 9, 64)]
                .into_iter()
                .enumerate()
        {
            let line = line(address, rooms, members);
            let report = run(
                fanout,
                &format!(
                    "{line} {SHORT} --connections {connections} --size {size} --room-prefix run-{number}-"
                ),
            );
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
            let line = line(address, 1, 1);
            let line = format!("{line} --warm-up-seconds 0 --seconds 0.1 --size 40");
            super::run(fanout, &format!("{line} --room-prefix r"))
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
        let bad = format!("{} --room-prefix \\u0007", line(address, 1, 3));
        let error = try_run(fanout, &bad, &NEVER).unwrap_err();
        assert!(error.to_string().contains("bad_room"), "{error}");
        for connections in [2, 7] {
            let line = format!("{} --connections {connections}", line(address, 2, 3));
            let error = try_run(fanout, &line, &NEVER).unwrap_err();
            assert!(error.to_string().contains("should be 3"), "{error}");
        }
    });
}

#[test]
fn fanout_through_the_send_loop() {
    let ((), server) = with_server("--runtime send-loop", |address| {
        for bytes in [32, 3000] {
            let line = line(address, 1, 40);
            let line = format!("{line} {SHORT} --dialect plain --size {bytes}");
            let report = super::run(fanout, &line);
            assert_eq!(report["ok"], true, "{report:#}");
            assert_eq!(report["delivered_count"], 4000, "{report:#}");
        }
        // It answers Pings and closes in order like any server.
        let line = format!("--url ws://{address}/ --connections 5 --seconds 0.005");
        let report = super::run(hold, &line);
        assert_eq!(report["sample"]["asked_count"], report["sample"]["answered_count"]);
        assert_eq!(report["closing"]["closed_in_order_count"], 5, "{report:#}");
    });
    assert_eq!(server["accepted_count"], 40 + 40 + 5, "{server:#}");
    assert_eq!(server["dropped_as_too_slow_count"], 0, "{server:#}");
}
