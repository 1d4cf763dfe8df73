"""Studies `latentr3-tuning`, `latentr3-rl-tuning`, `latentr3-chains-tuning`: a learning rate for every family of arms.

The first is of what is taught on recommendation, the second of second stages there, the third of MNNS and multi-hop.
The same number of rates for every arm of a task that is taught, and for every second stage, whatever its estimator: all
on split seed 100, the better half on seed 101; see `search`. Second stages start from `attention` and CoLaR from
`chain` as `recipes_latentr3` has them, whose rates must be settled first. What is found is to stand there. The best is
that of the highest accuracy: on recommendation the hit rate at 1.
"""

from collections.abc import Mapping

from tinylatent.lab.arms import Arm
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes_latentr3 import ARMS, CHAINS, FAMILIES, PLACES, SECOND, SHOPS, arm_of, build, split
from tinylatent.lab.studies.latentr3 import shortened
from tinylatent.lab.studies.search import Contender, RateSearch
from tinylatent.lab.study import Profile

RATES = {"taught": (3e-4, 1e-3, 3e-3, 1e-2), "second": (3e-5, 1e-4, 5e-4, 2.5e-3)}
"""Of arms that are taught, and of second stages."""


def rates_of(arm: str) -> tuple[float, ...]:
    """The rates tried for an arm."""
    return RATES["second" if split(arm)[1] in SECOND else "taught"]


def run(arm: str, seed: int, rate: float, profile: Profile, found: Mapping[str, float]) -> Experiment:
    """The run of an arm; what it starts from is as the recipes have it, whatever was `found`."""
    return shortened(build(arm, seed, learning_rate=rate), profile)


def contender(arm: str) -> Contender:
    """The arm and its task."""
    return arm, PLACES[split(arm)[0]].title


def search_of(arms: list[str], quick: str) -> RateSearch:
    """The search of some families, one arm of them in the quick profile."""
    second = [arm for arm in arms if split(arm)[1] in SECOND]
    kinds = {"arms that are taught": [arm for arm in arms if arm not in second], "second stages": second}
    titles = {words: names for words, names in kinds.items() if names}
    return RateSearch(
        {"quick": (quick,), "full": arms},
        rates_of,
        run,
        arm_of,
        contender,
        {arm: Arm(ARMS[arm][0], build, ARMS[arm][2]) for arm in arms},
        {f"Learning rates of study latentr3: {words}": names for words, names in titles.items()},
    )


IN_SHOPS = [arm for arm in FAMILIES if split(arm)[0] in SHOPS]
STUDY = search_of([arm for arm in IN_SHOPS if split(arm)[1] not in SECOND], "direct").study(
    "latentr3-tuning", "Which learning rate suits each first stage of study latentr3 on recommendation?"
)
SECOND_STUDY = search_of([arm for arm in IN_SHOPS if split(arm)[1] in SECOND], "plain").study(
    "latentr3-rl-tuning", "Which learning rate suits each second stage of study latentr3 on recommendation?"
)
CHAINS_STUDY = search_of([arm for arm in FAMILIES if split(arm)[0] in CHAINS], f"{CHAINS[0]}direct").study(
    "latentr3-chains-tuning", "Which learning rate suits each family of arms of study latentr3 on MNNS and multi-hop?"
)
