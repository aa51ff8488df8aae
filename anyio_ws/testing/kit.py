"""Test a handler without a network: inject a connection, or serve one client in memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio

from ..buffers import ConnectionBuffers
from ..client import Client, connect
from ..config import Config
from ..conn import Conn
from ..deadlines import Deadlines
from ..events import CloseCode, Message, MessageType, build_close
from ..framing import MessageReader, frame
from ..link import build_storage
from ..protocol import Role
from ..server import Server
from ..tasks import background
from ..transport import StreamTransport
from .clock import settle
from .memory import MemoryListener, MemoryStream, memory_stream_pair


class WebSocketTest:
    """A connection in memory, seen from both ends: :attr:`conn` to inject, and its peer to ask.

    The peer records every frame that the connection sends, answers a Close with a Close and a Ping with
    a Pong. :func:`init` makes one.

    :ivar conn: a real connection of a server, open
    :ivar transcript: every frame that the connection has sent so far, one line each
    :ivar timeout: seconds that ``expect_*`` waits for a frame
    """

    def __init__(self, conn: Conn, stream: MemoryStream, timeout: float) -> None:
        self.conn = conn
        self.transcript: list[str] = []
        self.timeout = timeout
        self._stream = stream
        self._frames: deque[Message] = deque()
        self._arrived = anyio.Event()

    @staticmethod
    def text_message(data: str) -> Message:
        """Make a text message to hand to a hook: ``handler.client_message(message.data)``."""
        return Message(MessageType.TEXT, data)

    @staticmethod
    def bin_message(data: bytes) -> Message:
        """Make a binary message."""
        return Message(MessageType.BINARY, data)

    @staticmethod
    def close_message(code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> Message:
        """Make the message of a Close.

        :raises ValueError: when code or reason may not be sent
        """
        return Message(MessageType.CLOSE, build_close(code, reason))

    async def deliver(self, message: Message) -> None:
        """Have the peer send a message to the connection."""
        data = message.data.encode() if isinstance(message.data, str) else message.data
        await self._stream.send(frame(message.type, data, masking_key=b"mask"))

    async def expect_text(self, data: str) -> None:
        """Expect that the next frame the connection sent is this text.

        :raises AssertionError: when it is another, or none comes; with the transcript so far. That goes
            for all of ``expect_*``.
        """
        await self.expect_message(MessageType.TEXT, data)

    async def expect_bin(self, data: bytes) -> None:
        """Expect that the next frame the connection sent is this binary message."""
        await self.expect_message(MessageType.BINARY, data)

    async def expect_ping(self, data: bytes | None = None) -> None:
        """Expect that the next frame the connection sent is a Ping, with this payload if one is given."""
        await self.expect_message(MessageType.PING, data)

    async def expect_pong(self, data: bytes | None = None) -> None:
        """Expect that the next frame the connection sent is a Pong, with this payload if one is given."""
        await self.expect_message(MessageType.PONG, data)

    async def expect_close(self, code: int | None = None) -> None:
        """Expect that the next frame the connection sent is a Close, with this code if one is given."""
        message = await self._next("CLOSE" if code is None else f"CLOSE {int(code)}")
        if message.type is not MessageType.CLOSE or code not in (None, message.close_code):
            self._fail("CLOSE" if code is None else f"CLOSE {int(code)}", _line(message))

    async def expect_message(self, type: MessageType, data: str | bytes | None = None) -> None:
        """Expect that the next frame the connection sent has this type, and this data if it is given."""
        wanted = type.name if data is None else _line(Message(type, data))
        message = await self._next(wanted)
        if message.type is not type or (data is not None and message.data != data):
            self._fail(wanted, _line(message))

    async def expect_nothing(self) -> None:
        """Expect that the connection has sent nothing more once every task waits."""
        await settle()
        if self._frames:
            self._fail("nothing", _line(self._frames[0]))

    async def _next(self, wanted: str) -> Message:
        with anyio.move_on_after(self.timeout):
            while not self._frames:
                await self._arrived.wait()
        if not self._frames:
            self._fail(wanted, f"nothing within {self.timeout} seconds")
        return self._frames.popleft()

    def _fail(self, wanted: str, got: str) -> None:
        sent = "".join(f"\n  {line}" for line in self.transcript) or " nothing"
        raise AssertionError(f"expected {wanted}, got {got}; the connection has sent:{sent}")

    async def _run(self) -> None:
        """Be the peer: record what comes, and answer what RFC 6455 wants answered."""
        reader = MessageReader(masked=False, max_message_size=2**62)
        broken = False
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                for message in reader.feed(await self._stream.receive()):
                    await self._record(message)
                if reader.error is not None and not broken:
                    broken = True
                    self.transcript.append(f"a broken frame: {reader.error}")

    async def _record(self, message: Message) -> None:
        self.transcript.append(_line(message))
        self._frames.append(message)
        self._arrived.set()
        self._arrived = anyio.Event()
        if message.type is MessageType.PING:
            await self.deliver(Message(MessageType.PONG, message.data))
        elif message.type is MessageType.CLOSE:
            await self.deliver(message)


def _line(message: Message) -> str:
    if message.type is MessageType.CLOSE:
        return f"CLOSE {message.close_code} {message.close_reason}".rstrip()
    data = repr(message.data)
    return f"{message.type.name} {data if len(data) <= 200 else data[:197] + '...'}"


@contextlib.asynccontextmanager
async def init(config: Config | None = None, *, timeout: float = 1.0) -> AsyncIterator[WebSocketTest]:
    """Make a connection in memory to inject into a handler.

    ::

        async with testing.init() as wt:
            handler = Handler(conn=wt.conn)
            await handler.client_message(wt.text_message("hack").data)
            await wt.expect_text("invalid message")

    :param config: the settings of the connection; keepalive pings are sent as they say
    :param timeout: seconds that ``expect_*`` waits for a frame

    What the block raises is raised as it is; the connection is aborted at the end.
    """
    ours, theirs = memory_stream_pair()
    config = config or Config()
    async with background() as tasks:
        deadlines = Deadlines()
        transport = StreamTransport(
            ours, tasks.start_soon, outbox_size=config.outbox_size, write_timeout=config.write_timeout
        )
        buffers = ConnectionBuffers(build_storage(config))
        conn = Conn(Role.SERVER, transport, deadlines, config, buffers)
        wt = WebSocketTest(conn, theirs, timeout)
        tasks.start_soon(deadlines.run)
        tasks.start_soon(wt._run)
        transport.start()
        conn.open(None)
        try:
            yield wt
        finally:
            conn.abort()
            with anyio.CancelScope(shield=True):
                await conn.wait_gone()


@contextlib.asynccontextmanager
async def client(
    handler: Callable[..., Any],
    app: object = None,
    *,
    config: Config | None = None,
    path: str = "/",
    **options: Any,
) -> AsyncIterator[Client]:
    """Serve one client in memory: handshake and traffic are whole, and there is no socket.

    :param handler: what :class:`anyio_ws.Server` takes
    :param app: handed to the handler
    :param config: the server's settings
    :param path: path and query that the client asks for
    :param options: whatever :func:`anyio_ws.connect` takes: ``headers``, ``subprotocols``, fields of
        ``ClientConfig``
    :raises HandshakeRejected: when the handler refuses the connection

    What the block raises is raised as it is. With a virtual clock every run is the same.
    """
    listener = MemoryListener()
    server = Server(handler, config)
    async with background() as tasks:
        listen = partial(server.listen, app, listeners=[listener])
        await tasks.start(listen)
        try:
            async with connect(f"ws://localhost{path}", stream=listener.connect(), **options) as client:
                yield client
        finally:
            with anyio.CancelScope(shield=True):
                server.stop()
                await server.wait_stopped()
