"""websockets, its Trio server."""

from __future__ import annotations

from websockets.trio.server import ServerConnection, broadcast, serve

from benchmarks.programs.program import HOST, make_server_context, parse_arguments, run

everybody: set[ServerConnection] = set()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def broadcast_all(connection: ServerConnection) -> None:
    everybody.add(connection)
    try:
        async for message in connection:
            await broadcast(everybody, message)
    finally:
        everybody.discard(connection)


async def main() -> None:
    handler = broadcast_all if arguments.job == "broadcast" else echo
    await serve(handler, arguments.port, host=HOST, ssl=make_server_context(arguments.tls))


arguments = parse_arguments()
run(main, "trio")
