"""One clock for many connections: what is due is called, at its time and not otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest

from anyio_ws.deadlines import Deadlines

from .memory import Stopwatch, settle
from .support import virtual


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Deadlines]:
    deadlines = Deadlines()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        yield deadlines
        tasks.cancel_scope.cancel()


@virtual
async def test_deadlines_are_called_at_their_times() -> None:
    """Each callback is called exactly when it is due, whatever the order in which they were set."""
    clock, calls = Stopwatch(), []
    async with running() as deadlines:
        for seconds in (3, 1, 2, 0.5, 2.5):
            deadlines.call_later(seconds, lambda: calls.append(clock()))
        await anyio.sleep(10)
    assert calls == [0.5, 1, 2, 2.5, 3]


@virtual
async def test_deadlines_of_one_moment_are_called_in_the_order_they_were_set() -> None:
    """Callbacks that are due at the same time are called first set, first called."""
    calls: list[int] = []
    async with running() as deadlines:
        for number in range(5):
            deadlines.call_later(1, partial(calls.append, number))
        await anyio.sleep(2)
    assert calls == [0, 1, 2, 3, 4]


@virtual
async def test_deadline_that_is_cancelled_is_not_called() -> None:
    """A cancelled callback is not called, and those around it are."""
    calls: list[int] = []
    async with running() as deadlines:
        handles = [deadlines.call_later(1 + number, partial(calls.append, number)) for number in range(3)]
        handles[1].cancel()
        await anyio.sleep(10)
        handles[0].cancel()
    assert calls == [0, 2]


@virtual
@pytest.mark.parametrize("waits_for", [None, 5.0], ids=["nothing", "a later one"])
async def test_deadline_that_is_set_while_the_clock_waits_is_called_in_time(waits_for: float | None) -> None:
    """A deadline that comes before the one that is waited for wakes the waiting."""
    clock, calls = Stopwatch(), []
    async with running() as deadlines:
        if waits_for is not None:
            deadlines.call_later(waits_for, lambda: None)
        await settle()
        deadlines.call_later(1, lambda: calls.append(clock()))
        await anyio.sleep(10)
    assert calls == [1]


@virtual
async def test_deadline_may_set_the_next_one() -> None:
    """A callback may call ``call_later``: so keepalive goes on and on."""
    clock, calls = Stopwatch(), []
    async with running() as deadlines:

        def again() -> None:
            calls.append(clock())
            deadlines.call_later(2, again)

        again()
        await anyio.sleep(7)
    assert calls == [0, 2, 4, 6]


@virtual
async def test_deadline_of_zero_seconds_is_called_by_the_task_of_the_clock() -> None:
    """What is due at once is called soon and not inside ``call_later``."""
    clock, calls = Stopwatch(), []
    async with running() as deadlines:
        deadlines.call_later(0, lambda: calls.append(clock()))
        assert calls == []
        await settle()
    assert calls == [0]


@virtual
async def test_deadline_set_before_the_clock_runs_is_called() -> None:
    """Deadlines may be set before the task of the clock has begun."""
    clock, calls, deadlines = Stopwatch(), [], Deadlines()
    deadlines.call_later(1, lambda: calls.append(clock()))
    with anyio.move_on_after(3):
        await deadlines.run()
    assert calls == [1]


@virtual
@pytest.mark.attack("O10", "R14")
async def test_deadlines_that_are_cancelled_take_no_memory() -> None:
    """Of many that come and go only those that count are kept, and each is called at its time, in order."""
    clock = Stopwatch()
    calls: list[float] = []
    async with running() as deadlines:
        for number in range(10_000):
            deadline = deadlines.call_later(20, lambda: calls.append(-1))
            if number % 1_000 == 0:
                deadlines.call_later(10 + number, lambda: calls.append(clock()))
            deadline.cancel()
        assert len(deadlines._heap) <= 128
        await anyio.sleep(20_000)
    assert calls == [10 + number for number in range(0, 10_000, 1_000)]


async def test_deadlines_stop_ends_the_task() -> None:
    """A stopped clock returns by itself, before it runs and while it does, and calls nothing more."""
    deadlines = Deadlines()
    called: list[int] = []
    deadlines.call_later(1, lambda: called.append(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        await settle()
        deadlines.stop()
    await deadlines.run()
    assert called == []
