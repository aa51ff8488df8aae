"""Two builds of the framing, one stream: whatever it is, both must make the same of it.

A stream is a few frames, good and bad ones, with some bytes changed at times, cut at random. What a reader
says about it is the messages with their types, the error's code and reason, whether it is finished, and the
sizes that it asked its buffers for. This runs as many streams as one wants::

    python -m tests.fuzz.builds --streams 10000000 --seed 1

and ``tests/test_framing_builds.py`` runs some on each occasion.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from anyio_ws import _framing_py
from anyio_ws.deflate import Inflater

from ..frames import build_frame, cut

_TEXTS = [
    "",
    "a",
    "hello",
    "caf\u00e9",
    "\u20ac" * 9,
    "\U0001f600 \ud7ff\ue000",
    "x" * 125,
    "y" * 126,
    "\0\x7f\x80" * 60,
]
_BAD_TEXTS = [
    b"\x80",
    b"ab\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x82",
    b"x" * 40 + b"\xc3(",
]
_CLOSES = [
    b"",
    b"\x03",
    b"\x03\xe8",
    b"\x03\xe8bye",
    b"\x03\xed",
    b"\x03\xe9caf\xc3\xa9",
    b"\x03\xe9\xff",
    b"\x0b\xb8\xe2\x82",
]


class Options(NamedTuple):
    """What a reader is made with."""

    masked: bool
    max_message_size: int
    utf8: bool
    view: bool
    compression: bool
    """Whether there is an inflater; it keeps its context."""
    spare: int | None
    """How many bytes the buffers are larger than they have to be; ``None`` when there are none."""
    turn: int = 0
    """After how many bytes of messages a call stops; 0 for never."""


class Lender:
    """Lends buffers, and keeps the books."""

    def __init__(self, spare: int) -> None:
        self.asked: list[int] = []
        self.out = 0
        self._spare = spare

    def take(self, size: int) -> bytearray:
        """Lend a buffer with rubbish in it."""
        self.asked.append(size)
        self.out += 1
        return bytearray(b"\xee") * (size + self._spare)

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back, which nobody may be looking at any more."""
        self.out -= 1
        buffer += b"!"  # a BufferError while somebody is


class Said(NamedTuple):
    """What a reader says about a stream."""

    messages: list[tuple[Any, type, Any]]
    code: int | None
    reason: str | None
    finished: bool
    asked: list[int]
    raised: str | None
    left: list[int]
    """What each call has not looked at."""


def read(build: ModuleType, options: Options, pieces: Sequence[bytes | bytearray | memoryview]) -> Said:
    """Feed the pieces of a stream to a reader, lose the connection, and return what the reader said.

    :raises AssertionError: when a buffer has not been given back in the end
    """
    lender = None if options.spare is None else Lender(options.spare)
    reader = build.MessageReader(
        masked=options.masked,
        max_message_size=options.max_message_size,
        utf8=options.utf8,
        view=options.view,
        inflater=Inflater(takeover=True, window_bits=15) if options.compression else None,
        buffers=lender,
        turn=options.turn,
    )
    messages = []
    left = []
    raised = None
    try:
        for piece in pieces:
            messages += reader.feed(piece)
            while reader.left:
                left.append(reader.left)
                messages += reader.feed(piece[-reader.left :])
    except Exception as exc:  # noqa: BLE001 - there should be none; the other build must raise the same
        raised = repr(exc)
    error, finished = reader.error, reader.finished
    reader.close()
    said = [
        (type_, type(data), data if type(data) is not memoryview else bytes(data)) for type_, data in messages
    ]
    for _, data in messages:
        if isinstance(data, memoryview):
            buffer = data.obj
            data.release()
            assert isinstance(buffer, bytearray)
            if lender is not None:
                lender.give(buffer)
    assert lender is None or lender.out == 0, "a buffer was kept"
    asked = [] if lender is None else lender.asked
    return Said(said, error and error.code, error and error.reason, finished, asked, raised, left)


class Streams:
    """Makes streams for one role, from a supply of pieces that is made in advance.

    :param dice: where the randomness comes from
    :param masked: whether the frames are a client's
    """

    def __init__(self, dice: random.Random, *, masked: bool) -> None:
        self._dice = dice
        self._masked = masked
        makers: list[tuple[int, Callable[[], bytes]]] = [
            (300, self._whole),
            (300, self._fragmented),
            (150, self._compressed),
            (60, self._unfinished),
            (60, self._close),
            (50, self._malformed),
            (15, self._noise),
            (1, self._crowd),
        ]
        self._supply = [make() for count, make in makers for _ in range(count)]

    def next(self) -> bytes:
        """Make a stream of a few hundred bytes."""
        dice = self._dice
        stream = b"".join(dice.choices(self._supply, k=dice.choice([1, 1, 2, 2, 3, 5])))
        return self._changed(stream) if dice.random() < 0.25 else stream

    def cut(self, stream: bytes) -> list[bytes]:
        """Cut a stream: not at all, at a few places, or everywhere."""
        dice = self._dice
        chance = dice.random()
        if chance < 0.2:
            return [stream]
        if chance > 0.98 and len(stream) < 500:
            return [stream[i : i + 1] for i in range(len(stream))]
        return cut(stream, [dice.randrange(len(stream) + 1) for _ in range(dice.randrange(1, 5))])

    def _frame(self, opcode: int, payload: bytes, **fields: Any) -> bytes:
        return build_frame(opcode, payload, key=self._dice.randbytes(4) if self._masked else None, **fields)

    def _payload(self) -> tuple[int, bytes]:
        dice = self._dice
        if dice.random() < 0.5:
            size = dice.choice([0, 1, 2, 7, 8, 31, 33, 125, 126, 200, 300])
            return 2, dice.randbytes(size if dice.random() < 0.99 else 66_000)
        if dice.random() < 0.2:
            return 1, dice.choice(_BAD_TEXTS)
        return 1, "".join(dice.choices(_TEXTS, k=2)).encode()

    def _whole(self) -> bytes:
        if self._dice.random() < 0.3:
            return self._frame(self._dice.choice([9, 10]), self._dice.randbytes(self._dice.randrange(126)))
        return self._frame(*self._payload())

    def _pieces(self, opcode: int, payload: bytes, *, rsv: int = 0, fin: bool = True) -> bytes:
        dice = self._dice
        parts = cut(payload, [dice.randrange(len(payload) + 1) for _ in range(dice.randrange(5))])
        frames = []
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            frames.append(self._frame(0 if i else opcode, part, fin=fin and last, rsv=0 if i else rsv))
            if dice.random() < 0.2:
                frames.append(self._frame(9, b"between"))
        return b"".join(frames)

    def _fragmented(self) -> bytes:
        return self._pieces(*self._payload())

    def _unfinished(self) -> bytes:
        return self._pieces(*self._payload(), fin=False)

    def _compressed(self) -> bytes:
        opcode, payload = self._payload()
        stream = zlib.compressobj(wbits=-15)
        data = (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
        return self._pieces(opcode, data, rsv=4)

    def _close(self) -> bytes:
        return self._frame(8, self._dice.choice(_CLOSES))

    def _malformed(self) -> bytes:
        dice = self._dice
        key = None if dice.random() < (0.1 if self._masked else 0.9) else dice.randbytes(4)
        return build_frame(
            dice.randrange(16),
            dice.randbytes(dice.choice([0, 1, 5, 126])),
            fin=dice.random() < 0.7,
            rsv=dice.choice([0, 0, 0, 1, 2, 4, 7]),
            key=key,
            length_form=dice.choice([None, None, 16, 64]),
            length=dice.choice([None, None, None, 2**16 - 1]),
        )

    def _noise(self) -> bytes:
        dice = self._dice
        header = bytes([dice.choice([0x81, 0x82, 0x01, 0x00, 0x80, dice.randrange(256)])])
        return (
            header
            + dice.choice([b"\x7f", b"\xff", b"\x7e", b"\xfe", b""])
            + dice.randbytes(dice.randrange(12))
        )

    def _crowd(self) -> bytes:
        start, later = self._frame(2, b"", fin=False), self._frame(0, b"", fin=False)
        return start + later * self._dice.choice([1000, 1100])

    def _changed(self, stream: bytes) -> bytes:
        dice = self._dice
        changed = bytearray(stream)
        for _ in range(dice.randrange(1, 4)):
            place = dice.randrange(len(changed) + 1)
            how = dice.randrange(4)
            if how == 0:
                changed[place : place + 1] = bytes([dice.randrange(256)])
            elif how == 1:
                changed[place : place + dice.randrange(1, 9)] = b""
            elif how == 2:
                changed[place:place] = dice.randbytes(dice.randrange(1, 9))
            elif place < len(changed):
                changed[place] ^= 1 << dice.randrange(8)
        return bytes(changed)


class Difference(Exception):
    """Two builds that do not say the same."""


def run(build: ModuleType, streams: int, seed: int, progress: Callable[[int], None] = lambda _: None) -> None:
    """Compare a build with the Python one.

    :param streams: how many streams to read with both
    :param seed: what they are; the same seed makes the same streams
    :param progress: is told now and then how many have been read

    :raises Difference: when the builds do not say the same; it shows the stream
    """
    dice = random.Random(seed)
    sources = {masked: Streams(dice, masked=masked) for masked in (True, False)}
    for number in range(streams):
        options = Options(
            masked=dice.random() < 0.5,
            max_message_size=dice.choice([0, 20, 130, 300, *[70_000] * 5]),
            utf8=dice.random() < 0.8,
            view=dice.random() < 0.3,
            compression=dice.random() < 0.7,
            spare=dice.choice([None, 0, 0, 9]),
            turn=dice.choice([0, 1, 150, 600]),
        )
        source = sources[options.masked]
        stream = source.next()
        pieces = source.cut(stream)
        ours, reference = read(build, options, pieces), read(_framing_py, options, pieces)
        if ours != reference:
            raise Difference(
                f"{options}\n{pieces}\n{build.__name__}: {ours}\n{_framing_py.__name__}: {reference}"
            )
        if number % 10 == 0:
            compare_writing(build, dice, stream)
        if number % 10_000 == 0:
            progress(number)
            sources = {masked: Streams(dice, masked=masked) for masked in (True, False)}


def compare_writing(build: ModuleType, dice: random.Random, payload: bytes) -> None:
    """Frame and mask something with both builds.

    :raises Difference: when the results are not equal
    """
    key = dice.randbytes(4)
    opcode = dice.randrange(16)
    for masking_key in (None, key):
        ours = build.frame(opcode, payload, fin=opcode > 4, rsv1=opcode < 9, masking_key=masking_key)
        if ours != _framing_py.frame(
            opcode, payload, fin=opcode > 4, rsv1=opcode < 9, masking_key=masking_key
        ):
            raise Difference(f"frame({opcode}, {payload!r}, {masking_key!r}): {ours!r}")
    if build.mask(bytearray(payload), key, in_place=True) != _framing_py.mask(payload, key):
        raise Difference(f"mask({payload!r}, {key!r})")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Compare the compiled framing with the one in Python.")
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    compiled = importlib.import_module("anyio_ws._framing_c")
    start = time.monotonic()

    def progress(number: int) -> None:
        print(f"\r{number:,} streams, {time.monotonic() - start:.0f} s", end="", file=sys.stderr, flush=True)

    run(compiled, arguments.streams, arguments.seed, progress)
    print(f"\n{arguments.streams:,} streams from seed {arguments.seed}: no difference")


if __name__ == "__main__":
    main()
