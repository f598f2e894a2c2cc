//! A second gateway beside one that runs: refused, told who is there, or let in on purpose.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::{ECHO_AND_ROOMS, HEAD, Program, Scratch, binary, free_address};

/// Runs a gateway that is refused; returns what it says.
#[track_caller]
fn refused(file: &Path) -> String {
    let output = Command::new(binary()).arg("run").arg(file).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

fn file(scratch: &Scratch, name: &str, listener: &str, socket: &str) -> std::path::PathBuf {
    let head = HEAD.replace("127.0.0.1:0", listener);
    let socket = scratch.path().join(socket);
    let text = format!("{head}{ECHO_AND_ROOMS}[admin]\nsocket = \"{}\"\n", socket.display());
    scratch.write(name, &text)
}

fn start(file: &Path, arguments: &[&str]) -> Program {
    let mut command = Command::new(binary());
    let mut program = Program::start("penstock", command.arg("run").arg(file).args(arguments));
    program.line_with("admin socket ");
    program
}

#[test]
fn it_is_refused_and_told_who_is_there() {
    let scratch = Scratch::new("second");
    let listener = free_address([127, 0, 0, 1]).to_string();
    let first = file(&scratch, "first.toml", &listener, "admin.sock");
    let running = start(&first, &[]);
    let holder = format!("pid {} (", running.id());

    // The port, also of a listener on all addresses.
    let everywhere = listener.replace("127.0.0.1", "0.0.0.0");
    for address in [&listener, &everywhere] {
        let said = refused(&file(&scratch, "second.toml", address, "other.sock"));
        assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
        assert!(said.contains(&holder) && said.contains("--take-over"), "{said}");
        assert!(!scratch.path().join("other.sock").exists(), "it leaves its socket behind");
    }
    // The admin socket.
    let said = refused(&file(&scratch, "second.toml", "127.0.0.1:0", "admin.sock"));
    assert!(said.contains(&holder) && said.contains("answers there"), "{said}");
}

#[test]
fn it_takes_over_where_that_is_asked_for() {
    let scratch = Scratch::new("takeover");
    let listener = free_address([127, 0, 0, 1]).to_string();
    let file = file(&scratch, "penstock.toml", &listener, "admin.sock");
    let first = start(&file, &[]);
    let second = start(&file, &["--take-over"]);
    first.signal(Signal::TERM);
    first.success();
    // The first one has left the second one's socket alone.
    let mut status = Command::new(binary());
    let status = status.args(["status", "--socket"]).arg(scratch.path().join("admin.sock"));
    let output = status.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let pid = format!("\"pid\":{}", second.id());
    assert!(String::from_utf8_lossy(&output.stdout).contains(&pid), "{output:?}");
}

#[test]
fn a_socket_that_nobody_answers_on_is_in_nobodys_way() {
    let scratch = Scratch::new("stale");
    drop(UnixListener::bind(scratch.path().join("admin.sock")).expect("a socket"));
    start(&file(&scratch, "penstock.toml", "127.0.0.1:0", "admin.sock"), &[]);
}
