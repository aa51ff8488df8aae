"""The soak, for a virtual minute in memory: it finds nothing wrong, and what is wrong it finds."""

from __future__ import annotations

from typing import Any

import pytest

from anyio_ws import Conn
from anyio_ws.testing import virtual_clock

from .soak import Soak


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return request.param, virtual_clock(request.param)


async def run(seconds: float = 90, **options: Any) -> Soak:
    """Run a short soak in memory."""
    lines: list[str] = []
    done = Soak(seconds, 6, memory=True, say=lines.append, **options)
    await done.run()
    return done


@pytest.mark.attack("O06", "R10", "O02")
async def test_soak_of_a_minute_leaves_nothing_unexplained() -> None:
    """Connections through bad networks end in order with all messages, or break, and are on record."""
    done = await run(seed=1)
    assert done.complaints == []
    assert done.counts["clean"] >= 3
    assert done.counts["broken"] >= 3
    assert done.counts["received"] >= 200
    assert done.open == {}


async def test_soak_in_memory_can_be_repeated() -> None:
    """The same seed gives the same faults and the same ledgers."""
    assert (await run(20, seed=2)).counts == (await run(20, seed=2)).counts


@pytest.mark.parametrize("wrong", ["lost", "twice", "changed"])
async def test_soak_notices_what_becomes_of_a_message(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is lost, repeated or changed is unexplained."""
    count = 0
    send = Conn.send

    async def send_wrong(self: Conn, item: str | bytes, *, compress: bool = True) -> None:
        nonlocal count
        count += 1
        if count != 100:
            await send(self, item, compress=compress)
        elif wrong == "twice":
            await send(self, item)
            await send(self, item)
        elif wrong == "changed":
            await send(self, "changed")

    monkeypatch.setattr(Conn, "send", send_wrong)
    done = await run(30, seed=1)
    assert done.complaints != []
