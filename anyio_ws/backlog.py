"""How many messages may wait for their hooks, over all connections of a blocking server.

Threads are few, so messages wait, and they may not wait without a bound. While :class:`Backlog` is full no
socket is read: the peers' TCP buffers fill, and the peers wait. Nothing is lost, and reading goes on as
messages are dispatched.

A connection may have no more waiting than it leaves free: so one that sends without end never takes the room
in which the others would wait.
"""

from __future__ import annotations

import sys
from typing import Any

from .conn import Conn
from .events import Message
from .framing import Frames
from .inbox import Hook
from .protocol import State


class Backlog:
    """The messages of a worker process that wait for their hooks to begin.

    :param limit: how many that may be
    :ivar count: how many they are
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count: int = 0
        self._waiting: dict[PacedConn, None] = {}  # who has nothing and may read nothing, in order

    def room_for(self, own: int) -> int:
        """Return how many messages a connection may add to those of its own that wait."""
        return max(0, (self.limit - self.count - own + 1) // 2)

    def change(self, difference: int) -> None:
        """Note that so many more, or less, wait; those who had to wait go on as far as there is room."""
        self.count += difference
        while difference < 0 and self._waiting and self.room_for(0):
            first = next(iter(self._waiting))
            del self._waiting[first]
            first.go_on()

    def wait(self, conn: PacedConn) -> None:
        """Have a connection's :meth:`PacedConn.go_on` called when there is room."""
        self._waiting[conn] = None

    def forget(self, conn: PacedConn) -> None:
        """Do not call it any more."""
        self._waiting.pop(conn, None)


class PacedConn(Conn):
    """A server's connection that takes from what it reads no more messages than there is room for.

    :param backlog: the room, shared with all connections of the server
    """

    _turn = 0  # what is looked at is counted here

    def __init__(self, *arguments: Any, backlog: Backlog) -> None:
        super().__init__(*arguments)
        self._backlog = backlog
        self._counted = 0  # messages of this connection that the backlog counts
        self._begins = 0  # a message that left the inbox, and whose hook has not begun
        self._frames = Frames()
        self._unread = b""  # what was received, and not looked at for want of room, from here on:
        self._position = 0
        self._eof = False  # and after that the stream ends
        self._inbox.is_direct = False  # hooks begin in their task, and not while we look at bytes

    def open(self, subprotocol: str | None, **options: Any) -> None:
        """Begin, after the opening handshake; see :meth:`Conn.open`."""
        super().open(subprotocol, **options)
        self._hold()

    # --- what comes in ----------------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview) -> None:
        """Look at as much as there is room for, and keep the rest; then no more is read."""
        if self._unread:
            data = b"".join((memoryview(self._unread)[self._position :], data))
            self._unread = b""
        self._look_at(data, 0)

    def _look_at(self, data: bytes | memoryview, position: int) -> None:
        while position < len(data) and (room := self._vacancy()):
            end = self._frames.end_of(data, position, room)  # a frame completes one message at most
            super().data_received(data[position:end])
            position = end
            self._count()
        if position < len(data):
            # Small messages are many: what is kept is not moved for each of them.
            if isinstance(data, bytes):
                self._unread, self._position = data, position
            else:
                self._unread, self._position = bytes(data[position:]), 0
        self._hold()

    def eof_received(self) -> None:
        """Note that the peer will send nothing more, after what was not looked at yet."""
        if self._unread:
            self._eof = True
        else:
            super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Let everybody know that the connection is gone."""
        super().connection_lost(error)
        self._unread = b""
        self._backlog.forget(self)
        self._count()

    def _vacancy(self) -> int:
        """Return how many messages may be taken; once we are closing, the peer's Close is to be found."""
        return self._backlog.room_for(self._counted) if self.state is State.OPEN else sys.maxsize

    def _count(self) -> None:
        """Tell the backlog how many messages wait, if that has changed."""
        before, self._counted = self._counted, self._inbox.waiting + self._begins
        if before != self._counted:
            self._backlog.change(self._counted - before)

    def _hold(self) -> None:
        """Read no more while there is no room; who has messages that wait goes on when one begins."""
        if self._unread or not self._vacancy():
            self._transport.pause()
            if not self._counted and not self._is_gone:
                self._backlog.wait(self)

    def go_on(self) -> None:
        """Look at what is there, and read again, as far as there is room."""
        if self._unread:
            unread, self._unread = self._unread, b""
            self._look_at(unread, self._position)
        if self._eof and not self._unread:
            self._eof = False
            self.eof_received()
        self._hold()
        if not self._unread and self._vacancy() and not self._inbox.is_full and not self._input_ended:
            self._inbox.resume()

    # --- what goes on to the hooks ------------------------------------------------------------------

    async def dispatch_all(self, hook: Hook, *, by_data: bool = False) -> None:
        """Give each message to *hook*, which calls :meth:`hook_begun`; see :meth:`Conn.dispatch_all`."""

        def begin(message: Message) -> Any:
            self._begins = 1
            self._hold()  # the inbox may just have asked for more
            return hook(message.data if by_data else message)

        try:
            await super().dispatch_all(begin)
        finally:
            self.hook_begun()

    def hook_begun(self) -> None:
        """Note that the hook of the message that left the inbox has begun: it waits no more."""
        self._begins = 0
        self._count()
        if self._unread or not self._transport.reading:
            self.go_on()

    async def _next(self) -> Message:
        message = await super()._next()
        self.hook_begun()
        return message

    def discard_messages(self) -> None:
        """Forget the messages that nobody will receive any more."""
        super().discard_messages()
        self._count()

    def _closing_moved(self) -> None:
        super()._closing_moved()
        self._count()
        if self._unread and self.state is State.CLOSE_SENT:
            self.go_on()
