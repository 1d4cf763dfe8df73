"""Direct answer: no thinking; the model answers right after the prompt. The lowest baseline of every table."""

from dataclasses import dataclass

from tinylatent.objectives.method import Method


@dataclass(frozen=True)
class Direct(Method):
    """Answers at once."""

    name = "direct"
    colour = "#8c8c8c"
