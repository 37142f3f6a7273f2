#!/usr/bin/env bash
# A disposable Debian with a real systemd as PID 1 and a real system bus, for tests of the installed package.
#
#   boot.sh up DIR              copy the cached root file system to DIR/rootfs, boot it, wait until it runs
#   boot.sh inside DIR CMD...   run a command in it
#   boot.sh down DIR            power it off; its files are kept for analysis
#   boot.sh can                 whether this machine can boot it; if not, prints why
#
# The root file system is built once (mmdebstrap, some 40 s) and cached in ${XDG_CACHE_HOME:-~/.cache}/wattspan-booted,
# outside the checkout. Needs root and namespaces; installs its own requirements with apt. CAP_PERFMON and
# perf_event_open work inside, and /sys/bus/event_source is the host's.
set -euo pipefail
verb=${1:?up, inside, down or can}
release=bookworm
packages=systemd,systemd-sysv,dbus,polkitd,libpam-systemd,python3
cache=${XDG_CACHE_HOME:-$HOME/.cache}/wattspan-booted

can() {
  [ "$(id -u)" = 0 ] || { echo "not root"; return 1; }
  command -v apt-get >/dev/null || { echo "no apt-get: only Debian and its kin can make the root file system"; return 1; }
  unshare --mount --pid --net --uts --ipc --cgroup --fork true 2>/dev/null || { echo "no namespaces"; return 1; }
}

install() {
  local missing=()
  command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
  command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
  if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq -o Acquire::Retries=5
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Acquire::Retries=5 --no-install-recommends "${missing[@]}" >/dev/null
  fi
}

# The name contains a checksum of the package list, so that a change of the list builds a new base.
base() { echo "$cache/$release-$(echo "$packages" | cksum | cut -d' ' -f1).tar"; }

make_base() {
  local base; base=$(base)
  [ -s "$base" ] && return
  mkdir -p "$cache"
  mmdebstrap --quiet --format=tar --variant=apt --include="$packages" --aptopt='Acquire::Retries "5"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' "$release" "$base.$$"
  mv "$base.$$" "$base"
}

# PID 1 of the machine, the only child of systemd-nspawn.
leader() { cat "$dir/leader.pid"; }
inside() { nsenter -t "$(leader)" -m -u -i -n -p -C -- "$@"; }

up() {
  install
  make_base
  if [ ! -d "$dir/rootfs" ]; then
    mkdir "$dir/rootfs.part"
    tar -C "$dir/rootfs.part" -xf "$(base)" --exclude='./dev/*'
    # Files excluded from the base above must not be excluded from the package under test.
    rm -f "$dir"/rootfs.part/etc/dpkg/dpkg.cfg.d/*mmdebstrap*
    # A persistent journal, so that messages from before a restart are kept.
    mkdir -p "$dir/rootfs.part/var/log/journal"
    mv "$dir/rootfs.part" "$dir/rootfs"
  fi
  setsid systemd-nspawn -q -D "$dir/rootfs" -b --register=no --keep-unit --private-network -M "wattspan-$$" \
    --capability=CAP_PERFMON,CAP_SYS_RAWIO,CAP_SYS_NICE,CAP_SYS_RESOURCE --system-call-filter=perf_event_open \
    >"$dir/console.log" 2>&1 </dev/null &
  local nspawn=$! pid state
  echo "$nspawn" >"$dir/nspawn.pid"
  for _ in $(seq 1 300); do
    pid=$(pgrep -P "$nspawn" || true)
    if [ -n "$pid" ]; then
      echo "$pid" >"$dir/leader.pid"
      state=$(inside systemctl is-system-running 2>/dev/null || true)
      case $state in running | degraded) echo "booted: $state"; return ;; esac
    fi
    kill -0 "$nspawn" 2>/dev/null || { tail -20 "$dir/console.log" >&2; return 1; }
    sleep 0.2
  done
  echo "it did not come up in a minute: $dir/console.log" >&2
  return 1
}

down() {
  inside systemctl poweroff >/dev/null 2>&1 || true
  for _ in $(seq 1 150); do
    kill -0 "$(cat "$dir/nspawn.pid")" 2>/dev/null || return 0
    sleep 0.1
  done
  kill "$(cat "$dir/nspawn.pid")"
}

if [ "$verb" = can ]; then can; exit; fi
dir=${2:?directory}
mkdir -p "$dir"
dir=$(readlink -f "$dir")
shift 2
case $verb in
up) up ;;
inside) inside "$@" ;;
down) down ;;
*) echo "up, inside, down or can" >&2; exit 64 ;;
esac
