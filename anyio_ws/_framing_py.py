"""RFC 6455 §5 in Python: the reference for every other build of the framing.

Four names, and nothing else leaves this module: :class:`MessageReader` turns received bytes into
messages, :func:`frame` turns a payload into a frame, :func:`fragments` into several, :func:`mask` applies
a masking key. No stream, no clock, no state of the connection: what a Close *means* is the business of
``protocol.py``.
"""

from __future__ import annotations

import codecs
import math
import struct
import sys
from functools import cache
from typing import Literal, Protocol, TypeVar, overload

from .events import CloseCode, Message, MessageType, may_be_sent
from .exceptions import RemoteProtocolError

_CONTINUATION, _TEXT, _BINARY, _CLOSE = 0x0, 0x1, 0x2, 0x8
_KNOWN_OPCODES = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})
_TYPES = {int(type_): type_ for type_ in MessageType}
_FIN, _RSV1, _RSV2_RSV3, _OPCODE, _MASK, _LENGTH = 0x80, 0x40, 0x30, 0x0F, 0x80, 0x7F

_MESSAGE_COST = 128  # what a message is counted with beside its bytes
_MOST = 2**63 - 1  # the longest payload that a frame can declare (RFC 6455 §5.2)

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_WritableT = TypeVar("_WritableT", bytearray, memoryview)


class Inflater(Protocol):
    """What a reader needs to inflate compressed messages (RFC 7692); ``deflate.py`` has it."""

    def inflate(self, data: bytes, max_length: int) -> bytes:
        """Inflate one piece of a message into at most *max_length* bytes.

        When more would come out it returns more than that, one byte is enough, and the reader refuses the
        message: so text is judged up to the limit, however it was cut.

        :raises RemoteProtocolError: 1007 when the data is invalid
        """

    def finish(self, max_length: int) -> bytes:
        """Inflate what is left when a message is complete."""


class Buffers(Protocol):
    """Where a reader gets its storage for messages that do not arrive whole; ``buffers.py`` has pools."""

    def take(self, size: int) -> bytearray:
        """Return a buffer of *size* bytes or more, whatever they are; nobody else may use it now."""

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back to which nothing refers any more."""


class MessageReader:
    """Reassembles messages from the bytes of one direction of a connection.

    :param masked: whether every frame must be masked (a server's reader) or none may be (a client's)
    :param max_message_size: bytes of payload above which a message is refused, before memory is taken
    :param utf8: check that text is UTF-8 and deliver ``str``; otherwise text is delivered as ``bytes``
    :param inflater: inflates messages with RSV1 set; ``None`` when compression was not negotiated
    :param buffers: lends storage for messages that do not arrive whole; ``None`` for fresh memory. A
        buffer is as large as what has arrived, at most twice that, whatever length was declared
    :param view: deliver binary messages as a ``memoryview`` over a buffer from *buffers*, without a copy.
        Whoever gets the message releases the view when done, and gives ``view.obj`` back
    :param turn: have :meth:`feed` stop when it has given so many bytes of messages, each counted with 128
        bytes more; 0 for never. Many small messages, or a few that inflate to large ones, are much more
        than the bytes that they came in

    :ivar left: how many bytes at the end of what the last :meth:`feed` was given were not looked at, for
        want of a turn; they have to come again
    :ivar error: the first violation that was met; set together with the last messages before it
    :ivar finished: nothing more will be read: a Close frame was received, ``error`` is set, or the
        reader is closed
    :raises ValueError: when *max_message_size* is negative, or longer than any frame (2**63 - 1)
    """

    __slots__ = (
        "_buffers",
        "_compressed",
        "_decoder",
        "_fin",
        "_fragments",
        "_inflater",
        "_key",
        "_masked",
        "_max_message_size",
        "_opcode",
        "_pending",
        "_received",
        "_remaining",
        "_size",
        "_spent",
        "_storage",
        "_turn",
        "_utf8",
        "_view",
        "error",
        "finished",
        "left",
    )

    def __init__(
        self,
        *,
        masked: bool,
        max_message_size: int,
        utf8: bool = True,
        inflater: Inflater | None = None,
        buffers: Buffers | None = None,
        view: bool = False,
        turn: int = 0,
    ) -> None:
        if not 0 <= max_message_size <= _MOST:
            raise ValueError(f"max_message_size: 0 to 2**63 - 1 bytes, not {max_message_size}")
        self.error: RemoteProtocolError | None = None
        self.finished: bool = False
        self.left: int = 0
        self._turn = turn if turn > 0 else math.inf
        self._spent = 0  # bytes of messages that this call has given
        self._masked = masked
        self._max_message_size = max_message_size
        self._utf8 = utf8
        self._inflater = inflater
        self._buffers = buffers
        self._view = view
        self._pending = b""  # the start of a header or of a control frame, at most 130 bytes
        # The data frame whose payload is arriving; _remaining is -1 between frames.
        self._remaining = -1
        self._fin = True
        self._key = b""
        # The message that its fragments form; _opcode is 0 between messages.
        self._opcode = _CONTINUATION
        self._compressed = False
        self._storage = bytearray()  # what has arrived of it; from self._buffers unless it is empty
        self._size = 0
        self._fragments = 0
        self._received = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take the bytes of one read and return the messages that they complete, in order.

        Nothing of *data* is referred to afterwards. A violation does not raise: it ends the reading
        and is found in :attr:`error`, so that no message before it is lost.

        :raises TypeError: when *data* is not contiguous and bytes-like
        :raises MemoryError: when there is none left. This, and whatever else inflater or buffers raise,
            ends the reading
        """
        if self.finished:
            return []
        received = _contiguous(data, "data")
        view = memoryview(self._pending + received if self._pending else received)
        messages: list[Message] = []
        self._spent = self.left = 0
        try:
            self._pending = self._read(view, messages)
        except RemoteProtocolError as exc:
            # A new one, because the traceback of this one holds the caller's buffer.
            self.error = RemoteProtocolError(exc.code, exc.reason)
            self.close()
        except BaseException:
            self.close()
            raise
        return messages

    def close(self) -> None:
        """End the reading, and give back what an unfinished message has of *buffers*."""
        self.finished = True
        self._pending = b""
        self._release()

    def _read(self, view: memoryview, messages: list[Message]) -> bytes:
        """Read all frames that are there; return what more bytes are needed for."""
        position = 0
        while not self.finished:
            if self._remaining < 0:
                if self._spent >= self._turn:
                    self.left = len(view) - position
                    break
                after = self._read_header(view, position, messages)
                if after == position:
                    return bytes(view[position:])
                position = after
            if self._remaining >= 0:
                position = self._read_payload(view, position, messages)
                if self._remaining > 0:
                    break
        return b""

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
            messages.append(self._control(opcode, _mask(payload, key) if key else payload))
            return position + length
        if whole and opcode and first == _FIN | opcode:
            payload = bytes(view[position : position + length])
            messages.append(self._whole(opcode, _mask(payload, key) if key else payload))
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
        if not compressed and self._size + length > self._max_message_size:
            raise self._too_long()

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
                payload = _mask(payload, self._key)
                turn = taken % 4
                self._key = self._key[turn:] + self._key[:turn]
            if self._compressed:
                assert self._inflater is not None
                self._append_inflated(self._inflater.inflate(payload, self._max_message_size - self._size))
            else:
                self._append(payload)
            self._remaining -= taken
        if not self._remaining:
            self._remaining = -1
            if self._fin:
                messages.append(self._finish_message())
        return position + taken

    def _append_inflated(self, piece: bytes) -> None:
        """Add what came out of the inflater, as far as the message may be long (RFC 7692 §8)."""
        room = self._max_message_size - self._size
        if len(piece) > room:
            self._check_text(memoryview(piece)[:room])
            raise self._too_long()
        self._append(piece)

    def _append(self, piece: bytes) -> None:
        """Add a piece to the message."""
        self._store(piece)
        self._check_text(piece)

    def _check_text(self, piece: bytes | memoryview) -> None:
        """Text must be UTF-8 as far as it has come (RFC 6455 §8.1)."""
        if self._decoder is None:
            return
        try:
            self._decoder.decode(piece)
        except UnicodeDecodeError as exc:
            raise _invalid_utf8() from exc
        # The decoder is content with the first two bytes of an encoded surrogate; §8.1 is not.
        waiting = self._decoder.getstate()[0]
        if waiting[:1] == b"\xed" and waiting[1:2] >= b"\xa0":
            raise _invalid_utf8()

    def _finish_message(self) -> Message:
        """Build the message whose last frame is complete, and be ready for the next."""
        if self._compressed:
            assert self._inflater is not None
            self._append_inflated(self._inflater.finish(self._max_message_size - self._size))
        self._spent += _MESSAGE_COST + self._size
        opcode, text = self._opcode, self._decoder is not None
        self._opcode, self._compressed, self._decoder = _CONTINUATION, False, None
        if self._view and opcode == _BINARY:
            return Message(MessageType.BINARY, self._hand_over())
        with memoryview(self._storage) as whole, whole[: self._size] as payload:
            data = _decode(payload) if text else bytes(payload)
        self._release()
        return Message(_TYPES[opcode], data)

    def _store(self, piece: bytes) -> None:
        """Put a piece behind what is stored of the message."""
        start, self._size = self._size, self._size + len(piece)
        if self._buffers is None:
            self._storage += piece  # which grows in place: so there is never a second copy
            return
        if self._size > len(self._storage):
            larger = self._take(max(self._size, min(2 * len(self._storage), self._max_message_size)))
            larger[:start] = self._storage[:start]
            smaller, self._storage = self._storage, larger
            if smaller:
                self._buffers.give(smaller)
        self._storage[start : self._size] = piece

    def _take(self, size: int) -> bytearray:
        """Take a buffer; it must be what was asked for."""
        if self._buffers is None:
            return bytearray(size)
        buffer = self._buffers.take(size)
        if not isinstance(buffer, bytearray):
            raise TypeError(f"buffers: take() returned no bytearray but {type(buffer).__name__}")
        if len(buffer) < size:
            raise ValueError(f"buffers: take({size}) returned a buffer of {len(buffer)} bytes")
        return buffer

    def _release(self) -> None:
        """Have no storage any more."""
        storage, self._storage, self._size = self._storage, bytearray(), 0
        if storage and self._buffers is not None:
            self._buffers.give(storage)

    def _hand_over(self) -> memoryview:
        """Return the storage as the message that it holds; it is not the reader's any more."""
        storage, size = self._storage or self._take(0), self._size
        self._storage, self._size = bytearray(), 0
        return memoryview(storage)[:size]

    def _too_long(self) -> RemoteProtocolError:
        return RemoteProtocolError(
            CloseCode.MESSAGE_TOO_BIG, f"a message is longer than {self._max_message_size} bytes"
        )

    def _whole(self, opcode: int, payload: bytes) -> Message:
        """Build the message of an unfragmented, uncompressed frame that arrived in one read."""
        self._spent += _MESSAGE_COST + len(payload)
        if opcode == _TEXT and self._utf8:
            return Message(MessageType.TEXT, _decode(payload))
        if opcode == _BINARY and self._view:
            self._store(payload)
            return Message(MessageType.BINARY, self._hand_over())
        return Message(_TYPES[opcode], payload)

    def _control(self, opcode: int, payload: bytes) -> Message:
        """Build the message of a control frame; a Close must be valid (RFC 6455 §5.5.1, §7.4)."""
        self._spent += _MESSAGE_COST + len(payload)
        if opcode == _CLOSE:
            _check_close(payload)
            self.close()
        return Message(_TYPES[opcode], payload)


def _check_close(payload: bytes) -> None:
    if len(payload) == 1:
        raise _violation("a Close frame has a payload of one byte")
    if payload:
        code = int.from_bytes(payload[:2], "big")
        if not may_be_sent(code):
            raise _violation(f"close code {code} may not be sent")
        _decode(payload[2:])


def _decode(payload: bytes | memoryview) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError as exc:
        raise _invalid_utf8() from exc


def _violation(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(CloseCode.PROTOCOL_ERROR, reason)


def _invalid_utf8() -> RemoteProtocolError:
    return RemoteProtocolError(CloseCode.INVALID_FRAME_PAYLOAD_DATA, "text is not valid UTF-8")


def frame(
    opcode: int,
    payload: str | bytes | bytearray | memoryview,
    *,
    fin: bool = True,
    rsv1: bool = False,
    masking_key: bytes | None = None,
) -> bytes:
    """Build one frame (RFC 6455 §5.2).

    :param opcode: the frame's opcode
    :param payload: the payload; ``str`` is encoded, anything else must be contiguous and bytes-like
    :param fin: whether this is the last frame of its message
    :param rsv1: whether the message is compressed (RFC 7692 §6); only on its first frame
    :param masking_key: four unpredictable bytes from a client, ``None`` from a server (§5.3)

    :raises TypeError: when *payload* is neither ``str`` nor bytes-like
    :raises UnicodeEncodeError: when *payload* has a lone surrogate
    :raises ValueError: when *opcode* is not one of four bits, or *masking_key* not one of four bytes
    """
    if not 0 <= opcode <= _OPCODE:
        raise ValueError(f"opcode: 0 to 15, not {opcode}")
    data = payload.encode() if isinstance(payload, str) else _contiguous(payload, "payload")
    first = opcode | (_FIN if fin else 0) | (_RSV1 if rsv1 else 0)
    header = build_header(first, 0 if masking_key is None else _MASK, len(data))
    if masking_key is None:
        return header + data
    return b"".join((header, _check_key(masking_key, "masking_key"), _mask(data, masking_key)))


def fragments(
    opcode: int,
    payload: str | bytes | bytearray | memoryview,
    size: int,
    rsv1: bool,
    keys: bytes | None,
    /,
) -> bytes:
    """Build the frames of a message that is cut into fragments, one behind the other (RFC 6455 §5.4).

    :param opcode: the message's opcode, which its first frame has; the others are continuations
    :param payload: the message, as for :func:`frame`
    :param size: bytes of payload of each frame but the last, which may have less
    :param rsv1: whether the message is compressed; that is said on its first frame only (RFC 7692 §6.1)
    :param keys: a client's masking keys, four bytes for each frame; ``None`` from a server

    :raises TypeError: when *payload* is neither ``str`` nor bytes-like
    :raises UnicodeEncodeError: when *payload* has a lone surrogate
    :raises ValueError: when *opcode* is not one of four bits, *size* less than 1, or *keys* not one for
        each frame
    """
    if not 0 <= opcode <= _OPCODE:
        raise ValueError(f"opcode: 0 to 15, not {opcode}")
    if size < 1:
        raise ValueError(f"size: 1 byte or more, not {size}")
    data = memoryview(payload.encode() if isinstance(payload, str) else _contiguous(payload, "payload"))
    count = -(-len(data) // size) or 1
    if keys is not None and (type(keys) is not bytes or len(keys) != 4 * count):
        raise ValueError(f"keys: {count} of 4 bytes are needed, one for each frame")
    first = opcode | (_RSV1 if rsv1 else 0)
    parts: list[bytes | memoryview] = []
    for number in range(count):
        piece = data[number * size : (number + 1) * size]
        fin = _FIN if number == count - 1 else 0
        if keys is None:
            parts += build_header(first | fin, 0, len(piece)), piece
        else:
            key = keys[4 * number : 4 * number + 4]
            parts += build_header(first | fin, _MASK, len(piece)), key, _mask(piece, key)
        first = _CONTINUATION
    return b"".join(parts)


def build_header(first: int, masked: int, length: int) -> bytes:
    """Build the header of a frame up to its masking key (RFC 6455 §5.2).

    :param first: the first byte: FIN, RSV and opcode
    :param masked: the MASK bit, 0x80 or 0
    :param length: bytes of payload
    """
    if length < 126:
        return bytes((first, masked | length))
    if length < 65536:
        return struct.pack("!BBH", first, masked | 126, length)
    return struct.pack("!BBQ", first, masked | 127, length)


@overload
def mask(data: bytes | bytearray | memoryview, key: bytes, *, in_place: Literal[False] = False) -> bytes: ...


@overload
def mask(data: _WritableT, key: bytes, *, in_place: Literal[True]) -> _WritableT: ...


def mask(
    data: bytes | bytearray | memoryview, key: bytes, *, in_place: bool = False
) -> bytes | bytearray | memoryview:
    """Apply a masking key of four bytes; doing it twice gives the data back (RFC 6455 §5.3).

    :param data: what to mask, contiguous and bytes-like
    :param key: the masking key
    :param in_place: change *data* itself, which must be writable, and return it; no copy is made

    :raises TypeError: when *data* is not bytes-like, or not writable and it has to be
    :raises ValueError: when *key* is not of four bytes
    """
    _check_key(key, "key")
    plain = _contiguous(data, "data")
    if not in_place:
        return _mask(plain, key)
    view = memoryview(data)
    if view.readonly:
        raise TypeError(f"data: it is to be masked in place, and {type(data).__name__} is not writable")
    if plain:
        view.cast("B")[:] = _mask(plain, key)
    return data


def _mask(data: bytes | bytearray | memoryview, key: bytes) -> bytes:
    size = len(data)
    if size <= 1024:  # one xor of two long integers is the fastest up to about here
        keys = (key * (size // 4 + 1))[:size]
        both = int.from_bytes(data, sys.byteorder) ^ int.from_bytes(keys, sys.byteorder)
        return both.to_bytes(size, sys.byteorder)
    result = bytearray(data)
    for lane in range(4):
        result[lane::4] = result[lane::4].translate(_xor_table(key[lane]))
    return bytes(result)


def _check_key(key: bytes, name: str) -> bytes:
    if not isinstance(key, bytes):
        raise TypeError(f"{name}: bytes are needed, not {type(key).__name__}")
    if len(key) != 4:
        raise ValueError(f"{name}: 4 bytes are needed, not {len(key)}")
    return key


def _contiguous(data: bytes | bytearray | memoryview, name: str) -> bytes | bytearray | memoryview:
    """Return the data as something whose items are its bytes; it must be contiguous to have such."""
    if isinstance(data, bytes | bytearray):
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"{name}: a bytes-like object is needed, not {type(data).__name__}") from None
    if not view.c_contiguous:
        raise TypeError(f"{name}: a contiguous bytes-like object is needed")
    return view if view.format == "B" and view.ndim == 1 else view.tobytes()


@cache
def _xor_table(byte: int) -> bytes:
    return bytes(byte ^ other for other in range(256))
