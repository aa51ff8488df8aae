"""Let each allocation of memory fail, one after another, in every kind of call of the compiled framing.

``python -m tests.fuzz.memory`` prints how many failures there were. It needs CPython's ``_testcapi``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any

from anyio_ws.events import Message

from ..frames import build_frame, cut

KEY = b"\x37\xfa\x21\x3d"


class Lender:
    """Lends buffers, and takes them back, without a need of memory of its own for that."""

    def __init__(self) -> None:
        self.out = 0

    def take(self, size: int) -> bytearray:
        """Lend a buffer."""
        buffer = bytearray(size + 1)
        self.out += 1
        return buffer

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back."""
        self.out -= 1

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Return the data: that too much of it may come out is no matter here."""
        return data

    def finish(self, max_length: int) -> bytes:
        """Return nothing."""
        return b""


def masked(opcode: int, payload: bytes = b"", **fields: Any) -> bytes:
    """Build a frame as a server receives it."""
    return build_frame(opcode, payload, key=KEY, **fields)


STREAMS = [
    masked(1, b"text") + masked(1, "caf\u00e9".encode()) + masked(2, bytes(600)) + masked(9, b"ping"),
    masked(1, b"a" * 50 + b"\xe2", fin=False) + masked(9, b"x") + masked(0, b"\x82\xac" + b"b" * 600),
    masked(2, b"a" * 50, fin=False) + masked(0, bytes(1000)),
    masked(1, b"inflated", rsv=4) + masked(2, b"infl", rsv=4, fin=False) + masked(0, b"ated"),
    masked(1, b"never", fin=False) + masked(8, b"\x03\xe8bye"),
    masked(1, b"bad text\xff"),
    masked(2, b"long", fin=False) + masked(0, bytes(3000)),
    b"\x83\x80",
]
OPTIONS: list[dict[str, Any]] = [
    {"view": view, "utf8": utf8, "lends": lends}
    for view in (False, True)
    for utf8 in (False, True)
    for lends in (False, True)
]


class Reading:
    """A reader, and the pieces of a stream that are fed to it, each with failures."""

    def __init__(self, build: Any, options: dict[str, Any], pieces: list[bytes]) -> None:
        self._build = build
        self._options = {**options}
        self._lends = self._options.pop("lends")
        self._pieces = pieces

    def prepare(self) -> tuple[Any, Lender]:
        """Make the reader that all but the last piece was fed to."""
        lender = Lender()
        reader = self._build.MessageReader(
            masked=True,
            max_message_size=2000,
            inflater=lender,
            buffers=lender if self._lends else None,
            **self._options,
        )
        for piece in self._pieces[:-1]:
            self.consume(lender, reader.feed(piece))
        return reader, lender

    def consume(self, lender: Lender, messages: list[Message]) -> None:
        """Give back what was borrowed for the messages."""
        for _, data in messages:
            if isinstance(data, memoryview):
                data.release()
                lender.out -= self._lends

    def fail(self, nth: int, *, for_good: bool) -> bool:
        """Let the nth allocation of the last piece fail, and say whether there was one."""
        testcapi = importlib.import_module("_testcapi")
        reader, lender = self.prepare()
        feed, piece = reader.feed, self._pieces[-1]
        messages: list[Message] | None = None
        testcapi.set_nomemory(nth, 0 if for_good else nth + 1)
        try:
            messages = feed(piece)
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        if messages is None:
            assert reader.finished
            assert reader.feed(b"more") == []
        else:
            self.consume(lender, messages)
        reader.close()
        # One buffer may be lost: the one that could not be given back, because there was no memory for that,
        # or that was on its way in a message.
        assert lender.out <= (1 if messages is None else 0), lender.out
        return messages is None


def exhaust(fails: Callable[[int], bool]) -> int:
    """Let the first allocation fail, then the second, until none does; return how many did."""
    nth = 0
    while fails(nth):
        nth += 1
    return nth


def fail_in_call(call: Callable[[], object]) -> Callable[[int], bool]:
    """Make a function that lets the nth allocation of a call fail, and says whether there was one."""
    testcapi = importlib.import_module("_testcapi")

    def fails(nth: int) -> bool:
        testcapi.set_nomemory(nth, nth + 1)
        try:
            call()
        except MemoryError:
            return True
        finally:
            testcapi.remove_mem_hooks()
        return False

    return fails


def main() -> None:
    """Run the program."""
    build = importlib.import_module("anyio_ws._framing_c")
    count = 0
    for stream in STREAMS:
        for options in OPTIONS:
            for pieces in ([stream], cut(stream, [3]), cut(stream, [9]), cut(stream, [len(stream) - 1])):
                reading = Reading(build, options, pieces)
                for for_good in (False, True):
                    count += exhaust(lambda nth: reading.fail(nth, for_good=for_good))  # noqa: B023
    for call in (
        lambda: build.frame(1, "caf\u00e9" * 500),
        lambda: build.frame(2, bytearray(5000), masking_key=KEY),
        lambda: build.mask(b"x" * 5000, KEY),
        lambda: build.mask(bytearray(5000), KEY, in_place=True),
        lambda: build.MessageReader(masked=True, max_message_size=2**40),
    ):
        with contextlib.suppress(TypeError):
            count += exhaust(fail_in_call(call))
    print(f"{count} allocations failed in {sys.implementation.name}, and nothing else did")


if __name__ == "__main__":
    main()
