"""A span: a period of work whose energy is measured.

Holds a span's state in this process: its edges, phases, weight, nested spans and account. Opening, marking and closing
are oneway calls that never block; the account is requested only when the program needs it.

**Nesting.** The daemon splits energy among all open spans. A span and one nested in it are the same work, so while a
nested span is open its parent has weight 0 and receives no energy: the nested span receives it, and the parent's
`energy_j` is the sum of its own share and those of all nested spans. Nesting therefore does not change the shares of
other spans, and all accounts still add up to the measured energy. A span has no parent if the parent is already closed
when it opens, or belongs to another process.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Callable, Union

from . import account, wire
from .account import Account, Nested
from .failure import Refused, Unavailable
from .meter import Meter, Wait, in_child
from .usual import usual

_log = logging.getLogger("wattspan")
_current: contextvars.ContextVar[Span | None] = contextvars.ContextVar("wattspan", default=None)

# Guards the links between parents and nested spans of all meters. Re-entrant, because finalizers close spans.
_family = threading.RLock()

RESULT_TIMEOUT_S = 5.0
"""Maximum time for which `energy_j` waits for the final account, in seconds."""


class Inherit:
    """Marker: the parent is the span that is current when the new one opens."""


INHERIT = Inherit()
Parent = Union["Span", None, Inherit]


def current() -> Span | None:
    """Returns the innermost span that this task or thread entered by `with`."""
    span = _current.get()
    return span if span is not None and span._mine() else None


class Span:
    """Use `wattspan.span(...)` with `with` or `async with`, or `wattspan.begin(...)` and `end()`."""

    def __init__(
        self,
        meter: Meter,
        name: str,
        *,
        attributes: Iterable[tuple[str, object]] = (),
        weight: float = 1.0,
        domains: Iterable[str] | None = None,
        parent: Parent = INHERIT,
    ) -> None:
        self.name = wire.text(name, wire.NAME_BYTES)
        self.id = ""
        """The span's ID in the protocol, once it is open. Another process of this user may `attach` to it."""
        self._meter = meter
        self._notes = wire.notes(attributes)
        self._weight = weight
        self._domains = None if domains is None else list(domains)
        self._wanted_parent = parent
        self._parent: Span | None = None
        self._pid = 0
        self._generation = 0
        self._opened = self._closed = self._attached = False
        self._noted = 0
        self._reason: str | None = None
        self._tokens: list[contextvars.Token[Span | None]] = []
        # Nested spans: number open; number without a final account; sum of those with one.
        self._open_inside = self._awaited_inside = 0
        self._nested = Nested()
        self._asked = False
        self._wait: Wait | None = None
        self._own: Account | None = None
        self._future: concurrent.futures.Future[Account] | None = None

    # ---- opening and closing

    def begin(self, at_ns: int | None = None) -> Span:
        """Opens the span. `at_ns`: when it began, if before now (`time.monotonic_ns()`)."""
        if self._opened:
            raise RuntimeError("this span was opened before; create another one")
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        meter = self._meter
        self.id = meter.new_name()
        self._opened, self._pid = True, os.getpid()
        parameters: dict[str, Any] = {"span": self.id, "name": self.name, "at_ns": at_ns}
        if self._notes:
            parameters["attributes"] = self._notes
            self._noted = len(self._notes)
            self._notes = {}
        if self._weight != 1.0:
            parameters["weight"] = self._weight = self._checked(self._weight, 1.0)
        if self._domains is not None:
            parameters["domains"] = self._domains
        if meter.strict:
            self._begin_strictly(parameters)
        hush = self._join(at_ns)
        message = hush if meter.strict else wire.oneway("OpenSpan", parameters) + hush
        if message and not meter.tell(message):
            self._reason = meter.why
        self._generation = meter.generation
        return self

    def _begin_strictly(self, parameters: dict[str, Any]) -> None:
        try:
            self._meter.call("OpenSpan", **parameters)
        except Unavailable as why:
            self._closed, self._reason = True, str(why)
            raise

    def end(self, at_ns: int | None = None, **attributes: object) -> Span:
        """Closes the span, with further attributes. Does not block; a second call has no effect."""
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        if not self._finish():
            return self
        parameters: dict[str, Any] = {"span": self.id, "at_ns": at_ns}
        if attributes:
            self.note(**attributes)
        if self._notes:
            parameters["attributes"] = wire.notes(self._notes.items(), wire.PAIRS - self._noted)
        # The parent's weight first: late messages have their edges moved, and at every instant one of the two must have
        # weight.
        message = self._leave(at_ns)
        if self._reason is None:
            message += wire.oneway("CloseSpan", parameters)
        if message and not self._meter.tell(message) and self._reason is None:
            self._reason = f"the connection to the daemon was lost while the span was open: {self._meter.why}"
        # The parent's sum needs this account even if the program does not request it.
        if self._parent is not None:
            self._ask()
        return self

    def cancel(self) -> None:
        """Discards the span: its energy counts as unattributed."""
        if not self._finish():
            return
        wake = self._leave(time.monotonic_ns())
        if self._reason is None:
            self._meter.tell(wake + wire.oneway("CancelSpan", {"span": self.id}))
        self._reason = "the span was cancelled"
        with _family:
            parent, self._parent = self._parent, None
            if parent is not None:
                parent._awaited_inside -= 1
        if parent is not None:
            parent._maybe_done()

    def _finish(self) -> bool:
        """Marks the span closed; False if it is closed already, or this process must not close it."""
        with _family:
            if self._closed or not self._opened or self._attached or not self._mine():
                return False
            self._closed = True
            return True

    def __enter__(self) -> Span:
        if not self._opened:
            self.begin()
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.step_out()
        if error is not None:
            self.failed(error)
        self.end()

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def failed(self, error: BaseException) -> None:
        """Records the exception type as attribute `error.type`, as OpenTelemetry does."""
        if not isinstance(error, GeneratorExit) and not self._closed:
            self.note(**{"error.type": type(error).__qualname__})

    def step_out(self) -> None:
        """Restores the span that was current before `with`; this span stays open."""
        if self._tokens:
            try:
                _current.reset(self._tokens.pop())
            except ValueError:
                # Left in another context than it was entered in: an abandoned asynchronous generator.
                pass

    def __del__(self) -> None:
        # The span is unreachable and was not ended.
        if self._opened and not self._closed and not self._attached:
            try:
                self.end()
            except Exception:
                pass

    def __reduce__(self) -> tuple[Callable[[str, str], Span], tuple[str, str]]:
        return (attached, (self.id, self.name))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._opened else "not yet open"
        return f"<wattspan.Span {self.name!r} {self.id or '-'} {state}>"

    # ---- changes while it is open

    def phase(self, name: str, at_ns: int | None = None) -> None:
        """Ends the current phase and begins the next: "prefill", "decode". At most 256 in a span."""
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        phase = wire.text(name, wire.PHASE_BYTES) or "-"
        self._say("MarkPhase", {"span": self.id, "phase": phase, "at_ns": at_ns})

    def weight(self, weight: float, at_ns: int | None = None) -> None:
        """Sets the weight in the split of shared energy among the open spans: 0, or 1/65536 to 1000000."""
        self._weight = self._checked(weight, self._weight)
        if self._open_inside == 0:
            at_ns = time.monotonic_ns() if at_ns is None else at_ns
            self._say("SetWeight", {"span": self.id, "weight": self._weight, "at_ns": at_ns})

    def note(self, **attributes: object) -> None:
        """Adds attributes, which are sent with the opening or the close: texts, at most 64."""
        for key, value in wire.notes(attributes.items()).items():
            if key in self._notes or len(self._notes) + self._noted < wire.PAIRS:
                self._notes[key] = value

    def _say(self, method: str, parameters: Mapping[str, Any]) -> None:
        if self._opened and not self._closed and self._reason is None and self._mine():
            self._meter.tell(wire.oneway(method, parameters))

    def _checked(self, given: float, otherwise: float) -> float:
        weight = wire.weight(given)
        if weight is None:
            if self._meter.strict:
                raise ValueError(f"invalid weight {given}: expected a number from 0 to 1000000")
            _log.warning(
                "span %r: invalid weight %s (expected 0 to 1000000); it stays at %s", self.name, given, otherwise
            )
            return otherwise
        return weight

    def _mine(self) -> bool:
        """Whether this process opened the span, not the process that it was forked from."""
        return self._attached or self._pid == os.getpid()

    # ---- nesting

    def _join(self, at_ns: int) -> bytes:
        """Registers the span with its parent; returns the message that sets the parent's weight to 0."""
        wanted = self._wanted_parent
        parent = current() if isinstance(wanted, Inherit) else wanted
        self._wanted_parent = None
        if parent is None or parent._closed or not parent._opened or parent._attached or not parent._mine():
            return b""
        with _family:
            self._parent = parent
            parent._awaited_inside += 1
            parent._open_inside += 1
            first = parent._open_inside == 1
        return parent._reweigh(0.0, at_ns) if first else b""

    def _leave(self, at_ns: int) -> bytes:
        """Returns the message that restores the parent's weight."""
        parent = self._parent
        if parent is None:
            return b""
        with _family:
            parent._open_inside -= 1
            last = parent._open_inside == 0 and not parent._closed
        return parent._reweigh(parent._weight, at_ns) if last else b""

    def _reweigh(self, weight: float, at_ns: int) -> bytes:
        if self._reason is not None:
            return b""
        return wire.oneway("SetWeight", {"span": self.id, "weight": weight, "at_ns": at_ns})

    # ---- account

    @property
    def available(self) -> bool:
        """Whether a daemon measures the span, as far as is known without a call."""
        return self._opened and self._reason is None

    @property
    def reason(self) -> str | None:
        """Why the span is not measured."""
        return self._reason

    @property
    def energy_j(self) -> float | None:
        """Energy of the span and the spans nested in it. Waits for the final account (at most 5 s); None if unknown.
        While the span is open: the energy so far, if no nested span is open. In asyncio use `settled`."""
        return self.result().energy_j

    def result(self, timeout: float | None = RESULT_TIMEOUT_S) -> Account:
        """Returns the account: after the close the final one, or the latest after `timeout` seconds; before, so far."""
        if not self._closed and not self._attached:
            return self._so_far()
        try:
            found = self._ask().result(timeout)
        except concurrent.futures.TimeoutError:
            found = self._unfinished(timeout)
        return self._judged(found)

    async def settled(self, timeout: float | None = RESULT_TIMEOUT_S) -> Account:
        """Like `result`, for asyncio; does not block the event loop."""
        import asyncio

        future = asyncio.wrap_future(self._ask())
        try:
            found = await asyncio.wait_for(asyncio.shield(future), timeout)
        except asyncio.TimeoutError:
            found = self._unfinished(timeout)
        return self._judged(found)

    def when_settled(self, then: Callable[[Account], object]) -> None:
        """Calls `then` with the final account, on another thread; `then` must not wait for other accounts."""

        def tell(future: concurrent.futures.Future[Account]) -> None:
            try:
                then(future.result())
            except Exception:
                _log.exception("span %r: the callback for its account failed", self.name)

        self._ask().add_done_callback(tell)

    def _judged(self, found: Account) -> Account:
        if self._meter.strict and not found.available:
            raise Unavailable(found.reason)
        return found

    def _so_far(self) -> Account:
        if not self._opened:
            return account.unavailable(self.id, self.name, "the span was not opened")
        if self._reason is not None:
            return self._judged(account.unavailable(self.id, self.name, self._reason))
        try:
            wire_account = self._meter.call("GetSpan", 1.0, span=self.id)["account"]
        except Unavailable as why:
            return self._judged(account.unavailable(self.id, self.name, self._why(why)))
        with _family:
            return account.read(wire_account, self._nested_so_far())

    def _nested_so_far(self) -> Nested:
        left, counted = self._awaited_inside, self._nested
        if left == 0:
            return counted
        reason = f"{left} of the spans nested in it {'has' if left == 1 else 'have'} not settled"
        return Nested(counted.count, None, None, None, counted.grade, reason)

    def _ask(self) -> concurrent.futures.Future[Account]:
        """Returns the future of the final account; requests it at the first call."""
        with _family:
            if self._future is None:
                self._future = concurrent.futures.Future()
            if self._asked:
                return self._future
            self._asked = True
            reason = self._reason
        if reason is not None or not self._opened:
            self._settle(account.unavailable(self.id, self.name, reason or "the span was not opened"))
        else:
            closing = self._closed and not self._attached and self._mine()
            self._wait = self._meter.settle(self.id, closing)
            self._wait.future.add_done_callback(self._heard)
        return self._future

    def _heard(self, future: concurrent.futures.Future[dict[str, Any]]) -> None:
        error = future.exception()
        if error is not None:
            self._settle(account.unavailable(self.id, self.name, self._why(error)))
            return
        try:
            own = account.read(future.result(), Nested())
        except (KeyError, TypeError, AttributeError) as strange:
            own = account.unavailable(
                self.id, self.name, f"the daemon's account lacks a field or has one of another type: {strange!r}"
            )
        self._settle(own)

    def _why(self, error: BaseException) -> str:
        lost = self._meter.generation != self._generation and not self._attached
        if lost and isinstance(error, Refused) and error.error == "NoSuchSpan":
            return "the connection to the daemon was lost while the span was open"
        return str(error)

    def _settle(self, own: Account) -> None:
        with _family:
            self._own = own
        self._maybe_done()

    def _maybe_done(self) -> None:
        with _family:
            if self._own is None or self._awaited_inside > 0:
                return
            whole, self._own = account.with_nested(self._own, self._nested), None
            parent, self._parent = self._parent, None
            if parent is not None:
                parent._nested = parent._nested.plus(whole)
                parent._awaited_inside -= 1
            if self._future is None:
                self._future = concurrent.futures.Future()
        # Outside the lock, because this runs the callbacks of waiting callers.
        self._future.set_result(whole)
        if parent is not None:
            parent._maybe_done()

    def _unfinished(self, timeout: float | None) -> Account:
        with _family:
            own, nested = self._own, self._nested_so_far()
        if own is not None:
            return account.with_nested(own, nested)
        late = f"not settled within {timeout or 0:g} s"
        latest = self._wait.latest if self._wait is not None else None
        if latest is not None:
            return account.read(latest, nested, late)
        return account.unavailable(self.id, self.name, late)


def attached(span: str, name: str = "", meter: Meter | None = None) -> Span:
    """A span that another process of this user opened. Its phases and weight may be set here and its account requested;
    only the process that opened it ends it."""
    found = Span(meter or usual(), name or span)
    found.id = span
    found._opened = found._attached = True
    return found


def _in_child() -> None:
    global _family
    _family = threading.RLock()


in_child(_in_child)
