"""What a fuzzer may throw at the Python side: each target takes bytes, and fails when a promise is broken.

The promises: nothing but the documented errors is raised, cuts make no difference, both builds of the
framing agree, what comes out of a decompressor is bounded, and a connection sends nothing but correct
frames and comes to an end, whatever its peer and its user do.

``python -m tests.fuzz`` has atheris make the bytes; ``tests/test_fuzz.py`` runs the corpus without it.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import anyio

from anyio_ws import _framing_py
from anyio_ws.conn import Conn
from anyio_ws.deflate import Compression, Inflater, accept, negotiate
from anyio_ws.exceptions import (
    ConnectionClosed,
    HandshakeError,
    InvalidRequest,
    LocalProtocolError,
    RemoteProtocolError,
)
from anyio_ws.framing import MessageReader
from anyio_ws.handshake import (
    accept as accept_handshake,
)
from anyio_ws.handshake import (
    check_origin,
    check_request,
    check_response,
    parse_extensions,
    parse_header_block,
    parse_url,
)
from anyio_ws.http11 import Headers, Request, RequestReader, Response, ResponseReader, split_host
from anyio_ws.testing import WireOracle, build_frame, settle, virtual_clock

from ..support import KEY, Peer, open_end
from . import builds
from .lanes import lane
from .source import Source

_MAX_SIZE = 1_024
_MAX_HEADERS = 12
_MAX_BODY = 200
_COMPRESSION = Compression()
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)
_DOCUMENTED = (ConnectionClosed, LocalProtocolError, ValueError, TimeoutError, anyio.BusyResourceError)


def request(data: bytes) -> None:
    """Read the request of a client, whole and in pieces, and judge it."""
    source = Source(data)
    pieces = source.pieces()
    whole, said = _read_request([b"".join(pieces)]), _read_request(pieces)
    assert _shape(whole) == _shape(said), (whole, said)
    if not isinstance(whole, Request):
        return
    repr(whole), whole.path, whole.query, whole.cookies, whole.origin, whole.raw_headers
    try:
        handshake = check_request(whole)
        check_origin(whole, None)
        agreed = negotiate(handshake.extensions, _COMPRESSION)
        answer = accept_handshake(handshake, agreed[1] if agreed else "")
    except InvalidRequest:
        return
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), answer
    assert not rest, answer
    assert head.count(b"\n") == head.count(b"\r\n"), answer


def _read_request(pieces: list[bytes]) -> Request | InvalidRequest | None:
    reader = RequestReader(_MAX_SIZE, _MAX_HEADERS)
    try:
        for piece in pieces:
            found = reader.feed(piece)
            if found is not None:
                return found
    except InvalidRequest as exc:
        return exc
    return None


def response(data: bytes) -> None:
    """Read the response of a server, whole and in pieces, and judge it."""
    source = Source(data)
    pieces = source.pieces()
    whole, said = _read_response([b"".join(pieces)]), _read_response(pieces)
    assert _shape(whole) == _shape(said), (whole, said)
    if isinstance(whole, Response):
        assert len(whole.body) <= _MAX_BODY
        try:
            answer = check_response(whole, KEY, ["chat"])
            accept(answer.extensions, _COMPRESSION)
        except HandshakeError as exc:
            str(exc), repr(exc)


def _read_response(pieces: list[bytes]) -> Response | HandshakeError | None:
    reader = ResponseReader(_MAX_SIZE, _MAX_HEADERS, _MAX_BODY)
    try:
        for piece in pieces:
            found = reader.feed(piece)
            if found is not None:
                return found
        return reader.feed_eof()
    except HandshakeError as exc:
        return exc


def _shape(found: Any) -> object:
    """Return what must not depend on the cuts."""
    if isinstance(found, Request):
        return found.method, found.url, found.headers.pairs()
    if isinstance(found, Response):
        return found.status, list(Headers(found.headers).pairs()), found.body
    return found and (type(found), str(found))


def header(data: bytes) -> None:
    """Parse a value of each header and each address that has a grammar."""
    text = data.decode("latin-1")
    try:
        extensions = parse_extensions(Headers([("Sec-WebSocket-Extensions", text)]))
    except (InvalidRequest, ValueError):
        extensions = []
    agreed = negotiate(extensions, _COMPRESSION)
    if agreed is not None:
        # A client that has offered everything must be content with our answer.
        answer = parse_extensions(Headers([("Sec-WebSocket-Extensions", agreed[1])]))
        assert [each.name for each in answer] == ["permessage-deflate"], agreed
        assert all(8 <= bits <= 15 for bits in agreed[0][2:]), agreed
    with contextlib.suppress(HandshakeError):
        accept(extensions, _COMPRESSION)
    split_host(text, 80)
    for parse in (parse_url, parse_header_block):
        try:
            parse(text)
        except ValueError as exc:
            str(exc)


def frames(data: bytes) -> None:
    """Read a stream of frames, as either role, with both builds of the framing."""
    source = Source(data)
    flags = source.byte()
    options = builds.Options(
        masked=bool(flags & 1),
        max_message_size=[20, 300, 5_000, 70_000][flags >> 1 & 3],
        utf8=bool(flags & 8),
        view=bool(flags & 16),
        compression=bool(flags & 32),
        spare=None if flags & 64 else flags >> 7,
    )
    pieces = source.pieces()
    said = builds.read(_framing_py, options, pieces)
    assert said.raised is None, said
    assert said.code in (None, 1002, 1007, 1008, 1009), said  # 1008: too many final blocks
    if MessageReader.__module__ != _framing_py.__name__:
        from anyio_ws import _framing_c

        assert builds.read(_framing_c, options, pieces) == said
    whole = builds.read(_framing_py, options, [b"".join(pieces)])
    # Cuts decide which buffers are needed, and of two faults in a message which one is seen first.
    assert whole.messages == said.messages
    assert (whole.code is None) == (said.code is None), (whole, said)


def deflate(data: bytes) -> None:
    """Inflate a message, whole and in pieces; its size is bounded whatever it says."""
    source = Source(data)
    limit = 10 ** (source.byte() % 6)
    takeover = bool(source.byte() & 1)
    pieces = source.pieces()
    whole, said = _inflate([b"".join(pieces)], limit, takeover), _inflate(pieces, limit, takeover)
    # A message that is too long and then not valid may be refused for either, but never accepted.
    assert whole == said or {type(whole), type(said)} == {str}, (whole, said)


def _inflate(pieces: list[bytes], limit: int, takeover: bool) -> bytes | str:
    inflater, out = Inflater(takeover, 15), b""
    try:
        for piece in pieces:
            out += inflater.inflate(piece, limit - len(out))
            if len(out) > limit:
                assert len(out) == limit + 1
                return "too long"
        assert inflater.finish(limit - len(out)) == b""
    except RemoteProtocolError as exc:
        return f"{exc.code}"
    return out


# --- a whole connection -------------------------------------------------------------------------------


class _Errors(logging.Handler):
    """Keeps what the package logs as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def connection(data: bytes) -> None:
    """Follow a script of what the peer sends and the user calls, on a clock that jumps."""
    source = Source(data)
    flags = source.byte()
    backend = "trio" if flags & 1 else "asyncio"
    errors = _Errors()
    logger = logging.getLogger("anyio_ws")
    logger.addHandler(errors)
    try:
        anyio.run(_follow, source, flags, backend=backend, backend_options=virtual_clock(backend))
    finally:
        logger.removeHandler(errors)
    assert not errors.records, [record.getMessage() for record in errors.records]


async def _follow(source: Source, flags: int) -> None:
    role = "client" if flags & 2 else "server"
    deflated = bool(flags & 4) and role == "server"
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate"} if deflated else None
    capacity = 30_000 if flags & 8 else math.inf
    oracle = WireOracle(masked=role == "client", deflate=deflated)
    limit: dict[str, Any] = {"max_size" if role == "client" else "max_message_size": 5_000}
    async with open_end(role, capacity, headers, **limit) as (conn, peer):
        script = _Script(source, conn, peer, oracle)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(script.listen)
            await script.run(tasks)
            await settle()
            if not source.byte() & 1:
                await script.ignoring(conn.close())
            else:
                await peer.stream.aclose()
            await conn.wait_gone()
            assert conn.is_closed
            tasks.cancel_scope.cancel()
    assert oracle.violation is None, oracle.violation
    if conn.close_code != 1006 and not script.cut:
        oracle.check()


class _Script:
    """What both ends of a connection do, step by step."""

    def __init__(self, source: Source, conn: Conn, peer: Peer, oracle: WireOracle) -> None:
        self.source = source
        self.conn = conn
        self.peer = peer
        self.oracle = oracle
        self.cut = False
        """Whether somebody has cut the connection."""

    async def listen(self) -> None:
        """Judge all that the connection sends."""
        self.oracle.feed(self.peer.received)
        with contextlib.suppress(anyio.EndOfStream, *_GONE):
            while True:
                self.oracle.feed(await self.peer.stream.receive())

    async def run(self, tasks: anyio.abc.TaskGroup) -> None:
        """Take the steps; a step that waits goes on beside the others."""
        for step in self._steps():
            tasks.start_soon(self.ignoring, step)
            await settle()

    async def ignoring(self, step: Any) -> None:
        """Take a step; the documented errors are fine."""
        with contextlib.suppress(*_DOCUMENTED):
            await step

    def _steps(self) -> Iterator[Any]:
        kinds: list[Callable[[], Any]] = [
            self._raw,
            self._frame,
            self._write,
            self._write_frame,
            self._receive,
            self._read_and_cancel,
            self._ping,
            self._close,
            self._wait,
            self._leave,
        ]
        count = 0
        while not self.source.is_empty and count < 40:
            count += 1
            yield kinds[self.source.byte() % len(kinds)]()

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(*_GONE):
            await self.peer.send(data)

    def _raw(self) -> Any:
        return self._send(self.source.take(self.source.byte() % 64))

    def _frame(self) -> Any:
        first, size = self.source.byte(), self.source.byte()
        payload = self.source.take(size % 64) * (200 if size > 250 else 1)
        key = b"mask" if self.oracle._masked is False else None
        return self._send(build_frame(first % 16, payload, fin=first < 200, rsv=first >> 4 & 4, key=key))

    def _write(self) -> Any:
        size = self.source.byte()
        data = self.source.take(size % 32) * (2_000 if size > 240 else 1)
        return self.conn.write(data.decode("latin-1")) if size & 1 else self.conn.write_bin(data)

    def _write_frame(self) -> Any:
        first = self.source.byte()
        # A raw fragment's UTF-8 is its writer's to answer for: a character may be cut in two.
        payload = bytes(byte & 0x7F for byte in self.source.take(first >> 4))
        return self.conn.write_frame(first % 16, payload, fin=first < 200)

    def _receive(self) -> Any:
        return self.conn.receive()

    async def _read_and_cancel(self) -> None:
        with anyio.move_on_after(self.source.byte() % 4):
            await self.conn.read(timeout=2)

    def _ping(self) -> Any:
        return self.conn.ping()

    def _close(self) -> Any:
        code = self.source.byte() * 20
        return self.conn.close(code, "reason") if code % 3 else self.conn.send_eof()

    def _wait(self) -> Any:
        return anyio.sleep(self.source.byte() % 50)

    async def _leave(self) -> None:
        self.cut = True
        how = self.source.byte() % 3
        if how == 0:
            self.conn.abort()
        elif how == 1:
            await self.peer.stream.send_eof()
        else:
            await self.peer.stream.aclose()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (request, response, header, frames, deflate, connection, lane)
}
