"""The lineup: the methods compared on MNNS, their names in tables, and the recipes that study `mnns-tuning` froze."""

from tinylatent.experiment import Training
from tinylatent.methods import Coconut, CoT2, Direct, DiscreteCoT, Method, PauseTokens

METHODS: tuple[Method, ...] = (Direct(), PauseTokens(), DiscreteCoT(), Coconut(), CoT2())
LABELS = {"direct": "direct", "pause": "pause", "discrete": "discrete CoT", "coconut": "Coconut", "cot2": "CoT2"}
RECIPES = {
    "direct": Training(rate=5e-3),
    "pause": Training(rate=5e-4),
    "discrete": Training(rate=2e-3),
    "coconut": Training(rate=5e-3),
    "cot2": Training(rate=5e-3),
}
"""What each method is trained with in every reported study; a test holds them to the stored tuning runs."""
