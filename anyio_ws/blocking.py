"""The client for programs without an event loop: the same calls, each of which blocks its thread.

There is no second implementation here. An event loop runs in a thread of its own, and every call of a
:class:`Client` is a call of :class:`anyio_ws.Client` there, through AnyIO's blocking portal. All blocking
clients of a process share one such thread for each backend; it ends with the last of them.

Any number of threads may use one client. Ctrl-C interrupts every call in the main thread: what was being
received stays to be received, what was being written is written whole or not at all.
"""

from __future__ import annotations

import inspect
import os
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, BlockingPortalProvider

from . import client as asynchronous
from .buffers import BufferStatistics
from .closing import ConnectionEnded, ConnectionShut
from .events import CloseCode, Message, MessageType
from .framing import Frame
from .from_thread import Kept
from .protocol import Role, State
from .transport import Address
from .write_buffer import WriteBuffer as AsynchronousWriteBuffer

__all__ = ["Client", "WriteBuffer", "connect"]

T = TypeVar("T")
Bytes = bytes | bytearray | memoryview
_NAP = 0.5  # seconds for which a thread waits at most without looking for signals
Make = Callable[[], AbstractAsyncContextManager[asynchronous.Client]]

_portals: dict[str, BlockingPortalProvider] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_portals.clear)  # a fork copies no threads


def connect(url: str, *, backend: str = "asyncio", **options: Any) -> Client:
    """Connect to a WebSocket server.

    ::

        with blocking.connect("ws://localhost:9882/") as client:
            client.write("hello")
            print(client.receive())

    At the end of the block the client is closed as :func:`anyio_ws.connect` closes its own: with 1000,
    1011 when the block raises, 1001 for Ctrl-C. Without a block, call :meth:`Client.close`.

    :param url: ``ws://`` or ``wss://``
    :param backend: the event loop that works behind: ``"asyncio"`` or ``"trio"``
    :param options: whatever :func:`anyio_ws.connect` takes: ``headers``, ``subprotocols``, ``timeout``,
        ``config``, fields of ``ClientConfig``

    Raises like :func:`anyio_ws.connect`.
    """
    return Client(partial(asynchronous.connect, url, **options), backend)


class _Call(Generic[T]):
    """A coroutine function that a thread wants run in the event loop.

    The thread may be interrupted at any moment, also while it hands this over: it does not know then
    whether the call has begun, and says that it is not wanted any more.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.outcome: Future[T] = Future()
        self.begun = False
        self._function = function
        self._scope: anyio.CancelScope | None = None
        self._unwanted = False

    async def run(self) -> None:
        """Do it, in the event loop."""
        self.begun = True
        with anyio.CancelScope() as self._scope:
            if self._unwanted:
                self._scope.cancel()
            kept = Kept()
            with kept:
                self.outcome.set_result(await self._function())
            if kept.error is not None:
                self.outcome.set_exception(kept.error)
        if not self.outcome.done():
            self.outcome.cancel()

    def cancel(self) -> None:
        """Cancel it, in the event loop, before or after it has begun."""
        self._unwanted = True
        if self._scope is not None:
            self._scope.cancel()

    def wait(self) -> T:
        """Wait for it, in the thread.

        A signal that comes just before a thread begins to wait does not wake it, and on Windows none
        does; so it wakes up from time to time to notice Ctrl-C.
        """
        while True:
            try:
                return self.outcome.result(_NAP)
            except FutureTimeoutError:
                if self.outcome.done():
                    return self.outcome.result()


class _Inside(NamedTuple):
    """What a blocking client has in the event loop.

    :ivar reading: held by the task that receives
    :ivar left: set when nobody wants anything of the client any more
    """

    client: asynchronous.Client
    reading: anyio.Lock
    left: anyio.Event


async def _hold(make: Make, opened: Future[_Inside]) -> None:
    """Be the block around a connection."""
    async with make() as client:
        inside = _Inside(client, anyio.Lock(), anyio.Event())
        opened.set_result(inside)
        await inside.left.wait()


class Client:
    """A connection to a server, for threads; :func:`connect` makes it.

    What stands here blocks its thread until the method of the same name of :class:`anyio_ws.Client` is
    done, and returns and raises what that does. After :meth:`close` it raises ``ConnectionShut``.

    :param make: makes the context manager of :func:`anyio_ws.connect`
    :param backend: the event loop that works behind
    """

    def __init__(self, make: Make, backend: str) -> None:
        self._lease: BlockingPortalProvider | None = _portals.setdefault(
            backend, BlockingPortalProvider(backend)
        )
        self._portal = self._lease.__enter__()
        self._process = os.getpid()
        self._releasing = threading.Lock()
        self._client: asynchronous.Client
        self._unread: deque[Message] = deque()  # received in the event loop, not yet fetched by a thread
        opened: Future[_Inside] = Future()
        holding = _Call(partial(_hold, make, opened))
        either: list[Future[Any]] = [opened, holding.outcome]
        try:
            self._portal.start_task_soon(holding.run)
            while not wait(either, _NAP, FIRST_COMPLETED).done:
                pass  # look for Ctrl-C
            if not opened.done():
                holding.wait()
            self._client, self._reading, self._left = opened.result()
        except BaseException:
            self._cancel(holding)
            self._lease.__exit__(None, None, None)
            self._lease = None
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            is_error = isinstance(error, Exception)
            self.close(CloseCode.INTERNAL_ERROR if is_error else CloseCode.GOING_AWAY)

    def __del__(self) -> None:
        if getattr(self, "_lease", None) is not None and hasattr(self, "_left"):
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=1)
            # The event loop's own thread may be the one that collects garbage; it cannot end itself.
            inside = self._client, self._left
            threading.Thread(target=_abandon, args=(inside, self._portal, self._lease)).start()

    def __repr__(self) -> str:
        return f"<blocking {self._client!r}>"

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """A number that no other connection of this process has."""
        return self._client.id

    @property
    def state(self) -> State:
        """Where the connection stands between CONNECTING and CLOSED."""
        return self._client.state

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._client.is_closed

    @property
    def remote_address(self) -> Address:
        """Where the peer is: ``(host, port)``, the path of a Unix socket, or ``""``."""
        return self._client.remote_address

    @property
    def local_address(self) -> Address:
        """Where this end is, in the same forms."""
        return self._client.local_address

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on, ``None`` for none."""
        return self._client.subprotocol

    @property
    def close_code(self) -> int | None:
        """The close code of a connection that has ended or is ending, ``None`` before."""
        return self._client.close_code

    @property
    def close_reason(self) -> str:
        """The reason that came with the close code."""
        return self._client.close_reason

    @property
    def closed_by(self) -> Role | None:
        """Which end sent the first Close, ``None`` if none did."""
        return self._client.closed_by

    @property
    def latency(self) -> float | None:
        """The round-trip time of the last answered ping in seconds, ``None`` before there was one."""
        return self._client.latency

    def statistics(self) -> BufferStatistics:
        """Return how the memory of messages that do not arrive whole is used."""
        return self._client.statistics()

    # --- writing --------------------------------------------------------------------------------------

    def write(self, data: str, *, compress: bool = True) -> None:
        """Send a text message; returns when it was taken, not when it was received."""
        self._call(partial(self._client.write, data, compress=compress))

    write_text = write

    def write_bin(self, data: Bytes, *, compress: bool = True, mask_in_place: bool = False) -> None:
        """Send a binary message."""
        options = {"compress": compress, "mask_in_place": mask_in_place}
        self._call(partial(self._client.write_bin, data, **options))

    def send(self, item: str | bytes, *, compress: bool = True) -> None:
        """Send a message: text for ``str``, binary for a bytes-like object."""
        self._call(partial(self._client.send, item, compress=compress))

    def write_framed(self, frame: Frame) -> None:
        """Send a message framed ahead of time."""
        self._call(partial(self._client.write_framed, frame))

    def write_frame(
        self, opcode: int, data: Bytes = b"", *, fin: bool = True, compress: bool = False
    ) -> None:
        """Send one frame."""
        self._call(partial(self._client.write_frame, opcode, data, fin=fin, compress=compress))

    def write_ping(self, data: Bytes = b"") -> None:
        """Send a Ping and do not wait for the Pong."""
        self._call(partial(self._client.write_ping, data))

    def write_pong(self, data: Bytes = b"") -> None:
        """Send a Pong."""
        self._call(partial(self._client.write_pong, data))

    def ping(self) -> float:
        """Send a Ping, wait for its Pong, and return the round-trip time in seconds."""
        return self._call(self._client.ping)

    def write_buffer(self, message_type: MessageType = MessageType.TEXT) -> WriteBuffer:
        """Write a message piece by piece, like a file, and send it with ``wb.flush()``.

        ::

            with client.write_buffer(MessageType.TEXT) as wb:
                json.dump(obj, wb)
                wb.flush()

        Leaving the block without a flush discards what was written.
        """
        return WriteBuffer(self._client.write_buffer(message_type), self._call)

    # --- receiving ------------------------------------------------------------------------------------

    def receive(self) -> str | bytes:
        """Return the next message: ``str`` for text, ``bytes`` for binary."""
        while True:
            message = self.read()
            if message is not None and message.type in (MessageType.TEXT, MessageType.BINARY):
                assert not isinstance(message.data, memoryview)
                return message.data

    def read(self, timeout: float | None = None) -> Message | None:
        """Return the next message with its type, or ``None`` when none comes in time.

        :param timeout: seconds to wait; ``None`` waits as long as it takes

        Several threads may read: each message goes to one of them.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._call(partial(self._take, left))
            with suppress(IndexError):  # another thread was faster
                return self._unread.popleft()
            if left is not None and left <= 0:
                return None

    async def _take(self, timeout: float | None) -> None:
        """Receive a message into ``_unread``, where it stays if the thread that wants it is interrupted."""
        with anyio.move_on_after(timeout):
            try:
                self._reading.acquire_nowait()
            except anyio.WouldBlock:
                await self._reading.acquire()  # not in any case: with a timeout of 0 this would end here
            try:
                if not self._unread:
                    message = await self._client.read()
                    assert message is not None
                    self._unread.append(message)
            finally:
                self._reading.release()

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages; the iteration ends when the connection is closed in order."""
        with suppress(ConnectionEnded, ConnectionShut):
            while True:
                yield self.receive()

    def read_loop(self, handler: Any) -> None:
        """Give every message to a handler, in this thread, until the connection ends.

        :param handler: has ``handle(message)``, called with each message in order, and ``close()``,
            called exactly once at the end, whatever the cause; both are ``def``, and both may write
        :raises TypeError: when the handler has no ``handle``, or one that is ``async def``

        What ``handle`` raises closes the connection with 1011, and is raised here. Ctrl-C closes it with
        1001. The end of the connection raises nothing: ``close_code`` tells how it was.
        """
        relay = _Relay(handler, self._portal)

        async def run() -> None:
            try:
                while self._unread:
                    await relay.handle(self._unread.popleft())
                await self._client.read_loop(relay)
            finally:
                relay.todo.put(None)

        with self._check():  # a lease of its own: the handler may close the client
            call = _Call(run)
            try:
                self._portal.start_task_soon(call.run)
                relay.work()
            except BaseException:
                if self._cancel(call):
                    relay.work()  # what is left to do is the handler's close
                raise
            call.wait()

    def read_loop_in_new_thread(self, handler: Any) -> threading.Thread:
        """Run :meth:`read_loop` in a thread of its own, and return that thread.

        What ``handle`` raises is reported as Python reports exceptions in threads. The thread does not
        keep the program alive; join it to wait for the end of the connection.
        """
        thread = threading.Thread(
            target=self.read_loop, args=(handler,), name=f"read loop of {self!r}", daemon=True
        )
        thread.start()
        return thread

    # --- closing --------------------------------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Do the closing handshake and wait until the connection is gone; closing twice does no harm.

        When this is interrupted, the connection is aborted.
        """
        if self._lease is None:
            return
        try:
            self._call(partial(self._client.close, code, reason))
        except ValueError:
            raise
        except BaseException:
            self._portal.call(self._client.abort)
            self._release()
            raise
        self._release()

    def close_with_code(self, code: int) -> None:
        """Close with a code and no reason."""
        self.close(code)

    def close_with_reason(self, code: int, reason: str) -> None:
        """Close with a code and a reason."""
        self.close(code, reason)

    # --- the way into the event loop --------------------------------------------------------------------

    def _check(self) -> BlockingPortalProvider:
        """Return what the event loop's thread is leased from, if this client may still use it."""
        if os.getpid() != self._process:
            raise RuntimeError("this client belongs to the process that forked; connect again in this one")
        if self._lease is None:
            raise ConnectionShut(self._client.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        return self._lease

    def _call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function in the event loop, and cancel it if this thread is interrupted."""
        with self._check() as portal:  # a lease of its own: another thread may close the client
            if portal is not self._portal:  # it has done so a moment ago
                self._check()
            call = _Call(function)
            try:
                self._portal.start_task_soon(call.run)
            except RuntimeError:  # this is the event loop's own thread
                raise
            except BaseException:
                self._cancel(call)
                raise
            try:
                return call.wait()
            except BaseException:
                if not call.outcome.done():
                    self._cancel(call)
                raise

    def _cancel(self, call: _Call[Any]) -> bool:
        """Cancel a call, and return whether it has begun, or never will.

        What a thread hands over to the event loop is taken in order; of the tasks that begin at the same
        time, Trio runs any first. So the second of these comes after the call.
        """
        self._portal.call(call.cancel)
        self._portal.call(call.cancel)
        return call.begun

    def _release(self) -> None:
        """Give the event loop's thread back; it ends when nobody else needs it."""
        with self._releasing:
            lease, self._lease = self._lease, None
        if lease is not None:
            try:
                self._portal.call(self._left.set)
            finally:
                lease.__exit__(None, None, None)


class WriteBuffer:
    """A file-like object for one message after the other; :meth:`Client.write_buffer` makes it.

    One thread may use it at a time. Only :meth:`flush` waits for the event loop: pools lend their memory
    to any thread.

    :param buffer: the same for asynchronous code
    :param call: runs a coroutine function in the event loop
    """

    def __init__(
        self, buffer: AsynchronousWriteBuffer, call: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    ) -> None:
        self._buffer = buffer
        self._call = call

    def __enter__(self) -> WriteBuffer:
        self._buffer.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._buffer.close()

    def write(self, data: str | Bytes) -> int:
        """Add text, or bytes, to the message; return how many characters, or bytes, that were."""
        return self._buffer.write(data)

    def flush(self, *, compress: bool = True) -> None:
        """Send what was written since the last flush as one message; nothing, when nothing was written.

        What it raises has sent, and discarded, nothing; an interruption may come after the sending.
        """
        self._call(partial(self._buffer.flush, compress=compress))


def _abandon(inside: tuple[Any, ...], portal: BlockingPortal, lease: BlockingPortalProvider) -> None:
    client, left = inside
    portal.call(client.abort)
    portal.call(left.set)
    lease.__exit__(None, None, None)


class _Relay:
    """A handler for an asynchronous read loop that has the thread of :meth:`work` do everything."""

    def __init__(self, handler: Any, portal: BlockingPortal) -> None:
        handle: Any = getattr(handler, "handle", None)
        if not callable(handle) or inspect.iscoroutinefunction(handle):
            raise TypeError(f"{type(handler).__name__} has no handle(message) that is def, not async def")
        self.todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._handle = handle
        self._close: Callable[[], object] = getattr(handler, "close", lambda: None)
        self._portal = portal

    def work(self) -> None:
        """Do what the read loop asks for, until it has ended."""
        while True:
            try:
                call = self.todo.get(timeout=_NAP)  # not for longer: see _result
            except queue.Empty:
                continue
            if call is None:
                return
            call()

    async def handle(self, message: Message) -> None:
        await self._have_done(partial(self._handle, message))

    async def close(self) -> None:
        await self._have_done(self._close)

    async def _have_done(self, function: Callable[[], object]) -> None:
        done = anyio.Event()
        kept = Kept()

        def call() -> None:
            with kept:
                function()
            self._portal.call(done.set)

        self.todo.put(call)
        await done.wait()
        if kept.error is not None:
            raise kept.error
