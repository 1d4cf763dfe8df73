"""Study `methods-tuning`: a learning rate for every arm of study `methods` that is trained, the same search for each.

Four rates for what is taught and four for what is rewarded: all on split seed 100, the better half on seed 101; see
`search`. Arms that start from another wait until its rate is chosen, and start from it at that rate.
"""

from collections.abc import Mapping

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_methods import ARMS, BEFORE, FAMILIES, PLACES, arm_of, build, split
from tinylatent.lab.studies.methods import shortened
from tinylatent.lab.studies.search import Contender, RateSearch
from tinylatent.lab.study import Profile
from tinylatent.methods import CTRLS, CTRLSRL
from tinylatent.objectives.policy_gradient import PolicyGradient

TAUGHT, REWARDED = (3e-4, 1e-3, 3e-3, 1e-2), (3e-5, 1e-4, 3e-4, 1e-3)
STATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""Rates of parts around a frozen model, which have few weights."""


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    method = ARMS[arm][1]
    return STATES if isinstance(method, CTRLS | CTRLSRL) else REWARDED if isinstance(method, PolicyGradient) else TAUGHT


def run(arm: str, seed: int, rate: float, profile: Profile, found: Mapping[str, float]) -> Experiment:
    """The run of an arm, what it starts from at the rates that were found."""
    return shortened(build(arm, seed, found, learning_rate=rate), profile)


def before(arm: str) -> str | None:
    """The arm that an arm starts from."""
    prefix, kind = split(arm)
    return prefix + BEFORE[kind] if kind in BEFORE else None


def contender(arm: str) -> Contender:
    """The kind of an arm, and its task."""
    prefix, kind = split(arm)
    return kind, PLACES[prefix].title


LOOKS = {kind: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in FAMILIES for kind in [split(arm)[1]]}
SEARCH = RateSearch(
    {"quick": ("mnns-direct",), "full": FAMILIES},
    rates_of,
    run,
    arm_of,
    contender,
    LOOKS,
    {
        "Learning rates of study methods: from fresh weights": [kind for kind in LOOKS if kind not in BEFORE],
        "Learning rates of study methods: from another method": [kind for kind in LOOKS if kind in BEFORE],
    },
    before,
)
STUDY = SEARCH.study(
    "methods-tuning", "Which learning rate suits each method on each task of study methods, given the same search?"
)
