"""The floors of the house, and the habits that keep it one.

``FLOORS`` is the plan: a module imports from lower floors, or from a module that stands before it on its
own floor. Each rule is a function from a module to its complaints. A rule is tested twice: it has nothing
to say about the package, and it does complain about code that breaks it.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import anyio_ws

PACKAGE = Path(anyio_ws.__file__).parent
NAME = PACKAGE.name

# The name of a module is that inside the package. "testing.*" is every module below ``testing``: these may
# import each other as long as that makes no circle.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("exceptions", "events", "_version"),
    ("_framing_py", "_framing_c", "framing", "http11", "handshake", "deflate"),
    ("protocol",),
    (
        "buffers",
        "config",
        "scratch",
        "write_buffer",
        "views",
        "from_thread",
        "_lane_py",
        "_lane_c",
        "lane",
        "poller",
        "threads",
        "deadlines",
        "tasks",
        "throttle",
        "transport",
        "sockets",
        "tls",
        "binding",
        "connecting",
    ),
    ("handler", "inbox", "pings", "closing", "conn", "backlog", "broadcast"),
    ("link", "server", "client"),
    ("workers", "blocking", "streams", "testing.*", "testing"),
    ("__init__",),  # the public names
    ("demo", "__main__"),  # programs that use them
)
STRANGERS = frozenset({"server", "client"})  # never import each other
PURE = frozenset(name for floor in FLOORS[:3] for name in floor)  # no event loop, no I/O, no clock
KNOW_THE_EVENT_LOOP = frozenset({"poller", "testing.clock"})
IMPORT_LATE = frozenset({"__main__", "poller", "testing.clock"})  # optional packages, inside functions
REQUIRED = frozenset({NAME, "anyio", *sys.stdlib_module_names})  # always there, so never imported late
EVENT_LOOPS = frozenset({"asyncio", "trio", "uvloop"})
DUSTBINS = frozenset({"utils", "util", "helpers", "common", "misc"})
MOST_EXCUSES = 10


class Module(NamedTuple):
    """A module of the package, and what it says."""

    name: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def package(self) -> list[str]:
        """The package that its relative imports start from, below ours."""
        parts = self.name.split(".")
        return parts if self.name == "testing" else parts[:-1]


def name_of(path: Path) -> str:
    """Return the name of a module from its path in the package: ``testing`` for ``testing/__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = [Module(name_of(path), path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]
KNOWN = {
    f"{NAME}.{name}"
    for name in [*(module.name for module in MODULES), *(n for floor in FLOORS for n in floor)]
}
every_module = pytest.mark.parametrize("module", MODULES, ids=[module.name for module in MODULES])


def place(name: str) -> tuple[int, int] | None:
    """Return floor and position of a module, ``None`` when it has none."""
    for number, floor in enumerate(FLOORS):
        for position, pattern in enumerate(floor):
            if fnmatchcase(name, pattern):
                return number, position
    return None


# --- what a module imports ------------------------------------------------------------------------


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything that a module imports, ours as ``anyio_ws.conn``."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [NAME, *module.package]
                base = ".".join([*here[: len(here) + 1 - node.level], *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"  # in "from . import conn" a module, otherwise rarely
                yield node.lineno, name if name in KNOWN else base


def own_imports(module: Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every module of the package that a module imports."""
    for line, name in imports(module):
        package, _, inner = name.partition(".")
        if package == NAME:
            yield line, inner or "__init__"


def complain_about_floor(module: Module) -> Iterator[str]:
    """A module imports only from below."""
    here = place(module.name)
    if here is None:
        yield f"{module.name} has no floor: give it one in FLOORS, above all that it imports"
        return
    for line, name in own_imports(module):
        there = place(name)
        same = there == here and name != module.name  # both are in testing.*
        if there is None:
            yield f"{module.name}:{line} imports {name}, which has no floor: give it one in FLOORS"
        elif not (there < here or same) or {module.name, name} == STRANGERS:
            yield f"{module.name}:{line} imports {name}, which is not below it"


def top_of(tree: ast.Module) -> list[ast.AST]:
    """Return all that stands before the first function or class, whatever ``if`` or ``try`` it is in."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = []
    for statement in tree.body:
        nodes = list(ast.walk(statement))
        if any(isinstance(node, definitions) for node in nodes):
            break
        top += nodes
    return top


def complain_about_late_import(module: Module) -> Iterator[str]:
    """Imports stand at the top; only optional packages may be imported late, where that is needed."""
    tree = module.tree
    top = {node.lineno for node in top_of(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    for line, name in imports(module):
        if line not in top and (module.name not in IMPORT_LATE or name.partition(".")[0] in REQUIRED):
            yield f"{module.name}:{line} imports {name} below the top"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("__import__", "import_module")):
            names = [str(part.value) for part in node.args if isinstance(part, ast.Constant)]
            if any(name.startswith((".", NAME)) for name in names):
                yield f"{module.name}:{node.lineno} imports {names[0]} by a call"


def complain_about_type_checking(module: Module) -> Iterator[str]:
    """No import is made for the type checker only: it would hide a circle."""
    for node in ast.walk(module.tree):
        names = {getattr(node, field, None) for field in ("id", "attr", "name")}
        if "TYPE_CHECKING" in names:
            yield f"{module.name} mentions TYPE_CHECKING"


def complain_about_event_loop(module: Module) -> Iterator[str]:
    """Event loops are imported by name in one small place only."""
    for line, name in imports(module):
        if name.partition(".")[0] in EVENT_LOOPS and module.name not in KNOW_THE_EVENT_LOOP:
            yield f"{module.name}:{line} imports {name}"


def complain_about_impurity(module: Module) -> Iterator[str]:
    """Floors 0 to 2 import the standard library and each other, never wait, and have no clock."""
    if module.name not in PURE:
        return
    for line, name in imports(module):
        package = name.partition(".")[0]
        if package == "time" or package not in {NAME, *sys.stdlib_module_names}:
            yield f"{module.name}:{line} imports {name}"
    waiting = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    for node in ast.walk(module.tree):
        if isinstance(node, waiting) or (isinstance(node, ast.comprehension) and node.is_async):
            yield f"{module.name} has {type(node).__name__}"


def complain_about_init(module: Module) -> Iterator[str]:
    """The package's ``__init__`` has a docstring, imports and ``__all__``, and nothing else."""
    if module.name != "__init__":
        return
    for node in module.tree.body[1:]:
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        if not is_import and not ast.unparse(node).startswith("__all__ = "):
            yield f"{module.name}:{node.lineno} is neither an import nor __all__"


def complain_about_name(module: Module) -> Iterator[str]:
    """No module collects what belongs nowhere."""
    if DUSTBINS & set(module.name.split(".")):
        yield f"{module.name} has a name that says nothing"


# --- what a module says about itself --------------------------------------------------------------


def complain_about_docstring(module: Module) -> Iterator[str]:
    """A module, and every public class, function and method in it, opens with a docstring."""
    if ast.get_docstring(module.tree) is None:
        yield f"{module.name} has no docstring"
    yield from undocumented(module.tree, module.name)


def undocumented(parent: ast.AST, path: str) -> Iterator[str]:
    """Name what is public and has no docstring, inside functions excepted."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            # The documentation of these stands at the first of several definitions, or at the last.
            again = any(text.endswith(("overload", ".setter", ".deleter")) for text in decorators)
            if node.name.startswith("_") or again:
                continue
            if ast.get_docstring(node) is None:
                yield f"{path}.{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node, f"{path}.{node.name}")
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from undocumented(node, path)


_excuse = re.compile(
    r"""type:\s*ignore(\[[\w,\s-]*\])?   # mypy
      | (ruff:\s*)?noqa(:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*)?  # ruff
      | (mypy|pyright|pylint):\s*\S+     # settings in a comment
    """,
    re.VERBOSE | re.IGNORECASE,
)


def comments(module: Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def excuses(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the line of each comment that silences a checker, and what else that comment says."""
    for line, text in comments(module):
        for _ in _excuse.finditer(text):
            yield line, _excuse.sub("", text)


def complain_about_excuse(module: Module) -> Iterator[str]:
    """Whoever silences a checker says why, in words."""
    for line, reason in excuses(module):
        if len(re.findall(r"[^\W\d_]+", reason)) < 2:
            yield f"{module.name}:{line} silences a checker without a reason"


def complain_about_pragma(module: Module) -> Iterator[str]:
    """Nothing is excluded from coverage by a comment."""
    for line, text in comments(module):
        if re.search(r"pragma\s*:|no\s*(cover|branch)\b", text, re.IGNORECASE):
            yield f"{module.name}:{line} is excluded from coverage"


# --- the rules and the package --------------------------------------------------------------------

Rule = Callable[[Module], Iterator[str]]
RULES: list[Rule] = [
    complain_about_floor,
    complain_about_late_import,
    complain_about_type_checking,
    complain_about_event_loop,
    complain_about_impurity,
    complain_about_init,
    complain_about_name,
    complain_about_docstring,
    complain_about_excuse,
    complain_about_pragma,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("complain_about_"))
@every_module
def test_module_keeps_the_rule(module: Module, rule: Rule) -> None:
    """No rule has a complaint about any module."""
    complaints = list(rule(module))
    assert not complaints


def test_package_was_found() -> None:
    """The walk has seen the package: the rules were not kept for want of modules."""
    names = {module.name for module in MODULES}
    assert names >= {"__init__", *FLOORS[0], "_framing_py", "framing", "http11", "handshake", "protocol"}


def test_compiled_modules_have_a_floor() -> None:
    """Modules that are written in C stand in the plan like the others."""
    sources = [path for suffix in ("*.c", "*.so", "*.pyd") for path in PACKAGE.rglob(suffix)]
    names = {path.relative_to(PACKAGE).as_posix().partition(".")[0].replace("/", ".") for path in sources}
    assert not [f"{name}: give it a floor in FLOORS" for name in names if place(name) is None]


def test_imports_make_no_circle() -> None:
    """No module imports itself by way of others, where the plan leaves the order open in particular."""
    graph = {module.name: {name for _, name in own_imports(module)} for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # a CycleError names the circle
    assert order.index("exceptions") < order.index("protocol")


def test_excuses_are_few() -> None:
    """In the whole package checkers are silenced at most ten times."""
    lines = [f"{module.name}:{line}" for module in MODULES for line, _ in excuses(module)]
    assert len(lines) <= MOST_EXCUSES, lines


def test_pure_floors_import_without_anything_but_the_standard_library() -> None:
    """Floors 0 to 2 load without AnyIO, event loops, sockets and TLS, and load none of them."""
    pure = [module.name for module in MODULES if module.name in PURE]
    script = f"""
import sys
import types

blocked = ["anyio", "asyncio", "trio", "uvloop", "socket", "_socket", "ssl", "_ssl", "select", "selectors"]
sys.modules.update(dict.fromkeys(blocked))  # from now on importing one of them is an ImportError
try:
    import anyio
except ImportError:
    print("blocked")

package = types.ModuleType({NAME!r})  # in place of the one whose __init__ imports all floors
package.__path__ = [{str(PACKAGE)!r}]
sys.modules[{NAME!r}] = package
for name in {pure!r}:
    __import__({NAME!r} + "." + name)
print(*sorted(name for name in sys.modules if name.startswith({NAME + "."!r})))
print(*(name for name in blocked if sys.modules[name] is not None))
"""
    # -S leaves out site-packages: there is nothing but the standard library to import from.
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    blocked, loaded, leaked = run.stdout.splitlines()
    assert blocked == "blocked"
    assert {f"{NAME}.{name}" for name in pure} <= set(loaded.split()) <= {f"{NAME}.{name}" for name in PURE}
    assert leaked == ""


def test_internals_name_every_module_on_its_floor() -> None:
    """The table of ``docs/internals.md`` is the list of files: a newcomer finds each, floor by floor."""
    text = (PACKAGE.parent / "docs" / "internals.md").read_text("utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]
    floors: list[set[str]] = []
    for floor, modules in rows[2:]:
        if floor.strip():
            floors.append(set())
        floors[-1].update(re.findall(r"`(\w+)`", modules))
    hidden = {"_version", "__init__", "testing.*"}
    assert floors == [set(floor) - hidden for floor in FLOORS if set(floor) - hidden]


# --- the rules and those who break them -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (complain_about_floor, "newcomer", ""),
        (complain_about_floor, "testing.deeper.newcomer", "from ...newcomer import a"),
        (complain_about_floor, "events", "from .framing import frame"),
        (complain_about_floor, "events", "def f():\n from .framing import frame"),
        (complain_about_floor, "events", "import anyio_ws.protocol"),
        (complain_about_floor, "events", "from anyio_ws import protocol"),
        (complain_about_floor, "events", "from anyio_ws.protocol import State"),
        (complain_about_floor, "exceptions", "from . import events"),
        (complain_about_floor, "framing", "from .handshake import accept"),
        (complain_about_floor, "handler", "from .conn import Conn"),
        (complain_about_floor, "server", "from .client import connect"),
        (complain_about_floor, "client", "from .server import Server"),
        (complain_about_floor, "server", "from .testing.kit import client"),
        (complain_about_floor, "server", "from .testing import client"),
        (complain_about_floor, "testing.kit", "from . import client"),
        (complain_about_floor, "testing.kit", "from .. import connect"),
        (complain_about_floor, "conn", "import anyio_ws"),
        (complain_about_floor, "testing.kit", "from anyio_ws import Server"),
        (complain_about_floor, "__init__", "from .__main__ import main"),
        (complain_about_floor, "conn", "from .newcomer import a"),
        (complain_about_floor, "conn", "from .conn import Conn"),
        (complain_about_late_import, "conn", "def f():\n import json"),
        (complain_about_late_import, "conn", "class A:\n import json"),
        (complain_about_late_import, "conn", "class A: pass\nimport json"),
        (complain_about_late_import, "conn", "def f(): pass\nif True:\n import json"),
        (complain_about_late_import, "conn", "def f(): return __import__('anyio_ws.server')"),
        (complain_about_late_import, "conn", "importlib.import_module('.server', 'anyio_ws')"),
        (complain_about_late_import, "poller", "def f():\n import json"),
        (complain_about_late_import, "__main__", "def f():\n from .server import Server"),
        (complain_about_late_import, "__main__", "def f():\n import anyio"),
        (complain_about_type_checking, "conn", "from typing import TYPE_CHECKING"),
        (complain_about_type_checking, "conn", "import typing\nif typing.TYPE_CHECKING: pass"),
        (complain_about_event_loop, "conn", "import asyncio"),
        (complain_about_event_loop, "server", "from trio.lowlevel import wait_readable"),
        (complain_about_event_loop, "testing.kit", "def f():\n import uvloop as u"),
        (complain_about_impurity, "protocol", "import time"),
        (complain_about_impurity, "http11", "from time import monotonic as m"),
        (complain_about_impurity, "deflate", "import anyio"),
        (complain_about_impurity, "framing", "async def f(): pass"),
        (complain_about_impurity, "events", "async def f():\n return [a async for a in b]"),
        (complain_about_init, "__init__", '"""Doc."""\nfrom .conn import Conn\nx = 1'),
        (complain_about_init, "__init__", '"""Doc."""\ndef f(): pass\n__all__ = ["f"]'),
        (complain_about_init, "__init__", '"""Doc."""\n__all__ += ["f"]'),
        (complain_about_name, "utils", ""),
        (complain_about_name, "testing.helpers", ""),
        (complain_about_docstring, "conn", "import json"),
        (complain_about_docstring, "conn", '"""Doc."""\ndef f(): pass'),
        (complain_about_docstring, "conn", '"""Doc."""\nclass A: pass'),
        (complain_about_docstring, "conn", '"""Doc."""\nclass A:\n "Doc."\n async def f(self): pass'),
        (complain_about_docstring, "conn", '"""Doc."""\nif True:\n def f(): pass'),
        (complain_about_docstring, "conn", '"""Doc."""\ntry:\n pass\nexcept E:\n def f(): pass'),
        (complain_about_excuse, "conn", "a = 1  # noqa"),
        (complain_about_excuse, "conn", "a = 1  # noqa: BLE001, F401"),
        (complain_about_excuse, "conn", "a = 1  # type: ignore[attr-defined, misc]"),
        (complain_about_excuse, "conn", "a = 1  # type:ignore  # noqa: F401"),
        (complain_about_excuse, "conn", "# ruff: noqa: F401"),
        (complain_about_excuse, "conn", "# mypy: ignore-errors"),
        (complain_about_pragma, "conn", "a = 1  # pragma: no cover"),
        (complain_about_pragma, "conn", "a = 1  # pragma:no branch - why not"),
    ],
)
def test_rule_complains_about_those_who_break_it(rule: Rule, name: str, source: str) -> None:
    """Each rule finds the code that breaks it."""
    assert list(rule(Module(name, source)))


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (complain_about_floor, "framing", "from ._framing_c import MessageReader"),
        (complain_about_floor, "testing.kit", "from ..server import Server\nfrom .memory import a"),
        (complain_about_floor, "testing", "from .kit import client"),
        (complain_about_floor, "__main__", "from . import server, connect\nfrom .testing import client"),
        (complain_about_floor, "__init__", "from .server import Server\nfrom .testing import init"),
        (complain_about_late_import, "framing", "a = 1\ntry:\n import b\nexcept ImportError:\n import c"),
        (complain_about_late_import, "poller", "def f():\n import trio"),
        (complain_about_late_import, "deflate", "def f(name): return import_module(name)"),
        (complain_about_event_loop, "poller", "import asyncio"),
        (complain_about_event_loop, "conn", "import anyio.to_thread"),
        (complain_about_impurity, "conn", "import time\nasync def f(): pass"),
        (complain_about_init, "__init__", '"""Doc."""\nimport a\n__all__ = ["a"]'),
        (complain_about_docstring, "conn", '"""Doc."""\ndef _f(): pass\nclass _A:\n def f(): pass'),
        (complain_about_docstring, "conn", '"""Doc."""\n@a.setter\ndef a(self, value): pass'),
        (complain_about_excuse, "conn", "a = 1  # noqa: BLE001 - kept for later"),
        (complain_about_excuse, "conn", "a = '# noqa'"),
        (complain_about_pragma, "conn", "a = 1  # covers everything"),
    ],
)
def test_rule_does_not_complain_about_others(rule: Rule, name: str, source: str) -> None:
    """No rule minds what is allowed."""
    assert not list(rule(Module(name, source)))


def test_module_without_a_floor_is_told_to_get_one() -> None:
    """Who adds a module learns from the failure what to do."""
    (complaint,) = complain_about_floor(Module("newcomer", ""))
    assert complaint == "newcomer has no floor: give it one in FLOORS, above all that it imports"
