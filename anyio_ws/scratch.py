"""Memory for the time of one message, released when its hook returns.

A hook that asks for ``scratch`` gets a :class:`Scratch`. It hands out pieces of one buffer that is used
again for the next message, of whatever connection, and runs what is to be done at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, TypeVar, final

from .buffers import BufferPool, BufferWriter, Memory

ValueT = TypeVar("ValueT")
CallbackT = TypeVar("CallbackT", bound=Callable[..., object])

_WRITER_SIZE = 256  # bytes that a writer begins with


@final
class Scratch:
    """Memory and clean-up for one call of ``client_message(self, scratch, data)``.

    Everything it handed out is released when the hook returns or raises: a view used later is a
    ``ValueError``, and so is the scratch itself. A slice of a view that somebody kept is out of reach, so
    the buffer under it is emptied and not used again. What was given to :meth:`callback` and
    :meth:`enter_context` is run before that, the last one first.

    To test such a hook by itself: ``with Scratch() as scratch: handler.client_message(scratch, data)``.

    :param pool: where its buffer comes from, when :meth:`alloc` is called first
    """

    __slots__ = ("_buffer", "_exits", "_is_over", "_pool", "_used", "_views")

    def __init__(self, pool: BufferPool | None = None) -> None:
        self._pool = pool or BufferPool(1, 32_768)
        self._buffer: bytearray | None = None
        self._used = 0
        self._views: list[memoryview] = []
        self._exits: ExitStack | None = None
        self._is_over = False

    def alloc(self, size: int) -> memoryview:
        """Return a writable view of so many bytes, all zero.

        They are a piece of the reusable buffer while it lasts, and fresh memory after that.

        :raises ValueError: when *size* is negative, or the hook has returned
        """
        self._check()
        if size < 0:
            raise ValueError(f"size: 0 bytes or more are needed, not {size}")
        if self._buffer is None and size <= self._pool.size:
            self._buffer = self._pool.take(size)
        start, end = self._used, self._used + size
        if self._buffer is None or end > len(self._buffer):
            return self._hand_out(memoryview(bytearray(size)))
        self._used = end
        return self._hand_out(memoryview(self._buffer)[start:end])

    def _hand_out(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def writer(self) -> BufferWriter:
        """Return a file-like writer over scratch memory: ``write``, ``getvalue``, ``getbuffer``.

        It takes text, as UTF-8, and bytes, and grows as needed. ``getbuffer()`` is a view like those of
        :meth:`alloc`; ``getvalue()`` copies, and the copy outlives the hook.

        :raises ValueError: when the hook has returned
        """
        self._check()
        return _ScratchWriter(self)

    def enter_context(self, manager: AbstractContextManager[ValueT]) -> ValueT:
        """Enter a context manager and return what it gives; it is left when the hook returns.

        It is told what the hook raises, and may swallow it as at the end of a ``with`` block.

        :raises ValueError: when the hook has returned
        """
        return self._stack.enter_context(manager)

    def callback(self, function: CallbackT, /, *args: Any, **kwargs: Any) -> CallbackT:
        """Have a function called with these arguments when the hook returns; it is returned as it is.

        :raises ValueError: when the hook has returned
        """
        self._stack.callback(function, *args, **kwargs)
        return function

    @property
    def _stack(self) -> ExitStack:
        self._check()
        if self._exits is None:
            self._exits = ExitStack()
        return self._exits

    def _check(self) -> None:
        if self._is_over:
            raise ValueError("scratch: it is valid only until the hook that it was given to returns")

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            return self._exits is not None and bool(self._exits.__exit__(kind, error, traceback))
        finally:
            self._is_over = True
            self._release()

    def _release(self) -> None:
        """Invalidate what was handed out, and give the buffer back with nothing of this message in it."""
        for view in self._views:
            try:
                view.release()
            except BufferError:  # an object that somebody made over it holds it; the pool sees that, too
                continue
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer[: self._used] = bytes(self._used)
            self._pool.give(buffer)


class _ScratchWriter(BufferWriter):
    """A writer over scratch memory, which is released by the scratch."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__(scratch.alloc, _keep, _WRITER_SIZE)
        self._scratch = scratch

    def getbuffer(self) -> memoryview:
        return self._scratch._hand_out(super().getbuffer())


def _keep(memory: Memory) -> None:
    """Keep what a writer has outgrown until the hook returns, like everything else."""
