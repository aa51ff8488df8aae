"""However the bytes are cut, what comes out is the same: events, errors, and at which message they stand.

The corpus holds conversations and violations of every kind, in both roles; each is fed whole, byte by
byte, in every pair of pieces, and in random pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from anyio_ws.exceptions import HandshakeError
from anyio_ws.http11 import RequestReader, ResponseReader
from anyio_ws.protocol import Protocol, Role
from anyio_ws.testing import build_frame

from ..frames import cut
from ..memory import ROLES
from ..support import build_answer, build_request

Feed = Callable[[list[bytes]], object]


def corpus(key: bytes | None) -> dict[str, bytes]:
    """Build the frame streams; every one ends in a Close, a violation, or in the middle of something."""

    def frame(opcode: int, payload: bytes = b"", **options: Any) -> bytes:
        return build_frame(opcode, payload, **{"key": key, **options})

    wrong_key = b"mask" if key is None else None
    close = frame(0x8, b"\x03\xe8bye")
    text = "grüße 𝄞".encode()
    return {
        "conversation": frame(0x1, text) + frame(0x2, bytes(range(200))) + frame(0x9, b"p") + close,
        "empty": frame(0x1) + frame(0x2) + frame(0x9) + frame(0xA) + frame(0x8),
        "fragments": frame(0x1, text[:5], fin=False)
        + frame(0x9, b"between")
        + frame(0x0, text[5:6], fin=False)
        + frame(0x0, fin=False)
        + frame(0x0, text[6:])
        + close,
        "lengths": frame(0x2, bytes(125)) + frame(0x2, bytes(126)) + frame(0x2, bytes(127)) + close,
        "after the Close": close + frame(0x1, b"ignored") + b"\xff\xff\xff",
        "unfinished": frame(0x1, b"whole") + frame(0x1, b"half of it")[:9],
        "mask": frame(0x1, b"ok") + build_frame(0x1, b"wrong", key=wrong_key),
        "rsv": frame(0x1, b"ok") + frame(0x1, b"x", rsv=4),
        "opcode": frame(0x1, b"ok") + frame(0x3, b"x"),
        "control opcode": frame(0xB, b"x"),
        "fragmented control": frame(0x9, b"x", fin=False),
        "long control": frame(0x9, bytes(126)),
        "length form": frame(0x2, b"x" * 10, length_form=16),
        "huge length form": frame(0x2, b"x" * 10, length_form=64),
        "most significant bit": frame(0x2, length=2**63 + 5, length_form=64),
        "too big": frame(0x2, bytes(100)) + frame(0x2, length=1_001),
        "fragments too big": frame(0x2, bytes(600), fin=False) + frame(0x0, bytes(401)),
        "continuation": frame(0x0, b"x"),
        "interleaved": frame(0x1, b"a", fin=False) + frame(0x2, b"b"),
        "utf8": frame(0x1, b"ok") + frame(0x1, b"good\xffbad"),
        "utf8 cut": frame(0x1, b"\xf0\x9d", fin=False) + frame(0x0, b"x"),
        "utf8 unfinished": frame(0x1, b"\xf0\x9d"),
        "surrogate": frame(0x1, b"\xed\xa0\x80"),
        "close code": frame(0x8, b"\x03\xed"),
        "close of one byte": frame(0x8, b"\x03"),
        "close reason": frame(0x8, b"\x03\xe8\xff"),
        "close inside": frame(0x1, b"a", fin=False) + frame(0x8, b"\x03\xe9"),
    }


def feed_frames(role: Role) -> Feed:
    """Return what feeds a machine, and says what came of it."""

    def feed(pieces: list[bytes]) -> object:
        protocol = Protocol(role, max_message_size=1_000)
        protocol.opened()
        messages = [message for piece in pieces for message in protocol.receive_data(piece)]
        error = protocol.error and (protocol.error.code, protocol.error.reason)
        return messages, error, protocol.state, protocol.close_code, protocol.close_reason

    return feed


HEADS = {
    "good": (RequestReader, build_request() + b"early"),
    "many": (RequestReader, build_request(more="X-Y: z\r\n" * 20)),
    "line feeds": (RequestReader, build_request().replace(b"\r\n", b"\n")),
    "folded": (RequestReader, build_request(more="X: a\r\n b\r\n")),
    "nul": (RequestReader, build_request(more="X: a\0b\r\n")),
    "long line": (RequestReader, build_request("/" + "x" * 600)),
    "long header": (RequestReader, build_request(more=f"X: {'x' * 600}\r\n")),
    "version": (RequestReader, build_request(line="GET / HTTP/2.0")),
    "TLS": (RequestReader, bytes.fromhex("1603010200010001fc0303") + bytes(range(100))),
    "unfinished": (RequestReader, build_request()[:50]),
    "answer": (ResponseReader, build_answer() + b"early"),
    "interim": (ResponseReader, b"HTTP/1.1 100 Continue\r\n\r\n" + build_answer()),
    "refusal": (ResponseReader, b"HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nbodyrest"),
    "chunks": (ResponseReader, b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    "nonsense": (ResponseReader, b"HTTP/1.1 1O1 x\r\n\r\n"),
}


def feed_head(kind: Any) -> Feed:
    """Return what feeds a reader of heads, and says what came of it."""

    def feed(pieces: list[bytes]) -> object:
        reader = kind(512, 30) if kind is RequestReader else kind()
        try:
            for position, piece in enumerate(pieces):
                head: Any = reader.feed(piece)
                if head is not None:
                    pairs = list(head.headers.pairs())
                    if getattr(head, "status", 101) != 101:  # nobody wants what is behind a refusal
                        return head.status, pairs, head.body
                    return type(head), pairs, bytes(reader.rest) + b"".join(pieces[position + 1 :])
        except HandshakeError as exc:
            return type(exc), str(exc)
        return "more is needed"

    return feed


def check(feed: Feed, wire: bytes, full: bool) -> int:
    """Feed bytes in every way, and compare; return in how many ways."""
    expected = feed([wire])
    size, draw = len(wire), Random(len(wire))
    ways = [[n] for n in range(size + 1)]
    ways += [
        sorted(draw.choices(range(size + 1), k=draw.randint(2, 9))) for _ in range(5_000 if full else 50)
    ]
    for positions in [list(range(size)), *ways]:
        assert feed(cut(wire, positions)) == expected, positions
    return 1 + len(ways)


@pytest.mark.attack("F14", "F21", "O03")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", corpus(None))
def test_frames_that_are_cut_anywhere_mean_the_same(
    name: str, role: Role, full_sweep: bool, cuts: Counter[str]
) -> None:
    """Messages, error, close code and state do not depend on where the bytes were cut."""
    wire = corpus(b"\x12\xab\x00\xff" if role is Role.SERVER else None)[name]
    cuts["splits"] += check(feed_frames(role), wire, full_sweep)


@pytest.mark.attack("H02", "H15", "H17", "S07")
@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_cut_anywhere_mean_the_same(name: str, full_sweep: bool, cuts: Counter[str]) -> None:
    """A head, its headers and what is behind it, or what is wrong with it: the same wherever it is cut."""
    kind, wire = HEADS[name]
    cuts["splits"] += check(feed_head(kind), wire, full_sweep)
