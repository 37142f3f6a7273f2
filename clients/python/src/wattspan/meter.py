"""The client of the daemon: connection, reconnection and pending calls.

Owns the process's link, the attendant thread, and the generator of span IDs. While the daemon is unreachable, the meter
tries to connect once a second and raises no exception. A forked child starts with new state: it closes the parent's
socket without writing to it.

Invariant: the attendant thread runs while calls or bytes are pending; it ends a second after the last reply.
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
from .link import Heard, Link, LinkError, StalledError
from .place import places

RETRY_S = 1.0
"""Delay before the next attempt after a failed connection, in seconds."""

RECONNECT_S = 0.01
"""Minimum interval between connections, in seconds."""

LINGER_S = 1.0
"""Idle time after which the attendant thread ends, in seconds."""

LOOK_S = 0.02
"""Poll interval of the attendant thread, in seconds."""

FIRST_LOOK_S, SLOWEST_LOOK_S = 0.012, 0.25
"""First and longest interval between requests for an account, in seconds; the first exceeds the daemon's horizon."""

PATIENCE_S = 300.0
"""Time after which an account is returned without being settled, in seconds."""

_log = logging.getLogger("wattspan")

STRICT_VARIABLE = "WATTSPAN_STRICT"

Answer = dict[str, Any]
_meters: weakref.WeakSet[Meter] = weakref.WeakSet()


class Wait:
    """A pending request for the final account of a span."""

    __slots__ = ("closing", "future", "latest", "look_s", "losses", "since", "span")

    def __init__(self, span: str, closing: bool) -> None:
        self.span = span
        self.closing = closing
        self.since = time.monotonic()
        self.look_s = FIRST_LOOK_S
        self.losses = 0
        self.latest: Answer | None = None
        """The latest account that was received."""
        self.future: concurrent.futures.Future[Answer] = concurrent.futures.Future()


class Meter:
    """A client of one daemon. Every process has a default one; create another for another socket."""

    def __init__(self, socket: str | None = None, *, strict: bool | None = None) -> None:
        self.socket = socket
        """The path of the socket; None: the default search."""
        in_environment = os.environ.get(STRICT_VARIABLE, "") not in ("", "0", "false", "no")
        self.strict = in_environment if strict is None else strict
        """Whether a failed measurement raises an exception."""
        self._begin()
        _meters.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Re-entrant, because a signal handler or a finalizer may open or close a span while another is being processed.
        self._lock = threading.RLock()
        self._sending = False
        self._link: Link | None = None
        # Held while the attendant thread runs.
        self._attending = threading.Lock()
        self._unheard: list[Heard] = []
        # Messages that were submitted while another was being sent.
        self._inside: collections.deque[bytes] = collections.deque()
        self._waits: list[tuple[float, int, Wait]] = []
        self._retry_at = 0.0
        self._why = "no message was sent yet"
        self.generation = 0
        self._names = itertools.count()
        self._prefix = f"py-{self._pid:x}-{os.urandom(6).hex()}-"

    def _own(self) -> None:
        """Resets the state in a forked child."""
        if self._pid != os.getpid():
            link = self._link
            self._begin()
            if link is not None:
                link.close()

    @property
    def why(self) -> str:
        """Why the last message was not sent."""
        return self._why

    def new_name(self) -> str:
        """Returns a span ID that is unique across processes."""
        self._own()
        return f"{self._prefix}{next(self._names):x}"

    def tell(self, message: bytes) -> bool:
        """Sends oneway calls. Returns False, and sets `why`, without a daemon. Never blocks."""
        self._own()
        return self._send(message, None)

    def ask(self, method: str, parameters: Answer, heard: Heard) -> None:
        """Sends a call; `heard` receives the reply on the attendant thread. Never blocks."""
        self._own()
        self._send(wire.call(method, parameters), heard)

    def call(self, method: str, timeout_s: float = 5.0, **parameters: Any) -> Answer:
        """Sends a call and waits for the reply. Raises `Refused` on an error reply, `Unavailable` without a reply."""
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
            raise Unavailable(f"the daemon did not reply within {timeout_s:g} s") from None

    def settle(self, span: str, closing: bool) -> Wait:
        """Requests the final account of a span. `closing`: this process closed the span, so it must not be open."""
        wait = Wait(span, closing)
        self._look(wait)
        return wait

    def _look(self, wait: Wait) -> None:
        self.ask("GetSpan", {"span": wait.span}, lambda answer, reason: self._saw(wait, answer, reason))

    def _saw(self, wait: Wait, answer: Answer | None, reason: str) -> None:
        late = time.monotonic() - wait.since
        if answer is None:
            # A restarted daemon may have the span in its store.
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
            wait.future.set_exception(
                Unavailable("the daemon's reply to GetSpan is invalid: expected an account with span, name and state")
            )
        elif account["state"] in FINAL or late > PATIENCE_S:
            wait.future.set_result(account)
        else:
            wait.latest = account
            if account["state"] == "open" and wait.closing and late > RETRY_S:
                # The daemon refused the close: its attributes exceeded the user's quota, or its time was invalid.
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
        # Another message is being sent or is connecting; the link may have sent a part of it.
        if heard is not None:
            self._unheard.append(heard)
        else:
            self._inside.append(message)
        return heard is None

    def _transmit(self, message: bytes, heard: Heard | None) -> bool:
        # Twice, because a restart of the daemon is detected only by sending on the old connection.
        for _ in range(2):
            link = self._link or self._connect()
            if link is None:
                return False
            try:
                link.send(message, heard)
                self._send_what_came_inside(link)
                return True
            except LinkError as error:
                unheard = self._give_up(error)
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
                # Reports a permission error rather than a missing socket, otherwise the error of the first path.
                if not why or isinstance(error, PermissionError):
                    why = _why_not(path, error)
            else:
                self.generation += 1
                # Reconnects without delay after a restart, but limits the rate if the daemon closes every connection.
                self._retry_at = now + RECONNECT_S
                return self._link
        self._retry_at = now + RETRY_S
        self._why = why
        return None

    def _give_up(self, reason: LinkError | str) -> list[Heard]:
        link, self._link = self._link, None
        self._why = str(reason)
        if isinstance(reason, StalledError):
            self._retry_at = time.monotonic() + RETRY_S
        return link.close() if link is not None else []

    def _attend(self) -> None:
        # Atomic test and set: a signal handler that runs in between must not start a second thread.
        if self._attending.acquire(False):
            try:
                threading.Thread(target=self._attendant, name="wattspan", daemon=True).start()
            except RuntimeError:
                # The interpreter is shutting down; no thread will wait for a reply.
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
            except LinkError as error:
                self._unheard += self._give_up(error)
                return []
            finally:
                self._sending = False

    def flush(self, timeout_s: float = 0.2) -> None:
        """Waits until the daemon has received all messages, for at most `timeout_s`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                link = self._link
                if link is None or not link.busy:
                    return
            time.sleep(0.002)

    def close(self) -> None:
        """Closes the connection. The daemon closes open spans as abandoned; the next span connects again."""
        self._own()
        with self._lock:
            self._unheard += self._give_up("the connection was closed")
            self._retry_at = 0.0


def _hear(heard: Heard, answer: Answer | None, reason: str) -> None:
    try:
        heard(answer, reason)
    except concurrent.futures.InvalidStateError:
        # The waiting caller has cancelled the future.
        pass
    except Exception:
        # A malformed reply may lose one account, but must not end the attendant thread.
        _log.exception("a reply of the daemon cannot be processed")


def _why_not(path: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"permission denied for {path}: add this user to the group wattspan"
    if isinstance(error, BlockingIOError):
        return f"the daemon at {path} accepts no connections now (it is stopped or overloaded)"
    if isinstance(error, FileNotFoundError):
        return f"no daemon at {path}: there is no such socket; start wattspand, or set WATTSPAN_SOCKET"
    if isinstance(error, AttributeError):
        return "this system has no Unix sockets"
    return f"no daemon at {path}: {error}"


def _in_child() -> None:
    for meter in list(_meters):
        meter._own()


def in_child(then: Callable[[], None]) -> None:
    """Registers `then` to be called in every forked child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=then)


in_child(_in_child)
