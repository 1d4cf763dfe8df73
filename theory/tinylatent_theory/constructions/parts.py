"""Parts that several machines are made of: named ranges of the width, places on a circle, hidden units in groups.

Everything is built in float64; a machine is cast when it runs.

Letters: D width, F hidden units, P positions, X experts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.models.blocks import Experts, Head

GAP = 40.0
"""How much the score of a slot that is meant exceeds all others: they get less than slots * e^-GAP together."""


def zeros(*shape: int) -> Tensor:
    """Zeros in float64."""
    return torch.zeros(*shape, dtype=torch.float64)


def eye(size: int) -> Float[Tensor, "size size"]:
    """The identity in float64."""
    return torch.eye(size, dtype=torch.float64)


class Room:
    """Named ranges of the residual stream, end to end; `room["place"]` is a slice."""

    def __init__(self, **sizes: int):
        self.width, self.slices = 0, {}
        for name, size in sizes.items():
            self.slices[name] = slice(self.width, self.width + size)
            self.width += size

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]

    def copies(self, *pairs: tuple[str, str]) -> Float[Tensor, "D D"]:
        """The map that copies ranges to others of the same size, and nothing else."""
        map_DD = zeros(self.width, self.width)
        for source, target in pairs:
            map_DD[self[target], self[source]] = eye(self[source].stop - self[source].start)
        return map_DD


# ---------------------------------------------------------------------------------------------------------------------
# Places


def circle(positions: int) -> Float[Tensor, "P 2"]:
    """Positions as points of a circle, all different: (cos, sin)(2 pi p / P)."""
    angle_P = 2 * torch.pi * torch.arange(positions, dtype=torch.float64) / positions
    return torch.stack([angle_P.cos(), angle_P.sin()], 1)


def nearness(positions: int) -> float:
    """1 - the cosine between neighbouring places."""
    return 1 - float(circle(positions)[1, 0])


def only_at(position: int, positions: int) -> tuple[Float[Tensor, " 2"], float]:
    """Weights over a place and a bias whose sum is positive at one position and negative at all others."""
    return circle(positions)[position], nearness(positions) / 2 - 1


def looks_back(room: Room, back: int, positions: int, value_DD: Float[Tensor, "D D"]) -> Head:
    """A head that attends to the slot `back` positions earlier; where there is none, its output means nothing."""
    sharp = GAP / nearness(positions)
    (c, s) = circle(positions)[back % positions].tolist()
    query_KD, key_KD = zeros(2, room.width), zeros(2, room.width)
    query_KD[:, room["place"]] = sharp * torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    key_KD[:, room["place"]] = eye(2)
    return Head(query_KD, key_KD, value_DD)


# ---------------------------------------------------------------------------------------------------------------------
# Hidden units


class Units:
    """Hidden units of one expert, collected group by group: x -> bias + sum of down relu(up x + b)."""

    def __init__(self, room: Room):
        self.room, self.bias_D = room, zeros(room.width)
        self.up: list[Tensor] = []
        self.up_bias: list[Tensor] = []
        self.down: list[Tensor] = []

    def add(self, up_FD: Float[Tensor, "F D"], bias: float, down_DF: Float[Tensor, "D F"]) -> "Units":
        """More units."""
        self.up.append(up_FD)
        self.up_bias.append(zeros(len(up_FD)) + bias)
        self.down.append(down_DF)
        return self

    def between(
        self, source: str, read_FS: Float[Tensor, "F S"], bias: float, target: str, write_TF: Float[Tensor, "T F"]
    ) -> "Units":
        """Units that read one range and write another."""
        up_FD, down_DF = zeros(len(read_FS), self.room.width), zeros(self.room.width, write_TF.shape[1])
        up_FD[:, self.room[source]], down_DF[self.room[target]] = read_FS, write_TF
        return self.add(up_FD, bias, down_DF)

    def clear(self, *names: str) -> "Units":
        """Takes what the residual stream holds in these ranges away: x - relu(x) + relu(-x) = 0."""
        for name in names:
            one = eye(self.room[name].stop - self.room[name].start)
            self.between(name, one, 0.0, name, -one).between(name, -one, 0.0, name, one)
        return self

    def write(self, name: str, value: Tensor | float) -> "Units":
        """Adds a constant to a range."""
        self.bias_D[self.room[name]] += value
        return self


def experts(units: Sequence[Units], router_XD: Float[Tensor, "X D"], bias_X: Float[Tensor, " X"]) -> Experts:
    """Experts from their units, padded to the same number, with the router that chooses among them."""
    most = max(sum(map(len, each.up)) for each in units)

    def padded(tensor: Tensor, axis: int) -> Tensor:
        missing = most - tensor.shape[axis]
        return F.pad(tensor, (0, missing) if axis == tensor.ndim - 1 else (0, 0, 0, missing))

    return Experts(
        router_XD,
        bias_X,
        torch.stack([padded(torch.cat(each.up), 0) for each in units]),
        torch.stack([padded(torch.cat(each.up_bias), 0) for each in units]),
        torch.stack([padded(torch.cat(each.down, 1), 1) for each in units]),
        torch.stack([each.bias_D for each in units]),
    )


def mlp(units: Units) -> Experts:
    """A single expert: a plain MLP."""
    return experts([units], zeros(1, units.room.width), zeros(1))
