"""anyio_ws: an ``async def`` hook that awaits ``conn.write``, or a plain ``def`` with ``write_nowait``."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from anyio_ws import Config, Conn, Server, broadcast
from benchmarks.programs.program import HOST, make_server_context, parse_arguments


class Echo:
    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    async def client_message(self, data: str) -> None:
        await self.conn.write(data)


class PlainEcho:
    def __init__(self, conn: Conn) -> None:
        self.conn = conn

    def client_message(self, data: str) -> None:
        self.conn.write_nowait(data)


class Broadcast:
    """Sends each message to everybody, framed once."""

    def __init__(self, conn: Conn, app: set[Conn]) -> None:
        self.conn = conn
        self.app = app
        app.add(conn)

    async def client_message(self, data: str) -> None:
        broadcast(self.app, data)

    def close(self) -> None:
        self.app.discard(self.conn)


def main() -> None:
    arguments = parse_arguments()
    settings: dict[str, Any] = {"address": HOST, "port": arguments.port}
    if arguments.max_size:
        settings["max_message_size"] = arguments.max_size
    config = Config(tls=make_server_context(arguments.tls), **settings)
    handler = Broadcast if arguments.job == "broadcast" else PlainEcho if arguments.style == "def" else Echo
    backend = "trio" if arguments.loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if arguments.loop == "uvloop" else {}
    listen = partial(Server(handler, config).listen, set())
    anyio.run(listen, backend=backend, backend_options=options)


main()
