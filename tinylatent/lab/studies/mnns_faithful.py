"""Study `mnns-faithful`: the paper's own optimisation, to see whether its numbers come back.

Gozeten et al. 2025 train with AdamW at a constant rate of 1e-4, batch 16, for 1000 epochs (about 328,000 steps) on
MNNS (m = 4, digits 1..9, d = 32, 2 layers, 2 heads). What still differs from their code: no dropout (theirs keeps
GPT-2's default of 0.1), no biases in the model, a prompt without marker tokens, and other splits.
"""

from dataclasses import replace
from pathlib import Path

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure
from tinylatent.lab.report import Table
from tinylatent.lab.studies.compare import listed
from tinylatent.lab.studies.lineup import comparison, draw_accuracies
from tinylatent.lab.study import Profile, Record, Study
from tinylatent.methods import CoT2, DiscreteCoT
from tinylatent.training.config import Training

PUBLISHED = {"discrete": 84.92, "cot2": 98.94}
"""Validation accuracy in percent, from the paper."""
STEPS: dict[Profile, int] = {"quick": 3_280, "full": 328_000}
SEEDS: dict[Profile, range] = {"quick": range(1), "full": range(3)}


DIFFERENCES = listed(
    [
        "AdamW, constant rate 1e-4, batch 16, weight decay 0.01, as the paper. Not as its code: no dropout (theirs "
        "keeps GPT-2's 0.1), no biases, no marker tokens in the prompt, other splits."
    ]
)[1:]


def recipe(profile: Profile) -> Training:
    """The paper's optimisation; the quick profile takes a hundredth of its steps."""
    return Training(
        steps=STEPS[profile],
        batch=16,
        rate=1e-4,
        warmup=0.0,
        schedule="constant",
        weight_decay=0.01,
        log_every=1000,
        save_every=10_000,
    )


def grid(profile: Profile) -> list[Experiment]:
    """Discrete chain of thought and CoT2 on every seed."""
    return [
        Experiment(method=method, training=recipe(profile), seeds=Seeds.all(seed))
        for method in (DiscreteCoT(), CoT2())
        for seed in SEEDS[profile]
    ]


def tables(records: list[Record]) -> list[Table]:
    """Both methods beside the published values."""
    steps = records[0]["experiment"]["training"]["steps"]
    table = comparison(records, f"MNNS with the paper's optimisation, {steps:,} steps", PUBLISHED)
    return [replace(table, notes=[*table.notes, *DIFFERENCES])]


def draw(records: list[Record], path: Path) -> None:
    """Accuracy with intervals beside the published values."""
    with figure(path, 5.5, 2.6) as (axes,):
        draw_accuracies(axes, records, PUBLISHED)
        axes.legend(loc="lower right")


STUDY = Study(
    "mnns-faithful",
    "Do the published numbers of discrete chain of thought and CoT2 come back under the paper's own optimisation?",
    grid,
    tables,
    draw,
)
