"""One accepted connection: its opening handshake under a deadline, its handler, its end.

A :class:`Link` is the task of a connection, from ``accept`` to the closed socket. Whatever happens in it
stays in it, but for what ends a program.
"""

from __future__ import annotations

import logging
import math
import ssl
import sys
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Protocol

import anyio
from anyio import TaskHandle
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute, TaskGroup
from anyio.streams.tls import TLSStream

from .binding import discard
from .buffers import BufferPool, MessageStorage
from .closing import LINGER
from .config import Config
from .conn import Conn
from .deadlines import Deadlines
from .deflate import negotiate
from .events import CloseCode
from .exceptions import ConnectionClosed, InvalidRequest, LocalProtocolError, Reject
from .handler import Session, SessionFactory, Tools, choose_parameters, settle
from .handshake import Handshake, accept, check_origin, check_request, is_upgrade
from .http11 import IncompleteRequest, Request, RequestReader, Response, build_refusal, build_response, shown
from .sockets import ConnectedSocket
from .threads import ThreadPool
from .throttle import Throttle
from .tls import over_socket
from .transport import Address, Farewell, StreamTransport, Transport, receive_head, stream_address

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

logger: logging.Logger = logging.getLogger("anyio_ws.server")

HttpHandler = Callable[..., "Response | Awaitable[Response | None] | None"]

_BAD_STREAM = (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError, OSError)


class Service:
    """What a server does for each connection; the same for every call of ``listen()``."""

    def __init__(
        self, config: Config, make_session: SessionFactory, http_handler: HttpHandler | None
    ) -> None:
        self.config = config
        self.make_session = make_session
        self.accepted = 0
        self.request_buffers: BufferPool = BufferPool(config.handshake.count, config.handshake.max_size)
        self.storage: MessageStorage = build_storage(config)
        self.scratch_buffers: BufferPool = BufferPool(
            config.thread_pool.count, config.thread_pool.buffer_size
        )
        self._http_handler = http_handler
        self._http_names = choose_parameters(http_handler, ("request", "app")) if http_handler else ()

    def may_answer_http(self, request: Request) -> bool:
        """Tell whether a request is for the user to answer: it asks for no WebSocket."""
        return self._http_handler is not None and not is_upgrade(request)

    async def answer_http(self, request: Request, app: object, threads: ThreadPool | None) -> Response | None:
        """Have the user answer such a request; ``None`` when there is no answer."""
        assert self._http_handler is not None
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
    longest = config.max_message_size if buffers.large_count else 0
    return MessageStorage(buffers.size, buffers.pool, BufferPool(buffers.large_count, large_size, longest))


class Listening(Protocol):
    """What a connection needs from the run of ``listen()`` that has accepted it.

    :ivar service: what the server does for each connection
    :ivar app: handed to every handler
    :ivar tools: what handlers may ask for
    :ivar threads: where ``def`` hooks run in a blocking server
    :ivar deadlines: the clock
    :ivar tasks: where the tasks of connections live
    :ivar stopping: set when the server stops
    :ivar refusals: logs about clients that are refused
    :ivar losses: logs about clients that are lost
    """

    service: Service
    app: object
    tools: Tools
    threads: ThreadPool | None
    deadlines: Deadlines
    tasks: TaskGroup
    stopping: anyio.Event
    refusals: Throttle
    losses: Throttle

    @property
    def farewell(self) -> tuple[int, str]:
        """The code and reason that peers get when the server stops."""

    def make_conn(self, transport: Transport) -> Conn:
        """Make a connection."""

    def dismiss(self, link: Link) -> None:
        """Say goodbye on a connection that has opened while the server stops."""

    def gone(self, link: Link) -> None:
        """Forget a connection that has ended."""

    def end_for(self, error: BaseException) -> None:
        """Stop because of an error that ``listen()`` is to raise when all is closed."""


class Link:
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

    def __init__(self, listening: Listening, accepted: AnyByteStream | ConnectedSocket) -> None:
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
                await discard(self._accepted)
            self._listening.gone(self)

    # --- the opening handshake ----------------------------------------------------------------------

    async def _open(self) -> Session | None:
        """Do the opening handshake under its deadline; return ``None`` when it was refused."""
        listening, opening = self._listening, self._opening
        assert opening is not None
        opening.deadline = listening.deadlines.poller.loop_time() + self._config.handshake.timeout
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
            # A request is nearly always there before the task that reads it.
            request = await receive_head(transport, reader, at_once=True)
        finally:
            reader.close()
        request.remote_address = transport.remote_address
        if service.may_answer_http(request):
            answer: bytes | None = await self._users(self._answer_http(request))
            if answer is not None:
                raise _Answered(answer)
        handshake = service.check(request)
        conn = listening.make_conn(transport)
        self._id = conn.id
        session: Session = await self._users(
            service.make_session(listening.tools, handshake=handshake, conn=conn, app=listening.app)
        )
        compression, extensions = negotiate(handshake.extensions, config.compression) or (None, "")
        try:
            transport.write(accept(handshake, extensions))
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


def _ends_program(exc: BaseException) -> bool:
    """Tell ``KeyboardInterrupt``, ``SystemExit`` and their like from what ends one task."""
    return not isinstance(exc, (Exception, GeneratorExit, anyio.get_cancelled_exc_class()))


def _only_closed(exc: BaseException) -> bool:
    """Tell whether a group holds nothing but closed connections."""
    return isinstance(exc, BaseExceptionGroup) and exc.split(ConnectionClosed)[1] is None
