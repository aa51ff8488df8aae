"""How a connection ends: the closing handshake, and what takes its place where there is none (RFC 6455 §7).

**The end comes after what came before it.** A peer's Close, and the answer to a peer's violation, take
effect at once when the application has nothing left to do; otherwise after the messages before it, and
after ``close_timeout`` in any case.

:class:`Closable` is a connection as far as its end is concerned; ``conn.py`` adds what happens before.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .config import ClientConfig, Config
from .deadlines import Deadline, Deadlines
from .events import CloseCode, MessageType, build_close
from .exceptions import ConnectionClosed, LocalProtocolError
from .inbox import Inbox
from .protocol import Move, Protocol, Role, State
from .transport import Transport

LINGER = 2.0  # seconds in which a peer may read our last words before the socket is closed


class ConnectionEnded(ConnectionClosed, anyio.EndOfStream):
    """The peer closed the connection in order; there is nothing more to receive."""


class ConnectionShut(ConnectionClosed, anyio.ClosedResourceError):
    """We closed the connection."""


class ConnectionBroken(ConnectionClosed, anyio.BrokenResourceError):
    """The connection broke, or was closed by the peer and cannot be written to."""


class Closable:
    """A connection as far as its end is concerned.

    Whatever the cause, it ends in one way: a Close where one can still be sent, the end of the transport,
    in order or by force but within a deadline, and :meth:`connection_lost`.
    """

    __slots__ = (
        "_answer",
        "_cause",
        "_config",
        "_deadlines",
        "_discarding",
        "_end",
        "_failed",
        "_gone",
        "_inbox",
        "_input_ended",
        "_is_gone",
        "_leaving",
        "_manual",
        "_our_close",
        "_protocol",
        "_room",
        "_transport",
    )

    def __init__(
        self,
        protocol: Protocol,
        transport: Transport,
        inbox: Inbox,
        deadlines: Deadlines,
        config: Config | ClientConfig,
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._inbox = inbox
        self._deadlines = deadlines
        self._config = config
        self._manual: frozenset[MessageType] = frozenset()  # the control frames that are handed over
        self._room: anyio.Event | None = None  # set when writers wait
        self._input_ended = False
        self._discarding = False  # the application closed; it wants no more messages
        self._is_gone = False
        self._gone: anyio.Event | None = None  # set when somebody waits for it
        self._cause: Exception | None = None
        self._our_close: tuple[int, str] | None = None
        self._end: tuple[float, Deadline] | None = None
        self._answer: Deadline | None = None  # when what ended the input is answered in any case
        self._leaving = False
        self._failed = False

    # --- where it stands --------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the connection stands between CONNECTING and CLOSED."""
        return self._protocol.state

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""
        return not self._protocol.can(Move.SEND) and self._protocol.state is not State.CONNECTING

    @property
    def close_code(self) -> int | None:
        """The close code of a connection that has ended or is ending, ``None`` before.

        The peer's, or the one this side failed the connection with; 1005 when the peer's Close had
        none, 1006 when the connection was lost without one (RFC 6455 §7.1.5).
        """
        return self._protocol.close_code

    @property
    def close_reason(self) -> str:
        """The reason that came with the close code (RFC 6455 §7.1.6)."""
        return self._protocol.close_reason

    @property
    def closed_by(self) -> Role | None:
        """Which end sent the first Close, ``None`` if none did."""
        return self._protocol.closed_by

    @property
    def is_gone(self) -> bool:
        """Whether the connection is gone and its transport closed."""
        return self._is_gone

    # --- the closing handshake: §7.1.2 and §7.1.3 -------------------------------------------------

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Do the closing handshake and wait until the connection is gone.

        Messages that arrive from now on are discarded. When the peer does not answer within
        ``close_timeout`` seconds the connection is aborted. Closing a closed connection only waits.

        :param code: 1000, or another code that may be sent (RFC 6455 §7.4)
        :param reason: at most 123 bytes of UTF-8
        :raises ValueError: when code or reason may not be sent; nothing has happened then
        :raises LocalProtocolError: during the opening handshake; raise ``Reject`` there

        Cancellation: the connection is closed all the same; only the waiting ends.
        """
        self.close_nowait(code, reason)
        await self.wait_gone()

    async def close_with_code(self, code: int) -> None:
        """Close with a code and no reason; see :meth:`close`."""
        await self.close(code)

    async def close_with_reason(self, code: int, reason: str) -> None:
        """Close with a code and a reason; see :meth:`close`."""
        await self.close(code, reason)

    def close_nowait(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Start the closing handshake without waiting for its end; see :meth:`close`."""
        build_close(code, reason)
        if self._protocol.state is State.CONNECTING:
            raise LocalProtocolError("the opening handshake is not done; raise Reject to refuse it")
        self._discarding = True
        self.discard_messages()
        if self._protocol.error is not None:
            self.finish_input()
        else:
            self._send_close(code, reason)

    async def send_eof(self) -> None:
        """Send a Close with code 1000; what the peer still sends can be received."""
        if self._protocol.state is State.CONNECTING:
            raise LocalProtocolError("the opening handshake is not done")
        self._send_close(CloseCode.NORMAL_CLOSURE, "")

    async def aclose(self) -> None:
        """Close with code 1000 and wait until the connection is gone; see :meth:`close`.

        Cancellation: the connection is aborted, as AnyIO asks of every resource.
        """
        try:
            if self._protocol.state is State.CONNECTING:
                self.abort()
                await self.wait_gone()
            else:
                await self.close()
        except anyio.get_cancelled_exc_class():
            self.abort()
            raise

    def abort(self, cause: Exception | None = None) -> None:
        """Cut the connection at once, without a closing handshake: code 1006.

        :param cause: what the errors of later calls name as their cause
        """
        if not self._is_gone:
            self._cause = self._cause or cause
            self._protocol.lost()
            self._wake_writers()
        self._transport.abort(cause)

    def fail(self, code: int, reason: str = "") -> None:
        """*Fail the connection* (RFC 6455 §7.1.7): a Close that says why, then the end."""
        self._inbox.end()
        self._failed = self._protocol.error is None
        self._transport.write(self._protocol.fail(code, reason))
        self._wake_writers()
        self._leave(LINGER, half_close=True, await_eof=True)

    def go_away(self, code: int, reason: str) -> None:
        """Send a Close because this end shuts down; what was received is still handed over."""
        self._send_close(code, reason)

    def leave(self, code: int, reason: str) -> None:
        """Close because the application has returned: what it did not receive is discarded."""
        self.discard_messages()
        self.finish_input()
        self._send_close(code, reason)

    def discard_messages(self) -> None:
        """Forget the messages that nobody will receive any more."""
        self._inbox.discard()
        if self._protocol.state is State.CLOSE_SENT:  # the peer's Close may be behind what we had no room for
            self.read_on()

    async def wait_gone(self) -> None:
        """Wait until the connection is gone and its transport closed."""
        if not self._is_gone:
            self._gone = self._gone or anyio.Event()
            await self._gone.wait()

    def _send_close(self, code: int, reason: str) -> None:
        if self._protocol.can(Move.SEND_CLOSE):
            self._our_close = code, reason
            self._transport.write(self._protocol.send_close(code, reason))
            self._closing_moved()

    def _closing_moved(self) -> None:
        """Go on with the closing handshake after a Close of ours, or of the peer's."""
        state = self._protocol.state
        if state is State.CLOSED:
            # §7.1.1: the server closes the TCP connection first, the client waits for it.
            is_client = self._protocol.role is Role.CLIENT
            self._leave(self._config.close_timeout, await_eof=is_client)
        elif state is State.CLOSE_SENT:
            self.read_on()
            self._end_by(self._config.close_timeout, self._close_timed_out)
        if state >= State.CLOSE_SENT:
            self._wake_writers()

    def _close_timed_out(self) -> None:
        self.abort(TimeoutError(f"the peer did not close within {self._config.close_timeout} seconds"))

    def _leave(self, timeout: float, *, half_close: bool = False, await_eof: bool = False) -> None:
        """Have the transport end in order within *timeout* seconds, and by force after that."""
        if not self._leaving:
            self._leaving = True
            self._transport.finish(half_close=half_close, await_eof=await_eof)
            self._end_by(timeout, self._transport.abort)

    def _end_by(self, timeout: float, callback: Callable[[], None]) -> None:
        """Set the time of the end; it may come earlier than was set before, and never later."""
        when = self._deadlines.poller.loop_time() + timeout
        if self._is_gone or (self._end is not None and self._end[0] <= when):
            return
        if self._end is not None:
            self._end[1].cancel()
        self._end = when, self._deadlines.call_later(timeout, callback)

    def read_on(self) -> None:
        """Have more of what the peer sends be dealt with."""
        self._transport.resume()

    # --- the end of what is received: the peer's Close, its violation, its silence ----------------

    def _end_input(self) -> None:
        """Note that the peer's Close, or its violation, is the last thing there is to receive."""
        self._input_ended = True
        self._inbox.end()
        if self._protocol.error is not None:
            self._cause = self._cause or self._protocol.error
            self._transport.pause()
        elif self._protocol.state is State.CLOSED:
            self._closing_moved()
            return
        if self._inbox.is_idle or self._discarding:
            self.finish_input()
        else:
            self._answer = self._deadlines.call_later(self._config.close_timeout, self.finish_input)

    def finish_input(self) -> None:
        """Answer what ended the input, once the messages before it are dealt with (or never will be)."""
        if self._is_gone or self._protocol.state is State.CLOSED or self._leaving:
            return
        if self._protocol.error is not None:
            self.fail(self._protocol.error.code, self._protocol.error.reason)
        elif self._protocol.state is State.CLOSE_RECEIVED:
            if MessageType.CLOSE in self._manual:
                self._leave(self._config.close_timeout)
            else:
                self._transport.write(self._protocol.answer_close())
                self._closing_moved()

    def eof_received(self) -> None:
        """Note that the peer will send nothing more; without a Close that breaks the connection."""
        if self._protocol.state is not State.CLOSE_RECEIVED and self._protocol.error is None:
            self.abort(EOFError("the peer ended the stream without a Close"))

    def connection_lost(self, error: Exception | None) -> None:
        """Let everybody know that the connection is gone."""
        if self._protocol.state is not State.CLOSED:
            self._cause = self._cause or error
            self._protocol.lost()
        end = self._end[1] if self._end is not None else None
        for deadline in (end, self._answer):
            if deadline is not None:
                deadline.cancel()
        self._is_gone = True
        if self._gone is not None:
            self._gone.set()
        self._inbox.release()
        self._wake_writers()

    def _wake_writers(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    # --- what it means for those who use it -------------------------------------------------------

    def _closed_error(self, *, sending: bool) -> Exception:
        """Say why the connection cannot be used any more, in AnyIO's terms."""
        protocol = self._protocol
        if protocol.state is State.CONNECTING:
            return LocalProtocolError("the opening handshake is not done; write from after_init on")
        error: ConnectionClosed
        code, reason = protocol.close_code, protocol.close_reason
        if code is None:
            code, reason = self._our_close or (CloseCode.ABNORMAL_CLOSURE, "")
        ours = protocol.closed_by is protocol.role and not self._cause
        if self._discarding or (ours and (sending or self._failed)):
            error = ConnectionShut(code, reason)
        elif sending or self._cause is not None or code == CloseCode.ABNORMAL_CLOSURE:
            error = ConnectionBroken(code, reason)
        else:
            error = ConnectionEnded(code, reason)
        error.__cause__ = self._cause
        return error
