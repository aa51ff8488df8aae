"""The closing handshake: RFC 6455 §5.5.1, §7."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case, Grade, Hang, Message, Step, close, early, echoed, end, send, text
from ..wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close_payload
from .frames import split

_ECHO = frozenset({"echo"})
_VALID = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3001, 3999, 4000, 4001, 4500, 4999)
_REGISTERED = (1012, 1013, 1014)  # by IANA, after the RFC
_INVALID = (
    0,
    1,
    125,
    256,
    998,
    999,
    1004,
    1005,
    1006,
    1015,
    1016,
    1017,
    1099,
    1100,
    1999,
    2000,
    2500,
    2998,
    2999,
)
_STEP = 97  # how many codes of a range are passed over, unless all are wanted


def cases(*, exhaustive: bool = False) -> Iterator[Case]:
    """Yield the cases of the section.

    :param exhaustive: try each of the 65,536 codes in the families, in place of samples of them
    """
    yield from _codes()
    yield from _families(1 if exhaustive else _STEP)
    yield from _reasons()
    yield from _inside_fragments()
    yield from _after_close()
    yield from _with_other_things()
    yield from _seen_by_the_peer()


def _codes() -> Iterator[Case]:
    for code in _VALID:
        fact = f"A Close with {code} is answered with the same code."
        yield Case(f"close/code-{code}", fact, "RFC 6455 §5.5.1, §7.4; F26", (send(close(code)), end(code)))
    for code in _REGISTERED:
        fact = f"A Close with {code}, which IANA registered after the RFC, is answered."
        yield Case(
            f"close/code-{code}", fact, "RFC 6455 §7.4.2, IANA; F22", (send(close(code)), end(code, 1002))
        )
    for code in _INVALID:
        fact = f"A Close with {code}, which nobody may send, fails the connection."
        yield Case(f"close/bad-code-{code}", fact, "RFC 6455 §7.4; F22", (send(close(code)), end(1002)))
    fact = "A Close without a code is answered without one, or with 1000."
    yield Case("close/no-code", fact, "RFC 6455 §5.5.1; F26", (send(close(None)), end(None, 1000)))
    yield Case(
        "close/one-byte",
        "A Close with half a code fails the connection.",
        "RFC 6455 §5.5.1; F23",
        (send(Frame(CLOSE, b"\x03")), end(1002)),
    )
    for code in (1000, 3000):
        fact = "A Close is answered wherever its bytes are cut."
        yield Case(
            f"close/cut-anywhere-{code}",
            fact,
            "RFC 6455 §5.5.1",
            (send(close(code, b"bye")), end(code)),
            cuts="each",
        )


def _families(step: int) -> Iterator[Case]:
    for first, last, allowed in (
        (0, 999, False),
        (1004, 1006, False),
        (1015, 2999, False),
        (3000, 3999, True),
        (4000, 4999, True),
    ):
        codes = [*range(first, last, step), last]
        does = "are answered with the same code" if allowed else "fail the connection"
        runs = tuple((send(close(code)), end(code if allowed else 1002)) for code in codes)
        fact = f"The close codes from {first} to {last} {does}."
        yield Case(f"close/all-{first}-{last}", fact, "RFC 6455 §7.4; F22", variants=runs)
    # The RFC says nothing about these; a peer may take them for invalid, or for somebody's own.
    codes = [*range(5000, 65_535, step * 20 if step > 1 else 1), 65_535]
    runs = tuple((send(close(code)), end(1002, 1000)) for code in codes)
    fact = "Close codes from 5000 to 65535 fail the connection, and are not sent back."
    yield Case("close/all-5000-65535", fact, "RFC 6455 §7.4.2; F22", variants=runs)


def _reasons() -> Iterator[Case]:
    for size in (1, 2, 50, 122, 123):
        fact = f"A Close with a reason of {size} bytes is answered with its code."
        steps = (send(close(1000, b"r" * size)), end(1000))
        yield Case(f"close/reason-{size}", fact, "RFC 6455 §5.5.1", steps)
    for name, reason in (("two", "é"), ("three", "€"), ("four", "😀"), ("mixed", "a\u00e9\u20ac\U0001d11e")):
        fact = "A Close may give its reason in any characters."
        steps = (send(close(1000, reason.encode())), end(1000))
        yield Case(f"close/reason-{name}", fact, "RFC 6455 §5.5.1", steps)
    for name, cut in (("two", b"\xc3"), ("three", b"\xe2\x82"), ("four", b"\xf0\x9f\x98")):
        fact = "A reason that ends inside a character fails the connection."
        steps = (send(close(1000, cut)), end(1007))
        yield Case(f"close/reason-truncated-{name}", fact, "RFC 6455 §5.5.1, §8.1; F23", steps)
    fact = "A Close with an invalid code and an invalid reason fails the connection."
    yield Case(
        "close/bad-code-and-reason",
        fact,
        "RFC 6455 §5.5.1; F22",
        (send(close(999, b"\xff")), end(1002, 1007)),
    )


def _inside_fragments() -> Iterator[Case]:
    for code in (1000, 1001, 1011, 3000, 4999, None):
        fact = "A Close inside a fragmented message is answered with its code."
        steps = (
            send(text("unfinished", fin=False), close(code)),
            end(*((None, 1000) if code is None else (code,))),
        )
        yield Case(f"close/inside-fragments-{code}", fact, "RFC 6455 §5.4, §5.5.1; F24", steps)
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        for count in (1, 2, 5):
            frames = [
                Frame(opcode, b"x", fin=False),
                *(Frame(CONTINUATION, b"x", fin=False) for _ in range(count - 1)),
            ]
            fact = f"A Close after {count} fragments of {name} is answered with its code."
            steps = (send(*frames, close(1000)), end(1000))
            yield Case(f"close/after-{count}-fragments-{name}", fact, "RFC 6455 §5.4, §5.5.1; F24", steps)
    fact = "A Close inside a character of a fragmented text is answered with its code."
    yield Case(
        "close/inside-character",
        fact,
        "RFC 6455 §5.4, §5.5.1; F24",
        (send(text(b"\xe2\x82", fin=False), close(1000)), end(1000)),
    )
    fact = "A Close inside a fragmented message answers Pings before it, too."
    steps = (send(text("a", fin=False), Frame(PING, b"p"), close(1001)), end(1001))
    yield Case("close/inside-fragments-after-ping", fact, "RFC 6455 §5.4; F24", steps)


def _after_close() -> Iterator[Case]:
    junk: dict[str, list[Frame | bytes]] = {
        "text": [text("too late")],
        "binary": [Frame(BINARY, b"too late")],
        "ping": [Frame(PING, b"too late")],
        "pong": [Frame(PONG, b"too late")],
        "second-close": [close(1000)],
        "other-close": [close(3000)],
        "invalid-close": [close(999)],
        "fragment": [text("too late", fin=False)],
        "reserved-opcode": [Frame(3, b"too late")],
        "unmasked-or-masked": [Frame(TEXT, b"too late", masked=False)],
        "garbage": [bytes(range(256))],
        "much": [Frame(BINARY, bytes(60_000)) for _ in range(4)],
    }
    for name, items in junk.items():
        fact = "What comes after a Close is discarded: it is answered once, and nothing else is sent."
        yield Case(
            f"close/then-{name}", fact, "RFC 6455 §1.4, §5.5.1; F25", (send(close(1000), *items), end(1000))
        )
    fact = "A Close followed by the end of the stream is answered."
    yield Case("close/then-end", fact, "RFC 6455 §7.1.1", (send(close(1000)), Hang(), end(1000)))


def _with_other_things() -> Iterator[Case]:
    before: dict[str, tuple[Frame, ...]] = {
        "message": (text("last words"),),
        "fragments": tuple(split(TEXT, b"last ", b"words")),
        "ping": (Frame(PING, b"p"), text("last words")),
    }
    for name, frames in before.items():
        steps: tuple[Step, ...] = (
            send(*frames, close(1001)),
            Message(TEXT, b"last words", Grade.WEAK),
            end(1001),
        )
        fact = "A message right before a Close is answered before the Close is."
        yield Case(f"close/right-after-{name}", fact, "RFC 6455 §5.5.1, §7.1.2; H22", steps, needs=_ECHO)
    frames = tuple(text(str(i)) for i in range(50))
    steps = (
        send(*frames, close(1000)),
        *(Message(TEXT, str(i).encode(), Grade.WEAK) for i in range(50)),
        end(1000),
    )
    fact = "Fifty messages right before a Close are all answered."
    yield Case("close/right-after-fifty-messages", fact, "RFC 6455 §7.1.2; H22", steps, needs=_ECHO)
    echo = echoed(text("hello"))
    yield Case(
        "close/after-echo",
        "A connection that was used is closed in order.",
        "RFC 6455 §7.1.2",
        (*echo, send(close(1000)), end(1000)),
        needs=_ECHO,
    )
    fact = "The end of the stream without a Close ends the connection."
    yield Case(
        "close/end-of-stream",
        fact,
        "RFC 6455 §7.1.5; O02",
        (Hang(), end(1000, 1001, 1002, 1011, bare=Grade.PASS)),
    )
    fact = "The end of the stream inside a frame ends the connection, and nothing of the frame is delivered."
    begun = text("0123456789").encode(True)
    yield Case(
        "close/end-inside-frame",
        fact,
        "RFC 6455 §7.1.5; O02",
        (send(begun[0] + begun[1][:5]), Hang(), end(1000, 1001, 1002, 1011, bare=Grade.PASS)),
        ends=("server",),
    )
    fact = "The end of the stream inside a fragmented message ends the connection; nothing is delivered."
    yield Case(
        "close/end-inside-message",
        fact,
        "RFC 6455 §7.1.5; O02",
        (send(text("part", fin=False)), Hang(), end(1000, 1001, 1002, 1011, bare=Grade.PASS)),
    )


def _seen_by_the_peer() -> Iterator[Case]:
    backlog = [Frame(BINARY, bytes(60_000)) for _ in range(18)]
    violations: dict[str, tuple[Frame, int]] = {
        "reserved-bit": (text("x", rsv=2), 1002),
        "reserved-opcode": (Frame(3), 1002),
        "stray-continuation": (Frame(CONTINUATION, b"x"), 1002),
        "bad-text": (text(b"\xff"), 1007),
        "bad-close": (close(999), 1002),
        "long-ping": (Frame(PING, bytes(126)), 1002),
    }
    for name, (frame, code) in violations.items():
        fact = "The Close that says what was wrong arrives, though a megabyte waits behind the violation."
        yield Case(f"close/visible-{name}", fact, "RFC 6455 §7.1.7; F27", (send(frame, *backlog), end(code)))
    fact = "The answer to a Close arrives, though a megabyte waits behind it."
    yield Case("close/visible-answer", fact, "RFC 6455 §7.1.1; F27", (send(close(1000), *backlog), end(1000)))
    fact = "A violation in the first frame is answered by a Close, not only by the end of the stream."
    for name, (frame, code) in violations.items():
        yield Case(
            f"close/first-frame-{name}", fact, "RFC 6455 §7.1.7", (send(frame), end(code)), cuts="bytes"
        )
    early_close = close_payload(1000)
    fact = "A Close that announces one byte fails the connection before that byte comes, or right then."
    yield Case(
        "close/one-byte-early",
        fact,
        "RFC 6455 §5.5.1; F23",
        (early(Frame(CLOSE, early_close[:1]), 1002, payload=1),),
    )
