#!/usr/bin/env bash
# Opens the live page of `wattspan serve` in a headless Chromium while requests run on a simulated machine, and uses it as a
# viewer would: figures move, search, keys, a reload, kill -9 of the daemon and of the server. live.py has the checks.
# Keeps the screenshots for review: live.sh WATTSPAN WATTSPAND [DIRECTORY]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../skip.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${3:-$work/shots}
mkdir -p "$out"

browser=
for name in ${CHROMIUM:-} chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then browser=$name; break; fi
done
[ -n "$browser" ] || { skip "Chromium" "install chromium, or set CHROMIUM"; exit 0; }
PYTHONDONTWRITEBYTECODE=1 python3 "$here/live.py" "$browser" "$(realpath "$1")" "$(realpath "$2")" "$out" "$work"
