"""Rounds: every subject is measured once in a round, one after the other, and then again in the next one.

So a mood of the machine (another program, a warm CPU) touches all subjects alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .figures import Figures
from .measures import Bench
from .processes import BenchmarkError
from .report import format_figure
from .subjects import Subject
from .tables import Table


@dataclass
class Run:
    """A table that is being measured.

    :ivar failures: what did not run; its subject is left out of the figures of that case
    """

    table: Table
    subjects: Sequence[Subject]
    cases: Sequence[str]
    figures: Figures = field(default_factory=Figures)
    failures: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every subject and case of the table is in it."""
        return (
            not self.failures
            and len(self.subjects) == len(self.table.subjects)
            and len(self.cases) == len(self.table.cases)
        )

    def measure(self, bench: Bench, rounds: int, say: Callable[[str], None]) -> None:
        """Measure all rounds, and report each subject of each round with *say*."""
        failed: set[Subject] = set()
        begin, done, total = time.monotonic(), 0, rounds * len(self.subjects)
        for round_ in range(1, rounds + 1):
            for subject in self.subjects:
                done += 1
                if subject not in failed and not self._measure_one(bench, subject, say, f"{round_}/{rounds}"):
                    failed.add(subject)
            left = (time.monotonic() - begin) / done * (total - done)
            say(f"{self.table.name}: round {round_} of {rounds} is done, {left / 60:.1f} minutes to go")

    def _measure_one(self, bench: Bench, subject: Subject, say: Callable[[str], None], round_: str) -> bool:
        values: list[str] = []
        try:
            for case, value in self.table.measure(bench, subject, self.cases):
                self.figures.add(case, subject.name, value)
                values.append(f"{case}: {format_figure(value)}")
        except (BenchmarkError, ValueError, OSError) as exc:
            self.figures.drop(subject.name)
            self.failures.append(f"{self.table.name}, {subject.name}: {exc}")
            say(f"FAILED {self.failures[-1]}")
            return False
        say(f"  {round_} {subject.name:<22} {'   '.join(values)}")
        return True
