"""The judge itself: what it takes from an examined end, what it refuses, and how it grades."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from conformance import http
from conformance.__main__ import main
from conformance.case import (
    DETAIL,
    Answer,
    Case,
    Grade,
    Judged,
    Message,
    Pong,
    Verdict,
    close,
    early,
    echoed,
    end,
    exactly,
    refuse,
    request,
    send,
    text,
)
from conformance.cases import faults
from conformance.cases.collisions import colliding
from conformance.check import Results, Target, check, run_case
from conformance.serve import Examiner
from conformance.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Codec, Frame, Receiver, accept_of

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def wire(*frames: Frame, is_client: bool = False) -> bytes:
    """Encode frames."""
    return b"".join(b"".join(frame.encode(is_client)) for frame in frames)


# --- the receiver -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "violation"),
    [
        ([Frame(TEXT, b"x", masked=True)], "masked"),
        ([Frame(TEXT, b"x", form=2)], "minimal"),
        ([Frame(BINARY, bytes(200), form=8)], "minimal"),
        ([Frame(TEXT, b"x", rsv=4)], "reserved bit"),
        ([Frame(TEXT, b"x", rsv=1)], "reserved bit"),
        ([Frame(3)], "reserved opcode"),
        ([Frame(11)], "reserved opcode"),
        ([Frame(PING, b"", fin=False)], "control frame"),
        ([Frame(PONG, bytes(126))], "control frame"),
        ([Frame(PING, b"", rsv=2)], "control frame"),
        ([Frame(CONTINUATION)], "out of order"),
        ([text("a", fin=False), text("b")], "out of order"),
        ([text(b"\xff")], "not UTF-8"),
        ([text(b"\xe2", fin=False), Frame(CONTINUATION, b"\x82")], "not UTF-8"),
        ([Frame(CLOSE, b"\x03")], "one byte"),
        ([close(1005)], "1005"),
        ([close(999)], "999"),
        ([close(5000)], "5000"),
        ([close(1000, b"\xff")], "reason"),
        ([close(1000), close(1000)], "after its Close"),
        ([close(1000), text("x")], "after its Close"),
    ],
)
def test_receiver_notes_a_violation(frames: list[Frame], violation: str) -> None:
    """What no server may send is noted, wherever the bytes are cut."""
    for step in (1, 1_000):
        receiver = Receiver(from_client=False)
        data = wire(*frames)
        for i in range(0, len(data), step):
            receiver.feed(data[i : i + step])
        assert violation in receiver.violation


def test_receiver_demands_masks_of_clients() -> None:
    """A client's frame without a mask is a violation, and one with a mask is none."""
    receiver = Receiver(from_client=True)
    receiver.feed(wire(text("right"), is_client=True))
    assert not receiver.violation
    receiver.feed(wire(text("wrong")))
    assert "without a mask" in receiver.violation


def test_receiver_takes_what_is_right() -> None:
    """Messages, fragments, control frames among them and a Close are taken apart."""
    receiver = Receiver(from_client=False)
    frames = [text("a\u20ac", fin=False), Frame(PING, b"p"), Frame(CONTINUATION, b"b"), Frame(PONG, b"q")]
    receiver.feed(wire(*frames, Frame(BINARY, bytes(70_000)), close(3000, b"bye")))
    assert not receiver.violation
    assert list(receiver.messages) == [(TEXT, "a\u20acb".encode()), (BINARY, bytes(70_000))]
    assert (receiver.pings, receiver.pongs, receiver.closes) == ([b"p"], [b"q"], [(3000, b"bye")])
    assert not receiver.torn


def test_receiver_inflates_as_negotiated() -> None:
    """A message that refers to what the negotiated window does not hold any more is a violation."""
    data = bytes(range(256)) * 8 + b"x" * 2_000 + bytes(range(256)) * 8
    for bits, violation in ((15, ""), (9, "inflated")):
        receiver = Receiver(from_client=False, codec=Codec(receive_bits=bits))
        receiver.feed(wire(Frame(BINARY, Codec(send_bits=15).compress(data), rsv=4)))
        assert violation in receiver.violation
        assert bool(receiver.violation) == bool(violation)


# --- the answer to an opening handshake ---------------------------------------------------------------

GOOD = [
    "HTTP/1.1 101 Switching Protocols",
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Accept: {accept_of(KEY)}",
]


def grade(lines: list[str], answer: Answer, more: str = "") -> Grade:
    """Judge an answer."""
    head = http.parse("\r\n".join([*lines, "", ""]).encode())
    try:
        http.judge(head, request(more=more), answer)
    except Judged as judged:
        return judged.verdict.grade
    return Grade.PASS


def test_good_101_is_good() -> None:
    """The answer of RFC 6455 §1.3 passes, and fails a case in which the request is to be refused."""
    assert grade(GOOD, Answer()) is Grade.PASS
    assert grade(GOOD, refuse()) is Grade.FAIL


@pytest.mark.parametrize(
    "lines",
    [
        ["HTTP/1.0 101 X", *GOOD[1:]],
        [*GOOD[:1], *GOOD[2:]],
        [*GOOD[:2], *GOOD[3:]],
        GOOD[:3],
        [*GOOD[:3], "Sec-WebSocket-Accept: x"],
        [*GOOD, GOOD[3]],
        [*GOOD, "Sec-WebSocket-Protocol: never-offered"],
        [*GOOD, "Sec-WebSocket-Extensions: permessage-deflate"],
        [*GOOD, "Content-Length: 5"],
    ],
)
def test_bad_101_fails(lines: list[str]) -> None:
    """A 101 that says too little or too much is a failure."""
    assert grade(lines, Answer()) is Grade.FAIL


def test_refusals_are_graded() -> None:
    """The right status passes, another is weak, one for a good request fails."""
    assert grade(["HTTP/1.1 400 X"], refuse()) is Grade.PASS
    assert grade(["HTTP/1.1 500 X"], refuse()) is Grade.WEAK
    assert grade(["HTTP/1.1 400 X"], Answer()) is Grade.FAIL
    assert grade(["HTTP/1.1 426 X"], refuse(headers=(("sec-websocket-version", "13"),))) is Grade.WEAK


def test_extensions_are_judged() -> None:
    """What a server accepts must have been offered, be valid, and confirm what was asked for."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n"

    def said(value: str, **answer: object) -> Grade:
        return grade([*GOOD, f"Sec-WebSocket-Extensions: {value}"], Answer(**answer), offer)  # type: ignore[arg-type]  # checked by the class

    assert said("permessage-deflate; server_max_window_bits=10") is Grade.PASS
    assert (
        said("permessage-deflate; server_max_window_bits=9", params=("server_max_window_bits=10",))
        is Grade.PASS
    )
    assert said("permessage-deflate", params=("server_max_window_bits=10",)) is Grade.FAIL
    assert said("permessage-deflate; server_max_window_bits=7") is Grade.FAIL
    assert said("permessage-deflate; client_max_window_bits=10") is Grade.FAIL
    assert said("permessage-deflate; unknown") is Grade.FAIL
    assert said("x-unknown") is Grade.FAIL
    assert said("permessage-deflate", extension=False) is Grade.FAIL
    assert grade(GOOD, Answer(extension=True), offer) is Grade.WEAK


# --- grading over a connection ------------------------------------------------------------------------

Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def erring(behave: Behave, answer: Sequence[str] = (*GOOD, "", "")) -> AsyncIterator[Target]:
    """Answer the opening handshake, rightly unless told otherwise, then let the connection do as it likes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write("\r\n".join(answer).encode())
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await behave(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        # Only who hangs is to be given up; on a busy machine the others may take a while.
        timeout = 0.2 if behave is hang else 10.0
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], timeout=timeout)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do nothing, and read everything."""
    await reader.read()


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the TCP connection once something has come."""
    await reader.read(1)


def sends(*frames: Frame) -> Behave:
    """Send frames once something has come, then the end of the stream."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(wire(*frames))
        writer.write_eof()
        await reader.read()

    return behave


VIOLATION = (send(Frame(3)), end(1002))
ECHO = echoed(text("hello"))
PINGED = (send(Frame(PING, b"p")), Pong(b"p", missing=Grade.PASS), end(1000))
SIX = (send(text("x"), times=6), *(Message(TEXT, b"x"),) * 6)


@pytest.mark.parametrize(
    ("behave", "steps", "expected"),
    [
        (hang, VIOLATION, Grade.FAIL),
        (hang, ECHO, Grade.FAIL),
        (leave, VIOLATION, Grade.WEAK),
        (leave, ECHO, Grade.FAIL),
        (sends(close(1002)), VIOLATION, Grade.PASS),
        (sends(close(1000)), VIOLATION, Grade.WEAK),
        (sends(close(1006)), VIOLATION, Grade.FAIL),
        (sends(text("x"), close(1002)), VIOLATION, Grade.FAIL),
        (sends(close(1002), close(1002)), VIOLATION, Grade.FAIL),
        (sends(text("other")), ECHO, Grade.FAIL),
        (sends(text("hello"), close(1000)), ECHO, Grade.PASS),
        (sends(close(1002)), (early(Frame(3), 1002, header=1),), Grade.PASS),
        (hang, (early(Frame(3), 1002, header=1),), Grade.FAIL),
        (hang, PINGED, Grade.FAIL),
        (sends(close(1000)), PINGED, Grade.PASS),
        (sends(Frame(PONG, b"p"), close(1000)), PINGED, Grade.PASS),
        (sends(close(1000)), (send(Frame(PING, b"p")), Pong(b"p"), end(1000)), Grade.FAIL),
        (sends(*[text("x")] * 6, close(1000)), SIX, Grade.PASS),
        (sends(*[text("x")] * 5, close(1000)), SIX, Grade.FAIL),
    ],
)
def test_errors_are_found(behave: Behave, steps: tuple[object, ...], expected: Grade) -> None:
    """A server that errs gets the grade that the error deserves."""

    async def judge() -> Verdict | None:
        async with erring(behave) as target:
            return await run_case(target, Case("close/x", "A fact.", "RFC", steps))  # type: ignore[arg-type]  # of the table above

    verdict = asyncio.run(judge())
    assert verdict is not None
    assert verdict.grade is expected, verdict.detail


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (["HTTP/1.1 500 X", "", "sorry"], Grade.PASS),
        (["HTTP/1.1 500 X", "", f"sorry: {DETAIL}"], Grade.FAIL),
        (["HTTP/1.1 500 X", f"X-Error: {DETAIL}", "", ""], Grade.FAIL),
        ([f"HTTP/1.1 500 {DETAIL}", "", ""], Grade.FAIL),
        (["HTTP/1.1 404 X", "", ""], Grade.WEAK),
        ([*GOOD, "", ""], Grade.FAIL),
    ],
)
def test_what_an_answer_must_not_tell_is_found(answer: list[str], expected: Grade) -> None:
    """The text is looked for in the whole answer, its body included."""

    async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(body.encode())

    async def judge() -> Verdict | None:
        async with erring(finish, [*head, ""]) as target:
            case = Case("policy/x", "A fact.", "H24", answer=replace(exactly(500), hidden=DETAIL))
            return await run_case(target, case)

    *head, body = answer
    verdict = asyncio.run(judge())
    assert verdict is not None
    assert verdict.grade is expected, verdict.detail


def test_only_a_server_that_errs_on_request_is_asked_to() -> None:
    """Cases about the server's own code are not run on one that is not said to err when it is told to."""

    async def examine(told: bool) -> Results:
        async with erring(sends(close(1000))) as target:
            cases = [case for case in faults.cases() if "timeout" not in case.needs]
            return await check(replace(target, echoes=False, faults=told), cases)

    assert set(asyncio.run(examine(False)).values()) == {None}
    assert set(asyncio.run(examine(True)).values()) == {Verdict(Grade.FAIL, "the request was accepted")}


def test_names_collide() -> None:
    """The names differ, in lower case too, are tokens, and have one hash."""
    for factor, count in ((31, 1_000), (33, 1_000)):
        names = [*colliding(factor, count)]
        assert len({name.lower() for name in names}) == count
        assert all(re.fullmatch(r"[a-z!~_]+", name) for name in names)
        hashes = {functools.reduce(lambda h, c: h * factor + ord(c), name, 0) for name in names}
        assert len(hashes) == 1


def test_client_that_is_through_has_its_last_verdict() -> None:
    """A client may leave at once: the cases that run are judged before the results are taken."""

    async def examine() -> Results:
        examiner = Examiner([Case("close/x", "A fact.", "RFC", ECHO)], timeout=5)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            serving = asyncio.create_task(examiner.serve(sock))
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(http.fill(request("GET /runCase?case=1 HTTP/1.1"), "a", 80, "/"))
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await examiner.settle()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        return examiner.results

    verdict = asyncio.run(examine())["close/x"]
    assert verdict is not None
    assert verdict.grade is Grade.FAIL


def test_server_that_cannot_be_examined_is_told_so() -> None:
    """A server that does not echo is not examined in vain; without need of echoes it can be."""

    async def examine(echoes: bool) -> Results:
        async with erring(sends(close(1002))) as target:
            return await check(replace(target, echoes=echoes), [Case("close/x", "A fact.", "RFC", VIOLATION)])

    with pytest.raises(ValueError, match=r"a plain connection to the server fails: .*; --no-echo"):
        asyncio.run(examine(True))
    assert asyncio.run(examine(False)) == {"close/x": Verdict(Grade.PASS)}


def test_nobody_who_listens_is_an_error_of_the_system() -> None:
    """No score is given for a server that is not there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        target = Target("127.0.0.1", sock.getsockname()[1])
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(check(target, []))


# --- the command line ---------------------------------------------------------------------------------


def test_command_line_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """``list`` says of each case what it demands, and where that is said."""
    assert main(["list", "--section", "control"]) == 0
    said = capsys.readouterr().out
    assert (
        "control/ping-125\n    A Ping with 125 bytes is answered by a Pong with the same. [RFC 6455" in said
    )
    assert "close/" not in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check", "http://127.0.0.1"], "a ws:// address is needed"),
        (["check", "ws://127.0.0.1", "--case", "no/case"], "no case for a server has been chosen"),
        (["serve", "--section", "http"], "no case for a client has been chosen"),
        (["autobahn", "--cases", "99"], "99: the Autobahn Testsuite has no such case"),
    ],
)
def test_command_line_says_what_cannot_be_run(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be run is told in one line, with exit code 2."""
    assert main(arguments) == 2
    assert f"conformance: {complaint}" in capsys.readouterr().err.replace("http://127.0.0.1: ", "")
