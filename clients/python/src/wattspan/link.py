"""One non-blocking connection to the daemon.

Owns the socket, the send buffer and the queue of pending calls. Sending never blocks: bytes that the socket does not
accept are buffered, up to a limit, and sent by the attendant thread, which runs only while calls or bytes are pending.
An error after which replies cannot be matched to calls ends the link, and the meter connects again.

The caller must hold the meter's lock, except for `wait` and `close`.
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
"""Limit of the send buffer, in bytes; above it the daemon is regarded as stalled."""

LARGEST_MESSAGE = 64 << 20
"""Limit of one received message, in bytes."""

STALLED_S = 10.0
"""Time without progress after which the daemon is regarded as stalled, in seconds."""

_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

# The callback of a call: the reply, or None and the reason.
Heard = Callable[[Optional[dict[str, Any]], str], None]


class LinkError(Exception):
    """The link has failed; the message has the reason."""


class StalledError(LinkError):
    """The daemon does not respond; a new link would not either."""


class Link:
    """A connected socket."""

    def __init__(self, path: str) -> None:
        """Connects without blocking. Raises OSError if no process listens, or the accept queue is full."""
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
        """Whether bytes are buffered or calls are pending."""
        return bool(self._backlog or self._asked)

    def send(self, message: bytes, heard: Heard | None = None) -> None:
        """Sends, and buffers what the socket does not accept. `heard` receives the reply; None: a oneway call."""
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
            # Ahead of messages that a signal handler buffered meanwhile, so that this message is completed first.
            self._backlog[:0] = message[sent:]

    def keep(self, message: bytes) -> None:
        """Buffers bytes."""
        if len(self._backlog) + len(message) > LARGEST_BACKLOG:
            raise StalledError(f"the daemon does not read: more than {LARGEST_BACKLOG} bytes wait to be sent")
        self._backlog += message

    def flush(self) -> None:
        """Sends as many buffered bytes as the socket accepts now."""
        if self._backlog:
            # A copy, because a signal handler may append to the buffer during the call.
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
            raise LinkError(_reason(error)) from None

    def receive(self) -> list[tuple[Heard, dict[str, Any]]]:
        """Returns the replies that have arrived. Does not block."""
        if self._wrong:
            raise LinkError(self._wrong)
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return self._still_alive()
        except OSError as error:
            raise LinkError(_reason(error)) from None
        if not data:
            raise LinkError("the daemon closed the connection (it stopped, or rejected this client)")
        self._moved_at = time.monotonic()
        self._incoming += data
        *messages, rest = self._incoming.split(b"\0")
        self._incoming = bytearray(rest)
        if len(rest) > LARGEST_MESSAGE:
            raise LinkError(f"the daemon sent a message of more than {LARGEST_MESSAGE} bytes")
        heard = []
        for message in messages:
            answer = _read(message)
            if answer is None or not self._asked:
                # Earlier replies are valid; the next call ends the link.
                self._wrong = "the daemon's reply is invalid: expected one JSON object for each call"
                break
            heard.append((self._asked.popleft(), answer))
        return heard

    def _still_alive(self) -> list[tuple[Heard, dict[str, Any]]]:
        if self.busy and time.monotonic() - self._moved_at > STALLED_S:
            raise StalledError(f"the daemon did not answer for {STALLED_S:.0f} s")
        return []

    def wait(self, timeout_s: float) -> None:
        """Waits until the socket is readable, or writable if bytes are buffered."""
        events = select.POLLIN | (select.POLLOUT if self._backlog else 0)
        try:
            self._poll.register(self._fd, events)
            ready = self._poll.poll(timeout_s * 1000)
        except (OSError, ValueError):
            ready = [(self._fd, select.POLLNVAL)]
        if ready and ready[0][1] & select.POLLNVAL:
            # Another thread closed the link meanwhile; the next call uses its successor.
            time.sleep(0.001)

    def close(self) -> list[Heard]:
        """Closes the link; returns the callbacks of the pending calls."""
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


def _reason(error: OSError) -> str:
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        return "the daemon closed the connection (it stopped, or rejected this client)"
    return f"the daemon's socket: {error}"
