"""Log lines that a peer can cause are rationed: a flood of bad clients must not become a flood of lines.

What was left out is counted, and the next line that is let through says so.
"""

from __future__ import annotations

import logging

import anyio


class Throttle:
    """Logs so many lines a second, and counts the others.

    :param logger: what the lines are written to
    :param most: lines in any one second
    """

    def __init__(self, logger: logging.Logger, most: int) -> None:
        self._logger = logger
        self._most = most
        self._second = 0
        self._written = 0
        self._left_out = 0

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log a line, unless this second has had enough of them."""
        if not self._logger.isEnabledFor(level):
            return
        second = int(anyio.current_time())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= self._most:
            self._left_out += 1
            return
        self._written += 1
        if self._left_out:
            message, arguments = message + " (and %d such lines left out)", (*arguments, self._left_out)
            self._left_out = 0
        self._logger.log(level, message, *arguments)
