//! The admin interface over TCP: who is let in.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{ECHO_AND_ROOMS, HEAD, PATIENCE, Program, Scratch, binary};

const TOKEN: &str = "a-token-of-some-length";

/// A gateway that may be asked over TCP.
struct Asked {
    program: Program,
    scratch: Scratch,
    file: PathBuf,
    admin: SocketAddr,
}

impl Asked {
    #[track_caller]
    fn start(options: &str) -> Asked {
        let scratch = Scratch::new("admin");
        let file = scratch.path().join("penstock.toml");
        write_token(&scratch, TOKEN, 0o600);
        let config = config(&scratch, &format!("listen = \"127.0.0.1:0\"\n{options}"));
        std::fs::write(&file, config).expect("a scratch file");
        let mut program = Program::start("penstock", Command::new(binary()).arg("run").arg(&file));
        let line = program.line_with("admin at http://");
        let admin = line["admin at http://".len()..].trim_end_matches('/').parse();
        Asked { program, admin: admin.expect("an address"), scratch, file }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.admin).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    /// Sends a request with these lines as headers; the whole answer.
    #[track_caller]
    fn ask(&self, line: &str, headers: &str) -> String {
        let mut stream = self.connect();
        let request = format!(
            "{line} HTTP/1.1\r\nHost: t\r\nPenstock-Order: yes\r\n{headers}Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it is read");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// The status of the answer to a request with this token.
    #[track_caller]
    fn status(&self, line: &str, token: &str) -> u16 {
        let headers = match token {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        self.ask(line, &headers)[9..12].parse().expect("a status")
    }
}

fn write_token(scratch: &Scratch, token: &str, mode: u32) {
    let path = scratch.write("admin.token", token);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn config(scratch: &Scratch, options: &str) -> String {
    let path = scratch.path().display();
    format!(
        "{HEAD}{ECHO_AND_ROOMS}[admin]\nsocket = \"{path}/admin.sock\"\n\
         token_file = \"{path}/admin.token\"\n{options}"
    )
}

#[test]
fn whoever_shows_the_token_is_let_in() {
    let gateway = Asked::start("");
    for (line, token, want) in [
        ("GET /api/v1/status", TOKEN, 200),
        ("GET /api/v1/status", "", 401),
        ("GET /api/v1/status", "a-token-of-some-lengtH", 401),
        ("GET /api/v1/status", "a-token-of-some", 401),
        ("GET /api/v1/status?token=a-token-of-some-length", "", 401),
        ("POST /api/v1/reload", "", 401),
        ("POST /api/v1/drain", "", 401),
        ("POST /api/v1/connections/close?all=true", "", 401),
        ("POST /api/v1/connections/close?all=true", TOKEN, 200),
        // What is there and what is not cannot be told apart.
        ("GET /api/v1/nothing", "", 401),
        ("GET /api/v1/nothing", TOKEN, 404),
        ("DELETE /api/v1/status", TOKEN, 405),
        // Open as long as nobody says otherwise; to be read only.
        ("GET /api/v1/health/live", "", 200),
        ("HEAD /api/v1/health/ready", "", 200),
        ("POST /api/v1/health/live", "", 401),
        ("GET /api/v1/health/live/", "", 401),
    ] {
        assert_eq!(gateway.status(line, token), want, "{line} {token:?}");
    }
    let answer = gateway.ask("GET /api/v1/status", "").to_lowercase();
    assert!(answer.contains("\r\nwww-authenticate: bearer realm=\"penstock\"\r\n"), "{answer}");
    assert!(answer.contains("{\"faults\":[\"the token is missing or wrong"), "{answer}");
    // The scheme in any case; another scheme, or a cookie, is no token.
    let right = format!("authorization: bEARER {TOKEN}\r\n");
    let answer = gateway.ask("GET /api/v1/status", &right).to_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    for line in ["x-content-type-options: nosniff", "cache-control: no-store"] {
        assert!(answer.contains(line), "{line} in {answer}");
    }
    for wrong in ["Authorization: Basic", "Authorization:", "Cookie: token=", "X-Token:"] {
        let answer = gateway.ask("GET /api/v1/status", &format!("{wrong} {TOKEN}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 401"), "{wrong}: {answer}");
    }
    let wrong = gateway.ask("GET /api/v1/status", "Authorization: Bearer x\r\n");
    assert!(wrong.contains("error=\"invalid_token\""), "{wrong}");
}

#[test]
fn what_is_open_is_said_in_the_file() {
    let gateway = Asked::start("open = []\n");
    assert_eq!(gateway.status("GET /api/v1/health/live", ""), 401);
    assert_eq!(gateway.status("GET /api/v1/health/live", TOKEN), 200);
}

#[test]
fn a_reload_takes_another_token_on() {
    let gateway = Asked::start("");
    let reload = |token: &str| {
        let answer =
            gateway.ask("POST /api/v1/reload", &format!("Authorization: Bearer {token}\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head[9..12].to_owned(), body.to_owned())
    };
    let (status, body) = reload(TOKEN);
    assert!(status == "200" && body.contains("\"changes\":[]"), "{body}");

    let other = "another-token-of-some-length";
    write_token(&gateway.scratch, other, 0o600);
    let (status, body) = reload(TOKEN);
    assert!(status == "200" && body.contains("[\"admin.token_file changed\"]"), "{body}");
    assert_eq!(gateway.status("GET /api/v1/status", TOKEN), 401);
    assert_eq!(gateway.status("GET /api/v1/status", other), 200);

    // One that is no good changes nothing.
    for (token, mode, why) in [("short", 0o600, "5 bytes"), (TOKEN, 0o644, "(mode 0644)")] {
        write_token(&gateway.scratch, token, mode);
        let (status, body) = reload(other);
        assert!(status == "409" && body.contains(why) && !body.contains(TOKEN), "{body}");
    }
    write_token(&gateway.scratch, other, 0o600);
    // What is open changes as well, the address does not.
    let of = |options: &str| {
        std::fs::write(&gateway.file, config(&gateway.scratch, options)).expect("a scratch file");
    };
    of("listen = \"127.0.0.1:0\"\nopen = []\n");
    let (status, body) = reload(other);
    assert!(status == "200" && body.contains(r#"admin.open [\"health\"] -> []"#), "{body}");
    assert_eq!(gateway.status("GET /api/v1/health/live", ""), 401);
    of("listen = \"127.0.0.2:0\"\nopen = []\n");
    let (status, body) = reload(other);
    assert!(status == "409" && body.contains("the socket is open already"), "{body}");
    of("open = []\n");
    assert_eq!(reload(other).0, "409");
}

#[test]
fn guesses_are_told_in_the_log_with_where_they_come_from() {
    let mut gateway = Asked::start("");
    assert_eq!(gateway.status("GET /api/v1/status", ""), 401);
    assert_eq!(gateway.status("GET /api/v1/status", "a-guess-of-some-length"), 401);
    let line = gateway.program.error_line_containing("without the right token");
    assert!(
        line.contains("admin: 1 requests") && line.contains("the last from 127.0.0.1:"),
        "{line}"
    );
    assert!(!line.contains("a-guess"), "{line}");
}

#[test]
fn a_client_that_is_slow_keeps_nobody_from_asking() {
    let gateway = Asked::start("");
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = gateway.connect();
            stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHo").expect("it is read");
            stream
        })
        .collect();
    assert_eq!(gateway.status("GET /api/v1/status", TOKEN), 200);
    // None of them gets anything but an end.
    for mut stream in slow {
        // The oldest have had to make room.
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(!answer.contains("200 OK"), "{answer}");
    }
}

#[test]
fn without_a_token_there_is_no_listener() {
    for (options, why) in [
        ("listen = \"127.0.0.1:0\"\n", "`listen` needs a `token_file`"),
        (
            "listen = \"127.0.0.1:0\"\ntoken_file = \"/nonexistent/token\"\n",
            "cannot be read: No such",
        ),
    ] {
        let scratch = Scratch::new("admin");
        let config = format!("{HEAD}{ECHO_AND_ROOMS}[admin]\n{options}");
        let file = scratch.write("penstock.toml", &config);
        let output = Command::new(binary()).arg("run").arg(file).output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && errors.contains(why), "{errors}");
    }
    // An address that cannot be had.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = taken.local_addr().expect("it is bound");
    let scratch = Scratch::new("admin");
    write_token(&scratch, TOKEN, 0o600);
    let file =
        scratch.write("penstock.toml", &config(&scratch, &format!("listen = \"{address}\"\n")));
    let output = Command::new(binary()).arg("run").arg(file).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains(&format!("admin.listen {address}: Address already in use")),
        "{errors}"
    );
}
