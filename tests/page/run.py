"""Writes a synthetic run of a few hundred queries, to review its report: run.py DIRECTORY [concurrency]"""

import json
import pathlib
import random
import sys

out = pathlib.Path(sys.argv[1])
lanes = int(sys.argv[2]) if len(sys.argv) > 2 else 4
out.mkdir(parents=True)
rng = random.Random(7)
SUBJECTS = ["arithmetic", "general knowledge", "language & <logic>", "reading", "science", "world history and geography"]
domains = [
    {"name": "package-0", "kind": "package", "source": "powercap", "counted": True, "grade": "measured"},
    {"name": "gpu-0", "kind": "gpu", "source": "nvml", "counted": True, "grade": "measured"},
]
questions, rows, texts = [], [], []
free = [0.0] * lanes
spans = []
for at in range(300):
    subject = SUBJECTS[rng.randrange(len(SUBJECTS))]
    hard = SUBJECTS.index(subject)
    tokens_in, tokens_out = 30 + rng.randrange(200), 10 + int(rng.expovariate(1 / (40 + 20 * hard)))
    first = 0.05 + tokens_in * 4e-4 * rng.uniform(0.9, 1.3)
    seconds = first + tokens_out * 0.011 * rng.uniform(0.9, 1.2)
    lane = min(range(lanes), key=free.__getitem__)
    began = free[lane]
    free[lane] = began + seconds + rng.uniform(0.002, 0.08)
    failed = at % 60 == 59
    watts = (40 + 110 * rng.uniform(0.8, 1.0)) / lanes
    share = int(watts * seconds * 1e6)
    prefill = int(share * min(0.9, 1.6 * first / seconds))
    part = lambda of: {"share_uj": int(share * of), "error_uj": int(share * of * 0.01), "idle_uj": int(share * of * 0.3), "window_uj": int(share * of) * lanes}
    spans.append((began, began + seconds))
    questions.append({"id": f"q{at:03}", "subject": subject, "format": "numeric", "prompt": f"{at}?", "answer": str(at)})
    row = {"id": f"q{at:03}", "subject": subject, "began_ns": 10**12 + int(began * 1e9), "duration_ns": int(seconds * 1e9)}
    if failed:
        row["error"] = "the server closed the connection without saying so" if at % 120 == 59 else "HTTP 503: <b>busy</b>"
    else:
        row |= {
            "score": float(rng.random() < 0.85 - 0.1 * hard),
            "first_token_ns": int(first * 1e9),
            "between_tokens_ns": [11_000_000, 14_000_000],
            "tokens_in": tokens_in,
            "tokens_cached": 8,
            "tokens_out": tokens_out,
            "mean_logprob": -0.4 * rng.uniform(0.5, 1.5),
        }
    row["energy"] = {
        "share_uj": share,
        "error_uj": share // 100,
        "idle_uj": share * 3 // 10,
        "window_uj": share * lanes,
        "grade": "measured",
        "span_ns": int(seconds * 1e9),
        "at_once": lanes,
        "prefill_uj": prefill,
        "decode_uj": share - prefill,
        "domains": [part(0.3), part(0.7)],
    }
    rows.append(row)
    texts.append({"id": row["id"], "reply": "" if failed else f"Answer: {at}"})


def lines(name, of):
    (out / name).write_text("".join(json.dumps(one) + "\n" for one in of))


def power(at):
    open_now = sum(begin <= at < end for begin, end in spans)
    return int(1000 * (40 + 110 * open_now / lanes * rng.uniform(0.9, 1.0)))


instants = [at / 10 for at in range(int(max(free) * 10) + 10)]
lines("questions.jsonl", questions)
lines("rows.jsonl", rows)
lines("texts.jsonl", texts)
watts = [(at, power(at)) for at in instants]
lines(
    "power.jsonl",
    [{"at_ns": 10**12 + int(at * 1e9), "power_mw": [int(mw * 0.3), int(mw * 0.7)]} for at, mw in watts],
)
manifest = {
    "version": 1,
    "label": "a-made-up-model/with-a-long-name-8b-instruct-q4_k_m",
    "model": "a-made-up-model",
    "server": "http://127.0.0.1:8000/v1",
    "settings": {"api": "chat", "at once": str(lanes), "temperature": "0"},
    "questions": "made up",
    "fingerprint": "0000000000000000",
    "count": 300,
    "repeats": 1,
    "machine": "Linux 6.1, Example CPU, 16 CPUs",
    "meter": "wattspan 0.1.0",
    "idle": "learnt",
    "domains": domains,
    "began_unix_ns": 1_762_992_000_000_000_000,
}
(out / "run.json").write_text(json.dumps(manifest, indent=2))
