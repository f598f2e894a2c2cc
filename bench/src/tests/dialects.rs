//! Every dialect against the real server that speaks it, where one can be installed. The servers
//! come from `scripts/test-tools`; without them these tests fail with that advice.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::fanout::run as fanout;

/// A server in a process of its own, with its configuration in a directory of its own. Ended by
/// dropping it.
struct Server {
    child: Child,
    port: u16,
    directory: PathBuf,
}

impl Server {
    /// Starts a server and waits for the line that says it listens. `command` gets a port that
    /// nobody listened at a moment ago and an empty directory; a server that can choose a port
    /// itself does not need the first, and says `port` in its line.
    #[track_caller]
    fn start(
        name: &str,
        ready: &str,
        command: impl Fn(u16, &std::path::Path) -> Command,
    ) -> Server {
        let mut errors = String::new();
        // Somebody else may take the port before the server does.
        for attempt in 0..5 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let directory = std::env::temp_dir()
                .join(format!("penstock-bench-{}-{name}-{port}-{attempt}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let mut command = command(port, &directory);
            drop(listener);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command
                .spawn()
                .unwrap_or_else(|error| panic!("{name}: {error}; run scripts/test-tools"));
            let mut server = Server { child, port, directory };
            let line = server.line_with(ready, &mut errors);
            if let Some(line) = line {
                let digits = line.rsplit(':').next().unwrap_or_default();
                let digits = digits.rsplit(' ').next().unwrap_or_default();
                server.port = digits.trim().parse().unwrap_or(port);
                return server;
            }
        }
        panic!("{name} did not come up:\n{errors}");
    }

    /// The first line of either output that has this in it; `None` when the server ends before.
    /// What it says afterwards is read and forgotten, so that it never waits for us.
    fn line_with(&mut self, ready: &str, errors: &mut String) -> Option<String> {
        let (sender, receiver) = mpsc::channel();
        let out: Box<dyn Read + Send> = Box::new(self.child.stdout.take().unwrap());
        let err: Box<dyn Read + Send> = Box::new(self.child.stderr.take().unwrap());
        for output in [out, err] {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        drop(sender);
        while let Ok(line) = receiver.recv_timeout(FOREVER) {
            if line.contains(ready) {
                return Some(line);
            }
            errors.push_str(&line);
            errors.push('\n');
        }
        None
    }

    /// Runs `fanout` against it, and sees that all is well.
    #[track_caller]
    fn check(&self, line: &str, deliveries: u64) -> Value {
        let url = format!("--url ws://127.0.0.1:{}/", self.port);
        let report = run(fanout, &format!("{url} {line} {SHORT} --pid {}", self.child.id()));
        assert_eq!(report["ok"], true, "{report:#}");
        assert_eq!(report["delivered_count"], deliveries, "{report:#}");
        assert_eq!(report["ended_early_count"], 0, "{report:#}");
        assert_eq!(report["refused_by_reason"].as_object().unwrap().len(), 0, "{report:#}");
        report
    }

    /// Runs `fanout` against it, which has to fail; tells with what.
    #[track_caller]
    fn error(&self, line: &str) -> String {
        let url = format!("--url ws://127.0.0.1:{}/", self.port);
        let line = format!("{url} {line} {SHORT}");
        try_run(fanout, &line, &NEVER).unwrap_err().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// 100 messages: half a second of 200.
const SHORT: &str = "--rate 200 --warm-up-seconds 0.1 --seconds 0.4";

/// Something that `scripts/test-tools` has installed.
fn installed(name: &str) -> PathBuf {
    let home = std::env::var_os("PENSTOCK_TEST_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/penstock-test"),
        PathBuf::from,
    );
    let path = home.join(name);
    assert!(path.exists(), "{} is not there; run scripts/test-tools", path.display());
    path
}

fn node(program: &str, argument: &str) -> Server {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/programs");
    Server::start(program, "listening on", |_, _| {
        let mut command = Command::new("node");
        command.arg(format!("{file}/{program}.js")).arg(argument);
        command.env("NODE_PATH", installed("servers/node_modules"));
        command
    })
}

#[test]
fn topics_of_node_ws() {
    let server = node("topics", "");
    let line = "--dialect topics --rooms 5 --members 7";
    let report = server.check(line, 700);
    assert_eq!(report["publishers_apart"], true, "{report:#}");
    assert_eq!(report["connections"], 5 * 7 + 5, "{report:#}");
    server.check("--dialect topics --members 3 --publishers 4 --size 3000", 300);
    let error = server.error("--dialect topics --members 3 --subscribe-path /{room}");
    assert!(error.contains("connections ended") && error.contains("1008"), "{error}");
    let error = server.error("--dialect topics --rooms 2 --members 3 --connections 4");
    assert!(error.contains("each is in one room here"), "{error}");
}

fn nats(more: &str) -> Server {
    Server::start("nats", "Listening for websocket clients on", |_, directory| {
        let file = directory.join("nats.conf");
        let config = "listen: \"127.0.0.1:-1\"\n\
             websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n";
        fs::write(&file, format!("{config}{more}")).unwrap();
        let mut command = Command::new(installed("servers/venv/bin/nats-server"));
        command.arg("-c").arg(file);
        command
    })
}

#[test]
fn nats_server() {
    // Pings so often that they happen.
    let server = nats("ping_interval: \"100ms\"\n");
    server.check("--dialect nats --rooms 5 --members 7", 700);
    // Several rooms on a connection, several publishers in a room, and those that only publish.
    server.check("--dialect nats --rooms 6 --members 5 --connections 9 --publishers 3", 500);
    server.check("--dialect nats --members 9 --publishers 2 --publishers-apart --size 30000", 900);
    let error = nats("authorization { token: \"secret\" }\n").error("--dialect nats --members 3");
    assert!(error.contains("Authorization Violation"), "{error}");
}

fn mosquitto(more: &str) -> Server {
    // The line comes when all listeners are open. One for WebSockets alone is not enough for 2.0.
    Server::start("mosquitto", " running", |port, directory| {
        let file = directory.join("mosquitto.conf");
        let config = format!(
            "listener 0 {}/socket\nlistener {port} 127.0.0.1\nprotocol websockets\n\
             persistence false\nlog_type all\nuser root\n{more}",
            directory.display()
        );
        fs::write(&file, config).unwrap();
        let found = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
        let found = found.into_iter().find(|path| std::path::Path::new(path).exists());
        let mut command = Command::new(found.unwrap_or("mosquitto"));
        command.arg("-c").arg(file);
        command
    })
}

#[test]
fn mqtt_of_mosquitto() {
    let server = mosquitto("allow_anonymous true\n");
    server.check("--dialect mqtt --rooms 5 --members 7", 700);
    server.check("--dialect mqtt --rooms 6 --members 5 --connections 9 --publishers 3", 500);
    server.check("--dialect mqtt --members 9 --publishers-apart --size 3000", 900);
    let error = mosquitto("allow_anonymous false\n").error("--dialect mqtt --members 3");
    assert!(error.contains("CONNACK 5"), "{error}");
}

#[test]
fn socket_io() {
    let server = node("socketio", "");
    // Without an acknowledgement, which takes a message to find out; and with one.
    server.check("--dialect socketio --rooms 5 --members 7", 700);
    server.check("--dialect socketio --rooms 5 --members 7 --join-ack", 700);
    server.check("--dialect socketio --rooms 6 --members 5 --connections 9 --publishers 3", 500);
    let except = node("socketio", "except");
    let line = "--dialect socketio --except-publisher --rooms 5 --members 7";
    except.check(line, 600);
    except.check(&format!("{line} --publishers 7 --join-ack"), 600);
    except.check(&format!("{line} --publishers-apart"), 700);
    // A server that does send them is found out.
    let line = format!("--url ws://127.0.0.1:{}/ {line} --seconds 0", server.port);
    let report = run(fanout, &format!("{line} --rate 20 --warm-up-seconds 0.2"));
    assert_eq!((&report["ok"], &report["faults_count"]), (&false.into(), &4.into()), "{report:#}");
}

#[test]
fn pusher_of_soketi() {
    let server = Server::start("soketi", "Websockets server is available at", |port, _| {
        let mut command = Command::new("node");
        command.arg(installed("soketi/node_modules/@soketi/soketi/bin/server.js")).arg("start");
        for (name, value) in [
            ("HOST", "127.0.0.1"),
            ("PORT", &port.to_string()),
            // Opened even so.
            ("METRICS_ENABLED", "0"),
            ("METRICS_SERVER_PORT", "0"),
            ("DEFAULT_APP_KEY", "the-key"),
            ("DEFAULT_APP_SECRET", "the-secret"),
            ("DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "true"),
        ] {
            command.env(format!("SOKETI_{name}"), value);
        }
        command
    });
    let pusher = "--dialect pusher --pusher-key the-key";
    let line = format!("{pusher} --pusher-secret the-secret");
    server.check(&format!("{line} --rooms 5 --members 7"), 600);
    server.check(&format!("{line} --rooms 6 --members 5 --connections 9 --publishers 3"), 400);
    server.check(&format!("{pusher} --pusher-public --members 5 --size 3000"), 400);
    let error = server.error(&format!("{pusher} --pusher-secret wrong --members 3"));
    assert!(error.contains("subscription_error 401"), "{error}");
    let error = server.error("--dialect pusher --pusher-key no-key --members 3");
    assert!(error.contains("pusher:error 4001"), "{error}");
    let error = server.error(&format!("{line} --members 3 --publishers-apart"));
    assert!(error.contains("have to be members"), "{error}");
}

/// A third of the members reads nothing for a second, in which it is sent 20 MB: more than the
/// kernel holds for it.
const SLOW: &str = "--members 3 --slow-percent 34 --slow-seconds 1 --rate 200 --size 100000 \
    --warm-up-seconds 0 --seconds 2";

/// Runs it against a server, with these members of one room, and tells what became of the slow one.
#[track_caller]
fn slow(server: &Server, line: &str) -> Value {
    let url = format!("--url ws://127.0.0.1:{}/ --pid {}", server.port, server.child.id());
    let report = run(fanout, &format!("{url} {line} {SLOW}"));
    // All is well with the others, and nothing of theirs is lost from the histograms.
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["delivered_count"], 400 * 2, "{report:#}");
    assert_eq!(report["ended_early_count"], 0, "{report:#}");
    let slow = &report["slow"];
    assert_eq!((&slow["connections"], &slow["members"]), (&1.into(), &1.into()), "{report:#}");
    assert_eq!(slow["others_while_slow_us"]["count"], 200 * 2, "{report:#}");
    assert_eq!(slow["others_otherwise_us"]["count"], 200 * 2, "{report:#}");
    slow.clone()
}

#[test]
fn slow_members_that_a_server_waits_for() {
    let server = node("topics", "");
    let slow = slow(&server, "--dialect topics");
    assert_eq!(slow["caught_up_members_count"], 1, "{slow:#}");
    assert_eq!(
        (&slow["delivered_count"], &slow["missing_count"]),
        (&400.into(), &0.into()),
        "{slow:#}"
    );
    // It holds what the kernel does not.
    let growth = slow["server_rss_growth_bytes_max"].as_u64().unwrap();
    assert!(growth > 1_000_000, "{slow:#}");
}

#[test]
fn slow_members_that_a_server_cuts() {
    let slow = slow(&nats("max_pending: 1MB\n"), "--dialect nats");
    assert_eq!(slow["cut_members_count"], 1, "{slow:#}");
    assert_eq!(slow["cut_by_reason"].as_object().unwrap().len(), 1, "{slow:#}");
    let count = |name: &str| slow[name].as_u64().unwrap();
    assert!(count("missing_count") > 0, "{slow:#}");
    assert_eq!(count("missing_count") + count("delivered_count"), 400, "{slow:#}");
}
