"""RFC 6455 §5, framing: the build that is in use, and frames made ahead of time.

``BUILD`` says which build was chosen, ``"c"`` or ``"python"``. The environment variable
``ANYIO_WS_FRAMING`` forces one of them; otherwise the compiled one is used where it is installed.
Only its absence is tolerated: a compiled module that fails to load is an error, not a slow program.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Protocol

from ._framing_py import Buffers, MessageReader, build_header, frame, mask
from .events import Opcode

BUILD = "python"
_forced = os.environ.get("ANYIO_WS_FRAMING", "")
if _forced not in ("", "python", "c"):
    raise ValueError(f"ANYIO_WS_FRAMING: 'python' or 'c', or nothing for the better one, not {_forced!r}")
if _forced != "python":
    try:
        from ._framing_c import (  # type: ignore[no-redef]  # the types are those of the twin
            MessageReader,
            frame,
            mask,
        )
    except ModuleNotFoundError as _exc:
        if _forced or _exc.name != f"{__package__}._framing_c":
            raise
    else:
        BUILD = "c"

__all__ = [
    "BUILD",
    "Buffers",
    "Frame",
    "MessageReader",
    "frame",
    "frame_bin",
    "frame_in_place",
    "frame_text",
    "mask",
    "to_bytes",
    "writable_bytes",
]


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
        self.framed: bytes = frame(opcode, payload)
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
            framed = None if payload is None else frame(self.opcode, payload, rsv1=True)
            return self._compressed.setdefault(compressor.kind, framed)

    def __bytes__(self) -> bytes:
        return self.framed

    def __len__(self) -> int:
        return len(self.framed)

    def __repr__(self) -> str:
        return f"<Frame {self.opcode.name} of {len(self.payload)} bytes>"


def frame_in_place(
    opcode: int, payload: bytearray | memoryview, masking_key: bytes
) -> tuple[bytes, memoryview]:
    """Mask a payload where it is, and build what goes before it on the wire (RFC 6455 §5.2, §5.3).

    :param payload: writable memory, which is scrambled then
    :return: the header with the masking key, and a view of the payload
    :raises TypeError: when *payload* is not writable and contiguous; it is as it was then
    """
    view = writable_bytes(payload)
    mask(view, masking_key, in_place=True)
    return build_header(0x80 | opcode, 0x80, len(view)) + masking_key, view


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
