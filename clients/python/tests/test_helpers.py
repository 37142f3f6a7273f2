"""The decorator, the windows, the middleware and the OpenTelemetry processor, on a real daemon."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest
from conftest import Daemon, until
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import wattspan
from wattspan import otel
from wattspan.asgi import EnergyMiddleware, Message, Scope
from wattspan.window import EnergyMonitor


def test_every_kind_of_function_can_be_measured(daemon: Daemon) -> None:
    accounts: list[wattspan.Account] = []

    @wattspan.measured
    def plain(a: int, b: int = 2) -> int:
        here = wattspan.current()
        assert here is not None and here.name.endswith("plain")
        return a + b

    @wattspan.measured("coroutine", model="m", on_account=accounts.append)
    async def coroutine() -> str:
        await asyncio.sleep(0.005)
        wattspan.phase("late")
        return "done"

    @wattspan.measured("generator", on_account=accounts.append)
    def generator() -> Generator[int, None, None]:
        for number in range(3):
            here = wattspan.current()
            assert here is not None and here.name == "generator"
            yield number

    @wattspan.measured("stream", on_account=accounts.append)
    async def stream() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0.001)
            here = wattspan.current()
            assert here is not None and here.name == "stream"
            yield number

    @wattspan.measured("failing", on_account=accounts.append)
    def failing() -> None:
        raise KeyError("x")

    assert plain(1) == 3 and plain.__name__ == "plain"
    assert asyncio.run(coroutine()) == "done"
    for number in generator():
        assert wattspan.current() is None and number < 3
    abandoned = generator()
    assert next(abandoned) == 0
    abandoned.close()

    async def consume() -> list[int]:
        items = []
        async for item in stream():
            assert wattspan.current() is None
            items.append(item)
        return items

    assert asyncio.run(consume()) == [0, 1, 2]
    with pytest.raises(KeyError):
        failing()
    until("all settled", lambda: len(accounts) == 5)
    names = sorted(account.name for account in accounts)
    assert names == ["coroutine", "failing", "generator", "generator", "stream"]
    assert all(account.settled for account in accounts)
    found = {account.name: account.attributes for account in accounts}
    assert found["coroutine"] == {"model": "m"} and found["failing"] == {"error.type": "KeyError"}


def test_a_measured_generator_takes_what_is_sent_and_thrown(daemon: Daemon) -> None:
    @wattspan.measured("echo")
    def echo() -> Any:
        heard = yield "ready"
        try:
            yield heard
        except ValueError:
            yield "caught"
        return "end"

    items = echo()
    assert next(items) == "ready" and items.send("hello") == "hello" and items.throw(ValueError()) == "caught"
    with pytest.raises(StopIteration) as stop:
        next(items)
    assert stop.value.value == "end"


def test_windows_overlap_and_each_has_the_whole(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=lambda: waited.append(1))
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monitor = EnergyMonitor(timeout=60)
    monitor.begin_window("epoch")
    with wattspan.span("work") as work:
        monitor.begin_window("step", sync_execution=False)
        time.sleep(0.05)
        step = monitor.end_window("step")
    epoch = monitor.end_window("epoch")
    assert len(waited) == 3
    assert step.total_energy and epoch.total_energy and epoch.total_energy > step.total_energy > 0
    assert step.cpu_energy and step.dram_energy and step.gpu_energy == {}
    assert step.cpu_energy[0] is not None and step.dram_energy[0] is not None
    assert step.total_energy == pytest.approx(step.cpu_energy[0] + step.dram_energy[0])
    assert epoch.time > step.time > 0.05
    # Windows take no energy: the span's share is its whole window.
    assert work.energy_j == pytest.approx(work.result().window_j, abs=2e-5)
    monitor.begin_window("epoch")
    with pytest.raises(ValueError, match="is open already"):
        monitor.begin_window("epoch")
    assert monitor.end_window("epoch", cancel=True).total_energy is None
    with pytest.raises(ValueError, match="no window"):
        monitor.end_window("epoch")


def test_windows_without_a_daemon_have_a_time_and_no_energy(no_daemon: None) -> None:
    monitor = EnergyMonitor()
    monitor.begin_window("x")
    measured = monitor.end_window("x")
    assert measured.time >= 0 and measured.total_energy is None and measured.cpu_energy is None
    assert measured.account.reason


# ---- the middleware, called as by a server


async def request(app: Any, path: str = "/v1/chat/completions", headers: Any = ()) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": path, "headers": list(headers)}, receive, send)
    return sent


START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
WHOLE = {"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"application/json")]}


async def streaming(scope: Scope, receive: Any, send: Any) -> None:
    await send(START)
    for number in range(3):
        await asyncio.sleep(0.002)
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def at_once(scope: Scope, receive: Any, send: Any) -> None:
    scope["wattspan"].note(tokens=7)
    await send(WHOLE)
    await send({"type": "http.response.body", "body": b"{}"})


def test_a_request_is_a_span_with_a_decode_phase_and_nothing_on_the_wire_changes(daemon: Daemon) -> None:
    accounts: list[tuple[Scope, wattspan.Account]] = []
    app = EnergyMiddleware(streaming, on_account=lambda scope, account: accounts.append((scope, account)))
    bare = asyncio.run(request(streaming))
    assert asyncio.run(request(app, headers=[(b"traceparent", b"00-ab-cd-01")])) == bare
    until("settled", lambda: bool(accounts))
    scope, account = accounts[0]
    assert account.name == "POST /v1/chat/completions" and account.settled and scope["wattspan"].id == account.span
    assert [phase.name for phase in account.phases] == ["", "decode"]
    assert account.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "traceparent": "00-ab-cd-01",
        "http.response.status_code": "200",
    }


def test_annotate_adds_the_energy_as_headers_or_a_comment(daemon: Daemon) -> None:
    start, body = asyncio.run(request(EnergyMiddleware(at_once, annotate=True)))
    headers = {key.decode(): value.decode() for key, value in start["headers"]}
    assert start["status"] == 201 and body == {"type": "http.response.body", "body": b"{}"}
    assert headers["content-type"] == "application/json" and headers["wattspan-span"].startswith("py-")
    energy = dict(part.split("=") for part in headers["wattspan-energy"].split(", "))
    assert energy["simulated"] == "?1"
    if energy["state"] == "settled":
        assert int(energy["share_uj"]) > 0 and energy["grade"] == "measured"
    messages = asyncio.run(request(EnergyMiddleware(streaming, annotate=True)))
    assert messages[:-1] == asyncio.run(request(streaming))[:-1]
    assert messages[-1]["body"].startswith(b': wattspan {"state": "') and messages[-1]["body"].endswith(b"}\n\n")


@pytest.mark.parametrize(
    ("parts", "annotated"),
    [
        # Cut inside an event, which receivers discard; a comment would complete it.
        ([b"data: 1\n\n", b'data: {"half"'], False),
        # No blank line after the event.
        ([b"data: 1\n\n", b"data: [DONE]"], False),
        ([b"data: [DONE]\n", b""], False),
        ([b"data: 1\r\n"], False),
        ([b"data: 1\n", b"\n", b""], True),
        ([b"data: 1\r\n\r", b"\n"], True),
        ([b""], True),
    ],
)
def test_a_stream_that_ends_inside_an_event_gets_no_comment(
    daemon: Daemon, parts: list[bytes], annotated: bool
) -> None:
    async def stream(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    bare = asyncio.run(request(stream))
    messages = asyncio.run(request(EnergyMiddleware(stream, annotate=True)))
    assert messages[:-1] == bare[:-1]
    comment = messages[-1]["body"][len(bare[-1]["body"]) :]
    assert comment.startswith(b": wattspan ") if annotated else messages == bare


def test_other_paths_and_protocols_pass_untouched(daemon: Daemon) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope)

    wrapped = EnergyMiddleware(app, paths=["/v1/chat/completions"])
    asyncio.run(request(wrapped, path="/health"))
    asyncio.run(wrapped({"type": "websocket", "path": "/v1/chat/completions"}, None, None))  # type: ignore[arg-type]
    asyncio.run(wrapped({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert len(seen) == 3 and not any("wattspan" in scope for scope in seen)


def test_a_request_that_fails_or_is_cancelled_is_closed(daemon: Daemon) -> None:
    accounts: list[wattspan.Account] = []

    async def failing(scope: Scope, receive: Any, send: Any) -> None:
        raise RuntimeError

    async def endless(scope: Scope, receive: Any, send: Any) -> None:
        await asyncio.sleep(3600)

    async def cancelled() -> None:
        wrapped = EnergyMiddleware(endless, on_account=lambda _, account: accounts.append(account))
        task = asyncio.ensure_future(request(wrapped))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.raises(RuntimeError):
        asyncio.run(request(EnergyMiddleware(failing, on_account=lambda _, account: accounts.append(account))))
    asyncio.run(cancelled())
    until("both settled", lambda: len(accounts) == 2)
    assert sorted(account.attributes["error.type"] for account in accounts) == ["CancelledError", "RuntimeError"]


def test_a_server_without_a_daemon_serves(no_daemon: None) -> None:
    accounts: list[wattspan.Account] = []
    app = EnergyMiddleware(streaming, annotate=True, on_account=lambda _, account: accounts.append(account))
    messages = asyncio.run(request(app))
    assert messages[0] == START and b'"state": "unavailable"' in messages[-1]["body"]
    until("the account arrives", lambda: bool(accounts))
    assert accounts[0].reason


# ---- OpenTelemetry, with the real SDK


def exported(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
def test_exported_spans_carry_their_final_energy(patient_daemon: Daemon, kind: Any) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(otel.EnergySpanProcessor(kind(exporter), timeout=60))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("request", attributes={"gen_ai.request.model": "m"}):
        time.sleep(0.02)
        with tracer.start_as_current_span("tool"):
            time.sleep(0.02)
    assert provider.force_flush()
    spans = exported(exporter)
    request_, tool = dict(spans["request"].attributes or {}), dict(spans["tool"].attributes or {})
    assert request_["gen_ai.request.model"] == "m" and request_[otel.GRADE] == "measured"
    energy, own, inside = request_[otel.ENERGY], request_[otel.OWN_ENERGY], tool[otel.ENERGY]
    assert isinstance(energy, float) and isinstance(own, float) and isinstance(inside, float)
    assert energy == pytest.approx(own + inside) and own > 0 and inside > 0
    assert isinstance(request_[otel.UNCERTAINTY], float) and otel.OWN_ENERGY not in tool
    account = wattspan.attach(str(tool[otel.SPAN])).result()
    assert tool[otel.SIMULATED] is True
    context = spans["tool"].get_span_context()
    assert context is not None and account.attributes["span_id"] == f"{context.span_id:016x}"
    assert account.energy_j == inside
    provider.shutdown()


def test_without_a_daemon_spans_are_exported_with_the_reason(no_daemon: None) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    only = otel.EnergySpanProcessor(SimpleSpanProcessor(exporter), only=lambda span: span.name != "unwanted")
    provider.add_span_processor(only)
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("wanted"), tracer.start_as_current_span("unwanted"):
        pass
    provider.shutdown()
    spans = exported(exporter)
    assert "no daemon" in str((spans["wanted"].attributes or {})[otel.REASON])
    assert otel.ENERGY not in (spans["wanted"].attributes or {}) and not spans["unwanted"].attributes


def test_spans_of_many_threads_are_all_exported_and_a_forked_child_has_its_own(daemon: Daemon) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(otel.EnergySpanProcessor(SimpleSpanProcessor(exporter), timeout=60))
    tracer = provider.get_tracer("test")

    def work() -> None:
        for _ in range(50):
            with tracer.start_as_current_span("request"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.force_flush()
    spans = exporter.get_finished_spans()
    assert len(spans) == 400 and all(otel.ENERGY in (span.attributes or {}) for span in spans)
    child = os.fork()
    if child == 0:
        exporter.clear()
        with tracer.start_as_current_span("child"):
            pass
        flushed = provider.force_flush() and otel.ENERGY in (exported(exporter)["child"].attributes or {})
        os._exit(0 if flushed else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_processor_that_fails_loses_its_span_and_no_other(no_daemon: None, caplog: pytest.LogCaptureFixture) -> None:
    class Fickle(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name == "bad":
                raise RuntimeError("the exporter is broken")
            super().on_end(span)

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(otel.EnergySpanProcessor(Fickle(exporter)))
    tracer = provider.get_tracer("test")
    for name in ("first", "bad", "last"):
        with tracer.start_as_current_span(name):
            pass
    assert provider.force_flush()
    assert sorted(exported(exporter)) == ["first", "last"]
    assert "the exporter is broken" in caplog.text
    provider.shutdown()
