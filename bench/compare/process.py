"""Programs that are started, waited for, watched and ended: always by their process group."""

import base64
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 5.0


class Failed(Exception):
    """A program that did not do what was asked of it; the text stands in the table."""


def telling_line(text: str) -> str:
    """Of what a program said, the line that most likely tells why it ended."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["it said nothing"])[-1][:200]


class Program:
    """A program in a session, and so a process group, of its own."""

    def __init__(self, argv: list[str], cpu: int, log: Path, environment: dict[str, str] | None = None):
        self.name = Path(argv[0]).name
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["taskset", "--cpu-list", str(cpu), *argv],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(environment or {})}, cwd=log.parent, start_new_session=True)

    def pids(self) -> list[int]:
        """Its whole tree: itself, its children, and theirs."""
        return tree(self.process.pid)

    def check_runs(self) -> None:
        """Fails, with what it said, when it has ended."""
        code = self.process.poll()
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            said = telling_line(self.log.read_text(errors="replace"))
            raise Failed(f"{self.name} ended ({how}): {said}")

    def stop(self) -> None:
        """Ends its group, in order if it wants to; nobody of it is left after."""
        group = self.process.pid
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + STOP_SECONDS_MAX
            while time.monotonic() < deadline and group_lives(group):
                self.process.poll()  # Reaps the first of the group, which would count as alive.
                time.sleep(0.01)
        self.process.wait()


def group_lives(group: int) -> bool:
    """Whether a process of this group runs; those that only wait to be reaped do not."""
    return any(stat.group == group and stat.state not in "ZX" for stat in processes())


@dataclass(frozen=True)
class Stat:
    """A process as /proc/PID/stat tells it."""

    pid: int
    state: str
    parent: int
    group: int


def processes() -> list[Stat]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text()
        except OSError:
            continue  # It has ended meanwhile.
        # The command's name may hold anything; after its last parenthesis come the fields.
        state, parent, group = text.rsplit(")", 1)[1].split()[:3]
        found.append(Stat(int(name), state, int(parent), int(group)))
    return found


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in processes():
        children.setdefault(stat.parent, []).append(stat.pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def wait_for_answer(program: Program, port: int, path: str, subprotocol: str, echoes: bool) -> None:
    """Waits until a WebSocket opens at this port, and brings a message back if it should."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        program.check_runs()
        try:
            return try_websocket(port, path, subprotocol, echoes)
        except (OSError, Failed) as error:
            if time.monotonic() > deadline:
                raise Failed(f"{program.name} does not answer on port {port}: {error}") from error
            time.sleep(0.02)


def try_websocket(port: int, path: str, subprotocol: str, echoes: bool) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as stream:
        key = base64.b64encode(os.urandom(16)).decode()
        offer = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        stream.sendall((f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                        f"Sec-WebSocket-Version: 13\r\n{offer}\r\n").encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            received = stream.recv(4096)
            if not received:
                raise Failed("it closed during the handshake")
            answer += received
        status = answer.split(b"\r\n", 1)[0].decode(errors="replace")
        if " 101" not in status:
            raise Failed(f"it answered {status}")
        if echoes:
            # A text message "hello", masked with zeros, and what should come back.
            stream.sendall(b"\x81\x85\0\0\0\0hello")
            back = answer.split(b"\r\n\r\n", 1)[1]
            while len(back) < 7:
                received = stream.recv(4096)
                if not received:
                    raise Failed("it closed instead of echoing")
                back += received
            if back != b"\x81\x05hello":
                raise Failed(f"it echoed {back!r}")
        stream.sendall(b"\x88\x82\0\0\0\0\x03\xe8")  # Close, 1000.


class MemoryWatch:
    """The resident memory of a program's whole tree, looked at twice a second."""

    INTERVAL_SECONDS = 0.5

    def __init__(self, pids: list[int]):
        self.pids = pids
        self.before = self.peak = self.last = self.resident_bytes()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def resident_bytes(self) -> int:
        pages = 0
        for pid in self.pids:
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue  # It has ended; that is found out elsewhere.
        return pages * os.sysconf("SC_PAGE_SIZE")

    def run(self) -> None:
        while not self.ended.wait(self.INTERVAL_SECONDS):
            self.last = self.resident_bytes()
            self.peak = max(self.peak, self.last)

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def report(self) -> dict[str, int]:
        return {"before_bytes": self.before, "peak_bytes": self.peak, "last_bytes": self.last,
                "peak_growth_bytes": self.peak - self.before}
