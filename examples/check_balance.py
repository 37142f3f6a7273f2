"""Checks that the energy of the runs of two-engines.sh adds up to what was measured, to the microjoule.

    check_balance.py DIRECTORY

DIRECTORY has balance.json, spans.json and the runs. Every row's energy must be that of its span, and the shares of all
spans with the unattributed energy must be the measured energy of each domain. Exit status 1 otherwise.
"""

import collections
import json
import pathlib
import sys


def lines(path: pathlib.Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def main() -> int:
    directory = pathlib.Path(sys.argv[1])
    spans = {span["span"]: span for span in lines(directory / "spans.json")}
    wrong = 0
    rows = [row for run in sorted(directory.glob("*/rows.jsonl")) for row in lines(run)]
    metered = [row["energy"] for row in rows if "energy" in row]
    for energy in metered:
        span = spans.get(energy["span"])
        if span is None or span["share_uj"] != energy["share_uj"]:
            print(f"the row of span {energy['span']} has {energy['share_uj']} uJ, its span {span and span['share_uj']}")
            wrong += 1
    of_rows = {energy["span"] for energy in metered}
    shares = collections.Counter()
    for name, span in spans.items():
        for domain in span["domains"]:
            shares[domain["domain"], name in of_rows] += domain.get("share_uj", 0)
    print(f"{len(rows)} rows, {len(metered)} with energy, {len(spans)} spans; microjoules:")
    print(f"{'domain':<16} {'of the rows':>14} {'failed tries':>14} {'unattributed':>14} {'sum':>14} {'measured':>14}")
    for domain in json.loads((directory / "balance.json").read_text())["balance"]:
        name, unattributed, measured = domain["domain"], domain["unattributed_uj"], domain["measured_uj"]
        answered, failed = shares[name, True], shares[name, False]
        total = answered + failed + unattributed
        print(f"{name:<16} {answered:>14} {failed:>14} {unattributed:>14} {total:>14} {measured:>14}")
        wrong += total != measured
    print("the sums are not what was measured" if wrong else "the sums are exactly what was measured")
    return 1 if wrong or not metered else 0


if __name__ == "__main__":
    sys.exit(main())
