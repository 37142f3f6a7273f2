"""Energy on OpenTelemetry spans.

An ended span accepts no attributes, and its final energy is known only after the next counter update. This processor
therefore precedes the exporting processor: it holds each ended span until its account has settled, and forwards a copy
with the energy attributes.

    provider.add_span_processor(EnergySpanProcessor(BatchSpanProcessor(OTLPSpanExporter())))

All recorded spans are measured (or those that `only` selects), with their OpenTelemetry parents. If a span's energy is
unknown, `wattspan.energy.reason` says why.
"""

from __future__ import annotations

import collections
import logging
import os
import threading
import time
from typing import Callable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan

from .account import Account
from .meter import Meter
from .span import Span
from .usual import usual

_log = logging.getLogger("wattspan")

MOST_HELD = 4096
"""Maximum number of ended spans that wait for their energy; further spans are forwarded without it."""

ENERGY = "wattspan.energy.joules"
OWN_ENERGY = "wattspan.energy.own_joules"
UNCERTAINTY = "wattspan.energy.uncertainty_joules"
IDLE = "wattspan.energy.idle_joules"
GRADE = "wattspan.energy.grade"
SIMULATED = "wattspan.energy.simulated"
AT_LEAST = "wattspan.energy.at_least"
REASON = "wattspan.energy.reason"
SPAN = "wattspan.span"


class EnergySpanProcessor(SpanProcessor):
    """`then`: the exporting processor. `only`: selects the spans to measure. `timeout`: maximum time for which an ended
    span waits for its account, in seconds."""

    def __init__(
        self,
        then: SpanProcessor,
        *,
        only: Callable[[SdkSpan], bool] | None = None,
        timeout: float = 5.0,
        meter: Meter | None = None,
    ) -> None:
        self._then = then
        self._only = only
        self._timeout = timeout
        self._meter = meter
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._open: dict[int, Span] = {}
        self._ended: collections.deque[tuple[ReadableSpan, Span]] = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._handing_on = False
        self._hurry_at: float | None = None

    def _own(self) -> None:
        """Resets the state in a forked child; spans that were open in the parent belong to the parent."""
        if self._pid != os.getpid():
            self._begin()

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        self._own()
        self._then.on_start(span, parent_context)
        context = span.get_span_context()
        if context is None or (self._only is not None and not self._only(span)):
            return
        above = span.parent
        parent = self._open.get(above.span_id) if above is not None and not above.is_remote else None
        notes = [
            ("trace_id", trace.format_trace_id(context.trace_id)),
            ("span_id", trace.format_span_id(context.span_id)),
        ]
        self._open[context.span_id] = Span(self._meter or usual(), span.name, attributes=notes, parent=parent).begin()

    def _on_ending(self, span: SdkSpan) -> None:
        # Called by newer versions of the SDK; other processors may add attributes in it.
        self._then._on_ending(span)

    def on_end(self, span: ReadableSpan) -> None:
        self._own()
        context = span.get_span_context()
        measured = self._open.pop(context.span_id, None) if context is not None else None
        if measured is None:
            self._then.on_end(span)
            return
        measured.end()
        with self._changed:
            full = len(self._ended) >= MOST_HELD
            if not full:
                self._ended.append((span, measured))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._hand_on, name="wattspan-otel", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        if full:
            self._then.on_end(_with(span, {REASON: f"{MOST_HELD} spans already wait for their energy"}))

    def _hand_on(self) -> None:
        """Forwards ended spans as they settle, in the order of their ends."""
        while True:
            with self._changed:
                self._handing_on = False
                self._changed.notify_all()
                while not self._ended:
                    if not self._changed.wait(1.0) and not self._ended:
                        self._thread = None
                        return
                ended, measured = self._ended.popleft()
                self._handing_on = True
            try:
                account = measured.result(self._patience())
                figures = _figures(account)
            except Exception as error:
                figures = {REASON: str(error)}
            try:
                self._then.on_end(_with(ended, figures))
            except Exception:
                # This span is lost; an exception would end the thread and lose all later spans.
                _log.exception("the span %r was not forwarded: the next processor failed", ended.name)

    def _patience(self) -> float:
        hurry_at = self._hurry_at
        if hurry_at is None:
            return self._timeout
        return max(min(self._timeout, hurry_at - time.monotonic()), 0.0)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Waits for the accounts of all ended spans, then flushes the next processor."""
        self._own()
        end = time.monotonic() + timeout_millis / 1000
        with self._changed:
            while (self._ended or self._handing_on) and self._thread is not None:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return False
        return self._then.force_flush(max(int((end - time.monotonic()) * 1000), 1))

    def shutdown(self) -> None:
        self._own()
        # Spans that have not settled by then are forwarded without energy.
        self._hurry_at = time.monotonic() + self._timeout
        self.force_flush(int(self._timeout * 2000) + 1000)
        self._then.shutdown()


def _figures(account: Account) -> dict[str, str | float | bool]:
    figures = {
        ENERGY: account.energy_j,
        OWN_ENERGY: account.own_energy_j if account.nested.count else None,
        UNCERTAINTY: account.error_j,
        IDLE: account.idle_j,
        GRADE: account.worst_grade if account.energy_j is not None else None,
        SIMULATED: account.simulated or None,
        AT_LEAST: account.at_least or None,
        REASON: (account.reason or account.nested.reason) if account.energy_j is None else None,
        SPAN: account.span or None,
    }
    return {key: value for key, value in figures.items() if value is not None}


def _with(span: ReadableSpan, figures: dict[str, str | float | bool]) -> ReadableSpan:
    """A copy with more attributes."""
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes={**(span.attributes or {}), **figures},
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
