"""The page of a soak: what was recorded, over time, with the events."""

import html
import io

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Soak of {hours} h</title>
<style>body {{ font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }}
svg {{ max-width: 100%; height: auto }}
td, th {{ padding: 0 1em 0 0; text-align: left }}</style>
<h1>Soak of {hours} h, seed {seed}</h1>
<p>{verdict}</p>
<p>{accounts} accounts were answered as durable. The shaded part is the long life, in which the daemon is not restarted;
grey lines are faults.</p>
{figures}
<h2>Events</h2>
<table><tr><th>kind<th>times</tr>{events}</table>
"""


def figure(samples, events, title, unit, lines):
    """One plot as SVG; `lines`: a function of a sample for each name."""
    plot, axes = plt.subplots(figsize=(9, 2.6), layout="constrained")
    hours = [sample["t_s"] / 3600 for sample in samples]
    for event in events:
        axes.axvline(event["t_s"] / 3600, color="0.88", linewidth=0.6)
    for name, value in lines.items():
        axes.plot(hours, [value(sample) for sample in samples], label=name, linewidth=1)
    long_life = [hour for hour, sample in zip(hours, samples) if sample["long_life"]]
    if long_life:
        axes.axvspan(long_life[0], long_life[-1], color="tab:blue", alpha=0.06)
    axes.set(title=title, xlabel="time (h)", ylabel=unit)
    axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend(loc="upper left", fontsize="small")
    text = io.StringIO()
    plot.savefig(text, format="svg")
    plt.close(plot)
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def of_process(program, key, unit):
    return lambda sample: sample["processes"][program][key] / unit


def figures(samples, events):
    programs = ("daemon", "jsonl", "prometheus")
    memory = {name: of_process(name, "anonymous_bytes", 1e6) for name in programs}
    counts = {key: of_process("daemon", key, 1) for key in ("descriptors", "threads")}
    cpu = {"daemon": of_process("daemon", "cpu_s", 1)}
    lateness = {
        "readings": lambda sample: sample["lateness_p99_ns"] / 1e6,
        "timer of the soak": lambda sample: sample["timer_p99_ns"] / 1e6,
    }
    return "\n".join(
        (
            figure(samples, events, "Anonymous memory", "MB", memory),
            figure(samples, events, "Descriptors and threads of the daemon", "", counts),
            figure(
                samples,
                events,
                "CPU time of the daemon since its start",
                "s",
                cpu,
            ),
            figure(samples, events, "Store on disk", "MB", {"ledger": lambda sample: sample["disk_bytes"] / 1e6}),
            figure(samples, events, "Accounts waiting for the disk", "", {"waiting": lambda sample: sample["waiting"]}),
            figure(samples, events, "Lateness, 99th percentile", "ms", lateness),
        )
    )


def write_page(path, records, faults):
    samples, events = records["samples"], records["events"]
    kinds = [event["kind"] for event in events]
    verdict = "No fault was found." if not faults else "<br>".join(html.escape(fault) for fault in faults[:100])
    text = PAGE.format(
        hours=records["setup"]["hours"],
        seed=records["setup"]["seed"],
        verdict=verdict,
        accounts=len(records["answered"]),
        figures=figures(samples, [event for event in events if event["kind"] != "turned away"]),
        events="".join(f"<tr><td>{html.escape(kind)}<td>{kinds.count(kind)}</tr>" for kind in sorted(set(kinds))),
    )
    path.write_text(text)
