"""Framing, fragmentation and control frames: RFC 6455 §5."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case, Grade, Message, Pong, Send, Step, early, echoed, end, send, text
from ..wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close_payload

_NAMES = {
    CONTINUATION: "continuation",
    TEXT: "text",
    BINARY: "binary",
    CLOSE: "close",
    PING: "ping",
    PONG: "pong",
}
_RESERVED = (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
_ECHO = frozenset({"echo"})
_START = text("start", fin=False)


def _name(opcode: int) -> str:
    return _NAMES.get(opcode, f"opcode-{opcode:x}")


def _payload(opcode: int) -> bytes:
    return close_payload(1000) if opcode == CLOSE else b"payload"


def _in_context(frame: Frame) -> Send:
    """Send a frame where it is in its place: a continuation in a fragmented message."""
    return send(_START, frame) if frame.opcode == CONTINUATION else send(frame)


def cases() -> Iterator[Case]:
    """Yield the cases of three sections."""
    yield from _lengths()
    yield from _masks()
    yield from _reserved_bits()
    yield from _reserved_opcodes()
    yield from _length_forms()
    yield from _fragments()
    yield from _bad_fragments()
    yield from _floods()
    yield from _control()
    yield from _bad_control()


def _lengths() -> Iterator[Case]:
    for size in (0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 4_095, 4_096, 65_535):
        for opcode in (TEXT, BINARY):
            data = (
                bytes(32 + i % 95 for i in range(size))
                if opcode == TEXT
                else bytes(i % 256 for i in range(size))
            )
            name = f"{_NAMES[opcode]}-{size}"
            fact = f"A {_NAMES[opcode]} message of {size} bytes is received whole."
            yield Case(
                f"frames/{name}", fact, "RFC 6455 §5.2, §5.6", echoed(Frame(opcode, data)), needs=_ECHO
            )
    for size in (0, 1, 125, 126, 300):
        fact = f"A message of {size} bytes is received whole when its bytes come one by one."
        yield Case(
            f"frames/bytewise-{size}",
            fact,
            "RFC 6455 §5.2; F21",
            echoed(text(b"x" * size)),
            needs=_ECHO,
            cuts="bytes",
        )
    for size in (0, 5, 126):
        fact = f"Two messages of {size} bytes are received whole wherever what carries them is cut."
        steps: tuple[Step, ...] = (*echoed(text(b"a" * size)), *echoed(Frame(BINARY, b"b" * size)))
        yield Case(f"frames/cut-anywhere-{size}", fact, "RFC 6455 §5.2; F21", steps, needs=_ECHO, cuts="each")
    frames = [text(str(i)) for i in range(100)]
    steps = send(*frames), *(Message(TEXT, str(i).encode()) for i in range(100))
    yield Case(
        "frames/many-at-once",
        "100 messages in one segment are all received, in order.",
        "RFC 6455 §5.2",
        steps,
        needs=_ECHO,
    )


def _masks() -> Iterator[Case]:
    keys = {"zero": bytes(4), "ones": b"\xff" * 4, "ascending": b"\x00\x01\x02\x03", "high-bits": b"\x80" * 4}
    for name, key in keys.items():
        for size in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 64, 1_000):
            data = bytes(i % 251 for i in range(size))
            fact = f"{size} bytes masked with the key {key.hex()} are unmasked right."
            steps: tuple[Step, ...] = echoed(Frame(BINARY, data, key=key))
            yield Case(
                f"frames/key-{name}-{size}", fact, "RFC 6455 §5.3; F29", steps, needs=_ECHO, ends=("server",)
            )
    for opcode in _NAMES:
        for role, wrong in (("server", "unmasked"), ("client", "masked")):
            frame = Frame(opcode, _payload(opcode), masked=role == "client")
            fact = f"A frame that comes {wrong} to a {role} fails the connection."
            name, source = (
                f"{wrong}-{_NAMES[opcode]}",
                f"RFC 6455 §5.1; {'F01' if role == 'server' else 'F02'}",
            )
            yield Case(f"frames/{name}", fact, source, (_in_context(frame), end(1002)), ends=(role,))
            if opcode != CONTINUATION:
                fact = f"The second byte of a frame that comes {wrong} to a {role} fails the connection."
                steps = (early(frame, 1002, header=2),)
                yield Case(f"frames/{name}-early", fact, source, steps, ends=(role,))


def _reserved_bits() -> Iterator[Case]:
    for rsv in range(1, 8):
        for opcode in range(16):
            frame = Frame(opcode, _payload(opcode), rsv=rsv)
            fact = f"Reserved bits {rsv:03b} on {_name(opcode)}, without an extension, fail the connection."
            yield Case(
                f"frames/rsv{rsv}-{_name(opcode)}",
                fact,
                "RFC 6455 §5.2; F03",
                (_in_context(frame), end(1002)),
            )
        fact = f"A first byte with the reserved bits {rsv:03b} fails the connection."
        steps: tuple[Step, ...] = (early(text("x", rsv=rsv), 1002, header=1),)
        yield Case(f"frames/rsv{rsv}-early", fact, "RFC 6455 §5.2; F03", steps)


def _reserved_opcodes() -> Iterator[Case]:
    for opcode in _RESERVED:
        kinds = {
            "": send(Frame(opcode, b"payload")),
            "-empty": send(Frame(opcode)),
            "-unfinished": send(Frame(opcode, b"payload", fin=False)),
            "-in-fragments": send(_START, Frame(opcode, b"payload")),
            "-after-message": send(text("message"), Frame(opcode, b"payload")),
        }
        for suffix, step in kinds.items():
            before = (Message(TEXT, b"message", missing=Grade.PASS),) if suffix == "-after-message" else ()
            fact = f"The reserved opcode {opcode:#x} fails the connection."
            steps: tuple[Step, ...] = (step, *before, end(1002))
            yield Case(f"frames/opcode-{opcode:x}{suffix}", fact, "RFC 6455 §5.2; F04", steps)
        steps = (early(Frame(opcode), 1002, header=1),)
        fact = f"A first byte with the reserved opcode {opcode:#x} fails the connection."
        yield Case(f"frames/opcode-{opcode:x}-early", fact, "RFC 6455 §5.2; F04", steps)


def _length_forms() -> Iterator[Case]:
    for opcode in (TEXT, BINARY):
        for form, sizes in ((2, (0, 1, 64, 125)), (8, (0, 1, 125, 126, 65_535))):
            for size in sizes:
                frame = Frame(opcode, b"x" * size, form=form)
                fact = f"The length {size} in {form * 8} bits is not minimal, and fails the connection."
                yield Case(
                    f"frames/long-form-{_NAMES[opcode]}-{form * 8}-{size}",
                    fact,
                    "RFC 6455 §5.2; F07",
                    (send(frame), end(1002)),
                )
    for name, length in (("msb", 2**63), ("msb-and-some", 2**63 + 5), ("all-ones", 2**64 - 1)):
        for opcode in (TEXT, BINARY, CONTINUATION):
            frame = Frame(opcode, form=8, length=length)
            start = (send(_START),) if opcode == CONTINUATION else ()
            fact = f"A 64-bit length with its highest bit set, {length:#x}, fails the connection at once."
            steps: tuple[Step, ...] = (*start, early(frame, 1002, hopeless=True))
            yield Case(f"frames/length-{name}-{_NAMES[opcode]}", fact, "RFC 6455 §5.2; F08", steps)


# --- fragments: §5.4 ----------------------------------------------------------------------------------


def split(opcode: int, *parts: bytes) -> list[Frame]:
    """Return the frames of a message with these fragments."""
    last = len(parts) - 1
    return [Frame(opcode if i == 0 else CONTINUATION, part, fin=i == last) for i, part in enumerate(parts)]


def _fragments() -> Iterator[Case]:
    shapes = {
        "two": (b"Hel", b"lo"),
        "three": (b"a", b"b", b"c"),
        "empty-first": (b"", b"Hello"),
        "empty-last": (b"Hello", b""),
        "empty-middle": (b"Hel", b"", b"lo"),
        "all-empty": (b"", b"", b""),
        "one-empty-in-each-place": (b"", b"H", b"", b"i", b""),
        "single-bytes": tuple(bytes([c]) for c in b"The quick brown fox jumps over the lazy dog"),
        "growing": (b"a" * 125, b"b" * 126, b"c" * 4_000),
        "shrinking": (b"a" * 4_000, b"b" * 126, b"c" * 125, b"d"),
        "two-hundred": tuple(b"0123456789" for _ in range(200)),
        "thousand-of-one-byte": (b"x",) * 1_000,
    }
    for name, parts in shapes.items():
        for opcode in (TEXT, BINARY):
            for cuts in ("whole", "bytes") if sum(map(len, parts)) < 200 else ("whole",):
                suffix = "-bytewise" if cuts == "bytes" else ""
                fact = f"A {_NAMES[opcode]} message in {len(parts)} fragments is received as one."
                steps: tuple[Step, ...] = echoed(*split(opcode, *parts))
                yield Case(
                    f"fragments/{name}-{_NAMES[opcode]}{suffix}",
                    fact,
                    "RFC 6455 §5.4; F20" if len(parts) == 1_000 else "RFC 6455 §5.4",
                    steps,
                    needs=_ECHO,
                    cuts=cuts,
                )
    for name, control in (
        ("ping", Frame(PING, b"p")),
        ("pong", Frame(PONG, b"p")),
        ("empty-ping", Frame(PING)),
    ):
        for place in range(1, 4):
            frames = split(TEXT, b"He", b"ll", b"o!")
            mixed = [*frames[:place], control, *frames[place:]]
            expected: tuple[Step, ...] = (Message(TEXT, b"Hello!"),)
            if control.opcode == PING:
                expected = (Pong(control.payload), *expected)
            fact = f"A {name} after {place} fragments leaves the message whole."
            yield Case(
                f"fragments/{name}-after-{place}",
                fact,
                "RFC 6455 §5.4; F12",
                (send(*mixed), *expected),
                needs=_ECHO,
            )
    first, last = split(TEXT, b"He", b"llo")
    steps = (send(first, Frame(PING, b"now")), Pong(b"now"), send(last), Message(TEXT, b"Hello"))
    yield Case(
        "fragments/ping-answered-between",
        "A Ping between fragments is answered before the message ends.",
        "RFC 6455 §5.4, §5.5.2; F12",
        steps,
        needs=_ECHO,
    )
    steps = (
        *echoed(*split(TEXT, b"one", b"two")),
        *echoed(*split(BINARY, b"three", b"four")),
        *echoed(text("five")),
    )
    yield Case(
        "fragments/several-messages",
        "Fragmented messages and whole ones follow each other.",
        "RFC 6455 §5.4",
        steps,
        needs=_ECHO,
        cuts="each",
    )


def _bad_fragments() -> Iterator[Case]:
    for fin in (True, False):
        for data in (b"", b"data"):
            name = f"{'last' if fin else 'more'}-{'data' if data else 'empty'}"
            stray = Frame(CONTINUATION, data, fin=fin)
            before = (send(text("whole"), stray), Message(TEXT, b"whole", missing=Grade.PASS))
            after_fragments = (
                send(*split(TEXT, b"a", b"b"), stray),
                Message(TEXT, b"ab", missing=Grade.PASS),
            )
            for suffix, start in (
                ("", (send(stray),)),
                ("-after-message", before),
                ("-after-fragments", after_fragments),
            ):
                fact = "A continuation without a message to continue fails the connection."
                yield Case(f"fragments/stray-{name}{suffix}", fact, "RFC 6455 §5.4; F10", (*start, end(1002)))
            for opcode in (TEXT, BINARY):
                intruder = Frame(opcode, data, fin=fin)
                fact = "A new message inside a fragmented one fails the connection."
                yield Case(
                    f"fragments/intruder-{_NAMES[opcode]}-{name}",
                    fact,
                    "RFC 6455 §5.4; F11",
                    (send(_START, intruder), end(1002)),
                )
    fact = "The first byte of a continuation without a message fails the connection."
    yield Case(
        "fragments/stray-early", fact, "RFC 6455 §5.4; F10", (early(Frame(CONTINUATION), 1002, header=1),)
    )
    fact = "The first byte of a new message inside a fragmented one fails the connection."
    steps = (send(_START), early(text("x"), 1002, header=1))
    yield Case("fragments/intruder-early", fact, "RFC 6455 §5.4; F11", steps)


def _floods() -> Iterator[Case]:
    """Yield the cases of control frames in great numbers between the fragments of a text.

    The fragments cut its characters, so that an end that begins anew at each control frame, or counts them as
    fragments, does not get through. Each of the parts has its own time, so that one whose work for a frame
    grows with the frames before runs out of it.
    """
    data = "\u20ac".encode() * 32
    pieces = [Frame(CONTINUATION, data[i : i + 32], fin=False) for i in (0, 32, 64)]
    source = "RFC 6455 §5.4, §5.5.2; F16"
    for name, control in {
        "pings": Frame(PING, b"p"),
        "long-pings": Frame(PING, b"p" * 125),
        "pongs": Frame(PONG, b"nobody asked"),
    }.items():
        part = send(*(frame for piece in pieces for frame in (piece, *[control] * 16)), times=128)
        steps: list[Step] = [send(text("", fin=False))]
        for last in (b"first", b"second", b"third", b"fourth"):
            steps += [part, send(Frame(PING, last)), Pong(last)]
        fact = f"24576 {name} between the fragments of a text leave it whole, and are dealt with in time."
        whole = send(Frame(CONTINUATION)), Message(TEXT, data * 512)
        yield Case(f"fragments/flood-of-{name}", fact, source, (*steps, *whole), needs=_ECHO)
        if name == "pings":
            fact = f"24576 {name} between the fragments of a text do not hide that it ends in a character."
            cut_off = send(Frame(CONTINUATION, data[:2])), end(1007)
            yield Case(f"fragments/flood-of-{name}-cut-off", fact, source, (*steps, *cut_off))


# --- control frames: §5.5 -----------------------------------------------------------------------------


def _control() -> Iterator[Case]:
    for size in (0, 1, 2, 4, 8, 124, 125):
        data = bytes((i * 7) % 256 for i in range(size))
        fact = f"A Ping with {size} bytes is answered by a Pong with the same."
        yield Case(
            f"control/ping-{size}", fact, "RFC 6455 §5.5.2, §5.5.3", (send(Frame(PING, data)), Pong(data))
        )
    ping = (send(Frame(PING, b"in pieces")), Pong(b"in pieces"))
    fact = "A Ping is answered wherever its bytes are cut."
    yield Case("control/ping-cut-anywhere", fact, "RFC 6455 §5.5.2", ping, cuts="each")
    bursts: dict[str, tuple[Step, ...]] = {
        "ten": (send(*(Frame(PING, bytes([i])) for i in range(10))), Pong(bytes([9]))),
        "five-hundred": (send(*(Frame(PING, i.to_bytes(2, "big")) for i in range(500))), Pong(b"\x01\xf3")),
        "after-message": (send(text("a"), Frame(PING, b"p")), Message(TEXT, b"a"), Pong(b"p")),
        "before-message": (send(Frame(PING, b"p"), text("a")), Pong(b"p"), Message(TEXT, b"a")),
    }
    for name, steps in bursts.items():
        fact = "Of several Pings at least the last is answered, and messages beside them are received."
        yield Case(f"control/pings-{name}", fact, "RFC 6455 §5.5.3; R04", steps, needs=_ECHO)
    for name, frames in {
        "unsolicited": [Frame(PONG, b"nobody asked")],
        "empty": [Frame(PONG)],
        "many": [Frame(PONG, bytes([i])) for i in range(100)],
        "wrong-payload": [Frame(PING, b"right"), Frame(PONG, b"wrong")],
    }.items():
        answer = (Pong(b"right"),) if name == "wrong-payload" else ()
        fact = "A Pong that answers nothing is ignored."
        steps = (send(*frames), *answer, *echoed(text("still here")))
        yield Case(f"control/pong-{name}", fact, "RFC 6455 §5.5.3; R06", steps, needs=_ECHO)


def _bad_control() -> Iterator[Case]:
    for opcode in (CLOSE, PING, PONG):
        name = _NAMES[opcode]
        data = close_payload(1000)
        unfinished = Frame(opcode, data, fin=False)
        fact = f"A {name} that is fragmented fails the connection."
        source = "RFC 6455 §5.5; F05"
        yield Case(f"control/{name}-unfinished", fact, source, (send(unfinished), end(1002)))
        yield Case(
            f"control/{name}-unfinished-early",
            f"{fact[:-1]}, at its first byte.",
            source,
            (early(unfinished, 1002, header=1),),
        )
        rest = Frame(CONTINUATION, b"x")
        yield Case(f"control/{name}-and-its-rest", fact, source, (send(unfinished, rest), end(1002)))
        source = "RFC 6455 §5.5; F06"
        for size in (126, 127, 65_535, 65_536):
            frame = Frame(opcode, data + b"x" * (size - 2))
            fact = f"A {name} of {size} bytes fails the connection."
            yield Case(f"control/{name}-{size}", fact, source, (send(frame), end(1002)))
            fact = f"The length of a {name} of {size} bytes fails the connection, before its payload comes."
            yield Case(f"control/{name}-{size}-early", fact, source, (early(frame, 1002, header=2),))
        for form in (2, 8):
            fact = f"A {name} with a length in {form * 8} bits fails the connection."
            steps: tuple[Step, ...] = (send(Frame(opcode, data, form=form)), end(1002))
            yield Case(f"control/{name}-long-form-{form * 8}", fact, "RFC 6455 §5.5, §5.2; F06", steps)
