"""Convenience functions on the process's default meter and on the current span.

Each function is one call and keeps no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .meter import Meter
from .span import INHERIT, Parent, Span, current
from .usual import usual


def span(
    name: str,
    *,
    weight: float = 1.0,
    domains: Iterable[str] | None = None,
    parent: Parent = INHERIT,
    attributes: Mapping[str, object] | None = None,
    meter: Meter | None = None,
    **more: object,
) -> Span:
    """A span for `with` or `async with`, which open it.

    `weight`: its weight in the split of shared energy among the open spans. `domains`: those that it uses; all if None.
    `parent`: by default the current span; None: no parent. `attributes` and other keywords are stored with the
    account."""
    notes = [*(attributes or {}).items(), *more.items()]
    return Span(meter or usual(), name, attributes=notes, weight=weight, domains=domains, parent=parent)


def begin(
    name: str,
    *,
    at_ns: int | None = None,
    weight: float = 1.0,
    domains: Iterable[str] | None = None,
    parent: Parent = INHERIT,
    attributes: Mapping[str, object] | None = None,
    meter: Meter | None = None,
    **more: object,
) -> Span:
    """Opens a span now, or at `at_ns`; `end()` closes it. It does not become the current span."""
    notes = [*(attributes or {}).items(), *more.items()]
    opened = Span(meter or usual(), name, attributes=notes, weight=weight, domains=domains, parent=parent)
    return opened.begin(at_ns)


def end(opened: Span, at_ns: int | None = None, **attributes: object) -> Span:
    """Closes a span that `begin` opened."""
    return opened.end(at_ns, **attributes)


def phase(name: str) -> None:
    """Begins a phase of the current span, if there is one."""
    here = current()
    if here is not None:
        here.phase(name)


def weight(given: float) -> None:
    """Changes the weight of the current span, if there is one."""
    here = current()
    if here is not None:
        here.weight(given)


def note(**attributes: object) -> None:
    """Adds attributes to the current span, if there is one."""
    here = current()
    if here is not None:
        here.note(**attributes)


def info(timeout: float = 5.0) -> dict[str, Any]:
    """Returns the reply of `GetInfo`: the daemon, its clock, every domain, and unavailable sources with the reason.
    Raises `Unavailable` without a daemon."""
    return usual().call("GetInfo", timeout)


def balance(timeout: float = 5.0) -> list[dict[str, Any]]:
    """Returns the reply of `GetBalance`: the energy balance of each domain since the daemon started, in whole
    microjoules: measured = attributed + unattributed. Raises `Unavailable` without a daemon, `Refused` without
    access."""
    answer: list[dict[str, Any]] = usual().call("GetBalance", timeout)["balance"]
    return answer
