"""An ordinary server on the Python package `websockets`, as it might stand behind the gateway.

Prints `listening PORT`, and `closed PATH CODE REASON` for every connection that has ended. An echo;
a text `close CODE REASON` asks it to close.
"""

import asyncio

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(connection):
    try:
        async for message in connection:
            words = message.split(" ", 2) if isinstance(message, str) else []
            if len(message) < 200 and words[:1] == ["close"]:
                await connection.close(int(words[1]), words[2])
            else:
                await connection.send(message)
    except ConnectionClosed:
        pass
    await connection.wait_closed()
    code, reason = connection.close_code, connection.close_reason
    print(f"closed {connection.request.path} {code} {reason}", flush=True)


def choose(_connection, offered):
    return "chat.v2" if "chat.v2" in offered else None


async def main():
    options = {"max_size": 64 << 20, "select_subprotocol": choose, "ping_interval": None}
    async with serve(echo, "127.0.0.1", 0, backlog=4096, **options) as server:
        print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
