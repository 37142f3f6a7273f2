"""The scorer for `wattspan ipw score --with wattspan-score-math`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wattspan import score_math


def score(answer: str, reply: str, form: str = "judge") -> float | None:
    (out,) = score_math.replies([json.dumps({"id": "q", "format": form, "answer": answer, "reply": reply})])
    assert (out["id"], out["repeat"]) == ("q", 0)
    value: float | None = out["score"]
    return value


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        (r"\frac{3}{4}", r"So it is $\boxed{0.75}$.", 1),
        (r"\frac{3}{4}", r"So it is $\boxed{\frac{4}{3}}$.", 0),
        (r"\left( 3, \frac{\pi}{2} \right)", r"In polar form: $\boxed{(3, \pi/2)}$", 1),
        (r"\left( 3, \frac{\pi}{2} \right)", r"In polar form: $\boxed{(3, \pi)}$", 0),
        ("x^2+2x+1", r"$\boxed{(x+1)^2}$", 1),
        ("1200", "The final answer is $1{,}200$.", 1),
        ("7", "<think>Perhaps $\\boxed{7}$?</think>It is $\\boxed{8}$.", 0),
        ("7", "<think>Perhaps $\\boxed{7}$", 0),
        ("7", "I do not know.", 0),
    ],
)
def test_expressions_are_compared_by_value(answer: str, reply: str, right: float) -> None:
    assert score(answer, reply) == right


def test_what_is_not_mathematical_has_no_score() -> None:
    assert score("B", "Answer: B", "letter") is None
    assert score("Because of the tides", "The tides.") is None


def test_the_command_answers_line_by_line() -> None:
    requests = [{"id": str(n), "repeat": n % 2, "format": "numeric", "answer": "4", "reply": f"${n}$"} for n in (4, 5)]
    out = subprocess.run(
        [sys.executable, "-m", "wattspan.score_math"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1] / "src",
    )
    found = [json.loads(line) for line in out.stdout.splitlines()]
    assert found == [{"id": "4", "repeat": 0, "score": 1.0}, {"id": "5", "repeat": 1, "score": 0.0}]
