"""RFC 6455 §5, framing: the build that is in use, messages in fragments, and frames made ahead of time.

``BUILD`` says which build was chosen, ``"c"`` or ``"python"``. The environment variable
``ANYIO_WS_FRAMING`` forces one of them; otherwise the compiled one is used where it is installed.
Only its absence is tolerated: a compiled module that fails to load is an error, not a slow program.

A message of more than ``WHOLE`` bytes is cut into fragments (§5.4), because control frames may go between
them: nobody waits for a Pong until a huge message is through. :func:`frame_message` cuts, and
:func:`end_of_frame` finds the cuts again in what waits to be sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Protocol

from ._framing_py import Buffers, MessageReader, build_header, fragments, frame, mask
from .events import Opcode

BUILD = "python"
_forced = os.environ.get("ANYIO_WS_FRAMING", "")
if _forced not in ("", "python", "c"):
    raise ValueError(f"ANYIO_WS_FRAMING: 'python' or 'c', or nothing for the better one, not {_forced!r}")
if _forced != "python":
    try:
        from ._framing_c import MessageReader, fragments, frame, mask
    except ModuleNotFoundError as _exc:
        if _forced or _exc.name != f"{__package__}._framing_c":
            raise
    else:
        BUILD = "c"

__all__ = [
    "BUILD",
    "FRAGMENT",
    "WHOLE",
    "Buffers",
    "Frame",
    "Frames",
    "MessageReader",
    "end_of_frame",
    "frame",
    "frame_bin",
    "frame_in_place",
    "frame_message",
    "frame_text",
    "mask",
    "to_bytes",
    "writable_bytes",
]

WHOLE = 131_072  # bytes of payload above which a message is cut into fragments
FRAGMENT = 65_535  # bytes of payload of each of them; the last may have less

_FIN, _MASK, _OPCODE = 0x80, 0x80, 0x0F
_SHORT = WHOLE + 14  # bytes that may be one frame, its header included
_LAST_DATA = int(Opcode.BINARY)  # opcodes above it are of control frames, or reserved


class Compressor(Protocol):
    """What a frame needs to be compressed ahead (RFC 7692); ``deflate.py`` has it."""

    @property
    def kind(self) -> Hashable:
        """The same for those that give the same bytes."""

    def shrink_alone(self, data: bytes) -> bytes | None:
        """Compress a message that refers to none before it; ``None`` when it is better sent as it is."""


class Frame:
    """A message framed once, to be written many times with ``conn.write_framed``.

    ``bytes(frame)`` is what a server sends where messages are not compressed. A client has to
    mask each sending anew, so it takes the payload and pays for a copy.

    :ivar compress: whether it may be compressed
    :ivar framed: what ``bytes(frame)`` gives
    """

    __slots__ = ("_compressed", "compress", "framed", "opcode", "payload")

    def __init__(self, opcode: Opcode, payload: bytes, *, compress: bool = True) -> None:
        if opcode not in (Opcode.TEXT, Opcode.BINARY):
            raise ValueError(f"opcode: text and binary messages can be framed ahead, not {opcode!r}")
        self.opcode = opcode
        self.payload: bytes = payload
        self.compress: bool = compress
        self.framed: bytes = frame_message(opcode, payload)
        self._compressed: dict[Hashable, bytes | None] = {}

    def compressed(self, compressor: Compressor) -> bytes | None:
        """Return the frame compressed, ``None`` when it is better sent as it is.

        It is made once for each kind of compressor, on the first call.
        """
        if not self.compress:
            return None
        try:
            return self._compressed[compressor.kind]
        except KeyError:
            payload = compressor.shrink_alone(self.payload)
            framed = None if payload is None else frame_message(self.opcode, payload, rsv1=True)
            return self._compressed.setdefault(compressor.kind, framed)

    def __bytes__(self) -> bytes:
        return self.framed

    def __len__(self) -> int:
        return len(self.framed)

    def __repr__(self) -> str:
        return f"<Frame {self.opcode.name} of {len(self.payload)} bytes>"


def frame_message(
    opcode: int, payload: str | bytes, *, rsv1: bool = False, new_key: Callable[[], bytes] | None = None
) -> bytes:
    """Build the frames of a message: one, or fragments of ``FRAGMENT`` bytes if it is long (RFC 6455 §5.4).

    :param opcode: text or binary
    :param payload: the message; ``str`` must be ASCII, which is as long as its characters are many
    :param rsv1: whether it is compressed
    :param new_key: gives a client's masking keys, a fresh one for each frame; ``None`` for a server
    """
    size = len(payload)
    if size <= WHOLE:
        return frame(opcode, payload, rsv1=rsv1, masking_key=new_key and new_key())
    keys = new_key and b"".join([new_key() for _ in range(0, size, FRAGMENT)])
    return fragments(opcode, payload, FRAGMENT, rsv1, keys)


def frame_in_place(
    opcode: int, payload: bytearray | memoryview, new_key: Callable[[], bytes]
) -> list[bytes | memoryview]:
    """Mask a client's message where it is, and build what goes between (RFC 6455 §5.2, §5.3, §5.4).

    :param payload: writable memory, which is scrambled then
    :param new_key: gives masking keys, a fresh one for each frame
    :return: for each frame its header with the masking key, and a view of its payload
    :raises TypeError: when *payload* is not writable and contiguous; it is as it was then
    """
    view = writable_bytes(payload)
    size = FRAGMENT if len(view) > WHOLE else WHOLE
    parts: list[bytes | memoryview] = []
    for start in range(0, len(view) or 1, size):
        piece, key = view[start : start + size], new_key()
        first = (Opcode.CONTINUATION if start else opcode) | (_FIN if start + size >= len(view) else 0)
        parts += build_header(first, _MASK, len(piece)) + key, mask(piece, key, in_place=True)
    return parts


class Frames:
    """Finds where frames end, in bytes that come cut anywhere (RFC 6455 §5.2); it judges nothing."""

    def __init__(self) -> None:
        self._head = b""  # the start of a header
        self._left = 0  # what is still to come of the payload behind it

    def end_of(self, data: bytes | memoryview, start: int, count: int) -> int:
        """Return where so many frames have ended, or where *data* does."""
        position = start
        while count and position < len(data):
            if not self._left:
                piece = data[position : position + self._missing()]
                self._head += piece
                position += len(piece)
                if self._missing():
                    continue
                self._left = self._length()
                self._head = b""
            step = min(self._left, len(data) - position)
            position += step
            self._left -= step
            count -= not self._left
        return position

    def _missing(self) -> int:
        """Return how many bytes are needed before more can be said about the header."""
        if len(self._head) < 2:
            return 2 - len(self._head)
        extended = {126: 2, 127: 8}.get(self._head[1] & 0x7F, 0)
        return 2 + extended + (4 if self._head[1] & 0x80 else 0) - len(self._head)

    def _length(self) -> int:
        length = self._head[1] & 0x7F
        extended = {126: 4, 127: 10}.get(length)
        return length if extended is None else int.from_bytes(self._head[2:extended], "big")


def end_of_frame(sent: bytes | memoryview, position: int) -> int:
    """Return where the next frame ends, at *position* or behind it: there a control frame may go.

    :param sent: what was sent in one piece, from its start: the frames of one message. What is short
        is not looked into, and the head of an HTTP message is no frame: both end where they end.
    """
    if len(sent) <= _SHORT or sent[0] & _OPCODE > _LAST_DATA:
        return len(sent)
    frames, end = Frames(), 0
    while end < position:
        end = frames.end_of(sent, end, 1)
    return end


def writable_bytes(data: bytearray | memoryview) -> memoryview:
    """Look at writable memory as single bytes.

    :raises TypeError: when *data* is not writable, or has gaps
    """
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"data: a writable buffer is needed, not {type(data).__name__}") from None
    if view.readonly or not view.c_contiguous:
        raise TypeError("data: a writable buffer without gaps is needed to mask it in place")
    return view.cast("B")


def frame_text(data: str, *, compress: bool = True) -> Frame:
    """Frame a text message once, to write it many times.

    Where messages are compressed it is compressed once, too.

    :param compress: ``False`` to send it uncompressed everywhere
    :raises TypeError: when *data* is not ``str``
    :raises UnicodeEncodeError: when *data* has a lone surrogate
    """
    if not isinstance(data, str):
        raise TypeError(f"data: text is str, not {type(data).__name__}; frame_bin takes bytes")
    return Frame(Opcode.TEXT, data.encode(), compress=compress)


def frame_bin(data: bytes | bytearray | memoryview, *, compress: bool = True) -> Frame:
    """Frame a binary message once, to write it many times; *data* is copied.

    :param compress: see :func:`frame_text`
    :raises TypeError: when *data* is not bytes-like
    """
    return Frame(Opcode.BINARY, to_bytes(data), compress=compress)


def to_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Return the bytes of any bytes-like object: of an array of other items, or of every second one.

    :raises TypeError: when *data* is not bytes-like; text in particular is refused
    """
    if type(data) is bytes:
        return data
    try:
        return memoryview(data).tobytes()
    except TypeError:
        raise TypeError(f"data: a bytes-like object is needed, not {type(data).__name__}") from None
