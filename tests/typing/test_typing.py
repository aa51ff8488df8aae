"""mypy and pyright find a program that uses the whole API clean, and find the mistakes in another.

These run the checkers that ``tests/typing/install`` installs: ``pytest -m typing tests/typing``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.typing

HERE = Path(__file__).parent
PYRIGHT = HERE / "node_modules" / ".bin" / "pyright"
APART = HERE / ".venv" / "bin" / "python"
ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*)$", re.MULTILINE)

Finds = Callable[[Path], dict[int, str]]


def run(*command: str | Path, path: str = "") -> str:
    """Run a checker, and return what it says; not being there is a failure that says what to do."""
    assert Path(command[0]).exists(), f"{command[0]} is missing: run tests/typing/install"
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout, done.stderr
    return done.stdout


def mypy(program: Path, python: Path | str = sys.executable) -> dict[int, str]:
    """Return what mypy finds, by line; where nothing is around the program, as at a user's."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(program, folder)
        said = run(python, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", copy)
    assert "1 source file" in said, said
    assert {Path(match["file"]).name for match in ERROR.finditer(said)} <= {program.name}, said
    return {int(match["line"]): match["text"] for match in ERROR.finditer(said)}


def pyright(program: Path) -> dict[int, str]:
    """Return what pyright finds in its strict mode, by line."""
    settings = HERE / "pyrightconfig.json"
    python = str(Path(sys.executable).parent)
    said = json.loads(run(PYRIGHT, "--outputjson", "--project", settings, path=python))
    assert said["summary"]["filesAnalyzed"] == 2
    return {
        found["range"]["start"]["line"] + 1: found["message"]
        for found in said["generalDiagnostics"]
        if found["severity"] == "error" and Path(found["file"]) == program
    }


@pytest.fixture(params=[mypy, pyright])
def finds(request: pytest.FixtureRequest) -> Finds:
    """Each of the checkers."""
    checker: Finds = request.param
    return checker


def test_program_is_clean(finds: Finds) -> None:
    """In their strict modes the checkers find nothing wrong with a program that uses the whole API."""
    assert finds(HERE / "program.py") == {}


def test_mistakes_are_found(finds: Finds) -> None:
    """Every mistake is found, a wrong application object among them, and nothing else."""
    program = HERE / "mistakes.py"
    lines = program.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# mistake")}
    assert len(marked) == 9
    assert set(finds(program)) == marked


def test_package_is_complete() -> None:
    """Every public symbol has a type that all checkers see alike."""
    said = run(
        PYRIGHT, "--verifytypes", "anyio_ws", "--ignoreexternal", path=str(Path(sys.executable).parent)
    )
    assert "Type completeness score: 100%" in said, said


def test_program_is_clean_beside_trio_typing() -> None:
    """The stubs of trio-typing, which shadow Trio's own types, do not disturb a program that uses ours."""
    assert run(APART, "-c", "import trio_typing; print(trio_typing.__name__)") == "trio_typing\n"
    assert mypy(HERE / "program.py", APART) == {}
