"""Tasks beside a user's block, and tasks that belong to the event loop."""

from __future__ import annotations

import gc
import sys

import anyio
import pytest

from anyio_ws import poller
from anyio_ws.tasks import background

from .memory import every_cut, settle, swept
from .support import nothing_left

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


async def note(events: list[str]) -> None:
    """Note when this task begins, and when it is cancelled."""
    events.append("begun")
    try:
        await anyio.sleep_forever()
    finally:
        events.append("cancelled")


async def test_background_cancels_its_tasks_at_the_end_of_the_block() -> None:
    """The tasks run beside the block, and are over when the block is left."""
    events: list[str] = []
    async with nothing_left(), background() as tasks:
        tasks.start_soon(note, events)
        await settle()
        events.append("block")
    assert events == ["begun", "block", "cancelled"]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
async def test_background_raises_what_its_block_raises(error: BaseException) -> None:
    """An error of the block comes out as it is, not in a group, and the tasks are over then."""
    events: list[str] = []
    with pytest.raises(type(error)) as caught:
        async with background() as tasks:
            tasks.start_soon(note, events)
            await settle()
            raise error
    assert caught.value is error
    assert events == ["begun", "cancelled"]


async def test_background_raises_the_group_of_its_block_unchanged() -> None:
    """A group that the block raises itself stays the group that it is."""
    group = BaseExceptionGroup("ours", [ValueError(), KeyError()])
    with pytest.raises(BaseExceptionGroup) as caught:
        async with background():
            raise group
    assert caught.value is group


async def test_background_tasks_outlive_the_cancellation_of_the_block() -> None:
    """A cancelled block can still talk to its tasks while it cleans up: they are shielded."""
    events: list[str] = []
    asked, answered = anyio.Event(), anyio.Event()

    async def answer() -> None:
        await asked.wait()
        await anyio.lowlevel.checkpoint()
        answered.set()

    with anyio.CancelScope() as scope:
        async with background() as tasks:
            tasks.start_soon(note, events)
            tasks.start_soon(answer)
            await settle()
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    asked.set()
                    await answered.wait()
                events.append("goodbye")
    assert scope.cancelled_caught
    assert events == ["begun", "goodbye", "cancelled"]


async def test_background_that_is_cancelled_before_it_begins_ends() -> None:
    """The block is not entered, no task is left, and nothing waits for one that nobody tells to end."""
    async with nothing_left():
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            scope.cancel()
            async with background():
                raise AssertionError
        assert scope.cancelled_caught


@swept
async def test_background_may_be_cancelled_anywhere(how: str) -> None:
    """Wherever it is cancelled, also by asyncio itself, its tasks are over and the block knows."""

    async def use() -> None:
        async with background() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await anyio.lowlevel.checkpoint()

    async with nothing_left():
        async for cut in every_cut(how, at_least=1):
            with anyio.fail_after(60):
                await cut(use())


async def test_background_task_that_fails_ends_the_block() -> None:
    """A task of ours that fails is no secret: the block is cancelled, and its error comes in a group."""

    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(BaseExceptionGroup) as caught:
        async with background() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()
    assert caught.value.split(ZeroDivisionError)[1] is None


async def test_spawn_runs_beside_the_task_that_spawned_it() -> None:
    """The task runs although no task group owns it, and the garbage collector leaves it alone."""
    done = anyio.Event()
    go_on = anyio.Event()

    async def run() -> None:
        await go_on.wait()
        done.set()

    async with nothing_left():
        poller.current_poller().spawn(run)
        await settle()
        gc.collect()
        go_on.set()
        await done.wait()
        await settle()
        assert getattr(poller.current_poller(), "_tasks", set()) == set()


async def test_spawn_is_not_cancelled_with_the_task_that_spawned_it() -> None:
    """The cancellation of whoever spawned it does not reach the task."""
    events: list[str] = []
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await note(events)

    with anyio.CancelScope() as outer:
        poller.current_poller().spawn(run)
        outer.cancel()
        await anyio.sleep_forever()
    await settle()
    assert events == ["begun"]
    scope.cancel()
    await settle()
    assert events == ["begun", "cancelled"]
