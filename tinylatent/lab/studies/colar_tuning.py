"""Study `colar-tuning`: a learning rate for every family of arms of study `colar`, as many for each.

On arithmetic, all six on split seed 100, the better three on seed 101; see `search`. CoLaR's rate is its usual form's,
at c = 5, which its ablations share; Coconut, pause as thought, removed steps, pause tokens and direct answers are tuned
as it is, and so is reinforcement learning. What is found stands in `recipes_colar`, for multi-hop too.
"""

from collections.abc import Mapping

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_colar import ARMS, FAMILIES, arm_of, build, family_of, place_of
from tinylatent.lab.studies.search import Contender, RateSearch
from tinylatent.lab.study import Profile

RATES, RL_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    return RL_RATES if family_of(arm) == "rl" else RATES


def run(arm: str, seed: int, rate: float, profile: Profile, found: Mapping[str, float]) -> Experiment:
    """The run of an arm; what it starts from is as the recipes have it, whatever was `found`."""
    return build(arm, seed, learning_rate=rate)


def contender(arm: str) -> Contender:
    """The arm and its task."""
    return arm, place_of(arm).title


SEARCH = RateSearch(
    {"quick": ("direct",), "full": FAMILIES},
    rates_of,
    run,
    arm_of,
    contender,
    {arm: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in FAMILIES},
    {"Learning rates of study colar": FAMILIES},
)
STUDY = SEARCH.study("colar-tuning", "Which learning rate suits each family of arms of study colar?")
