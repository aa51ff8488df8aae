"""The settings of a server and of a client: frozen, validated where they are made.

Every limit is finite by default. Durations are seconds, sizes are bytes. A value that cannot work is a
``ValueError`` that names the field; a field that does not exist is a ``TypeError`` of Python's own.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from .buffers import BufferPool
from .deflate import Compression
from .http11 import is_token


def _check_timeout(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}: a positive, finite number of seconds is needed, not {value!r}")


def _check_type(name: str, value: object, kinds: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, kinds) or value == "":
        raise ValueError(f"{name}: {what} is needed, not {value!r}")


def _check_int(name: str, value: object, least: int, most: int = 2**62) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"from {least} to {most}" if most < 2**62 else f"of at least {least}"
        raise ValueError(f"{name}: a whole number {bounds} is needed, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class _ConnectionConfig:
    """What both ends of a connection have in common.

    :ivar utf8: ``"strict"`` checks received text and delivers ``str``; ``"off"`` delivers it unchecked,
        as ``bytes``
    :ivar ping_interval: seconds between keepalive pings; ``None`` sends none
    :ivar ping_timeout: seconds after a keepalive ping in which something must be received from the
        peer; otherwise the connection is aborted with 1006
    :ivar close_timeout: seconds in which the peer must answer our Close; also how long the answer to
        the peer's Close may wait for messages that came before it to be handled
    :ivar write_timeout: seconds in which the peer must take 64 KiB of what is written to it; a peer
        that does not read is cut off then
    :ivar inbox_size: bytes of received messages that may wait to be handled; at this mark the socket is
        not read any more until half of them are
    :ivar outbox_size: bytes that may wait to be sent; above this mark writing waits
    :ivar max_control_rate: control frames (Ping, Pong) that the peer may send in a second; more of them fail
        the connection with 1008. ``None`` answers as many as come
    :ivar message_view: hand binary messages to ``client_message`` and ``handle`` as a ``memoryview`` of
        the buffer that they were received into, without a copy. It is valid only until that call
        returns, and a ``ValueError`` after that. ``receive()``, ``read()`` and iteration give ``bytes``
        as ever.
    :ivar subprotocols: the subprotocols, in order of preference: those a server speaks, of which it
        chooses the first that the client offers; those a client offers
    :ivar compression: how messages are compressed where the peer agrees (RFC 7692); ``None`` to neither
        offer nor accept it
    """

    utf8: Literal["strict", "off"] = "strict"
    ping_interval: float | None = 20.0
    ping_timeout: float = 20.0
    close_timeout: float = 5.0
    write_timeout: float = 20.0
    inbox_size: int = 32_768
    outbox_size: int = 65_536
    max_control_rate: int | None = 10_000
    message_view: bool = False
    subprotocols: Sequence[str] = ()
    compression: Compression | None = field(default_factory=Compression)

    def __post_init__(self) -> None:
        if self.utf8 not in ("strict", "off"):
            raise ValueError(f'utf8: "strict" or "off" is needed, not {self.utf8!r}')
        for name in (f.name for f in fields(self)):
            if name.endswith(("_timeout", "_interval")) and (value := getattr(self, name)) is not None:
                _check_timeout(name, value)
        for name in ("ping_timeout", "close_timeout", "write_timeout"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: a number of seconds is needed; every wait has an end")
        _check_int("inbox_size", self.inbox_size, 1)
        _check_int("outbox_size", self.outbox_size, 0)
        if self.max_control_rate is not None:
            _check_int("max_control_rate", self.max_control_rate, 1)
        _check_type("message_view", self.message_view, bool, "True or False")
        object.__setattr__(self, "subprotocols", _checked_subprotocols(self.subprotocols))
        _check_type("compression", self.compression, (Compression, type(None)), "a Compression or None")


def _checked_subprotocols(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(map(is_token, value)):
        raise ValueError(f"subprotocols: a sequence of tokens is needed, not {value!r}")
    if len(set(value)) != len(value):
        raise ValueError(f"subprotocols: one is named twice in {value!r}")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class HandshakeConfig:
    """A server's limits on the opening handshake.

    The origin of this design allows 1,024 bytes and keeps no headers; browsers with cookies need more.

    :ivar timeout: seconds from the accepted connection to the 101, TLS and ``init`` included; then 408
    :ivar max_size: bytes of request line and headers; more is answered with 414 or 431
    :ivar max_headers: how many headers a request may have; more is answered with 431
    :ivar count: how many buffers of *max_size* bytes are kept for requests; each is held by a request
        that does not arrive whole, until it is complete. One that finds none is collected in fresh memory.
    """

    timeout: float = 10.0
    max_size: int = 8_192
    max_headers: int = 100
    count: int = 32

    def __post_init__(self) -> None:
        _check_timeout("handshake.timeout", self.timeout)
        _check_int("handshake.max_size", self.max_size, 128)
        _check_int("handshake.max_headers", self.max_headers, 5)
        _check_int("handshake.count", self.count, 0)


@dataclass(frozen=True, kw_only=True)
class BuffersConfig:
    """Where a server keeps messages that do not arrive whole; those that do need no storage.

    A message that finds no buffer of its size is kept in fresh memory: nobody waits for a buffer.
    ``server.statistics().buffers`` tells how often.

    :ivar pool: ``None`` gives each connection a buffer of its own, made for the first message that needs
        it. A number gives all connections together so many, each held only while a message is
        incomplete: much less memory where many connections are idle.
    :ivar size: bytes of each of these buffers
    :ivar large_count: how many buffers there are for longer messages, shared by all connections
    :ivar large_size: bytes of each of those; ``None`` is twice *size*. More than ``max_message_size`` is
        of no use, and is that.
    """

    pool: int | None = None
    size: int = 2_048
    large_count: int = 8
    large_size: int | None = None

    def __post_init__(self) -> None:
        if self.pool is not None:
            _check_int("buffers.pool", self.pool, 1)
        _check_int("buffers.size", self.size, 1)
        _check_int("buffers.large_count", self.large_count, 0)
        if self.large_size is not None:
            _check_int("buffers.large_size", self.large_size, self.size)


@dataclass(frozen=True, kw_only=True)
class ThreadPoolConfig:
    """The worker threads of a blocking server, and the scratch memory of any server.

    :ivar count: how many ``def`` hooks run at one time, with ``Config(blocking=True)``
    :ivar backlog: how many received messages may wait for their hook in a worker process, with
        ``Config(blocking=True)``; while they are so many no socket is read, so that the peers wait
    :ivar buffer_size: bytes of a ``scratch``'s reusable buffer, in any mode
    """

    count: int = 4
    backlog: int = 500
    buffer_size: int = 32_768

    def __post_init__(self) -> None:
        _check_int("thread_pool.count", self.count, 1)
        _check_int("thread_pool.backlog", self.backlog, 1)
        _check_int("thread_pool.buffer_size", self.buffer_size, 1)


@dataclass(frozen=True, kw_only=True)
class Config(_ConnectionConfig):
    """A server's settings; the fields of both ends come first.

    :ivar port: the TCP port; 0 lets the system choose one
    :ivar address: the address or host name to bind; a name binds all its addresses
    :ivar unix_path: the path of a Unix socket, used in place of address and port
    :ivar worker_count: worker processes that share the port, when the server is started by :func:`run`
    :ivar backlog: connections that may wait to be accepted
    :ivar max_conn: connections at one time, of each worker; further ones wait in the backlog
    :ivar max_message_size: bytes of a received message; a longer one fails the connection with 1009
        before memory is taken for it
    :ivar handshake: limits on the opening handshake
    :ivar buffers: the storage for messages that do not arrive whole
    :ivar blocking: run ``def`` hooks, a ``def`` ``http_handler`` and ``__init__`` in worker threads, where
        they may block and write with ``conn.from_thread``; ``async def`` hooks run in the event loop as ever.
        A thread cannot be stopped from outside: when the server is cancelled a hook has
        ``close_timeout`` seconds left, and is left behind after that.
    :ivar thread_pool: those threads, and how much may wait for them
    :ivar shutdown_timeout: seconds that connections have to end in order when the server stops
    :ivar origins: the origins of pages that may connect, such as ``["https://example.com"]``; ``"*"``
        is all of them, ``None`` only pages of the host that they connect to. Programs other than
        browsers send no ``Origin`` and are not concerned.
    :ivar tls: serve TLS with this context
    """

    port: int = 9882
    address: str = "127.0.0.1"
    unix_path: str | Path | None = None
    worker_count: int = 1
    backlog: int = 2_048
    max_conn: int = 16_384
    max_message_size: int = 65_536
    handshake: HandshakeConfig = field(default_factory=HandshakeConfig)
    buffers: BuffersConfig = field(default_factory=BuffersConfig)
    blocking: bool = False
    thread_pool: ThreadPoolConfig = field(default_factory=ThreadPoolConfig)
    shutdown_timeout: float = 10.0
    origins: Sequence[str] | None = None
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_int("port", self.port, 0, 65_535)
        _check_type("address", self.address, str, "an address or host name")
        _check_type("unix_path", self.unix_path, (str, Path, type(None)), "a path")
        path = str(self.unix_path or "")
        if len(path.encode()) > 107 or "\0" in path:
            raise ValueError("unix_path: a socket address holds at most 107 bytes, none of them NUL")
        _check_int("worker_count", self.worker_count, 1)
        _check_int("backlog", self.backlog, 1)
        _check_int("max_conn", self.max_conn, 1)
        _check_int("max_message_size", self.max_message_size, 1)
        _check_type("handshake", self.handshake, HandshakeConfig, "a HandshakeConfig")
        _check_type("buffers", self.buffers, BuffersConfig, "a BuffersConfig")
        _check_type("blocking", self.blocking, bool, "True or False")
        _check_type("thread_pool", self.thread_pool, ThreadPoolConfig, "a ThreadPoolConfig")
        if self.shutdown_timeout is None:
            raise ValueError("shutdown_timeout: a number of seconds is needed; every wait has an end")
        if self.origins is not None:
            _check_type("origins", self.origins, (str, Sequence), "a sequence of origins")
            origins = (self.origins,) if isinstance(self.origins, str) else tuple(self.origins)
            object.__setattr__(self, "origins", origins)
            for origin in origins:
                _check_origin(origin)
        _check_type("tls", self.tls, (ssl.SSLContext, type(None)), "an ssl.SSLContext or None")


def _check_origin(origin: object) -> None:
    if origin == "*" or origin == "null":
        return
    scheme, is_origin, rest = origin.partition("://") if isinstance(origin, str) else ("", "", "")
    if not (scheme and is_origin and rest) or "/" in rest or origin != str(origin).lower():
        raise ValueError(f'origins: {origin!r} is no origin; write it like "https://example.com"')


@dataclass(frozen=True, kw_only=True)
class ClientConfig(_ConnectionConfig):
    """A client's settings; the fields of both ends come first.

    :ivar max_size: bytes of a received message; a longer one fails the connection with 1009 before
        memory is taken for it
    :ivar buffer_size: bytes of the connection's own buffer, in which a message that does not arrive whole
        is collected: with as many as *max_size* no message takes further memory. Also the bytes that the
        request of the opening handshake may have.
    :ivar buffer_provider: lends buffers for longer messages; many clients may share one. See
        :func:`buffer_provider`.
    :ivar handle_ping: hand pings to the read loop's handler; nothing answers them then but the handler
    :ivar handle_pong: hand pongs to the read loop's handler
    :ivar handle_close: hand the peer's Close to the read loop's handler; nothing answers it then but
        the handler
    :ivar tls: ``True`` for TLS with verified certificates, or an ``ssl.SSLContext``
    :ivar ca_bundle: certificates to trust in place of the system's: a path, PEM or DER bytes, or a
        context
    """

    max_size: int = 65_536
    buffer_size: int = 4_096
    buffer_provider: BufferPool | None = None
    handle_ping: bool = False
    handle_pong: bool = False
    handle_close: bool = False
    tls: bool | ssl.SSLContext = False
    ca_bundle: str | Path | bytes | ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_int("max_size", self.max_size, 1)
        _check_int("buffer_size", self.buffer_size, 256)
        kinds = (BufferPool, type(None))
        _check_type("buffer_provider", self.buffer_provider, kinds, "what buffer_provider() makes, or None")
        _check_type("tls", self.tls, (bool, ssl.SSLContext), "True, False or an ssl.SSLContext")
        for name in ("handle_ping", "handle_pong", "handle_close"):
            _check_type(name, getattr(self, name), bool, "True or False")
        sources = (str, Path, bytes, ssl.SSLContext, type(None))
        _check_type("ca_bundle", self.ca_bundle, sources, "a path, bytes or an ssl.SSLContext")
        if isinstance(self.tls, ssl.SSLContext) and self.ca_bundle is not None:
            raise ValueError("ca_bundle: it has no effect beside a context in tls; load it into that")

    @property
    def max_message_size(self) -> int:
        """The server's name for :attr:`max_size`, which both ends share."""
        return self.max_size


def buffer_provider(count: int, size: int) -> BufferPool:
    """Make a pool of buffers for ``ClientConfig(buffer_provider=...)``, to be shared by many clients.

    A message that does not arrive whole and is longer than its connection's ``buffer_size`` is collected
    in one of them. While none is left, and for a message longer than *size*, fresh memory is taken. It
    may be used in several threads and event loops; its ``statistics()`` tell how it is used.

    :param count: how many buffers there may be; they are made when they are needed
    :param size: bytes of each
    :raises ValueError: when one of them is not a whole number of at least 1
    """
    _check_int("count", count, 1)
    _check_int("size", size, 1)
    return BufferPool(count, size)
