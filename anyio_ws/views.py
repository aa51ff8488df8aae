"""Messages that are views of the buffer that they were received into, and end with the call that gets them.

With ``message_view=True`` a connection's reader delivers binary messages so. Everything else that may hold
one gives it back here: when the hook has returned, when the message is kept as a copy, when nobody wants it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from .buffers import ConnectionBuffers
from .events import Message


class Views:
    """The views of one connection.

    :param buffers: where the memory under them goes back to; ``None`` where it was fresh
    """

    __slots__ = ("_buffers",)

    def __init__(self, buffers: ConnectionBuffers | None) -> None:
        self._buffers = buffers

    def give_back(self, message: Message) -> None:
        """Invalidate the view that a message is, if it is one, and give back the buffer under it."""
        if isinstance(message.data, memoryview):
            buffer = message.data.obj
            with contextlib.suppress(BufferError):  # somebody made an object over it; the pool sees that
                message.data.release()
            if self._buffers is not None and isinstance(buffer, bytearray):
                self._buffers.give(buffer)

    def keep(self, message: Message) -> Message:
        """Return a message that may be kept: a copy of one that is a view."""
        if not isinstance(message.data, memoryview):
            return message
        copy = message._replace(data=message.data.tobytes())
        self.give_back(message)
        return copy

    def call(self, hook: Callable[[Any], Any], by_data: bool, message: Message) -> Any:
        """Call a hook, ``def`` or ``async def``, with a message that is given back when it is over.

        :param hook: the hook
        :param by_data: it takes the message's data
        """
        try:
            result = hook(message.data if by_data else message)
        except BaseException:
            self.give_back(message)
            raise
        if result is not None and hasattr(result, "__await__"):
            return self._finish(result, message)
        self.give_back(message)
        return None

    async def _finish(self, result: Awaitable[object], message: Message) -> None:
        try:
            await result
        finally:
            self.give_back(message)
