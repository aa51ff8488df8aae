"""The demonstration: its chat, its page, its terminal client, and the command line that runs them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import urlencode

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

import anyio_ws
from anyio_ws import (
    Client,
    CloseCode,
    Config,
    Conn,
    ConnectionClosed,
    ConnectionEnded,
    Handshake,
    HandshakeRejected,
    Headers,
    Request,
    Server,
    connect,
    demo,
    testing,
)
from anyio_ws.__main__ import main
from anyio_ws.demo import Listener, Member, Room

from .support import virtual

TIMEOUT = 60.0  # seconds after which a test has hung
TWO_BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# --- the room: in memory ------------------------------------------------------------------------------


def enter(room: Room, name: str | None = None) -> contextlib.AbstractAsyncContextManager[Client]:
    """Connect to a room in memory, asking for a name."""
    path = "/" if name is None else "/?" + urlencode({"name": name})
    return testing.client(Member, room, path=path, config=Config(max_message_size=demo.MAX_MESSAGE))


async def hear(client: Client) -> dict[str, Any]:
    """Return what the server said next."""
    with anyio.fail_after(TIMEOUT):
        heard = json.loads(await client.receive())
    assert isinstance(heard, dict)
    return heard


async def ask(client: Client, **fields: object) -> dict[str, Any]:
    """Say something to the server, and return what it says next."""
    await client.write(json.dumps(fields))
    return await hear(client)


async def hear_until_closed(client: Client) -> None:
    """Listen until the connection has ended."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await hear(client)


async def test_member_is_welcomed_and_announced() -> None:
    """Who enters hears who is here, and everybody else hears who entered and who left."""
    room = Room()
    async with enter(room, "Ada") as ada:
        assert await hear(ada) == {"type": "welcome", "name": "Ada", "names": ["Ada"]}
        async with enter(room, "Grace") as grace:
            assert await hear(ada) == {"type": "joined", "name": "Grace"}
            assert await hear(grace) == {"type": "welcome", "name": "Grace", "names": ["Ada", "Grace"]}
        assert await hear(ada) == {"type": "left", "name": "Grace"}
    assert room.names == []


async def test_member_speaks_to_everybody() -> None:
    """What is said reaches everybody, the speaker too, under the speaker's name."""
    room = Room()
    async with enter(room, "Ada") as ada, enter(room, "Grace") as grace:
        await hear(ada)
        await hear(ada)
        await hear(grace)
        said = {"type": "said", "name": "Ada", "text": "<b>Hello</b> \u2615"}
        assert await ask(ada, type="say", text="<b>Hello</b> \u2615") == said
        assert await hear(grace) == said


async def test_member_is_renamed_for_everybody() -> None:
    """A new name is told to everybody; one's own name in other letters is free for oneself."""
    room = Room()
    async with enter(room, "Ada") as ada, enter(room) as guest:
        await hear(ada)
        await hear(ada)
        await hear(guest)
        renamed = {"type": "renamed", "name": "Guest 2", "to": "Grace"}
        assert await ask(guest, type="name", name="Grace") == renamed
        assert await hear(ada) == renamed
        assert (await ask(guest, type="name", name="GRACE"))["to"] == "GRACE"
        assert room.names == ["Ada", "GRACE"]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        pytest.param("ADA", "the name ADA is taken", id="taken"),
        pytest.param("\uff21\uff44\uff41", "the name \uff21\uff44\uff41 is taken", id="looks-the-same"),
        pytest.param("", "a name has 1 to 24 characters", id="empty"),
        pytest.param("\u200d", "a name has 1 to 24 characters", id="invisible"),
        pytest.param("\x1b\n", "a name has 1 to 24 characters", id="control-characters"),
        pytest.param("x" * 25, "a name has 1 to 24 characters", id="too-long"),
    ],
)
async def test_wish_that_cannot_be_granted_makes_a_guest(wish: str, reason: str) -> None:
    """Who asks for a name that cannot be had enters as a guest, and is told why."""
    room = Room()
    async with enter(room, "Ada"), enter(room, wish) as other:
        assert await hear(other) == {"type": "welcome", "name": "Guest 2", "names": ["Ada", "Guest 2"]}
        assert await hear(other) == {"type": "error", "reason": reason}


async def test_guest_gets_a_free_number() -> None:
    """A guest is not given a name that somebody has chosen."""
    room = Room()
    async with enter(room, "guest 2"), enter(room) as guest:
        assert (await hear(guest))["name"] == "Guest 3"


SHAPE = 'send {"type": "say", "text": "..."} or {"type": "name", "name": "..."}'


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param("nonsense", SHAPE, id="no-json"),
        pytest.param("[" * 8_000, SHAPE, id="nested-too-deeply"),
        pytest.param('["say"]', SHAPE, id="no-object"),
        pytest.param('{"type": "sing"}', SHAPE, id="unknown-type"),
        pytest.param('{"type": "say"}', SHAPE, id="no-text"),
        pytest.param('{"type": "say", "text": 7}', SHAPE, id="text-is-a-number"),
        pytest.param('{"type": "name", "name": null}', SHAPE, id="name-is-null"),
        pytest.param(b'{"type": "say", "text": "x"}', SHAPE, id="binary"),
        pytest.param('{"type": "say", "text": " "}', "a text has 1 to 500 characters", id="blank"),
        pytest.param(demo.note("say", text="x" * 501), "a text has 1 to 500 characters", id="too-long"),
        pytest.param(demo.note("name", name="x" * 25), "a name has 1 to 24 characters", id="long-name"),
    ],
)
async def test_bad_input_is_answered_with_an_error(message: str | bytes, reason: str) -> None:
    """What cannot be done is answered with the reason, and the connection stays usable."""
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        await ada.send(message)
        assert await hear(ada) == {"type": "error", "reason": reason}
        assert (await ask(ada, type="say", text="Hi"))["text"] == "Hi"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("a\x1b[2Jb", "a [2Jb", id="escape"),
        pytest.param("a\r\nb\t c", "a b c", id="line-ends"),
        pytest.param("a\u202eb", "a b", id="direction-override"),
        pytest.param("a\ud800b", "a b", id="lone-surrogate"),
        pytest.param("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb", id="joined-emoji"),
    ],
)
async def test_text_is_cleaned(text: str, cleaned: str) -> None:
    """Nobody is sent a character that would disturb a terminal or reverse a line."""
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        assert (await ask(ada, type="say", text=text))["text"] == cleaned


async def test_longest_text_fits_however_it_is_written() -> None:
    """A text of the greatest length is accepted though each of its characters is escaped twice."""
    text = "\U0001f600" * demo.MAX_TEXT
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        assert (await ask(ada, type="say", text=text))["text"] == text


async def test_welcome_to_a_full_room_fits() -> None:
    """The longest welcome there can be is no longer than a client's default settings accept."""
    names = ["\U0001f600" * demo.MAX_NAME] * demo.MAX_MEMBERS
    welcome = demo.note("welcome", name=names[0], names=names)
    assert len(welcome.encode()) <= anyio_ws.ClientConfig().max_message_size


@virtual
async def test_flood_is_refused_then_ended() -> None:
    """One may say 20 things at once; the next 20 are refused, and the one after that ends it with 1008."""
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        heard = [await ask(ada, type="say", text=str(number)) for number in range(40)]
        assert [one["type"] for one in heard] == ["said"] * 20 + ["error"] * 20
        assert heard[-1]["reason"] == "too many messages; wait a moment"
        with pytest.raises(ConnectionEnded):
            await ask(ada, type="say", text="40")
        assert (ada.close_code, ada.close_reason) == (CloseCode.POLICY_VIOLATION, "too many messages")


@virtual
async def test_pace_recovers() -> None:
    """Who was too fast and waits may speak again, as many times as there were fifths of a second."""
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        for number in range(21):
            last = await ask(ada, type="say", text=str(number))
        assert last["type"] == "error"
        await anyio.sleep(0.41)
        assert [(await ask(ada, type="say", text="again"))["type"] for _ in range(2)] == ["said", "error"]


async def test_member_that_never_entered_leaves_quietly() -> None:
    """The end of a connection that did not get as far as the room is news to nobody."""
    request = Request("GET", "/", Headers({"Host": "localhost"}))
    async with testing.init() as there, testing.init() as gone:
        room = Room()
        Member(Handshake(request, "", ()), there.conn, room).after_init()
        await there.expect_text(demo.note("welcome", name="Guest 1", names=["Guest 1"]))
        Member(Handshake(request, "", ()), gone.conn, room).close()
        await there.expect_nothing()


@virtual
@pytest.mark.attack("R02")
async def test_slow_member_stalls_nobody() -> None:
    """A member that does not read what others say is sent away; the others hear everything at once."""
    listener = testing.MemoryListener()
    server = Server(Member, Config(outbox_size=1_000, close_timeout=3.0, compression=None))
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(server.listen, Room(), listeners=[listener]))
        url = "ws://localhost/?name="
        async with (
            connect(url + "Ada", stream=listener.connect()) as ada,
            # It reads nothing after the welcome, and there is room for 1,000 bytes on the way to it.
            connect(url + "Sloth", stream=listener.connect(capacity=1_000), inbox_size=1) as sloth,
        ):
            await hear(ada)
            await hear(ada)
            began = anyio.current_time()
            for number in range(10):
                assert (await ask(ada, type="say", text="x" * 400))["type"] == "said", number
            assert anyio.current_time() == began
            assert await hear(ada) == {"type": "left", "name": "Sloth"}
            await hear_until_closed(sloth)
        server.stop()


async def test_other_paths_have_no_chat() -> None:
    """A WebSocket is opened at the path / and refused elsewhere."""
    with pytest.raises(HandshakeRejected) as refused:
        async with testing.client(Member, Room(), path="/elsewhere"):
            pass
    assert (refused.value.status, refused.value.body) == (404, b"The chat is at /\n")


# --- the page -----------------------------------------------------------------------------------------


def get(path: str) -> anyio_ws.Response:
    """Ask for a page."""
    return demo.serve_page(Request("GET", path, Headers({"Host": "localhost"})))


@pytest.mark.parametrize("path", ["/", "/?name=Ada"])
def test_page_is_at_the_root(path: str) -> None:
    """The page is HTML in UTF-8, at the path / whatever the query."""
    response = get(path)
    headers = Headers(response.headers)
    assert (response.status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.body == demo.PAGE
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/favicon.ico", "/index.html", "//"])
def test_page_is_nowhere_else(path: str) -> None:
    """Every other path is answered with 404."""
    assert get(path).status == 404


def test_page_allows_its_own_script_and_style_alone() -> None:
    """The Content-Security-Policy names the hashes of the page's one script and one style, and no more."""
    policy = Headers(get("/").headers)["content-security-policy"]
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", demo.PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "*" not in policy


def test_page_has_no_external_resources() -> None:
    """The page refers to nothing but itself: it works without another network."""
    assert re.findall(r'\b(?:src|href|action)="(?!data:)', demo.PAGE) == []
    assert re.findall(r"@import|url\(|\bfetch\(|\bimport\b", demo.PAGE) == []
    assert set(re.findall(r"https?://[^'\"\s]+", demo.PAGE)) == {"http://www.w3.org/2000/svg"}


def test_page_never_makes_markup_of_text() -> None:
    """No way of turning a string into markup or code is used in the page."""
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|\son\w+="
    assert re.findall(ways, demo.PAGE) == []


def test_page_knows_every_message() -> None:
    """Each kind of message that the protocol's description names is heard by the page."""
    assert demo.__doc__ is not None
    described = set(re.findall(r'"type": "(\w+)"', demo.__doc__)) - {"say", "name"}
    (heard,) = re.findall(r"const HEARD = \{(.*?)\n\};", demo.PAGE, re.DOTALL)
    assert described == set(re.findall(r"^  (\w+)\(note\)", heard, re.MULTILINE))


# --- the terminal client: words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ({"type": "welcome", "name": "Ada", "names": ["Grace", "Ada"]}, "* You are Ada. Here: Grace, Ada."),
        ({"type": "joined", "name": "Alan"}, "* Alan is here."),
        ({"type": "left", "name": "Alan"}, "* Alan has left."),
        ({"type": "renamed", "name": "Alan", "to": "A."}, "* Alan is now called A.."),
        ({"type": "said", "name": "Alan", "text": "Hi \x1b[31m"}, "Alan: Hi [31m"),
        ({"type": "error", "reason": "no"}, "! no"),
        ({"type": "sung", "name": "Alan"}, ""),
        ({"type": "said", "name": 7, "text": None}, ""),
        (None, ""),
    ],
)
def test_listener_puts_messages_into_words(message: object, line: str) -> None:
    """Every message of the protocol has its line, without control characters; others have none."""
    assert Listener(hears_itself=True).hear(json.dumps(message)) == line


@pytest.mark.parametrize("hears_itself", [True, False])
def test_listener_leaves_out_its_own_words(hears_itself: bool) -> None:
    """What one has said oneself is left out if it is on the screen already, under a new name too."""
    listener = Listener(hears_itself=hears_itself)
    listener.hear(demo.note("welcome", name="Ada", names=["Ada"]))
    assert bool(listener.hear(demo.note("said", name="Ada", text="Hi"))) is hears_itself
    listener.hear(demo.note("renamed", name="Grace", to="Hopper"))
    assert bool(listener.hear(demo.note("said", name="Ada", text="Hi"))) is hears_itself
    listener.hear(demo.note("renamed", name="Ada", to="Countess"))
    assert bool(listener.hear(demo.note("said", name="Countess", text="Hi"))) is hears_itself
    assert listener.hear(demo.note("said", name="Ada", text="Hi")) == "Ada: Hi"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (1001, "", "1001, going away"),
        (1008, "too many messages", "1008, policy violation, too many messages"),
        (4000, "\x1b[2J", "4000, [2J"),
        (4000, "", "4000"),
    ],
)
def test_end_is_described(code: int, reason: str, words: str) -> None:
    """The end of a connection is told with its code, the code's name if it has one, and the reason."""
    assert demo.describe_end(code, reason) == words


def test_show_survives_a_poor_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A character that the output cannot encode becomes a question mark; an empty line is not printed."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii", newline="\n"))
    demo.show("caf\u00e9")
    demo.show("")
    assert output.getvalue() == b"caf?\n"


@virtual
async def test_lines_are_said_no_faster_than_is_accepted() -> None:
    """Any number of lines can be said one after the other: the client waits, and none is refused."""
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        pace = demo.Pace(demo.BURST / 2, demo.RATE - 1)
        for number in range(60):
            await demo._say(ada, pace, f"{number}")
            assert (await hear(ada))["type"] == "said"


@virtual
async def test_line_is_said_or_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is said, ``/name`` asks for a name, an empty line is nothing, too long a one is not sent."""
    async with enter(Room(), "Ada") as ada:
        await hear(ada)
        pace = demo.Pace(demo.BURST, demo.RATE)
        for line in ("", "x" * 501, "/name Countess", "/names"):
            await demo._say(ada, pace, line)
        assert await hear(ada) == {"type": "renamed", "name": "Ada", "to": "Countess"}
        assert await hear(ada) == {"type": "said", "name": "Countess", "text": "/names"}
    assert capsys.readouterr().out == "! a text has 1 to 500 characters\n"


async def test_lines_come_in_pieces() -> None:
    """A line is said when all of it is there, and the end of the lines closes with 1000."""
    ours, theirs = socket.socketpair()
    async with enter(Room(), "Ada") as ada, anyio.create_task_group() as tasks:
        await hear(ada)
        with ours, theirs:
            tasks.start_soon(demo._say_all, ada, ours)
            for piece, texts in ((b"one\ntw", ["one"]), ("o\n\n\u00e9\nthr".encode(), ["two", "\u00e9"])):
                theirs.sendall(piece)
                assert [(await hear(ada))["text"] for _ in texts] == texts
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionEnded):
                await hear(ada)
        assert ada.close_code == CloseCode.NORMAL_CLOSURE


async def test_lines_end_with_the_connection() -> None:
    """Who says lines stops at the first that cannot be said, without a word."""
    ours, theirs = socket.socketpair()
    async with enter(Room(), "Ada") as ada:
        ada.abort()
        with ours, theirs, anyio.fail_after(TIMEOUT):
            theirs.sendall(b"one\ntwo\n")
            await demo._say_all(ada, ours)


@pytest.mark.parametrize("waiting", [b"one\n", b"one\n" * 10_000, b""])
def test_lines_that_nobody_takes_end_the_reading(stdin: Any, waiting: bytes) -> None:
    """The thread that reads ends with its next line, or that of the input, when the chat is over."""
    reader, file = stdin
    ours, theirs = socket.socketpair()
    ours.close()
    file.write(waiting)
    if not waiting:
        file.close()
    demo._read(reader, theirs)
    assert theirs.fileno() == -1


def test_line_that_is_too_long_is_passed_on_as_such(stdin: Any) -> None:
    """A line is passed on cleaned, and of one that is too long as much as shows that it is."""
    reader, file = stdin
    ours, theirs = socket.socketpair()
    with ours:
        file.write(b" a\tb \r\n" + b"x" * 50_000)
        file.close()
        demo._read(reader, theirs)
        assert ours.recv(10_000) == b"a b\n" + b"x" * 501 + b"\n"


# --- the terminal client: connected -------------------------------------------------------------------


class Screen:
    """What the two ends print, in place of the standard output."""

    def __init__(self) -> None:
        self._lines, self._printed = anyio.create_memory_object_stream[str](10_000)
        self.lines: list[str] = []

    def show(self, line: str) -> None:
        """Take a line, as ``demo.show`` does."""
        if line:
            self._lines.send_nowait(line)

    async def until(self, wanted: str) -> str:
        """Return the next line that has *wanted* in it."""
        with anyio.fail_after(TIMEOUT):
            async for line in self._printed:
                self.lines.append(line)
                if wanted in line:
                    return line
        raise AssertionError

    def close(self) -> None:
        """Take no more."""
        self._lines.close()
        self._printed.close()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Collect what is shown."""
    screen = Screen()
    monkeypatch.setattr(demo, "show", screen.show)
    yield screen
    screen.close()


@pytest.fixture
def stdin() -> Any:
    """Make the two ends of a pipe: what the client reads from, and what writes to it."""
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as file:
        yield reader, file
    for thread in threading.enumerate():
        if thread.name == "input of the demo":
            thread.join(TIMEOUT)
            assert not thread.is_alive()
    os.close(reader)


@contextlib.asynccontextmanager
async def serving(handler: Callable[..., Any] = Member) -> AsyncIterator[tuple[Server, str]]:
    """Serve a room over the loopback; give the server and its URL."""
    server = Server(handler, Config(port=0, close_timeout=1.0))
    async with anyio.create_task_group() as tasks:
        addresses: Any = await tasks.start(server.listen, Room())
        host, port = addresses[0]
        with anyio.fail_after(TIMEOUT):
            yield server, f"ws://{host}:{port}/"
        server.stop()


async def test_client_says_its_input_and_leaves(stdin: Any, screen: Screen) -> None:
    """Each line is said, what is said is shown, and the end of the input leaves in order with 1000."""
    reader, file = stdin
    file.write(b"Hello\n\xff\n/name Countess\nLast words")
    file.close()
    async with serving() as (_, url):
        assert await demo.join_chat(url, "Ada", reader) == 0
    await screen.until("closed")
    assert screen.lines == [
        "* You are Ada. Here: Ada.",
        "Ada: Hello",
        "Ada: \ufffd",
        "* Ada is now called Countess.",
        "Countess: Last words",
        "The connection is closed: 1000, normal closure",
    ]


async def test_client_in_a_terminal_does_not_repeat_its_input(
    stdin: Any, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was typed in a terminal is on the screen already, and is not shown a second time."""
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    reader, file = stdin
    file.write(b"Hello\n")
    file.close()
    async with serving() as (_, url):
        assert await demo.join_chat(url + "?from=terminal", "Ada", reader) == 0
    await screen.until("closed")
    assert screen.lines[1:] == ["The connection is closed: 1000, normal closure"]


async def test_client_ends_with_the_server(stdin: Any, screen: Screen) -> None:
    """When the server stops the client ends by itself, though its input could still go on."""
    reader, _ = stdin
    async with serving() as (server, url), anyio.create_task_group() as tasks:

        async def stop() -> None:
            assert (await screen.until("You are")).startswith("* You are Guest 1.")
            server.stop(CloseCode.GOING_AWAY, "time for bed")

        tasks.start_soon(stop)
        assert await demo.join_chat(url, None, reader) == 0
    assert await screen.until("closed") == "The connection is closed: 1001, going away, time for bed"


class Unfriendly:
    """Ends each connection at the first message, in a way that the path names."""

    def __init__(self, handshake: Handshake, conn: Conn) -> None:
        self._way = handshake.path
        self._conn = conn

    def client_message(self, data: str) -> None:
        if self._way == "/abort":
            self._conn.abort()
        else:
            self._conn.close_nowait(CloseCode.POLICY_VIOLATION, "go away")


@pytest.mark.parametrize(
    ("path", "end"), [("abort", "1006, abnormal closure"), ("close", "1008, policy violation, go away")]
)
async def test_client_fails_when_the_connection_does(stdin: Any, screen: Screen, path: str, end: str) -> None:
    """A connection that breaks, or is closed for a fault, is told of and gives the exit code 1."""
    reader, file = stdin
    file.write(b"Hello\n")
    async with serving(Unfriendly) as (_, url):
        assert await demo.join_chat(url + path, None, reader) == 1
    assert await screen.until("closed") == f"The connection is closed: {end}"
    file.write(b"too late\n")


async def test_client_leaves_when_it_cannot_read(screen: Screen) -> None:
    """An input that cannot be read is like one that has ended."""
    write_only = os.open(os.devnull, os.O_WRONLY)
    async with serving() as (_, url):
        assert await demo.join_chat(url, None, write_only) == 0
    os.close(write_only)
    assert await screen.until("closed") == "The connection is closed: 1000, normal closure"


async def test_client_says_that_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A connection that cannot be made is one line that names the URL, and the exit code 1."""
    async with serving() as (_, url):
        pass
    assert await demo.join_chat(url, None, 0) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"anyio_ws demo: cannot join {url}: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://localhost/", "url: the scheme must be ws or wss, not 'http'"),
        ("ws://localhost/#there", "url: a WebSocket URL has no fragment (RFC 6455 §3)"),
    ],
)
async def test_client_says_what_is_wrong_with_a_url(
    capsys: pytest.CaptureFixture[str], url: str, reason: str
) -> None:
    """A URL that is none of a WebSocket is one line that says why, and the exit code 1."""
    assert await demo.join_chat(url, None, 0) == 1
    assert capsys.readouterr().err == f"anyio_ws demo: cannot join {url}: {reason}\n"


async def test_client_says_that_it_was_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A refused opening handshake is one line with its status, and the exit code 1."""
    async with serving() as (_, url):
        assert await demo.join_chat(url + "elsewhere", None, 0) == 1
    assert "the server answered with HTTP status 404" in capsys.readouterr().err


async def test_client_says_that_no_answer_came(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not answer in time is one line that says so, and the exit code 1."""
    monkeypatch.setattr(demo, "connect", partial(connect, timeout=0.001))
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        assert await demo.join_chat(f"ws://127.0.0.1:{port}/", None, 0) == 1
    assert "no answer came in time" in capsys.readouterr().err


# --- the server: listening ----------------------------------------------------------------------------


async def test_server_tells_where_it_is(screen: Screen) -> None:
    """The server prints the page's address and the command to join; both lead to the same room."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(demo.serve_chat, "127.0.0.1", 0)
        page = (await screen.until("open")).split()[-1]
        url = (await screen.until("Join")).split()[-1]
        assert await screen.until("Ctrl-C") == "Ctrl-C closes it."
        assert url == page.replace("http:", "ws:")
        host, _, port = page.removeprefix("http://").rstrip("/").partition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            answer = b"".join([part async for part in stream])
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(demo.PAGE.encode())
        async with connect(url) as client:
            await hear(client)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await client.wait_gone()
    assert client.close_code == CloseCode.GOING_AWAY


async def test_server_ends_too_big_a_message(screen: Screen) -> None:
    """A message of more than 8 KiB ends the connection with 1009."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(demo.serve_chat, "127.0.0.1", 0)
        async with connect((await screen.until("Join")).split()[-1]) as client:
            await hear(client)
            with pytest.raises(ConnectionClosed):
                await ask(client, type="say", text="x" * demo.MAX_MESSAGE)
            assert client.close_code == CloseCode.MESSAGE_TOO_BIG
        tasks.cancel_scope.cancel()


async def test_server_says_that_the_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use is one line that names it and what to do, and the exit code 1."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as taken:
        port = taken.extra(anyio.abc.SocketAttribute.local_port)
        assert await demo.serve_chat("127.0.0.1", port) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(
        rf"anyio_ws demo: cannot listen on 127\.0\.0\.1 port {port}: [^\n]+; choose another port with --port "
        r"\(0 takes any free one\), or another address with --address\n",
        output.err,
    )


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1:80"),
        ("0.0.0.0", "127.0.0.1:80"),
        ("::", "[::1]:80"),
        ("fe80::1", "[fe80::1]:80"),
    ],
)
def test_authority_can_be_opened(host: str, shown: str) -> None:
    """The address that is printed can be opened: brackets around IPv6, no wildcard."""
    assert demo.authority(host, 80) == shown


# --- running ------------------------------------------------------------------------------------------


@TWO_BACKENDS
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_in_order_at_a_signal(backend: str, signum: signal.Signals) -> None:
    """A signal cancels what runs, which can say goodbye, and the exit code is 0."""
    events = []

    async def program() -> int:
        try:
            os.kill(os.getpid(), signum)
            await anyio.sleep(TIMEOUT)
        finally:
            events.append("goodbye")
        raise AssertionError

    assert demo.run(program, backend) == 0
    assert events == ["goodbye"]


@TWO_BACKENDS
def test_run_returns_the_exit_code(backend: str) -> None:
    """A program that ends by itself decides about the exit code."""

    async def program() -> int:
        return 7

    assert demo.run(program, backend) == 7


def test_run_works_where_signals_cannot_be_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a way to receive signals the program runs, and Ctrl-C gives the exit code 130."""

    @contextlib.contextmanager
    def missing(*signals: signal.Signals) -> Any:
        raise NotImplementedError
        yield

    async def program() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep(TIMEOUT)
        raise AssertionError

    monkeypatch.setattr(anyio, "open_signal_receiver", missing)
    assert demo.run(program, "asyncio") == 130


# --- the command line ---------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record what the command line would run."""
    runs: list[tuple[Any, ...]] = []

    def run(program: partial[Any], backend: str) -> int:
        runs.append((program.func, *program.args, backend))
        return 5

    monkeypatch.setattr(demo, "run", run)
    return runs


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        ("", (demo.serve_chat, "127.0.0.1", 9882, "asyncio")),
        ("--address ::1 --port 0 --backend trio", (demo.serve_chat, "::1", 0, "trio")),
        ("--connect", (demo.join_chat, "ws://127.0.0.1:9882/", None, 0, "asyncio")),
        ("--connect --address ::1 --port 7", (demo.join_chat, "ws://[::1]:7/", None, 0, "asyncio")),
        ("--connect wss://x/ --name Ada", (demo.join_chat, "wss://x/", "Ada", 0, "asyncio")),
    ],
)
def test_command_line_is_understood(
    runs: list[tuple[Any, ...]], arguments: str, run: tuple[object, ...]
) -> None:
    """Every option arrives where it is meant to, and the exit code is that of the program."""
    assert main(["demo", *arguments.split()]) == 5
    assert runs == [run]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "COMMAND"),
        ("demo --port 65536", "'65536' is not a port"),
        ("demo --port -1", "'-1' is not a port"),
        ("demo --port http", "'http' is not a port"),
        ("demo --name Ada", "--name is for --connect"),
        ("demo --backend curio", "invalid choice: 'curio'"),
        ("demo --backend trio", "the backend trio is not installed: pip install trio"),
    ],
)
def test_command_line_refuses(
    runs: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    complaint: str,
) -> None:
    """Wrong arguments are refused with one sentence and the exit code 2, and nothing runs."""
    monkeypatch.setitem(sys.modules, "trio", None)  # as if it were not installed
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
    assert runs == []


def test_command_line_explains_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help has a sentence for each option, and the exit codes."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    options = re.findall(r"^  (--\w+)[^\n]*?\s\s+(\w[^\n]*)$", text, re.MULTILINE)
    assert [name for name, _ in options] == ["--address", "--port", "--backend", "--connect", "--name"]
    assert "exit codes: 0 after Ctrl-C" in text


def test_module_runs_as_a_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m anyio_ws --version`` prints the version."""
    monkeypatch.setattr(sys, "argv", ["anyio_ws", "--version"])
    monkeypatch.delitem(sys.modules, "anyio_ws.__main__")
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("anyio_ws", run_name="__main__")
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"anyio_ws {anyio_ws.__version__}\n"


# --- the whole, in processes of its own ---------------------------------------------------------------


class Program:
    """A running ``python -m anyio_ws demo``."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self.process = process
        self._output = BufferedByteReceiveStream(process.stdout)

    async def line(self) -> str:
        """Return the next line that it prints."""
        return (await self._output.receive_until(b"\n", 10_000)).decode().rstrip("\r")

    async def type(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        await self.process.stdin.send(text.encode())

    async def end(self, exit_code: int) -> list[str]:
        """Wait for its end; return what it still printed, and demand that it complained of nothing."""
        assert self.process.stderr is not None
        rest = [chunk async for chunk in self.process.stderr]
        lines = []
        with contextlib.suppress(anyio.IncompleteRead):
            while True:
                lines.append(await self.line())
        assert (await self.process.wait(), b"".join(rest).decode()) == (exit_code, "")
        return lines


@pytest.fixture
async def start(anyio_backend_name: str) -> AsyncIterator[Callable[..., Any]]:
    """Give a function that runs the demonstration with arguments, on the backend of the test."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-W", "error", "-m", "anyio_ws", "demo", "--backend", anyio_backend_name]
    async with contextlib.AsyncExitStack() as stack:

        async def start(*arguments: str) -> Program:
            process = await anyio.open_process(
                [*command, *arguments], stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=root
            )
            stack.push_async_callback(process.aclose)
            return Program(process)

        yield start


async def test_program_serves_until_a_signal(start: Callable[..., Any]) -> None:
    """The server prints its real port; SIGINT sends everybody 1001 and ends it with the exit code 0."""
    with anyio.fail_after(TIMEOUT):
        server = await start("--port", "0")
        assert re.fullmatch(r"The chat is open: http://127\.0\.0\.1:[1-9]\d*/", await server.line())
        url = (await server.line()).split()[-1]
        client = await start("--connect", url, "--name", "Ada")
        assert await client.line() == "* You are Ada. Here: Ada."
        async with connect(url + "?name=Grace") as grace:
            await hear(grace)
            assert await client.line() == "* Grace is here."
            await client.type("Hello\n")
            assert await hear(grace) == {"type": "said", "name": "Ada", "text": "Hello"}
            server.process.send_signal(signal.SIGINT)
            await hear_until_closed(grace)
            assert grace.close_code == CloseCode.GOING_AWAY
        assert (await client.end(0))[-1] == "The connection is closed: 1001, going away"
        assert await server.end(0) == ["Ctrl-C closes it."]


async def test_program_joins_with_piped_input(start: Callable[..., Any]) -> None:
    """The end of the input leaves with 1000 after everything was heard; SIGTERM ends the server with 0."""
    with anyio.fail_after(TIMEOUT):
        server = await start("--port", "0")
        await server.line()
        client = await start("--connect", (await server.line()).split()[-1])
        await client.type("one\ntwo\n")
        await client.process.stdin.aclose()
        assert await client.end(0) == [
            "* You are Guest 1. Here: Guest 1.",
            "Guest 1: one",
            "Guest 1: two",
            "The connection is closed: 1000, normal closure",
        ]
        server.process.send_signal(signal.SIGTERM)
        await server.end(0)


async def test_program_that_joined_leaves_at_a_signal(start: Callable[..., Any]) -> None:
    """SIGINT ends the client though its input could still go on, with the exit code 0."""
    with anyio.fail_after(TIMEOUT):
        async with serving() as (_, url):
            client = await start("--connect", url)
            await client.line()
            client.process.send_signal(signal.SIGINT)
            assert await client.end(0) == []
