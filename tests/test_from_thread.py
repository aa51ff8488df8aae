"""``conn.from_thread``: writing and closing from threads that are not the event loop's."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

import anyio_ws
from anyio_ws import Config, ConnectionBroken, ConnectionEnded, ConnectionShut, Server
from anyio_ws.protocol import Role

from .memory import connection
from .support import BINARY, TEXT, listening, serving


def in_foreign_thread(function: Callable[[], Any]) -> Any:
    """Run a function in a thread that AnyIO knows nothing about; return or raise what it does."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as exc:  # noqa: BLE001 - raised again in the thread that waits
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@pytest.fixture(params=["worker thread of AnyIO", "foreign thread"])
def in_thread(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    """Run a function in some thread while the event loop goes on."""
    if request.param == "foreign thread":
        return lambda function: anyio.to_thread.run_sync(in_foreign_thread, function)
    return lambda function: anyio.to_thread.run_sync(function)


async def test_messages_from_a_thread_are_sent(in_thread: Any) -> None:
    """Text, binary and Close from another thread arrive in order, as if written by a task."""
    async with connection(Role.SERVER) as link:

        def talk() -> None:
            link.conn.from_thread.write("one")
            link.conn.from_thread.write_text("two")
            link.conn.from_thread.write_bin(bytearray(b"three"))

        await in_thread(talk)
        await link.peer.expect(TEXT, b"one")
        await link.peer.expect(TEXT, b"two")
        await link.peer.expect(BINARY, b"three")

        async def be_peer() -> None:
            await link.peer.expect_close(1001, "later")
            await link.peer.send_close(1001)

        link.tasks.start_soon(be_peer)
        await in_thread(partial(link.conn.from_thread.close, 1001, "later"))
        assert link.conn.state.name == "CLOSED"


async def test_threads_write_at_once_and_frames_stay_whole() -> None:
    """Ten threads that write at the same time lose no message, and each thread's stay in its order."""
    async with connection(Role.SERVER, outbox_size=200) as link:
        received: dict[str, list[int]] = {}

        async def be_peer() -> None:
            for _ in range(200):
                name, number, _ = (await link.peer.frame()).payload.decode().split()
                received.setdefault(name, []).append(int(number))

        def talk(name: int) -> None:
            for number in range(20):
                link.conn.from_thread.write(f"{name} {number} {'x' * 50}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(be_peer)
            for name in range(10):
                tasks.start_soon(anyio.to_thread.run_sync, talk, name)
    assert received == {str(name): list(range(20)) for name in range(10)}


async def test_write_blocks_until_the_message_is_taken(in_thread: Any) -> None:
    """A thread that writes into a full outbox goes on when there is room, not before."""
    async with connection(Role.SERVER, capacity=1000) as link:
        before = await link.fill_outbox()
        done: list[str] = []

        async def write() -> None:
            await in_thread(partial(link.conn.from_thread.write, "last"))
            done.append("returned")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await anyio.to_thread.run_sync(lambda: None)
            assert done == []
            await link.peer.expect(BINARY, before)
            await link.peer.expect(TEXT, b"last")
        assert done == ["returned"]


async def test_errors_are_those_of_the_async_methods(in_thread: Any) -> None:
    """What is wrong with the arguments, or with the connection, is raised in the thread as in a task."""
    async with connection(Role.SERVER) as link:
        no_text: Any = b"bytes"
        with pytest.raises(TypeError):
            await in_thread(partial(link.conn.from_thread.write, no_text))
        with pytest.raises(ValueError, match="reason"):
            await in_thread(partial(link.conn.from_thread.close, 1000, "x" * 124))
        await link.peer.send_close(1000)
        await link.conn.wait_gone()
        with pytest.raises(ConnectionBroken) as caught:
            await in_thread(partial(link.conn.from_thread.write, "too late"))
        assert caught.value.code == 1000


async def test_thread_is_told_that_we_closed(in_thread: Any) -> None:
    """After a close on this side a thread that writes gets ConnectionShut."""
    async with connection(Role.SERVER) as link:
        link.conn.close_nowait()
        with pytest.raises(ConnectionShut):
            await in_thread(partial(link.conn.from_thread.write, "too late"))


async def test_call_in_the_event_loop_thread_is_an_error_and_no_deadlock() -> None:
    """In the thread of the event loop every call is refused, with the sentence that says why."""
    async with connection(Role.SERVER) as link:
        thread = link.conn.from_thread
        for call in (partial(thread.write, "x"), partial(thread.write_bin, b"x"), thread.close):
            with pytest.raises(RuntimeError, match="event loop's own thread"):
                call()
        assert not link.conn.is_closed


def test_thread_that_outlives_the_event_loop_is_told(anyio_backend: Any) -> None:
    """When the event loop has ended, a write from a thread says that the connection is gone."""
    kept: list[anyio_ws.Conn] = []

    async def main() -> None:
        async with connection(Role.SERVER) as link:
            kept.append(link.conn)

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)
    with pytest.raises(ConnectionBroken):
        in_foreign_thread(partial(kept[0].from_thread.write, "anybody there?"))
    kept.clear()
    gc.collect()  # a coroutine that was never awaited would warn now


async def test_server_is_stopped_by_a_foreign_thread() -> None:
    """``server.stop`` in another thread ends ``listen``, and peers get the code that it was given."""

    class Quiet:
        def client_message(self, data: object) -> None:
            """Nothing is said."""

    server = Server(Quiet, Config(port=0))
    async with listening(server) as addresses:
        host, port = addresses[0]
        async with anyio_ws.connect(f"ws://{host}:{port}") as client:
            await anyio.to_thread.run_sync(in_foreign_thread, partial(server.stop, 1012, "restart"))
            with pytest.raises(ConnectionEnded) as caught:
                await client.receive()
            assert (caught.value.code, caught.value.reason) == (1012, "restart")
        await server.wait_stopped()


async def test_hook_in_a_thread_writes_through_its_connection() -> None:
    """A handler that works in a thread answers from there."""

    class Worker:
        def __init__(self, conn: anyio_ws.Conn) -> None:
            self.conn = conn

        async def client_message(self, data: str) -> None:
            await anyio.to_thread.run_sync(self.work, data)

        def work(self, data: str) -> None:
            self.conn.from_thread.write(data.upper())

    async with serving(Worker) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"hello")
        await peer.expect(TEXT, b"HELLO")
        await peer.close_handshake()
