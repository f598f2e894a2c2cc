//! Names of upstreams, resolved by the system's resolver out of an /etc/hosts that only the gateway sees: it
//! runs in a mount namespace of its own. Where a machine lets nobody make one, the test says so and ends.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use crate::support::{Gateway, HEAD, Peer, Scratch, binary, switching, upgrade};

/// A gateway for which `hosts` is /etc/hosts.
fn gateway_with(scratch: &Scratch, hosts: &Path, config: &str) -> Option<Gateway> {
    // An own user namespace lets everybody do this; it takes none where we are root already.
    let unshare = || {
        let mut command = Command::new("unshare");
        if rustix::process::geteuid().is_root() {
            command.arg("--mount");
        } else {
            command.args(["--mount", "--map-root-user"]);
        }
        command
    };
    let mount = format!("mount --bind '{}' /etc/hosts", hosts.display());
    let tried = unshare().args(["sh", "-c", &mount]).status();
    if !tried.is_ok_and(|status| status.success()) {
        println!("not tested: this machine has no mount namespaces for us");
        return None;
    }
    let file = scratch.write("penstock.toml", config);
    let run = format!("{mount} && exec '{}' run '{}'", binary().display(), file.display());
    Some(Gateway::run_as(unshare().args(["sh", "-c", &run])))
}

fn to_names(urls: &[String]) -> String {
    let mut text = format!(
        "{HEAD}[limits]\nconnect_timeout_ms = 5000\nclose_timeout_ms = 100\n[[route]]\nbackend = \"app\"\n[backend.app]\n\
         kind = \"websocket\"\nbalance = \"round-robin\"\neject_failures = 0\nresolve_interval_ms = 100\n"
    );
    for url in urls {
        text += &format!("[[backend.app.upstream]]\nurl = \"{url}\"\n");
    }
    text
}

/// Which address of 127.0.0.0/8 takes the next client.
fn placed(gateway: &Gateway, servers: &[TcpListener]) -> SocketAddr {
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/", ""));
    servers.iter().for_each(|server| server.set_nonblocking(true).expect("a listener"));
    loop {
        for server in servers {
            if let Ok((stream, _)) = server.accept() {
                stream.set_nonblocking(false).expect("a socket");
                let mut upstream = Peer::new(stream);
                let head = upstream.head();
                upstream.write(switching(&head, ""));
                let answer = client.head();
                assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
                return server.local_addr().expect("an address");
            }
        }
        std::thread::yield_now();
    }
}

#[test]
fn addresses_of_a_name_come_and_go() {
    let scratch = Scratch::new("names");
    // One port on three addresses.
    let first = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 11), 0)).expect("a listener");
    let port = first.local_addr().expect("an address").port();
    let other = |last| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port));
    let (Ok(second), Ok(third)) = (other(12), other(13)) else {
        return println!("not tested: the port is taken on another address");
    };
    let servers = [first, second, third];
    let hosts = scratch.write("hosts", "127.0.0.11 app.test\n127.0.0.12 app.test\n");
    let config = to_names(&[format!("ws://app.test:{port}")]);
    let Some(mut gateway) = gateway_with(&scratch, &hosts, &config) else { return };
    let mut seen: Vec<SocketAddr> = (0..4).map(|_| placed(&gateway, &servers)).collect();
    seen.sort();
    seen.dedup();
    let at = |last| SocketAddr::from(([127, 0, 0, last], port));
    assert_eq!(seen, [at(11), at(12)], "each address is a server");

    scratch.write("hosts", "127.0.0.12 app.test\n127.0.0.13 app.test\n");
    gateway.log_line_containing(&format!("app.test:{port} is at 127.0.0.13:{port} now"));
    gateway.log_line_containing(&format!("app.test:{port} is at 127.0.0.11:{port} no more"));
    let mut seen: Vec<SocketAddr> = (0..4).map(|_| placed(&gateway, &servers)).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, [at(12), at(13)]);

    // A name that is gone keeps what it had.
    scratch.write("hosts", "127.0.0.1 localhost\n");
    let line = gateway.log_line_containing("does not resolve");
    assert!(line.contains("it goes on with the addresses that it has"), "{line}");
    assert!([at(12), at(13)].contains(&placed(&gateway, &servers)));
    scratch.write("hosts", "127.0.0.11 app.test\n");
    gateway.log_line_containing("its names resolve again");
    gateway.log_line_containing(&format!("app.test:{port} is at 127.0.0.11:{port} now"));
    assert_eq!(placed(&gateway, &servers), at(11));
}

/// `localhost` is ::1 and 127.0.0.1, and a server listens on one of them.
#[test]
fn both_loopback_addresses_are_one_server() {
    for address in [SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), ([127, 0, 0, 1], 0).into()] {
        let Ok(server) = TcpListener::bind(address) else {
            println!("not tested: no {address} here");
            continue;
        };
        let scratch = Scratch::new("loopback");
        let hosts = scratch.write("hosts", "::1 localhost\n127.0.0.1 localhost\n");
        let port = server.local_addr().expect("an address").port();
        let config = to_names(&[format!("ws://localhost:{port}")]);
        let Some(gateway) = gateway_with(&scratch, &hosts, &config) else { return };
        for _ in 0..3 {
            placed(&gateway, std::slice::from_ref(&server));
        }
        drop(server);
        // And where neither listens, that is one failure of one server.
        let mut client = Peer::connect(gateway.address());
        client.write(upgrade("/", ""));
        let answer = client.head();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        let stopped = gateway.stop();
        let lines = stopped.lines.join("\n");
        assert!(lines.contains("failures of upstreams 1,"), "{lines}");
    }
}
