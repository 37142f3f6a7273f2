"""Measurement windows by key, compatible with Zeus's `ZeusMonitor`.

A window has weight 0, so it takes no energy from any span, and its figures are the whole energy of the hardware while
it was open. Windows may overlap, and each includes the whole energy. To split energy among concurrent work, use spans.
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
    """Energy of the hardware in a window, in joules; None if it is unknown."""

    time: float
    """Seconds."""
    gpu_energy: dict[int, float | None]
    """By GPU index: domain "gpu-0" is 0."""
    cpu_energy: dict[int, float | None] | None
    """By package index; None without such a domain."""
    dram_energy: dict[int, float | None] | None
    total_energy: float | None
    """Sum of all counted domains: GPUs, packages, memory (ZeusMonitor's total has the GPUs only)."""
    account: Account
    """The daemon's account; its `window_uj` are the source of these figures."""


class EnergyMonitor:
    """`begin_window("epoch")`, `end_window("epoch").total_energy`."""

    def __init__(self, *, meter: Meter | None = None, timeout: float = RESULT_TIMEOUT_S) -> None:
        self._meter = meter
        self._timeout = timeout
        self._open: dict[str, tuple[Span, int]] = {}
        self._lock = threading.Lock()

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        """Opens a window. Raises ValueError if one with this key is open. `sync_execution`: first waits until work
        queued on CUDA through torch has finished, if torch is loaded, so that it is not counted in this window."""
        with self._lock:
            if key in self._open:
                raise ValueError(f"a window {key!r} is open already")
            if sync_execution:
                _synchronize()
            opened = Span(self._meter or usual(), key, weight=0.0, parent=None)
            began_ns = time.monotonic_ns()
            self._open[key] = (opened.begin(began_ns), began_ns)

    def end_window(self, key: str, sync_execution: bool = True, cancel: bool = False) -> Measurement:
        """Closes a window and waits for the final figures. Raises ValueError if none with this key is open. `cancel`:
        discards it."""
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
    # Only if the program has imported torch: the import takes seconds and creates a context on the GPU.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.synchronize()
