#!/usr/bin/env bash
# Kills `wattspan export parquet` and the daemon ROUNDS times (20 by default) and reads the files with DuckDB. Needs the
# package index, a built wattspand (cargo build), and a wattspan with the feature `parquet` (WATTSPAN=PATH).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
work="$root/target/python"
daemon="${WATTSPAND:-$root/target/debug/wattspand}"
client="${WATTSPAN:-$root/target/release/wattspan}"

mkdir -p "$work"
wanted="$(python3 --version) $(cat "$here/requirements.txt")"
if [ "$(cat "$work/export.stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$work/export"
  python3 -m venv "$work/export"
  "$work/export/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  printf '%s' "$wanted" >"$work/export.stamp"
fi

folder="$(mktemp -d)"
if PYTHONDONTWRITEBYTECODE=1 "$work/export/bin/python" "$here/kills.py" "$daemon" "$client" "$folder/out"; then
  rm -rf "$folder"
else
  status=$?
  tail -20 "$folder/out/daemon.log"
  echo "the files are in $folder"
  exit "$status"
fi
