"""`wattspan export otlp` against a real collector (rotel) and one that reads with the OpenTelemetry Python SDK, under load:
exporters, daemon and the second collector are killed with SIGKILL, and rotel, which acknowledges before it forwards, is
restarted with SIGTERM. Each stored account arrives at least once, with an ID of its own and its exact energy.

    check.py WATTSPAND WATTSPAN ROTEL DIRECTORY
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "export"))

from harness import Daemon, Load, Process, free_port, random_hex, rounds  # noqa: E402

WATTSPAND, WATTSPAN, ROTEL, DIRECTORY = sys.argv[1:]
OUT = Path(DIRECTORY)
ROUNDS = rounds(8)
PER_SECOND = 100


def attributes_of(number):
    """Half of the spans have a trace: a quarter that of the proxy's client, a quarter that of a traced program."""
    found = {"gen_ai.request.model": "llama", "gen_ai.usage.output_tokens": "12", "prompt": "secret"}
    if number % 2 == 0:
        found.update(trace_id=random_hex(32), span_id=random_hex(16))
    if number % 4 == 0:
        found["parent_span_id"] = "00f067aa0ba902b7"
    return found


def rows(path):
    """Complete lines: a collector that is killed while it writes leaves a part of one, and has not answered."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def expected_identity(account, span):
    notes = account["attributes"]
    if "parent_span_id" in notes:
        assert (span["trace_id"], span["span_id"]) == (notes["trace_id"], notes["span_id"]), span
        assert span["parent_id"] == notes["parent_span_id"] and span["kind"] == 2, span
    elif "trace_id" in notes:
        assert (span["trace_id"], span["parent_id"]) == (notes["trace_id"], notes["span_id"]), span
    else:
        assert span["parent_id"] == "" and span["kind"] == 1, span


def check_spans(name, path, accounts):
    spans = [row for row in rows(path) if "span_id" in row]
    by_number = {}
    for span in spans:
        number = span["attributes"]["wattspan.account.number"]
        first = by_number.setdefault(number, span)
        assert first == span, f"{name}: account {number} differs in two requests"
    assert by_number.keys() == accounts.keys(), f"{name}: {len(by_number)} of {len(accounts)} accounts"
    assert len({span["span_id"] for span in spans}) == len(accounts), f"{name}: two accounts have one ID"
    total_uj = 0
    for number, account in accounts.items():
        span = by_number[number]
        found = span["attributes"]
        for key, field in (("joules", "share_uj"), ("uncertainty_joules", "error_uj"), ("window_joules", "window_uj")):
            joules = found.get(f"wattspan.energy.{key}")
            uj = None if joules is None else round(joules * 1e6)
            assert uj == account.get(field), f"{name}: account {number}: {key} {uj} is {account.get(field)}"
        total_uj += account.get("share_uj", 0)
        expected_identity(account, span)
        assert span["start_ns"] == account["opened_unix_ns"], span
        assert span["end_ns"] - span["start_ns"] == account["closed_ns"] - account["opened_ns"], span
        assert span["name"] == account["name"] and span["resource"]["host.name"] == "node-7", span
        assert found["gen_ai.usage.output_tokens"] == 12 and found["gen_ai.request.model"] == "llama", span
        assert "prompt" not in found and "secret" not in json.dumps(span), span
        assert found["wattspan.energy.simulated"] is True and found["wattspan.energy.grade"] == "measured", span
    print(f"{name}: {len(accounts)} accounts, {len(spans) - len(accounts)} of them sent again, {total_uj} uJ")


def check_host_sums(name, points):
    """At each instant the counted domains add up to the host, to the microjoule."""
    energy = {}
    for point in points:
        if point["kind"] == "sum":
            of = "host" if point["metric"] == "hw.host.energy" else point["attributes"]["hw.id"]
            energy.setdefault(point["at_ns"], {})[of] = round(point["value"] * 1e6)
    for at_ns, uj in energy.items():
        assert uj["host"] == uj["package-0"] + uj["dram-0"], f"{name}: at {at_ns}: {uj}"
    assert energy


def check_metrics(name, path, lives):
    last, starts = {}, set()
    points = [row for row in rows(path) if "metric" in row]
    for point in sorted(points, key=lambda point: point["at_ns"]):
        series = (point["metric"], point["attributes"]["hw.id"])
        if point["kind"] == "sum":
            before_ns, before = last.get(series, (0, 0))
            same = before_ns == point["start_ns"]
            assert point["value"] >= before or not same, f"{name}: {series} fell under one start time"
            assert before_ns <= point["start_ns"] <= point["at_ns"], point
            last[series] = (point["start_ns"], point["value"])
            starts.add(point["start_ns"])
    check_host_sums(name, points)
    names = {point["metric"] for point in points}
    assert names == {"hw.energy", "hw.power", "hw.host.energy", "hw.host.power"}, names
    assert len(starts) == lives, f"{name}: {len(starts)} start times in {lives} lives of the daemon"
    kinds = {point["attributes"]["hw.id"]: point["attributes"].get("hw.type") for point in points}
    assert kinds == {"package-0": "cpu", "core-0": "cpu", "dram-0": "memory", "node-7": None}, kinds
    parents = {point["attributes"]["hw.id"]: point["attributes"].get("hw.parent") for point in points}
    assert parents["core-0"] == "package-0", parents
    print(f"{name}: {len(points)} points, {lives} start times")


def export_command(daemon, port, state, *more):
    host = ["--host", "node-7", "--state", OUT / state]
    endpoint = ["--endpoint", f"http://127.0.0.1:{port}"]
    return [str(word) for word in (WATTSPAN, "--socket", daemon.socket, "export", "otlp", *endpoint, *host, *more)]


def rotel_command(ports):
    return (
        [ROTEL, "start", "--otlp-http-endpoint", f"127.0.0.1:{ports['rotel']}"]
        + ["--otlp-grpc-endpoint", f"127.0.0.1:{ports['grpc']}", "--exporter", "otlp"]
        + ["--otlp-exporter-endpoint", f"http://127.0.0.1:{ports['sink']}", "--otlp-exporter-protocol", "http"]
        + ["--pid-file", OUT / "rotel.pid", "--log-file", OUT / "rotel.out"]
    )


def main():
    daemon = Daemon(WATTSPAND, OUT)
    ports = {name: free_port() for name in ("direct", "sink", "rotel", "grpc")}
    collector = [sys.executable, HERE / "collector.py"]
    direct = Process("direct", [*collector, ports["direct"], OUT / "direct.jsonl"], OUT, ports["direct"])
    sink = Process("sink", [*collector, ports["sink"], OUT / "sink.jsonl"], OUT, ports["sink"])
    rotel = Process("rotel", rotel_command(ports), OUT, ports["rotel"])
    exporters = [
        Process(f"exporter-{name}", export_command(daemon, ports[name], f"{name}.state", "--every", "1s"), OUT)
        for name in ("direct", "rotel")
    ]
    load = Load(daemon, PER_SECOND, attributes_of)
    lives = 1
    for number in range(ROUNDS):
        load.wait_for_more(PER_SECOND)
        if number % 2 == 0:
            # The exporter is killed while a batch waits for the collector.
            direct.stop()
            load.wait_for_more(PER_SECOND * 3 // 2)
        for exporter in exporters:
            exporter.restart()
        if number % 2 == 0:
            direct.start()
        if number % 4 == 2:
            rotel.restart(signal.SIGTERM)
        if number == ROUNDS // 2:
            # Metrics of both lives must arrive.
            load.wait_for_more(3 * PER_SECOND)
            daemon.restart()
            lives += 1
            load.wait_for_more(3 * PER_SECOND)
    load.finish()
    accounts = daemon.stored()
    for exporter in exporters:
        exporter.stop()
    for name in ("direct", "rotel"):
        command = export_command(daemon, ports[name], f"{name}.state")
        said = subprocess.run(command, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    # It forwards what it has accepted before it ends.
    rotel.stop(signal.SIGTERM)
    assert len(accounts) >= ROUNDS * PER_SECOND * 0.9, len(accounts)
    check_spans("SDK reader", OUT / "direct.jsonl", accounts)
    check_spans("rotel", OUT / "sink.jsonl", accounts)
    check_metrics("SDK reader", OUT / "direct.jsonl", lives)
    check_metrics("rotel", OUT / "sink.jsonl", lives)
    assert "dropping" not in (OUT / "rotel.log").read_text(), (OUT / "rotel.log").read_text()
    for log in ("direct.log", "sink.log"):
        assert "cannot decode" not in (OUT / log).read_text(), (OUT / log).read_text()
    print("restarts:", {process.name: process.kills for process in (direct, rotel, daemon, *exporters)})


if __name__ == "__main__":
    main()
