"""The twin of ``_lane_c.c`` where that is not built: a lane that leads past nothing.

What ``lane.py`` describes is then done by the transports, the inbox and the connection themselves.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable
from typing import Any

logger: logging.Logger = logging.getLogger("anyio_ws")

Callback = Callable[[], object]
_TIMES_ALONE = _TRIES = 8  # as in _lane_c.c
_COMPLAINT = "a socket's callback failed"


class NoLane:
    """The lane of what has none: everything stands in the way."""

    __slots__ = ()

    is_running = False

    def attach(self, reader: object, masking_key: object, longest: int, /) -> None:
        """There is nothing to be done faster."""

    def arm(self, *arguments: object) -> None:
        """There is nothing to be done faster."""

    def disarm(self) -> None:
        """There is nothing to undo."""

    def send_text(self, data: object, /) -> bool:
        """Send nothing."""
        return False

    def send_bin(self, data: object, /) -> bool:
        """Send nothing."""
        return False

    def send_framed(self, frame: bytes, /) -> bool:
        """Send nothing."""
        return False


class PollerLane:
    """What a poller shares with the fast lane; see ``Poller``."""

    buffer: memoryview
    corked: bool
    enter: Callable[[Any], None]
    leave: Callable[[Any], None]
    calling: Any
    steps: bool
    waiting: list[Any]


class SocketLane(NoLane):
    """What a ``SocketTransport`` shares with the fast lane; its own parts, where that is not built."""

    __slots__ = (
        "_fd",
        "_finishing",
        "_gathered",
        "_outbox",
        "_outbox_size",
        "_poller",
        "_rest",
        "buffered",
        "full",
        "read_size",
        "reading",
        "reads",
        "receiver",
    )

    def readable(self) -> bool:
        """Receive once; return whether that was little. Called whenever there is something."""
        return self._readable()

    def _readable(self) -> bool:
        raise NotImplementedError


class Watcher:
    """Holds sockets in one selector, and calls what watches those that are ready.

    Where one socket was ready alone several times in a row, with little to do, it is likely to be the next
    one: so it is tried a few times before the system is asked which ones are ready.

    The one that is built is for Linux, and does all of :meth:`call_all` in C.
    """

    def __init__(self) -> None:
        self._selector: Any = selectors.DefaultSelector()  # None when closed
        # For each file descriptor what to call: the first for reading, the second for writing.
        self._watched: dict[int, list[Callback | None]] = {}
        self._alone: list[Callback | None] = []  # the callbacks of the socket that was ready alone last,
        self._times_alone = 0  # and how often one after the other
        self._tries = 0  # how often it may still be tried

    def fileno(self) -> int:
        """Return the file descriptor that can be read when a socket is ready."""
        number: int = self._selector.fileno()
        return number

    def watch_readable(self, fd: int, callback: Callback, /) -> None:
        """Call a function whenever a socket can be read, until :meth:`unwatch_readable`."""
        self._watch(fd, 0, callback)

    def unwatch_readable(self, fd: int, /) -> None:
        """End :meth:`watch_readable`."""
        self._watch(fd, 0, None)

    def watch_writable(self, fd: int, callback: Callback, /) -> None:
        """Call a function whenever a socket can be written to, until :meth:`unwatch_writable`."""
        self._watch(fd, 1, callback)

    def unwatch_writable(self, fd: int, /) -> None:
        """End :meth:`watch_writable`."""
        self._watch(fd, 1, None)

    def _watch(self, fd: int, which: int, callback: Callback | None) -> None:
        if self._selector is None:  # the event loop is ending: nobody would look at it any more
            return
        callbacks = self._watched.get(fd)
        known = callbacks is not None
        if callbacks is None:
            callbacks = self._watched[fd] = [None, None]
        callbacks[which] = callback
        on_read, on_write = callbacks
        events = (selectors.EVENT_READ if on_read else 0) | (selectors.EVENT_WRITE if on_write else 0)
        if not events:
            del self._watched[fd]
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, callbacks)
        else:
            self._selector.register(fd, events, callbacks)

    def call_all(self) -> None:
        """Call what watches the sockets that are ready; what a callback raises is logged."""
        if self._tries > 0:
            self._tries -= 1
            if self._call(self._alone[0]):
                return
        self._tries = 0
        ready = self._selector.select(0) if self._selector is not None else []
        is_alone = False
        for key, events in ready:
            callbacks: list[Callback | None] = key.data
            # Either may have been taken back a moment ago, so it is looked up as late as possible.
            was_brief = bool(events & selectors.EVENT_READ) and self._call(callbacks[0])
            if events & selectors.EVENT_WRITE:
                self._call(callbacks[1])
            is_alone = was_brief and len(ready) == 1
            if is_alone and self._alone is not callbacks:
                self._alone, self._times_alone = callbacks, 0
        self._times_alone = min(self._times_alone + 1, _TIMES_ALONE) if is_alone else 0
        self._tries = _TRIES if self._times_alone == _TIMES_ALONE else 0

    def _call(self, callback: Callback | None) -> bool:
        """Call back; return whether there was little to do."""
        try:
            return callback is not None and callback() is True
        except Exception:
            logger.exception(_COMPLAINT)
            return False

    def close(self) -> None:
        """End it; from now on nothing is watched."""
        if self._selector is not None:
            self._selector.close()
            self._selector = None
            self._watched.clear()
            self._alone, self._times_alone, self._tries = [], 0, 0


def complain(error: Exception) -> None:
    """Log what a callback has raised."""
    logger.error(_COMPLAINT, exc_info=error)
