"""Where the tasks of a connection live while a user's block runs beside them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
from anyio.abc import TaskGroup, TaskStatus


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[TaskGroup]:
    """Open a task group for our tasks around a block of the user's.

    It differs from a plain task group in two ways. What the block raises is raised as it is, not in an
    ``ExceptionGroup``: the user did not ask for a group. And its tasks are shielded from the
    cancellation of the block, so that there is somebody to say goodbye to the peer; they are cancelled
    at the end of the block.
    """
    error: BaseException | None = None
    async with anyio.create_task_group() as outer:
        with anyio.CancelScope(shield=True):  # a shielded task that is cancelled while it starts would stay
            tasks = await outer.start(_hold_shielded)
        try:
            yield tasks
        except BaseException as exc:  # noqa: BLE001 - raised again outside of the task group
            error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error


async def _hold_shielded(*, task_status: TaskStatus[TaskGroup]) -> None:
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as tasks:
            task_status.started(tasks)
            await anyio.sleep_forever()
