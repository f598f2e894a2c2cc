//! The file as written, and every rule that makes a [`Config`] of it.

use std::net::SocketAddr;
use std::time::Duration;

use super::access::{read_access, read_origins};
use super::keys::written;
use super::operator::{read_admin, read_log};
use super::policy::{Common, read_common, read_message_bytes_max, read_policy};
use super::rates::read_rate;
use super::reader::{Asked, Place, Placed, Reader, Section, closest, not_one_of};
use super::upstreams::read_websocket;
use super::warnings::{self, Warnings};
use super::{
    AdminOptions, Backend, BackendKind, ClientNames, Config, Faults, Listener, Local, LogOptions,
    Machine, Overrides, Server,
};
use crate::client_address::Access;
use crate::http::HEADERS_MAX;
use crate::limits::{
    BACKENDS_MAX, LISTENERS_MAX, Limits, MEMORY_BYTES_MIN, MEMORY_BYTES_MOST, MESSAGE_BYTES_MAX,
    OUTBOX_BYTES_LEAST, OUTBOX_BYTES_MAX, OUTBOX_SPARE_BYTES, ROUTES_MAX, SHARDS_MAX,
    SLOTS_DEFAULT_TOTAL, SLOTS_PER_SHARD_MAX, outbox_bytes_default,
};
use crate::origin::Origins;
use crate::policy::Policy;
use crate::rate::Rate;
use crate::rooms::{NAME_BYTES_MOST, RoomLimits, SlowLimits, SlowPolicy};
use crate::route::{HostPattern, PathPattern, Route, RouteIndex, Routes};
use crate::upstream::UpstreamAddress;

/// Ten minutes: nobody waits longer for a handshake or an answer.
pub(super) const TIMEOUT_MS_MAX: u64 = 600_000;
/// A day.
pub(super) const AGE_MS_MAX: u64 = 86_400_000;

/// 30 days: what a connection may last at most, where that is bounded.
pub(super) const DURATION_MS_MAX: u64 = 2_592_000_000;
/// Names are labels of metrics.
const NAME_BYTES_MAX: usize = 64;

/// The file as written: values of the right type, which need not agree with one another.
struct File {
    server: Server,
    admin: AdminOptions,
    log: LogOptions,
    limits: Limits,
    listeners: Vec<Placed<Listener>>,
    routes: Vec<RouteEntry>,
    backends: Vec<Placed<Backend>>,
}

/// A route, before its backend is known to exist. `None` has been reported.
struct RouteEntry {
    place: Place,
    host: Option<HostPattern>,
    path: Option<PathPattern>,
    subprotocol: Option<String>,
    backend: Option<Placed<String>>,
    origins: Origins,
    policy: Policy,
}

/// Makes a [`Config`] of `text`, or says everything that is wrong with it; and which keys the
/// reader asked for on the way.
pub(super) fn check(
    name: &str,
    text: &str,
    machine: &Machine,
    overrides: &Overrides,
) -> (Result<Config, Faults>, Asked) {
    let (reader, table) = Reader::parse(text);
    let mut root = Section::root(&reader, table.get_ref());
    let mut file = read_file(&reader, &mut root, machine, overrides);
    if !overrides.listen.is_empty() {
        reader.forget_items("listener");
        file.listeners = overrides
            .listen
            .iter()
            .map(|address| Placed { value: listener_at(*address), place: 0..0 })
            .collect();
    }
    let routes = agree(&reader, &root, &mut file);
    root.finish();
    let result = if reader.is_good() {
        let mut config = Config {
            server: file.server,
            listeners: values(file.listeners),
            routes: Routes::new(routes.clone()),
            backends: values(file.backends),
            limits: file.limits,
            admin: file.admin,
            log: file.log,
            generation: 0,
            warnings: Warnings::default(),
            keys: reader.take_keys(),
        };
        config.warnings = warnings::find(&config, &reader.take_lines(), &routes, machine, name);
        Ok(config)
    } else {
        Err(reader.faults(name))
    };
    (result, reader.into_asked())
}

fn values<T>(placed: Vec<Placed<T>>) -> Vec<T> {
    placed.into_iter().map(|placed| placed.value).collect()
}

fn read_file(
    reader: &Reader<'_>,
    root: &mut Section<'_, '_>,
    machine: &Machine,
    overrides: &Overrides,
) -> File {
    let server = read_server(reader, root.section("server"), machine, overrides);
    let admin = read_admin(reader, root.section("admin"), machine);
    let log = read_log(reader, root.section("log"));
    let mut limits_section = root.section("limits");
    let (mut limits, common) = read_limits(reader, &mut limits_section, &server);
    let listeners = root.sections("listener");
    let listeners = listeners.into_iter().filter_map(|section| read_listener(reader, section));
    let listeners = listeners.collect();
    let routes = root.sections("route");
    let backends = root.named("backend");
    let assembling: Vec<&str> = backends
        .iter()
        .filter(|(_, section)| matches!(section.peek("kind"), Some("echo" | "local")))
        .map(|(name, _)| name.value.as_str())
        .collect();
    let mut assembled = 0;
    let mut read_route = |section| {
        let route = read_route(reader, section, &common, &assembling);
        // Who keeps up is sent what anybody may send.
        if let Some(backend) = &route.backend
            && assembling.contains(&backend.value.as_str())
        {
            assembled = assembled.max(route.policy.message_bytes_max);
        }
        route
    };
    let routes = routes.into_iter().map(&mut read_route).collect();
    limits.outbox_bytes_max = read_outbox_bytes_max(reader, limits_section, assembled);
    let backends = backends
        .into_iter()
        .map(|(name, section)| read_backend(reader, name, section, machine, &server, &limits))
        .collect();
    File { server, admin, log, limits, listeners, routes, backends }
}

fn read_server(
    reader: &Reader<'_>,
    mut section: Section<'_, '_>,
    machine: &Machine,
    overrides: &Overrides,
) -> Server {
    let shards = section.integer("shards", 1..=u64::from(SHARDS_MAX)).map(|shards| shards as u16);
    let shards = overrides.shards.or(shards).unwrap_or(machine.cpus).clamp(1, SHARDS_MAX);
    section.settle("shards", shards);
    let pin = section.boolean("pin", true);
    let drain_delay = section.milliseconds("drain_delay_ms", 0..=TIMEOUT_MS_MAX, Duration::ZERO);
    let drain_window =
        section.milliseconds("drain_window_ms", 0..=AGE_MS_MAX, Duration::from_secs(30));
    let drain_message = section.string("drain_message");
    let drain_message = drain_message.map(|message| message.value).unwrap_or_default();
    section.settle("drain_message", written(&drain_message));
    let stop_timeout =
        section.milliseconds("stop_timeout_ms", 0..=TIMEOUT_MS_MAX, Duration::from_secs(10));

    let most = machine.descriptors.min(u64::from(SLOTS_PER_SHARD_MAX));
    let slots_per_shard = section.integer("slots_per_shard", 2..=u64::from(SLOTS_PER_SHARD_MAX));
    if let Some(slots) = slots_per_shard
        && slots > most
    {
        let message = format!(
            "`slots_per_shard` is {slots}: this process may open {most} files, and the kernel \
             grants no larger table; raise the limit (LimitNOFILE= in the unit, `ulimit -Hn` in a \
             shell) or use more shards of at most {most} slots"
        );
        reader.fault(&section.place_of("slots_per_shard"), message);
    }
    let share = u64::from((SLOTS_DEFAULT_TOTAL / u32::from(shards)).max(1024));
    let slots_per_shard = slots_per_shard.unwrap_or(share.min(most)) as u32;
    section.settle("slots_per_shard", slots_per_shard);

    let receive_buffers = section.number("receive_buffers", 1..=16_384, 16) as u16;
    if !receive_buffers.is_power_of_two() {
        let (below, above) =
            (receive_buffers.next_power_of_two() / 2, receive_buffers.next_power_of_two());
        let message = format!(
            "`receive_buffers` is {receive_buffers}: a buffer ring has a power of two of entries; \
             choose {below} or {above}"
        );
        reader.fault(&section.place_of("receive_buffers"), message);
    }
    let receive_buffer_bytes =
        section.number("receive_buffer_bytes", 1024..=(16 << 20), 65_536) as u32;
    let incremental = section.word("incremental", &["auto", "off"]) == "auto";
    let half = (machine.memory_bytes / 2).clamp(MEMORY_BYTES_MIN, MEMORY_BYTES_MOST);
    let memory_bytes_max =
        section.number("memory_bytes_max", MEMORY_BYTES_MIN..=MEMORY_BYTES_MOST, half);
    section.finish();
    Server {
        shards,
        pin,
        drain_delay,
        drain_window,
        drain_message,
        stop_timeout,
        slots_per_shard,
        receive_buffers,
        receive_buffer_bytes,
        incremental,
        memory_bytes_max,
    }
}

/// All but `outbox_bytes_max`, which follows what the routes say.
fn read_limits(
    reader: &Reader<'_>,
    section: &mut Section<'_, '_>,
    server: &Server,
) -> (Limits, Common) {
    let default = Limits::default();
    let timeout = 1..=TIMEOUT_MS_MAX;
    let head_bytes_max = section.size("head_bytes_max", 1024..=(1 << 20), default.head_bytes_max);
    let headers_max = section.size("headers_max", 8..=(HEADERS_MAX as u64), default.headers_max);
    // A lower bound on heads alone lowers the target's with it.
    let target_default = default.target_bytes_max.min(head_bytes_max / 2);
    let target_bytes_max = section.size("target_bytes_max", 1..=(1 << 20) - 1, target_default);
    let handshake_timeout =
        section.milliseconds("handshake_timeout_ms", timeout.clone(), default.handshake_timeout);
    let connect_timeout =
        section.milliseconds("connect_timeout_ms", timeout.clone(), default.connect_timeout);
    let attempt_timeout =
        section.milliseconds("attempt_timeout_ms", timeout.clone(), default.attempt_timeout);
    let upgrade_timeout =
        section.milliseconds("upgrade_timeout_ms", timeout.clone(), default.upgrade_timeout);
    let keepalive_timeout =
        section.milliseconds("keepalive_timeout_ms", 1..=AGE_MS_MAX, default.keepalive_timeout);
    let body_bytes_per_second_min = section.number(
        "body_bytes_per_second_min",
        0..=(1 << 30),
        u64::from(default.body_bytes_per_second_min),
    ) as u32;
    let body_grace = section.milliseconds("body_grace_ms", 1..=AGE_MS_MAX, default.body_grace);
    let message_bytes_max = read_message_bytes_max(reader, section, default.message_bytes_max);
    let is_for_all = section.has("message_bytes_max");
    if !is_for_all {
        section.settle("message_bytes_max", format_args!("{message_bytes_max} (upstreams: 0)"));
    }
    let common = Policy { message_bytes_max, ..Policy::of(&default) };
    let assembled = read_common(reader, section, &common);
    let relayed = match is_for_all {
        true => assembled.clone(),
        false => Policy { message_bytes_max: 0, ..assembled.clone() },
    };
    let common = Common { assembled, relayed };
    let Policy {
        message_bytes_max,
        request_body_bytes_max,
        response_timeout,
        frame_bytes_max,
        ping_interval,
        ping_timeout,
        upstream_ping_interval,
        idle_timeout,
        duration_max,
        rates,
        connections_max: _, // Of a route; that of the process depends on its tables.
    } = common.assembled.clone();
    let outbox_age_max =
        section.milliseconds("outbox_age_max_ms", timeout.clone(), default.outbox_age_max);
    let close_timeout = section.milliseconds("close_timeout_ms", timeout, default.close_timeout);
    let lost_window = section.milliseconds("lost_window_ms", 0..=AGE_MS_MAX, default.lost_window);
    let retry_after_max =
        section.milliseconds("retry_after_max_ms", 0..=AGE_MS_MAX, default.retry_after_max);
    let early_bytes_max = section.size("early_bytes_max", 0..=(1 << 20), default.early_bytes_max);
    let sids_max = section.size("sids_max", 1..=(1 << 24), default.sids_max);
    let sid_idle = section.milliseconds("sid_idle_ms", 1..=AGE_MS_MAX, default.sid_idle);
    let connections = section
        .integer("connections_max", 1..=u64::from(SHARDS_MAX) * u64::from(SLOTS_PER_SHARD_MAX));
    let socket_bytes = 0..=(1_u64 << 30);
    let bytes = u64::from(default.send_buffer_bytes);
    let send_buffer_bytes = section.number("send_buffer_bytes", socket_bytes.clone(), bytes) as u32;
    let bytes = u64::from(default.receive_buffer_bytes);
    let receive_buffer_bytes = section.number("receive_buffer_bytes", socket_bytes, bytes) as u32;

    if target_bytes_max >= head_bytes_max {
        let message = format!(
            "`target_bytes_max` is {target_bytes_max}: the target is part of the head, and \
             `head_bytes_max` is {head_bytes_max}; lower the one or raise the other"
        );
        reader.fault(&section.place_of("target_bytes_max"), message);
    }
    if close_timeout > server.stop_timeout && section.has("close_timeout_ms") {
        let message = format!(
            "`close_timeout_ms` is {}: at a stop, `server.stop_timeout_ms` ({}) cuts connections \
             off before their Close has been answered; lower the one or raise the other",
            close_timeout.as_millis(),
            server.stop_timeout.as_millis()
        );
        reader.fault(&section.place_of("close_timeout_ms"), message);
    }
    let slots = u32::from(server.shards).saturating_mul(server.slots_per_shard);
    if let Some(connections) = connections
        && connections > u64::from(slots)
    {
        let message = format!(
            "`connections_max` is {connections}: the tables hold {slots} ({} shards of {} slots); \
             lower it, or raise `server.shards` or `server.slots_per_shard`",
            server.shards, server.slots_per_shard
        );
        reader.fault(&section.place_of("connections_max"), message);
    }
    let connections_max = connections.map_or(slots, |connections| connections as u32);
    section.settle("connections_max", connections_max);
    let limits = Limits {
        head_bytes_max,
        headers_max,
        target_bytes_max,
        handshake_timeout,
        connect_timeout,
        attempt_timeout,
        upgrade_timeout,
        response_timeout,
        keepalive_timeout,
        request_body_bytes_max,
        body_bytes_per_second_min,
        body_grace,
        message_bytes_max,
        frame_bytes_max,
        outbox_bytes_max: default.outbox_bytes_max,
        outbox_age_max,
        ping_interval,
        ping_timeout,
        upstream_ping_interval,
        idle_timeout,
        duration_max,
        close_timeout,
        lost_window,
        retry_after_max,
        early_bytes_max,
        sids_max,
        sid_idle,
        connections_max,
        send_buffer_bytes,
        receive_buffer_bytes,
        rates,
    };
    (limits, common)
}

/// What is left of `[limits]`. `assembled`: the largest message that a route assembles, in bytes.
fn read_outbox_bytes_max(
    reader: &Reader<'_>,
    mut section: Section<'_, '_>,
    assembled: usize,
) -> usize {
    // More has been reported.
    let assembled = assembled.min(MESSAGE_BYTES_MAX);
    let bytes = OUTBOX_BYTES_LEAST as u64..=OUTBOX_BYTES_MAX as u64;
    let outbox_bytes_max = section.size("outbox_bytes_max", bytes, outbox_bytes_default(assembled));
    let least = assembled + OUTBOX_SPARE_BYTES;
    if outbox_bytes_max < least {
        let message = format!(
            "`outbox_bytes_max` is {outbox_bytes_max}: a client could never be sent a message of \
             `message_bytes_max` ({assembled}) with its header and a control frame; set it \
             to at least {least}, or leave it out so that it follows"
        );
        reader.fault(&section.place_of("outbox_bytes_max"), message);
    }
    section.finish();
    outbox_bytes_max
}

fn read_listener(reader: &Reader<'_>, mut section: Section<'_, '_>) -> Option<Placed<Listener>> {
    let name = section.string("name");
    if let Some(name) = &name {
        check_name(reader, "name", name);
    }
    let address = section.required("address", "127.0.0.1:8080");
    let parsed = address.as_ref().and_then(|address| address.value.parse::<SocketAddr>().ok());
    if let Some(parsed) = parsed {
        section.settle("address", format_args!("\"{parsed}\""));
    }
    let access = read_access(reader, &mut section);
    section.finish();
    let address = address?;
    match address.value.parse::<SocketAddr>() {
        Ok(parsed) => {
            let mut listener = Listener { access, ..listener_at(parsed) };
            if let Some(name) = name {
                listener.name = name.value;
            }
            Some(Placed { value: listener, place: address.place })
        }
        Err(_) => {
            let message = format!(
                "`address` is \"{}\": not an address and a port; write it like \"127.0.0.1:8080\", \
                 \"0.0.0.0:443\" or \"[::]:8080\" (no names: which interface is meant must be plain)",
                address.value
            );
            reader.fault(&address.place, message);
            None
        }
    }
}

fn listener_at(address: SocketAddr) -> Listener {
    Listener { name: address.to_string(), address, access: Access::default() }
}

fn check_name(reader: &Reader<'_>, key: &str, name: &Placed<String>) {
    let text = &name.value;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(good) {
        let message = format!(
            "{key} \"{text}\": it goes into logs and metrics as it is; use 1 to {NAME_BYTES_MAX} \
             letters, digits, `-`, `_` or `.`"
        );
        reader.fault(&name.place, message);
    }
}

/// `assembling`: the backends that assemble messages.
fn read_route(
    reader: &Reader<'_>,
    mut section: Section<'_, '_>,
    common: &Common,
    assembling: &[&str],
) -> RouteEntry {
    let host = section.string("host");
    let path = section.string("path");
    let subprotocol = section.string("subprotocol");
    let backend = section.required("backend", "NAME");
    let origins = read_origins(reader, &mut section);
    let assembles = backend.as_ref().is_some_and(|it| assembling.contains(&it.value.as_str()));
    let policy = read_policy(reader, &mut section, common, assembles);
    let place = section.place().clone();
    section.finish();

    let host = match host {
        None => Some(HostPattern::Any),
        Some(text) => parsed(reader, "host", &text),
    };
    let path = match path {
        None => Some(PathPattern::Prefix(String::new())),
        Some(text) => parsed(reader, "path", &text),
    };
    if let Some(subprotocol) = &subprotocol {
        // A token (RFC 6455 §4.1, RFC 9110 §5.6.2): anything else no client can offer.
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if subprotocol.value.is_empty() || !subprotocol.value.bytes().all(token) {
            let message = format!(
                "`subprotocol` is \"{}\": no client can offer it, as it is not one token; name one \
                 subprotocol, like \"chat.v2\", and add a route for each further one",
                subprotocol.value
            );
            reader.fault(&subprotocol.place, message);
        }
    }
    let subprotocol = subprotocol.map(|subprotocol| subprotocol.value);
    RouteEntry { place, host, path, subprotocol, backend, origins, policy }
}

/// The pattern in `text`; `None` has been reported.
fn parsed<T: std::str::FromStr<Err = &'static str>>(
    reader: &Reader<'_>,
    key: &str,
    text: &Placed<String>,
) -> Option<T> {
    match text.value.parse() {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            reader.fault(&text.place, format!("`{key}` is \"{}\": {why}", text.value));
            None
        }
    }
}

/// A backend that could not be read stands in as an echo, so that routes still find its name; the
/// fault that was noted keeps it from ever being used.
fn read_backend(
    reader: &Reader<'_>,
    name: Placed<String>,
    mut section: Section<'_, '_>,
    machine: &Machine,
    server: &Server,
    limits: &Limits,
) -> Placed<Backend> {
    const KINDS: [&str; 4] = ["echo", "local", "websocket", "refuse"];
    check_name(reader, "backend", &name);
    let kind = section.required("kind", "websocket");
    let kind = match kind.as_ref().map(|kind| (kind.value.as_str(), kind)) {
        Some(("echo", _)) => {
            section.finish();
            BackendKind::Echo
        }
        Some(("local", _)) => BackendKind::Local(read_local(reader, section, limits)),
        Some(("websocket", _)) => read_websocket(reader, section, machine, server.shards)
            .map_or(BackendKind::Echo, BackendKind::Websocket),
        Some(("refuse", _)) => {
            section.set_scope("backend.refuse");
            let status = section.number("status", 400..=599, 404) as u16;
            section.finish();
            BackendKind::Refuse { status }
        }
        Some((other, kind)) => {
            reader.fault(&kind.place, not_one_of("kind", other, &KINDS));
            BackendKind::Echo
        }
        None => BackendKind::Echo,
    };
    Placed { value: Backend { name: name.value, kind, retired: false }, place: name.place }
}

/// What one client may ask of rooms when the file does not say. The burst is for a client that joins 512
/// rooms again, and asks each for what it missed.
const ROOM_REQUESTS: Rate = Rate::new(200, 1024);

fn read_local(reader: &Reader<'_>, mut section: Section<'_, '_>, limits: &Limits) -> Local {
    section.set_scope("backend.local");
    let default = RoomLimits::default();
    let demo_page = section.boolean("demo_page", false);
    let client_names = match section.word("client_names", &["refused", "trusted"]) {
        "trusted" => ClientNames::Trusted,
        _ => ClientNames::Refused,
    };
    let bytes = 1..=(1_u64 << 32);
    let count = 1..=10_000_000_u64;
    let name_bytes = 1..=NAME_BYTES_MOST as u64;
    let rooms = RoomLimits {
        room_name_bytes_max: section.size(
            "room_name_bytes_max",
            name_bytes.clone(),
            default.room_name_bytes_max,
        ),
        user_name_bytes_max: section.size(
            "user_name_bytes_max",
            name_bytes,
            default.user_name_bytes_max,
        ),
        rooms_per_client_max: section.size(
            "rooms_per_client_max",
            1..=65_535,
            default.rooms_per_client_max,
        ),
        rooms_max: section.size("rooms_max", count.clone(), default.rooms_max),
        rooms_made_per_client_max: section.size(
            "rooms_made_per_client_max",
            count.clone(),
            default.rooms_made_per_client_max,
        ),
        rooms_made_per_address_max: section.size(
            "rooms_made_per_address_max",
            count.clone(),
            default.rooms_made_per_address_max,
        ),
        history_messages_max: section.size(
            "history_messages_max",
            0..=1_000_000,
            default.history_messages_max,
        ),
        history_bytes_max: section.size(
            "history_bytes_max",
            0..=(1 << 32),
            default.history_bytes_max,
        ),
        history_bytes_per_shard_max: section.size(
            "history_bytes_per_shard_max",
            0..=(1 << 40),
            default.history_bytes_per_shard_max,
        ),
        history_age: section.milliseconds("history_age_ms", 1..=AGE_MS_MAX, default.history_age),
        recovery_messages_max: section.size(
            "recovery_messages_max",
            0..=1_000_000,
            default.recovery_messages_max,
        ),
        answer_bytes_max: section.size("answer_bytes_max", bytes, default.answer_bytes_max),
        presence_users_listed_max: section.size(
            "presence_users_listed_max",
            count,
            default.presence_users_listed_max,
        ),
        leave_grace: section.milliseconds(
            "leave_grace_ms",
            0..=TIMEOUT_MS_MAX,
            default.leave_grace,
        ),
        slow: read_slow(reader, &mut section, limits),
        // The shard fills in what `[limits]` says.
        ..default
    };
    if rooms.history_bytes_max > rooms.history_bytes_per_shard_max {
        let message = format!(
            "`history_bytes_max` is {}: one room would be allowed more than all rooms of a shard, \
             `history_bytes_per_shard_max` ({}); lower the one or raise the other",
            rooms.history_bytes_max, rooms.history_bytes_per_shard_max
        );
        let key = "history_bytes_max";
        let key = if section.has(key) { key } else { "history_bytes_per_shard_max" };
        reader.fault(&section.place_of(key), message);
    }
    let keys = ["room_requests_per_second", "room_requests_burst"];
    let requests = read_rate(reader, &mut section, keys, ROOM_REQUESTS, ROOM_REQUESTS.burst());
    section.finish();
    Local { demo_page, client_names, rooms, requests }
}

/// What becomes of members that do not keep up.
fn read_slow(reader: &Reader<'_>, section: &mut Section<'_, '_>, limits: &Limits) -> SlowLimits {
    let default = SlowLimits::default();
    let policy = match section.word("slow_policy", &["disconnect", "drop-oldest", "conflate"]) {
        "drop-oldest" => SlowPolicy::DropOldest,
        "conflate" => SlowPolicy::Conflate,
        _ => SlowPolicy::Disconnect,
    };
    // A lower bound on outboxes alone lowers this one with it.
    let bytes_default = default.outbox_bytes.min(limits.outbox_bytes_max);
    let outbox_bytes =
        section.size("slow_outbox_bytes", 1024..=OUTBOX_BYTES_MAX as u64, bytes_default);
    if outbox_bytes > limits.outbox_bytes_max {
        let message = format!(
            "`slow_outbox_bytes` is {outbox_bytes}: an outbox never holds more than \
             `limits.outbox_bytes_max` ({}), so `slow_policy` would never act; lower the one or \
             raise the other",
            limits.outbox_bytes_max
        );
        reader.fault(&section.place_of("slow_outbox_bytes"), message);
    }
    let age = section.milliseconds("slow_age_ms", 0..=AGE_MS_MAX, default.age);
    if policy == SlowPolicy::Disconnect && !age.is_zero() {
        let message = format!(
            "`slow_age_ms` is {}: under `slow_policy` \"disconnect\" no message is dropped; choose \
             \"drop-oldest\" or \"conflate\", or leave it out (`limits.outbox_age_max_ms` bounds \
             how long a client may take)",
            age.as_millis()
        );
        reader.fault(&section.place_of("slow_age_ms"), message);
    }
    SlowLimits { policy, outbox_bytes, age }
}

/// What no single table can tell: names that are used twice or not defined, and what is missing
/// altogether. Returns the routes with their backends.
fn agree(reader: &Reader<'_>, root: &Section<'_, '_>, file: &mut File) -> Vec<Route> {
    // TOML sorts tables by name; connections and metrics go by the order of the file.
    file.backends.sort_by_key(|backend| backend.place.start);
    let File { listeners, routes, backends, .. } = file;
    let top = 0..0;
    if listeners.is_empty() && !root.has_items("listener") {
        reader.echo(
            &top,
            "no listener: nobody could connect; add [[listener]] with address = \"127.0.0.1:8080\"",
        );
    }
    if !root.has_items("route") {
        reader.echo(
            &top,
            "no route: every request would be refused; add [[route]] with backend = \"NAME\"",
        );
    }
    if !root.has_items("backend") {
        reader.echo(
            &top,
            "no backend: nobody would answer; add [backend.NAME] with kind = \"websocket\"",
        );
    }
    for (what, count, max) in [
        ("listeners", listeners.len(), LISTENERS_MAX),
        ("routes", routes.len(), ROUTES_MAX),
        ("backends", backends.len(), BACKENDS_MAX),
    ] {
        if count > max {
            let message = format!("{count} {what}: at most {max} are supported; remove some");
            reader.fault(&top, message);
        }
    }

    for (index, listener) in listeners.iter().enumerate() {
        for earlier in &listeners[..index] {
            let (name, address) = (&listener.value.name, listener.value.address);
            // Port 0 is another port each time.
            if earlier.value.address == address && address.port() != 0 {
                let message = format!("address {address} is used twice: remove one of the two");
                reader.echo(&listener.place, message);
            } else if earlier.value.name == *name {
                let message =
                    format!("listener \"{name}\" is defined twice: give each another `name`");
                reader.echo(&listener.place, message);
            }
        }
    }
    for backend in &*backends {
        let BackendKind::Websocket(websocket) = &backend.value.kind else { continue };
        for upstream in &websocket.upstreams {
            let is_own = |listener: &Placed<Listener>| {
                upstream.address == UpstreamAddress::Tcp(listener.value.address)
            };
            if listeners.iter().any(is_own) {
                let message = format!(
                    "backend \"{}\" is {}: that is a listener of this gateway, so a client would \
                     go round in circles; point `url` at the server behind",
                    backend.value.name, upstream.address
                );
                reader.echo(&backend.place, message);
            }
        }
    }

    let names: Vec<&str> = backends.iter().map(|backend| backend.value.name.as_str()).collect();
    let mut checked: Vec<Route> = Vec::new();
    for entry in routes.drain(..) {
        let index = entry.backend.and_then(|wanted| find_backend(reader, &names, &wanted));
        let (Some(host), Some(path)) = (entry.host, entry.path) else { continue };
        let RouteEntry { subprotocol, origins, policy, .. } = entry;
        // 0 stands for a backend that was reported; such a route is never used.
        let backend = index.unwrap_or(0);
        let index = RouteIndex(0);
        let route = Route { index, host, path, subprotocol, backend, origins, policy };
        if checked.iter().any(|earlier| earlier.same_requests(&route)) {
            let message = format!(
                "a second route for {}{}{}: it could never be chosen; remove one of the two",
                route.host,
                route.path,
                route.subprotocol.iter().map(|name| format!(" with {name}")).collect::<String>()
            );
            reader.echo(&entry.place, message);
        }
        checked.push(route);
    }
    checked
}

/// The index of the backend that a route names; `None` has been reported.
fn find_backend(reader: &Reader<'_>, names: &[&str], wanted: &Placed<String>) -> Option<u16> {
    let name = &wanted.value;
    if let Some(index) = names.iter().position(|other| other == name) {
        // More backends than that have been reported.
        return u16::try_from(index).ok();
    }
    let remedy = match closest(name, names) {
        Some(closest) => format!("did you mean \"{closest}\"?"),
        None => format!("add [backend.{name}], or name one that is there"),
    };
    let message = format!("`backend` is \"{name}\": no such backend is defined; {remedy}");
    reader.echo(&wanted.place, message);
    None
}
