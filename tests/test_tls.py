"""TLS over a watched socket, whose peer is the standard library's engine: it decides what one read brings."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
import trustme

from anyio_ws.deadlines import Deadlines
from anyio_ws.sockets import ConnectedSocket
from anyio_ws.tls import TlsTransport

from .memory import settle

AUTHORITY = trustme.CA()


class Notes:
    """A receiver that notes what it is told, and pauses after each read."""

    def __init__(self, transport: TlsTransport) -> None:
        self.told: list[object] = []
        self._transport = transport

    def data_received(self, data: bytes | memoryview) -> None:
        self.told.append(bytes(data))
        self._transport.pause()

    def eof_received(self) -> None:
        self.told.append("eof")

    def room_made(self) -> None: ...

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")


class Peer:
    """A TLS server over a socket; what it says goes out when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("localhost").configure_cert(context)
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def send(self) -> None:
        """Send what the engine has to say."""
        self._socket.send(self._outgoing.read())

    async def handshake(self) -> None:
        """Do the handshake."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.send()
                await anyio.wait_readable(self._socket)
                self._incoming.write(self._socket.recv(65_536))
            else:
                return self.send()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[TlsTransport, Peer, socket.socket]]:
    """Open a client's transport and its peer; the handshake is done."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    deadlines, peer = Deadlines(), Peer(theirs)
    transport = TlsTransport(
        ConnectedSocket(ours), deadlines, context, hostname="localhost", outbox_size=1_000, write_timeout=60
    )
    with theirs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.handshake)
            await transport.handshake()
        yield transport, peer, theirs
        transport.abort()
        await settle()


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_end_right_behind_data_is_told_when_reading_goes_on(says_goodbye: bool) -> None:
    """The receiver that pauses, or gives way to another, at the data is told of the end after ``resume``."""
    async with connected() as (transport, peer, theirs):
        transport.receiver = first = Notes(transport)
        peer.tls.write(b"all there is")
        if says_goodbye:
            with contextlib.suppress(ssl.SSLError):
                peer.tls.unwrap()
        peer.send()
        theirs.shutdown(socket.SHUT_WR)
        transport.resume()
        while not first.told:
            await anyio.lowlevel.checkpoint()
        await settle()
        assert first.told == [b"all there is"]
        transport.receiver = second = Notes(transport)
        transport.resume()
        while not second.told:
            await anyio.lowlevel.checkpoint()
        await settle()
        assert (first.told, second.told) == ([b"all there is"], ["eof"])
        transport.resume()
        await settle()
        assert second.told == ["eof"]


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    """Have objects go when nobody refers to them, or not at all."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class WatchedTransport(TlsTransport):
    """A transport that can be watched going."""

    __slots__ = ("__weakref__",)


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("bytes_of_peer", [b"no TLS at all\r\n\r\n", b""])
async def test_handshake_that_fails_leaves_no_circle(bytes_of_peer: bytes) -> None:
    """The error that is raised does not keep the transport, nor the transport its error."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport = WatchedTransport(
            ConnectedSocket(ours),
            Deadlines(),
            ssl.create_default_context(),
            hostname="localhost",
            outbox_size=1_000,
            write_timeout=60,
        )
        theirs.send(bytes_of_peer)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            await transport.handshake()
        await settle()
        gone = weakref.ref(transport)
        del transport
        assert gone() is None
