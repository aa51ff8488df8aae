"""The opening handshake, as a server must judge it: RFC 6455 §4.2, RFC 9110, RFC 9112.

``handshake`` and ``http`` hold what the RFCs decide. ``policy`` holds what anyio_ws decided where they
leave a choice or only recommend; other servers may have good reasons to differ.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace

from ..case import (
    Answer,
    Case,
    Grade,
    Message,
    Step,
    accept,
    better_refused,
    close,
    either,
    end,
    exactly,
    refuse,
    request,
    text,
)
from ..wire import KEY, TEXT, Frame
from .frames import split

_NO_VERSION = (("sec-websocket-version", "13"),)
_SMUGGLED = b"".join(text("smuggled").encode(True))


def _case(name: str, fact: str, source: str, wire: bytes, answer: Answer, cuts: str = "whole") -> Case:
    return Case(name, fact, source, request=wire, answer=answer, cuts=cuts, ends=("server",))


def cases() -> Iterator[Case]:
    """Yield the cases of three sections."""
    yield from _good()
    yield from _upgrade()
    yield from _key()
    yield from _version()
    yield from _subprotocols()
    yield from _host()
    yield from _request_line()
    yield from _fields()
    yield from _body()
    yield from _policy()


def _more(lines: str) -> bytes:
    return request(more=lines)


def _good() -> Iterator[Case]:
    good = {
        "plain": request(),
        "names-in-lower-case": request()
        .replace(b"Upgrade: w", b"upgrade: w")
        .replace(b"Sec-WebSocket", b"sec-websocket"),
        "names-in-upper-case": b"\r\n".join(
            line
            if i == 0
            else line.partition(b":")[0].upper() + b":" + line.partition(b":")[2]
            if line
            else line
            for i, line in enumerate(request().split(b"\r\n"))
        ),
        "upgrade-in-upper-case": request(upgrade="WEBSOCKET"),
        "upgrade-in-mixed-case": request(upgrade="WebSocket"),
        "connection-in-lower-case": request(connection="upgrade"),
        "connection-in-upper-case": request(connection="UPGRADE"),
        "connection-list": request(connection="keep-alive, Upgrade"),
        "connection-list-without-space": request(connection="keep-alive,Upgrade"),
        "connection-list-other-order": request(connection="Upgrade, keep-alive"),
        "connection-twice": _more("Connection: keep-alive\r\n"),
        "no-space-after-colon": request().replace(b": ", b":"),
        "spaces-after-colon": request().replace(b": ", b":   "),
        "tabs-around-value": request(upgrade="\twebsocket\t"),
        "unknown-header": _more("X-Unknown: value\r\n"),
        "empty-header": _more("X-Empty:\r\n"),
        "latin-1-header": _more("X-Name: caf\xe9\r\n"),
        "content-length-0": _more("Content-Length: 0\r\n"),
        "browser-headers": _more(
            "Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0\r\n"
            "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\nCookie: a=b; c=d\r\n"
        ),
        "key-first": request(
            line=f"GET {{path}} HTTP/1.1\r\nSec-WebSocket-Key: {KEY}", sec_websocket_key=None
        ),
        "other-key": request(sec_websocket_key=base64.b64encode(bytes(range(16))).decode()),
    }
    for name, wire in good.items():
        fact = "A correct opening handshake is accepted."
        yield _case(f"handshake/good-{name}", fact, "RFC 6455 §4.2.1", wire, accept())
    for name, data in {"nothing": b"", "half-a-line": request()[:7], "half-a-head": request()[:60]}.items():
        fact = "A client that leaves before its request is complete gets an error or nothing, and is gone."
        answer = Answer(Grade.FAIL, Grade.PASS, frozenset({0, *range(400, 500)}))
        case = _case(f"handshake/left-after-{name}", fact, "RFC 9112 §8; H03", data, answer)
        yield replace(case, hangs_up=True)
    fact = "A correct opening handshake is accepted wherever it is cut."
    yield _case("handshake/bytewise", fact, "RFC 6455 §4.2.1; H02", request(), accept(), "bytes")
    yield _case("handshake/cut-anywhere", fact, "RFC 6455 §4.2.1", request(), accept(), "each")


def _upgrade() -> Iterator[Case]:
    bad = {
        "upgrade-missing": request(upgrade=None),
        "upgrade-empty": request(upgrade=""),
        "upgrade-other": request(upgrade="h2c"),
        "upgrade-websocket2": request(upgrade="websocket2"),
        "upgrade-web-socket": request(upgrade="web socket"),
        "upgrade-notwebsocket": request(upgrade="notwebsocket"),
        "connection-missing": request(connection=None),
        "connection-empty": request(connection=""),
        "connection-close": request(connection="close"),
        "connection-keep-alive": request(connection="keep-alive"),
        "connection-notupgrade": request(connection="notupgrade"),
        "connection-upgraded": request(connection="upgraded"),
        "connection-not-upgrade": request(connection="not upgrade"),
        "connection-upgrade-x": request(connection="x-upgrade, upgrade-x"),
        "both-missing": request(upgrade=None, connection=None),
    }
    for name, wire in bad.items():
        fact = "A request that does not ask for an upgrade to websocket is not answered with 101."
        yield _case(
            f"handshake/{name}",
            fact,
            "RFC 6455 §4.2.1 (3, 4); H09, H27",
            wire,
            Answer(
                opened=refuse().opened, refused=refuse().refused, statuses=frozenset({200, *range(400, 500)})
            ),
        )


def _key() -> Iterator[Case]:
    def encoded(size: int) -> str:
        return base64.b64encode(bytes(size)).decode()

    bad = {
        "missing": None,
        "empty": "",
        "15-bytes": encoded(15),
        "17-bytes": encoded(17),
        "18-bytes": encoded(18),
        "1-byte": encoded(1),
        "32-bytes": encoded(32),
        "not-base64": "dGhlIHNhbXBsZSBub25jZ!==",
        "url-safe-base64": "dGhlIHNhbXBsZSBub25j-_==",
        "without-padding": KEY.rstrip("="),
        "one-padding": KEY[:-1],
        "too-much-padding": KEY + "=",
        "inner-space": KEY[:10] + " " + KEY[10:],
        "trailing-text": KEY + " x",
        "two-in-one": f"{KEY}, {KEY}",
        "quoted": f'"{KEY}"',
    }
    for name, key in bad.items():
        fact = "A key that is not 16 bytes in base64 is refused."
        source = "RFC 6455 §4.2.1 (5); H07"
        yield _case(f"handshake/key-{name}", fact, source, request(sec_websocket_key=key), refuse())
    for name, other in (("same", KEY), ("other", encoded(16))):
        fact = "Two keys are refused."
        wire = _more(f"Sec-WebSocket-Key: {other}\r\n")
        yield _case(f"handshake/key-twice-{name}", fact, "RFC 6455 §11.3.1; H07", wire, refuse())


def _version() -> Iterator[Case]:
    for version in ("0", "6", "12", "14", "99", "255", "", "013", "+13", "13.0", "thirteen", "1 3"):
        fact = f"Version {version!r} is refused, and the answer says that 13 is spoken."
        yield _case(
            f"handshake/version-{version.replace(' ', '_') or 'empty'}",
            fact,
            "RFC 6455 §4.2.2, §4.4; H08",
            request(sec_websocket_version=version),
            refuse(headers=_NO_VERSION),
        )
    for version in ("7", "8"):
        fact = f"Version {version}, a draft with the same frames, is refused, or spoken beside 13."
        wire = request(sec_websocket_version=version)
        yield _case(f"handshake/version-{version}", fact, "RFC 6455 §4.4; H08", wire, either())
    fact = "A request without a version is refused."
    yield _case(
        "handshake/version-missing",
        fact,
        "RFC 6455 §4.2.1 (6); H08",
        request(sec_websocket_version=None),
        refuse(),
    )
    for other in ("13", "8"):
        fact = "A version that is there twice is refused."
        wire = _more(f"Sec-WebSocket-Version: {other}\r\n")
        yield _case(f"handshake/version-twice-{other}", fact, "RFC 6455 §11.3.5; H08", wire, refuse())


def _subprotocols() -> Iterator[Case]:
    names = ("conformance-a", "conformance-b")
    chosen = ("", *names)
    good = {
        "one": "Sec-WebSocket-Protocol: conformance-a\r\n",
        "two": "Sec-WebSocket-Protocol: conformance-a, conformance-b\r\n",
        "two-headers": "Sec-WebSocket-Protocol: conformance-a\r\nSec-WebSocket-Protocol: conformance-b\r\n",
        "spaces": "Sec-WebSocket-Protocol:  conformance-a ,conformance-b\r\n",
    }
    for name, lines in good.items():
        fact = (
            "Subprotocols that are offered are accepted or passed over; none is chosen that was not offered."
        )
        yield _case(
            f"handshake/subprotocol-{name}",
            fact,
            "RFC 6455 §4.2.2, §11.3.4",
            _more(lines),
            Answer(subprotocols=chosen),
        )
    bad = {
        "empty": "",
        "comma": ",",
        "space-inside": "a b",
        "slash": "a/b",
        "quoted": '"a"',
        "non-ascii": "caf\xe9",
        "bracket": "a(b)",
        "semicolon": "a;b",
    }
    for name, value in bad.items():
        fact = f"The subprotocols {value!r} are no list of tokens: they are refused, or none is chosen."
        yield _case(
            f"handshake/subprotocol-bad-{name}",
            fact,
            "RFC 6455 §4.1 (10); H21",
            _more(f"Sec-WebSocket-Protocol: {value}\r\n"),
            either(),
        )


def _host() -> Iterator[Case]:
    source = "RFC 9112 §3.2; H04, H05, H06"
    fact = "A request without a Host is refused."
    yield _case("http/host-missing", fact, source, request(host=None), refuse())
    for name, other in (("same", "{host}"), ("other", "other.example")):
        fact = "A request with two Hosts is refused."
        yield _case(f"http/host-twice-{name}", fact, source, _more(f"Host: {other}\r\n"), refuse())
    bad = {
        "space": "a b",
        "angle": "a<b>",
        "slash": "a/b",
        "user": "user@example.com",
        "non-ascii": "caf\xe9.example",
        "port-word": "example.com:http",
        "port-too-large": "example.com:65536",
        "port-twice": "example.com:80:80",
        "open-bracket": "[::1",
        "bad-ipv6": "[:::1]",
        "list": "a.example, b.example",
        "url": "http://example.com",
        "percent": "exa%mple.com",
        "query": "example.com?x",
        "hash": "example.com#x",
        "backslash": "a\\b",
    }
    for name, value in bad.items():
        fact = f"The Host {value!r} is refused."
        yield _case(f"http/host-bad-{name}", fact, source, request(host=value), refuse())
    for name, value in {
        "name": "example.com",
        "ipv6": "[::1]:80",
        "percent": "ex%61mple.com",
        "no-port": "{name}",
    }.items():
        fact = f"The Host {value!r} is well-formed; whether it is served is up to the server."
        yield _case(f"http/host-{name}", fact, "RFC 9112 §3.2, RFC 9110 §7.4", request(host=value), either())


def _request_line() -> Iterator[Case]:
    source = "RFC 6455 §4.1 (1), §4.2.1 (1); H10"
    for method in ("POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "get", "Get", "CONNECTT", "BREW"):
        fact = f"The method {method} is refused."
        yield _case(
            f"handshake/method-{method}", fact, source, request(f"{method} {{path}} HTTP/1.1"), refuse(501)
        )
    for version in ("HTTP/1.0", "HTTP/0.9"):
        fact = f"{version} is refused: HTTP/1.1 is the least."
        wire = request(f"GET {{path}} {version}")
        yield _case(f"handshake/{version.lower().replace('/', '-')}", fact, source, wire, refuse(505))
    for version in ("HTTP/2.0", "HTTP/3.0", "HTTP/9.9"):
        fact = f"{version} should be refused: a higher major version is another protocol."
        wire = request(f"GET {{path}} {version}")
        name = f"handshake/{version.lower().replace('/', '-')}"
        yield _case(name, fact, "RFC 9110 §2.5, §15.6.6; H10", wire, better_refused_or(505))
    fact = "HTTP/1.2 may be taken for HTTP/1.1, or refused."
    yield _case(
        "handshake/http-1.2",
        fact,
        "RFC 6455 §4.2.1 (1), RFC 9110 §2.5; H10",
        request("GET {path} HTTP/1.2"),
        Answer(refused=either().refused, statuses=frozenset({400, 505})),
    )
    malformed = {
        "version-lower-case": "GET {path} http/1.1",
        "version-missing": "GET {path}",
        "version-short": "GET {path} HTTP/1",
        "version-long": "GET {path} HTTP/1.10",
        "version-word": "GET {path} HTTP/one",
        "version-other": "GET {path} HTTQ/1.1",
        "target-empty": "GET  HTTP/1.1",
        "target-missing": "GET HTTP/1.1",
        "two-targets": "GET / / HTTP/1.1",
        "leading-space": " GET {path} HTTP/1.1",
        "method-bad": "G(T {path} HTTP/1.1",
        "method-empty": " {path} HTTP/1.1",
        "target-fragment": "GET {path}#fragment HTTP/1.1",
        "target-non-ascii": "GET {path}caf\xe9 HTTP/1.1",
        "target-control": "GET {path}\x01 HTTP/1.1",
        "target-del": "GET {path}\x7f HTTP/1.1",
        "target-authority": "GET {host} HTTP/1.1",
        "target-asterisk": "GET * HTTP/1.1",
        "target-relative": "GET path HTTP/1.1",
    }
    for name, line in malformed.items():
        fact = f"The request line {line!r} is not what RFC 9112 allows, and should be refused."
        yield _case(
            f"http/{name}", fact, "RFC 9112 §2.2, §3; H10, H19", request(line), better_refused_or(505)
        )
    for name, line in {
        "tab": "GET\t{path}\tHTTP/1.1",
        "two-spaces": "GET  {path} HTTP/1.1",
        "trailing-space": "GET {path} HTTP/1.1 ",
    }.items():
        fact = "White space in a request line that is not one space may be accepted or refused."
        yield _case(f"http/line-{name}", fact, "RFC 9112 §3", request(line), either())
    fact = "An absolute target that names the Host is accepted."
    wire = request("GET http://{host}{path} HTTP/1.1")
    yield _case("http/target-absolute", fact, "RFC 9112 §3.2.2; H20", wire, accept())
    fact = "An absolute target that names another host than Host goes before it, or is refused."
    wire = request("GET http://other.example{path} HTTP/1.1")
    yield _case("http/target-absolute-other", fact, "RFC 9112 §3.2.2; H20", wire, either())
    fact = "An empty line before the request line is passed over."
    yield _case(
        "http/leading-crlf",
        fact,
        "RFC 9112 §2.2; H11",
        b"\r\n" + request(),
        Answer(refused=better_refused().opened),
    )
    for name, junk in {
        "nul": b"\0",
        "text": b"junk\r\n",
        "header": b"Host: a\r\n",
        "ssh": b"SSH-2.0-x\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    }.items():
        fact = "A connection that does not begin with a request is refused."
        yield _case(
            f"http/leading-{name}", fact, "RFC 9112 §2.2; H11, H27", junk + request(), better_refused_or(505)
        )


def better_refused_or(*statuses: int) -> Answer:
    """Return that a request should be refused, with 4xx or one of these."""
    plain = better_refused()
    return Answer(plain.opened, plain.refused, plain.statuses | set(statuses))


def _fields() -> Iterator[Case]:
    must = {
        "space-before-colon": "X-Header : value\r\n",
        "tab-before-colon": "X-Header\t: value\r\n",
    }
    for name, line in must.items():
        fact = "White space before the colon is refused."
        yield _case(f"http/{name}", fact, "RFC 9112 §5.1; H12", _more(line), refuse())
    should = {
        "name-empty": ": value\r\n",
        "name-space": "X Header: value\r\n",
        "name-bracket": "X(Header): value\r\n",
        "name-non-ascii": "X-H\xe9ader: value\r\n",
        "name-control": "X-\x01: value\r\n",
        "name-nul": "X-\0: value\r\n",
        "no-colon": "X-Header value\r\n",
        "name-del": "X-\x7f: value\r\n",
        "name-slash": "X/Y: value\r\n",
        "name-quoted": '"X": value\r\n',
    }
    for name, line in should.items():
        fact = "A header line that does not follow the grammar should be refused."
        yield _case(f"http/{name}", fact, "RFC 9112 §2.2, §5; H12", _more(line), better_refused())
    folded = {"fold-space": "X-Header: a\r\n b\r\n", "fold-tab": "X-Header: a\r\n\tb\r\n"}
    for name, line in folded.items():
        fact = "A folded header line is refused, or unfolded."
        yield _case(f"http/{name}", fact, "RFC 9112 §5.2; H12", _more(line), either())
    fact = "White space before the first header line is refused, or the line is passed over."
    wire = request(line="GET {path} HTTP/1.1\r\n X-Header: value")
    yield _case("http/fold-first", fact, "RFC 9112 §2.2; H12", wire, either())
    values = {
        "nul": "\0",
        "bell": "\x07",
        "escape": "\x1b[31m",
        "del": "\x7f",
        "bare-cr": "a\rb",
        "vertical-tab": "\x0b",
    }
    for name, value in values.items():
        fact = "A control character in a value is refused, or made harmless."
        yield _case(
            f"http/value-{name}", fact, "RFC 9110 §5.5; H16", _more(f"X-Header: a{value}b\r\n"), either()
        )
    for name, wire in {
        "bare-lf-everywhere": request().replace(b"\r\n", b"\n"),
        "bare-lf-once": request(more="X-Header: value\n"),
        "bare-lf-at-end": request()[:-2] + b"\n",
    }.items():
        fact = "A bare LF is taken for a line end, or refused; waiting for the end of the line is weak."
        yield _case(f"http/{name}", fact, "RFC 9112 §2.2; H15", wire, replace(either(), silent=Grade.WEAK))
    fact = "Bare CRs for line ends are refused."
    yield _case(
        "http/bare-cr-everywhere",
        fact,
        "RFC 9112 §2.2; H15",
        request().replace(b"\r\n", b"\r") + b"\r\n\r\n",
        better_refused(),
    )


def _body() -> Iterator[Case]:
    source = "RFC 9112 §6, §11.2; H13, H14"
    size = len(_SMUGGLED)
    bodies = {
        "content-length": (f"Content-Length: {size}\r\n", _SMUGGLED),
        "chunked": ("Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (size, _SMUGGLED)),
        "chunked-and-length": (
            f"Transfer-Encoding: chunked\r\nContent-Length: {size}\r\n",
            b"%x\r\n%s\r\n0\r\n\r\n" % (size, _SMUGGLED),
        ),
        "length-twice": (f"Content-Length: {size}\r\nContent-Length: {size}\r\n", _SMUGGLED),
    }
    after = b"".join(text("after").encode(True))
    for name, (lines, body) in bodies.items():
        fact = "What is announced as a body is never taken for frames."
        yield Case(
            f"http/body-{name}",
            fact,
            source,
            (Message(TEXT, b"after"),),
            request=_more(lines) + body + after,
            answer=either(),
            needs=frozenset({"echo"}),
            ends=("server",),
        )
    must = {
        "lengths-differ": "Content-Length: 0\r\nContent-Length: 5\r\n",
        "length-signed": "Content-Length: +0\r\n",
        "length-negative": "Content-Length: -1\r\n",
        "length-hex": "Content-Length: 0x0\r\n",
        "length-underscore": "Content-Length: 1_0\r\n",
        "length-word": "Content-Length: zero\r\n",
        "length-empty": "Content-Length: \r\n",
        "length-space": "Content-Length: 0 0\r\n",
        "length-decimal": "Content-Length: 0.0\r\n",
        "length-superscript": "Content-Length: \xb2\r\n",
        "lengths-list-differ": "Content-Length: 0, 5\r\n",
    }
    for name, line in must.items():
        fact = "An invalid Content-Length is refused."
        yield _case(f"http/{name}", fact, "RFC 9112 §6.3 (5), RFC 9110 §8.6; H14", _more(line), refuse())
    for name, line in {
        "length-00": "Content-Length: 00\r\n",
        "length-list": "Content-Length: 0, 0\r\n",
        "length-0-twice": "Content-Length: 0\r\nContent-Length: 0\r\n",
    }.items():
        fact = "An odd way to say that there is no body is accepted or refused."
        yield _case(f"http/{name}", fact, "RFC 9110 §8.6; H14", _more(line), either())
    for name, line in {
        "encoding-unknown": "Transfer-Encoding: unknown\r\n",
        "encoding-identity": "Transfer-Encoding: identity\r\n",
        "encoding-chunked-first": "Transfer-Encoding: chunked, gzip\r\n",
        "encoding-space": "Transfer-Encoding : chunked\r\n",
    }.items():
        fact = "A transfer encoding whose end cannot be known is refused."
        yield _case(f"http/{name}", fact, "RFC 9112 §6.1, §6.3 (4); H13", _more(line), refuse(501))


# --- what anyio_ws decided ----------------------------------------------------------------------------


def _policy() -> Iterator[Case]:
    exact = {
        "status-405": (request("POST {path} HTTP/1.1"), exactly(405, headers=(("allow", "GET"),)), "H10"),
        "status-505-http-1.0": (request("GET {path} HTTP/1.0"), exactly(505), "H10"),
        "status-505-http-2.0": (request("GET {path} HTTP/2.0"), exactly(505), "H10"),
        "status-426-plain-get": (
            request(upgrade=None, connection=None),
            exactly(426, headers=(("upgrade", "websocket"),)),
            "H27",
        ),
        "status-426-version": (request(sec_websocket_version="99"), exactly(426, headers=_NO_VERSION), "H08"),
        "status-426-no-version": (
            request(sec_websocket_version=None),
            exactly(426, headers=_NO_VERSION),
            "H08",
        ),
        "status-400-key": (request(sec_websocket_key="x"), exactly(400), "H07"),
        "status-400-fold": (_more("X-Header: a\r\n b\r\n"), exactly(400), "H12"),
        "status-400-nul": (_more("X-Header: a\0b\r\n"), exactly(400), "H16"),
        "status-400-escape": (_more("X-Header: a\x1bb\r\n"), exactly(400), "H16"),
        "status-400-bare-lf": (request().replace(b"\r\n", b"\n"), exactly(400), "H15"),
        "status-400-bare-cr": (_more("X-Header: a\rb\r\n"), exactly(400), "H15"),
        "status-400-body": (_more("Content-Length: 5\r\n") + b"hello", exactly(400), "H13"),
        "status-400-chunked": (_more("Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", exactly(400), "H13"),
        "status-400-length-list": (_more("Content-Length: 0, 0\r\n"), exactly(400), "H14"),
        "status-400-absolute-other": (request("GET http://other.example/ HTTP/1.1"), exactly(400), "H20"),
        "status-400-two-spaces": (request("GET  {path} HTTP/1.1"), exactly(400), "H10"),
        "status-400-subprotocol-twice": (_more("Sec-WebSocket-Protocol: a, a\r\n"), exactly(400), "H21"),
        "status-400-subprotocol-empty": (_more("Sec-WebSocket-Protocol: \r\n"), exactly(400), "H21"),
        "status-400-subprotocol-many": (
            _more("Sec-WebSocket-Protocol: " + ",".join(f"p{i}" for i in range(1000)) + "\r\n"),
            exactly(400),
            "H21",
        ),
        "status-400-extension-quote": (
            _more('Sec-WebSocket-Extensions: a; b="' + "\\c" * 1000 + "\r\n"),
            exactly(400),
            "H25",
        ),
        "status-400-extension-many": (
            _more("Sec-WebSocket-Extensions: " + ",".join("a" for _ in range(1000)) + "\r\n"),
            exactly(400),
            "H25",
        ),
        "status-414": (request("GET /" + "x" * 20_000 + " HTTP/1.1"), exactly(414), "H17"),
        "status-431-one-header": (_more("X-Header: " + "x" * 20_000 + "\r\n"), exactly(431), "H17"),
        "status-431-all-headers": (
            _more("".join(f"X-{i}: {'x' * 900}\r\n" for i in range(20))),
            exactly(431),
            "H17",
        ),
        "status-431-many-headers": (_more("".join(f"X-{i}: y\r\n" for i in range(400))), exactly(431), "H18"),
        "status-400-key-and-no-wait": (request().replace(b"\r\n\r\n", b"\r\nX-\x01"), exactly(400), "H11"),
    }
    for name, (wire, answer, row) in exact.items():
        statuses = " or ".join(map(str, sorted(answer.statuses)))
        fact = (
            f"The request gets the status {statuses}, which the client can read before the connection ends."
        )
        yield _case(f"policy/{name}", fact, row, wire, answer)
    for name in ("status-414", "status-431-one-header", "status-431-many-headers"):
        fact = "The status does not depend on how the request is cut."
        yield _case(f"policy/{name}-bytewise", fact, "H17", exact[name][0], exact[name][1], "bytes")
    yield from _at_once()
    yield from _origins()
    yield from _together()
    yield Case(
        "policy/silent",
        "A connection that says nothing is closed when the opening handshake takes too long.",
        "H01",
        request=b"",
        answer=Answer(statuses=frozenset({0, 408}), opened=refuse().opened, refused=refuse().refused),
        needs=frozenset({"timeout"}),
        ends=("server",),
    )
    yield Case(
        "policy/half-a-request",
        "Half a request is answered with 408 when the opening handshake takes too long.",
        "H01, H02",
        request=request()[:40],
        answer=exactly(408),
        needs=frozenset({"timeout"}),
        ends=("server",),
    )


def _at_once() -> Iterator[Case]:
    """Yield requests that break off right behind a fault; the answer must not wait for their end."""
    line = b"GET {path} HTTP/1.1\r\n"
    for name, data, status, row in (
        ("method", b"POST {path} HTTP/1.1\r\n", 405, "H10"),
        ("version", b"GET {path} HTTP/1.0\r\n", 505, "H10"),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), 400, "H27"),
        ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", 400, "H27"),
        ("nul", b"\0", 400, "H11"),
        ("bare-lf", line[:-2] + b"\n", 400, "H15"),
        ("bare-cr", line[:-2] + b"\rX", 400, "H15"),
        ("fold", line + b"X-Header: a\r\n b\r\n", 400, "H12"),
        ("no-colon", line + b"X-Header\r\n", 400, "H12"),
        ("value-nul", line + b"X-Header: a\0", 400, "H16"),
        ("long-target", b"GET /" + b"x" * 10_000, 414, "H17"),
        ("long-header", line + b"X-Header: " + b"x" * 10_000, 431, "H17"),
        ("many-headers", line + b"X: y\r\n" * 400, 431, "H18"),
    ):
        fact = f"The answer {status} comes as soon as the fault does, not at the end of the request."
        yield _case(f"policy/at-once-{name}", fact, row, data, exactly(status))


def _origins() -> Iterator[Case]:
    refused = {
        "foreign": "http://evil.example",
        "null": "null",
        "prefix": "http://{host}.evil.example",
        "suffix": "http://evil{host}",
        "other-port": "http://{name}:1",
        "user": "http://{host}@evil.example",
        "empty": "",
        "no-scheme": "{host}",
        "file": "file://",
        "list": "http://{host} http://evil.example",
    }
    for name, origin in refused.items():
        fact = f"A page of the origin {origin!r} may not connect, unless it is told to the server."
        yield _case(f"policy/origin-{name}", fact, "H23", _more(f"Origin: {origin}\r\n"), exactly(403))
    fact = "A page of the host it connects to may connect."
    yield _case("policy/origin-same", fact, "H23", _more("Origin: http://{host}\r\n"), accept())
    fact = "Two origins are refused."
    wire = _more("Origin: http://{host}\r\nOrigin: http://evil.example\r\n")
    yield _case("policy/origin-twice", fact, "H23", wire, exactly(403))


def _together() -> Iterator[Case]:
    """Yield the cases of frames that do not wait for the 101, though RFC 6455 §4.1 asks that of clients."""
    opening = {
        "message": ([text("early")], [(TEXT, b"early")], None),
        "two-messages": ([text("a"), text("b")], [(TEXT, b"a"), (TEXT, b"b")], None),
        "fragments": (split(TEXT, b"ear", b"ly"), [(TEXT, b"early")], None),
        "message-and-close": ([text("early"), close(1001)], [(TEXT, b"early")], 1001),
        "twenty-and-close": (
            [*(text(str(i)) for i in range(20)), close(1000)],
            [(TEXT, str(i).encode()) for i in range(20)],
            1000,
        ),
        "close": ([close(1001)], [], 1001),
        "violation": ([Frame(3)], [], 1002),
        "message-and-violation": ([text("early"), Frame(3)], [(TEXT, b"early")], 1002),
    }
    for name, (frames, messages, code) in opening.items():
        wire = b"".join(b"".join(frame.encode(True)) for frame in frames)
        missing = Grade.PASS if name == "message-and-violation" else Grade.FAIL
        steps: list[Step] = [Message(kind, data, missing) for kind, data in messages]
        if code is not None:
            steps.append(end(code))
        fact = "Frames in the same segment as the opening handshake are not lost."
        yield Case(
            f"policy/together-{name}",
            fact,
            "H22, T12",
            tuple(steps),
            request=request() + wire,
            needs=frozenset({"echo"}) if messages else frozenset(),
            ends=("server",),
        )
