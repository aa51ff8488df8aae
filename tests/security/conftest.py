"""At the end of a run the sweeps say how far they went."""

from __future__ import annotations

from collections import Counter

import pytest

CUTS: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture
def cuts(request: pytest.FixtureRequest) -> Counter[str]:
    """Give the counts of what this run has cut, for the sweeps to add to."""
    return request.config.stash.setdefault(CUTS, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the counts."""
    counts = config.stash.get(CUTS, Counter())
    if counts:
        line = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        terminalreporter.write_line(f"sweeps: {line}")
