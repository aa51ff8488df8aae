"""Every error of the package, in one tree.

The first question an error answers is *who did it*: you (a call that is not allowed), they (a peer
that broke the protocol), or nobody (the connection has ended). The second, for an ended connection,
is AnyIO's: did it end in order, did we close it, or did it break::

    WebSocketError
    ├── LocalProtocolError          you: this call is not allowed in this state
    ├── RemoteProtocolError         they: broke RFC 6455; carries the close code to fail with
    ├── HandshakeError              no connection came about
    │   ├── InvalidRequest          they: a request that gets an HTTP error instead of 101
    │   ├── InvalidResponse         they: an answer that is not a correct opening handshake
    │   └── HandshakeRejected       they: answered with another status than 101
    ├── Reject                      raise it in ``init`` to refuse a connection
    └── ConnectionClosed            nobody: the connection is no longer open
        ├── ConnectionEnded         in order, by the peer         (also an anyio.EndOfStream)
        ├── ConnectionShut          in order, by this side        (also an anyio.ClosedResourceError)
        └── ConnectionBroken        without a closing handshake   (also an anyio.BrokenResourceError)

The last three inherit from AnyIO's exceptions and are therefore defined in ``closing.py``, the first
module that is both above AnyIO and in need of them; this module knows the standard library only.

Arguments that are wrong whatever the state (a close code that may not be sent, a header value with a
line break) are plain ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

HeaderPairs: TypeAlias = "Mapping[str, str] | Iterable[tuple[str, str]]"


class WebSocketError(Exception):
    """The base of all errors of this package."""


class LocalProtocolError(WebSocketError):
    """We asked for something that the protocol does not allow in the present state."""


class RemoteProtocolError(WebSocketError):
    """The peer violated RFC 6455 or one of our limits; *fail the connection* (RFC 6455 §7.1.7).

    :ivar code: the close code that tells the peer what was wrong (RFC 6455 §7.4.1)
    :ivar reason: the sentence that says it, at most 123 bytes of UTF-8
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (close code {int(self.code)})"


class HandshakeError(WebSocketError):
    """The opening handshake failed; there is no connection (RFC 6455 §4)."""


class InvalidRequest(HandshakeError):
    """A client's request is not an acceptable opening handshake (RFC 6455 §4.2.1).

    :ivar status: the HTTP status to answer with
    :ivar detail: what was wrong, for the log and the response's body
    :ivar headers: further headers that the status asks for, such as ``Allow`` with 405
    """

    def __init__(self, status: int, detail: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)

    def __str__(self) -> str:
        return f"{self.detail} (HTTP status {self.status})"


class InvalidResponse(HandshakeError):
    """A server's answer is not a correct end of the opening handshake (RFC 6455 §4.1)."""


class HandshakeRejected(HandshakeError):
    """The server answered the opening handshake with another status than 101.

    :ivar status: the HTTP status code
    :ivar headers: the response's headers, a case-insensitive mapping
    :ivar body: the response's body, as far as it arrived and fitted into the limit
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status, headers, body)
        self.status = status
        self.headers = headers
        self.body = body

    def __str__(self) -> str:
        return f"the server answered with HTTP status {self.status}"

    def __repr__(self) -> str:  # headers and body may be secrets
        return f"{type(self).__name__}({self.status})"


class Reject(WebSocketError):
    """Raise this while the opening handshake runs to refuse the connection.

    :param status: the HTTP status, 300 to 599
    :param reason: the reason phrase; the standard one of the status when empty
    :param headers: headers of the response, a mapping or pairs
    :param body: the response's body

    :raises ValueError: when the status is none of 300 to 599. Headers and reason phrase are checked
        when the response is built.
    """

    def __init__(
        self, status: int, reason: str = "", *, headers: HeaderPairs = (), body: bytes = b""
    ) -> None:
        if not 300 <= status <= 599:
            raise ValueError(f"status: a refusal takes 300 to 599, not {status}")
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers: list[tuple[str, str]] = list(
            headers.items() if isinstance(headers, Mapping) else headers
        )
        self.body = body

    def __str__(self) -> str:
        return f"rejected with HTTP status {self.status} {self.reason}".rstrip()


class ConnectionClosed(WebSocketError):
    """The connection is not open any more; what was asked for could not be done.

    :ivar code: the close code: the peer's, or the one this side failed the connection with; 1005 when
        the peer's Close had none, 1006 when the connection broke without a closing handshake
    :ivar reason: the reason that came with the code, often empty
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        said = f": {self.reason!a}" if self.reason else ""
        return f"the connection is closed with code {int(self.code)}{said}"
