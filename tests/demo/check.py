"""Checks a run of the demo: every question answered and covered, IPW finite and what the rows make it, with its interval.

check.py WATTSPAN RUN --at-once N [--watts W] [--left-out DOMAIN] [--page FILE] [--log FILE]

--watts: the power that the simulated machine draws all the time. --left-out: a domain that must not be part of the run.
--page, --log: the report's page and the demo's output, which must show the same IPW and interval.
"""

import argparse
import html
import json
import math
import pathlib
import re
import subprocess

QUESTIONS = 50
UNITS = {"W": 1, "kW": 1e3, "MW": 1e6, "GW": 1e9}

arguments = argparse.ArgumentParser()
arguments.add_argument("wattspan")
arguments.add_argument("run", type=pathlib.Path)
arguments.add_argument("--at-once", required=True)
arguments.add_argument("--watts", type=float)
arguments.add_argument("--left-out")
arguments.add_argument("--page", type=pathlib.Path)
arguments.add_argument("--log", type=pathlib.Path)
asked = arguments.parse_args()


def require(holds, what):
    if not holds:
        raise SystemExit(f"{asked.run}: {what}")


def near(one, other, within):
    return math.isclose(one, other, rel_tol=within)


def require_shown(where, unit, value, low, high):
    """The IPW and its interval as people read them: four digits in a legible unit, widened by the meter's error."""
    require(unit in UNITS, f"{where} shows IPW in {unit}")
    for name, shown, figure in zip(("value", "low end", "high end"), (value, low, high), ipw_shown):
        require(near(float(shown.replace("\u221e", "inf")), figure * UNITS[unit], 2e-3), f"{where} shows {shown} as IPW's {name}, and it is {figure}")


done = subprocess.run([asked.wattspan, "--json", "ipw", "report", asked.run], stdout=subprocess.PIPE, check=False)
require(done.returncode == 0, f"`ipw report` ends with status {done.returncode}")
report = json.loads(done.stdout)
figures, run = report["all"], report["run"]
rows = [json.loads(line) for line in (asked.run / "rows.jsonl").read_text().splitlines()]

counts = {name: figures[name] for name in ("asked", "answered", "scored", "covered")}
require(set(counts.values()) == {QUESTIONS}, f"not {QUESTIONS} of each: {counts}")
require(len({row["id"] for row in rows}) == len(rows) == QUESTIONS, f"{len(rows)} rows, or questions asked twice")
require(run["settings"]["at once"] == asked.at_once, f"asked {run['settings']['at once']} at once")
require((figures["scope"], figures["idle"]) == ("host", "included"), "its scope is not the host with idle power")
names = [domain["name"] for domain in run["domains"]]
require(any(domain["counted"] for domain in run["domains"]), f"no domain of {names} is counted")
require(asked.left_out not in names, f"{asked.left_out} is a domain of the run: {names}")

require("per_watt" in figures, "it has no IPW")
interval = figures["per_watt"].get("interval")
require(interval is not None, "its IPW has no interval")
ipw = (figures["per_watt"]["value"], interval["low"], interval["high"])
require(all(map(math.isfinite, ipw)) and 0 <= ipw[1] <= ipw[0] <= ipw[2] and 0 < ipw[0] and ipw[1] < ipw[2], f"IPW {ipw}")
both = figures.get("per_watt_combined", interval)
ipw_shown = (ipw[0], both["low"], math.inf if both["high"] is None else both["high"])
require(ipw_shown[1] <= ipw[1] and ipw[2] <= ipw_shown[2], f"the meter's error narrows IPW {ipw} to {ipw_shown}")
# IPW by its definition: mean accuracy over the mean of the machine's power while each question was open.
watts = [row["energy"]["window_uj"] * 1e3 / row["energy"]["span_ns"] for row in rows]
expected = sum(row["score"] for row in rows) / sum(watts)
require(near(ipw[0], expected, 1e-6), f"IPW {ipw[0]}, and the rows make it {expected}")
if asked.watts:
    truth = figures["accuracy"]["value"] / asked.watts
    require(near(ipw[0], truth, 0.01), f"IPW {ipw[0]} on a machine of {asked.watts} W, where the truth is {truth}")
    require(figures["grade"] == "measured", f"energy is {figures['grade']}")

if asked.page:
    page = html.unescape(asked.page.read_text())
    tile = r"intelligence per watt</span><b>([^<]*)</b><small>(.*?) \.\. (.*?)</small><span>accuracy / power, 1/([^<]*)</span>"
    tile = re.search(tile, page)
    require(tile, f"{asked.page} shows no IPW with interval")
    require_shown(asked.page, tile[4], *tile.groups()[:3])
    require(f"{QUESTIONS} of {QUESTIONS} queries covered" in page, f"{asked.page} shows another coverage")
    require(f"<dt>at once<dd>{asked.at_once}" in page, f"{asked.page} is of another run")

if asked.log:
    # The table's cells are at least two spaces apart.
    lines = [re.split(r"\s{2,}", line.strip()) for line in asked.log.read_text().splitlines()]
    heads = [line for line in lines if line[0] == "SUBJECT"]
    totals = [line for line in lines if line[:3] == ["all", asked.at_once, f"{QUESTIONS}/{QUESTIONS}"]]
    require(heads and totals, f"{asked.log} has no line of all {QUESTIONS} questions")
    head = next(head for head in heads[0] if head.startswith("IPW 1/"))
    cell = totals[0][heads[0].index(head)]
    shown = re.fullmatch(r"(\S+) \[(\S+) \.\. (\S+)\]", cell)
    require(shown, f"{asked.log} shows {cell!r} as IPW")
    require_shown(asked.log, head.removeprefix("IPW 1/"), *shown.groups())

print(f"   ok  {QUESTIONS} of {QUESTIONS} covered, {asked.at_once} at once: IPW {ipw[0]:.4g} [{ipw[1]:.4g} .. {ipw[2]:.4g}]")
