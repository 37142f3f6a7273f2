#!/usr/bin/env bash
# Compares the crates that wattspand is built from, with their features, with the list beside this script: a crate for
# networks, terminals or scores must never reach the privileged program unnoticed.
#
#   .ci/daemon-dependencies.sh            compares
#   .ci/daemon-dependencies.sh --write    writes the list anew, for review in the same commit
set -euo pipefail
cd "$(dirname "$0")/.."
list=.ci/daemon-dependencies.txt
most=85
banned='hyper|hyper-util|hyper-rustls|http|http-body|rustls|ring|minijinja|crossterm|arrow-.*|parquet|uzers|unicode-width'

crates() { # TARGET
  cargo tree --locked -p wattspan -e normal,build --target "$1" --prefix none --no-dedupe -f '{p} {f}' |
    sed -E 's/ v[0-9][^ ]*//; s/ \((proc-macro|\/[^)]*|\*)\)//g; s/ +$//' | sort -u
}
found=$(for target in x86_64-unknown-linux-gnu aarch64-apple-darwin; do
  echo "# $target"
  crates "$target"
done)
if [ "${1-}" = --write ]; then
  printf '%s\n' "$found" >"$list"
  exit
fi
diff -u "$list" - <<<"$found" || { echo "$0: the daemon's dependencies differ from $list; if each is intended, run $0 --write"; exit 1; }
if cut -d' ' -f1 <<<"$found" | grep -xE "$banned"; then
  echo "$0: these crates have no place in the privileged program: move their user to a crate below crates/"; exit 1
fi
count=$(cargo tree --locked -p wattspan -e normal,build --target x86_64-unknown-linux-gnu --prefix none | sed 's/ (.*//' | sort -u | wc -l)
[ "$count" -le "$most" ] || { echo "$0: $count crates; at most $most"; exit 1; }
echo "the daemon is built from $count crates"
