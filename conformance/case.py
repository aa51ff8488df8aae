"""What a case is: data that says what is sent and what must come back.

The frames of a case are the same whichever end is examined: a server gets them masked, a client gets them
plain. Three grades tell what an end made of a case:

* ``PASS``: what the RFC asks for, its SHOULDs included; where it leaves a choice, either,
* ``WEAK``: nothing bad got through and nobody hangs, but it is not what the RFC recommends: a close code or
  status that does not fit, a TCP connection that ends without a Close, a violation noticed late,
* ``FAIL``: something invalid was accepted, something valid was refused, or nothing happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from .wire import BINARY, CLOSE, KEY, TEXT, Frame, close_payload

DETAIL = "conformance-detail"  # what the code of an examined server says when it errs, and nobody may hear


class Grade(IntEnum):
    """How well an end did; the larger the worse."""

    PASS = 0
    WEAK = 1
    FAIL = 2


# --- steps --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send frames, or bytes as they are, together.

    :ivar times: how often all of them are sent, one after the other
    """

    items: tuple[Frame | bytes, ...]
    times: int = 1


@dataclass(frozen=True)
class Early:
    """Send the beginning of a frame, which alone must fail the connection; the rest follows if it does not.

    :ivar header: how many bytes of the header are sent; all when ``None``
    :ivar payload: how many bytes of the payload are sent behind a whole header
    :ivar codes: the close codes that fit
    :ivar hopeless: there is no rest to send: the declared length is beyond all measure
    """

    frame: Frame
    codes: frozenset[int]
    header: int | None = None
    payload: int = 0
    hopeless: bool = False


@dataclass(frozen=True)
class Message:
    """A message that must come next.

    :ivar missing: the grade when the connection ends without it
    """

    opcode: int
    data: bytes
    missing: Grade = Grade.FAIL


@dataclass(frozen=True)
class Pong:
    """A Pong with this payload must come, sooner or later.

    :ivar missing: the grade when the connection ends without it
    """

    data: bytes
    missing: Grade = Grade.FAIL


@dataclass(frozen=True)
class End:
    """The connection must end: a Close with one of these codes, then the end of the stream.

    :ivar codes: the close codes that fit; ``None`` is a Close without one
    :ivar bare: the grade of an end of the stream without a Close before it
    :ivar accepted: the grade of a message that comes instead
    """

    codes: frozenset[int | None]
    bare: Grade = Grade.WEAK
    accepted: Grade = Grade.FAIL


@dataclass(frozen=True)
class Hang:
    """Send the end of the stream, without a Close."""


Step = Send | Early | Message | Pong | End | Hang


# --- the opening handshake ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a server must answer to a request.

    :ivar opened: the grade of a 101
    :ivar refused: the grade of another status
    :ivar silent: the grade of no answer while the connection stays open
    :ivar hidden: a text that must be nowhere in the answer, its body included
    :ivar statuses: the statuses that fit a refusal; others are WEAK
    :ivar headers: headers the answer must have, each with a text that must be in its value
    :ivar extension: whether the 101 must (``True``) or must not (``False``) accept permessage-deflate
    :ivar params: parameters the accepted extension must have, such as ``server_max_window_bits=10``
    :ivar subprotocols: what ``Sec-WebSocket-Protocol`` of a 101 may say; ``""`` is no such header
    """

    opened: Grade = Grade.PASS
    refused: Grade = Grade.FAIL
    statuses: frozenset[int] = frozenset(range(400, 500))
    headers: tuple[tuple[str, str], ...] = ()
    extension: bool | None = None
    params: tuple[str, ...] = ()
    subprotocols: tuple[str, ...] = ("",)
    silent: Grade = Grade.FAIL
    hidden: str = ""


def accept(**details: object) -> Answer:
    """The request is correct and must be accepted."""
    return Answer(**details)  # type: ignore[arg-type]  # the fields check themselves


def refuse(*statuses: int, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """The request must be refused, with a status of 4xx or one of those given."""
    fitting = frozenset(range(400, 500)) | frozenset(statuses)
    return Answer(Grade.FAIL, Grade.PASS, fitting, headers)


def exactly(*statuses: int, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """The request must be refused with one of these statuses."""
    return Answer(Grade.FAIL, Grade.PASS, frozenset(statuses), headers)


def better_refused() -> Answer:
    """The request should be refused; accepting it is weak."""
    return Answer(Grade.WEAK, Grade.PASS)


def either() -> Answer:
    """The RFC leaves it open."""
    return Answer(Grade.PASS, Grade.PASS, frozenset(range(400, 600)))


FIELDS = {
    "Host": "{host}",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(line: str = "GET {path} HTTP/1.1", more: str = "", **fields: str | None) -> bytes:
    """Build an opening handshake, correct or not; ``{host}`` and ``{path}`` are filled in later.

    :param line: the request line
    :param more: header lines to add as they are
    :param fields: other values of the headers, ``sec_websocket_key=...``; ``None`` leaves one out
    """
    return _head(FIELDS, line, more, fields)


def _head(defaults: dict[str, str], line: str, more: str, fields: dict[str, str | None]) -> bytes:
    values = {name: fields.get(name.lower().replace("-", "_"), value) for name, value in defaults.items()}
    lines = [line, *(f"{name}: {value}" for name, value in values.items() if value is not None)]
    return ("\r\n".join(lines) + f"\r\n{more}\r\n").encode("latin-1")


@dataclass(frozen=True)
class Response:
    """What a client gets in answer to its request.

    :ivar data: the response; ``{accept}``, ``{protocol}`` and ``{extension}`` are filled in later
    :ivar flood: bytes that follow without end
    :ivar ends: the end of the stream follows
    :ivar drip: the bytes come one by one, slower than anybody has patience for
    """

    data: bytes
    flood: bytes = b""
    ends: bool = False
    drip: bool = False


ANSWER_FIELDS = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": "{accept}"}


def response(line: str = "HTTP/1.1 101 Switching Protocols", more: str = "", **fields: str | None) -> bytes:
    """Build the answer to an opening handshake, correct or not; see :func:`request`."""
    return _head(ANSWER_FIELDS, line, more, fields)


# --- cases --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One case.

    :ivar id: section and name, such as ``frames/unmasked-text``
    :ivar fact: what a correct end does, in a sentence
    :ivar source: where that is said, and the row of the table of attacks
    :ivar steps: what happens once the connection is open; it is closed in order if they do not end it
    :ivar variants: further runs of the case with other steps; the worst counts
    :ivar request: the opening handshake that is sent to a server
    :ivar hangs_up: the end of the stream follows the request
    :ivar answer: what must be answered to that; in a client's case the grades of what it makes of the
        response: taking the connection for open, and refusing it
    :ivar response: what a client gets in answer to its own opening handshake
    :ivar cuts: how what is sent is cut: ``"whole"``, ``"bytes"`` (one by one), ``"each"`` (in two, anywhere)
    :ivar deflate: the connection must have permessage-deflate, negotiated with this offer
    :ivar needs: what the examined end must have: ``"echo"``, ``"limit"``, ``"timeout"``, ``"deflate"``,
        ``"subprotocol"``, ``"context"`` (it keeps one from message to message),
        ``"client_max_window_bits"`` (it offers that), ``"faults"`` (its own code errs when it is told to,
        which no server does that was not written for this suite)
    :ivar ends: which ends it is for
    """

    id: str
    fact: str
    source: str
    steps: tuple[Step, ...] = ()
    variants: tuple[tuple[Step, ...], ...] = ()
    request: bytes = field(default=request())
    hangs_up: bool = False
    answer: Answer = field(default=accept())
    cuts: str = "whole"
    deflate: str = ""
    needs: frozenset[str] = frozenset()
    response: Response = field(default=Response(response()))
    ends: tuple[str, ...] = ("server", "client")

    @property
    def section(self) -> str:
        """The section: the part of the id before the slash."""
        return self.id.partition("/")[0]


@dataclass(frozen=True)
class Verdict:
    """What became of a case."""

    grade: Grade
    detail: str = ""


class NotRun(Exception):
    """The examined end lacks what a case needs."""


class Judged(Exception):
    """A case is decided before its end."""

    def __init__(self, grade: Grade, detail: str) -> None:
        super().__init__(detail)
        self.verdict = Verdict(grade, detail)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of several verdicts, the first of these."""
    return max(verdicts, key=lambda verdict: verdict.grade, default=Verdict(Grade.PASS))


# --- words to write tables with -----------------------------------------------------------------------


def send(*items: Frame | bytes, times: int = 1) -> Send:
    """Send these together, all of them so often."""
    return Send(items, times)


def end(*codes: int | None, bare: Grade = Grade.WEAK, accepted: Grade = Grade.FAIL) -> End:
    """Expect the end with one of these codes."""
    return End(frozenset(codes), bare, accepted)


def early(
    frame: Frame, *codes: int, header: int | None = None, payload: int = 0, hopeless: bool = False
) -> Early:
    """Expect the end after the beginning of a frame."""
    return Early(frame, frozenset(codes), header, payload, hopeless)


def text(data: bytes | str, **details: object) -> Frame:
    """A frame of text."""
    payload = data.encode() if isinstance(data, str) else data
    return Frame(TEXT, payload, **details)  # type: ignore[arg-type]  # the fields check themselves


def binary(data: bytes, **details: object) -> Frame:
    """A frame of binary data."""
    return Frame(BINARY, data, **details)  # type: ignore[arg-type]  # the fields check themselves


def close(code: int | None = 1000, reason: bytes = b"") -> Frame:
    """A Close."""
    return Frame(CLOSE, close_payload(code, reason))


def echoed(*frames: Frame, opcode: int | None = None) -> tuple[Step, ...]:
    """Send frames that make one message, and expect it back."""
    data = b"".join(frame.payload for frame in frames if frame.opcode < CLOSE)
    kind = frames[0].opcode if opcode is None else opcode
    return send(*frames), Message(kind, data)
