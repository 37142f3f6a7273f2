#!/bin/sh
# Installs wattspand as a launchd service for all users in the group "wattspan":
#
#   cargo build --release && sudo sh launchd/install.sh [DIRECTORY WITH wattspan AND wattspand]
#
# Run it again to update, or to complete an interrupted installation. launchd/uninstall.sh reverts it. Prints each step.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
from=${1:-$here/../target/release}
label=org.wattspan.wattspand
plist=/Library/LaunchDaemons/$label.plist

step() { printf '%s\n' "- $*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root: sudo sh launchd/install.sh"
[ "$(uname -s)" = Darwin ] || fail "this is no macOS; on Linux use the systemd units"
for program in wattspan wattspand; do
    [ -x "$from/$program" ] || fail "no $from/$program; build it with cargo build --release, or name its directory"
done

# The first number from 320 that is neither a group ID nor a user ID. Below 500, users are not shown at the login window.
free_number() {
    taken=$(dscl . -list /Groups PrimaryGroupID | awk '{print $2}'; dscl . -list /Users UniqueID | awk '{print $2}')
    number=320
    while printf '%s\n' "$taken" | grep -qx "$number"; do
        number=$((number + 1))
        [ "$number" -lt 500 ] || fail "no number below 500 is free for a group"
    done
    printf '%s\n' "$number"
}

number_of() { dscl . -read "/Groups/$1" PrimaryGroupID 2>/dev/null | awk '{print $2}'; }

group() {
    if [ -z "$(number_of "$1")" ]; then
        step "group $1"
        number=$(free_number)
        dscl . -create "/Groups/$1"
        dscl . -create "/Groups/$1" PrimaryGroupID "$number"
        dscl . -create "/Groups/$1" RealName "$2"
        dscl . -create "/Groups/$1" Password '*'
    fi
}

group _wattspan "wattspan, the power meter"
group wattspan "May measure own spans with wattspan"
group wattspan-telemetry "May see all energy that wattspan measures"

if ! dscl . -read /Users/_wattspan UniqueID >/dev/null 2>&1; then
    step "user _wattspan"
    number=$(free_number)
    dscl . -create /Users/_wattspan
    dscl . -create /Users/_wattspan UniqueID "$number"
    dscl . -create /Users/_wattspan PrimaryGroupID "$(number_of _wattspan)"
    dscl . -create /Users/_wattspan RealName "wattspan, the power meter"
    dscl . -create /Users/_wattspan UserShell /usr/bin/false
    dscl . -create /Users/_wattspan NFSHomeDirectory /var/empty
    dscl . -create /Users/_wattspan Password '*'
    dscl . -create /Users/_wattspan IsHidden 1
fi

step "programs, state, log"
# Only root may write the programs and their directories, because launchd starts the daemon from there.
install -d -o root -g wheel -m 0755 /usr/local/libexec /usr/local/bin /usr/local/etc/wattspan
install -o root -g wheel -m 0755 "$from/wattspand" /usr/local/libexec/wattspand
install -o root -g wheel -m 0755 "$from/wattspan" /usr/local/bin/wattspan
install -d -o _wattspan -g _wattspan -m 0750 /var/db/wattspan
[ -e /var/log/wattspan.log ] || install -o _wattspan -g _wattspan -m 0640 /dev/null /var/log/wattspan.log
install -o root -g wheel -m 0644 "$here/wattspan.newsyslog.conf" /etc/newsyslog.d/wattspan.conf

step "service $label"
# A loaded job cannot be loaded again, and unloading is asynchronous.
if launchctl print "system/$label" >/dev/null 2>&1; then
    launchctl bootout "system/$label" || true
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        launchctl print "system/$label" >/dev/null 2>&1 || break
        sleep 1
    done
fi
ready=$(mktemp)
cp "$here/$label.plist" "$ready"
plutil -replace Sockets.Listener.SockPathGroup -integer "$(number_of wattspan)" "$ready"
plutil -lint -s "$ready"
install -o root -g wheel -m 0644 "$ready" "$plist"
rm -f "$ready"
launchctl enable "system/$label"
launchctl bootstrap system "$plist"

cat <<END
Done. Let a user measure:   sudo dseditgroup -o edit -a NAME -t user wattspan
See that it works:          wattspan doctor
What it says:               tail -f /var/log/wattspan.log
Restart, state:             sudo launchctl kickstart -k system/$label; launchctl print system/$label
END
