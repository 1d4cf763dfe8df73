"""Study `hrpo-tuning`: a learning rate for every family of arms of study `hrpo`, the same four for each.

Tokens alone, HRPO, and HRPO with noise in place of its soft tokens, which stands for all controls. All four rates on
split seed 100, the better two on seed 101; see `search`. What is found stands in `recipes_hrpo`. Factors of the rate,
for gates and Lambda, are the same throughout.
"""

from collections.abc import Mapping

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_hrpo import KINDS, PLACES, SEARCHED, arm_of, build, split
from tinylatent.lab.studies.search import Contender, RateSearch
from tinylatent.lab.study import Profile

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""The same for every family in either place."""
STEPS: dict[Profile, dict[str, int]] = {"quick": {"steps": 20}, "full": {}}


def run(arm: str, seed: int, rate: float, profile: Profile, found: Mapping[str, float]) -> Experiment:
    """The run of an arm; what it starts from is as the recipes have it, whatever was `found`."""
    return build(arm, seed, learning_rate=rate, **STEPS[profile])


def contender(arm: str) -> Contender:
    """The kind of an arm, and its task."""
    prefix, kind = split(arm)
    return kind, PLACES[prefix].title


LOOKS = {kind: Arm(KINDS[kind][0], build, KINDS[kind][2]) for _, kind in map(split, SEARCHED)}
SEARCH = RateSearch(
    {"quick": [arm for arm in SEARCHED if not split(arm)[0]], "full": SEARCHED},
    lambda arm: RATES,
    run,
    arm_of,
    contender,
    LOOKS,
    {"Learning rates of study hrpo": LOOKS},
)
STUDY = SEARCH.study(
    "hrpo-tuning", "Which learning rate suits token-only GRPO, HRPO and its controls, given the same search?"
)
