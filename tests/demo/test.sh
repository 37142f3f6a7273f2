#!/usr/bin/env bash
# The demo as its users run it: on this machine, on simulated ones with a stuck counter and without a counter,
# interrupted and resumed by the printed command, without a network, and where nothing can be measured.
#
#   tests/demo/test.sh [PROGRAM]    PROGRAM: a built wattspan; by default the demo builds one
#
# Needs Python with venv and the package index. The first failure ends the script.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
target=$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)
place=$target/demo
log=$target/demo-log
mkdir -p "$log"
work=$(mktemp -d)
trap 'rm -rf "$work"; [ -z "${hole:-}" ] || kill "$hole"' EXIT
# An upper limit; without its own limit the demo would wait as long as pip does for the network, which is minutes.
FALLBACK_LIMIT_S=60

ok() { printf '   ok  %s\n' "$*"; }
fail() {
  printf ' FAIL  %s\n' "$*"
  exit 1
}
newest() { # AT_ONCE
  local run newest=""
  for run in "$place"/run-*-"$1"; do newest=$run; done
  echo "$newest"
}
check() { # AT_ONCE OPTIONS...
  python3 "$here/check.py" "$program" "$(newest "$1")" --at-once "$@"
}
both() { # LOG OPTIONS...
  check 1 --page "$place/report.html" --log "$log/$1" "${@:2}"
  check 4 "${@:2}"
}
server_is_gone() {
  local state
  # A zombie no longer runs; it waits for its parent.
  state=$(ps -o stat= -p "$(cat "$place/llm/server.pid")" || true)
  case $state in "" | Z*) ;; *) fail "the model's server still runs ($state)" ;; esac
}

echo "== the demo on this machine"
# An index that is slow at present is no network to users, and no reason to fail here.
export WATTSPAN_INDEX_TIMEOUT_S=120
rm -rf "$place"/run-* "$place/report.html"
export WATTSPAN_PROGRAM=${1:-}
if [ -n "$WATTSPAN_PROGRAM" ]; then WATTSPAN_PROGRAM=$(realpath "$WATTSPAN_PROGRAM"); fi
./demo | tee "$log/here"
program=${WATTSPAN_PROGRAM:-$target/release/wattspan}
export WATTSPAN_PROGRAM=$program
both here
server_is_gone

echo "== on a machine with a stuck counter"
rm -rf "$place"/run-* "$place/report.html"
./demo --replay "$here/stuck.toml" >"$log/stuck"
both stuck --watts 100 --left-out psys

echo "== on a machine without one, interrupted and resumed"
rm -rf "$place"/run-* "$place/report.html"
./demo --replay tests/fixtures/hundred-watts.toml >"$log/interrupted" 2>&1 &
demo=$!
rows() { cat "$place"/run-*-1/rows.jsonl 2>/dev/null | wc -l; }
while [ "$(rows)" -lt 3 ]; do
  kill -0 "$demo" 2>/dev/null || { cat "$log/interrupted"; fail "the demo ended before it was interrupted"; }
  sleep 0.1
done
kill -TERM "$demo"
status=0
wait "$demo" || status=$?
[ "$status" = 143 ] || fail "interrupted, the demo ends with status $status"
server_is_gone
kept=$(rows)
[ "$kept" -lt 50 ] || fail "it was not interrupted"
command=$(sed -n 's/.*interrupted; .* with: //p' "$log/interrupted" | sort -u)
[ -n "$command" ] || { cat "$log/interrupted"; fail "it prints no command"; }
[ "$(wc -l <<<"$command")" = 1 ] || fail "it prints more than one command: $command"
(cd / && sh -c "$command") >"$log/resumed" || { cat "$log/resumed"; fail "what it prints does not work: $command"; }
[ "$(find "$place" -maxdepth 1 -name 'run-*-1' | wc -l)" = 1 ] || fail "it began anew"
both resumed --watts 100
ok "resumed after $kept questions by: $command"

echo "== without a network"
unset WATTSPAN_INDEX_TIMEOUT_S
# A port that accepts connections and never replies, and one that refuses them.
python3 -c '
import socket, sys, time
hole, closed = socket.socket(), socket.socket()
for it in hole, closed: it.bind(("127.0.0.1", 0))
hole.listen(64)
print(hole.getsockname()[1], closed.getsockname()[1], flush=True)
time.sleep(600)' >"$work/ports" &
hole=$!
while [ ! -s "$work/ports" ]; do kill -0 "$hole"; sleep 0.05; done
read -r -a ports <"$work/ports"
for port in "${ports[@]}"; do
  began=$SECONDS
  CARGO_TARGET_DIR=$work/target PIP_INDEX_URL=http://127.0.0.1:$port/simple PIP_FIND_LINKS='' PIP_EXTRA_INDEX_URL='' \
    timeout "$FALLBACK_LIMIT_S" ./demo --replay "$here/stuck.toml" >"$log/offline" 2>&1 ||
    { cat "$log/offline"; fail "without a network the demo ends with status $?"; }
  grep -q '^== no network: ' "$log/offline" || { cat "$log/offline"; fail "it does not name the network"; }
  grep -qE '^  energy +[0-9]' "$log/offline" || { cat "$log/offline"; fail "it measures no command"; }
  ok "$(sed -n 's/^== \(no network\)/\1/p' "$log/offline") ($((SECONDS - began)) s)"
done

echo "== where nothing can be measured"
status=0
./demo --replay "$here/dead.toml" >"$log/dead" 2>&1 || status=$?
[ "$status" != 0 ] || fail "its exit status is 0"
grep -q 'psys: answers, but has never moved' "$log/dead" || { cat "$log/dead"; fail "it does not give the reason"; }
ok "status $status, with the reason"
