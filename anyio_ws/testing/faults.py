"""A byte stream on which things go wrong, where and when a test says so.

Put it between a stream and whoever uses the stream; every operation is counted, and any of them can be
made short, slow, endless, or an error. :func:`reset` ends a connection the rude way.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute

from .memory import MemoryStream

Fault = BaseException | Callable[[], object]


class FaultyStream(ByteStream):
    """Hands everything to another stream, except for what is to go wrong.

    The operations have names: ``"receive"``, ``"send"``, ``"send_eof"``, ``"aclose"``, and ``"piece"``
    for each piece into which *most_sent* cuts a ``send``. ::

        stream = FaultyStream(inner, most_sent=1)
        stream.faults["send", 2] = OSError(errno.EPIPE, "gone")  # the second send fails
        stream.faults["piece", 7] = scope.cancel  # in the middle of a frame somebody is cancelled
        stream.stuck.add("receive")  # nothing is received from now on

    :param stream: the stream that does the work
    :param most: how many bytes a ``receive`` returns at most
    :param most_sent: how many bytes are sent at a time; others may run in between
    :param delay: seconds that each operation takes before it begins

    :ivar faults: what the nth call of an operation, counted from 1, raises; or calls before it goes on
    :ivar stuck: the names of the operations that wait for ever
    :ivar calls: how often each operation was called
    :ivar sent: what each ``send`` was given
    :ivar received: how many bytes were received
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        most: float = math.inf,
        most_sent: float = math.inf,
        delay: float = 0.0,
    ) -> None:
        self.faults: dict[tuple[str, int], Fault] = {}
        self.stuck: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.sent: list[bytes] = []
        self.received: int = 0
        self._stream = stream
        self._most = most
        self._most_sent = most_sent
        self._delay = delay

    async def _enter(self, name: str) -> None:
        """Count an operation, and do to it what is to be done."""
        self.calls[name] += 1
        fault = self.faults.get((name, self.calls[name]))
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            fault()
        if self._delay:
            await anyio.sleep(self._delay)
        if name in self.stuck:
            await anyio.sleep_forever()

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        """Receive from the stream below, at most *most* bytes."""
        await self._enter("receive")
        data = await self._stream.receive(int(min(max_bytes, self._most)))
        self.received += len(data)
        return data

    async def send(self, item: bytes) -> None:
        """Send to the stream below, in pieces of at most *most_sent* bytes."""
        self.sent.append(item)
        await self._enter("send")
        size = int(min(len(item), self._most_sent)) or 1
        for start in range(0, len(item), size):
            await self._enter("piece")
            await self._stream.send(item[start : start + size])

    async def send_eof(self) -> None:
        """End the sending of the stream below."""
        await self._enter("send_eof")
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream below, whatever goes wrong here."""
        try:
            await self._enter("aclose")
        finally:
            await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes of the stream below."""
        return self._stream.extra_attributes


async def reset(stream: AnyByteStream) -> None:
    """Close a stream so that the other end gets an error in place of an end.

    A TCP connection is reset (``SO_LINGER`` of 0 seconds), a :class:`MemoryStream` likewise; any other
    stream is closed without waiting.
    """
    if isinstance(stream, MemoryStream):
        stream.reset()
        return
    raw = stream.extra(SocketAttribute.raw_socket, None)
    if raw is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await anyio.aclose_forcefully(stream)
