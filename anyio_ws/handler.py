"""The hooks of a handler: found and checked once for its class, then called through a table.

A hook may be ``def`` or ``async def``, and which of its arguments it wants is told by their names. All
of that is decided in :func:`hooks_of`, when a server is made; per message there is one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

from .buffers import BufferPool
from .events import Message, MessageType
from .scratch import Scratch
from .threads import ThreadPool, is_async

_ACCEPTED = {
    "client_message": (
        ("data",),
        ("data", "message_type"),
        ("scratch", "data"),
        ("scratch", "data", "message_type"),
    ),
    "after_init": ((), ("app",)),
    "client_ping": (("data",),),
    "client_pong": ((), ("data",)),
    "client_close": (("data",),),
    "close": ((),),
}
_PARAMETERS = ("handshake", "conn", "app")
_CONTROL_HOOKS = {
    MessageType.PING: "client_ping",
    MessageType.PONG: "client_pong",
    MessageType.CLOSE: "client_close",
}

Result = Awaitable[object] | object
Dispatch = Callable[[Message], Result]


class Hooks(NamedTuple):
    """Which hooks a class of handlers has, and how each wants to be called.

    :ivar parameters: the parameters of each hook that there is
    :ivar manual: the control frames that are handed to the handler and not answered for it
    """

    parameters: dict[str, tuple[str, ...]]
    manual: frozenset[MessageType]

    @property
    def by_data(self) -> bool:
        """Whether ``client_message`` is all that is called for a message, and takes its data only."""
        return self.parameters["client_message"] == ("data",) and not self.manual

    def dispatch(self, handler: Any, scratch: BufferPool | None = None) -> Dispatch:
        """Return the function that gives a message to the hook that it is for.

        :param handler: the handler
        :param scratch: where a ``scratch`` has its buffer from
        """
        client_message = self._client_message(handler.client_message, scratch)
        if not self.manual:
            return client_message
        hooks: dict[MessageType, Dispatch] = dict.fromkeys(
            (MessageType.TEXT, MessageType.BINARY), client_message
        )
        for type_ in self.manual:
            hooks[type_] = self._control(getattr(handler, _CONTROL_HOOKS[type_]), type_)
        return lambda message: hooks[message.type](message)

    def _client_message(self, hook: Callable[..., Result], buffers: BufferPool | None) -> Dispatch:
        """Return the function that calls ``client_message`` with what its parameters ask for."""
        parameters = self.parameters["client_message"]
        typed = "message_type" in parameters
        if "scratch" in parameters:
            return partial(_call_with_scratch, hook, typed, buffers)
        if typed:
            return lambda message: hook(message.data, message.type)
        return lambda message: hook(message.data)

    def _control(self, hook: Callable[..., Result], type_: MessageType) -> Dispatch:
        if self.parameters[_CONTROL_HOOKS[type_]]:
            return lambda message: hook(message.data)
        return lambda message: hook()

    async def after_init(self, handler: Any, app: object) -> None:
        """Call the hook that may write first, if there is one."""
        parameters = self.parameters.get("after_init")
        if parameters is not None:
            await settle(handler.after_init(*(app,) * len(parameters)))

    async def close(self, handler: Any) -> None:
        """Call the hook that comes last, if there is one."""
        if "close" in self.parameters:
            await settle(handler.close())


async def _call_with_scratch(
    hook: Callable[..., Result], typed: bool, buffers: BufferPool | None, message: Message
) -> None:
    """Call a hook with a scratch that is over when it returns."""
    with Scratch(buffers) as scratch:
        arguments = (message.data, message.type) if typed else (message.data,)
        await settle(hook(scratch, *arguments))


async def settle(result: Result) -> Any:
    """Wait for what an ``async def`` hook returned; hand on what a ``def`` hook did."""
    return await result if inspect.isawaitable(result) else result


@cache
def hooks_of(kind: type) -> Hooks:
    """Find and check the hooks of a class of handlers.

    :raises TypeError: when ``client_message`` is missing, or a hook's parameters are none of the
        accepted ones; it names the hook and shows them
    """
    if not callable(getattr(kind, "client_message", None)):
        raise TypeError(f"{kind.__name__} has no client_message; accepted: {_shapes('client_message')}")
    parameters = {}
    for name in _ACCEPTED:
        hook = inspect.getattr_static(kind, name, None)
        if hook is not None:
            parameters[name] = _hook_parameters(kind, name, hook)
    manual = frozenset(type_ for type_, name in _CONTROL_HOOKS.items() if name in parameters)
    return Hooks(parameters, manual)


def _hook_parameters(kind: type, name: str, hook: object) -> tuple[str, ...]:
    function = getattr(kind, name)
    if not callable(function):
        raise TypeError(f"{kind.__name__}.{name} is not a method; accepted: {_shapes(name)}")
    parameters = list(inspect.signature(function).parameters.values())
    if not isinstance(hook, staticmethod | classmethod):
        parameters = parameters[1:]
    known = {parameter for shape in _ACCEPTED[name] for parameter in shape}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = tuple(p.name for p in positional if p.name in known)
    in_front = names == tuple(p.name for p in positional[: len(names)])
    if (
        names not in _ACCEPTED[name]
        or not in_front
        or any(_is_demanded(p) and p.name not in names for p in parameters)
    ):
        raise TypeError(f"{kind.__name__}.{name}{inspect.signature(function)}; accepted: {_shapes(name)}")
    return names


def _is_demanded(parameter: inspect.Parameter) -> bool:
    """Tell whether a call must give this parameter."""
    is_variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not is_variable


def _shapes(name: str) -> str:
    return " or ".join(f"{name}({', '.join(('self', *shape))})" for shape in _ACCEPTED[name])


class Tools(NamedTuple):
    """What a server gives its handlers to work with.

    :ivar scratch: where a hook's scratch has its buffer from
    :ivar threads: where ``def`` hooks run, if they do not run in the event loop
    """

    scratch: BufferPool | None = None
    threads: ThreadPool | None = None


NO_TOOLS = Tools()


class Session(Protocol):
    """What runs one connection: a handler with its hooks, or a function.

    :ivar hooked: whether it is told of messages, and so is known to be at work before the first
    """

    hooked: bool

    @property
    def manual(self) -> frozenset[MessageType]:
        """The control frames that are handed over and not answered for it."""

    @property
    def hears_close(self) -> bool:
        """Whether it is told that the connection is gone."""

    async def begin(self) -> None:
        """Tell the user's code that the connection is open; raises whatever it raises."""

    def run(self, conn: Any) -> Awaitable[object]:
        """Deal with the connection until it ends; raises whatever the user's code raises."""

    async def close(self) -> None:
        """Tell the user's code that the connection is gone."""


class SessionFactory(Protocol):
    """Makes the session of each connection, while the opening handshake runs."""

    async def __call__(self, tools: Tools = NO_TOOLS, /, **arguments: object) -> Session:
        """Make a session out of ``handshake``, ``conn`` and ``app``.

        :param tools: what the handler is given to work with
        """


class HandlerFactory:
    """Makes handlers out of whatever was given to the server as ``Handler``.

    :param make: a class, with ``__init__`` or an (``async``) classmethod ``init``, or any function,
        ``def`` or ``async def``; it takes any of the parameters ``handshake``, ``conn`` and ``app``
    :raises TypeError: when it takes another parameter, or a class has a hook that is wrong
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        if not callable(make):
            raise TypeError(f"Handler: a class or another callable is needed, not {make!r}")
        if isinstance(make, type):
            hooks_of(make)
            make = getattr(make, "init", make)
        self._make = make
        self._names = choose_parameters(make, _PARAMETERS)
        # A class without a constructor has nothing to run that could block.
        own = [getattr(make, name, None) for name in ("__new__", "__init__")]
        self._runs_no_code = own == [object.__new__, object.__init__]

    async def __call__(self, tools: Tools = NO_TOOLS, /, **arguments: object) -> Session:
        """Make the handler of a connection; raises whatever the user's code raises."""
        make = self._make
        if tools.threads is not None and not self._runs_no_code:
            make = tools.threads.bind(make)
        handler = await settle(make(**{name: arguments[name] for name in self._names}))
        if handler is None:
            raise TypeError(f"{make!r} made no handler; a function that is a handler goes to serve()")
        if tools.threads is None:
            return _HandlerSession(handler, arguments["app"], tools.scratch)
        return _BlockingSession(handler, arguments["app"], tools.scratch, tools.threads)


class _HandlerSession:
    """A handler and the connection that it handles."""

    hooked = True
    __slots__ = ("_app", "_handler", "_hooks", "_scratch")

    def __init__(self, handler: Any, app: object, scratch: BufferPool | None) -> None:
        self._handler = handler
        self._app = app
        self._scratch = scratch
        kind: type = type(handler)
        self._hooks = hooks_of(kind)

    @property
    def manual(self) -> frozenset[MessageType]:
        return self._hooks.manual

    @property
    def hears_close(self) -> bool:
        return "close" in self._hooks.parameters

    async def begin(self) -> None:
        await self._hooks.after_init(self._handler, self._app)

    def run(self, conn: Any) -> Awaitable[None]:
        # What this returns is awaited as long as the connection lives: the fewer frames the better.
        by_data = self._hooks.by_data
        hook = self._handler.client_message if by_data else self._hooks.dispatch(self._handler, self._scratch)
        result: Awaitable[None] = conn.dispatch_all(hook, by_data=by_data)
        return result

    async def close(self) -> None:
        await self._hooks.close(self._handler)


class _BlockingSession(_HandlerSession):
    """A handler whose ``def`` hooks run in worker threads."""

    __slots__ = ("_threads",)

    def __init__(self, handler: Any, app: object, scratch: BufferPool | None, threads: ThreadPool) -> None:
        super().__init__(handler, app, scratch)
        self._threads = threads

    async def begin(self) -> None:
        await self._hooks.after_init(self._bound("after_init"), self._app)

    def run(self, conn: Any) -> Awaitable[None]:
        hook = self._handler.client_message
        hooks = self._hooks
        if "scratch" in hooks.parameters["client_message"] and not is_async(hook):
            # Clean-up may block as well, so the scratch begins and ends in the thread.
            hook = partial(_call_with_scratch_here, hook, self._scratch)
            shape = tuple(name for name in hooks.parameters["client_message"] if name != "scratch")
            hooks = hooks._replace(parameters={**hooks.parameters, "client_message": shape})
        bound = self._bound(*_CONTROL_HOOKS.values(), begun=conn.hook_begun)
        bound.client_message = self._threads.bind(hook, conn.hook_begun)
        result: Awaitable[None] = conn.dispatch_all(hooks.dispatch(bound, self._scratch))
        return result

    def _bound(self, *names: str, begun: Callable[[], object] = lambda: None) -> SimpleNamespace:
        """Return an object with some of the handler's hooks, those that there are."""
        hooks = {name: getattr(self._handler, name) for name in names if name in self._hooks.parameters}
        return SimpleNamespace(**{name: self._threads.bind(hook, begun) for name, hook in hooks.items()})

    async def close(self) -> None:
        await self._hooks.close(self._bound("close"))


def _call_with_scratch_here(
    hook: Callable[..., object], buffers: BufferPool | None, *arguments: object
) -> object:
    with Scratch(buffers) as scratch:
        return hook(scratch, *arguments)
    return None  # a context of the scratch has swallowed what the hook raised


_NO_ARGUMENTS: dict[str, object] = {}


class FunctionFactory:
    """Runs connections with one function, which receives and writes as it likes.

    :param function: ``async def handler(conn)``; it may also take ``handshake`` and ``app``
    :raises TypeError: when it takes another parameter, or is no coroutine function
    """

    def __init__(self, function: Callable[..., Awaitable[object]]) -> None:
        if not is_async(function):
            raise TypeError(f"handler: an async function is needed, not {function!r}")
        self._function = function
        self._names = choose_parameters(function, _PARAMETERS)

    async def __call__(self, tools: Tools = NO_TOOLS, /, **arguments: object) -> Session:
        """Bind the function to a connection."""
        return _FunctionSession(self._function, {name: arguments[name] for name in self._names})


class _FunctionSession:
    """A function and the connection that it deals with."""

    manual: frozenset[MessageType] = frozenset()
    hooked = False
    hears_close = False
    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., Awaitable[object]], arguments: dict[str, object]) -> None:
        self._function = function
        self._arguments = arguments

    async def begin(self) -> None:
        """There is nothing to tell: the function begins with the connection."""

    def run(self, conn: Any) -> Awaitable[object]:
        # What this returns is awaited as long as the connection lives, and has the arguments from now on.
        running = self._function(**self._arguments)
        self._arguments = _NO_ARGUMENTS
        return running

    async def close(self) -> None:
        """There is nobody to tell: the function has returned."""


def choose_parameters(function: Callable[..., Any], offered: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of the offered arguments a function takes.

    :raises TypeError: when it demands one that is not offered
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some builtins and extension types do not tell
        return ()
    unknown = [
        p.name
        for p in parameters
        if _is_demanded(p) and (p.name not in offered or p.kind is p.POSITIONAL_ONLY)
    ]
    if unknown:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{name}: unknown parameter {unknown[0]!r}; it may take {', '.join(offered)}, by their names"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return tuple(p.name for p in parameters if p.name in offered and p.kind is not p.POSITIONAL_ONLY)
