"""Who is measured: a library on an event loop, in one of its styles.

The name of a subject says all of it: ``picows-uvloop``, ``ours-trio-def``. The styles of ours:

* (none): an ``async def`` hook that awaits ``conn.write``
* ``def``: a plain ``def`` hook with ``conn.write_nowait``
* ``python``: the first one, with the pure-Python framing
* ``read_loop``, ``receive``, ``iteration``: three ways to use a client
"""

from __future__ import annotations

from typing import NamedTuple

LOOPS = ("asyncio", "uvloop", "trio")


class Subject(NamedTuple):
    """A library, an event loop, a style."""

    library: str
    loop: str
    style: str = ""

    @property
    def name(self) -> str:
        loop = () if self.library in ("trio-websocket", "tornado") else (self.loop,)
        return "-".join([self.library, *loop, *([self.style] if self.style else [])])

    @property
    def is_ours(self) -> bool:
        return self.library == "ours"

    @property
    def environment(self) -> dict[str, str]:
        """What the program needs in its environment, whatever stands in ours."""
        return {"ANYIO_WS_FRAMING": "python" if self.style == "python" else ""}

    def get_module(self, kind: str) -> str:
        """Return the program: *kind* is ``server`` or ``client``."""
        return f"benchmarks.programs.{kind}_{self.library.replace('-', '_')}"


def _on(loops: tuple[str, ...], library: str, style: str = "") -> tuple[Subject, ...]:
    return tuple(Subject(library, loop, style) for loop in loops)


ASYNCIO_LOOPS = ("asyncio", "uvloop")
OURS = _on(LOOPS, "ours")
WEBSOCKETS = _on(LOOPS, "websockets")
PICOWS = _on(ASYNCIO_LOOPS, "picows")
COMPRESSING_PEERS = (*WEBSOCKETS, *_on(ASYNCIO_LOOPS, "aiohttp"), Subject("tornado", "asyncio"))
PEERS = (*COMPRESSING_PEERS, *PICOWS, Subject("trio-websocket", "trio"))
SERVERS = (*OURS, *_on(LOOPS, "ours", "def"), *_on(LOOPS, "ours", "python"), *PEERS)
CLIENTS = (
    *(subject for style in ("read_loop", "receive", "iteration") for subject in _on(LOOPS, "ours", style)),
    *(subject for subject in PEERS if subject.library != "tornado"),
)
