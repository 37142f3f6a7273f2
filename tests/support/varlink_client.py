"""A client of the daemon for tests in Python, without the project's own client."""

import json
import socket


class CallError(Exception):
    """The daemon answered with an error."""


class VarlinkClient:
    """A connection. A closed or refused one raises OSError."""

    def __init__(self, path, timeout_s):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(timeout_s)
        self.stream.connect(str(path))
        self.received = b""

    def send(self, method, **call):
        self.stream.sendall(json.dumps({"method": f"org.wattspan.Meter.{method}", **call}).encode() + b"\0")

    def call_oneway(self, method, **parameters):
        """Calls a method without a reply."""
        self.send(method, parameters=parameters, oneway=True)

    def call(self, method, **parameters):
        """Calls a method; returns the parameters of its reply."""
        self.send(method, parameters=parameters)
        while b"\0" not in self.received:
            part = self.stream.recv(1 << 20)
            if not part:
                raise ConnectionResetError(f"{method}: the daemon closed the connection")
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        reply = json.loads(message)
        if "error" in reply:
            raise CallError(f"{method}: {reply}")
        return reply["parameters"]
