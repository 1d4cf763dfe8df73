"""The lineup: the methods compared on MNNS, their names in tables, and the recipes that study `mnns-tuning` froze.

A contender is a method with the settings that matter to a comparison; its name is that of the method, with the budget
behind it where one is set.
"""

from typing import Any

from tinylatent.experiment import Training
from tinylatent.methods import CoT2, Direct, DiscreteCoT, Method, PauseTokens
from tinylatent.study import Record

METHODS: tuple[Method, ...] = (Direct(), PauseTokens(), DiscreteCoT(), CoT2())
LABELS = {
    "direct": "direct",
    "pause": "pause",
    "discrete": "discrete CoT",
    "coconut": "Coconut",
    "cot2": "CoT2",
    "cot2-4": "CoT2, B = 4",
}
RECIPES = {
    "direct": Training(rate=5e-3),
    "pause": Training(rate=5e-4),
    "discrete": Training(rate=2e-3),
    "coconut": Training(rate=2e-3),
    "cot2": Training(rate=5e-3),
    "cot2-4": Training(rate=5e-3),
}
"""What each contender is trained with in every reported study; a test holds them to the stored tuning runs."""


def contender(method: Method | dict[str, Any]) -> str:
    """The name of a method, or of one in a record."""
    values = method if isinstance(method, dict) else {"name": method.name, **vars(method)}
    return values["name"] if values.get("budget") is None else f"{values['name']}-{values['budget']}"


def by_contender(records: list[Record]) -> dict[str, list[Record]]:
    """Records of each contender, in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(contender(record["experiment"]["method"]), []).append(record)
    return groups
