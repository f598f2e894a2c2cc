//! Protocols that people run over WebSocket, each by a client and a server that they use, unmodified:
//! neither may notice the gateway.

use std::net::SocketAddr;
use std::process::Command;

use crate::support::{
    Gateway, HEAD, Program, QUIET, Scratch, free_address, installed, to_upstream,
};

/// Runs the client of this protocol against its server behind the gateway; returns its lines.
#[track_caller]
fn through_the_gateway(protocol: &str, server: SocketAddr, path: &str) -> Vec<String> {
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(server)));
    let lines = Program::node("protocols.js", &[protocol, &gateway.url(path)]).success();
    // Whoever closes, it is not the gateway that found something wrong. Servers may hang up without a
    // Close frame when their own protocol has said goodbye, as mosquitto does: `backend_gone`. A client
    // that gives a poll up ends its stream, as one does that waits for the answer, so the poll is there
    // until the gateway stops: `drain`.
    let closed = gateway.stop().closed;
    for cause in closed.keys() {
        let causes =
            ["client_close", "backend_close", "backend_gone", "client_gone", "http_done", "drain"];
        assert!(causes.contains(&cause.as_str()), "{closed:?}");
    }
    lines
}

#[test]
fn graphql_ws() {
    let mut server = Program::node("protocols_server.js", &["graphql"]);
    through_the_gateway("graphql", server.listening(), "/graphql");
    // The client's `complete` has ended the subscription.
    assert_eq!(server.line_with("completed"), "completed, 0 open");
}

#[test]
fn sockjs() {
    let mut server = Program::node("protocols_server.js", &["sockjs"]);
    let lines = through_the_gateway("sockjs", server.listening(), "/echo");
    assert_eq!(lines, ["websocket", "xhr-streaming", "xhr-polling"]);
}

/// ASP.NET Core 2.2 on .NET Core 3.1, which negotiates in version 0: the connection's name is its key.
#[test]
fn signalr() {
    if std::env::var("PENSTOCK_SKIP_DOTNET").is_ok_and(|skip| skip == "1") {
        println!("skipped, as PENSTOCK_SKIP_DOTNET=1 asks");
        return;
    }
    let home = installed("signalr");
    let mut server = Program::start(
        "Hub.dll",
        Command::new(home.join("dotnet/dotnet"))
            .arg(home.join("hub/Hub.dll"))
            .env("LD_LIBRARY_PATH", home.join("openssl"))
            .env("DOTNET_SYSTEM_GLOBALIZATION_INVARIANT", "1"),
    );
    let lines = through_the_gateway("signalr", server.listening(), "/chat");
    assert_eq!(lines, ["WebSockets", "ServerSentEvents", "LongPolling"]);
}

#[test]
fn mqtt_of_mosquitto() {
    // It listens on no address that no interface has.
    let (scratch, address) = (Scratch::new("mosquitto"), free_address([127, 0, 0, 1]));
    let directory = scratch.path().display();
    // One listener for WebSockets alone is not enough for 2.0.
    let config = format!(
        "listener 0 {directory}/socket\nlistener {} {}\nprotocol websockets\nallow_anonymous true\npersistence false\n\
         user root\n",
        address.port(),
        address.ip()
    );
    let file = scratch.write("mosquitto.conf", &config);
    let mut server = Program::daemon("mosquitto", |command| command.arg("-c").arg(file));
    server.line_containing(" running");
    through_the_gateway("mqtt", address, "/mqtt");
}

#[test]
fn xmpp_of_prosody() {
    let (scratch, address) = (Scratch::new("prosody"), free_address(QUIET));
    let (directory, ip, port) = (scratch.path().display(), address.ip(), address.port());
    let config = format!(
        "run_as_root = true\npidfile = '{directory}/pid'\ndata_path = '{directory}'\n\
         log = {{ info = '*console' }}\nmodules_enabled = {{ 'saslauth', 'websocket' }}\n\
         modules_disabled = {{ 's2s' }}\nauthentication = 'internal_plain'\n\
         c2s_ports = {{}}\nc2s_direct_tls_ports = {{}}\nhttps_ports = {{}}\n\
         http_interfaces = {{ '{ip}' }}\nhttp_ports = {{ {port} }}\n\
         http_default_host = 'localhost'\nconsider_websocket_secure = true\n\
         VirtualHost 'localhost'\n"
    );
    let file = scratch.write("prosody.cfg.lua", &config);
    scratch.write("localhost/accounts/alice.dat", "return { password = 'secret' };\n");
    let mut server =
        Program::daemon("prosody", |command| command.arg("-F").arg("--config").arg(file));
    server.line_containing("Activated service 'http'");
    through_the_gateway("xmpp", address, "/xmpp-websocket");
}

#[test]
fn nats() {
    let scratch = Scratch::new("nats");
    let config = "listen: \"127.0.0.1:-1\"\nwebsocket { listen: \"127.0.0.1:-1\", no_tls: true }\n";
    let file = scratch.write("nats.conf", config);
    let program = installed("servers/venv/bin/nats-server");
    let mut server = Program::daemon(program, |command| command.arg("-c").arg(file));
    let line = server.line_containing("Listening for websocket clients on ");
    let address = line.rsplit('/').next().expect("an address").parse().expect("an address");
    through_the_gateway("nats", address, "/");
}

/// One broker for both: it takes seconds to start.
#[test]
fn mqtt_and_stomp_of_rabbitmq() {
    let scratch = Scratch::new("rabbitmq");
    let [mqtt, stomp, names, peers] = [(); 4].map(|()| free_address(QUIET));
    let config = format!(
        "listeners.tcp = none\nmqtt.listeners.tcp = none\nstomp.listeners.tcp = none\n\
         web_mqtt.tcp.ip = {}\nweb_mqtt.tcp.port = {}\n\
         web_stomp.tcp.ip = {}\nweb_stomp.tcp.port = {}\n\
         log.console = true\nlog.console.level = info\nlog.file = false\n",
        mqtt.ip(),
        mqtt.port(),
        stomp.ip(),
        stomp.port()
    );
    let config = scratch.write("rabbitmq.conf", &config);
    let plugins = scratch.write("plugins", "[rabbitmq_web_mqtt,rabbitmq_web_stomp].\n");
    // Erlang's register of names, which would otherwise stay behind as a daemon.
    let port = names.port().to_string();
    let mut register = Program::daemon("epmd", |command| {
        command.args(["-d", "-d", "-address", "127.0.0.1", "-port", &port])
    });
    register.line_containing("entering the main select() loop");
    let mut server = Program::daemon("/usr/lib/rabbitmq/bin/rabbitmq-server", |command| {
        command
            .env("HOME", scratch.path())
            .env("ERL_EPMD_PORT", &port)
            // With this the script becomes the broker, instead of waiting for it.
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-noinput")
            .env("RABBITMQ_NODENAME", format!("penstock{}@localhost", peers.port()))
            .env("RABBITMQ_DIST_PORT", peers.port().to_string())
            .env("RABBITMQ_CONFIG_FILE", config)
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins)
            .env("RABBITMQ_MNESIA_BASE", scratch.path())
            .env("RABBITMQ_LOG_BASE", scratch.path())
            .env("RABBITMQ_PID_FILE", scratch.path().join("pid"))
            .env("RABBITMQ_FEATURE_FLAGS_FILE", scratch.path().join("features"))
    });
    server.line_containing("Server startup complete");
    through_the_gateway("mqtt", mqtt, "/ws");
    through_the_gateway("stomp", stomp, "/ws");
}
