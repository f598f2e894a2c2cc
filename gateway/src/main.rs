//! `penstock`: the command line. What is asked of a gateway that runs is in `cli.rs`.

mod cli;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use gateway::config::succession::{changes, succeed};
use gateway::config::warnings::running_as_root;
use gateway::config::{BackendKind, Config, Faults, Overrides, Websocket};
use gateway::control::Source;
use gateway::limits::{SHARDS_MAX, human_bytes};
use gateway::memory_bound::{memory_bound, memory_bound_total, memory_warning};
use gateway::names::Escaped;
use gateway::ring::linux::local_port_range;
use gateway::upstream::UpstreamAddress;

/// Shards allocate and free on their own threads all the time; mimalloc keeps them apart. The memory
/// ledger has to know how much of it is in use.
#[global_allocator]
static ALLOCATOR: gateway::allocator::Counting = gateway::allocator::Counting;

const AFTER_HELP: &str = "\
Examples:
  penstock                                      rooms and a page to try them, on 127.0.0.1:8080
  penstock run --listen 0.0.0.0:9000            the same for the whole network
  penstock run /etc/penstock/penstock.toml      what the file says
  penstock reload                               read the file again; no connection is closed
  penstock check /etc/penstock/penstock.toml    every fault in the file, or what it defines
  penstock check --strict --user nobody FILE    the same, and 1 where something is weak
  penstock check new.toml --against old.toml    what changes, and whether a reload can do it

Exit codes:
  0  stopped as asked; for check: the file is in order, and a reload can take it
  1  could not start, or could not go on; for check: a file has faults, or no such user; with --strict:
     or warnings
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
    #[command(flatten)]
    Running(Box<cli::Running>),
    /// Report every fault in a configuration file, or what it defines
    #[command(after_help = AFTER_HELP)]
    Check {
        /// The configuration file
        file: PathBuf,
        /// Instead: how it differs from this one, and whether a gateway that runs with this one can
        /// reload it (exit code 0) or has to be restarted (3)
        #[arg(long, value_name = "OLD_FILE", conflicts_with_all = ["strict", "user"])]
        against: Option<PathBuf>,
        /// A file with warnings ends with 1, too
        #[arg(long)]
        strict: bool,
        /// The user that the gateway will run as, if it is another than the one who checks: a name that
        /// this machine knows, or a number
        #[arg(long, value_name = "USER")]
        user: Option<String>,
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
    /// Start although another gateway has these listeners and this admin socket: new clients go to
    /// either until that one is stopped
    #[arg(long)]
    take_over: bool,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        None => run(Run::default()),
        Some(Command::Run(options)) => run(options),
        Some(Command::Running(command)) => command.run(),
        Some(Command::Check { file, against: None, strict, user }) => {
            check(&file, strict, user.as_deref())
        }
        Some(Command::Check { file, against: Some(old), .. }) => compare(&file, &old),
    }
}

fn run(options: Run) -> ExitCode {
    let Run { file, shards, listen, take_over } = options;
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
    gateway::control::run(config, source, take_over)
}

/// `user`: who will run it; `None`: whoever checks.
fn check(file: &Path, strict: bool, user: Option<&str>) -> ExitCode {
    let uid = match user.map_or_else(|| Ok(rustix::process::geteuid().as_raw()), uid_of) {
        Ok(uid) => uid,
        Err(why) => {
            eprintln!("penstock: {}", Escaped(&why));
            return ExitCode::FAILURE;
        }
    };
    match Config::load(file) {
        Ok(config) => {
            let bound = memory_bound(&config, &gateway::server::item_sizes());
            print!("{}", summary(&config, &bound));
            let root = (uid == 0).then(running_as_root);
            let memory = memory_warning(&config, memory_bound_total(&bound));
            let whole = root.iter().chain(&memory);
            let warnings: Vec<_> = whole.chain(&config.warnings.0).collect();
            let name = file.display().to_string();
            let name = Escaped(&name);
            for warning in &warnings {
                match warning.line {
                    0 => eprintln!("{name}: {warning}"),
                    line => eprintln!("{name}:{line}: {warning}"),
                }
            }
            if strict && !warnings.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(faults) => refuse(&faults),
    }
}

/// The number of a user, given by name or number (getpwnam_r(3), so that of every source in
/// nsswitch.conf). A number need not have a name.
///
/// # Errors
///
/// Nobody has the name, or it cannot be looked up.
fn uid_of(user: &str) -> Result<u32, String> {
    // The greatest means "no change" to chown(2) and its like, and is nobody's.
    if let Some(uid) = user.parse().ok().filter(|uid| *uid != u32::MAX) {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(found.uid.as_raw()),
        Ok(None) => Err(format!(
            "--user {user}: this machine knows no such user; name one that it does (getent passwd lists \
             them), or give a number: a user of systemd's DynamicUser= is there only while its unit runs"
        )),
        Err(error) => Err(format!(
            "--user {user}: the user cannot be looked up: {error}; give its number (id -u)"
        )),
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
        Escaped(&faults.name)
    );
    ExitCode::FAILURE
}

/// How many connections the local ports allow to one address of an upstream.
fn ports_line(websocket: &Websocket) -> String {
    let Some((first, last)) = local_port_range() else { return String::new() };
    let tcp = websocket.upstreams.iter().filter(|it| matches!(it.address, UpstreamAddress::Tcp(_)));
    let sources = tcp.map(|it| websocket.sources_of(&it.address).count().max(1)).min();
    let Some(sources) = sources else { return String::new() };
    let ports = usize::from(last.saturating_sub(first)) + 1;
    let from = if sources == 1 { "one source address" } else { "its source addresses" };
    format!(
        "           at most {} clients at each address of an upstream: {ports} local ports \
         (net.ipv4.ip_local_port_range) of {from}\n",
        ports * sources
    )
}

/// What a configuration defines, for the operator's eye.
/// `bound`: what it may hold, by holder, in bytes.
fn summary(config: &Config, bound: &[(&'static str, u64)]) -> String {
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
            if named { format!(" ({})", Escaped(&listener.name)) } else { String::new() }
        );
        if listener.access.proxy_protocol {
            let _ = writeln!(text, "           every connection begins with a PROXY header");
        }
    }
    for (index, route) in config.routes.iter().enumerate() {
        let _ = write!(text, "route {:<4} {} ", index + 1, route.host);
        let _ = write!(text, "{}", Escaped(&route.path.to_string()));
        if let Some(subprotocol) = &route.subprotocol {
            let _ = write!(text, " with {}", Escaped(subprotocol));
        }
        let _ = writeln!(text, " -> {}", Escaped(&config.backend(route).name));
    }
    for (index, backend) in config.backends.iter().enumerate() {
        let _ = write!(text, "backend    {}: ", Escaped(&backend.name));
        let _ = match &backend.kind {
            BackendKind::Echo => write!(text, "echo"),
            BackendKind::Refuse { status } => write!(text, "refused with {status}"),
            BackendKind::Local(local) if local.demo_page => write!(text, "rooms, with a demo page"),
            BackendKind::Local(_) => write!(text, "rooms"),
            BackendKind::Websocket(websocket) => {
                let upstreams = &websocket.upstreams;
                let names = upstreams.iter().map(|it| format!("{} at {}", it.url, it.address));
                write!(text, "{}", Escaped(&names.collect::<Vec<_>>().join(", ")))
            }
        };
        let used = config.routes.iter().any(|route| usize::from(route.backend) == index);
        let _ = writeln!(text, "{}", if used { "" } else { " (no route leads here)" });
        if let BackendKind::Websocket(websocket) = &backend.kind {
            text.push_str(&ports_line(websocket));
        }
    }
    let _ = writeln!(
        text,
        "memory     at most {}, if every client used all it may:",
        human_bytes(memory_bound_total(bound))
    );
    let _ = writeln!(
        text,
        "           {:>9}  is the budget (server.memory_bytes_max)",
        human_bytes(server.memory_bytes_max)
    );
    for (holder, bytes) in bound {
        let _ = writeln!(text, "           {:>9}  {holder}", human_bytes(*bytes));
    }
    text
}
