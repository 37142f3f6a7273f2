#!/usr/bin/env bash
# `wattspan export otlp` against a real collector and a second reader, under load and kills. Needs the package index, and
# built programs (cargo build, or WATTSPAND=PATH and WATTSPAN=PATH). ROUNDS sets the number of kills of each exporter.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
work="$root/target/python"
daemon="${WATTSPAND:-$root/target/debug/wattspand}"
client="${WATTSPAN:-$root/target/debug/wattspan}"

mkdir -p "$work"
wanted="$(python3 --version) $(cat "$here/requirements.txt")"
if [ "$(cat "$work/otlp.stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$work/otlp"
  python3 -m venv "$work/otlp"
  "$work/otlp/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  printf '%s' "$wanted" >"$work/otlp.stamp"
fi
agent="$("$work/otlp/bin/python" -c 'import pathlib, rotel; print(pathlib.Path(rotel.__file__).parent / "rotel-agent")')"

folder="$(mktemp -d)"
if PYTHONDONTWRITEBYTECODE=1 "$work/otlp/bin/python" "$here/check.py" "$daemon" "$client" "$agent" "$folder/out"; then
  rm -rf "$folder"
else
  status=$?
  for log in "$folder"/out/*.log; do printf -- '-- %s\n' "$(basename "$log")"; tail -20 "$log"; done
  rm -rf "$folder"
  exit "$status"
fi
