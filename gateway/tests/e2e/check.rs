//! The configuration that documents itself is in order, for the program as for the reader; and what
//! `check` says of files that are in order and may do harm.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Scratch, binary};

fn check(file: &Path, options: &[&str]) -> Output {
    Command::new(binary()).arg("check").arg(file).args(options).output().expect("it starts")
}

#[test]
fn the_annotated_example_is_in_order() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/penstock.toml");
    let output = check(&file, &["--strict", "--user", "65534"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn warnings_have_a_line_a_level_and_a_cure_and_count_where_that_is_asked_for() {
    let scratch = Scratch::new("warnings");
    let few = "[limits]\nconnections_max = 64\n";
    let good = scratch.write("good.toml", &format!("{HEAD}{ECHO_AND_ROOMS}{few}"));
    let text = format!("{HEAD}proxy_protocol = \"required\"\n{ECHO_AND_ROOMS}");
    let bad = scratch.write("bad.toml", &text.replace("127.0.0.1:0", "0.0.0.0:8080"));
    let user = ["--user", "65534"];
    let strict = ["--strict", "--user", "65534"];

    let output = check(&good, &strict);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let output = check(&bad, &user);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let line = text.lines().position(|line| line.starts_with("proxy_protocol")).expect("a line");
    let place = format!("{}:{}: danger: `proxy_protocol` is", bad.display(), line + 1);
    assert!(said.contains(&place) && said.contains("; name the balancers in"), "{said}");
    assert_eq!(check(&bad, &strict).status.code(), Some(1));

    // More than the budget, if every client used all it may.
    let large = "[limits]\nmessage_bytes_max = 67_108_864\nconnections_max = 1000\n";
    let text = format!("{HEAD}{ECHO_AND_ROOMS}{large}")
        .replace("[server]\n", "[server]\nmemory_bytes_max = 16_777_216\n");
    let large = scratch.write("large.toml", &text);
    let output = check(&large, &user);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let key = ["memory_bytes_max", "connections_max"].into_iter().find(|key| text.contains(key));
    let line = text.lines().position(|line| line.starts_with(key.expect("one of them")));
    let place = format!("{}:{}: ", large.display(), line.expect("a line") + 1);
    assert!(said.contains(&format!("{place}warning: clients may ask for ")), "{said}");
    assert!(said.contains("; lower `limits.connections_max`"), "{said}");
    assert_eq!(check(&large, &strict).status.code(), Some(1));

    // Root, whoever checks.
    let output = check(&good, &["--strict", "--user", "root"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(": warning: the gateway would run as root"), "{said}");
}

#[test]
fn what_runs_says_the_same_in_its_log() {
    let text = format!("{HEAD}trusted_proxies = [\"0.0.0.0/0\"]\n{ECHO_AND_ROOMS}");
    let mut gateway = Gateway::start(&text);
    let line = gateway.log_line_containing("danger: ");
    assert!(
        line.contains("WARN") && line.contains("`trusted_proxies` holds every address"),
        "{line}"
    );
}
