"""One layer that solves MNNS, and subset sum, by continuous thought (the expressivity theorem of CoT2, section 4).

Gozeten et al. 2025 prove that one layer with a mixture of experts does it; these are weights that do, run by the same
engine as trained ones. At step t attention copies the number d_t; with the place it chooses an expert; the expert maps
the frontier alpha_{t-1}, which came in as E^T alpha, to log alpha_t, and softmax does the rest:

    share_t(g) = (share_{t-1}(g - a d_t) + share_{t-1}(g - b d_t)) / 2         linear in the input: the first matrix
    log share_t(g), linear between the points k / M, and -C at 0               a sum of ReLUs: the second matrix

All shares are multiples of 1/M, so the broken line is exact where it matters. States not reached keep about e^-C each.
The last step of MNNS reads off which sums are reached and prefers the smallest; that of subset sum asks for the target.

A basis says how a distribution over sums is held. One-hot: a coordinate for each sum. Fourier: the frontier of MNNS is
even, so that its characteristic function phi(w) = sum alpha(s) cos(w s) is real, and one step is phi(w) cos(w d).

Letters: D width, W coordinates of the state, G points where shares are read, S sums that are states, A answers, M the
finest denominator of a share, R the largest state, v the vocabulary, X experts.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from tinylatent_tasks import MNNS, SubsetSum
from torch import Tensor

from tinylatent.models.blocks import Block, Heads
from tinylatent.models.decoder import Decoder
from tinylatent_theory.constructions.parts import Room, Units, circle, experts, eye, looks_back, only_at, zeros

BasisName = Literal["one-hot", "fourier"]
MAX_GIB = 4.0  # of weights in float64
MARGIN = 12.0
"""C = MARGIN + log(M v): all that is not reached holds less than e^-MARGIN / M together."""
NUMBER = 4.0  # a number's weight in the router: more than places can make up for


@dataclass(frozen=True)
class Basis:
    """How a distribution over sums is held in W coordinates, and moved by a number."""

    tokens_SW: Float[Tensor, "S W"]
    """What each state's token holds: the mixture's coordinates are alpha @ tokens."""
    read_GW: Callable[[int], Float[Tensor, "G W"]]
    """read_GW(d) @ coordinates: the shares after the number d, at the points."""
    write_WG: Float[Tensor, "W G"]
    """tokens_SW @ write_WG @ f is f, at every state's token."""
    ones_W: Float[Tensor, " W"]
    """tokens_SW @ ones_W is 1."""
    zero: int
    """The point of the sum 0; those of 1, 2, .. follow."""


def one_hot(states: int, zero: int, choices: tuple[int, int]) -> Basis:
    """A coordinate for each state; a number d moves half of what a state holds by a d and half by b d."""

    def read_GW(d: int) -> Tensor:
        low, high = (torch.diag(torch.ones(states - abs(c * d)).double(), -c * d) for c in choices)
        return (low + high) / 2

    return Basis(eye(states), read_GW, eye(states), torch.ones(states).double(), zero)


def fourier(task: MNNS, period: int | None = None) -> Basis:
    """cos(2 pi k s / P) for k = 0 .. P // 2, P = `period` or `modulus(task)`: W = P // 2 + 1 frequencies.

    Only even distributions can be held: points are 0 .. R, and what is written at g is written at -g. A period below
    `modulus(task)` is too short: states meet, and answers are wrong.

    Raises:
        ValueError: the period is no positive integer.
    """
    P, R = modulus(task) if period is None else period, reach(task)
    if not isinstance(P, int) or P < 1:
        raise ValueError(f"period {P}: expected a positive integer; try {modulus(task)}, or leave it out")
    w_W = 2 * torch.pi * torch.arange(P // 2 + 1).double() / P
    weight_W = torch.ones(len(w_W)).double() * 2 / P
    weight_W[0] = 1 / P
    if P % 2 == 0:
        weight_W[-1] = 1 / P
    states_S, twice_G = torch.arange(-R, R + 1).double(), torch.tensor([1.0] + [2.0] * R).double()
    tokens_SW = torch.cos(states_S[:, None] * w_W)
    inverse_GW = tokens_SW[R:] * weight_W
    return Basis(tokens_SW, lambda d: inverse_GW * torch.cos(w_W * d), inverse_GW.T * twice_G, eye(len(w_W))[0], zero=0)


def log_hinges(M: int, floor: float) -> list[tuple[float, float]]:
    """Hinges, and changes of slope there, of the line through (0, -floor) and (k/M, log(k/M)) for k = 1 .. M/2.

    No share exceeds 1/2 once a number is taken.
    """
    values = [-floor, *(math.log(k / M) for k in range(1, max(M // 2, 1) + 1))]
    slopes = [M * (high - low) for low, high in itertools.pairwise(values)]
    return [(k / M, slope - before) for k, (slope, before) in enumerate(zip(slopes, [0.0, *slopes], strict=False))]


def log_shares(units: Units, held: Basis, read_GW: Tensor, M: int, floor: float) -> Units:
    """Writes the logarithms of the shares into the state's range."""
    for at, change in log_hinges(M, floor):
        units.between("state", read_GW, -at, "state", change * held.write_WG)
    return units.write("state", -floor * held.ones_W)


# ---------------------------------------------------------------------------------------------------------------------
# MNNS


def reach(task: MNNS) -> int:
    """R: the largest sum that is a state (before the last number) or an answer (which is never above the largest)."""
    return max(task.digits - 1, 1) * task.high


def modulus(task: MNNS) -> int:
    """P: sums that differ by P look the same in the Fourier basis.

    2 R + 1 tells all states apart. With fewer than three numbers the last step needs more: shares are read at the
    answers 0 .. high, from sums up to 2 high, which must not meet a state.
    """
    return max(2 * reach(task) + 1, (task.digits + 1) * task.high + 1)


def mnns_width(task: MNNS, basis: BasisName = "one-hot") -> int:
    """D: the state, the number here and the one copied, the place (2), all else (1).

    The state is 2 R + 1 coordinates, or P // 2 + 1 frequencies and one for the sign.
    """
    _check_basis(basis)
    state = 2 * reach(task) + 1 if basis == "one-hot" else modulus(task) // 2 + 2
    return state + 2 * (task.high - task.low + 1) + 3


def _check_basis(basis: str) -> None:
    if basis not in get_args(BasisName):
        raise ValueError(f"basis {basis!r}: expected one of {', '.join(get_args(BasisName))}")


def _check_size(experts: int, units: int, width: int) -> None:
    """Refuses weights that would not fit, before they are made."""
    size = 2 * 8 * experts * units * width / 2**30
    if size > MAX_GIB:
        raise ValueError(
            f"{experts} experts of {units} units at width {width} would need {size:.1f} GiB, expected {MAX_GIB:g} at "
            "most; try fewer or smaller numbers, or for MNNS basis='fourier'"
        )


def mnns_hidden(task: MNNS) -> int:
    """Hidden units of an expert in the one-hot basis, for three digits or more: exponential in the digits.

    A unit for each of 2 R + 1 sums and each of the 2^(m - 2) points k / M up to 1/2 of the broken line, and two a sum
    that take the state away.
    """
    return (2 * reach(task) + 1) * (2 ** (task.digits - 2) + 2)


def mnns_floor(task: MNNS) -> float:
    """C: the logarithm of 0 is taken for -C."""
    return MARGIN + math.log(2 ** (task.digits - 1) * len(task.vocabulary))


def mnns_leakage(task: MNNS) -> float:
    """Bound on what all tokens that are not reached hold together, at every step: v e^-C, and a thousandth of it.

    An unreached state receives at most v e^-C itself, which lifts its logit by less than M C v e^-C = C e^-MARGIN.
    """
    return len(task.vocabulary) * math.exp(-mnns_floor(task)) * 1.001


def mnns_solver(task: MNNS, basis: BasisName = "one-hot", period: int | None = None) -> Decoder:
    """One layer that solves every problem of a task by base CoT2 thoughts.

    The number's token holds the sum 0 as well, so that thinking starts there.

    Args:
        task: any number of digits, any range of digits.
        basis: how the frontier is held.
        period: of the Fourier basis; `modulus(task)` by default.

    Raises:
        ValueError: an unknown basis, a period that is none or has no basis to be of, or weights beyond 4 GiB.
    """
    _check_basis(basis)
    if period is not None and basis != "fourier":
        raise ValueError(f"period {period} with basis {basis!r}: only the Fourier basis has one; leave it out")
    R, m, numbers, floor = reach(task), task.digits, task.high - task.low + 1, mnns_floor(task)
    held = one_hot(2 * R + 1, R, (-1, 1)) if basis == "one-hot" else fourier(task, period)
    sizes = {"state": held.tokens_SW.shape[1], "negative": int(basis == "fourier")}
    room = Room(**sizes, number=numbers, copied=numbers, place=2, other=1)
    _check_size(2 * numbers, held.write_WG.shape[1] * 2 ** max(m - 2, 1) + 2 * sizes["state"], room.width)

    tokens_VD = zeros(len(task.vocabulary), room.width)
    tokens_VD[:, room["other"]] = 1.0
    digits, states = task.digit_ids(range(task.low, task.high + 1)), task.sum_ids(range(-R, R + 1))
    for ids in (digits, states):
        tokens_VD[ids, room["other"]] = 0.0
    tokens_VD[states, room["state"]] = held.tokens_SW
    tokens_VD[states[:R], room["negative"]] = 1.0
    tokens_VD[digits, room["state"]] = held.tokens_SW[R]
    tokens_VD[digits, room["number"]] = eye(numbers)

    answers = slice(held.zero, held.zero + task.high + 1)
    worth_A = torch.arange(task.high + 1, 0, -1).double()

    def thinks(d: int) -> Units:
        return log_shares(Units(room), held, held.read_GW(d), 2 ** (m - 1), floor)

    def concludes(d: int) -> Units:
        """high + 1 - g for every g of 0 .. high that is reached: min(1, 2^m share) is 1 there."""
        read_AW, write_WA = 2**m * held.read_GW(d)[answers], held.write_WG[:, answers] * worth_A
        units = Units(room).between("state", read_AW, 0.0, "state", write_WA)
        return units.between("state", read_AW, -1.0, "state", -write_WA).write("negative", -2.0 - task.high)

    units, router_XD, bias_X = [], zeros(2 * numbers, room.width), zeros(2 * numbers)
    for x in range(2 * numbers):
        last, digit = divmod(x, numbers)
        expert = (concludes if last else thinks)(task.low + digit).clear("state", "negative")
        units.append(expert.write("number", -floor - 1).write("other", -floor))
        router_XD[x, room["copied"].start + digit] = NUMBER
        if last:
            router_XD[x, room["place"]], bias_X[x] = only_at(2 * m - 1, task.positions)
    head = looks_back(room, m - 1, task.positions, room.copies(("number", "copied")))
    return _machine(room, tokens_VD, task.positions, Block(Heads([head]), experts(units, router_XD, bias_X)))


def _machine(room: Room, tokens_VD: Tensor, positions: int, block: Block) -> Decoder:
    places_PD = zeros(positions, room.width)
    places_PD[:, room["place"]] = circle(positions)
    return Decoder(tokens_VD, places_PD, [block])


# ---------------------------------------------------------------------------------------------------------------------
# Subset sum


def subset_sum_width(task: SubsetSum) -> int:
    """D: the state and the target (R + 1 each, R = n high), number here and number copied, no and yes, place, else."""
    return 2 * (task.numbers * task.high + 1) + 2 * task.high + 5


def subset_sum_floor(task: SubsetSum) -> float:
    """C: the logarithm of 0 is taken for -C."""
    return MARGIN + math.log(2**task.numbers * len(task.vocabulary))


def subset_sum_leakage(task: SubsetSum) -> float:
    """Bound on what all tokens that are not reached hold together; see `mnns_leakage`."""
    return len(task.vocabulary) * math.exp(-subset_sum_floor(task)) * 1.001


def subset_sum_solver(task: SubsetSum) -> Decoder:
    """One layer that solves every problem of a task by base CoT2 thoughts.

    Three kinds of expert: the first step starts from nothing (its input is the target's token), the last asks whether
    the target, which attention copies then, is reached: relu(M share(g) + M [g is the target] - M).

    Raises:
        ValueError: weights beyond 4 GiB.
    """
    n, R, M, floor = task.numbers, task.numbers * task.high, 2**task.numbers, subset_sum_floor(task)
    _check_size(2 * task.high + 1, (R + 1) * (M // 2 + 2), subset_sum_width(task))
    held = one_hot(R + 1, 0, (0, 1))
    room = Room(state=R + 1, target=R + 1, number=task.high, copied=task.high, words=2, place=2, other=1)

    tokens_VD = zeros(len(task.vocabulary), room.width)
    tokens_VD[:, room["other"]] = 1.0
    sums = torch.arange(R + 1) + task.vocabulary.index("=0")
    digits = torch.arange(task.high) + task.vocabulary.index("1")
    words = torch.arange(2) + len(task.vocabulary) - 2
    for ids, name in ((sums, "state"), (digits, "number"), (words, "words")):
        tokens_VD[ids, room["other"]], tokens_VD[ids, room[name]] = 0.0, eye(len(ids))

    def starts(d: int) -> Units:
        reached_W = eye(R + 1)[0] + eye(R + 1)[d]
        return Units(room).write("state", (floor + math.log(0.5)) * reached_W - floor * held.ones_W)

    def thinks(d: int) -> Units:
        return log_shares(Units(room), held, held.read_GW(d), M, floor)

    asks, up_FD, yes_DF = Units(room), zeros(R + 1, room.width), zeros(room.width, R + 1)
    up_FD[:, room["state"]], up_FD[:, room["target"]] = M * eye(R + 1), M * eye(R + 1)
    yes_DF[room["words"].stop - 1] = 1.0
    asks.add(up_FD, -M, yes_DF).bias_D[room["words"].start] = 0.5

    units, router_XD, bias_X = [asks], zeros(2 * task.high + 1, room.width), zeros(2 * task.high + 1)
    router_XD[0, room["place"]], bias_X[0] = only_at(2 * n + 1, task.positions)
    for x in range(1, 2 * task.high + 1):
        first, digit = divmod(x - 1, task.high)
        units.append((starts if first else thinks)(1 + digit).write("words", -floor))
        router_XD[x, room["copied"].start + digit] = NUMBER
        if first:
            router_XD[x, room["place"]], bias_X[x] = only_at(n + 1, task.positions)
    for expert in units:
        expert.clear("state").write("number", -floor).write("other", -floor)
    head = looks_back(room, n, task.positions, room.copies(("number", "copied"), ("state", "target")))
    return _machine(room, tokens_VD, task.positions, Block(Heads([head]), experts(units, router_XD, bias_X)))
