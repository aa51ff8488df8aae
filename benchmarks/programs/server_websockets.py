"""websockets, its asyncio server."""

from __future__ import annotations

from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.programs.program import HOST, make_server_context, parse_arguments, run

everybody: set[ServerConnection] = set()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def broadcast_all(connection: ServerConnection) -> None:
    everybody.add(connection)
    try:
        async for message in connection:
            broadcast(everybody, message)
    finally:
        everybody.discard(connection)


async def main() -> None:
    handler = broadcast_all if arguments.job == "broadcast" else echo
    async with serve(handler, HOST, arguments.port, ssl=make_server_context(arguments.tls)) as server:
        await server.serve_forever()


arguments = parse_arguments()
run(main, arguments.loop)
