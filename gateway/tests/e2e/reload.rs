//! Another configuration while clients are there: what it says holds, and no connection is closed.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::groups::Named;
use crate::support::{
    Gateway, HEAD, Peer, Program, Scratch, Upstream, binary, free_address, switching, upgrade,
};

const ECHO: &str = "[backend.echo]\nkind = \"echo\"\n";
const ROOMS: &str = "[backend.rooms]\nkind = \"local\"\nclient_names = \"trusted\"\n";

fn route(path: &str, backend: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nbackend = \"{backend}\"\n")
}

/// A backend with these upstreams, each with what else its table says.
fn group(name: &str, lines: &str, upstreams: &[(&Named, &str)]) -> String {
    let list = upstreams.iter().map(|(upstream, lines)| {
        format!("[[backend.{name}.upstream]]\nurl = \"ws://{}\"\n{lines}", upstream.address)
    });
    let list = list.collect::<String>();
    format!("[backend.{name}]\nkind = \"websocket\"\n{lines}{list}")
}

/// A gateway with a file that changes.
struct Reloading {
    gateway: Gateway,
    head: String,
    file: PathBuf,
    socket: PathBuf,
    scratch: Scratch,
}

impl Reloading {
    #[track_caller]
    fn start(body: &str) -> Reloading {
        Reloading::start_with(HEAD, body)
    }

    /// The same with one shard, so that what it has counted is all there is.
    #[track_caller]
    fn start_one_shard(body: &str) -> Reloading {
        Reloading::start_with(&HEAD.replace("shards = 2", "shards = 1"), body)
    }

    #[track_caller]
    fn start_with(head: &str, body: &str) -> Reloading {
        let scratch = Scratch::new("reload");
        let socket = scratch.path().join("admin.sock");
        let head = format!("{head}[admin]\nsocket = \"{}\"\n", socket.display());
        let file = scratch.write("penstock.toml", &format!("{head}{body}"));
        let gateway = Gateway::run(&["run", file.to_str().expect("UTF-8")]);
        Reloading { gateway, head, file, socket, scratch }
    }

    fn write(&self, body: &str) {
        self.scratch.write("penstock.toml", &format!("{}{body}", self.head));
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(binary());
        command.arg(verb).arg("--socket").arg(&self.socket);
        command
    }

    /// Has it read what `body` says; what `penstock reload` prints.
    #[track_caller]
    fn reload(&self, body: &str) -> String {
        self.write(body);
        let output = self.command("reload").output().expect("the program starts");
        let [stdout, stderr] = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
        stdout
    }

    /// The same for a file that it refuses: what stands on standard error.
    #[track_caller]
    fn refused(&self, body: &str) -> String {
        self.write(body);
        let output = self.command("reload").output().expect("the program starts");
        let [stdout, stderr] = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.ends_with("penstock: nothing was done\n"), "{stderr}");
        stderr
    }

    #[track_caller]
    fn status(&self) -> Value {
        let output = self.command("status").output().expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{}", texts(&output)[1]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Why connections have been closed so far.
    #[track_caller]
    fn expect_closed(&self, closed: &Value) {
        assert_eq!(self.status()["closed"], *closed);
    }

    #[track_caller]
    fn open(&self, target: &str) -> Peer {
        Peer::open(self.gateway.address(), target)
    }

    /// The status that an upgrade is refused with.
    #[track_caller]
    fn refusal(&self, target: &str, more: &str) -> String {
        let mut peer = Peer::connect(self.gateway.address());
        peer.write(upgrade(target, more));
        let answer = peer.answer();
        answer.split(' ').nth(1).expect("a status").to_owned()
    }
}

fn texts(output: &Output) -> [String; 2] {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// A message to echo comes back.
#[track_caller]
fn echoes(peer: &mut Peer) {
    peer.send(0x81, b"are you there");
    assert_eq!(peer.frame().payload, b"are you there");
}

/// The name that an upstream has sent.
#[track_caller]
fn name(peer: &mut Peer) -> String {
    String::from_utf8(peer.frame().payload).expect("a name")
}

#[test]
fn a_signal_or_the_command_bring_a_route_and_take_one() {
    let mut it = Reloading::start(&(route("/a", "echo") + ECHO));
    let mut on_a = it.open("/a");
    assert_eq!(it.refusal("/b", ""), "404");

    it.write(&(route("/a", "echo") + &route("/b", "echo") + ECHO));
    it.gateway.signal(Signal::HUP);
    let line = it.gateway.log_line_containing("reload: the configuration has changed");
    assert!(line.contains("changes=1") && line.contains("generation=1"), "{line}");
    let line = it.gateway.log_line_containing("reload: ");
    assert!(line.contains("/b"), "what is new: {line}");
    let mut on_b = it.open("/b");

    let said = it.reload(&(route("/b", "echo") + &route("/c", "echo") + ECHO));
    assert!(said.ends_with("2 changes; configuration 2 runs\n"), "{said}");
    assert!(said.contains("/a") && said.contains("/c"), "{said}");
    let line = it.gateway.log_line_containing("/c");
    assert!(line.contains("generation=2"), "the log has what the command says: {line}");
    assert_eq!(it.refusal("/a", ""), "404");
    for peer in [&mut on_a, &mut on_b, &mut it.open("/c")] {
        echoes(peer);
    }
    // The client of `/c` may be gone already.
    assert_eq!(it.status()["closed"]["handshake_rejected"], 2);
    // Nothing is different: nothing happens.
    let said = it.reload(&(route("/b", "echo") + "\n" + &route("/c", "echo") + ECHO));
    assert_eq!(said, "0 changes; configuration 2 runs\n");
    // The way back.
    it.reload(&(route("/a", "echo") + ECHO));
    for peer in [&mut on_a, &mut on_b, &mut it.open("/a")] {
        echoes(peer);
    }
}

#[test]
fn a_route_that_leads_elsewhere_moves_nobody() {
    let (first, second) = (Upstream::listen(), Upstream::listen());
    let to = |upstream: Option<&Upstream>| {
        let route = upstream.map_or(String::new(), |upstream| {
            let name = if std::ptr::eq(upstream, &first) { "first" } else { "second" };
            route("/*", name)
        });
        let backend = |name: &str, upstream: &Upstream| {
            format!(
                "[backend.{name}]\nkind = \"websocket\"\nurl = \"ws://{}\"\n",
                upstream.address()
            )
        };
        let listed = [backend("first", &first), backend("second", &second)].concat();
        self::route("/echo", "echo") + ECHO + &route + &listed
    };
    let it = Reloading::start(&to(Some(&first)));
    let ask = |peer: &mut Peer| peer.write("GET /page HTTP/1.1\r\nHost: test\r\n\r\n");
    let answer = |peer: &mut Peer, upstream: &Upstream| {
        let (mut server, _) = upstream.accept();
        server.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert!(peer.head().starts_with("HTTP/1.1 200 "));
        assert_eq!(peer.bytes(2), b"ok");
    };
    let mut keeps_asking = Peer::connect(it.gateway.address());
    ask(&mut keeps_asking);
    answer(&mut keeps_asking, &first);
    let mut old = first.join(&it.gateway);
    // One whose upstream has not answered when the route turns away.
    let mut waiting = Peer::connect(it.gateway.address());
    waiting.write(upgrade("/", ""));
    let (mut slow, request) = first.accept();

    it.reload(&to(Some(&second)));
    slow.write(switching(&request, ""));
    assert!(waiting.head().starts_with("HTTP/1.1 101 "));
    let mut new = second.join(&it.gateway);
    ask(&mut keeps_asking);
    answer(&mut keeps_asking, &second);

    it.reload(&to(None));
    assert_eq!(it.refusal("/", ""), "404");
    let mut late = (waiting, slow);
    for (client, upstream) in [&mut old, &mut new, &mut late] {
        client.send(0x81, b"up");
        assert_eq!(upstream.frame().payload, b"up");
        upstream.write(b"\x81\x04down");
        assert_eq!(client.frame().payload, b"down");
    }
    it.expect_closed(&json!({ "handshake_rejected": 1 }));
    // Of the requests that a connection makes, each is led by what holds then.
    ask(&mut keeps_asking);
    assert!(keeps_asking.answer().starts_with("HTTP/1.1 404 "));
}

#[test]
fn upstreams_come_drain_and_go() {
    let (a, b) = (Named::start("a"), Named::start("b"));
    let app = |upstreams: &[(&Named, &str)]| {
        route("/*", "app") + &group("app", "balance = \"round-robin\"\n", upstreams)
    };
    let it = Reloading::start_one_shard(&app(&[(&a, "")]));
    let mut open = Vec::new();
    let mut seen = |count: usize| {
        let names = (0..count).map(|_| {
            let mut client = it.open("/");
            let name = name(&mut client);
            open.push(client);
            name
        });
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names.concat()
    };
    assert_eq!(seen(2), "aa");
    let said = it.reload(&app(&[(&a, ""), (&b, "")]));
    assert!(said.contains(&b.address.to_string()), "{said}");
    assert_eq!(seen(4), "aabb");
    let said = it.reload(&app(&[(&a, "weight = 3\n"), (&b, "")]));
    assert!(said.contains("weight"), "{said}");
    assert_eq!(seen(8), "aaaaaabb");
    it.reload(&app(&[(&a, "mode = \"draining\"\n"), (&b, "")]));
    assert_eq!(seen(4), "bbbb");
    it.reload(&app(&[(&b, "")]));
    assert_eq!(seen(2), "bb");
    it.reload(&app(&[(&a, ""), (&b, "mode = \"disabled\"\n")]));
    assert_eq!(seen(2), "aa");
    it.expect_closed(&json!({}));
    for client in &mut open {
        client.stream.set_nonblocking(true).expect("a socket");
        let read = std::io::Read::read(&mut client.stream, &mut [0; 16]);
        let error = read.expect_err("nothing was sent, and nothing has ended");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// Limits are those of the moment, for the clients that are there as well.
#[test]
fn limits_hold_for_those_who_are_there() {
    let body = |limits: &str, of_route: &str| {
        let rest = route("/*", "echo") + of_route + ECHO;
        format!("{rest}[limits]\n{limits}")
    };
    let it = Reloading::start(&body("", ""));
    let [mut large, mut often, mut stays] = [(); 3].map(|()| it.open("/"));
    large.send(0x82, &[7; 2000]);
    assert_eq!(large.frame().payload.len(), 2000);

    it.reload(&body("message_bytes_max = 1024\n", ""));
    large.send(0x82, &[7; 1024]);
    assert_eq!(large.frame().payload.len(), 1024);
    it.expect_closed(&json!({}));
    large.send(0x82, &[7; 1025]);
    assert_eq!(large.close_frame().0, 1009);

    // A route may have more than the others.
    it.reload(&body("message_bytes_max = 200\n", "message_bytes_max = 3000\n"));
    stays.send(0x82, &[7; 3000]);
    assert_eq!(stays.frame().payload.len(), 3000);

    it.reload(&body("", "messages_per_second = 1\nmessages_burst = 2\n"));
    often.write(crate::support::masked(0x81, b"x").repeat(3));
    assert_eq!(often.close_frame(), (1008, "over messages_per_second".to_owned()));

    it.reload(&body("", "origins = [\"https://a.example\"]\n"));
    assert_eq!(it.refusal("/", "Origin: https://b.example\r\n"), "403");
    let mut admitted = Peer::connect(it.gateway.address());
    admitted.write(upgrade("/", "Origin: https://a.example\r\n"));
    assert!(admitted.head().starts_with("HTTP/1.1 101 "));

    // Those who came before there was a limit count as well.
    it.reload(&body("", "connections_max = 2\n"));
    drop((large, often));
    assert_eq!(it.refusal("/", ""), "503");
    it.reload(&body("", "connections_max = 100\n"));
    let mut new = it.open("/");
    for peer in [&mut admitted, &mut stays, &mut new] {
        peer.send(0x82, &[7; 2000]);
        assert_eq!(peer.frame().payload.len(), 2000);
    }
}

/// A member of rooms, and what it is told.
struct Member(Peer);

impl Member {
    #[track_caller]
    fn open(it: &Reloading, user: &str) -> Member {
        let mut member = Member(it.open(&format!("/rooms?user={user}")));
        assert_eq!(member.told()["event"], "welcome");
        member
    }

    #[track_caller]
    fn told(&mut self) -> Value {
        serde_json::from_slice(&self.0.frame().payload).expect("JSON")
    }

    #[track_caller]
    fn ask(&mut self, request: &Value) -> Value {
        self.0.send(0x81, request.to_string().as_bytes());
        self.told()
    }

    /// Publishes, and gets it itself before the answer.
    #[track_caller]
    fn publish(&mut self, room: &str, data: u64) {
        let request = json!({ "op": "publish", "room": room, "data": data, "id": data });
        assert_eq!(self.ask(&request)["data"], data);
        assert_eq!(self.told()["ack"], data);
    }

    /// What is kept of a room.
    #[track_caller]
    fn history(&mut self, room: &str) -> Vec<u64> {
        let answer = self.ask(&json!({ "op": "history", "room": room, "id": 0 }));
        let messages = answer["messages"].as_array().unwrap_or_else(|| panic!("{answer}"));
        messages.iter().map(|message| message["data"].as_u64().expect("a number")).collect()
    }
}

#[test]
fn rooms_keep_members_history_and_presence() {
    let body = |lines: &str| route("/rooms", "rooms") + ROOMS + lines;
    let it = Reloading::start(&body(""));
    let (mut ann, mut bob) = (Member::open(&it, "ann"), Member::open(&it, "bob"));
    // Several, so that some have their home in either shard.
    let rooms = ["a", "b", "c", "d", "e"];
    for room in rooms {
        ann.ask(&json!({ "op": "join", "room": room, "presence": true, "id": 1 }));
        bob.ask(&json!({ "op": "join", "room": room, "id": 1 }));
        assert_eq!(ann.told()["event"], "join");
        (1..=4).for_each(|data| ann.publish(room, data));
        (1..=4).for_each(|data| assert_eq!(bob.told()["data"], data));
    }

    it.reload(&body("history_messages_max = 2\nrooms_per_client_max = 5\n"));
    for room in rooms {
        ann.publish(room, 5);
        assert_eq!(bob.told()["data"], 5);
        assert_eq!(bob.history(room), [4, 5]);
        let answer = bob.ask(&json!({ "op": "presence", "room": room, "id": 1 }));
        assert_eq!(answer["users"], json!(["ann", "bob"]));
    }
    let refused = bob.ask(&json!({ "op": "join", "room": "f", "id": 1 }));
    assert!(refused["error"].is_object(), "the new bound holds: {refused}");

    // Gone from the file, and back: who was there never noticed.
    it.reload(&(route("/echo", "echo") + ECHO));
    assert_eq!(it.refusal("/rooms", ""), "404");
    ann.publish("a", 6);
    assert_eq!(bob.told()["data"], 6);
    it.reload(&body(""));
    let mut cid = Member::open(&it, "cid");
    let joined = cid.ask(&json!({ "op": "join", "room": "a", "presence": true, "id": 1 }));
    assert_eq!(joined["user_count"], 3);
    assert_eq!(cid.history("a"), [5, 6]);
    it.expect_closed(&json!({ "handshake_rejected": 1 }));
}

#[test]
fn what_cannot_be_taken_on_changes_nothing() {
    let good = route("/a", "echo") + ECHO;
    let mut it = Reloading::start(&good);
    let mut client = it.open("/a");
    let body = route("/b", "echo") + &good + "[limits]\nmessage_bytes_max = \"much\"\n";
    let last_line = format!("{}{body}", it.head).lines().count();
    let said = it.refused(&body);
    let at = format!("{}:{last_line}:21:", it.file.display());
    assert!(said.starts_with(&at), "{at} in\n{said}");
    let line = it.gateway.log_line_containing("message_bytes_max");
    assert!(line.contains("ERROR") && line.contains(&at), "{line}");
    let unknown = it.refused(&(good.clone() + "[limitz]\n"));
    assert!(unknown.contains("limitz"), "{unknown}");
    let none = it.refused("nothing of this is TOML");
    assert!(none.starts_with(&it.file.display().to_string()), "{none}");

    // All that needs a restart, a reason each; and what could be taken on is not.
    let head = it.head.clone();
    it.head = head.replace("shards = 2", "shards = 3").replace(":0", ":1");
    let said = it.refused(&(route("/b", "echo") + &good + "[log]\nformat = \"json\"\n"));
    for words in ["`server.shards` is 2 and would become 3: each shard", "listener", "`log.format`"]
    {
        assert!(said.contains(words), "{words} in\n{said}");
    }
    assert_eq!(said.matches("restart for this change, or put it back").count(), 4, "{said}");
    it.gateway.log_line_containing("`server.shards` is 2 and would become 3");
    it.head = head;
    let _ = std::fs::remove_file(&it.file);
    let output = it.command("reload").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{:?}", texts(&output));
    // By a signal nobody hears of it but the log.
    it.gateway.signal(Signal::HUP);
    it.gateway.log_line_containing("nothing has changed");
    it.gateway.log_line_containing(&it.file.display().to_string());

    assert_eq!(it.refusal("/b", ""), "404");
    echoes(&mut client);
    assert_eq!(it.status()["config_generation"], 0);
    it.expect_closed(&json!({ "handshake_rejected": 1 }));
}

#[test]
fn without_a_file_there_is_nothing_to_read() {
    let scratch = Scratch::new("embedded");
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "127.0.0.1:0"]).env("RUNTIME_DIRECTORY", scratch.path());
    let mut program = Program::start("penstock", &mut command);
    program.line_with("admin socket ");
    let reload = Command::new(binary())
        .arg("reload")
        .env("RUNTIME_DIRECTORY", scratch.path())
        .output()
        .expect("the program starts");
    assert_eq!(reload.status.code(), Some(1));
    let stderr = &texts(&reload)[1];
    assert!(stderr.contains("there is no file to read again"), "{stderr}");
    program.signal(Signal::HUP);
    program.error_line_containing("there is no file to read again");
}

#[test]
fn reloads_at_the_same_time_come_one_after_the_other() {
    let it = Reloading::start(&(route("/a", "echo") + ECHO));
    let mut client = it.open("/a");
    for round in 1..=10 {
        it.write(&(route("/a", "echo") + &route(&format!("/{round}"), "echo") + ECHO));
        it.gateway.signal(Signal::HUP);
        let start = || {
            let mut command = it.command("reload");
            command.stdout(Stdio::piped()).spawn().expect("the program starts")
        };
        let asked: [Child; 4] = [(); 4].map(|()| start());
        for child in asked {
            let output = child.wait_with_output().expect("it is our child");
            let [stdout, _] = texts(&output);
            let last = format!("changes; configuration {round} runs\n");
            assert!(output.status.success() && stdout.ends_with(&last), "{stdout}");
        }
        drop(it.open(&format!("/{round}")));
        echoes(&mut client);
    }
}

/// More backends and routes come and go than there are numbers for; nobody gets another's.
#[test]
fn numbers_come_back_when_nobody_is_on_them() {
    let upstream = Upstream::listen();
    let app =
        format!("[backend.app]\nkind = \"websocket\"\nurl = \"ws://{}\"\n", upstream.address());
    let others = route("/rooms", "rooms")
        + &route("/*", "app")
        + &route("/echo", "mirror")
        + "[backend.mirror]\nkind = \"echo\"\n"
        + ROOMS
        + &app;
    let it = Reloading::start(&others);
    let mut ann = Member::open(&it, "ann");
    ann.ask(&json!({ "op": "join", "room": "a", "id": 1 }));
    let mut joined = upstream.join(&it.gateway);
    let mut echo = it.open("/echo");
    let kinds =
        ["kind = \"echo\"", "kind = \"local\"", "kind = \"websocket\"\nurl = \"ws://127.0.0.1:1\""];
    for round in 0..12 {
        // Other names each time: with three rounds of them all numbers of backends are taken.
        let many: String = (0..1000)
            .map(|index| {
                let name = format!("r{round}n{index}");
                let kind = kinds[(index + round) % 3];
                route(&format!("/{name}"), &name) + &format!("[backend.{name}]\n{kind}\n")
            })
            .collect();
        it.reload(&many);
        ann.publish("a", round as u64);
        let (client, server) = &mut joined;
        client.send(0x81, b"up");
        assert_eq!(server.frame().payload, b"up");
        echoes(&mut echo);
        drop(it.open(&format!("/r{round}n{}", (3000 - round) % 3)));
    }
    // What somebody was on all the time has its number still.
    it.reload(&others);
    let mut bob = Member::open(&it, "bob");
    let answer = bob.ask(&json!({ "op": "join", "room": "a", "presence": true, "id": 1 }));
    assert_eq!(answer["user_count"], 2, "{answer}");
    assert_eq!(bob.history("a").len(), 12);
}

/// `bench/compare/reloads` in small.
#[test]
fn three_hundred_reloads_under_two_hundred_connections() {
    let (a, b, c) = (Named::start("a"), Named::start("b"), Named::start("c"));
    let app = |round: usize| {
        let weight = format!("weight = {}\n", 1 + round % 7);
        let draining = ["", "mode = \"draining\"\n"][round / 4 % 2];
        let list = [(&a, weight.as_str()), (&b, draining), (&c, "")];
        route("/*", "app")
            + &route("/echo", "echo")
            + ECHO
            + &group("app", "", &list[..2 + round % 2])
    };
    let it = Reloading::start(&app(0));
    let mut relayed: Vec<Peer> = (0..100).map(|_| it.open("/")).collect();
    relayed.iter_mut().for_each(|client| drop(name(client)));
    let mut echo: Vec<Peer> = (0..100).map(|_| it.open("/echo")).collect();
    for round in 1..=300 {
        it.reload(&app(round));
        echoes(&mut echo[round % 100]);
        if round % 10 == 0 {
            let mut new = it.open("/");
            name(&mut new);
            relayed.push(new);
        }
    }
    assert_eq!(it.status()["config_generation"], 300);
    assert_eq!(it.status()["clients"], 230);
    it.expect_closed(&json!({}));
    echo.iter_mut().for_each(echoes);
    for client in &mut relayed {
        assert!(!client.has_bytes(), "nothing was sent, and nothing has ended");
    }
}

/// The number of a backend that has left the file is given to the next one that comes: what the first
/// did is told under its own name.
#[test]
fn a_backend_that_has_left_is_named_in_its_own_troubles() {
    let port = free_address([127, 0, 0, 1]).port();
    let of = |name: &str, url: &str| {
        let backend = format!("[backend.{name}]\nkind = \"websocket\"\n");
        route(&format!("/{name}"), name)
            + &backend
            + &format!("[[backend.{name}.upstream]]\nurl = \"{url}\"\n")
    };
    let rest = route("/a", "echo") + ECHO;
    let (url, other) = (format!("ws://127.0.0.1:{port}"), "ws://127.0.0.1:9");
    let mut it = Reloading::start(&(of("gone", &url) + &rest));
    let told = format!("backend gone: {url}: ");
    assert_eq!(it.refusal("/gone", ""), "502");
    it.gateway.log_line_containing(&told);
    // The next line about it is a second away.
    assert_eq!(it.refusal("/gone", ""), "502");
    it.reload(&rest);
    it.reload(&(of("new", other) + &rest));
    it.gateway.log_line_containing(&told);
}
