#!/usr/bin/env bash
# Exports of real daemons as pandas, polars and DuckDB read them, and the queries of fleet/ on DuckDB and on a Spark cluster of a
# master and two workers on loopback: rows computed by hand, and a made-up fleet, for which both engines must give the same rows.
#
# Needs built programs (target/debug/wattspan and wattspand, or WATTSPAN and WATTSPAND), Java 17, Python 3.10 or later with venv, and the package index: 0.4 GB once, 1 GB in target/fleet. Without them it fails.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
place="$root/target/fleet"
ROWS=20000
SPARK=3.5.7
# Of pyspark's source package on the index.
SPARK_SHA256=80e36514e0c5c126d35a26adf4f405cd4a69de96a8ea8a3c1e9a65fce2fb4eaa

say() { printf '\n== %s fleet: %s\n' "$(date +%T)" "$*"; }

command -v java >/dev/null || { echo "java is missing: install openjdk-17-jre-headless"; exit 1; }
java=$(java -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')
case $java in 11 | 17) ;; *) echo "Spark $SPARK runs on Java 11 and 17, and java is version $java"; exit 1 ;; esac

mkdir -p "$place"
wanted="$(python3 --version) $SPARK $(cat "$here/requirements.txt")"
if [ "$(cat "$place/tools.stamp" 2>/dev/null)" != "$wanted" ]; then
  say "tools"
  rm -rf "$place/tools" "$place/spark" "$place/download"
  python3 -m venv "$place/tools"
  "$place/tools/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  # The package's jars are used where they are unpacked: building a wheel of them takes a minute and twice the space.
  "$place/tools/bin/pip" download --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-binary pyspark \
    --no-build-isolation --dest "$place/download" "pyspark==$SPARK"
  echo "$SPARK_SHA256  $place/download/pyspark-$SPARK.tar.gz" | sha256sum --check --quiet
  mkdir "$place/spark"
  tar -xzf "$place/download/pyspark-$SPARK.tar.gz" -C "$place/spark" --strip-components=1
  rm -rf "$place/download"
  printf '%s' "$wanted" >"$place/tools.stamp"
fi
python="$place/tools/bin/python"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$place/spark" SPARK_HOME="$place/spark/deps" SPARK_LOCAL_IP=127.0.0.1
# Heaps; and less compilation of code that runs once.
export SPARK_DRIVER_MEMORY=1g SPARK_DAEMON_MEMORY=256m SPARK_SUBMIT_OPTS=-XX:TieredStopAtLevel=1

# Short, because it has sockets.
work="$(mktemp -d)"
export SPARK_LOCAL_DIRS="$work/spark"
processes=()
finish() {
  local status=$?
  if [ ${#processes[@]} -gt 0 ]; then kill "${processes[@]}" 2>/dev/null || true; wait "${processes[@]}" 2>/dev/null || true; fi
  if [ "$status" -ne 0 ]; then tail -n 20 "$work"/*.log 2>/dev/null || true; fi
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT

say "exports of real daemons, as pandas, polars and DuckDB read them"
"$python" "$here/real_export.py" "$work/real" "$(realpath "${WATTSPAND:-$root/target/debug/wattspand}")" \
  "$(realpath "${WATTSPAN:-$root/target/debug/wattspan}")"

say "a Spark cluster on loopback"
start() { # LOG CLASS OPTIONS...
  # spark-class replaces itself with java, so that this is the process to end.
  bash "$SPARK_HOME/bin/spark-class" "org.apache.spark.deploy.$2" "${@:3}" >"$work/$1.log" 2>&1 &
  processes+=($!)
}
wait_for() { # COUNT TEXT
  local tries=0
  until [ "$(grep -c "$2" "$work/master.log")" -ge "$1" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then echo "the cluster does not start"; exit 1; fi
    sleep 0.2
  done
}
start master master.Master --host 127.0.0.1 --port 0 --webui-port 0
wait_for 1 'Starting Spark master at'
master=$(sed -n 's/.*Starting Spark master at \(spark:[^ ]*\).*/\1/p' "$work/master.log")
for worker in 1 2; do
  start "worker$worker" worker.Worker --host 127.0.0.1 --webui-port 0 --cores 1 --memory 1g --work-dir "$work/worker$worker" "$master"
done
wait_for 2 'Registering worker'
grep 'Registering worker' "$work/master.log" | sed 's/.*INFO //'

say "rows that were computed by hand"
"$python" "$here/truth.py" "$work/truth" duckdb
"$python" "$here/truth.py" "$work/truth" spark "$master" 2>"$work/truth.log"

say "both engines, on a made-up fleet of $ROWS accounts"
"$python" "$here/generate.py" "$work/made" "$ROWS"
"$python" "$here/compare.py" "$master" --accounts "$work/made/out" --ipw-run "$work/made/made-run" \
  --intensity "$work/made/intensity.csv" --zones "$work/made/zones.csv" 2>"$work/compare.log"
grep ' s$' "$work/compare.log"
say "done"
