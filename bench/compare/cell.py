"""One peer, once through all points of a scenario, in a network namespace of its own.

`run_cell` is called by the suite and starts this file as a program in new network and process
namespaces; what runs there sets the namespace up, starts backend and peer, and lets the tool
measure. When it ends, however it ends, the kernel ends every process of its namespace.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import peers
import scenarios
from packages import NotInstalled
from process import Failed, MemoryWatch, Program, telling_line, wait_for_answer

# Of a namespace's own, and with nobody else in it; below the range that clients take ports from.
PEER_PORT = 8000
BACKEND_PORT = 9000

# What every namespace is to use. A namespace may only choose what the machine's first one allows, and
# that list is not ours to change: see `choose_congestion_control`.
CONGESTION_CONTROL = "net/ipv4/tcp_congestion_control"
CONGESTION_CONTROL_WANTED = "cubic"

# Set in every namespace; all of them are the namespace's own.
SYSCTLS = {
    "net/core/somaxconn": "65535",
    "net/ipv4/tcp_max_syn_backlog": "65535",
    "net/ipv4/ip_local_port_range": "10000 65000",
    # Closed connections of one point must not keep the ports of the next.
    "net/ipv4/tcp_tw_reuse": "1",
}


@dataclass(frozen=True)
class Cpus:
    """Where things run: the peer alone on one, the tool and the backend on another."""

    peer: int
    tool: int

    @staticmethod
    def of_this_machine() -> "Cpus":
        ours = sorted(os.sched_getaffinity(0))
        return Cpus(ours[0], ours[min(1, len(ours) - 1)])


def run_cell(scenario: int, kind: str, peer: str, quick: bool, only: str, directory: Path) -> dict:
    """Runs it and returns {"points": {name: …}} or {"error": …}. Bounded by the points' times."""
    directory.mkdir(parents=True, exist_ok=True)
    out = directory / "cell.json"
    out.unlink(missing_ok=True)
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["setpriv", "--pdeathsig", "KILL",
               "unshare", *as_root, "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
               sys.executable, "-B", __file__, str(scenario), kind, peer, str(int(quick)), only,
               str(directory)]
    expected = sum(point.seconds for point in chosen_points(scenarios.find(scenario), quick, only))
    with (directory / "cell.log").open("wb") as log:
        # In a session of its own, so that Ctrl-C is ours to act on.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)
        try:
            process.wait(timeout=60 + 4 * expected)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {60 + 4 * expected:.0f} s"}
        finally:
            if process.poll() is None:
                process.kill()  # And with it, by --kill-child, its whole namespace.
                process.wait()
    try:
        return json.loads(out.read_text())
    except (OSError, ValueError):
        said = telling_line((directory / "cell.log").read_text(errors="replace"))
        return {"error": f"the run ended early: {said}"}


def chosen_points(scenario: scenarios.Scenario, quick: bool, only: str) -> list[scenarios.Point]:
    """The points whose name contains `only`, and those that they take their rate from."""
    points = scenario.quick if quick else scenario.points
    wanted = {point.name for point in points if only in point.name}
    wanted |= {point.share[1] for point in points if point.share and point.name in wanted}
    return [point for point in points if point.name in wanted]


def choose_congestion_control(root: Path = Path("/proc/sys")) -> str:
    """Chooses the one that is wanted where it is allowed; else stays with the namespace's own.

    A fresh machine allows `reno` and its default, and a default of `bbr` leaves `cubic` out. Loopback
    loses nothing, so figures hold either way; the one in use goes into the result.
    """
    path = root / CONGESTION_CONTROL
    try:
        path.write_text(CONGESTION_CONTROL_WANTED)
    except OSError:
        pass
    return path.read_text().strip()


def set_up_namespace(sysctls: dict[str, str]) -> dict[str, str]:
    """Sets it up; returns what the machine had a say in."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    chosen = {"congestion_control": choose_congestion_control()}
    for name, value in sysctls.items():
        Path("/proc/sys", name).write_text(value)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return chosen


def dialect_of(peer: peers.Peer, tool: str) -> peers.Dialect:
    """What the tool speaks to this peer; nothing but a path for proxies and echoes."""
    if peer.kind != "fan-out":
        return peers.Dialect("", path="/")
    said = subprocess.run([tool, "fanout", "--help"], capture_output=True, text=True, check=True)
    known = re.findall(r"[\w-]+", said.stdout)
    for dialect in peer.dialects:
        if dialect.name in known:
            return dialect
    names = " or ".join(dialect.name for dialect in peer.dialects)
    raise Failed(f"penstock-bench does not speak {names}")


class Stage:
    """A peer, and the echo server behind a proxy: started, and started anew when need be."""

    def __init__(self, peer: peers.Peer, dialect: peers.Dialect, directory: Path):
        self.peer = peer
        self.dialect = dialect
        self.directory = directory
        self.started: list[Program] = []

    def start(self) -> None:
        """Starts what is not running; returns when a WebSocket opens."""
        if self.started:
            return
        peer, directory, cpus = self.peer, self.directory, Cpus.of_this_machine()
        if peer.kind == "proxy":
            argv = peers.echo_server(BACKEND_PORT)
            self.started.append(Program(argv, cpus.tool, directory / "backend.log"))
            wait_for_answer(self.started[-1], BACKEND_PORT, "/", "", echoes=True)
        if peer.package is not None:
            argv = peer.start_command(peers.Place(directory, PEER_PORT, BACKEND_PORT))
            (directory / "command.txt").write_text(" ".join(argv) + "\n")
            log = directory / "peer.log"
            self.started.append(Program(argv, cpus.peer, log, peer.environment))
            wait_for_answer(self.started[-1], PEER_PORT, self.dialect.probe_path, peer.subprotocol,
                            echoes=peer.kind != "fan-out")

    def check_runs(self) -> None:
        for program in self.started:
            program.check_runs()

    def stop(self) -> None:
        while self.started:
            self.started.pop().stop()

    def arguments(self) -> list[str]:
        """What the tool has to be told of it."""
        port = BACKEND_PORT if self.peer.package is None else PEER_PORT
        dialect = self.dialect
        spoken = ["--dialect", dialect.name, *dialect.options] if dialect.name else []
        of_peer = ["--pid", ",".join(map(str, self.pids()))] if self.pids() else []
        return [*spoken, "--url", f"ws://127.0.0.1:{port}{dialect.path}",
                "--cpu", str(Cpus.of_this_machine().tool), *of_peer]

    def pids(self) -> list[int]:
        """Of the peer's whole tree."""
        return self.started[-1].pids() if self.peer.package is not None else []


def measure(peer: peers.Peer, scenario: scenarios.Scenario, points: list[scenarios.Point],
            directory: Path) -> dict:
    tool = str(peers.TOOL.program())
    stage = Stage(peer, dialect_of(peer, tool), directory)
    results: dict[str, dict] = {}
    try:
        for point in points:
            try:
                stage.start()
            except Failed as error:
                if not results:
                    raise
                results[point.name] = {"error": str(error)}
                stage.stop()
                continue
            argv = [tool, *point.arguments, *rate_of(point, results), *stage.arguments()]
            told = results[point.name] = run_tool(argv, point, stage.pids())
            try:
                stage.check_runs()
            except Failed as error:
                told["error"] = str(error)
                told.pop("result", None)
            if "error" in told or scenarios.losses(told["result"]):
                # What it has not yet worked off is not to be the next point's burden.
                stage.stop()
        return {"points": results}
    finally:
        stage.stop()


def rate_of(point: scenarios.Point, results: dict[str, dict]) -> list[str]:
    if point.share is None:
        return []
    share, name = point.share
    reached = scenarios.ECHO_RATE(results[name].get("result") or {})
    return ["--rate", str(max(1, int(share * (reached or 0))))]


def run_tool(argv: list[str], point: scenarios.Point, pids: list[int]) -> dict:
    """Runs the tool once: {"command", "result" or "error", "seconds", "memory"}."""
    started = time.monotonic()
    told: dict = {"command": " ".join(argv)}
    with MemoryWatch(pids) as memory:
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=30 + 3 * point.seconds, check=False)
            told["result"] = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            told["error"] = f"penstock-bench was not done after {30 + 3 * point.seconds:.0f} s"
        except ValueError:
            told["error"] = f"penstock-bench: {telling_line(done.stderr).removeprefix('penstock-bench: ')}"
    told["seconds"] = round(time.monotonic() - started, 2)
    if pids:
        told["memory"] = memory.report()
        if "result" in told:
            told["result"]["peer_memory"] = told["memory"]
    return told


def main() -> None:
    number, kind, name, quick, only, directory = sys.argv[1:]
    # The first process of a namespace ignores what it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scenario = scenarios.find(int(number))
    points = chosen_points(scenario, quick == "1", only)
    try:
        chosen = set_up_namespace(SYSCTLS | scenario.sysctls)
        outcome = measure(peers.find(name, kind), scenario, points, Path(directory)) | chosen
    except (Failed, NotInstalled) as error:
        outcome = {"error": str(error)}
    Path(directory, "cell.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
