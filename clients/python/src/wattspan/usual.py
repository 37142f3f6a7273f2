"""The process's usual meter, which everything uses that names no other.

Owns that one value. Nothing is connected before the first span.
"""

from __future__ import annotations

import atexit

from .meter import Meter

_usual = Meter()


def usual() -> Meter:
    """The process's usual meter."""
    return _usual


def configure(socket: str | None = None, *, strict: bool | None = None) -> Meter:
    """Makes the usual meter anew: another socket; `strict`: what cannot be measured raises. Gives it."""
    global _usual
    _usual.close()
    _usual = Meter(socket, strict=strict)
    return _usual


@atexit.register
def _at_exit() -> None:
    _usual.flush()
