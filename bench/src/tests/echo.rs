//! Messages there and back, closed loop.

use super::*;
use crate::echo::{compare, run as echo};

fn line(size: usize, depth: u32) -> String {
    format!("--connections 8 --size {size} --depth {depth} --warm-up-seconds 0")
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
        let pid = std::process::id();
        for (bytes, depth) in [(0, 1), (5, 3), (125, 1), (126, 16), (65_536, 1), (300_000, 2)] {
            let line = line(bytes, depth) + if depth == 3 { " --binary" } else { "" };
            let line = format!("--url ws://{address}/echo --seconds 0.03 --pid {pid} {line}");
            assert_all_came_back(&run(echo, &line));
        }
    });
}

#[test]
fn echo_through_the_relay_beside_the_echo_itself() {
    with_echo(1, |upstream| {
        with_relay(upstream, |relay| {
            let pid = std::process::id();
            for (bytes, depth) in [(64, 1), (1_000, 8), (500_000, 4)] {
                let report = run(
                    compare,
                    &format!(
                        "--target direct=ws://{upstream}/@{pid} --target relay=ws://{relay}/@{pid} \
                         --slices 2 --slice-ms 20 {}",
                        line(bytes, depth)
                    ),
                );
                assert_eq!(report["servers"].as_array().unwrap().len(), 2, "{report:#}");
                assert_all_came_back(&report);
            }
        });
    });
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
        let line = "--connections 1 --size 32 --warm-up-seconds 0 --seconds 0.02";
        run(echo, &format!("--url ws://{address}/ {line}"))
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
