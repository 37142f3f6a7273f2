# The services of the exporters in the booted machine; sourced by test.sh, whose functions it uses. Restores the machine's state.
# shellcheck shell=bash disable=SC2154
socket=/run/wattspan-prometheus/metrics.sock
metrics() { as "$1" python3 /root/client.py metrics "$socket"; }
exporter_fails() { in_ journalctl -u "$1" --no-pager -n 20 -o cat || true; fail "$2"; }

# A simulated machine keeps accounts only where its configuration names a directory.
kept=$machine/rootfs/etc/wattspan/wattspan.toml.d/55-test.toml
echo 'state_dir = "/var/lib/wattspan"' >"$kept"
in_ systemctl reset-failed wattspand.service
restart
as ann python3 /root/client.py call OpenSpan '{"span": "exported"}' CloseSpan '{"span": "exported", "wait_settled": true}' >/dev/null

in_ systemctl start wattspan-prometheus.service
said=""
# The first values come with the first instant of its grid of 10 s.
for _ in $(seq 1 60); do
  said=$(metrics tess 2>&1 || true)
  case $said in *"wattspan_accounts_up 1"*) break ;; esac
  sleep 0.5
done
case $said in *"wattspan_accounts_up 1"*) ;; *) exporter_fails wattspan-prometheus.service "no metrics: $said" ;; esac
is "$(in_ stat -c '%U:%G %a' "$socket")" "wattspan-export:wattspan-telemetry 660" "the socket of the metrics"
has "$said" "wattspan_exporter_all_users 1" "a member of wattspan-telemetry reads the metrics of all users' spans"
has "$said" "wattspan_energy_joules_total{domain=\"package-0\"}" "and the energy"
for user in ann bob; do
  if said=$(metrics "$user" 2>&1); then fail "$user, who is no member, read the metrics: $said"; fi
  has "$said" "PermissionError" "$user, who is no member, cannot connect to it"
done
is "$(in_ stat -c '%U %a' /var/lib/wattspan-prometheus)" "wattspan-export 700" "the directory of its totals"

as bob python3 /root/client.py collect 4318 >"$machine/collected" &
collecting=$!
for _ in $(seq 1 100); do grep -q listens "$machine/collected" && break; sleep 0.05; done
in_ systemctl start wattspan-otlp.service
wait $collecting || exporter_fails wattspan-otlp.service "the collector got nothing"
is "$(field 'sorted(it), it["/v1/traces"] > 0, it["/v1/metrics"] > 0' <"$machine/collected")" \
  "(['/v1/metrics', '/v1/traces'], True, True)" "the collector gets accounts and metrics"
state=/var/lib/wattspan-otlp/otlp.json
for _ in $(seq 1 100); do in_ test -e "$state" && break; sleep 0.05; done
is "$(in_ stat -c '%U %a' "$state")" "wattspan-otlp 600" "the state of the export to it"

for unit in wattspan-prometheus.service wattspan-otlp.service; do
  is "$(show ActiveState "$unit") $(show NRestarts "$unit")" "active 0" "$unit runs, and its restarts"
  in_ systemctl stop "$unit"
  is "$(show Result "$unit")" success "and it ends"
done
in_ sh -c "! test -e $socket" || fail "the socket of the metrics is left"
rm "$kept"
in_ systemctl reset-failed wattspand.service
restart
