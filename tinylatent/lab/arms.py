"""Arms: what stands side by side in a comparison, and how tables and figures show it.

Every registered method is an arm of every comparison, unless its class says otherwise: registering it, one line of a
package's entry points, is all it takes. Its class may bring a label and a colour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.recipes import SAMPLERS, build, build_rl, comparisons, contenders

SPARE = ("#7b5ea7", "#2f8f9d", "#a0522d", "#6b7b3a")
"""Colours of methods that have none of their own."""
SAMPLER_LOOKS: dict[str, tuple[str, str]] = {
    "k1": ("K = 1", "#3b6fb6"),
    "k3": ("K = 3", "#c98a83"),
    "k6": ("K = 6", "#b5403a"),
    "k136": ("K = 1, 3, 6", "#6b2b52"),
    "k3-paper": ("K = 3, paper", "#d6a13d"),
    "k3-official": ("K = 3, official", "#8a6b1f"),
    "dirichlet2": ("Dirichlet 2", "#7fae7a"),
    "dirichlet5": ("Dirichlet 5", "#3c7a4c"),
}
"""Label and colour of a way to sample latents, by name; `sampler_arms` gives them to whoever shows one."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    label: str
    """What tables call it."""
    recipe: Callable[..., Experiment]
    """recipe(seed, **settings of training) -> a whole run."""
    colour: str
    published: float | None = None
    """Published accuracy in percent, where there is one."""


def arms(comparison: str) -> dict[str, Arm]:
    """The arms of a comparison, by the name of their method; spare colours repeat where there are too few."""
    published, spare = comparisons()[comparison].published, cycle(SPARE)
    return {
        name: Arm(
            method.label or name,
            partial(build, comparison, method),
            method.colour or next(spare),
            published.get(name),
        )
        for name, method in contenders().items()
    }


def sampler_arms(start: str) -> dict[str, Arm]:
    """The arms of reinforcement learning on MNNS from a start, by the name of their sampler."""
    return {
        name: Arm(SAMPLER_LOOKS[name][0], partial(build_rl, start, name), SAMPLER_LOOKS[name][1]) for name in SAMPLERS
    }
