"""What a method is: a frozen config, the parts it trains beside a backbone, its loss, and how it solves problems.

A method's file reads like its paper: its thought, its parts, `thinking` (the plan before the answer), `loss`, and
`solve` where one rollout is not all. What it learns is declared: which named parts at which rate in which stage
(`groups`), what is fitted from data when a stage begins (`begin_stage`), what is taken over from an earlier run
(`inherits`), which tokens it adds (`extra_tokens`).

Letters: B rows, T tokens of the chain (steps before the answer, then answer tokens), A answer tokens.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinylatent.core.seeds import Streams, derive
from tinylatent.engine.controls import controlled
from tinylatent.engine.force import force
from tinylatent.engine.plan import ANSWER, Plan, Segment, all_given
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.engine.trace import Counters, Trace
from tinylatent.models.backbone import Edit
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.rewards import Verifier, truth


class Model(nn.Module):
    """A backbone, the parts trained with it, and the stage of training that was reached: what a checkpoint holds."""

    stage: Tensor

    def __init__(self, backbone: Any, parts: nn.ModuleDict | None = None):
        super().__init__()
        self.backbone, self.parts = backbone, nn.ModuleDict() if parts is None else parts
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def forward(self, call: Callable[["Model"], Any]) -> Any:
        """call(model): everything that needs the weights runs inside, so that wrappers which gather them can do so."""
        return call(self)


def under(name: str, beginnings: tuple[str, ...]) -> bool:
    """Whether a name is one of these or stands under one: "parts.gate.weight" under "parts.gate", not "parts.gates"."""
    return any(not each or name == each or name.startswith(each + ".") for each in beginnings)


@dataclass(frozen=True)
class Group:
    """Named parts of a model that are trained in their own way; what no group names is trained as the recipe says."""

    parts: tuple[str, ...]
    """Beginnings of parameter names, up to a dot: "parts.gate" or "backbone"; the first group that fits has it."""
    learning_rate: float | None = None
    """Peak rate; the recipe's if None."""
    weight_decay: float | None = None
    """Decay; the recipe's if None."""
    frozen: bool = False
    """Whether they stay as they are."""

    def __post_init__(self) -> None:
        if (self.learning_rate is not None and self.learning_rate <= 0) or (self.weight_decay or 0.0) < 0:
            raise ValueError(
                f"a group with learning rate {self.learning_rate} and decay {self.weight_decay}: expected a positive "
                "rate and no negative decay; frozen=True keeps parts as they are"
            )


@dataclass(frozen=True)
class TrainState:
    """Where training stands, for losses that change along the way or sample."""

    step: int
    total: int
    seed: int
    rows: int | None = None
    """Rows of the whole batch, of which a loss may see a part; the part itself if None."""
    first: int = 0
    """Place of the part's first row in the whole batch."""
    update: int = 0
    """Which optimizer step on the same batch this is."""
    verify: Verifier = truth
    """What rewards rollouts."""
    gather: Callable[[Tensor], Tensor] = lambda x: x
    """Rows of all processes from those of this one: statistics of a batch are of the whole."""

    @property
    def progress(self) -> float:
        """Share of the steps already made, in [0, 1)."""
        return self.step / self.total

    def streams(self, rows: int, device: torch.device | str = "cpu", each: int = 1) -> Streams:
        """Fresh streams for the rows of this step, `each` for every example; they know their places in the batch."""
        first = self.first * each
        return Streams(derive(self.seed, self.step), torch.arange(first, first + rows, device=device))


class Loss(NamedTuple):
    """What an optimizer step descends, and what is logged beside it."""

    value: Float[Tensor, ""]
    metrics: Mapping[str, Tensor] = MappingProxyType({})
    """Numbers, or one for each step of a rollout; the log holds their mean since its last line or checkpoint."""


@dataclass(frozen=True)
class Solution:
    """What solving came to: answers, the record of the rollout that gave them, and what all of it cost."""

    answer_BA: Int[Tensor, "B A"]
    """Token ids, -1 where nothing was said; the rollouts of a group side by side."""
    trace: Trace
    spent: Counters | None = None
    """What was spent where that is more than the trace."""

    @property
    def counters(self) -> Counters:
        """Forwards, slots, steps, tokens, latents and operations."""
        return self.trace.counters if self.spent is None else self.spent


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
    inherits: ClassVar[tuple[str, ...]] = ("backbone",)
    """Beginnings of names, up to a dot, that are taken over from a run it starts from: backbone, heads, gates alike."""
    drops_out: ClassVar[bool] = True
    """Whether dropout applies to its loss; not where old and new policy must be the same function."""

    @property
    def decoders(self) -> "Mapping[str, Method]":
        """Other methods whose inference the same weights are put through, by name."""
        return {}

    # -----------------------------------------------------------------------------------------------------------------
    # What it learns

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """What is kept beside the backbone, by name: thoughts with parameters of their own, buffers, frozen copies."""
        return nn.ModuleDict()

    def model(self, backbone: Any, generator: torch.Generator) -> Model:
        """A model of this backbone and the method's parts, drawn from the generator."""
        return Model(backbone, self.parts(backbone, generator))

    def supervise(self, speaker: Speaker, device: torch.device | str = "cpu") -> Examples:
        """The examples this method learns from."""
        return speaker.examples(device)

    def stage_starts(self, steps: int) -> tuple[int, ...]:
        """First step of every stage of a training of `steps` steps, 0 first; the optimizer starts anew with each."""
        return (0,)

    def stage_at(self, step: int, steps: int) -> int:
        """The stage that a step of a training belongs to."""
        return bisect_right(self.stage_starts(steps), step) - 1

    def groups(self, stage: int) -> tuple[Group, ...]:
        """Parts that are trained in their own way in a stage."""
        return ()

    def begin_stage(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Prepares a model at a stage's first step, from all training examples where something is fitted to data.

        A run that is resumed at that very step does it again, from the same weights: it must come out the same.
        """

    def enter(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Marks the stage in the model and prepares it: what training calls."""
        model.stage.fill_(stage)
        self.begin_stage(model, stage, examples, state)

    @property
    def extra_tokens(self) -> tuple[str, ...]:
        """Tokens it needs beside the task's; their ids follow the task's in this order."""
        return ()

    def extra_id(self, model: Model, token: str) -> int:
        """The id of one of the extra tokens, in a model that was made with them behind all others."""
        return len(model.backbone.table) - len(self.extra_tokens) + self.extra_tokens.index(token)

    @property
    def extra_steps(self) -> int:
        """Steps it may take beyond those of the chain: the model gets positions for them."""
        return 0

    @property
    def forwards(self) -> int:
        """Forwards that training on a problem once costs; a backward is worth two."""
        return 3

    # -----------------------------------------------------------------------------------------------------------------
    # How it thinks

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """The segments before the answer."""
        return ()

    def taught(self, model: Model, examples: Examples) -> Plan | None:
        """The segments before the answer with the actions that training gives; None if the model thinks by itself."""
        return None

    def plan(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """How the method solves problems: think, then say the answer (sampled if the temperature is positive)."""
        answer = Segment(Token(temperature, examples.stop_ids), examples.answer_tokens, name=ANSWER)
        return (*self.thinking(model, examples, temperature), answer)

    def solve(
        self,
        model: Model,
        examples: Examples,
        streams: Streams | None = None,
        *,
        temperature: float = 0.0,
        groups: int = 1,
        control: str | None = None,
        verify: Verifier | None = None,
        edit: Edit | None = None,
    ) -> Solution:
        """Solves every problem: one rollout of the plan, unless a method does more.

        Args:
            model: the trained model.
            examples: what is asked; targets are not looked at.
            streams: randomness, one stream for each rollout; needed where something is sampled.
            temperature: of the answer, and of thoughts that say tokens; 0 is greedy.
            groups: rollouts of each problem.
            control: "noise", "shuffled" or "zero" to replace the latents; None for the method itself.
            verify: judges answers on the way, for methods that search; never told to those that do not.
            edit: reads or changes activity inside the model.
        """
        plan = self.plan(model, examples, temperature)
        trace = rollout(
            model.backbone,
            plan if control is None else controlled(plan, control),
            examples.prompt_BN,
            examples.prompt_mask_BN,
            streams=streams,
            offset_B=examples.offset_B,
            groups=groups,
            edit=edit,
        )
        return Solution(trace.answer(), trace)

    # -----------------------------------------------------------------------------------------------------------------
    # How it learns

    @property
    def updates(self) -> int:
        """Optimizer steps on one batch."""
        return 1

    def forced(self, model: Model, examples: Examples, before: Plan | None = None) -> Trace:
        """The supervised trace, its answer given: in one forward where all is given and the thoughts allow it.

        before: the segments before the answer; by default those of `taught` or, where there are none, what the model
        thinks by itself, with the gradient through it.
        """
        answer = Segment(GREEDY, examples.answer_tokens, GREEDY.given(examples.answer_BA), ANSWER)
        before = self.taught(model, examples) if before is None else before
        prompt_BN, mask_BN, offset_B = examples.prompt_BN, examples.prompt_mask_BN, examples.offset_B
        plan = (*(self.thinking(model, examples) if before is None else before), answer)
        if all_given(plan):
            return force(model.backbone, plan, prompt_BN, mask_BN, offset_B=offset_B)
        return rollout(model.backbone, plan, prompt_BN, mask_BN, offset_B=offset_B, grad=True)

    def collect(self, model: Model, examples: Examples, state: TrainState) -> Any:
        """What the losses of a step are computed from: the examples, or rollouts of them.

        Whatever it is has `parts(size)`, the same in parts of at most `size` examples. Where weights are needed it goes
        through `model(call)`.
        """
        return examples

    def loss(self, model: Model, batch: Any, state: TrainState) -> Loss:
        """What one optimizer step descends: a sum over rows, divided by the rows of the whole batch.

        Here the cross-entropy of the answer's tokens.
        """
        trace, tokens = self.forced(model, batch), batch.answer_tokens
        answer = slice(trace.steps - tokens, None)
        return Loss(token_loss(trace, batch.answer_BA, state.rows, batch.answer_mask_BA, answer))

    def after(self, model: Model, batch: Any, state: TrainState) -> Mapping[str, Tensor]:
        """Metrics of a part of a batch after the last optimizer step on it; weights as in `collect`."""
        return {}

    def early_stop(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
        """Why training should stop, judged by the lines of metrics so far, and what to try; None to go on.

        ends: whether training ends here anyway; then the reason is a remark about the run.
        """
        return None
