"""RFC 9112: as much of HTTP/1.1 as an opening handshake needs, and no more.

``RequestReader`` and ``ResponseReader`` take bytes as they arrive and refuse at the earliest byte that
shows a fault. Strict: nothing is repaired, folded or guessed, because whatever two parsers read
differently is an attack on the one behind the other. What the headers *mean* for a WebSocket is the
business of ``handshake.py``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from .exceptions import HeaderPairs, InvalidRequest, InvalidResponse
from .framing import Buffers

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
_token = re.compile(TOKEN)
# What may never stand in a head, wherever: a control character, a bare LF, a bare CR (RFC 9112 §2.2).
_forbidden = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_bad_value = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_version = re.compile(r"HTTP/\d\.\d", re.IGNORECASE)
_target = re.compile(r"[!-\"$-~]+")  # visible ASCII except "#"
_NAME = r"[A-Za-z0-9\-._~!$&'()*+,;=]*"  # of a host, as far as nothing in it is percent-encoded
_host = re.compile(
    rf"(\[[0-9A-Fa-f:.]+\]|(?!:|\Z){_NAME}(?:%[0-9A-Fa-f]{{2}}{_NAME})*)(?::(\d{{0,5}}))?", re.ASCII
)
_status_line = re.compile(r"HTTP/1\.1 (\d{3})(?: (.*))?", re.DOTALL | re.ASCII)
_chunk = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r\n")
_length = re.compile(r"[0-9]{1,18}")

DEFAULT_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}


def is_token(text: object) -> bool:
    """Tell whether this is a token (RFC 9110 §5.6.2)."""
    return isinstance(text, str) and _token.fullmatch(text) is not None


def is_target(text: str) -> bool:
    """Tell whether a text is visible ASCII without ``#``, as a request target must be."""
    return _target.fullmatch(text) is not None


def is_field_value(text: object) -> bool:
    """Tell whether this is text without control characters but tabs, and trimmed (RFC 9110 §5.5)."""
    return isinstance(text, str) and not _bad_value.search(text) and text == text.strip(" \t")


def shown(value: object) -> str:
    """Show a peer's or a caller's value in an error: one line of ASCII, not too long."""
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


class Headers(MutableMapping[str, str]):
    """HTTP headers: names compare without case, values keep theirs, repeated names are kept.

    ``headers["accept"]`` joins the values of a repeated name with ``", "`` (RFC 9110 §5.3);
    :meth:`get_all` has them apart, and :meth:`pairs` everything in order. Setting a name or a value
    that would not survive the wire is a ``ValueError`` at once.
    """

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: HeaderPairs = ()) -> None:
        self._pairs: list[tuple[str, str]] = []
        self._index: dict[str, list[str]] | None = None  # by lower-case name, made when it is asked for
        if not isinstance(pairs, (tuple, list)):  # these are most, and soon told from the others
            pairs = pairs.pairs() if isinstance(pairs, Headers) else pairs
            pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
        for name, value in pairs:
            self.add(name, value)

    @classmethod
    def _received(cls, pairs: list[tuple[str, str]]) -> Headers:
        """Adopt pairs that the parser has checked."""
        headers = cls.__new__(cls)
        headers._pairs = pairs
        headers._index = None
        return headers

    def add(self, name: str, value: str) -> None:
        """Add a header, beside others of the same name.

        :raises ValueError: when the name is no token, or the value has a line break, another control
            character, white space at its ends, or a character outside ISO-8859-1
        """
        if not is_token(name):
            raise ValueError(f"header name: {shown(name)} is not a token (RFC 9110 §5.1)")
        if not is_field_value(value):
            raise ValueError(f"header {name}: the value is not a field value (RFC 9110 §5.5)")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(f"header {name}: the value is not ISO-8859-1") from None
        self._pairs.append((name, value))
        self._index = None

    def get_all(self, name: str) -> list[str]:
        """Return the values of all headers of that name, in order."""
        if self._index is None:
            self._index = {}
            for key, value in self._pairs:
                self._index.setdefault(key.lower(), []).append(value)
        return list(self._index.get(name.lower(), ()))

    def pairs(self) -> list[tuple[str, str]]:
        """Return all headers in order, repeated names included."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __setitem__(self, name: str, value: str) -> None:
        """Set a header, in place of all others of that name; raises like :meth:`add`."""
        self.add(name, value)
        pair = self._pairs.pop()
        self._remove(name)
        self._pairs.append(pair)
        self._index = None

    def __delitem__(self, name: str) -> None:
        if not self._remove(name):
            raise KeyError(name)

    def _remove(self, name: str) -> int:
        before = len(self._pairs)
        self._index = None
        self._pairs = [pair for pair in self._pairs if pair[0].lower() != name.lower()]
        return before - len(self._pairs)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.get_all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self._pairs))

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self._pairs})

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self)}>"  # names only: values may be secrets


class Request:
    """An HTTP request, as it was received.

    :ivar method: the method, in its own casing
    :ivar url: the request target, undecoded
    :ivar headers: the headers; see :class:`Headers`
    :ivar remote_address: where it came from: ``(host, port)``, or the path of a Unix socket
    """

    def __init__(
        self, method: str, url: str, headers: Headers, remote_address: tuple[str, int] | str = ""
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.remote_address = remote_address

    @property
    def raw_headers(self) -> bytes:
        r"""The header block with lower-case names, ``b"name: value\r\n..."``."""
        lines = [f"{name.lower()}: {value}\r\n" for name, value in self.headers.pairs()]
        return "".join(lines).encode("latin-1")

    @property
    def path(self) -> str:
        """The percent-decoded path of the target."""
        return unquote(_path_of(self.url).partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The decoded query parameters; of a repeated one the first."""
        pairs = parse_qsl(_path_of(self.url).partition("?")[2], keep_blank_values=True)
        return dict(reversed(pairs))

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name (RFC 6265 §4.2); of a repeated one the first."""
        pairs = [part.partition("=") for value in self.headers.get_all("cookie") for part in value.split(";")]
        return {name.strip(): value.strip().strip('"') for name, is_pair, value in reversed(pairs) if is_pair}

    @property
    def origin(self) -> str | None:
        """The ``Origin`` header: which page a browser acts for (RFC 6454 §7), ``None`` without one."""
        return self.headers.get("origin")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {shown(self.url.partition('?')[0])}>"


@dataclass(frozen=True)
class Response:
    """An HTTP response: what an ``http_handler`` returns, and what a client's reader received.

    :ivar status: the status code
    :ivar body: the body, whole; text is encoded as UTF-8
    :ivar headers: headers; ``Content-Length`` and ``Connection`` are added when it is built
    :ivar reason: the reason phrase; the standard one of the status when empty
    """

    status: int
    body: bytes | str = b""
    headers: HeaderPairs = ()
    reason: str = ""

    def __repr__(self) -> str:  # headers and body may be secrets
        return f"<Response {self.status} with a body of {len(self.body)}>"


# --- reading a head ---------------------------------------------------------------------------------


class _HeadReader:
    """Reads a head line by line; each byte is judged once, when it comes, however they are cut.

    :ivar rest: what came after the head
    :ivar started: whether anything has come
    """

    def __init__(self, max_size: int, max_headers: int, buffers: Buffers | None = None) -> None:
        self.rest: bytes = b""
        self.started: bool = False
        self._max_size = max_size
        self._max_headers = max_headers
        self._buffers = buffers
        self._buffer = bytearray()  # from self._buffers, unless it is empty
        self._end = 0  # how much of it is filled
        self._beyond = b""  # what came in one piece with the head's last byte, and is past max_size
        self._line = self._seen = 0  # where the present line begins, and how far it was looked at
        self._fresh = True  # no first line has come yet
        self._pairs: list[tuple[str, str]] = []

    def _read_head(self, data: bytes | bytearray | memoryview) -> bool:
        """Add bytes; return whether the head is complete."""
        self.started = self.started or len(data) > 0
        if not self._end and self._read_at_once(data):
            return True
        self._store(data)
        while True:
            line_feed = self._buffer.find(b"\n", self._seen, self._end)
            stop = line_feed + 1 or self._end
            start = max(self._seen - 1, self._line)
            if _forbidden.search(self._buffer, start, stop):
                raise self._malformed("a control character or a bare line end in the head")
            if line_feed < 0 and self._beyond:
                raise self._too_large()
            self._seen = stop
            if line_feed < 0:
                return False
            line = self._buffer[self._line : line_feed - 1].decode("latin-1")
            self._line = stop
            if not line and not self._fresh:
                self.rest = bytes(self._buffer[stop : self._end]) + self._beyond
                return True
            if self._fresh:
                self._fresh = self._first_line(line)
            else:
                self._take_header(line)

    def _read_at_once(self, data: bytes | bytearray | memoryview) -> bool:
        """Read a head that comes in one piece, if it is printable; leave any other untouched.

        Nearly all are such. They need no buffer, and no look for what may not stand in a head.
        """
        start = bytes(data[: self._max_size])
        end = start.find(b"\r\n\r\n")
        if end <= 0:
            return False
        lines = start[:end].decode("latin-1").split("\r\n")
        if not lines[0] or not "".join(lines).isprintable():
            return False
        self._fresh = self._first_line(lines[0])
        for line in lines[1:]:
            self._take_header(line)
        self._line = end + 4
        self.rest = bytes(data[end + 4 :])
        return True

    def _begin_again(self) -> bytes:
        """Read another head; return what came behind the last one, which it begins with."""
        self._max_size -= self._line
        self._release()
        self._end = self._line = self._seen = 0
        self._beyond = b""
        self._pairs, self._fresh = [], True
        return self._take_rest()

    def _take_rest(self) -> bytes:
        """Return what came after the head, for who reads on."""
        rest, self.rest = self.rest, b""
        return rest

    def _store(self, data: bytes | bytearray | memoryview) -> None:
        """Put bytes behind those that are there; no more are kept than the head may have."""
        room = self._max_size - self._end
        piece = data[:room]
        self._beyond += bytes(data[room:])
        start, self._end = self._end, self._end + len(piece)
        if self._buffers is None:
            self._buffer += piece
            return
        if self._end > len(self._buffer):
            larger = self._buffers.take(max(self._end, min(2 * start, self._max_size)))
            larger[:start] = self._buffer[:start]
            self._release()
            self._buffer = larger
        self._buffer[start : self._end] = piece

    def _release(self) -> None:
        """Give back what the head is kept in."""
        if self._buffer:
            if self._buffers is not None:
                self._buffers.give(self._buffer)
            self._buffer = bytearray()

    def _take_header(self, line: str) -> None:
        if len(self._pairs) == self._max_headers:
            raise self._too_many()
        # A folded line has no token before its colon, nor has a space there (RFC 9112 §5.1, §5.2).
        name, _, value = line.partition(":")
        if not _token.fullmatch(name) or len(name) == len(line):
            raise self._malformed("a header line is malformed")
        self._pairs.append((name.lower(), value.strip(" \t")))

    def _first_line(self, line: str) -> bool:
        """Take the first line; return whether it is still to come."""
        raise NotImplementedError

    def _malformed(self, detail: str) -> Exception:
        raise NotImplementedError

    def _too_large(self) -> Exception:
        raise NotImplementedError

    def _too_many(self) -> Exception:
        raise NotImplementedError


class IncompleteRequest(InvalidRequest):
    """The peer left, or ended its sending, before its request was complete."""


class RequestReader(_HeadReader):
    """Reads the head of a client's request (RFC 9112 §3).

    :param max_size: bytes of request line and headers, with the empty line
    :param max_headers: how many headers a request may have
    :param buffers: lends the memory that the head is collected in, until it is complete or refused;
        ``None`` for fresh memory
    """

    def __init__(self, max_size: int, max_headers: int, buffers: Buffers | None = None) -> None:
        super().__init__(max_size, max_headers, buffers)
        self._request_line = "", ""

    def feed(self, data: bytes | bytearray | memoryview) -> Request | None:
        """Take the bytes of one read; return the request when its head is complete.

        :raises InvalidRequest: as soon as a byte shows that the request is malformed or too large
        """
        try:
            if not self._read_head(data):
                return None
        except InvalidRequest:
            self.close()
            raise
        self.close()
        method, target = self._request_line
        headers = Headers._received(self._pairs)
        _check_message(headers)
        _check_host(headers, target)
        return Request(method, target, headers)

    def feed_eof(self) -> Request:
        """Take the end of the stream before the head is complete.

        :raises IncompleteRequest: always
        """
        self.close()
        raise IncompleteRequest(400, "the connection was closed before the request was complete")

    def close(self) -> None:
        """Give back what a request that will not be completed is kept in; twice does no harm."""
        self._release()

    def _first_line(self, line: str) -> bool:
        if not line and not self._seen > 2:  # one empty line may come first (RFC 9112 §2.2)
            return True
        self._request_line = _parse_request_line(line)
        return False

    def _malformed(self, detail: str) -> Exception:
        return InvalidRequest(400, detail)

    def _too_large(self) -> Exception:
        status, what = (414, "request line is") if self._fresh else (431, "headers are")
        return InvalidRequest(status, f"the {what} too long; {self._max_size} bytes are accepted")

    def _too_many(self) -> Exception:
        return InvalidRequest(431, f"too many headers; {self._max_headers} are accepted")


def _parse_request_line(line: str) -> tuple[str, str]:
    """Split the request line (RFC 9112 §3) and judge its parts."""
    parts = line.split(" ")
    if len(parts) != 3 or not _token.fullmatch(parts[0]) or not _version.fullmatch(parts[2]):
        raise InvalidRequest(400, "the request line is malformed")
    method, target, version = parts
    if version != "HTTP/1.1":
        raise InvalidRequest(505, "only HTTP/1.1 is spoken here")
    if method != "GET":  # §4.1: "The method of the request MUST be GET"
        raise InvalidRequest(405, "only GET is accepted", [("Allow", "GET")])
    if not _target.fullmatch(target) or not (target[0] == "/" or _authority_of(target)):
        raise InvalidRequest(400, "the request target is neither a path nor an absolute URL")
    return method, target


def _check_message(headers: Headers) -> None:
    """Refuse a request with a body: its bytes could be taken for frames (RFC 9112 §6, §11.2)."""
    if "transfer-encoding" in headers or headers.get_all("content-length") not in ([], ["0"]):
        raise InvalidRequest(400, "a request with a body is not accepted")


def _check_host(headers: Headers, target: str) -> None:
    """Demand exactly one valid ``Host``, the one of an absolute target if it is one (RFC 9112 §3.2)."""
    hosts = headers.get_all("host")
    if len(hosts) != 1:
        raise InvalidRequest(400, "exactly one Host header is needed")
    if not is_host(hosts[0]):
        raise InvalidRequest(400, "the Host header is malformed")
    if target[0] != "/" and _authority_of(target).lower() != hosts[0].lower():
        raise InvalidRequest(400, "the request target and the Host header name different hosts")


def split_host(value: str, default_port: int) -> tuple[str, int] | None:
    """Split ``host[:port]`` into lower-case host and port, ``None`` if it is malformed (RFC 3986 §3.2)."""
    match = _host.fullmatch(value)
    if match is None or int(match[2] or 0) > 65535:
        return None
    if match[1].startswith("["):
        try:
            ipaddress.IPv6Address(match[1][1:-1])
        except ValueError:
            return None
    return match[1].lower(), int(match[2] or default_port)


def is_host(value: str) -> bool:
    """Tell whether a text may be the value of a ``Host`` header."""
    return split_host(value, 0) is not None


def _authority_of(target: str) -> str:
    """Return the authority of an absolute-form target, ``""`` if it is none (RFC 9112 §3.2.2)."""
    scheme, is_absolute, rest = target.partition("://")
    if not is_absolute or scheme.lower() not in DEFAULT_PORTS:
        return ""
    return re.split(r"[/?]", rest, maxsplit=1)[0]


def _path_of(target: str) -> str:
    """Return path and query of a target of either form."""
    if target.startswith("/"):
        return target
    rest = target.partition("://")[2][len(_authority_of(target)) :]
    return rest if rest.startswith("/") else "/" + rest


class ResponseReader(_HeadReader):
    """Reads a server's response: its head, and a limited body when the status is not 101.

    :param max_size: bytes of status line and headers, interim responses included
    :param max_headers: how many headers a response may have
    :param max_body: bytes of the body that are kept; what is longer is cut off
    """

    def __init__(self, max_size: int = 16_384, max_headers: int = 128, max_body: int = 65_536) -> None:
        super().__init__(max_size, max_headers)
        self._max_body = max_body
        self._status, self._reason = 0, ""
        self._body: _Body | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> Response | None:
        """Take the bytes of one read; return the response when it is complete.

        :raises InvalidResponse: as soon as a byte shows that the response is malformed or too large
        """
        if self._body is None:
            if not self._read_final_head(data):
                return None
            if self._status == 101:
                return self._response(b"")
            self._body = _Body(self._status, Headers._received(self._pairs), self._max_body)
            data = self._take_rest()
        self._body.feed(bytes(data))
        return self._response(self._body.data) if self._body.complete else None

    def feed_eof(self) -> Response:
        """Take the end of the stream; it may be what ends the body.

        :raises InvalidResponse: when the head is not complete
        """
        if self._body is None:
            raise InvalidResponse("the server closed the connection before it answered the opening handshake")
        return self._response(self._body.data)

    def _read_final_head(self, data: bytes | bytearray | memoryview) -> bool:
        """Read heads until one is final; interim ones count towards the size (RFC 9110 §15.2)."""
        while self._read_head(data):
            if self._status == 101 or self._status >= 200:
                return True
            data = self._begin_again()
        return False

    def _first_line(self, line: str) -> bool:
        match = _status_line.fullmatch(line)
        if match is None:
            raise InvalidResponse("the status line is malformed, or not of HTTP/1.1")
        self._status, self._reason = int(match[1]), match[2] or ""
        return False

    def _response(self, body: bytes | bytearray) -> Response:
        headers = Headers._received(self._pairs)
        return Response(self._status, bytes(body[: self._max_body]), headers, self._reason)

    def _malformed(self, detail: str) -> Exception:
        return InvalidResponse(detail)

    def _too_large(self) -> Exception:
        return InvalidResponse("the response's head is too long")

    def _too_many(self) -> Exception:
        return InvalidResponse("the response has too many headers")


class _Body:
    """Collects a body as its head delimits it, up to a limit (RFC 9112 §6.3, §7.1).

    :ivar data: the content so far, at most a few bytes more than the limit
    :ivar complete: whether nothing more is wanted: it is all there, over the limit, or malformed
    """

    def __init__(self, status: int, headers: Headers, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit
        self._chunked = "transfer-encoding" in headers
        self._line = b""  # the start of the line that tells a chunk's size
        length = headers.get("content-length", "")
        # How many bytes of content come next; -1 is all until the end of the stream.
        self._left = int(length) if _length.fullmatch(length) else -1
        if self._chunked:
            self._left = 0
        self._ends_chunk = False
        self.complete = status in (204, 304) or (self._left == 0 and not self._chunked)

    def feed(self, data: bytes) -> None:
        """Take bytes; each is looked at once."""
        position = 0
        while position < len(data) and not self.complete:
            if self._left:
                room = self._limit + 1 - len(self.data)
                end = position + (room if self._left < 0 else min(self._left, room))
                piece = data[position:end]
                self.data += piece
                position += len(piece)
                self._left -= len(piece) if self._left > 0 else 0
                self._ends_chunk = self._chunked
                finished = self._left == 0 and not self._chunked
                self.complete = finished or len(self.data) > self._limit
            else:
                self._line += data[position : position + 1]
                position += 1
                self._read_line()

    def _read_line(self) -> None:
        """Read the line end that ends a chunk, or the line that tells the size of the next."""
        if self._ends_chunk:
            if self._line == b"\r\n":
                self._line, self._ends_chunk = b"", False
            self.complete = not b"\r\n".startswith(self._line)
        elif self._line.endswith(b"\n") or len(self._line) > 1_000:
            match = _chunk.fullmatch(self._line)
            self._left = int(match[1], 16) if match else 0
            self.complete = not self._left
            self._line = b""


# --- building a message -----------------------------------------------------------------------------


def build_response(response: Response, *, date: str = "") -> bytes:
    """Build a response that is not a 101; the connection ends with it.

    :param response: status, headers and body
    :param date: the value of the ``Date`` header, none when empty
    :raises ValueError: when the reason phrase or a header would not survive the wire, or a header is
        one that is written here
    """
    if not 200 <= response.status <= 599:
        raise ValueError(f"status: a response has 200 to 599, not {response.status}")
    headers = Headers(response.headers)
    refuse_reserved(headers)
    body = response.body.encode() if isinstance(response.body, str) else response.body
    if body and "content-type" not in headers:
        headers["Content-Type"] = "text/plain; charset=utf-8"
    if date:
        headers["Date"] = date
    pairs = headers.pairs()
    if response.status in (204, 304):  # they have no body, and do not say how long it is (RFC 9110 §8.6)
        if body:
            raise ValueError(f"body: a response with status {response.status} has none")
    else:
        pairs.append(("Content-Length", str(len(body))))
    pairs.append(("Connection", "close"))
    return build_head(_status_line_of(response.status, response.reason), pairs) + body


def build_refusal(refusal: InvalidRequest, *, date: str = "") -> bytes:
    """Build the response that tells a client what was wrong with its request."""
    status = HTTPStatus(refusal.status)
    body = f"{status.value} {status.phrase}: {refusal.detail}\n"
    headers = [*refusal.headers]
    if status == HTTPStatus.UPGRADE_REQUIRED:  # RFC 9110 §15.5.22 demands both headers
        pairs = [*headers, ("Upgrade", "websocket"), ("Connection", "Upgrade, close")]
        pairs += [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        pairs += [("Date", date)] if date else []
        return build_head(_status_line_of(426, ""), pairs) + body.encode()
    return build_response(Response(refusal.status, body, headers), date=date)


def _status_line_of(status: int, reason: str) -> str:
    if not reason:
        reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
    if _bad_value.search(reason) or not reason.isascii():
        raise ValueError("reason: a reason phrase is visible ASCII and spaces (RFC 9112 §4)")
    return f"HTTP/1.1 {status:03} {reason}"


def build_head(first_line: str, pairs: Iterable[tuple[str, str]]) -> bytes:
    """Build the head of a request or response from checked parts (RFC 9112 §2.1)."""
    lines = [first_line, *(f"{name}: {value}" for name, value in pairs), "", ""]
    return "\r\n".join(lines).encode("latin-1")


# Headers that are written here; a caller's would contradict them (RFC 6455 §4.1, §4.2.2).
_RESERVED = frozenset({"upgrade", "connection", "content-length", "transfer-encoding"})


def refuse_reserved(headers: Headers) -> None:
    """Refuse headers of a caller that would contradict ours.

    :raises ValueError: naming the header
    """
    for name in headers:
        if name in _RESERVED or name.startswith("sec-websocket-"):
            raise ValueError(f"header {name}: it is written by the handshake itself")
