# The system bus in the booted machine; sourced by test.sh, whose functions it uses. Restores the machine's state.
# shellcheck shell=bash
bus() { as "$1" busctl --json=short "${@:2}" org.wattspan.Wattspan1 /org/wattspan/Wattspan1; }
call_() { as "$1" busctl --json=short call org.wattspan.Wattspan1 /org/wattspan/Wattspan1 org.wattspan.Wattspan1 "${@:2}"; }
# The figures of an account from the bus, under the socket's field names.
figures='{k: it[k] for k in ("span", "state", "share_uj", "error_uj", "window_uj", "opened_ns", "closed_ns", "uid")}'

for _ in $(seq 1 100); do in_ busctl status org.wattspan.Wattspan1 >/dev/null 2>&1 && break; sleep 0.05; done
is "$(in_ busctl --json=short call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus GetConnectionUnixUser s org.wattspan.Wattspan1 | field 'it["data"][0]')" \
  "$(in_ id -u wattspan)" "on the bus its name belongs to the user"
has "$(bus ann introspect 2>/dev/null || as ann busctl introspect org.wattspan.Wattspan1 /org/wattspan/Wattspan1)" "OpenSpan" "everybody finds its methods"

# An account made through the socket, read through socket and bus.
as ann python3 /root/client.py call OpenSpan '{"span": "both"}' CloseSpan '{"span": "both", "wait_settled": true}' >/dev/null
unwrapped='(lambda it: '"$figures"')({k: v["data"] for k, v in it["data"][0].items()})'
by_bus=$(call_ ann GetSpan s both | field "$unwrapped")
by_socket=$(as ann python3 /root/client.py call GetSpan '{"span": "both"}' | field '(lambda it: '"$figures"')(it["parameters"]["account"])')
is "$by_bus" "$by_socket" "a span through the socket has one account at both doors"

# A span opened through the bus by a caller that disconnects: abandoned, and equal through socket and bus.
span=$(call_ ann OpenSpan 'a{sv}' 0 | field 'it["data"][0]')
for _ in $(seq 1 100); do
  by_bus=$(call_ ann GetSpan s "$span" | field "$unwrapped")
  case $by_bus in *abandoned*) break ;; esac
  sleep 0.05
done
has "$by_bus" abandoned "a span through the bus ends with its caller's connection"
by_socket=$(as ann python3 /root/client.py call GetSpan "{\"span\": \"$span\"}" | field '(lambda it: '"$figures"')(it["parameters"]["account"])')
is "$by_bus" "$by_socket" "and has the same account on bus and socket"

if said=$(call_ bob OpenSpan 'a{sv}' 0 2>&1); then fail "a user without access opened a span: $said"; fi
has "$said" "needs" "a user without access is refused on the bus"
said=$(as bob busctl --json=short get-property org.wattspan.Wattspan1 /org/wattspan/Wattspan1 org.wattspan.Wattspan1 Domains)
has "$said" '"liveness"' "but can list the domains"
hasnt "$said" "energy_uj" "without figures"
as root busctl get-property org.wattspan.Wattspan1 /org/wattspan/Wattspan1 org.wattspan.Wattspan1 Balance >/dev/null || fail "root cannot read the balance"
if said=$(as bob busctl get-property org.wattspan.Wattspan1 /org/wattspan/Wattspan1 org.wattspan.Wattspan1 Balance 2>&1); then fail "a user without access read the balance: $said"; fi
ok "nor the balance"
if said=$(call_ ann Reload 2>&1); then fail "a member reloaded over the bus: $said"; fi
ok "polkit refuses a reload by a member without authorization"
call_ root Reload >/dev/null || fail "root cannot reload over the bus"
ok "root may"
if said=$(as bob busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su org.wattspan.Wattspan1 4 2>&1); then fail "bob took the name: $said"; fi
has "$said" "Access denied" "another user cannot own the name"
