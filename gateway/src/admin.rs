//! The admin interface: HTTP over a Unix socket, for the commands of `cli.rs` and for whoever automates
//! them, and over TCP where that is wanted.
//!
//! | Request | Answer |
//! | --- | --- |
//! | `GET /`, `GET /dashboard` | the page that shows the rest in a browser |
//! | `GET /api/v1/health/live` | 200 while the process serves |
//! | `GET /api/v1/health/ready` | 200, or 503 once it is about to stop |
//! | `GET /metrics` | everything that is counted, as Prometheus reads it |
//! | `GET /api/v1/ws/metrics` | the summary that common guides ask for |
//! | `GET /api/v1/status` | what runs, how many clients, what was counted |
//! | `GET /api/v1/histograms` | how long things took since the start, and sizes: buckets by route |
//! | `GET /api/v1/history` | the last 15 minutes in intervals; `since_ms`: those that ended later |
//! | `GET /api/v1/memory` | what holds how much memory, beside what the kernel says |
//! | `POST /api/v1/reload` | the changes, or 409 and why there are none |
//! | `POST /api/v1/drain` | 202; goes on as after SIGTERM |
//! | `GET /api/v1/connections` | clients, by route, address, user and more; in pages |
//! | `POST /api/v1/connections/close` | closes those, and says how many they were |
//! | `GET /api/v1/connections/{id}` | one of them, with its upstream's side |
//! | `GET /api/v1/shards`, `routes`, `upstreams` | what the gateway is made of, and how each is |
//! | `GET /api/v1/closes` | the last connections that ended, and why |
//! | `GET`, `PUT /api/v1/log` | the log's level |
//!
//! Who may open the socket may do all of this; its permissions are the lock. Over TCP it takes a token
//! (`guard.rs`), and there is no such listener unless the file asks for one. Pages of other sites, in a
//! browser that reaches either, may neither ask nor order anything (`foreign.rs`), and what orders
//! (`POST`, `PUT`) needs the header `Penstock-Order: yes`.

pub mod client;
mod connections;
mod dashboard;
mod exposition;
mod foreign;
mod guard;
mod latency;
mod memory;
mod serve;
pub mod token;
pub(crate) mod views;

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::{FromRequestParts, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tracing::warn;

use crate::config::AdminOptions;
use crate::control::{Control, Phase, Reloaded};
use crate::listening::holder_behind;
use crate::metrics::Cause;
use guard::{Guard, Open};
use serve::Bounds;

/// The socket's name in the directory that is its own.
const SOCKET: &str = "admin.sock";

/// What the interface answers to: a line per path and method.
fn table() -> Vec<Entry> {
    use Open::{Health, Metrics, Never};
    let entry = |method, path, open, handler| Entry { method, path, open, handler };
    let (read, order) = (Method::GET, Method::POST);
    vec![
        entry(read.clone(), "/", Open::Page, get(dashboard::page)),
        entry(read.clone(), "/dashboard", Open::Page, get(dashboard::page)),
        entry(read.clone(), "/api/v1/health/live", Health, get(live)),
        entry(read.clone(), "/api/v1/health/ready", Health, get(ready)),
        entry(read.clone(), "/metrics", Metrics, get(exposition::metrics)),
        entry(read.clone(), "/api/v1/ws/metrics", Metrics, get(exposition::summary)),
        entry(read.clone(), "/api/v1/status", Never, get(status)),
        entry(order.clone(), "/api/v1/reload", Never, post(reload)),
        entry(order.clone(), "/api/v1/drain", Never, post(drain)),
        entry(read.clone(), "/api/v1/histograms", Never, get(latency::histograms)),
        entry(read.clone(), "/api/v1/history", Never, get(latency::history)),
        entry(read.clone(), "/api/v1/memory", Never, get(memory::ledger)),
        entry(read.clone(), "/api/v1/connections", Never, get(connections::list)),
        entry(order.clone(), "/api/v1/connections/close", Never, post(connections::close)),
        entry(read.clone(), "/api/v1/connections/{id}", Never, get(connections::one)),
        entry(read.clone(), "/api/v1/shards", Never, get(views::shards)),
        entry(read.clone(), "/api/v1/routes", Never, get(views::routes)),
        entry(read.clone(), "/api/v1/upstreams", Never, get(views::upstreams)),
        entry(read.clone(), "/api/v1/closes", Never, get(views::closes)),
        entry(read.clone(), "/api/v1/log", Never, get(views::log_options)),
        entry(Method::PUT, "/api/v1/log", Never, put(views::set_log)),
    ]
}

struct Entry {
    method: Method,
    path: &'static str,
    /// Whether it takes the token over TCP.
    open: Open,
    handler: MethodRouter<Arc<Control>>,
}

/// The methods and paths of the interface, parameters in braces.
pub fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    table().into_iter().map(|entry| (entry.method, entry.path))
}

/// Sockets that listen, until [`Admin::serve`].
pub struct Admin {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, SocketAddr)>,
}

/// Sockets that are served; the Unix socket's file goes with this.
pub struct Serving {
    path: Option<SocketFile>,
    address: Option<SocketAddr>,
}

/// The file of a Unix socket, which goes with this. It is another one once somebody has made one of the
/// same name.
struct SocketFile {
    path: PathBuf,
    /// Its device and inode.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: PathBuf) -> SocketFile {
        let identity = SocketFile::identity_of(&path);
        SocketFile { path, identity }
    }

    fn identity_of(path: &Path) -> Option<(u64, u64)> {
        fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    /// Removes it, unless it is not ours any more.
    fn drop(&mut self) {
        if self.identity.is_some() && SocketFile::identity_of(&self.path) == self.identity {
            // Whoever finds it gone has nothing to ask any more.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens the sockets. `take_over`: the Unix socket also where another gateway answers on it, which keeps
/// its connections and gets no new ones.
///
/// # Errors
///
/// One that the file asks for cannot be had, or somebody answers on one. Without the default one, where
/// it cannot be made, the gateway runs all the same.
pub async fn listen(options: &AdminOptions, take_over: bool) -> Result<Admin, String> {
    let unix = listen_unix(options, take_over)?;
    let tcp = match options.listen {
        Some(address) => Some(listen_tcp(address)?),
        None => None,
    };
    Ok(Admin { unix, tcp })
}

fn listen_unix(
    options: &AdminOptions,
    take_over: bool,
) -> Result<Option<(UnixListener, SocketFile)>, String> {
    let (path, wanted) = match options {
        AdminOptions { socket: Some(path), .. } if path.as_os_str() == "off" => return Ok(None),
        AdminOptions { socket: Some(path), .. } => (path.clone(), true),
        AdminOptions { socket: None, .. } => (default_socket(), false),
    };
    if !take_over && let Ok(stream) = UnixStream::connect(&path) {
        let holder = holder_behind(&stream).unwrap_or_else(|| "another process".to_owned());
        return Err(format!(
            "admin.socket {}: {holder} answers there; stop it, name another admin.socket (or \"off\"), or \
             start with --take-over if that gateway is to be replaced",
            path.display()
        ));
    }
    match open(&path, options.socket_mode, !wanted) {
        Ok(listener) => Ok(Some((listener, SocketFile::new(path)))),
        Err(error) if wanted => Err(format!(
            "admin.socket {}: {error}; choose a path whose directory exists and is writable, or \
             \"off\"",
            path.display()
        )),
        Err(error) => {
            warn!("no admin socket at {}: {error}; admin.socket names another", path.display());
            Ok(None)
        }
    }
}

fn listen_tcp(address: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let refused = |error: io::Error| {
        format!("admin.listen {address}: {error}; {}", crate::server::listen_advice(error.kind()))
    };
    let listener = bind(address).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    if !address.ip().is_loopback() {
        warn!(
            "admin: the token travels in the clear to {address}; let only a network that you trust \
             reach it, or a TLS terminator"
        );
    }
    Ok((listener, address))
}

/// Connections that the kernel keeps until they are accepted. Beyond it a probe is asked to come back after
/// a second; what a burst fills is accepted within milliseconds.
const BACKLOG: u32 = 4096;

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where the socket is when nobody says: systemd's runtime directory, root's, or the user's.
pub fn default_socket() -> PathBuf {
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let directory = directory("RUNTIME_DIRECTORY").unwrap_or_else(|| {
        let uid = rustix::process::getuid();
        match directory("XDG_RUNTIME_DIR") {
            _ if uid.is_root() => PathBuf::from("/run/penstock"),
            Some(runtime) => runtime.join("penstock"),
            None => std::env::temp_dir().join(format!("penstock-{}", uid.as_raw())),
        }
    });
    directory.join(SOCKET)
}

fn open(path: &Path, mode: u32, make_directory: bool) -> io::Result<UnixListener> {
    if make_directory && let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        // What a process left that is no more, or the one of a gateway that is replaced.
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "not a socket")),
        Err(_) => {}
    }
    // Nobody may connect before the permissions are what they should be.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

impl Admin {
    /// Answers from here on, on the runtime that this is called in.
    pub fn serve(self, control: &Arc<Control>) -> Serving {
        let Admin { unix, tcp } = self;
        let open = table().iter().map(|entry| (entry.path, entry.open)).collect();
        let guard = Arc::new(Guard::new(Arc::clone(control), open));
        let pages = middleware::from_fn_with_state(Arc::clone(&guard), guard::refuse_pages);
        let path = unix.map(|(listener, path)| {
            let router = router(control).layer(pages.clone());
            tokio::spawn(serve::unix(listener, router, Bounds::default()));
            path
        });
        let address = tcp.map(|(listener, address)| {
            let guard = middleware::from_fn_with_state(guard, guard::guard);
            // The outer one comes last.
            let router = router(control).layer(guard).layer(pages);
            tokio::spawn(serve::tcp(listener, router, Bounds::default()));
            address
        });
        Serving { path, address }
    }
}

fn router(control: &Arc<Control>) -> Router {
    let mut router = Router::new();
    for Entry { path, handler, .. } in table() {
        router = router.route(path, handler);
    }
    router.layer(middleware::map_response(harden)).with_state(Arc::clone(control))
}

/// What every answer says to browsers: it is what it says it is, is not kept, and is in nobody's frame.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let nobodys = HeaderValue::from_static("frame-ancestors 'none'");
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(nobodys);
    response
}

impl Serving {
    /// Where it is, a line for each place.
    pub fn places(&self) -> Vec<String> {
        let path = self.path.iter().map(|path| format!("admin socket {}", path.path.display()));
        let address = self.address.iter().map(|address| format!("admin at http://{address}/"));
        path.chain(address).collect()
    }
}

/// The query of a request. What is wrong with it is told like every other refusal.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>, Response> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Asked(query)),
            Err(rejection) => Err(refuse(StatusCode::BAD_REQUEST, &rejection.body_text())),
        }
    }
}

/// An answer that says why there is no other.
fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "faults": [why] }))).into_response()
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(control): State<Arc<Control>>) -> (StatusCode, &'static str) {
    match control.phase() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::NotReady | Phase::Draining { .. } => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn status(State(control): State<Arc<Control>>) -> Response {
    let config = control.config();
    let metrics = control.gateway.metrics();
    let ledger = crate::memory::ledger(&control);
    let sum = |of: fn(&crate::metrics::Counters) -> u64| -> u64 {
        control.gateway.counters().iter().map(|counters| of(counters)).sum()
    };
    let closed = Cause::ALL.iter().map(|cause| (cause.name(), metrics.closed(*cause)));
    let closed = closed.filter(|(_, count)| *count > 0);
    let phase = match control.phase() {
        Phase::Serving => json!({ "phase": "serving" }),
        Phase::NotReady => json!({ "phase": "not-ready" }),
        Phase::Draining { clients, until } => {
            let until = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            json!({ "phase": "draining", "clients": clients, "until_unix_ms": until })
        }
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_ms": control.started.elapsed().as_millis() as u64,
        "state": phase,
        "config_generation": config.generation,
        "shards": config.server.shards,
        "clients": sum(|counters| counters.clients.get()),
        "upstreams": sum(|counters| counters.upstreams.get()),
        "accepted": metrics.accepted,
        "upgraded": metrics.upgraded,
        "messages_received": metrics.messages_received,
        "messages_relayed": metrics.messages_relayed,
        "frames_sent": metrics.frames_sent,
        "requests_forwarded": metrics.requests_forwarded,
        "upstream_failures": metrics.upstream_failures,
        "upstream_shortages": metrics.upstream_shortages,
        "received_bytes": metrics.received_bytes,
        "memory": {
            "age_ms": ledger.age_ms(),
            "rss_bytes": ledger.rss_bytes,
            "ledger_bytes": ledger.ledger_bytes,
            "kernel_bytes": ledger.kernel_bytes,
            "used_bytes": control.gateway.shared().budget.used_bytes(),
            "budget_bytes": control.gateway.shared().budget.bytes_max(),
            "refused": metrics.memory_refused,
            "ended_assemblies": metrics.memory_ended_assemblies,
            "ended_consumers": metrics.memory_ended_consumers,
        },
        "slow_consumers": sum(|counters| counters.slow_consumers.get()),
        "closed": closed.collect::<std::collections::BTreeMap<_, _>>(),
    }))
    .into_response()
}

async fn reload(State(control): State<Arc<Control>>) -> Response {
    match control.reload_and_log().await {
        Ok(Reloaded { generation, changes }) => {
            Json(json!({ "config_generation": generation, "changes": changes })).into_response()
        }
        Err(why) => {
            let faults: Vec<&str> = why.lines().collect();
            (StatusCode::CONFLICT, Json(json!({ "faults": faults }))).into_response()
        }
    }
}

async fn drain(State(control): State<Arc<Control>>) -> StatusCode {
    control.drain();
    StatusCode::ACCEPTED
}
