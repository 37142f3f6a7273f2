#!/usr/bin/env bash
# Builds the optimised programs as packaging/build does: each by itself, so that the daemon gets none of the client's
# dependencies and features.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release --package wattspan-cli --bins
cargo build --locked --release --package wattspan --bins
