//! Warnings: keys of a checked file that are in order and may do harm.
//!
//! A warning is a function over the checked [`Config`] and the lines of its file, in the list
//! [`WARNINGS`]. `penstock check` shows what they find, and `run` and a reload write it to the log.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Backend, BackendKind, ClientNames, Config, Listener, Machine, Websocket};
use crate::client_address::CidrSet;
use crate::names::Escaped;
use crate::origin::OriginPattern;
use crate::route::{HostPattern, Route};
use crate::upstream::{Balance, SameSite, StickyCookie};

/// Shorter secrets of cookies could be found by trying: 16 characters of base64 are 96 bits.
const SECRET_BYTES_MIN: usize = 16;

/// All of them.
const WARNINGS: [fn(&mut Review<'_>); 8] = [
    proxy_headers_of_anybody,
    everybody_is_a_proxy,
    sticky_secret,
    sticky_secure,
    rooms_without_limits,
    names_of_strangers,
    secret_for_all_to_read,
    upstreams_without_stickiness,
];

/// The keys by which a file says how many clients fit into how much memory, the most telling first.
const MEMORY_KEYS: [&str; 6] = [
    "server.memory_bytes_max",
    "limits.connections_max",
    "limits.message_bytes_max",
    "limits.outbox_bytes_max",
    "route[].message_bytes_max",
    "server.slots_per_shard",
];

/// How much harm it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Some applications will not work.
    Notice,
    /// Something is weaker than it should be.
    Warning,
    /// A stranger can do what only the operator or a proxy should.
    Danger,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Danger => "danger",
        })
    }
}

/// One thing that is in order and may do harm, displayed as a line: `warning: text; cure`. Characters of the
/// file that would change the line are [`Escaped`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Counted from 1; 0 where it stands in no line.
    pub line: usize,
    /// How much harm.
    pub severity: Severity,
    /// The harm that may come, and why.
    pub text: String,
    /// The remedy.
    pub cure: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.severity, Escaped(&self.text), self.cure)
    }
}

/// All warnings of a file, in the order of their lines.
///
/// Any two are equal: what they say follows from the configuration, and the lines are no part of what a
/// file comes to.
#[derive(Clone, Debug, Default)]
pub struct Warnings(pub Vec<Warning>, Option<usize>);

impl Warnings {
    /// The line of the first key that is written of `MEMORY_KEYS`, counted from 1. `None`: the file leaves
    /// all of them to their defaults, which allow as many clients as the tables hold.
    pub fn memory_line(&self) -> Option<usize> {
        self.1
    }
}

impl PartialEq for Warnings {
    fn eq(&self, _: &Warnings) -> bool {
        true
    }
}

impl Eq for Warnings {}

/// The line of every table and key that is written, by its path: `listener[0].address`,
/// `backend.chat.sticky_cookie`.
#[derive(Default)]
pub(super) struct Lines {
    by_path: BTreeMap<String, usize>,
    /// The bytes at which lines begin, without the first.
    starts: Vec<usize>,
}

impl Lines {
    /// Of a text, none of whose keys is known yet.
    pub(super) fn of(text: &str) -> Lines {
        let starts = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Lines { by_path: BTreeMap::new(), starts }
    }

    /// The table or key `path` stands at the byte `offset`.
    pub(super) fn note(&mut self, path: String, offset: usize) {
        let line = self.starts.partition_point(|start| *start <= offset) + 1;
        self.by_path.insert(path, line);
    }

    /// Forgets all paths that begin like this: the command line goes first.
    pub(super) fn forget(&mut self, start: &str) {
        self.by_path.retain(|path, _| !path.starts_with(start));
    }

    /// The line of the first of `paths` that is written. `[]` in a path is every item of its list.
    fn first_of(&self, paths: &[&str]) -> Option<usize> {
        paths.iter().find_map(|path| match path.split_once("[]") {
            None => self.by_path.get(*path).copied(),
            Some((list, key)) => {
                let list = format!("{list}[");
                let items = self.by_path.range(list.clone()..);
                let mut items = items.take_while(|(path, _)| path.starts_with(&list));
                items.find(|(path, _)| path.ends_with(key)).map(|(_, line)| *line)
            }
        })
    }

    /// The line of `key` in `table`, or of the table where it is not written; 0 for neither.
    fn find(&self, table: &str, key: &str) -> usize {
        let key = self.by_path.get(&format!("{table}.{key}"));
        key.or_else(|| self.by_path.get(table)).copied().unwrap_or(0)
    }
}

/// A checked file that is looked at.
pub(super) struct Review<'a> {
    config: &'a Config,
    lines: &'a Lines,
    /// As the file has them: those of `config` stand in the order of matching.
    routes: &'a [Route],
    machine: &'a Machine,
    /// The file.
    name: &'a str,
    found: Vec<Warning>,
}

/// Everything to be said about a file.
pub(super) fn find(
    config: &Config,
    lines: &Lines,
    routes: &[Route],
    machine: &Machine,
    name: &str,
) -> Warnings {
    let mut review = Review { config, lines, routes, machine, name, found: Vec::new() };
    WARNINGS.iter().for_each(|warning| warning(&mut review));
    review.found.sort_by_key(|warning| warning.line);
    Warnings(review.found, lines.first_of(&MEMORY_KEYS))
}

/// That the process may do whatever it likes; for `run`, and for a check that is not told another user.
pub fn running_as_root() -> Warning {
    Warning {
        line: 0,
        severity: Severity::Warning,
        text: "the gateway would run as root, who may do more than it needs".to_owned(),
        cure: "run it as a user of its own (the systemd unit does), with CAP_NET_BIND_SERVICE for ports \
               below 1024; `check --user NAME` says that somebody else will run it"
            .to_owned(),
    }
}

impl Review<'_> {
    /// Something at `key` of the table `table`.
    fn warn(&mut self, severity: Severity, (table, key): (&str, &str), text: String, cure: &str) {
        let line = self.lines.find(table, key);
        self.found.push(Warning { line, severity, text, cure: cure.to_owned() });
    }

    /// The cookies of backends, with their tables.
    fn cookies(&self) -> Vec<(String, &Backend, &StickyCookie)> {
        let of = |backend| {
            Some((table_of(backend), backend, websocket(backend)?.options.cookie.as_ref()?))
        };
        self.config.backends.iter().filter_map(of).collect()
    }

    fn has_public_listener(&self) -> bool {
        self.config.listeners.iter().any(|listener| is_public(listener.address))
    }

    /// The routes of the file that lead to `backend`, with their places in it.
    fn routes_to(&self, backend: &Backend) -> Vec<(usize, &Route)> {
        let leads =
            |route: &Route| self.config.backends.get(usize::from(route.backend)) == Some(backend);
        self.routes.iter().enumerate().filter(|(_, route)| leads(route)).collect()
    }
}

fn table_of(backend: &Backend) -> String {
    format!("backend.{}", backend.name)
}

fn websocket(backend: &Backend) -> Option<&Websocket> {
    match &backend.kind {
        BackendKind::Websocket(websocket) => Some(websocket),
        BackendKind::Echo | BackendKind::Local(_) | BackendKind::Refuse { .. } => None,
    }
}

/// Whether strangers may reach an address: all but loopback, link-local and private ones (RFC 1918, RFC
/// 4193, RFC 6598). All addresses of a machine are.
fn is_public(address: SocketAddr) -> bool {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            !(ip.is_loopback() || ip.is_private() || ip.is_link_local() || is_shared)
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
    }
}

fn proxy_headers_of_anybody(review: &mut Review<'_>) {
    for (index, listener) in review.config.listeners.iter().enumerate() {
        let access = &listener.access;
        if access.proxy_protocol && access.trusted_proxies.is_empty() && is_public(listener.address)
        {
            let text = format!(
                "`proxy_protocol` is \"required\" on {}, and anybody who reaches it may send the header, \
                 and so choose an address",
                listener.address
            );
            let at = (&*format!("listener[{index}]"), "proxy_protocol");
            review.warn(Severity::Danger, at, text, "name the balancers in `trusted_proxies`");
        }
    }
}

fn everybody_is_a_proxy(review: &mut Review<'_>) {
    let holds_all = |set: &CidrSet| {
        // Ends of what is routed, far from each other.
        ["1.0.0.1", "100.0.0.1", "223.255.255.254"].iter().all(|it| contains(set, it))
            || ["2000::1", "2a00::1", "3fff:ffff::1"].iter().all(|it| contains(set, it))
    };
    for (index, listener) in review.config.listeners.iter().enumerate() {
        if holds_all(&listener.access.trusted_proxies) {
            let text =
                "`trusted_proxies` holds every address, so that each client may name the address \
                        that it is known by: `deny`, limits per address and the log go by that"
                    .to_owned();
            let at = (&*format!("listener[{index}]"), "trusted_proxies");
            review.warn(Severity::Danger, at, text, "name the proxies in front, and no others");
        }
    }
}

fn contains(set: &CidrSet, address: &str) -> bool {
    address.parse().is_ok_and(|address| set.contains(address))
}

fn sticky_secret(review: &mut Review<'_>) {
    let weak: Vec<(String, String)> = review
        .cookies()
        .into_iter()
        .filter(|(_, _, cookie)| cookie.secret.len() < SECRET_BYTES_MIN)
        .map(|(table, backend, cookie)| {
            let secret = match cookie.secret.len() {
                0 => "no secret".to_owned(),
                len => format!("a secret of {len} bytes"),
            };
            let text = format!(
                "the cookie of \"{}\" has {secret}: the addresses of its servers can be guessed from it",
                backend.name
            );
            (table, text)
        })
        .collect();
    for (table, text) in weak {
        let key = ["sticky_cookie_secret", "sticky_cookie_secret_file", "sticky_cookie"]
            .into_iter()
            .find(|key| review.lines.by_path.contains_key(&format!("{table}.{key}")))
            .unwrap_or("sticky_cookie");
        let cure = "write one of 16 bytes or more, (umask 077; head -c 24 /dev/urandom | base64 > FILE), \
                    and name it in `sticky_cookie_secret_file`";
        review.warn(Severity::Warning, (&table, key), text, cure);
    }
}

fn sticky_secure(review: &mut Review<'_>) {
    let is_https = |pattern: &OriginPattern| matches!(pattern, OriginPattern::Tuple { scheme, .. } if scheme == "https" || scheme == "wss");
    let listeners = &review.config.listeners;
    // One that speaks HTTP says by which scheme a client came to it; one that passes bytes on cannot.
    let is_told = |listener: &Listener| {
        !listener.access.proxy_protocol && !listener.access.trusted_proxies.is_empty()
    };
    let behind_proxy = listeners.iter().any(|listener| listener.access.proxy_protocol);
    let all_told = listeners.iter().all(is_told);
    let mut plain = Vec::new();
    for (table, backend, cookie) in review.cookies() {
        let has_https = review
            .routes_to(backend)
            .iter()
            .any(|(_, route)| route.origins.allowed.iter().flatten().any(is_https));
        let has_https = has_https && !all_told;
        if !cookie.secure && cookie.same_site != SameSite::None && (has_https || behind_proxy) {
            let why = if has_https { "pages of https use it" } else { "a proxy stands in front" };
            plain.push((table, format!(
                "the cookie of \"{}\" is sent without Secure, and {why}: a browser would also send it in \
                 the clear",
                backend.name
            )));
        }
    }
    for (table, text) in plain {
        let cure = "where clients come by https, set `sticky_cookie_secure = true`";
        review.warn(Severity::Warning, (&table, "sticky_cookie"), text, cure);
    }
}

fn rooms_without_limits(review: &mut Review<'_>) {
    if !review.has_public_listener() {
        return;
    }
    let mut open = Vec::new();
    for backend in &review.config.backends {
        if !matches!(backend.kind, BackendKind::Local(_)) {
            continue;
        }
        for (index, route) in review.routes_to(backend) {
            let rates = &route.policy.rates;
            let has_limits = route.policy.connections_max > 0
                || rates.limit_data()
                || rates.address_connections_max > 0
                || rates.address_handshakes.is_limit();
            if route.origins.allowed.is_none() && !has_limits && !is_local_name(&route.host) {
                open.push(index);
            }
        }
    }
    for index in open {
        let text =
            "rooms for everybody: a public listener, any page, and no limit on what a client \
                    may send"
                .to_owned();
        let cure = "name the pages in `origins`, and set `messages_per_second` and \
                    `address_connections_max`";
        review.warn(Severity::Warning, (&format!("route[{index}]"), "backend"), text, cure);
    }
}

fn names_of_strangers(review: &mut Review<'_>) {
    if !review.has_public_listener() {
        return;
    }
    let mut trusting = Vec::new();
    for backend in &review.config.backends {
        let BackendKind::Local(local) = &backend.kind else { continue };
        // A host of localhost is no fence: whoever connects writes it.
        if local.client_names == ClientNames::Trusted && !review.routes_to(backend).is_empty() {
            let text = format!(
                "`client_names` is \"trusted\" for the rooms of \"{}\" behind a public listener: whoever \
                 connects may be any user, get that user's direct messages and publish in that name",
                backend.name
            );
            trusting.push((table_of(backend), text));
        }
    }
    for (table, text) in trusting {
        let cure =
            "leave it at \"refused\", or listen where only what writes the query itself can come";
        review.warn(Severity::Warning, (&table, "client_names"), text, cure);
    }
}

fn is_local_name(host: &HostPattern) -> bool {
    host.to_string() == "localhost"
}

fn secret_for_all_to_read(review: &mut Review<'_>) {
    let Some(mode) = (review.machine.mode)(review.name).filter(|mode| mode & 0o004 != 0) else {
        return;
    };
    let paths = &review.lines.by_path;
    let written = |table: &&String| paths.contains_key(&format!("{table}.sticky_cookie_secret"));
    let tables: Vec<String> = review.cookies().into_iter().map(|(table, ..)| table).collect();
    let tables: Vec<String> = tables.iter().filter(written).cloned().collect();
    for table in tables {
        let text = format!(
            "the secret stands in a file that every user of this machine can read (mode {:04o})",
            mode & 0o7777
        );
        let cure = "move it into a file of its own, which only the gateway's user can read, and name that \
                    in `sticky_cookie_secret_file`";
        review.warn(Severity::Warning, (&table, "sticky_cookie_secret"), text, cure);
    }
}

fn upstreams_without_stickiness(review: &mut Review<'_>) {
    let mut spread = Vec::new();
    for backend in &review.config.backends {
        let Some(it) = websocket(backend) else { continue };
        let is_hash = matches!(it.options.balance, Balance::Hash { .. });
        if it.http && it.upstreams.len() > 1 && it.options.cookie.is_none() && !is_hash {
            spread.push((table_of(backend), format!(
                "requests of one client to \"{}\" go to different servers: applications that keep a \
                 session in memory (pages, uploads, long-polling) break; `sticky_sid` covers Socket.IO's \
                 own requests alone",
                backend.name
            )));
        }
    }
    for (table, text) in spread {
        let cure = "set `sticky_cookie = true`, or `balance = \"hash\"` with `hash_load_percent = 0`; \
                    `http = false` where only WebSockets are served";
        review.warn(Severity::Notice, (&table, "balance"), text, cure);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Overrides;
    use super::super::check::check;
    use super::super::tests::machine;

    /// A cookie's secret that is long enough.
    const SECRET: &str = "sticky_cookie_secret = \"0123456789abcdef\"\n";

    /// What is said about a file of this name, as `line severity: text; cure`.
    fn said(name: &str, text: &str) -> Vec<String> {
        let config = check(name, text, &machine(), &Overrides::default()).0;
        let config = config.unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"));
        config.warnings.0.iter().map(|it| format!("{} {it}", it.line)).collect()
    }

    /// `want`: the one thing that is said, as far as the test cares; `cure`: a word of what to do.
    #[track_caller]
    fn says(text: &str, want: &str, cure: &str) {
        let got = said("f", text);
        let [one] = &got[..] else { panic!("{got:#?}\nof\n{text}") };
        assert!(one.starts_with(want), "{one}");
        let (_, rest) = one.rsplit_once("; ").expect("a cure");
        assert!(one.contains(cure) && !rest.is_empty(), "{one}");
    }

    #[track_caller]
    fn says_nothing(text: &str) {
        assert_eq!(said("f", text), [""; 0], "{text}");
    }

    fn file(listener: &str, route: &str, backend: &str) -> String {
        format!("[[listener]]\n{listener}[[route]]\nbackend = \"b\"\n{route}[backend.b]\n{backend}")
    }

    const PUBLIC: &str = "address = \"0.0.0.0:80\"\n";
    const LOCAL: &str = "address = \"127.0.0.1:8080\"\n";
    const ECHO: &str = "kind = \"echo\"\n";
    const ONE: &str = "kind = \"websocket\"\nurl = \"ws://127.0.0.1:3000\"\n";

    #[test]
    fn proxy_headers_of_anybody_on_a_public_address() {
        let required = "proxy_protocol = \"required\"\n";
        let text = file(&format!("{PUBLIC}{required}"), "", ECHO);
        says(&text, "3 danger: `proxy_protocol` is \"required\" on 0.0.0.0:80", "trusted_proxies");
        says_nothing(&file(&format!("{LOCAL}{required}"), "", ECHO));
        let trusted = "trusted_proxies = [\"10.0.0.0/8\"]\n";
        says_nothing(&file(&format!("{PUBLIC}{required}{trusted}"), "", ECHO));
    }

    #[test]
    fn everybody_is_a_trusted_proxy() {
        for all in ["\"0.0.0.0/0\"", "\"::/0\"", "\"0.0.0.0/1\", \"128.0.0.0/1\""] {
            let text = file(&format!("{LOCAL}trusted_proxies = [{all}]\n"), "", ECHO);
            says(&text, "3 danger: `trusted_proxies` holds every address", "name the proxies");
        }
        says_nothing(&file(&format!("{LOCAL}trusted_proxies = [\"10.0.0.0/8\"]\n"), "", ECHO));
    }

    #[test]
    fn a_cookie_with_no_secret_or_a_short_one() {
        let cookie = format!("{ONE}sticky_cookie = true\n");
        says(&file(LOCAL, "", &cookie), "8 warning: the cookie of \"b\" has no secret", "_file");
        let short = format!("{cookie}sticky_cookie_secret = \"short\"\n");
        let want = "9 warning: the cookie of \"b\" has a secret of 5 bytes";
        says(&file(LOCAL, "", &short), want, "_file");
        says_nothing(&file(LOCAL, "", &format!("{cookie}{SECRET}")));
        // A file of its own holds one that is long enough.
        let of_file = format!("{cookie}sticky_cookie_secret_file = \"/etc/penstock/secret\"\n");
        says_nothing(&file(LOCAL, "", &of_file));
    }

    #[test]
    fn a_cookie_without_secure_behind_https() {
        let cookie = format!("{ONE}sticky_cookie = true\n{SECRET}");
        let pages = "origins = [\"https://chat.example.org\"]\n";
        let want =
            "9 warning: the cookie of \"b\" is sent without Secure, and pages of https use it";
        says(&file(LOCAL, pages, &cookie), want, "sticky_cookie_secure = true");
        let proxy = format!("{LOCAL}trusted_proxies = [\"10.0.0.1\"]\n");
        // It says by which scheme a client came.
        says_nothing(&file(&proxy, pages, &cookie));
        let proxy = format!("{proxy}proxy_protocol = \"required\"\n");
        let want =
            "10 warning: the cookie of \"b\" is sent without Secure, and a proxy stands in front";
        says(&file(&proxy, "", &cookie), want, "sticky_cookie_secure = true");
        says_nothing(&file(LOCAL, "origins = [\"http://localhost\"]\n", &cookie));
        says_nothing(&file(LOCAL, pages, &format!("{cookie}sticky_cookie_secure = true\n")));
        says_nothing(&file(LOCAL, pages, &format!("{cookie}sticky_cookie_same_site = \"none\"\n")));
    }

    #[test]
    fn rooms_for_everybody() {
        let rooms = "kind = \"local\"\n";
        says(&file(PUBLIC, "", rooms), "4 warning: rooms for everybody", "origins");
        says_nothing(&file(LOCAL, "", rooms));
        says_nothing(&file("address = \"10.1.2.3:80\"\n", "", rooms));
        says_nothing(&file(PUBLIC, "origins = [\"https://chat.example.org\"]\n", rooms));
        says_nothing(&file(PUBLIC, "messages_per_second = 20\n", rooms));
        says_nothing(&file(PUBLIC, "", ECHO));
    }

    #[test]
    fn names_of_clients_on_a_public_address() {
        let limits = "messages_per_second = 20\n";
        let trusted = "kind = \"local\"\nclient_names = \"trusted\"\n";
        let want = "8 warning: `client_names` is \"trusted\" for the rooms of \"b\"";
        says(&file(PUBLIC, limits, trusted), want, "leave it at \"refused\"");
        says_nothing(&file(LOCAL, limits, trusted));
        says_nothing(&file("address = \"10.1.2.3:80\"\n", limits, trusted));
        says_nothing(&file(PUBLIC, limits, "kind = \"local\"\nclient_names = \"refused\"\n"));
        says(
            &file(PUBLIC, &format!("{limits}host = \"localhost\"\n"), trusted),
            "9 warning",
            "refused",
        );
    }

    #[test]
    fn a_secret_in_a_file_that_others_can_read() {
        let text = file(LOCAL, "", &format!("{ONE}sticky_cookie = true\n{SECRET}"));
        let got = said("open", &text);
        let [one] = &got[..] else { panic!("{got:?}") };
        assert!(one.starts_with("9 warning: the secret stands in a file that every user"), "{one}");
        assert!(one.contains("(mode 0644)") && !one.contains("0123456789abcdef"), "{one}");
        assert_eq!(said("open", &file(LOCAL, "", ECHO)), [""; 0]);
    }

    #[test]
    fn several_upstreams_and_nothing_that_keeps_a_client_with_one() {
        let several = "kind = \"websocket\"\n{}[[backend.b.upstream]]\nurl = \"ws://127.0.0.1:1\"\n\
                       [[backend.b.upstream]]\nurl = \"ws://127.0.0.1:2\"\n";
        let with = |key: &str| file(LOCAL, "", &several.replace("{}", key));
        let got = said("f", &with(""));
        let [one] = &got[..] else { panic!("{got:?}") };
        assert!(
            one.starts_with("5 notice: requests of one client to \"b\" go to different"),
            "{one}"
        );
        assert!(one.contains("sticky_sid") && one.contains("`sticky_cookie = true`"), "{one}");
        says_nothing(&with("http = false\n"));
        says_nothing(&with("balance = \"hash\"\n"));
        says_nothing(&with(&format!("sticky_cookie = true\n{SECRET}")));
        says_nothing(&file(LOCAL, "", ONE));
    }

    #[test]
    fn a_listener_of_the_command_line_stands_in_no_line() {
        let text = file(LOCAL, "", "kind = \"local\"\n");
        let listen = vec![([0, 0, 0, 0], 80).into()];
        let overrides = Overrides { shards: None, listen };
        let config = check("f", &text, &machine(), &overrides).0.expect("in order");
        assert_eq!(config.warnings.0.len(), 1);
        // The route that is meant still does.
        assert_eq!(config.warnings.0[0].line, 4);
    }
}
