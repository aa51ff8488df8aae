"""Connections where AnyIO's interfaces are asked for: a listener, a connectable.

A :class:`Conn` is an ``ObjectStream[str | bytes]``; what knows such streams knows connections. This module
has what makes them: :class:`WebSocketListener` turns a listener of byte streams into one of connections,
and :class:`WebSocketConnectable` is an address to connect to, made in one place and used in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, Listener, ObjectStreamConnectable, TaskGroup
from anyio.streams.stapled import MultiListener

from .client import Client, HeadersLike
from .config import ClientConfig, Config
from .conn import Conn, WebSocketAttribute
from .events import CloseCode
from .exceptions import HandshakeError
from .handler import FunctionFactory
from .handshake import parse_url
from .link import HttpHandler
from .server import Server
from .tasks import background

__all__ = ["WebSocketAttribute", "WebSocketConnectable", "WebSocketListener"]


class WebSocketListener(Listener[Conn]):
    """An AnyIO listener of WebSocket connections, over a listener of byte streams.

    :param listener: accepts the byte streams: AnyIO's TCP, Unix and TLS listeners, several of them
        together, or one of your own; it is closed with this one
    :param config: the settings; those of binding have no part here, nor has ``tls``: wrap the listener.
        ``max_conn`` bounds the connections that are served.
    :param http_handler: answers requests that ask for no WebSocket; see :class:`anyio_ws.Server`
    """

    def __init__(
        self,
        listener: Listener[Any],
        config: Config | None = None,
        *,
        http_handler: HttpHandler | None = None,
    ) -> None:
        self._listener = listener
        self._config = config or Config()
        self._http_handler = http_handler
        self._server: Server[Any] | None = None

    async def serve(self, handler: Callable[[Conn], Any], task_group: TaskGroup | None = None) -> None:
        """Accept connections, and call a function with each one that is open.

        :param handler: ``async def handler(conn)``. When it returns the connection is closed with 1000.
        :param task_group: run the handlers in this group: what one raises is raised there. Without it,
            what one raises is logged. In both cases it closes its own connection, with 1011.
        :raises RuntimeError: when this serves already

        Cancellation: peers get a Close with 1001, and handlers are cancelled, as by ``Server.listen``.
        """
        if self._server is not None:
            raise RuntimeError("this listener is serving already")
        parts = self._listener.listeners if isinstance(self._listener, MultiListener) else [self._listener]
        async with background() as tasks:
            listeners = [each if hasattr(each, "accept") else _Accepting(each, tasks) for each in parts]
            self._server = Server(
                FunctionFactory(_in_group(handler, task_group)), self._config, http_handler=self._http_handler
            )
            try:
                await self._server.listen(listeners=listeners)
            finally:
                self._server = None

    async def aclose(self) -> None:
        """Stop serving in order, as ``Server.stop`` does, and close the listener below."""
        if self._server is not None:
            self._server.stop()
            await self._server.wait_stopped()
        await self._listener.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes of the listener below."""
        return self._listener.extra_attributes


def _in_group(handler: Callable[[Conn], Any], task_group: TaskGroup | None) -> Callable[..., Any]:
    """Return a function that has a connection handled, in a task of its own or of a given group."""

    async def handle(conn: Conn) -> None:
        await handler(conn)

    async def handle_and_close(conn: Conn) -> None:
        async with conn:
            try:
                await handler(conn)
            except Exception:
                conn.close_nowait(CloseCode.INTERNAL_ERROR)
                raise

    async def hand_over(conn: Conn) -> None:
        assert task_group is not None
        task_group.start_soon(handle_and_close, conn)
        await conn.wait_gone()

    return handle if task_group is None else hand_over


class _Accepting:
    """Accepts one by one from a listener that only calls a function with each stream."""

    def __init__(self, listener: Listener[ByteStream], tasks: TaskGroup) -> None:
        self._listener = listener
        self._send, self._receive = anyio.create_memory_object_stream[ByteStream](0)
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        tasks.start_soon(self._serve)

    async def _serve(self) -> None:
        try:
            with self._scope, self._send:
                await self._listener.serve(self._hand_over)
        finally:
            self._ended.set()

    async def _hand_over(self, stream: ByteStream) -> None:
        try:
            await self._send.send(stream)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise

    async def accept(self) -> ByteStream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._scope.cancel()
        await self._ended.wait()
        self._receive.close()
        await self._listener.aclose()

    def extra(self, attribute: Any, default: Any) -> Any:
        return self._listener.extra(attribute, default)


class WebSocketConnectable(ObjectStreamConnectable["str | bytes"]):
    """Something that AnyIO programs can connect to: a WebSocket server.

    :param url: ``ws://`` or ``wss://``
    :param headers: further headers of the request
    :param subprotocols: the subprotocols to offer
    :param origin: the ``Origin``
    :param timeout: seconds for TCP, TLS and the opening handshake together
    :param config: the settings
    :param unix_path: connect to this Unix socket in place of the URL's host and port
    :raises ValueError: when the URL is none
    """

    def __init__(
        self,
        url: str,
        *,
        headers: HeadersLike = "",
        subprotocols: tuple[str, ...] | list[str] | None = None,
        origin: str | None = None,
        timeout: float = 10.0,
        config: ClientConfig | None = None,
        unix_path: str | Path | None = None,
    ) -> None:
        self._parts = parse_url(url)
        config = config or ClientConfig()
        self._config = replace(config, tls=config.tls or self._parts.secure)
        self._unix_path = unix_path
        self._timeout = timeout
        self._options: dict[str, Any] = {
            "headers": headers,
            "subprotocols": subprotocols,
            "origin": origin,
            "timeout": timeout,
        }

    async def connect(self) -> Client:
        """Connect, and return a connection that its user closes.

        :raises anyio.ConnectionFailed: when no connection comes about, whatever the cause: it has it as
            its ``__cause__``

        Cancellation: nothing stays open.
        """
        parts = self._parts
        try:
            with anyio.fail_after(self._timeout):
                client = await Client.connect(parts.host, parts.port, self._config, unix_path=self._unix_path)
                await client.handshake(parts.target, **self._options)
        except (OSError, HandshakeError) as exc:
            raise anyio.ConnectionFailed(str(exc) or type(exc).__name__) from exc
        return client
