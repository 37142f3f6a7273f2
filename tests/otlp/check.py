"""`wattspan export otlp` against a real collector (rotel) and one that reads with the OpenTelemetry Python SDK, under load:
exporters, daemon and the second collector are killed with SIGKILL, and rotel, which acknowledges before it forwards, is
restarted with SIGTERM. Each stored account arrives at least once, with an ID of its own and its exact energy.

    check.py WATTSPAND WATTSPAN ROTEL DIRECTORY
"""

import atexit
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

WATTSPAND, WATTSPAN, ROTEL, DIRECTORY = sys.argv[1:5]
HERE = Path(__file__).resolve().parent
OUT = Path(DIRECTORY)
SOCKET = OUT / "run" / "wattspan.sock"
ROUNDS = int(os.environ.get("ROUNDS", "8"))
PER_SECOND = 100
TIMEOUT_S = 60

MACHINE = """
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.03, 80], [0.02, 35]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[1.0, 50]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 20]]
quantum_uj = 15
ceiling_w = 100
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(what, condition):
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {TIMEOUT_S} s"
        time.sleep(0.02)


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A program that is killed and started again."""

    def __init__(self, name, command, port=None, env=None):
        self.name, self.command, self.port, self.env = name, [str(word) for word in command], port, env
        self.cpu_s, self.kills = 0.0, 0
        atexit.register(self.end)
        self.start()

    def start(self):
        log = open(OUT / f"{self.name}.log", "a")
        self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env)
        if self.port:
            wait_for(self.name, lambda: listens(self.port))

    def end(self):
        if self.child.returncode is None:
            self.child.kill()
            self.child.wait()

    def stop(self, how):
        self.child.send_signal(how)
        _, _, usage = os.wait4(self.child.pid, 0)
        self.child.returncode = 0
        self.cpu_s += usage.ru_utime + usage.ru_stime
        self.kills += 1

    def restart(self, how=signal.SIGKILL):
        self.stop(how)
        self.start()


class Connection:
    """A client of the daemon."""

    def __init__(self):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(TIMEOUT_S)
        self.stream.connect(str(SOCKET))
        self.rest = b""

    def call(self, method, **parameters):
        call = {"method": f"org.wattspan.Meter.{method}", "parameters": parameters}
        self.stream.sendall(json.dumps(call).encode() + b"\0")
        while b"\0" not in self.rest:
            more = self.stream.recv(1 << 16)
            if not more:
                raise ConnectionResetError
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        reply = json.loads(message)
        assert "error" not in reply, reply
        return reply["parameters"]


def is_up():
    try:
        Connection().call("GetInfo")
        return True
    except OSError:
        return False


class Load(threading.Thread):
    """Spans at a rate; every third has the trace of the proxy's client, every third that of a traced program."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended, self.made, self.error = False, 0, None

    def run(self):
        try:
            while not self.ended:
                try:
                    self.run_spans(Connection())
                except OSError:
                    time.sleep(0.02)
        except Exception as error:
            self.error = error

    def run_spans(self, client):
        while not self.ended:
            begin = time.monotonic()
            trace = [
                {"trace_id": f"{random.getrandbits(127) | 1:032x}", "span_id": f"{random.getrandbits(63) | 1:016x}"},
                {},
            ][self.made % 2]
            if trace and self.made % 4 == 0:
                trace["parent_span_id"] = "00f067aa0ba902b7"
            notes = {"gen_ai.request.model": "llama", "gen_ai.usage.output_tokens": "12", "prompt": "secret", **trace}
            span = client.call("OpenSpan", name=f"request {self.made}", attributes=notes)["span"]
            client.call("MarkPhase", span=span, phase="decode")
            client.call("CloseSpan", span=span)
            self.made += 1
            time.sleep(max(0, begin + 1 / PER_SECOND - time.monotonic()))


def stored():
    """All accounts of the daemon by number."""
    client, found, after = Connection(), {}, 0
    while True:
        page = client.call("ListSpans", after=after, limit=4096)
        found.update({account["number"]: account for account in page["accounts"]})
        after = page["after"]
        if page["at_end"]:
            assert not page.get("gaps"), page["gaps"]
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
    names = {point["metric"] for point in points}
    assert names == {"hw.energy", "hw.power", "hw.host.energy", "hw.host.power"}, names
    assert len(starts) == lives, f"{name}: {len(starts)} start times in {lives} lives of the daemon"
    kinds = {point["attributes"]["hw.id"]: point["attributes"].get("hw.type") for point in points}
    assert kinds == {"package-0": "cpu", "core-0": "cpu", "dram-0": "memory", "node-7": None}, kinds
    parents = {point["attributes"]["hw.id"]: point["attributes"].get("hw.parent") for point in points}
    assert parents["core-0"] == "package-0", parents
    print(f"{name}: {len(points)} points, {lives} start times")


def export_command(port, state, *more):
    host = ["--host", "node-7", "--state", OUT / state]
    return [WATTSPAN, "--socket", SOCKET, "export", "otlp", "--endpoint", f"http://127.0.0.1:{port}", *host, *more]


def main():
    (OUT / "run").mkdir(parents=True)
    (OUT / "machine.toml").write_text(MACHINE)
    (OUT / "wattspan.toml").write_text("bus = false\n")
    ports = {"direct": free_port(), "sink": free_port(), "rotel": free_port(), "grpc": free_port()}
    collector = [sys.executable, HERE / "collector.py"]
    daemon = Process(
        "daemon",
        [WATTSPAND, "--config", OUT / "wattspan.toml", "--replay", OUT / "machine.toml", "--socket", SOCKET]
        + ["--state-dir", OUT / "state"],
    )
    wait_for("the daemon", is_up)
    direct = Process("direct", [*collector, ports["direct"], OUT / "direct.jsonl"], ports["direct"])
    sink = Process("sink", [*collector, ports["sink"], OUT / "sink.jsonl"], ports["sink"])
    rotel = Process(
        "rotel",
        [ROTEL, "start", "--otlp-http-endpoint", f"127.0.0.1:{ports['rotel']}"]
        + ["--otlp-grpc-endpoint", f"127.0.0.1:{ports['grpc']}", "--exporter", "otlp"]
        + ["--otlp-exporter-endpoint", f"http://127.0.0.1:{ports['sink']}", "--otlp-exporter-protocol", "http"]
        + ["--otlp-exporter-compression", "none", "--pid-file", OUT / "rotel.pid", "--log-file", OUT / "rotel.out"],
        ports["rotel"],
    )
    exporters = [
        Process(f"exporter-{name}", export_command(ports[name], f"{name}.state", "--every", "1s"))
        for name in ("direct", "rotel")
    ]
    load = Load()
    load.start()
    lives = 1
    for round_ in range(ROUNDS):
        before = load.made
        wait_for("load", lambda: load.made >= before + PER_SECOND or load.error)
        time.sleep(random.random())
        for exporter in exporters:
            exporter.restart()
        if round_ % 2 == 0:
            direct.restart()
        if round_ % 4 == 2:
            rotel.restart(signal.SIGTERM)
        if round_ == ROUNDS // 2:
            # Metrics of both lives must arrive.
            time.sleep(2)
            daemon.restart()
            wait_for("the daemon", is_up)
            lives += 1
            time.sleep(2)
    load.ended = True
    load.join(TIMEOUT_S)
    assert load.error is None, load.error
    wait_for("settled accounts", lambda: Connection().call("GetInfo")["keeping"]["waiting"] == 0)
    time.sleep(1)
    accounts = stored()
    for exporter in exporters:
        exporter.stop(signal.SIGKILL)
    for name in ("direct", "rotel"):
        said = subprocess.run(
            [str(word) for word in export_command(ports[name], f"{name}.state")], capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
    # It forwards what it has accepted before it ends.
    rotel.stop(signal.SIGTERM)
    assert len(accounts) >= ROUNDS * PER_SECOND * 0.9, len(accounts)
    check_spans("SDK reader", OUT / "direct.jsonl", accounts)
    check_spans("rotel", OUT / "sink.jsonl", accounts)
    check_metrics("SDK reader", OUT / "direct.jsonl", lives)
    check_metrics("rotel", OUT / "sink.jsonl", lives)
    for log in ("direct.log", "sink.log"):
        assert "cannot decode" not in (OUT / log).read_text(), (OUT / log).read_text()
    kills = {process.name: process.kills for process in (direct, rotel, daemon, *exporters)}
    print(f"restarts: {kills}")
    direct.stop(signal.SIGKILL)
    sink.stop(signal.SIGKILL)
    daemon.stop(signal.SIGKILL)


if __name__ == "__main__":
    main()
