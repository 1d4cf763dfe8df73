"""Recipes of study `depth-latent`: methods that think in steps, and two that do not, in four layers on two tasks.

Compositions of fixed permutations can be answered at once, so that steps of thought can be compared with none: there is
one walk, and a step finds one state. Multi-hop with two facts a node has frontiers of several states; what answers at
once does not learn it in a comparable time (study `tasks`), so that only arms with taught steps are there. All are
trained for as many steps at one rate, which was not searched. Only runs that learn are told of.
"""

from tinylatent_tasks import Composition, MultiHop

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.places import Place, known_arm, split_arm
from tinylatent.methods import Coconut, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

LAYERS, HOPS = 4, 4
MODEL = ModelConfig(64, LAYERS, 4, mlp="relu", init="fan_in")
STEPS = 3000
TRAINING = Training(
    STEPS, batch_size=128, learning_rate=1e-3, warmup=0.04, schedule="constant", weight_decay=0.01, clip_norm=1.0,
    beta2=0.98, log_every=250, validate=512, num_train=50_000,
)  # fmt: skip
PLACES = {
    "": Place("composition", Composition(hops=HOPS), MODEL),
    "hops-": Place("multi-hop, branching 2", MultiHop(hops=HOPS, least=2, branching=2, bound=True), MODEL),
}
"""By what stands before the names of their arms."""
TAUGHT: dict[str, tuple[str, Method, str]] = {
    "discrete": ("discrete CoT", DiscreteCoT(), "#3b6fb6"),
    "cot2": ("CoT2", CoT2(), "#222222"),
    "coconut": ("Coconut", Coconut(stages=HOPS - 1, share=0.2, mixing=0.0), "#4f8f5b"),
}
UNTAUGHT: dict[str, tuple[str, Method, str]] = {
    "direct": ("direct", Direct(), "#777777"),
    "pause": ("pause tokens", PauseTokens(), "#c08a3e"),
}
ARMS = UNTAUGHT | TAUGHT | {f"hops-{kind}": looks for kind, looks in TAUGHT.items()}
"""Label, method and colour of every arm."""


def split(arm: str) -> tuple[str, str]:
    """The prefix of an arm's place, and its kind."""
    return split_arm(arm, PLACES)


def build(arm: str, seed: int = 0) -> Experiment:
    """The run of an arm.

    Raises:
        ValueError: there is no such arm.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r} of depth-latent: expected one of {', '.join(ARMS)}")
    where = PLACES[split(arm)[0]]
    return Experiment(where.task, ARMS[arm][1], where.model, TRAINING, Seeds.all(seed))


def arm_of(run: Experiment) -> str:
    """The arm that a run is of, however long it was trained.

    Raises:
        ValueError: it is of none.
    """
    return known_arm(run, "depth-latent", ARMS, build)
