"""Mistakes that type checkers must find: one in each line that says so, and no others."""

from __future__ import annotations

import anyio_ws
from anyio_ws import Config, Conn, Server


class App:
    """An application object."""


class Handler:
    """A handler whose application object has a type."""

    def __init__(self, conn: Conn, app: App) -> None:
        self.conn = conn

    async def client_message(self, data: str) -> None:
        """Make mistakes with a connection."""
        await self.conn.write(b"bytes")  # mistake
        await self.conn.write_bin("text")  # mistake
        self.conn.close_code = 1000  # mistake
        await self.conn.close("reason")  # mistake


async def main() -> None:
    """Make mistakes with servers and clients."""
    server = Server(Handler, Config(port=0))
    await server.listen("no app")  # mistake
    await server.listen(App())
    Server(Handler, Config(porte=0))  # mistake
    Server(42)  # mistake
    async with anyio_ws.connect(b"ws://localhost/") as client:  # mistake
        await client.read("soon")  # mistake
