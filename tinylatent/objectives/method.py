"""Method: a frozen config with the parts trained beside a backbone, the loss, and the way problems are solved.

A method's file reads like its paper: its thought, its parts, `thinking` (the plan before the answer), `loss`, and
`solve` if that is more than one rollout. A method declares what it learns: named parts with their learning rates in a
stage (`parameter_groups`), what it fits to data when a stage begins (`begin_stage`), what it inherits from an earlier
run (`inherits`), and which tokens it adds (`extra_tokens`).

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
from tinylatent.engine.counters import Counters
from tinylatent.engine.force import force
from tinylatent.engine.plan import ANSWER, Plan, Segment, all_given
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.engine.trace import Trace
from tinylatent.models.backbone import Edit
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.rewards import Verifier, truth


class Model(nn.Module):
    """What a checkpoint stores: a backbone, the parts trained with it, and the current stage of training."""

    stage: Tensor

    def __init__(self, backbone: Any, parts: nn.ModuleDict | None = None):
        super().__init__()
        self.backbone, self.parts = backbone, nn.ModuleDict() if parts is None else parts
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def forward(self, call: Callable[["Model"], Any]) -> Any:
        """Returns call(model). Whatever needs weights runs inside, so that distributed wrappers can gather them."""
        return call(self)


def has_prefix(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name has one of the prefixes: "parts.gate.weight" has "parts.gate", "parts.gates" has not."""
    return any(not prefix or name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


TABLE = "backbone.table"
"""Stands for the parameters of the embedding table and the readout, whatever a backbone calls them."""


def table_names(model: Model, every: bool = False) -> list[str]:
    """Names of the parameters that have a row for every token; `every` name of those that are tied."""
    tables = getattr(model.backbone, "tables", (model.backbone.table.weight,))
    ours, named = {id(table) for table in tables}, model.backbone.named_parameters(remove_duplicate=not every)
    return [f"backbone.{name}" for name, parameter in named if id(parameter) in ours]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate and decay of their own, or frozen; all others follow the recipe.

    Raises ValueError for a rate or factor that is not positive, both of them, or a negative decay.
    """

    parts: tuple[str, ...]
    """Prefixes of parameter names, up to a dot: "parts.gate" or "backbone"; or TABLE. The first that fits counts."""
    learning_rate: float | None = None
    """Peak learning rate; the recipe's if None."""
    weight_decay: float | None = None
    """Weight decay; the recipe's if None."""
    frozen: bool = False
    """Whether these parameters are not trained."""
    rate_factor: float = 1.0
    """The peak learning rate as a multiple of the recipe's, instead of a rate."""

    def __post_init__(self) -> None:
        positive = self.rate_factor > 0 and (self.learning_rate is None or self.learning_rate > 0)
        if not positive or (self.weight_decay or 0.0) < 0:
            raise ValueError(
                f"a group with learning rate {self.learning_rate}, factor {self.rate_factor} and decay "
                f"{self.weight_decay}: expected positive ones and no negative decay; frozen=True keeps parts as they "
                "are"
            )
        if self.learning_rate is not None and self.rate_factor != 1:
            raise ValueError(
                f"a group with learning rate {self.learning_rate} and factor {self.rate_factor}: expected one of the "
                "two; a factor multiplies the recipe's rate"
            )


@dataclass(frozen=True)
class TrainState:
    """The progress of training, for losses that sample or change over time."""

    step: int
    """Batches done so far."""
    total: int
    """Batches of the whole training."""
    seed: int
    """Root of everything that a loss samples."""
    rows: int | None = None
    """Rows of the whole batch, if a loss sees a part of it; None if it sees all."""
    first: int = 0
    """Index of the part's first row in the whole batch."""
    update: int = 0
    """Index of the optimizer step on this batch."""
    verify: Verifier = truth
    """Rewards rollouts."""
    gather: Callable[[Tensor], Tensor] = lambda x: x
    """Maps rows of this process to those of all processes, for statistics of the whole batch."""

    @property
    def progress(self) -> float:
        """Share of the steps already done, in [0, 1)."""
        return self.step / self.total

    def streams(self, rows: int, device: torch.device | str = "cpu", per_example: int = 1) -> Streams:
        """Streams for the rows of this step, keyed by their index in the whole batch.

        rows: number of streams, `per_example` for every example of the part.
        """
        first = self.first * per_example
        return Streams(derive(self.seed, self.step), torch.arange(first, first + rows, device=device))


class Loss(NamedTuple):
    """The loss of an optimizer step, and metrics to log."""

    value: Float[Tensor, ""]
    metrics: Mapping[str, Tensor] = MappingProxyType({})
    """Numbers, or one number per step of a rollout; logged as the mean since the last line or checkpoint."""


@dataclass(frozen=True)
class Solution:
    """The result of solving: answers, the trace of the rollout that gave them, and what solving cost."""

    answer_BA: Int[Tensor, "B A"]
    """Token ids, -1 for no token; the rollouts of a group are consecutive."""
    trace: Trace
    """The rollout that gave the answers."""
    spent: Counters | None = None
    """Costs of solving, where it took more than the trace; None if the trace is all."""

    @property
    def counters(self) -> Counters:
        """What solving cost: forwards, slots, steps, tokens, latents and operations."""
        return self.trace.counters if self.spent is None else self.spent


@dataclass(frozen=True)
class Method:
    """Base of all methods: trains the answer and decodes it greedily.

    Subclasses define the segments before the answer; their fields are the method's hyperparameters.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever results would change, so that stored runs are not mistaken for new ones."""
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields of Training for which the method has defaults of its own."""
    temperatures: ClassVar[tuple[float, ...]] = ()
    """Temperatures at which evaluation samples several answers to a problem; empty if it samples none."""
    inherits: ClassVar[tuple[str, ...]] = ("backbone",)
    """Prefixes of the parameters and buffers that are copied from the run it starts from, up to a dot."""
    starts_from: ClassVar[str | None] = None
    """Name of the method whose run in the same comparison it begins with; None for fresh weights."""
    compared: ClassVar[bool] = True
    """Whether it stands in the comparisons of all methods."""
    label: ClassVar[str] = ""
    """What tables and figures call it; its name if empty."""
    colour: ClassVar[str] = ""
    """Its colour in figures, such as "#3b6fb6"; a spare one if empty."""
    drops_out: ClassVar[bool] = True
    """Whether dropout applies to its loss; False where old and new policy must be the same function."""

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """Settings that the method of the run it starts from needs, beside its usual ones."""
        return {}

    @property
    def decoders(self) -> "Mapping[str, Method]":
        """Other methods, by name, whose inference is evaluated with the same weights."""
        return {}

    @property
    def idle(self) -> Mapping[str, str]:
        """The fields that have no effect beside the others, and why, such as "without a budget".

        A field is part of a run's identity, so a run that sets one of these to no purpose is refused.
        """
        return {}

    @property
    def supervised(self) -> bool:
        """Whether every step before the answer is trained to the chain's, so that it can be compared with the oracle.

        A subclass may set it as a plain attribute.
        """
        return False

    # -----------------------------------------------------------------------------------------------------------------
    # What it learns

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The modules beside the backbone, by name: thoughts with parameters, buffers, frozen copies."""
        return nn.ModuleDict()

    def model(self, backbone: Any, generator: torch.Generator) -> Model:
        """A model of this backbone and the method's parts, initialised from the generator."""
        return Model(backbone, self.parts(backbone, generator))

    def supervise(self, speaker: Speaker, device: torch.device | str = "cpu") -> Examples:
        """The examples with the targets that this method trains on."""
        return speaker.examples(device)

    def stage_starts(self, steps: int) -> tuple[int, ...]:
        """First step of every stage in a training of `steps` steps, 0 first; every stage resets the optimizer."""
        return (0,)

    def stage_at(self, step: int, steps: int) -> int:
        """The stage of a step in a training of `steps` steps."""
        return bisect_right(self.stage_starts(steps), step) - 1

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """Parameters that a stage trains with rates of their own, or freezes."""
        return ()

    def begin_stage(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Hook at a stage's first step, with all training examples: fits what the stage fits to data.

        It must be deterministic: a run that is resumed at this step calls it again with the same weights.
        """

    def enter(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Sets the model's stage and calls `begin_stage`; the training loop calls this."""
        model.stage.fill_(stage)
        self.begin_stage(model, stage, examples, state)

    @property
    def extra_tokens(self) -> tuple[str, ...]:
        """Tokens added to the task's vocabulary; their ids follow the task's, in this order."""
        return ()

    def extra_id(self, model: Model, token: str) -> int:
        """The id of an extra token, in a model whose last rows of the table are the extra tokens."""
        return len(model.backbone.table) - len(self.extra_tokens) + self.extra_tokens.index(token)

    @property
    def extra_steps(self) -> int:
        """Steps that inference may take beyond those of the chain; the model gets positions for them."""
        return 0

    @property
    def forwards(self) -> int:
        """Cost of one training step on a problem, in forwards; a backward counts as two."""
        return 3

    # -----------------------------------------------------------------------------------------------------------------
    # Inference

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """The segments before the answer."""
        return ()

    def taught(self, model: Model, examples: Examples) -> Plan | None:
        """The segments before the answer under teacher forcing, actions given; None to train on the model's own."""
        return None

    def plan(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """The plan of inference: `thinking`, then the answer (sampled if the temperature is positive)."""
        answer = Segment(Token(temperature, examples.stop_ids), examples.answer_tokens, name=ANSWER)
        return (*self.thinking(model, examples, temperature), answer)

    def solve(
        self,
        model: Model,
        examples: Examples,
        streams: Streams | None = None,
        *,
        temperature: float = 0.0,
        group: int = 1,
        control: str | None = None,
        verify: Verifier | None = None,
        edit: Edit | None = None,
    ) -> Solution:
        """Solves every problem; by default with one rollout of the plan.

        Args:
            model: the trained model.
            examples: the problems; inference does not use their targets.
            streams: randomness, one stream per rollout; needed where something is sampled.
            temperature: of the answer and of tokens before it; 0 is greedy.
            group: rollouts per problem.
            control: "noise", "shuffled" or "zero" to replace the latents; None for the method itself.
            verify: judges what is written during a search; methods that do not search do not use it.
            edit: reads or changes activations inside the model; see `tinylatent.models.backbone.Edit`.

        Raises:
            ValueError: an unknown control; streams are missing or not one per rollout.
        """
        plan = self.plan(model, examples, temperature)
        trace = rollout(
            model.backbone,
            plan if control is None else controlled(plan, control),
            examples.prompt_BN,
            examples.prompt_mask_BN,
            streams=streams,
            offset_B=examples.offset_B,
            group=group,
            edit=edit,
        )
        return Solution(trace.answer(), trace)

    # -----------------------------------------------------------------------------------------------------------------
    # Losses

    @property
    def updates(self) -> int:
        """Optimizer steps per batch."""
        return 1

    def forced(self, model: Model, examples: Examples, before: Plan | None = None, whole: bool = False) -> Trace:
        """The trace of a supervised loss, its answer given; one forward if everything is given and parallel.

        before: the segments before the answer; by default those of `taught`, or `thinking` if that returns None, with
        the gradient through the model's own actions; whole: whether hidden states of the whole prompt are wanted.
        """
        answer = Segment(GREEDY, examples.answer_tokens, GREEDY.given(examples.answer_BA), ANSWER)
        before = self.taught(model, examples) if before is None else before
        prompt_BN, mask_BN, offset_B = examples.prompt_BN, examples.prompt_mask_BN, examples.offset_B
        plan = (*(self.thinking(model, examples) if before is None else before), answer)
        if all_given(plan):
            return force(model.backbone, plan, prompt_BN, mask_BN, offset_B=offset_B, whole=whole)
        return rollout(model.backbone, plan, prompt_BN, mask_BN, offset_B=offset_B, grad=True, whole=whole)

    def collect(self, model: Model, examples: Examples, state: TrainState) -> Any:
        """The batch that losses are computed from: the examples, or rollouts of them.

        The result has `parts(size)`, which splits it into parts of at most `size` examples. Whatever needs weights runs
        inside `model(call)`.
        """
        return examples

    def loss(self, model: Model, batch: Any, state: TrainState) -> Loss:
        """The loss of one optimizer step: a sum over rows, divided by the rows of the whole batch.

        By default the cross-entropy of the answer's tokens.
        """
        trace, tokens = self.forced(model, batch), batch.answer_tokens
        answer = slice(trace.steps - tokens, None)
        return Loss(token_loss(trace, batch.answer_BA, state.rows, batch.answer_mask_BA, answer))

    def after(self, model: Model, batch: Any, state: TrainState) -> Mapping[str, Tensor]:
        """Metrics of a part of a batch after the last optimizer step on it; uses weights as `collect` does."""
        return {}

    def early_stop(self, lines: Sequence[Mapping[str, Any]], ends: bool) -> str | None:
        """The reason to stop training, and what to try; None to continue.

        Args:
            lines: the logged metrics so far.
            ends: True at the last step, where a reason is only recorded with the run.
        """
        return None
