"""The program of the neighbour aiohttp, its client and its server."""

# mypy: disable-error-code="import-not-found"
# The linter's environment need not have the neighbours.

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from .program import HOST, MAX_SIZE, Answer, Program, client_context, server_context


class Aiohttp(Program):
    """One connection of aiohttp.

    Only in ``receive()`` does aiohttp look at what came, so a task of ours is always in it. Pongs are
    seen there when pings are not answered for us, so pings are answered there, too.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._connection: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._accepted: asyncio.Queue[web.WebSocketResponse] = asyncio.Queue()
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self._end: Answer = {}
        self._stopped = asyncio.Event()
        self._subprotocols: list[str] = []

    async def version(self) -> str:
        return f"aiohttp {aiohttp.__version__}"

    async def connect(self, url: str, subprotocols: list[str], ca: str | None) -> Answer:
        self._session = aiohttp.ClientSession()
        try:
            connection = await self._session.ws_connect(
                url,
                protocols=subprotocols,
                autoping=False,
                compress=15,
                max_msg_size=MAX_SIZE,
                ssl=client_context(ca) or True,
            )
        except aiohttp.WSServerHandshakeError as exc:
            return {"status": exc.status}
        return self._opened(connection, connection.protocol)

    async def listen(self, subprotocols: list[str], certificate: str | None, refuse: bool) -> Answer:
        self._subprotocols = subprotocols
        self._stopped.clear()
        app = web.Application()
        app.router.add_get("/", self._refuse if refuse else self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0, ssl_context=server_context(certificate)).start()
        return {"port": self._runner.addresses[0][1]}

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text="not you\n")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        connection = web.WebSocketResponse(
            protocols=self._subprotocols, autoping=False, max_msg_size=MAX_SIZE
        )
        await connection.prepare(request)
        await self._accepted.put(connection)
        await self._stopped.wait()
        return connection

    async def accept(self) -> Answer:
        connection = await self._accepted.get()
        return self._opened(connection, connection.ws_protocol)

    def _opened(self, connection: Any, subprotocol: str | None) -> Answer:
        self._connection = connection
        self._end = {}
        self._reading = asyncio.create_task(self._read())
        return {"subprotocol": subprotocol}

    async def _read(self) -> None:
        while not self._end:
            message = await self._connection.receive()
            if message.type is WSMsgType.PING:
                await self._connection.pong(message.data)
            elif message.type is WSMsgType.PONG:
                self._pongs.put_nowait(bytes(message.data))
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self._messages.put_nowait(message.data)
            else:
                self._end = {"code": message.data, "reason": message.extra}

    async def receive(self) -> str | bytes:
        return await self._messages.get()

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._connection.send_str(message)
        else:
            await self._connection.send_bytes(message)

    async def ping(self, data: str) -> str:
        await self._connection.ping(data.encode())
        return (await self._pongs.get()).decode()

    async def close(self, code: int, reason: str) -> Answer:
        # close() waits for the other end's Close: at a client although receive() is waiting, at a server
        # only when it is not; and at a client only when receive() was never cancelled.
        if isinstance(self._connection, web.WebSocketResponse):
            await self._stop_reading()
        await self._connection.close(code=code, message=reason.encode())
        return {"code": self._connection.close_code, "reason": None}  # the reason is not kept

    async def closed(self) -> Answer:
        assert self._reading is not None
        await self._reading
        return self._end

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None

    async def stop(self) -> None:
        await self._stop_reading()
        if self._connection is not None:
            await self._connection.close()
        self._stopped.set()
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._connection = self._session = self._runner = None


async def main() -> None:
    await Aiohttp().run()


if __name__ == "__main__":
    asyncio.run(main())
