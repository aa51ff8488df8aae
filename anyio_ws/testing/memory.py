"""Byte streams in memory: connections without sockets, the same on every machine and every run."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import anyio
from anyio.abc import ByteStream


class _Pipe:
    """One direction: bytes, and who has left."""

    def __init__(self, capacity: float) -> None:
        self.data: bytearray = bytearray()
        self.capacity = capacity
        self.ended = False  # the writer will write nothing more
        self.abandoned = False  # the reader is gone
        self.broken = False  # the connection was reset
        self._changed = anyio.Event()

    def change(self) -> None:
        """Wake everybody who waits for something here."""
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()


class MemoryStream(ByteStream):
    """One end of a connection in memory; :func:`memory_stream_pair` makes two."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """Return bytes as soon as there are any, at most *max_bytes*.

        :raises anyio.EndOfStream: when the other end has closed or ended its sending
        :raises anyio.BrokenResourceError: when the other end has reset the connection
        :raises anyio.ClosedResourceError: when this end was closed
        """
        await anyio.lowlevel.checkpoint()
        pipe = self._incoming
        while not pipe.data and not pipe.ended and not self._closed:
            await pipe.wait()
        if self._closed:
            raise anyio.ClosedResourceError
        if pipe.broken:
            raise anyio.BrokenResourceError
        if not pipe.data:
            raise anyio.EndOfStream
        data = bytes(pipe.data[:max_bytes])
        del pipe.data[:max_bytes]
        pipe.change()
        return data

    async def send(self, item: bytes) -> None:
        """Send bytes, waiting while the other end has as many unread as the pair's capacity.

        :raises anyio.BrokenResourceError: when the other end has closed
        :raises anyio.ClosedResourceError: when this end was closed, or has ended its sending
        """
        await anyio.lowlevel.checkpoint()
        pipe, position = self._outgoing, 0
        while True:
            if self._closed or pipe.ended:
                raise anyio.ClosedResourceError
            if pipe.abandoned:
                raise anyio.BrokenResourceError
            room = pipe.capacity - len(pipe.data)
            if room > 0:
                piece = item[position:] if room == math.inf else item[position : position + int(room)]
                pipe.data += piece
                position += len(piece)
                pipe.change()
            if position >= len(item):
                return
            await pipe.wait()

    async def send_eof(self) -> None:
        """End the sending; the other end reads what is there and then the end of the stream."""
        self._outgoing.ended = True
        self._outgoing.change()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close both directions."""
        self._close()
        await anyio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Close as a reset does: what the other end has not read yet is lost, and it gets an error."""
        self._outgoing.broken = True
        self._outgoing.data.clear()
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._outgoing.ended = self._incoming.abandoned = True
        self._outgoing.change()
        self._incoming.change()


def memory_stream_pair(capacity: float = math.inf) -> tuple[MemoryStream, MemoryStream]:
    """Make the two ends of a connection in memory.

    :param capacity: unread bytes at which sending waits, in each direction; a small number makes a peer
        that reads slowly, or not at all
    """
    there, back = _Pipe(capacity), _Pipe(capacity)
    return MemoryStream(back, there), MemoryStream(there, back)


class MemoryListener:
    """A listener without a socket: ``Server.listen(listeners=[listener])`` accepts its connections."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[MemoryStream](math.inf)

    def connect(self, capacity: float = math.inf) -> MemoryStream:
        """Connect, and return the client's end; see :func:`memory_stream_pair`.

        :raises anyio.ClosedResourceError: when the listener was closed
        """
        client, server = memory_stream_pair(capacity)
        self._send.send_nowait(server)
        return client

    async def accept(self) -> MemoryStream:
        """Wait for a connection, and return the server's end."""
        return await self._receive.receive()

    async def aclose(self) -> None:
        """Accept nothing more; connections that were not accepted yet are closed."""
        self._send.close()
        with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                await self._receive.receive_nowait().aclose()
        self._receive.close()
        await anyio.lowlevel.checkpoint()

    def extra(self, attribute: Any, default: Any = None) -> Any:
        """Return *default*: there is no socket that could have an address."""
        return default
