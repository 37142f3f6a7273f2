#!/usr/bin/env python3
"""Routes questions by their complexity: simple ones to a small model, the others to a large one.

    switch_by_complexity.py QUESTIONS SMALL LARGE [--threshold N] [--span NAME]

QUESTIONS is questions.jsonl of a run. Prints a decision for each question, as `wattspan ipw route --decisions` reads
them. The complexity of a question is the number of its words, numbers counted five times: a small model loses its way
in long questions and in calculations. A router of your own replaces `complexity`. Needs Python 3.9 or later.

--span: the name of the span in which this program runs (wattspan run --name NAME), for the router's own energy.
"""

import argparse
import json
import re


def complexity(prompt: str) -> int:
    return len(prompt.split()) + 4 * len(re.findall(r"\d+", prompt))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("questions")
    arguments.add_argument("small")
    arguments.add_argument("large")
    arguments.add_argument("--threshold", type=int, default=25)
    arguments.add_argument("--span")
    given = arguments.parse_args()
    with open(given.questions, encoding="utf-8") as lines:
        for line in lines:
            question = json.loads(line)
            simple = complexity(question["prompt"]) < given.threshold
            decision = {"id": question["id"], "model": given.small if simple else given.large}
            if given.span:
                decision["router_span"] = given.span
            print(json.dumps(decision))


if __name__ == "__main__":
    main()
