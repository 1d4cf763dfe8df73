"""Where study `tasks` compares the methods: one small size of each task, its model, and the rates its search froze."""

from dataclasses import replace

from tasks import MNNS, MultiHop, Reachability, SubsetSum, Task
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.studies.lineup import RECIPES
from tinylatent.lab.study import Profile, Record
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

TASKS: dict[str, Task] = {
    "MNNS": MNNS(room=5),
    "subset sum": SubsetSum(),
    "multi-hop": MultiHop(bound=True, room=6),
    "reachability": Reachability(nodes=10, edges=12, bound=True),
}
SHAPES = {"reachability": ModelConfig(heads=4)}
"""Models other than the default."""
STEPS = {"MNNS": 9000, "subset sum": 6000, "multi-hop": 4000, "reachability": 6000}
QUICK = 3
"""The quick profile takes this part of the steps."""
PROBLEMS = 50_000
"""Training problems of tasks that are too large to list."""
RATES = {
    ("subset sum", "direct"): 2e-3,
    ("subset sum", "pause"): 2e-3,
    ("subset sum", "discrete"): 1e-2,
    ("subset sum", "coconut"): 2e-3,
    ("subset sum", "cot2"): 1e-2,
    ("multi-hop", "direct"): 1e-3,
    ("multi-hop", "pause"): 1e-2,
    ("multi-hop", "discrete"): 1e-3,
    ("multi-hop", "coconut"): 3e-3,
    ("multi-hop", "cot2"): 1e-3,
    ("reachability", "direct"): 5e-3,
    ("reachability", "pause"): 5e-3,
    ("reachability", "discrete"): 5e-3,
    ("reachability", "coconut"): 5e-3,
    ("reachability", "cot2"): 1e-2,
}
"""Peak learning rates from study `tasks-tuning`; MNNS has those of study `mnns`."""


def experiment(place: str, method: Method, seed: int, profile: Profile, rate: float | None = None) -> Experiment:
    """One run: a method on a task, at a rate or at the one that was frozen."""
    task, usual = TASKS[place], RECIPES[method.name]
    steps = STEPS[place] if profile == "full" else STEPS[place] // QUICK
    if place == "MNNS":
        recipe = replace(usual, steps=steps)
    else:
        frozen = RATES[place, method.name] if rate is None else rate
        recipe = Training(steps, rate=frozen, problems=PROBLEMS)
    return Experiment(task, method, SHAPES.get(place, ModelConfig()), recipe, Seeds.all(seed))


def place_of(record: Record) -> str:
    """The name, in TASKS, of a record's task."""
    name = record["experiment"]["task"]["name"]
    return next(place for place, task in TASKS.items() if task.name == name)
