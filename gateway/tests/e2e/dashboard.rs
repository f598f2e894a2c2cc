//! The dashboard in a real browser, in front of a gateway with real clients.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{ECHO_AND_ROOMS, HEAD, Program, Scratch, binary, free_address};

const TOKEN: &str = "a-token-of-some-length";

/// The path of a route, and what a page that believes it would do.
const HOSTILE: &str = "/<img/src=x/onerror=window.owned=1>";

fn start(file: &Path) -> Program {
    let mut gateway = Program::start("penstock", Command::new(binary()).arg("run").arg(file));
    gateway.line_with("admin at http://");
    gateway
}

/// Where pictures of it are left to be looked at.
fn pictures() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
    std::fs::create_dir_all(&path).expect("a directory");
    path
}

#[test]
fn what_it_shows_is_what_is() {
    let mut server = Program::node("server.js", &[]);
    let scratch = Scratch::new("dashboard");
    let token = scratch.write("admin.token", TOKEN);
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    // The same one after the restart: the browser knows no other.
    let admin = free_address([127, 0, 0, 1]);
    let listener = free_address([127, 0, 0, 1]);
    let head = HEAD.replace("127.0.0.1:0", &listener.to_string());
    let file = scratch.write(
        "penstock.toml",
        &format!(
            "{head}{ECHO_AND_ROOMS}[[route]]\npath = \"/app\"\nbackend = \"app\"\n\
             [[route]]\npath = \"{HOSTILE}\"\nbackend = \"echo\"\n\
             [backend.app]\nkind = \"websocket\"\nurl = \"ws://{}\"\n\
             [admin]\nsocket = \"{}/admin.sock\"\nlisten = \"{admin}\"\ntoken_file = \"{}\"\n",
            server.listening(),
            scratch.path().display(),
            token.display(),
        ),
    );
    let mut gateway = start(&file);
    let path = |name: &str| scratch.path().join(name).to_str().expect("UTF-8").to_owned();
    let mut browser = Program::node(
        "dashboard.js",
        &[
            &format!("http://{admin}"),
            TOKEN,
            &format!("ws://{listener}"),
            &format!("*{HOSTILE}"),
            &path("chromium"),
            pictures().to_str().expect("UTF-8"),
        ],
    );
    browser.line_with("kill it");
    gateway.kill();
    browser.line_with("start it");
    let _gateway = start(&file);
    browser.success();
}
