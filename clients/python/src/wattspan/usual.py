"""The process's default meter, which is used unless a caller passes another.

It connects when the first span is opened.
"""

from __future__ import annotations

import atexit

from .meter import Meter

_usual = Meter()


def usual() -> Meter:
    """Returns the process's default meter."""
    return _usual


def configure(socket: str | None = None, *, strict: bool | None = None) -> Meter:
    """Replaces the default meter and returns it. `socket`: its path; `strict`: a failed measurement raises."""
    global _usual
    _usual.close()
    _usual = Meter(socket, strict=strict)
    return _usual


@atexit.register
def _at_exit() -> None:
    _usual.flush()
