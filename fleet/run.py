#!/usr/bin/env python3
"""Runs the fleet's queries on exported accounts: the same SQL text on DuckDB (default) or on Apache Spark.

    fleet/run.py --accounts DIR --query energy
    fleet/run.py --accounts DIR --query all --engine spark --master spark://HOST:7077 --format jsonl

DIR is a directory of `wattspan export parquet`, or one into which the directories of many hosts were copied. Needs Python
3.10 and the package duckdb, or pyspark. Exit status: 0, 1 if a query failed, 2 for a usage error.
"""

import argparse
import csv
import decimal
import glob
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUERIES = sorted(path.stem for path in (HERE / "queries").glob("*.sql"))

# The columns that views.sql reads, with the type that they have in both engines. A file may lack one, and has others too.
ACCOUNT_COLUMNS = {
    "number": "BIGINT",
    "span": "STRING",
    "uid": "BIGINT",
    "grade": "STRING",
    "simulated": "BOOLEAN",
    "at_least": "BOOLEAN",
    "opened_unix_ns": "BIGINT",
    "closed_unix_ns": "BIGINT",
    "peak_concurrency": "BIGINT",
    "share_uj": "BIGINT",
    "error_uj": "BIGINT",
    "window_uj": "BIGINT",
    "idle_uj": "BIGINT",
    "gen_ai.request.model": "STRING",
    "gen_ai.usage.output_tokens": "STRING",
}
BALANCE_COLUMNS = {
    "life": "STRING",
    "domain": "STRING",
    "counted": "BOOLEAN",
    "simulated": "BOOLEAN",
    "measured_uj": "BIGINT",
    "attributed_uj": "BIGINT",
    "unattributed_uj": "BIGINT",
}
PARTITIONS = {"date": "STRING", "host": "STRING"}
IPW_COLUMNS = {
    "run": "STRING",
    "question": "STRING",
    "span": "STRING",
    "score_millionths": "BIGINT",
    "retries": "BIGINT",
    "share_uj": "BIGINT",
    "window_uj": "BIGINT",
    "span_ns": "BIGINT",
}
USER_CLASS_COLUMNS = {"first_uid": "BIGINT", "last_uid": "BIGINT", "class": "STRING"}
ZONE_COLUMNS = {"host": "STRING", "zone": "STRING"}
INTENSITY_COLUMNS = {
    "zone": "STRING",
    "begins_unix_s": "BIGINT",
    "ends_unix_s": "BIGINT",
    "price_micro_per_kwh": "BIGINT",
    "co2_mg_per_kwh": "BIGINT",
}
SLOT_S = 900


class InputError(Exception):
    """A file that cannot be used."""


def read_table(path, columns):
    """The rows of a CSV file with these columns, as tuples."""
    if path is None:
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"{path} has no column {', '.join(missing)}")
        rows = []
        for row in reader:
            try:
                rows.append(tuple(int(row[name]) if kind == "BIGINT" else row[name] for name, kind in columns.items()))
            except (TypeError, ValueError) as error:
                raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def refuse_overlaps(path, ranges):
    """Ranges (key, first, end) of one key must not overlap: energy would count twice."""
    last = {}
    for key, first, end in sorted(ranges):
        if first >= end:
            raise InputError(f"{path}: the range from {first} is empty")
        if first < last.get(key, first):
            raise InputError(f"{path}: two ranges overlap at {first}")
        last[key] = end


def read_user_classes(path):
    rows = read_table(path, USER_CLASS_COLUMNS)
    refuse_overlaps(path, [("", first, last + 1) for first, last, _ in rows])
    return rows


def read_intensity(path):
    rows = read_table(path, INTENSITY_COLUMNS)
    refuse_overlaps(path, [(zone, begins, ends) for zone, begins, ends, _, _ in rows])
    for _, begins, ends, _, _ in rows:
        if begins % SLOT_S or ends % SLOT_S:
            raise InputError(f"{path}: intervals begin and end with a quarter of an hour, unlike {begins} to {ends}")
    return rows


def read_zones(path):
    rows = read_table(path, ZONE_COLUMNS)
    if len({host for host, _ in rows}) < len(rows):
        raise InputError(f"{path} names a host twice")
    return rows


def ipw_score(row):
    """The score in millionths; None without one. A delivered query that failed is a wrong answer (docs/ipw.md)."""
    if row.get("error") is not None:
        return 0 if row.get("delivered") is True else None
    return None if row.get("score") is None else round(row["score"] * 1_000_000)


def read_ipw_run(directory):
    """The last row of each query of a run, with the questions that were not asked yet."""
    path = Path(directory)
    with open(path / "run.json", encoding="utf-8") as file:
        manifest = json.load(file)
    rows = {}
    with open(path / "rows.jsonl", encoding="utf-8") as file:
        for line in file:
            # A run that is being written may end with a part of a line.
            if line.endswith("\n"):
                row = json.loads(line)
                rows[row["id"], row.get("repeat", 0)] = row
    run = path.resolve().name
    found = []
    for (question, repeat), row in rows.items():
        energy = row.get("energy") or {}
        found.append((
            run, f"{question}/{repeat}", energy.get("span") or None, ipw_score(row), row.get("retries", 0),
            energy.get("share_uj"), energy.get("window_uj"), energy.get("span_ns"),
        ))  # fmt: skip
    to_come = max(0, manifest.get("count", 0) * max(1, manifest.get("repeats", 1)) - len(rows))
    return found + [(run, f"not asked {at}", None, None, 0, None, None, None) for at in range(to_come)]


def read_ipw_runs(directories):
    names = [Path(directory).resolve().name for directory in directories]
    if len(set(names)) < len(names):
        raise InputError("two runs have one name; rename a directory")
    return [row for directory in directories for row in read_ipw_run(directory)]


def statements(text):
    """The statements of a file: each ends with `;` at the end of a line, and no comment contains one."""
    return [part for part in text.replace(";\n", "\0").rstrip("\n\0").split("\0") if part.strip()]


class DuckDb:
    """The embedded engine."""

    def __init__(self, options):
        import duckdb

        self.connection = duckdb.connect()
        for setting in options.conf:
            name, _, value = setting.partition("=")
            self.connection.execute(f"SET {name} = '{value}'")

    @staticmethod
    def type_name(kind):
        return {"STRING": "VARCHAR"}.get(kind, kind)

    def read_files(self, view, root, pattern, columns):
        files = os.path.join(glob.escape(root), pattern)
        if not glob.glob(files):
            self.create_table(view, columns | PARTITIONS, [])
            return False
        # A file system path is a pattern of DuckDB too.
        source = "read_parquet('{}', hive_partitioning = true, hive_types_autocast = false, union_by_name = true)".format(
            files.replace("'", "''")
        )
        present = {row[0] for row in self.connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
        selected = ", ".join(
            f'CAST("{name}" AS {self.type_name(kind)}) AS "{name}"'
            if name in present
            else f'CAST(NULL AS {self.type_name(kind)}) AS "{name}"'
            for name, kind in (columns | PARTITIONS).items()
        )
        self.connection.execute(f"CREATE TEMPORARY VIEW {view} AS SELECT {selected} FROM {source}")
        return True

    def create_table(self, name, columns, rows):
        fields = ", ".join(f'"{column}" {self.type_name(kind)}' for column, kind in columns.items())
        self.connection.execute(f"CREATE TEMPORARY TABLE {name} ({fields})")
        if rows:
            self.connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", rows)

    def run(self, statement):
        result = self.connection.execute(statement)
        if result.description is None:
            return [], []
        return [column[0] for column in result.description], result.fetchall()

    def close(self):
        self.connection.close()


class Spark:
    """A Spark session: of a cluster with --master, otherwise of this machine alone."""

    def __init__(self, options):
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.appName("wattspan-fleet")
        settings = {
            # Errors instead of wrong values, and "identifier" as in the SQL standard.
            "spark.sql.ansi.enabled": "true",
            "spark.sql.ansi.doubleQuotedIdentifiers": "true",
            "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
            "spark.sql.session.timeZone": "UTC",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        settings.update(setting.partition("=")[::2] for setting in options.conf)
        for name, value in settings.items():
            builder = builder.config(name, value)
        self.session = builder.master(options.master or "local[*]").getOrCreate()

    @staticmethod
    def schema(columns):
        return ", ".join(f"`{name}` {kind}" for name, kind in columns.items())

    def read_files(self, view, root, pattern, columns):
        reader = self.session.read.schema(self.schema(columns | PARTITIONS)).option("basePath", root)
        # On an object store the pattern is resolved by Spark; on this file system an empty one is no error.
        if "://" not in root and not glob.glob(os.path.join(glob.escape(root), pattern)):
            self.create_table(view, columns | PARTITIONS, [])
            return False
        directories = os.path.join(root, os.path.dirname(pattern))
        reader.parquet(directories).createOrReplaceTempView(view)
        return True

    def create_table(self, name, columns, rows):
        # In the JVM: createDataFrame would need Python on every worker.
        jvm, session = self.session._jvm, self.session._jsparkSession
        lines = jvm.java.util.ArrayList()
        for row in rows:
            lines.add(json.dumps(dict(zip(columns, row))))
        texts = session.createDataset(lines, jvm.org.apache.spark.sql.Encoders.STRING())
        session.read().schema(self.schema(columns)).json(texts).createOrReplaceTempView(name)

    def run(self, statement):
        result = self.session.sql(statement)
        return result.columns, [tuple(row) for row in result.collect()]

    def close(self):
        self.session.stop()


def plain(value):
    """An integer of any width as an integer."""
    return int(value) if isinstance(value, decimal.Decimal) else value


def create_views(engine, options):
    """Makes the views of views.sql; returns whether there are accounts."""
    root = options.accounts if "://" in options.accounts else str(Path(options.accounts).resolve())
    found = engine.read_files("raw_accounts", root, "date=*/host=*/*.parquet", ACCOUNT_COLUMNS)
    balance_root = os.path.join(root, "_balance")
    engine.read_files("raw_balance", balance_root, "date=*/host=*/*.parquet", BALANCE_COLUMNS)
    measured = "" if options.include_simulated else " WHERE NOT COALESCE(simulated, FALSE)"
    for kind in ["accounts", "balance"]:
        engine.run(f"CREATE OR REPLACE TEMPORARY VIEW exported_{kind} AS SELECT * FROM raw_{kind}{measured}")
    engine.create_table("ipw_rows", IPW_COLUMNS, read_ipw_runs(options.ipw_run))
    engine.create_table("user_classes", USER_CLASS_COLUMNS, read_user_classes(options.user_classes))
    engine.create_table("zones", ZONE_COLUMNS, read_zones(options.zones))
    engine.create_table("intensity_table", INTENSITY_COLUMNS, read_intensity(options.intensity))
    for statement in statements((HERE / "views.sql").read_text(encoding="utf-8")):
        engine.run(statement)
    return found


def write_rows(out, form, name, columns, rows):
    if form == "jsonl":
        for row in rows:
            print(json.dumps({"query": name} | dict(zip(columns, row))), file=out)
        return
    if form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if value is None else value for value in row] for row in rows])
        return
    print(f"== {name}", file=out)
    cells = [[str(value) if value is not None else "-" for value in row] for row in [columns, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip(), file=out)


def parse_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accounts", required=True, metavar="DIR", help="directory with date=*/host=*/*.parquet")
    parser.add_argument("--query", action="append", required=True, choices=[*QUERIES, "all"], help="repeatable")
    parser.add_argument("--engine", choices=["duckdb", "spark"], default="duckdb")
    parser.add_argument("--master", help="Spark's master, such as spark://HOST:7077 [default: this machine]")
    parser.add_argument("--conf", action="append", default=[], metavar="NAME=VALUE", help="a setting of the engine")
    parser.add_argument("--ipw-run", action="append", default=[], metavar="DIR", help="a run of wattspan ipw; repeatable")
    parser.add_argument("--intensity", metavar="CSV", help=f"price and CO2: {','.join(INTENSITY_COLUMNS)}")
    parser.add_argument("--zones", metavar="CSV", help="zone of each host: host,zone [default: the zone 'default']")
    parser.add_argument("--user-classes", metavar="CSV", default=str(HERE / "user_classes.csv"))
    parser.add_argument("--include-simulated", action="store_true", help="count accounts of simulated machines too")
    parser.add_argument("--format", choices=["table", "csv", "jsonl"], default="table")
    parser.add_argument("--time", action="store_true", help="print the seconds of each query to standard error")
    return parser.parse_args(arguments)


def main(arguments):
    options = parse_options(arguments)
    engine = {"duckdb": DuckDb, "spark": Spark}[options.engine](options)
    try:
        if not create_views(engine, options):
            raise InputError(f"{options.accounts} has no file date=*/host=*/*.parquet")
        for name in QUERIES if "all" in options.query else options.query:
            started = time.monotonic()
            columns, rows = engine.run((HERE / "queries" / f"{name}.sql").read_text(encoding="utf-8"))
            if options.time:
                print(f"{name} {time.monotonic() - started:.2f} s", file=sys.stderr)
            write_rows(sys.stdout, options.format, name, columns, [tuple(map(plain, row)) for row in rows])
    except (InputError, OSError, json.JSONDecodeError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
