"""The few lines that know which event loop is running.

AnyIO gives everything else. What it does not give is a task that belongs to the event loop itself and to
no task group; ``Client.connect`` needs one, because it returns a connection and opens no block that
could own its tasks.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

_tasks: set[asyncio.Task[None]] = set()


def spawn_detached(function: Callable[[], Awaitable[object]]) -> None:
    """Start a task that ends with the event loop at the latest; *function* must not raise.

    On Trio it is a system task; on asyncio, a task that is kept alive here until it is done.
    """

    async def run() -> None:
        await function()

    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        trio.lowlevel.spawn_system_task(run)
    else:
        task = asyncio.get_running_loop().create_task(run())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
