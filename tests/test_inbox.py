"""What a connection has received: who gets it, when, in whose name, and that nothing of that is lost.

Messages come in as the event loop brings them, in no task's name; ``deliver`` does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_ws import Message, MessageType
from anyio_ws.buffers import BufferPool, ConnectionBuffers, MessageStorage
from anyio_ws.inbox import Inbox
from anyio_ws.lane import NO_LANE
from anyio_ws.poller import current_poller

from .memory import Stopwatch, on_asyncio, settle
from .support import is_trio, virtual

COST = 64  # what a message is counted with beside its data


class Source:
    """A transport as far as an inbox knows one."""

    is_direct = True
    lane = NO_LANE
    reading = True

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True


class Wire:
    """Something to write to that knows of corking, as transports do.

    :ivar sends: what has left, one item for each call of the system
    """

    def __init__(self) -> None:
        self.sends: list[str] = []
        self._kept = ""

    def write(self, data: str) -> None:
        """Send, or keep until the poller is uncorked."""
        poller = current_poller()
        if not poller.corked:
            self.sends.append(self._kept + data)
            self._kept = ""
        else:
            if not self._kept:
                poller.waiting.append(self)
            self._kept += data

    def flush(self) -> None:
        """Send what was kept."""
        if self._kept:
            self.sends.append(self._kept)
            self._kept = ""


class Box:
    """An inbox under test, and the connection that owns it.

    :ivar storage: what messages that are views have their memory from
    :ivar finished: how often the hooks have had all
    """

    def __init__(self, size: int = 1_000_000, *, direct: bool = True) -> None:
        self.source = Source()
        self.source.is_direct = direct
        self.storage = MessageStorage(16, None, BufferPool(0, 0))
        self.buffers = ConnectionBuffers(self.storage)
        transport: Any = self.source
        self.inbox = Inbox(transport, current_poller(), size, self, self.buffers)
        self.finished = 0

    def control_received(self, message: Message) -> bool:
        return message.type is MessageType.PING

    def read_on(self) -> None:
        self.source.resume()

    def finish_input(self) -> None:
        self.finished += 1

    def view(self) -> Message:
        """Return a message that is a view of a buffer."""
        return Message(MessageType.BINARY, memoryview(self.buffers.take(16)))

    async def deliver(self, *data: str, then: Callable[[], object] = int) -> None:
        """Have text messages come in with one read, and let everybody go on."""
        messages = [Message(MessageType.TEXT, each) for each in data]

        def come() -> None:
            self.inbox.take(messages)
            then()

        current_poller().call_soon(come)
        await settle()

    async def dispatch(self, hook: Callable[[Any], Any]) -> None:
        """Have a hook called until the end."""
        await self.inbox.dispatch_all(hook, True)


@contextlib.asynccontextmanager
async def called(hook: Callable[[Any], Any], *, direct: bool = True) -> AsyncIterator[Box]:
    """Call a hook for what comes in during a block, in a task of its own that is parked when it begins."""
    box = Box(direct=direct)
    with anyio.fail_after(864_000):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.dispatch, hook)
            await settle()
            yield box
            box.inbox.end()
    assert box.finished == 1
    assert not current_poller().corked


ways = pytest.mark.parametrize("direct", [True, False])
"""Run the test with hooks that begin where messages come in, and with those that never do."""


# --- hooks: in whose name ------------------------------------------------------------------------------


async def test_def_hook_is_over_when_the_message_has_come_in() -> None:
    """No task is woken for it: it has run when ``take`` returns."""
    seen: list[Any] = []
    async with called(seen.append) as box:
        await box.deliver("one", "two", then=lambda: seen.append("returned"))
    assert seen == ["one", "two", "returned"]


async def test_async_hook_that_does_not_sleep_is_over_when_the_message_has_come_in() -> None:
    """So is a coroutine on asyncio; on Trio it begins in its task, and comes as well."""
    seen: list[Any] = []

    async def hook(data: str) -> None:
        seen.append(data)

    async with called(hook) as box:
        await box.deliver("one", then=lambda: seen.append("returned"))
    assert seen == (["returned", "one"] if is_trio() else ["one", "returned"])


@ways
@pytest.mark.parametrize("sleeps", [True, False])
async def test_hook_that_is_over_is_kept_by_nobody_while_the_connection_is_idle(
    direct: bool, sleeps: bool
) -> None:
    """What its names refer to would stay in memory until the next message, hours later maybe."""
    calls: list[weakref.ref[Any]] = []

    async def hook(data: str) -> None:
        if sleeps:
            await anyio.lowlevel.checkpoint()

    def call(data: str) -> Any:
        coroutine = hook(data)
        calls.append(weakref.ref(coroutine))
        return coroutine

    async with called(call, direct=direct) as box:
        await box.deliver("one")
        assert [each() for each in calls] == [None]


@on_asyncio
@ways
async def test_hook_sees_the_task_of_its_connection(direct: bool) -> None:
    """``current_task`` is that of who dispatches, before and after the first sleep."""
    seen: list[Any] = []

    async def hook(data: str) -> None:
        seen.append(asyncio.current_task())
        await anyio.lowlevel.checkpoint()
        seen.append(asyncio.current_task())

    async def dispatch() -> None:
        seen.append(asyncio.current_task())
        await box.dispatch(hook)

    box = Box(direct=direct)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch)
        await settle()
        await box.deliver("one", "two")
        box.inbox.end()
    assert len(seen) == 5
    assert set(seen) == {seen[0]}
    assert seen[0] is not asyncio.current_task()


@virtual
@ways
async def test_hook_may_use_cancel_scopes_across_its_first_sleep(direct: bool) -> None:
    """``move_on_after`` that was entered where the message came in ends the sleep in the task."""
    seen: list[Any] = []

    async def hook(data: str) -> None:
        with anyio.move_on_after(3) as scope:
            await anyio.sleep(10)
        seen.append((data, scope.cancelled_caught))

    async with called(hook, direct=direct) as box:
        clock = Stopwatch()
        await box.deliver("one", "two")
        await anyio.sleep(6)
        await settle()
        assert seen == [("one", True), ("two", True)]
        assert clock() == 6


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11")
@on_asyncio
@ways
async def test_hook_may_use_asyncios_own_timeout(direct: bool) -> None:
    """``asyncio.timeout`` asks for the current task when it is entered; it finds the right one."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        except TimeoutError:
            seen.append(data)
            done.set()

    done = asyncio.Event()
    async with called(hook, direct=direct) as box:
        await box.deliver("one")
        await done.wait()
    assert seen == ["one"]


@ways
async def test_hook_has_one_context_for_all_its_steps(direct: bool) -> None:
    """What one message sets the next one sees; a token is good after a sleep; nobody else sees it."""
    var: ContextVar[str] = ContextVar("var", default="none")
    seen: list[str] = []

    async def hook(data: str) -> None:
        seen.append(var.get())
        token = var.set(data)
        await anyio.lowlevel.checkpoint()
        seen.append(var.get())
        if data == "two":
            var.reset(token)

    async with called(hook, direct=direct) as box:
        for each in ("one", "two", "three"):
            await box.deliver(each)
    assert seen == ["none", "one", "one", "two", "one", "three"]
    assert var.get() == "none"


# --- hooks: order, errors, cancellation ----------------------------------------------------------------


@ways
@pytest.mark.attack("T09")
async def test_hooks_run_one_at_a_time_and_in_order(direct: bool) -> None:
    """Also when some sleep, some do not, and more comes in meanwhile."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        seen.append(f"{data} begins")
        for _ in range(int(data) % 3):
            await anyio.lowlevel.checkpoint()
        seen.append(f"{data} ends")

    async with called(hook, direct=direct) as box:
        poller = current_poller()
        for start in range(0, 30, 3):
            numbers = [Message(MessageType.TEXT, str(start + each)) for each in range(3)]
            poller.call_soon(partial(box.inbox.take, numbers))
            await anyio.lowlevel.checkpoint()
        await settle()
    assert seen == [f"{number} {what}" for number in range(30) for what in ("begins", "ends")]


@ways
@pytest.mark.parametrize("sleeps", [None, False, True])
async def test_error_of_a_hook_comes_out_of_dispatch_all(direct: bool, sleeps: bool | None) -> None:
    """Whether it is ``def``, fails at once, or after a sleep; what came behind it is not handled."""
    error = ValueError("the hook's own")
    seen: list[str] = []

    def fail(data: str) -> None:
        seen.append(data)
        raise error

    async def fail_later(data: str) -> None:
        seen.append(data)
        if sleeps:
            await anyio.lowlevel.checkpoint()
        raise error

    async def dispatch() -> None:
        with pytest.raises(ValueError, match="the hook's own") as caught:
            await box.dispatch(fail if sleeps is None else fail_later)
        assert caught.value is error

    box = Box(direct=direct)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch)
        await settle()
        await box.deliver("one", "two")
    assert seen == ["one"]
    assert (box.finished, box.inbox.is_taken, box.inbox.busy) == (0, False, False)


@ways
async def test_error_of_a_hook_goes_when_nobody_holds_it(direct: bool) -> None:
    """It and its frames, the connection among them, are in no circle that waits for the garbage collector."""

    class Failure(Exception):
        pass

    failures: list[weakref.ref[Failure]] = []

    def fail(data: str) -> None:
        failure = Failure()
        failures.append(weakref.ref(failure))
        try:
            raise failure
        finally:
            del failure

    async def dispatch() -> None:
        with contextlib.suppress(Failure):
            await box.dispatch(fail)

    box = Box(direct=direct)
    gc.disable()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatch)
            await settle()
            await box.deliver("one")
        assert failures[0]() is None
    finally:
        gc.enable()


@on_asyncio
async def test_cancellation_right_behind_a_message_is_not_lost_on_a_hook_that_does_not_wait() -> None:
    """A task's own ``cancel()`` comes once: what the hook cannot be told ends the dispatching."""

    class Ready:
        def __await__(self) -> Iterator[None]:
            seen.append("awaited")
            return iter(())

    seen: list[str] = []
    box = Box()
    task = asyncio.create_task(box.dispatch(lambda data: Ready()))
    await settle()
    await box.deliver("one", then=task.cancel)
    await asyncio.wait([task], timeout=60)
    assert (seen, task.cancelled()) == (["awaited"], True)


@ways
@pytest.mark.attack("T04")
async def test_cancellation_right_behind_the_message_reaches_the_hook(direct: bool) -> None:
    """A hook that has begun in the place of its task is told, although the task had not come to it yet."""
    seen: list[str] = []

    async def hook(data: str) -> None:
        seen.append("begins")
        try:
            await anyio.sleep_forever()
        finally:
            seen.append("ends")

    box = Box(direct=direct)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(box.dispatch, hook)
            await settle()
            await box.deliver("one", then=tasks.cancel_scope.cancel)
    assert seen in (["begins", "ends"], [])
    assert seen or is_trio() or not direct


@ways
@pytest.mark.attack("T05")
async def test_hooks_let_other_tasks_have_their_turn(direct: bool) -> None:
    """After at most 256 messages others run, however many have come with one read."""
    turns, seen = 0, list[int]()

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with called(lambda data: seen.append(turns), direct=direct) as box:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(count)
                messages = [Message(MessageType.TEXT, "")] * 1_000
                current_poller().call_soon(partial(box.inbox.take, messages))
                while len(seen) < 1_000:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
    # Trio runs those who can go on in any order: so it may be our turn twice in a row.
    assert max(seen.count(turn) for turn in set(seen)) <= (512 if is_trio() else 256)


async def test_hook_may_return_anything_that_can_be_awaited() -> None:
    """An object with ``__await__`` is waited for like a coroutine; what is none is ignored."""
    seen: list[str] = []

    class Later:
        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            seen.append("later")

    def hook(data: str) -> Any:
        if data == "later":
            return Later()
        seen.append(data)
        return 5

    async with called(hook) as box:
        await box.deliver("one", "later", "two")
    assert seen == ["one", "later", "two"]


async def test_hook_may_ask_for_the_next_message_itself() -> None:
    """A hook that receives gets what comes behind its own message; the next hook the one after that."""
    seen: list[Any] = []

    async def hook(data: str) -> None:
        message = await box.inbox.get()
        assert message is not None
        seen.append((data, message.data))

    async with called(hook) as box:
        await box.deliver("one")
        await box.deliver("two", "three", "four")
    assert seen == [("one", "two"), ("three", "four")]


@virtual
@ways
async def test_task_that_a_hook_leaves_asking_does_not_keep_the_end_from_the_hooks(direct: bool) -> None:
    """The end wakes both: the hooks do not wait for somebody who has been told, and asks no more."""
    told: list[Any] = []
    asking = anyio.Event()

    async def hook(data: str) -> None:
        tasks.start_soon(ask)
        await asking.wait()

    async def ask() -> None:
        asking.set()
        told.append(await box.inbox.get())

    async with anyio.create_task_group() as tasks, called(hook, direct=direct) as box:
        await box.deliver("message")
        assert told == []
    assert told == [None]


@virtual
@ways
async def test_task_that_asks_once_beside_hooks_leaves_them_the_others(direct: bool) -> None:
    """A task that asks once takes one; the rest of the read is not left lying."""
    got: list[Any] = []
    asking = anyio.Event()

    async def hook(data: str) -> None:
        got.append(data)
        if data == "first":
            tasks.start_soon(ask_once)
            await asking.wait()

    async def ask_once() -> None:
        asking.set()
        message = await box.inbox.get()
        assert message is not None
        got.append(message.data)

    async with anyio.create_task_group() as tasks, called(hook, direct=direct) as box:
        await box.deliver("first")
        await box.deliver("second", "third")
        tasks.cancel_scope.cancel()
        assert sorted(got) == ["first", "second", "third"]


# --- hooks: what they write ----------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("is_async", [False, True])
async def test_replies_to_one_read_leave_in_one_send(direct: bool, is_async: bool) -> None:
    """However many messages a read brings, their replies are one call of the system."""
    wire = Wire()

    async def reply(data: str) -> None:
        wire.write(data)

    async with called(reply if is_async else wire.write, direct=direct) as box:
        await box.deliver("one ", "two ", "three")
        await box.deliver("four")
        assert wire.sends == ["one two three", "four"]


@ways
@pytest.mark.parametrize("sleeper", ["one", "two", "three"])
async def test_reply_never_waits_for_a_hook_that_went_to_sleep(direct: bool, sleeper: str) -> None:
    """What was written before a hook sleeps has left when it sleeps; what comes after is gathered anew."""
    wire, woken, before = Wire(), anyio.Event(), list[str]()

    async def hook(data: str) -> None:
        wire.write(data)
        if data == sleeper:
            await woken.wait()

    async with called(hook, direct=direct) as box:
        await box.deliver("one", "two", "three")
        before = list(wire.sends)
        assert "".join(before).endswith(sleeper)
        woken.set()
        await settle()
        assert "".join(wire.sends) == "onetwothree"
        assert len(wire.sends) - len(before) <= 1


# --- asking --------------------------------------------------------------------------------------------


async def test_get_returns_what_came_in_order_and_then_none() -> None:
    """Messages before the end are there to be had after it."""
    box = Box()
    await box.deliver("one", "two")
    box.inbox.end()
    got = [await box.inbox.get() for _ in range(4)]
    assert [message and message.data for message in got] == ["one", "two", None, None]


@pytest.mark.attack("T02")
async def test_get_that_is_cancelled_loses_no_message() -> None:
    """Also when the message comes in the moment of the cancellation."""
    box = Box()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(box.inbox.get)
        await settle()
        await box.deliver("one", then=tasks.cancel_scope.cancel)
    with anyio.move_on_after(0):
        message = await box.inbox.get()
        assert message == Message(MessageType.TEXT, "one")
        return
    assert not box.inbox.waiting, "it was returned in the same moment"


@pytest.mark.attack("T08")
async def test_one_task_receives_at_a_time() -> None:
    """The second one, asking or called, is refused, and the first goes on."""
    box, got = Box(), list[Any]()

    async def ask() -> None:
        got.append(await box.inbox.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await settle()
        assert box.inbox.is_taken
        with pytest.raises(anyio.BusyResourceError):
            await box.inbox.get()
        with pytest.raises(anyio.BusyResourceError):
            await box.dispatch(got.append)
        await box.deliver("one")
    assert got == [Message(MessageType.TEXT, "one")]
    assert not box.inbox.is_taken
    async with called(got.append) as other:
        with pytest.raises(anyio.BusyResourceError):
            await other.inbox.get()


@pytest.mark.attack("R03")
async def test_reading_stops_while_too_much_waits() -> None:
    """At ``size`` bytes reading is paused; it goes on when half of them are gone, and that is counted."""
    box = Box(4 * (COST + 10))
    await box.deliver(*["0123456789"] * 3)
    assert box.source.reading
    await box.deliver("0123456789")
    assert (box.source.reading, box.inbox.is_full) == (False, True)
    await box.inbox.get()
    assert not box.source.reading
    await box.inbox.get()
    assert (box.source.reading, box.inbox.resumptions) == (True, 1)


async def test_control_frames_are_dealt_with_where_they_come_in() -> None:
    """Those that the application does not want never wait; the others have their place among messages."""
    box = Box()
    messages = [
        Message(MessageType.TEXT, "one"),
        Message(MessageType.PONG, b"not wanted"),
        Message(MessageType.PING, b"wanted"),
    ]
    box.inbox.take(messages)
    assert [await box.inbox.get() for _ in range(2)] == [messages[0], messages[2]]
    assert not box.inbox.waiting


async def test_discard_gives_back_what_waits_and_what_comes() -> None:
    """The memory under every message that nobody gets is free again, and the end has come."""
    box = Box()
    waiting = box.view()
    box.inbox.take([waiting])
    assert box.storage.own_in_use == 1
    box.inbox.discard()
    assert box.storage.own_in_use == 0
    coming = box.view()
    box.inbox.take([coming])
    assert box.storage.own_in_use == 0
    for message in (waiting, coming):
        with pytest.raises(ValueError, match="released"):
            len(message.data)
    assert await box.inbox.get() is None


async def test_what_waits_when_the_connection_has_gone_is_there_to_be_had_or_given_back() -> None:
    """An inbox lets go of its connection, and of nothing that was received."""
    box = Box()
    box.inbox.take([Message(MessageType.TEXT, "one"), box.view()])
    box.inbox.release()
    assert box not in gc.get_referents(box.inbox)
    message = await box.inbox.get()
    assert message is not None
    assert message.data == "one"
    box.inbox.discard()
    assert box.storage.own_in_use == 0
    assert await box.inbox.get() is None
