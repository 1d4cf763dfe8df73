"""Runs are named by the nearest recipe and what differs from it."""

from dataclasses import dataclass, replace

import pytest
from counting import Counting
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.names import WIDEST, recipe_settings, run_name, settings, short
from tinylatent.lab.recipes import build, build_rl, recipes
from tinylatent.methods import GRPO, CoT2, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig

COT2, RL = build("mnns", CoT2(), 3), build_rl("cot2", "k3", 1)
LATER = replace(RL.start, training=replace(RL.start.training, steps=10))


@dataclass(frozen=True)
class Own(MNNS):
    """A task that no comparison has."""

    name = "own"


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (COT2, "mnns/cot2 seed=3"),
        (build("mnns", CoT2(), 3, steps=900), "mnns/cot2 seed=3 training.steps=900"),
        (build("mnns", CoT2(budget=4)), "mnns/cot2 seed=0 method.budget=4"),
        (build("mnns", CoT2(), clip_norm=1.0), "mnns/cot2 seed=0 training.clip_norm=1"),
        (replace(COT2, seeds=Seeds(3, 3, 5, 3)), "mnns/cot2 seed=3 seeds.order=5"),
        (replace(COT2, model=ModelConfig(48)), "mnns/cot2 seed=3 model.width=48"),
        (replace(COT2, task=MNNS(digits=3)), "mnns/cot2 seed=3 task.digits=3"),
        (build("mnns-d24-l1", DiscreteCoT(), 2), "mnns-d24-l1/discrete seed=2"),
        (build("mnns-paper", Direct(), warmup=0.1), "mnns-paper/direct seed=0 training.warmup=0.1"),
        (RL, "mnns/grpo seed=1"),
        (build_rl("cot2", "k6", 1), "mnns-rl/k6-from-cot2 seed=1"),
        (replace(RL, start=LATER), "mnns/grpo seed=1 start.training.steps=10"),
        (replace(COT2, start=COT2), f"mnns/cot2 seed=3 start={COT2.identity}"),
        (replace(build("mnns", GRPO()), start=None), "mnns/grpo seed=0 start=none"),
        (Experiment(Own(), CoT2()), "own/cot2 seed=0"),
        (Experiment(Own(digits=3), CoT2()), "own/cot2 seed=0 task.digits=3"),
    ],
)
def test_a_name_is_the_nearest_recipe_and_what_differs(run, name):
    assert run_name(run) == name


def test_every_recipe_has_its_own_name():
    """Two recipes of one run have the first one's."""
    known, first = recipe_settings(), {}
    for name, made in recipes().items():
        assert run_name(made(4), known) == f"{first.setdefault(made(4), name)} seed=4"
    assert len(first) == len(known) - 1


def test_what_is_no_experiment_is_called_by_its_label():
    assert run_name(Counting(7)) == "counting to 7"


def test_settings_are_all_there_are_by_dotted_name():
    found = settings(RL)
    assert (found["task.name"], found["task.digits"], found["method.name"], found["method.samples"]) == (
        "mnns",
        4,
        "grpo",
        3,
    )
    assert (found["model.width"], found["training.micro_batch"], found["seeds.init"]) == (32, None, 1)
    assert (found["start.method.name"], found["start.seeds.init"]) == ("cot2", 1)
    assert settings(Counting(7)) == {"up_to": 7}


def test_a_short_name_fits():
    assert short("mnns/cot2 seed=0") == "mnns/cot2 seed=0"
    assert short("x" * WIDEST) == "x" * WIDEST
    assert short("x" * (WIDEST + 1)) == "x" * (WIDEST - 3) + "..."
