//! The configuration: the file as written, and what may be relied on once it has been checked.
//!
//! ```text
//!   text --reader--> values with their places --check--> Config, or every fault at its place
//! ```
//!
//! [`Config`] is the result, and whoever holds one has nothing left to check. `config/check.rs`
//! holds the file as written (`File`) and every rule; `config/reader.rs` takes values out of TOML
//! and remembers where they stood; `config/machine.rs` is what the defaults depend on.
//!
//! `config/keys.rs` keeps what every key came to, so that two configurations can be compared in the
//! words of their files; `config/succession.rs` is how one follows another in a running gateway.
//!
//! `docs/penstock.toml` explains every key; a test holds it to what the reader asks for.

mod access;
mod check;
mod keys;
mod machine;
mod operator;
mod policy;
mod rates;
mod reader;
pub mod succession;
mod upstreams;
pub mod warnings;

use std::error::Error;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use machine::{Machine, Resolve, raise_descriptor_limit};

use crate::admin::token::Token;
use crate::checks::CheckOptions;
use crate::client_address::Access;
use crate::limits::Limits;
use crate::names::Escaped;
use crate::rate::Rate;
use crate::regular_file::{self, unreadable};
use crate::rooms::RoomLimits;
use crate::route::{Route, Routes};
use crate::upstream::{GroupOptions, UpstreamAddress, UpstreamSpec};
use keys::Keys;
use warnings::Warnings;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The process: its threads and their tables.
    pub server: Server,
    /// Where clients come in; at least one, no address twice.
    pub listeners: Vec<Listener>,
    /// Which backend a request goes to; at least one.
    pub routes: Routes,
    /// The backends by number; every `Route::backend` is an index into this. Retired ones are
    /// among them: see [`Config::live_backends`].
    pub backends: Vec<Backend>,
    /// The bounds of every connection.
    pub limits: Limits,
    /// Where the operator asks and orders.
    pub admin: AdminOptions,
    /// The log on standard error.
    pub log: LogOptions,
    /// Which one it is in the life of this process: 0 is the first.
    pub generation: u64,
    /// The warnings: keys that are in order and may do harm.
    pub warnings: Warnings,
    /// What every key of the file came to.
    keys: Keys,
}

/// The process: its threads and their tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Threads of the data plane, at least 1. May be more than there are CPUs.
    pub shards: u16,
    /// Whether shard `n` stays on the `n`-th CPU we may run on (modulo their number).
    pub pin: bool,
    /// From the request to stop until clients are asked to leave: `ready` says no meanwhile, and those
    /// that a balancer still sends are served.
    pub drain_delay: Duration,
    /// In this time all clients are asked to leave at a stop; few clients take less.
    pub drain_window: Duration,
    /// The text message that clients are sent before their Close frame; empty: none.
    pub drain_message: String,
    /// From the last request to leave until what is still open is cut off.
    pub stop_timeout: Duration,
    /// Connections in the table of one shard, clients and upstreams together. Within the limit on
    /// open files, which also bounds a table of direct descriptors.
    pub slots_per_shard: u32,
    /// Receive buffers of one shard: a power of two, 1 to 32,768.
    pub receive_buffers: u16,
    /// Bytes in each of them.
    pub receive_buffer_bytes: u32,
    /// Whether the kernel may fill one buffer by several receives, if it can (Linux 6.12).
    pub incremental: bool,
    /// What all shards together may use of memory, in bytes: see [`budget`](crate::budget).
    pub memory_bytes_max: u64,
}

/// Where the operator asks and orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminOptions {
    /// The Unix socket; `off`: there is none; `None`: where it can be had, see
    /// [`default_socket`](crate::admin::default_socket).
    pub socket: Option<PathBuf>,
    /// Its permissions.
    pub socket_mode: u32,
    /// Where it is asked over TCP; `None`: nowhere. Port 0 lets the kernel choose.
    pub listen: Option<SocketAddr>,
    /// The token that has to be shown at `listen`; there is one where there is an address.
    pub token: Option<Token>,
    /// The answers that are given without the token.
    pub open: OpenOptions,
    /// Whether metrics are served under the names of common guides as well.
    pub aliases: bool,
    /// Names that it is asked by, beside those that no other site can have.
    pub hosts: Vec<String>,
}

/// The answers that are given over TCP without the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Liveness and readiness.
    pub health: bool,
    /// The metrics.
    pub metrics: bool,
}

/// The log on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// For whom.
    pub format: LogFormat,
    /// The least important that is written: `error`, `warn`, `info` or `debug`.
    pub level: String,
    /// Whether each client gets a line when its connection is over.
    pub access: bool,
    /// No more of those than this in a second.
    pub access_lines_per_second: u64,
    /// Where histograms are written, if they are.
    pub histograms: Option<HistogramLog>,
}

/// Where histograms are written: see [`interval_log`](crate::interval_log).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramLog {
    /// The file, with its whole path.
    pub path: PathBuf,
    /// How long an interval is.
    pub interval: Duration,
}

/// For whom the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// People.
    Text,
    /// Programs: a JSON object per line.
    Json,
}

/// A place where clients come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// In logs and metrics; no other listener has it.
    pub name: String,
    /// The address to bind. Port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// The clients that may come in, and the source of their addresses.
    pub access: Access,
}

/// A service that answers clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// In logs and metrics; no other backend has it.
    pub name: String,
    /// The kind of service.
    pub kind: BackendKind,
    /// Whether it is gone from the file: no route of the file leads to it, and it stays as it was
    /// for the clients that it has.
    pub retired: bool,
}

impl Backend {
    /// Whether `other` is this backend in another configuration: it has the name and the kind.
    pub fn is_same(&self, other: &Backend) -> bool {
        self.identity() == other.identity()
    }

    fn identity(&self) -> (&str, std::mem::Discriminant<BackendKind>) {
        (&self.name, std::mem::discriminant(&self.kind))
    }
}

/// The kinds of backend. There are few of them, so their sizes do not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Sends every message back.
    Echo,
    /// The embedded rooms.
    Local(Local),
    /// WebSocket servers: each client gets a connection of its own to one of them.
    Websocket(Websocket),
    /// Nobody: every request gets this status, 400 to 599.
    Refuse {
        #[allow(missing_docs)]
        status: u16,
    },
}

impl BackendKind {
    /// Whether a client's message is gathered before anything is done with it.
    pub fn assembles(&self) -> bool {
        matches!(self, BackendKind::Echo | BackendKind::Local(_))
    }
}

/// The embedded rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Whether an ordinary HTTP request is answered with the demo page.
    pub demo_page: bool,
    /// Whether a client's word is taken for who it is.
    pub client_names: ClientNames,
    /// The bounds of rooms.
    pub rooms: RoomLimits,
    /// What one client may ask of rooms; beyond it the client is read no further for a while.
    pub requests: Rate,
}

/// What becomes of the names that clients of rooms give themselves (`?user=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientNames {
    /// A client that gives one is refused; the others are guests.
    #[default]
    Refused,
    /// They are believed: anybody may be anybody.
    Trusted,
}

impl ClientNames {
    /// As the file has it.
    pub fn name(self) -> &'static str {
        match self {
            ClientNames::Refused => "refused",
            ClientNames::Trusted => "trusted",
        }
    }
}

/// WebSocket servers behind us, one as good as the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Websocket {
    /// At least one; the list is one that [`Group::new`](crate::upstream::Group::new) takes. Names
    /// were resolved when the file was read. `connections_max` is the whole process's.
    pub upstreams: Vec<UpstreamSpec>,
    /// How clients are spread over them.
    pub options: GroupOptions,
    /// Whether the client's `Host` goes on to them; else it is that of their URL.
    pub preserve_host: bool,
    /// The path they are asked for instead of the client's, where their URL has none. The query is
    /// the client's either way.
    pub path: Option<String>,
    /// Whether they are asked for what is no WebSocket too.
    pub http: bool,
    /// What connections to them are made from, spread evenly; those of an upstream's own family. Empty:
    /// the system chooses. At most [`SOURCE_ADDRESSES_MAX`].
    pub source_addresses: Vec<IpAddr>,
    /// How often their names are resolved again; zero: with the file only.
    pub resolve_interval: Duration,
    /// How they are checked. `None`: they are not.
    pub check: Option<CheckOptions>,
    /// What becomes of the clients of one that is drained, disabled or taken off the list.
    pub drained_clients: Clients,
    /// What becomes of the clients of one that its health checks find down.
    pub down_clients: Clients,
}

/// Source addresses of one backend.
pub const SOURCE_ADDRESSES_MAX: usize = 256;

impl Websocket {
    /// The source addresses from which one of its upstreams can be reached.
    pub fn sources_of(&self, upstream: &UpstreamAddress) -> impl Iterator<Item = IpAddr> + Clone {
        let is_v4 = match upstream {
            UpstreamAddress::Tcp(address) => Some(address.is_ipv4()),
            UpstreamAddress::Unix(_) => None,
        };
        self.source_addresses.iter().copied().filter(move |it| Some(it.is_ipv4()) == is_v4)
    }
}

/// What becomes of the clients of an upstream that gets no new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clients {
    /// They stay as long as they like.
    #[default]
    Stay,
    /// They are asked to come back, and find themselves at another.
    Move,
}

/// What the command line sets over the file's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Instead of `server.shards`.
    pub shards: Option<u16>,
    /// Instead of all listeners, unless empty.
    pub listen: Vec<SocketAddr>,
}

/// What runs when there is no file: rooms with a page to try them, and an echo. `client_names` of the rooms
/// follows.
const EMBEDDED: &str = r#"
[[listener]]
name = "embedded"
address = "127.0.0.1:8080"

[[route]]
backend = "rooms"

[[route]]
path = "/echo"
backend = "echo"

[backend.echo]
kind = "echo"

[backend.rooms]
kind = "local"
demo_page = true
"#;

impl Config {
    /// What runs when there is no file: rooms with a demo page on `127.0.0.1:8080`, `/echo` beside.
    pub fn embedded() -> Config {
        match Config::embedded_with(&Overrides::default()) {
            Ok(config) => config,
            Err(faults) => unreachable!("the embedded configuration is in order: {faults}"),
        }
    }

    /// The same under the command line's overrides, which may contradict this machine. Clients may choose
    /// their names as long as nobody but this machine can come: all listeners are on loopback.
    pub fn embedded_with(overrides: &Overrides) -> Result<Config, Faults> {
        let is_own = overrides.listen.iter().all(|it| it.ip().to_canonical().is_loopback());
        let names = if is_own { ClientNames::Trusted } else { ClientNames::Refused };
        let text = format!("{EMBEDDED}client_names = \"{}\"\n", names.name());
        check::check("(embedded)", &text, &Machine::here(), overrides).0
    }

    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Config, Faults> {
        Config::load_with(path, &Overrides::default())
    }

    /// Reads and checks the file at `path` under the command line's overrides.
    pub fn load_with(path: &Path, overrides: &Overrides) -> Result<Config, Faults> {
        let name = path.display().to_string();
        match read_file(path).map(String::from_utf8) {
            Ok(Ok(text)) => check::check(&name, &text, &Machine::here(), overrides).0,
            Ok(Err(error)) => {
                let bytes = error.as_bytes();
                let good = error.utf8_error().valid_up_to();
                let line = bytes[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
                let start = bytes[..good].iter().rposition(|byte| *byte == b'\n');
                let before = &bytes[start.map_or(0, |newline| newline + 1)..good];
                let column = String::from_utf8_lossy(before).chars().count() + 1;
                let message = "not UTF-8: TOML files are; save the file as UTF-8".to_owned();
                Err(Faults { name, list: vec![Fault { line, column, message }] })
            }
            Err(message) => Err(Faults { name, list: vec![Fault { line: 0, column: 0, message }] }),
        }
    }

    /// Checks `text`; `name` stands for the file in faults.
    pub fn parse(name: &str, text: &str) -> Result<Config, Faults> {
        Config::parse_on(&Machine::here(), name, text)
    }

    /// The same for another machine than this one.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse_on(machine: &Machine, name: &str, text: &str) -> Result<Config, Faults> {
        check::check(name, text, machine, &Overrides::default()).0
    }

    /// The backends of the file, with their numbers.
    pub fn live_backends(&self) -> impl Iterator<Item = (u16, &Backend)> {
        // There are at most `BACKEND_NUMBERS_MAX`.
        let numbered = (0..=u16::MAX).zip(&self.backends);
        numbered.filter(|(_, backend)| !backend.retired)
    }

    /// The backend that `route` leads to.
    pub fn backend(&self, route: &Route) -> &Backend {
        &self.backends[usize::from(route.backend)]
    }
}

/// Everything that is wrong with a file, in the order of the file; never empty.
///
/// Displayed as a line per fault: `file:line:column: what: why; what to do`. Characters of the file and of
/// its name that would change the line are [`Escaped`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The file.
    pub name: String,
    /// In the order of the file.
    pub list: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// In characters, counted from 1; 0 when the file as a whole is meant.
    pub column: usize,
    /// What is wrong, why, and what to do.
    pub message: String,
}

/// Bytes of a file: with more it is no configuration.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The bytes of the file at `path`; else what is wrong with it.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let Some(file) = regular_file::open(path)? else {
        return Err("not a regular file: name the configuration file itself".to_owned());
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let most = FILE_BYTES_MAX >> 20;
        return Err(format!("larger than {most} MiB: this is no configuration; check the path"));
    }
    Ok(bytes)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let (name, message) = (Escaped(&self.name), Escaped(&fault.message));
            match fault.line {
                0 => write!(f, "{name}: {message}")?,
                line => write!(f, "{name}:{line}:{}: {message}", fault.column)?,
            }
        }
        Ok(())
    }
}

impl Error for Faults {}

#[cfg(test)]
mod extremes;
#[cfg(test)]
mod tests;
