"""Judges the records of a soak (soak.py): each function returns the faults that it found, as sentences.

    judge.py DIRECTORY      judges the records there again
    judge.py --self-test    plants a fault of each kind in good records; each must be found

The long life is the part of the soak in which the daemon is not restarted. Its first third is the warm-up: the limits
of memory, descriptors and threads compare its second third with its last.
"""

import copy
import json
import sys
from pathlib import Path
from statistics import median

MEMORY_GROWTH_BYTES = 1 << 20
MEMORY_GROWTH = 1.03
# The write-ahead log: 4 MB before it is reset, and one transaction. The mark and the lock are small.
LOG_BYTES = 16 << 20
LATENESS_GROWTH = 4


def thirds(samples):
    """The second and the last third of the long life."""
    life = [sample for sample in samples if sample["long_life"]]
    return life[len(life) // 3 : 2 * len(life) // 3], life[2 * len(life) // 3 :]


def judge_memory(samples):
    """Anonymous memory alone: pages of the program file are read when code first runs, such as that of a rare fault."""
    faults = []
    for program in ("daemon", "jsonl", "prometheus"):
        before, after = (
            [sample["processes"][program]["anonymous_bytes"] for sample in part if program in sample["processes"]]
            for part in thirds(samples)
        )
        limit = median(before) * MEMORY_GROWTH + MEMORY_GROWTH_BYTES
        if median(after) > limit:
            values = f"{median(before)} bytes, then {median(after)}, limit {limit:.0f}"
            faults.append(f"anonymous memory of {program} grows: {values}")
    return faults


def judge_descriptors_and_threads(samples, end):
    """While the store is open, which a full disk closes; and at rest, against a daemon that just began."""
    faults = []
    open_store = [[sample for sample in part if sample["durable"]] for part in thirds(samples)]
    if not all(open_store):
        return ["the store was closed for a third of the long life"]
    for key in ("descriptors", "threads"):
        before, after = (median(sample["processes"]["daemon"][key] for sample in part) for part in open_store)
        if after > before + 1:
            faults.append(f"{key} of the daemon grow: {before}, then {after}")
        at_rest, fresh = end["at_rest"][key], end["fresh"][key]
        if at_rest > fresh:
            faults.append(f"{key} of the daemon without clients: {at_rest}, of one that just began {fresh}")
    return faults


def judge_disk(samples, setup):
    most = max(sample["disk_bytes"] for sample in samples)
    limit = setup["ledger_bytes"] + LOG_BYTES
    return [f"the store takes {most} bytes, limit {limit}"] if most > limit else []


def judge_lateness(samples):
    """Lateness of readings, relative to that of a timer of the soak itself: the machine may get busier, or
    less busy. Both are of all the time since the daemon's start."""

    def relative(part):
        return median(sample["lateness_p99_ns"] / max(sample["timer_p99_ns"], 1) for sample in part)

    before, after = (relative(part) for part in thirds(samples))
    if after > LATENESS_GROWTH * max(before, 0.5):
        return [f"readings come later and later: {before:.2f} of the timer's lateness, then {after:.2f}"]
    return []


def judge_balance(samples):
    faults, last = [], {}
    for sample in samples:
        for domain in sample["balance"]:
            name, measured = domain["domain"], domain["measured_uj"]
            if measured != domain["attributed_uj"] + domain["unattributed_uj"]:
                faults.append(f"{name} at {sample['t_s']:.0f} s: measured is not attributed + unattributed: {domain}")
            parts = sum(domain[key] for key in ("settled_uj", "abandoned_uj", "not_kept_uj", "open_uj"))
            if domain["attributed_uj"] != parts:
                faults.append(f"{name} at {sample['t_s']:.0f} s: attributed is not the sum of its parts: {domain}")
            if measured < last.get((sample["started_ns"], name), 0):
                faults.append(f"{name} at {sample['t_s']:.0f} s: the measured energy went back: {domain}")
            last[sample["started_ns"], name] = measured
    return faults


def judge_counters(samples):
    """Prometheus' counters never go back, also over kills of the exporter and the daemon."""
    faults, last = [], {}
    for sample in samples:
        for series, value in sample["counters"].items():
            if value < last.get(series, 0):
                faults.append(f"{series} went from {last[series]} to {value} at {sample['t_s']:.0f} s")
            last[series] = value
    return faults


def judge_accounts(answered, exported):
    """Each account that was answered as durable is exported once, with its figures."""
    faults = []
    for span, share_uj in answered.items():
        found = exported.get(span, [])
        if len(found) != 1:
            faults.append(f"{span} was answered as durable and is exported {len(found)} times")
        elif found[0]["share_uj"] != share_uj:
            faults.append(f"{span} was answered with {share_uj} uJ and is exported with {found[0]['share_uj']}")
    numbers = [(row["database"], row["number"]) for rows in exported.values() for row in rows]
    if len(numbers) != len(set(numbers)):
        faults.append(f"{len(numbers) - len(set(numbers))} numbers are exported more than once")
    return faults


def judge_end(end, exported):
    """The accounts of the last life add up to the daemon's balance, to the microjoule."""
    faults = []
    rows = [row for rows in exported.values() for row in rows if row["number"] > end["first_number"]]
    for domain in end["balance"]:
        sums = sum(row["shares"].get(domain["domain"], 0) for row in rows)
        kept = domain["settled_uj"] + domain["abandoned_uj"] + domain["rounding_uj"]
        if domain["open_uj"] != 0:
            faults.append(f"no span is open, and {domain['domain']} has {domain['open_uj']} uJ of open spans")
        if sums != kept:
            faults.append(f"the exported accounts of {domain['domain']} have {sums} uJ, the balance {kept}")
    return faults


def judge_activity(samples, events, answered, setup):
    """A soak in which nothing happened proves nothing."""
    faults = []
    kinds = {event["kind"] for event in events}
    missing = set(setup["faults"]) - kinds
    if missing:
        faults.append(f"never tried: {', '.join(sorted(missing))}")
    if len(answered) < setup["hours"] * 3600:
        faults.append(f"only {len(answered)} accounts in {setup['hours']} h")
    if not any(sample["watched"] > 0 for sample in samples):
        faults.append("the watchers received nothing")
    if not any(sample["counters"] for sample in samples):
        faults.append("Prometheus' counters were never read")
    # The daemon is away or stopped at times; without most of the samples the other judgements see too little.
    if len(samples) < 0.5 * setup["hours"] * 3600 / setup["sample_s"]:
        faults.append(f"only {len(samples)} samples")
    return faults


def judge(records):
    samples = records["samples"]
    if len([sample for sample in samples if sample["long_life"]]) < 6:
        return ["fewer than 6 samples of the long life"]
    return [
        *judge_memory(samples),
        *judge_descriptors_and_threads(samples, records["end"]),
        *judge_disk(samples, records["setup"]),
        *judge_lateness(samples),
        *judge_balance(samples),
        *judge_counters(samples),
        *judge_accounts(records["answered"], records["exported"]),
        *judge_end(records["end"], records["exported"]),
        *judge_activity(samples, records["events"], records["answered"], records["setup"]),
    ]


def read_records(directory):
    def lines(name):
        return [json.loads(line) for line in (directory / name).read_text().splitlines()]

    exported = {}
    for file in sorted(directory.glob("files/date=*/host=*/*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            shares = {share["domain"]: share["share_uj"] for share in row["domains"] if "share_uj" in share}
            kept = {
                "database": file.name.rsplit("-", 2)[0],
                "number": row["number"],
                "share_uj": row.get("share_uj"),
                "shares": shares,
            }
            exported.setdefault(row["span"], []).append(kept)
    return {
        "setup": json.loads((directory / "setup.json").read_text()),
        "samples": lines("samples.jsonl"),
        "events": lines("events.jsonl"),
        "answered": {row["span"]: row["share_uj"] for row in lines("answered.jsonl")},
        "exported": exported,
        "end": json.loads((directory / "end.json").read_text()),
    }


def good_records():
    domain = {"domain": "psys", "settled_uj": 50, "abandoned_uj": 10, "not_kept_uj": 0, "open_uj": 0, "rounding_uj": 0}
    balance = {**domain, "measured_uj": 100, "attributed_uj": 60, "unattributed_uj": 40}
    process = {"anonymous_bytes": 20 << 20, "descriptors": 30, "threads": 8}
    samples = [
        {
            "t_s": float(at),
            "long_life": at >= 12,
            "started_ns": 1 if at < 12 else 2,
            "processes": {name: dict(process) for name in ("daemon", "jsonl", "prometheus")},
            "disk_bytes": 1 << 20,
            "lateness_p99_ns": 200_000,
            "timer_p99_ns": 300_000,
            "durable": at % 9 != 0,
            "balance": [dict(balance)],
            "counters": {"energy": float(at)},
            "watched": 5,
        }
        for at in range(30)
    ]
    row = {"database": "d", "number": 7, "share_uj": 60, "shares": {"psys": 60}}
    return {
        "setup": {"hours": 1 / 3600, "sample_s": 1, "ledger_bytes": 2 << 20, "faults": ["reload"]},
        "samples": samples,
        "events": [{"kind": "reload"}],
        "answered": {"a": 60},
        "exported": {"a": [row]},
        "end": {
            "first_number": 6,
            "balance": [dict(balance)],
            "at_rest": {"descriptors": 20, "threads": 6},
            "fresh": {"descriptors": 20, "threads": 6},
        },
    }


def plant(records, name):
    samples = records["samples"]
    daemons = [sample["processes"]["daemon"] for sample in samples]
    for at, process in enumerate(daemons):
        process["anonymous_bytes"] += (at << 19) * (name == "memory")
        process["descriptors"] += at // 2 * (name == "descriptors")
        process["threads"] += at // 2 * (name == "threads")
        process["descriptors"] -= 5 * (not samples[at]["durable"])
        samples[at]["lateness_p99_ns"] *= 10 if name == "lateness" and at >= 24 else 1
    if name == "exporter's memory":
        for at, sample in enumerate(samples):
            sample["processes"]["jsonl"]["anonymous_bytes"] += at << 19
    if name == "disk":
        samples[20]["disk_bytes"] = 100 << 20
    if name == "balance":
        samples[20]["balance"][0]["unattributed_uj"] += 1
    if name == "parts":
        samples[20]["balance"][0]["settled_uj"] -= 1
    if name == "energy back":
        samples[20]["balance"][0].update(measured_uj=99, unattributed_uj=39)
    if name == "counter back":
        samples[20]["counters"]["energy"] = 3.0
    if name == "lost":
        records["answered"]["b"] = 5
    if name == "twice":
        records["exported"]["a"].append({**records["exported"]["a"][0], "number": 8})
    if name == "changed":
        records["answered"]["a"] = 61
    if name == "sum":
        records["end"]["balance"][0]["settled_uj"] += 1
    if name == "open at the end":
        records["end"]["balance"][0]["open_uj"] = 3
    if name == "closed store":
        for sample in samples[24:]:
            sample["durable"] = False
    for key in ("descriptors", "threads"):
        records["end"]["at_rest"][key] += name == f"{key} at rest"
    if name == "idle soak":
        records["events"].clear()
    if name == "watchers":
        for sample in samples:
            sample["watched"] = 0


# What is planted, and words of the sentence that must be found.
PLANTED = {
    "memory": "anonymous memory of daemon",
    "exporter's memory": "anonymous memory of jsonl",
    "descriptors": "descriptors of the daemon grow",
    "threads": "threads of the daemon grow",
    "descriptors at rest": "descriptors of the daemon without clients: 21",
    "threads at rest": "threads of the daemon without clients: 7",
    "closed store": "the store was closed",
    "disk": "the store takes",
    "lateness": "later and later",
    "balance": "not attributed + unattributed",
    "parts": "not the sum of its parts",
    "energy back": "measured energy went back",
    "counter back": "energy went from",
    "lost": "b was answered as durable and is exported 0 times",
    "twice": "exported 2 times",
    "changed": "was answered with 61",
    "sum": "the balance 61",
    "open at the end": "no span is open",
    "idle soak": "never tried",
    "watchers": "the watchers received nothing",
}


def self_test():
    assert judge(good_records()) == [], judge(good_records())
    for name, words in PLANTED.items():
        records = copy.deepcopy(good_records())
        plant(records, name)
        found = judge(records)
        assert any(words in fault for fault in found), f"a planted fault is not found: {name}: {found}"
    print(f"{len(PLANTED)} planted faults are found")


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        self_test()
    else:
        found = judge(read_records(Path(sys.argv[1])))
        print("\n".join(found) or "no fault")
        sys.exit(bool(found))
