"""The search order of the daemon's socket.

The order is: the caller's path, the environment, the default paths. An explicit path is the only one tried, so that a
mistyped path never connects to another daemon.
"""

from __future__ import annotations

import os
import sys

SOCKET_VARIABLE = "WATTSPAN_SOCKET"
"""The environment variable that names the socket."""


def places(named: str | None = None) -> list[str]:
    """The paths to try, in order."""
    if named:
        return [named]
    from_environment = os.environ.get(SOCKET_VARIABLE)
    if from_environment:
        return [from_environment]
    system = "/var/run/wattspan/wattspan.sock" if sys.platform == "darwin" else "/run/wattspan/wattspan.sock"
    user = os.environ.get("XDG_RUNTIME_DIR")
    return [system, os.path.join(user, "wattspan", "wattspan.sock")] if user else [system]
