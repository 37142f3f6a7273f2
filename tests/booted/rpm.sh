#!/usr/bin/env bash
# The .rpm from packaging/build: contains the same files as the .deb, and installs into an empty root.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/skip.sh
command -v rpm >/dev/null || { skip "rpm" "install rpm"; exit 0; }
made=$(ls -t target/package/wattspan-*.rpm | head -1)
[ "$made" -nt target/release/wattspand ] || { echo "$made is older than the program: packaging/build made none"; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
rpm --dbpath "$root/db" --initdb
rpm --dbpath "$root/db" --root "$root" --install --nodeps --noscripts "$PWD/$made" 2>/dev/null \
  || rpm --root "$root" --install --nodeps --noscripts "$made"
for file in usr/bin/wattspan usr/bin/wattspand usr/lib/systemd/system/wattspand.service usr/lib/systemd/system/wattspand.socket \
  usr/lib/sysusers.d/wattspan.conf usr/lib/tmpfiles.d/wattspan.conf etc/wattspan/wattspan.toml usr/share/man/man8/wattspand.8.gz \
  usr/share/man/man1/wattspan.1.gz usr/share/bash-completion/completions/wattspan usr/share/licenses/wattspan/LICENSE-MIT; do
  [ -e "$root/$file" ] || { echo "the .rpm lacks $file"; exit 1; }
done
[ "$(rpm -qcp "$made")" = /etc/wattspan/wattspan.toml ] || { echo "its configuration file is not marked as one"; exit 1; }
[ "$("$root/usr/bin/wattspand" --config "$root/etc/wattspan/wattspan.toml" --check | grep -c '^rate_hz = 1000.0$')" = 1 ]
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
[ "$("$root/usr/bin/wattspan" --version)" = "wattspan $version" ] || { echo "its wattspan does not run, or is another version"; exit 1; }
case $(rpm -qp --scripts "$made") in *systemd-sysusers*) ;; *) echo "its scripts make no user"; exit 1 ;; esac
echo "$made: $(rpm -qlp "$made" | wc -l) files, as they should be"
