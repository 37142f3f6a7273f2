#!/usr/bin/env python3
"""How many bits a second a client of each tier learns of another user's load.

    benches/leak.py [--seconds N] [--seed N] DIRECTORY

DIRECTORY has the built programs wattspan and wattspand. Needs root and setpriv (util-linux): the clients run as other users.

A simulated machine draws 50 W plus or minus 20 W by a secret bit in each slot of time. Each client gathers what its tier gives:
spans of one millisecond and long ones, several at once, at all phases of the grid; windows of the past; pages without a
token. The decoder knows the slots' instants, which an attacker would have to find, and solves for all
bits at once (least squares), so that it averages over all observations. A slot from which a bit is guessed with the error
rate e gives 1 - H(e) bits; the rate is that of all slots in the time of the observations. The secret is new in each slot, or
17 slots repeat, as an operation of a victim does that an attacker triggers again and again.

Fails if a tier sees more instants a second than its claimed limit, or learns more than one bit of each update of the counter, or
if a client without access learns anything.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.dont_write_bytecode = True
# The clients have a copy beside this file, in a directory that their users can read.
sys.path.insert(0, str(ROOT / "tests/support"))

from varlink_client import CallError, VarlinkClient  # noqa: E402

MEAN_W, DEVIATION_W = 50, 20
UPDATE_NS = 1_000_000
GRID_NS = 100_000_000
SLOTS = 4096
# No divisor of the grid's step, so that each step begins in another slot.
REPEATED_SLOTS = 17
# Groups that every Linux has stand for those of wattspan.
GROUPS = {"coarse": "games", "span": "daemon", "telemetry": "bin"}
CONFIG = """bus = false
[access]
coarse_group = "games"
span_group = "daemon"
telemetry_group = "bin"
"""
TOKEN = "0123456789abcdef0123456789abcdef"


# What a client of a tier gathers: (from, to, energy in microjoules) of the whole domain.


def windows_of(account):
    """The windows of an account: that of the span."""
    rows = account.get("domains") or []
    if account.get("closed_ns") and rows and rows[0].get("window_uj") is not None:
        yield account["opened_ns"], account["closed_ns"], rows[0]["window_uj"]


def gather_none(client, until_ns):
    """Calls of every kind. Returns each number that could be energy or power."""
    found = []
    for method, parameters in [
        ("GetInfo", {}), ("ListSpans", {}), ("SumSpans", {}), ("GetBalance", {}), ("OpenSpan", {}), ("WatchDomains", {}),
        ("ReadWindow", {"from_ns": until_ns - 10**9, "to_ns": until_ns}),
    ]:
        try:
            reply = client.call(method, **parameters)
        except CallError as error:
            if "AccessDenied" not in str(error):
                raise
            continue
        found += energy_fields(reply)
    return [(0, 0, value) for value in found]


def energy_fields(value):
    """The values of all fields whose unit is one of energy or power."""
    if isinstance(value, list):
        return [found for each in value for found in energy_fields(each)]
    if not isinstance(value, dict):
        return []
    nested = [found for each in value.values() for found in energy_fields(each)]
    units = ("_uj", "_mw")
    return nested + [each for name, each in value.items() if name.endswith(units) and isinstance(each, (int, float))]


def gather_coarse(client, until_ns):
    """Spans over every step of the grid and over several, opened and closed at all instants of a step."""
    spans, number = [], 0
    while time.monotonic_ns() < until_ns:
        for length in (1, 2, 3):
            client.call("OpenSpan", span=f"c{number}")
            spans.append((time.monotonic_ns() + length * GRID_NS // 2, f"c{number}"))
            number += 1
        due = [span for at, span in spans if at <= time.monotonic_ns()]
        spans = [(at, span) for at, span in spans if span not in due]
        for span in due:
            client.call("CloseSpan", span=span)
        # Within the rate limit of the tier.
        time.sleep(0.047)
    time.sleep(0.6)
    return listed(client)


def gather_spans(client, until_ns):
    """A span over each millisecond, as the counter moves, beside one that is open throughout."""
    number, at_ns = 0, time.monotonic_ns()
    client.call("OpenSpan", span="long")
    while at_ns < until_ns:
        now_ns = time.monotonic_ns()
        # What is older than the horizon (10 ms) would be moved.
        at_ns = max(at_ns, now_ns - 9 * UPDATE_NS)
        while at_ns + UPDATE_NS < now_ns:
            client.call_oneway("OpenSpan", span=f"s{number}", at_ns=at_ns)
            client.call_oneway("CloseSpan", span=f"s{number}", at_ns=at_ns + UPDATE_NS)
            number += 1
            at_ns += UPDATE_NS
        time.sleep(0.001)
    client.call("CloseSpan", span="long")
    time.sleep(0.2)
    return listed(client)


def gather_telemetry(client, until_ns):
    """The energy of each millisecond of the past; the stream shows the same counter less often."""
    windows, at_ns = [], time.monotonic_ns()
    while at_ns < until_ns:
        now_ns = time.monotonic_ns()
        while at_ns + UPDATE_NS < now_ns - 50_000_000:
            reply = client.call("ReadWindow", from_ns=at_ns, to_ns=at_ns + UPDATE_NS)
            if reply["domains"][0].get("window_uj") is not None:
                windows.append((at_ns, at_ns + UPDATE_NS, reply["domains"][0]["window_uj"]))
            at_ns += UPDATE_NS
        time.sleep(0.002)
    return windows


def listed(client):
    """The windows of all own accounts."""
    windows, before = [], None
    while True:
        page = client.call("ListSpans", limit=1000, **({"before": before} if before else {}))
        windows += [window for account in page["accounts"] for window in windows_of(account)]
        before = page.get("before")
        if not before:
            return windows


GATHER = {"none": gather_none, "coarse": gather_coarse, "span": gather_spans, "telemetry": gather_telemetry}


def client_process(tier, path, until_ns):
    client = VarlinkClient(path, 30)
    json.dump(GATHER[tier](client, until_ns), sys.stdout)


# Machine, daemon and clients.


def machine_text(slot_ns, bits):
    steps = ", ".join(f"[{slot_ns / 1e9!r}, {MEAN_W + (DEVIATION_W if bit else -DEVIATION_W)}]" for bit in bits)
    return (
        f'[[domain]]\nname = "package-0"\nkind = "package"\nprofile = [{steps}]\nquantum_uj = 61\nceiling_w = 400\n'
        f"update_ns = {UPDATE_NS}\n"
    )


@contextlib.contextmanager
def daemon(directory, programs, slot_ns, bits):
    (directory / "machine.toml").write_text(machine_text(slot_ns, bits))
    (directory / "wattspan.toml").write_text(CONFIG)
    path = directory / "run/wattspan.sock"
    command = [programs / "wattspand", "--config", directory / "wattspan.toml", "--replay", directory / "machine.toml"]
    command += ["--socket", path, "--state-dir", directory / "state"]
    begun_ns = time.monotonic_ns()
    process = subprocess.Popen(["nice", "-n", "-15", *command], stderr=subprocess.DEVNULL)
    try:
        while not path.exists():
            if process.poll() is not None or time.monotonic_ns() - begun_ns > 20e9:
                raise SystemExit("FAIL  the daemon does not start")
            time.sleep(0.005)
        client = VarlinkClient(path, 30)
        client.call("GetInfo")
        yield path, begun_ns
    finally:
        process.kill()
        process.wait()


def start_client(directory, tier, path, until_ns):
    uid = 61_000 + list(GATHER).index(tier)
    # A member of telemetry needs the group of the socket too.
    names = {"none": [], "coarse": ["coarse"], "span": ["span"], "telemetry": ["span", "telemetry"]}[tier]
    groups = "--groups=" + ",".join(GROUPS[name] for name in names) if names else "--clear-groups"
    script = directory / "leak.py"
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", groups, sys.executable, script, "--client", tier, path]
    # As on a machine that is idle but for the victim.
    return subprocess.Popen(["nice", "-n", "-15", *command, str(until_ns)], stdout=subprocess.PIPE)


# The decoder.


def true_energy(slot_ns, bits):
    """A function: the microjoules from the machine's start to an instant after it."""
    sums = [0.0]
    for bit in bits:
        sums.append(sums[-1] + (MEAN_W + (DEVIATION_W if bit else -DEVIATION_W)) * slot_ns / 1e3)

    def energy(at_ns):
        cycle, rest = divmod(at_ns, slot_ns * len(bits))
        slot, part = divmod(rest, slot_ns)
        slot = int(slot)
        return cycle * sums[-1] + sums[slot] + (sums[slot + 1] - sums[slot]) * part / slot_ns

    return energy


def machine_start(windows, begun_ns, slot_ns, bits):
    """The instant at which the profile began: the one that explains the finest observations best."""
    energy = true_energy(slot_ns, bits)
    sample = windows[:: max(1, len(windows) // 150)]

    def misfit(start_ns):
        return sum(
            abs(energy(to - start_ns) - energy(at - start_ns) - uj) for at, to, uj in sample if at > start_ns
        )

    first, best = min(at for at, _, _ in windows), begun_ns
    step = max(100_000, slot_ns // 4)
    best = min(range(begun_ns, first, step), key=misfit)
    while step > 2_000:
        step //= 4
        best = min((best + shift * step for shift in range(-6, 7)), key=misfit)
    return best


def decode(windows, start_ns, slot_ns, period):
    """The likely bit of each slot that is observed (least squares by conjugate gradients); slots are modulo `period`."""
    rows, values, columns = [], [], {}
    for at, to, uj in windows:
        at, to = at - start_ns, to - start_ns
        row, slot = {}, at // slot_ns
        while slot * slot_ns < to:
            overlap_ns = min(to, (slot + 1) * slot_ns) - max(at, slot * slot_ns)
            column = columns.setdefault(slot % period, len(columns))
            row[column] = row.get(column, 0) + overlap_ns * DEVIATION_W / 1e6
            slot += 1
        rows.append(list(row.items()))
        values.append((uj - (to - at) * MEAN_W / 1e3) / 1e3)
    size = len(columns)

    def normal(x):
        """A^T A x + a small ridge, for slots that the observations do not separate."""
        out = [1e-3 * each for each in x]
        for row in rows:
            product = sum(weight * x[column] for column, weight in row)
            for column, weight in row:
                out[column] += weight * product
        return out

    residual = [0.0] * size
    for row, value in zip(rows, values):
        for column, weight in row:
            residual[column] += weight * value
    x, direction = [0.0] * size, residual[:]
    square = sum(each * each for each in residual)
    for _ in range(60):
        if square < 1e-9:
            break
        applied = normal(direction)
        length = square / sum(one * other for one, other in zip(direction, applied))
        x = [each + length * by for each, by in zip(x, direction)]
        residual = [each - length * by for each, by in zip(residual, applied)]
        following = sum(each * each for each in residual)
        direction = [each + following / square * by for each, by in zip(residual, direction)]
        square = following
    return {slot: x[column] > 0 for slot, column in columns.items()}


def entropy(rate):
    return 0.0 if rate in (0, 1) else -rate * math.log2(rate) - (1 - rate) * math.log2(1 - rate)


def bits_per_s(windows, start_ns, slot_ns, bits):
    """(bits a second, observations a second)."""
    if not windows:
        return 0.0, 0.0
    seconds = (max(to for _, to, _ in windows) - min(at for at, _, _ in windows)) / 1e9
    decoded = decode(windows, start_ns, slot_ns, len(bits))
    wrong = sum(bits[slot] != guess for slot, guess in decoded.items())
    # Few slots may agree by chance: the rate is taken two standard deviations towards 1/2.
    count = len(decoded)
    error = wrong / count
    error = min(0.5, error + 2 * math.sqrt(error * (1 - error) / count))
    edges = {at for window in windows for at in window[:2]}
    return count * (1 - entropy(error)) / seconds, (len(edges) - 1) / seconds


# Entrances over HTTP.


def request(url, headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(command):
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def gather_http(directory, programs, path, until_ns):
    """What anonymous clients of the pages see (nothing), and the energies that Prometheus gets with its token."""
    prometheus, live = free_port(), free_port()
    (directory / "token").write_text(TOKEN)
    os.chmod(directory / "token", 0o600)
    wattspan = [programs / "wattspan", "--socket", path]
    exporter = [*wattspan, "export", "prometheus", "--every", "1s", "--listen", f"127.0.0.1:{prometheus}"]
    exporter += ["--token-file", directory / "token", "--state", directory / "totals.json"]
    anonymous, windows, last, before, turns = 0, [], None, None, 0
    urls = [f"http://127.0.0.1:{prometheus}/metrics", *(f"http://127.0.0.1:{live}/{page}" for page in ("", "state", "events"))]
    with server(exporter), server([*wattspan, "serve", "--listen", f"127.0.0.1:{live}"]):
        while time.monotonic_ns() < until_ns:
            time.sleep(0.05)
            try:
                for url in urls:
                    status, text = request(url, {})
                    # The locked page has no figure; everything else is refused.
                    anonymous += status == 200 and (url.endswith("metrics") or '"energy' in text or "_uj" in text)
                status, text = request(urls[0], {"Authorization": f"Bearer {TOKEN}"})
            except OSError:
                continue
            turns += 1
            now_ns, energy = time.monotonic_ns(), None
            for line in text.splitlines():
                if line.startswith("wattspan_energy_joules_total{") and "package-0" in line:
                    energy = round(float(line.rsplit(" ", 1)[1]) * 1e6)
            if energy is not None and energy != last:
                # The values are those of whole multiples of the interval.
                at_ns = now_ns // 10**9 * 10**9
                if before and at_ns > before:
                    windows.append((before, at_ns, energy - last))
                before, last = at_ns, energy
    if turns == 0 or not windows:
        raise SystemExit(f"the servers answered {turns} times, with {len(windows)} energies: nothing was tried")
    return anonymous, windows


# The trials.

LIMITS = {
    "none": (0, "no figure"),
    "coarse": (10, "10 instants a second"),
    "span": (1e9 / UPDATE_NS, "the counter's updates (1000/s here)"),
    "telemetry": (1e9 / UPDATE_NS, "the counter's updates (1000/s here)"),
    "HTTP, anonymous": (0, "no figure"),
    "Prometheus, token": (1, "1 instant each interval (1 s here)"),
}


def trial(programs, slot_ns, bits, seconds):
    """{tier: (bits a second, observations a second)} for one machine."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        for script in ("leak.py", "varlink_client.py"):
            shutil.copy(ROOT / ("benches" if script == "leak.py" else "tests/support") / script, directory / script)
        with daemon(directory, programs, slot_ns, bits) as (path, begun_ns):
            until_ns = time.monotonic_ns() + int((seconds + 1) * 1e9)
            clients = {tier: start_client(directory, tier, path, until_ns) for tier in GATHER}
            anonymous, scraped = gather_http(directory, programs, path, until_ns)
            gathered = {tier: json.loads(process.communicate()[0] or "[]") for tier, process in clients.items()}
            failed = [tier for tier, process in clients.items() if process.returncode]
            if failed:
                raise SystemExit(f"FAIL  the clients of {failed} ended with an error")
    start_ns = machine_start(gathered["telemetry"], begun_ns, slot_ns, bits)
    results = {"none": (float(len(gathered.pop("none"))), 0.0), "HTTP, anonymous": (float(anonymous), 0.0)}
    for tier, windows in [*gathered.items(), ("Prometheus, token", scraped)]:
        results[tier] = bits_per_s([tuple(window) for window in windows], start_ns, slot_ns, bits)
    return results


def main():
    if sys.argv[1:2] == ["--client"]:
        return client_process(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("directory", type=pathlib.Path)
    args = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        raise SystemExit("needs root and setpriv (util-linux)")
    rng = random.Random(args.seed)
    secrets = [(f"{ms} ms", ms, SLOTS) for ms in (1, 10, 100)] + [(f"1 ms, {REPEATED_SLOTS} repeated", 1, REPEATED_SLOTS)]
    table, failures = {tier: {} for tier in LIMITS}, []
    for name, slot_ms, count in secrets:
        bits = [rng.random() < 0.5 for _ in range(count)]
        for tier, (bits_s, observed_s) in trial(args.directory.resolve(), slot_ms * 10**6, bits, args.seconds).items():
            table[tier][name] = (bits_s, observed_s)
            limit, text = LIMITS[tier]
            # An edge more than intervals, and instants that the observed time does not divide.
            is_over = bits_s > limit if tier in ("span", "telemetry") else observed_s > limit * 1.1 + 1
            if is_over or (limit == 0 and bits_s > 0):
                failures.append(f"{tier}, slots of {name}: {observed_s:.1f} observations/s, {bits_s:.1f}; limit: {text}")
    print(f"seed {args.seed}, {args.seconds} s each; bits/s learnt by slot of the secret, most instants/s, claimed limit")
    print("| tier or entrance | " + " | ".join(name for name, *_ in secrets) + " | instants/s | limit |")
    print("|---|" + "---|" * (len(secrets) + 2))
    for tier, row in table.items():
        rates = " | ".join(f"{bits_s:.1f}" for bits_s, _ in row.values())
        print(f"| {tier} | {rates} | {max(observed for _, observed in row.values()):.1f} | {LIMITS[tier][1]} |")
    for failure in failures:
        print(f"FAIL  {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
