"""picows with its interface for messages, which it names after websockets."""

from __future__ import annotations

from typing import Any

from picows.websockets.asyncio.client import connect
from picows.websockets.asyncio.server import serve

from conformance.peers.program import HOST, LIMIT, SUBPROTOCOLS, TIMEOUT, main


async def handle(connection: Any) -> None:
    async for message in connection:
        await connection.send(message)


async def start() -> int:
    server = await serve(handle, HOST, 0, max_size=LIMIT)
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


async def echo(url: str) -> None:
    async with connect(
        url, max_size=LIMIT, open_timeout=TIMEOUT, subprotocols=SUBPROTOCOLS, proxy=None
    ) as connection:
        await handle(connection)


main(start, echo)
