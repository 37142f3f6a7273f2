# Skips a check where this machine lacks something it needs; sourced by the shell scripts of the checks.
# shellcheck shell=bash

# Prints that a check is skipped, with what is missing and the reason or the remedy. With CI=true the script exits with
# 1, because a check that did not run proves nothing; tests/support/skip.rs does the same for the Rust tests.
skip() { # LACKING REASON
  echo "SKIPPED: this machine lacks $1: $2"
  [ "${CI:-}" != true ] || exit 1
}
