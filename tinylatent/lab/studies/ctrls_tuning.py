"""Studies `ctrls-tuning` and `ctrls-rl-tuning`: a learning rate for every family of arms of study `ctrls`.

The first is of what is taught by the bound, the second of what is rewarded.

Three rates for every family in every place: all on split seed 100, the better two on seed 101; see `search`. Families
are states, their controls (shuffled stands for random), prefix, rewards of soft draws with all of their grid, of
controls, of either kind of single states, of a prefix, and of the language model itself. Rewarded arms start from what
is taught at the rate of `recipes_ctrls`, which must be settled first. The best is that of the highest accuracy, greedy
but for token GRPO, whose chains are sampled here and greedy in the study.
"""

from collections.abc import Mapping

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_ctrls import CANDIDATES, KINDS, PLACES, TOKENS, arm_of, build, split
from tinylatent.lab.studies.ctrls import shortened
from tinylatent.lab.studies.search import Contender, RateSearch
from tinylatent.lab.study import Profile

TAUGHT, REWARDED = (3e-3, 1e-2, 3e-2), (3e-4, 1e-3, 3e-3)
"""Rates of what is taught, and of what is rewarded."""
WIDER = {"rl-prefix": (3e-3, 1e-2, 3e-2), TOKENS: (1e-4, 3e-4, 1e-3)}
"""Rates of a single vector, and of the whole language model."""


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    kind = split(arm)[1]
    return WIDER.get(kind, REWARDED if kind.startswith("rl") else TAUGHT)


def run(arm: str, seed: int, rate: float, profile: Profile, found: Mapping[str, float]) -> Experiment:
    """The run of an arm; what it starts from is as the recipes have it, whatever was `found`."""
    return shortened(build(arm, seed, learning_rate=rate), profile)


def contender(arm: str) -> Contender:
    """The kind of an arm, and its task."""
    prefix, kind = split(arm)
    return kind, PLACES[prefix].title


def search_of(arms: list[str], quick: str, words: str) -> RateSearch:
    """The search of some arms, one of them in the quick profile."""
    looks = {kind: Arm(KINDS[kind][0], build, KINDS[kind][2]) for _, kind in map(split, arms)}
    titles = {f"Learning rates of study ctrls, a reconstruction: {words}": looks}
    return RateSearch({"quick": (quick,), "full": arms}, rates_of, run, arm_of, contender, looks, titles)


BY_REWARDS = [arm for arm in CANDIDATES if split(arm)[1] == TOKENS or split(arm)[1].startswith("rl")]
STUDY = search_of([arm for arm in CANDIDATES if arm not in BY_REWARDS], "fitted", "by the bound").study(
    "ctrls-tuning",
    "Which learning rate suits states, their controls and a prefix of study ctrls, given the same search?",
)
REWARDED_STUDY = search_of(BY_REWARDS, "rl", "by rewards").study(
    "ctrls-rl-tuning", "Which learning rate suits each family of rewarded arms of study ctrls, given the same search?"
)
