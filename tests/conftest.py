"""What all tests share: the backends that every asynchronous test runs on."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

BACKENDS: list[Any] = [
    pytest.param(("asyncio", {"debug": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if importlib.util.find_spec("uvloop"):
    BACKENDS.insert(1, pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run each asynchronous test on asyncio, asyncio with uvloop, and Trio."""
    return request.param
