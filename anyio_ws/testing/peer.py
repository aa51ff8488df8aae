"""A peer that follows a script: bytes, pauses, half a goodbye, a reset; it records what comes back.

It knows nothing about WebSocket and can therefore break every rule of it. Whatever end of a connection
is under test, the peer is the other one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import anyio
from anyio.abc import ByteStream

from .faults import reset
from .wire import WireOracle

OPENING_REQUEST = (
    b"GET / HTTP/1.1\r\n"
    b"Host: localhost\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)
"""A client's opening handshake, as RFC 6455 §1.3 has it."""


class Do(Enum):
    """Steps of a script that need no more than their name."""

    HALF_CLOSE = "send no more, and go on reading"
    RESET = "reset the connection; the script ends"
    CLOSE = "close the stream; the script ends"
    STOP_READING = "read no more, so that the other end fills its buffers"
    READ = "read again"


class Pause(NamedTuple):
    """A step: wait so many seconds."""

    seconds: float


class Until(NamedTuple):
    """A step: wait until the peer has received certain bytes since the last step of this kind."""

    data: bytes


class Answer(NamedTuple):
    """A step: send what a function makes of all that was received so far."""

    make: Callable[[bytes], bytes]


Step = bytes | Do | Pause | Until | Answer


def accept_handshake(received: bytes) -> bytes:
    r"""Make a server's answer to the opening handshake that was received (RFC 6455 §4.2.2).

    ``[Until(b"\r\n\r\n"), Answer(accept_handshake), ...]`` is how the script of a server begins.
    """
    lines = received.partition(b"\r\n\r\n")[0].split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    key = headers[b"sec-websocket-key"] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


class ScriptedPeer:
    r"""Plays a script on a stream, and records what comes back.

    ::

        script = [OPENING_REQUEST, Until(b"\r\n\r\n"), b"\x81", Pause(5), Do.RESET]
        peer = ScriptedPeer(listener.connect(), script)
        await peer.run()
        assert peer.oracle(masked=False).messages == [...]

    :param stream: the stream; it is closed at the end of :meth:`run`
    :param script: the steps: ``bytes`` are sent, the others are :class:`Do`, :class:`Pause`,
        :class:`Until` and :class:`Answer`

    :ivar received: everything that was received
    :ivar ending: how the other end ended: ``"end"`` in order, ``"error"`` by a reset or another error,
        ``""`` when it did not
    """

    def __init__(self, stream: ByteStream, script: Sequence[Step]) -> None:
        self.received: bytearray = bytearray()
        self.ending: str = ""
        self._stream = stream
        self._script = script
        self._matched = 0
        self._changed = anyio.Event()
        self._reading = anyio.Event()
        self._reading.set()
        self._receiving = anyio.CancelScope()

    async def run(self) -> None:
        """Play the script, then read until the other end has ended, and close.

        An error of the stream ends the script early and is no error of this function;
        :attr:`ending` tells. A script whose last step is ``Do.CLOSE`` or ``Do.RESET`` does not wait.

        Cancellation: the stream is closed.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                await self._play()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)

    def oracle(self, *, masked: bool, head: bool = True) -> WireOracle:
        """Judge everything that was received; see :class:`WireOracle`."""
        oracle = WireOracle(masked=masked, head=head)
        oracle.feed(self.received)
        return oracle

    async def _play(self) -> None:
        with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, _Ended):
            for step in self._script:
                await self._take(step)
                if step in (Do.CLOSE, Do.RESET):
                    return
        while not self.ending:
            await self._changed.wait()

    async def _take(self, step: Step) -> None:
        if isinstance(step, bytes):
            await self._stream.send(step)
        elif isinstance(step, Pause):
            await anyio.sleep(step.seconds)
        elif isinstance(step, Until):
            await self._wait_for(step.data)
        elif isinstance(step, Answer):
            await self._stream.send(step.make(bytes(self.received)))
        else:
            await self._do(step)

    async def _do(self, step: Do) -> None:
        if step is Do.HALF_CLOSE:
            await self._stream.send_eof()
        elif step is Do.RESET:
            await reset(self._stream)
        elif step is Do.CLOSE:
            await self._stream.aclose()
        elif step is Do.STOP_READING:
            self._reading = anyio.Event()
            self._receiving.cancel()
        else:
            self._reading.set()

    async def _wait_for(self, data: bytes) -> None:
        """Wait for bytes; if the other end ends first, the script is over.

        :raises _Ended: then
        """
        while (found := self.received.find(data, self._matched)) < 0:
            if self.ending:
                raise _Ended
            await self._changed.wait()
        self._matched = found + len(data)

    async def _read(self) -> None:
        try:
            while True:
                while not self._reading.is_set():
                    await self._reading.wait()
                with anyio.CancelScope() as self._receiving:
                    self.received += await self._stream.receive()
                self._change()
        except anyio.EndOfStream:
            self.ending = "end"
        except anyio.BrokenResourceError:
            self.ending = "error"
        except anyio.ClosedResourceError:  # by the script
            pass
        finally:
            self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class _Ended(Exception):
    """The other end has ended before it sent what the script waits for."""
