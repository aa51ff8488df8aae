"""What the programs need: the C programs built, and a virtual environment with the peers.

Both live in ``build/benchmarks`` and are made anew when what they are made of has changed. The package under
test is installed there in place, with its compiled framing, as a user would get it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .processes import BenchmarkError

HERE = Path(__file__).parent
ROOT = HERE.parent
PLACE = ROOT / "build" / "benchmarks"
PEERS = ("websockets", "trio-websocket", "picows", "aiohttp", "tornado", "uvloop")
NATIVE = ("wsload", "wsecho")

_PRINT_VERSIONS = """
import json, sys
from importlib import import_module, metadata
for name in sys.argv[1:]:
    import_module(name.replace("-", "_"))
from anyio_ws import __version__, framing
versions = {name: metadata.version(name) for name in [*sys.argv[1:], "anyio", "trio"]}
print(json.dumps({"anyio_ws": f"{__version__} (framing: {framing.BUILD})", **versions}))
"""
_MAKE_CERTIFICATE = """
import sys, trustme
ca = trustme.CA()
certificate = ca.issue_cert("localhost", "127.0.0.1")
certificate.private_key_and_cert_chain_pem.write_to_path(sys.argv[1])
ca.cert_pem.write_to_path(sys.argv[2])
"""


class Environment(NamedTuple):
    """Where the programs are.

    :ivar python: the interpreter that has the peers
    :ivar native: the folder of the C programs
    :ivar certificate: key and certificate of a server on 127.0.0.1
    :ivar authority: who signed it
    """

    python: Path
    native: Path
    certificate: Path
    authority: Path

    @property
    def wsload(self) -> Path:
        return self.native / "wsload"

    @property
    def wsecho(self) -> Path:
        return self.native / "wsecho"


def make_environment() -> Environment:
    """Build all that is missing or out of date.

    :raises BenchmarkError: when there is no compiler, or something cannot be built or installed
    """
    if not sys.platform.startswith("linux"):
        raise BenchmarkError(
            "the benchmarks read Linux's process clocks and pin processes to cores; this is no Linux"
        )
    native = build_native(PLACE)
    python = PLACE / "venv" / "bin" / "python"
    _remake(PLACE / "venv", [HERE / "requirements.txt"], _install_peers)
    if not any(ROOT.glob("anyio_ws/_framing_c*.so")):
        _stamp(PLACE / "anyio_ws").unlink(missing_ok=True)
    sources = [ROOT / "pyproject.toml", ROOT / "setup.py", *ROOT.glob("anyio_ws/*.c")]
    _remake(PLACE / "anyio_ws", [*sources, HERE / "requirements.txt"], _install_ours)
    certificate, authority = PLACE / "server.pem", PLACE / "ca.pem"
    if not authority.exists():
        _call([python, "-c", _MAKE_CERTIFICATE, certificate, authority], "the certificate was not made")
    return Environment(python, native, certificate, authority)


def build_native(place: Path) -> Path:
    """Compile the load generator and the echo server, and return their folder.

    :raises BenchmarkError: when there is no gcc, or it fails
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise BenchmarkError(
            "gcc is needed to build the load generator (Debian: apt-get install gcc libc6-dev)"
        )
    place.mkdir(parents=True, exist_ok=True)
    for name in NATIVE:
        source, target = HERE / "native" / f"{name}.c", place / name
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            _call([gcc, "-O2", "-Wall", "-Wextra", "-o", target, source], f"{source.name} was not built")
    return place


def read_versions(environment: Environment) -> dict[str, str]:
    """Import every peer, and return the versions of everything that matters.

    :raises BenchmarkError: when a peer is missing or broken, or our compiled framing is; none is left out in
        silence
    """
    output = _call([environment.python, "-c", _PRINT_VERSIONS, *PEERS], "a peer is missing")
    versions: dict[str, str] = json.loads(output)
    if "framing: c" not in versions["anyio_ws"]:
        raise BenchmarkError("anyio_ws was installed without its compiled framing; see what pip says of it")
    return {"python": platform.python_version(), **versions}


def read_commit() -> str:
    """Return the commit that is measured, marked if the tree has changes, or "unknown" outside of git."""
    git_status = ["git", "status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results.*"]
    try:
        commit = _call(["git", "rev-parse", "--short", "HEAD"], "git").strip()
        return f"{commit} with changes" if _call(git_status, "git") else commit
    except (BenchmarkError, FileNotFoundError):
        return "unknown"


def _install_peers() -> None:
    print("making an environment with the peers ...", flush=True)
    venv.create(PLACE / "venv", clear=True, with_pip=True)
    _pip("-r", HERE / "requirements.txt")


def _install_ours() -> None:
    print("installing anyio_ws, in place ...", flush=True)
    _pip("-e", f"{ROOT}[trio]")


def _pip(*words: str | Path) -> None:
    python = PLACE / "venv" / "bin" / "python"
    _call([python, "-m", "pip", "install", "--quiet", *words], f"not installed: {words[-1]}")


def _remake(target: Path, ingredients: Iterable[Path], make: Callable[[], None]) -> None:
    """Call *make* unless it was called for the same ingredients; a stamp beside *target* remembers that."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(ingredients):
        digest.update(path.read_bytes() if path.exists() else b"-")
    stamp = _stamp(target)
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(digest.hexdigest())


def _stamp(target: Path) -> Path:
    return target.with_suffix(".stamp")


def _call(command: Sequence[str | Path], what: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{what}:\n{(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout
