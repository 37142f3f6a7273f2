"""A powercap zone with a known true energy: a process that writes the counter once per millisecond.

The power is a sine around 90 W, so that the true energy between two instants of CLOCK_MONOTONIC is known exactly, in any
process. Units: seconds, joules.
"""

import math
import os
import time

MEAN_W = 90.0
SWING_W = 60.0
PERIOD_S = 0.73
UPDATE_S = 0.001
# The energy unit of most Intel processors, 2^-14 J.
QUANTUM_UJ = 1e6 / (1 << 14)
# The largest count of 32 bits in that unit.
RANGE_UJ = ((1 << 32) - 1) * 10**6 >> 14


def energy_j(instant_s):
    """The true energy from instant 0 of CLOCK_MONOTONIC."""
    angle = 2 * math.pi * instant_s / PERIOD_S
    return MEAN_W * instant_s + SWING_W * PERIOD_S / (2 * math.pi) * (1 - math.cos(angle))


def counter_uj(instant_s, zero_s):
    """What the counter shows after its update at this instant."""
    energy_uj = (energy_j(instant_s) - energy_j(zero_s)) * 1e6
    return int(energy_uj / QUANTUM_UJ) * QUANTUM_UJ


def make_zone(root):
    """Makes the files of one package below `root`, a directory that replaces /sys/class. Returns the counter's path."""
    zone = os.path.join(root, "powercap", "intel-rapl", "intel-rapl:0")
    os.makedirs(zone)
    files = {"name": "package-0", "max_energy_range_uj": str(RANGE_UJ), "energy_uj": f"{0:016d}", "enabled": "1"}
    for name, text in files.items():
        with open(os.path.join(zone, name), "w") as file:
            file.write(text + "\n")
    os.symlink("intel-rapl/intel-rapl:0", os.path.join(root, "powercap", "intel-rapl:0"))
    os.symlink("..", os.path.join(root, "powercap", "intel-rapl", "subsystem"))
    return os.path.join(zone, "energy_uj")


def write_forever(path, zero_s):
    """Updates the counter at each whole millisecond until killed; a late update shows the energy of its own instant."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except OSError:
        print("simulated counter: no real-time priority, so its updates may be late", flush=True)
    file = os.open(path, os.O_WRONLY)
    next_s = math.ceil(time.monotonic() / UPDATE_S) * UPDATE_S
    while True:
        time.sleep(max(0.0, next_s - time.monotonic()))
        # Sixteen digits: those that change often lie in one machine word, so that no reader sees half an update.
        os.pwrite(file, b"%016d\n" % int(counter_uj(max(next_s, time.monotonic() - UPDATE_S), zero_s)), 0)
        next_s = max(next_s + UPDATE_S, math.floor(time.monotonic() / UPDATE_S) * UPDATE_S)
