"""RFC 9112, as much as an opening handshake needs: what is read, what is refused where, what is built.

Every head goes in whole, byte by byte and cut in two at every place, and the outcome must be the same
each time: ``judge`` does so for a request, ``hear`` for a response. What is built is read back by the
reader of the other end.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws.exceptions import HeaderPairs, InvalidRequest, InvalidResponse
from anyio_ws.http11 import (
    Headers,
    Request,
    RequestReader,
    Response,
    ResponseReader,
    build_head,
    build_refusal,
    build_response,
    is_field_value,
    is_host,
    is_target,
    is_token,
    refuse_reserved,
    shown,
    split_host,
)

from .frames import cut

Pairs = list[tuple[str, str]]

MAX_SIZE, MAX_HEADERS = 8_192, 100  # the defaults of a server
LARGE = 100_000  # bytes; work that is not linear in them would be noticed

# RFC 9110 §5.6.2 and RFC 5234 §B.1, spelled out.
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTROLS = [bytes([byte]) for byte in (*range(0x20), 0x7F) if byte not in b"\t\r\n"]

# --- giving bytes to a reader -----------------------------------------------------------------------


class Read(NamedTuple):
    """A request that was accepted."""

    method: str
    url: str
    headers: Pairs
    rest: bytes
    """What came after the head."""
    judged: Any
    """What a further check made of it."""


class Refused(NamedTuple):
    """A request that was not accepted."""

    status: int
    detail: str
    headers: tuple[tuple[str, str], ...]


class Answer(NamedTuple):
    """A response that was read."""

    status: int
    reason: str
    headers: Pairs
    body: bytes
    rest: bytes
    at_end: bool
    """Whether it took the end of the stream to complete it."""


def deliveries(data: bytes) -> Iterator[list[bytes]]:
    """Cut bytes in every way that is tried: not at all, everywhere, and once at every place."""
    yield [data]
    yield cut(data, list(range(1, len(data))))
    yield from (cut(data, [position]) for position in range(1, len(data)))


def fast_and_slow(data: bytes) -> Iterator[list[bytes]]:
    """Cut bytes that are too many for every delivery: not at all, and into some 25,000 pieces."""
    yield [data]
    yield cut(data, list(range(1, len(data), 1 + len(data) // 25_000)))


def read_request(
    pieces: list[bytes],
    then: Callable[[Request], object] = lambda request: None,
    max_size: int = MAX_SIZE,
    max_headers: int = MAX_HEADERS,
) -> Read | Refused | None:
    """Give the pieces to a reader, one after the other, and the request to a further check.

    The reader collects them in memory of its own, and another one in memory that is lent to it; that
    makes no difference, and what was lent comes back when nothing is waited for any more.

    :return: what became of it; ``None`` when the reader waits for more
    """
    result = _read_request(RequestReader(max_size, max_headers), pieces, then)
    lender = Lender()
    reader = RequestReader(max_size, max_headers, lender)
    assert repr(_read_request(reader, pieces, then)) == repr(result)
    assert max(lender.sizes, default=0) <= max_size
    if result is None:
        reader.close()
    assert lender.lent == []
    return result


class Lender:
    """Lends buffers that are full of line ends, somewhat larger than asked for, and wants them back."""

    def __init__(self) -> None:
        self.lent: list[bytearray] = []
        self.sizes: list[int] = []

    def take(self, size: int) -> bytearray:
        self.sizes.append(size)
        self.lent.append(bytearray(b"\r\n\r\n" * (size // 4 + 2)))
        return self.lent[-1]

    def give(self, buffer: bytearray) -> None:
        self.lent = [each for each in self.lent if each is not buffer]


def _read_request(
    reader: RequestReader, pieces: list[bytes], then: Callable[[Request], object]
) -> Read | Refused | None:
    try:
        for number, piece in enumerate(pieces, 1):
            request = reader.feed(piece)
            if request is not None:
                rest = reader.rest + b"".join(pieces[number:])
                return Read(request.method, request.url, request.headers.pairs(), rest, then(request))
    except InvalidRequest as exc:
        return Refused(exc.status, exc.detail, exc.headers)
    return None


def test_request_reader_gives_back_what_was_lent_when_the_stream_ends() -> None:
    """A request that will never be complete holds nothing."""
    lender = Lender()
    reader = RequestReader(MAX_SIZE, MAX_HEADERS, lender)
    reader.feed(b"GET / HTTP/1.1\r\n")
    assert len(lender.lent) == 1
    with pytest.raises(InvalidRequest):
        reader.feed_eof()
    assert lender.lent == []


def read_response(pieces: list[bytes], *, end: bool = True, **limits: Any) -> Answer | str | None:
    """Give the pieces to a reader, one after the other, and then the end of the stream.

    :return: the response, or what was wrong with it; ``None`` when the reader waits for more
    """
    reader = ResponseReader(**limits)
    left = deque(pieces)
    response = None
    try:
        while left and response is None:
            response = reader.feed(left.popleft())
        at_end = response is None
        if at_end and not end:
            return None
        response = response or reader.feed_eof()
    except InvalidResponse as exc:
        return str(exc)
    assert isinstance(response.headers, Headers)
    assert isinstance(response.body, bytes)
    rest = reader.rest + b"".join(left) if response.status == 101 else reader.rest
    return Answer(response.status, response.reason, response.headers.pairs(), response.body, rest, at_end)


def only(outcomes: Iterable[Any]) -> Any:
    """Return what all deliveries came to; they must not differ."""
    first, *others = outcomes
    assert all(other == first for other in others)
    return first


def judge(data: bytes, then: Callable[[Request], object] = lambda request: None, **limits: Any) -> Any:
    """Read a request in all deliveries; return the one outcome."""
    return only(read_request(pieces, then, **limits) for pieces in deliveries(data))


def accepted(data: bytes, **limits: Any) -> Read:
    """Read a request that must be accepted."""
    outcome = judge(data, **limits)
    assert isinstance(outcome, Read), outcome
    return outcome


def refused(data: bytes, **limits: Any) -> tuple[int, str]:
    """Read a request that must be refused; return status and detail."""
    outcome = judge(data, **limits)
    assert isinstance(outcome, Refused), outcome
    return outcome[:2]


def hear(data: bytes, *, end: bool = True, **limits: Any) -> Any:
    """Read a response in all deliveries; return the one outcome."""
    return only(read_response(pieces, end=end, **limits) for pieces in deliveries(data))


def heard(data: bytes, **limits: Any) -> Answer:
    """Read a response that must be accepted."""
    outcome = hear(data, **limits)
    assert isinstance(outcome, Answer), outcome
    return outcome


def request(*lines: bytes, line: bytes = b"GET /chat HTTP/1.1", host: bytes | None = b"example.com") -> bytes:
    """Build the head of a request, correct or not, from its lines."""
    hosts = [] if host is None else [b"Host: " + host]
    return b"\r\n".join([line, *hosts, *lines, b"", b""])


def response(*lines: bytes, line: bytes = b"HTTP/1.1 403 Forbidden", body: bytes = b"") -> bytes:
    """Build a response, correct or not, from its lines."""
    return b"\r\n".join([line, *lines, b"", b""]) + body


names = st.text(TOKEN_CHARACTERS, min_size=1, max_size=20)
values = st.text(st.characters(max_codepoint=0xFF), max_size=30).filter(is_field_value)
cuts = st.lists(st.integers(0, 400), max_size=5)


def header_sets(*excluded: str) -> st.SearchStrategy[Pairs]:
    """Make sets of valid headers without some names."""
    return st.lists(st.tuples(names.filter(lambda name: name.lower() not in excluded), values), max_size=8)


# --- tokens, values, targets, hosts -----------------------------------------------------------------


def test_token_is_made_of_the_characters_of_the_rfc() -> None:
    """Of all characters, only those that RFC 9110 §5.6.2 lists make a token."""
    assert {chr(code) for code in range(0x2100) if is_token(chr(code))} == set(TOKEN_CHARACTERS)


@pytest.mark.parametrize("text", ["", "a b", "a\n", "a,", 1, None, b"a"])
def test_token_is_nothing_else(text: object) -> None:
    """A token is text, is not empty, and has none but its own characters."""
    assert is_token(TOKEN_CHARACTERS)
    assert not is_token(text)


def test_field_value_has_no_control_characters() -> None:
    """Inside a field value, of all characters, only control characters are wrong, and a tab is not."""
    wrong = {code for code in range(0x100) if not is_field_value(f"a{chr(code)}b")}
    assert wrong == {*range(9), *range(10, 32), 127}


@pytest.mark.parametrize(
    ("text", "is_value"),
    [("", True), ("a", True), (" a", False), ("a ", False), ("\ta", False), ("a\t", False), (1, False)],
)
def test_field_value_is_trimmed_text(text: object, is_value: bool) -> None:
    """A field value is text that has no white space at its ends."""
    assert is_field_value(text) is is_value


def test_target_is_made_of_visible_ascii() -> None:
    """Of all characters, a target has the visible ones of ASCII, without the fragment's mark."""
    visible = {chr(code) for code in range(0x21, 0x7F)} - {"#"}
    assert {chr(code) for code in range(0x2100) if is_target(chr(code))} == visible
    assert not is_target("")


GOOD_HOSTS = [
    ("example.com", ("example.com", 80)),
    ("EXAMPLE.com:8080", ("example.com", 8080)),
    ("localhost:", ("localhost", 80)),
    ("a_b-c.example:0", ("a_b-c.example", 0)),
    ("127.0.0.1:65535", ("127.0.0.1", 65535)),
    ("xn--mnchen-3ya.de:00443", ("xn--mnchen-3ya.de", 443)),
    ("ex%41mple.com", ("ex%41mple.com", 80)),
    ("[::1]", ("[::1]", 80)),
    ("[2001:DB8::1]:9882", ("[2001:db8::1]", 9882)),
    ("[::ffff:127.0.0.1]:", ("[::ffff:127.0.0.1]", 80)),
]
BAD_HOSTS = [
    *("", ":80", "a b", "a b<>", "a\tb", "user@example.com", "user:password@example.com", "example.com@"),
    *("example.com:port", "example.com:65536", "example.com:-1", "example.com:+80", "example.com:80:80"),
    *("example.com:8 0", "example.com:8_0", "example.com:\xb2", "http://example.com"),
    *("example.com/", "example.com?", "example.com#", "a\\b", '"a"', "a|b", "a^b", "a`b", "{a}"),
    *("ex\xe4mple.com", "\xff", "::1", "[::1", "::1]", "[::1]x", "[::1]80", "[]", "[::g]", "[1.2.3.4]"),
    *("[1::2::3]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[example.com]", "%", "%4", "%zz", "a%2"),
]


@pytest.mark.parametrize(("text", "parts"), GOOD_HOSTS)
def test_host_is_split_into_name_and_port(text: str, parts: tuple[str, int]) -> None:
    """A host is split into its name in lower case and its port, the default one where none is given."""
    assert split_host(text, 80) == parts
    assert is_host(text)


@pytest.mark.attack("H06")
@pytest.mark.parametrize("text", BAD_HOSTS)
def test_host_that_is_malformed_is_none(text: str) -> None:
    """What RFC 3986 §3.2.2 does not call a host with an optional port is no host."""
    assert split_host(text, 80) is None
    assert not is_host(text)


@pytest.mark.attack("L01", "L06")
@pytest.mark.parametrize(
    "value",
    ["a\r\nb\x00\x1b[31m", "\u202eab\u2066", "\ud800", b"\xff\r\n", "x" * LARGE, "\U0001f600" * LARGE, None],
)
def test_shown_value_is_one_short_line_of_ascii(value: object) -> None:
    """A value of the peer is shown as visible ASCII, on one line, in at most 100 characters."""
    text = shown(value)
    assert re.fullmatch(r"[ -~]{1,100}", text)
    assert text == ascii(value) or (len(text) == 100 and text.endswith("..."))


# --- headers ----------------------------------------------------------------------------------------


def test_headers_are_found_without_regard_to_case() -> None:
    """Names compare without case; values come back in their own."""
    headers = Headers({"Authorization": "Basic QQ==", "x-b": "2"})
    assert headers["authorization"] == headers.get("AUTHORIZATION") == "Basic QQ=="
    assert "aUthorization" in headers
    assert "accept" not in headers
    assert not headers.__contains__(1)  # anything may be asked for
    assert headers.get("accept") is None
    with pytest.raises(KeyError, match="accept"):
        headers["accept"]


def test_headers_keep_repeated_names() -> None:
    """Repeated names stay apart and in order, are joined where one value is asked for, and count once."""
    headers = Headers([("Accept", "a"), ("X-B", "2"), ("accept", "b")])
    assert headers.get_all("ACCEPT") == ["a", "b"]
    assert headers.get_all("none") == []
    assert headers["accept"] == "a, b"
    assert headers.pairs() == [("Accept", "a"), ("X-B", "2"), ("accept", "b")]
    assert list(headers) == ["accept", "x-b"]
    assert len(headers) == 2
    assert dict(headers) == {"accept": "a, b", "x-b": "2"}


def test_headers_are_a_mutable_mapping() -> None:
    """Headers are set, replaced and deleted by name, as those of any mapping are."""
    headers = Headers([("A", "1"), ("a", "2"), ("b", "3")])
    headers["A"] = "4"
    headers.setdefault("b", "5")
    headers.update({"c": "6"})
    headers.add("C", "7")
    assert sorted(headers.pairs()) == [("A", "4"), ("C", "7"), ("b", "3"), ("c", "6")]
    assert headers.pop("C") == "6, 7"
    del headers["a"]
    assert headers == Headers({"B": "3"})
    with pytest.raises(KeyError, match="'a'"):
        del headers["a"]
    headers.clear()
    assert not headers


def test_headers_hand_out_no_reference_to_their_list() -> None:
    """What ``pairs`` returns may be changed without changing the headers."""
    headers = Headers({"a": "1"})
    headers.pairs().clear()
    assert headers.pairs() == [("a", "1")]


def test_headers_made_of_headers_keep_repeated_names() -> None:
    """A copy of headers has the same pairs: cookies that are set cannot be joined (RFC 9110 §5.3)."""
    pairs = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    assert Headers(Headers(pairs)).pairs() == pairs


BAD_NAMES = ["", "a b", "a:", "a\r\nb", "a\n", "\x00", "a\x7f", "ä", "(a)", b"a", 1]
BAD_VALUES = [
    *("a\r\nb: c", "a\n", "\ra", "a\x00", "a\x1b[0m", "\x7f", " a", "a\t", "\u20ac", "\ud800", b"a", 1)
]


@pytest.mark.attack("A01", "A02")
@pytest.mark.parametrize(
    ("name", "value"), [*((name, "x") for name in BAD_NAMES), *(("x", value) for value in BAD_VALUES)]
)
def test_headers_refuse_what_would_not_survive_the_wire(name: Any, value: Any) -> None:
    """A name that is no token and a value that is no field value are refused, and change nothing."""
    headers = Headers({"a": "1", "x": "2"})
    with pytest.raises(ValueError, match="header"):
        headers.add(name, value)
    with pytest.raises(ValueError, match="header"):
        headers[name] = value
    with pytest.raises(ValueError, match="header"):
        Headers([("a", "1"), (name, value)])
    assert headers.pairs() == [("a", "1"), ("x", "2")]


@pytest.mark.attack("A06")
@pytest.mark.parametrize(
    "name",
    [
        *("Upgrade", "connection", "CONTENT-LENGTH", "Transfer-Encoding", "Sec-WebSocket-Key"),
        *("sec-websocket-accept", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "SEC-WEBSOCKET-X"),
    ],
)
def test_reserved_header_is_refused_by_name(name: str) -> None:
    """A header that the handshake itself writes is refused, by an error that names it."""
    refuse_reserved(Headers({"Host": "a", "Sec-Fetch-Mode": "websocket"}))
    with pytest.raises(ValueError, match=name.lower()):
        refuse_reserved(Headers({"Host": "a", name: "x"}))


@pytest.mark.attack("L02")
def test_headers_are_shown_without_their_values() -> None:
    """The representation of headers has their names, because values may be secrets."""
    assert repr(Headers([("Cookie", "s3cret"), ("A", "s3cret"), ("a", "b")])) == "<Headers cookie, a>"


# --- a request's head -------------------------------------------------------------------------------


@pytest.mark.attack("H22")
def test_request_is_read_as_it_was_sent() -> None:
    """Method, target and values keep their casing, names are lowered, and what follows is kept."""
    early = b"\x81\x85mask\x00\r\n\r\n\nGET"
    data = request(b"X-A:  Value\t", b"X-Empty:", b"x-a:\xe9:\tb", line=b"GET /Chat?A=%20b HTTP/1.1") + early
    pairs = [("host", "example.com"), ("x-a", "Value"), ("x-empty", ""), ("x-a", "\xe9:\tb")]
    assert accepted(data) == Read("GET", "/Chat?A=%20b", pairs, early, None)


@settings(deadline=None, max_examples=50)
@given(header_sets("host", "content-length", "transfer-encoding"), st.binary(max_size=20), cuts)
def test_request_that_is_built_is_read_back(pairs: Pairs, early: bytes, positions: list[int]) -> None:
    """Whatever valid headers are built, the reader gives back, and ``raw_headers`` has them as bytes."""
    sent = [("Host", "example.com"), *pairs]
    data = build_head("GET / HTTP/1.1", sent) + early
    expected = [(name.lower(), value) for name, value in sent]
    for pieces in ([data], cut(data, positions)):
        outcome = read_request(pieces, lambda request: request.raw_headers)
        assert isinstance(outcome, Read)
        assert (outcome.headers, outcome.rest) == (expected, early)
        assert outcome.judged == "".join(f"{n}: {v}\r\n" for n, v in expected).encode("latin-1")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_reader_takes_any_kind_of_bytes(kind: Callable[[bytes], Any]) -> None:
    """Bytes, bytearrays and memoryviews are read alike, and what is left over is bytes."""
    reader, other = RequestReader(MAX_SIZE, MAX_HEADERS), ResponseReader()
    assert reader.feed(kind(request() + b"early")) is not None
    assert other.feed(kind(response(body=b"body"))) is None
    assert reader.rest == b"early"
    assert type(reader.rest) is bytes
    assert other.feed_eof().body == b"body"


@pytest.mark.attack("H01")
@pytest.mark.parametrize("data", [b"G", b"\r", b"\r\n", b"\r\nG"])
def test_reader_has_started_with_the_first_byte(data: bytes) -> None:
    """A reader tells whether it was given anything, be it an empty line only."""
    reader = RequestReader(MAX_SIZE, MAX_HEADERS)
    reader.feed(b"")
    assert not reader.started
    for position in range(len(data)):
        reader.feed(data[position : position + 1])
        assert reader.started


@pytest.mark.attack("H03")
@pytest.mark.parametrize("data", [b"", b"\r\n", request()[:-1]])
def test_request_that_ends_early_is_refused(data: bytes) -> None:
    """The end of the stream before the empty line is a malformed request."""
    reader = RequestReader(MAX_SIZE, MAX_HEADERS)
    assert reader.feed(data) is None
    with pytest.raises(InvalidRequest, match="closed before") as caught:
        reader.feed_eof()
    assert caught.value.status == 400


@pytest.mark.attack("H04")
def test_request_without_host_is_refused() -> None:
    """A request without Host gets 400 (RFC 9112 §3.2)."""
    status, detail = refused(request(b"X-Host: example.com", host=None))
    assert status == 400
    assert "Host" in detail


@pytest.mark.attack("H05")
@pytest.mark.parametrize(
    "second", [b"Host: example.com", b"host: evil.com", b"HOST: ", b"Host: example.com:80"]
)
def test_request_with_two_hosts_is_refused(second: bytes) -> None:
    """A request with more than one Host gets 400, whether they are equal or not."""
    status, detail = refused(request(b"A: b", second))
    assert status == 400
    assert "exactly one Host" in detail


@pytest.mark.attack("H06")
@pytest.mark.parametrize("host", BAD_HOSTS)
def test_request_with_a_malformed_host_is_refused(host: str) -> None:
    """A Host that is no host gets 400."""
    status, detail = refused(request(host=host.encode("latin-1")))
    assert status == 400
    assert "Host" in detail


@pytest.mark.parametrize("host", [text for text, _ in GOOD_HOSTS])
def test_request_with_a_good_host_is_accepted(host: str) -> None:
    """A name, an IPv4 address and an IPv6 address are hosts, with and without a port."""
    assert accepted(request(host=host.encode())).headers == [("host", host)]


@pytest.mark.attack("H10")
@pytest.mark.parametrize(
    "method", ["POST", "get", "Get", "GETS", "HEAD", "OPTIONS", "CONNECT", "PRI", "!#$%"]
)
def test_request_with_another_method_is_refused(method: str) -> None:
    """Another method than GET, which is spelled in upper case, gets 405 and learns that GET is allowed."""
    outcome = judge(request(line=f"{method} / HTTP/1.1".encode()))
    assert outcome.status == 405
    assert outcome.headers == (("Allow", "GET"),)


@pytest.mark.attack("H10")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "version",
    ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/9.9", "http/1.1", "Http/1.1", "HTTP/3.0"],
)
def test_request_of_another_version_is_refused(method: str, version: str) -> None:
    """Another version than HTTP/1.1, which is spelled in upper case, gets 505 whatever the method."""
    status, detail = refused(request(line=f"{method} / {version}".encode()))
    assert status == 505
    assert "HTTP/1.1" in detail


@pytest.mark.attack("H10", "H19")
@pytest.mark.parametrize(
    "line",
    [
        *(b"GET / HTTP/1.10", b"GET / HTTP/11", b"GET / HTTP/1", b"GET / HTTP1.1", b"GET / HTTP/1.1x"),
        *(b"GET / HTTP/-1.1", b"GET / HTTP/1.\xb2", b"GET / XHTTP/1.1", b"GET / ICY/1.1", b"GET / HTTP /1.1"),
        *(b"GET /", b"GET", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET / HTTP/1.1 "),
        *(b" GET / HTTP/1.1", b"GET\t/\tHTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /a b HTTP/1.1", b"GET HTTP/1.1"),
        *(b"G(T / HTTP/1.1", b"G\xc9T / HTTP/1.1", b"GET: / HTTP/1.1", b" / HTTP/1.1", b"GET /\xa0HTTP/1.1"),
    ],
)
def test_request_line_that_is_malformed_is_refused(line: bytes) -> None:
    """A request line that is not method, target and version with one space between them gets 400."""
    status, detail = refused(request(line=line))
    assert status == 400
    assert "request line" in detail


@pytest.mark.attack("H11")
def test_one_empty_line_before_the_request_is_skipped() -> None:
    """One empty line may come before the request line (RFC 9112 §2.2)."""
    assert accepted(b"\r\n" + request()) == accepted(request())


@pytest.mark.attack("H11")
@pytest.mark.parametrize(
    "start",
    [b"\r\n" * 2, b"\r\n" * 3, b"\r", b"\n", b"\n\n", b"\r\r\n", b" \r\n", b"\t", b"\x00", b"\x1b", b"\x7f"],
)
def test_anything_else_before_the_request_is_refused(start: bytes) -> None:
    """More than one empty line, white space and control bytes before the request line get 400."""
    assert refused(start + request())[0] == 400


@pytest.mark.attack("H12")
@pytest.mark.parametrize(
    "line",
    [
        *(b" folded", b"\tfolded", b" A: b", b"A : b", b"A\t: b", b": b", b":", b"A", b"A B: c", b"A\xe9: b"),
        *(b"(A): b", b"A@b: c", b'"A": b', b"A/b: c", b"A[0]: b", b"A,b: c", b"A;b: c", b"A=b: c", b"{A}: b"),
    ],
)
def test_header_line_that_is_malformed_is_refused(line: bytes) -> None:
    """A folded line, white space before the colon and a name that is no token get 400 at the line's end."""
    status, detail = refused(request(b"X: y", line, b"Z: z"))
    assert status == 400
    assert "header line" in detail
    incomplete = request(b"X: y", line).removesuffix(b"\r\n")
    assert refused(incomplete) == (status, detail)
    assert read_request([incomplete[:-1]]) is None


@pytest.mark.attack("H13")
@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5"],
        [b"content-length: 1"],
        [b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: identity"],
        [b"transfer-encoding:"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 0"],
        [b"Content-Length: 0", b"Content-Length: 5"],
    ],
)
def test_request_with_a_body_is_refused(lines: list[bytes]) -> None:
    """A request that announces a body gets 400, so that its body is never taken for frames."""
    status, detail = refused(request(*lines) + b"\x81\x85mask\x00\x00\x00\x00\x00")
    assert status == 400
    assert "body" in detail


@pytest.mark.attack("H14")
@pytest.mark.parametrize(
    "length",
    [
        *(b"+0", b"-0", b"00", b"0x0", b"0_0", b"1_0", b"0,0", b"0, 0", b"0 0", b"0.0", b"0;", b"", b"zero"),
        *(b"\xd9\xa0", b"\xb2", b"\xa00", b"18446744073709551616"),
    ],
)
def test_content_length_other_than_0_is_refused(length: bytes) -> None:
    """Of all lengths only the plain 0 is accepted; what looks like it gets 400."""
    assert accepted(request(b"Content-Length: 0")).headers[1:] == [("content-length", "0")]
    assert refused(request(b"Content-Length: " + length))[0] == 400


@pytest.mark.attack("H14")
@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0xFF), max_size=10).filter(is_field_value))
def test_content_length_is_0_or_refused(length: str) -> None:
    """No text but the plain 0 says that there is no body."""
    data = build_head("GET / HTTP/1.1", [("Host", "a"), ("Content-Length", length)])
    assert isinstance(read_request([data]), Read) is (length == "0")


@pytest.mark.attack("H14")
def test_content_length_that_is_repeated_is_refused() -> None:
    """Two headers that say 0 are the list that one may not say (RFC 9110 §5.3, §8.6)."""
    assert refused(request(b"Content-Length: 0", b"Content-Length: 0"))[0] == 400


@pytest.mark.attack("H15")
@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\n\r", b"\r\r\n"])
def test_line_ends_other_than_crlf_are_refused(line_end: bytes) -> None:
    """A head gets 400 when any or all of its line ends are another one than CR LF."""
    lines = request(b"A: b").split(b"\r\n")[:-1]
    for number in range(len(lines)):
        ends = [line_end if number == other else b"\r\n" for other in range(len(lines))]
        head = b"".join(line + end for line, end in zip(lines, ends, strict=True))
        assert refused(head + b"x")[0] == 400
    assert refused(line_end.join(lines) + line_end + b"x")[0] == 400


def new_request_reader() -> RequestReader:
    """Make a reader with a server's default limits."""
    return RequestReader(MAX_SIZE, MAX_HEADERS)


class Kind(NamedTuple):
    """A reader, and a head that it accepts."""

    new_reader: Callable[[], Any]
    head: bytes
    error: type[Exception]

    def check_refusal_of(self, before: bytes, offending: bytes) -> None:
        """Check that a head is good so far, and that the next byte is refused at once."""
        reader = self.new_reader()
        assert reader.feed(before) is None
        with pytest.raises(self.error, match=r"control character or a bare line end|empty line"):
            reader.feed(offending)


both_kinds = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Kind(new_request_reader, request(b"A: b"), InvalidRequest), id="request"),
        pytest.param(Kind(ResponseReader, response(b"A: b"), InvalidResponse), id="response"),
    ],
)


@pytest.mark.attack("H11", "H15", "H16")
@both_kinds
@pytest.mark.parametrize("byte", CONTROLS)
def test_control_byte_is_refused_where_it_stands(kind: Kind, byte: bytes) -> None:
    """A control byte is refused as soon as it arrives, wherever in a head it stands."""
    for position in range(len(kind.head)):
        kind.check_refusal_of(kind.head[:position], byte)


@pytest.mark.attack("H11", "H15")
@both_kinds
def test_bare_line_feed_is_refused_where_it_stands(kind: Kind) -> None:
    """A line feed without a carriage return before it is refused as soon as it arrives."""
    for position in range(len(kind.head)):
        if kind.head[:position][-1:] != b"\r":
            kind.check_refusal_of(kind.head[:position], b"\n")


@pytest.mark.attack("H11", "H15", "H16")
@both_kinds
def test_bare_carriage_return_is_refused_by_the_next_byte(kind: Kind) -> None:
    """A carriage return without a line feed behind it is refused by the byte that stands there instead."""
    for position in range(len(kind.head)):
        for other in (b"x", b"\r", b" ", b"\x00"):
            before = kind.head[:position]
            kind.check_refusal_of(before if before.endswith(b"\r") else before + b"\r", other)


@pytest.mark.attack("H17")
@pytest.mark.parametrize("path_size", [LARGE, 8_192, 201, 186])
def test_request_line_over_the_limit_is_refused(path_size: int) -> None:
    """A request line that with its line end has more bytes than a head may have gets 414."""
    data = request(line=b"GET /" + b"a" * path_size + b" HTTP/1.1")
    for pieces in fast_and_slow(data):
        outcome = read_request(pieces, max_size=200)
        assert isinstance(outcome, Refused)
        assert outcome.status == 414
        assert "200 bytes" in outcome.detail


@pytest.mark.attack("H17")
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"A: " + b"a" * LARGE], id="one header"),
        pytest.param([b"A: " + b"a" * 100, b"B: " + b"b" * 100], id="all headers"),
        pytest.param([b"A:\t" + b" " * LARGE], id="white space"),
        pytest.param([b"a" * LARGE], id="no colon"),
    ],
)
def test_headers_over_the_limit_are_refused(lines: list[bytes]) -> None:
    """Headers that with the request line have more bytes than a head may have get 431."""
    data = request(*lines)
    for pieces in fast_and_slow(data):
        outcome = read_request(pieces, max_size=200)
        assert isinstance(outcome, Refused)
        assert outcome.status == 431
        assert "200 bytes" in outcome.detail


@pytest.mark.attack("H17")
@pytest.mark.parametrize("early", [b"", b"x" * 100])
def test_limit_counts_the_head_and_nothing_else(early: bytes) -> None:
    """A head of just the bytes that are allowed is accepted, whatever follows; one byte more gets 431."""
    head = request(b"A: b")
    assert accepted(head + early, max_size=len(head)).rest == early
    assert refused(head + early, max_size=len(head) - 1)[0] == 431


@pytest.mark.attack("H17")
def test_limit_is_felt_at_its_first_byte() -> None:
    """The first byte past the limit is refused, without waiting for a line's end."""
    assert read_request([b"GET /" + b"a" * 95], max_size=100) is None
    assert refused(b"GET /" + b"a" * 96, max_size=100)[0] == 414
    assert read_request([request()[:-2] + b"a" * 10], max_size=len(request()) + 8) is None
    assert refused(request()[:-2] + b"a" * 11, max_size=len(request()) + 8)[0] == 431


@pytest.mark.attack("H17", "H11")
def test_empty_lines_are_no_way_around_the_limit() -> None:
    """Empty lines without end are refused, however they arrive."""
    for piece in (b"\r\n", b"\r\n\r\n", b"\r\n\r"):
        outcome = read_request([piece] * MAX_SIZE)
        assert isinstance(outcome, Refused)
        assert outcome.status == 400


@pytest.mark.attack("H18")
@pytest.mark.parametrize("names", ["different", "equal"])
def test_headers_over_their_number_are_refused(names: str) -> None:
    """As many headers as are allowed are accepted; the next gets 431 at once, even if it is Host."""
    lines = [b"A%d: b" % (number if names == "different" else 0) for number in range(10)]
    assert len(accepted(request(*lines[:9]), max_headers=10).headers) == 10
    last = request(*lines, b"Host: example.com", host=None)
    status, detail = refused(last, max_headers=10)
    assert status == 431
    assert "10" in detail
    assert refused(last.removesuffix(b"\r\n"), max_headers=10) == (status, detail)


@pytest.mark.attack("H19")
@pytest.mark.parametrize(
    "target",
    [
        *(b"", b"*", b"chat", b"chat/room", b"?a", b"example.com"),
        *(b"example.com:80", b"[::1]:80", b"\\chat", b"%2Fchat"),
        *(b"/\xff", b"/\xc3\xa9", b"/\x80", b"/a#b", b"#"),
        *(b"/#", b"http://example.com/#a", b"/a\tb", b"/\xa0"),
        *(b"http://", b"http:///chat", b"http:/chat", b"http:example.com", b"://example.com/", b"http://?a"),
        *(b"ftp://example.com/", b"file:///etc/passwd"),
        *(b"javascript://example.com/", b"a/http://example.com/"),
    ],
)
def test_target_that_is_neither_path_nor_url_is_refused(target: bytes) -> None:
    """A target that is not a path or an absolute URL in visible ASCII gets 400."""
    status, detail = refused(request(line=b"GET " + target + b" HTTP/1.1"))
    assert status == 400
    assert "target" in detail


@pytest.mark.attack("H20")
@pytest.mark.parametrize(
    "target",
    [
        *("http://evil.com/", "http://example.com.evil.com/"),
        *("http://example.com:81/", "ws://evil.com?example.com"),
        *("http://user@example.com/", "http://example.com@evil.com/", "https://evil.com/http://example.com/"),
        *("http://example.co/", "http://xexample.com/", "http://example.com\\@evil.com/", "http://[::1]/"),
    ],
)
def test_target_of_another_host_is_refused(target: str) -> None:
    """An absolute target whose authority is not that of Host gets 400."""
    status, detail = refused(request(line=f"GET {target} HTTP/1.1".encode()))
    assert status == 400
    assert "different hosts" in detail


@pytest.mark.attack("H20")
@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://example.com/chat?a=1", "/chat", {"a": "1"}),
        ("https://EXAMPLE.com/", "/", {}),
        ("ws://example.com", "/", {}),
        ("WSS://example.com?a=/", "/", {"a": "/"}),
        ("http://example.com//evil.com", "//evil.com", {}),
    ],
)
def test_target_of_the_same_host_is_accepted(target: str, path: str, query: dict[str, str]) -> None:
    """An absolute target of the host that Host names is accepted; its path and query are what is meant."""
    outcome = judge(
        request(line=f"GET {target} HTTP/1.1".encode()), lambda request: (request.path, request.query)
    )
    assert (outcome.url, outcome.judged) == (target, (path, query))


@pytest.mark.attack("H27")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", 400, id="SSH"),
        pytest.param(b"EHLO example.com\r\n", 400, id="SMTP"),
        pytest.param(b"*1\r\n", 400, id="Redis"),
        pytest.param(b"PRI * HTTP/2.0\r\n", 505, id="HTTP/2"),
        pytest.param(b"GET / HTTP/1.0\r\n", 505, id="HTTP/1.0"),
        pytest.param(b"POST / HTTP/1.1\r\n", 405, id="POST"),
        pytest.param(b"CONNECT example.com:80 HTTP/1.1\r\n", 405, id="CONNECT"),
        pytest.param(b"GET * HTTP/1.1\r\n", 400, id="target"),
        pytest.param(b"GET /\r\n", 400, id="HTTP/0.9"),
    ],
)
def test_first_line_is_judged_at_its_end(data: bytes, status: int) -> None:
    """A first line of another protocol is refused when it ends; its peer would not send another one."""
    assert refused(data)[0] == status
    assert refused(data + b"A\x00b")[0] == status
    assert read_request([data[:-1]]) is None


@pytest.mark.attack("H27")
@pytest.mark.parametrize(
    "start", [b"\x16\x03\x01\x02\x00\x01\x00", b"\x80\x2e\x01", b"\x00\x00\x00\x85\xffSMB"]
)
def test_binary_protocol_is_refused(start: bytes) -> None:
    """A TLS ClientHello and the like get 400 for the control bytes that they start with."""
    assert refused(start) == refused(b"\x00")
    assert refused(start)[0] == 400


@pytest.mark.attack("H25", "H26")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(request(b"a" * LARGE), 400, id="name without colon"),
        pytest.param(request(b"a" * LARGE + b" : b"), 400, id="long name"),
        pytest.param(request(b"A: " + b" \t" * (LARGE // 2) + b"\x00"), 400, id="white space"),
        pytest.param(request(b"A:" + b"\r" * LARGE), 400, id="carriage returns"),
        pytest.param(request(host=b"a" * LARGE + b"@"), 400, id="long host"),
        pytest.param(request(host=b"%41" * (LARGE // 3) + b"@"), 400, id="host of percents"),
        pytest.param(request(host=b"[" + b":" * LARGE + b"]"), 400, id="IPv6"),
        pytest.param(request(host=b"[" + b"1:" * (LARGE // 2) + b"]:"), 400, id="IPv6 of words"),
        pytest.param(request(line=b"GET" + b" " * LARGE + b"/ HTTP/1.1"), 400, id="spaces"),
        pytest.param(request(line=b"GET http://" + b"a" * LARGE + b" HTTP/1.1"), 400, id="authority"),
        pytest.param(request(line=b"GET " + b"a:" * (LARGE // 2) + b"// HTTP/1.1"), 400, id="schemes"),
        pytest.param(request(line=b"GET / HTTP/" + b"1" * LARGE), 400, id="version"),
        pytest.param(request(*[b"a:"] * (LARGE // 4), host=None), 400, id="one name"),
        pytest.param(request(*[b"h%x:" % n for n in range(LARGE // 8)], host=None), 400, id="many names"),
        pytest.param(request(b"A: b", *[b"Host: a"] * (LARGE // 9)), 400, id="hosts"),
        pytest.param(
            request(*[b"Content-Length: 0"] * (LARGE // 19), b"Content-Length: 1"), 400, id="lengths"
        ),
    ],
)
def test_large_request_is_refused_in_linear_time(data: bytes, status: int) -> None:
    """Whatever its grammar, 100 kB that a limit would let in are refused with a work that is linear."""
    for pieces in fast_and_slow(data):
        outcome = read_request(pieces, max_size=2 * LARGE, max_headers=LARGE)
        assert isinstance(outcome, Refused)
        assert outcome.status == status


@pytest.mark.attack("H25", "H26")
def test_large_request_is_used_in_linear_time() -> None:
    """The parts of an accepted request with 10,000 headers, cookies and parameters are had in linear time."""
    number = LARGE // 10
    query = b"&".join(b"q%d=" % n for n in range(number))
    cookies = b"; ".join(b"c%d=" % n for n in range(number))
    headers = [b"h%d:" % n for n in range(number)]
    reader = RequestReader(10 * LARGE, LARGE)
    received = reader.feed(request(b"Cookie: " + cookies, *headers, line=b"GET /?%b HTTP/1.1" % query))
    assert received is not None
    assert len(received.query) == len(received.cookies) == number
    assert len(received.headers) == number + 2
    assert received.raw_headers.count(b"\r\n") == number + 2
    assert len(repr(received)) < 200


@pytest.mark.attack("H26", "H18")
def test_limit_on_headers_comes_before_all_work_on_them() -> None:
    """With the default limits 100,000 headers are refused after the first 8 KiB of them."""
    lines = [b"h%d: x" % number for number in range(LARGE)]
    outcome = read_request([request(*lines)])
    assert isinstance(outcome, Refused)
    assert outcome.status == 431
    assert outcome == read_request([request(*lines)[: MAX_SIZE + 1]])


@pytest.mark.attack("H06", "H11", "H12", "H16", "H19")
@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=100), st.integers(0, 60), st.integers(0, 10), cuts)
def test_random_bytes_are_accepted_or_refused(
    noise: bytes, position: int, replaced: int, positions: list[int]
) -> None:
    """Random bytes, alone or in a good request, raise nothing but InvalidRequest, however they are cut."""
    good = request(b"A: b")
    for data in (noise, good[:position] + noise + good[position + replaced :]):
        outcome = read_request([data], max_size=120)
        assert outcome == read_request(cut(data, positions), max_size=120)
        assert outcome == read_request(cut(data, list(range(len(data)))), max_size=120)


# --- what a request says ----------------------------------------------------------------------------


def ask(target: str, *headers: tuple[str, str]) -> Request:
    """Make a request without reading it."""
    return Request("GET", target, Headers(headers))


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/a%20b/c+d", "/a b/c+d", {}),
        ("/caf%C3%A9?x=%C3%A9+%2B", "/café", {"x": "é +"}),
        ("/a?b=1&b=2&c=&d&=e", "/a", {"b": "1", "c": "", "d": "", "": "e"}),
        ("/a%3Fb?c?d=e", "/a?b", {"c?d": "e"}),
        ("/?", "/", {}),
        ("//a/b", "//a/b", {}),
        ("/%ff%zz?%ff=%", "/\ufffd%zz", {"\ufffd": "%"}),
        ("http://example.com", "/", {}),
        ("http://example.com?a=b", "/", {"a": "b"}),
        ("http://example.com/c?a=b://d/", "/c", {"a": "b://d/"}),
    ],
)
def test_request_has_its_decoded_path_and_query(target: str, path: str, query: dict[str, str]) -> None:
    """Path and query are percent-decoded once; of a repeated parameter the first counts."""
    assert ask(target).path == path
    assert ask(target).query == query
    assert ask(target).url == target


@pytest.mark.parametrize(
    ("values", "cookies"),
    [
        ([], {}),
        (["a=1"], {"a": "1"}),
        (["a=1; b=2;c=3 ; d = 4"], {"a": "1", "b": "2", "c": "3", "d": "4"}),
        (["a=1; a=2", "a=3; b=4"], {"a": "1", "b": "4"}),
        (['a="quoted"; b=x=y=; c='], {"a": "quoted", "b": "x=y=", "c": ""}),
        (["no pair; ; a=1;"], {"a": "1"}),
        (["A=1; a=2"], {"A": "1", "a": "2"}),
    ],
)
def test_request_has_its_cookies(values: list[str], cookies: dict[str, str]) -> None:
    """Cookies are had by name, from all Cookie headers; of a repeated one the first counts."""
    assert ask("/", *(("Cookie", value) for value in values)).cookies == cookies


def test_request_has_its_origin_and_address() -> None:
    """The origin is that of the header, if there is one; the address is what the server said."""
    assert ask("/").origin is None
    assert ask("/", ("ORIGIN", "https://Example.com")).origin == "https://Example.com"
    assert ask("/").remote_address == ""
    assert Request("GET", "/", Headers(), ("::1", 5)).remote_address == ("::1", 5)


def test_request_has_its_raw_headers() -> None:
    """The raw headers are the block as bytes, with names in lower case and values in their own."""
    received = ask("/", ("Host", "A"), ("X-Y", "\xe9 B"), ("x-y", ""))
    assert received.raw_headers == b"host: A\r\nx-y: \xe9 B\r\nx-y: \r\n"
    assert ask("/").raw_headers == b""


@pytest.mark.attack("L01", "L02", "L06")
def test_request_is_shown_without_secrets() -> None:
    """The representation of a request has no query and no header, is one line and is short."""
    assert repr(ask("/a?token=s3cret", ("Cookie", "s3cret"))) == "<Request GET '/a'>"
    assert repr(ask("http://example.com?token=s3cret")) == "<Request GET 'http://example.com'>"
    assert re.fullmatch(r"[ -~]{1,150}", repr(ask("/\r\n\u202e\ud800" + "a" * LARGE)))


# --- a response -------------------------------------------------------------------------------------

SWITCHING = b"HTTP/1.1 101 Switching Protocols"


@pytest.mark.attack("S08")
def test_response_101_is_read_with_what_follows_it() -> None:
    """A 101 is complete with its head; the bytes that follow are frames and are kept."""
    early = b"\x81\x05hello\r\n\r\n"
    answer = heard(response(b"Upgrade: WebSocket", b"A:", line=SWITCHING) + early)
    pairs = [("upgrade", "WebSocket"), ("a", "")]
    assert answer == Answer(101, "Switching Protocols", pairs, b"", early, at_end=False)


@pytest.mark.parametrize("line", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_response_101_has_no_body(line: bytes) -> None:
    """Whatever its headers say, a 101 ends with its head (RFC 9112 §6.3)."""
    answer = heard(response(line, line=SWITCHING) + b"5\r\nframe\r\n0\r\n\r\n")
    assert (answer.body, answer.rest) == (b"", b"5\r\nframe\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 404 Not Found", 404, "Not Found"),
        (b"HTTP/1.1 404 ", 404, ""),
        (b"HTTP/1.1 500  a: b\t\xe9", 500, " a: b\t\xe9"),
        (b"HTTP/1.1 299 x", 299, "x"),
        (b"HTTP/1.1 200 OK", 200, "OK"),
        (b"HTTP/1.1 999 odd", 999, "odd"),
    ],
)
def test_status_line_is_read(line: bytes, status: int, reason: str) -> None:
    """Status and reason phrase are those of the status line; the reason may be empty."""
    assert heard(response(line=line))[:2] == (status, reason)


@pytest.mark.attack("S05", "H12")
@pytest.mark.parametrize(
    "head",
    [
        *(b"HTTP/1.0 101 x", b"HTTP/2 101 x", b"HTTP/2.0 101 x"),
        *(b"HTTP/1.10 101 x", b"http/1.1 101 x", b"HTTP/1.1"),
        *(b"HTTP/1.1 ", b"HTTP/1.1 10 x", b"HTTP/1.1 1010 x"),
        *(b"HTTP/1.1  101 x", b"HTTP/1.1 +10 x", b"HTTP/1.1 1x1 x"),
        *(b"HTTP/1.1 10\xb2 x", b"HTTP/1.1\t101 x", b"HTTP/1.1 101x", b" HTTP/1.1 101 x", b"XHTTP/1.1 101 x"),
        *(b"HTTP/1.1 000 x", b"HTTP/1.1 099 x", b"\r\nHTTP/1.1 101 x"),
        *(b"SSH-2.0-OpenSSH_9.6", b"101 x", b"x"),
        *(b"HTTP/1.1 101 x\r\n folded", b"HTTP/1.1 101 x\r\nA : b"),
        *(b"HTTP/1.1 101 x\r\nA", b"HTTP/1.1 101 x\r\n: b"),
        *(b"HTTP/1.1 101 x\nA: b", b"HTTP/1.1 101 x\rA: b"),
        *(b"HTTP/1.1 101 x\r\nA: \x00", b"HTTP/1.1 101 \x7f"),
        *(b"HTTP/1.1 100 x\r\n\r\n\r\nHTTP/1.1 101 x", b"HTTP/1.1 100 x\r\n\r\nHTTP/1.0 101 x"),
    ],
)
def test_response_that_is_malformed_is_refused(head: bytes) -> None:
    """A response that is not one of HTTP/1.1, or is malformed, is no response."""
    assert isinstance(hear(head + b"\r\n\r\n"), str)


@pytest.mark.attack("S07")
@pytest.mark.parametrize(
    "lines", [[b"HTTP/1.0 200 OK"], [b"SSH-2.0-OpenSSH_9.6"], [SWITCHING, b"A"], [SWITCHING, b" folded: b"]]
)
def test_response_line_is_judged_at_its_end(lines: list[bytes]) -> None:
    """A wrong line of a response is refused when it ends."""
    data = b"".join(line + b"\r\n" for line in lines)
    assert isinstance(hear(data, end=False), str)
    assert read_response([data[:-1]], end=False) is None


@pytest.mark.attack("S07")
@pytest.mark.parametrize("data", [b"", SWITCHING, response(line=SWITCHING)[:-1], b"HTTP/1.1 100 x\r\n\r\n"])
def test_response_that_ends_early_is_refused(data: bytes) -> None:
    """The end of the stream before the final head is complete is no response."""
    assert "closed the connection" in hear(data)


@pytest.mark.attack("S07")
@pytest.mark.parametrize(
    ("endless", "error"),
    [
        pytest.param(b"a", "too long", id="status line"),
        pytest.param(b"a" * 1000, "too long", id="status line, fast"),
        pytest.param(b"\r\n", "", id="empty lines"),
        pytest.param(b"HTTP/1.1 100 x\r\n\r\n", "too long", id="interim responses"),
        pytest.param(b"HTTP/1.1 102 x\r\nA: b\r\n\r\n" * 10, "too long", id="interim responses, fast"),
    ],
)
def test_response_head_without_end_is_refused(endless: bytes, error: str) -> None:
    """A head without end, or interim responses without end, are refused at the limit."""
    limit = 2_000
    outcome = read_response([endless] * (limit // len(endless) + 1), max_size=limit, end=False)
    assert isinstance(outcome, str)
    assert error in outcome


@pytest.mark.attack("S07")
@pytest.mark.parametrize("line", [b"a", b"a: b\r\n", b"a:\r\n", b"\xff: "])
def test_response_headers_without_end_are_refused(line: bytes) -> None:
    """Headers without end are refused at the limit, be it that of the bytes or that of the number."""
    data = SWITCHING + b"\r\n" + line * 20_000
    for pieces in fast_and_slow(data):
        assert isinstance(read_response(pieces, end=False), str)


@pytest.mark.attack("S07")
def test_response_limits_are_exact() -> None:
    """Heads of just the allowed size and number of headers are accepted, interim ones included."""
    interim, final = b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n", response(b"A: b", b"C: d", line=SWITCHING)
    data = interim + final + b"frame"
    assert heard(data, max_size=len(interim + final), max_headers=2).rest == b"frame"
    assert "too long" in hear(data, max_size=len(interim + final) - 1)
    assert "too many" in hear(data, max_headers=1)
    assert "too many" in hear(data[: data.index(b"C: d") + 6], max_headers=1, end=False)


@pytest.mark.parametrize("status", [b"100", b"102", b"103", b"199"])
@pytest.mark.parametrize("final", [SWITCHING, b"HTTP/1.1 200 OK"])
def test_interim_responses_are_skipped(status: bytes, final: bytes) -> None:
    """Any number of interim responses may precede the final one (RFC 9110 §15.2)."""
    interim = response(b"Content-Length: 9", line=b"HTTP/1.1 " + status + b" x")
    end = response(b"Content-Length: 4", line=final, body=b"body")
    assert heard(interim * 3 + end) == heard(end)


@pytest.mark.parametrize("size", [0, 1, 7, 20])
def test_body_has_the_announced_length(size: int) -> None:
    """A body with Content-Length is complete at that length; what follows is dropped."""
    body = b"\x00body\r\n\r\n0\r\n\r\nabcdef"[:size]
    data = response(b"Content-Length: %d" % size, body=body)
    assert heard(data) == heard(data + b"junk")
    assert heard(data)[3:] == (body, b"", False)


@pytest.mark.parametrize("lines", [[], [b"Content-Length: 9"]])
def test_body_ends_with_the_stream(lines: list[bytes]) -> None:
    """A body whose length is unknown, or that is cut short, is what came before the end of the stream."""
    answer = heard(response(*lines, body=b"half"))
    assert (answer.body, answer.rest, answer.at_end) == (b"half", b"", True)
    assert hear(response(*lines, body=b"half"), end=False) is None


CHUNKED = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5;name=value\r\nhello\r\n006;a\r\n world\r\n00;b\r\nTrailer: x\r\n\r\n", b"hello world"),
        (b"a\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n0\r\n\r\n"),
        (b"1\r\na\r\n" * 20 + b"0\r\n\r\n", b"a" * 20),
        (b"1A\r\n" + b"z" * 26 + b"\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"z" * 26),
    ],
)
def test_chunked_body_is_decoded(body: bytes, content: bytes) -> None:
    """A chunked body is decoded wherever it is cut, and ends at its last chunk (RFC 9112 §7.1)."""
    for lines in ([CHUNKED], [b"Content-Length: 3", CHUNKED]):
        answer = heard(response(*lines, body=body))
        assert (answer.body, answer.rest, answer.at_end) == (content, b"", False)


@pytest.mark.parametrize(
    "body",
    [
        *(b"5\r\nhel", b"5\r\nhello", b"3\r\nhel\r\n", b"3\r\nhel\r\n2", b"3\r\nhel\r\n\r\n"),
        *(b"3\r\nhel\r\nxx\r\nlo\r\n0\r\n\r\n", b"3\r\nhel\r\n-1\r\n", b"3\r\nhel\r\n 2\r\nlo"),
    ],
)
def test_chunked_body_that_is_cut_short_is_what_came(body: bytes) -> None:
    """Of a chunked body that is cut short or malformed, the part before the fault is kept."""
    answer = heard(response(CHUNKED, body=body))
    assert answer.body in (b"hel", b"hello")
    assert answer.body == body.split(b"\r\n")[1]


@pytest.mark.parametrize("lines", [[], [b"Content-Length: 5"], [CHUNKED], [b"Content-Length: 0"]])
@pytest.mark.parametrize("status", [b"204", b"304"])
def test_body_of_204_and_304_is_empty(status: bytes, lines: list[bytes]) -> None:
    """A 204 and a 304 end with their head, whatever they announce and whatever follows (RFC 9112 §6.3)."""
    head = response(*lines, line=b"HTTP/1.1 " + status + b" x")
    assert heard(head)[3:] == (b"", b"", False)
    assert heard(head + b"5\r\nabcde\r\n0\r\n\r\n")[3:] == (b"", b"", False)


@pytest.mark.attack("S07")
@pytest.mark.parametrize("size", [19, 20, 21, 60])
@pytest.mark.parametrize("kind", ["length", "chunked", "end", "bad length"])
def test_body_is_cut_at_the_limit(kind: str, size: int) -> None:
    """Of a body longer than the limit the first bytes are kept, and the rest is not waited for."""
    content = bytes(range(size))
    chunks = b"".join(b"3\r\n%b\r\n" % content[start : start + 3] for start in range(0, size // 3 * 3, 3))
    if size % 3:
        chunks += b"%d\r\n%b\r\n" % (size % 3, content[size // 3 * 3 :])
    data = {
        "length": response(b"Content-Length: %d" % size, body=content),
        "chunked": response(CHUNKED, body=chunks + b"0\r\n\r\n"),
        "end": response(body=content),
        "bad length": response(b"Content-Length: +9", body=content),
    }[kind]
    answer = hear(data, max_body=20)
    if kind == "bad length" and isinstance(answer, str):
        return  # refusing the length is as good as ignoring it
    assert answer.body == content[:20]
    assert answer.at_end == (kind in ("end", "bad length") and size <= 20)


@pytest.mark.attack("S07")
@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(response(body=b"x" * LARGE), id="end"),
        pytest.param(response(b"Content-Length: " + b"9" * 18, body=b"x" * LARGE), id="length"),
        pytest.param(response(b"Content-Length: " + b"9" * 5000, body=b"x" * LARGE), id="huge length"),
        pytest.param(response(CHUNKED, body=b"FFFFFFFF\r\n" + b"x" * LARGE), id="one chunk"),
    ],
)
def test_body_without_end_is_cut_at_the_limit(endless: bytes) -> None:
    """A body without end completes the response once it is longer than the limit."""
    for pieces in fast_and_slow(endless):
        answer = read_response(pieces, end=False)
        assert isinstance(answer, Answer)
        assert answer.body == b"x" * 65_536


@pytest.mark.attack("S07")
def test_chunked_body_is_decoded_in_linear_time() -> None:
    """Thousands of chunks that arrive byte by byte are each decoded once."""
    data = response(CHUNKED, body=b"1\r\nx\r\n" * 4_000 + b"0\r\n\r\n")
    answer = read_response(cut(data, list(range(1, len(data)))), end=False)
    assert isinstance(answer, Answer)
    assert answer.body == b"x" * 4_000


@pytest.mark.attack("S07")
@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=100), st.integers(0, 80), st.integers(0, 10), cuts)
def test_random_bytes_are_a_response_or_refused(
    noise: bytes, position: int, replaced: int, positions: list[int]
) -> None:
    """Random bytes, alone or in a good response, raise nothing but InvalidResponse, however they are cut."""
    good = response(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n")
    for data in (noise, good[:position] + noise + good[position + replaced :]):
        outcome = read_response([data], max_size=120, max_body=20)
        assert outcome == read_response(cut(data, positions), max_size=120, max_body=20)
        assert outcome == read_response(cut(data, list(range(len(data)))), max_size=120, max_body=20)


@pytest.mark.attack("L02", "L06")
def test_response_is_shown_without_values() -> None:
    """The representation of a response has neither values of headers nor the body, and is short."""
    kinds: list[HeaderPairs] = [{"A": "s3cret"}, [("A", "s3cret")], Headers({"A": "s3cret"})]
    for headers in kinds:
        text = repr(Response(403, b"s3cret" * LARGE, headers, "Forbidden"))
        assert "403" in text
        assert "s3cret" not in text
        assert len(text) < 200


# --- building ---------------------------------------------------------------------------------------


def test_response_is_built_with_its_length() -> None:
    """A response has the headers that end it, a type for its body, and the standard reason phrase."""
    built = build_response(Response(404, "nö\n", {"X-A": "b"}), date="Thu, 01 Jan 1970 00:00:00 GMT")
    assert built == (
        b"HTTP/1.1 404 Not Found\r\n"
        b"X-A: b\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        b"Content-Length: 4\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"n\xc3\xb6\n"
    )


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (Response(200), (200, "OK", [], b"")),
        (
            Response(HTTPStatus.SEE_OTHER, headers={"Location": "/"}),
            (303, "See Other", [("location", "/")], b""),
        ),
        (Response(299), (299, "Unknown", [], b"")),
        (Response(403, reason="Go\taway now"), (403, "Go\taway now", [], b"")),
        (Response(200, b"{}", [("content-type", "a/b")]), (200, "OK", [("content-type", "a/b")], b"{}")),
        (
            Response(200, b"", Headers([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])),
            (200, "OK", [("set-cookie", "a=1"), ("set-cookie", "b=2")], b""),
        ),
    ],
)
def test_response_that_is_built_is_read_back(built: Response, expected: tuple[object, ...]) -> None:
    """Status, reason phrase, headers and body arrive as they were given, and nothing else does."""
    answer = heard(build_response(built))
    assert answer.headers[-2:] == [("content-length", str(len(answer.body))), ("connection", "close")]
    assert (*answer[:2], answer.headers[:-2], answer.body) == expected
    assert not answer.at_end


@settings(deadline=None, max_examples=50)
@given(
    header_sets("upgrade", "connection", "content-length", "transfer-encoding", "date", "content-type"),
    st.binary(min_size=1, max_size=100),
    cuts,
)
def test_any_valid_response_is_read_back(pairs: Pairs, body: bytes, positions: list[int]) -> None:
    """Whatever valid headers and body are built, the reader gives back, however they are cut."""
    pairs = [(name, value) for name, value in pairs if not name.lower().startswith("sec-websocket-")]
    data = build_response(Response(500, body, pairs), date="today")
    for pieces in ([data], cut(data, positions)):
        answer = read_response(pieces, end=False)
        assert isinstance(answer, Answer)
        assert answer.body == body
        assert answer.headers[: len(pairs)] == [(name.lower(), value) for name, value in pairs]
        assert [name for name, _ in answer.headers[len(pairs) :]] == [
            *("content-type", "date", "content-length", "connection")
        ]


@pytest.mark.parametrize("status", [204, 304])
def test_response_without_content_has_neither_length_nor_body(status: int) -> None:
    """A 204 and a 304 have no body, and do not say how long it is (RFC 9110 §8.6, RFC 9112 §6.3)."""
    answer = heard(build_response(Response(status)))
    assert (answer.status, answer.headers, answer.body) == (status, [("connection", "close")], b"")
    with pytest.raises(ValueError, match="body"):
        build_response(Response(status, b"x"))


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 199, 600, 1000])
def test_response_of_another_status_is_not_built(status: int) -> None:
    """A status that does not end a request (RFC 9110 §15) is a ValueError."""
    with pytest.raises(ValueError, match="status"):
        build_response(Response(status))


@pytest.mark.attack("A01", "A02", "A06")
@pytest.mark.parametrize(
    ("headers", "reason", "error"),
    [
        ({"A": "b\r\nC: d"}, "", "header A"),
        ([("A\r\nB", "c")], "", "header name"),
        ({"A": "b\x00"}, "", "header A"),
        ({"Content-Length": "5"}, "", "content-length"),
        ([("a", "b"), ("connection", "keep-alive")], "", "connection"),
        ({"Transfer-Encoding": "chunked"}, "", "transfer-encoding"),
        ({}, "OK\r\nA: b", "reason"),
        ({}, "\x00", "reason"),
        ({}, "OK\n", "reason"),
        ({}, "Grüße", "reason"),
    ],
)
def test_response_with_an_injection_is_not_built(headers: HeaderPairs, reason: str, error: str) -> None:
    """Headers and a reason phrase that would not survive the wire are a ValueError that names them."""
    with pytest.raises(ValueError, match=error):
        build_response(Response(400, b"body", headers, reason))


@pytest.mark.parametrize("date", ["", "Thu, 01 Jan 1970 00:00:00 GMT"])
@pytest.mark.parametrize("status", [400, 403, 405, 408, 414, 426, 431, 500, 503, 505])
def test_refusal_is_built_with_its_reason(status: int, date: str) -> None:
    """A refusal says what was wrong, in a body of known length, with the headers it asks for."""
    refusal = InvalidRequest(status, "that was wrong", [("X-A", "b"), ("Allow", "GET")])
    answer = heard(build_refusal(refusal, date=date))
    assert (answer.status, answer.reason) == (status, HTTPStatus(status).phrase)
    assert answer.body == f"{status} {HTTPStatus(status).phrase}: that was wrong\n".encode()
    assert not answer.at_end
    headers: Mapping[str, str] = dict(answer.headers)
    assert len(headers) == len(answer.headers)
    assert headers["content-length"] == str(len(answer.body))
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert (headers["x-a"], headers["allow"]) == ("b", "GET")
    assert headers.get("date", "") == date
    assert "close" in headers["connection"].lower().split(", ")


@pytest.mark.attack("H08")
def test_refusal_426_asks_for_an_upgrade() -> None:
    """A 426 names the protocol to upgrade to and keeps the version that is spoken (RFC 9110 §15.5.22)."""
    refusal = InvalidRequest(426, "no", [("Sec-WebSocket-Version", "13")])
    headers = dict(heard(build_refusal(refusal)).headers)
    assert headers["upgrade"] == "websocket"
    assert headers["connection"] == "Upgrade, close"
    assert headers["sec-websocket-version"] == "13"


def test_refusal_other_than_426_does_not_upgrade() -> None:
    """A refusal for another reason than a missing upgrade does not offer one."""
    headers = dict(heard(build_refusal(InvalidRequest(400, "no"))).headers)
    assert "upgrade" not in headers
    assert headers["connection"] == "close"
