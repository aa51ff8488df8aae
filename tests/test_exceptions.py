"""The error tree: who did it, and what each error says and carries."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_ws import exceptions
from anyio_ws.events import CloseCode
from anyio_ws.exceptions import (
    ConnectionClosed,
    HandshakeError,
    HandshakeRejected,
    HeaderPairs,
    InvalidRequest,
    InvalidResponse,
    LocalProtocolError,
    Reject,
    RemoteProtocolError,
    WebSocketError,
)

DEFINED_ABOVE_ANYIO = {"ConnectionEnded", "ConnectionShut", "ConnectionBroken"}

SAMPLES: list[tuple[WebSocketError, str]] = [
    (WebSocketError("something"), "something"),
    (LocalProtocolError("not now"), "not now"),
    (RemoteProtocolError(CloseCode.PROTOCOL_ERROR, "too bad"), "too bad (close code 1002)"),
    (RemoteProtocolError(4321, "their own"), "their own (close code 4321)"),
    (HandshakeError("no luck"), "no luck"),
    (InvalidRequest(405, "POST", [("Allow", "GET")]), "POST (HTTP status 405)"),
    (InvalidResponse("no Upgrade"), "no Upgrade"),
    (HandshakeRejected(404, {"server": "x"}, b"no"), "the server answered with HTTP status 404"),
    (Reject(403), "rejected with HTTP status 403"),
    (Reject(403, "Not You", headers={"a": "b"}, body=b"c"), "rejected with HTTP status 403 Not You"),
    (ConnectionClosed(1006), "the connection is closed with code 1006"),
    (
        ConnectionClosed(CloseCode.GOING_AWAY, "caf\u00e9\r\n"),
        r"the connection is closed with code 1001: 'caf\xe9\r\n'",
    ),
]

every_sample = pytest.mark.parametrize(
    ("error", "sentence"),
    SAMPLES,
    ids=[f"{type(error).__name__}-{i}" for i, (error, _) in enumerate(SAMPLES)],
)


def drawn_tree() -> dict[str, str]:
    """Read the tree in the module's docstring: the name of each error to the name of its parent."""
    drawing = inspect.cleandoc(exceptions.__doc__ or "")
    path = ["WebSocketError"]
    parents: dict[str, str] = {}
    for branch, name in re.findall(r"^ {4}([│ ]*[├└]── )(\w+)", drawing, re.MULTILINE):
        depth = len(branch) // 4
        path[depth:] = [name]
        parents[name] = path[depth - 1]
    return parents


def test_errors_form_the_tree_that_the_docstring_draws() -> None:
    """Every error of the module stands in the drawing, below the class that it inherits from."""
    defined = {
        name: value.__base__.__name__
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, WebSocketError) and value.__base__
    }
    drawn = {"WebSocketError": "Exception", **drawn_tree()}
    elsewhere = {name: drawn.pop(name) for name in DEFINED_ABOVE_ANYIO}
    assert defined == drawn
    assert set(elsewhere.values()) == {"ConnectionClosed"}


@every_sample
def test_error_says_what_happened_in_one_line(error: WebSocketError, sentence: str) -> None:
    """The str of an error is its sentence, with the code or status and without line breaks."""
    assert str(error) == sentence
    assert sentence.isprintable()


@every_sample
@pytest.mark.parametrize(
    "clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_error_survives_being_copied(
    error: WebSocketError, sentence: str, clone: Callable[[WebSocketError], WebSocketError]
) -> None:
    """A copied or pickled error is of the same class, says the same and has the same attributes."""
    copied = clone(error)
    assert (type(copied), str(copied), vars(copied)) == (type(error), sentence, vars(error))


def test_remote_protocol_error_carries_code_and_reason() -> None:
    """A violation by the peer carries what the Close frame will say."""
    error = RemoteProtocolError(1009, "big")
    assert (error.code, error.reason) == (1009, "big")


def test_invalid_request_carries_status_detail_and_headers() -> None:
    """A bad request carries its HTTP status, the detail, and headers as a tuple, empty by default."""
    error = InvalidRequest(426, "old", iter([("Sec-WebSocket-Version", "13")]))
    assert (error.status, error.detail, error.headers) == (426, "old", (("Sec-WebSocket-Version", "13"),))
    assert InvalidRequest(400, "bad").headers == ()


def test_handshake_rejected_carries_the_response() -> None:
    """A refusal by the server carries the status, headers and body of its response."""
    headers = {"retry-after": "5"}
    error = HandshakeRejected(503, headers, b"full")
    assert (error.status, error.headers, error.body) == (503, headers, b"full")


@pytest.mark.parametrize("status", [300, 403, 599])
def test_reject_takes_every_status_that_refuses(status: int) -> None:
    """A refusal has its status, and an empty reason, no headers and no body unless they are given."""
    refusal = Reject(status)
    assert (refusal.status, refusal.reason, refusal.headers, refusal.body) == (status, "", [], b"")


@pytest.mark.parametrize("status", [-403, 0, 101, 200, 299, 600, 1000])
def test_reject_refuses_a_status_that_does_not_refuse(status: int) -> None:
    """A status below 300 or above 599 is a ValueError that names the field and the number."""
    with pytest.raises(ValueError, match=rf"^status: .* not {status}$"):
        Reject(status)


@pytest.mark.parametrize(
    "headers",
    [{"a": "1", "b": "2"}, [("a", "1"), ("b", "2")], iter([("a", "1"), ("b", "2")])],
    ids=["mapping", "pairs", "iterator"],
)
def test_reject_takes_headers_as_mapping_or_pairs(headers: HeaderPairs) -> None:
    """However the headers of a refusal are given, they are kept as a list of pairs."""
    refusal = Reject(401, "Who?", headers=headers, body=b"no")
    assert refusal.headers == [("a", "1"), ("b", "2")]
    assert (refusal.reason, refusal.body) == ("Who?", b"no")


def test_connection_closed_carries_code_and_reason() -> None:
    """A closed connection's error carries the close code and a reason, empty unless given."""
    error = ConnectionClosed(1011, "oops")
    assert (error.code, error.reason) == (1011, "oops")
    assert ConnectionClosed(1005).reason == ""


@pytest.mark.attack("L06")
@settings(deadline=None, derandomize=True, database=None)
@given(st.text(st.characters()), st.integers(0, 65535), st.binary())
def test_error_is_represented_in_proportion_to_what_it_carries(text: str, number: int, body: bytes) -> None:
    """The repr and str of every error exist for any text, and are at most ten times as long as its parts."""
    errors = [
        LocalProtocolError(text),
        RemoteProtocolError(number, text),
        InvalidRequest(number, text, [(text, text)]),
        InvalidResponse(text),
        HandshakeRejected(number, {text: text}, body),
        Reject(403, text, headers=[(text, text)], body=body),
        ConnectionClosed(number, text),
    ]
    longest = max(len(render(error)) for error in errors for render in (repr, str))
    assert longest <= 10 * (2 * len(text) + len(body)) + 150


@pytest.mark.attack("L02")
def test_rejection_shows_neither_headers_nor_body() -> None:
    """A refusal may carry cookies and tokens; a log or traceback gets to see its status only."""
    error = HandshakeRejected(401, {"set-cookie": "session=secret"}, b"secret")
    assert repr(error) == "HandshakeRejected(401)"
    assert "secret" not in f"{error!s} {error!r}"
