//! Bounds, of the whole and of a route, and rates.

use super::*;

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
