"""tornado, both its server and its client; compression has to be asked for there."""

from __future__ import annotations

from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler, websocket_connect

from conformance.peers.program import HOST, LIMIT, SUBPROTOCOLS, TIMEOUT, main


class Echo(WebSocketHandler):
    """Sends each message back."""

    def get_compression_options(self) -> dict[str, Any]:
        return {}

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message, binary=isinstance(message, bytes))


async def start() -> int:
    (sock, *_) = bind_sockets(0, HOST)
    HTTPServer(Application([("/", Echo)], websocket_max_message_size=LIMIT)).add_sockets([sock])
    port: int = sock.getsockname()[1]
    return port


async def echo(url: str) -> None:
    connection = await websocket_connect(
        HTTPRequest(url, connect_timeout=TIMEOUT, request_timeout=TIMEOUT),
        compression_options={},
        subprotocols=SUBPROTOCOLS,
        max_message_size=LIMIT,
    )
    while (message := await connection.read_message()) is not None:
        await connection.write_message(message, binary=isinstance(message, bytes))


main(start, echo)
