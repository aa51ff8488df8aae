"""websockets as it is attacked: an echo, a handler that never returns, a broadcast; the path says which."""

from __future__ import annotations

from typing import Any

import anyio

from benchmarks.programs.program import BULK, HOST, parse_arguments, run

arguments = parse_arguments()
if arguments.loop == "trio":
    from websockets.trio.server import broadcast, serve
else:
    from websockets.asyncio.server import broadcast, serve

everybody: set[Any] = set()


async def handle(connection: Any) -> None:
    path = connection.request.path
    if path == "/tell":
        everybody.add(connection)
    try:
        async for message in connection:
            if path == "/sleep":
                await anyio.sleep_forever()
            elif path == "/tell":
                telling = broadcast(everybody, BULK)
                if telling is not None:
                    await telling
            else:
                await connection.send(message)
    finally:
        everybody.discard(connection)


async def main() -> None:
    server = serve(handle, host=HOST, port=arguments.port, max_size=arguments.max_size)
    if arguments.loop == "trio":
        await server
    else:
        async with server as listening:
            await listening.serve_forever()


run(main, arguments.loop)
