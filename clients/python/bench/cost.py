"""Measures a span's cost to the caller against the targets. Needs a daemon: WATTSPAN_SOCKET, or the default paths.

python bench/cost.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from typing import Callable

import wattspan

ROUNDS = 3000
BATCH = 25


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Microseconds of each round, sorted. Pauses between batches give the daemon time to empty its queue, because the
    cost to the caller is measured, not the throughput."""
    costs = []
    for number in range(rounds):
        if number % BATCH == 0:
            time.sleep(0.01)
        began = time.perf_counter_ns()
        work()
        costs.append((time.perf_counter_ns() - began) / 1e3)
    return sorted(costs)


def show(what: str, costs: list[float], target_us: float | None) -> bool:
    """One row; whether the target is met."""
    p50, p99 = costs[len(costs) // 2], costs[len(costs) * 99 // 100]
    met = target_us is None or p50 <= target_us
    target = "" if target_us is None else f"{target_us:8.0f} {'met' if met else 'MISSED'}"
    print(f"{what:44} {p50:8.1f} {p99:8.1f} {target}")
    return met


def floor() -> Callable[[], object]:
    """One send to a thread of another process that reads: what no client can do without."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        while theirs.recv(65536):
            pass
        os._exit(0)
    theirs.close()
    return lambda: ours.send(b"x" * 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    try:
        wattspan.info()
    except wattspan.Unavailable as why:
        sys.exit(str(why))
    open_spans: list[wattspan.Span] = []

    def begin() -> None:
        open_spans.append(wattspan.begin("question", model="small"))

    def block() -> None:
        with wattspan.span("question", model="small"):
            pass

    def marked() -> None:
        with wattspan.span("question", model="small") as s:
            s.phase("decode")

    def nested() -> None:
        with wattspan.span("inside"):
            pass

    def awaited() -> None:
        with wattspan.span("question") as s:
            pass
        s.result()

    print(f"{'microseconds':44} {'p50':>8} {'p99':>8}   target")
    show("floor: 200 bytes into a socket with a reader", timed(floor(), rounds), None)
    met = show("open, oneway", timed(begin, rounds), 25)
    for s in open_spans:
        s.cancel()
    met &= show("with block, result not awaited", timed(block, rounds), 120)
    show("with block with a phase", timed(marked, rounds), None)
    with wattspan.span("above"):
        show("with block nested in another", timed(nested, rounds), None)
    show("with block, settled result awaited", timed(awaited, min(rounds, 200)), None)
    wattspan.configure("/nonexistent/wattspan.sock")
    show("with block without a daemon", timed(block, rounds), None)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
