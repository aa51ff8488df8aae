"""The builds of the framing against each other: a sample of what ``tests/fuzz/builds.py`` does for hours."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from anyio_ws import _framing_py
from anyio_ws.events import Message

from .fuzz import builds


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    """Take the compiled build, if it is installed."""
    module: ModuleType = pytest.importorskip("anyio_ws._framing_c", exc_type=ModuleNotFoundError)
    return module


@pytest.mark.parametrize("seed", range(5))
def test_builds_say_the_same_of_any_stream(compiled: ModuleType, seed: int) -> None:
    """The same messages, error, reason and borrowed sizes come of 5000 streams of good and bad frames."""
    builds.run(compiled, 5000, seed)


class Forgetful(_framing_py.MessageReader):
    """A reader that once in a while loses the last message of a read of many."""

    def feed(self, data: Any) -> list[Message]:
        messages = super().feed(data)
        return messages[:-1] if len(messages) > 8 else messages


class Hoarding(_framing_py.MessageReader):
    """A reader that takes too much for long messages."""

    def _take(self, size: int) -> bytearray:
        return super()._take(size + (size > 65_000))


class Rough(_framing_py.MessageReader):
    """A reader that gives another reason for one violation."""

    def _check_second_byte(self, second: int, length: int, opcode: int) -> None:
        super()._check_second_byte(second, length if length != 126 else 0, opcode)


def _frame(opcode: int, payload: bytes, **options: Any) -> bytes:
    return _framing_py.frame(opcode, payload, **options) if len(payload) < 65_536 else b""


def _mask(data: bytearray, key: bytes, **options: Any) -> bytes:
    return _framing_py.mask(data, key, **options) if len(data) % 50 != 49 else bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"MessageReader": Forgetful},
        {"MessageReader": Hoarding},
        {"MessageReader": Rough},
        {"frame": _frame},
        {"mask": _mask},
    ],
    ids=lambda change: "".join(change),
)
def test_a_build_that_differs_is_found(change: dict[str, Any]) -> None:
    """The comparison has eyes: small deviations of a build are found in a few thousand streams."""
    names = {name: getattr(_framing_py, name) for name in ("MessageReader", "frame", "mask")}
    build: Any = SimpleNamespace(__name__="different", **{**names, **change})
    with pytest.raises(builds.Difference):
        builds.run(build, 10_000, 0)


def test_the_program_tells_how_much_it_compared(
    compiled: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says how many streams it read, from which seed."""
    assert compiled is importlib.import_module("anyio_ws._framing_c")
    monkeypatch.setattr("sys.argv", ["builds", "--streams", "10", "--seed", "3"])
    builds.main()
    assert capsys.readouterr().out == "\n10 streams from seed 3: no difference\n"
