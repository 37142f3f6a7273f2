"""The daemon as a process sees it: found, lost and found again.

Owns the process's one link, the attendant thread, and the names of spans. A daemon that is away costs one attempt to
connect a second and no exception. In a forked child everything begins anew: the parent's socket is closed there, and
nothing is written into it.

Invariant: while something is awaited, the attendant lives; it ends by itself a second after the last answer.
"""

from __future__ import annotations

import collections
import concurrent.futures
import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from typing import Any, Callable

from . import wire
from .account import FINAL
from .failure import Refused, Unavailable
from .link import Broken, Heard, Link, Stalled
from .place import places

RETRY_S = 1.0
"""A daemon that was not there is not looked for again before this."""

RECONNECT_S = 0.01
"""A connection that is lost is not made anew more often than this."""

LINGER_S = 1.0
"""How long the attendant stays after the last answer."""

LOOK_S = 0.02
"""How often the attendant looks up while it waits."""

FIRST_LOOK_S, SLOWEST_LOOK_S = 0.012, 0.25
"""When a closed span's account is asked for again: at first after the daemon's horizon, then ever more slowly."""

PATIENCE_S = 300.0
"""An account that does not settle for this long is given as it is."""

_log = logging.getLogger("wattspan")

STRICT_VARIABLE = "WATTSPAN_STRICT"

Answer = dict[str, Any]
_meters: weakref.WeakSet[Meter] = weakref.WeakSet()


class Wait:
    """A span whose final account is awaited."""

    __slots__ = ("closing", "future", "latest", "look_s", "losses", "since", "span")

    def __init__(self, span: str, closing: bool) -> None:
        self.span = span
        self.closing = closing
        self.since = time.monotonic()
        self.look_s = FIRST_LOOK_S
        self.losses = 0
        self.latest: Answer | None = None
        """The account when it was last looked at."""
        self.future: concurrent.futures.Future[Answer] = concurrent.futures.Future()


class Meter:
    """A way to the daemon. Every process has a usual one; make another for another socket."""

    def __init__(self, socket: str | None = None, *, strict: bool | None = None) -> None:
        self.socket = socket
        """The only place to look, if it is named."""
        in_environment = os.environ.get(STRICT_VARIABLE, "") not in ("", "0", "false", "no")
        self.strict = in_environment if strict is None else strict
        """Whether what cannot be measured raises."""
        self._begin()
        _meters.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Re-entrant, because a signal handler or a finaliser may open or close a span in the middle of another's.
        self._lock = threading.RLock()
        self._sending = False
        self._link: Link | None = None
        # Held while there is an attendant.
        self._attending = threading.Lock()
        self._unheard: list[Heard] = []
        # What was to be sent in the middle of sending.
        self._inside: collections.deque[bytes] = collections.deque()
        self._waits: list[tuple[float, int, Wait]] = []
        self._retry_at = 0.0
        self._why = "nothing was sent yet"
        self.generation = 0
        self._names = itertools.count()
        self._prefix = f"py-{self._pid:x}-{os.urandom(6).hex()}-"

    def _own(self) -> None:
        """Begins anew in a forked child."""
        if self._pid != os.getpid():
            link = self._link
            self._begin()
            if link is not None:
                link.close()

    @property
    def why(self) -> str:
        """Why the last message did not go."""
        return self._why

    def new_name(self) -> str:
        """A name for a span that no other has, whatever process it is of."""
        self._own()
        return f"{self._prefix}{next(self._names):x}"

    def tell(self, message: bytes) -> bool:
        """Sends oneway calls. False, with `why`, where there is no daemon. Never waits."""
        self._own()
        return self._send(message, None)

    def ask(self, method: str, parameters: Answer, heard: Heard) -> None:
        """Sends a call; `heard` gets the answer on the attendant's thread. Never waits."""
        self._own()
        self._send(wire.call(method, parameters), heard)

    def call(self, method: str, timeout_s: float = 5.0, **parameters: Any) -> Answer:
        """Asks and waits. Raises `Refused` where the daemon says no, `Unavailable` where it says nothing."""
        future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

        def heard(answer: Answer | None, reason: str) -> None:
            if answer is None:
                future.set_exception(Unavailable(reason))
            elif "error" in answer:
                future.set_exception(Refused(answer["error"], answer.get("parameters") or {}))
            else:
                future.set_result(answer.get("parameters") or {})

        self.ask(method, {key: value for key, value in parameters.items() if value is not None}, heard)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise Unavailable(f"the daemon did not answer within {timeout_s:g} s") from None

    def settle(self, span: str, closing: bool) -> Wait:
        """The final account of a span, as the wire has it. `closing`: it was closed by us, so it must not be open."""
        wait = Wait(span, closing)
        self._look(wait)
        return wait

    def _look(self, wait: Wait) -> None:
        self.ask("GetSpan", {"span": wait.span}, lambda answer, reason: self._saw(wait, answer, reason))

    def _saw(self, wait: Wait, answer: Answer | None, reason: str) -> None:
        late = time.monotonic() - wait.since
        if answer is None:
            # A daemon that was started anew may know the span from its ledger.
            wait.losses += 1
            if wait.losses == 1:
                self._look_again(wait)
            else:
                wait.future.set_exception(Unavailable(reason))
            return
        if "error" in answer:
            wait.future.set_exception(Refused(answer["error"], answer.get("parameters") or {}))
            return
        account = (answer.get("parameters") or {}).get("account")
        if not isinstance(account, dict) or not account.keys() >= {"span", "name", "state"}:
            wait.future.set_exception(Unavailable("the daemon's answer makes no sense"))
        elif account["state"] in FINAL or late > PATIENCE_S:
            wait.future.set_result(account)
        else:
            wait.latest = account
            if account["state"] == "open" and wait.closing and late > RETRY_S:
                # The close was refused (its notes were too many for the user's quota, its time was impossible).
                self.tell(wire.oneway("CloseSpan", {"span": wait.span}))
            self._look_again(wait)

    def _look_again(self, wait: Wait) -> None:
        with self._lock:
            heapq.heappush(self._waits, (time.monotonic() + wait.look_s, next(self._names), wait))
        wait.look_s = min(wait.look_s * 1.5, SLOWEST_LOOK_S)

    def _send(self, message: bytes, heard: Heard | None) -> bool:
        with self._lock:
            if self._sending:
                return self._send_inside(message, heard)
            self._sending, sent = True, False
            try:
                sent = self._transmit(message, heard)
            finally:
                self._sending = False
                if not sent:
                    self._inside.clear()
            if not sent and heard is not None:
                self._unheard.append(heard)
            if self._unheard or (self._link is not None and self._link.busy):
                self._attend()
            return sent

    def _send_inside(self, message: bytes, heard: Heard | None) -> bool:
        # In the middle of another message, of which the link may have sent a part, or that is connecting.
        if heard is not None:
            self._unheard.append(heard)
        else:
            self._inside.append(message)
        return heard is None

    def _transmit(self, message: bytes, heard: Heard | None) -> bool:
        # Twice, because a daemon that was started anew is noticed by sending to the old one.
        for _ in range(2):
            link = self._link or self._connect()
            if link is None:
                return False
            try:
                link.send(message, heard)
                self._send_what_came_inside(link)
                return True
            except Broken as broken:
                unheard = self._give_up(broken)
                if heard in unheard:
                    unheard.remove(heard)
                self._unheard += unheard
        return False

    def _send_what_came_inside(self, link: Link) -> None:
        while self._inside:
            link.send(self._inside.popleft())

    def _connect(self) -> Link | None:
        now = time.monotonic()
        if now < self._retry_at:
            return None
        why = ""
        for path in places(self.socket):
            try:
                self._link = Link(path)
            except (OSError, ValueError, AttributeError) as error:
                # A closed door is told before an absent one, and the first place before the others.
                if not why or isinstance(error, PermissionError):
                    why = _why_not(path, error)
            else:
                self.generation += 1
                # At once where the daemon was started anew, but not for ever where it turns us away.
                self._retry_at = now + RECONNECT_S
                return self._link
        self._retry_at = now + RETRY_S
        self._why = why
        return None

    def _give_up(self, reason: Broken | str) -> list[Heard]:
        link, self._link = self._link, None
        self._why = str(reason)
        if isinstance(reason, Stalled):
            self._retry_at = time.monotonic() + RETRY_S
        return link.close() if link is not None else []

    def _attend(self) -> None:
        # Looked at and taken in one step: a signal handler that runs in between must not start another.
        if self._attending.acquire(False):
            try:
                threading.Thread(target=self._attendant, name="wattspan", daemon=True).start()
            except RuntimeError:
                # The interpreter is on its way out; nobody will wait for an answer.
                self._attending.release()

    def _attendant(self) -> None:
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            with self._lock:
                unheard, self._unheard = self._unheard, []
                due = self._due(now)
                link = self._link
                if unheard or due or self._waits or (link is not None and link.busy):
                    idle_since = now
                elif now - idle_since > LINGER_S:
                    self._attending.release()
                    return
                next_look_s = min(LOOK_S, max(self._waits[0][0] - now, 0.0) if self._waits else LOOK_S)
            for heard in unheard:
                _hear(heard, None, self._why)
            for wait in due:
                self._look(wait)
            if link is None:
                time.sleep(next_look_s)
                continue
            link.wait(next_look_s)
            for heard, answer in self._receive(link):
                _hear(heard, answer, "")

    def _due(self, now: float) -> list[Wait]:
        due = []
        while self._waits and self._waits[0][0] <= now:
            due.append(heapq.heappop(self._waits)[2])
        return due

    def _receive(self, link: Link) -> list[tuple[Heard, Answer]]:
        with self._lock:
            if self._link is not link or self._sending:
                return []
            self._sending = True
            try:
                link.flush()
                self._send_what_came_inside(link)
                return link.receive()
            except Broken as broken:
                self._unheard += self._give_up(broken)
                return []
            finally:
                self._sending = False

    def flush(self, timeout_s: float = 0.2) -> None:
        """Waits until the daemon has taken everything, but not for long."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                link = self._link
                if link is None or not link.busy:
                    return
            time.sleep(0.002)

    def close(self) -> None:
        """Ends the connection. The daemon closes what is open as abandoned; the next span connects again."""
        self._own()
        with self._lock:
            self._unheard += self._give_up("the connection was closed")
            self._retry_at = 0.0


def _hear(heard: Heard, answer: Answer | None, reason: str) -> None:
    try:
        heard(answer, reason)
    except concurrent.futures.InvalidStateError:
        # Whoever waited has gone.
        pass
    except Exception:
        # Words of another shape than the contract's may cost one account, but not the attendant.
        _log.exception("the daemon's answer makes no sense")


def _why_not(path: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"the permissions of {path} keep this user out: have it added to the group wattspan"
    if isinstance(error, BlockingIOError):
        return f"the daemon at {path} accepts nobody now (it is stopped or overloaded)"
    if isinstance(error, FileNotFoundError):
        return f"no daemon at {path}: there is no such socket; start wattspand, or set WATTSPAN_SOCKET"
    if isinstance(error, AttributeError):
        return "this system has no Unix sockets"
    return f"no daemon at {path}: {error}"


def _in_child() -> None:
    for meter in list(_meters):
        meter._own()


def in_child(then: Callable[[], None]) -> None:
    """Has `then` called in every forked child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=then)


in_child(_in_child)
