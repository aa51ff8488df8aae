"""What only a compiled module can get wrong: references, memory that runs out, calls from inside a call.

What it reads and writes is tested in ``test_framing.py``, as that of the other build.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from operator import attrgetter
from types import ModuleType
from typing import Any

import pytest

from anyio_ws import _framing_py, events, exceptions
from anyio_ws.deflate import Inflater
from anyio_ws.events import CloseCode, Message, MessageType

from .frames import build_frame

NAME = "anyio_ws._framing_c"
KEY = b"\x37\xfa\x21\x3d"


@pytest.fixture(scope="module")
def framing_c() -> ModuleType:
    """Take the compiled module, if it is installed."""
    module: ModuleType = pytest.importorskip(NAME, exc_type=ModuleNotFoundError)
    return module


class Lender:
    """Lends buffers, and takes them back.

    :ivar lent: the buffers that are out
    """

    def __init__(self) -> None:
        self.lent: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Lend a buffer."""
        self.lent.append(bytearray(size + 3))
        return self.lent[-1]

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back."""
        self.lent[:] = [each for each in self.lent if each is not buffer]


def masked(opcode: int, payload: bytes = b"", **fields: Any) -> bytes:
    """Build a frame as a server receives it."""
    return build_frame(opcode, payload, key=KEY, **fields)


STREAMS = {
    "messages": masked(1, b"text") + masked(1, "caf\u00e9".encode()) + masked(2, bytes(300)) + masked(2),
    "fragments": masked(1, b"a" * 50 + b"\xe2", fin=False) + masked(9, b"x") + masked(0, b"\x82\xac" * 1),
    "binary fragments": masked(2, b"a" * 50, fin=False) + masked(0, bytes(1000)),
    "compressed": masked(1, b"\xf2\x48\xcd\xc9\xc9\x07\x00", rsv=4)
    + masked(2, b"\xf2\x48\xcd", rsv=4, fin=False),
    "invalid deflate": masked(2, b"\xff\xff", rsv=4),
    "close": masked(1, b"never", fin=False) + masked(8, b"\x03\xe8bye"),
    "bad close": masked(8, b"\x03\xed"),
    "bad text": masked(1, b"ab\xff"),
    "bad fragment": masked(1, b"ab", fin=False) + masked(0, b"\xff"),
    "unfinished text": masked(1, b"ab\xe2"),
    "too long": masked(2, b"x", fin=False) + masked(0, bytes(70_000)),
    "unmasked": b"\x81\x01a",
    "reserved": b"\x83\x80",
    "half": masked(1, b"half of it")[:9],
    "half a header": masked(2, bytes(70_000))[:7],
}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"view": True},
    {"utf8": False},
    {"lends": True},
    {"lends": True, "view": True},
]


def read(build: ModuleType, stream: bytes, step: int, *, lends: bool = False, **options: Any) -> Lender:
    """Read a stream in steps, give back what is borrowed, and return whom it was borrowed from."""
    lender = Lender()
    reader = build.MessageReader(
        masked=True,
        max_message_size=65_536,
        inflater=Inflater(takeover=True, window_bits=15),
        buffers=lender if lends else None,
        **options,
    )
    for position in range(0, len(stream), step):
        for _, data in reader.feed(stream[position : position + step]):
            if isinstance(data, memoryview):
                buffer = data.obj
                data.release()
                assert isinstance(buffer, bytearray)
                lender.give(buffer)
    reader.close()
    return lender


def refuse(build: ModuleType) -> None:
    """Do everything that raises."""
    calls: list[Callable[[], object]] = [
        lambda: build.frame(99, b""),
        lambda: build.frame(1, "\ud800"),
        lambda: build.frame(1, 3),
        lambda: build.frame(1, memoryview(b"abc")[::2]),
        lambda: build.frame(1, b"", masking_key=b"12"),
        lambda: build.frame(1, bytearray(3), masking_key="1234"),
        lambda: build.frame(1, b"", opcode=1),
        lambda: build.fragments(1, b"ab", 0, False, None),
        lambda: build.fragments(1, bytearray(b"ab"), 1, False, b""),
        lambda: build.fragments(1, memoryview(b"abc")[::2], 1, False, None),
        lambda: build.fragments(1, "\ud800", 1, False, None),
        lambda: build.mask(b"abc", KEY, in_place=True),
        lambda: build.mask("abc", KEY),
        lambda: build.mask(b"abc", key=KEY, none=1),
        lambda: build.MessageReader(masked=True),
        lambda: build.MessageReader(masked=True, max_message_size=-1),
        lambda: build.MessageReader(masked=True, max_message_size="1"),
        lambda: build.MessageReader(masked=True, max_message_size=1).feed(None),
        lambda: build.MessageReader(masked=True, max_message_size=9, buffers=3).feed(
            masked(1, b"a", fin=False)
        ),
        lambda: build.MessageReader(masked=True, max_message_size=9, inflater=3).feed(masked(1, b"a", rsv=4)),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError, AttributeError)):
            call()


def do_everything(build: ModuleType) -> None:
    """Read every stream with every option, whole and in pieces, write, and do what raises."""
    for stream in STREAMS.values():
        for options in OPTIONS:
            for step in (len(stream), 7, 1) if len(stream) < 2000 else (len(stream), 1000):
                assert read(build, stream, step, **options).lent == []
    for payload in (b"", b"bytes", bytearray(200), memoryview(bytes(70_000)), "text", "caf\u00e9"):
        build.frame(2, payload)
        build.frame(2, payload, masking_key=KEY, fin=False)
        build.fragments(2, payload, 70_000, False, None)
        build.fragments(2, payload, 70_000, True, KEY)
    build.mask(memoryview(bytearray(100)), KEY, in_place=True)
    refuse(build)


def count() -> list[int]:
    """Count the blocks of memory, the objects, and the references to what every reader refers to."""
    gc.collect()
    shared: list[object] = [Message, exceptions.RemoteProtocolError, *MessageType, *CloseCode, events, KEY]
    return [sys.getallocatedblocks(), len(gc.get_objects()), *(sys.getrefcount(each) for each in shared)]


def test_no_reference_is_lost_or_kept(framing_c: ModuleType) -> None:
    """After everything that can happen, errors included, the same references and blocks of memory exist."""
    differences = []
    for _ in range(5):  # the interpreter may come to keep something of its own; not each time
        before = count()
        for _ in range(20):
            do_everything(framing_c)
        differences.append([abs(now - then) for then, now in zip(before, count(), strict=True)])
        if max(differences[-1]) < 20:
            return
    pytest.fail(f"something was lost or kept each time: {differences}")


def test_memory_does_not_grow(framing_c: ModuleType) -> None:
    """As much memory is in use after a thousand readers as after a hundred."""

    def run(times: int) -> int:
        for _ in range(times):
            for name in ("fragments", "too long", "half", "close", "bad fragment"):
                read(framing_c, STREAMS[name], 900, view=True, lends=True)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = run(100)
        assert run(1000) - before < 4096
    finally:
        tracemalloc.stop()


def test_reader_is_small(framing_c: ModuleType) -> None:
    """A reader between two messages is one object of at most 160 bytes."""
    assert sys.getsizeof(framing_c.MessageReader(masked=True, max_message_size=2**20)) <= 160


def test_reader_in_a_circle_is_collected(framing_c: ModuleType) -> None:
    """A reader whose inflater or buffers refer to it is found by the garbage collector."""

    class Holder(Lender):
        reader: object = None

    for role in ("inflater", "buffers"):
        holder = Holder()
        reader = framing_c.MessageReader(masked=True, max_message_size=99, **{role: holder})
        reader.feed(masked(2, b"x", fin=False))
        holder.reader = reader
        gone = weakref.ref(holder)
        del holder, reader
        gc.collect()
        assert gone() is None


def test_message_is_like_one_made_in_python(framing_c: ModuleType) -> None:
    """A message is a Message: equal, with the same hash and repr, and no argument of its own is missing."""
    (message,) = framing_c.MessageReader(masked=True, max_message_size=99).feed(masked(1, b"hello"))
    made = Message(MessageType.TEXT, "hello")
    assert type(message) is Message
    assert (message, hash(message), repr(message)) == (made, hash(made), repr(made))
    assert {message: 1}[made] == 1
    assert message._replace(data="bye") == Message(MessageType.TEXT, "bye")


def test_module_can_be_loaded_again(framing_c: ModuleType) -> None:
    """Two copies of the module share nothing, and one can go: there is no state outside the module."""
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    assert other.MessageReader is not framing_c.MessageReader
    reader = other.MessageReader(masked=True, max_message_size=99)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert reader.feed(masked(1, b"on")) == [Message(MessageType.TEXT, "on")]
    assert reader.feed(b"\x81\x00") == []
    assert reader.error.code == CloseCode.PROTOCOL_ERROR
    del reader, spec
    gc.collect()
    assert gone() is None


# Calls from inside a call, and other things that nobody should do.


class Calls(Lender):
    """Buffers and inflater in one, that use the reader while it is using them."""

    def __init__(self, method: str, *arguments: object) -> None:
        super().__init__()
        self.reader: Any = None
        self._method = method
        self._arguments = arguments

    def _call(self) -> None:
        getattr(self.reader, self._method)(*self._arguments)

    def take(self, size: int) -> bytearray:
        self._call()
        return super().take(size)

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Use the reader, instead of inflating."""
        self._call()
        return data

    finish = inflate


@pytest.mark.parametrize("call", [("feed", b"\x81\x80abcd"), ("close",)], ids=["feed", "close"])
@pytest.mark.parametrize("rsv", [0, 4], ids=["buffers", "inflater"])
def test_reader_is_not_used_by_what_it_uses(framing_c: ModuleType, call: tuple[Any, ...], rsv: int) -> None:
    """A call of the reader from inside its own call is a RuntimeError, and ends the reading."""
    calls = Calls(*call)
    calls.reader = framing_c.MessageReader(masked=True, max_message_size=99, inflater=calls, buffers=calls)
    with pytest.raises(RuntimeError, match=r"^the reader is in use by another call$"):
        calls.reader.feed(masked(2, b"abc", fin=False, rsv=rsv))
    assert (calls.reader.finished, calls.lent) == (True, [])
    assert calls.reader.feed(b"\x83") == []


def test_reader_is_used_by_one_thread_at_a_time(framing_c: ModuleType) -> None:
    """What a second thread does with a reader in use is a RuntimeError; the first goes on undisturbed."""
    caught: list[str] = []

    class Elsewhere(Lender):
        def take(self, size: int) -> bytearray:
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            return super().take(size)

    def use() -> None:
        try:
            reader.feed(b"")
        except RuntimeError as exc:
            caught.append(str(exc))

    reader = framing_c.MessageReader(masked=True, max_message_size=99, buffers=Elsewhere())
    messages = reader.feed(masked(2, b"a", fin=False) + masked(0, b"b"))
    assert messages == [Message(MessageType.BINARY, b"ab")]
    assert caught == ["the reader is in use by another call"]


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("opcode", [1, 2])
def test_buffer_that_shrinks_while_it_is_lent_does_no_harm(
    framing_c: ModuleType, opcode: int, view: bool
) -> None:
    """Whoever empties a buffer that is not his gets a wrong message or an error, and no crash."""
    wire = masked(opcode, b"x" * 2000, fin=False) + masked(0, b"y" * 2000)
    for step in (1, 100, 1999):
        lender = Lender()
        reader = framing_c.MessageReader(masked=True, max_message_size=4000, buffers=lender, view=view)
        for position in range(0, len(wire), step):
            for buffer in lender.lent:
                try:
                    buffer.clear()
                except BufferError:  # it is the message, by now
                    assert view
            for _, data in reader.feed(wire[position : position + step]):
                assert len(data) <= 4000
        reader.close()


@pytest.mark.parametrize("answer", [None, "text", 3, bytearray(b"abc"), memoryview(b"abc")])
def test_inflater_must_return_bytes(framing_c: ModuleType, answer: object) -> None:
    """An inflater that returns anything else is a TypeError that names what it returned."""

    class Wrong:
        def inflate(self, data: bytes, max_length: int) -> object:
            return answer

    reader = framing_c.MessageReader(masked=True, max_message_size=99, inflater=Wrong())
    with pytest.raises(TypeError, match=f"^inflater: bytes are needed, not {type(answer).__name__}$"):
        reader.feed(masked(2, b"abc", rsv=4))


def test_reader_cannot_be_changed(framing_c: ModuleType) -> None:
    """Error and finished are read only, and the class is as it is."""
    reader = framing_c.MessageReader(masked=True, max_message_size=99)
    for name in ("error", "finished"):
        with pytest.raises(AttributeError):
            setattr(reader, name, None)
    with pytest.raises(TypeError):
        framing_c.MessageReader.feed = None
    with pytest.raises(TypeError):
        type("Sub", (framing_c.MessageReader,), {})


@pytest.mark.parametrize(
    "name", ["MessageReader", "MessageReader.feed", "MessageReader.close", "frame", "mask"]
)
def test_help_says_what_the_twin_takes(framing_c: ModuleType, name: str) -> None:
    """Each name has a docstring that opens like the twin's, and the same arguments."""
    compiled, twin = attrgetter(name)(framing_c), attrgetter(name)(_framing_py)
    assert compiled.__doc__.splitlines()[0].split(" (")[0] == twin.__doc__.splitlines()[0].split(" (")[0]
    ours, theirs = inspect.signature(compiled).parameters, inspect.signature(twin).parameters
    assert [(each.name, each.default) for each in ours.values()] == [
        (each.name, each.default) for each in theirs.values()
    ]


# Memory that runs out.


def test_memory_may_run_out_anywhere(framing_c: ModuleType) -> None:
    """Whichever allocation fails in any call, there is a MemoryError, no crash, and nothing stays lent."""
    pytest.importorskip("_testcapi")
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.memory"], capture_output=True, text=True, check=False, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout.split()[0]) > 1000
