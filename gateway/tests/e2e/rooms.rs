//! The embedded rooms with real clients.

use crate::support::{ECHO_AND_ROOMS, Gateway, HEAD, Program};

#[test]
fn every_operation_as_the_description_has_it() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    Program::node("rooms.js", &["tour", &gateway.url("/rooms")]).success();
}

/// Members in six shards, on however many CPUs there are.
#[test]
fn a_room_across_shards_has_one_order() {
    let gateway = Gateway::start_with(&format!("{HEAD}{ECHO_AND_ROOMS}"), &["--shards", "6"]);
    Program::node("rooms.js", &["crowd", &gateway.url("/rooms"), "20"]).success();
    gateway.stop().expect("client_close 20");
}
