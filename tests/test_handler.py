"""The hooks of a handler: which shapes they may have, and when and with what they are called.

What is wrong with a handler is said when its server is made, not when the first message arrives; the
first half shows that. The second half runs handlers against clients in memory.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_ws import (
    Config,
    Conn,
    ConnectionClosed,
    Handshake,
    HandshakeRejected,
    LocalProtocolError,
    Message,
    MessageType,
    Reject,
    Server,
    State,
    testing,
)
from anyio_ws.handler import FunctionFactory, HandlerFactory, Hooks, choose_parameters, hooks_of, settle

from . import support
from .support import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Peer,
    Stopwatch,
    build_request,
    listening,
    serving,
    take_log,
    virtual,
)

no_surprises = support.no_surprises
pytestmark = pytest.mark.usefixtures("no_surprises")

Diary = list[Any]
"""The application object of these tests: handlers write into it what happens to them."""


def make_class(**hooks: Any) -> Any:
    """Make a class of handlers with these hooks, and a ``client_message`` if there is none among them."""
    return type("Handler", (), {"client_message": lambda self, data: None, **hooks})


# --- shapes that are accepted -------------------------------------------------------------------------

SHAPES = {
    "client_message": [
        "(self, data)",
        "(self, data, message_type)",
        "(self, scratch, data)",
        "(self, scratch, data, message_type)",
    ],
    "after_init": ["(self)", "(self, app)"],
    "client_ping": ["(self, data)"],
    "client_pong": ["(self)", "(self, data)"],
    "client_close": ["(self, data)"],
    "close": ["(self)"],
}
ALL_SHAPES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def make_hook(shape: str, *, is_async: bool = False, result: str = "None") -> Any:
    """Make a function with this parameter list."""
    namespace: dict[str, Any] = {}
    exec(f"{'async ' if is_async else ''}def hook{shape}: return {result}", namespace)
    return namespace["hook"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("name", "shape"), ALL_SHAPES)
def test_hook_of_an_accepted_shape_is_found(name: str, shape: str, is_async: bool) -> None:
    """Every documented shape of every hook is accepted, ``def`` and ``async def`` alike. [S1, H3 to H12]"""
    hooks = hooks_of(make_class(**{name: make_hook(shape, is_async=is_async)}))
    assert hooks.parameters[name] == tuple(shape.strip("()").split(", ")[1:])


@pytest.mark.parametrize("wrap", [staticmethod, classmethod])
@pytest.mark.parametrize(("name", "shape"), ALL_SHAPES)
def test_hook_may_be_a_static_or_class_method(name: str, shape: str, wrap: Callable[..., Any]) -> None:
    """Whether a hook needs the handler is its own business. [S1]"""
    hook = make_hook(shape.replace("self, ", "").replace("self", "") if wrap is staticmethod else shape)
    hooks = hooks_of(make_class(**{name: wrap(hook)}))
    assert hooks.parameters[name] == tuple(shape.strip("()").split(", ")[1:])


def test_hook_may_have_further_parameters_with_defaults() -> None:
    """A parameter of the user's own with a default is left to its default. [S1]"""
    hooks = hooks_of(make_class(close=make_hook("(self, log=print, *, again=False)")))
    assert hooks.parameters["close"] == ()


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("client_message", "(self, data, message_type=None)", ("data", "message_type")),
        ("after_init", "(self, app=None)", ("app",)),
        ("client_pong", "(self, data=b'')", ("data",)),
        ("client_ping", "(self, data=b'')", ("data",)),
    ],
)
def test_hook_parameter_with_a_known_name_is_given_whatever_its_default(
    name: str, shape: str, parameters: tuple[str, ...]
) -> None:
    """Arguments are chosen by name: a default does not make a hook miss what it asks for. [H6]"""
    assert hooks_of(make_class(**{name: make_hook(shape)})).parameters[name] == parameters


def test_hook_may_be_inherited() -> None:
    """A hook of a base class counts. [S1]"""
    base = make_class(close=make_hook("(self)"))
    assert "close" in hooks_of(type("Derived", (base,), {})).parameters


def test_hook_set_to_none_is_absent() -> None:
    """A subclass can take an inherited hook away. [S1]"""
    base = make_class(client_ping=make_hook("(self, data)"))
    hooks = hooks_of(type("Derived", (base,), {"client_ping": None}))
    assert "client_ping" not in hooks.parameters
    assert hooks.manual == frozenset()


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("client_ping", MessageType.PING),
        ("client_pong", MessageType.PONG),
        ("client_close", MessageType.CLOSE),
    ],
)
def test_hook_for_a_control_frame_takes_that_frame_over(name: str, type_: MessageType) -> None:
    """The control frames with a hook, and no others, are the handler's to answer. [H10, H11, H12]"""
    assert hooks_of(make_class(**{name: make_hook("(self, data)")})).manual == {type_}


# --- shapes that are refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("client_message", "(self)"),
        ("client_message", "(self, message)"),
        ("client_message", "(self, message_type, data)"),
        ("client_message", "(self, data, scratch)"),
        ("client_message", "(self, scratch)"),
        ("client_message", "(self, scratch, message_type)"),
        ("client_message", "(self, data, message_type, more)"),
        ("client_message", "(self, *data)"),
        ("client_message", "(self, data, *, more)"),
        ("client_message", "(self, data, more=None, message_type=None)"),
        ("client_message", "()"),
        ("after_init", "(self, conn)"),
        ("client_ping", "(self)"),
        ("client_pong", "(self, payload)"),
        ("client_close", "(self, code, reason)"),
        ("close", "(self, code)"),
        ("close", "(self, *, code)"),
    ],
)
def test_hook_of_another_shape_is_a_type_error_that_shows_the_accepted_ones(name: str, shape: str) -> None:
    """The error names the class, the method and its parameters, and every shape that is accepted. [S1]"""
    with pytest.raises(TypeError) as caught:
        Server(make_class(**{name: make_hook(shape)}))
    assert str(caught.value).startswith(f"Handler.{name}{shape}; accepted: ")
    for accepted in SHAPES[name]:
        assert f"{name}{accepted}" in str(caught.value)


@pytest.mark.parametrize("name", SHAPES)
def test_hook_that_cannot_be_called_is_a_type_error(name: str) -> None:
    """A number in place of a method is found when the server is made. [S1]"""
    with pytest.raises(TypeError, match=rf"^Handler.* {name}.*accepted: {name}\(self|^Handler\.{name} is"):
        Server(make_class(**{name: 5}))


@pytest.mark.parametrize("kind", [type("Handler", (), {}), make_class(client_message=None), int])
def test_handler_class_without_client_message_is_a_type_error(kind: type[Any]) -> None:
    """A handler that could not be given a message is none. [S1]"""
    pattern = rf"^{kind.__name__} has no client_message; accepted: client_message\(self, data\) or "
    with pytest.raises(TypeError, match=pattern):
        Server(kind)


# --- what makes handlers ------------------------------------------------------------------------------

SUBSETS = ["", "handshake", "conn", "app", "handshake, conn", "conn, app", "app, conn, handshake"]
ARGUMENTS = {"handshake": "the handshake", "conn": "the connection", "app": "the application"}


def given(names: str) -> dict[str, str]:
    """Return the arguments of these names."""
    return {name: ARGUMENTS[name] for name in names.split(", ") if name}


class Made:
    """A handler that remembers what it was made with."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def client_message(self, data: str | bytes) -> None:
        """Ignore it."""


def made_by(names: str) -> Any:
    """Make an ``__init__`` that takes these parameters."""
    namespace: dict[str, Any] = {}
    arguments = ", ".join(f"{name}={name}" for name in names.split(", ") if name)
    exec(f"def __init__(self, {names}): self.arguments = dict({arguments})", namespace)
    return namespace["__init__"]


async def make(factory: HandlerFactory) -> Any:
    """Make a session as the server does, and return its handler."""
    session: Any = await factory(**ARGUMENTS)
    return session._handler


@virtual
@pytest.mark.parametrize("names", SUBSETS)
async def test_handler_class_takes_the_arguments_that_its_init_names(names: str) -> None:
    """``__init__`` may take handshake, conn and app, or leave out what it does not need. [H1]"""
    handler = await make(HandlerFactory(make_class(__init__=made_by(names))))
    assert handler.arguments == given(names)


@virtual
@pytest.mark.parametrize("names", SUBSETS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_handler_class_with_a_classmethod_init_is_made_by_that(names: str, is_async: bool) -> None:
    """A classmethod ``init``, ``async`` or not, takes the place of ``__init__``. [H1]"""
    init = make_hook(f"(cls, {names})", is_async=is_async, result="cls(dict(locals(), cls=None))")
    kind: Any = type("Handler", (Made,), {"init": classmethod(init)})
    handler = await make(HandlerFactory(kind))
    assert type(handler) is kind
    assert handler.arguments == {"cls": None, **given(names)}


@virtual
@pytest.mark.parametrize("names", SUBSETS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_handler_function_makes_the_handler(names: str, is_async: bool) -> None:
    """Any function that returns a handler will do in place of a class. [S1]"""
    function = make_hook(f"({names})", is_async=is_async, result="locals()")

    def wrapped(**arguments: Any) -> Any:
        result = function(**arguments)
        return then(result) if is_async else Made(result)

    async def then(result: Any) -> Made:
        return Made(await result)

    wrapped.__wrapped__ = function  # type: ignore[attr-defined]  # what inspect.signature follows
    assert (await make(HandlerFactory(wrapped))).arguments == given(names)


@virtual
async def test_handler_function_may_be_any_callable() -> None:
    """A partial function and an object with ``__call__`` are callables like others. [S1]"""

    class Maker:
        def __call__(self, conn: Any) -> Made:
            return Made({"conn": conn})

    def function(extra: int, app: Any) -> Made:
        return Made({"extra": extra, "app": app})

    assert (await make(HandlerFactory(Maker()))).arguments == given("conn")
    handler = await make(HandlerFactory(functools.partial(function, 1)))
    assert handler.arguments == {"extra": 1, **given("app")}


@virtual
async def test_handler_function_with_any_keywords_gets_all_arguments() -> None:
    """``**arguments`` takes handshake, conn and app. [S1]"""

    def function(**arguments: Any) -> Made:
        return Made(arguments)

    assert (await make(HandlerFactory(function))).arguments == ARGUMENTS


@virtual
async def test_handler_made_by_a_function_is_checked_when_it_is_made() -> None:
    """What a function returns is known only then; the error is the same. [S1]"""
    with pytest.raises(TypeError, match=r"^object has no client_message"):
        await make(HandlerFactory(lambda: object()))


@virtual
async def test_function_that_makes_no_handler_is_told_where_it_belongs() -> None:
    """A function for ``serve`` cannot be told from one that makes handlers before it was called. [S1]"""

    async def deal(conn: object) -> None: ...

    with pytest.raises(TypeError, match=r"deal.* made no handler; .* goes to serve\(\)$"):
        await make(HandlerFactory(deal))


@pytest.mark.parametrize(
    "shape", ["(message)", "(conn, message)", "(conn, *, message)", "(message, **rest)", "(conn, /)"]
)
@pytest.mark.parametrize("is_class", [False, True])
def test_handler_with_an_unknown_parameter_is_a_type_error(shape: str, is_class: bool) -> None:
    """What cannot be given by its name is named when the server is made, with what can be given. [S1]"""
    make: Any = make_hook(shape)
    if is_class:
        make = make_class(__init__=make_hook(f"(self, {shape[1:]}"))
    name = "conn" if "/" in shape else "message"
    with pytest.raises(TypeError, match=rf"{name}.*it may take handshake, conn, app"):
        Server(make)


def test_handler_class_whose_init_is_no_classmethod_is_a_type_error() -> None:
    """An ``init`` that wants a ``self`` cannot make one. [S1]"""
    with pytest.raises(TypeError, match=r"Handler\.init|hook: unknown parameter 'self'"):
        Server(make_class(init=make_hook("(self, handshake)")))


@pytest.mark.parametrize("value", [None, 5, "Handler", Made({})])
def test_handler_that_cannot_be_called_is_a_type_error(value: Any) -> None:
    """A handler is a class or a function, not a name and not an instance. [S1]"""
    with pytest.raises(TypeError, match=r"^Handler: a class or another callable is needed"):
        Server(value)


def test_parameters_of_a_builtin_that_does_not_tell_are_none() -> None:
    """What has no signature is called without arguments. [S1]"""
    assert choose_parameters(min, ("conn",)) == ()


def test_parameters_of_a_function_that_takes_any_positional_ones_are_none() -> None:
    """Arguments are given by name, so ``*args`` gets nothing. [S1]"""
    assert choose_parameters(lambda *args, conn: None, ("conn", "app")) == ("conn",)


# --- what serves with one function --------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("names", SUBSETS)
async def test_function_takes_the_arguments_that_it_names(names: str) -> None:
    """The function that serves may take handshake, conn and app, or leave them out. [S7]"""
    got: list[Any] = []
    function = make_hook(f"({names})", is_async=True, result="got.append(locals())")
    function.__globals__["got"] = got
    session = await FunctionFactory(function)(**ARGUMENTS)
    await session.run("the connection")
    await session.close()
    assert got == [given(names)]


@pytest.mark.parametrize("function", [lambda conn: None, make_hook("(conn)"), Made, 5, None])
def test_function_that_is_no_coroutine_function_is_a_type_error(function: Any) -> None:
    """A ``def`` could not wait for messages; this is said before the first connection. [S7]"""
    with pytest.raises(TypeError):
        FunctionFactory(function)


@virtual
async def test_function_may_be_an_object_or_a_partial() -> None:
    """An object with ``async def __call__`` and a partial coroutine function serve as well. [S7]"""
    got: list[Any] = []

    class Function:
        async def __call__(self, conn: Any) -> None:
            got.append(conn)

    async def function(extra: int, conn: Any) -> None:
        got.append((extra, conn))

    for each in (Function(), functools.partial(function, 1)):
        await (await FunctionFactory(each)(**ARGUMENTS)).run("the connection")
    assert got == ["the connection", (1, "the connection")]


async def test_function_runs_with_nothing_of_ours_around_it() -> None:
    """Its coroutine is what is awaited as long as the connection lives, and alone has its arguments."""

    async def function(conn: object) -> None:
        del conn
        assert reference() is None

    conn: set[object] = set()
    reference = weakref.ref(conn)
    session = await FunctionFactory(function)(handshake=None, conn=conn, app=None)
    running: Any = session.run(conn)
    del conn
    assert running.cr_code is function.__code__
    await running


def test_function_with_an_unknown_parameter_is_a_type_error() -> None:
    """The parameters of the function are checked like those of a handler. [S7]"""
    with pytest.raises(TypeError, match=r"unknown parameter 'message'; it may take handshake, conn, app"):
        FunctionFactory(make_hook("(conn, message)", is_async=True))


# --- calling ------------------------------------------------------------------------------------------


@virtual
async def test_settle_returns_what_either_kind_of_hook_returns() -> None:
    """The result of ``async def`` is awaited, that of ``def`` is handed on."""

    async def hook() -> int:
        return 1

    assert await settle(hook()) == 1
    assert await settle(2) == 2


@pytest.mark.parametrize("message_type", [False, True])
@pytest.mark.parametrize("controls", [(), ("client_ping",), ("client_pong", "client_close")])
def test_dispatch_gives_each_message_to_its_hook(message_type: bool, controls: tuple[str, ...]) -> None:
    """Data goes to ``client_message``, a control frame to its hook, each with what it asks for."""
    got: list[Any] = []

    def client_message(self: Any, data: Any, message_type: Any) -> None:
        got.append(("client_message", data, message_type))

    hooks: dict[str, Any] = {
        name: lambda self, data, name=name: got.append((name, data)) for name in controls
    }
    hooks["client_message"] = (
        client_message if message_type else lambda self, data: got.append(("client_message", data))
    )
    kind = make_class(**hooks)
    dispatch = hooks_of(kind).dispatch(kind())
    for type_, data in ((MessageType.TEXT, "text"), (MessageType.BINARY, b"binary")):
        dispatch(Message(type_, data))
        assert got.pop() == ("client_message", data, *([type_] if message_type else []))
    types = {"client_ping": MessageType.PING, "client_pong": MessageType.PONG}
    for name in controls:
        dispatch(Message(types.get(name, MessageType.CLOSE), b"control"))
        assert got.pop() == (name, b"control")


def test_dispatch_calls_a_pong_hook_without_arguments() -> None:
    """``client_pong(self)`` is called without the data. [H12]"""
    got: list[Any] = []
    kind = make_class(client_pong=lambda self: got.append("pong"))
    hooks_of(kind).dispatch(kind())(Message(MessageType.PONG, b"data"))
    assert got == ["pong"]


def test_dispatch_uses_the_hooks_of_the_instance() -> None:
    """A hook that ``__init__`` wrapped for this connection is the one that is called."""
    got: list[Any] = []
    kind = make_class()
    handler = kind()
    handler.client_message = got.append
    hooks_of(kind).dispatch(handler)(Message(MessageType.TEXT, "data"))
    assert got == ["data"]


def test_hooks_are_found_once_per_class() -> None:
    """The second connection costs no inspection: the table of a class is made once. [S1]"""
    kind = make_class()
    assert isinstance(hooks_of(kind), Hooks)
    assert hooks_of(kind) is hooks_of(kind)


# --- the opening handshake ----------------------------------------------------------------------------


class Noting:
    """A handler that writes into the diary, which is the application, what happens to it."""

    def __init__(self, conn: Conn, app: Diary) -> None:
        self.conn = conn
        self.diary = app
        app.append("made")

    async def client_message(self, data: str | bytes) -> None:
        """Note the message, after other tasks had their turn."""
        await anyio.lowlevel.checkpoint()
        self.diary.append(data)

    async def close(self) -> None:
        """Note the end, after other tasks had their turn."""
        await anyio.lowlevel.checkpoint()
        self.diary.append("closed")


def refused_in(place: str, error: Exception) -> Any:
    """Make a handler that raises where it is made."""
    if place == "__init__":

        def __init__(self: Any) -> None:  # noqa: N807  # it becomes a method
            raise error

        return make_class(__init__=__init__)
    if place == "init":

        async def init(cls: Any) -> None:
            await anyio.lowlevel.checkpoint()
            raise error

        return make_class(init=classmethod(init))

    async def function() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return function


PLACES = pytest.mark.parametrize("place", ["__init__", "init", "function"])


@virtual
async def test_init_runs_before_the_101() -> None:
    """Nothing is answered before the handler is made. [H1]"""
    made = anyio.Event()

    class Slow(Noting):
        @classmethod
        async def init(cls, conn: Conn, app: Diary) -> Slow:
            await made.wait()
            return cls(conn, app)

    async with serving(Slow, []) as served:
        peer = served.connect()
        await peer.send(build_request())
        with anyio.move_on_after(5) as scope:
            await peer.receive_head()
        assert scope.cancelled_caught
        made.set()
        assert (await peer.receive_head()).status == 101
        await peer.close_handshake()


@virtual
@PLACES
async def test_init_refuses_with_the_response_it_raises(place: str) -> None:
    """``Reject`` has status, reason, headers and body of the answer, which is all the peer gets. [H1]"""
    reject = Reject(401, "Who Are You", headers={"WWW-Authenticate": "Basic"}, body=b"\x00body")
    async with serving(refused_in(place, reject)) as served:
        peer = served.connect()
        await peer.send(build_request())
        head = await peer.receive_head()
        assert head.line == "HTTP/1.1 401 Who Are You"
        assert head.get("www-authenticate") == "Basic"
        assert head.get("connection") == "close"
        assert head.body == b"\x00body"
        await peer.expect_end()


@virtual
async def test_init_refusal_reaches_a_client_whole() -> None:
    """The client's error has status, headers and body of the refusal. [H1, K2]"""
    reject = Reject(403, headers=[("X-Why", "a"), ("X-Why", "b")], body=b"no")
    with pytest.raises(HandshakeRejected) as caught:
        async with testing.client(refused_in("__init__", reject)):
            pass
    assert (caught.value.status, caught.value.body) == (403, b"no")
    assert caught.value.headers["x-why"] == "a, b"


@virtual
@PLACES
@pytest.mark.attack("H24")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret detail"),
        OSError("secret detail"),
        TimeoutError("secret detail"),
        ConnectionClosed(1000, "secret detail"),
        HandshakeRejected(404, {}, b"secret detail"),
        anyio.BrokenResourceError("secret detail"),
        Reject(401, headers={"Bad": "value\r\nSecret: detail"}),
        Reject(401, headers={"Connection": "keep-alive"}),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_init_that_fails_is_answered_with_500_and_logged_once(
    place: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What went wrong is in the log with its traceback, and nothing of it in the answer. [H1, S6]"""
    async with serving(refused_in(place, error)) as served:
        peer = served.connect()
        await peer.send(build_request())
        head = await peer.receive_head()
        assert head.status == 500
        assert b"ecret" not in head.body
        assert "ecret" not in str(head.headers)
        await peer.expect_end()
    (record,) = take_log(caplog)
    assert re.search(r"connection \d+", record.getMessage())
    logged = record.exc_info[1]
    assert error in (logged, logged.__cause__, logged.__context__)
    assert logged.__traceback__ is not None


@virtual
@PLACES
@pytest.mark.parametrize("error", [Reject(403), ValueError()], ids=["Reject", "ValueError"])
async def test_init_that_fails_leaves_nothing_to_close(
    place: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """``close`` is for handlers whose init succeeded. [H9]"""
    diary: Diary = []
    make: Any = refused_in(place, error)
    if isinstance(make, type):
        make.close = lambda self: diary.append("closed")  # type: ignore[attr-defined]
    with pytest.raises(HandshakeRejected):
        async with testing.client(make):
            pass
    assert diary == []
    take_log(caplog)


@virtual
@pytest.mark.parametrize(
    "use",
    [
        lambda conn: conn.write("early"),
        lambda conn: conn.write_bin(b"early"),
        lambda conn: conn.write_ping(),
        lambda conn: conn.ping(),
        lambda conn: conn.send("early"),
        lambda conn: conn.close(),
        lambda conn: conn.receive(),
        lambda conn: conn.send_eof(),
    ],
)
async def test_init_may_not_use_the_connection_yet(use: Callable[[Conn], Any]) -> None:
    """There is no connection before the 101; trying is an error that says so and does no harm. [H1]"""
    diary: Diary = []

    class Hasty(Noting):
        @classmethod
        async def init(cls, conn: Conn, app: Diary) -> Hasty:
            assert conn.state is State.CONNECTING
            with pytest.raises(LocalProtocolError, match="opening handshake is not done"):
                await use(conn)
            with pytest.raises(LocalProtocolError, match="opening handshake is not done"):
                conn.write_nowait("early")
            return cls(conn, app)

        async def after_init(self) -> None:
            await self.conn.write("in time")

    async with testing.client(Hasty, diary) as client:
        assert await client.receive() == "in time"
    assert diary == ["made", "closed"]


@virtual
async def test_init_adds_headers_to_the_101() -> None:
    """What ``init`` puts into ``response_headers`` is in the answer, repeated names included. [H1]"""

    class Polite(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            handshake.response_headers["X-Greeting"] = "Hello"
            handshake.response_headers.add("Set-Cookie", "a=1")
            handshake.response_headers.add("Set-Cookie", "b=2")

    async with serving(Polite, []) as served:
        peer = served.connect()
        head = await peer.open()
        assert head.get("x-greeting") == "Hello"
        assert [value for name, value in head.headers if name == "set-cookie"] == ["a=1", "b=2"]
        await peer.close_handshake()


@virtual
@pytest.mark.attack("H24")
@pytest.mark.parametrize("name", ["Upgrade", "connection", "Sec-WebSocket-Accept", "Content-Length"])
async def test_init_may_not_add_headers_of_the_handshake_itself(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A second header of this kind would break the answer: 500, and the handler is closed. [H1, H9]"""
    diary: Diary = []

    class Wrong(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            handshake.response_headers[name] = "1"

    with pytest.raises(HandshakeRejected, match="500"):
        async with testing.client(Wrong, diary):
            pass
    assert diary == ["made", "closed"]
    assert len(take_log(caplog)) == 1


@virtual
@pytest.mark.parametrize("error", [RuntimeError("in close"), OSError("in close")])
async def test_init_with_wrong_headers_is_answered_even_if_close_raises(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What ``close`` raises cannot take the 500 from the peer. [H1, H9]"""

    class Wrong(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            handshake.response_headers["Upgrade"] = "1"

        async def close(self) -> None:
            raise error

    with pytest.raises(HandshakeRejected, match="500"):
        async with testing.client(Wrong, []):
            pass
    assert take_log(caplog)


@virtual
@pytest.mark.parametrize(("name", "value"), [("X", "a\r\nb"), ("X\n", "a"), ("X", "a\0"), ("", "a")])
async def test_init_learns_at_once_that_a_header_cannot_be_sent(name: str, value: str) -> None:
    """A header with a line break never gets into the answer: adding it is a ``ValueError``. [H1]"""

    class Wrong(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            with pytest.raises(ValueError, match="header"):
                handshake.response_headers[name] = value

    async with testing.client(Wrong, []):
        pass


@virtual
@pytest.mark.parametrize("choice", ["v1", "v2", None])
async def test_init_selects_the_subprotocol(choice: str | None) -> None:
    """What ``select_subprotocol`` says counts, whatever the configuration prefers. [H1]"""

    class Choosing(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            assert handshake.subprotocol == "v2"
            handshake.select_subprotocol(choice)

        async def after_init(self) -> None:
            assert self.conn.subprotocol == choice

    config = Config(subprotocols=["v2"])
    async with testing.client(Choosing, [], config=config, subprotocols=["v1", "v2"]) as client:
        assert client.subprotocol == choice


@virtual
async def test_init_may_not_select_a_subprotocol_that_was_not_offered() -> None:
    """RFC 6455 §4.2.2: the server's choice is one of the client's. [H1]"""

    class Choosing(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            with pytest.raises(ValueError, match="the client did not offer 'v9'"):
                handshake.select_subprotocol("v9")

    async with testing.client(Choosing, [], subprotocols=["v1"]) as client:
        assert client.subprotocol is None


@virtual
async def test_handshake_is_what_the_client_said() -> None:
    """Path and method in their casing, headers with and without it, and what they mean. [H2]"""
    seen: list[Handshake] = []

    class Looking(Noting):
        def __init__(self, handshake: Handshake, conn: Conn, app: Diary) -> None:
            super().__init__(conn, app)
            seen.append(handshake)

    async with serving(Looking, [], Config(origins="*")) as served:
        headers: dict[str, str | None] = {
            "Authorization": "Basic AbC",
            "Cookie": 'a=1; b="2"',
            "Origin": "https://Example.com",
            "Sec-WebSocket-Protocol": "v2, v1",
        }
        peer = await served.open("/A%20b/C?Key=Value&x=", headers)
        await peer.close_handshake()
    (handshake,) = seen
    assert handshake.url == "/A%20b/C?Key=Value&x="
    assert handshake.method == "GET"
    assert handshake.path == "/A b/C"
    assert handshake.query == {"Key": "Value", "x": ""}
    assert handshake.headers.get("authorization") == handshake.headers["AUTHORIZATION"] == "Basic AbC"
    assert handshake.headers.get("absent") is None
    assert set(handshake.headers) >= {"host", "authorization", "cookie"}
    assert handshake.raw_headers.startswith(b"host: localhost\r\nupgrade: websocket\r\n")
    assert b"\r\nauthorization: Basic AbC\r\n" in handshake.raw_headers
    assert handshake.raw_headers.endswith(b"\r\n")
    assert handshake.cookies == {"a": "1", "b": "2"}
    assert handshake.origin == "https://Example.com"
    assert handshake.subprotocols == ("v2", "v1")
    assert handshake.remote_address == ""  # a connection in memory has none
    assert handshake.response_headers.pairs() == []


# --- messages -----------------------------------------------------------------------------------------


@virtual
@pytest.mark.parametrize("is_async", [False, True])
async def test_after_init_is_the_first_to_write_and_to_see_the_connection(is_async: bool) -> None:
    """It runs right behind the 101, and before messages that came with the request. [H3]"""

    async def greet_later(self: Noting, app: Diary) -> None:
        await anyio.lowlevel.checkpoint()
        assert app is self.diary
        app.append("after_init")
        await self.conn.write("hello")

    def greet(self: Noting) -> None:
        self.diary.append("after_init")
        self.conn.write_nowait("hello")

    class Greeting(Noting):
        after_init: Any = greet_later if is_async else greet

        async def client_message(self, data: str | bytes) -> None:
            self.diary.append(data)
            await self.conn.write(f"echo {data!r}")

    diary: Diary = []
    async with serving(Greeting, diary) as served:
        peer = served.connect()
        await peer.send(build_request() + peer.build(TEXT, b"early"))
        assert (await peer.receive_head()).status == 101
        await peer.expect(TEXT, b"hello")
        await peer.expect(TEXT, b"echo 'early'")
        await peer.close_handshake()
    assert diary == ["made", "after_init", "early", "closed"]


@virtual
@pytest.mark.attack("T12")
async def test_after_init_may_write_although_the_peer_has_closed_already() -> None:
    """A Close that came with the request is answered when ``after_init`` is done, not under it. [H3, H9]"""

    class Greeting(Noting):
        async def after_init(self) -> None:
            await anyio.sleep(1)
            await self.conn.write("hello")

    diary: Diary = []
    async with serving(Greeting, diary) as served:
        peer = served.connect()
        await peer.send(build_request() + peer.build(CLOSE, b"\x03\xe8"))
        assert (await peer.receive_head()).status == 101
        await peer.expect(TEXT, b"hello")
        await peer.expect_close(1000)
        await peer.expect_end()
    assert diary == ["made", "closed"]


@virtual
async def test_client_message_gets_text_as_str_and_binary_as_bytes() -> None:
    """The type of the data tells which it was. [H4]"""
    diary: Diary = []
    async with testing.client(Noting, diary) as client:
        await client.write("téxt")
        await client.write_bin(b"\xffbinary")
        await client.write("")
        await client.write_bin(bytearray())
    assert diary == ["made", "téxt", b"\xffbinary", "", b"", "closed"]
    assert [type(each) for each in diary[1:5]] == [str, bytes, str, bytes]


@virtual
async def test_client_message_is_told_the_type_of_the_message() -> None:
    """``message_type`` says it where the data does not, with ``utf8="off"`` for one. [H5]"""
    diary: Diary = []

    class Typed(Noting):
        def client_message(self, data: Any, message_type: MessageType) -> None:  # type: ignore[override]
            self.diary.append((data, message_type))

    async with testing.client(Typed, diary, config=Config(utf8="off")) as client:
        await client.write("text")
        await client.write_bin(b"binary")
    assert diary[1:-1] == [(b"text", MessageType.TEXT), (b"binary", MessageType.BINARY)]


@virtual
@pytest.mark.attack("R08")
@pytest.mark.parametrize("at_once", [False, True])
async def test_client_message_is_never_called_twice_at_a_time_and_in_order(at_once: bool) -> None:
    """One message is done before the next begins, whether they come together or apart. [H4]"""
    diary: Diary = []

    class Slow(Noting):
        async def client_message(self, data: str | bytes) -> None:
            self.diary.append(f"begin {data!r}")
            await anyio.sleep(1)
            self.diary.append(f"end {data!r}")

    async with serving(Slow, diary) as served:
        peer = await served.open()
        messages = [peer.build(BINARY if number % 3 else TEXT, b"%d" % number) for number in range(10)]
        for piece in [b"".join(messages)] if at_once else messages:
            await peer.send(piece)
            await support.settle()
        await peer.send_close(1000)
        with anyio.move_on_after(20):
            await peer.rest()
    data = [f"b'{number}'" if number % 3 else f"'{number}'" for number in range(10)]
    assert diary[1:-1] == [f"{edge} {each}" for each in data for edge in ("begin", "end")]


@virtual
@pytest.mark.attack("T13")
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("hook", ["after_init", "client_message", "client_ping"])
async def test_hook_that_raises_closes_its_connection_with_1011(
    hook: str, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer learns that the server failed, not how; the log has it once, with the traceback. [H8, S6]"""
    error = ValueError("secret detail")
    ids: list[int] = []

    def fail(self: Any, data: Any) -> None:
        raise error

    async def fail_later(self: Any, data: Any) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    function: Any = fail_later if is_async else fail
    if hook == "after_init":
        function = functools.partialmethod(function, None)
    kind: Any = type("Failing", (Noting,), {hook: function})
    diary: Diary = []

    def make(conn: Conn) -> Any:
        ids.append(conn.id)
        return kind(conn, diary)

    async with serving(make) as served:
        peer = await served.open()
        await peer.send_frame(PING if hook == "client_ping" else TEXT, b"1")
        await peer.expect_close(1011)
        await peer.send_close(1011)
        await peer.expect_end()
    assert diary == ["made", "closed"]
    (record,) = take_log(caplog)
    assert f"connection {ids[0]}" in record.getMessage()
    assert record.exc_info[1] is error
    assert record.exc_info[2] is not None


@virtual
@pytest.mark.attack("T10", "T11")
async def test_hook_may_close_its_own_connection() -> None:
    """``conn.close()`` inside a hook does the closing handshake; messages after that are dropped. [H8]"""
    diary: Diary = []

    class Closing(Noting):
        async def client_message(self, data: str | bytes) -> None:
            self.diary.append(data)
            await self.conn.close(4000, "enough")
            assert self.conn.state is State.CLOSED
            await self.conn.close()

        async def close(self) -> None:
            await self.conn.close()
            await super().close()

    async with serving(Closing, diary) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"one") + peer.build(TEXT, b"two"))
        await peer.expect_close(4000, "enough")
        await peer.send_frame(TEXT, b"three")
        await peer.send_close(4000)
        await peer.expect_end()
    assert diary == ["made", "one", "closed"]


# --- control frames -----------------------------------------------------------------------------------


class Busy(Noting):
    """A handler whose ``client_message`` takes its time."""

    async def client_message(self, data: str | bytes) -> None:
        """Sleep."""
        await anyio.sleep(100)


@virtual
@pytest.mark.attack("R15")
async def test_ping_without_a_hook_is_answered_even_while_a_message_is_handled() -> None:
    """Keepalive does not depend on how long ``client_message`` takes. [H11]"""
    async with serving(Busy, [], Config(ping_interval=None, shutdown_timeout=1)) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"work")
        await peer.send_frame(PING, b"there?")
        with anyio.fail_after(0.001):
            await peer.expect(PONG, b"there?")


@virtual
@pytest.mark.parametrize("is_async", [False, True])
async def test_ping_with_a_hook_is_the_handler_s_to_answer(is_async: bool) -> None:
    """``client_ping`` gets the data, in its turn; nothing is sent but what it sends. [H11]"""

    async def answer(self: Noting, data: bytes) -> None:
        await self.conn.write_pong(data + b"!")

    def note(self: Noting, data: bytes) -> None:
        self.diary.append(data)

    diary: Diary = []
    kind = type("Answering", (Noting,), {"client_ping": answer if is_async else note})
    async with serving(kind, diary) as served:
        peer = await served.open()
        await peer.send(peer.build(TEXT, b"first") + peer.build(PING, b"1") + peer.build(TEXT, b"last"))
        if is_async:
            await peer.expect(PONG, b"1!")
        await peer.close_handshake()
    assert diary == ["made", "first", *([] if is_async else [b"1"]), "last", "closed"]


@virtual
async def test_pong_without_a_hook_does_nothing() -> None:
    """A Pong that nobody asked for is legal, and ignored (RFC 6455 §5.5.3). [H12]"""
    diary: Diary = []
    async with serving(Noting, diary) as served:
        peer = await served.open()
        await peer.send_frame(PONG, b"unasked")
        await peer.close_handshake()
    assert diary == ["made", "closed"]


@virtual
@pytest.mark.parametrize("with_data", [False, True])
async def test_pong_with_a_hook_is_handed_over(with_data: bool) -> None:
    """``client_pong`` is called with the data, or without if it does not want it. [H12]"""

    def note(self: Noting, data: bytes) -> None:
        self.diary.append(data)

    async def count(self: Noting) -> None:
        self.diary.append(b"pong")

    diary: Diary = []
    kind = type("Counting", (Noting,), {"client_pong": note if with_data else count})
    async with serving(kind, diary) as served:
        peer = await served.open()
        await peer.send_frame(PONG, b"pong")
        await peer.close_handshake()
    assert diary == ["made", b"pong", "closed"]


@virtual
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x0f\xa0bye"])
async def test_close_without_a_hook_is_answered_with_the_peer_s_code(payload: bytes) -> None:
    """RFC 6455 §5.5.1: the answer typically echoes the code. [H10]"""
    diary: Diary = []
    async with serving(Noting, diary) as served:
        peer = await served.open()
        await peer.send_frame(CLOSE, payload)
        await peer.expect(CLOSE, payload[:2])
        await peer.expect_end()
    assert diary == ["made", "closed"]


@virtual
@pytest.mark.parametrize("is_async", [False, True])
async def test_close_with_a_hook_is_not_answered(is_async: bool) -> None:
    """``client_close`` gets the payload of the Close; the connection ends without an answer. [H10]"""

    async def note_later(self: Noting, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.diary.append(data)

    def note(self: Noting, data: bytes) -> None:
        self.diary.append(data)

    diary: Diary = []
    kind = type("Silent", (Noting,), {"client_close": note_later if is_async else note})
    async with serving(kind, diary) as served:
        peer = await served.open()
        await peer.send_frame(TEXT, b"first")
        await peer.send_frame(CLOSE, b"\x0f\xa0bye")
        await peer.expect_end()
    assert diary == ["made", "first", b"\x0f\xa0bye", "closed"]


@virtual
async def test_close_with_a_hook_is_answered_by_it() -> None:
    """The hook may still write, and answers with a code of its own. [H10]"""

    class Answering(Noting):
        async def client_close(self, data: bytes) -> None:
            await self.conn.write("wait")
            await self.conn.close(4001, "mine")

    diary: Diary = []
    async with serving(Answering, diary) as served:
        peer = await served.open()
        await peer.send_close(1000)
        await peer.expect(TEXT, b"wait")
        await peer.expect_close(4001, "mine")
        await peer.expect_end()
    assert diary == ["made", "closed"]


# --- the end ------------------------------------------------------------------------------------------

Ending = Callable[[support.Serving, Peer], Any]


async def peer_closes(served: support.Serving, peer: Peer) -> None:
    await peer.close_handshake()


async def we_close(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"close")
    await peer.expect_close(1000)
    await peer.send_close(1000)
    await peer.expect_end()


async def we_close_and_the_peer_is_silent(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"close")
    await peer.expect_close(1000)
    await peer.expect_end()


async def both_close(served: support.Serving, peer: Peer) -> None:
    await peer.send(peer.build(TEXT, b"close") + peer.build(CLOSE, b"\x03\xe8"))
    await peer.expect_close(1000)
    await peer.expect_end()


async def the_handler_fails(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"fail")
    await peer.expect_close(1011)


async def the_handler_aborts(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"abort")
    await peer.expect_end()


async def the_peer_breaks_the_rules(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"not masked", key=None)
    assert (await peer.frame()).payload[:2] == b"\x03\xea"


async def the_stream_ends_without_a_close(served: support.Serving, peer: Peer) -> None:
    await peer.stream.send_eof()
    await peer.expect_end()


async def the_stream_ends_within_a_frame(served: support.Serving, peer: Peer) -> None:
    await peer.send(peer.build(TEXT, b"whole")[:-1])
    await peer.stream.send_eof()
    await peer.expect_end()


async def the_peer_vanishes(served: support.Serving, peer: Peer) -> None:
    await peer.stream.aclose()


async def the_peer_vanishes_while_a_message_is_handled(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"write later")
    await peer.stream.aclose()


async def the_peer_is_not_heard_any_more(served: support.Serving, peer: Peer) -> None:
    await anyio.sleep(41)
    await peer.rest()


async def the_peer_does_not_read_any_more(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"write much")
    await anyio.sleep(41)


async def the_server_stops(served: support.Serving, peer: Peer) -> None:
    served.server.stop()
    await peer.expect_close(1001)
    await peer.send_close(1001)
    await peer.expect_end()


async def the_server_stops_and_the_peer_is_silent(served: support.Serving, peer: Peer) -> None:
    served.server.stop()
    await peer.expect_close(1001)
    await peer.expect_end()


async def the_server_stops_while_a_message_is_handled(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"sleep")
    await support.settle()
    served.server.stop()
    await peer.expect_close(1001)
    await peer.expect_end()


async def the_server_is_cancelled(served: support.Serving, peer: Peer) -> None:
    served.tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await peer.expect_close(1001)
        await peer.expect_end()


async def the_server_is_cancelled_while_a_message_is_handled(served: support.Serving, peer: Peer) -> None:
    await peer.send_frame(TEXT, b"sleep")
    await support.settle()
    await the_server_is_cancelled(served, peer)


class Obedient(Noting):
    """A handler that does what the message says."""

    async def client_message(self, data: str | bytes) -> None:
        """Do it."""
        if data == "close":
            await self.conn.close()
        elif data == "fail":
            raise ValueError
        elif data == "abort":
            self.conn.abort()
        elif data == "write later":
            await anyio.sleep(1)
            await self.conn.write("too late")
        elif data == "write much":
            await self.conn.write_bin(bytes(100_000))
        elif data == "sleep":
            await anyio.sleep(1_000)


@virtual
@pytest.mark.attack("T10", "T16", "T17", "O02")
@pytest.mark.parametrize(
    "ending",
    [
        peer_closes,
        we_close,
        we_close_and_the_peer_is_silent,
        both_close,
        the_handler_fails,
        the_handler_aborts,
        the_peer_breaks_the_rules,
        the_stream_ends_without_a_close,
        the_stream_ends_within_a_frame,
        the_peer_vanishes,
        the_peer_vanishes_while_a_message_is_handled,
        the_peer_is_not_heard_any_more,
        the_peer_does_not_read_any_more,
        the_server_stops,
        the_server_stops_and_the_peer_is_silent,
        the_server_stops_while_a_message_is_handled,
        the_server_is_cancelled,
        the_server_is_cancelled_while_a_message_is_handled,
    ],
)
async def test_close_is_called_exactly_once_whatever_ends_the_connection(
    ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    """Every handler that was made is closed, once, and only a failure of its own is logged. [C3, H9]"""
    diary: Diary = []
    async with serving(Obedient, diary) as served:
        peer = served.connect(70_000)
        await peer.open()
        await ending(served, peer)
        with anyio.CancelScope(shield=True):
            await peer.stream.aclose()
    assert diary == ["made", "closed"]
    assert len(take_log(caplog)) == (ending is the_handler_fails)


@virtual
async def test_close_is_called_for_a_peer_that_left_before_the_101() -> None:
    """The answer cannot be sent; the handler was made all the same, so it is closed. [H9]"""
    diary: Diary = []

    class Slow(Noting):
        @classmethod
        async def init(cls, conn: Conn, app: Diary) -> Slow:
            await anyio.sleep(1)
            return cls(conn, app)

    async with serving(Slow, diary) as served:
        peer = served.connect()
        await peer.send(build_request())
        await peer.stream.aclose()
        await anyio.sleep(2)
        assert diary == ["made", "closed"]


@virtual
async def test_close_is_called_when_the_connection_is_gone() -> None:
    """``close`` comes last: nothing can be written any more, and the close code is known. [H9]"""
    diary: Diary = []

    class Looking(Noting):
        async def close(self) -> None:
            with pytest.raises(ConnectionClosed):
                await self.conn.write("too late")
            self.diary.append((self.conn.state, self.conn.close_code))

    async with serving(Looking, diary) as served:
        peer = await served.open()
        await peer.close_handshake(4000)
    assert diary == ["made", (State.CLOSED, 4000)]


@virtual
@pytest.mark.attack("T15")
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("message", [None, b"fail"])
async def test_close_that_raises_is_logged_and_disturbs_nobody(
    is_async: bool, message: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in ``close`` is logged beside the one that ended the connection; others go on. [S6]"""
    error = ValueError("in close")

    def fail(self: Noting) -> None:
        raise error

    async def fail_later(self: Noting) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    kind = type("Failing", (Obedient,), {"close": fail_later if is_async else fail})
    async with serving(kind, []) as served:
        peer, other = await served.open(), await served.open()
        if message is not None:
            await peer.send_frame(TEXT, message)
            await peer.expect_close(1011)
            await peer.stream.aclose()
        else:
            await peer.close_handshake()
        await support.settle()
        records = take_log(caplog)
        assert [record.exc_info[1] for record in records][-1] is error
        assert len(records) == (1 if message is None else 2)
        await other.send_frame(PING)
        await other.expect(PONG)
        await other.close_handshake()
    take_log(caplog)


@virtual
async def test_close_is_bounded_when_the_server_stops() -> None:
    """A ``close`` that never ends is cancelled: ``shutdown_timeout`` and ``close_timeout`` later. [S4, H9]"""
    diary: Diary = []

    class Stuck(Noting):
        async def close(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                self.diary.append("cancelled")

    with Stopwatch(3 + 2):
        async with serving(Stuck, diary, Config(shutdown_timeout=3, close_timeout=2)) as served:
            peer = await served.open()
            await peer.close_handshake()
            await support.settle()
    assert diary == ["made", "cancelled"]


@pytest.mark.parametrize("count", [2, 3, 100])
async def test_replies_to_messages_of_one_read_keep_their_order(count: int) -> None:
    """Over a socket too the replies leave in order, those gathered for one send and the last of them."""

    class Echo:
        def __init__(self, conn: Conn) -> None:
            self.conn = conn

        async def client_message(self, data: str) -> None:
            await self.conn.write(data)

    async with (
        listening(Server(Echo, Config(port=0))) as addresses,
        await anyio.connect_tcp(*addresses[0]) as stream,
    ):
        peer = Peer(stream)
        await peer.open()
        await peer.send(b"".join(peer.build(TEXT, str(i).encode()) for i in range(count)))
        for i in range(count):
            await peer.expect(TEXT, str(i).encode())
        await peer.close_handshake()
