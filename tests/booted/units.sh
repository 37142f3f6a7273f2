#!/usr/bin/env bash
# The units of the repository: systemd-analyze verify reports nothing, and the service's exposure is at most 0.8,
# offline, whatever system this runs on. The drop-ins are verified with it; their exposure is printed, without a limit.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/skip.sh
command -v systemd-analyze >/dev/null || { skip "systemd-analyze" "install systemd"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# verify checks that the programs exist; any program serves, in place of those of the package.
units() {
  rm -rf "${folder:?}"/*
  cp systemd/wattspand.service systemd/wattspand.socket "$folder"
  sed -i -E 's,^(Exec(Start|Reload)=)/usr/bin/wattspand?,\1/bin/true,; /^(NoExecPaths|ExecPaths)=/d' "$folder/wattspand.service"
  if [ $# = 1 ]; then mkdir "$folder/wattspand.service.d"; cp "$1" "$folder/wattspand.service.d/"; fi
}
for drop_in in "" systemd/examples/*.conf; do
  units ${drop_in:+"$drop_in"}
  said=$(systemd-analyze verify --man=no "$folder/wattspand.service" "$folder/wattspand.socket" 2>&1) || said="status $?: $said"
  [ -z "$said" ] || { echo "systemd-analyze verify ${drop_in:-the units}: $said"; exit 1; }
done
for unit in wattspan-export.service wattspan-otlp.service wattspan-prometheus.service; do
  sed 's,^ExecStart=/usr/bin/wattspan ,ExecStart=/bin/true ,; /^\(NoExecPaths\|ExecPaths\)=/d' "systemd/$unit" >"$folder/$unit"
  said=$(systemd-analyze verify --man=no "$folder/$unit" "$folder/wattspand.socket" 2>&1) || said="status $?: $said"
  [ -z "$said" ] || { echo "systemd-analyze verify $unit: $said"; exit 1; }
done
# Self-test: verify must report a unit with an unknown setting.
units
sed -i '/^\[Service\]/a NoSuchWord=yes' "$folder/wattspand.service"
case $(systemd-analyze verify --man=no "$folder/wattspand.service" "$folder/wattspand.socket" 2>&1 || true) in
*NoSuchWord*) ;;
*) echo "systemd-analyze verify passes a unit that is wrong"; exit 1 ;;
esac
exposure() { systemd-analyze security --offline=true --no-pager "$@" | tail -1; }
exposure --threshold=8 systemd/wattspand.service || { echo "the service is more exposed than 0.8"; exit 1; }
exposure --threshold=5 systemd/wattspan-export.service || { echo "the exporter is more exposed than 0.5"; exit 1; }
# It differs in what a connection to the collector needs: the network, and IP sockets.
exposure --threshold=11 systemd/wattspan-otlp.service || { echo "the OTLP exporter is more exposed than 1.1"; exit 1; }
exposure --threshold=5 systemd/wattspan-prometheus.service || { echo "the Prometheus exporter is more exposed than 0.5"; exit 1; }
for drop_in in systemd/examples/*.conf; do
  cat systemd/wattspand.service "$drop_in" >"$folder/with.service"
  echo "  with $(basename "$drop_in"): $(exposure "$folder/with.service" | sed 's/.*: //')"
done
