"""The hooks of wattspan.inspect_ai with inspect-ai itself, a model that is slow and a real daemon (WATTSPAN_SOCKET).

    hooks_test.py DIRECTORY        (WATTSPAND: the daemon's program)

Each case compares the log with the daemon's accounts.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import wattspan
import wattspan.inspect_ai

wattspan.inspect_ai.measure()

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.scorer import Score, accuracy, includes, scorer
from inspect_ai.solver import Generate, TaskState, generate, solver

DIRECTORY = Path(sys.argv[1])
CALL_S = 0.15
QUESTIONS = 6
BEGAN_UNIX_NS = time.time_ns()
# For the accounts of a daemon that a busy machine runs late; the case of one that stalls has the usual time.
usual_wait_s, wattspan.inspect_ai.ACCOUNT_WAIT_S = wattspan.inspect_ai.ACCOUNT_WAIT_S, 30.0


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


warnings = Warnings()
logging.getLogger("wattspan").addHandler(warnings)
logging.getLogger("inspect_ai.hooks._hooks").addHandler(warnings)


class SlowModel(ModelAPI):
    """Answers "Paris" after CALL_S. Unlike inspect-ai's mock model it needs no tokenizer from the network."""

    def __init__(self, model_name: str, base_url=None, api_key=None, config=None, **arguments) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self.with_usage: bool = arguments.get("with_usage", True)
        self.failures: int = arguments.get("failures", 0)
        self.call_s: float = arguments.get("call_s", CALL_S)

    async def generate(self, input, tools, tool_choice, config) -> ModelOutput:
        await asyncio.sleep(self.call_s)
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("the server is away")
        output = ModelOutput.from_content(self.model_name, "Paris")
        if self.with_usage:
            output.usage = ModelUsage(input_tokens=7, output_tokens=3, total_tokens=10)
        return output

    def should_retry(self, ex: BaseException) -> bool:
        return isinstance(ex, ConnectionError)


@modelapi("slow")
def slow() -> type[ModelAPI]:
    return SlowModel


def model(**arguments):
    return get_model("slow/model", memoize=False, **arguments)


def run(
    name: str,
    at_once: int = 2,
    connections: int | None = None,
    solver=None,
    scorer=None,
    model=None,
    fail_on_error=True,
    **config,
):
    samples = [Sample(input=f"{name} {n}?", target="Paris", id=str(n)) for n in range(QUESTIONS)]
    task = Task(dataset=samples, solver=solver or generate(), scorer=scorer or includes(), name=name)
    [log] = eval(
        task,
        model=model or globals()["model"](),
        log_dir=str(DIRECTORY),
        display="none",
        max_samples=at_once,
        max_connections=connections or at_once,
        fail_on_error=fail_on_error,
        **config,
    )
    figures = [sample.metadata.get("wattspan", {}) for sample in log.samples or []]
    return log, figures


def accounts(name: str) -> list[dict]:
    """The daemon's accounts of a task."""
    meter = wattspan.Meter()
    deadline = time.monotonic() + 60
    while True:
        listed = meter.call("ListSpans", limit=256, since_unix_ns=BEGAN_UNIX_NS, attributes={"inspect.task": name})
        listed = listed["accounts"]
        if len(listed) == QUESTIONS or time.monotonic() > deadline:
            return listed
        time.sleep(0.05)


def check_calls(figures: list[dict], calls_each: int = 1) -> int:
    """Compares each call in the log with the daemon's account; returns the sum of their energies."""
    meter, total = wattspan.Meter(), 0
    for sample in figures:
        assert len(sample["calls"]) == calls_each, sample
        for call in sample["calls"]:
            account = meter.call("GetSpan", span=call["span"])["account"]
            assert account["state"] == "settled"
            for key in ("share_uj", "error_uj", "window_uj", "opened_ns", "closed_ns"):
                assert account[key] == call[key], (key, account, call)
            assert account["attributes"]["inspect.span"] == sample["span"]
            assert call["concurrency"] <= call["at_once"] <= account["peak_concurrency"]
        assert sample["energy_uj"] == sum(call["share_uj"] for call in sample["calls"])
        assert sample["energy_uj"] == sum(domain["share_uj"] for domain in sample["domains"])
        total += sample["energy_uj"]
    return total


def counted_once() -> None:
    log, figures = run("once", at_once=3)
    assert log.status == "success" and log.results.scores[0].metrics["accuracy"].value == 1.0
    total = check_calls(figures)
    spans = accounts("once")
    # The samples' own spans have no weight and no energy, so that nothing is counted twice.
    assert len(spans) == QUESTIONS and all(span["share_uj"] == 0 and span["weight"] == 0 for span in spans), spans
    began = min(call["opened_ns"] for sample in figures for call in sample["calls"])
    ended = max(call["closed_ns"] for sample in figures for call in sample["calls"])
    whole = wattspan.Meter().call("ReadWindow", from_ns=began, to_ns=ended)
    assert total <= whole["window_uj"] + whole["error_uj"], (total, whole)
    # Three calls of 100 W at once: each has a third of the machine while the others are open.
    assert max(sample["concurrency"] for sample in figures) == 3
    assert all(sample["window_uj"] > sample["energy_uj"] for sample in figures if sample["concurrency"] > 1)
    assert figures[0]["tokens_in"] == 7 and figures[0]["tokens_out"] == 3 and figures[0]["simulated"] is True


def alone() -> None:
    _, figures = run("alone", at_once=1)
    check_calls(figures)
    assert all(sample["at_once"] == sample["concurrency"] == 1 for sample in figures), figures


def without_usage() -> None:
    _, figures = run("no usage", model=model(with_usage=False))
    check_calls(figures)
    assert all("tokens_out" not in sample for sample in figures)


def a_retry_is_energy_too() -> None:
    _, figures = run("retry", at_once=1, model=model(failures=1))
    [first, *others] = figures
    check_calls([first], calls_each=2)
    check_calls(others)
    assert first["calls"][0]["failed"] is True and "failed" not in first["calls"][1]
    gap_ns = first["calls"][1]["opened_ns"] - first["calls"][0]["closed_ns"]
    assert gap_ns > 100_000_000, "the pause before the retry is in neither call"


def parallel_calls() -> None:
    @solver
    def both():
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            one, other = get_model(), get_model()
            outputs = await asyncio.gather(one.generate(state.messages), other.generate("Is it Paris?"))
            state.output = outputs[0]
            return state

        return solve

    _, figures = run("parallel", at_once=1, connections=2, solver=both())
    check_calls(figures, calls_each=2)
    assert all(sample["concurrency"] == 2 for sample in figures)


def parallel_calls_of_the_same_messages() -> None:
    """The event of the call that ends first belongs to it, and does not end the other one."""

    @solver
    def twice(second: str, **arguments):
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            if arguments:
                # Into the cache, so that the second call of the gather is none.
                await get_model(second, memoize=False).generate(state.messages, **arguments)
            slower = get_model("slow/model", memoize=False, call_s=3 * CALL_S)
            faster = get_model(second, memoize=False)
            outputs = await asyncio.gather(
                slower.generate(state.messages), faster.generate(state.messages, **arguments)
            )
            state.output = outputs[0]
            return state

        return solve

    def durations_s(sample: dict) -> list[float]:
        # A daemon that runs late moves the edges of a call, which shortens it.
        return [(call["closed_ns"] - call["opened_ns"] + call["moved_ns"]) / 1e9 for call in sample["calls"]]

    _, figures = run("same messages", at_once=1, connections=2, solver=twice("slow/model"))
    check_calls(figures, calls_each=2)
    for sample in figures:
        assert durations_s(sample)[0] > 2 * CALL_S, sample
    _, figures = run("same messages, cached", at_once=1, connections=2, solver=twice("slow/model", cache=True))
    check_calls(figures, calls_each=2)
    for sample in figures:
        assert durations_s(sample)[1] > 2 * CALL_S, sample


def a_judge_is_apart() -> None:
    @scorer(metrics=[accuracy()])
    def judge():
        async def score(state: TaskState, target) -> Score:
            verdict = await get_model().generate(f"Is {state.output.completion} right?")
            return Score(value="C" if "Paris" in verdict.completion else "I")

        return score

    _, figures = run("judge", scorer=judge())
    check_calls(figures)
    for sample in figures:
        assert len(sample["scoring"]["calls"]) == 1 and sample["scoring"]["energy_uj"] > 0
        solved, scored = sample["calls"][0]["span"], sample["scoring"]["calls"][0]["span"]
        assert solved != scored
        assert wattspan.Meter().call("GetSpan", span=scored)["account"]["attributes"]["inspect.step"] == "score"


def a_judge_does_not_wait_for_accounts() -> None:
    """Calls in a row by scorers, one of which fails: none waits for the account of another, and all are logged."""
    waits: list[bool] = []
    wait = wattspan.inspect_ai._wait
    scorers_at_work: set[str] = set()

    async def counted(done, timeout_s) -> None:
        waits.append(bool(scorers_at_work))
        await wait(done, timeout_s)

    @scorer(metrics=[accuracy()])
    def judges():
        async def score(state: TaskState, target) -> Score:
            scorers_at_work.add(state.uuid)
            for _ in range(3):
                await get_model().generate(f"Is {state.output.completion} right?")
            scorers_at_work.remove(state.uuid)
            if state.sample_id == "2":
                raise RuntimeError("the judge is confused")
            return Score(value="C")

        return score

    wattspan.inspect_ai._wait = counted
    try:
        _, figures = run("judges", at_once=1, scorer=judges(), fail_on_error=False)
    finally:
        wattspan.inspect_ai._wait = wait
    check_calls(figures)
    assert waits and not any(waits), waits
    for sample in figures:
        calls = sample["scoring"]["calls"]
        assert len(calls) == 3 and sample["scoring"]["energy_uj"] == sum(call["share_uj"] for call in calls), sample


def a_failing_sample() -> None:
    @solver
    def fragile():
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state = await generate(state)
            if state.sample_id == "2":
                raise RuntimeError("the sandbox is gone")
            return state

        return solve

    log, figures = run("failing", solver=fragile(), fail_on_error=False)
    assert sum(sample.error is not None for sample in log.samples) == 1
    check_calls(figures)


def without_a_daemon() -> None:
    wattspan.inspect_ai.measure(socket="/nonexistent/wattspan.sock")
    warnings.texts.clear()
    log, figures = run("absent")
    assert log.status == "success" and len(log.samples) == QUESTIONS
    assert all("no daemon" in sample["reason"] and "energy_uj" not in sample for sample in figures), figures
    assert len(warnings.texts) == 1 and "no energy is measured" in warnings.texts[0], warnings.texts
    wattspan.inspect_ai.measure(socket=os.environ["WATTSPAN_SOCKET"])


@solver
def interrupted(daemon: subprocess.Popen, signal_number: int):
    """Sends a signal to the daemon before the third sample's call."""
    begun = [0]

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        begun[0] += 1
        if begun[0] == 3:
            daemon.send_signal(signal_number)
        return await generate(state)

    return solve


def a_daemon_that_stalls_and_dies() -> None:
    with tempfile.TemporaryDirectory(prefix="wattspan-", dir="/tmp") as directory:
        socket = f"{directory}/run/wattspan.sock"
        machine = Path(__file__).parents[1] / "fixtures" / "hundred-watts.toml"
        command = [os.environ["WATTSPAND"], "--config", "/dev/null", "--replay", str(machine), "--socket", socket]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while wattspan.Meter(socket).tell(b"") is False:
                assert daemon.poll() is None
                time.sleep(0.05)
            wattspan.inspect_ai.measure(socket=socket)
            wattspan.inspect_ai.ACCOUNT_WAIT_S = usual_wait_s
            for name, signals in (("stalls", [signal.SIGSTOP, signal.SIGCONT]), ("dies", [signal.SIGKILL])):
                warnings.texts.clear()
                log, figures = run(name, at_once=1, solver=interrupted(daemon, signals[0]))
                daemon.send_signal(signals[-1])
                # The scores are as without the fault, the samples before have their energy, and there is one warning.
                assert log.status == "success" and log.results.scores[0].metrics["accuracy"].value == 1.0
                metered = [sample.get("energy_uj") for sample in figures]
                assert metered[0] and metered[1] and not any(metered[2:]), (name, figures)
                assert all(sample["reason"] for sample in figures[2:])
                assert len(warnings.texts) == 1, (name, warnings.texts)
        finally:
            daemon.kill()
            daemon.wait()
            wattspan.inspect_ai.measure(socket=os.environ["WATTSPAN_SOCKET"])


cases = [
    counted_once,
    alone,
    without_usage,
    a_retry_is_energy_too,
    parallel_calls,
    parallel_calls_of_the_same_messages,
    a_judge_is_apart,
    a_judge_does_not_wait_for_accounts,
    a_failing_sample,
    without_a_daemon,
    a_daemon_that_stalls_and_dies,
]
for case in cases:
    warnings.texts.clear()
    case()
    if case not in (without_a_daemon, a_daemon_that_stalls_and_dies):
        assert not warnings.texts, (case.__name__, warnings.texts)
    print(f"ok {case.__name__}", flush=True)
