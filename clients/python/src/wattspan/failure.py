"""The exceptions of the package.

They are raised only with `strict`, or by calls that cannot return anything else, such as `info()`.
"""

from __future__ import annotations

from typing import Any


class Unavailable(Exception):
    """No daemon, or the daemon does not respond. The message has the reason and the socket."""


class Refused(Unavailable):
    """The daemon returned an error."""

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        self.error = error.rpartition(".")[2]
        """The error's name in the contract: "AccessDenied", "QuotaExceeded"."""
        self.parameters = parameters
        """The parameters of the error."""
        super().__init__(_sentence(self.error, parameters))


def _sentence(error: str, parameters: dict[str, Any]) -> str:
    if error == "AccessDenied":
        needs = parameters.get("needs", "more")
        group = "wattspan-telemetry" if needs == "telemetry" else "wattspan"
        return f"this needs {needs} access: add this user to the group {group}"
    if error == "QuotaExceeded":
        return f"the limit of {parameters.get('limit')} {parameters.get('quota')} is reached"
    if error == "NoSuchSpan":
        return (
            f"the daemon has no span {parameters.get('span')!r}: its opening was refused "
            "(strict=True or WATTSPAN_STRICT=1 shows the reason), or it is no longer kept"
        )
    if error == "StoreDamaged":
        return f"the daemon's store on disk is damaged: {parameters.get('reason')}"
    if error == "StoreUnavailable":
        return f"the daemon cannot read its store on disk: {parameters.get('reason')}"
    if error == "InvalidValue":
        return f"{parameters.get('field')}: {parameters.get('reason')}"
    details = ", ".join(f"{key} {value}" for key, value in parameters.items())
    return f"the daemon refused the call: {error}{f' ({details})' if details else ''}"
