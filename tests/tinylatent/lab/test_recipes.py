"""Recipes hold what the stored tuning runs found, and are whole runs by name."""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from tinylatent_tasks import Task

from tinylatent.core.seeds import Seeds
from tinylatent.lab import recipes_ctrls, recipes_latentr3
from tinylatent.lab.recipes import (
    COMPARISONS,
    MNNS_TUNED,
    SAMPLERS,
    STARTS,
    build,
    contenders,
    is_tuned,
    methods,
    recipe,
    recipes,
)
from tinylatent.lab.studies import mnns_rl_tuning, mnns_tuning_small, search, tasks_tuning
from tinylatent.lab.studies.compare import grouped, method_of
from tinylatent.lab.study import STUDIES, read_runs
from tinylatent.methods import GRPO, METHODS, CoT2, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training

RESULTS = Path(__file__).resolve().parents[3] / "results"


def tuned(*comparisons):
    """The recipes of these comparisons whose settings were found."""
    return [f"{where}/{name}" for where in comparisons for name in COMPARISONS[where].tuned]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "contender", "seeds", "names"),
    [
        ("mnns-tuning", method_of, 3, [f"mnns/{name}" for name in MNNS_TUNED]),
        (
            "mnns-tuning-small",
            mnns_tuning_small.contender,
            3,
            [f"{where}/{name}" for where, name in product(mnns_tuning_small.WHERE, ("discrete", "cot2"))],
        ),
        ("tasks-tuning", tasks_tuning.contender, 2, tuned("subset-sum", "multihop", "reachability")),
        (
            "mnns-rl-tuning",
            mnns_rl_tuning.contender,
            2,
            [f"mnns-rl/{sampler}-from-{start}" for start, sampler in product(STARTS, SAMPLERS)],
        ),
        *(
            (
                study,
                lambda record: recipes_latentr3.arm_of(record.experiment),
                2,
                [
                    f"latentr3/{arm}"
                    for arm in recipes_latentr3.SEARCHED
                    for prefix, kind in [recipes_latentr3.split(arm)]
                    if prefix in places and (kind in recipes_latentr3.SECOND) in second
                ],
            )
            for study, places, second in (
                ("latentr3-chains-tuning", recipes_latentr3.CHAINS, (False, True)),
                ("latentr3-tuning", recipes_latentr3.SHOPS, (False,)),
                ("latentr3-rl-tuning", recipes_latentr3.SHOPS, (True,)),
            )
        ),
        *(
            (
                study,
                lambda record: recipes_ctrls.arm_of(record.experiment),
                2,
                [
                    f"ctrls/{arm}"
                    for arm in recipes_ctrls.SEARCHED
                    if (recipes_ctrls.split(arm)[1] in recipes_ctrls.BY_BOUND) == taught
                ],
            )
            for study, taught in (("ctrls-tuning", True), ("ctrls-rl-tuning", False))
        ),
    ],
)
def test_recipes_are_the_best_of_the_stored_tuning_runs(study, contender, seeds, names):
    """On the first tuning split, each recipe is the very run that came out best of its search."""
    groups = grouped(read_runs(STUDIES[study], RESULTS / study), contender)
    best = [search.tried_on_all(group, seeds)[search.winner(group, seeds)][0] for group in groups.values()]
    assert {record.experiment for record in best} == {recipe(name, search.FIRST) for name in names}


def test_what_is_not_tuned_here_takes_what_was_tuned_in_a_like_comparison():
    """Pause tokens are tuned at the usual width alone, and nothing is tuned on arithmetic."""
    narrow = build("mnns-d16", PauseTokens()).training
    assert narrow == build("mnns", PauseTokens()).training
    assert (narrow.learning_rate, narrow.weight_decay) == (5e-4, 0.25)
    assert build("mnns-d16", DiscreteCoT()).training.learning_rate == 5e-3, "what is tuned here goes first"
    assert build("mnns-d24", GRPO()).training.learning_rate == 3e-3
    assert build("arithmetic", PauseTokens()).training == COMPARISONS["arithmetic"].training
    assert not is_tuned("mnns-d16/pause")


def test_usual_settings_hold_where_nothing_was_tuned():
    found = build("arithmetic", GRPO()).training
    assert found == replace(COMPARISONS["arithmetic"].training, **GRPO.recipe)
    assert build("arithmetic", GRPO(), learning_rate=1e-5).training == replace(found, learning_rate=1e-5)


def test_grpo_on_mnns_is_the_run_of_its_study():
    assert recipe("mnns/grpo", 3) == recipe("mnns-rl/k3-from-cot2", 3)
    assert is_tuned("mnns/grpo")


def test_a_method_begins_with_the_run_that_its_class_names(monkeypatch):
    """In the same comparison, as tuned there, with the same problems."""
    monkeypatch.setattr(GRPO, "starts_from", "discrete")
    found = build("multihop", GRPO(), 3, num_train=1000)
    assert found.start == build("multihop", DiscreteCoT(), 3, num_train=1000)


def test_a_method_that_starts_from_a_run_is_compared_unless_its_class_says_otherwise(monkeypatch):
    assert "grpo" not in contenders()
    assert "mnns/grpo" in recipes()
    monkeypatch.setattr(GRPO, "compared", True)
    assert list(contenders())[-1] == "grpo"


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("nothing", "starts from 'nothing', which is not there: set starts_from to the name of another method"),
        ("grpo", "starts in a circle: set starts_from to the name of another method"),
    ],
)
def test_a_method_whose_start_cannot_be_made_is_left_out(start, why, monkeypatch):
    monkeypatch.setattr(GRPO, "starts_from", start)
    with pytest.warns(UserWarning, match=f"^left out: the method 'grpo' of tinylatent {why}$"):
        assert [*methods()] == [name for name in METHODS if name != "grpo"]


def test_a_method_whose_usual_settings_are_no_settings_is_left_out(monkeypatch):
    monkeypatch.setattr(GRPO, "recipe", {"rate": 1e-3})
    with pytest.warns(
        UserWarning, match=r"^left out: the method 'grpo' of tinylatent has no usual settings \(TypeError"
    ):
        assert "grpo" not in methods()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnns/cot3", "unknown recipe 'mnns/cot3': did you mean mnns/cot2? A recipe is comparison/method, such as"),
        ("mnns-rl/k7-from-cot2", "did you mean mnns-rl/k6-from-cot2?"),
        ("???", "unknown recipe '???': expected comparison/method, such as mnns/cot2; comparisons are mnns, mnns-d16,"),
    ],
)
def test_an_unknown_recipe_is_told_with_the_nearest(name, said):
    with pytest.raises(ValueError, match="unknown recipe") as told:
        recipe(name)
    assert said in str(told.value)


USUAL = recipe("mnns/cot2", 4)
RL = recipe("mnns-rl/k3-from-discrete", 4)


@pytest.mark.parametrize(
    ("name", "run", "tuned"),
    [
        ("mnns/cot2", USUAL, True),
        ("mnns/cot2", replace(USUAL, seeds=Seeds(1, 2, 3, 4)), True),
        ("mnns/cot2", build("mnns", CoT2(), log_every=7, save_every=9, micro_batch=32), True),
        ("mnns/cot2", replace(USUAL, task=replace(USUAL.task, digits=5)), False),
        ("mnns/cot2", replace(USUAL, model=ModelConfig(48)), False),
        ("mnns/cot2", replace(USUAL, method=CoT2(budget=4)), False),
        ("mnns/cot2", build("mnns", CoT2(), steps=900), False),
        ("mnns/cot2", build("mnns", CoT2(), learning_rate=5e-3), False),
        ("arithmetic/cot2", build("arithmetic", CoT2()), False),
        ("mnns-rl/k3-from-discrete", RL, True),
        ("mnns-rl/k3-from-discrete", replace(RL, start=replace(RL.start, method=CoT2())), False),
        ("mnns-rl/k3-from-discrete", replace(RL, start=replace(RL.start, training=Training(steps=5))), False),
    ],
)
def test_a_run_is_tuned_only_as_the_search_trained_it(name, run, tuned):
    assert is_tuned(name, run) == tuned
    assert is_tuned(name) == (name != "arithmetic/cot2")


@pytest.mark.parametrize(
    ("searched", "borrowed"),
    [
        ("hrpo/noise", "hrpo/shuffled"),
        ("hrpo/multihop-token", "hrpo/multihop-fixed"),
        ("hrpo/multihop-hrpo", "colar/mean"),
    ],
)
def test_an_arm_with_a_rate_of_its_family_is_not_called_tuned(searched, borrowed):
    assert is_tuned(searched)
    run = recipe(searched)
    assert not is_tuned(searched, replace(run, training=replace(run.training, learning_rate=0.5)))
    assert not is_tuned(borrowed)
    assert not is_tuned("latentseek/latentseek")


@pytest.mark.slow
def test_every_recipe_can_be_tried_with_twenty_steps(tmp_path, monkeypatch):
    """A first try needs no flag but the number of steps, on any task: its sizes suffice for batches and stages."""
    monkeypatch.setattr(Task, "split", cache(Task.split))  # most recipes share a task and seed
    for name in recipes():
        run = recipe(name)
        replace(run, training=replace(run.training, steps=20)).check(tmp_path / "run")
