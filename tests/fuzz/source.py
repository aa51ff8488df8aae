"""Bytes as a source of decisions, which is how a fuzzer steers a target."""

from __future__ import annotations


class Source:
    """Draws decisions from the bytes of one run; without any left, everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are used."""
        return self._position >= len(self._data)

    def byte(self) -> int:
        """Draw a number below 256."""
        return (self.take(1) or b"\0")[0]

    def take(self, size: int) -> bytes:
        """Draw up to so many bytes."""
        taken = self._data[self._position : self._position + size]
        self._position += len(taken)
        return taken

    def rest(self) -> bytes:
        """Draw all bytes that are left."""
        return self.take(len(self._data))

    def pieces(self) -> list[bytes]:
        """Draw all bytes that are left, cut into pieces of a size that is drawn first."""
        size = self.byte() or 10_000
        rest = self.rest()
        return [rest[i : i + size] for i in range(0, len(rest), size)] or [b""]
