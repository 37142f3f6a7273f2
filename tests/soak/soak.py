"""A soak of the daemon on a simulated machine; `run` starts it. The schedule follows from a seed.

    soak.py HOURS [--seed N] [--keep DIRECTORY]

In the first part of the time the daemon is killed and restarted too; the rest is one long life, in which growth can be
seen.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent / "export")]

from harness import TIMEOUT_S, Daemon, Process, wait_for
from varlink_client import CallError, VarlinkClient

from judge import judge, read_records
from page import write_page

WATTSPAN, WATTSPAND = os.environ["WATTSPAN"], os.environ["WATTSPAND"]
RESTARTS_PART = 0.4
LEDGER_MEGABYTES = 12
# Smaller than the ledger may become with its log, and large enough for it.
DISK_BYTES = 64 << 20
SPAN_THREADS = 6
# Fewer remembered accounts than the short form makes, so that memory stops growing in its warm-up.
CONFIGURATION = f"[limits]\nremembered_accounts = 500\n[ledger]\nmegabytes = {LEDGER_MEGABYTES}\n"
FAULTS = (
    "hang",
    "full disk",
    "reload",
    "invalid reload",
    "garbage",
    "flood",
    "killed client",
    "slow watcher",
    "few descriptors",
    "kill of the JSONL exporter",
    "kill of the Prometheus exporter",
)
RESTARTS = ("kill of the daemon", "restart of the daemon")


class Journal:
    """Lines of JSON, written at once."""

    def __init__(self, path):
        self.file, self.lock = open(path, "w", buffering=1), threading.Lock()

    def write(self, **values):
        with self.lock:
            self.file.write(json.dumps(values) + "\n")


class Repeating(threading.Thread):
    """Does one thing with a connection of its own, over restarts of the daemon, until the soak ends."""

    def __init__(self, soak):
        super().__init__(daemon=True)
        self.soak, self.ended, self.error = soak, False, None
        self.start()

    def run(self):
        while not self.ended:
            try:
                self.serve(VarlinkClient(self.soak.daemon.socket, TIMEOUT_S))
            except OSError:
                time.sleep(0.1)
            except Exception as error:
                self.error = error
                return

    def finish(self):
        self.ended = True
        self.join(TIMEOUT_S)
        if self.error is not None:
            raise self.error


class Spans(Repeating):
    """Spans of random length with a phase. What is answered as durable must be exported."""

    def __init__(self, soak, seed):
        self.random, self.made = random.Random(seed), 0
        super().__init__(soak)

    def serve(self, client):
        while not self.ended:
            model = self.random.choice(("qwen3-8b", "llama-3.3-70b", "gemma-2b"))
            attributes = {"gen_ai.request.model": model, "gen_ai.usage.output_tokens": "40"}
            span = client.call("OpenSpan", name=f"request {self.made}", attributes=attributes)["span"]
            time.sleep(self.random.expovariate(1 / 0.05))
            client.call("MarkPhase", span=span, phase="decode")
            time.sleep(self.random.expovariate(1 / 0.05))
            if self.random.random() < 0.05:
                client.call("CancelSpan", span=span)
                continue
            account = client.call("CloseSpan", span=span, wait_settled=True)["account"]
            self.made += 1
            if account.get("durable"):
                self.soak.answered.write(span=span, share_uj=account.get("share_uj"))
            time.sleep(self.random.expovariate(1 / 0.05))


class Watcher(Repeating):
    """Reads a stream and counts its replies."""

    def __init__(self, soak, method, **parameters):
        self.method, self.parameters, self.received, self.client = method, parameters, 0, None
        super().__init__(soak)

    def finish(self):
        self.ended = True
        if self.client is not None:
            with contextlib.suppress(OSError):
                self.client.stream.shutdown(socket.SHUT_RDWR)
        super().finish()

    def serve(self, client):
        self.client = client
        client.send(self.method, parameters=self.parameters, more=True)
        while not self.ended:
            part = client.stream.recv(1 << 16)
            if not part:
                raise ConnectionResetError(f"{self.method}: the stream has ended")
            self.received += part.count(b"\0")


class Timer(threading.Thread):
    """Lateness of a timer of this process: what the machine's load does to any program."""

    def __init__(self):
        super().__init__(daemon=True)
        self.late_ns, self.lock = Counter(), threading.Lock()
        self.start()

    def run(self):
        while True:
            due = time.monotonic_ns() + 10_000_000
            time.sleep(0.01)
            late_ns = max(time.monotonic_ns() - due, 0)
            # With the first five binary digits, so that a day has a few hundred different values.
            shift = max(late_ns.bit_length() - 5, 0)
            with self.lock:
                self.late_ns[late_ns >> shift << shift] += 1

    def begin_anew(self):
        with self.lock:
            self.late_ns.clear()

    def p99_ns(self):
        """Of all since the timer began anew, as the daemon's figure is of all readings since it started."""
        with self.lock:
            late_ns = sorted(self.late_ns.items())
        rank, seen = sum(count for _, count in late_ns) * 99 // 100, 0
        for value_ns, count in late_ns:
            seen += count
            if seen > rank:
                return value_ns
        return 0


def process_figures(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in status)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "anonymous_bytes": int(values["RssAnon"].split()[0]) * 1024,
        "threads": int(values["Threads"]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    }


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def scrape(path):
    """The counters of the Prometheus exporter; none while it is away."""
    try:
        connection = UnixConnection(path)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return {}
    series = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in series if "_total" in name.split("{")[0]}


class Soak:
    def __init__(self, hours, seed, out):
        self.random, self.out, self.hours = random.Random(seed), out, hours
        self.began = time.monotonic()
        self.duration_s = hours * 3600
        self.sample_s = min(10.0, max(1.0, self.duration_s / 200))
        self.answered, self.events = Journal(out / "answered.jsonl"), Journal(out / "events.jsonl")
        self.samples = Journal(out / "samples.jsonl")
        disk = out / "daemon" / "state"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", disk], check=True)
        self.daemon = Daemon(WATTSPAND, out / "daemon", CONFIGURATION)
        client = [WATTSPAN, "--socket", self.daemon.socket, "export"]
        self.export = [*client, "jsonl", "--host", "soak", "--to", out / "files"]
        self.jsonl = Process("jsonl", [*self.export, "--every", "5s"], out)
        self.metrics = out / "metrics.sock"
        options = ["--every", "2s", "--listen", f"unix:{self.metrics}", "--state", out / "prometheus.json"]
        self.prometheus = Process("prometheus", [*client, "prometheus", *options], out)
        self.timer = Timer()
        self.spans = [Spans(self, seed + at) for at in range(SPAN_THREADS)]
        self.watchers = [Watcher(self, "WatchDomains", rate_hz=5.0), Watcher(self, "WatchSpans")]
        self.first_number, self.long_life = 0, False
        setup = {
            "hours": hours,
            "seed": seed,
            "sample_s": self.sample_s,
            "ledger_bytes": LEDGER_MEGABYTES * 10**6,
            "faults": FAULTS + RESTARTS,
        }
        (out / "setup.json").write_text(json.dumps(setup))

    def elapsed_s(self):
        return time.monotonic() - self.began

    def call(self, method, **parameters):
        return VarlinkClient(self.daemon.socket, TIMEOUT_S).call(method, **parameters)

    def sample(self):
        processes = {"daemon": self.daemon, "jsonl": self.jsonl, "prometheus": self.prometheus}
        info = self.call("GetInfo")
        samplers = info["samplers"]
        self.samples.write(
            t_s=self.elapsed_s(),
            long_life=self.long_life,
            started_ns=info["started_ns"],
            processes={name: process_figures(process.child.pid) for name, process in processes.items()},
            disk_bytes=sum(file.stat().st_size for file in (self.out / "daemon/state").glob("ledger.*")),
            lateness_p99_ns=max(sampler.get("lateness_p99_ns", 0) for sampler in samplers),
            timer_p99_ns=self.timer.p99_ns(),
            late=sum(sampler["late"] for sampler in samplers),
            missed=sum(sampler["missed"] for sampler in samplers),
            ticks=sum(sampler["ticks"] for sampler in samplers),
            durable=info["keeping"]["durable"],
            waiting=info["keeping"]["waiting"],
            not_kept=info["keeping"]["not_kept"],
            balance=self.call("GetBalance")["balance"],
            counters=scrape(self.metrics),
            watched=sum(watcher.received for watcher in self.watchers),
            made=sum(spans.made for spans in self.spans),
        )

    def try_fault(self, kind):
        self.events.write(t_s=self.elapsed_s(), kind=kind)
        action = getattr(self, "do_" + kind.replace(" ", "_").lower())
        try:
            action()
        except OSError as error:
            # A fault such as a flood may also turn away this connection.
            self.events.write(t_s=self.elapsed_s(), kind="turned away", during=kind, reason=str(error))

    def do_hang(self):
        self.daemon.child.send_signal(signal.SIGSTOP)
        time.sleep(self.random.uniform(0.5, 4))
        self.daemon.child.send_signal(signal.SIGCONT)

    def do_full_disk(self):
        filler = self.out / "daemon/state/filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
        time.sleep(self.random.uniform(1, 5))
        filler.unlink()

    def do_reload(self):
        days = self.random.randint(10, 30)
        (self.daemon.out / "wattspan.toml").write_text(f"bus = false\n{CONFIGURATION}days = {days}.0\n")
        self.call("Reload")

    def do_invalid_reload(self):
        path = self.daemon.out / "wattspan.toml"
        before = path.read_text()
        path.write_bytes(self.random.randbytes(200))
        try:
            self.call("Reload")
            raise AssertionError("an invalid configuration was taken")
        except CallError:
            pass
        finally:
            path.write_text(before)

    def connect(self):
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(TIMEOUT_S)
        stream.connect(str(self.daemon.socket))
        return stream

    def do_garbage(self):
        for _ in range(20):
            with self.connect() as stream:
                stream.sendall(self.random.randbytes(self.random.randint(1, 4000)))
        half = self.connect()
        half.sendall(b'{"method": "org.wattspan.Meter.OpenSp')
        time.sleep(self.random.uniform(0.1, 2))
        half.close()

    def do_flood(self):
        streams = []
        for _ in range(200):
            try:
                streams.append(self.connect())
            except OSError:
                break
        time.sleep(self.random.uniform(0.1, 2))
        for stream in streams:
            stream.close()

    def do_killed_client(self):
        program = (
            "import sys, time; sys.path.insert(0, sys.argv[1]); from varlink_client import VarlinkClient\n"
            "client = VarlinkClient(sys.argv[2], 60)\n"
            "for n in range(20): client.call('OpenSpan', name=f'doomed {n}')\n"
            "print('open', flush=True); time.sleep(600)"
        )
        words = [sys.executable, "-c", program, str(HERE.parent / "support"), str(self.daemon.socket)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()

    def do_slow_watcher(self):
        client = VarlinkClient(self.daemon.socket, TIMEOUT_S)
        client.send("WatchDomains", parameters={"rate_hz": 100.0}, more=True)
        time.sleep(self.random.uniform(1, 5))

    def do_few_descriptors(self):
        pid = self.daemon.child.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), hard))
        try:
            for _ in range(20):
                self.connect().close()
            time.sleep(self.random.uniform(0.5, 3))
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    def do_kill_of_the_jsonl_exporter(self):
        self.jsonl.restart()

    def do_kill_of_the_prometheus_exporter(self):
        self.prometheus.restart()

    def do_kill_of_the_daemon(self):
        self.daemon.restart()

    def do_restart_of_the_daemon(self):
        self.daemon.restart(signal.SIGTERM)

    def run(self):
        """Each fault comes once in the first round, then at random; the restarts only in the first part."""
        faults_to_come = list(FAULTS)
        self.random.shuffle(faults_to_come)
        restarts = [kind for kind in RESTARTS for _ in range(max(1, round(self.hours * 4)))]
        self.random.shuffle(restarts)
        restart_s = RESTARTS_PART * self.duration_s / (len(restarts) + 1)
        fault_s = min(60, self.duration_s * (1 - RESTARTS_PART) / 30)
        restart_at, fault_at, sample_at = restart_s, 2.0, 0.0
        while (now := self.elapsed_s()) < self.duration_s:
            if restarts and now > restart_at:
                self.try_fault(restarts.pop())
                restart_at = now + restart_s
            elif not restarts and not self.long_life:
                self.begin_long_life()
            elif now > fault_at:
                self.try_fault(faults_to_come.pop() if faults_to_come else self.random.choice(FAULTS))
                fault_at = self.elapsed_s() + self.random.expovariate(1 / fault_s)
            if now > sample_at:
                try:
                    self.sample()
                except OSError as error:
                    self.events.write(t_s=self.elapsed_s(), kind="turned away", during="sample", reason=str(error))
                sample_at = now + self.sample_s
            self.check_threads()
            time.sleep(0.05)

    def begin_long_life(self):
        """A last restart. The accounts of this life begin after a number, and must add up to the balance at its end."""
        self.daemon.restart(signal.SIGTERM)
        self.timer.begin_anew()
        started_ns = self.call("GetInfo")["started_ns"]
        after, at_end, numbers = 0, False, []
        while not at_end:
            page = self.call("ListSpans", after=after, limit=4096)
            numbers += [account["number"] for account in page["accounts"] if account["opened_ns"] >= started_ns]
            after, at_end = page["after"], page["at_end"]
        self.first_number = min(numbers, default=after + 1) - 1
        self.long_life = True
        self.events.write(t_s=self.elapsed_s(), kind="long life", after_number=self.first_number)

    def check_threads(self):
        for thread in (*self.spans, *self.watchers):
            if thread.error is not None:
                raise thread.error

    def finish(self):
        for thread in self.spans:
            thread.finish()
        # The spans of a client that was killed just now close before this one.
        self.measure_last_span()
        self.daemon.stored()
        self.jsonl.stop(signal.SIGTERM)
        subprocess.run(self.export, check=True, stdout=subprocess.DEVNULL)
        end = {"first_number": self.first_number, "balance": self.call("GetBalance")["balance"]}
        for thread in self.watchers:
            thread.finish()
        self.prometheus.stop(signal.SIGTERM)
        end["at_rest"] = self.figures_without_clients()
        self.daemon.restart(signal.SIGTERM)
        end["fresh"] = self.figures_without_clients()
        (self.out / "end.json").write_text(json.dumps(end))

    def measure_last_span(self):
        client = VarlinkClient(self.daemon.socket, TIMEOUT_S)
        wait_for("the store", lambda: client.call("GetInfo")["keeping"]["durable"])
        client.call("CloseSpan", span=client.call("OpenSpan", name="last")["span"], wait_settled=True)
        client.call("ListSpans", limit=1)
        client.stream.close()

    def figures_without_clients(self):
        """The least figures of the daemon in two seconds without connections, after each of its parts was used once."""
        self.measure_last_span()
        found = []
        for _ in range(20):
            time.sleep(0.1)
            found.append(process_figures(self.daemon.child.pid))
        return {key: min(figures[key] for figures in found) for key in ("descriptors", "threads")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hours", type=float)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    out = options.keep or Path(tempfile.mkdtemp(prefix="wattspan-soak-"))
    out.mkdir(exist_ok=options.keep is None, parents=True)
    print(f"soak of {options.hours} h, seed {options.seed}, records in {out}", flush=True)
    soak = Soak(options.hours, options.seed, out)
    soak.run()
    soak.finish()
    records = read_records(out)
    faults = judge(records)
    write_page(out / "soak.html", records, faults)
    counts = {name: len(records[name]) for name in ("answered", "samples", "events")}
    print("{answered} durable accounts, {samples} samples, {events} events".format(**counts))
    if faults:
        print("\n".join(faults[:40]))
        sys.exit(f"{len(faults)} faults; the page is {out / 'soak.html'}")
    print("no fault")
    if options.keep is None:
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
