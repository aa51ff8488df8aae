"""``wstest``, the program of the Autobahn Testsuite: found on this machine, or installed.

It runs on Python 2.7 only, so it gets an environment of its own in the user's cache directory, made
with whatever Python 2.7 there is: the one in ``PATH``, one of pyenv's, or a package of the system. Where
there is none, Docker has it. Where neither works, :class:`Missing` says what to install.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VERSION = "25.10.1"
_REQUIREMENT = f"autobahntestsuite=={VERSION}"
_IMAGE = f"crossbario/autobahn-testsuite:{VERSION}"
_VIRTUALENV = "virtualenv<20.22"  # the last that makes environments for Python 2.7
_CAN_RUN_IT = "import ctypes, hashlib, ssl, sys, zlib; sys.exit(sys.version_info[:2] != (2, 7))"
_ADVICE = f"""\
wstest {VERSION} (Autobahn Testsuite) is needed, and there is neither a Python 2.7 nor a Docker engine here.
One of these helps:
  * pyenv install 2.7.18
  * apt-get install python2.7 python2.7-dev       (Debian 11, Ubuntu 22.04 and older)
  * a running Docker engine that can pull {_IMAGE}
  * WSTEST=/path/to/wstest, if you have it already"""


class Missing(Exception):
    """There is no wstest, and none can be installed; the message says what to do."""


def find_wstest(directory: Path) -> list[str]:
    """Return the command that starts wstest, installing it first where that is needed.

    :param directory: where the specification and the reports will be; a container must see it
    :raises Missing: when it is not there and cannot be installed
    """
    if given := os.environ.get("WSTEST"):
        return [given]
    for python in _pythons():
        return _in_environment(python)
    if _install_package():
        return _in_environment("/usr/bin/python2.7")
    if _succeeds("docker", "info"):
        folder = f"{directory}:{directory}"
        return ["docker", "run", "--rm", "--network=host", f"--volume={folder}", _IMAGE, "wstest"]
    raise Missing(_ADVICE)


def _in_environment(python: str) -> list[str]:
    """Return the command of an environment in the cache, made and filled if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyio_ws-conformance"
    cache.mkdir(parents=True, exist_ok=True)
    environment, done = cache / f"wstest-{VERSION}", cache / f"wstest-{VERSION}.complete"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runs may want to install it at once
        command = [str(environment / "bin" / "python"), "-u", str(environment / "bin" / "wstest")]
        if not done.exists() or not _succeeds(*command, "--help"):
            done.unlink(missing_ok=True)
            _make_environment(python, environment, cache / "virtualenv")
            done.touch()
    return command


def _make_environment(python: str, environment: Path, helper: Path) -> None:
    print(f"installing {_REQUIREMENT} for {python}, which takes half a minute", flush=True)
    for folder in (environment, helper):
        shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(helper))
    _run(str(helper / "bin" / "pip"), "install", _VIRTUALENV)
    _run(str(helper / "bin" / "virtualenv"), "--python", python, str(environment))
    _run(str(environment / "bin" / "pip"), "install", _REQUIREMENT)


def _pythons() -> Iterator[str]:
    """Yield every Python 2.7 that works; one of pyenv's may be in ``PATH`` and refuse to."""
    names = (shutil.which(name) for name in ("python2.7", "python2"))
    found = [Path(name) for name in names if name]
    for root in (os.environ.get("PYENV_ROOT"), "~/.pyenv", "/opt/pyenv"):
        if root:
            found += sorted(Path(root).expanduser().glob("versions/2.7*/bin/python2.7"))
    return (str(python) for python in found if _succeeds(str(python), "-c", _CAN_RUN_IT))


def _install_package() -> bool:
    """Install Debian's or Ubuntu's Python 2.7, where the release still has it and we may."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return False
    packages = ["python2.7", "python2.7-dev"]
    if not _succeeds("apt-get", "install", "--simulate", *packages):
        return False
    return _succeeds("apt-get", "install", "--yes", "--quiet", *packages)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=600, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(*command: str) -> None:
    """Run a step of the installation.

    :raises Missing: when it fails, with the end of what it printed
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2_000:]}")
