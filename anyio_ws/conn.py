"""A connection: one protocol machine over one transport, with an inbox, an outbox and deadlines.

:class:`Conn` is the same for servers and clients, asyncio and Trio. Two rules carry it:

* **Received bytes are dealt with where they arrive**, in one synchronous step: control frames are
  answered there, whatever the application is doing, and messages go to the inbox.
* **A write encodes and hands over in one synchronous step.** It waits, if it must, *before* that. So
  frames never interleave, and a cancelled write has sent its message whole or not at all.

How it ends stands in ``closing.py``.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import anyio
from anyio import TypedAttributeSet, typed_attribute
from anyio.abc import ObjectStream

from . import views
from .buffers import BufferPool, ConnectionBuffers, MessageStorage
from .closing import Closable, ConnectionEnded, ConnectionShut
from .config import ClientConfig, Config
from .deadlines import Deadline, Deadlines
from .deflate import Deflater, Inflater, Parameters, build_codec
from .events import CloseCode, Message, MessageType
from .exceptions import LocalProtocolError
from .framing import WHOLE, Frame, writable_bytes
from .from_thread import FromThread
from .inbox import Hook, Inbox
from .pings import Pings
from .protocol import Move, Protocol, Role, State, masking_key
from .transport import READ_MOST, READ_SIZE, Address, Transport, without_frames
from .write_buffer import WriteBuffer

logger: logging.Logger = logging.getLogger("anyio_ws")

_HELD_UP = 0.01  # seconds; an event loop that is later than that was held up
_HEADERS = 4_096  # bytes that a read may have beside one message
_TURN = 16_384  # bytes of messages, each counted with 128 more, after which others get their turn
_WRITER_SIZE = 1_024  # bytes that a write buffer begins with where there are no pools
_MISTAKES = (LocalProtocolError, TypeError, ValueError)  # the caller's
_ids = itertools.count(1)


class WebSocketAttribute(TypedAttributeSet):
    """AnyIO's typed attributes of a connection: ``conn.extra(WebSocketAttribute.subprotocol)``."""

    #: the subprotocol that was agreed on, or ``None``
    subprotocol: str | None = typed_attribute()
    #: the close code of a connection that has ended or is ending, ``None`` before
    close_code: int | None = typed_attribute()
    #: the reason that came with it
    close_reason: str = typed_attribute()


_ATTRIBUTES = tuple(WebSocketAttribute.__annotations__)


class _Silence(NamedTuple):
    """What has followed a keepalive Ping so far: nothing.

    :ivar signs: how many signs of life there had been when it was sent
    :ivar until: when there must be another
    :ivar is_extended: whether the peer was given longer
    """

    signs: int
    until: float
    is_extended: bool = False


class Conn(Closable, ObjectStream["str | bytes"]):
    """A WebSocket connection.

    It is an AnyIO object stream of text (``str``) and binary (``bytes``) messages, and can be iterated.
    Any number of tasks may write; one may receive at a time.

    :ivar id: a number that no other connection of this process has
    """

    _turn = _TURN

    __slots__ = (
        "_buffers",
        "_compression",
        "_eof",
        "_has_turn",
        "_lane",
        "_ping_due",
        "_pings",
        "_silence",
        "_subprotocol",
        "_tick",
        "id",
    )

    def __init__(
        self,
        role: Role,
        transport: Transport,
        deadlines: Deadlines,
        config: Config | ClientConfig,
        buffers: ConnectionBuffers | None = None,
    ) -> None:
        self.id: int = next(_ids)
        self._buffers = buffers
        protocol = Protocol(
            role,
            max_message_size=config.max_message_size,
            utf8=config.utf8 == "strict",
            buffers=buffers,
            view=config.message_view,
            turn=self._turn,
        )
        inbox = Inbox(transport, deadlines.poller, config.inbox_size, self, buffers)
        super().__init__(protocol, transport, inbox, deadlines, config)
        self._lane = transport.lane
        transport.receiver = self
        transport.read_size = max(READ_SIZE, min(config.max_message_size + _HEADERS, READ_MOST))
        self._subprotocol: str | None = None
        self._compression: Parameters | None = None
        self._has_turn = False  # it is to come
        self._eof = False  # it comes after what was not looked at yet
        self._pings: Pings | None = None  # made for the first Ping or Pong
        self._tick: Deadline | None = None  # when the keepalive has something to do
        self._ping_due = -math.inf  # the first tick is for a Ping
        self._silence: _Silence | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state.name}>"

    # --- what it is -------------------------------------------------------------------------------

    @property
    def remote_address(self) -> Address:
        """Where the peer is: ``(host, port)``, the path of a Unix socket, or ``""``."""
        return self._transport.remote_address

    @property
    def local_address(self) -> Address:
        """Where this end is, in the same forms."""
        return self._transport.local_address

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on, ``None`` for none (RFC 6455 §1.9)."""
        return self._subprotocol

    @property
    def compression(self) -> Parameters | None:
        """What was negotiated about compression, ``None`` when messages are not compressed (RFC 7692)."""
        return self._compression

    @property
    def latency(self) -> float | None:
        """The round-trip time of the last answered ping in seconds, ``None`` before there was one."""
        return None if self._pings is None else self._pings.latency

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes: those of :class:`WebSocketAttribute`, and of the stream below."""
        attributes: Mapping[Any, Callable[[], Any]] = self._transport.extra_attributes
        own = {getattr(WebSocketAttribute, name): partial(getattr, self, name) for name in _ATTRIBUTES}
        return {**attributes, **own}

    @property
    def from_thread(self) -> FromThread:
        """The same connection for other threads: ``conn.from_thread.write("hello")`` blocks its thread."""
        closed = partial(self._closed_error, sending=True)
        return FromThread(self, self._deadlines.thread, closed)

    # --- writing: RFC 6455 §6.1 -------------------------------------------------------------------

    async def write(self, data: str, *, compress: bool = True) -> None:
        """Send a text message.

        Waits while more than ``outbox_size`` bytes wait to be sent, then takes the message in one step;
        a write that finds room does not yield to other tasks. It returns when the message has been
        taken, not when it has been received. More than 128 KiB go out in fragments (RFC 6455 §5.4), so that
        a Pong need not wait for all of it.

        :param data: the text
        :param compress: ``False`` to send it uncompressed, whatever was negotiated: who can mix guesses
            into a message beside a secret, and sees how long it gets, finds the secret out (RFC 7692 §8)
        :raises ConnectionClosed: when the connection is closed, or closes while this waits
        :raises LocalProtocolError: during the opening handshake, or inside a fragmented message
        :raises TypeError: when *data* is not ``str``
        :raises UnicodeEncodeError: when *data* has a lone surrogate

        Cancellation: while this waits, nothing is sent; afterwards the message goes out whole.
        """
        if self._protocol.is_plain and self._lane.send_text(data):
            return
        if self._transport.full:
            await self._wait_for_room()
        try:
            self._transport.write(self._protocol.send_text(data, compress))
        except BaseException as exc:
            self._explain(exc)
            raise

    write_text = write

    async def write_bin(
        self, data: bytes | bytearray | memoryview, *, compress: bool = True, mask_in_place: bool = False
    ) -> None:
        """Send a binary message; waits, raises and is cancelled like :meth:`write`.

        :param data: any bytes-like object; it is not looked at any more when this returns
        :param compress: as for :meth:`write`
        :param mask_in_place: a client's: mask *data*, which must be writable, where it is, in place of a
            masked copy. *Its bytes are scrambled afterwards.* Nothing is compressed then, and a plain
            socket copies only what the system does not take at once.
        :raises TypeError: when *data* is not bytes-like, or with *mask_in_place* not writable
        :raises ValueError: with *mask_in_place* on a server, whose frames are not masked (RFC 6455 §5.1)

        Cancellation with *mask_in_place*: *data* is scrambled if and only if it was sent.
        """
        if mask_in_place:
            await self._write_in_place(data)
            return
        if self._protocol.is_plain and self._lane.send_bin(data):
            return
        if self._transport.full:
            await self._wait_for_room()
        try:
            self._transport.write(self._protocol.send_bin(data, compress))
        except BaseException as exc:
            self._explain(exc)
            raise

    async def _write_in_place(self, data: Any) -> None:
        if self._protocol.role is Role.SERVER:
            raise ValueError("mask_in_place: a server's frames are not masked (RFC 6455 §5.1)")
        writable_bytes(data)
        if self._transport.full:
            await self._wait_for_room()
        try:
            self._transport.write_from(*self._protocol.frame_in_place(data))
        except BaseException as exc:
            self._explain(exc)
            raise

    def write_nowait(
        self, data: str | bytes | bytearray | memoryview | Frame, *, compress: bool = True
    ) -> None:
        """Send a message without waiting: text for ``str``, binary for a bytes-like object.

        :param data: the message, or one that was framed ahead of time
        :param compress: as for :meth:`write`; a framed message knows for itself
        :raises anyio.WouldBlock: when more than ``outbox_size`` bytes wait to be sent; raises otherwise
            like :meth:`write`
        """
        protocol = self._protocol
        if protocol.is_plain:
            lane = self._lane
            if isinstance(data, str):
                is_sent = lane.send_text(data)
            else:
                is_sent = lane.send_framed(data.framed) if isinstance(data, Frame) else lane.send_bin(data)
            if is_sent:
                return
        if self._transport.full and not self.is_closed:
            raise anyio.WouldBlock
        try:
            if isinstance(data, str):
                self._transport.write(protocol.send_text(data, compress))
            elif isinstance(data, Frame):
                self._transport.write(protocol.send_prepared(data))
            else:
                self._transport.write(protocol.send_bin(data, compress))
        except BaseException as exc:
            self._explain(exc)
            raise

    async def write_framed(self, frame: Frame) -> None:
        """Send a message framed ahead of time; waits, raises and is cancelled like :meth:`write`.

        Where messages are compressed the frame is, once for all connections alike. That ends the context
        of this one, so that the next message is compressed as if it were the first.
        """
        if self._protocol.is_plain and self._lane.send_framed(frame.framed):
            return
        if self._transport.full:
            await self._wait_for_room()
        self._hand_over(self._protocol.send_prepared, frame)

    async def write_frame(
        self,
        opcode: int,
        data: bytes | bytearray | memoryview = b"",
        *,
        fin: bool = True,
        compress: bool = False,
    ) -> None:
        """Send one frame; waits, raises and is cancelled like :meth:`write`.

        :param opcode: an :class:`Opcode`
        :param data: the payload
        :param fin: ``False`` when fragments of the message follow (RFC 6455 §5.4)
        :param compress: with the first frame of a message: compress it and all its fragments, each so that
            it can be read when it arrives, where that was negotiated
        :raises LocalProtocolError: when the frame is not allowed here: a continuation without a message,
            another message inside a fragmented one
        :raises ValueError: when the frame is never allowed: an unknown opcode, a fragmented or too long
            control frame, a Close that may not be sent
        """
        if self._transport.full:
            await self._wait_for_room()
        self._hand_over(partial(self._protocol.send_frame, fin=fin, compress=compress), opcode, data)
        self._closing_moved()

    async def write_ping(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Send a Ping and do not wait for the Pong (RFC 6455 §5.5.2); otherwise like :meth:`write`.

        :raises ValueError: when *data* is longer than 125 bytes
        """
        if self._transport.full:
            await self._wait_for_room()
        self._hand_over(self._protocol.send_ping, data)

    async def write_pong(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Send a Pong (RFC 6455 §5.5.3); otherwise like :meth:`write_ping`."""
        if self._transport.full:
            await self._wait_for_room()
        self._hand_over(self._protocol.send_pong, data)

    async def ping(self) -> float:
        """Send a Ping, wait for its Pong, and return the round-trip time in seconds.

        :raises ConnectionClosed: when the connection is closed, or closes first

        Cancellation: the Pong is ignored when it comes.
        """
        if self._transport.full:
            await self._wait_for_room()
        pings = self._need_pings()
        ping = pings.make()
        self._hand_over(self._protocol.send_ping, ping.payload)
        pings.add(ping)
        try:
            await ping.answered.wait()
        finally:
            pings.forget(ping)
        if self._is_gone:
            raise self._closed_error(sending=True)
        return ping.latency

    def write_buffer(self, message_type: MessageType = MessageType.TEXT) -> WriteBuffer:
        """Write a message piece by piece, like a file, and send it with ``await wb.flush()``.

        ::

            async with conn.write_buffer(MessageType.TEXT) as wb:
                json.dump(obj, wb)
                await wb.flush()

        Leaving the block without a flush discards what was written. See :class:`WriteBuffer`.

        :param message_type: ``MessageType.TEXT`` or ``.BINARY``
        :raises ValueError: when it is another
        """
        buffers = self._buffers or ConnectionBuffers(MessageStorage(_WRITER_SIZE, None, BufferPool(0, 0)))
        return WriteBuffer(
            message_type,
            buffers.take_shared,
            buffers.give,
            buffers.size,
            wait_for_room=self._wait_for_room,
            hand_over=partial(self._hand_over, self._protocol.send_message),
        )

    async def send(self, item: str | bytes, *, compress: bool = True) -> None:
        """Send a message: text for ``str``, binary for a bytes-like object; like :meth:`write`."""
        if self._transport.full:
            await self._wait_for_room()
        self.write_nowait(item, compress=compress)

    async def _wait_for_room(self) -> None:
        while self._transport.full and not self.is_closed:
            if self._room is None:
                self._room = anyio.Event()
            await self._room.wait()

    def _hand_over(self, encode: Callable[..., bytes], *arguments: object) -> None:
        """Encode and hand over, in one step that nothing can come between."""
        try:
            self._transport.write(encode(*arguments))
        except BaseException as exc:
            self._explain(exc)
            raise

    def _explain(self, exc: BaseException) -> None:
        """Deal with an error of handing over.

        What the caller did wrong is found out before anything has happened. After any other error, such as
        no memory, nobody knows how much of the message was compressed, or sent: the connection is cut
        before the peer is told something that it would misunderstand.

        :raises ConnectionClosed: when that is the reason
        """
        if isinstance(exc, LocalProtocolError) and not self._protocol.can(Move.SEND):
            error = self._closed_error(sending=True)
            raise error from error.__cause__
        if not isinstance(exc, _MISTAKES):
            self.abort(exc if isinstance(exc, Exception) else None)

    # --- receiving: RFC 6455 §6.2 -----------------------------------------------------------------

    async def receive(self) -> str | bytes:
        """Return the next message: ``str`` for text, ``bytes`` for binary.

        :raises ConnectionEnded: when the peer closed the connection and everything was received
        :raises ConnectionShut: when this side closed the connection
        :raises ConnectionBroken: when the connection broke
        :raises anyio.BusyResourceError: when another task is receiving

        Cancellation: no message is lost; the next call returns it.
        """
        while True:
            message = await self._next()
            if message.type <= MessageType.BINARY:
                if isinstance(message.data, memoryview):
                    message = views.keep(message, self._buffers)
                    assert not isinstance(message.data, memoryview)
                return message.data

    async def read(self, timeout: float | None = None) -> Message | None:
        """Return the next message with its type, or ``None`` when none comes in time.

        Control frames are returned only where the configuration says that they are handed over
        (``handle_ping``, ``handle_pong``, ``handle_close``).

        :param timeout: seconds to wait; ``None`` waits as long as it takes

        Raises and is cancelled like :meth:`receive`.
        """
        with anyio.move_on_after(timeout):
            return views.keep(await self._next(), self._buffers)
        return None

    async def __anext__(self) -> str | bytes:
        """Return the next message; the iteration ends when the connection is closed in order.

        :raises ConnectionBroken: when the connection broke
        """
        try:
            return await self.receive()
        except (ConnectionEnded, ConnectionShut):
            raise StopAsyncIteration from None

    async def _next(self) -> Message:
        if self._protocol.state is State.CONNECTING:
            raise LocalProtocolError("the opening handshake is not done")
        message = await self._inbox.get()
        if message is None:
            self.finish_input()
            raise self._closed_error(sending=False)
        return message

    def dispatch_all(self, hook: Hook, *, by_data: bool = False) -> Awaitable[None]:
        """Give each message to *hook*, one at a time and in order, until the connection ends.

        :param hook: takes a :class:`Message`
        :param by_data: it takes the message's data instead

        Raises what *hook* raises; the end of the connection does not raise.
        """
        if self._config.message_view:
            hook, by_data = partial(views.call, hook, by_data, self._buffers), False
        return self._inbox.dispatch_all(hook, by_data)

    # --- what the two ends and the transport call ---------------------------------------------------

    def open(
        self,
        subprotocol: str | None,
        *,
        compression: Parameters | None = None,
        manual: frozenset[MessageType] = frozenset(),
        busy: bool = False,
        early: bytes = b"",
    ) -> None:
        """Begin, after the opening handshake.

        :param subprotocol: what was agreed on
        :param compression: what was agreed on
        :param manual: the control frames that are handed over, and not answered here
        :param busy: a hook is at work until :meth:`dispatch_all` begins
        :param early: bytes that came behind the head of the opening handshake
        """
        self._inbox.busy = busy
        self._subprotocol = subprotocol
        self._manual = manual
        self._compression = compression
        self._protocol.opened(self._build_codec())
        if self._inbox.is_direct and self._protocol.reader is not None:
            key = masking_key if self._protocol.role is Role.CLIENT else None
            self._lane.attach(self._protocol.reader, key, WHOLE)
        if self._config.ping_interval is not None:
            self._tick = self._deadlines.call_later(self._config.ping_interval, self._keep_alive)
        if early:
            self.data_received(early)
        if not self._inbox.ended and not self._inbox.is_full:
            self.read_on()

    def _build_codec(self) -> tuple[Deflater, Inflater] | None:
        if self._compression is None or self._config.compression is None:
            return None
        is_client = self._protocol.role is Role.CLIENT
        return build_codec(self._compression, self._config.compression, client=is_client)

    def data_received(self, data: bytes | memoryview) -> None:
        """Deal with received bytes: answer control frames, hand messages to the application."""
        protocol = self._protocol
        self._inbox.take(protocol.receive_data(data))
        if protocol.input_ended and not self._input_ended:
            self._end_input()
        elif protocol.rest:
            self._transport.pause()
            if not self._inbox.is_full:
                self.read_on()

    def put_off(self, rest: bytes) -> None:
        """Keep received bytes that the fast lane's reader has not looked at, and read no more."""
        self._protocol.rest = rest
        self._transport.pause()
        self.read_on()

    def read_on(self) -> None:
        """Have more of what the peer sends be dealt with: first what was read, which has its turn."""
        if not self._protocol.rest:
            self._transport.resume()
        elif not self._has_turn:
            self._has_turn = True
            self._deadlines.poller.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn = False
        try:
            self.catch_up()
        except Exception as exc:
            logger.exception("what was received could not be dealt with; the connection is cut")
            self.abort(without_frames(exc))

    def catch_up(self) -> None:
        """Look at more of what was read, as far as there is room for one turn; then read again."""
        if not self._protocol.rest or self._inbox.is_full:
            return
        self.data_received(b"")
        if self._protocol.rest or self._input_ended:
            return
        if self._eof:
            self.eof_received()
        elif not self._inbox.is_full:
            self._transport.resume()

    def messages_received(self, messages: list[Message]) -> None:
        """Deal with what received bytes came to, where the fast lane has fed them to the reader."""
        protocol = self._protocol
        protocol.note_end(messages)
        self._inbox.take(messages)
        if protocol.input_ended and not self._input_ended:
            self._end_input()

    def control_received(self, message: Message) -> bool:
        """Do what RFC 6455 §5.5 asks for, unless the application does; tell whether it does."""
        assert isinstance(message.data, bytes)
        pings = self._need_pings()
        if pings.come_too_fast():
            self._protocol.refuse(
                CloseCode.POLICY_VIOLATION,
                f"more than {self._config.max_control_rate} control frames in a second",
            )
        is_wanted = message.type in self._manual
        if message.type is MessageType.PONG:
            pings.match(message.data)
        elif message.type is MessageType.PING and not is_wanted:
            self._pong(message.data)
        return is_wanted

    def _need_pings(self) -> Pings:
        if self._pings is None:
            self._pings = Pings(self._deadlines.poller.time, self._config.max_control_rate)
        return self._pings

    def _pong(self, data: bytes) -> None:
        """Answer a Ping, before what waits to be sent (§5.5.3: "as soon as is practical")."""
        if self._protocol.can(Move.SEND):
            self._transport.write_soon(self._protocol.send_pong(data))

    def room_made(self) -> None:
        """Let those who wait for room go on."""
        self._wake_writers()

    def eof_received(self) -> None:
        """Note that the peer will send nothing more, after what was not looked at yet."""
        if self._protocol.rest:
            self._eof = True
        else:
            super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Let everybody know that the connection is gone."""
        while self._protocol.rest and not self._inbox.is_full:
            self.catch_up()
        super().connection_lost(error)
        if self._tick is not None:
            self._tick.cancel()
        if self._pings is not None:
            self._pings.release()

    # --- keepalive --------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        """Judge the silence after a Ping, or send the next one, whichever is due."""
        interval, timeout = self._config.ping_interval, self._config.ping_timeout
        now = self._deadlines.poller.loop_time()
        if self._silence is not None and now >= self._silence.until:
            self._silence = self._judge(self._silence, now)
        if interval is None or not self._protocol.can(Move.SEND):
            self._ping_due = math.inf
        elif now >= self._ping_due:
            self._transport.write_soon(self._protocol.send_ping(self._need_pings().keep_alive()))
            self._silence = self._begin_silence(now + timeout)
            self._ping_due = now + interval
        next_due = min(self._ping_due, math.inf if self._silence is None else self._silence.until)
        if next_due < math.inf:
            self._tick = self._deadlines.call_later(next_due - now, self._keep_alive)

    def _signs_of_life(self) -> int:
        """Count what tells that the peer lives: what was read, and what it took of what had to wait.

        A Ping may wait for some of that. Who takes it slowly, and has nothing to say, is not silent.
        """
        return self._transport.reads + self._inbox.resumptions + self._transport.taken

    def _begin_silence(self, until: float) -> _Silence:
        """Note that a Ping was sent; where nothing was heard since an earlier one, that one counts."""
        before, signs = self._silence, self._signs_of_life()
        if before is None or before.signs != signs:
            return _Silence(signs, until)
        return before._replace(until=min(before.until, until))

    def _judge(self, silence: _Silence, now: float) -> _Silence | None:
        """Abort the connection of a silent peer; return what it is still given.

        While reading is paused nothing can be heard, and that is our doing; and who has sent its Close
        sends no Pongs any more. Nor is anything heard while the event loop is held up, by a hook or by
        the machine: by as much as this comes late the peer has longer, once.
        """
        is_silent = self._signs_of_life() == silence.signs
        if not is_silent or not self._transport.reading or not self._protocol.can(Move.RECEIVE):
            return None
        late = now - silence.until
        if late > _HELD_UP and not silence.is_extended:
            return silence._replace(until=now + late, is_extended=True)
        timeout = self._config.ping_timeout
        self.abort(TimeoutError(f"nothing was heard from the peer {timeout} seconds after a ping"))
        return None
