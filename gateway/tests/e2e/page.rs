//! The demo page in a real browser.

use std::path::Path;

use crate::support::{Gateway, Program};

#[test]
fn two_windows_chat() {
    let gateway = Gateway::run(&["run", "--listen", "127.0.0.1:0"]);
    let profile =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chromium-{}", std::process::id()));
    let url = format!("http://{}", gateway.address());
    let path = profile.to_str().expect("UTF-8");
    let shot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png");
    let shot = shot.to_str().expect("UTF-8");
    Program::node("page.js", &[&url, path, shot]).success();
    let _ = std::fs::remove_dir_all(profile);
}
