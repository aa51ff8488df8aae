"""A server: accept, one task per connection, its handshake under a deadline, its handler, its end.

``listen()`` runs everything in one task group, shielded from the cancellation of its caller: a server
that is cancelled stops as one that is told to stop, so that its peers see close code 1001 and not a
cut line. Nothing outlives ``listen()``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, overload

import anyio
from anyio.abc import AnyByteStream, SocketAttribute, TaskGroup, TaskStatus

from .backlog import Backlog, PacedConn
from .binding import Acceptor, BoundPath, as_acceptor, bind, discard
from .buffers import BufferStatistics, ConnectionBuffers, PoolStatistics
from .config import Config
from .conn import Conn
from .deadlines import Deadlines
from .events import CloseCode, build_close
from .handler import FunctionFactory, HandlerFactory, Tools
from .handshake import Handshake
from .link import HttpHandler, Link, Service
from .protocol import Role
from .sockets import ConnectedSocket
from .threads import ThreadPool, ThreadPoolStatistics
from .throttle import Throttle
from .transport import Address, Transport, address_of

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

logger: logging.Logger = logging.getLogger("anyio_ws.server")

AppT = TypeVar("AppT", default=object)
AppT_contra = TypeVar("AppT_contra", contravariant=True)

_ACCEPT_PAUSE = 0.1  # seconds to wait when the system is short of what a connection needs
_LINES_PER_SECOND = 10  # about clients that are refused, and as many about those that are lost
_GONE_ALREADY = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM})  # about one connection
_BROKEN_FOR_GOOD = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})


@dataclass(frozen=True)
class ConnectionStatistics:
    """The connections of a server.

    :ivar accepted: how many it has accepted since it was made
    :ivar in_handshake: those that are in their opening handshake now
    :ivar open: those that are past it, and not gone yet
    """

    accepted: int
    in_handshake: int
    open: int


@dataclass(frozen=True)
class ServerStatistics:
    """What a server is doing and has done, in one worker process.

    :ivar connections: the connections
    :ivar handshake: the buffers for requests, ``Config.handshake.count``
    :ivar buffers: the buffers for messages that do not arrive whole, ``Config.buffers``
    :ivar scratch: the buffers for scratch memory, ``Config.thread_pool.buffer_size``
    :ivar thread_pool: the worker threads, ``None`` when the server is not blocking, or not listening
    """

    connections: ConnectionStatistics
    handshake: PoolStatistics
    buffers: BufferStatistics
    scratch: PoolStatistics
    thread_pool: ThreadPoolStatistics | None = None


class _TakesAll(Protocol[AppT_contra]):
    def __call__(self, *, handshake: Handshake, conn: Conn, app: AppT_contra) -> object: ...


class _TakesConn(Protocol[AppT_contra]):
    def __call__(self, *, conn: Conn, app: AppT_contra) -> object: ...


class _TakesHandshake(Protocol[AppT_contra]):
    def __call__(self, *, handshake: Handshake, app: AppT_contra) -> object: ...


class _TakesApp(Protocol[AppT_contra]):
    def __call__(self, *, app: AppT_contra) -> object: ...


class Server(Generic[AppT]):
    """A WebSocket server.

    For type checkers it is generic in the application object: ``Server(Handler)`` learns from the ``app``
    that the handler takes what ``listen`` must be given; write ``Server[App](Handler)`` where ``init`` is a
    classmethod.

    :param handler: makes the handler of a connection: a class with ``__init__(self, handshake, conn,
        app)`` or an ``async`` classmethod ``init(cls, handshake, conn, app)``, or a function with these
        parameters; each may be left out. What it makes has ``client_message(self, data)`` and may have
        the other hooks.
    :param config: the settings
    :param http_handler: answers requests that ask for no WebSocket: ``http_handler(request)`` or
        ``http_handler(request, app)``, ``def`` or ``async def``, returns a :class:`Response`, or
        ``None`` for the answer that is given without it, 426
    :raises TypeError: when a hook is missing or has other parameters than those accepted
    """

    @overload
    def __init__(
        self,
        handler: _TakesAll[AppT],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: _TakesConn[AppT],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: _TakesHandshake[AppT],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: _TakesApp[AppT],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self: Server[Any],
        handler: Callable[..., Any],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None: ...

    def __init__(
        self,
        handler: Callable[..., Any],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None:
        factory = handler if isinstance(handler, FunctionFactory) else HandlerFactory(handler)
        config = config or Config()
        if isinstance(factory, FunctionFactory):
            for name in ("blocking", "message_view"):
                if getattr(config, name):
                    raise ValueError(
                        f"{name}: it is for the hooks of a handler, and has no effect on a function"
                    )
        self._service = Service(config, factory, http_handler)
        self._listening: _Listening | None = None

    @property
    def config(self) -> Config:
        """The settings."""
        return self._service.config

    @property
    def addresses(self) -> list[Address]:
        """The bound addresses while the server listens: ``(host, port)``, or the path of a socket."""
        return list(self._listening.addresses) if self._listening else []

    def statistics(self) -> ServerStatistics:
        """Return what the server is doing now, and has done since it was made."""
        service, listening = self._service, self._listening
        links = listening.links if listening is not None else set()
        opened = sum(link.is_open for link in links)
        return ServerStatistics(
            ConnectionStatistics(service.accepted, len(links) - opened, opened),
            service.request_buffers.statistics(),
            service.storage.statistics(),
            service.scratch_buffers.statistics(),
            listening.thread_statistics() if listening is not None else None,
        )

    def stop(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Stop the server: from any task, any thread, or a signal handler; the first call decides.

        No connection is accepted any more, those in their opening handshake are answered with 503, all
        others get a Close and have ``shutdown_timeout`` seconds to end in order; then they are cut.
        ``listen()`` returns when all is closed. A server that is not listening has nothing to stop.

        :param code: the close code that the peers get
        :param reason: the reason that comes with it
        :raises ValueError: when code or reason may not be sent
        """
        build_close(code, reason)
        if self._listening is not None:
            self._listening.stop(code, reason)

    def abort(self) -> None:
        """Stop the server at once, from wherever :meth:`stop` may be called, before or after it.

        All connections are cut, and hooks at work are cancelled; ``close`` is called for every handler
        all the same, and cancelled when it waits.
        """
        if self._listening is not None:
            self._listening.abort()

    async def listen(
        self,
        app: AppT | None = None,
        *,
        listeners: Sequence[Acceptor | socket.socket] | None = None,
        task_status: TaskStatus[list[Address]] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Bind, serve until stopped or cancelled, and close everything.

        :param app: handed to every handler
        :param listeners: accept from these in place of binding what the configuration says: listening
            sockets, such as a service manager hands over, or AnyIO's listeners; they are closed at the end
        :param task_status: for ``addresses = await task_group.start(server.listen, app)``
        :raises OSError: when the address cannot be bound
        :raises RuntimeError: when the server is listening already
        :raises ValueError: when the configuration asks for several workers; :func:`run` has them

        A listener that is broken for good, and a ``KeyboardInterrupt`` or ``SystemExit`` of a hook, stop
        the server as :meth:`stop` does; then they are raised as they are.

        Cancellation: like :meth:`stop`, except that hooks that are running are cancelled at once.
        """
        if self._listening is not None:
            raise RuntimeError("this server is listening already")
        if self.config.worker_count > 1:
            raise ValueError(
                "worker_count: listen() serves in this process alone; anyio_ws.run() starts workers"
            )
        self._listening = _Listening(self._service, app)
        try:
            await self._listening.run(listeners, task_status)
        finally:
            self._listening = None

    async def wait_stopped(self) -> None:
        """Wait until a server that is listening has stopped, and everything is closed."""
        if self._listening is not None:
            await self._listening.ended.wait()


async def serve(
    handler: Callable[..., Awaitable[object]],
    config: Config | None = None,
    *,
    app: object = None,
    http_handler: HttpHandler | None = None,
    task_status: TaskStatus[list[Address]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve with a function in place of a handler class, until cancelled.

    :param handler: ``async def handler(conn)``; it may also take ``handshake`` and ``app``. The
        connection is closed with 1000 when it returns, with 1011 when it raises.
    :param config: the settings
    :param app: handed to the function if it takes it
    :param http_handler: answers requests that ask for no WebSocket; see :class:`Server`
    :param task_status: for ``addresses = await task_group.start(serve, handler)``

    Raises and is cancelled like :meth:`Server.listen`.
    """
    server: Server[object] = Server(FunctionFactory(handler), config, http_handler=http_handler)
    await server.listen(app, task_status=task_status)


class _Listening:
    """One run of ``listen()``: the listeners, the connections, the way down."""

    def __init__(self, service: Service, app: object) -> None:
        self.service = service
        self.app = app
        self.addresses: list[Address] = []
        self.deadlines = Deadlines()
        config = service.config
        self.threads = ThreadPool(config.thread_pool.count, config.close_timeout) if config.blocking else None
        self.backlog = Backlog(config.thread_pool.backlog)
        self.tools = Tools(service.scratch_buffers, self.threads)
        self.links: set[Link] = set()
        self.stopping = anyio.Event()
        self.refusals = Throttle(logger, _LINES_PER_SECOND)
        self.losses = Throttle(logger, _LINES_PER_SECOND)
        self._pauses = Throttle(logger, 1)
        self.tasks: TaskGroup
        self._path: BoundPath | None = None
        self._fatal: BaseException | None = None
        self._farewells: list[tuple[int, str]] = []  # the first counts
        self._hooks_cancelled = False
        self._aborted = False
        self._emptied = anyio.Event()
        self.ended = anyio.Event()
        self._freed = anyio.Event()
        self._bell, self._push = socket.socketpair()
        self._bell.setblocking(False)
        self._push.setblocking(False)

    def make_conn(self, transport: Transport) -> Conn:
        """Make a connection; one whose hooks may have to wait for a thread takes its messages with care."""
        buffers = ConnectionBuffers(self.service.storage)
        arguments = Role.SERVER, transport, self.deadlines, self.service.config, buffers
        if self.threads is None:
            return Conn(*arguments)
        return PacedConn(*arguments, backlog=self.backlog)

    def thread_statistics(self) -> ThreadPoolStatistics | None:
        """Return what the worker threads are doing, ``None`` when there are none."""
        threads, backlog = self.threads, self.backlog
        if threads is None:
            return None
        return ThreadPoolStatistics(
            threads.count, threads.running, threads.queued, backlog.limit, backlog.count
        )

    def stop(self, code: int, reason: str) -> None:
        """Ring the bell that :meth:`_wait_for_bell` waits for; nothing else is safe in any thread."""
        self._farewells.append((code, reason))
        with contextlib.suppress(OSError):  # full: it rings already; closed: all is over
            self._push.send(b"\0")

    def abort(self) -> None:
        """Stop without a goodbye; safe in any thread."""
        self._aborted = True
        self.stop(CloseCode.GOING_AWAY, "")

    @property
    def farewell(self) -> tuple[int, str]:
        """The code and reason that peers get when the server stops."""
        return self._farewells[0] if self._farewells else (CloseCode.GOING_AWAY, "")

    def end_for(self, error: BaseException) -> None:
        """Stop because of an error that ``listen()`` is to raise when all is closed."""
        if self._fatal is None:
            self._fatal = error
        elif self._fatal is not error:
            logger.error("another error while the server stops", exc_info=error)
        self._farewells.append((CloseCode.GOING_AWAY, ""))
        self.stopping.set()

    async def run(
        self, given: Sequence[Acceptor | socket.socket] | None, task_status: TaskStatus[list[Address]]
    ) -> None:
        """Bind and serve; see ``Server.listen``."""
        try:
            if given is None:
                listeners = await self._bind()
            else:
                listeners = [await as_acceptor(each) for each in given]
            self.addresses = [address_of(each.extra(SocketAttribute.local_address, "")) for each in listeners]
            async with anyio.create_task_group() as outer:
                outer.start_soon(self._serve, listeners)
                try:
                    task_status.started(self.addresses)
                    await self.ended.wait()
                finally:
                    self._cancel_hooks()
        finally:
            self._bell.close()
            self._push.close()
            if self._fatal is not None:
                raise self._fatal

    async def _bind(self) -> list[Acceptor]:
        listeners = await bind(self.service.config)
        if self.service.config.unix_path is not None:
            self._path = BoundPath(self.service.config.unix_path)
        return listeners

    async def _serve(self, listeners: Sequence[Acceptor]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as self.tasks:
                    self.tasks.start_soon(self._keep_time)
                    self.tasks.start_soon(self._hear_bell)
                    try:
                        async with anyio.create_task_group() as accepting:
                            for listener in listeners:
                                accepting.start_soon(self._accept_all, listener)
                            await self.stopping.wait()
                            accepting.cancel_scope.cancel()
                    finally:
                        await self._close(listeners)
                    await self._wind_down()
                    self.tasks.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def _close(self, listeners: Sequence[Acceptor]) -> None:
        """Stop listening, whatever goes wrong with one of the listeners."""
        if self._path is not None:
            self._path.remove()
        for listener in listeners:
            try:
                await listener.aclose()
            except Exception:
                logger.exception("a listener cannot be closed")

    async def _keep_time(self) -> None:
        """Run the clock. Without one nothing would bound the ends of connections, so they end with it.

        That is when the event loop ends, and cancels all tasks at once.
        """
        try:
            await self.deadlines.run()
        finally:
            for link in self.links:
                self.dismiss(link)
                link.cut(self.service.config.close_timeout)

    async def _hear_bell(self) -> None:
        while True:
            await anyio.wait_readable(self._bell)
            self._bell.recv(4096)
            self.stopping.set()
            if self._aborted:
                for link in self.links:
                    link.cut(0)

    async def _accept_all(self, listener: Acceptor) -> None:
        """Accept while there is room; at ``max_conn`` further connections wait in the backlog."""
        while True:
            await self._wait_for_slot()
            try:
                accepted = await self._accept(listener)
            except Exception as exc:  # noqa: BLE001 - raised by listen() when the others are closed
                return self.end_for(exc)
            try:
                await self._wait_for_slot()  # another listener may have been faster
            except BaseException:
                await discard(accepted)
                raise
            link = Link(self, accepted)
            self.links.add(link)
            self.service.accepted += 1
            link.start(self.tasks)

    async def _wait_for_slot(self) -> None:
        while len(self.links) >= self.service.config.max_conn:
            if self._freed.is_set():
                self._freed = anyio.Event()
            await self._freed.wait()

    async def _accept(self, listener: Acceptor) -> AnyByteStream | ConnectedSocket:
        """Accept one connection, whatever goes wrong with others.

        Raises what makes the listener useless.
        """
        while True:
            try:
                return await listener.accept()
            except OSError as exc:
                if exc.errno in _BROKEN_FOR_GOOD:
                    raise
                # The system is short of something, such as file descriptors, that comes back when
                # connections end. That may neither end nor spin the server.
                if exc.errno not in _GONE_ALREADY:
                    self._pauses.log(logging.WARNING, "accepting pauses for %s s: %s", _ACCEPT_PAUSE, exc)
                    await anyio.sleep(_ACCEPT_PAUSE)

    def gone(self, link: Link) -> None:
        """Forget a connection that has ended."""
        self.links.discard(link)
        self._freed.set()
        if not self.links:
            self._emptied.set()

    def _cancel_hooks(self) -> None:
        """Stop, and cancel what users' hooks are doing, because ``listen()`` itself is cancelled."""
        self._hooks_cancelled = True
        self._farewells.append((CloseCode.GOING_AWAY, ""))
        if self.stopping.is_set():
            for link in self.links:
                self.dismiss(link)
        self.stopping.set()

    def dismiss(self, link: Link) -> None:
        """Say goodbye to a peer; call it for every connection that there is when the server stops."""
        link.go_away(*self.farewell)
        if self._hooks_cancelled:
            link.cancel_hooks()

    async def _wind_down(self) -> None:
        """Say goodbye to everybody, wait for a bounded time, and cut those who are left."""
        for link in self.links:
            self.dismiss(link)
        with anyio.move_on_after(self.service.config.shutdown_timeout):
            await self._until_empty()
        for link in self.links:
            link.cut(self.service.config.close_timeout)
        await self._until_empty()

    async def _until_empty(self) -> None:
        while self.links:
            self._emptied = anyio.Event()
            await self._emptied.wait()
