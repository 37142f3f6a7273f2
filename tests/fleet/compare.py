#!/usr/bin/env python3
"""Runs all queries of fleet/ on DuckDB and on Spark, and compares all rows: integers to the last digit, floats to the last bit.

    compare.py MASTER OPTIONS...    the options of fleet/run.py but --query, --engine and --format
"""

import json
import subprocess
import sys
from pathlib import Path

# Spark's settings for queries of milliseconds: few tasks, and little time for the compilation of code that runs once.
SHORT_QUERIES = [
    "--conf=spark.sql.shuffle.partitions=2",
    "--conf=spark.sql.codegen.wholeStage=false",
    "--conf=spark.executor.extraJavaOptions=-XX:TieredStopAtLevel=1",
]
RUN = Path(__file__).resolve().parent.parent.parent / "fleet/run.py"


def rows(options):
    command = [sys.executable, str(RUN), "--query", "all", "--format", "jsonl", "--time", *options]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return output.splitlines()


def main(master, options):
    embedded = rows(options)
    cluster = rows([*options, "--engine", "spark", "--master", master, *SHORT_QUERIES])
    # json.dumps writes the shortest text that reads back as the same float.
    for one, other in zip(embedded, cluster):
        if one != other:
            sys.exit(f"the engines differ:\n duckdb {one}\n spark  {other}")
    if len(embedded) != len(cluster):
        sys.exit(f"the engines differ: {len(embedded)} and {len(cluster)} rows")
    queries = {json.loads(line)["query"] for line in embedded}
    every = {path.stem for path in (RUN.parent / "queries").glob("*.sql")}
    if missing := every - queries:
        sys.exit(f"no rows compared of {', '.join(sorted(missing))}")
    print(f"both engines: {len(embedded)} equal rows of {len(queries)} queries")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
