//! The command line as an operator meets it: exit codes, and what goes to which stream.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
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

/// A user who is not root.
const SOMEBODY: &str = "65534";

/// A listener that nobody but this machine reaches.
const LOCAL: &str = "[[listener]]\naddress = \"127.0.0.1:8080\"\n";

const PUBLIC: &str = "[[listener]]\naddress = \"0.0.0.0:8080\"\n";

const ROUTE: &str = "[[route]]\nbackend = \"b\"\n";

const ECHO: &str = "[backend.b]\nkind = \"echo\"\n";

const ROOMS: &str = "[backend.b]\nkind = \"local\"\n";

const RELAY: &str = "[backend.b]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:3000\"\n";

const SECRET: &str = "sticky_cookie_secret = \"0123456789abcdef\"\n";

#[test]
fn each_weakness_alone_is_one_warning_with_its_line_and_a_cure() {
    let upstreams = "[backend.b]\nkind = \"websocket\"\n\
                     [[backend.b.upstream]]\nurl = \"ws://127.0.0.1:3000\"\n\
                     [[backend.b.upstream]]\nurl = \"ws://127.0.0.1:3001\"\n";
    let https = "origins = [\"https://chat.example.org\"]\n";
    let cookie = format!("{RELAY}sticky_cookie = true\n");
    let budget = "[server]\nmemory_bytes_max = 16_777_216\n";
    let (file_mode, root) = (0o600, "0");
    // The text, its permissions, who runs it, the beginning of the line that is meant, the harm, the cure.
    for (name, text, mode, user, line, harm, cure) in [
        (
            "proxy-headers",
            format!("{PUBLIC}proxy_protocol = \"required\"\n{ROUTE}{ECHO}"),
            file_mode,
            SOMEBODY,
            "proxy_protocol",
            "danger: `proxy_protocol` is \"required\" on 0.0.0.0:8080",
            "name the balancers in `trusted_proxies`",
        ),
        (
            "everybody-a-proxy",
            format!("{LOCAL}trusted_proxies = [\"0.0.0.0/0\"]\n{ROUTE}{ECHO}"),
            file_mode,
            SOMEBODY,
            "trusted_proxies",
            "danger: `trusted_proxies` holds every address",
            "name the proxies in front",
        ),
        (
            "no-secret",
            format!("{LOCAL}{ROUTE}{cookie}"),
            file_mode,
            SOMEBODY,
            "sticky_cookie = true",
            "warning: the cookie of \"b\" has no secret",
            "`sticky_cookie_secret_file`",
        ),
        (
            "short-secret",
            format!("{LOCAL}{ROUTE}{cookie}sticky_cookie_secret = \"0123456789\"\n"),
            file_mode,
            SOMEBODY,
            "sticky_cookie_secret",
            "warning: the cookie of \"b\" has a secret of 10 bytes",
            "write one of 16 bytes or more",
        ),
        (
            "no-secure",
            format!("{LOCAL}{ROUTE}{https}{cookie}{SECRET}"),
            file_mode,
            SOMEBODY,
            "sticky_cookie = true",
            "warning: the cookie of \"b\" is sent without Secure",
            "set `sticky_cookie_secure = true`",
        ),
        (
            "open-rooms",
            format!("{PUBLIC}{ROUTE}{ROOMS}"),
            file_mode,
            SOMEBODY,
            "backend = ",
            "warning: rooms for everybody",
            "name the pages in `origins`",
        ),
        (
            "open-secret",
            format!("{LOCAL}{ROUTE}{cookie}{SECRET}"),
            0o644,
            SOMEBODY,
            "sticky_cookie_secret",
            "warning: the secret stands in a file that every user of this machine can read (mode 0644)",
            "move it into a file of its own",
        ),
        (
            "root",
            format!("{LOCAL}{ROUTE}{ECHO}"),
            file_mode,
            root,
            "",
            "warning: the gateway would run as root",
            "run it as a user of its own",
        ),
        (
            "above-the-budget",
            format!("{budget}{LOCAL}{ROUTE}{ECHO}"),
            file_mode,
            SOMEBODY,
            "memory_bytes_max",
            "warning: clients may ask for ",
            "lower `limits.connections_max`",
        ),
        (
            "no-stickiness",
            format!("{LOCAL}{ROUTE}{upstreams}"),
            file_mode,
            SOMEBODY,
            "[backend.b]",
            "notice: requests of one client to \"b\" go to different servers",
            "set `sticky_cookie = true`",
        ),
    ] {
        let path = file(&format!("weak-{name}.toml"), &text);
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("a scratch file");
        let path = path.to_str().expect("UTF-8");
        let output = penstock(&["check", "--user", user, path]);
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        let said = self::text(&output.stderr);
        let [one] = said.lines().collect::<Vec<_>>()[..] else { panic!("{name}: {said}") };
        let number = text.lines().position(|it| it.starts_with(line)).map(|index| index + 1);
        let place = match number.filter(|_| !line.is_empty()) {
            Some(number) => format!("{path}:{number}: {harm}"),
            None => format!("{path}: {harm}"),
        };
        assert!(one.starts_with(&place), "{name}: {place} is not how it begins: {one}");
        assert!(one.rsplit_once("; ").is_some_and(|_| one.contains(cure)), "{name}: {one}");
        let output = penstock(&["check", "--strict", "--user", user, path]);
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        assert_eq!(self::text(&output.stderr), said, "{name}");
    }
}

#[test]
fn a_file_without_a_weakness_passes_the_strict_check() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let good = format!(
        "[server]\nshards = 1\nslots_per_shard = 64\nmemory_bytes_max = 1_073_741_824\n\
         {PUBLIC}trusted_proxies = [\"10.0.0.0/8\"]\n{ROUTE}origins = [\"https://chat.example.org\"]\n\
         {RELAY}sticky_cookie = true\n{SECRET}sticky_cookie_secure = true\n"
    );
    let good = file("strict.toml", &good);
    std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o600)).expect("a file");
    let examples = std::fs::read_dir(docs.join("examples")).expect("a directory");
    let examples = examples.map(|entry| entry.expect("an entry").path());
    for path in [good, docs.join("penstock.toml")].into_iter().chain(examples) {
        let path = path.to_str().expect("UTF-8");
        let output = penstock(&["check", "--strict", "--user", SOMEBODY, path]);
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new()),
            "{path}"
        );
    }
}

#[test]
fn the_user_of_a_check_is_one_that_there_is() {
    let path = file("user.toml", &format!("{LOCAL}{ROUTE}{ECHO}"));
    let path = path.to_str().expect("UTF-8");
    for (user, code, says) in [
        ("root", 1, "warning: the gateway would run as root"),
        ("0", 1, "warning: the gateway would run as root"),
        (SOMEBODY, 0, ""),
        ("no-such-user", 1, "penstock: --user no-such-user: this machine knows no such user"),
        ("", 1, "this machine knows no such user"),
        ("4294967295", 1, "this machine knows no such user"),
        ("a\u{202e}b", 1, r"penstock: --user a\u{202e}b: this machine knows no such user"),
    ] {
        let output = penstock(&["check", "--strict", "--user", user, path]);
        assert_eq!(output.status.code(), Some(code), "{user:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(says) && said.is_empty() == says.is_empty(), "{user:?}: {said}");
        // A check for nobody says nothing of the file.
        assert_eq!(output.stdout.is_empty(), says.contains("no such user"), "{user:?}");
    }
}

/// Would clear the screen, turn the line, and begin another.
const EVIL: &str = "a\u{1b}[2J\u{202e}b\u{2066}c\nEVIL";

/// The same as TOML writes it.
const EVIL_WRITTEN: &str = r#""a\u001b[2J\u202eb\u2066c\nEVIL""#;

#[track_caller]
fn is_plain(output: &Output, what: &str) {
    for said in [text(&output.stdout), text(&output.stderr)] {
        let raw = |it: char| matches!(it, '\u{1b}' | '\u{202e}' | '\u{2066}');
        assert!(!said.contains(raw), "{what}: {said:?}");
        assert!(!said.lines().any(|line| line.starts_with("EVIL")), "{what}: {said:?}");
    }
}

/// Every key, every value and every table of the annotated file in turn, and the name of the file.
#[test]
fn nothing_of_a_file_changes_the_line_that_it_is_printed_in() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/penstock.toml");
    let documented = std::fs::read_to_string(docs).expect("the annotated file");
    let lines: Vec<&str> = documented.lines().collect();
    let (mut faulty, mut good) = (0, 0);
    for (index, line) in lines.iter().enumerate() {
        let variants = match line.split_once(" = ") {
            _ if line.starts_with("# ") || line.is_empty() => vec![],
            Some((key, value)) => {
                let key = key.trim_start_matches('#');
                let of_list = format!("{key} = [{EVIL_WRITTEN}]");
                vec![
                    format!("{EVIL_WRITTEN} = {value}"),
                    format!("{key} = {EVIL_WRITTEN}"),
                    format!("{key} = \"/{}", &EVIL_WRITTEN[1..]),
                    if value.starts_with('[') { of_list } else { format!("{key} = [{{}}]") },
                ]
            }
            None if line.starts_with("[backend.") => vec![format!("[backend.{EVIL_WRITTEN}]")],
            None if line.starts_with('[') => vec![format!("[{EVIL_WRITTEN}]")],
            None => vec![],
        };
        for variant in variants {
            let mut changed = lines.clone();
            changed[index] = &variant;
            let path = file(&format!("{EVIL}.toml"), &changed.join("\n"));
            let path = path.to_str().expect("UTF-8");
            let output = penstock(&["check", path]);
            is_plain(&output, &variant);
            assert!(text(&output.stderr).contains(r"a\u{1b}[2J\u{202e}b\u{2066}c\u{a}EVIL.toml"));
            if output.status.success() {
                good += 1;
                let old = file("plain.toml", &documented);
                let old = old.to_str().expect("UTF-8");
                is_plain(&penstock(&["check", path, "--against", old]), &variant);
                is_plain(&penstock(&["check", old, "--against", path]), &variant);
            } else {
                faulty += 1;
            }
        }
    }
    assert!(faulty > 100 && good > 3, "{faulty} faulty, {good} in order");
    // Where it is found out is not the check alone.
    let path = file(&format!("{EVIL}-run.toml"), &format!("{EVIL_WRITTEN} = 1\n"));
    let path = path.to_str().expect("UTF-8");
    for arguments in [vec!["run", path], vec!["check", path, "--against", path]] {
        let output = penstock(&arguments);
        assert_eq!(output.status.code(), Some(1));
        is_plain(&output, arguments[0]);
    }
    let missing = format!("{path}-missing");
    is_plain(&penstock(&["check", &missing]), "missing");
    is_plain(&penstock(&["status", "--socket", &missing]), "no gateway");
}

/// The reason stands alone, though there is something to warn of.
#[test]
fn a_start_that_is_refused_says_why_and_nothing_else() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let listener = format!("[[listener]]\nname = \"here\"\naddress = \"{address}\"\n");
    let weak = format!(
        "[admin]\nsocket = \"off\"\n{listener}trusted_proxies = [\"0.0.0.0/0\"]\n{ROUTE}{ECHO}"
    );
    let path = file("taken.toml", &weak);
    let output = penstock(&["run", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let [line] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(line.starts_with("penstock: not started: listener here "), "{line}");
    assert!(line.contains(&format!("cannot listen on {address}: ")), "{line}");
    assert!(output.stdout.is_empty(), "{output:?}");
}
