"""A client: connect, do the opening handshake, then be a connection.

``connect()`` is the everyday way, a block that owns the connection's tasks and closes it at the end.
``Client.connect`` and ``Client.handshake`` are the same in two steps, for programs that keep the
connection in an object of their own; they must close it.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from .buffers import BufferPool, BufferStatistics, ConnectionBuffers, MessageStorage
from .config import ClientConfig
from .conn import Conn
from .connecting import connect_tcp, connect_unix
from .deadlines import Deadlines
from .deflate import accept, offer
from .events import CloseCode, MessageType
from .exceptions import InvalidResponse, LocalProtocolError
from .handler import settle
from .handshake import (
    build_authority,
    build_key,
    build_request,
    check_response,
    parse_header_block,
    parse_url,
)
from .http11 import Headers, ResponseReader
from .poller import current_poller
from .protocol import Role, State
from .sockets import ConnectedSocket
from .tasks import background
from .tls import over_socket
from .transport import Spawn, StreamTransport, Transport, receive_head

HeadersLike = Mapping[str, str] | Iterable[tuple[str, str]] | str


class Client(Conn):
    """A connection whose role is client; everything that :class:`Conn` has, and a read loop."""

    _authority: str = ""
    _storage: MessageStorage

    @classmethod
    async def connect(
        cls, host: str, port: int, config: ClientConfig | None = None, *, unix_path: str | Path | None = None
    ) -> Client:
        """Connect, with TLS if the configuration says so; :meth:`handshake` comes next.

        The connection belongs to no block: close it with :meth:`close` or :meth:`aclose`.
        :func:`connect` does that for you.

        :param host: host name or address; also what a certificate must be for
        :param port: the TCP port
        :param config: the settings
        :param unix_path: connect to this Unix socket; *host* and *port* are what ``Host`` says then
        :raises OSError: when the connection cannot be made
        :raises ssl.SSLError: when TLS cannot be agreed on, or the certificate is not good

        Cancellation: nothing stays open.
        """
        config = config or ClientConfig()
        deadlines = Deadlines()
        spawn, context = current_poller().spawn, _context(config)
        opened = await _open_stream(host, port, unix_path)
        transport = await _make_transport(opened, host, context, config, deadlines, spawn)
        client = cls._over(transport, deadlines, config)
        spawn(client._keep_time)
        client._authority = build_authority(host, port, bool(config.tls))
        return client

    @classmethod
    def _over(cls, transport: Transport, deadlines: Deadlines, config: ClientConfig) -> Client:
        storage = MessageStorage(config.buffer_size, None, config.buffer_provider or BufferPool(0, 0))
        client = cls(Role.CLIENT, transport, deadlines, config, ConnectionBuffers(storage))
        client._storage = storage
        transport.start()
        return client

    async def handshake(
        self,
        path: str = "/",
        *,
        timeout: float = 10.0,
        headers: HeadersLike = "",
        subprotocols: tuple[str, ...] | list[str] | None = None,
        origin: str | None = None,
    ) -> None:
        """Do the opening handshake (RFC 6455 §4.1).

        :param path: path and query
        :param timeout: seconds that it may take
        :param headers: further headers: a mapping, pairs, or text: lines ``name: value``.
            ``Host`` is filled in when absent.
        :param subprotocols: the subprotocols to offer; those of the configuration when ``None``
        :param origin: the ``Origin``, for a client that acts for a page
        :raises HandshakeRejected: when the server answers with another status than 101
        :raises InvalidResponse: when its answer is wrong, or it closes the connection
        :raises TimeoutError: when it takes longer than *timeout*
        :raises ValueError: when an argument cannot be sent, or the request does not fit into
            ``buffer_size``; nothing has been sent then, and it can be tried again
        :raises LocalProtocolError: when the handshake was done already

        Cancellation, and every error but the last two, abort the connection.
        """
        if self.state is not State.CONNECTING or self._authority == "":
            raise LocalProtocolError("the opening handshake was done already")
        config = self._config
        assert isinstance(config, ClientConfig)
        if isinstance(subprotocols, str):
            raise ValueError(
                f"subprotocols: names in a list or tuple are needed, not one text: {subprotocols!r}"
            )
        offered = tuple(config.subprotocols if subprotocols is None else subprotocols)
        parsed = parse_header_block(headers) if isinstance(headers, str) else Headers(headers)
        key = build_key()
        request = build_request(
            path,
            self._authority,
            key,
            headers=parsed,
            subprotocols=offered,
            origin=origin,
            extensions=offer(config.compression) if config.compression else "",
        )
        if len(request) > config.buffer_size:
            raise ValueError(
                f"headers: the request has {len(request)} bytes, more than buffer_size ({config.buffer_size})"
            )
        try:
            with anyio.fail_after(timeout):
                await self._shake_hands(request, key, offered)
        except BaseException:
            self.abort()
            self._deadlines.stop()
            raise

    async def _shake_hands(self, request: bytes, key: str, offered: tuple[str, ...]) -> None:
        self._authority = ""
        reader = ResponseReader()
        self._transport.write(request)
        try:
            response = await receive_head(self._transport, reader)
        except anyio.BrokenResourceError as exc:
            raise InvalidResponse("the connection was lost during the opening handshake") from exc
        answer = check_response(response, key, offered)
        config = self._config
        assert isinstance(config, ClientConfig)
        wanted = {
            MessageType.PING: config.handle_ping,
            MessageType.PONG: config.handle_pong,
            MessageType.CLOSE: config.handle_close,
        }
        manual = frozenset(type_ for type_, handle in wanted.items() if handle)
        compression = accept(answer.extensions, config.compression)
        self.open(answer.subprotocol, compression=compression, manual=manual, early=reader.rest)

    def statistics(self) -> BufferStatistics:
        """Return how messages that did not arrive whole were kept: in ``buffer_size``, or beyond it.

        ``small`` is the connection's own buffer, ``large`` is ``buffer_provider`` with all its clients, or
        without one the fresh memory that was taken, as ``fallback``.
        """
        return self._storage.statistics()

    async def _keep_time(self) -> None:
        """Run the clock. Without one nothing would bound the end, so the connection ends with it.

        That is when the event loop ends, and cancels all tasks at once: nobody may have closed us yet.
        """
        try:
            await self._deadlines.run()
        finally:
            if not self.is_gone:
                self.go_away(CloseCode.GOING_AWAY, "")
                self.abort()

    async def _leave_block(self, error: BaseException | None) -> None:
        """Close at the end of a ``connect()`` block, with the code that tells how it ended."""
        if error is None:
            self.close_nowait(CloseCode.NORMAL_CLOSURE)
        elif isinstance(error, Exception):
            self.close_nowait(CloseCode.INTERNAL_ERROR)
        else:
            self.close_nowait(CloseCode.GOING_AWAY)
        with anyio.CancelScope(shield=True):  # the deadlines of the connection bound this
            await self.wait_gone()

    def connection_lost(self, error: Exception | None) -> None:
        """Let everybody know that the connection is gone, and end the clock of a two-step client."""
        super().connection_lost(error)
        self._deadlines.stop()

    async def read_loop(self, handler: Any) -> None:
        """Give every message to a handler until the connection ends.

        Spawn it with ``task_group.start_soon(client.read_loop, handler)``; writing goes on beside it.

        :param handler: has ``handle(message)``, called with each :class:`Message` in order, one at a
            time, and ``close()``, called exactly once at the end, whatever the cause; ``def`` or
            ``async def``. A handler without ``close`` is fine.
        :raises TypeError: when the handler has no ``handle``
        :raises LocalProtocolError: when the opening handshake is not done
        :raises anyio.BusyResourceError: when another task is receiving

        What ``handle`` raises closes the connection with 1011, and is raised here. The end of the
        connection raises nothing: ``close_code`` tells how it was.

        Cancellation: the connection is closed with 1001, ``close`` is called, and the cancellation goes on.
        """
        handle: Any = getattr(handler, "handle", None)
        if not callable(handle):
            raise TypeError(f"{type(handler).__name__} has no handle(message)")
        if self.state is State.CONNECTING:
            raise LocalProtocolError("the opening handshake is not done")
        if self._inbox.is_taken:
            raise anyio.BusyResourceError("receiving from")
        try:
            await self.dispatch_all(handle)
        except anyio.get_cancelled_exc_class():
            self.leave(CloseCode.GOING_AWAY, "")
            raise
        except BaseException:
            self.fail(CloseCode.INTERNAL_ERROR)
            raise
        finally:
            with anyio.CancelScope(shield=True):  # the deadlines of the connection bound the waiting
                await self.wait_gone()
                self.discard_messages()
                close = getattr(handler, "close", None)
                if close is not None:
                    await settle(close())


@contextlib.asynccontextmanager
async def connect(
    url: str,
    *,
    headers: HeadersLike = "",
    subprotocols: tuple[str, ...] | list[str] | None = None,
    origin: str | None = None,
    timeout: float = 10.0,
    config: ClientConfig | None = None,
    unix_path: str | Path | None = None,
    stream: ByteStream | None = None,
    **fields: Any,
) -> AsyncIterator[Client]:
    """Connect to a WebSocket server, and close the connection at the end of the block.

    :param url: ``ws://`` or ``wss://``
    :param headers: further headers of the request; see :meth:`Client.handshake`
    :param subprotocols: the subprotocols to offer, in order of preference
    :param origin: the ``Origin``, for a client that acts for a page
    :param timeout: seconds for TCP, TLS and the opening handshake together
    :param config: the settings
    :param unix_path: connect to this Unix socket in place of the URL's host and port
    :param stream: use this AnyIO byte stream in place of opening one; it is closed at the end
    :param fields: fields of :class:`ClientConfig`, in place of those in *config*
    :raises ValueError: when an argument cannot be sent
    :raises TypeError: when *fields* has one that :class:`ClientConfig` does not have
    :raises OSError: when the connection cannot be made
    :raises TimeoutError: when it takes longer than *timeout*
    :raises HandshakeRejected: when the server answers with another status than 101
    :raises InvalidResponse: when its answer is wrong

    The block ends with a closing handshake: code 1000, or 1011 when it raises, 1001 when it is cancelled.
    What the block raises is raised as it is, never in an ``ExceptionGroup``.
    """
    async with contextlib.AsyncExitStack() as stack:
        if stream is not None:
            stack.push_async_callback(anyio.aclose_forcefully, stream)
        parts = parse_url(url)
        config = replace(config or ClientConfig(), **fields)
        if config.tls and not parts.secure:
            raise ValueError("url: tls is configured, and ws:// is without TLS; write wss://")
        config = replace(config, tls=config.tls or parts.secure)
        context = _context(config)
        tasks = await stack.enter_async_context(background())
        deadlines = Deadlines()
        with anyio.fail_after(timeout):
            opened = await _open_stream(parts.host, parts.port, unix_path) if stream is None else stream
            transport = await _make_transport(
                opened, parts.host, context, config, deadlines, tasks.start_soon
            )
            client = Client._over(transport, deadlines, config)
            client._authority = parts.authority
            tasks.start_soon(client._keep_time)
            await client.handshake(
                parts.target, timeout=timeout, headers=headers, subprotocols=subprotocols, origin=origin
            )
        try:
            yield client
        except BaseException as exc:
            await client._leave_block(exc)
            raise
        await client._leave_block(None)


async def _open_stream(host: str, port: int, unix_path: str | Path | None) -> ConnectedSocket | ByteStream:
    """Open a TCP connection or a Unix socket: a plain socket where the event loop can watch it.

    :raises OSError: when the connection cannot be made
    """
    if current_poller().watches_sockets:
        return await (connect_tcp(host, port) if unix_path is None else connect_unix(unix_path))
    if unix_path is not None:
        return await anyio.connect_unix(unix_path)
    return await anyio.connect_tcp(host, port)


async def _make_transport(
    opened: ConnectedSocket | ByteStream,
    host: str,
    context: ssl.SSLContext | None,
    config: ClientConfig,
    deadlines: Deadlines,
    spawn: Spawn,
) -> Transport:
    """Make the transport, and do the TLS handshake where there is a context.

    :raises OSError: when TLS cannot be agreed on, or the certificate is not good; what was opened is
        closed then
    """
    size, timeout = config.outbox_size, config.write_timeout
    if isinstance(opened, ConnectedSocket):
        return await over_socket(
            opened, deadlines, context, hostname=host, outbox_size=size, write_timeout=timeout
        )
    if context is not None:
        opened = await _secure(opened, host, context)
    return StreamTransport(opened, spawn, outbox_size=size, write_timeout=timeout)


async def _secure(stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
    """Do the TLS handshake; the stream is closed when it fails."""
    try:
        return await TLSStream.wrap(stream, hostname=host, ssl_context=context, standard_compatible=False)
    except BaseException as exc:
        await anyio.aclose_forcefully(stream)
        if isinstance(exc, anyio.EndOfStream | anyio.BrokenResourceError):
            raise ConnectionAbortedError("the connection was lost during the TLS handshake") from exc
        raise


def _context(config: ClientConfig) -> ssl.SSLContext | None:
    """Return a context that verifies certificates, with the system's or with given authorities.

    :raises OSError: when there is no such file
    """
    ca_bundle = config.ca_bundle
    if not config.tls:
        return None
    if isinstance(config.tls, ssl.SSLContext):
        return config.tls
    if ca_bundle is None:
        return _default_context()
    if isinstance(ca_bundle, ssl.SSLContext):
        return ca_bundle
    if isinstance(ca_bundle, bytes):
        is_pem = ca_bundle.lstrip().startswith(b"-----")
        return ssl.create_default_context(cadata=ca_bundle.decode() if is_pem else ca_bundle)
    return ssl.create_default_context(cafile=ca_bundle)


@cache
def _default_context() -> ssl.SSLContext:
    """Make the default context, which costs tens of milliseconds, once per process."""
    return ssl.create_default_context()
