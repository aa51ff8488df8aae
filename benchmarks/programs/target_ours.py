"""anyio_ws as it is attacked: an echo, a handler that never returns, a broadcast; the path says which."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from anyio_ws import Config, Conn, Handshake, Server, broadcast, frame_bin
from benchmarks.programs.program import BULK, HOST, parse_arguments


class Target:
    def __init__(self, handshake: Handshake, conn: Conn, app: set[Conn]) -> None:
        self.path = handshake.path
        self.conn = conn
        self.app = app
        if self.path == "/tell":
            app.add(conn)

    async def client_message(self, data: Any) -> None:
        if self.path == "/sleep":
            await anyio.sleep_forever()
        elif self.path == "/tell":
            broadcast(self.app, frame_bin(BULK))
        else:
            await self.conn.send(data)

    def close(self) -> None:
        self.app.discard(self.conn)


def main() -> None:
    arguments = parse_arguments()
    config = Config(address=HOST, port=arguments.port, max_message_size=arguments.max_size)
    backend = "trio" if arguments.loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if arguments.loop == "uvloop" else {}
    listen = partial(Server(Target, config).listen, set())
    anyio.run(listen, backend=backend, backend_options=options)


main()
