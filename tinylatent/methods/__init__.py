"""Methods, one file each, registered under the entry-point group "tinylatent.methods"."""

from tinylatent.core.registry import Registry, dataclass_of
from tinylatent.methods.coconut import Coconut
from tinylatent.methods.colar import CoLaR
from tinylatent.methods.colar_rl import CoLaRGRPO
from tinylatent.methods.cot2 import CoT2
from tinylatent.methods.ctrls import CTRLS
from tinylatent.methods.ctrls_rl import CTRLSRL
from tinylatent.methods.direct import Direct
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.methods.grpo import GRPO
from tinylatent.methods.hrpo import HRPO
from tinylatent.methods.latentr3 import LatentR3
from tinylatent.methods.latentr3_rl import LatentR3RL
from tinylatent.methods.latentseek import LatentSeek
from tinylatent.methods.pause import PauseTokens
from tinylatent.methods.rivals import BestOfN, NoiseSearch, TabooSearch
from tinylatent.methods.sasrec import SASRec
from tinylatent.objectives.method import Method

METHODS: Registry[type[Method]] = Registry(
    "tinylatent.methods",
    "method",
    named=True,
    expects="a dataclass that inherits from Method",
    fits=dataclass_of(Method),
)
"""All installed methods by name, of this package and of others."""

__all__ = [
    "CTRLS",
    "CTRLSRL",
    "GRPO",
    "HRPO",
    "METHODS",
    "BestOfN",
    "CoLaR",
    "CoLaRGRPO",
    "CoT2",
    "Coconut",
    "Direct",
    "DiscreteCoT",
    "LatentR3",
    "LatentR3RL",
    "LatentSeek",
    "NoiseSearch",
    "PauseTokens",
    "SASRec",
    "TabooSearch",
]
