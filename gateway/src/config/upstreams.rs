//! `[backend.NAME]` of the kind `websocket`: its upstreams and how clients are spread over them.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::keys::written;
use super::machine::{Machine, Resolve};
use super::reader::{Placed, Reader, Section};
use super::{Clients, SOURCE_ADDRESSES_MAX, Websocket};
use crate::checks::{CheckKind, CheckOptions, StatusSet, check_host, check_path};
use crate::route::PathPattern;
use crate::upstream::{
    Balance, COOKIE_NAME_DEFAULT, Group, GroupOptions, HashKey, HealthOptions,
    LOAD_FACTOR_PERCENT_DEFAULT, Mode, Place, SameSite, StickyCookie, UpstreamAddress,
    UpstreamSpec, UpstreamUrl, WEIGHT_MAX, places_of,
};

/// A day.
const AGE_MS_MAX: u64 = 86_400_000;

/// How often names are resolved again when the file does not say: as long as records live that are
/// meant to be moved (30 s in Kubernetes, 60 s at the large providers). The system's resolver does not
/// tell a record's time to live, and whatever caches for it does know that.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// The shortest interval.
const RESOLVE_INTERVAL_MS_MIN: u64 = 100;

/// Reads the section; `None` when it has no upstream, which has been reported.
pub(super) fn read_websocket(
    reader: &Reader<'_>,
    mut section: Section<'_, '_>,
    machine: &Machine,
    shards: u16,
) -> Option<Websocket> {
    section.set_scope("backend.websocket");
    let place = section.place().clone();
    let url = section.string("url");
    let preserve_host = section.word("host", &["preserve", "upstream"]) == "preserve";
    let path = section.string("path");
    let http = section.boolean("http", true);
    let source_addresses = read_sources(reader, &mut section);
    let drained_clients = read_clients(&mut section, "drained_clients");
    let down_clients = read_clients(&mut section, "down_clients");
    let options = read_options(reader, &mut section, machine);
    let resolve_interval = read_resolve_interval(reader, &mut section);
    let check = read_check(reader, &mut section);
    let entries = section.sections("upstream");
    let missing = url.is_none() && !section.has("url") && !section.has("upstream");

    if let Some(path) = &path {
        check_replacement(reader, path);
    }
    let mut upstreams = Vec::new();
    match (url, entries.is_empty()) {
        (Some(url), true) => {
            let found = resolve(reader, &section, &url, machine);
            upstreams.extend(found.into_iter().flatten());
        }
        (Some(url), false) => reader.fault(
            &url.place,
            "`url` beside [[upstream]]: is it one of them? Add it to the list and leave `url` out",
        ),
        (None, _) => {}
    }
    for entry in entries {
        upstreams.extend(read_upstream(reader, entry, machine, shards).into_iter().flatten());
    }
    if missing {
        reader.echo(
            &place,
            "`url` is missing: a websocket backend needs it, or a list of [[backend.NAME.upstream]]; \
             add url = \"ws://127.0.0.1:3000\"",
        );
    }
    let families = upstreams.iter().filter_map(|upstream| match &upstream.address {
        UpstreamAddress::Tcp(address) => Some(address.is_ipv4()),
        UpstreamAddress::Unix(_) => None,
    });
    let unreachable = families
        .filter(|is_v4| !source_addresses.iter().any(|source| source.is_ipv4() == *is_v4))
        .count();
    if unreachable > 0 && !source_addresses.is_empty() {
        let message = "`source_addresses` has none of the family (IPv4 or IPv6) of some upstream: it \
                       could not be reached from any of them; add one, or leave the key out";
        reader.fault(&section.place_of("source_addresses"), message);
    }
    // What it says of the list is said here, with a place; a shard may rely on it.
    if let Err(fault) = Group::new(options.clone(), upstreams.clone(), 0) {
        reader.echo(&place, fault);
    }
    section.finish();
    let path = path.map(|path| path.value);
    (!upstreams.is_empty()).then_some(Websocket {
        upstreams,
        options,
        preserve_host,
        path,
        http,
        source_addresses,
        resolve_interval,
        check,
        drained_clients,
        down_clients,
    })
}

fn read_sources(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> Vec<IpAddr> {
    let list = section.strings("source_addresses").unwrap_or_default();
    section.settle_list("source_addresses");
    if list.len() > SOURCE_ADDRESSES_MAX {
        let message = format!(
            "`source_addresses` has {} entries: at most {SOURCE_ADDRESSES_MAX} are supported; remove some",
            list.len()
        );
        reader.fault(&section.place_of("source_addresses"), message);
    }
    let mut sources: Vec<IpAddr> = Vec::with_capacity(list.len());
    for Placed { value, place } in list {
        match value.parse() {
            Ok(source) if sources.contains(&source) => {
                reader
                    .fault(&place, format!("`source_addresses` has \"{value}\" twice; remove one"));
            }
            Ok(source) => sources.push(source),
            Err(_) => reader.fault(
                &place,
                format!(
                    "`source_addresses` has \"{value}\": it is no IP address; write one of this \
                     machine's, without a port"
                ),
            ),
        }
    }
    sources
}

fn read_clients(section: &mut Section<'_, '_>, key: &'static str) -> Clients {
    match section.word(key, &["stay", "move"]) {
        "move" => Clients::Move,
        _ => Clients::Stay,
    }
}

fn check_replacement(reader: &Reader<'_>, path: &Placed<String>) {
    match path.value.parse::<PathPattern>() {
        Ok(PathPattern::Exact(_)) => {}
        Ok(PathPattern::Prefix(_)) => {
            let message = format!(
                "`path` is \"{}\": it replaces the client's path and cannot hold a `*`; leave it \
                 out to keep the client's path",
                path.value
            );
            reader.fault(&path.place, message);
        }
        Err(why) => reader.fault(&path.place, format!("`path` is \"{}\": {why}", path.value)),
    }
}

fn read_upstream(
    reader: &Reader<'_>,
    mut section: Section<'_, '_>,
    machine: &Machine,
    shards: u16,
) -> Option<Vec<UpstreamSpec>> {
    section.set_scope("backend.websocket.upstream");
    let url = section.required("url", "ws://127.0.0.1:3000");
    let weight = section.number("weight", 1..=u64::from(WEIGHT_MAX), 1) as u32;
    let connections_max = section.number("connections_max", 0..=u64::from(u32::MAX), 0) as u32;
    let mode = match section.word("mode", &["active", "draining", "disabled"]) {
        "draining" => Mode::Draining,
        "disabled" => Mode::Disabled,
        _ => Mode::Active,
    };
    if (1..u32::from(shards)).contains(&connections_max) {
        let message = format!(
            "`connections_max` is {connections_max}: each of the {shards} shards needs one at least; \
             raise it, or lower server.shards"
        );
        reader.fault(&section.place_of("connections_max"), message);
    }
    let resolved = url.and_then(|url| resolve(reader, &section, &url, machine));
    section.finish();
    let with = |spec: UpstreamSpec| UpstreamSpec { weight, connections_max, mode, ..spec };
    Some(resolved?.into_iter().map(with).collect())
}

fn read_resolve_interval(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> Duration {
    let key = "resolve_interval_ms";
    let interval = section.milliseconds(key, 0..=AGE_MS_MAX, RESOLVE_INTERVAL);
    if (1..RESOLVE_INTERVAL_MS_MIN).contains(&(interval.as_millis() as u64)) {
        let message = format!(
            "`{key}` is {}: a resolver is not asked more often than every \
             {RESOLVE_INTERVAL_MS_MIN}; raise it, or set it to 0 for names that stay",
            interval.as_millis()
        );
        reader.fault(&section.place_of(key), message);
    }
    interval
}

/// The upstreams that a URL names: one, or one for each address of a name.
fn resolve(
    reader: &Reader<'_>,
    section: &Section<'_, '_>,
    text: &Placed<String>,
    machine: &Machine,
) -> Option<Vec<UpstreamSpec>> {
    let fault = |why: &dyn Display| {
        reader.fault(&text.place, format!("`url` is \"{}\": {why}", text.value));
        None
    };
    let url: UpstreamUrl = match text.value.parse() {
        Ok(url) => url,
        Err(why) => return fault(&why),
    };
    if let Some(path) = url.unix_path() {
        let address = UpstreamAddress::Unix(path.to_owned());
        return Some(vec![UpstreamSpec::of(url, address)]);
    }
    let (host, port) = url.host_and_port()?;
    match (machine.resolve)(host, port) {
        Ok(addresses) => {
            let specs = specs_of(&UpstreamSpec::of(url.clone(), NOWHERE), addresses);
            let url = &specs.first()?.url;
            // A name may come to mean another address: that is a change, too.
            let places: Vec<String> = specs.iter().map(|spec| spec.address.to_string()).collect();
            match places == [format!("{host}:{port}")] {
                true => section.settle("url", format_args!("\"{url}\"")),
                false => section.settle("url", format_args!("\"{url}\" ({})", places.join(", "))),
            }
            Some(specs)
        }
        Err(error) => fault(&format!(
            "`{host}` does not resolve ({error}); correct the name, add it to DNS or /etc/hosts, \
             or write the address"
        )),
    }
}

/// Stands in for an address that is not known yet.
const NOWHERE: UpstreamAddress =
    UpstreamAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));

/// The upstreams of a name with these addresses, each like `one` otherwise.
fn specs_of(one: &UpstreamSpec, addresses: Vec<SocketAddr>) -> Vec<UpstreamSpec> {
    let spec = |Place { address, other }| UpstreamSpec {
        address: UpstreamAddress::Tcp(address),
        other: other.map(UpstreamAddress::Tcp),
        ..one.clone()
    };
    places_of(addresses).into_iter().map(spec).collect()
}

impl Websocket {
    /// Whether it has names that are to be resolved again.
    pub fn has_names(&self) -> bool {
        !self.resolve_interval.is_zero() && self.upstreams.iter().any(|spec| spec.url.is_name())
    }

    /// Its upstreams, as its names are to be understood now.
    ///
    /// # Errors
    ///
    /// A sentence: a name does not resolve, or the list that comes of it cannot be taken.
    pub fn resolved_again(&self, resolve: Resolve) -> Result<Vec<UpstreamSpec>, String> {
        let mut list: Vec<UpstreamSpec> = Vec::new();
        for spec in &self.upstreams {
            let name = spec.url.host_and_port().filter(|_| spec.url.is_name());
            let Some((host, port)) = name else {
                list.push(spec.clone());
                continue;
            };
            // Its other addresses stand beside it.
            if list.iter().any(|known| known.url == spec.url) {
                continue;
            }
            let found = resolve(host, port);
            let found = found.map_err(|error| format!("`{host}` does not resolve ({error})"))?;
            list.extend(specs_of(spec, found));
        }
        let checked = Group::new(self.options.clone(), list.clone(), 0);
        checked.map_err(|fault| fault.to_string())?;
        if list.is_empty() {
            return Err("its names have no address".to_owned());
        }
        Ok(list)
    }
}

impl UpstreamSpec {
    /// One with nothing special.
    fn of(url: UpstreamUrl, address: UpstreamAddress) -> UpstreamSpec {
        let mode = Mode::Active;
        UpstreamSpec { url, address, other: None, weight: 1, connections_max: 0, mode }
    }
}

fn read_options(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    machine: &Machine,
) -> GroupOptions {
    let default = GroupOptions::default();
    let words = ["least-connections", "round-robin", "random-two", "hash"];
    let balance = section.word("balance", &words);
    let key = section.string("hash_key");
    let by_sid = key.clone().filter(|key| key.value == "sid");
    let load = u64::from(LOAD_FACTOR_PERCENT_DEFAULT);
    let load = section.number("hash_load_percent", 0..=1000, load) as u32;
    if (1..100).contains(&load) {
        let message = format!(
            "`hash_load_percent` is {load}: an upstream has to take its even share, which is 100; \
             set it to 100 or more, or to 0 for no bound"
        );
        reader.fault(&section.place_of("hash_load_percent"), message);
    }
    let key = match &key {
        Some(text) => hash_key(&text.value).unwrap_or_else(|why| {
            reader.fault(&text.place, format!("`hash_key` is \"{}\": {why}", text.value));
            HashKey::ClientIp
        }),
        None => {
            section.settle("hash_key", "\"client-ip\"");
            HashKey::ClientIp
        }
    };
    let balance = match balance {
        "round-robin" => Balance::RoundRobin,
        "random-two" => Balance::RandomTwo,
        "hash" => Balance::Hash { key, load_factor_percent: (load > 0).then_some(load) },
        _ => Balance::LeastConnections,
    };
    let mut checks = |key, default: u32| section.number(key, 1..=1000, u64::from(default)) as u32;
    let health = HealthOptions {
        rise: checks("check_rise", default.health.rise),
        fall: checks("check_fall", default.health.fall),
        eject_failures: section.number(
            "eject_failures",
            0..=1000,
            u64::from(default.health.eject_failures),
        ) as u32,
        eject: section.milliseconds("eject_ms", 1..=AGE_MS_MAX, default.health.eject),
        eject_max: section.milliseconds("eject_max_ms", 1..=AGE_MS_MAX, default.health.eject_max),
    };
    if health.eject > health.eject_max {
        let message = "`eject_max_ms` is less than `eject_ms`: the first ejection would be longer \
                       than the longest; raise it";
        reader.fault(&section.place_of("eject_max_ms"), message);
    }
    let slow_start = section.milliseconds("slow_start_ms", 0..=AGE_MS_MAX, Duration::ZERO);
    let panic_percent = u64::from(default.panic_percent);
    let panic_percent = section.number("panic_percent", 0..=100, panic_percent) as u32;
    let sticky_sid = section.boolean("sticky_sid", true);
    if let Some(text) = by_sid.filter(|_| !sticky_sid) {
        let message = "`hash_key` is \"sid\", but `sticky_sid` is off: which server issued a `sid` is \
                       then known to nobody; leave `sticky_sid` on, or write \"client-ip\"";
        reader.fault(&text.place, message);
    }
    let cookie = read_cookie(reader, section, machine);
    GroupOptions { balance, health, slow_start, panic_percent, cookie, sticky_sid }
}

fn read_check(reader: &Reader<'_>, section: &mut Section<'_, '_>) -> Option<CheckOptions> {
    let word = section.word("check", &["off", "http", "websocket", "connect"]);
    let path = section.string("check_path");
    let host = section.string("check_host");
    let status = section.string("check_status");
    let text = status.as_ref().map_or("200-399", |status| status.value.as_str());
    section.settle("check_status", format_args!("\"{text}\""));
    let interval = Duration::from_secs(5);
    let interval = section.milliseconds("check_interval_ms", 10..=AGE_MS_MAX, interval);
    let timeout = Duration::from_secs(2).min(interval);
    let timeout = section.milliseconds("check_timeout_ms", 1..=600_000, timeout);
    if timeout > interval {
        let message = format!(
            "`check_timeout_ms` is {}: the next check begins after {} (`check_interval_ms`); set it \
             to that at most, or leave it out",
            timeout.as_millis(),
            interval.as_millis()
        );
        reader.fault(&section.place_of("check_timeout_ms"), message);
    }
    let fault = |key: &str, text: &Placed<String>, why: &str| {
        reader.fault(&text.place, format!("`{key}` is \"{}\": {why}", text.value));
    };
    if let Some(path) = &path {
        check_path(&path.value).unwrap_or_else(|why| fault("check_path", path, why));
    }
    if let Some(host) = &host {
        check_host(&host.value).unwrap_or_else(|why| fault("check_host", host, why));
    }
    let expected = match status.as_ref().map(|text| (text, text.value.parse())) {
        None => StatusSet::default(),
        Some((_, Ok(expected))) => expected,
        Some((text, Err(why))) => {
            fault("check_status", text, why);
            StatusSet::default()
        }
    };
    let kind = match word {
        "http" => CheckKind::Http { expected },
        "websocket" => CheckKind::Websocket,
        "connect" => CheckKind::Connect,
        _ => return None,
    };
    let (path, host) = (path.map(|path| path.value), host.map(|host| host.value));
    Some(CheckOptions { kind, path, host, interval, timeout })
}

fn read_cookie(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    machine: &Machine,
) -> Option<StickyCookie> {
    let wanted = section.boolean("sticky_cookie", false);
    let name = section.string("sticky_cookie_name");
    let secret = section.string("sticky_cookie_secret");
    let file = section.string("sticky_cookie_secret_file");
    let secure = section.boolean("sticky_cookie_secure", false);
    let max_age =
        section.milliseconds("sticky_cookie_age_ms", 0..=365 * AGE_MS_MAX, Duration::ZERO);
    let same_site = match section.word("sticky_cookie_same_site", &["lax", "none"]) {
        "none" => SameSite::None,
        _ => SameSite::Lax,
    };
    let is_token = |name: &str| {
        let is_mark = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || is_mark(byte))
    };
    if let Some(name) = name.as_ref().filter(|name| !is_token(&name.value)) {
        let message = format!(
            "`sticky_cookie_name` is \"{}\": a cookie's name has letters, digits and marks like `_`; \
             write \"{COOKIE_NAME_DEFAULT}\", or leave it out",
            name.value
        );
        reader.fault(&name.place, message);
    }
    let name = name.map_or_else(|| COOKIE_NAME_DEFAULT.to_owned(), |name| name.value);
    section.settle("sticky_cookie_name", format_args!("{name:?}"));
    if let (Some(secret), Some(file)) = (&secret, &file)
        && !secret.value.is_empty()
    {
        let message =
            "`sticky_cookie_secret_file` beside `sticky_cookie_secret`: remove one of the two";
        reader.fault(&file.place, message);
    }
    let secret = secret.map(|secret| secret.value).unwrap_or_default();
    section.settle("sticky_cookie_secret", format_args!("{secret:?}"));
    let mut secret = secret.into_bytes();
    if let Some(file) = file {
        let read = machine.secret_path(&file.value).and_then(|path| (machine.read_token)(&path));
        match read {
            Ok(token) => {
                // A reload finds another one though the file's name is the same.
                let value = format!("{} {}", written(&file.value), token.fingerprint());
                section.settle("sticky_cookie_secret_file", value);
                secret = token.bytes().to_vec();
            }
            Err(why) => {
                let message = format!("`sticky_cookie_secret_file` {}: {why}", file.value);
                reader.fault(&file.place, message);
            }
        }
    }
    wanted.then_some(StickyCookie { name, secret, max_age, same_site, secure })
}

/// Reads what clients are told apart by. The error says what to write instead.
fn hash_key(text: &str) -> Result<HashKey, &'static str> {
    const KNOWN: &str = "write \"client-ip\", \"sid\", \"header:NAME\", \"cookie:NAME\", \
                         \"query:NAME\" or \"path:INDEX\"";
    let (what, name) = text.split_once(':').unwrap_or((text, ""));
    let named = |key: fn(String) -> HashKey| match name {
        "" => Err(KNOWN),
        name => Ok(key(name.to_owned())),
    };
    match what {
        "client-ip" if name.is_empty() => Ok(HashKey::ClientIp),
        "sid" if name.is_empty() => Ok(HashKey::SocketIoSid),
        "header" => named(HashKey::Header),
        "cookie" => named(HashKey::Cookie),
        "query" => named(HashKey::QueryParameter),
        "path" => name.parse().map(HashKey::PathSegment).map_err(|_| KNOWN),
        _ => Err(KNOWN),
    }
}
