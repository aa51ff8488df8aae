"""Memory that is used again: pools of buffers, what a connection keeps messages in, a writer over both.

Messages that arrive whole need none of this. One that does not is collected in a buffer: the connection's
own, one of a pool that all connections share, or one of the larger ones. Whatever there is too little of
is replaced by fresh memory, so a pool never makes anybody wait; its statistics tell how often. Where fresh
memory is long it is dear, because the system has to find and clear every page of it: so one piece is kept.

A buffer goes back to its pool only when nothing refers to its memory any more: a view that somebody has
kept would show the data of another connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

Memory = bytearray | memoryview


@dataclass(frozen=True)
class PoolStatistics:
    """What a pool of buffers is doing and has done.

    :ivar size: bytes of each buffer
    :ivar count: how many buffers there may be; ``None`` where each connection has its own
    :ivar in_use: buffers that are lent now
    :ivar created: buffers that were made
    :ivar reused: how often a buffer was lent again
    :ivar fallback: how often fresh memory was lent instead, because the pool was empty or its buffers
        were too small
    """

    size: int
    count: int | None
    in_use: int = 0
    created: int = 0
    reused: int = 0
    fallback: int = 0


@dataclass(frozen=True)
class BufferStatistics:
    """The memory of messages that did not arrive whole.

    :ivar small: the connections' own buffers, or the shared ones of their size
    :ivar large: the buffers for longer messages
    """

    small: PoolStatistics
    large: PoolStatistics


class BufferPool:
    """Buffers of one size, made when they are needed, lent and lent again; safe in any thread.

    :param count: how many there may be
    :param size: bytes of each
    :param longest: keep the latest piece of fresh memory that is longer than *size*, up to so many bytes, and
        lend it again
    """

    def __init__(self, count: int, size: int, longest: int = 0) -> None:
        self.count = count
        self.size = size
        self._longest = longest
        self._lock = threading.Lock()
        self._free: list[bytearray] = []
        self._lent: dict[int, bytearray] = {}
        self._long: bytearray | None = None  # longer than the others
        self._long_is_lent = False
        self._created = self._reused = self._fallback = 0

    def take(self, size: int) -> bytearray:
        """Lend a buffer of at least *size* bytes; fresh memory when there is none left, or none so large."""
        with self._lock:
            if self.size < size <= self._longest:
                return self._take_long(size)
            buffer = self._take() if size <= self.size else None
            if buffer is not None:
                self._lent[id(buffer)] = buffer
                return buffer
            self._fallback += 1
        return bytearray(size)

    def _take_long(self, size: int) -> bytearray:
        """Lend the long buffer; where it is lent or too short, a new one that takes its place."""
        if self._long is None or self._long_is_lent or len(self._long) < size:
            self._long = None  # before there is another
            self._fallback += 1
            self._long = bytearray(size)
        else:
            self._reused += 1
        self._long_is_lent = True
        return self._long

    def _take(self) -> bytearray | None:
        if self._free:
            self._reused += 1
            return self._free.pop()
        if len(self._lent) < self.count:
            self._created += 1
            return bytearray(self.size)
        return None

    def give(self, buffer: Memory) -> None:
        """Take a buffer back; fresh memory, and what is back already, is left to Python."""
        with self._lock:
            if buffer is self._long:
                self._long_is_lent = False
                if is_exported(self._long):
                    self._long = None
                return
            lent = self._lent.pop(id(buffer), None)
            if lent is not None and len(lent) == self.size and not is_exported(lent):
                self._free.append(lent)

    def statistics(self) -> PoolStatistics:
        """Return what the pool is doing and has done."""
        with self._lock:
            return PoolStatistics(
                self.size, self.count, len(self._lent), self._created, self._reused, self._fallback
            )

    def __repr__(self) -> str:
        return f"<BufferPool of {self.count} with {self.size} bytes>"


def is_exported(buffer: bytearray) -> bool:
    """Tell whether a view, or another object, refers to the memory of a buffer.

    Python has no question for it, but refuses to resize such a buffer. Taking one byte away and putting
    it back moves nothing.
    """
    try:
        last = buffer.pop()
    except BufferError:
        return True
    except IndexError:
        return False
    buffer.append(last)
    return False


class MessageStorage:
    """What the connections of one server, or one client, keep incomplete messages in.

    :param size: bytes of a connection's own buffer, or of each shared one
    :param pool: how many shared ones there may be; ``None`` gives each connection its own
    :param large: buffers for messages longer than *size*
    """

    def __init__(self, size: int, pool: int | None, large: BufferPool) -> None:
        self.size = size
        self.shared: BufferPool | None = None if pool is None else BufferPool(pool, size)
        self.large = large
        self.own_in_use = self.own_created = self.own_reused = self.own_fallback = 0

    def statistics(self) -> BufferStatistics:
        """Return what the buffers are doing and have done."""
        own = PoolStatistics(
            self.size, None, self.own_in_use, self.own_created, self.own_reused, self.own_fallback
        )
        small = own if self.shared is None else self.shared.statistics()
        return BufferStatistics(small, self.large.statistics())


class ConnectionBuffers:
    """The memory of one connection: its own buffer, and what it takes from the storage of all.

    :param storage: what all connections of the server share
    """

    __slots__ = ("_own", "_own_is_lent", "_storage")

    def __init__(self, storage: MessageStorage) -> None:
        self._storage = storage
        self._own: bytearray | None = None  # made for the first message that needs it
        self._own_is_lent = False

    def take(self, size: int) -> bytearray:
        """Lend a buffer of at least *size* bytes, with anything in it."""
        storage = self._storage
        if size > storage.size:
            return storage.large.take(size)
        if storage.shared is not None:
            return storage.shared.take(size)
        if self._own_is_lent:
            storage.own_fallback += 1
            return bytearray(size)
        if self._own is None:
            storage.own_created += 1
            self._own = bytearray(storage.size)
        else:
            storage.own_reused += 1
        storage.own_in_use += 1
        self._own_is_lent = True
        return self._own

    @property
    def size(self) -> int:
        """Bytes of the connection's own buffer, or of those in its place."""
        return self._storage.size

    def take_shared(self, size: int) -> bytearray:
        """Lend a buffer of at least *size* bytes, and not the connection's own, which is for receiving."""
        storage = self._storage
        shared = storage.large if storage.shared is None or size > storage.size else storage.shared
        return shared.take(size)

    def give(self, buffer: Memory) -> None:
        """Take a buffer back; fresh memory, and what is back already, is left to Python."""
        storage = self._storage
        if self._own is None or buffer is not self._own:
            storage.large.give(buffer)
            if storage.shared is not None:
                storage.shared.give(buffer)
        elif self._own_is_lent:
            storage.own_in_use -= 1
            self._own_is_lent = False
            if is_exported(self._own):
                self._own = None


class BufferWriter:
    """A file-like writer into memory that is lent to it; when that is full it moves to a larger piece.

    ``print(..., file=writer)`` and ``json.dump(obj, writer)`` work. Text is written as UTF-8.

    :param take: lends at least so many bytes
    :param give: takes them back
    :param size: bytes to begin with, taken at the first write
    """

    def __init__(self, take: Callable[[int], Memory], give: Callable[[Memory], object], size: int) -> None:
        self._take = take
        self._give = give
        self._size = size
        self._memory: Memory = bytearray()
        self._end = 0

    def write(self, data: str | bytes | bytearray | memoryview) -> int:
        """Add text or bytes; return how many characters, or bytes, that were.

        :raises TypeError: when *data* is neither text nor bytes-like
        :raises UnicodeEncodeError: when *data* has a lone surrogate; nothing is added then
        """
        payload = data.encode() if isinstance(data, str) else _flat(data)
        start, end = self._end, self._end + len(payload)
        if end > len(self._memory):
            self._grow(end)
        self._memory[start:end] = payload
        self._end = end
        return len(data) if isinstance(data, str) else len(payload)

    def _grow(self, size: int) -> None:
        """Move to memory of at least twice the size, so that much writing costs little moving."""
        old = self._memory
        self._memory = self._take(max(size, 2 * len(old), self._size))
        self._memory[: self._end] = memoryview(old)[: self._end]
        if old:
            self._give(old)

    def getvalue(self) -> bytes:
        """Return a copy of all that was written."""
        return bytes(self.getbuffer())

    def getbuffer(self) -> memoryview:
        """Return a view of all that was written, without a copy; what is written later is not in it."""
        return memoryview(self._memory)[: self._end]

    def __len__(self) -> int:
        """How many bytes were written."""
        return self._end

    def __bool__(self) -> bool:
        """A writer is true even before anything was written to it."""
        return True


def _flat(data: bytes | bytearray | memoryview) -> memoryview:
    """Look at any bytes-like object as single bytes; only one with gaps must be copied for that."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"data: text or bytes are needed, not {type(data).__name__}") from None
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
