//! Faulty files with everything that must be said about them, and the documentation held to the
//! reader.

use std::collections::BTreeSet;
use std::io;

use super::check::check;
use super::*;
use crate::admin::token::Token;
use crate::checks::{CheckKind, CheckOptions, StatusSet};
use crate::rooms::{SlowLimits, SlowPolicy};
use crate::upstream::{Balance, GroupOptions, HashKey, Mode, UpstreamAddress, UpstreamSpec};

/// The annotated file, which is also the reference of all keys.
const DOCUMENTED: &str = include_str!("../../../docs/penstock.toml");

/// A file that is in order, for tests to add to.
const GOOD: &str = "\
[[listener]]
address = \"127.0.0.1:8080\"
[[route]]
backend = \"echo\"
[backend.echo]
kind = \"echo\"
";

pub(super) fn machine() -> Machine {
    fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match host {
            "backend.test" => Ok(vec![SocketAddr::from(([192, 0, 2, 7], port))]),
            "three.test" => Ok([9, 8, 9, 7].map(|it| ([192, 0, 2, it], port).into()).into()),
            "here.test" => Ok(vec![
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)),
                SocketAddr::from(([127, 0, 0, 1], port)),
            ]),
            _ => format!("{host}:{port}")
                .parse()
                .map(|address| vec![address])
                .map_err(|_| io::Error::new(io::ErrorKind::NotFound, "no such name")),
        }
    }
    fn read_token(path: &Path) -> Result<Token, String> {
        // It holds its own path.
        Token::parse(path.as_os_str().as_encoded_bytes())
    }
    let mode = |name: &str| Some(if name == "open" { 0o644 } else { 0o600 });
    Machine {
        cpus: 2,
        descriptors: 20_000,
        memory_bytes: 8 << 30,
        resolve,
        read_token,
        mode,
        credentials: None,
    }
}

fn read(text: &str) -> Result<Config, Faults> {
    check("f", text, &machine(), &Overrides::default()).0
}

#[track_caller]
pub(super) fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"))
}

/// `want`: each fault as `line:column: message`, the message up to where the test stops caring.
#[track_caller]
fn faulty(text: &str, want: &[&str]) {
    let faults = read(text).expect_err("faults");
    let got: Vec<String> = faults
        .list
        .iter()
        .map(|fault| format!("{}:{}: {}", fault.line, fault.column, fault.message))
        .collect();
    let same =
        got.len() == want.len() && got.iter().zip(want).all(|(got, want)| got.starts_with(want));
    assert!(same, "got\n{}\nwant\n{}", got.join("\n"), want.join("\n"));
}

/// Faults of what is written below [`GOOD`], whose lines do not count.
#[track_caller]
fn faulty_below(text: &str, want: &[&str]) {
    let text = format!("{GOOD}{text}");
    let above = GOOD.lines().count();
    let want: Vec<String> = want
        .iter()
        .map(|want| {
            let (line, rest) = want.split_once(':').expect("line:column: message");
            format!("{}:{rest}", line.parse::<usize>().expect("a line") + above)
        })
        .collect();
    faulty(&text, &want.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn an_empty_file_lacks_everything() {
    let nothing = ["1:1: no listener", "1:1: no route", "1:1: no backend"];
    faulty("", &nothing);
    faulty("listener = []\nroute = []\n[backend]\n", &nothing);
}

#[test]
fn unknown_keys_and_tables() {
    faulty_below(
        "[limits]\nhead_bytes = 5000\nxyzzy = 1\n[sever]\nshards = 1\n[backend.b]\nkind = \"echo\"\nurl = \"\"\n",
        &[
            "2:1: unknown key `head_bytes`: [limits] has no such key; it knows `head_bytes_max`",
            "3:1: unknown key `xyzzy`: [limits] has no such key; it knows `head_bytes_max`, `head",
            "4:2: unknown key `sever`: the file has no such key; did you mean `server`?",
            "8:1: unknown key `url`: [backend.b] has no such key; it knows `kind`",
        ],
    );
    faulty_below(
        "[limits]\nping_intervall_ms = 1\n",
        &[
            "2:1: unknown key `ping_intervall_ms`: [limits] has no such key; did you mean `ping_interval_ms`?",
        ],
    );
}

#[test]
fn wrong_types_and_ranges() {
    faulty_below(
        "[server]\npin = 1\nshards = \"two\"\nincremental = true\nstop_timeout_ms = -1\n\
         receive_buffer_bytes = 0x1_0000_0000_0000_0000_0000_0000_0000_0000_0000\n\
         [limits]\nheaders_max = 7\nhead_bytes_max = 1.5\nping_timeout_ms = 0\n",
        &[
            "2:7: `pin` is an integer: it must be true or false, without quotes",
            "3:10: `shards` is a string: it must be a whole number, without quotes or unit",
            "4:15: `incremental` is a boolean: it must be a string; put it in double quotes",
            "5:19: `stop_timeout_ms` is -1: out of range; choose a number from 0 to 600000",
            "6:24: `receive_buffer_bytes` is 0x100",
            "8:15: `headers_max` is 7: out of range; choose a number from 8 to 128",
            "9:18: `head_bytes_max` is a float: it must be a whole number",
            "10:19: `ping_timeout_ms` is 0: out of range; choose a number from 1 to 600000",
        ],
    );
    faulty(
        "listener = 1\nroute = [1]\n[backend]\na = 1\n",
        &[
            "1:12: `listener` is an integer: it must be a list of tables; write it as [[listener]]",
            "2:10: `route` is an integer: it must be a table; write it as [[route]]",
            "4:5: `a` is an integer: it must be a table; write [backend.a]",
        ],
    );
}

#[test]
fn columns_count_characters() {
    let text = "route = [{ path = \"/ü\", backend = \"echo\", port = 1 }]\n\
                listener = [{ address = \"[::]:1\" }]\n[backend.echo]\nkind = \"echo\"\n";
    faulty(
        text,
        &[
            "1:19: `path` is \"/ü\": a path on the wire has no spaces and is ASCII",
            "1:43: unknown key `port`: [[route]] has no such key; it knows `host`, `path`, `subp",
        ],
    );
}

#[test]
fn what_is_not_toml() {
    faulty(
        "[server]\nshards = \npin = flase\n[limits]\nheadersmax = 1\nheaders_max = 8\nheaders_max = 9\n",
        &[
            "2:10: not TOML: ",
            "3:7: not TOML: ",
            "5:1: unknown key `headersmax`: [limits] has no such key; did you mean `headers_max`?",
            "7:1: not TOML: duplicate key",
        ],
    );
}

#[test]
fn listeners() {
    faulty_below(
        "[[listener]]\naddress = \"localhost:80\"\n[[listener]]\nname = \"a b\"\n\
         [[listener]]\naddress = \"127.0.0.1:8080\"\n\
         [[listener]]\nname = \"x\"\naddress = \"[::1]:1\"\n\
         [[listener]]\nname = \"x\"\naddress = \"[::1]:2\"\n\
         [[listener]]\naddress = \"[::1]:0\"\n[[listener]]\naddress = \"[::1]:0\"\n",
        &[
            "2:11: `address` is \"localhost:80\": not an address and a port; write it like",
            "3:1: `address` is missing: [[listener]] needs it; add address = \"127.0.0.1:8080\"",
            "4:8: name \"a b\": it goes into logs and metrics as it is",
            "6:11: address 127.0.0.1:8080 is used twice",
            "12:11: listener \"x\" is defined twice: give each another `name`",
            "16:11: listener \"[::1]:0\" is defined twice",
        ],
    );
}

#[test]
fn who_may_come_in() {
    let config = good(
        "[[listener]]\naddress = \"[::]:1\"\nproxy_protocol = \"required\"\n\
         trusted_proxies = [\"10.0.0.0/8\", \"::1\"]\nallow = [\"0.0.0.0/0\"]\n\
         deny = [\"192.0.2.0/24\"]\n[[listener]]\naddress = \"[::]:2\"\n\
         [[route]]\nbackend = \"e\"\norigins = [\"https://*.a.example\", \"null\"]\n\
         origin_required = true\n[backend.e]\nkind = \"echo\"\n",
    );
    let access = &config.listeners[0].access;
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    assert!(access.proxy_protocol && access.trusted_proxies.contains(ip("::1")));
    assert!(access.admits(ip("1.2.3.4")) && !access.admits(ip("192.0.2.1")));
    assert!(!access.admits(ip("2001:db8::1")));
    assert_eq!(config.listeners[1].access, crate::client_address::Access::default());
    let origins = &config.routes.iter().next().expect("a route").origins;
    assert!(origins.required);
    let shown = origins.allowed.iter().flatten().map(|it| it.to_string()).collect::<Vec<_>>();
    assert_eq!(shown, ["https://*.a.example", "null"]);
}

#[test]
fn who_may_come_in_and_cannot_be_read() {
    faulty_below(
        "[[listener]]\naddress = \"[::]:1\"\nproxy_protocol = \"optional\"\n\
         trusted_proxies = \"10.0.0.0/8\"\nallow = []\ndeny = [\"10.0.0.1/8\", \"a\", 1]\n\
         [[listener]]\naddress = \"[::]:2\"\nallow = [\"10.0.0.0/33\"]\n\
         [[route]]\npath = \"/a\"\nbackend = \"echo\"\norigins = []\norigin_required = 1\n\
         [[route]]\npath = \"/b\"\nbackend = \"echo\"\norigins = [\"*\", \"a.example\"]\n",
        &[
            "3:18: `proxy_protocol` is \"optional\": not known; choose one of `off`, `required`",
            "4:19: `trusted_proxies` is a string: it must be a list of strings; write [",
            "5:9: `allow` is empty: nobody could connect",
            "6:9: `deny` has \"10.0.0.1/8\": the address has bits set behind the prefix",
            "6:23: `deny` has \"a\": not an address or a range; write it like",
            "6:28: `deny` is an integer: it must be a list of strings; put each in double quotes",
            "9:10: `allow` has \"10.0.0.0/33\": the number behind `/` says how many",
            "13:11: `origins` is empty: no page could connect",
            "14:19: `origin_required` is an integer: it must be true or false",
            "18:12: `origins` has \"*\": any origin is what leaving `origins` out means",
            "18:17: `origins` has \"a.example\": not an origin",
        ],
    );
    let many: Vec<String> = (0..=65_536)
        .map(|n: u32| format!("\"10.{}.{}.{}\"", n >> 16, n >> 8 & 255, n & 255))
        .collect();
    let list = |count: usize| {
        format!("[[listener]]\naddress = \"[::]:1\"\ndeny = [{}]\n", many[..count].join(","))
    };
    good(&format!("{GOOD}{}", list(65_536)));
    faulty_below(&list(65_537), &["3:8: `deny` has 65537 entries: at most 65536 are supported"]);
}

#[test]
fn routes() {
    faulty_below(
        "[[route]]\nbackend = \"ehco\"\nhost = \"a.example:80\"\n\
         [[route]]\npath = \"/a/*/b\"\nbackend = \"nowhere\"\nsubprotocol = \"a, b\"\n\
         [[route]]\npath = \"/*\"\nbackend = \"echo\"\n\
         [[route]]\nhost = \"*.X.example\"\nbackend = \"far\"\n\
         [[route]]\nhost = \"*.x.Example.\"\nbackend = \"echo\"\n\
         [[route]]\nhost = \"a.*.example\"\npath = \"chat\"\n",
        &[
            "2:11: `backend` is \"ehco\": no such backend is defined; did you mean \"echo\"?",
            "3:8: `host` is \"a.example:80\": a route's host has no port",
            "5:8: `path` is \"/a/*/b\": a `*` may only be the last segment",
            "6:11: `backend` is \"nowhere\": no such backend is defined; add [backend.nowhere]",
            "7:15: `subprotocol` is \"a, b\": no client can offer it",
            "8:1: a second route for any host/*: it could never be chosen",
            "13:11: `backend` is \"far\": no such backend is defined; add [backend.far]",
            "14:1: a second route for *.x.example/*",
            "17:1: `backend` is missing: [[route]] needs it",
            "18:8: `host` is \"a.*.example\": a `*` may only stand for whole labels in front",
            "19:8: `path` is \"chat\": a path begins with `/`",
        ],
    );
}

#[test]
fn backends() {
    faulty_below(
        "[backend.a]\nkind = \"websockt\"\n[backend.b]\n[backend.c]\nkind = \"websocket\"\n\
         [backend.\"d e\"]\nkind = \"echo\"\n\
         [backend.f]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:8080\"\nhost = \"keep\"\npath = \"/*\"\n\
         [backend.g]\nkind = \"local\"\nhistory_bytes_max = 300_000_000\n",
        &[
            "2:8: `kind` is \"websockt\": not known; did you mean \"websocket\"?",
            "3:1: `kind` is missing: [backend.b] needs it",
            "4:1: `url` is missing: a websocket backend needs it, or a list of [[backend.NAME.upstream]]; add url = \"ws://127.0.0.1:3000\"",
            "6:10: backend \"d e\": it goes into logs",
            "8:10: backend \"f\" is 127.0.0.1:8080: that is a listener of this gateway",
            "11:8: `host` is \"keep\": not known; choose one of `preserve`, `upstream`",
            "12:8: `path` is \"/*\": it replaces the client's path and cannot hold a `*`",
            "15:21: `history_bytes_max` is 300000000: one room would be allowed more than all",
        ],
    );
    faulty_below(
        "[backend.a]\nkind = \"local\"\nslow_policy = \"drop-newest\"\nslow_outbox_bytes = 1023\n\
         slow_age_ms = 86_400_001\n\
         [backend.b]\nkind = \"local\"\nslow_age_ms = 1000\nslow_outbox_bytes = 2_000_001\n\
         [limits]\noutbox_bytes_max = 2_000_000\n",
        &[
            "3:15: `slow_policy` is \"drop-newest\": not known; did you mean \"drop-oldest\"?",
            "4:21: `slow_outbox_bytes` is 1023: out of range; choose a number from 1024 to",
            "5:15: `slow_age_ms` is 86400001: out of range; choose a number from 0 to 86400000",
            "8:15: `slow_age_ms` is 1000: under `slow_policy` \"disconnect\" no message is dropped",
            "9:21: `slow_outbox_bytes` is 2000001: an outbox never holds more than \
             `limits.outbox_bytes_max` (2000000)",
        ],
    );
    for (url, why) in [
        ("127.0.0.1:3000", "not a URL"),
        ("wss://a:1", "TLS to an upstream is not supported"),
        ("https://127.0.0.1:1", "TLS to an upstream is not supported"),
        ("ftp://a:1", "a URL of another scheme"),
        ("ws://127.0.0.1:1/", "a lone `/`"),
        ("ws://127.0.0.1:1/a?b=c", "the query is always the client's"),
        ("ws://u@127.0.0.1:1", "credentials in a URL are not sent"),
        ("ws://127.0.0.1:0", "the port is a number from 1 to 65535"),
        ("ws://127.0.0.1:x", "the port is a number from 1 to 65535"),
        ("ws://::1:80", "the host is a name"),
        ("ws://", "the host is a name"),
        ("ws://nowhere.test:1", "`nowhere.test` does not resolve (no such name)"),
    ] {
        faulty_below(
            &format!("[backend.a]\nkind = \"websocket\"\nurl = \"{url}\"\n"),
            &[&format!("3:7: `url` is \"{url}\": {why}")],
        );
    }
}

#[test]
fn slow_members() {
    let slow = |text: &str| {
        let text = format!("{GOOD}[backend.rooms]\nkind = \"local\"\n{text}");
        match &good(&text).backends[1].kind {
            BackendKind::Local(local) => local.rooms.slow,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(slow(""), SlowLimits::default());
    assert_eq!(slow("slow_policy = \"disconnect\"\nslow_age_ms = 0\n"), SlowLimits::default());
    assert_eq!(
        slow("slow_policy = \"drop-oldest\"\nslow_outbox_bytes = 1024\nslow_age_ms = 20\n"),
        SlowLimits {
            policy: SlowPolicy::DropOldest,
            outbox_bytes: 1024,
            age: Duration::from_millis(20),
        }
    );
    // Where outboxes are smaller than the default, it follows them.
    let small =
        "slow_policy = \"conflate\"\n[limits]\noutbox_bytes_max = 3024\nmessage_bytes_max = 2000\n";
    let want = SlowLimits { policy: SlowPolicy::Conflate, outbox_bytes: 3024, age: Duration::ZERO };
    assert_eq!(slow(small), want);
}

#[test]
fn limits_that_contradict_one_another() {
    faulty_below(
        "[server]\nslots_per_shard = 20_001\nreceive_buffers = 12\nstop_timeout_ms = 1000\n\
         [limits]\nhead_bytes_max = 2000\ntarget_bytes_max = 2000\n\
         message_bytes_max = 4_000_000\noutbox_bytes_max = 4_001_023\nclose_timeout_ms = 1001\n\
         connections_max = 40_003\n",
        &[
            "2:19: `slots_per_shard` is 20001: this process may open 20000 files",
            "3:19: `receive_buffers` is 12: a buffer ring has a power of two of entries; choose 8 or 16",
            "7:20: `target_bytes_max` is 2000: the target is part of the head",
            "9:20: `outbox_bytes_max` is 4001023: a client could never be sent a message of \
             `message_bytes_max` (4000000) with its header and a control frame; set it to at least \
             4001024, or leave it out so that it follows",
            "10:20: `close_timeout_ms` is 1001: at a stop, `server.stop_timeout_ms` (1000) cuts",
            "11:19: `connections_max` is 40003: the tables hold 40002 (2 shards of 20001 slots)",
        ],
    );
}

/// Of each route, by its path: the largest message, the largest body, the time for an
/// answer in milliseconds; with these limits and these routes.
fn bounds(limits: &str, routes: &str) -> Vec<(String, usize, u64, u128)> {
    let config = good(&format!(
        "{GOOD}[limits]\n{limits}[[route]]\npath = \"/app\"\nbackend = \"app\"\n{routes}\
         [backend.app]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:1\"\n"
    ));
    let of = |route: &crate::route::Route| {
        let policy = &route.policy;
        let timeout_ms = policy.response_timeout.as_millis();
        let sizes = (policy.message_bytes_max, policy.request_body_bytes_max);
        (route.path.to_string(), sizes.0, sizes.1, timeout_ms)
    };
    config.routes.iter().map(of).collect()
}

#[test]
fn a_relay_has_the_bounds_that_are_written() {
    let is = |limits: &str, routes: &str, want: &[(&str, usize, u64, u128)]| {
        let got = bounds(limits, routes);
        let got: Vec<_> = got.iter().map(|(path, a, b, c)| (path.as_str(), *a, *b, *c)).collect();
        assert_eq!(got, want, "{limits}{routes}");
    };
    is("", "", &[("/app", 0, 0, 60_000), ("/*", 1 << 20, 0, 60_000)]);
    is(
        "message_bytes_max = 2000\nrequest_body_bytes_max = 10\nresponse_timeout_ms = 5\n",
        "",
        &[("/app", 2000, 10, 5), ("/*", 2000, 10, 5)],
    );
    // What is written as the default is meant for all.
    is(
        "message_bytes_max = 1_048_576\n",
        "",
        &[("/app", 1 << 20, 0, 60_000), ("/*", 1 << 20, 0, 60_000)],
    );
    let routes = "message_bytes_max = 0\nrequest_body_bytes_max = 0\nresponse_timeout_ms = 9\n\
                  [[route]]\npath = \"/more\"\nbackend = \"app\"\n\
                  message_bytes_max = 18_446_744_073_709_551_615\n\
                  request_body_bytes_max = 18_446_744_073_709_551_615\n\
                  [[route]]\npath = \"/less\"\nbackend = \"app\"\nmessage_bytes_max = 125\n\
                  request_body_bytes_max = 1\n\
                  [[route]]\npath = \"/echo\"\nbackend = \"echo\"\nmessage_bytes_max = 67_108_864\n";
    is(
        "message_bytes_max = 1000\nrequest_body_bytes_max = 20\n",
        routes,
        &[
            ("/app", 0, 0, 9),
            ("/echo", 64 << 20, 20, 60_000),
            ("/less", 125, 1, 60_000),
            ("/more", usize::MAX, u64::MAX, 60_000),
            ("/*", 1000, 20, 60_000),
        ],
    );
}

#[test]
fn what_is_assembled_has_a_bound() {
    const CLOSING: &str =
        "this route leads to a backend that assembles each message, which takes a bound";
    let inherited = |bytes: &str| {
        format!(
            "3:1: `message_bytes_max` is {bytes} in [limits]: {CLOSING}; give it one of its own of \
             125 to 67108864"
        )
    };
    for bytes in ["0", "67108865"] {
        faulty(&format!("{GOOD}[limits]\nmessage_bytes_max = {bytes}\n"), &[&inherited(bytes)]);
        faulty_below(
            &format!("[[route]]\npath = \"/a\"\nbackend = \"echo\"\nmessage_bytes_max = {bytes}\n"),
            &[&format!("4:21: `message_bytes_max` is {bytes}: {CLOSING}; choose 125 to 67108864")],
        );
    }
    faulty_below(
        "[limits]\nmessage_bytes_max = 124\n",
        &[
            "2:21: `message_bytes_max` is 124: control frames carry up to 125 bytes and always have to pass",
        ],
    );
    // Outboxes follow the largest that is assembled, and no other.
    let outbox = |limits: &str, bytes: u64| {
        good(&format!(
            "{GOOD}[limits]\n{limits}[[route]]\npath = \"/app\"\nbackend = \"app\"\n\
             message_bytes_max = 99_999_999\n[backend.app]\nkind = \"websocket\"\n\
             url = \"ws://127.0.0.1:1\"\n[[route]]\npath = \"/large\"\nbackend = \"echo\"\n\
             message_bytes_max = {bytes}\n"
        ))
        .limits
        .outbox_bytes_max
    };
    assert_eq!(outbox("", 3_000_000), 3_001_024);
    assert_eq!(outbox("outbox_bytes_max = 3_001_025\n", 3_000_000), 3_001_025);
    faulty_below(
        "[limits]\noutbox_bytes_max = 3_001_023\n[[route]]\npath = \"/a\"\nbackend = \"echo\"\n\
         message_bytes_max = 3_000_000\n",
        &["2:20: `outbox_bytes_max` is 3001023: a client could never be sent a message of \
           `message_bytes_max` (3000000)"],
    );
}

#[test]
fn at_the_bounds_all_is_well() {
    let config = good(&format!(
        "{GOOD}[server]\nslots_per_shard = 20_000\nstop_timeout_ms = 1000\n\
         [limits]\nhead_bytes_max = 2000\ntarget_bytes_max = 1999\n\
         message_bytes_max = 67_108_864\noutbox_bytes_max = 67_109_888\nclose_timeout_ms = 1000\n\
         connections_max = 40_000\nping_interval_ms = 0\n"
    ));
    assert_eq!(config.limits.outbox_bytes_max, 67_109_888);
    assert!(config.limits.ping_interval.is_zero());
}

#[test]
fn defaults_follow_the_machine_and_one_another() {
    let config = good(GOOD);
    assert_eq!((config.server.shards, config.server.slots_per_shard), (2, 20_000));
    assert_eq!(config.limits.connections_max, 40_000);
    assert_eq!(config.listeners[0].name, "127.0.0.1:8080");
    let same = Limits { connections_max: 40_000, ..Limits::default() };
    assert_eq!(config.limits, same);

    let config =
        good(&format!("{GOOD}[limits]\nmessage_bytes_max = 2_000_000\nhead_bytes_max = 1024\n"));
    assert_eq!(config.limits.outbox_bytes_max, 2_001_024);
    assert_eq!(config.limits.target_bytes_max, 512);

    let large = Machine { cpus: 64, descriptors: 1 << 30, ..machine() };
    let config = check("f", GOOD, &large, &Overrides::default()).0.expect("in order");
    assert_eq!((config.server.shards, config.server.slots_per_shard), (64, 32_768));
}

#[test]
fn upstreams() {
    let config = good(
        "[[listener]]\naddress = \"[::1]:0\"\n[[route]]\nbackend = \"z\"\n\
         [[route]]\npath = \"/a\"\nbackend = \"a\"\n\
         [backend.z]\nkind = \"websocket\"\nurl = \"WS://backend.test\"\nhost = \"upstream\"\n\
         [backend.a]\nkind = \"websocket\"\nurl = \"ws://[::1]:81\"\npath = \"/socket\"\n",
    );
    let upstream = |address: &str, url: &str, preserve_host, path: Option<&str>| {
        BackendKind::Websocket(Websocket {
            upstreams: vec![spec(url, address)],
            options: GroupOptions::default(),
            preserve_host,
            http: true,
            source_addresses: Vec::new(),
            resolve_interval: std::time::Duration::from_secs(30),
            check: None,
            path: path.map(str::to_owned),
            drained_clients: Clients::Stay,
            down_clients: Clients::Stay,
        })
    };
    // In the order of the file, which is not that of the alphabet.
    assert_eq!(config.backends[0].name, "z");
    assert_eq!(config.backends[0].kind, upstream("192.0.2.7:80", "ws://backend.test", false, None));
    assert_eq!(
        config.backends[1].kind,
        upstream("[::1]:81", "ws://[::1]:81", true, Some("/socket"))
    );
    let route = config.routes.find("any", "/a?b", [].into_iter()).expect("a route");
    assert_eq!(config.backend(route).name, "a");
}

fn spec(url: &str, address: &str) -> UpstreamSpec {
    UpstreamSpec {
        url: url.parse().expect("a URL"),
        address: UpstreamAddress::Tcp(address.parse().expect("an address")),
        other: None,
        weight: 1,
        connections_max: 0,
        mode: Mode::Active,
    }
}

#[test]
fn each_address_of_a_name_is_an_upstream() {
    let config = good(&format!(
        "{GOOD}[backend.g]\nkind = \"websocket\"\nresolve_interval_ms = 100\n\
         [[backend.g.upstream]]\nurl = \"ws://three.test:1\"\nweight = 3\nconnections_max = 5\n\
         [[backend.g.upstream]]\nurl = \"ws://here.test\"\n\
         [[backend.g.upstream]]\nurl = \"ws://10.0.0.1\"\n\
         [backend.h]\nkind = \"websocket\"\nurl = \"ws://three.test\"\n"
    ));
    let group = |name: &str| {
        let backend = config.backends.iter().find(|backend| backend.name == name);
        match &backend.expect("it is there").kind {
            BackendKind::Websocket(group) => group.clone(),
            kind => panic!("{kind:?}"),
        }
    };
    let g = group("g");
    let tcp = |text: &str| UpstreamAddress::Tcp(text.parse().expect("an address"));
    let three = |address: &str| UpstreamSpec {
        weight: 3,
        connections_max: 5,
        ..spec("ws://three.test:1", address)
    };
    let here =
        UpstreamSpec { other: Some(tcp("[::1]:80")), ..spec("ws://here.test", "127.0.0.1:80") };
    let last = spec("ws://10.0.0.1", "10.0.0.1:80");
    let one = three("192.0.2.7:1");
    let want =
        [one.clone(), three("192.0.2.8:1"), three("192.0.2.9:1"), here.clone(), last.clone()];
    assert_eq!(g.upstreams, want);
    assert_eq!(group("h").upstreams.len(), 3);
    assert_eq!(group("h").resolve_interval.as_secs(), 30);
    // The same names, as they mean something else later.
    assert!(g.has_names());
    assert_eq!(g.resolved_again(machine().resolve), Ok(want.to_vec()));
    fn moved(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match host {
            "three.test" => Ok(vec![([192, 0, 2, 7], port).into()]),
            _ => (machine().resolve)(host, port),
        }
    }
    assert_eq!(g.resolved_again(moved), Ok(vec![one, here, last]));
    fn gone(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::ErrorKind::NotFound.into())
    }
    let why = g.resolved_again(gone).expect_err("no such name");
    assert!(why.starts_with("`three.test` does not resolve"), "{why}");
    fn many(_: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((0..2000_u32).map(|it| (it.to_be_bytes(), port).into()).collect())
    }
    let why = g.resolved_again(many).expect_err("too many");
    assert!(why.contains("at most 1024"), "{why}");
    faulty(
        &format!(
            "{GOOD}[backend.g]\nkind = \"websocket\"\nurl = \"ws://a.b:1\"\nresolve_interval_ms = 99\n"
        ),
        &[
            "9:7: `url` is \"ws://a.b:1\": `a.b` does not resolve",
            "10:23: `resolve_interval_ms` is 99: a resolver is not asked more often",
        ],
    );
}

#[test]
fn groups() {
    let config = good(&format!(
        "{GOOD}[backend.g]\nkind = \"websocket\"\nbalance = \"hash\"\nhash_key = \"cookie:user\"\n\
         hash_load_percent = 0\nslow_start_ms = 1000\npanic_percent = 0\neject_failures = 1\n\
         sticky_cookie = true\nsticky_cookie_name = \"at\"\nsticky_cookie_secret = \"s\"\n\
         [[backend.g.upstream]]\nurl = \"ws://127.0.0.1:1\"\nweight = 3\nconnections_max = 5\n\
         [[backend.g.upstream]]\nurl = \"unix:/run/app.sock\"\nmode = \"draining\"\n"
    ));
    let group = config.backends.iter().find(|backend| backend.name == "g").expect("it is there");
    let BackendKind::Websocket(group) = &group.kind else { panic!("{group:?}") };
    let first =
        UpstreamSpec { weight: 3, connections_max: 5, ..spec("ws://127.0.0.1:1", "127.0.0.1:1") };
    assert_eq!(group.upstreams[0], first);
    assert_eq!(group.upstreams[1].address, UpstreamAddress::Unix("/run/app.sock".into()));
    assert_eq!(group.upstreams[1].mode, Mode::Draining);
    let key = HashKey::Cookie("user".to_owned());
    assert_eq!(group.options.balance, Balance::Hash { key, load_factor_percent: None });
    assert_eq!(group.options.slow_start, Duration::from_secs(1));
    assert_eq!((group.options.panic_percent, group.options.health.eject_failures), (0, 1));
    let cookie = group.options.cookie.as_ref().expect("it was asked for");
    assert_eq!((cookie.name.as_str(), &cookie.secret[..]), ("at", &b"s"[..]));
}

#[test]
fn faulty_groups() {
    let group = |lines: &str| format!("[backend.g]\nkind = \"websocket\"\n{lines}");
    let list = "[[backend.g.upstream]]\nurl = \"ws://127.0.0.1:1\"\n";
    for (lines, fault) in [
        (format!("balance = \"ip-hash\"\n{list}"), "3:11: `balance` is \"ip-hash\": not known"),
        (
            format!("hash_key = \"header\"\n{list}"),
            "3:12: `hash_key` is \"header\": write \"client-ip\", \"sid\", \"header:NAME\"",
        ),
        (
            format!("hash_load_percent = 50\n{list}"),
            "3:21: `hash_load_percent` is 50: an upstream has to take its even share",
        ),
        (
            format!("eject_ms = 10\neject_max_ms = 5\n{list}"),
            "4:16: `eject_max_ms` is less than `eject_ms`",
        ),
        (
            format!("sticky_cookie_name = \"a b\"\n{list}"),
            "3:22: `sticky_cookie_name` is \"a b\": a cookie's name",
        ),
        (format!("url = \"ws://127.0.0.1:1\"\n{list}"), "3:7: `url` beside [[upstream]]"),
        (format!("{list}weight = 0\n"), "5:10: `weight` is 0"),
        (format!("{list}mode = \"off\"\n"), "5:8: `mode` is \"off\": not known"),
        (
            format!("{list}connections_max = 1\n"),
            "5:19: `connections_max` is 1: each of the 2 shards needs one at least",
        ),
        (format!("{list}{list}"), "1:1: ws://127.0.0.1:1 is listed twice"),
    ] {
        faulty_below(&group(&lines), &[fault]);
    }
}

#[test]
fn checks() {
    let check = |lines: &str| {
        let config = good(&format!(
            "{GOOD}[backend.g]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:1\"\n{lines}"
        ));
        match config.backends.into_iter().find(|backend| backend.name == "g").map(|it| it.kind) {
            Some(BackendKind::Websocket(group)) => (group.check, group.options.health),
            other => panic!("{other:?}"),
        }
    };
    let ms = Duration::from_millis;
    let default = |kind| {
        let (path, host, interval, timeout) = (None, None, ms(5000), ms(2000));
        Some(CheckOptions { kind, path, host, interval, timeout })
    };
    let expected = StatusSet::default();
    assert_eq!(check("").0, None);
    assert_eq!(check("check = \"off\"\ncheck_path = \"/\"\n").0, None);
    assert_eq!(check("check = \"connect\"\n").0, default(CheckKind::Connect));
    assert_eq!(check("check = \"websocket\"\n").0, default(CheckKind::Websocket));
    let (options, health) = check("check = \"http\"\n");
    assert_eq!((options, health.rise, health.fall), (default(CheckKind::Http { expected }), 2, 3));

    let (options, health) = check(
        "check = \"http\"\ncheck_path = \"/up?x=1\"\ncheck_host = \"a.test:81\"\n\
         check_status = \"204, 301-308\"\ncheck_interval_ms = 10\ncheck_timeout_ms = 10\n\
         check_rise = 1000\ncheck_fall = 1\n",
    );
    let want = CheckOptions {
        kind: CheckKind::Http { expected: "204,301-308".parse().expect("a set") },
        path: Some("/up?x=1".to_owned()),
        host: Some("a.test:81".to_owned()),
        interval: ms(10),
        timeout: ms(10),
    };
    assert_eq!((options, health.rise, health.fall), (Some(want), 1000, 1));
    // The default of the timeout follows a short interval.
    let (options, _) = check("check = \"connect\"\ncheck_interval_ms = 1000\n");
    assert_eq!(options.map(|it| it.timeout), Some(ms(1000)));
}

#[test]
fn faulty_checks() {
    for (lines, fault) in [
        ("check = \"htp\"", "4:9: `check` is \"htp\": not known; did you mean \"http\"?"),
        ("check = true", "4:9: `check` is a boolean: it must be a string"),
        ("check_path = \"up\"", "4:14: `check_path` is \"up\": a path begins with `/`; write"),
        ("check_path = \"/a b\"", "4:14: `check_path` is \"/a b\": a path on the wire"),
        ("check_host = \"a/b\"", "4:14: `check_host` is \"a/b\": it is a name or an address"),
        ("check_status = 200", "4:16: `check_status` is an integer: it must be a string"),
        ("check_status = \"2xx\"", "4:16: `check_status` is \"2xx\": a status is a number from"),
        ("check_status = \"399-200\"", "4:16: `check_status` is \"399-200\": a range begins"),
        ("check_interval_ms = 9", "4:21: `check_interval_ms` is 9: out of range; choose"),
        ("check_timeout_ms = 0", "4:20: `check_timeout_ms` is 0: out of range; choose a number"),
        (
            "check_timeout_ms = 5001",
            "4:20: `check_timeout_ms` is 5001: the next check begins after 5000",
        ),
        (
            "check_interval_ms = 50\ncheck_timeout_ms = 51",
            "5:20: `check_timeout_ms` is 51: the next check begins after 50 (`check_interval_ms`)",
        ),
        ("check_rise = 0", "4:14: `check_rise` is 0: out of range; choose a number from 1 to 1000"),
        ("check_fall = 1001", "4:14: `check_fall` is 1001: out of range"),
        ("check_intervall_ms = 1", "4:1: unknown key `check_intervall_ms`: [backend.g] has"),
    ] {
        let text =
            format!("[backend.g]\nkind = \"websocket\"\nurl = \"ws://127.0.0.1:1\"\n{lines}\n");
        faulty_below(&text, &[fault]);
    }
}

#[test]
fn rates() {
    use crate::rate::{Action, Rate, Rates};
    let config = good(&format!(
        "{GOOD}[limits]\nmessages_per_second = 10\nbytes_per_second = 1000\n\
         address_handshakes_per_second = 5\naddress_handshakes_burst = 7\n\
         address_connections_max = 9\nmessage_bytes_max = 5000\n\
         [[route]]\npath = \"/own\"\nbackend = \"echo\"\nmessages_per_second = 20\n\
         bytes_burst = 3000\nmessage_bytes_max = 4000\naddress_handshakes_per_second = 0\n\
         control_frames_per_second = 3\nrate_action = \"throttle\"\nconnections_max = 4\n\
         address_bytes_per_second = 10\n"
    ));
    let find = |path| config.routes.find("h", path, [].into_iter()).expect("a route");
    let common = &find("/").policy;
    assert_eq!(common.rates, config.limits.rates);
    assert_eq!(common.connections_max, 0);
    let Rates { connection, address, address_handshakes, address_connections_max, action } =
        common.rates;
    assert_eq!(connection.messages, Rate::new(10, 20));
    // A message of the largest size fits, with its header.
    assert_eq!(connection.bytes, Rate::new(1000, 5014));
    assert_eq!(connection.control_frames, Rate::new(100, 200));
    assert_eq!(address, Default::default());
    assert_eq!(address_handshakes, Rate::new(5, 7));
    assert_eq!((address_connections_max, action), (9, Action::Close));

    let own = &find("/own").policy;
    assert_eq!(own.connections_max, 4);
    let Rates { connection, address, address_handshakes, address_connections_max, action } =
        own.rates;
    assert_eq!(connection.messages, Rate::new(20, 40));
    assert_eq!(connection.bytes, Rate::new(1000, 3000));
    assert_eq!(connection.control_frames, Rate::new(3, 6));
    assert_eq!(address.bytes, Rate::new(10, 4014));
    assert_eq!(address_handshakes, Rate::NONE);
    assert_eq!((address_connections_max, action), (9, Action::Throttle));
}

#[test]
fn faulty_rates() {
    faulty_below(
        "[limits]\nmessages_burst = 5\nbytes_per_second = 1_000_000_001\nbytes_burst = 0\n\
         rate_action = \"drop\"\n[[route]]\npath = \"/a\"\nbackend = \"echo\"\n\
         address_bytes_burst = 5\nconnections_max = -1\n",
        &[
            "2:18: `messages_burst` without `messages_per_second`: there is no rate",
            "3:20: `bytes_per_second` is 1000000001: out of range",
            "4:15: `bytes_burst` is 0: out of range",
            "5:15: `rate_action` is \"drop\": not known; choose one of `close`, `throttle`",
            "9:23: `address_bytes_burst` without `address_bytes_per_second`",
            "10:19: `connections_max` is -1",
        ],
    );
}

#[test]
fn the_command_line_goes_first() {
    let listen: Vec<SocketAddr> = vec![([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 0).into()];
    let overrides = Overrides { shards: Some(5), listen: listen.clone() };
    let text = format!("{GOOD}[server]\nshards = 3\n");
    let config = check("f", &text, &machine(), &overrides).0.expect("in order");
    assert_eq!(config.server.shards, 5);
    assert_eq!(config.limits.connections_max, 100_000);
    assert_eq!(config.listeners.iter().map(|it| it.address).collect::<Vec<_>>(), listen);
    // A file may leave the listener to the command line.
    let text = "[[route]]\nbackend = \"e\"\n[backend.e]\nkind = \"echo\"\n";
    assert!(check("f", text, &machine(), &overrides).0.is_ok());
}

#[test]
fn the_embedded_configuration_is_in_order() {
    let config = Config::embedded();
    let find = |path| config.backend(config.routes.find("h", path, [].into_iter()).expect("route"));
    assert_eq!(find("/echo").kind, BackendKind::Echo);
    assert!(matches!(&find("/").kind, BackendKind::Local(local) if local.demo_page));
    assert_eq!(config.listeners[0].address, SocketAddr::from(([127, 0, 0, 1], 8080)));
}

/// Whose word is taken for a name: the file says, and without one it depends on who can come.
#[test]
fn names_that_clients_give_themselves() {
    let names = |config: &Config| {
        let of = |backend: &Backend| match &backend.kind {
            BackendKind::Local(local) => Some(local.client_names),
            _ => None,
        };
        config.backends.iter().find_map(of).expect("rooms")
    };
    let rooms = format!("{GOOD}[backend.rooms]\nkind = \"local\"\n");
    assert_eq!(names(&good(&rooms)), ClientNames::Refused);
    for word in [ClientNames::Refused, ClientNames::Trusted] {
        let text = format!("{rooms}client_names = \"{}\"\n", word.name());
        assert_eq!(names(&good(&text)), word);
    }
    faulty_below(
        "[backend.rooms]\nkind = \"local\"\nclient_names = \"trust\"\n",
        &["3:16: `client_names` is \"trust\""],
    );
    faulty_below(
        "[backend.other]\nkind = \"echo\"\nclient_names = \"trusted\"\n",
        &["3:1: unknown key `client_names`"],
    );
    let without_a_file = |listen: &[&str]| {
        let listen = listen.iter().map(|it| it.parse().expect("an address")).collect();
        names(&Config::embedded_with(&Overrides { shards: None, listen }).expect("in order"))
    };
    for own in [&[][..], &["127.0.0.1:0"], &["[::1]:0", "127.9.9.9:0"], &["[::ffff:127.0.0.1]:0"]] {
        assert_eq!(without_a_file(own), ClientNames::Trusted, "{own:?}");
    }
    for open in [&["0.0.0.0:0"][..], &["[::]:0"], &["127.0.0.1:0", "10.0.0.1:0"], &["192.0.2.1:0"]]
    {
        assert_eq!(without_a_file(open), ClientNames::Refused, "{open:?}");
    }
}

#[test]
fn the_operators_address() {
    let config = good(&format!(
        "{GOOD}[admin]\nlisten = \"[::1]:9464\"\ntoken_file = \"/etc/token-to-be-shown\"\n\
         open = [\"metrics\"]\n"
    ));
    let admin = &config.admin;
    assert_eq!(admin.listen, "[::1]:9464".parse().ok());
    assert!(admin.token.as_ref().is_some_and(|token| token.is(b"/etc/token-to-be-shown")));
    assert!(admin.open.metrics && !admin.open.health);
    let admin = &good(GOOD).admin;
    assert!(admin.listen.is_none() && admin.token.is_none());
    assert!(admin.open.health && !admin.open.metrics);

    faulty_below(
        "[admin]\nlisten = \"9464\"\ntoken_file = \"admin.token\"\nopen = [\"all\", \"health\"]\n",
        &[
            "2:10: `listen` is \"9464\": not an address and a port; write them like \"127.0.0.1:9464\"",
            "3:14: `token_file` is \"admin.token\": where that is depends on",
            "4:9: `open` has \"all\": choose from \"health\" and \"metrics\"",
        ],
    );
    faulty_below(
        "[admin]\nlisten = \"127.0.0.1:9464\"\n",
        &[
            "2:10: `listen` needs a `token_file`: whoever reaches the address could stop the gateway",
        ],
    );
    // Credentials of systemd have a directory, where there are any.
    faulty_below(
        "[admin]\ntoken_file = \"credential:token\"\n",
        &["2:14: `token_file` is \"credential:token\": there are no credentials"],
    );
    faulty_below(
        "[admin]\nhosts = [\"a.example.org:80\"]\n",
        &["2:10: `hosts` has \"a.example.org:80\": not a name"],
    );
    let machine = Machine { credentials: Some("/run/credentials/p".into()), ..machine() };
    let text = format!("{GOOD}[admin]\ntoken_file = \"credential:token\"\n");
    let config = check("f", &text, &machine, &Overrides::default()).0.expect("in order");
    assert!(config.admin.token.is_some_and(|token| token.is(b"/run/credentials/p/token")));
    for bad in ["credential:", "credential:../x", "credential:a/b"] {
        assert!(machine.secret_path(bad).is_err(), "{bad}");
    }
    // What is wrong with the file is said at its name, and what it holds is not.
    faulty_below(
        "[admin]\ntoken_file = \"/etc/short\"\n",
        &["2:14: `token_file` /etc/short: holds a token of 10 bytes, which could be guessed"],
    );
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let faults = Config::load(Path::new("/nonexistent/penstock.toml")).expect_err("no file");
    assert!(faults.to_string().starts_with("/nonexistent/penstock.toml: cannot be read: No such"));
}

#[test]
fn what_is_no_file_is_not_read() {
    for path in ["/dev/zero", "/proc/self/fd", "/"] {
        let faults = Config::load(Path::new(path)).expect_err(path).to_string();
        assert!(faults.starts_with(&format!("{path}: not a regular file")), "{faults}");
    }
    // A file of holes, which no disk has to hold.
    let file = tempfile();
    std::fs::File::options().write(true).open(&file).unwrap().set_len((16 << 20) + 1).unwrap();
    let faults = Config::load(&file).expect_err("too large").to_string();
    std::fs::remove_file(&file).unwrap();
    assert!(faults.contains("larger than 16 MiB"), "{faults}");
}

fn tempfile() -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("penstock-config-{}", std::process::id()));
    std::fs::write(&path, "").unwrap();
    path
}

#[test]
fn of_many_faults_some_are_told() {
    let unknown = |count: usize| {
        let keys: String = (0..count).map(|n| format!("surplus{n} = 1\n")).collect();
        Config::parse("f", &format!("{GOOD}[limits]\n{keys}")).expect_err("unknown keys").list
    };
    assert_eq!(unknown(100).len(), 100);
    let told = unknown(300);
    assert_eq!(
        (told.len(), &*told[100].message),
        (101, "200 more; mend these first, or see whether this is the right file")
    );
    let told = unknown(50_000);
    assert_eq!(told.len(), 101);
    assert!(told[100].message.starts_with("at least 900 more"), "{}", told[100].message);
}

#[test]
fn faults_are_lines() {
    let faults = read("[server]\npin = 1\nshards = 0\n[[route]]\n").expect_err("faults");
    let text = faults.to_string();
    assert!(text.contains("\nf:2:7: `pin` is an integer: "), "{text}");
    assert_eq!(text.lines().count(), faults.list.len());
}

#[test]
fn the_examples_are_in_order() {
    good(include_str!("../../../docs/examples/front-node-chat.toml"));
    good(include_str!("../../../docs/examples/echo-load-test.toml"));
}

/// The annotated file with the keys that stand behind a `#` as well.
fn documented_in_full() -> String {
    let uncomment = |line: &'static str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase()) => key,
        _ => line,
    };
    DOCUMENTED.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documentation_has_the_keys_that_the_reader_asks_for() {
    let text = documented_in_full();
    let (result, asked) = check("docs/penstock.toml", &text, &machine(), &Overrides::default());
    if let Err(faults) = result {
        panic!("{faults}");
    }
    let mut documented = BTreeSet::new();
    let mut scope = "";
    for line in text.lines() {
        match line {
            "[backend.app]" => scope = "backend.websocket",
            "[backend.chat]" => scope = "backend.websocket",
            "[[backend.chat.upstream]]" => {
                scope = "backend.websocket.upstream";
                documented.insert(scope.to_owned());
            }
            "[backend.rooms]" => scope = "backend.local",
            "[backend.echo]" => scope = "backend",
            "[backend.closed]" => scope = "backend.refuse",
            _ if line.starts_with('[') => scope = line.trim_matches(['[', ']']),
            _ => {}
        }
        if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let scope = if key == "kind" { "backend" } else { scope };
            documented.insert(format!("{scope}.{key}"));
        }
    }
    assert_eq!(asked.into_keys().collect::<BTreeSet<_>>(), documented);
}

#[test]
fn the_documented_values_are_the_defaults() {
    let whole = good(DOCUMENTED);
    let lines: Vec<&str> = DOCUMENTED.lines().collect();
    let mut tried = 0;
    for (index, line) in lines.iter().enumerate() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        if !is_key || line.ends_with("# required") || line.ends_with("# example") {
            continue;
        }
        let mut without = lines.clone();
        without.remove(index);
        let without = good(&without.join("\n"));
        let changes = succession::changes(&without, &whole);
        assert_eq!(changes, [], "a default written out is no change: see Section::settle");
        assert_eq!(without, whole, "without {line}");
        tried += 1;
    }
    assert!(tried > 20, "only {tried} lines with a default");
}

/// The value of `key` in a unit or a sysctl file.
fn setting<'f>(file: &'f str, key: &str) -> &'f str {
    let line = file.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("{key} is not set")).trim()
}

#[test]
fn the_unit_and_the_kernel_settings_fit_the_defaults() {
    let unit = include_str!("../../../systemd/penstock.service");
    let stop = setting(unit, "TimeoutStopSec").strip_suffix('s').expect("seconds");
    assert!(good(GOOD).server.stop_timeout.as_secs() < stop.parse().expect("a number"));
    let slots = crate::limits::SLOTS_PER_SHARD_MAX.to_string();
    assert_eq!(setting(unit, "LimitNOFILE"), slots);

    let kernel = include_str!("../../../tuning/90-penstock.conf");
    assert_eq!(setting(kernel, "fs.nr_open"), slots);
    let granted: u32 = setting(kernel, "net.core.wmem_max").parse().expect("a number");
    assert!(granted >= Limits::default().send_buffer_bytes);
    let ports = setting(kernel, "net.ipv4.ip_local_port_range");
    let (low, high) = ports.split_once(' ').expect("two numbers");
    let ports = low.parse().expect("a port")..=high.parse().expect("a port");
    assert!(!ports.contains(&Config::embedded().listeners[0].address.port()));
}

#[test]
fn damaged_files_have_faults_and_never_panic() {
    let text = "[server]\npin = true\n[[listener]]\naddress = \"[::1]:80\"\n[[route]]\n\
                host = \"*.é.x\"\npath = '/a/*'\nbackend = \"b\"\n[backend.b]\n\
                kind = \"websocket\"\nurl = \"ws://[::1]:3000\"\n[limits]\nheaders_max = 0x1_0\n";
    let inspect = |damaged: &str| {
        if let Err(faults) = read(damaged) {
            assert!(!faults.list.is_empty(), "no fault in {damaged}");
            let lines = damaged.lines().count() + 1;
            assert!(faults.list.iter().all(|fault| fault.line <= lines), "{faults}");
        }
    };
    for (at, _) in text.char_indices() {
        inspect(&text[..at]);
        for put in ["\"", "[", "]", "=", "\n", "9", "é", "\0", "."] {
            let rest = text[at..].chars().next().map_or(0, char::len_utf8);
            inspect(&format!("{}{put}{}", &text[..at], &text[at + rest..]));
        }
    }
}

#[test]
fn source_addresses_are_of_the_family_of_their_upstreams() {
    let file = |url: &str, list: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nbackend = \"a\"\n\
             [backend.a]\nkind = \"websocket\"\nurl = \"{url}\"\nsource_addresses = {list}\n"
        )
    };
    let (v4, v6) = ("ws://127.0.0.1:81", "ws://[::1]:81");
    let config = good(&file(v4, "[\"127.0.0.2\", \"::2\", \"127.0.0.3\"]"));
    let BackendKind::Websocket(websocket) = &config.backends[0].kind else { unreachable!() };
    let sources = websocket.sources_of(&websocket.upstreams[0].address);
    assert_eq!(sources.map(|it| it.to_string()).collect::<Vec<_>>(), ["127.0.0.2", "127.0.0.3"]);
    for (url, list, why) in [
        (v6, "[\"127.0.0.2\"]", "has none of the family"),
        (v4, "[\"127.0.0.2\", \"127.0.0.2\"]", "twice"),
        (v4, "[\"127.0.0.2:80\"]", "is no IP address"),
        (v4, "[\"nobody\"]", "is no IP address"),
    ] {
        let faults = Config::parse("test", &file(url, list)).expect_err("it is faulty");
        assert!(faults.to_string().contains(why), "{faults}");
    }
}
