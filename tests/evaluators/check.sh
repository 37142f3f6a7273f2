#!/usr/bin/env bash
# The evaluators with energy: installs inspect-ai and lm-evaluation-harness (pinned, 330 MB to download, into
# target/python/evaluators), starts a real small model (examples/start-llm-server.sh) and a daemon on a simulated machine,
# tests the hooks, runs the worked example of docs/ipw.md as it is printed there, and compares every imported energy with
# the daemon's account and every accuracy with the evaluator's own.
#
# Needs built programs: target/debug/wattspan and wattspand, or WATTSPAN and WATTSPAND.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
venv=$root/target/python/evaluators
llm=$root/target/demo/llm
work=$(mktemp -d /tmp/wattspan-evaluators-XXXXXX)
wattspan=$(realpath "${WATTSPAN:-target/debug/wattspan}")
wattspand=$(realpath "${WATTSPAND:-target/debug/wattspand}")

say() { printf '\n== %s evaluators: %s\n' "$(date +%T)" "$*"; }

finish() {
  local status=$?
  trap - EXIT
  for pid in $(jobs -p); do kill "$pid" 2>/dev/null || true; done
  if [ -n "${server:-}" ]; then kill "$server" 2>/dev/null || true; fi
  [ "$status" = 0 ] || tail -n 30 "$work"/*.log >&2 || true
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT

wanted="$(python3 --version) $(cat "$here/requirements.txt")"
if [ "$(cat "$venv.stamp" 2>/dev/null)" != "$wanted" ]; then
  say "the evaluators, into $venv"
  rm -rf "$venv"
  python3 -m venv "$venv"
  # Without dependencies: the file lists all of them. Three have no wheel and are built; they are Python only.
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile -r "$here/requirements.txt"
  printf '%s' "$wanted" >"$venv.stamp"
fi
say "a model and its server"
# An index that is slow at present is no reason to fail.
started=$(WATTSPAN_INDEX_TIMEOUT_S=120 examples/start-llm-server.sh "$llm" 0 4)
case $started in
  READY*) read -r _ url server <<<"$started" ;;
  *) echo "$started"; exit 1 ;;
esac

say "a daemon on a machine of 100 W"
export WATTSPAN_SOCKET=$work/run/wattspan.sock
# The hooks' test reads a window of past energy after an evaluation, which a busy machine may take long for.
echo 'history_s = 120.0' >"$work/wattspan.toml"
"$wattspand" --config "$work/wattspan.toml" --replay tests/fixtures/hundred-watts.toml --socket "$WATTSPAN_SOCKET" 2>"$work/daemon.log" &
for _ in $(seq 600); do
  if "$wattspan" read --json >/dev/null 2>&1; then break; fi
  sleep 0.1
done

export PYTHONPATH=$root/clients/python/src PATH=$(dirname "$wattspan"):$venv/bin:$PATH
# Nothing of an earlier run may answer this one: inspect-ai keeps cached answers of models for a week.
export INSPECT_CACHE_DIR=$work/inspect XDG_CACHE_HOME=$work/cache XDG_DATA_HOME=$work/data XDG_STATE_HOME=$work/state
export INSPECT_DISPLAY=plain HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$work/huggingface NO_COLOR=1

say "the hooks"
WATTSPAND=$wattspand "$venv/bin/python" "$here/hooks_test.py" "$work/hooks" 2>"$work/hooks.log"

say "the worked example of docs/ipw.md"
python3 "$here/example.py" docs/ipw.md "$url" "$work" >"$work/example.sh"
bash -euo pipefail "$work/example.sh" 2>"$work/example.log"

say "each figure"
"$venv/bin/python" "$here/figures.py" "$work"
say "done"
