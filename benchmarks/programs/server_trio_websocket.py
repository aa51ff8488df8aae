"""trio-websocket, its server."""

from __future__ import annotations

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from benchmarks.programs.program import HOST, parse_arguments


async def echo(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        pass


trio.run(serve_websocket, echo, HOST, parse_arguments().port, None)
