"""``run()``: a server as a whole program, with worker processes and signals.

One worker is this very process. Several are children of it, and this process then serves nobody: it
binds, starts them, replaces those that die, and ends them. It runs no event loop, so that a fork copies
none.

All workers accept from the same listening sockets, which they inherit. Measured against a socket for each
worker (``SO_REUSEPORT``), that spreads connections as evenly and costs no more; and it does what those
cannot: a worker that is busy, full or dead leaves new connections to the others, Unix sockets work in the
same way, and a second server on the same port is an error.

Orders go to a worker through a pipe, not by signal: service managers and terminals send signals to all
processes at once, and a worker could not tell the first from the second. The end of the pipe is an
order, too: workers do not outlive this process.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import current_token

from .binding import BoundPath, clear_unix_path
from .config import Config
from .from_thread import Kept
from .link import HttpHandler
from .server import Server
from .tasks import background
from .transport import Address, address_of

logger: logging.Logger = logging.getLogger("anyio_ws.workers")

Ready = Callable[[list[Address]], object]
Context = ForkContext | SpawnContext

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOP, _ABORT, _UP = b"stop", b"abort", b"up"
_HEALTHY = 10.0  # seconds after which a worker that dies did not die of its start
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before a worker that died is replaced
_OVERTIME = 2.0  # seconds that a worker may be late before it is killed


def run(
    handler: Callable[..., Any],
    config: Config | None = None,
    app: object = None,
    *,
    backend: str = "asyncio",
    backend_options: Mapping[str, Any] | None = None,
    http_handler: HttpHandler | None = None,
    ready: Ready | None = None,
    start_method: Literal["fork", "spawn"] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM: the blocking entry point of a program.

    The first signal stops the server as :meth:`Server.stop` does, and this returns: the program may
    exit with 0. A second signal cuts all connections and cancels the hooks at work. A third ends the
    process, whatever hangs there. After a second or third signal the exit code is 128 and the signal's
    number: 130 for Ctrl-C. Signals that come before the server is up count like all others.

    Nothing is printed. The logger ``anyio_ws.workers`` gets the addresses and the life of the workers.

    :param handler: what :class:`Server` takes; a function for :func:`serve` looks like one that makes
        handlers, and is run with ``anyio.run(serve, function)``
    :param config: the settings; ``worker_count`` says how many processes serve. A worker that dies is
        replaced at once, and with pauses of up to 10 seconds when it keeps dying young. A worker that is
        sent SIGTERM ends in order, and is replaced. ``max_conn`` goes for each worker.
    :param app: handed to every handler; each worker has a copy of its own
    :param backend: ``"asyncio"`` or ``"trio"``
    :param backend_options: options for :func:`anyio.run`: ``{"use_uvloop": True}``
    :param http_handler: answers requests that ask for no WebSocket
    :param ready: called with the bound addresses when every worker accepts connections, in this process
    :param start_method: how worker processes are made. ``"fork"``, the default except on macOS and
        Windows: they are copies of this process, and everything may be handed to them; it must have no
        other threads then. ``"spawn"``: they start anew, import the main module (which therefore calls
        this under ``if __name__ == "__main__"``), and get handler, config and app pickled.
    :raises TypeError: when a hook is wrong, as :class:`Server` raises it; when something cannot be handed
        to a spawned worker
    :raises OSError: when the address cannot be bound
    :raises RuntimeError: when an event loop runs in this thread: use ``await server.listen()`` there
    :raises SystemExit: after a second signal

    Signals are handled only when this is called in the main thread.
    """
    if _in_event_loop():
        raise RuntimeError("run() starts event loops, and one is running here; await Server.listen()")
    job = _Job(handler, config or Config(), app, backend, dict(backend_options or {}), http_handler)
    server = job.make_server()  # wrong hooks are wrong now, not in each worker
    if job.config.worker_count == 1:
        _run_here(job, server, ready or _ignore)
    else:
        context = _context(start_method)
        if isinstance(context, SpawnContext):
            _check_picklable(job)
        _run_workers(job, ready or _ignore, context)


def _ignore(_: object) -> None:
    pass


def _in_event_loop() -> bool:
    try:
        current_token()
    except anyio.NoEventLoopError:
        return False
    return True


class _Job(NamedTuple):
    """What every worker needs to know."""

    handler: Callable[..., Any]
    config: Config
    app: object
    backend: str
    backend_options: dict[str, Any]
    http_handler: HttpHandler | None

    def make_server(self) -> Server[Any]:
        return Server(self.handler, self.config, http_handler=self.http_handler)

    def run(self, function: Callable[[], Any]) -> None:
        anyio.run(function, backend=self.backend, backend_options=self.backend_options)


class _Signals:
    """Counts the signals that ask this process to end, and reacts to each.

    :param react: called with the count and the signal's number, between two steps of whatever runs
    """

    def __init__(self, react: Callable[[int, int], None], signals: tuple[signal.Signals, ...]) -> None:
        self.count = 0
        self.number = 0
        self._react = react
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in self._signals}

    def __exit__(self, *exc_info: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.number = number
        self._react(self.count, number)

    def exit(self) -> None:
        """Exit as somebody who was told twice to do so."""
        if self.count > 1:
            raise SystemExit(128 + self.number)


# --- one process --------------------------------------------------------------------------------------


def _run_here(job: _Job, server: Server[Any], ready: Ready) -> None:
    """Serve in this process."""
    paths: list[BoundPath] = []

    def react(count: int, number: int) -> None:
        if count > 2:
            for path in paths:
                path.remove()
            os._exit(128 + number)
        (server.stop if count == 1 else server.abort)()

    def started(addresses: list[Address]) -> None:
        if job.config.unix_path is not None:
            paths.append(BoundPath(job.config.unix_path))
        if signals.count:
            react(signals.count, signals.number)
        else:
            logger.info("listening on %s", addresses)
            ready(addresses)

    async def main() -> None:
        async with background() as tasks:
            tasks.start_soon(_wake_for_signals)
            await _listen(server, job.app, started)

    signals = _Signals(react, _SIGNALS)
    with signals:
        job.run(main)
    signals.exit()


async def _listen(server: Server[Any], app: object, started: Ready, **options: Any) -> None:
    """Listen, and call a function when the server is up; what it raises is raised as it is."""
    status = _Started(server, started)
    await server.listen(app, task_status=status, **options)
    if status.kept.error is not None:
        raise status.kept.error


class _Started(TaskStatus[list[Address]]):
    """Calls a function when a server is up; when that fails, the server stops."""

    def __init__(self, server: Server[Any], call: Ready) -> None:
        self.kept = Kept()
        self._server = server
        self._call = call

    def started(self, value: list[Address] | None = None) -> None:
        """Note that the server is up."""
        with self.kept:
            self._call(value or [])
        if self.kept.error is not None:
            self._server.stop()


async def _wake_for_signals() -> None:
    """Have the event loop wake up when a signal comes, where nothing else does that: on asyncio.

    A handler in Python runs between two steps of the interpreter. A signal that comes just before the
    event loop begins to wait would wait with it for the next event.
    """
    wakes, wake = _waking_pair()
    with wakes, wake, _wakeup_fd(wake, yielding=True):
        while True:
            await anyio.wait_readable(wakes)
            wakes.recv(4096)


def _waking_pair() -> tuple[socket.socket, socket.socket]:
    """Make a pair of sockets: who waits for the first wakes up when the second is written to."""
    wakes, wake = socket.socketpair()
    wakes.setblocking(False)
    wake.setblocking(False)
    return wakes, wake


@contextlib.contextmanager
def _wakeup_fd(wake: socket.socket, *, yielding: bool = False) -> Iterator[None]:
    """Have signals write to a socket during a block; leave it if *yielding* and they write elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        if yielding and before != -1:
            signal.set_wakeup_fd(before)
        yield
    finally:
        signal.set_wakeup_fd(before)


# --- a worker process ---------------------------------------------------------------------------------


def _work(job: _Job, sockets: list[socket.socket], orders: Connection, inherited: list[Any]) -> None:
    """Be a worker: serve until ordered to stop.

    :param sockets: the listening sockets
    :param orders: the pipe on which orders come
    :param inherited: what a fork copied and is none of a worker's business
    """
    for each in inherited:
        each.close()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches everybody; one reacts
    try:
        # The path of a Unix socket belongs to the process that bound it.
        config = replace(job.config, unix_path=None, worker_count=1)
        server = job._replace(config=config).make_server()
        signals = _Signals(lambda *_: server.stop(), (signal.SIGTERM,))
        with signals:
            _unblock_signals()
            job.run(partial(_serve, job, server, sockets, orders, signals))
    except Exception:
        logger.exception("worker process %d failed", os.getpid())
        sys.exit(1)


async def _serve(
    job: _Job, server: Server[Any], sockets: list[socket.socket], orders: Connection, signals: _Signals
) -> None:
    def started(_: object) -> None:
        if signals.count:
            server.stop()
        with contextlib.suppress(OSError):  # nobody is there any more; the pipe's end says what to do
            orders.send_bytes(_UP)

    async with background() as tasks:
        tasks.start_soon(_wake_for_signals)
        tasks.start_soon(_obey, server, orders)
        await _listen(server, job.app, started, listeners=sockets)


async def _obey(server: Server[Any], orders: Connection) -> None:
    """Do what comes through the pipe, until it ends."""
    while True:
        await anyio.wait_readable(orders.fileno())
        try:
            order = orders.recv_bytes()
        except (EOFError, OSError):
            return server.stop()
        (server.abort if order == _ABORT else server.stop)()


# --- the process that has workers ---------------------------------------------------------------------


def _run_workers(job: _Job, ready: Ready, context: Context) -> None:
    """Bind, and have worker processes serve."""
    with _bound(job.config) as sockets:
        boss = _Boss(job, sockets, context, ready)
        signals = _Signals(lambda *_: None, _SIGNALS)
        with signals:
            boss.run(signals)
    signals.exit()


class _Worker:
    """The place of one worker, whoever takes it.

    :ivar process: who holds it now, ``None`` while nobody does
    :ivar due: when the next process is to be started
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Any = None
        self.orders: Any = None
        self.due = time.monotonic()
        self.began = 0.0
        self.is_up = False
        self.has_been_up = False
        self._failures = 0

    def started(self, process: Any, orders: Connection) -> None:
        """Note that a process has taken the place."""
        self.process, self.orders = process, orders
        self.began = time.monotonic()
        self.is_up = False
        logger.info("worker %d is process %d", self.number, process.pid)

    def hear(self) -> None:
        """Read what the worker says; its silence is noticed by its death."""
        try:
            self.orders.recv_bytes()
        except (EOFError, OSError):
            self.orders.close()
            self.orders = None
        else:
            self.is_up = self.has_been_up = True

    def order(self, what: bytes) -> None:
        """Give an order, if there is somebody to take it."""
        if self.orders is not None:
            with contextlib.suppress(OSError):
                self.orders.send_bytes(what)

    def kill(self) -> None:
        """End the process by force."""
        if self.process is not None:
            logger.warning("worker %d, process %d, is killed", self.number, self.process.pid)
            self.process.kill()

    def died(self) -> None:
        """Note that the process has gone, and when the next is due."""
        now = time.monotonic()
        self._failures = 1 if self.is_up and now - self.began >= _HEALTHY else self._failures + 1
        self.due = now + pause_after(self._failures)
        self.process.join()  # what said that it has gone came a moment before
        code, pid = self.process.exitcode, self.process.pid
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        logger.log(
            logging.WARNING if code else logging.INFO,
            "worker %d, process %d, ended %s",
            self.number,
            pid,
            how,
        )
        self.left()

    def left(self) -> None:
        """Release what belonged to a process that has gone."""
        self.process.join()
        self.process.close()
        self.process = None
        if self.orders is not None:
            self.orders.close()
            self.orders = None


def pause_after(failures: int) -> float:
    """Return how many seconds to wait before a worker is replaced, after so many failures in a row."""
    return 0.0 if failures < 2 else min(_FIRST_PAUSE * 2.0 ** min(failures - 2, 10), _LONGEST_PAUSE)


class _Boss:
    """Starts the workers, replaces those that die, and ends them all."""

    def __init__(self, job: _Job, sockets: list[socket.socket], context: Context, ready: Ready) -> None:
        self._job = job
        self._context = context
        self._ready: Ready | None = ready
        self._sockets = sockets
        self._workers = [_Worker(number) for number in range(1, job.config.worker_count + 1)]
        self._addresses = [address_of(each.getsockname()) for each in sockets]
        self._wakes, self._wake = _waking_pair()
        self._told = 0  # signals that were obeyed
        self._last_moment: float | None = None  # when workers that are still there are killed

    def run(self, signals: _Signals) -> None:
        """Work until a signal says stop, and all workers have gone."""
        with self._wakes, self._wake, _wakeup_fd(self._wake):
            try:
                while True:
                    self._obey(signals)
                    if self._last_moment is None:
                        self._start_due()
                    elif not any(worker.process for worker in self._workers):
                        return
                    self._wait()
            finally:
                self._kill_all()

    def _obey(self, signals: _Signals) -> None:
        """Do what the signals say that came since last time."""
        while self._told < signals.count:
            self._told += 1
            if self._told == 1:
                self._stop()
            elif self._told == 2:
                self._order(_ABORT, _OVERTIME)
            else:
                self._order(_ABORT, 0)
        if self._last_moment is not None and time.monotonic() >= self._last_moment:
            self._kill_all()

    def _stop(self) -> None:
        config = self._job.config
        self._order(_STOP, config.shutdown_timeout + config.close_timeout + _OVERTIME)

    def _order(self, what: bytes, grace: float) -> None:
        """Tell all workers to end, and kill those that have not after *grace* seconds."""
        self._last_moment = time.monotonic() + grace
        for each in self._sockets:
            each.close()
        for worker in self._workers:
            worker.order(what)

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.kill()
                worker.left()

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and worker.due <= time.monotonic():
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        ours, theirs = self._context.Pipe()
        inherited = self._strange_to(worker, ours) if isinstance(self._context, ForkContext) else []
        arguments = (self._job, self._sockets, theirs, inherited)
        process = self._context.Process(target=_work, args=arguments, name=f"anyio_ws worker {worker.number}")
        with _blocked_signals():
            process.start()
        theirs.close()
        worker.started(process, ours)

    def _strange_to(self, worker: _Worker, orders: Connection) -> list[Any]:
        """Return what a fork copies and a worker must let go: it would keep it open for us."""
        others = [each for each in self._workers if each is not worker]
        strange: list[Any] = [orders, self._wakes, self._wake]
        strange += [each.orders for each in others if each.orders is not None]
        return strange

    def _wait(self) -> None:
        """Wait until something happens, or a moment comes, and note what it was."""
        sources: dict[Any, Callable[[], object]] = {self._wakes: partial(self._wakes.recv, 4096)}
        for worker in self._workers:
            if worker.orders is not None:
                sources[worker.orders] = worker.hear
            if worker.process is not None:
                sources[worker.process.sentinel] = worker.died
        for source in multiprocessing.connection.wait(list(sources), self._timeout()):
            sources[source]()
        if (
            self._ready is not None
            and self._last_moment is None
            and all(worker.has_been_up for worker in self._workers)
        ):
            logger.info("listening on %s", self._addresses)
            ready, self._ready = self._ready, None
            ready(self._addresses)

    def _timeout(self) -> float | None:
        moments = [worker.due for worker in self._workers if worker.process is None]
        if self._last_moment is not None:
            moments = [self._last_moment]
        return max(0.0, min(moments) - time.monotonic()) if moments else None


def _check_picklable(job: _Job) -> None:
    """Check that everything can be handed to a process that starts anew.

    :raises TypeError: when something cannot; it names what
    """
    for name in ("handler", "config", "app", "http_handler"):
        try:
            ForkingPickler.dumps(getattr(job, name))
        except Exception as exc:
            raise TypeError(
                f'{name}: a worker that is spawned gets it pickled, and {exc}; "fork" needs no pickling'
            ) from exc


def _context(start_method: str | None) -> Context:
    if start_method is None:
        # The system libraries of macOS do not survive a fork, and Windows has none.
        start_method = "spawn" if sys.platform in ("darwin", "win32") else "fork"
    if start_method not in ("fork", "spawn"):
        raise ValueError(f'start_method: "fork" or "spawn" is needed, not {start_method!r}')
    return ForkContext() if start_method == "fork" else SpawnContext()


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold signals back while a process is started, here and, until it can react, in that process."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


# --- binding ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bound(config: Config) -> Iterator[list[socket.socket]]:
    """Bind what the configuration says, and give the listening sockets."""
    with contextlib.ExitStack() as stack:
        if config.unix_path is not None:
            path = Path(config.unix_path)
            clear_unix_path(path)
            sockets = [stack.enter_context(socket.socket(socket.AF_UNIX))]
            sockets[0].bind(str(path))
            stack.callback(BoundPath(path).remove)
        else:
            sockets = []
            for family, address in _resolve(config):
                port = sockets[0].getsockname()[1] if sockets else config.port  # one for all, also when 0
                sockets.append(stack.enter_context(_bind(family, (address[0], port, *address[2:]))))
        for each in sockets:
            each.listen(config.backlog)
        yield sockets


def _resolve(config: Config) -> list[tuple[int, Any]]:
    """Return family and address of everything that a name stands for, each once."""
    found = socket.getaddrinfo(config.address, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener
