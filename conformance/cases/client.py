"""The opening handshake, as a client must judge a server's answer: RFC 6455 §4.1, RFC 7692 §7.1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..case import (
    Answer,
    Case,
    Grade,
    Message,
    Response,
    Step,
    accept,
    better_refused,
    close,
    either,
    end,
    refuse,
    response,
    send,
    text,
)
from ..wire import TEXT, Frame

_PMD = "permessage-deflate"
FRESH_KEY = "answers/fresh-key"
FRESH_MASKS = "answers/fresh-masks"


def _case(
    name: str, fact: str, source: str, data: bytes | Response, answer: Answer, *steps: Step, needs: str = ""
) -> Case:
    return Case(
        f"answers/{name}",
        fact,
        source,
        steps,
        response=Response(data) if isinstance(data, bytes) else data,
        answer=answer,
        needs=frozenset({needs} - {""}),
        ends=("client",),
    )


def _more(lines: str) -> bytes:
    return response(more=lines)


def cases() -> Iterator[Case]:
    """Yield the cases of the section."""
    fact = "Each request has a key of its own, those of this whole run."
    steps: tuple[Step, ...] = (send(text("hello")), Message(TEXT, b"hello"))
    yield _case(FRESH_KEY.partition("/")[2], fact, "RFC 6455 §4.1 (7)", response(), accept(), *steps)
    fact = "Each frame has a masking key of its own, those of this whole run."
    steps = (send(*(text(str(i)) for i in range(50))), *(Message(TEXT, str(i).encode()) for i in range(50)))
    yield _case(FRESH_MASKS.partition("/")[2], fact, "RFC 6455 §5.3; F28", response(), accept(), *steps)
    yield from _good()
    yield from _bad()
    yield from _status()
    yield from _fields()
    yield from _subprotocols()
    yield from _extensions()
    yield from _stuck()
    yield from _together()


def _good() -> Iterator[Case]:
    good = {
        "plain": response(),
        "names-in-lower-case": response().lower().replace(b"http/1.1", b"HTTP/1.1"),
        "upgrade-in-mixed-case": response(upgrade="WebSocket"),
        "connection-in-lower-case": response(connection="upgrade"),
        "connection-list": response(connection="keep-alive, Upgrade"),
        "other-phrase": response("HTTP/1.1 101 Web Socket Protocol Handshake"),
        "empty-phrase": response("HTTP/1.1 101 "),
        "no-space-after-colon": response().replace(b": ", b":"),
        "spaces-around-values": response().replace(b": ", b":  ").replace(b"\r\nConn", b" \r\nConn"),
        "other-order": response(
            "HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {accept}", sec_websocket_accept=None
        ),
        "more-headers": _more("Server: x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: a=b\r\n"),
        "empty-header": _more("X-Empty:\r\n"),
    }
    steps = (send(text("hello")), Message(TEXT, b"hello"))
    for name, data in good.items():
        yield _case(f"good-{name}", "A correct answer is accepted.", "RFC 6455 §4.1", data, accept(), *steps)
    fact = "An answer that says 103 first, and then 101, is accepted or refused."
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + response()
    yield _case("interim", fact, "RFC 9110 §15.2", data, either())


def _bad() -> Iterator[Case]:
    bad = {
        "accept-missing": response(sec_websocket_accept=None),
        "accept-empty": response(sec_websocket_accept=""),
        "accept-wrong": response(sec_websocket_accept="AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        "accept-of-sample": response(sec_websocket_accept="s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "accept-is-key": response(sec_websocket_accept="{key}"),
        "accept-lower-case": response(sec_websocket_accept="{accept-lower}"),
        "accept-cut": response(sec_websocket_accept="{accept-cut}"),
        "accept-and-more": response(sec_websocket_accept="{accept} x"),
        "accept-twice-wrong-first": response(
            sec_websocket_accept="x", more="Sec-WebSocket-Accept: {accept}\r\n"
        ),
        "accept-twice-wrong-last": _more("Sec-WebSocket-Accept: x\r\n"),
        "accept-twice": _more("Sec-WebSocket-Accept: {accept}\r\n"),
        "upgrade-missing": response(upgrade=None),
        "upgrade-empty": response(upgrade=""),
        "upgrade-other": response(upgrade="h2c"),
        "upgrade-websocket2": response(upgrade="websocket2"),
        "connection-missing": response(connection=None),
        "connection-empty": response(connection=""),
        "connection-close": response(connection="close"),
        "connection-notupgrade": response(connection="notupgrade"),
        "everything-missing": response(upgrade=None, connection=None, sec_websocket_accept=None),
    }
    for name, data in bad.items():
        fact = "A 101 that does not answer the request as RFC 6455 demands is refused."
        yield _case(name, fact, "RFC 6455 §4.1; S05", data, refuse())


def _status() -> Iterator[Case]:
    for status in (200, 204, 301, 302, 307, 308, 400, 401, 403, 404, 407, 426, 429, 500, 503, 599):
        extra = "Location: /elsewhere\r\n" if 300 < status < 309 else ""
        body = "" if status == 204 else "Content-Length: 2\r\n"
        fact = f"The status {status} is no connection, whatever the headers say; no redirect leads to a loop."
        head = response(f"HTTP/1.1 {status} X", more=extra + body)
        data = Response(head + (b"no" if body else b""), ends=True)
        yield _case(f"status-{status}", fact, "RFC 6455 §4.1 (1); S06", data, refuse())
    lines = {
        "http-1.0": "HTTP/1.0 101 Switching Protocols",
        "http-2.0": "HTTP/2.0 101 Switching Protocols",
        "http-0.9": "HTTP/0.9 101 Switching Protocols",
        "lower-case": "http/1.1 101 Switching Protocols",
    }
    for name, line in lines.items():
        fact = f"A status line that says {line} opens no WebSocket connection."
        answer = refuse() if name in ("http-1.0", "http-0.9") else better_refused()
        yield _case(f"version-{name}", fact, "RFC 6455 §4.1, RFC 9112 §4; S05", response(line), answer)
    for name, line in {
        "empty": "",
        "number-only": "101",
        "no-version": "101 Switching Protocols",
        "two-digits": "HTTP/1.1 10 X",
        "four-digits": "HTTP/1.1 1010 X",
        "word": "HTTP/1.1 abc X",
        "junk": "junk",
        "signed": "HTTP/1.1 +101 X",
        "smtp": "220 mail.example ESMTP",
        "nul": "HTTP/1.1 101 a\0b",
        "leading-space": " HTTP/1.1 101 X",
        "two-spaces": "HTTP/1.1  101 X",
        "tab": "HTTP/1.1\t101\tX",
    }.items():
        fact = f"A status line that is {line!r} is malformed and should be refused."
        yield _case(f"line-{name}", fact, "RFC 9112 §4; S05", response(line), better_refused())


def _fields() -> Iterator[Case]:
    for name, line in {
        "no-colon": "X-Header value\r\n",
        "name-empty": ": value\r\n",
        "name-space": "X Header: value\r\n",
        "space-before-colon": "X-Header : value\r\n",
        "name-control": "X-\x01: value\r\n",
        "value-nul": "X-Header: a\0b\r\n",
    }.items():
        fact = "A header line that does not follow the grammar should be refused, or is passed over."
        answer = either() if name in ("value-nul", "space-before-colon") else better_refused()
        yield _case(f"header-{name}", fact, "RFC 9112 §5; S05", _more(line), answer)
    fact = "Bare LFs for line ends are taken for such, or refused."
    yield _case("bare-lf", fact, "RFC 9112 §2.2", response().replace(b"\r\n", b"\n"), either())
    fact = "A folded header line is refused, or unfolded."
    yield _case("fold", fact, "RFC 9112 §5.2", _more("X-Header: a\r\n b\r\n"), either())
    fact = "What a 101 says about a body means nothing: there is none, and what follows are frames."
    yield _case("content-length", fact, "RFC 9112 §6.3 (1)", _more("Content-Length: 5\r\n"), either())
    yield _case("transfer-encoding", fact, "RFC 9112 §6.1", _more("Transfer-Encoding: chunked\r\n"), either())


def _subprotocols() -> Iterator[Case]:
    source = "RFC 6455 §4.1 (6); S05"
    for name, value in {
        "not-offered": "never-offered",
        "empty": "",
        "list": "never-offered, another",
        "space": "never offered",
    }.items():
        fact = "A subprotocol that was not offered is refused."
        answer = either() if name == "empty" else refuse()
        yield _case(
            f"subprotocol-{name}", fact, source, _more(f"Sec-WebSocket-Protocol: {value}\r\n"), answer
        )
    needs = "subprotocol"
    good = "Sec-WebSocket-Protocol: {protocol}\r\n"
    fact = "A subprotocol that was offered is accepted."
    yield _case("subprotocol-offered", fact, source, _more(good), accept(), needs=needs)
    fact = "No subprotocol, where some were offered, is accepted or refused."
    yield _case("subprotocol-none", fact, source, response(), either(), needs=needs)
    fact = "A subprotocol in other casing was not offered."
    data = _more("Sec-WebSocket-Protocol: {protocol-upper}\r\n")
    yield _case("subprotocol-other-case", fact, source, data, refuse(), needs=needs)
    fact = "Two subprotocols are refused."
    for name, lines in {
        "twice": good * 2,
        "list": "Sec-WebSocket-Protocol: {protocol}, {protocol}\r\n",
        "and-another": good + "Sec-WebSocket-Protocol: never-offered\r\n",
    }.items():
        yield _case(
            f"subprotocol-two-{name}", fact, "RFC 6455 §11.3.4; S05", _more(lines), refuse(), needs=needs
        )


def _extensions() -> Iterator[Case]:
    for name, value in {
        "unknown": "x-unknown",
        "unknown-and-parameter": "x-unknown; a=1",
        "webkit": "x-webkit-deflate-frame",
        "prefix": "permessage-deflated",
        "mux": "mux",
    }.items():
        fact = f"The extension {value}, which was not offered, is refused."
        line = f"Sec-WebSocket-Extensions: {value}\r\n"
        yield _case(f"extension-{name}", fact, "RFC 6455 §4.1 (5), §9.1; S05", _more(line), refuse())
    fact = "permessage-deflate, where it was not offered, is refused; else it is accepted."
    yield _case(
        "extension-deflate",
        fact,
        "RFC 6455 §4.1 (5); S05",
        _more(f"Sec-WebSocket-Extensions: {_PMD}\r\n"),
        Answer(extension=True),
    )
    bad = {
        "unknown-parameter": f"{_PMD}; unknown",
        "unknown-parameter-value": f"{_PMD}; unknown=1",
        "server-bits-7": f"{_PMD}; server_max_window_bits=7",
        "server-bits-16": f"{_PMD}; server_max_window_bits=16",
        "server-bits-99": f"{_PMD}; server_max_window_bits=99",
        "server-bits-08": f"{_PMD}; server_max_window_bits=08",
        "server-bits-empty": f"{_PMD}; server_max_window_bits",
        "server-bits-word": f"{_PMD}; server_max_window_bits=x",
        "client-bits-7": f"{_PMD}; client_max_window_bits=7",
        "client-bits-16": f"{_PMD}; client_max_window_bits=16",
        "client-bits-empty": f"{_PMD}; client_max_window_bits",
        "client-bits-word": f"{_PMD}; client_max_window_bits=x",
        "server-flag-value": f"{_PMD}; server_no_context_takeover=1",
        "client-flag-value": f"{_PMD}; client_no_context_takeover=1",
        "server-flag-twice": f"{_PMD}; server_no_context_takeover; server_no_context_takeover",
        "client-flag-twice": f"{_PMD}; client_no_context_takeover; client_no_context_takeover",
        "server-bits-twice": f"{_PMD}; server_max_window_bits=10; server_max_window_bits=10",
        "twice": f"{_PMD}, {_PMD}",
        "twice-differ": f"{_PMD}, {_PMD}; server_no_context_takeover",
        "and-unknown": f"{_PMD}, x-unknown",
    }
    for name, value in bad.items():
        fact = f"The answer {value} to an offer fails the connection."
        line = f"Sec-WebSocket-Extensions: {value}\r\n"
        yield _case(f"deflate-{name}", fact, "RFC 7692 §5, §7.1; C08", _more(line), refuse(), needs="deflate")
    for name, value in {
        "plain": _PMD,
        "server-flag": f"{_PMD}; server_no_context_takeover",
        "client-flag": f"{_PMD}; client_no_context_takeover",
        "server-bits": f"{_PMD}; server_max_window_bits=9",
        "client-bits": f"{_PMD}; client_max_window_bits=9",
        "client-bits-largest": f"{_PMD}; client_max_window_bits=15",
        "both-flags": f"{_PMD}; client_no_context_takeover; server_no_context_takeover",
    }.items():
        fact = f"The answer {value} to an offer is accepted."
        line = f"Sec-WebSocket-Extensions: {value}\r\n"
        steps = (send(text("hello" * 20, deflated=True)), Message(TEXT, b"hello" * 20)) * 2
        answer = Answer(extension=True)
        needs = "client_max_window_bits" if name.startswith("client-bits") else "deflate"
        yield _case(f"deflate-good-{name}", fact, "RFC 7692 §7.1", _more(line), answer, *steps, needs=needs)


def _stuck() -> Iterator[Case]:
    """Yield the servers that never come to an end; a client must."""
    head = response()
    source = "S07"
    stuck = {
        "silent": Response(b""),
        "half-a-line": Response(head[:7]),
        "half-a-head": Response(head[:-20]),
        "no-empty-line": Response(head[:-2]),
        "drip": Response(head, drip=True),
        "status-line-without-end": Response(b"HTTP/1.1 101 ", flood=b"x" * 65_536),
        "header-without-end": Response(head[:-2] + b"X-Header: ", flood=b"x" * 65_536),
        "headers-without-end": Response(head[:-2], flood=b"X-Header: value\r\n" * 4_096),
        "interim-without-end": Response(b"", flood=b"HTTP/1.1 100 Continue\r\n\r\n" * 2_048),
        "body-without-end": Response(b"HTTP/1.1 200 OK\r\n\r\n", flood=b"x" * 65_536),
        "chunks-without-end": Response(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", flood=b"5\r\nhello\r\n" * 6_000
        ),
        "empty-lines": Response(b"", flood=b"\r\n" * 32_768),
        "end-at-once": Response(b"", ends=True),
        "end-in-line": Response(head[:7], ends=True),
        "end-in-head": Response(head[:-20], ends=True),
        "end-before-empty-line": Response(head[:-2], ends=True),
    }
    for name, data in stuck.items():
        fact = "A client gives up a server that never finishes its answer, in bounded time and memory."
        yield _case(f"stuck-{name}", fact, source, data, refuse())


def _together() -> Iterator[Case]:
    """Yield the cases in which frames come in the same segment as the 101."""

    def wire(*frames: Frame) -> Response:
        return Response(response() + b"".join(b"".join(frame.encode(False)) for frame in frames))

    source, fact = "RFC 6455 §4.1; S08, T12", "Frames in the same segment as the 101 are not lost."
    one = Message(TEXT, b"early")
    yield _case("together-message", fact, source, wire(text("early")), accept(), one, needs="echo")
    yield _case(
        "together-message-and-close",
        fact,
        source,
        wire(text("early"), close(1001)),
        accept(),
        replace(one, missing=Grade.WEAK),
        end(1001),
        needs="echo",
    )
    yield _case("together-close", fact, source, wire(close(1001)), accept(), end(1001))
    yield _case("together-violation", fact, source, wire(Frame(3)), accept(), end(1002))
    many = [text(str(i)) for i in range(20)]
    steps: tuple[Step, ...] = (*(Message(TEXT, str(i).encode(), Grade.WEAK) for i in range(20)), end(1000))
    yield _case(
        "together-twenty-and-close", fact, source, wire(*many, close(1000)), accept(), *steps, needs="echo"
    )
    fact = "The end of the stream right behind the 101 is noticed."
    data = Response(response(), ends=True)
    yield _case("together-end", fact, "S07", data, accept(), end(1000, 1001, 1002, 1011, bare=Grade.PASS))
