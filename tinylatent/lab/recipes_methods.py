"""Recipes of study `methods`: every method in one place for each task, all with the same model and length of training.

An arm is a method with its usual settings; a prefix says where: `mnns-`, `hops-`, `sums-`, `chain-`, `shop-`. What is
taught makes as many steps on as many problems, and so does all that is rewarded; searches train nothing. Rewards,
states and searches start from what a method of the place was taught (BEFORE). Direct answers and pauses over-fit where
data are few, so that both are there a second time with dropout and a large weight decay (REGULAR). Every kind of arm is
a family with a learning rate of its own in every place, which study `methods-tuning` is to choose; until then they are
guesses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import MNNS, Arithmetic, MultiHop, Recommendation, SubsetSum

from tinylatent.core.seeds import Seeds
from tinylatent.lab import places
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import known_arm, split_arm
from tinylatent.lab.recipes_latentr3 import SHOP
from tinylatent.methods import (
    CTRLS,
    CTRLSRL,
    GRPO,
    HRPO,
    BestOfN,
    Coconut,
    CoLaR,
    CoLaRGRPO,
    CoT2,
    Direct,
    DiscreteCoT,
    LatentR3,
    LatentR3RL,
    LatentSeek,
    PauseTokens,
    SASRec,
)
from tinylatent.methods.searching import Search
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.objectives.policy_gradient import PolicyGradient
from tinylatent.training.config import Training

Looks = tuple[str, Method, str]
"""Label, method and colour of an arm."""

REGULAR: dict[str, Any] = {"dropout": 0.1, "weight_decay": 0.25}
"""Dropout of the model and weight decay of arms that are held back from over-fitting."""
STATES: dict[str, Any] = {"count": 4, "tau": 0.1, "floor": 1.0}
"""Settings of CTRLS-style arms, those of study `ctrls`."""


def _kinds(latents: int) -> dict[str, Looks]:
    """Every kind of arm; LatentR3 and Coconut have as many latents as chains have steps of reasoning at most."""
    coconut = Coconut(stages=latents, share=0.6 / latents, mixing=0.0)
    return {
        "direct": ("direct", Direct(), "#777777"),
        "direct-regular": ("direct, dropout and decay", Direct(), "#a5a5a5"),
        "pause": ("pause tokens", PauseTokens(), "#c08a3e"),
        "pause-regular": ("pause tokens, dropout and decay", PauseTokens(), "#dcb67e"),
        "discrete": ("discrete CoT", DiscreteCoT(ends=True), "#3b6fb6"),
        "plain": ("discrete CoT, length given", DiscreteCoT(), "#8fb0d9"),
        "coconut": ("Coconut", coconut, "#4f8f5b"),
        "coconut-pause": ("Coconut, pause as thought", replace(coconut, thought="pause"), "#8aa36b"),
        "cot2": ("CoT2", CoT2(), "#222222"),
        "colar": ("CoLaR", CoLaR(speeds=(1,)), "#7a3e9d"),
        "sasrec": ("direct, SASRec's loss", SASRec(), "#7ea3d8"),
        "latentr3": ("LatentR3, first stage", LatentR3(latents), "#b0603a"),
        "constant": ("learned constant", LatentR3(latents, "constant"), "#d6a98f"),
        "ctrls": ("CTRLS-style", CTRLS(**STATES), "#5b7fd0"),
        "grpo-token": ("token GRPO", GRPO(samples=1), "#1f5f8a"),
        "grpo": ("CoT2, GRPO on 3 tokens", GRPO(samples=3), "#555555"),
        "hrpo": ("HRPO", HRPO(r_min=0.5, gate_rate=2.0, openness_rate=20.0), "#b5403a"),
        "hrpo-token": ("HRPO, tokens alone", HRPO(gate="token"), "#d98880"),
        "colar-rl": ("CoLaR, RL", CoLaRGRPO(speeds=(1,), density="mean"), "#a97bc4"),
        "latentr3-rl": ("LatentR3, RL", LatentR3RL(latents=latents), "#d3a04a"),
        "ctrls-rl": ("CTRLS-style, RL", CTRLSRL(**STATES), "#8a2f5b"),
        "best-of-n": ("best of N, certified", BestOfN(judge="certificate", select="best", by_tokens=True), "#6b7b3a"),
        "latentseek": (
            "LatentSeek, certified",
            LatentSeek(judge="certificate", select="best", by_tokens=True),
            "#2f8f83",
        ),
    }


BEFORE = {
    "colar": "discrete", "ctrls": "plain", "grpo-token": "plain", "grpo": "cot2", "hrpo": "discrete",
    "hrpo-token": "discrete", "colar-rl": "colar", "latentr3-rl": "latentr3", "ctrls-rl": "ctrls",
    "best-of-n": "plain", "latentseek": "plain",
}  # fmt: skip
"""The kind that an arm starts from. The chain of thought that is told its length has no token for its end."""
RETRAINED = {
    "coconut": "coconut-pause", "cot2": "plain", "colar": "discrete", "latentr3": "constant", "hrpo": "hrpo-token",
    "latentseek": "best-of-n",
}  # fmt: skip
"""The arm of the same place that is trained alike without what is claimed to help: pauses and a learned constant have
the slots of latents and no content, chains of thought the taught steps of CoT2 and CoLaR and one token a step, tokens
alone HRPO's rewards and no hidden state, best of N the tokens and the verifier of a search and no gradient."""
READ = {"grpo-token": "greedy", "grpo": "mixture"}
"""How an arm is read where its own thoughts are sampled: as its start is, so that both are compared."""


@dataclass(frozen=True)
class Place(places.Place):
    """A task, and how models are trained on it."""

    training: Training
    """Of all that is taught."""
    rewarded: Training
    """Of all that is rewarded."""
    latents: int
    """LatentR3's, as many as a chain has steps at most."""
    absent: Mapping[str, str]
    """Kinds that are not run here, with the reason."""
    rates: Mapping[str, float]
    """Peak learning rates by kind."""

    @property
    def kinds(self) -> dict[str, Looks]:
        """Every kind of arm that is run here."""
        return {kind: looks for kind, looks in _kinds(self.latents).items() if kind not in self.absent}


TAUGHT: dict[str, Any] = {"clip_norm": 1.0, "log_every": 500, "validate": 0}
REWARDED: dict[str, Any] = {
    "steps": 100, "warmup": 0.1, "weight_decay": 0.0, "clip_norm": 1.0, "log_every": 10, "validate": 0,
}  # fmt: skip
NO_PROOF = "nothing short of the truth proves an answer here"
UNPROVED = {"best-of-n": NO_PROOF, "latentseek": NO_PROOF}
RANDOM = {"sasrec": "prompts are drawn at random, so that there is no next token to learn"}
GUESSES: dict[str, float] = {
    **dict.fromkeys(_kinds(1), 1e-3), "ctrls": 1e-2, "latentr3-rl": 1e-4, "colar-rl": 1e-4, "grpo": 3e-4,
}  # fmt: skip
"""Learning rates before any search."""
WIDE = ModelConfig(width=64, heads=4)
PLACES: dict[str, Place] = {
    "mnns-": Place(
        "MNNS", MNNS(), ModelConfig(), Training(9000, **TAUGHT), Training(**REWARDED), 3, RANDOM | UNPROVED, GUESSES
    ),
    "hops-": Place(
        "multi-hop, branching 2",
        MultiHop(hops=3, least=2, branching=2, bound=True),
        ModelConfig(),
        Training(4000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REWARDED),
        2,
        RANDOM | UNPROVED,
        GUESSES,
    ),
    "sums-": Place(
        "subset sum",
        SubsetSum(numbers=4, high=9),
        ModelConfig(),
        Training(4000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REWARDED),
        4,
        RANDOM,
        GUESSES,
    ),
    "chain-": Place(
        "arithmetic",
        Arithmetic(operations=3, least=2, modulus=7, operators="+-"),
        WIDE,
        Training(3000, num_train=20_000, **TAUGHT),
        Training(num_train=20_000, **REWARDED),
        3,
        RANDOM,
        GUESSES,
    ),
    "shop-": Place(
        "recommendation",
        Recommendation(**SHOP),
        WIDE,
        Training(3000, num_train=50_000, **TAUGHT),
        Training(num_train=50_000, **REWARDED),
        1,
        UNPROVED,
        GUESSES,
    ),
}
"""By what stands before the names of their arms. Subset sum has small numbers: with larger ones no method of this size
learns anything in as many steps, and a comparison would compare nothing."""
ARMS: dict[str, Looks] = {
    prefix + kind: looks for prefix, where in PLACES.items() for kind, looks in where.kinds.items()
}
"""Label, method and colour of every arm."""
FAMILIES = tuple(arm for arm, (_, method, _) in ARMS.items() if not isinstance(method, Search))
"""Arms whose learning rates `methods-tuning` searches: all that are trained."""
SEARCHED: tuple[str, ...] = ()
"""Arms whose learning rates were searched for."""


def split(arm: str) -> tuple[str, str]:
    """The prefix of an arm's place, and its kind."""
    return split_arm(arm, PLACES)


def build(arm: str, seed: int = 0, found: Mapping[str, float] | None = None, **settings: Any) -> Experiment:
    """The run of an arm, with what it starts from.

    Args:
        arm: its name.
        seed: all seeds.
        found: learning rates of arms that take the place of those here, in what it starts from too.
        settings: fields of Training that override.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of methods: expected one of {', '.join(ARMS)}")
    prefix, kind = split(arm)
    where, found = PLACES[prefix], found or {}
    own = {kind: found.get(prefix + kind, rate) for kind, rate in where.rates.items()}
    return _built(replace(where, rates=own), kind, seed, settings)


def _built(where: Place, kind: str, seed: int, settings: Mapping[str, Any]) -> Experiment:
    """The run of a kind of arm in a place."""
    method = where.kinds[kind][1]
    training = where.rewarded if isinstance(method, PolicyGradient) else where.training
    training = replace(training, **{"learning_rate": where.rates[kind], **settings})
    start = _built(where, BEFORE[kind], seed, {}) if kind in BEFORE else None
    model = where.model
    if kind.endswith("-regular"):
        model = replace(model, dropout=REGULAR["dropout"])
        training = replace(training, weight_decay=REGULAR["weight_decay"])
    if isinstance(method, Search):
        assert start is not None, "a search reads a chain of thought"
        training = replace(start.training, steps=0)
    return Experiment(where.task, method, model, training, Seeds.all(seed), start)


def arm_of(run: Experiment) -> str:
    """The arm of a run.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "methods", ARMS, build)
