"""The program of the neighbour trio-websocket."""

# mypy: disable-error-code="import-not-found"
# The linter's environment need not have the neighbours.

from __future__ import annotations

import math
from functools import partial
from importlib import metadata
from typing import Any

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, open_websocket_url, serve_websocket

from .program import HOST, MAX_SIZE, Answer, Program, client_context, server_context


class TrioWebsocket(Program):
    """One connection of trio-websocket."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._connection: Any = None
        self._stopped = trio.Event()
        self._push, self._accepted = trio.open_memory_channel[Any](math.inf)
        self._subprotocols: list[str] = []
        self._refuse = False

    async def version(self) -> str:
        return f"trio-websocket {metadata.version('trio-websocket')}"

    async def connect(self, url: str, subprotocols: list[str], ca: str | None) -> Answer:
        try:
            self._connection = await self._nursery.start(partial(self._stay, url, subprotocols, ca))
        except ConnectionRejected as exc:
            return {"status": exc.status_code}
        return {"subprotocol": self._connection.subprotocol}

    async def _stay(
        self, url: str, subprotocols: list[str], ca: str | None, *, task_status: trio.TaskStatus[Any]
    ) -> None:
        async with open_websocket_url(
            url, client_context(ca), subprotocols=subprotocols, max_message_size=MAX_SIZE
        ) as connection:
            self._stopped = trio.Event()
            task_status.started(connection)
            await self._stopped.wait()

    async def listen(self, subprotocols: list[str], certificate: str | None, refuse: bool) -> Answer:
        self._subprotocols, self._refuse = subprotocols, refuse
        server = await self._nursery.start(partial(self._serve, certificate))
        return {"port": server.port}

    async def _serve(self, certificate: str | None, *, task_status: trio.TaskStatus[Any]) -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                partial(
                    serve_websocket,
                    self._handle,
                    HOST,
                    0,
                    server_context(certificate),
                    max_message_size=MAX_SIZE,
                )
            )
            self._stopped = trio.Event()
            task_status.started(server)
            await self._stopped.wait()
            nursery.cancel_scope.cancel()

    async def _handle(self, request: Any) -> None:
        if self._refuse:
            await request.reject(403, body=b"not you\n")
            return
        chosen = (name for name in self._subprotocols if name in request.proposed_subprotocols)
        await self._push.send(await request.accept(subprotocol=next(chosen, None)))
        await self._stopped.wait()  # the end of this function closes the connection

    async def accept(self) -> Answer:
        self._connection = await self._accepted.receive()
        return {"subprotocol": self._connection.subprotocol}

    async def receive(self) -> str | bytes:
        message: str | bytes = await self._connection.get_message()
        return message

    async def send(self, message: str | bytes) -> None:
        await self._connection.send_message(message)

    async def ping(self, data: str) -> str:
        await self._connection.ping(data.encode())
        return data  # only the Pong with the same data ends the waiting

    async def close(self, code: int, reason: str) -> Answer:
        await self._connection.aclose(code, reason)
        return self._end()

    async def closed(self) -> Answer:
        try:
            await self._connection.get_message()
        except ConnectionClosed:
            return self._end()
        raise AssertionError("a message came in place of a Close")

    def _end(self) -> Answer:
        return {"code": self._connection.closed.code, "reason": self._connection.closed.reason or ""}

    async def stop(self) -> None:
        self._stopped.set()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        await TrioWebsocket(nursery).run()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
