"""The twin of ``_lane_c.c`` where that is not built: a lane that leads past nothing.

What ``lane.py`` describes is then done by the transports, the inbox and the connection themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
        "reading",
        "reads",
        "receiver",
    )

    def readable(self) -> None:
        """Receive once; called whenever there is something."""
        self._readable()

    def _readable(self) -> None:
        raise NotImplementedError
