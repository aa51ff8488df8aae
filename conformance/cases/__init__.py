"""The cases: tables in Python, one module for each subject."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case
from . import client, close, collisions, deflate, faults, frames, handshake, limits, utf8


def all_cases(*, limit: int = 65_536, exhaustive: bool = False) -> list[Case]:
    """Return all cases, for servers and for clients, in the order of their sections.

    :param limit: bytes of the longest message that the examined end takes
    :param exhaustive: try every member of large families, not a sample
    :raises ValueError: when two cases have the same id
    """
    cases = list(_generate(limit, exhaustive))
    ids = [case.id for case in cases]
    twice = {name for name in ids if ids.count(name) > 1} if len(set(ids)) < len(ids) else set()
    if twice:
        raise ValueError(f"these ids are there twice: {', '.join(sorted(twice))}")
    sections = list(dict.fromkeys(case.section for case in cases))
    return sorted(cases, key=lambda case: sections.index(case.section))


def _generate(limit: int, exhaustive: bool) -> Iterator[Case]:
    yield from handshake.cases()
    yield from faults.cases()
    yield from client.cases()
    yield from frames.cases()
    yield from utf8.cases()
    yield from close.cases(exhaustive=exhaustive)
    yield from deflate.cases(limit)
    yield from collisions.cases()
    yield from limits.cases(limit)
