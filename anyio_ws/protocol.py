"""RFC 6455 §6 and §7: sending, receiving and closing, as a machine without I/O.

Bytes in, messages out (:meth:`Protocol.receive_data`); intent in, bytes out (``send_*``). The machine
knows no stream, no clock and no waiting, and keeps no outbox: whoever drives it writes what it returns.
A long message is returned as several frames, between which control frames may be written (§5.4).

Its states are those of §7, one for each way in which the closing handshake can stand:

* ``CONNECTING`` until the opening handshake is done,
* ``OPEN`` while data may flow both ways,
* ``CLOSE_SENT`` after our Close: we send nothing more, and the peer's data still counts,
* ``CLOSE_RECEIVED`` after the peer's Close: it sends nothing more, and we may still finish,
* ``CLOSED`` when both Close frames have passed, or the connection is lost.

``TRANSITIONS`` is the whole machine: what may happen in each state, and the state that follows. A
missing key is the error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum, IntEnum
from functools import partial

from .deflate import Deflater, Inflater
from .events import CloseCode, Message, MessageType, Opcode, build_close, parse_close
from .exceptions import LocalProtocolError, RemoteProtocolError
from .framing import (
    WHOLE,
    Buffers,
    Frame,
    MessageReader,
    frame,
    frame_in_place,
    frame_message,
    to_bytes,
    writable_bytes,
)


class Role(Enum):
    """The two ends of a connection; only a client masks what it sends (RFC 6455 §5.1)."""

    CLIENT = "client"
    SERVER = "server"


class State(IntEnum):
    """How far the connection has come; the module's docstring explains each."""

    CONNECTING = 0
    OPEN = 1
    CLOSE_SENT = 2
    CLOSE_RECEIVED = 3
    CLOSED = 4


class Move(IntEnum):
    """What can happen to a connection."""

    OPENED = 0
    SEND = 1
    RECEIVE = 2
    SEND_CLOSE = 3
    RECEIVE_CLOSE = 4
    LOSE = 5


TRANSITIONS: dict[State, dict[Move, State]] = {
    State.CONNECTING: {
        Move.OPENED: State.OPEN,
        Move.LOSE: State.CLOSED,
    },
    State.OPEN: {
        Move.SEND: State.OPEN,
        Move.RECEIVE: State.OPEN,
        Move.SEND_CLOSE: State.CLOSE_SENT,
        Move.RECEIVE_CLOSE: State.CLOSE_RECEIVED,
        Move.LOSE: State.CLOSED,
    },
    State.CLOSE_SENT: {
        Move.RECEIVE: State.CLOSE_SENT,
        Move.RECEIVE_CLOSE: State.CLOSED,
        Move.LOSE: State.CLOSED,
    },
    State.CLOSE_RECEIVED: {
        Move.SEND: State.CLOSE_RECEIVED,
        Move.SEND_CLOSE: State.CLOSED,
        Move.LOSE: State.CLOSED,
    },
    State.CLOSED: {
        Move.LOSE: State.CLOSED,
    },
}


_TEXT, _BINARY = int(Opcode.TEXT), int(Opcode.BINARY)
_WHOLE_TEXT = WHOLE // 4  # characters that are one frame, whichever they are


class _KeyPool:
    """Masking keys: unpredictable, fresh for each frame (§5.3), taken from the system many at a time."""

    def __init__(self) -> None:
        self._keys: Iterator[bytes] = iter(())
        if hasattr(os, "register_at_fork"):  # a child must not use the keys that its parent uses
            os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> bytes:
        key = next(self._keys, None)
        while key is None:
            pool = os.urandom(1_024)
            self._keys = iter([pool[at : at + 4] for at in range(0, len(pool), 4)])
            key = next(self._keys, None)
        return key

    def _forget(self) -> None:
        self._keys = iter(())


masking_key: _KeyPool = _KeyPool()


class Protocol:
    """One end of a WebSocket connection.

    :param role: which end this is
    :param max_message_size: bytes of payload above which a received message is refused (1009)
    :param utf8: check received text, and deliver it as ``str``; ``bytes`` otherwise
    :param buffers: lends storage for messages that do not arrive whole; ``None`` for fresh memory
    :param view: deliver binary messages as views of that storage, which whoever gets them gives back
    :param turn: the bytes of messages, each counted with 128 more, after which :meth:`receive_data` keeps
        the rest of what it was given for its next call; 0 for never

    :ivar state: where the connection stands; only this class changes it
    :ivar close_code: the code of the first Close that ended the connection, ``None`` before: the
        peer's, or the one we failed the connection with; 1005 when the peer's had none, 1006 when the
        connection was lost without one (§7.1.5)
    :ivar close_reason: the reason of that Close (§7.1.6)
    :ivar closed_by: the role that sent the first Close, ``None`` if there was none
    :ivar error: what the peer did wrong, once it has; :meth:`fail` tells it
    :ivar input_ended: whether the peer's Close was received, or it did something wrong
    :ivar is_plain: whether a message can go out now as one frame, as it is
    :ivar reader: what received bytes are fed to, ``None`` before the opening handshake is done
    :ivar rest: received bytes that were not looked at yet; ``receive_data(b"")`` goes on with them
    """

    __slots__ = (
        "_build_reader",
        "_compressing",
        "_deflater",
        "_fragmenting",
        "_masks",
        "_may_receive",
        "_moves",
        "close_code",
        "close_reason",
        "closed_by",
        "error",
        "input_ended",
        "is_plain",
        "reader",
        "rest",
        "role",
        "state",
    )

    def __init__(
        self,
        role: Role,
        *,
        max_message_size: int,
        utf8: bool = True,
        buffers: Buffers | None = None,
        view: bool = False,
        turn: int = 0,
    ) -> None:
        self.role: Role = role
        self.state: State = State.CONNECTING
        self.close_code: int | None = None
        self.close_reason: str = ""
        self.closed_by: Role | None = None
        self.error: RemoteProtocolError | None = None
        self.input_ended: bool = False
        self.rest: bytes = b""
        self._moves = TRANSITIONS[State.CONNECTING]
        self._masks = role is Role.CLIENT
        # What is asked for once per message, so that it is not looked up each time.
        self._may_receive: bool = False
        self.is_plain: bool = False
        self._fragmenting = False
        self._compressing = False  # the fragmented message that is open
        self._deflater: Deflater | None = None
        self.reader: MessageReader | None = None  # made when it is known what was negotiated
        self._build_reader = partial(
            MessageReader,
            masked=role is Role.SERVER,
            max_message_size=max_message_size,
            utf8=utf8,
            buffers=buffers,
            view=view,
            turn=turn,
        )

    def _move(self, move: Move) -> None:
        try:
            self.state = self._moves[move]
        except KeyError:
            raise LocalProtocolError(f"{move.name} is not possible when {self.state.name}") from None
        self._moves = TRANSITIONS[self.state]
        self._may_receive = Move.RECEIVE in self._moves
        self._note_whether_plain()

    def _note_whether_plain(self) -> None:
        """Note whether a message can go out now as one frame, as it is."""
        may_send = Move.SEND in self._moves and not self._fragmenting
        self.is_plain = may_send and self._deflater is None

    def can(self, move: Move) -> bool:
        """Tell whether a move is possible in the present state."""
        return move in self._moves

    def opened(self, codec: tuple[Deflater, Inflater] | None = None) -> None:
        """Note that the opening handshake is done (§4.1, §4.2.2: "the connection is _Established_").

        :param codec: what messages are compressed and inflated with, where that was negotiated
        """
        self._deflater, inflater = codec or (None, None)
        self._move(Move.OPENED)
        self.reader = self._build_reader(inflater=inflater)
        del self._build_reader

    def lost(self) -> None:
        """Note that the connection is gone; without a Close received that is code 1006 (§7.1.5)."""
        if self.reader is not None:
            self.reader.close()
        self.rest = b""
        self._move(Move.LOSE)
        self.forget_context()
        if self.close_code is None:
            self.close_code = CloseCode.ABNORMAL_CLOSURE

    # --- receiving: §6.2 --------------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take received bytes; return the messages and control frames they complete, in order.

        When the peer violates the protocol the messages before that are returned and :attr:`error`
        is set; the driver then writes what :meth:`fail` returns. After a Close, and after an error,
        everything is discarded (§1.4, §7.1.7).

        :raises LocalProtocolError: before the opening handshake is done
        """
        if not self._may_receive:
            if self.state is State.CONNECTING:
                self._move(Move.RECEIVE)
            return []
        reader = self.reader
        assert reader is not None
        if self.rest:
            data, self.rest = b"".join((self.rest, data)), b""
        messages = reader.feed(data)
        if reader.left:
            self.rest = bytes(data[-reader.left :])
        if reader.finished:
            self.note_end(messages)
        return messages

    def note_end(self, messages: list[Message]) -> None:
        """Note the end of the input if the reader has met it: for who feeds :attr:`reader` past us.

        A reader that :meth:`lost` has ended has met none.

        :param messages: what :meth:`MessageReader.feed` has returned
        """
        reader = self.reader
        if self._may_receive and reader is not None and reader.finished and not self.input_ended:
            self.input_ended = True
            self.error = reader.error
            if self.error is None:
                self._receive_close(messages[-1])

    def refuse(self, code: int, reason: str) -> None:
        """Note that the peer does what its frames do not show, such as too much: a violation like others.

        Nothing more is read then; :meth:`fail` tells the peer.
        """
        if self.reader is not None and not self.input_ended:
            self.reader.close()
            self.rest = b""
            self.input_ended = True
            self.error = RemoteProtocolError(code, reason)

    def _receive_close(self, message: Message) -> None:
        """Note the peer's Close (§7.1.3); a failure of ours stays the reason of the end."""
        self._move(Move.RECEIVE_CLOSE)
        if self.close_code is None:
            self.close_code, self.close_reason = parse_close(message.data)
        if self.closed_by is None:
            self.closed_by = Role.SERVER if self.role is Role.CLIENT else Role.CLIENT

    # --- sending: §6.1 ----------------------------------------------------------------------------

    def send_text(self, data: str, compress: bool = True) -> bytes:
        """Frame a text message; a long one is cut into fragments (§5.4).

        :param compress: ``False`` to send it uncompressed, whatever was negotiated
        :raises LocalProtocolError: when nothing may be sent any more, or a fragmented message is open
        :raises TypeError: when *data* is not ``str``
        :raises UnicodeEncodeError: when *data* has a lone surrogate
        """
        if self.is_plain and type(data) is str:
            if len(data) <= _WHOLE_TEXT:
                return frame(_TEXT, data, masking_key=masking_key()) if self._masks else frame(_TEXT, data)
            if data.isascii():
                return frame_message(_TEXT, data, new_key=masking_key if self._masks else None)
        if not isinstance(data, str):
            raise TypeError(f"data: text is str, not {type(data).__name__}; write_bin takes bytes")
        return self._send_message(Opcode.TEXT, data.encode(), compress)

    def send_bin(self, data: bytes | bytearray | memoryview, compress: bool = True) -> bytes:
        """Frame a binary message; a long one is cut into fragments (§5.4).

        :param compress: ``False`` to send it uncompressed, whatever was negotiated
        :raises LocalProtocolError: when nothing may be sent any more, or a fragmented message is open
        :raises TypeError: when *data* is not bytes-like
        """
        if self.is_plain and type(data) is bytes and len(data) <= WHOLE:
            return frame(_BINARY, data, masking_key=masking_key()) if self._masks else frame(_BINARY, data)
        return self._send_message(Opcode.BINARY, to_bytes(data), compress)

    def frame_in_place(self, data: bytearray | memoryview) -> list[bytes | memoryview]:
        """Frame a binary message of a client by masking it where it is; it is not compressed.

        :return: for each frame its header, and a view of its masked data
        :raises LocalProtocolError: when nothing may be sent any more, or a fragmented message is open
        :raises TypeError: when *data* is not writable; in every case it is as it was then
        """
        view = writable_bytes(data)
        self._check_data(Opcode.BINARY, fin=True)
        return frame_in_place(Opcode.BINARY, view, masking_key)

    def send_message(self, type: MessageType, data: memoryview, compress: bool = True) -> bytes:
        """Frame a text or binary message from its bytes; that text is UTF-8 is up to the caller.

        :param compress: ``False`` to send it uncompressed, whatever was negotiated
        :raises LocalProtocolError: when nothing may be sent any more, or a fragmented message is open
        """
        return self._send_message(Opcode(type), data.tobytes(), compress)

    def send_prepared(self, prepared: Frame) -> bytes:
        """Return the bytes of a message framed ahead of time; a client masks it anew.

        :raises LocalProtocolError: when nothing may be sent any more, or a fragmented message is open
        """
        if self.role is Role.CLIENT:
            return self._send_message(prepared.opcode, prepared.payload, prepared.compress)
        self._check_data(prepared.opcode, fin=True)
        if self._deflater is not None and (compressed := prepared.compressed(self._deflater)) is not None:
            self._deflater.reset()  # the peer's window has moved by a message that ours has not seen
            return compressed
        return bytes(prepared)

    def send_ping(self, data: bytes | bytearray | memoryview = b"") -> bytes:
        """Frame a Ping (§5.5.2).

        :raises LocalProtocolError: when nothing may be sent any more
        :raises ValueError: when *data* is longer than 125 bytes
        """
        return self._send_control(Opcode.PING, to_bytes(data))

    def send_pong(self, data: bytes | bytearray | memoryview = b"") -> bytes:
        """Frame a Pong (§5.5.3); raises like :meth:`send_ping`."""
        return self._send_control(Opcode.PONG, to_bytes(data))

    def send_frame(
        self,
        opcode: int,
        data: bytes | bytearray | memoryview,
        *,
        fin: bool = True,
        compress: bool = False,
    ) -> bytes:
        """Frame anything that is allowed now: fragments in particular (§5.4), or a Close.

        That text is UTF-8 is up to the caller: a fragment may end inside a character.

        :param compress: compress the message that this data frame begins, all its fragments, where that
            was negotiated
        :raises LocalProtocolError: when the frame is not allowed in the present state
        :raises ValueError: when opcode or payload are never allowed
        """
        try:
            opcode = Opcode(opcode)
        except ValueError:
            raise ValueError(f"opcode: {opcode!r} is not defined by RFC 6455") from None
        payload = to_bytes(data)
        if opcode < Opcode.CLOSE:
            return self._send_fragment(opcode, payload, fin, compress)
        if not fin:
            raise ValueError("fin: a control frame cannot be fragmented (RFC 6455 §5.5)")
        if opcode is not Opcode.CLOSE:
            return self._send_control(opcode, payload)
        if not payload:
            return self._send_close(b"")
        code, reason = parse_close(payload)
        return self._send_close(build_close(code, reason))

    def _check_data(self, opcode: Opcode, *, fin: bool) -> None:
        """Check that a data frame may be sent; between fragments only their continuation may (§5.4)."""
        if Move.SEND not in self._moves:
            self._move(Move.SEND)
        if self._fragmenting is not (opcode is Opcode.CONTINUATION):
            raise LocalProtocolError(
                "a fragmented message is open; only its continuation may be sent"
                if self._fragmenting
                else "there is no fragmented message to continue"
            )
        self._fragmenting = not fin
        self._note_whether_plain()

    def _send_message(self, opcode: Opcode, payload: bytes, compress: bool) -> bytes:
        self._check_data(opcode, fin=True)
        shrunk = self._deflater.shrink(payload) if compress and self._deflater is not None else None
        data = payload if shrunk is None else shrunk
        new_key = masking_key if self._masks else None
        return frame_message(opcode, data, rsv1=shrunk is not None, new_key=new_key)

    def _send_fragment(self, opcode: Opcode, payload: bytes, fin: bool, compress: bool) -> bytes:
        self._check_data(opcode, fin=fin)
        if opcode is not Opcode.CONTINUATION:
            self._compressing = compress
        if self._deflater is None or not self._compressing:
            return self._frame(opcode, payload, fin=fin)
        payload = self._deflater.compress(payload, fin=fin)
        # RFC 7692 §6.1: RSV1 is set on the first fragment only.
        return self._frame(opcode, payload, fin=fin, rsv1=opcode is not Opcode.CONTINUATION)

    def forget_context(self) -> None:
        """Have the next message refer to none before it: one that was framed may not have been sent.

        Where the connection goes on after an error between framing and sending, this keeps the two ends
        of it in step: what the peer lacks is not referred to (RFC 7692 §7.2.2).
        """
        if self._deflater is not None:
            self._deflater.reset()

    def _send_control(self, opcode: Opcode, payload: bytes) -> bytes:
        if len(payload) > 125:
            raise ValueError(f"data: {len(payload)} bytes, a control frame holds at most 125 (RFC 6455 §5.5)")
        self._move(Move.SEND)
        return self._frame(opcode, payload)

    def _frame(self, opcode: Opcode, payload: bytes, *, fin: bool = True, rsv1: bool = False) -> bytes:
        key = masking_key() if self._masks else None
        return frame(opcode, payload, fin=fin, rsv1=rsv1, masking_key=key)

    # --- closing: §7 ------------------------------------------------------------------------------

    def send_close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> bytes:
        """Start the closing handshake, or answer the peer's Close (§7.1.2).

        :param code: a close code that may be sent, or 1005 for a Close without one
        :raises LocalProtocolError: when a Close was sent already, or the connection is not open
        :raises ValueError: when the code may not be sent, or the reason is longer than 123 bytes
        """
        empty = code == CloseCode.NO_STATUS_RCVD and not reason
        return self._send_close(b"" if empty else build_close(code, reason))

    def answer_close(self) -> bytes:
        """Answer the peer's Close with its own code (§5.5.1).

        :raises LocalProtocolError: when there is no Close to answer
        """
        if self.state is not State.CLOSE_RECEIVED:
            raise LocalProtocolError(f"there is no Close to answer when {self.state.name}")
        return self.send_close(self.close_code or CloseCode.NO_STATUS_RCVD)

    def fail(self, code: int, reason: str = "") -> bytes:
        """*Fail the WebSocket connection* (§7.1.7): the Close that says why, ``b""`` if one was sent.

        Where it starts the closing handshake, :attr:`close_code` is this code from then on, whatever the
        peer answers.

        :raises ValueError: when the code may not be sent, or the reason is longer than 123 bytes
        """
        if not self.can(Move.SEND_CLOSE):
            return b""
        data = self.send_close(code, reason)
        if self.state is State.CLOSE_SENT:
            self.close_code, self.close_reason = code, reason
        return data

    def _send_close(self, payload: bytes) -> bytes:
        self._move(Move.SEND_CLOSE)
        self.forget_context()  # §5.5.1: nothing is sent after a Close, so its memory can go
        if self.closed_by is None:
            self.closed_by = self.role
        return self._frame(Opcode.CLOSE, payload)
