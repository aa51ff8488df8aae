"""The few lines that know which event loop is running.

AnyIO gives everything else. What it does not give is the shortest way of three things that happen once
per message: to park a task and wake it (:class:`Bell`), to hear that a socket is ready without asking
anew each time (:meth:`Poller.watch_readable`), and to run a task's next step where the news of it came
in (:meth:`Poller.enter`). Nothing else in the package names asyncio or Trio.

A poller also gathers what is written while it is *corked*, so that all replies to one read leave in one
``send``. Whoever corks it must not let the event loop run before it is uncorked.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
import weakref
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Protocol

from anyio.lowlevel import RunVar

from .lane import PollerLane, Watcher

Callback = Callable[[], object]
_READ_SIZE = 262_144
_TIMES_PROMPT = 8  # that a task has gone back to its bell at once, before it leads
_HAS_FILENO = hasattr(selectors.DefaultSelector, "fileno")  # else a selector cannot be watched itself


class Bell(Protocol):
    """Parks one task until it is rung.

    :ivar waiter: what is parked, ``None`` for nothing; on asyncio a future, which may be done already
    """

    waiter: Any

    @property
    def is_parked(self) -> bool:
        """Whether a task waits, and nothing has woken it yet."""

    def ring(self) -> None:
        """Wake the task that waits; without one nothing happens, and nothing is remembered."""

    def wait(self) -> Awaitable[None]:
        """Park the task that awaits this, until the bell is rung. Cancellation: as of any wait.

        It may end when the last socket does, too; so whoever waits for something looks whether it is there.
        """


class Corked(Protocol):
    """Who has something to send when a poller is uncorked."""

    def flush(self) -> None:
        """Send it."""


class Poller(Protocol):
    """What an event loop does for connections; :func:`current_poller` gives the one that is running.

    :ivar buffer: what all sockets receive into, one at a time; valid until the event loop runs again
    :ivar watches_sockets: whether it can watch sockets; not every event loop can
    :ivar steps: whether :meth:`enter` takes the identity of a task, so that its coroutines may be stepped
    :ivar loop_time: the clock that AnyIO's deadlines go by, in seconds
    :ivar time: the clock for measuring, in seconds; that of the event loop where it is fine enough
    :ivar calling: the task in which sockets that are ready are called just now, where that is known
    :ivar corked: whether what is written is gathered; those who have something are in ``waiting``
    """

    buffer: memoryview
    watches_sockets: bool
    steps: bool
    loop_time: Callable[[], float]
    time: Callable[[], float]
    calling: Any
    corked: bool
    waiting: list[Corked]

    def bell(self) -> Bell:
        """Make a bell."""

    def current_task(self) -> Any:
        """Return the running task, for :meth:`enter`."""

    def context_of_task(self) -> Context:
        """Return a context for what is done in the name of the running task.

        Where tasks have steps it is a copy, because the task's own is entered while it runs; where they
        have none (:attr:`steps`) it is the task's own.
        """

    def enter(self, task: Any) -> None:
        """Take the identity of a task that is parked, where :attr:`steps` says so."""

    def leave(self, task: Any) -> None:
        """Give it back."""

    def call_soon(self, callback: Callback) -> None:
        """Call a function when the event loop runs next."""

    def begin(self) -> None:
        """Note that there is one more socket that may be watched."""

    def end(self) -> None:
        """Note that a socket is closed; none of its callbacks is left."""

    def watch_readable(self, fd: int, callback: Callback) -> None:
        """Call a function whenever a socket can be read, until :meth:`unwatch_readable`.

        It may be called when there is nothing. It returns ``True`` when there was little to do: the same
        socket may then be tried a few times before others.
        """

    def unwatch_readable(self, fd: int) -> None:
        """End :meth:`watch_readable`."""

    def watch_writable(self, fd: int, callback: Callback) -> None:
        """Call a function whenever a socket can be written to, until :meth:`unwatch_writable`."""

    def unwatch_writable(self, fd: int) -> None:
        """End :meth:`watch_writable`."""

    def spawn(self, function: Callable[[], Awaitable[object]]) -> None:
        """Start a task of the event loop's own, which ends with it at the latest; it must not raise."""

    def uncork(self) -> None:
        """Send what was gathered."""


class _Corking(PollerLane):
    """The part of a poller that is the same for all event loops."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_READ_SIZE))
        self.corked = False
        self.calling = None
        self.waiting = []

    def uncork(self) -> None:
        self.corked = False
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            for each in waiting:
                each.flush()


class _Gathering(_Corking):
    """A poller that has all sockets watched by one :class:`Watcher`, which lives as long as there are some.

    The event loop sees one file descriptor, so that all sockets that are ready share its cost of a wake-up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sockets = 0
        self._watcher: Watcher | None = None

    def begin(self) -> None:
        self._sockets += 1
        if self._sockets == 1:
            self._watcher = Watcher()
            self._begin(self._watcher)

    def end(self) -> None:
        self._sockets -= 1
        if self._sockets == 0:
            self._end()

    def _begin(self, watcher: Watcher) -> None:
        """Have the watcher called when one of its sockets is ready."""
        raise NotImplementedError

    def _end(self) -> None:
        """Undo it, and close the watcher."""
        raise NotImplementedError

    def watch_readable(self, fd: int, callback: Callback) -> None:
        if self._watcher is not None:  # else the event loop is ending: nobody would look at it any more
            self._watcher.watch_readable(fd, callback)

    def unwatch_readable(self, fd: int) -> None:
        if self._watcher is not None:
            self._watcher.unwatch_readable(fd)

    def watch_writable(self, fd: int, callback: Callback) -> None:
        if self._watcher is not None:
            self._watcher.watch_writable(fd, callback)

    def unwatch_writable(self, fd: int) -> None:
        if self._watcher is not None:
            self._watcher.unwatch_writable(fd)


# --- asyncio, uvloop ------------------------------------------------------------------------------------


class _AsyncioBell:
    __slots__ = ("_loop", "waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiter: asyncio.Future[None] | None = None

    @property
    def is_parked(self) -> bool:
        return self.waiter is not None and not self.waiter.done()

    def ring(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def wait(self) -> Awaitable[None]:
        self.waiter = self._loop.create_future()
        return self.waiter


class _AsyncioPoller(_Gathering):
    """The watcher's file descriptor has a persistent ``add_reader``."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = True
        self._loop = loop = asyncio.get_running_loop()
        # Documented for implementers of tasks ("Extending asyncio"): what asks for the current task
        # meanwhile, such as a cancel scope or a timeout, finds the one that the step belongs to.
        self.enter = partial(_enter_task, loop)
        self.leave = partial(_leave_task, loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self.watches_sockets = _HAS_FILENO and _can_add_reader(loop)
        # uvloop's own clock stands still while the loop runs.
        self.loop_time: Callable[[], float] = loop.time
        is_fine = isinstance(loop, asyncio.BaseEventLoop)
        self.time: Callable[[], float] = loop.time if is_fine else time.monotonic
        self.call_soon: Callable[[Callback], Any] = loop.call_soon

    def _begin(self, watcher: Watcher) -> None:
        self._loop.add_reader(watcher.fileno(), watcher.call_all)

    def _end(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            self._loop.remove_reader(watcher.fileno())
            watcher.close()

    def bell(self) -> Bell:
        return _AsyncioBell(self._loop)

    def current_task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    def context_of_task(self) -> Context:
        return copy_context()

    def spawn(self, function: Callable[[], Awaitable[object]]) -> None:
        task = self._loop.create_task(_as_coroutine(function))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _as_coroutine(function: Callable[[], Awaitable[object]]) -> None:
    await function()


def _can_add_reader(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether an event loop watches sockets; the proactor loop of Windows does not."""
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    return proactor is None or not isinstance(loop, proactor)


# --- Trio -----------------------------------------------------------------------------------------------


class _TrioBell:
    """Parks its task, or has it lead; see :class:`_TrioWatch`."""

    __slots__ = ("_poller", "_runs_in", "_times_prompt", "leads", "waiter")

    def __init__(self, poller: _TrioPoller) -> None:
        self._poller = poller
        self._runs_in = 0  # the pass of the event loop that its task runs in, when it was rung for a socket
        self._times_prompt = 0
        self.leads: _TrioWatch | None = None
        self.waiter: Any = None

    @property
    def is_parked(self) -> bool:
        return self.waiter is not None

    def ring(self) -> None:
        task, self.waiter = self.waiter, None
        if task is None:
            return
        calling = self._poller.calling
        self._runs_in = 0 if calling is None else self._poller.passes + (calling is not task)
        if calling is task:  # it leads, and will see that it was rung
            return
        if self.leads is None:
            self._poller.trio.reschedule(task)
        else:
            self.leads.rouse()

    def wait(self) -> Awaitable[None]:
        poller, watch = self._poller, self._poller.watch
        self.waiter = poller.trio.current_task()
        self._times_prompt = self._times_prompt + 1 if self._runs_in == poller.passes else 0
        if self._times_prompt >= _TIMES_PROMPT and watch is not None and not watch.is_led:
            return watch.lead(self)
        waiting: Awaitable[None] = poller.trio.wait_task_rescheduled(self._abort)
        return waiting

    def _abort(self, raise_cancel: object) -> Any:
        self.waiter = None
        return self._poller.trio.Abort.SUCCEEDED


class _TrioWatch:
    """Has one task at a time await a watcher's file descriptor, and call what watches its sockets.

    Trio resumes a task in the pass of its event loop after the one in which it was woken. So the task that
    hears of a message had best be the one that waits for it: the *leader* is a task that is parked on a
    bell, awaits the file descriptor meanwhile, and goes on in the same pass if it was rung by what it called.
    The *keeper*, a task of our own, does it while nobody leads. Those lead that go back to their bell
    before Trio waits again, as most hooks do; who does not is found out when Trio is about to wait, and
    the keeper is called.
    """

    def __init__(self, poller: _TrioPoller, watcher: Watcher) -> None:
        self._poller = poller
        self._watcher = watcher
        self._fd = watcher.fileno()
        self._keeper = _TrioBell(poller)
        self._keeps = True  # the keeper awaits the file descriptor, or is on its way
        self._is_open = True
        self.is_led = False

    def before_io_wait(self, timeout: float) -> None:
        """See that somebody awaits the file descriptor; Trio calls this as that of an instrument."""
        self._poller.passes += 1
        if not self.is_led and not self._keeps:
            self._keeps = True
            self._poller.call_soon(self._keeper.ring)

    async def keep(self, scope: Any) -> None:
        """Be the keeper, until the scope is cancelled; close the watcher then."""
        poller, trio = self._poller, self._poller.trio
        trio.add_instrument(self)
        try:
            with scope:
                while True:
                    if not self._keeps:
                        await self._keeper.wait()
                        continue
                    with suppress(poller.closed):  # another leads
                        await trio.wait_readable(self._fd)
                        self._call_all(trio.current_task())
        finally:
            trio.remove_instrument(self)
            self.rouse()
            self._is_open = False
            self._watcher.close()
            poller.forget(self._watcher)

    async def lead(self, bell: _TrioBell) -> None:
        """Be the leader, until the bell is rung."""
        poller, task = self._poller, bell.waiter
        if self._keeps:
            self._keeps = False
            self.rouse()
        self.is_led, bell.leads = True, self
        try:
            while bell.waiter is not None:
                await poller.trio.wait_readable(self._fd)
                self._call_all(task)
        except poller.closed:
            pass  # it was rung, or the watcher is closed
        finally:
            self.is_led, bell.leads, bell.waiter = False, None, None

    def _call_all(self, task: Any) -> None:
        self._poller.calling = task
        try:
            self._watcher.call_all()
        finally:
            self._poller.calling = None

    def rouse(self) -> None:
        """End the wait of who awaits the file descriptor."""
        if self._is_open:
            self._poller.trio.notify_closing(self._fd)


def _do_nothing(task: Any) -> None:
    """Take no identity: a task of Trio's has no step outside of itself."""


class _TrioPoller(_Gathering):
    """One task awaits the watcher's file descriptor: see :class:`_TrioWatch`.

    :ivar passes: how often the event loop has gone round while sockets were watched
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = False
        self.enter = self.leave = _do_nothing
        import trio  # here, because Trio need not be installed

        self.trio: Any = trio.lowlevel
        self.closed = trio.ClosedResourceError
        # As in the keeper: a KeyboardInterrupt does not come in the middle of what a leader calls.
        trio.lowlevel.enable_ki_protection(_TrioWatch.lead)
        self.passes = 1
        self.watch: _TrioWatch | None = None
        self._new_scope: Callable[[], Any] = trio.CancelScope
        self._token = trio.lowlevel.current_trio_token()
        self.time = self.loop_time = trio.current_time
        self.watches_sockets = _HAS_FILENO
        self._scope: Any = None

    def bell(self) -> Bell:
        return _TrioBell(self)

    def current_task(self) -> Any:
        return self.trio.current_task()

    def context_of_task(self) -> Context:
        context: Context = self.trio.current_task().context
        return context

    def call_soon(self, callback: Callback) -> None:
        self._token.run_sync_soon(callback)

    def _begin(self, watcher: Watcher) -> None:
        self._scope = self._new_scope()
        self.watch = _TrioWatch(self, watcher)
        self.spawn(partial(self.watch.keep, self._scope))

    def _end(self) -> None:
        self._scope.cancel()

    def forget(self, watcher: Watcher) -> None:
        """Let go of a watcher that is closed."""
        if self._watcher is watcher:  # the next one may be there already
            self._watcher = self.watch = None

    def spawn(self, function: Callable[[], Awaitable[object]]) -> None:
        self.trio.spawn_system_task(_as_coroutine, function, context=copy_context())


# --- the running one ------------------------------------------------------------------------------------

# A poller refers to its event loop, which must not be kept alive by what it is looked up with.
_poller = RunVar["weakref.ref[Poller]"]("anyio_ws.poller")


def current_poller() -> Poller:
    """Return the poller of the event loop that is running; it lives as long as somebody uses it."""
    known = _poller.get(None)
    poller = known() if known is not None else None
    if poller is None:
        poller = _TrioPoller() if _in_trio() else _AsyncioPoller()
        _poller.set(weakref.ref(poller))
    return poller


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())
