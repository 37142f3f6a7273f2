"""Scores mathematical answers for `wattspan ipw score --with wattspan-score-math`, with math-verify (extra `math`).

Reads one JSON object a line (`id`, `repeat`, `format`, `answer`, `reply`) and writes one for each with its `score`: 1,
0, or null for an answer that is not mathematical. A lettered question and a reference that is no expression get null,
so that their scores stay as they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# Reasoning ends with one of these marks; what precedes it is no answer.
REASONING_ENDS = ("</think>", "</thinking>", "[/THINK]", "<|channel|>final<|message|>")
REASONING_BEGINS = ("<think>", "<thinking>", "[THINK]", "<|channel|>analysis")


def final_text(reply: str) -> str:
    """Return the reply without its reasoning; nothing if it was cut off inside."""
    for end in REASONING_ENDS:
        reply = reply.rpartition(end)[2]
    for begin in REASONING_BEGINS:
        reply = reply.partition(begin)[0]
    return reply


def score(request: dict[str, Any]) -> tuple[float | None, str]:
    """Return the score of one answer and, where it has none, the reason."""
    from math_verify import parse, verify

    if request.get("format") not in ("numeric", "judge"):
        return None, "not a mathematical question"
    answer = str(request["answer"]).strip()
    # Words in a row are prose, which would be read as a product of symbols.
    if re.search(r"(?<![\\\w])[A-Za-z]{3,}\s+[A-Za-z]{2,}", re.sub(r"\\(text|mbox|mathrm)\s*\{[^}]*\}", "", answer)):
        return None, "the right answer is prose"
    gold = parse(answer if "$" in answer or "\\boxed" in answer else f"${answer}$")
    if not gold:
        return None, "the right answer is no expression"
    found = parse(final_text(str(request["reply"])))
    return float(bool(found) and verify(gold, found)), ""


def replies(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Return the output for each line of the input."""
    for line in lines:
        if not line.strip():
            continue
        request = json.loads(line)
        try:
            value, reason = score(request)
        except Exception as error:  # an expression that sympy cannot handle ends no other answer's score
            value, reason = None, f"{type(error).__name__}: {error}"
        reply = {"id": request["id"], "repeat": request.get("repeat", 0), "score": value}
        yield {**reply, "reason": reason} if reason else reply


def main() -> int:
    """Score standard input."""
    try:
        import math_verify  # noqa: F401
    except ImportError:
        print("wattspan-score-math needs math-verify: pip install 'wattspan[math]'", file=sys.stderr)
        return 1
    for reply in replies(sys.stdin):
        print(json.dumps(reply), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
