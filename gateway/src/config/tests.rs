//! Faulty files with everything that must be said about them.

mod documented;
mod limits;
mod upstreams;

use std::collections::BTreeSet;
use std::io;

use super::check::check;
use super::*;
use crate::admin::token::Token;
use crate::checks::{CheckKind, CheckOptions, StatusSet};
use crate::rooms::{SlowLimits, SlowPolicy};
use crate::upstream::{Balance, GroupOptions, HashKey, Mode, UpstreamAddress, UpstreamSpec};

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
