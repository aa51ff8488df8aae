"""The matrix: every neighbour, as client and as server, through every exchange, on every backend.

An exchange is a function of a :class:`Meeting`, which makes connections in one direction: its ``meet()``
gives our end of a connection and the function that theirs is asked with. Nothing in an exchange knows
which neighbour it is, or whether it is the client.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest

from anyio_ws import Compression, Conn, Opcode
from anyio_ws.deflate import build_codec
from anyio_ws.protocol import Role

from .meeting import SIZES, Certificates, Meeting, TheirClient, TheirServer, binary_of, text_of
from .neighbours import (
    CHROMIUM,
    CLOSE_WITHOUT_CODE,
    COMPRESSED,
    FRAGMENTS_FROM_THEM,
    NEIGHBOURS,
    PING_FROM_THEM,
    Neighbour,
)
from .program import digest

CODE, REASON = 4321, "enough — genug — достаточно"
NO_REASON = 1005, ""  # what is reported for a Close without code, RFC 6455 §7.1.5


# --- the exchanges --------------------------------------------------------------------------------------


async def echo(meeting: Meeting, messages: Sequence[str | bytes], *, tls: bool = False) -> None:
    """They receive what we send, and we receive what they send back."""
    async with meeting.meet(tls=tls) as link:
        for message in messages:
            await link.ours.send(message)
        assert await link.ask("echo", count=len(messages)) == [digest(each) for each in messages]
        for message in messages:
            assert await link.ours.receive() == message


async def fragments_from_us(meeting: Meeting) -> None:
    """They put together what we send in fragments, a character cut in two and a Ping in between."""
    text = text_of(1000)
    data = text.encode()
    async with meeting.meet() as link:
        for opcode in (Opcode.TEXT, Opcode.BINARY):
            await link.ours.write_frame(opcode, data[:2], fin=False)
            await link.ours.write_frame(Opcode.CONTINUATION, b"", fin=False)
            await link.ours.write_ping(b"between")
            await link.ours.write_frame(Opcode.CONTINUATION, data[2:], fin=True)
        assert await link.ask("echo", count=2) == [digest(text), digest(data)]
        assert [await link.ours.receive(), await link.ours.receive()] == [text, data]


async def fragments_from_them(meeting: Meeting) -> None:
    """We put together what they send in fragments, among them an empty one."""
    parts = [text_of(3), "", text_of(70_000), text_of(10)]
    text = "".join(parts)
    async with meeting.meet() as link:
        await link.ask("fragments", parts=parts, binary=False)
        await link.ask("fragments", parts=parts, binary=True)
        assert [await link.ours.receive(), await link.ours.receive()] == [text, text.encode()]


async def ping_from_us(meeting: Meeting) -> None:
    """They answer our Ping."""
    async with meeting.meet() as link:
        assert await link.ours.ping() > 0


async def ping_from_them(meeting: Meeting) -> None:
    """We answer their Ping with its data."""
    async with meeting.meet() as link:
        assert await link.ask("ping", data="there?") == "there?"


async def subprotocol(meeting: Meeting) -> None:
    """Both ends see the one subprotocol that both speak."""
    async with meeting.meet(ours=["b.v2", "c.v1"], theirs=["a.v1", "c.v1"]) as link:
        assert (link.ours.subprotocol, link.subprotocol) == ("c.v1", "c.v1")


async def no_subprotocol(meeting: Meeting) -> None:
    """Both ends see none when none was offered."""
    async with meeting.meet() as link:
        assert (link.ours.subprotocol, link.subprotocol) == (None, None)


async def close_by_us(meeting: Meeting, *, tls: bool = False) -> None:
    """They report the code and reason of our Close, and their own comes back."""
    async with meeting.meet(tls=tls) as link:
        await link.ours.close(CODE, REASON)
        assert await link.ask("closed") == {"code": CODE, "reason": REASON}
        # §5.5.1: an endpoint "typically echos the status code it received"; aiohttp answers 1000.
        assert link.ours.close_code in (CODE, 1000)
        assert link.ours.closed_by is meeting.our_role


async def close_by_them(meeting: Meeting, *, tls: bool = False) -> None:
    """We report the code and reason of their Close, and they the code of our answer, the same."""
    async with meeting.meet(tls=tls) as link:
        answer = await link.ask("close", code=CODE, reason=REASON)
        await link.ours.wait_gone()
        assert answer["code"] == CODE
        assert (link.ours.close_code, link.ours.close_reason) == (CODE, REASON)
        assert link.ours.closed_by is not meeting.our_role


async def close_without_code(meeting: Meeting) -> None:
    """A Close without a code is 1005 at both ends."""
    async with meeting.meet() as link:
        answer = await link.ask("close", code=None, reason="")
        await link.ours.wait_gone()
        assert (answer["code"], answer["reason"]) == NO_REASON
        assert (link.ours.close_code, link.ours.close_reason) == NO_REASON


class Counting:
    """One half of a codec, and how often each of its methods was called."""

    def __init__(self, half: Any) -> None:
        self._half = half
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._half, name)


@contextlib.contextmanager
def counting_codecs() -> Iterator[list[tuple[Counting, Counting]]]:
    """Note the codec of every connection that is opened during a block."""
    codecs: list[tuple[Counting, Counting]] = []

    def build_counting(*arguments: Any, **options: Any) -> Any:
        deflater, inflater = build_codec(*arguments, **options)
        codecs.append((Counting(deflater), Counting(inflater)))
        return codecs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyio_ws.conn.build_codec", build_counting)
        yield codecs


async def compressed(meeting: Meeting, settings: Compression) -> None:
    """Compression is agreed on, and each message is sent compressed by both ends and read by both."""
    messages = [kind(size) for size in (2_000, 200_000, 70_000) for kind in (text_of, binary_of)] * 3
    with counting_codecs() as codecs:
        async with meeting.meet(compression=settings) as link:
            check_agreement(link.ours, settings, meeting.our_role)
            for message in messages:
                await link.ours.send(message)
            await link.ours.write_frame(Opcode.TEXT, text_of(3_000).encode(), fin=False, compress=True)
            await link.ours.write_frame(Opcode.CONTINUATION, text_of(3_000).encode())
            messages.append(text_of(3_000) * 2)
            assert await link.ask("echo", count=len(messages)) == [digest(each) for each in messages]
            for message in messages:
                assert await link.ours.receive() == message
    ours = [halves for halves in codecs if halves[1].calls["finish"] == len(messages)]
    assert [(deflater.calls["shrink"], deflater.calls["compress"]) for deflater, _ in ours] == [
        (len(messages) - 1, 2)
    ]


def check_agreement(ours: Conn, settings: Compression, role: Role) -> None:
    """Check that compression was agreed on, and that our own side is what our settings say."""
    assert ours.compression is not None
    agreed = ours.compression._asdict()
    assert agreed[f"{role.value}_max_window_bits"] <= getattr(settings, f"{role.value}_max_window_bits")
    name = f"{role.value}_no_context_takeover"
    assert agreed[name] or not getattr(settings, name)


async def not_compressed(meeting: Meeting) -> None:
    """Where we want no compression there is none, and messages pass all the same."""
    async with meeting.meet(compression=None) as link:
        assert link.ours.compression is None
        await link.ours.send(text_of(2_000))
        assert await link.ask("echo", count=1) == [digest(text_of(2_000))]
        assert await link.ours.receive() == text_of(2_000)


async def refused(meeting: Meeting) -> None:
    """The client reports the status with which the server refused."""
    assert await meeting.refuse() == 403


class Exchange(NamedTuple):
    """An exchange and what it is called."""

    name: str
    run: Callable[[Meeting], Awaitable[None]]


EXCHANGES = (
    *(Exchange(f"text, {size} B", partial(echo, messages=[text_of(size)])) for size in SIZES),
    *(Exchange(f"binary, {size} B", partial(echo, messages=[binary_of(size)])) for size in SIZES),
    Exchange("100 messages at once", partial(echo, messages=[text_of(10), binary_of(200)] * 50)),
    Exchange("fragments, from us", fragments_from_us),
    Exchange(FRAGMENTS_FROM_THEM, fragments_from_them),
    Exchange("ping, from us", ping_from_us),
    Exchange(PING_FROM_THEM, ping_from_them),
    *(Exchange(name, partial(compressed, settings=settings)) for name, settings in COMPRESSED.items()),
    Exchange("no compression", not_compressed),
    Exchange("subprotocol", subprotocol),
    Exchange("no subprotocol", no_subprotocol),
    Exchange("close, by us", close_by_us),
    Exchange("close, by them", close_by_them),
    Exchange(CLOSE_WITHOUT_CODE, close_without_code),
    Exchange("refusal (403)", refused),
    Exchange("TLS: messages", partial(echo, messages=[text_of(2**20), binary_of(65_536)], tls=True)),
    Exchange("TLS: close, by us", partial(close_by_us, tls=True)),
    Exchange("TLS: close, by them", partial(close_by_them, tls=True)),
)


# --- the matrix ------------------------------------------------------------------------------------------

DIRECTIONS: dict[str, type[Meeting]] = {"client": TheirClient, "server": TheirServer}

MATRIX: list[Any] = [
    pytest.param(
        neighbour,
        direction,
        exchange,
        id=f"{neighbour.name}-{role}-{exchange.name}",
        marks=pytest.mark.interop(row=exchange.name, column=f"{neighbour.name} {role}"),
    )
    for neighbour in NEIGHBOURS
    for role, direction in DIRECTIONS.items()
    if neighbour is not CHROMIUM or role == "client"
    for exchange in EXCHANGES
    if exchange.name not in neighbour.lacks
]


@pytest.mark.parametrize(("neighbour", "direction", "exchange"), MATRIX)
async def test_exchange_succeeds(
    neighbour: Neighbour, direction: type[Meeting], exchange: Exchange, certificates: Certificates
) -> None:
    """A neighbour and we understand each other in this exchange, whichever of us is the server."""
    await exchange.run(direction(neighbour, certificates))
