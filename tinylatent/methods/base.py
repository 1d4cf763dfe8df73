"""What a method is: a frozen config, the thoughts it trains, its loss, and its plan for inference.

Letters: B rows, T words (steps before the answer, then answer tokens), V vocabulary, A answer tokens.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tasks import Batch, Task
from tinylatent.plan import Plan, Segment
from tinylatent.problems import Problems
from tinylatent.rollout import force
from tinylatent.seeds import Streams, derive
from tinylatent.thoughts import GREEDY, Token
from tinylatent.trajectory import Trajectory


class Model(nn.Module):
    """A backbone and the thoughts trained with it: what a checkpoint holds."""

    def __init__(self, backbone: Any, thoughts: nn.ModuleDict):
        super().__init__()
        self.backbone, self.thoughts = backbone, thoughts


class Stage(nn.Module):
    """The stage of training that is reached; a part of the checkpoint, since the weights know no other way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reached", torch.zeros((), dtype=torch.int64))


@dataclass(frozen=True)
class Moment:
    """Where training stands, for losses that change along the way or sample."""

    step: int
    total: int
    seed: int

    @property
    def progress(self) -> float:
        """Share of the steps already made, in [0, 1)."""
        return self.step / self.total

    def streams(self, rows: int, device: torch.device | str = "cpu") -> Streams:
        """Fresh streams for the rollouts of this step."""
        return Streams(derive(self.seed, self.step), torch.arange(rows, device=device))


class Loss(NamedTuple):
    """What one optimizer step descends, and what is logged beside it."""

    value: Float[Tensor, ""] | None
    """None for figures alone, of the end of a step."""
    figures: Mapping[str, Tensor] = MappingProxyType({})
    """Numbers, or one for each step of a rollout; the log holds their mean since its last line or checkpoint."""


@dataclass(frozen=True)
class Method:
    """Base of all methods: a supervised chain that answers with greedy tokens.

    Subclasses say which segments come before the answer; their fields are the method's hyperparameters.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever results would change, so that stored runs are not taken for new ones."""
    supervised: ClassVar[bool] = False
    """Whether the steps before the answer are trained to a target, so that comparing them to the oracle makes sense."""

    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Settings of training that suit it better than the usual ones."""
    temperatures: ClassVar[tuple[float, ...]] = ()
    """Temperatures at which several answers to a problem are sampled; none where that makes no sense."""

    @property
    def latent(self) -> bool:
        """Whether the steps before the answer are latent: then the controls apply."""
        return False

    @property
    def readings(self) -> "Mapping[str, Method]":
        """Other methods whose inference the same weights are put through, by name."""
        return {}

    def thoughts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """What is kept beside the backbone, by name: thoughts with parameters of their own, buffers, frozen copies."""
        return nn.ModuleDict()

    def supervise(self, task: Task, problems: Any) -> Batch:
        """The batch this method learns from."""
        return task.batch(problems)

    def starts(self, steps: int) -> tuple[int, ...]:
        """First step of every stage of a training of `steps` steps, 0 first; the optimizer starts anew with each."""
        return (0,)

    def stage(self, moment: Moment) -> int:
        """The stage that training is in."""
        return bisect_right(self.starts(moment.total), moment.step) - 1

    def enter(self, model: Model, stage: int) -> None:
        """Prepares a model for a stage, at the stage's first step."""

    @property
    def extra(self) -> int:
        """Steps it may take beyond those of the chain: the model gets positions for them."""
        return 0

    @property
    def forwards(self) -> int:
        """Forwards that training on a problem once costs; a backward is worth two."""
        return 3

    def before(self, model: Model, problems: Problems, forced: bool, temperature: float = 0.0) -> Plan:
        """The segments before the answer; with given actions when forced."""
        return ()

    def plan(self, model: Model, problems: Problems, temperature: float = 0.0) -> Plan:
        """How the method solves problems: think, then say the answer (sampled if the temperature is positive)."""
        answer = Segment(Token(temperature), problems.answer_tokens)
        return (*self.before(model, problems, forced=False, temperature=temperature), answer)

    def forced(self, model: Model, problems: Problems, before: Plan | None = None) -> Trajectory:
        """The supervised trace under teacher forcing, in one forward where the thoughts allow it.

        before: the given segments before the answer; those of `self.before` by default.
        """
        answer = Segment(GREEDY, problems.answer_tokens, GREEDY.given(problems.answer_BA))
        plan = (*(self.before(model, problems, forced=True) if before is None else before), answer)
        return force(model.backbone, plan, problems.prompt_BN, problems.prompt_mask_BN, offset_B=problems.offset_B)

    def loss(self, model: Model, problems: Problems, moment: Moment) -> Float[Tensor, ""]:
        """Cross-entropy of the answer's tokens, summed over tokens and averaged over rows."""
        logits_BAV = self.forced(model, problems).logits_BTV[:, -problems.answer_tokens :]
        return token_loss(logits_BAV, problems.answer_BA)

    def losses(self, model: Model, problems: Problems, moment: Moment) -> Iterator[Loss]:
        """The losses of a training step, one for each optimizer step that it takes on these problems.

        Each is asked for after the optimizer stepped on the last; one without a value may follow them.
        """
        yield Loss(self.loss(model, problems, moment))

    def hopeless(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
        """Why training should stop, judged by the lines of metrics so far, and what to try; None to go on.

        ends: whether it ends here anyway; then this is what should be known about it.
        """
        return None


def token_loss(
    logits_BTV: Float[Tensor, "B T V"], ids_BT: Int[Tensor, "B T"], live_BT: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy to tokens, summed over the live steps of a row and averaged over rows, in nats."""
    if live_BT is not None:
        ids_BT = ids_BT.masked_fill(~live_BT, -100)  # cross_entropy's own mark for "skip"
    return F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flatten(), reduction="sum") / len(ids_BT)


def mixture_loss(
    logits_BTV: Float[Tensor, "B T V"], target_BTV: Float[Tensor, "B T V"], live_BT: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy to distributions, summed over live steps, averaged over rows, in nats.

    CSFT's sum of KL(target || model) plus the target's entropy, a constant (Gozeten et al. 2025, section 3).
    """
    if live_BT is not None:
        target_BTV = target_BTV * live_BT[..., None]
    return F.cross_entropy(logits_BTV.flatten(0, 1), target_BTV.flatten(0, 1), reduction="sum") / len(target_BTV)
