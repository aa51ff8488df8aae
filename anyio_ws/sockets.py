"""Plain sockets, watched directly: the transport for TCP and Unix sockets.

A :class:`SocketTransport` has no task. The event loop calls it when its socket can be read; it receives
into a buffer that all sockets share, and its receiver deals with the bytes there and then. What is
written goes to the kernel at once, and waits only when the kernel is full.

Where the event loop cannot watch sockets (the proactor loop of Windows), AnyIO's streams and
``StreamTransport`` do the same.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from anyio.abc import SocketAttribute

from .deadlines import Deadline, Deadlines
from .framing import end_of_frame
from .lane import NO_LANE, Lane, SocketLane
from .transport import LINGER_BYTES, PIECE, READ_SIZE, Address, Receiver, add_soon, address_of, without_frames

logger: logging.Logger = logging.getLogger("anyio_ws")

_FAULT = "what was received could not be dealt with; the connection is cut"
_READS_AFTER_BREAKING = 64  # at most so many reads of what came before a socket broke
_BRIEF = 4_096  # bytes; a read of fewer took little time, as in _lane_c.c
_MOST_PARTS = 1_024  # that one call can send (IOV_MAX of Linux, macOS and the BSDs)
_NO_FRAMES: list[bytes] = []  # of all transports that have none, and never changed
_TCP = (socket.AF_INET, socket.AF_INET6)
_RETRY = (BlockingIOError, InterruptedError)


class ConnectedSocket:
    """A connected socket, made ready for a transport; who has no transport for it must close it.

    :param sock: the socket; it is made non-blocking, or closed where it cannot be made ready
    :param remote_address: where the peer is, if that is known
    """

    __slots__ = ("_remote_address", "socket")

    def __init__(self, sock: socket.socket, remote_address: object = None) -> None:
        self.socket: socket.socket = sock
        self._remote_address = remote_address
        try:
            sock.setblocking(False)
            if isinstance(remote_address, tuple) or sock.family in _TCP:  # asking the socket takes longer
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.close()
            raise

    @property
    def remote_address(self) -> Address:
        """Where the peer is, ``""`` of a socket whose peer has gone or has no address."""
        if self._remote_address is None:
            self._remote_address = _ask(self.socket.getpeername)
        return address_of(self._remote_address)

    @property
    def local_address(self) -> Address:
        """Where this end is, in the same forms."""
        return address_of(_ask(self.socket.getsockname))

    def close(self) -> None:
        """Close the socket; it is closed even where the system complains."""
        with contextlib.suppress(OSError):
            self.socket.close()


def _ask(get_name: Callable[[], Any]) -> Any:
    """Return an address, ``""`` of a socket whose peer has gone."""
    try:
        return get_name()
    except OSError:
        return ""


class SocketTransport(SocketLane):
    """A transport over a connected socket.

    :param connected: the socket; the transport closes it at the end, in every case
    :param deadlines: the clock
    :param outbox_size: bytes above which :attr:`full` is true
    :param write_timeout: seconds in which the peer must take 64 KiB of what waits

    :ivar buffered: bytes handed over and not yet sent
    """

    is_direct = True
    __slots__ = (
        "_addresses",
        "_all_sent",
        "_await_eof",
        "_connected",
        "_deadline",
        "_deadlines",
        "_discarded",
        "_entry",
        "_eof",
        "_error",
        "_half_close",
        "_is_watched",
        "_progress",
        "_socket",
        "_soon",
        "_write_timeout",
        "ended",
        "taken",
    )

    def __init__(
        self,
        connected: ConnectedSocket,
        deadlines: Deadlines,
        *,
        outbox_size: int,
        write_timeout: float,
    ) -> None:
        self.receiver: Receiver | None = None
        self.buffered: int = 0
        self.full: bool = False
        self.taken: int = 0
        self.read_size: int = READ_SIZE
        self.reads: int = 0
        self.reading: bool = False
        self.ended: bool = False
        self._connected = connected
        self._socket = connected.socket
        self._fd = connected.socket.fileno()
        self._poller = deadlines.poller
        self._poller.begin()
        self._deadlines = deadlines
        self._outbox_size = outbox_size
        self._write_timeout = write_timeout
        self._outbox: list[bytes | memoryview] = []
        self._entry: bytes | memoryview = b""  # what is being sent,
        self._rest: bytes | memoryview = b""  # and what the kernel did not take of it
        self._soon: list[bytes] = _NO_FRAMES  # control frames that go before the outbox
        self._gathered = False  # the poller will flush us
        self._progress = 0  # bytes taken since the write timeout began
        self._deadline: Deadline | None = None
        self._error: Exception | None = None
        self._finishing = False
        self._half_close = False
        self._await_eof = False
        self._all_sent = False
        self._eof = False
        self._is_watched = False
        self._discarded = 0
        self._addresses: tuple[Address, Address] | None = None  # of a socket that is closed

    @property
    def lane(self) -> Lane:
        """The fast lane, for a socket whose methods do nothing but the system calls."""
        return self if type(self._socket) is socket.socket else NO_LANE

    def start(self) -> None:
        """Do nothing: reading begins with :meth:`resume`, when there is a receiver."""

    # --- receiving --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop reading, so that the peer is slowed down."""
        self.reading = False

    def resume(self) -> None:
        """Read again."""
        if not self.ended:
            self.reading = True
            self._watch()

    def resume_now(self) -> None:
        """Read again, what has come already first; see ``Transport.resume_now``."""
        if not self.ended and not self._eof:
            self.reading = True
            self._readable()
            if self.reading:
                self.resume()

    def _watch(self) -> None:
        if not self._is_watched and not self._eof:
            self._is_watched = True
            try:
                self._poller.watch_readable(self._fd, self.readable)
            except OSError as exc:  # the system has no memory for it
                self._is_watched = False
                self._close(without_frames(exc))

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._poller.unwatch_readable(self._fd)

    def _readable(self) -> bool:
        """Receive once, whatever comes; return whether that was little."""
        if not self.reading:  # a pause is often over before there is anything
            self._unwatch()
            return False
        try:
            size = self._socket.recv_into(self._poller.buffer, self.read_size)
        except _RETRY:
            return False
        except OSError as exc:
            self._receive_failed(exc)
            return False
        self._guard(self._deal_with, size)
        return 0 < size < _BRIEF

    def _deal_with(self, size: int) -> None:
        """Deal with what one read has brought into the buffer."""
        if not size:
            self._receive_ended()
        elif self._finishing:
            self._discard(size)
        else:
            self.reads += 1
            self._take(self._poller.buffer[:size])

    def _guard(self, step: Callable[..., None], *arguments: Any) -> None:
        """Do what calls the receiver, whose faults must not get into the event loop."""
        try:
            step(*arguments)
        except Exception as exc:
            logger.exception(_FAULT)
            self._close(without_frames(exc))

    def _receive_failed(self, error: OSError) -> None:
        self._close(without_frames(error))

    def _receive_ended(self) -> None:
        self._unwatch()
        self._eof = True
        self._take_eof()

    def _receive_raised(self, error: Exception) -> None:
        """Deal with a fault of the receiver's."""
        logger.error(_FAULT, exc_info=error)
        self._close(without_frames(error))

    def _take(self, data: memoryview) -> None:
        assert self.receiver is not None
        self.receiver.data_received(data)

    def _take_eof(self) -> None:
        if not self._finishing:
            assert self.receiver is not None
            self.receiver.eof_received()
        elif self._all_sent:
            self._close()

    def _discard(self, size: int) -> None:
        """What comes before our last words are sent must be read, or they might never be."""
        if self._all_sent:
            self._discarded += size
            if self._discarded > LINGER_BYTES:
                self._close()

    # --- sending ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Take bytes to send, all of them or, when the transport has ended, none."""
        if self._rest or self._finishing:
            if not self._finishing:
                self._keep(data)
        elif self._poller.corked or self._outbox:  # behind what was gathered, though that is over now
            self._keep(data)
            if self.full or self.buffered >= PIECE or not self._poller.corked:
                self.flush()
            elif not self._gathered:
                self._gathered = True
                self._poller.waiting.append(self)
        else:
            self._send(data)

    def write_from(self, *parts: bytes | memoryview) -> None:
        """Take bytes like :meth:`write`; only what the kernel does not take at once is copied."""
        if self._rest or self._finishing or self._outbox or self._poller.corked:
            self.write(b"".join(parts))
            return
        try:
            sent = self._socket.sendmsg(parts[:_MOST_PARTS])
        except _RETRY:
            sent = 0
        except OSError as exc:
            self._break(without_frames(exc))
            return
        for index, part in enumerate(parts):
            if sent < len(part):
                # Between frames something else may go, so the rest of this one is kept on its own.
                behind = index + 2 - index % 2
                self._wait_to_send(b"".join((part[sent:], *parts[index + 1 : behind])))
                if behind < len(parts):
                    self._keep(b"".join(parts[behind:]))
                return
            sent -= len(part)

    def write_soon(self, frame: bytes) -> None:
        """Take a control frame that goes before what waits; see ``Transport.write_soon``."""
        if not self._rest or self._finishing:
            self.write(frame)
            return
        if not self._soon:
            self._part_entry()
            self._soon = []
        self.buffered += add_soon(self._soon, frame, replace=self.full)
        self.full = self.full or self.buffered > self._outbox_size

    def _part_entry(self) -> None:
        """Have what is being sent end with a frame; the frames behind that wait like others."""
        sent = len(self._entry) - len(self._rest)
        left = end_of_frame(self._entry, sent + 1) - sent
        if left < len(self._rest):
            rest = memoryview(self._rest)
            self._rest = rest[:left]
            self._outbox.insert(0, rest[left:])

    def _keep(self, data: bytes | memoryview, place: int | None = None) -> None:
        self._outbox.insert(len(self._outbox) if place is None else place, data)
        self.buffered += len(data)
        self.full = self.full or self.buffered > self._outbox_size

    def flush(self) -> None:
        """Send what was gathered."""
        self._gathered = False
        if not self._rest and self._outbox:
            self._send_outbox()

    def _send_outbox(self) -> None:
        """Send what waits, in one call as far as it is small."""
        while self._outbox and not self._rest:
            data = self._outbox.pop() if len(self._outbox) == 1 else self._join()
            self.buffered -= len(data)
            self._send(data)
        self._room_may_be_made()
        if self._finishing and not self._outbox and not self._rest:
            self._finish_sending()

    def _join(self) -> bytes | memoryview:
        """Take what waits off the outbox, about one piece of it."""
        count = size = 0
        for data in self._outbox:
            if count and (size >= PIECE or len(data) > PIECE):
                break
            count += 1
            size += len(data)
        pieces = self._outbox[:count]
        del self._outbox[:count]
        return b"".join(pieces) if count > 1 else pieces[0]

    def _send(self, data: bytes | memoryview) -> None:
        """Have the kernel take bytes; keep what it does not take."""
        try:
            sent = self._socket.send(data)
        except _RETRY:
            sent = 0
        except OSError as exc:
            self._break(without_frames(exc))
            return
        if sent < len(data):
            self._wait_to_send(data, sent)

    def _wait_to_send(self, entry: bytes | memoryview, sent: int = 0) -> None:
        """Keep what the kernel did not take until it has room."""
        self._entry = entry
        self._rest = rest = memoryview(entry)[sent:]
        self.buffered += len(rest)
        self.full = self.full or self.buffered > self._outbox_size  # only _room_may_be_made ends it
        self._progress = 0
        self._set_deadline()
        try:
            self._poller.watch_writable(self._fd, self._writable)
        except OSError as exc:  # the system has no memory for it
            self._break(without_frames(exc))

    def _send_behind(self, data: bytes) -> None:
        """Send bytes behind what the kernel did not take."""
        if self._rest:
            self._rest = b"".join((self._rest, data))
            self.buffered += len(data)
        else:
            SocketTransport._send(self, data)

    def _writable(self) -> None:
        """Go on with sending; called whenever the kernel has room."""
        try:
            sent = self._socket.send(self._rest)
        except _RETRY:
            return
        except OSError as exc:
            self._break(without_frames(exc))
            return
        self.buffered -= sent
        self.taken += sent
        self._progress += sent
        if sent < len(self._rest):
            self._rest = memoryview(self._rest)[sent:]
            if self._progress >= PIECE:
                self._progress = 0
                self._set_deadline()
            self._room_may_be_made()
            return
        self._stop_waiting()
        if self._soon:
            self._outbox.insert(0, b"".join(self._soon))
            self._soon = _NO_FRAMES
        self._send_outbox()

    def _room_may_be_made(self) -> None:
        if self.full and self.buffered <= self._outbox_size:
            self.full = False
            if self.receiver is not None:
                self.receiver.room_made()

    def _set_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._deadlines.call_later(self._write_timeout, self._time_out)

    def _time_out(self) -> None:
        self._close(TimeoutError(f"the peer took less than 64 KiB in {self._write_timeout} seconds"))

    def _stop_waiting(self) -> None:
        if self._rest:
            self._entry = self._rest = b""
            self._poller.unwatch_writable(self._fd)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _break(self, error: OSError) -> None:
        """Note that nothing can be sent any more; what the peer sent before can still be read."""
        self._error = self._error or error
        self._drop_outbox()
        if self._finishing or not self.reading:
            self._close()
        else:
            self._finishing = True
            self._unwatch()
            self._poller.call_soon(partial(self._guard, self._read_what_is_left))

    def _read_what_is_left(self) -> None:
        if self.ended:
            return
        self._finishing = False
        for _ in range(_READS_AFTER_BREAKING):
            if self._eof:
                break
            if not self.reading:
                if self.receiver is not None:
                    self.receiver.catch_up()
                continue
            try:
                size = self._socket.recv_into(self._poller.buffer, self.read_size)
            except OSError:
                break
            if not size:
                break
            self._take(self._poller.buffer[:size])
        self._close()

    def _drop_outbox(self) -> None:
        self._stop_waiting()
        self._outbox.clear()
        self._soon = _NO_FRAMES
        self.buffered = 0
        self.full = False

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, *, half_close: bool = False, await_eof: bool = False) -> None:
        """Send what waits, then end; what still arrives is discarded. See ``Transport.finish``."""
        if not self._finishing:
            self._finishing = True
            self._half_close, self._await_eof = half_close, await_eof
            self.resume()
            if not self._outbox and not self._rest:
                self._finish_sending()

    def _finish_sending(self) -> None:
        """Do what :meth:`finish` asked for once everything is sent."""
        self._all_sent = True
        if self._half_close and not self._eof:
            with contextlib.suppress(OSError):  # the peer may be gone
                self._socket.shutdown(socket.SHUT_WR)
        if self._eof or not self._await_eof:
            self._close()

    def abort(self, error: Exception | None = None) -> None:
        """End at once; what waits to be sent is dropped."""
        self._close(error)

    def _close(self, error: Exception | None = None) -> None:
        if self.ended:
            return
        self._error = self._error or error
        self._drop_outbox()
        self.ended = self._finishing = True
        self.reading = False
        self._unwatch()
        self._addresses = self.remote_address, self.local_address
        self._connected.close()
        self._poller.end()
        self._poller.call_soon(self._tell_lost)

    def _tell_lost(self) -> None:
        receiver, self.receiver = self.receiver, None  # which refers to us: no cycle outlives the end
        if receiver is not None:
            receiver.connection_lost(self._error)

    # --- what it is -------------------------------------------------------------------------------

    @property
    def remote_address(self) -> Address:
        """Where the peer is: ``(host, port)``, the path of a Unix socket, or ``""``."""
        return self._connected.remote_address if self._addresses is None else self._addresses[0]

    @property
    def local_address(self) -> Address:
        """Where this end is, in the same forms."""
        return self._connected.local_address if self._addresses is None else self._addresses[1]

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of a socket."""
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: self._socket.family,
            SocketAttribute.local_address: lambda: self.local_address,
            SocketAttribute.raw_socket: lambda: self._socket,
            SocketAttribute.remote_address: lambda: self.remote_address,
        }
        for attribute, address in (
            (SocketAttribute.local_port, self.local_address),
            (SocketAttribute.remote_port, self.remote_address),
        ):
            if isinstance(address, tuple):
                attributes[attribute] = partial(_port_of, address)
        return attributes

    def extra(self, attribute: Any, default: Any = None) -> Any:
        """Return a typed attribute of the socket, *default* where it has none."""
        get = self.extra_attributes.get(attribute)
        return default if get is None else get()


def _port_of(address: tuple[str, int]) -> int:
    return address[1]
