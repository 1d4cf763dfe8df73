"""Direct answer: no thinking at all, the answer is read off the prompt's last position. The floor of every table."""

from dataclasses import dataclass

from tinylatent.objectives.method import Method


@dataclass(frozen=True)
class Direct(Method):
    """Answers at once."""

    name = "direct"
