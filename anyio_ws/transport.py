"""What a connection needs from below, and the transport that gives it over any AnyIO byte stream.

A transport moves bytes and decides nothing. It *calls* a :class:`Receiver` with what arrives, and takes
what is to be sent in one synchronous step, so that no cancellation of a caller can come between two
halves of a frame.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute

from .framing import end_of_frame
from .lane import NO_LANE, Lane

PIECE = 65_536  # bytes that are received, or sent under one write timeout, at a time
# What is received at once may have to be kept for a while, by each connection: so it is little more than
# one message, which comes whole if it is there.
READ_SIZE = 69_632  # bytes, where messages may be short
READ_MOST = 262_144  # bytes, however long they may be
LINGER_BYTES = 65_536  # what a peer may still send before its connection is closed under it

Spawn = Callable[..., object]
Address = tuple[str, int] | str
HeadT = TypeVar("HeadT", covariant=True)
ErrorT = TypeVar("ErrorT", bound=BaseException)


class Receiver(Protocol):
    """What a transport calls. None of it may block, and none of it may raise."""

    def data_received(self, data: bytes | memoryview) -> None:
        """Take the bytes of one read; a view is valid until this returns."""

    def catch_up(self) -> None:
        """Deal with some of what was received and put off, if there is room for it."""

    def eof_received(self) -> None:
        """Note that the peer will send nothing more."""

    def room_made(self) -> None:
        """Note that what waits to be sent has fallen below the mark."""

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the transport has ended; called exactly once, and last."""


class Transport(Protocol):
    """What a connection needs from below: bytes go out in one step, and the receiver is called.

    :ivar receiver: who is called; may be exchanged at any time
    :ivar full: whether more than ``outbox_size`` bytes wait to be sent, so that writing should wait
    :ivar read_size: bytes that are received at a time, at most; what one read makes has to have room
    :ivar reads: how often something was received
    :ivar taken: how many bytes the peer has taken of what had to wait: a sign that it lives
    :ivar reading: whether received bytes are wanted; see :meth:`pause` and :meth:`resume`
    :ivar ended: whether the transport has ended and what is below it is closed
    :ivar is_direct: whether the receiver is called by the event loop, in no task's name
    """

    receiver: Receiver | None
    full: bool
    read_size: int
    reads: int
    taken: int
    reading: bool
    ended: bool
    is_direct: bool

    @property
    def lane(self) -> Lane:
        """The fast lane, where there is one."""

    def start(self) -> None:
        """Begin to write; reading begins with :meth:`resume`, when there is a receiver."""

    def write(self, data: bytes) -> None:
        """Take bytes to send, all of them or, when the transport has ended, none."""

    def write_from(self, *parts: bytes | memoryview) -> None:
        """Take bytes like :meth:`write`, in views of memory that the caller may change afterwards.

        :param parts: for each frame its header, and a view of its payload
        """

    def write_soon(self, frame: bytes) -> None:
        """Take a control frame, which does not wait until everything before it is sent.

        It goes where the frame ends that is being sent then, before what waits behind that, and behind
        control frames that were taken in the same way. While :attr:`full` is true it takes the place of
        one with the same opcode: "only the most recently processed Ping" has to be answered (RFC 6455
        §5.5.3).
        """

    def pause(self) -> None:
        """Stop reading, so that the peer is slowed down."""

    def resume(self) -> None:
        """Read again."""

    def resume_now(self) -> None:
        """Read again, and where it is a socket that is read, receive within this call what has come already.

        This is for tasks that no receiver is waiting for: all sockets receive into the same buffer.
        """

    def finish(self, *, half_close: bool = False, await_eof: bool = False) -> None:
        """Send what waits, then end; what still arrives is discarded.

        :param half_close: tell the peer that nothing more comes, where that is possible
        :param await_eof: read until the peer closes, or has sent 64 KiB more: closing a socket with
            unread data resets the connection, and a reset destroys what the peer has not read yet
        """

    def abort(self, error: Exception | None = None) -> None:
        """End at once; what waits to be sent is dropped.

        :param error: what ``connection_lost`` is told
        """

    def extra(self, attribute: Any, default: Any = None) -> Any:
        """Return a typed attribute of what is below, *default* where it has none."""

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes of what is below."""

    @property
    def remote_address(self) -> Address:
        """Where the peer is: ``(host, port)``, the path of a Unix socket, or ``""``."""

    @property
    def local_address(self) -> Address:
        """Where this end is, in the same forms."""


class StreamTransport:
    """A transport over an AnyIO byte stream: TLS, a socket, memory, whatever a user brings.

    One task reads, one writes; the writer joins what waits into one send.

    :param stream: the stream; the transport closes it at the end, in every case
    :param spawn: starts a task that the transport belongs to, such as a task group's ``start_soon``
    :param outbox_size: bytes above which :attr:`full` is true
    :param write_timeout: seconds that one send of at most 64 KiB may take

    :ivar buffered: bytes handed over and not yet sent
    """

    is_direct = False
    lane = NO_LANE

    def __init__(self, stream: ByteStream, spawn: Spawn, *, outbox_size: int, write_timeout: float) -> None:
        self.receiver: Receiver | None = None
        self.buffered: int = 0
        self.full: bool = False
        self.read_size: int = READ_SIZE
        self.reads: int = 0
        self.taken: int = 0
        self.reading: bool = False
        self.ended: bool = False
        self._stream = stream
        self._spawn = spawn
        self._outbox_size = outbox_size
        self._write_timeout = write_timeout
        self._outbox: deque[bytes] = deque()
        self._soon: list[bytes] = []  # control frames that go before it
        self._is_sending = False
        self._written: anyio.Event | None = None  # set when the writer waits
        self._scope = anyio.CancelScope()
        self._resumed: anyio.Event | None = None
        self._error: Exception | None = None
        self._finishing = False
        self._all_sent = False
        self._in_order = False
        self._half_close = False
        self._await_eof = False
        self._discarded = 0

    def start(self) -> None:
        """Begin to write; reading begins with :meth:`resume`, when there is a receiver."""
        self._spawn(self._run)

    def write(self, data: bytes) -> None:
        """Take bytes to send, all of them or, when the transport has ended, none."""
        if data and not self._finishing:
            self.buffered += len(data)
            self.full = self.full or self.buffered > self._outbox_size
            self._outbox.append(data)
            self._wake_writer()

    def write_from(self, *parts: bytes | memoryview) -> None:
        """Take bytes like :meth:`write`, in a copy."""
        self.write(b"".join(parts))

    def write_soon(self, frame: bytes) -> None:
        """Take a control frame that goes before what waits; see ``Transport.write_soon``."""
        if self._finishing:
            return
        if self._is_sending or self.buffered >= PIECE:
            self.buffered += add_soon(self._soon, frame, replace=self.full)
            self.full = self.full or self.buffered > self._outbox_size
        else:
            self.write(frame)  # it leaves together with what waits

    def _wake_writer(self) -> None:
        if self._written is not None:
            self._written.set()

    def pause(self) -> None:
        """Stop reading, so that the peer is slowed down."""
        self.reading = False

    def resume(self) -> None:
        """Read again."""
        self.reading = True
        if self._resumed is not None:
            self._resumed.set()

    def resume_now(self) -> None:
        """Read again; a stream cannot be asked what has come already."""
        self.resume()

    def finish(self, *, half_close: bool = False, await_eof: bool = False) -> None:
        """Send what waits, then end; what still arrives is discarded.

        :param half_close: tell the peer that nothing more comes, where the stream can
        :param await_eof: read until the peer closes, or has sent 64 KiB more: closing a socket with
            unread data resets the connection, and a reset destroys what the peer has not read yet
        """
        if not self._finishing:
            self._finishing = True
            self._half_close, self._await_eof = half_close, await_eof
            self._wake_writer()
            self.resume()

    def abort(self, error: Exception | None = None) -> None:
        """End at once; what waits to be sent is dropped."""
        self._finishing = True
        self._error = self._error or error
        self._scope.cancel()

    async def _run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._guard, self._write_all)
                    await self._guard(self._read_all)
                self._in_order = self._error is None
        finally:
            self._finishing = True
            self._outbox.clear()
            self._soon.clear()
            await self._close_stream()
            self.ended = True
            receiver, self.receiver = self.receiver, None  # which refers to us: no cycle outlives the end
            if receiver is not None:
                receiver.connection_lost(self._error)

    async def _guard(self, pump: Callable[[], Awaitable[None]]) -> None:
        """Run a pump; whatever a foreign stream raises ends this transport and nothing else."""
        try:
            await pump()
        except Exception as exc:  # noqa: BLE001 - kept, and handed to connection_lost
            self.abort(without_frames(exc))

    async def _read_all(self) -> None:
        while True:
            if not self.reading:
                self._resumed = anyio.Event()
                await self._resumed.wait()
                self._resumed = None
                continue
            try:
                data = await self._stream.receive(self.read_size)
            except anyio.EndOfStream:
                if not self._finishing and self.receiver is not None:
                    self.receiver.eof_received()
                return None
            if not self._finishing and self.receiver is not None:
                self.reads += 1
                self.receiver.data_received(data)
            else:
                # What comes before our last words are sent must be read, or they might never be.
                self._discarded += len(data) if self._all_sent else 0
                if self._discarded > LINGER_BYTES:
                    return self._end_in_order()

    async def _write_all(self) -> None:
        while self._outbox or not self._finishing:
            if self._outbox:
                self._is_sending = True
                await self._send(self._join())
                self._is_sending = False
            else:
                self._written = anyio.Event()
                await self._written.wait()
                self._written = None
        await anyio.lowlevel.checkpoint_if_cancelled()  # who aborts wants no orderly end
        await self._send_eof()

    def _join(self) -> bytes:
        """Take what waits, up to one piece: one send for all replies to one read."""
        frames = [self._outbox.popleft()]
        size = len(frames[0])
        while self._outbox and size < PIECE and len(self._outbox[0]) <= PIECE:
            frames.append(self._outbox.popleft())
            size += len(frames[-1])
        return b"".join(frames) if len(frames) > 1 else frames[0]

    async def _send(self, data: bytes) -> None:
        """Send bytes piece by piece, and control frames that came meanwhile where a frame ends."""
        rest: bytes | memoryview = data
        position, is_first = 0, True
        while position < len(rest) or self._soon:
            start, position = position, min(position + PIECE, len(rest))
            piece = bytes(rest[start:position])
            if self._soon and (end := end_of_frame(rest, start)) <= position:
                piece = b"".join((rest[start:end], *self._soon))
                self._soon.clear()
                rest, position = memoryview(rest)[end:], 0
            await self._send_piece(piece)
            self.taken += 0 if is_first else len(piece)
            is_first = False

    async def _send_piece(self, piece: bytes) -> None:
        with anyio.fail_after(self._write_timeout):
            await self._stream.send(piece)
        self.buffered -= len(piece)
        if self.full and self.buffered <= self._outbox_size:
            self.full = False
            if self.receiver is not None:
                self.receiver.room_made()

    async def _send_eof(self) -> None:
        """Do what :meth:`finish` asked for once everything is sent."""
        if self._half_close:
            with contextlib.suppress(NotImplementedError):  # TLS has no half-closed state
                await self._stream.send_eof()
        self._all_sent = True
        if not self._await_eof:
            self._end_in_order()

    def _end_in_order(self) -> None:
        self._in_order = True
        self._scope.cancel()

    async def _close_stream(self) -> None:
        """Close the stream; in order, with TLS's goodbye, only where everything was in order."""
        with contextlib.suppress(Exception):  # it is closed all the same
            with anyio.move_on_after(1 if self._in_order else 0, shield=True):
                await self._stream.aclose()

    def extra(self, attribute: Any, default: Any = None) -> Any:
        """Return a typed attribute of the stream, *default* where it has none."""
        return self._stream.extra(attribute, default)

    @property
    def extra_attributes(self) -> Any:
        """The typed attributes of the stream."""
        return self._stream.extra_attributes

    @property
    def remote_address(self) -> Address:
        """Where the peer is: ``(host, port)``, the path of a Unix socket, or ``""``."""
        return stream_address(self._stream, SocketAttribute.remote_address)

    @property
    def local_address(self) -> Address:
        """Where this end is, in the same forms."""
        return stream_address(self._stream, SocketAttribute.local_address)


def add_soon(waiting: list[bytes], frame: bytes, *, replace: bool) -> int:
    """Add a control frame to those that wait; return how many bytes more wait then.

    :param replace: whether it takes the place of those with the same opcode
    """
    before = 0
    if replace:
        replaced = [each for each in waiting if each[0] == frame[0]]
        before = sum(map(len, replaced))
        waiting[:] = [each for each in waiting if each[0] != frame[0]]
    waiting.append(frame)
    return len(frame) - before


def stream_address(stream: AnyByteStream, attribute: Any) -> Address:
    """Return an address of a stream, ``""`` where it has none, or none any more."""
    try:
        return address_of(stream.extra(attribute, ""))
    except (OSError, AttributeError):  # AnyIO asks the socket, which may be closed by now
        return ""


def address_of(address: Any) -> Address:
    """Bring a socket's address into our form: IPv6 has two more items, an unnamed Unix socket none."""
    if isinstance(address, tuple):
        return str(address[0]), int(address[1])
    return address.decode() if isinstance(address, bytes) else str(address)


def without_frames(error: ErrorT) -> ErrorT:
    """Take the tracebacks from an error that is kept, and from those that led to it.

    Their frames refer to whoever keeps it: a circle that only the garbage collector would end.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


class HeadReader(Protocol[HeadT]):
    """What :func:`receive_head` reads with: the readers of ``http11.py``."""

    def feed(self, data: bytes | memoryview) -> HeadT | None:
        """Take bytes; return the head when it is complete."""

    def feed_eof(self) -> HeadT:
        """Take the end of the stream; return the head that it completes, or raise."""


class _HeadReceiver:
    """The receiver of an opening handshake: feeds a reader, and stops reading when it is done."""

    def __init__(self, transport: Transport, reader: HeadReader[Any]) -> None:
        self.head: Any = None
        self.error: Exception | None = None
        self._transport = transport
        self._reader = reader
        self._next = transport.receiver
        self._is_done = False
        self._done: anyio.Event | None = None  # set when there is something to wait for

    async def wait(self) -> None:
        """Wait until there is a head or an error."""
        if self._is_done:
            await anyio.lowlevel.checkpoint_if_cancelled()
        else:
            self._done = anyio.Event()
            await self._done.wait()

    def data_received(self, data: bytes | memoryview) -> None:
        self._take(self._reader.feed, data)

    def catch_up(self) -> None:
        pass

    def eof_received(self) -> None:
        self._take(self._reader.feed_eof)

    def _take(self, feed: Callable[..., Any], *data: bytes | memoryview) -> None:
        try:
            self.head = feed(*data)
        except Exception as exc:  # noqa: BLE001 - raised where the head is waited for
            self.error = without_frames(exc)
        if self.head is not None or self.error is not None:
            self._transport.pause()
            self._end()

    def _end(self) -> None:
        self._is_done = True
        if self._done is not None:
            self._done.set()

    def room_made(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        if not self._is_done:
            self.error = anyio.BrokenResourceError("the connection was lost during the opening handshake")
            self.error.__cause__ = error
            self._end()
        if self._next is not None:
            self._next.connection_lost(error)


async def receive_head(transport: Transport, reader: HeadReader[HeadT], *, at_once: bool = False) -> HeadT:
    """Read the head of a request or response; then reading is paused again.

    :param at_once: begin with what has come already, as :meth:`Transport.resume_now` does
    :raises HandshakeError: what the reader found wrong
    :raises anyio.BrokenResourceError: when the connection is lost first
    """
    receiver = _HeadReceiver(transport, reader)
    if transport.ended:
        raise anyio.BrokenResourceError("the connection was lost before the opening handshake")
    before, transport.receiver = transport.receiver, receiver
    if at_once:
        transport.resume_now()
    else:
        transport.resume()
    await receiver.wait()
    if not transport.ended:
        transport.receiver = before
    error, receiver.error = receiver.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # it refers to this frame
    head: HeadT = receiver.head
    return head


class Farewell:
    """The receiver of a connection that is only waiting to be closed."""

    def __init__(self) -> None:
        self.gone: anyio.Event = anyio.Event()

    def data_received(self, data: bytes | memoryview) -> None:
        """Discard it."""

    def catch_up(self) -> None:
        """Nothing was put off."""

    def eof_received(self) -> None:
        """Nothing waits for it."""

    def room_made(self) -> None:
        """Nothing waits for it."""

    def connection_lost(self, error: Exception | None) -> None:
        """Let whoever waits go on."""
        self.gone.set()
