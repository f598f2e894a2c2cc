//! The demo page in a real browser.

use std::path::Path;

use crate::support::{Gateway, Program, Scratch, free_address};

#[test]
fn two_windows_chat_and_survive_a_restart() {
    // The same one after the restart: the pages know no other.
    let address = free_address([127, 0, 0, 1]).to_string();
    let start = || Gateway::run(&["run", "--listen", &address]);
    let gateway = start();
    let scratch = Scratch::new("page");
    let profile = scratch.path().join("chromium");
    // Pictures stay there to be looked at.
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&pictures).expect("a directory");
    let [profile, pictures] = [&profile, &pictures].map(|path| path.to_str().expect("UTF-8"));
    let mut pages = Program::node("page.js", &[&format!("http://{address}"), profile, pictures]);
    pages.line_with("stop it");
    drop(gateway);
    pages.line_with("start it");
    let _gateway = start();
    pages.success();
}
