#!/usr/bin/env bash
# The checks of the Python package: lints, Python 3.9's syntax and library, types, the tests on a real
# daemon, and a wheel that installs and runs in an environment of its own. Needs Python 3.10 or later with venv (for
# mypy), the package index, and a built wattspand (cargo build, or WATTSPAND=PATH).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="$(cd "$here/../.." && pwd)/target/python"
cd "$here"

say() { printf '\n== %s python: %s\n' "$(date +%T)" "$*"; }

mkdir -p "$work"
wanted="$(python3 --version) $(cat requirements-check.txt)"
if [ "$(cat "$work/tools.stamp" 2>/dev/null)" != "$wanted" ]; then
  say "tools"
  rm -rf "$work/tools"
  python3 -m venv "$work/tools"
  "$work/tools/bin/pip" install --quiet --disable-pip-version-check -r requirements-check.txt
  printf '%s' "$wanted" >"$work/tools.stamp"
fi
tools="$work/tools/bin"
export PYTHONDONTWRITEBYTECODE=1 MYPY_CACHE_DIR="$work/mypy" RUFF_CACHE_DIR="$work/ruff"

say "lints"
"$tools/ruff" check . ../../examples/fastapi_energy.py ../../tests/evaluators ../../tests/soak
"$tools/ruff" format --check . ../../examples/fastapi_energy.py ../../tests/evaluators ../../tests/soak
"$tools/vermin" --no-tips --violations -t=3.9- src >"$work/vermin.log" || { cat "$work/vermin.log"; exit 1; }

say "types"
"$tools/mypy"

say "wheel"
rm -rf build src/*.egg-info "$work/dist" "$work/fresh"
"$tools/python" -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
rm -rf build src/*.egg-info
python3 -m venv "$work/fresh"
"$work/fresh/bin/pip" install --quiet --disable-pip-version-check --no-index "$work"/dist/*.whl
# In another directory, so that the checkout is not imported instead of the wheel; OpenTelemetry is not installed there.
(cd "$work" && WATTSPAN_SOCKET=/nonexistent/wattspan.sock "$work/fresh/bin/python" -W error - <<'EOF'
import importlib.metadata, importlib.resources, sys
import wattspan, wattspan.asgi, wattspan.window

assert importlib.metadata.version("wattspan") == wattspan.__version__
assert importlib.resources.files("wattspan").joinpath("py.typed").is_file()
assert all(hasattr(wattspan, name) for name in wattspan.__all__)
with wattspan.span("x") as s:
    pass
assert s.energy_j is None and "no daemon" in s.result().reason, s.result()
print("installed", wattspan.__version__, "from", *importlib.metadata.files("wattspan")[:1])
EOF
)

say "tests"
PYTHONPATH="$here/src" "$tools/python" -m pytest -p no:cacheprovider
say "done"
