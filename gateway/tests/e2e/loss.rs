//! An upstream dies under its clients, among two that live.
//!
//! The figures of docs/BENCHMARKS.md, with `PENSTOCK_BINARY` naming a release build:
//! `PENSTOCK_E2E_CLIENTS=3000 cargo test -p gateway --test e2e loss -- --nocapture`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::{Gateway, HEAD, Peer, Program, QUIET, clients, free_address};

fn server(name: &str, address: SocketAddr) -> Program {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut program = Program::node("loss_server.js", &[name, &ip, &port]);
    program.line_with("listening ");
    program
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis() as u64
}

fn figures(line: &str) -> Value {
    let (_, text) = line.split_once(' ').expect("a word and JSON");
    serde_json::from_str(text).expect("JSON")
}

/// The smallest, the quartiles, nine tenths, and the largest.
fn distribution(values: &Value, since: u64) -> String {
    let mut values: Vec<i64> = values.as_array().expect("a list").iter().map(ms).collect();
    values.sort_unstable();
    let at = |per_cent: usize| values[(values.len() - 1) * per_cent / 100] - since as i64;
    let parts = [0, 25, 50, 75, 90, 100].map(|per_cent| format!("{}", at(per_cent)));
    parts.join(" / ")
}

fn ms(value: &Value) -> i64 {
    value.as_i64().expect("milliseconds")
}

#[test]
fn one_of_three_upstreams_is_killed() {
    let names = ["a", "b", "c"];
    let addresses = [(); 3].map(|()| free_address(QUIET));
    let mut servers = [0, 1, 2].map(|index| server(names[index], addresses[index]));
    let list = addresses.map(|it| format!("[[backend.app.upstream]]\nurl = \"ws://{it}\"\n"));
    let gateway = Gateway::start(&format!(
        "{HEAD}[[route]]\nbackend = \"app\"\n[backend.app]\nkind = \"websocket\"\neject_ms = 500\n\
         slow_start_ms = 2000\n{}",
        list.concat()
    ));
    let mut client = Program::node("loss_client.js", &[&gateway.url("/"), &clients(), "a"]);
    let open = figures(&client.line_with("open "));
    let victims = open["a"].as_u64().expect("an upstream with clients");
    assert!(names.iter().all(|name| open[*name].as_u64() > Some(0)), "{open}");

    let killed_at = unix_ms();
    servers[0].kill();
    let back = figures(&client.line_with("back "));
    // Everybody was told and came back, to one of the others, and nobody else was closed.
    assert_eq!(back["closes"], serde_json::json!({ "a 1012": victims }), "{open}");
    let places: BTreeMap<String, u64> =
        serde_json::from_value(back["places"].clone()).expect("counts");
    assert_eq!(places.values().sum::<u64>(), victims, "{places:?}");
    assert!(!places.contains_key("a"), "{places:?}");
    assert_eq!((&back["refused"], &back["errors"]), (&Value::from(0), &Value::from(0)));
    let hints = back["hints"].as_array().expect("a list");
    assert!(hints.iter().all(|hint| (0..=5000).contains(&ms(hint))), "{hints:?}");

    // It is taken back.
    let restarted = Instant::now();
    servers[0] = server("a", addresses[0]);
    let mut asked = 0;
    loop {
        let mut peer = Peer::open(gateway.address(), "/");
        asked += 1;
        if peer.frame().payload == b"a" {
            break;
        }
    }
    let taken_back = restarted.elapsed();
    let end = figures(&client.line_with("end "));
    assert_eq!(end["closes"], back["closes"], "somebody was closed later");
    assert_eq!(end["errors"], 0);
    client.success();

    println!("open: {open}; killed: a; all figures in ms, least / quarters / nine tenths / most");
    println!("told after the kill:   {}", distribution(&back["closedAt"], killed_at));
    println!("hints:                 {}", distribution(&back["hints"], 0));
    println!("back after the kill:   {}", distribution(&back["backAt"], killed_at));
    println!("back after its hint:   {}", distribution(&back["over"], 0));
    println!("longest echo of those of b and c: {} ms; back at {places:?}", end["slowest"]);
    println!("taken back {} ms after its restart began, as client {asked}", taken_back.as_millis());
}
