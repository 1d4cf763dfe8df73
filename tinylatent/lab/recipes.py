"""Recipes: every setting that a reported number was trained with, in one place, as functions that return whole runs.

A recipe is named comparison/arm: `recipe("mnns/cot2")` is what study `mnns` trains and what `tinylatent run mnns/cot2`
trains. A comparison is a task, a model and a length of training; every registered method is an arm of all comparisons,
unless its class says otherwise (`compared`). Learning rates and weight decays are those that the tuning studies found,
on splits that no reported result uses; a test holds them to the stored runs. Where nothing was tuned, a method is
trained with the settings that its class calls usual (`recipe`).
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from tinylatent_tasks import (
    MNNS,
    Arithmetic,
    Composition,
    MultiHop,
    Reachability,
    Recommendation,
    Stories,
    SubsetSum,
    Task,
)

from tinylatent.core.registry import Registry, owner
from tinylatent.core.seeds import Seeds
from tinylatent.lab import (
    recipes_colar,
    recipes_ctrls,
    recipes_hrpo,
    recipes_latentr3,
    recipes_latentseek,
    recipes_methods,
    recipes_stories,
)
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import GRPO, METHODS, Coconut
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

Kind = TypeVar("Kind")
Settings = Mapping[str, Any]
"""Fields of Training by name."""


@dataclass(frozen=True)
class Comparison:
    """Where methods are compared: a task, a model, and how long to train."""

    title: str
    """What tables call it."""
    task: Task
    model: ModelConfig = field(default_factory=ModelConfig)
    training: Training = field(default_factory=Training)
    """What all methods share."""
    key: str = "a problem"
    """What problems of one key share, in words."""
    tuned: Mapping[str, Settings] = field(default_factory=dict)
    """What a search found here, by method."""
    like: str = ""
    """The comparison whose tuned settings all other methods take."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published validation accuracy in percent, by method (Gozeten et al. 2025)."""


def _rates(**rates: float) -> dict[str, Settings]:
    return {name: {"learning_rate": rate} for name, rate in rates.items()}


MNNS_TUNED: dict[str, Settings] = {
    "direct": {"learning_rate": 2.5e-3, "weight_decay": 0.05},
    "pause": {"learning_rate": 5e-4, "weight_decay": 0.25},
    "discrete": {"learning_rate": 2e-3, "weight_decay": 0.05},
    "coconut": {"learning_rate": 5e-3, "weight_decay": 0.05},
    "cot2": {"learning_rate": 1e-2, "weight_decay": 0.05},
}
"""From study `mnns-tuning`, which also chose Coconut's mixing in CHOSEN."""
RL_RATES: dict[str, dict[str, float]] = {
    "discrete": {
        "k1": 1e-3, "k3": 1e-3, "k6": 1e-3, "k136": 1e-3, "k3-paper": 1e-3, "k3-official": 1e-3, "dirichlet2": 3e-5,
        "dirichlet5": 3e-5,
    },
    "cot2": {
        "k1": 1e-3, "k3": 3e-3, "k6": 3e-4, "k136": 3e-4, "k3-paper": 1e-3, "k3-official": 1e-3, "dirichlet2": 3e-4,
        "dirichlet5": 3e-4,
    },
}  # fmt: skip
"""Peak learning rates of reinforcement learning from study `mnns-rl-tuning`, by start and sampler."""
PAPER = Training(
    steps=328_000, batch_size=16, learning_rate=1e-4, warmup=0.0, schedule="constant", weight_decay=0.01,
    log_every=1000, save_every=10_000,
)  # fmt: skip
"""The optimisation of Gozeten et al. 2025: 1000 epochs at a constant rate."""
DIGITS = "a multiset of digits"
LARGE = 50_000
"""Training problems of tasks that are too large to list."""

COMPARISONS: dict[str, Comparison] = {
    "mnns": Comparison(
        "MNNS", MNNS(), key=DIGITS, tuned={**MNNS_TUNED, **_rates(grpo=RL_RATES["cot2"]["k3"])},
        published={"direct": 68.35, "discrete": 84.92, "coconut": 92.58, "cot2": 98.94},
    ),
    "mnns-d16": Comparison(
        "MNNS, d = 16", MNNS(), ModelConfig(16), key=DIGITS, like="mnns", tuned=_rates(discrete=5e-3, cot2=1e-2),
    ),
    "mnns-d24": Comparison(
        "MNNS, d = 24", MNNS(), ModelConfig(24), key=DIGITS, like="mnns", tuned=_rates(discrete=5e-3, cot2=1e-2),
    ),
    "mnns-d24-l1": Comparison(
        "MNNS, one layer", MNNS(), ModelConfig(24, 1, 1), key=DIGITS,
        like="mnns", tuned=_rates(discrete=1e-2, cot2=1e-2), published={"discrete": 39.76, "cot2": 88.61},
    ),
    "mnns-paper": Comparison(
        "MNNS, the paper's optimisation", MNNS(), training=PAPER, key=DIGITS,
        published={"discrete": 84.92, "cot2": 98.94},
    ),
    "mnns-longer": Comparison("MNNS", MNNS(capacity=5), key=DIGITS, tuned=MNNS_TUNED),
    "subset-sum": Comparison(
        "subset sum", SubsetSum(), training=Training(6000, num_train=LARGE),
        key="a multiset of numbers and the target",
        tuned=_rates(direct=2e-3, pause=2e-3, discrete=1e-2, coconut=2e-3, cot2=1e-2),
    ),
    "multihop": Comparison(
        "multi-hop", MultiHop(bound=True, capacity=6), training=Training(4000, num_train=LARGE),
        key="facts and start up to names and order",
        tuned=_rates(direct=1e-3, pause=1e-2, discrete=1e-3, coconut=3e-3, cot2=1e-3),
    ),
    "reachability": Comparison(
        "reachability", Reachability(nodes=10, edges=12, bound=True), ModelConfig(heads=4),
        Training(6000, num_train=LARGE), key="a graph with its question up to names and order",
        tuned=_rates(direct=5e-3, pause=5e-3, discrete=5e-3, coconut=5e-3, cot2=1e-2),
    ),
    "stories": Comparison(
        "stories", Stories(nodes=8, edges=10), ModelConfig(64, 4, 4, init="fan_in"), Training(6000, num_train=LARGE),
        key="a graph with its question up to names and order",
    ),
    "arithmetic": Comparison("arithmetic", Arithmetic(), training=Training(6000, num_train=LARGE)),
    "composition": Comparison("composition", Composition(), training=Training(6000, num_train=LARGE)),
    "recommendation": Comparison("recommendation", Recommendation(), training=Training(6000, num_train=LARGE)),
}  # fmt: skip
"""Every comparison by name. Rates of the smaller models are from study `mnns-tuning-small`, those of the other tasks
from `tasks-tuning`; stories, arithmetic, composition and recommendation have not been tuned."""
CHOSEN: dict[str, Method] = {"coconut": Coconut(mixing=0.0)}
"""Settings of a method's own that its search chose, where they are not the defaults."""


def comparisons() -> dict[str, Comparison]:
    """Every comparison by name: those above, and an untuned one for each registered task in none of them.

    A task that cannot be made with its default settings is left out with a PluginWarning.
    """
    known = {type(where.task) for where in COMPARISONS.values()}
    return COMPARISONS | _made(TASKS, _untuned, lambda kind: kind not in known)


def _untuned(kind: type[Task]) -> Comparison:
    """A comparison on a task with its default settings."""
    task = kind()
    return Comparison(task.name, task, training=Training(6000, num_train=None if task.listed else LARGE))


def contenders() -> dict[str, Method]:
    """Every registered method that is compared with all others, by name: the usual order, then newcomers."""
    usual = ("direct", "pause", "discrete", "coconut", "cot2")
    found = {name: method for name, method in methods().items() if method.compared}
    order = [*(name for name in usual if name in found), *(name for name in found if name not in usual)]
    return {name: found[name] for name in order}


def methods() -> dict[str, Method]:
    """Every registered method with its usual settings, by name.

    One that cannot be made without being told settings, or whose start is not there, is left out with a PluginWarning.
    """
    found = _made(METHODS, _with_usual_settings)
    for name in [*found]:
        chain = [name]
        while (start := found[chain[-1]].starts_from) in found and start not in chain:
            chain.append(start)
        if start is not None:
            why = "in a circle" if start in chain else f"from {start!r}, which is not there"
            _leave_out(METHODS, name, f"starts {why}: set starts_from to the name of another method")
            del found[name]
    return found


def _with_usual_settings(kind: type[Method]) -> Method:
    """A method as it is trained where nothing was tuned."""
    replace(Training(), **kind.recipe)  # raises if it has no such fields
    return CHOSEN.get(kind.name) or kind()


def _made(
    registry: Registry[Any], make: Callable[[Any], Kind], chosen: Callable[[Any], bool] = lambda kind: True
) -> dict[str, Kind]:
    """What a function makes of every chosen class of a registry, by name; what fails is left out with a warning."""
    found = {}
    for name, kind in registry.loaded().items():
        try:
            if chosen(kind):
                found[name] = make(kind)
        except Exception as error:  # it is another package's code
            said = f"{type(error).__name__}: {error}"
            _leave_out(registry, name, f"has no usual settings ({said}): give its fields defaults")
    return found


def _leave_out(registry: Registry[Any], name: str, why: str) -> None:
    """Warns that an entry is left out, and says who brought it."""
    registry.leave_out({name: f"the {registry.word} {name!r} of {owner(registry.points[name])} {why}"})


def build(comparison: str, method: Method, seed: int = 0, **settings: Any) -> Experiment:
    """A run of a method in a comparison, with the run it starts from.

    Its settings are those tuned there, or else in the comparison that this one is `like`, or else the method's usual
    ones.

    Args:
        comparison: its name.
        method: what to train; variants of a method share what was found for its name.
        seed: all seeds.
        settings: fields of Training that override.

    Raises:
        ValueError: there is no such comparison, or a setting is wrong.
    """
    known = comparisons()
    if comparison not in known:
        raise ValueError(f"unknown comparison {comparison!r}: expected one of {', '.join(known)}")
    where, name = known[comparison], method.name
    elsewhere = known[where.like].tuned if where.like else {}
    tuned = where.tuned.get(name, elsewhere.get(name, {}))
    training = replace(where.training, **{**method.recipe, **tuned, **settings})
    start = None
    if method.starts_from is not None:
        before = replace(_with_usual_settings(METHODS.named(method.starts_from)), **method.start_settings)
        start = build(comparison, before, seed, num_train=training.num_train)
    return Experiment(where.task, method, where.model, training, Seeds.all(seed), start)


# ---------------------------------------------------------------------------------------------------------------------
# Reinforcement learning on MNNS

STARTS = ("discrete", "cot2")
"""Methods that reinforcement learning starts from, trained as in study `mnns`."""
SAMPLERS: dict[str, GRPO] = {
    "k1": GRPO(samples=1),
    "k3": GRPO(samples=3),
    "k6": GRPO(samples=6),
    "k136": GRPO(samples=6, curriculum=(1, 3)),
    "k3-paper": GRPO(samples=3, ratio="paper"),
    "k3-official": GRPO(samples=3, ratio="official"),
    "dirichlet2": GRPO(gamma=2.0),
    "dirichlet5": GRPO(gamma=5.0),
}
"""Ways to sample latents. k1 is plain discrete GRPO; Dirichlet latents of concentration K - 1 vary as much as K tokens
do."""


def build_rl(start: str, sampler: str, seed: int = 0, **settings: Any) -> Experiment:
    """A run of GRPO with a sampler, from a run of study `mnns`; `settings` are fields of Training that override."""
    run = build("mnns", SAMPLERS[sampler], seed, **{"learning_rate": RL_RATES[start][sampler], **settings})
    return replace(run, start=build("mnns", methods()[start], seed, num_train=run.training.num_train))


# ---------------------------------------------------------------------------------------------------------------------
# Studies with arms of their own

OF_STUDIES: dict[str, Any] = {
    "hrpo": recipes_hrpo,
    "latentseek": recipes_latentseek,
    "colar": recipes_colar,
    "latentr3": recipes_latentr3,
    "ctrls": recipes_ctrls,
    "methods": recipes_methods,
    "prosqa-like": recipes_stories,
}
"""Modules of recipes by the study that they are of: ARMS (label, method, colour), `build(arm, seed, **settings)`, and
SEARCHED, the arms whose learning rates were searched for."""


# ---------------------------------------------------------------------------------------------------------------------
# By name


def recipes() -> dict[str, Callable[..., Experiment]]:
    """Every recipe by name; it takes a seed. `mnns/grpo` is the run of `mnns-rl/k3-from-cot2`."""
    everyone = contenders() | methods()
    found = {
        f"{comparison}/{name}": partial(build, comparison, method)
        for comparison in comparisons()
        for name, method in everyone.items()
    }
    rl = {
        f"mnns-rl/{sampler}-from-{start}": partial(build_rl, start, sampler) for start in STARTS for sampler in SAMPLERS
    }
    own = {f"{study}/{arm}": partial(of.build, arm) for study, of in OF_STUDIES.items() for arm in of.ARMS}
    return {**found, **rl, **own}


def recipe(name: str, seed: int = 0) -> Experiment:
    """The run of a recipe.

    Raises:
        ValueError: there is none of this name.
    """
    known = recipes()
    if name not in known:
        arm = name.partition("/")[2]
        if arm in METHODS:
            METHODS.named(arm)  # one that cannot be loaded says why
        close = difflib.get_close_matches(name, known, 1)
        meant = f"did you mean {close[0]}? A recipe is" if close else "expected"
        comparisons = ", ".join(dict.fromkeys(each.partition("/")[0] for each in known))
        raise ValueError(
            f"unknown recipe {name!r}: {meant} comparison/method, such as mnns/cot2; comparisons are {comparisons}, "
            f"methods {', '.join(METHODS)}"
        )
    return known[name](seed)


def is_tuned(name: str, run: Experiment | None = None) -> bool:
    """Whether a recipe's learning rate was searched for; with a run, also whether the search holds for that run.

    It does if the run has the recipe's task, method, model, settings of training and start. Seeds, and how often it
    logs and saves, may differ.
    """
    comparison, _, arm = name.partition("/")
    if comparison in OF_STUDIES:
        searched = arm in OF_STUDIES[comparison].SEARCHED
    else:
        searched = comparison == "mnns-rl" or arm in comparisons()[comparison].tuned
    return searched and (run is None or _what_is_learnt(run) == _what_is_learnt(recipe(name)))


def _what_is_learnt(run: Experiment) -> Experiment:
    """The run with seeds 0, and with the usual settings of what does not change its weights."""
    training = replace(run.training, log_every=1, save_every=1, micro_batch=None)
    start = None if run.start is None else _what_is_learnt(run.start)
    return replace(run, training=training, seeds=Seeds(), start=start)
