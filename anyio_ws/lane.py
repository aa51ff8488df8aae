"""The fast lane of plain sockets: one message in, its hook called, one message out, and no Python between.

``_lane_c.c`` is the short way from ``recv`` to the hook, and from a write to ``send``, for the case that
is nearly every one: a socket without TLS, messages that arrive whole and are not compressed, a hook's task
that is parked, nothing that waits to be sent. What is not so is left to the Python that all transports
share, which is the whole truth and all there is where the C is not built.

``SocketLane`` and ``PollerLane`` are the bases of ``SocketTransport`` and of the pollers, so that both
sides look at the same attributes. :data:`NO_LANE` is the lane of those that have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from . import framing
from ._lane_py import NoLane, PollerLane, SocketLane, Watcher

if framing.BUILD == "c":
    try:
        from ._lane_c import PollerLane, SocketLane, Watcher
    except ModuleNotFoundError as _exc:
        if _exc.name != f"{__package__}._lane_c":
            raise

__all__ = ["NO_LANE", "Lane", "PollerLane", "SocketLane", "Watcher"]


class Lane(Protocol):
    """What a connection and its inbox ask of the fast lane below them."""

    @property
    def is_running(self) -> bool:
        """Whether a hook is being called in the place of its task."""

    def attach(
        self, reader: framing.MessageReader, masking_key: Callable[[], bytes] | None, longest: int, /
    ) -> None:
        """Serve a connection that is open, until the transport gets another receiver.

        :param reader: what received bytes are fed to; the receiver's ``messages_received`` gets what it
            makes of them, where no hook does, and its ``put_off`` what that has not looked at
        :param masking_key: makes a fresh key for each frame of a client, ``None`` for a server
        :param longest: bytes of the longest message that goes out in one frame
        """

    def arm(
        self,
        inbox: Any,
        bell: Any,
        hook: Callable[[Any], Any],
        by_data: bool,
        task: Any,
        context: Any,
        /,
    ) -> None:
        """Call a hook where its messages come in, whenever its task is parked.

        :param inbox: is told when the hook goes to sleep (``hand_on``), or raises (``hook_failed``)
        :param bell: tells whether the task is parked
        :param hook: takes a message
        :param by_data: it takes the message's data instead
        :param task: in whose name it runs
        :param context: in which it runs
        """

    def disarm(self) -> None:
        """Leave the hook to its task again."""

    def send_text(self, data: object, /) -> bool:
        """Send a text message, where nothing stands in its way; return whether that was so.

        Whether the protocol allows it is up to the caller.

        :param data: the text; for what is not ``str`` nothing is done
        :raises UnicodeEncodeError: when *data* has a lone surrogate
        """

    def send_bin(self, data: object, /) -> bool:
        """Do the same with a binary message, which has to be ``bytes``."""

    def send_framed(self, frame: bytes, /) -> bool:
        """Do the same with a frame made ahead of time, at a server's end."""


NO_LANE: Lane = NoLane()
