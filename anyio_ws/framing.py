"""RFC 6455 §5, framing: the build that is in use, and frames made ahead of time.

``BUILD`` says which build was chosen, ``"c"`` or ``"python"``. The environment variable
``ANYIO_WS_FRAMING`` forces one of them; otherwise the compiled one is used where it is installed.
Only its absence is tolerated: a compiled module that fails to load is an error, not a slow program.
"""

from __future__ import annotations

from ._framing_py import MessageReader, frame, mask
from .events import Opcode

BUILD = "python"

__all__ = ["BUILD", "Frame", "MessageReader", "frame", "frame_bin", "frame_text", "mask", "to_bytes"]


class Frame:
    """A message framed once, to be written many times with ``conn.write_framed``.

    ``bytes(frame)`` is what a server puts on the wire. A client has to mask each sending anew, so it
    takes the payload and pays for a copy.
    """

    __slots__ = ("_framed", "opcode", "payload")

    def __init__(self, opcode: Opcode, payload: bytes) -> None:
        if opcode not in (Opcode.TEXT, Opcode.BINARY):
            raise ValueError(f"opcode: text and binary messages can be framed ahead, not {opcode!r}")
        self.opcode = opcode
        self.payload = payload
        self._framed = frame(opcode, payload)

    def __bytes__(self) -> bytes:
        return self._framed

    def __len__(self) -> int:
        return len(self._framed)

    def __repr__(self) -> str:
        return f"<Frame {self.opcode.name} of {len(self.payload)} bytes>"


def frame_text(data: str) -> Frame:
    """Frame a text message once, to write it many times.

    :raises TypeError: when *data* is not ``str``
    :raises UnicodeEncodeError: when *data* has a lone surrogate
    """
    if not isinstance(data, str):
        raise TypeError(f"data: text is str, not {type(data).__name__}; frame_bin takes bytes")
    return Frame(Opcode.TEXT, data.encode())


def frame_bin(data: bytes | bytearray | memoryview) -> Frame:
    """Frame a binary message once, to write it many times; *data* is copied.

    :raises TypeError: when *data* is not bytes-like
    """
    return Frame(Opcode.BINARY, to_bytes(data))


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
