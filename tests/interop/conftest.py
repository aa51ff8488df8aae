"""What the tests with neighbours share: certificates, the neighbours' processes, the interop table."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from ..certificates import AUTHORITY
from .meeting import Certificates
from .neighbours import CHROMIUM, NEIGHBOURS, ROOT
from .program import HOST
from .table import Cell, Table

DOCUMENT = ROOT / "docs" / "interop.md"
_table = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make a server's certificate, and that of its authority; as files, for the neighbours."""
    directory = tmp_path_factory.mktemp("certificates")
    files = Certificates(ca=str(directory / "ca.pem"), server=str(directory / "server.pem"))
    AUTHORITY.cert_pem.write_to_path(files.ca)
    AUTHORITY.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(files.server)
    return files


@pytest.fixture(scope="session", autouse=True)
def _neighbours(certificates: Certificates) -> Iterator[None]:
    """Have the browser trust our server; end the neighbours' processes after the last test."""
    CHROMIUM.certificate = certificates.server
    yield
    for neighbour in NEIGHBOURS:
        neighbour.end()


# --- the table ------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-interop-table",
        action="store_true",
        help=f"write {DOCUMENT.relative_to(ROOT)}; every test of tests/interop must run and pass",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_table] = Table()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.config.stash[_table].expect(_cell(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" or not report.passed:
        item.config.stash[_table].record(_cell(item), passed=report.passed)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    table = session.config.stash[_table]
    if session.config.getoption("--write-interop-table", default=False):
        if table.is_complete:
            DOCUMENT.write_text(table.render_document(each.version for each in NEIGHBOURS), "utf-8")
        else:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[_table]
    if table.is_started:
        terminalreporter.section("interoperability")
        terminalreporter.write_line(table.render().strip("\n"))
    if config.getoption("--write-interop-table", default=False):
        done = "written" if table.is_complete else "NOT written: not every test ran and passed"
        terminalreporter.write_line(f"{DOCUMENT}: {done}")


def _cell(item: pytest.Item) -> Cell:
    marker = item.get_closest_marker("interop")
    assert marker is not None, f"{item.nodeid} has no interop marker"
    assert isinstance(item, pytest.Function)
    backend: Any = item.callspec.params["anyio_backend"]
    name = "uvloop" if backend[1].get("use_uvloop") else backend[0]
    return Cell(marker.kwargs["row"], marker.kwargs.get("column"), name)
