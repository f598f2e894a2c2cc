//! docs/openapi.yaml and what the gateway answers, held against each other: every route is in the file,
//! everything in the file is asked for, and every answer is one that the file describes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{
    ECHO_AND_ROOMS, HEAD, PATIENCE, Peer, Program, Scratch, Upstream, binary, switching, upgrade,
};

/// Answers that no request here brings about: a shard would have to hang.
const NOT_SHOWN: [(&str, &str, &str); 2] =
    [("get", "/api/v1/upstreams", "503"), ("get", "/api/v1/memory", "503")];

struct Document {
    whole: Value,
    /// What was answered, to be held against it.
    answers: Vec<Value>,
}

impl Document {
    fn path() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.yaml");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn load() -> Document {
        let lines = Program::python("openapi.py", &[&Document::path()]).success();
        let whole = serde_json::from_str(&lines[0]).expect("JSON");
        Document { whole, answers: Vec::new() }
    }

    /// Every method and path, and what is said of it.
    fn operations(&self) -> impl Iterator<Item = ((String, String), &Value)> {
        let paths = self.whole["paths"].as_object().expect("paths");
        paths.iter().flat_map(|(path, operations)| {
            let operations = operations.as_object().expect("operations");
            operations.iter().map(|(method, it)| ((method.clone(), path.clone()), it))
        })
    }

    /// Keeps an answer, to be checked with the others.
    fn note(&mut self, method: &str, path: &str, answer: &Answer) {
        let kind = answer.header("content-type").unwrap_or_default();
        let headers = answer.head.lines().filter_map(|line| line.split_once(':'));
        self.answers.push(json!({
            "method": method,
            "path": path,
            "status": answer.status,
            "kind": kind.split(';').next(),
            "headers": headers.map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>(),
            "body": answer.body,
        }));
    }

    /// Holds what was answered against the file: every answer is described as it is.
    #[track_caller]
    fn check(&self, scratch: &Scratch) {
        let answers = serde_json::to_string(&self.answers).expect("JSON");
        let answers = scratch.write("answers.json", &answers);
        let arguments = [&Document::path(), answers.to_str().expect("UTF-8")];
        let lines = Program::python("openapi.py", &arguments).success();
        assert_eq!(lines, [format!("{} answers", self.answers.len())], "{}", lines.join("\n"));
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

#[track_caller]
fn ask(mut stream: impl Read + Write, method: &str, target: &str, headers: &str) -> Answer {
    let method = method.to_uppercase();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: t\r\nPenstock-Order: yes\r\n{headers}Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it is read");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head[9..12].parse().expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// A gateway with clients of every kind, and some that have left.
struct Asked {
    program: Program,
    scratch: Scratch,
    admin: SocketAddr,
    socket: PathBuf,
    /// Connected, the first to an upstream.
    clients: Vec<Peer>,
    upstream: Upstream,
}

impl Asked {
    fn start() -> Asked {
        let scratch = Scratch::new("openapi");
        let socket = scratch.path().join("admin.sock");
        let token = scratch.write("admin.token", "a-token-of-some-length");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&token, mode).expect("it is ours");
        let upstream = Upstream::listen();
        let head = HEAD.replace("pin = false\n", "pin = false\ndrain_delay_ms = 600_000\n");
        let config = format!(
            "{head}{ECHO_AND_ROOMS}[[route]]\npath = \"/app\"\nbackend = \"app\"\n[backend.app]\n\
             kind = \"websocket\"\nurl = \"ws://{}\"\n[admin]\nsocket = \"{}\"\n\
             listen = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n\
             open = [\"health\", \"metrics\"]\n",
            upstream.address(),
            socket.display(),
            token.display()
        );
        let file = scratch.write("penstock.toml", &config);
        let mut program = Program::start("penstock", Command::new(binary()).arg("run").arg(file));
        let line = program.line_with("listening on ");
        let address = line.split(' ').nth(2).expect("an address").parse().expect("an address");
        let line = program.line_with("admin at http://");
        let admin = line["admin at http://".len()..].trim_end_matches('/').parse();
        let mut asked = Asked {
            program,
            scratch,
            admin: admin.expect("an address"),
            socket,
            clients: Vec::new(),
            upstream,
        };
        asked.fill(address);
        asked
    }

    fn fill(&mut self, address: SocketAddr) {
        let mut relayed = Peer::connect(address);
        relayed.write(upgrade("/app", ""));
        let (mut server, head) = self.upstream.accept();
        server.write(switching(&head, ""));
        relayed.head();
        let mut member = Peer::open(address, "/rooms?user=ann");
        member.send(0x81, br#"{"op":"join","room":"lobby"}"#);
        member.frame();
        member.frame();
        let mut echo = Peer::open(address, "/echo");
        echo.send(0x81, b"hello");
        echo.frame();
        // One says goodbye, one is refused by us, one by the upstream.
        let mut leaving = Peer::open(address, "/echo");
        leaving.send(0x88, &1000_u16.to_be_bytes());
        leaving.close_frame();
        drop(leaving);
        self.program.error_line_containing("cause=client_close");
        let mut lost = Peer::connect(address);
        lost.write("GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        lost.head();
        drop(lost);
        self.program.error_line_containing("status=404");
        let mut refused = Peer::connect(address);
        refused.write(upgrade("/app", ""));
        let (mut refusing, _) = self.upstream.accept();
        refusing
            .write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        refused.head();
        drop((refused, refusing));
        let line = self.program.error_line_containing("status=401");
        assert!(line.contains(&format!("upstream=ws://{}", self.upstream.address())), "{line}");
        self.clients = vec![relayed, server, member, echo];
    }

    #[track_caller]
    fn ask(&self, method: &str, target: &str) -> Answer {
        let stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        ask(stream, method, target, "")
    }

    #[track_caller]
    fn json(&self, target: &str) -> Value {
        let answer = self.ask("get", target);
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }
}

#[test]
fn the_file_has_every_route_and_no_other() {
    let document = Document::load();
    let described: BTreeSet<_> = document.operations().map(|(which, _)| which).collect();
    let routes: BTreeSet<_> = gateway::admin::routes()
        .map(|(method, path)| (method.as_str().to_lowercase(), path.to_owned()))
        .collect();
    assert_eq!(described, routes);
}

#[test]
fn every_answer_is_as_the_file_has_it() {
    let mut document = Document::load();
    let asked = Asked::start();
    let url = format!("ws://{}", asked.upstream.address());
    let found = asked.json(&format!("/api/v1/connections?upstream={url}"));
    let id = found["connections"][0]["id"].as_str().expect("an id").to_owned();
    let mut seen = BTreeSet::new();
    let mut check = |method: &str, path: &str, target: &str, status: u16| {
        let answer = asked.ask(method, target);
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.body);
        document.note(method, path, &answer);
        seen.insert((method.to_owned(), path.to_owned(), status.to_string()));
    };

    // What takes no parameters, as it is. Orders come last.
    for (method, path) in [
        ("get", "health/live"),
        ("get", "health/ready"),
        ("get", "status"),
        ("get", "shards"),
        ("get", "routes"),
        ("get", "upstreams"),
        ("get", "histograms"),
        ("get", "history"),
        ("get", "closes"),
        ("get", "memory"),
        ("get", "ws/metrics"),
        ("get", "connections"),
        ("get", "log"),
    ] {
        let path = format!("/api/v1/{path}");
        check(method, &path, &path, 200);
    }
    for path in ["/", "/dashboard", "/metrics"] {
        check("get", path, path, 200);
    }
    let list = "/api/v1/connections";
    check("get", list, "/api/v1/connections?limit=1", 200);
    for query in ["limit=0", "nonsense=1", "age_min_ms=x", "route=/nowhere", "all=true", "id=x"] {
        check("get", list, &format!("{list}?{query}"), 400);
    }
    let one = "/api/v1/connections/{id}";
    check("get", one, &format!("/api/v1/connections/{id}"), 200);
    for (id, status) in
        [("0-4000-1", 404), ("99-0-1", 404), ("0-0-99", 404), ("1", 400), ("a-b-c", 400)]
    {
        check("get", one, &format!("/api/v1/connections/{id}"), status);
    }
    let close = "/api/v1/connections/close";
    check("post", close, &format!("{close}?user=nobody"), 200);
    for query in ["", "code=1", "nonsense=1", "all=true&reason=x&code=5000", "all=true&after=0-1"] {
        check("post", close, &format!("{close}?{query}"), 400);
    }
    let history = "/api/v1/history";
    check("get", history, "/api/v1/history?since_ms=1800000000000", 200);
    check("get", history, "/api/v1/history?since_ms=x", 400);
    let log = "/api/v1/log";
    check("put", log, "/api/v1/log?level=debug", 200);
    check("put", log, "/api/v1/log?level=info", 200);
    for query in ["", "level=loud", "level=info&nonsense=1"] {
        check("put", log, &format!("{log}?{query}"), 400);
    }
    let reload = "/api/v1/reload";
    check("post", reload, reload, 200);
    let file = asked.scratch.path().join("penstock.toml");
    let good = std::fs::read_to_string(&file).expect("it is there");
    asked.scratch.write(
        "penstock.toml",
        &good.replace("drain_delay_ms = 600_000", "drain_delay_ms = 500_000"),
    );
    check("post", reload, reload, 200);
    let quiet = good.replace("[admin]\n", "[admin]\naliases = false\n");
    asked.scratch.write("penstock.toml", &quiet);
    check("post", reload, reload, 200);
    check("get", "/api/v1/ws/metrics", "/api/v1/ws/metrics", 404);
    asked.scratch.write("penstock.toml", "[server]\nshards = 0\n");
    check("post", reload, reload, 409);
    check("post", close, &format!("{close}?all=true"), 200);
    check("post", "/api/v1/drain", "/api/v1/drain", 202);
    // Readiness answers no once the order has its answer.
    check("get", "/api/v1/health/ready", "/api/v1/health/ready", 503);
    check("get", "/api/v1/status", "/api/v1/status", 200);

    // Over TCP without the token: everything but what is open.
    let mut refused = Vec::new();
    for ((method, path), operation) in document.operations() {
        let target = path.replace("{id}", "0-0-1");
        let stream = TcpStream::connect(asked.admin).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let answer = ask(stream, &method, &target, "");
        let is_open = operation["security"][0].as_object().is_some_and(serde_json::Map::is_empty);
        assert_eq!(answer.status != 401, is_open, "{method} {path}: {}", answer.body);
        seen.insert((method.clone(), path.clone(), "401".to_owned()));
        refused.push((method, path, answer));
    }
    for (method, path, answer) in refused {
        document.note(&method, &path, &answer);
    }
    document.check(&asked.scratch);

    let mut missed = BTreeSet::new();
    for ((method, path), operation) in document.operations() {
        for (status, _) in operation["responses"].as_object().expect("responses") {
            let which = (method.clone(), path.clone(), status.clone());
            let is_excused = NOT_SHOWN.contains(&(&method, &path, status));
            if !is_excused && !seen.contains(&which) {
                missed.insert(which);
            }
        }
    }
    assert_eq!(missed, BTreeSet::new(), "answers that were described and never seen");
}

#[test]
fn parameters_are_those_of_the_file() {
    let document = Document::load();
    let asked = Asked::start();
    for ((method, path), operation) in document.operations() {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let parameters: BTreeMap<&str, &Value> = parameters
            .iter()
            .filter(|it| it["in"] == "query")
            .map(|it| (it["name"].as_str().expect("a name"), &it["example"]))
            .collect();
        if parameters.is_empty() {
            continue;
        }
        // Who is asked for what it does not know says what it knows.
        let answer = asked.ask(&method, &format!("{path}?nonsense=1"));
        let (_, known) = answer.body.split_once("expected ").expect("what it knows");
        let mut known: BTreeSet<&str> = known.split('`').skip(1).step_by(2).collect();
        // Lists and closing have one reader; each says of what is the other's that it is.
        let others: &[&str] = match (method.as_str(), path.as_str()) {
            ("get", "/api/v1/connections") => &["all", "code", "reason"],
            ("post", "/api/v1/connections/close") => &["after"],
            _ => &[],
        };
        for other in others {
            assert!(known.remove(other), "{other}");
        }
        let described: BTreeSet<&str> = parameters.keys().copied().collect();
        assert_eq!(described, known, "{method} {path}");
        // The examples can be read, whether or not they name anything here.
        for (name, example) in parameters {
            let value = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
            let value = value.replace(' ', "%20");
            let answer = asked.ask(&method, &format!("{path}?{name}={value}"));
            assert!(!answer.body.contains("deserialize"), "{name}: {}", answer.body);
        }
    }
}

#[test]
fn what_the_answers_say() {
    let asked = Asked::start();
    let url = format!("ws://{}", asked.upstream.address());

    let shards = asked.json("/api/v1/shards");
    let shards = shards["shards"].as_array().expect("a list");
    let sum = |key: &str| shards.iter().map(|it| it[key].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((shards.len(), sum("clients"), sum("upstreams"), sum("accepted")), (2, 3, 1, 6));
    assert!(shards.iter().any(|it| it["turn"]["max_us"].as_f64() > Some(0.0)), "{shards:?}");

    let routes = asked.json("/api/v1/routes");
    let routes: BTreeMap<&str, &Value> = routes["routes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| (it["route"].as_str().expect("a name"), it))
        .collect();
    assert_eq!(routes.keys().copied().collect::<Vec<_>>(), ["*/app", "*/echo", "*/rooms"]);
    assert_eq!(
        (&routes["*/app"]["clients"], &routes["*/app"]["upstream_connections"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        (&routes["*/rooms"]["clients"], &routes["*/rooms"]["backend"]),
        (&json!(1), &json!("rooms"))
    );

    let upstreams = asked.json("/api/v1/upstreams");
    assert_eq!(
        upstreams["upstreams"],
        json!([{
            "backend": "app", "url": url, "address": asked.upstream.address().to_string(),
            "weight": 1, "connections": 1, "state": "up", "shards_up": 2, "shards": 2,
        }])
    );

    let closes = asked.json("/api/v1/closes");
    let closes = closes["closes"].as_array().expect("a list");
    let told: Vec<_> = closes
        .iter()
        .map(|it| {
            (it["cause"].clone(), it["status"].clone(), it["route"].clone(), it["upstream"].clone())
        })
        .collect();
    assert_eq!(
        told,
        [
            (json!("handshake_rejected"), json!(401), json!("*/app"), json!(url)),
            (json!("handshake_rejected"), json!(404), Value::Null, Value::Null),
            (json!("client_close"), json!(101), json!("*/echo"), Value::Null),
        ]
    );
    assert_eq!(closes[2]["close_code"], 1000);
    let age = |it: &Value| it["unix_ms"].as_u64().expect("a time");
    assert!(closes.windows(2).all(|pair| age(&pair[0]) >= age(&pair[1])), "{closes:?}");

    // The whole record of one client, with its other side.
    let found = asked.json(&format!("/api/v1/connections?upstream={url}"));
    let id = found["connections"][0]["id"].as_str().expect("an id");
    assert!(found["connections"][0]["upstream_side"].is_null(), "only where it is asked for alone");
    let one = asked.json(&format!("/api/v1/connections/{id}"));
    assert_eq!((&one["id"], &one["upstream_side"]["side"]), (&json!(id), &json!("upstream")));
    assert_eq!(one["upstream_side"]["peer"], asked.upstream.address().to_string());
    assert_eq!(one["upstream_side"]["slot"], one["other"]);
}

#[test]
fn upstreams_that_get_no_clients() {
    let mut asked = Asked::start();
    let state = |asked: &Asked| {
        let upstreams = asked.json("/api/v1/upstreams");
        let it = &upstreams["upstreams"][0];
        (
            it["state"].as_str().expect("a word").to_owned(),
            it["shards_up"].as_u64(),
            it["connections"].as_u64(),
        )
    };
    assert_eq!(state(&asked), ("up".to_owned(), Some(2), Some(1)));
    let file = asked.scratch.path().join("penstock.toml");
    let good = std::fs::read_to_string(&file).expect("it is there");
    let line = good.lines().find(|line| line.starts_with("url = ")).expect("its url").to_owned();
    for mode in ["draining", "disabled"] {
        let with = format!("[[backend.app.upstream]]\n{line}\nmode = \"{mode}\"");
        asked.scratch.write("penstock.toml", &good.replace(&line, &with));
        assert_eq!(asked.ask("post", "/api/v1/reload").status, 200);
        assert_eq!(state(&asked), (mode.to_owned(), Some(0), Some(1)));
    }
    // Back, with a slow start that takes longer than this test.
    let with = format!("slow_start_ms = 600_000\n[[backend.app.upstream]]\n{line}");
    asked.scratch.write("penstock.toml", &good.replace(&line, &with));
    assert_eq!(asked.ask("post", "/api/v1/reload").status, 200);
    assert_eq!(state(&asked), ("slow_start".to_owned(), Some(2), Some(1)));
    // A route that is gone stays until nobody is on it.
    let route = "[[route]]\npath = \"/app\"\nbackend = \"app\"\n";
    asked.scratch.write("penstock.toml", &good.replace(route, ""));
    assert_eq!(asked.ask("post", "/api/v1/reload").status, 200);
    let retired = |asked: &Asked| {
        let routes = asked.json("/api/v1/routes");
        let routes = routes["routes"].as_array().expect("a list").clone();
        routes.into_iter().filter(|it| it["retired"] == true).collect::<Vec<_>>()
    };
    let gone = retired(&asked);
    assert!(gone.len() == 1 && gone[0]["route"] == "*/app" && gone[0]["clients"] == 1, "{gone:?}");
    asked.clients.clear();
    asked.program.error_line_containing("state=relay");
    assert_eq!(retired(&asked), Vec::<Value>::new());
}
