# Skipping a check where this machine lacks something; sourced by the checks' shell scripts.
# shellcheck shell=bash

# Says that a check is skipped: what this machine lacks, and the reason or the remedy. With CI=true the script ends with 1,
# since a check that did not run proves nothing there; tests/support/skip.rs does the same for Rust's tests.
skip() { # LACKING REASON
  echo "SKIPPED: this machine lacks $1: $2"
  [ "${CI:-}" != true ] || exit 1
}
