//! What Prometheus makes of `/metrics`: a real one asks a gateway that has had some of everything, and is
//! asked everything that the dashboard and the rules of docs/monitoring ask.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    HEAD, PATIENCE, Peer, Program, Scratch, Upstream, binary, free_address, switching,
};

const TOKEN: &str = "a-token-of-some-length";

/// Messages that each client sends and has answered.
const MESSAGES: usize = 10;

/// How long the upstream of `/slow` takes to answer.
const STALL: Duration = Duration::from_millis(300);

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0";

/// A gateway, the upstream behind its routes `/quick` and `/slow`, and clients that stay.
struct Scene {
    program: Program,
    address: SocketAddr,
    admin: SocketAddr,
    scratch: Scratch,
    clients: Vec<Peer>,
    upstreams: Vec<JoinHandle<()>>,
}

impl Scene {
    #[track_caller]
    fn start(options: &str) -> Scene {
        let scratch = Scratch::new("metrics");
        let token = scratch.write("admin.token", TOKEN);
        std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).expect("it is ours");
        let (quick, slow) = (Upstream::listen(), Upstream::listen());
        let directory = scratch.path().display();
        let config = format!(
            "{HEAD}\
             [[route]]\npath = \"/echo\"\nbackend = \"echo\"\n\
             [[route]]\npath = \"/rooms\"\nbackend = \"rooms\"\n\
             [[route]]\npath = \"/quick\"\nbackend = \"quick\"\n\
             [[route]]\npath = \"/slow\"\nbackend = \"slow\"\n\
             [backend.echo]\nkind = \"echo\"\n\
             [backend.rooms]\nkind = \"local\"\nclient_names = \"trusted\"\n\
             [backend.quick]\nkind = \"websocket\"\nurl = \"ws://{}\"\n\
             [backend.slow]\nkind = \"websocket\"\nurl = \"ws://{}\"\n\
             [admin]\nsocket = \"{directory}/admin.sock\"\nlisten = \"127.0.0.1:0\"\n\
             token_file = \"{directory}/admin.token\"\nopen = [\"health\", \"metrics\"]\n{options}",
            quick.address(),
            slow.address(),
        );
        let file = scratch.write("penstock.toml", &config);
        let mut program = Program::start("penstock", Command::new(binary()).arg("run").arg(&file));
        let line = program.line_with("listening on ");
        let address = line.split(' ').nth(2).and_then(|it| it.parse().ok()).expect("an address");
        let line = program.line_with("admin at http://");
        let admin = line["admin at http://".len()..].trim_end_matches('/').parse();
        let upstreams = vec![answer(quick, Duration::ZERO), answer(slow, STALL)];
        let admin = admin.expect("an address");
        Scene { program, address, admin, scratch, clients: Vec::new(), upstreams }
    }

    /// Clients at each route, each with messages there and back, one that misbehaves, and one that leaves.
    #[track_caller]
    fn play(&mut self) {
        for path in ["/echo", "/quick", "/slow"] {
            let mut client = Peer::open(self.address, path);
            for number in 0..MESSAGES {
                let text = format!("message {number}");
                client.send(0x81, text.as_bytes());
                assert_eq!(client.frame().payload, text.as_bytes());
            }
            self.clients.push(client);
        }
        let mut member = Peer::open(self.address, "/rooms?user=ada");
        member.send(0x81, br#"{"op":"join","room":"r"}"#);
        member.frame();
        member.send(0x81, br#"{"op":"publish","room":"r","data":"hello"}"#);
        member.frame();
        self.clients.push(member);
        let mut other = Peer::open(self.address, "/echo");
        other.send(0x88, &[0x03, 0xE8]);
        other.end_of_stream();
        let mut wrong = Peer::open(self.address, "/echo");
        wrong.send(0xF1, b"?");
        wrong.end_of_stream();
    }

    #[track_caller]
    fn get(&self, path: &str, accept: &str) -> (String, String) {
        get(self.admin, path, accept)
    }

    /// The text form, once all that was played is counted: a message is when its socket has taken it, and a
    /// client when its slot is free, which is after whoever reads has seen it.
    #[track_caller]
    fn settled(&self) -> String {
        let start = Instant::now();
        loop {
            let (head, text) = self.get("/metrics", "*/*");
            assert!(head.starts_with("HTTP/1.") && head.contains(" 200 "), "{head}");
            assert!(head.contains("text/plain; version=0.0.4"), "{head}");
            let labels = |route| format!("{{route=\"{route}\",direction=\"to_client\"}}");
            let counted = ["*/echo", "*/quick", "*/slow"].iter().all(|route| {
                let name = format!("penstock_forward_seconds_count{}", labels(route));
                value(&text, &name) >= MESSAGES as f64
            });
            if counted && value(&text, "websocket_connections") <= 4.0 {
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn upstreams_end(self) {
        let Scene { clients, upstreams, program, .. } = self;
        drop(clients);
        drop(program);
        for upstream in upstreams {
            upstream.join().expect("no panic");
        }
    }
}

trait EndOfStream {
    fn end_of_stream(&mut self);
}

impl EndOfStream for Peer {
    /// Whatever comes, until nothing does.
    fn end_of_stream(&mut self) {
        let _ = self.rest();
    }
}

/// Accepts one connection and sends everything back, `stall` after it came.
fn answer(upstream: Upstream, stall: Duration) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut peer, request) = upstream.accept();
        peer.write(switching(&request, ""));
        for _ in 0..MESSAGES {
            let frame = peer.frame();
            std::thread::sleep(stall);
            let length = u8::try_from(frame.payload.len()).expect("a short message");
            peer.write([&[frame.first, length], frame.payload.as_slice()].concat());
        }
        let _ = peer.rest();
    })
}

/// Head and body of an answer. HTTP/1.0, so that the body is in one piece.
#[track_caller]
fn get(address: SocketAddr, path: &str, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let request = format!("GET {path} HTTP/1.0\r\nHost: t\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is read");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an empty line");
    (head.to_owned(), body.to_owned())
}

/// The value of a series of the text form.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("a number")
}

#[test]
fn what_has_happened_is_counted() {
    let mut scene = Scene::start("");
    scene.play();
    let text = scene.settled();
    let messages = MESSAGES as f64;
    let closed = |cause: &str, initiator: &str| {
        let labels = format!("cause=\"{cause}\",initiator=\"{initiator}\"");
        value(&text, &format!("penstock_connections_closed_total{{{labels}}}"))
    };
    assert_eq!((closed("client_close", "client"), closed("protocol_error", "gateway")), (1.0, 1.0));
    assert_eq!(value(&text, "penstock_upgraded_total"), 6.0);
    assert_eq!(value(&text, "websocket_connections"), 4.0);
    assert_eq!(value(&text, "penstock_rooms"), 1.0);
    for route in ["*/echo", "*/quick", "*/slow"] {
        let labels = format!("route=\"{route}\",direction=\"to_client\"");
        let count = format!("penstock_forward_seconds_count{{{labels}}}");
        assert_eq!(value(&text, &count), messages, "{route}");
        assert_eq!(value(&text, &format!("penstock_messages_total{{{labels}}}")), messages);
    }
    // A stalled upstream shows where it is waited for, and on its own route.
    let replies = |route: &str, le: &str| {
        value(&text, &format!("penstock_reply_seconds_bucket{{route=\"{route}\",le=\"{le}\"}}"))
    };
    assert_eq!((replies("*/slow", "0.25"), replies("*/slow", "+Inf")), (0.0, messages));
    let quick = replies("*/quick", "0.25");
    assert!(quick > messages / 2.0, "{quick}");

    let (head, open) = scene.get("/metrics", OPEN_METRICS);
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(open.ends_with("\n# EOF\n"));
    let (_, summary) = scene.get("/api/v1/ws/metrics", "*/*");
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["connections"], 4);
    assert_eq!((&summary["totalConnections"], &summary["serverCount"]), (&6.into(), &1.into()));
    assert!(summary["serverId"].is_string() && summary["uptime"].is_u64(), "{summary}");
    scene.upstreams_end();
}

#[test]
fn aliases_can_be_done_without() {
    let scene = Scene::start("aliases = false\n");
    let (_, text) = scene.get("/metrics", "*/*");
    assert!(text.contains("\npenstock_connections{") && !text.contains("websocket_connections"));
    let (head, _) = scene.get("/api/v1/ws/metrics", "*/*");
    assert!(head.contains(" 404 "), "{head}");
}

/// What `promtool` says of it, when it is content.
#[track_caller]
fn promtool(arguments: &[&str], directory: &Path, input: Option<&str>) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool; run scripts/test-tools");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.unwrap_or_default().as_bytes()).expect("it is read");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{arguments:?}: {said}");
    if input.is_some() {
        assert_eq!(said, "", "{arguments:?}");
    }
}

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring")
}

#[test]
fn promtool_has_nothing_to_say() {
    let mut scene = Scene::start("");
    scene.play();
    let text = scene.settled();
    promtool(&["check", "metrics"], &monitoring(), Some(&text));
    promtool(&["check", "rules", "alerts.yml"], &monitoring(), None);
    promtool(&["test", "rules", "alerts_test.yml"], &monitoring(), None);
    // The example, beside what it names.
    let config = std::fs::read_to_string(monitoring().join("prometheus.yml")).expect("a file");
    scene.scratch.write("prometheus.yml", &config);
    scene.scratch.write("penstock.token", TOKEN);
    std::fs::copy(monitoring().join("alerts.yml"), scene.scratch.path().join("alerts.yml"))
        .expect("a file");
    promtool(&["check", "config", "prometheus.yml"], scene.scratch.path(), None);
    scene.upstreams_end();
}

/// A Prometheus that asks a gateway every second.
struct Prometheus {
    _program: Program,
    address: SocketAddr,
}

impl Prometheus {
    #[track_caller]
    fn start(scene: &Scene, features: &str) -> Prometheus {
        let address = free_address([127, 0, 0, 1]);
        let rules = std::fs::canonicalize(monitoring().join("alerts.yml")).expect("a file");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs:\n  - job_name: penstock\n    static_configs:\n      \
             - targets: ['{}']\n",
            rules.display(),
            scene.admin
        );
        let file = scene.scratch.write("prometheus.yml", &config);
        let data = scene.scratch.path().join(format!("data{features}"));
        let mut program = Program::daemon("prometheus", |command| {
            command
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", data.display()))
                .arg(format!("--web.listen-address={address}"))
                .arg(format!("--enable-feature={features}"))
        });
        program.line_containing("Server is ready to receive web requests");
        let prometheus = Prometheus { _program: program, address };
        // Rates need two samples.
        prometheus.wait_for("count_over_time(up{job=\"penstock\"}[5m]) > 2");
        prometheus
    }

    fn ask(&self, path: &str) -> Value {
        let (head, body) = get(self.address, path, "*/*");
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {head}\n{body}"))
    }

    /// The samples that an expression comes to.
    #[track_caller]
    fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.ask(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().expect("a vector").clone()
    }

    #[track_caller]
    fn number(&self, expression: &str) -> f64 {
        let result = self.query(expression);
        let [sample] = &result[..] else { panic!("{expression}: {result:?}") };
        sample["value"][1].as_str().expect("a number").parse().expect("a number")
    }

    /// Asks until there is an answer: it asks the gateway when it likes.
    #[track_caller]
    fn wait_for(&self, expression: &str) {
        let start = Instant::now();
        while self.query(expression).is_empty() {
            assert!(start.elapsed() < PATIENCE, "{expression}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The expressions of the dashboard, with its variables as Grafana would put them.
    fn dashboard(&self) {
        let text = std::fs::read(monitoring().join("grafana-dashboard.json")).expect("a file");
        let dashboard: Value = serde_json::from_slice(&text).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let mut count = 0;
        for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression
                .replace("$__rate_interval", "1m")
                .replace("$__interval", "1m")
                .replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            assert!(!self.query(&expression).is_empty(), "no data: {expression}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    /// Every rule has been looked at and could be.
    fn rules(&self) {
        let start = Instant::now();
        loop {
            let rules = self.ask("/api/v1/rules");
            let rules = rules["data"]["groups"][0]["rules"].as_array().expect("rules").clone();
            assert!(rules.len() > 10);
            if rules.iter().all(|rule| rule["health"] == "ok") {
                break;
            }
            let bad = rules.iter().find(|rule| rule["health"] == "err");
            assert!(bad.is_none() && start.elapsed() < PATIENCE, "{bad:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Every metric of the documentation is there, and every series that is there is documented.
    fn documented(&self) {
        let text = std::fs::read_to_string(monitoring().join("README.md")).expect("a file");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let documented: Vec<(&str, bool)> =
            rows.map(|(name, rest)| (name, rest.starts_with(" | histogram"))).collect();
        assert!(documented.len() > 50, "{}", documented.len());
        let all = self.ask("/api/v1/label/__name__/values?match[]={job=\"penstock\"}");
        let there: Vec<&str> =
            all["data"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
        for (name, is_histogram) in &documented {
            let classic = format!("{name}_bucket");
            let found = there.iter().any(|it| it == name || (*is_histogram && *it == classic));
            assert!(found, "{name} is documented and not there");
        }
        for name in there {
            // Prometheus' own of each target, and of its rules.
            if ["up", "ALERTS", "ALERTS_FOR_STATE"].contains(&name) || name.starts_with("scrape_") {
                continue;
            }
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is = |(known, _): &(&str, bool)| *known == name || Some(*known) == family;
            assert!(documented.iter().any(is), "{name} is there and not documented");
        }
    }
}

#[test]
fn prometheus_reads_native_histograms() {
    let mut scene = Scene::start("");
    scene.play();
    scene.settled();
    let prometheus = Prometheus::start(&scene, "native-histograms");
    let messages = MESSAGES as f64;
    assert_eq!(
        prometheus.number("histogram_count(penstock_reply_seconds{route=\"*/slow\"})"),
        messages
    );
    let quantile = |route: &str| {
        // Of what was counted since the start: there is nothing else to take a rate of.
        prometheus.number(&format!(
            "histogram_quantile(0.5, penstock_reply_seconds{{route=\"{route}\"}})"
        ))
    };
    let (slow, quick) = (quantile("*/slow"), quantile("*/quick"));
    // A bucket is 9.05 % wide, and what is in it was rounded by 1.6 % before.
    assert!(slow > STALL.as_secs_f64() / 1.107 && quick < slow, "{slow} {quick}");
    let sum = prometheus.number("histogram_sum(penstock_reply_seconds{route=\"*/slow\"})");
    assert!(sum >= messages * STALL.as_secs_f64(), "{sum}");
    assert_eq!(
        prometheus.query("penstock_reply_seconds_bucket").len(),
        0,
        "native, so not classic"
    );
    assert_eq!(prometheus.number("websocket_connections"), 4.0);
    prometheus.dashboard();
    prometheus.rules();
    prometheus.documented();
    scene.upstreams_end();
}

#[test]
fn prometheus_reads_classic_histograms() {
    let mut scene = Scene::start("");
    scene.play();
    scene.settled();
    // It asks for OpenMetrics then.
    let prometheus = Prometheus::start(&scene, "");
    let median = "histogram_quantile(0.5, penstock_reply_seconds_bucket{route=\"*/slow\"})";
    let median = prometheus.number(median);
    assert!(median > 0.25, "{median}");
    prometheus.dashboard();
    prometheus.rules();
    prometheus.documented();
    scene.upstreams_end();
}
