"""Study `latentr3-tuning`: a learning rate for every family of arms of study `latentr3`, the same number for each.

Three rates for every arm that is taught, three for every second stage, whatever its estimator: all on split seed 100,
the better two on seed 101; see `search`. Second stages start from `attention` as `recipes_latentr3` has it, whose rate
must be settled first. What is found is to stand there. The best is that of the highest accuracy: on recommendation the
hit rate at 1.
"""

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_latentr3 import ARMS, FAMILIES, PLACES, SECOND, arm_of, build, split
from tinylatent.lab.studies.latentr3 import QUICK, shortened
from tinylatent.lab.studies.search import Contender, RateSearch
from tinylatent.lab.study import Profile

RATES, SECOND_RATES = (1e-3, 3e-3, 1e-2), (1e-4, 5e-4, 2.5e-3)
"""Of arms that are taught, and of second stages."""


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    return SECOND_RATES if split(arm)[1] in SECOND else RATES


def run(arm: str, seed: int, rate: float, profile: Profile) -> Experiment:
    """The run of an arm."""
    return shortened(build(arm, seed, learning_rate=rate), profile)


def contender(arm: str) -> Contender:
    """The arm and its task."""
    return arm, PLACES[split(arm)[0]].title


SEARCH = RateSearch(
    {"quick": QUICK[:1], "full": FAMILIES},
    rates_of,
    run,
    arm_of,
    contender,
    {arm: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in FAMILIES},
    {
        "Learning rates of study latentr3: arms that are taught": [
            arm for arm in FAMILIES if split(arm)[1] not in SECOND
        ],
        "Learning rates of study latentr3: second stages": [arm for arm in FAMILIES if split(arm)[1] in SECOND],
    },
)
STUDY = SEARCH.study(
    "latentr3-tuning", "Which learning rate suits each family of arms of study latentr3, given the same search?"
)
