"""Prints what the public harness computes from the records of a results directory, as its `analysis/accuracy.py` does.

    harness_accuracy.py DIRECTORY

Accuracy over the records whose evaluation has a verdict; mean energy over those of them with a positive one; mean power of
these, each its energy over its time. Only the standard library.
"""

import json
import pathlib
import sys

directory = pathlib.Path(sys.argv[1])
model = json.loads((directory / "summary.json").read_text())["model"]
verdicts, energies, powers = [], [], []
for line in (directory / "data.jsonl").read_text().splitlines():
    metrics = json.loads(line)["model_metrics"][model]
    verdict = (metrics.get("evaluation") or {}).get("is_correct")
    if not isinstance(verdict, bool):
        continue
    verdicts.append(verdict)
    joules = metrics["energy_metrics"]["per_query_joules"]
    if joules and joules > 1e-12:
        energies.append(joules)
        powers.append(joules / metrics["latency_metrics"]["total_query_seconds"])
accuracy, energy, power = (sum(all) / len(all) if all else None for all in (verdicts, energies, powers))
figures = {"accuracy": accuracy, "scored": len(verdicts), "avg_energy_j": energy, "avg_power_w": power}
figures["IPJ"] = accuracy / energy if energy else None
figures["IPW"] = accuracy / power if power else None
print(json.dumps({"analysis": "accuracy", "summary": figures}))
