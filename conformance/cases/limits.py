"""What is larger than an end accepts: RFC 6455 §10.4, close code 1009.

The limit is told to the check (``--limit``), since no RFC sets one.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case, Grade, Message, Pong, Step, early, echoed, end, send, text
from ..wire import BINARY, CONTINUATION, PING, TEXT, Frame
from .frames import split

_LIMIT = frozenset({"limit"})
_ECHO = frozenset({"limit", "echo"})


def cases(limit: int) -> Iterator[Case]:
    """Yield the cases of the section.

    :param limit: bytes of the longest message that the examined end takes
    """
    source = "RFC 6455 §7.4.1, §10.4; F18"
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        fact = f"A {name} message as long as is accepted is received."
        yield Case(f"limits/{name}-at-limit", fact, source, echoed(Frame(opcode, b"x" * limit)), needs=_ECHO)
        pieces = split(opcode, b"x" * (limit // 2), b"x" * (limit - limit // 2))
        yield Case(f"limits/{name}-at-limit-fragments", fact, source, echoed(*pieces), needs=_ECHO)
        fact = f"A {name} message one byte too long fails the connection."
        frame = Frame(opcode, b"x" * (limit + 1))
        yield Case(f"limits/{name}-over", fact, source, (send(frame), end(1009)), needs=_LIMIT)
        pieces = split(opcode, b"x" * limit, b"x")
        yield Case(f"limits/{name}-over-fragments", fact, source, (send(*pieces), end(1009)), needs=_LIMIT)
        fact = "The header of a frame that is too long fails the connection, before its payload comes."
        yield Case(
            f"limits/{name}-over-early", fact, "RFC 6455 §10.4; F17", (early(frame, 1009),), needs=_LIMIT
        )
        fact = "The header of the fragment that makes a message too long fails the connection."
        steps: tuple[Step, ...] = (
            send(Frame(opcode, b"x" * limit, fin=False)),
            early(Frame(CONTINUATION, b"x"), 1009),
        )
        yield Case(f"limits/{name}-over-fragments-early", fact, source, steps, needs=_LIMIT)
        yield from _huge(opcode, name)
    fact = "Pings do not count towards the length of the message they come in."
    frames = (text(b"x" * (limit - 1), fin=False), Frame(PING, b"p" * 125), Frame(CONTINUATION, b"x"))
    yield Case(
        "limits/pings-do-not-count",
        fact,
        source,
        (send(*frames), Message(TEXT, b"x" * limit, Grade.WEAK)),
        needs=_ECHO,
    )
    pieces = split(TEXT, *(b"x" * 64 for _ in range(limit // 64)))
    fact = "A message as long as is accepted is received in fragments of 64 bytes, too."
    yield Case("limits/text-at-limit-small-fragments", fact, source, echoed(*pieces), needs=_ECHO)
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        fact = "Fragments without data are not accepted without end, though they add nothing to the message."
        empty = send(Frame(CONTINUATION, fin=False), times=20_000)
        steps = (send(Frame(opcode, b"x", fin=False)), empty, end(1008, 1009, 1002))
        yield Case(f"policy/empty-fragments-{name}", fact, "F19", steps)
        fact = "Fragments of one byte are not accepted without end, though their message is still short."
        one = Frame(CONTINUATION, b"x", fin=False)
        steps = (send(Frame(opcode, b"x", fin=False)), send(one, times=20_000), end(1008, 1009))
        yield Case(f"policy/one-byte-fragments-{name}", fact, "F20", steps)
        yield _dripped(opcode, name, limit)
    fact = "The limit is one of each message, not of all."
    steps = echoed(text(b"x" * limit)) * 3
    yield Case("limits/three-at-limit", fact, source, steps, needs=_ECHO)


def _dripped(opcode: int, name: str, limit: int) -> Case:
    """Return the case of fragments of one byte beyond the limit; Pings tell how far an end has come."""
    one = Frame(CONTINUATION, b"x", fin=False)
    steps: list[Step] = [send(Frame(opcode, b"x", fin=False))]
    for start in range(0, limit, 4_096):
        ping = Frame(PING, str(start).encode())
        steps += [send(one, times=min(4_096, limit - start)), send(ping), Pong(ping.payload, Grade.PASS)]
    return Case(
        f"limits/{name}-over-by-single-bytes",
        "Fragments of one byte that never end fail the connection at the limit, or before.",
        "RFC 6455 §5.4, §10.4; F20",
        (*steps, end(1008, 1009)),
        needs=_LIMIT,
    )


def _huge(opcode: int, name: str) -> Iterator[Case]:
    for length in (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**63 - 15, 2**63 - 1):
        fact = f"A frame that announces {length} bytes fails the connection at once."
        frame = Frame(opcode, form=8, length=length)
        yield Case(
            f"limits/{name}-announced-{length:x}",
            fact,
            "RFC 6455 §10.4; F09, F17",
            (early(frame, 1009, hopeless=True),),
            needs=_LIMIT,
        )
        start = Frame(opcode, b"x", fin=False)
        fact = f"A continuation that announces {length} bytes fails the connection at once."
        steps: tuple[Step, ...] = (
            send(start),
            early(Frame(CONTINUATION, form=8, length=length), 1009, hopeless=True),
        )
        yield Case(f"limits/{name}-continued-{length:x}", fact, "RFC 6455 §10.4; F09", steps, needs=_LIMIT)
