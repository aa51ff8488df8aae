"""What is asked of an event loop directly: bells, watched sockets, identities, and nothing left over."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from anyio_ws import _lane_py, lane
from anyio_ws.poller import _TIMES_PROMPT, current_poller

from .memory import on_asyncio, on_trio, settle
from .support import is_trio, nothing_left


@contextmanager
def watched() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make two connected sockets, and have the poller count one of them."""
    poller = current_poller()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    poller.begin()
    with ours, theirs:
        yield ours, theirs
    poller.end()


# --- bells ----------------------------------------------------------------------------------------------


async def test_bell_wakes_the_task_that_waits() -> None:
    """Parked until it rings, once; a ring that nobody waits for is not remembered."""
    bell, woken = current_poller().bell(), 0

    async def wait() -> None:
        nonlocal woken
        await bell.wait()
        woken += 1

    bell.ring()
    assert not bell.is_parked
    for turn in (1, 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            assert (bell.is_parked, woken) == (True, turn - 1)
            bell.ring()
            assert not bell.is_parked
            bell.ring()
        assert woken == turn


async def test_bell_is_free_after_a_cancellation() -> None:
    """A wait that was cancelled is over: nobody is parked, and a ring wakes nobody."""
    bell = current_poller().bell()
    with anyio.move_on_after(0):
        await bell.wait()
    assert not bell.is_parked
    bell.ring()


# --- sockets --------------------------------------------------------------------------------------------


async def test_watching_leaves_nothing() -> None:
    """When the last socket has ended there is no task and no descriptor of the poller's, again and again."""
    for _ in range(3):
        async with nothing_left():
            with watched() as (ours, _), watched() as (other, _):
                poller = current_poller()
                for sock in (ours, other):
                    poller.watch_readable(sock.fileno(), lambda: None)
                await settle()
                for sock in (ours, other):
                    poller.unwatch_readable(sock.fileno())


async def test_watching_tells_of_readiness_until_it_is_taken_back() -> None:
    """Reading and writing are told apart, as often as they are possible, and taken back each alone."""
    poller, calls = current_poller(), list[str]()
    with watched() as (ours, theirs):

        def readable() -> None:
            calls.append(ours.recv(1).decode())

        def writable() -> None:
            calls.append("room")
            poller.unwatch_writable(ours.fileno())

        poller.watch_readable(ours.fileno(), readable)
        theirs.send(b"ab")
        await settle()
        assert calls == ["a", "b"]
        poller.watch_writable(ours.fileno(), writable)
        await settle()
        assert calls == ["a", "b", "room"]
        poller.unwatch_readable(ours.fileno())
        theirs.send(b"c")
        await settle()
        assert calls == ["a", "b", "room"]
        poller.unwatch_readable(ours.fileno())


@pytest.fixture(params=[lane.Watcher, _lane_py.Watcher], ids=["in use", "python"])
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    """Watch the sockets "a" and "b"."""
    with Trial(request.param()) as trial:
        yield trial


class Trial:
    """Two sockets that are watched; what is called notes it, and says that it was little.

    :ivar calls: which ones were called
    :ivar empty: those that find nothing
    """

    def __init__(self, watcher: lane.Watcher) -> None:
        self.watcher = watcher
        self.calls: list[str] = []
        self.empty: set[str] = set()
        self.pairs = {name: socket.socketpair() for name in "ab"}

    def __enter__(self) -> Trial:
        for name, (sock, _) in self.pairs.items():
            self.watcher.watch_readable(sock.fileno(), partial(self._called, name))
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.close()
        for pair in self.pairs.values():
            for sock in pair:
                sock.close()

    def _called(self, name: str) -> bool:
        self.calls.append(name)
        return name not in self.empty

    def make_ready(self, name: str) -> None:
        self.pairs[name][1].send(b".")

    def make_likely(self, name: str) -> None:
        """Have one be ready alone eight times in a row."""
        self.make_ready(name)
        assert [self.call_all() for _ in range(8)] == [[name]] * 8

    def unwatch(self, name: str) -> None:
        self.watcher.unwatch_readable(self.pairs[name][0].fileno())

    def call_all(self) -> list[str]:
        """Return who is called."""
        self.calls.clear()
        self.watcher.call_all()
        return sorted(self.calls)


def test_socket_that_is_always_ready_keeps_another_waiting_for_eight_turns(trial: Trial) -> None:
    """It is tried without asking the system eight times at most, and not while others are ready as well."""
    trial.make_likely("a")
    trial.make_ready("b")
    assert [trial.call_all() for _ in range(10)] == [*[["a"]] * 8, ["a", "b"], ["a", "b"]]


def test_socket_that_was_not_ready_alone_eight_times_in_a_row_is_not_tried(trial: Trial) -> None:
    """Seven times are too few, and another one that was ready between begins the count anew."""
    trial.make_ready("a")
    assert [trial.call_all() for _ in range(7)] == [["a"]] * 7
    trial.make_ready("b")
    assert trial.call_all() == ["a", "b"]
    trial.pairs["a"][0].recv(1)
    assert [trial.call_all() for _ in range(7)] == [["b"]] * 7
    trial.make_ready("a")
    trial.pairs["b"][0].recv(1)
    assert [trial.call_all() for _ in range(7)] == [["a"]] * 7
    trial.make_ready("b")
    assert trial.call_all() == ["a", "b"]


def test_socket_that_is_likely_to_be_ready_and_is_not_keeps_nobody_waiting(trial: Trial) -> None:
    """When it finds nothing the system is asked in the same turn."""
    trial.make_likely("a")
    trial.pairs["a"][0].recv(1)
    trial.empty = {"a"}
    trial.make_ready("b")
    assert trial.call_all() == ["a", "b"]
    assert trial.call_all() == ["b"]


def test_socket_with_much_to_do_is_not_tried_before_others(trial: Trial) -> None:
    """Who does not say that it was little has no turn of its own."""
    trial.empty = {"a"}
    trial.make_likely("a")
    trial.make_ready("b")
    assert trial.call_all() == ["a", "b"]


def test_socket_that_is_not_watched_any_more_is_not_tried(trial: Trial) -> None:
    """Nor is one that a new socket has got the file descriptor of, nor any when the watcher is closed."""
    trial.make_likely("a")
    trial.unwatch("a")
    assert trial.call_all() == []
    trial.make_likely("b")
    trial.pairs["b"][0].recv(1)
    trial.unwatch("b")
    trial.watcher.watch_readable(trial.pairs["b"][0].fileno(), lambda: trial.calls.append("another's"))
    assert trial.call_all() == []
    trial.watcher.close()
    assert trial.call_all() == []


def test_watcher_that_is_closed_tries_nothing(trial: Trial) -> None:
    """A socket that was likely to be ready is not called any more."""
    trial.make_likely("a")
    trial.watcher.close()
    assert trial.call_all() == []


async def test_watching_calls_nobody_who_has_gone_in_the_same_moment(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of two sockets that are ready the first closes the second: that one's callback is not called.

    Nor is that of a new socket which has got the descriptor of the old one meanwhile.
    """
    poller, calls = current_poller(), list[str]()
    pairs = [socket.socketpair() for _ in range(2)]
    poller.begin()
    new: list[socket.socket] = []

    def close_other(me: int) -> None:
        calls.append("closes")
        other = pairs[1 - me][0]
        fd = other.fileno()
        for sock in (other, pairs[me][0]):
            poller.unwatch_readable(sock.fileno())
        other.close()
        new.extend(socket.socketpair())
        poller.watch_readable(new[0].fileno(), lambda: calls.append("called for another"))
        assert new[0].fileno() == fd

    for number, (sock, peer) in enumerate(pairs):
        poller.watch_readable(sock.fileno(), partial(close_other, number))
        peer.send(b".")
    await settle()
    assert (calls, caplog.records) == (["closes"], [])
    poller.unwatch_readable(new[0].fileno())
    for sock in (*pairs[0], *pairs[1], *new):
        sock.close()
    poller.end()


async def test_callback_that_fails_is_reported_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Other sockets are served in the same moment, and the same one at its next."""
    poller, calls = current_poller(), list[bytes]()
    with watched() as (bad, bad_peer), watched() as (good, good_peer):

        def fail() -> None:
            calls.append(bad.recv(1))
            raise ValueError("of this socket")

        poller.watch_readable(bad.fileno(), fail)
        poller.watch_readable(good.fileno(), lambda: calls.append(good.recv(1)))
        for _ in range(2):
            bad_peer.send(b"b")
            good_peer.send(b"g")
            await settle()
        assert sorted(calls) == [b"b", b"b", b"g", b"g"]
        for sock in (bad, good):
            poller.unwatch_readable(sock.fileno())
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == ["of this socket"] * 2


# --- who awaits the sockets, on Trio --------------------------------------------------------------------


class Reader:
    """A task that parks on a bell, which is rung when its socket can be read.

    :ivar called_in: for each of the calls the task that it happened in
    :ivar got: what was received, noted by the task
    :ivar task: the task, while it runs
    """

    def __init__(self, tasks: TaskGroup, sleeps: bool = False) -> None:
        self.called_in: list[Any] = []
        self.got: list[bytes] = []
        self.task: Any = None
        self.is_awake = anyio.Event()
        self.scope = anyio.CancelScope()
        self.poller = current_poller()
        self.bell = self.poller.bell()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self._sleeps = sleeps
        self._received = list[bytes]()
        self.poller.begin()
        self.poller.watch_readable(self.ours.fileno(), self.read)
        tasks.start_soon(self._run)

    def read(self) -> None:
        self.called_in.append(self.poller.current_task())
        self._received.append(self.ours.recv(9))
        self.bell.ring()

    async def _run(self) -> None:
        self.task = self.poller.current_task()
        with self.scope:
            while not self.got or self.got[-1] != b"end":
                await self.bell.wait()
                self.got += self._received
                self._received.clear()
                if self._sleeps:
                    await self.is_awake.wait()
        self.task = None
        self.close()

    def close(self) -> None:
        if self.ours.fileno() >= 0:
            self.poller.unwatch_readable(self.ours.fileno())
            self.poller.end()
            self.ours.close()
            self.theirs.close()

    async def get(self, data: bytes = b".") -> Any:
        """Have the task get something; return the task in which it came in."""
        self.theirs.send(data)
        await settle()
        return self.called_in[-1]

    async def lead(self) -> None:
        """Have the task get so much that it leads."""
        for _ in range(_TIMES_PROMPT):
            await self.get()
        assert await self.get() is self.task


@on_trio
async def test_leader_is_a_task_that_has_come_back_at_once() -> None:
    """It has others called as well as itself; who goes home while it leads leaves it to the keeper again."""
    async with nothing_left(), anyio.create_task_group() as tasks:
        one, other = Reader(tasks), Reader(tasks)
        for _ in range(_TIMES_PROMPT):
            assert await one.get() not in (one.task, other.task)
        assert await one.get() is one.task
        for _ in range(2 * _TIMES_PROMPT):
            assert await other.get() is one.task
        leader = one.task
        assert await one.get(b"end") is leader
        assert await other.get() not in (leader, other.task)
        assert await other.get() is other.task
        assert await other.get(b"end") is not None
        assert one.got == [b"."] * (_TIMES_PROMPT + 1) + [b"end"]
        assert other.got == [b"."] * (2 * _TIMES_PROMPT + 2) + [b"end"]


@on_trio
async def test_leader_that_waits_for_something_else_holds_nobody_up() -> None:
    """While it sleeps the sockets of others are served; it leads again when it has earned it anew."""
    async with anyio.create_task_group() as tasks:
        one, other = Reader(tasks), Reader(tasks)
        await one.lead()
        one._sleeps = True
        await one.get()
        for _ in range(3):
            assert await other.get() not in (one.task, other.task)
        one._sleeps = False
        one.is_awake.set()
        await settle()
        await one.lead()
        for each in (one, other):
            await each.get(b"end")


@on_trio
async def test_task_that_always_waits_never_leads() -> None:
    """What it waits for may be over soon: that Trio has gone round meanwhile is what counts."""
    async with anyio.create_task_group() as tasks:
        reader = Reader(tasks, sleeps=True)
        reader.is_awake.set()
        for _ in range(3 * _TIMES_PROMPT):
            assert await reader.get() is not reader.task
        await reader.get(b"end")


@on_trio
async def test_leader_is_woken_by_others_as_by_itself() -> None:
    """By a ring, by another task that calls what is ready, and by a cancellation, which is served at once."""
    async with anyio.create_task_group() as tasks:
        one, other = Reader(tasks), Reader(tasks)
        await one.lead()
        one._received.append(b"from elsewhere")
        one.bell.ring()
        assert not one.bell.is_parked
        one.bell.ring()
        await settle()
        assert one.got[-1] == b"from elsewhere"
        await one.lead()
        poller: Any = current_poller()
        one.theirs.send(b"another's")
        poller.watch._call_all(poller.current_task())
        await settle()
        assert (one.got[-1], one.bell.is_parked) == (b"another's", True)
        await one.lead()
        one.scope.cancel()
        await settle()
        assert (one.task, one.bell.is_parked) == (None, False)
        assert await other.get() is not None
        assert other.got == [b"."]
        await other.get(b"end")


@on_trio
@pytest.mark.parametrize("first", ["cancelled", "ready"])
async def test_leader_that_is_cancelled_when_its_socket_is_ready_loses_nothing(first: str) -> None:
    """Whichever comes first: what is there is received by the leader, or left to the keeper."""
    async with anyio.create_task_group() as tasks:
        reader = Reader(tasks)
        await reader.lead()
        before = len(reader.called_in)
        reader.close = lambda: None  # type: ignore[method-assign]
        reader.theirs.send(b"x")
        if first == "ready":
            await anyio.lowlevel.checkpoint()
        reader.scope.cancel()
        await settle()
        assert (len(reader.called_in), reader.task) == (before + 1, None)
        assert reader._received in ([b"x"], [])
        assert reader._received or reader.got[-1] == b"x"
        del reader.close
        reader.close()


@on_trio
async def test_leader_stays_parked_when_the_last_socket_ends() -> None:
    """Its bell wakes it later, and with the next sockets it may lead again."""
    async with nothing_left(), anyio.create_task_group() as tasks:
        one = Reader(tasks)
        await one.lead()
        one.close()
        await settle()
        assert one.bell.is_parked
        async with nothing_left(), anyio.create_task_group() as others:
            other = Reader(others)
            await other.lead()
            await other.get(b"end")
        assert one.bell.is_parked
        one._received.append(b"end")
        one.bell.ring()


@on_trio
async def test_leader_makes_room_for_new_sockets_while_the_old_ones_end() -> None:
    """The last socket ends, and at once there is another: the old leader waits, the new one is served."""
    async with nothing_left(), anyio.create_task_group() as tasks:
        one = Reader(tasks)
        await one.lead()
        one.close()
        other = Reader(tasks)
        await other.lead()
        assert one.bell.is_parked
        one._received.append(b"end")
        one.bell.ring()
        await settle()
        await other.get(b"end")


@on_trio
async def test_leader_is_not_interrupted_in_what_it_calls() -> None:
    """A ``KeyboardInterrupt`` comes where Trio lets it, as it does while the keeper calls."""
    import trio

    protected: list[bool] = []
    async with anyio.create_task_group() as tasks:
        reader = Reader(tasks)
        read = reader.read

        def note() -> None:
            protected.append(trio.lowlevel.currently_ki_protected())
            read()

        reader.poller.watch_readable(reader.ours.fileno(), note)
        await reader.lead()
        await reader.get(b"end")
    assert set(protected) == {True}


# --- tasks and identities -------------------------------------------------------------------------------


async def test_call_soon_calls_later_and_in_order() -> None:
    """Never within the call itself, and in the order of the calls."""
    calls: list[int] = []
    for number in range(5):
        current_poller().call_soon(partial(calls.append, number))
    assert calls == []
    await settle()
    assert calls == [0, 1, 2, 3, 4]


@on_asyncio
async def test_enter_takes_the_identity_of_a_task_that_is_parked() -> None:
    """Between ``enter`` and ``leave`` the current task is that one; before and after there is none."""
    poller, seen = current_poller(), list[Any]()
    bell, tasks = poller.bell(), list[Any]()

    async def park() -> None:
        tasks.append(poller.current_task())
        await bell.wait()

    def step() -> None:
        seen.append(asyncio.current_task())
        poller.enter(tasks[0])
        seen.append(asyncio.current_task())
        poller.leave(tasks[0])
        seen.append(asyncio.current_task())

    async with anyio.create_task_group() as group:
        group.start_soon(park)
        await settle()
        poller.call_soon(step)
        await settle()
        bell.ring()
    assert seen == [None, tasks[0], None]
    assert poller.steps


async def test_uncork_flushes_everybody_once() -> None:
    """Who has gathered something is flushed, those who come while that happens at once or next time."""
    poller, flushed = current_poller(), list[str]()

    class Corked:
        def __init__(self, name: str) -> None:
            self.name = name

        def flush(self) -> None:
            flushed.append(self.name)

    poller.corked = True
    poller.waiting += [Corked("one"), Corked("two")]
    poller.uncork()
    poller.uncork()
    assert (flushed, poller.corked, poller.waiting) == (["one", "two"], False, [])


async def test_poller_is_one_for_each_event_loop() -> None:
    """All connections share it, with its buffer and its selector; its clock goes forward."""
    poller = current_poller()
    assert current_poller() is poller
    assert poller.watches_sockets
    assert poller.steps is not is_trio()
    before = poller.time()
    assert before <= poller.time()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_poller_does_not_keep_its_event_loop_alive(backend: str) -> None:
    """A program that runs many event loops, one after the other, holds none of them."""

    async def use() -> weakref.ref[object]:
        poller = current_poller()
        assert current_poller() is poller
        return weakref.ref(anyio.lowlevel.current_token().native_token)

    def run() -> weakref.ref[object]:
        return anyio.run(use, backend=backend)

    tokens = [run() for _ in range(3)]
    gc.collect()
    assert [token() for token in tokens] == [None] * 3
