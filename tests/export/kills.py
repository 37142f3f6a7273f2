"""Kills `wattspan export parquet` and the daemon with SIGKILL at random moments under load. Afterwards each stored account
stands exactly once in the Parquet files, as DuckDB reads them, with its figures.

    kills.py WATTSPAND WATTSPAN DIRECTORY
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import duckdb
from harness import TIMEOUT_S, Daemon, Load, rounds

WATTSPAND, WATTSPAN, DIRECTORY = sys.argv[1:]
OUT = Path(DIRECTORY)
TO = OUT / "files"
KILLS = rounds(20)
FIELDS = ("span", "name", "share_uj", "error_uj", "window_uj", "opened_unix_ns")


def state_text():
    try:
        return (TO / ".wattspan-export-parquet.json").read_bytes()
    except FileNotFoundError:
        return b""


def kill_exporter(command, number):
    """Every other kill comes within milliseconds of a change of the state, when files are written; the others at any time."""
    before = state_text()
    exporter = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if number % 2 == 0:
        while state_text() == before and exporter.poll() is None:
            time.sleep(0.0005)
        time.sleep(random.random() * 0.006)
    else:
        time.sleep(random.random() * 0.15)
    in_time = exporter.poll() is None
    in_range = b'"range"' in state_text()
    exporter.kill()
    exporter.wait()
    return in_time, in_time and in_range


def written():
    """All rows by number, and the numbers that stand more than once."""
    files = [str(path) for path in TO.glob("date=*/host=*/*.parquet")]
    table = duckdb.execute(f"SELECT number, {', '.join(FIELDS)} FROM read_parquet(?)", [files]).fetchall()
    rows, doubled = {}, set()
    for number, *values in table:
        if number in rows:
            doubled.add(number)
        rows[number] = values
    return rows, doubled, len(files)


def main():
    daemon = Daemon(WATTSPAND, OUT)
    command = [WATTSPAN, "--socket", str(daemon.socket), "export", "parquet", "--host", "node-7", "--to", str(TO)]
    loads = [Load(daemon, 100, lambda _: {"gen_ai.request.model": "llama"}) for _ in range(2)]
    running, in_range, of_daemon, kills = 0, 0, 0, 0
    until = time.monotonic() + 3 * TIMEOUT_S
    # An exporter writes a range for some milliseconds, which all of a few kills may miss on a busy machine.
    while kills < KILLS or (min(running, in_range) == 0 and time.monotonic() < until):
        loads[0].wait_for_more(3)
        if kills % 4 == 3:
            time.sleep(random.random() * 0.05)
            exporter = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.random() * 0.1)
            daemon.restart()
            exporter.wait()
            of_daemon += 1
        else:
            ran, wrote = kill_exporter(command, kills)
            running += ran
            in_range += wrote
        assert all(load.error is None for load in loads), [load.error for load in loads]
        kills += 1
        if kills % 50 == 0:
            print(f"{kills} kills", flush=True)
    for load in loads:
        load.finish()
    accounts = daemon.stored()
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    rows, doubled, files = written()
    assert not doubled, f"{len(doubled)} accounts stand twice: {sorted(doubled)[:9]}"
    assert rows.keys() == accounts.keys(), f"{len(rows)} rows, {len(accounts)} accounts"
    for number, account in accounts.items():
        assert rows[number] == [account.get(field) for field in FIELDS], (number, rows[number], account)
    assert running > 0 and in_range > 0, "no kill met a running exporter and one that writes"
    print(
        f"{kills} kills ({of_daemon} of the daemon, {running} of a running exporter, {in_range} of them while it wrote a range): "
        f"{len(accounts)} accounts, each once in {files} files"
    )


if __name__ == "__main__":
    main()
