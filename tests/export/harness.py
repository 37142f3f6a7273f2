"""A daemon on a simulated machine, programs that are killed and started again, and load: for the tests of exporters."""

import atexit
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from varlink_client import VarlinkClient  # noqa: E402

TIMEOUT_S = 60

MACHINE = """
[[domain]]
name = "package-0"
kind = "package"
profile = [[0.03, 80], [0.02, 35]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "core-0"
kind = "core"
parent = "package-0"
profile = [[1.0, 50]]
quantum_uj = 61
ceiling_w = 400
[[domain]]
name = "dram-0"
kind = "dram"
profile = [[1.0, 20]]
quantum_uj = 15
ceiling_w = 100
"""


def wait_for(what, condition):
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {TIMEOUT_S} s"
        time.sleep(0.005)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A program that is killed and started again."""

    def __init__(self, name, command, out, port=None):
        self.name, self.command, self.out, self.port = name, [str(word) for word in command], out, port
        self.kills = 0
        atexit.register(self.end)
        self.start()

    def start(self):
        with open(self.out / f"{self.name}.log", "a") as log:
            self.child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if self.port:
            wait_for(self.name, lambda: listens(self.port))

    def stop(self, how=signal.SIGKILL):
        assert self.child.poll() is None, f"{self.name} has ended by itself: {self.child.returncode}"
        self.child.send_signal(how)
        self.child.wait()
        self.kills += 1

    def restart(self, how=signal.SIGKILL):
        self.stop(how)
        self.start()

    def end(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


class Daemon(Process):
    """wattspand on the machine above, with its files in `out`."""

    def __init__(self, program, out, configuration=""):
        (out / "run").mkdir(parents=True)
        (out / "machine.toml").write_text(MACHINE)
        (out / "wattspan.toml").write_text(f"bus = false\n{configuration}")
        self.socket = out / "run" / "wattspan.sock"
        options = ["--config", out / "wattspan.toml", "--replay", out / "machine.toml", "--socket", self.socket]
        super().__init__("daemon", [program, *options, "--state-dir", out / "state"], out)

    def start(self):
        super().start()
        wait_for("the daemon", self.is_up)

    def is_up(self):
        try:
            VarlinkClient(self.socket, TIMEOUT_S).call("GetInfo")
            return True
        except OSError:
            return False

    def stored(self):
        """All accounts by number, once none waits for the disk. The last span must have been closed with a wait."""
        client = VarlinkClient(self.socket, TIMEOUT_S)
        wait_for("settled accounts", lambda: is_stored(client.call("GetInfo")))
        found, after = {}, 0
        while True:
            page = client.call("ListSpans", after=after, limit=4096)
            found.update({account["number"]: account for account in page["accounts"]})
            after = page["after"]
            if page["at_end"]:
                assert not page.get("gaps"), page["gaps"]
                return found


def is_stored(info):
    """Whether no span is open, and every settled account is on a disk that works."""
    return info["spans"]["open"] == 0 and info["keeping"]["durable"] and info["keeping"]["waiting"] == 0


class Load(threading.Thread):
    """Spans at a rate, over restarts of the daemon. `attributes`: those of the n-th span."""

    def __init__(self, daemon, per_second, attributes):
        super().__init__(daemon=True)
        self.daemon_process, self.per_second, self.attributes = daemon, per_second, attributes
        self.ended, self.made, self.error = False, 0, None
        self.start()

    def run(self):
        try:
            while not self.ended:
                self.connect_and(self.run_spans)
        except Exception as error:
            self.error = error

    def connect_and(self, work):
        """Does it with a connection of its own; returns whether the daemon stayed."""
        try:
            work(VarlinkClient(self.daemon_process.socket, TIMEOUT_S))
            return True
        except OSError:
            time.sleep(0.02)
            return False

    def run_spans(self, client):
        while not self.ended:
            begin = time.monotonic()
            self.run_span(client)
            time.sleep(max(0, begin + 1 / self.per_second - time.monotonic()))

    def run_span(self, client, **close):
        span = client.call("OpenSpan", name=f"request {self.made}", attributes=self.attributes(self.made))["span"]
        client.call("MarkPhase", span=span, phase="decode")
        client.call("CloseSpan", span=span, **close)
        self.made += 1

    def wait_for_more(self, spans):
        before = self.made
        wait_for("load", lambda: self.made >= before + spans or self.error)

    def finish(self):
        """Ends it with a span that has settled, and so have all that were closed before."""
        self.ended = True
        self.join(TIMEOUT_S)
        assert self.error is None, self.error
        wait_for("the last span", lambda: self.connect_and(lambda client: self.run_span(client, wait_settled=True)))


def random_hex(digits):
    return f"{random.getrandbits(4 * digits - 1) | 1:0{digits}x}"


def rounds(default):
    return int(os.environ.get("ROUNDS", default))
