"""A sample of what ``python -m tests.leaks`` does for longer."""

from __future__ import annotations

import pytest

from . import leaks


@pytest.mark.attack("R14", "O10")
async def test_connections_leave_nothing_behind() -> None:
    """After some hundred connections, without the collector, there is as much as before them."""
    grown = await leaks.run(300)
    assert grown.left == set()
    assert grown.objects < 300  # a connection that stayed would be dozens
    assert grown.memory < 2_000_000
