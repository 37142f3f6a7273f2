"""ASGI middleware that measures every HTTP request as a span.

A request's span lasts from its arrival to the end of its response: complete, cut short by the client, or an exception.
A streamed response has the phase "decode" from its first part on. Messages are forwarded unchanged and without delay,
unless `annotate` adds the energy to the response. Does not depend on a framework.

    app.add_middleware(EnergyMiddleware)                      # FastAPI, Starlette
    vllm serve MODEL --middleware wattspan.asgi.EnergyMiddleware
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, MutableMapping
from typing import Any, Callable

from .account import Account
from .meter import Meter
from .span import Span
from .usual import usual

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

INFERENCE_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/completion",
)
"""Inference endpoints of the OpenAI, Ollama and llama.cpp interfaces."""

ANNOTATE_TIMEOUT_S = 0.5
"""Maximum time for which the end of a response waits for its energy, in seconds."""


class EnergyMiddleware:
    """`paths`: None for all, a collection of paths, or a function of the path. `annotate`: adds the energy to the
    response, as headers of a response in one part, as a final comment in an event stream; the end of the response then
    waits for a counter update (some 15 to 120 ms). `on_account` receives each request's scope and final account, on
    another thread. Inside the application the span is `wattspan.current()` and `scope["wattspan"]`."""

    def __init__(
        self,
        app: App,
        *,
        paths: Any = None,
        annotate: bool = False,
        on_account: Callable[[Scope, Account], object] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._app = app
        self._wanted: Callable[[str], bool] = paths if callable(paths) else lambda path: paths is None or path in paths
        self._annotate = annotate
        self._on_account = on_account
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._wanted(scope["path"]):
            await self._app(scope, receive, send)
            return
        method, path = scope.get("method", "?"), scope["path"]
        notes = [("http.request.method", method), ("url.path", path), ("traceparent", _header(scope, b"traceparent"))]
        # No parent: a span that was open when the server started must not adopt the requests.
        span = Span(self._meter or usual(), f"{method} {path}", attributes=notes, parent=None)
        answer = _Answer(span, send, self._annotate)
        scope["wattspan"] = span
        try:
            with span:
                await self._app(scope, receive, answer.send)
        finally:
            if self._on_account is not None:
                then = self._on_account
                span.when_settled(lambda account: then(scope, account))


class _Answer:
    """The response to one request."""

    def __init__(self, span: Span, send: Send, annotate: bool) -> None:
        self._span = span
        self._send = send
        self._annotate = annotate
        self._start: Message | None = None
        self._events = self._open_end = False
        self._decoding = False
        self._last = b""

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            await self._begin(message)
        elif kind == "http.response.body":
            await self._part(message)
        else:
            await self._release()
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        self._span.note(**{"http.response.status_code": message["status"]})
        headers = {key.lower(): value for key, value in message.get("headers", ())}
        self._events = headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        # A comment would corrupt a body that has a declared length or is compressed.
        self._open_end = self._events and not headers.keys() & {b"content-length", b"content-encoding"}
        if self._annotate and not self._events:
            # Held back until it is known whether the response has one part.
            self._start = message
        else:
            await self._send(message)

    async def _part(self, message: Message) -> None:
        more = message.get("more_body", False)
        self._last = (self._last + bytes(message.get("body", b"")[-4:]))[-4:]
        if more:
            if message.get("body") and not self._decoding:
                self._decoding = True
                self._span.phase("decode")
            await self._release()
            await self._send(message)
            return
        self._span.end()
        if self._annotate:
            message = await self._annotated(message)
        await self._release()
        await self._send(message)

    async def _annotated(self, message: Message) -> Message:
        """Adds the energy to the headers or as a final comment, if possible; returns the last message."""
        # Inside an event a comment would complete the event; receivers discard an incomplete event.
        between_events = not self._last or self._last.endswith((b"\n\n", b"\r\n\r\n"))
        if self._start is None and not (self._open_end and between_events):
            return message
        account = await self._span.settled(ANNOTATE_TIMEOUT_S)
        figures = _figures(account)
        if self._start is not None:
            annotations = [(b"wattspan-span", account.span.encode()), (b"wattspan-energy", _dictionary(figures))]
            self._start = {**self._start, "headers": [*self._start.get("headers", ()), *annotations]}
            return message
        comment = f": wattspan {json.dumps(figures, ensure_ascii=True)}\n\n".encode()
        return {**message, "body": bytes(message.get("body", b"")) + comment}

    async def _release(self) -> None:
        start, self._start = self._start, None
        if start is not None:
            await self._send(start)


def _figures(account: Account) -> dict[str, object]:
    """The figures in a response, with the field names of `wattspan proxy`; unknown values are omitted."""
    figures = {
        "state": account.state,
        "span": account.span,
        "share_uj": _whole(account.energy_j),
        "error_uj": _whole(account.error_j),
        "grade": account.worst_grade,
        "simulated": account.simulated or None,
        "at_least": account.at_least or None,
    }
    return {key: value for key, value in figures.items() if value not in (None, "")}


def _whole(joules: float | None) -> int | None:
    return None if joules is None else round(joules * 1e6)


def _dictionary(figures: dict[str, object]) -> bytes:
    """A structured header (RFC 8941, where true is "?1"); the span ID has its own header."""
    members = ((key, "?1" if value is True else value) for key, value in figures.items() if key != "span")
    return ", ".join(f"{key}={value}" for key, value in members).encode()


def _header(scope: Scope, name: bytes) -> str | None:
    found = next((value for key, value in scope.get("headers", ()) if key.lower() == name), None)
    return None if found is None else bytes(found).decode("latin-1")
