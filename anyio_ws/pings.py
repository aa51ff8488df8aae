"""Which Ping a Pong answers, and how long that has taken (RFC 6455 §5.5.2, §5.5.3).

The peer's are counted here as well, because it may not send them as fast as it can.

Two kinds of Pings wait for their Pongs: those that the application waits for, any number of them, and the
last one of the keepalive. When they are sent, and what their silence means, is up to the connection.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import anyio

_NONE: dict[bytes, SentPing] = {}  # of all connections whose application has never waited for a Pong


class SentPing:
    """A Ping whose Pong is waited for.

    :ivar payload: by which its Pong is known
    :ivar answered: set when the Pong has come, or never will
    :ivar latency: seconds until then
    """

    __slots__ = ("_clock", "_sent", "answered", "latency", "payload")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.payload: bytes = os.urandom(8)
        self.answered: anyio.Event = anyio.Event()
        self.latency: float = 0.0
        self._clock = clock
        self._sent = clock()

    def answer(self) -> None:
        """Note that the Pong has come, or never will."""
        self.latency = self._clock() - self._sent
        self.answered.set()


class Pings:
    """The Pings of one connection that have not been answered yet.

    :param clock: tells seconds
    :param most: how many control frames the peer may send in a second; ``None`` for any number

    :ivar latency: the round-trip time of the last answered Ping in seconds, ``None`` before there was one
    """

    __slots__ = ("_clock", "_keepalive", "_most", "_received", "_since", "_waiting", "latency")

    def __init__(self, clock: Callable[[], float], most: int | None = None) -> None:
        self.latency: float | None = None
        self._clock = clock
        self._most = math.inf if most is None else most
        self._received = 0  # control frames, since then:
        self._since = clock()
        self._waiting = _NONE
        self._keepalive: tuple[bytes, float] = b"", 0.0

    def come_too_fast(self) -> bool:
        """Count a control frame of the peer's; tell whether there were more in a second than there may be."""
        self._received += 1
        if self._received <= self._most:
            return False
        now = self._clock()
        too_fast = now - self._since < 1
        self._received, self._since = 1, now
        return too_fast

    def make(self) -> SentPing:
        """Make a Ping that is about to be sent; when it was, :meth:`add` it."""
        return SentPing(self._clock)

    def add(self, ping: SentPing) -> None:
        """Expect the Pong of a Ping that was sent."""
        if self._waiting is _NONE:
            self._waiting = {}
        self._waiting[ping.payload] = ping

    def forget(self, ping: SentPing) -> None:
        """Expect the Pong of a Ping no more; harmless when it has come."""
        self._waiting.pop(ping.payload, None)

    def keep_alive(self) -> bytes:
        """Return the payload of the keepalive's next Ping; no Pong is expected of the one before any more."""
        self._keepalive = os.urandom(4), self._clock()
        return self._keepalive[0]

    def match(self, data: bytes) -> None:
        """Find the Ping that a Pong answers; a Pong that answers none is fine (§5.5.3)."""
        payload, sent = self._keepalive
        if data in self._waiting:
            # "only the most recently processed Ping frame" may be answered: so are those before it
            for earlier in list(self._waiting):
                ping = self._waiting.pop(earlier)
                ping.answer()
                if earlier == data:
                    self.latency = ping.latency
                    break
        elif data and data == payload:
            self.latency = self._clock() - sent
            self._keepalive = b"", 0.0

    def release(self) -> None:
        """Let those go on who wait for a Pong that will not come."""
        for ping in self._waiting.values():
            ping.answer()
