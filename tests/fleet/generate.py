#!/usr/bin/env python3
"""Writes accounts of a made-up fleet as `wattspan export parquet` does, for queries at scale; deterministic.

    generate.py DIR ROWS [HOSTS] [DAYS]

Also DIR/made-run (a run of wattspan ipw over some of the spans), DIR/intensity.csv and DIR/zones.csv. Needs duckdb and pyarrow.
"""

import datetime
import json
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet
from export_schema import COMPUTED_COLUMNS, PARQUET_SCHEMA

MIDNIGHT_S = 1_795_910_400
DATES = [str(datetime.date(2026, 11, 29) + datetime.timedelta(days=day)) for day in range(366)]

# Values spread over several powers of two, as measured ones do: shares of 2 to 18 J, 20 to 420 tokens, 0.2 to 8 s.
ACCOUNTS = """
SELECT
  number, span, '' AS name, uid, 'settled' AS state, CASE WHEN r1 % 97 = 0 THEN 'estimated' ELSE 'measured' END AS grade,
  FALSE AS simulated, FALSE AS at_least,
  opened_unix_ns, opened_unix_ns + duration_ns AS closed_unix_ns, duration_ns, 0::BIGINT AS moved_ns, 1.0::DOUBLE AS weight,
  1 + r2 % 12 AS peak_concurrency, share_uj,
  CASE WHEN r1 % 97 <> 0 THEN 61 + r3 % 100000 END AS error_uj, share_uj * 4 + r4 % 1000000 AS window_uj,
  CASE WHEN r1 % 5 <> 0 THEN share_uj // 3 END AS idle_uj, NULL::BIGINT AS process_uj,
  share_uj * 1000000 // duration_ns AS mean_power_mw,
  model AS "gen_ai.request.model", model AS "gen_ai.response.model", 'chat' AS "gen_ai.operation.name",
  (100 + r4 % 3000)::VARCHAR AS "gen_ai.usage.input_tokens",
  CASE WHEN r2 % 50 <> 0 THEN (20 + r5 % 400)::VARCHAR END AS "gen_ai.usage.output_tokens",
  [
    {'domain': 'package-0', 'grade': 'measured', 'share_uj': share_uj // 3, 'error_uj': 61 + r3 % 50000,
     'window_uj': share_uj + r4 % 300000, 'idle_uj': share_uj // 9, 'process_uj': NULL::BIGINT, 'unknown_ns': 0::BIGINT},
    {'domain': 'gpu-0', 'grade': 'measured', 'share_uj': share_uj - share_uj // 3, 'error_uj': r3 % 50000,
     'window_uj': share_uj * 3 + r4 % 700000, 'idle_uj': share_uj // 4, 'process_uj': NULL::BIGINT, 'unknown_ns': 0::BIGINT}
  ] AS domains
FROM (
  SELECT
    i + 1 AS number, md5(i::VARCHAR) AS span, (1000 + r1 % 40)::BIGINT AS uid, r1, r2, r3, r4, r5,
    {begin} + {step} * i + r2 % {step} AS opened_unix_ns, 200000000 + r3 % 7800000000 AS duration_ns,
    CASE WHEN r5 % 40 = 0 AND r4 % 2 = 0 THEN NULL ELSE 2000000 + r4 % 16000000 END AS share_uj,
    ['llama-3.1-8b', 'qwen3-32b', 'gpt-oss-20b', 'mistral-small'][1 + (i // 5000 + {host}) % 4] AS model
  FROM (
    SELECT
      i, (hash(i * 5 + {host} * 1000003) % 1000000007)::BIGINT AS r1, (hash(i * 5 + 1) % 1000000007)::BIGINT AS r2,
      (hash(i * 5 + 2) % 10000000019)::BIGINT AS r3, (hash(i * 5 + 3) % 10000000019)::BIGINT AS r4,
      (hash(i * 5 + 4) % 1000000007)::BIGINT AS r5
    FROM range({first}, {first} + {count}) AS rows(i)
  )
)
"""


def write_run(directory, spans):
    directory.mkdir()
    rows = [
        {"id": f"q{at}", "score": float(at % 3 > 0), "energy": {"span": span}, "began_ns": 0, "duration_ns": 1}
        for at, (span,) in enumerate(spans)
    ]
    (directory / "run.json").write_text(json.dumps({"count": len(rows), "repeats": 1}))
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(root, rows, hosts=3, days=2):
    connection = duckdb.connect()
    per_file = max(1, rows // (hosts * days))
    number = 0
    for host in range(hosts):
        for day in range(days):
            directory = root / f"out/date={DATES[day]}" / f"host=made-{host}"
            directory.mkdir(parents=True)
            fields = {
                "host": host,
                "first": number,
                "count": per_file,
                "begin": (MIDNIGHT_S + 86_400 * day) * 10**9,
                "step": 86_000 * 10**9 // per_file,
            }
            text = ACCOUNTS
            for name, value in fields.items():
                text = text.replace("{" + name + "}", str(value))
            path = directory / "accounts.parquet"
            text = f"SELECT * EXCLUDE ({', '.join(COMPUTED_COLUMNS)}) FROM ({text})"
            connection.execute(f"COPY ({text}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
            written = pyarrow.parquet.read_schema(path).remove_metadata()
            if [(field.name, str(field.type)) for field in written][:-1] != [
                (field.name, str(field.type)) for field in PARQUET_SCHEMA
            ][:-1]:
                sys.exit(f"the generator has other columns than the export: {written}")
            number += per_file
    one = str(next((root / "out").glob("date=*/host=made-0"))) + "/accounts.parquet"
    write_run(root / "made-run", connection.execute(f"SELECT span FROM '{one}' ORDER BY number LIMIT 500").fetchall())
    lines = ["zone,begins_unix_s,ends_unix_s,price_micro_per_kwh,co2_mg_per_kwh"]
    for zone in ["default", "north"]:
        for hour in range(24 * (days + 1)):
            begins = MIDNIGHT_S + 3600 * hour
            price = 200_000 + hour * 7919 % 150_000
            lines.append(f"{zone},{begins},{begins + 3600},{price},{150_000 + hour * 104_729 % 300_000}")
    (root / "intensity.csv").write_text("\n".join(lines) + "\n")
    (root / "zones.csv").write_text("host,zone\nmade-1,north\n")
    print(f"{number} accounts of {hosts} hosts and {days} days")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
