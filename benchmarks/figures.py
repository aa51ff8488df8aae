"""Figures: what was measured, round by round, and what can be said of it.

A sample is one figure of one subject in one case in one round. The figure of a subject is the median over
the rounds. A ratio to a peer is the median of the ratios within each round, because the two were measured
next to each other there and the machine's moods change from round to round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any


class Figures:
    """The samples of one table; the smaller a figure, the better."""

    def __init__(self, samples: Mapping[str, Mapping[str, Iterable[float]]] | None = None) -> None:
        """Take the samples by case and subject, as :meth:`to_json` returns them."""
        self._samples: dict[str, dict[str, list[float]]] = {}
        for case, subjects in (samples or {}).items():
            for subject, values in subjects.items():
                for value in values:
                    self.add(case, subject, value)

    def add(self, case: str, subject: str, value: float) -> None:
        """Add the sample of the next round."""
        self._samples.setdefault(case, {}).setdefault(subject, []).append(value)

    def drop(self, subject: str) -> None:
        """Forget a subject, which failed in one of the rounds."""
        for subjects in self._samples.values():
            subjects.pop(subject, None)

    @property
    def cases(self) -> list[str]:
        return list(self._samples)

    @property
    def subjects(self) -> list[str]:
        """All subjects, in the order in which they were measured."""
        return list(dict.fromkeys(subject for case in self._samples.values() for subject in case))

    def get(self, case: str, subject: str) -> float | None:
        """Return the median over the rounds, or ``None`` if it was not measured."""
        samples = self._samples.get(case, {}).get(subject)
        return median(samples) if samples else None

    def find_widest(self) -> tuple[float, str, str] | None:
        """Return the widest spread over the rounds, in terms of its median, with its case and subject.

        ``None`` when nothing was measured twice.
        """
        spreads = (
            ((max(samples) - min(samples)) / median(samples), case, subject)
            for case, subjects in self._samples.items()
            for subject, samples in subjects.items()
            if len(samples) > 1
        )
        return max(spreads, default=None)

    def ratio(self, case: str, subject: str, peer: str, *, peer_case: str | None = None) -> float | None:
        """Return what *subject* costs in terms of *peer*, or ``None`` if one of them was not measured.

        :param peer_case: the case of the peer, where it is not the same
        """
        ours = self._samples.get(case, {}).get(subject)
        theirs = self._samples.get(peer_case or case, {}).get(peer)
        if not ours or not theirs:
            return None
        return median(a / b for a, b in zip(ours, theirs, strict=False))

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Return the samples by case and subject."""
        return {
            case: {
                subject: [float(f"{value:.5g}") for value in values] for subject, values in subjects.items()
            }
            for case, subjects in self._samples.items()
        }


def to_number(value: Any) -> float:
    """Return *value*, a figure that must be positive to mean anything.

    :raises ValueError: when it is not
    """
    number = float(value)
    if not number > 0:
        raise ValueError(f"a figure of {number} means that nothing was measured")
    return number
