"""Energy for inspect-ai evaluations.

Two lines in the file of a task measure it:

    import wattspan.inspect_ai
    wattspan.inspect_ai.measure()

Each model call is a span of weight 1, and each sample a span of weight 0 around its calls. A span of weight 0 has no
share, so the energy of a sample is the sum of its calls, and every joule is counted once: the accounts of all spans
still add up to the measured energy. The figures go to the sample's metadata under `wattspan`, hence into the log, which
`wattspan ipw import --inspect LOG` reads. Calls of scorers (a judge) are measured too and are summed up apart, because
they are not the energy of the answer.

Invariant: no hook raises an exception or waits for the daemon for more than `ACCOUNT_WAIT_S`; without a daemon no hook
waits at all.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Iterable
from typing import Any, Callable, ClassVar, TypeVar

import anyio
from inspect_ai.hooks import (
    BeforeModelGenerate,
    Hooks,
    ModelCacheUsageData,
    ModelRetry,
    ModelUsageData,
    RunEnd,
    RunStart,
    SampleAttemptStart,
    SampleEnd,
    SampleEvent,
    SampleScoring,
    SampleStart,
    TaskStart,
    hooks,
)
from inspect_ai.scorer import value_to_float
from inspect_ai.solver._task_state import sample_state

from .account import Account, worst
from .meter import Meter
from .span import Span
from .usual import usual

_log = logging.getLogger("wattspan")

METADATA_KEY = "wattspan"
"""The key of the figures in a sample's metadata."""

FORMAT = 1
"""The version of the figures in the metadata."""

ACCOUNT_WAIT_S = 1.0
"""Maximum time for which a sample waits for its accounts, in seconds. They settle 15 to 120 ms after the last call."""

MOST_LATE = 3
"""After so many samples in a row whose accounts were late, none waits until an account is in time again."""

POLL_S = 0.005
"""Poll interval of the wait, in seconds."""

MIN_COVERAGE = 0.95
"""Below this part of samples with a score and an energy no intelligence per watt is printed."""

Hook = TypeVar("Hook", bound=Callable[..., Awaitable[None]])


class _Call:
    """One model call. Runs from the request to the end of the reply."""

    def __init__(self, span: Span, model: str, scoring: bool, inputs: tuple[str, ...], idle_spans: int) -> None:
        self.span = span
        self.model = model
        self.scoring = scoring
        self.inputs = inputs
        self.began_unix_s = time.time()
        self.idle_spans = idle_spans
        """Least number of sample spans, which have no weight, that were open at once during the call."""
        self.concurrency = 1
        """Most model calls of this process that were open at once during the call."""
        self.ended = False
        self.failed = False
        self.has_event = False
        """Whether inspect-ai's event of this call has come. Each call has one, before or after it ended."""
        self.tokens: tuple[int | None, int | None] = (None, None)
        self.account: Account | None = None

    def settled(self, account: Account) -> None:
        self.account = account

    def may_have(self, event: Any) -> bool:
        """Whether the event may be of this call; that of an earlier try completed before this call."""
        completed = event.completed.timestamp() if event.completed is not None else time.time()
        same = self.inputs == _ids(event.input) and self.model == event.model
        return same and not self.has_event and completed >= self.began_unix_s

    @property
    def at_once(self) -> int | None:
        """Upper bound of the spans with a weight, of all clients, that were open at once during the call."""
        account = self.account
        if account is None or account.peak_concurrency is None:
            return None
        return max(account.peak_concurrency - self.idle_spans, 1)


def _ids(messages: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(message.id) for message in messages)


class _Sample:
    def __init__(self, span: Span, name: str, eval_id: str) -> None:
        self.span = span
        self.name = name
        self.eval_id = eval_id
        self.scoring = False
        self.calls: list[_Call] = []
        self.cached: list[_Call] = []
        """Replies from inspect's cache: no calls, but each has an event."""
        self.event_ids: set[str] = set()
        """The model events that came; inspect-ai sends each again when it has its times."""
        self.figures: dict[str, Any] = {}
        self.state: Any = None
        """inspect-ai's state of the sample while it is scored, whose metadata are logged."""


_current_sample: contextvars.ContextVar[_Sample | None] = contextvars.ContextVar("wattspan_sample", default=None)
_current_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("wattspan_call", default=None)


def _never_raises(hook: Hook) -> Hook:
    """An error here loses a figure, never a sample."""

    @functools.wraps(hook)
    async def guarded(self: EnergyHooks, data: Any) -> None:
        try:
            await hook(self, data)
        except Exception as error:
            self.complain_once(f"measuring failed in {hook.__name__}; the evaluation continues: {error!r}")

    return guarded  # type: ignore[return-value]


class EnergyHooks(Hooks):
    """The hooks. There is one instance in a process, which all samples share."""

    installed: ClassVar[EnergyHooks | None] = None

    def __init__(self) -> None:
        EnergyHooks.installed = self
        self._meter: Meter | None = None
        self._domains: dict[str, dict[str, Any]] = {}
        self._daemon_version: str | None = None
        self._samples: dict[str, _Sample] = {}
        self._open: set[_Call] = set()
        self._tasks: dict[str, str] = {}
        self._late = 0
        self._sample_refused = False
        self._complaints: set[str] = set()
        self._totals: dict[str, _Totals] = {}

    def complain_once(self, text: str) -> None:
        if text not in self._complaints:
            self._complaints.add(text)
            _log.warning("wattspan: %s", text)

    def use(self, socket: str) -> None:
        """Measures with the daemon at this socket from now on."""
        self._meter = Meter(socket, strict=False)

    @property
    def meter(self) -> Meter:
        # Never strict: a strict meter waits for replies and raises.
        if self._meter is None:
            self._meter = Meter(usual().socket, strict=False)
        return self._meter

    @_never_raises
    async def on_run_start(self, data: RunStart) -> None:
        self._late = 0
        self._complaints.clear()
        self._totals.clear()
        reason = await self._read_domains()
        if reason is not None:
            self.complain_once(f"no energy is measured: {reason}")

    async def _read_domains(self) -> str | None:
        """Asks the daemon for its domains; returns why it gave none."""
        done = threading.Event()
        found: dict[str, Any] = {}

        def heard(answer: dict[str, Any] | None, reason: str) -> None:
            parameters = (answer or {}).get("parameters")
            found.update(parameters if isinstance(parameters, dict) else {})
            found.setdefault("reason", reason or str((answer or {}).get("error", "the daemon's reply is invalid")))
            done.set()

        meter = self.meter
        if not meter.tell(b""):
            return meter.why
        meter.ask("GetInfo", {}, heard)
        await _wait(done.is_set, ACCOUNT_WAIT_S)
        if "domains" not in found:
            return str(found.get("reason", f"the daemon did not reply within {ACCOUNT_WAIT_S:g} s"))
        self._daemon_version = found.get("version")
        keys = ("kind", "source", "device", "parent", "counted", "update_interval_ns")
        self._domains = {
            domain["name"]: {key: domain[key] for key in keys if domain.get(key) is not None}
            for domain in found["domains"]
        }
        return None

    @_never_raises
    async def on_task_start(self, data: TaskStart) -> None:
        self._tasks[data.eval_id] = data.spec.task
        self._totals[data.eval_id] = _Totals(data.spec.task)

    @_never_raises
    async def on_sample_start(self, data: SampleStart) -> None:
        task, summary = self._tasks.get(data.eval_id, "inspect"), data.summary
        name = f"{task} {summary.id} {summary.epoch}"
        notes = {
            "inspect.task": task,
            "inspect.sample": str(summary.id),
            "inspect.epoch": str(summary.epoch),
            "inspect.uuid": data.sample_id,
        }
        span = Span(self.meter, name, attributes=notes.items(), weight=0.0, parent=None).begin()
        self._samples[data.sample_id] = _Sample(span, name, data.eval_id)

    @_never_raises
    async def on_sample_attempt_start(self, data: SampleAttemptStart) -> None:
        sample = self._samples.get(data.sample_id)
        _current_sample.set(sample)
        _current_call.set(None)
        if sample is not None:
            sample.scoring = False

    @_never_raises
    async def on_before_model_generate(self, data: BeforeModelGenerate) -> None:
        sample = _current_sample.get()
        if sample is None:
            return
        # An earlier call of this task of the event loop that ended without a hook.
        self._end(_current_call.get(), failed=True)
        notes = {
            "gen_ai.request.model": data.model_name,
            "inspect.span": sample.span.id,
            "inspect.step": "score" if sample.scoring else "solve",
        }
        span = Span(self.meter, sample.name, attributes=notes.items(), parent=None).begin()
        call = _Call(span, data.model_name, sample.scoring, _ids(data.input), self._idle_spans())
        sample.calls.append(call)
        self._open.add(call)
        for each in self._open:
            each.concurrency = max(each.concurrency, len(self._open))
        _current_call.set(call)

    @_never_raises
    async def on_model_usage(self, data: ModelUsageData) -> None:
        sample, call = _current_sample.get(), _current_call.get()
        if sample is None or call is None:
            return
        call.tokens = (data.usage.input_tokens, data.usage.output_tokens)
        self._end(call)

    @_never_raises
    async def on_model_retry(self, data: ModelRetry) -> None:
        self._end(_current_call.get(), failed=True)

    @_never_raises
    async def on_model_cache_usage(self, data: ModelCacheUsageData) -> None:
        self._forget(_current_sample.get(), _current_call.get())

    @_never_raises
    async def on_sample_event(self, data: SampleEvent) -> None:
        event = data.event
        sample = self._samples.get(data.sample_id)
        if sample is None:
            return
        if event.event in ("score", "error") and sample.scoring:
            # A scorer ended. Its calls settle here, where nothing but the end of the sample waits: a judge's next call
            # is not delayed by the account of the one before.
            await self._settle(sample)
        if event.event != "model" or event.uuid in sample.event_ids:
            return
        if event.uuid is not None:
            sample.event_ids.add(event.uuid)
        # Several calls of the same messages may be open at once. One that has ended already explains the event: it ends
        # an open one, whose reply had no usage or that failed, only if there is none.
        cached = event.cache == "read"
        over = sample.cached if cached else [call for call in sample.calls if call.ended]
        ended = next((call for call in over if call.may_have(event)), None)
        if ended is not None:
            ended.has_event = True
            return
        still_open = [call for call in sample.calls if not call.ended and call.may_have(event)]
        if not still_open:
            return
        # A reply from the cache comes at once, so that it is of the call that began last.
        call = still_open[-1 if cached else 0]
        call.has_event = True
        if cached:
            self._forget(sample, call)
        else:
            self._end(call, failed=event.error is not None)

    def _end(self, call: _Call | None, failed: bool = False) -> None:
        if call is None or call.ended:
            return
        call.ended, call.failed = True, failed
        self._open.discard(call)
        if call.tokens[1] is not None:
            tokens = {"gen_ai.usage.input_tokens": call.tokens[0], "gen_ai.usage.output_tokens": call.tokens[1]}
            call.span.note(**tokens)
        if failed:
            call.span.note(**{"error.type": "the call failed"})
        call.span.end()
        call.span.when_settled(call.settled)

    def _forget(self, sample: _Sample | None, call: _Call | None) -> None:
        """A reply from inspect's cache: there was no call."""
        if sample is None or call is None or call.ended:
            return
        call.ended = True
        self._open.discard(call)
        call.span.cancel()
        sample.calls.remove(call)
        sample.cached.append(call)

    @_never_raises
    async def on_sample_scoring(self, data: SampleScoring) -> None:
        sample = self._samples.get(data.sample_id)
        if sample is None:
            return
        for call in sample.calls:
            self._end(call)
        sample.state = sample_state()
        await self._settle(sample)
        sample.scoring = True

    async def _settle(self, sample: _Sample) -> None:
        """Waits for the accounts of the sample's calls, and puts its figures into the metadata."""
        ended = [call for call in sample.calls if call.ended]

        def in_time() -> bool:
            return all(call.account is not None for call in ended)

        if not in_time():
            await _wait(in_time, ACCOUNT_WAIT_S if self._late < MOST_LATE else 0.0)
        self._late = 0 if in_time() else self._late + 1
        if self._late:
            self.complain_once(f"an account did not settle within {ACCOUNT_WAIT_S:g} s; the sample has no energy")
        lost = [call.account for call in ended if call.account is not None and not call.account.available]
        if lost and not self._complaints:
            self.complain_once(f"samples have no energy: {lost[0].reason}")
        if not self._domains and any(call.account is not None and call.account.available for call in ended):
            # The daemon was started after the evaluation.
            await self._read_domains()
        sample.figures = self._figures(sample, ended)
        if sample.state is None:
            self.complain_once("inspect-ai has no current sample while it scores; the figures are not in the log")
        else:
            sample.state.metadata[METADATA_KEY] = sample.figures

    def _figures(self, sample: _Sample, ended: list[_Call]) -> dict[str, Any]:
        solving = [call for call in ended if not call.scoring]
        scoring = [call for call in ended if call.scoring]
        figures = {"format": FORMAT, "meter": self._daemon_version, "span": sample.span.id, **_sum(solving)}
        figures["domains"] = self._sum_domains(solving)
        figures["calls"] = [_call_figures(call) for call in solving]
        if scoring:
            figures["scoring"] = {**_sum(scoring), "calls": [_call_figures(call) for call in scoring]}
        return {key: value for key, value in figures.items() if value not in (None, [])}

    def _sum_domains(self, calls: list[_Call]) -> list[dict[str, Any]]:
        accounts = [call.account for call in calls if call.account is not None and call.account.available]
        names = list(dict.fromkeys(share.domain for account in accounts for share in account.domains))
        found = []
        for name in names:
            shares = [account.domain(name) for account in accounts]
            known = [share for share in shares if share is not None and share.unknown_ns == 0]
            whole = len(known) == len(shares)
            domain: dict[str, Any] = {"name": name, **self._domains.get(name, {})}
            domain["grade"] = worst(share.grade for share in shares if share is not None)
            for key in ("share_uj", "error_uj", "idle_uj", "window_uj"):
                domain[key] = _total([getattr(share, key) for share in known]) if whole else None
            found.append({key: value for key, value in domain.items() if value is not None})
        return found

    @_never_raises
    async def on_sample_end(self, data: SampleEnd) -> None:
        sample = self._samples.pop(data.sample_id, None)
        if sample is None:
            return
        for call in sample.calls:
            self._end(call)
        for call in self._open:
            call.idle_spans = min(call.idle_spans, self._idle_spans())
        sample.span.end()
        sample.span.when_settled(self._sample_settled)
        totals = self._totals.get(sample.eval_id)
        if totals is not None:
            totals.add(data.sample, sample.figures)

    def _sample_settled(self, account: Account) -> None:
        self._sample_refused = self._sample_refused or not account.available

    def _idle_spans(self) -> int:
        # A span that the daemon refused is not among those that it counts.
        return 0 if self._sample_refused else len(self._samples)

    @_never_raises
    async def on_run_end(self, data: RunEnd) -> None:
        for sample in self._samples.values():
            for call in sample.calls:
                self._end(call)
            sample.span.end()
        self._samples.clear()
        locations = {log.eval.eval_id: log.location for log in data.logs}
        for eval_id, totals in self._totals.items():
            for line in totals.lines(locations.get(eval_id) or "LOG"):
                print(line, file=sys.stderr)
        self._totals.clear()


class _Totals:
    """The figures of a task over its samples, as docs/ipw.md defines them."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._samples = 0
        self._covered: list[tuple[float, float, float]] = []
        """Score, watts and joules of each sample that has all three."""
        self._grades: set[str] = set()
        self._concurrency = 0

    def add(self, sample: Any, figures: dict[str, Any]) -> None:
        self._samples += 1
        score = next(iter((sample.scores or {}).values()), None)
        energy_uj, window_uj = figures.get("energy_uj"), figures.get("window_uj")
        if score is None or energy_uj is None or window_uj is None or isinstance(score.value, (dict, list)):
            return
        watts = window_uj * 1000 / max(figures["duration_ns"], 1)
        self._covered.append((value_to_float()(score.value), watts, energy_uj / 1e6))
        simulated = ", simulated" if figures.get("simulated") else ""
        self._grades.add(f"{figures.get('grade')}{simulated}")
        self._concurrency = max(self._concurrency, figures.get("concurrency") or 0)

    def lines(self, location: str) -> list[str]:
        found = len(self._covered)
        if found == 0:
            return []
        accuracy, watts, joules = (sum(column) / found for column in zip(*self._covered))
        head = f"wattspan: {self._task}: {found} of {self._samples} samples have a score and an energy"
        figures = f"accuracy {accuracy:.3f}, {watts:.4g} W, {joules:.4g} J per sample"
        if found < MIN_COVERAGE * self._samples:
            figures += "; too few for intelligence per watt"
        elif watts > 0 and joules > 0:
            figures += f", IPW {accuracy / watts:.4g} per watt, IPJ {accuracy / joules:.4g} per joule"
        grades = ", ".join(sorted(self._grades))
        return [
            head,
            f"wattspan: {figures} ({grades}; up to {self._concurrency} at once)",
            f"wattspan: with intervals: wattspan ipw import --inspect {location} -o RUN, then wattspan ipw report RUN",
        ]


def _call_figures(call: _Call) -> dict[str, Any]:
    figures: dict[str, Any] = {"span": call.span.id, "model": call.model}
    account = call.account
    if account is not None:
        for key in ("opened_ns", "closed_ns", "moved_ns", "share_uj", "error_uj", "window_uj", "grade", "reason"):
            figures[key] = getattr(account, key)
        figures["opened_unix_ns"] = account.opened_unix_ns
        figures["concurrency"], figures["at_once"] = call.concurrency, call.at_once
    figures["tokens_in"], figures["tokens_out"] = call.tokens
    figures["failed"] = call.failed or None
    return {key: value for key, value in figures.items() if value is not None}


def _sum(calls: list[_Call]) -> dict[str, Any]:
    """The sums over calls; a value that one call lacks is absent."""
    if not calls:
        return {"reason": "there was no model call"}
    accounts = [call.account for call in calls]
    known = [account for account in accounts if account is not None and account.settled]
    if len(known) < len(calls):
        missing = next(account for account in accounts if account is None or not account.settled)
        late = f"an account did not settle within {ACCOUNT_WAIT_S:g} s"
        return {"reason": missing.reason if missing is not None and missing.reason else late}
    durations = [account.closed_ns - account.opened_ns for account in known if account.closed_ns and account.opened_ns]
    figures: dict[str, Any] = {
        "energy_uj": _total([account.share_uj for account in known]),
        "error_uj": _total([account.error_uj for account in known]),
        "idle_uj": _total([account.idle_uj for account in known]),
        "window_uj": _total([account.window_uj for account in known]),
        "duration_ns": sum(durations),
        "moved_ns": sum(account.moved_ns or 0 for account in known) or None,
        "grade": worst(account.grade for account in known),
        "simulated": any(account.simulated for account in known) or None,
        "at_least": any(account.at_least for account in known) or None,
        "concurrency": max(call.concurrency for call in calls),
        "at_once": max((call.at_once for call in calls if call.at_once is not None), default=None),
        "tokens_in": _total([call.tokens[0] for call in calls]),
        "tokens_out": _total([call.tokens[1] for call in calls]),
    }
    if figures["energy_uj"] is None:
        figures["reason"] = "a counted domain has no value for the whole call"
    return {key: value for key, value in figures.items() if value is not None}


def _total(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


async def _wait(done: Callable[[], bool], timeout_s: float) -> None:
    # A poll works with asyncio and trio, and an account comes on another thread.
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        await anyio.sleep(POLL_S)


def measure(socket: str | None = None) -> None:
    """Measures the model calls of every evaluation of this process. `socket`: of the daemon, unless the usual one."""
    if EnergyHooks.installed is None:
        hooks(name="wattspan", description="Energy of each sample and model call")(EnergyHooks)
    if EnergyHooks.installed is not None and socket is not None:
        EnergyHooks.installed.use(socket)
