"""permessage-deflate: RFC 7692.

An end that does not offer or accept it is not examined here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ..case import Answer, Case, Grade, Message, Pong, Step, close, end, request, send, text
from ..wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame

PLAIN = "permessage-deflate"
_HELLO = bytes.fromhex("f248cdc9c90700")  # §7.2.3.1: "Hello"
_JSON = b'{"name": "value", "list": [1, 2, 3], "text": "' + b"lorem ipsum dolor " * 20 + b'"}'


def cases(limit: int) -> Iterator[Case]:
    """Yield the cases of two sections.

    :param limit: bytes of the longest message that the examined end takes
    """
    yield from _offers()
    yield from _messages()
    yield from _blocks()
    yield from _interleaved()
    yield from _reserved_bits()
    yield from _broken()
    yield from _bombs(limit)


# --- negotiation: §7.1 --------------------------------------------------------------------------------


def _offer(name: str, fact: str, source: str, value: str, answer: Answer) -> Case:
    wire = request(more=f"Sec-WebSocket-Extensions: {value}\r\n")
    return Case(
        f"negotiation/{name}",
        fact,
        source,
        request=wire,
        answer=answer,
        ends=("server",),
        needs=frozenset({"deflate"}),
    )


def _offers() -> Iterator[Case]:
    good: dict[str, tuple[str, tuple[str, ...]]] = {
        "plain": (PLAIN, ()),
        "both-no-context": (
            f"{PLAIN}; server_no_context_takeover; client_no_context_takeover",
            ("server_no_context_takeover",),
        ),
        "server-no-context": (f"{PLAIN}; server_no_context_takeover", ("server_no_context_takeover",)),
        "client-no-context": (f"{PLAIN}; client_no_context_takeover", ()),
        "client-bits-open": (f"{PLAIN}; client_max_window_bits", ()),
        "quoted": (f'{PLAIN}; server_max_window_bits="10"', ("server_max_window_bits=10",)),
        "spaces": (f"{PLAIN} ;  server_no_context_takeover", ("server_no_context_takeover",)),
        "unknown-extension-first": (f"x-unknown; a=1, {PLAIN}", ()),
        "unknown-extension-last": (f"{PLAIN}, x-unknown", ()),
        "several": (f"{PLAIN}; server_max_window_bits=10, {PLAIN}", ()),
    }
    for bits in range(9, 16):
        confirmed = (f"server_max_window_bits={bits}",) if bits < 15 else ()
        good[f"server-bits-{bits}"] = f"{PLAIN}; server_max_window_bits={bits}", confirmed
        good[f"client-bits-{bits}"] = f"{PLAIN}; client_max_window_bits={bits}", ()
    for name, (value, params) in good.items():
        fact = f"The offer {value} is accepted as §7.1 says, and what it asks of the server is confirmed."
        answer = Answer(extension=True, params=params)
        yield _offer(f"offer-{name}", fact, "RFC 7692 §7.1; C08", value, answer)
    bad = {
        "server-bits-7": "server_max_window_bits=7",
        "server-bits-16": "server_max_window_bits=16",
        "server-bits-99": "server_max_window_bits=99",
        "server-bits-leading-zero": "server_max_window_bits=08",
        "server-bits-leading-zero-10": "server_max_window_bits=010",
        "server-bits-signed": "server_max_window_bits=+10",
        "server-bits-negative": "server_max_window_bits=-10",
        "server-bits-word": "server_max_window_bits=ten",
        "server-bits-hex": "server_max_window_bits=0xA",
        "server-bits-missing": "server_max_window_bits",
        "client-bits-7": "client_max_window_bits=7",
        "client-bits-16": "client_max_window_bits=16",
        "client-bits-leading-zero": "client_max_window_bits=08",
        "client-bits-word": "client_max_window_bits=ten",
        "value-on-server-flag": "server_no_context_takeover=true",
        "value-on-client-flag": "client_no_context_takeover=1",
        "unknown-parameter": "unknown",
        "unknown-parameter-with-value": "unknown=1",
        "twice-server-flag": "server_no_context_takeover; server_no_context_takeover",
        "twice-client-flag": "client_no_context_takeover; client_no_context_takeover",
        "twice-server-bits": "server_max_window_bits=10; server_max_window_bits=10",
        "twice-server-bits-differ": "server_max_window_bits=10; server_max_window_bits=11",
        "twice-client-bits": "client_max_window_bits=10; client_max_window_bits",
    }
    for name, parameters in bad.items():
        value = f"{PLAIN}; {parameters}"
        # "MUST decline", which leaves a connection without compression; refusing it is more than was asked.
        answer = Answer(refused=Grade.WEAK, extension=False)
        fact = f"The offer {value} is declined."
        yield _offer(f"bad-{name}", fact, "RFC 7692 §7.1; C08", value, answer)
        fact = f"Where {value} is declined, the next offer is taken."
        answer = Answer(refused=Grade.WEAK, extension=True)
        yield _offer(f"bad-{name}-then-good", fact, "RFC 7692 §5, §7.1; C08", f"{value}, {PLAIN}", answer)
    for name, value in {
        "other-name": "permessage-deflated",
        "other-case": "Permessage-Deflate2",
        "webkit": "x-webkit-deflate-frame",
    }.items():
        fact = "An extension that is not known is declined."
        yield _offer(f"unknown-{name}", fact, "RFC 6455 §9.1", value, Answer(extension=False))
    fact = "An offer of an 8-bit window of the server is confirmed as it is, or declined."
    yield _offer(
        "server-bits-8", fact, "RFC 7692 §7.1.2.1; C09", f"{PLAIN}; server_max_window_bits=8", Answer()
    )
    malformed = {
        "empty": "",
        "comma": ",",
        "semicolon": f"{PLAIN};",
        "two-semicolons": f"{PLAIN};; server_no_context_takeover",
        "no-name": "; server_no_context_takeover",
        "equals": f"{PLAIN}; =10",
        "no-value": f"{PLAIN}; server_max_window_bits=",
        "open-quote": f'{PLAIN}; server_max_window_bits="10',
        "not-a-token": f"{PLAIN}; a b",
        "slash": "permessage/deflate",
        "quoted-name": f'"{PLAIN}"',
        "quoted-space": f'{PLAIN}; server_max_window_bits="1 0"',
    }
    for name, value in malformed.items():
        fact = (
            f"A header that is {value!r} does not follow the grammar; it is refused, or nothing is accepted."
        )
        yield _offer(
            f"malformed-{name}",
            fact,
            "RFC 6455 §9.1; C08, H25",
            value,
            Answer(refused=Grade.PASS, extension=False),
        )


# --- messages: §7.2 -----------------------------------------------------------------------------------


def _case(
    name: str, fact: str, source: str, *steps: Step, offer: str = PLAIN, cuts: str = "whole", needs: str = ""
) -> Case:
    echo = "echo" if any(isinstance(step, Message) for step in steps) else ""
    wanted = frozenset({echo, needs} - {""})
    return Case(f"deflate/{name}", fact, source, steps, deflate=offer, needs=wanted, cuts=cuts)


def _messages() -> Iterator[Case]:
    for size in (0, 1, 2, 16, 125, 126, 127, 128, 1_000, 8_192, 32_768, 65_535):
        for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
            data = (_JSON * (size // len(_JSON) + 1))[:size]
            fact = f"A compressed {name} message of {size} bytes is received whole."
            frame = Frame(opcode, data, deflated=True)
            yield _case(f"{name}-{size}", fact, "RFC 7692 §7.2", send(frame), Message(opcode, data))
    offers = {
        "no-context": f"{PLAIN}; server_no_context_takeover; client_no_context_takeover",
        "server-9-bits": f"{PLAIN}; server_max_window_bits=9",
        "client-9-bits": f"{PLAIN}; client_max_window_bits=9",
        "both-10-bits": f"{PLAIN}; server_max_window_bits=10; client_max_window_bits=10",
        "client-open": f"{PLAIN}; client_max_window_bits",
    }
    for name, offer in offers.items():
        steps: list[Step] = []
        for i in range(5):
            data = _JSON + bytes([48 + i]) * 3_000 + _JSON
            steps += [send(text(data, deflated=True)), Message(TEXT, data)]
        fact = f"Five similar messages are received and sent back as negotiated with {offer}."
        yield _case(f"series-{name}", fact, "RFC 7692 §7.1.1, §7.1.2; C10", *steps, offer=offer)
    mixed: list[Step] = []
    for i in range(6):
        mixed += [send(text(_JSON, deflated=i % 2 == 0)), Message(TEXT, _JSON)]
    yield _case(
        "some-compressed",
        "Messages that are compressed and such that are not follow each other.",
        "RFC 7692 §6",
        *mixed,
    )
    fact = "A compressed message is received wherever its bytes are cut."
    yield _case(
        "cut-anywhere",
        fact,
        "RFC 7692 §7.2.2",
        send(text("Hello, Hello", deflated=True)),
        Message(TEXT, b"Hello, Hello"),
        cuts="each",
    )
    fact = "Text that is compressed must be UTF-8 all the same."
    for name, data in (
        ("bad", b"ok \xff"),
        ("overlong", b"\xc0\xaf"),
        ("surrogate", b"\xed\xa0\x80"),
        ("cut-off", b"\xe2\x82"),
    ):
        yield _case(f"text-{name}", fact, "RFC 6455 §8.1", send(text(data, deflated=True)), end(1007))
    data = b"x" * 1_000 + bytes(range(256)) * 2
    yield _case(
        "incompressible",
        "Binary data that compression makes longer is received whole.",
        "RFC 7692 §7.2.1",
        send(Frame(BINARY, data, deflated=True)),
        Message(BINARY, data),
    )


def _blocks() -> Iterator[Case]:
    """Yield the examples of RFC 7692 §7.2.3, and what else DEFLATE allows."""
    stored = bytes.fromhex("000500faff48656c6c6f00")
    final = bytes.fromhex("f348cdc9c9070000")
    two_blocks = bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", ""))
    shapes = {
        "fixed-block": (_HELLO, "§7.2.3.1"),
        "stored-block": (stored, "§7.2.3.3"),
        "final-block": (final, "§7.2.3.4"),
        "two-blocks": (two_blocks, "§7.2.3.5"),
    }
    for name, (payload, section) in shapes.items():
        fact = f"The example of RFC 7692 {section} is received as Hello."
        steps: tuple[Step, ...] = (send(text(payload, rsv=4)), Message(TEXT, b"Hello"))
        yield _case(f"example-{name}", fact, f"RFC 7692 {section}; C06", *steps)
        fact = f"The example of RFC 7692 {section}, twice, is received twice."
        yield _case(f"example-{name}-twice", fact, f"RFC 7692 {section}; C06", *steps, *steps)
    fact = "The example of RFC 7692 §7.2.3.1 in two fragments is received as Hello."
    frames = (text(_HELLO[:3], fin=False, rsv=4), Frame(CONTINUATION, _HELLO[3:]))
    yield _case("example-fragments", fact, "RFC 7692 §7.2.3.1", send(*frames), Message(TEXT, b"Hello"))
    fact = "The example of RFC 7692 §7.2.3.2, which refers to the message before, is received as Hello."
    steps = (
        send(text(_HELLO, rsv=4)),
        Message(TEXT, b"Hello"),
        send(text(bytes.fromhex("f200110000"), rsv=4)),
        Message(TEXT, b"Hello"),
    )
    yield _case("example-shared-window", fact, "RFC 7692 §7.2.3.2", *steps, needs="context")
    for name, payload in {"empty-block": b"\x00", "two-empty-blocks": b"\x00\x00\x00\xff\xff\x00"}.items():
        fact = "A message without data is received as an empty one."
        yield _case(
            f"empty-{name}", fact, "RFC 7692 §7.2.3.6; C06", send(text(payload, rsv=4)), Message(TEXT, b"")
        )
    pieces = [bytes([byte]) for byte in _HELLO]
    frames_ = [text(pieces[0], fin=False, rsv=4), *(Frame(CONTINUATION, p, fin=False) for p in pieces[1:])]
    fact = "A compressed message may come in fragments of one byte, and end with an empty one."
    yield _case(
        "single-bytes",
        fact,
        "RFC 7692 §6.1, §7.2.3.6; C06",
        send(*frames_, Frame(CONTINUATION)),
        Message(TEXT, b"Hello"),
    )
    fact = "The first fragment of a compressed message may be empty."
    frames_ = [text(b"", fin=False, rsv=4), Frame(CONTINUATION, _HELLO)]
    yield _case("first-empty", fact, "RFC 7692 §6.1; C06", send(*frames_), Message(TEXT, b"Hello"))
    for level in (0, 1, 9):
        compressor = zlib.compressobj(level, wbits=-15)
        payload = (compressor.compress(_JSON) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        fact = f"What zlib makes at level {level} is received whole."
        yield _case(
            f"zlib-level-{level}", fact, "RFC 7692 §7.2", send(text(payload, rsv=4)), Message(TEXT, _JSON)
        )


def _interleaved() -> Iterator[Case]:
    for name, control in (("ping", Frame(PING, b"p")), ("pong", Frame(PONG, b"p"))):
        for place in range(1, 3):
            frames = [
                text(_HELLO[:2], fin=False, rsv=4),
                Frame(CONTINUATION, _HELLO[2:4], fin=False),
                Frame(CONTINUATION, _HELLO[4:]),
            ]
            frames.insert(place, control)
            expected: tuple[Step, ...] = (Pong(b"p"),) if name == "ping" else ()
            fact = f"A {name} between the fragments of a compressed message leaves it whole."
            yield _case(
                f"{name}-after-{place}",
                fact,
                "RFC 7692 §6.1; C11",
                send(*frames),
                *expected,
                Message(TEXT, b"Hello"),
            )
    fact = "A Close between the fragments of a compressed message is answered with its code."
    yield _case(
        "close-between",
        fact,
        "RFC 7692 §6.1; F24",
        send(text(_HELLO[:2], fin=False, rsv=4), close(1001)),
        end(1001),
    )


def _reserved_bits() -> Iterator[Case]:
    fact = "RSV1 on a continuation fails the connection."
    start = text(_HELLO[:3], fin=False, rsv=4)
    plain = text("Hel", fin=False)
    for name, first in (("compressed", start), ("plain", plain)):
        for fin in (True, False):
            step = send(first, Frame(CONTINUATION, _HELLO[3:], fin=fin, rsv=4))
            name_ = f"rsv1-continuation-{name}{'' if fin else '-unfinished'}"
            yield _case(name_, fact, "RFC 7692 §6.1; C01", step, end(1002))
    for opcode, name in ((PING, "ping"), (PONG, "pong"), (CLOSE, "close")):
        fact = f"RSV1 on a {name} fails the connection."
        payload = b"\x03\xe8" if opcode == CLOSE else b"p"
        yield _case(f"rsv1-{name}", fact, "RFC 7692 §6; C02", send(Frame(opcode, payload, rsv=4)), end(1002))
    for rsv in (1, 2, 3, 5, 6, 7):
        fact = f"The reserved bits {rsv:03b} fail the connection though RSV1 has a meaning."
        yield _case(f"rsv{rsv}", fact, "RFC 6455 §5.2, RFC 7692 §6", send(text(_HELLO, rsv=rsv)), end(1002))


def _broken() -> Iterator[Case]:
    broken = {
        "reserved-block-type": b"\x07\x00",
        "garbage": b"\xff" * 16,
        "stored-length-wrong": bytes.fromhex("000500000048656c6c6f00"),
        "distance-too-far": bytes.fromhex("f2c0190000"),
        "truncated": _HELLO[:-3],
        "truncated-stored": bytes.fromhex("000500faff4865"),
        "cut-block-header": bytes.fromhex("000500"),
        "zlib-header": zlib.compress(b"Hello"),
    }
    for name, payload in broken.items():
        for suffix, frames in {
            "": [text(payload, rsv=4)],
            "-fragments": [text(payload[:1], fin=False, rsv=4), Frame(CONTINUATION, payload[1:])],
        }.items():
            fact = "A message that is not what DEFLATE makes fails the connection."
            # Many an inflater cannot tell that data is still to come.
            accepted = Grade.WEAK if name.startswith(("truncated", "cut")) else Grade.FAIL
            yield _case(
                f"broken-{name}{suffix}",
                fact,
                "RFC 7692 §6.2, §7.2.2; C03",
                send(*frames),
                end(1007, 1002, accepted=accepted),
            )


def _bombs(limit: int) -> Iterator[Case]:
    for name, size in (("just-over", limit + 16), ("tenfold", limit * 10), ("hundredfold", limit * 100)):
        for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
            compressor = zlib.compressobj(9, wbits=-15)
            payload = (compressor.compress(bytes([32]) * size) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            fact = "A message that inflates to more bytes than are accepted fails the connection."
            frame = Frame(opcode, payload, rsv=4)
            yield Case(
                f"limits/bomb-{name}-{kind}",
                fact,
                "RFC 6455 §10.4, RFC 7692 §8; C04",
                (send(frame), end(1009)),
                deflate=PLAIN,
                needs=frozenset({"limit"}),
            )
            half = len(payload) // 2
            frames = [Frame(opcode, payload[:half], fin=False, rsv=4), Frame(CONTINUATION, payload[half:])]
            yield Case(
                f"limits/bomb-{name}-{kind}-fragments",
                fact,
                "RFC 6455 §10.4, RFC 7692 §8; C04",
                (send(*frames), end(1009)),
                deflate=PLAIN,
                needs=frozenset({"limit"}),
            )
    data = b"a" * limit
    fact = "A compressed message as long as is accepted is received."
    yield Case(
        "limits/compressed-at-limit",
        fact,
        "RFC 7692 §8; C04",
        (send(text(data, deflated=True)), Message(TEXT, data)),
        deflate=PLAIN,
        needs=frozenset({"limit", "echo"}),
    )
