"""How far a run is, on standard error: in place on a terminal, now and then in a log."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts cases.

    :param name: what is run, ``""`` if that is clear
    :param total: how many cases there are
    """

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = f"{name}: " if name else "", total
        self._count = 0
        self._start = self._shown = time.monotonic()
        self._in_place = sys.stderr.isatty()

    def add(self, count: int = 1) -> None:
        """Count cases, and show how many there were if that is due."""
        self._count += count
        now = time.monotonic()
        if count and now - self._shown >= (0.1 if self._in_place else 15):
            self._shown = now
            text = f"{self._name}{self._count} of {self._total} cases, {now - self._start:.0f} s"
            sys.stderr.write(f"\r{text}" if self._in_place else f"{text}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Make room for what is printed next."""
        if self._in_place:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
