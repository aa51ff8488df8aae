"""A clock that jumps: when every task waits, time moves on to the next deadline at once.

On Trio that is ``trio.testing.MockClock(autojump_threshold=0)``; this is the same for asyncio. Run a test
with ``anyio.run(main, backend_options={"loop_factory": VirtualClockLoop})``, or give these options to
AnyIO's pytest plugin. It is meant for connections in memory: time does not wait for a socket.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


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
