#!/usr/bin/env python3
"""Recomputes the figures of a run from its files, with numpy and without the program's code.

    recompute.py RUN host|compute|accelerator included|excluded < REPORT.json

Follows docs/ipw.md and prints one JSON object with the names of `wattspan ipw report --json`; a figure that does not exist is
null. tests/ipw/recompute.rs compares the two to 1e-9. The intervals over the questions are not recomputed here
(recompute_intervals.py does that): they are taken from the report on standard input, and widened by the meter's errors.
"""

import json
import math
import pathlib
import sys

import numpy

ACCELERATORS = {"gpu", "npu"}
COMPUTE = ACCELERATORS | {"package", "cpu", "dram", "soc", "module"}
CUT_OFF = {
    "length", "max_tokens", "max_output_tokens", "model_length", "incomplete", "content_filter", "abort", "aborted",
    "cancelled",
}  # fmt: skip
MIN_COVERAGE = 0.95
NAN = math.nan


def read_rows(path):
    """The last row of each query, in the order of the file."""
    last = {}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        last[row["id"], row.get("repeat", 0)] = (number, row)
    return [row for _, row in sorted(last.values(), key=lambda pair: pair[0])]


def domains_of(scope, domains):
    """The indices of the outermost domains that a scope counts."""
    kinds = {"compute": COMPUTE, "accelerator": ACCELERATORS}
    chosen = [it["counted"] if scope == "host" else it["kind"] in kinds[scope] for it in domains]
    by_name = {it["name"]: at for at, it in enumerate(domains)}

    def is_nested(at):
        seen = set()
        parent = domains[at].get("parent")
        while parent in by_name and parent not in seen:
            if chosen[by_name[parent]]:
                return True
            seen.add(parent)
            parent = domains[by_name[parent]].get("parent")
        return False

    return [at for at in range(len(domains)) if chosen[at] and not is_nested(at)]


def number(value):
    return NAN if value is None else float(value)


def scope_energy(row, scope, indices):
    """Share, error, idle part and window of a query in joules."""
    energy = row.get("energy")
    if energy is None:
        return [NAN] * 4
    names = ["share_uj", "error_uj", "idle_uj", "window_uj"]
    if scope == "host":
        values = [number(energy.get(name)) for name in names]
    else:
        parts = [energy.get("domains", [])[at] for at in indices] if energy.get("domains") else []
        values = [sum(number(part.get(name)) for part in parts) if parts else NAN for name in names]
    if math.isnan(values[3]) and energy.get("at_once") == 1:
        values[3] = values[0]
    return [value / 1e6 for value in values]


def score_of(row):
    """A delivered query that failed or was cut off is wrong; one that was not delivered has no score."""
    if row.get("error") is not None:
        return 0.0 if row["delivered"] else NAN
    return 0.0 if (row.get("finish") or "").lower() in CUT_OFF else number(row.get("score"))


def widen(name, value, error, reported):
    """The reported interval of a figure, with both ends moved outwards by the meter's error; None where there is none."""
    interval = (reported.get(name) or {}).get("interval")
    if interval is None or math.isnan(value) or math.isnan(error):
        return None
    low, high = interval["low"], interval["high"]
    if name in ("energy_j", "power_w"):
        relative = abs(error / value)
        wide = min(low - abs(value) * relative, low - abs(low) * relative)
        high = max(high + abs(value) * relative, high + abs(high) * relative)
        return {"low": max(wide, 0.0) if low >= 0 else wide, "high": high}
    return {"low": low / (1 + abs(error)), "high": high / (1 - abs(error)) if abs(error) < 1 else None}


class Run:
    def __init__(self, path, scope, idle):
        manifest = json.loads((path / "run.json").read_text())
        self.rows = read_rows(path / "rows.jsonl")
        self.planned = manifest["count"] * manifest["repeats"]
        concurrency = manifest["settings"].get("at once")
        self.concurrency = None if concurrency is None else int(concurrency)
        indices = domains_of(scope, manifest["domains"])
        energies = numpy.array([scope_energy(row, scope, indices) for row in self.rows])
        share, self.error_j, idle_part, window = energies.T
        energy_of = [row.get("energy") or {} for row in self.rows]
        self.span_s = numpy.array([number(it.get("span_ns")) for it in energy_of]) / 1e9
        at_once = numpy.array([it.get("at_once") or NAN for it in energy_of], dtype=float)
        self.began_s = numpy.array([row["began_ns"] / 1e9 for row in self.rows])
        self.duration_s = numpy.array([row["duration_ns"] / 1e9 for row in self.rows])
        self.score = numpy.array([score_of(row) for row in self.rows])
        self.answered = numpy.array([row.get("error") is None for row in self.rows])
        self.delivered = numpy.array([row.get("error") is None or row["delivered"] for row in self.rows])
        self.session = numpy.array([row.get("session", 0) for row in self.rows])
        self.subject = numpy.array([row["subject"] for row in self.rows])
        excluded = idle == "excluded"
        with numpy.errstate(invalid="ignore", divide="ignore"):
            self.joules = share - idle_part if excluded else share
            used = window - idle_part * (window / share) if excluded else window
            self.watts = numpy.where(self.span_s > 0, used / self.span_s, NAN)
            self.attributed_w = numpy.where(self.span_s > 0, self.joules / self.span_s, NAN)
            # The error of the window, and the distance between the account's duration and the query's.
            query_s = numpy.where(self.duration_s > 0, self.duration_s, self.span_s)
            moved_w = abs(window / query_s - window / self.span_s)
            self.error_w = numpy.where(
                (share + self.error_j) * at_once < window, NAN, self.error_j * at_once / query_s + moved_w
            )

    def figures(self, chosen, reported, planned=0):
        """The figures over some queries, by their mask; the reported ones give the intervals over the questions."""
        known = ~numpy.isnan(self.score) & ~numpy.isnan(self.joules) & ~numpy.isnan(self.attributed_w)
        covered = chosen & known
        count, asked = int(covered.sum()), max(int(chosen.sum()), planned)
        out = {
            "concurrency": self.concurrency,
            "asked": asked,
            "delivered": int((chosen & self.delivered).sum()),
            "answered": int((chosen & self.answered).sum()),
            "scored": int((chosen & ~numpy.isnan(self.score)).sum()),
            "covered": count,
            "coverage": count / asked if asked else 0.0,
            "partial": not (asked and count / asked >= MIN_COVERAGE),
        }
        if count == 0:
            return out
        accuracy, energy = self.score[covered].mean(), self.joules[covered].mean()
        power, attributed = self.watts[covered].mean(), self.attributed_w[covered].mean()
        figure = {
            "accuracy": accuracy,
            "energy_j": energy,
            "power_w": power,
            "attributed_power_w": attributed,
            "per_watt": accuracy / power if power > 0 else NAN,
            "per_joule": accuracy / energy if energy > 0 else NAN,
            "queries_per_kwh": 3.6e6 / energy if energy > 0 else NAN,
        }
        out.update({name: None if math.isnan(it) else {"value": it} for name, it in figure.items()})
        energy_error, power_error = self.error_j[covered].mean(), self.error_w[covered].mean()
        bounds = {"energy_error_j": energy_error, "power_error_w": power_error}
        out.update({name: None if math.isnan(it) else it for name, it in bounds.items()})
        for name, error, combined in [
            ("energy_j", energy_error, "energy_combined_j"),
            ("power_w", power_error, "power_combined_w"),
            ("per_watt", power_error / power, "per_watt_combined"),
            ("per_joule", energy_error / energy, "per_joule_combined"),
        ]:
            out[combined] = widen(name, figure[name], error, reported)
        return out

    def steady_state(self, reported):
        """The time in which the concurrency was full, and the queries that lay wholly in it."""
        if self.concurrency is None or self.concurrency < 2:
            return None
        window_s, inside = 0.0, numpy.zeros(len(self.rows), dtype=bool)
        ended_s = self.began_s + self.duration_s
        for session in numpy.unique(self.session):
            mine = self.delivered & (self.session == session)
            instants = numpy.unique(numpy.concatenate([self.began_s[mine], ended_s[mine]]))
            # Open from each instant until the next one: began, and not ended.
            began = numpy.searchsorted(numpy.sort(self.began_s[mine]), instants, side="right")
            over = numpy.searchsorted(numpy.sort(ended_s[mine]), instants, side="right")
            full = numpy.flatnonzero(began - over >= self.concurrency)
            if len(full) == 0:
                continue
            first, last = instants[full[0]], instants[full[-1] + 1]
            window_s += last - first
            inside |= mine & (self.began_s >= first) & (ended_s <= last)
        if window_s == 0:
            return None
        return {"window_s": window_s, "figures": self.figures(inside, (reported or {}).get("figures", {}))}


def main():
    path, scope, idle = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    run = Run(path, scope, idle)
    everything = numpy.ones(len(run.rows), dtype=bool)
    report = json.load(sys.stdin)
    of_subject = {it["of"]: it for it in report["subjects"]}
    subjects = [
        {"of": str(it)} | run.figures(run.subject == it, of_subject.get(it, {})) for it in sorted(set(run.subject))
    ]
    json.dump(
        {
            "all": run.figures(everything, report["all"], run.planned),
            "steady_state": run.steady_state(report.get("steady_state")),
            "subjects": subjects,
        },
        sys.stdout,
        default=float,
    )


main()
