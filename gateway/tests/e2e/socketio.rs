//! Socket.IO as people run it: three servers, clients that poll and then upgrade.

use std::net::SocketAddr;

use rustix::process::Signal;

use crate::support::{Gateway, HEAD, Program, QUIET, Scratch, free_address, to_upstream};

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

/// What the server takes passes by the default route: the gateway gathers nothing, so it has no bound.
#[test]
fn large_messages_and_uploads_pass() {
    let mut server = Program::node("large_server.js", &[]);
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(server.listening())));
    let url = format!("http://{}", gateway.address());
    let before = gateway.resident_bytes();
    let lines = Program::node("large_client.js", &[&url]).success();
    assert_eq!(lines, ["websocket", "polling", "upload"]);
    let grown = gateway.resident_bytes().saturating_sub(before);
    // What is on its way, and not the 25 MB of the upload.
    assert!(grown < 16 << 20, "{grown} bytes");
}

/// Three servers, with a Redis that makes their rooms one if they are to share them.
struct Chat {
    servers: [Program; 3],
    addresses: [SocketAddr; 3],
    redis: Option<Program>,
}

impl Chat {
    fn start(is_shared: bool) -> Chat {
        let mut redis = None;
        let mut url = String::new();
        if is_shared {
            let address = free_address(QUIET);
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let mut server = Program::daemon("redis-server", |command| {
                command.args(["--bind", &ip, "--port", &port, "--save", "", "--appendonly", "no"])
            });
            server.line_containing("Ready to accept connections");
            (redis, url) = (Some(server), format!("redis://{address}"));
        }
        let mut servers =
            ["a", "b", "c"].map(|name| Program::node("socketio_server.js", &[name, &url]));
        let addresses = servers.each_mut().map(Program::listening);
        Chat { servers, addresses, redis }
    }

    /// Plays the chat through what listens here.
    #[track_caller]
    fn play(self, front: &str, address: SocketAddr) {
        let shared = if self.redis.is_some() { "redis" } else { "alone" };
        let url = format!("http://{address}");
        for line in Program::node("socketio_chat.js", &[&url, &clients(), shared]).success() {
            println!("{front}, {shared}: {line}");
        }
        let [a, mut b, c] = self.servers;
        // It has crashed, as it was asked to.
        assert!(!b.status().success());
        for server in [a, c] {
            server.signal(Signal::TERM);
            server.success();
        }
    }
}

/// The gateway in front of a chat, by the address of the client. Without a bound of load: it would send
/// some requests of a session to a server that does not know it.
fn by_address(chat: &Chat) -> Gateway {
    let list = chat
        .addresses
        .map(|address| format!("[[backend.chat.upstream]]\nurl = \"ws://{address}\"\n"));
    Gateway::start(&format!(
        "{HEAD}[[route]]\nbackend = \"chat\"\n[backend.chat]\nkind = \"websocket\"\n\
         balance = \"hash\"\nhash_load_percent = 0\n{}",
        list.concat()
    ))
}

#[test]
fn a_chat_that_shares_its_rooms_by_redis() {
    let chat = Chat::start(true);
    let gateway = by_address(&chat);
    chat.play("penstock", gateway.address());
}

#[test]
fn a_chat_that_shares_nothing() {
    let chat = Chat::start(false);
    let gateway = by_address(&chat);
    chat.play("penstock", gateway.address());
}

/// The same through nginx as it is usually set up for Socket.IO: that the chat works there shows that
/// it is a fair one, and its lines (`--nocapture`) are what the gateway's stand beside.
#[test]
fn the_chat_through_nginx() {
    let chat = Chat::start(true);
    let (scratch, address) = (Scratch::new("nginx"), free_address(QUIET));
    let directory = scratch.path().display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"));
    let servers = chat.addresses.map(|address| format!("server {address};\n"));
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 2;\npid {directory}/pid;\n\
         error_log stderr notice;\nevents {{ worker_connections 4096; }}\n\
         http {{\n access_log off;\n{}\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}\n\
         upstream chat {{\n ip_hash;\n{}}}\n\
         server {{\n listen {address};\n location / {{\n\
         proxy_pass http://chat;\n proxy_http_version 1.1;\n\
         proxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection $connection_upgrade;\n\
         proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n}}\n}}\n}}\n",
        temporary.concat(),
        servers.concat()
    );
    let file = scratch.write("nginx.conf", &config);
    let mut nginx =
        Nginx(Program::daemon("nginx", |command| command.args(["-e", "stderr", "-c"]).arg(file)));
    nginx.0.line_containing("start worker processes");
    chat.play("nginx", address);
}

/// Ends in order: its workers stay behind when it is killed.
struct Nginx(Program);

impl Drop for Nginx {
    fn drop(&mut self) {
        self.0.signal(Signal::TERM);
        self.0.status();
    }
}
