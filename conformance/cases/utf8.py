"""Text is UTF-8: RFC 6455 §8.1, RFC 3629."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case, Message, Pong, Step, early, echoed, end, send, text
from ..wire import BINARY, CONTINUATION, PING, TEXT, Frame, close_payload
from .frames import split

_ECHO = frozenset({"echo"})
_VALID = {
    "nul": "\0",
    "last-of-one": "\x7f",
    "first-of-two": "\x80",
    "last-of-two": "\u07ff",
    "first-of-three": "\u0800",
    "before-surrogates": "\ud7ff",
    "after-surrogates": "\ue000",
    "replacement": "\ufffd",
    "noncharacter-fffe": "\ufffe",
    "noncharacter-ffff": "\uffff",
    "noncharacter-fdd0": "\ufdd0",
    "byte-order-mark": "\ufeff",
    "first-of-four": "\U00010000",
    "noncharacter-1fffe": "\U0001fffe",
    "last-of-four": "\U0010ffff",
    "greek": "\u03ba\u1f79\u03c3\u03bc\u03b5",
    "combining": "e\u0301\u20dd",
    "emoji": "\U0001f469\u200d\U0001f52c",
    "every-length": "a\u00e9\u20ac\U0001d11e",
}
# Each with the offset of the first byte that no valid text can have there (RFC 3629 §4).
_INVALID = {
    "continuation-80": (b"\x80", 0),
    "continuation-bf": (b"\xbf", 0),
    "two-continuations": (b"\x80\xbf", 0),
    "overlong-c0": (b"\xc0\x80", 0),
    "overlong-c1": (b"\xc1\xbf", 0),
    "overlong-e0-80": (b"\xe0\x80\x80", 1),
    "overlong-e0-9f": (b"\xe0\x9f\xbf", 1),
    "overlong-f0-80": (b"\xf0\x80\x80\x80", 1),
    "overlong-f0-8f": (b"\xf0\x8f\xbf\xbf", 1),
    "overlong-five": (b"\xf8\x88\x80\x80\x80", 0),
    "overlong-six": (b"\xfc\x84\x80\x80\x80\x80", 0),
    "surrogate-first": (b"\xed\xa0\x80", 1),
    "surrogate-last": (b"\xed\xbf\xbf", 1),
    "surrogate-pair": (b"\xed\xa0\x80\xed\xb0\x80", 1),
    "above-10ffff": (b"\xf4\x90\x80\x80", 1),
    "lead-f5": (b"\xf5\x80\x80\x80", 0),
    "lead-f7": (b"\xf7\xbf\xbf\xbf", 0),
    "lead-f8": (b"\xf8", 0),
    "lead-fe": (b"\xfe", 0),
    "lead-ff": (b"\xff", 0),
    "utf-16-mark": (b"\xff\xfe", 0),
    "two-then-ascii": (b"\xc3(", 1),
    "three-then-ascii": (b"\xe2(\xa1", 1),
    "three-then-ascii-late": (b"\xe2\x82(", 2),
    "four-then-ascii": (b"\xf0(\x8c\xbc", 1),
    "four-then-ascii-later": (b"\xf0\x90(\xbc", 2),
    "four-then-ascii-last": (b"\xf0\x90\x8c(", 3),
    "two-then-lead": (b"\xc3\xc3\xa9", 1),
    "three-then-lead": (b"\xe2\x82\xe2\x82\xac", 2),
    "latin-1": (b"caf\xe9 ", 4),
}
_TRUNCATED = {
    "two": b"\xc3",
    "three-at-one": b"\xe2",
    "three-at-two": b"\xe2\x82",
    "four-at-one": b"\xf0",
    "four-at-two": b"\xf0\x9f",
    "four-at-three": b"\xf0\x9f\x98",
}


def cases() -> Iterator[Case]:
    """Yield the cases of the section."""
    yield from _valid()
    yield from _invalid()
    yield from _truncated()
    yield from _elsewhere()


def _valid() -> Iterator[Case]:
    for name, words in _VALID.items():
        data = words.encode()
        source = "RFC 6455 §5.6, RFC 3629; F14"
        fact = f"Text with {words!a} is received as it is."
        yield Case(f"utf8/valid-{name}", fact, source, echoed(text(data)), needs=_ECHO, cuts="bytes")
        fact = f"Text with {words!a} may be cut between any two bytes of it by fragments."
        steps: tuple[Step, ...] = echoed(*split(TEXT, *(bytes([byte]) for byte in data)))
        yield Case(f"utf8/valid-{name}-in-fragments", fact, source, steps, needs=_ECHO)
    data = "a\u00e9\u20ac\U0001d11ez".encode()
    for at in range(1, len(data)):
        fact = f"Two fragments that cut {data!r} after {at} bytes are received as one text."
        steps = echoed(*split(TEXT, data[:at], data[at:]))
        yield Case(f"utf8/cut-{at}", fact, "RFC 6455 §5.6; F14", steps, needs=_ECHO, cuts="each")


def _invalid() -> Iterator[Case]:
    for name, (data, bad) in _INVALID.items():
        source = "RFC 6455 §8.1; F13"
        fact = f"Text with {data!r} fails the connection."
        yield Case(f"utf8/invalid-{name}", fact, source, (send(text(b"ok " + data)), end(1007)))
        pieces = split(TEXT, b"ok ", *(bytes([byte]) for byte in data), b"")
        yield Case(f"utf8/invalid-{name}-in-fragments", fact, source, (send(*pieces), end(1007)))
        fact = f"Byte {bad + 1} of {data!r} fails the connection as soon as it comes."
        frame = text(b"ok " + data + b" and more")
        yield Case(
            f"utf8/invalid-{name}-early", fact, "RFC 6455 §8.1; F15", (early(frame, 1007, payload=4 + bad),)
        )
    for place in range(25):
        frame = text(b"x" * place + b"\xff" + b"x" * 30)
        fact = f"A bad byte after {place} good ones fails the connection as soon as it comes."
        steps: tuple[Step, ...] = (early(frame, 1007, payload=place + 1),)
        yield Case(f"utf8/bad-byte-at-{place}", fact, "RFC 6455 §8.1; F15", steps)
    for place in range(6):
        pieces = [text(b"ab", fin=False), *(Frame(CONTINUATION, b"cd", fin=False) for _ in range(place))]
        frame = Frame(CONTINUATION, b"\xc0\xaf and so on")
        fact = f"A bad byte in fragment {place + 2} fails the connection as soon as it comes."
        steps = (send(*pieces), early(frame, 1007, payload=1))
        yield Case(f"utf8/bad-byte-in-fragment-{place + 2}", fact, "RFC 6455 §8.1; F15", steps)


def _truncated() -> Iterator[Case]:
    for name, data in _TRUNCATED.items():
        source = "RFC 6455 §8.1; F13"
        fact = f"Text that ends inside a character, with {data!r}, fails the connection."
        yield Case(f"utf8/truncated-{name}", fact, source, (send(text(b"ok " + data)), end(1007)))
        pieces = split(TEXT, b"ok " + data, b"")
        yield Case(f"utf8/truncated-{name}-in-fragments", fact, source, (send(*pieces), end(1007)))
        fact = "A character is not completed by the next message."
        steps: tuple[Step, ...] = (send(text(data), text(b"\x80\x80\x80")), end(1007))
        yield Case(f"utf8/truncated-{name}-then-message", fact, source, steps)


def _elsewhere() -> Iterator[Case]:
    for name, (data, _) in list(_INVALID.items())[::3]:
        fact = "Binary data need not be UTF-8."
        yield Case(f"utf8/binary-{name}", fact, "RFC 6455 §5.6", echoed(Frame(BINARY, data)), needs=_ECHO)
    fact = "What a Ping carries need not be UTF-8, not even inside a text message."
    frames = (text("a", fin=False), Frame(PING, b"\xff\xfe"), Frame(CONTINUATION, b"b"))
    steps: tuple[Step, ...] = (send(*frames), Pong(b"\xff\xfe"), Message(TEXT, b"ab"))
    yield Case("utf8/ping-inside-text", fact, "RFC 6455 §5.5.2", steps, needs=_ECHO)
    for name, (data, _) in _INVALID.items():
        fact = f"A Close whose reason has {data!r} fails the connection."
        frame = Frame(0x8, close_payload(1000, b"ok " + data))
        yield Case(f"utf8/reason-{name}", fact, "RFC 6455 §5.5.1, §8.1; F23", (send(frame), end(1007)))
