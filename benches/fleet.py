#!/usr/bin/env python3
"""Time of each query of fleet/ over many accounts, on DuckDB and on Spark, in one run.

    benches/fleet.py DIR [--rows 10000000] [--engine duckdb --engine spark] [--master URL]

DIR gets the accounts of 20 hosts and 7 days (tests/fleet/generate.py; 76 bytes a row), unless it has some. Prints seconds and
CPU seconds of each query: for DuckDB those of its process, for Spark those of its tasks. The engines' rows are compared. Needs
the packages of tests/fleet/requirements.txt and pyspark; tests/fleet/check.sh says where it unpacks them.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "fleet"))
import run  # noqa: E402


def task_cpu_s(session):
    """CPU time of all tasks so far."""
    store = session.sparkContext._jsc.sc().statusStore()
    empty = session._jvm.java.util.ArrayList()
    quantiles = session.sparkContext._gateway.new_array(session._jvm.double, 0)
    stages = store.stageList(None, False, False, quantiles, empty)
    return sum(stages.apply(at).executorCpuTime() for at in range(stages.length())) / 1e9


def measure(engine_name, directory, master):
    arguments = ["--accounts", str(directory / "out"), "--query", "all", "--engine", engine_name]
    arguments += ["--intensity", str(directory / "intensity.csv"), "--zones", str(directory / "zones.csv")]
    arguments += ["--ipw-run", str(directory / "made-run")]
    if engine_name == "spark":
        arguments += ["--master", master, "--conf", "spark.sql.shuffle.partitions=8"]
    options = run.parse_options(arguments)
    engine = {"duckdb": run.DuckDb, "spark": run.Spark}[engine_name](options)
    cpu_s = time.process_time if engine_name == "duckdb" else lambda: task_cpu_s(engine.session)
    run.create_views(engine, options)
    found = {}
    for name in run.QUERIES:
        started, cpu_before_s = time.monotonic(), cpu_s()
        _, rows = engine.run((ROOT / "fleet/queries" / f"{name}.sql").read_text(encoding="utf-8"))
        seconds, cpu = time.monotonic() - started, cpu_s() - cpu_before_s
        print(f"{engine_name:<8}{name:<30}{seconds:>9.1f} s {cpu:>9.1f} CPU s {len(rows):>8} rows", flush=True)
        found[name] = [json.dumps([run.plain(value) for value in row]) for row in rows]
    engine.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--engine", action="append", choices=["duckdb", "spark"])
    parser.add_argument("--master", default="local-cluster[2,1,2048]", help="[default: two workers on this machine]")
    options = parser.parse_args()
    if not (options.directory / "out").exists():
        generate = ROOT / "tests/fleet/generate.py"
        subprocess.run([sys.executable, generate, options.directory, str(options.rows), "20", "7"], check=True)
    results = [measure(engine, options.directory, options.master) for engine in options.engine or ["duckdb", "spark"]]
    for name in run.QUERIES:
        if any(result[name] != results[0][name] for result in results):
            sys.exit(f"{name}: the engines' rows differ")
    print(f"{len(results)} engines: equal rows of {len(run.QUERIES)} queries")


if __name__ == "__main__":
    main()
