//! Who a client of the embedded rooms says that it is, and whether it is believed.

use serde_json::{Value, json};

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Peer, Scratch, upgrade};

const REFUSED: &str =
    "[[route]]\nbackend = \"lounge\"\n[backend.lounge]\nkind = \"local\"\ndemo_page = true\n";

/// What a handshake with this target is answered with: the head and, where it is refused, the text.
fn answer(gateway: &Gateway, target: &str) -> String {
    let mut peer = Peer::connect(gateway.address());
    peer.write(upgrade(target, ""));
    let head = peer.head();
    match head.starts_with("HTTP/1.1 101 ") {
        true => head,
        false => head + &String::from_utf8_lossy(&peer.rest()),
    }
}

fn hear(peer: &mut Peer) -> Value {
    serde_json::from_slice(&peer.frame().payload).expect("JSON")
}

/// A client, and the name that it is welcomed by.
fn open(gateway: &Gateway, target: &str) -> (Peer, String) {
    let mut peer = Peer::open(gateway.address(), target);
    let welcome = hear(&mut peer);
    assert_eq!(welcome["event"], "welcome");
    let user = welcome["user"].as_str().expect("a name").to_owned();
    (peer, user)
}

#[test]
fn a_name_is_refused_unless_the_file_trusts_it() {
    let gateway = Gateway::start(&format!("{HEAD}{REFUSED}"));
    for target in ["/?user=ann", "/?a=b&%75ser=ann", "/?user", "/?user=%ff", "/?user=guest-1"] {
        let answer = answer(&gateway, target);
        assert!(answer.starts_with("HTTP/1.1 403 "), "{target}: {answer}");
        for words in [
            "client_names is \"refused\" in [backend.lounge]",
            "connect without user=",
            "set client_names = \"trusted\"",
        ] {
            assert!(answer.contains(words), "{target}: {words:?} in\n{answer}");
        }
    }
    for target in ["/", "/?users=ann&token=user%3Dann"] {
        let (_, user) = open(&gateway, target);
        assert!(user.starts_with("guest-"), "{target}: {user}");
    }
    // The page that was asked for with a name comes all the same.
    let mut peer = Peer::connect(gateway.address());
    peer.write("GET /?user=ann HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(peer.answer().starts_with("HTTP/1.1 200 "));
    drop(peer);
    gateway.stop();
}

#[test]
fn the_start_says_that_everybody_is_a_guest() {
    let said = |keys: &str| {
        let mut gateway = Gateway::start(&format!("{HEAD}{REFUSED}{keys}"));
        let line = gateway.line_containing("websocat");
        drop(gateway);
        line
    };
    assert!(said("client_names = \"trusted\"\n").contains("/?user=ada'"));
    assert!(!said("").contains("user="));
    let mut gateway = Gateway::start(&format!("{HEAD}{REFUSED}"));
    gateway
        .line_containing("everybody is a guest: `client_names` of backend lounge is \"refused\"");
}

/// Without a file, and with nobody but this machine to come.
#[test]
fn without_a_file_names_on_loopback_are_trusted() {
    let gateway = Gateway::run(&["run", "--listen", "127.0.0.1:0"]);
    assert_eq!(open(&gateway, "/?user=ann").1, "ann");
}

#[test]
fn a_user_has_one_name_however_it_is_spelt() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let (mut composed, name) = open(&gateway, "/rooms?user=zo%C3%AB");
    assert_eq!(name, "zo\u{eb}");
    let (mut decomposed, name) = open(&gateway, "/rooms?user=zoe%CC%88");
    assert_eq!(name, "zo\u{eb}");
    let (mut ann, name) = open(&gateway, "/rooms?user=ann");
    assert_eq!(name, "ann");
    // Where the connections of a user are, its home learns by mail.
    loop {
        let direct = json!({"op": "direct", "to": "zoe\u{308}", "data": "psst", "id": 1});
        ann.send(0x81, direct.to_string().as_bytes());
        let answer = hear(&mut ann);
        if answer["reached"] == 2 {
            assert_eq!(answer["to"], "zo\u{eb}");
            break;
        }
    }
    for peer in [&mut composed, &mut decomposed] {
        let direct = hear(peer);
        assert_eq!((&direct["user"], &direct["data"]), (&json!("ann"), &json!("psst")));
    }
    drop((composed, decomposed, ann));
    gateway.stop();
}

#[test]
fn names_that_nobody_may_have() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let long = "n".repeat(129);
    for (value, why) in [
        ("bob%E2%80%AE", "the name in user= has U+202E, which turns the direction of text"),
        ("bob%E2%80%8B", "has U+200B, which is invisible"),
        ("bob%0A", "has U+000A, a control character"),
        ("bob+", "begins or ends with a space"),
        ("+", "begins or ends with a space"),
        ("%E2%A0%80", "has U+2800, which looks like a space"),
        ("bob%C2%A0b", "has U+00A0, a space other than U+0020"),
        ("%EE%80%80", "has U+E000, which Unicode has not assigned, or for private use"),
        ("", "is empty"),
        (&*long, "is longer than 128 bytes"),
        ("%ff", "user= is not UTF-8"),
        ("bob%2", "user= is not UTF-8"),
        ("bob&user=ann", "user= stands in the query more than once"),
    ] {
        let answer = answer(&gateway, &format!("/rooms?user={value}"));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{value}: {answer}");
        assert!(answer.contains(why), "{value}: {answer}");
    }
    assert_eq!(open(&gateway, "/rooms?user=Bob+%F0%9F%A6%80").1, "Bob \u{1f980}");
    assert!(open(&gateway, "/rooms?user=guest-1").1.starts_with("guest-"));
    gateway.stop();
}

/// The operator finds a user and a room by any spelling, too.
#[test]
fn the_operator_spells_as_they_like() {
    let scratch = Scratch::new("users");
    let socket = scratch.path().join("admin.sock");
    let admin = format!("[admin]\nsocket = \"{}\"\n", socket.display());
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}{admin}"));
    let (mut zoe, _) = open(&gateway, "/rooms?user=zo%C3%AB");
    zoe.send(0x81, json!({"op": "join", "room": "cafe\u{301}", "id": 1}).to_string().as_bytes());
    assert_eq!(hear(&mut zoe)["room"], "caf\u{e9}");
    let listed = |option: [&str; 2]| {
        let mut command = std::process::Command::new(crate::support::binary());
        let output = command.arg("conns").args(option).arg("--socket").arg(&socket).output();
        String::from_utf8(output.expect("it runs").stdout).expect("UTF-8").lines().count() - 1
    };
    assert_eq!(listed(["--user", "zoe\u{308}"]), 1);
    assert_eq!(listed(["--user", "zo\u{eb}"]), 1);
    assert_eq!(listed(["--room", "cafe\u{301}"]), 1);
    assert_eq!(listed(["--user", "zoe"]), 0);
}
