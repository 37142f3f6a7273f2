"""Fixtures: a real daemon on a simulated machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import wattspan

REPOSITORY = Path(__file__).resolve().parents[3]
MACHINES = REPOSITORY / "tests" / "fixtures" / "machines"

PATIENCE_S = 60.0
"""Timeout of every wait in the tests, in seconds; an upper limit, not an expected time."""

STEADY = """
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 20]]
quantum_uj = 15
ceiling_w = 100
"""
"""A machine with a constant power of 100 W, whose counters move as often as RAPL's."""

SLUGGISH = """
[[domain]]
name = "package-0"
kind = "package"
profile = [[1.0, 80]]
update_ns = 20_000_000_000
"""
"""A machine whose only counter moves so rarely that no account settles during a test."""


class Daemon:
    """One `wattspand` process, killed at the end of the test."""

    def __init__(self, program: str, machine: str, configuration: str = "") -> None:
        # Below /tmp, not TMPDIR, because a socket's path has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="wattspan-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.program = program
        self.socket = str(self.directory / "run" / "wattspan.sock")
        (self.directory / "machine.toml").write_text(machine)
        (self.directory / "wattspan.toml").write_text(configuration)
        self.start()

    def start(self) -> None:
        """Starts the daemon, or restarts it after it ended, and waits for its socket."""
        environment = {key: value for key, value in os.environ.items() if key != "WATTSPAN_SOCKET"}
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    self.program,
                    *("--config", str(self.directory / "wattspan.toml")),
                    *("--replay", str(self.directory / "machine.toml")),
                    *("--socket", self.socket),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        until("listens", self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PATIENCE_S)
            if probe.connect_ex(self.socket) != 0:
                return False
            # The socket exists before the counters are read; the daemon replies once they are.
            probe.sendall(b'{"method":"org.wattspan.Meter.GetInfo"}\0')
            return probe.recv(1) == b"{"

    def kill(self) -> None:
        """Kills the daemon with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stops the daemon with SIGSTOP: it accepts, reads and sends nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.go_on()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def until(what: str, so: Callable[[], bool]) -> None:
    """Waits until a condition is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def program() -> str:
    """The daemon's program: WATTSPAND, else the cargo build."""
    named = os.environ.get("WATTSPAND")
    found = [named] if named else [str(REPOSITORY / "target" / kind / "wattspand") for kind in ("debug", "release")]
    for path in found:
        if os.access(path, os.X_OK):
            return path
    raise pytest.UsageError(f"no wattspand at {' or '.join(found)}: run cargo build, or set WATTSPAND")


@pytest.fixture
def boot(program: str) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons: `boot(machine, configuration)`."""
    started: list[Daemon] = []

    def start(machine: str = STEADY, configuration: str = "") -> Daemon:
        started.append(Daemon(program, machine, configuration))
        return started[-1]

    yield start
    for daemon in started:
        daemon.end()


@pytest.fixture
def daemon(boot: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A daemon on a steady machine, used by the default meter."""
    started = boot()
    wattspan.configure(started.socket)
    yield started
    wattspan.configure("/nonexistent/wattspan.sock")


@pytest.fixture
def patient_daemon(boot: Callable[..., Daemon]) -> Iterator[Daemon]:
    """As `daemon`; takes messages that come a second late as they are. For tests of short spans: a daemon that does not
    run for as long as a span is open moves its opening and its close to one instant."""
    started = boot(STEADY, "horizon_ms = 1000.0\n")
    wattspan.configure(started.socket)
    yield started
    wattspan.configure("/nonexistent/wattspan.sock")


@pytest.fixture
def no_daemon() -> Iterator[None]:
    """No daemon."""
    wattspan.configure("/nonexistent/wattspan.sock")
    yield
    wattspan.configure("/nonexistent/wattspan.sock")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true a skipped test fails: a check that did not run proves nothing there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
