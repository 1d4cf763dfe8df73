"""What fitted states of reasoning steps mean, and what they can do: for CTRLS-style methods (a reconstruction).

    agreement         mutual information of states with true states, step index, length, a bag of tokens, the next token
    state_effect      divergence of a step's tokens under one state from those under another, before any reinforcement
    sharpness         how certain the posterior is of a step's state
    state_gain        nats that a chain loses when it is told another problem's states
    reachable         right answers over all sequences of states, by enumeration: a bound of what choosing can reach
    shape             effective rank and eigengaps of the features that states are fitted to

A frozen model reads states alone, so that no policy over single states is more often right than `reachable` says. For
mixtures of states the corners of the simplex are no bound: pass a finer lattice, which comes near one.

Letters: B rows, S steps of a chain, M steps of all rows, K states, Z sequences of points, Q points.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.core.seeds import derive
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY
from tinylatent.engine.trace import Trace
from tinylatent.methods.ctrls import Stateful, interleaved, targets
from tinylatent.methods.ctrls_states import Steps, effective_rank, eigengaps, k_means, steps_of
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.losses import token_loss
from tinylatent.objectives.method import Model

MOST = 4096
"""Most sequences of points that are tried."""


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def nmi(a_M: Int[Tensor, " M"], b_M: Int[Tensor, " M"]) -> float:
    """Normalised mutual information of two labellings: I(a; b) over the mean of H(a) and H(b), from 0 to 1.

    0 where both are constant: they share no information, though they agree.

    Raises:
        ValueError: labels of another number, or none.
    """
    if a_M.shape != b_M.shape or not len(a_M):
        raise ValueError(f"{len(a_M)} and {len(b_M)} labels: expected as many of both, at least one")
    _, a_M = a_M.unique(return_inverse=True)
    _, b_M = b_M.unique(return_inverse=True)
    counts = torch.bincount(a_M * (int(b_M.max()) + 1) + b_M, minlength=(int(a_M.max()) + 1) * (int(b_M.max()) + 1))
    joint_AB = counts.double().view(int(a_M.max()) + 1, -1) / len(a_M)
    h_a, h_b, h_ab = (float(torch.special.entr(p).sum()) for p in (joint_AB.sum(1), joint_AB.sum(0), joint_AB))
    return max(0.0, h_a + h_b - h_ab) / ((h_a + h_b) / 2) if h_a + h_b > 0 else 0.0


def labels_of(method: Stateful, model: Model, examples: Examples) -> dict[str, Int[Tensor, " M"]]:
    """Labels of all steps of all chains, row after row.

    Returns:
        state: the likeliest state of the posterior; index: of the step; length: its tokens; tokens: clusters, as many
        as there are states, of how often each token occurs in it; next: the token behind it, which hidden states
        behind the final norm foretell; true: what the task says of it, where it does.
    """
    steps = steps_of(examples)
    live_BS, count_BS = steps.live_BS, steps.count_BS
    index_BS = torch.arange(live_BS.shape[1], device=live_BS.device).expand_as(live_BS)
    said_BT = _said(examples, steps)
    bag_MV = F.one_hot(steps.ids(examples.chain_BT), examples.frontier.vocabulary).double()
    bag_MV = (bag_MV * steps.real_BSn[..., None]).sum(2)[live_BS]
    found = {
        "state": method.posterior(model, examples, steps).argmax(-1)[live_BS],
        "index": index_BS[live_BS],
        "length": count_BS[live_BS],
        "tokens": k_means(bag_MV, method.count, derive(0, "bag of tokens")).label_M.to(live_BS.device),
        "next": said_BT.gather(1, count_BS.cumsum(1))[live_BS],
    }
    true_M = _true(examples, steps)
    return found if true_M is None else {**found, "true": true_M}


def _said(examples: Examples, steps: Steps) -> Int[Tensor, "B T"]:
    """Every row's chain with its answer's first token behind it, wherever the chain ends."""
    end_B1 = steps.count_BS.sum(1, keepdim=True)
    return F.pad(examples.chain_BT, (0, 1)).scatter(1, end_B1, examples.answer_BA[:, :1])


def _true(examples: Examples, steps: Steps) -> Int[Tensor, " M"] | None:
    """The task's own state of every step; None where it has none, or not one for each."""
    task = getattr(examples.speaker, "task", None)
    found: list[int] = []
    if task is None:
        return None
    count_B = steps.count_BS.sum(1).tolist()
    for chain_T, tokens, live in zip(examples.chain_BT, count_B, steps.live_BS.sum(1).tolist(), strict=True):
        states = task.states(chain_T[:tokens].cpu().numpy()) if tokens else []
        if len(states) != live:
            return None
        found += states
    return torch.tensor(found, dtype=torch.int64, device=examples.chain_BT.device)


def agreement(labels: Mapping[str, Int[Tensor, " M"]]) -> dict[str, float]:
    """Normalised mutual information of states with every other label of `labels_of`."""
    return {name: nmi(labels["state"], label_M) for name, label_M in labels.items() if name != "state"}


def transition_matrix(label_BS: Int[Tensor, "B S"], live_BS: Bool[Tensor, "B S"], K: int) -> Float[Tensor, "K K"]:
    """How often a state follows another, as shares of what follows it; 1 / K where nothing does."""
    both_Bs = live_BS[:, :-1] & live_BS[:, 1:]
    pair_M = (label_BS[:, :-1] * K + label_BS[:, 1:])[both_Bs]
    count_KK = torch.bincount(pair_M, minlength=K * K).view(K, K).double()
    total_K1 = count_KK.sum(1, keepdim=True)
    return torch.where(total_K1 > 0, count_KK / total_K1.clamp(min=1), 1 / K)


def stationary(transition_KK: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """The distribution that a chain of transitions keeps; the one of least norm, where there are several."""
    K = len(transition_KK)
    left = torch.cat([transition_KK.T - torch.eye(K).to(transition_KK), transition_KK.new_ones(1, K)])
    return torch.linalg.pinv(left) @ F.pad(transition_KK.new_ones(1), (K, 0))


# ---------------------------------------------------------------------------------------------------------------------
# Effects


@torch.no_grad()
def sharpness(method: Stateful, model: Model, examples: Examples) -> dict[str, float]:
    """Means over all steps of the posterior's largest probability and of its entropy in nats.

    Near 1 / K and log K a soft state is nearly the same vector everywhere, whatever the step is.
    """
    steps = steps_of(examples)
    q_MK = method.posterior(model, examples, steps)[steps.live_BS].double()
    return {"largest": float(q_MK.amax(-1).mean()), "entropy": float(torch.special.entr(q_MK).sum(-1).mean())}


@torch.no_grad()
def shape(method: Stateful, model: Model, examples: Examples) -> dict[str, float]:
    """Means over all steps: the effective rank of a step's Gram matrix, and the first gap between its eigenvalues.

    The rank is among the leading `directions` eigenvalues. A gap near 0 says that first and second direction, and with
    them the feature, are not determined; NaN with a single direction.
    """
    steps = steps_of(examples)
    values_MK = method.spectra(model, examples, steps).eigenvalues[steps.live_BS]
    gaps_M = eigengaps(values_MK)[:, :1]
    return {"effective_rank": float(effective_rank(values_MK).mean()), "first_eigengap": float(gaps_M.mean())}


def _told(method: Stateful, model: Model, examples: Examples, steps: Steps, a_BSK: Tensor) -> Trace:
    return method.forced(model, examples, method.given(model, examples, steps, a_BSK))


@torch.no_grad()
def state_effect(method: Stateful, model: Model, examples: Examples) -> Float[Tensor, " S"]:
    """KL of a step's tokens under one state from those under another, in nats a step, over all ordered pairs.

    It is the sum over the tokens of the chain's own step, each behind those before it. Earlier steps have their
    posterior states. Where it is near 0 the model ignores states, and reinforcement learning of transitions has nothing
    to steer.

    Raises:
        ValueError: there are no states.
    """
    _check(method)
    steps, K = steps_of(examples), method.count
    a_BSK = method.posterior(model, examples, steps)
    places, live_BS, found = targets(examples, steps)[2], steps.live_BS, []
    for s, place in enumerate(places):
        said, most = [], int(steps.count_BS[:, s].max())
        for state in range(K):
            told_BSK = a_BSK.clone()
            told_BSK[:, s] = F.one_hot(torch.tensor(state, device=a_BSK.device), K).to(a_BSK)
            trace = _told(method, model, examples, steps, told_BSK)
            said.append(F.log_softmax(trace.logits_BTV[:, place + 1 : place + 1 + most].double(), -1))
        log_p_KBnV = torch.stack(said)
        cross_KKBn = torch.einsum("kbnv,lbnv->klbn", log_p_KBnV.exp(), log_p_KBnV)
        own_KBn = (log_p_KBnV.exp() * log_p_KBnV).sum(-1)
        kl_Bn = (own_KBn[:, None] - cross_KKBn).sum((0, 1)) / max(1, K * (K - 1))
        kl_B = kl_Bn.masked_fill(~steps.real_BSn[:, s, : kl_Bn.shape[1]], 0.0).sum(1)
        found.append(kl_B[live_BS[:, s]].mean())
    return torch.stack(found) if found else a_BSK.new_zeros(0).double()


@torch.no_grad()
def state_gain(method: Stateful, model: Model, examples: Examples) -> float:
    """Nats by which chain and answer are likelier with their own posterior states than with another problem's.

    Every step is told that of the previous problem that has this step, too.

    Raises:
        ValueError: a single problem, or no states.
    """
    _check(method)
    if len(examples) < 2:
        raise ValueError("the states of another problem need at least two problems: pass more")
    steps = steps_of(examples)
    a_BSK = method.posterior(model, examples, steps)
    ids_BT, mask_BT, _ = targets(examples, steps)
    another_BSK = a_BSK.clone()
    for s, live_B in enumerate(steps.live_BS.unbind(1)):
        another_BSK[live_B, s] = a_BSK[live_B, s].roll(1, 0)
    own, other = (
        token_loss(_told(method, model, examples, steps, told), ids_BT, None, mask_BT) for told in (a_BSK, another_BSK)
    )
    return float(other - own)


# ---------------------------------------------------------------------------------------------------------------------
# What states can reach


class Reachable(NamedTuple):
    """Right answers over all sequences of points of the simplex."""

    right_ZB: Bool[Tensor, "Z B"]
    """Whether a problem is solved when told a sequence; the last step's point changes fastest."""

    @property
    def best(self) -> float:
        """Share of problems that some sequence solves: the bound, if it could be chosen for each."""
        return float(self.right_ZB.any(0).double().mean())

    @property
    def fixed(self) -> float:
        """Share of problems that the best single sequence solves: what can be had without looking at the problem."""
        return float(self.right_ZB.double().mean(1).max())

    @property
    def random(self) -> float:
        """Share of problems that a sequence drawn uniformly solves, on average."""
        return float(self.right_ZB.double().mean())


def lattice(K: int, parts: int = 1) -> Float[Tensor, "Q K"]:
    """Points of the simplex whose entries are multiples of 1 / parts; its corners for 1.

    Raises:
        ValueError: parts below 1.
    """
    if parts < 1:
        raise ValueError(f"parts {parts}: expected 1, the corners, or more")
    whole = [point for point in itertools.product(range(parts, -1, -1), repeat=K) if sum(point) == parts]
    return torch.tensor(whole, dtype=torch.float64) / parts


@torch.no_grad()
def reachable(
    method: Stateful, model: Model, examples: Examples, point_QK: Float[Tensor, "Q K"] | None = None, most: int = MOST
) -> Reachable:
    """Solves every problem with every sequence of points, greedily.

    Args:
        method, model: whose states are told.
        examples: the problems; all are told sequences as long as the longest chain.
        point_QK: points of the simplex; its corners, single states, by default.
        most: most sequences.

    Raises:
        ValueError: there are more sequences, or no states.
    """
    _check(method)
    steps = steps_of(examples)
    point_QK = (lattice(method.count) if point_QK is None else point_QK).to(model.backbone.table.weight)
    Q, S = len(point_QK), steps.live_BS.shape[1]
    count = Q**S
    if count > most:
        raise ValueError(
            f"{Q} points before each of {S} steps are {count:,} sequences, more than {most:,}: take fewer states, "
            "shorter chains or a higher limit"
        )
    answer, right = Segment(GREEDY, examples.answer_tokens, name=ANSWER), []
    for z in itertools.product(range(Q), repeat=S):
        a_BSK = point_QK[list(z)].expand(len(examples), -1, -1)
        plan = interleaved(examples, steps, method.thought(model, False), GREEDY, a_BSK)
        trace = rollout(
            model.backbone, (*plan, answer), examples.prompt_BN, examples.prompt_mask_BN, offset_B=examples.offset_B
        )
        right.append(examples.judge(trace.answer()))
    return Reachable(torch.stack(right))


def _check(method: Stateful) -> None:
    """Raises ValueError for a method without states."""
    if method.states == "prefix":
        raise ValueError("states prefix has one vector for all steps: there are no states to compare")


def chance_of_nmi(M: int, K: int, L: int, draws: int = 100, seed: int = 0) -> float:
    """Mean of `nmi` for labels drawn uniformly among K and L: what M steps agree by chance, which is more than 0."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [[torch.randint(n, (M,), generator=generator) for n in (K, L)] for _ in range(draws)]
    return math.fsum(nmi(*pair) for pair in pairs) / draws


def permuted_nmi(a_M: Int[Tensor, " M"], b_M: Int[Tensor, " M"], draws: int = 100, seed: int = 0) -> float:
    """Mean of `nmi` once the first labels are permuted: what labellings with these very counts agree by chance."""
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(a_M), generator=generator).to(a_M.device) for _ in range(draws))
    return math.fsum(nmi(a_M[order_M], b_M) for order_M in orders) / draws
