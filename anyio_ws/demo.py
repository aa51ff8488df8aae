"""A chat on one page and in the terminal: what ``python -m anyio_ws demo`` runs.

It is an ordinary program on the public names of the package, written to be read: a handler class, a page
served beside it, and a client. Every message is text, a JSON object with a ``type``. A client says::

    {"type": "say", "text": "Hello"}                tell everybody; at most 500 characters
    {"type": "name", "name": "Ada"}                 be called Ada from now on; at most 24 characters

and the server says::

    {"type": "welcome", "name": "Ada", "names": ["Grace", "Ada"]}   comes first: who you are, who is here
    {"type": "joined", "name": "Alan"}              somebody came
    {"type": "left", "name": "Alan"}                somebody went
    {"type": "renamed", "name": "Ada", "to": "A."}  somebody is called something else
    {"type": "said", "name": "Ada", "text": "Hi"}   somebody spoke; the speaker hears it too
    {"type": "error", "reason": "..."}              what you said was not done, and why

The name that one would like to have can stand in the URL, ``ws://host/?name=Ada``. Names differ in more
than upper and lower case; who asks for none, or for one that cannot be had, is a guest with a number.

One may speak 20 times at once, then 5 times a second. What comes faster is refused with an error, and
going on like that ends the connection with 1008. A message of more than 8 KiB ends it with 1009, and
not reading what others say with 1013. 1001 means that the server stops.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib import resources
from urllib.parse import urlencode

import anyio

from anyio_ws import (
    Client,
    CloseCode,
    Config,
    Conn,
    ConnectionBroken,
    ConnectionClosed,
    Handshake,
    HandshakeError,
    Reject,
    Request,
    Response,
    Server,
    connect,
)

MAX_TEXT = 500  # characters
MAX_NAME = 24  # characters
MAX_MESSAGE = 8_192  # bytes: a text of the greatest length fits, however its JSON is escaped
MAX_MEMBERS = 500  # all their names fit into one welcome that a client with default settings accepts
BURST, RATE = 20, 5.0  # messages at once, messages per second
_JOINERS = "\u200c\u200d"  # invisible, and part of many scripts and of emoji


# --- words: the server and the terminal client are equally careful ----------------------------------


def note(type: str, **fields: object) -> str:
    """Build a message of the chat's protocol."""
    return json.dumps({"type": type, **fields}, ensure_ascii=False)


def clean(text: str) -> str:
    """Make one line of a text, without what would disturb a terminal or reverse a line.

    Control characters, direction marks and lone surrogates become spaces.
    """
    seen = (c if c.isprintable() or c in _JOINERS else " " for c in text)
    return " ".join("".join(seen).split())


def folded(name: str) -> str:
    """Return what two names that look the same to most people have in common."""
    return unicodedata.normalize("NFKC", name).casefold()


class Pace:
    """How fast one may speak: a bucket of tokens, one for each message."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = self._left = burst
        self._rate = rate
        self._then = anyio.current_time()

    def spend(self) -> float:
        """Take a token; return for how many seconds it should have been waited, 0 or less for none."""
        now = anyio.current_time()
        self._left = min(self._burst, self._left + (now - self._then) * self._rate) - 1
        self._then = now
        return -self._left / self._rate


# --- the server ---------------------------------------------------------------------------------------


class Room:
    """Everybody who is here; the ``app`` that the server hands to every handler."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._guests = 0

    @property
    def names(self) -> list[str]:
        """The names of those who are here, in the order in which they came."""
        return [member.name for member in self._members]

    def guest_name(self) -> str:
        """Return a name that nobody has."""
        while True:
            self._guests += 1
            name = f"Guest {self._guests}"
            if self._is_free(name):
                return name

    def check_name(self, name: str, member: Member) -> str:
        """Return a name as *member* may have it.

        :raises ValueError: when it may not, with the reason
        """
        name = clean(name)
        if not any(c.isprintable() and c != " " for c in name) or len(name) > MAX_NAME:
            raise ValueError(f"a name has 1 to {MAX_NAME} characters")
        if folded(name) != folded(member.name) and not self._is_free(name):
            raise ValueError(f"the name {name} is taken")
        return name

    def _is_free(self, name: str) -> bool:
        return folded(name) not in map(folded, self.names)

    def enter(self, member: Member) -> None:
        """Let somebody in, and tell the others."""
        self.tell_all(note("joined", name=member.name))
        self._members.append(member)
        member.tell(note("welcome", name=member.name, names=self.names))

    def leave(self, member: Member) -> None:
        """Let somebody out, and tell the others; harmless for one who never came in."""
        if member in self._members:
            self._members.remove(member)
            self.tell_all(note("left", name=member.name))

    def tell_all(self, message: str) -> None:
        """Tell everybody, and wait for nobody."""
        for member in self._members:
            member.tell(message)


class Member:
    """Somebody in the room: the handler of one connection."""

    def __init__(self, handshake: Handshake, conn: Conn, app: Room) -> None:
        """Look at the request; raising ``Reject`` refuses it."""
        if handshake.path != "/":
            raise Reject(404, body=b"The chat is at /\n")
        self.name: str = ""
        self._wish = handshake.query.get("name")
        self._conn = conn
        self._room = app
        self._pace = Pace(BURST, RATE)

    def after_init(self) -> None:
        """Enter the room: the connection is open now, and this is the first moment to write."""
        self.name = self._room.guest_name()
        refusal = ""
        if self._wish is not None:
            try:
                self.name = self._room.check_name(self._wish, self)
            except ValueError as exc:
                refusal = str(exc)
        self._room.enter(self)
        if refusal:
            self.tell(note("error", reason=refusal))

    def client_message(self, data: str | bytes) -> None:
        """Do what the client asks for, or say why not."""
        early = self._pace.spend()
        if early > BURST / RATE:
            self._conn.close_nowait(CloseCode.POLICY_VIOLATION, "too many messages")
            return
        try:
            if early > 0:
                raise ValueError("too many messages; wait a moment")
            self._obey(data)
        except ValueError as exc:
            self.tell(note("error", reason=str(exc)))

    def close(self) -> None:
        """Leave the room: called exactly once, whatever ended the connection."""
        self._room.leave(self)

    def _obey(self, data: str | bytes) -> None:
        match _parse(data):
            case {"type": "say", "text": str(text)}:
                self._say(clean(text))
            case {"type": "name", "name": str(name)}:
                before, self.name = self.name, self._room.check_name(name, self)
                self._room.tell_all(note("renamed", name=before, to=self.name))
            case _:
                raise ValueError('send {"type": "say", "text": "..."} or {"type": "name", "name": "..."}')

    def _say(self, text: str) -> None:
        if not 1 <= len(text) <= MAX_TEXT:
            raise ValueError(f"a text has 1 to {MAX_TEXT} characters")
        self._room.tell_all(note("said", name=self.name, text=text))

    def tell(self, message: str) -> None:
        """Give this client a message without waiting.

        ``write`` would wait for a client that does not read, and everybody else with it. So this does
        not: a client for whom more than ``outbox_size`` bytes are waiting already is sent away.
        """
        try:
            self._conn.write_nowait(message)
        except anyio.WouldBlock:
            self._conn.close_nowait(CloseCode.TRY_AGAIN_LATER, "reading too slowly")
        except ConnectionClosed:
            pass  # it is about to leave the room


def _parse(data: str | bytes) -> object:
    try:
        return json.loads(data) if isinstance(data, str) else None
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return None


PAGE = resources.files("anyio_ws").joinpath("demo.html").read_text("utf-8")


def _hash(tag: str) -> str:
    """Name what stands between two tags of the page as a Content-Security-Policy names it."""
    text = PAGE.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    # The page's own script and style, a connection back to where it came from, and nothing else.
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def serve_page(request: Request) -> Response:
    """Answer a request that asks for no WebSocket."""
    if request.path != "/":
        return Response(404, "There is nothing here; the chat is at /\n")
    return Response(200, PAGE, PAGE_HEADERS)


async def serve_chat(address: str, port: int) -> int:
    """Serve the chat until cancelled; everybody in it sees code 1001 then.

    :return: the exit code 1 when there is no listening on that port
    """
    config = Config(
        address=address, port=port, max_conn=MAX_MEMBERS, max_message_size=MAX_MESSAGE, shutdown_timeout=2.0
    )
    server = Server(Member, config, http_handler=serve_page)
    exit_code = 0
    async with anyio.create_task_group() as tasks:
        try:
            bound, *_ = await tasks.start(server.listen, Room())
        except OSError as exc:
            exit_code = complain(
                f"cannot listen on {address} port {port}: {exc.strerror or exc}; choose another port with "
                "--port (0 takes any free one), or another address with --address"
            )
        else:
            place = authority(*bound)
            show(f"The chat is open: http://{place}/")
            show(f"Join from a terminal: python -m anyio_ws demo --connect ws://{place}/")
            show("Ctrl-C closes it.")
            await anyio.sleep_forever()
    return exit_code


def authority(host: str, port: int) -> str:
    """Return what stands for an address in a URL; for all addresses of a machine, its own."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- the terminal client ------------------------------------------------------------------------------


async def join_chat(url: str, name: str | None, stdin: int) -> int:
    """Join a chat: send the lines of a file, show what is said, until either of them ends.

    :param url: where the chat is
    :param name: the name to ask for
    :param stdin: the descriptor of the file; its line ``/name Ada`` asks for another name
    :return: the exit code: 0 when the connection was closed with 1000 or 1001, otherwise 1
    """
    if name is not None:
        url += ("&" if "?" in url else "?") + urlencode({"name": name})
    async with contextlib.AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(connect(url))
        except (OSError, HandshakeError, ValueError) as exc:
            return complain(f"cannot join {clean(url)}: {clean(str(exc)) or 'no answer came in time'}")
        await _talk(client, stdin)
    code = client.close_code or CloseCode.ABNORMAL_CLOSURE
    show(f"The connection is closed: {describe_end(code, client.close_reason)}")
    return 0 if code in (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY) else 1


async def _talk(client: Client, stdin: int) -> None:
    # A terminal shows what is typed in it; other input is shown when the server sends it back.
    listener = Listener(hears_itself=not os.isatty(stdin))
    ours, theirs = socket.socketpair()
    # Reading lines blocks and cannot be interrupted. A daemon thread is one that nobody waits for,
    # neither when the server closes the connection nor when the process ends. So it may read its next
    # line at any moment of our end, and has nothing of the event loop: only a socket that may be closed.
    threading.Thread(target=_read, args=(stdin, theirs), name="input of the demo", daemon=True).start()
    with ours:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_say_all, client, ours)
            with contextlib.suppress(ConnectionBroken):  # close_code tells
                async for message in client:
                    show(listener.hear(message))
            tasks.cancel_scope.cancel()


def _read(stdin: int, lines: socket.socket) -> None:
    """Pass on each line of the input, until there are no more or nobody takes them: the thread's work."""
    with (
        lines,
        contextlib.suppress(OSError),
        open(stdin, encoding="utf-8", errors="replace", closefd=False) as read,
    ):
        for line in read:
            text = clean(line)[: MAX_TEXT + 1]  # one that is too long stays so, and no longer
            lines.sendall(f"{text}\n".encode())


async def _say_all(client: Client, lines: socket.socket) -> None:
    """Send each line, and leave in order after the last."""
    pace, rest = Pace(BURST / 2, RATE - 1), b""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await anyio.wait_readable(lines)
            data = lines.recv(4_096)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                await _say(client, pace, line.decode())
        # close() would discard what is still to come; this receives it until the server answers.
        await client.send_eof()


async def _say(client: Client, pace: Pace, text: str) -> None:
    """Send a line, no faster than the server will take it."""
    if len(text) > MAX_TEXT:
        show(f"! a text has 1 to {MAX_TEXT} characters")
    elif text:
        await anyio.sleep(max(0.0, pace.spend()))
        command, _, name = text.partition(" ")
        await client.write(note("name", name=name) if command == "/name" else note("say", text=text))


class Listener:
    """Puts what the server sends into words for a terminal.

    :param hears_itself: whether what one has said oneself is worth showing
    """

    def __init__(self, *, hears_itself: bool) -> None:
        self._hears_itself = hears_itself
        self._me = ""

    def hear(self, message: str | bytes) -> str:
        """Return the line that tells what the server said, nothing when it is not worth one."""
        return clean(self._in_words(_parse(message)))  # the server is somebody else too

    def _in_words(self, said: object) -> str:
        match said:
            case {"type": "welcome", "name": str(name), "names": list(names)}:
                self._me = name
                return f"* You are {name}. Here: {', '.join(map(str, names))}."
            case {"type": "joined", "name": str(name)}:
                return f"* {name} is here."
            case {"type": "left", "name": str(name)}:
                return f"* {name} has left."
            case {"type": "renamed", "name": str(name), "to": str(to)}:
                self._me = to if name == self._me else self._me
                return f"* {name} is now called {to}."
            case {"type": "said", "name": str(name), "text": str(text)}:
                return f"{name}: {text}" if self._hears_itself or name != self._me else ""
            case {"type": "error", "reason": str(reason)}:
                return f"! {reason}"
            case _:
                return ""  # a newer server may say more


def describe_end(code: int, reason: str) -> str:
    """Put a close code and its reason into words."""
    known = code in CloseCode._value2member_map_
    words = [str(int(code)), CloseCode(code).name.lower().replace("_", " ") if known else "", clean(reason)]
    return ", ".join(filter(None, words))


# --- the program ----------------------------------------------------------------------------------------


def show(line: str) -> None:
    """Print a line, if there is something in it, as well as the output's encoding can."""
    if line:
        encoding = sys.stdout.encoding
        print(line.encode(encoding, "replace").decode(encoding), flush=True)


def complain(problem: str) -> int:
    """Print what went wrong; return the exit code that says so."""
    print(f"anyio_ws demo: {problem}", file=sys.stderr)
    return 1


def run(main: Callable[[], Awaitable[int]], backend: str) -> int:
    """Run one of the two ends until it is done, or the user is: SIGINT and SIGTERM end it in order.

    :param main: returns the exit code
    :param backend: ``"asyncio"`` or ``"trio"``
    :return: the exit code; 0 after a signal
    """
    try:
        return anyio.run(_until_signal, main, backend=backend)
    except KeyboardInterrupt:  # before the first line ran, or where signals cannot be received
        return 130


async def _until_signal(main: Callable[[], Awaitable[int]]) -> int:
    exit_code = 0
    with _signals() as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_at, signals, tasks.cancel_scope)
            exit_code = await main()
            tasks.cancel_scope.cancel()
    return exit_code


@contextlib.contextmanager
def _signals() -> Iterator[AsyncIterator[object] | None]:
    with contextlib.ExitStack() as stack:
        try:
            signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM))
        except NotImplementedError:  # asyncio on Windows; Ctrl-C is a KeyboardInterrupt there
            yield None
        else:
            yield signals


async def _cancel_at(signals: AsyncIterator[object] | None, scope: anyio.CancelScope) -> None:
    """Cancel everything at the first signal: a server and a client that are cancelled say goodbye."""
    if signals is not None:
        await anext(signals)
        scope.cancel()
