"""A decorator that measures every call of a function as a span.

Supports plain, async, generator and async generator functions. A generator's span is open from the request for the
first item to the end, including the time of its consumer; it is the current span only inside the generator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Generator
from typing import Any, Callable, TypeVar, overload

from .account import Account
from .brief import span
from .span import Span

F = TypeVar("F", bound=Callable[..., Any])


@overload
def measured(name: F) -> F: ...
@overload
def measured(
    name: str | None = None, *, on_account: Callable[[Account], object] | None = None, **options: Any
) -> Callable[[F], F]: ...
def measured(name: Any = None, *, on_account: Callable[[Account], object] | None = None, **options: Any) -> Any:
    """`@measured`, or `@measured("name", model="small", on_account=print)`. The default name is
    that of the function; `options` are those of `wattspan.span`. `on_account` receives each final account, on another
    thread."""
    if callable(name):
        return _wrap(name, None, None, {})
    return lambda function: _wrap(function, name, on_account, options)


def _wrap(
    function: Callable[..., Any],
    name: str | None,
    on_account: Callable[[Account], object] | None,
    options: dict[str, Any],
) -> Callable[..., Any]:
    called = name or getattr(function, "__qualname__", None) or repr(function)

    def opened() -> Span:
        return span(called, **options)

    def closed(done: Span) -> None:
        if on_account is not None:
            done.when_settled(on_account)

    wrapper: Callable[..., Any]
    if inspect.isasyncgenfunction(function):

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return _each_async(function(*args, **kwargs), opened(), closed)

    elif inspect.isgeneratorfunction(function):

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return _each(function(*args, **kwargs), opened(), closed)

    elif inspect.iscoroutinefunction(function):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            here = opened()
            try:
                async with here:
                    return await function(*args, **kwargs)
            finally:
                closed(here)

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            here = opened()
            try:
                with here:
                    return function(*args, **kwargs)
            finally:
                closed(here)

    return functools.wraps(function)(wrapper)


def _each(items: Generator[Any, Any, Any], here: Span, closed: Callable[[Span], None]) -> Generator[Any, Any, Any]:
    """Iterates over `items`; the span is current only inside the generator's code."""
    step, given = items.send, None
    try:
        while True:
            here.__enter__()
            try:
                item = step(given)
            except StopIteration as stop:
                return stop.value
            finally:
                here.step_out()
            try:
                step, given = items.send, (yield item)
            except GeneratorExit:
                items.close()
                raise
            except BaseException as error:
                step, given = items.throw, error
    except GeneratorExit:
        raise
    except BaseException as error:
        here.failed(error)
        raise
    finally:
        here.end()
        closed(here)


async def _each_async(
    items: AsyncGenerator[Any, Any], here: Span, closed: Callable[[Span], None]
) -> AsyncGenerator[Any, Any]:
    step: Callable[[Any], Any] = items.asend
    given: Any = None
    try:
        while True:
            here.__enter__()
            try:
                item = await step(given)
            except StopAsyncIteration:
                return
            finally:
                here.step_out()
            try:
                step, given = items.asend, (yield item)
            except GeneratorExit:
                await items.aclose()
                raise
            except BaseException as error:
                step, given = items.athrow, error
    except GeneratorExit:
        raise
    except BaseException as error:
        here.failed(error)
        raise
    finally:
        here.end()
        closed(here)
