"""The scenarios: what penstock-bench is asked to do, and which of its figures go into the table.

A scenario is a list of points; a point is one run of the tool. Every peer of the scenario's kinds
gets every point, at the same rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

Read = Callable[[dict], float | None]


@dataclass(frozen=True)
class Figure:
    """A column of the table."""

    title: str
    # Takes it from a result; None when it is not in there. A column that no row has is left out.
    read: Read
    # "lower", "higher", or "" for what is told and not judged.
    better: str = ""
    # What the scenario is decided by. Its ratio to Penstock has a column.
    decides: bool = False
    # The difference to the direct path is shown too.
    is_added: bool = False
    digits: int = 1


@dataclass(frozen=True)
class Point:
    """One run of the tool."""

    name: str
    # The tool's command and its options, but for --url, --pid, --cpu and the protocol.
    arguments: tuple[str, ...]
    # What it takes, connecting and closing included.
    seconds: float
    # Its rate is this share of what the peer reached at the point of that name before.
    share: tuple[float, str] | None = None


@dataclass(frozen=True)
class Scenario:
    number: int
    title: str
    # What decides, in words.
    decided_by: str
    kinds: tuple[str, ...]
    points: tuple[Point, ...]
    # A single tiny one, for tests.
    quick: tuple[Point, ...]
    figures: tuple[Figure, ...]
    # Rows that are left out, as they have nothing to say here.
    without: tuple[str, ...] = ()
    # Set in the namespace beside what is always set.
    sysctls: dict[str, str] = field(default_factory=dict)


def at(*keys: str | int, scale: float = 1.0) -> Read:
    """Reads the number that these keys lead to."""

    def read(result: dict) -> float | None:
        value = result
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value * scale if is_number else None

    return read


def busy_percent(result: dict) -> float | None:
    """How busy the peer was, of one core; None where it is not known."""
    said = at("server", "cpu_busy_percent")(result)
    if said is not None:
        return said
    each = at("servers", 0, "server_cpu_us_per_message_median")(result)
    rate = at("servers", 0, "messages_per_second")(result)
    return None if each is None or rate is None else each * rate / 1e4


def found_probe(key: str) -> Read:
    """Of the probes at the rate that a search has found: the last that was good."""

    def read(result: dict) -> float | None:
        rate = result.get("rate_found_per_second")
        probes = [probe for probe in result.get("probes", [])
                  if probe.get("good") and probe.get("rate_per_second") == rate]
        return at(-1, key)(probes)

    return read


def per_core(read_us: Read) -> Read:
    """What one core could do, going by the processor time of each."""

    def read(result: dict) -> float | None:
        us = read_us(result)
        return 1e6 / us if us else None

    return read


def idle_cpu_percent(result: dict) -> float | None:
    seconds = at("server", "cpu_while_holding", "cpu_seconds")(result)
    held = at("held_seconds")(result)
    return None if seconds is None or not held else 100 * seconds / held


def first_of(*reads: Read) -> Read:
    """The first of several that is there."""
    return lambda result: next((v for v in (read(result) for read in reads) if v is not None), None)


# Connecting and closing, by thousands of connections; the slowest peers (node) decide.
OPENING_SECONDS_PER_THOUSAND = 0.35


def point(name: str, command: str, connections: int, seconds: float, warm_up: float, *arguments: str,
          share: tuple[float, str] | None = None) -> Point:
    opening = 0.2 + connections / 1000 * OPENING_SECONDS_PER_THOUSAND
    words = (command, "--seconds", str(seconds), "--warm-up-seconds", str(warm_up), *arguments)
    return Point(name, words, seconds + warm_up + opening, share)


def load(connections: int, size: int, rate: int, seconds: float = 4, warm_up: float = 0.5) -> Point:
    name = f"{size} B, {rate:,}/s on {connections:,} connections"
    return point(name, "load", connections, seconds, warm_up, "--connections", str(connections),
                 "--size", str(size), "--rate", str(rate))


def echo(connections: int, size: int, seconds: float = 2, warm_up: float = 0.3) -> Point:
    return point(echo_name(connections, size), "echo", connections, seconds, warm_up,
                 "--connections", str(connections), "--size", str(size))


def echo_name(connections: int, size: int) -> str:
    return f"{size} B, closed loop on {connections:,} connections"


def load_share(connections: int, size: int, share: float, seconds: float = 4) -> Point:
    name = f"{size} B, {share:.0%} of its closed loop, on {connections:,} connections"
    return point(name, "load", connections, seconds, 0.5, "--connections", str(connections),
                 "--size", str(size), share=(share, echo_name(connections, size)))


def fanout(rooms: int, members: int, rate: int, seconds: float = 4, warm_up: float = 0.5,
           *arguments: str) -> Point:
    room = f"{members:,} members" if rooms == 1 else f"{rooms:,} rooms of {members:,}"
    name = f"{room}, {rate:,} publishes/s"
    # The tool waits for stragglers at the end.
    return point(name, "fanout", rooms * members, seconds, warm_up, "--rooms", str(rooms),
                 "--members", str(members), "--rate", str(rate), "--size", "128", *arguments)


def search(connections: int, size: int, percentile: str, bound_ms: str, first: int, highest: int,
           seconds: float, tries: int, confirm: int) -> Point:
    name = f"{size} B on {connections:,} connections, p{percentile} within {bound_ms} ms"
    words = ("search", "--connections", str(connections), "--size", str(size), "--percentile", percentile,
             "--max-ms", bound_ms, "--from", str(first), "--rate-max", str(highest),
             "--seconds", str(seconds), "--tries", str(tries), "--confirm", str(confirm))
    # Doublings, halvings, and what is tried again: as many as it took here.
    return Point(name, words, 25 * (seconds + 0.6) if tries > 1 else 4 * (seconds + 0.6))


def storm(standing: int, connections: int, rate: int, before: float = 2, after: float = 1) -> Point:
    name = f"{connections:,} reconnect at once, {standing:,} stand by at {rate:,}/s"
    words = ("storm", "--standing", str(standing), "--connections", str(connections), "--rate", str(rate),
             "--before-seconds", str(before), "--after-seconds", str(after), "--storm-seconds-max", "40")
    return Point(name, words, 3 + before + after + connections / 1000)


def connect(rate: int, seconds: float = 5, warm_up: float = 1) -> Point:
    return point(f"{rate:,} connections/s, opened and closed", "connect", 0, seconds, warm_up,
                 "--rate", str(rate))


def slow(members: int, rate: int, size: int, percent: float, slow_seconds: float, seconds: float) -> Point:
    name = f"{members:,} members, {rate:,} publishes/s of {size} B, {percent:g} % stop reading"
    return point(f"{name} for {slow_seconds:g} s", "fanout", members, seconds, 0.5, "--members", str(members),
                 "--rate", str(rate), "--size", str(size), "--slow-percent", str(percent),
                 "--slow-seconds", str(slow_seconds))


def hold(connections: int, seconds: float) -> Point:
    words = ("hold", "--connections", str(connections), "--seconds", str(seconds))
    opening = 0.5 + connections / 1000 * OPENING_SECONDS_PER_THOUSAND
    return Point(f"{connections:,} idle connections for {seconds:g} s", words, seconds + opening)


MESSAGE_CPU = at("server", "cpu_us_per_message")
BUSY = Figure("peer's core, %", busy_percent, digits=0)
LATENCIES = tuple(
    Figure(f"{name}, µs", at("latency_us", name), "lower", is_added=True, digits=0)
    for name in ("p50", "p99", "p99.9"))
ECHO_CPU = first_of(MESSAGE_CPU, at("servers", 0, "server_cpu_us_per_message_median"))
ECHO_RATE = first_of(at("achieved_per_second"), at("servers", 0, "messages_per_second"))


def echo_latency(name: str) -> Read:
    """Of the open loop from when a message was due, of the closed one from when it was sent."""
    return first_of(at("latency_us", name), at("servers", 0, "closed_loop_latency_us", name))


DELIVERIES = (
    Figure("CPU, ns/delivery", at("server", "cpu_us_per_delivery", scale=1000), "lower",
           decides=True, digits=0),
    Figure("to the last member p50, ms", at("last_member_us", "p50", scale=1e-3), "lower"),
    Figure("to the last member p99, ms", at("last_member_us", "p99", scale=1e-3), "lower"),
    Figure("each delivery p99, ms", at("each_delivery_us", "p99", scale=1e-3), "lower"),
    Figure("deliveries/s", at("deliveries_per_second"), digits=0),
    Figure("not delivered", at("missing_count"), digits=0),
    BUSY,
)

SCENARIOS = [
    Scenario(
        1, "Proxy, steady rate", "the peer's processor time per message; added latency",
        ("proxy",),
        tuple(load(1000, size, rate) for size in (128, 4096) for rate in (5_000, 20_000, 50_000)),
        (load(50, 128, 2_000, 0.5, 0.1),),
        (Figure("CPU, µs/message", MESSAGE_CPU, "lower", decides=True, digits=2), *LATENCIES, BUSY),
    ),
    Scenario(
        2, "Proxy, highest rate within a bound of latency", "the rate; and whether the peer was its limit",
        ("proxy",),
        (search(1000, 128, "99.9", "2", 4_000, 400_000, 2, 2, 2),),
        (search(50, 128, "99", "500", 500, 1_000, 0.4, 1, 0),),
        (
            Figure("messages/s", at("rate_found_per_second"), "higher", decides=True, digits=0),
            Figure("too high", at("rate_too_high_per_second"), digits=0),
            Figure("peer's core at the rate found, %", found_probe("server_cpu_busy_percent"), digits=0),
            Figure("tool's core, %", found_probe("tool_core_busy_percent"), digits=0),
            Figure("CPU, µs/message", found_probe("server_cpu_us_per_message"), "lower", digits=2),
            Figure("p99.9, µs", at("latency_at_rate_found_us", "p99.9"), digits=0),
        ),
    ),
    Scenario(
        4, "Idle connections", "the peer's own memory per connection", ("proxy", "echo"),
        (hold(9_000, 30),), (hold(200, 0.5),),
        (
            Figure("user space, B/connection",
                   at("server", "memory", "pss_bytes_per_connection"), "lower", decides=True,
                   digits=0),
            # Of the whole machine, whatever else it does, and so not judged: the tool's end of each
            # connection is in it for all alike, and behind a proxy the backend's too.
            Figure("kernel, both ends, B/connection",
                   at("kernel_memory", "unreclaimable_slab_bytes_per_connection"),
                   is_added=True, digits=0),
            Figure("before, MiB", at("server", "memory", "pss_before_bytes", scale=1 / 2**20)),
            Figure("CPU while idle, %", idle_cpu_percent, "lower", digits=2),
            Figure("CPU, µs/open", at("server", "cpu_us_per_open"), "lower"),
            Figure("held at the end", at("open_count_at_end_of_hold"), digits=0),
        ),
    ),
    Scenario(
        5, "Echo, terminated", "the peer's processor time per message", ("echo",),
        (
            *(echo(connections, size) for size in (64, 512, 16_384)
              for connections in (10, 100, 500, 5_000)),
            load(500, 512, 20_000), load_share(500, 512, 0.5), load_share(500, 512, 0.8),
        ),
        (echo(50, 64, 0.5, 0.1),),
        (
            Figure("CPU, µs/message", ECHO_CPU, "lower", decides=True, digits=2),
            Figure("by that, messages/s of a core", per_core(ECHO_CPU), digits=0),
            Figure("messages/s with this tool", ECHO_RATE, digits=0),
            Figure("p50, µs", echo_latency("p50"), "lower", digits=0),
            Figure("p99.9, µs", echo_latency("p99.9"), "lower", digits=0),
            BUSY,
        ),
    ),
    Scenario(
        6, "Fan-out, one room", "the peer's processor time per delivery; nothing may be missing",
        ("fan-out",),
        tuple(fanout(1, members, rate) for members, rate in
              ((1_000, 10), (1_000, 100), (1_000, 200), (5_000, 10), (5_000, 30), (15_000, 10))),
        (fanout(1, 50, 20, 0.5, 0.1),), DELIVERIES,
    ),
    Scenario(
        7, "Fan-out, many rooms", "the p99 of a delivery and the processor time per delivery",
        ("fan-out",),
        tuple(fanout(1_000, 10, rate) for rate in (100, 1_000, 5_000)),
        (fanout(10, 5, 100, 0.5, 0.1),), DELIVERIES,
        without=("send-loop",),
    ),
    Scenario(
        9, "Storm", "the time until all are up; the p99 of opening; what the others see of it",
        ("proxy", "echo"),
        (storm(1_000, 5_000, 1_000), connect(2_000)),
        (storm(20, 50, 200, 0.5, 0.3), connect(200, 0.5, 0.1)),
        (
            Figure("all up, ms", at("all_up_ms"), "lower", decides=True, digits=0),
            Figure("up again p99, ms", at("up_us", "p99", scale=1e-3), "lower", is_added=True),
            Figure("others' p99.9 before, ms", at("before", "latency_us", "p99.9", scale=1e-3)),
            Figure("others' p99.9 during, ms", at("during", "latency_us", "p99.9", scale=1e-3), "lower",
                   is_added=True),
            Figure("attempts failed", at("failed_attempts_count"), digits=0),
            Figure("open p99, ms", at("open_us", "p99", scale=1e-3), "lower", decides=True, is_added=True),
            Figure("open p50, ms", at("open_us", "p50", scale=1e-3), "lower", is_added=True),
            Figure("opens/s", at("opens_per_second"), digits=0),
            Figure("CPU, µs/open",
                   first_of(at("server_cpu_us_per_open"), at("server", "cpu_us_per_open")), "lower"),
        ),
    ),
    Scenario(
        10, "Slow readers", "what the others see of them; how much memory they take",
        ("fan-out",),
        (slow(1_000, 50, 4_096, 1, 10, 14),), (slow(50, 20, 512, 4, 1, 2),),
        (
            Figure("others' p99 meanwhile, ms", at("slow", "others_while_slow_us", "p99", scale=1e-3),
                   "lower", decides=True),
            Figure("others' p99 otherwise, ms", at("slow", "others_otherwise_us", "p99", scale=1e-3), "lower"),
            Figure("memory grew, MiB", at("peer_memory", "peak_growth_bytes", scale=1 / 2**20), "lower"),
            Figure("cut", at("slow", "cut_members_count"), digits=0),
            Figure("with gaps, untold", at("slow", "silent_gap_members_count"), digits=0),
            Figure("still behind", at("slow", "behind_members_count"), digits=0),
            Figure("caught up", at("slow", "caught_up_members_count"), digits=0),
            Figure("CPU, ns/delivery", at("server", "cpu_us_per_delivery", scale=1000), "lower", digits=0),
        ),
        without=("send-loop",),
        # Else the kernel keeps megabytes for each, and the peer does not hear that they are slow.
        # Penstock sets as much for its clients by default.
        sysctls={"net/ipv4/tcp_wmem": "4096 16384 262144", "net/ipv4/tcp_rmem": "4096 65536 262144"},
    ),
]

NOT_HERE = {
    3: "wss: Penstock has no TLS yet, so there is nothing to compare",
    8: "webhooks: Penstock has none yet",
}


def find(number: int) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.number == number)


# The figure shows the limit of the tool or the machine.
TOOL_BOUND = "tool-bound"

# What did not come through, by its key in a result, and how that is told. All are counts.
LOSSES = {
    "lost_count": "lost {}",
    "missing_count": "missing {}",
    "duplicates_count": "duplicates {}",
    "reordered_count": "reordered {}",
    "faults_count": "faults {}",
    "failed_count": "connections failed {}",
    "ended_early_count": "ended early {}",
    "ended_early_by_server_count": "ended early {}",
    "unfinished_count": "opens unfinished {}",
    "given_up_count": "clients given up {}",
    "standing_lost_count": "others' messages lost {}",
    "standing_ended_count": "others ended {}",
}


def losses(result: dict) -> list[str]:
    """What a peer did not do, as a reader is told."""
    found = []
    places = [result, *result.get("servers", [])]
    for key, text in LOSSES.items():
        count = int(sum(at(key)(place) or 0 for place in places))
        if count:
            found.append(text.format(f"{count:,}"))
    if result.get("fell_behind"):
        found.append("fell behind")
    if result.get("complete") is False:
        found.append("incomplete")
    return found


def marks(result: dict) -> list[str]:
    """What a reader has to know about a result."""
    busy = busy_percent(result)
    # In a closed loop a peer has no time to spare, unless the tool is what is slow.
    is_idle = "servers" in result and busy is not None and busy < 95
    found = [TOOL_BOUND] if result.get("saturated") or is_idle else []
    if result.get("limited_by"):
        found.append(f"limited by {result['limited_by']}")
    return found + losses(result)
