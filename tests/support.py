"""What the tests of the two ends share: a peer made of bytes, servers in memory, a clock that jumps.

The peer builds and parses what is on the wire without the package, so that a server or client that
agrees with itself is not enough.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream, TaskGroup

from anyio_ws import ClientConfig, Config, Conn, Server, connect
from anyio_ws.handler import FunctionFactory
from anyio_ws.testing import (
    MemoryListener,
    MemoryStream,
    VirtualClockLoop,
    memory_stream_pair,
    virtual_clock,
)
from anyio_ws.testing import settle as settle

from .frames import WireFrame, build_frame, parse_frames

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 §1.3, and its answer
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

virtual = pytest.mark.parametrize(
    "anyio_backend", [pytest.param((name, virtual_clock(name)), id=name) for name in ("asyncio", "trio")]
)
"""Run the test on both backends with a clock that moves only when every task waits."""


@pytest.fixture
def no_surprises(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that leaves warnings or errors in the log; :func:`take_log` takes the expected ones."""
    caplog.set_level("DEBUG", "anyio_ws")
    yield
    left = [record for record in caplog.get_records("call") if record.levelname in ("WARNING", "ERROR")]
    assert [f"{record.name}: {record.getMessage()} {record.exc_info}" for record in left] == []


def take_log(caplog: pytest.LogCaptureFixture, level: str = "ERROR") -> list[Any]:
    """Return the log records of one level, and empty the log."""
    records = [record for record in caplog.records if record.levelname == level]
    caplog.clear()
    return records


# --- the opening handshake ----------------------------------------------------------------------------


def build_request(
    path: str = "/", headers: Mapping[str, str | None] | None = None, *, line: str = "", more: str = ""
) -> bytes:
    """Build the opening handshake of RFC 6455 §1.3, correct or not.

    :param headers: other values for its headers, or further ones; ``None`` leaves one out
    :param line: another request line
    :param more: header lines to add as they are
    """
    fields = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    head = line or f"GET {path} HTTP/1.1"
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"{head}\r\n{''.join(lines)}{more}\r\n".encode("latin-1")


def build_answer(
    status: str = "101 Switching Protocols",
    headers: Mapping[str, str | None] | None = None,
    *,
    line: str = "",
    more: str = "",
    accept: str = ACCEPT,
) -> bytes:
    """Build the answer to an opening handshake, correct or not; the arguments are as for a request."""
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": accept,
        **(headers or {}),
    }
    head = line or f"HTTP/1.1 {status}"
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"{head}\r\n{''.join(lines)}{more}\r\n".encode("latin-1")


class Head(NamedTuple):
    """A request or response as it was on the wire; names of headers in lower case."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    @property
    def status(self) -> int:
        """The status code of a response."""
        return int(self.line.split(" ")[1])

    def get(self, name: str) -> str | None:
        """Return the one value of a header, ``None`` without one."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None


class Peer:
    """The other end of a connection: it sends the bytes it is told to, and takes apart what it gets.

    :param stream: the stream
    :param is_client: mask the frames it sends
    """

    def __init__(self, stream: ByteStream, *, is_client: bool = True) -> None:
        self.stream = stream
        self.received = bytearray()
        self._key = b"mask" if is_client else None

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send(data)

    def build(self, opcode: int, payload: bytes = b"", **options: Any) -> bytes:
        """Build a frame as this end sends it."""
        return build_frame(opcode, payload, **{"key": self._key, **options})

    async def send_frame(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        """Send a frame."""
        await self.send(self.build(opcode, payload, **options))

    async def send_close(self, code: int) -> None:
        """Send a Close."""
        await self.send_frame(CLOSE, code.to_bytes(2, "big"))

    async def receive_head(self) -> Head:
        """Receive a request or response, with the body that ``Content-Length`` announces."""
        while b"\r\n\r\n" not in self.received:
            await self._more()
        line, *lines = self._take(self.received.index(b"\r\n\r\n") + 4)[:-4].decode("latin-1").split("\r\n")
        pairs = [each.split(": ", 1) for each in lines]
        head = Head(line, [(name.lower(), value) for name, value in pairs])
        length = int(head.get("content-length") or 0)
        while len(self.received) < length:
            await self._more()
        return head._replace(body=self._take(length))

    async def open(self, path: str = "/", headers: Mapping[str, str | None] | None = None) -> Head:
        """Do a client's opening handshake, and check the server's answer."""
        await self.send(build_request(path, headers))
        head = await self.receive_head()
        assert head.status == 101, head
        assert head.get("sec-websocket-accept") == ACCEPT
        assert head.get("upgrade") == "websocket"
        assert head.get("connection") == "Upgrade"
        return head

    async def accept(self, headers: Mapping[str, str | None] | None = None, *, early: bytes = b"") -> Head:
        """Do a server's opening handshake: receive the request, and send a good answer.

        :param headers: further headers of the answer
        :param early: bytes to send right behind it
        """
        head = await self.receive_head()
        await self.send(build_answer(headers=headers, accept=accept_of(head)) + early)
        return head

    async def frame(self) -> WireFrame:
        """Receive one frame."""
        while (size := _frame_size(self.received)) > len(self.received):
            await self._more()
        return parse_frames(self._take(size))[0]

    async def message(self) -> tuple[int, bytes]:
        """Receive a message whole, or its fragments with nothing between them (RFC 6455 §5.4)."""
        first = frame = await self.frame()
        data = bytearray(frame.payload)
        while not frame.fin:
            frame = await self.frame()
            assert frame.opcode == 0x0, f"{frame.opcode:#x} between the fragments"
            data += frame.payload
        return first.opcode, bytes(data)

    async def expect(self, opcode: int, payload: bytes = b"") -> None:
        """Receive one frame, which must be this one."""
        frame = await self.frame()
        assert (frame.opcode, frame.payload) == (opcode, payload)

    async def expect_close(self, code: int, reason: str = "") -> None:
        """Receive one frame, which must be a Close with this code and reason."""
        await self.expect(CLOSE, code.to_bytes(2, "big") + reason.encode())

    async def expect_end(self) -> None:
        """Receive the orderly end of the stream and nothing before it."""
        assert await self.rest() == b""

    async def rest(self) -> bytes:
        """Receive everything up to the orderly end of the stream."""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                await self._more()
        return self._take(len(self.received))

    async def close_handshake(self, code: int = 1000) -> None:
        """Close in order: send a Close, receive its echo, then the end."""
        await self.send_close(code)
        await self.expect_close(code)
        await self.expect_end()

    async def _more(self) -> None:
        self.received += await self.stream.receive()

    def _take(self, size: int) -> bytes:
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken


def accept_of(request: Head) -> str:
    """Compute the answer to a request's key (RFC 6455 §4.2.2), as literally as it can be said."""
    key = f"{request.get('sec-websocket-key')}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()


def _frame_size(data: bytearray) -> int:
    """Return how many bytes the first frame has, or how many are needed to tell."""
    if len(data) < 2:
        return 2
    length = data[1] % 128
    size = 2 + (4 if data[1] >= 128 else 0)
    if length < 126:
        return size + length
    form = 2 if length == 126 else 8
    if len(data) < 2 + form:
        return 2 + form
    return size + form + int.from_bytes(data[2 : 2 + form], "big")


# --- time ---------------------------------------------------------------------------------------------


def is_trio() -> bool:
    """Tell whether this runs on Trio."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def clock_is_virtual() -> bool:
    """Tell whether this runs with a clock that jumps."""
    if is_trio():
        import trio.testing

        return isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    return isinstance(asyncio.get_running_loop(), VirtualClockLoop)


@contextlib.asynccontextmanager
async def no_hang() -> AsyncIterator[None]:
    """Fail a block that does not end: after a minute, or 10 virtual days."""
    with anyio.fail_after(864_000 if clock_is_virtual() else 60):
        yield


class Stopwatch:
    """Measures virtual time: what is awaited in the block must take exactly so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._start = anyio.current_time()

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            assert anyio.current_time() - self._start == pytest.approx(self._seconds, abs=1e-6)


# --- servers ------------------------------------------------------------------------------------------


class Serving(NamedTuple):
    """A server that listens in memory, and the tasks that it is one of."""

    server: Server
    listener: MemoryListener
    tasks: TaskGroup

    def connect(self, capacity: float = float("inf")) -> Peer:
        """Connect to it."""
        return Peer(self.listener.connect(capacity))

    async def open(self, path: str = "/", headers: Mapping[str, str | None] | None = None) -> Peer:
        """Connect to it, and do the opening handshake."""
        peer = self.connect()
        await peer.open(path, headers)
        return peer


class _ListenerWithMemory(MemoryListener):
    """A listener that knows the ends of those who have connected."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[MemoryStream] = []

    def connect(self, capacity: float = float("inf")) -> MemoryStream:
        self.clients.append(super().connect(capacity))
        return self.clients[-1]


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[..., Any],
    app: object = None,
    config: Config | None = None,
    *,
    leave: bool = False,
    **options: Any,
) -> AsyncIterator[Serving]:
    """Serve in memory during a block; the server is stopped at its end, and must then be gone.

    :param leave: have all peers gone first, so that the server waits for none of them
    """
    server = Server(handler, config, **options)
    listener = _ListenerWithMemory()
    async with no_hang(), anyio.create_task_group() as tasks:
        await tasks.start(partial(server.listen, app, listeners=[listener]))
        try:
            yield Serving(server, listener, tasks)
        finally:
            for client in listener.clients if leave else []:
                with anyio.CancelScope(shield=True):
                    await client.aclose()
            server.stop()


@contextlib.asynccontextmanager
async def listening(server: Server[Any], app: object = None) -> AsyncIterator[list[Any]]:
    """Have a server listen on its sockets during a block, and give their addresses."""
    async with no_hang(), anyio.create_task_group() as tasks:
        addresses = await tasks.start(server.listen, app)
        try:
            yield addresses
        finally:
            server.stop()


class End(NamedTuple):
    """One end of an open connection with the configuration under test, and its peer."""

    conn: Conn
    peer: Peer


@contextlib.asynccontextmanager
async def open_end(
    role: str,
    capacity: float = math.inf,
    headers: Mapping[str, str | None] | None = None,
    **fields: Any,
) -> AsyncIterator[End]:
    """Open a connection in memory whose end of one role has these fields in its configuration.

    :param capacity: how many bytes may be on their way in each direction
    :param headers: further headers that the peer sends in its part of the opening handshake
    """
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(no_hang())
        if role == "server":
            conns: list[Conn] = []

            async def handler(conn: Conn) -> None:
                conns.append(conn)
                await conn.wait_gone()

            served = await stack.enter_async_context(
                serving(FunctionFactory(handler), config=Config(**fields))
            )
            peer = served.connect(capacity)
            await peer.open(headers=headers)
            await settle()
            conn = conns[0]
        else:
            ours, theirs = memory_stream_pair(capacity)
            peer = Peer(theirs, is_client=False)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(peer.accept, headers)
            conn = await stack.enter_async_context(
                connect("ws://localhost/", stream=ours, config=ClientConfig(**fields))
            )
        yield End(conn, peer)
        await peer.stream.aclose()


# --- what is left over --------------------------------------------------------------------------------


def open_descriptors() -> set[str]:
    """Return what the descriptors of this process refer to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {each for each in found if "/proc/" not in each and "/dev/null" not in each}  # uvloop keeps one


def running_tasks() -> set[str]:
    """Return the tasks of the event loop, whoever started them."""
    if not is_trio():
        return {f"{id(task)} {task.get_name()} {task.get_coro()}" for task in asyncio.all_tasks()}
    import trio

    found: set[str] = set()
    todo: list[Any] = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        found.add(f"{id(task)} {task.name}")
        for nursery in task.child_nurseries:
            todo += nursery.child_tasks
    return found


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that after a block there are no more tasks and descriptors than before it."""
    tasks, descriptors = running_tasks(), open_descriptors()
    yield
    await settle()
    left = (running_tasks() - tasks) | (open_descriptors() - descriptors)
    assert not left, left
