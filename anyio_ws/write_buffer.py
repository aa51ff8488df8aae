"""A message written piece by piece, like a file, and sent when it is said to.

``conn.write_buffer()`` makes a :class:`WriteBuffer`. Its memory comes from the pools that messages are
received into, and is fresh where they have none so large.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import final

from .buffers import BufferWriter, Memory
from .events import MessageType


@final
class WriteBuffer(BufferWriter):
    """A file-like object for one message after the other; :meth:`Conn.write_buffer` makes it.

    ::

        async with conn.write_buffer(MessageType.TEXT) as wb:
            json.dump(obj, wb)
            print("and a line", file=wb)
            await wb.flush()

    Nothing is sent before :meth:`flush`, and each flush sends one message. What was not flushed when the
    block ends is discarded.

    :param message_type: what its messages are
    :param take: lends at least so many bytes
    :param give: takes them back
    :param size: bytes to begin with
    :param wait_for_room: waits until the connection takes a message
    :param hand_over: has the connection take a message, in one step
    """

    def __init__(
        self,
        message_type: MessageType,
        take: Callable[[int], Memory],
        give: Callable[[Memory], object],
        size: int,
        *,
        wait_for_room: Callable[[], Awaitable[None]],
        hand_over: Callable[[MessageType, memoryview, bool], None],
    ) -> None:
        if message_type not in (MessageType.TEXT, MessageType.BINARY):
            raise ValueError(f"message_type: MessageType.TEXT or .BINARY is needed, not {message_type!r}")
        super().__init__(take, give, size)
        self._message_type = message_type
        self._wait_for_room = wait_for_room
        self._hand_over = hand_over
        self._is_open = False
        self._is_written = False  # since the last flush
        self._must_check = False  # text was written as bytes

    async def __aenter__(self) -> WriteBuffer:
        self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def open(self) -> None:
        """Begin to take what is written; ``async with`` does it."""
        self._is_open = True

    def close(self) -> None:
        """Discard what was not flushed, and give the memory back; ``async with`` does it."""
        self._is_open = False
        memory, self._memory = self._memory, bytearray()
        self._reset()
        if memory:
            self._give(memory)

    def write(self, data: str | bytes | bytearray | memoryview) -> int:
        """Add text, or bytes, to the message; return how many characters, or bytes, that were.

        Either may be written to a message of either type: text is written as UTF-8, and bytes that are
        written to a text message must be that when it is flushed.

        :raises TypeError: when *data* is neither text nor bytes-like
        :raises UnicodeEncodeError: when *data* has a lone surrogate; nothing is added then
        :raises ValueError: outside of the block
        """
        self._check()
        written = super().write(data)
        self._is_written = True
        if not isinstance(data, str):
            self._must_check = self._message_type is MessageType.TEXT
        return written

    async def flush(self, *, compress: bool = True) -> None:
        """Send what was written since the last flush as one message; nothing, when nothing was written.

        Waits and raises like :meth:`Conn.write`.

        :param compress: as for :meth:`Conn.write`
        :raises ValueError: outside of the block
        :raises UnicodeDecodeError: when a text message is not UTF-8; nothing is sent, or discarded, then

        Cancellation: nothing is sent or discarded while this waits; afterwards the message goes out whole.
        """
        self._check()
        await self._wait_for_room()
        if not self._is_written:
            return
        with self.getbuffer() as data:
            if self._must_check:
                str(data, "utf-8")
            self._hand_over(self._message_type, data, compress)
        self._reset()

    def _reset(self) -> None:
        self._end = 0
        self._is_written = self._must_check = False

    def _check(self) -> None:
        if not self._is_open:
            raise ValueError("write_buffer: it can be used only inside of its `with` block")
