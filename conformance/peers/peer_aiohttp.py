"""aiohttp, both its server and its client; the client compresses only when it is asked to.

Its limit is the first size that is too long, so it is one more here.
"""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from conformance.peers.program import HOST, LIMIT, SUBPROTOCOLS, TIMEOUT, main


async def send_back(connection: Any) -> None:
    async for message in connection:
        if message.type == WSMsgType.TEXT:
            await connection.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await connection.send_bytes(message.data)


async def handle(request: web.Request) -> web.WebSocketResponse:
    connection = web.WebSocketResponse(max_msg_size=LIMIT + 1)
    await connection.prepare(request)
    await send_back(connection)
    return connection


async def start() -> int:
    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    port: int = runner.addresses[0][1]
    return port


async def echo(url: str) -> None:
    timeout = aiohttp.ClientTimeout(sock_connect=TIMEOUT, sock_read=TIMEOUT)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.ws_connect(url, max_msg_size=LIMIT + 1, protocols=SUBPROTOCOLS, compress=15) as connection,
    ):
        await send_back(connection)


main(start, echo)
