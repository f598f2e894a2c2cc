//! Socket.IO as people run it: three servers, clients that poll and then upgrade.

use rustix::process::Signal;

use crate::support::{Gateway, HEAD, Program};

/// 300 clients for each transport; fewer in a debug build, like everything here.
fn clients() -> String {
    let wanted: u32 = crate::support::clients().parse().expect("a number");
    wanted.min(300).to_string()
}

#[test]
fn every_transport_finds_its_server_again() {
    let mut servers = ["a", "b", "c"].map(|name| Program::node("socketio_server.js", &[name]));
    let list = servers.each_mut().map(|server| {
        format!("[[backend.chat.upstream]]\nurl = \"ws://{}\"\n", server.listening())
    });
    let gateway = Gateway::start(&format!(
        "{HEAD}[[route]]\npath = \"/socket.io/*\"\nbackend = \"chat\"\n\
         [backend.chat]\nkind = \"websocket\"\nbalance = \"hash\"\nhash_key = \"query:user\"\n\
         hash_load_percent = 0\n{}",
        list.concat()
    ));
    let url = format!("http://{}", gateway.address());
    let lines = Program::node("socketio_client.js", &[&url, &clients()]).success();
    // All three have their part of the clients, by whatever transport they came.
    assert_eq!(lines, ["default a b c", "websocket a b c", "polling a b c"]);
    for server in servers {
        server.signal(Signal::TERM);
        let lines = server.success();
        let last = lines.last().expect("what it served");
        assert!(last.ends_with(" unknown 0"), "{last}");
    }
}
