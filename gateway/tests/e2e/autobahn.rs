//! The Autobahn Testsuite against the echo, and through the relay against `ws` of Node.
//!
//! Minutes long, so it runs only when asked for: `scripts/test` does. See docs/CONFORMANCE.md.

use std::path::Path;
use std::process::Command;

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Program, installed, to_upstream};

/// The suite's largest messages are of 16 MiB.
const LARGE: &str = "[limits]\nmessage_bytes_max = 33_554_432\n";

#[test]
#[ignore = "takes up to minutes; scripts/test runs it"]
fn autobahn_echo() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{LARGE}"));
    run(&gateway.url("/echo"), "echo");
}

#[test]
#[ignore = "takes up to minutes; scripts/test runs it"]
fn autobahn_relay() {
    let mut server = Program::node("server.js", &[]);
    let gateway = Gateway::start(&format!("{HEAD}{}{LARGE}", to_upstream(server.listening())));
    run(&gateway.url("/"), "relay");
}

fn run(url: &str, name: &str) {
    installed("autobahn");
    let set = std::env::var("PENSTOCK_AUTOBAHN").unwrap_or_else(|_| "quick".to_owned());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("autobahn-{name}"));
    let status = Command::new(root.join("scripts/autobahn"))
        .args([url, out.to_str().expect("UTF-8"), &set, name])
        .status()
        .expect("the script starts");
    assert!(status.success(), "{name}: not as expected; see {}", out.display());
}
