"""RFC 6455 §5 in Python: the reference for every other build of the framing.

Three names, and nothing else leaves this module: :class:`MessageReader` turns received bytes into
messages, :func:`frame` turns a payload into a frame, :func:`mask` applies a masking key. No stream,
no clock, no state of the connection: what a Close *means* is the business of ``protocol.py``.
"""

from __future__ import annotations

import codecs
import struct
import sys
from functools import cache
from typing import Protocol

from .events import CloseCode, Message, MessageType, may_be_sent
from .exceptions import RemoteProtocolError

_CONTINUATION, _TEXT, _CLOSE = 0x0, 0x1, 0x8
_KNOWN_OPCODES = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})
_TYPES = {int(type_): type_ for type_ in MessageType}
_FIN, _RSV1, _RSV2_RSV3, _OPCODE, _MASK, _LENGTH = 0x80, 0x40, 0x30, 0x0F, 0x80, 0x7F

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Inflater(Protocol):
    """What a reader needs to inflate compressed messages (RFC 7692); ``deflate.py`` has it."""

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Inflate one piece of a message into at most *max_length* bytes.

        :raises RemoteProtocolError: 1007 when the data is invalid, 1009 when more would come out
        """

    def finish(self, max_length: int) -> bytes:
        """Inflate what is left when a message is complete."""


class MessageReader:
    """Reassembles messages from the bytes of one direction of a connection.

    :param masked: whether every frame must be masked (a server's reader) or none may be (a client's)
    :param max_message_size: bytes of payload above which a message is refused, before memory is taken
    :param utf8: check that text is UTF-8 and deliver ``str``; otherwise text is delivered as ``bytes``
    :param inflater: inflates messages with RSV1 set; ``None`` when compression was not negotiated

    :ivar error: the first violation that was met; set together with the last messages before it
    :ivar finished: nothing more will be read: a Close frame was received, or ``error`` is set
    """

    __slots__ = (
        "_compressed",
        "_decoder",
        "_fin",
        "_fragments",
        "_inflater",
        "_key",
        "_masked",
        "_max_message_size",
        "_message",
        "_opcode",
        "_pending",
        "_received",
        "_remaining",
        "_utf8",
        "error",
        "finished",
    )

    def __init__(
        self,
        *,
        masked: bool,
        max_message_size: int,
        utf8: bool = True,
        inflater: Inflater | None = None,
    ) -> None:
        self.error: RemoteProtocolError | None = None
        self.finished = False
        self._masked = masked
        self._max_message_size = max_message_size
        self._utf8 = utf8
        self._inflater = inflater
        self._pending = b""  # the start of a header or of a control frame, at most 130 bytes
        # The data frame whose payload is arriving; _remaining is -1 between frames.
        self._remaining = -1
        self._fin = True
        self._key = b""
        # The message that its fragments form; _opcode is 0 between messages.
        self._opcode = _CONTINUATION
        self._compressed = False
        self._message = bytearray()
        self._fragments = 0
        self._received = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take the bytes of one read and return the messages that they complete, in order.

        Nothing of *data* is referred to afterwards. A violation does not raise: it ends the reading
        and is found in :attr:`error`, so that no message before it is lost.
        """
        messages: list[Message] = []
        if self.finished:
            return messages
        view = memoryview(self._pending + data if self._pending else data)
        position = 0
        try:
            while not self.finished:
                if self._remaining < 0:
                    after = self._read_header(view, position, messages)
                    if after == position:
                        break
                    position = after
                if self._remaining >= 0:
                    position = self._read_payload(view, position, messages)
                    if self._remaining > 0:
                        break
        except RemoteProtocolError as exc:
            # A new one, because the traceback of this one holds the caller's buffer.
            self.error = RemoteProtocolError(exc.code, exc.reason)
            self.finished = True
        self._pending = b"" if self.finished else bytes(view[position:])
        return messages

    def _read_header(self, view: memoryview, start: int, messages: list[Message]) -> int:
        """Read a header, and a control frame or an unfragmented data frame whole when it is all there.

        Returns where reading goes on; *start* when more bytes are needed first. Every byte is judged
        as soon as it is there (RFC 6455 §5.2).
        """
        available = len(view) - start
        if not available:
            return start
        first = view[start]
        opcode = first & _OPCODE
        self._check_first_byte(first, opcode)
        if available < 2:
            return start
        second = view[start + 1]
        length = second & _LENGTH
        self._check_second_byte(second, length, opcode)
        position = start + 2
        if length > 125:
            position += 2 if length == 126 else 8
            length = self._extended_length(view, start + 2, length == 126)
            if length < 0:
                return start
        if opcode < _CLOSE:
            self._check_size(length, compressed=bool(first & _RSV1) or self._compressed)
        if self._masked:
            position += 4
        if len(view) < position:
            return start
        key = bytes(view[position - 4 : position]) if self._masked else b""
        whole = len(view) - position >= length
        if opcode >= _CLOSE:
            if not whole:
                return start
            payload = bytes(view[position : position + length])
            messages.append(self._control(opcode, mask(payload, key) if key else payload))
            return position + length
        if whole and opcode and first == _FIN | opcode:
            payload = bytes(view[position : position + length])
            messages.append(self._whole(opcode, mask(payload, key) if key else payload))
            return position + length
        self._start_frame(first, opcode, length, key)
        return position

    def _check_first_byte(self, first: int, opcode: int) -> None:
        """Judge FIN, RSV and opcode (RFC 6455 §5.2, §5.4, §5.5; RFC 7692 §6)."""
        if first & _RSV2_RSV3:
            raise _violation("RSV2 or RSV3 is set without an extension that defines it")
        if opcode not in _KNOWN_OPCODES:
            raise _violation(f"opcode {opcode:#x} is reserved")
        if opcode >= _CLOSE:
            # "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be
            # fragmented." (§5.5)
            if not first & _FIN:
                raise _violation("a control frame is fragmented")
        elif opcode == _CONTINUATION:
            if self._opcode == _CONTINUATION:
                raise _violation("a continuation frame without a message to continue")
        elif self._opcode != _CONTINUATION:
            raise _violation("a new message begins inside a fragmented one")
        if first & _RSV1:
            # RFC 7692 §6: only the first frame of a data message may carry the "Per-Message
            # Compressed" bit.
            if self._inflater is None:
                raise _violation("RSV1 is set without an extension that defines it")
            if opcode == _CONTINUATION or opcode >= _CLOSE:
                raise _violation("RSV1 is set on a frame that does not start a data message")

    def _check_second_byte(self, second: int, length: int, opcode: int) -> None:
        """Judge MASK (RFC 6455 §5.1) and the length of a control frame (§5.5)."""
        if bool(second & _MASK) != self._masked:
            raise _violation(
                "a client's frame is not masked" if self._masked else "a server's frame is masked"
            )
        if opcode >= _CLOSE and length > 125:
            raise _violation("a control frame is longer than 125 bytes")

    def _extended_length(self, view: memoryview, position: int, short: bool) -> int:
        """Read the 16- or 64-bit length, -1 when it is not all there (RFC 6455 §5.2).

        "The minimal number of bytes MUST be used to encode the length", and "the most significant
        bit MUST be 0".
        """
        if len(view) - position < (2 if short else 8):
            if not short and len(view) > position and view[position] & 0x80:
                raise _violation("a frame's length has its most significant bit set")
            return -1
        if short:
            length = int.from_bytes(view[position : position + 2], "big")
            minimal = length > 125
        else:
            length = int.from_bytes(view[position : position + 8], "big")
            if length >> 63:
                raise _violation("a frame's length has its most significant bit set")
            minimal = length > 0xFFFF
        if not minimal:
            raise _violation("a frame's length is not encoded in the minimal number of bytes")
        return length

    def _check_size(self, length: int, *, compressed: bool) -> None:
        """Refuse a message that would grow too long, from the header alone (RFC 6455 §10.4)."""
        if not compressed and len(self._message) + length > self._max_message_size:
            raise RemoteProtocolError(
                CloseCode.MESSAGE_TOO_BIG,
                f"a message is longer than {self._max_message_size} bytes",
            )

    def _start_frame(self, first: int, opcode: int, length: int, key: bytes) -> None:
        """Note the data frame whose payload comes next, and begin a message if it begins one."""
        if opcode:
            self._opcode = opcode
            self._compressed = bool(first & _RSV1)
            self._fragments = self._received = 0
            self._decoder = _Utf8Decoder() if opcode == _TEXT and self._utf8 else None
        self._fragments += 1
        self._received += length
        # A fragment costs the sender few bytes and us work; so there may be many only if they carry
        # something: 4 MiB in fragments of 64 bytes are fine, endless empty ones are not.
        if self._fragments > 1024 + self._received // 32:
            raise RemoteProtocolError(
                CloseCode.POLICY_VIOLATION, "a message has too many fragments for its size"
            )
        self._fin = bool(first & _FIN)
        self._key = key
        self._remaining = length

    def _read_payload(self, view: memoryview, position: int, messages: list[Message]) -> int:
        """Take what is there of a data frame's payload; finish the message if this was its last."""
        taken = min(self._remaining, len(view) - position)
        if taken:
            payload = bytes(view[position : position + taken])
            if self._key:
                payload = mask(payload, self._key)
                turn = taken % 4
                self._key = self._key[turn:] + self._key[:turn]
            if self._compressed:
                assert self._inflater is not None
                room = self._max_message_size - len(self._message)
                payload = self._inflater.inflate(payload, room)
            self._append(payload)
            self._remaining -= taken
        if not self._remaining:
            self._remaining = -1
            if self._fin:
                messages.append(self._finish_message())
        return position + taken

    def _append(self, payload: bytes) -> None:
        """Add a piece to the message; text must be UTF-8 as far as it has come (RFC 6455 §8.1)."""
        if self._decoder is not None:
            try:
                self._decoder.decode(payload)
            except UnicodeDecodeError as exc:
                raise _invalid_utf8() from exc
            # The decoder is content with the first two bytes of an encoded surrogate; §8.1 is not.
            waiting = self._decoder.getstate()[0]
            if waiting[:1] == b"\xed" and waiting[1:2] >= b"\xa0":
                raise _invalid_utf8()
        self._message += payload

    def _finish_message(self) -> Message:
        """Build the message whose last frame is complete, and be ready for the next."""
        if self._compressed:
            assert self._inflater is not None
            self._append(self._inflater.finish(self._max_message_size - len(self._message)))
        data = self._message
        type_ = _TYPES[self._opcode]
        text = self._decoder is not None
        self._opcode, self._compressed = _CONTINUATION, False
        self._message, self._decoder = bytearray(), None
        if not text:
            return Message(type_, bytes(data))
        return Message(type_, _decode(data))

    def _whole(self, opcode: int, payload: bytes) -> Message:
        """Build the message of an unfragmented, uncompressed frame that arrived in one read."""
        if opcode == _TEXT and self._utf8:
            return Message(MessageType.TEXT, _decode(payload))
        return Message(_TYPES[opcode], payload)

    def _control(self, opcode: int, payload: bytes) -> Message:
        """Build the message of a control frame; a Close must be valid (RFC 6455 §5.5.1, §7.4)."""
        if opcode == _CLOSE:
            self.finished = True
            _check_close(payload)
        return Message(_TYPES[opcode], payload)


def _check_close(payload: bytes) -> None:
    if len(payload) == 1:
        raise _violation("a Close frame has a payload of one byte")
    if payload:
        code = int.from_bytes(payload[:2], "big")
        if not may_be_sent(code):
            raise _violation(f"close code {code} may not be sent")
        _decode(payload[2:])


def _decode(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as exc:
        raise _invalid_utf8() from exc


def _violation(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(CloseCode.PROTOCOL_ERROR, reason)


def _invalid_utf8() -> RemoteProtocolError:
    return RemoteProtocolError(CloseCode.INVALID_FRAME_PAYLOAD_DATA, "text is not valid UTF-8")


def frame(
    opcode: int,
    payload: bytes | bytearray | memoryview,
    *,
    fin: bool = True,
    rsv1: bool = False,
    masking_key: bytes | None = None,
) -> bytes:
    """Build one frame (RFC 6455 §5.2).

    :param opcode: the frame's opcode
    :param payload: the payload; a memoryview must be C-contiguous and of single bytes
    :param fin: whether this is the last frame of its message
    :param rsv1: whether the message is compressed (RFC 7692 §6); only on its first frame
    :param masking_key: four unpredictable bytes from a client, ``None`` from a server (§5.3)
    """
    first = opcode | (_FIN if fin else 0) | (_RSV1 if rsv1 else 0)
    masked = _MASK if masking_key else 0
    length = len(payload)
    if length < 126:
        header = bytes((first, masked | length))
    elif length < 65536:
        header = struct.pack("!BBH", first, masked | 126, length)
    else:
        header = struct.pack("!BBQ", first, masked | 127, length)
    if masking_key:
        return b"".join((header, masking_key, mask(payload, masking_key)))
    return header + payload


def mask(data: bytes | bytearray | memoryview, key: bytes) -> bytes:
    """Apply a masking key of four bytes; doing it twice gives the data back (RFC 6455 §5.3)."""
    size = len(data)
    if size <= 1024:  # one xor of two long integers is the fastest up to about here
        keys = (key * (size // 4 + 1))[:size]
        both = int.from_bytes(data, sys.byteorder) ^ int.from_bytes(keys, sys.byteorder)
        return both.to_bytes(size, sys.byteorder)
    result = bytearray(data)
    for lane in range(4):
        result[lane::4] = result[lane::4].translate(_xor_table(key[lane]))
    return bytes(result)


@cache
def _xor_table(byte: int) -> bytes:
    return bytes(byte ^ other for other in range(256))
