"""What the tests of transports share: every transport, a peer at its other end, and a receiver that notes.

``test_transport.py`` states what holds for each of them, over all of them. What is particular to streams
and to sockets stands in ``test_stream_transport.py`` and ``test_sockets.py``.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.abc import SocketStream, TaskGroup, UNIXSocketStream

from anyio_ws.deadlines import Deadlines
from anyio_ws.sockets import ConnectedSocket, SocketTransport
from anyio_ws.testing import FaultyStream, MemoryStream, memory_stream_pair
from anyio_ws.tls import TlsTransport
from anyio_ws.transport import StreamTransport, Transport

from .certificates import client_context, server_context
from .memory import settle
from .support import clock_is_virtual, nothing_left

PIECE = 65_536
MUCH = bytes(range(256)) * 4_000  # more than what is below takes from one who has asked for little
CAPACITY = 16_384  # of the stream in memory, in place of a kernel's buffers

KINDS = ["stream-memory", "stream-unix", "stream-tcp", "socket-unix", "socket-tcp", "tls-unix"]
PATIENT = [kind for kind in KINDS if not kind.endswith("tcp")]
DIRECT = ["socket-unix", "socket-tcp", "tls-unix"]

every_transport = pytest.mark.parametrize("kind", KINDS)
"""Run the test over each transport."""

timed_transport = pytest.mark.parametrize("kind", PATIENT)
"""Run the test over each transport whose bytes have arrived when they were sent: time may jump over TCP."""

direct_transport = pytest.mark.parametrize("kind", DIRECT)
"""Run the test over each transport that is called by the event loop."""

ENDINGS = [
    pytest.param(half_close, await_eof, id=f"half_close={half_close}, await_eof={await_eof}")
    for half_close in (False, True)
    for await_eof in (False, True)
]


# --- the receiver ---------------------------------------------------------------------------------------


class Notes:
    """A receiver that notes what it is called with.

    :ivar events: the calls in order; the bytes of adjacent reads are one
    :ivar sizes: how many bytes each read had
    :ivar faults: what a call raises, by its name
    :ivar lost: set at the end
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.sizes: list[int] = []
        self.faults: dict[str, Exception] = {}
        self.lost = anyio.Event()
        self._changed = anyio.Event()

    def data_received(self, data: bytes | memoryview) -> None:
        self._fail("data_received")
        self.sizes.append(len(data))
        if self.events and isinstance(self.events[-1], bytes):
            data = b"".join((self.events.pop(), data))
        self._note(bytes(data))

    def catch_up(self) -> None:
        """Nothing was put off."""

    def eof_received(self) -> None:
        self._fail("eof_received")
        self._note("eof")

    def room_made(self) -> None:
        self._note("room")

    def connection_lost(self, error: Exception | None) -> None:
        self._note(("lost", error))
        self.lost.set()

    def _fail(self, name: str) -> None:
        if name in self.faults:
            raise self.faults[name]

    def _note(self, event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    async def expect(self, *events: Any) -> None:
        """Wait until these were the calls; fail after a while."""
        with anyio.move_on_after(10):
            while self.events != [*events]:
                self._changed = anyio.Event()
                await self._changed.wait()
        assert self.events == [*events]

    @property
    def losses(self) -> list[Any]:
        """The calls that told of the end."""
        return [event for event in self.events if event[:1] == ("lost",)]


def expect_logged(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """Expect that nothing was logged but this error."""
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


# --- the peers ------------------------------------------------------------------------------------------


class MemoryPeer:
    """The other end of a stream in memory.

    :ivar wire: what sends bytes as they are
    """

    def __init__(self, stream: MemoryStream) -> None:
        self.wire: MemoryPeer = self
        self._stream = stream

    async def receive(self, most: int = PIECE) -> bytes:
        """Receive once, ``b""`` at the end of the stream."""
        try:
            return await self._stream.receive(most)
        except anyio.EndOfStream:
            return b""

    async def read(self, size: float = math.inf) -> bytes:
        """Receive so many bytes, or everything up to the end of the stream."""
        data = bytearray()
        while len(data) < size:
            got = await self.receive(int(min(PIECE, size - len(data))))
            if not got:
                break
            data += got
        return bytes(data)

    async def is_silent(self) -> bool:
        """Tell whether there is nothing to receive, nor the end of the stream."""
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await self.receive())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settle()
            tasks.cancel_scope.cancel()
        return not got

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._stream.send(data)

    async def send_eof(self) -> None:
        """Send nothing more; one that has been closed already is no concern."""
        await self._stream.send_eof()


class SocketPeer(MemoryPeer):
    """The other end of a socket, as a program that uses the socket itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.wire = self
        self.socket = sock
        sock.setblocking(False)

    async def receive(self, most: int = PIECE) -> bytes:
        """Receive once, ``b""`` at the end of the stream."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.socket.recv(most)
            await anyio.wait_readable(self.socket)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self.socket)

    async def send_eof(self) -> None:
        """Send nothing more; one that has been closed already is no concern."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)


class TlsPeer(SocketPeer):
    """The other end of a socket that speaks TLS, by the standard library's engine.

    :param sock: the socket
    :param context: certificates, or whom to trust
    :param hostname: whom a client wants to talk to; ``None`` makes it a server

    :ivar engine: the engine; :meth:`flush` sends what it has to say
    :ivar heard_goodbye: whether the end of the stream came with a goodbye
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, hostname: str | None = None) -> None:
        super().__init__(sock)
        self.wire = SocketPeer(sock)
        self.heard_goodbye = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.engine = context.wrap_bio(
            self._incoming, self._outgoing, server_side=hostname is None, server_hostname=hostname
        )

    async def flush(self) -> None:
        """Send what the engine has to say."""
        await self.wire.send(self._outgoing.read())

    async def handshake(self, last_words: bytes = b"") -> None:
        """Do the TLS handshake, and send *last_words* together with its last bytes."""
        while True:
            try:
                self.engine.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                self._incoming.write(await self.wire.receive())
            else:
                return await self.send(last_words)

    async def receive(self, most: int = PIECE) -> bytes:
        """Receive once, ``b""`` at the end of the stream, with or without a goodbye."""
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return self._decrypt(most)
            data = await self.wire.receive()
            if not data:
                return b""
            self._incoming.write(data)

    def _decrypt(self, most: int) -> bytes:
        try:
            data = self.engine.read(most)
        except ssl.SSLZeroReturnError:  # the goodbye, heard by one who has said it already
            data = b""
        self.heard_goodbye = not data
        return data

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        if data:
            self.engine.write(data)
        await self.flush()

    async def send_eof(self) -> None:
        """Say goodbye, and send nothing more; one that has been closed already is no concern."""
        with contextlib.suppress(ssl.SSLError):
            self.engine.unwrap()
        with contextlib.suppress(OSError):
            await self.flush()
        await super().send_eof()


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make the contexts of a client and of a server that it trusts."""
    client, server = client_context(), server_context()
    server.num_tickets = 0  # every byte behind the handshake is one that a test has sent
    return client, server


# --- what is below --------------------------------------------------------------------------------------


class FaultySocket(socket.socket):
    """A socket whose calls fail as they are told to, one after the other, and are counted."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.receive_faults: list[OSError] = []
        self.send_faults: list[OSError] = []
        self.sends = 0

    def recv_into(self, *arguments: Any) -> int:
        if self.receive_faults:
            raise self.receive_faults.pop(0)
        return super().recv_into(*arguments)

    def send(self, *arguments: Any) -> int:
        self.sends += 1
        if self.send_faults:
            raise self.send_faults.pop(0)
        return super().send(*arguments)


def socket_pair(family: str) -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets, ``"unix"`` or ``"tcp"``; the first one's kernel takes little at a time."""
    if family == "unix":
        first, second = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            second = socket.create_connection(listener.getsockname())
            first, _ = listener.accept()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096 if family == "unix" else PIECE)
    return first, second


class Ends(NamedTuple):
    """A transport, what it calls, what is below it, and the peer.

    :ivar below: a :class:`FaultyStream` or a :class:`FaultySocket`
    """

    transport: Any
    notes: Notes
    below: Any
    peer: Any
    tasks: TaskGroup

    async def have_called(self, call: str) -> None:
        """Have the peer do what the receiver hears of by a call, ``data_received`` or ``eof_received``."""
        await (self.peer.send_eof() if call == "eof_received" else self.peer.send(b"."))

    async def fill(self) -> bytes:
        """Write until what is below takes no more, and return what was written."""
        written = b""
        while not self.transport.buffered:
            written += MUCH
            self.transport.write(MUCH)
            await settle()
        return written


@contextlib.asynccontextmanager
async def opened(
    kind: str,
    *,
    capacity: float = CAPACITY,
    outbox_size: int = 100,
    write_timeout: float = 20,
    reading: bool = True,
) -> AsyncIterator[Ends]:
    """Start a transport; at the end it is aborted, must have ended exactly once, and leaves nothing.

    :param kind: one of :data:`KINDS`
    :param capacity: unread bytes at which sending waits, of a stream in memory
    :param reading: begin to read
    """
    limits: Any = {"outbox_size": outbox_size, "write_timeout": write_timeout}
    above, family = kind.split("-")
    notes, deadlines = Notes(), Deadlines()
    with anyio.fail_after(864_000 if clock_is_virtual() else 60):
        async with nothing_left(), contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(deadlines.run)
            transport: Transport
            peer: MemoryPeer
            below: Any
            if above == "stream":
                below, peer = await _open_stream(family, capacity, stack)
                transport = StreamTransport(below, tasks.start_soon, **limits)
            else:
                ours, other = socket_pair(family)
                below = FaultySocket(ours)
                stack.enter_context(other)
                if above == "tls":
                    transport, peer = await _open_tls(below, other, deadlines, limits)
                else:
                    transport = SocketTransport(ConnectedSocket(below), deadlines, **limits)
                    peer = SocketPeer(other)
            transport.receiver = notes
            transport.start()
            if reading:
                transport.resume()
            try:
                yield Ends(transport, notes, below, peer, tasks)
            finally:
                is_told = transport.receiver is notes
                transport.abort()
                with anyio.CancelScope(shield=True):
                    await settle()
                deadlines.stop()
    assert transport.ended
    assert below.calls["aclose"] == 1 if above == "stream" else below.fileno() == -1
    assert notes.losses == (notes.events[-1:] if is_told or notes.losses else [])


async def _open_stream(
    family: str, capacity: float, stack: contextlib.AsyncExitStack
) -> tuple[FaultyStream, MemoryPeer]:
    if family == "memory":
        stream, theirs = memory_stream_pair(capacity)
        return FaultyStream(stream), MemoryPeer(theirs)
    ours, other = socket_pair(family)
    stack.enter_context(other)
    make = UNIXSocketStream.from_socket if family == "unix" else SocketStream.from_socket
    return FaultyStream(await make(ours)), SocketPeer(other)


async def _open_tls(
    ours: FaultySocket, other: socket.socket, deadlines: Deadlines, limits: Any
) -> tuple[TlsTransport, TlsPeer]:
    client, server = contexts()
    transport = TlsTransport(ConnectedSocket(ours), deadlines, client, hostname="localhost", **limits)
    peer = TlsPeer(other, server)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.handshake)
        await transport.handshake()
    return transport, peer
