"""CTRLS-style chain of thought: a soft state before every reasoning step. A RECONSTRUCTION, not the paper's algorithm.

Wu et al. 2025, arXiv 2507.08182 (CTRLS): its abstracts name latent states of reasoning steps, an evidence lower bound,
actions that are distributions over states, and reinforcement learning of transitions with the language model frozen.
Its body was not at hand and no code is published; all equations here are ours, made to be consistent. Starts from a
chain of thought (DiscreteCoT), whose weights stay as they are; U are embeddings of states:

    prompt [z_1] step 1 [z_2] step 2 .. answer        [z_t] = x + a_t U: x the token before it, whose position it has
    q_t = posterior of step t's state                 from the plain chain's hidden states: see `ctrls_states`
    alpha = softplus(f(h)) + floor,  m = alpha / sum of alpha      h: hidden state before [z_t]; f: transition network
    loss = - sum over tokens of log P(x | x_<, a = q)  +  beta sum over steps of KL(q_t || m_t)

With `feed` hard a_t is a state drawn from q_t and the loss an unbiased estimate of the negative evidence lower bound,
the states before it included; with soft, the default, tokens see the mean of the embeddings, which is no bound. At
inference the posterior is not there, since it reads the step: a_t is the prior m_t (its likeliest state if hard), or
drawn. Reinforcement learning of f alone goes on from here: see `ctrls_rl`.

Letters: B rows, S steps of a chain, n tokens of a step, T slots, D width, K states, H width of the network.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinylatent.core.precision import back, wide
from tinylatent.core.seeds import Streams, derive
from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.methods.ctrls_states import Kind, Spectrum, States, Steps, spectrum, steps_of
from tinylatent.methods.ctrls_thought import Feed, LatentState, Policy, Prefix, Transition, divergence, mean_of
from tinylatent.methods.discrete import DiscreteCoT
from tinylatent.models.decoder import MAX_WIDTH
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import Loss, Method, Model, ParameterGroup, TrainState
from tinylatent.objectives.rewards import hashed

STATE, STEP = "state", "step"  # names of the segments
MAX_STATES, PART = 1024, 256
AT_FIRST = 0.05
"""Spread of state embeddings before training, in units of that of the table's entries: near the plain chain."""


# ---------------------------------------------------------------------------------------------------------------------
# What both stages of training share


@dataclass(frozen=True)
class Stateful(Method):
    """Writes its chain with a state before every step; base of both stages.

    Raises ValueError for settings out of range, and for draws of a soft categorical, which is a single state.
    """

    compared = False  # it needs a study of its own

    states: Kind = "fitted"
    """What a step's state is: the cluster it falls into, or a control, in training and after: the cluster of another
    step (shuffled), the nearest of points that are drawn instead of fitted (random), or one vector for all (prefix)."""
    count: int = 8
    """K, number of states."""
    directions: int = 4
    """k, leading singular directions of a step's hidden states in its feature."""
    dims: int = 32
    """Most dimensions of features after PCA."""
    tau: float = 1.0
    """Temperature of the soft assignment, in units of the mean squared distance to one's own centre."""
    problems: int = 1024
    """Most training problems whose steps the states are fitted to."""
    transition: Policy = "dirichlet"
    """What a transition draws: a point of the simplex around the prior, or a single state from the prior."""
    feed: Feed = "soft"
    """What the model reads: the mixture of state embeddings, or the embedding of one state."""
    network: int | None = None
    """Width of the transition network's hidden layer; the model's by default."""
    floor: float = 0.01
    """Least concentration of a state."""
    draws: bool = False
    """Whether inference draws states, instead of taking the prior's mean (soft) or likeliest state (hard)."""

    def __post_init__(self) -> None:
        for name, options in (("states", Kind), ("transition", Policy), ("feed", Feed)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")
        limits = {"count": MAX_STATES, "directions": 64, "dims": MAX_WIDTH, "problems": 10**6, "network": MAX_WIDTH}
        for name, most in limits.items():
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} {getattr(self, name)}: expected 1 to {most}")
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau {self.tau}: expected more than 0; try 1.0, and 0.01 for hard states")
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor {self.floor}: expected more than 0; try 0.01")
        if self.draws and self.transition == "categorical" and self.feed == "soft" and self.states != "prefix":
            raise ValueError("transition categorical draws a single state, which cannot be fed soft: set feed hard")

    def idle_beside_prefix(self, *more: str) -> Mapping[str, str]:
        """What a prefix makes idle, `more` settings included; nothing where there are states."""
        if self.states != "prefix":
            return {}
        own = ("count", "directions", "dims", "tau", "problems", "transition", "feed", "network", "floor", "draws")
        return dict.fromkeys((*own, *more), "with one vector for all steps")

    # -----------------------------------------------------------------------------------------------------------------
    # What it learns

    def parts(self, backbone: Any, generator: torch.Generator) -> nn.ModuleDict:
        """States and transition; with a prefix one state, and a transition that is not trained."""
        D, K = backbone.table.width, 1 if self.states == "prefix" else self.count
        states = States(D, K, self.directions, self.dims, generator)
        transition = Transition(D, self.network or D, K, self.floor, generator)
        return nn.ModuleDict({"states": states, "transition": transition.requires_grad_(self.states != "prefix")})

    # -----------------------------------------------------------------------------------------------------------------
    # The posterior

    @torch.no_grad()
    def spectra(self, model: Model, examples: Examples, steps: Steps) -> Spectrum:
        """Spectra of the steps of chains, as the model reads them without states."""
        trace = DiscreteCoT().forced(model, examples)
        hidden_BWD = trace.hidden_BTD[:, 1 : examples.max_steps + 1]  # what every token of the chain was made into
        return spectrum(steps.hidden(hidden_BWD), steps.real_BSn, self.directions)

    @torch.no_grad()
    def posterior(self, model: Model, examples: Examples, steps: Steps) -> Float[Tensor, "B S K"]:
        """q of every step; of another one if shuffled, the same for a problem and a step each time."""
        if self.states == "prefix" or not steps.live_BS.numel():
            K = len(states_of(model).embedding_KD)
            return model.backbone.table.weight.new_ones(*steps.live_BS.shape, K)
        states, like = states_of(model), model.backbone.table.weight
        if self.states == "shuffled":
            prompt_BN, mask_BN = examples.prompt_BN, examples.prompt_mask_BN
            name_B = hashed(prompt_BN if mask_BN is None else prompt_BN.masked_fill(~mask_BN, -1))
            uniform_BS = Streams(derive(0, "shuffled states"), name_B).uniform(steps.live_BS.shape[1])
            place_BS = back((uniform_BS * len(states.bank_MK)).long(), like.device)
            return states.bank_MK[place_BS].to(like)
        return states.assigned(self.spectra(model, examples, steps).features, self.tau).to(like)

    # -----------------------------------------------------------------------------------------------------------------
    # Plans

    def thought(self, model: Model, draws: bool) -> LatentState | Prefix:
        """The thought of a state."""
        if self.states == "prefix":
            return Prefix(states_of(model))
        return LatentState(states_of(model), transition_of(model), self.transition, self.feed, draws)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """A state, the tokens of a step, and so on."""
        thought = self.thought(model, self.draws)
        return interleaved(examples, steps_of(examples), thought, Token(temperature) if temperature else GREEDY)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the chain's tokens given, and the posterior's mean as states."""
        steps = steps_of(examples)
        return self.given(model, examples, steps, self.posterior(model, examples, steps))

    def given(self, model: Model, examples: Examples, steps: Steps, a_BSK: Float[Tensor, "B S K"]) -> Plan:
        """The plan with the chain's tokens and these points of the simplex given."""
        return interleaved(examples, steps, self.thought(model, False), GREEDY, a_BSK, tokens=True)


def interleaved(
    examples: Examples,
    steps: Steps,
    thought: LatentState | Prefix,
    token: Token,
    a_BSK: Float[Tensor, "B S K"] | None = None,
    tokens: bool = False,
) -> Plan:
    """A state before every step of every row's chain, as long as the chain's own.

    Args:
        examples: whose chains these are.
        steps: their steps.
        thought, token: write states and tokens.
        a_BSK: points of the simplex to be given; None if the thought chooses.
        tokens: whether the chain's tokens are given.
    """
    count_BS, ids_BSn = steps.count_BS, steps.ids(examples.chain_BT) if tokens else None
    if not count_BS.shape[1]:
        return (Segment(thought, 0, None if a_BSK is None else thought.given(a_BSK), STATE),)
    plan: list[Segment] = []
    for s, count_B in enumerate(count_BS.unbind(1)):
        most = int(count_B.max())
        same = bool((count_B == most).all())
        given = None if a_BSK is None else thought.given(a_BSK[:, s : s + 1])
        plan.append(Segment(thought, 1 if same else (count_B > 0).long(), given, STATE))
        said = None if ids_BSn is None else token.given(ids_BSn[:, s, :most])
        plan.append(Segment(token, most if same else count_B, said, STEP))
    return tuple(plan)


def states_of(model: Model) -> States:
    """A model's states."""
    states = model.parts["states"]
    assert isinstance(states, States)
    return states


def transition_of(model: Model) -> Transition:
    """A model's transition network."""
    transition = model.parts["transition"]
    assert isinstance(transition, Transition)
    return transition


# ---------------------------------------------------------------------------------------------------------------------
# Supervised training


@dataclass(frozen=True)
class CTRLS(Stateful):
    """Learns embeddings of fitted states and their prior, around a frozen chain of thought. A reconstruction.

    Raises ValueError for settings out of range.
    """

    name = "ctrls"
    label = "CTRLS-style"
    starts_from = "discrete"
    recipe = MappingProxyType({"steps": 2000, "learning_rate": 1e-2, "weight_decay": 0.0})

    beta: float = 1.0
    """Weight of the divergence between posterior and prior."""
    adapt: tuple[str, ...] = ()
    """Parts of the language model that are trained too, a small adapter, by prefixes of their names, such as
    backbone.norm; the others are frozen, by default all."""
    gold: bool = False
    """Whether inference is given the posterior of the chain's own steps, to measure what right states are worth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta {self.beta}: expected 0 or more; try 1.0")

    @property
    def idle(self) -> Mapping[str, str]:
        """What a prefix makes idle."""
        return self.idle_beside_prefix("beta", "gold")

    @property
    def decoders(self) -> Mapping[str, Method]:
        """The same weights without states, with states drawn from the prior, and with the chain's own."""
        plain: dict[str, Method] = {"plain": DiscreteCoT()}
        if self.states == "prefix":
            return plain
        feed: Feed = "hard" if self.transition == "categorical" else self.feed
        return plain | {
            "drawn": replace(self, draws=True, gold=False, feed=feed),
            "posterior": replace(self, draws=False, gold=True),
        }

    def parameter_groups(self, stage: int) -> tuple[ParameterGroup, ...]:
        """The language model, frozen but for what adapts."""
        frozen = ParameterGroup(("backbone",), frozen=True)
        return (ParameterGroup(self.adapt), frozen) if self.adapt else (frozen,)

    @torch.no_grad()
    def begin_stage(self, model: Model, stage: int, examples: Examples, state: TrainState) -> None:
        """Fits the states to steps of training chains, and gives their embeddings a share of the table's scale."""
        embedding_KD, table_VD = states_of(model).embedding_KD, model.backbone.table.weight
        embedding_KD.mul_(
            (AT_FIRST * table_VD.std() / embedding_KD.std(correction=0).clamp(min=1e-12)).to(embedding_KD)
        )
        if self.states == "prefix" or not examples.max_steps:
            return
        generator = torch.Generator().manual_seed(derive(state.seed, "fitted problems"))
        chosen = torch.randperm(len(examples), generator=generator)[: self.problems].sort().values
        found = []
        for part in examples.rows(chosen.to(examples.prompt_BN.device)).parts(PART):
            steps = steps_of(part)
            found.append(self.spectra(model, part, steps).features[steps.live_BS].cpu())
        if sum(map(len, found)):
            states_of(model).fit(torch.cat(found), self.states, self.tau, state.seed)

    def thinking(self, model: Model, examples: Examples, temperature: float = 0.0) -> Plan:
        """A state, the tokens of a step, and so on; states of the chain's own steps, if they are given."""
        if not self.gold:
            return super().thinking(model, examples, temperature)
        steps, token = steps_of(examples), Token(temperature) if temperature else GREEDY
        return interleaved(
            examples, steps, self.thought(model, False), token, self.fed(self.posterior(model, examples, steps))
        )

    def fed(self, q_BSK: Float[Tensor, "B S K"], state: TrainState | None = None) -> Float[Tensor, "B S K"]:
        """What is read of a posterior: itself, or if hard a state drawn from it (the likeliest outside of training)."""
        if self.feed == "soft" or self.states == "prefix" or not q_BSK.shape[1]:
            return q_BSK
        if state is None:
            return F.one_hot(q_BSK.argmax(-1), q_BSK.shape[-1]).to(q_BSK)
        uniform_BS1 = state.streams(len(q_BSK), q_BSK.device).uniform(q_BSK.shape[1])[..., None]
        cumulative_BSK = wide(q_BSK).cumsum(-1)
        z_BS = torch.searchsorted(cumulative_BSK, uniform_BS1 * cumulative_BSK[..., -1:], right=True).squeeze(-1)
        return F.one_hot(back(z_BS, q_BSK.device), q_BSK.shape[-1]).to(q_BSK)

    def taught(self, model: Model, examples: Examples) -> Plan:
        """The same with the chain's tokens given, and what is read of the posterior as states."""
        steps = steps_of(examples)
        return self.given(model, examples, steps, self.fed(self.posterior(model, examples, steps)))

    def loss(self, model: Model, batch: Examples, state: TrainState) -> Loss:
        """Cross-entropy of the chain's tokens and the answer behind posterior states, and the prior's divergence."""
        rows, steps = state.rows or len(batch), steps_of(batch)
        q_BSK = self.posterior(model, batch, steps)
        trace = self.forced(model, batch, self.given(model, batch, steps, self.fed(q_BSK, state)))
        ids_BT, mask_BT, places = targets(batch, steps)
        said = token_loss(trace, ids_BT, rows, mask_BT)
        share = len(batch) / rows  # metrics are means over the rows of a part, losses a part's share of the whole
        if self.states == "prefix":
            return Loss(said, {"token_loss": said.detach() / share})
        m_BSK = mean_of(transition_of(model)(trace.hidden_BTD[:, places]))
        kl = divergence(q_BSK.to(m_BSK), m_BSK).masked_fill(~steps.live_BS, 0.0).sum() / rows
        metrics = {"token_loss": said.detach() / share, "state_kl": kl.detach() / share}
        return Loss(said + self.beta * kl, metrics)


def targets(examples: Examples, steps: Steps) -> tuple[Int[Tensor, "B T"], Tensor, list[int]]:
    """What a trace of states, steps and answer is to say.

    Returns:
        token ids, 0 at states; True where there is one; the places of the states, one for each step.
    """
    ids, masks, places, at = [], [], [], 0
    ids_BSn, count_BS, none_B1 = steps.ids(examples.chain_BT), steps.count_BS, examples.answer_BA.new_zeros(1, 1)
    none_B1 = none_B1.expand(len(examples), 1)
    for s in range(count_BS.shape[1]):
        most = int(count_BS[:, s].max())
        ids += [none_B1, ids_BSn[:, s, :most]]
        masks += [none_B1.bool(), steps.real_BSn[:, s, :most]]
        places.append(at)
        at += 1 + most
    said_BA = examples.answer_mask_BA
    masks.append(torch.ones_like(examples.answer_BA, dtype=torch.bool) if said_BA is None else said_BA)
    return torch.cat([*ids, examples.answer_BA], 1), torch.cat(masks, 1), places
