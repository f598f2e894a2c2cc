//! Backends of upstreams: their lists, groups and checks.

use super::*;

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
