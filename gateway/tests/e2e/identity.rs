//! Who a client is and whether it may come in: PROXY headers, chains of proxies, origins, lists of
//! addresses; by sockets alone, and with HAProxy and nginx in front.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;

use crate::groups::Named;
use crate::support::{
    ECHO_AND_ROOMS, Gateway, HEAD, PATIENCE, Peer, Program, Upstream, header, switching,
    to_upstream, upgrade,
};

/// A gateway before this upstream, its listener with these lines.
fn gateway(listener: &str, upstream: &Upstream) -> Gateway {
    Gateway::start(&format!("{HEAD}{listener}{}", to_upstream(upstream.address())))
}

/// A connection that comes from this address of loopback.
#[track_caller]
fn connect_from(source: [u8; 4], to: SocketAddr) -> Peer {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("loopback has 127.0.0.0/8");
    socket.connect_timeout(&to.into(), PATIENCE).expect("it listens");
    Peer::new(socket.into())
}

fn get(more: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: t\r\n{more}\r\n")
}

/// The client ends its stream, and the gateway has seen that when this returns.
#[track_caller]
fn leave(mut client: Peer) {
    client.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    client.end();
}

/// What an upstream is told about the client of a request: its X-Forwarded-For, X-Real-IP and
/// X-Forwarded-Proto. The request is answered.
#[track_caller]
fn told(client: &mut Peer, upstream: &Upstream, request: &str) -> String {
    client.write(request);
    let (mut server, head) = upstream.accept();
    let named = ["x-forwarded-for", "x-real-ip", "x-forwarded-proto"];
    let told = named.map(|name| {
        let lines = head.lines().filter(|line| line.to_ascii_lowercase().starts_with(name));
        assert_eq!(lines.count(), 1, "{head}");
        header(&head, name).expect("a line")
    });
    server.write("HTTP/1.1 204 No Content\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 204 "));
    told.join("; ")
}

/// A header of version 2 for a client at 203.0.113.9.
fn binary(command: u8, family: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family, 0, 12 + 5]);
    header.extend([203, 0, 113, 9, 127, 0, 0, 1, 0x12, 0x34, 0, 80]);
    // A TLV that means nothing (NOOP).
    header.extend([4, 0, 2, 0, 0]);
    header
}

const LINE: &[u8] = b"PROXY TCP4 203.0.113.9 127.0.0.1 4660 80\r\n";

#[test]
fn a_proxy_header_names_the_client() {
    let upstream = Upstream::listen();
    let gateway = gateway("proxy_protocol = \"required\"\n", &upstream);
    for (header, client) in [
        (LINE.to_vec(), "203.0.113.9"),
        (b"PROXY TCP6 2001:db8::9 ::1 1 2\r\n".to_vec(), "2001:db8::9"),
        (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 1 2\r\n".to_vec(), "203.0.113.9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (binary(0x21, 0x11), "203.0.113.9"),
        (binary(0x20, 0x11), "127.0.0.1"),
        (binary(0x21, 0x00), "127.0.0.1"),
    ] {
        let forged = get("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n");
        let whole = [&header, forged.as_bytes()].concat();
        let want = format!("{client}; {client}; http");
        let mut at_once = Peer::connect(gateway.address());
        at_once.write(&whole[..header.len() + 1]);
        let rest = String::from_utf8(whole[header.len() + 1..].to_vec()).expect("text");
        assert_eq!(told(&mut at_once, &upstream, &rest), want);
        // It holds for what follows on the connection.
        assert_eq!(told(&mut at_once, &upstream, &get("")), want);
        // TCP may cut anywhere.
        let mut in_bytes = Peer::connect(gateway.address());
        for byte in &whole[..whole.len() - 4] {
            in_bytes.write([*byte]);
        }
        assert_eq!(told(&mut in_bytes, &upstream, "\r\n\r\n"), want);
    }
    // An upgrade, with a frame in the same segment.
    let mut client = Peer::connect(gateway.address());
    let frame = crate::support::masked(0x81, b"early");
    client.write([LINE, upgrade("/", "").as_bytes(), &frame].concat());
    let (mut server, head) = upstream.accept();
    assert_eq!(header(&head, "x-forwarded-for"), Some("203.0.113.9"));
    server.write(switching(&head, ""));
    assert_eq!(server.frame().payload, b"early");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
}

#[test]
fn without_a_proxy_header_there_is_no_answer() {
    let upstream = Upstream::listen();
    let required = "proxy_protocol = \"required\"\n[limits]\nhandshake_timeout_ms = 300\n";
    let gateway = gateway(required, &upstream);
    let mut version = binary(0x21, 0x11);
    version[12] = 0x11;
    let faulty = [
        get("").into_bytes(),
        b"\x16\x03\x01\x02\x00\x01".to_vec(),
        b"PROXY TCP4 203.0.113.9 127.0.0.1 4660\r\n".to_vec(),
        format!("PROXY UNKNOWN {}", "x".repeat(200)).into_bytes(),
        version,
        // What is not whole in time: cut short, or nothing at all.
        LINE[..LINE.len() - 1].to_vec(),
        binary(0x21, 0x11)[..20].to_vec(),
        Vec::new(),
    ];
    for bytes in &faulty {
        let mut client = Peer::connect(gateway.address());
        client.write(bytes);
        client.end();
    }
    // A second header is a request like any other, and a bad one.
    let mut client = Peer::connect(gateway.address());
    client.write([LINE, LINE, get("").as_bytes()].concat());
    assert!(client.answer().starts_with("HTTP/1.1 400 "));
    // Who leaves by itself was not denied.
    let mut client = Peer::connect(gateway.address());
    client.write(&LINE[..10]);
    leave(client);
    let denied = faulty.len();
    gateway.stop().expect(&format!("client_gone 1, handshake_rejected 1, ip_denied {denied}"));
}

#[test]
fn a_proxy_header_where_there_is_none_is_a_bad_request() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    for header in [LINE.to_vec(), binary(0x21, 0x11), b"PROXY UNKNOWN\r\n".to_vec()] {
        let mut client = Peer::connect(gateway.address());
        client.write([&header, upgrade("/echo", "").as_bytes()].concat());
        let answer = client.answer();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    gateway.stop().expect("handshake_rejected 3");
}

#[test]
fn only_trusted_proxies_may_send_a_proxy_header() {
    let upstream = Upstream::listen();
    let listener =
        "proxy_protocol = \"required\"\ntrusted_proxies = [\"127.0.0.2\", \"203.0.113.0/24\"]\n";
    let gateway = gateway(listener, &upstream);
    let mut stranger = connect_from([127, 0, 0, 3], gateway.address());
    stranger.end();
    let mut proxy = connect_from([127, 0, 0, 2], gateway.address());
    proxy.write(b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n");
    // Whom it names is no proxy, so what that one claims is not believed.
    let forged = get("X-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!(told(&mut proxy, &upstream, &forged), "192.0.2.1; 192.0.2.1; http");
    // Two proxies, one behind the other, of which the first passes TCP on.
    let mut proxies = connect_from([127, 0, 0, 2], gateway.address());
    proxies.write(LINE);
    let chain = get("X-Forwarded-For: 6.6.6.6, 192.0.2.1\r\nX-Forwarded-Proto: https\r\n");
    let want = "6.6.6.6, 192.0.2.1, 203.0.113.9; 192.0.2.1; https";
    assert_eq!(told(&mut proxies, &upstream, &chain), want);
    // A health check of the balancer's own.
    let mut check = connect_from([127, 0, 0, 2], gateway.address());
    check.write(b"PROXY UNKNOWN\r\n");
    assert_eq!(told(&mut check, &upstream, &get("")), "127.0.0.2; 127.0.0.2; http");
    for client in [proxy, proxies, check] {
        leave(client);
    }
    gateway.stop().expect("http_done 3, ip_denied 1");
}

#[test]
fn a_trusted_proxy_speaks_for_another_client_with_every_request() {
    let upstream = Upstream::listen();
    let gateway = gateway("trusted_proxies = [\"127.0.0.2\", \"10.0.0.0/8\"]\n", &upstream);
    let mut proxy = connect_from([127, 0, 0, 2], gateway.address());
    for (lines, want) in [
        ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1, 127.0.0.2; 192.0.2.1; http"),
        (
            "X-Forwarded-For: 6.6.6.6, 192.0.2.2, 10.0.0.9\r\nX-Forwarded-Proto: https\r\n",
            "6.6.6.6, 192.0.2.2, 10.0.0.9, 127.0.0.2; 192.0.2.2; https",
        ),
        ("X-Real-IP: 6.6.6.6\r\n", "127.0.0.2; 127.0.0.2; http"),
        ("Forwarded: for=\"[2001:db8::1]:1\"\r\n", "2001:db8::1, 127.0.0.2; 2001:db8::1; http"),
        ("X-Forwarded-For: nonsense\r\n", "nonsense, 127.0.0.2; 127.0.0.2; http"),
        ("X-Forwarded-Proto: gopher\r\n", "127.0.0.2; 127.0.0.2; http"),
    ] {
        assert_eq!(told(&mut proxy, &upstream, &get(lines)), want, "{lines}");
    }
    // The same from anybody else.
    let mut client = connect_from([127, 0, 0, 3], gateway.address());
    let lines =
        "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(told(&mut client, &upstream, &get(lines)), "127.0.0.3; 127.0.0.3; http");
    // A chain that fills the head is walked so far and no further, and passes as it came.
    let long = format!("10.0.0.9,{}", ["10.0.0.8"; 1500].join(","));
    let lines = format!("X-Forwarded-For: {long}\r\n");
    let want = format!("{long}, 127.0.0.2; 10.0.0.8; http");
    assert_eq!(told(&mut proxy, &upstream, &get(&lines)), want);
}

#[test]
fn clients_of_a_proxy_are_spread_by_their_own_addresses() {
    let (a, b) = (Named::start("a"), Named::start("b"));
    let gateway = Gateway::start(&format!(
        "{HEAD}trusted_proxies = [\"127.0.0.0/8\"]\n[[route]]\nbackend = \"app\"\n\
         [backend.app]\nkind = \"websocket\"\nbalance = \"hash\"\nhash_load_percent = 0\n\
         [[backend.app.upstream]]\nurl = \"ws://{}\"\n[[backend.app.upstream]]\nurl = \"ws://{}\"\n",
        a.address, b.address
    ));
    let mut proxy = Peer::connect(gateway.address());
    let mut at = |client: u8| {
        proxy.write(get(&format!("X-Forwarded-For: 198.51.100.{client}\r\n")));
        proxy.head();
        proxy.bytes(1)[0]
    };
    let first: Vec<u8> = (0..32).map(&mut at).collect();
    let again: Vec<u8> = (0..32).map(&mut at).collect();
    assert_eq!(first, again);
    assert!(first.contains(&b'a') && first.contains(&b'b'), "{first:?}");
}

#[test]
fn addresses_that_may_not_come_in_get_403() {
    let upstream = Upstream::listen();
    let lists = "trusted_proxies = [\"127.0.0.2\"]\nallow = [\"127.0.0.0/8\", \"198.51.100.0/24\"]\n\
                 deny = [\"127.0.0.4\", \"198.51.100.66\"]\n";
    let gateway = gateway(lists, &upstream);
    for source in [3, 5] {
        let mut client = connect_from([127, 0, 0, source], gateway.address());
        told(&mut client, &upstream, &get(""));
        leave(client);
    }
    let is_denied = |mut client: Peer, request: String| {
        client.write(request);
        let answer = client.answer();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    };
    is_denied(connect_from([127, 0, 0, 4], gateway.address()), get(""));
    is_denied(connect_from([127, 0, 0, 4], gateway.address()), upgrade("/", ""));
    // Nothing that it claims helps.
    let claim = get("X-Forwarded-For: 198.51.100.1\r\n");
    is_denied(connect_from([127, 0, 0, 4], gateway.address()), claim);
    // By a proxy it is the client who counts, with every request.
    let named = |client: &str| get(&format!("X-Forwarded-For: {client}\r\n"));
    for denied in ["198.51.100.66", "::ffff:198.51.100.66", "192.0.2.1", "2001:db8::1"] {
        let mut proxy = connect_from([127, 0, 0, 2], gateway.address());
        told(&mut proxy, &upstream, &named("198.51.100.1"));
        is_denied(proxy, named(denied));
    }
    gateway.stop().expect("http_done 2, ip_denied 7");
}

#[test]
fn a_proxy_header_is_held_against_the_lists() {
    let upstream = Upstream::listen();
    let gateway = gateway(
        "proxy_protocol = \"required\"\nallow = [\"203.0.113.0/24\", \"127.0.0.0/8\"]\n",
        &upstream,
    );
    let mut client = Peer::connect(gateway.address());
    client.write(b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n");
    client.write(get(""));
    assert!(client.answer().starts_with("HTTP/1.1 403 "));
    let mut client = Peer::connect(gateway.address());
    client.write(LINE);
    told(&mut client, &upstream, &get(""));
    leave(client);
    gateway.stop().expect("http_done 1, ip_denied 1");
}

#[test]
fn listeners_have_rules_of_their_own() {
    let more = "proxy_protocol = \"required\"\n\
                [[listener]]\naddress = \"127.0.0.1:0\"\nname = \"plain\"\n";
    let mut gateway = Gateway::start(&format!("{HEAD}{more}{ECHO_AND_ROOMS}"));
    let plain = gateway.next_address();
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/echo", ""));
    client.end();
    leave(Peer::open(plain, "/echo"));
    let mut client = Peer::connect(gateway.address());
    client.write([LINE, upgrade("/echo", "").as_bytes()].concat());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    leave(client);
    gateway.stop().expect("client_gone 2, ip_denied 1");
}

#[test]
fn pages_of_other_origins_get_403() {
    let upstream = Upstream::listen();
    let echoes = "[[route]]\npath = \"/echo\"\nbackend = \"echo\"\n\
                  origins = [\"https://chat.example.org\", \"https://*.example.net:8443\"]\n\
                  [[route]]\npath = \"/strict\"\nbackend = \"echo\"\norigins = [\"null\"]\n\
                  origin_required = true\n[backend.echo]\nkind = \"echo\"\n";
    let app = to_upstream(upstream.address());
    let app =
        app.replacen("[[route]]\n", "[[route]]\norigins = [\"https://chat.example.org\"]\n", 1);
    let gateway = Gateway::start(&format!("{HEAD}{echoes}{app}"));
    let ask = |path: &str, origin: Option<&str>| {
        let mut client = Peer::connect(gateway.address());
        let line = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
        client.write(upgrade(path, &line));
        let head = client.head();
        if head.starts_with("HTTP/1.1 101 ") {
            leave(client);
        }
        head.split(' ').nth(1).expect("a status").to_owned()
    };
    for (path, origin, status) in [
        ("/echo", None, "101"),
        ("/echo", Some("https://chat.example.org"), "101"),
        ("/echo", Some("https://CHAT.example.org:443"), "101"),
        ("/echo", Some("https://a.b.example.net:8443"), "101"),
        ("/echo", Some("http://chat.example.org"), "403"),
        ("/echo", Some("https://chat.example.org.evil.com"), "403"),
        ("/echo", Some("https://evilchat.example.org"), "403"),
        ("/echo", Some("https://example.net:8443"), "403"),
        ("/echo", Some("null"), "403"),
        ("/echo", Some(""), "403"),
        ("/strict", Some("null"), "101"),
        ("/strict", None, "403"),
        // Before the upstream hears of it.
        ("/app", Some("https://evil.com"), "403"),
    ] {
        assert_eq!(ask(path, origin), status, "{path} {origin:?}");
    }
    // What is no upgrade is the upstream's business, whose answer says who may read it.
    let mut client = Peer::connect(gateway.address());
    told(&mut client, &upstream, &get("Origin: https://evil.com\r\n"));
    leave(client);
    gateway.stop().expect("client_gone 5, http_done 1, origin_denied 8");
}

/// A listening socket that a program gets with its start: it need not choose a port, and who connects
/// early waits in the queue.
fn handed_over(address: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    let socket = socket2::Socket::from(listener);
    socket.set_cloexec(false).expect("a descriptor");
    (socket.into(), address)
}

/// The number of a descriptor, which is what programs are told.
fn number(listener: &TcpListener) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(listener)
}

fn scratch(name: &str, text: &str) -> PathBuf {
    let name = format!("e2e-{}-{name}", std::process::id());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a scratch file");
    path
}

/// A server, which may be installed where only root looks.
fn server(name: &str) -> Command {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let file = std::env::split_paths(&paths).map(|path| path.join(name)).find(|path| path.exists());
    Command::new(file.unwrap_or_else(|| panic!("{name} is not there; run scripts/test-tools")))
}

fn haproxy(name: &str, frontend: &TcpListener, mode: &str, to: &str) -> Program {
    let config = format!(
        "defaults\n mode {mode}\n timeout connect 60s\n timeout client 60s\n timeout server 60s\n\
         listen front\n bind fd@{}\n{to}\n",
        number(frontend)
    );
    let file = scratch(&format!("{name}.cfg"), &config);
    Program::start("haproxy", server("haproxy").arg("-db").arg("-f").arg(file))
}

/// The address of an nginx that listens there when this returns. `config` makes the rest of its
/// configuration out of that address. (It does not serve sockets that it is handed as one process.)
fn nginx(name: &str, config: impl FnOnce(SocketAddr) -> String) -> (Program, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let reserved = socket.expect("a socket");
    reserved.set_reuse_port(true).expect("a socket");
    reserved.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback");
    let address = reserved.local_addr().expect("it is bound").as_socket().expect("an address");
    let home = scratch(&format!("{name}.home"), "");
    std::fs::remove_file(&home).expect("it was made");
    std::fs::create_dir_all(&home).expect("a scratch directory");
    let text = format!(
        "daemon off;\nmaster_process off;\nerror_log /dev/stdout notice;\npid {}/pid;\n\
         {}\nevents {{}}\n",
        home.display(),
        config(address)
    );
    let file = scratch(&format!("{name}.conf"), &text);
    let mut command = server("nginx");
    command.arg("-p").arg(&home).arg("-e").arg("stderr").arg("-c").arg(file);
    let mut nginx = Program::start("nginx", &mut command);
    // It says its version once it listens.
    while !nginx.line().contains("nginx/") {}
    (nginx, address)
}

/// An exchange through a balancer and the gateway; what the upstream was told about the client.
#[track_caller]
fn through(mut client: Peer, upstream: &Upstream) -> String {
    client.write(upgrade("/", "X-Forwarded-For: 6.6.6.6\r\n"));
    let (mut server, head) = upstream.accept();
    server.write(switching(&head, ""));
    let answer = client.head();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    client.send(0x81, b"hello");
    assert_eq!(server.frame().payload, b"hello");
    let named = ["x-forwarded-for", "x-real-ip"];
    named.map(|name| header(&head, name).expect("a line").to_owned()).join("; ")
}

#[test]
fn haproxy_that_passes_tcp_on() {
    let upstream = Upstream::listen();
    let gateway = gateway("proxy_protocol = \"required\"\n", &upstream);
    for version in
        ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
    {
        let (front, address) = handed_over(Ipv4Addr::LOCALHOST.into());
        let name = format!("haproxy-{}", version.len());
        let to = format!(" unique-id-format x\n server gateway {} {version}", gateway.address());
        let mode = if version.contains("unique-id") { "http" } else { "tcp" };
        let _haproxy = haproxy(&name, &front, mode, &to);
        let client = connect_from([127, 0, 0, 9], address);
        assert_eq!(through(client, &upstream), "127.0.0.9; 127.0.0.9", "{version}");
    }
    let (front, address) = handed_over(std::net::Ipv6Addr::LOCALHOST.into());
    let to = format!(" server gateway {} send-proxy-v2", gateway.address());
    let _haproxy = haproxy("haproxy-v6", &front, "tcp", &to);
    assert_eq!(through(Peer::connect(address), &upstream), "::1; ::1");
}

#[test]
fn haproxy_that_speaks_http() {
    let upstream = Upstream::listen();
    let gateway = gateway("trusted_proxies = [\"127.0.0.1\"]\n", &upstream);
    let (front, address) = handed_over(Ipv4Addr::LOCALHOST.into());
    let to = format!(" option forwardfor\n server gateway {}", gateway.address());
    let _haproxy = haproxy("haproxy-http", &front, "http", &to);
    let client = connect_from([127, 0, 0, 9], address);
    let told = through(client, &upstream);
    assert!(told.ends_with("127.0.0.9, 127.0.0.1; 127.0.0.9"), "{told}");
}

#[test]
fn nginx_that_speaks_http() {
    let upstream = Upstream::listen();
    let gateway = gateway("trusted_proxies = [\"127.0.0.1\"]\n", &upstream);
    let to = gateway.address();
    let (_nginx, address) = nginx("nginx-http", |address| {
        format!(
            "http {{ access_log off; server {{ listen {address} reuseport; location / {{\n\
             proxy_pass http://{to}; proxy_http_version 1.1; proxy_set_header Host $host;\n\
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}"
        )
    });
    let client = connect_from([127, 0, 0, 9], address);
    assert_eq!(through(client, &upstream), "6.6.6.6, 127.0.0.9, 127.0.0.1; 127.0.0.9");
}

#[test]
fn nginx_that_passes_tcp_on() {
    let upstream = Upstream::listen();
    let gateway = gateway("proxy_protocol = \"required\"\n", &upstream);
    let to = gateway.address();
    let (_nginx, address) = nginx("nginx-tcp", |address| {
        // The module is where Debian puts it.
        format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             stream {{ server {{ listen {address} reuseport; proxy_pass {to}; proxy_protocol on; }} }}"
        )
    });
    let client = connect_from([127, 0, 0, 9], address);
    assert_eq!(through(client, &upstream), "127.0.0.9; 127.0.0.9");
}
