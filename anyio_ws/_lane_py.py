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

    def readable(self) -> None:
        """Receive once; called whenever there is something."""
        self._readable()

    def _readable(self) -> None:
        raise NotImplementedError


class Watcher:
    """Holds sockets in one selector, and calls what watches those that are ready.

    The one that is built is for Linux, and does all of :meth:`call_all` in C.
    """

    def __init__(self) -> None:
        self._selector: Any = selectors.DefaultSelector()  # None when closed
        # For each file descriptor what to call: the first for reading, the second for writing.
        self._watched: dict[int, list[Callback | None]] = {}

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
        ready = self._selector.select(0) if self._selector is not None else []
        for key, events in ready:
            callbacks: list[Callback | None] = key.data
            for which, event in enumerate((selectors.EVENT_READ, selectors.EVENT_WRITE)):
                callback = callbacks[which]  # it may have been taken back a moment ago
                if events & event and callback is not None:
                    try:
                        callback()
                    except Exception:
                        logger.exception(_COMPLAINT)

    def close(self) -> None:
        """End it; from now on nothing is watched."""
        if self._selector is not None:
            self._selector.close()
            self._selector = None
            self._watched.clear()


def complain(error: Exception) -> None:
    """Log what a callback has raised."""
    logger.error(_COMPLAINT, exc_info=error)
