#!/usr/bin/env python3
"""Makes accounts with the real programs on simulated machines, exports them, and compares what readers find in the files.

    real_export.py DIR WATTSPAND WATTSPAN

For each of three hosts: the accounts of ListSpans, the lines of JSONL, and the rows of CSV and Parquet as pandas, polars and
DuckDB read them are the same, value by value; the shares of the accounts of each domain add up to the daemon's balance, to the
microjoule. Leaves DIR/parquet for the queries, and DIR/run, a run of `wattspan ipw`.
"""

import atexit
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow.parquet
from export_schema import ACCOUNT_SCHEMA, BALANCE_SCHEMA, PARQUET_SCHEMA

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from varlink_client import VarlinkClient  # noqa: E402

TIMEOUT_S = 60
HOSTS = {"node-1": (80, 20), "node-2": (130, 25), "node-3": (61, 7)}
MACHINE = """
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.02, {package}], [0.01, 40]]
quantum_uj = 61
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[1.0, 30]]
quantum_uj = 61
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, {dram}]]
quantum_uj = 15
"""
TOKENS = ["17", "120", "12.5", "", "0", None, "999999999999999", "-3", " 7", "٣"]
NAMES = ["", "plain", 'a "quoted", name', "two words; and = more", "ünïcödé ✓"]
ATTRIBUTES = [
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.operation.name",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
]
SHARE_FIELDS = ["domain", "grade", "share_uj", "error_uj", "window_uj", "idle_uj", "process_uj", "unknown_ns"]


class Daemon:
    """A daemon on a simulated machine, and a connection to it."""

    def __init__(self, program, directory, host):
        directory.mkdir(parents=True)
        package, dram = HOSTS[host]
        (directory / "machine.toml").write_text(MACHINE.format(package=package, dram=dram))
        (directory / "wattspan.toml").write_text("bus = false\n")
        self.socket_path = directory / "wattspan.sock"
        options = {
            "--config": "wattspan.toml",
            "--replay": "machine.toml",
            "--socket": "wattspan.sock",
            "--state-dir": "state",
        }
        arguments = [part for option, name in options.items() for part in [option, str(directory / name)]]
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        # A check that fails leaves no daemon.
        atexit.register(self.process.kill)
        self.call = self.connect().call

    def connect(self):
        for _ in range(600):
            try:
                return VarlinkClient(self.socket_path, TIMEOUT_S)
            except OSError:
                time.sleep(0.05)
        sys.exit(f"no daemon at {self.socket_path}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def wait_for_disk(self):
        """Waits until all settled accounts are on disk: a disk that takes seconds for a sync delays no reply."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (keeping := self.call("GetInfo")["keeping"])["durable"] or keeping["waiting"] > 0:
            if time.monotonic() > deadline:
                sys.exit(f"the accounts do not reach the disk: {keeping}")
            time.sleep(0.05)

    def accounts(self):
        found, after = [], 0
        while True:
            page = self.call("ListSpans", after=after, limit=4096)
            found += page["accounts"]
            after = page["after"]
            if page["at_end"]:
                return found


def attributes_of(at, model):
    tokens = TOKENS[at % len(TOKENS)]
    attributes = {"gen_ai.operation.name": "chat", "prompt": "secret"}
    if at % 11:
        attributes["gen_ai.request.model"] = model
    if tokens is not None:
        attributes["gen_ai.usage.output_tokens"] = tokens
    return attributes


def run_spans(daemon, host, first, count):
    """Opens and closes spans of two models, up to four at once; some are cancelled."""
    opened = []
    for at in range(first, first + count):
        span = f"{host}-{at}"
        model = "llama" if at % (first + 150) < 100 else "qwen"
        daemon.call("OpenSpan", span=span, name=NAMES[at % len(NAMES)], attributes=attributes_of(at, model), weight=1 + at % 3)
        if at % 7 == 0:
            daemon.call("MarkPhase", span=span, phase="decode")
        opened.append(span)
        if len(opened) > at % 4:
            daemon.call("CancelSpan" if at % 13 == 0 else "CloseSpan", span=opened.pop(0))
    for span in opened:
        daemon.call("CloseSpan", span=span, wait_settled=True)


def expected_row(account):
    """The columns of docs/export.md, computed from an account of ListSpans."""
    duration_ns = account["closed_ns"] - account["opened_ns"] if "closed_ns" in account else None
    row = {name: account.get(name) for name in ACCOUNT_SCHEMA.names if name not in ATTRIBUTES + ["domains"]}
    row["simulated"], row["at_least"] = account.get("simulated", False), account.get("at_least", False)
    row["duration_ns"] = duration_ns
    row["closed_unix_ns"] = None if duration_ns is None else account["opened_unix_ns"] + duration_ns
    row["weight"] = float(account["weight"])
    row |= {key: account["attributes"].get(key) for key in ATTRIBUTES}
    row["domains"] = [{name: share.get(name) for name in SHARE_FIELDS} for share in account["domains"]]
    return row


def with_computed(row):
    """The columns that a Parquet file leaves out, from those that it has."""
    closed_unix_ns, share_uj = row["closed_unix_ns"], row["share_uj"]
    duration_ns = None if closed_unix_ns is None else closed_unix_ns - row["opened_unix_ns"]
    mean_power_mw = share_uj * 1_000_000 // duration_ns if duration_ns and share_uj is not None else None
    return row | {"duration_ns": duration_ns, "mean_power_mw": mean_power_mw}


def is_absent(value):
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))


def plain(value):
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ndarray":
        return [{name: plain(part.get(name)) for name in SHARE_FIELDS} for part in value]
    if is_absent(value):
        return None
    return value.item() if hasattr(value, "item") else value


def plain_csv(name, value):
    """A value of a CSV file in the column's type; readers give all fields as text."""
    if name == "domains":
        return [{field: share.get(field) for field in SHARE_FIELDS} for share in json.loads(value)]
    # An empty field is an absent value, or an empty text.
    if value is None or value == "":
        return None
    kind = str(ACCOUNT_SCHEMA.field(name).type)
    return {"int64": int, "double": float, "bool": lambda text: text == "true"}.get(kind, str)(value)


def readings(directory):
    """What each reader finds in the files of an export, as lists of dicts."""
    parquet = sorted(map(str, (directory / "parquet").glob("date=*/host=*/*.parquet")))
    table = sorted(map(str, (directory / "csv").glob("date=*/host=*/*.csv")))
    yield "pandas, Parquet", False, [
        row
        for path in parquet
        for row in pandas.read_parquet(path, dtype_backend="numpy_nullable", partitioning=None).to_dict("records")
    ]
    yield "polars, Parquet", False, polars.read_parquet(parquet, hive_partitioning=False).to_dicts()
    found = duckdb.execute("SELECT * FROM read_parquet(?, hive_partitioning = false)", [parquet])
    names = [column[0] for column in found.description]
    yield "DuckDB, Parquet", False, [dict(zip(names, row)) for row in found.fetchall()]
    yield "pandas, CSV", True, [
        row for path in table for row in pandas.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    ]
    yield "polars, CSV", True, [
        row for path in table for row in polars.read_csv(path, infer_schema=False, empty_string_is_null=False).to_dicts()
    ]
    found = duckdb.execute("SELECT * FROM read_csv(?, all_varchar = true, header = true, delim = ',', quote = '\"', hive_partitioning = false)", [table])
    names = [column[0] for column in found.description]
    yield "DuckDB, CSV", True, [dict(zip(names, row)) for row in found.fetchall()]


def check_readers(directory, expected):
    for reader, is_csv, rows in readings(directory):
        convert = (lambda name, value: plain_csv(name, value)) if is_csv else (lambda _, value: plain(value))
        found = {int(row["number"]): {name: convert(name, value) for name, value in row.items()} for row in rows}
        if len(found) != len(rows):
            sys.exit(f"{reader}: a number stands twice")
        if not is_csv:
            found = {number: with_computed(row) for number, row in found.items()}
        wanted = expected
        if is_csv:
            # CSV has one form for an empty text and for no text.
            wanted = {number: {name: value if value != "" else None for name, value in row.items()} for number, row in expected.items()}
        for number, row in wanted.items():
            if found.get(number) != row:
                differing = {name: (value, (found.get(number) or {}).get(name)) for name, value in row.items()
                             if (found.get(number) or {}).get(name) != value}  # fmt: skip
                sys.exit(f"{reader}: account {number} differs from ListSpans (expected, found): {differing}")
        if found.keys() != wanted.keys():
            sys.exit(f"{reader}: {len(found)} accounts, {len(wanted)} in ListSpans")
        print(f"  {reader}: {len(rows)} rows, {len(ACCOUNT_SCHEMA.names)} columns as ListSpans")


def check_jsonl(directory, expected):
    lines = [
        json.loads(line)
        for path in (directory / "jsonl").glob("date=*/host=*/*.jsonl")
        for line in open(path, encoding="utf-8")
    ]
    for line in lines:
        row = {name: line.get(name) for name in ACCOUNT_SCHEMA.names} | {key: line["attributes"].get(key) for key in ATTRIBUTES}
        row["domains"] = [{name: share.get(name) for name in SHARE_FIELDS} for share in line["domains"]]
        if row != expected.get(line["number"]):
            sys.exit(f"JSONL: account {line['number']} differs from ListSpans")
    if len(lines) != len(expected):
        sys.exit(f"JSONL: {len(lines)} accounts, {len(expected)} in ListSpans")


def check_schema(directory):
    for pattern, schema in [("date=*/host=*/*", PARQUET_SCHEMA), ("_balance/date=*/host=*/*", BALANCE_SCHEMA)]:
        for path in (directory / "parquet").glob(pattern + ".parquet"):
            found = pyarrow.parquet.read_schema(path)
            names = [(field.name, str(field.type).replace(" not null", "")) for field in found]
            wanted = [(field.name, str(field.type).replace(" not null", "")) for field in schema]
            if names != wanted:
                sys.exit(f"{path} has other columns than export_schema.py: {set(names) ^ set(wanted)}")


def check_balance(directory, daemon, accounts):
    """No span is open: the shares of the accounts are all that is attributed."""
    sums = {}
    for account in accounts:
        for share in account["domains"]:
            sums[share["domain"]] = sums.get(share["domain"], 0) + share["share_uj"]
    balance = {row["domain"]: row for row in daemon.call("GetBalance")["balance"]}
    exported = [
        row for path in (directory / "parquet/_balance").glob("*/*/*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    if {row["domain"] for row in exported} != balance.keys() or len({row["life"] for row in exported}) != 1:
        sys.exit(f"the exported balance has other domains or lives: {exported}")
    for row in exported:
        of_daemon = balance[row["domain"]]["attributed_uj"]
        if not sums[row["domain"]] == of_daemon == row["attributed_uj"] > 0:
            sys.exit(f"{row['domain']}: accounts {sums[row['domain']]}, daemon {of_daemon}, exported {row['attributed_uj']} µJ")
        if row["measured_uj"] != row["attributed_uj"] + row["unattributed_uj"]:
            sys.exit(f"the exported balance does not add up: {row}")
    print(f"  {len(exported)} domains: accounts = attributed, to the microjoule")


def check_host(host, directory, programs):
    wattspand, wattspan = programs
    daemon = Daemon(wattspand, directory / "daemons" / host, host)
    exports = {form: directory / "hosts" / host / form for form in ["parquet", "csv", "jsonl"]}
    for first in [0, 200]:
        run_spans(daemon, host, first, 200)
        daemon.wait_for_disk()
        for form, to in exports.items():
            command = [wattspan, "--socket", str(daemon.socket_path), "export", form, "--host", host, "--to", str(to)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    accounts = daemon.accounts()
    expected = {account["number"]: expected_row(account) for account in accounts}
    if len(expected) < 300:
        sys.exit(f"only {len(expected)} accounts")
    print(f"{host}: {len(expected)} accounts")
    check_schema(directory / "hosts" / host)
    check_readers(directory / "hosts" / host, expected)
    check_jsonl(directory / "hosts" / host, expected)
    check_balance(directory / "hosts" / host, daemon, accounts)
    daemon.stop()
    # As rclone and other tools bring the directories of the hosts together.
    shutil.copytree(exports["parquet"], directory / "parquet", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    return accounts


def check_sums(directory, accounts):
    """The queries' sums are those of the accounts."""
    command = [sys.executable, str(Path(__file__).resolve().parent.parent.parent / "fleet/run.py"), "--include-simulated"]
    command += ["--accounts", str(directory / "parquet"), "--query", "energy", "--query", "unattributed", "--format", "jsonl"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    for host, of_host in accounts.items():
        energy = [row for row in rows if row["query"] == "energy" and row["host"] == host]
        days = [row for row in rows if row["query"] == "unattributed" and row["host"] == host]
        found = [sum(row[name] for row in energy) for name in ["accounts", "share_uj", "error_uj"]]
        wanted = [len(of_host), *(sum(account[name] for account in of_host) for name in ["share_uj", "error_uj"])]
        attributed = [sum(row[name] for row in days) for name in ["accounts_uj", "attributed_uj"]]
        if found != wanted or attributed != [wanted[1]] * 2:
            sys.exit(f"{host}: the queries give {found} and {attributed}, the accounts {wanted}")
    print(f"queries: the sums of {len(accounts)} hosts are those of the accounts, to the microjoule")


def write_run(directory, accounts):
    spans = [account["span"] for account in accounts["node-1"] if account["attributes"].get("gen_ai.request.model") == "llama"]
    rows = [{"id": f"q{at}", "score": float(at % 2), "energy": {"span": span}} for at, span in enumerate(spans)]
    (directory / "run").mkdir()
    (directory / "run/run.json").write_text(json.dumps({"count": len(rows), "repeats": 1}))
    (directory / "run/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(directory, *programs):
    shutil.rmtree(directory, ignore_errors=True)
    accounts = {host: check_host(host, directory, programs) for host in HOSTS}
    check_sums(directory, accounts)
    write_run(directory, accounts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
