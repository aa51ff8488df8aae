"""Too many connections, pings, frames, and log lines: whoever else is there is served as if nothing was."""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_ws import Config, Conn, Handshake
from anyio_ws.testing import build_frame

from ..support import PING, PONG, TEXT, Peer, build_request, nothing_left, settle
from .arena import Diary, Echo, arena, bystander, every_way

KEY = b"mask"


@pytest.mark.attack("R05", "R06", "R04")
@every_way
async def test_flood_of_pings_gets_no_more_than_it_gives(way: str) -> None:
    """Ten thousand pings and pongs get at most as many pongs, no larger, in order; others are served."""
    config = Config(max_control_rate=None)
    async with arena(way, Echo, None, config) as place, bystander(place) as echoed:
        peer = await place.open()
        answers: list[bytes] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood, peer, PING, 10_000)
            while not answers or answers[-1] != b"9999":
                frame = await peer.frame()
                assert frame.opcode == PONG
                answers.append(frame.payload)
        await flood(peer, PONG, 1_000)
        numbers = [int(answer) for answer in answers]
        assert numbers == sorted(set(numbers))
        await echoed.wait(len(echoed) + 3)
        await peer.close_handshake()


@pytest.mark.attack("R05", "R06")
@every_way
@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_flood_of_control_frames_is_cut_off(way: str, opcode: int) -> None:
    """More in a second than ``max_control_rate`` is 1008, after the messages before it; others are served."""
    ends = Diary()
    config = Config(max_control_rate=100)
    async with arena(way, Echo, ends, config) as place, bystander(place) as echoed:
        peer = await place.open()
        await peer.send(build_frame(TEXT, b"hello", key=KEY) + build_frame(opcode, b"", key=KEY) * 5_000)
        frames = [await peer.frame()]
        while frames[-1].opcode != 0x8:
            frames.append(await peer.frame())
        assert (TEXT, b"hello") in [(frame.opcode, frame.payload) for frame in frames]
        assert frames[-1].payload == b"\x03\xf0more than 100 control frames in a second"
        assert len(frames) < 600  # those of one turn at most are answered before the end
        await peer.stream.aclose()
        await ends.wait()
        assert ends == [1008]
        await echoed.wait(len(echoed) + 3)


async def flood(peer: Peer, opcode: int, count: int) -> None:
    """Send so many control frames, a hundred at a time."""
    for start in range(0, count, 100):
        await peer.send(b"".join(build_frame(opcode, b"%d" % n, key=KEY) for n in range(start, start + 100)))


@pytest.mark.attack("R12", "R08", "R03")
@every_way
async def test_burst_of_frames_leaves_time_for_others(way: str) -> None:
    """While a burst of 20,000 messages is worked through, every other task gets its turns in between."""
    turns = 0
    seen: Counter[int] = Counter()

    class Counting(Echo):
        async def client_message(self, data: Any) -> None:
            if self.path == "/burst":
                seen[turns] += 1
            else:
                await self.conn.send(data)

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with arena(way, Counting) as place, bystander(place), anyio.create_task_group() as tasks:
        peer = await place.open("/burst")
        tasks.start_soon(take_turns)
        await peer.send(build_frame(TEXT, b"", key=KEY) * 20_000)
        await peer.close_handshake()
        tasks.cancel_scope.cancel()
    assert seen.total() == 20_000
    # 256 at a time, where they were read and where they were kept; Trio may have a task wait for a round.
    assert max(seen.values()) <= 1_024


@pytest.mark.attack("R12")
@every_way
async def test_large_messages_leave_time_for_others(way: str) -> None:
    """A megabyte of text to unmask and check, again and again, is no reason to wait."""
    config = Config(max_message_size=1_000_000)
    async with arena(way, Echo, None, config) as place, bystander(place) as echoed:
        peer = await place.open()
        for _ in range(5):
            before = len(echoed)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(peer.send_frame, TEXT, b"x" * 1_000_000)
                assert await peer.message() == (TEXT, b"x" * 1_000_000)
            assert len(echoed) > before


class Sleeper(Echo):
    """Sleeps over the first message of ``/sleep`` until it is told to go on; echoes elsewhere."""

    def __init__(self, handshake: Handshake, conn: Conn, app: Any) -> None:
        super().__init__(handshake, conn, app)
        self.got: list[Any] = []
        if self.path == "/sleep":
            app.append(self)
            self.go_on = anyio.Event()

    async def client_message(self, data: Any) -> None:
        if self.path == "/sleep":
            self.got.append(data)
            await self.go_on.wait()
        else:
            await super().client_message(data)

    def close(self) -> None:
        """Say nothing."""


def deflated(data: bytes) -> bytes:
    """Compress a message."""
    compressor = zlib.compressobj(9, wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


BURSTS = {
    "bombs": (build_frame(2, deflated(bytes(60_000)), rsv=4, key=KEY), bytes(60_000), 400, 3),
    "bytes": (build_frame(2, b"x", key=KEY), b"x", 10_000, 1_300),
}


@pytest.mark.attack("C04", "R03", "R12")
@every_way
@pytest.mark.parametrize("burst", BURSTS)
async def test_burst_for_a_handler_that_is_busy_is_kept_as_it_came(way: str, burst: str) -> None:
    """Bytes that would come to a hundred times as many wait as bytes; nothing of them is lost in the end."""
    frame, data, count, most = BURSTS[burst]
    sleepers = Diary()
    async with arena(way, Sleeper, sleepers) as place, bystander(place) as echoed:
        peer = await place.open_with("/sleep", {"Sec-WebSocket-Extensions": "permessage-deflate"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.send, frame * count)
            await sleepers.wait()
            await echoed.wait(len(echoed) + 30)
            (sleeper,) = sleepers
            assert len(sleeper.got) == 1
            assert sleeper.conn._inbox.waiting <= most
            assert len(sleeper.conn._protocol.rest) <= 70_000
            sleeper.go_on.set()
        await peer.close_handshake()
        assert sleeper.got == [data] * count


@pytest.mark.attack("O02", "R12")
@every_way
async def test_end_of_the_stream_comes_after_a_burst(way: str) -> None:
    """A peer that sends much and leaves without a Close has been heard before it is gone."""
    sleepers = Diary()
    async with arena(way, Sleeper, sleepers) as place:
        peer = await place.open_with("/sleep", {})
        await sleepers.wait()
        (sleeper,) = sleepers
        sleeper.go_on.set()
        await peer.send(BURSTS["bytes"][0] * 5_000)
        await peer.stream.aclose()
        await sleeper.conn.wait_gone()
        while len(sleeper.got) < 5_000:
            await anyio.lowlevel.checkpoint()
        assert sleeper.conn.close_code == 1006


@pytest.mark.attack("R07")
@pytest.mark.parametrize("way", ["sockets", "streams", "tls"])
async def test_flood_of_connections_waits_in_the_backlog(way: str) -> None:
    """At ``max_conn`` the others wait, at no cost, and get their turn when somebody leaves."""
    ends = Diary()
    async with nothing_left(), arena(way, Echo, ends, Config(max_conn=4)) as place:
        opened: list[Peer] = []
        done = Diary()

        async def come() -> None:
            peer = await place.open()
            opened.append(peer)
            done.append(peer)

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(come)
            await done.wait(4)
            start, work = time.monotonic(), time.process_time()
            await anyio.sleep(0.2)
            assert time.process_time() - work < (time.monotonic() - start) / 2  # nobody spins
            assert len(opened) == 4
            for size in range(5, 13):
                await opened[size - 5].close_handshake()
                await done.wait(size)
        assert ends == [1000] * 8


@pytest.mark.attack("L01", "L02", "L03", "H27")
async def test_flood_of_bad_clients_leaves_few_and_harmless_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing they send breaks out of its line, shows a secret, or comes with a traceback."""
    caplog.set_level("DEBUG", "anyio_ws")
    secret = "Bearer s3cr3t"
    nasty = [
        build_request("/\x1b[31mred?token=s3cr3t"),
        build_request(more="X: a\x00b\r\n"),
        build_request(headers={"Host": "a\u00a0b"}),
        build_request(headers={"Origin": "http://evil\x85.example", "Authorization": secret}),
        build_request(headers={"Origin": "http://evil.example", "Cookie": "s3cr3t"}),
        build_request(headers={"Sec-WebSocket-Protocol": "a\x0bb"}),
        build_request(headers={"Sec-WebSocket-Extensions": "x; \xe2\x80\xae"}),
        build_request(line="GET /?s3cr3t=\r\x0bfake log line HTTP/1.1"),
        b"\x16\x03\x01\x02\x00" + bytes(range(256)),
        build_request("/" + "A" * 9000),
    ]
    async with arena("memory", Echo, None, Config(origins=["https://good.example"])) as place:
        start = anyio.current_time()
        for number in range(300):
            peer = await place.peer()
            await peer.send(nasty[number % len(nasty)])
            if number % 3:
                assert (await peer.receive_head()).status >= 400
            await peer.stream.aclose()
        await settle()
        seconds = int(anyio.current_time() - start) + 2
    assert 5 <= len(caplog.records) <= 20 * seconds
    for record in caplog.records:
        message = record.getMessage()
        assert record.levelno <= logging.INFO, message
        assert record.exc_info is None
        assert message.isascii()
        assert message.isprintable()
        assert len(message) <= 256
        assert "s3cr3t" not in message


@pytest.mark.attack("L01", "L02")
async def test_words_of_a_peer_are_escaped_in_errors(caplog: pytest.LogCaptureFixture) -> None:
    """A close reason that a handler lets go wrong stays in its line, too."""
    raised: list[BaseException] = []

    async def handler(conn: Conn, handshake: Handshake) -> None:
        try:
            await conn.receive()
        except anyio.EndOfStream as exc:
            raised.append(exc)

    from anyio_ws.handler import FunctionFactory

    async with arena("memory", FunctionFactory(handler)) as place:
        peer = await place.open()
        reason = "line\nbreak \u202e \x1b[0m"
        await peer.send_frame(0x8, b"\x0f\xa0" + reason.encode())
        await peer.frame()
        await settle()
    (error,) = raised
    assert str(error).isprintable()
    assert str(error).isascii()
    assert caplog.records == []
