"""A server: accept, one task per connection, its handshake under a deadline, its handler, its end.

``listen()`` runs everything in one task group, shielded from the cancellation of its caller: a server
that is cancelled stops as one that is told to stop, so that its peers see close code 1001 and not a
cut line. Nothing outlives ``listen()``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import ssl
import stat
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, Generic, Protocol, overload

import anyio
from anyio import TaskHandle
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute, TaskGroup, TaskStatus
from anyio.streams.tls import TLSStream

from .backlog import Backlog, PacedConn
from .buffers import BufferPool, BufferStatistics, ConnectionBuffers, MessageStorage, PoolStatistics
from .config import Config
from .conn import LINGER, Conn
from .deadlines import Deadlines
from .deflate import negotiate
from .events import CloseCode, build_close
from .exceptions import ConnectionClosed, InvalidRequest, LocalProtocolError, Reject
from .handler import (
    FunctionFactory,
    HandlerFactory,
    Session,
    SessionFactory,
    Tools,
    choose_parameters,
    settle,
)
from .handshake import Handshake, accept, check_origin, check_request, is_upgrade
from .http11 import IncompleteRequest, Request, RequestReader, Response, build_refusal, build_response, shown
from .poller import current_poller
from .protocol import Role
from .sockets import ConnectedSocket, SocketListener
from .threads import ThreadPool, ThreadPoolStatistics
from .throttle import Throttle
from .tls import over_socket
from .transport import (
    Address,
    Farewell,
    StreamTransport,
    Transport,
    address_of,
    receive_head,
    stream_address,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup
if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

logger: logging.Logger = logging.getLogger("anyio_ws.server")

AppT = TypeVar("AppT", default=Any)
AppT_contra = TypeVar("AppT_contra", contravariant=True)

HttpHandler = Callable[..., "Response | Awaitable[Response | None] | None"]

_ACCEPT_PAUSE = 0.1  # seconds to wait when the system is short of what a connection needs
_LINES_PER_SECOND = 10  # about clients that are refused, and as many about those that are lost
_BAD_STREAM = (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError, OSError)
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
        self._service = _Service(config, factory, http_handler)
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


class Acceptor(Protocol):
    """What a server accepts from; AnyIO's socket listeners are such."""

    async def accept(self) -> AnyByteStream | ConnectedSocket:
        """Wait for a connection."""

    async def aclose(self) -> None:
        """Stop listening."""

    def extra(self, attribute: Any, default: Any) -> Any:
        """Return a typed attribute; the local address is asked for."""


class _Service:
    """What a server does for each connection; the same for every call of ``listen()``."""

    def __init__(
        self, config: Config, make_session: SessionFactory, http_handler: HttpHandler | None
    ) -> None:
        self.config = config
        self.make_session = make_session
        self.accepted = 0
        self.request_buffers = BufferPool(config.handshake.count, config.handshake.max_size)
        self.storage = build_storage(config)
        self.scratch_buffers = BufferPool(config.thread_pool.count, config.thread_pool.buffer_size)
        self._http_handler = http_handler
        self._http_names = choose_parameters(http_handler, ("request", "app")) if http_handler else ()

    async def answer_http(self, request: Request, app: object, threads: ThreadPool | None) -> Response | None:
        """Have the user answer a request that asks for no WebSocket; ``None`` when there is no answer."""
        if self._http_handler is None or is_upgrade(request):
            return None
        arguments = {"request": request, "app": app}
        handler = self._http_handler if threads is None else threads.bind(self._http_handler)
        response = await settle(handler(**{name: arguments[name] for name in self._http_names}))
        if response is not None and not isinstance(response, Response):
            raise TypeError(f"http_handler: a Response or None is needed, not {type(response).__name__}")
        return response

    def check(self, request: Request) -> Handshake:
        """Check a request, and choose the first of our subprotocols that it offers.

        :raises InvalidRequest: when it is not acceptable
        """
        handshake = check_request(request)
        check_origin(request, self.config.origins)
        offered = (name for name in self.config.subprotocols if name in handshake.subprotocols)
        handshake.select_subprotocol(next(offered, None))
        return handshake


def build_storage(config: Config) -> MessageStorage:
    """Make what all connections of a server keep incomplete messages in."""
    buffers = config.buffers
    large_size = min(buffers.large_size or 2 * buffers.size, config.max_message_size)
    return MessageStorage(buffers.size, buffers.pool, BufferPool(buffers.large_count, large_size))


class _Listening:
    """One run of ``listen()``: the listeners, the connections, the way down."""

    def __init__(self, service: _Service, app: object) -> None:
        self.service = service
        self.app = app
        self.addresses: list[Address] = []
        self.deadlines = Deadlines()
        config = service.config
        self.threads = ThreadPool(config.thread_pool.count, config.close_timeout) if config.blocking else None
        self.backlog = Backlog(config.thread_pool.backlog)
        self.tools = Tools(service.scratch_buffers, self.threads)
        self.links: set[_Link] = set()
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
                listeners = [await _as_acceptor(each) for each in given]
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
        listeners = await _bind(self.service.config)
        if self.service.config.unix_path is not None:
            self._path = BoundPath(self.service.config.unix_path)
        return listeners

    async def _serve(self, listeners: Sequence[Acceptor]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as self.tasks:
                    self.tasks.start_soon(self.deadlines.run)
                    self.tasks.start_soon(self._hear_bell)
                    async with anyio.create_task_group() as accepting:
                        for listener in listeners:
                            accepting.start_soon(self._accept_all, listener)
                        await self.stopping.wait()
                        accepting.cancel_scope.cancel()
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
                await _discard(accepted)
                raise
            link = _Link(self, accepted)
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

    def gone(self, link: _Link) -> None:
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

    def dismiss(self, link: _Link) -> None:
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


class _Link:
    """One accepted connection and its task, from ``accept`` to the closed socket."""

    __slots__ = (
        "_accepted",
        "_closing",
        "_config",
        "_conn",
        "_grace",
        "_id",
        "_listening",
        "_opening",
        "_reader",
        "_task",
        "_transport",
    )

    def __init__(self, listening: _Listening, accepted: AnyByteStream | ConnectedSocket) -> None:
        self._task: TaskHandle[None]
        self._listening = listening
        self._config = listening.service.config
        self._accepted: Any = accepted
        self._opening: anyio.CancelScope | None = anyio.CancelScope()
        self._closing: anyio.CancelScope | None = None
        self._grace = math.inf  # seconds that the handler's close may take
        self._transport: Transport | None = None
        self._reader: RequestReader | None = None
        self._conn: Conn | None = None
        self._id: int | str = "in its opening handshake"

    @property
    def is_open(self) -> bool:
        """Whether the opening handshake is done."""
        return self._conn is not None

    def start(self, tasks: TaskGroup) -> None:
        """Serve the connection in a task of its own."""
        self._task = tasks.start_soon(self._serve, name="connection")

    def go_away(self, code: int, reason: str) -> None:
        """Send a Close, or refuse the opening handshake, because the server stops."""
        if self._conn is not None:
            self._conn.go_away(code, reason)
        elif self._opening is not None:
            self._opening.cancel()

    def cancel_hooks(self) -> None:
        """Cancel what the user's code does; its ``close`` is still called."""
        if self._conn is not None:  # otherwise refusing the opening handshake has done it
            self._task.cancel()

    def cut(self, grace: float) -> None:
        """End the connection at once; only the handler's ``close`` has *grace* seconds left."""
        if self._opening is not None:
            self._opening.cancel()
        self._task.cancel()
        self._grace = grace
        if self._closing is not None:
            self._closing.deadline = anyio.current_time() + grace
        if self._transport is not None:
            self._transport.abort()

    async def _serve(self) -> None:
        """Serve the connection; no error of it gets out of here."""
        try:
            session = await self._open()
            if session is None:
                return
            assert self._conn is not None
            if self._listening.stopping.is_set():  # it has become too late to refuse it
                self._listening.dismiss(self)
            try:
                await session.begin()
                await session.run(self._conn)
            except BaseException as exc:
                if not self._judge(exc, self._conn):
                    raise
            finally:
                await self._close(session, self._conn)
        except BaseException as exc:
            if not self._blame(exc):
                raise
        finally:
            if self._transport is not None:
                self._transport.abort()
            else:
                await _discard(self._accepted)
            self._listening.gone(self)

    # --- the opening handshake ----------------------------------------------------------------------

    async def _open(self) -> Session | None:
        """Do the opening handshake under its deadline; return ``None`` when it was refused."""
        listening, opening = self._listening, self._opening
        assert opening is not None
        opening.deadline = anyio.current_time() + self._config.handshake.timeout
        refusal: bytes = b""
        with opening:
            try:
                return await self._handshake()
            except _Answered as answer:
                refusal = answer.response
            except IncompleteRequest as exc:
                self._log_loss(exc)
                refusal = _refuse(exc) if self._has_begun else b""
            except InvalidRequest as exc:
                listening.refusals.log(logging.INFO, "refused %s: %s", shown(self._remote_address), exc)
                refusal = _refuse(exc)
            except _BAD_STREAM as exc:
                self._log_loss(exc)
        if opening.cancelled_caught:
            refusal = self._refuse_late()
        if self._transport is not None:
            await self._leave(self._transport, refusal)
        return None

    @property
    def _remote_address(self) -> Address:
        if isinstance(self._accepted, ConnectedSocket):
            return self._accepted.remote_address
        return stream_address(self._accepted, SocketAttribute.remote_address)

    def _log_loss(self, exc: Exception) -> None:
        address = shown(self._remote_address)
        self._listening.losses.log(logging.DEBUG, "lost %s in its opening handshake: %s", address, exc)

    @property
    def _has_begun(self) -> bool:
        """Whether the peer has said anything that there could be an answer to."""
        return self._reader is not None and self._reader.started

    def _refuse_late(self) -> bytes:
        """Answer a request that did not come in time, or came when the server stops."""
        if self._listening.stopping.is_set():
            return _refuse(InvalidRequest(503, "the server is stopping"))
        if not self._has_begun:
            return b""
        return _refuse(InvalidRequest(408, "the opening handshake took too long"))

    async def _handshake(self) -> Session:
        """Read the request, check it, have the user's code judge it, and answer 101.

        :raises _Answered: when the request gets another answer
        """
        config, service, listening = self._config, self._listening.service, self._listening
        self._transport = transport = await self._make_transport()
        transport.start()
        limits = config.handshake
        self._reader = reader = RequestReader(limits.max_size, limits.max_headers, service.request_buffers)
        try:
            request = await receive_head(transport, reader)
        finally:
            reader.close()
        request.remote_address = transport.remote_address
        answer_to_http: bytes | None = await self._users(self._answer_http(request))
        if answer_to_http is not None:
            raise _Answered(answer_to_http)
        handshake = service.check(request)
        conn = listening.make_conn(transport)
        self._id = conn.id
        session: Session = await self._users(
            service.make_session(listening.tools, handshake=handshake, conn=conn, app=listening.app)
        )
        compression, answer = negotiate(handshake.extensions, config.compression) or (None, "")
        try:
            transport.write(accept(handshake, answer))
            conn.open(
                handshake.subprotocol,
                compression=compression,
                manual=session.manual,
                busy=session.hooked,
                early=reader.rest,
            )
        except (ValueError, LocalProtocolError) as exc:
            try:
                await session.close()
            except Exception as close_exc:  # noqa: BLE001 - logged; the peer gets its answer all the same
                self._failed(close_exc)
            if isinstance(exc, ValueError):
                raise self._internal_error(exc) from exc
            # The peer has gone while the user's code was busy.
            raise anyio.BrokenResourceError from exc
        self._conn = conn
        self._opening = self._reader = None  # an open connection has no use for them
        return session

    async def _make_transport(self) -> Transport:
        config, deadlines = self._config, self._listening.deadlines
        size, timeout = config.outbox_size, config.write_timeout
        if isinstance(self._accepted, ConnectedSocket):
            return await over_socket(
                self._accepted, deadlines, config.tls, outbox_size=size, write_timeout=timeout
            )
        stream: ByteStream = self._accepted
        if config.tls is not None:
            stream = await TLSStream.wrap(
                stream, server_side=True, ssl_context=config.tls, standard_compatible=False
            )
        spawn = self._listening.tasks.start_soon
        return StreamTransport(stream, spawn, outbox_size=size, write_timeout=timeout)

    async def _answer_http(self, request: Request) -> bytes | None:
        listening = self._listening
        response = await listening.service.answer_http(request, listening.app, listening.threads)
        return None if response is None else build_response(response, date=formatdate(usegmt=True))

    async def _users(self, call: Awaitable[Any]) -> Any:
        """Wait for the user's code; its refusal or its failure is an answer."""
        try:
            return await call
        except Reject as exc:
            response = Response(exc.status, exc.body, exc.headers, exc.reason)
            try:
                refusal = build_response(response, date=formatdate(usegmt=True))
            except ValueError as bad_header:
                raise self._internal_error(bad_header) from exc
            raise _Answered(refusal) from exc
        except Exception as exc:
            raise self._internal_error(exc) from exc

    def _internal_error(self, exc: Exception) -> _Answered:
        """Log an error of the user's code, and answer 500 without telling what it was."""
        self._failed(exc)
        return _Answered(_refuse(InvalidRequest(500, "the server failed")))

    async def _leave(self, transport: Transport, last: bytes) -> None:
        """Send the last bytes and close the socket so that the peer can read them (RFC 9112 §9.6)."""
        farewell = Farewell()
        transport.receiver = farewell
        if transport.ended:
            return
        transport.write(last)
        transport.finish(half_close=bool(last), await_eof=bool(last))
        deadline = self._listening.deadlines.call_later(LINGER, transport.abort)
        await farewell.gone.wait()
        deadline.cancel()

    # --- the connection -----------------------------------------------------------------------------

    def _judge(self, exc: BaseException, conn: Conn) -> bool:
        """Deal with what came out of the user's code; tell whether that is all about it."""
        if (isinstance(exc, ConnectionClosed) or _only_closed(exc)) and conn.is_closed:
            return True  # the end of its own connection is no failure
        is_over = self._blame(exc)
        if not isinstance(exc, Exception):
            conn.go_away(*self._listening.farewell)
        return is_over

    def _blame(self, exc: BaseException) -> bool:
        """Log an error, or stop the server for it; tell whether that is all about it."""
        if isinstance(exc, Exception):
            self._failed(exc)
        elif _ends_program(exc):
            self._listening.end_for(exc)
        else:
            return False
        return True

    async def _close(self, session: Session, conn: Conn) -> None:
        """End the connection, whatever has come before, and tell the user's code."""
        conn.leave(CloseCode.NORMAL_CLOSURE, "")
        if not conn.is_gone:
            with anyio.CancelScope(shield=True):  # the deadlines of the connection bound this
                await conn.wait_gone()
        if not session.hears_close:
            return
        deadline = anyio.current_time() + self._grace
        with anyio.CancelScope(deadline=deadline, shield=True) as self._closing:
            await session.close()

    def _failed(self, exc: BaseException) -> None:
        logger.error("connection %s: the handler failed", self._id, exc_info=exc)
        if self._conn is not None:
            self._conn.fail(CloseCode.INTERNAL_ERROR)


class _Answered(Exception):
    """The opening handshake ends with this response in place of a 101."""

    def __init__(self, response: bytes) -> None:
        super().__init__(response)
        self.response = response


def _refuse(exc: InvalidRequest) -> bytes:
    return build_refusal(exc, date=formatdate(usegmt=True))


async def _discard(accepted: AnyByteStream | ConnectedSocket) -> None:
    """Close a connection of which no transport was made."""
    if isinstance(accepted, ConnectedSocket):
        accepted.close()
    else:
        with contextlib.suppress(Exception):
            await anyio.aclose_forcefully(accepted)


def _ends_program(exc: BaseException) -> bool:
    """Tell ``KeyboardInterrupt``, ``SystemExit`` and their like from what ends one task."""
    return not isinstance(exc, (Exception, GeneratorExit, anyio.get_cancelled_exc_class()))


def _only_closed(exc: BaseException) -> bool:
    """Tell whether a group holds nothing but closed connections."""
    return isinstance(exc, BaseExceptionGroup) and exc.split(ConnectionClosed)[1] is None


# --- binding ----------------------------------------------------------------------------------------


async def _bind(config: Config) -> list[Acceptor]:
    """Bind what the configuration says."""
    if config.unix_path is not None:
        clear_unix_path(Path(config.unix_path))
        listener = await anyio.create_unix_listener(config.unix_path, backlog=config.backlog)
        return [_directly(listener)]
    multi = await anyio.create_tcp_listener(
        local_host=config.address, local_port=config.port, backlog=config.backlog
    )
    return [_directly(listener) for listener in multi.listeners]


async def _as_acceptor(listener: Acceptor | socket.socket) -> Acceptor:
    if isinstance(listener, socket.socket):
        return _directly(await anyio.abc.SocketListener.from_socket(listener))
    return listener


def _directly(listener: Any) -> Acceptor:
    """Accept plain sockets from a listener where the event loop can watch them."""
    acceptor: Acceptor = SocketListener(listener) if current_poller().watches_sockets else listener
    return acceptor


class BoundPath:
    """The file of a Unix socket that is bound, and is ours as long as nobody puts another in its place.

    :param path: the path, which a socket that is still open was bound to a moment ago
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._identity = self._identify()

    def remove(self) -> None:
        """Remove the file if it is still ours; call it before the socket is closed.

        While that is open its file's number is not given to another file.
        """
        if self._identity is not None and self._identify() == self._identity:
            self._path.unlink(missing_ok=True)
        self._identity = None

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = self._path.lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def clear_unix_path(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    :raises OSError: when something else is there, or somebody listens
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "unix_path: there is a file that is no socket", str(path))
    if _somebody_listens(path):
        raise OSError(errno.EADDRINUSE, "unix_path: a server is listening there", str(path))
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    """Tell whether a server is behind a socket's file, even one that is too busy to accept.

    :raises OSError: when that cannot be told
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog is an answer, and none to wait for
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as exc:
            raise OSError(exc.errno, f"unix_path: cannot be probed: {exc.strerror}", str(path)) from exc
        return True
