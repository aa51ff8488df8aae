"""Goes through a case with the examined end, and judges.

The same for both ends: over an open connection a :class:`Player` sends what the steps say, keeps reading
beside that, and compares. It waits for what must come, never for a fixed time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from .case import Early, End, Grade, Judged, Message, Pong, Send, Step, Verdict, close
from .wire import CLOSE, PONG, Frame, Line, Receiver, close_payload


class Player:
    """One end of a connection to the examined end.

    :param line: the TCP connection, after the opening handshake
    :param receiver: what takes apart the examined end's frames
    :param is_client: whether this end is the client
    :param timeout: seconds to wait for what must come
    :param bytewise: send byte by byte
    :param cut: send in two parts, cut after so many bytes
    """

    def __init__(
        self,
        line: Line,
        receiver: Receiver,
        *,
        is_client: bool,
        timeout: float,
        bytewise: bool = False,
        cut: int | None = None,
    ) -> None:
        self.receiver = receiver
        self.grade = Grade.PASS
        self.detail = ""
        self._line = line
        self._is_client = is_client
        self._timeout = timeout
        self._bytewise, self._cut = bytewise, cut
        self._ended = ""  # how the examined end ended the TCP connection
        self._close_sent = False
        self._changed = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    # --- the connection ---------------------------------------------------------------------------

    async def play(self, steps: tuple[Step, ...], early: bytes = b"") -> Verdict:
        """Go through the steps, and close the connection in order if they do not end it.

        :param early: what came behind the opening handshake
        """
        self.receiver.feed(early)
        reading = asyncio.create_task(self._read())
        try:
            for step in steps:
                await self._take(step)
            if not any(isinstance(step, End | Early) for step in steps):
                if not self._close_sent:
                    await self._send(b"".join(close().encode(self._is_client)), is_close=True)
                await self._end(End(frozenset({1000})), "the closing handshake at the end: ")
        except Judged as judged:
            return judged.verdict
        finally:
            for task in (reading, self._sending):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        return Verdict(self.grade, self.detail)

    async def _read(self) -> None:
        """Take what the examined end sends; answer its Pings and its Close."""
        while True:
            try:
                data = await self._line.receive()
            except OSError:
                data = b""
                self._ended = "reset"
            if not data:
                self._ended = self._ended or "end"
                self._changed.set()
                return
            self.receiver.feed(data)
            await self._answer()
            self._changed.set()

    async def _answer(self) -> None:
        for payload in self.receiver.pings:
            if not self._close_sent:
                await self._line.send(b"".join(Frame(PONG, payload).encode(self._is_client)))
        self.receiver.pings.clear()
        if self.receiver.closes and not self._close_sent:
            self._close_sent = True
            code = self.receiver.closes[0][0]
            answer = Frame(CLOSE, close_payload(code)).encode(self._is_client)
            await self._stop_sending()
            await self._line.send(b"".join(answer))
        if self.receiver.closes and not self._is_client:
            self._line.end()  # §7.1.1: the server is the first to end the TCP connection

    async def _stop_sending(self) -> None:
        """Give up what is being sent: the other end does not want it any more."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()

    async def _send(self, data: bytes, *, is_close: bool = False) -> None:
        """Start to send; the other end may stop reading, so nobody waits for the last byte."""
        if self._sending is not None and not self._sending.done():
            await asyncio.wait({self._sending}, timeout=self._timeout)
        self._close_sent = self._close_sent or is_close
        if self._ended:
            return
        self._sending = asyncio.create_task(self._write(data))
        await asyncio.wait({self._sending}, timeout=0.01)

    async def _write(self, data: bytes) -> None:
        if self._bytewise:
            await self._line.send_bytewise(data)
            return
        if self._cut is not None:
            cut, self._cut = self._cut, max(0, self._cut - len(data)) or None
            if cut < len(data):
                await self._line.send(data[:cut])
                await asyncio.sleep(0.002)
                data = data[cut:]
        await self._line.send(data)

    async def _until(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until a condition holds, or the connection has ended; tell whether it holds."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._wait(condition), timeout or self._timeout)
        if self.receiver.violation:
            raise Judged(Grade.FAIL, self.receiver.violation)
        return bool(condition())

    async def _wait(self, condition: Callable[[], object]) -> None:
        while not (condition() or self._ended or self.receiver.violation):
            self._changed.clear()
            await self._changed.wait()

    # --- the steps --------------------------------------------------------------------------------

    async def _take(self, step: Step) -> None:
        if isinstance(step, Send):
            await self._send(self._encode(step), is_close=self._has_close(step))
        elif isinstance(step, Message):
            await self._message(step)
        elif isinstance(step, Pong):
            await self._pong(step)
        elif isinstance(step, Early):
            await self._early(step)
        elif isinstance(step, End):
            await self._end(step)
        else:
            if self._sending is not None:
                await asyncio.wait({self._sending}, timeout=self._timeout)
            self._line.end()

    @staticmethod
    def _has_close(step: Send) -> bool:
        return any(isinstance(item, Frame) and item.opcode == CLOSE for item in step.items)

    def _encode(self, step: Send) -> bytes:
        return b"".join(
            item if isinstance(item, bytes) else b"".join(self._deflate(item).encode(self._is_client))
            for item in step.items * step.times
        )

    def _deflate(self, frame: Frame) -> Frame:
        if not frame.deflated:
            return frame
        assert self.receiver.codec is not None
        payload = self.receiver.codec.compress(frame.payload, fin=frame.fin)
        return Frame(frame.opcode, payload, fin=frame.fin, rsv=4 if frame.opcode else 0)

    async def _pong(self, step: Pong) -> None:
        if await self._until(lambda: step.data in self.receiver.pongs):
            return
        detail = f"no Pong came: {self._state()}"
        if step.missing is Grade.FAIL or not (self.receiver.closes or self._ended):
            raise Judged(Grade.FAIL, detail)
        self._lower(step.missing, detail)

    async def _message(self, step: Message) -> None:
        await self._until(lambda: self.receiver.messages or self.receiver.closes)
        if not self.receiver.messages:
            grade = step.missing if self.receiver.closes or self._ended else Grade.FAIL
            detail = f"a message of {len(step.data)} bytes did not come: {self._state()}"
            if grade is Grade.FAIL:
                raise Judged(grade, detail)
            self._lower(grade, detail)
            return
        received = self.receiver.messages.popleft()
        if received != (step.opcode, step.data):
            raise Judged(
                Grade.FAIL, f"another message came: {_shown(received)} for {_shown((step.opcode, step.data))}"
            )

    async def _early(self, step: Early) -> None:
        header, payload = self._deflate(step.frame).encode(self._is_client)
        begun = header[: step.header] if step.header is not None else header + payload[: step.payload]
        await self._send(begun)
        expected = End(step.codes)
        patience = self._timeout if step.hopeless else self._timeout / 2
        if await self._until(lambda: self.receiver.closes or self._ended, patience):
            await self._end(expected)
            return
        if step.hopeless:
            raise Judged(Grade.FAIL, "nothing happened")
        await self._send((header + payload)[len(begun) :])
        await self._end(expected, "late: ")
        self._lower(Grade.WEAK, "noticed late, with the rest of the frame")

    def _lower(self, grade: Grade, detail: str) -> None:
        if grade > self.grade:
            self.grade, self.detail = grade, detail

    async def _end(self, step: End, prefix: str = "") -> None:
        """Wait for a Close and for the end of the TCP connection, and judge both."""
        came = await self._until(lambda: self.receiver.closes or self._ended or self.receiver.messages)
        if self.receiver.messages:
            raise Judged(step.accepted, f"{prefix}a message came: {_shown(self.receiver.messages[0])}")
        if self.receiver.closes:
            (code, reason), *_ = self.receiver.closes
            if code not in step.codes:
                wanted = " or ".join(str(each or "none") for each in sorted(step.codes, key=str))
                self._lower(Grade.WEAK, f"{prefix}close code {code or 'none'} ({reason!r}), not {wanted}")
        elif came:
            if step.bare is not Grade.PASS:
                how = "was reset" if self._ended == "reset" else "ended"
                self._lower(step.bare, f"{prefix}the TCP connection {how} without a Close")
        else:
            raise Judged(Grade.FAIL, f"{prefix}nothing happened: neither a Close nor the end of the stream")
        if not await self._until(lambda: self._ended):
            raise Judged(Grade.FAIL, f"{prefix}the TCP connection did not end after the Close")
        if self.receiver.messages:
            raise Judged(Grade.FAIL, f"{prefix}a message came: {_shown(self.receiver.messages[0])}")

    def _state(self) -> str:
        if self.receiver.closes:
            code, reason = self.receiver.closes[0]
            return f"a Close came, {code} {reason!r}"
        return {"": "nothing came", "reset": "the connection was reset"}.get(self._ended, "the stream ended")


def _shown(message: tuple[int, bytes]) -> str:
    data = message[1] if len(message[1]) <= 40 else message[1][:37] + b"..."
    return f"opcode {message[0]} {data!r} of {len(message[1])} bytes"
