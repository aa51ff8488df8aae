"""What is on the wire, built and taken apart without the help of any WebSocket library.

:class:`Frame` is data: it builds every frame, correct or not. :class:`Receiver` is strict: it takes what
an examined end sends and knows no mercy, since that end has no excuse for what it sends itself. A
:class:`Line` is one TCP connection; what it received before a reset stays readable.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import zlib
from collections import deque
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
MASK = b"\x37\xfa\x21\x3d"  # RFC 6455 §5.7
_TAIL = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.1


# --- frames -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A frame to send; the defaults make it a correct one.

    :ivar rsv: the three reserved bits as a number: RSV1 is 4
    :ivar masked: whether the frame is masked; as the role demands when ``None``
    :ivar form: bytes of extended length, 0, 2 or 8; the fewest possible when ``None``
    :ivar length: the payload length that the header declares; the true one when ``None``
    :ivar deflated: compress the payload with the connection's context, and set RSV1 on the first frame
    """

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    masked: bool | None = None
    form: int | None = None
    length: int | None = None
    key: bytes = MASK
    deflated: bool = False

    def encode(self, is_client: bool) -> tuple[bytes, bytes]:
        """Return header and payload as they are sent."""
        masked = is_client if self.masked is None else self.masked
        length = len(self.payload) if self.length is None else self.length
        form = self.form
        if form is None:
            form = 0 if length < 126 else 2 if length < 65_536 else 8
        short = {0: length, 2: 126, 8: 127}[form]
        header = bytes([self.fin << 7 | self.rsv << 4 | self.opcode, masked << 7 | short])
        header += length.to_bytes(form, "big") if form else b""
        if not masked:
            return header, self.payload
        return header + self.key, apply_mask(self.payload, self.key)


def apply_mask(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask (RFC 6455 §5.3)."""
    stream = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(payload), "big")


def close_payload(code: int | None, reason: bytes = b"") -> bytes:
    """Return the payload of a Close (RFC 6455 §5.5.1)."""
    return b"" if code is None else code.to_bytes(2, "big") + reason


def accept_of(key: str) -> str:
    """Compute ``Sec-WebSocket-Accept`` (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


def may_be_sent(code: int) -> bool:
    """Tell whether a Close may carry this code (RFC 6455 §7.4 and the registry of IANA)."""
    return code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code <= 4999


# --- compression --------------------------------------------------------------------------------------


@dataclass
class Codec:
    """Both directions of permessage-deflate as negotiated (RFC 7692 §7)."""

    send_bits: int = 15
    receive_bits: int = 15
    send_takeover: bool = True
    receive_takeover: bool = True

    def __post_init__(self) -> None:
        self._compressor: zlib._Compress | None = None
        self._decompressor: zlib._Decompress | None = None

    def compress(self, data: bytes, *, fin: bool = True) -> bytes:
        """Compress a message, or a fragment of one."""
        if self._compressor is None:
            self._compressor = zlib.compressobj(wbits=-max(self.send_bits, 9))
        out = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if fin and not self.send_takeover:
            self._compressor = None
        return out[: -len(_TAIL)] if fin else out

    def inflate(self, data: bytes) -> bytes:
        """Inflate a whole message.

        :raises zlib.error: when it is not valid, or refers to more than the window that was negotiated
        """
        if self._decompressor is None:
            self._decompressor = zlib.decompressobj(wbits=-max(self.receive_bits, 8))
        # zlib looks into its window, which has the negotiated size, only for what earlier calls gave out.
        step = 64 if self.receive_bits < 15 else 0
        out, rest = b"", data + _TAIL
        while rest and not self._decompressor.eof:
            out += self._decompressor.decompress(rest, step)
            rest = self._decompressor.unconsumed_tail
        if self._decompressor.eof or not self.receive_takeover:
            self._decompressor = None
        return out


# --- what the examined end sends ----------------------------------------------------------------------


class Receiver:
    """Takes the frames of the examined end apart, and notes whatever is wrong with them.

    :ivar messages: whole data messages, as opcode and data
    :ivar pongs: the payloads of Pongs
    :ivar pings: payloads of Pings that are not answered yet
    :ivar closes: the Close frames, each as code (``None`` without one) and reason
    :ivar masks: the masking keys of its frames, in order
    :ivar violation: what the examined end did that no end may do, ``""`` if nothing
    """

    def __init__(self, *, from_client: bool, codec: Codec | None = None) -> None:
        self.codec = codec
        self.messages: deque[tuple[int, bytes]] = deque()
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []
        self.closes: list[tuple[int | None, bytes]] = []
        self.masks: list[bytes] = []
        self.violation = ""
        self._from_client = from_client
        self._buffer = bytearray()
        self._opcode: int | None = None  # of the fragmented message that is open
        self._compressed = False
        self._parts = b""

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        self._buffer += data
        while not self.violation and (size := self._frame_size()) <= len(self._buffer):
            frame = bytes(self._buffer[:size])
            del self._buffer[:size]
            self.violation = self._take(frame)

    @property
    def torn(self) -> bool:
        """Whether the bytes so far end inside a frame."""
        return bool(self._buffer)

    def _frame_size(self) -> int:
        """Return how many bytes the next frame has, or how many are needed to tell."""
        if len(self._buffer) < 2:
            return 2
        short = self._buffer[1] & 127
        form = {126: 2, 127: 8}.get(short, 0)
        head = 2 + form + (4 if self._buffer[1] & 128 else 0)
        if len(self._buffer) < head:
            return head
        return head + (int.from_bytes(self._buffer[2 : 2 + form], "big") if form else short)

    def _take(self, frame: bytes) -> str:
        """Take one frame; return what is wrong with it."""
        fin, rsv, opcode, short = frame[0] >> 7, frame[0] >> 4 & 7, frame[0] & 15, frame[1] & 127
        masked = frame[1] >> 7
        form = {126: 2, 127: 8}.get(short, 0)
        payload = frame[2 + form :]
        if masked:
            self.masks.append(payload[:4])
            payload = apply_mask(payload[4:], payload[:4])
        if self.closes:
            return f"sent a frame with opcode {opcode} after its Close (§5.5.1)"
        if masked != self._from_client:
            return "sent a masked frame (§5.1)" if masked else "sent a frame without a mask (§5.1)"
        if form and len(payload) < (126 if form == 2 else 65_536):
            return "sent a length that is not minimal (§5.2)"
        if opcode >= 8:
            return self._take_control(opcode, payload, bool(fin and not rsv))
        return self._take_data(opcode, payload, fin, rsv)

    def _take_control(self, opcode: int, payload: bytes, is_plain: bool) -> str:
        if not is_plain or len(payload) > 125:
            return "sent a control frame that is fragmented, too long, or has reserved bits set (§5.5)"
        if opcode == PONG:
            self.pongs.append(payload)
        elif opcode == PING:
            self.pings.append(payload)
        elif opcode == CLOSE:
            return self._take_close(payload)
        else:
            return f"sent the reserved opcode {opcode} (§5.2)"
        return ""

    def _take_close(self, payload: bytes) -> str:
        code = int.from_bytes(payload[:2], "big") if payload else None
        self.closes.append((code, payload[2:]))
        if len(payload) == 1:
            return "sent a Close with one byte (§5.5.1)"
        if code is not None and not may_be_sent(code):
            return f"sent the close code {code}, which may not be sent (§7.4)"
        return "" if _is_utf8(payload[2:]) else "sent a Close whose reason is not UTF-8 (§5.5.1)"

    def _take_data(self, opcode: int, payload: bytes, fin: int, rsv: int) -> str:
        if opcode > BINARY:
            return f"sent the reserved opcode {opcode} (§5.2)"
        if (opcode == CONTINUATION) != (self._opcode is not None):
            return "sent fragments out of order (§5.4)"
        if rsv and (rsv != 4 or self.codec is None or opcode == CONTINUATION):
            return "set a reserved bit (§5.2)"
        if opcode != CONTINUATION:
            self._opcode, self._compressed, self._parts = opcode, bool(rsv), b""
        self._parts += payload
        if not fin:
            return ""
        assert self._opcode is not None
        opcode, self._opcode = self._opcode, None
        try:
            data = self.codec.inflate(self._parts) if self.codec and self._compressed else self._parts
        except zlib.error:
            return "sent a message that cannot be inflated as negotiated (RFC 7692 §7.2)"
        self.messages.append((opcode, data))
        return "sent text that is not UTF-8 (§8.1)" if opcode == TEXT and not _is_utf8(data) else ""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- a TCP connection ---------------------------------------------------------------------------------


class Line:
    """A TCP connection whose two directions do not disturb each other.

    A send that fails raises nothing: what the examined end made of it is seen in what it sends.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, host: str, port: int) -> Line:
        """Connect.

        :raises OSError: when nobody listens
        """
        loop = asyncio.get_running_loop()
        error = OSError(f"{host} has no address")
        for family, kind, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
            except BaseException as exc:
                sock.close()
                if not isinstance(exc, OSError):
                    raise
                error = exc
            else:
                return cls(sock)
        raise error

    async def send(self, data: bytes) -> bool:
        """Send bytes, as far as the other end takes them; return whether it took all."""
        try:
            await self._loop.sock_sendall(self.sock, data)
        except OSError:
            return False
        return True

    async def send_bytewise(self, data: bytes) -> None:
        """Send bytes one by one; if there are very many, in a thousand pieces."""
        step = max(1, len(data) // 1_000)
        for i in range(0, len(data), step):
            if not await self.send(data[i : i + step]):
                return
            await asyncio.sleep(0)

    async def receive(self) -> bytes:
        """Return what has come, ``b""`` at the end of the stream.

        :raises OSError: after a reset
        """
        return await self._loop.sock_recv(self.sock, 65_536)

    def end(self) -> None:
        """Send the end of the stream; receiving goes on."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
