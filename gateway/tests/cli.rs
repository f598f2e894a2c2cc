//! The command line as an operator meets it: exit codes, and what goes to which stream.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn penstock(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_penstock");
    Command::new(program).args(arguments).output().expect("the program starts")
}

/// A file of this name in the build's own scratch directory.
fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a scratch file");
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn check_says_what_a_good_file_defines() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/echo-load-test.toml");
    let output = penstock(&["check", path.to_str().expect("UTF-8")]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for line in ["shards     1 of ", "listener   127.0.0.1:8080", "any host /* -> echo\n"] {
        assert!(stdout.contains(line), "{line} in\n{stdout}");
    }
    assert!(stdout.contains("\nmemory     at most "), "{stdout}");
}

#[test]
fn check_reports_every_fault_and_fails() {
    let path = file("faulty.toml", "[server]\npin = 1\n[limits]\nheaders = 3\n");
    let path = path.to_str().expect("UTF-8");
    let output = penstock(&["check", path]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines[3].starts_with(&format!("{path}:2:7: `pin` is an integer")), "{stderr}");
    assert!(lines[4].starts_with(&format!("{path}:4:1: unknown key `headers`")), "{stderr}");
    assert_eq!(lines[5..], [format!("penstock: 5 faults in {path}")], "{stderr}");
    // Starting says the same, and does not start.
    let output = penstock(&["run", path]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), stderr));
}

#[test]
fn check_against_tells_a_reload_from_a_restart() {
    let backends = "[backend.a]\nkind = \"echo\"\n[backend.b]\nkind = \"echo\"\n";
    let good = |name: &str, port: u16, backend: &str| {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
             [[route]]\nbackend = \"{backend}\"\n{backends}"
        );
        file(name, &text).to_str().expect("UTF-8").to_owned()
    };
    let old = good("old.toml", 8080, "a");
    let faulty = file("faulty-too.toml", "pin = 1\n").to_str().expect("UTF-8").to_owned();
    let change = "route /*: backend \"a\" -> \"b\"\n";
    for (new, code, want) in [
        (old.clone(), 0, vec!["nothing changes\n"]),
        (good("other.toml", 8080, "b"), 0, vec![change, "a reload can take this\n"]),
        (
            good("moved.toml", 8081, "b"),
            3,
            vec![
                change,
                "listener \"127.0.0.1:8081\" at 127.0.0.1:8081 is new",
                "refused: restart\n",
            ],
        ),
    ] {
        let output = penstock(&["check", &new, "--against", &old]);
        let stdout = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{stdout}{}", text(&output.stderr));
        assert!(want.iter().all(|line| stdout.contains(line)), "{want:?} in\n{stdout}");
    }
    for (new, old) in [(&faulty, &old), (&old, &faulty), (&faulty, &faulty)] {
        let output = penstock(&["check", new, "--against", old]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains("faulty-too.toml:1:1: unknown key `pin`"));
    }
}

#[test]
fn a_file_that_is_not_text_is_refused_at_its_place() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("latin1.toml");
    std::fs::write(&path, b"[server]\n# \xC3\xA4 \xE4\n").expect("a scratch file");
    let output = penstock(&["check", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("latin1.toml:2:5: not UTF-8"), "{stderr}");
}

#[test]
fn a_command_line_that_is_not_understood() {
    for arguments in [&["walk"][..], &["run", "--shards", "0"], &["run", "--listen", "here"]] {
        assert_eq!(penstock(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(penstock(&["--version"]).status.code(), Some(0));
    assert!(text(&penstock(&["--help"]).stdout).contains("Exit codes:"));
}

/// A gateway that is asked once, over a socket of this name.
struct Asked {
    path: PathBuf,
    gateway: UnixListener,
}

impl Asked {
    fn new(name: &str) -> Asked {
        let name = format!("{name}-{}.sock", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let gateway = UnixListener::bind(&path).expect("a socket");
        Asked { path, gateway }
    }

    /// Answers the command with this; returns its request, and what it makes of the answer.
    fn answer(&self, arguments: &[&str], status: &str, body: &str) -> (String, Output) {
        std::thread::scope(|scope| {
            let path = self.path.to_str().expect("UTF-8");
            let client = scope.spawn(move || penstock(&[arguments, &["--socket", path]].concat()));
            let (mut stream, _) = self.gateway.accept().expect("it asks");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                head.push(byte[0]);
            }
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).expect("it listens");
            // A second question would find this one gone, or wait to be accepted.
            self.gateway.set_nonblocking(true).expect("a socket");
            let output = client.join().expect("it ends");
            assert_eq!(self.gateway.accept().expect_err("nobody").kind(), ErrorKind::WouldBlock);
            self.gateway.set_nonblocking(false).expect("a socket");
            (text(&head), output)
        })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn a_question_that_is_refused_is_asked_once() {
    let body = r#"{"faults":["no route has this"]}"#;
    let asked = Asked::new("refused");
    let (head, output) = asked.answer(&["conns", "--route", "/nowhere"], "400 Bad Request", body);
    assert!(head.starts_with("GET /api/v1/connections?route=%2Fnowhere HTTP/1.1\r\n"), "{head}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "no route has this\npenstock: nothing was done\n");
}

/// Whatever a gateway has let in, a name does not change the line that it is printed in.
#[test]
fn names_are_printed_with_what_is_hidden_in_them_escaped() {
    let user = "bob\u{202e}\u{200b}\u{feff}\n\u{1b}[2J";
    let body = serde_json::json!({
        "connections": [{"id": "0-1-2", "state": "rooms", "rooms": {"user": user}}]
    })
    .to_string();
    let asked = Asked::new("names");
    let (_, output) = asked.answer(&["conns"], "200 OK", &body);
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    let [_, line] = lines[..] else { panic!("{stdout:?}") };
    assert!(line.contains(r" bob\u{202e}\u{200b}\u{feff}\u{a}\u{1b}[2J "), "{line:?}");
    assert!(line.is_ascii(), "{line:?}");
    // As JSON it is the same value, in ASCII.
    let (_, output) = asked.answer(&["conns", "--json"], "200 OK", &body);
    let stdout = text(&output.stdout);
    assert!(stdout.is_ascii() && stdout.contains(r"bob\u202e\u200b\ufeff"), "{stdout:?}");
    let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(value["connections"][0]["rooms"]["user"], user);
    let faults = serde_json::json!({ "faults": [format!("`user` is {user}")] }).to_string();
    let (_, output) = asked.answer(&["close", "--all"], "400 Bad Request", &faults);
    assert!(text(&output.stderr).starts_with(r"`user` is bob\u{202e}"), "{output:?}");
}
