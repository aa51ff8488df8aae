"""websockets, its servers for asyncio and for Trio; only there broadcasting is awaited."""

from __future__ import annotations

from typing import Any

from benchmarks.programs.program import HOST, make_server_context, parse_arguments, run

arguments = parse_arguments()
if arguments.loop == "trio":
    from websockets.trio.server import broadcast, serve
else:
    from websockets.asyncio.server import broadcast, serve

everybody: set[Any] = set()


async def echo(connection: Any) -> None:
    async for message in connection:
        await connection.send(message)


async def broadcast_all(connection: Any) -> None:
    everybody.add(connection)
    try:
        async for message in connection:
            sending = broadcast(everybody, message)
            if sending is not None:
                await sending
    finally:
        everybody.discard(connection)


async def main() -> None:
    handler = broadcast_all if arguments.job == "broadcast" else echo
    server = serve(handler, host=HOST, port=arguments.port, ssl=make_server_context(arguments.tls))
    if arguments.loop == "trio":
        await server
    else:
        async with server as listening:
            await listening.serve_forever()


run(main, arguments.loop)
