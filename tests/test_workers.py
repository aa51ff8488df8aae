"""``run``: workers are real processes, signals are real signals, and the peers are sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyio_ws import Config, Server, run
from anyio_ws.workers import pause_after

from .frames import build_frame, parse_frames
from .support import CLOSE, TEXT, build_request

PROGRAM = Path(__file__).parent / "worker_program.py"
PATIENCE = 120  # seconds after which a program that hangs is killed, and its test fails

if not hasattr(os, "fork"):
    pytest.skip("worker processes are started and signalled as POSIX does", allow_module_level=True)


class Client:
    """A client of sockets and bytes."""

    def __init__(self, address: Any) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if not isinstance(address, str) and ":" in address[0]:
            family = socket.AF_INET6
        self.socket = socket.socket(family)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(address if isinstance(address, str) else tuple(address))
        self.received = b""
        self.socket.sendall(build_request())

    def opened(self) -> Client:
        """Wait for the answer to the opening handshake."""
        while b"\r\n\r\n" not in self.received:
            self._more()
        assert self.received.startswith(b"HTTP/1.1 101 ")
        self.received = self.received.partition(b"\r\n\r\n")[2]
        return self

    def send(self, text: str) -> None:
        """Send a text message."""
        self.socket.sendall(build_frame(TEXT, text.encode(), key=b"mask"))

    def ask(self, text: str = "pid") -> str:
        """Send a message and return the answer."""
        self.send(text)
        opcode, payload = self.frame()
        assert opcode == TEXT
        return payload.decode()

    def expect_close(self, code: int) -> None:
        """Receive a Close, answer it, and receive the end."""
        assert self.frame() == (CLOSE, code.to_bytes(2, "big"))
        self.socket.sendall(build_frame(CLOSE, code.to_bytes(2, "big"), key=b"mask"))
        self.expect_end()

    def expect_end(self) -> None:
        """Receive nothing but the end of the stream, or a reset."""
        with contextlib.suppress(ConnectionResetError):
            assert self.socket.recv(100) == b""

    def frame(self) -> tuple[int, bytes]:
        """Receive a short frame."""
        while len(self.received) < 2 or len(self.received) < 2 + self.received[1]:
            self._more()
        size = 2 + self.received[1]
        (frame,) = parse_frames(self.received[:size])
        self.received = self.received[size:]
        return frame.opcode, frame.payload

    def _more(self) -> None:
        data = self.socket.recv(4096)
        assert data, "the connection has ended"
        self.received += data


class Running:
    """A program that runs, and the connections to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.clients: list[Client] = []
        self.addresses: list[Any] = []

    def line(self) -> Any:
        """Read what the program says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the program has ended, or was killed after it hung"
        return json.loads(line)

    def rest(self) -> list[Any]:
        """Read what all of its processes say until the last has gone."""
        assert self.process.stdout is not None
        return [json.loads(line) for line in self.process.stdout]

    def connect(self) -> Client:
        """Connect, and do not wait for an answer."""
        client = Client(self.addresses[0])
        self.clients.append(client)
        return client

    def open(self) -> Client:
        """Connect."""
        return self.connect().opened()

    def open_to_each(self, count: int) -> dict[int, Client]:
        """Open one connection to each of so many workers: who has one is held up while the others accept."""
        found: dict[int, Client] = {}
        while len(found) < count:
            client = self.open()
            pid = int(client.ask())
            assert pid not in found, "a process that is stopped has accepted"
            found[pid] = client
            os.kill(pid, signal.SIGSTOP)
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        return found

    def forget(self, *clients: Client) -> None:
        """Drop connections, which nobody then has to wait for."""
        for client in clients:
            client.socket.close()
            self.clients.remove(client)

    def end(self, *log: str) -> None:
        """Ask the program to end, and check that it does so in order; see :meth:`expect_code`."""
        self.forget(*self.clients)
        self.process.send_signal(signal.SIGTERM)
        assert self.rest()[-1] == "returned"
        self.expect_code(0, *log)

    def expect_code(self, code: int, *log: str) -> None:
        """Wait for the end; on standard error must stand lines that end like this, and no others."""
        assert self.process.stderr is not None
        lines = self.process.stderr.read().splitlines()
        assert len(lines) == len(log), lines
        assert all(line.endswith(end) for line, end in zip(lines, log, strict=True)), lines
        assert self.process.wait() == code


Start = Callable[..., Running]


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start the program; what is left of it at the end is killed."""
    backend = request.param
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Running:
            options["config"] = {"port": 0, **options.get("config", {})}
            options["backend"] = backend.replace("uvloop", "asyncio")
            options["backend_options"] = {"use_uvloop": True} if backend == "uvloop" else {}
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.worker_program", json.dumps(options)],
                    cwd=PROGRAM.parent.parent,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )

            def kill() -> None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

            stack.callback(kill)
            watchdog = threading.Timer(PATIENCE, kill)
            watchdog.start()
            stack.callback(watchdog.join)
            stack.callback(watchdog.cancel)
            running = Running(process)
            stack.callback(lambda: running.forget(*running.clients))
            if options.get("trouble") != "signal":
                running.addresses = running.line()
            return running

        yield start


# --- one worker -----------------------------------------------------------------------------------------


@pytest.mark.attack("O08")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_worker_is_this_process_and_a_signal_ends_it(start: Start, number: signal.Signals) -> None:
    """One worker serves in the process itself; the first signal is a goodbye with 1001 and exit code 0."""
    running = start()
    client = running.open()
    assert client.ask() == str(running.process.pid)
    running.process.send_signal(number)
    client.expect_close(1001)
    assert running.rest() == ["closed", "returned"]
    running.expect_code(0)


@pytest.mark.attack("O08")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_second_signal_ends_it_at_once(
    start: Start, tmp_path: Path, workers: int, number: signal.Signals, code: int
) -> None:
    """The second signal cuts what the first left time for; ``close`` is called, the socket file is gone."""
    path = tmp_path / "socket"
    config = {"unix_path": str(path), "shutdown_timeout": 3600, "worker_count": workers}
    running = start(config=config)
    client = running.open()
    client.send("wait")
    running.process.send_signal(signal.SIGTERM)
    assert client.frame() == (CLOSE, (1001).to_bytes(2, "big"))
    running.process.send_signal(number)
    client.expect_end()
    assert running.rest() == ["closed"]
    running.expect_code(code)
    assert not path.exists()


@pytest.mark.attack("O08")
def test_third_signal_ends_a_program_that_hangs(start: Start, tmp_path: Path) -> None:
    """A hook that blocks the event loop cannot hold up a third signal."""
    path = tmp_path / "socket"
    running = start(config={"unix_path": str(path)})
    running.open().send("block")
    assert running.line() == "blocked"
    while running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(0.05)
    assert running.rest() == []
    running.expect_code(130)
    assert not path.exists()


@pytest.mark.attack("O08")
def test_signal_before_the_server_is_up_counts(start: Start, tmp_path: Path) -> None:
    """A signal that comes before ``listen`` has begun ends the program as any other."""
    running = start(trouble="signal", config={"unix_path": str(tmp_path / "socket")})
    assert running.rest() == ["returned"]
    running.expect_code(0)


# --- several workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_workers_share_the_port(start: Start, address: str) -> None:
    """Two workers, neither of them the process that was started, serve on one port that was 0."""
    if address == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    running = start(config={"worker_count": 2, "address": address})
    workers = running.open_to_each(2)
    assert running.process.pid not in workers
    running.process.send_signal(signal.SIGTERM)
    for client in running.clients:
        client.expect_close(1001)
    assert running.rest()[-3:] == ["closed", "closed", "returned"]
    running.expect_code(0)


def test_workers_share_a_unix_socket(start: Start, tmp_path: Path) -> None:
    """While one worker is held up the other accepts from the same Unix socket; its file goes at the end."""
    path = tmp_path / "socket"
    running = start(config={"worker_count": 2, "unix_path": str(path)})
    first = int(running.open().ask())
    os.kill(first, signal.SIGSTOP)
    assert int(running.open().ask()) != first
    os.kill(first, signal.SIGCONT)
    running.end()
    assert not path.exists()


@pytest.mark.attack("O09")
def test_dead_worker_is_replaced_and_nobody_else_notices(start: Start) -> None:
    """After SIGKILL for one worker the other's connections live, and a new process takes its place."""
    running = start(config={"worker_count": 2})
    before = running.open_to_each(2)
    victim, bystander = before
    os.kill(victim, signal.SIGKILL)
    before[victim].expect_end()
    assert before[bystander].ask() == str(bystander)
    after = running.open_to_each(2)
    assert bystander in after
    assert victim not in after
    assert before[bystander].ask() == str(bystander)
    running.end(f"process {victim}, ended by signal 9")


@pytest.mark.attack("O09")
def test_connections_that_waited_for_a_dead_worker_are_served(start: Start) -> None:
    """Connections that nobody has accepted when all workers die are served by their successors."""
    running = start(config={"worker_count": 2})
    victims = [*running.open_to_each(2)]
    for victim in victims:
        os.kill(victim, signal.SIGSTOP)
    waiting = [running.connect() for _ in range(30)]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    assert {int(client.opened().ask()) for client in waiting}.isdisjoint(victims)
    running.end(*["ended by signal 9"] * 2)


def test_worker_that_is_full_leaves_connections_to_the_others(start: Start) -> None:
    """At ``max_conn`` of one worker the next connection goes to another; at that of all it waits."""
    running = start(config={"worker_count": 2, "max_conn": 1})
    first, second = running.open(), running.open()
    assert first.ask() != second.ask()
    third = running.connect()
    leaving = first.ask()
    running.forget(first)
    assert third.opened().ask() == leaving
    running.end()


def test_worker_told_to_end_does_so_in_order_and_is_replaced(start: Start) -> None:
    """SIGTERM to a worker is a goodbye to its own peers; a new process takes its place."""
    running = start(config={"worker_count": 2})
    before = running.open_to_each(2)
    old, other = before
    os.kill(old, signal.SIGTERM)
    before[old].expect_close(1001)
    after = running.open_to_each(2)
    assert other in after
    assert old not in after
    running.end()


@pytest.mark.attack("O08")
def test_signal_to_the_whole_group_is_one_signal(start: Start) -> None:
    """Ctrl-C in a terminal reaches every process at once, and is still a goodbye in order."""
    running = start(config={"worker_count": 2})
    workers = running.open_to_each(2)
    os.killpg(running.process.pid, signal.SIGINT)
    for client in workers.values():
        client.expect_close(1001)
    assert running.rest()[-1] == "returned"
    running.expect_code(0)


def test_workers_do_not_outlive_the_program(start: Start) -> None:
    """When the process that was started is killed, its workers say goodbye and end."""
    running = start(config={"worker_count": 2})
    workers = running.open_to_each(2)
    running.process.kill()
    for client in workers.values():
        client.expect_close(1001)
    assert set(running.rest()) == {"closed"}
    running.expect_code(-signal.SIGKILL)


@pytest.mark.attack("O08")
def test_signal_while_workers_start_counts(start: Start) -> None:
    """A signal that comes while the workers are about to listen ends the program in order."""
    running = start(trouble="signal", config={"worker_count": 2})
    assert running.rest()[-1] == "returned"
    running.expect_code(0)


def test_worker_that_hangs_is_killed(start: Start) -> None:
    """A worker whose event loop is blocked cannot hold up the end for longer than the timeouts allow."""
    running = start(config={"worker_count": 2, "shutdown_timeout": 0.1, "close_timeout": 0.1})
    running.open().send("block")
    assert running.line() == "blocked"
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    running.rest()
    assert running.process.stderr is not None
    assert "is killed" in running.process.stderr.read()
    assert running.process.wait() in (0, 130, 143)


@pytest.mark.attack("O09")
def test_worker_that_dies_at_start_is_started_again(start: Start, tmp_path: Path) -> None:
    """Workers that die before they listen are replaced until they do, and each death is logged."""
    deaths = tmp_path / "deaths"
    running = start(trouble="death", app={"deaths": str(deaths)}, config={"worker_count": 2})
    assert int(running.open().ask())
    running.end(*["ended with exit code 3"] * 3)
    assert deaths.read_text() == "x" * 5


def test_spawned_workers_serve_too(start: Start) -> None:
    """With spawn, workers are new interpreters that get handler and sockets handed over."""
    running = start(config={"worker_count": 2}, start_method="spawn")
    workers = running.open_to_each(2)
    assert running.process.pid not in workers
    running.end()


@pytest.mark.attack("O12", "F28")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_randomness_of_their_own(start: Start, method: str) -> None:
    """No two workers draw the same masking keys, although they are copies of one process."""
    running = start(config={"worker_count": 2}, start_method=method)
    workers = running.open_to_each(2)
    keys = []
    for client in workers.values():
        for _ in range(20):
            keys.append(client.ask("key"))
            assert client.frame()[0] == TEXT
    assert len(set(keys)) == 40
    running.end()


# --- what is wrong is said at once ----------------------------------------------------------------------


class Quiet:
    """A handler that says nothing."""

    def client_message(self, data: object) -> None:
        """Say nothing."""


def test_port_that_is_taken_is_an_error() -> None:
    """A port that another server has is an error here and now."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            run(Quiet, Config(port=other.getsockname()[1], worker_count=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_handler_is_an_error_before_anything_starts(workers: int) -> None:
    """A hook that is wrong raises here and now."""
    with pytest.raises(TypeError, match="client_message"):
        run(object, Config(port=0, worker_count=workers))


def test_what_cannot_be_pickled_is_named() -> None:
    """Spawned workers need their arguments pickled; the error says which cannot be, and what helps."""
    with pytest.raises(TypeError, match=r'app: .*"fork"'):
        run(Quiet, Config(port=0, worker_count=2), lambda: None, start_method="spawn")


def test_start_method_is_checked() -> None:
    """Another start method than fork or spawn is a ValueError that names the argument."""
    method: Any = "thread"
    with pytest.raises(ValueError, match="start_method"):
        run(Quiet, Config(port=0, worker_count=2), start_method=method)


def test_ready_that_fails_ends_the_program() -> None:
    """What ``ready`` raises is raised by ``run`` as it is, when the server has stopped."""

    def ready(addresses: object) -> None:
        raise KeyError(str(addresses))

    with pytest.raises(KeyError):
        run(Quiet, Config(port=0), ready=ready)


def test_handlers_of_signals_are_put_back() -> None:
    """After ``run`` signals do what they did before."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run(Quiet, Config(port=0), ready=lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.attack("O09")
def test_pauses_grow_with_each_failure() -> None:
    """The first replacement comes at once, those after it later and later, up to ten seconds."""
    pauses = [pause_after(failures) for failures in range(1, 12)]
    assert pauses[:4] == [0.0, 0.1, 0.2, 0.4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 10.0
    assert pause_after(10_000) == 10.0


async def test_run_inside_an_event_loop_is_refused() -> None:
    """Where an event loop runs already, ``run`` says what to use instead."""
    with pytest.raises(RuntimeError, match=r"Server\.listen"):
        run(Quiet)


async def test_listen_does_not_pretend_to_have_workers() -> None:
    """``listen`` refuses a configuration with several workers: it serves in one process."""
    with pytest.raises(ValueError, match="worker_count"):
        await Server(Quiet, Config(port=0, worker_count=2)).listen()


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False
