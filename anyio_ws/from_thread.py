"""Writing to a connection from other threads than that of its event loop.

:class:`LoopThread` remembers an event loop, and runs coroutine functions there for any other thread:
one of AnyIO's worker threads, one that the user started, one of a foreign framework.
:class:`FromThread` is what ``conn.from_thread`` gives: the writing half of a connection, made to block.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from .events import CloseCode

T = TypeVar("T")


class Kept:
    """A block whose error ends there, and is kept to be raised in another place.

    :ivar error: what the block raised; what is no ``Exception`` is not kept
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Exception):
            self.error = error
        return self.error is not None


class LoopThread:
    """The event loop, and the thread, in which this object was made."""

    def __init__(self) -> None:
        self._token = current_token()
        self._ident = threading.get_ident()

    def run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function in the event loop, and wait for it in this thread.

        :raises RuntimeError: in the event loop's own thread, where waiting would never end
        :raises anyio.RunFinishedError: when the event loop has ended
        :raises concurrent.futures.CancelledError: when it ends first, or the task is cancelled that waits
            for this thread (``anyio.to_thread.run_sync``, on asyncio)
        """
        if threading.get_ident() == self._ident:
            raise RuntimeError("this is the event loop's own thread, where from_thread would wait forever")
        return anyio.from_thread.run(function, token=self._token)


class Writable(Protocol):
    """The part of a connection that other threads may use."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""

    async def write(self, data: str, *, compress: bool) -> None:
        """Send a text message."""

    async def write_bin(self, data: bytes | bytearray | memoryview, *, compress: bool) -> None:
        """Send a binary message."""

    async def close(self, code: int, reason: str) -> None:
        """Do the closing handshake."""


class FromThread:
    """A connection for threads other than that of its event loop; any number of them may write.

    Each call blocks its thread until the message was taken, as the ``async`` method of the same name
    would wait, and raises what that raises.

    :param conn: the connection
    :param loop: where it lives
    :param closed: makes the error that says how the connection ended
    """

    def __init__(self, conn: Writable, loop: LoopThread, closed: Callable[[], Exception]) -> None:
        self._conn = conn
        self._loop = loop
        self._closed = closed

    def write(self, data: str, *, compress: bool = True) -> None:
        """Send a text message; returns when it has been taken.

        :raises RuntimeError: when called in the event loop's own thread; ``await conn.write`` there

        Raises otherwise like :meth:`Conn.write`.
        """
        self._run(partial(self._conn.write, data, compress=compress))

    write_text = write

    def write_bin(self, data: bytes | bytearray | memoryview, *, compress: bool = True) -> None:
        """Send a binary message; raises like :meth:`write` here and :meth:`Conn.write_bin`."""
        self._run(partial(self._conn.write_bin, data, compress=compress))

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Do the closing handshake and block until the connection is gone.

        Raises like :meth:`write` here and :meth:`Conn.close`.
        """
        self._run(partial(self._conn.close, code, reason))

    def _run(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            self._loop.run(function)
        except anyio.RunFinishedError as exc:  # and with the event loop went the connection
            raise self._closed() from exc
        except concurrent.futures.CancelledError as exc:
            if not self._conn.is_closed:
                raise
            raise self._closed() from exc
