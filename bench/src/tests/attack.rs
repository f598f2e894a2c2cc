//! Hostile clients beside good ones.

use super::*;
use crate::attack::run as attack;

const TINY: &str = "--hostile 8 --good 6 --rate 200/s --newcomer-rate 40/s \
    --before-seconds 0.3 --attack-seconds 0.6 --after-seconds 0.2";

fn good_ones_saw_no_error(report: &Value) {
    for period in ["before", "during", "after"] {
        let period = &report[period];
        assert_eq!(period["errors_by_reason"], serde_json::json!({}), "{report:#}");
        assert_eq!(period["newcomer_errors_by_reason"], serde_json::json!({}), "{report:#}");
        assert!(period["sent_count"].as_u64() > Some(0), "{report:#}");
        assert_eq!(period["latency_us"]["count"], period["sent_count"], "{report:#}");
    }
    assert!(report["during"]["newcomers_served_us"]["count"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn good_ones_echo_beside_each_hostile_kind_that_a_bare_server_bears() {
    with_echo(1, |address| {
        let own = std::process::id();
        let line = format!("--url ws://{address} --rooms-path= --pid {own} {TINY}");
        for kind in ["silent", "slow-heads", "half-closes", "pouring", "poison", "backlog"] {
            let report = run(attack, &format!("{kind} {line}"));
            assert_eq!((&report["kind"], &report["complete"]), (&kind.into(), &true.into()));
            good_ones_saw_no_error(&report);
            assert!(report["hostile"]["opened_count"].as_u64() >= Some(1), "{report:#}");
            assert!(report["rss_peak_bytes"].as_u64() > Some(0), "{report:#}");
            let sent = report["attack_bytes"].as_u64().unwrap();
            assert_eq!(sent == 0, kind == "silent", "{report:#}");
        }
    });
}

#[test]
fn good_ones_chat_in_the_gateway_beside_those_that_fill_rooms() {
    with_gateway(|address| {
        let line = format!("--url ws://{address} --rooms-path / --relay-path= --echo-path= {TINY}");
        let report = run(attack, &format!("rooms {line}"));
        assert!(report["hostile"]["opened_count"].as_u64() >= Some(8), "{report:#}");
        assert!(report["during"]["rooms_us"]["count"].as_u64() > Some(0), "{report:#}");
        // Six members of one room get every message.
        let before = &report["before"];
        let (count, sent) = (&before["rooms_us"]["count"], &before["sent_count"]);
        assert_eq!(count.as_u64(), sent.as_u64().map(|sent| sent * 6), "{report:#}");
    });
}

#[test]
fn errors_of_good_ones_are_criteria_that_were_missed() {
    // Upgrades the one that stays, and ends it without a word; whoever comes then is not answered.
    let serve = |mut stream: TcpStream| {
        read_frame(&mut stream);
    };
    with_odd_server(serve, |address| {
        let line = format!(
            "silent --url ws://{address} --rooms-path= --relay-path= --hostile 1 --good 1 \
             --rate 20/s --newcomer-rate 1/s --before-seconds 0.3 --attack-seconds 0.2 \
             --after-seconds 0.1"
        );
        let report = run(attack, &line);
        assert_eq!(report["ok"], false, "{report:#}");
        let missed = report["missed"][0].as_str().unwrap();
        assert!(missed.starts_with("good clients saw"), "{report:#}");
    });
}

#[test]
fn kinds_are_listed_and_others_refused() {
    let list = run(attack, "--list");
    assert!(list.as_object().unwrap().len() >= 14 && list["pings"].is_string(), "{list:#}");
    let error = try_run(attack, "nothing --url ws://127.0.0.1:1", &NEVER).unwrap_err().to_string();
    assert!(error.contains("--list"), "{error}");
    let error = try_run(attack, "silent-admin --url ws://127.0.0.1:1", &NEVER).unwrap_err();
    assert!(error.to_string().contains("--admin"), "{error}");
}
