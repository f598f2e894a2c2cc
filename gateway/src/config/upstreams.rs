//! `[backend.NAME]` of the kind `websocket`: its upstreams and how clients are spread over them.

use std::fmt::Display;
use std::time::Duration;

use super::keys::written;
use super::machine::Machine;
use super::reader::{Placed, Reader, Section};
use super::{Clients, Websocket};
use crate::checks::{CheckKind, CheckOptions, StatusSet, check_host, check_path};
use crate::route::PathPattern;
use crate::upstream::{
    Balance, COOKIE_NAME_DEFAULT, Group, GroupOptions, HashKey, HealthOptions,
    LOAD_FACTOR_PERCENT_DEFAULT, Mode, SameSite, StickyCookie, UpstreamAddress, UpstreamSpec,
    UpstreamUrl, WEIGHT_MAX,
};

/// A day.
const AGE_MS_MAX: u64 = 86_400_000;

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
    let drained_clients = read_clients(&mut section, "drained_clients");
    let down_clients = read_clients(&mut section, "down_clients");
    let options = read_options(reader, &mut section, machine);
    let check = read_check(reader, &mut section);
    let entries = section.sections("upstream");
    let missing = url.is_none() && !section.has("url") && !section.has("upstream");

    if let Some(path) = &path {
        check_replacement(reader, path);
    }
    let mut upstreams = Vec::new();
    match (url, entries.is_empty()) {
        (Some(url), true) => {
            upstreams.extend(resolve(reader, &section, &url, machine).map(|(url, address)| {
                UpstreamSpec { url, address, weight: 1, connections_max: 0, mode: Mode::Active }
            }));
        }
        (Some(url), false) => reader.fault(
            &url.place,
            "`url` beside [[upstream]]: is it one of them? Add it to the list and leave `url` out",
        ),
        (None, _) => {}
    }
    for entry in entries {
        upstreams.extend(read_upstream(reader, entry, machine, shards));
    }
    if missing {
        reader.echo(
            &place,
            "`url` is missing: a websocket backend needs it, or a list of [[backend.NAME.upstream]]; \
             add url = \"ws://127.0.0.1:3000\"",
        );
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
        check,
        drained_clients,
        down_clients,
    })
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
) -> Option<UpstreamSpec> {
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
    let (url, address) = resolved?;
    Some(UpstreamSpec { url, address, weight, connections_max, mode })
}

/// What a URL names, and where that is.
fn resolve(
    reader: &Reader<'_>,
    section: &Section<'_, '_>,
    text: &Placed<String>,
    machine: &Machine,
) -> Option<(UpstreamUrl, UpstreamAddress)> {
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
        return Some((url, address));
    }
    let (host, port) = url.host_and_port()?;
    match (machine.resolve)(host, port) {
        Ok(address) => {
            // A name may come to mean another address: that is a change, too.
            match format!("{host}:{port}") == address.to_string() {
                true => section.settle("url", format_args!("\"{url}\"")),
                false => section.settle("url", format_args!("\"{url}\" ({address})")),
            }
            Some((url, UpstreamAddress::Tcp(address)))
        }
        Err(error) => fault(&format!(
            "`{host}` does not resolve ({error}); correct the name, add it to DNS or /etc/hosts, \
             or write the address"
        )),
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
