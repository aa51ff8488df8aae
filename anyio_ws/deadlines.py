"""One clock for many connections: callbacks at their time, from one task.

Deadlines must not depend on anything that a peer can hold up, so they are no part of reading or
writing: when one expires its callback runs at once, synchronously, and may abort a connection whatever
else is waiting on it. Only monotonic time is used, AnyIO's.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import anyio

from .from_thread import LoopThread
from .poller import Poller, current_poller

_FEW = 64  # deadlines that are not worth a sweep


class Deadline:
    """A callback that is due at some time, until it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the callback; harmless when it has run."""
        self.callback = None


class Deadlines:
    """The deadlines of a server or a client; :meth:`run` must run in a task of its own.

    :ivar thread: the event loop that they belong to, and with them the connections
    :ivar poller: what that event loop does for connections
    """

    def __init__(self) -> None:
        self.thread: LoopThread = LoopThread()
        self.poller: Poller = current_poller()
        self._heap: list[tuple[float, int, Deadline]] = []
        self._sweep_at = _FEW
        self._order = itertools.count()
        self._earlier = anyio.Event()
        self._stopped = False

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Deadline:
        """Have *callback* called in *seconds*, by the task that runs :meth:`run`."""
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        deadline = Deadline(callback)
        when = self.poller.loop_time() + seconds
        if not self._heap or when < self._heap[0][0]:
            self._earlier.set()
        heapq.heappush(self._heap, (when, next(self._order), deadline))
        return deadline

    def _sweep(self) -> None:
        """Let go of what was cancelled: connections that come and go may leave more than there are."""
        self._heap = [each for each in self._heap if each[2].callback is not None]
        heapq.heapify(self._heap)
        self._sweep_at = max(_FEW, 2 * len(self._heap))

    def stop(self) -> None:
        """Have :meth:`run` return; what is due later is forgotten.

        To cancel it does the same, but on asyncio it leaves a cycle behind: AnyIO's task keeps the
        exception, and the exception's traceback the task.
        """
        self._stopped = True
        self._earlier.set()

    async def run(self) -> None:
        """Call what is due, until stopped or cancelled."""
        while not self._stopped:
            self._earlier = anyio.Event()
            with anyio.CancelScope(deadline=self._heap[0][0] if self._heap else math.inf):
                await self._earlier.wait()
            now = anyio.current_time()
            while self._heap and self._heap[0][0] <= now:
                callback = heapq.heappop(self._heap)[2].callback
                if callback is not None:
                    callback()
