#!/bin/sh
# Removes the installation of launchd/install.sh:
#
#   sudo sh launchd/uninstall.sh [--all]
#
# Keeps settings, state, log, user and groups for a later installation; --all removes them too.
set -eu

label=org.wattspan.wattspand
plist=/Library/LaunchDaemons/$label.plist

step() { printf '%s\n' "- $*"; }
fail() { printf 'uninstall.sh: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root: sudo sh launchd/uninstall.sh"
[ "$(uname -s)" = Darwin ] || fail "this is no macOS"
[ "${1:-}" = "" ] || [ "$1" = --all ] || fail "there is no $1; --all takes everything away"

step "service $label"
if launchctl print "system/$label" >/dev/null 2>&1; then
    launchctl bootout "system/$label"
fi
rm -f "$plist" /var/run/wattspan.sock

step "programs"
rm -f /usr/local/libexec/wattspand /usr/local/bin/wattspan /etc/newsyslog.d/wattspan.conf

if [ "${1:-}" = --all ]; then
    step "settings, state, log, user and groups"
    rm -rf /usr/local/etc/wattspan /var/db/wattspan
    rm -f /var/log/wattspan.log /var/log/wattspan.log.*
    for record in /Users/_wattspan /Groups/wattspan /Groups/wattspan-telemetry /Groups/_wattspan; do
        if dscl . -read "$record" >/dev/null 2>&1; then
            dscl . -delete "$record"
        fi
    done
fi
