//! Pages of other sites in a real browser that reaches the admin interface: at its port, and at its
//! socket as `ssh -L` leads there. They can neither order nor read anything.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{ECHO_AND_ROOMS, HEAD, Peer, Program, Scratch, binary};

/// Leads each connection to the socket; returns where.
fn forward(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = UnixStream::connect(&socket) else { return };
            let copy = |mut from: Box<dyn io::Read + Send>, mut to: Box<dyn io::Write + Send>| {
                // Whatever ends one direction has been seen by both peers.
                std::thread::spawn(move || drop(io::copy(&mut from, &mut to)));
            };
            let (a, b): (TcpStream, _) =
                (client.try_clone().expect("one more"), server.try_clone());
            copy(Box::new(client), Box::new(server));
            copy(Box::new(b.expect("one more")), Box::new(a));
        }
    });
    port
}

#[test]
fn pages_of_other_sites_order_and_read_nothing() {
    let scratch = Scratch::new("foreign");
    let token = scratch.write("admin.token", "a-token-of-some-length");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    let socket = scratch.path().join("admin.sock");
    let text = format!(
        "{HEAD}{ECHO_AND_ROOMS}[admin]\nsocket = \"{}\"\nlisten = \"127.0.0.1:0\"\n\
         token_file = \"{}\"\nopen = [\"health\", \"metrics\"]\n[limits]\nping_interval_ms = 0\n",
        socket.display(),
        token.display()
    );
    let file = scratch.write("penstock.toml", &text);
    let mut gateway = Program::start("penstock", Command::new(binary()).arg("run").arg(file));
    let line = gateway.line_with("listening on ");
    let listener = line.split(' ').nth(2).expect("an address").parse().expect("an address");
    let line = gateway.line_with("admin at http://");
    let port = line.trim_end_matches('/').rsplit(':').next().expect("a port").to_owned();
    let forwarded = forward(socket).to_string();

    // What a page must not be able to end.
    let mut client = Peer::open(listener, "/echo");
    let profile = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("chromium-foreign-{}", std::process::id()));
    let profile_path = profile.to_str().expect("UTF-8");
    Program::node("foreign.js", &[&port, &forwarded, profile_path]).success();
    let _ = std::fs::remove_dir_all(&profile);
    client.send(0x81, b"still here");
    assert_eq!(client.frame().payload, b"still here");
}
