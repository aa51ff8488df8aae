"""RFC 6455 §4, the opening handshake: what a request and a response must say, and building both.

A server checks a request with ``check_request`` and ``check_origin`` and answers with ``accept``
(§4.2); a client builds its request with ``build_request`` and checks the answer with
``check_response`` (§4.1). Reading the bytes is the business of ``http11.py``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from .exceptions import HandshakeRejected, InvalidRequest, InvalidResponse
from .http11 import (
    DEFAULT_PORTS,
    TOKEN,
    Headers,
    Request,
    Response,
    build_head,
    is_field_value,
    is_host,
    is_target,
    is_token,
    refuse_reserved,
    shown,
    split_host,
)

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # §1.3
_key = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_extension_name = re.compile(rf"[ \t]*({TOKEN})")
_extension_param = re.compile(
    rf"[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*(?:({TOKEN})|\"((?:[^\"\\]|\\.)*)\"))?"
)
_extension_end = re.compile(r"[ \t]*(,|$)")
# How many elements a list may have: more than any honest client sends, and few enough to cost nothing.
_MAX_ELEMENTS = 100


class Handshake(Request):
    """A request that asks for a WebSocket connection, and what the 101 will answer (§4.2).

    :ivar subprotocols: the subprotocols the client offers, in its order of preference
    :ivar extensions: the extensions the client offers, in its order of preference (§9.1)
    :ivar response_headers: headers to add to the 101; add to it while ``init`` runs
    :ivar subprotocol: the subprotocol the 101 will name, ``None`` for none
    """

    def __init__(
        self, request: Request, key: str, subprotocols: Sequence[str], extensions: Sequence[Extension] = ()
    ) -> None:
        super().__init__(request.method, request.url, request.headers, request.remote_address)
        self.key = key
        self.subprotocols: tuple[str, ...] = tuple(subprotocols)
        self.extensions: tuple[Extension, ...] = tuple(extensions)
        self.subprotocol: str | None = None
        self.response_headers: Headers = Headers()

    def select_subprotocol(self, name: str | None) -> None:
        """Choose the subprotocol that the 101 names, or none.

        :raises ValueError: when the client did not offer it (§4.2.2)
        """
        if name is not None and name not in self.subprotocols:
            raise ValueError(f"subprotocol: the client did not offer {shown(name)}")
        self.subprotocol = name


# --- a server's part: §4.2 --------------------------------------------------------------------------


def accept_key(key: str) -> str:
    """Compute ``Sec-WebSocket-Accept`` (§4.2.2 step 5.4)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def is_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket connection, well or badly."""
    return "websocket" in _tokens(request.headers, "upgrade")


def check_request(request: Request) -> Handshake:
    """Check that a request is a correct opening handshake (§4.2.1).

    :raises InvalidRequest: with the status that fits: 426 when it asks for no upgrade or for another
        version, 400 for the rest
    """
    headers = request.headers
    if not is_upgrade(request):
        raise InvalidRequest(426, "this address speaks WebSocket only")
    if "upgrade" not in _tokens(headers, "connection"):
        raise InvalidRequest(400, "the Connection header does not say Upgrade")
    keys = headers.get_all("sec-websocket-key")
    if len(keys) != 1 or not _key.fullmatch(keys[0]):
        raise InvalidRequest(400, "exactly one Sec-WebSocket-Key of 16 bytes in base64 is needed")
    versions = headers.get_all("sec-websocket-version")
    if len(versions) > 1:
        raise InvalidRequest(400, "more than one Sec-WebSocket-Version")
    if versions != ["13"]:  # §4.4
        raise InvalidRequest(426, "only version 13 is spoken here", [("Sec-WebSocket-Version", "13")])
    extensions = parse_extensions(headers)
    return Handshake(request, keys[0], _offered_subprotocols(headers), extensions)


def _tokens(headers: Headers, name: str) -> list[str]:
    """Return the lower-case elements of a comma-separated header (RFC 9110 §5.6.1)."""
    return [item.strip(" \t").lower() for value in headers.get_all(name) for item in value.split(",")]


def _offered_subprotocols(headers: Headers) -> list[str]:
    """Parse ``Sec-WebSocket-Protocol``: unique tokens (§4.1 step 10, §11.3.4)."""
    values = headers.get_all("sec-websocket-protocol")
    offered = [item.strip(" \t") for value in values for item in value.split(",")]
    if not all(map(is_token, offered)):
        raise InvalidRequest(400, "Sec-WebSocket-Protocol is not a list of tokens")
    if len(set(offered)) != len(offered) or len(offered) > _MAX_ELEMENTS:
        raise InvalidRequest(400, "Sec-WebSocket-Protocol names a subprotocol twice, or too many")
    return offered


class Extension(NamedTuple):
    """One element of ``Sec-WebSocket-Extensions`` (§9.1)."""

    name: str
    params: tuple[tuple[str, str | None], ...] = ()


def parse_extensions(headers: Headers) -> list[Extension]:
    """Parse ``Sec-WebSocket-Extensions`` (§9.1).

    :raises InvalidRequest: 400 when it does not follow the grammar
    """
    extensions = []
    for value in headers.get_all("sec-websocket-extensions"):
        position = 0
        while True:
            name = _extension_name.match(value, position)
            if name is None:
                raise InvalidRequest(400, "Sec-WebSocket-Extensions is malformed")
            position, params = name.end(), []
            while match := _extension_param.match(value, position):
                position = match.end()
                params.append((match[1], _param_value(match)))
            extensions.append(Extension(name[1], tuple(params)))
            end = _extension_end.match(value, position)
            if end is None:
                raise InvalidRequest(400, "Sec-WebSocket-Extensions is malformed")
            if len(extensions) > _MAX_ELEMENTS or len(params) > _MAX_ELEMENTS:
                raise InvalidRequest(400, "Sec-WebSocket-Extensions is too long")
            if not end[1]:
                break
            position = end.end()
    return extensions


def _param_value(match: re.Match[str]) -> str | None:
    """Return a parameter's value; a quoted one must be a token once unquoted (§9.1)."""
    if match[3] is None:
        return match[2]
    value = re.sub(r"\\(.)", r"\1", match[3])
    if not is_token(value):
        raise InvalidRequest(400, "a quoted value in Sec-WebSocket-Extensions is no token")
    return value


def check_origin(request: Request, origins: Sequence[str] | None) -> None:
    """Refuse a browser that acts for a page of another origin (§4.2.2, §10.2).

    :param origins: the origins to accept, such as ``"https://example.com"``; ``"*"`` accepts all;
        ``None`` accepts the origin whose host and port are those of the ``Host`` header. A request
        without an ``Origin`` does not come from a browser and is accepted.
    :raises InvalidRequest: 403 when the origin is not accepted, or there is more than one
    """
    received = request.headers.get_all("origin")
    if not received or (origins is not None and "*" in origins):
        return
    if len(received) == 1:
        origin = received[0]
        if origins is None:
            scheme, _, authority = origin.partition("://")
            port = DEFAULT_PORTS.get(scheme)
            if port and split_host(authority, port) == split_host(request.headers["host"], port):
                return
        elif origin in origins:
            return
    raise InvalidRequest(403, "the origin is not accepted")


def accept(handshake: Handshake, extensions: str = "") -> bytes:
    """Build the 101 that opens the connection (§4.2.2 step 5).

    :param extensions: the value of ``Sec-WebSocket-Extensions``; without one no extension is used
    :raises ValueError: when ``response_headers`` has one that the handshake itself writes
    """
    refuse_reserved(handshake.response_headers)
    pairs = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept_key(handshake.key)),
    ]
    if handshake.subprotocol is not None:
        if not is_token(handshake.subprotocol):
            raise ValueError(f"subprotocol: {shown(handshake.subprotocol)} is not a token")
        pairs.append(("Sec-WebSocket-Protocol", handshake.subprotocol))
    if extensions:
        pairs.append(("Sec-WebSocket-Extensions", extensions))
    return build_head("HTTP/1.1 101 Switching Protocols", pairs + handshake.response_headers.pairs())


# --- a client's part: §4.1 --------------------------------------------------------------------------


class Url(NamedTuple):
    """The parts of a WebSocket URL (§3)."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the ``Host`` header says: the port only where it is not the default one."""
        return build_authority(self.host, self.port, self.secure)


def build_authority(host: str, port: int, secure: bool) -> str:
    """Build the value of the ``Host`` header (§4.1 step 4)."""
    host = f"[{host}]" if ":" in host else host
    return host if port == (443 if secure else 80) else f"{host}:{port}"


def parse_url(url: str) -> Url:
    """Parse a ``ws:`` or ``wss:`` URL (§3).

    :raises ValueError: when it is not one, has a fragment, or carries a user name
    """
    if not is_field_value(url) or " " in url or "\t" in url:
        raise ValueError("url: it contains white space or a control character")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("url: it is malformed") from None
    if parts.scheme not in ("ws", "wss"):
        raise ValueError(f"url: the scheme must be ws or wss, not {shown(parts.scheme)}")
    if parts.fragment or "#" in url:
        raise ValueError("url: a WebSocket URL has no fragment (RFC 6455 §3)")
    if "@" in parts.netloc:
        raise ValueError("url: user name and password do not belong here; send an Authorization header")
    host, port = _split_authority(parts.netloc, DEFAULT_PORTS[parts.scheme])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme == "wss", host, port, check_target(target))


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """Split a URL's authority into host, without brackets, and port; names are encoded (RFC 3490)."""
    if not authority.isascii():
        name, colon, port = authority.partition(":")
        try:
            authority = name.encode("idna").decode() + colon + port
        except UnicodeError:
            raise ValueError(f"url: {shown(name)} is not a host name") from None
    split = split_host(authority, default_port)
    if split is None or not split[1]:
        raise ValueError(f"url: {shown(authority)} is not a host, with or without a port")
    return split[0].strip("[]"), split[1]


def check_target(target: str) -> str:
    """Return a path with query as it may stand in a request line, what is not ASCII percent-encoded.

    :raises ValueError: when it does not start with ``/``, or has white space, a control character or
        a ``#``
    """
    target = "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in target)
    if not target.startswith("/") or not is_target(target):
        raise ValueError(f"path: {shown(target)} cannot stand in a request line")
    return target


def parse_header_block(block: str) -> Headers:
    r"""Parse headers given as text, ``"Host: x\r\nA: b"``.

    :raises ValueError: when a line is not ``name: value``
    """
    pairs = []
    for line in filter(None, block.split("\r\n")):
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"headers: {shown(line)} is not a header line, name: value")
        pairs.append((name, value.strip(" \t")))
    return Headers(pairs)


def build_key() -> str:
    """Choose a ``Sec-WebSocket-Key``: 16 unpredictable bytes in base64 (§4.1 step 7)."""
    return base64.b64encode(os.urandom(16)).decode()


def build_request(
    target: str,
    authority: str,
    key: str,
    *,
    headers: Headers,
    subprotocols: Sequence[str] = (),
    origin: str | None = None,
    extensions: str = "",
) -> bytes:
    """Build a client's opening handshake (§4.1).

    :param target: path and query
    :param authority: the ``Host``, unless *headers* has one
    :param key: what :func:`build_key` gave
    :param headers: further headers
    :param subprotocols: the subprotocols to offer, in order of preference
    :param origin: the ``Origin``, for a client that acts for a page
    :param extensions: the value of ``Sec-WebSocket-Extensions``, what is offered
    :raises ValueError: when an argument would not survive the wire, or a header is one that is
        written here; nothing has been sent then
    """
    refuse_reserved(headers)
    own = Headers()
    if "host" not in headers:
        own["Host"] = authority
    hosts = headers.get_all("host") or [authority]
    if len(hosts) != 1 or not is_host(hosts[0]):
        raise ValueError(f"host: {shown(', '.join(hosts))} is not one host with or without a port")
    own["Upgrade"] = "websocket"
    own["Connection"] = "Upgrade"
    own["Sec-WebSocket-Key"] = key
    own["Sec-WebSocket-Version"] = "13"
    if not all(map(is_token, subprotocols)) or len(set(subprotocols)) != len(subprotocols):
        raise ValueError("subprotocols: each must be a token, and none be named twice")
    if subprotocols:
        own["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
    if extensions:
        own["Sec-WebSocket-Extensions"] = extensions
    if len(headers.get_all("origin")) + (origin is not None) > 1:
        raise ValueError("origin: there can be one only")
    if origin is not None:
        own["Origin"] = origin
    line = f"GET {check_target(target)} HTTP/1.1"
    return build_head(line, own.pairs() + headers.pairs())


class Answer(NamedTuple):
    """What a server chose of what was offered (§4.2.2).

    :ivar subprotocol: the subprotocol, ``None`` for none
    :ivar extensions: the extensions; whether they were offered is for whoever knows the offer
    """

    subprotocol: str | None
    extensions: list[Extension]


def check_response(response: Response, key: str, subprotocols: Sequence[str]) -> Answer:
    """Check that a server's answer opens the connection (§4.1).

    :raises HandshakeRejected: when the status is not 101
    :raises InvalidResponse: when the 101 is not a correct answer to our request
    """
    headers = Headers(response.headers)
    if response.status != 101:
        body = response.body
        raise HandshakeRejected(response.status, headers, body if isinstance(body, bytes) else body.encode())
    if _tokens(headers, "upgrade") != ["websocket"]:
        raise InvalidResponse("the Upgrade header does not say websocket")
    if "upgrade" not in _tokens(headers, "connection"):
        raise InvalidResponse("the Connection header does not say Upgrade")
    # Neither side of this comparison is a secret: the key went over the wire in the clear.
    if headers.get_all("sec-websocket-accept") != [accept_key(key)]:
        raise InvalidResponse("Sec-WebSocket-Accept does not answer our key")
    try:
        extensions = parse_extensions(headers)
    except InvalidRequest as exc:
        raise InvalidResponse(exc.detail) from exc
    chosen = headers.get_all("sec-websocket-protocol")
    if len(chosen) > 1 or any(name not in subprotocols for name in chosen):
        raise InvalidResponse("the server chose a subprotocol that we did not offer")
    return Answer(chosen[0] if chosen else None, extensions)
