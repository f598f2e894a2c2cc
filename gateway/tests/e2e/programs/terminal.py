"""Runs a program in a terminal of its own and plays its user.

    terminal.py COLUMNS LINES PROGRAM ARGUMENT...

Reads a command a line and answers each with a line of JSON:

    wait TEXT        until TEXT is on the screen (or an end that makes it impossible): the screen
    gone TEXT        until TEXT is not there any more: the screen
    keys TEXT        types TEXT, where \\x.. and the like mean what they do in Python
    size COLS LINES  makes the terminal as large
    signal NAME      sends the program a signal
    end              waits for its end: its status, and whether the terminal is as it was
    cells            what every cell looks like: [character, foreground, background, bold, reverse]
"""

import codecs
import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

import pyte

PATIENCE = 60


class Terminal:
    def __init__(self, columns, lines, command):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.ended = False
        self.master, slave = pty.openpty()
        # Kept open, so that what the program leaves behind can be looked at when it is gone.
        self.slave = slave
        self.set_size(columns, lines)
        self.before = termios.tcgetattr(slave)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for descriptor in (0, 1, 2):
                os.dup2(slave, descriptor)
            os.environ["TERM"] = "xterm-256color"
            os.execvp(command[0], command)

    def set_size(self, columns, lines):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, seconds):
        """Takes what the program has written; whether there was anything."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        data = os.read(self.master, 65536)
        self.raw += data
        self.stream.feed(data)
        return True

    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(self, done):
        deadline = time.monotonic() + PATIENCE
        while not done(self.text()):
            if time.monotonic() > deadline:
                return {"error": "it never came", "screen": self.text()}
            if not self.read(0.2) and self.has_ended():
                return {"error": "the program has ended", "screen": self.text()}
        return {"screen": self.text()}

    def has_ended(self):
        if not self.ended:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.ended = pid != 0
            self.status = os.waitstatus_to_exitcode(status)
        return self.ended

    def end(self):
        deadline = time.monotonic() + PATIENCE
        while not self.has_ended():
            self.read(0.05)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                return {"error": "it does not end"}
        while self.read(0):
            pass
        modes = [mode for mode in (b"\x1b[?1049h", b"\x1b[?1049l") if mode in self.raw]
        return {
            "status": self.status,
            "restored": termios.tcgetattr(self.slave) == self.before,
            "left": self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h"),
            "cursor": self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l"),
            "modes": len(modes),
        }

    def cells(self):
        rows = []
        for y in range(self.screen.lines):
            row = [self.screen.buffer[y][x] for x in range(self.screen.columns)]
            rows.append([[c.data, c.fg, c.bg, c.bold, c.reverse] for c in row])
        return {"cells": rows}


def main():
    columns, lines = int(sys.argv[1]), int(sys.argv[2])
    terminal = Terminal(columns, lines, sys.argv[3:])
    for line in sys.stdin:
        command, _, rest = line.rstrip("\n").partition(" ")
        answer = {}
        if command == "wait":
            answer = terminal.until(lambda text: rest in text)
        elif command == "gone":
            answer = terminal.until(lambda text: rest not in text)
        elif command == "keys":
            os.write(terminal.master, codecs.decode(rest, "unicode_escape").encode("latin-1"))
        elif command == "size":
            columns, lines = map(int, rest.split())
            terminal.screen.resize(lines, columns)
            terminal.set_size(columns, lines)
            os.kill(terminal.pid, signal.SIGWINCH)
        elif command == "signal":
            os.kill(terminal.pid, getattr(signal, rest))
        elif command == "end":
            answer = terminal.end()
        elif command == "cells":
            answer = terminal.cells()
        print(json.dumps(answer), flush=True)


main()
