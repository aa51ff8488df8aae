"""What is particular to TLS over a watched socket: goodbyes, and what the engine still has after a pause.

``test_transport.py`` has what holds for every transport. The peer is the standard library's engine: it
decides what one read brings.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from anyio_ws.deadlines import Deadlines
from anyio_ws.sockets import ConnectedSocket
from anyio_ws.tls import TlsTransport

from .memory import settle
from .transports import Notes, TlsPeer, contexts, expect_logged, opened

LIMITS: Any = {"outbox_size": 1_000, "write_timeout": 60}


class Pausing(Notes):
    """A receiver that pauses after each read."""

    def __init__(self, transport: TlsTransport) -> None:
        super().__init__()
        self._transport = transport

    def data_received(self, data: bytes | memoryview) -> None:
        super().data_received(data)
        self._transport.pause()


@pytest.mark.parametrize("says_goodbye", [True, False])
@pytest.mark.parametrize("ends_stream", [True, False])
async def test_end_right_behind_data_is_told_when_reading_goes_on(
    says_goodbye: bool, ends_stream: bool
) -> None:
    """A goodbye in the same read as data is told after ``resume``, whether or not the stream ends, too."""
    async with opened("tls-unix", reading=False) as ends:
        ends.transport.receiver = first = Pausing(ends.transport)
        ends.peer.engine.write(b"all there is")
        if says_goodbye:
            with contextlib.suppress(ssl.SSLWantReadError):
                ends.peer.engine.unwrap()
        await ends.peer.flush()
        if ends_stream:
            ends.peer.socket.shutdown(socket.SHUT_WR)
        ends.transport.resume()
        await first.expect(b"all there is")
        await settle()
        ends.transport.receiver = second = Notes()
        ends.transport.resume()
        await settle()
        ends.transport.resume()
        await settle()
        assert first.events == [b"all there is"]
        assert second.events == ["eof"] * (says_goodbye or ends_stream)


async def test_error_of_the_receiver_is_logged_when_reading_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """What ``resume`` hands over later may raise like any other read: the connection ends, and no other."""
    async with opened("tls-unix", reading=False) as ends:
        ends.transport.receiver = first = Pausing(ends.transport)
        ends.peer.engine.write(b"all there is")
        with contextlib.suppress(ssl.SSLWantReadError):
            ends.peer.engine.unwrap()
        await ends.peer.flush()
        ends.transport.resume()
        await first.expect(b"all there is")
        ends.transport.receiver = ends.notes
        ends.notes.faults["eof_received"] = error = ZeroDivisionError()
        ends.transport.resume()
        await ends.notes.expect(("lost", error))
    expect_logged(caplog, error)


async def test_data_right_behind_the_handshake_is_there_when_reading_begins() -> None:
    """What a client sends with the last bytes of its handshake waits in the engine until it is wanted."""
    ours, theirs = socket.socketpair()
    client, server = contexts()
    transport = TlsTransport(ConnectedSocket(ours), Deadlines(), server, hostname=None, **LIMITS)
    with theirs:
        peer = TlsPeer(theirs, client, hostname="localhost")

        async def shake_hands() -> None:
            await peer.handshake(last_words=b"hello")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shake_hands)
            await transport.handshake()
        transport.receiver = notes = Notes()
        transport.resume()
        await notes.expect(b"hello")
        transport.abort()
        await settle()


async def test_goodbye_that_has_to_wait_is_still_said() -> None:
    """A kernel that is full when the goodbye is due does not take it away from the peer."""
    async with opened("tls-unix") as ends:
        ends.transport.write(b"last words")
        ends.below.send_faults.append(BlockingIOError())
        ends.transport.finish()
        assert await ends.peer.read() == b"last words"
        assert ends.peer.heard_goodbye


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
            **LIMITS,
        )
        theirs.send(bytes_of_peer)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            await transport.handshake()
        await settle()
        gone = weakref.ref(transport)
        del transport
        assert gone() is None
