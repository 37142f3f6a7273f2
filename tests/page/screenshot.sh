#!/usr/bin/env bash
# Opens the report's page in a headless Chromium, light and dark, wide and narrow. Fails if the page logs a message,
# loads any other file, lacks a picture or has an empty one, clips or overlaps its labels, or is wider than its window.
# Keeps the screenshots for review: screenshot.sh WATTSPAN [DIRECTORY]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../skip.sh"
wattspan=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${2:-$work/shots}
mkdir -p "$out"

browser=
for name in ${CHROMIUM:-} chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then browser=$name; break; fi
done
[ -n "$browser" ] || { skip "Chromium" "install chromium, or set CHROMIUM"; exit 0; }

python3 "$here/run.py" "$work/run"
"$wattspan" ipw report "$work/run" --html "$out/report.html" --price-per-kwh 0.3 --co2-per-kwh 400 >/dev/null
cp "$here/look.html" "$here/look.js" "$work/"

# A separate profile for each call. No name resolves, so neither the page nor the browser reaches the network.
browse() {
  local profile; profile=$(mktemp -d -p "$work")
  timeout 120 "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files \
    --disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-extensions \
    --host-resolver-rules='MAP * ~NOTFOUND' --user-data-dir="$profile" --virtual-time-budget=5000 \
    --enable-logging=stderr --log-level=0 "$@" 2>"$work/log"
}

# Self-test: a page that loads a file, is too wide and lacks its pictures. Every fault must be found, or the check is
# void.
sed 's#<svg#<svg hidden style="display:none"#g; s#</html>#<img src="x.png"><div style="width:3000px">wide</div></html>#' "$out/report.html" >"$work/broken.html"
browse --window-size=1300,900 --dump-dom "file://$work/look.html#$work/broken.html|1280|900" >"$work/dom"
for found in 'asks for' 'the page is [0-9]* wide' '0 x 0'; do
  grep -q "$found" "$work/dom" || { echo "WRONG: a broken page passes: nothing says \"$found\""; exit 1; }
done
grep -q CONSOLE "$work/log" || { echo "WRONG: the browser's log has no word of a blocked picture"; exit 1; }

failed=0
wrong() { echo "WRONG: $*"; failed=1; }

for theme in light dark; do
  scheme=1; [ $theme = dark ] && scheme=0
  for width in 1280 390; do
    name=$theme-$width
    browse --blink-settings=preferredColorScheme=$scheme --window-size=1300,900 --dump-dom \
      "file://$work/look.html#$out/report.html|$width|900" >"$work/dom" || { wrong "$name: the browser failed"; tail -5 "$work/log"; continue; }
    grep -q 'CONSOLE' "$work/log" && wrong "$name: the page logs: $(grep CONSOLE "$work/log" | head -3)"
    python3 - "$work/dom" "$name" >"$work/height" <<'PY' || failed=1
import html, json, re, sys
dom, name = sys.argv[1:]
found = re.search(r'<pre id="found"[^>]*>(.*?)</pre>', open(dom).read(), re.S)
found = json.loads(html.unescape(found.group(1))) if found and found.group(1) else {"wrong": ["the page did not load"]}
wrong = list(found["wrong"])
if found.get("pictures") != 9:
    wrong.append(f"{found.get('pictures')} pictures, and not 9")
if found.get("dark") != name.startswith("dark"):
    wrong.append(f"asked for another theme: {found.get('dark')}, {found.get('paper')}")
for line in wrong:
    print(f"WRONG: {name}: {line}", file=sys.stderr)
print(found.get("height", 900))
sys.exit(bool(wrong))
PY
    height=$(cat "$work/height")
    browse --blink-settings=preferredColorScheme=$scheme --window-size="$((width > 500 ? width : 500)),$height" \
      --screenshot="$out/$name.png" "file://$work/look.html#$out/report.html|$width|$height" >/dev/null
    [ -s "$out/$name.png" ] || wrong "$name: no screenshot"
  done
done
[ $failed = 0 ] && echo "the page is whole, light and dark, wide and narrow"
exit $failed
