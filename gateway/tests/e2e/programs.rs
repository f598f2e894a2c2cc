//! Clients and servers that people use, unmodified: `ws` of Node and `websockets` of Python.

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Program, clients, to_upstream};

/// Messages of 16 MiB pass our echo; a relay has no bound.
const LARGE: &str = "[limits]\nmessage_bytes_max = 33_554_432\n";

#[test]
fn ws_against_our_echo() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{LARGE}"));
    let url = gateway.url("/echo");
    Program::node("client.js", &["echo", &url]).success();
    Program::node("client.js", &["large", &url, "2", "16777216"]).success();
    Program::node("client.js", &["exchange", &url, "50"]).success();
    gateway.stop().expect("client_close 53");
}

#[test]
fn websockets_against_our_echo() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{LARGE}"));
    Program::python("websockets_client.py", &["echo", &gateway.url("/echo")]).success();
    gateway.stop().expect("client_close 5");
}

fn in_front_of(server: &mut Program) -> Gateway {
    Gateway::start(&format!("{HEAD}{}", to_upstream(server.listening())))
}

#[test]
fn ws_behind_the_relay() {
    let mut server = Program::node("server.js", &[]);
    let gateway = in_front_of(&mut server);
    let url = gateway.url("");
    Program::node("client.js", &["exchange", &url, &clients()]).success();
    Program::python("websockets_client.py", &["exchange", &url, "50"]).success();
    Program::node("client.js", &["large", &url, "20", "1048576"]).success();
    Program::node("client.js", &["large", &url, "2", "16777216"]).success();
    let count: u64 = clients().parse().expect("a number");
    gateway.stop().expect(&format!("client_close {}", count + 50 + 20 + 2));
}

#[test]
fn websockets_behind_the_relay() {
    let mut server = Program::python("websockets_server.py", &[]);
    let gateway = in_front_of(&mut server);
    let url = gateway.url("");
    Program::node("client.js", &["exchange", &url, &clients()]).success();
    Program::python("websockets_client.py", &["exchange", &url, "50"]).success();
    Program::node("client.js", &["large", &url, "2", "16777216"]).success();
}

/// Subprotocol and compression are agreed between the client and the server behind the gateway.
#[test]
fn what_is_negotiated_is_negotiated_end_to_end() {
    for mut server in
        [Program::node("server.js", &[]), Program::python("websockets_server.py", &[])]
    {
        let gateway = in_front_of(&mut server);
        Program::python("websockets_client.py", &["negotiate", &gateway.url("")]).success();
        Program::node("client.js", &["negotiate", &gateway.url("")]).success();
    }
}

#[test]
fn headers_pass_and_the_address_is_the_true_one() {
    let mut server = Program::node("server.js", &[]);
    let gateway = in_front_of(&mut server);
    Program::node("client.js", &["headers", &gateway.url("")]).success();
    Program::node("client.js", &["refused", &gateway.url("")]).success();
}

#[test]
fn close_codes_pass_both_ways() {
    let mut server = Program::node("server.js", &[]);
    let gateway = in_front_of(&mut server);
    Program::node("client.js", &["closes", &gateway.url("")]).success();
    let long = "grüße ".repeat(15);
    let mut want = vec![
        "closed /by-client 1000 ".to_owned(),
        "closed /by-client 3001 done".to_owned(),
        format!("closed /by-client 4999 {long}"),
        "closed /by-server 1001 moving on".to_owned(),
        "closed /by-server 4000 ".to_owned(),
        "closed /by-server 1013 later".to_owned(),
        "closed /no-code 1005 ".to_owned(),
    ];
    let mut got: Vec<String> = (0..want.len()).map(|_| server.line()).collect();
    got.sort();
    want.sort();
    assert_eq!(got, want);
    gateway.stop().expect("backend_close 3, client_close 4");

    let mut server = Program::python("websockets_server.py", &[]);
    let gateway = in_front_of(&mut server);
    Program::python("websockets_client.py", &["closes", &gateway.url("")]).success();
    gateway.stop().expect("backend_close 2, client_close 3");
}

/// The server behind is killed: its clients are told so.
#[test]
fn a_crash_behind_is_1012() {
    let mut server = Program::node("server.js", &[]);
    let gateway = in_front_of(&mut server);
    let mut client = Program::node("client.js", &["crash", &gateway.url("")]);
    client.line_with("connected");
    server.kill();
    client.success();
    gateway.stop().expect("backend_gone 1");
}
