"""Where the tasks of a connection live while a user's block runs beside them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
from anyio.abc import TaskGroup


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
        # Not TaskGroup.start(): when that is cancelled it waits for a task that nobody will tell to end.
        shelter = _Shelter()
        outer.start_soon(shelter.hold)
        try:
            await shelter.opened.wait()
            yield shelter.tasks
        except BaseException as exc:  # noqa: BLE001 - raised again outside of the task group
            error = exc
        shelter.over.set()
    if error is not None:
        raise error


class _Shelter:
    """A task group that the cancellation of what is around it does not reach."""

    def __init__(self) -> None:
        self.tasks: TaskGroup
        self.opened = anyio.Event()
        self.over = anyio.Event()

    async def hold(self) -> None:
        """Keep the task group open until all is over, then cancel its tasks."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as self.tasks:
                self.opened.set()
                await self.over.wait()
                self.tasks.cancel_scope.cancel()
