#!/usr/bin/env python3
"""Cost of an export: accounts per second through the contract, bytes per account, memory of the exporter, and the CPU time of
both programs.

    benches/export.py [--accounts N] [--format parquet] [--state DIR] [--keep DIR] WATTSPAND WATTSPAN

A daemon on a simulated machine stores N accounts of requests to a model (1,000,000 by default: 0.3 GB in the temporary
directory), and `wattspan export` writes them. Calls of another client are timed beside it, and without it. Build both programs
optimised, WATTSPAN with the feature parquet. `--state DIR` keeps the stored accounts for the next run. Needs Python 3.10 alone.
Prints each value with its target and `ok` or `over`. Exit status 1 if an account is lost.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

from varlink_client import VarlinkClient  # noqa: E402

TIMEOUT_S = 60
MIN_ACCOUNTS_PER_S = 200_000
MAX_BYTES_PER_ACCOUNT = 60
MAX_MEMORY_MB = 200
OPEN_AT_ONCE = 256
BATCH = 2000

# Spans of 20 ms, 256 at once, then have the joules of requests that take seconds on a machine of some hundred watts.
MACHINE = """
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.013, 25000], [0.007, 75000]]
quantum_uj = 61
ceiling_w = 1000000
[[domain]]
name = "gpu-0"
kind = "gpu"
profile = [[0.017, 33000], [0.011, 75000]]
quantum_uj = 1000
ceiling_w = 1000000
"""
CONFIG = """
bus = false
[ledger]
megabytes = 100000
waiting_megabytes = 2000
[limits]
span_memory_bytes = 1000000000
"""
MODELS = ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B", "openai/gpt-oss-20b"]


class Daemon:
    def __init__(self, program, directory, state):
        (directory / "machine.toml").write_text(MACHINE)
        (directory / "wattspan.toml").write_text(CONFIG)
        self.path = directory / "w.sock"
        names = {"config": "wattspan.toml", "replay": "machine.toml", "socket": "w.sock"}
        options = [part for option, name in names.items() for part in [f"--{option}", str(directory / name)]]
        self.process = subprocess.Popen([program, *options, "--state-dir", state], stderr=subprocess.DEVNULL)
        for _ in range(400):
            if self.path.exists():
                self.client = VarlinkClient(self.path, TIMEOUT_S)
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit("the daemon does not listen")

    def cpu_s(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self):
        """The largest resident set since the last reset."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    def reset_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self):
        self.process.kill()
        self.process.wait()


def encode(method, parameters, **flags):
    message = {"method": f"org.wattspan.Meter.{method}", "parameters": parameters} | flags
    return json.dumps(message, separators=(",", ":")).encode() + b"\0"


def fill(daemon, accounts):
    """Opens and closes spans without replies, as a proxy names them."""
    chance = random.Random(1)
    opened, batch = [], []
    for at in range(accounts + OPEN_AT_ONCE):
        if at < accounts:
            span, model = f"{chance.getrandbits(128):032x}", MODELS[at * len(MODELS) // accounts]
            attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model}
            request = {"span": span, "name": "POST /v1/chat/completions", "attributes": attributes}
            batch.append(encode("OpenSpan", request, oneway=True))
            opened.append((span, model))
        if at >= OPEN_AT_ONCE:
            # Answers have different lengths: one of the oldest ends.
            span, model = opened.pop(chance.randrange(min(len(opened), OPEN_AT_ONCE // 2)))
            tokens = {"input": 20 + chance.getrandbits(11), "output": 10 + chance.getrandbits(9)}
            attributes = {f"gen_ai.usage.{name}_tokens": str(count) for name, count in tokens.items()}
            attributes["gen_ai.response.model"] = model
            batch.append(encode("CloseSpan", {"span": span, "attributes": attributes}, oneway=True))
        if len(batch) >= BATCH:
            daemon.client.stream.sendall(b"".join(batch))
            batch.clear()
            # Waits until the daemon has read them, so that nothing piles up.
            daemon.client.call("GetBalance")
    daemon.client.stream.sendall(b"".join(batch))
    # Two seconds after the last counter update all are settled; then they are committed.
    time.sleep(3)
    daemon.client.call("GetBalance")


class OtherClient(threading.Thread):
    """Times of OpenSpan and CloseSpan of a client that measures a request every few milliseconds."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.client, self.ended, self.times_s = VarlinkClient(path, TIMEOUT_S), threading.Event(), []
        self.start()

    def run(self):
        while not self.ended.wait(0.004):
            begin = time.perf_counter()
            span = self.client.call("OpenSpan", name="other")["span"]
            opened = time.perf_counter()
            self.times_s.append(opened - begin)
            self.client.call("CancelSpan", span=span)

    def finish(self):
        self.ended.set()
        self.join()
        return sorted(self.times_s)


def run_export(daemon, program, form, to):
    command = [program, "--json", "--socket", str(daemon.path), "export", form, "--host", "node", "--to", str(to)]
    before_s, started = daemon.cpu_s(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit("the export failed")
    return json.loads(output)["accounts"], seconds, usage, daemon.cpu_s() - before_s


def wait_times(daemon, program, form, to):
    """Times of another client's calls, alone and beside an export."""
    other = OtherClient(daemon.path)
    time.sleep(2)
    alone_s = other.finish()
    other = OtherClient(daemon.path)
    run_export(daemon, program, form, to)
    return alone_s, other.finish()


def measure(options, directory):
    state = options.state or directory / "state"
    is_filled = state.exists()
    daemon = Daemon(options.wattspand, directory, state)
    try:
        if not is_filled:
            started, before_s = time.monotonic(), daemon.cpu_s()
            fill(daemon, options.accounts)
            print(f"{'filled with':<44} {options.accounts:>14} accounts in {time.monotonic() - started:.0f} s, "
                  f"daemon {daemon.cpu_s() - before_s:.0f} CPU s")  # fmt: skip
        to = directory / "out"
        daemon.reset_peak()
        accounts, seconds, usage, daemon_s = run_export(daemon, options.wattspan, options.format, to)
        daemon_mb = daemon.peak_mb()
        alone_s, beside_s = wait_times(daemon, options.wattspan, options.format, directory / "again")
    finally:
        daemon.stop()
    exporter_s = usage.ru_utime + usage.ru_stime
    files = [path for path in to.glob("date=*/host=*/*") if not path.name.startswith(".")]
    size = sum(path.stat().st_size for path in files)
    memory_mb = usage.ru_maxrss * 1024 / 1e6
    median = statistics.median
    rows = [
        ("accounts exported", f"{accounts}", f"{options.accounts}", accounts == options.accounts),
        ("accounts per second", f"{accounts / seconds:.0f}", f"≥ {MIN_ACCOUNTS_PER_S}", accounts >= MIN_ACCOUNTS_PER_S * seconds),
        ("accounts per CPU second of both programs", f"{accounts / (exporter_s + daemon_s):.0f}", "", True),
        ("CPU time of the exporter, s per million", f"{exporter_s / accounts * 1e6:.2f}", "", True),
        ("CPU time of the daemon, s per million", f"{daemon_s / accounts * 1e6:.2f}", "", True),
        ("peak memory of the exporter, MB", f"{memory_mb:.0f}", f"≤ {MAX_MEMORY_MB}", memory_mb <= MAX_MEMORY_MB),
        ("peak memory of the daemon, MB", f"{daemon_mb:.0f}", "", True),
        ("bytes per account", f"{size / accounts:.1f}", f"≤ {MAX_BYTES_PER_ACCOUNT}",
         options.format != "parquet" or size <= MAX_BYTES_PER_ACCOUNT * accounts),
        ("files", f"{len(files)}", "", True),
        ("OpenSpan of another client, median, µs", f"{median(alone_s) * 1e6:.0f}", "", True),
        ("the same beside the export, µs", f"{median(beside_s) * 1e6:.0f}", "", True),
        ("ratio of these", f"{median(beside_s) / median(alone_s):.2f}", "", True),
        ("ratio of the 99th percentiles", f"{beside_s[len(beside_s) * 99 // 100] / alone_s[len(alone_s) * 99 // 100]:.2f}", "", True),
    ]  # fmt: skip
    for what, value, target, good in rows:
        verdict = "" if not target else "ok" if good else "over"
        print(f"{what:<44} {value:>14}  {target:<10} {verdict}".rstrip())
    if options.keep:
        shutil.copytree(to, options.keep)
    return accounts == options.accounts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["parquet", "csv", "jsonl"], default="parquet")
    parser.add_argument("--state", type=Path, metavar="DIR", help="the accounts of an earlier run, or where to keep these")
    parser.add_argument("--keep", metavar="DIR", help="copy the files to this new directory")
    parser.add_argument("wattspand")
    parser.add_argument("wattspan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return 0 if measure(options, Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
