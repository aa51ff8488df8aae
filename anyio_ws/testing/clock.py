"""A clock that jumps: when every task waits, time moves on to the next deadline at once.

On Trio that is ``trio.testing.MockClock(autojump_threshold=0)``; this is the same for asyncio. Run a test
with ``anyio.run(main, backend_options={"loop_factory": VirtualClockLoop})``, or give these options to
AnyIO's pytest plugin. It is meant for connections in memory: time does not wait for a socket.

:func:`settle` is the companion: it waits until everybody waits, and takes no time either.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from typing import Any

import anyio


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: where it would, the clock moves instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:  # nothing but a thread or a socket can go on from here
            return super().select(None)
        self.now += max(timeout, 0.0)
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose time starts at 0 and moves only when every task waits."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock.now


def virtual_clock(backend: str) -> dict[str, Any]:
    """Return the ``backend_options`` that give a backend of AnyIO a virtual clock.

    :param backend: ``"asyncio"`` or ``"trio"``
    :raises ValueError: for any other
    """
    if backend == "asyncio":
        return {"loop_factory": VirtualClockLoop}
    if backend == "trio":
        import trio.testing  # here, because Trio need not be installed

        return {"clock": trio.testing.MockClock(autojump_threshold=0)}
    raise ValueError(f'backend: "asyncio" or "trio" is needed, not {backend!r}')


async def settle() -> None:
    """Let all other tasks go on until each of them waits for something; no time passes.

    Trio knows when that is. On asyncio the event loop goes round until nobody has had anything to do for a
    few rounds.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        await anyio.wait_all_tasks_blocked()
        return
    calm = 0
    while calm < 5:  # a few rounds, because a callback of the loop may be about to wake a task
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        waiters = [getattr(task, "_fut_waiter", None) for task in others]
        calm = calm + 1 if all(waiter is not None and not waiter.done() for waiter in waiters) else 0
