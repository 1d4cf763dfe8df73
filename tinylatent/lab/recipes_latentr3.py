"""Recipes of studies `latentr3` and `latentr3-chains`: recommendation by titles and by item tokens, MNNS, multi-hop.

An arm is a method with its settings; a prefix puts it elsewhere: `early-`, `items-`, `mnns-`, `hops-`. Recommendation
tells users apart (`by_users`), so that nobody is asked about whom training knows. The second stage starts from the arm
`attention` of its place and seed, whatever its estimator, and makes as many steps on as many prompts, but for the arm
`long`, which makes ten times as many; CoLaR starts from the arm `chain`. At `early-` the first stage is short, so that
the second has something left to gain. Each kind of arm is a family with a learning rate of its own, but for more
latents, which have that of one, and `long`, which has that of `plain`. Rates are those that studies `latentr3-tuning`,
`latentr3-rl-tuning` and `latentr3-chains-tuning` found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import MNNS, MultiHop, Recommendation

from tinylatent.core.seeds import Seeds
from tinylatent.lab import places
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import known_arm, split_arm
from tinylatent.methods import CoLaR, CoT2, Direct, DiscreteCoT, LatentR3, LatentR3RL, SASRec
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

Looks = tuple[str, Method, str]
"""Label, method and colour of an arm."""


@dataclass(frozen=True)
class Place(places.Place):
    """A task, and how models are trained on it."""

    training: Training
    """Of the arms that are taught."""
    reinforced: Training
    """Of the second stage, whatever its estimator."""
    arms: Mapping[str, Looks]
    """By the kind of arm."""
    rates: Mapping[str, float]
    """Peak learning rates, by family."""


SECOND: dict[str, tuple[str, dict[str, Any], str]] = {
    "surrogate": ("RL: surrogate, batch baseline", {}, "#b5403a"),
    "surrogate-nll": ("RL: surrogate, reward of log-likelihood", {"rewarded": "nll"}, "#8f2b4a"),
    "group": ("RL: surrogate, group baseline", {"baseline": "group"}, "#d98880"),
    "published": ("RL: surrogate, noise of 1.5", {"sigma": 1.5, "absolute": True}, "#6b2b52"),
    "score": ("RL: score function", {"estimator": "score", "baseline": "group"}, "#7b5ea7"),
    "score-nll": (
        "RL: score function, reward of log-likelihood",
        {"estimator": "score", "baseline": "group", "rewarded": "nll"},
        "#b79ad1",
    ),
    "pathwise": ("pathwise gradient", {"estimator": "pathwise"}, "#2f8f9d"),
    "likelihood": ("likelihood with noise", {"estimator": "likelihood"}, "#6b7b3a"),
    "plain": ("likelihood, no noise", {"estimator": "plain"}, "#4f8f5b"),
    "long": ("likelihood, no noise, ten times the steps", {"estimator": "plain"}, "#2f5f3b"),
}
"""Label, settings and colour of every second stage."""
LONG, TIMES = "long", 10
"""The second stage that shows what can be gained at all, and how many times the steps of the others it makes."""


def _first(latents: int) -> dict[str, Looks]:
    """The arms that are taught answers alone, those of latents with so many."""
    return {
        "direct": ("direct", Direct(), "#777777"),
        "constant": ("learned constant", LatentR3(latents, "constant"), "#c08a3e"),
        "hidden": ("raw hidden state", LatentR3(latents, "hidden"), "#3b6fb6"),
        "attention": ("attention", LatentR3(latents), "#b0603a"),
    }


EVERYWHERE: Looks = ("attention, SASRec's loss", LatentR3(teach_prompt=True), "#7a4a2a")
"""Attention that is taught the next token everywhere, as SASRec is."""


def _second(latents: int, *kinds: str) -> dict[str, Looks]:
    """Second stages of these kinds."""
    return {
        kind: (SECOND[kind][0], LatentR3RL(latents=latents, **SECOND[kind][1]), SECOND[kind][2])
        for kind in kinds or SECOND
    }


LABELLED: dict[str, Looks] = {
    "chain": ("chain of thought", DiscreteCoT(ends=True), "#3b6fb6"),
    "colar": ("CoLaR, c of 1", CoLaR(speeds=(1,)), "#7a3e9d"),
    "cot2": ("CoT2", CoT2(), "#222222"),
}
"""Arms that are taught the steps of chains, too."""
MORE = {f"latents{n}": (f"attention, {n} latents", LatentR3(n), f"#{0xC0 - 8 * n:02x}7{n}5a") for n in (2, 3, 4)}
"""The first stage with more latents than one."""
UNLABELLED_SECOND = ("surrogate", "likelihood", "plain")
"""Second stages on the tasks with chains."""
SHORT = ("surrogate", "score", "likelihood", "plain", LONG)
"""Second stages after a short first one."""

SHOP: dict[str, Any] = {"categories": 8, "brands": 5, "numbers": 5, "intents": 2, "events": 8, "by_users": True}
"""200 items. The best ranking has the right one among its first five in nine of ten cases, popularity in one of ten."""
TAUGHT: dict[str, Any] = {"clip_norm": 1.0, "log_every": 500, "validate": 0}
REINFORCED: dict[str, Any] = {
    "steps": 300, "batch_size": 32, "warmup": 0.1, "weight_decay": 0.0, "log_every": 10, "validate": 0,
}  # fmt: skip

PLACES: dict[str, Place] = {
    "": Place(
        "recommendation",
        Recommendation(**SHOP),
        ModelConfig(width=64, heads=4),
        Training(steps=4000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REINFORCED),
        {
            **_first(1),
            "everywhere": EVERYWHERE,
            "sasrec": ("direct, SASRec's loss", SASRec(), "#7ea3d8"),
            **MORE,
            **_second(1),
        },
        {
            "direct": 1e-2,
            "constant": 3e-3,
            "hidden": 1e-3,
            "attention": 1e-2,
            "everywhere": 3e-3,
            "sasrec": 1e-2,
            "surrogate": 1e-4,
            "surrogate-nll": 5e-4,
            "group": 1e-4,
            "published": 3e-5,
            "score": 3e-5,
            "score-nll": 2.5e-3,
            "pathwise": 3e-5,
            "likelihood": 3e-5,
            "plain": 3e-5,
        },
    ),
    "early-": Place(
        "recommendation, short first stage",
        Recommendation(**SHOP),
        ModelConfig(width=64, heads=4),
        Training(steps=1000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REINFORCED),
        {"attention": _first(1)["attention"], **_second(1, *SHORT)},
        {"attention": 3e-3, "surrogate": 3e-5, "score": 1e-4, "likelihood": 2.5e-3, "plain": 5e-4},
    ),
    "items-": Place(
        "recommendation by item tokens",
        Recommendation(**SHOP, item_tokens=True),
        ModelConfig(width=64, heads=4),
        Training(steps=4000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REINFORCED),
        {
            "sasrec": ("SASRec", SASRec(), "#3b6fb6"),
            **{kind: _first(1)[kind] for kind in ("direct", "attention")},
            "everywhere": EVERYWHERE,
            **_second(1, "surrogate"),
        },
        {**dict.fromkeys(("sasrec", "direct", "attention", "everywhere"), 3e-3), "surrogate": 3e-5},
    ),
    "mnns-": Place(
        "MNNS",
        MNNS(),
        ModelConfig(),
        Training(steps=9000, **TAUGHT),
        Training(**REINFORCED),
        {**_first(3), **_second(3, *UNLABELLED_SECOND), **LABELLED},
        {
            "direct": 1e-2,
            "constant": 3e-3,
            "hidden": 1e-2,
            "attention": 3e-4,
            "surrogate": 1e-4,
            "likelihood": 3e-5,
            "plain": 5e-4,
            "chain": 3e-3,
            "colar": 1e-2,
            "cot2": 1e-2,
        },
    ),
    "hops-": Place(
        "multi-hop",
        MultiHop(hops=3, least=2, bound=True),
        ModelConfig(),
        Training(steps=4000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REINFORCED),
        {**_first(2), **_second(2, *UNLABELLED_SECOND), **LABELLED},
        {
            "direct": 3e-4,
            "constant": 1e-3,
            "hidden": 3e-4,
            "attention": 1e-3,
            "surrogate": 3e-5,
            "likelihood": 3e-5,
            "plain": 3e-5,
            "chain": 1e-3,
            "colar": 3e-4,
            "cot2": 3e-4,
        },
    ),
}
"""By what stands before the names of their arms. Arms with latents have as many as chains have steps at most."""
SHOPS, CHAINS = ("", "early-", "items-"), ("mnns-", "hops-")
"""Places of recommendation, and those whose chains are known."""
ARMS: dict[str, Looks] = {prefix + kind: arm for prefix, where in PLACES.items() for kind, arm in where.arms.items()}
"""Label, method and colour of every arm."""
FAMILIES = tuple(arm for arm in ARMS if split_arm(arm, PLACES)[1] not in (*MORE, LONG))
"""An arm of every family that has a learning rate of its own: those that `latentr3-tuning` and
`latentr3-chains-tuning` search."""
SEARCHED = FAMILIES
"""Arms whose learning rates were searched for."""


def split(arm: str) -> tuple[str, str]:
    """The prefix of an arm's place, and its kind."""
    return split_arm(arm, PLACES)


def family_of(arm: str) -> str:
    """What an arm of a place shares its learning rate with."""
    kind = split(arm)[1]
    return {**dict.fromkeys(MORE, "attention"), LONG: "plain"}.get(kind, kind)


def build(arm: str, seed: int = 0, **settings: Any) -> Experiment:
    """The run of an arm, with what it starts from; `settings` are fields of Training that override.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of latentr3: expected one of {', '.join(ARMS)}")
    (prefix, kind), method = split(arm), ARMS[arm][1]
    where = PLACES[prefix]
    training = where.reinforced if isinstance(method, LatentR3RL) else where.training
    training = replace(training, steps=training.steps * TIMES) if kind == LONG else training
    training = replace(training, **{"learning_rate": where.rates[family_of(arm)], **settings})
    before = {LatentR3RL: "attention", CoLaR: "chain"}.get(type(method))
    start = None if before is None else build(prefix + before, seed, num_train=training.num_train)
    return Experiment(where.task, method, where.model, training, Seeds.all(seed), start)


def arm_of(run: Experiment) -> str:
    """The arm of a run.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "latentr3", ARMS, build)
