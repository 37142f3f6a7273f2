"""Windows by key, for code that was written for Zeus's `ZeusMonitor`.

Owns the open windows of one monitor. A window is an observer: it has weight 0, so it takes no energy from any span, and
its figures are what the hardware used while it was open, whoever used it. Windows may overlap in any way, and each has
the whole. For the part that belongs to one of several at once use spans.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from dataclasses import dataclass

from .account import Account, joules
from .failure import Unavailable
from .meter import Meter
from .span import RESULT_TIMEOUT_S, Span
from .usual import usual


@dataclass(frozen=True)
class Measurement:
    """What the hardware used in a window, in joules; None where it is not known."""

    time: float
    """Seconds."""
    gpu_energy: dict[int, float | None]
    """By the card's number: domain "gpu-0" is 0."""
    cpu_energy: dict[int, float | None] | None
    """By the package's number; None where there is no such domain."""
    dram_energy: dict[int, float | None] | None
    total_energy: float | None
    """All counted domains, each once: cards, packages, memory (ZeusMonitor's total has the cards only)."""
    account: Account
    """What the daemon said; its `window_uj` are the figures here."""


class EnergyMonitor:
    """`begin_window("epoch")`, `end_window("epoch").total_energy`."""

    def __init__(self, *, meter: Meter | None = None, timeout: float = RESULT_TIMEOUT_S) -> None:
        self._meter = meter
        self._timeout = timeout
        self._open: dict[str, tuple[Span, int]] = {}
        self._lock = threading.Lock()

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        """Opens a window. ValueError where one of this key is open. `sync_execution`: waits until the work that was
        given to CUDA through torch is done, if torch is loaded, so that it is not counted here."""
        with self._lock:
            if key in self._open:
                raise ValueError(f"a window {key!r} is open already")
            if sync_execution:
                _synchronize()
            opened = Span(self._meter or usual(), key, weight=0.0, parent=None)
            began_ns = time.monotonic_ns()
            self._open[key] = (opened.begin(began_ns), began_ns)

    def end_window(self, key: str, sync_execution: bool = True, cancel: bool = False) -> Measurement:
        """Closes it and waits for the final figures. ValueError where none of this key is open. `cancel`: forgets
        it."""
        with self._lock:
            if key not in self._open:
                raise ValueError(f"no window {key!r} is open")
            closing, began_ns = self._open.pop(key)
        if sync_execution:
            _synchronize()
        ended_ns = time.monotonic_ns()
        if cancel:
            closing.cancel()
        else:
            closing.end(ended_ns)
        try:
            account = closing.result(0 if cancel else self._timeout)
        except Unavailable:
            if not cancel:
                raise
            account = Account(False, "the window was cancelled", closing.id, key)
        return _measurement(account, (ended_ns - began_ns) / 1e9)


def _measurement(account: Account, seconds: float) -> Measurement:
    return Measurement(
        time=seconds,
        gpu_energy=_by_number(account, "gpu"),
        cpu_energy=_by_number(account, "package") or _by_number(account, "cpu") or None,
        dram_energy=_by_number(account, "dram") or None,
        total_energy=account.window_j,
        account=account,
    )


def _by_number(account: Account, kind: str) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for share in account.domains:
        named = re.fullmatch(rf"{kind}(?:-(\d+))?", share.domain)
        if named:
            found[int(named[1] or 0)] = joules(share.window_uj)
    return found


def _synchronize() -> None:
    # Only what the program loaded itself: importing torch would take seconds and a context on the card.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.synchronize()
