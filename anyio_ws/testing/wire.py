"""Frames as they are on the wire, built and judged without the rest of the package.

A second opinion is worth something only when it does not come from the first: nothing here uses
``framing.py`` or ``protocol.py``, and the code is the most literal reading of RFC 6455 §5.2::

    byte 1    FIN (1 bit), RSV1, RSV2, RSV3 (1 bit each), opcode (4 bits)
    byte 2    MASK (1 bit), length (7 bits): 0 to 125, or 126 or 127 for one of the longer forms
    length    2 bytes after 126, 8 bytes after 127
    key       4 bytes when MASK is set
    payload   masked with the key when there is one

:func:`build_frame` builds everything that bytes can express, because breaking the protocol is what a
test often wants. :class:`WireOracle` forgives nothing.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

_CONTINUATION, _TEXT, _CLOSE = 0x0, 0x1, 0x8
_OPCODES = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})


class WireFrame(NamedTuple):
    """A frame as it was on the wire, except that its payload is unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    """The three bits as one number: RSV1 is 4, RSV2 is 2, RSV3 is 1."""
    key: bytes | None = None
    """The masking key, ``None`` when the frame is not masked."""
    length_form: int = 7
    """How many bits hold the length: 7, 16 or 64."""


def build_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    length_form: int | None = None,
    length: int | None = None,
) -> bytes:
    """Build one frame, correct or not.

    :param opcode: 0 to 15, known or reserved
    :param payload: the payload before masking
    :param fin: whether it is the last frame of its message
    :param rsv: the three bits as one number: RSV1 is 4, RSV2 is 2, RSV3 is 1
    :param key: the masking key, 4 bytes; ``None`` leaves the frame unmasked
    :param length_form: 7, 16 or 64 bits of length, needed or not; the shortest that fits when omitted
    :param length: the length to declare when it is not the payload's

    :raises ValueError: when *length_form* cannot hold the length
    """
    if length is None:
        length = len(payload)
    if length_form is None:
        length_form = 7 if length <= 125 else 16 if length <= 0xFFFF else 64
    if length >= {7: 126, 16: 2**16, 64: 2**64}[length_form]:
        raise ValueError(f"length_form: {length_form} bits do not hold a length of {length}")
    mask_bit = 0 if key is None else 128
    wire = bytes([(128 if fin else 0) + rsv * 16 + opcode])
    if length_form == 7:
        wire += bytes([mask_bit + length])
    elif length_form == 16:
        wire += bytes([mask_bit + 126]) + length.to_bytes(2, "big")
    else:
        wire += bytes([mask_bit + 127]) + length.to_bytes(8, "big")
    return wire + (payload if key is None else key + xor(payload, key))


def read_frame(wire: bytes | bytearray) -> tuple[WireFrame, int] | None:
    """Read the first frame in some bytes, and tell how many of them it has.

    Returns ``None`` when it is not complete. Nothing is judged.
    """
    if len(wire) < 2:
        return None
    length, length_form, position = wire[1] % 128, 7, 2
    if length >= 126:
        length_form = 16 if length == 126 else 64
        position += length_form // 8
        if len(wire) < position:
            return None
        length = int.from_bytes(wire[2:position], "big")
    key = None
    if wire[1] >= 128:
        key = bytes(wire[position : position + 4])
        position += 4
    end = position + length
    if len(wire) < end:
        return None
    payload = bytes(wire[position:end])
    frame = WireFrame(
        opcode=wire[0] % 16,
        payload=payload if key is None else xor(payload, key),
        fin=wire[0] >= 128,
        rsv=wire[0] // 16 % 8,
        key=key,
        length_form=length_form,
    )
    return frame, end


def xor(data: bytes, key: bytes) -> bytes:
    """Mask or unmask: byte *i* of the data with byte *i* modulo 4 of the key (RFC 6455 §5.3)."""
    size = len(data)
    keys = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")


class WireOracle:
    """Judges everything that one end of a connection sends.

    ::

        oracle = WireOracle(masked=False)  # a server sends
        oracle.feed(await stream.receive())
        oracle.check()  # no violation, and no frame that stops in its middle
        assert oracle.messages == [(0x1, b"hello")]

    :param masked: whether it is a client that sends: every frame masked, a server's none
    :param head: whether an HTTP head comes first; it is found in :attr:`head` and not judged
    :param deflate: whether permessage-deflate was agreed on: messages with RSV1 are inflated (RFC 7692)
    :param takeover: whether the sender keeps its context from one compressed message to the next

    :ivar head: the HTTP head, with its empty line
    :ivar frames: every frame so far
    :ivar messages: every control frame and every complete message so far, as opcode and data
    :ivar violation: the first rule that was broken and by which frame; nothing is judged after it
    """

    def __init__(
        self, *, masked: bool, head: bool = False, deflate: bool = False, takeover: bool = True
    ) -> None:
        self.head: bytes = b""
        self.frames: list[WireFrame] = []
        self.messages: list[tuple[int, bytes]] = []
        self.violation: str | None = None
        self._masked = masked
        self._in_head = head
        self._deflate = deflate
        self._takeover = takeover
        self._inflate = zlib.decompressobj(-15)
        self._rest = bytearray()
        self._opcode = _CONTINUATION  # of the message whose fragments are coming
        self._compressed = False
        self._data = bytearray()
        self._closed = False

    @property
    def torn(self) -> bytes:
        """The bytes of a frame, or of the head, that has begun and is not complete."""
        return bytes(self._rest)

    def feed(self, data: bytes | bytearray) -> list[WireFrame]:
        """Take received bytes; return the frames that they complete."""
        self._rest += data
        if self._in_head and not self._take_head():
            return []
        frames: list[WireFrame] = []
        while (found := read_frame(self._rest)) is not None:
            frame, size = found
            del self._rest[:size]
            frames.append(frame)
            self.frames.append(frame)
            if self.violation is None:
                self._judge(frame)
        return frames

    def check(self) -> None:
        """Check that all is well, and that the last frame is complete.

        :raises AssertionError: when it is not; with the frames so far
        """
        complaint = self.violation
        if complaint is None and self._rest:
            complaint = f"the bytes end inside a frame or head: {bytes(self._rest[:40])!r}"
        if complaint is not None:
            frames = "".join(f"\n  {_line(frame)}" for frame in self.frames[-20:]) or " none"
            raise AssertionError(f"{complaint}; {len(self.frames)} frames so far, the last of them:{frames}")

    def _take_head(self) -> bool:
        head, blank, rest = bytes(self._rest).partition(b"\r\n\r\n")
        if not blank:
            return False
        self._in_head = False
        self.head = head + blank
        self._rest = bytearray(rest)
        return True

    def _judge(self, frame: WireFrame) -> None:
        fault = (
            self._fault_of_frame(frame)
            or self._fault_of_order(frame)
            or (self._take_control(frame) if frame.opcode >= _CLOSE else self._take_data(frame))
        )
        if fault:
            self.violation = f"frame {len(self.frames)}, {_line(frame)}: {fault}"

    def _fault_of_frame(self, frame: WireFrame) -> str:
        """Say what is wrong with a frame wherever it stands."""
        size = len(frame.payload)
        if frame.opcode not in _OPCODES:
            return "its opcode is reserved (RFC 6455 §5.2)"
        if (frame.key is not None) is not self._masked:
            return "a client masks, a server does not (§5.1)"
        if size >= 2**63:
            return "its length has the most significant bit set (§5.2)"
        if frame.length_form != (7 if size <= 125 else 16 if size <= 0xFFFF else 64):
            return f"its length of {size} is not in the shortest form (§5.2)"
        if frame.opcode >= _CLOSE and not frame.fin:
            return "a control frame is fragmented (§5.5)"
        if frame.opcode >= _CLOSE and size > 125:
            return "a control frame is longer than 125 bytes (§5.5)"
        may_be_compressed = self._deflate and frame.opcode in (0x1, 0x2)
        if frame.rsv & ~(4 if may_be_compressed else 0):
            return "a reserved bit is set (§5.2, RFC 7692 §6)"
        return ""

    def _fault_of_order(self, frame: WireFrame) -> str:
        """Say what is wrong with a frame where it stands."""
        if self._closed:
            return "a frame after the Close (§5.5.1)"
        if frame.opcode == _CONTINUATION and self._opcode == _CONTINUATION:
            return "a continuation without a message (§5.4)"
        if _CONTINUATION < frame.opcode < _CLOSE and self._opcode != _CONTINUATION:
            return "a message inside a fragmented one (§5.4)"
        return ""

    def _take_control(self, frame: WireFrame) -> str:
        self.messages.append((frame.opcode, frame.payload))
        if frame.opcode != _CLOSE:
            return ""
        self._closed = True
        return _fault_of_close(frame.payload)

    def _take_data(self, frame: WireFrame) -> str:
        if frame.opcode != _CONTINUATION:
            self._opcode = frame.opcode
            self._compressed = bool(frame.rsv & 4)
            self._data = bytearray()
        self._data += frame.payload
        if not frame.fin:
            return ""
        opcode, data = self._opcode, bytes(self._data)
        self._opcode = _CONTINUATION
        if self._compressed:
            try:
                data = self._inflated(data)
            except zlib.error as exc:
                return f"its message cannot be inflated: {exc} (RFC 7692 §7.2.2)"
        self.messages.append((opcode, data))
        return "" if opcode != _TEXT or _is_utf8(data) else "its message is not UTF-8 (§8.1)"

    def _inflated(self, data: bytes) -> bytes:
        if not self._takeover:
            self._inflate = zlib.decompressobj(-15)
        # RFC 7692 §7.2.2: "Append 4 octets of 0x00 0x00 0xff 0xff to the tail end"
        out = self._inflate.decompress(data + b"\0\0\xff\xff")
        while self._inflate.eof and self._inflate.unused_data:  # a block with BFINAL, and more behind it
            rest, self._inflate = self._inflate.unused_data, zlib.decompressobj(-15)
            out += self._inflate.decompress(rest)
        return out


def _fault_of_close(payload: bytes) -> str:
    """Say what is wrong with the payload of a Close (RFC 6455 §5.5.1, §7.4)."""
    if not payload:
        return ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in {*range(1000, 1004), *range(1007, 1015)} or 3000 <= code <= 4999):
        return "a Close with a code that may not be sent (§7.4)"
    return "" if _is_utf8(payload[2:]) else "a Close whose reason is not UTF-8 (§5.5.1)"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _line(frame: WireFrame) -> str:
    """Describe a frame in one line of bounded length."""
    shown = f"{frame.payload[:40]!r}" + (f"... {len(frame.payload)} bytes" if len(frame.payload) > 40 else "")
    marks = ("" if frame.fin else " fin=0") + (f" rsv={frame.rsv}" if frame.rsv else "")
    return f"opcode {frame.opcode:#x}{marks}{' masked' if frame.key is not None else ''} {shown}"
