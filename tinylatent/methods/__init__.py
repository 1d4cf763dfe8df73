"""Every way of thinking, one file each; add yours to METHODS and the conformance suite tests it."""

from tinylatent.methods.base import Loss, Method, Model, Moment
from tinylatent.methods.coconut import Coconut
from tinylatent.methods.cot2 import CoT2
from tinylatent.methods.direct import Direct
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.methods.grpo import GRPO
from tinylatent.methods.pause import PauseTokens

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Direct, PauseTokens, DiscreteCoT, Coconut, CoT2, GRPO)
}

__all__ = [
    "GRPO",
    "METHODS",
    "CoT2",
    "Coconut",
    "Direct",
    "DiscreteCoT",
    "Loss",
    "Method",
    "Model",
    "Moment",
    "PauseTokens",
]
