#!/usr/bin/env python3
"""Runs all queries of fleet/ on 23 accounts whose results were computed by hand, with one engine.

    truth.py DIR ENGINE [MASTER]

DIR is replaced. The expected rows below were worked out on paper from the table ACCOUNTS, and not with SQL.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from compare import SHORT_QUERIES  # noqa: E402
from export_schema import BALANCE_SCHEMA, PARQUET_SCHEMA  # noqa: E402

DAY1, DAY2 = "2026-11-29", "2026-11-30"
MIDNIGHT_S = 1_795_910_400  # 2026-11-29T00:00:00Z: date -u -d @1795910400
BIG = 9_000_000_000_000_000_000  # Two of them exceed 64 bits.

# host span uid model opened_s duration_s share error window idle tokens peak grade
ACCOUNTS = [
    ("a", "a1", 1000, "llama", 0, 10, 1_000_000, 1000, 2_000_000, 400_000, "100", 1, "measured"),
    ("a", "a2", 1000, "llama", 20, 10, 3_000_000, 2000, 4_000_000, 600_000, "200", 1, "measured"),
    ("a", "a3", 0, "llama", 40, 10, 2_000_000, None, 2_000_000, None, "100", 1, "estimated"),
    ("a", "a4", 70000, "qwen", 100, 20, 5_000_000, 5000, 8_000_000, 1_000_000, "0", 1, "measured"),
    ("a", "a5", 1000, None, 200, 5, 700_000, 70, 700_000, 100_000, None, 1, "measured"),
    ("a", "a6", 1000, "llama", 890, 20, 2_000_001, 10, 2_000_002, 0, "300", 1, "measured"),
    ("a", "a7", 5, "llama", 1000, 10, None, 7, None, None, "50", 1, None),
    ("a", "a8", 1000, "llama", 86_390, 20, 4_000_000, 4, 4_000_000, 200_000, "400", 1, "measured"),
    ("a", "a9", 1000, "qwen", 600, None, 500_000, 50, None, None, None, 1, "measured"),
    ("a", "a10", 1000, "wide", 700, 1, 100_000, 50_000, 100_000, None, "10", 1, "measured"),
    ("b", "b1", 1001, "llama", 0, 10, 1_100_000, 1100, 2_200_000, 500_000, "100", 1, "measured"),
    ("b", "b2", 1001, "llama", 5, 10, 1_300_000, 1300, 2_600_000, 500_000, "100", 2, "measured"),
    ("b", "b3", 1001, "qwen", 100, 10, 9_000_000, 900, 9_000_000, 1_000_000, "900", 2, "measured"),
    ("b", "b4", 1001, "llama", 105, 10, 1_200_000, 1200, 3_000_000, 300_000, "100", 2, "measured"),
    ("b", "b5", 1001, "llama", 300, 10, 1_000_000, 1000, 1_000_000, 0, "12.5", 1, "measured"),
    ("b", "b6", 1001, "llama", 320, 10, 1_000_000, 1000, 1_000_000, 0, "1234567890123456", 1, "measured"),
    ("b", "a10", 1001, "wide", 700, 1, 100_000, 10, 100_000, None, "10", 1, "measured"),
    ("c", "c1", 1002, "llama", 0, 10, 6_000_000, 600, 6_000_000, 3_000_000, "200", 1, "measured"),
    ("c", "c2", 1002, "llama", 50, 10, 6_000_000, 600, 6_000_000, 3_000_000, "200", 1, "measured"),
    ("c", "c3", 1002, "big", 400, 10, BIG, 1000, BIG, None, None, 1, "measured"),
    ("c", "c4", 1002, "big", 86_500, 10, BIG, 1000, BIG, None, None, 1, "measured"),
    ("c", "c5", 1002, "wide", 700, 1, 200_000, 120_000, 200_000, None, "10", 1, "measured"),
    # The last one is of a simulated machine, and counts nowhere.
    ("c", "c6", 1002, "llama", 800, 1, 77_000_000, 1, 77_000_000, 7, "1", 1, "measured"),
]
SIMULATED = "c6"

# host day life domain counted measured attributed unattributed
BALANCE = [
    ("a", DAY1, "one", "package-0", True, 30_000_000, 15_000_000, 15_000_000),
    ("a", DAY1, "one", "core-0", False, 9_000_000, 4_000_000, 5_000_000),
    ("a", DAY1, "one", "gpu-0", True, 8_000_000, 2_000_000, 6_000_000),
    ("a", DAY2, "one", "package-0", True, 50_000_000, 20_000_000, 30_000_000),
    ("a", DAY2, "one", "gpu-0", True, 8_000_000, 2_000_000, 6_000_000),
    ("a", DAY2, "two", "package-0", True, 10_000_000, 4_000_000, 6_000_000),
    ("d", DAY1, "one", "package-0", True, 1000, 0, 1000),
]

# 1 J costs 1 millionth at 3.6 per kWh.
INTENSITY = f"""zone,begins_unix_s,ends_unix_s,price_micro_per_kwh,co2_mg_per_kwh
x,{MIDNIGHT_S},{MIDNIGHT_S + 900},3600000,7200000
x,{MIDNIGHT_S + 900},{MIDNIGHT_S + 86_400},7200000,3600000
default,{MIDNIGHT_S},{MIDNIGHT_S + 86_400},3600000,360000
"""
ZONES = "host,zone\na,x\nb,x\n"
USER_CLASSES = "first_uid,last_uid,class\n0,0,root\n1,999,system\n1000,60000,people\n"


def energy(span, share_uj, window_uj, span_s):
    return {"span": span, "share_uj": share_uj, "window_uj": window_uj, "span_ns": span_s * 1_000_000_000}


# Run: number of questions, rows. A row is replaced by a later one of its question.
RUNS = {
    "r1": (4, [
        {"id": "q1", "error": "reset", "delivered": True, "energy": energy("b1", 1, 1, 1)},
        {"id": "q1", "score": 1.0, "energy": energy("a1", 1_000_000, 2_000_000, 10)},
        {"id": "q2", "score": 0.0, "energy": energy("a2", 3_000_000, 4_000_000, 10)},
        {"id": "q3", "score": 1.0, "retries": 1, "energy": energy("a8", 5_000_000, 9_000_000, 30)},
        {"id": "q4", "error": "timeout", "delivered": True, "energy": energy("a6", 2_000_001, 2_000_002, 20)},
    ]),
    "r2": (2, [
        {"id": "q1", "score": 1.0, "energy": energy("b1", 1_100_000, 2_200_000, 10)},
        {"id": "q2", "score": 1.0, "energy": energy("b4", 1_200_000, 3_000_000, 10)},
    ]),
    "r3": (3, [
        {"id": "q1", "score": 0.5, "energy": energy("c1", 6_000_000, 6_000_000, 10)},
        {"id": "q2", "score": 1.0, "energy": energy("c2", 6_000_000, 6_000_000, 10)},
        {"id": "q3", "error": "refused", "delivered": False},
    ]),
    # Two accounts have this span.
    "r4": (1, [{"id": "q1", "score": 1.0, "energy": energy("a10", 100_000, 100_000, 1)}]),
    # Several calls, none of them a retry: the row has their sum, and the account is that of the last one.
    "r5": (1, [{"id": "q1", "score": 1.0, "energy": energy("a2", 6_000_000, 10_000_000, 20)}]),
}  # fmt: skip

EXPECTED = {
    # model host day class accounts metered share error idle tokens
    "energy": [
        (None, "a", DAY1, "people", 1, 1, 700_000, 70, 100_000, None),
        ("big", "c", DAY1, "people", 1, 1, BIG, 1000, None, None),
        ("big", "c", DAY2, "people", 1, 1, BIG, 1000, None, None),
        ("llama", "a", DAY1, "people", 3, 3, 6_000_001, 3010, 1_000_000, 600),
        ("llama", "a", DAY1, "root", 1, 1, 2_000_000, None, None, 100),
        ("llama", "a", DAY1, "system", 1, 0, None, None, None, 50),
        ("llama", "a", DAY2, "people", 1, 1, 4_000_000, 4, 200_000, 400),
        ("llama", "b", DAY1, "people", 5, 5, 5_600_000, 5600, 1_300_000, 300),
        ("llama", "c", DAY1, "people", 2, 2, 12_000_000, 1200, 6_000_000, 400),
        ("qwen", "a", DAY1, "people", 1, 1, 500_000, 50, None, None),
        ("qwen", "a", DAY1, "unlisted", 1, 1, 5_000_000, 5000, 1_000_000, 0),
        ("qwen", "b", DAY1, "people", 1, 1, 9_000_000, 900, 1_000_000, 900),
        ("wide", "a", DAY1, "people", 1, 1, 100_000, 50_000, None, 10),
        ("wide", "b", DAY1, "people", 1, 1, 100_000, 10, None, 10),
        ("wide", "c", DAY1, "people", 1, 1, 200_000, 120_000, None, 10),
    ],
    # model grade accounts bounded unmetered bounded_uj error low high unbounded
    "error_bounds": [
        (None, "measured", 1, 1, 0, 700_000, 70, 699_930, 700_070, 0),
        ("big", "measured", 2, 2, 0, 2 * BIG, 2000, 2 * BIG - 2000, 2 * BIG + 2000, 0),
        ("llama", None, 1, 0, 1, 0, 0, 0, 0, 0),
        ("llama", "estimated", 1, 0, 0, 0, 0, 0, 0, 2_000_000),
        ("llama", "measured", 11, 11, 0, 27_600_001, 9814, 27_590_187, 27_609_815, 0),
        ("qwen", "measured", 3, 3, 0, 14_500_000, 5950, 14_494_050, 14_505_950, 0),
        ("wide", "measured", 3, 3, 0, 400_000, 170_010, 229_990, 570_010, 0),
    ],
    # The requests of llama: 6666, 10000, 10000, 11000, 12000, 13000, 15000, 20000, 30000, 30000 µJ per token.
    "joules_per_token": [
        ("llama", 10, 6666, 6666, 12_000, 30_000, 30_000, 30_000),
        ("qwen", 1, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000),
        ("wide", 3, 10_000, 10_000, 10_000, 20_000, 20_000, 20_000),
    ],
    "joules_per_token_histogram": [
        ("llama", 5000, 1, 2_000_001),
        ("llama", 10_000, 6, 11_600_000),
        ("llama", 20_000, 3, 14_000_000),
        ("qwen", 10_000, 1, 9_000_000),
        ("wide", 10_000, 2, 200_000),
        ("wide", 20_000, 1, 200_000),
    ],
    # host day measured attributed unattributed part accounts idle part
    "unattributed": [
        ("a", DAY1, 38_000_000, 17_000_000, 21_000_000, 21 / 38, 14_300_001, 2_100_000, 2_100_000 / 11_700_001),
        ("a", DAY2, 30_000_000, 9_000_000, 21_000_000, 0.7, 4_000_000, 200_000, 0.05),
        ("b", DAY1, None, None, None, None, 14_700_000, 2_300_000, 2_300_000 / 14_600_000),
        ("c", DAY1, None, None, None, None, BIG + 12_200_000, 6_000_000, 0.5),
        ("c", DAY2, None, None, None, None, BIG, None, None),
        ("d", DAY1, 1000, 0, 1000, 1.0, None, None, None),
    ],
    # Host a: 12,000,001 µJ for 1100 tokens, and a3 has no bound. The median is host b, the usual distance that of a.
    "disagreeing_hosts": [
        ("llama", "a", 5, 1, 10_909, None, 12_000, 1091, "agrees"),
        ("llama", "b", 3, 2, 12_000, 12, 12_000, 1091, "agrees"),
        ("llama", "c", 2, 1, 30_000, 3, 12_000, 1091, "disagrees"),
        ("qwen", "b", 1, 2, 10_000, 1, 10_000, 0, "too few hosts"),
        ("wide", "a", 1, 1, 10_000, 5000, 10_000, 0, "agrees"),
        ("wide", "b", 1, 1, 10_000, 1, 10_000, 0, "agrees"),
        ("wide", "c", 1, 1, 20_000, 12_000, 10_000, 0, "within the error bounds"),
    ],
    # llama, day 1: a 7,000,000 in the first quarter of an hour (7, 14) and 1,000,001 later (2, 1), b 5,600,000 (5, 11),
    # c 12,000,000 (12, 1). Day 2: half of a8 before midnight (4, 2), half after it, where nothing is known.
    "cost": [
        (None, DAY1, 700_000, 0, 0, 1),
        ("big", DAY1, BIG, 0, 9_000_000_000_000, 900_000_000_000),
        ("big", DAY2, BIG, BIG, 0, 0),
        ("llama", DAY1, 25_600_001, 0, 26, 27),
        ("llama", DAY2, 4_000_000, 2_000_000, 4, 2),
        ("qwen", DAY1, 14_500_000, 0, 14, 29),
        ("wide", DAY1, 400_000, 0, 0, 0),
    ],
    # r1: powers 200, 400, 300 (the row's, of all tries) and 100 mW; on b the model qwen overlapped; r3 has 2 of 3 questions.
    # r5: 10 J in 20 s, of which 6 J are attributed.
    "ipw": [
        ("r1", "a", "llama", 4, 4, 1, 0.5, 250_000, 166_666, 2_750_000, 2.0, 2_000_000 / 11_000_001, None),
        ("r2", "b", "llama", 2, 2, 2, 1.0, 260_000, 115_000, 1_150_000, None, None, "models overlapped on the host"),
        ("r3", "c", "llama", 3, 2, 1, 0.75, 600_000, 600_000, 6_000_000, None, None, "coverage below 95 %"),
        ("r4", "a", "wide", 1, 1, 1, 1.0, 100_000, 100_000, 100_000, None, None, "a span has several accounts"),
        ("r4", "b", "wide", 1, 1, 1, 1.0, 100_000, 100_000, 100_000, None, None, "a span has several accounts"),
        ("r5", "a", "llama", 1, 1, 1, 1.0, 500_000, 300_000, 6_000_000, 2.0, 1 / 6, None),
    ],
}


def account_row(number, row):
    host, span, uid, model, opened_s, duration_s, share, error, window, idle, tokens, peak, grade = row
    opened_unix_ns = (MIDNIGHT_S + opened_s) * 1_000_000_000
    duration_ns = None if duration_s is None else duration_s * 1_000_000_000
    return host, {
        "number": number,
        "span": span,
        "name": "",
        "uid": uid,
        "state": "settled" if duration_s else "interrupted",
        "grade": grade,
        "simulated": span == SIMULATED,
        "at_least": False,
        "opened_unix_ns": opened_unix_ns,
        "closed_unix_ns": None if duration_ns is None else opened_unix_ns + duration_ns,
        "moved_ns": 0,
        "weight": 1.0,
        "peak_concurrency": peak,
        "share_uj": share,
        "error_uj": error,
        "window_uj": window,
        "idle_uj": idle,
        "gen_ai.request.model": model,
        "gen_ai.usage.output_tokens": tokens,
        "domains": [],
    }


def write_partitions(root, name, schema, rows):
    partitions = {}
    for partition, row in rows:
        partitions.setdefault(partition, []).append(row)
    for (day, host), part in partitions.items():
        directory = root / f"date={day}" / f"host={host}"
        directory.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part, schema=schema), directory / f"{name}.parquet")


def write_fixture(root):
    shutil.rmtree(root, ignore_errors=True)
    rows = []
    for number, account in enumerate(ACCOUNTS, 1):
        host, row = account_row(number, account)
        closed_unix_ns = row["closed_unix_ns"] or row["opened_unix_ns"]
        rows.append(((DAY1 if closed_unix_ns < (MIDNIGHT_S + 86_400) * 10**9 else DAY2, host), row))
    write_partitions(root / "out", "accounts", PARQUET_SCHEMA, rows)
    names = ["life", "domain", "counted", "measured_uj", "attributed_uj", "unattributed_uj"]
    balance = [((day, host), dict(zip(names, values)) | {"simulated": False}) for host, day, *values in BALANCE]
    write_partitions(root / "out/_balance", "life", BALANCE_SCHEMA, balance)
    for run, (count, rows) in RUNS.items():
        (root / run).mkdir()
        (root / run / "run.json").write_text(json.dumps({"count": count, "repeats": 1}))
        (root / run / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in [("intensity", INTENSITY), ("zones", ZONES), ("user_classes", USER_CLASSES)]:
        (root / f"{name}.csv").write_text(text)


def run_queries(root, engine, master):
    command = [sys.executable, str(HERE.parent.parent / "fleet/run.py"), "--accounts", str(root / "out")]
    command += ["--query", "all", "--engine", engine, "--format", "jsonl"]
    command += [f"--{name.replace('_', '-')}={root / name}.csv" for name in ["intensity", "zones", "user_classes"]]
    command += [option for run in RUNS for option in ["--ipw-run", str(root / run)]]
    if master:
        command += ["--master", master, *SHORT_QUERIES]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    results = {name: [] for name in EXPECTED}
    for line in output.splitlines():
        row = json.loads(line)
        results[row.pop("query")].append(tuple(row.values()))
    return results


def main(root, engine, master=None):
    write_fixture(root)
    results = run_queries(root, engine, master)
    wrong = 0
    for name, expected in EXPECTED.items():
        for line in [f"- {row}" for row in expected if row not in results[name]] + [
            f"+ {row}" for row in results[name] if row not in expected
        ]:
            print(f"{name} {line}")
            wrong += 1
        if sorted(map(repr, expected)) == sorted(map(repr, results[name])) and expected != results[name]:
            print(f"{name}: the rows have another order")
            wrong += 1
    if wrong:
        sys.exit(f"{engine}: {wrong} rows differ from those computed by hand")
    print(f"{engine}: {sum(map(len, EXPECTED.values()))} rows of {len(EXPECTED)} queries as computed by hand")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
