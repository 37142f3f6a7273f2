"""Compares the runs that the worked example imported with the evaluators' files and the daemon's accounts.

    figures.py DIRECTORY

Each energy must be that of the accounts to the microjoule, and each accuracy the evaluator's own result.
"""

import json
import subprocess
import sys
from pathlib import Path

from inspect_ai.log import read_eval_log

import wattspan

DIRECTORY = Path(sys.argv[1])
QUESTIONS = 12
METER = wattspan.Meter()


def command(*words: str) -> str:
    return subprocess.run(["wattspan", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def rows(run: Path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, (run / "rows.jsonl").read_text().splitlines())}


def account(span: str) -> dict:
    found = METER.call("GetSpan", span=span)["account"]
    assert found["state"] == "settled", found
    return found


def check_energy(row: dict, accounts: list[dict], name: str) -> int:
    energy = row["energy"]
    for key, of_account in (("share_uj", "share_uj"), ("error_uj", "error_uj"), ("window_uj", "window_uj")):
        expected = sum(each[of_account] for each in accounts)
        if key == "error_uj" and any(each["moved_ns"] for each in accounts):
            assert "error_uj" not in energy, (name, energy)
        else:
            assert energy[key] == expected, (name, key, energy, accounts)
    expected = [sum(each["domains"][at]["share_uj"] for each in accounts) for at in range(2)]
    assert [domain["share_uj"] for domain in energy["domains"]] == expected, (name, energy)
    assert energy["span"] == accounts[-1]["span"]
    return energy["share_uj"]


def check_report(run: Path, own_score: float) -> None:
    report = json.loads(command("ipw", "report", "--json", str(run)))
    text = json.dumps(report)
    accuracy = find(report, "accuracy")["value"]
    assert abs(accuracy - own_score) < 1e-9, (accuracy, own_score)
    coverage = find(report, "coverage")
    assert coverage == 1 and '"per_watt"' in text, report
    watts = find(report, "power_w")["value"]
    assert abs(watts - 100) < 2, watts
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["settings"]["at once"] == "2" and {domain["source"] for domain in manifest["domains"]} == {"replay"}
    card = run / "card.json"
    command("ipw", "card", str(run), "-o", str(card))
    command("ipw", "verify", str(card), str(run))


def find(value: object, key: str):
    """The first value of a key, depth first."""
    if isinstance(value, dict):
        if key in value and value[key] is not None:
            return value[key]
        value = list(value.values())
    for each in value if isinstance(value, list) else []:
        found = find(each, key)
        if found is not None:
            return found
    return None


def inspect_run(name: str) -> None:
    [path] = (DIRECTORY / "logs" / name).glob("*.eval")
    log = read_eval_log(str(path))
    found = rows(DIRECTORY / "runs" / name)
    assert log.status == "success" and len(log.samples) == len(found) == QUESTIONS
    total = 0
    for sample in log.samples:
        calls = [account(call["span"]) for call in sample.metadata["wattspan"]["calls"]]
        row = found[str(sample.id)]
        total += check_energy(row, calls, str(sample.id))
        assert row["score"] == {"C": 1.0, "I": 0.0}[sample.scores["includes"].value]
        assert row["subject"] == sample.metadata["topic"]
        assert calls[0]["attributes"]["gen_ai.usage.output_tokens"] == str(row["tokens_out"])
    own_score = log.results.scores[0].metrics["accuracy"].value
    check_report(DIRECTORY / "runs" / name, own_score)
    # The same log as JSON gives the same run.
    subprocess.run(
        ["inspect", "log", "convert", str(path), "--to", "json", "--output-dir", str(DIRECTORY / "json")], check=True
    )
    [converted] = (DIRECTORY / "json").glob(f"{path.stem}.json")
    command("ipw", "import", "--inspect", str(converted), "-o", str(DIRECTORY / "json" / name))
    assert rows(DIRECTORY / "json" / name) == found
    print(f"inspect-ai, {name}: {total} uJ in {len(found)} samples, accuracy {own_score}", flush=True)


def lm_eval_run() -> None:
    [path] = (DIRECTORY / "results").glob("*/results_*.json")
    results = json.loads(path.read_text())
    found = rows(DIRECTORY / "runs" / "lm-eval")
    assert len(found) == QUESTIONS
    listed = METER.call("ListSpans", limit=256)["accounts"]
    by_prompt = [each for each in listed if "wattspan.prompt_hash" in each["attributes"]]
    # Each request of the evaluation belongs to one sample, and none is left over.
    assert len(by_prompt) == QUESTIONS == len({each["attributes"]["wattspan.prompt_hash"] for each in by_prompt})
    assert {row["energy"]["span"] for row in found.values()} == {each["span"] for each in by_prompt}
    total = sum(check_energy(row, [account(row["energy"]["span"])], row["id"]) for row in found.values())
    assert total == sum(each["share_uj"] for each in by_prompt)
    own_score = results["results"]["capitals"]["exact_match,city"]
    check_report(DIRECTORY / "runs" / "lm-eval", own_score)
    print(f"lm-evaluation-harness: {total} uJ in {len(found)} samples, accuracy {own_score}", flush=True)


inspect_run("first")
inspect_run("second")
route = command("ipw", "route", str(DIRECTORY / "runs" / "first"), "--reference", str(DIRECTORY / "runs" / "second"))
assert "cover" in route.lower(), route
lm_eval_run()
