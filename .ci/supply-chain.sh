#!/usr/bin/env bash
# Checks what the programs are built from: licences, sources and banned crates (deny.toml), known vulnerabilities where
# the database can be had, and that each crate of the privileged daemon is in the audit list with a reason.
#
#   .ci/supply-chain.sh          these checks
#   .ci/supply-chain.sh long     also: builds with the minimum Rust version, and with the lowest versions that the
#                                manifests allow of direct dependencies (needs rustup, nightly, and some ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/tools
fail() { printf 'supply-chain: %s\n' "$*" >&2; exit 1; }

packaging/install-tool cargo-deny 0.20.2 --no-default-features
deny() { "$tools/bin/cargo-deny" --locked "$@"; }
deny check licenses bans sources
# A check that cannot fail is none: without MIT in the list it must.
sed 's/"MIT", //' deny.toml >target/deny-without-mit.toml
if deny check --config target/deny-without-mit.toml licenses >/dev/null 2>&1; then
  fail "the check of licences passes without an allowed licence"
fi
if deny fetch >target/advisories.log 2>&1; then
  deny check advisories
else
  echo "not checked against known vulnerabilities: the advisory database cannot be fetched here"
fi

# The audit list names each crate of the daemon once, with a reason, and no other.
listed=$(sed -n 's/^| `\([^`]*\)` | .\{10,\} |$/\1/p' docs/daemon-crates.md | sort)
linked=$(sed '/^#/d; s/ .*//' .ci/daemon-dependencies.txt | sort -u)
diff <(echo "$listed") <(echo "$linked") ||
  fail "docs/daemon-crates.md (left) and the daemon's dependencies (right) differ: read the crate and add or remove its row"

[ "${1-}" = long ] || exit 0
minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
rustup toolchain install "$minimum" --profile minimal >/dev/null 2>&1 || fail "rustup cannot install Rust $minimum"
CARGO_TARGET_DIR=target/minimum cargo "+$minimum" check --locked --workspace --bins
echo "builds with Rust $minimum"
copy=target/lowest/source
rm -rf "$copy" && mkdir -p "$copy" && git archive HEAD | tar -x -C "$copy"
(cd "$copy" && cargo +nightly update -Z direct-minimal-versions &&
  CARGO_TARGET_DIR=../build cargo check --locked --workspace --bins)
echo "builds with the lowest versions of direct dependencies"
