"""The energy of a piece of code, measured by wattspand.

    import wattspan

    with wattspan.span("question 17", model="small") as s:
        ...                     # prefill
        s.phase("decode")
        ...
    print(s.energy_j, s.result())

Without a daemon nothing is measured and nothing fails: `s.result().reason` says why. Only the standard library is used.
"""

from __future__ import annotations

from .account import Account, Nested, Phase, Share
from .brief import balance, begin, end, info, note, phase, span, weight
from .failure import Refused, Unavailable
from .measured import measured
from .meter import Meter
from .span import INHERIT, Inherit, Parent, Span, current
from .span import attached as attach
from .usual import configure, usual

__all__ = [
    "INHERIT",
    "Account",
    "Inherit",
    "Meter",
    "Nested",
    "Parent",
    "Phase",
    "Refused",
    "Share",
    "Span",
    "Unavailable",
    "attach",
    "balance",
    "begin",
    "configure",
    "current",
    "end",
    "info",
    "measured",
    "note",
    "phase",
    "span",
    "usual",
    "weight",
]

__version__ = "0.1.0"
