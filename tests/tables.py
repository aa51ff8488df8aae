"""Tables of the documentation that are made of the tests: written, or compared with what is committed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_or_check(path: Path, page: str, complaints: Sequence[str], arguments: Sequence[str]) -> int:
    """Write a page or, with ``--check`` among the arguments, compare it; print what is wrong.

    :param path: where the page is in the documentation
    :param page: what it should say
    :param complaints: what is wrong with what it is made of
    :return: the exit status
    """
    found = list(complaints)
    if "--check" not in arguments:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, "utf-8")
    elif not path.exists() or path.read_text("utf-8") != page:
        found.append(f"{path.name} is stale: its first lines say what writes it")
    if found:
        print("\n".join(found))
    return 1 if found else 0
