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


def give_back(message: Message, buffers: ConnectionBuffers | None) -> None:
    """Invalidate the view that a message is, if it is one, and give back the buffer under it.

    :param buffers: where the memory of the connection goes back to; ``None`` where it was fresh
    """
    if isinstance(message.data, memoryview):
        buffer = message.data.obj
        with contextlib.suppress(BufferError):  # somebody made an object over it; the pool sees that
            message.data.release()
        if buffers is not None and isinstance(buffer, bytearray):
            buffers.give(buffer)


def keep(message: Message, buffers: ConnectionBuffers | None) -> Message:
    """Return a message that may be kept: a copy of one that is a view."""
    if not isinstance(message.data, memoryview):
        return message
    copy = message._replace(data=message.data.tobytes())
    give_back(message, buffers)
    return copy


def call(
    hook: Callable[[Any], Any], by_data: bool, buffers: ConnectionBuffers | None, message: Message
) -> Any:
    """Call a hook, ``def`` or ``async def``, with a message that is given back when it is over.

    :param hook: the hook
    :param by_data: it takes the message's data
    """
    try:
        result = hook(message.data if by_data else message)
    except BaseException:
        give_back(message, buffers)
        raise
    if result is not None and hasattr(result, "__await__"):
        return _finish(result, message, buffers)
    give_back(message, buffers)
    return None


async def _finish(result: Awaitable[object], message: Message, buffers: ConnectionBuffers | None) -> None:
    try:
        await result
    finally:
        give_back(message, buffers)
