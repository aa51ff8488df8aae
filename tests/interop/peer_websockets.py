"""The program of the neighbour websockets, its asyncio client and server."""

# mypy: disable-error-code="import-not-found"
# The linter's environment need not have the neighbours.

from __future__ import annotations

import asyncio
from http import HTTPStatus
from importlib import metadata
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, serve
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from .program import HOST, MAX_SIZE, Answer, Program, client_context, server_context


class Websockets(Program):
    """One connection of websockets."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._server: Server | None = None
        self._accepted: asyncio.Queue[Any] = asyncio.Queue()

    async def version(self) -> str:
        return f"websockets {metadata.version('websockets')}"

    async def connect(self, url: str, subprotocols: list[str], ca: str | None) -> Answer:
        try:
            self._connection = await connect(
                url,
                subprotocols=[Subprotocol(name) for name in subprotocols] or None,
                ssl=client_context(ca),
                max_size=MAX_SIZE,
                proxy=None,
            )
        except InvalidStatus as exc:
            return {"status": exc.response.status_code}
        return {"subprotocol": self._connection.subprotocol}

    async def listen(self, subprotocols: list[str], certificate: str | None, refuse: bool) -> Answer:
        self._server = await serve(
            self._handle,
            HOST,
            0,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            ssl=server_context(certificate),
            max_size=MAX_SIZE,
            process_request=self._refuse if refuse else None,
        )
        return {"port": next(iter(self._server.sockets)).getsockname()[1]}

    def _refuse(self, connection: Any, request: Any) -> Any:
        return connection.respond(HTTPStatus.FORBIDDEN, "not you\n")

    async def _handle(self, connection: Any) -> None:
        await self._accepted.put(connection)
        await connection.wait_closed()

    async def accept(self) -> Answer:
        self._connection = await self._accepted.get()
        return {"subprotocol": self._connection.subprotocol}

    async def receive(self) -> str | bytes:
        message: str | bytes = await self._connection.recv()
        return message

    async def send(self, message: str | bytes) -> None:
        await self._connection.send(message)

    async def fragments(self, parts: list[str], binary: bool) -> None:
        await self._connection.send([part.encode() for part in parts] if binary else parts)

    async def ping(self, data: str) -> str:
        await (await self._connection.ping(data))
        return data  # only the Pong with the same data ends the waiting

    async def close(self, code: int, reason: str) -> Answer:
        await self._connection.close(code, reason)
        return await self.closed()

    async def closed(self) -> Answer:
        await self._connection.wait_closed()
        received = self._connection.protocol.close_rcvd
        return {"code": received.code, "reason": received.reason} if received else {"code": 1006}

    async def stop(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._connection = self._server = None


async def main() -> None:
    await Websockets().run()


if __name__ == "__main__":
    asyncio.run(main())
