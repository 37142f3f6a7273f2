"""The FastAPI example with a real server and concurrent requests, streamed and not streamed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import PATIENCE_S, REPOSITORY, Daemon

import wattspan

EXAMPLE = REPOSITORY / "examples" / "fastapi_energy.py"


def run(socket: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(wattspan.__file__).parents[1])
    environment = {**os.environ, "WATTSPAN_SOCKET": socket, "PYTHONPATH": source}
    words = [sys.executable, str(EXAMPLE), "--port", "0", "--drive", "12"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S * 3)


def test_the_requests_of_a_fastapi_server_add_up_to_what_was_attributed(daemon: Daemon) -> None:
    ran = run(daemon.socket)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("POST /v1/chat/completions") == 12 and ran.stdout.count("attributed: exact") == 2


def test_without_a_daemon_the_example_says_so(no_daemon: None) -> None:
    ran = run("/nonexistent/wattspan.sock")
    assert ran.returncode == 1 and "no daemon at /nonexistent/wattspan.sock" in ran.stderr
