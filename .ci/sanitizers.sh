#!/usr/bin/env bash
# Runs tests under Miri, ThreadSanitizer and AddressSanitizer:
#
#   .ci/sanitizers.sh [TOOL [AREA]]           all areas, those of a tool (miri, thread, address), or one of them
#   .ci/sanitizers.sh planted [TOOL [AREA]]   the same with a defect in the area (planted/TOOL-AREA.patch); fails unless the
#                                             tool reports it
#
# Needs a nightly toolchain: rustup toolchain install nightly --component miri,rust-src
# The sanitizers build the standard library too. The tests run on a copy of the sources without the clients' crates, which would
# take most of the build. Sources, builds and logs of each tool are in target/sanitizers/TOOL/.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/target/sanitizers planted='' expected=passed
if [ "${1-}" = planted ]; then planted=-planted expected=reported; shift; fi
fail() { printf 'sanitizers: %s\n' "$*" >&2; exit 1; }

# Tool, area, and cargo's arguments with the names of tests. Left out: the two longest tests for Miri, one of a daemon whose
# confinement keeps the tool from looking for leaks at its end, and one that runs the client program.
areas='
miri     ring         --lib -- ring::tests::readers ring::tests::a_sample ring::tests::the_largest
miri     attribution  --lib -- attribution:: --skip shrink_frees_slots --skip only_unsettled_weight
miri     protocol     --lib -- protocol::
thread   ring         --lib -- ring::
thread   sampler      --lib -- sampler::
thread   store        --lib -- store:: --skip segment_sum_tests
thread   server       --test meter -- embedded:: slow_sources::
address  sockets      --lib -- unix_socket::
address  calls        --lib -- _ffi::
address  nvml         --test meter -- nvml:: gpu_process_shares:: --skip a_daemon_with_a_hanging_board
address  apple        --test meter -- apple:: --skip the_daemon_measures_a_fake_mac
address  perf         --test meter -- perf_source::'
areas=$(grep -E "^${1:-[a-z]+} +${2:-[a-z]+} " <<<"$areas") || fail "there is no area $*"

# What shows that the tool, and not a test, found a planted defect. The ring's would be no undefined behaviour.
declare -A report=(
  [miri]='^error: Undefined Behavior\|panicked at src/ring/tests.rs'
  [thread]='WARNING: ThreadSanitizer: data race'
  [address]='ERROR: \(AddressSanitizer\|LeakSanitizer\)'
)

# Cargo with the same packages for each area, so that it builds no crate with two sets of features.
run_tests() { # TOOL AREA ARGUMENT...
  local test=(test -p wattspan -p wattspan-client -p wattspan-system --target x86_64-unknown-linux-gnu)
  export CARGO_TARGET_DIR=$out/$1/build CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never
  case $1 in
  miri)
    # Several schedules and choices of the memory model for the ring; few random cases, since each instruction is interpreted.
    export MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 WATTSPAN_SAMPLES=100
    if [ "$2" = ring ]; then MIRIFLAGS+=' -Zmiri-many-seeds=0..4'; fi
    cargo +nightly miri "${test[@]}" "${@:3}"
    ;;
  thread)
    # SQLite reads its index of the log while it is written, and compares two copies; its source says so (tag-20200519-1).
    printf 'race:%s\n' walIndexTryHdr walIndexWriteHdr >"$out/sqlite"
    RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS="halt_on_error=1 suppressions=$out/sqlite" \
      cargo +nightly "${test[@]}" -Zbuild-std "${@:3}"
    ;;
  address)
    # The libraries that stand for drivers are built with the tool, and find it in the program that loads them.
    mkdir -p "$out/bin"
    cat >"$out/bin/cc" <<'END'
#!/bin/sh
case "$* " in *".c "*) set -- -g -fsanitize=address -static-libasan "$@" ;; esac
exec /usr/bin/cc "$@"
END
    chmod +x "$out/bin/cc"
    RUSTFLAGS="-Zsanitizer=address -Clink-args=-rdynamic" PATH=$out/bin:$PATH \
      cargo +nightly "${test[@]}" -Zbuild-std "${@:3}"
    ;;
  esac
}

# A copy of the sources in which the daemon's package has only the crates that its own tests need. All files are new: the
# runs with and without the defects share one folder.
copy_sources() { # FOLDER
  rm -rf "$1" && mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -xm -C "$1"
  sed -i -e 's,^members = .*,members = ["crates/wattspan-client"\, "crates/wattspan-system"],' -e '/^default-members = /d' \
    -e '/^\[dev-dependencies\]/,/^\[target/ { /^[a-z]/ { /^\(proptest\|tempfile\|tokio\|zbus\)[ .]/! d } }' "$1/Cargo.toml"
}

copied='' failed=()
while read -r tool area arguments; do
  defect=.ci/planted/$tool-$area.patch
  # No tool sees what the kernel writes for perf.
  [ -z "$planted" ] || [ "$area" != perf ] || continue
  if [ "$copied" != "$tool" ] || [ -n "$planted" ]; then
    copy_sources "$out/$tool/source"
    [ -z "$planted" ] || patch -s -p1 -d "$out/$tool/source" <"$defect"
    copied=$tool
  fi
  log=$out/$tool/$area$planted.log state='failed without a report' began=$SECONDS
  # shellcheck disable=SC2086 # the arguments are words
  if (cd "$out/$tool/source" && run_tests "$tool" "$area" $arguments) </dev/null >"$log" 2>&1; then
    state=passed
  elif grep -q "${report[$tool]}" "$log"; then
    state=reported
  fi
  tests=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
  echo "$tool $area: $state, $tests tests passed, $((SECONDS - began)) s"
  if [ "$state" != "$expected" ] || [ "$state$tests" = passed0 ]; then failed+=("$tool/$area$planted.log"); fi
done <<<"$areas"
[ ${#failed[@]} = 0 ] || fail "not as expected: ${failed[*]} in $out"
