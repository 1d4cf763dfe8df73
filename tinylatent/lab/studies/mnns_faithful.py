"""Study `mnns-faithful`: the paper's own optimisation, to see whether its numbers come back.

Gozeten et al. 2025 train with AdamW at a constant rate of 1e-4, batch 16, for 1000 epochs (about 328,000 steps) on
MNNS (m = 4, digits 1..9, d = 32, 2 layers, 2 heads). What still differs from their code: no dropout (theirs keeps
GPT-2's default of 0.1), no biases in the model, a prompt without marker tokens, and other splits.
"""

from dataclasses import replace
from pathlib import Path

from tinylatent.lab.arms import arms
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.plots import figure, legend_below
from tinylatent.lab.recipes import Settings
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.studies.comparison import comparison, draw_accuracies
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table

COMPARISON = "mnns-paper"
LENGTH: dict[Profile, Settings] = {"quick": {"steps": 3_280}, "full": {}}
"""The quick profile takes a hundredth of the paper's steps."""
SEEDS: dict[Profile, range] = {"quick": range(1), "full": range(3)}
DIFFERENCES = (
    "AdamW, constant rate 1e-4, batch 16, weight decay 0.01, as the paper. Not as its code: no dropout (theirs keeps "
    "GPT-2's 0.1), no biases, no marker tokens in the prompt, other splits."
)


def grid(profile: Profile) -> list[Experiment]:
    """Discrete chain of thought and CoT2 on every seed."""
    chosen = [arms(COMPARISON)[name] for name in ("discrete", "cot2")]
    return [arm.recipe(seed, **LENGTH[profile]) for arm in chosen for seed in SEEDS[profile]]


def tables(records: list[ExperimentRecord]) -> list[Table]:
    """Both methods beside the published values."""
    steps = records[0].experiment.training.steps
    table = comparison(records, f"MNNS with the paper's optimisation, {steps:,} steps", COMPARISON)
    return [replace(table, remarks=[*table.remarks, DIFFERENCES])]


def draw(records: list[ExperimentRecord], path: Path) -> None:
    """Draws accuracy with intervals beside the published values."""
    with figure(path, 5.5, 2.9) as (axes,):
        draw_accuracies(axes, records, COMPARISON)
        legend_below([axes], 3)


STUDY = Study(
    "mnns-faithful",
    "Do the published numbers of discrete chain of thought and CoT2 come back under the paper's own optimisation?",
    grid,
    tables,
    draw,
)
