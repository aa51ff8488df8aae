"""What all tests share: the backends that every asynchronous test runs on."""

from __future__ import annotations

import importlib.util
import signal
import sys
from typing import Any

import pytest

# The benchmarks are for Linux: they pin processes to cores and read the clocks of processes.
collect_ignore = [] if sys.platform.startswith("linux") else ["test_benchmarks.py"]

BACKENDS: list[Any] = [
    pytest.param(("asyncio", {"debug": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if importlib.util.find_spec("uvloop"):
    BACKENDS.insert(1, pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))


def pytest_configure() -> None:
    """Have Ctrl-C heard, which is ignored in what a shell without job control starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes sweeps whole, which takes minutes; by default they are samples."""
    parser.addoption("--sweep", choices=["part", "full"], default="part", help="how much of a sweep to run")


@pytest.fixture
def full_sweep(request: pytest.FixtureRequest) -> bool:
    """Tell whether sweeps are to be whole."""
    return bool(request.config.getoption("--sweep") == "full")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run each asynchronous test on asyncio, asyncio with uvloop, and Trio."""
    return request.param
