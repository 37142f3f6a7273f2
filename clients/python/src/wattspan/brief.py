"""What is called most, in few words, on the process's usual meter.

Owns nothing: each function is one call on the usual meter or on the current span.
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
    """A span for `with` or `async with`; it opens there.

    `weight`: its part of shared energy relative to other open spans. `domains`: those it uses; all if None.
    `parent`: None for none, else the current span. `attributes` and all other keywords are kept with the account."""
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
    """Closes what `begin` opened."""
    return opened.end(at_ns, **attributes)


def phase(name: str) -> None:
    """Begins a phase of the current span; nothing where there is none."""
    here = current()
    if here is not None:
        here.phase(name)


def weight(given: float) -> None:
    """Changes the current span's weight; nothing where there is none."""
    here = current()
    if here is not None:
        here.weight(given)


def note(**attributes: object) -> None:
    """Notes something on the current span; nothing where there is none."""
    here = current()
    if here is not None:
        here.note(**attributes)


def info(timeout: float = 5.0) -> dict[str, Any]:
    """The daemon, its clock, every domain, and what is not there with the reason: `GetInfo` as the contract has it.
    Raises `Unavailable` where there is no daemon."""
    return usual().call("GetInfo", timeout)


def balance(timeout: float = 5.0) -> list[dict[str, Any]]:
    """Where the joules went since the daemon started: measured = attributed + unattributed, in whole microjoules, for
    each domain: `GetBalance`. Raises `Unavailable` where there is no daemon, `Refused` without access."""
    answer: list[dict[str, Any]] = usual().call("GetBalance", timeout)["balance"]
    return answer
