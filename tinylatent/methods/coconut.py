"""Coconut: chain of continuous thought. The last hidden state is the next input; stages replace the chain by latents.

Hao, Sukhbaatar, Su, Li, Hu, Weston, Tian 2024, arXiv 2412.06769, section 3. Stage k replaces the first k steps of
reasoning, each with all its tokens, by c k latent steps; the loss is the cross-entropy of the tokens after them, and
its gradient flows back through every latent step. Stage 0 is discrete chain of thought; the last stage has latent steps
alone. A stage resets the optimizer's state and the schedule of the learning rate; with a small probability an example
comes from a stage drawn uniformly, so that earlier stages are not forgotten. With c = 0 nothing takes the place of the
steps: they are removed, as in iCoT (Deng, Choi, Shieber 2024, arXiv 2405.14838), but a step at a time. The paper's
baseline "pause as thought" has the same stages, with one learned vector in place of every hidden state.

Where it differs from the published code: no <bot> and <eot> tokens (the prompt's last token and the number of latent
steps carry the same information), and a stage is a share of the training steps instead of a number of epochs.

Letters: B rows, T steps before the answer, W tokens of the chain before the answer, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back
from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thought import Action, State, Thought
from tinylatent.engine.thoughts import GREEDY, HIDDEN, Pause, Token
from tinylatent.methods.pause import pause_of
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import Loss, Method, Model, ParameterGroup, TrainState

Kind = Literal["hidden", "pause"]
"""What takes the place of a step: "hidden" the last hidden state, "pause" a learned vector, the same everywhere."""


class Partial(Thought):
    """A chain whose first steps are latent: the input is the hidden state where the action says so, else its token."""

    has_latent = True

    def token(self, action: Action) -> Int[Tensor, "*rows"]:
        """The id, also where the hidden state replaces it."""
        return action["id"]

    def latent(self, state: State, action: Action) -> Float[Tensor, "*rows D"]:
        """The hidden state."""
        return state.hidden

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The hidden state, or E[id]."""
        assert latent is not None, "this thought has a latent part"
        return torch.where(action["latent"][..., None], latent, state.table.rows(action["id"]))


PARTIAL = Partial()


class Waiting(Thought):
    """A chain whose first steps are pauses: the input is a learned vector where the action says so, else its token."""

    parallel = True

    def __init__(self, pause: Pause):
        super().__init__()
        self.pause = pause

    def token(self, action: Action) -> Int[Tensor, "*rows"]:
        """The id, also where the learned vector replaces it."""
        return action["id"]

    def compose(self, state: State, action: Action, latent: Tensor | None) -> Float[Tensor, "*rows D"]:
        """The learned vector, or E[id]."""
        return torch.where(action["latent"][..., None], self.pause.constant_D, state.table.rows(action["id"]))


@dataclass(frozen=True)
class Coconut(Method):
    """Thinks in hidden states, which replace the steps of reasoning stage by stage.

    Raises ValueError for settings out of range.
    """

    name = "coconut"
    label = "Coconut"
    colour = "#4f8f5b"

    stages: int = 3
    """Number of the last stage: stage k replaces the first k steps of reasoning, or all of a shorter chain."""
    per_step: int = 1
    """Latent steps per replaced step of reasoning (the paper's c); 0 removes steps without replacing them."""
    share: float = 0.2
    """Share of training in every stage but the last, which takes the rest."""
    mixing: float = 0.1
    """Probability that an example comes from a stage drawn uniformly instead of the current one."""
    thought: Kind = "hidden"
    """What a latent step feeds: the last hidden state, or a learned vector (the paper's "pause as thought")."""

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"stages {self.stages}: expected at least 1; try 3")
        if not 0 <= self.per_step <= 64:
            raise ValueError(f"per_step {self.per_step}: expected 0 to 64 latent steps for a step of reasoning; try 1")
        if not 0 < self.share * self.stages < 1:
            raise ValueError(
                f"share {self.share} for {self.stages} stages and the last: expected more than 0 and less than "
                f"1 / {self.stages}, so that every stage has steps; try {0.6 / self.stages:.2g}"
            )
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing {self.mixing}: expected a probability; try 0.1")
        if self.thought not in get_args(Kind):
            raise ValueError(f"thought {self.thought!r}: expected one of {', '.join(get_args(Kind))}")

    @property
    def idle(self) -> Mapping[str, str]:
        """What takes the place of steps, where nothing does."""
        return {} if self.per_step else {"thought": "with per_step 0, which removes steps"}

    @property
    def waits(self) -> bool:
        """Whether pauses take the place of steps."""
        return self.thought == "pause" and self.per_step > 0

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """The learned vector, if pauses take the place of steps."""
        return nn.ModuleDict({"pause": Pause(backbone.table.width, generator)} if self.waits else {})

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """The learned vector, frozen while nothing reads it."""
        return (ParameterGroup(("parts.pause",), frozen=True),) if self.waits and not stage and not self.mixing else ()

    def stage_starts(self, steps: int) -> tuple[int, ...]:
        """First step of every stage."""
        return tuple(round(stage * self.share * steps) for stage in range(self.stages + 1))

    @property
    def extra_steps(self) -> int:
        """How many more latent steps the last stage may have than tokens of the chain it replaces."""
        return max(0, self.per_step - 1) * self.stages

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """c latent steps per step of reasoning that the stage replaces, then the rest of the chain in tokens."""
        steps, stage = examples.num_steps, int(model.stage)
        replaced: int | Tensor
        removed: int | Tensor
        if isinstance(steps, int) and examples.step_BT is None:
            replaced = removed = min(steps, stage)
        else:
            replaced, removed = _replaced(examples, model.stage.expand(len(examples)))
        token = Token(temperature) if temperature else GREEDY
        latent = pause_of(model) if self.waits else HIDDEN
        return Segment(latent, replaced * self.per_step), Segment(token, steps - removed)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The chain of the model's current stage."""
        return (self.chain(model, examples, model.stage.expand(len(examples))),)

    def chain(self, model: Model, examples: Examples, stage_B: Int[Tensor, " B"]) -> Segment:
        """The chain of every row with its first `stage_B` steps of reasoning replaced, or all if it has fewer."""
        tokens_BW, whole = examples.chain_BT[:, : examples.max_steps], examples.num_steps
        (replaced_B, removed_B), W = _replaced(examples, stage_B), tokens_BW.shape[1]
        before_B = replaced_B * self.per_step
        longer_B = whole - removed_B + before_B
        # Steps of several tokens shorten the chain so much that a bound for all stages would waste most of the slots.
        bound = W + max(0, self.per_step - 1) * min(self.stages, W)
        most = bound if examples.step_BT is None else int(longer_B.max())
        slot_T = torch.arange(most, device=tokens_BW.device)
        token_BT = (slot_T - (before_B - removed_B)[:, None]).clamp(0, max(0, W - 1))
        id_BT = tokens_BW.gather(1, token_BT)
        if self.per_step == 0:
            return Segment(GREEDY, longer_B, GREEDY.given(id_BT))
        action = Action({"id": id_BT, "latent": slot_T < before_B[:, None]})
        fixed = self.per_step == 1 and examples.step_BT is None
        return Segment(Waiting(pause_of(model)) if self.waits else PARTIAL, whole if fixed else longer_B, action)

    def loss(self, model: Model, batch: Examples, state: TrainState) -> Loss:
        """Cross-entropy of the tokens after the latents, with the gradient through all of them."""
        chain = self.chain(model, batch, self.drawn(state, batch))
        assert chain.given is not None
        trace = self.forced(model, batch, (chain,))
        ids_BT = torch.cat([chain.given["id"], batch.answer_BA], 1)
        token_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        if self.per_step:
            token_BT[:, : chain.longest] = ~chain.given["latent"]
        mask_BT = batch.loss_mask(trace)
        return Loss(token_loss(trace, ids_BT, state.rows, token_BT if mask_BT is None else token_BT & mask_BT))

    def drawn(self, state: TrainState, examples: Examples) -> Int[Tensor, " B"]:
        """The stage of every row: the current one, or with probability `mixing` a random one."""
        uniform_B2 = state.streams(len(examples), examples.prompt_BN.device).uniform(2)
        any_B = (uniform_B2[:, 1] * (self.stages + 1)).long()
        stage_B = torch.where(uniform_B2[:, 0] < self.mixing, any_B, self.stage_at(state.step, state.total))
        return back(stage_B, examples.prompt_BN.device)


def _replaced(examples: Examples, stage_B: Int[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """How many steps of reasoning a row's stage replaces, and how many tokens these have."""
    step_BW, steps = examples.steps_BT[:, : examples.max_steps], examples.num_steps
    token_W = torch.arange(examples.max_steps, device=step_BW.device)
    number_BW = (step_BW + 1).masked_fill(token_W >= (steps if isinstance(steps, int) else steps[:, None]), 0)
    gone_BW = (number_BW > 0) & (number_BW <= stage_B[:, None])
    return torch.nn.functional.pad(number_BW * gone_BW, (1, 0)).amax(1), gone_BW.sum(1)
