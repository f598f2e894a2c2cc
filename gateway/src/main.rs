//! `penstock`: the command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use axum::http::Method;
use clap::{Args, Parser, Subcommand};
use gateway::admin::{self, client};
use gateway::config::succession::{changes, succeed};
use gateway::config::{BackendKind, Config, Faults, Overrides};
use gateway::control::Source;
use gateway::limits::{SHARDS_MAX, human_bytes, memory_bound, memory_bound_total};
use serde_json::Value;

/// Shards allocate and free on their own threads all the time; mimalloc keeps them apart.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const AFTER_HELP: &str = "\
Examples:
  penstock                                      rooms and a page to try them, on 127.0.0.1:8080
  penstock run --listen 0.0.0.0:9000            the same for the whole network
  penstock run /etc/penstock/penstock.toml      what the file says
  penstock reload                               read the file again; no connection is closed
  penstock check /etc/penstock/penstock.toml    every fault in the file, or what it defines
  penstock check new.toml --against old.toml    what changes, and whether a reload can do it

Exit codes:
  0  stopped as asked; for check: the file is in order, and a reload can take it
  1  could not start, or could not go on; for check: a file has faults
  2  the command line was not understood
  3  for check --against: the file is in order, but needs a restart
";

/// The exit code of `check --against` for a file that a reload cannot take.
const NEEDS_RESTART: u8 = 3;

/// A WebSocket gateway on io_uring.
#[derive(Parser)]
#[command(name = "penstock", version, about, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway until SIGTERM or SIGINT (this is what `penstock` alone does)
    #[command(after_help = AFTER_HELP)]
    Run(Run),
    /// Ask a running gateway to read its file again; connections stay
    Reload(Ask),
    /// Ask a running gateway to send its clients away in order, and to stop
    Drain(Ask),
    /// What a running gateway is up to, as JSON
    Status(Ask),
    /// List clients of a running gateway
    Conns(Conns),
    /// Close clients of a running gateway
    Close(CloseClients),
    /// Report every fault in a configuration file, or what it defines
    #[command(after_help = AFTER_HELP)]
    Check {
        /// The configuration file
        file: PathBuf,
        /// Instead: how it differs from this one, and whether a gateway that runs with this one can
        /// reload it (exit code 0) or has to be restarted (3)
        #[arg(long, value_name = "OLD_FILE")]
        against: Option<PathBuf>,
    },
}

#[derive(Args, Default)]
struct Run {
    /// The configuration file; without it: rooms with a demo page on 127.0.0.1:8080
    file: Option<PathBuf>,
    /// Threads of the data plane, instead of the file's `server.shards`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SHARDS_MAX)))]
    shards: Option<u16>,
    /// Listen here instead of on the file's listeners; may be given several times
    #[arg(long, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
}

#[derive(Args)]
struct Ask {
    /// The gateway's admin socket (admin.socket in its file)
    #[arg(long, value_name = "PATH", default_value_os_t = admin::default_socket())]
    socket: PathBuf,
}

/// Which clients: each option narrows them.
#[derive(Args)]
struct Select {
    #[command(flatten)]
    ask: Ask,
    /// This one: SHARD-SLOT-GENERATION, as `penstock conns` shows it
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// On this route: its host and path as `penstock check` shows them, or its path
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// On routes to this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// At this upstream: its url as in the file
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// From this address or range
    #[arg(long, value_name = "CIDR")]
    address: Option<String>,
    /// With this name in the embedded rooms
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// In this room
    #[arg(long, value_name = "NAME")]
    room: Option<String>,
    /// In this state: head, echo, rooms, connecting, forwarding, relay
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Open for so many milliseconds at least
    #[arg(long, value_name = "N")]
    age_min_ms: Option<u64>,
    /// Silent for so many milliseconds at least
    #[arg(long, value_name = "N")]
    idle_min_ms: Option<u64>,
    /// With so many bytes that wait to be sent at least
    #[arg(long, value_name = "N")]
    outbox_bytes_min: Option<u64>,
    /// So many at most
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Args)]
struct Conns {
    #[command(flatten)]
    select: Select,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "NEXT")]
    after: Option<String>,
    /// As JSON, with all there is
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct CloseClients {
    #[command(flatten)]
    select: Select,
    /// Everybody
    #[arg(long)]
    all: bool,
    /// The code of the Close frame
    #[arg(long, value_name = "CODE", default_value_t = 1012)]
    code: u16,
    /// Its reason; with 1012 and without one, clients are told when to come back
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        None => run(Run::default()),
        Some(Command::Run(options)) => run(options),
        Some(Command::Reload(ask)) => ask.ask(Method::POST, "/api/v1/reload"),
        Some(Command::Drain(ask)) => ask.ask(Method::POST, "/api/v1/drain"),
        Some(Command::Status(ask)) => ask.ask(Method::GET, "/api/v1/status"),
        Some(Command::Conns(conns)) => conns.list(),
        Some(Command::Close(close)) => close.close(),
        Some(Command::Check { file, against: None }) => check(&file),
        Some(Command::Check { file, against: Some(old) }) => compare(&file, &old),
    }
}

fn run(options: Run) -> ExitCode {
    let Run { file, shards, listen } = options;
    let overrides = Overrides { shards, listen };
    let config = match &file {
        Some(file) => Config::load_with(file, &overrides),
        None => Config::embedded_with(&overrides),
    };
    let config = match config {
        Ok(config) => config,
        Err(faults) => return refuse(&faults),
    };
    if let Err(error) = gateway::config::raise_descriptor_limit() {
        eprintln!(
            "penstock: the limit on open files could not be raised: {error}; a sandbox may forbid \
             setrlimit; allow it, or start with LimitNOFILE= (ulimit -n) at its hard limit"
        );
        return ExitCode::FAILURE;
    }
    let source = file.map(|file| Source { file, overrides });
    gateway::control::run(config, source)
}

impl Select {
    /// As a query.
    fn query(&self) -> form_urlencoded::Serializer<'static, String> {
        let Select { ask: _, id, route, backend, upstream, address, user, room, state, .. } = self;
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let numbers = [
            ("age_min_ms", number(self.age_min_ms)),
            ("idle_min_ms", number(self.idle_min_ms)),
            ("outbox_bytes_min", number(self.outbox_bytes_min)),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let texts = [
            ("id", id),
            ("route", route),
            ("backend", backend),
            ("upstream", upstream),
            ("address", address),
            ("user", user),
            ("room", room),
            ("state", state),
        ];
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (key, value) in texts.into_iter().filter_map(|(key, it)| Some((key, it.as_ref()?))) {
            query.append_pair(key, value);
        }
        for (key, value) in numbers.iter().filter_map(|(key, it)| Some((key, it.as_ref()?))) {
            query.append_pair(key, value);
        }
        query
    }
}

impl Conns {
    fn list(&self) -> ExitCode {
        let mut query = self.select.query();
        if let Some(after) = &self.after {
            query.append_pair("after", after);
        }
        let path = format!("/api/v1/connections?{}", query.finish());
        if self.json {
            return self.select.ask.ask(Method::GET, &path);
        }
        let answer = match client::ask(&self.select.ask.socket, Method::GET, &path) {
            Ok((status, body)) if status.is_success() => body,
            Ok(_) => return self.select.ask.ask(Method::GET, &path),
            Err(why) => {
                eprintln!("penstock: {why}");
                return ExitCode::FAILURE;
            }
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        println!(
            "{:<14} {:<10} {:<24} {:<16} {:<12} {:>9} {:>9} {:>8} {:>8} {:>9} UPSTREAM",
            "ID", "STATE", "CLIENT", "USER", "BACKEND", "AGE_MS", "IDLE_MS", "IN", "OUT", "OUTBOX"
        );
        for it in answer["connections"].as_array().into_iter().flatten() {
            let traffic = &it["traffic"];
            println!(
                "{:<14} {:<10} {:<24} {:<16} {:<12} {:>9} {:>9} {:>8} {:>8} {:>9} {}",
                text(&it["id"]),
                text(&it["state"]),
                text(&it["client"]),
                text(&it["rooms"]["user"]),
                text(&it["backend"]),
                text(&it["age_ms"]),
                text(&it["idle_ms"]),
                text(&traffic["received_messages"]),
                text(&traffic["sent_messages"]),
                text(&it["outbox_bytes"]),
                text(&it["upstream"]),
            );
        }
        if let Some(next) = answer["next"].as_str() {
            println!("there are more: --after {next}");
        }
        ExitCode::SUCCESS
    }
}

impl CloseClients {
    fn close(&self) -> ExitCode {
        let mut query = self.select.query();
        query.append_pair("all", if self.all { "true" } else { "false" });
        query.append_pair("code", &self.code.to_string());
        query.append_pair("reason", &self.reason);
        let path = format!("/api/v1/connections/close?{}", query.finish());
        self.select.ask.ask(Method::POST, &path)
    }
}

impl Ask {
    /// Asks, and says what the answer was: its changes or faults in a line each, else as it came.
    fn ask(&self, method: Method, path: &str) -> ExitCode {
        let (status, body) = match client::ask(&self.socket, method, path) {
            Ok(answer) => answer,
            Err(why) => {
                eprintln!("penstock: {why}");
                return ExitCode::FAILURE;
            }
        };
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let lines = |key: &str| -> Option<Vec<&str>> {
            answer
                .get(key)?
                .as_array()
                .map(|lines| lines.iter().filter_map(Value::as_str).collect())
        };
        match (lines("changes"), lines("faults")) {
            (Some(changes), _) => {
                changes.iter().for_each(|change| println!("{change}"));
                let generation = &answer["config_generation"];
                println!("{} changes; configuration {generation} runs", changes.len());
            }
            (None, Some(faults)) => {
                faults.iter().for_each(|fault| eprintln!("{fault}"));
                eprintln!("penstock: nothing was done");
            }
            (None, None) => println!("{}", String::from_utf8_lossy(&body).trim_end()),
        }
        if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn check(file: &Path) -> ExitCode {
    match Config::load(file) {
        Ok(config) => {
            print!("{}", summary(&config));
            ExitCode::SUCCESS
        }
        Err(faults) => refuse(&faults),
    }
}

/// What a reload would change, and whether it could.
fn compare(file: &Path, old: &Path) -> ExitCode {
    let (old, new) = match (Config::load(old), Config::load(file)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(faults), Ok(_)) | (Ok(_), Err(faults)) => return refuse(&faults),
        (Err(of_old), Err(of_new)) => {
            refuse(&of_old);
            return refuse(&of_new);
        }
    };
    let changes = changes(&old, &new);
    for change in &changes {
        println!("{change}");
    }
    // Which numbers are in use, only the running gateway knows; it has plenty.
    match succeed(&old, new, |_| true) {
        Ok(_) if changes.is_empty() => println!("nothing changes"),
        Ok(_) => println!("a reload can take this"),
        Err(refusal) => {
            println!("{refusal}\na reload is refused: restart");
            return ExitCode::from(NEEDS_RESTART);
        }
    }
    ExitCode::SUCCESS
}

/// Says what is wrong with a file, a line per fault, and how many there are.
fn refuse(faults: &Faults) -> ExitCode {
    eprintln!("{faults}");
    let count = faults.list.len();
    eprintln!(
        "penstock: {count} {} in {}",
        if count == 1 { "fault" } else { "faults" },
        faults.name
    );
    ExitCode::FAILURE
}

/// What a configuration defines, for the operator's eye.
fn summary(config: &Config) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let server = &config.server;
    // Writing into a `String` cannot fail.
    let _ = writeln!(
        text,
        "shards     {} of {} slots; at most {} clients",
        server.shards, server.slots_per_shard, config.limits.connections_max
    );
    for listener in &config.listeners {
        let address = listener.address.to_string();
        let _ = write!(text, "listener   {address}");
        let named = listener.name != address;
        let _ = writeln!(
            text,
            "{}",
            if named { format!(" ({})", listener.name) } else { String::new() }
        );
        if listener.access.proxy_protocol {
            let _ = writeln!(text, "           every connection begins with a PROXY header");
        }
    }
    for (index, route) in config.routes.iter().enumerate() {
        let _ = write!(text, "route {:<4} {} {}", index + 1, route.host, route.path);
        if let Some(subprotocol) = &route.subprotocol {
            let _ = write!(text, " with {subprotocol}");
        }
        let _ = writeln!(text, " -> {}", config.backend(route).name);
    }
    for (index, backend) in config.backends.iter().enumerate() {
        let _ = write!(text, "backend    {}: ", backend.name);
        let _ = match &backend.kind {
            BackendKind::Echo => write!(text, "echo"),
            BackendKind::Local(local) if local.demo_page => write!(text, "rooms, with a demo page"),
            BackendKind::Local(_) => write!(text, "rooms"),
            BackendKind::Websocket(websocket) => {
                let upstreams = &websocket.upstreams;
                let names = upstreams.iter().map(|it| format!("{} at {}", it.url, it.address));
                write!(text, "{}", names.collect::<Vec<_>>().join(", "))
            }
        };
        let used = config.routes.iter().any(|route| usize::from(route.backend) == index);
        let _ = writeln!(text, "{}", if used { "" } else { " (no route leads here)" });
    }
    let bound = memory_bound(config, &gateway::server::item_sizes());
    let _ = writeln!(
        text,
        "memory     at most {}, if every client used all it may:",
        human_bytes(memory_bound_total(&bound))
    );
    for (holder, bytes) in bound {
        let _ = writeln!(text, "           {:>9}  {holder}", human_bytes(bytes));
    }
    text
}
