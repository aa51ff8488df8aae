"""Scratch memory: one buffer used again, and nothing of it left when the hook has returned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_ws import Config, MessageType, Scratch, ThreadPoolConfig
from anyio_ws.buffers import BufferPool

from . import support
from .support import BINARY, TEXT, serving, settle, take_log

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")

# --- a scratch by itself --------------------------------------------------------------------------------


def test_alloc_hands_out_one_piece_of_the_buffer_after_the_other() -> None:
    """Views are writable, apart from each other, and all of one buffer. [H6]"""
    pool = BufferPool(1, 100)
    with Scratch(pool) as scratch:
        one, other = scratch.alloc(40), scratch.alloc(60)
        one[:], other[:] = b"1" * 40, b"2" * 60
        assert bytes(one) == b"1" * 40
        assert one.obj is other.obj
        assert len(scratch.alloc(0)) == 0
        assert pool.statistics().in_use == 1
    assert pool.statistics().in_use == 0


def test_alloc_takes_the_buffer_at_the_first_need() -> None:
    """A scratch that is not used costs no memory. [H6]"""
    pool = BufferPool(1, 100)
    with Scratch(pool):
        assert pool.statistics().created == 0


def test_alloc_past_the_buffer_is_fresh_memory() -> None:
    """What does not fit any more, or never would, is fresh; what fits afterwards is of the buffer. [H6]"""
    pool = BufferPool(1, 100)
    with Scratch(pool) as scratch:
        huge = scratch.alloc(101)
        assert pool.statistics().created == 0
        first, more, last = scratch.alloc(60), scratch.alloc(41), scratch.alloc(40)
        assert first.obj is last.obj
        assert len({id(view.obj) for view in (huge, first, more)}) == 3
        assert [len(view) for view in (huge, first, more, last)] == [101, 60, 41, 40]


def test_alloc_is_zero_whatever_was_there() -> None:
    """Nothing of one message is seen by the next one. [H6]"""
    pool = BufferPool(1, 100)
    with Scratch(pool) as scratch:
        scratch.alloc(100)[:] = b"s" * 100
    with Scratch(pool) as scratch:
        assert bytes(scratch.alloc(100)) == bytes(100)
    assert pool.statistics().reused == 1


def test_view_used_later_is_a_value_error() -> None:
    """Everything that was handed out is released: of the buffer, fresh, and of a writer. [H6]"""
    with Scratch(BufferPool(1, 600)) as scratch:
        writer = scratch.writer()
        writer.write("text")
        views = [scratch.alloc(10), scratch.alloc(1000), writer.getbuffer()]
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    with pytest.raises(ValueError, match="released"):
        writer.write("more")
    with pytest.raises(ValueError, match="released"):
        writer.getvalue()


def test_view_that_the_hook_released_itself_is_fine() -> None:
    """Releasing early is no error. [H6]"""
    with Scratch() as scratch, scratch.alloc(10) as view:
        view[:] = b"x" * 10


def test_scratch_used_later_is_a_value_error() -> None:
    """The scratch itself ends with the hook, and so does a writer that had no memory yet. [H6]"""
    with Scratch() as scratch:
        writer = scratch.writer()
    for use in (
        lambda: scratch.alloc(1),
        scratch.writer,
        lambda: scratch.callback(print),
        lambda: scratch.enter_context(contextlib.nullcontext()),
        lambda: writer.write("x"),
    ):
        with pytest.raises(ValueError, match=r"^scratch: it is valid only until the hook"):
            use()


def test_alloc_of_a_negative_size_is_a_value_error() -> None:
    """The error names the argument. [H6]"""
    with Scratch() as scratch, pytest.raises(ValueError, match=r"^size: 0 bytes or more are needed, not -1"):
        scratch.alloc(-1)


def test_slice_that_was_kept_never_shows_another_message() -> None:
    """A slice cannot be released for its owner; so its memory is emptied and not used again. [H6]"""
    pool = BufferPool(1, 100)
    with Scratch(pool) as scratch:
        view = scratch.alloc(10)
        view[:] = b"0123456789"
        kept = view[2:]
    with Scratch(pool) as scratch:
        scratch.alloc(100)[:] = b"s" * 100
    assert bytes(kept) == bytes(8)
    assert pool.statistics().created == 2


def test_view_under_an_object_is_left_to_that_object() -> None:
    """A view that cannot be released, because an object stands on it, disturbs nobody. [H6]"""
    pool = BufferPool(1, 100)
    with Scratch(pool) as scratch:
        holder = (__import__("ctypes").c_char * 10).from_buffer(scratch.alloc(10))
    assert bytes(holder) == bytes(10)
    with Scratch(pool) as scratch:
        scratch.alloc(1)
    assert pool.statistics().created == 2


def test_writer_is_a_file_for_text_and_bytes() -> None:
    """``print`` and ``json.dump`` write to it, and what was written can be kept as a copy. [H6]"""
    with Scratch(BufferPool(1, 1_000)) as scratch:
        writer = scratch.writer()
        json.dump({"a": [1, 2]}, writer)
        print("é", file=writer)
        writer.write(b"\xff" * 1_000)
        assert bytes(writer.getbuffer()) == writer.getvalue()
        kept = writer.getvalue()
    assert kept == b'{"a": [1, 2]}' + "é\n".encode() + b"\xff" * 1_000


def test_callbacks_and_contexts_end_last_first_while_views_are_valid() -> None:
    """They are run before the memory is released, with their arguments. [H6]"""
    said: list[Any] = []

    @contextlib.contextmanager
    def manager() -> Iterator[str]:
        yield "entered"
        said.append("left")

    with Scratch() as scratch:
        view = scratch.alloc(1)
        assert scratch.callback(said.append, "first") == said.append
        assert scratch.enter_context(manager()) == "entered"
        scratch.callback(lambda: said.append(bytes(view)))
        assert said == []
    assert said == [b"\0", "left", "first"]


def test_error_of_a_callback_is_raised_and_releases_everything() -> None:
    """Memory is released whatever a callback does. [H6]"""
    pool = BufferPool(1, 100)
    with pytest.raises(ZeroDivisionError), Scratch(pool) as scratch:
        view = scratch.alloc(10)
        scratch.callback(lambda: 1 / 0)
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert pool.statistics().in_use == 0


def test_context_is_told_what_the_hook_raises() -> None:
    """A context manager may swallow it, as at the end of a ``with`` block. [H6]"""
    with Scratch() as scratch:
        scratch.enter_context(contextlib.suppress(KeyError))
        raise KeyError


# --- a scratch in a hook --------------------------------------------------------------------------------


class Noting:
    """A handler that notes what it is given, and what it sees in its scratch memory."""

    def __init__(self, app: list[Any]) -> None:
        self.diary = app

    def note(self, scratch: Scratch, *data: Any) -> None:
        view = scratch.alloc(8)
        self.diary.append((bytes(view), view, *data))
        view[:] = b"occupied"


class SyncHook(Noting):
    """A ``def`` hook without the type."""

    def client_message(self, scratch: Scratch, data: str | bytes) -> None:
        self.note(scratch, data)


class AsyncHook(Noting):
    """An ``async def`` hook without the type."""

    async def client_message(self, scratch: Scratch, data: str | bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.note(scratch, data)
        await anyio.lowlevel.checkpoint()


class SyncTypedHook(Noting):
    """A ``def`` hook with the type."""

    def client_message(self, scratch: Scratch, data: str | bytes, message_type: MessageType) -> None:
        self.note(scratch, data, message_type)


class AsyncTypedHook(Noting):
    """An ``async def`` hook with the type."""

    async def client_message(self, scratch: Scratch, data: str | bytes, message_type: MessageType) -> None:
        await anyio.lowlevel.checkpoint()
        self.note(scratch, data, message_type)


HOOKS = [SyncHook, AsyncHook, SyncTypedHook, AsyncTypedHook]


@pytest.mark.parametrize("hook", HOOKS)
async def test_hook_that_names_scratch_is_given_one_for_the_call(hook: type[Noting]) -> None:
    """``(scratch, data)`` and ``(scratch, data, message_type)`` are told apart by their names. [H6, H7]"""
    diary: list[Any] = []
    async with serving(hook, diary, leave=True) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"text") + peer.build(BINARY, b"binary"))
        await settle()
        typed = hook in (SyncTypedHook, AsyncTypedHook)
        messages = [("text", MessageType.TEXT), (b"binary", MessageType.BINARY)]
        for (seen, view, *arguments), message in zip(diary, messages, strict=True):
            assert seen == bytes(8)
            assert tuple(arguments) == (message if typed else message[:1])
            with pytest.raises(ValueError, match="released"):
                view[0]
        scratch = served.server.statistics().scratch
        assert (scratch.in_use, scratch.created, scratch.reused) == (0, 1, 1)


@pytest.mark.parametrize("hook", HOOKS)
async def test_scratch_is_released_when_the_hook_raises(
    hook: type[Noting], caplog: pytest.LogCaptureFixture
) -> None:
    """An error closes the connection, and the memory is free. [H6, H8]"""

    class Raising(hook):  # type: ignore[misc, valid-type]
        def note(self, scratch: Scratch, *data: Any) -> None:
            super().note(scratch, *data)
            raise RuntimeError

    diary: list[Any] = []
    async with serving(Raising, diary, leave=True) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"text")
        await peer.expect_close(1011)
        with pytest.raises(ValueError, match="released"):
            diary[0][1][0]
        assert served.server.statistics().scratch.in_use == 0
    assert len(take_log(caplog)) == 1


async def test_scratch_is_made_only_for_hooks_that_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other shapes cost nothing of it. [H6]"""
    made: list[Any] = []

    def make(pool: BufferPool) -> Scratch:
        made.append(pool)
        return Scratch(pool)

    monkeypatch.setattr("anyio_ws.handler.Scratch", make)

    class Plain:
        def client_message(self, data: str, message_type: MessageType) -> None:
            pass

    async with serving(Plain, leave=True) as served, serving(SyncHook, [], leave=True) as other:
        for each, count in ((served, 0), (other, 1)):
            peer = await each.open()
            await peer.send_frame(TEXT, b"text")
            await settle()
            assert len(made) == count


async def test_scratch_has_a_buffer_of_thread_pool_buffer_size() -> None:
    """``thread_pool.buffer_size`` is how much is handed out before memory is fresh. [H6]"""
    shared: list[bool] = []

    class Filling:
        def client_message(self, scratch: Scratch, data: str) -> None:
            first = scratch.alloc(1)
            shared.extend(scratch.alloc(size).obj is first.obj for size in (4_000, 998, 1, 1))

    config = Config(thread_pool=ThreadPoolConfig(buffer_size=5_000, count=7))
    async with serving(Filling, config=config, leave=True) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"text")
        await settle()
        found = served.server.statistics().scratch
        assert (found.size, found.count) == (5_000, 7)
    assert shared == [True, True, True, False]


async def test_scratches_of_hooks_that_run_at_one_time_are_apart() -> None:
    """Each has a buffer of its own; past ``thread_pool.count`` one has fresh memory. [H6]"""
    go = anyio.Event()
    wrong: list[bytes] = []

    class Waiting:
        async def client_message(self, scratch: Scratch, data: str) -> None:
            view = scratch.alloc(100)
            view[:] = data.encode() * 100
            await go.wait()
            if bytes(view) != data.encode() * 100:
                wrong.append(bytes(view))

    config = Config(thread_pool=ThreadPoolConfig(count=2))
    async with serving(Waiting, config=config, leave=True) as served:
        for number in range(3):
            peer = await served.open()
            await peer.send_frame(TEXT, str(number).encode())
        await settle()
        found = served.server.statistics().scratch
        assert (found.in_use, found.created, found.fallback) == (2, 2, 1)
        go.set()
        await settle()
        assert served.server.statistics().scratch.in_use == 0
    assert wrong == []
