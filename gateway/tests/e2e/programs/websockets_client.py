"""A client on the Python package `websockets`. Ends with 0 when everything was as it should be.

    echo URL              texts, binaries, fragments, pings, close codes against our own echo
    exchange URL COUNT    COUNT clients at once through the gateway, compressed where negotiated
    negotiate URL         subprotocol and compression, as the server behind has chosen
    closes URL            close codes and reasons, both ways
    crash URL             waits until it is closed, whose code must be 1012
"""

import asyncio
import os
import sys

from websockets.asyncio.client import connect as connect_to
from websockets.exceptions import ConnectionClosed

SIZES = [0, 1, 125, 126, 127, 65535, 65536]


def connect(url, **options):
    options = {"compression": None, "max_size": 64 << 20, "open_timeout": 60, **options}
    return connect_to(url, ping_interval=None, proxy=None, **options)


def message(size, binary):
    return os.urandom(size) if binary else os.urandom((size + 1) // 2).hex()[:size]


async def exchange_all(connection, messages, window=4):
    """Sends with up to `window` in flight and expects each back, in order."""
    sent = 0
    for got, want in enumerate(messages):
        while sent < len(messages) and sent - got < window:
            await connection.send(messages[sent])
            sent += 1
        answer = await connection.recv()
        assert answer == want, f"message {got} of {len(want)}: {len(answer)} came back"


async def echo(url):
    async with connect(url) as connection:
        sizes = [*SIZES, 1 << 20]
        await exchange_all(connection, [message(size, binary) for size in sizes for binary in (0, 1)])

        await connection.send(["frag", "ment", "s äöü"])
        assert await connection.recv() == "fragments äöü"
        await connection.send([b"\x00", b"", b"\xff" * 70_000])
        assert await connection.recv() == b"\x00" + b"\xff" * 70_000

        for payload in ("", "x" * 125):
            pong = await connection.ping(payload)
            assert await pong >= 0
    for code, reason in [(1000, ""), (1001, "away"), (3000, "grüße"), (4999, "x" * 123)]:
        async with connect(url) as connection:
            await connection.close(code, reason)
            # The gateway answers with the same code (RFC 6455 section 5.5.1).
            assert connection.protocol.close_rcvd.code == code, connection.protocol.close_rcvd


async def exchange(url, count):
    async def one(index):
        async with connect(url, compression="deflate" if index % 2 else None) as connection:
            messages = []
            for step in range(10):
                size = SIZES[(index + step) % len(SIZES)]
                size = size if size < 1000 or (index + step) % 10 == 0 else step
                messages.append(message(size, (index + step) % 2))
            await exchange_all(connection, messages)

    await asyncio.gather(*(one(index) for index in range(int(count))))


async def negotiate(url):
    async with connect(url, compression="deflate", subprotocols=["chat.v1", "chat.v2"]) as connection:
        assert connection.subprotocol == "chat.v2", connection.subprotocol
        assert [x.name for x in connection.protocol.extensions] == ["permessage-deflate"]
        await exchange_all(connection, [message(size, size % 2) for size in (0, 5, 5000, 300_001)] * 2)


async def closes(url):
    for code, reason in [(1000, ""), (3001, "done"), (4999, "grüße")]:
        async with connect(url + "/by-client") as connection:
            await connection.close(code, reason)
            assert connection.protocol.close_rcvd.code == code
    for code, reason in [(1001, "moving on"), (4000, "")]:
        async with connect(url + "/by-server") as connection:
            await connection.send(f"close {code} {reason}")
            try:
                await connection.recv()
                raise AssertionError("a message instead of the end")
            except ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, reason), closed


async def crash(url):
    async with connect(url) as connection:
        await exchange_all(connection, ["hello"])
        await connection.wait_closed()
        assert connection.close_code == 1012, connection.close_code


scenario, *arguments = sys.argv[1:]
asyncio.run({f.__name__: f for f in (echo, exchange, negotiate, closes, crash)}[scenario](*arguments))
