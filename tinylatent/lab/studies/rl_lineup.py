"""The arms of reinforcement learning on MNNS: where each starts, how it samples its latents, and the frozen rates."""

from dataclasses import replace

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.studies.lineup import RECIPES
from tinylatent.lab.study import Record
from tinylatent.methods import GRPO, CoT2, DiscreteCoT
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

STARTS: dict[str, Method] = {"discrete CoT": DiscreteCoT(), "CoT2": CoT2()}
"""Trained as in study `mnns`, on the same splits."""
ARMS: dict[str, GRPO] = {
    "K = 1": GRPO(samples=1),
    "K = 3": GRPO(samples=3),
    "K = 6": GRPO(samples=6),
    "K = 1, 3, 6": GRPO(samples=6, curriculum=(1, 3)),
    "K = 3, paper": GRPO(samples=3, ratio="paper"),
    "K = 3, official": GRPO(samples=3, ratio="official"),
    "Dirichlet 2": GRPO(gamma=2.0),
    "Dirichlet 5": GRPO(gamma=5.0),
}
"""K = 1 is plain discrete GRPO; Dirichlet latents of concentration K - 1 vary as much as K tokens do."""
STEPS, BATCH = 1000, 64
"""Batches of rollouts, and prompts in each; with groups of 8, 512,000 rollouts a run."""
RATES = {
    ("discrete CoT", "K = 1"): 1e-3,
    ("discrete CoT", "K = 3"): 1e-3,
    ("discrete CoT", "K = 6"): 1e-3,
    ("discrete CoT", "K = 1, 3, 6"): 1e-3,
    ("discrete CoT", "K = 3, paper"): 1e-3,
    ("discrete CoT", "K = 3, official"): 1e-3,
    ("discrete CoT", "Dirichlet 2"): 3e-5,
    ("discrete CoT", "Dirichlet 5"): 3e-5,
    ("CoT2", "K = 1"): 1e-3,
    ("CoT2", "K = 3"): 3e-3,
    ("CoT2", "K = 6"): 3e-4,
    ("CoT2", "K = 1, 3, 6"): 3e-4,
    ("CoT2", "K = 3, paper"): 1e-3,
    ("CoT2", "K = 3, official"): 1e-3,
    ("CoT2", "Dirichlet 2"): 3e-4,
    ("CoT2", "Dirichlet 5"): 3e-4,
}
"""Peak learning rates from study `mnns-rl-tuning`."""


def experiment(start: str, arm: str, seed: int, rate: float | None = None, steps: int = STEPS) -> Experiment:
    """One run: an arm from a start, at a rate or at the one that was frozen."""
    supervised = STARTS[start]
    before = Experiment(method=supervised, training=RECIPES[supervised.name], seeds=Seeds.all(seed))
    recipe = Training(steps, BATCH, RATES[start, arm] if rate is None else rate, weight_decay=0.0)
    return replace(before, method=ARMS[arm], training=recipe, start=before)


def start_of(record: Record) -> str:
    """The name, in STARTS, of what a record's run started from."""
    name = record["experiment"]["start"]["method"]["name"]
    return next(start for start, method in STARTS.items() if method.name == name)


def arm_of(record: Record) -> str:
    """The name, in ARMS, of a record's method."""
    method = Experiment.from_json(record["experiment"]).method
    return next(arm for arm, each in ARMS.items() if each == method)
