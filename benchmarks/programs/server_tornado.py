"""tornado, its server; compression has to be asked for there."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.web import Application
from tornado.websocket import WebSocketHandler

from benchmarks.programs.program import HOST, parse_arguments, run


class Echo(WebSocketHandler):
    def get_compression_options(self) -> dict[str, Any]:
        return {}

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


async def main() -> None:
    Application([("/", Echo)]).listen(arguments.port, HOST, backlog=2048)
    await asyncio.Event().wait()


arguments = parse_arguments()
run(main, arguments.loop)
