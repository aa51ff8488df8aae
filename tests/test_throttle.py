"""What peers can cause in the log is rationed, and what was left out is told."""

from __future__ import annotations

import logging

import anyio
import pytest

from anyio_ws.throttle import Throttle

from .support import virtual


@virtual
@pytest.mark.attack("L03")
async def test_throttle_lets_so_many_lines_a_second_through(caplog: pytest.LogCaptureFixture) -> None:
    """Of a flood the first lines are written; the first of the next second says how many were not."""
    logger = logging.getLogger("tests.throttle")
    caplog.set_level("INFO", logger.name)
    throttle = Throttle(logger, 3)
    for number in range(1000):
        throttle.log(logging.INFO, "line %d", number)
    await anyio.sleep(1)
    throttle.log(logging.INFO, "another")
    throttle.log(logging.INFO, "and another")
    assert [record.getMessage() for record in caplog.records] == [
        "line 0",
        "line 1",
        "line 2",
        "another (and 997 such lines left out)",
        "and another",
    ]


@virtual
@pytest.mark.attack("L03")
async def test_throttle_does_not_count_lines_that_nobody_wants(caplog: pytest.LogCaptureFixture) -> None:
    """A level that is switched off costs nothing and leaves nothing out."""
    logger = logging.getLogger("tests.throttle")
    caplog.set_level("INFO", logger.name)
    throttle = Throttle(logger, 1)
    throttle.log(logging.DEBUG, "not wanted")
    throttle.log(logging.INFO, "wanted")
    assert [record.getMessage() for record in caplog.records] == ["wanted"]
