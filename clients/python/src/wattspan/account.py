"""The account of a span: its energy and how it was measured.

Fields in whole microjoules (`_uj`), milliwatts (`_mw`) and nanoseconds (`_ns`) are the daemon's values for this span
alone; properties in joules and watts (`_j`, `_w`) include the spans nested in it. An unknown value is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

GRADES = ("measured", "modelled", "integrated", "estimated")
"""The origin of a figure, best first."""

FINAL = ("settled", "abandoned", "interrupted")
"""The states in which an account no longer changes."""


@dataclass(frozen=True)
class Share:
    """A span's share of one domain."""

    domain: str
    grade: str
    window_uj: int | None
    """Energy of the whole domain while the span was open."""
    share_uj: int | None
    """This span's share of it."""
    idle_uj: int | None
    """The idle baseline in `share_uj`."""
    error_uj: int | None
    """Guaranteed: the true share is within `share_uj` ± `error_uj`."""
    unknown_ns: int
    """Time inside the span that no reading covers."""

    @property
    def energy_j(self) -> float | None:
        """`share_uj` in joules."""
        return joules(self.share_uj)


@dataclass(frozen=True)
class Phase:
    """A part of a span; the phases of a span add up to it. The phase before the first mark has the name ""."""

    name: str
    opened_ns: int
    closed_ns: int | None
    share_uj: int | None
    error_uj: int | None

    @property
    def energy_j(self) -> float | None:
        """`share_uj` in joules."""
        return joules(self.share_uj)


@dataclass(frozen=True)
class Nested:
    """The sum over all spans nested in a span, at any depth. None if a part is unknown."""

    count: int = 0
    share_uj: int | None = 0
    idle_uj: int | None = 0
    error_uj: int | None = 0
    grade: str | None = None
    """The worst grade among them."""
    reason: str | None = None
    """Why a part is unknown."""

    def plus(self, account: Account) -> Nested:
        """The sum with one more span and the spans nested in it."""
        inner = account.nested
        return Nested(
            self.count + 1 + inner.count,
            _sum((self.share_uj, account.share_uj, inner.share_uj)),
            _sum((self.idle_uj, account.idle_uj, inner.idle_uj)),
            _sum((self.error_uj, account.error_uj, inner.error_uj)),
            worst((self.grade, account.grade, inner.grade)),
            self.reason or account.reason or inner.reason,
        )


@dataclass(frozen=True)
class Account:
    """The result of a span."""

    available: bool
    """Whether the daemon returned an account. If not, `reason` says why."""
    reason: str | None
    """Why there is no account, or why a figure is unknown."""
    span: str
    """The span's ID in the protocol."""
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    state: str = "unavailable"
    """open, provisional, settled, abandoned, interrupted; unavailable if the daemon returned no account."""
    uid: int | None = None
    opened_ns: int | None = None
    """The instant used for the attribution, on the machine's monotonic clock."""
    closed_ns: int | None = None
    moved_ns: int | None = None
    """Sum of the distances by which its edges (opening, closing, phases, weights) were moved."""
    opened_unix_ns: int | None = None
    weight: float | None = None
    share_uj: int | None = None
    """The sum over the counted domains, of this span without the spans nested in it."""
    window_uj: int | None = None
    """Energy of the whole machine while the span was open."""
    idle_uj: int | None = None
    error_uj: int | None = None
    grade: str | None = None
    mean_power_mw: int | None = None
    peak_concurrency: int | None = None
    """Maximum number of concurrently open spans on the machine while this one was open."""
    domains: tuple[Share, ...] = ()
    phases: tuple[Phase, ...] = ()
    nested: Nested = Nested()
    """The spans that were nested in this one."""
    simulated: bool = False
    """One of its domains is replayed from a file and not read from hardware, whatever the grade."""
    at_least: bool = False
    """The sums are lower bounds: two domains may read the same counter, and count once until this is decided."""

    @property
    def settled(self) -> bool:
        """Whether the figures are final."""
        return self.state in FINAL

    @property
    def energy_j(self) -> float | None:
        """Energy of the span, including the spans nested in it."""
        return joules(_sum((self.share_uj, self.nested.share_uj)))

    @property
    def own_energy_j(self) -> float | None:
        """Energy of the span itself, while no span nested in it was open."""
        return joules(self.share_uj)

    @property
    def error_j(self) -> float | None:
        """Guaranteed: the true energy is within `energy_j` ± `error_j`."""
        return joules(_sum((self.error_uj, self.nested.error_uj)))

    @property
    def idle_j(self) -> float | None:
        """The idle baseline in `energy_j`."""
        return joules(_sum((self.idle_uj, self.nested.idle_uj)))

    @property
    def window_j(self) -> float | None:
        """Energy of the whole machine while the span was open."""
        return joules(self.window_uj)

    @property
    def duration_s(self) -> float | None:
        """Time from opening to close."""
        if self.opened_ns is None or self.closed_ns is None:
            return None
        return (self.closed_ns - self.opened_ns) / 1e9

    @property
    def mean_power_w(self) -> float | None:
        """`energy_j` over the duration."""
        energy_j, duration_s = self.energy_j, self.duration_s
        return energy_j / duration_s if energy_j is not None and duration_s else None

    @property
    def worst_grade(self) -> str | None:
        """The grade of `energy_j`: the worst grade of this span and the spans nested in it."""
        return worst((self.grade, self.nested.grade))

    @property
    def quality(self) -> str | None:
        """`worst_grade`, followed by "simulated" for a replayed machine, for display beside a figure."""
        grade = self.worst_grade
        return f"{grade}, simulated" if grade is not None and self.simulated else grade

    def phase(self, name: str) -> Phase | None:
        """The last phase with this name."""
        return next((phase for phase in reversed(self.phases) if phase.name == name), None)

    def domain(self, name: str) -> Share | None:
        """The share of one domain."""
        return next((share for share in self.domains if share.domain == name), None)

    def __str__(self) -> str:
        energy_j = self.energy_j
        if energy_j is None:
            return f"{self.name}: energy unknown ({self.reason or self.nested.reason or self.state})"
        error_j = self.error_j
        within = f" ± {error_j:.3g} J" if error_j is not None else ""
        bound = "at least " if self.at_least else ""
        return f"{self.name}: {bound}{energy_j:.4g} J{within} ({self.quality})"


def joules(energy_uj: int | None) -> float | None:
    """Converts microjoules to joules."""
    return None if energy_uj is None else energy_uj / 1e6


def worst(grades: Iterable[str | None]) -> str | None:
    """The worst known grade."""
    known = [grade for grade in grades if grade is not None]
    return max(known, key=lambda grade: GRADES.index(grade) if grade in GRADES else len(GRADES), default=None)


def _sum(parts: Iterable[int | None]) -> int | None:
    total = 0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def unavailable(span: str, name: str, reason: str) -> Account:
    """The account of a span that was not measured."""
    return Account(False, reason, span, name)


def read(wire: dict[str, Any], nested: Nested, reason: str | None = None) -> Account:
    """Parses an account of the daemon; fields unknown to this version are ignored."""
    shares = tuple(
        Share(
            each["domain"],
            each["grade"],
            each.get("window_uj"),
            each.get("share_uj"),
            each.get("idle_uj"),
            each.get("error_uj"),
            each.get("unknown_ns", 0),
        )
        for each in wire.get("domains", ())
    )
    phases = tuple(
        Phase(each["name"], each["opened_ns"], each.get("closed_ns"), each.get("share_uj"), each.get("error_uj"))
        for each in wire.get("phases", ())
    )
    if reason is None and wire.get("share_uj") is None:
        lacking = [f"{share.domain} ({share.grade})" for share in shares if share.share_uj is None]
        reason = f"unknown: {', '.join(lacking)}" if lacking else "no domain is counted here"
    return Account(
        True,
        reason,
        wire["span"],
        wire["name"],
        dict(wire.get("attributes", {})),
        wire["state"],
        wire.get("uid"),
        wire.get("opened_ns"),
        wire.get("closed_ns"),
        wire.get("moved_ns"),
        wire.get("opened_unix_ns"),
        wire.get("weight"),
        wire.get("share_uj"),
        wire.get("window_uj"),
        wire.get("idle_uj"),
        wire.get("error_uj"),
        wire.get("grade"),
        wire.get("mean_power_mw"),
        wire.get("peak_concurrency"),
        shares,
        phases,
        nested,
        wire.get("simulated") is True,
        wire.get("at_least") is True,
    )


def with_nested(account: Account, nested: Nested) -> Account:
    """The account with the sum over its nested spans."""
    return replace(account, nested=nested) if nested.count or nested.reason else account
