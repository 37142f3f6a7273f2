"""An inspect-ai task over a local file: capitals. Its first two lines of code are all that measuring needs."""

import wattspan.inspect_ai

wattspan.inspect_ai.measure()

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

QUESTIONS = Path(__file__).with_name("questions.jsonl")


@task
def capitals() -> Task:
    questions = json_dataset(str(QUESTIONS), FieldSpec(input="input", target="target", id="id", metadata=["topic"]))
    return Task(dataset=questions, solver=generate(), scorer=includes())
