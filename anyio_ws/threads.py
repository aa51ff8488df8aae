"""Hooks that block: run in worker threads, a bounded number at a time, and never left without a bound.

With ``Config(blocking=True)`` every ``def`` hook runs here. What stays as it is: one message at a time on a
connection, in order; what a hook raises; that nothing outlives the server. The last has a limit that lies
in the nature of threads: nobody can stop one from outside. A hook that is at work when its connection is
cancelled has ``close_timeout`` seconds left; after that it is left behind, and said so in the log.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

logger: logging.Logger = logging.getLogger("anyio_ws")

_in_thread = ContextVar("anyio_ws_in_thread", default=False)


def blocking_mode() -> bool:
    """Tell a hook whether it runs in a worker thread of its server, where it may block.

    That is so for ``def`` hooks of a server with ``Config(blocking=True)``. There
    ``conn.from_thread.write(...)`` is how to write. Everywhere else, in ``async def`` hooks too, blocking
    would hold up all connections, and the answer is ``False``.
    """
    return _in_thread.get()


@dataclass(frozen=True)
class ThreadPoolStatistics:
    """What the worker threads of a blocking server are doing.

    :ivar count: how many hooks may run at one time
    :ivar running: how many run now
    :ivar queued: how many wait for a thread
    :ivar backlog: how many messages may wait for their hook to begin
    :ivar undispatched: how many wait now, those whose hook waits for a thread included
    """

    count: int
    running: int
    queued: int
    backlog: int
    undispatched: int


class ThreadPool:
    """Runs functions in AnyIO's worker threads; one that waits for a thread waits in order.

    :param count: how many at one time
    :param grace: seconds that a running function has left when who waits for it is cancelled
    """

    def __init__(self, count: int, grace: float) -> None:
        self._limiter = anyio.CapacityLimiter(count)
        self._unlimited = anyio.CapacityLimiter(math.inf)  # not AnyIO's own, which users' code shares
        self._grace = grace
        self.count = count

    @property
    def running(self) -> int:
        """How many functions run."""
        return self._limiter.borrowed_tokens

    @property
    def queued(self) -> int:
        """How many functions wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    def bind(
        self, function: Callable[..., Any], begun: Callable[[], object] = lambda: None
    ) -> Callable[..., Any]:
        """Return a function to call in the place of a hook: for an ``async def`` one much the same.

        :param function: the hook
        :param begun: called in the event loop when the hook begins
        """
        if not is_async(function):
            return partial(self.run, function, begun=begun)

        def call(*arguments: Any, **named: Any) -> Any:
            begun()
            return function(*arguments, **named)

        return call

    async def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        begun: Callable[[], object] = lambda: None,
        **named: Any,
    ) -> Any:
        """Run a function in a thread, and return what it returns; an awaitable is waited for here.

        Cancellation: while this waits for a thread, the function never runs. While the function runs it is
        waited for, but no longer than the grace.
        """
        async with self._limiter:
            begun()
            call = _Call(partial(function, *arguments, **named))
            try:
                (result,) = await anyio.to_thread.run_sync(
                    call, limiter=self._unlimited, abandon_on_cancel=True
                )
            except anyio.get_cancelled_exc_class():
                await self._wait_for(call)
                raise
        return await result if inspect.isawaitable(result) else result

    async def _wait_for(self, call: _Call) -> None:
        """Wait for a call whose task is cancelled; one that has not begun never will."""
        if call.revoke():
            return
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(call.over.wait, self._grace, limiter=self._unlimited)
        if not call.over.is_set():
            logger.warning("a hook was left behind in its thread after %s seconds", self._grace)


class _Call:
    """One call of a function in a thread, which can be taken back until it begins.

    :ivar over: set when the function has returned or raised
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.over = threading.Event()
        self._function = function
        self._first = threading.Lock()  # whoever takes it decides: the thread, or who takes the call back

    def revoke(self) -> bool:
        """Take the call back; return whether that was in time."""
        return self._first.acquire(blocking=False)

    def __call__(self) -> tuple[Any]:
        """Run the function; its result is wrapped, because Trio refuses to hand a coroutine over."""
        if not self._first.acquire(blocking=False):
            return (None,)
        _in_thread.set(True)  # in a copy of the context, which ends with this call
        try:
            return (self._function(),)
        finally:
            self.over.set()


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a call makes a coroutine, and so does not block; also through ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    call = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
