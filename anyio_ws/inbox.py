"""What a connection has received, and how it gets to the application.

An application either *asks* (``receive``, iteration) or is *called* (the hooks of a handler). Both are
served from one queue, by one task at a time, in order. While more than ``size`` bytes wait the transport
does not read, so that the peer is slowed down and nothing is lost.

Hooks have a short cut, because most of them are over at once. When the task that calls them is parked
and nothing waits, a hook begins right where its message came in, on behalf of that task: the task is
not woken for it. Only a hook that goes to sleep wakes it, and goes on there. What the hook sees is the
same: its own task, its own context, one message at a time. (On Trio a coroutine cannot begin outside of
its task; there the short cut is for ``def`` hooks, and a task may await the sockets itself: ``poller.py``.)
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextvars import Context
from itertools import islice
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel

from .buffers import ConnectionBuffers
from .events import Message, MessageType
from .poller import Bell, Poller
from .transport import Transport
from .views import give_back

Hook = Callable[[Any], Any]

_MESSAGE_COST = 64  # bytes that a message in the queue is counted with beside its data
_FAIR = 256  # messages after which other tasks get their turn
_LAST_DATA = int(MessageType.BINARY)  # types above it are of control frames; Enum's own look-up is slow
_NOT_BEGUN: Final = object()
_OVER: Final = object()
_EMPTY: deque[Message] = deque()  # of all connections whose messages never had to wait


class Owner(Protocol):
    """What an inbox asks of the connection whose messages it has."""

    def control_received(self, message: Message) -> bool:
        """Deal with a control frame; tell whether the application gets it as well."""

    def read_on(self) -> None:
        """Have more be read: there is room again."""

    def finish_input(self) -> None:
        """Answer what has ended the input: the hooks have had all that came before it."""


class _Nobody:
    """Who owns the inbox of a connection that is gone."""

    def control_received(self, message: Message) -> bool:
        return False

    def read_on(self) -> None:
        """There is nothing more to read."""

    def finish_input(self) -> None:
        """There is nobody to answer."""


_NOBODY = _Nobody()


class Inbox:
    """The received messages of one connection.

    :param transport: paused while too much waits
    :param poller: that of the event loop
    :param size: bytes that may wait; reading goes on when half of them are gone
    :param owner: the connection, which must not wait for the garbage collector because of that
    :param buffers: where messages that are views have their memory from, which goes back there when nobody
        gets them

    :ivar ended: nothing more will come
    :ivar busy: a hook is at work
    :ivar is_direct: whether hooks may begin where their messages come in
    :ivar resumptions: how often reading went on after it had been paused
    """

    __slots__ = (
        "_bell",
        "_buffers",
        "_by_data",
        "_bytes",
        "_context",
        "_discards",
        "_error",
        "_hook",
        "_hook_bell",
        "_is_asked",
        "_lane",
        "_owner",
        "_poller",
        "_queue",
        "_served",
        "_short_cut",
        "_size",
        "_sleeping",
        "_task",
        "_transport",
        "busy",
        "ended",
        "is_direct",
        "resumptions",
    )

    def __init__(
        self,
        transport: Transport,
        poller: Poller,
        size: int,
        owner: Owner,
        buffers: ConnectionBuffers | None = None,
    ) -> None:
        self.ended: bool = False
        self.busy: bool = False
        self.resumptions: int = 0
        self._transport = transport
        self._lane = transport.lane
        self.is_direct: bool = transport.is_direct
        self._size = size
        self._owner = owner
        self._buffers = buffers
        self._discards = False
        self._queue = _EMPTY
        self._bytes = 0
        self._poller = poller
        self._bell: Bell | None = None  # for who asks
        self._is_asked = False
        self._served = 0  # messages since another task had its turn
        # Hooks: who calls them, and the one that has begun elsewhere and went to sleep, or failed.
        self._hook: Hook | None = None
        self._by_data = False
        self._hook_bell: Bell  # for who calls them; apart, because a hook may ask
        self._task: Any = None
        self._context: Context  # for what is called in the place of the task
        self._short_cut = False
        self._sleeping: tuple[Any, Any] | None = None
        self._error: BaseException | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be handled, and nothing is being handled."""
        return not self._queue and not self._is_busy

    @property
    def _is_busy(self) -> bool:
        return self.busy or self._lane.is_running

    @property
    def waiting(self) -> int:
        """How many messages wait to be handled."""
        return len(self._queue)

    @property
    def is_taken(self) -> bool:
        """Whether a task asks, or has hooks called."""
        return self._is_asked or self._hook is not None

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more should be read."""
        return self._bytes >= self._size

    # --- what comes in ----------------------------------------------------------------------------

    def take(self, messages: list[Message]) -> None:
        """Deal with the messages and control frames of one read."""
        poller = self._poller
        gathers = len(messages) > 1 and not poller.corked
        if gathers:
            poller.corked = True
        try:
            if self._hook is not None and self.is_direct and self._hook_bell.is_parked:
                self._short_cut, self._served = not self._queue, 0
                poller.enter(self._task)
                try:
                    if poller.calling is self._task:  # whose context it is that we are in
                        self._call_or_keep(messages)
                    else:
                        self._context.run(self._call_or_keep, messages)
                finally:
                    poller.leave(self._task)
                    self._short_cut = False
            else:
                self._keep(messages)
        finally:
            if gathers:
                poller.uncork()
        if self._queue:
            self._wake()
            if self._bytes >= self._size:
                self._transport.pause()

    def _keep(self, messages: Iterable[Message]) -> None:
        """Keep messages until they are asked for."""
        for message in messages:
            if message.type > _LAST_DATA and not self._owner.control_received(message):
                continue
            if self._discards:
                give_back(message, self._buffers)
            else:
                if self._queue is _EMPTY:
                    self._queue = deque()
                self._queue.append(message)
                self._bytes += len(message.data) + _MESSAGE_COST

    def _call_or_keep(self, messages: list[Message]) -> None:
        """Call the hook in the place of its task; wake the task, and keep the rest, if it goes to sleep."""
        hook, steps = self._hook, self._poller.steps
        assert hook is not None
        for position, message in enumerate(messages):
            if message.type > _LAST_DATA and not self._owner.control_received(message):
                continue
            if not self._short_cut or (position and not self._hook_bell.is_parked):
                self._short_cut = False
                self._keep(islice(messages, position, None))
                return
            self.busy = True
            try:
                result = hook(message.data if self._by_data else message)
                if result is not None:
                    if steps and type(result) is types.CoroutineType:
                        # Twice as fast as send(), which raises StopIteration to say that all is over.
                        waits_for = next(result.__await__(), _OVER)
                        if waits_for is not _OVER:
                            self.hand_on(result, waits_for)
                            continue
                    elif hasattr(result, "__await__"):
                        self.hand_on(result)
                        continue
            except BaseException as exc:  # noqa: BLE001 - raised in the task, where the hook belongs
                self.hook_failed(exc)
                continue
            self.busy = False
            self._served += 1
            if self._served == _FAIR:
                self._short_cut = False

    def hand_on(self, awaitable: Any, waits_for: Any = _NOT_BEGUN) -> None:
        """Have the task go on with a hook that has gone to sleep, or cannot begin here.

        :param awaitable: what the hook returned
        :param waits_for: what it waits for, if it has begun
        """
        self._sleeping = awaitable, waits_for
        self.busy = True
        self._short_cut = False
        self._hook_bell.ring()

    def hook_failed(self, error: BaseException) -> None:
        """Have the task raise what a hook has raised."""
        self._error = error
        self.busy = True
        self._short_cut = False
        self._hook_bell.ring()

    def end(self) -> None:
        """Note that nothing more will come; what waits is still there to be had."""
        self.ended = True
        self._short_cut = False
        self._wake()

    def release(self) -> None:
        """Let go of the connection, which is gone; what waits is still there to be had."""
        self.end()
        self._owner = _NOBODY  # who refers to us

    def discard(self) -> None:
        """Forget what waits and what is still to come: the application wants nothing more."""
        self._discards = True
        for message in self._queue:
            give_back(message, self._buffers)
        self._queue.clear()
        self._bytes = 0
        self.end()

    def _wake(self) -> None:
        """Wake who waits: the task that calls hooks, and one that a hook may have left asking.

        Whoever comes first takes what there is; the other finds nothing, and waits on.
        """
        if self._bell is not None:
            self._bell.ring()
        if self._hook is not None:
            self._hook_bell.ring()

    # --- an application that asks -----------------------------------------------------------------

    async def get(self) -> Message | None:
        """Return the next message, ``None`` when there will be none.

        :raises anyio.BusyResourceError: when another task waits already

        Cancellation: no message is lost.
        """
        if self._is_asked or (self._hook is not None and not self._is_busy):
            raise anyio.BusyResourceError("receiving from")
        self._is_asked = True
        try:
            if self._served >= _FAIR:
                self._served = 0
                await anyio.lowlevel.checkpoint()
            while not self._queue:
                if self.ended:
                    return None
                self._served = 0
                if self._bell is None:
                    self._bell = self._poller.bell()
                await self._bell.wait()
        finally:
            self._is_asked = False
        self._served += 1
        return self._pop()

    def _pop(self) -> Message:
        message = self._queue.popleft()
        self._bytes -= len(message.data) + _MESSAGE_COST
        if not self._transport.reading and not self.ended and self._bytes <= self._size // 2:
            self.resume()
        return message

    def resume(self) -> None:
        """Have more be read."""
        if not self._transport.reading:
            self.resumptions += 1
            self._owner.read_on()

    # --- an application that is called ------------------------------------------------------------

    async def dispatch_all(self, hook: Hook, by_data: bool) -> None:
        """Call a hook for each message, one at a time and in order, until there will be none.

        While a connection is idle this is what is on its task's stack, with all that its names refer to.

        :param hook: takes a message
        :param by_data: it takes the message's data instead
        :raises anyio.BusyResourceError: when another task waits already

        Raises what the hook raises. Cancellation: reaches a hook that is at work.
        """
        if self.is_taken:
            raise anyio.BusyResourceError("receiving from")
        self._hook_bell = self._poller.bell()
        self._hook, self._by_data = hook, by_data
        self._task, self._context = self._poller.current_task(), self._poller.context_of_task()
        self.busy = False
        if self.is_direct:
            self._lane.arm(self, self._hook_bell, hook, by_data, self._task, self._context)
        try:
            while not self.ended or self._queue:
                if self._queue:
                    await self._dispatch_queue(hook)
                    continue
                cancelled: BaseException | None = None
                try:
                    await self._hook_bell.wait()
                except BaseException as exc:
                    if self._sleeping is None and self._error is None:
                        raise
                    cancelled = exc  # it came between the bell and us: the hook is to be told
                if self._error is None:
                    if self._sleeping is None:
                        continue
                    if not (self._poller.steps or self._queue or cancelled):
                        await self._take_sleeping()  # nothing but the hook is to be done, nothing is special
                        self.busy = False
                        continue
                await self._go_on(cancelled)
        finally:
            self._lane.disarm()
            self._hook, self._task = None, None
            self.busy = False
        self._owner.finish_input()

    def _take_sleeping(self) -> Any:
        """Return what the hook has returned, for nobody but who awaits it to refer to."""
        assert self._sleeping is not None
        (awaitable, _), self._sleeping = self._sleeping, None
        return awaitable

    async def _go_on(self, cancelled: BaseException | None) -> None:
        """Finish what has begun in our place: a hook that went to sleep, or failed."""
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # it refers to this frame
        assert self._sleeping is not None
        (coroutine, waits_for), self._sleeping = self._sleeping, None
        if waits_for is _NOT_BEGUN:  # its reply leaves with those to the rest of its read
            self._poller.corked = bool(self._queue)
        try:
            await self._run(coroutine, waits_for, cancelled)
        except BaseException:
            self._poller.uncork()
            raise
        self.busy = False
        if not self._queue:
            self._poller.uncork()

    def _run_in_context(self) -> Callable[..., Any]:
        """Return what calls functions in the context of the hook, for the task that has it called."""
        return self._context.run if self._poller.steps else _call

    async def _dispatch_queue(self, hook: Hook) -> None:
        """Call the hook for all that waits; the replies leave in one send."""
        poller, run = self._poller, self._run_in_context()
        self._served = 0
        try:
            while self._queue:
                if self._served == _FAIR:
                    poller.uncork()
                    await anyio.lowlevel.checkpoint()
                    self._served = 0
                    continue
                self._served += 1
                message = self._pop()
                poller.corked = bool(self._queue)
                self.busy = True
                result = run(hook, message.data if self._by_data else message)
                if result is not None and hasattr(result, "__await__"):
                    await self._run(result, _NOT_BEGUN, None)
                self.busy = False
        finally:
            poller.uncork()

    @types.coroutine
    def _run(
        self, awaitable: Any, waits_for: Any, cancelled: BaseException | None
    ) -> Generator[Any, Any, None]:
        """Run a hook's coroutine to its end, in its own context.

        :param awaitable: a coroutine, or anything else that can be awaited
        :param waits_for: what it waits for if it has begun, ``_NOT_BEGUN`` otherwise
        :param cancelled: what its wait ends with, if that is known already
        """
        if type(awaitable) is not types.CoroutineType:
            awaitable = _await(awaitable)
        run = self._run_in_context()
        try:
            if waits_for is _NOT_BEGUN:
                waits_for = run(awaitable.send, None)
            if cancelled is not None:
                waits_for = run(awaitable.throw, cancelled)
            while True:
                # Nothing that was written may wait for a hook that sleeps.
                self._poller.uncork()
                try:
                    value = yield waits_for
                except BaseException as exc:  # noqa: BLE001 - it goes where it would have gone
                    waits_for = run(awaitable.throw, exc)
                else:
                    waits_for = run(awaitable.send, value)
        except StopIteration:
            if cancelled is not None and waits_for is _NOT_BEGUN:  # the hook did not wait, so it was not told
                raise cancelled from None


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


async def _await(awaitable: Any) -> None:
    await awaitable
