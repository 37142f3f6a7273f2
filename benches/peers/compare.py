"""Runs energy meters in turn on the same simulated counter and prints what each costs and how far it is from the truth.

Started by benches/peers/run in a mount namespace of its own. Spans of 100 ms, eight after each other per second at most:
first one at a time, then eight at once, in which the true energy of a span is its equal share at each instant. A meter
is asked at the begin and the end of each span; the truth is the energy between the two answers and questions.
"""

import argparse
import bisect
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import simulated_counter as counter

SPAN_S = 0.1
SINGLE_SPANS = 40
CONCURRENT = 8
CONCURRENT_ROUNDS = 6
ZEUSD_RATES_HZ = (10, 100, 1000)
CODECARBON_PERIODS_S = (15.0, 0.1)


def cpu_s(pid):
    """CPU time of all threads of a process, from the scheduler's own account in nanoseconds."""
    total_ns = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total_ns += int(file.read().split()[0])
    return total_ns / 1e9


def peak_mb(pid):
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def get_json(self, url):
        self.request("GET", url)
        response = self.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{url}: {response.status} {body[:200]!r}")
        return json.loads(body)


class Daemon:
    """A meter in a process of its own, started until it answers."""

    def __init__(self, command, directory, answers):
        self.log = open(os.path.join(directory, "log"), "ab")
        begun = time.monotonic()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while True:
            try:
                answers()
                break
            except (OSError, http.client.HTTPException):
                if self.process.poll() is not None or time.monotonic() > begun + 30:
                    raise RuntimeError(f"{command[0]} did not start: see {self.log.name}")
                time.sleep(0.0005)
        self.start_s = time.monotonic() - begun

    def cpu_s(self):
        return cpu_s(self.process.pid)

    def peak_mb(self):
        return peak_mb(self.process.pid)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            # zeusd waits for the client of its stream.
            self.process.kill()
            self.process.wait()


class Wattspan:
    """wattspand: OpenSpan and CloseSpan; each account with its guaranteed error."""

    label = "wattspand"

    def __init__(self, program, directory):
        self.path = os.path.join(directory, "wattspan.sock")
        command = [program, "--socket", self.path, "--state-dir", os.path.join(directory, "state")]
        self.daemon = Daemon(command, directory, self.connect)
        self.local = threading.local()

    def connect(self):
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(self.path)
        return stream

    def call(self, method, **parameters):
        if not hasattr(self.local, "stream"):
            self.local.stream, self.local.rest = self.connect(), b""
        text = json.dumps({"method": f"org.wattspan.Meter.{method}", "parameters": parameters})
        self.local.stream.sendall(text.encode() + b"\0")
        while b"\0" not in self.local.rest:
            received = self.local.stream.recv(1 << 16)
            if not received:
                raise RuntimeError(f"wattspand closed the connection during {method}")
            self.local.rest += received
        reply, self.local.rest = self.local.rest.split(b"\0", 1)
        reply = json.loads(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply}")
        return reply["parameters"]

    def begin(self):
        return self.call("OpenSpan", process_share=False)["span"]

    def end(self, span):
        self.call("CloseSpan", span=span)
        return span

    def energies_j(self, ends):
        """The accounts of closed spans, once they are settled: energy, guaranteed error and the span's own edges."""
        results = []
        for span in ends:
            account = self.call("GetSpan", span=span)["account"]
            while account["state"] == "provisional":
                time.sleep(0.01)
                account = self.call("GetSpan", span=span)["account"]
            edges = (account["opened_ns"] / 1e9, account["closed_ns"] / 1e9)
            results.append((self.domain(account, "share_uj") / 1e6, (self.domain(account, "error_uj") / 1e6, edges)))
        return results

    @staticmethod
    def domain(account, field):
        """The figure of the simulated package alone: the machine may have other counters."""
        share = next(share for share in account["domains"] if share["domain"].startswith("package"))
        return share[field]

    def sampler(self):
        return next(s for s in self.call("GetInfo")["samplers"] if "powercap" in s["source"])

    @property
    def polls(self):
        return {"edges": "by edges", "fixed_rate": "at a fixed rate"}[self.sampler()["schedule"]]

    def lateness_ms(self):
        return self.sampler().get("lateness_p99_ns", 0) / 1e6

class ZeusdCumulative:
    """zeusd, asked for the cumulative energy at both ends of a span; it reads the counter for each request."""

    label = "zeusd, energy at both ends"
    polls = "on request"
    options = ()

    def __init__(self, program, directory):
        self.path = os.path.join(directory, "zeusd.sock")
        command = [program, "serve", "--socket-path", self.path, "--enable", "cpu-read", *self.options]
        self.daemon = Daemon(command, directory, lambda: UnixHttp(self.path).get_json("/time"))
        self.local = threading.local()

    def counter_uj(self):
        if not hasattr(self.local, "http"):
            self.local.http = UnixHttp(self.path)
        reply = self.local.http.get_json("/cpu/get_cumulative_energy?cpu=true&dram=false")
        return reply["0"]["cpu_energy_uj"]

    def begin(self):
        return self.counter_uj()

    def end(self, begin_uj):
        return (self.counter_uj() - begin_uj) / 1e6

    def energies_j(self, ends):
        return [(end, None) for end in ends]

    def lateness_ms(self):
        return None

class ZeusdStream(ZeusdCumulative):
    """zeusd's power stream at a poll rate, integrated over each span by the client."""

    rate_hz = 10

    def __init__(self, program, directory):
        self.options = ("--cpu-power-poll-hz", str(self.rate_hz))
        self.label, self.polls = "zeusd, power stream", f"{self.rate_hz} Hz"
        super().__init__(program, directory)
        # Integral of the power up to each message, by the instant of its arrival.
        self.instants_s, self.energies = [], []
        self.stream = UnixHttp(self.path)
        self.stream.request("GET", "/cpu/stream_power")
        self.reader = threading.Thread(target=self.read_stream, args=(self.stream.getresponse(),), daemon=True)
        self.reader.start()

    def read_stream(self, response):
        total_j, before_s = 0.0, None
        try:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                now_s, power_w = time.monotonic(), json.loads(line[5:])["cpu_mw"] / 1e3
                total_j += 0.0 if before_s is None else power_w * (now_s - before_s)
                before_s = now_s
                self.instants_s.append(now_s)
                self.energies.append(total_j)
        except (OSError, http.client.HTTPException, ValueError):
            pass  # the daemon was stopped

    def begin(self):
        return time.monotonic()

    def end(self, begin_s):
        return (begin_s, time.monotonic())

    def energies_j(self, ends):
        time.sleep(3 / self.rate_hz)
        return [(self.integral_j(end_s) - self.integral_j(begin_s), None) for begin_s, end_s in ends]

    def integral_j(self, instant_s):
        at = bisect.bisect(self.instants_s, instant_s)
        if not 0 < at < len(self.instants_s):
            raise RuntimeError("the power stream does not cover the span")
        (left, right), (low, high) = self.instants_s[at - 1 : at + 1], self.energies[at - 1 : at + 1]
        return low + (high - low) * (instant_s - left) / (right - left)

    def lateness_ms(self):
        gaps_s = [right - left for left, right in zip(self.instants_s, self.instants_s[1:])]
        return max(0.0, quantile(gaps_s, 0.99) - 1 / self.rate_hz) * 1e3


class CodeCarbon:
    """CodeCarbon, a task per span, in a process of its own; one task at a time is all that it offers."""

    period_s = 15.0

    def __init__(self, _program, directory):
        self.label = "CodeCarbon, a task per span"
        self.polls = "15 s (default)" if self.period_s == 15.0 else f"{self.period_s:g} s"
        begun = time.monotonic()
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve_codecarbon, args=(other, self.period_s, directory))
        self.process.start()
        self.pipe.recv()
        self.start_s = time.monotonic() - begun
        self.daemon = self

    def ask(self, what):
        self.pipe.send(what)
        return self.pipe.recv()

    def begin(self):
        return self.ask("begin")

    def end(self, _begin):
        return self.ask("end")

    def energies_j(self, ends):
        return [(end, None) for end in ends]

    def lateness_ms(self):
        return None

    def cpu_s(self):
        return cpu_s(self.process.pid)

    def peak_mb(self):
        return peak_mb(self.process.pid)

    def stop(self):
        self.pipe.send("stop")
        self.process.join(10)


def serve_codecarbon(pipe, period_s, directory):
    """Answers "begin" and "end" (with the task's CPU energy in joules) until "stop"."""
    import codecarbon

    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="FRA",
        measure_power_secs=period_s,
        save_to_file=False,
        output_dir=directory,
        log_level="error",
    )
    # The first task of a tracker is charged with the energy since its creation.
    tracker.start_task("first")
    tracker.stop_task("first")
    pipe.send("ready")
    tasks = 0
    while (what := pipe.recv()) != "stop":
        if what == "begin":
            tasks += 1
            tracker.start_task(f"span {tasks}")
            pipe.send(None)
        else:
            result = tracker.stop_task(f"span {tasks}")
            pipe.send(result.cpu_energy * 3.6e6)


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Result:
    """What one meter did in all rounds."""

    def __init__(self):
        self.single, self.concurrent, self.outside = [], [], 0
        self.cpu, self.latency_ms, self.memory_mb, self.start_ms, self.lateness_ms = [], [], [], [], []

    def row(self, label, polls):
        def number(values, digits):
            return "–" if not values else f"{statistics.median(values):.{digits}f}"

        errors = [f"{100 * statistics.fmean(v):.2f}" if v else "–" for v in (self.single, self.concurrent)]
        return (
            f"| {label} | {polls} | {errors[0]} | {errors[1]} | {number(self.cpu, 2)} | {number(self.latency_ms, 2)} "
            f"| {number(self.lateness_ms, 2)} | {number(self.memory_mb, 1)} | {number(self.start_ms, 0)} |"
        )


def one_at_a_time(meter, result):
    truths, ends = [], []
    for _ in range(SINGLE_SPANS):
        asked_s = time.monotonic()
        begin = meter.begin()
        begin_s = time.monotonic()
        time.sleep(SPAN_S)
        end_s = time.monotonic()
        ends.append(meter.end(begin))
        result.latency_ms.append((begin_s - asked_s + time.monotonic() - end_s) * 1e3)
        truths.append(counter.energy_j(end_s) - counter.energy_j(begin_s))
        # Eight edges a second, at all phases of the counter and of the power.
        time.sleep(0.15)
    compare(meter.energies_j(ends), truths, result.single, result)


def compare(results, truths, errors, result):
    """Adds the relative errors; counts the guaranteed errors that the truth between the span's own edges exceeds."""
    guarantees = [guarantee for _, guarantee in results if guarantee is not None]
    own_truths = shares_j([edges for _, edges in guarantees])
    for (energy_j, _), truth_j in zip(results, truths):
        errors.append(abs(energy_j - truth_j) / truth_j)
    for (energy_j, (bound_j, _)), truth_j in zip((one for one in results if one[1] is not None), own_truths):
        result.outside += abs(energy_j - truth_j) > bound_j


def at_once(meter, result):
    if isinstance(meter, CodeCarbon):
        return
    edges, ends, lock = {}, {}, threading.Lock()

    def span(number):
        begin = meter.begin()
        begin_s = time.monotonic()
        time.sleep(SPAN_S)
        end_s = time.monotonic()
        end = meter.end(begin)
        with lock:
            edges[number], ends[number] = (begin_s, end_s), end

    for round_number in range(CONCURRENT_ROUNDS):
        threads = []
        for at in range(CONCURRENT):
            threads.append(threading.Thread(target=span, args=(round_number * CONCURRENT + at,)))
            threads[-1].start()
            time.sleep(SPAN_S / CONCURRENT)
        for thread in threads:
            thread.join()
    numbers = sorted(edges)
    truths = shares_j([edges[number] for number in numbers])
    compare(meter.energies_j([ends[number] for number in numbers]), truths, result.concurrent, result)


def shares_j(edges):
    """The true energy of each span: at each instant the machine's energy in equal parts among the open spans."""
    instants = sorted({instant for pair in edges for instant in pair})
    shares = [0.0] * len(edges)
    for left, right in zip(instants, instants[1:]):
        open_now = [number for number, (begin, end) in enumerate(edges) if begin <= left and right <= end]
        for number in open_now:
            shares[number] += (counter.energy_j(right) - counter.energy_j(left)) / len(open_now)
    return shares


def run_round(make, program, result):
    with tempfile.TemporaryDirectory() as directory:
        meter = make(program, directory)
        try:
            time.sleep(1.5)
            cpu_before_s, begun_s = meter.daemon.cpu_s(), time.monotonic()
            one_at_a_time(meter, result)
            result.cpu.append(100 * (meter.daemon.cpu_s() - cpu_before_s) / (time.monotonic() - begun_s))
            at_once(meter, result)
            result.memory_mb.append(meter.daemon.peak_mb())
            result.start_ms.append(meter.daemon.start_s * 1e3)
            lateness_ms = meter.lateness_ms()
            if lateness_ms is not None:
                result.lateness_ms.append(lateness_ms)
            return meter.label, meter.polls
        finally:
            meter.daemon.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wattspand", required=True)
    parser.add_argument("--zeusd", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    subprocess.run(["mount", "-t", "tmpfs", "none", "/sys/class"], check=True)
    path = counter.make_zone("/sys/class")
    writer = multiprocessing.Process(target=counter.write_forever, args=(path, time.monotonic()), daemon=True)
    writer.start()

    makers = [(Wattspan, options.wattspand), (ZeusdCumulative, options.zeusd)]
    makers += [(type("Zeusd", (ZeusdStream,), {"rate_hz": hz}), options.zeusd) for hz in ZEUSD_RATES_HZ]
    makers += [(type("Tasks", (CodeCarbon,), {"period_s": s}), None) for s in CODECARBON_PERIODS_S]
    results, labels = [Result() for _ in makers], [None] * len(makers)
    for round_number in range(options.rounds):
        for at, (make, program) in enumerate(makers):
            labels[at] = run_round(make, program, results[at])
            print(f"round {round_number + 1} of {options.rounds}: {labels[at][0]}, {labels[at][1]}", flush=True)

    print("\n| meter | reads the counter | error, one at a time, % | error, 8 at once, % | CPU, % of a core | begin + end, ms "
          "| late, p99, ms | memory, MB | start, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (label, polls), result in zip(labels, results):
        print(result.row(label, polls))
    ours = results[0]
    print(f"\nwattspand: {ours.outside} of {len(ours.single) + len(ours.concurrent)} spans outside the guaranteed error")
    for (label, polls), result in zip(labels[1:], results[1:]):
        reaches = statistics.fmean(result.single) <= statistics.fmean(ours.single)
        print(f"{label}, {polls}: {'reaches' if reaches else 'does not reach'} wattspand's mean error on 100 ms spans")
    writer.kill()
    if ours.outside:
        raise SystemExit("a span was outside wattspand's guaranteed error")


if __name__ == "__main__":
    main()
