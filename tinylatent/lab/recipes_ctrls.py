"""Recipes of study `ctrls`, a RECONSTRUCTION: arms on arithmetic, the main ones on multi-hop lookup and subset sum.

An arm is a method with its settings; `hops-` or `sums-` before its name puts it elsewhere. All arms of a place and seed
come from one chain of thought that is meant to err: its training stops at a share of right answers. States are taught
around it by the bound, and rewards move transitions from there; both leave its weights alone. The arm `tokens` moves
them: group advantages on sampled tokens, from the same chain. All that is taught trains for as many steps, and so does
all that is rewarded. Learning rates are a family's, see `family_of`; they are those that studies `ctrls-tuning` and
`ctrls-rl-tuning` found.

Four states, and chains of at most three steps on the first two tasks and four on the third, leave 64 and 256 sequences
of states, so that the best of them can be found by trying all. Posteriors are sharp (TAU), since at the usual
temperature a soft state is nearly one vector; concentrations are 1 at least (FLOOR), since below that a density has no
bound at the corners, where draws then fall.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinylatent_tasks import Arithmetic, MultiHop, SubsetSum

from tinylatent.core.seeds import Seeds
from tinylatent.lab import places
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import known_arm, split_arm
from tinylatent.methods import CTRLS, CTRLSRL, GRPO, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

Looks = tuple[str, Method, str]
"""Label, method and colour of an arm."""

STATES = 4
"""K of most arms."""
TAU, FLOOR = 0.1, 1.0
"""Temperature of the posterior, and least concentration."""
TAUGHT = CTRLS(count=STATES, tau=TAU, floor=FLOOR)
REWARDED = CTRLSRL(count=STATES, tau=TAU, floor=FLOOR)
CHAIN, TOKENS = "chain", "tokens"
"""The start of all arms, and the arm that trains the language model itself."""
EPSILONS, BONUSES = (0.0, 0.1, 0.3), (0.0, 0.001, 0.01)
"""Exploration and entropy bonus of the grid."""


def _cell(epsilon: float, entropy: float) -> str:
    """The kind of an arm of the grid; "rl" for the usual settings."""
    usual = (epsilon, entropy) == (REWARDED.epsilon, REWARDED.entropy)
    return "rl" if usual else f"rl-e{epsilon:g}-b{entropy:g}"


def _gridded() -> dict[str, Looks]:
    """An arm for each exploration and bonus but the usual ones."""
    found: dict[str, Looks] = {}
    for row, epsilon in enumerate(EPSILONS):
        for column, entropy in enumerate(BONUSES):
            label, tint = (
                f"RL, epsilon {epsilon:g}, bonus {entropy:g}",
                f"#{0x60 + 40 * row:02x}{0x50 + 40 * column:02x}90",
            )
            found[_cell(epsilon, entropy)] = (label, replace(REWARDED, epsilon=epsilon, entropy=entropy), tint)
    del found["rl"]
    return found


GRID = {(epsilon, entropy): _cell(epsilon, entropy) for epsilon in EPSILONS for entropy in BONUSES}
"""Kinds of arms by exploration and bonus."""
KINDS: dict[str, Looks] = {
    CHAIN: ("chain of thought, the start", DiscreteCoT(), "#222222"),
    "fitted": ("states", TAUGHT, "#3b6fb6"),
    "shuffled": ("shuffled states", replace(TAUGHT, states="shuffled"), "#8fb0d9"),
    "random": ("random states", replace(TAUGHT, states="random"), "#6f9a8d"),
    "prefix": ("learned prefix", CTRLS(states="prefix"), "#c08a3e"),
    "hard": ("states, hard", replace(TAUGHT, feed="hard"), "#1f5f8a"),
    "eight": ("states, eight", replace(TAUGHT, count=8), "#5b7fd0"),
    "rl": ("RL", REWARDED, "#b5403a"),
    "rl-shuffled": ("RL, shuffled states", replace(REWARDED, states="shuffled"), "#d98880"),
    "rl-random": ("RL, random states", replace(REWARDED, states="random"), "#a97b6b"),
    "rl-warm": ("RL, sampled tokens", replace(REWARDED, temperature=1.0), "#8f3a6a"),
    "rl-prefix": ("RL, learned prefix, sampled tokens", CTRLSRL(states="prefix", temperature=1.0), "#d3a04a"),
    "rl-hard": ("RL, Dirichlet, hard", replace(REWARDED, feed="hard"), "#7b5ea7"),
    "rl-categorical": (
        "RL, categorical, hard",
        replace(REWARDED, feed="hard", transition="categorical"),
        "#b79ad1",
    ),
    "rl-eight": ("RL, eight states", replace(REWARDED, count=8), "#8a2f5b"),
    **_gridded(),
    "rl-naive": ("RL, epsilon .3, naive density", replace(REWARDED, epsilon=0.3, density="naive"), "#6b2b52"),
    "rl-permuted": ("RL, permuted rewards", replace(REWARDED, signal="permuted"), "#777777"),
    TOKENS: ("RL of the language model, token GRPO", GRPO(samples=1), "#4f8f5b"),
}
"""Label, method and colour of every kind of arm. All are reconstructions but the chain and the tokens. Rewards of a
prefix come from sampled tokens, since it draws no states: `rl-warm` is what it is compared with."""
STARTS = {
    "rl-shuffled": "shuffled", "rl-random": "random", "rl-prefix": "prefix", "rl-hard": "hard",
    "rl-categorical": "hard", "rl-eight": "eight",
}  # fmt: skip
"""The kind that rewarded states start from, where it is not "fitted". Hard states are taught alike for either
transition, whose difference the bound does not see: both start from the same weights."""
SECOND = (
    CHAIN, "fitted", "shuffled", "random", "prefix", "hard", "rl", "rl-shuffled", "rl-random", "rl-warm", "rl-prefix",
    "rl-hard", "rl-categorical", "rl-permuted", TOKENS,
)  # fmt: skip
"""Kinds on multi-hop lookup."""
THIRD = (CHAIN, "fitted", "hard", "rl", "rl-hard", TOKENS)
"""Kinds on subset sum, whose yes has several right chains."""


@dataclass(frozen=True)
class Place(places.Place):
    """A task, and how models are trained on it."""

    start: Training
    """Of the chain of thought that all arms start from."""
    taught: Training
    """Of states by the bound."""
    rewarded: Training
    """Of transitions, prefix and tokens by rewards."""
    kinds: tuple[str, ...]
    rates: Mapping[str, float]
    """Peak learning rates by family."""


BEGUN: dict[str, Any] = {"schedule": "constant", "clip_norm": 1.0, "num_train": 20_000, "log_every": 10}
"""Training of the chain of thought. It is asked every ten steps, so that it stops near the share it is meant for."""
LEARNT: dict[str, Any] = {"weight_decay": 0.0, "clip_norm": 1.0, "num_train": 20_000, "validate": 0}
"""Training of all that starts from it."""
PULLED: dict[str, Any] = {"batch_size": 64, "warmup": 0.1, "log_every": 10, **LEARNT}
"""Training by rewards."""
PLACES: dict[str, Place] = {
    "": Place(
        "arithmetic",
        Arithmetic(operations=3, least=2, modulus=7, operators="+-"),
        ModelConfig(width=64, heads=4),
        Training(steps=3000, learning_rate=3e-3, enough=0.6, **BEGUN),
        Training(steps=1500, log_every=100, **LEARNT),
        Training(steps=100, **PULLED),
        tuple(KINDS),
        {
            "states": 3e-2,
            "control": 3e-2,
            "prefix": 1e-2,
            "rl": 3e-4,
            "rl-control": 3e-4,
            "rl-hard": 3e-3,
            "rl-categorical": 1e-3,
            "rl-warm": 3e-4,
            "rl-prefix": 3e-3,
            TOKENS: 1e-3,
        },
    ),
    "hops-": Place(
        "multi-hop",
        MultiHop(hops=4, least=2, nodes=8, bound=True),
        ModelConfig(heads=4),
        Training(steps=4000, learning_rate=3e-3, enough=0.6, **BEGUN),
        Training(steps=1500, log_every=100, **LEARNT),
        Training(steps=100, **PULLED),
        SECOND,
        {
            "states": 1e-2,
            "control": 3e-3,
            "prefix": 3e-3,
            "rl": 3e-3,
            "rl-control": 3e-4,
            "rl-hard": 1e-3,
            "rl-categorical": 3e-3,
            "rl-warm": 3e-4,
            "rl-prefix": 3e-3,
            TOKENS: 1e-3,
        },
    ),
    "sums-": Place(
        "subset sum",
        SubsetSum(numbers=4, high=9),
        ModelConfig(),
        Training(steps=3000, learning_rate=3e-3, enough=0.75, **BEGUN),
        Training(steps=1500, log_every=100, **LEARNT),
        Training(steps=100, **PULLED),
        THIRD,
        {"states": 3e-2, "rl": 3e-4, "rl-hard": 3e-3, TOKENS: 1e-3},
    ),
}
"""By what stands before the names of their arms."""
ARMS: dict[str, Looks] = {prefix + kind: KINDS[kind] for prefix, where in PLACES.items() for kind in where.kinds}
"""Label, method and colour of every arm."""
FAMILIES = (
    "fitted", "shuffled", "prefix", "rl", "rl-shuffled", "rl-hard", "rl-categorical", "rl-warm", "rl-prefix", TOKENS,
)  # fmt: skip
"""A kind of every family that has a learning rate of its own."""
CANDIDATES = tuple(prefix + kind for prefix, where in PLACES.items() for kind in FAMILIES if kind in where.kinds)
"""Arms that studies `ctrls-tuning` and `ctrls-rl-tuning` search."""
BY_BOUND = ("fitted", "shuffled", "prefix")
"""Kinds of those that the first of the two searches."""
SEARCHED = CANDIDATES
"""Arms whose learning rates were searched for."""


def split(arm: str) -> tuple[str, str]:
    """The prefix of an arm's place, and its kind."""
    return split_arm(arm, PLACES)


def family_of(arm: str) -> str:
    """What an arm of a place shares its learning rate with."""
    kind = split(arm)[1]
    own = ("prefix", "rl-hard", "rl-categorical", "rl-warm", "rl-prefix", TOKENS)
    if kind in own:
        return kind
    rewarded = kind.startswith("rl")
    control = kind.removeprefix("rl-") in ("shuffled", "random")
    return ("rl-control" if control else "rl") if rewarded else "control" if control else "states"


def build(arm: str, seed: int = 0, **settings: Any) -> Experiment:
    """The run of an arm, with what it starts from; `settings` are fields of Training that override.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of ctrls: expected one of {', '.join(ARMS)}")
    prefix, kind = split(arm)
    where, method = PLACES[prefix], ARMS[arm][1]
    if kind == CHAIN:
        return Experiment(where.task, method, where.model, replace(where.start, **settings), Seeds.all(seed))
    training = where.taught if isinstance(method, CTRLS) else where.rewarded
    training = replace(training, **{"learning_rate": where.rates[family_of(arm)], **settings})
    before = STARTS.get(kind, "fitted") if isinstance(method, CTRLSRL) else CHAIN
    start = build(prefix + before, seed, num_train=training.num_train)
    return Experiment(where.task, method, where.model, training, Seeds.all(seed), start)


def arm_of(run: Experiment) -> str:
    """The arm of a run.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "ctrls", ARMS, build)
