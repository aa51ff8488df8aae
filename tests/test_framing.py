"""RFC 6455 §5 at the level of bytes: what is read, what is refused and at which byte, what is written.

Every build of the framing goes through the same tests, and through each of them as a server's reader
(frames must be masked) and as a client's (they must not be). The oracle is ``frames.py`` and the naive
models in this file.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
import time
import tracemalloc
import weakref
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from itertools import accumulate, pairwise, product
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyio_ws import framing
from anyio_ws._framing_py import MessageReader
from anyio_ws.events import Message, MessageType, Opcode, build_close
from anyio_ws.exceptions import RemoteProtocolError
from anyio_ws.framing import Frames, end_of_frame, frame_in_place, frame_message
from anyio_ws.testing.wire import read_frame

from .frames import WireFrame, build_frame, cut, parse_frames, xor

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = Opcode
CONTROL_OPCODES = [CLOSE, PING, PONG]
RESERVED_OPCODES = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]

KEY = bytes.fromhex("37fa213d")
"""The masking key in the examples of RFC 6455 §5.7."""

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)

BUILDS = {"python": "anyio_ws._framing_py", "c": "anyio_ws._framing_c"}


class Trace(NamedTuple):
    """All that a reader says about a stream: the messages, and how the reading ended."""

    messages: list[Message]
    code: int | None = None
    reason: str | None = None
    finished: bool = False


class Receiver(NamedTuple):
    """One end of a connection: a build of the framing, and whether the frames it receives are masked."""

    build: ModuleType
    masked: bool

    def reader(self, *, max_message_size: int = 65536, **options: Any) -> MessageReader:
        """Make a reader for what this end receives."""
        reader: MessageReader = self.build.MessageReader(
            masked=self.masked, max_message_size=max_message_size, **options
        )
        return reader

    def frame(self, opcode: int, payload: bytes = b"", **options: Any) -> bytes:
        """Build a frame as this end must receive it, masked or not; the options are build_frame's."""
        return build_frame(opcode, payload, key=KEY if self.masked else None, **options)

    def header(self, header: str) -> bytes:
        """Take the start of an unmasked frame in hexadecimal, and set MASK in it if that is needed."""
        wire = bytearray.fromhex(header)
        if self.masked and len(wire) > 1:
            wire[1] |= 128
        return bytes(wire)

    def read(self, wire: bytes, **options: Any) -> Trace:
        """Read a stream whole, byte by byte, and cut in two at every byte; all must give one trace."""
        whole = trace(self.reader(**options), [wire])
        assert trace(self.reader(**options), bytewise(wire)) == whole
        for position in range(1, len(wire), len(wire) // 400 + 1):
            assert trace(self.reader(**options), cut(wire, [position])) == whole
        return whole


def trace(reader: MessageReader, pieces: Iterable[bytes]) -> Trace:
    """Feed the pieces of a stream and note what comes of it."""
    messages = [message for piece in pieces for message in reader.feed(piece)]
    if reader.error is None:
        return Trace(messages, finished=reader.finished)
    build_close(reader.error.code, reader.error.reason)  # whatever the error is, the peer can be told
    return Trace(messages, reader.error.code, reader.error.reason, reader.finished)


def bytewise(data: bytes) -> list[bytes]:
    """Cut data into single bytes."""
    return [bytes([byte]) for byte in data]


def compositions(data: bytes) -> Iterator[list[bytes]]:
    """Cut data in every possible way."""
    for choice in product([False, True], repeat=len(data) - 1):
        yield cut(data, [position for position, here in enumerate(choice, start=1) if here])


def fragmented(receiver: Receiver, opcode: int, pieces: Sequence[bytes]) -> bytes:
    """Build a message of one fragment per piece (RFC 6455 §5.4)."""
    last = len(pieces) - 1
    return b"".join(
        receiver.frame(CONTINUATION if i else opcode, piece, fin=i == last) for i, piece in enumerate(pieces)
    )


def encoded(data: Any) -> bytes:
    """Get the payload that a message's data has on the wire."""
    return data.encode() if isinstance(data, str) else bytes(data)


class Zlib:
    """A simple inflater, for readers that have negotiated compression (RFC 7692)."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self._stream = zlib.decompressobj(-15)

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Inflate a piece and note what the limit was."""
        self.limits.append(max_length)
        try:
            inflated = self._stream.decompress(data, max_length + 1)
        except zlib.error as exc:
            raise RemoteProtocolError(1007, "the compressed data is invalid") from exc
        return inflated

    def finish(self, max_length: int) -> bytes:
        """Inflate the end of a message that its sender cut off (RFC 7692 §7.2.2)."""
        return self.inflate(b"\x00\x00\xff\xff", max_length)


def deflate(data: bytes) -> bytes:
    """Compress one message (RFC 7692 §7.2.1)."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest) -> ModuleType:
    """Take each build of the framing that is installed: MessageReader, frame and mask."""
    module: ModuleType = pytest.importorskip(BUILDS[request.param], exc_type=ModuleNotFoundError)
    return module


@pytest.fixture(scope="module", params=[True, False], ids=["server", "client"])
def receiver(request: pytest.FixtureRequest, build: ModuleType) -> Receiver:
    """Take each end of a connection: a server receives masked frames, a client unmasked ones."""
    return Receiver(build, masked=request.param)


# The examples of the RFC, and the oracle.


class Example(NamedTuple):
    """Bytes on the wire, and what they mean."""

    wire: bytes
    frames: list[WireFrame]
    messages: list[Message]


RFC_EXAMPLES = {
    "unmasked text": Example(
        bytes.fromhex("810548656c6c6f"),
        [WireFrame(TEXT, b"Hello")],
        [Message(MessageType.TEXT, "Hello")],
    ),
    "masked text": Example(
        bytes.fromhex("818537fa213d7f9f4d5158"),
        [WireFrame(TEXT, b"Hello", key=KEY)],
        [Message(MessageType.TEXT, "Hello")],
    ),
    "fragmented text": Example(
        bytes.fromhex("010348656c80026c6f"),
        [WireFrame(TEXT, b"Hel", fin=False), WireFrame(CONTINUATION, b"lo")],
        [Message(MessageType.TEXT, "Hello")],
    ),
    "ping": Example(
        bytes.fromhex("890548656c6c6f"),
        [WireFrame(PING, b"Hello")],
        [Message(MessageType.PING, b"Hello")],
    ),
    "masked pong": Example(
        bytes.fromhex("8a8537fa213d7f9f4d5158"),
        [WireFrame(PONG, b"Hello", key=KEY)],
        [Message(MessageType.PONG, b"Hello")],
    ),
    "256 bytes": Example(
        bytes.fromhex("827e0100") + bytes(256),
        [WireFrame(BINARY, bytes(256), length_form=16)],
        [Message(MessageType.BINARY, bytes(256))],
    ),
    "64 KiB": Example(
        bytes.fromhex("827f0000000000010000") + bytes(65536),
        [WireFrame(BINARY, bytes(65536), length_form=64)],
        [Message(MessageType.BINARY, bytes(65536))],
    ),
}


@pytest.mark.parametrize("name", RFC_EXAMPLES)
def test_examples_of_the_rfc_are_built_parsed_and_read(build: ModuleType, name: str) -> None:
    """Each example of RFC 6455 §5.7 is what is built, by oracle and package, and is read as it should be."""
    wire, frames, messages = RFC_EXAMPLES[name]
    assert parse_frames(wire) == frames
    built = [build_frame(each.opcode, each.payload, fin=each.fin, key=each.key) for each in frames]
    assert b"".join(built) == wire
    assert [build.frame(f.opcode, f.payload, fin=f.fin, masking_key=f.key) for f in frames] == built
    receiver = Receiver(build, masked=frames[0].key is not None)
    assert receiver.read(wire) == Trace(messages)


wire_frames = st.builds(
    WireFrame,
    opcode=st.integers(0, 15),
    payload=st.binary(max_size=200),
    fin=st.booleans(),
    rsv=st.integers(0, 7),
    key=st.none() | st.binary(min_size=4, max_size=4),
    length_form=st.sampled_from([16, 64]),
)


@PROPERTY
@given(st.lists(wire_frames, max_size=4))
def test_oracle_parses_what_it_builds(frames: list[WireFrame]) -> None:
    """Whatever the oracle builds, malformed frames included, it parses into the same frames."""
    wire = b"".join(
        build_frame(f.opcode, f.payload, fin=f.fin, rsv=f.rsv, key=f.key, length_form=f.length_form)
        for f in frames
    )
    assert parse_frames(wire) == frames


@pytest.mark.parametrize("size", range(1, 11))
def test_oracle_refuses_an_incomplete_frame(size: int) -> None:
    """The oracle says where the frame starts of which it does not have all bytes."""
    wire = RFC_EXAMPLES["masked text"].wire
    with pytest.raises(ValueError, match=r"^the frame that starts at byte 11 is not complete$"):
        parse_frames(wire + wire[:size])


@pytest.mark.parametrize(("length_form", "length"), [(7, 126), (16, 2**16), (64, 2**64)])
def test_oracle_refuses_a_length_that_its_form_does_not_hold(length_form: int, length: int) -> None:
    """The oracle builds any frame that bytes can express, and says so when they cannot."""
    with pytest.raises(ValueError, match=f"^length_form: {length_form} bits do not hold"):
        build_frame(BINARY, length=length, length_form=length_form)


# Headers: all of them against a naive model, then each violation with its reason and its earliest byte.


def model_refuses_first_byte(first: int, *, in_message: bool, compression: bool = False) -> bool:
    """Say whether the first byte alone breaks the protocol (RFC 6455 §5.2, §5.4, §5.5; RFC 7692 §6)."""
    fin, rsv1, rsv2_rsv3, opcode = first >= 128, first // 64 % 2, first // 16 % 4, first % 16
    if opcode in RESERVED_OPCODES or rsv2_rsv3:
        return True
    if rsv1 and not (compression and opcode in (TEXT, BINARY)):
        return True
    if opcode in CONTROL_OPCODES:
        return not fin
    return in_message != (opcode == CONTINUATION)


def model_refuses_second_byte(first: int, second: int, *, masked: bool) -> bool:
    """Say whether the second byte breaks the protocol after a good first one (RFC 6455 §5.1, §5.5)."""
    return (second >= 128) != masked or (first % 16 in CONTROL_OPCODES and second % 128 > 125)


def rest_of_frame(first: int, second: int) -> tuple[bytes, bytes]:
    """Complete a frame of which there are two bytes: the bytes that are missing, and the payload."""
    length = {126: 126, 127: 65536}.get(second % 128, second % 128)
    payload = b"x" * length if first % 16 != CLOSE else b"\x03\xe8" + b"x" * (length - 2) if length else b""
    extended = {126: b"\x00\x7e", 127: (65536).to_bytes(8, "big")}.get(second % 128, b"")
    return extended + (KEY + xor(payload, KEY) if second >= 128 else payload), payload


def check_header(receiver: Receiver, first: int, second: int, start: bytes) -> bool:
    """Read one header after the start of a message, and say whether the reader did as the model does."""
    reader = receiver.reader(max_message_size=65536 + len(start), utf8=False)
    reader.feed(start)
    in_message = bool(start)
    messages = reader.feed(bytes((first, second)))
    if model_refuses_first_byte(first, in_message=in_message) or model_refuses_second_byte(
        first, second, masked=receiver.masked
    ):
        return not messages and reader.finished and reader.error is not None and reader.error.code == 1002
    if reader.error is not None:
        return False
    opcode, fin = first % 16, first >= 128
    if opcode == CLOSE and second % 128 == 1:
        return True  # refused for its payload, not for its header
    rest, payload = rest_of_frame(first, second)
    messages += reader.feed(rest)
    if opcode == CONTINUATION:
        opcode, payload = BINARY, b"start" + payload
    expected = [Message(MessageType(opcode), payload)] if fin else []
    return (messages, reader.finished) == (expected, opcode == CLOSE)


@pytest.mark.attack("F01", "F02", "F03", "F04", "F05", "F06", "F10", "F11", "F12")
@pytest.mark.parametrize("in_message", [False, True], ids=["between messages", "in a message"])
def test_headers_are_judged_as_the_naive_model_judges_them(receiver: Receiver, in_message: bool) -> None:
    """All 65,536 first two bytes are refused with 1002, or their frame is read, as RFC 6455 §5 says."""
    start = receiver.frame(BINARY, b"start", fin=False) if in_message else b""
    wrong = [
        f"{first:02x}{second:02x}"
        for first in range(256)
        for second in range(256)
        if not check_header(receiver, first, second, start)
    ]
    assert wrong == []


@pytest.mark.attack("F03", "F04", "F05", "F10", "F11", "C01", "C02")
@pytest.mark.parametrize("compression", [False, True], ids=["plain", "compression"])
@pytest.mark.parametrize("in_message", [False, True], ids=["between messages", "in a message"])
def test_first_byte_is_judged_alone(receiver: Receiver, in_message: bool, compression: bool) -> None:
    """Each of the 256 first bytes that breaks the protocol is refused before there is a second one."""
    wrong = []
    for first in range(256):
        reader = receiver.reader(inflater=Zlib() if compression else None)
        if in_message:
            reader.feed(receiver.frame(BINARY, b"start", fin=False))
        reader.feed(bytes([first]))
        refused = reader.error is not None and reader.error.code == 1002
        if refused != model_refuses_first_byte(first, in_message=in_message, compression=compression):
            wrong.append(f"{first:02x}")
    assert wrong == []


def row(start: str, code: int, reason: str, *attacks: str, in_message: bool = False) -> Any:
    """Describe a violation by its shortest start of an unmasked frame, in hexadecimal."""
    name = f"{'in a message ' if in_message else ''}{start}"
    return pytest.param(start, code, reason, in_message, id=name, marks=pytest.mark.attack(*attacks))


RESERVED_BIT = "RSV2 or RSV3 is set without an extension that defines it"
RSV1 = "RSV1 is set without an extension that defines it"
FRAGMENTED_CONTROL = "a control frame is fragmented"
LONG_CONTROL = "a control frame is longer than 125 bytes"
NOTHING_TO_CONTINUE = "a continuation frame without a message to continue"
NOT_CONTINUED = "a new message begins inside a fragmented one"
TOO_BIG = "a message is longer than 65536 bytes"
NOT_MINIMAL = "a frame's length is not encoded in the minimal number of bytes"
SIGN_BIT = "a frame's length has its most significant bit set"
INVALID_UTF8 = "text is not valid UTF-8"
TOO_MANY_FRAGMENTS = "a message has too many fragments for its size"

VIOLATIONS = [
    row("c1", 1002, RSV1, "F03"),
    row("c2", 1002, RSV1, "F03"),
    row("c9", 1002, RSV1, "F03"),
    row("c0", 1002, RSV1, "F03", in_message=True),
    row("a1", 1002, RESERVED_BIT, "F03"),
    row("92", 1002, RESERVED_BIT, "F03"),
    row("f2", 1002, RESERVED_BIT, "F03"),
    row("b0", 1002, RESERVED_BIT, "F03", in_message=True),
    *(row(f"8{opcode:x}", 1002, f"opcode 0x{opcode:x} is reserved", "F04") for opcode in RESERVED_OPCODES),
    row("08", 1002, FRAGMENTED_CONTROL, "F05"),
    row("09", 1002, FRAGMENTED_CONTROL, "F05"),
    row("0a", 1002, FRAGMENTED_CONTROL, "F05", in_message=True),
    row("887e", 1002, LONG_CONTROL, "F06", "F23"),
    row("887f", 1002, LONG_CONTROL, "F06", "F23"),
    row("897e", 1002, LONG_CONTROL, "F06"),
    row("897f", 1002, LONG_CONTROL, "F06"),
    row("8a7e", 1002, LONG_CONTROL, "F06", in_message=True),
    row("00", 1002, NOTHING_TO_CONTINUE, "F10"),
    row("80", 1002, NOTHING_TO_CONTINUE, "F10"),
    row("01", 1002, NOT_CONTINUED, "F11", in_message=True),
    row("81", 1002, NOT_CONTINUED, "F11", in_message=True),
    row("02", 1002, NOT_CONTINUED, "F11", in_message=True),
    row("82", 1002, NOT_CONTINUED, "F11", in_message=True),
    row("827e0000", 1002, NOT_MINIMAL, "F07"),
    row("817e007d", 1002, NOT_MINIMAL, "F07"),
    row("807e0001", 1002, NOT_MINIMAL, "F07", in_message=True),
    row("827f0000000000000000", 1002, NOT_MINIMAL, "F07"),
    row("827f000000000000007d", 1002, NOT_MINIMAL, "F07"),
    row("827f000000000000007e", 1002, NOT_MINIMAL, "F07"),
    row("817f000000000000ffff", 1002, NOT_MINIMAL, "F07"),
    row("827f80", 1002, SIGN_BIT, "F08"),
    row("827fff", 1002, SIGN_BIT, "F08"),
    row("007fc0", 1002, SIGN_BIT, "F08", in_message=True),
    row("827f0000000000010001", 1009, TOO_BIG, "F09", "F17"),
    row("827f00000000ffffffff", 1009, TOO_BIG, "F09", "F17"),
    row("817f0000000100000000", 1009, TOO_BIG, "F09", "F17"),
    row("027f0000000100000001", 1009, TOO_BIG, "F09", "F17"),
    row("817f7fffffffffffffff", 1009, TOO_BIG, "F09", "F17"),
    row("807f0000000000010000", 1009, TOO_BIG, "F09", "F18", in_message=True),
    row("807f7fffffffffffffff", 1009, TOO_BIG, "F09", "F18", in_message=True),
    row("007eFFFC", 1009, TOO_BIG, "F18", in_message=True),
]


@pytest.mark.parametrize(("start", "code", "reason", "in_message"), VIOLATIONS)
def test_violation_is_refused_at_its_first_byte(
    receiver: Receiver, start: str, code: int, reason: str, in_message: bool
) -> None:
    """A violation in a header is refused with its code and reason at the byte that shows it, not later."""
    wire = receiver.header(start)
    opening = receiver.frame(BINARY, b"start", fin=False) if in_message else b""
    assert receiver.read(opening + wire[:-1]) == Trace([])
    assert receiver.read(opening + wire) == Trace([], code, reason, finished=True)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize(
    ("masked", "reason"),
    [
        pytest.param(True, "a client's frame is not masked", marks=pytest.mark.attack("F01")),
        pytest.param(False, "a server's frame is masked", marks=pytest.mark.attack("F02")),
    ],
    ids=["server", "client"],
)
def test_masking_is_judged_on_the_second_byte(
    build: ModuleType, masked: bool, reason: str, opcode: Opcode
) -> None:
    """A server refuses an unmasked frame and a client a masked one, before any payload (RFC 6455 §5.1)."""
    wire = build_frame(opcode, b"", key=None if masked else KEY)
    receiver = Receiver(build, masked=masked)
    assert receiver.read(wire[:1]) == Trace([])
    assert receiver.read(wire[:2]) == Trace([], 1002, reason, finished=True)


# Lengths.


@pytest.mark.attack("F07")
@pytest.mark.parametrize("fin", [True, False], ids=["fin", "fragment"])
@pytest.mark.parametrize("size", [0, 1, 2, 124, 125, 126, 127, 255, 256, 65534, 65535, 65536, 65537])
def test_length_is_read_in_its_minimal_form(receiver: Receiver, size: int, fin: bool) -> None:
    """A frame of any length in the shortest form that holds it is read, around every change of form."""
    payload = bytes(i % 251 for i in range(size))
    wire = receiver.frame(BINARY, payload, fin=fin) + (b"" if fin else receiver.frame(CONTINUATION))
    options = {"max_message_size": size}
    expected = Trace([Message(MessageType.BINARY, payload)])
    if size < 1000:
        assert receiver.read(wire, **options) == expected
    for pieces in ([wire], cut(wire, [1, 2, 3, 5, 9, 13, 14, 15, size // 2, size])):
        assert trace(receiver.reader(**options), pieces) == expected


@pytest.mark.attack("F07")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_length_in_more_bytes_than_needed_is_refused(receiver: Receiver, opcode: Opcode) -> None:
    """All lengths that fit 7 bits are refused in 16 bits, and all that fit 16 bits in 64 (RFC 6455 §5.2)."""
    too_long = [(16, length) for length in range(126)]
    too_long += [(64, length) for length in [*range(130), *range(130, 65536, 97), 65534, 65535]]
    for length_form, length in too_long:
        header = receiver.frame(opcode, length=length, length_form=length_form)[: 2 + length_form // 8]
        reader = receiver.reader()
        assert trace(reader, [header]) == Trace([], 1002, NOT_MINIMAL, finished=True)


SIZES = [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537, 2**24, 2**31, 2**32, 2**63 - 2]


@pytest.mark.attack("F09", "F17")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("limit", SIZES)
def test_message_over_the_limit_is_refused_from_the_header(
    receiver: Receiver, limit: int, opcode: Opcode
) -> None:
    """A frame of the limit or one byte less is awaited; one byte more is 1009 before its masking key."""
    for length in {max(limit - 1, 0), limit}:
        header = receiver.frame(opcode, length=length)
        assert trace(receiver.reader(max_message_size=limit), [header]).code is None
    header = receiver.frame(opcode, length=limit + 1)[: -4 if receiver.masked else None]
    reason = f"a message is longer than {limit} bytes"
    expected = Trace([], 1009, reason, finished=True)
    assert receiver.read(header, max_message_size=limit) == expected
    assert receiver.read(header[:-1], max_message_size=limit) == Trace([])


@pytest.mark.attack("F08", "F09")
@pytest.mark.parametrize("limit", [0, 65536, 2**63 - 1])
@pytest.mark.parametrize("length", [2**63, 2**63 + 1, 2**64 - 14, 2**64 - 1])
def test_length_with_its_highest_bit_set_breaks_the_protocol(
    receiver: Receiver, length: int, limit: int
) -> None:
    """A length of 2**63 or more is 1002, not 1009, whatever the limit is."""
    header = receiver.frame(BINARY, length=length)
    assert receiver.read(header, max_message_size=limit) == Trace([], 1002, SIGN_BIT, finished=True)


@pytest.mark.attack("F09")
def test_largest_length_is_awaited_when_the_limit_allows_it(receiver: Receiver) -> None:
    """A length of 2**63 - 1 under an equal limit is legal; only the next fragment goes beyond."""
    reader = receiver.reader(max_message_size=2**63 - 1)
    assert trace(reader, [receiver.frame(BINARY, b"x" * 100, length=2**63 - 1)]) == Trace([])
    wire = receiver.frame(BINARY, b"x", fin=False) + receiver.frame(CONTINUATION, length=2**63 - 1)
    assert receiver.read(wire, max_message_size=2**63 - 1).code == 1009


@pytest.mark.attack("F18")
@pytest.mark.parametrize("sizes", [[50, 51], [100, 1], [0, 101], [80, *[1] * 21], [33, 33, 0, 35]])
def test_fragments_that_sum_over_the_limit_are_refused(receiver: Receiver, sizes: list[int]) -> None:
    """Fragments up to the limit are one message; the header of the one that would exceed it is 1009."""
    pieces = [b"x" * size for size in sizes]
    *good, last = [
        receiver.frame(CONTINUATION if i else BINARY, piece, fin=False) for i, piece in enumerate(pieces)
    ]
    expected = Trace([], 1009, "a message is longer than 100 bytes", finished=True)
    assert receiver.read(b"".join(good) + last[:2], max_message_size=100) == expected
    fits = receiver.read(fragmented(receiver, BINARY, [*pieces[:-1], pieces[-1][1:]]), max_message_size=100)
    assert fits == Trace([Message(MessageType.BINARY, b"x" * 100)])


@pytest.mark.attack("F18")
def test_limit_applies_to_each_message_and_not_to_control_frames(receiver: Receiver) -> None:
    """Messages of the largest size may follow each other, with longer control frames around and inside."""
    message = [receiver.frame(TEXT, b"ab", fin=False), receiver.frame(CONTINUATION, b"c")]
    ping = receiver.frame(PING, b"p" * 125)
    wire = ping.join([b"", *message, *message, receiver.frame(BINARY, b"abc"), b""])
    messages = receiver.read(wire, max_message_size=3).messages
    assert [message.data for message in messages if message.type is not MessageType.PING] == [
        "abc",
        "abc",
        b"abc",
    ]
    assert len(messages) == 9


# Fragmentation and control frames.


@pytest.mark.parametrize(
    ("opcode", "data"), [(TEXT, "caf\u00e9 \U0001f600"), (BINARY, b"\x00\xffcafe\x80\x01\x02\x03")]
)
def test_message_arrives_whole_however_it_is_fragmented(
    receiver: Receiver, opcode: Opcode, data: str | bytes
) -> None:
    """A message is the concatenation of its fragments, wherever they are cut and even if they are empty."""
    payload = data.encode() if isinstance(data, str) else data
    expected = Message(MessageType(opcode), data)
    for pieces in compositions(payload):
        wire = fragmented(receiver, opcode, pieces)
        assert trace(receiver.reader(), [wire]) == Trace([expected])
        assert trace(receiver.reader(), bytewise(wire)) == Trace([expected])
        with_empty_ones = [part for piece in pieces for part in (b"", piece)] + [b""]
        wire = fragmented(receiver, opcode, with_empty_ones)
        assert trace(receiver.reader(), [wire]) == Trace([expected])


@pytest.mark.attack("F12")
def test_control_frames_inside_a_message_are_delivered_at_once(receiver: Receiver) -> None:
    """A ping between fragments, even inside a character, is a message of its own before theirs."""
    reader = receiver.reader()
    assert reader.feed(receiver.frame(TEXT, b"\xf0\x9f", fin=False)) == []
    assert reader.feed(receiver.frame(PING, b"\xff1")) == [Message(MessageType.PING, b"\xff1")]
    assert reader.feed(receiver.frame(CONTINUATION, b"", fin=False)) == []
    both = receiver.frame(PONG) + receiver.frame(PING, b"2")
    assert reader.feed(both) == [Message(MessageType.PONG, b""), Message(MessageType.PING, b"2")]
    assert reader.feed(receiver.frame(CONTINUATION, b"\x98\x80")) == [Message(MessageType.TEXT, "\U0001f600")]


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_control_frame_carries_up_to_125_bytes_of_anything(receiver: Receiver, opcode: Opcode) -> None:
    """A ping or pong of every length from 0 to 125 arrives as bytes, text or not (RFC 6455 §5.5)."""
    for size in range(126):
        payload = bytes(255 - i for i in range(size))
        wire = receiver.frame(opcode, payload)
        expected = Trace([Message(MessageType(opcode), payload)])
        assert trace(receiver.reader(), [wire]) == expected
        assert trace(receiver.reader(), bytewise(wire)) == expected


def test_control_frame_is_awaited_whole(receiver: Receiver) -> None:
    """No start of a control frame is a message, and nothing of it is lost."""
    wire = receiver.frame(PING, b"x" * 125)
    reader = receiver.reader()
    assert trace(reader, bytewise(wire[:-1])) == Trace([])
    assert reader.feed(wire[-1:]) == [Message(MessageType.PING, b"x" * 125)]


def test_messages_of_one_read_arrive_in_order_and_with_their_types(receiver: Receiver) -> None:
    """One read may complete many messages: text as str, everything else as bytes, types as MessageType."""
    wire = (
        receiver.frame(TEXT, b"a")
        + receiver.frame(PING, b"b")
        + receiver.frame(BINARY, b"c")
        + receiver.frame(TEXT)
        + receiver.frame(BINARY)
        + fragmented(receiver, BINARY, [b"d", b"e"])
        + fragmented(receiver, TEXT, [b"f", b"g"])
        + receiver.frame(PONG, b"h")
        + receiver.frame(CLOSE, b"\x03\xe8i")
    )
    messages = receiver.reader().feed(wire)
    assert all(type(message.type) is MessageType for message in messages)
    assert [(type_.name, data) for type_, data in messages] == [
        ("TEXT", "a"),
        ("PING", b"b"),
        ("BINARY", b"c"),
        ("TEXT", ""),
        ("BINARY", b""),
        ("BINARY", b"de"),
        ("TEXT", "fg"),
        ("PONG", b"h"),
        ("CLOSE", b"\x03\xe8i"),
    ]


def test_empty_read_changes_nothing(receiver: Receiver) -> None:
    """An empty read is no message and no error, anywhere in a stream."""
    wire = fragmented(receiver, TEXT, [b"a", b"bc"]) + receiver.frame(PING, b"d")
    pieces = [piece for byte in bytewise(wire) for piece in (b"", byte)]
    expected = [Message(MessageType.TEXT, "abc"), Message(MessageType.PING, b"d")]
    assert trace(receiver.reader(), pieces) == Trace(expected)


# The end: a Close frame, or a violation.


@pytest.mark.attack("F22")
def test_close_codes_are_judged_as_the_rfc_says(build: ModuleType) -> None:
    """Of all 65,536 codes 1000-1003, 1007-1014 and 3000-4999 are read, every other one is 1002."""
    client = Receiver(build, masked=False)
    sendable = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    wrong = []
    for code in range(65536):
        payload = code.to_bytes(2, "big")
        expected = (
            Trace([Message(MessageType.CLOSE, payload)], finished=True)
            if code in sendable
            else Trace([], 1002, f"close code {code} may not be sent", finished=True)
        )
        if trace(client.reader(), [client.frame(CLOSE, payload)]) != expected:
            wrong.append(code)
    assert wrong == []


@pytest.mark.parametrize("reason", ["", "x", "caf\u00e9", "x" * 123, "\u20ac" * 41])
def test_close_is_read_with_its_code_and_reason(receiver: Receiver, reason: str) -> None:
    """A Close is delivered with its payload, of which code and reason are the parts; then reading is over."""
    (message,), code, _, finished = receiver.read(receiver.frame(CLOSE, build_close(3000, reason)))
    assert (message.close_code, message.close_reason) == (3000, reason)
    assert (code, finished) == (None, True)


def test_close_without_payload_is_read(receiver: Receiver) -> None:
    """A Close without code is valid (RFC 6455 §5.5.1)."""
    assert receiver.read(receiver.frame(CLOSE)) == Trace([Message(MessageType.CLOSE, b"")], finished=True)


@pytest.mark.attack("F23")
@pytest.mark.parametrize("utf8", [True, False])
@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"\x03", 1002, "a Close frame has a payload of one byte"),
        (b"\x03\xe8\xff", 1007, INVALID_UTF8),
        (b"\x03\xe8ok\xed\xa0\x80", 1007, INVALID_UTF8),
        (b"\x03\xe8" + b"x" * 122 + b"\xc3", 1007, INVALID_UTF8),
        (b"\x03\xed\xff", 1002, "close code 1005 may not be sent"),
    ],
)
def test_close_with_a_bad_payload_is_refused(
    receiver: Receiver, payload: bytes, code: int, reason: str, utf8: bool
) -> None:
    """A Close with half a code is 1002, one with a reason that is not UTF-8 is 1007, and no message."""
    expected = Trace([], code, reason, finished=True)
    assert receiver.read(receiver.frame(CLOSE, payload), utf8=utf8) == expected


@pytest.mark.attack("F24")
def test_close_inside_a_fragmented_message_is_read(receiver: Receiver) -> None:
    """A Close may come between fragments: it is delivered with its code, the unfinished message is not."""
    wire = receiver.frame(TEXT, b"never", fin=False) + receiver.frame(CLOSE, b"\x03\xe9bye")
    assert receiver.read(wire) == Trace([Message(MessageType.CLOSE, b"\x03\xe9bye")], finished=True)


@pytest.mark.attack("F25")
@pytest.mark.parametrize(
    ("opcode", "payload"),
    [
        (TEXT, b"late"),
        (BINARY, b"late"),
        (PING, b"late"),
        (CLOSE, b"\x03\xe9"),
        (CONTINUATION, b""),
        (3, b""),
    ],
)
def test_nothing_is_read_after_a_close(receiver: Receiver, opcode: int, payload: bytes) -> None:
    """What follows a Close is discarded, be it data, a second Close or an error, in that read or later."""
    expected = Trace([Message(MessageType.CLOSE, b"\x03\xe8")], finished=True)
    wire = receiver.frame(CLOSE, b"\x03\xe8") + receiver.frame(opcode, payload)
    assert receiver.read(wire) == expected
    reader = receiver.reader()
    assert trace(reader, [wire, wire]) == expected
    assert reader.feed(wire) == []


@pytest.mark.parametrize(
    ("violation", "code"),
    [("83", 1002), ("8101ff", 1007), ("0101ff", 1007), ("8801ff", 1002), ("827f0000000000010001", 1009)],
)
def test_messages_before_a_violation_are_returned_with_the_error(
    build: ModuleType, violation: str, code: int
) -> None:
    """The read that meets a violation returns what was complete before it, and the reader has the error."""
    good = build_frame(TEXT, b"one") + build_frame(PING, b"two") + build_frame(BINARY, b"three")
    reader = build.MessageReader(masked=False, max_message_size=65536)
    messages = reader.feed(good + bytes.fromhex(violation))
    assert [message.data for message in messages] == ["one", b"two", b"three"]
    assert isinstance(reader.error, RemoteProtocolError)
    assert (reader.error.code, reader.finished) == (code, True)


def test_nothing_is_read_after_a_violation(receiver: Receiver) -> None:
    """After a violation no message is delivered, and the first error stays."""
    reader = receiver.reader()
    reader.feed(b"\x83")
    error = reader.error
    assert trace(reader, [receiver.frame(TEXT, b"late"), b"\x81\x01\xff"]).messages == []
    assert reader.error is error


# UTF-8.

UTF8_FORMS = [
    (range(0x80),),
    (range(0xC2, 0xE0), range(0x80, 0xC0)),
    (range(0xE0, 0xE1), range(0xA0, 0xC0), range(0x80, 0xC0)),
    (range(0xE1, 0xED), range(0x80, 0xC0), range(0x80, 0xC0)),
    (range(0xED, 0xEE), range(0x80, 0xA0), range(0x80, 0xC0)),
    (range(0xEE, 0xF0), range(0x80, 0xC0), range(0x80, 0xC0)),
    (range(0xF0, 0xF1), range(0x90, 0xC0), range(0x80, 0xC0), range(0x80, 0xC0)),
    (range(0xF1, 0xF4), range(0x80, 0xC0), range(0x80, 0xC0), range(0x80, 0xC0)),
    (range(0xF4, 0xF5), range(0x80, 0x90), range(0x80, 0xC0), range(0x80, 0xC0)),
]
"""The characters of UTF-8, byte by byte: the table of RFC 3629 §4."""

UTF8_FOLLOWING = {lead: form[1:] for form in UTF8_FORMS for lead in form[0]}

BORDER_BYTES = sorted({byte for form in UTF8_FORMS for part in form for byte in (part[0], part[-1])})
BORDER_BYTES += [0xC0, 0xC1, 0xF5, 0xFF]

BORDER_CHARACTERS = (
    "\ufeff\0\x7f\x80\u07ff\u0800\u0fff\u1000\ucfff\ud000\ud7ff\ue000\uffff\U00010000\U0010ffff"
)
"""The first and last characters of each form above, after a byte order mark, which is a character too."""


def naive_utf8(data: bytes) -> tuple[int | None, bool]:
    """Find the first byte that UTF-8 cannot have there, and whether the last character is complete."""
    awaited: tuple[range, ...] = ()
    for position, byte in enumerate(data):
        if byte not in (awaited[0] if awaited else UTF8_FOLLOWING):
            return position, False
        awaited = awaited[1:] if awaited else UTF8_FOLLOWING[byte]
    return None, not awaited


def check_utf8(build: ModuleType, data: bytes) -> bool:
    """Read data as a text message, and as the start of one; say whether the model's verdict was given."""
    bad, complete = naive_utf8(data)
    verdicts = []
    for first in (b"\x81", b"\x01"):
        reader = build.MessageReader(masked=False, max_message_size=100)
        messages = reader.feed(first + bytes([len(data)]) + data)
        verdicts.append((messages, reader.error and reader.error.code))
    whole = ([Message(MessageType.TEXT, data.decode())], None) if complete else ([], 1007)
    return verdicts == [whole, ([], None if bad is None else 1007)]


@pytest.mark.attack("F13")
def test_utf8_of_one_and_two_bytes_is_judged_as_the_rfc_says(build: ModuleType) -> None:
    """All 65,792 sequences of one or two bytes are text, the start of text, or 1007, as RFC 3629 §4 says."""
    sequences = [*product(range(256)), *product(range(256), repeat=2)]
    assert [data for data in map(bytes, sequences) if not check_utf8(build, data)] == []


@pytest.mark.attack("F13")
def test_utf8_of_three_and_four_bytes_is_judged_as_the_rfc_says(build: ModuleType) -> None:
    """Sequences of three and four bytes, each a border of the table in RFC 3629 §4, are judged as it says."""
    sequences = [
        *product(BORDER_BYTES, repeat=3),
        *product(
            [0xF0, 0xF1, 0xF3, 0xF4, 0xF5], BORDER_BYTES, [0x7F, 0x80, 0xBF, 0xC0], [0x7F, 0x80, 0xBF, 0xC0]
        ),
    ]
    assert [data for data in map(bytes, sequences) if not check_utf8(build, data)] == []


INVALID_TEXT = {
    "lone continuation": "80",
    "last lone continuation": "bf",
    "overlong of two bytes": "c0af",
    "overlong NUL": "c080",
    "overlong of two bytes, longest": "c1bf",
    "overlong of three bytes": "e080af",
    "overlong of three bytes, longest": "e09fbf",
    "overlong of four bytes": "f08080af",
    "overlong of four bytes, longest": "f08fbfbf",
    "first surrogate": "eda080",
    "last surrogate": "edbfbf",
    "pair of surrogates": "eda080edb080",
    "beyond U+10FFFF": "f4908080",
    "lead byte beyond U+10FFFF": "f5808080",
    "form of five bytes": "f888808080",
    "form of six bytes": "fc8480808080",
    "byte FE": "fe",
    "byte FF": "ff",
    "two bytes cut short": "c341",
    "three bytes cut short": "e28241",
    "four bytes cut short": "f09f9841",
    "cut short by another character": "e282c3a9",
}


@pytest.mark.attack("F13", "F15")
@pytest.mark.parametrize("name", INVALID_TEXT)
@pytest.mark.parametrize("before", ["", "\u03ba\u1f79\U0001f600"], ids=["at the start", "after text"])
def test_invalid_utf8_is_refused_at_its_first_byte(receiver: Receiver, name: str, before: str) -> None:
    """The byte that makes text invalid is 1007 as soon as it arrives, in mid-frame, the rest unseen."""
    text = before.encode() + bytes.fromhex(INVALID_TEXT[name])
    bad, _ = naive_utf8(text)
    assert bad is not None
    for fin in (True, False):
        wire = receiver.frame(TEXT, text + b"...", fin=fin)
        start = len(wire) - len(text) - 3 + bad
        assert receiver.read(wire[:start]) == Trace([])
        assert receiver.read(wire[: start + 1]) == Trace([], 1007, INVALID_UTF8, finished=True)


@pytest.mark.attack("F13", "F15")
@pytest.mark.parametrize("name", INVALID_TEXT)
def test_invalid_utf8_is_refused_wherever_it_is_fragmented(receiver: Receiver, name: str) -> None:
    """Text that is invalid is refused at the same byte when every byte of it is a fragment."""
    text = "\u20ac".encode() + bytes.fromhex(INVALID_TEXT[name])
    bad, _ = naive_utf8(text)
    assert bad is not None
    frames = [
        receiver.frame(CONTINUATION if i else TEXT, byte, fin=False) for i, byte in enumerate(bytewise(text))
    ]
    assert receiver.read(b"".join(frames[:bad])) == Trace([])
    assert receiver.read(b"".join(frames[: bad + 1])) == Trace([], 1007, INVALID_UTF8, finished=True)


@pytest.mark.attack("F13")
@pytest.mark.parametrize("character", "\xe9\u20ac\U0001f600")
def test_text_that_ends_inside_a_character_is_refused(receiver: Receiver, character: str) -> None:
    """An unfinished character is awaited until the last fragment ends the message, which is then 1007."""
    encoded = character.encode()
    refused = Trace([], 1007, INVALID_UTF8, finished=True)
    for size in range(1, len(encoded)):
        text = b"ok" + encoded[:size]
        assert receiver.read(receiver.frame(TEXT, text)) == refused
        start = receiver.frame(TEXT, text, fin=False)
        assert receiver.read(start) == Trace([])
        assert receiver.read(start + receiver.frame(CONTINUATION)) == refused


def test_unfinished_character_does_not_outlive_its_message(receiver: Receiver) -> None:
    """Each message's text is checked from its own start, whatever message came before."""
    wire = fragmented(receiver, TEXT, [b"\xe2", b"\x82\xac"])
    wire += fragmented(receiver, BINARY, [b"\xe2", b"\x82"])
    wire += fragmented(receiver, TEXT, [b"a", b"b"])
    assert [message.data for message in receiver.read(wire).messages] == ["\u20ac", b"\xe2\x82", "ab"]


@pytest.mark.attack("F14")
def test_text_of_border_characters_survives_every_cut(receiver: Receiver) -> None:
    """The first and last characters of every encoded length arrive, wherever frames and reads are cut."""
    encoded = BORDER_CHARACTERS.encode()
    expected = Trace([Message(MessageType.TEXT, BORDER_CHARACTERS)])
    for position in range(len(encoded) + 1):
        assert receiver.read(fragmented(receiver, TEXT, cut(encoded, [position]))) == expected
    assert receiver.read(fragmented(receiver, TEXT, bytewise(encoded))) == expected


@pytest.mark.attack("F14")
def test_text_survives_every_way_of_cutting_its_bytes_into_reads(receiver: Receiver) -> None:
    """Characters of one to four bytes arrive in each of the 512 ways to cut their bytes into reads."""
    text = "a\xe9\u20ac\U0001f600"
    wire = receiver.frame(TEXT, text.encode())
    header = len(wire) - len(text.encode())
    for pieces in compositions(wire[header:]):
        assert trace(receiver.reader(), [wire[:header], *pieces]) == Trace([Message(MessageType.TEXT, text)])


def test_text_is_not_checked_when_utf8_is_off(receiver: Receiver) -> None:
    """With utf8 off text arrives as the bytes that were sent, valid or not, whole or in fragments."""
    for name in INVALID_TEXT:
        text = bytes.fromhex(INVALID_TEXT[name])
        expected = Trace([Message(MessageType.TEXT, text)])
        assert receiver.read(receiver.frame(TEXT, text), utf8=False) == expected
        assert receiver.read(fragmented(receiver, TEXT, bytewise(text)), utf8=False) == expected


def test_binary_data_is_never_checked_as_text(receiver: Receiver) -> None:
    """Binary messages carry every byte, whole or in fragments."""
    data = bytes(range(256))
    expected = Trace([Message(MessageType.BINARY, data)])
    assert receiver.read(receiver.frame(BINARY, data)) == expected
    assert receiver.read(fragmented(receiver, BINARY, cut(data, [0, 100, 200]))) == expected


# Masking.


@pytest.mark.attack("F29")
@pytest.mark.parametrize("offset", range(4))
def test_mask_equals_the_naive_one_at_every_length(build: ModuleType, offset: int) -> None:
    """Masking 0 to 4096 bytes, starting at any byte of the key, gives what masking byte by byte gives."""
    key = KEY[offset:] + KEY[:offset]
    data = bytes(i * 7 % 256 for i in range(4096))
    expected = xor(data, key)
    wrong = [size for size in range(4097) if build.mask(data[:size], key) != expected[:size]]
    assert wrong == []


@pytest.mark.attack("F29")
@pytest.mark.parametrize("offset", range(4))
def test_mask_equals_the_naive_one_at_every_alignment(build: ModuleType, offset: int) -> None:
    """Masking gives the same wherever the data begins in memory, and whatever bytes-like type it has."""
    key = KEY[offset:] + KEY[:offset]
    memory = bytearray(i * 11 % 256 for i in range(2000))
    before = bytes(memory)
    for alignment in range(8):
        expected = xor(before[alignment:], key)
        for size in [*range(131), *range(1000, 1051), 1990, 1991, 1992]:
            view = memoryview(memory)[alignment : alignment + size]
            results = [build.mask(data, key) for data in (view, view.toreadonly(), bytearray(view))]
            assert results == [expected[:size]] * 3
            assert {type(result) for result in results} == {bytes}
    assert memory == before


@pytest.mark.attack("F29")
@pytest.mark.parametrize("key", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0", KEY])
def test_mask_applied_twice_gives_the_data_back(build: ModuleType, key: bytes) -> None:
    """Masking is its own inverse for every key, those with zero bytes included."""
    for size in (0, 1, 3, 4, 5, 1023, 1024, 1025, 4096):
        data = bytes(i % 253 for i in range(size))
        masked = build.mask(data, key)
        assert masked == xor(data, key)
        assert build.mask(masked, key) == data


@pytest.mark.attack("F29")
def test_payload_is_unmasked_across_reads(build: ModuleType) -> None:
    """The key goes on where it was when a payload is cut anywhere, in two reads, in three, or bytewise."""
    server = Receiver(build, masked=True)
    for size in [*range(12), 130, 1100]:
        payload = bytes(i * 5 % 256 for i in range(size))
        wire = server.frame(BINARY, payload)
        expected = Trace([Message(MessageType.BINARY, payload)])
        assert trace(server.reader(), bytewise(wire)) == expected
        for position in range(len(wire)):
            for second in (1, 2, 3, 5):
                assert trace(server.reader(), cut(wire, [position, position + second])) == expected


@pytest.mark.attack("F29")
def test_each_frame_is_unmasked_with_its_own_key(build: ModuleType) -> None:
    """Every frame brings its own key, an all-zero one included; none is left over from the frame before."""
    keys = [KEY, bytes(4), b"\xff\x00\xff\x00", KEY[::-1]]
    pieces = [b"abc", b"", b"defgh", b"i"]
    wire = b"".join(
        build_frame(CONTINUATION if i else TEXT, piece, fin=i == 3, key=key)
        for i, (piece, key) in enumerate(zip(pieces, keys, strict=True))
    )
    assert Receiver(build, masked=True).read(wire) == Trace([Message(MessageType.TEXT, "abcdefghi")])


# Many fragments, few bytes at a time, and the memory that they take.


def fragments(receiver: Receiver, size: int, count: int) -> list[bytes]:
    """Build the start of a binary message in fragments of one size, without the last of them."""
    later = receiver.frame(CONTINUATION, bytes(size), fin=False)
    return [receiver.frame(BINARY, bytes(size), fin=False)] + [later] * (count - 1)


OVERHEAD = 32768
"""Bytes of memory that a test grants to everything but payloads, tools that trace it included."""


def memory_used(run: Callable[[], object]) -> tuple[int, int]:
    """Measure the bytes that are still allocated when a call has returned its result, and the peak before."""
    gc.collect()
    tracemalloc.start()
    try:
        result = run()
        retained, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del result
    return retained, peak


@pytest.mark.attack("F19", "F20")
@pytest.mark.parametrize(("size", "allowed"), [(0, 1024), (1, 1057), (16, 2048), (24, 4096)])
def test_fragments_that_carry_little_are_refused_in_the_end(
    receiver: Receiver, size: int, allowed: int
) -> None:
    """A message may have 1024 fragments and one more for every 32 bytes; the next fragment is 1008."""
    limit = size * (allowed + 1)
    wire = fragments(receiver, size, allowed)
    reader = receiver.reader(max_message_size=limit)
    assert trace(reader, wire) == Trace([])
    header = wire[-1][: len(wire[-1]) - size]
    refused = Trace([], 1008, TOO_MANY_FRAGMENTS, finished=True)
    assert trace(reader, bytewise(header)) == refused
    assert trace(receiver.reader(max_message_size=limit), [b"".join([*wire, header])]) == refused


@pytest.mark.attack("F19")
def test_fragments_are_budgeted_for_each_message_alone(receiver: Receiver) -> None:
    """The budget starts anew with each message, counts the last fragment, and no control frame."""
    start = receiver.frame(PING).join(fragments(receiver, 0, 1023))
    message = start + receiver.frame(CONTINUATION)
    messages = receiver.reader().feed(message * 3)
    assert [m.type for m in messages if m.type is not MessageType.PING] == [MessageType.BINARY] * 3
    too_many = start + receiver.frame(CONTINUATION, fin=False) + receiver.frame(CONTINUATION)
    assert trace(receiver.reader(), [message + too_many]).code == 1008


@pytest.mark.attack("F19")
def test_long_message_in_short_fragments_arrives(build: ModuleType) -> None:
    """4 MiB in fragments of 64 bytes, as the Autobahn Testsuite sends it, are one legal message."""
    server = Receiver(build, masked=True)
    size = 4 * 2**20
    wire = b"".join([*fragments(server, 64, size // 64), server.frame(CONTINUATION)])
    reader = server.reader(max_message_size=size)
    pieces = [wire[position : position + 65536] for position in range(0, len(wire), 65536)]
    assert trace(reader, pieces) == Trace([Message(MessageType.BINARY, bytes(size))])


@pytest.mark.attack("F19", "F20")
@pytest.mark.parametrize("size", [0, 1, 32])
def test_fragments_retain_their_bytes_and_nothing_else(receiver: Receiver, size: int) -> None:
    """However many fragments have arrived, what is kept of them is their bytes with an eighth to spare."""
    count = 4096 if size else 1024
    wire = b"".join(fragments(receiver, size, count))
    reader = receiver.reader(max_message_size=count * size)
    retained, _ = memory_used(lambda: trace(reader, [wire]))
    assert (reader.error is None) == (size != 1)
    assert retained <= count * size * 9 // 8 + OVERHEAD


@pytest.mark.attack("F17")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_declared_length_takes_no_memory(receiver: Receiver, opcode: Opcode) -> None:
    """A header that announces 4 GiB takes memory for the bytes that arrive, not for those announced."""
    wire = receiver.frame(opcode, b"x" * 100, length=2**32)
    reader = receiver.reader(max_message_size=2**33)
    _, peak = memory_used(lambda: reader.feed(wire))
    assert peak <= OVERHEAD
    assert not reader.finished


@pytest.mark.attack("F21")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_payload_that_dribbles_is_held_once(receiver: Receiver, opcode: Opcode) -> None:
    """Reads of few bytes leave no objects behind: n bytes take n and an eighth, and at most 2n at the end."""
    size = 2**18
    wire = receiver.frame(opcode, b"x" * size)
    *pieces, last = cut(wire, [*range(0, len(wire) - 6144, 128), *range(len(wire) - 6144, len(wire))])
    reader = receiver.reader(max_message_size=size)
    assert max(memory_used(lambda: trace(reader, pieces))) <= size * 9 // 8 + OVERHEAD
    _, peak = memory_used(lambda: reader.feed(last))
    assert peak <= size + OVERHEAD


def dribbled_frame(receiver: Receiver, count: int) -> list[bytes]:
    """Cut one frame into reads of 64 bytes."""
    wire = receiver.frame(BINARY, bytes(64 * count))
    return [wire[position : position + 64] for position in range(0, len(wire), 64)]


def flooded_fragments(receiver: Receiver, count: int) -> list[bytes]:
    """Build a text of fragments of 64 bytes, a ping after each."""
    start, later = (receiver.frame(opcode, b"x" * 64, fin=False) for opcode in (TEXT, CONTINUATION))
    return [start, *[receiver.frame(PING, b"x") + later] * (count - 1), receiver.frame(CONTINUATION)]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(dribbled_frame, marks=pytest.mark.attack("F21")),
        pytest.param(flooded_fragments, marks=pytest.mark.attack("F16")),
    ],
)
def test_reading_takes_time_in_proportion_to_the_bytes(
    build: ModuleType, stream: Callable[[Receiver, int], list[bytes]]
) -> None:
    """A message sixteen times as long, in as many more reads, takes far less than 64 times the time."""
    server = Receiver(build, masked=True)

    def cpu_time(pieces: list[bytes]) -> float:
        reader = server.reader(max_message_size=2**22)
        start = time.process_time()
        messages = trace(reader, pieces).messages
        taken = time.process_time() - start
        assert len(messages[-1].data) >= 64 * 2048
        return taken

    # The best of a few, because the garbage collector may come in between.
    short, long = (
        min(cpu_time(pieces) for _ in range(3))
        for pieces in (stream(server, 2048), stream(server, 16 * 2048))
    )
    assert long < 64 * short


# The caller's buffer.

STREAMS = {
    "messages": build_frame(TEXT, b"text") + build_frame(BINARY, b"binary") + build_frame(PING, b"ping"),
    "fragments": build_frame(TEXT, b"a\xe2", fin=False) + build_frame(PONG) + build_frame(0, b"\x82\xac"),
    "close": build_frame(CLOSE, b"\x03\xe8bye") + b"more",
    "reserved opcode": build_frame(BINARY, b"binary") + b"\x83\x00",
    "too long": build_frame(TEXT, b"text") + build_frame(BINARY, length=2**40),
    "invalid text": build_frame(TEXT, b"text \xff text"),
    "invalid fragment": build_frame(TEXT, b"text", fin=False) + build_frame(0, b"\xff text"),
    "unfinished text": build_frame(TEXT, b"text \xe2"),
    "bad close": build_frame(BINARY, b"binary") + build_frame(CLOSE, b"\x03\xe8\xff"),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("take", [lambda buffer: buffer, memoryview], ids=["bytearray", "memoryview"])
def test_feed_keeps_nothing_of_the_callers_buffer(
    build: ModuleType, stream: str, take: Callable[[bytearray], bytearray | memoryview]
) -> None:
    """After each read the buffer may be overwritten and resized, after a violation as well."""
    wire = STREAMS[stream]
    client = Receiver(build, masked=False)
    expected = client.read(wire)
    for position in range(len(wire)):
        reader = client.reader()
        messages = []
        for piece in cut(wire, [position]):
            buffer = bytearray(piece)
            messages += reader.feed(take(buffer))
            buffer[:] = b"\xaa" * len(buffer)
            buffer.append(0)  # a BufferError while anything still has a view of it
        assert messages == expected.messages


@pytest.mark.parametrize("stream", STREAMS)
def test_reader_is_freed_without_the_garbage_collector(build: ModuleType, stream: str) -> None:
    """A reader that is dropped is gone at once, whatever it has read: its error does not refer to it."""
    inflater = Zlib()
    freed = weakref.ref(inflater)
    reader = build.MessageReader(masked=False, max_message_size=65536, inflater=inflater)
    del inflater
    gc.disable()
    try:
        reader.feed(STREAMS[stream])
        del reader
        assert freed() is None
    finally:
        gc.enable()


# Compression, as far as the framing is concerned (RFC 7692 §6).


@pytest.mark.parametrize(
    ("opcode", "data"), [(TEXT, "caf\u00e9 \U0001f600" * 20), (BINARY, bytes(range(256)) * 3)]
)
@pytest.mark.parametrize("utf8", [True, False])
def test_compressed_message_is_inflated(
    receiver: Receiver, opcode: Opcode, data: str | bytes, utf8: bool
) -> None:
    """A message whose first frame has RSV1 is inflated, in one frame or in fragments with a ping between."""
    plain = data.encode() if isinstance(data, str) else data
    message = Message(MessageType(opcode), data if utf8 else plain)
    compressed = deflate(plain)
    ping = Message(MessageType.PING, b"\xff")

    def read(wire: bytes) -> list[Message]:
        results = [
            trace(receiver.reader(inflater=Zlib(), utf8=utf8), pieces)
            for pieces in ([wire], bytewise(wire), cut(wire, [len(wire) // 2]))
        ]
        assert all(result == results[0] for result in results)
        assert results[0].code is None
        return results[0].messages

    assert read(receiver.frame(opcode, compressed, rsv=4)) == [message]
    for position in range(0, len(compressed) + 1, 7):
        start = receiver.frame(opcode, compressed[:position], rsv=4, fin=False)
        end = receiver.frame(CONTINUATION, compressed[position:])
        assert read(start + receiver.frame(PING, b"\xff") + end) == [ping, message]


def test_plain_message_may_follow_a_compressed_one(receiver: Receiver) -> None:
    """A message without RSV1 is delivered as it is, and its size is judged, whatever came before."""
    compressed = receiver.frame(TEXT, deflate(b"squeezed"), rsv=4)
    plain = fragmented(receiver, TEXT, [b"pla", b"in"]) + receiver.frame(BINARY, b"whole")
    result = trace(receiver.reader(inflater=Zlib()), [compressed + plain + compressed + plain])
    assert [message.data for message in result.messages] == ["squeezed", "plain", b"whole"] * 2
    result = trace(receiver.reader(inflater=Zlib()), [compressed + receiver.frame(BINARY, length=65537)])
    assert (len(result.messages), result.code, result.reason) == (1, 1009, TOO_BIG)


def test_inflater_is_told_how_much_room_is_left(receiver: Receiver) -> None:
    """A compressed message may be any length; what comes out of it is held to what is left of the limit."""
    inflater = Zlib()
    stored = b"\x00\x0a\x00\xf5\xff0123456789" * 10
    reader = receiver.reader(max_message_size=100, inflater=inflater)
    wire = receiver.frame(BINARY, stored[:75], rsv=4, fin=False) + receiver.frame(
        CONTINUATION, stored[75:] + b"\0"
    )
    assert trace(reader, [wire]) == Trace([Message(MessageType.BINARY, b"0123456789" * 10)])
    assert inflater.limits == [100, 50, 0]


@pytest.mark.parametrize("fin", [True, False])
def test_errors_of_the_inflater_end_the_reading(receiver: Receiver, fin: bool) -> None:
    """Data that is invalid, or too long when inflated, fails the connection with the inflater's code."""
    ping = receiver.frame(PING)
    first = [Message(MessageType.PING, b"")]
    invalid = receiver.frame(BINARY, b"\xff\xff\xff", rsv=4, fin=fin)
    reader = receiver.reader(inflater=Zlib())
    assert trace(reader, [ping + invalid]) == Trace(
        first, 1007, "the compressed data is invalid", finished=True
    )
    bomb = receiver.frame(BINARY, deflate(bytes(65537)), rsv=4, fin=fin)
    reader = receiver.reader(inflater=Zlib())
    assert trace(reader, [ping + bomb]) == Trace(first, 1009, TOO_BIG, finished=True)
    refusing = Broken(RemoteProtocolError(1013, "not now"))
    assert trace(receiver.reader(inflater=refusing), [ping + bomb])[:3] == (first, 1013, "not now")


def test_compressed_text_must_be_utf8(receiver: Receiver) -> None:
    """Text is checked after inflation, in the first fragment as well as at the end of the message."""
    refused = Trace([], 1007, INVALID_UTF8, finished=True)
    stored = b"\x00\x03\x00\xfc\xffab\xff"
    for wire in (
        receiver.frame(TEXT, deflate(b"abc\xff"), rsv=4),
        receiver.frame(TEXT, deflate(b"abc\xe2\x82"), rsv=4),
        receiver.frame(TEXT, stored, rsv=4, fin=False),
    ):
        for pieces in ([wire], bytewise(wire)):
            assert trace(receiver.reader(inflater=Zlib()), pieces) == refused


class Greedy:
    """An inflater that inflates nothing, and says by the length of its answer that it was too much."""

    def __init__(self, tail: bytes = b"") -> None:
        self._tail = tail

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Return the data, with one byte more than is allowed at the most."""
        return data[: max_length + 1]

    def finish(self, max_length: int) -> bytes:
        """Return the tail in the same way."""
        return self._tail[: max_length + 1]


@pytest.mark.parametrize(
    ("text", "code"), [(b"a\xffb...", 1007), (b"abcd\xff", 1009), (b"abcd\xe2\x82", 1009)]
)
def test_inflated_text_is_judged_up_to_the_limit(receiver: Receiver, text: bytes, code: int) -> None:
    """Of text that is too long when inflated, what is within the limit must be UTF-8, whatever the cuts."""
    for limit in (4, 3) if code == 1009 else (4,):
        wire = receiver.frame(TEXT, text, rsv=4)
        for pieces in ([wire], bytewise(wire), cut(wire, [9]), cut(wire, [len(wire) - 1])):
            reader = receiver.reader(max_message_size=limit, inflater=Greedy())
            reason = INVALID_UTF8 if code == 1007 else f"a message is longer than {limit} bytes"
            assert trace(reader, pieces) == Trace([], code, reason, finished=True)


def test_end_of_an_inflated_message_is_part_of_it(receiver: Receiver) -> None:
    """What the inflater has left at the end belongs to the message, to its text and to its size."""
    wire = receiver.frame(TEXT, b"ab\xe2", rsv=4)
    for tail, expected in (
        (b"\x82\xac", Trace([Message(MessageType.TEXT, "ab\u20ac")])),
        (b"\x82", Trace([], 1007, INVALID_UTF8, finished=True)),
        (b"\x82\xac!", Trace([], 1009, "a message is longer than 5 bytes", finished=True)),
        (b"!", Trace([], 1007, INVALID_UTF8, finished=True)),
    ):
        for pieces in ([wire], bytewise(wire)):
            assert trace(receiver.reader(max_message_size=5, inflater=Greedy(tail)), pieces) == expected


# Storage that is borrowed.


class Lender:
    """Lends buffers of a few bytes more than was asked for, with rubbish in them, and keeps the books.

    :ivar asked: the sizes that were asked for
    :ivar lent: the buffers that are out, by identity
    """

    def __init__(self, more: int = 0) -> None:
        self.asked: list[int] = []
        self.lent: dict[int, bytearray] = {}
        self._more = more

    def take(self, size: int) -> bytearray:
        """Lend a buffer."""
        buffer = bytearray(b"\xee" * (size + self._more))
        self.asked.append(size)
        self.lent[id(buffer)] = buffer
        return buffer

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back, which nobody may be looking at any more."""
        assert self.lent.pop(id(buffer)) is buffer
        buffer += b"a BufferError while anything still has a view of it"
        buffer[:] = b"\xdd" * len(buffer)

    def take_back(self, data: object) -> bytes:
        """Do with a message's data what its consumer has to do with a view; return it as bytes."""
        if not isinstance(data, memoryview):
            return encoded(data)
        payload = bytes(data)
        buffer = data.obj
        data.release()
        assert isinstance(buffer, bytearray)
        self.give(buffer)
        return payload


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("more", [0, 1, 100])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_storage_is_borrowed_until_the_message_is_complete(
    receiver: Receiver, opcode: Opcode, more: int, view: bool
) -> None:
    """An unfinished message is in one buffer, never twice as large as what has arrived; it goes back."""
    payload = bytes(i * 7 % 128 for i in range(3000))
    start = receiver.frame(opcode, payload[:2000], fin=False)
    wire = start + receiver.frame(CONTINUATION, payload[2000:])
    for step in (1, 7, 500, 2500):
        lender = Lender(more)
        reader = receiver.reader(max_message_size=3000, buffers=lender, view=view)
        messages = []
        for position in range(0, len(wire), step):
            messages += reader.feed(wire[position : position + step])
            received = max(position + step - (len(start) - 2000), 0)
            assert messages or len(lender.lent) == (received > 0)
            assert all(size <= min(2 * received, 3000) for size in lender.asked)
        assert [lender.take_back(message.data) for message in messages] == [payload]
        assert lender.lent == {}
        assert len(lender.asked) <= 13
        assert all(size >= 2 * less for less, size in pairwise([*lender.asked[:-1], 2**62]))


def test_whole_messages_borrow_nothing(receiver: Receiver) -> None:
    """A message that arrives whole is built from what was read, and so are control frames in pieces."""
    lender = Lender()
    reader = receiver.reader(buffers=lender)
    wire = receiver.frame(TEXT, b"text") + receiver.frame(BINARY, b"binary") + receiver.frame(BINARY)
    assert len(trace(reader, [wire * 3, *bytewise(receiver.frame(PING, b"x" * 100))]).messages) == 10
    assert (
        trace(reader, bytewise(receiver.frame(BINARY) * 2)).messages == [Message(MessageType.BINARY, b"")] * 2
    )
    assert lender.asked == []


@pytest.mark.attack("F17")
def test_declared_length_borrows_nothing(receiver: Receiver) -> None:
    """Of a frame that announces 4 GiB what has arrived is stored, and nothing is before it arrives."""
    lender = Lender()
    reader = receiver.reader(max_message_size=2**33, buffers=lender)
    wire = receiver.frame(BINARY, b"x" * 100, length=2**32)
    reader.feed(wire[:-100])
    assert lender.asked == []
    reader.feed(wire[-100:])
    assert lender.asked == [100]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("83", 1002),
        ("800180", 1007),
        ("807f7fffffffffffffff", 1009),
        ("0000" * 1030, 1008),
        ("880203e8", None),
    ],
)
def test_storage_goes_back_when_the_reading_ends(build: ModuleType, end: str, code: int | None) -> None:
    """A violation, and a Close, give back what there is of an unfinished message; nothing is lent after."""
    for cutting in (bytewise, lambda wire: [wire]):
        lender = Lender()
        reader = build.MessageReader(masked=False, max_message_size=100, buffers=lender)
        reader.feed(build_frame(TEXT, b"start", fin=False))
        assert len(lender.lent) == 1
        assert trace(reader, cutting(bytes.fromhex(end))).code == code
        assert (lender.lent, reader.finished) == ({}, True)
        assert reader.feed(build_frame(TEXT, b"more")) == []
        reader.close()
        assert lender.lent == {}


@pytest.mark.parametrize("fed", [0, 1, 5, 8, 20])
def test_reader_that_is_closed_gives_back_what_it_has(receiver: Receiver, fed: int) -> None:
    """After close, in a message or between two, nothing is borrowed and nothing is read; twice is fine."""
    lender = Lender()
    reader = receiver.reader(buffers=lender)
    reader.feed(receiver.frame(BINARY, b"x" * 50)[:fed])
    for _ in range(2):
        reader.close()
        assert (reader.finished, reader.error, lender.lent) == (True, None, {})
    assert reader.feed(receiver.frame(TEXT, b"late")) == []


@pytest.mark.parametrize("size", [0, 1, 5, 126, 5000, 70_000])
@pytest.mark.parametrize("borrowed", [True, False])
def test_view_is_the_message_and_belongs_to_its_receiver(
    receiver: Receiver, size: int, borrowed: bool
) -> None:
    """With view on, binary data is a view of its exact length, over a buffer the reader has no hold on."""
    payload = bytes(i % 251 for i in range(size))
    wire = receiver.frame(BINARY, payload)
    fragments = receiver.frame(BINARY, payload[:3], fin=False) + receiver.frame(CONTINUATION, payload[3:])
    for pieces in ([wire], [fragments], cut(wire, [1, 9, size // 2]), cut(fragments, [size, size + 9])):
        lender = Lender(more=10)
        reader = receiver.reader(max_message_size=70_000, view=True, buffers=lender if borrowed else None)
        messages = [message for piece in pieces for message in reader.feed(piece)]
        ((type_, data),) = messages
        assert type_ is MessageType.BINARY
        assert isinstance(data, memoryview)
        assert (data.nbytes, data.format, data.ndim, data.readonly) == (size, "B", 1, False)
        assert isinstance(data.obj, bytearray)
        assert list(lender.lent) == ([id(data.obj)] if borrowed else [])
        data[:0] = b""
        before = bytes(data)
        reader.feed(wire)
        assert data == before == payload
        if borrowed:
            lender.take_back(data)
        else:
            buffer = data.obj
            data.release()
            buffer.append(0)  # a BufferError while the reader has a hold on it


@pytest.mark.parametrize("utf8", [True, False])
def test_only_binary_data_is_a_view(receiver: Receiver, utf8: bool) -> None:
    """Text is str, or bytes when it is not checked, and control frames are bytes, with view on as well."""
    wire = receiver.frame(TEXT, b"a", fin=False) + receiver.frame(PING, b"b") + receiver.frame(CONTINUATION)
    wire += receiver.frame(TEXT, b"c") + receiver.frame(CLOSE, b"\x03\xe8")
    lender = Lender()
    reader = receiver.reader(view=True, utf8=utf8, buffers=lender)
    text = str if utf8 else bytes
    assert [type(message.data) for message in reader.feed(wire)] == [bytes, text, text, bytes]
    assert lender.lent == {}


@pytest.mark.parametrize("view", [False, True])
def test_inflated_message_is_stored_like_any_other(receiver: Receiver, view: bool) -> None:
    """What comes out of the inflater is borrowed for, given back, and delivered as a view if wanted."""
    payload = bytes(i % 251 for i in range(2000))
    wire = receiver.frame(BINARY, deflate(payload), rsv=4)
    for pieces in ([wire], bytewise(wire)):
        lender = Lender()
        reader = receiver.reader(max_message_size=2000, inflater=Zlib(), buffers=lender, view=view)
        ((_, data),) = trace(reader, pieces).messages
        assert isinstance(data, memoryview if view else bytes)
        assert max(lender.asked) == 2000
        assert lender.take_back(data) == payload
        assert lender.lent == {}


class Broken:
    """Buffers and inflater that answer with anything but what they were asked for."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def take(self, size: int) -> Any:
        """Answer."""
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def give(self, buffer: bytearray) -> None:
        """Take anything."""

    def inflate(self, data: bytes, max_length: int) -> Any:
        """Answer."""
        return self.take(0)

    finish = take


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (b"x" * 100, TypeError, r"^buffers: take\(\) returned no bytearray but bytes$"),
        (None, TypeError, r"^buffers: take\(\) returned no bytearray but NoneType$"),
        (bytearray(3), ValueError, r"^buffers: take\(5\) returned a buffer of 3 bytes$"),
        (MemoryError("none left"), MemoryError, "^none left$"),
    ],
)
def test_buffers_that_fail_end_the_reading(
    receiver: Receiver, answer: Any, error: type[Exception], match: str
) -> None:
    """An error of the buffers, or a buffer that is none or too short, comes out of feed, and ends it all."""
    reader = receiver.reader(buffers=Broken(answer), view=True)
    with pytest.raises(error, match=match):
        reader.feed(receiver.frame(BINARY, b"12345"))
    assert (reader.finished, reader.error) == (True, None)
    assert reader.feed(receiver.frame(BINARY, b"12345")) == []
    reader.close()


def test_buffers_may_refuse_like_a_violation(receiver: Receiver) -> None:
    """A RemoteProtocolError of the buffers fails the connection with its code."""
    refusal = RemoteProtocolError(1013, "no room")
    reader = receiver.reader(buffers=Broken(refusal))
    wire = receiver.frame(PING, b"x") + receiver.frame(BINARY, b"12345", fin=False)
    assert trace(reader, [wire]) == Trace([Message(MessageType.PING, b"x")], 1013, "no room", finished=True)
    assert reader.error is not refusal


def test_inflater_that_fails_ends_the_reading(receiver: Receiver) -> None:
    """An error of the inflater that is no violation comes out of feed, and the storage goes back."""
    lender = Lender()
    start = receiver.frame(BINARY, b"12345", fin=False, rsv=4)

    class Fails(Greedy):
        def finish(self, max_length: int) -> bytes:
            """Fail."""
            raise MemoryError

    reader = receiver.reader(buffers=lender, inflater=Fails())
    reader.feed(start)
    assert len(lender.lent) == 1
    with pytest.raises(MemoryError):
        reader.feed(receiver.frame(CONTINUATION))
    assert (reader.finished, reader.error, lender.lent) == (True, None, {})
    assert reader.feed(start) == []


@pytest.mark.parametrize("size", [-1, 2**63, -(2**70), 2**70])
def test_limit_beyond_any_frame_is_refused(build: ModuleType, size: int) -> None:
    """max_message_size is 0 to 2**63 - 1, or a ValueError that names it."""
    with pytest.raises(ValueError, match=rf"^max_message_size: 0 to 2\*\*63 - 1 bytes, not {size}$"):
        build.MessageReader(masked=True, max_message_size=size)


# Properties of any stream.


texts = st.builds(Message, st.just(MessageType.TEXT), st.text(max_size=60))
binaries = st.builds(Message, st.just(MessageType.BINARY), st.binary(max_size=300))
controls = st.builds(Message, st.sampled_from([MessageType.PING, MessageType.PONG]), st.binary(max_size=125))
closes = st.builds(
    Message, st.just(MessageType.CLOSE), st.builds(build_close, st.integers(3000, 4999), st.text(max_size=30))
)
cuts = st.lists(st.integers(0, 2000), max_size=12)


@st.composite
def conversations(draw: st.DrawFn, masked: bool) -> tuple[bytes, list[Message]]:
    """Draw a valid stream, fragmented, with control frames in between, and the messages it must give."""
    keys = st.binary(min_size=4, max_size=4) if masked else st.none()
    wire, messages = b"", []

    def send_controls() -> bytes:
        between = draw(st.lists(controls, max_size=2))
        messages.extend(between)
        return b"".join(build_frame(m.type, encoded(m.data), key=draw(keys)) for m in between)

    for message in draw(st.lists(texts | binaries, max_size=4)):
        payload = encoded(message.data)
        pieces = cut(payload, draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        for i, piece in enumerate(pieces):
            wire += send_controls()
            opcode, fin = CONTINUATION if i else message.type, i == len(pieces) - 1
            wire += build_frame(opcode, piece, fin=fin, key=draw(keys))
        messages.append(message)
    for message in draw(st.lists(closes, max_size=1)):
        wire += send_controls() + build_frame(CLOSE, encoded(message.data), key=draw(keys))
        messages.append(message)
    return wire, messages


@st.composite
def streams(draw: st.DrawFn, masked: bool) -> bytes:
    """Draw a stream of frames some of which are malformed, or out of place, or followed by noise."""
    key, other_key = (KEY, None) if masked else (None, KEY)
    frames = st.builds(
        build_frame,
        st.sampled_from([CONTINUATION, TEXT, BINARY, PING] * 4 + [PONG, CLOSE, 3, 11]),
        st.binary(max_size=140)
        | st.text(max_size=40).map(str.encode)
        | closes.map(lambda m: encoded(m.data)),
        fin=st.booleans() | st.just(True),
        rsv=st.sampled_from([0] * 20 + [1, 2, 4]),
        key=st.sampled_from([key] * 20 + [other_key]),
        length_form=st.sampled_from([None] * 20 + [16, 64]),
    )
    return b"".join(draw(st.lists(frames, max_size=8))) + draw(st.binary(max_size=12))


@pytest.mark.attack("F12", "F14")
@PROPERTY
@given(data=st.data())
def test_any_conversation_arrives_as_it_was_sent(receiver: Receiver, data: st.DataObject) -> None:
    """Any messages, fragmented and cut anywhere, control frames in between, arrive unchanged and in order."""
    wire, messages = data.draw(conversations(receiver.masked))
    finished = bool(messages) and messages[-1].type is MessageType.CLOSE
    result = trace(receiver.reader(), cut(wire, data.draw(cuts)))
    assert result == Trace(messages, finished=finished)
    assert [type(message.data) for message in result.messages] == [type(message.data) for message in messages]


@pytest.mark.attack("F07", "F10", "F11", "F14")
@PROPERTY
@given(data=st.data(), limit=st.sampled_from([0, 20, 200]), utf8=st.booleans(), positions=cuts)
def test_trace_of_a_stream_does_not_depend_on_its_cuts(
    receiver: Receiver, data: st.DataObject, limit: int, utf8: bool, positions: list[int]
) -> None:
    """Whatever the stream, its messages, error code and reason are the same however its bytes arrive."""
    wire = data.draw(streams(receiver.masked))

    def read(pieces: list[bytes]) -> Trace:
        return trace(receiver.reader(max_message_size=limit, utf8=utf8), pieces)

    whole = read([wire])
    assert read(bytewise(wire)) == whole
    assert read(cut(wire, positions)) == whole


@PROPERTY
@given(pieces=st.lists(st.binary(max_size=80), max_size=6), limit=st.integers(0, 300), utf8=st.booleans())
@example(pieces=[b"\x81\x05Hello"], limit=300, utf8=True)
def test_random_bytes_never_raise(receiver: Receiver, pieces: list[bytes], limit: int, utf8: bool) -> None:
    """Feeding any bytes returns messages within the limit, and an error only as one of four close codes."""
    result = trace(receiver.reader(max_message_size=limit, utf8=utf8), pieces)
    assert result.code in {None, 1002, 1007, 1008, 1009}
    assert all(len(encoded(message.data)) <= max(limit, 125) for message in result.messages)


# Writing.


@pytest.mark.parametrize("size", [0, 1, 2, 125, 126, 127, 1024, 1025, 65535, 65536, 65537])
@pytest.mark.parametrize("key", [None, KEY, bytes(4)], ids=["unmasked", "masked", "zero key"])
@pytest.mark.parametrize("take", [bytes, bytearray, memoryview])
def test_frame_equals_the_naive_one(
    build: ModuleType, size: int, key: bytes | None, take: Callable[[bytes], Any]
) -> None:
    """A frame of any length, with and without key, is the shortest valid one; its payload is not changed."""
    payload = bytes(i % 249 for i in range(size))
    given_payload = take(payload)
    built = build.frame(BINARY, given_payload, masking_key=key)
    assert type(built) is bytes
    assert built == build_frame(BINARY, payload, key=key)
    assert given_payload == payload
    reader = build.MessageReader(masked=key is not None, max_message_size=size)
    assert reader.feed(built) == [Message(MessageType.BINARY, payload)]


@pytest.mark.parametrize("opcode", Opcode)
@pytest.mark.parametrize("key", [None, KEY], ids=["unmasked", "masked"])
def test_frame_has_the_bits_that_were_asked_for(build: ModuleType, opcode: Opcode, key: bytes | None) -> None:
    """Opcode, FIN and RSV1 are written as given; FIN is set and RSV1 is not unless said otherwise."""
    for fin, rsv1 in product([True, False], repeat=2):
        built = build.frame(opcode, b"payload", fin=fin, rsv1=rsv1, masking_key=key)
        rsv = 4 if rsv1 else 0
        assert parse_frames(built) == [WireFrame(opcode, b"payload", fin=fin, rsv=rsv, key=key)]
    assert build.frame(opcode, b"payload") == build_frame(opcode, b"payload")


def test_frame_of_a_reused_buffer_is_a_copy(build: ModuleType) -> None:
    """A frame stays as it was built when the buffer of its payload is overwritten and resized."""
    for size in (5, 126, 2000, 70_000):
        for key in (None, KEY):
            buffer = bytearray(size)
            built = build.frame(BINARY, buffer, masking_key=key)
            buffer[:] = b"\xff" * (size + 1)
            assert parse_frames(built)[0].payload == bytes(size)


@PROPERTY
@given(
    st.sampled_from(Opcode),
    st.binary(max_size=300),
    st.booleans(),
    st.booleans(),
    st.none() | st.binary(min_size=4, max_size=4),
)
def test_any_frame_equals_the_naive_one(
    build: ModuleType, opcode: Opcode, payload: bytes, fin: bool, rsv1: bool, key: bytes | None
) -> None:
    """Any frame is, byte for byte, what the naive builder makes of the same arguments."""
    built = build.frame(opcode, payload, fin=fin, rsv1=rsv1, masking_key=key)
    assert built == build_frame(opcode, payload, fin=fin, rsv=4 if rsv1 else 0, key=key)


@pytest.mark.parametrize("key", [None, KEY], ids=["unmasked", "masked"])
@pytest.mark.parametrize(
    "text", ["", "a", "hello", "caf\u00e9 \U0001f600", "x" * 126, "\u20ac" * 30_000, "\0"]
)
def test_frame_takes_text(build: ModuleType, text: str, key: bytes | None) -> None:
    """A str is framed as its UTF-8, whatever the opcode."""
    for opcode in (TEXT, BINARY, CONTINUATION):
        assert build.frame(opcode, text, masking_key=key) == build_frame(opcode, text.encode(), key=key)
    with pytest.raises(UnicodeEncodeError):
        build.frame(TEXT, text + "\ud800", masking_key=key)


CONTIGUOUS: list[Any] = [
    b"abcd",
    bytearray(b"abcd"),
    memoryview(b"xabcdx")[1:5],
    memoryview(b"abcd").cast("B", (2, 2)),
    memoryview(b"abcd").cast("c"),
    array("H", b"abcd"),
    memoryview(array("i", b"abcd")),
    memoryview(b""),
    array("d"),
]


@pytest.mark.parametrize("data", CONTIGUOUS)
def test_everything_takes_every_contiguous_buffer(build: ModuleType, data: Any) -> None:
    """frame, mask and feed take the bytes of any contiguous buffer, whatever its items are."""
    payload = memoryview(data).tobytes()
    assert build.frame(BINARY, data) == build_frame(BINARY, payload)
    assert build.frame(BINARY, data, masking_key=KEY) == build_frame(BINARY, payload, key=KEY)
    assert build.mask(data, KEY) == xor(payload, KEY)
    reader = build.MessageReader(masked=False, max_message_size=1000)
    assert reader.feed(b"\x82\x04ab"[:3]) == []
    assert reader.feed(data) == ([Message(MessageType.BINARY, b"aabc")] if payload else [])
    assert reader.feed(b"") == []


@pytest.mark.parametrize("data", [3, None, [1, 2], object(), deque([1])])
def test_nothing_takes_what_is_not_bytes_like(build: ModuleType, data: Any) -> None:
    """frame, mask and feed refuse what has no bytes with a TypeError that names argument and type."""
    reader = build.MessageReader(masked=False, max_message_size=1000)
    name = type(data).__name__
    with pytest.raises(TypeError, match=f"^payload: a bytes-like object is needed, not {name}$"):
        build.frame(BINARY, data)
    with pytest.raises(TypeError, match=f"^data: a bytes-like object is needed, not {name}$"):
        build.mask(data, KEY)
    with pytest.raises(TypeError, match=f"^data: a bytes-like object is needed, not {name}$"):
        reader.feed(data)
    assert reader.feed(b"\x82\x01a") == [Message(MessageType.BINARY, b"a")]


@pytest.mark.parametrize("data", [memoryview(b"abcdef")[::2], memoryview(b"abc")[::-1]])
def test_nothing_takes_a_view_with_gaps(build: ModuleType, data: memoryview) -> None:
    """frame, mask and feed refuse a view whose bytes do not lie behind each other."""
    reader = build.MessageReader(masked=False, max_message_size=1000)
    with pytest.raises(TypeError, match=r"^payload: a contiguous bytes-like object is needed$"):
        build.frame(BINARY, data)
    with pytest.raises(TypeError, match=r"^data: a contiguous bytes-like object is needed$"):
        build.mask(data, KEY)
    with pytest.raises(TypeError, match=r"^data: a contiguous bytes-like object is needed$"):
        reader.feed(data)


def test_text_is_not_masked_and_not_read(build: ModuleType) -> None:
    """Mask and feed are for bytes: a str is a TypeError."""
    reader = build.MessageReader(masked=False, max_message_size=1000)
    calls: list[Callable[[], object]] = [lambda: build.mask("text", KEY), lambda: reader.feed("text")]
    for call in calls:
        with pytest.raises(TypeError, match=r"^data: a bytes-like object is needed, not str$"):
            call()


@pytest.mark.parametrize("opcode", [-1, 16, 255, 2**70, -(2**70)])
def test_frame_refuses_an_opcode_of_more_than_four_bits(build: ModuleType, opcode: int) -> None:
    """An opcode that has no place in a frame is a ValueError; reserved ones can be framed."""
    with pytest.raises(ValueError, match=f"^opcode: 0 to 15, not {opcode}$"):
        build.frame(opcode, b"")
    assert build.frame(15, b"") == b"\x8f\x00"


def test_masking_key_is_four_bytes(build: ModuleType) -> None:
    """Frame and mask refuse a key that is shorter or longer, or no bytes, and name the argument."""
    for key in (b"", b"123", b"12345"):
        with pytest.raises(ValueError, match=f"^masking_key: 4 bytes are needed, not {len(key)}$"):
            build.frame(BINARY, b"x", masking_key=key)
        with pytest.raises(ValueError, match=f"^key: 4 bytes are needed, not {len(key)}$"):
            build.mask(b"x", key)
    with pytest.raises(TypeError, match=r"^masking_key: bytes are needed, not str$"):
        build.frame(BINARY, b"x", masking_key="1234")
    with pytest.raises(TypeError, match=r"^key: bytes are needed, not NoneType$"):
        build.mask(b"x", None)


def test_arguments_are_taken_by_name_or_place(build: ModuleType) -> None:
    """Opcode, payload, data and key can be named; what else there is must be, and nothing else is taken."""
    assert build.frame(opcode=2, payload=b"x", masking_key=None) == build.frame(2, payload=b"x", fin=1)
    assert build.mask(data=b"x", key=KEY, in_place=0) == build.mask(b"x", key=KEY)
    wrong: list[Callable[[], object]] = [
        lambda: build.frame(2),
        lambda: build.frame(payload=b"x"),
        lambda: build.frame(2, b"x", True),
        lambda: build.frame(2, b"x", opcode=2),
        lambda: build.frame(2, b"x", key=KEY),
        lambda: build.frame("2", b"x"),
        lambda: build.frame(2.0, b"x"),
        lambda: build.mask(b"x"),
        lambda: build.mask(b"x", KEY, True),
        lambda: build.mask(b"x", KEY, data=b"x"),
        lambda: build.mask(b"x", KEY, inplace=True),
        lambda: build.MessageReader(True, 100),
        lambda: build.MessageReader(masked=True),
        lambda: build.MessageReader(max_message_size=100),
        lambda: build.MessageReader(masked=True, max_message_size="100"),
        lambda: build.MessageReader(masked=True, max_message_size=100, limit=1),
        lambda: build.MessageReader(masked=True, max_message_size=100).feed(),
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()


# --- turns ------------------------------------------------------------------------------------------


def in_turns(reader: MessageReader, pieces: Iterable[bytes]) -> Trace:
    """Feed the pieces of a stream, each again as far as it was not looked at, and note what comes of it."""

    def again(piece: bytes) -> Iterator[bytes]:
        yield piece
        while reader.left:
            yield piece[-reader.left :]

    return trace(reader, (each for piece in pieces for each in again(piece)))


@pytest.mark.attack("R12")
def test_reader_stops_when_its_turn_is_over(receiver: Receiver) -> None:
    """A call gives messages of so many bytes, each counted with 128 more, and tells what it has not read."""
    text, ping = receiver.frame(TEXT, b"x" * 72), receiver.frame(PING)
    reader = receiver.reader(turn=400)
    assert reader.feed(text * 5) == [Message(MessageType.TEXT, "x" * 72)] * 2
    assert reader.left == 3 * len(text)
    assert reader.feed(text * 2) == [Message(MessageType.TEXT, "x" * 72)] * 2
    assert reader.left == 0
    fragments = receiver.frame(BINARY, b"x" * 300, fin=False) * 1 + receiver.frame(CONTINUATION, b"x")
    assert reader.feed(fragments + ping) == [Message(MessageType.BINARY, b"x" * 301)]
    assert reader.left == len(ping)
    assert reader.feed(ping * 5 + text[:-1]) == [Message(MessageType.PING, b"")] * 4
    assert reader.left == len(ping + text) - 1


@pytest.mark.attack("C04")
def test_turn_counts_what_messages_inflate_to(receiver: Receiver) -> None:
    """A few bytes that inflate to a long message are a turn of their own."""
    bomb = receiver.frame(BINARY, deflate(bytes(60_000)), rsv=4)
    reader = receiver.reader(turn=32_768, inflater=Zlib())
    assert reader.feed(bomb * 50) == [Message(MessageType.BINARY, bytes(60_000))]
    assert reader.left == 49 * len(bomb)


@pytest.mark.parametrize("end", ["", "81", "83", "8800", "8301"])
@pytest.mark.parametrize("turn", [1, 130, 300, 10_000])
def test_turns_change_nothing_but_the_time(receiver: Receiver, turn: int, end: str) -> None:
    """Whatever a turn is, the messages, the error and the end are the same, and no rest is left after it."""
    wire = b"".join(
        [
            receiver.frame(TEXT, b"abc") * 3,
            fragmented(receiver, TEXT, [b"gr\xc3", b"\xbc", b"n"]),
            receiver.frame(PING, b"ping") * 2,
            receiver.frame(BINARY, bytes(200)),
            receiver.header(end),
        ]
    )
    whole = trace(receiver.reader(), [wire])
    for pieces in ([wire], bytewise(wire), cut(wire, [len(wire) // 2])):
        reader = receiver.reader(turn=turn)
        assert in_turns(reader, pieces) == whole
        assert reader.left == 0


def writable_view(data: bytes) -> memoryview:
    """Make a view through which a copy of the data can be changed."""
    return memoryview(bytearray(data))


@pytest.mark.attack("F29")
@pytest.mark.parametrize("take", [bytearray, writable_view])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 7, 8, 9, 31, 33, 1023, 1024, 1025, 70_001])
def test_mask_in_place_changes_the_data_itself(build: ModuleType, size: int, take: Any) -> None:
    """In place, what was given is masked and returned, and again gives what it was."""
    plain = bytes(i % 253 for i in range(size))
    data = take(plain)
    assert build.mask(data, KEY, in_place=True) is data
    assert data == xor(plain, KEY)
    assert build.mask(data, KEY, in_place=True) == plain


@pytest.mark.attack("F29")
def test_mask_in_place_changes_nothing_else(build: ModuleType) -> None:
    """A view of some bytes has those masked, whatever its items are, and not the bytes beside it."""
    for start in range(9):
        memory = bytearray(range(100))
        build.mask(memoryview(memory)[start:50], KEY, in_place=True)
        assert memory == bytes(range(start)) + xor(bytes(range(start, 50)), KEY) + bytes(range(50, 100))
    numbers = array("H", bytes(range(20)))
    assert build.mask(numbers, KEY, in_place=True) is numbers
    assert numbers.tobytes() == xor(bytes(range(20)), KEY)


@pytest.mark.parametrize("data", [b"abc", memoryview(b"abc"), memoryview(bytearray(3)).toreadonly()])
def test_mask_in_place_refuses_what_cannot_be_changed(build: ModuleType, data: Any) -> None:
    """Bytes, and views of bytes, are not changed: a TypeError says what was wrong."""
    message = f"^data: it is to be masked in place, and {type(data).__name__} is not writable$"
    with pytest.raises(TypeError, match=message):
        build.mask(data, KEY, in_place=True)


# framing.py: the build in use, and frames made ahead of time.


def test_framing_offers_the_names_of_the_build_it_names() -> None:
    """The reader, the builder and the mask that the package uses are those of framing.BUILD."""
    chosen = importlib.import_module(BUILDS[framing.BUILD])
    used = (framing.MessageReader, framing.frame, framing.mask)
    assert used == (chosen.MessageReader, chosen.frame, chosen.mask)


COMPILED = BUILDS["c"]


class BrokenBuild(MetaPathFinder):
    """Stands before the compiled module, and fails to load it."""

    def __init__(self, error: ImportError) -> None:
        self._error = error

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Fail, if it is the compiled module that is looked for."""
        if fullname == COMPILED:
            raise self._error


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Load framing.py once more: with ANYIO_WS_FRAMING set, and with a compiled module of the test's."""

    def choose(forced: str | None, compiled: object) -> ModuleType:
        if forced is None:
            monkeypatch.delenv("ANYIO_WS_FRAMING", raising=False)
        else:
            monkeypatch.setenv("ANYIO_WS_FRAMING", forced)
        monkeypatch.delitem(sys.modules, COMPILED, raising=False)
        if isinstance(compiled, ImportError):
            monkeypatch.setattr(sys, "meta_path", [BrokenBuild(compiled), *sys.meta_path])
        else:
            monkeypatch.setitem(sys.modules, COMPILED, compiled)
        spec = importlib.util.spec_from_file_location("anyio_ws.framing", framing.__file__)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return choose


WORKING = SimpleNamespace(MessageReader="reader", fragments="fragments", frame=lambda *_: b"", mask="mask")


@pytest.mark.parametrize("forced", [None, "", "c"])
def test_compiled_build_is_taken_where_it_is_installed(
    choose: Callable[..., ModuleType], forced: str | None
) -> None:
    """The compiled names are used if there are such, asked for or not."""
    module = choose(forced, WORKING)
    assert (module.BUILD, module.MessageReader, module.mask) == ("c", "reader", "mask")
    assert module.fragments == "fragments"
    assert module.frame is WORKING.frame


@pytest.mark.parametrize(("forced", "compiled"), [("python", WORKING), (None, None), ("", None)])
def test_python_build_is_taken_where_it_is_asked_for_or_alone(
    choose: Callable[..., ModuleType], forced: str | None, compiled: object
) -> None:
    """The Python names are used when they are asked for, and when there are no others."""
    module = choose(forced, compiled)
    assert module.BUILD == "python"
    assert module.MessageReader is MessageReader


@pytest.mark.parametrize("forced", [None, "c"])
@pytest.mark.parametrize(
    "compiled",
    [
        SimpleNamespace(MessageReader="reader"),
        ImportError("undefined symbol"),
        ModuleNotFoundError("No module named 'events'", name="events"),
    ],
    ids=["without a name", "not to be loaded", "without what it imports"],
)
def test_compiled_build_that_is_broken_is_an_error(
    choose: Callable[..., ModuleType], forced: str | None, compiled: object
) -> None:
    """A compiled module that is there and does not work is not passed over in silence."""
    with pytest.raises(ImportError, match=r"cannot import name|undefined symbol|No module named 'events'"):
        choose(forced, compiled)


def test_build_that_is_asked_for_must_be_there(choose: Callable[..., ModuleType]) -> None:
    """ANYIO_WS_FRAMING=c without a compiled module is an error, not a slow program."""
    with pytest.raises(ModuleNotFoundError, match="_framing_c"):
        choose("c", None)


@pytest.mark.parametrize("forced", ["C", "py", "rust", " c"])
def test_unknown_build_is_refused(choose: Callable[..., ModuleType], forced: str) -> None:
    """A misspelt ANYIO_WS_FRAMING is a ValueError that names the variable and what it may be."""
    with pytest.raises(ValueError, match=f"^ANYIO_WS_FRAMING: 'python' or 'c', .* not '{forced}'$"):
        choose(forced, WORKING)


@pytest.mark.parametrize("text", ["", "hello", "caf\u00e9 \U0001f600", "x" * 126, "x" * 65536])
def test_frame_text_is_a_text_frame_made_once(text: str) -> None:
    """A text framed ahead of time has a server's bytes, and the payload that a client masks anew."""
    made = framing.frame_text(text)
    assert bytes(made) == build_frame(TEXT, text.encode())
    assert len(made) == len(bytes(made))
    assert bytes(made) is bytes(made)
    assert (made.opcode, made.payload) == (TEXT, text.encode())


@pytest.mark.parametrize("opcode", [CONTINUATION, CLOSE, PING, PONG])
def test_frame_made_once_is_a_whole_message(opcode: Opcode) -> None:
    """Fragments and control frames cannot be framed ahead: a ValueError that names the field."""
    with pytest.raises(ValueError, match=f"^opcode: .*{opcode.name}"):
        framing.Frame(opcode, b"")


@pytest.mark.parametrize("data", [b"text", bytearray(b"text"), None, 3])
def test_frame_text_refuses_what_is_not_text(data: Any) -> None:
    """Bytes and everything else that is not str are a TypeError that says what takes bytes."""
    message = f"^data: text is str, not {type(data).__name__}; frame_bin takes bytes$"
    with pytest.raises(TypeError, match=message):
        framing.frame_text(data)


def test_frame_text_refuses_a_lone_surrogate() -> None:
    """Text that has no UTF-8 is a UnicodeEncodeError when it is framed, not when it is written."""
    with pytest.raises(UnicodeEncodeError):
        framing.frame_text("a\ud800")


class Halving:
    """A stand-in for a compressor: it leaves out the second half, of short messages nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.calls = 0

    def shrink_alone(self, data: bytes) -> bytes | None:
        self.calls += 1
        return data[: len(data) // 2] if len(data) > 9 else None


def test_frame_is_compressed_once_for_each_kind_of_connection() -> None:
    """However often a frame is sent compressed, it is made once for all compressors of one kind."""
    one, alike, other = Halving("a"), Halving("a"), Halving("b")
    for made, opcode in ((framing.frame_text("x" * 20), TEXT), (framing.frame_bin(b"x" * 20), BINARY)):
        compressed = made.compressed(one)
        assert compressed == build_frame(opcode, b"x" * 10, rsv=4)
        assert all(made.compressed(each) is compressed for each in (one, alike))
        assert made.compressed(other) == compressed
        assert bytes(made) == build_frame(opcode, b"x" * 20)
    assert [one.calls, alike.calls, other.calls] == [2, 0, 2]


def test_frame_that_does_not_shrink_is_tried_once() -> None:
    """A frame that is better sent as it is is not compressed again and again."""
    made, compressor = framing.frame_text("short"), Halving("a")
    assert [made.compressed(compressor) for _ in range(3)] == [None] * 3
    assert compressor.calls == 1


@pytest.mark.attack("C13")
def test_frame_may_forbid_to_be_compressed() -> None:
    """A frame made with compress=False is compressed for nobody."""
    compressor = Halving("a")
    for made in (framing.frame_text("x" * 20, compress=False), framing.frame_bin(b"x" * 20, compress=False)):
        assert made.compressed(compressor) is None
    assert compressor.calls == 0


BYTES_LIKE: list[tuple[Any, bytes]] = [
    (b"", b""),
    (b"abc", b"abc"),
    (bytearray(b"abc"), b"abc"),
    (memoryview(b"abc"), b"abc"),
    (memoryview(b""), b""),
    (memoryview(b"abcdef")[::2], b"ace"),
    (memoryview(b"abc")[::-1], b"cba"),
    (memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
    (array("H", [1, 2]), array("H", [1, 2]).tobytes()),
    (memoryview(array("d", [0.5, 2.0])), array("d", [0.5, 2.0]).tobytes()),
]


@pytest.mark.parametrize(("data", "expected"), BYTES_LIKE)
def test_to_bytes_takes_every_bytes_like_object(data: Any, expected: bytes) -> None:
    """Arrays, views of other items and views with gaps give their bytes, all of them, in order."""
    assert framing.to_bytes(data) == expected
    assert type(framing.to_bytes(data)) is bytes
    made = framing.frame_bin(data)
    assert bytes(made) == build_frame(BINARY, expected)
    assert (made.opcode, made.payload) == (BINARY, expected)


def test_to_bytes_copies_only_what_may_change() -> None:
    """Bytes are passed on as they are; of a bytearray there is a copy, and no hold on it remains."""
    data = b"abc"
    assert framing.to_bytes(data) is data
    buffer = bytearray(b"abc")
    made = framing.frame_bin(buffer)
    buffer += b"def"
    assert made.payload == b"abc"


@pytest.mark.parametrize("data", ["text", 3, None, [1, 2], object()])
def test_to_bytes_refuses_what_is_not_bytes_like(data: Any) -> None:
    """Text, numbers and everything else without bytes are a TypeError that names their type."""
    with pytest.raises(TypeError, match=f"^data: a bytes-like object is needed, not {type(data).__name__}$"):
        framing.to_bytes(data)


@pytest.mark.attack("L06")
@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_frame_is_represented_in_a_few_words(size: int) -> None:
    """The repr of a frame names its opcode and the length of its payload, and does not show the payload."""
    assert repr(framing.frame_text("x" * size)) == f"<Frame TEXT of {size} bytes>"
    assert repr(framing.frame_bin(b"\xff" * size)) == f"<Frame BINARY of {size} bytes>"


# --- masking where the payload is -----------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 125, 126, 65_535, 65_536, 100_001])
def test_frame_in_place_is_the_frame_and_scrambles_the_buffer(size: int) -> None:
    """Header and masked payload are those of any frame; the buffer is the payload on the wire. [K10]"""
    payload = bytes(index * 7 % 251 for index in range(size))
    buffer = bytearray(payload)
    head, view = frame_in_place(Opcode.BINARY, buffer, lambda: b"\x01\x02\x03\x04")
    assert memoryview(view).obj is buffer
    assert bytes(buffer) == bytes(b ^ (i % 4 + 1) for i, b in enumerate(payload))
    (frame,) = parse_frames(bytes(head) + buffer)
    assert (frame.opcode, frame.fin, frame.key, frame.payload) == (BINARY, True, b"\x01\x02\x03\x04", payload)


def test_frame_in_place_takes_items_of_any_size() -> None:
    """An array is masked as its bytes. [K10]"""
    numbers = array("H", [1, 2, 3])
    plain = numbers.tobytes()
    head, view = frame_in_place(Opcode.BINARY, memoryview(numbers), lambda: b"abcd")
    assert len(view) == 6
    assert parse_frames(bytes(head) + numbers.tobytes())[0].payload == plain


@pytest.mark.parametrize(
    "value", [b"bytes", memoryview(b"bytes"), memoryview(bytearray(b"bytes"))[::2], "text", None]
)
def test_frame_in_place_refuses_what_it_cannot_write_to(value: Any) -> None:
    """``bytes`` are never changed, and neither is anything with gaps. [K10]"""
    with pytest.raises(TypeError, match=r"^data: a writable buffer"):
        frame_in_place(Opcode.BINARY, value, lambda: b"abcd")


# --- fragments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rsv1", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("most", [1, 125, 126, 65_535, 65_536, 2**40])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 250, 378, 131_070, 131_071])
def test_fragments_are_the_frames_of_a_message(
    build: ModuleType, size: int, most: int, masked: bool, rsv1: bool
) -> None:
    """They are what one gets when one frames each piece: opcode and RSV1 on the first, FIN on the last."""
    size = min(size, 1_000 * most)
    payload = bytes(range(251)) * (size // 251 + 1)
    payload = payload[:size]
    starts = range(0, size or 1, most)
    keys = [b"%04d" % number for number in range(len(starts))] if masked else [None] * len(starts)
    expected = b"".join(
        build_frame(
            CONTINUATION if start else TEXT,
            payload[start : start + most],
            fin=start + most >= size,
            rsv=0 if start or not rsv1 else 4,
            key=key,
        )
        for start, key in zip(starts, keys, strict=True)
    )
    joined = b"".join(each for each in keys if each) if masked else None
    for data in (payload, bytearray(payload), memoryview(payload)):
        assert build.fragments(TEXT, data, most, rsv1, joined) == expected


def test_fragments_of_text_are_those_of_its_utf8(build: ModuleType) -> None:
    """A fragment may end inside a character (§5.6)."""
    assert build.fragments(TEXT, "aä€𝄞" * 9, 7, False, None) == build.fragments(
        TEXT, ("aä€𝄞" * 9).encode(), 7, False, None
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((16, b"", 1, False, None), ValueError, "^opcode: 0 to 15, not 16$"),
        ((1, b"ab", 0, False, None), ValueError, "^size: 1 byte or more, not 0$"),
        ((1, b"ab", -5, False, None), ValueError, "^size: 1 byte or more, not -5$"),
        ((1, b"ab", 1, False, b"1234567"), ValueError, "^keys: 2 of 4 bytes are needed, one for each frame$"),
        ((1, b"ab", 1, False, b"123456789"), ValueError, "^keys: 2 of 4 bytes are needed"),
        ((1, b"", 1, False, b""), ValueError, "^keys: 1 of 4 bytes are needed"),
        ((1, b"ab", 1, False, "12345678"), ValueError, "^keys: 2 of 4 bytes are needed"),
        ((1, "\ud800", 1, False, None), UnicodeEncodeError, "surrogates not allowed"),
        ((1, 5, 1, False, None), TypeError, "^payload: a bytes-like object is needed, not int$"),
        ((1, memoryview(b"abcd")[::2], 1, False, None), TypeError, "^payload: a contiguous bytes-like"),
        ((1, b"ab", 1, False), TypeError, "argument"),
        ((1, b"ab", "1", False, None), TypeError, "int"),
    ],
)
def test_fragments_refuse_what_they_cannot_be_made_of(
    build: ModuleType, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    """Each build names the argument and what is wrong with it."""
    with pytest.raises(error, match=message):
        build.fragments(*arguments)


# --- where control frames may go ------------------------------------------------------------------


@pytest.mark.attack("R15")
@pytest.mark.parametrize("key", [None, KEY])
def test_end_of_frame_is_found_from_every_position_of_a_long_message(key: bytes | None) -> None:
    """It is the first end of a frame at the position or behind it."""
    data = frame_message(TEXT, bytes(200_000), new_key=None if key is None else lambda: KEY)
    ends = [0]
    while ends[-1] < len(data):
        (_, size) = read_frame(data[ends[-1] :]) or (None, 0)
        ends.append(ends[-1] + size)
    assert len(ends) == 5
    for end in ends:
        for position in range(max(0, end - 20), min(end + 20, len(data) + 1)):
            expected = next(each for each in ends if each >= position)
            assert end_of_frame(data, position) == expected
            assert end_of_frame(memoryview(data), position) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000, 200_000])
def test_frames_end_where_they_end_however_they_are_cut(size: int) -> None:
    """So many frames have ended where the last of them does; of one that goes on in the next piece, there."""
    wire = [
        build_frame(TEXT, bytes(length), key=key) for length in (0, 5, 126, 70_000) for key in (None, KEY)
    ]
    data, ends = b"".join(wire), [*accumulate(map(len, wire))]
    assert [Frames().end_of(data, 0, count) for count in range(1, len(wire) + 1)] == ends
    frames, found = Frames(), set()
    for start in range(0, len(data), size):
        piece, position = data[start : start + size], 0
        while position < len(piece):
            position = frames.end_of(piece, position, 1)
            found.add(start + position)
    assert found == {*ends, *range(size, len(data), size)}


@pytest.mark.attack("R15")
@pytest.mark.parametrize(
    "data",
    [
        build_frame(PING, b"") * 2,
        build_frame(TEXT, b"short") * 10_000,
        build_frame(BINARY, bytes(131_062)),
        build_frame(BINARY, bytes(200_000), fin=False),
        b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 200_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000,
    ],
    ids=["control", "joined", "whole", "one fragment", "answer", "request"],
)
def test_end_of_frame_is_the_end_where_nothing_may_go_between(data: bytes) -> None:
    """Short entries are not looked into, a frame that its caller made is one, a head has no frames."""
    assert {end_of_frame(data, position) for position in (1, 2, 100, len(data))} == {len(data)} - {1}
