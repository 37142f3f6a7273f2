"""One connection to the daemon, which never keeps its user waiting.

Owns the socket, the bytes that it has not taken yet, and the calls that are not answered yet. Sending never blocks:
what the socket does not take at once is kept, up to a bound, and sent by the attendant, a thread that lives only while
something is awaited. Anything that leaves it unknown which answer comes next ends the link; the meter makes a new one.

Used by the thread that holds the meter's lock, and by nobody else; only `wait` and `close` are called without it.
"""

from __future__ import annotations

import collections
import errno
import json
import select
import socket
import time
from typing import Any, Callable, Optional

LARGEST_BACKLOG = 1 << 20
"""A daemon that leaves more than this unread is stalled."""

LARGEST_MESSAGE = 64 << 20
"""A daemon that sends more than this without an end is not one."""

STALLED_S = 10.0
"""A daemon that takes or answers nothing for this long is stalled."""

_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

# What came: the answer, or why there is none.
Heard = Callable[[Optional[dict[str, Any]], str], None]


class Broken(Exception):
    """The link is of no use any more; the text says why."""


class Stalled(Broken):
    """The daemon is there and does nothing; a new link would fare no better."""


class Link:
    """A connected socket."""

    def __init__(self, path: str) -> None:
        """Connects without waiting. OSError where nobody listens, or the daemon accepts nobody."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self._poll = select.poll()
        self._fd = self._socket.fileno()
        self._backlog = bytearray()
        self._incoming = bytearray()
        self._asked: collections.deque[Heard] = collections.deque()
        self._moved_at = 0.0
        self._wrong = ""

    @property
    def busy(self) -> bool:
        """Whether bytes wait to be sent or calls to be answered."""
        return bool(self._backlog or self._asked)

    def send(self, message: bytes, heard: Heard | None = None) -> None:
        """Sends, or keeps what the socket does not take. `heard` gets the answer; None: a oneway call."""
        if heard is not None:
            if not self.busy:
                self._moved_at = time.monotonic()
            self._asked.append(heard)
        if self._backlog:
            self.keep(message)
            self.flush()
            return
        sent = self._write(message)
        if sent < len(message):
            self._moved_at = time.monotonic()
            # Before whatever a signal handler has kept meanwhile: half a message ends before another begins.
            self._backlog[:0] = message[sent:]

    def keep(self, message: bytes) -> None:
        """Keeps bytes for later."""
        if len(self._backlog) + len(message) > LARGEST_BACKLOG:
            raise Stalled("the daemon does not read what it is sent")
        self._backlog += message

    def flush(self) -> None:
        """Sends what the socket takes now."""
        if self._backlog:
            # A copy: a signal handler that runs inside may add to the backlog.
            sent = self._write(bytes(self._backlog[: 1 << 16]))
            if sent:
                del self._backlog[:sent]
                self._moved_at = time.monotonic()

    def _write(self, data: bytes) -> int:
        try:
            return self._socket.send(data, _FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Broken(_said(error)) from None

    def receive(self) -> list[tuple[Heard, dict[str, Any]]]:
        """The answers that are there. Does not wait."""
        if self._wrong:
            raise Broken(self._wrong)
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return self._still_alive()
        except OSError as error:
            raise Broken(_said(error)) from None
        if not data:
            raise Broken("the daemon closed the connection (it stopped, or turned this client away)")
        self._moved_at = time.monotonic()
        self._incoming += data
        *messages, rest = self._incoming.split(b"\0")
        self._incoming = bytearray(rest)
        if len(rest) > LARGEST_MESSAGE:
            raise Broken(f"the daemon sent a message of more than {LARGEST_MESSAGE} bytes")
        heard = []
        for message in messages:
            answer = _read(message)
            if answer is None or not self._asked:
                # What came before it is still good; the next look ends the link.
                self._wrong = "the daemon's answer makes no sense"
                break
            heard.append((self._asked.popleft(), answer))
        return heard

    def _still_alive(self) -> list[tuple[Heard, dict[str, Any]]]:
        if self.busy and time.monotonic() - self._moved_at > STALLED_S:
            raise Stalled(f"the daemon did not answer for {STALLED_S:.0f} s")
        return []

    def wait(self, timeout_s: float) -> None:
        """Waits until the socket can be read, or written where something is to be sent."""
        events = select.POLLIN | (select.POLLOUT if self._backlog else 0)
        try:
            self._poll.register(self._fd, events)
            ready = self._poll.poll(timeout_s * 1000)
        except (OSError, ValueError):
            ready = [(self._fd, select.POLLNVAL)]
        if ready and ready[0][1] & select.POLLNVAL:
            # Another thread gave the link up meanwhile; its successor is looked at next time.
            time.sleep(0.001)

    def close(self) -> list[Heard]:
        """Ends it; gives those that will hear nothing more."""
        self._socket.close()
        unheard = list(self._asked)
        self._asked.clear()
        self._backlog.clear()
        return unheard


def _read(message: bytes | bytearray) -> dict[str, Any] | None:
    try:
        answer = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _said(error: OSError) -> str:
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        return "the daemon closed the connection (it stopped, or turned this client away)"
    return f"the daemon's socket: {error}"
